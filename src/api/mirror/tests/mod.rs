//! Mirrors on real nodes, on a paused clock. Behind most tests stands the crate's list of promises for watches (W1 to W14).

mod group;
mod lag;
mod random;
mod unreadable;

use futures::FutureExt;

use super::*;
use crate::api::keys::prefix;
use crate::api::testing::{HUNG, Trio, compact, ms, single, until};
use crate::api::txn::{put, remove};
use crate::api::watch::Cause;
use crate::rt;

/// What a state holds, in key order.
fn contents<V: Copy>(state: &Mirrored<V>) -> Vec<(&str, V)> {
    state.iter().map(|(key, entry)| (key.as_str(), entry.value)).collect()
}

/// What a delta says: the key, what it held before, what it holds now, and why it is gone.
type Told<'a, V> = (&'a str, Option<V>, Option<V>, Option<Cause>);

fn told<V: Copy>(delta: &Delta<V>) -> Vec<Told<'_, V>> {
    let value = |entry: Option<&Arc<crate::Entry<V>>>| entry.map(|entry| entry.value);
    let changes = delta.iter();
    changes.map(|one| (one.key().as_str(), value(one.before()), value(one.entry()), one.cause())).collect()
}

/// The next change, which must come.
async fn changed<V>(mirror: &mut Mirror<V>) -> Delta<V> {
    rt::timeout(HUNG, mirror.changed()).await.expect("the mirror is silent").expect("the mirror is well")
}

/// The state, once it shows `revision`.
async fn shown<V>(mirror: &Mirror<V>, revision: Revision) -> Arc<Mirrored<V>> {
    rt::timeout(HUNG, mirror.at_least(revision)).await.expect("the mirror is silent").expect("the mirror is well")
}

#[tokio::test(start_paused = true)]
async fn a_mirror_begins_with_its_keys_and_follows_every_change_of_them() {
    let cluster = single(|_| {}).await;
    cluster.set("k/a", &1u32).await.unwrap();
    cluster.set("other", &7u32).await.unwrap();
    let mut mirror = cluster.mirror::<u32>(prefix("k/")).await.unwrap();
    let first = mirror.load();
    assert_eq!((contents(&first), first.revision()), (vec![("k/a", 1)], cluster.status().revision));
    assert!(!mirror.has_changed() && mirror.changed().now_or_never().is_none());

    cluster.set("k/b", &2u32).await.unwrap();
    let delta = changed(&mut mirror).await;
    assert_eq!(told(&delta), [("k/b", None, Some(2), None)]);
    assert_eq!(contents(delta.snapshot()), [("k/a", 1), ("k/b", 2)]);
    cluster.set("k/a", &3u32).await.unwrap();
    assert_eq!(told(&changed(&mut mirror).await), [("k/a", Some(1), Some(3), None)]);
    let deleted = cluster.delete("k/a").await.unwrap().revision;
    assert_eq!(told(&changed(&mut mirror).await), [("k/a", Some(3), None, Some(Cause::Deleted))]);
    let now = mirror.load();
    assert_eq!((contents(&now), now.revision()), (vec![("k/b", 2)], deleted));
    assert_eq!(contents(&first), [("k/a", 1)], "a state that was taken never changes");

    cluster.set("other", &8u32).await.unwrap();
    cluster.set("k/c", &4u32).ttl(ms(300)).await.unwrap();
    assert_eq!(told(&changed(&mut mirror).await), [("k/c", None, Some(4), None)]);
    assert_eq!(told(&changed(&mut mirror).await), [("k/c", Some(4), None, Some(Cause::Expired))]);
}

#[tokio::test(start_paused = true)]
async fn entries_carry_what_a_read_would_tell_of_them() {
    let cluster = single(|_| {}).await;
    let mirror = cluster.mirror::<u32>("k").await.unwrap();
    cluster.set("k", &1u32).await.unwrap();
    let written = cluster.set("k", &2u32).ttl(ms(60_000)).await.unwrap();
    let state = shown(&mirror, written.revision).await;
    let read = cluster.get::<u32>("k").await.unwrap().unwrap();
    assert_eq!(state.get("k").unwrap().map(|entry| &**entry), Some(&read));
    assert_eq!((read.version, read.ttl), (2, Some(ms(60_000))));
}

