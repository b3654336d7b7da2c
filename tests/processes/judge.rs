//! Holds what the processes were told against what was committed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use quorate::Revision;
use quorate::sim::check::{Commit, CommitLog, History, OrderCheck, Outcome};

use crate::workload::{COUNTER, GUARDED, Hold, count_of, read_holds};

/// Everything that was written down.
pub struct Evidence {
    seed: u64,
    pub history: History,
    holds: Vec<Hold>,
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
    /// Of those, writes that were found to be committed.
    pub grants: usize,
}

impl Evidence {
    pub fn new(seed: u64) -> Self {
        Evidence { seed, history: History::default(), holds: Vec::new(), logs: Vec::new() }
    }

    /// Adds what one life of a node was told.
    pub fn add(&mut self, told: &Path) {
        // A life that was killed before its load began wrote nothing.
        if let Ok(file) = File::open(told.join("history.jsonl")) {
            let read = History::read_jsonl(BufReader::new(file)).unwrap_or_else(|error| panic!("{told:?}: {error}"));
            self.history = std::mem::take(&mut self.history).merged(read);
        }
        self.holds.extend(read_holds(told));
    }

    /// Panics with every promise that was broken; otherwise says how much was tested.
    pub fn judge(&self) -> Weight {
        let log = self.log();
        let mut broken: Vec<String> =
            OrderCheck::new().check(&self.history, &log).iter().map(ToString::to_string).collect();
        broken.extend(self.counter(&log));
        broken.extend(self.lock(&log));
        for violation in &broken {
            println!("{violation}");
        }
        assert!(broken.is_empty(), "seed {}: {} promises were broken, see above", self.seed, broken.len());
        let count = |outcome| self.history.calls().iter().filter(|call| call.outcome == outcome).count();
        let grants = self.holds.iter().filter(|hold| matches!(hold, Hold::Granted { .. })).count();
        let weight = Weight { done: count(Outcome::Ok), unknown: count(Outcome::Unknown), grants };
        println!("seed {}: {weight:?}, {} commits", self.seed, log.commits.len());
        weight
    }

    /// The one log of all nodes.
    fn log(&self) -> CommitLog {
        let (_, longest) = self.logs.iter().max_by_key(|(last, _)| *last).expect("there are nodes");
        for (n, (last, commits)) in self.logs.iter().enumerate() {
            let same = longest.iter().take_while(|commit| commit.revision <= *last);
            for (theirs, ours) in same.zip(commits) {
                assert_eq!(theirs, ours, "seed {}: node {n} has another past", self.seed);
            }
            let known = longest.iter().filter(|commit| commit.revision <= *last).count();
            assert_eq!(known, commits.len(), "seed {}: node {n} has another number of commits", self.seed);
        }
        CommitLog::partial(longest.clone())
    }

    /// Each increment counts once.
    fn counter(&self, log: &CommitLog) -> Vec<String> {
        let counts = values(log, COUNTER).map(|(_, value)| count_of(value));
        let wrong = counts.enumerate().filter(|(n, count)| *count != *n as u64 + 1);
        wrong.map(|(n, count)| format!("increment {n} of the counter made it {count}")).collect()
    }

    /// One holder at a time, fences that only grow, and no write of somebody who has lost the lock.
    fn lock(&self, log: &CommitLog) -> Vec<String> {
        let mut broken = Vec::new();
        let mut grants = BTreeMap::new();
        for hold in &self.holds {
            if let Hold::Granted { fence, asked_ns, granted_ns } = *hold
                && grants.insert(fence, (asked_ns, granted_ns)).is_some()
            {
                broken.push(format!("fence {fence} was given twice"));
            }
        }
        for (fence, (asked_ns, _)) in &grants {
            let later = grants.range(fence + 1..).find(|(_, (_, granted_ns))| granted_ns < asked_ns);
            broken.extend(later.map(|(later, _)| format!("fence {fence} was asked for after {later} had been given")));
        }
        for hold in &self.holds {
            if let Hold::Sure { fence, before_ns } = *hold {
                let other = grants.range(fence + 1..).find(|(_, (_, granted_ns))| *granted_ns < before_ns);
                broken.extend(other.map(|(other, _)| format!("{fence} still held after {other} had been given")));
            }
        }
        let fences: Vec<_> = values(log, GUARDED).map(|(revision, value)| (revision, count_of(value))).collect();
        let back = fences.windows(2).filter(|pair| pair[1].1 < pair[0].1);
        broken.extend(back.map(|pair| format!("{:?} wrote after {:?}", pair[1], pair[0])));
        broken
    }
}

/// The values that a key was given, in order.
fn values<'a>(log: &'a CommitLog, key: &'a str) -> impl Iterator<Item = (Revision, &'a str)> {
    let changes =
        log.commits.iter().flat_map(|commit| commit.changes.iter().map(move |change| (commit.revision, change)));
    changes
        .filter(move |(_, change)| change.key == key)
        .filter_map(|(revision, change)| Some((revision, change.now.as_ref()?.value.as_str())))
}
