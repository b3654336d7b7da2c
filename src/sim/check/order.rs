//! The revision-order oracle: does every answer fit the one order that the revisions give?
//!
//! Every acknowledged write tells its revision, and the [`CommitLog`] tells what happened at each. So the order is given,
//! and what is left to check is quick, however long the history: each answer must be what a plain model computes at its
//! revision, and the revisions must agree with real time. A read that does not tell which revision it saw gets the
//! earliest one that fits its answer and everything that was over before it began; if none does, it saw what it must not.
//!
//! [`linearizable`](super::linearizable) looks at the same histories without believing in revisions.

use std::collections::BTreeMap;

use super::attribution::{Attribution, attribute, claims_change};
use super::history::{Call, History};
use super::log::{CommitLog, outside};
use super::op::{Answer, Moment, Op, Resolution, Seen, Span, StepAnswer};
use super::replay::{View, agrees, same_changes};
use super::timeline::Timeline;
use super::violation::{Property, Violation};
use crate::types::Revision;

/// Holds a history against the commits: strict serializability (KV1 to KV8), exactly once (X1, X4), nothing acknowledged
/// is lost (D1), and the log against itself.
///
/// # Examples
/// ```
/// use quorate::sim::check::{Answer, Change, Commit, CommitLog, Kind, Op, OrderCheck, Property, Recorder, Seen};
/// use quorate::Revision;
///
/// let one = Revision::new(1);
/// let seen = Seen { value: "a".into(), created: one, modified: one, version: 1, lease: None };
/// let put = Change { key: "owner".into(), kind: Kind::Put, now: Some(seen.clone()) };
/// let log = CommitLog::complete(vec![Commit::new(one, vec![put])]);
///
/// let ticks = std::sync::atomic::AtomicU64::new(0);
/// let recorder: Recorder = Recorder::new(move || ticks.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
/// recorder.invoke(1, Op::set("owner", "a")).ok(Answer::Written, Some(one));
/// recorder.invoke(2, Op::get("owner")).ok(Answer::Got(Some(seen)), None);
/// assert!(OrderCheck::new().check(&recorder.history(), &log).is_empty());
///
/// // A read that began after the write had been acknowledged, and does not show it.
/// recorder.invoke(2, Op::get("owner")).ok(Answer::Got(None), None);
/// let violations = OrderCheck::new().check(&recorder.history(), &log);
/// assert_eq!(violations[0].property, Property::Kv8);
/// ```
#[derive(Clone, Debug, Default)]
pub struct OrderCheck {
    strangers: Vec<Span>,
}

impl OrderCheck {
    /// A check of a history that holds every write of every key.
    pub fn new() -> Self {
        OrderCheck::default()
    }

    /// Keys in `keys` may be written by others than the recorded clients.
    pub fn strangers(mut self, keys: Span) -> Self {
        self.strangers.push(keys);
        self
    }

    /// Every broken promise that is found; nothing else means that all hold.
    pub fn check(&self, history: &History, log: &CommitLog) -> Vec<Violation> {
        let timeline = Timeline::new(log);
        let mut violations = log.check();
        let Attribution { effects, violations: found } = attribute(history, log, &timeline, &self.strangers);
        violations.extend(found);
        let judging = Judging { calls: history.calls(), log, timeline: &timeline, effects, strangers: &self.strangers };
        violations.extend(judging.effects());
        violations.extend(judging.sweep());
        violations
    }
}

struct Judging<'a> {
    calls: &'a [Call],
    log: &'a CommitLog,
    timeline: &'a Timeline,
    effects: Vec<Option<u64>>,
    strangers: &'a [Span],
}

/// A revision that must not be gone behind, and the call that shows it.
#[derive(Copy, Clone, Debug, Default)]
struct Floor {
    revision: u64,
    witness: Option<usize>,
}

impl Floor {
    fn raise(&mut self, revision: u64, witness: usize) {
        if revision > self.revision {
            *self = Floor { revision, witness: Some(witness) };
        }
    }
}

