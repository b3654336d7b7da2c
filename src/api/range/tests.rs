//! Lists, streams and counts of one node, and their moments on three.

use std::collections::BTreeMap;

use super::*;
use crate::api::keys::prefix;
use crate::api::testing::{Dice, Trio, compact, single};
use crate::api::txn::{put, remove};
use crate::codec::Raw;

/// A few pages.
const MANY: u32 = 2 * PAGE_ENTRIES as u32 + 500;

fn name(n: u32) -> String {
    format!("k/{n:05}")
}

/// Writes keys with these numbers, each with its number as value, at one revision.
async fn fill(cluster: &Cluster, numbers: std::ops::Range<u32>) -> Revision {
    let txn = numbers.fold(cluster.transaction(), |txn, n| txn.then(put(name(n), &n)));
    txn.await.expect("written").revision()
}

/// The values of what is still to come.
async fn rest(scan: &mut Scan<u32>) -> Vec<u32> {
    let mut values = Vec::new();
    while let Some(next) = scan.next().await {
        let (key, entry) = next.expect("readable");
        assert_eq!(key, name(*entry));
        values.push(*entry);
    }
    assert!(scan.is_terminated() && scan.next().await.is_none());
    values
}

#[tokio::test(start_paused = true)]
async fn a_stream_shows_one_revision_whatever_is_written_in_between() {
    for reverse in [false, true] {
        let cluster = single(|_| {}).await;
        let filled = fill(&cluster, 1..MANY).await;
        let range = cluster.range::<u32>(prefix("k/"));
        let mut scan = if reverse { range.reverse().stream() } else { range.stream() };
        let first = scan.next().await.expect("there are many").expect("readable");
        for n in [0, 1, 2, 999, 1000, 1001, 2000, 2001, MANY - 1, MANY] {
            cluster.set(name(n), &7_000_000u32).await.expect("written");
        }
        cluster.transaction().then(remove("k/01200".."k/01300")).then(put("k/0", &0u32)).await.expect("deleted");
        let mut expected: Vec<u32> = (1..MANY).collect();
        if reverse {
            expected.reverse();
        }
        let seen: Vec<u32> = [vec![*first.1], rest(&mut scan).await].concat();
        assert!(seen == expected, "reverse: {reverse}");
        assert_eq!(scan.revision(), Some(filled));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_gives_what_a_sorted_map_would_for_every_range_limit_and_direction() {
    let cluster = single(|_| {}).await;
    fill(&cluster, 0..MANY).await;
    let model: BTreeMap<String, u32> = (0..MANY).map(|n| (name(n), n)).collect();
    let mut dice = Dice(5);
    let page = PAGE_ENTRIES as u64;
    for round in 0..60 {
        let (a, b) = (dice.roll(MANY.into()) as u32, dice.roll(MANY.into()) as u32 + 1);
        let (from, to) = if dice.roll(8) > 0 { (a.min(b), a.max(b)) } else { (0, MANY) };
        let limits = [0, 1, page - 1, page, page + 1, 2 * page, dice.roll(MANY.into()), u32::MAX.into()];
        let (limit, reverse) = (limits[dice.roll(8) as usize] as u32, dice.roll(2) == 0);
        let mut range = cluster.range::<u32>(name(from)..name(to)).limit(limit);
        let mut expected: Vec<u32> = model.range(name(from)..name(to)).map(|(_, n)| *n).collect();
        if reverse {
            range = range.reverse();
            expected.reverse();
        }
        expected.truncate(limit as usize);
        let context = format!("round {round}: {from}..{to}, limit {limit}, reverse {reverse}");
        assert!(rest(&mut range.stream()).await == expected, "{context}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_where_the_bytes_of_a_page_end() {
    let cluster = single(|_| {}).await;
    for n in 0..12u8 {
        let value = Raw::from(vec![n; 900 * 1024]);
        cluster.set(name(n.into()), &value).timeout(Duration::from_secs(60)).await.expect("written");
    }
    assert!(cluster.range::<Raw>(..).await.expect("read").more, "all fits one page");
    let all: Vec<_> = cluster.range::<Raw>(..).reverse().stream().collect().await;
    let fills: Vec<u8> = all.into_iter().map(|next| next.expect("readable").1[0]).collect();
    assert_eq!(fills, (0..12).rev().collect::<Vec<u8>>());
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_of_the_moment_it_is_first_polled() {
    let cluster = single(|_| {}).await;
    let mut scan = cluster.range::<u32>(..).stream();
    assert_eq!(scan.revision(), None);
    let filled = fill(&cluster, 0..3).await;
    assert_eq!((rest(&mut scan).await, scan.revision()), (vec![0, 1, 2], Some(filled)));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_the_history_has_moved_past_says_so_and_ends() {
    let cluster = single(|_| {}).await;
    let filled = fill(&cluster, 0..MANY).await;
    let mut scan = cluster.range::<u32>(..).stream();
    scan.next().await.expect("there are many").expect("readable");
    let last = cluster.set(name(0), &1u32).await.expect("written").revision;
    compact(&cluster, last).await;
    for _ in 1..PAGE_ENTRIES {
        scan.next().await.expect("the page is there").expect("readable");
    }
    let over = scan.next().await;
    assert_eq!(over.map(|next| next.map(drop)), Some(Err(Error::Compacted { requested: filled, oldest: last })));
    assert!(scan.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_its_node() {
    let cluster = single(|_| {}).await;
    fill(&cluster, 0..MANY).await;
    let mut scan = cluster.range::<u32>(..).stream();
    scan.next().await.expect("there are many").expect("readable");
    cluster.shutdown().await.expect("stops");
    let error = loop {
        match scan.next().await.expect("an error comes first") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::Stopped { reason } if !reason.contains("cannot be read")), "{error:?}");
    assert!(scan.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_value_of_another_type_is_an_error_in_its_place_and_the_stream_goes_on() {
    let cluster = single(|_| {}).await;
    fill(&cluster, 0..3).await;
    cluster.set(name(1), &"a text".to_string()).await.expect("written");
    let all: Vec<_> = cluster.range::<u32>(..).stream().collect().await;
    assert!(matches!(&all[..], [Ok(_), Err(Error::Codec { key, .. }), Ok(_)] if *key == name(1)), "{all:?}");
    let list = cluster.range::<u32>(..).await;
    assert!(matches!(list, Err(Error::Codec { .. })), "{list:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_keys_that_cannot_exist_is_refused_and_over() {
    let cluster = single(|_| {}).await;
    let mut scan = cluster.range::<u32>("").stream();
    let refused = scan.next().await;
    assert!(matches!(refused, Some(Err(Error::Invalid { what: "key", .. }))), "{refused:?}");
    assert!(scan.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_count_is_of_the_whole_range_whatever_the_limit() {
    let cluster = single(|_| {}).await;
    fill(&cluster, 0..MANY).await;
    cluster.delete(name(7)).await.expect("deleted");
    let count = async |range: Range<u32>| range.count().await.expect("counted");
    assert_eq!(count(cluster.range(..)).await, u64::from(MANY) - 1);
    assert_eq!(count(cluster.range(name(5)..=name(9)).limit(1).reverse()).await, 4);
    assert_eq!(count(cluster.range(name(9)..name(5))).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_list_tells_the_revision_it_is_of_and_a_watch_goes_on_from_there() {
    let cluster = single(|_| {}).await;
    let filled = fill(&cluster, 0..3).await;
    let list = cluster.range::<u32>(..).await.expect("read");
    assert_eq!((list.revision, list.len(), list.more), (filled, 3, false));
    cluster.set(name(1), &11u32).await.expect("written");
    let mut watch = cluster.watch::<u32>(..).from(list.revision.next()).await.expect("opened");
    let batch = watch.next().await.expect("the node runs").expect("readable");
    assert_eq!((batch.revision, batch.events[0].key()), (filled.next(), &name(1)));
}

#[tokio::test(start_paused = true)]
async fn streams_and_counts_of_every_node_show_what_was_acknowledged_before() {
    let trio = Trio::start().await;
    // So that a follower is behind when the writer has its answer.
    trio.network.delay(Duration::from_millis(5));
    for round in 0..5u32 {
        for (place, node) in trio.nodes.iter().enumerate() {
            let other = &trio.nodes[(place + 1) % 3];
            let at = fill(node, round * 100..round * 100 + 10).await;
            let seen = rest(&mut other.range::<u32>(prefix(format!("k/{:03}", round))).stream()).await;
            assert_eq!(seen.len(), 10, "round {round}");
            let counted = other.range::<u32>(..).count().await.expect("counted");
            assert_eq!(counted, u64::from(round + 1) * 10);
            let mut third = trio.nodes[(place + 2) % 3].range::<u32>(..).at_least(at).limit(1).stream();
            rest(&mut third).await;
            assert!(third.revision() >= Some(at));
            trio.nodes[place].delete(prefix(format!("k/{:03}", round))).await.expect("deleted");
            fill(node, round * 100..round * 100 + 10).await;
        }
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stale_stream_answers_where_a_linearizable_one_waits_for_a_quorum() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let at = fill(&trio.nodes[leader], 0..3).await;
    trio.nodes[follower].node().wait_revision(at).await.expect("applied");
    trio.isolate(follower);
    let timeout = Duration::from_millis(700);
    let waited = trio.nodes[follower].range::<u32>(..).timeout(timeout).stream().next().await;
    assert!(matches!(waited, Some(Err(Error::NotApplied { .. }))), "{waited:?}");
    assert_eq!(rest(&mut trio.nodes[follower].range::<u32>(..).stale().stream()).await, [0, 1, 2]);
    assert_eq!(trio.nodes[follower].range::<u32>(..).stale().count().await, Ok(3));
    trio.stop().await;
}
