//! What the benches share: options, the data directory, the limit that the disk sets, callers, and how results are printed.
//!
//! Every case is one line, `name key=value ...`. Figures are only worth something beside others of the same run: each bench
//! measures the disk itself too, and prints ratios.
#![allow(dead_code, clippy::disallowed_methods, clippy::disallowed_types)]

pub mod cluster;
pub mod disk;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Values as a service keeps them: a few hundred bytes.
pub const VALUE_BYTES: usize = 256;

/// What the command line asks for: `-- [--quick] [--current-thread] [--callers N] [--node leader|follower] [--bare]`.
#[derive(Copy, Clone, Debug)]
pub struct Options {
    /// Shorter and fewer cases: under a minute.
    pub quick: bool,
    /// The callers run on a runtime of one thread instead of two workers.
    pub current_thread: bool,
    /// Only the cases with so many callers.
    pub callers: Option<usize>,
    /// Only the cases on the follower, or only those on the leader.
    pub follower: Option<bool>,
    /// Without filling the store and measuring the disk first: for profilers.
    pub bare: bool,
}

impl Options {
    pub fn from_args() -> Self {
        let given = |flag: &str| std::env::args().any(|arg| arg == flag);
        let after = |flag: &str| std::env::args().skip_while(|arg| arg != flag).nth(1);
        Options {
            quick: given("--quick"),
            current_thread: given("--current-thread"),
            callers: after("--callers").and_then(|number| number.parse().ok()),
            bare: given("--bare"),
            follower: after("--node").map(|name| name == "follower"),
        }
    }

    /// Whether this case is asked for.
    pub fn includes(&self, node: &str, callers: usize) -> bool {
        self.callers.is_none_or(|only| only == callers)
            && self.follower.is_none_or(|follower| follower == (node == "follower"))
    }

    /// How long a case is measured.
    pub fn measure(&self) -> Duration {
        Duration::from_millis(if self.quick { 1500 } else { 4000 })
    }

    /// How long it runs before that.
    pub fn warm_up(&self) -> Duration {
        Duration::from_millis(if self.quick { 300 } else { 700 })
    }

    /// The host's runtime, which the callers run on; the nodes have their own.
    pub fn runtime(&self) -> tokio::runtime::Runtime {
        let mut builder = match self.current_thread {
            true => tokio::runtime::Builder::new_current_thread(),
            false => tokio::runtime::Builder::new_multi_thread(),
        };
        if !self.current_thread {
            builder.worker_threads(2);
        }
        builder.enable_all().build().expect("the system gives two threads")
    }
}

/// Prints what is measured, and on what.
pub fn header(name: &str, what: &str, options: Options) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("# {name}: {what}");
    println!(
        "# cores={cores} load={} quick={} host_runtime={}",
        load(),
        options.quick,
        match options.current_thread {
            true => "current_thread",
            false => "multi_thread(2)",
        }
    );
}

/// The system's load of the last minute, as text; a busy machine is seen by it.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

/// Seconds of processor time this process has used, in all its threads.
pub fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    // Fields 14 and 15, in ticks of 10 ms on every Linux in use; the state is field 3.
    after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Prints whether `value` reaches what is wanted of it. Nothing fails on it.
pub fn bar(name: &str, value: f64, wanted: Wanted) {
    let (text, ok) = match wanted {
        Wanted::AtLeast(least) => (format!(">={least:.2}"), value >= least),
        Wanted::AtMost(most) => (format!("<={most:.2}"), value <= most),
    };
    println!("bar name={name} value={value:.2} wanted={text} ok={ok}");
}

#[derive(Copy, Clone, Debug)]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

/// A directory on a real disk, removed when dropped: in `QUORATE_BENCH_DIR`, else in `target/bench-data`.
pub struct DataDir(PathBuf);

impl DataDir {
    pub fn new(name: &str) -> Self {
        let target = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-data");
        let parent = std::env::var_os("QUORATE_BENCH_DIR").map_or_else(target, PathBuf::from);
        let path = parent.join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the data directory can be made");
        DataDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How often something was done in a measured time, and how long each took.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub seconds: f64,
    /// Nanoseconds, sorted.
    times: Vec<u32>,
}

impl Sample {
    pub fn new(seconds: f64, mut times: Vec<u32>) -> Self {
        times.sort_unstable();
        Sample { seconds, times }
    }

    pub fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.seconds
    }

    pub fn count(&self) -> u64 {
        self.times.len() as u64
    }

    /// The time within which this part of all was done.
    pub fn us(&self, part: f64) -> f64 {
        let last = self.times.len().saturating_sub(1);
        let at = (self.times.len() as f64 * part) as usize;
        self.times.get(at.min(last)).map_or(f64::NAN, |ns| f64::from(*ns) / 1000.0)
    }

    pub fn line(&self) -> String {
        format!("ops_per_s={:.0} p50_us={:.1} p99_us={:.1}", self.per_second(), self.us(0.5), self.us(0.99))
    }
}

pub fn nanos(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

/// Random enough to pick keys, and the same in every run.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Runs `callers` tasks on the current runtime, each of which does `operation` again and again, one at a time.
///
/// `at_edges` is called where the measured time begins and ends.
pub async fn callers<F, Fut>(options: Options, callers: usize, operation: F, mut at_edges: impl FnMut()) -> Sample
where
    F: Fn(u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let (measuring, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (measuring, over, operation) = (measuring.clone(), over.clone(), operation.clone());
            tokio::spawn(async move {
                let mut chance = Chance::new(caller as u64 + 1);
                let mut times = Vec::new();
                let mut done = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    done += 1;
                    // Some operations are done at once, and a caller that never waits starves the others.
                    if done.is_multiple_of(64) {
                        tokio::task::yield_now().await;
                    }
                    let started = Instant::now();
                    operation(chance.below(u64::MAX)).await;
                    // Counted if it ends in the measured time, so that slow operations are not left out.
                    if measuring.load(Ordering::Relaxed) {
                        times.push(nanos(started.elapsed()));
                    }
                }
                times
            })
        })
        .collect();
    tokio::time::sleep(options.warm_up()).await;
    at_edges();
    let started = Instant::now();
    measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(options.measure()).await;
    measuring.store(false, Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    at_edges();
    over.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for task in tasks {
        times.append(&mut task.await.expect("no caller panics"));
    }
    Sample::new(seconds, times)
}
