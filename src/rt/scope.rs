//! What a simulation puts itself in place of, without one: the machine's own clock, tasks and chance.
//!
//! `sim/scope.rs` has the same names. It stands here wherever simulations are compiled in, and does the same outside of one.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// The process that a task belongs to. There is only this one.
#[derive(Clone, Debug)]
pub(super) struct Scope;

impl Scope {
    pub(super) fn current() -> Self {
        Scope
    }

    /// Spawns a task of this process on `handle`, or on the current runtime.
    pub(super) fn spawn<F>(&self, handle: Option<&Handle>, _name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match handle {
            Some(handle) => handle.spawn(future),
            None => tokio::spawn(future),
        }
    }
}

/// Whether time is simulated here, so that nothing may wait for a thread.
pub(super) const fn simulated() -> bool {
    false
}

pub(super) fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

pub(super) type Sleep = tokio::time::Sleep;
pub(super) type Timeout<F> = tokio::time::Timeout<F>;
pub(super) type TimeIsUp = tokio::time::error::Elapsed;

pub(super) fn sleep(duration: Duration) -> Sleep {
    tokio::time::sleep(duration)
}

pub(super) fn sleep_until(deadline: tokio::time::Instant) -> Sleep {
    tokio::time::sleep_until(deadline)
}

pub(super) fn timeout<F: Future>(duration: Duration, future: F) -> Timeout<F> {
    tokio::time::timeout(duration, future)
}

pub(super) fn timeout_at<F: Future>(deadline: tokio::time::Instant, future: F) -> Timeout<F> {
    tokio::time::timeout_at(deadline, future)
}

/// The simulated clocks and the simulated chance, where there are any.
pub(super) const fn boot_now() -> Option<Duration> {
    None
}

pub(super) const fn wall_ms() -> Option<u64> {
    None
}

pub(super) const fn random_u64() -> Option<u64> {
    None
}

/// A panic was caught in a task of this process.
pub(super) fn panicked(_task: &str, _message: &str) {}
