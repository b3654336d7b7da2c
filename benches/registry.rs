//! A registry of ten thousand instances: how fast they register and renew, how soon the others know, and what finding them costs.
//!
//! Run with `cargo bench --bench registry -- [--quick] [--current-thread]`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod support;

use std::future::Future;
use std::hint::black_box;
use std::time::{Duration, Instant};

use quorate::{Cluster, Discovery, Instance, Instances, Registration, RegistrationState, Target};
use support::cluster::Nodes;
use support::{DataDir, Options, Sample, header, nanos};

/// So many are under way at once.
const CALLERS: u64 = 256;
/// Far above what a case takes: nothing expires by accident.
const TTL: Duration = Duration::from_secs(120);

fn main() {
    let options = Options::from_args();
    header("registry", "instances registered through the leader and a follower, found on both", options);
    let directory = DataDir::new("registry");
    options.runtime().block_on(run(options, &directory));
}

async fn run(options: Options, directory: &DataDir) {
    let nodes = Nodes::start(directory.path()).await;
    let count = if options.quick { 1000 } else { 10_000 };
    let found = [discovery(&nodes.leader, "target").await, discovery(&nodes.follower, "target").await];
    let (targets, _) = register("target", count, &nodes, &found, target).await;
    renew(targets).await;
    let (held, all) = {
        let found = [discovery(&nodes.leader, "held").await, discovery(&nodes.follower, "held").await];
        register("held", count, &nodes, &found, held).await
    };
    find(&nodes, all).await;
    tell(options, &nodes, &held).await;
    // Not waited for one by one: they end with their nodes.
    held.into_iter().for_each(std::mem::forget);
    nodes.stop().await;
}

async fn discovery(node: &Cluster, service: &str) -> Discovery {
    node.services().discover(service).await.expect("a discovery opens")
}

fn instance(number: u64) -> Instance {
    let address = format!("10.{}.{}.{}:8080", number >> 16 & 255, number >> 8 & 255, number & 255);
    Instance::new(address).meta("zone", ["a", "b", "c"][number as usize % 3]).weight(1 + number as u16 % 20)
}

async fn target(node: Cluster, number: u64) -> Target {
    let register = node.services().register_for("target", format!("{number:05}"), instance(number));
    register.ttl(TTL).await.expect("a target is registered")
}

async fn held(node: Cluster, number: u64) -> Registration {
    let register = node.services().register("held", instance(number));
    register.id(format!("{number:05}")).ttl(TTL).await.expect("an instance is registered")
}

