//! One run: its seed, its time and its trace.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::context::Context;
use super::machine::{Clocks, SetClock};
use super::trace::{Recording, Trace, Who};
use super::{CURRENT, Current};
use crate::rt::marks::Mark;

/// One simulated run. Clones are the same world.
#[derive(Clone, Debug)]
pub(crate) struct World {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    seed: u64,
    scale: u32,
    /// When the world began, on tokio's clock.
    base: OnceLock<tokio::time::Instant>,
    state: Mutex<State>,
    trace: Mutex<Trace>,
}

#[derive(Debug)]
struct State {
    tasks: u64,
    /// Draws who gives way.
    schedule: u64,
    yield_per_mille: u64,
    /// The clocks of each machine, by the name of its processes.
    machines: BTreeMap<Arc<str>, Clocks>,
    panics: Vec<Panicked>,
    on_mark: Option<OnMark>,
    #[cfg(test)]
    unfair: bool,
}

/// Called with the name of a process and the mark that it comes by.
pub(crate) type Met = dyn Fn(&str, Mark) + Send + Sync;

#[derive(Clone)]
struct OnMark(Arc<Met>);

impl fmt::Debug for OnMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnMark")
    }
}

/// A panic that was caught in a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Panicked {
    pub(crate) at: Duration,
    pub(crate) process: String,
    pub(crate) generation: u64,
    pub(crate) task: String,
    pub(crate) message: String,
}

impl World {
    /// A world in which everything follows from `seed`, and `scale` of tokio's milliseconds are one simulated millisecond.
    ///
    /// tokio rounds timers up to its milliseconds. With a scale of 1, hosts may use tokio's timers beside ours; with 100,
    /// events of one millisecond have an order, and only our timers mean what they say.
    pub(crate) fn new(seed: u64, scale: u32) -> Self {
        assert!(scale > 0, "time stands still at a scale of 0");
        let state = State {
            tasks: 0,
            schedule: derive(seed, "schedule"),
            yield_per_mille: 0,
            machines: BTreeMap::new(),
            panics: Vec::new(),
            on_mark: None,
            #[cfg(test)]
            unfair: false,
        };
        World {
            inner: Arc::new(Inner {
                seed,
                scale,
                base: OnceLock::new(),
                state: Mutex::new(state),
                trace: Mutex::default(),
            }),
        }
    }

