//! The handle: what a service holds on to.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::builder::Builder;
use super::turns::{Turn, Turns};
use crate::command::{Command, Refusal, Resolution, Response};
use crate::config::Timing;
use crate::error::{Error, Obstacle, StartError};
use crate::node::{Formation, Node, Phase};
use crate::rt;
use crate::transport::{Inbound, Lane, MemoryNetwork, TransportError};
use crate::types::{ClusterId, LeaderId, Member, NodeId, Peer, Revision, Ticket};

/// A handle on this process's member of the cluster.
///
/// Cheap to clone; every method takes `&self` and works on every node: writes find the leader, reads are linearizable unless
/// they say otherwise. Dropping the last handle stops the node in the background; only [`Cluster::shutdown`] promises that
/// its files are closed.
///
/// # Examples
/// ```
/// # futures::executor::block_on(async {
/// use quorate::Cluster;
///
/// let nodes = Cluster::local(3).await?;
/// nodes[0].set("greeting", &"hello".to_string()).await?;
/// let greeting = nodes[2].get::<String>("greeting").await?.expect("just set");
/// assert_eq!(*greeting, "hello");
/// # for node in nodes { node.shutdown().await?; }
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Cluster {
    handle: Arc<Handle>,
}

/// Ends with the last clone of the public handle; the node's own tasks hold on to the node, not to this.
struct Handle {
    node: Arc<Node>,
    turns: Turns,
}

/// A handle that does not keep its node running.
#[cfg(any(test, feature = "sim"))]
#[derive(Clone, Default)]
pub(crate) struct WeakCluster {
    handle: std::sync::Weak<Handle>,
}

#[cfg(any(test, feature = "sim"))]
impl WeakCluster {
    /// The handle, while there is another.
    pub(crate) fn upgrade(&self) -> Option<Cluster> {
        self.handle.upgrade().map(|handle| Cluster { handle })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let node = self.node.clone();
        self.node.spawn("stop", async move { node.shutdown().await }).detach();
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("name", &self.node().name()).field("id", &self.node().id()).finish()
    }
}

/// How long a shutdown waits for the disk, however short the operations' timeout is.
const SHUTDOWN_WAIT_MIN: Duration = Duration::from_secs(10);

/// What is known about this node and its cluster at one moment. See [`Cluster::status`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// This node's identity.
    pub id: NodeId,
    /// The name it was started with.
    pub name: String,
    /// The cluster it belongs to; `None` until one is formed.
    pub cluster: Option<ClusterId>,
    /// Where it is in its life.
    pub health: Health,
    /// The leader's id, if one is known.
    pub leader: Option<NodeId>,
    /// Whether this node is that leader.
    pub is_leader: bool,
    /// The consensus term.
    pub term: u64,
    /// The newest revision applied here.
    pub revision: Revision,
    /// The oldest revision whose history is kept.
    pub oldest: Revision,
    /// Bytes of keys and values, history included.
    pub used_bytes: u64,
    /// Bytes free on this node's disk, as of the last second; `None` where nobody knows, as in memory.
    pub free_bytes: Option<u64>,
    /// A digest of the replicated state: equal on all nodes that have applied the same, unless one of them is damaged. Not
    /// everything that is applied makes a revision (leases do not), so nodes of one revision may differ for a moment. Members
    /// compare theirs behind every 1,024th entry of the log; one that differs from a majority stops, and without one all of
    /// them say so, in an event, once a minute.
    pub state_hash: u64,
}

/// Where a node is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Waiting for the other nodes of the formation list.
    Forming,
    /// A member that knows no leader now: no quorum, or an election is under way.
    NoLeader,
    /// A member with a leader.
    Serving,
    /// A member whose disk does not answer: one operation is under way for five times [`Timing::election_max`], 5 s at the
    /// least. It leads nobody and applies nothing until the disk answers; then it goes on by itself. Look at the disk.
    DiskStalled,
    /// Stopped, or refused by its peers: it does not serve and will not. The text says why.
    Stopped(String),
}

