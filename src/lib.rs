//! quorate: a consensus key-value store inside your own process.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![allow(dead_code, unused_imports)]

mod command;
mod config;
mod error;
mod format;
mod raft;
mod rt;
mod state_machine;
mod storage;
pub mod transport;
mod types;
