//! Writes that are sent again, doubled, overtaken, and whose answers are lost: once each all the same.

use std::future::IntoFuture;
use std::time::Duration;

use super::support::{Group, Mischief, eventually, seeds, slow_disks};
use crate::api::cluster::Outcome;
use crate::command::Command;
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

/// "There is no such record" is no proof that nothing was done, not even to the first attempt.
#[tokio::test(start_paused = true)]
async fn a_write_whose_record_ended_between_two_copies_of_it_is_not_carried_out_twice() {
    let group = Group::started(3, 11).await;
    let (leader, follower) = (group.leader().await, group.follower().await);
    group.node(follower).set("warm", &0).await.expect("written");
    let leases = group.node(leader).node().state().view().leases().expect("readable");
    let [(lease, _)] = leases[..] else { panic!("only the record of one client: {leases:?}") };
    // The first copy arrives at once and its answer is lost; the answer to the second one counts.
    group.mischief(Mischief { client_double_after: Some(Duration::from_secs(2)), ..Default::default() });
    let write = group.node(follower).set("k", &1).timeout(Duration::from_secs(10)).into_future();
    let meanwhile = async {
        rt::sleep(Duration::from_secs(1)).await;
        let end = Command::LeaseRevoke { lease };
        group.node(leader).node().housekeep(end, Duration::from_secs(1)).await.expect("carried out");
        group.mischief(Mischief::default());
    };
    let (written, ()) = futures::join!(write, meanwhile);
    rt::sleep(Duration::from_secs(5)).await;
    let entry = group.node(leader).get::<i32>("k").await.expect("read").expect("the first copy was carried out");
    assert_eq!(entry.version, 1, "carried out twice: {written:?}");
    let Err(Error::Indeterminate { ticket }) = written else { panic!("nobody can know: {written:?}") };
    assert_eq!(group.node(leader).resolve(&ticket).await, Ok(Outcome::Unknowable));
    group.node(follower).set("warm", &1).await.expect("under a new record");
}

/// It finds out that its record has ended before it takes a number from it, so that no outcome is unknown.
#[tokio::test(start_paused = true)]
async fn a_node_that_was_away_for_longer_than_its_record_lives_writes_at_once_and_once() {
    let ttl = Duration::from_secs(6);
    let mut group = Group::new(3, 12).tune(move |settings| settings.client_ttl = ttl);
    group.start_all().await;
    // At each point of the time between two attempts to renew.
    for round in 0..7u32 {
        let away = group.follower().await;
        group.node(away).set("k", &0).await.expect("written");
        let before = group.node(away).get::<u32>("k").await.expect("read").expect("there").version;
        group.network.isolate(group.peers[away].name.clone());
        rt::sleep(ttl + Duration::from_millis(1000 + 500 * u64::from(round))).await;
        group.network.heal();
        eventually("it follows again", || group.node(away).status().leader.is_some()).await;
        let written = group.node(away).set("k", &round).timeout(Duration::from_secs(10)).await;
        assert!(written.is_ok(), "round {round}: {written:?}");
        let now = group.node(away).get::<u32>("k").await.expect("read").expect("there");
        assert_eq!((*now, now.version), (round, before + 1));
    }
}
