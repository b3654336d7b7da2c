//! Watchers that fall behind (W11), and histories that have been forgotten (W10).

use super::*;
use crate::api::keys::prefix;

/// Few enough for a test to outrun.
const KEPT: usize = 8;

async fn lagging() -> Cluster {
    single(|settings| settings.watch_revisions = KEPT).await
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_falls_behind_is_given_the_present_state_and_goes_on_from_there() {
    let cluster = lagging().await;
    for key in ["k/a", "k/b", "k/c"] {
        cluster.set(key, &0u32).await.unwrap();
    }
    let mut watch = cluster.watch::<u32>(prefix("k/")).with_initial().await.unwrap();
    assert_eq!(batch(&mut watch).await.events.len(), 3);
    for n in 1..=30u32 {
        cluster.set("k/a", &n).await.unwrap();
    }
    cluster.delete("k/b").await.unwrap();
    let now = cluster.set("k/d", &5u32).await.unwrap().revision;
    let resync = batch(&mut watch).await;
    assert_eq!((resync.kind, resync.revision), (BatchKind::Resync, now));
    // k/b is not listed: it is gone.
    assert_eq!(contents(&resync), [("k/a", Some(30)), ("k/c", Some(0)), ("k/d", Some(5))]);
    assert_eq!(watch.revision(), now);
    cluster.set("k/a", &31u32).await.unwrap();
    let live = batch(&mut watch).await;
    assert_eq!((live.kind, live.revision), (BatchKind::Live, now.next()));
    assert_quiet(&mut watch).await;
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_finds_its_whole_range_gone_is_told_so() {
    let cluster = lagging().await;
    cluster.set("k", &0u32).await.unwrap();
    let mut watch = cluster.watch::<u32>("k").with_initial().await.unwrap();
    assert_eq!(batch(&mut watch).await.events.len(), 1);
    for n in 0..20u32 {
        cluster.set("k", &n).await.unwrap();
    }
    cluster.delete("k").await.unwrap();
    let resync = batch(&mut watch).await;
    assert_eq!((resync.kind, resync.events.len()), (BatchKind::Resync, 0));
}

#[tokio::test(start_paused = true)]
async fn under_backpressure_a_watcher_far_behind_is_given_every_revision_from_the_history() {
    let cluster = lagging().await;
    cluster.set("k", &0u32).await.unwrap();
    let mut watch = cluster.watch::<u32>("k").backpressure().prev().await.unwrap();
    for n in 1..=300u32 {
        cluster.set("k", &n).await.unwrap();
        cluster.set("other", &n).await.unwrap();
    }
    for n in 1..=300 {
        let batch = batch(&mut watch).await;
        assert_eq!(batch.kind, BatchKind::Live);
        let right = matches!(&batch.events[..], [Event::Put { entry, prev: Some(prev), .. }]
            if entry.value == n && prev.value == n - 1 && entry.version == prev.version + 1);
        assert!(right, "at {n}: {batch:?}");
    }
    assert_quiet(&mut watch).await;
    assert_eq!(watch.revision(), cluster.status().revision);
}

#[tokio::test(start_paused = true)]
async fn under_backpressure_a_watcher_behind_the_history_is_told_so_and_ends() {
    let cluster = lagging().await;
    let start = cluster.set("k", &0u32).await.unwrap().revision;
    let mut watch = cluster.watch::<u32>("k").backpressure().await.unwrap();
    let mut coalescing = cluster.watch::<u32>("k").await.unwrap();
    for n in 1..=50u32 {
        cluster.set("k", &n).await.unwrap();
    }
    let floor = Revision::new(start.get() + 20);
    compact(&cluster, floor).await;
    let ended = item(&mut watch).await;
    assert_eq!(ended, Some(Err(Error::Compacted { requested: start.next(), oldest: floor.next() })));
    assert_eq!(item(&mut watch).await, None);
    // The other kind of watcher is not concerned: it would have been given the present state anyway.
    let resync = batch(&mut coalescing).await;
    assert_eq!((resync.kind, contents(&resync)), (BatchKind::Resync, vec![("k", Some(50))]));
}

#[tokio::test(start_paused = true)]
async fn a_watcher_at_the_edge_of_the_history_still_gets_every_revision() {
    let cluster = lagging().await;
    let start = cluster.set("k", &0u32).await.unwrap().revision;
    let mut watch = cluster.watch::<u32>("k").backpressure().await.unwrap();
    for n in 1..=50u32 {
        cluster.set("k", &n).await.unwrap();
    }
    // Everything up to its place is forgotten, and nothing behind it.
    compact(&cluster, start).await;
    for n in 1..=50 {
        assert_eq!(contents(&batch(&mut watch).await), [("k", Some(n))]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_previous_value_that_is_forgotten_is_never_passed_over_in_silence() {
    // The hub still has the changes; the history below the floor no longer has what they replaced.
    let cluster = single(|_| {}).await;
    let start = cluster.set("k", &0u32).await.unwrap().revision;
    let mut coalescing = cluster.watch::<u32>("k").prev().await.unwrap();
    let mut pressing = cluster.watch::<u32>("k").prev().backpressure().await.unwrap();
    let mut careless = cluster.watch::<u32>("k").await.unwrap();
    for n in 1..=20u32 {
        cluster.set("k", &n).await.unwrap();
    }
    let floor = Revision::new(start.get() + 10);
    compact(&cluster, floor).await;
    swept(&cluster, start).await;
    let resync = batch(&mut coalescing).await;
    assert_eq!((resync.kind, contents(&resync)), (BatchKind::Resync, vec![("k", Some(20))]));
    let ended = item(&mut pressing).await;
    assert_eq!(ended, Some(Err(Error::Compacted { requested: start.next(), oldest: floor.next() })));
    assert_eq!(item(&mut pressing).await, None);
    // Who does not ask for previous values is not concerned.
    assert_eq!(contents(&batch(&mut careless).await), [("k", Some(1))]);
    cluster.set("k", &21u32).await.unwrap();
    let live = batch(&mut coalescing).await;
    assert!(matches!(&live.events[..], [Event::Put { prev: Some(prev), .. }] if prev.value == 20), "{live:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_is_not_polled_holds_back_neither_history_nor_hub() {
    let cluster = lagging().await;
    let watch = cluster.watch::<u32>("k").prev().backpressure().await.unwrap();
    for n in 0..50u32 {
        cluster.set("k", &n).await.unwrap();
    }
    compact(&cluster, Revision::new(40)).await;
    swept(&cluster, Revision::new(1)).await;
    swept(&cluster, Revision::new(39)).await;
    drop(watch);
}

#[tokio::test(start_paused = true)]
async fn watchers_of_quiet_keys_are_not_resynchronised_however_much_happens_elsewhere() {
    let cluster = lagging().await;
    let mut watch = cluster.watch::<u32>("quiet").await.unwrap();
    assert_quiet(&mut watch).await;
    for n in 0..100u32 {
        cluster.set("busy", &n).await.unwrap();
    }
    let revision = cluster.set("quiet", &1u32).await.unwrap().revision;
    let live = batch(&mut watch).await;
    assert_eq!((live.kind, live.revision), (BatchKind::Live, revision));
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_reads_a_long_history_lets_others_run_in_between() {
    let cluster = lagging().await;
    for n in 0..40u32 {
        let puts = (0..100).map(|m| put(format!("other/{m}"), &n));
        puts.fold(cluster.transaction(), |txn, put| txn.then(put)).await.unwrap();
    }
    cluster.set("k", &1u32).await.unwrap();
    for n in 0..40u32 {
        cluster.set("other", &n).await.unwrap();
    }
    let mut watch = cluster.watch::<u32>("k").from(Revision::new(1)).await.unwrap();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(watch.poll_next_unpin(&mut cx).is_pending(), "one poll goes through all of the history");
    assert_eq!(contents(&batch(&mut watch).await), [("k", Some(1))]);
}
