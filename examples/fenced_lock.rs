//! A lock whose holder falls asleep: the next one gets it, and the sleeper's late write is refused.
//!
//! Run: `cargo run --release --example fenced_lock`
//!
//! Two workers on two nodes want one lock. The first holds it and is cut off from the others for longer than its time to
//! live, as by a long pause. The second gets the lock with a higher fence. The first wakes up: its guard says that the lock
//! is lost, and its late write is refused. Prints the steps and `ok`; exits non-zero if a step is not as it should be.

use std::time::Duration;

use quorate::{Cluster, Error, Formation, MemoryNetwork, Peer, Timing, put};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TTL: Duration = Duration::from_secs(2);

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
            .timing(Timing::fast())
            .formation(Formation::Peers(peers.clone()));
        nodes.push(builder.await?);
    }
    println!("waiting for a leader ...");
    for node in &nodes {
        node.ready().await?;
    }
    // The sleeper is not the leader, so that the others go on without a pause.
    let sleeper = nodes.iter().position(|node| !node.status().is_leader).ok_or("everybody leads")?;
    let sleeper = nodes.swap_remove(sleeper);
    let waiter = nodes[0].clone();

    let first = sleeper.lock("report").ttl(TTL).await?;
    println!("worker 1 holds the lock with fence {}, for another {:.1?}", first.fence(), first.valid_for());
    first.txn().then(put("report", &"by worker 1".to_string())).await?;
    let busy = waiter.lock("report").ttl(TTL).try_now().await?;
    check(busy.is_none(), "two workers hold the lock")?;

    println!("worker 1 falls asleep");
    network.isolate(&sleeper.status().name);
    let second = waiter.lock("report").ttl(TTL).timeout(Duration::from_secs(30)).await?;
    println!("worker 2 holds the lock with fence {}", second.fence());
    check(second.fence() > first.fence(), "the fence did not go up")?;
    second.txn().then(put("report", &"by worker 2".to_string())).await?;

    // Its guard knew before worker 2 could get the lock: its own clock was enough.
    println!("worker 1's guard: valid for {:?}, lost: {}", first.valid_for(), first.lost().await);
    check(first.valid_for().is_zero(), "a lost guard counts as valid")?;

    network.heal();
    println!("worker 1 wakes up and writes late");
    let late = first.txn().then(put("report", &"by worker 1, late".to_string())).await;
    match &late {
        Err(Error::Fenced { held, .. }) => println!("refused: fence {held} is superseded"),
        other => return Err(format!("the late write was not refused: {other:?}").into()),
    }
    let report = sleeper.get::<String>("report").await?.ok_or("no report")?;
    println!("the report is {:?}", report.value);
    check(*report == "by worker 2", "the late write went through")?;

    second.release().await?;
    for node in nodes.iter().chain([&sleeper]) {
        node.shutdown().await?;
    }
    println!("ok");
    Ok(())
}

fn check(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
