//! Reading several keys of one moment: as a list, page by page, or only counted.

use std::collections::VecDeque;
use std::fmt;
use std::future::IntoFuture;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FusedStream;
use futures::{FutureExt, Stream, StreamExt};

use super::cluster::Cluster;
use super::keys::Keys;
use super::kv::Entry;
use super::layout::Layout;
use super::read::{Moment, Reading, read_error, reading};
use crate::codec::Value;
use crate::command::{KeyRange, KeyValue};
use crate::error::Error;
use crate::storage::view::View;
use crate::types::Revision;

/// Most entries one [`Cluster::range`] returns unless it sets a smaller limit. [`Range::stream`] has no such limit.
pub const RANGE_ENTRIES_MAX: u32 = 10_000;

/// Entries that a [`Scan`] reads at once, and so the most that it holds.
const PAGE_ENTRIES: usize = 1_000;

/// A read of several keys at one moment. See [`Cluster::range`].
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct Range<V: 'static, K = String> {
    reading: Reading,
    keys: Result<KeyRange, Error>,
    limit: Option<u32>,
    reverse: bool,
    layout: Layout<V, K>,
}

impl<V, K> Range<V, K> {
    reading!(at);

    pub(crate) fn new(cluster: &Cluster, keys: Result<KeyRange, Error>, layout: Layout<V, K>) -> Self {
        Range { reading: Reading::new(cluster), keys, limit: None, reverse: false, layout }
    }

    /// Returns at most `limit` entries. Awaited, a range returns at most
    /// [`RANGE_ENTRIES_MAX`](crate::RANGE_ENTRIES_MAX) (and about 4 MiB) in any case; a [`Range::stream`] goes on to `limit`.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Starts at the last key and goes down.
    pub fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// Reads all entries, however many, as a stream: in pages, all of one moment, holding one page at a time.
    ///
    /// The moment is that of the first page, and is what the options say. Between the pages nothing is pinned, so a slow
    /// consumer costs nothing; it has to be done before the history has moved past the stream's revision (100 000 revisions
    /// unless [`Builder::history`](crate::Builder::history) says otherwise): after that it gets [`Error::Compacted`].
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::prefix;
    /// cluster.set("jobs/1", &1u32).await?;
    /// cluster.set("jobs/2", &2u32).await?;
    /// let mut newest_first = cluster.range::<u32>(prefix("jobs/")).reverse().stream();
    /// let mut seen = Vec::new();
    /// while let Some(next) = newest_first.next().await {
    ///     let (key, entry) = next?;
    ///     cluster.delete(&key).await?; // changes nothing about what the stream shows
    ///     seen.push(*entry);
    /// }
    /// assert_eq!(seen, [2, 1]);
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn stream(self) -> Scan<V, K> {
        Scan {
            left: self.limit.map_or(usize::MAX, |limit| limit as usize),
            reverse: self.reverse,
            layout: self.layout,
            page: VecDeque::new(),
            at: None,
            stage: Stage::Described(self.reading, self.keys),
        }
    }

    /// Counts the keys instead of reading them, whatever the limit.
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// cluster.set("a", &1u32).await?;
    /// cluster.set("b", &2u32).await?;
    /// assert_eq!(cluster.range::<u32>(..).count().await?, 2);
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn count(self) -> Count {
        Count { reading: self.reading, keys: self.keys }
    }
}

/// Several entries of one moment, in key order. Derefs to the list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entries<V, K = String> {
    /// Keys and entries.
    pub entries: Vec<(K, Entry<V>)>,
    /// Whether the range holds more than the limit let through.
    pub more: bool,
    /// The revision as of which they were read. To be told what happens since: [`WatchBuilder::from`](crate::WatchBuilder::from)`(revision.next())`.
    pub revision: Revision,
}

impl<V, K> Deref for Entries<V, K> {
    type Target = Vec<(K, Entry<V>)>;
    fn deref(&self) -> &Self::Target {
        &self.entries
    }
}

impl<V, K> IntoIterator for Entries<V, K> {
    type Item = (K, Entry<V>);
    type IntoIter = std::vec::IntoIter<Self::Item>;
    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

impl<V: Send + 'static, K: Send + 'static> IntoFuture for Range<V, K> {
    type Output = Result<Entries<V, K>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (keys, reverse, layout) = (self.keys?, self.reverse, self.layout);
            let limit = self.limit.unwrap_or(RANGE_ENTRIES_MAX).min(RANGE_ENTRIES_MAX) as usize;
            let read = move |view: &View, at| Ok((view.range_at(at, &keys, limit, reverse)?, at));
            let ((found, more), revision) = self.reading.run(read).await?;
            let entries = found.iter().map(|stored| layout.key_entry(stored)).collect::<Result<_, Error>>()?;
            Ok(Entries { entries, more, revision })
        })
    }
}

/// A count of keys. See [`Range::count`].
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct Count {
    reading: Reading,
    keys: Result<KeyRange, Error>,
}

impl Count {
    reading!(at);
}

impl IntoFuture for Count {
    type Output = Result<u64, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let keys = self.keys?;
            self.reading.run(move |view, at| view.count_at(at, &keys)).await
        })
    }
}

