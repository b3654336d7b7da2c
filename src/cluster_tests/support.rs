//! A cluster whose power, disks and network a test has in its hands.
//!
//! Everything runs on the test's own runtime, so that a paused clock drives it. A node that loses its power is cut off
//! from the network at the same moment: what is left of it in this process can neither write nor speak. In a simulated
//! world each life of a node is a process, and is killed.

use std::future::IntoFuture;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::api::builder::Builder;
use crate::config::{Settings, TestDrive};
use crate::rt::sim::{self, Context};
use crate::rt::worker::Drive;
use crate::rt::{self, Instant};
use crate::sim::Wire;
use crate::sim::net::{Leg, Passage, Script, SimNet, Spawner};
use crate::storage::fault_disk::{FaultDisk, PowerLoss, SplitMix};
use crate::{Cluster, Formation, Lane, Peer, Runtime, Timing, Transport};

/// Far beyond what anything here takes on the paused clock.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// The seeds of a test: the given ones, or `QUORATE_TEST_SEEDS=100..200` to look further.
pub(super) fn seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(wanted) = std::env::var("QUORATE_TEST_SEEDS") else { return usual };
    let ends = wanted.split_once("..").map(|(from, to)| (from.parse(), to.parse()));
    let Some((Ok(from), Ok(to))) = ends else { panic!("QUORATE_TEST_SEEDS is {wanted:?}, not like 100..200") };
    from..to
}

/// Waits for `what` to become true; panics after [`PATIENCE`] of the clock in force.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for: {what}");
        rt::sleep(Duration::from_millis(5)).await;
    }
}

/// What a network does to frames, in percent and milliseconds. All zero: nothing.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Mischief {
    pub(super) lose_requests: u64,
    pub(super) lose_replies: u64,
    pub(super) double: u64,
    /// Each frame is held back by a time of its own up to this, so that frames overtake each other.
    pub(super) delay_ms_max: u64,
    /// Frames on the client's lane are delivered at once, their answers lost, and delivered again after this time; the
    /// second answer is the one that counts.
    pub(super) client_double_after: Option<Duration>,
    /// The answer of this number (from 0) on the snapshot lane is lost.
    pub(super) lose_snapshot_reply: Option<u64>,
}

impl Mischief {
    /// Has the network do this to each frame, as `rng` draws.
    fn script(self, rng: Arc<Mutex<SplitMix>>, snapshot_answers: Arc<AtomicU64>) -> Script {
        Arc::new(move |sight| {
            let mut rng = rng.lock().unwrap();
            let mut delay = || Duration::from_millis(rng.below(self.delay_ms_max + 1));
            let delays = [delay(), delay()];
            let mut hits = |percent| rng.below(100) < percent;
            let copy = |delay| Passage { delay, ..Passage::default() };
            match sight.leg {
                Leg::Request => {
                    let mut copies = Vec::new();
                    if let Some(later) = self.client_double_after.filter(|_| sight.lane == Lane::Client) {
                        copies = vec![Passage { muted: true, ..copy(delays[0]) }, copy(delays[0] + later)];
                    } else if !hits(self.lose_requests) {
                        copies.push(copy(delays[0]));
                    }
                    if hits(self.double) {
                        copies.push(Passage { muted: true, ..copy(delays[1]) });
                    }
                    Some(copies)
                }
                Leg::Answer { ok } => {
                    // Only what somebody has answered: while the peer is down, the sender tries in vain.
                    let answered = ok && sight.lane == Lane::Snapshot;
                    let number = answered.then(|| snapshot_answers.fetch_add(1, Ordering::Relaxed));
                    let unlucky = number.is_some() && number == self.lose_snapshot_reply;
                    let lost = hits(self.lose_replies) || unlucky;
                    Some(if lost { Vec::new() } else { vec![copy(Duration::ZERO)] })
                }
            }
        })
    }
}

/// Runs what carries frames: in a simulated world a process of its own, so that no node's pause or end stops them.
fn carrier() -> Spawner {
    let carrier = sim::current().map(|outside| outside.world().context("network", 0));
    Arc::new(move |name, task| match &carrier {
        Some(carrier) => carrier.spawn(name, task).detach(),
        None => rt::spawn(name, task).detach(),
    })
}

