//! How fast a lock and an office pass from one holder to the next, beside the time that one write takes.
//!
//! Run with `cargo bench --bench recipes -- [--quick] [--current-thread] [--callers N] [--node leader|follower]`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod support;

use std::future::IntoFuture;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate::{Cluster, Leadership};
use support::cluster::Nodes;
use support::{DataDir, Options, Sample, callers, header, nanos};

fn main() {
    let options = Options::from_args();
    header("recipes", "locks and elections: free ones, and from a release to the next holder", options);
    let directory = DataDir::new("recipes");
    options.runtime().block_on(run(options, &directory));
}

async fn run(options: Options, directory: &DataDir) {
    let nodes = Nodes::start(directory.path()).await;
    for (name, node) in nodes.named() {
        if !options.includes(name, options.callers.unwrap_or(1)) {
            continue;
        }
        let write = write_case(options, &node, name).await;
        free_lock(options, &node, name, &write).await;
        for waiting in [1, 15] {
            handed_lock(options, &nodes, &node, name, waiting, &write).await;
        }
        handed_office(options, &nodes, &node, name, &write).await;
    }
    nodes.stop().await;
}

/// One write at a time: what everything else here is made of.
async fn write_case(options: Options, node: &Cluster, name: &str) -> Sample {
    let writer = node.clone();
    let write = move |random: u64| {
        let node = writer.clone();
        async move {
            node.set("bench/key", &random).await.expect("the write is carried out");
        }
    };
    let sample = callers(options, 1, write, || ()).await;
    println!("write callers=1 node={name} {}", sample.line());
    sample
}

/// A lock that nobody else wants, taken and released.
async fn free_lock(options: Options, node: &Cluster, name: &str, write: &Sample) {
    let holder = node.clone();
    let take = move |_| {
        let node = holder.clone();
        async move {
            let guard = node.lock("bench/free").await.expect("nobody else wants it");
            guard.release().await.expect("it is held");
        }
    };
    let sample = callers(options, 1, take, || ()).await;
    println!(
        "lock kind=free waiting=0 node={name} {} p50_to_write={:.2}",
        sample.line(),
        sample.us(0.5) / write.us(0.5)
    );
}

/// From the moment somebody releases a lock to that at which the next in line, on another node, holds it.
async fn handed_lock(options: Options, nodes: &Nodes, node: &Cluster, name: &str, waiting: usize, write: &Sample) {
    let released: Arc<Mutex<Option<Instant>>> = Arc::default();
    let end = Instant::now() + options.warm_up() + options.measure();
    let begun = Instant::now() + options.warm_up();
    let mut tasks = Vec::new();
    for place in 0..=waiting {
        // Every other one in line is on the node in question.
        let other = &nodes.all[place % nodes.all.len()];
        let node = if place % 2 == 0 { node.clone() } else { other.clone() };
        let released = released.clone();
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                let guard = node.lock("bench/handed").timeout(Duration::from_secs(60)).await.expect("its turn comes");
                let now = Instant::now();
                let handed = released.lock().expect("nobody panics").take();
                if let Some(handed) = handed.filter(|handed| *handed >= begun) {
                    times.push(nanos(now - handed));
                }
                // Others are to be in line by then.
                tokio::time::sleep(Duration::from_millis(2)).await;
                *released.lock().expect("nobody panics") = Some(Instant::now());
                guard.release().await.expect("it is held");
            }
            times
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.append(&mut task.await.expect("no task panics"));
    }
    let sample = Sample::new(options.measure().as_secs_f64(), times);
    println!(
        "lock kind=handed waiting={waiting} node={name} {} p50_to_write={:.2}",
        sample.line(),
        sample.us(0.5) / write.us(0.5)
    );
}

/// From the moment a leader resigns to that at which the other candidate, on another node, leads.
async fn handed_office(options: Options, nodes: &Nodes, node: &Cluster, name: &str, write: &Sample) {
    let other = nodes.all.iter().find(|other| other.status().id != node.status().id).expect("there are three");
    let sides = [node.election::<String>("bench/office"), other.election::<String>("bench/office")];
    let (mut times, begun) = (Vec::new(), Instant::now());
    let mut leads: Leadership<String> = sides[0].campaign(&"a".to_owned()).await.expect("nobody else campaigns");
    for turn in 1.. {
        if begun.elapsed() > options.measure() {
            break;
        }
        let campaign = sides[turn % 2].campaign(&"b".to_owned()).into_future();
        let next = tokio::spawn(campaign);
        // It is to be in line by then.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let resigned = Instant::now();
        leads.resign().await.expect("it leads");
        leads = next.await.expect("no task panics").expect("its turn comes");
        times.push(nanos(resigned.elapsed()));
    }
    let sample = Sample::new(begun.elapsed().as_secs_f64(), times);
    println!(
        "election kind=handed waiting=1 node={name} {} p50_to_write={:.2}",
        sample.line(),
        sample.us(0.5) / write.us(0.5)
    );
}
