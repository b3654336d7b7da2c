//! Closures against a sorted map, against each other, and against whatever happens to them.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::{join, join_all};

use super::closure::Outcome;
use super::*;
use crate::api::cluster::Cluster;
use crate::api::fence::Fences;
use crate::api::keys::prefix;
use crate::api::table::Table;
use crate::api::testing::{Dice, HUNG, Trio, compact, eventually, ms, single, until};
use crate::error::{Error, Obstacle};
use crate::recipes::testing::TTL;
use crate::rt;
use crate::storage::view::VIEW_AGE_MAX;
use crate::types::TXN_OPS_MAX;

/// A run of a closure on this node's state of now.
fn begin(cluster: &Cluster) -> Txn {
    Txn::new(cluster.node().state().view(), Fences::default()).expect("requires nothing")
}

/// What the run is to come to, with the number of conditions and operations.
fn outcome(txn: Txn) -> Option<(usize, usize)> {
    match txn.finish::<(), Error>(Ok(())).expect("the closure is content") {
        Outcome::Write(_, txn, _) => Some((txn.compares.len(), txn.then.len())),
        Outcome::Read(()) => None,
        Outcome::Outdated => panic!("outdated"),
    }
}

/// Whether the writes of a run are refused because others came first.
async fn conflicts(cluster: &Cluster, txn: Txn) -> bool {
    let Ok(Outcome::Write(_, txn, fences)) = txn.finish::<(), Error>(Ok(())) else { panic!("it writes") };
    fences.write(cluster, txn, HUNG).await.expect("decided").failed.is_some()
}

fn add_one(t: &mut Txn) -> Result<u64, Error> {
    let next = t.get::<u64>("n")?.map_or(0, |n| *n) + 1;
    t.put("n", &next)?;
    Ok(next)
}

fn name(n: u64) -> String {
    format!("k/{n:02}")
}

#[tokio::test(start_paused = true)]
async fn a_closure_sees_its_own_writes_over_one_moment_as_a_sorted_map_would_and_leaves_what_it_saw() {
    let cluster = single(|_| {}).await;
    let mut dice = Dice(11);
    let mut model = BTreeMap::new();
    for round in 0..120 {
        let mut txn = begin(&cluster);
        for step in 0..dice.roll(25) {
            let (a, b) = (dice.roll(40), dice.roll(40));
            let (from, to) = (name(a), name(b));
            match dice.roll(8) {
                0 | 1 => {
                    let value = round * 100 + step;
                    txn.put(&from, &value).expect("put");
                    model.insert(from, value);
                }
                2 => {
                    txn.remove(from.as_str()).expect("removed");
                    model.remove(&from);
                }
                3 => {
                    txn.remove(from.as_str()..to.as_str()).expect("removed");
                    model.retain(|key, _| !(*key >= from && *key < to));
                }
                4 => {
                    let seen = txn.get::<u64>(&from).expect("read").map(|entry| *entry);
                    assert_eq!(seen, model.get(&from).copied(), "round {round}: {from}");
                }
                5 => {
                    let count = txn.range::<u64>(from.as_str()..to.as_str()).count().expect("counted");
                    let wanted = model.keys().filter(|key| **key >= from && **key < to).count();
                    assert_eq!(count, wanted as u64, "round {round}: {from}..{to}");
                }
                _ => {
                    let (limit, reverse) = (dice.roll(8) as u32, dice.roll(2) == 0);
                    let listing = txn.range::<u64>(from.as_str()..).limit(limit);
                    let listing = if reverse { listing.reverse() } else { listing };
                    let listed = listing.entries().expect("read");
                    let mut wanted: Vec<(String, u64)> =
                        model.iter().filter(|(key, _)| **key >= from).map(|(k, v)| (k.clone(), *v)).collect();
                    if reverse {
                        wanted.reverse();
                    }
                    assert_eq!(listed.more, wanted.len() > limit as usize, "round {round}: {from}.. {limit} {reverse}");
                    wanted.truncate(limit as usize);
                    let listed: Vec<(String, u64)> = listed.into_iter().map(|(key, entry)| (key, *entry)).collect();
                    assert_eq!(listed, wanted, "round {round}: {from}.. {limit} {reverse}");
                }
            }
        }
        let written = txn.finish::<(), Error>(Ok(())).expect("the closure is content");
        if let Outcome::Write((), txn, fences) = written {
            let answer = fences.write(&cluster, txn, HUNG).await.expect("decided");
            assert_eq!(answer.failed, None, "round {round}");
        }
        let left = cluster.range::<u64>(..).await.expect("read");
        let left: BTreeMap<String, u64> = left.into_iter().map(|(key, entry)| (key, *entry)).collect();
        assert_eq!(left, model, "round {round}");
    }
}

