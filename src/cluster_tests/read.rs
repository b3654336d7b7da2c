//! Reads: linearizable on every node unless they say otherwise.

use std::time::Duration;

use super::support::{Group, Mischief, slow_disks};
use crate::rt;
use crate::{Error, Revision};

#[tokio::test(start_paused = true)]
async fn an_isolated_leader_serves_no_linearizable_read_though_it_believes_to_lead() {
    let group = Group::started(3, 1).await;
    let leader = group.leader().await;
    group.node(leader).set("k", &1).await.expect("written");
    group.network.isolate(group.peers[leader].name.clone());
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    let read = group.node(leader).get::<i32>("k").timeout(Duration::from_secs(2)).into_future();
    let write = async {
        group.leader_among(&others).await;
        group.node(others[0]).set("k", &2).await.expect("written by the others");
    };
    let (read, ()) = futures::join!(read, write);
    assert!(matches!(read, Err(Error::NotApplied { .. })), "{read:?}");
    let stale = group.node(leader).get::<i32>("k").stale().await.expect("a stale read needs nobody");
    assert_eq!(stale.map(|entry| *entry), Some(1));
    group.network.heal();
    assert_eq!(group.node(leader).get::<i32>("k").await.expect("read").map(|entry| *entry), Some(2));
}

#[tokio::test(start_paused = true)]
async fn every_acknowledged_write_is_seen_by_the_next_read_on_every_node() {
    for seed in 1..3 {
        let mut group = Group::new(3, seed).tune(move |settings| settings.drive = slow_disks(seed, 5));
        group.start_all().await;
        group.mischief(Mischief { delay_ms_max: 8, double: 20, ..Default::default() });
        let mut leaders = std::collections::BTreeSet::new();
        for i in 0..60u64 {
            if i % 20 == 10 {
                let leader = group.leader().await;
                leaders.insert(leader);
                let heir = group.node((leader + 1) % 3).status().id;
                group.node(leader).node().transfer_to(heir).await;
            }
            group.node(i as usize % 3).set("k", &i).await.unwrap_or_else(|error| panic!("seed {seed}, {i}: {error}"));
            let reads = (0..3).map(|n| group.node(n).get::<u64>("k").into_future());
            for (n, read) in futures::future::join_all(reads).await.into_iter().enumerate() {
                let read = read.unwrap_or_else(|error| panic!("seed {seed}, {i}, node {n}: {error}"));
                assert_eq!(read.map(|entry| *entry), Some(i), "seed {seed}, node {n}");
            }
        }
        assert!(leaders.len() > 1, "seed {seed}: the leader never changed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_of_at_least_a_revision_waits_for_it_and_asks_nobody() {
    let group = Group::started(3, 1).await;
    let follower = group.follower().await;
    let leader = group.leader().await;
    group.network.isolate(group.peers[follower].name.clone());
    let written = group.node(leader).set("k", &1).await.expect("written by the two others");
    let node = group.node(follower);
    let behind = node.get::<i32>("k").at_least(written.revision).timeout(Duration::from_millis(500)).await;
    assert!(matches!(behind, Err(Error::NotApplied { .. })), "{behind:?}");
    assert_eq!(node.get::<i32>("k").at_least(Revision::ZERO).await, Ok(None));
    let read = node.get::<i32>("k").at_least(written.revision).into_future();
    let heal = async {
        rt::sleep(Duration::from_millis(100)).await;
        group.network.heal();
    };
    let (read, ()) = futures::join!(read, heal);
    assert_eq!(read.expect("read").map(|entry| *entry), Some(1));
}

/// Frames of one replication stream are numbered; heartbeats must not make the receiver forget where the stream stands.
#[tokio::test(start_paused = true)]
async fn writes_stay_fast_under_a_load_that_never_pauses() {
    let mut group = Group::new(3, 1).tune(|settings| settings.drive = slow_disks(1, 10));
    group.start_all().await;
    let leader = group.leader().await;
    // One follower alone makes the quorum, so that its delays show.
    group.network.isolate(group.peers[(leader + 2) % 3].name.clone());
    let until = rt::Instant::now() + Duration::from_millis(4500);
    let writers = (0..3u64).map(|w| {
        let node = group.node(leader).clone();
        async move {
            let mut slowest = Duration::ZERO;
            while rt::Instant::now() < until {
                let started = rt::Instant::now();
                node.set(format!("k{w}"), &w).await.expect("written");
                slowest = slowest.max(started.elapsed());
            }
            slowest
        }
    });
    let slowest = futures::future::join_all(writers).await;
    assert!(slowest.iter().all(|slowest| *slowest < Duration::from_millis(500)), "{slowest:?}");
}
