//! A transport of your own: three nodes as three processes, talking over loopback TCP.
//!
//! Run: `cargo run --release --example own_transport`
//!
//! The transport itself is `tcp.rs` beside this file, about a hundred lines against the public API. Prints the three
//! processes, what each of them reads of what all have written, and `ok`. Exits non-zero if a process does not see it.

#[allow(dead_code)] // `address` is for the contract test, which shares this file.
mod tcp;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use quorate::{Cluster, Formation, Peer, prefix};
use tcp::Tcp;

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<ExitCode, Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [] => start_processes(),
        [name, directory, peers @ ..] => node(name, directory, peers).await.map(|()| ExitCode::SUCCESS),
        _ => Err("run it without arguments".into()),
    }
}

/// The parent: starts three processes, waits until each has seen everything, and lets them go.
fn start_processes() -> Result<ExitCode, Failure> {
    let directory = tempfile::tempdir()?;
    // Three free ports. Another program could take one in between; then a child says so and the example fails.
    let listeners: Vec<_> =
        (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<Result<_, std::io::Error>>()?;
    let addresses = listeners.iter().map(|l| Ok(l.local_addr()?.to_string())).collect::<Result<Vec<_>, Failure>>()?;
    drop(listeners);
    let mut children: Vec<Child> = Vec::new();
    for name in ["node-1", "node-2", "node-3"] {
        let child = Command::new(std::env::current_exe()?)
            .arg(name)
            .arg(directory.path().join(name))
            .args(&addresses)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        println!("{name} is process {}", child.id());
        children.push(child);
    }
    for child in &mut children {
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line)?;
        print!("{line}");
    }
    // Hanging up tells them to stop.
    children.iter_mut().for_each(|child| drop(child.stdin.take()));
    let mut well = true;
    for child in &mut children {
        well &= child.wait()?.success();
    }
    println!("{}", if well { "ok" } else { "a process failed" });
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A child: one node of the cluster.
async fn node(name: &str, directory: &str, addresses: &[String]) -> Result<(), Failure> {
    let peers: Vec<Peer> =
        addresses.iter().enumerate().map(|(n, address)| Peer::new(format!("node-{}", n + 1), address)).collect();
    let mine = &peers.iter().find(|peer| peer.name == name).ok_or("not one of the three")?.address;
    let cluster = Cluster::builder(name)
        .storage(directory)
        .transport(Tcp::bind(mine)?)
        .formation(Formation::Peers(peers.clone()))
        .await?;
    cluster.ready().await?;
    cluster.set(format!("process/{name}"), &std::process::id()).await?;

    let started = Instant::now();
    let seen = loop {
        let seen = cluster.range::<u32>(prefix("process/")).await?;
        if seen.len() == peers.len() {
            break seen;
        }
        if started.elapsed() > Duration::from_secs(30) {
            return Err(format!("{name} sees only {} of {}", seen.len(), peers.len()).into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let seen: Vec<String> = seen.iter().map(|(key, entry)| format!("{key}={}", entry.value)).collect();
    println!("{name} reads {}", seen.join(" "));

    // Stay until the parent hangs up: the others may still need this node for a quorum.
    tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await??;
    cluster.shutdown().await?;
    Ok(())
}
