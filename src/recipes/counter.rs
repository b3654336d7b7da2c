//! Counters: one number for everybody, and additions that count once.
//!
//! # Model
//!
//! ```text
//!            add: put, if nobody wrote in between
//!  (nothing) ────────────────────────────────────▶ number ◀─┐
//!      ▲                                             │  │ add│
//!      └──────────────── remove ─────────────────────┘  └────┘
//! ```
//!
//! * An addition is one transaction of the process's client record, so that it is decided once, however often it was sent. It
//!   is carried out on the condition that the number is the one it was computed from, else with the one that is there.
//! * Nothing hangs on a lease: what was added stays, whoever added it. So there is nothing to lose and nothing to fence.
//!
//! What is left to others: speed. Every addition is a write on a majority's disks, and additions of one counter follow each
//! other. Numbers that are only looked at are better counted elsewhere.

use std::time::Duration;

use bytes::Bytes;

use super::attempt::checked_name;
use crate::api::cluster::Cluster;
use crate::api::read::read_error;
use crate::api::update::{Change, remove, rewrite_detached};
use crate::command::{Attach, KeyValue};
use crate::error::Error;
use crate::format::claim::{decode_numbers, encode_numbers, object_key};

const RECIPE: &str = "counter";

/// A number in the cluster. See [`Cluster::counter`].
#[derive(Clone, Debug)]
pub struct Counter {
    cluster: Cluster,
    name: String,
    timeout: Duration,
}

impl Counter {
    /// Gives up after `timeout` instead of the default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Adds `delta` and returns the sum: of all additions, each has another one that it made.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the sum does not fit an `i64`: nothing was added. [`Error::NotApplied`]: not added, also if others
    /// came first a thousand times. [`Error::Indeterminate`]: ask [`Cluster::resolve`] before adding again.
    /// # Cancel safety
    /// Dropping the future does not withdraw the addition.
    pub async fn add(&self, delta: i64) -> Result<i64, Error> {
        let name = self.name.clone();
        let add = move |now: Option<&KeyValue>| {
            let now = now.map_or(Ok(0), |kv| read(kv.value.clone()))?;
            let Some(sum) = now.checked_add(delta) else {
                let why = format!("{now} and {delta} add up to more than it can hold");
                return Err(Error::Invalid { what: "counter", why: format!("{name}: {why}") });
            };
            Ok((Change::Put { value: encode_numbers([sum as u64]), attach: Attach::Forever }, sum))
        };
        rewrite_detached(&self.cluster, self.key()?, self.timeout, add).await
    }

    /// The number as of one linearizable moment; 0 if nobody has added anything.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn get(&self) -> Result<i64, Error> {
        let (key, timeout) = (self.key()?, self.timeout);
        let looking = self.cluster.on_node(move |node| async move {
            let view = node.linearizable_view(timeout).await?;
            let found = view.get(&key).map_err(|error| read_error(error, view.revision))?;
            found.map_or(Ok(0), |kv| read(kv.value))
        });
        looking.await
    }

    /// Deletes the counter: it is 0 again.
    ///
    /// # Errors
    /// As [`Cluster::delete`].
    /// # Cancel safety
    /// Dropping the future does not withdraw a removal that was sent.
    pub async fn remove(&self) -> Result<(), Error> {
        remove(&self.cluster, self.key()?, self.timeout).await
    }

    fn key(&self) -> Result<Bytes, Error> {
        Ok(object_key(RECIPE, checked_name(&self.name, "counter name")?))
    }
}

fn read(value: Bytes) -> Result<i64, Error> {
    let [number] =
        decode_numbers(value).map_err(|error| Error::Invalid { what: "stored counter", why: error.to_string() })?;
    Ok(number as i64)
}

impl Cluster {
    /// The counter called `name` (1 to 512 bytes, no zero byte). Sends nothing.
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// let orders = cluster.counter("orders");
    /// assert_eq!(orders.add(1).await?, 1);
    /// assert_eq!(orders.add(10).await?, 11);
    /// assert_eq!(orders.get().await?, 11);
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn counter(&self, name: impl Into<String>) -> Counter {
        Counter { cluster: self.clone(), name: name.into(), timeout: self.node().settings().timeout }
    }
}

#[cfg(test)]
mod tests;
