//! What an operation must answer and change at a given revision, written down as plainly as possible.

use super::log::{Change, Kind};
use super::op::{Answer, Attach, Condition, Only, Op, Seen, Span, Step, StepAnswer, Test};
use super::timeline::Timeline;
use crate::types::Revision;

/// The outcome of an operation on the store of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Computed {
    pub(super) answer: Answer,
    /// What it changes, by key.
    pub(super) changes: Vec<Wanted>,
}

/// A change that an operation asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) key: String,
    /// The value put and what it hangs on; `None`: deleted.
    put: Option<(String, Attach)>,
}

impl Wanted {
    /// Whether `change` is what was asked for. Its numbers are the log's own matter.
    pub(super) fn is(&self, change: &Change) -> bool {
        let same = match (&self.put, &change.now) {
            (None, None) => change.kind == Kind::Deleted,
            (Some((value, attach)), Some(now)) => {
                let hangs = match attach {
                    Attach::Forever => now.lease.is_none(),
                    Attach::Lease(lease) => now.lease == Some(*lease),
                    Attach::Ttl(_) => now.lease.is_some(),
                };
                hangs && now.value == *value
            }
            _ => false,
        };
        same && self.key == change.key
    }
}

/// Whether `changes` are exactly what was asked for, in whatever order.
pub(super) fn same_changes<'a>(wanted: &[Wanted], changes: impl Iterator<Item = &'a Change>) -> bool {
    let changes: Vec<&Change> = changes.collect();
    wanted.len() == changes.len() && wanted.iter().all(|wanted| changes.iter().any(|change| wanted.is(change)))
}

/// Whether what a client was told is what it should have been told. What was not recorded is not compared.
pub(super) fn agrees(told: &Answer, computed: &Answer) -> bool {
    match (told, computed) {
        (Answer::Written, Answer::Replaced(_)) => true,
        (
            Answer::Txn { failed, changed, results: None },
            Answer::Txn { failed: should_fail, changed: should_change, .. },
        ) => failed == should_fail && changed == should_change,
        _ => told == computed,
    }
}

/// The store at one revision.
#[derive(Copy, Clone)]
pub(super) struct View<'a> {
    pub(super) timeline: &'a Timeline,
    pub(super) revision: u64,
}

