//! Clients that count, in closures which are run again when others were faster.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ledger::Ledger;
use crate::api::cluster::Cluster;
use crate::api::keys::prefix;
use crate::error::Error;
use crate::rt;
use crate::sim::check::Outcome;
use crate::storage::fault_disk::SplitMix;

pub(super) const COUNTERS: &str = "count/";
const TRANSACTED: &str = "count/transacted";
const UPDATED: &str = "count/updated";

/// What became of the attempts to count one more.
#[derive(Debug, Default)]
pub(super) struct Counts {
    counters: Mutex<[Count; 2]>,
}

#[derive(Debug, Default)]
struct Count {
    begun: u64,
    /// That certainly did nothing. What neither failed nor was acknowledged may have counted.
    failed: u64,
    /// What the acknowledged ones counted to.
    reached: BTreeSet<u64>,
    twice: Vec<u64>,
}

impl Counts {
    /// How many were acknowledged.
    pub(super) fn acknowledged(&self) -> usize {
        self.counters.lock().unwrap().iter().map(|count| count.reached.len()).sum()
    }

    /// Whether each one that was acknowledged has counted once, and nothing else has.
    pub(super) async fn judge(&self, node: &Cluster) {
        for (place, key) in [TRANSACTED, UPDATED].into_iter().enumerate() {
            let counted = node.get::<u64>(key).await.expect("all is whole").map_or(0, |entry| *entry);
            let Count { begun, failed, reached, twice } = &self.counters.lock().unwrap()[place];
            let possible = reached.len() as u64..=begun - failed;
            assert!(twice.is_empty(), "{key}: two were told that they had counted to {twice:?}");
            assert!(possible.contains(&counted), "{key} is {counted}, and was counted up {possible:?} times");
            assert!(reached.last().is_none_or(|last| *last <= counted), "{key}: {counted} after {reached:?}");
        }
    }

    async fn one(&self, place: usize, counting: impl Future<Output = Result<u64, Error>>) -> Result<(), Error> {
        self.counters.lock().unwrap()[place].begun += 1;
        let counted = counting.await;
        let count = &mut self.counters.lock().unwrap()[place];
        match counted {
            Ok(reached) => {
                if !count.reached.insert(reached) {
                    count.twice.push(reached);
                }
                Ok(())
            }
            Err(error) => {
                count.failed += u64::from(Outcome::of(&error).0 == Outcome::Fail);
                Err(error)
            }
        }
    }
}

/// Counts, in a transaction or an update.
pub(super) async fn count(cluster: Cluster, ledger: Arc<Ledger>, mut rng: SplitMix) {
    while !ledger.is_over() {
        let timeout = Duration::from_millis(1 + rng.below(1500));
        let place = rng.below(2) as usize;
        let counted = match place {
            0 => ledger.counts.one(place, transact(&cluster, timeout)).await,
            _ => ledger.counts.one(place, update(&cluster, timeout)).await,
        };
        if let Err(Error::Stopped { .. }) = counted {
            return;
        }
        rt::sleep(Duration::from_millis(rng.below(500))).await;
    }
}

async fn transact(cluster: &Cluster, timeout: Duration) -> Result<u64, Error> {
    let counting = cluster.txn(|t| {
        // Both counters are read, so whoever counts the other is in the way.
        let all = t.range::<u64>(prefix(COUNTERS)).entries()?;
        let next = all.iter().find(|(key, _)| key == TRANSACTED).map_or(0, |(_, now)| **now) + 1;
        t.put(TRANSACTED, &next)?;
        Ok(next)
    });
    Ok(*counting.timeout(timeout).await?)
}

async fn update(cluster: &Cluster, timeout: Duration) -> Result<u64, Error> {
    let counting = cluster.update(UPDATED, |now: Option<&u64>| Some(now.map_or(1, |now| now + 1)));
    Ok(*counting.timeout(timeout).await?.new.expect("it puts a number"))
}
