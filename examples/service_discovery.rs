//! A service that is found by its clients, and by an nginx whose upstream file follows the registry.
//!
//! Run: `cargo run --release --example service_discovery`
//!
//! Instances register through two nodes; on the third, clients choose among them by priority and weight, and a task keeps an
//! upstream file equal to the registry: changes that come close together are written once, the file is replaced as a whole,
//! and it stays as it is when there is nobody to send requests to. One instance fails its health probe, one is restarted, all
//! leave. Prints each version of the file, and `ok`; exits non-zero if one is not as it should be.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate::{Cluster, Departure, Discovery, Instance, InstanceEvent, Instances};
use tokio::time::{sleep, timeout};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TTL: Duration = Duration::from_secs(3);
/// The registry has to be quiet for so long before the file is written, or changing for so much longer.
const QUIET: Duration = Duration::from_millis(200);
const IMPATIENT: Duration = Duration::from_secs(2);

/// What nginx reads: the instances of the lowest priority, the others as backup. `None`: not fit to be read.
fn upstream(web: &Instances) -> Option<String> {
    let first = web.iter().map(|(_, web)| web.priority).min()?;
    let mut text = String::from("upstream web {\n");
    for (id, web) in web.iter() {
        let role = if web.priority == first { format!("weight={}", web.weight.max(1)) } else { "backup".into() };
        writeln!(text, "    server {} {role}; # {id}", web.address()).ok()?;
    }
    Some(text + "}\n")
}

/// Replaces the file as a whole: a reader sees the old one or the new one, also after a loss of power.
async fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    let candidate = path.with_extension("candidate");
    tokio::fs::write(&candidate, text).await?;
    tokio::fs::File::open(&candidate).await?.sync_all().await?;
    // Here a real one would run `nginx -t` on the candidate, and `nginx -s reload` behind the rename.
    tokio::fs::rename(&candidate, path).await?;
    Ok(())
}

/// Keeps the file equal to the registry for ever.
async fn keep(mut web: Discovery, path: PathBuf) -> Result<(), Failure> {
    let mut written = String::new();
    loop {
        match upstream(&web.load()) {
            Some(text) if text != written => {
                replace(&path, &text).await?;
                written = text;
            }
            // The last good one is better than none: whoever is gone may only be cut off.
            _ => {}
        }
        web.changed().await?;
        let began = Instant::now();
        while began.elapsed() < IMPATIENT && timeout(QUIET, web.changed()).await.is_ok_and(|changed| changed.is_ok()) {}
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let (directory, nodes) = (tempfile::tempdir()?, Cluster::local(3).await?);
    let path = directory.path().join("web.conf");
    let mut web = nodes[2].services().discover("web").await?;
    let keeper = tokio::spawn(keep(web.clone(), path.clone()));

    let (services, elsewhere) = (nodes[0].services(), nodes[1].services());
    let one = Instance::new("10.0.0.1:80").weight(30);
    let one = services.register("web", one).id("web-1").ttl(TTL).refresh(Duration::from_secs(1)).await?;
    let (well, asked) = (Arc::new(AtomicBool::new(true)), Duration::from_millis(100));
    let probed = well.clone();
    let probe = move || std::future::ready(probed.load(Ordering::Relaxed));
    let two = Instance::new("10.0.0.2:80").weight(10);
    let two = elsewhere.register("web", two).id("web-2").ttl(TTL).healthy_when(probe).probe_every(asked).await?;
    let spare = elsewhere.register("web", Instance::new("10.0.0.9:80").priority(20)).id("web-9").ttl(TTL).await?;
    follows(&path, &["10.0.0.1:80 weight=30", "10.0.0.2:80 weight=10", "10.0.0.9:80 backup"]).await?;

    web.wait_for(|web| web.len() == 3).await?;
    let picks = (0..4000).filter_map(|_| web.pick()).filter(|web| web.host == "10.0.0.1").count();
    println!("of 4000 requests, {picks} go to web-1, and none to the backup while there are others");
    check((2800..3200).contains(&picks), "web-1 should be picked three times of four")?;
    check(web.order().last().is_some_and(|last| last.host == "10.0.0.9"), "the backup should be tried last")?;

    println!("web-2's health probe says no");
    well.store(false, Ordering::Relaxed);
    follows(&path, &["10.0.0.1:80 weight=30", "10.0.0.9:80 backup"]).await?;
    let events = web.changed().await?;
    let sick = |event: &InstanceEvent| matches!(event, InstanceEvent::Gone { why: Departure::Unhealthy(_), .. });
    check(events.iter().any(sick), &format!("web-2 should have left for its health: {events:?}"))?;

    println!("web-1 is started a second time, at another address, before the first one's time is over");
    let again = elsewhere.register("web", Instance::new("10.0.0.3:80").weight(30)).id("web-1").ttl(TTL).await?;
    follows(&path, &["10.0.0.3:80 weight=30", "10.0.0.9:80 backup"]).await?;
    println!("the first one: {:?}", one.states().wait_for(|state| state.is_final()).await);

    println!("all leave: the file stays");
    again.deregister().await?;
    follows(&path, &["10.0.0.9:80 weight=10"]).await?;
    spare.deregister().await?;
    two.deregister().await?;
    web.wait_for(Instances::is_empty).await?;
    sleep(QUIET * 5).await;
    follows(&path, &["10.0.0.9:80 weight=10"]).await?;

    check(!keeper.is_finished(), "the keeper of the file has given up")?;
    keeper.abort();
    for node in &nodes {
        node.shutdown().await?;
    }
    println!("ok");
    Ok(())
}

/// Waits until the file lists exactly these servers.
async fn follows(path: &Path, servers: &[&str]) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let text = tokio::fs::read_to_string(path).await.unwrap_or_default();
        let listed = text.lines().filter_map(|line| line.trim().strip_prefix("server ")?.split(';').next());
        if listed.eq(servers.iter().copied()) {
            println!("{text}");
            return Ok(());
        }
        check(
            began.elapsed() < Duration::from_secs(20),
            &format!("the file should list {servers:?}, but is:\n{text}"),
        )?;
        sleep(Duration::from_millis(20)).await;
    }
}

fn check(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
