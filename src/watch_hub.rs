//! Bounded fan-out of committed changes to the watchers of this node.
//!
//! While anybody watches, the hub keeps the newest changes in memory, once, whoever watches. A watcher is a place in that
//! history: it has no queue of its own, so a slow one costs nothing. It is woken only when a key of its range changes; one
//! that falls behind what the hub keeps is told so, and reads the rest from the store's own history.
//!
//! Promises to whoever watches:
//! * Revisions are handed out in order, whole, and once.
//! * Nothing is passed over without [`Next::Behind`].
//! * A revision is here before any caller can learn of it (the node publishes before it answers), and not before the
//!   state shows it: a view taken after a look shows everything that the look found.
//!
//! Left to others: what the changes mean, values of the past, and what to do when behind.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::command::{Change, Few, KeyRange};
use crate::rt::mutant;
use crate::types::Revision;

/// Most bytes of keys and values kept; the newest revision is kept whatever its size.
const KEPT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Most revisions that one look hands out.
const FOUND_REVISIONS_MAX: usize = 64;
/// Bytes of keys and values after which a look hands out no further revision: what one watcher can hold on to beyond
/// what the hub keeps.
const FOUND_BYTES_MAX: usize = 1024 * 1024;
/// Most revisions that one look goes through, since it holds up whoever publishes.
const PASSED_REVISIONS_MAX: usize = 1024;

/// All changes of one revision, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) revision: Revision,
    pub(crate) changes: Few<Change>,
}

impl Batch {
    fn bytes(&self) -> usize {
        self.changes.iter().map(|change| change.key.len() + change.value.len() + size_of::<Change>()).sum()
    }
}

/// What a watcher finds from its place on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Revisions with changes of its range, oldest first, and the place behind them: there is nothing else up to there.
    /// May be empty; look again then.
    Batches(Vec<Arc<Batch>>, Revision),
    /// The hub no longer has what follows this place, up to which the watcher has seen everything.
    Behind(Revision),
    /// The node has stopped, for this reason.
    Closed(String),
}

/// A cheap handle; clones are the same hub.
#[derive(Clone)]
pub(crate) struct WatchHub {
    hub: Arc<Mutex<Hub>>,
}

impl WatchHub {
    /// A hub that has published everything up to `revision`, and keeps `kept_revisions` at most (at least one).
    pub(crate) fn new(revision: Revision, kept_revisions: usize) -> Self {
        let hub = Hub {
            revision,
            kept_after: revision,
            kept: VecDeque::new(),
            kept_bytes: 0,
            kept_revisions: kept_revisions.max(1),
            next_id: 0,
            watchers: BTreeMap::new(),
            interest: Interest::default(),
            closed: None,
        };
        WatchHub { hub: Arc::new(Mutex::new(hub)) }
    }

    /// Adds revisions, oldest first; each item is one revision's changes, empty ones are skipped.
    ///
    /// Revisions at or below what a [`WatchHub::jump`] has passed are ignored: the state showed them before their turn
    /// came to be published, and whoever watches has been told so.
    pub(crate) fn publish(&self, revisions: impl Iterator<Item = Few<Change>>) {
        let batch = |changes: Few<Change>| Some(Batch { revision: changes.first()?.id.revision, changes });
        let batches: Vec<Batch> = revisions.filter_map(batch).collect();
        let mut wakers = Vec::new();
        let mut hub = self.lock();
        for batch in batches {
            hub.publish(batch, &mut wakers);
        }
        drop(hub);
        wake(wakers);
    }

    /// Says that the state is now that of `revision`, by way of a snapshot whose single changes nobody saw. Who has
    /// seen less is behind.
    pub(crate) fn jump(&self, revision: Revision) {
        let mut wakers = Vec::new();
        self.lock().jump(revision, &mut wakers);
        wake(wakers);
    }

    /// Ends every watch. The first reason counts.
    pub(crate) fn close(&self, reason: &str) {
        let mut hub = self.lock();
        hub.closed.get_or_insert_with(|| reason.to_owned());
        let wakers = hub.watchers.values_mut().filter_map(|watcher| watcher.waker.take()).collect();
        drop(hub);
        wake(wakers);
    }

    /// Everything up to this revision has been published.
    pub(crate) fn revision(&self) -> Revision {
        self.lock().revision
    }

    /// Starts to watch. The first look goes through everything behind its place.
    pub(crate) fn subscribe(&self, keys: KeyRange) -> Subscription {
        let mut hub = self.lock();
        let id = hub.next_id;
        hub.next_id += 1;
        hub.watchers.insert(id, Watcher { stirred: true, clear: Revision::ZERO, waker: None });
        hub.interest.add(id, &keys);
        drop(hub);
        Subscription { hub: self.clone(), id, keys }
    }

