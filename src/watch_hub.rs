//! Bounded fan-out of committed changes to the watchers of this node.
//!
//! The hub keeps the newest changes in memory, once, whoever watches. A watcher is a place in that history: it holds no queue
//! of its own, so a slow one costs nothing. It is woken only when a key of its range changes; one that falls behind what the
//! hub keeps is told so and reads the rest from the store's own history.
//!
//! Promises to its caller: revisions are handed out in order and whole; a revision is there before any reader or writer can
//! learn of it (the node publishes before it answers); nothing is dropped without [`Next::Behind`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::command::{Change, KeyRange};
use crate::types::Revision;

/// Most revisions kept.
const KEPT_REVISIONS_MAX: usize = 8192;
/// Most bytes of keys and values kept.
const KEPT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// All changes of one revision, in order.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) revision: Revision,
    pub(crate) changes: Vec<Change>,
}

impl Batch {
    fn bytes(&self) -> usize {
        self.changes.iter().map(|change| change.key.len() + change.value.len() + 64).sum()
    }
}

/// What a watcher finds from its place on.
#[derive(Debug)]
pub(crate) enum Next {
    /// Revisions with changes of its range, oldest first, and how far it has seen everything then.
    Batches(Vec<Arc<Batch>>, Revision),
    /// Its place is older than what the hub keeps.
    Behind,
    /// The node has stopped.
    Closed,
}

#[derive(Clone)]
pub(crate) struct WatchHub {
    hub: Arc<Mutex<Hub>>,
}

struct Hub {
    /// Everything up to here has been published.
    revision: Revision,
    /// Everything after this is in `kept`.
    kept_after: Revision,
    kept: VecDeque<Arc<Batch>>,
    kept_bytes: usize,
    next_id: u64,
    watchers: BTreeMap<u64, Watcher>,
    /// Watchers of one key, found without asking all the others.
    by_key: BTreeMap<Bytes, Vec<u64>>,
    /// Watchers of ranges.
    by_range: BTreeMap<u64, KeyRange>,
    closed: bool,
}

struct Watcher {
    /// Something of its range has changed since it last looked, ...
    stirred: bool,
    /// ... but nothing up to here that it has not seen. So a watcher of a quiet range never falls behind.
    clear: Revision,
    waker: Option<Waker>,
}