impl Cluster {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Cluster { handle: Arc::new(Handle { node, turns: Turns::default() }) }
    }

    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn downgrade(&self) -> WeakCluster {
        WeakCluster { handle: Arc::downgrade(&self.handle) }
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.handle.node
    }

    /// Waits for this process's turn at changing `key`, at most `timeout`.
    pub(crate) async fn turn(&self, key: Bytes, timeout: Duration) -> Result<Turn, Error> {
        // Whatever executor this runs on: only waiting needs the node's clock.
        if let Some(turn) = self.handle.turns.take(key.clone()).now_or_never() {
            return Ok(turn);
        }
        let turns = self.handle.turns.clone();
        let waiting = self.on_node(move |_| async move {
            let waited = rt::timeout(timeout, turns.take(key)).await;
            waited.map_err(|_| Error::NotApplied { why: Obstacle::Timeout, waited: timeout })
        });
        waiting.await
    }

    /// Describes a node called `name`, to be started by awaiting the builder. The name is what operators and formation lists
    /// know the node by: unique within the cluster, 1 to 256 bytes.
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// use quorate::Cluster;
    ///
    /// let cluster = Cluster::builder("node-1").storage(dir.path().join("data")).await?;
    /// cluster.ready().await?;
    /// assert_eq!(cluster.members()[0].name, "node-1");
    /// cluster.shutdown().await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    /// Starts `nodes` nodes in this process, in memory, connected, and waits until they have a leader. For examples and
    /// tests; 1 to 9 nodes, named `node-1`, `node-2` and so on.
    ///
    /// # Errors
    /// [`StartError::Config`] for another number of nodes.
    pub async fn local(nodes: usize) -> Result<Vec<Cluster>, StartError> {
        if !(1..=9).contains(&nodes) {
            let rule = "it must be from 1 to 9".into();
            return Err(StartError::Config { setting: "nodes", value: nodes.to_string(), rule });
        }
        let network = MemoryNetwork::new();
        let peers: Vec<Peer> = (1..=nodes).map(|n| Peer::new(format!("node-{n}"), "")).collect();
        let mut clusters = Vec::new();
        for peer in &peers {
            let builder = Cluster::builder(peer.name.clone())
                .in_memory()
                .transport(network.transport(&peer.name))
                .formation(Formation::Peers(peers.clone()))
                .timing(Timing::fast());
            clusters.push(builder.await?);
        }
        for cluster in &clusters {
            // Nothing can keep three fresh nodes in one process from forming, except a machine that does not run them.
            let _ = cluster.ready().await;
        }
        Ok(clusters)
    }

    /// Serves a frame that came from a peer and returns the frame to answer it with: for a host that runs the server itself.
    /// The same as [`Inbound::receive`], with its errors.
    ///
    /// # Errors
    /// [`TransportError::Closed`] after the node was shut down, [`TransportError::TooLarge`], and whatever the node answers with.
    /// # Cancel safety
    /// Dropping the future does not undo the frame.
    pub async fn receive(&self, lane: Lane, frame: Bytes) -> Result<Bytes, TransportError> {
        self.inbound().receive(lane, frame).await
    }

    /// Hands out the other half of the transport: what the host's server passes frames to. Also given to
    /// [`Transport::start`](crate::transport::Transport::start).
    pub fn inbound(&self) -> Inbound {
        self.node().inbound()
    }

    /// Waits until this node is a member of a cluster that has a leader; at most the default timeout.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when that does not happen in time: the other nodes are not there yet; wait again.
    /// [`Error::Formation`] when it never will: the nodes' arguments or directories do not go together.
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn ready(&self) -> Result<(), Error> {
        let timeout = self.node().settings().timeout;
        self.on_node(move |node| async move {
            let started = rt::Instant::now();
            let mut status = node.watch_status();
            let settled = status.wait_for(|status| {
                let over = matches!(status.phase, Phase::Refused(_) | Phase::Stopped(_));
                over || (status.phase == Phase::Running && status.leader.is_some())
            });
            match rt::timeout(timeout, settled).await {
                Ok(_) => node.check_open(),
                Err(_) => Err(Error::NotApplied { why: Obstacle::NoLeader, waited: started.elapsed() }),
            }
        })
        .await
    }

    /// What this node knows at this moment. Reads nothing from disk or network.
    pub fn status(&self) -> Status {
        let node = self.node();
        let (status, view) = (node.status(), node.state().view());
        let counters = view.counters;
        Status {
            id: node.id(),
            name: node.name().into(),
            cluster: node.cluster(),
            health: match status.phase {
                Phase::Stopped(reason) => Health::Stopped(reason),
                Phase::Refused(refused) => Health::Stopped(refused.to_string()),
                Phase::Forming => Health::Forming,
                Phase::Running if status.disk_stalled => Health::DiskStalled,
                Phase::Running if status.leader.is_none() => Health::NoLeader,
                Phase::Running => Health::Serving,
            },
            leader: status.leader.map(|leader: LeaderId| leader.node),
            is_leader: status.leads,
            term: status.term,
            revision: counters.revision,
            oldest: counters.floor,
            used_bytes: counters.bytes,
            free_bytes: node.state().free_bytes(),
            state_hash: counters.hash,
        }
    }

    /// The leader, if one is known at this moment.
    pub fn leader(&self) -> Option<Member> {
        let leader = self.node().status().leader?;
        self.members().into_iter().find(|member| member.id == leader.node)
    }

    /// The members of the cluster as this node knows them; empty until one is formed.
    pub fn members(&self) -> Vec<Member> {
        self.node().members()
    }

    /// Says what became of a write whose outcome was not known. If it was not decided, makes sure that it never will be.
    ///
    /// Works on any node, and in another process than the one that wrote, while the writer's client record lasts: as long as
    /// that process renews it, and five minutes more.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when the cluster did not answer: ask again.
    /// # Cancel safety
    /// The question may be asked again.
    pub async fn resolve(&self, ticket: &Ticket) -> Result<Outcome, Error> {
        let Ticket { client, seq } = *ticket;
        let timeout = self.node().settings().timeout;
        let asked =
            self.on_node(move |node| async move { node.housekeep(Command::Resolve { client, seq }, timeout).await });
        match asked.await? {
            Response::Resolved(Resolution::Applied(revision)) => {
                rt::mark(rt::Mark::UnknownApplied);
                Ok(Outcome::Applied(revision))
            }
            Response::Resolved(Resolution::NoEffect) => Ok(Outcome::NoEffect),
            Response::Resolved(Resolution::Never) => {
                rt::mark(rt::Mark::UnknownNever);
                Ok(Outcome::Never)
            }
            Response::Resolved(Resolution::Unknowable) | Response::Refused(Refusal::UnknownClient) => {
                Ok(Outcome::Unknowable)
            }
            other => unreachable!("a resolve is answered with {other:?}"),
        }
    }

    /// Stops this node: hands leadership over, finishes what is under way, closes the files.
    ///
    /// When it returns the directory can be opened again. Other handles on the node get [`Error::Stopped`]. It waits for
    /// what the disk is at, at most [`Builder::timeout`](crate::Builder::timeout) (10 s at the least) and
    /// [`Timing::election_max`](crate::Timing::election_max).
    ///
    /// # Errors
    /// [`Error::ShuttingDown`] if that is over: the files are not closed yet. [`Error::Stopped`] if closing them panicked.
    /// # Cancel safety
    /// The shutdown goes on in the background.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.on_node(|node| async move {
            let settings = node.settings();
            // Leadership may take that long to be handed over.
            let waited = settings.timing.election_max + settings.timeout.max(SHUTDOWN_WAIT_MIN);
            let stopping = rt::spawn("shutdown", async move { node.shutdown().await });
            match rt::timeout(waited, stopping).await {
                Ok(stopped) => stopped.map_err(|failed| Error::Stopped { reason: failed.to_string() }),
                Err(_) => Err(Error::ShuttingDown { waited }),
            }
        })
        .await
    }

    /// Runs one operation as a task of the node's runtime, so that it works from any executor, keeps its deadline when the
    /// host is busy, and is never left half done by a dropped future.
    pub(crate) fn on_node<T, F>(&self, operation: impl FnOnce(Arc<Node>) -> F) -> BoxFuture<'static, Result<T, Error>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let node = self.node().clone();
        let task = self.node().spawn("operation", operation(node));
        Box::pin(async move {
            let stopped = |_| Error::Stopped { reason: "shut down with this operation under way".into() };
            task.await.unwrap_or_else(|failed| Err(stopped(failed)))
        })
    }
}

/// What became of a write. See [`Cluster::resolve`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It took effect at this revision.
    Applied(Revision),
    /// It was decided and changed nothing: its condition did not hold, or there was nothing to delete.
    NoEffect,
    /// It was not decided and never will be.
    Never,
    /// The record that would know is gone: the writing process was silent for too long. Or, for a ticket that its process
    /// has not come to yet by thousands of writes: not known so far.
    Unknowable,
}