/// Registers `count` of them, by turns on the leader and on a follower, and waits until both list them all.
async fn register<T, F>(
    kind: &str,
    count: u64,
    nodes: &Nodes,
    found: &[Discovery; 2],
    one: fn(Cluster, u64) -> F,
) -> (Vec<T>, [Instances; 2])
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let started = Instant::now();
    let callers = (0..CALLERS).map(|caller| {
        let node = if caller % 2 == 0 { nodes.leader.clone() } else { nodes.follower.clone() };
        tokio::spawn(async move {
            let mut done = Vec::new();
            for number in (caller..count).step_by(CALLERS as usize) {
                let before = Instant::now();
                let registered = one(node.clone(), number).await;
                done.push((registered, nanos(before.elapsed())));
            }
            done
        })
    });
    let callers: Vec<_> = callers.collect();
    let (mut registered, mut times) = (Vec::new(), Vec::new());
    for caller in callers {
        for (one, time) in caller.await.expect("no caller panics") {
            registered.push(one);
            times.push(time);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let acknowledged = Instant::now();
    let mut lists = Vec::new();
    for discovery in found {
        let all = |list: &Instances| list.len() as u64 == count;
        lists.push(discovery.clone().wait_for(all).await.expect("the node runs"));
    }
    let converged = acknowledged.elapsed();
    let sample = Sample::new(seconds, times);
    println!(
        "registry case=register kind={kind} instances={count} callers={CALLERS} per_s={:.0} p50_ms={:.1} p99_ms={:.1} \
         listed_everywhere_after_ms={:.1}",
        sample.per_second(),
        sample.us(0.5) / 1000.0,
        sample.us(0.99) / 1000.0,
        converged.as_secs_f64() * 1000.0,
    );
    (registered, lists.try_into().expect("one for each discovery"))
}

async fn renew(targets: Vec<Target>) {
    let (count, started) = (targets.len(), Instant::now());
    let mut callers: Vec<Vec<Target>> = (0..CALLERS).map(|_| Vec::new()).collect();
    for (place, target) in targets.into_iter().enumerate() {
        callers[place % CALLERS as usize].push(target);
    }
    let renewing = callers.into_iter().map(|targets| {
        tokio::spawn(async move {
            let mut times = Vec::new();
            for mut target in targets {
                let before = Instant::now();
                target.renew().await.expect("a target is renewed");
                times.push(nanos(before.elapsed()));
            }
            times
        })
    });
    let renewing: Vec<_> = renewing.collect();
    let mut times = Vec::new();
    for caller in renewing {
        times.append(&mut caller.await.expect("no caller panics"));
    }
    let sample = Sample::new(started.elapsed().as_secs_f64(), times);
    println!(
        "registry case=renew instances={count} callers={CALLERS} per_s={:.0} p50_ms={:.1} p99_ms={:.1}",
        sample.per_second(),
        sample.us(0.5) / 1000.0,
        sample.us(0.99) / 1000.0,
    );
}

/// What it costs to open a discovery, to look at it, and to choose.
async fn find(nodes: &Nodes, lists: [Instances; 2]) {
    for ((name, node), list) in nodes.named().into_iter().zip(lists) {
        let before = Instant::now();
        let found = discovery(&node, "held").await;
        let opened = before.elapsed();
        let each = |times: u32, work: &dyn Fn()| {
            let before = Instant::now();
            (0..times).for_each(|_| work());
            before.elapsed().as_nanos() as f64 / f64::from(times)
        };
        let load = each(100_000, &|| drop(black_box(found.load())));
        let pick = each(100, &|| drop(black_box(list.pick())));
        let order = each(3, &|| drop(black_box(list.order())));
        println!(
            "registry case=find node={name} instances={} open_ms={:.1} load_ns={load:.0} pick_us={:.1} order_ms={:.2}",
            list.len(),
            opened.as_secs_f64() * 1000.0,
            pick / 1000.0,
            order / 1e6,
        );
    }
}

/// From the start of an update to the event at discoveries of ten thousand on the leader and on a follower.
async fn tell(options: Options, nodes: &Nodes, held: &[Registration]) {
    for (name, node) in nodes.named() {
        let mut found = discovery(&node, "held").await;
        let (started, mut times, mut acknowledged) = (Instant::now(), Vec::new(), Vec::new());
        for (number, registration) in held.iter().enumerate().take(if options.quick { 50 } else { 300 }) {
            let (before, update) = (Instant::now(), instance(number as u64).priority(7));
            let updated = async {
                let state = registration.update(update).await.expect("it is valid");
                assert!(matches!(state, RegistrationState::Registered { .. }), "{state:?}");
                acknowledged.push(nanos(before.elapsed()));
            };
            let told = async {
                found.changed().await.expect("the node runs");
                times.push(nanos(before.elapsed()));
            };
            tokio::join!(updated, told);
        }
        let seconds = started.elapsed().as_secs_f64();
        let (events, writes) = (Sample::new(seconds, times), Sample::new(seconds, acknowledged));
        println!(
            "registry case=update node={name} instances={} p50_us={:.1} p99_us={:.1} write_p50_us={:.1} p50_to_write={:.2}",
            held.len(),
            events.us(0.5),
            events.us(0.99),
            writes.us(0.5),
            events.us(0.5) / writes.us(0.5),
        );
    }
}