pub(super) struct Group {
    pub(super) seed: u64,
    pub(super) network: SimNet,
    pub(super) peers: Vec<Peer>,
    pub(super) disks: Vec<FaultDisk>,
    nodes: Vec<Option<Cluster>>,
    lives: Vec<Arc<AtomicBool>>,
    /// Each node's process, in a simulated world.
    processes: Vec<Option<Context>>,
    rng: Arc<Mutex<SplitMix>>,
    snapshot_answers: Arc<AtomicU64>,
    formation: Option<Formation>,
    tune: Arc<dyn Fn(&mut Settings) + Send + Sync>,
}

impl Group {
    /// `size` nodes called `node-1` and so on, none of them started. `RUST_LOG` shows what they do.
    pub(super) fn new(size: usize, seed: u64) -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().with_ansi(false).try_init();
        Group {
            seed,
            network: SimNet::new(seed, Wire::instant(), carrier()),
            peers: (1..=size).map(|n| Peer::new(format!("node-{n}"), format!("address-{n}"))).collect(),
            disks: (0..size).map(|n| FaultDisk::new(seed.wrapping_mul(31) + n as u64)).collect(),
            nodes: vec![None; size],
            lives: vec![Arc::default(); size],
            processes: vec![None; size],
            rng: Arc::new(Mutex::new(SplitMix(seed))),
            snapshot_answers: Arc::default(),
            formation: None,
            tune: Arc::new(|_| {}),
        }
    }

    /// Changes the settings of every node started from now on.
    pub(super) fn tune(mut self, tune: impl Fn(&mut Settings) + Send + Sync + 'static) -> Self {
        self.tune = Arc::new(tune);
        self
    }

    /// Each node is to be a cluster of its own.
    pub(super) fn single(mut self) -> Self {
        self.formation = Some(Formation::Single);
        self
    }

    /// Frames sent so far.
    pub(super) fn frames(&self) -> u64 {
        self.network.calls()
    }

    /// Takes a node that the test has started itself.
    pub(super) fn adopt(&mut self, n: usize, node: Cluster) {
        self.nodes[n] = Some(node);
    }

    /// Lets go of the group's own handle.
    pub(super) fn release(&mut self, n: usize) {
        self.nodes[n] = None;
    }

    pub(super) fn mischief(&self, mischief: Mischief) {
        self.snapshot_answers.store(0, Ordering::Relaxed);
        self.network.script(Some(mischief.script(self.rng.clone(), self.snapshot_answers.clone())));
    }

    /// A transport for a new life of node `n`; the one before is silent from now on.
    fn wire(&mut self, n: usize) -> impl Transport + use<> {
        self.lives[n].store(false, Ordering::Release);
        self.wire_beside(n)
    }

    /// As [`Group::wire`], but the life before goes on speaking.
    fn wire_beside(&mut self, n: usize) -> impl Transport + use<> {
        let end = self.network.end(&self.peers[n].name);
        self.lives[n] = end.alive();
        end
    }

    pub(super) fn builder(&mut self, n: usize) -> Builder {
        let wire = self.wire(n);
        self.builder_on(n, wire)
    }

    pub(super) fn builder_keeping_the_old(&mut self, n: usize) -> Builder {
        let wire = self.wire_beside(n);
        self.builder_on(n, wire)
    }

    fn builder_on(&self, n: usize, wire: impl Transport) -> Builder {
        let tune = self.tune.clone();
        let formation = self.formation.clone().unwrap_or_else(|| Formation::Peers(self.peers.clone()));
        Cluster::builder(self.peers[n].name.clone())
            .disk(self.disks[n].mount())
            .transport(wire)
            .formation(formation)
            .timing(Timing::fast())
            .runtime(Runtime::Current)
            .settings(move |settings| tune(settings))
    }

    pub(super) async fn start(&mut self, n: usize) -> Cluster {
        let seed = self.seed;
        let starting = self.builder(n).into_future();
        let started = match self.next_process(n) {
            Some(process) => process.enter(starting).await,
            None => starting.await,
        };
        let node = started.unwrap_or_else(|error| panic!("seed {seed}, node {n}: {error}"));
        self.nodes[n] = Some(node.clone());
        node
    }

    /// The process for the next life of node `n`, in a simulated world.
    fn next_process(&mut self, n: usize) -> Option<Context> {
        let world = sim::current()?.world().clone();
        let generation = self.processes[n].as_ref().map_or(0, |process| process.generation() + 1);
        self.processes[n] = Some(world.context(&self.peers[n].name, generation));
        self.processes[n].clone()
    }

    /// Starts every node that is not running, and waits until all of them serve.
    pub(super) async fn start_all(&mut self) {
        for n in 0..self.nodes.len() {
            if self.nodes[n].is_none() {
                self.start(n).await;
            }
        }
        for node in self.running() {
            let seed = self.seed;
            node.ready().await.unwrap_or_else(|error| panic!("seed {seed}, {node:?}: {error}"));
        }
    }

    pub(super) async fn started(size: usize, seed: u64) -> Self {
        let mut group = Group::new(size, seed);
        group.start_all().await;
        group
    }

    pub(super) fn node(&self, n: usize) -> &Cluster {
        self.nodes[n].as_ref().expect("the node is running")
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &Cluster> {
        self.nodes.iter().flatten()
    }

    /// The place of the node that leads, once every node in `among` follows it.
    pub(super) async fn leader_among(&self, among: &[usize]) -> usize {
        let found = || {
            let leads = among.iter().copied().find(|n| self.node(*n).status().is_leader)?;
            let id = self.node(leads).status().id;
            among.iter().all(|n| self.node(*n).status().leader == Some(id)).then_some(leads)
        };
        eventually("one leader that everybody follows", || found().is_some()).await;
        found().expect("nothing ran since")
    }

    pub(super) async fn leader(&self) -> usize {
        let running: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].is_some()).collect();
        self.leader_among(&running).await
    }

    pub(super) async fn follower(&self) -> usize {
        let leader = self.leader().await;
        (0..self.nodes.len()).find(|n| *n != leader && self.nodes[*n].is_some()).expect("there are several")
    }

    /// Ends node `n` without warning; its disk keeps of the unsynced rest what `mode` says.
    pub(super) fn power_loss(&mut self, n: usize, mode: PowerLoss) {
        self.lives[n].store(false, Ordering::Release);
        self.disks[n].power_loss(mode);
        if let Some(process) = &self.processes[n] {
            process.kill();
        }
        self.nodes[n] = None;
    }

    /// Stops node `n` in order.
    pub(super) async fn stop(&mut self, n: usize) {
        let node = self.nodes[n].take().expect("the node is running");
        node.shutdown().await.expect("shuts down");
    }

    /// See [`converged`].
    pub(super) async fn converged(&self) {
        let nodes: Vec<Cluster> = self.running().cloned().collect();
        converged(&nodes, &format!("seed {}", self.seed)).await;
    }
}

