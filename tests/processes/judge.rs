//! Holds what the processes were told against what was committed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use quorate::Revision;
use quorate::sim::check::{
    Answer, Call, Commit, CommitLog, History, Only, Op, OrderCheck, Outcome, Register, RegisterAnswer, RegisterOp,
    Verdict, linearizable,
};

use crate::workload::{COUNTER, GUARDED, Hold, REGISTERS, count_of, read_holds};

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
        broken.extend(REGISTERS.into_iter().chain([COUNTER]).filter_map(|key| self.black_box(key)));
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

    /// The calls on one key, judged by their answers and times alone.
    fn black_box(&self, key: &str) -> Option<String> {
        let values = self.values_by_revision(key);
        let calls = self.history.calls().iter().filter_map(|call| register_call(call, key, &values));
        match linearizable(&Register::default(), &History::new(calls)) {
            Verdict::Linearizable => None,
            Verdict::Violated(violation) => Some(format!("{key}: {violation}")),
            Verdict::Inconclusive { steps } => {
                println!("{key}: no verdict after {steps} steps");
                None
            }
        }
    }

    /// What clients saw at a key, by the revision that they then named in a condition.
    fn values_by_revision(&self, key: &str) -> BTreeMap<Revision, String> {
        let calls = self.history.calls().iter().filter(|call| key_of(&call.op) == Some(key));
        let seen = calls.filter_map(|call| match &call.response {
            Some(Answer::Got(seen) | Answer::Conflict(seen)) => seen.as_ref(),
            _ => None,
        });
        seen.map(|seen| (seen.modified, seen.value.clone())).collect()
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

fn key_of(op: &Op) -> Option<&str> {
    match op {
        Op::Get { key, .. } | Op::Set { key, .. } => Some(key),
        _ => None,
    }
}

/// A call on `key` as one on a register. A condition on a revision is one on the value that its client had seen there.
fn register_call(
    call: &Call,
    key: &str,
    values: &BTreeMap<Revision, String>,
) -> Option<Call<RegisterOp<String>, RegisterAnswer<String>>> {
    if key_of(&call.op) != Some(key) {
        return None;
    }
    let op = match (&call.op, &call.response) {
        // A condition that did not hold is a read of what was there instead.
        (_, Some(Answer::Conflict(_))) | (Op::Get { .. }, _) => RegisterOp::Read,
        (Op::Set { value, only: Only::Absent, .. }, _) => RegisterOp::CompareAndSet(None, Some(value.clone())),
        (Op::Set { value, only: Only::Revision(revision), .. }, _) => {
            RegisterOp::CompareAndSet(values.get(revision).cloned(), Some(value.clone()))
        }
        (Op::Set { value, .. }, _) => RegisterOp::Write(Some(value.clone())),
        (other, _) => unreachable!("{other:?} has no key"),
    };
    let response = call.response.as_ref().map(|answer| match (answer, &op) {
        (Answer::Got(seen) | Answer::Conflict(seen), _) => {
            RegisterAnswer::Value(seen.as_ref().map(|seen| seen.value.clone()))
        }
        (Answer::Written, RegisterOp::Write(_)) => RegisterAnswer::Written,
        (Answer::Written, _) => RegisterAnswer::Set(true),
        (other, _) => unreachable!("{op:?} is answered with {other:?}"),
    });
    let Call { client, id, invoked_ns, returned_ns, outcome, revision, ticket, .. } = call.clone();
    Some(Call { client, id, op, invoked_ns, returned_ns, outcome, response, revision, ticket })
}

/// The values that a key was given, in order.
fn values<'a>(log: &'a CommitLog, key: &'a str) -> impl Iterator<Item = (Revision, &'a str)> {
    let changes =
        log.commits.iter().flat_map(|commit| commit.changes.iter().map(move |change| (commit.revision, change)));
    changes
        .filter(move |(_, change)| change.key == key)
        .filter_map(|(revision, change)| Some((revision, change.now.as_ref()?.value.as_str())))
}
