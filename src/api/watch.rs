//! Watching keys: what changes, in the order in which it changes.
//!
//! A watch reads what this node has applied: it needs no leader, and survives every change of leader. What it promises,
//! to every watcher, on every node:
//! * Batches come in ascending order of revision, each revision once and whole.
//! * Between its first batch and [`Watch::revision`] nothing that happened to the watched keys is missing, unless a
//!   batch of kind [`BatchKind::Resync`] has replaced it.
//! * Only what is committed is seen.
//!
//! [`feed`] does this in stored form; here values get their types.

pub(crate) mod feed;

use std::collections::VecDeque;
use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::FusedStream;
use futures::{Stream, StreamExt};

use self::feed::{Feed, Lag, Start, Stored, StoredEvent};
use super::cluster::Cluster;
use super::keys::Keys;
use super::kv::Entry;
use super::layout::Layout;
use crate::codec::Value;
use crate::command::{KeyRange, KeyValue};
use crate::error::Error;
use crate::types::Revision;

/// What happened to the watched keys at one revision, or all that was there at one.
///
/// # Examples
/// A local copy of the watched keys, right after every batch:
/// ```
/// use std::collections::BTreeMap;
/// use quorate::{Batch, BatchKind};
///
/// fn follow(copy: &mut BTreeMap<String, u32>, batch: Batch<u32>) {
///     // The whole range: what is not listed is not there (any more).
///     if matches!(batch.kind, BatchKind::Initial | BatchKind::Resync) {
///         copy.clear();
///     }
///     for event in batch.events {
///         match event.entry() {
///             Some(entry) => copy.insert(event.key().to_owned(), entry.value),
///             None => copy.remove(event.key()),
///         };
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batch<V, K = String> {
    /// The revision. To go on behind it later, also on another node: [`WatchBuilder::from`]`(revision.next())`.
    pub revision: Revision,
    /// How to read `events`.
    pub kind: BatchKind,
    /// In the order in which the transaction wrote them; all of one key or range: in key order. At most one for each
    /// key.
    pub events: Vec<Event<V, K>>,
}

/// What a [`Batch`] holds.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BatchKind {
    /// Every watched key that was there at the batch's revision, as puts in key order; the first batch of a watch
    /// [`WatchBuilder::with_initial`]. May have no events.
    Initial,
    /// The changes of one revision.
    Live,
    /// Every watched key that is there at the batch's revision, as puts in key order. The watch had fallen behind: a
    /// key that was known before and is not listed here has been deleted meanwhile. May have no events.
    Resync,
}

/// What happened to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<V, K = String> {
    /// It was written.
    #[non_exhaustive]
    Put {
        /// The key.
        key: K,
        /// What it holds since. Its `ttl` is that of a lease that is still there when the event is read.
        entry: Entry<V>,
        /// With [`WatchBuilder::prev`], on a [`BatchKind::Live`] batch: what it held before, if it was there.
        prev: Option<Entry<V>>,
    },
    /// It was there and is gone.
    #[non_exhaustive]
    Delete {
        /// The key.
        key: K,
        /// Why.
        cause: Cause,
        /// The revision at which it was deleted.
        revision: Revision,
        /// With [`WatchBuilder::prev`]: what it held.
        prev: Option<Entry<V>>,
    },
}

impl<V, K> Event<V, K> {
    /// The key it happened to.
    pub fn key(&self) -> &K {
        match self {
            Event::Put { key, .. } | Event::Delete { key, .. } => key,
        }
    }

    /// What the key holds since; `None` if it was deleted.
    pub fn entry(&self) -> Option<&Entry<V>> {
        match self {
            Event::Put { entry, .. } => Some(entry),
            Event::Delete { .. } => None,
        }
    }
}

/// Why a key was deleted.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// Somebody deleted it, or revoked the lease it hung on.
    Deleted,
    /// Its time to live ran out, or the lease it hung on was not renewed.
    Expired,
}

/// Describes a watch, which is opened by awaiting it. See [`Cluster::watch`].
#[must_use = "a watch is opened by awaiting it"]
#[derive(Debug)]
pub struct WatchBuilder<V: 'static, K = String> {
    cluster: Cluster,
    keys: Result<KeyRange, Error>,
    from: Option<Revision>,
    initial: bool,
    lag: Lag,
    prev: bool,
    layout: Layout<V, K>,
}

impl<V, K> WatchBuilder<V, K> {
    pub(crate) fn new(cluster: &Cluster, keys: Result<KeyRange, Error>, layout: Layout<V, K>) -> Self {
        let cluster = cluster.clone();
        WatchBuilder { cluster, keys, from: None, initial: false, lag: Lag::Coalesce, prev: false, layout }
    }

