//! Queues: items that are worked on one by one, in order, each until somebody has finished it.
//!
//! # Model
//!
//! An item is a key that stays until it is acknowledged; who works on it has a claim on it, which hangs on a session (see
//! [`super::claim`]). What the cluster holds of one item:
//!
//! ```text
//!            push                     pop: claim, tally + 1
//!  (nothing) ────▶ waiting ──────────────────────────────────────▶ claimed ──── ack ────▶ (nothing)
//!                   │    ▲                                            │
//!                   │    └── released, worker's session ended ────────┘
//!                   └── popped after its last allowed delivery ──▶ dead letter ── discard ──▶ (nothing)
//! ```
//!
//! What a worker goes through on this side is [`super::attempt`]'s, without its line: an item has one claim at a time.
//!
//! * A push is one transaction of the process's client record: it is in the queue once, however often it was sent.
//! * Items are given out in the order of the revisions that pushed them. An item keeps its place for as long as it is there, so
//!   one that comes back is given out before those behind it.
//! * A claim is put on the condition that the item is there and nobody has a claim on it: at any revision an item has at most
//!   one. Claims are minted once, and their revisions are their fences.
//! * An acknowledgement is carried out only while the claim stands, and deletes item and claim at one revision, with whatever
//!   the worker writes along ([`Ack::then`]). So each item is acknowledged once at the most, and what is written along with
//!   that is written once.
//! * The claim of a worker that died goes with its lease, and the item is given out again. So a worker may see an item that
//!   another one has begun; how often it was given out comes with it.
//! * A pop that is dropped, at whatever moment, withdraws its claim. That delivery counts.
//!
//! What is left to others: sessions and their deadlines are [`crate::api::session`]'s; what a worker does outside of the
//! cluster before its acknowledgement may be done twice, unless what it works on checks the fence.

mod delivery;
mod inspect;
mod place;
mod take;

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

pub use self::delivery::{Ack, Delivery};
pub use self::inspect::{QueueHeld, QueueItem, QueueState};
pub use self::take::{Pop, TryPop};

use self::place::Place;
use super::attempt::{Request, claiming};
use super::claim::Line;
use crate::api::cluster::Cluster;
use crate::api::kv::Written;
use crate::api::session::Session;
use crate::codec::{self, Value};
use crate::command::{Attach, KeyRange, Op, Txn};
use crate::error::{Error, Obstacle};
use crate::format::queue::{Part, encode_item, item_id, part_key};
use crate::rt;
use crate::types::VALUE_BYTES_MAX;

/// Most items of a queue, dead letters included, as far as the pushing node can see; one more is refused as busy.
pub const QUEUE_ITEMS_MAX: u64 = 10_000;

const RECIPE: &str = "queue";

/// A queue of items of type `V`. See [`Cluster::queue`].
#[must_use = "a queue is nothing until somebody pushes or pops"]
pub struct Queue<V> {
    request: Request,
    capacity: u64,
    deliveries_max: Option<u64>,
    value: PhantomData<fn() -> V>,
}

impl<V: Value> Queue<V> {
    claiming!("the claim on an item");

    /// Refuses to push when the queue holds this many items, dead letters included. Default and most:
    /// [`QUEUE_ITEMS_MAX`](crate::QUEUE_ITEMS_MAX).
    ///
    /// The pushing node counts what it has applied, so that pushes at the same moment may go a little beyond.
    pub fn capacity(mut self, items: u64) -> Self {
        self.capacity = items.min(QUEUE_ITEMS_MAX);
        self
    }

    /// Makes an item a dead letter that was given out `times` times (at least once) and not acknowledged, instead of giving it
    /// out again. Default: it is given out until somebody acknowledges it. Of those who pop: name the same number everywhere.
    pub fn max_deliveries(mut self, times: u64) -> Self {
        self.deliveries_max = Some(times.max(1));
        self
    }

