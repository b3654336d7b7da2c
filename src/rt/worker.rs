//! Runs a synchronous engine behind a mailbox: on a thread of its own, or inline as a task.
//!
//! An [`Engine`] is a function over a queue of operations. It knows no threads, tasks or clock, so that a simulated run
//! can drive the very code that production drives: production uses [`Drive::Thread`], because an engine sits in fsync for
//! most of its life; tests and simulations under a paused clock use [`Drive::Inline`].
//!
//! Promised:
//! * Operations reach the engine in the order in which they were pushed.
//! * A panic in a step ends the driver: it is logged, the engine is told, and the mailbox refuses further operations.
//! * Operations that the engine never took are dropped, not leaked. Whoever waits for one learns of it through the drop
//!   of the callback inside, so a callback must mean "failed" when it is dropped.
//!
//! The mailbox has no limit of its own: a façade bounds what it lets in (the log by unflushed bytes).

use std::any::Any;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use std::{io, mem, thread};

use super::clock::{Instant, timeout_at};
use super::scope::{self, Scope};
use super::watermark::Watermark;
use futures::future::BoxFuture;

/// A step that takes this long is worth an operator's attention: the disk is slow or full.
const SLOW_STEP: Duration = Duration::from_millis(500);

/// Work that is done in steps.
pub(crate) trait Engine: Send + 'static {
    type Op: Send + 'static;

    /// Takes what it likes from the front of `queue` and works it off; what it leaves is offered again.
    ///
    /// A step with an empty queue says that the time of an earlier [`Step::Within`] is up, that the watermark of a
    /// [`Step::After`] is reached, or follows a [`Step::Again`].
    fn step(&mut self, queue: &mut VecDeque<Self::Op>) -> Step;

    /// A step panicked with `message`. Nothing is called after this; what is still queued will be dropped.
    fn panicked(&mut self, message: &str);
}

/// When to call next.
#[derive(Debug)]
pub(crate) enum Step {
    /// When there is an operation.
    Idle,
    /// At once, with whatever has come meanwhile.
    Again,
    /// When there is an operation, and with an empty queue once this much time has passed. Steps that answer `Within`
    /// one after another do not push the time back: it runs from the first of them.
    Within(Duration),
    /// Once the watermark has reached the number or is closed, and not before, whatever comes.
    After(Watermark, u64),
    /// Never again. What is still queued is dropped.
    Stop,
}

/// Where an engine runs.
#[derive(Clone)]
pub(crate) enum Drive {
    /// On a thread of its own.
    Thread,
    /// As a task of the current tokio runtime.
    Inline,
    /// As a task that awaits this before each step, standing in for the time that the step's I/O would take.
    Delayed(Delay),
}

/// Makes a future for each step to wait for.
pub(crate) type Delay = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Starts `engine` under `name` with a mailbox of its own.
///
/// # Errors
/// The system's, when it gives no thread.
pub(crate) fn drive<E: Engine>(name: &str, how: Drive, engine: E) -> io::Result<(Mailbox<E::Op>, Driver)> {
    let mailbox = Mailbox::new();
    let driver = drive_from(&mailbox, name, how, engine)?;
    Ok((mailbox, driver))
}

/// Starts `engine` on a mailbox that was made before, with whatever is in it already.
///
/// The driver ends when the engine says [`Step::Stop`], when it panics, or when every clone of the mailbox is gone and
/// all that was pushed has been worked off.
///
/// # Errors
/// The system's, when it gives no thread.
pub(crate) fn drive_from<E: Engine>(mailbox: &Mailbox<E::Op>, name: &str, how: Drive, engine: E) -> io::Result<Driver> {
    let (ended, step) = (Watermark::new(), StepClock::default());
    let running = Running {
        name: name.to_owned(),
        inbox: Outlet(mailbox.inbox.clone()),
        queue: VecDeque::new(),
        engine,
        due: None,
        step: step.clone(),
        _ended: Ended(ended.clone()),
    };
    match how {
        // Nothing in a simulation can wait for a thread.
        Drive::Thread if scope::simulated() => drop(Scope::current().spawn(None, "engine", running.run_inline(None))),
        Drive::Thread => {
            let inbox = mailbox.inbox.clone();
            let run = move || run_blocking(&inbox, Box::new(running));
            drop(thread::Builder::new().name(name.to_owned()).spawn(run)?)
        }
        Drive::Inline => drop(Scope::current().spawn(None, "engine", running.run_inline(None))),
        Drive::Delayed(delay) => drop(Scope::current().spawn(None, "engine", running.run_inline(Some(delay)))),
    }
    Ok(Driver { ended, step })
}

