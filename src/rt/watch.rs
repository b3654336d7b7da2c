//! One value, and those who wait for it to change, woken in the order in which they began to wait.
//!
//! tokio's `watch` wakes its receivers in an order drawn at random, which no seed reaches: with it, two runs of one
//! simulation differ (`tokio::sync::watch` is banned for that). The order here is first come, first woken.
//!
//! * Only the newest value is kept: a receiver that is slow sees the last one, and never an older one after a newer.
//! * A receiver learns of the last value before it learns that all senders are gone.
//! * There is at most one waiter for each receiver, since waiting borrows it: the queue is bounded by the receivers.

use std::collections::BTreeMap;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Context, Poll, Waker};

/// A value and its watchers. The receiver starts out having seen `init`.
pub(crate) fn channel<T>(init: T) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared { value: RwLock::new(init), state: Mutex::new(State::default()) });
    shared.state().senders = 1;
    let sender = Sender { shared };
    let receiver = sender.subscribe();
    (sender, receiver)
}

/// Where locks are nested, `value` is taken before `state`. Neither is held while a waiter is woken.
#[derive(Debug)]
struct Shared<T> {
    value: RwLock<T>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How often the value has changed.
    version: u64,
    senders: usize,
    receivers: usize,
    /// By ticket, and tickets are numbered: the order of the map is the order of arrival.
    waiters: BTreeMap<u64, Waker>,
    next_ticket: u64,
}

impl<T> Shared<T> {
    // A closure that panics while it modifies the value leaves it whole as far as the borrow checker can tell. Watchers
    // are better served by that value than by a panic of their own, so poisoning is ignored throughout.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn value(&self) -> RwLockReadGuard<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(waiters: BTreeMap<u64, Waker>) {
        #[cfg(test)]
        let waiters = unfairly(waiters);
        waiters.into_values().for_each(Waker::wake);
    }
}

/// The same in an order that no seed reaches, in a world that asks for it: as tokio's `watch` would wake them.
#[cfg(test)]
fn unfairly(waiters: BTreeMap<u64, Waker>) -> BTreeMap<u64, Waker> {
    if super::sim::current().is_none_or(|context| !context.world().is_unfair()) {
        return waiters;
    }
    waiters.into_values().map(|waker| (rand::random(), waker)).collect()
}

/// Changes the value. Cloneable; when the last one is dropped, receivers are told.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Replaces the value, whether or not anybody watches.
    pub(crate) fn send(&self, value: T) {
        self.send_modify(|current| *current = value);
    }

    /// Changes the value in place and tells the receivers. `modify` must not touch this channel.
    pub(crate) fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            modify(value);
            true
        });
    }

    /// As [`send_modify`](Self::send_modify), but tells the receivers only if `modify` returns true. Returns what it did.
    pub(crate) fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let mut value = self.shared.value.write().unwrap_or_else(PoisonError::into_inner);
        if !modify(&mut value) {
            return false;
        }
        // The version moves while the value is still locked: a receiver that has read a value knows its version, and
        // one that has seen a version finds its value or a newer one.
        let waiters = {
            let mut state = self.shared.state();
            state.version += 1;
            mem::take(&mut state.waiters)
        };
        drop(value);
        Shared::<T>::wake_all(waiters);
        true
    }

    /// A receiver that has seen the present value.
    pub(crate) fn subscribe(&self) -> Receiver<T> {
        let mut state = self.shared.state();
        state.receivers += 1;
        let seen = state.version;
        drop(state);
        Receiver { shared: self.shared.clone(), seen }
    }

    /// Reads the value. `read` must not change this channel.
    pub(crate) fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.shared.value())
    }

    /// A copy of the value.
    pub(crate) fn borrow(&self) -> T
    where
        T: Clone,
    {
        self.with(T::clone)
    }

    /// As [`Receiver::guard`].
    pub(super) fn guard(&self) -> RwLockReadGuard<'_, T> {
        self.shared.value()
    }

    /// Whether nobody watches any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.state().receivers == 0
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.state().senders += 1;
        Sender { shared: self.shared.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waiters = {
            let mut state = self.shared.state();
            state.senders -= 1;
            if state.senders > 0 {
                return;
            }
            mem::take(&mut state.waiters)
        };
        Shared::<T>::wake_all(waiters);
    }
}

/// All senders are gone: the value will not change any more.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value will not change any more")]
pub(crate) struct Closed;

