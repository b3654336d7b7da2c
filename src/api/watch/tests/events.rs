//! What is delivered, and when, to a watcher that keeps up.

use bytes::Bytes;
use futures::executor::block_on;

use super::*;
use crate::api::keys::prefix;
use crate::codec::{Json, Raw};

#[tokio::test(start_paused = true)]
async fn a_watch_delivers_what_happens_after_it_was_opened_in_order_and_once() {
    // W1, W2, W3
    let cluster = single(|_| {}).await;
    cluster.set("k", &0u32).await.unwrap();
    let mut watch = cluster.watch::<u32>("k").await.unwrap();
    let mut written = Vec::new();
    for n in 1..=200u32 {
        written.push((cluster.set("k", &n).await.unwrap().revision, n));
    }
    let mut delivered = Vec::new();
    while delivered.len() < written.len() {
        let batch = batch(&mut watch).await;
        assert_eq!((batch.kind, batch.events.len()), (BatchKind::Live, 1));
        delivered.push((batch.revision, *batch.events[0].entry().unwrap().clone()));
    }
    assert_eq!(delivered, written);
    assert_quiet(&mut watch).await;
}

#[tokio::test(start_paused = true)]
async fn one_key_a_prefix_and_a_range_are_watched_exactly() {
    // W8
    let cluster = single(|_| {}).await;
    let mut one = cluster.watch::<u32>("a").await.unwrap();
    let mut under = cluster.watch::<u32>(prefix("a/")).await.unwrap();
    let mut range = cluster.watch::<u32>("a/b".."b").await.unwrap();
    let mut all = cluster.watch::<u32>(..).await.unwrap();
    let keys = ["a", "a/", "a/b", "a0", "aa", "b", "a/a", "A"];
    for (n, key) in keys.iter().enumerate() {
        cluster.set(key, &(n as u32)).await.unwrap();
    }
    // Closes the list for those whose range does not hold the last key.
    for key in ["a", "a/z", "az"] {
        cluster.delete(key).await.unwrap();
        cluster.set(key, &99u32).await.unwrap();
    }
    for (watch, expected) in [
        (&mut one, &["a", "a", "a"][..]),
        (&mut under, &["a/", "a/b", "a/a", "a/z"]),
        (&mut range, &["a/b", "a0", "aa", "a/z", "az"]),
        (&mut all, &["a", "a/", "a/b", "a0", "aa", "b", "a/a", "A", "a", "a", "a/z", "az"]),
    ] {
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            seen.extend(batch(watch).await.events.iter().map(|event| event.key().to_owned()));
        }
        assert_eq!(seen, expected);
        assert_quiet(watch).await;
    }
}

#[tokio::test(start_paused = true)]
async fn all_that_one_transaction_did_to_the_watched_keys_comes_in_one_batch() {
    // W4
    let cluster = single(|_| {}).await;
    cluster.set("a/old", &1u32).await.unwrap();
    let mut watch = cluster.watch::<u32>(prefix("a/")).await.unwrap();
    let txn = cluster
        .transaction()
        .then(put("a/x", &2u32))
        .then(put("b/y", &3u32))
        .then(remove("a/old"))
        .then(put("a/z", &4u32));
    let done = txn.await.unwrap();
    let batch = batch(&mut watch).await;
    assert_eq!(batch.revision, done.revision());
    assert_eq!(contents(&batch), [("a/x", Some(2)), ("a/old", None), ("a/z", Some(4))]);
    assert_quiet(&mut watch).await;
}

