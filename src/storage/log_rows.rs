//! Entries in the table of `log.redb`: what one transaction writes, and what is read back.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use redb::{
    CommitError, Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition,
    TableError, TransactionError, WriteTransaction,
};

use crate::error::StorageError;
use crate::format::log::{
    COMMITTED_KEY, INDEX_END, LOG_TABLE, PURGED_KEY, RowHead, RowReader, VOTE_KEY, decode_position, decode_vote,
    encode_row, entry_bytes,
};
use crate::format::wire::DecodeError;
use crate::rt::mutant;
use crate::rt::worker::panic_message;
use crate::types::{LogEntry, LogId, Vote};

use super::disk::File;
use super::tail::Budget;

pub(super) const LOG: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new(LOG_TABLE);

/// A row is cut when it reaches this many bytes, so that reading one old entry does not read a whole burst of others.
/// One entry may be larger and then has a row to itself.
const ROW_BYTES_MAX: usize = 1 << 20;

/// Why the log's file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowsError {
    #[error(transparent)]
    Open(#[from] DatabaseError),
    #[error(transparent)]
    Begin(#[from] TransactionError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Storage(#[from] redb::StorageError),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error("redb panicked: {0}")]
    Panic(String),
    #[error("row {key}: {error}")]
    Row { key: u64, error: DecodeError },
    #[error("the log has {found:?} where entry {expected} belongs")]
    Gap { expected: u64, found: Option<u64> },
}

impl RowsError {
    pub(super) fn while_doing(self, what: &'static str) -> StorageError {
        StorageError::new(File::Log.name(), what, self)
    }
}

/// Reads a file that may be damaged: redb refuses most damage with an error, and some with a panic.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, RowsError>) -> Result<T, RowsError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|panic| Err(RowsError::Panic(panic_message(&*panic).to_owned())))
}

fn at<T>(key: u64, decoded: Result<T, DecodeError>) -> Result<T, RowsError> {
    decoded.map_err(|error| RowsError::Row { key, error })
}

/// The log within one write transaction.
pub(super) struct Rows<'txn> {
    table: Table<'txn, u64, &'static [u8]>,
    /// What all rows of entries take.
    bytes: u64,
}

impl<'txn> Rows<'txn> {
    /// `bytes` is what the rows of entries take before this transaction.
    pub(super) fn open(txn: &'txn WriteTransaction, bytes: u64) -> Result<Self, RowsError> {
        Ok(Rows { table: txn.open_table(LOG)?, bytes })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes one of the rows under the highest keys.
    pub(super) fn put(&mut self, key: u64, row: &[u8]) -> Result<(), RowsError> {
        self.table.insert(key, row)?;
        Ok(())
    }

    /// Writes entries that follow what is there, as one row or as few as the limit on a row allows.
    pub(super) fn append(&mut self, mut entries: &[LogEntry]) -> Result<(), RowsError> {
        while !entries.is_empty() {
            let mut budget = Budget::new(ROW_BYTES_MAX);
            let fitting = entries.iter().take_while(|entry| budget.admits(entry_bytes(entry))).count();
            let (row, rest) = entries.split_at(fitting);
            self.insert(row)?;
            entries = rest;
        }
        Ok(())
    }

    fn insert(&mut self, entries: &[LogEntry]) -> Result<(), RowsError> {
        let row = encode_row(entries);
        self.bytes += row.len() as u64;
        if let Some(old) = self.table.insert(entries[0].log_id.index, &row[..])? {
            self.bytes -= old.value().len() as u64;
        }
        Ok(())
    }

    /// Removes the entries from `from` on. A row that begins before `from` is written again without them.
    pub(super) fn truncate(&mut self, from: u64) -> Result<(), RowsError> {
        let kept = self.begun_before(from)?;
        let bytes = &mut self.bytes;
        self.table.retain_in(from..INDEX_END, |_, row| {
            *bytes -= row.len() as u64;
            false
        })?;
        if kept.is_empty() { Ok(()) } else { self.insert(&kept) }
    }

    /// The entries below `from` of a row that goes on to `from`; none if no row does.
    fn begun_before(&self, from: u64) -> Result<Vec<LogEntry>, RowsError> {
        let Some(found) = self.table.range(..from)?.next_back() else { return Ok(Vec::new()) };
        let (key, row) = found?;
        let (key, row) = (key.value(), row.value());
        if at(key, RowHead::read(row, key))?.last() < from {
            return Ok(Vec::new());
        }
        let reader = at(key, RowReader::new(Bytes::copy_from_slice(row), key))?;
        reader.take((from - key) as usize).map(|entry| at(key, entry)).collect()
    }

    /// Removes up to `rows_max` rows that hold nothing above `upto`; says whether there are more.
    ///
    /// A row that also holds later entries stays as it is: whoever reads knows what is purged.
    pub(super) fn purge(&mut self, upto: u64, rows_max: usize) -> Result<bool, RowsError> {
        let mut gone = Vec::new();
        let mut more = false;
        for found in self.table.range(..=upto.min(INDEX_END - 1))? {
            let (key, row) = found?;
            let key = key.value();
            if at(key, RowHead::read(row.value(), key))?.last() > upto {
                break;
            }
            more = gone.len() == rows_max;
            if more {
                break;
            }
            gone.push(key);
        }
        for key in gone {
            if let Some(row) = self.table.remove(key)? {
                self.bytes -= row.value().len() as u64;
            }
        }
        Ok(more)
    }
}

/// What the file says when it is opened.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// The index of the first entry, if there is one.
    pub(super) first: Option<u64>,
    /// The last entry, or what is purged.
    pub(super) last: Option<LogId>,
    pub(super) bytes: u64,
    /// Rows were purged and are still there.
    pub(super) leftovers: bool,
}

