//! The past against what it was, and views that outlive their moment.

use std::collections::BTreeMap;

use super::*;
use crate::api::keys::prefix;
use crate::api::testing::{Dice, Trio, compact, eventually, ms, single};
use crate::api::txn::{put, remove};
use crate::error::Obstacle;
use crate::rt;
use crate::storage::view::VIEW_AGE_MAX;

type Model = BTreeMap<String, u64>;

/// Writes at random; the state as of every revision, from 0.
async fn history(cluster: &Cluster, revisions: u64) -> Vec<Model> {
    let mut dice = Dice(5);
    let mut states = vec![Model::new()];
    while (states.len() as u64) <= revisions {
        let mut now = states.last().expect("there is one").clone();
        let (a, b) = (format!("k/{}", dice.roll(9)), format!("k/{}", dice.roll(9)));
        let revision = match dice.roll(4) {
            0 if now.contains_key(&a) => {
                now.remove(&a);
                cluster.delete(a.as_str()).await.expect("deleted").revision
            }
            1 if now.keys().any(|key| *key >= a) => {
                now.retain(|key, _| *key < a);
                now.insert("z".into(), 1);
                let txn = cluster.transaction().then(remove(a.as_str().."y")).then(put("z", &1u64));
                txn.await.expect("written").revision()
            }
            _ => {
                let value = dice.roll(1000);
                now.insert(b.clone(), value);
                cluster.set(&b, &value).await.expect("written").revision
            }
        };
        states.push(now);
        assert_eq!(revision.get() as usize, states.len() - 1);
    }
    states
}

fn plain(entries: impl IntoIterator<Item = (String, Entry<u64>)>) -> Model {
    entries.into_iter().map(|(key, entry)| (key, *entry)).collect()
}

