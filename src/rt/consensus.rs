//! What the consensus library runs on: our tasks, clocks and chance, our `watch`, and tokio's other channels.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Sub, SubAssign};
use std::sync::RwLockReadGuard;
use std::time::Duration;

use openraft_rt::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use openraft_rt::{AsyncRuntime, OptionalSend, OptionalSync};
use openraft_rt_tokio::{TokioMpsc, TokioMutex, TokioOneshot};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::clock::Instant;
use super::random::random_u64;
use super::scope::{self, Scope};
use super::watch;

/// The library's runtime: the current tokio runtime, and in a simulation the current process.
pub(crate) struct Rt(tokio::runtime::Runtime);

impl fmt::Debug for Rt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rt")
    }
}

impl AsyncRuntime for Rt {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = scope::Sleep;
    type Instant = Instant;
    type TimeoutError = scope::TimeIsUp;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = scope::Timeout<T>;
    // One for each draw: the library draws a handful of times in a node's life.
    type ThreadLocalRng = SmallRng;
    type Mpsc = TokioMpsc;
    type Watch = FairWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        Scope::current().spawn(None, "openraft", future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        scope::sleep(duration)
    }

    fn sleep_until(deadline: Instant) -> Self::Sleep {
        scope::sleep_until(deadline.into_tokio())
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        scope::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Instant, future: F) -> Self::Timeout<R, F> {
        scope::timeout_at(deadline.into_tokio(), future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        error.is_panic()
    }

    fn thread_rng() -> SmallRng {
        SmallRng::seed_from_u64(random_u64())
    }

    /// Only the library's own tests make one. A node brings its runtime.
    fn new(_threads: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Rt(runtime.expect("the system gives what a runtime needs"))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    /// On a thread of its own, or, where threads cannot be waited for, at once.
    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (done, result) = futures::channel::oneshot::channel();
        let work = move || drop(done.send(work()));
        if scope::simulated() {
            work();
        } else {
            std::thread::spawn(work);
        }
        async { result.await.map_err(|_| io::Error::other("the work panicked")) }
    }
}

impl openraft_rt::Instant for Instant {
    fn now() -> Self {
        Instant::now()
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, duration: Duration) -> Instant {
        Instant::from_tokio(self.into_tokio() - duration)
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

/// [`rt::watch`](super::watch) by the library's names.
pub(crate) struct FairWatch;

impl Watch for FairWatch {
    type Sender<T: OptionalSend + OptionalSync> = watch::Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = watch::Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = RwLockReadGuard<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (watch::Sender<T>, watch::Receiver<T>) {
        watch::channel(init)
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<FairWatch, T> for watch::Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.is_closed() {
            return Err(SendError(value));
        }
        watch::Sender::send(self, value);
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        watch::Sender::send_if_modified(self, modify)
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.guard()
    }

    fn subscribe(&self) -> watch::Receiver<T> {
        watch::Sender::subscribe(self)
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<FairWatch, T> for watch::Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        watch::Receiver::changed(self).await.map_err(|_| RecvError(()))
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.guard()
    }

    fn borrow_and_update(&mut self) -> RwLockReadGuard<'_, T> {
        self.guard_and_update()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_content_with_its_runtime() {
        openraft_rt::testing::Suite::<Rt>::test_all();
    }
}
