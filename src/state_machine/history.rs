//! The floor of history, and what becomes of the records below it.
//!
//! A record is reachable as long as some readable revision shows it: until the revision that superseded it is at or below
//! the floor. A delete shows nothing, and is unreachable as soon as its own revision is. [`State::compact`] moves the
//! floor and takes what falls below out of the hash and the size at once, from sums kept by revision: every node does
//! so at the same entry. [`State::sweep`] removes the records themselves, whenever this node finds the time; nobody can
//! tell how far it has come.
//!
//! A superseded record can stand anywhere below the one that superseded it. Removed as they are come by, each would
//! cost the page it stands on; so a sweep first looks through what is new below the floor, then removes all it found in
//! the order in which it stands.

use std::ops::ControlFlow;

use super::index::Version;
use super::{RowError, RowSpace, Rows, RowsRead, ShortBytes, State, read};
use crate::command::{RecordId, Response};
use crate::format::rows::{SWEPT_KEY, encode_swept};
use crate::types::Revision;

/// What becomes unreachable once the floor reaches a revision.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Garbage {
    revision: Revision,
    pub(super) hash: u64,
    pub(super) bytes: u64,
}

impl Garbage {
    pub(super) fn at(revision: Revision) -> Self {
        Garbage { revision, hash: 0, bytes: 0 }
    }

    /// Adds what one write leaves: the record it supersedes, and itself if it is a delete.
    pub(super) fn add(&mut self, old: Option<&Version>, new: &Version) {
        let unreachable = old.into_iter().chain((!new.is_live()).then_some(new));
        for version in unreachable {
            self.hash = self.hash.wrapping_add(version.hash());
            self.bytes += u64::from(version.bytes());
        }
    }
}

/// A record that the sweep has come by.
struct Passed {
    id: RecordId,
    prev: Option<RecordId>,
    live: bool,
}

/// A sweep of one batch that is under way. Kept in memory only: after a crash the batch begins anew.
#[derive(Debug)]
pub(super) enum Sweeping {
    Looking(Looking),
    Pruning(Pruning),
    Removing(Removing),
}

/// Goes through the records that superseded others.
#[derive(Debug)]
pub(super) struct Looking {
    end: RecordId,
    /// What has been looked at last.
    at: RecordId,
    /// What is to be removed, in the order of what superseded it.
    found: Vec<RecordId>,
}

/// Goes through the index.
#[derive(Debug)]
pub(super) struct Pruning {
    end: RecordId,
    /// What is to be removed, ascending.
    found: Vec<RecordId>,
    /// The last key that has been gone through.
    at: Option<ShortBytes>,
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
/// fewer pages are rewritten for each.
const SWEEP_BATCH: usize = 65_536;

/// So many keys of the index make it one record more, so that going through all of them is not much for each record.
const SWEEP_KEYS_PER_RECORD: u64 = 4;

impl State {
    /// Moves the floor up, but not beyond what there is.
    pub(super) fn compact(&mut self, floor: Revision) -> Response {
        let floor = floor.min(self.meta.revision).max(self.meta.floor);
        self.meta.floor = floor;
        while let Some(garbage) = self.garbage.front().copied().filter(|garbage| garbage.revision <= floor) {
            self.garbage.pop_front();
            self.discount(&garbage);
        }
        Response::Compacted { floor }
    }

    /// Adds to the sums that wait for the floor. Revisions come in order.
    pub(super) fn keep_garbage(&mut self, garbage: Garbage) {
        if garbage.bytes == 0 {
            return;
        }
        match self.garbage.back_mut() {
            Some(last) if last.revision == garbage.revision => {
                last.hash = last.hash.wrapping_add(garbage.hash);
                last.bytes += garbage.bytes;
            }
            _ => self.garbage.push_back(garbage),
        }
    }

    /// Takes what is unreachable out of the index and the rows, at most `max_records` records (at least one) at a time: looked
    /// at, or removed. Whether there is more to do up to `up_to`.
    ///
    /// `up_to` holds it back for the sake of views that are still read: the lowest of their floors when this is called. How
    /// far it has come is a local row, written with the last removal of a batch, so that after a crash nothing is passed
    /// over; what is looked at again then may have been removed already.
    pub(crate) fn sweep(&mut self, rows: &mut dyn Rows, up_to: Revision, max_records: usize) -> Result<bool, RowError> {
        let max_records = max_records.max(1);
        let end = RecordId { revision: up_to.min(self.meta.floor), ordinal: u32::MAX };
        match self.sweeping.take() {
            None if self.swept >= end => return Ok(false),
            None => {
                // First refuse the readers, then take away: the other way round one could find a key without its past.
                self.index.refuse_below(end.revision);
                self.look(rows, Looking { end, at: self.swept, found: Vec::new() }, max_records)?;
            }
            Some(Sweeping::Looking(looking)) => self.look(rows, looking, max_records)?,
            Some(Sweeping::Pruning(pruning)) => self.prune(pruning),
            Some(Sweeping::Removing(removing)) => self.remove(rows, removing, max_records)?,
        }
        Ok(self.sweeping.is_some() || self.swept < end)
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
        self.unswept(up_to) >= self.sweep_batch() as u64
    }

    fn unswept(&self, up_to: Revision) -> u64 {
        up_to.min(self.meta.floor).get().saturating_sub(self.swept.revision.get())
    }

    fn sweep_batch(&self) -> usize {
        SWEEP_BATCH.max(usize::try_from(self.index.live() / SWEEP_KEYS_PER_RECORD).unwrap_or(usize::MAX))
    }

    /// Goes through the next records and notes what they made unreachable.
    fn look(&mut self, rows: &mut dyn Rows, mut looking: Looking, max_records: usize) -> Result<(), RowError> {
        let (passed, more) = pass(rows, looking.at, looking.end, max_records)?;
        for record in &passed {
            looking.found.extend(record.prev);
            looking.found.extend((!record.live).then_some(record.id));
        }
        if let Some(last) = passed.last().filter(|_| more) {
            looking.at = last.id;
            if looking.found.len() < self.sweep_batch() {
                self.sweeping = Some(Sweeping::Looking(looking));
                return Ok(());
            }
            looking.end = last.id;
        }
        looking.found.sort_unstable();
        let Looking { end, found, .. } = looking;
        self.sweeping = Some(Sweeping::Pruning(Pruning { end, found, at: None }));
        Ok(())
    }

    /// Forgets versions of the next keys.
    fn prune(&mut self, mut pruning: Pruning) {
        pruning.at = self.index.prune_slice(pruning.at.as_ref(), pruning.end);
        self.sweeping = Some(match pruning.at {
            Some(_) => Sweeping::Pruning(pruning),
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
        rows.put_row(RowSpace::Local, SWEPT_KEY, &encode_swept(self.swept))
    }
}

/// The next records behind `from`, and whether there are more up to `end`.
fn pass(
    rows: &dyn RowsRead,
    from: RecordId,
    end: RecordId,
    max_records: usize,
) -> Result<(Vec<Passed>, bool), RowError> {
    let mut passed = Vec::new();
    let mut more = false;
    rows.records_in(from..=end, &mut |id, stored| {
        if id == from {
            return Ok(ControlFlow::Continue(()));
        }
        if passed.len() == max_records {
            more = true;
            return Ok(ControlFlow::Break(()));
        }
        let record = read::decode(id, stored)?;
        let live = record.is_live();
        passed.push(Passed { id, prev: record.prev, live });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((passed, more))
}