impl View<'_> {
    /// What `op` answers and changes here; `None` if that does not depend on keys alone.
    pub(super) fn run(self, op: &Op) -> Option<Computed> {
        match op {
            Op::Get { key, .. } => Some(told(Answer::Got(self.get(key)))),
            Op::Range { keys, limit, reverse, .. } => Some(told(self.list(keys, *limit, *reverse))),
            Op::Set { key, value, only, attach } => Some(self.set(key, value, *only, *attach)),
            Op::Delete { keys, if_revision } => Some(self.delete(keys, *if_revision)),
            Op::Txn { when, then, otherwise } => Some(self.txn(when, then, otherwise)),
            Op::Revoke { lease } => {
                let gone = self.timeline.attached(*lease, self.revision);
                let mut changes: Vec<_> = gone.map(|key| Wanted { key: key.clone(), put: None }).collect();
                changes.sort_by(|a, b| a.key.cmp(&b.key));
                changes.dedup();
                Some(Computed { answer: Answer::Revoked, changes })
            }
            Op::Grant { .. } | Op::KeepAlive { .. } | Op::Resolve { .. } => None,
        }
    }

    fn get(self, key: &str) -> Option<Seen> {
        self.timeline.get(key, self.revision).cloned()
    }

    fn entries(self, keys: &Span) -> Vec<(String, Seen)> {
        self.timeline.range(keys, self.revision).map(|(key, seen)| (key.clone(), seen.clone())).collect()
    }

    fn list(self, keys: &Span, limit: Option<u32>, reverse: bool) -> Answer {
        let mut entries = self.entries(keys);
        if reverse {
            entries.reverse();
        }
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        let more = entries.len() > limit;
        entries.truncate(limit);
        Answer::Listed { entries, more }
    }

    fn set(self, key: &str, value: &str, only: Only, attach: Attach) -> Computed {
        let now = self.get(key);
        let holds = match only {
            Only::Always => true,
            Only::Absent => now.is_none(),
            Only::Present => now.is_some(),
            Only::Revision(revision) => modified(now.as_ref()) == revision,
        };
        if !holds {
            return told(Answer::Conflict(now));
        }
        let put = Wanted { key: key.to_owned(), put: Some((value.to_owned(), attach)) };
        Computed { answer: Answer::Replaced(now), changes: vec![put] }
    }

    fn delete(self, keys: &Span, if_revision: Option<Revision>) -> Computed {
        let gone: Vec<_> = self.entries(keys);
        let holds = match (if_revision, keys.as_key()) {
            (None, _) => true,
            (Some(revision), Some(key)) => modified(self.get(key).as_ref()) == revision,
            (Some(revision), None) => gone.iter().all(|(_, seen)| seen.modified == revision),
        };
        let gone = if holds { gone } else { Vec::new() };
        let answer = Answer::Deleted(gone.len() as u64);
        Computed { answer, changes: gone.into_iter().map(|(key, _)| Wanted { key, put: None }).collect() }
    }

    fn txn(self, when: &[Condition], then: &[Step], otherwise: &[Step]) -> Computed {
        let failed = when.iter().position(|condition| !self.holds(condition)).map(|place| place as u32);
        let branch = if failed.is_none() { then } else { otherwise };
        let (mut changes, mut results) = (Vec::new(), Vec::new());
        for step in branch {
            results.push(match step {
                Step::Put { key, value, attach } => {
                    changes.push(Wanted { key: key.clone(), put: Some((value.clone(), *attach)) });
                    StepAnswer::Put
                }
                Step::Remove(keys) => {
                    let gone = self.entries(keys);
                    let count = gone.len() as u64;
                    changes.extend(gone.into_iter().map(|(key, _)| Wanted { key, put: None }));
                    StepAnswer::Removed(count)
                }
                Step::Read(key) => StepAnswer::Read(self.get(key)),
                Step::List(keys) => StepAnswer::List(self.entries(keys)),
            });
        }
        let changed = !changes.is_empty();
        Computed { answer: Answer::Txn { failed, changed, results: Some(results) }, changes }
    }

    fn holds(self, Condition { keys, test }: &Condition) -> bool {
        if let Test::UnchangedSince(since) = test {
            // What is below the log's beginning cannot be known; the store refuses what is below its floor.
            return self.timeline.next_change(keys, since.get()).is_none_or(|change| change > self.revision);
        }
        let mut present = self.timeline.range(keys, self.revision).map(|(_, seen)| seen);
        match (test, keys.as_key()) {
            (Test::Absent, _) => present.next().is_none(),
            (Test::Present, _) => present.next().is_some(),
            (test, Some(_)) => one_holds(test, present.next()),
            (test, None) => present.all(|seen| one_holds(test, Some(seen))),
        }
    }
}

fn told(answer: Answer) -> Computed {
    Computed { answer, changes: Vec::new() }
}

fn modified(seen: Option<&Seen>) -> Revision {
    seen.map_or(Revision::ZERO, |seen| seen.modified)
}

fn one_holds(test: &Test, seen: Option<&Seen>) -> bool {
    match test {
        Test::ValueIs(value) => seen.is_some_and(|seen| seen.value == *value),
        Test::ValueIsNot(value) => seen.is_some_and(|seen| seen.value != *value),
        Test::ModifiedAt(revision) => modified(seen) == *revision,
        Test::NotModifiedAfter(revision) => modified(seen) <= *revision,
        Test::CreatedAt(revision) => seen.map_or(Revision::ZERO, |seen| seen.created) == *revision,
        Test::VersionIs(version) => seen.map_or(0, |seen| seen.version) == *version,
        Test::LeaseIs(lease) => seen.is_some_and(|seen| seen.lease == Some(*lease)),
        Test::Absent => seen.is_none(),
        Test::Present => seen.is_some(),
        Test::UnchangedSince(_) => unreachable!("a question about history, answered for the whole range"),
    }
}
