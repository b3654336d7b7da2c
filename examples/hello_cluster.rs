//! Three nodes on disk in one process: typed values, a watch, a time to live, a conditional write.
//!
//! Run: `cargo run --release --example hello_cluster`
//!
//! Prints what each step saw, and `ok`. Exits non-zero if a step does not show what it should. Set `RUST_LOG=quorate=info`
//! to see elections.

use std::time::Duration;

use quorate::{Cas, Cause, Cluster, Event, Formation, MemoryNetwork, Peer, prefix};
use serde::{Deserialize, Serialize};

type Failure = Box<dyn std::error::Error>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Config {
    pool: u32,
    log: String,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let root = tempfile::tempdir()?;
    let network = MemoryNetwork::new();
    let peers: Vec<Peer> = ["alpha", "beta", "gamma"].map(|name| Peer::new(name, "")).into();

    // The same call on every node, whichever is started first. In a real service this is one node per process.
    let mut nodes = Vec::new();
    for peer in &peers {
        let node = Cluster::builder(&peer.name)
            .storage(root.path().join(&peer.name))
            .transport(network.transport(&peer.name))
            .formation(Formation::Peers(peers.clone()))
            .await?;
        nodes.push(node);
    }
    let [alpha, beta, gamma] = &nodes[..] else { unreachable!("three were started") };
    println!("waiting for a leader ...");
    for node in &nodes {
        node.ready().await?;
    }
    println!("leader: {}", alpha.leader().ok_or("no leader")?.name);

    // Any node takes writes; any node answers reads with everything that was written before.
    let mut watch = gamma.watch::<Config>(prefix("config/")).await?;
    let first = Config { pool: 8, log: "info".into() };
    let written = alpha.set("config/web", &first).await?;
    let read = beta.get::<Config>("config/web").await?.ok_or("beta does not see it")?;
    println!("alpha wrote revision {}, beta reads {:?}", written.revision, read.value);
    check(read.value == first && read.modified == written.revision, "beta read something else")?;

    // A write that depends on what was read.
    let second = Config { pool: 16, ..first.clone() };
    let swapped = beta.set("config/web", &second).if_rev(read.modified).await?;
    let late = gamma.set("config/web", &first).if_rev(read.modified).await?;
    println!("beta's swap: {}, gamma's late one: {}", said(&swapped), said(&late));
    check(swapped.is_applied() && !late.is_applied(), "both or none were applied")?;

    // A key that goes by itself.
    alpha.set("config/tmp", &first).ttl(Duration::from_millis(500)).await?;
    println!("config/tmp has {:?} left", beta.remaining("config/tmp").await?.ok_or("it has no time to live")?);

    // The watcher on gamma saw all of it, in order.
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let batch = tokio::time::timeout(Duration::from_secs(30), watch.next()).await?.ok_or("the watch ended")??;
        for event in &batch.events {
            let what = match event {
                Event::Put { key, entry, .. } => format!("{key} pool={}", entry.pool),
                Event::Delete { key, cause: Cause::Expired, .. } => format!("{key} expired"),
                other => format!("{other:?}"),
            };
            println!("gamma saw revision {}: {what}", batch.revision);
            seen.push(what);
        }
    }
    let wanted = ["config/web pool=8", "config/web pool=16", "config/tmp pool=8", "config/tmp expired"];
    check(seen == wanted, "the watch saw something else")?;

    for node in &nodes {
        node.shutdown().await?;
    }
    println!("ok");
    Ok(())
}

fn said(cas: &Cas<Config>) -> String {
    match cas {
        Cas::Applied(written) => format!("applied at {}", written.revision),
        Cas::Conflict(Some(now)) => format!("conflict, it is at {} now", now.modified),
        Cas::Conflict(None) => "conflict, it is gone".into(),
    }
}

fn check(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
