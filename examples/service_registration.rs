//! Instances that register themselves, and vanish when they stop saying that they live.
//!
//! Run: `cargo run --release --example service_registration`
//!
//! Instances of a service register through one node of three, each with a time to live of three seconds, renewed every
//! second; a watcher on another node sees them come. One leaves, and one dies: the watcher sees it expire. Then the leader is
//! shut down: the instance that is left stays registered. Prints what the watcher saw, and `ok`; exits non-zero if it saw
//! anything else. Takes about ten seconds.

use std::time::{Duration, Instant};

use quorate::{Cause, Cluster, Event, Formation, MemoryNetwork, Peer, Session, Watch, prefix};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TTL: Duration = Duration::from_secs(3);
const REFRESH: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Instance {
    address: String,
}

/// One instance of the service: says every second that it lives, until it is aborted.
async fn instance(cluster: Cluster, key: &'static str, address: &'static str) -> Result<(), Failure> {
    loop {
        cluster.set(key, &Instance { address: address.into() }).ttl(TTL).await?;
        tokio::time::sleep(REFRESH).await;
    }
}

/// The next arrival or departure; renewals are passed over.
async fn next_change(watch: &mut Watch<Instance>) -> Result<String, Failure> {
    loop {
        let batch = watch.next().await.ok_or("the watch ended")??;
        for event in &batch.events {
            match event {
                Event::Put { key, entry, .. } if entry.version == 1 => {
                    return Ok(format!("{key} came, at {}", entry.address));
                }
                Event::Delete { key, cause: Cause::Expired, .. } => return Ok(format!("{key} expired")),
                Event::Delete { key, .. } => return Ok(format!("{key} left")),
                _ => {}
            }
        }
    }
}

/// Fails if the next change is another one, or does not come.
async fn expect(watch: &mut Watch<Instance>, wanted: &str) -> Result<(), Failure> {
    let seen = timeout(Duration::from_secs(30), next_change(watch)).await??;
    println!("watcher: {seen}");
    check(seen == wanted, &format!("it should have been: {wanted}"))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let root = tempfile::tempdir()?;
    let network = MemoryNetwork::new();
    let peers: Vec<Peer> = ["alpha", "beta", "gamma"].map(|name| Peer::new(name, "")).into();
    let mut nodes = Vec::new();
    for peer in &peers {
        let builder = Cluster::builder(&peer.name)
            .storage(root.path().join(&peer.name))
            .transport(network.transport(&peer.name))
            .formation(Formation::Peers(peers.clone()));
        nodes.push(builder.await?);
    }
    println!("waiting for a leader ...");
    for node in &nodes {
        node.ready().await?;
    }
    // The leader will be stopped; the watcher and the instances are on the two others.
    let leader = nodes.iter().position(|node| node.status().is_leader).ok_or("no leader")?;
    let leader = nodes.swap_remove(leader);
    let [here, there] = &nodes[..] else { unreachable!("two are left") };

    let mut watch = there.watch::<Instance>(prefix("web/")).with_initial().await?;
    let one = tokio::spawn(instance(here.clone(), "web/1", "10.0.0.1:80"));
    expect(&mut watch, "web/1 came, at 10.0.0.1:80").await?;
    let two = tokio::spawn(instance(here.clone(), "web/2", "10.0.0.2:80"));
    expect(&mut watch, "web/2 came, at 10.0.0.2:80").await?;

    // A third one holds a session, which renews itself; it leaves properly.
    let session: Session = here.session().ttl(TTL).await?;
    here.set("web/3", &Instance { address: "10.0.0.3:80".into() }).session(&session).await?;
    expect(&mut watch, "web/3 came, at 10.0.0.3:80").await?;
    session.close().await?;
    expect(&mut watch, "web/3 left").await?;

    let died = Instant::now();
    two.abort();
    println!("instance 2 dies");
    expect(&mut watch, "web/2 expired").await?;
    println!("that was {:.1} s after its death", died.elapsed().as_secs_f32());

    println!("the leader, {}, is shut down", leader.status().name);
    leader.shutdown().await?;
    // Longer than the time to live: whoever could not renew would be gone.
    let quiet = timeout(TTL + Duration::from_secs(1), next_change(&mut watch)).await;
    check(quiet.is_err(), &format!("nobody should have come or gone: {quiet:?}"))?;
    let registered = there.range::<Instance>(prefix("web/")).await?;
    let keys: Vec<&str> = registered.iter().map(|(key, _)| key.as_str()).collect();
    println!("still registered under {}: {keys:?}", there.leader().ok_or("no leader")?.name);
    check(keys == ["web/1"], "instance 1 should still be registered")?;

    one.abort();
    for node in &nodes {
        node.shutdown().await?;
    }
    println!("ok");
    Ok(())
}

fn check(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
