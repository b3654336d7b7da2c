//! Whole clusters under test: what a host's own tests stand on.

pub mod check;