/// The entries of some keys at one moment: a stream of keys and entries, in order. See [`Range::stream`].
///
/// Reads a page when the one before is used up; dropping it stops that. After an [`Error::Codec`] or an [`Error::Key`], which
/// stand for the entry that could not be read, the stream goes on. Any other error is its end, and `None` follows.
#[must_use = "a stream delivers only while it is polled"]
pub struct Scan<V: 'static, K = String> {
    /// Entries still to be given.
    left: usize,
    reverse: bool,
    layout: Layout<V, K>,
    page: VecDeque<KeyValue>,
    at: Option<Revision>,
    stage: Stage,
}

enum Stage {
    Described(Reading, Result<KeyRange, Error>),
    /// Waiting for the moment of the first page.
    Opening(BoxFuture<'static, Result<Arc<View>, Error>>, Cluster, KeyRange),
    /// Reading what is left of the range.
    Reading(Cluster, KeyRange),
    Over,
}

impl<V, K> Scan<V, K> {
    /// The next key and entry; `None` behind the last one, and behind the error that ended the stream.
    ///
    /// # Errors
    /// As [`Cluster::get`], on the first call. [`Error::Compacted`]: the stream was used so slowly that the history has moved
    /// past its revision; read again. [`Error::Codec`] and [`Error::Key`] for an entry of another type.
    /// # Cancel safety
    /// Nothing is lost: what was not returned is returned next time.
    pub async fn next(&mut self) -> Option<Result<(K, Entry<V>), Error>> {
        StreamExt::next(self).await
    }

    /// The revision all of it is of; `None` until the first entry (or the end) has been asked for.
    pub fn revision(&self) -> Option<Revision> {
        self.at
    }

    /// Does the next piece of work; an error ends the stream.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Over => Stage::Over,
            Stage::Described(reading, keys) => {
                let (cluster, keys) = (reading.cluster.clone(), keys?);
                if let Moment::At(revision) = reading.moment {
                    self.at = Some(revision);
                }
                Stage::Opening(async move { reading.view().await }.boxed(), cluster, keys)
            }
            Stage::Opening(mut opening, cluster, keys) => match opening.poll_unpin(cx) {
                Poll::Pending => {
                    self.stage = Stage::Opening(opening, cluster, keys);
                    return Poll::Pending;
                }
                Poll::Ready(view) => self.read_page(&*view?, cluster, keys)?,
            },
            Stage::Reading(cluster, rest) => {
                cluster.node().check_open()?;
                let view = cluster.node().state().view();
                self.read_page(&view, cluster, rest)?
            }
        };
        Poll::Ready(Ok(()))
    }

    /// Reads one more page. Every page takes the newest view, so that none is held in between: history answers for the
    /// revision.
    fn read_page(&mut self, view: &View, cluster: Cluster, rest: KeyRange) -> Result<Stage, Error> {
        let at = *self.at.get_or_insert(view.revision);
        let (entries, more) = view
            .range_at(at, &rest, self.left.min(PAGE_ENTRIES), self.reverse)
            .map_err(|error| read_error(error, at))?;
        self.left -= entries.len();
        let Some(last) = entries.last().filter(|_| more && self.left > 0) else {
            self.page = entries.into();
            return Ok(Stage::Over);
        };
        let rest = rest.behind(&last.key, self.reverse);
        self.page = entries.into();
        Ok(Stage::Reading(cluster, rest))
    }
}

impl<V, K> Stream for Scan<V, K> {
    type Item = Result<(K, Entry<V>), Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(stored) = this.page.pop_front() {
                return Poll::Ready(Some(this.layout.key_entry(&stored)));
            }
            if this.is_terminated() {
                return Poll::Ready(None);
            }
            if let Err(error) = ready!(this.advance(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

impl<V, K> FusedStream for Scan<V, K> {
    fn is_terminated(&self) -> bool {
        self.page.is_empty() && matches!(self.stage, Stage::Over)
    }
}

/// Nothing in it is pinned, whatever the types of key and value.
impl<V, K> Unpin for Scan<V, K> {}

impl<V, K> fmt::Debug for Scan<V, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("revision", &self.at).field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Reads all entries of `keys` as of one moment, in key order, at most [`RANGE_ENTRIES_MAX`](crate::RANGE_ENTRIES_MAX).
    ///
    /// Options: [`Range::limit`], [`Range::reverse`], [`Range::stale`], [`Range::at_least`], [`Range::at`]. More than fits one answer is read
    /// by [`Range::stream`], only counted by [`Range::count`].
    ///
    /// # Errors
    /// As [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::prefix;
    /// cluster.set("config/a", &1u32).await?;
    /// cluster.set("config/b", &2u32).await?;
    /// let all = cluster.range::<u32>(prefix("config/")).await?;
    /// assert_eq!(all.iter().map(|(key, entry)| (key.as_str(), **entry)).collect::<Vec<_>>(), [("config/a", 1), ("config/b", 2)]);
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn range<V: Value>(&self, keys: impl Into<Keys>) -> Range<V> {
        Range::new(self, keys.into().stored(), Layout::flat())
    }
}

#[cfg(test)]
mod tests;
