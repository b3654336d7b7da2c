//! Three candidates, one leader at a time, and an observer who is told of each.
//!
//! Run: `cargo run --release --example leader_election`
//!
//! Every node runs for the same office. The first leader is cut off from the others for longer than its time to live: its work
//! is dropped before a successor leads, and what it writes late is refused. Then the successor's node is stopped, and the next
//! candidate follows. Prints who leads with which fence, and `ok`; exits non-zero if a step is not as it should be.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::{Cluster, Error, Formation, Leadership, MemoryNetwork, Observe, Peer, Timing, put};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TTL: Duration = Duration::from_secs(2);
const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let network = MemoryNetwork::new();
    let peers: Vec<Peer> = NAMES.map(|name| Peer::new(name, "")).into();
    let mut nodes = Vec::new();
    for name in NAMES {
        let builder = Cluster::builder(name)
            .in_memory()
            .transport(network.transport(name))
            .timing(Timing::fast())
            .formation(Formation::Peers(peers.clone()));
        nodes.push(builder.await?);
    }
    for node in &nodes {
        node.ready().await?;
    }
    let candidates: Vec<Arc<Candidate>> = NAMES.iter().map(|_| Arc::default()).collect();
    for (node, candidate) in nodes.iter().zip(&candidates) {
        tokio::spawn(run(node.clone(), candidate.clone()));
    }

    let (first, _) = leader(&mut observer(&nodes[0]).await?, 0).await?;
    let mut leaders = observer(&nodes[(first + 1) % 3]).await?;
    let old = candidates[first].latest().await;
    old.txn().then(put("plan", &format!("by {}", NAMES[first]))).await?;

    println!("{} is cut off", NAMES[first]);
    network.isolate(NAMES[first]);
    let (second, fence) = leader(&mut leaders, old.fence().get()).await?;
    check(second != first, "it leads again without having campaigned")?;
    check(old.valid_for().is_zero() && !candidates[first].works(), "the old leader still works")?;
    network.heal();
    match old.txn().then(put("plan", &"late".to_string())).await {
        Err(Error::Fenced { held, .. }) => {
            println!("{} writes late: refused, fence {held} is superseded", NAMES[first])
        }
        other => return Err(format!("the late write was not refused: {other:?}").into()),
    }

    println!("the node of {} is stopped", NAMES[second]);
    let mut leaders = observer(&nodes[first]).await?;
    nodes[second].shutdown().await?;
    let (third, _) = leader(&mut leaders, fence).await?;
    check(third != second, "a stopped node leads")?;
    let plan = nodes[third].get::<String>("plan").await?.ok_or("no plan")?;
    check(*plan == format!("by {}", NAMES[first]), "the late write went through")?;
    for node in &nodes {
        node.shutdown().await?;
    }
    println!("ok");
    Ok(())
}

/// What a candidate knows of itself.
#[derive(Default)]
struct Candidate {
    leadership: Mutex<Option<Arc<Leadership<String>>>>,
    /// Held by the work for as long as it is done.
    work: Arc<()>,
}

impl Candidate {
    /// What it leads by, or led by last. Observers may have been told before the candidate was.
    async fn latest(&self) -> Arc<Leadership<String>> {
        loop {
            if let Some(lead) = &*self.leadership.lock().expect("nobody panics") {
                return lead.clone();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn works(&self) -> bool {
        Arc::strong_count(&self.work) > 1
    }
}

/// Runs for the office for as long as the node runs, and works for ever as the leader.
async fn run(node: Cluster, candidate: Arc<Candidate>) {
    let name = node.status().name;
    let work = |lead: Arc<Leadership<String>>| {
        *candidate.leadership.lock().expect("nobody panics") = Some(lead);
        let working = candidate.work.clone();
        async move {
            let _working = working;
            std::future::pending::<()>().await
        }
    };
    let ended = node.election("scheduler").ttl(TTL).run(&name, work).await;
    println!("{name} runs no more: {}", ended.expect_err("the work never ends"));
}

async fn observer(node: &Cluster) -> Result<Observe<String>, Failure> {
    Ok(node.election("scheduler").observe().await?)
}

/// Place and fence of the next leader whose fence is above `fence`: an observer begins with what its node knows.
async fn leader(leaders: &mut Observe<String>, fence: u64) -> Result<(usize, u64), Failure> {
    loop {
        let told =
            tokio::time::timeout(Duration::from_secs(60), leaders.next()).await?.ok_or("the observer ended")??;
        let Some(leader) = told.filter(|leader| leader.fence.get() > fence) else { continue };
        println!("{} leads with fence {}", leader.value, leader.fence);
        let place = NAMES.iter().position(|name| *name == leader.value).ok_or("a stranger leads")?;
        return Ok((place, leader.fence.get()));
    }
}

fn check(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
