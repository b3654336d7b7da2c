//! The store as a black box: histories of the store's own operations, judged without its revisions.
//!
//! Keys that no call touches together are judged apart: an object is linearizable exactly if each of its parts is. What
//! cannot be said without revisions or clocks is left out and counted: stale reads, and keys that hang on leases.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Call, History, Outcome};
use super::linearizable::{Model, STEPS_MAX, Verdict, linearizable_within};
use super::log::CommitLog;
use super::op::{Answer, Attach, Condition, Moment, Only, Op, Resolution, Seen, Span, Step, StepAnswer, Test};
use super::violation::Violation;
use crate::types::{Revision, Ticket};

/// Keys that are judged as one object at most: more of them in one transaction or range make the search hopeless.
pub const PART_KEYS_MAX: usize = 4;

/// What came of judging a history as a black box.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlackBox {
    /// Parts that no order explains.
    pub violations: Vec<Violation>,
    /// How many parts were explained.
    pub explained: usize,
    /// The keys of parts whose search was given up.
    pub inconclusive: Vec<Vec<String>>,
    /// The keys of parts that cannot be judged like this.
    pub left_out: Vec<Vec<String>>,
}

/// Judges a history of the store by its answers and times alone.
///
/// With the commits, writes of unknown outcome that are not among them are dropped, and those whose value was seen count as
/// over when it was: that keeps the search short. Without, each of them may have happened at any time or never.
pub fn black_box(history: &History, log: Option<&CommitLog>) -> BlackBox {
    let calls = patched(history, log);
    let mut found = BlackBox::default();
    for (keys, calls) in parts(&calls) {
        let names = || keys.iter().cloned().collect::<Vec<_>>();
        if keys.len() > PART_KEYS_MAX || calls.iter().any(|call| !is_judged(call)) {
            found.left_out.push(names());
            continue;
        }
        match linearizable_within(&Keys, &History::new(calls.into_iter().cloned()), STEPS_MAX) {
            Verdict::Linearizable => found.explained += 1,
            Verdict::Violated(violation) => found.violations.push(violation),
            Verdict::Inconclusive { .. } => found.inconclusive.push(names()),
        }
    }
    found
}

/// The calls that count, with what is known of unknown ones.
fn patched(history: &History, log: Option<&CommitLog>) -> Vec<Call> {
    let resolved = resolutions(history);
    // A log that does not go back to the beginning does not tell what has never been.
    let whole = log.filter(|log| log.base_revision == Revision::ZERO);
    let committed: Option<BTreeSet<(&str, &str)>> = whole.map(|log| {
        let changes = log.commits.iter().flat_map(|commit| &commit.changes);
        changes.filter_map(|change| Some((change.key.as_str(), change.now.as_ref()?.value.as_str()))).collect()
    });
    let mut calls: Vec<Call> = history.calls().iter().filter(|call| counts(call)).cloned().collect();
    let writers = writers(&calls);
    let first_seen = first_seen(&calls, &writers);
    let happened = |place: usize, call: &Call| {
        let unique = |(key, value): &(&str, &str)| writers[&((*key).to_owned(), (*value).to_owned())] == Some(place);
        let puts = call.op.puts();
        let refused = call
            .ticket
            .and_then(|ticket| resolved.get(&key_of(ticket)))
            .is_some_and(|resolution| matches!(resolution, Resolution::Never | Resolution::NoEffect));
        // Only a set is known not to have happened by what is not there: a transaction may have taken another branch.
        let tells = matches!(call.op, Op::Set { .. }) && puts.iter().all(unique);
        let missing =
            committed.as_ref().is_some_and(|committed| tells && !puts.iter().any(|put| committed.contains(put)));
        !refused && !missing
    };
    let happened: Vec<bool> = calls
        .iter()
        .enumerate()
        .map(|(place, call)| call.outcome != Outcome::Unknown || happened(place, call))
        .collect();
    for (place, call) in calls.iter_mut().enumerate().filter(|(_, call)| call.outcome == Outcome::Unknown) {
        // What is seen has taken place by then, whatever its answer was.
        call.returned_ns = first_seen.get(&place).copied();
        if call.returned_ns.is_some() {
            call.outcome = Outcome::Ok;
        }
    }
    calls.into_iter().zip(happened).filter_map(|(call, happened)| happened.then_some(call)).collect()
}

