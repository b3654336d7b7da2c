//! Writes and linearizable reads of many callers on a leader and on a follower, beside what the disk itself can sync.
//!
//! Run with `cargo bench --features internals --bench propose -- [--quick] [--current-thread]`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod support;

use std::collections::BTreeMap;

use quorate::internals::counters;
use quorate::{Cluster, Raw};
use support::cluster::{KEYS, Nodes, key, value};
use support::disk::Limit;
use support::{DataDir, Options, Sample, Wanted, bar, callers, header, processor_seconds};

const CALLERS: [usize; 5] = [1, 16, 64, 256, 1024];

fn main() {
    let options = Options::from_args();
    header("propose", "durable writes of 256 bytes to 100k keys: 3 nodes in one process, on one disk", options);
    let directory = DataDir::new("propose");
    options.runtime().block_on(run(options, &directory));
}

async fn run(options: Options, directory: &DataDir) {
    let mut limit = Limit::new();
    if !options.bare {
        limit.measure(directory.path(), options.quick);
    }
    let nodes = Nodes::start(directory.path()).await;
    nodes.fill(if options.bare { 0 } else { KEYS }).await;
    let mut writes = BTreeMap::new();
    for (name, node) in nodes.named() {
        for count in CALLERS.into_iter().filter(|count| options.includes(name, *count)) {
            let sample = case(options, &nodes, name, &node, count).await;
            writes.insert((name, count), sample);
        }
        // Between the cases too: the disk of a shared machine is not the same all the time.
        if !options.bare {
            limit.measure(directory.path(), options.quick);
        }
    }
    if writes.len() < 2 * CALLERS.len() {
        return nodes.stop().await;
    }
    let one = read_case(options, &nodes, 1).await;
    let many = read_case(options, &nodes, 64).await;
    nodes.stop().await;
    print_bars(&limit, &writes, many.per_second() / one.per_second());
}

async fn case(options: Options, nodes: &Nodes, name: &str, node: &Cluster, count: usize) -> Sample {
    let writer = node.clone();
    let write = move |random: u64| {
        let (node, value): (_, Raw) = (writer.clone(), value(random));
        async move {
            node.set(key(random % KEYS), &value).await.expect("the write is carried out");
        }
    };
    let (mut edges, mut used) = (Vec::new(), Vec::new());
    let at_edges = || {
        edges.push(nodes.all.iter().map(counters).collect::<Vec<_>>());
        used.push(processor_seconds());
    };
    let sample = callers(options, count, write, at_edges).await;
    let during = |of: fn(&quorate::internals::Counters) -> u64| -> f64 {
        let sum = |edge: &[quorate::internals::Counters]| edge.iter().map(of).sum::<u64>();
        (sum(&edges[1]) - sum(&edges[0])) as f64
    };
    let (syncs, entries) = (during(|now| now.log_syncs), during(|now| now.applied));
    println!(
        "propose callers={count} node={name} {} syncs_per_s={:.0} entries_per_sync={:.1} cpu_us_per_op={:.1}{}",
        sample.line(),
        syncs / sample.seconds,
        entries / syncs,
        (used[1] - used[0]) * 1e6 / sample.count() as f64,
        if nodes.have_changed() { " leader_changed=true" } else { "" },
    );
    sample
}

async fn read_case(options: Options, nodes: &Nodes, count: usize) -> Sample {
    let reader = nodes.leader.clone();
    let read = move |random: u64| {
        let node = reader.clone();
        async move {
            node.get::<Raw>(key(random % KEYS)).await.expect("the read is served");
        }
    };
    let sample = callers(options, count, read, || ()).await;
    println!("read kind=linearizable callers={count} node=leader {}", sample.line());
    sample
}

fn print_bars(limit: &Limit, writes: &BTreeMap<(&str, usize), Sample>, reads: f64) {
    let (per_second, p50_us) = (limit.per_second(), limit.p50_us());
    println!("limit syncs_per_s={per_second:.0} p50_us={p50_us:.1}");
    bar("one_caller_p50_to_raw_p50", writes[&("leader", 1)].us(0.5) / p50_us, Wanted::AtMost(2.0));
    for (count, wanted) in [(64, 3.6), (256, 5.8), (1024, 6.5)] {
        let value = writes[&("leader", count)].per_second() / per_second;
        bar(&format!("leader_{count}_callers_to_raw_syncs"), value, Wanted::AtLeast(wanted));
    }
    let spread = &writes[&("leader", 256)];
    bar("leader_256_callers_p99_to_p50", spread.us(0.99) / spread.us(0.5), Wanted::AtMost(8.0));
    for count in CALLERS {
        let value = writes[&("follower", count)].per_second() / writes[&("leader", count)].per_second();
        bar(&format!("follower_to_leader_{count}_callers"), value, Wanted::AtLeast(2.0 / 3.0));
    }
    bar("linearizable_reads_64_callers_to_1", reads, Wanted::AtLeast(10.0));
}