    /// Starts with the changes of `revision`, which may lie in the future: nothing below it is delivered. Default: what
    /// happens after the watch is opened.
    ///
    /// If it lies in the past, every revision since comes one by one, from the node's history if need be, whatever the
    /// consumer has asked for in case it falls behind later. So a consumer that comes back goes on where it was.
    ///
    /// Together with [`WatchBuilder::with_initial`] it bounds the initial state: that is taken as soon as this node has
    /// applied `revision`.
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::prefix;
    ///
    /// let mut watch = cluster.watch::<u32>(prefix("jobs/")).await?;
    /// cluster.set("jobs/1", &1u32).await?;
    /// watch.next().await.expect("a watch ends with an error")?;
    /// let place = watch.revision(); // to be stored, or sent to another process
    /// drop(watch);
    /// cluster.set("jobs/2", &2u32).await?;
    ///
    /// let mut watch = cluster.watch::<u32>(prefix("jobs/")).from(place.next()).await?;
    /// let missed = watch.next().await.expect("a watch ends with an error")?;
    /// assert_eq!(missed.events[0].key(), "jobs/2");
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn from(mut self, revision: Revision) -> Self {
        self.from = Some(revision);
        self
    }

    /// Starts with one batch of all watched keys as they are now, and goes on with what happens next: no change falls
    /// in between, none comes twice.
    pub fn with_initial(mut self) -> Self {
        self.initial = true;
        self
    }

    /// Also delivers what a changed or deleted key held before.
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::{Cause, Event};
    ///
    /// let mut watch = cluster.watch::<String>("leader").prev().await?;
    /// cluster.set("leader", &"a".to_string()).await?;
    /// cluster.delete("leader").await?;
    /// watch.next().await.expect("a watch ends with an error")?;
    /// let gone = watch.next().await.expect("a watch ends with an error")?;
    /// let Event::Delete { cause, prev: Some(prev), .. } = &gone.events[0] else { panic!("{gone:?}") };
    /// assert_eq!((*cause, prev.as_str()), (Cause::Deleted, "a"));
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn prev(mut self) -> Self {
        self.prev = true;
        self
    }

    /// When the consumer falls so far behind that the node no longer holds the changes in memory, delivers the present
    /// state in one [`BatchKind::Resync`] batch and goes on from there. This is the default.
    pub fn coalesce(mut self) -> Self {
        self.lag = Lag::Coalesce;
        self
    }

    /// When the consumer falls behind, reads every single revision from the node's history instead, at the consumer's
    /// pace. A consumer that falls behind the history as well gets [`Error::Compacted`], and that is the end of the
    /// watch.
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::{Error, prefix};
    ///
    /// let mut audit = cluster.watch::<u32>(prefix("accounts/")).backpressure().await?;
    /// cluster.set("accounts/7", &100u32).await?;
    /// match audit.next().await.expect("a watch ends with an error") {
    ///     Ok(batch) => println!("{batch:?}"),
    ///     Err(Error::Codec { key, .. }) => println!("{key} holds something else"),
    ///     Err(Error::Compacted { oldest, .. }) => println!("too late: what happened before {oldest} is forgotten"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn backpressure(mut self) -> Self {
        self.lag = Lag::Backpressure;
        self
    }
}

impl<V: Send + 'static, K: Send + 'static> IntoFuture for WatchBuilder<V, K> {
    type Output = Result<Watch<V, K>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let keys = self.keys?;
            let node = self.cluster.node();
            node.check_open()?;
            let start = match (self.from, self.initial) {
                (None, false) => Start::Now,
                // Nothing ever happens at revision 0: from there is from the first change on.
                (Some(from), false) => Start::After(Revision::new(from.get().saturating_sub(1))),
                (None, true) => Start::Initial,
                (Some(from), true) => {
                    node.wait_revision(from).await?;
                    Start::Initial
                }
            };
            let feed = Feed::open(node, keys, start, self.lag, self.prev)?;
            let delivered = feed.place();
            Ok(Watch { feed, ready: VecDeque::new(), delivered, over: false, layout: self.layout })
        })
    }
}

/// The changes of some keys, as they happen: a stream of batches. See [`Cluster::watch`].
///
/// Use [`Watch::next`], or any of the combinators of `futures::StreamExt`. After an [`Error::Codec`] or an [`Error::Key`] the
/// stream goes on. Any other error is its end, and `None` follows.
///
/// A watch does not keep its node running: when the last [`Cluster`] handle is dropped, it ends with
/// [`Error::Stopped`]. Changes are kept once for all watches of a node. One that is not polled holds a place in them
/// and at most 64 revisions, and holds nobody up. The consumer that is behind by more than the node keeps in memory
/// (8192 revisions, 32 MiB) is what [`WatchBuilder::coalesce`] and [`WatchBuilder::backpressure`] are about.
#[must_use = "a watch delivers only while it is polled"]
pub struct Watch<V: 'static, K = String> {
    feed: Feed,
    /// The rest of what the last batch came to: values that could not be read, then the others.
    ready: VecDeque<Result<Batch<V, K>, Error>>,
    /// Up to here everything had been handed out before what is ready; counts only while something is.
    delivered: Revision,
    over: bool,
    layout: Layout<V, K>,
}

