//! One run of a scenario for each seed, and what is said when one fails.

use std::any::Any;
use std::env;
use std::panic::AssertUnwindSafe;
use std::process::{ExitCode, Termination};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{Either, select};

use super::world::{Journal, Sim};
use crate::rt;
use crate::rt::sim::{Panicked, World};

/// Set to a number, [`run`] plays this seed alone.
const SEED: &str = "QUORATE_SIM_SEED";
/// Set to a range like `100..200`, [`run`] plays these seeds in place of the test's own.
const SEEDS: &str = "QUORATE_SIM_SEEDS";
/// Virtual time after which a scenario is taken to hang.
const LIMIT: Duration = Duration::from_secs(6 * 60 * 60);
/// Real time after which a word is said about a run that is still under way.
const SLOW: Duration = Duration::from_secs(60);
/// How often panics of hosts are looked for, in virtual time.
const LOOK: Duration = Duration::from_millis(100);

/// Plays `scenario` once for each seed, each time in a fresh world, and panics at the first seed for which it fails.
///
/// Everything in a world follows from its seed: who is scheduled when, how long frames and disks take, what chance decides.
/// A scenario fails when it panics, when it returns an error, when a task of a host panics, or when it has not ended after
/// six hours of virtual time. What is said then names the seed, tells what was done to the world, and how to play that seed
/// alone: with the environment variable `QUORATE_SIM_SEED` set to it. `QUORATE_SIM_SEEDS=100..200` plays these seeds in
/// place of the test's own.
///
/// ```
/// use quorate::sim;
///
/// sim::run(0..3, |sim| async move {
///     sim.nodes(3)?;
///     sim.run_for(std::time::Duration::from_secs(10)).await;
///     assert!(sim.leader().is_some());
///     Ok::<(), sim::SimError>(())
/// });
/// ```
///
/// # Panics
/// When a seed fails, when an environment variable cannot be read, and inside of a tokio runtime: it is called from a plain
/// `#[test]`.
pub fn run<F, Fut>(seeds: impl IntoIterator<Item = u64>, scenario: F)
where
    F: Fn(Sim) -> Fut,
    Fut: Future,
    Fut::Output: Termination,
{
    for seed in wanted().unwrap_or_else(|| seeds.into_iter().collect()) {
        play(&Play { seed, ..Play::default() }, &scenario);
    }
}

/// How one world is to be played.
#[derive(Copy, Clone)]
pub(crate) struct Play {
    pub(crate) seed: u64,
    /// tokio's milliseconds for one of the world's.
    pub(crate) scale: u32,
    /// Of a thousand polls, how many give way to another task.
    pub(crate) yields: u32,
    /// Panics that are part of the play.
    pub(crate) expected: fn(&Panicked) -> bool,
    pub(crate) limit: Duration,
    /// What is done to the world before it begins.
    pub(crate) prepare: fn(&World),
}

impl Default for Play {
    fn default() -> Self {
        Play { seed: 0, scale: 1, yields: 0, expected: |_| false, limit: LIMIT, prepare: |_| {} }
    }
}

/// Plays one world to its end, and hands it out with the trace of all that happened in it.
///
/// # Panics
/// If it fails.
pub(crate) fn play<F, Fut>(how: &Play, scenario: &F) -> World
where
    F: Fn(Sim) -> Fut,
    Fut: Future,
    Fut::Output: Termination,
{
    let (world, journal) = (World::new(how.seed, how.scale), Journal::default());
    world.set_yields(how.yields);
    (how.prepare)(&world);
    let _watchdog = Watchdog::start(how.seed);
    let outcome = world.block_on(async {
        let sim = Sim::new(world.clone(), journal.clone());
        // Caught here and not outside: tasks that are dropped while a panic unwinds would abort the process with theirs.
        let scenario = AssertUnwindSafe(async { scenario(sim.clone()).await }).catch_unwind();
        let outcome = match select(std::pin::pin!(scenario), std::pin::pin!(oversee(&sim, how))).await {
            Either::Left((Ok(ended), _)) => match ended.report() == ExitCode::SUCCESS {
                true => unexpected(&sim, how),
                false => Some("the scenario returned an error, which is printed above".to_owned()),
            },
            Either::Left((Err(panic), _)) => Some(text(&*panic)),
            Either::Right((failure, _)) => Some(failure),
        };
        sim.end();
        outcome
    });
    match outcome {
        None => world,
        Some(failure) => panic!("{}", report(how.seed, &failure, &journal)),
    }
}

/// Returns when something has gone wrong that the scenario need not notice.
async fn oversee(sim: &Sim, how: &Play) -> String {
    loop {
        rt::sleep(LOOK).await;
        if let Some(panicked) = unexpected(sim, how) {
            return panicked;
        }
        if sim.elapsed() > how.limit {
            return format!("the scenario has not ended after {:?} of virtual time", how.limit);
        }
    }
}

/// The first panic of a host that is not part of the play.
fn unexpected(sim: &Sim, how: &Play) -> Option<String> {
    let panics = sim.world().panics();
    let panicked = panics.iter().find(|panicked| !(how.expected)(panicked))?;
    let Panicked { at, process, generation, task, message } = panicked;
    Some(format!("{process}, life {generation}, panicked after {at:?} in its task {task:?}: {message}"))
}

fn report(seed: u64, failure: &str, journal: &Journal) -> String {
    let test = thread::current().name().filter(|name| *name != "main").unwrap_or("<the test>").to_owned();
    let happened = journal.lines().join("\n  ");
    format!(
        "seed {seed} fails: {failure}\nplay it alone: {SEED}={seed} cargo test {test}\nwhat was done to the world:\n  {happened}"
    )
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".to_owned())
}

/// The seeds that the environment asks for.
fn wanted() -> Option<Vec<u64>> {
    if let Ok(seed) = env::var(SEED) {
        let seed = seed.parse().unwrap_or_else(|_| panic!("{SEED} is {seed:?}, not a number"));
        return Some(vec![seed]);
    }
    let seeds = env::var(SEEDS).ok()?;
    let range = seeds.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    Some(range.unwrap_or_else(|| panic!("{SEEDS} is {seeds:?}, not like 100..200")).collect())
}

/// Says so if a run takes long in real time: virtual time stands still while anything waits for the real world.
struct Watchdog {
    _over: mpsc::Sender<()>,
}

impl Watchdog {
    // A simulation's own thread, which takes no part in it.
    #[allow(clippy::disallowed_methods)]
    fn start(seed: u64) -> Self {
        let (over, told) = mpsc::channel::<()>();
        let watch = move || {
            if told.recv_timeout(SLOW) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!(
                    "seed {seed} has been running for {SLOW:?} of real time: does a host wait for a thread, or spin?"
                );
            }
        };
        // Without it the run is the same, only less talkative.
        let _ = thread::Builder::new().name("watchdog".into()).spawn(watch);
        Watchdog { _over: over }
    }
}
