//! What can wait: sweeping history, and emptying tables that nobody needs any more. A slice at a time, and none while a
//! commit is under way, which the database would have to be shared with.

use redb::Durability;

use super::{StateEngine, not_applied};
use crate::command::RecordId;
use crate::error::StorageError;
use crate::format::block::BLOCK_BYTES_MAX;
use crate::storage::committer::transact;
use crate::storage::live_rows::LiveRows;
use crate::types::Revision;

/// Records that one slice of a sweep finds at most.
pub(super) const SWEEP_RECORDS: usize = 1024;

/// Records of a block, if they are of some hundred bytes.
const BLOCK_RECORDS: u64 = 32;

impl StateEngine {
    pub(super) fn has_to_tidy(&self) -> bool {
        self.flight.is_none() && (self.sweep_is_due() || self.has_to_flush() || !self.leftovers.is_empty())
    }

    /// Does one slice of what can wait; false when there is nothing to do.
    pub(super) fn tidy(&mut self) -> bool {
        if !self.has_to_tidy() {
            return false;
        }
        if self.sweep_is_due() {
            // An error stops the node, and the next step tells everybody in the queue.
            let _ = self.guarded("sweep", StateEngine::sweep_slice);
        } else if self.has_to_flush() {
            self.launch(None);
        } else {
            let _ = self.guarded("tidy up", StateEngine::leftover_slice);
        }
        self.commit_if_due();
        true
    }

    /// Up to where a sweep can go: it removes nothing that a view needs, and nothing that is not in the database yet.
    pub(super) fn sweepable(&self) -> Revision {
        self.views.floor().min(self.recent.base())
    }

    /// Whether a sweep is under way, or has enough to do to be worth it, or anything while there is nothing else to do.
    fn sweep_is_due(&self) -> bool {
        let (state, up_to) = (&self.state, self.sweepable());
        state.is_sweeping() || state.should_sweep(up_to) || (self.quiet && state.can_sweep(up_to))
    }

    /// Whether it is a time to commit what a sweep has found, or what one could find things in.
    fn has_to_flush(&self) -> bool {
        let could_sweep = || self.held_back && self.state.can_sweep(self.views.floor());
        self.quiet && (!self.removed.is_empty() || could_sweep())
    }

    pub(super) fn sweep_slice(&mut self) -> Result<(), StorageError> {
        let up_to = self.sweepable();
        let mut rows = LiveRows::new(&self.past, None, &self.recent, &mut self.answers, 0);
        self.state.sweep(&mut rows, up_to, SWEEP_RECORDS).map_err(not_applied)?;
        let LiveRows { batch, removed, .. } = rows;
        self.recent.add(batch);
        self.held_back = true;
        self.unsynced.add(0, rewritten(&removed));
        self.removed.extend(removed);
        Ok(())
    }

    fn leftover_slice(&mut self) -> Result<(), StorageError> {
        let leftovers = &mut self.leftovers;
        let removed = transact(self.db.as_deref(), Durability::None, |txn| leftovers.remove_slice(txn))?;
        self.unsynced.add(removed as u64, 0);
        if self.leftovers.is_empty() { self.refresh() } else { Ok(()) }
    }
}

/// Bytes of the blocks that are written anew without these records, about: what stands close together shares them.
fn rewritten(removed: &[RecordId]) -> u64 {
    let (Some(first), Some(last)) = (removed.first(), removed.last()) else { return 0 };
    let revisions = last.revision.get() - first.revision.get();
    let blocks = (removed.len() as u64).min(1 + revisions / BLOCK_RECORDS);
    blocks * BLOCK_BYTES_MAX as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sweep_costs_is_counted_by_the_blocks_that_it_goes_through() {
        let every = |step: u64| -> Vec<RecordId> {
            (0..SWEEP_RECORDS as u64).map(|n| RecordId { revision: Revision::new(n * step), ordinal: 0 }).collect()
        };
        let blocks = |removed: &[RecordId]| rewritten(removed) / BLOCK_BYTES_MAX as u64;
        assert_eq!(blocks(&[]), 0);
        assert_eq!(blocks(&every(1)[..1]), 1);
        assert_eq!(blocks(&every(2)), SWEEP_RECORDS as u64 * 2 / BLOCK_RECORDS);
        assert_eq!(blocks(&every(1000)), SWEEP_RECORDS as u64);
    }
}