    /// Puts an item at the end of the queue. It stays there until it is acknowledged. The revision is its id, and its place.
    ///
    /// # Errors
    /// Of the future: [`Error::NotApplied`] with [`Obstacle::Busy`] if the queue is full: pop, discard dead letters, or try
    /// later. Otherwise as [`Cluster::set`].
    /// # Cancel safety
    /// Dropping the future does not withdraw an item that was sent.
    pub fn push(&self, value: &V) -> BoxFuture<'static, Result<Written, Error>> {
        let (cluster, timeout, capacity) = (self.request.cluster.clone(), self.request.step_timeout(), self.capacity);
        let item = self.place().and_then(|place| Ok((stored(&self.request.name, value)?, place)));
        Box::pin(async move {
            let (value, place) = item?;
            let id = {
                let view = cluster.node().state().view();
                if place.count(&view)? >= capacity {
                    let why = Obstacle::Busy { what: "items in the queue", limit: capacity };
                    return Err(Error::NotApplied { why, waited: Duration::ZERO });
                }
                item_id(view.revision.next(), rt::random_u64())
            };
            let key = part_key(&place.name, Part::Item, &id);
            let then = vec![Op::Put { key, value, lease: Attach::Forever, prev: false }];
            let answer = cluster.write(Txn { then: then.into(), ..Txn::default() }, timeout).await?;
            Ok(Written { revision: answer.revision })
        })
    }

    /// Waits for the first item that nobody works on, and claims it. The claim is kept until it is acknowledged, released,
    /// dropped or lost.
    ///
    /// Those who wait are woken by what happens to the queue; all of them try for an item that comes, and one gets it.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when the [`Queue::timeout`] is over, or when no leader answered in the default timeout while an
    /// item was being claimed: pop again. [`Error::NoSpace`] and [`Error::DiskFull`]: a claim is a write.
    /// [`Error::LeaseNotFound`] if the session it was given has ended. [`Error::Stopped`]. [`Error::Invalid`] for a name or
    /// ttl out of range.
    /// # Cancel safety
    /// Dropping the future withdraws the claim in the background, whether it was still being placed or just granted; that
    /// delivery counts.
    pub fn pop(&self) -> Pop<V> {
        Pop::new(self.clone())
    }

    fn place(&self) -> Result<Place, Error> {
        Place::of(&self.request)
    }

    fn line(&self) -> Result<Line, Error> {
        Ok(Line::new(RECIPE, self.request.checked_name("queue name")?))
    }

    async fn delete(&self, key: Bytes) -> Result<bool, Error> {
        let then = vec![Op::Delete { keys: KeyRange::single(key), prev: false }];
        let timeout = self.request.step_timeout();
        Ok(self.request.cluster.write(Txn { then: then.into(), ..Txn::default() }, timeout).await?.changed)
    }
}

impl<V> Clone for Queue<V> {
    fn clone(&self) -> Self {
        Queue { request: self.request.clone(), value: PhantomData, ..*self }
    }
}

impl<V> fmt::Debug for Queue<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.request.name).finish_non_exhaustive()
    }
}

/// The stored form of an item.
fn stored<V: Value>(name: &str, value: &V) -> Result<Bytes, Error> {
    let item = encode_item(&codec::encode(name, value)?);
    if item.len() > VALUE_BYTES_MAX {
        let why = format!("has {} bytes, the limit is {VALUE_BYTES_MAX}", item.len());
        return Err(Error::Invalid { what: "value", why });
    }
    Ok(item)
}

impl Cluster {
    /// The queue called `name` (1 to 512 bytes, no zero byte) of items of type `V`. Sends nothing.
    ///
    /// Each item is given to one worker at a time, in the order in which the items were pushed, until one acknowledges it: an
    /// item whose worker dies is given out again, before those behind it. A pop looks at the keys of the queue that the history
    /// still knows, in memory, and each push counts them: a queue is for thousands of items and dozens of workers.
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(3).await?;
    /// use quorate::put;
    ///
    /// let mail = nodes[0].queue::<String>("mail");
    /// mail.push(&"to ada".to_string()).await?;
    /// mail.push(&"to bob".to_string()).await?;
    ///
    /// // A worker, which may be anywhere.
    /// let item = nodes[1].queue::<String>("mail").pop().await?;
    /// assert_eq!((item.value()?.as_str(), item.deliveries()), ("to ada", 1));
    /// // It gives up, and the item is the first one again.
    /// item.release().await?;
    ///
    /// let item = nodes[2].queue::<String>("mail").pop().await?;
    /// assert_eq!((item.value()?.as_str(), item.deliveries()), ("to ada", 2));
    /// // Done, and written down at the same revision: neither happens without the other, nor twice.
    /// item.ack().then(put("sent/ada", &true)).await?;
    /// assert_eq!(mail.len().await?, 1);
    /// # for node in nodes { node.shutdown().await?; } Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn queue<V: Value>(&self, name: impl Into<String>) -> Queue<V> {
        let request = Request::new(self, name.into());
        Queue { request, capacity: QUEUE_ITEMS_MAX, deliveries_max: None, value: PhantomData }
    }
}

#[cfg(test)]
mod tests;
