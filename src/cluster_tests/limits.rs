//! What is refused before anything is proposed.

use std::time::Duration;

use super::support::{Group, eventually};
use crate::rt;
use crate::storage::fault_disk::PowerLoss;
use crate::{Cluster, Error, KEY_BYTES_MAX, Raw, VALUE_BYTES_MAX, prefix, put};

#[tokio::test(start_paused = true)]
async fn what_is_invalid_is_refused_before_anything_is_proposed() {
    // Nobody else is there, so whatever is proposed would wait.
    let mut group = Group::new(3, 1);
    let node = group.start(0).await;
    let invalid = |outcome: Result<(), Error>| assert!(matches!(outcome, Err(Error::Invalid { .. })), "{outcome:?}");
    invalid(node.set("", &1).await.map(drop));
    invalid(node.set("x".repeat(KEY_BYTES_MAX + 1), &1).await.map(drop));
    let large = Raw(vec![0u8; VALUE_BYTES_MAX + 1].into());
    let refused = node.set("k", &large).await.map(drop);
    assert!(matches!(refused, Err(Error::Invalid { .. } | Error::Codec { .. })), "{refused:?}");
    invalid(node.set("k", &1).ttl(Duration::ZERO).await.map(drop));
    invalid(node.set("k", &1).ttl(Duration::from_secs(2 * 365 * 24 * 3600)).await.map(drop));
    let million = Raw(vec![0u8; 1_000_000].into());
    let txn = (0..5).fold(node.transaction(), |txn, i| txn.then(put(format!("k{i}"), &million)));
    invalid(txn.await.map(drop));
    let txn = (0..5000).fold(node.transaction(), |txn, i| txn.then(put(format!("k{i}"), &1)));
    invalid(txn.await.map(drop));
    invalid(node.get::<i32>("").await.map(drop));
}

#[tokio::test(start_paused = true)]
async fn a_key_written_twice_by_one_transaction_is_refused_and_changes_nothing() {
    let group = Group::started(3, 1).await;
    let refused = group.node(0).transaction().then(put("k", &1)).then(put("k", &2)).await;
    assert!(matches!(refused, Err(Error::Invalid { what: "transaction", .. })), "{refused:?}");
    assert_eq!(group.node(0).get::<i32>("k").await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn at_the_quota_growing_stops_everything_else_goes_on_and_deleting_makes_room() {
    let mut group = Group::new(3, 1).tune(|settings| settings.quota_bytes = 1_000_000);
    group.start_all().await;
    let node = group.node(0);
    let value = Raw(vec![7u8; 50_000].into());
    let mut full = None;
    for i in 0..60 {
        if let Err(error) = node.set(format!("k/{i:02}"), &value).await {
            full = Some(error);
            break;
        }
    }
    assert!(matches!(full, Some(Error::NoSpace { limit: 1_000_000, .. })), "{full:?}");
    assert!(node.get::<Raw>("k/00").await.expect("reads go on").is_some());
    assert!(node.range::<Raw>(prefix("k/")).limit(3).await.is_ok());
    let gone = node.delete(prefix("k/")).await.expect("deletes go on");
    assert!(gone.count > 15, "{gone:?}");
    eventually("room again", || node.status().used_bytes < 500_000).await;
    node.set("k", &value).await.expect("written");
    group.converged().await;
}

#[tokio::test(start_paused = true)]
async fn while_a_members_disk_is_nearly_full_growing_stops_on_all_nodes_and_everything_else_goes_on() {
    let mut group = Group::started(3, 1).await;
    let node = group.node(0).clone();
    let session = node.session().ttl(Duration::from_secs(5)).await.expect("granted");
    node.set("k", &1).await.expect("written");
    let free = 100 << 20;
    let full = Err(Error::DiskFull { member: "node-3".into(), free, reserve: 256 << 20 });
    group.disks[2].set_free_bytes(free);
    for n in [2, 0, 1] {
        until(group.node(n), |outcome| *outcome == full).await;
    }
    assert_eq!(group.node(2).status().free_bytes, Some(free));
    assert_eq!(node.get::<i32>("k").await.expect("reads go on").as_deref(), Some(&1));
    node.delete("k").await.expect("deletes go on");
    rt::sleep(Duration::from_secs(20)).await;
    assert!(!session.valid_for().is_zero(), "renewals go on");
    // One that is away holds nobody up.
    group.power_loss(2, PowerLoss::DropAll);
    until(group.node(0), Result::is_ok).await;
    group.start(2).await;
    until(group.node(0), |outcome| *outcome == full).await;
    group.disks[2].set_free_bytes(300 << 20);
    until(group.node(0), Result::is_ok).await;
    group.converged().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_stopped_says_so_however_little_room_its_disk_had() {
    let mut group = Group::new(1, 1);
    group.disks[0].set_free_bytes(5);
    let node = group.start(0).await;
    until(&node, |outcome| matches!(outcome, Err(Error::DiskFull { .. }))).await;
    node.node().fail_disk();
    until(&node, |outcome| matches!(outcome, Err(Error::Stopped { .. }))).await;
}

/// Writes until that ends as `wanted`, for as long as everybody's disks may take to be heard of.
async fn until(node: &Cluster, wanted: impl Fn(&Result<(), Error>) -> bool) {
    let writing = async {
        while !wanted(&node.set("more", &2).await.map(drop)) {
            rt::sleep(Duration::from_millis(100)).await;
        }
    };
    rt::timeout(Duration::from_secs(30), writing).await.expect("it comes to that");
}

#[tokio::test(start_paused = true)]
async fn history_that_is_too_old_is_forgotten_whoever_leads_and_nothing_younger() {
    let mut group = Group::new(3, 1).tune(|settings| settings.history_age = Some(Duration::from_secs(60)));
    group.start_all().await;
    let old = group.node(0).set("k", &1).await.expect("written").revision;
    rt::sleep(Duration::from_secs(30)).await;
    let young = group.node(0).set("k", &2).await.expect("written").revision;
    group.node(0).set("k", &3).await.expect("written");
    let leader = group.leader().await;
    group.stop(leader).await;
    let rest: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    group.leader_among(&rest).await;
    rt::sleep(Duration::from_secs(33)).await;
    let node = group.node(rest[0]);
    assert_eq!(node.status().oldest, old, "what the first write left was superseded half a minute ago");
    assert_eq!(node.get::<i32>("k").at(young).await.expect("it is there").as_deref(), Some(&2));
    rt::sleep(Duration::from_secs(30)).await;
    assert_eq!(node.status().oldest, node.status().revision, "the newest state is never too old");
    let gone = node.get::<i32>("k").at(young).await;
    assert!(matches!(gone, Err(Error::Compacted { .. })), "{gone:?}");
    assert_eq!(node.get::<i32>("k").await.expect("it is there").as_deref(), Some(&3));
}
