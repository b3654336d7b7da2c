//! Counters of three nodes on a paused clock.

use std::collections::BTreeSet;

use super::*;
use crate::api::cluster::Outcome;
use crate::api::testing::{Trio, ms};
use crate::recipes::testing::standing;
use crate::rt;

#[tokio::test(start_paused = true)]
async fn a_sum_is_the_same_on_every_node_and_may_be_below_zero() {
    let trio = Trio::start().await;
    let counter = |place: usize| trio.nodes[place].counter("c");
    assert_eq!(counter(0).get().await, Ok(0));
    for (place, delta, sum) in [(0, 5, 5), (1, -12, -7), (2, 0, -7), (2, i64::MAX, i64::MAX - 7)] {
        assert_eq!(counter(place).add(delta).await, Ok(sum));
        for place in 0..3 {
            assert_eq!(counter(place).get().await, Ok(sum));
        }
    }
    let over = counter(1).add(8).await;
    assert!(matches!(over, Err(Error::Invalid { what: "counter", .. })), "{over:?}");
    assert_eq!(counter(0).get().await, Ok(i64::MAX - 7));
    counter(1).remove().await.expect("removed");
    assert_eq!(counter(2).add(1).await, Ok(1));
    counter(2).remove().await.expect("removed");
    standing(&trio.nodes[2], 0).await;
    let named = trio.nodes[0].counter("").get().await;
    assert!(matches!(named, Err(Error::Invalid { what: "counter name", .. })), "{named:?}");
    trio.stop().await;
}

/// What was answered is in the sum once; what was not answered is settled by its ticket.
#[tokio::test(start_paused = true)]
async fn every_addition_counts_once_through_contention_and_changes_of_leader() {
    let trio = Trio::start().await;
    trio.network.delay(ms(2));
    let adding = (0..30).map(|nth| {
        let counter = trio.nodes[nth % 3].counter("c").timeout(ms(1500));
        rt::spawn("adding", async move {
            let mut answers = Vec::new();
            for _ in 0..4 {
                answers.push(counter.add(1).await);
                rt::sleep(ms(50)).await;
            }
            answers
        })
    });
    let adding: Vec<_> = adding.collect();
    for _ in 0..3 {
        rt::sleep(ms(150)).await;
        let leader = trio.leader().await;
        trio.isolate(leader);
        rt::sleep(ms(1200)).await;
        trio.network.heal();
    }
    let (mut sums, mut later, mut unknown) = (BTreeSet::new(), 0, 0);
    for task in adding {
        for answer in task.await.expect("no panic") {
            match answer {
                Ok(sum) => assert!(sums.insert(sum), "two additions made {sum}"),
                Err(Error::Indeterminate { ticket }) => {
                    unknown += 1;
                    match trio.nodes[0].resolve(&ticket).await.expect("answered") {
                        Outcome::Applied(_) => later += 1,
                        Outcome::NoEffect | Outcome::Never => {}
                        Outcome::Unknowable => panic!("{ticket} is forgotten"),
                    }
                }
                Err(Error::NotApplied { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    let sum = trio.nodes[1].counter("c").get().await.expect("read");
    assert_eq!(sum, sums.len() as i64 + later, "{} answered, {later} of {unknown} unknown were applied", sums.len());
    assert!(sums.len() > 30, "hardly anything was counted: {}", sums.len());
    trio.stop().await;
}
