//! The floor of history, and what becomes of the records below it.
//!
//! A record is reachable as long as some readable revision shows it: until the revision that superseded it is at or below
//! the floor. A delete shows nothing, and is unreachable as soon as its own revision is. [`State::compact`] moves the
//! floor and takes what falls below out of the hash and the size at once, which was noted as it was superseded: every node
//! does so at the same entry. [`State::sweep`] removes the records themselves, whenever this node finds the time; nobody can
//! tell how far it has come.
//!
//! A superseded record can stand anywhere below the one that superseded it. Removed as they become unreachable, each would
//! cost the page it stands on; so a sweep takes many at once and removes them in the order in which they stand.

use std::collections::VecDeque;

use super::index::Version;
use super::{RowError, RowSpace, Rows, State};
use crate::command::{RecordId, Response};
use crate::format::rows::{SWEPT_KEY, encode_swept};
use crate::types::Revision;

/// Records in the order in which they become unreachable.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    records: VecDeque<Unreachable>,
    /// So many of the first are unreachable by now: counted no longer, to be swept.
    below_floor: usize,
    /// Their logical size.
    bytes_below_floor: u64,
}

/// A record that no revision shows any more once the floor reaches `from`. Flat, so that it takes 32 bytes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Unreachable {
    from: Revision,
    revision: Revision,
    ordinal: u32,
    bytes: u32,
    hash: u64,
}

impl Garbage {
    /// Adds what a write at `at` leaves: the record it supersedes, and itself if it is a delete. Revisions come in order.
    pub(super) fn add(&mut self, at: Revision, old: Option<&Version>, new: &Version) {
        for version in old.into_iter().chain((!new.is_live()).then_some(new)) {
            let RecordId { revision, ordinal } = version.id();
            let (bytes, hash) = (version.bytes(), version.hash());
            self.records.push_back(Unreachable { from: at, revision, ordinal, bytes, hash });
        }
    }

    /// The next record that a floor at `floor` makes unreachable.
    fn pass(&mut self, floor: Revision) -> Option<Unreachable> {
        let next = self.records.get(self.below_floor).filter(|next| next.from <= floor)?;
        self.below_floor += 1;
        self.bytes_below_floor += u64::from(next.bytes);
        Some(*next)
    }

    /// Takes out the records that are unreachable from `end` on, ascending: as many as `max`, and the others of the last
    /// one's revision. With them the revision up to which nothing is left.
    fn take(&mut self, end: Revision, max: usize) -> (Vec<RecordId>, Revision) {
        let until = match self.records.get(max.max(1) - 1) {
            Some(last) => last.from.min(end),
            None => end,
        };
        let count = self.records.partition_point(|record| record.from <= until);
        let mut ids = Vec::with_capacity(count);
        for Unreachable { revision, ordinal, bytes, .. } in self.records.drain(..count) {
            self.bytes_below_floor -= u64::from(bytes);
            ids.push(RecordId { revision, ordinal });
        }
        self.below_floor =
            self.below_floor.checked_sub(count).expect("nothing is swept before the floor has passed it");
        ids.sort_unstable();
        (ids, until)
    }

    /// What is still reachable, and from when on it will not be.
    #[cfg(any(test, feature = "internals"))]
    pub(super) fn reachable(&self) -> Vec<(Revision, RecordId)> {
        let id = |record: &Unreachable| RecordId { revision: record.revision, ordinal: record.ordinal };
        self.records.range(self.below_floor..).map(|record| (record.from, id(record))).collect()
    }
}

/// A sweep of one batch that is under way. Kept in memory only: after a crash the batch begins anew.
#[derive(Debug)]
pub(super) enum Sweeping {
    Pruning(Pruning),
    Removing(Removing),
}

/// Goes through the index.
#[derive(Debug)]
pub(super) struct Pruning {
    end: RecordId,
    /// What is to be removed, ascending.
    found: Vec<RecordId>,
    /// The place in the index to go on from.
    next: usize,
}

/// Goes through the records that were superseded.
#[derive(Debug)]
pub(super) struct Removing {
    end: RecordId,
    /// Ascending.
    found: Vec<RecordId>,
    removed: usize,
}

/// Records that one sweep removes at the least while there is other work to do, and at the most (give or take one slice):
/// 16 bytes each, meanwhile. With many keys it is [`SWEEP_KEYS_PER_RECORD`] that counts. The more are removed at once, the
/// fewer blocks are rewritten for each.
const SWEEP_BATCH: usize = 131_072;

