//! Everything at once: power failures, partitions, lossy networks, handovers, panics and snapshots, in an order that the
//! seed chooses, while writers and readers of all nodes check what they are told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::power::{MODES, Told, audit};
use super::support::{Group, Mischief, seeds, slow_disks};
use crate::config::Retention;
use crate::rt::{self, sim::World};
use crate::storage::fault_disk::SplitMix;
use crate::{Cluster, Error};

/// The nodes as they are now, for tasks that outlive any of them.
type Handles = Arc<Mutex<Vec<Option<Cluster>>>>;

struct Worker {
    n: usize,
    seed: u64,
    nodes: Handles,
    told: Arc<Mutex<Told>>,
    over: Arc<AtomicBool>,
}

impl Worker {
    fn node(&self) -> Option<Cluster> {
        self.nodes.lock().unwrap()[self.n].clone()
    }

    async fn write(self) {
        let mut i = 0;
        while !self.over.load(Ordering::Acquire) {
            let Some(node) = self.node() else {
                rt::sleep(Duration::from_millis(20)).await;
                continue;
            };
            i += 1;
            let key = format!("{}/{i}", self.n);
            let written = node.set(&key, &key).timeout(Duration::from_millis(600)).await;
            if matches!(written, Err(Error::Stopped { .. })) {
                rt::sleep(Duration::from_millis(20)).await;
            }
            self.told.lock().unwrap().note(key, written);
        }
    }

    /// Whatever was acknowledged before a read began is found by it, on any node that answers.
    async fn read(self) {
        let mut rng = SplitMix(self.seed + self.n as u64);
        while !self.over.load(Ordering::Acquire) {
            let newest = {
                let told = self.told.lock().unwrap();
                told.acked.iter().max_by_key(|(_, revision)| **revision).map(|(key, revision)| (key.clone(), *revision))
            };
            if let (Some(node), Some((key, revision))) = (self.node(), newest)
                && let Ok(found) = node.get::<String>(&key).timeout(Duration::from_millis(600)).await
            {
                let found = found.map(|entry| entry.modified);
                assert_eq!(found, Some(revision), "seed {}, node {}: a stale read of {key}", self.seed, self.n);
            }
            rt::sleep(Duration::from_millis(rng.below(50))).await;
        }
    }
}

pub(super) async fn swarm(seed: u64, events: u64) -> (usize, usize) {
    let mut rng = SplitMix(seed);
    let forgetful = seed.is_multiple_of(2);
    let mut group = Group::new(3, seed).tune(move |settings| {
        settings.drive = slow_disks(seed, 15);
        if forgetful {
            settings.retention = Retention { snapshot_entries: 30, kept_entries: 10 };
        }
    });
    group.start_all().await;
    let nodes: Handles = Arc::new(Mutex::new(group.running().cloned().map(Some).collect()));
    let (told, over) = (Arc::new(Mutex::new(Told::default())), Arc::new(AtomicBool::new(false)));
    let mut workers = Vec::new();
    for n in 0..3 {
        let worker = || Worker { n, seed, nodes: nodes.clone(), told: told.clone(), over: over.clone() };
        workers.push(rt::spawn("writer", worker().write()));
        workers.push(rt::spawn("reader", worker().read()));
    }
    let mut up = [true; 3];
    for _ in 0..events {
        rt::sleep(Duration::from_millis(rng.below(900))).await;
        let n = rng.below(3) as usize;
        let name = group.peers[n].name.clone();
        match rng.below(9) {
            0..=1 if up[n] => {
                if rng.below(2) == 0 {
                    group.disks[n].die_at(rng.below(300));
                    rt::sleep(Duration::from_millis(rng.below(300))).await;
                }
                nodes.lock().unwrap()[n] = None;
                group.power_loss(n, MODES[rng.below(5) as usize]);
                up[n] = false;
            }
            0..=3 if !up[n] => {
                nodes.lock().unwrap()[n] = Some(group.start(n).await);
                up[n] = true;
            }
            2 => group.network.isolate(name),
            3 => group.network.cut(name, group.peers[(n + 1) % 3].name.clone()),
            4..=5 => group.network.heal(),
            6 => group.mischief(Mischief {
                lose_requests: rng.below(15),
                lose_replies: rng.below(30),
                double: rng.below(50),
                delay_ms_max: rng.below(30),
                ..Mischief::default()
            }),
            7 if up[n] => {
                let heir = group.node(n).status().id;
                for node in group.running() {
                    node.node().transfer_to(heir).await;
                }
            }
            8 if up[n] && rng.below(3) == 0 => group.node(n).node().panic_core().await,
            _ => group.mischief(Mischief::default()),
        }
    }
    group.network.heal();
    group.mischief(Mischief::default());
    group.start_all().await;
    over.store(true, Ordering::Release);
    for worker in workers {
        worker.await.unwrap_or_else(|failed| panic!("seed {seed}: {failed}"));
    }
    for n in 0..3 {
        group
            .node(n)
            .set(format!("end/{n}"), &n.to_string())
            .await
            .unwrap_or_else(|error| panic!("seed {seed}, node {n}: {error}"));
    }
    group.converged().await;
    audit(&group, &told, &format!("seed {seed}")).await;
    let told = told.lock().unwrap();
    (told.acked.len(), told.unknown.len())
}

/// In a world at 100 of tokio's milliseconds to one: a seed that fails, fails again.
#[test]
fn whatever_happens_nodes_keep_their_word_and_find_together_again() {
    let (mut acked, mut unknown) = (0, 0);
    for seed in seeds(1..3) {
        let world = World::new(seed, 100);
        let (a, u) = world.block_on(swarm(seed, usual_events(30)));
        println!("seed {seed}: {a} acknowledged, {u} unknown in {} lines, hash {:016x}", world.events(), world.hash());
        acked += a;
        unknown += u;
    }
    assert!(acked > 200 && unknown > 5, "{acked} acknowledged, {unknown} unknown: nothing much was tested");
}

/// How much happens in one run: as given, or `QUORATE_TEST_EVENTS=100`.
fn usual_events(usual: u64) -> u64 {
    std::env::var("QUORATE_TEST_EVENTS").map_or(usual, |wanted| wanted.parse().expect("a number of events"))
}
