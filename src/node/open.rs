//! From arguments to a running node.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};

use futures::channel::oneshot;
use tracing::Instrument;

use super::checkup::Disks;
use super::client::Clients;
use super::expiry::Leases;
use super::formation::Settled;
use super::funnel::{Funnel, Submissions, run_funnel};
use super::read::Rounds;
use super::{Formation, Node, NodeStatus, Phase, inbound};
use crate::config::{Runtime, Settings};
use crate::error::StartError;
use crate::raft::{Observer, Parts, Raft};
use crate::rt::watermark::Watermark;
use crate::rt::worker::{Drive, Driver};
use crate::rt::{self, NodeRuntime, RuntimeKind};
use crate::storage::disk::{DirDisk, Disk, MemDisk};
use crate::storage::state_engine;
use crate::storage::{self, Opened};
use crate::transport::Transport;
use crate::transport::link::Link;
use crate::types::{Incarnation, NodeId, Peer};
use crate::watch_hub::WatchHub;

/// Longest name of a node or a cluster, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Most nodes in a formation list.
const PEERS_MAX: usize = 64;

/// Where a node keeps its files.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Directory(PathBuf),
    /// Nothing survives the process. For examples and tests.
    Memory,
    /// A disk made elsewhere: tests reopen it, or make it fail.
    #[cfg(any(test, feature = "sim", feature = "internals"))]
    Disk(Arc<dyn Disk>),
}

/// Everything a node is started with.
pub(crate) struct Opening {
    pub(crate) cluster_name: String,
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) formation: Formation,
    pub(crate) settings: Settings,
}

/// The two engines' drivers, joined at shutdown.
pub(super) struct Engines {
    pub(super) log: Driver,
    pub(super) state: Driver,
}

pub(super) async fn start(opening: Opening) -> Result<Arc<Node>, StartError> {
    let peers = check(&opening)?;
    let kind = match opening.settings.runtime {
        Runtime::Dedicated => RuntimeKind::Dedicated,
        Runtime::Current => RuntimeKind::Current,
    };
    let label = format!("quorate-{}", opening.name);
    let runtime = NodeRuntime::start(&label, kind)
        .map_err(|source| StartError::Io { path: place_path(&opening.place), source })?;
    // On the node's own runtime: the consensus module and the drivers start their tasks where they are made.
    let (done, started) = oneshot::channel();
    let on = runtime.clone();
    let span = tracing::info_span!("open", name = opening.name);
    let opening = async move {
        let _ = done.send(open(opening, peers, on).await.map(|node| Unclaimed(Some(node))));
    };
    let task = runtime.spawn("open", opening.instrument(span));
    let opened = started.await;
    drop(task);
    match opened {
        Ok(opened) => opened.map(Unclaimed::claim),
        Err(_) => panic!("opening a node panicked; the panic has been logged"),
    }
}

/// A node on its way to whoever wanted it. If nobody takes it, it is stopped: its tasks would keep it alive, and its
/// directory locked, for ever.
struct Unclaimed(Option<Arc<Node>>);

impl Unclaimed {
    fn claim(mut self) -> Arc<Node> {
        self.0.take().expect("claimed once, by consuming it")
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(node) = self.0.take() {
            let stopping = node.clone();
            node.spawn("unclaimed", async move { stopping.shutdown().await }).detach();
        }
    }
}

/// Everything that can be refused before a file is touched. Returns all peers, this node included.
fn check(opening: &Opening) -> Result<Vec<Peer>, StartError> {
    opening.settings.check()?;
    let wrong = |setting, value: &str, rule: String| StartError::Config { setting, value: format!("{value:?}"), rule };
    for (setting, name) in [("name", &opening.name), ("cluster", &opening.cluster_name)] {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(wrong(setting, name, format!("it must have 1 to {NAME_BYTES_MAX} bytes")));
        }
    }
    let Formation::Peers(peers) = &opening.formation else {
        return Ok(vec![Peer::new(opening.name.clone(), "")]);
    };
    let listed = peers.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>().join(", ");
    if !peers.iter().any(|peer| peer.name == opening.name) {
        return Err(wrong("formation", &listed, format!("it must list this node, {:?}", opening.name)));
    }
    if peers.len() > PEERS_MAX {
        return Err(wrong("formation", &listed, format!("it may list at most {PEERS_MAX} nodes")));
    }
    let mut names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(wrong("formation", &listed, format!("it lists {:?} twice", twice[0])));
    }
    Ok(peers.clone())
}

fn place_path(place: &Place) -> PathBuf {
    match place {
        Place::Directory(path) => path.clone(),
        Place::Memory => PathBuf::from("(memory)"),
        #[cfg(any(test, feature = "sim", feature = "internals"))]
        Place::Disk(disk) => disk.path().to_owned(),
    }
}

