//! What the state was behind fixed entries of the log, so that members can find out whether they are still the same.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use crate::types::{Account, LogId, Milestone};

/// A milestone stands behind every entry whose index is a multiple of this.
const MILESTONE_ENTRIES: u64 = 1024;
/// Milestones that are kept. Members that are further apart than this have none in common, and compare later.
pub(crate) const MILESTONES_MAX: usize = 64;

/// Written by the state engine, read by everybody.
#[derive(Debug)]
pub(super) struct Milestones(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    since: u64,
    newest: VecDeque<Milestone>,
}

impl Milestones {
    /// For a state that somebody else has brought up to `since`.
    pub(super) fn new(since: Option<LogId>) -> Self {
        Milestones(Mutex::new(Kept { since: since.map_or(0, |since| since.index), newest: VecDeque::new() }))
    }

    /// The entry at `index` has been applied; `hash` tells what the state is now.
    pub(super) fn passed(&self, index: u64, hash: impl FnOnce() -> u64) {
        if !index.is_multiple_of(MILESTONE_ENTRIES) {
            return;
        }
        let milestone = Milestone { index, hash: hash() };
        let newest = &mut self.lock().newest;
        if newest.len() == MILESTONES_MAX {
            newest.pop_front();
        }
        newest.push_back(milestone);
    }

    /// The state is another one now, which was brought up to `since`: what was passed says nothing of it.
    pub(super) fn begin_anew(&self, since: Option<LogId>) {
        *self.lock() = Milestones::new(since).0.into_inner().expect("just made");
    }

    pub(super) fn account(&self) -> Account {
        let kept = self.lock();
        Account { since: kept.since, milestones: kept.newest.iter().copied().collect() }
    }

    /// Has the last one say something else, as a state would that has gone wrong.
    #[cfg(test)]
    pub(super) fn falsify(&self) {
        self.lock().newest.back_mut().expect("one was passed").hash ^= 1;
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("no holder of the lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LeaderId, NodeId};

    #[test]
    fn the_newest_milestones_are_kept_up_to_their_limit_and_those_of_another_state_are_not() {
        let milestones = Milestones::new(None);
        (0..=100 * MILESTONE_ENTRIES).for_each(|index| milestones.passed(index, || index + 1));
        let wanted = |n| Milestone { index: n * MILESTONE_ENTRIES, hash: n * MILESTONE_ENTRIES + 1 };
        let kept: Vec<_> = (37..=100).map(wanted).collect();
        assert_eq!(kept.len(), MILESTONES_MAX);
        assert_eq!(milestones.account(), Account { since: 0, milestones: kept });
        let since = LogId { leader: LeaderId { term: 1, node: NodeId::new(1) }, index: 200_000 };
        milestones.begin_anew(Some(since));
        assert_eq!(milestones.account(), Account { since: 200_000, milestones: vec![] });
    }
}
