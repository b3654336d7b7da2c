//! Histories of keys, of one node and of three.

use std::time::Duration;

use super::*;
use crate::api::table::Table;
use crate::api::testing::{Trio, compact, ms, single, until};
use crate::codec::Raw;

/// Revision, kind, new value, old value: what a list says of one key of numbers.
type Line = (u64, &'static str, Option<u32>, Option<u32>);

fn lines(history: &History<u32>) -> Vec<Line> {
    let line = |entry: &HistoryEntry<u32>| {
        let value = |value: &Result<u32, Error>| *value.as_ref().expect("readable");
        let (kind, new, old) = match &entry.change {
            HistoryChange::Put { new, old } => ("put", Some(value(new)), old.as_ref().map(value)),
            HistoryChange::Deleted { old } => ("deleted", None, Some(value(old))),
            HistoryChange::Expired { old } => ("expired", None, Some(value(old))),
        };
        (entry.revision.get(), kind, new, old)
    };
    history.iter().map(line).collect()
}

async fn set(cluster: &Cluster, value: u32) -> Revision {
    cluster.set("k", &value).await.expect("written").revision
}

#[tokio::test(start_paused = true)]
async fn every_put_and_delete_is_listed_newest_first_with_what_it_replaced() {
    let cluster = single(|_| {}).await;
    assert!(cluster.explain::<u32>("k").await.expect("read").is_empty());
    let before = rt::wall_time(rt::wall_ms());
    set(&cluster, 1).await;
    set(&cluster, 2).await;
    cluster.set("other", &9u32).await.expect("written");
    cluster.delete("k").await.expect("deleted");
    set(&cluster, 3).await;
    let history = cluster.explain::<u32>("k").await.expect("read");
    let expected = [
        (5, "put", Some(3), None),
        (4, "deleted", None, Some(2)),
        (2, "put", Some(2), Some(1)),
        (1, "put", Some(1), None),
    ];
    assert_eq!(lines(&history), expected);
    assert_eq!((history.more, history.revision, history.compacted), (false, Revision::new(5), Revision::ZERO));
    let versions: Vec<_> = history.iter().map(|entry| (entry.created.get(), entry.version)).collect();
    assert_eq!(versions, [(5, 1), (1, 2), (1, 2), (1, 1)]);
    let numbers: Vec<_> = history.iter().map(|entry| entry.ticket.expect("a process wrote it").seq).collect();
    assert!(numbers.is_sorted_by(|a, b| a > b), "{numbers:?}");
    assert!(history.iter().all(|entry| entry.node == cluster.status().id && entry.member.as_deref() == Some("alone")));
    assert!(history.iter().all(|entry| entry.when >= before), "{history:?}");
}

#[tokio::test(start_paused = true)]
async fn an_expiry_is_told_from_a_delete_and_is_the_leaders() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let node = &trio.nodes[follower];
    node.set("k", &1u32).ttl(ms(500)).await.expect("written");
    until("the expiry", || node.status().revision == Revision::new(2)).await;
    let history = node.explain::<u32>("k").await.expect("read");
    assert_eq!(lines(&history), [(2, "expired", None, Some(1)), (1, "put", Some(1), None)]);
    assert_eq!(history[0].lease, history[1].lease);
    assert!(history[0].lease.is_some());
    let authors: Vec<_> = history.iter().map(|entry| (entry.node, entry.ticket.is_some())).collect();
    assert_eq!(authors, [(trio.nodes[leader].status().id, false), (node.status().id, true)]);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn all_nodes_tell_the_same_and_name_the_node_that_wrote() {
    let trio = Trio::start().await;
    for value in 0..30 {
        let writer = &trio.nodes[value % 3];
        writer.set("k", &(value as u32)).await.expect("written");
    }
    let told = trio.nodes[0].explain::<u32>("k").await.expect("read");
    assert_eq!(told.len(), 30);
    for (entry, writer) in told.iter().rev().zip(["a", "b", "c"].into_iter().cycle()) {
        assert_eq!(entry.member.as_deref(), Some(writer));
    }
    for node in &trio.nodes {
        assert_eq!(node.explain::<u32>("k").at_least(told.revision).await.as_ref(), Ok(&told));
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn below_the_floor_only_the_put_in_force_there_is_listed_swept_or_not() {
    let cluster = single(|_| {}).await;
    for value in 1..=5 {
        set(&cluster, value).await;
    }
    for floor in 1..=5 {
        let floor = Revision::new(floor);
        // As long as somebody holds it, what it shows is not swept.
        let mut held = Some(cluster.node().state().view());
        compact(&cluster, floor).await;
        for swept in [false, true] {
            if swept {
                held.take();
                let stored = crate::format::keys::host("", b"k");
                let kept = || cluster.node().state().view().explain(&stored, 9).expect("readable").len() as u64;
                until("the sweep", || kept() == 6 - floor.get()).await;
            }
            let history = cluster.explain::<u32>("k").await.expect("read");
            let listed: Vec<_> = history.iter().map(|entry| entry.revision.get()).collect();
            assert_eq!(listed, (floor.get()..=5).rev().collect::<Vec<_>>(), "floor {floor}, swept: {swept}");
            assert_eq!(history.compacted, floor);
            let HistoryChange::Put { old, .. } = &history[history.len() - 1].change else { panic!("{history:?}") };
            match floor.get() {
                1 => assert_eq!(*old, None),
                above => {
                    let requested = Revision::new(above - 1);
                    assert_eq!(*old, Some(Err(Error::Compacted { requested, oldest: floor })));
                }
            }
        }
    }
    cluster.delete("k").await.expect("deleted");
    let history = cluster.explain::<u32>("k").await.expect("read");
    assert!(matches!(history[0].change, HistoryChange::Deleted { old: Ok(5) }), "{history:?}");
    let deleted = cluster.status().revision;
    compact(&cluster, deleted).await;
    assert!(cluster.explain::<u32>("k").await.expect("read").is_empty(), "the delete shows nothing any more");
}

#[tokio::test(start_paused = true)]
async fn a_limit_says_that_there_is_more_and_still_tells_what_the_last_one_replaced() {
    let cluster = single(|_| {}).await;
    for value in 0..HISTORY_ENTRIES_MAX + 5 {
        set(&cluster, value).await;
    }
    for (limit, listed) in [(0, 0), (1, 1), (7, 7), (u32::MAX, HISTORY_ENTRIES_MAX)] {
        let history = cluster.explain::<u32>("k").limit(limit).await.expect("read");
        assert_eq!((history.len(), history.more), (listed as usize, true), "limit {limit}");
        if let Some(last) = lines(&history).last() {
            assert_eq!((last.2, last.3), (Some(1005 - listed), Some(1004 - listed)), "limit {limit}");
        }
    }
    assert_eq!(cluster.explain::<u32>("k").await.expect("read").len(), HISTORY_ENTRIES as usize);
    for _ in 0..2 {
        cluster.set("two", &1u32).await.expect("written");
    }
    let exact = cluster.explain::<u32>("two").limit(2).await.expect("read");
    assert_eq!((exact.len(), exact.more), (2, false));
}

#[tokio::test(start_paused = true)]
async fn large_values_end_a_list_after_some_megabytes() {
    let cluster = single(|_| {}).await;
    for n in 0..8u8 {
        let value = Raw::from(vec![n; 900 * 1024]);
        cluster.set("k", &value).timeout(Duration::from_secs(60)).await.expect("written");
    }
    let history = cluster.explain::<Raw>("k").await.expect("read");
    assert_eq!((history.len(), history.more), (5, true));
}

#[tokio::test(start_paused = true)]
async fn a_value_of_another_type_spoils_its_own_place_only() {
    const LEVELS: Table<str, u32> = Table::new("levels");
    const OTHER: Table<str, String, crate::codec::Json> = Table::new("levels");
    let cluster = single(|_| {}).await;
    let levels = cluster.table(LEVELS);
    levels.set("k", &1).await.expect("written");
    cluster.table(OTHER).set("k", &"two".to_string()).await.expect("written");
    levels.set("k", &3).await.expect("written");
    levels.delete("k").await.expect("deleted");
    let history = levels.explain("k").await.expect("read");
    let changes: Vec<_> = history.iter().map(|entry| &entry.change).collect();
    let [
        HistoryChange::Deleted { old: Ok(3) },
        HistoryChange::Put { new: Ok(3), old: Some(Err(Error::Codec { key, .. })) },
        HistoryChange::Put { new: Err(Error::Codec { .. }), old: Some(Ok(1)) },
        HistoryChange::Put { new: Ok(1), old: None },
    ] = changes[..]
    else {
        panic!("{history:?}")
    };
    assert_eq!(key, "levels:k");
    assert!(cluster.explain::<u32>("k").await.expect("read").is_empty(), "another table is another place");
    let invalid = cluster.explain::<u32>("").await;
    assert!(matches!(invalid, Err(Error::Invalid { what: "key", .. })), "{invalid:?}");
}
