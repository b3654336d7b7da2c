//! The floor of history, and what becomes of the records below it.
//!
//! A record is reachable as long as some readable revision shows it: until the revision that superseded it is at or below
//! the floor. A delete shows nothing, and is unreachable as soon as its own revision is. [`State::compact`] moves the
//! floor and takes what falls below out of the hash and the size at once, from sums kept by revision: every node does
//! so at the same entry. [`State::sweep`] removes the records themselves, whenever this node finds the time; nobody can
//! tell how far it has come.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::index::Version;
use super::{RowError, RowSpace, Rows, State, read};
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
    key: Bytes,
    prev: Option<RecordId>,
    live: bool,
}

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

    /// Removes what is unreachable from the rows and the index, passing at most `max_records` records (at least one).
    /// Whether there is more to do up to `up_to`.
    ///
    /// `up_to` holds it back for the sake of views that are still read: the lowest of their floors. The place it has
    /// come to is a local row, written with the removals, so that after a crash nothing is passed over.
    pub(crate) fn sweep(&mut self, rows: &mut dyn Rows, up_to: Revision, max_records: usize) -> Result<bool, RowError> {
        let end = RecordId { revision: up_to.min(self.meta.floor), ordinal: u32::MAX };
        if self.swept >= end {
            return Ok(false);
        }
        // First refuse the readers, then take away: the other way round one could find a key without its past.
        self.index.refuse_below(end.revision);
        let (passed, more) = self.pass(rows, end, max_records.max(1))?;
        for record in &passed {
            if let Some(prev) = record.prev {
                rows.remove_record(prev)?;
            }
            if !record.live {
                rows.remove_record(record.id)?;
            }
        }
        self.index.prune(passed.iter().map(|record| (record.key.as_ref(), record.id)));
        self.swept = match passed.last() {
            Some(last) if more => last.id,
            _ => end,
        };
        rows.put_row(RowSpace::Local, SWEPT_KEY, &encode_swept(self.swept))?;
        Ok(more)
    }

    /// The next records to pass, and whether there are more up to `end`.
    fn pass(&self, rows: &dyn Rows, end: RecordId, max_records: usize) -> Result<(Vec<Passed>, bool), RowError> {
        let mut passed = Vec::new();
        let mut more = false;
        rows.records_in(self.swept..=end, &mut |id, stored| {
            if id == self.swept {
                return Ok(ControlFlow::Continue(()));
            }
            if passed.len() == max_records {
                more = true;
                return Ok(ControlFlow::Break(()));
            }
            let record = read::decode(id, stored)?;
            let live = record.is_live();
            passed.push(Passed { id, key: record.key, prev: record.prev, live });
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((passed, more))
    }
}
