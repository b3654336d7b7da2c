//! Queues whose workers lose their power.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::support::{Group, PATIENCE, seeds};
use crate::rt::{self, Instant};
use crate::storage::fault_disk::{PowerLoss, SplitMix};
use crate::{Cluster, put};

const TTL: Duration = Duration::from_millis(1200);
const ITEMS: u64 = 30;

/// Finishes items, each together with a record of that, for as long as its node is there.
async fn work(node: Cluster, given: Arc<AtomicU64>, seed: u64) {
    let (queue, mut rng) = (node.queue::<u64>("q").ttl(TTL).timeout(Duration::from_secs(5)), SplitMix(seed));
    loop {
        let Ok(item) = queue.pop().await else {
            rt::sleep(Duration::from_millis(50)).await;
            continue;
        };
        given.fetch_add(1, Ordering::Relaxed);
        if item.run(rt::sleep(Duration::from_millis(rng.below(400)))).await.is_ok() {
            let done = format!("done/{}", item.value().expect("a number"));
            // Whether it was carried out is in the record.
            let _ = item.ack().then(put(done, &seed)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_item_is_finished_once_through_losses_of_power() {
    for seed in seeds(1..4) {
        let mut group = Group::started(3, seed).await;
        let (mut rng, given) = (SplitMix(seed), Arc::<AtomicU64>::default());
        let mut workers = Vec::new();
        let mut employ = |node: &Cluster, who: u64| {
            for nth in 0..2 {
                let work = work(node.clone(), given.clone(), seed * 1000 + who * 10 + nth);
                workers.push(rt::spawn("worker", work).abort_on_drop());
            }
        };
        for n in 0..ITEMS {
            group.node(n as usize % 3).queue::<u64>("q").push(&n).await.expect("pushed");
        }
        for n in 0..3 {
            employ(group.node(n), n as u64);
        }
        for round in 0..4 {
            rt::sleep(Duration::from_millis(200 + rng.below(900))).await;
            let n = rng.below(3) as usize;
            group.power_loss(n, [PowerLoss::DropAll, PowerLoss::KeepAll, PowerLoss::Subset(50)][round % 3]);
            rt::sleep(Duration::from_millis(rng.below(1500))).await;
            let node = group.start(n).await;
            employ(&node, 3 + round as u64);
        }
        let started = Instant::now();
        while group.node(0).queue::<u64>("q").is_empty().await != Ok(true) {
            assert!(started.elapsed() < PATIENCE, "seed {seed}: {:?}", group.node(0).queue::<u64>("q").inspect().await);
            rt::sleep(Duration::from_millis(50)).await;
        }
        drop(workers);
        for n in 0..ITEMS {
            let history = group.node(0).explain::<u64>(format!("done/{n}")).await.expect("read");
            assert_eq!(history.len(), 1, "seed {seed}: item {n} was not finished once: {history:?}");
        }
        assert!(given.load(Ordering::Relaxed) > ITEMS, "seed {seed}: no worker lost anything");
        group.converged().await;
    }
}
