//! What a worker holds: an item, and the claim on it.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::Queue;
use super::take::Taken;
use crate::api::session::{Lost, LostReason};
use crate::api::txn::{Operation, Transaction, TxnOutcome};
use crate::codec::{self, Value};
use crate::command::KeyRange;
use crate::error::Error;
use crate::format::queue::{Part, part_key};
use crate::recipes::guard::{Guard, fenced, guarding};
use crate::types::{Fence, Revision};

/// An item that this process works on, for as long as [`Delivery::valid_for`] says. See [`Queue::pop`].
///
/// **What it promises:** at any revision at most one claim on the item stands, and [`Delivery::ack`] and writes through
/// [`Delivery::txn`] are carried out only while this one does. That this process *believes* to hold it is not enough for
/// anything outside, which must check [`Delivery::fence`].
///
/// The claim is kept alive in the background. Once lost it stays lost, even if its session recovers: the item is given out
/// again. It keeps its node running, as a handle does.
///
/// Dropping it releases the item in the background; if the cluster cannot be reached, it is given out again when the lease
/// expires. [`Delivery::release`] waits for that.
#[must_use = "an item that is dropped is released"]
pub struct Delivery<V> {
    guard: Guard,
    queue: Queue<V>,
    id: String,
    pushed: Revision,
    deliveries: u64,
    value: Bytes,
}

impl<V: Value> Delivery<V> {
    guarding!("the item", run, txn);

    pub(super) fn new(queue: Queue<V>, taken: Taken) -> Self {
        let Taken { guard, found, deliveries, value } = taken;
        Delivery { guard, queue, id: found.id, pushed: found.pushed, deliveries, value }
    }

    /// The item.
    ///
    /// # Errors
    /// [`Error::Codec`] if it was not pushed as a `V`: acknowledge it, or let it become a dead letter.
    pub fn value(&self) -> Result<V, Error> {
        codec::decode(self.name(), &self.value)
    }

    /// The revision of its push: its place in the queue, and what [`Queue::push`] returned.
    pub fn id(&self) -> Revision {
        self.pushed
    }

    /// How often it was given out, this time included: 1 unless somebody has had it before, as far as the cluster knows.
    pub fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// Says that the item is done: takes it out of the queue, if this claim still stands. [`Ack::then`] adds what is to be
    /// written along with that.
    ///
    /// # Errors
    /// Of the future: [`Error::Fenced`] if the claim was lost: nothing was written, and the item is somebody else's or will
    /// be. [`Error::NotApplied`], and [`Error::Invalid`], [`Error::NoSpace`] or [`Error::DiskFull`] for what was added with
    /// [`Ack::then`]: likewise nothing was written, and the item is released. [`Error::Indeterminate`]: ask
    /// [`Cluster::resolve`](crate::Cluster::resolve) whether it was done; if not, it is given out again.
    /// # Cancel safety
    /// Dropping the future does not withdraw an acknowledgement that was sent; otherwise it releases the item.
    pub fn ack(self) -> Ack<V> {
        Ack { txn: self.guard.txn(), delivery: self }
    }

    /// Gives the item back and waits until the cluster has carried that out: it is given out again, before those behind it. One
    /// that is lost already is fine.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when the cluster did not answer in time: it goes on being tried in the background, and the item
    /// is given out again when the lease expires at the latest. [`Error::Stopped`]: likewise, without the first half.
    /// # Cancel safety
    /// The release goes on in the background.
    pub async fn release(self) -> Result<(), Error> {
        self.guard.release().await
    }
}

fenced!(Delivery<V>);

impl<V> fmt::Debug for Delivery<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Delivery");
        shown.field("guard", &self.guard).field("id", &self.pushed).field("deliveries", &self.deliveries);
        shown.finish_non_exhaustive()
    }
}

/// An acknowledgement, sent by awaiting it. See [`Delivery::ack`].
#[must_use = "an item is not acknowledged until this is awaited"]
pub struct Ack<V> {
    txn: Transaction,
    delivery: Delivery<V>,
}

impl<V: Value> Ack<V> {
    /// Adds an operation that is carried out with the acknowledgement, at the same revision, or not at all. May be called more
    /// than once. What the operations did is in the [`TxnOutcome`], at their places.
    pub fn then(mut self, operation: Operation) -> Self {
        self.txn = self.txn.then(operation);
        self
    }

    /// Gives up after `timeout` instead of the default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.txn = self.txn.timeout(timeout);
        self
    }
}

impl<V: Value> IntoFuture for Ack<V> {
    type Output = Result<TxnOutcome, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Ack { txn, delivery } = self;
            let part = |part| part_key(&delivery.queue.request.name, part, &delivery.id);
            let keys = [part(Part::Item), part(Part::Tally), delivery.guard.hold.claim.key.clone()];
            let done = keys.into_iter().fold(txn, |txn, key| txn.then(Operation::remove(Ok(KeyRange::single(key)))));
            let done = done.await?;
            // The claim went with the item: there is nothing to release.
            delivery.guard.hold.give_up();
            Ok(done)
        })
    }
}

impl<V> fmt::Debug for Ack<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ack").field("delivery", &self.delivery).finish_non_exhaustive()
    }
}
