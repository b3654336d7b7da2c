//! How long an event takes from the start of its write to its watchers, on a leader and on a follower.
//!
//! Run with `cargo bench --bench watch -- [--quick] [--current-thread] [--node leader|follower]`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use quorate::{Cluster, Event, Keys, prefix};
use support::cluster::Nodes;
use support::{DataDir, Options, Sample, header, nanos};
use tokio::sync::Notify;

/// The watchers of one case, all of which the writer waits for after each write.
struct Watchers {
    started: Instant,
    missing: AtomicUsize,
    all_told: Notify,
}

fn main() {
    let options = Options::from_args();
    header(
        "watch",
        "from the start of a write on the leader to the event at each watcher, one write at a time",
        options,
    );
    let directory = DataDir::new("watch");
    options.runtime().block_on(run(options, &directory));
}

async fn run(options: Options, directory: &DataDir) {
    let nodes = Nodes::start(directory.path()).await;
    for (name, node) in nodes.named() {
        for watchers in [1, 100, 10_000] {
            if options.includes(name, watchers) {
                case(options, &nodes.leader, &node, name, watchers, true).await;
                case(options, &nodes.leader, &node, name, watchers, false).await;
            }
        }
    }
    nodes.stop().await;
}

/// Either everybody watches the range that is written to, or one watches the key and the others keys beside it.
async fn case(options: Options, writer: &Cluster, node: &Cluster, name: &str, count: usize, everybody: bool) {
    let told = if everybody { count } else { 1 };
    let watchers =
        Arc::new(Watchers { started: Instant::now(), missing: AtomicUsize::new(0), all_told: Notify::new() });
    let mut tasks = Vec::new();
    for number in 0..count {
        let keys: Keys = if everybody { prefix("watch/") } else { format!("watch/{number}").as_str().into() };
        let mut watch = node.watch::<u64>(keys).await.expect("a watch opens");
        let watchers = watchers.clone();
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while let Some(batch) = watch.next().await {
                for event in batch.expect("the watch goes on").events {
                    let Event::Put { entry, .. } = event else { continue };
                    if *entry == u64::MAX {
                        return times;
                    }
                    times.push((watchers.started.elapsed().as_nanos() as u32).wrapping_sub(*entry as u32));
                    if watchers.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
                        watchers.all_told.notify_one();
                    }
                }
            }
            times
        }));
    }
    let started = Instant::now();
    let writes = if options.quick { 30 } else { 200 };
    let mut acknowledged = Vec::new();
    for _ in 0..writes {
        watchers.missing.store(told, Ordering::Release);
        let before = Instant::now();
        // The value says when the write began, modulo what the difference of two times needs.
        let began = u64::from(watchers.started.elapsed().as_nanos() as u32);
        writer.set("watch/0", &began).await.expect("the write is carried out");
        acknowledged.push(nanos(before.elapsed()));
        watchers.all_told.notified().await;
    }
    let seconds = started.elapsed().as_secs_f64();
    for number in 0..count {
        let key = if everybody { "watch/0".into() } else { format!("watch/{number}") };
        writer.set(key, &u64::MAX).await.expect("the write is carried out");
        if everybody {
            break;
        }
    }
    let mut times = Vec::new();
    for task in tasks {
        times.append(&mut task.await.expect("no watcher panics"));
    }
    let (events, writes) = (Sample::new(seconds, times), Sample::new(seconds, acknowledged));
    println!(
        "watch watchers={count} interested={told} node={name} events_per_s={:.0} p50_us={:.1} p99_us={:.1} \
         write_p50_us={:.1} p50_to_write={:.2}",
        events.per_second(),
        events.us(0.5),
        events.us(0.99),
        writes.us(0.5),
        events.us(0.5) / writes.us(0.5),
    );
}
