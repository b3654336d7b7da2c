//! The log engine alone, beside what the disk itself does with the same writers.
//!
//! Run with `cargo bench --features internals --bench append -- [--quick]`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate::internals::LogAlone;
use support::disk::{Way, syncs};
use support::{DataDir, Options, Sample, header, nanos};

/// Bytes of one entry: a proposal with a value of [`support::VALUE_BYTES`].
const ENTRY_BYTES: usize = 330;
/// Bytes of a raw write: an entry and what stands around it in a frame.
const RAW_BYTES: usize = 400;

fn main() {
    let options = Options::from_args();
    header("append", "durable appends of one log engine, against raw writes that are synced one by one", options);
    let directory = DataDir::new("append");
    let time = options.measure();
    for writers in [1, 3] {
        let appended = syncs(directory.path(), Way::Append, writers, RAW_BYTES, time);
        let overwritten = syncs(directory.path(), Way::Overwrite, writers, RAW_BYTES, time);
        let (engine, groups) = engine(&directory, writers, time);
        println!("raw writers={writers} way=append {}", appended.line());
        println!("raw writers={writers} way=overwrite {}", overwritten.line());
        println!(
            "append writers={writers} {} entries_per_sync={:.2} of_append={:.2} of_overwrite={:.2} p50_to_append={:.2} \
             p50_to_overwrite={:.2}",
            engine.line(),
            engine.count() as f64 / groups as f64,
            engine.per_second() / appended.per_second(),
            engine.per_second() / overwritten.per_second(),
            engine.us(0.5) / appended.us(0.5),
            engine.us(0.5) / overwritten.us(0.5),
        );
    }
}

/// `writers` threads that append to one log, each waiting for its entry to be durable.
fn engine(directory: &DataDir, writers: usize, time: Duration) -> (Sample, u64) {
    let path = directory.path().join(format!("log-{writers}"));
    let log = LogAlone::open(&path).expect("an empty directory opens");
    let over = AtomicBool::new(false);
    let (log_of_all, over_of_all) = (&log, &over);
    let before = log.syncs();
    let started = Instant::now();
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        let write = move || {
            let mut times = Vec::new();
            while !over_of_all.load(Ordering::Relaxed) {
                let before = Instant::now();
                log_of_all.append(vec![7; ENTRY_BYTES].into()).expect("the disk takes it");
                times.push(nanos(before.elapsed()));
            }
            times
        };
        let threads: Vec<_> = (0..writers).map(|_| scope.spawn(write)).collect();
        std::thread::sleep(time);
        over.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| times.append(&mut thread.join().expect("no writer panics")));
    });
    let sample = Sample::new(started.elapsed().as_secs_f64(), times);
    let syncs = log.syncs() - before;
    log.close().expect("it closes");
    (sample, syncs)
}