impl Judging<'_> {
    /// Each write against the model: what it answered, and what it changed.
    fn effects(&self) -> Vec<Violation> {
        let judged = self.calls.iter().zip(&self.effects).filter_map(|(call, effect)| {
            // Below the log's beginning nothing is known; what is missing above it has been reported.
            let commit = self.log.at(Revision::new((*effect)?))?;
            let before = View { timeline: self.timeline, revision: commit.revision.get() - 1 };
            let should = before.run(&call.op)?;
            let wanted = should.changes.iter().filter(|wanted| !self.strange(&wanted.key)).cloned().collect::<Vec<_>>();
            if !same_changes(&wanted, outside(commit, self.strangers)) {
                let what = format!("a write at revision {} did something else than it was asked to", commit.revision);
                return Some(Violation::new(Property::Kv3, what).with(call).with(commit));
            }
            let (told, _) = call.answered()?;
            if agrees(told, &should.answer) {
                return None;
            }
            let what = format!("a write at revision {} should have answered {:?}", commit.revision, should.answer);
            Some(Violation::new(misanswer(told), what).with(call).with(commit))
        });
        judged.collect()
    }

    fn strange(&self, key: &str) -> bool {
        self.strangers.iter().any(|span| span.contains(key))
    }

    /// Goes through the calls in the order in which they began, and gives each its revision.
    fn sweep(&self) -> Vec<Violation> {
        let mut ended: Vec<usize> =
            (0..self.calls.len()).filter(|place| self.calls[*place].answered().is_some()).collect();
        ended.sort_by_key(|place| self.calls[*place].returned_ns);
        let mut ended = ended.into_iter().peekable();
        let (mut floor, mut reads) = (Floor::default(), BTreeMap::<u64, Floor>::new());
        let mut positions = vec![0; self.calls.len()];
        let mut violations = Vec::new();
        for (place, call) in self.calls.iter().enumerate() {
            while let Some(over) = ended.next_if(|over| self.calls[*over].returned_ns < Some(call.invoked_ns)) {
                floor.raise(positions[over], over);
                if matches!(self.calls[over].op, Op::Get { .. } | Op::Range { .. }) {
                    reads.entry(self.calls[over].client).or_default().raise(positions[over], over);
                }
            }
            let floor = match call.op {
                Op::Get { moment, .. } | Op::Range { moment, .. } if moment != Moment::Linearizable => {
                    let mut own = reads.get(&call.client).copied().unwrap_or_default();
                    if let Moment::AtLeast(revision) = moment {
                        own.raise(revision.get(), place);
                    }
                    own
                }
                _ => floor,
            };
            let (position, violation) = self.judge(place, floor);
            positions[place] = position;
            violations.extend(violation);
        }
        violations
    }

    /// The revision at which the call took place, and what is wrong with that.
    fn judge(&self, place: usize, floor: Floor) -> (u64, Option<Violation>) {
        let call = &self.calls[place];
        if let Some(effect) = self.effects[place] {
            let late = floor.revision >= effect;
            let what = || format!("a write made revision {effect} after revision {} had been shown", floor.revision);
            return (effect, late.then(|| self.behind(Property::Kv1, what(), place, floor)));
        }
        let Some((told, _)) = call.answered() else { return (floor.revision, None) };
        if let Answer::Resolved(Resolution::Applied(revision)) = told {
            return (floor.revision.max(revision.get()), None);
        }
        let changes_keys = claims_change(call);
        match call.revision {
            _ if changes_keys || call.op.spans().is_empty() => (floor.revision, None),
            Some(revision) => self.judge_at(place, revision.get(), floor),
            None => self.place_read(place, floor),
        }
    }

    /// A call that changed nothing and tells its revision.
    fn judge_at(&self, place: usize, revision: u64, floor: Floor) -> (u64, Option<Violation>) {
        let call = &self.calls[place];
        if revision < floor.revision {
            let what = format!("revision {revision} was shown after revision {}", floor.revision);
            return (revision, Some(self.behind(order_property(call), what, place, floor)));
        }
        if revision < self.timeline.first() || self.fits(call, revision) {
            return (revision, None);
        }
        let should = View { timeline: self.timeline, revision }.run(&call.op).map(|should| should.answer);
        let what = format!("at revision {revision} the answer should have been {should:?}");
        (revision, Some(Violation::new(self.misread(call), what).with(call)))
    }

    /// A call that changed nothing and does not tell its revision: the earliest one that fits.
    fn place_read(&self, place: usize, floor: Floor) -> (u64, Option<Violation>) {
        let call = &self.calls[place];
        let spans = call.op.spans();
        let newest_seen = call.response.iter().flat_map(seen_in).map(|seen| seen.modified.get()).max();
        let mut at = floor.revision.max(newest_seen.unwrap_or(0)).max(self.timeline.first());
        loop {
            if self.fits(call, at) {
                return (at, None);
            }
            let next = spans.iter().filter_map(|keys| self.timeline.next_change(keys, at)).min();
            match next {
                Some(next) => at = next,
                None => break,
            }
        }
        let what = format!("no revision from {} on fits the answer", floor.revision);
        (floor.revision, Some(self.behind(self.misread(call), what, place, floor)))
    }

    /// Whether the answer is the right one at `revision`, for a call that changes nothing.
    fn fits(&self, call: &Call, revision: u64) -> bool {
        let should = View { timeline: self.timeline, revision }.run(&call.op);
        let told = call.response.as_ref();
        should.is_some_and(|should| should.changes.is_empty() && told.is_some_and(|told| agrees(told, &should.answer)))
    }

    /// What is broken if a read shows what it should not.
    fn misread(&self, call: &Call) -> Property {
        let keyed = call.response.iter().flat_map(keyed_seen_in(&call.op));
        let mut phantoms =
            keyed.filter(|(key, seen)| seen.modified.get() > self.timeline.first() && !self.timeline.held(key, seen));
        if phantoms.next().is_some() {
            return Property::Kv4;
        }
        match &call.response {
            _ if order_property(call) == Property::Kv5 => Property::Kv5,
            Some(Answer::Got(None)) => Property::Kv8,
            Some(Answer::Txn { .. } | Answer::Conflict(_) | Answer::Deleted(_)) => Property::Kv3,
            _ => Property::Kv1,
        }
    }

    fn behind(&self, property: Property, what: String, place: usize, floor: Floor) -> Violation {
        let violation = Violation::new(property, what).with(&self.calls[place]);
        match floor.witness.filter(|witness| *witness != place) {
            Some(witness) => violation.with(&self.calls[witness]),
            None => violation,
        }
    }
}

