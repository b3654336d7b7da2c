//! A cluster whose power, disks and network a test has in its hands.
//!
//! Everything runs on the test's own runtime, so that a paused clock drives it. A node that loses its power is cut off
//! from the network at the same moment: what is left of it in this process can neither write nor speak. In a simulated
//! world each life of a node is a process, and is killed.

use std::future::IntoFuture;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::api::builder::Builder;
use crate::config::{Settings, TestDrive};
use crate::rt::sim::{self, Context};
use crate::rt::worker::Drive;
use crate::rt::{self, Instant};
use crate::storage::fault_disk::{FaultDisk, PowerLoss, SplitMix};
use crate::{
    Cluster, Formation, Inbound, Lane, MemoryNetwork, MemoryTransport, Peer, Runtime, Timing, Transport, TransportError,
};

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

/// The network's whims, shared by all wires of a group.
#[derive(Debug)]
struct Whims {
    snapshot_frames: AtomicU64,
    frames: AtomicU64,
    mischief: Mutex<Mischief>,
    rng: Mutex<SplitMix>,
}

/// What happens to one call.
struct Fate {
    lose_request: bool,
    lose_reply: bool,
    double: bool,
    delays: [Duration; 2],
}

impl Whims {
    fn draw(&self) -> Fate {
        let mischief = *self.mischief.lock().unwrap();
        let mut rng = self.rng.lock().unwrap();
        let mut delay = || Duration::from_millis(rng.below(mischief.delay_ms_max + 1));
        let delays = [delay(), delay()];
        let mut hits = |percent| rng.below(100) < percent;
        Fate {
            lose_request: hits(mischief.lose_requests),
            lose_reply: hits(mischief.lose_replies),
            double: hits(mischief.double),
            delays,
        }
    }
}

/// One life of one node on the network: mischief on the way, silence after its end.
struct Wire {
    inner: Arc<MemoryTransport>,
    alive: Arc<AtomicBool>,
    whims: Arc<Whims>,
}

impl Transport for Wire {
    fn start(&self, inbound: Inbound) {
        let alive = self.alive.clone();
        self.inner.start(Inbound::new(move |lane, frame| {
            let (inbound, alive) = (inbound.clone(), alive.clone());
            Box::pin(async move {
                if !alive.load(Ordering::Acquire) {
                    return Err(TransportError::Unreachable);
                }
                let answer = inbound.receive(lane, frame).await;
                if alive.load(Ordering::Acquire) { answer } else { Err(TransportError::Unreachable) }
            })
        }));
    }

    fn call<'a>(
        &'a self,
        to: &'a Peer,
        lane: Lane,
        frame: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, TransportError>> {
        Box::pin(async move {
            let number = self.whims.frames.fetch_add(1, Ordering::Relaxed);
            sim::trace("frame", &[number, u8::from(lane).into(), xxhash_rust::xxh3::xxh3_64(&frame)]);
            let fate = self.whims.draw();
            if fate.double {
                let (inner, to, frame, alive) = (self.inner.clone(), to.clone(), frame.clone(), self.alive.clone());
                let late = fate.delays[1];
                rt::spawn("double", async move {
                    rt::sleep(late).await;
                    if alive.load(Ordering::Acquire) {
                        let _ = inner.call(&to, lane, frame, timeout).await;
                    }
                })
                .detach();
            }
            if !fate.delays[0].is_zero() {
                rt::sleep(fate.delays[0]).await;
            }
            if fate.lose_request || !self.alive.load(Ordering::Acquire) {
                return lost(timeout).await;
            }
            let again = self.whims.mischief.lock().unwrap().client_double_after;
            if let Some(later) = again.filter(|_| lane == Lane::Client) {
                let _ = self.inner.call(to, lane, frame.clone(), timeout).await;
                rt::sleep(later).await;
            }
            let unlucky = self.whims.mischief.lock().unwrap().lose_snapshot_reply;
            let answer = self.inner.call(to, lane, frame, timeout).await;
            // Only what somebody has answered: while the peer is down, the sender tries in vain.
            let answered = lane == Lane::Snapshot && answer.is_ok();
            let answer_lost = answered && Some(self.whims.snapshot_frames.fetch_add(1, Ordering::Relaxed)) == unlucky;
            if fate.lose_reply || answer_lost || !self.alive.load(Ordering::Acquire) {
                return lost(timeout).await;
            }
            answer
        })
    }
}

async fn lost(timeout: Duration) -> Result<Bytes, TransportError> {
    rt::sleep(timeout).await;
    Err(TransportError::TimedOut)
}

pub(super) struct Group {
    pub(super) seed: u64,
    pub(super) network: MemoryNetwork,
    pub(super) peers: Vec<Peer>,
    pub(super) disks: Vec<FaultDisk>,
    nodes: Vec<Option<Cluster>>,
    lives: Vec<Arc<AtomicBool>>,
    /// Each node's process, in a simulated world.
    processes: Vec<Option<Context>>,
    whims: Arc<Whims>,
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
            network: MemoryNetwork::new(),
            peers: (1..=size).map(|n| Peer::new(format!("node-{n}"), format!("address-{n}"))).collect(),
            disks: (0..size).map(|n| FaultDisk::new(seed.wrapping_mul(31) + n as u64)).collect(),
            nodes: vec![None; size],
            lives: vec![Arc::default(); size],
            processes: vec![None; size],
            whims: Arc::new(Whims {
                snapshot_frames: AtomicU64::new(0),
                frames: AtomicU64::new(0),
                mischief: Mutex::default(),
                rng: Mutex::new(SplitMix(seed)),
            }),
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
        self.whims.frames.load(Ordering::Relaxed)
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
        *self.whims.mischief.lock().unwrap() = mischief;
    }

    /// A transport for a new life of node `n`; the one before is silent from now on.
    fn wire(&mut self, n: usize) -> impl Transport + use<> {
        self.lives[n].store(false, Ordering::Release);
        self.wire_beside(n)
    }

    /// As [`Group::wire`], but the life before goes on speaking.
    fn wire_beside(&mut self, n: usize) -> impl Transport + use<> {
        self.lives[n] = Arc::new(AtomicBool::new(true));
        Wire {
            inner: Arc::new(self.network.transport(self.peers[n].name.clone())),
            alive: self.lives[n].clone(),
            whims: self.whims.clone(),
        }
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

    /// Waits until all running nodes stand at one revision, and checks that they hold the same there.
    pub(super) async fn converged(&self) {
        let places = || {
            let mut seen: Vec<_> = self.running().map(|n| (n.status().revision, n.status().state_hash)).collect();
            seen.dedup();
            seen
        };
        let equal =
            || places().iter().map(|(revision, _)| revision).collect::<std::collections::BTreeSet<_>>().len() == 1;
        let start = Instant::now();
        while !equal() {
            let states: Vec<_> = self.running().map(Cluster::status).collect();
            assert!(start.elapsed() < PATIENCE, "seed {}: no equal revisions in {PATIENCE:?}: {states:#?}", self.seed);
            rt::sleep(Duration::from_millis(5)).await;
        }
        // Entries without a revision (leases, client records) count in the hash too and may still be on their way.
        while places().len() > 1 {
            assert!(start.elapsed() < PATIENCE, "seed {}: states differ at one revision: {:?}", self.seed, places());
            rt::sleep(Duration::from_millis(5)).await;
        }
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