/// Whether a call says something about keys as of one linearizable moment.
fn counts(call: &Call) -> bool {
    let read = match &call.op {
        Op::Get { moment, .. } | Op::Range { moment, .. } => {
            *moment == Moment::Linearizable && call.outcome == Outcome::Ok
        }
        Op::Set { .. } | Op::Delete { .. } | Op::Txn { .. } => true,
        Op::Grant { .. } | Op::KeepAlive { .. } | Op::Revoke { .. } | Op::Resolve { .. } => false,
    };
    read && call.outcome != Outcome::Fail
}

fn key_of(ticket: Ticket) -> (u64, u64) {
    (ticket.client.get(), ticket.seq)
}

fn resolutions(history: &History) -> BTreeMap<(u64, u64), Resolution> {
    let resolution = |call: &Call| match (&call.op, call.answered()) {
        (Op::Resolve { ticket }, Some((Answer::Resolved(resolution), _))) => Some((key_of(*ticket), *resolution)),
        _ => None,
    };
    history.calls().iter().filter_map(resolution).collect()
}

/// Who puts a value at a key; `None`: more than one.
fn writers(calls: &[Call]) -> BTreeMap<(String, String), Option<usize>> {
    let mut writers = BTreeMap::new();
    for (place, call) in calls.iter().enumerate() {
        for (key, value) in call.op.puts() {
            let writer = writers.entry((key.to_owned(), value.to_owned())).or_insert(Some(place));
            *writer = writer.filter(|writer| *writer == place);
        }
    }
    writers
}

/// When what a call wrote was first seen by somebody.
fn first_seen(calls: &[Call], writers: &BTreeMap<(String, String), Option<usize>>) -> BTreeMap<usize, u64> {
    let mut first = BTreeMap::new();
    for call in calls {
        let Some((answer, returned)) = call.answered() else { continue };
        for (key, seen) in named(&call.op, answer) {
            if let Some(Some(writer)) = writers.get(&(key, seen.value)) {
                let moment = first.entry(*writer).or_insert(returned);
                *moment = returned.min(*moment);
            }
        }
    }
    first
}

/// Keys and what an answer says of them.
fn named(op: &Op, answer: &Answer) -> Vec<(String, Seen)> {
    match (op, answer) {
        (Op::Get { key, .. }, Answer::Got(Some(seen)))
        | (Op::Set { key, .. }, Answer::Conflict(Some(seen)) | Answer::Replaced(Some(seen))) => {
            vec![(key.clone(), seen.clone())]
        }
        (_, Answer::Listed { entries, .. }) => entries.clone(),
        _ => Vec::new(),
    }
}

/// Calls that share keys, directly or through others, and those keys.
fn parts(calls: &[Call]) -> Vec<(BTreeSet<String>, Vec<&Call>)> {
    let all: BTreeSet<String> =
        calls.iter().flat_map(|call| call.op.spans()).filter_map(|span| span.as_key().map(str::to_owned)).collect();
    let mut parts: Vec<(BTreeSet<String>, Vec<&Call>)> = Vec::new();
    for call in calls {
        let spans = call.op.spans();
        let touched = all.iter().filter(|key| spans.iter().any(|span| span.contains(key)));
        let mut part: (BTreeSet<String>, Vec<&Call>) = (touched.cloned().collect(), vec![call]);
        let (joined, apart): (Vec<_>, Vec<_>) =
            parts.into_iter().partition(|(keys, _): &(BTreeSet<String>, _)| !keys.is_disjoint(&part.0));
        parts = apart;
        for (keys, calls) in joined {
            part.0.extend(keys);
            part.1.extend(calls);
        }
        parts.push(part);
    }
    parts
}

