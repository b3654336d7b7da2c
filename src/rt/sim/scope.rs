//! The same names as in `rt/scope.rs`: inside a context they mean the context's, outside of one the machine's own.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{self, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::context::{Context, Timer};

/// The process that a task belongs to: a context, or the one that really runs.
#[derive(Clone, Debug)]
pub(in crate::rt) struct Scope(Option<Context>);

impl Scope {
    pub(in crate::rt) fn current() -> Self {
        Scope(super::current())
    }

    /// Spawns a task of this process on `handle`, or on the current runtime.
    pub(in crate::rt) fn spawn<F>(
        &self,
        handle: Option<&Handle>,
        name: &'static str,
        future: F,
    ) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match (&self.0, handle) {
            (Some(context), handle) => context.start(handle, name, future),
            (None, Some(handle)) => handle.spawn(future),
            (None, None) => tokio::spawn(future),
        }
    }
}

/// Whether time is simulated here, so that nothing may wait for a thread.
pub(in crate::rt) fn simulated() -> bool {
    super::current().is_some()
}

pub(in crate::rt) fn now() -> tokio::time::Instant {
    super::current().map_or_else(tokio::time::Instant::now, |context| context.instant_now())
}

/// A timer of the context that it was made in, or tokio's.
pub(crate) enum Sleep {
    Simulated(Timer),
    Real(Pin<Box<tokio::time::Sleep>>),
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        match &mut *self {
            Sleep::Simulated(timer) => pin!(timer).poll(cx),
            Sleep::Real(sleep) => sleep.as_mut().poll(cx),
        }
    }
}

pub(in crate::rt) fn sleep(duration: Duration) -> Sleep {
    match super::current() {
        Some(context) => Sleep::Simulated(context.timer(context.instant_in(duration))),
        None => Sleep::Real(Box::pin(tokio::time::sleep(duration))),
    }
}

pub(in crate::rt) fn sleep_until(deadline: tokio::time::Instant) -> Sleep {
    match super::current() {
        Some(context) => Sleep::Simulated(context.timer(deadline)),
        None => Sleep::Real(Box::pin(tokio::time::sleep_until(deadline))),
    }
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time is up")]
pub(crate) struct TimeIsUp;

/// A future with a deadline of the context that this was made in, or tokio's.
pub(crate) enum Timeout<F> {
    Simulated(Pin<Box<F>>, Timer),
    Real(Pin<Box<tokio::time::Timeout<F>>>),
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, TimeIsUp>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Timeout::Simulated(future, timer) => match future.as_mut().poll(cx) {
                Poll::Ready(output) => Poll::Ready(Ok(output)),
                Poll::Pending => pin!(timer).poll(cx).map(|()| Err(TimeIsUp)),
            },
            Timeout::Real(timeout) => timeout.as_mut().poll(cx).map_err(|_| TimeIsUp),
        }
    }
}

pub(in crate::rt) fn timeout<F: Future>(duration: Duration, future: F) -> Timeout<F> {
    match super::current() {
        Some(context) => Timeout::Simulated(Box::pin(future), context.timer(context.instant_in(duration))),
        None => Timeout::Real(Box::pin(tokio::time::timeout(duration, future))),
    }
}

pub(in crate::rt) fn timeout_at<F: Future>(deadline: tokio::time::Instant, future: F) -> Timeout<F> {
    match super::current() {
        Some(context) => Timeout::Simulated(Box::pin(future), context.timer(deadline)),
        None => Timeout::Real(Box::pin(tokio::time::timeout_at(deadline, future))),
    }
}

/// The simulated clocks and the simulated chance, where there are any.
pub(in crate::rt) fn boot_now() -> Option<Duration> {
    super::current().map(|context| context.boot_now())
}

pub(in crate::rt) fn wall_ms() -> Option<u64> {
    super::current().map(|context| context.wall_ms())
}

pub(in crate::rt) fn random_u64() -> Option<u64> {
    super::current().map(|context| context.random_u64())
}

/// A panic was caught in a task of this process.
pub(in crate::rt) fn panicked(task: &str, message: &str) {
    if let Some(context) = super::current() {
        context.panicked(task, message);
    }
}
