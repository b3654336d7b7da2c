//! What has changed between two snapshots of a mirror, and why what is gone is gone.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use super::snapshot::{Item, Mirrored};
use crate::api::kv::Entry;
use crate::api::watch::Cause;
use crate::error::Error;
use crate::types::Revision;

/// Most deletions whose cause a mirror remembers for handles that have not seen them yet.
const CAUSES_MAX: usize = 8192;

/// What has changed since a handle on a mirror last looked: the way from the one snapshot to the other.
///
/// However much has happened in between, there is at most one change for each key, in key order, and none for a key that is
/// as it was (a key that came and went). A key that was deleted and written again is a change whose entry has version 1 again.
pub struct Delta<V, K = String> {
    changes: Vec<Change<V, K>>,
    after: Arc<Mirrored<V, K>>,
}

impl<V, K> Delta<V, K> {
    /// The way from `before` to `after`.
    pub(super) fn between(before: &Mirrored<V, K>, after: &Arc<Mirrored<V, K>>, causes: &Mutex<Causes>) -> Self {
        let mut changes = Vec::new();
        before.items.diff(&after.items, |old, new| {
            // Keys that are no `K` are in none: see `Mirrored::errors`.
            let Some(item) = old.or(new).filter(|item| item.key().is_some()) else { return };
            // Locked for one search at a time: whoever applies a batch wants to write there.
            let gone = || locked(causes).find(item.stored(), before.revision, after.revision);
            let cause = if new.is_none() { gone() } else { None };
            changes.push(Change { before: old.cloned(), after: new.cloned(), cause });
        });
        Delta { changes, after: after.clone() }
    }

    /// The changes, in key order.
    pub fn iter(&self) -> std::slice::Iter<'_, Change<V, K>> {
        self.changes.iter()
    }

    /// How many keys have changed.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether nothing has changed. Never so in what [`Mirror::changed`](crate::Mirror::changed) returns.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The state that the changes lead to.
    pub fn snapshot(&self) -> &Arc<Mirrored<V, K>> {
        &self.after
    }
}

impl<V, K> IntoIterator for Delta<V, K> {
    type Item = Change<V, K>;
    type IntoIter = std::vec::IntoIter<Change<V, K>>;

    fn into_iter(self) -> Self::IntoIter {
        self.changes.into_iter()
    }
}

impl<'a, V, K> IntoIterator for &'a Delta<V, K> {
    type Item = &'a Change<V, K>;
    type IntoIter = std::slice::Iter<'a, Change<V, K>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<V: fmt::Debug, K: fmt::Debug> fmt::Debug for Delta<V, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delta").field("changes", &self.changes).field("revision", &self.after.revision).finish()
    }
}

/// What has become of one key. Part of a [`Delta`].
pub struct Change<V, K = String> {
    /// At least one of the two is there, with a key that could be read.
    before: Option<Arc<Item<V, K>>>,
    after: Option<Arc<Item<V, K>>>,
    cause: Option<Cause>,
}

impl<V, K> Change<V, K> {
    /// The key.
    pub fn key(&self) -> &K {
        let item = self.after.as_ref().or(self.before.as_ref());
        item.and_then(|item| item.key()).expect("a change is made of an item with a key")
    }

    /// What the key holds now; `None` if it was deleted, or if its value cannot be read ([`Change::error`]).
    pub fn entry(&self) -> Option<&Arc<Entry<V>>> {
        Some(self.after.as_ref()?.readable()?.1)
    }

    /// What it held before; `None` if it was not there, or could not be read.
    pub fn before(&self) -> Option<&Arc<Entry<V>>> {
        Some(self.before.as_ref()?.readable()?.1)
    }

    /// Why the value that is there now cannot be read ([`Error::Codec`]).
    pub fn error(&self) -> Option<&Error> {
        self.after.as_ref()?.error()
    }

    /// Whether the key is gone.
    pub fn is_delete(&self) -> bool {
        self.after.is_none()
    }