/// Whether its effects can be told without revisions and clocks.
fn is_judged(call: &Call) -> bool {
    let forever = |attach: &Attach| *attach == Attach::Forever;
    match &call.op {
        Op::Set { attach, .. } => forever(attach),
        Op::Txn { when, then, otherwise } => {
            let stays = |step: &Step| !matches!(step, Step::Put { attach, .. } if !forever(attach));
            // Which branch ran, only an answer tells.
            let told = call.outcome == Outcome::Ok || when.iter().all(|condition| is_plain(&condition.test));
            told && then.iter().chain(otherwise).all(stays)
        }
        _ => true,
    }
}

fn is_plain(test: &Test) -> bool {
    matches!(test, Test::Absent | Test::Present | Test::ValueIs(_) | Test::ValueIsNot(_) | Test::VersionIs(_))
}

/// The [`Model`] of some keys: their values, and how often each was put since it was created.
struct Keys;

type Held = BTreeMap<String, (String, u64)>;

impl Model for Keys {
    type Op = Op;
    type Answer = Answer;
    type State = Held;

    fn initial(&self) -> Held {
        Held::new()
    }

    fn step(&self, held: &Held, op: &Op, answer: Option<&Answer>) -> Option<Held> {
        match (op, answer) {
            (Op::Get { key, .. }, Some(Answer::Got(seen))) => same(held, key, seen.as_ref()).then(|| held.clone()),
            (Op::Range { keys, limit, reverse, .. }, Some(Answer::Listed { entries, more })) => {
                let mut there: Vec<_> = keys.of(held).collect();
                if *reverse {
                    there.reverse();
                }
                let limit = limit.map_or(usize::MAX, |limit| limit as usize);
                let right = *more == (there.len() > limit) && same_list(there.into_iter().take(limit), entries);
                right.then(|| held.clone())
            }
            (Op::Set { key, value, only, .. }, answer) => set(held, key, value, *only, answer),
            (Op::Delete { keys, if_revision }, answer) => delete(held, keys, if_revision.is_some(), answer),
            (Op::Txn { when, then, otherwise }, answer) => txn(held, when, then, otherwise, answer),
            _ => None,
        }
    }
}

fn same(held: &Held, key: &str, seen: Option<&Seen>) -> bool {
    match (held.get(key), seen) {
        (None, None) => true,
        (Some((value, version)), Some(seen)) => seen.value == *value && seen.version == *version,
        _ => false,
    }
}

fn same_list<'a>(there: impl Iterator<Item = (&'a String, &'a (String, u64))>, entries: &[(String, Seen)]) -> bool {
    let there = there.map(|(key, (value, version))| (key, value, *version));
    there.eq(entries.iter().map(|(key, seen)| (key, &seen.value, seen.version)))
}

fn put(held: &mut Held, key: &str, value: &str) {
    let version = held.get(key).map_or(0, |(_, version)| *version) + 1;
    held.insert(key.to_owned(), (value.to_owned(), version));
}

fn set(held: &Held, key: &str, value: &str, only: Only, answer: Option<&Answer>) -> Option<Held> {
    let there = held.contains_key(key);
    let may = match only {
        Only::Always => (true, false),
        Only::Absent => (!there, there),
        Only::Present => (there, !there),
        // Which revision it has is not known here.
        Only::Revision(_) => (true, true),
    };
    let right = match answer {
        Some(Answer::Conflict(seen)) => return (may.1 && same(held, key, seen.as_ref())).then(|| held.clone()),
        Some(Answer::Replaced(prev)) => may.0 && same(held, key, prev.as_ref()),
        Some(Answer::Written) => may.0,
        Some(_) => false,
        // It changed nothing, which is as good as not having happened.
        None => may.0,
    };
    right.then(|| {
        let mut held = held.clone();
        put(&mut held, key, value);
        held
    })
}