#[tokio::test(start_paused = true)]
async fn puts_and_deletes_carry_versions_and_what_was_there_before() {
    // W7
    let cluster = single(|_| {}).await;
    let mut watch = cluster.watch::<u32>("k").prev().await.unwrap();
    let created = cluster.set("k", &1u32).await.unwrap().revision;
    let updated = cluster.set("k", &2u32).await.unwrap().revision;
    let deleted = cluster.delete("k").await.unwrap().revision;
    cluster.set("k", &3u32).await.unwrap();
    let first = Entry { value: 1, created, modified: created, version: 1, lease: None, ttl: None };
    let second = Entry { value: 2, created, modified: updated, version: 2, lease: None, ttl: None };
    let mut next = async || batch(&mut watch).await.events.remove(0);
    assert_eq!(next().await, Event::Put { key: "k".into(), entry: first.clone(), prev: None });
    assert_eq!(next().await, Event::Put { key: "k".into(), entry: second.clone(), prev: Some(first) });
    let gone = Event::Delete { key: "k".into(), cause: Cause::Deleted, revision: deleted, prev: Some(second) };
    assert_eq!(next().await, gone);
    let again = next().await;
    assert!(matches!(&again, Event::Put { entry, prev: None, .. } if entry.version == 1), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn previous_values_are_left_out_unless_asked_for() {
    let cluster = single(|_| {}).await;
    cluster.set("k", &1u32).await.unwrap();
    let mut watch = cluster.watch::<u32>("k").await.unwrap();
    cluster.set("k", &2u32).await.unwrap();
    let put = batch(&mut watch).await;
    assert!(matches!(&put.events[..], [Event::Put { prev: None, .. }]), "{put:?}");
}

#[tokio::test(start_paused = true)]
async fn a_delete_says_whether_somebody_deleted_the_key_or_its_time_ran_out() {
    // W7
    let cluster = single(|_| {}).await;
    let mut watch = cluster.watch::<u32>(prefix("")).prev().await.unwrap();
    let ttl = Duration::from_millis(500);
    let lease = grant_lease(&cluster, Duration::from_secs(3600)).await;
    cluster.set("expires", &1u32).ttl(ttl).await.unwrap();
    let put = batch(&mut watch).await;
    let entry = put.events[0].entry().unwrap();
    assert_eq!((entry.ttl, entry.lease.is_some()), (Some(ttl), true), "{put:?}");
    cluster.set("deleted", &2u32).ttl(ttl).await.unwrap();
    cluster.delete("deleted").await.unwrap();
    cluster.set("revoked", &3u32).lease(lease).await.unwrap();
    cluster.set("revoked-too", &4u32).lease(lease).await.unwrap();
    cluster.node().mutate(Command::LeaseRevoke { lease }, HUNG).await.unwrap();
    let mut deletes = Vec::new();
    while deletes.len() < 4 {
        for event in batch(&mut watch).await.events {
            if let Event::Delete { key, cause, prev, revision } = event {
                let prev = prev.expect("it was there").value;
                deletes.push((key, cause, prev, revision));
            }
        }
    }
    let revoked_at = deletes[1].3;
    let (said, revisions): (Vec<_>, Vec<_>) =
        deletes.into_iter().map(|(key, cause, prev, revision)| ((key, cause, prev), revision)).unzip();
    assert_eq!(
        said,
        [
            ("deleted".to_owned(), Cause::Deleted, 2),
            ("revoked".into(), Cause::Deleted, 3),
            ("revoked-too".into(), Cause::Deleted, 4),
            ("expires".into(), Cause::Expired, 1),
        ]
    );
    assert_eq!(revisions[2], revoked_at, "all keys of a lease go at one revision");
}

#[tokio::test(start_paused = true)]
async fn all_keys_of_an_expired_lease_go_in_one_batch() {
    let cluster = single(|_| {}).await;
    let lease = grant_lease(&cluster, Duration::from_millis(300)).await;
    for key in ["s/a", "s/b", "t/c"] {
        cluster.set(key, &1u32).lease(lease).await.unwrap();
    }
    let mut watch = cluster.watch::<u32>(prefix("s/")).await.unwrap();
    let gone = batch(&mut watch).await;
    assert_eq!(contents(&gone), [("s/a", None), ("s/b", None)]);
    let expired = |event: &Event<u32>| {
        let Event::Delete { cause, revision, .. } = event else { return false };
        (*cause, *revision) == (Cause::Expired, gone.revision)
    };
    assert!(gone.events.iter().all(expired), "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_resumes_in_the_past_with_exactly_what_it_had_not_seen() {
    // W5. The second watch starts far behind what is kept in memory, as after a restart.
    let cluster = single(|settings| settings.watch_revisions = 4).await;
    let mut first = cluster.watch::<u32>(prefix("k/")).backpressure().await.unwrap();
    for n in 0..30u32 {
        cluster.set(format!("k/{}", n % 3), &n).await.unwrap();
        cluster.set("other", &n).await.unwrap();
    }
    let mut seen = Vec::new();
    for _ in 0..11 {
        seen.extend(contents(&batch(&mut first).await).into_iter().map(|(_, n)| n.unwrap()));
    }
    let place = first.revision();
    drop(first);
    let mut second = cluster.watch::<u32>(prefix("k/")).from(place.next()).await.unwrap();
    while seen.len() < 30 {
        seen.extend(contents(&batch(&mut second).await).into_iter().map(|(_, n)| n.unwrap()));
    }
    assert_eq!(seen, (0..30).collect::<Vec<_>>());
    assert_quiet(&mut second).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_the_future_delivers_nothing_below_it() {
    // W9
    let cluster = single(|_| {}).await;
    let now = cluster.set("k", &0u64).await.unwrap().revision;
    let from = Revision::new(now.get() + 10);
    let mut watch = cluster.watch::<u64>("k").from(from).await.unwrap();
    for _ in 0..12 {
        let revision = cluster.set("k", &0u64).await.unwrap().revision;
        if revision < from {
            assert_quiet(&mut watch).await;
        }
    }
    let first = batch(&mut watch).await;
    assert_eq!((first.revision, first.kind), (from, BatchKind::Live));
    assert_eq!(batch(&mut watch).await.revision, from.next());
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_the_first_revision_or_from_zero_delivers_the_whole_history() {
    let cluster = single(|_| {}).await;
    for n in 0..5u32 {
        cluster.set("k", &n).await.unwrap();
    }
    for from in [Revision::ZERO, Revision::new(1)] {
        let mut watch = cluster.watch::<u32>("k").from(from).await.unwrap();
        for n in 0..5 {
            assert_eq!(contents(&batch(&mut watch).await), [("k", Some(n))], "from {from}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_history_no_longer_holds_is_refused_with_the_oldest_it_holds() {
    // W10
    let cluster = single(|_| {}).await;
    for n in 0..20u32 {
        cluster.set("k", &n).await.unwrap();
    }
    let (floor, oldest) = (Revision::new(10), Revision::new(11));
    compact(&cluster, floor).await;
    for requested in [Revision::new(1), Revision::new(9), floor] {
        let coalesce = cluster.watch::<u32>("k").from(requested).await.map(drop);
        assert_eq!(coalesce, Err(Error::Compacted { requested, oldest }));
        let backpressure = cluster.watch::<u32>("k").from(requested).backpressure().await.map(drop);
        assert_eq!(backpressure, Err(Error::Compacted { requested, oldest }));
    }
    let mut watch = cluster.watch::<u32>("k").from(oldest).await.unwrap();
    assert_eq!(batch(&mut watch).await.revision, oldest);
}

#[tokio::test(start_paused = true)]
async fn the_first_delete_above_the_floor_is_not_lost() {
    // W10; etcd#18089, etcd#19179
    let cluster = single(|settings| settings.watch_revisions = 1).await;
    cluster.set("k", &1u32).await.unwrap();
    let deleted = cluster.delete("k").await.unwrap().revision;
    for n in 0..5u32 {
        cluster.set("other", &n).await.unwrap();
    }
    compact(&cluster, Revision::new(deleted.get() - 1)).await;
    let mut watch = cluster.watch::<u32>("k").from(deleted).backpressure().prev().await.unwrap();
    let gone = batch(&mut watch).await;
    let expected = matches!(&gone.events[..], [Event::Delete { revision, prev: Some(prev), .. }]
        if *revision == deleted && prev.value == 1);
    assert!(expected, "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn the_initial_state_is_one_batch_and_the_changes_behind_it_follow_without_gap_or_double() {
    let cluster = single(|_| {}).await;
    for n in 0..10u64 {
        cluster.set(format!("k/{n}"), &n).await.unwrap();
    }
    cluster.delete("k/3").await.unwrap();
    let writer = {
        let cluster = cluster.clone();
        rt::spawn("writer", async move {
            for n in 10..400u64 {
                cluster.set(format!("k/{}", n % 10), &n).await.unwrap();
            }
        })
    };
    let mut state = std::collections::BTreeMap::new();
    let mut watches = Vec::new();
    for _ in 0..20 {
        rt::sleep(Duration::from_micros(300)).await;
        tokio::task::yield_now().await;
        watches.push(cluster.watch::<u64>(prefix("k/")).with_initial().await.unwrap());
    }
    writer.await.unwrap();
    let last = cluster.status().revision;
    for mut watch in watches {
        state.clear();
        let initial = batch(&mut watch).await;
        assert_eq!(initial.kind, BatchKind::Initial);
        assert!(initial.events.iter().map(Event::key).is_sorted(), "{initial:?}");
        state.extend(contents(&initial).into_iter().map(|(key, n)| (key.to_owned(), n.unwrap())));
        let mut place = initial.revision;
        while place < last {
            let batch = batch(&mut watch).await;
            // Every revision here writes a key of the range: none may be missing, none may come twice.
            assert_eq!((batch.revision, batch.kind), (place.next(), BatchKind::Live));
            place = batch.revision;
            state.extend(contents(&batch).into_iter().map(|(key, n)| (key.to_owned(), n.unwrap())));
        }
        assert_quiet(&mut watch).await;
        let expected: Vec<(String, u64)> = (390..400).map(|n| (format!("k/{}", n % 10), n)).collect();
        assert_eq!(state.clone().into_iter().collect::<Vec<_>>(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_range_has_an_initial_batch_without_events() {
    let cluster = single(|_| {}).await;
    let mut watch = cluster.watch::<u32>(prefix("k/")).with_initial().await.unwrap();
    let initial = batch(&mut watch).await;
    assert_eq!((initial.kind, initial.events.len()), (BatchKind::Initial, 0));
    cluster.set("k/a", &1u32).await.unwrap();
    assert_eq!(contents(&batch(&mut watch).await), [("k/a", Some(1))]);
}

#[tokio::test(start_paused = true)]
async fn an_initial_state_from_a_revision_waits_until_this_node_has_applied_it() {
    let cluster = single(|_| {}).await;
    let now = cluster.set("k", &1u32).await.unwrap().revision;
    let opening = cluster.watch::<u32>("k").with_initial().from(now.next()).into_future();
    let mut opening = std::pin::pin!(opening);
    assert!(rt::timeout(Duration::from_millis(50), &mut opening).await.is_err(), "it is not there yet");
    cluster.set("k", &2u32).await.unwrap();
    let mut watch = opening.await.unwrap();
    let initial = batch(&mut watch).await;
    assert_eq!((initial.revision, contents(&initial)), (now.next(), vec![("k", Some(2))]));
}

#[tokio::test(start_paused = true)]
async fn the_place_moves_on_while_the_watched_keys_are_quiet_but_never_past_what_was_delivered() {
    // W6
    let cluster = single(|_| {}).await;
    let mut watch = cluster.watch::<u32>("k").await.unwrap();
    assert_quiet(&mut watch).await;
    for n in 0..5u32 {
        let revision = cluster.set("other", &n).await.unwrap().revision;
        assert_eq!(watch.revision(), revision);
    }
    let before = watch.revision();
    let first = cluster.set("k", &1u32).await.unwrap().revision;
    let second = cluster.set("k", &2u32).await.unwrap().revision;
    let third = cluster.set("other", &3u32).await.unwrap().revision;
    assert_eq!(watch.revision(), before, "two batches are not delivered yet");
    assert_eq!(batch(&mut watch).await.revision, first);
    assert_eq!(watch.revision(), first);
    assert_eq!(batch(&mut watch).await.revision, second);
    assert_eq!(watch.revision(), third, "and nothing else has happened since");
}

#[tokio::test(start_paused = true)]
async fn a_value_of_another_type_is_reported_and_the_rest_goes_on() {
    let cluster = single(|_| {}).await;
    cluster.set("k/a", &1u32).await.unwrap();
    cluster.set("k/bad", &Json("text".to_owned())).await.unwrap();
    let mut watch = cluster.watch::<u32>(prefix("k/")).with_initial().prev().await.unwrap();
    let of = |key: &str, item: &Option<Result<Batch<u32>, Error>>| {
        let Some(Err(Error::Codec { key: named, .. })) = item else { return false };
        named == key
    };
    let initial = item(&mut watch).await;
    assert!(of("k/bad", &initial), "{initial:?}");
    assert_eq!(watch.revision(), Revision::ZERO, "the batch itself is still to come");
    assert_eq!(contents(&batch(&mut watch).await), [("k/a", Some(1))]);

    // Nothing of this revision can be read: the error is all there is.
    cluster.set("k/bad", &Json("more".to_owned())).await.unwrap();
    for _ in 0..2 {
        let error = item(&mut watch).await;
        assert!(of("k/bad", &error), "{error:?}");
    }
    // A good value over a bad one, and a bad one that is deleted: only the previous value is missing.
    let mended = cluster.set("k/bad", &3u32).await.unwrap().revision;
    let error = item(&mut watch).await;
    assert!(of("k/bad", &error), "{error:?}");
    let put = batch(&mut watch).await;
    assert!(matches!(&put.events[..], [Event::Put { prev: None, .. }]) && put.revision == mended, "{put:?}");
    cluster.set("k/bad", &Raw::from(Bytes::from_static(b"x"))).await.unwrap();
    assert!(of("k/bad", &item(&mut watch).await));
    cluster.delete("k/bad").await.unwrap();
    assert!(of("k/bad", &item(&mut watch).await));
    let gone = batch(&mut watch).await;
    assert!(matches!(&gone.events[..], [Event::Delete { prev: None, .. }]), "{gone:?}");
    assert_eq!(watch.revision(), gone.revision);
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_with_the_reason_when_its_node_stops() {
    let cluster = single(|_| {}).await;
    let mut waiting = cluster.watch::<u32>("k").await.unwrap();
    let mut unread = cluster.watch::<u32>("k").with_initial().await.unwrap();
    let stopped = {
        let waiting = rt::spawn("waiting", async move { (item(&mut waiting).await, item(&mut waiting).await) });
        tokio::task::yield_now().await;
        cluster.shutdown().await.unwrap();
        waiting.await.unwrap()
    };
    assert!(matches!(&stopped, (Some(Err(Error::Stopped { .. })), None)), "{stopped:?}");
    let ended = [item(&mut unread).await, item(&mut unread).await, item(&mut unread).await];
    assert!(matches!(&ended, [Some(Err(Error::Stopped { .. })), None, None]), "{ended:?}");
    assert!(unread.is_terminated());
    let opened = cluster.watch::<u32>("k").await.map(drop);
    assert!(matches!(opened, Err(Error::Stopped { .. })), "{opened:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_does_not_keep_its_node_running() {
    let cluster = single(|_| {}).await;
    let mut watch = cluster.watch::<u32>("k").await.unwrap();
    drop(cluster);
    let ended = item(&mut watch).await;
    assert!(matches!(ended, Some(Err(Error::Stopped { .. }))), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_next_that_is_dropped_loses_nothing() {
    let cluster = single(|_| {}).await;
    let mut watch = cluster.watch::<u32>("k").await.unwrap();
    for n in 0..50u32 {
        assert!(rt::timeout(Duration::from_millis(1), watch.next()).await.is_err());
        cluster.set("k", &n).await.unwrap();
        assert_eq!(contents(&batch(&mut watch).await), [("k", Some(n))]);
    }
}

#[tokio::test(start_paused = true)]
async fn keys_that_cannot_exist_are_refused() {
    let cluster = single(|_| {}).await;
    let refused = cluster.watch::<u32>("").await.map(drop);
    assert!(matches!(refused, Err(Error::Invalid { what: "key", .. })), "{refused:?}");
}

#[test]
fn a_watch_can_be_sent_and_works_on_an_executor_that_is_not_the_nodes() {
    fn sent<T: Send + Unpin + 'static>(watch: T) -> T {
        watch
    }
    let nodes = block_on(Cluster::local(1)).unwrap();
    let mut watch = sent(block_on(nodes[0].watch::<String>("k").into_future()).unwrap());
    let delivered = std::thread::scope(|scope| {
        let reader = scope.spawn(|| block_on(watch.next()));
        block_on(nodes[0].set("k", &"v".to_owned()).into_future()).unwrap();
        reader.join().unwrap()
    });
    assert_eq!(contents(&delivered.unwrap().unwrap()), [("k", Some("v".to_owned()))]);
    block_on(nodes[0].shutdown()).unwrap();
}
