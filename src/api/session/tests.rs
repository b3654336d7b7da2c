//! Sessions of three nodes on a paused clock. L1 to L8 are the properties of leases.

use std::collections::BTreeSet;

use super::*;
use crate::api::keys::{prefix, stored_key};
use crate::api::testing::{Dice, Trio, eventually, ms, until};
use crate::api::txn::put;
use crate::command::KeyRange;
use crate::types::Revision;

const TTL: Duration = Duration::from_millis(1500);

async fn open(cluster: &Cluster) -> Session {
    cluster.session().ttl(TTL).name("s").await.expect("opens")
}

/// The leases of the state as this node has applied it.
fn leases(cluster: &Cluster) -> BTreeSet<LeaseId> {
    let leases = cluster.node().state().view().leases().expect("readable");
    leases.into_iter().map(|(lease, _)| lease).collect()
}

fn has(cluster: &Cluster, key: &str) -> bool {
    cluster.node().state().view().get(&stored_key(key).expect("valid")).expect("readable").is_some()
}

/// L1, L8.
#[tokio::test(start_paused = true)]
async fn a_session_believes_in_its_lease_only_from_when_the_acknowledged_renewal_was_sent() {
    let trio = Trio::start().await;
    let (_, follower, _) = trio.roles().await;
    trio.network.delay(ms(10));
    let before = rt::boot_now();
    let session = open(&trio.nodes[follower]).await;
    let (asked, valid) = (rt::boot_now() - before, session.valid_for());
    // The client record is opened first; the grant itself travels for two delays and is replicated in two more.
    assert!(asked >= ms(40), "opening took {asked:?}");
    assert!(valid <= TTL - TTL / 100 - DRIFT_FIXED - ms(40), "{valid:?} after {asked:?}");
    let second = rt::boot_now();
    let session = open(&trio.nodes[follower]).await;
    let asked = rt::boot_now() - second;
    assert_eq!(session.valid_for(), TTL - TTL / 100 - DRIFT_FIXED - asked);
    trio.stop().await;
}

/// L1, L2, L3: whatever happens to leaders, no lease ends before the last acknowledged renewal was sent plus its time to
/// live, and each ends at most one time to live later per change of leader.
#[tokio::test(start_paused = true)]
async fn a_lease_ends_neither_before_its_time_nor_long_after_through_changes_of_leader() {
    for seed in [1, 2, 3, 4, 5, 6] {
        let (mut dice, trio) = (Dice(seed), Trio::start().await);
        let holder = &trio.nodes[dice.roll(3) as usize];
        let node = holder.node().clone();
        let mut sent = rt::boot_now();
        let lease = granted(&node).await;
        let term = |trio: &Trio| trio.nodes.iter().map(|node| node.status().term).max().expect("three");
        let (mut acked, mut before) = (rt::boot_now(), term(&trio));
        holder.set("k", &seed).lease(lease).await.expect("sets");
        let isolations = 2 + dice.roll(3);
        let mut changes = Vec::new();
        for _ in 0..isolations {
            let leader = trio.leader().await;
            if dice.roll(3) > 0 {
                trio.isolate(leader);
                changes.push(leader);
            }
            for _ in 0..1 + dice.roll(6) {
                rt::sleep(ms(dice.roll(400))).await;
                let at = rt::boot_now();
                if let Ok(Some(_)) = node.keep_alive(lease, ms(250)).await {
                    (sent, acked, before) = (at, rt::boot_now(), term(&trio));
                }
            }
            trio.network.heal();
        }
        // Watched on all nodes, from before it can be gone on any.
        let mut gone = None;
        until("the lease's end", || {
            let ended = trio.nodes.iter().any(|node| has(node, "k")).then_some(()).is_none();
            if ended || !trio.nodes.iter().all(|node| has(node, "k")) {
                gone.get_or_insert(rt::boot_now());
            }
            ended
        })
        .await;
        let (gone, elections) = (gone.expect("ended"), u32::try_from(term(&trio) - before).expect("few"));
        let told = format!("seed {seed}: sent {sent:?}, acked {acked:?}, gone {gone:?}, isolated {changes:?}");
        assert!(gone >= sent + TTL - TTL / 100, "too early: {told}");
        // The change of leader that the last isolation caused may still have been under way when it was renewed last.
        assert!(gone <= acked + TTL * (elections + 2) + ms(1000), "too late: {told}, {elections} elections since");
        assert_eq!(node.keep_alive(lease, ms(2000)).await, Ok(None), "risen again: {told}");
        trio.stop().await;
    }
}

async fn granted(node: &Arc<Node>) -> LeaseId {
    match node.mutate(Command::LeaseGrant { ttl_ms: TTL.as_millis() as u64 }, ms(5000)).await {
        Ok(Response::Granted { lease, .. }) => lease,
        other => panic!("{other:?}"),
    }
}

