//! Following who leads, from what this node has applied.
//!
//! An observer keeps the line of candidates as of the last batch it was handed, and tells of its first claim whenever that is
//! another one or says something else. What it misses when it falls behind is [`feed`](crate::api::watch::feed)'s to decide:
//! it is given the whole line as it is now.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt};

use super::Leader;
use crate::api::watch::BatchKind;
use crate::api::watch::feed::{Feed, Lag, Start, Stored, StoredEvent};
use crate::codec::Value;
use crate::command::{KeyRange, KeyValue};
use crate::error::Error;
use crate::node::Node;
use crate::types::Revision;

/// The leaders of an election, one after the other: a stream. See [`Election::observe`](crate::Election::observe).
///
/// An item is the leader since some revision, or `None` while the office is vacant; the first one is the state at the
/// beginning. Leaders come in the order of their fences; the same one comes again when it proclaims another value. An observer
/// that falls behind by more than the node keeps in memory skips those that have been and gone meanwhile.
///
/// After an [`Error::Codec`] (a leader whose value was not written as a `V`) the stream goes on. Any other error is its end.
#[must_use = "an observer is told only while it is polled"]
pub struct Observe<V> {
    feed: Feed,
    /// The line as of what the feed has handed out.
    claims: BTreeMap<Bytes, KeyValue>,
    /// Fence and revision of the one that was last told of; the inner `None` is a vacancy.
    told: Option<Option<(Revision, Revision)>>,
    value: PhantomData<fn() -> V>,
}

impl<V: Value> Observe<V> {
    pub(super) fn open(node: &Node, line: KeyRange) -> Result<Self, Error> {
        node.check_open()?;
        let feed = Feed::open(node, line, Start::Initial, Lag::Coalesce, false)?;
        Ok(Observe { feed, claims: BTreeMap::new(), told: None, value: PhantomData })
    }

    /// The next leader, or vacancy, once there is one; `None` behind the error that ended the stream.
    ///
    /// # Errors
    /// [`Error::Codec`] for a value that was not written as a `V`. [`Error::Stopped`] when this node stops.
    /// # Cancel safety
    /// Nothing is lost: what was not returned is returned next time.
    pub async fn next(&mut self) -> Option<Result<Option<Leader<V>>, Error>> {
        StreamExt::next(self).await
    }

    /// Takes note of a batch; the leader, if that is now another one or says something else.
    pub(super) fn tell(&mut self, batch: Stored) -> Option<Result<Option<Leader<V>>, Error>> {
        if batch.kind != BatchKind::Live {
            self.claims.clear();
        }
        for event in batch.events {
            match event {
                StoredEvent::Put { entry, .. } => self.claims.insert(entry.key.clone(), entry),
                StoredEvent::Delete { key, .. } => self.claims.remove(&key),
            };
        }
        let first = self.claims.values().min_by_key(|claim| (claim.created, &claim.key));
        let now = first.map(|claim| (claim.created, claim.modified));
        if self.told.replace(now) == Some(now) {
            return None;
        }
        Some(first.map(Leader::read).transpose())
    }
}

impl<V: Value> Stream for Observe<V> {
    type Item = Result<Option<Leader<V>>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.feed.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Some(Ok(batch))) => {
                    if let Some(item) = self.tell(batch) {
                        return Poll::Ready(Some(item));
                    }
                }
            }
        }
    }
}

/// Nothing in it is pinned, whatever the value's type.
impl<V> Unpin for Observe<V> {}

impl<V> fmt::Debug for Observe<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observe").field("revision", &self.feed.place()).finish_non_exhaustive()
    }
}