    /// How many watch.
    #[cfg(test)]
    pub(crate) fn watchers(&self) -> usize {
        self.lock().watchers.len()
    }

    fn lock(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().expect("no panic while held")
    }
}

/// Outside the lock: a waker may run arbitrary code, which may drop a subscription.
fn wake(wakers: Vec<Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}

/// One watcher's registration; dropping it ends the watch.
pub(crate) struct Subscription {
    hub: WatchHub,
    id: u64,
    keys: KeyRange,
}

impl Subscription {
    /// What has changed in the watched range behind `place`; pending if nothing has.
    ///
    /// The place is the caller's own: what was handed out is not handed out again. A place that lies in the
    /// future hands out nothing at or below it.
    pub(crate) fn poll_next(&self, place: Revision, cx: &mut Context<'_>) -> Poll<Next> {
        // Cloned here, and what it replaces dropped behind the guard: both may run arbitrary code.
        let mut waker = Some(cx.waker().clone());
        let mut guard = self.hub.lock();
        let hub = &mut *guard;
        if let Some(reason) = &hub.closed {
            return Poll::Ready(Next::Closed(reason.clone()));
        }
        let watcher = hub.watchers.get_mut(&self.id).expect("registered until dropped");
        if watcher.stirred {
            let place = place.max(watcher.clear);
            if place < hub.kept_after {
                return Poll::Ready(Next::Behind(place));
            }
            let (found, passed) = look(&hub.kept, &self.keys, place);
            (watcher.stirred, watcher.clear) = (passed < hub.revision, passed.min(hub.revision));
            if watcher.stirred || !found.is_empty() {
                return Poll::Ready(Next::Batches(found, passed));
            }
        }
        std::mem::swap(&mut watcher.waker, &mut waker);
        Poll::Pending
    }

    /// Waits for [`Subscription::poll_next`].
    ///
    /// # Cancel safety
    /// Nothing is lost: the place is the caller's own.
    pub(crate) async fn next(&self, place: Revision) -> Next {
        std::future::poll_fn(|cx| self.poll_next(place, cx)).await
    }

    /// Why the node has stopped, if it has.
    pub(crate) fn closed(&self) -> Option<String> {
        self.hub.lock().closed.clone()
    }

    /// How far a watcher at `place` has in fact seen everything: further, when nothing of its range has changed since.
    pub(crate) fn settled(&self, place: Revision) -> Revision {
        let hub = self.hub.lock();
        let watcher = &hub.watchers[&self.id];
        place.max(if watcher.stirred { watcher.clear } else { hub.revision })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut hub = self.hub.lock();
        hub.interest.remove(self.id, &self.keys);
        let watcher = hub.watchers.remove(&self.id);
        drop(hub);
        // Its waker goes outside the lock.
        drop(watcher);
    }
}

/// * `kept` holds every change after `kept_after` up to `revision`, by ascending revision.
/// * A watcher that is not stirred has seen everything of its range up to `revision`, or the watcher's place, whichever
///   is later; one that is has seen everything up to `clear`.
struct Hub {
    revision: Revision,
    kept_after: Revision,
    kept: VecDeque<Arc<Batch>>,
    kept_bytes: usize,
    kept_revisions: usize,
    next_id: u64,
    watchers: BTreeMap<u64, Watcher>,
    interest: Interest,
    closed: Option<String>,
}

struct Watcher {
    /// Something of its range may have changed since it last looked, ...
    stirred: bool,
    /// ... but nothing up to here that it has not been given. So a watcher of a quiet range never falls behind.
    clear: Revision,
    waker: Option<Waker>,
}

impl Watcher {
    /// `before` is the revision before the one that stirs it.
    fn stir(&mut self, before: Revision, wakers: &mut Vec<Waker>) {
        if !self.stirred {
            (self.stirred, self.clear) = (true, before);
        }
        wakers.extend(self.waker.take());
    }
}

impl Hub {
    fn publish(&mut self, batch: Batch, wakers: &mut Vec<Waker>) {
        if batch.revision <= self.revision {
            return;
        }
        // Revisions are consecutive. Those in between were applied while nobody reported them (a node that is
        // starting): whoever asks for them must not be told that there were none.
        if batch.revision != self.revision.next() {
            self.jump(Revision::new(batch.revision.get() - 1), wakers);
        }
        let before = std::mem::replace(&mut self.revision, batch.revision);
        if self.watchers.is_empty() {
            // Whoever comes begins here, or asks the store's own history.
            return self.forget_up_to_now();
        }
        for change in &batch.changes {
            self.interest.each(&change.key, |id| {
                self.watchers.get_mut(&id).expect("a listed watcher exists").stir(before, wakers);
            });
        }
        self.kept_bytes += batch.bytes();
        self.kept.push_back(Arc::new(batch));
        while self.kept.len() > self.kept_revisions || (self.kept_bytes > KEPT_BYTES_MAX && self.kept.len() > 1) {
            let oldest = self.kept.pop_front().expect("over a limit, so not empty");
            self.kept_bytes -= oldest.bytes();
            self.kept_after = oldest.revision;
        }
    }