#[tokio::test(start_paused = true)]
async fn a_state_shows_transactions_whole() {
    // W4
    let cluster = single(|_| {}).await;
    let pair = |n: u32| cluster.transaction().then(put("k/a", &n)).then(put("k/b", &n)).then(remove("k/c"));
    pair(0).await.unwrap();
    let mut mirror = cluster.mirror::<u32>(prefix("k/")).await.unwrap();
    let reader = {
        let mut mirror = mirror.clone();
        rt::spawn("reader", async move {
            let mut states = 0;
            let whole = |state: &Mirrored<u32>| {
                let value = |key| state.get(key).unwrap().unwrap().value;
                assert_eq!(value("k/a"), value("k/b"));
                states += 1;
                value("k/a") == 100
            };
            mirror.wait_for(whole).await.unwrap();
            states
        })
    };
    for n in 1..=100 {
        pair(n).await.unwrap();
    }
    let states = rt::timeout(HUNG, reader).await.expect("the reader waits").unwrap();
    assert!(states > 50, "the reader has hardly looked: {states}");
    assert_eq!(
        told(&changed(&mut mirror).await),
        [("k/a", Some(0), Some(100), None), ("k/b", Some(0), Some(100), None)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_told_the_difference_and_nothing_of_what_has_been_undone() {
    let cluster = single(|_| {}).await;
    for key in ["k/a", "k/b", "k/c"] {
        cluster.set(key, &0u32).await.unwrap();
    }
    let mut mirror = cluster.mirror::<u32>(prefix("k/")).await.unwrap();
    for n in 1..=50u32 {
        cluster.set("k/a", &n).await.unwrap();
    }
    cluster.delete("k/b").await.unwrap();
    cluster.set("k/b", &9u32).await.unwrap();
    cluster.delete("k/c").await.unwrap();
    cluster.set("k/passing", &1u32).await.unwrap();
    let last = cluster.delete("k/passing").await.unwrap().revision;
    shown(&mirror, last).await;
    let delta = changed(&mut mirror).await;
    assert_eq!(
        told(&delta),
        [
            ("k/a", Some(0), Some(50), None),
            ("k/b", Some(0), Some(9), None),
            ("k/c", Some(0), None, Some(Cause::Deleted))
        ]
    );
    assert_eq!(delta.iter().nth(1).unwrap().entry().unwrap().version, 1, "it was created anew");
    // A key that comes and goes before anybody looks is nothing that has changed.
    cluster.set("k/passing", &1u32).await.unwrap();
    let last = cluster.delete("k/passing").await.unwrap().revision;
    shown(&mirror, last).await;
    assert!(mirror.has_changed() && mirror.changed().now_or_never().is_none());
    assert!(!mirror.has_changed(), "it has been looked at");
}

#[tokio::test(start_paused = true)]
async fn a_clone_has_seen_what_its_original_has_and_goes_its_own_way() {
    let cluster = single(|_| {}).await;
    let mut first = cluster.mirror::<u32>("k").await.unwrap();
    cluster.set("k", &1u32).await.unwrap();
    changed(&mut first).await;
    let mut second = first.clone();
    let last = cluster.set("k", &2u32).await.unwrap().revision;
    shown(&first, last).await;
    assert_eq!(contents(&first.borrow_and_update()), [("k", 2)]);
    assert_eq!((first.has_changed(), second.has_changed()), (false, true));
    assert!(second.clone().has_changed(), "nor has its clone seen it");
    assert_eq!(told(&changed(&mut second).await), [("k", Some(1), Some(2), None)]);
    assert_eq!(cluster.node().hub().watchers(), 1, "one task follows for both");
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_dropped_has_seen_nothing() {
    let cluster = single(|_| {}).await;
    let mut mirror = cluster.mirror::<u32>(prefix("k/")).await.unwrap();
    let mut seen = Vec::new();
    let writer = async {
        for n in 0..200u32 {
            cluster.set(format!("k/{n:03}"), &n).await.unwrap();
            rt::sleep(ms(2)).await;
        }
    };
    let mut dropped = 0;
    let reader = async {
        for patience in (0..4).cycle() {
            // Dropped after one poll, or after some time.
            let looked = match patience {
                0 => mirror.changed().now_or_never().ok_or(rt::clock::Elapsed),
                _ => rt::timeout(ms(patience), mirror.changed()).await,
            };
            match looked {
                Ok(delta) => seen.extend(delta.unwrap().iter().map(|change| change.entry().unwrap().value)),
                Err(_) => dropped += 1,
            }
            // Long enough for several writes to lie ready when it polls once.
            rt::sleep(ms(patience % 2 * 3)).await;
            if seen.len() == 200 {
                return;
            }
        }
    };
    rt::timeout(HUNG, futures::future::join(writer, reader)).await.expect("something was lost");
    assert_eq!(seen, (0..200).collect::<Vec<_>>());
    assert!(dropped > 20, "hardly a wait was dropped: {dropped}");
}

#[tokio::test(start_paused = true)]
async fn one_waits_for_a_condition_that_holds_now_or_later() {
    let cluster = single(|_| {}).await;
    cluster.set("k", &1u32).await.unwrap();
    let mut mirror = cluster.mirror::<u32>("k").await.unwrap();
    let is = |n: u32| move |state: &Mirrored<u32>| contents(state) == [("k", n)];
    assert!(mirror.wait_for(is(1)).now_or_never().is_some());
    assert!(mirror.wait_for(is(3)).now_or_never().is_none());
    let mut waiting = mirror.clone();
    let wait = rt::spawn("wait", async move { waiting.wait_for(is(3)).await.map(|state| state.revision()) });
    for n in 2..=3u32 {
        rt::sleep(ms(10)).await;
        assert!(!wait.is_finished());
        cluster.set("k", &n).await.unwrap();
    }
    assert_eq!(rt::timeout(HUNG, wait).await.unwrap().unwrap().unwrap(), cluster.status().revision);
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_takes_the_task_with_it() {
    let cluster = single(|_| {}).await;
    let mirror = cluster.mirror::<u32>("k").await.unwrap();
    let other = mirror.clone();
    let state = mirror.load();
    assert_eq!(cluster.node().hub().watchers(), 1);
    drop(mirror);
    cluster.set("k", &1u32).await.unwrap();
    shown(&other, cluster.status().revision).await;
    assert_eq!(cluster.node().hub().watchers(), 1);
    drop(other);
    until("the task has ended", || cluster.node().hub().watchers() == 0).await;
    assert!(state.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_mirror_ends_with_its_node_behind_the_last_change_and_keeps_the_last_state() {
    let cluster = single(|_| {}).await;
    let mut mirror = cluster.mirror::<u32>("k").await.unwrap();
    let mut waiting = mirror.clone();
    let wait = rt::spawn("wait", async move { waiting.wait_for(|state| state.len() > 1).await.map(drop) });
    cluster.set("k", &1u32).await.unwrap();
    cluster.shutdown().await.unwrap();
    assert!(matches!(rt::timeout(HUNG, wait).await.unwrap().unwrap(), Err(Error::Stopped { .. })));
    assert_eq!(told(&changed(&mut mirror).await), [("k", None, Some(1), None)]);
    for _ in 0..2 {
        assert!(matches!(mirror.changed().await, Err(Error::Stopped { .. })));
    }
    assert_eq!(contents(&mirror.load()), [("k", 1)]);
    assert_eq!(contents(&mirror.at_least(mirror.revision()).await.unwrap()), [("k", 1)], "that much it shows");
    assert!(matches!(mirror.at_least(mirror.revision().next()).await, Err(Error::Stopped { .. })));
    assert_eq!(mirror.staleness(), None);
}

#[tokio::test(start_paused = true)]
async fn a_mirror_does_not_keep_its_node_running() {
    let cluster = single(|_| {}).await;
    let mut mirror = cluster.mirror::<u32>("k").await.unwrap();
    drop(cluster);
    let ended = rt::timeout(HUNG, mirror.changed()).await.expect("the node runs on");
    assert!(matches!(ended, Err(Error::Stopped { .. })), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_revision_of_other_keys_is_shown_without_a_change() {
    let cluster = single(|_| {}).await;
    cluster.set("k", &1u32).await.unwrap();
    let mirror = cluster.mirror::<u32>("k").await.unwrap();
    let opened = mirror.revision();
    for n in 0..5u32 {
        let written = cluster.set("other", &n).await.unwrap().revision;
        let state = shown(&mirror, written).await;
        assert_eq!((contents(&state), state.revision()), (vec![("k", 1)], opened));
        assert!(mirror.revision() >= written);
    }
    assert!(!mirror.has_changed());
    // One that is still to come is waited for.
    let future = Revision::new(cluster.status().revision.get() + 2);
    let mut wait = Box::pin(mirror.at_least(future));
    assert!(wait.as_mut().now_or_never().is_none());
    cluster.set("other", &9u32).await.unwrap();
    assert!(wait.as_mut().now_or_never().is_none());
    cluster.set("k", &2u32).await.unwrap();
    assert_eq!(contents(&rt::timeout(HUNG, wait).await.unwrap().unwrap()), [("k", 2)]);
}

#[tokio::test(start_paused = true)]
async fn parts_of_a_state_are_read_in_order_from_both_ends() {
    const DEPTHS: crate::Table<i32, u32> = crate::Table::new("depths");
    let cluster = single(|_| {}).await;
    let depths = cluster.table(DEPTHS);
    for depth in [-300, -2, 0, 7] {
        depths.set(depth, &1).await.unwrap();
    }
    let state = depths.mirror(..).await.unwrap().load();
    let keys = |entries: MirroredEntries<'_, u32, i32>| entries.map(|(key, _)| *key).collect::<Vec<_>>();
    assert_eq!(keys(state.iter()), [-300, -2, 0, 7]);
    assert_eq!(keys(state.range(-2..7).unwrap()), [-2, 0]);
    assert_eq!(keys(state.range(..=0).unwrap()), [-300, -2, 0]);
    assert_eq!(state.range(..0).unwrap().next_back().map(|(key, _)| *key), Some(-2));
    assert!(state.get(&7).unwrap().is_some() && state.get(&8).unwrap().is_none());
    let long = "x".repeat(crate::KEY_BYTES_MAX + 1);
    let texts = cluster.mirror::<u32>(..).await.unwrap().load();
    assert!(matches!(texts.range(prefix(long)), Err(Error::Invalid { what: "key", .. })));
}

#[tokio::test(start_paused = true)]
async fn the_mirror_of_one_key_shows_its_entry_whether_it_is_there_or_not() {
    let cluster = single(|_| {}).await;
    let mut one = cluster.mirror_key::<u32>("k").await.unwrap();
    assert_eq!(one.load(), Ok(None));
    cluster.set("k/not", &9u32).await.unwrap();
    cluster.set("k", &1u32).await.unwrap();
    let value = |entry: Option<Arc<crate::Entry<u32>>>| entry.map(|entry| entry.value);
    assert_eq!(value(rt::timeout(HUNG, one.changed()).await.unwrap().unwrap()), Some(1));
    let written = cluster.set("k", &2u32).await.unwrap().revision;
    assert_eq!(value(one.at_least(written).await.unwrap()), Some(2));
    assert_eq!((one.has_changed(), value(one.borrow_and_update().unwrap()), one.has_changed()), (true, Some(2), false));
    cluster.delete("k").await.unwrap();
    assert_eq!(value(rt::timeout(HUNG, one.wait_for(|value| value.is_none())).await.unwrap().unwrap()), None);
    cluster.set("k", &"text".to_string()).await.unwrap();
    let unreadable = rt::timeout(HUNG, one.changed()).await.unwrap();
    assert!(matches!(unreadable, Err(Error::Codec { .. })), "{unreadable:?}");
    assert_eq!(one.load().unwrap_err(), unreadable.unwrap_err());
    cluster.set("k", &3u32).await.unwrap();
    assert_eq!(value(rt::timeout(HUNG, one.changed()).await.unwrap().unwrap()), Some(3));
}