/// What is broken if the call is out of order.
fn order_property(call: &Call) -> Property {
    match call.op {
        Op::Get { moment, .. } | Op::Range { moment, .. } if moment != Moment::Linearizable => Property::Kv5,
        _ => Property::Kv1,
    }
}

/// What is broken if a write answers something else than it should.
fn misanswer(told: &Answer) -> Property {
    match told {
        Answer::Replaced(_) => Property::Kv7,
        _ => Property::Kv3,
    }
}

/// Everything an answer says of keys.
fn seen_in(answer: &Answer) -> Vec<&Seen> {
    match answer {
        Answer::Got(seen) | Answer::Conflict(seen) | Answer::Replaced(seen) => seen.iter().collect(),
        Answer::Listed { entries, .. } => entries.iter().map(|(_, seen)| seen).collect(),
        Answer::Txn { results: Some(results), .. } => results.iter().flat_map(seen_in_step).collect(),
        _ => Vec::new(),
    }
}

fn seen_in_step(answer: &StepAnswer) -> Vec<&Seen> {
    match answer {
        StepAnswer::Read(seen) => seen.iter().collect(),
        StepAnswer::List(entries) => entries.iter().map(|(_, seen)| seen).collect(),
        StepAnswer::Put | StepAnswer::Removed(_) => Vec::new(),
    }
}

/// Keys and what the answer to `op` says of them, where it names or implies the key.
fn keyed_seen_in(op: &Op) -> impl Fn(&Answer) -> Vec<(String, Seen)> {
    let key = op.spans().first().and_then(Span::as_key).map(str::to_owned);
    move |answer| match (answer, &key) {
        (Answer::Got(Some(seen)) | Answer::Conflict(Some(seen)), Some(key)) => vec![(key.clone(), seen.clone())],
        (Answer::Listed { entries, .. }, _) => entries.clone(),
        _ => Vec::new(),
    }
}
