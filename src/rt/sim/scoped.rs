//! A future that is polled, and dropped, inside a context.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{self, Poll};

use super::context::Context;
use super::{Current, Inside};
use crate::rt::worker::panic_message;

pub(super) struct Scoped<F> {
    current: Current,
    /// Taken out when it is done: destructors run in the context too.
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Scoped<F> {
    pub(super) fn new(context: Context, task: u64, name: &'static str, future: F) -> Self {
        Scoped { current: Current { context, task, name }, future: Some(Box::pin(future)) }
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        let current = self.current.clone();
        if !current.context.admits(current.task, cx.waker()) {
            return Poll::Pending;
        }
        let _inside = Inside::of(current.clone());
        let world = current.context.world();
        if world.gives_way() {
            world.trace("yield", &[]);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        world.trace("poll", &[]);
        let future = self.future.as_mut().expect("nobody polls a future that is done");
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => {
                self.future = None;
                world.trace("done", &[]);
                Poll::Ready(output)
            }
            Err(panic) => {
                current.context.panicked(current.name, panic_message(&*panic));
                resume_unwind(panic)
            }
        }
    }
}

impl<F> Drop for Scoped<F> {
    fn drop(&mut self) {
        self.current.context.forget(self.current.task);
        let _inside = Inside::of(self.current.clone());
        self.future = None;
    }
}
