//! Writes that are sent again, doubled, overtaken, and whose answers are lost: once each all the same.

use std::time::Duration;

use super::support::{Group, Mischief, seeds, slow_disks};
use crate::api::cluster::Outcome;
use crate::rt;
use crate::{Error, put, when};

/// Adds one to the counter, by comparing; how often it was certainly, and in the end, added.
async fn increments(group: &Group, n: usize, times: u64) -> u64 {
    let mut added = 0;
    let node = group.node(n);
    for _ in 0..times {
        let Ok(now) = node.get::<u64>("counter").timeout(Duration::from_secs(60)).await else { continue };
        let next = now.as_ref().map_or(0, |now| **now) + 1;
        let unchanged = when("counter").modified_at(now.map_or(crate::Revision::ZERO, |now| now.modified));
        // A timeout that some writes do not make, so that there are tickets to resolve.
        let txn = node.transaction().when(unchanged).then(put("counter", &next)).timeout(Duration::from_millis(700));
        match txn.await {
            Ok(outcome) => added += u64::from(outcome.succeeded()),
            Err(Error::NotApplied { .. }) => {}
            Err(Error::Indeterminate { ticket }) => loop {
                match node.resolve(&ticket).await {
                    Ok(Outcome::Applied(_)) => break added += 1,
                    Ok(Outcome::Never | Outcome::NoEffect) => break,
                    Ok(other) => panic!("seed {}: {ticket}: {other:?}", group.seed),
                    Err(Error::NotApplied { .. }) => {}
                    Err(error) => panic!("seed {}: {ticket}: {error}", group.seed),
                }
            },
            Err(error) => panic!("seed {}: {error}", group.seed),
        }
    }
    added
}

#[tokio::test(start_paused = true)]
async fn a_counter_counts_what_was_acknowledged_or_resolved_as_applied_over_a_network_that_loses_and_doubles() {
    for seed in seeds(1..4) {
        let mut group = Group::new(3, seed).tune(move |settings| settings.drive = slow_disks(seed, 5));
        group.start_all().await;
        group.mischief(Mischief { lose_replies: 30, double: 30, delay_ms_max: 25, ..Default::default() });
        let moves = async {
            for i in 0..4 {
                rt::sleep(Duration::from_secs(3)).await;
                let heir = group.node(i % 3).status().id;
                for node in group.running() {
                    node.node().transfer_to(heir).await;
                }
            }
        };
        let counters = futures::future::join_all((0..3).map(|n| increments(&group, n, 15)));
        let (added, ()) = futures::join!(counters, moves);
        group.mischief(Mischief::default());
        let counter = group.node(0).get::<u64>("counter").await.expect("read").map_or(0, |entry| *entry);
        assert_eq!(counter, added.iter().sum::<u64>(), "seed {seed}: {added:?}");
        assert!(counter > 5, "seed {seed}: only {counter} increments got through");
        group.converged().await;
    }
}
