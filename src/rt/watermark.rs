//! A number that only grows, and those who wait for it.
//!
//! The log counts its synced operations with one, and the state engine waits on it before it makes anything durable.
//! Threads and tasks may wait on the same watermark. Tasks are woken in the order in which they began to wait, so that a
//! simulated run repeats itself; nothing is promised about the order among threads.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// A cheap handle; clones share one number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watermark {
    inner: Arc<Inner>,
}

/// The watermark was closed below what was waited for, and will not get there.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("closed at {reached}")]
pub(crate) struct Closed {
    pub(crate) reached: u64,
}

impl Watermark {
    pub(crate) fn new() -> Self {
        Watermark::default()
    }

    pub(crate) fn get(&self) -> u64 {
        self.lock().value
    }

    /// Raises the number to `to`; a lower `to`, and anything after [`Watermark::close`], changes nothing.
    pub(crate) fn advance(&self, to: u64) {
        let mut state = self.lock();
        if state.closed || to <= state.value {
            return;
        }
        state.value = to;
        self.release(state);
    }

    /// Ends the waiting: whoever waits for more than has been reached is told so, now and later.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.release(state);
    }

    /// Blocks this thread until the number is at least `target`.
    pub(crate) fn wait_blocking(&self, target: u64) -> Result<(), Closed> {
        let mut state = self.lock();
        loop {
            if let Some(answer) = state.answer(target) {
                return answer;
            }
            state.threads += 1;
            state = self.inner.changed.wait(state).expect("no holder of the lock panics");
            state.threads -= 1;
        }
    }

    /// Waits until the number is at least `target`.
    ///
    /// # Cancel safety
    /// Dropping the future only ends the waiting.
    pub(crate) fn wait(&self, target: u64) -> Wait {
        Wait { watermark: self.clone(), target, ticket: None }
    }

    /// Wakes those whose wait is over, outside the lock: a waker may run arbitrary code.
    fn release(&self, mut state: MutexGuard<'_, State>) {
        // Waking nobody is still a call into the kernel.
        if state.threads > 0 {
            self.inner.changed.notify_all();
        }
        let (value, closed) = (state.value, state.closed);
        let mut ready = Vec::new();
        state.waiters.retain_mut(|waiter| {
            let over = closed || waiter.target <= value;
            if over {
                ready.push(waiter.waker.clone());
            }
            !over
        });
        drop(state);
        ready.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().expect("no holder of the lock panics")
    }
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    value: u64,
    closed: bool,
    /// Threads that wait, for whatever number.
    threads: usize,
    /// In the order in which they came.
    waiters: VecDeque<Waiter>,
    next_ticket: u64,
}

impl State {
    fn answer(&self, target: u64) -> Option<Result<(), Closed>> {
        if self.value >= target { Some(Ok(())) } else { self.closed.then_some(Err(Closed { reached: self.value })) }
    }
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    target: u64,
    waker: Waker,
}

/// The future of [`Watermark::wait`].
#[derive(Debug)]
pub(crate) struct Wait {
    watermark: Watermark,
    target: u64,
    ticket: Option<u64>,
}

impl Future for Wait {
    type Output = Result<(), Closed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let watermark = self.watermark.clone();
        let mut state = watermark.lock();
        if let Some(answer) = state.answer(self.target) {
            return Poll::Ready(answer);
        }
        match state.waiters.iter_mut().find(|waiter| Some(waiter.ticket) == self.ticket) {
            Some(waiter) => waiter.waker.clone_from(cx.waker()),
            None => {
                let ticket = state.next_ticket;
                state.next_ticket += 1;
                self.ticket = Some(ticket);
                state.waiters.push_back(Waiter { ticket, target: self.target, waker: cx.waker().clone() });
            }
        }
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.watermark.lock().waiters.retain(|waiter| waiter.ticket != ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::task::noop_waker_ref;

    use super::*;

    fn poll(wait: &mut Wait) -> Poll<Result<(), Closed>> {
        wait.poll_unpin(&mut Context::from_waker(noop_waker_ref()))
    }

    #[test]
    fn a_watermark_never_goes_back_and_stays_where_it_was_closed() {
        let mark = Watermark::new();
        mark.advance(5);
        mark.advance(3);
        assert_eq!(mark.get(), 5);
        mark.close();
        mark.advance(9);
        assert_eq!(mark.get(), 5);
        assert_eq!(mark.wait_blocking(5), Ok(()));
        assert_eq!(mark.wait_blocking(6), Err(Closed { reached: 5 }));
    }

    #[test]
    fn a_task_waits_exactly_until_its_target_is_reached() {
        let mark = Watermark::new();
        let (mut near, mut far) = (mark.wait(1), mark.wait(2));
        assert_eq!((poll(&mut near), poll(&mut far)), (Poll::Pending, Poll::Pending));
        mark.advance(1);
        assert_eq!((poll(&mut near), poll(&mut far)), (Poll::Ready(Ok(())), Poll::Pending));
        mark.close();
        assert_eq!(poll(&mut far), Poll::Ready(Err(Closed { reached: 1 })));
    }

    #[test]
    fn tasks_are_woken_in_the_order_in_which_they_began_to_wait() {
        struct Note(usize, Arc<Mutex<Vec<usize>>>);
        impl std::task::Wake for Note {
            fn wake(self: Arc<Self>) {
                self.1.lock().unwrap().push(self.0);
            }
        }
        let (mark, order) = (Watermark::new(), Arc::new(Mutex::new(Vec::new())));
        let mut waits: Vec<Wait> = [3, 1, 2, 9].into_iter().map(|target| mark.wait(target)).collect();
        for (i, wait) in waits.iter_mut().enumerate() {
            let waker = Waker::from(Arc::new(Note(i, order.clone())));
            assert!(wait.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
        }
        mark.advance(3);
        assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
    }

    #[test]
    fn a_dropped_wait_leaves_nothing_behind() {
        let mark = Watermark::new();
        let mut wait = mark.wait(1);
        assert!(poll(&mut wait).is_pending());
        drop(wait);
        assert_eq!(mark.lock().waiters.len(), 0);
    }

    #[test]
    fn a_thread_is_released_by_an_advance_and_by_a_close() {
        let mark = Watermark::new();
        let threads = [1, 2].map(|target| {
            let mark = mark.clone();
            std::thread::spawn(move || mark.wait_blocking(target))
        });
        mark.advance(1);
        mark.close();
        let answers = threads.map(|thread| thread.join().unwrap());
        assert_eq!(answers, [Ok(()), Err(Closed { reached: 1 })]);
    }
}
