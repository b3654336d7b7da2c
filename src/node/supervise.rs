//! Watches the consensus module, restarts it after a panic of its own, stops the node for good after anything else, and
//! closes it down in order.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::channel::oneshot;

use super::open::observer;
use super::{Node, Phase};
use crate::command::{Command, Response};
use crate::raft::{Parts, Raft};
use crate::rt::{self, Instant};
use crate::types::Revision;

/// How often the core is asked whether it lives; its metrics do not tell.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Restarts of the consensus module in one life of a node. A core that keeps panicking is a bug that a restart only hides.
const RESTARTS_MAX: u32 = 5;
/// How often the leader looks whether history has outgrown its bound.
const COMPACT_INTERVAL: Duration = Duration::from_secs(1);
/// Log bytes behind the last snapshot beyond which one is taken and the log is purged, whatever the number of entries.
const LOG_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Log entries left by such a purge, for followers that are a little behind.
const LOG_KEPT_ENTRIES: u64 = 10_000;

impl Node {
    /// Follows the consensus module for as long as the node lives.
    pub(super) async fn supervise(self: Arc<Self>) {
        let mut restarts = 0;
        loop {
            let raft = self.raft();
            let mut status = raft.status();
            loop {
                self.take_status(status.borrow());
                let changed = rt::timeout(CHECK_INTERVAL, status.changed()).await;
                if !matches!(changed, Ok(Ok(()))) && raft.check().await.is_err() {
                    break;
                }
            }
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            if let Some(error) = self.poison.error() {
                return self.fail(format!("the disk failed: {error}")).await;
            }
            restarts += 1;
            if restarts > RESTARTS_MAX {
                return self.fail("the consensus core keeps panicking".into()).await;
            }
            tracing::error!(name = self.name(), restarts, "the consensus core has stopped by itself; restarting it");
            if let Err(why) = self.restart_raft().await {
                return self.fail(why).await;
            }
        }
    }

    /// Builds the consensus module anew over the engines, which are healthy.
    async fn restart_raft(self: &Arc<Self>) -> Result<(), String> {
        self.raft().shutdown().await;
        // The log's queue may hold appends of the old core: a new one must not find a log end that still moves, or it
        // could give one log id to two payloads.
        let (done, drained) = oneshot::channel();
        self.log.barrier(Box::new(move |result| drop(done.send(result))));
        drained.await.map_err(|_| "the log engine has stopped".to_owned())?.map_err(|error| error.to_string())?;
        let observed = Arc::new(OnceLock::new());
        observed.set(Arc::downgrade(self)).expect("just made");
        let raft = Raft::start(Parts {
            me: self.id(),
            cluster_name: &self.cluster_name,
            timing: &self.settings.timing,
            log: self.log.clone(),
            state: self.state.clone(),
            link: self.link.clone(),
            observer: observer(observed),
        });
        let raft = raft.await.map_err(|failure| failure.to_string())?;
        *self.raft.write().expect("no panic while held") = raft;
        Ok(())
    }

    /// Stops the node for good: it answers nobody any more.
    async fn fail(&self, reason: String) {
        tracing::error!(name = self.name(), reason, "the node stops");
        self.set_phase(Phase::Stopped(reason));
        self.leases.reign(None);
        self.applied.close();
        self.revision.close();
        self.hub.close();
        self.raft().shutdown().await;
    }

    /// Proposes, while this node leads, to forget history beyond its bound; and has the log purged by bytes.
    pub(super) async fn keep_compacting(self: Arc<Self>) {
        loop {
            rt::sleep(COMPACT_INTERVAL).await;
            // Ages the views that readers hold, so that a forgotten one does not keep history for ever.
            self.state.tick(rt::boot_now());
            if self.log.bytes() > LOG_BYTES_MAX {
                self.purge_by_bytes().await;
            }
            if !self.status.borrow().leads {
                continue;
            }
            let view = self.state.view();
            let (revision, floor) = (view.revision.get(), view.floor.get());
            let keep = self.settings.history_revisions;
            // In steps of a tenth, so that an idle bound does not cost an entry per write.
            if revision.saturating_sub(floor) > keep + keep / 10 {
                let command = Command::Compact { floor: Revision::new(revision - keep) };
                match self.housekeep(command, CHECK_INTERVAL).await {
                    Ok(Response::Compacted { floor }) => tracing::debug!(%floor, "history compacted"),
                    other => tracing::debug!(?other, "history not compacted yet"),
                }
            }
        }
    }

    async fn purge_by_bytes(&self) {
        let raft = self.raft();
        if raft.snapshot().await.is_err() {
            return;
        }
        if let Some(durable) = self.state.durable_applied() {
            let _ = raft.purge_log(durable.index.saturating_sub(LOG_KEPT_ENTRIES)).await;
        }
    }

    /// Stops the node in order: no new work, leadership handed over, consensus stopped, both files closed.
    ///
    /// Whoever calls it second waits for nothing and finds the node stopping.
    pub(crate) async fn shutdown(self: &Arc<Self>) {
        if self.stopping.swap(true, Ordering::AcqRel) {
            let mut status = self.status.subscribe();
            let _ = status.wait_for(|status| matches!(status.phase, Phase::Stopped(_))).await;
            return;
        }
        self.hand_over().await;
        self.raft().shutdown().await;
        self.leases.reign(None);
        self.hub.close();
        let (done, closed) = oneshot::channel();
        self.state.close(Box::new(move |result| drop(done.send(result))));
        if !matches!(closed.await, Ok(Ok(()))) {
            tracing::warn!(name = self.name(), "state.redb was not closed cleanly; it will be recovered from the log");
        }
        self.engines.state.join().await;
        let (done, closed) = oneshot::channel();
        self.log.close(Box::new(move |result| drop(done.send(result))));
        if !matches!(closed.await, Ok(Ok(()))) {
            tracing::warn!(name = self.name(), "log.redb was not closed cleanly");
        }
        self.engines.log.join().await;
        self.applied.close();
        self.revision.close();
        // Last: whoever waits for this phase may open the directory again.
        self.set_phase(Phase::Stopped("shut down".into()));
        for task in self.tasks.lock().expect("no panic while held").drain(..) {
            task.abort();
        }
    }

    /// A leader that leaves asks the follower that is furthest to take over, and waits until it has.
    async fn hand_over(&self) {
        let mut status = self.status.subscribe();
        if !status.borrow().leads {
            return;
        }
        let raft = self.raft();
        let deadline = Instant::now() + self.settings.timing.election_max;
        while Instant::now() < deadline {
            if let Some(successor) = raft.best_successor() {
                if raft.transfer_leader(successor).await.is_err() {
                    return;
                }
                let gone = status.wait_for(|status| !status.leads);
                if rt::timeout_at(deadline, gone).await.is_ok() {
                    tracing::info!(name = self.name(), %successor, "leadership handed over");
                }
                return;
            }
            // Alone, or everybody else is away or behind.
            if self.members().len() == 1 {
                return;
            }
            rt::sleep(Duration::from_millis(10)).await;
        }
    }
}
