//! Bugs of leases, sessions, locks and those who wait for them.

use std::cell::{Cell, RefCell};
use std::future::IntoFuture;
use std::time::Duration;

use crate::cluster_tests::snapshot::{forgetful, purged_beyond};
use crate::cluster_tests::support::{Group, Mischief, eventually};
use crate::rt::{self, Instant};
use crate::storage::fault_disk::PowerLoss;

const SECOND: Duration = Duration::from_secs(1);

async fn is_there(group: &Group, n: usize, key: &str) -> bool {
    group.node(n).get::<u64>(key).await.expect("read").is_some()
}

/// Has a follower miss what `meanwhile` does, so that it is sent a snapshot in its place.
async fn behind_a_snapshot<F: Future<Output = ()>>(group: &Group, away: usize, meanwhile: F) {
    let leader = group.leader().await;
    let index = group.node(away).node().log_ends_at();
    group.network.isolate(group.peers[away].name.clone());
    meanwhile.await;
    for i in 0..60u64 {
        group.node(leader).set("load", &i).await.expect("written by the two others");
    }
    purged_beyond(group, leader, index).await;
    group.network.heal();
    group.converged().await;
    assert!(group.node(away).node().log_starts_at() > index, "it was sent no snapshot");
}

/// Sessions that a ZooKeeper server learnt of from a snapshot did not fit the nodes that hung on them, which then stayed for
/// ever or went early (ZOOKEEPER-3144); an etcd member takes its leases over from a snapshot too.
///
/// Here: a node that has a lease from a snapshot only, and then leads, renews it, and ends it when its time is up.
#[tokio::test(start_paused = true)]
async fn leases_that_came_with_a_snapshot_live_and_end_under_the_node_that_got_it() {
    let mut group = forgetful(1);
    group.start_all().await;
    let leader = group.leader().await;
    let (away, third) = ((leader + 1) % 3, (leader + 2) % 3);
    for n in 0..3 {
        group.node(n).set("warm", &0u64).await.expect("written");
    }
    let ttl = SECOND * 10;
    let (group, sessions) = (&group, RefCell::new(None));
    behind_a_snapshot(group, away, async {
        let session = group.node(third).session().ttl(ttl).await.expect("opens");
        group.node(third).set("held", &1u64).session(&session).await.expect("written");
        group.node(third).set("left", &1u64).ttl(ttl).await.expect("written");
        sessions.replace(Some(session));
    })
    .await;
    let id = group.node(away).status().id;
    group.node(leader).node().transfer_to(id).await;
    eventually("it leads", || group.node(away).status().is_leader).await;
    let began = Instant::now();
    assert!(is_there(group, third, "left").await, "it has a full time to live again");
    while is_there(group, third, "left").await {
        assert!(began.elapsed() < ttl + SECOND, "it should have ended");
        rt::sleep(SECOND / 10).await;
    }
    assert!(began.elapsed() > ttl - SECOND / 2, "it ended after {:?}", began.elapsed());
    rt::sleep(ttl * 3).await;
    assert!(group.node(away).status().is_leader && is_there(group, third, "held").await);
}

/// After a restart of a whole ZooKeeper ensemble, ephemeral nodes of sessions that nobody renewed stayed (ZOOKEEPER-1367).
///
/// Here: the leases are in the log; whoever leads after the restart ends those that are not renewed, and others get the lock.
#[tokio::test(start_paused = true)]
async fn leases_whose_holders_went_with_all_the_power_are_ended_in_time() {
    for lost in [PowerLoss::DropAll, PowerLoss::KeepAll] {
        let mut group = Group::started(3, 3).await;
        let ttl = SECOND * 2;
        let guard = group.node(0).lock("l").ttl(ttl).await.expect("free");
        group.node(1).set("left", &1u64).ttl(ttl).await.expect("written");
        let fence = guard.fence();
        for n in 0..3 {
            group.power_loss(n, lost);
        }
        rt::sleep(SECOND * 10).await;
        group.start_all().await;
        let back = Instant::now();
        assert!(is_there(&group, 2, "left").await, "no time passed for it while there was no leader");
        let next = group.node(1).lock("l").ttl(ttl).timeout(SECOND * 30).await.expect("granted in the end");
        assert!(back.elapsed() < ttl + SECOND, "granted after {:?}", back.elapsed());
        assert!(next.fence() > fence);
        rt::sleep(SECOND / 10).await;
        assert!(!is_there(&group, 2, "left").await, "left behind");
    }
}

/// Who waits for a lock watches the one before, and must not miss its going: Curator waited for ever for a node that went
/// between the look and the wait (CURATOR-527), etcd's elections failed and left their key when the revision to watch from was
/// compacted (#21128), Khepri's projections never heard of what a snapshot brought (#259).
///
/// Here: a waiter whose node learns of the release from a snapshot, and of no single change, is granted the lock.
#[tokio::test(start_paused = true)]
async fn a_waiter_whose_node_was_sent_a_snapshot_in_place_of_the_release_gets_the_lock() {
    let mut group = forgetful(2);
    group.start_all().await;
    let leader = group.leader().await;
    let away = (leader + 1) % 3;
    let ttl = SECOND * 60;
    let held = group.node(leader).lock("l").ttl(ttl).await.expect("free");
    let fence = held.fence();
    let waiting = group.node(away).lock("l").ttl(ttl).timeout(ttl * 2).into_future();
    let waiting = rt::spawn("waiter", waiting);
    rt::sleep(SECOND).await;
    behind_a_snapshot(&group, away, async { held.release().await.expect("released") }).await;
    let back = Instant::now();
    let guard = waiting.await.expect("no panic").expect("granted");
    assert!(back.elapsed() < SECOND * 5, "granted {:?} after the snapshot", back.elapsed());
    assert!(guard.fence() > fence);
}

/// etcd told any number for what a lease had left while its leader changed (#17642).
///
/// Here: a key that is there and hangs on a lease has some time left, and no more than it was given, whoever leads and however
/// often it is put on another lease meanwhile.
#[tokio::test(start_paused = true)]
async fn what_a_key_has_left_is_told_truly_while_it_is_renewed_and_leaders_change() {
    let group = Group::started(3, 21).await;
    let ttl = SECOND * 3;
    group.node(0).set("k", &0u64).ttl(ttl).await.expect("written");
    group.mischief(Mischief { delay_ms_max: 10, ..Default::default() });
    let (over, asked) = (Cell::new(false), Cell::new(0));
    let renews = async {
        for i in 1..60usize {
            group.node(i % 3).set("k", &(i as u64)).ttl(ttl).await.expect("written");
            if i % 20 == 0 {
                let (leader, heir) = (group.leader().await, group.node(i / 20).status().id);
                group.node(leader).node().transfer_to(heir).await;
            }
        }
        over.set(true);
    };
    let asks = |n: usize| {
        let (node, over, asked) = (group.node(n), &over, &asked);
        async move {
            while !over.get() {
                let left = node.remaining("k").await.expect("asked");
                assert!(left.is_some_and(|left| left <= ttl && !left.is_zero()), "{left:?}");
                asked.set(asked.get() + 1);
            }
        }
    };
    futures::join!(renews, asks(0), asks(1), asks(2));
    assert!(asked.get() > 30, "asked {} times only", asked.get());
}