/// Waits until all of the nodes stand at one revision, and checks that they hold the same there.
pub(super) async fn converged(nodes: &[Cluster], context: &str) {
    let places = || {
        let status = nodes.iter().map(Cluster::status);
        let mut seen: Vec<_> = status.map(|status| (status.revision, status.state_hash)).collect();
        seen.dedup();
        seen
    };
    let equal = || places().iter().map(|(revision, _)| revision).collect::<std::collections::BTreeSet<_>>().len() == 1;
    let start = Instant::now();
    while !equal() {
        let states: Vec<_> = nodes.iter().map(Cluster::status).collect();
        assert!(start.elapsed() < PATIENCE, "{context}: no equal revisions in {PATIENCE:?}: {states:#?}");
        rt::sleep(Duration::from_millis(5)).await;
    }
    // Entries without a revision (leases, client records) count in the hash too and may still be on their way.
    while places().len() > 1 {
        assert!(start.elapsed() < PATIENCE, "{context}: states differ at one revision: {:?}", places());
        rt::sleep(Duration::from_millis(5)).await;
    }
}

/// Disks that take up to `ms_max` for each step, each time another.
pub(super) fn slow_disks(seed: u64, ms_max: u64) -> TestDrive {
    let rng = Arc::new(Mutex::new(SplitMix(seed)));
    TestDrive(Some(Drive::Delayed(Arc::new(move || {
        let delay = Duration::from_millis(rng.lock().unwrap().below(ms_max + 1));
        Box::pin(rt::sleep(delay))
    }))))
}