    /// Why it is gone. `None` if it is not, and if nobody here saw it go: this node was sent the state without the changes
    /// that led to it, the mirror fell behind by more than the node keeps in memory, or this handle by more than 8192
    /// deletions.
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }
}

impl<V, K> Clone for Change<V, K> {
    fn clone(&self) -> Self {
        Change { before: self.before.clone(), after: self.after.clone(), cause: self.cause }
    }
}

impl<V: fmt::Debug, K: fmt::Debug> fmt::Debug for Change<V, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut change = f.debug_struct("Change");
        change.field("key", self.key()).field("entry", &self.entry()).field("before", &self.before());
        change.field("cause", &self.cause).field("error", &self.error()).finish()
    }
}

/// Why keys were deleted, for as long as a handle may ask: the newest [`CAUSES_MAX`] deletions.
#[derive(Default)]
pub(super) struct Causes {
    /// `None`: found to be gone, at this revision.
    by_key: BTreeMap<(Arc<[u8]>, Revision), Option<Cause>>,
    in_order: VecDeque<(Arc<[u8]>, Revision)>,
}

impl Causes {
    pub(super) fn add(&mut self, stored: Arc<[u8]>, revision: Revision, cause: Option<Cause>) {
        let place = (stored, revision);
        self.by_key.insert(place.clone(), cause);
        self.in_order.push_back(place);
        if self.in_order.len() > CAUSES_MAX {
            let oldest = self.in_order.pop_front().expect("over a limit, so not empty");
            self.by_key.remove(&oldest);
        }
    }

    /// The cause of the last deletion behind `after` and up to `until`.
    fn find(&self, stored: &Arc<[u8]>, after: Revision, until: Revision) -> Option<Cause> {
        let (from, to) = ((stored.clone(), after.next()), (stored.clone(), until));
        // Not so if the store was restored to an older state; then nothing is known.
        if from > to {
            return None;
        }
        *self.by_key.range(from..=to).next_back()?.1
    }
}

pub(super) fn locked(causes: &Mutex<Causes>) -> MutexGuard<'_, Causes> {
    causes.lock().expect("no panic while held")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &[u8]) -> Arc<[u8]> {
        key.into()
    }

    #[test]
    fn the_cause_found_is_that_of_the_last_deletion_between_the_two_states() {
        let mut causes = Causes::default();
        let at = Revision::new;
        causes.add(key(b"k"), at(5), Some(Cause::Deleted));
        causes.add(key(b"k"), at(8), Some(Cause::Expired));
        causes.add(key(b"k"), at(12), None);
        causes.add(key(b"l"), at(7), Some(Cause::Deleted));
        let find = |from, to| causes.find(&key(b"k"), at(from), at(to));
        assert_eq!(find(4, 5), Some(Cause::Deleted));
        assert_eq!(find(4, 7), Some(Cause::Deleted));
        assert_eq!(find(0, 8), Some(Cause::Expired));
        assert_eq!(find(5, 11), Some(Cause::Expired));
        assert_eq!(find(8, 11), None, "both lie outside");
        assert_eq!(find(0, 12), None, "nobody saw the last one");
        assert_eq!(find(20, 12), None);
    }

    #[test]
    fn only_so_many_causes_are_remembered_and_the_oldest_go_first() {
        let mut causes = Causes::default();
        let add = |causes: &mut Causes, n: usize| {
            causes.add(key(&n.to_be_bytes()), Revision::new(n as u64), Some(Cause::Deleted));
        };
        (1..=CAUSES_MAX + 10).for_each(|n| add(&mut causes, n));
        assert_eq!((causes.by_key.len(), causes.in_order.len()), (CAUSES_MAX, CAUSES_MAX));
        let find = |n: usize| causes.find(&key(&n.to_be_bytes()), Revision::ZERO, Revision::new(u64::MAX));
        assert_eq!((find(10), find(11)), (None, Some(Cause::Deleted)));
    }
}
