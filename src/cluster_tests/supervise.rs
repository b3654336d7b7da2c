//! Panics, and disks that fail under a running node.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use super::support::{Group, eventually, seeds, slow_disks};
use crate::api::cluster::Health;
use crate::rt;
use crate::sim::net::Passage;
use crate::storage::fault_disk::{Fault, IoKind};
use crate::{Error, Lane, StartError};

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_consensus_core_is_survived_by_the_node() {
    for size in [1, 3] {
        let group = Group::started(size, 1).await;
        for n in 0..size {
            group.node(n).set("k", &n).await.expect("written");
            group.node(n).node().panic_core().await;
            rt::sleep(Duration::from_secs(3)).await;
            group.node(n).set("k", &n).await.unwrap_or_else(|error| panic!("{size} nodes, {n}: {error}"));
        }
        group.converged().await;
    }
}

#[tokio::test(start_paused = true)]
async fn writes_go_on_exactly_once_across_panics_of_the_core() {
    for seed in seeds(1..4) {
        let mut group = Group::new(3, seed).tune(move |settings| settings.drive = slow_disks(seed, 20));
        group.start_all().await;
        let writer = |n: usize| {
            let node = group.node(n).clone();
            async move {
                let mut acked = 0u64;
                for i in 0..40 {
                    // A key that must not be there: a second application would answer with a conflict.
                    let set = node.set(format!("{n}/{i}"), &i).if_absent().timeout(Duration::from_secs(60)).await;
                    acked += u64::from(set.unwrap_or_else(|error| panic!("seed {seed}: {error}")).is_applied());
                }
                acked
            }
        };
        let panics = async {
            for i in 0..4 {
                rt::sleep(Duration::from_millis(700)).await;
                group.node(i % 3).node().panic_core().await;
            }
        };
        let (acked, ()) = futures::join!(futures::future::join_all((0..3).flat_map(|n| [writer(n)])), panics);
        assert_eq!(acked, [40, 40, 40], "seed {seed}");
        group.converged().await;
        assert_eq!(group.node(0).status().revision.get(), 120, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_core_that_keeps_panicking_stops_the_node_for_good() {
    let group = Group::started(1, 1).await;
    for _ in 0..6 {
        group.node(0).node().panic_core().await;
        rt::sleep(Duration::from_secs(3)).await;
    }
    let stopped = group.node(0).set("k", &1).await;
    assert!(matches!(&stopped, Err(Error::Stopped { reason }) if reason.contains("panic")), "{stopped:?}");
}

#[tokio::test(start_paused = true)]
async fn a_disk_error_stops_its_node_for_good_and_the_others_go_on() {
    for (kind, of_leader) in
        [(IoKind::Sync, true), (IoKind::Write, true), (IoKind::Sync, false), (IoKind::Write, false)]
    {
        let mut group = Group::started(3, 1).await;
        let leader = group.leader().await;
        let victim = if of_leader { leader } else { (leader + 1) % 3 };
        let node = group.node(victim).clone();
        node.set("k", &0).await.expect("written");
        group.disks[victim].inject(Fault { kinds: vec![kind], nth: 0, error: ErrorKind::Other, once: true });
        let other = (victim + 1) % 3;
        // Through another node: the victim's own callers are about to hear of it.
        for i in 0..5 {
            group.node(other).set("k", &i).await.unwrap_or_else(|error| panic!("{kind:?} {of_leader}: {error}"));
        }
        eventually("the node has stopped", || matches!(node.status().health, Health::Stopped(_))).await;
        let told = node.set("k", &9).await;
        assert!(matches!(&told, Err(Error::Stopped { reason }) if reason.contains("injected")), "{told:?}");
        assert!(matches!(node.get::<i32>("k").await, Err(Error::Stopped { .. })));
        let status = node.status();
        assert!(!status.is_leader && status.leader.is_none(), "{status:?}");
        node.shutdown().await.expect("shuts down");
        let reopened = group.builder(victim).await;
        assert!(
            matches!(&reopened, Err(StartError::Failed { reason, .. }) if reason.contains("injected")),
            "{reopened:?}"
        );
        group.release(victim);
        group.node(other).set("k", &10).await.expect("the others go on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_disk_has_failed_stops_leading_though_nobody_writes() {
    let group = Group::started(3, 1).await;
    let leader = group.leader().await;
    group.node(leader).node().fail_disk();
    eventually("it has stopped", || matches!(group.node(leader).status().health, Health::Stopped(_))).await;
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    group.leader_among(&others).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_has_lost_what_it_acknowledged_stops_when_its_leader_reminds_it() {
    let group = Group::started(3, 1).await;
    let leader = group.leader().await;
    let (member, other) = ((leader + 1) % 3, (leader + 2) % 3);
    group.node(leader).set("k", &1).await.expect("written");
    let node = group.node(member).node().clone();
    let from = group.node(leader).status().id;
    let end = node.log_ends_at();
    // What is there, and what another leader was told, which may have been replaced since.
    assert_eq!(node.remind(from, end).await, Some(true));
    assert_eq!(node.remind(group.node(other).status().id, end + 100).await, Some(true));
    assert_eq!(node.remind(from, end + 100).await, Some(false));
    eventually("it has stopped", || matches!(group.node(member).status().health, Health::Stopped(_))).await;
    let health = group.node(member).status().health;
    assert!(matches!(&health, Health::Stopped(why) if why.contains("older state")), "{health:?}");
    group.node(leader).set("k", &2).await.expect("the others go on");
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_this_release_does_not_know_stops_the_node_and_names_it() {
    let group = Group::started(1, 1).await;
    group.node(0).set("k", &1).await.expect("written");
    group.node(0).node().propose_garbage().await;
    eventually("it has stopped", || matches!(group.node(0).status().health, Health::Stopped(_))).await;
    let told = group.node(0).set("k", &9).await;
    assert!(matches!(&told, Err(Error::Stopped { reason }) if reason.contains("state.redb")), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_state_is_not_that_of_the_others_stops_for_good_and_they_go_on() {
    let mut group = Group::started(3, 1).await;
    let node = group.node(0).clone();
    for _ in 0..11 {
        let round = futures::future::join_all((0..100).map(|i| node.set(format!("k{i}"), &i).into_future()));
        assert!(round.await.iter().all(Result::is_ok));
    }
    group.converged().await;
    let milestones = |n: usize| group.node(n).node().state().account().milestones;
    assert!(milestones(0).iter().any(|milestone| milestone.index == 1024), "{:?}", milestones(0));
    assert_eq!((milestones(1), milestones(2)), (milestones(0), milestones(0)));
    rt::sleep(Duration::from_secs(20)).await;
    assert!(group.running().all(|node| node.status().health == Health::Serving), "members that agree go on");

    group.node(1).node().state().falsify_milestone();
    eventually("it has stopped", || matches!(group.node(1).status().health, Health::Stopped(_))).await;
    let health = group.node(1).status().health;
    assert!(matches!(&health, Health::Stopped(why) if why.contains("2 of 3 voters")), "{health:?}");
    group.leader_among(&[0, 2]).await;
    group.node(2).set("k", &2).await.expect("the others go on");
    group.release(1);
    let again = group.builder(1).await.map(drop);
    assert!(matches!(&again, Err(StartError::Failed { reason, .. }) if reason.contains("state hash")), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn bulk_that_does_not_get_through_delays_neither_heartbeats_nor_renewals() {
    let group = Group::started(3, 1).await;
    let leader = group.leader().await;
    let session = group.node((leader + 1) % 3).session().ttl(Duration::from_secs(2)).await.expect("granted");
    let term = group.node(leader).status().term;
    let bulk = |lane| if lane == Lane::Control { Duration::ZERO } else { Duration::from_secs(30) };
    group
        .network
        .script(Some(Arc::new(move |sight| Some(vec![Passage { delay: bulk(sight.lane), ..Passage::default() }]))));
    // Twenty of the longest election timeouts.
    for _ in 0..16 {
        rt::sleep(Duration::from_millis(500)).await;
        assert!(!session.valid_for().is_zero(), "its renewals wait");
    }
    let status = group.node(leader).status();
    assert_eq!((status.term, status.is_leader), (term, true));
    group.network.script(None);
    group.node(leader).set("k", &1).await.expect("written");
}
