//! Who may say that a lease lives. L5 and L6 are properties of leases.

use super::*;
use crate::api::keys::stored_key;
use crate::api::testing::{Trio, until};

const TTL_MS: u64 = 1500;
const TTL: Duration = Duration::from_millis(TTL_MS);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

async fn granted(node: &Arc<Node>) -> LeaseId {
    match node.mutate(Command::LeaseGrant { ttl_ms: TTL_MS }, ms(5000)).await {
        Ok(Response::Granted { lease, .. }) => lease,
        other => panic!("{other:?}"),
    }
}

fn last_index(node: &Node) -> u64 {
    node.log.bounds().1.map_or(0, |last| last.index)
}

/// L1. The schedule: an expiry waits behind a hung disk, the node does not count as the leader for a while, the disk answers
/// again, the lease is renewed, and then the expiry is committed, under the very leadership that issued it.
#[tokio::test(start_paused = true)]
async fn a_leadership_that_goes_on_after_a_pause_renews_nothing_that_it_was_ending() {
    let (leases, lease) = (Leases::default(), LeaseId::new(5));
    let leader = |term| LeaderId { term, node: crate::types::NodeId::new(1) };
    leases.load(vec![(lease, TTL_MS)]);
    leases.reign(Some(leader(1)));
    rt::sleep(TTL).await;
    assert_eq!(leases.due().0, [lease]);
    leases.reign(None);
    leases.reign(Some(leader(1)));
    assert_eq!(leases.renew(lease, leader(1)), None);
    leases.reign(None);
    leases.reign(Some(leader(2)));
    assert_eq!(leases.renew(lease, leader(2)), Some(KeepAlive::Renewed { ttl_ms: TTL_MS }));
}

/// L6: a leader that is cut off does not know whether it still is one.
#[tokio::test(start_paused = true)]
async fn a_leader_without_a_quorum_acknowledges_no_renewal() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let node = trio.nodes[leader].node();
    let lease = granted(node).await;
    assert_eq!(node.keep_alive(lease, ms(500)).await, Ok(Some(TTL)));
    trio.isolate(leader);
    let asked = node.keep_alive(lease, TTL * 3).await;
    assert!(matches!(asked, Err(Error::NotApplied { .. })), "{asked:?}");
    let successor = trio.nodes[follower].node();
    until("expired elsewhere", || successor.leases.ttl_ms(lease).is_none()).await;
    assert!(node.leases.ttl_ms(lease).is_some(), "the minority ends no lease either");
    trio.network.heal();
    assert_eq!(node.keep_alive(lease, ms(3000)).await, Ok(None));
    trio.stop().await;
}

/// L1, L5. The schedule of the design: an expiry reaches one follower, its leader is cut off, and that follower leads next.
/// Whatever it says of the lease must hold once the entry, which is now its own to commit, is applied; and its disk is slow, so
/// that it is confirmed as the leader long before that.
#[tokio::test(start_paused = true)]
async fn a_new_leader_acknowledges_no_renewal_before_it_has_applied_its_predecessors_expiry() {
    let trio = Trio::start().await;
    let (old, new, other) = trio.roles().await;
    let names = crate::api::testing::NAMES;
    let node = trio.nodes[new].node();
    trio.network.delay(ms(10));
    let lease = granted(trio.nodes[old].node()).await;
    trio.nodes[old].set("k", &1).lease(lease).await.expect("sets");
    rt::sleep(TTL - ms(150)).await;
    // The old leader still speaks to the new one, and hears nobody.
    trio.network.cut(names[new], names[old]);
    trio.network.cut(names[other], names[old]);
    trio.network.cut(names[old], names[other]);
    let before = last_index(node);
    until("the expiry has reached the next leader", || last_index(node) > before).await;
    assert!(node.leases.ttl_ms(lease).is_some(), "it is not committed");
    trio.isolate(old);
    trio.slow_disks(ms(30));
    let mut renewed = Vec::new();
    let gone_at = loop {
        match rt::timeout(ms(500), node.serve_keep_alive(vec![lease])).await {
            Ok(Reply::KeptAlive { results }) if results == [KeepAlive::NotFound] => break rt::boot_now(),
            Ok(Reply::KeptAlive { results }) => renewed.push((rt::boot_now(), results)),
            _ => {}
        }
        rt::sleep(ms(1)).await;
    };
    assert!(renewed.is_empty(), "renewed {renewed:?}, gone {gone_at:?}");
    assert!(node.status().leads, "it was this node that had to know");
    trio.stop().await;
}

/// L1: what only a deposed leader has in its log never happened.
#[tokio::test(start_paused = true)]
async fn an_expiry_that_reached_nobody_is_forgotten_and_the_lease_lives_on() {
    let trio = Trio::start().await;
    let (old, new, other) = trio.roles().await;
    let lease = granted(trio.nodes[old].node()).await;
    trio.nodes[old].set("k", &1).lease(lease).await.expect("sets");
    let before = last_index(trio.nodes[old].node());
    rt::sleep(TTL - ms(100)).await;
    trio.isolate(old);
    let node = trio.nodes[new].node().clone();
    let renew = async || {
        let renewed = node.keep_alive(lease, ms(1000)).await;
        assert!(matches!(renewed, Ok(Some(_)) | Err(Error::NotApplied { .. })), "{renewed:?}");
        rt::sleep(ms(100)).await;
    };
    while last_index(trio.nodes[old].node()) == before {
        renew().await;
    }
    trio.network.heal();
    let key = stored_key("k").expect("valid");
    let end = Instant::now() + TTL * 3;
    while Instant::now() < end {
        renew().await;
        for place in [old, new, other] {
            let found = trio.nodes[place].node().state().view().get(&key).expect("readable");
            assert!(found.is_some(), "gone on node {place}");
        }
    }
    trio.stop().await;
}

fn leader(term: u64) -> LeaderId {
    LeaderId { term, node: crate::types::NodeId::new(7) }
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_end_was_proposed_is_not_renewed_by_that_leader_and_is_by_the_next() {
    let leases = Leases::default();
    let lease = LeaseId::new(1);
    leases.load(vec![(lease, TTL_MS)]);
    leases.reign(Some(leader(1)));
    assert_eq!(leases.renew(lease, leader(1)), Some(KeepAlive::Renewed { ttl_ms: TTL_MS }));
    rt::sleep(TTL).await;
    assert_eq!(leases.due().0, [lease]);
    assert_eq!(leases.renew(lease, leader(1)), None);
    // Whatever comes between, until it is known what became of the entry.
    leases.not_ended(lease, leader(1));
    leases.load(vec![(lease, TTL_MS)]);
    assert_eq!(leases.renew(lease, leader(1)), None);
    leases.reign(Some(leader(2)));
    assert_eq!(leases.renew(lease, leader(1)), None, "the old reign is over");
    assert_eq!(leases.renew(lease, leader(2)), Some(KeepAlive::Renewed { ttl_ms: TTL_MS }));
    leases.applied([LeaseChange::Ended { lease }].into_iter());
    assert_eq!(leases.renew(lease, leader(2)), Some(KeepAlive::NotFound));
}