/// What one run that counts has seen and done.
#[derive(Debug)]
struct Story {
    seen: Vec<(String, Option<u64>)>,
    listed: Vec<(String, Vec<(String, u64)>)>,
    written: Vec<(String, Option<u64>)>,
}

/// Reads and writes at random; the same for the same seed and state.
fn wander(t: &mut Txn, seed: u64) -> Result<Story, Error> {
    let mut dice = Dice(seed);
    let mut story = Story { seen: Vec::new(), listed: Vec::new(), written: Vec::new() };
    for _ in 0..1 + dice.roll(3) {
        let key = format!("s/{}", dice.roll(6));
        story.seen.push((key.clone(), t.get::<u64>(&key)?.map(|entry| *entry)));
    }
    if dice.roll(2) == 0 {
        let from = format!("s/{}", dice.roll(6));
        let listing = t.range::<u64>(from.as_str()..).limit(2).entries()?;
        story.listed.push((from, listing.into_iter().map(|(key, entry)| (key, *entry)).collect()));
    }
    for _ in 0..dice.roll(3) {
        let key = format!("s/{}", dice.roll(6));
        let value = (dice.roll(3) > 0).then_some(seed);
        match value {
            Some(value) => t.put(&key, &value).map(drop)?,
            None => t.remove(key.as_str())?,
        }
        story.written.push((key, value));
    }
    Ok(story)
}

