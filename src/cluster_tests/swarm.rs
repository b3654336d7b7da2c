//! Everything at once: faults of all kinds, in an order that the seed chooses, while clients on all nodes read, write, watch
//! and lock; afterwards the oracles judge all that they were told.

mod clients;

use std::cell::RefCell;
use std::time::Duration;

use super::support::{converged, seeds};
use crate::api::cluster::{Cluster, Health};
use crate::config::{Retention, Timing};
use crate::rt;
use crate::rt::marks::{self, Mark};
use crate::rt::sim::{Panicked, World};
use crate::sim::check::{BlackBox, black_box};
use crate::sim::{DiskFault, Fault, Faults, Play, Sim, play};
use clients::Ledger;

const SECOND: Duration = Duration::from_secs(1);

/// How one seed plays.
#[derive(Clone, Debug)]
struct Plan {
    nodes: u64,
    /// Small logs, so that whoever was away gets a snapshot.
    forgetful: bool,
    /// Small buffers, so that watchers fall behind.
    hasty: bool,
    yields: u32,
    faults: Vec<Fault>,
    /// How the disk of one node fails, which is the end of that node.
    breaks: Option<DiskFault>,
    chaos: Duration,
}

impl Plan {
    fn draw(seed: u64, chaos: Duration) -> Self {
        let mut rng = crate::storage::fault_disk::SplitMix(seed ^ 0x5eed);
        let mut half = || rng.below(2) == 0;
        let faults = Fault::ALL.into_iter().filter(|_| half()).collect();
        let (forgetful, hasty, yields) = (half(), half(), if half() { 30 } else { 0 });
        let nodes = [3, 3, 3, 5, 2, 1][rng.below(6) as usize];
        let kinds = [DiskFault::Read, DiskFault::Write, DiskFault::Sync, DiskFault::Full];
        let kind = kinds[rng.below(4) as usize];
        // The others must be a majority.
        let breaks = (nodes >= 3 && rng.below(2) == 0).then_some(kind);
        Plan { nodes, forgetful, hasty, yields, faults, breaks, chaos }
    }

    fn how(&self, seed: u64) -> Play {
        let expected: fn(&_) -> bool = |panicked: &Panicked| panicked.message.contains("provoked by a test");
        Play { seed, scale: 100, expected, ..Play::default() }
    }

    /// What a stopped clock makes of "now", nobody can say from outside: then beliefs are not judged.
    fn stands_still(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault, Fault::Pause | Fault::Suspend))
    }
}

/// What a swarm of one seed has to show.
#[derive(Debug, Default)]
struct Harvest {
    calls: usize,
    commits: usize,
    unknown: usize,
    holds: usize,
    /// Sessions that ended by themselves.
    expired: usize,
    /// Nodes that ended with their disk.
    broken: usize,
    black_box: BlackBox,
}

/// Plays one seed.
fn swarm(seed: u64, chaos: Duration) -> (World, Harvest) {
    let plan = Plan::draw(seed, chaos);
    let how = Play { yields: plan.yields, ..plan.how(seed) };
    let harvest = RefCell::new(Harvest::default());
    let world = play(&how, &|sim| {
        let (plan, harvest) = (plan.clone(), &harvest);
        async move { *harvest.borrow_mut() = scenario(sim, plan).await }
    });
    (world, harvest.into_inner())
}

/// As the swarm, a little while, for whoever compares runs.
pub(super) fn short(seed: u64, yields: u32, prepare: fn(&World)) -> World {
    let plan = Plan::draw(seed, 4 * SECOND);
    play(&Play { yields, prepare, ..plan.how(seed) }, &|sim| {
        let plan = plan.clone();
        async move { drop(scenario(sim, plan).await) }
    })
}

async fn scenario(sim: Sim, plan: Plan) -> Harvest {
    let ledger = Ledger::new(&sim);
    let (forgetful, hasty) = (plan.forgetful, plan.hasty);
    sim.tune(move |settings| {
        settings.timing = Timing::fast();
        if forgetful {
            settings.retention = Retention { snapshot_entries: 30, kept_entries: 10 };
        }
        if hasty {
            settings.watch_revisions = 4;
        }
    });
    let names = (1..=plan.nodes).map(|n| format!("node-{n}"));
    let shared = ledger.clone();
    sim.hosts(names, move |host| clients::process(host, shared.clone())).expect("names are new");
    let faults = Faults::only(plan.faults.iter().copied());
    let (_, _, broken) = futures::join!(
        sim.chaos(faults, plan.chaos),
        meddle(&sim, plan.chaos),
        break_disk(&sim, plan.breaks, plan.chaos)
    );

    for name in sim.names().into_iter().filter(|name| broken.as_ref() != Some(name)) {
        let node = open(&sim, &name).await;
        // The last write through each node: what comes after it in no log is not to come.
        let written = ledger.last_write(&node, &name).await;
        written.unwrap_or_else(|error| panic!("{name} does not take a write when all is whole: {error}"));
    }
    ledger.end().await;
    let nodes = standing(&sim);
    ledger.outlive_sessions(&nodes[0]).await;
    converged(&nodes, &format!("seed {}", sim.seed())).await;
    ledger.settle(&nodes[0]).await;
    judge(&plan, &ledger, &nodes)
}

/// What no fault of the world does: leadership handed to and fro, and panics of the consensus core.
async fn meddle(sim: &Sim, time: Duration) {
    let over = sim.elapsed() + time;
    while sim.elapsed() < over {
        sim.run_for(Duration::from_millis(sim.random(4000))).await;
        let open = sim.open();
        if open.is_empty() {
            continue;
        }
        let (_, node) = &open[sim.random(open.len() as u64) as usize];
        let heir = node.status().id;
        match sim.random(6) {
            0 => {
                let panicking = node.clone();
                let _ = rt::timeout(SECOND, panicking.node().panic_core()).await;
            }
            1..=3 => {
                // A leader that hands over to itself leads no more, and a sole one never again: nobody asks that of it.
                for (_, node) in open.iter().filter(|(_, node)| node.status().id != heir) {
                    let _ = rt::timeout(SECOND / 10, node.node().transfer_to(heir)).await;
                }
            }
            _ => {}
        }
    }
}

