//! The power fails at every operation of a run, and again at every operation of the recovery.
