//! The runtime that one node runs on.
//!
//! By default a node has a thread and a tokio runtime of its own, so that a host that blocks its own runtime cannot starve
//! the heartbeats, and so that what arrives together is handled together. It may share its caller's runtime instead: tests
//! and the simulation need that.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};

use tokio::runtime::{Builder, Handle};

use super::scope::{self, Scope};
use super::task::{Task, spawn_on};
use super::watch;

/// Which runtime a node runs on.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum RuntimeKind {
    /// One of its own, on a thread of its own.
    Dedicated,
    /// The one it is started from.
    Current,
}

/// A handle to the node's runtime. Dropping the last clone of a dedicated one ends its thread, in the background.
#[derive(Clone, Debug)]
pub(crate) struct NodeRuntime {
    handle: Handle,
    /// The simulated process that this was started in.
    scope: Scope,
    thread: Option<Arc<Thread>>,
}

/// The thread of a dedicated runtime.
///
/// * The thread holds the receiving end of `stop` and the sending end of `ended`; neither it nor the runtime holds this.
#[derive(Debug)]
struct Thread {
    id: ThreadId,
    /// Asks the thread to end; so does dropping it.
    stop: watch::Sender<bool>,
    /// Closed when the runtime, and every task on it, has been dropped.
    ended: watch::Receiver<()>,
    join: Mutex<Option<JoinHandle<()>>>,
}

impl NodeRuntime {
    /// Starts a runtime for the node called `name`, which also names its thread (the system may cut it at 15 bytes).
    /// Nothing in a simulation can wait for a thread: there, a node always shares the runtime that it is started from.
    ///
    /// # Errors
    /// If the system gives no thread, if `name` holds a zero byte, or if `Current` is asked for outside a runtime.
    pub(crate) fn start(name: &str, kind: RuntimeKind) -> io::Result<Self> {
        match kind {
            RuntimeKind::Current => Self::current(),
            RuntimeKind::Dedicated if scope::simulated() => Self::current(),
            RuntimeKind::Dedicated => Self::dedicated(name),
        }
    }

    fn current() -> io::Result<Self> {
        let handle = Handle::try_current().map_err(io::Error::other)?;
        Ok(NodeRuntime { handle, scope: Scope::current(), thread: None })
    }

