//! What has been applied and is not in the database yet.
//!
//! Only what is durable outlives a crash, so until the next durable commit the database is no better a place than memory,
//! and a dearer one: a transaction for each batch costs more than applying it does. So a batch goes to a [`Recent`], which
//! views read before the database; the next durable commit writes all of it, in the order of the records, and the next
//! batch begins another one. A view keeps the one it was made with.
//!
//! Bounded by what may be applied between two durable commits; a view that is held holds that much memory at most.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::command::RecordId;
use crate::state_machine::{EachRecord, RowError, RowSpace, ShortBytes};
use crate::types::Revision;

/// Records that a reader copies before it lets the writer in.
const SLICE_RECORDS_MAX: usize = 128;

/// A row's space and key.
type RowKey = (RowSpace, ShortBytes);

/// What one batch writes, before any view shows it.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// One record behind the other, ascending.
    bytes: Vec<u8>,
    /// Each record's id, and where it ends.
    records: Vec<(RecordId, usize)>,
    /// `None` for a row that is removed.
    rows: BTreeMap<RowKey, Option<Bytes>>,
}

impl Batch {
    /// With room for records of `bytes` in all.
    pub(crate) fn with_room(bytes: usize) -> Self {
        Batch { bytes: Vec::with_capacity(bytes), ..Batch::default() }
    }

    pub(crate) fn put_record(&mut self, id: RecordId, record: &[u8]) {
        debug_assert!(self.records.last().is_none_or(|(last, _)| *last < id), "record {id:?} is not the newest");
        self.bytes.extend_from_slice(record);
        self.records.push((id, self.bytes.len()));
    }

    pub(crate) fn put_row(&mut self, space: RowSpace, key: &[u8], row: Option<Bytes>) {
        self.rows.insert((space, key.into()), row);
    }

    pub(crate) fn record(&self, id: RecordId) -> Option<&[u8]> {
        // Most are asked for what came before them.
        if self.records.first().is_none_or(|(first, _)| *first > id) {
            return None;
        }
        let at = self.records.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let start = at.checked_sub(1).map_or(0, |before| self.records[before].1);
        Some(&self.bytes[start..self.records[at].1])
    }

    /// The row if it was put or, inside, `None` if it was removed.
    pub(crate) fn row(&self, space: RowSpace, key: &[u8]) -> Option<Option<&Bytes>> {
        if self.rows.is_empty() {
            return None;
        }
        self.rows.get(&(space, key.into())).map(Option::as_ref)
    }

    /// Bytes of its records.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// The batches since the last durable commit. The state thread alone adds to it.
#[derive(Debug)]
pub(crate) struct Recent {
    /// Its records are of later revisions, those of the database are not.
    base: Revision,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    batches: u64,
    bytes: Vec<Vec<u8>>,
    /// Ascending.
    records: Vec<Place>,
    rows: BTreeMap<RowKey, Changes>,
}

/// What became of a row, with the number of the batch that did it, ascending.
type Changes = SmallVec<[(u64, Option<Bytes>); 1]>;

/// Where a record is.
#[derive(Copy, Clone, Debug)]
struct Place {
    id: RecordId,
    buffer: u32,
    start: u32,
    end: u32,
}

impl Recent {
    /// What comes behind a database that holds all records up to `base`.
    pub(crate) fn new(base: Revision) -> Self {
        Recent { base, inner: RwLock::default() }
    }

    pub(crate) fn base(&self) -> Revision {
        self.base
    }

    /// Adds a batch, whose records are above those that are here.
    ///
    /// # Panics
    /// If the batch is of 4 GiB.
    pub(crate) fn add(&self, batch: Batch) {
        let mut inner = self.write();
        inner.batches += 1;
        let number = inner.batches;
        if !batch.records.is_empty() {
            let place = |at: usize| u32::try_from(at).expect("a batch is shorter than 4 GiB");
            let buffer = place(inner.bytes.len());
            let mut start = 0;
            inner.records.extend(batch.records.iter().map(|(id, end)| {
                let from = std::mem::replace(&mut start, place(*end));
                Place { id: *id, buffer, start: from, end: start }
            }));
            inner.bytes.push(batch.bytes);
        }
        for (key, row) in batch.rows {
            inner.rows.entry(key).or_default().push((number, row));
        }
    }