/// Reads the value and waits for it to change. A clone has seen what the original has.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Receiver<T> {
    /// Waits until the value is another than the one last seen, and marks it as seen.
    ///
    /// # Errors
    /// [`Closed`] if all senders are gone and the last value has been seen.
    /// # Cancel safety
    /// Dropped before it is ready, it has marked nothing as seen.
    pub(crate) fn changed(&mut self) -> Changed<'_, T> {
        Changed { receiver: self, ticket: None }
    }

    /// Waits until `wanted` holds of the value, looking at the present one first, and returns a copy of it.
    ///
    /// # Errors
    /// [`Closed`] if all senders are gone and it does not hold of the last value.
    /// # Cancel safety
    /// Dropping it loses no value but those for which `wanted` did not hold.
    pub(crate) async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<T, Closed>
    where
        T: Clone,
    {
        loop {
            if let Some(value) = self.with_update(|value| wanted(value).then(|| value.clone())) {
                return Ok(value);
            }
            self.changed().await?;
        }
    }

    /// Reads the value without marking it as seen. `read` must not change this channel.
    pub(crate) fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.shared.value())
    }

    /// A copy of the value, which is not marked as seen.
    pub(crate) fn borrow(&self) -> T
    where
        T: Clone,
    {
        self.with(T::clone)
    }

    /// A copy of the value, which is marked as seen.
    pub(crate) fn borrow_and_update(&mut self) -> T
    where
        T: Clone,
    {
        self.with_update(T::clone)
    }

    /// Whether the value has changed since it was last seen.
    pub(crate) fn has_changed(&self) -> bool {
        self.shared.state().version != self.seen
    }

    /// Whether all senders are gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.state().senders == 0
    }

    fn with_update<R>(&mut self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.guard_and_update())
    }

    /// The value, locked: whoever sends waits until this is dropped. Only for the consensus library, which asks for it.
    pub(super) fn guard(&self) -> RwLockReadGuard<'_, T> {
        self.shared.value()
    }

    /// As [`guard`](Self::guard), and marks the value as seen.
    pub(super) fn guard_and_update(&mut self) -> RwLockReadGuard<'_, T> {
        let value = self.shared.value();
        // Under the value's lock, so that it is this value's version and not the next one's.
        self.seen = self.shared.state().version;
        value
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.state().receivers += 1;
        Receiver { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.state().receivers -= 1;
    }
}

/// See [`Receiver::changed`].
#[derive(Debug)]
#[must_use = "a future does nothing unless it is awaited"]
pub(crate) struct Changed<'a, T> {
    receiver: &'a mut Receiver<T>,
    /// The place in the queue, once there is one.
    ticket: Option<u64>,
}