/// Tells how long an engine has been at one step, and when it has ended. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    ended: Watermark,
    step: StepClock,
}

/// When the step under way was begun.
#[derive(Clone, Debug, Default)]
struct StepClock(Arc<Mutex<Option<Instant>>>);

impl StepClock {
    fn begin(&self) -> Instant {
        *self.begun().get_or_insert_with(Instant::now)
    }

    fn end(&self) {
        *self.begun() = None;
    }

    fn begun(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().expect("no holder of the lock panics")
    }
}

impl Driver {
    /// How long the step under way has taken so far; `None` between two steps. An engine that waits for another is not at a
    /// step.
    pub(crate) fn at_step_for(&self) -> Option<Duration> {
        self.step.begun().map(|begun| begun.elapsed())
    }

    /// Waits until the engine has been dropped, with all its files closed.
    ///
    /// # Cancel safety
    /// Dropping the future only ends the waiting.
    pub(crate) async fn join(&self) {
        self.ended.wait(1).await.expect("the watermark is never closed");
    }

    /// As [`Driver::join`], for threads.
    pub(crate) fn join_blocking(&self) {
        self.ended.wait_blocking(1).expect("the watermark is never closed");
    }
}

/// The way in. Clones feed one queue.
pub(crate) struct Mailbox<Op> {
    inbox: Arc<Inbox<Op>>,
}

impl<Op> Mailbox<Op> {
    pub(crate) fn new() -> Self {
        let queue = VecDeque::new();
        let state = InboxState { queue, senders: 1, closed: false, asleep: false, parked: None, waker: None };
        Mailbox { inbox: Arc::new(Inbox { state: Mutex::new(state), arrived: Condvar::new() }) }
    }

    /// Queues `op` and wakes the driver; never blocks. Gives `op` back if the driver has ended.
    pub(crate) fn push(&self, op: Op) -> Result<(), Op> {
        push(&self.inbox, op)
    }

    pub(crate) fn knocker(&self) -> Knocker<Op> {
        Knocker { inbox: self.inbox.clone() }
    }

    /// As [`Mailbox::push`], but where the driver's thread sleeps, this thread takes the first step with `op` in its place.
    ///
    /// It saves the way to another thread and back, so it is for operations whose step takes no longer than that, and
    /// neither waits nor syncs. What the engine says it has to do next is left to its own thread.
    pub(crate) fn push_and_step(&self, op: Op) -> Result<(), Op> {
        let mut state = self.inbox.lock();
        if state.closed {
            return Err(op);
        }
        // What its own thread has been woken for comes first.
        let is_free = state.parked.as_ref().is_some_and(|parked| !parked.is_to_run(&state));
        let Some(mut parked) = (if is_free { state.parked.take() } else { None }) else {
            state.queue.push_back(op);
            self.inbox.notify(state);
            return Ok(());
        };
        drop(state);
        parked.next = parked.running.step_with(op);
        let mut state = self.inbox.lock();
        let has_more = parked.is_to_run(&state);
        state.parked = Some(parked);
        if has_more {
            self.inbox.notify(state);
        }
        Ok(())
    }
}

/// A way in that does not keep the driver going.
pub(crate) struct Knocker<Op> {
    inbox: Arc<Inbox<Op>>,
}

impl<Op> Knocker<Op> {
    /// As [`Mailbox::push`].
    pub(crate) fn push(&self, op: Op) -> Result<(), Op> {
        push(&self.inbox, op)
    }
}

impl<Op> Clone for Knocker<Op> {
    fn clone(&self) -> Self {
        Knocker { inbox: self.inbox.clone() }
    }
}

fn push<Op>(inbox: &Inbox<Op>, op: Op) -> Result<(), Op> {
    let mut state = inbox.lock();
    if state.closed {
        return Err(op);
    }
    state.queue.push_back(op);
    inbox.notify(state);
    Ok(())
}

#[cfg(any(test, feature = "internals"))]
impl<Op> Mailbox<Op> {
    /// Moves all that has come to the end of `queue`, in place of a driver.
    pub(crate) fn take(&self, queue: &mut VecDeque<Op>) {
        self.inbox.take(queue);
    }
}

impl<Op> Clone for Mailbox<Op> {
    fn clone(&self) -> Self {
        self.inbox.lock().senders += 1;
        Mailbox { inbox: self.inbox.clone() }
    }
}

impl<Op> Drop for Mailbox<Op> {
    fn drop(&mut self) {
        let mut state = self.inbox.lock();
        state.senders -= 1;
        if state.senders == 0 {
            self.inbox.notify(state);
        }
    }
}