    fn dedicated(name: &str) -> io::Result<Self> {
        if name.contains('\0') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} holds a zero byte")));
        }
        // All drivers that tokio was built with: the host's transport is polled here, and may want its sockets.
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, mut stopped) = watch::channel(false);
        let (ending, ended) = watch::channel(());
        let join = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // An error says that the last handle is gone, which is as good a reason to end.
            let _ = runtime.block_on(stopped.wait_for(|stop| *stop));
            // Drops every task, but does not wait for blocking calls of the host's transport: a name lookup may hang for
            // half a minute, and nothing of ours runs in one.
            runtime.shutdown_background();
            drop(ending);
        })?;
        let thread = Thread { id: join.thread().id(), stop, ended, join: Mutex::new(Some(join)) };
        Ok(NodeRuntime { handle, scope: Scope::current(), thread: Some(Arc::new(thread)) })
    }

    /// Runs `future` on this runtime. Callable from any thread; if the runtime has ended, the task is aborted at once. In a
    /// simulation it belongs to the process that this runtime was started in, not to the caller's.
    pub(crate) fn spawn<F>(&self, name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        spawn_on(&self.handle, &self.scope, name, future)
    }

    /// Asks a dedicated runtime to end, without waiting for it. A shared one is its owner's to end.
    pub(crate) fn stop(&self) {
        if let Some(thread) = &self.thread {
            thread.stop.send(true);
        }
    }

    /// Ends a dedicated runtime: drops its tasks where they wait, and returns when its thread is gone.
    ///
    /// Called on that thread itself it only asks, since waiting for itself would take for ever. A shared runtime, and what
    /// runs on it, is left alone: its tasks end because whoever spawned them ends them.
    ///
    /// # Cancel safety
    /// Dropping it leaves the runtime ending in the background.
    pub(crate) async fn shutdown(&self) {
        self.stop();
        let Some(thread) = &self.thread else { return };
        if thread::current().id() == thread.id {
            return;
        }
        let mut ended = thread.ended.clone();
        while ended.changed().await.is_ok() {}
        let join = thread.join.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(join) = join {
            // The thread has nothing left to do but to return, so that this does not block. It cannot have panicked: the
            // tasks' panics are caught, and were one to get through, it was reported when it happened.
            let _ = join.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use super::super::{task::TaskFailed, timeout};
    use super::*;

    /// Far beyond what any of this takes: what has not happened by then has hung.
    const HUNG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_dedicated_runtime_runs_on_a_thread_named_after_its_node_whoever_spawns() {
        let runtime = NodeRuntime::start("node-7", RuntimeKind::Dedicated).unwrap();
        let here = runtime.spawn("name", async { thread::current().name().map(str::to_owned) }).await;
        let clone = runtime.clone();
        let elsewhere = thread::spawn(move || clone.spawn("id", async { thread::current().id() })).join().unwrap();
        assert_eq!(here, Ok(Some("node-7".to_owned())));
        assert_eq!(elsewhere.await, Ok(runtime.thread.as_ref().unwrap().id));
        assert_ne!(thread::current().id(), runtime.thread.as_ref().unwrap().id);
        runtime.shutdown().await;
    }

    #[tokio::test]
    async fn timers_run_on_a_dedicated_runtime_while_its_caller_is_blocked() {
        let runtime = NodeRuntime::start("timers", RuntimeKind::Dedicated).unwrap();
        let (done, told) = std::sync::mpsc::channel();
        let task = runtime.spawn("timer", async move {
            super::super::sleep(Duration::from_millis(1)).await;
            done.send(()).unwrap();
        });
        // Blocks the test's only runtime thread.
        assert_eq!(told.recv_timeout(HUNG), Ok(()));
        assert_eq!(task.await, Ok(()));
    }

    #[tokio::test]
    async fn shutdown_returns_when_every_task_has_been_dropped_and_the_thread_is_gone() {
        let runtime = NodeRuntime::start("ending", RuntimeKind::Dedicated).unwrap();
        let held = Arc::new(());
        let inside = held.clone();
        let task = runtime.spawn("endless", async move {
            let _inside = inside;
            pending::<()>().await
        });
        assert_eq!(Arc::strong_count(&held), 2);
        timeout(HUNG, runtime.shutdown()).await.expect("shutdown hung");
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(task.await, Err(TaskFailed::Aborted { name: "endless" }));
        assert_eq!(runtime.spawn("late", async {}).await, Err(TaskFailed::Aborted { name: "late" }));
        assert!(runtime.thread.as_ref().unwrap().join.lock().unwrap().is_none());
        timeout(HUNG, runtime.shutdown()).await.expect("a second shutdown hung");
    }

    #[tokio::test]
    async fn a_runtime_is_not_said_to_have_ended_before_its_last_task_is_dropped() {
        /// Looks, when it is dropped, whether the end has been announced.
        struct Last(watch::Receiver<()>, std::sync::mpsc::Sender<bool>);
        impl Drop for Last {
            fn drop(&mut self) {
                let _ = self.1.send(self.0.is_closed());
            }
        }
        let runtime = NodeRuntime::start("orderly", RuntimeKind::Dedicated).unwrap();
        let (seen, told) = std::sync::mpsc::channel();
        let last = Last(runtime.thread.as_ref().unwrap().ended.clone(), seen);
        runtime
            .spawn("last", async move {
                let _last = last;
                pending::<()>().await
            })
            .detach();
        timeout(HUNG, runtime.shutdown()).await.expect("shutdown hung");
        assert_eq!(told.recv(), Ok(false));
    }

    #[tokio::test]
    async fn shutdown_from_the_runtimes_own_thread_asks_and_does_not_wait_for_itself() {
        let runtime = NodeRuntime::start("leaving", RuntimeKind::Dedicated).unwrap();
        let inside = runtime.clone();
        let returned = runtime.spawn("last", async move {
            inside.shutdown().await;
            "returned"
        });
        // It is not aborted: a task ends where it waits, and this one does not wait after that.
        assert_eq!(timeout(HUNG, returned).await, Ok(Ok("returned")));
        let (one, two) = (runtime.clone(), runtime.clone());
        let both = async { futures::join!(one.shutdown(), two.shutdown()) };
        timeout(HUNG, both).await.expect("shutdown hung");
    }

    #[tokio::test]
    async fn dropping_the_last_handle_ends_the_thread_from_outside_and_from_inside() {
        for inside in [false, true] {
            let runtime = NodeRuntime::start("dropped", RuntimeKind::Dedicated).unwrap();
            let mut ended = runtime.thread.as_ref().unwrap().ended.clone();
            let clone = runtime.clone();
            drop(runtime);
            assert!(!ended.is_closed());
            if inside {
                let (spawner, scope) = (clone.handle.clone(), Scope::current());
                let _ = spawn_on(&spawner, &scope, "holder", async move { drop(clone) }).await;
            } else {
                drop(clone);
            }
            let end = timeout(HUNG, ended.changed()).await;
            assert_eq!(end, Ok(Err(watch::Closed)), "inside: {inside}");
        }
    }

    #[tokio::test]
    async fn a_shared_runtime_is_its_owners_to_end() {
        let runtime = NodeRuntime::start("guest", RuntimeKind::Current).unwrap();
        let (go, mut gone) = watch::channel(false);
        let task = runtime.spawn("guest task", async move { gone.wait_for(|go| *go).await });
        runtime.shutdown().await;
        drop(runtime);
        go.send(true);
        assert_eq!(task.await, Ok(Ok(true)));
    }

    #[test]
    fn a_runtime_that_cannot_be_is_an_error() {
        let none = NodeRuntime::start("nowhere", RuntimeKind::Current);
        assert!(none.is_err(), "{none:?}");
        let zero = NodeRuntime::start("a\0b", RuntimeKind::Dedicated);
        assert!(matches!(&zero, Err(e) if e.kind() == io::ErrorKind::InvalidInput), "{zero:?}");
    }
}
