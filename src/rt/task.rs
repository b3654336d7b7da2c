//! Named tasks that keep what they panicked with.
//!
//! A panic ends its task and nothing else: it is logged with the task's name when it happens, and kept for whoever awaits
//! the task. Deciding whether the node can go on is the spawner's business.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt;

use super::scope::{self, Scope};

/// Runs `future` on the current runtime.
///
/// # Panics
///
/// Outside a runtime. From another thread, use [`NodeRuntime::spawn`](super::NodeRuntime::spawn).
pub(crate) fn spawn<F>(name: &'static str, future: F) -> Task<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Task { name, handle: Scope::current().spawn(None, name, caught(name, future)) }
}

/// As [`spawn`], on the runtime behind `handle` and in `scope`, from any thread. If that runtime has ended, so has the task.
pub(super) fn spawn_on<F>(
    handle: &tokio::runtime::Handle,
    scope: &Scope,
    name: &'static str,
    future: F,
) -> Task<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Task { name, handle: scope.spawn(Some(handle), name, caught(name, future)) }
}

/// `future`, with a panic turned into an error.
///
/// The future may be left in any state by that, but it is dropped at once, and what it shares with others lies behind
/// locks of theirs.
pub(super) fn caught<F: Future>(name: &'static str, future: F) -> impl Future<Output = Result<F::Output, TaskFailed>> {
    // Not an async function: that would have room for the future twice, and move it when it is first polled.
    AssertUnwindSafe(future).catch_unwind().map(move |outcome| {
        outcome.map_err(|panic| {
            let message = panic_message(&*panic);
            tracing::error!(task = name, panic = message, "a task panicked");
            scope::panicked(name, &message);
            TaskFailed::Panicked { name, message }
        })
    })
}

/// What a panic said, if it said it in text.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}

/// A task under way. Await it for its result; drop it and it runs on.
#[derive(Debug)]
#[must_use = "a task that nobody holds can be neither joined nor aborted"]
pub(crate) struct Task<T> {
    name: &'static str,
    handle: tokio::task::JoinHandle<Result<T, TaskFailed>>,
}

impl<T> Task<T> {
    /// A task that was spawned as [`caught`].
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn of(name: &'static str, handle: tokio::task::JoinHandle<Result<T, TaskFailed>>) -> Self {
        Task { name, handle }
    }

    /// Asks the task to end where it next waits. It is over when awaiting it returns.
    pub(crate) fn abort(&self) {
        self.handle.abort();
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Lets the task run on with nobody waiting for it. Only for work that ends by itself.
    pub(crate) fn detach(self) {}

    /// The same task, aborted when the returned value is dropped.
    pub(crate) fn abort_on_drop(self) -> AbortOnDrop<T> {
        AbortOnDrop(self)
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskFailed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let name = self.name;
        Pin::new(&mut self.handle).poll(cx).map(|joined| match joined {
            Ok(result) => result,
            // `caught` sees every panic but one: that of a destructor, run while the task is being aborted.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Err(TaskFailed::Panicked { name, message: panic_message(&*panic) }),
                Err(_) => Err(TaskFailed::Aborted { name }),
            },
        })
    }
}

/// A [`Task`] that is aborted when this is dropped.
#[derive(Debug)]
#[must_use = "dropping it aborts the task at once"]
pub(crate) struct AbortOnDrop<T>(Task<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, TaskFailed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a task has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TaskFailed {
    #[error("task {name} panicked: {message}")]
    Panicked { name: &'static str, message: String },
    /// It was aborted, or its runtime ended.
    #[error("task {name} was aborted")]
    Aborted { name: &'static str },
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::future::pending;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span;

    use super::*;

    /// Keeps what is logged as errors.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl tracing::Subscriber for Log {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::ERROR
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let mut line = Line(String::new());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0 += &format!("{field}={value:?} ");
        }
    }

    #[tokio::test]
    async fn a_panic_is_logged_with_the_tasks_name_even_if_nobody_awaits_the_task() {
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(log.clone());
        let task = spawn("fragile", async { panic!("the {} broke", "vase") });
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
        let lines = log.0.lock().unwrap().clone();
        assert!(
            matches!(&lines[..], [line] if line.contains("fragile") && line.contains("the vase broke")),
            "{lines:?}"
        );
        let failed: Result<(), _> = task.await;
        assert_eq!(failed, Err(TaskFailed::Panicked { name: "fragile", message: "the vase broke".into() }));
    }

    #[tokio::test]
    async fn a_task_returns_its_value_or_what_it_panicked_with() {
        assert_eq!(spawn("sum", async { 1 + 1 }).await, Ok(2));
        let message = |failed| match failed {
            Err(TaskFailed::Panicked { message, .. }) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(message(spawn("plain", async { panic!("plain text") }).await), "plain text");
        let other: Result<(), _> = spawn("any", async { std::panic::panic_any(7) }).await;
        assert_eq!(message(other), "a panic without a message");
    }

    #[tokio::test]
    async fn an_aborted_task_says_so() {
        let task = spawn("endless", pending::<()>());
        task.abort();
        assert_eq!(task.await, Err(TaskFailed::Aborted { name: "endless" }));
    }

    #[tokio::test]
    async fn a_task_outlives_its_handle_unless_it_is_to_be_aborted_with_it() {
        for abort in [false, true] {
            let (alive, mut fate) = crate::rt::watch::channel(());
            let task = spawn("held", async move {
                pending::<()>().await;
                drop(alive);
            });
            tokio::task::yield_now().await;
            if abort {
                drop(task.abort_on_drop())
            } else {
                task.detach()
            }
            // An aborted task drops `alive` when the runtime next gets to it.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            let ended = futures::FutureExt::now_or_never(fate.changed()).is_some();
            assert_eq!(ended, abort);
        }
    }

    #[tokio::test]
    async fn a_destructor_that_panics_while_its_task_is_aborted_is_reported() {
        struct Trap;
        impl Drop for Trap {
            fn drop(&mut self) {
                panic!("trapped");
            }
        }
        let trap = Trap;
        let task = spawn("trap", async move {
            let _trap = trap;
            pending::<()>().await
        });
        tokio::task::yield_now().await;
        task.abort();
        assert_eq!(task.await, Err(TaskFailed::Panicked { name: "trap", message: "trapped".into() }));
    }
}