#[tokio::test(start_paused = true)]
async fn every_past_revision_is_read_as_it_was() {
    let cluster = single(|_| {}).await;
    let states = history(&cluster, 80).await;
    for (revision, state) in states.iter().enumerate() {
        let at = Revision::new(revision as u64);
        let snapshot = cluster.read().at(at).await.expect("kept");
        assert_eq!(snapshot.revision(), at);
        assert_eq!(plain(snapshot.range::<u64>(..).entries().expect("read")), *state, "{at}");
        assert_eq!(snapshot.range::<u64>(..).count().expect("counted"), state.len() as u64);
        let listed = cluster.range::<u64>(..).at(at).await.expect("read");
        assert_eq!((plain(listed.entries), listed.revision), (state.clone(), at));
        let last = cluster.range::<u64>(prefix("k/")).reverse().limit(2).at(at).await.expect("read");
        let wanted: Vec<_> = state.iter().rev().filter(|(key, _)| key.starts_with("k/")).take(2).collect();
        assert_eq!(last.iter().map(|(key, entry)| (key, &**entry)).collect::<Vec<_>>(), wanted, "{at}");
        assert_eq!(cluster.range::<u64>(..).count().at(at).await.expect("counted"), state.len() as u64);
        let mut scan = cluster.range::<u64>(..).at(at).stream();
        let mut streamed = Model::new();
        while let Some(next) = scan.next().await {
            let (key, entry) = next.expect("readable");
            streamed.insert(key, *entry);
        }
        assert_eq!((streamed, scan.revision()), (state.clone(), Some(at)));
        for n in 0..9 {
            let key = format!("k/{n}");
            let found = cluster.get::<u64>(&key).at(at).await.expect("read");
            assert!(found.as_ref().is_none_or(|entry| entry.modified <= at), "{at}: {found:?}");
            assert_eq!(found.map(|entry| *entry), state.get(&key).copied(), "{at}: {key}");
            assert_eq!(snapshot.get::<u64>(&key).expect("read").map(|entry| *entry), state.get(&key).copied());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_is_not_here_yet_is_waited_for_and_read_exactly() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let first = trio.nodes[leader].set("k", &1u64).await.expect("written").revision;
    let early = trio.nodes[follower].get::<u64>("k").at(first.next()).into_future();
    let reading = rt::spawn("reading", early);
    rt::sleep(ms(50)).await;
    assert!(!reading.is_finished(), "it was read before it was there");
    trio.nodes[leader].set("k", &2u64).await.expect("written");
    trio.nodes[leader].set("k", &3u64).await.expect("written");
    let found = reading.await.expect("no panic").expect("read");
    assert_eq!(found.map(|entry| *entry), Some(2));
    let never = trio.nodes[follower].read().at(Revision::new(1000)).timeout(ms(100)).await;
    assert!(matches!(never, Err(Error::NotApplied { why: Obstacle::Timeout, .. })), "{never:?}");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn below_the_floor_nothing_is_answered_and_at_the_floor_everything() {
    let cluster = single(|_| {}).await;
    let states = history(&cluster, 20).await;
    let floor = Revision::new(12);
    compact(&cluster, floor).await;
    let kept = cluster.range::<u64>(..).at(floor).await.expect("kept");
    assert_eq!(plain(kept.entries), states[12]);
    let wanted = Error::Compacted { requested: Revision::new(11), oldest: floor };
    let below = Revision::new(11);
    assert_eq!(cluster.get::<u64>("k/1").at(below).await.expect_err("compacted"), wanted);
    assert_eq!(cluster.range::<u64>(..).at(below).await.expect_err("compacted"), wanted);
    assert_eq!(cluster.range::<u64>(..).count().at(below).await.expect_err("compacted"), wanted);
    assert_eq!(cluster.read().at(below).await.expect_err("compacted"), wanted);
    let streamed = cluster.range::<u64>(..).at(below).stream().next().await.expect("an error");
    assert_eq!(streamed.expect_err("compacted"), wanted);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_stays_as_it_was_on_any_thread_until_it_is_too_old() {
    fn anywhere<T: Send + Sync + Clone + 'static>(_: &T) {}
    let cluster = single(|_| {}).await;
    let states = history(&cluster, 20).await;
    let snapshot = cluster.read().await.expect("taken");
    anywhere(&snapshot);
    for n in 0..9u64 {
        cluster.set(format!("k/{n}"), &7_000u64).await.expect("written");
    }
    cluster.delete(..).await.expect("deleted");
    compact(&cluster, cluster.status().revision).await;
    let (moved, wanted) = (snapshot.clone(), states[20].clone());
    let elsewhere =
        std::thread::spawn(move || plain(moved.range::<u64>(..).entries().expect("young enough")) == wanted);
    assert!(elsewhere.join().expect("no panic"));

    eventually("the sweep", || async {
        rt::sleep(VIEW_AGE_MAX).await;
        cluster.set("tick", &0u64).await.expect("written");
        snapshot.get::<u64>("k/1").is_err()
    })
    .await;
    for gone in [snapshot.get::<u64>("k/1").map(drop), snapshot.range::<u64>(..).entries().map(drop)] {
        assert!(matches!(gone, Err(Error::Compacted { .. })), "{gone:?}");
    }
}

#[tokio::test]
async fn a_snapshot_that_is_still_held_keeps_no_node_from_closing_and_no_directory_from_being_opened_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = || Cluster::builder("alone").storage(directory.path()).into_future();
    let cluster = open().await.expect("starts");
    cluster.ready().await.expect("leads itself");
    cluster.set("k", &1u64).await.expect("written");
    let old = cluster.read().await.expect("taken");
    cluster.shutdown().await.expect("stops");
    let late = old.get::<u64>("k");
    assert!(
        matches!(&late, Ok(Some(entry)) if **entry == 1) || matches!(&late, Err(Error::Stopped { .. })),
        "{late:?}"
    );
    let again = open().await.expect("the directory is free");
    again.ready().await.expect("leads itself");
    again.set("k", &2u64).await.expect("written");
    let late = old.get::<u64>("k");
    assert!(
        matches!(&late, Ok(Some(entry)) if **entry == 1) || matches!(&late, Err(Error::Stopped { .. })),
        "{late:?}"
    );
    assert!(matches!(again.status().health, crate::Health::Serving), "{:?}", again.status());
    again.shutdown().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_shows_what_was_acknowledged_before_unless_told_otherwise() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    trio.network.delay(ms(30));
    let write = trio.nodes[leader].set("k", &1u64).into_future();
    let written = trio.behind_its_back(follower, write).await.expect("written").revision;
    let stale = trio.nodes[follower].read().stale().await.expect("taken");
    assert!(stale.revision() < written, "the follower has been told already");
    let now = trio.nodes[follower].read().await.expect("taken");
    assert_eq!(now.get::<u64>("k").expect("read").map(|entry| *entry), Some(1));
    assert!(stale.get::<u64>("k").expect("read").is_none());
    let own = trio.nodes[follower].read().at_least(written).await.expect("taken");
    assert!(own.revision() >= written);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_table_is_read_with_its_types() {
    const DEPTHS: Table<i32, String> = Table::new("depths");
    let cluster = single(|_| {}).await;
    for depth in [-300, -2, 7] {
        cluster.table(DEPTHS).set(depth, &format!("{depth} m")).await.expect("written");
    }
    let snapshot = cluster.read().await.expect("taken");
    let depths = snapshot.table(DEPTHS);
    assert_eq!(depths.get(7).expect("read").map(|depth| depth.value).as_deref(), Some("7 m"));
    let below = depths.range(..0).reverse().limit(1).entries().expect("read");
    assert_eq!((below[0].0, below.more), (-2, true));
    assert!(snapshot.get::<String>("7").expect("read").is_none());
}
