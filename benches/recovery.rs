//! How long a node takes to open, after a clean end and after a crash, and the memory it needs for each key.
//!
//! A crash is a child process that exits without closing anything. Run with `cargo bench --bench recovery -- [--quick]`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use quorate::Cluster;
use support::cluster::fill;
use support::{DataDir, Options, header};

/// Set for a child process: the directory that it works on.
const DIRECTORY: &str = "QUORATE_BENCH_RECOVERY_DIRECTORY";
/// And what it does there.
const WORK: &str = "QUORATE_BENCH_RECOVERY_WORK";

fn main() {
    let options = Options::from_args();
    let keys = if options.quick { 100_000 } else { 1_000_000 };
    if let (Some(directory), Ok(work)) = (std::env::var_os(DIRECTORY), std::env::var(WORK)) {
        return options.runtime().block_on(child(Path::new(&directory), &work, keys));
    }
    header("recovery", "opening a node of one with keys of 256 bytes, the files in the system's cache", options);
    let directory = DataDir::new("recovery");
    for work in ["fill and crash", "open after crash", "write and close", "open after close"] {
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.args(std::env::args().skip(1)).env(WORK, work).env(DIRECTORY, directory.path().join("node"));
        assert!(command.status().expect("it runs again").success(), "the child that was to {work} failed");
    }
}

/// Each step has a process of its own, so that a crash is one, and memory is counted from nothing.
async fn child(path: &Path, work: &str, keys: u64) {
    match work {
        "fill and crash" => fill(&start(path).await, keys).await,
        "write and close" => {
            let node = start(path).await;
            fill(&node, 1000).await;
            node.shutdown().await.expect("it shuts down");
        }
        opening => open(path, opening.rsplit(' ').next().expect("a word"), keys).await,
    }
    // Without a destructor of ours: as a kill would leave it.
    std::process::exit(0);
}

async fn start(path: &Path) -> Cluster {
    Cluster::builder("alone").storage(path).await.expect("the node starts")
}

async fn open(path: &Path, after: &str, keys: u64) {
    let before_kb = resident_kb();
    let started = Instant::now();
    let node = start(path).await;
    let opened = started.elapsed();
    let opened_kb = resident_kb();
    node.ready().await.expect("it leads itself");
    let ready = started.elapsed();
    let revision = node.status().revision;
    println!(
        "recovery keys={keys} after={after} open_ms={:.1} ready_ms={:.1} revision={revision} log_mb={:.1} state_mb={:.1} \
         rss_bytes_per_key={:.0}",
        opened.as_secs_f64() * 1e3,
        ready.as_secs_f64() * 1e3,
        megabytes(&path.join("log.wal")),
        megabytes(&path.join("state.redb")),
        (opened_kb.saturating_sub(before_kb) * 1024) as f64 / keys as f64,
    );
    node.shutdown().await.expect("it shuts down");
}

fn megabytes(file: &Path) -> f64 {
    std::fs::metadata(file).map_or(f64::NAN, |file| file.len() as f64 / 1e6)
}

/// What this process holds in memory, pages of the files that redb keeps included.
fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).unwrap_or(0)
}
