//! quorate: a consensus key-value store inside your own process.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![allow(dead_code)]

mod api;
mod codec;
mod command;
mod config;
mod error;
mod format;
mod node;
mod raft;
mod rt;
mod state_machine;
mod storage;
pub mod transport;
mod types;
mod watch_hub;

pub use crate::api::builder::Builder;
pub use crate::api::cluster::{Cluster, Health, Outcome, Status};
pub use crate::api::keys::{Keys, prefix};
pub use crate::api::kv::{
    Cas, Delete, Deleted, Entries, Entry, Get, RANGE_ENTRIES_MAX, Range, Replaced, Set, SetIf, SetPrev, Written,
};
pub use crate::api::txn::{Condition, Operation, Transaction, TxnOutcome, When, list, put, read, remove, when};
pub use crate::codec::{Json, Raw, Value};
pub use crate::config::{
    KEY_BYTES_MAX, Runtime, TTL_MAX, TTL_MIN, TXN_OPS_MAX, Timing, VALUE_BYTES_MAX, WRITE_BYTES_MAX,
};
pub use crate::error::{Error, FormationError, Obstacle, StartError};
pub use crate::node::Formation;
pub use crate::transport::{Inbound, Lane, MemoryNetwork, MemoryTransport, Transport, TransportError};
pub use crate::types::{ClientId, ClusterId, Fence, LeaseId, Member, NodeId, Peer, Revision, Ticket};
