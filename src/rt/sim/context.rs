//! One life of one process.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll, Waker};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};

use super::Current;
use super::machine::SetClock;
use super::scoped::Scoped;
use super::trace::Who;
use super::world::{World, derive, next};
use crate::rt::task::{Task, caught};

/// A simulated process, from its start to its end. Clones are the same process.
#[derive(Clone)]
pub(crate) struct Context {
    inner: Arc<Inner>,
}

struct Inner {
    world: World,
    name: Arc<str>,
    generation: u64,
    state: Mutex<State>,
}

struct State {
    life: Life,
    chance: u64,
    /// Tasks that were woken while the process was paused, in that order.
    parked: Vec<(u64, Waker)>,
    /// By number, which is the order in which they were spawned.
    tasks: BTreeMap<u64, AbortHandle>,
    /// Sleepers, who look at the clock again when it is changed.
    sleepers: BTreeMap<u64, Waker>,
    next_sleeper: u64,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Life {
    Running,
    Paused,
    Dead,
}

impl Context {
    pub(super) fn new(world: World, name: Arc<str>, generation: u64) -> Self {
        let chance = derive(derive(world.seed(), &format!("process {name}")), &generation.to_string());
        let state = State {
            life: Life::Running,
            chance,
            parked: Vec::new(),
            tasks: BTreeMap::new(),
            sleepers: BTreeMap::new(),
            next_sleeper: 0,
        };
        Context { inner: Arc::new(Inner { world, name, generation, state: Mutex::new(state) }) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.inner.name
    }

    /// Which life of the process this is.
    pub(crate) fn generation(&self) -> u64 {
        self.inner.generation
    }

    pub(crate) fn world(&self) -> &World {
        &self.inner.world
    }

    /// `future`, polled and dropped inside this process. Never ready if the process dies first.
    pub(crate) fn enter<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        Scoped::new(self.clone(), self.inner.world.next_task(), "entered", future)
    }

    /// Runs `future` as a task of this process. Aborted when the process is killed, or at once if it is dead.
    pub(crate) fn spawn<F>(&self, name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        Task::of(name, self.start(None, name, caught(name, future)))
    }

    pub(super) fn start<F>(&self, handle: Option<&Handle>, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = self.inner.world.next_task();
        self.inner.world.trace_of(Some(self.who(task, name)), "spawn", &[]);
        let scoped = Scoped::new(self.clone(), task, name, future);
        let spawned = match handle {
            Some(handle) => handle.spawn(scoped),
            None => tokio::spawn(scoped),
        };
        match self.is_alive() {
            true => drop(self.state().tasks.insert(task, spawned.abort_handle())),
            false => spawned.abort(),
        }
        spawned
    }

    /// Stops the process where it is (SIGSTOP): nothing of it runs. Its clocks go on, and timers that expire meanwhile are
    /// all late at once when it is resumed.
    pub(crate) fn pause(&self) {
        self.live(Life::Paused, "pause");
    }

    /// Suspends the machine: as [`Context::pause`], but its monotonic clock stands still too, and timers with it. The clock
    /// that counts suspend, and the wall clock, go on.
    pub(crate) fn suspend(&self) {
        self.live(Life::Paused, "suspend");
        self.inner.world.suspend(&self.inner.name, true);
    }

