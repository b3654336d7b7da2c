//! Linearizable and stale reads of one key, on a leader and on a follower.
//!
//! Run with `cargo bench --bench read -- [--quick] [--current-thread]`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod support;

use quorate::{Cluster, Raw};
use support::cluster::{KEYS, Nodes, key};
use support::{DataDir, Options, Sample, Wanted, bar, callers, header};

fn main() {
    let options = Options::from_args();
    header("read", "reads of 256 bytes from 100k keys, nobody writes: 3 nodes in one process", options);
    let directory = DataDir::new("read");
    options.runtime().block_on(run(options, &directory));
}

async fn run(options: Options, directory: &DataDir) {
    let nodes = Nodes::start(directory.path()).await;
    nodes.fill(KEYS).await;
    for (name, node) in nodes.named() {
        let mut linearizable = Vec::new();
        for count in [1, 64, 1024].into_iter().filter(|count| options.includes(name, *count)) {
            linearizable.push(case(options, name, &node, count, false).await);
        }
        for count in [1, 64, 1024].into_iter().filter(|count| options.includes(name, *count)) {
            case(options, name, &node, count, true).await;
        }
        if linearizable.len() < 3 {
            continue;
        }
        let ratio = linearizable[1].per_second() / linearizable[0].per_second();
        bar(&format!("linearizable_reads_64_callers_to_1_{name}"), ratio, Wanted::AtLeast(10.0));
    }
    nodes.stop().await;
}

async fn case(options: Options, name: &str, node: &Cluster, count: usize, stale: bool) -> Sample {
    let reader = node.clone();
    let read = move |random: u64| {
        let get = reader.get::<Raw>(key(random % KEYS));
        async move {
            let found = if stale { get.stale().await } else { get.await };
            found.expect("the read is served").expect("the key is there");
        }
    };
    let sample = callers(options, count, read, || ()).await;
    let kind = if stale { "stale" } else { "linearizable" };
    println!("read kind={kind} callers={count} node={name} {}", sample.line());
    sample
}
