//! Updates of one key: what they find, what they leave, and who comes in between.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::join_all;

use super::*;
use crate::api::table::Table;
use crate::api::testing::{Trio, ms, single, until};
use crate::codec::Json;
use crate::error::Obstacle;
use crate::rt;

fn add_one(n: Option<&u64>) -> Option<u64> {
    Some(n.map_or(1, |n| n + 1))
}

#[tokio::test(start_paused = true)]
async fn what_an_update_says_it_found_and_left_is_what_is_there() {
    let cluster = single(|_| {}).await;
    let session = cluster.session().await.expect("open");
    cluster.set("k", &1u64).await.expect("written");
    let before = cluster.get::<u64>("k").await.expect("read");
    for (case, update) in [
        cluster.update("k", add_one),
        cluster.update("k", add_one).ttl(ms(60_000)),
        cluster.update("k", add_one),
        cluster.update("k", |n: Option<&u64>| n.copied()),
        cluster.update("k", |n: Option<&u64>| n.copied()).session(&session),
        cluster.update("k", add_one),
        cluster.update("k", |_: Option<&u64>| None),
        cluster.update("k", |_: Option<&u64>| None),
        cluster.update("k", add_one),
    ]
    .into_iter()
    .enumerate()
    {
        let before = cluster.get::<u64>("k").await.expect("read");
        let revision = cluster.status().revision;
        let done = update.await.expect("updated");
        let after = cluster.get::<u64>("k").await.expect("read");
        assert_eq!((&done.old, &done.new), (&before, &after), "case {case}");
        assert_eq!((done.revision, done.attempts), (cluster.status().revision, 1), "case {case}");
        let unchanged = [3, 7].contains(&case);
        assert_eq!(revision == done.revision, unchanged, "case {case}: what is equal is not written");
        let leased = after.as_ref().is_some_and(|entry| entry.lease.is_some());
        assert_eq!(leased, (1..=5).contains(&case), "case {case}: {after:?}");
        let of_session = after.is_some_and(|entry| entry.lease == Some(session.lease()));
        assert_eq!(of_session, [4, 5].contains(&case), "case {case}");
    }
    assert!(before.is_some());
}

#[tokio::test(start_paused = true)]
async fn everybody_who_updates_is_counted_once_from_every_node() {
    let trio = Trio::start().await;
    trio.network.delay(ms(2));
    let done = join_all((0..24).map(|nth| trio.nodes[nth % 3].update("n", add_one).into_future())).await;
    let mut left: Vec<u64> =
        done.iter().map(|done| **done.as_ref().expect("updated").new.as_ref().expect("put")).collect();
    left.sort();
    assert_eq!(left, (1..=24).collect::<Vec<u64>>());
    assert!(done.iter().any(|done| done.as_ref().is_ok_and(|done| done.attempts > 1)), "nobody met anybody");
    for done in done.into_iter().flatten() {
        assert_eq!(done.old.map_or(0, |old| *old) + 1, done.new.map_or(0, |new| *new));
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_update_gives_up_after_its_attempts_and_not_before() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let node = &trio.nodes[follower];
    node.update("n", add_one).await.expect("updated");
    let writing = async { trio.nodes[leader].set("n", &5u64).await.expect("written") };
    trio.behind_its_back(follower, writing).await;
    let refused = node.update("n", add_one).attempts(1).await;
    let conflict = matches!(refused, Err(Error::NotApplied { why: Obstacle::Conflict { attempts: 1 }, .. }));
    assert!(conflict, "{refused:?}");
    let done = node.update("n", add_one).attempts(2).await.expect("updated");
    assert_eq!(done.new.map(|n| *n), Some(6));
    let never = node.update("n", add_one).attempts(0).await;
    assert!(matches!(never, Err(Error::Invalid { what: "attempts", .. })), "{never:?}");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_an_update_leaves_as_it_is_or_cannot_read_is_not_what_a_node_that_is_behind_believes() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    trio.nodes[leader].set("k", &"text".to_string()).await.expect("written");
    until("the follower", || trio.nodes[follower].status().revision.get() == 1).await;
    trio.network.delay(ms(30));
    let write = |value: u64| trio.nodes[leader].set("k", &value).into_future();
    trio.behind_its_back(follower, write(7)).await.expect("written");
    assert_eq!(trio.nodes[follower].status().revision.get(), 1, "it is behind");
    let kept = trio.nodes[follower].update("k", |n: Option<&u64>| n.copied()).await.expect("it is a number by now");
    assert_eq!((kept.old.map(|n| *n), kept.new.map(|n| *n), kept.revision.get()), (Some(7), Some(7), 2));

    trio.behind_its_back(follower, write(8)).await.expect("written");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = seen.clone();
    let watching = move |n: Option<&u64>| {
        notes.lock().unwrap().push(n.copied());
        n.copied()
    };
    trio.nodes[follower].update("k", watching).await.expect("kept");
    assert_eq!(*seen.lock().unwrap(), [Some(7), Some(8)]);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_function_that_panics_changes_nothing_and_the_panic_is_its_callers() {
    let cluster = single(|_| {}).await;
    cluster.set("k", &1u64).await.expect("written");
    let update = cluster.update("k", |_: Option<&u64>| panic!("the vase broke"));
    let panicked = AssertUnwindSafe(update.into_future()).catch_unwind().await.expect_err("it panics");
    assert_eq!(panicked.downcast_ref::<&str>(), Some(&"the vase broke"));
    assert_eq!(cluster.update("k", add_one).await.expect("the node lives").new.map(|n| *n), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_tables_key_is_updated_with_its_codec() {
    const LISTS: Table<(&'static str, u64), Vec<u32>, Json> = Table::new("lists");
    let cluster = single(|_| {}).await;
    let push = |list: Option<&Vec<u32>>| Some([list.cloned().unwrap_or_default(), vec![7]].concat());
    for length in 1..4 {
        let done = cluster.table(LISTS).update(("a", 1), push).await.expect("updated");
        assert_eq!(done.new.expect("put").value, vec![7; length]);
    }
    assert_eq!(cluster.table(LISTS).get(("a", 1)).await.expect("read").expect("put").value, vec![7; 3]);
}

/// Who was first is answered first, and would be first again: without turns the others tried a thousand times and gave up.
#[tokio::test(start_paused = true)]
async fn of_many_who_change_one_key_without_a_pause_each_comes_to_his_turn() {
    let cluster = single(|_| {}).await;
    let workers = (0..16).map(|nth| {
        let cluster = cluster.clone();
        rt::spawn("worker", async move {
            for _ in 0..25 {
                cluster.update("hot", add_one).attempts(20).await.expect("its turn comes");
                let add = |t: &mut crate::Txn| {
                    let next = t.get::<u64>("hotter")?.map_or(1, |n| *n + 1);
                    t.put("hotter", &next).map(drop)
                };
                cluster.txn(add).attempts(60).await.unwrap_or_else(|error| panic!("{nth}: {error}"));
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("no panic");
    }
    for key in ["hot", "hotter"] {
        assert_eq!(cluster.get::<u64>(key).await.expect("read").map(|n| *n), Some(16 * 25));
    }
    cluster.shutdown().await.expect("stops");
}