/// Reads what is kept in memory, and checks that the rows join up: every head, and the whole of the last row.
///
/// A row that does not check out is damage, at the end as much as anywhere: redb's commit is atomic, so there is no such
/// thing as a torn tail, and cutting it off would forget what was promised (Protocol-Aware Recovery, FAST'18).
pub(super) fn load(db: &Database) -> Result<Loaded, RowsError> {
    let table = db.begin_read()?.open_table(LOG)?;
    let meta = |key: u64| -> Result<Option<Bytes>, RowsError> {
        Ok(table.get(key)?.map(|row| Bytes::copy_from_slice(row.value())))
    };
    let position = |key| meta(key)?.map_or(Ok(None), |row| at(key, decode_position(row)));
    let purged: Option<LogId> = position(PURGED_KEY)?;
    let mut loaded = Loaded {
        vote: meta(VOTE_KEY)?.map(|row| at(VOTE_KEY, decode_vote(row))).transpose()?,
        committed: position(COMMITTED_KEY)?,
        purged,
        last: purged,
        ..Loaded::default()
    };
    let mut next = purged.map(|purged| purged.index + 1);
    let mut last_row = None;
    for found in table.range(..INDEX_END)? {
        let (key, row) = found?;
        let key = key.value();
        if mutant("truncate_on_crc_error") && !is_whole(row.value(), key) {
            break;
        }
        let head = at(key, RowHead::read(row.value(), key))?;
        loaded.bytes += row.value().len() as u64;
        if purged.is_some_and(|purged| head.last() <= purged.index) {
            loaded.leftovers = true;
            continue;
        }
        // The first row may begin below what is purged, and anywhere if nothing is.
        let joins = next.is_none_or(|next| key == next || (key < next && loaded.first.is_none()));
        if !joins {
            return Err(RowsError::Gap { expected: next.unwrap_or(0), found: Some(key) });
        }
        loaded.first.get_or_insert(next.map_or(key, |next| next.max(key)));
        next = Some(head.last() + 1);
        last_row = Some((key, Bytes::copy_from_slice(row.value())));
    }
    if let Some((key, row)) = last_row {
        for entry in at(key, RowReader::new(row, key))? {
            loaded.last = Some(at(key, entry)?.log_id);
        }
    }
    Ok(loaded)
}

/// A mutant's question.
fn is_whole(row: &[u8], key: u64) -> bool {
    RowReader::new(Bytes::copy_from_slice(row), key).is_ok_and(|mut entries| entries.all(|entry| entry.is_ok()))
}

/// The entries of `range`, all of which are in the file, up to `bytes_max`; at least one.
pub(super) fn read(txn: &ReadTransaction, range: Range<u64>, bytes_max: usize) -> Result<Vec<LogEntry>, RowsError> {
    let table = txn.open_table(LOG)?;
    let begin = table.range(..=range.start)?.next_back().transpose()?.map_or(range.start, |(key, _)| key.value());
    let mut budget = Budget::new(bytes_max);
    let mut entries: Vec<LogEntry> = Vec::new();
    for found in table.range(begin..range.end)? {
        let (key, row) = found?;
        let key = key.value();
        for entry in at(key, RowReader::new(Bytes::copy_from_slice(row.value()), key))? {
            let entry = at(key, entry)?;
            let index = entry.log_id.index;
            if index < range.start {
                continue;
            }
            if index >= range.end || !budget.admits(entry_bytes(&entry)) {
                return Ok(entries);
            }
            let expected = range.start + entries.len() as u64;
            if index != expected {
                return Err(RowsError::Gap { expected, found: Some(index) });
            }
            entries.push(entry);
        }
    }
    match range.start + entries.len() as u64 {
        end if end == range.end => Ok(entries),
        expected => Err(RowsError::Gap { expected, found: None }),
    }
}