#[tokio::test(start_paused = true)]
async fn what_closures_on_three_nodes_have_seen_and_done_has_one_order() {
    let trio = Trio::start().await;
    trio.network.delay(ms(2));
    let callers = (0..9u64).map(|caller| {
        let node = trio.nodes[caller as usize % 3].clone();
        rt::spawn("caller", async move {
            let (mut stories, mut reruns) = (Vec::new(), 0);
            for n in 0..12 {
                let seed = 1 + caller * 1000 + n;
                let done = node.txn(move |t| wander(t, seed)).await.expect("committed");
                reruns += done.attempts - 1;
                stories.push((done.revision, done.changed, done.value));
            }
            (stories, reruns)
        })
    });
    let (mut stories, mut reruns) = (Vec::new(), 0);
    for caller in callers.collect::<Vec<_>>() {
        let (told, again) = caller.await.expect("no panic");
        stories.extend(told);
        reruns += again;
    }
    assert!(reruns > 10, "hardly anybody met anybody: {reruns}");
    // Who changed nothing stands behind the change whose revision it names.
    stories.sort_by_key(|(revision, changed, _)| (*revision, !*changed));
    let mut state = BTreeMap::<String, u64>::new();
    for (revision, _, story) in stories {
        for (key, value) in &story.seen {
            assert_eq!(state.get(key), value.as_ref(), "at {revision}: {story:?}");
        }
        for (from, listed) in &story.listed {
            let wanted: Vec<_> = state.range(from.clone()..).take(2).map(|(k, v)| (k.clone(), *v)).collect();
            assert_eq!(*listed, wanted, "at {revision}: {story:?}");
        }
        for (key, value) in story.written {
            match value {
                Some(value) => drop(state.insert(key, value)),
                None => drop(state.remove(&key)),
            }
        }
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn two_who_each_read_both_keys_and_write_one_do_not_both_write() {
    let trio = Trio::start().await;
    let node = &trio.nodes[0];
    node.transaction().then(put("on/a", &true)).then(put("on/b", &true)).await.expect("written");
    let leave = |mine: &'static str| {
        move |t: &mut Txn| {
            let on = t.range::<bool>(prefix("on/")).entries()?.iter().filter(|(_, on)| **on).count();
            if on < 2 {
                return Err(t.abort("nobody else is there"));
            }
            t.put(mine, &false)?;
            Ok(())
        }
    };
    let (a, b) = join(node.txn(leave("on/a")).into_future(), trio.nodes[1].txn(leave("on/b")).into_future()).await;
    let refused = [&a, &b].iter().filter(|left| matches!(left, Err(Error::Aborted { .. }))).count();
    assert_eq!((refused, a.is_ok() || b.is_ok()), (1, true), "{a:?} {b:?}");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_appears_in_a_range_that_was_read_conflicts_wherever_it_was_looked_for() {
    let cluster = single(|_| {}).await;
    let set = async |key: &str| {
        cluster.set(key, &0u64).await.expect("written");
    };
    for (case, (appears, expected)) in
        [("k/25", true), ("k/30", true), ("k/31", false), ("k/05", true), ("j", false)].into_iter().enumerate()
    {
        cluster.delete(..).await.expect("emptied");
        for key in ["k/10", "k/20", "k/30", "k/40"] {
            set(key).await;
        }
        let mut txn = begin(&cluster);
        // Sees the first two, and by the third that there are more.
        let listed = txn.range::<u64>(prefix("k/")).limit(2).entries().expect("read");
        assert_eq!((listed.len(), listed.more), (2, true));
        txn.put("result", &0u64).expect("put");
        set(appears).await;
        assert_eq!(conflicts(&cluster, txn).await, expected, "case {case}: {appears}");
    }
    for (appears, expected) in [("k/35", true), ("k/20", true), ("k/15", false), ("k/99", true)] {
        cluster.delete(..).await.expect("emptied");
        for key in ["k/10", "k/20", "k/30", "k/40"] {
            set(key).await;
        }
        let mut txn = begin(&cluster);
        txn.range::<u64>(prefix("k/")).limit(2).reverse().entries().expect("read");
        txn.put("result", &0u64).expect("put");
        set(appears).await;
        assert_eq!(conflicts(&cluster, txn).await, expected, "from the end: {appears}");
    }
    let mut counted = begin(&cluster);
    counted.range::<u64>(prefix("k/")).count().expect("counted");
    counted.put("result", &0u64).expect("put");
    cluster.delete("k/10").await.expect("deleted");
    assert!(conflicts(&cluster, counted).await, "a key that was counted has gone");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_looked_for_in_vain_conflicts_when_it_comes_and_others_do_not() {
    let cluster = single(|_| {}).await;
    for (appears, expected) in [("missing", true), ("other", false)] {
        let mut txn = begin(&cluster);
        assert!(txn.get::<u64>("missing").expect("read").is_none());
        txn.put("result", &0u64).expect("put");
        cluster.set(appears, &1u64).await.expect("written");
        assert_eq!(conflicts(&cluster, txn).await, expected, "{appears}");
        cluster.delete("missing").await.expect("deleted");
    }
}

#[tokio::test(start_paused = true)]
async fn who_only_writes_depends_on_nothing_and_who_only_reads_sends_nothing() {
    let cluster = single(|_| {}).await;
    let mut blind = begin(&cluster);
    blind.put("a", &1u64).expect("put");
    assert_eq!(blind.get::<u64>("a").expect("its own").map(|own| (*own, own.version)), Some((1, 0)));
    blind.remove("b").expect("removed");
    assert!(blind.get::<u64>("b").expect("its own").is_none());
    blind.remove("c".."e").expect("removed");
    blind.put("d", &4u64).expect("put");
    // Two removals beside the put within the range.
    assert_eq!(outcome(blind), Some((0, 5)));

    cluster.set("a", &1u64).await.expect("written");
    let before = cluster.node().state().view().applied;
    let read = cluster.txn(|t| Ok((t.get::<u64>("a")?.map(|a| *a), t.range::<u64>(..).count()?))).await;
    let read = read.expect("read");
    assert_eq!((read.value, read.changed, read.revision), ((Some(1), 1), false, cluster.status().revision));
    assert_eq!(cluster.node().state().view().applied, before, "an entry was logged for a read");
}

#[tokio::test(start_paused = true)]
async fn who_comes_second_runs_again_on_what_the_first_left() {
    let trio = Trio::start().await;
    let (leader, follower, other) = trio.roles().await;
    trio.network.delay(ms(20));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = seen.clone();
    let watching = move |t: &mut Txn| {
        let sum = add_one(t)?;
        notes.lock().unwrap().push((sum, t.revision()));
        Ok(sum)
    };
    trio.nodes[leader].set("n", &0u64).await.expect("written");
    let second = rt::spawn("second", trio.nodes[follower].txn(watching).into_future());
    until("the first run", || seen.lock().unwrap().len() == 1).await;
    // Its writes have a way to go.
    let first = trio.nodes[leader].set("n", &10u64).await.expect("written");
    let second = second.await.expect("no panic").expect("committed");
    assert_eq!((*second, second.attempts), (11, 2));
    let seen = seen.lock().unwrap().clone();
    assert!(matches!(&seen[..], [(1, _), (11, again)] if *again >= first.revision), "{seen:?}");
    assert_eq!(trio.nodes[other].get::<u64>("n").await.expect("read").map(|n| *n), Some(11));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn everybody_who_adds_is_counted_and_nobody_for_ever() {
    let cluster = single(|_| {}).await;
    let done = join_all((0..20).map(|_| cluster.txn(add_one).into_future())).await;
    let mut sums: Vec<u64> = done.into_iter().map(|done| *done.expect("committed")).collect();
    sums.sort();
    assert_eq!(sums, (1..=20).collect::<Vec<u64>>());

    // As many attempts as there are others, and too few to stand in line for: the last one is not served.
    let done = join_all((0..3).map(|_| cluster.txn(add_one).attempts(2).into_future())).await;
    let given_up: Vec<_> = done.iter().filter_map(|done| done.as_ref().err()).collect();
    let [Error::NotApplied { why: Obstacle::Conflict { attempts: 2 }, .. }] = given_up[..] else { panic!("{done:?}") };
    assert_eq!(cluster.get::<u64>("n").await.expect("read").map(|n| *n), Some(22));
    for attempts in [0, TXN_ATTEMPTS_MAX_AND_ONE] {
        let refused = cluster.txn(add_one).attempts(attempts).await;
        assert!(matches!(refused, Err(Error::Invalid { what: "attempts", .. })), "{refused:?}");
    }
}

const TXN_ATTEMPTS_MAX_AND_ONE: u32 = crate::api::retry::TXN_ATTEMPTS_MAX + 1;

#[derive(Debug, PartialEq)]
enum Refused {
    TooPoor(u64),
    Store(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused::Store(error)
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_gives_up_writes_nothing_and_its_error_comes_out() {
    let cluster = single(|_| {}).await;
    let before = cluster.status().revision;
    let given_up = cluster.txn(|t| {
        t.put("a", &1u64)?;
        Err::<(), _>(t.abort("no"))
    });
    assert_eq!(given_up.await, Err(Error::Aborted { why: "no".into() }));
    let own = cluster.try_txn(|t| {
        t.put("a", &1u64)?;
        t.get::<u64>("b")?.ok_or(Refused::TooPoor(7)).map(|b| *b)
    });
    assert_eq!(own.await.map(|done| done.value), Err(Refused::TooPoor(7)));
    cluster.set("b", &"text".to_string()).await.expect("written");
    let unreadable = cluster.try_txn(|t| Ok::<_, Refused>(t.get::<u64>("b")?.map(|b| *b))).await;
    assert!(matches!(unreadable, Err(Refused::Store(Error::Codec { .. }))), "{unreadable:?}");
    assert_eq!(cluster.status().revision, before.next());
    assert!(cluster.get::<u64>("a").await.expect("read").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_panics_writes_nothing_and_the_panic_is_its_callers() {
    let cluster = single(|_| {}).await;
    let panicking = cluster.txn(|t| -> Result<(), Error> {
        t.put("a", &1u64)?;
        panic!("the vase broke")
    });
    let panicked = AssertUnwindSafe(panicking.into_future()).catch_unwind().await.expect_err("it panics");
    assert_eq!(panicked.downcast_ref::<&str>(), Some(&"the vase broke"));
    assert!(cluster.get::<u64>("a").await.expect("the node lives").is_none());
    assert_eq!(*cluster.txn(add_one).await.expect("committed"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_read_below_the_floor_is_read_again_not_believed() {
    let cluster = single(|_| {}).await;
    cluster.set("n", &1u64).await.expect("written");
    let mut txn = begin(&cluster);
    add_one(&mut txn).expect("run");
    for n in 0..3u64 {
        cluster.set("other", &n).await.expect("written");
    }
    compact(&cluster, cluster.status().revision).await;
    // Nothing it depends on has changed; but nobody can tell any more.
    assert!(conflicts(&cluster, txn).await);
    assert_eq!(cluster.txn(add_one).await.expect("committed").value, 2);
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_moment_is_forgotten_does_not_count_whatever_it_says() {
    let cluster = single(|_| {}).await;
    cluster.set("n", &1u64).await.expect("written");
    let view = cluster.node().state().view();
    let mut txn = begin(&cluster);
    for n in 0..3u64 {
        cluster.set("n", &n).await.expect("written");
    }
    compact(&cluster, cluster.status().revision).await;
    assert_eq!(txn.get::<u64>("n").expect("young enough").map(|n| *n), Some(1));
    eventually("the sweep", || async {
        rt::sleep(VIEW_AGE_MAX).await;
        cluster.set("tick", &0u64).await.expect("written");
        view.get(b"n").is_err()
    })
    .await;
    assert!(matches!(txn.get::<u64>("other"), Err(Error::Compacted { .. })));
    txn.put("a", &1u64).expect("put");
    assert!(matches!(txn.finish::<(), Error>(Ok(())), Ok(Outcome::Outdated)));
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_reads_more_than_it_can_name_is_refused_even_if_it_does_not_listen() {
    let cluster = single(|_| {}).await;
    let deaf = cluster.txn(|t| {
        for n in 0..2 * TXN_OPS_MAX {
            let _ = t.get::<u64>(format!("k/{n}"));
        }
        t.put("a", &1u64).map(drop).or(Ok(()))
    });
    let refused = deaf.await;
    assert!(matches!(refused, Err(Error::Invalid { what: "transaction", .. })), "{refused:?}");
    assert!(cluster.get::<u64>("a").await.expect("read").is_none());
    // One range holds them all.
    let done = cluster.txn(|t| {
        t.range::<u64>(prefix("k/")).count()?;
        for n in 0..2 * TXN_OPS_MAX {
            t.get::<u64>(format!("k/{n}"))?;
        }
        t.put("a", &1u64).map(drop)
    });
    assert!(done.await.expect("committed").changed);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_writes_more_than_a_frame_holds_is_refused_before_it_is_whole() {
    let cluster = single(|_| {}).await;
    let megabyte = crate::Raw(vec![7u8; 1_000_000].into());
    let mut txn = begin(&cluster);
    for _ in 0..10 {
        txn.put("same", &megabyte).expect("it replaces the one before");
    }
    for n in 0..3 {
        txn.put(name(n), &megabyte).expect("there is room");
    }
    txn.remove(prefix("k/")).expect("removed");
    for n in 0..3 {
        txn.put(name(n), &megabyte).expect("there is room again");
    }
    let refused = txn.put("k/3", &megabyte).map(drop);
    assert!(matches!(refused, Err(Error::Invalid { what: "transaction", .. })), "{refused:?}");
    assert!(matches!(txn.finish::<(), Error>(Ok(())), Err(Error::Invalid { .. })), "whoever does not listen");
}

#[tokio::test(start_paused = true)]
async fn keys_of_tables_are_read_and_written_with_their_types() {
    const JOBS: Table<(&'static str, u64), String> = Table::new("jobs");
    let cluster = single(|_| {}).await;
    cluster.table(JOBS).set(("web", 1), &"build".to_string()).await.expect("written");
    let done = cluster.txn(|t| {
        let mut jobs = t.table(JOBS);
        let first = jobs.get(("web", 1))?.map(|job| job.value);
        jobs.put(("web", 2), &"test".to_string())?;
        jobs.put(("mail", 1), &"send".to_string())?;
        jobs.remove(("web", 1))?;
        let left = jobs.range(..).entries()?.into_iter().map(|(key, job)| (key, job.value));
        let left: Vec<((String, u64), String)> = left.collect();
        t.put("done", &first.clone())?;
        Ok((first, left))
    });
    let (first, left) = done.await.expect("committed").value;
    assert_eq!(first.as_deref(), Some("build"));
    let wanted = [(("mail".to_string(), 1), "send".to_string()), (("web".to_string(), 2), "test".to_string())];
    assert_eq!(left, wanted);
    let jobs = cluster.table(JOBS).range(..).await.expect("read");
    assert_eq!(jobs.into_iter().map(|(key, job)| (key, job.value)).collect::<Vec<_>>(), wanted);
    assert!(cluster.get::<Option<String>>("done").await.expect("read").is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_put_hangs_where_it_was_hung() {
    let cluster = single(|_| {}).await;
    let session = cluster.session().await.expect("open");
    let lease = session.lease();
    let done = cluster.txn(move |t| {
        t.put("of-session", &1u64)?.lease(lease);
        t.put("for-a-while", &1u64)?.ttl(ms(300))?;
        t.put("for-good", &1u64)?;
        Ok(t.get::<u64>("for-a-while")?.and_then(|own| own.ttl))
    });
    assert_eq!(done.await.expect("committed").value, Some(ms(300)));
    assert_eq!(cluster.get::<u64>("of-session").await.expect("read").and_then(|entry| entry.lease), Some(lease));
    session.close().await.expect("closed");
    eventually("the others are gone", || async {
        let left = cluster.range::<u64>(..).await.expect("read");
        left.len() == 1 && left[0].0 == "for-good"
    })
    .await;
    let late = cluster.txn(move |t| {
        t.put("late", &1u64)?.lease(lease);
        t.put("beside", &1u64).map(drop)
    });
    assert!(matches!(late.await, Err(Error::LeaseNotFound { lease: gone }) if gone == lease));
    assert!(cluster.get::<u64>("beside").await.expect("read").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_closure_sees_what_was_acknowledged_before_it_began_or_does_not_run() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    trio.network.delay(ms(30));
    for n in 1..4u64 {
        let write = trio.nodes[leader].set("n", &n).into_future();
        trio.behind_its_back(follower, write).await.expect("written");
        assert!(trio.nodes[follower].status().revision.get() < n, "the follower has been told already");
        let read = trio.nodes[follower].txn(|t| Ok(t.get::<u64>("n")?.map(|n| *n))).await.expect("read");
        assert_eq!((read.value, read.revision.get()), (Some(n), n));
    }
    trio.isolate(follower);
    let runs = Arc::new(Mutex::new(0));
    let counted = runs.clone();
    let alone = trio.nodes[follower].txn(move |t| {
        *counted.lock().unwrap() += 1;
        t.get::<u64>("n").map(drop)
    });
    let refused = alone.timeout(ms(2000)).await;
    assert!(matches!(refused, Err(Error::NotApplied { why: Obstacle::NoLeader, .. })), "{refused:?}");
    assert_eq!(*runs.lock().unwrap(), 0);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_a_run_has_asked_for_must_still_stand_when_its_writes_are_decided() {
    let cluster = single(|_| {}).await;
    let guard = cluster.lock("job").ttl(TTL).await.expect("free");
    let session = cluster.session().await.expect("open");
    let (mut one, mut other) = (begin(&cluster), begin(&cluster));
    one.require(&guard).expect("it stands");
    other.require(&session).expect("it stands");
    let (fence, lease) = (guard.fence(), session.lease());
    guard.release().await.expect("released");
    session.close().await.expect("closed");
    for (mut txn, guarded) in [(one, true), (other, false)] {
        txn.put("k", &1u64).expect("put");
        let Ok(Outcome::Write((), txn, fences)) = txn.finish::<(), Error>(Ok(())) else { panic!("it writes") };
        match fences.write(&cluster, txn, HUNG).await {
            Err(Error::Fenced { held, .. }) if guarded && held == fence.get() => {}
            Err(Error::LeaseNotFound { lease: gone }) if !guarded && gone == lease => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(cluster.get::<u64>("k").await.expect("read").is_none());
}