impl<T> Future for Changed<'_, T> {
    type Output = Result<(), Closed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Changed { receiver, ticket } = &mut *self;
        let mut state = receiver.shared.state();
        if state.version != receiver.seen {
            receiver.seen = state.version;
            return Poll::Ready(Ok(()));
        }
        if state.senders == 0 {
            return Poll::Ready(Err(Closed));
        }
        // Polled again without having been woken, it keeps its place.
        let place = *ticket.get_or_insert_with(|| {
            state.next_ticket += 1;
            state.next_ticket
        });
        state.waiters.insert(place, cx.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Changed<'_, T> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.receiver.shared.state().waiters.remove(&ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::task::Wake;
    use std::thread;

    use futures::FutureExt;

    use super::*;

    /// Writes its name down when it is woken.
    struct Named(u32, Arc<Mutex<Vec<u32>>>);

    impl Wake for Named {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    fn poll<T>(changed: &mut Changed<'_, T>, name: u32, woken: &Arc<Mutex<Vec<u32>>>) -> Poll<Result<(), Closed>> {
        let waker = Waker::from(Arc::new(Named(name, woken.clone())));
        Pin::new(changed).poll(&mut Context::from_waker(&waker))
    }

    #[test]
    fn waiters_are_woken_in_the_order_in_which_they_began_to_wait() {
        let (sender, first) = channel(0);
        let mut receivers: Vec<_> = (0..50).map(|_| first.clone()).collect();
        let woken = Arc::default();
        for round in 0..3u32 {
            // Each round has another order of arrival; being polled again (with a new waker) does not lose the place.
            let mut waiting: Vec<_> = receivers.iter_mut().map(Receiver::changed).collect();
            let order: Vec<u32> = (0..50).map(|i| (i * 7 + round * 13) % 50).collect();
            for &i in &order {
                assert_eq!(poll(&mut waiting[i as usize], i + 1000, &woken), Poll::Pending);
            }
            for i in 0..50 {
                assert_eq!(poll(&mut waiting[i as usize], i, &woken), Poll::Pending);
            }
            sender.send(round + 1);
            assert_eq!(mem::take(&mut *woken.lock().unwrap()), order);
            for (i, changed) in waiting.iter_mut().enumerate() {
                assert_eq!(poll(changed, i as u32, &woken), Poll::Ready(Ok(())));
            }
        }
    }

    #[test]
    fn a_wait_that_is_dropped_leaves_no_waiter_and_has_seen_nothing() {
        let (sender, mut receiver) = channel('a');
        let woken = Arc::default();
        let mut changed = receiver.changed();
        assert_eq!(poll(&mut changed, 1, &woken), Poll::Pending);
        drop(changed);
        assert!(sender.shared.state().waiters.is_empty());
        let mut changed = receiver.changed();
        assert_eq!(poll(&mut changed, 1, &woken), Poll::Pending);
        sender.send('b');
        drop(changed);
        assert!(receiver.has_changed());
        assert_eq!(receiver.changed().now_or_never(), Some(Ok(())));
        assert_eq!(receiver.borrow(), 'b');
    }

    #[test]
    fn the_last_value_is_seen_before_the_end() {
        let (sender, mut receiver) = channel(0);
        let other = sender.clone();
        sender.send(1);
        drop(sender);
        other.send(2);
        assert!(!receiver.is_closed());
        drop(other);
        assert!(receiver.is_closed());
        assert_eq!(receiver.clone().wait_for(|n| *n == 2).now_or_never(), Some(Ok(2)));
        assert_eq!(receiver.changed().now_or_never(), Some(Ok(())));
        assert_eq!(receiver.changed().now_or_never(), Some(Err(Closed)));
        assert_eq!(receiver.wait_for(|n| *n == 3).now_or_never(), Some(Err(Closed)));
    }

    #[test]
    fn only_the_last_sender_to_leave_wakes_the_waiters() {
        let (sender, mut receiver) = channel(());
        let woken = Arc::default();
        let other = sender.clone();
        let mut changed = receiver.changed();
        assert_eq!(poll(&mut changed, 1, &woken), Poll::Pending);
        drop(sender);
        assert_eq!(*woken.lock().unwrap(), [0u32; 0]);
        drop(other);
        assert_eq!(*woken.lock().unwrap(), [1]);
        assert_eq!(poll(&mut changed, 1, &woken), Poll::Ready(Err(Closed)));
    }

    #[test]
    fn a_modification_that_says_it_changed_nothing_wakes_nobody() {
        let (sender, mut receiver) = channel(5);
        let woken = Arc::default();
        let mut changed = receiver.changed();
        assert_eq!(poll(&mut changed, 1, &woken), Poll::Pending);
        assert!(!sender.send_if_modified(|_| false));
        assert_eq!((poll(&mut changed, 1, &woken), woken.lock().unwrap().len()), (Poll::Pending, 0));
        assert!(sender.send_if_modified(|n| mem::replace(n, 6) == 5));
        assert_eq!((poll(&mut changed, 1, &woken), woken.lock().unwrap().len()), (Poll::Ready(Ok(())), 1));
    }

    #[test]
    fn a_new_receiver_has_seen_the_present_and_a_clone_what_its_original_has() {
        let (sender, mut receiver) = channel(0);
        sender.send(1);
        assert_eq!((receiver.has_changed(), receiver.clone().has_changed()), (true, true));
        assert!(!sender.subscribe().has_changed());
        assert_eq!(receiver.borrow(), 1);
        assert!(receiver.has_changed(), "looking is not seeing");
        assert_eq!(receiver.borrow_and_update(), 1);
        assert_eq!((receiver.has_changed(), receiver.clone().has_changed()), (false, false));
    }

    #[test]
    fn a_sender_learns_that_nobody_watches_and_may_send_on() {
        let (sender, receiver) = channel(0);
        let second = receiver.clone();
        drop(receiver);
        assert!(!sender.is_closed());
        drop(second);
        assert!(sender.is_closed());
        sender.send(1);
        assert_eq!(sender.subscribe().borrow(), 1);
    }

    #[test]
    fn a_modification_that_panics_does_not_take_the_watchers_with_it() {
        let (sender, mut receiver) = channel(1);
        let result = catch_unwind(AssertUnwindSafe(|| sender.send_modify(|_| panic!("on purpose"))));
        assert!(result.is_err());
        assert_eq!(receiver.changed().now_or_never(), None);
        sender.send(2);
        assert_eq!(receiver.wait_for(|n| *n == 2).now_or_never(), Some(Ok(2)));
    }

    #[test]
    fn across_threads_no_watcher_goes_back_or_misses_the_last_value() {
        const WRITERS: u64 = 3;
        const WRITES: u64 = 2000;
        let (sender, receiver) = channel(0u64);
        let watchers: Vec<_> = (0..3)
            .map(|_| {
                let mut receiver = receiver.clone();
                thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    let mut last = 0;
                    while runtime.block_on(receiver.changed()).is_ok() {
                        let now = receiver.borrow_and_update();
                        assert!(last <= now, "{now} after {last}");
                        last = now;
                    }
                    last
                })
            })
            .collect();
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let sender = sender.clone();
                thread::spawn(move || (0..WRITES).for_each(|_| sender.send_modify(|n| *n += 1)))
            })
            .collect();
        drop(sender);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        for watcher in watchers {
            assert_eq!(watcher.join().unwrap(), WRITERS * WRITES);
        }
    }
}