struct Inbox<Op> {
    state: Mutex<InboxState<Op>>,
    arrived: Condvar,
}

struct InboxState<Op> {
    queue: VecDeque<Op>,
    senders: usize,
    closed: bool,
    /// The driver's thread waits for the condition. Otherwise there is nobody to wake, and no call into the kernel.
    asleep: bool,
    /// The engine, while its thread sleeps with nothing to do and nobody else has it.
    parked: Option<Parked<Op>>,
    waker: Option<Waker>,
}

/// An engine that its thread has left for whoever comes first.
struct Parked<Op> {
    running: Box<dyn Stepping<Op>>,
    next: Next,
}

impl<Op> Parked<Op> {
    /// Whether its own thread has something to do.
    fn is_to_run(&self, state: &InboxState<Op>) -> bool {
        !matches!(self.next, Next::Arrival) || self.running.due().is_some() || state.arrival().is_some()
    }
}

/// What ended the wait for operations.
enum Arrival {
    Ops,
    /// The time of a `Within` is up.
    Due,
    /// No sender is left and nothing is queued.
    Abandoned,
}

impl<Op> Inbox<Op> {
    fn lock(&self) -> MutexGuard<'_, InboxState<Op>> {
        self.state.lock().expect("no holder of the lock panics")
    }

    fn notify(&self, mut state: MutexGuard<'_, InboxState<Op>>) {
        let (waker, asleep) = (state.waker.take(), mem::take(&mut state.asleep));
        drop(state);
        if asleep {
            self.arrived.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Moves all that has come to the end of `queue`.
    fn take(&self, queue: &mut VecDeque<Op>) {
        queue.append(&mut self.lock().queue);
    }

    /// Leaves the engine here until it has something to do, which may be after others have made steps with it.
    fn park(&self, running: Box<dyn Stepping<Op>>) -> Parked<Op> {
        let mut state = self.lock();
        state.parked = Some(Parked { running, next: Next::Arrival });
        loop {
            state.asleep = false;
            if state.parked.as_ref().is_some_and(|parked| parked.is_to_run(&state)) {
                return state.parked.take().expect("looked at under this very lock");
            }
            state.asleep = true;
            state = self.arrived.wait(state).expect("no holder of the lock panics");
        }
    }

    fn wait_blocking(&self, due: Option<Instant>) -> Arrival {
        let mut state = self.lock();
        loop {
            state.asleep = false;
            if let Some(arrival) = state.arrival() {
                return arrival;
            }
            state.asleep = true;
            state = match due.map(|due| due - Instant::now()) {
                None => self.arrived.wait(state).expect("no holder of the lock panics"),
                Some(Duration::ZERO) => {
                    state.asleep = false;
                    return Arrival::Due;
                }
                Some(left) => self.arrived.wait_timeout(state, left).expect("no holder of the lock panics").0,
            };
        }
    }

    async fn wait(&self, due: Option<Instant>) -> Arrival {
        let arrival = poll_fn(|cx| self.poll_arrival(cx));
        match due {
            None => arrival.await,
            Some(due) => timeout_at(due, arrival).await.unwrap_or(Arrival::Due),
        }
    }

    fn poll_arrival(&self, cx: &mut Context<'_>) -> Poll<Arrival> {
        let mut state = self.lock();
        match state.arrival() {
            Some(arrival) => Poll::Ready(arrival),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<Op> InboxState<Op> {
    fn arrival(&self) -> Option<Arrival> {
        if !self.queue.is_empty() { Some(Arrival::Ops) } else { (self.senders == 0).then_some(Arrival::Abandoned) }
    }
}

/// What the two drivers share: everything but the waiting.
///
/// Dropped from top to bottom, also when a task is aborted: the mailbox closes first, so that nothing can be pushed
/// after the queued operations are dropped, and the end is told last, when the engine's files are closed.
struct Running<E: Engine> {
    name: String,
    inbox: Outlet<E::Op>,
    /// Taken from the inbox, not yet taken by the engine.
    queue: VecDeque<E::Op>,
    engine: E,
    /// When the time of the first `Within` in a row is up.
    due: Option<Instant>,
    step: StepClock,
    _ended: Ended,
}

/// The driver's end of the inbox.
struct Outlet<Op>(Arc<Inbox<Op>>);

impl<Op> Deref for Outlet<Op> {
    type Target = Inbox<Op>;

    fn deref(&self) -> &Inbox<Op> {
        &self.0
    }
}

impl<Op> Drop for Outlet<Op> {
    fn drop(&mut self) {
        let mut state = self.lock();
        state.closed = true;
        let orphans = mem::take(&mut state.queue);
        // Callbacks run as these are dropped, and may come back to the mailbox.
        drop(state);
        drop(orphans);
    }
}

struct Ended(Watermark);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.advance(1);
    }
}

/// What to wait for before the next step.
enum Next {
    Now,
    Arrival,
    Mark(Watermark, u64),
    End,
}

/// An engine of any kind, as its thread has it.
trait Stepping<Op>: Send {
    fn queue(&mut self) -> &mut VecDeque<Op>;
    fn due(&self) -> Option<Instant>;
    fn arrived(&mut self, arrival: Arrival) -> bool;
    fn step(&mut self) -> Next;

    fn step_with(&mut self, op: Op) -> Next {
        self.queue().push_back(op);
        self.step()
    }
}

impl<E: Engine> Stepping<E::Op> for Running<E> {
    fn queue(&mut self) -> &mut VecDeque<E::Op> {
        &mut self.queue
    }

    fn due(&self) -> Option<Instant> {
        self.due
    }

    fn arrived(&mut self, arrival: Arrival) -> bool {
        Running::arrived(self, arrival)
    }

    fn step(&mut self) -> Next {
        Running::step(self)
    }
}

/// The life of an engine's thread.
fn run_blocking<Op>(inbox: &Inbox<Op>, mut running: Box<dyn Stepping<Op>>) {
    let mut next = Next::Arrival;
    loop {
        match next {
            Next::Now => inbox.take(running.queue()),
            Next::Arrival => {
                if running.due().is_none() {
                    let parked = inbox.park(running);
                    running = parked.running;
                    if !matches!(parked.next, Next::Arrival) {
                        next = parked.next;
                        continue;
                    }
                }
                if !running.arrived(inbox.wait_blocking(running.due())) {
                    return;
                }
            }
            Next::Mark(mark, target) => {
                // A closed watermark is the engine's to notice.
                let _ = mark.wait_blocking(target);
                inbox.take(running.queue());
            }
            Next::End => return,
        }
        next = running.step();
    }
}

impl<E: Engine> Running<E> {
    async fn run_inline(mut self, delay: Option<Delay>) {
        let mut next = Next::Arrival;
        loop {
            match next {
                Next::Now => {
                    // A thread would be preempted here; a task has to give way by itself.
                    tokio::task::yield_now().await;
                    self.inbox.take(&mut self.queue);
                }
                Next::Arrival => {
                    let arrival = self.inbox.wait(self.due).await;
                    if !self.arrived(arrival) {
                        return;
                    }
                }
                Next::Mark(mark, target) => {
                    let _ = mark.wait(target).await;
                    self.inbox.take(&mut self.queue);
                }
                Next::End => return,
            }
            if let Some(delay) = &delay {
                // The delay stands for the step's I/O.
                self.step.begin();
                delay().await;
            }
            next = self.step();
        }
    }

    /// Fills the queue as the arrival asks for; false when there is nothing to wait for any more.
    fn arrived(&mut self, arrival: Arrival) -> bool {
        match arrival {
            Arrival::Ops => self.inbox.take(&mut self.queue),
            // The queue stays empty even if something has come this moment: that is how the engine knows.
            Arrival::Due => self.due = None,
            // What may wait has no more to wait for: an empty step, as if the time were up, and then the end.
            Arrival::Abandoned => return self.due.take().is_some(),
        }
        true
    }

    fn step(&mut self) -> Next {
        let Running { engine, queue, .. } = self;
        let begun = self.step.begin();
        let step = match catch_unwind(AssertUnwindSafe(|| engine.step(queue))) {
            Ok(step) => step,
            Err(panic) => {
                let message = panic_message(&*panic);
                tracing::error!(engine = %self.name, message, "an engine panicked; it is stopped for good");
                scope::panicked(&self.name, message);
                self.engine.panicked(message);
                return Next::End;
            }
        };
        self.step.end();
        let took = begun.elapsed();
        if took >= SLOW_STEP {
            tracing::warn!(engine = %self.name, ?took, "a disk operation took long");
        }
        if !matches!(step, Step::Within(_)) {
            self.due = None;
        }
        match step {
            Step::Idle if self.queue.is_empty() => Next::Arrival,
            // Left in the queue by an engine that says it is idle: offer it again rather than wait for a companion.
            Step::Idle | Step::Again => Next::Now,
            Step::Within(time) => {
                self.due.get_or_insert_with(|| Instant::now() + time);
                Next::Arrival
            }
            Step::After(mark, target) => Next::Mark(mark, target),
            Step::Stop => Next::End,
        }
    }
}

pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests;
