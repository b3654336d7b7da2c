//! Reading a mirror of ten thousand entries, and how long a write takes to be seen in it, on a leader and on a follower.
//!
//! Run with `cargo bench --bench mirror -- [--quick] [--current-thread] [--node leader|follower]`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod support;

use std::hint::black_box;
use std::time::Instant;

use quorate::{Cluster, Mirror, Raw, prefix};
use support::cluster::{Nodes, key, value};
use support::{Chance, DataDir, Options, Sample, header, nanos};

/// Entries of 256 bytes in the mirror.
const ENTRIES: u64 = 10_000;

fn main() {
    let options = Options::from_args();
    header(
        "mirror",
        "10k entries of 256 bytes: reads, and from the start of a write on the leader to its sight",
        options,
    );
    let directory = DataDir::new("mirror");
    options.runtime().block_on(run(options, &directory));
}

async fn run(options: Options, directory: &DataDir) {
    let nodes = Nodes::start(directory.path()).await;
    nodes.fill(ENTRIES).await;
    for (name, node) in nodes.named() {
        if !options.includes(name, 1) {
            continue;
        }
        let before = Instant::now();
        let mirror = node.mirror::<Raw>(prefix("bench/")).await.expect("a mirror opens");
        let opened = before.elapsed();
        assert_eq!(mirror.load().len() as u64, ENTRIES);
        println!("mirror op=open node={name} entries={ENTRIES} ms={:.2}", opened.as_secs_f64() * 1e3);
        reads(options, &mirror, name);
        sight(options, &nodes.leader, mirror, name).await;
    }
    nodes.stop().await;
}

fn reads(options: Options, mirror: &Mirror<Raw>, name: &str) {
    let keys: Vec<String> = (0..ENTRIES).map(key).collect();
    let mut chance = Chance::new(1);
    let rounds = if options.quick { 200_000 } else { 2_000_000 };
    print(name, "load", rounds, || drop(black_box(mirror.load())));
    let state = mirror.load();
    print(name, "get", rounds, || {
        let key = &keys[chance.below(ENTRIES) as usize];
        black_box(state.get(key).expect("it is readable").expect("it is there"));
    });
    let walks = rounds / 2000;
    print(name, "iterate_all", walks, || assert_eq!(black_box(state.iter().count()) as u64, ENTRIES));
}

fn print(name: &str, op: &str, rounds: u64, mut operation: impl FnMut()) {
    let before = Instant::now();
    (0..rounds).for_each(|_| operation());
    let each = before.elapsed().as_nanos() as f64 / rounds as f64;
    println!("mirror op={op} node={name} entries={ENTRIES} ns={each:.1}");
}

async fn sight(options: Options, writer: &Cluster, mut mirror: Mirror<Raw>, name: &str) {
    let writes = if options.quick { 200 } else { 2000 };
    let mut chance = Chance::new(2);
    let (mut seen, mut acknowledged) = (Vec::new(), Vec::new());
    mirror.borrow_and_update();
    let started = Instant::now();
    for round in 0..writes {
        let before = Instant::now();
        let (write, sight) = (writer.set(key(chance.below(ENTRIES)), &value(round)), mirror.changed());
        let write = async {
            write.await.expect("the write is carried out");
            nanos(before.elapsed())
        };
        let sight = async {
            assert_eq!(sight.await.expect("the mirror goes on").len(), 1);
            nanos(before.elapsed())
        };
        let (written, sighted) = futures::future::join(write, sight).await;
        acknowledged.push(written);
        seen.push(sighted);
    }
    let seconds = started.elapsed().as_secs_f64();
    let (seen, writes) = (Sample::new(seconds, seen), Sample::new(seconds, acknowledged));
    println!(
        "mirror op=sight node={name} entries={ENTRIES} p50_us={:.1} p99_us={:.1} write_p50_us={:.1} p50_to_write={:.2}",
        seen.us(0.5),
        seen.us(0.99),
        writes.us(0.5),
        seen.us(0.5) / writes.us(0.5),
    );
}