impl<V, K> Watch<V, K> {
    /// The next batch, once there is one; `None` behind the error that ended the watch.
    ///
    /// # Errors
    /// [`Error::Codec`] for a value that was not written as a `V`: that event is left out of the batch that follows (a
    /// previous value only is `None` in its event), and the watch goes on. [`Error::Key`] likewise, for a key. The others end it: [`Error::Stopped`] when
    /// this node stops: open a watch on another one, from [`Watch::revision`]`.next()`. [`Error::Compacted`] for a
    /// watch with [`WatchBuilder::backpressure`] that fell behind the history.
    /// # Cancel safety
    /// Nothing is lost: what was not returned is returned next time.
    pub async fn next(&mut self) -> Option<Result<Batch<V, K>, Error>> {
        StreamExt::next(self).await
    }

    /// Everything that happened to the watched keys up to this revision has been delivered. To go on behind it, also on
    /// another node or after a restart: [`WatchBuilder::from`]`(watch.revision().next())`.
    ///
    /// Moves on as long as the watched keys are quiet, so that a place kept in storage is not left behind by the
    /// history.
    pub fn revision(&self) -> Revision {
        if self.ready.is_empty() { self.feed.place() } else { self.delivered }
    }

    fn take(&mut self, stored: Stored) {
        let Stored { after, revision, kind, events } = stored;
        self.delivered = after;
        let mut readable = Vec::with_capacity(events.len());
        for event in events {
            let (event, errors) = typed(event, &self.layout);
            readable.extend(event);
            self.ready.extend(errors.into_iter().map(Err));
        }
        // A list that is empty says something, a change that nobody can read has been said.
        if !readable.is_empty() || kind != BatchKind::Live {
            self.ready.push_back(Ok(Batch { revision, kind, events: readable }));
        }
    }
}

/// An event with its key and values read, and what could not be.
fn typed<V, K>(event: StoredEvent, layout: &Layout<V, K>) -> (Option<Event<V, K>>, Vec<Error>) {
    let mut errors = Vec::new();
    let key = match layout.key(event.key()) {
        Ok(key) => key,
        Err(error) => return (None, vec![error]),
    };
    let mut read = |kv: &KeyValue| layout.entry(kv).map_err(|error| errors.push(error)).ok();
    let event = match event {
        StoredEvent::Put { entry, prev } => {
            let (now, prev) = (read(&entry), prev.as_ref().and_then(&mut read));
            now.map(|now| Event::Put { key, entry: now, prev })
        }
        StoredEvent::Delete { cause, revision, prev, .. } => {
            Some(Event::Delete { key, cause, revision, prev: prev.as_ref().and_then(read) })
        }
    };
    (event, errors)
}

impl<V, K> Stream for Watch<V, K> {
    type Item = Result<Batch<V, K>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(item) = this.ready.pop_front() {
                return Poll::Ready(Some(item));
            }
            match this.feed.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    this.over = true;
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Some(Ok(stored))) => this.take(stored),
            }
        }
    }
}

impl<V, K> FusedStream for Watch<V, K> {
    fn is_terminated(&self) -> bool {
        self.over
    }
}

/// Nothing in it is pinned, whatever the types of key and value.
impl<V, K> Unpin for Watch<V, K> {}

impl<V, K> fmt::Debug for Watch<V, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("revision", &self.delivered).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Watches `keys` on this node: every put and delete, in order, by revision, with nothing missing.
    ///
    /// Works the same on every node, and on every executor. It shows what this node has applied: on a follower about a
    /// round trip after the writer has its answer. Options: [`WatchBuilder::from`], [`WatchBuilder::with_initial`],
    /// [`WatchBuilder::prev`], [`WatchBuilder::backpressure`].
    ///
    /// # Errors
    /// [`Error::Compacted`] if the history no longer holds the first revision asked for: read the keys, or watch them
    /// [`WatchBuilder::with_initial`]. [`Error::Invalid`] for keys that cannot exist, [`Error::Stopped`].
    /// # Cancel safety
    /// Nothing is lost: no watch was opened.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::{BatchKind, Event, prefix};
    ///
    /// cluster.set("config/pool", &10u32).await?;
    /// let mut watch = cluster.watch::<u32>(prefix("config/")).with_initial().await?;
    /// let all = watch.next().await.expect("a watch ends with an error")?;
    /// assert_eq!((all.kind, all.events.len()), (BatchKind::Initial, 1));
    ///
    /// cluster.set("config/pool", &20u32).await?;
    /// let batch = watch.next().await.expect("a watch ends with an error")?;
    /// for event in batch.events {
    ///     match event {
    ///         Event::Put { key, entry, .. } => assert_eq!((key.as_str(), *entry), ("config/pool", 20)),
    ///         Event::Delete { key, cause, .. } => println!("{key} is gone: {cause:?}"),
    ///         _ => {}
    ///     }
    /// }
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn watch<V: Value>(&self, keys: impl Into<Keys>) -> WatchBuilder<V> {
        WatchBuilder::new(self, keys.into().stored(), Layout::flat())
    }
}

#[cfg(test)]
mod tests;
