//! Watches the consensus module, restarts it after a panic of its own, stops the node for good after anything else, and
//! closes it down in order.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::channel::oneshot;

use super::open::observer;
use super::{Node, Phase};
use crate::error::StorageError;
use crate::raft::{Parts, Raft};
use crate::rt::{self, Instant, mutant};

/// How often the core is asked whether it lives; its metrics do not tell.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Restarts of the consensus module in one life of a node. A core that keeps panicking is a bug that a restart only hides.
const RESTARTS_MAX: u32 = 5;

impl Node {
    /// Follows the consensus module for as long as the node lives.
    pub(super) async fn supervise(self: Arc<Self>) {
        let (mut restarts, mut silent, mut stalled) = (0, false, false);
        loop {
            let raft = self.raft();
            let mut status = raft.status();
            loop {
                stalled = self.tell_disk(&raft, stalled);
                self.take_status(status.borrow(), stalled);
                silent = self.tell_quorum(&raft, silent);
                let changed = rt::timeout(CHECK_INTERVAL, status.changed()).await;
                // Until leadership is handed over, a shutdown still needs to see who leads.
                if self.stopping.load(Ordering::Acquire) && self.inbound().is_closed() {
                    return;
                }
                if let Some(why) = self.link.accusation() {
                    self.poison.fail(StorageError::new("directory", "identity", why));
                }
                // The engines may fail where the core does not notice: behind its back, or while nobody writes.
                if self.poison.error().is_some() || !matches!(changed, Ok(Ok(()))) && has_stopped(&raft).await {
                    break;
                }
            }
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            if let Some(error) = self.poison.error() {
                return self.fail(error.to_string()).await;
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

    /// Says so, once each time, when this leader loses its quorum and when it has it again.
    fn tell_quorum(&self, raft: &Raft, silent: bool) -> bool {
        let silence = raft.quorum_silence().filter(|_| self.status.with(|status| status.leads)).unwrap_or_default();
        let lost = silence > self.settings.timing.election_max;
        match (silent, lost) {
            (false, true) => {
                tracing::warn!(name = self.name(), ?silence, "quorum lost: no majority answers this leader")
            }
            (true, false) => tracing::info!(name = self.name(), "quorum regained, or led by another node"),
            _ => {}
        }
        lost
    }

    /// Keeps this node from leading while an operation of its disk does not come to an end, and says so, once each time.
    ///
    /// A leader whose disk hangs still sends heartbeats, so nobody would take its place; but it can vote for nobody, and
    /// comes to a halt with the first thing it has to write down.
    fn tell_disk(&self, raft: &Raft, stalled: bool) -> bool {
        // Only the log's: its steps are nothing but I/O, and both files are on one disk. A step of the state may be long work.
        let waited = self.engines.log.at_step_for().unwrap_or_default();
        let stalls = waited > self.settings.timing.disk_stall() && !mutant("lead_on_a_hung_disk");
        match (stalled, stalls) {
            (false, true) => {
                tracing::error!(name = self.name(), ?waited, "the disk does not answer; not to lead meanwhile")
            }
            (true, false) => tracing::info!(name = self.name(), "the disk answers again"),
            _ => {}
        }
        raft.mute(stalls);
        stalls
    }

    /// Builds the consensus module anew over the engines, which are healthy.
    async fn restart_raft(self: &Arc<Self>) -> Result<(), String> {
        let old = self.raft();
        old.shutdown().await;
        // Nor does its state machine end with it: what was handed to that would be applied behind the new core's back.
        old.retire().await;
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
            retention: self.settings.retention,
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
        self.set_phase(Phase::Stopped(reason.clone()));
        self.hub.close(&reason);
        self.leases.reign(None);
        self.applied.close();
        self.revision.close();
        self.inbound().close();
        self.raft().shutdown().await;
    }

    /// Stops the node in order: no new work, leadership handed over, consensus stopped, both files closed.
    ///
    /// Whoever calls it second waits until the first call has stopped the node.
    pub(crate) async fn shutdown(self: &Arc<Self>) {
        if self.stopping.swap(true, Ordering::AcqRel) {
            // Not for the phase: a node that had stopped by itself would seem to be closed.
            let _ = self.closed.wait(1).await;
            return;
        }
        self.hand_over().await;
        // Before the consensus module: frames that come from now on find nobody, not a module going down.
        self.inbound().close();
        self.raft().shutdown().await;
        self.leases.reign(None);
        self.hub.close("shut down");
        let (done, closed) = oneshot::channel();
        self.state.close(Box::new(move |result| drop(done.send(result))));
        if !matches!(closed.await, Ok(Ok(()))) {
            tracing::warn!(name = self.name(), "state.redb was not closed cleanly; it will be recovered from the log");
        }
        self.engines.state.join().await;
        let (done, closed) = oneshot::channel();
        self.log.close(Box::new(move |result| drop(done.send(result))));
        if !matches!(closed.await, Ok(Ok(()))) {
            tracing::warn!(name = self.name(), "log.wal was not closed cleanly");
        }
        self.engines.log.join().await;
        self.applied.close();
        self.revision.close();
        self.set_phase(Phase::Stopped("shut down".into()));
        // Last: whoever waits for this may open the directory again.
        self.closed.advance(1);
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

/// Whether the consensus module has ended by itself. One that does not answer now may be waiting for the disk.
async fn has_stopped(raft: &Raft) -> bool {
    matches!(rt::timeout(CHECK_INTERVAL, raft.check()).await, Ok(Err(_)))
}

#[cfg(test)]
impl Node {
    /// Takes a snapshot and drops the log behind it, so that whoever is behind needs the snapshot.
    pub(crate) async fn purge_log_now(&self) {
        let applied = self.state.applied().last_applied.expect("something was applied").index;
        self.raft().snapshot().await.expect("the core runs");
        while self.state.durable_applied().is_none_or(|durable| durable.index < applied) {
            rt::sleep(Duration::from_millis(1)).await;
        }
        while self.log.bounds().0.is_none_or(|purged| purged.index < applied) {
            self.raft().purge_log(applied).await.expect("the core runs");
            rt::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Has the consensus core panic, as a bug in it would.
    pub(crate) async fn panic_core(&self) {
        self.raft().panic_core().await;
    }

    /// Has both engines take the disk for failed, as an error that they met by themselves would.
    pub(crate) fn fail_disk(&self) {
        self.poison.fail(crate::error::StorageError::new("state.redb", "checkpoint", "provoked"));
    }

    /// Puts bytes into the log that no release understands.
    pub(crate) async fn propose_garbage(&self) {
        self.raft().propose(vec![bytes::Bytes::from_static(b"garbage")], |_, _| {}).await;
    }

    /// The first index that the log still holds.
    pub(crate) fn log_starts_at(&self) -> u64 {
        self.log.bounds().0.map_or(0, |purged| purged.index + 1)
    }

    pub(crate) fn log_ends_at(&self) -> u64 {
        self.log.bounds().1.map_or(0, |last| last.index)
    }

    /// Reminds this node of what it would have acknowledged to `leader` in the present term; whether it says it has that.
    pub(crate) async fn remind(&self, leader: crate::types::NodeId, index: u64) -> Option<bool> {
        use crate::format::message::{Reply, Request};
        use crate::types::{LeaderId, Vote};
        let vote = Vote { leader: LeaderId { term: self.status().term, node: leader }, committed: true };
        match self.raft().serve(leader, Request::Reminder { vote, index }).await {
            Some(Reply::Reminded { held }) => Some(held),
            _ => None,
        }
    }

    pub(crate) async fn transfer_to(&self, to: crate::types::NodeId) {
        let _ = self.raft().transfer_leader(to).await;
    }
}
