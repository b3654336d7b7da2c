//! Reads of one moment: values, ranges, counts and changes as of a revision.
//!
//! A caller brings the index, rows that stand at or after the revision it reads at (a transaction of the database), and
//! the revision. What was written later, or is being written, is not seen. A revision below what has been pruned is
//! refused, never answered from what is left.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::index::Version;
use super::{KeyIndex, RowError, RowSpace, RowsRead, RowsScan};
use crate::command::{Change, KeyRange, KeyValue, RecordId};
use crate::format::record::{Record, decode_record};
use crate::format::rows;
use crate::types::{LeaseId, Revision};

/// Entries that one range answers with at the most; beyond, it says that there are more.
pub(crate) const RANGE_ENTRIES_MAX: usize = 10_000;

/// Bytes of keys and values after which a range stops and says that there are more. One entry is always given.
pub(crate) const RANGE_BYTES_MAX: usize = 4 << 20;

/// Why a read has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Row(#[from] RowError),
    /// `oldest` can still be asked for.
    #[error("compacted; the oldest revision kept is {oldest}")]
    Compacted { oldest: Revision },
}

/// The key as of `at`.
pub(crate) fn get(
    index: &KeyIndex,
    rows: &dyn RowsRead,
    at: Revision,
    key: &[u8],
) -> Result<Option<KeyValue>, ReadError> {
    let Some(version) = index.newest_at(key, at)? else { return Ok(None) };
    Ok(Some(Reader::new(rows).key_value(&version)?))
}

/// The first live keys of the range as of `at` (the last ones, descending, if `reverse`), and whether there are more.
///
/// Stops at `limit`, at [`RANGE_ENTRIES_MAX`] or at [`RANGE_BYTES_MAX`]: go on behind the last key.
pub(crate) fn range(
    index: &KeyIndex,
    rows: &dyn RowsRead,
    at: Revision,
    keys: &KeyRange,
    limit: usize,
    reverse: bool,
) -> Result<(Vec<KeyValue>, bool), ReadError> {
    range_within(index, rows, at, keys, limit, reverse, &mut { RANGE_BYTES_MAX })
}

/// As [`range`], taking the bytes of its answer from a budget that several ranges share.
pub(super) fn range_within(
    index: &KeyIndex,
    rows: &dyn RowsRead,
    at: Revision,
    keys: &KeyRange,
    limit: usize,
    reverse: bool,
    budget: &mut usize,
) -> Result<(Vec<KeyValue>, bool), ReadError> {
    let limit = limit.min(RANGE_ENTRIES_MAX);
    let mut reader = Reader::new(rows);
    let mut entries: Vec<KeyValue> = Vec::new();
    let mut rest = Some(keys.clone());
    while let Some(range) = rest {
        // One more than is wanted, to learn whether there is more.
        let slice = index.slice(&range, at, limit - entries.len() + 1, reverse)?;
        for (_, version) in &slice.entries {
            if entries.len() == limit || (*budget == 0 && !entries.is_empty()) {
                return Ok((entries, true));
            }
            let entry = reader.key_value(version)?;
            *budget = budget.saturating_sub(entry.key.len() + entry.value.len());
            entries.push(entry);
        }
        rest = slice.rest;
    }
    Ok((entries, false))
}

/// Some live keys, each with the revision that created it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeySlice {
    pub(crate) keys: Vec<(Bytes, Revision)>,
    /// What has not been looked at yet.
    pub(crate) rest: Option<KeyRange>,
}

/// The first live keys of the range as of `at`, at most `limit`. Reads no record.
pub(crate) fn keys(index: &KeyIndex, at: Revision, keys: &KeyRange, limit: usize) -> Result<KeySlice, ReadError> {
    let slice = index.slice(keys, at, limit, false)?;
    let created = |(key, version): (Bytes, Version)| (key, version.created());
    Ok(KeySlice { keys: slice.entries.into_iter().map(created).collect(), rest: slice.rest })
}

/// How many keys of the range are live as of `at`.
pub(crate) fn count(index: &KeyIndex, at: Revision, keys: &KeyRange) -> Result<u64, ReadError> {
    let (mut live, mut rest) = index.count_slice(keys, at)?;
    while let Some(range) = rest {
        let (more, next) = index.count_slice(&range, at)?;
        live += more;
        rest = next;
    }
    Ok(live)
}

/// The changes of the revisions from `from` up to `to`, in order, and the last revision they are complete to.
///
/// Revisions come whole: as many as fit `max_records`, but at least one. Go on from the revision after the one returned.
///
/// # Errors
/// [`ReadError::Compacted`] if `from` is at or below `floor` (the floor of the caller's view): some of its changes may be
/// gone.
pub(crate) fn changes(
    index: &KeyIndex,
    rows: &dyn RowsScan,
    floor: Revision,
    from: Revision,
    to: Revision,
    max_records: usize,
) -> Result<(Vec<Change>, Revision), ReadError> {
    let floor = floor.max(index.pruned());
    if from <= floor {
        return Err(ReadError::Compacted { oldest: floor.next() });
    }
    let mut changes: Vec<Change> = Vec::new();
    let mut complete = to;
    if from > to {
        return Ok((changes, complete));
    }
    let ids = RecordId { revision: from, ordinal: 0 }..=RecordId { revision: to, ordinal: u32::MAX };
    rows.records_in(ids, &mut |id, stored| {
        changes.push(change(id, decode(id, stored)?));
        let first = changes[0].id.revision;
        if changes.len() <= max_records || id.revision == first {
            return Ok(ControlFlow::Continue(()));
        }
        // The revision that burst the limit is given back whole; there is another one before it.
        changes.retain(|change| change.id.revision < id.revision);
        complete = changes.last().expect("an earlier revision was read").id.revision;
        Ok(ControlFlow::Break(()))
    })?;
    Ok((changes, complete))
}

