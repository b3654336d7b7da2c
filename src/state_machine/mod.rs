//! The replicated state: a function of the log and nothing else.

use bytes::Bytes;

use crate::command::RecordId;

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
}

/// Reads what the state machine has written. Implemented by the storage engine and, for tests, by maps in memory.
///
/// An error is the disk's, never the caller's: it stops the node.
pub(crate) trait RowsRead {
    /// The encoded record at `id`.
    fn record(&self, id: RecordId) -> Result<Option<Bytes>, RowError>;
    fn row(&self, space: RowSpace, key: &[u8]) -> Result<Option<Bytes>, RowError>;
    /// Calls `each` with every record, in ascending order, until it returns an error.
    fn each_record(&self, each: &mut dyn FnMut(RecordId, Bytes) -> Result<(), RowError>) -> Result<(), RowError>;
    /// Calls `each` with every row of one space, in ascending order of key, until it returns an error.
    fn each_row(
        &self,
        space: RowSpace,
        each: &mut dyn FnMut(&[u8], Bytes) -> Result<(), RowError>,
    ) -> Result<(), RowError>;
}

/// Writes as well. Everything written for one entry becomes visible and durable together.
pub(crate) trait Rows: RowsRead {
    fn put_record(&mut self, id: RecordId, record: &[u8]) -> Result<(), RowError>;
    fn remove_record(&mut self, id: RecordId) -> Result<(), RowError>;
    fn put_row(&mut self, space: RowSpace, key: &[u8], value: &[u8]) -> Result<(), RowError>;
    fn remove_row(&mut self, space: RowSpace, key: &[u8]) -> Result<(), RowError>;
}

/// A row could not be read, written or understood.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RowError(pub(crate) String);