    /// The number of the last batch.
    pub(crate) fn now(&self) -> u64 {
        self.read().batches
    }

    pub(crate) fn record(&self, id: RecordId) -> Option<Bytes> {
        let inner = self.read();
        let at = inner.records.binary_search_by_key(&id, |place| place.id).ok()?;
        Some(Bytes::copy_from_slice(inner.record(at)))
    }

    /// Calls `each` with the records of `ids`, in ascending order, until it breaks off.
    pub(crate) fn records_in(&self, ids: RangeInclusive<RecordId>, each: &mut EachRecord<'_>) -> Result<(), RowError> {
        let mut next = self.read().records.partition_point(|place| place.id < *ids.start());
        loop {
            let slice: Vec<(RecordId, Bytes)> = {
                let inner = self.read();
                let end = inner.records.len().min(next + SLICE_RECORDS_MAX);
                let places = (next..end).take_while(|at| inner.records[*at].id <= *ids.end());
                places.map(|at| (inner.records[at].id, Bytes::copy_from_slice(inner.record(at)))).collect()
            };
            if slice.is_empty() {
                return Ok(());
            }
            next += slice.len();
            for (id, record) in slice {
                if let ControlFlow::Break(()) = each(id, record)? {
                    return Ok(());
                }
            }
        }
    }

    /// What the batches up to number `at` made of the row: inside, `None` if it was removed.
    pub(crate) fn row(&self, space: RowSpace, key: &[u8], at: u64) -> Option<Option<Bytes>> {
        let inner = self.read();
        if inner.rows.is_empty() {
            return None;
        }
        inner.rows.get(&(space, key.into())).and_then(|row| as_of(row, at)).cloned()
    }

    /// What the batches up to number `at` made of the rows of `space`, by key.
    pub(crate) fn rows(&self, space: RowSpace, at: u64) -> Vec<(ShortBytes, Option<Bytes>)> {
        let inner = self.read();
        let from = (space, ShortBytes::from(&[][..]));
        let of_space = inner.rows.range(from..).take_while(|((of, _), _)| *of == space);
        of_space.filter_map(|((_, key), row)| Some((key.clone(), as_of(row, at)?.clone()))).collect()
    }

    /// Calls `each` with every record, in ascending order. For the state thread: who adds meanwhile waits.
    pub(crate) fn each_record(
        &self,
        mut each: impl FnMut(RecordId, &[u8]) -> Result<(), RowError>,
    ) -> Result<(), RowError> {
        let inner = self.read();
        inner.records.iter().enumerate().try_for_each(|(at, place)| each(place.id, inner.record(at)))
    }

    /// Calls `each` with what became of every row that was put or removed. For the state thread, as above.
    pub(crate) fn each_row(
        &self,
        mut each: impl FnMut(RowSpace, &[u8], Option<&Bytes>) -> Result<(), RowError>,
    ) -> Result<(), RowError> {
        let inner = self.read();
        inner.rows.iter().try_for_each(|((space, key), changes)| {
            let (_, last) = changes.last().expect("a row is listed with its first change");
            each(*space, key.as_slice(), last.as_ref())
        })
    }

    // Whoever panicked with the lock has stopped the node; a reader of an older view is better served than killed.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn record(&self, at: usize) -> &[u8] {
        let Place { buffer, start, end, .. } = self.records[at];
        &self.bytes[buffer as usize][start as usize..end as usize]
    }
}

fn as_of(changes: &[(u64, Option<Bytes>)], at: u64) -> Option<&Option<Bytes>> {
    changes.iter().rev().find(|(number, _)| *number <= at).map(|(_, row)| row)
}

#[cfg(test)]
mod tests;
