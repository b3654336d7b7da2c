//! Latches: a number of events to come, and those who wait for all of them.
//!
//! # Model
//!
//! ```text
//!            count_down: put, if nobody wrote in between
//!  (nothing) ──────────▶ count - 1 left ──────────▶ ... ──────────▶ 0 left: open
//!      ▲                        │                                     │
//!      └──────────────── remove ┴─────────────────────────────────────┘
//! ```
//!
//! * The count is stored with what is left of it by the first event; whoever names another one is refused. Left goes down by
//!   one for each event and stays at zero: once open, a latch is open until it is removed.
//! * An event is one transaction of the process's client record: it counts once, however often it was sent.
//! * Nothing hangs on a lease: an event that has happened stays so, whoever reported it. So there is nothing to lose and
//!   nothing to fence.
//! * Who waits looks at one linearizable moment first: a latch that was removed and is used anew is not taken for the old one.
//!
//! What is left to others: noticing that somebody will never report. A [`Barrier`](crate::Barrier) counts only who is alive.

use std::time::Duration;

use bytes::Bytes;

use super::attempt::{checked_name, patiently, while_wanted};
use crate::api::cluster::Cluster;
use crate::api::read::read_error;
use crate::api::update::{Change, remove, rewrite_detached};
use crate::command::{Attach, KeyRange, KeyValue};
use crate::error::{Error, Obstacle};
use crate::format::claim::{decode_numbers, encode_numbers, object_key};
use crate::rt::Instant;
use crate::storage::view::View;
use crate::watch_hub::Next;

const RECIPE: &str = "latch";

/// A latch in the cluster. See [`Cluster::latch`].
#[derive(Clone, Debug)]
pub struct Latch {
    cluster: Cluster,
    name: String,
    count: u64,
    timeout: Option<Duration>,
}

impl Latch {
    /// Gives up after `timeout`. Default: what other operations have; a [`Latch::wait`] waits as long as it takes.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Counts one event, and returns how many are left; 0 also if the latch was open already.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it has another count, [`Error::Invalid`] for a name or count out of range. [`Error::NotApplied`]:
    /// not counted, also if others came first a thousand times. [`Error::Indeterminate`]: ask [`Cluster::resolve`] before
    /// counting again.
    /// # Cancel safety
    /// Dropping the future does not withdraw the event.
    pub async fn count_down(&self) -> Result<u64, Error> {
        let count = self.count;
        let count_down = move |now: Option<&KeyValue>| {
            let before = now.map_or(Ok(count), |kv| read(kv.value.clone(), count))?;
            let left = before.saturating_sub(1);
            let change = match before {
                0 => Change::Keep,
                _ => Change::Put { value: encode_numbers([count, left]), attach: Attach::Forever },
            };
            Ok((change, left))
        };
        rewrite_detached(&self.cluster, self.key()?, self.step_timeout(), count_down).await
    }

    /// How many events are left, as of one linearizable moment.
    ///
    /// # Errors
    /// As [`Cluster::get`]; [`Error::Mismatch`] if it has another count.
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn left(&self) -> Result<u64, Error> {
        let (key, count, timeout) = (self.key()?, self.count, self.step_timeout());
        let looking = self.cluster.on_node(move |node| async move {
            let view = node.linearizable_view(timeout).await?;
            left(&view, &key, count)
        });
        looking.await
    }

    /// Waits until no event is left. A latch that nobody has used is waited for.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it has another count. [`Error::NotApplied`] if no leader answered the first look in time, or when
    /// the [`Latch::timeout`] is over. [`Error::Stopped`] when this node stops.
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn wait(&self) -> Result<(), Error> {
        let (key, count, timeout, patience) = (self.key()?, self.count, self.step_timeout(), self.timeout);
        let waiting = while_wanted(&self.cluster, move |node, mut gone| async move {
            let opened = async {
                let mut view = node.linearizable_view(timeout).await?;
                while left(&view, &key, count)? > 0 {
                    let seen = view.revision;
                    // Not held while waiting: an old view keeps history from being swept.
                    drop(view);
                    if let Next::Closed(reason) = node.hub().subscribe(KeyRange::single(key.clone())).next(seen).await {
                        return Err(Error::Stopped { reason });
                    }
                    view = node.state().view();
                }
                Ok(())
            };
            let patience = patience.unwrap_or(Duration::MAX);
            patiently(Instant::now(), patience, Obstacle::Waiting, &mut gone, opened).await
        });
        waiting.await
    }

    /// Deletes the latch: the next one of this name begins anew, with any count. Who waits now goes on waiting, for that one.
    ///
    /// # Errors
    /// As [`Cluster::delete`].
    /// # Cancel safety
    /// Dropping the future does not withdraw a removal that was sent.
    pub async fn remove(&self) -> Result<(), Error> {
        remove(&self.cluster, self.key()?, self.step_timeout()).await
    }

    fn key(&self) -> Result<Bytes, Error> {
        if self.count == 0 {
            return Err(Error::Invalid { what: "count", why: "it is 0, but must be at least 1".into() });
        }
        Ok(object_key(RECIPE, checked_name(&self.name, "latch name")?))
    }

    fn step_timeout(&self) -> Duration {
        self.timeout.unwrap_or(self.cluster.node().settings().timeout)
    }
}

/// What is left of a latch of this count.
fn left(view: &View, key: &[u8], count: u64) -> Result<u64, Error> {
    let found = view.get(key).map_err(|error| read_error(error, view.revision))?;
    found.map_or(Ok(count), |kv| read(kv.value, count))
}

fn read(value: Bytes, count: u64) -> Result<u64, Error> {
    let [stored, left] =
        decode_numbers(value).map_err(|error| Error::Invalid { what: "stored latch", why: error.to_string() })?;
    match stored == count {
        true => Ok(left),
        false => Err(Error::Mismatch { what: "count of the latch", stored, given: count }),
    }
}

impl Cluster {
    /// The latch called `name` (1 to 512 bytes, no zero byte), which opens after `count` events, at least 1. Sends nothing.
    ///
    /// The first event fixes the count; everybody must name the same one until [`Latch::remove`].
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// let migrated = cluster.latch("migrated", 2);
    /// assert_eq!(migrated.count_down().await?, 1);
    /// assert_eq!(migrated.count_down().await?, 0);
    /// migrated.wait().await?;
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn latch(&self, name: impl Into<String>, count: u64) -> Latch {
        Latch { cluster: self.clone(), name: name.into(), count, timeout: None }
    }
}

#[cfg(test)]
mod tests;
