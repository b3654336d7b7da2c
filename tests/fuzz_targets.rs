//! Every fuzz target over its corpus, and over a bounded number of inputs mutated from it. Needs no fuzzer.
//!
//! An input that a fuzzer found becomes a file in `tests/corpora/<target>`. `QUORATE_TEST_SEEDS=5..9` mutates further.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Range;
use std::path::Path;

use quorate::fuzz::{TARGETS, Target};

/// The system's allocator, counting what each thread has taken.
struct Counting;

thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn take(bytes: usize) {
    // What another thread frees is its own affair: a count that wraps is corrected when this thread begins anew.
    TAKEN.set(TAKEN.get().wrapping_add(bytes));
    PEAK.set(PEAK.get().max(TAKEN.get()));
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        TAKEN.set(TAKEN.get().wrapping_sub(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most bytes that `run` had at one time.
fn peak_of(run: impl FnOnce()) -> usize {
    TAKEN.set(0);
    PEAK.set(0);
    run();
    PEAK.get()
}

fn target(name: &str) -> Target {
    *TARGETS.iter().find(|target| target.name == name).expect("a target of this name")
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpora").join(name);
    let mut paths: Vec<_> = folder.read_dir().expect("a corpus").map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// The seeds of the mutations: the usual one, or `QUORATE_TEST_SEEDS=5..9`.
fn seeds() -> Range<u64> {
    let Ok(wanted) = std::env::var("QUORATE_TEST_SEEDS") else { return 1..2 };
    let ends = wanted.split_once("..").map(|(from, to)| (from.parse(), to.parse()));
    let Some((Ok(from), Ok(to))) = ends else { panic!("QUORATE_TEST_SEEDS is {wanted:?}, not like 5..9") };
    from..to
}

/// Calls `run` with the target's corpus and with `count` mutants of it; an input that panics is saved.
fn each_input(name: &str, count: usize, mut run: impl FnMut(&[u8])) {
    let corpus = corpus(name);
    let mut run = |input: &[u8]| {
        let suspect = Suspect(name, input);
        run(input);
        std::mem::forget(suspect);
    };
    corpus.iter().for_each(|input| run(input));
    for seed in seeds() {
        let mut mutator = Mutator(seed);
        (0..count).for_each(|_| run(&mutator.mutant(&corpus)));
    }
}

/// Saves the input if it is dropped by a panic.
struct Suspect<'a>(&'a str, &'a [u8]);

impl Drop for Suspect<'_> {
    fn drop(&mut self) {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-failed", self.0));
        let saved = std::fs::write(&path, self.1);
        println!("{}: {} bytes failed, now in {}: {saved:?}", self.0, self.1.len(), path.display());
    }
}

/// Makes new inputs of old ones; the same ones for a seed.
struct Mutator(u64);

impl Mutator {
    fn below(&mut self, end: usize) -> usize {
        // Sebastiano Vigna's splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    fn mutant(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(8) {
                0 | 1 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                2 if at < bytes.len() => bytes[at] = [0, 1, 2, 0x7f, 0x80, 0xff][self.below(6)],
                3 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(1),
                4 => bytes.truncate(at),
                5 => bytes.insert(at, self.below(256) as u8),
                6 if at < bytes.len() => drop(bytes.remove(at)),
                // The front of one and the back of another.
                _ => {
                    let other = &corpus[self.below(corpus.len())];
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[self.below(other.len() + 1)..]);
                }
            }
        }
        bytes
    }
}

fn replay(name: &str, count: usize) {
    each_input(name, count, target(name).run);
}

#[test]
fn every_target_has_a_corpus() {
    for target in TARGETS {
        assert!(!corpus(target.name).is_empty(), "{} has none", target.name);
    }
}

#[test]
fn frames_are_refused_or_have_one_spelling() {
    replay("wire_decode", 60_000);
}

#[test]
fn rows_are_refused_or_have_one_spelling() {
    replay("storage_decode", 60_000);
}

#[test]
fn what_is_read_takes_memory_in_proportion_to_its_bytes() {
    // A listed position takes a few bytes on the wire and about eighty in memory, and is held twice while it is compared;
    // growing vectors are up to twice as long as they need to be. What one value of a host may take is limited by itself.
    const PER_BYTE: usize = 600;
    const AT_LEAST: usize = 4 << 20;
    for name in ["wire_decode", "storage_decode"] {
        let target = target(name);
        let mut most = 0;
        each_input(name, 20_000, |input| {
            let peak = peak_of(|| (target.run)(input));
            assert!(peak <= AT_LEAST + PER_BYTE * input.len(), "{name}: {peak} bytes for {}", input.len());
            most = most.max(peak);
        });
        println!("{name}: at most {most} bytes");
    }
}

#[test]
fn commands_come_to_what_a_plain_model_says() {
    replay("state_machine", 300);
}

#[test]
fn the_log_is_what_the_same_requests_make_of_a_map() {
    replay("log_engine", 60);
}

#[test]
fn watchers_find_what_a_plain_list_says() {
    replay("watch_hub", 300);
}

#[test]
fn snapshots_on_a_bad_way_are_taken_whole_or_not_at_all() {
    replay("snapshot_stream", 5_000);
}

#[test]
fn rows_that_are_not_quite_a_state_are_refused_or_can_be_written_again() {
    replay("state_load", 5_000);
}
