//! Bugs that show only where nodes and their callers run on threads of their own.

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Cluster, Event};

const WRITES: u64 = 1500;

/// Watches of etcd that were opened while much was written missed what came between the look at the present and the first event
/// (#20655): a race of two threads.
///
/// Here: a watch that begins with the present state goes on right behind it, however often one is opened.
#[test]
fn watches_that_are_opened_without_a_pause_while_others_write_miss_nothing() {
    let opened = Arc::new(AtomicU64::new(0));
    let cluster = futures::executor::block_on(Cluster::local(1)).expect("starts").remove(0);
    futures::executor::block_on(cluster.set("k", &0u64).into_future()).expect("written");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (cluster, opened) = (cluster.clone(), opened.clone());
            scope.spawn(move || {
                let mut seen = 0;
                while seen < WRITES {
                    seen = futures::executor::block_on(some_events(&cluster, seen));
                    opened.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for written in 1..=WRITES {
            futures::executor::block_on(cluster.set("k", &written).into_future()).expect("written");
        }
    });
    let opened = opened.load(Ordering::Relaxed);
    assert!(opened > 50, "only {opened} watches were opened meanwhile");
    futures::executor::block_on(cluster.shutdown()).expect("stops");
}

/// Opens a watch that begins with the present, and follows it for three batches or to the last write; the last value seen.
async fn some_events(cluster: &Cluster, before: u64) -> u64 {
    let mut watch = cluster.watch::<u64>("k").with_initial().backpressure().await.expect("opens");
    let mut seen = None;
    for _ in 0..3 {
        let batch = watch.next().await.expect("goes on").expect("reads");
        for event in batch.events {
            let Event::Put { entry, .. } = event else { panic!("{event:?}") };
            assert!(seen.is_none_or(|seen| *entry == seen + 1), "{} came behind {seen:?}", *entry);
            assert!(*entry >= before, "{} came after {before} had been seen", *entry);
            seen = Some(*entry);
        }
        if seen == Some(WRITES) {
            break;
        }
    }
    seen.expect("there was one")
}
