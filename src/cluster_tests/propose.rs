//! Writes: once each, from any node, and honest about what is not known.

use std::fmt::Debug;
use std::time::Duration;

use futures::future::join_all;

use super::support::{Group, Mischief, eventually};
use crate::api::cluster::Outcome;
use crate::rt::{self, Instant};
use crate::storage::fault_disk::PowerLoss;
use crate::{Cas, Cluster, Error, Obstacle, Raw, Ticket, put, when};

async fn indeterminate(group: &Group, n: usize, key: &str) -> Ticket {
    match group.node(n).set(key, &1).timeout(Duration::from_secs(1)).await {
        Err(Error::Indeterminate { ticket }) => ticket,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_write_after_a_quiet_time_is_as_fast_as_any_other() {
    let group = Group::started(3, 1).await;
    let leader = group.leader().await;
    for quiet in [0, 1, 5, 30] {
        rt::sleep(Duration::from_secs(quiet)).await;
        let started = Instant::now();
        group.node(leader).set("k", &quiet).await.expect("written");
        assert!(started.elapsed() < Duration::from_millis(50), "after {quiet} s: {:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_of_an_isolated_leader_is_indeterminate_and_its_ticket_tells_in_the_end() {
    let group = Group::started(3, 1).await;
    let leader = group.leader().await;
    group.node(leader).set("warm", &0).await.expect("written");
    group.network.isolate(group.peers[leader].name.clone());
    let ticket = indeterminate(&group, leader, "k").await;
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    group.leader_among(&others).await;
    // Asked of the others first: it was not decided there, and from now on never will be.
    assert_eq!(group.node(others[0]).resolve(&ticket).await, Ok(Outcome::Never));
    group.network.heal();
    group.converged().await;
    assert_eq!(group.node(leader).get::<i32>("k").await.expect("read"), None);
    assert_eq!(group.node(leader).resolve(&ticket).await, Ok(Outcome::Never));
    group.node(leader).set("k", &2).await.expect("the next write has a number of its own");
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_was_lost_is_resolved_as_applied_from_another_node_and_after_a_restart_of_all() {
    let mut group = Group::started(3, 1).await;
    let follower = group.follower().await;
    group.node(follower).set("warm", &0).await.expect("written");
    // Its frame is carried out at once, and the answer comes too late.
    group.mischief(Mischief { client_double_after: Some(Duration::from_secs(5)), ..Default::default() });
    let ticket = indeterminate(&group, follower, "k").await;
    group.mischief(Mischief::default());
    let leader = group.leader().await;
    let outcome = group.node(leader).resolve(&ticket).await.expect("resolved");
    let found = group.node(leader).get::<i32>("k").await.expect("read").expect("it was applied");
    assert_eq!(outcome, Outcome::Applied(found.modified));
    for n in 0..3 {
        group.power_loss(n, PowerLoss::DropAll);
    }
    group.start_all().await;
    for n in 0..3 {
        assert_eq!(group.node(n).resolve(&ticket).await, Ok(outcome), "node {n}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_answers_the_second_copy_of_a_frame_is_no_proof_that_the_first_was_not_applied() {
    let group = Group::started(3, 1).await;
    let leader = group.leader().await;
    let [follower, heir]: [usize; 2] = (0..3).filter(|n| *n != leader).collect::<Vec<_>>().try_into().unwrap();
    group.node(follower).set("warm", &0).await.expect("written");
    let timeout = Duration::from_millis(900);
    group.mischief(Mischief { client_double_after: Some(timeout - Duration::from_millis(10)), ..Default::default() });
    let write = group.node(follower).set("k", &1).timeout(timeout).into_future();
    let handover = async {
        rt::sleep(Duration::from_millis(50)).await;
        let heir = group.node(heir).status().id;
        group.node(leader).node().transfer_to(heir).await;
    };
    let (written, ()) = futures::join!(write, handover);
    group.mischief(Mischief::default());
    let found = group.node(heir).get::<i32>("k").await.expect("read");
    assert!(found.is_some(), "the first copy was to be applied");
    assert!(!matches!(written, Err(Error::NotApplied { .. })), "told {written:?}, but it was applied");
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_a_write_is_certainly_not_applied() {
    let mut group = Group::started(3, 1).await;
    let leader = group.leader().await;
    let [left, other]: [usize; 2] = (0..3).filter(|n| *n != leader).collect::<Vec<_>>().try_into().unwrap();
    group.node(left).set("warm", &0).await.expect("written");
    group.stop(other).await;
    group.power_loss(leader, PowerLoss::DropAll);
    eventually("the leader is missed", || group.node(left).status().leader.is_none()).await;
    let refused = group.node(left).set("k", &1).timeout(Duration::from_secs(3)).await;
    assert!(matches!(refused, Err(Error::NotApplied { why: Obstacle::NoLeader, .. })), "{refused:?}");
    group.start_all().await;
    assert_eq!(group.node(left).get::<i32>("k").await.expect("read"), None);
}

#[tokio::test(start_paused = true)]
async fn a_write_through_a_follower_does_not_wait_out_a_leader_that_has_vanished() {
    for reads in [false, true] {
        let group = Group::started(3, 1).await;
        let leader = group.leader().await;
        let follower = (leader + 1) % 3;
        group.node(follower).set("warm", &0).await.expect("written");
        group.network.isolate(group.peers[leader].name.clone());
        let started = Instant::now();
        if reads {
            group.node(follower).get::<i32>("warm").await.expect("read");
        } else {
            let writes = (0..50).map(|i| group.node(follower).set(format!("k{i}"), &i).into_future());
            join_all(writes.map(Box::pin))
                .await
                .into_iter()
                .for_each(|written| assert!(written.is_ok(), "{written:?}"));
        }
        // An election takes up to 400 ms after a silence of as long; a second one may be needed.
        assert!(started.elapsed() < Duration::from_millis(1700), "reads {reads}: {:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_write_is_carried_out_all_the_same() {
    let group = Group::started(3, 1).await;
    let follower = group.follower().await;
    let write = group.node(follower).set("k", &1).into_future();
    assert!(futures::FutureExt::now_or_never(write).is_none());
    eventually("the write", || group.node(follower).status().revision.get() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn writes_that_were_dropped_leave_none_of_their_numbers_behind() {
    let group = Group::started(3, 1).await;
    let follower = group.follower().await;
    let node = group.node(follower);
    node.set("warm", &0).await.expect("written");
    let records = |node: &Cluster| node.node().state().view().leases().expect("readable").len();
    assert_eq!(records(node), 1);
    // More than may be unanswered: numbers that were given up would have made another record necessary.
    for round in 1..=50 {
        for i in 0..100 {
            let write = node.set(format!("k{i}"), &round).into_future();
            assert!(futures::FutureExt::now_or_never(write).is_none());
        }
        eventually("all are written", || node.status().revision.get() == 1 + 100 * round).await;
    }
    node.set("warm", &1).await.expect("written");
    assert_eq!(records(node), 1);
}

#[tokio::test(start_paused = true)]
async fn writes_end_each_at_its_own_deadline_be_they_under_way_or_still_in_the_line() {
    let group = Group::started(3, 1).await;
    let leader = group.leader().await;
    let node = group.node(leader);
    node.set("warm", &0).await.expect("written");
    group.network.isolate(group.peers[leader].name.clone());
    let write = |key: &str, after_ms: u64, timeout_ms: u64| {
        let (key, timeout) = (key.to_owned(), Duration::from_millis(timeout_ms));
        async move {
            rt::sleep(Duration::from_millis(after_ms)).await;
            let started = Instant::now();
            let outcome = node.set(key, &1).timeout(timeout).await;
            let late = started.elapsed().saturating_sub(timeout);
            assert!(started.elapsed() >= timeout && late <= Duration::from_millis(2), "{:?}", started.elapsed());
            outcome
        }
    };
    let first = join_all([write("a", 0, 120), write("b", 0, 60), write("c", 0, 90)]);
    let behind = join_all([write("d", 10, 80), write("e", 10, 30), write("f", 20, 50)]);
    let all = rt::timeout(Duration::from_secs(10), futures::future::join(first, behind)).await;
    let (first, behind) = all.expect("every write ends");
    for outcome in first {
        assert!(matches!(outcome, Err(Error::Indeterminate { .. })), "it may be in the log: {outcome:?}");
    }
    for outcome in behind {
        let why = "it was never proposed";
        assert!(matches!(outcome, Err(Error::NotApplied { why: Obstacle::Timeout, .. })), "{why}: {outcome:?}");
    }
    group.network.heal();
    group.converged().await;
    for never in ["d", "e", "f"] {
        assert_eq!(node.get::<i32>(never).await, Ok(None));
    }
    node.set("a", &2).await.expect("written");
}

#[tokio::test(start_paused = true)]
async fn one_caller_of_a_follower_is_not_held_up_by_many_who_are_not_answered() {
    let group = Group::started(3, 1).await;
    let (leader, node) = (group.leader().await, group.node(group.follower().await));
    node.set("warm", &0).await.expect("written");
    group.network.isolate(group.peers[leader].name.clone());
    let many =
        join_all((0..8).map(|i| node.set(format!("k{i}"), &i).timeout(Duration::from_millis(100)).into_future()));
    let one = async {
        rt::sleep(Duration::from_millis(10)).await;
        node.set("one", &1).timeout(Duration::from_millis(20)).await
    };
    let (many, one) = futures::join!(many, one);
    for outcome in many.into_iter().chain([one]) {
        assert!(matches!(outcome, Err(Error::Indeterminate { .. })), "it was sent: {outcome:?}");
    }
}

/// Has the first node carry out `writes` while it is cut off, and for long after: `busy` are to be refused, `done` written.
async fn crowd<T: Debug>(
    group: &Group,
    writes: impl Iterator<Item = impl Future<Output = Result<T, Error>>>,
    (busy, done): (usize, usize),
) {
    group.network.isolate("node-1");
    let heal = async {
        rt::sleep(Duration::from_secs(2)).await;
        group.network.heal();
    };
    let (written, ()) = futures::join!(join_all(writes), heal);
    let refused =
        written.iter().filter(|w| matches!(w, Err(Error::NotApplied { why: Obstacle::Busy { .. }, .. }))).count();
    let carried_out = written.iter().filter(|w| w.is_ok()).count();
    assert_eq!((refused, carried_out), (busy, done), "{:?}", written.iter().find(|w| w.is_err()));
}

#[tokio::test(start_paused = true)]
async fn more_writes_than_the_limit_are_refused_at_once_and_the_others_go_on() {
    let group = Group::started(3, 1).await;
    let node = group.node(0);
    node.set("warm", &0).await.expect("written");
    let write = |i: usize| node.set(format!("k{i}"), &i).timeout(Duration::from_secs(30)).into_future();
    crowd(&group, (0..4200).map(write), (104, 4096)).await;
}

#[tokio::test(start_paused = true)]
async fn writes_that_would_take_too_much_memory_are_refused_at_once_and_the_others_go_on() {
    let group = Group::started(3, 1).await;
    let node = group.node(0);
    node.set("warm", &0).await.expect("written");
    let value = Raw(vec![7u8; 1_000_000].into());
    let write = |i: usize| node.set(format!("k{i}"), &value).timeout(Duration::from_secs(30)).into_future();
    crowd(&group, (0..300).map(write), (32, 268)).await;
    node.set("k", &value).await.expect("there is room again");
}

#[tokio::test(start_paused = true)]
async fn writes_of_the_largest_size_pass_together_through_a_follower() {
    let group = Group::started(3, 1).await;
    let follower = group.follower().await;
    let value = Raw(vec![7u8; 1_000_000].into());
    let started = Instant::now();
    let four = |i: usize| {
        let txn = group.node(follower).transaction();
        (0..4).fold(txn, |txn, j| txn.then(put(format!("{i}/{j}"), &value))).into_future()
    };
    for (i, written) in join_all((0..3).map(four)).await.into_iter().enumerate() {
        written.unwrap_or_else(|error| panic!("{i}: {error}"));
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    group.converged().await;
}

#[tokio::test(start_paused = true)]
async fn answers_too_large_for_one_frame_reach_their_callers_all_the_same() {
    let group = Group::started(3, 1).await;
    let follower = group.follower().await;
    let value = Raw(vec![7u8; 1_000_000].into());
    group.node(follower).set("big", &value).await.expect("written");
    let started = Instant::now();
    let conflicts = (0..12).map(|_| group.node(follower).set("big", &value).if_absent().into_future());
    for conflict in join_all(conflicts).await {
        assert!(matches!(&conflict, Ok(Cas::Conflict(Some(now))) if now.value == value), "{:?}", conflict.err());
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_transaction_too_large_for_a_frame_is_refused_whatever_makes_it_large() {
    let group = Group::started(3, 1).await;
    let value = Raw(vec![7u8; 1_000_000].into());
    for n in 0..3 {
        let txn = (0..9).fold(group.node(n).transaction(), |txn, i| txn.when(when(format!("k{i}")).value_is(&value)));
        let refused = txn.then(put("k", &1)).timeout(Duration::from_secs(5)).await;
        assert!(matches!(refused, Err(Error::Invalid { what: "transaction", .. })), "node {n}: {refused:?}");
        let keys = (0..3000)
            .fold(group.node(n).transaction(), |txn, i| txn.when(when(format!("{i:04}{}", "x".repeat(4000))).absent()));
        let refused = keys.then(put("k", &1)).timeout(Duration::from_secs(5)).await;
        assert!(matches!(refused, Err(Error::Invalid { what: "transaction", .. })), "node {n}: {refused:?}");
    }
    group.node(0).set("k", &1).await.expect("the cluster still works");
}
