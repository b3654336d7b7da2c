//! Clients that push items onto a queue, and clients that take them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::clients::PATIENCE;
use super::ledger::Ledger;
use crate::api::cluster::Cluster;
use crate::error::Error;
use crate::recipes::queue::{Delivery, Queue};
use crate::rt;
use crate::storage::fault_disk::SplitMix;

const QUEUE: &str = "work";
const TTL: Duration = Duration::from_millis(1300);

/// What became of items.
#[derive(Debug, Default)]
pub(super) struct Items {
    items: Mutex<Sets>,
    over: AtomicBool,
}

#[derive(Debug, Default)]
struct Sets {
    begun: u64,
    /// Pushes that were acknowledged.
    pushed: BTreeSet<u64>,
    /// Items whose acknowledgement was acknowledged, and those of which nobody knows.
    taken: BTreeSet<u64>,
    perhaps: BTreeSet<u64>,
    broken: Vec<String>,
}

impl Items {
    /// How many were taken for certain.
    pub(super) fn taken(&self) -> usize {
        self.with(|sets| sets.taken.len())
    }

    /// Waits until those who take items have taken what is left, and sends them home.
    pub(super) async fn drained(&self, node: &Cluster) {
        let (queue, deadline) = (queue(node), rt::Instant::now() + 15 * PATIENCE);
        // Just healed, a cluster may still be electing: then the answer is no answer.
        while !matches!(queue.is_empty().await, Ok(true)) {
            assert!(rt::Instant::now() < deadline, "items are left that nobody gets: {:?}", queue.inspect().await);
            rt::sleep(Duration::from_millis(100)).await;
        }
        self.over.store(true, Ordering::Release);
    }

    /// Whether nothing was lost and nothing taken twice.
    pub(super) fn judge(&self) {
        self.with(|sets| {
            assert!(sets.broken.is_empty(), "{:#?}", sets.broken);
            let found = |item: &&u64| sets.taken.contains(item) || sets.perhaps.contains(item);
            let lost: Vec<&u64> = sets.pushed.iter().filter(|item| !found(item)).collect();
            assert!(lost.is_empty(), "pushed, and not in the queue, and nobody has finished it: {lost:?}");
        });
    }

    async fn push(&self, queue: &Queue<u64>) -> Result<(), Error> {
        let item = self.with(|sets| {
            sets.begun += 1;
            sets.begun
        });
        queue.push(&item).await?;
        self.with(|sets| sets.pushed.insert(item));
        Ok(())
    }

    /// Takes an item, works on it, and says that it is done.
    async fn take(&self, queue: &Queue<u64>, work: Duration) -> Option<Error> {
        let done = self.with(|sets| sets.taken.clone());
        let delivery = match queue.pop().await {
            Ok(delivery) => delivery,
            Err(error) => return Some(error),
        };
        let item = delivery.value().expect("a number was pushed");
        self.with(|sets| {
            if done.contains(&item) || item > sets.begun {
                sets.broken.push(format!("{item} was given out after it was done, or before it was there"));
            }
        });
        if delivery.run(rt::sleep(work)).await.is_err() {
            return None;
        }
        self.finish(item, delivery).await
    }

    async fn finish(&self, item: u64, delivery: Delivery<u64>) -> Option<Error> {
        // Whoever is killed while he waits for the answer does not know, either.
        self.with(|sets| sets.perhaps.insert(item));
        let error = delivery.ack().timeout(PATIENCE / 4).await.err();
        if error.is_none() {
            self.with(|sets| {
                if !sets.taken.insert(item) {
                    sets.broken.push(format!("{item} was taken twice"));
                }
            });
        }
        error
    }

    fn with<T>(&self, with: impl FnOnce(&mut Sets) -> T) -> T {
        with(&mut self.items.lock().unwrap())
    }
}

fn queue(cluster: &Cluster) -> Queue<u64> {
    cluster.queue(QUEUE).ttl(TTL).timeout(PATIENCE / 2)
}

/// Pushes items now and then.
pub(super) async fn push(cluster: Cluster, ledger: Arc<Ledger>, mut rng: SplitMix) {
    while !ledger.is_over() {
        if let Err(Error::Stopped { .. }) = ledger.items.push(&queue(&cluster)).await {
            return;
        }
        rt::sleep(Duration::from_millis(100 + rng.below(700))).await;
    }
}

/// Takes items, one after the other, also those that are left when everybody else has come to an end.
pub(super) async fn take(cluster: Cluster, ledger: Arc<Ledger>, mut rng: SplitMix) {
    while !ledger.items.over.load(Ordering::Acquire) {
        let work = Duration::from_millis(rng.below(300));
        match ledger.items.take(&queue(&cluster), work).await {
            Some(Error::Stopped { .. }) => return,
            _ => rt::sleep(Duration::from_millis(rng.below(200))).await,
        }
    }
}
