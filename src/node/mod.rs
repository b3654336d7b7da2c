//! The running member: what a data directory, a transport and the consensus module make together.
//!
//! A [`Node`] owns the tasks of one member. Everything above it (the public handle, the recipes) asks it to carry out
//! commands and to hand out views of the applied state; everything below it is driven from here.

mod agreement;
mod batch;
mod checkup;
mod client;
mod compaction;
mod expiry;
mod formation;
mod funnel;
mod gather;
mod inbound;
mod open;
mod propose;
mod read;
mod room;
mod supervise;
mod write;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use self::checkup::Disks;
use self::client::Clients;
use self::expiry::Leases;
use self::funnel::Funnel;
pub(crate) use self::open::{Opening, Place};
use self::read::Rounds;
use crate::config::Settings;
use crate::error::{Error, FormationError, StartError};
use crate::raft::{Raft, RaftStatus};
use crate::rt::watermark::Watermark;
use crate::rt::{self, NodeRuntime};
use crate::storage::identity::Identity;
use crate::storage::log::Log;
use crate::storage::poison::Poison;
use crate::storage::state::{Applied, StateStore};
use crate::transport::Inbound;
use crate::transport::link::Link;
use crate::types::{ClusterId, LeaderId, Member, NodeId, NodeInfo, Peer, Revision, StoredMembership};
use crate::watch_hub::WatchHub;

/// How the first cluster of an empty directory comes about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Formation {
    /// A cluster of this one node.
    Single,
    /// A cluster of exactly these nodes, this one included. Every node is given the same names; each may be started first,
    /// and again, at any time. The directory's contents win over this list once the cluster exists.
    Peers(Vec<Peer>),
}

/// Where a node is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waiting for the peers to agree on a cluster.
    Forming,
    /// Member of a cluster.
    Running,
    /// The peers' arguments or directories do not go together: this node will not serve.
    Refused(FormationError),
    /// Shut down, or stopped by itself.
    Stopped(String),
}

/// What is known about the node and its group now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeStatus {
    pub(crate) phase: Phase,
    pub(crate) term: u64,
    pub(crate) leader: Option<LeaderId>,
    /// Whether this node leads; not while its disk hangs, whatever the consensus module says.
    pub(crate) leads: bool,
    /// An operation of the disk is under way for longer than [`Timing::disk_stall`](crate::config::Timing::disk_stall).
    pub(crate) disk_stalled: bool,
    /// Shared: this is copied on every operation, and changes once in a blue moon.
    pub(crate) membership: Arc<StoredMembership>,
}

pub(crate) struct Node {
    identity: Identity,
    cluster_name: String,
    settings: Settings,
    /// This start's peers by name, this node included.
    peers: Vec<Peer>,
    runtime: NodeRuntime,
    link: Link,
    log: Log,
    state: StateStore,
    poison: Poison,
    engines: open::Engines,
    raft: RwLock<Raft>,
    status: rt::watch::Sender<NodeStatus>,
    /// Index of the newest applied entry whose effects every view shows.
    applied: Watermark,
    /// Newest revision that every view shows.
    revision: Watermark,
    leases: Leases,
    hub: WatchHub,
    clients: Clients,
    rounds: Rounds,
    disks: Disks,
    funnel: Funnel,
    /// What formation has settled so far; changed by one task at a time.
    forming: tokio::sync::Mutex<formation::Settled>,
    tasks: Mutex<Vec<rt::Task<()>>>,
    stopping: AtomicBool,
    /// Reaches 1 when the files are closed.
    closed: Watermark,
    /// Set as soon as the node is made; closed when it has stopped.
    inbound: OnceLock<Inbound>,
}

impl Node {
    pub(crate) fn id(&self) -> NodeId {
        self.identity.node
    }

    pub(crate) fn name(&self) -> &str {
        &self.identity.name
    }

    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        self.link.cluster()
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn status(&self) -> NodeStatus {
        self.status.borrow()
    }

    pub(crate) fn watch_status(&self) -> rt::watch::Receiver<NodeStatus> {
        self.status.subscribe()
    }

    pub(crate) fn hub(&self) -> &WatchHub {
        &self.hub
    }

    /// The state as this node has applied it, possibly behind the cluster.
    pub(crate) fn state(&self) -> &StateStore {
        &self.state
    }

    #[cfg(feature = "internals")]
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Waits until this node has applied `revision`; an error if it stops first.
    pub(crate) async fn wait_revision(&self, revision: Revision) -> Result<(), Error> {
        let stopped = |_| Error::Stopped { reason: self.stop_reason() };
        self.revision.wait(revision.get()).await.map_err(stopped)
    }

    /// How long ago this node last knew that it was up to date; `None` if it has not known since its consensus module started,
    /// or has stopped.
    pub(crate) fn staleness(&self) -> Option<std::time::Duration> {
        self.check_open().ok()?;
        self.raft().staleness()
    }

