//! The state engine alone: what a committed write costs each node, by the size of the batches in which it comes.
//!
//! Run with `cargo bench --features internals --bench apply -- [--quick]`; `--callers` chooses one size.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod support;

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quorate::internals::{StateAlone, compact, put};
use support::{DataDir, Options, VALUE_BYTES, header, processor_seconds};

const KEYS: u64 = 100_000;
/// Revisions of history that are kept, as a node keeps them by default.
const KEPT: u64 = 100_000;
/// So often the floor moves, in writes.
const COMPACT_EVERY: u64 = 20_000;
/// Writes of the client that are unanswered at a time.
const UNANSWERED: u64 = 256;

const BATCHES: [usize; 4] = [1, 16, 128, 1024];

fn main() {
    let options = Options::from_args();
    header("apply", "committed writes of 256 bytes to 100k keys, applied by one state engine", options);
    let directory = DataDir::new("apply");
    let state = StateAlone::open(directory.path()).expect("an empty directory opens");
    let mut writer = Writer { state, written: 0, random: 1 };
    // All keys, then as many again, so that history is as full as it gets.
    writer.run(1024, KEYS + KEPT);
    for batch in BATCHES.into_iter().filter(|batch| options.includes("leader", *batch)) {
        let time = if batch == 1 { options.measure() / 2 } else { options.measure() };
        writer.case(batch, time);
    }
    writer.state.close().expect("it closes");
}

struct Writer {
    state: StateAlone,
    written: u64,
    random: u64,
}

impl Writer {
    fn case(&mut self, batch: usize, time: Duration) {
        let (mut busy, mut used, mut entries) = (0.0, 0.0, 0);
        while busy < time.as_secs_f64() {
            let batches = self.prepare(batch, 20_000.min(2_000 * batch as u64));
            let (begun, before) = (Instant::now(), processor_seconds());
            for proposals in batches {
                entries += proposals.len();
                self.state.apply(proposals).expect("the disk takes it");
            }
            busy += begun.elapsed().as_secs_f64();
            used += processor_seconds() - before;
        }
        let (per_second, each) = (entries as f64 / busy, used * 1e6 / entries as f64);
        println!("apply batch={batch} entries_per_s={per_second:.0} cpu_us_per_entry={each:.2}");
    }

    fn run(&mut self, batch: usize, writes: u64) {
        for proposals in self.prepare(batch, writes) {
            self.state.apply(proposals).expect("the disk takes it");
        }
    }

    /// The next writes, cut into batches, each in one buffer as it comes off the wire.
    fn prepare(&mut self, batch: usize, writes: u64) -> Vec<Vec<Bytes>> {
        let proposals: Vec<Bytes> = (0..writes).map(|_| self.next()).collect();
        proposals.chunks(batch).map(in_one_buffer).collect()
    }

    fn next(&mut self) -> Bytes {
        self.written += 1;
        let n = self.written;
        if n.is_multiple_of(COMPACT_EVERY) && n > KEPT + KEYS {
            return compact(n - KEPT);
        }
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // Every key once, then any.
        let key = if n <= KEYS { n } else { (self.random >> 33) % KEYS };
        let value = vec![self.random as u8; VALUE_BYTES];
        put(n, n.saturating_sub(UNANSWERED), &format!("bench/key/{key:08}"), value.into())
    }
}

fn in_one_buffer(proposals: &[Bytes]) -> Vec<Bytes> {
    let mut buffer = BytesMut::new();
    proposals.iter().for_each(|proposal| buffer.extend_from_slice(proposal));
    let mut rest = buffer.freeze();
    proposals.iter().map(|proposal| rest.split_to(proposal.len())).collect()
}