    fn forget_up_to_now(&mut self) {
        self.kept_after = self.revision;
        self.kept.clear();
        self.kept_bytes = 0;
    }

    fn jump(&mut self, revision: Revision, wakers: &mut Vec<Waker>) {
        if revision <= self.revision {
            return;
        }
        let before = std::mem::replace(&mut self.revision, revision);
        if mutant("watch_drop_on_snapshot") {
            return;
        }
        self.forget_up_to_now();
        self.watchers.values_mut().for_each(|watcher| watcher.stir(before, wakers));
    }
}

/// The revisions behind `place` that change something in `keys`, as many as one look may hand out, and the last
/// revision it went through.
fn look(kept: &VecDeque<Arc<Batch>>, keys: &KeyRange, place: Revision) -> (Vec<Arc<Batch>>, Revision) {
    let start = kept.partition_point(|batch| batch.revision <= place);
    let (mut found, mut bytes, mut passed) = (Vec::new(), 0, place);
    for batch in kept.range(start..).take(PASSED_REVISIONS_MAX) {
        passed = batch.revision;
        if batch.changes.iter().any(|change| keys.contains(&change.key)) {
            found.push(batch.clone());
            bytes += batch.bytes();
        }
        if found.len() == FOUND_REVISIONS_MAX || bytes >= FOUND_BYTES_MAX {
            break;
        }
    }
    (found, passed)
}

/// Who watches a key, found without asking everybody.
///
/// A range is listed under the longest prefix that all its keys share; a key's watchers are among those listed under
/// one of its own prefixes. So a change costs one search for each length at which anything is listed, however many
/// watch elsewhere.
#[derive(Default)]
struct Interest {
    /// Watchers of exactly one key: most of them, and with the most lengths.
    by_key: BTreeMap<Bytes, BTreeSet<u64>>,
    by_prefix: BTreeMap<Bytes, BTreeMap<u64, KeyRange>>,
    /// How many entries of `by_prefix` have a key of that length.
    prefix_lengths: BTreeMap<usize, usize>,
}

impl Interest {
    fn add(&mut self, id: u64, keys: &KeyRange) {
        if let Some(key) = keys.as_single() {
            self.by_key.entry(key.clone()).or_default().insert(id);
            return;
        }
        let prefix = shared_prefix(keys);
        let listed = self.by_prefix.entry(prefix.clone()).or_default();
        if listed.is_empty() {
            *self.prefix_lengths.entry(prefix.len()).or_default() += 1;
        }
        listed.insert(id, keys.clone());
    }

    fn remove(&mut self, id: u64, keys: &KeyRange) {
        if let Some(key) = keys.as_single() {
            let listed = self.by_key.get_mut(key).expect("listed until removed");
            listed.remove(&id);
            if listed.is_empty() {
                self.by_key.remove(key);
            }
            return;
        }
        let prefix = shared_prefix(keys);
        let listed = self.by_prefix.get_mut(&prefix).expect("listed until removed");
        listed.remove(&id);
        if listed.is_empty() {
            self.by_prefix.remove(&prefix);
            let count = self.prefix_lengths.get_mut(&prefix.len()).expect("counted when listed");
            *count -= 1;
            if *count == 0 {
                self.prefix_lengths.remove(&prefix.len());
            }
        }
    }

    /// Calls `each` with everybody who watches `key`, always in the same order.
    fn each(&self, key: &[u8], mut each: impl FnMut(u64)) {
        self.by_key.get(key).into_iter().flatten().for_each(|id| each(*id));
        for length in self.prefix_lengths.range(..=key.len()).map(|(length, _)| *length) {
            let listed = self.by_prefix.get(&key[..length]).into_iter().flatten();
            listed.filter(|(_, keys)| keys.contains(key)).for_each(|(id, _)| each(*id));
        }
    }
}

/// A prefix of every key in the range, as long as is easily found.
fn shared_prefix(keys: &KeyRange) -> Bytes {
    let Some(end) = &keys.end else { return Bytes::new() };
    let shared = keys.start.iter().zip(end).take_while(|(a, b)| a == b).count();
    // "config/" to "config0": all keys start with what the start has at the place where the end is one higher and over.
    let next =
        keys.start.get(shared).is_some_and(|byte| end.len() == shared + 1 && byte.checked_add(1) == Some(end[shared]));
    keys.start.slice(..shared + usize::from(next))
}

#[cfg(any(test, feature = "internals"))]
pub(crate) mod tests;