async fn open(opening: Opening, peers: Vec<Peer>, runtime: NodeRuntime) -> Result<Arc<Node>, StartError> {
    let Opening { cluster_name, name, place, transport, formation, settings } = opening;
    let disk: Arc<dyn Disk> = match place {
        Place::Directory(path) => Arc::new(DirDisk::open(path)?),
        Place::Memory => Arc::new(MemDisk::new()),
        #[cfg(any(test, feature = "sim", feature = "internals"))]
        Place::Disk(disk) => disk,
    };
    let path = disk.path().to_owned();
    let io = |source| StartError::Io { path: path.clone(), source };
    let mint = || (NodeId::new(rt::random_u64().max(1)), rt::random_u64());
    let begun = rt::Instant::now();
    tracing::info!(path = %path.display(), "opening");
    let Opened { identity, log, mut log_engine, state_db, poison } = storage::open(disk.clone(), &name, mint)?;
    tracing::info!(log = ?log.bounds(), took = ?begun.elapsed(), "log.wal has been read; loading state.redb");
    let how = || drive(&settings);
    let (state, state_engine) = state_engine::open(state_db, identity.node, log.clone(), poison.clone(), &disk)?;
    tracing::info!(applied = ?state.applied().last_applied, took = ?begun.elapsed(), "state.redb is loaded");
    // A purge never passes what is durable in the state: a state that ends before it is from another time.
    if let Some(purged) = log.bounds().0
        && state.applied().last_applied.map(|applied| applied.index) < Some(purged.index)
    {
        let what = "state.redb is older than the first entry that log.wal still holds".to_owned();
        return Err(StartError::DataLost { path, what });
    }
    // Second line of defence: a log that does not hold the applied entry is cleared, its vote kept.
    if let Some(applied) = state.applied().last_applied
        && log_engine.repair_to_applied(applied).map_err(|error| io(error.into()))?
    {
        tracing::warn!(name, %applied, "the log ended in another past than the applied state and was cleared");
    }
    let log_driver = log.start(log_engine, how()).map_err(io)?;
    let state_driver = state.start(state_engine, how()).map_err(io)?;

    let incarnation = Incarnation::new(identity.starts, rt::random_u64());
    let link = Link::new(identity.node, incarnation, transport.clone(), &peers, rt::random_u64());
    if let Some(cluster) = identity.cluster {
        link.join(cluster);
    }
    // The node is made after the module that reports to it: until then there is nothing to report to.
    let observed: Arc<OnceLock<Weak<Node>>> = Arc::default();
    let raft = Raft::start(Parts {
        me: identity.node,
        cluster_name: &cluster_name,
        timing: &settings.timing,
        retention: settings.retention,
        log: log.clone(),
        state: state.clone(),
        link: link.clone(),
        observer: observer(observed.clone()),
    })
    .await
    .map_err(|failure| io(std::io::Error::other(failure.to_string())))?;

    let (funnel, queue) = Funnel::new();
    let (status, _) = rt::watch::channel(NodeStatus {
        phase: Phase::Forming,
        term: 0,
        leader: None,
        leads: false,
        disk_stalled: false,
        membership: Default::default(),
    });
    let hub = WatchHub::new(state.view().revision, settings.watch_revisions);
    let node = Arc::new(Node {
        forming: tokio::sync::Mutex::new(Settled { identity: identity.clone() }),
        identity,
        cluster_name,
        settings,
        peers,
        runtime,
        link,
        hub,
        log,
        state,
        poison,
        engines: Engines { log: log_driver, state: state_driver },
        raft: RwLock::new(raft),
        status,
        applied: Watermark::new(),
        revision: Watermark::new(),
        leases: Leases::default(),
        clients: Clients::default(),
        rounds: Rounds::default(),
        disks: Disks::default(),
        funnel,
        tasks: Mutex::default(),
        stopping: AtomicBool::new(false),
        closed: Watermark::new(),
        inbound: OnceLock::new(),
    });
    node.inbound.set(inbound::inbound(&node)).expect("set once, here");
    // What was applied while the module started has reported to nobody: look at the state as it is now.
    observed.set(Arc::downgrade(&node)).expect("set once, here");
    node.observe(&mut []);
    node.start_tasks(formation, queue);
    transport.start(node.inbound());
    Ok(node)
}

/// How the storage engines run.
fn drive(settings: &Settings) -> Drive {
    #[cfg(any(test, feature = "sim"))]
    if let Some(drive) = &settings.drive.0 {
        return drive.clone();
    }
    if settings.inline_storage { Drive::Inline } else { Drive::Thread }
}

/// Reports applied batches to the node, once there is one.
pub(super) fn observer(node: Arc<OnceLock<Weak<Node>>>) -> Observer {
    Arc::new(move |batch| {
        if let Some(node) = node.get().and_then(Weak::upgrade) {
            node.observe(batch);
        }
    })
}

impl Node {
    fn start_tasks(self: &Arc<Self>, formation: Formation, queue: Submissions) {
        let spawn = |name, task: futures::future::BoxFuture<'static, ()>| self.keep(self.runtime.spawn(name, task));
        spawn("funnel", Box::pin(run_funnel(self.clone(), queue)));
        spawn("supervise", Box::pin(self.clone().supervise()));
        spawn("expiry", Box::pin(self.clone().run_expiry()));
        spawn("client", Box::pin(self.clone().keep_client()));
        spawn("checkup", Box::pin(self.clone().run_checkups()));
        spawn("compact", Box::pin(self.clone().keep_compacting()));
        match self.holds_data() {
            true => {
                self.set_phase(Phase::Running);
                spawn("elect-alone", Box::pin(self.clone().elect_if_alone()));
                spawn("look-for-own", Box::pin(self.clone().look_for_own()));
            }
            false => spawn("form", Box::pin(self.clone().form(formation))),
        }
    }

    /// A sole voter need not wait out an election timeout: nobody else can lead.
    async fn elect_if_alone(self: Arc<Self>) {
        let membership = self.state.applied().membership;
        let voters = membership.membership.configs;
        let alone = voters.iter().all(|config| config.iter().all(|id| *id == self.id()));
        if !voters.is_empty()
            && alone
            && let Err(error) = self.raft().elect().await
        {
            tracing::error!(name = self.name(), %error, "the sole voter could not stand for election");
        }
    }
}
