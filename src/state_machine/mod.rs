//! The replicated state: a function of the log and nothing else.
//!
//! [`State::apply`] is the only place where it changes. It knows no clock, no randomness, no order but that of keys and
//! numbers, and no database: it reads and writes through [`Rows`], a few calls which the storage engine implements. Each
//! applied entry gives an answer for its proposer and the changes for watchers; values stay in the rows, and
//! [`KeyIndex`] says in memory where. Readers use [`read`] with the same index.
//!
//! What is left to others: that entries come in log order and once each, that everything written between two commits
//! becomes durable together, and limits on the size of keys, values and transactions, which the proposer checks.

mod apply;
pub(crate) mod client;
mod hash;
mod history;
pub(crate) mod index;
mod lease;
#[cfg(any(test, feature = "internals"))]
pub(crate) mod memory;
pub(crate) mod read;
mod short;
mod state;
#[cfg(any(test, feature = "internals"))]
pub(crate) mod tests;
mod txn;

use std::borrow::Cow;
use std::ops::{ControlFlow, RangeInclusive};

use bytes::Bytes;

pub(crate) use self::client::ANSWERS_MAX;
pub(crate) use self::hash::STATE_VERSION;
pub(crate) use self::index::KeyIndex;
pub(crate) use self::read::ReadError;
pub(crate) use self::short::ShortBytes;
pub(crate) use self::state::{Counters, State};
use crate::command::RecordId;
use crate::format::wire::DecodeError;
use crate::types::Revision;

/// The groups of rows the state machine keeps, beside its records.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RowSpace {
    /// Counters and the floor; one fixed key each.
    Meta,
    /// One row per lease.
    Lease,
    /// One row per client record.
    Client,
    /// One row per remembered answer: client, then seq.
    Answer,
    /// What this node alone remembers (how far it has swept). No part of the state's hash, nor of a snapshot.
    Local,
}

/// Reads what the state machine has written. Implemented by the storage engine and, for tests, by maps in memory.
///
/// An error is the disk's, never the caller's: it stops the node.
pub(crate) trait RowsRead {
    /// The encoded record at `id`.
    fn record(&self, id: RecordId) -> Result<Option<Bytes>, RowError>;
    fn row(&self, space: RowSpace, key: &[u8]) -> Result<Option<Bytes>, RowError>;
}

/// Goes through many of them: for loading a state, and for readers of history. Applying an entry never needs it.
pub(crate) trait RowsScan: RowsRead {
    /// Calls `each` with every record of `ids`, in ascending order, until it breaks off or returns an error.
    fn records_in(&self, ids: RangeInclusive<RecordId>, each: &mut EachRecord<'_>) -> Result<(), RowError>;
    /// Calls `each` with every record, in ascending order, until it returns an error.
    fn each_record(&self, each: &mut dyn FnMut(RecordId, Bytes) -> Result<(), RowError>) -> Result<(), RowError> {
        let first = RecordId { revision: Revision::ZERO, ordinal: 0 };
        let last = RecordId { revision: Revision::new(u64::MAX), ordinal: u32::MAX };
        self.records_in(first..=last, &mut |id, record| each(id, record).map(ControlFlow::Continue))
    }
    /// Calls `each` with every row of one space, in ascending order of key, until it returns an error.
    fn each_row(&self, space: RowSpace, each: &mut EachRow<'_>) -> Result<(), RowError>;
}

/// Takes one record after the other, until it has seen enough.
pub(crate) type EachRecord<'a> = dyn FnMut(RecordId, Bytes) -> Result<ControlFlow<()>, RowError> + 'a;

/// Takes one row after the other, with its key.
pub(crate) type EachRow<'a> = dyn FnMut(&[u8], Bytes) -> Result<(), RowError> + 'a;

/// Writes as well. Everything written for one entry becomes visible and durable together. Removing what is not there is no
/// error.
pub(crate) trait Rows: RowsRead {
    fn put_record(&mut self, id: RecordId, record: &[u8]) -> Result<(), RowError>;
    /// Removes each of `ids`, which are in ascending order.
    fn remove_records(&mut self, ids: &[RecordId]) -> Result<(), RowError>;
    fn put_row(&mut self, space: RowSpace, key: &[u8], value: Cow<'_, [u8]>) -> Result<(), RowError>;
    fn remove_row(&mut self, space: RowSpace, key: &[u8]) -> Result<(), RowError>;
}

/// A row could not be read, written or understood.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}")]
pub(crate) struct RowError {
    what: String,
    /// The format it has, and the newest one that this build reads, if that is why.
    newer: Option<(u64, u64)>,
}

impl RowError {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        RowError { what: what.into(), newer: None }
    }

    /// `what` was read, and not understood.
    pub(crate) fn unread(what: impl std::fmt::Display, error: &DecodeError) -> Self {
        RowError { what: format!("{what}: {error}"), newer: error.newer_format() }
    }

    /// The format it has, and the newest one that this build reads, if a newer release wrote it.
    pub(crate) fn newer(&self) -> Option<(u64, u64)> {
        self.newer
    }
}
