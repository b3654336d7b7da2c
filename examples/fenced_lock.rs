//! A lock whose holder falls asleep: the next one gets it, and the sleeper's late write is refused.
//!
//! Run: `cargo run --release --example fenced_lock`
//!
//! Two workers on two nodes want one lock. The first holds it and stands still, its whole node with it, for longer than its
//! time to live: as a machine does that is suspended. The second gets the lock with a higher fence. The first wakes up: its
//! guard says that the lock is lost, and its late write is refused. Prints the steps and `ok`; exits non-zero if a step is not
//! as it should be. Takes about five seconds.

use std::sync::mpsc;
use std::time::Duration;

use quorate::{Cluster, Error, Fence, Formation, MemoryNetwork, Peer, Runtime, Timing, put};
use tokio::sync::oneshot;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TTL: Duration = Duration::from_secs(2);

/// Holds the lock, sleeps until it is woken, and goes on as if nothing had happened.
async fn sleeper(node: Cluster, holds: oneshot::Sender<Fence>, alarm: mpsc::Receiver<Fence>) -> Result<(), Failure> {
    node.ready().await?;
    let guard = node.lock("report").ttl(TTL).await?;
    println!("worker 1 holds the lock with fence {}, for another {:.1?}", guard.fence(), guard.valid_for());
    guard.txn().then(put("report", &"by worker 1".to_string())).await?;
    holds.send(guard.fence()).map_err(|_| "nobody listens")?;

    // Not awaited: this thread stands still, and everything of this node runs on it.
    let newer = alarm.recv()?;
    println!("worker 1 wakes up; its guard is valid for {:?}", guard.valid_for());
    check(guard.valid_for().is_zero(), "its own clock should have told it that its time is over")?;
    let late = guard.txn().then(put("report", &"by worker 1, late".to_string())).await;
    match &late {
        Err(Error::Fenced { held, .. }) => println!("it writes, and is refused: fence {held} is superseded by {newer}"),
        other => return Err(format!("the late write was not refused: {other:?}").into()),
    }
    println!("lost: {}", guard.lost().await);
    Ok(node.shutdown().await?)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let root = tempfile::tempdir()?;
    let network = MemoryNetwork::new();
    let peers: Vec<Peer> = ["alpha", "beta", "gamma"].map(|name| Peer::new(name, "")).into();
    let builder = |peer: &Peer| {
        Cluster::builder(&peer.name)
            .storage(root.path().join(&peer.name))
            .transport(network.transport(&peer.name))
            .timing(Timing::fast())
            .formation(Formation::Peers(peers.clone()))
    };
    println!("waiting for a leader ...");
    let ((holds, holder), (alarm, asleep)) = (oneshot::channel(), mpsc::channel());
    let first = builder(&peers[2]).runtime(Runtime::Current);
    let worker_1 = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { sleeper(first.await?, holds, asleep).await })
    });
    let (waiter, other) = (builder(&peers[0]).await?, builder(&peers[1]).await?);

    let fence = holder.await?;
    println!("worker 1 falls asleep");
    let second = waiter.lock("report").ttl(TTL).timeout(Duration::from_secs(30)).await?;
    println!("worker 2 holds the lock with fence {}", second.fence());
    check(second.fence() > fence, "the fence did not go up")?;
    second.txn().then(put("report", &"by worker 2".to_string())).await?;

    alarm.send(second.fence())?;
    worker_1.await??;
    let report = waiter.get::<String>("report").await?.ok_or("no report")?;
    println!("the report is {:?}", report.value);
    check(*report == "by worker 2", "the late write went through")?;

    second.release().await?;
    for node in [waiter, other] {
        node.shutdown().await?;
    }
    println!("ok");
    Ok(())
}

fn check(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
