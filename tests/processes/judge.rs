//! Holds what the processes were told against what was committed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use quorate::sim::check::{
    Commit, CommitLog, Evidence, FencedWrite, History, Hold, LockEvidence, LockRecord, Outcome, Span, WatchRecord,
    WatchStart,
};
use quorate::{Fence, Revision};

use crate::lines;
use crate::workload::{COUNTER, HOLDS, Held, WATCH, Watched, count_of};

/// Everything that was written down.
pub struct Findings {
    seed: u64,
    pub history: History,
    held: Vec<Held>,
    watches: Vec<WatchRecord>,
    /// What each node says was committed, and up to which revision.
    pub logs: Vec<(Revision, Vec<Commit>)>,
}

/// How much there was to judge.
#[derive(Copy, Clone, Debug, Default)]
pub struct Weight {
    /// Operations that were carried out.
    pub done: usize,
    /// Operations whose outcome the client never learned.
    pub unknown: usize,
    /// Locks that were granted.
    pub grants: usize,
    /// Batches that watches delivered.
    pub batches: usize,
    /// Groups of keys that were also judged without believing in revisions.
    pub explained: usize,
}

impl Weight {
    /// Panics if there was too little: a test that meets no unknown outcome proves nothing about one.
    pub fn check(self, done_min: usize) {
        let Weight { done, unknown, grants, batches, explained } = self;
        let enough = done >= done_min && unknown > 0 && grants > 0 && batches > done_min / 4 && explained >= 3;
        assert!(enough, "nothing much was tested: {self:?}");
    }
}

impl Findings {
    pub fn new(seed: u64) -> Self {
        Findings { seed, history: History::default(), held: Vec::new(), watches: Vec::new(), logs: Vec::new() }
    }

    /// Adds what one life of a node was told.
    pub fn add(&mut self, told: &Path) {
        // A life that was killed before its load began wrote nothing.
        if let Ok(file) = File::open(told.join("history.jsonl")) {
            let read = History::read_jsonl(BufReader::new(file)).unwrap_or_else(|error| panic!("{told:?}: {error}"));
            self.history = std::mem::take(&mut self.history).merged(read);
        }
        self.held.extend(lines::read::<Held>(told, HOLDS));
        self.watches.extend(watch_of(told));
    }

    /// Panics with every promise that was broken, and leaves the evidence in `keep`; otherwise says how much was tested.
    pub fn judge(self, keep: &Path) -> Weight {
        let seed = self.seed;
        let log = self.log();
        let grants = self.held.iter().filter(|held| matches!(held, Held::Granted { .. })).count();
        let counter = wrong_counts(&log);
        let evidence = Evidence {
            locks: vec![LockEvidence { record: lock_of(&self.held), claims: None }],
            history: self.history,
            watches: self.watches,
            log,
            ..Evidence::default()
        };
        let report = evidence.judge();
        println!("seed {seed}: {report}");
        counter.iter().for_each(|wrong| println!("{wrong}"));
        if !report.violations.is_empty() {
            let file = keep.join("evidence.jsonl");
            let kept = File::create(&file).and_then(|file| evidence.write_jsonl(file));
            println!("all of it is in {}: {kept:?}", file.display());
        }
        let broken = report.violations.len() + counter.len();
        assert_eq!(broken, 0, "seed {seed}: {broken} promises were broken, see above");
        let count = |outcome| evidence.history.calls().iter().filter(|call| call.outcome == outcome).count();
        let weight = Weight {
            done: count(Outcome::Ok),
            unknown: count(Outcome::Unknown),
            grants,
            batches: evidence.watches.iter().map(|watch| watch.steps.len() / 2).sum(),
            explained: report.black_box.explained,
        };
        println!("seed {seed}: {weight:?}, {} commits", evidence.log.commits.len());
        weight
    }

    /// The one log of all nodes.
    fn log(&self) -> CommitLog {
        let (until, longest) = self.logs.iter().max_by_key(|(last, _)| *last).expect("there are nodes");
        for (n, (last, commits)) in self.logs.iter().enumerate() {
            let shared: Vec<_> = longest.iter().take_while(|commit| commit.revision <= *last).collect();
            for (theirs, ours) in shared.iter().zip(commits) {
                assert_eq!(*theirs, ours, "seed {}: node {n} has another past", self.seed);
            }
            assert_eq!(shared.len(), commits.len(), "seed {}: node {n} has another number of commits", self.seed);
        }
        CommitLog::partial(longest.clone(), *until)
    }
}

/// What the watch of one life saw, if it got to watch.
fn watch_of(told: &Path) -> Option<WatchRecord> {
    let mut lines = lines::read::<Watched>(told, WATCH).into_iter();
    let Some(Watched::After(start)) = lines.next() else { return None };
    let mut watch = WatchRecord::new(told.display().to_string(), Span::all(), WatchStart::After(start));
    watch.prev = true;
    watch.steps = lines
        .map(|line| match line {
            Watched::Step(step) => step,
            Watched::After(_) => unreachable!("it began once"),
        })
        .collect();
    Some(watch)
}

/// What the holders of the lock believed. A process that was stopped cannot tell when it stopped believing: the last time
/// that a guard said it held the lock counts.
fn lock_of(held: &[Held]) -> LockRecord {
    let mut sure = BTreeMap::<Fence, u64>::new();
    for held in held {
        if let Held::Sure { fence, before_ns } = *held {
            let last = sure.entry(fence).or_default();
            *last = before_ns.max(*last);
        }
    }
    let hold = |held: &Held| match *held {
        Held::Granted { client, fence, granted_ns } => {
            let ended_ns = Some(*sure.get(&fence)?);
            Some(Hold { client, fence, granted_ns, ended_ns, lost: false })
        }
        _ => None,
    };
    let write = |held: &Held| match *held {
        Held::Wrote { fence, revision, applied } => Some(FencedWrite { fence, revision, applied }),
        _ => None,
    };
    LockRecord {
        name: "job".into(),
        holds: held.iter().filter_map(hold).collect(),
        writes: held.iter().filter_map(write).collect(),
        deleted: Vec::new(),
    }
}

/// Each increment counts once.
fn wrong_counts(log: &CommitLog) -> Vec<String> {
    let changes = log.commits.iter().flat_map(|commit| &commit.changes).filter(|change| change.key == COUNTER);
    let counts = changes.filter_map(|change| Some(count_of(change.now.as_ref()?.value.trim_matches('"'))));
    let wrong = counts.enumerate().filter(|(n, count)| *count != *n as u64 + 1);
    wrong.map(|(n, count)| format!("increment {} of the counter made it {count}", n + 1)).collect()
}
