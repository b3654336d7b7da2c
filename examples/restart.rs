//! Everything is there after a restart of all nodes.
//!
//! Run: `cargo run --release --example restart`
//!
//! Writes through three nodes on disk, stops all of them, opens the same three directories again, and reads. Prints the
//! revisions before and after and `ok`. Exits non-zero if anything is missing, or if the revisions do not go on.

use std::path::Path;

use quorate::{Cluster, Formation, MemoryNetwork, Peer, Revision, prefix};

type Failure = Box<dyn std::error::Error>;

/// Starts three nodes on the directories below `root`; the same call whether they are new or not.
async fn start(root: &Path) -> Result<Vec<Cluster>, Failure> {
    let network = MemoryNetwork::new();
    let peers: Vec<Peer> = ["alpha", "beta", "gamma"].map(|name| Peer::new(name, "")).into();
    let mut nodes = Vec::new();
    for peer in &peers {
        let node = Cluster::builder(&peer.name)
            .storage(root.join(&peer.name))
            .transport(network.transport(&peer.name))
            .formation(Formation::Peers(peers.clone()))
            .await?;
        nodes.push(node);
    }
    println!("waiting for a leader ...");
    for node in &nodes {
        node.ready().await?;
    }
    Ok(nodes)
}

async fn stop(nodes: Vec<Cluster>) -> Result<(), Failure> {
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let root = tempfile::tempdir()?;

    let nodes = start(root.path()).await?;
    let mut last = Revision::ZERO;
    for n in 0..100u64 {
        // Each write through another node.
        last = nodes[n as usize % 3].set(format!("square/{n:02}"), &(n * n)).await?.revision;
    }
    let (cluster, ids) = (nodes[0].status().cluster, nodes.iter().map(|node| node.status().id).collect::<Vec<_>>());
    println!("wrote 100 keys, the last at revision {last}");
    stop(nodes).await?;
    println!("stopped all three nodes");

    let nodes = start(root.path()).await?;
    let squares = nodes[1].range::<u64>(prefix("square/")).await?;
    println!("opened the same directories: {} keys", squares.len());
    for (n, (key, entry)) in squares.iter().enumerate() {
        if *key != format!("square/{n:02}") || **entry != (n * n) as u64 {
            return Err(format!("{key} is {}", entry.value).into());
        }
    }
    if squares.len() != 100 {
        return Err("keys are missing".into());
    }
    let again = nodes.iter().map(|node| node.status().id).collect::<Vec<_>>();
    if (nodes[0].status().cluster, &again) != (cluster, &ids) {
        return Err("it is not the same cluster of the same nodes".into());
    }
    let next = nodes[2].set("square/00", &0u64).await?.revision;
    println!("the next write is revision {next}");
    if next != last.next() {
        return Err("the revisions do not go on".into());
    }
    stop(nodes).await?;
    println!("ok");
    Ok(())
}
