//! A simulated cluster that tests outside of the crate can look at: `tests/leaks.rs` watches what it asks the system for.

use std::future::IntoFuture;
use std::time::Duration;

use crate::api::cluster::Cluster;
use crate::config::Timing;
use crate::node::Formation;
use crate::rt::sim::{self, World};
use crate::transport::MemoryNetwork;
use crate::types::Peer;

/// What a simulated run came to. See [`simulate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Simulated {
    /// Over all that happened.
    pub hash: u64,
    /// How many things that were.
    pub events: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
}

/// Runs three simulated nodes, whose leader is cut off and then killed, and writes and locks until a fixed number of times.
///
/// # Panics
/// If the cluster does not keep its word.
pub fn simulate(seed: u64) -> Simulated {
    let world = World::new(seed, 100);
    let acknowledged = world.block_on(simulated(&world));
    let panics = world.panics();
    assert!(panics.is_empty(), "{panics:?}");
    Simulated { hash: world.hash(), events: world.events(), acknowledged }
}

/// Whether this thread is polling, or dropping, a task of a simulated process.
pub fn in_a_simulated_process() -> bool {
    sim::current().is_some()
}

/// Runs `work` inside a simulated process.
pub fn run_in_a_simulated_process<T>(work: impl FnOnce() -> T) -> T {
    World::new(1, 1).block_on(async { work() })
}

async fn simulated(world: &World) -> u64 {
    let network = MemoryNetwork::new();
    network.delay(Duration::from_millis(1));
    let peers: Vec<Peer> = (1..=3).map(|n| Peer::new(format!("node-{n}"), "")).collect();
    let mut nodes = Vec::new();
    for peer in &peers {
        let process = world.context(&peer.name, 0);
        // As a host would: what would wait for a thread in production runs inline in a simulated process.
        let builder = Cluster::builder(peer.name.clone())
            .in_memory()
            .transport(network.transport(peer.name.clone()))
            .formation(Formation::Peers(peers.clone()))
            .timing(Timing::fast());
        nodes.push((process.enter(builder.into_future()).await.expect("starts"), process));
    }
    for (node, _) in &nodes {
        node.ready().await.expect("a leader is elected");
    }
    let mut acknowledged = 0;
    let leader = nodes.iter().position(|(node, _)| node.status().is_leader).expect("somebody leads");
    for round in 0..60 {
        match round {
            20 => network.isolate(peers[leader].name.clone()),
            40 => nodes[leader].1.kill(),
            _ => {}
        }
        let (node, _) = &nodes[(leader + 1 + round % 2) % 3];
        let written =
            node.set("round", &round).timeout(Duration::from_secs(60)).await.expect("written by the majority");
        let read = node.get::<usize>("round").await.expect("read").expect("just written");
        assert_eq!((*read, read.modified), (round, written.revision));
        acknowledged += 1;
        if round % 10 == 0 {
            drop(node.lock("turn").await.expect("granted"));
        }
    }
    acknowledged
}