/// The key's kept records at or below `at`, newest first, at most `max_records`.
pub(crate) fn explain(
    index: &KeyIndex,
    rows: &dyn RowsRead,
    at: Revision,
    key: &[u8],
    max_records: usize,
) -> Result<Vec<(RecordId, Record)>, ReadError> {
    let mut records = Vec::new();
    for version in index.versions(key, at, max_records) {
        let id = version.id();
        // The rows may stand before or after the index: what the sweep has taken from either is no longer kept.
        if let Some(stored) = rows.record(id)? {
            records.push((id, decode(id, stored)?));
        }
    }
    Ok(records)
}

/// What is known of one key's past, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyHistory {
    pub(crate) records: Vec<(RecordId, Record)>,
    /// Whether there are older ones that would be listed without the limits.
    pub(crate) more: bool,
    /// Nothing at or below this revision is listed, but for the put that the key showed then.
    pub(crate) floor: Revision,
}

/// The key's records at or below `at` that a reader at `floor` or above can still reach: at most `max_records`, and about
/// [`RANGE_BYTES_MAX`], but at least one.
///
/// Unlike [`explain`], the same on every node that stands at `at` with this floor, however far its sweep has come.
pub(crate) fn history(
    index: &KeyIndex,
    rows: &dyn RowsRead,
    floor: Revision,
    at: Revision,
    key: &[u8],
    max_records: usize,
) -> Result<KeyHistory, ReadError> {
    let versions = index.versions(key, at, max_records.saturating_add(1));
    // Asked after the versions: if it still is not above the floor, none was missing among them.
    let floor = floor.max(index.pruned());
    let (mut records, mut bytes) = (Vec::new(), 0);
    for version in versions {
        let shown_at_floor = version.id().revision <= floor;
        if shown_at_floor && !version.is_live() {
            break;
        }
        if records.len() == max_records || (bytes >= RANGE_BYTES_MAX && !records.is_empty()) {
            return Ok(KeyHistory { records, more: true, floor });
        }
        bytes += version.bytes() as usize;
        records.push((version.id(), record(rows, version.id())?));
        if shown_at_floor {
            break;
        }
    }
    Ok(KeyHistory { records, more: false, floor })
}

/// Reads records, and remembers the last lease: neighbouring keys often share one.
pub(super) struct Reader<'a> {
    rows: &'a dyn RowsRead,
    lease: Option<(LeaseId, Option<u64>)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(rows: &'a dyn RowsRead) -> Self {
        Reader { rows, lease: None }
    }

    pub(super) fn key_value(&mut self, version: &Version) -> Result<KeyValue, RowError> {
        let record = record(self.rows, version.id())?;
        Ok(KeyValue {
            key: record.key,
            value: record.value,
            created: record.created,
            modified: version.id().revision,
            version: record.version,
            lease: record.lease,
            ttl_ms: record.lease.map(|lease| self.ttl_ms(lease)).transpose()?.flatten(),
        })
    }

    fn ttl_ms(&mut self, lease: LeaseId) -> Result<Option<u64>, RowError> {
        if let Some((known, ttl_ms)) = self.lease
            && known == lease
        {
            return Ok(ttl_ms);
        }
        let key = rows::lease_key(lease);
        // Rows that are newer than the revision read at may have lost the lease: then nobody can tell.
        let row = self.rows.row(RowSpace::Lease, &key)?;
        let lease_row =
            row.map(rows::decode_lease).transpose().map_err(|e| RowError::unread(format_args!("lease {lease}"), &e))?;
        let ttl_ms = lease_row.map(|row| row.ttl_ms);
        self.lease = Some((lease, ttl_ms));
        Ok(ttl_ms)
    }
}

/// The record that the index says is there.
pub(super) fn record(rows: &dyn RowsRead, id: RecordId) -> Result<Record, RowError> {
    let stored =
        rows.record(id)?.ok_or_else(|| RowError::new(format!("record {id:?} is in the index but not on disk")))?;
    decode(id, stored)
}

pub(super) fn decode(id: RecordId, stored: Bytes) -> Result<Record, RowError> {
    decode_record(id, stored).map_err(|error| RowError::unread(format_args!("record {id:?}"), &error))
}

fn change(id: RecordId, record: Record) -> Change {
    Change {
        id,
        prev: record.prev,
        kind: record.kind,
        key: record.key,
        value: record.value,
        created: record.created,
        version: record.version,
        lease: record.lease,
    }
}
