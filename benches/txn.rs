//! Read-modify-writes of many callers on one number and on many, as closures and as updates, beside plain writes.
//!
//! Run with `cargo bench --bench txn -- [--quick] [--current-thread] [--callers N] [--node leader|follower]`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate::Cluster;
use support::cluster::{KEYS, Nodes};
use support::{DataDir, Options, Sample, Wanted, bar, callers, header};

const CALLERS: [usize; 3] = [1, 16, 64];

/// How a number is made one greater.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Not at all: it is only written.
    Set,
    Update,
    Txn,
}

fn main() {
    let options = Options::from_args();
    header(
        "txn",
        "one added to a number: to one that all callers share, or to one of 100k: 3 nodes in one process",
        options,
    );
    let directory = DataDir::new("txn");
    options.runtime().block_on(run(options, &directory));
}

async fn run(options: Options, directory: &DataDir) {
    let nodes = Nodes::start(directory.path()).await;
    for (name, node) in nodes.named() {
        let mut samples = BTreeMap::new();
        for (kind, numbers) in
            [(Kind::Set, KEYS), (Kind::Update, KEYS), (Kind::Txn, KEYS), (Kind::Update, 1), (Kind::Txn, 1)]
        {
            for count in CALLERS.into_iter().filter(|count| options.includes(name, *count)) {
                let sample = case(options, name, &node, kind, numbers, count).await;
                samples.insert((kind, numbers, count), sample.per_second());
            }
        }
        if samples.len() == 5 * CALLERS.len() {
            print_bars(name, &samples);
        }
    }
    nodes.stop().await;
}

async fn case(options: Options, name: &str, node: &Cluster, kind: Kind, numbers: u64, count: usize) -> Sample {
    let (adding, attempts, done) = (node.clone(), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (tried, ended) = (attempts.clone(), done.clone());
    let add = move |random: u64| {
        let (node, tried, ended) = (adding.clone(), tried.clone(), ended.clone());
        let key = format!("{numbers}/{:06}", random % numbers);
        async move {
            tried.fetch_add(u64::from(add_one(&node, kind, key).await), Ordering::Relaxed);
            ended.fetch_add(1, Ordering::Relaxed);
        }
    };
    let sample = callers(options, count, add, || ()).await;
    let attempts = attempts.load(Ordering::Relaxed) as f64 / done.load(Ordering::Relaxed) as f64;
    let kind = format!("{kind:?}").to_lowercase();
    println!(
        "txn kind={kind} numbers={numbers} callers={count} node={name} {} attempts_per_op={attempts:.2}",
        sample.line()
    );
    sample
}

/// Adds one; how many attempts it took.
async fn add_one(node: &Cluster, kind: Kind, key: String) -> u32 {
    match kind {
        Kind::Set => {
            node.set(&key, &1u64).await.expect("it is written");
            1
        }
        Kind::Update => {
            let add = |n: Option<&u64>| Some(n.map_or(1, |n| n + 1));
            node.update(&key, add).await.expect("it is updated").attempts
        }
        Kind::Txn => {
            let add = move |t: &mut quorate::Txn| {
                let next = t.get::<u64>(&key)?.map_or(1, |n| *n + 1);
                t.put(&key, &next)?;
                Ok(())
            };
            node.txn(add).await.expect("it is committed").attempts
        }
    }
}

fn print_bars(name: &str, per_second: &BTreeMap<(Kind, u64, usize), f64>) {
    let set = per_second[&(Kind::Set, KEYS, 64)];
    // An update is one round trip, as a write is; a closure is one more, for its moment.
    bar(&format!("update_to_set_64_callers_{name}"), per_second[&(Kind::Update, KEYS, 64)] / set, Wanted::AtLeast(0.7));
    bar(&format!("txn_to_set_64_callers_{name}"), per_second[&(Kind::Txn, KEYS, 64)] / set, Wanted::AtLeast(0.4));
}
