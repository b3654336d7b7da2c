//! Bugs that show only where nodes and their callers run on threads of their own.

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::super::support::{converged, eventually};
use crate::api::cluster::Health;
use crate::config::Retention;
use crate::{Cluster, Error, Event, Formation, MemoryNetwork, Peer, Timing};

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

/// openraft's core died of a snapshot that overtook appends which were still on their way to the disk (#2116): a race of the
/// threads of the core, the log and the state.
///
/// Here: under a load that does not stop, on real files, each node in turn, the leader too, is cut off until the others' logs do
/// not reach back to its own; each is sent a snapshot, goes on, and in the end all hold the same and everything acknowledged.
#[tokio::test]
async fn snapshots_that_come_in_while_much_is_written_on_real_threads_and_disks_lose_nothing() {
    let (network, directory) = (MemoryNetwork::new(), tempfile::tempdir().expect("a directory"));
    let peers: Vec<Peer> = (1..=3).map(|n| Peer::new(format!("node-{n}"), "")).collect();
    let start = |peer: &Peer| {
        Cluster::builder(&peer.name)
            .storage(directory.path().join(&peer.name))
            .transport(network.transport(&peer.name))
            .formation(Formation::Peers(peers.clone()))
            .timing(Timing::fast())
            .settings(|settings| {
                settings.retention = Retention { snapshot_entries: 500, kept_entries: 200, ..Retention::default() }
            })
            .into_future()
    };
    let nodes = futures::future::try_join_all(peers.iter().map(start)).await.expect("all start");
    for node in &nodes {
        node.set("formed", &1).await.expect("they form a cluster");
    }
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..12).map(|n| tokio::spawn(write_until(nodes[n % 3].clone(), format!("k{n}"), over.clone()))).collect();
    for victim in (0..3).cycle().take(4) {
        let ends = || nodes[victim].node().log_ends_at();
        let is_left_behind = || {
            let mut others = (0..3).filter(|n| *n != victim);
            others.any(|n| nodes[n].status().is_leader && nodes[n].node().log_starts_at() > ends())
        };
        network.isolate(&peers[victim].name);
        eventually("the others' log begins later", is_left_behind).await;
        let last = ends();
        network.heal();
        eventually("it was sent a snapshot", || nodes[victim].node().log_starts_at() > last).await;
    }
    over.store(true, Ordering::Relaxed);
    for (n, writer) in writers.into_iter().enumerate() {
        let acknowledged = writer.await.expect("no panic");
        let found = nodes[n % 3].get::<u64>(format!("k{n}")).await.expect("read").map_or(0, |entry| *entry);
        assert!(acknowledged > 10 && found >= acknowledged, "k{n} is {found}, {acknowledged} was acknowledged");
    }
    converged(&nodes, "behind four snapshots").await;
    eventually("all serve", || nodes.iter().all(|node| node.status().health == Health::Serving)).await;
    for node in &nodes {
        node.shutdown().await.expect("closes its files");
    }
}

/// Counts up at `key`; what it has come to that was acknowledged.
async fn write_until(node: Cluster, key: String, over: Arc<AtomicBool>) -> u64 {
    let mut acknowledged = 0;
    for count in 1u64.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        match node.set(&key, &count).timeout(Duration::from_secs(1)).await {
            Ok(_) => acknowledged = count,
            Err(Error::NotApplied { .. } | Error::Indeterminate { .. }) => {}
            Err(error) => panic!("{key}: {error}"),
        }
    }
    acknowledged
}