    /// Runs `future` on a paused runtime of its own, in a context called [`OUTSIDE`], and then drops all tasks, untraced.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without threads or sockets can always be made");
        let output = runtime.block_on(async { self.context(OUTSIDE, 0).enter(future).await });
        self.close();
        output
    }

    /// The process called `name` in its life number `generation`. Processes of one name share a machine and its clocks.
    ///
    /// # Panics
    /// Outside of a tokio runtime whose clock is paused.
    pub(crate) fn context(&self, name: &str, generation: u64) -> Context {
        let now = self.now();
        let name: Arc<str> = name.into();
        let mut state = self.state();
        let boot = BOOTED + Duration::from_secs(derive(self.inner.seed, &format!("boot {name}")) % 1_000_000);
        state.machines.entry(name.clone()).or_insert_with(|| Clocks::new(now, boot));
        drop(state);
        Context::new(self.clone(), name, generation)
    }

    pub(crate) fn seed(&self) -> u64 {
        self.inner.seed
    }

    pub(crate) fn scale(&self) -> u32 {
        self.inner.scale
    }

    /// A seed for whatever `label` names, so that one source of chance does not move another.
    pub(crate) fn seed_for(&self, label: &str) -> u64 {
        derive(self.inner.seed, label)
    }

    /// Simulated time since the world began.
    pub(crate) fn now(&self) -> Duration {
        let now = tokio::time::Instant::now();
        now.saturating_duration_since(self.base()) / self.inner.scale
    }

    /// Lets that many of a thousand polls, chosen by the seed, give way to whoever else is ready.
    pub(crate) fn set_yields(&self, per_mille: u32) {
        self.state().yield_per_mille = u64::from(per_mille);
    }

    /// Adds a line to the trace, with the time and who is being polled.
    pub(crate) fn trace(&self, kind: &'static str, bits: &[u64]) {
        let who = CURRENT.try_with(|current| current.borrow().as_ref().map(Current::who)).ok().flatten();
        self.trace_of(who, kind, bits);
    }

    pub(super) fn trace_of(&self, who: Option<Who>, kind: &'static str, bits: &[u64]) {
        let at = self.now();
        self.lines_so_far().add(at, who, kind, bits);
    }

    /// What has happened so far, as one number.
    pub(crate) fn hash(&self) -> u64 {
        self.lines_so_far().hash()
    }

    /// How many lines the trace has.
    pub(crate) fn events(&self) -> u64 {
        self.lines_so_far().lines()
    }

    /// Keeps lines of the trace from now on.
    pub(crate) fn record(&self, recording: Recording) {
        self.lines_so_far().record(recording);
    }

    /// The lines that were kept.
    pub(crate) fn recorded(&self) -> Vec<String> {
        self.lines_so_far().recorded()
    }

    /// Ends the trace: the order in which what is left gets dropped is nobody's promise.
    pub(crate) fn close(&self) {
        self.lines_so_far().close();
    }

    /// The first 1000 panics, also those that the node caught and lived through.
    pub(crate) fn panics(&self) -> Vec<Panicked> {
        self.state().panics.clone()
    }

    pub(super) fn panicked(&self, process: &str, generation: u64, task: &str, message: &str) {
        self.trace("panic", &[]);
        let at = self.now();
        let (process, task, message) = (process.to_owned(), task.to_owned(), message.to_owned());
        let mut state = self.state();
        if state.panics.len() < PANICS_MAX {
            state.panics.push(Panicked { at, process, generation, task, message });
        }
    }

    /// Has `met` called with the name of each process that comes by a mark from now on, in that moment; `None`: nobody.
    pub(crate) fn on_mark(&self, met: Option<Arc<Met>>) {
        self.state().on_mark = met.map(OnMark);
    }

    pub(super) fn marked(&self, process: &str, mark: Mark) {
        // Not under the lock: it may look at the world.
        let met = self.state().on_mark.clone();
        if let Some(OnMark(met)) = met {
            met(process, mark);
        }
    }

    pub(super) fn next_task(&self) -> u64 {
        let mut state = self.state();
        state.tasks += 1;
        state.tasks
    }

    /// Draws whether a poll gives way.
    pub(super) fn gives_way(&self) -> bool {
        let mut state = self.state();
        if state.yield_per_mille == 0 {
            return false;
        }
        let State { schedule, yield_per_mille, .. } = &mut *state;
        next(schedule) % 1000 < *yield_per_mille
    }

    pub(super) fn clocks<R>(&self, machine: &str, with: impl FnOnce(&Clocks, Duration) -> R) -> R {
        let now = self.now();
        with(self.state().machines.get(machine).expect("made with its first process"), now)
    }

    pub(super) fn set_clock(&self, machine: &str, change: SetClock) {
        self.change_clocks(machine, |clocks, now| clocks.set(now, change));
    }

    pub(super) fn suspend(&self, machine: &str, suspended: bool) {
        self.change_clocks(machine, |clocks, now| clocks.suspend(now, suspended));
    }

    fn change_clocks(&self, machine: &str, change: impl FnOnce(&mut Clocks, Duration)) {
        let now = self.now();
        change(self.state().machines.get_mut(machine).expect("made with its first process"), now);
    }

    pub(super) fn base(&self) -> tokio::time::Instant {
        *self.inner.base.get_or_init(tokio::time::Instant::now)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines_so_far(&self) -> MutexGuard<'_, Trace> {
        self.inner.trace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl World {
    /// Lets our `watch` wake in an order that no seed reaches, as tokio's does: the counter-example.
    pub(crate) fn set_unfair(&self) {
        self.state().unfair = true;
    }

    pub(crate) fn is_unfair(&self) -> bool {
        self.state().unfair
    }
}

/// The context that the test itself runs in.
pub(crate) const OUTSIDE: &str = "outside";

/// Panics that are kept; later ones are traced only.
const PANICS_MAX: usize = 1000;

/// Every machine has been up for at least this long when its first process starts.
const BOOTED: Duration = Duration::from_secs(1_000_000);

/// A seed made of another and a name.
pub(super) fn derive(seed: u64, label: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(label.as_bytes(), seed)
}

/// Sebastiano Vigna's splitmix64.
pub(super) fn next(state: &mut u64) -> u64 {
    let drawn = mixed(*state);
    *state = state.wrapping_add(GOLDEN);
    drawn
}

pub(super) fn mixed(state: u64) -> u64 {
    let z = state.wrapping_add(GOLDEN);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