    /// Lets a paused process, or a suspended machine, run on.
    pub(crate) fn resume(&self) {
        self.live(Life::Running, "resume");
        self.inner.world.suspend(&self.inner.name, false);
        self.look_at_clock();
        let parked = std::mem::take(&mut self.state().parked);
        parked.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Ends the process (SIGKILL): its tasks are not polled again, and are dropped, in the order in which they were spawned,
    /// when the runtime next gets to them. Its destructors run in this process; whatever of it is left must be cut off from
    /// disks and networks by whoever kills it. A machine that was suspended is not any more.
    pub(crate) fn kill(&self) {
        self.live(Life::Dead, "kill");
        self.inner.world.suspend(&self.inner.name, false);
        let (tasks, parked) = {
            let mut state = self.state();
            (std::mem::take(&mut state.tasks), std::mem::take(&mut state.parked))
        };
        drop(parked);
        tasks.into_values().for_each(|task| task.abort());
    }

    /// Whether it has not been killed.
    pub(crate) fn is_alive(&self) -> bool {
        self.state().life != Life::Dead
    }

    /// Changes the clocks of the machine, for this process and those after it.
    pub(crate) fn set_clock(&self, change: SetClock) {
        let SetClock { drift_ppm, boot_jump, wall_jump_ms } = change;
        let bits = [drift_ppm.unwrap_or(0) as u64, boot_jump.as_nanos() as u64, wall_jump_ms as u64];
        self.inner.world.trace_of(Some(self.who(0, "-")), "clock", &bits);
        self.inner.world.set_clock(&self.inner.name, change);
        self.look_at_clock();
    }

    /// Chance of this process alone, from the world's seed, its name and its generation.
    pub(crate) fn random_u64(&self) -> u64 {
        let drawn = next(&mut self.state().chance);
        self.inner.world.trace("random", &[drawn]);
        drawn
    }

    pub(crate) fn boot_now(&self) -> Duration {
        self.inner.world.clocks(&self.inner.name, |clocks, now| clocks.boot(now))
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        self.inner.world.clocks(&self.inner.name, |clocks, now| clocks.wall_ms(now))
    }

    /// The machine's monotonic clock, as a point on tokio's: so that moments are one type in and outside of contexts.
    pub(super) fn instant_now(&self) -> tokio::time::Instant {
        self.inner.world.base() + self.monotonic()
    }

    pub(super) fn instant_in(&self, duration: Duration) -> tokio::time::Instant {
        self.instant_now() + duration.min(TIMER_MAX)
    }

    fn monotonic(&self) -> Duration {
        self.inner.world.clocks(&self.inner.name, |clocks, now| clocks.monotonic(now))
    }

    /// A timer for a moment of the machine's monotonic clock.
    pub(super) fn timer(&self, deadline: tokio::time::Instant) -> Timer {
        let mut state = self.state();
        state.next_sleeper += 1;
        let sleeper = state.next_sleeper;
        drop(state);
        Timer { context: self.clone(), deadline, sleeper, alarm: None }
    }

    /// Whether task number `task` may be polled now. If it may not now, but later, it will be woken.
    pub(super) fn admits(&self, task: u64, waker: &Waker) -> bool {
        let mut state = self.state();
        match state.life {
            Life::Running => return true,
            Life::Dead => return false,
            Life::Paused => {}
        }
        match state.parked.iter_mut().find(|(parked, _)| *parked == task) {
            Some((_, parked)) => parked.clone_from(waker),
            None => state.parked.push((task, waker.clone())),
        }
        false
    }

    /// A task is over.
    pub(super) fn forget(&self, task: u64) {
        self.state().tasks.remove(&task);
    }

    pub(in crate::rt) fn panicked(&self, task: &str, message: &str) {
        self.inner.world.panicked(&self.inner.name, self.inner.generation, task, message);
    }

    fn live(&self, life: Life, event: &'static str) {
        {
            let mut state = self.state();
            if state.life == Life::Dead {
                return;
            }
            state.life = life;
        }
        self.inner.world.trace_of(Some(self.who(0, "-")), event, &[]);
    }

    /// Lets every sleeper reckon anew.
    fn look_at_clock(&self) {
        let sleepers = std::mem::take(&mut self.state().sleepers);
        sleepers.into_values().for_each(Waker::wake);
    }

    fn who(&self, task: u64, name: &'static str) -> Who {
        Who { process: self.inner.name.clone(), generation: self.inner.generation, task, name }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} ({:?})", self.inner.name, self.inner.generation, self.state().life)
    }
}

impl Current {
    pub(super) fn who(&self) -> Who {
        self.context.who(self.task, self.name)
    }
}

/// Ready when the machine's monotonic clock shows a moment, however that clock is changed meanwhile.
pub(crate) struct Timer {
    context: Context,
    deadline: tokio::time::Instant,
    sleeper: u64,
    /// Set for when the moment comes as far as one knows now.
    alarm: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Timer {
    /// When to look at the clock again; `None` if the moment has come.
    fn next_look(&self) -> Option<tokio::time::Instant> {
        let world = self.context.world();
        let (base, name) = (world.base(), self.context.name());
        let deadline = self.deadline.saturating_duration_since(base);
        let (now, when) = world
            .clocks(name, |clocks, now| (now, (clocks.monotonic(now) < deadline).then(|| clocks.when(deadline, now))));
        let left = when?.map_or(TIMER_MAX, |when| when.saturating_sub(now));
        let left = left.saturating_mul(world.scale()).clamp(Duration::from_nanos(1), TIMER_MAX);
        Some(tokio::time::Instant::now() + left)
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        while let Some(next) = self.next_look() {
            let alarm = match &mut self.alarm {
                Some(alarm) => {
                    if alarm.deadline() != next {
                        alarm.as_mut().reset(next);
                    }
                    alarm
                }
                none => none.insert(Box::pin(tokio::time::sleep_until(next))),
            };
            if alarm.as_mut().poll(cx).is_pending() {
                let sleeper = self.sleeper;
                self.context.state().sleepers.insert(sleeper, cx.waker().clone());
                return Poll::Pending;
            }
        }
        self.alarm = None;
        Poll::Ready(())
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.context.state().sleepers.remove(&self.sleeper);
    }
}

/// The farthest a timer is set on tokio's clock; it is set again when it gets there.
const TIMER_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
