//! Three nodes in one task on a paused clock, with a network that can be cut: what tests of whole clusters stand on.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::cluster::Cluster;
use crate::command::{Command, Response};
use crate::config::{Runtime, Settings, TestDrive, Timing};
use crate::node::Formation;
use crate::rt;
use crate::rt::worker::Drive;
use crate::transport::MemoryNetwork;
use crate::types::{Peer, Revision};

/// Virtual time after which what has not happened has hung.
pub(crate) const HUNG: Duration = Duration::from_secs(120);

pub(crate) const NAMES: [&str; 3] = ["a", "b", "c"];

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Three connected nodes with [`Timing::fast`]: elections after 200 to 400 ms of silence.
pub(crate) struct Trio {
    pub(crate) network: MemoryNetwork,
    pub(crate) nodes: Vec<Cluster>,
    /// Milliseconds that every step of a node's storage engines takes.
    disks_ms: Vec<Arc<AtomicU64>>,
}

impl Trio {
    pub(crate) async fn start() -> Self {
        Trio::tuned(|_| {}).await
    }

    pub(crate) async fn tuned(tune: impl Fn(&mut Settings)) -> Self {
        let network = MemoryNetwork::new();
        let peers: Vec<Peer> = NAMES.iter().map(|name| Peer::new(*name, "")).collect();
        let (mut nodes, mut disks_ms) = (Vec::new(), Vec::new());
        for name in NAMES {
            let disk_ms = Arc::new(AtomicU64::new(0));
            disks_ms.push(disk_ms.clone());
            let builder = Cluster::builder(name)
                .in_memory()
                .transport(network.transport(name))
                .formation(Formation::Peers(peers.clone()))
                .runtime(Runtime::Current)
                .timing(Timing::fast())
                .settings(|settings| settings.drive = disk_of(disk_ms))
                .settings(&tune);
            nodes.push(builder.await.expect("starts"));
        }
        for node in &nodes {
            node.ready().await.expect("forms");
        }
        Trio { network, nodes, disks_ms }
    }

    /// Lets every step of every storage engine take this long from now on.
    pub(crate) fn slow_disks(&self, each_step: Duration) {
        (0..NAMES.len()).for_each(|place| self.slow_disk(place, each_step));
    }

    /// As [`Trio::slow_disks`], for the node at `place`.
    pub(crate) fn slow_disk(&self, place: usize, each_step: Duration) {
        self.disks_ms[place].store(each_step.as_millis() as u64, Ordering::Relaxed);
    }

    /// The place of the node that leads and that another one follows.
    pub(crate) async fn leader(&self) -> usize {
        let mut leader = None;
        until("a leader with a follower", || {
            let leads = |node: &Cluster| node.status().is_leader;
            leader = self.nodes.iter().position(|node| {
                let followed = |other: &Cluster| !leads(other) && other.status().leader == Some(node.status().id);
                leads(node) && self.nodes.iter().any(followed)
            });
            leader.is_some()
        })
        .await;
        leader.expect("waited for")
    }

    /// The places of the leader and of the others.
    pub(crate) async fn roles(&self) -> (usize, usize, usize) {
        let leader = self.leader().await;
        (leader, (leader + 1) % 3, (leader + 2) % 3)
    }

    /// Cuts the node at `place` off from the others.
    pub(crate) fn isolate(&self, place: usize) {
        self.network.isolate(NAMES[place]);
    }

    /// Does something that the node at `place` hears nothing of yet when this returns; it is to take less than an election.
    /// Let frames be slow from then on, so that it stays behind for a while.
    pub(crate) async fn behind_its_back<T>(&self, place: usize, work: impl Future<Output = T>) -> T {
        self.isolate(place);
        let done = work.await;
        self.network.heal();
        done
    }

    pub(crate) async fn stop(self) {
        self.network.heal();
        self.slow_disks(Duration::ZERO);
        for node in &self.nodes {
            node.shutdown().await.expect("stops");
        }
    }
}

/// One node, in memory, with its first leader.
pub(crate) async fn single(tune: impl FnOnce(&mut Settings)) -> Cluster {
    let builder = Cluster::builder("alone").in_memory().runtime(Runtime::Current).timing(Timing::fast());
    let cluster = builder.settings(tune).await.expect("starts");
    cluster.ready().await.expect("leads itself");
    cluster
}

/// Forgets the history up to `floor`.
pub(crate) async fn compact(cluster: &Cluster, floor: Revision) {
    let done = cluster.node().housekeep(Command::Compact { floor }, HUNG).await;
    assert!(matches!(done, Ok(Response::Compacted { floor: now }) if now == floor), "{done:?}");
}

/// A seeded generator of its own, so that a seed names the same run everywhere (Knuth's MMIX parameters, upper half).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        let mut half = || {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            self.0 >> 32
        };
        (half() << 32 | half()) % sides
    }
}

fn disk_of(step_ms: Arc<AtomicU64>) -> TestDrive {
    TestDrive(Some(Drive::Delayed(Arc::new(move || {
        let step_ms = step_ms.clone();
        Box::pin(async move {
            match step_ms.load(Ordering::Relaxed) {
                0 => {}
                ms => rt::sleep(Duration::from_millis(ms)).await,
            }
        })
    }))))
}

/// Lets virtual time pass until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || std::future::ready(condition())).await;
}

/// As [`until`], for a condition that has to be asked for.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = rt::Instant::now() + HUNG;
    while !condition().await {
        assert!(rt::Instant::now() < deadline, "after {HUNG:?} there is still not: {what}");
        rt::sleep(Duration::from_millis(1)).await;
    }
}
