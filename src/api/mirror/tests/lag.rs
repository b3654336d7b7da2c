//! Mirrors that fall behind what the node keeps in memory (W11), and large ones.

use futures::future::{BoxFuture, join_all};

use super::*;
use crate::rt::Mark;
use crate::rt::marks::counts;

/// A node that keeps so few revisions for watchers that one batch of writes outruns them.
async fn lagging() -> Cluster {
    single(|settings| settings.watch_revisions = 4).await
}

fn lags() -> u64 {
    counts()[Mark::WatchLagged as usize]
}

/// Carries out all of this at once, with enough besides to outrun every mirror.
async fn outrun(cluster: &Cluster, mut writes: Vec<BoxFuture<'_, Revision>>) -> Revision {
    for n in 0..40u32 {
        writes.push(Box::pin(async move { cluster.set("k/busy", &n).await.unwrap().revision }));
    }
    join_all(writes).await.into_iter().max().expect("more than 40")
}

fn set<'a>(cluster: &'a Cluster, key: &'a str, value: u32) -> BoxFuture<'a, Revision> {
    Box::pin(async move { cluster.set(key, &value).await.unwrap().revision })
}

fn delete<'a>(cluster: &'a Cluster, key: &'a str) -> BoxFuture<'a, Revision> {
    Box::pin(async move { cluster.delete(key).await.unwrap().revision })
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_falls_behind_shows_the_present_state_and_finds_out_what_was_deleted() {
    let cluster = lagging().await;
    for key in ["k/a", "k/b", "k/busy", "k/c"] {
        cluster.set(key, &0u32).await.unwrap();
    }
    let mut mirror = cluster.mirror::<u32>(prefix("k/")).await.unwrap();
    let kept = mirror.load().get("k/a").unwrap().unwrap().clone();
    let before = lags();
    let writes = vec![delete(&cluster, "k/b"), set(&cluster, "k/c", 5), set(&cluster, "k/d", 6)];
    let last = outrun(&cluster, writes).await;
    shown(&mirror, last).await;
    assert!(lags() > before, "nothing was outrun");
    let delta = changed(&mut mirror).await;
    assert_eq!(
        told(&delta),
        [
            ("k/b", Some(0), None, None),
            ("k/busy", Some(0), Some(39), None),
            ("k/c", Some(0), Some(5), None),
            ("k/d", None, Some(6), None)
        ]
    );
    assert!(delta.iter().next().unwrap().is_delete());
    let now = mirror.load();
    assert_eq!(contents(&now), [("k/a", 0), ("k/busy", 39), ("k/c", 5), ("k/d", 6)]);
    assert!(Arc::ptr_eq(now.get("k/a").unwrap().unwrap(), &kept), "what did not change is not read again");
    // And it goes on.
    cluster.delete("k/c").await.unwrap();
    assert_eq!(told(&changed(&mut mirror).await), [("k/c", Some(5), None, Some(Cause::Deleted))]);
}

#[tokio::test(start_paused = true)]
async fn a_cause_that_was_seen_is_not_told_of_a_later_deletion_that_was_not() {
    let cluster = lagging().await;
    cluster.set("k/a", &0u32).await.unwrap();
    let mut mirror = cluster.mirror::<u32>(prefix("k/")).await.unwrap();
    cluster.delete("k/a").await.unwrap();
    let created = cluster.set("k/a", &1u32).await.unwrap().revision;
    shown(&mirror, created).await;
    let before = lags();
    let last = outrun(&cluster, vec![delete(&cluster, "k/a")]).await;
    shown(&mirror, last).await;
    assert!(lags() > before, "nothing was outrun");
    let delta = changed(&mut mirror).await;
    assert_eq!(told(&delta)[0], ("k/a", Some(0), None, None), "nobody saw it go for good");
}

#[tokio::test(start_paused = true)]
async fn a_mirror_whose_keys_are_all_gone_when_it_looks_again_is_empty() {
    let cluster = lagging().await;
    for key in ["k/a", "k/b"] {
        cluster.set(key, &0u32).await.unwrap();
    }
    let mut mirror = cluster.mirror::<u32>("k/a".."k/c").await.unwrap();
    let last = outrun(&cluster, vec![delete(&cluster, "k/a"), delete(&cluster, "k/b")]).await;
    let state = shown(&mirror, last).await;
    assert!(state.is_empty() && state.iter().next().is_none());
    assert_eq!(changed(&mut mirror).await.iter().filter(|change| change.is_delete()).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_mirror_does_not_notice_that_history_is_forgotten() {
    // W10
    let cluster = lagging().await;
    let mut mirror = cluster.mirror::<u32>(prefix("k/")).await.unwrap();
    for round in 0..5u32 {
        let last = outrun(&cluster, vec![set(&cluster, "k/a", round)]).await;
        compact(&cluster, last).await;
        assert_eq!(contents(&*shown(&mirror, last).await), [("k/a", round), ("k/busy", 39)]);
        changed(&mut mirror).await;
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_entries_are_listed_followed_and_compared() {
    const ENTRIES: u32 = 10_000;
    let cluster = single(|_| {}).await;
    for first in (0..ENTRIES).step_by(1000) {
        let puts = (first..first + 1000).map(|n| put(format!("k/{n:05}"), &n));
        puts.fold(cluster.transaction(), |txn, put| txn.then(put)).await.unwrap();
    }
    let mut mirror = cluster.mirror::<u32>(prefix("k/")).await.unwrap();
    let first = mirror.load();
    assert_eq!(first.len() as u32, ENTRIES);
    assert!(first.iter().map(|(_, entry)| entry.value).eq(0..ENTRIES));
    cluster.set("k/05000", &0u32).await.unwrap();
    let delta = changed(&mut mirror).await;
    assert_eq!(told(&delta), [("k/05000", Some(5000), Some(0), None)]);
    // All of one lease at one revision: the half that goes, and its causes.
    let session = cluster.session().ttl(ms(2000)).await.unwrap();
    for first in (0..ENTRIES / 2).step_by(500) {
        let puts = (first..first + 500).map(|n| put(format!("k/{n:05}"), &n).session(&session));
        puts.fold(cluster.transaction(), |txn, put| txn.then(put)).await.unwrap();
    }
    shown(&mirror, cluster.status().revision).await;
    mirror.borrow_and_update();
    session.close().await.unwrap();
    let delta = changed(&mut mirror).await;
    assert_eq!(delta.len() as u32, ENTRIES / 2);
    assert!(delta.iter().all(|change| change.cause() == Some(Cause::Deleted)));
    assert!(mirror.load().iter().map(|(_, entry)| entry.value).eq(ENTRIES / 2..ENTRIES));
    assert_eq!(first.len() as u32, ENTRIES, "a state that was taken never changes");
}