impl Watcher {
    fn stir(&mut self, clear: Revision) {
        if !self.stirred {
            (self.stirred, self.clear) = (true, clear);
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Stirs it without a claim on what it has seen.
    fn unsettle(&mut self) {
        self.stir(Revision::ZERO);
        self.clear = Revision::ZERO;
    }
}

impl WatchHub {
    /// A hub that has published everything up to `revision`.
    pub(crate) fn new(revision: Revision) -> Self {
        let hub = Hub {
            revision,
            kept_after: revision,
            kept: VecDeque::new(),
            kept_bytes: 0,
            next_id: 0,
            watchers: BTreeMap::new(),
            by_key: BTreeMap::new(),
            by_range: BTreeMap::new(),
            closed: false,
        };
        WatchHub { hub: Arc::new(Mutex::new(hub)) }
    }

    /// Adds revisions, oldest first; each slice is one revision's changes, empty ones are skipped.
    pub(crate) fn publish<'a>(&self, revisions: impl Iterator<Item = &'a [Change]>) {
        let mut hub = self.lock();
        for changes in revisions {
            if let Some(first) = changes.first() {
                hub.publish(Batch { revision: first.id.revision, changes: changes.to_vec() });
            }
        }
    }

    /// Says that the state is now that of `revision`, by way of a snapshot whose single changes nobody saw. Who has seen
    /// less is behind.
    pub(crate) fn jump(&self, revision: Revision) {
        let mut hub = self.lock();
        if revision <= hub.revision {
            return;
        }
        (hub.revision, hub.kept_after) = (revision, revision);
        hub.kept.clear();
        hub.kept_bytes = 0;
        hub.watchers.values_mut().for_each(Watcher::unsettle);
    }

    /// Ends every watch.
    pub(crate) fn close(&self) {
        let mut hub = self.lock();
        hub.closed = true;
        hub.watchers.values_mut().for_each(Watcher::unsettle);
    }

    /// Everything up to this revision has been published.
    pub(crate) fn revision(&self) -> Revision {
        self.lock().revision
    }

    /// Starts to watch. The first look always finds something to do.
    pub(crate) fn subscribe(&self, keys: KeyRange) -> Subscription {
        let mut hub = self.lock();
        let id = hub.next_id;
        hub.next_id += 1;
        hub.watchers.insert(id, Watcher { stirred: true, clear: Revision::ZERO, waker: None });
        match keys.as_single() {
            Some(key) => hub.by_key.entry(key.clone()).or_default().push(id),
            None => drop(hub.by_range.insert(id, keys.clone())),
        }
        drop(hub);
        Subscription { hub: self.clone(), id, keys }
    }

    fn lock(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().expect("no panic while held")
    }
}

impl Hub {
    fn publish(&mut self, batch: Batch) {
        assert!(batch.revision > self.revision, "revision {} published after {}", batch.revision, self.revision);
        let clear = std::mem::replace(&mut self.revision, batch.revision);
        for change in &batch.changes {
            for id in self.by_key.get(&change.key).into_iter().flatten() {
                self.watchers.get_mut(id).expect("a listed watcher exists").stir(clear);
            }
            for (id, keys) in &self.by_range {
                if keys.contains(&change.key) {
                    self.watchers.get_mut(id).expect("a listed watcher exists").stir(clear);
                }
            }
        }
        self.kept_bytes += batch.bytes();
        self.kept.push_back(Arc::new(batch));
        while self.kept.len() > KEPT_REVISIONS_MAX || self.kept_bytes > KEPT_BYTES_MAX {
            let oldest = self.kept.pop_front().expect("over a limit, so not empty");
            self.kept_bytes -= oldest.bytes();
            self.kept_after = oldest.revision;
        }
    }
}

/// One watcher's registration; dropping it ends the watch.
pub(crate) struct Subscription {
    hub: WatchHub,
    id: u64,
    keys: KeyRange,
}

impl Subscription {
    /// What has changed in the watched range after `seen`, at most `max` revisions of it; pending if nothing has.
    pub(crate) fn poll_next(&self, seen: Revision, max: usize, cx: &mut Context<'_>) -> Poll<Next> {
        let mut hub = self.hub.lock();
        if hub.closed {
            return Poll::Ready(Next::Closed);
        }
        let watcher = hub.watchers.get_mut(&self.id).expect("registered until dropped");
        if !watcher.stirred {
            watcher.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let seen = seen.max(watcher.clear);
        if seen < hub.kept_after {
            return Poll::Ready(Next::Behind);
        }
        let from = hub.kept.partition_point(|batch| batch.revision <= seen);
        let mine = |batch: &&Arc<Batch>| batch.changes.iter().any(|change| self.keys.contains(&change.key));
        let found: Vec<_> = hub.kept.range(from..).filter(mine).take(max).cloned().collect();
        // With `max` of them there may be more: it stays stirred and goes on behind the last.
        let more = found.len() == max;
        let seen = found.last().filter(|_| more).map_or(hub.revision, |last| last.revision);
        let watcher = hub.watchers.get_mut(&self.id).expect("registered until dropped");
        (watcher.stirred, watcher.clear) = (more, seen);
        if found.is_empty() {
            watcher.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Next::Batches(found, seen))
    }

    /// Waits for [`Subscription::poll_next`].
    ///
    /// # Cancel safety
    /// Nothing is lost: the place is the caller's own.
    pub(crate) async fn next(&self, seen: Revision, max: usize) -> Next {
        std::future::poll_fn(|cx| self.poll_next(seen, max, cx)).await
    }

    /// Makes the next look find what is there, as after a stretch read elsewhere.
    pub(crate) fn look_again(&self) {
        self.hub.lock().watchers.get_mut(&self.id).expect("registered until dropped").unsettle();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut hub = self.hub.lock();
        hub.watchers.remove(&self.id);
        match self.keys.as_single() {
            None => drop(hub.by_range.remove(&self.id)),
            Some(key) => {
                let ids = hub.by_key.get_mut(key).expect("listed until dropped");
                ids.retain(|id| *id != self.id);
                if ids.is_empty() {
                    hub.by_key.remove(key);
                }
            }
        }
    }
}
