//! Latches of three nodes on a paused clock.

use super::*;
use crate::api::testing::{Trio, ms};
use crate::recipes::testing::{claims, standing};
use crate::rt;

fn latch(cluster: &Cluster) -> Latch {
    cluster.latch("l", 3)
}

fn waiting(cluster: &Cluster) -> rt::Task<Result<(), Error>> {
    let latch = latch(cluster);
    rt::spawn("waiting", async move { latch.wait().await })
}

#[tokio::test(start_paused = true)]
async fn a_latch_opens_with_the_last_event_for_all_who_wait_and_stays_open() {
    let trio = Trio::start().await;
    let waiters: Vec<_> = trio.nodes.iter().map(waiting).collect();
    assert_eq!(latch(&trio.nodes[0]).left().await, Ok(3));
    for (place, left) in [(0, 2), (1, 1)] {
        assert_eq!(latch(&trio.nodes[place]).count_down().await, Ok(left));
        assert_eq!(latch(&trio.nodes[2]).left().await, Ok(left));
        rt::sleep(ms(500)).await;
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()), "open with {left} left");
    }
    assert_eq!(latch(&trio.nodes[2]).count_down().await, Ok(0));
    for waiter in waiters {
        assert_eq!(rt::timeout(ms(500), waiter).await.expect("closed").expect("no panic"), Ok(()));
    }
    let revision = trio.nodes[2].status().revision;
    assert_eq!(latch(&trio.nodes[2]).count_down().await, Ok(0));
    assert_eq!((latch(&trio.nodes[2]).wait().await, trio.nodes[2].status().revision), (Ok(()), revision));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn events_at_once_and_through_a_change_of_leader_count_once_each() {
    let trio = Trio::start().await;
    let big = |place: usize| trio.nodes[place].latch("big", 40);
    let (leader, follower, other) = trio.roles().await;
    trio.network.delay(ms(3));
    let events = (0..39).map(|nth| {
        let latch = big([follower, other][nth % 2]).timeout(ms(60_000));
        rt::spawn("event", async move { latch.count_down().await })
    });
    let events: Vec<_> = events.collect();
    rt::sleep(ms(40)).await;
    trio.isolate(leader);
    let mut left = Vec::new();
    for event in events {
        left.push(event.await.expect("no panic").expect("counted"));
    }
    left.sort_unstable();
    assert_eq!(left, (1..=39).collect::<Vec<_>>(), "each event leaves another number");
    trio.network.heal();
    assert_eq!(big(leader).left().await, Ok(1));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_latch_that_was_removed_is_closed_again_for_whoever_comes_then_and_takes_another_count() {
    let trio = Trio::start().await;
    for _ in 0..3 {
        latch(&trio.nodes[0]).count_down().await.expect("counted");
    }
    let other = trio.nodes[1].latch("l", 2);
    let what = "count of the latch";
    let mismatch = Err(Error::Mismatch { what, stored: 3, given: 2 });
    assert_eq!((other.count_down().await, other.left().await), (mismatch.clone(), mismatch));
    assert_eq!(other.wait().await, Err(Error::Mismatch { what, stored: 3, given: 2 }));
    let leader = trio.leader().await;
    trio.network.delay(ms(5));
    latch(&trio.nodes[leader]).remove().await.expect("removed");
    for node in trio.nodes.iter().cycle().skip(leader + 1).take(3) {
        // Also on a node that has not heard of the removal yet.
        let late = node.latch("l", 2).timeout(ms(2000)).wait().await;
        assert!(matches!(late, Err(Error::NotApplied { why: Obstacle::Waiting, .. })), "{late:?}");
    }
    trio.network.delay(ms(0));
    assert_eq!(other.count_down().await, Ok(1));
    latch(&trio.nodes[2]).remove().await.expect("removed");
    standing(&trio.nodes[2], 0).await;
    let none = trio.nodes[0].latch("l", 0).count_down().await;
    assert!(matches!(none, Err(Error::Invalid { what: "count", .. })), "{none:?}");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn waiting_writes_nothing_and_ends_with_its_node() {
    let trio = Trio::start().await;
    let waiter = waiting(&trio.nodes[0]);
    drop(rt::timeout(ms(100), latch(&trio.nodes[1]).wait()).await);
    rt::sleep(ms(500)).await;
    assert_eq!(claims(&trio.nodes[2]), []);
    trio.nodes[0].shutdown().await.expect("stops");
    let stopped = rt::timeout(ms(2000), waiter).await.expect("left waiting").expect("no panic");
    assert!(matches!(stopped, Err(Error::Stopped { .. })), "{stopped:?}");
    trio.stop().await;
}