    /// What the host's transport hands frames to.
    pub(crate) fn inbound(&self) -> Inbound {
        self.inbound.get().expect("set when the node is made").clone()
    }

    /// Runs a task on the node's own runtime.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        name: &'static str,
        task: impl Future<Output = T> + Send + 'static,
    ) -> rt::Task<T> {
        self.runtime.spawn(name, task)
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        let membership = &self.status.borrow().membership.membership;
        let member = |(id, info): (&NodeId, &NodeInfo)| Member {
            id: *id,
            name: info.name.clone(),
            address: self.link.peer(info).address,
            voter: membership.is_voter(*id),
        };
        membership.nodes.iter().map(member).collect()
    }

    /// Where a member is to be reached.
    fn peer(&self, node: NodeId) -> Option<Peer> {
        let membership = self.status.borrow().membership;
        membership.membership.nodes.get(&node).map(|info| self.link.peer(info))
    }

    fn raft(&self) -> Raft {
        self.raft.read().expect("no panic while held").clone()
    }

    /// An error if this node does not serve (any more).
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        match self.status.borrow().phase {
            Phase::Refused(refused) => Err(Error::Formation(refused)),
            Phase::Stopped(reason) => Err(Error::Stopped { reason }),
            _ if self.stopping.load(Ordering::Acquire) => Err(Error::Stopped { reason: "shutting down".into() }),
            Phase::Forming | Phase::Running => Ok(()),
        }
    }

    fn accepts(&self) -> bool {
        self.check_open().is_ok()
    }

    fn stop_reason(&self) -> String {
        match self.status.borrow().phase {
            Phase::Stopped(reason) => reason,
            Phase::Refused(refused) => refused.to_string(),
            Phase::Forming | Phase::Running => "shutting down".into(),
        }
    }

    /// What happens with each applied batch, after it is committed and published and before anyone is answered.
    ///
    /// The changes are taken out of the batch: the hub keeps them, and nobody else needs them.
    fn observe(&self, batch: &mut [Applied]) {
        match batch.last().map(|last| last.log_id.index) {
            Some(last) => {
                self.leases.applied(batch.iter().flat_map(|applied| applied.effects.leases.iter().copied()));
                // Watchers before waiting readers and callers: whoever sees an answer may ask a local watcher for its event.
                self.hub.publish(batch.iter_mut().map(|applied| std::mem::take(&mut applied.effects.changes)));
                self.revision.advance(self.state.view().revision.get());
                self.applied.advance(last);
            }
            // A snapshot was installed: there are no single changes to follow.
            None => {
                let view = self.state.view();
                // An error here has already stopped the node: the view raises the alarm itself.
                self.leases.load(view.leases().unwrap_or_default());
                self.hub.jump(view.revision);
                self.revision.advance(view.revision.get());
                if let Some(applied) = self.state.applied().last_applied {
                    self.applied.advance(applied.index);
                }
            }
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.status.send_if_modified(|status| {
            // A node that has stopped or was refused does not come back.
            let last =
                matches!(status.phase, Phase::Stopped(_) | Phase::Refused(_)) && !matches!(phase, Phase::Stopped(_));
            let changed = status.phase != phase && !last;
            if changed {
                if matches!(phase, Phase::Stopped(_)) {
                    (status.leads, status.leader) = (false, None);
                }
                status.phase = phase;
            }
            changed
        });
    }

    fn take_status(&self, mut raft: RaftStatus, disk_stalled: bool) {
        let before = self.status.borrow();
        if matches!(before.phase, Phase::Stopped(_)) {
            return;
        }
        if disk_stalled && raft.leads {
            (raft.leads, raft.leader) = (false, None);
        }
        if before.leads != raft.leads || before.leader != raft.leader {
            match raft.leader {
                Some(leader) => tracing::info!(name = self.name(), %leader, leads = raft.leads, "leader"),
                None => tracing::info!(name = self.name(), term = raft.term, "no leader"),
            }
        }
        // Before anyone can see this node as the leader: a renewal must find the new reign's deadlines.
        self.leases.reign(raft.leader.filter(|_| raft.leads));
        self.status.send_if_modified(|status| {
            let next = NodeStatus {
                phase: status.phase.clone(),
                term: raft.term,
                leader: raft.leader,
                leads: raft.leads,
                disk_stalled,
                membership: Arc::new(raft.membership.clone()),
            };
            let changed = *status != next;
            *status = next;
            changed
        });
    }

    fn keep(&self, task: rt::Task<()>) {
        self.tasks.lock().expect("no panic while held").push(task);
    }
}

/// Opens a directory and starts its node.
pub(crate) async fn start(opening: Opening) -> Result<Arc<Node>, StartError> {
    open::start(opening).await
}
