//! A simulation takes its time and its chance from its seed alone.
//!
//! This program puts its own functions in place of the system's clock and of its source of randomness, and counts who calls
//! them while a simulated cluster runs. Inside of its processes nobody does. Between them tokio reads the clock, to measure how
//! long its runtime idles, for statistics that nothing reads.

#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_uint, c_void};
use std::hash::{BuildHasher, RandomState};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use quorate::internals::{Simulated, in_a_simulated_process, run_in_a_simulated_process, simulate};

/// What this thread has asked the system for.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
struct Calls {
    clock: u64,
    clock_inside: u64,
    random: u64,
}

thread_local!(static CALLS: Cell<Calls> = const { Cell::new(Calls { clock: 0, clock_inside: 0, random: 0 }) });

fn count(change: impl Fn(&mut Calls)) {
    let _ = CALLS.try_with(|calls| {
        let mut now = calls.get();
        change(&mut now);
        calls.set(now);
    });
}

/// Runs `work` and tells what this thread asked the system meanwhile.
fn counted<T>(work: impl FnOnce() -> T) -> (T, Calls) {
    CALLS.set(Calls::default());
    let result = work();
    (result, CALLS.get())
}

const CLOCK_GETTIME: c_long = if cfg!(target_arch = "x86_64") { 228 } else { 113 };
const GETRANDOM: c_long = if cfg!(target_arch = "x86_64") { 318 } else { 278 };

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: c_int, to: *mut c_void) -> c_int {
    count(|calls| {
        calls.clock += 1;
        calls.clock_inside += u64::from(in_a_simulated_process());
    });
    // SAFETY: the caller's arguments, handed on as they are.
    unsafe { syscall(CLOCK_GETTIME, c_long::from(clock), to) as c_int }
}

#[unsafe(no_mangle)]
extern "C" fn getrandom(to: *mut c_void, length: usize, flags: c_uint) -> isize {
    count(|calls| calls.random += 1);
    // SAFETY: as above.
    unsafe { syscall(GETRANDOM, to, length, c_long::from(flags)) as isize }
}

#[test]
fn who_asks_the_system_is_counted() {
    let (_, calls) = counted(|| (Instant::now(), SystemTime::now(), Instant::now()));
    assert_eq!(calls.clock, 3);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (_, calls) = counted(|| runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await }));
    assert!(calls.clock > 3, "an unpaused timer reads the clock: {calls:?}");
    // A node outside of a simulation draws its identity.
    let (node, calls) = counted(|| {
        runtime.block_on(async {
            let builder = quorate::Cluster::builder("alone").in_memory().runtime(quorate::Runtime::Current);
            builder.await.unwrap()
        })
    });
    assert!(calls.random > 1, "{calls:?}");
    drop(node);
    // And so would a simulated one be counted that looks at a real clock.
    let (_, calls) = counted(|| run_in_a_simulated_process(SystemTime::now));
    assert_eq!(calls.clock_inside, 1, "{calls:?}");
}

#[test]
fn a_simulation_asks_the_system_for_neither_time_nor_chance() {
    // Drawn once for each thread, whatever runs on it; nothing that is hashed with it is ever iterated.
    let _ = RandomState::new().hash_one(0);
    for seed in 1..3 {
        let (run, calls) = counted(|| simulate(seed));
        println!("{run:?}, {calls:?}");
        assert_eq!((calls.clock_inside, calls.random), (0, 0), "seed {seed}: {calls:?} in {run:?}");
        assert!(run.acknowledged > 50 && run.events > 1000, "nothing happened in seed {seed}: {run:?}");
    }
}

/// Set in the process that is to tell its run of this seed, and no more.
const ASKED: &str = "QUORATE_RUN_OF_SEED";

#[test]
fn a_seed_gives_the_same_run_alone_in_another_process_with_another_environment() {
    const NAME: &str = "a_seed_gives_the_same_run_alone_in_another_process_with_another_environment";
    let told = |seed: u64, run: Simulated| format!("seed {seed}: {run:?}");
    if let Ok(seed) = std::env::var(ASKED) {
        let seed = seed.parse().expect("a number");
        println!("{}", told(seed, simulate(seed)));
        return;
    }
    for seed in 1..3 {
        let here = told(seed, simulate(seed));
        let there = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", NAME, "--nocapture"])
            .current_dir("/")
            .env_clear()
            .envs([(ASKED, seed.to_string()), ("STUFFING", "x".repeat(5000))])
            .output()
            .expect("runs");
        let there = String::from_utf8_lossy(&there.stdout);
        assert!(there.contains(&here), "here {here}, there:\n{there}");
    }
}