fn delete(held: &Held, keys: &Span, conditional: bool, answer: Option<&Answer>) -> Option<Held> {
    let gone: Vec<String> = keys.of(held).map(|(key, _)| key.clone()).collect();
    let right = match answer {
        Some(Answer::Deleted(0)) if conditional => return Some(held.clone()),
        Some(Answer::Deleted(count)) => *count == gone.len() as u64,
        Some(_) => false,
        None => true,
    };
    right.then(|| {
        held.iter().filter(|(key, _)| !gone.contains(key)).map(|(key, at)| (key.clone(), at.clone())).collect()
    })
}

fn txn(held: &Held, when: &[Condition], then: &[Step], otherwise: &[Step], answer: Option<&Answer>) -> Option<Held> {
    let told = match answer {
        Some(Answer::Txn { failed, changed, results }) => Some((failed.map(|place| place as usize), changed, results)),
        Some(_) => return None,
        None => None,
    };
    let computed = when.iter().position(|condition| holds(held, condition) == Some(false));
    let failed = match told {
        None => computed,
        // Conditions that cannot be judged here are taken as they were told.
        Some((Some(failed), ..)) if computed.is_some_and(|place| place < failed) => return None,
        Some((Some(failed), ..)) if holds(held, when.get(failed)?) == Some(true) => return None,
        Some((None, ..)) if computed.is_some() => return None,
        Some((failed, ..)) => failed,
    };
    let mut next = held.clone();
    let mut answers = Vec::new();
    let branch = if failed.is_none() { then } else { otherwise };
    for step in branch {
        answers.push(run(held, &mut next, step));
    }
    let changed = branch.iter().zip(&answers).any(|(step, removed)| matches!(step, Step::Put { .. }) || *removed > 0);
    let right = told.is_none_or(|(_, told_changed, results)| {
        let results = results.as_deref();
        *told_changed == changed && results.is_none_or(|results| right_results(held, branch, &answers, results))
    });
    right.then_some(next)
}

/// Carries one step out; how many keys it removed.
fn run(before: &Held, next: &mut Held, step: &Step) -> u64 {
    match step {
        Step::Put { key, value, .. } => put(next, key, value),
        Step::Remove(keys) => {
            let gone: Vec<&String> = keys.of(before).map(|(key, _)| key).collect();
            gone.iter().for_each(|key| drop(next.remove(*key)));
            return gone.len() as u64;
        }
        Step::Read(_) | Step::List(_) => {}
    }
    0
}

fn right_results(before: &Held, branch: &[Step], removed: &[u64], results: &[StepAnswer]) -> bool {
    let right = |((step, removed), result): ((&Step, &u64), &StepAnswer)| match (step, result) {
        (Step::Put { .. }, StepAnswer::Put) => true,
        (Step::Remove(_), StepAnswer::Removed(count)) => count == removed,
        (Step::Read(key), StepAnswer::Read(seen)) => same(before, key, seen.as_ref()),
        (Step::List(keys), StepAnswer::List(entries)) => same_list(keys.of(before), entries),
        _ => false,
    };
    branch.len() == results.len() && branch.iter().zip(removed).zip(results).all(right)
}

/// Whether a condition holds; `None` if that cannot be told.
fn holds(held: &Held, Condition { keys, test }: &Condition) -> Option<bool> {
    let mut there = keys.of(held).map(|(_, state)| state);
    let one = keys.as_key().is_some();
    match test {
        Test::Absent => Some(there.next().is_none()),
        Test::Present => Some(there.next().is_some()),
        Test::ValueIs(value) if one => Some(there.next().is_some_and(|state| state.0 == *value)),
        Test::ValueIs(value) => Some(there.all(|state| state.0 == *value)),
        Test::ValueIsNot(value) if one => Some(there.next().is_some_and(|state| state.0 != *value)),
        Test::ValueIsNot(value) => Some(there.all(|state| state.0 != *value)),
        Test::VersionIs(version) if one => Some(there.next().map_or(0, |state| state.1) == *version),
        Test::VersionIs(version) => Some(there.all(|state| state.1 == *version)),
        _ => None,
    }
}
