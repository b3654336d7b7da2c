//! Followers that were away for longer than the log reaches back.

use std::time::Duration;

use super::support::{Group, Mischief, eventually, seeds, slow_disks};
use crate::api::cluster::Outcome;
use crate::config::Retention;
use crate::rt;
use crate::storage::fault_disk::PowerLoss;
use crate::{Error, Raw};

/// A group that keeps next to nothing of its log.
pub(super) fn forgetful(seed: u64) -> Group {
    Group::new(3, seed).tune(move |settings| {
        settings.retention = Retention { snapshot_entries: 20, kept_entries: 5, ..Retention::default() };
        settings.drive = slow_disks(seed, 4);
    })
}

/// Waits until the leader's log no longer reaches back to `index`.
pub(super) async fn purged_beyond(group: &Group, n: usize, index: u64) {
    eventually("the log is purged", || group.node(n).node().log_starts_at() > index).await;
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_was_away_for_longer_than_the_log_gets_a_snapshot_under_load_and_holds_the_same() {
    for seed in seeds(1..3) {
        let mut group = forgetful(seed);
        group.start_all().await;
        let leader = group.leader().await;
        let away = (leader + 1) % 3;
        group.node(away).set("before", &0).await.expect("written");
        let index = group.node(away).node().log_ends_at();
        group.power_loss(away, PowerLoss::DropAll);
        let value = Raw(vec![7u8; 10_000].into());
        for i in 0..80 {
            group.node(leader).set(format!("k{i}"), &value).await.expect("written");
        }
        group.node(leader).delete("k7").await.expect("deleted");
        purged_beyond(&group, leader, index).await;
        group.mischief(Mischief {
            lose_replies: 10,
            lose_requests: 10,
            double: 30,
            delay_ms_max: 5,
            ..Default::default()
        });
        group.start(away).await;
        // The load goes on until the snapshot is in.
        let node = group.node(away);
        let mut i = 0;
        while node.status().revision.get() < 80 {
            i += 1;
            assert!(i < 1500, "seed {seed}: no snapshot arrived: {:?}", node.status());
            let _ = group.node(leader).set("load", &i).timeout(Duration::from_millis(200)).await;
            rt::sleep(Duration::from_millis(60)).await;
        }
        group.mischief(Mischief::default());
        group.node(leader).set("after", &1).await.expect("written");
        group.converged().await;
        assert_eq!(node.get::<Raw>("k7").stale().await, Ok(None), "seed {seed}");
        assert_eq!(node.get::<Raw>("k79").stale().await.expect("read").map(|entry| entry.value), Some(value));
        // It stands on its own: with the leader gone, the two that are left go on.
        group.power_loss(leader, PowerLoss::DropAll);
        group.node(away).set("alone", &1).await.expect("written");
        group.start_all().await;
        group.converged().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_takes_too_many_bytes_is_purged_however_few_entries_it_has() {
    let mut group = Group::new(3, 1).tune(|settings| {
        settings.retention = Retention { log_bytes: 1_000_000, ..Retention::default() };
    });
    group.start_all().await;
    let value = Raw(vec![7u8; 1000].into());
    for i in 0..90 {
        group.node(0).set(format!("k{i}"), &value).await.expect("written");
    }
    rt::sleep(Duration::from_secs(5)).await;
    assert!((0..3).all(|n| group.node(n).node().log_starts_at() == 0), "there is room");
    for i in 0..1000 {
        group.node(0).set(format!("k{i}"), &value).await.expect("written");
    }
    eventually("all are purged", || (0..3).all(|n| group.node(n).node().log_starts_at() > 90)).await;
    group.converged().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_number_was_decided_as_survives_in_a_snapshot() {
    let mut group = forgetful(5);
    group.start_all().await;
    let leader = group.leader().await;
    let away = (leader + 1) % 3;
    let third = (leader + 2) % 3;
    group.node(third).set("warm", &0).await.expect("written");
    group.power_loss(away, PowerLoss::DropAll);
    // The write is logged and its answer lost; the writer keeps the number open for its ticket.
    group.mischief(Mischief { client_double_after: Some(Duration::from_secs(5)), ..Default::default() });
    let ticket = match group.node(third).set("k", &1).timeout(Duration::from_millis(500)).await {
        Err(Error::Indeterminate { ticket }) => ticket,
        other => panic!("{other:?}"),
    };
    group.mischief(Mischief::default());
    let index = group.node(leader).node().log_ends_at();
    for i in 0..60 {
        group.node(leader).set("load", &i).await.expect("written");
    }
    purged_beyond(&group, leader, index).await;
    group.start_all().await;
    group.converged().await;
    let Ok(Outcome::Applied(revision)) = group.node(leader).resolve(&ticket).await else { panic!("it was applied") };
    // Now the one that knows it from the snapshot only leads.
    group.stop(leader).await;
    let id = group.node(away).status().id;
    group.node(third).node().transfer_to(id).await;
    rt::sleep(Duration::from_secs(1)).await;
    assert_eq!(group.node(away).resolve(&ticket).await, Ok(Outcome::Applied(revision)));
}

#[tokio::test(start_paused = true)]
async fn the_past_of_a_key_comes_with_a_snapshot() {
    let mut group = forgetful(7);
    group.start_all().await;
    let leader = group.leader().await;
    let away = (leader + 1) % 3;
    group.node(away).set("k", &0).await.expect("written");
    let index = group.node(away).node().log_ends_at();
    group.stop(away).await;
    for i in 1..60 {
        group.node(leader).set("k", &i).await.expect("written");
    }
    group.node(leader).delete("k").await.expect("deleted");
    purged_beyond(&group, leader, index).await;
    group.start_all().await;
    group.converged().await;
    let told = group.node(leader).explain::<i32>("k").await.expect("read");
    assert_eq!((told.len(), told[60].member.as_ref()), (61, Some(&group.peers[away].name)));
    assert_eq!(group.node(away).explain::<i32>("k").stale().await, Ok(told));
}

#[tokio::test(start_paused = true)]
async fn a_power_failure_while_a_snapshot_comes_in_leaves_the_old_state_or_the_new_one() {
    for seed in seeds(1..5) {
        let mut group = forgetful(seed);
        group.start_all().await;
        let leader = group.leader().await;
        let away = (leader + 1) % 3;
        group.node(away).set("before", &0).await.expect("written");
        let index = group.node(away).node().log_ends_at();
        group.stop(away).await;
        for i in 0..50 {
            group.node(leader).set(format!("k{}", i % 7), &i).await.expect("written");
        }
        purged_beyond(&group, leader, index).await;
        group.disks[away].die_at(20 + seed * 37);
        if let Ok(node) = group.builder(away).await {
            group.adopt(away, node);
        }
        rt::sleep(Duration::from_millis(900)).await;
        group.power_loss(away, [PowerLoss::DropAll, PowerLoss::KeepAll, PowerLoss::Subset(50)][seed as usize % 3]);
        group.start_all().await;
        group.converged().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_lost_answer_delays_a_snapshot_by_seconds_and_not_by_minutes() {
    // Of its beginning, of its only chunk, of its end.
    for lost in 0..3 {
        let mut group = forgetful(1);
        group.start_all().await;
        let leader = group.leader().await;
        let away = (leader + 1) % 3;
        group.node(away).set("before", &0).await.expect("written");
        let index = group.node(away).node().log_ends_at();
        group.stop(away).await;
        for i in 0..50 {
            group.node(leader).set("k", &i).await.expect("written");
        }
        purged_beyond(&group, leader, index).await;
        group.mischief(Mischief { lose_snapshot_reply: Some(lost), ..Default::default() });
        let started = rt::Instant::now();
        let node = group.start(away).await;
        let written = group.node(leader).set("after", &1).await.expect("written");
        let seen = node.get::<i32>("after").at_least(written.revision).timeout(Duration::from_secs(60)).await;
        assert!(matches!(seen, Ok(Some(_))), "answer {lost}: {seen:?}");
        let (least, most) = if lost == 2 { (9, 30) } else { (2, 4) };
        let took = started.elapsed();
        assert!(took >= Duration::from_secs(least), "answer {lost} was not lost: {took:?}");
        assert!(took < Duration::from_secs(most), "answer {lost}: {took:?}");
    }
}
