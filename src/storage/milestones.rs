//! What the state was behind fixed entries of the log, so that members can find out whether they are still the same.

use std::collections::VecDeque;
use std::sync::Mutex;

use crate::types::Milestone;

/// A milestone stands behind every entry whose index is a multiple of this.
const MILESTONE_ENTRIES: u64 = 1024;
/// Milestones that are kept. Members that are further apart than this have none in common, and compare later.
pub(crate) const MILESTONES_MAX: usize = 64;

/// Written by the state engine, read by everybody.
#[derive(Debug, Default)]
pub(super) struct Milestones(Mutex<VecDeque<Milestone>>);

impl Milestones {
    /// The entry at `index` has been applied; `hash` tells what the state is now.
    pub(super) fn passed(&self, index: u64, hash: impl FnOnce() -> u64) {
        if !index.is_multiple_of(MILESTONE_ENTRIES) {
            return;
        }
        let milestone = Milestone { index, hash: hash() };
        let mut kept = self.0.lock().expect("no holder of the lock panics");
        if kept.len() == MILESTONES_MAX {
            kept.pop_front();
        }
        kept.push_back(milestone);
    }

    /// The state is another one now: what stands behind says nothing of it.
    pub(super) fn clear(&self) {
        self.0.lock().expect("no holder of the lock panics").clear();
    }

    /// Those that are kept, oldest first.
    pub(super) fn kept(&self) -> Vec<Milestone> {
        self.0.lock().expect("no holder of the lock panics").iter().copied().collect()
    }

    /// Has the last one say something else, as a state would that has gone wrong.
    #[cfg(test)]
    pub(super) fn falsify(&self) {
        let mut kept = self.0.lock().expect("no holder of the lock panics");
        kept.back_mut().expect("one was passed").hash ^= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_milestones_are_kept_up_to_their_limit() {
        let milestones = Milestones::default();
        (0..=100 * MILESTONE_ENTRIES).for_each(|index| milestones.passed(index, || index + 1));
        let wanted = |n| Milestone { index: n * MILESTONE_ENTRIES, hash: n * MILESTONE_ENTRIES + 1 };
        let kept: Vec<_> = (37..=100).map(wanted).collect();
        assert_eq!((milestones.kept(), kept.len()), (kept, MILESTONES_MAX));
        milestones.clear();
        assert_eq!(milestones.kept(), []);
    }
}