/// L4.
#[tokio::test(start_paused = true)]
async fn the_keys_of_a_session_go_at_one_revision_when_it_expires_and_when_it_is_closed() {
    let trio = Trio::start().await;
    let (_, follower, other) = trio.roles().await;
    for close in [true, false] {
        let holder = &trio.nodes[follower];
        let session = open(holder).await;
        holder.set("s/a", &1).session(&session).await.expect("sets");
        holder.set("s/b", &1).session(&session).if_absent().await.expect("sets");
        holder.set("s/c", &1).session(&session).prev().await.expect("sets");
        holder.transaction().then(put("s/d", &1).session(&session)).await.expect("sets");
        let before = trio.nodes[other].status().revision;
        match close {
            true => session.close().await.expect("closes"),
            false => trio.isolate(follower),
        }
        let keys = || trio.nodes[other].range::<i32>(prefix("s/")).stale().into_future();
        eventually("all keys are gone", || async { keys().await.expect("readable").is_empty() }).await;
        let view = trio.nodes[other].node().state().view();
        let (deleted, _) = view.changes(before.next()..=view.revision, 1000).expect("kept");
        let deleted: Vec<(Revision, bool)> = deleted
            .iter()
            .filter(|change| KeyRange::prefix(stored_key("s/").expect("valid")).contains(&change.key))
            .filter(|change| change.kind != crate::command::ChangeKind::Put)
            .map(|change| (change.id.revision, change.kind == crate::command::ChangeKind::Expired))
            .collect();
        assert_eq!(deleted.len(), 4, "close: {close}: {deleted:?}");
        assert!(deleted.iter().all(|at| *at == (deleted[0].0, !close)), "close: {close}: {deleted:?}");
        trio.network.heal();
        trio.leader().await;
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_is_renewed_through_a_change_of_leader_without_becoming_unsure() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let session = open(&trio.nodes[follower]).await;
    let mut lost = session.lost();
    for _ in 0..3 {
        rt::sleep(TTL / 4).await;
        trio.isolate(leader);
        let end = rt::boot_now() + TTL * 3;
        while rt::boot_now() < end {
            assert!(!session.is_unsure(), "unsure although its node reaches a quorum");
            rt::sleep(ms(5)).await;
        }
        trio.network.heal();
    }
    assert!(futures::poll!(&mut lost).is_pending());
    assert!(leases(&trio.nodes[follower]).contains(&session.lease()));
    trio.stop().await;
}

/// A leader that is cut off cannot renew; its successor gives the lease a full time, within which it comes back.
#[tokio::test(start_paused = true)]
async fn an_unsure_session_recovers_if_its_lease_still_exists() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let session = open(&trio.nodes[leader]).await;
    trio.nodes[leader].set("k", &1).session(&session).await.expect("sets");
    let (cut, lapses) = (rt::boot_now(), session.line.sure().await.expect("just opened"));
    trio.isolate(leader);
    until("unsure", || session.is_unsure()).await;
    assert!(rt::boot_now() - cut <= TTL, "unsure {:?} after the cut", rt::boot_now() - cut);
    assert_eq!(session.valid_for(), Duration::ZERO);
    let mut lost = session.lost();
    assert!(futures::poll!(&mut lost).is_pending(), "unsure is not lost");
    assert!(has(&trio.nodes[follower], "k"), "the successor counts from its own beginning");
    trio.network.heal();
    until("sure again", || !session.is_unsure()).await;
    assert!(session.valid_for() > Duration::ZERO && futures::poll!(&mut lost).is_pending());
    assert_eq!(session.line.sure().await, Ok(lapses + 1), "whoever relied on it must be able to tell");
    rt::sleep(TTL * 3).await;
    assert!(has(&trio.nodes[follower], "k") && !session.is_unsure());
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_is_lost_when_the_cluster_says_that_its_lease_is_gone_and_not_before() {
    let trio = Trio::start().await;
    let (_, follower, other) = trio.roles().await;
    let session = open(&trio.nodes[follower]).await;
    let (mut lost, mut another) = (session.lost(), session.lost());
    trio.isolate(follower);
    until("expired", || !leases(&trio.nodes[other]).contains(&session.lease())).await;
    rt::sleep(TTL * 2).await;
    assert!(session.is_unsure() && futures::poll!(&mut lost).is_pending(), "it has not been told");
    trio.network.heal();
    assert_eq!((lost.await, futures::poll!(&mut another)), (LostReason::Expired, Poll::Ready(LostReason::Expired)));
    assert!(!session.is_unsure(), "lost is not unsure");
    let refused = trio.nodes[other].set("k", &1).session(&session).await;
    assert_eq!(refused, Err(Error::LeaseNotFound { lease: session.lease() }));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_when_it_is_dropped_and_with_its_node() {
    let trio = Trio::start().await;
    let (_, follower, other) = trio.roles().await;
    let (dropped, kept) = (open(&trio.nodes[follower]).await, open(&trio.nodes[follower]).await);
    let (lease, lost) = (dropped.lease(), dropped.lost());
    drop(dropped);
    assert_eq!(lost.await, LostReason::Closed);
    let asked = rt::boot_now();
    until("revoked", || !leases(&trio.nodes[other]).contains(&lease)).await;
    assert!(rt::boot_now() - asked < TTL / 2, "it was left to expire");
    assert!(leases(&trio.nodes[other]).contains(&kept.lease()));
    trio.nodes[follower].shutdown().await.expect("stops");
    assert_eq!(rt::timeout(TTL, kept.lost()).await, Ok(LostReason::Stopped));
    until("expired", || !leases(&trio.nodes[other]).contains(&kept.lease())).await;
    trio.stop().await;
}

/// Dropped after each number of milliseconds that opening may take.
#[tokio::test(start_paused = true)]
async fn opening_a_session_and_going_away_leaves_no_lease() {
    let trio = Trio::start().await;
    let (_, follower, _) = trio.roles().await;
    drop(open(&trio.nodes[follower]).await);
    let cluster = &trio.nodes[follower];
    rt::sleep(ms(500)).await;
    let before = leases(cluster);
    trio.network.delay(ms(5));
    for after in 0..30 {
        let opening = rt::timeout(ms(after), cluster.session().ttl(TTL).into_future()).await;
        drop(opening);
        rt::sleep(ms(200)).await;
        assert_eq!(leases(cluster), before, "dropped after {after} ms");
    }
    trio.stop().await;
}

/// L8: the deadline never comes nearer than the pause between renewals and their round trip take it.
#[tokio::test(start_paused = true)]
async fn a_session_is_renewed_as_often_as_it_was_asked_to_be() {
    let trio = Trio::start().await;
    let (_, follower, _) = trio.roles().await;
    for (refresh, stays_above) in [(ms(100), TTL - ms(200)), (TTL / 2, TTL / 3)] {
        let session = trio.nodes[follower].session().ttl(TTL).refresh(refresh).await.expect("opens");
        let mut shortest = TTL;
        for _ in 0..600 {
            rt::sleep(ms(5)).await;
            shortest = shortest.min(session.valid_for());
        }
        assert!(shortest > stays_above, "renewed every {refresh:?}, valid for {shortest:?}");
        assert!(shortest < TTL - refresh, "renewed more often than every {refresh:?}: {shortest:?}");
    }
    for refresh in [Duration::ZERO, ms(9), TTL / 2 + ms(1)] {
        let refused = trio.nodes[0].session().ttl(TTL).refresh(refresh).await.map(|session| session.lease());
        assert!(matches!(&refused, Err(Error::Invalid { what: "refresh", .. })), "{refresh:?}: {refused:?}");
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_out_of_range_is_refused_before_anything_is_sent() {
    let trio = Trio::start().await;
    for (ttl, name, what) in [
        (ms(99), "", "ttl"),
        (Duration::ZERO, "", "ttl"),
        (Duration::MAX, "", "ttl"),
        (TTL, "x".repeat(SESSION_NAME_BYTES_MAX + 1).as_str(), "session name"),
    ] {
        let opened = trio.nodes[0].session().ttl(ttl).name(name).await.map(|session| session.lease());
        assert!(matches!(&opened, Err(Error::Invalid { what: found, .. }) if *found == what), "{ttl:?}: {opened:?}");
    }
    trio.stop().await;
}

#[test]
fn a_standing_counts_each_lapse_once_whenever_it_is_noticed_and_is_lost_for_good() {
    let standing = Standing { until: ms(100), lapses: 0, lapsed: false, lost: None };
    let (sender, _) = watch::channel(standing);
    let line = Lifeline { lease: LeaseId::new(1), ttl: TTL, refresh: TTL / 3, name: String::new(), standing: sender };
    assert_eq!(line.standing().sure(ms(99)), Some(0));
    assert_eq!(line.standing().sure(ms(100)), None);
    for now in [100, 100, 150] {
        line.standing.send_if_modified(|standing| standing.look_at_clock(ms(now)));
    }
    assert_eq!((line.standing().lapses, line.standing().sure(ms(150))), (1, None));
    // The answer to a renewal that was sent long ago: the deadline it sets has passed as well, or is the present one.
    line.renewed(Duration::ZERO);
    assert!(line.standing().until >= ms(100), "a deadline never moves back");
    assert!(line.end(LostReason::Expired) && !line.end(LostReason::Closed));
    line.renewed(rt::boot_now());
    assert_eq!((line.standing().lost, line.standing().sure(Duration::ZERO)), (Some(LostReason::Expired), None));
}
