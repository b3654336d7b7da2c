//! Three nodes in this process, on this disk, each on threads of its own.

use std::path::Path;

use quorate::{Cluster, Formation, MemoryNetwork, Peer, Raw};

use super::{Chance, VALUE_BYTES};

/// Distinct keys that are read and written.
pub const KEYS: u64 = 100_000;

pub struct Nodes {
    pub leader: Cluster,
    pub follower: Cluster,
    pub all: Vec<Cluster>,
}

impl Nodes {
    pub async fn start(directory: &Path) -> Self {
        let network = MemoryNetwork::new();
        let peers: Vec<Peer> = (1..=3).map(|n| Peer::new(format!("node-{n}"), "")).collect();
        let mut all = Vec::new();
        for peer in &peers {
            let builder = Cluster::builder(peer.name.clone())
                .storage(directory.join(&peer.name))
                .transport(network.transport(&peer.name))
                .formation(Formation::Peers(peers.clone()));
            all.push(builder.await.expect("the node starts"));
        }
        for node in &all {
            node.ready().await.expect("three nodes in one process find each other");
        }
        let of =
            |leads| all.iter().find(|node| node.status().is_leader == leads).expect("one leads, two follow").clone();
        Nodes { leader: of(true), follower: of(false), all }
    }

    /// Sees to it that every key is there.
    pub async fn fill(&self, keys: u64) {
        fill(&self.leader, keys).await;
    }

    pub fn named(&self) -> [(&'static str, Cluster); 2] {
        [("leader", self.leader.clone()), ("follower", self.follower.clone())]
    }

    /// Whether a change of leaders has mixed the two up meanwhile.
    pub fn have_changed(&self) -> bool {
        !self.leader.status().is_leader
    }

    pub async fn stop(self) {
        for node in self.all {
            node.shutdown().await.expect("it shuts down");
        }
    }
}

/// Writes every key once, 512 at a time. Says so, aside: it takes seconds.
pub async fn fill(node: &Cluster, keys: u64) {
    eprintln!("writing {keys} keys ...");
    let tasks: Vec<_> = (0..512)
        .map(|writer| {
            let node = node.clone();
            tokio::spawn(async move {
                for at in (writer..keys).step_by(512) {
                    node.set(key(at), &value(at)).await.expect("the write is carried out");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no writer panics");
    }
}

pub fn key(number: u64) -> String {
    format!("bench/{number:08}")
}

pub fn value(seed: u64) -> Raw {
    let mut chance = Chance::new(seed);
    // Eight at a time: what the bench itself takes of the processor is missing to the nodes.
    let mut bytes = Vec::with_capacity(VALUE_BYTES + 8);
    while bytes.len() < VALUE_BYTES {
        bytes.extend_from_slice(&chance.next().to_le_bytes());
    }
    bytes.truncate(VALUE_BYTES);
    Raw::from(bytes)
}