/// So many keys of the index make it one record more, so that going through all of them is not much for each record.
const SWEEP_KEYS_PER_RECORD: u64 = 4;

/// Logical bytes of unreachable records that are worth a sweep however few there are, unless the reachable ones are
/// [`SWEEP_BYTES_PER_BYTE`] as many.
const SWEEP_BYTES: u64 = 64 << 20;

/// So many reachable bytes make it one byte more.
const SWEEP_BYTES_PER_BYTE: u64 = 4;

impl State {
    /// Moves the floor up, but not beyond what there is.
    pub(super) fn compact(&mut self, floor: Revision) -> Response {
        let floor = floor.min(self.meta.revision).max(self.meta.floor);
        self.meta.floor = floor;
        self.discount_garbage();
        Response::Compacted { floor }
    }

    /// Takes what the floor has made unreachable out of the hash and the size.
    pub(super) fn discount_garbage(&mut self) {
        while let Some(Unreachable { hash, bytes, .. }) = self.garbage.pass(self.meta.floor) {
            self.discount_record(hash, bytes);
        }
    }

    /// Takes what is unreachable out of the index and the rows, at most `max_records` records (at least one) at a time.
    /// Whether there is more to do up to `up_to`.
    ///
    /// `up_to` holds it back for the sake of views that are still read: the lowest of their floors when this is called. How
    /// far it has come is a local row, written with the last removal of a batch. After a crash, what is left to remove is found
    /// as the state is loaded.
    pub(crate) fn sweep(&mut self, rows: &mut dyn Rows, up_to: Revision, max_records: usize) -> Result<bool, RowError> {
        match self.sweeping.take() {
            None if !self.can_sweep(up_to) => return Ok(false),
            None => {
                let (found, until) = self.garbage.take(up_to.min(self.meta.floor), self.sweep_batch());
                let end = RecordId { revision: until, ordinal: u32::MAX };
                // First refuse the readers, then take away: the other way round one could find a key without its past.
                self.index.refuse_below(until);
                self.sweeping = Some(Sweeping::Pruning(Pruning { end, found, next: 0 }));
            }
            Some(Sweeping::Pruning(pruning)) => self.prune(pruning),
            Some(Sweeping::Removing(removing)) => self.remove(rows, removing, max_records.max(1))?,
        }
        Ok(self.sweeping.is_some() || self.can_sweep(up_to))
    }

    /// Whether a sweep is under way.
    pub(crate) fn is_sweeping(&self) -> bool {
        self.sweeping.is_some()
    }

    /// Whether there is anything to sweep up to `up_to`.
    pub(crate) fn can_sweep(&self, up_to: Revision) -> bool {
        self.unswept(up_to) > 0
    }

    /// Whether there is so much to sweep up to `up_to` that it should not wait for a quiet time.
    pub(crate) fn should_sweep(&self, up_to: Revision) -> bool {
        let count = self.unswept(up_to);
        let bytes_worth_it = SWEEP_BYTES.max(self.bytes / SWEEP_BYTES_PER_BYTE);
        count >= self.sweep_batch() as u64 || (count > 0 && self.garbage.bytes_below_floor >= bytes_worth_it)
    }

    fn unswept(&self, up_to: Revision) -> u64 {
        up_to.min(self.meta.floor).get().saturating_sub(self.swept.revision.get())
    }

    fn sweep_batch(&self) -> usize {
        SWEEP_BATCH.max(usize::try_from(self.index.live() / SWEEP_KEYS_PER_RECORD).unwrap_or(usize::MAX))
    }

    /// Forgets versions of the next keys.
    fn prune(&mut self, pruning: Pruning) {
        self.sweeping = Some(match self.index.prune_slice(pruning.next, pruning.end) {
            Some(next) => Sweeping::Pruning(Pruning { next, ..pruning }),
            None => Sweeping::Removing(Removing { end: pruning.end, found: pruning.found, removed: 0 }),
        });
    }

    /// Removes the next of what was found. In ascending order, so that of each key what is left stands in one row.
    fn remove(&mut self, rows: &mut dyn Rows, mut removing: Removing, max_records: usize) -> Result<(), RowError> {
        let rest = &removing.found[removing.removed..];
        let slice = &rest[..rest.len().min(max_records)];
        rows.remove_records(slice)?;
        removing.removed += slice.len();
        if removing.removed < removing.found.len() {
            self.sweeping = Some(Sweeping::Removing(removing));
            return Ok(());
        }
        self.swept = removing.end;
        rows.put_row(RowSpace::Local, SWEPT_KEY, encode_swept(self.swept).as_ref().into())
    }
}
