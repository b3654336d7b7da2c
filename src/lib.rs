#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![allow(dead_code)]
//! quorate
pub(crate) mod command;
mod error;
pub(crate) mod format;
pub(crate) mod state_machine;
mod types;
