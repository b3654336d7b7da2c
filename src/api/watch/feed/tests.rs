//! Lists of several pages, seen page by page.

use std::time::Duration;

use super::*;
use crate::Cluster;
use crate::api::watch::tests::{compact, single};
use crate::codec::Raw;

/// Two of them fill more than one page's bytes.
const VALUE_BYTES: usize = 900 * 1024;

async fn put(cluster: &Cluster, key: u32, fill: u8) -> Revision {
    let value = Raw::from(vec![fill; VALUE_BYTES]);
    cluster.set(format!("k/{key:02}"), &value).timeout(Duration::from_secs(60)).await.unwrap().revision
}

/// What the list holds: the first byte of each value.
fn fills(batch: &Stored) -> Vec<u8> {
    let fill = |event: &StoredEvent| match event {
        StoredEvent::Put { entry, .. } => *entry.value.last().unwrap(),
        StoredEvent::Delete { .. } => panic!("{event:?}"),
    };
    batch.events.iter().map(fill).collect()
}

async fn opened(cluster: &Cluster) -> Feed {
    let keys = crate::prefix("k/").stored().unwrap();
    Feed::open(cluster.node(), keys, Start::Initial, Lag::Coalesce, false).unwrap()
}

/// How many pages it took, and the batch.
fn read_on(feed: &mut Feed) -> (usize, Stored) {
    for pages in 1.. {
        match feed.list() {
            Piece::Again => assert!(pages < 100),
            Piece::Batch(batch) => return (pages, batch),
            Piece::Wait | Piece::End(_) => panic!("the list has ended"),
        }
    }
    unreachable!()
}

#[tokio::test(start_paused = true)]
async fn a_list_of_several_pages_shows_one_revision_whatever_is_written_in_between() {
    let cluster = single(|_| {}).await;
    let mut last = Revision::ZERO;
    for key in 0..12 {
        last = put(&cluster, key, 1).await;
    }
    let mut feed = opened(&cluster).await;
    assert!(matches!(feed.list(), Piece::Again), "all fits one page");
    for key in [0, 6, 11, 12] {
        put(&cluster, key, 2).await;
    }
    cluster.delete("k/10").await.unwrap();
    let (pages, batch) = read_on(&mut feed);
    assert!(pages > 1, "all but the first fits one page");
    assert_eq!((batch.revision, fills(&batch)), (last, vec![1; 12]));
    assert_eq!(feed.place, last);
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_revision_is_forgotten_half_way_is_begun_anew() {
    let cluster = single(|_| {}).await;
    for key in 0..12 {
        put(&cluster, key, 1).await;
    }
    let mut feed = opened(&cluster).await;
    assert!(matches!(feed.list(), Piece::Again));
    let last = put(&cluster, 11, 2).await;
    compact(&cluster, last).await;
    let (_, batch) = read_on(&mut feed);
    assert_eq!((batch.revision, batch.kind), (last, BatchKind::Initial));
    assert_eq!(fills(&batch), [vec![1; 11], vec![2]].concat());
}

#[tokio::test(start_paused = true)]
async fn a_list_ends_with_the_node() {
    let cluster = single(|_| {}).await;
    let mut feed = opened(&cluster).await;
    cluster.shutdown().await.unwrap();
    assert!(matches!(feed.list(), Piece::End(Error::Stopped { .. })));
}