/// Has one disk fail for good, some time; the name of the node that is to end with it.
async fn break_disk(sim: &Sim, fault: Option<DiskFault>, time: Duration) -> Option<String> {
    let fault = fault?;
    sim.run_for(Duration::from_millis(sim.random(time.as_millis() as u64))).await;
    let (name, _) = sim.open().into_iter().next()?;
    sim.fail_disk(&name, fault, sim.random(10)).ok()?;
    Some(name)
}

/// The nodes that serve.
fn standing(sim: &Sim) -> Vec<Cluster> {
    let serves = |node: &Cluster| !matches!(node.status().health, Health::Stopped(_));
    sim.open().into_iter().map(|(_, node)| node).filter(serves).collect()
}

async fn open(sim: &Sim, name: &str) -> Cluster {
    let is_open = || sim.node(name).is_ok();
    let opened = sim.until("an open node", 60 * SECOND, is_open).await;
    opened.unwrap_or_else(|error| panic!("{name}: {error}: {:?}", sim.exit(name)));
    sim.node(name).expect("waited for")
}

fn judge(plan: &Plan, ledger: &Ledger, nodes: &[Cluster]) -> Harvest {
    let broken = ledger.broken();
    assert!(broken.is_empty(), "sessions that were sure had lost their keys: {broken:#?}");
    let evidence = ledger.evidence(&nodes[0], plan.stands_still());
    let report = evidence.judge();
    assert!(report.violations.is_empty(), "{report}");
    // The keys of the history are its own, whatever strangers do to others.
    let black_box = black_box(&evidence.history, Some(&evidence.log));
    assert!(black_box.violations.is_empty(), "{black_box:?}");
    let unknown = |call: &&crate::sim::check::Call| call.outcome == crate::sim::check::Outcome::Unknown;
    Harvest {
        calls: evidence.history.calls().len(),
        commits: evidence.log.commits.len(),
        unknown: evidence.history.calls().iter().filter(unknown).count(),
        expired: ledger.expired(),
        broken: plan.nodes as usize - nodes.len(),
        holds: evidence.locks.iter().map(|lock| lock.record.writes.len()).sum(),
        black_box,
    }
}

/// Plays seeds, and sums up what they show.
fn play_all(seeds: impl Iterator<Item = u64>, chaos: Duration) -> (u64, Harvest, Vec<(Mark, u64)>) {
    let (before, mut all, mut played) = (marks::counts(), Harvest::default(), 0);
    for seed in seeds {
        let (world, one) = swarm(seed, chaos);
        println!("seed {seed}: hash {:016x}, {} calls, {} commits", world.hash(), one.calls, one.commits);
        played += 1;
        all.calls += one.calls;
        all.commits += one.commits;
        all.unknown += one.unknown;
        all.holds += one.holds;
        all.expired += one.expired;
        all.broken += one.broken;
        all.black_box.explained += one.black_box.explained;
        all.black_box.inconclusive.extend(one.black_box.inconclusive);
    }
    let after = marks::counts();
    let marks = Mark::ALL.into_iter().enumerate().map(|(place, mark)| (mark, after[place] - before[place]));
    (played, all, marks.collect())
}

#[test]
fn whatever_happens_nodes_keep_their_word_and_find_together_again() {
    let (played, all, _) = play_all(seeds(3..6), 5 * SECOND);
    assert!(all.commits as u64 > 50 * played, "nothing much was tested: {all:?}");
}

/// What `.ci/mutants` plays until a seed fails.
#[test]
#[ignore = "minutes; for .ci/mutants, which says which seeds"]
fn every_seed_that_is_asked_for_keeps_every_promise() {
    play_all(seeds(1..21), 15 * SECOND);
}

/// What this swarm does not come by, or too seldom to count on, and named tests show: the state waits for the log, so that none
/// has to be cleared; and history outlasts a run.
const BEYOND: [Mark; 2] = [Mark::LogCleared, Mark::WatchCompacted];

/// For `--profile sim`, whose clusters are ten times as fast: more seeds, half of them each so that two cores have work.
fn hundreds(odd: u64) {
    let (played, all, marks) = play_all(seeds(1000..1200).filter(|seed| seed % 2 == odd), 10 * SECOND);
    println!("{played} seeds: {all:?}, {marks:?}");
    let never = |(mark, count): &(Mark, u64)| *count == 0 && !BEYOND.contains(mark);
    let missing: Vec<Mark> = marks.into_iter().filter(never).map(|(mark, _)| mark).collect();
    assert!(all.black_box.explained as u64 > played, "the black box has next to nothing to judge");
    assert!(missing.is_empty(), "in {played} seeds none of these has come up: {missing:?}");
    assert!(all.expired > 0 && all.broken > 0, "no session ended by itself, or no disk did");
    let given_up = all.black_box.inconclusive.len();
    assert!(given_up * 50 <= all.black_box.explained + given_up, "{given_up} histories were too much for the checker");
}

#[test]
#[ignore = "minutes; run it with --profile sim -- --ignored"]
fn hundreds_of_seeds_keep_every_promise_and_come_by_every_mark_odd() {
    hundreds(1);
}

#[test]
#[ignore = "minutes; run it with --profile sim -- --ignored"]
fn hundreds_of_seeds_keep_every_promise_and_come_by_every_mark_even() {
    hundreds(0);
}
