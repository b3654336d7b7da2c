//! Operations fail one by one.
