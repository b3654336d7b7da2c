//! A store of its own, and histories that are right by construction: every call takes place at one moment between its
//! beginning and its end, in the order of those moments.

use std::collections::BTreeMap;

use crate::sim::check::{
    Answer, Attach, Call, Change, Commit, CommitLog, Condition, History, Kind, Moment, Only, Op, Outcome, Seen, Span,
    Step, StepAnswer, Test,
};
use crate::types::{LeaseId, Revision};

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(super) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

pub(super) fn rev(revision: u64) -> Revision {
    Revision::new(revision)
}

/// The first put of a key, at `revision`.
pub(super) fn seen(value: &str, revision: u64) -> Seen {
    Seen { value: value.into(), created: rev(revision), modified: rev(revision), version: 1, lease: None }
}

/// The commit of a first put.
pub(super) fn put(revision: u64, key: &str, value: &str) -> Commit {
    put_seen(key, seen(value, revision))
}

pub(super) fn put_seen(key: &str, now: Seen) -> Commit {
    Commit::new(now.modified, vec![Change { key: key.into(), kind: Kind::Put, now: Some(now) }])
}

pub(super) fn gone(revision: u64, kind: Kind, keys: &[&str]) -> Commit {
    let change = |key: &&str| Change { key: (*key).into(), kind, now: None };
    Commit::new(rev(revision), keys.iter().map(change).collect())
}

/// A call of client 1 that was answered; times in units of a millisecond.
pub(super) fn call(id: u64, times: (u64, u64), op: Op, answer: Answer, revision: impl Into<Option<u64>>) -> Call {
    Call {
        client: 1,
        id,
        op,
        invoked_ns: times.0 * 1_000_000,
        returned_ns: Some(times.1 * 1_000_000),
        outcome: Outcome::Ok,
        response: Some(answer),
        revision: revision.into().map(rev),
        ticket: None,
    }
}

/// The same without an answer.
pub(super) fn ended(call: Call, outcome: Outcome) -> Call {
    Call { outcome, response: None, revision: None, ..call }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    pub(super) keys: BTreeMap<String, Seen>,
    pub(super) commits: Vec<Commit>,
    /// What was there at each revision.
    past: Vec<BTreeMap<String, Seen>>,
    leases_ended: Vec<u64>,
    fresh_lease: u64,
}

impl Store {
    pub(super) fn new() -> Self {
        Store { past: vec![BTreeMap::new()], fresh_lease: 1000, ..Store::default() }
    }

    fn revision(&self) -> u64 {
        self.commits.len() as u64
    }

    fn commit(&mut self, changes: Vec<Change>) -> bool {
        if changes.is_empty() {
            return false;
        }
        for change in &changes {
            match &change.now {
                Some(now) => self.keys.insert(change.key.clone(), now.clone()),
                None => self.keys.remove(&change.key),
            };
        }
        self.commits.push(Commit::new(rev(self.revision() + 1), changes));
        self.past.push(self.keys.clone());
        true
    }

    fn put(&mut self, key: &str, value: &str, attach: Attach) -> Change {
        let revision = rev(self.revision() + 1);
        let lease = match attach {
            Attach::Forever => None,
            Attach::Lease(lease) => Some(lease),
            Attach::Ttl(_) => {
                self.fresh_lease += 1;
                Some(LeaseId::new(self.fresh_lease))
            }
        };
        let old = self.keys.get(key);
        let (created, version) = old.map_or((revision, 1), |old| (old.created, old.version + 1));
        let now = Seen { value: value.into(), created, modified: revision, version, lease };
        Change { key: key.into(), kind: Kind::Put, now: Some(now) }
    }

    fn remove(&self, keys: &Span) -> Vec<Change> {
        let inside = self.keys.keys().filter(|key| keys.contains(key));
        inside.map(|key| Change { key: key.clone(), kind: Kind::Deleted, now: None }).collect()
    }

    fn list(&self, keys: &Span) -> Vec<(String, Seen)> {
        let inside = self.keys.iter().filter(|(key, _)| keys.contains(key));
        inside.map(|(key, seen)| (key.clone(), seen.clone())).collect()
    }

    /// Carries an operation out; the answer, and the revision if one comes with it.
    pub(super) fn apply(&mut self, op: &Op) -> (Answer, Option<u64>) {
        match op {
            Op::Get { key, .. } => (Answer::Got(self.keys.get(key).cloned()), None),
            Op::Range { keys, .. } => (Answer::Listed { entries: self.list(keys), more: false }, None),
            Op::Set { key, value, only, attach } => {
                let old = self.keys.get(key).cloned();
                let holds = match only {
                    Only::Always => true,
                    Only::Absent => old.is_none(),
                    Only::Present => old.is_some(),
                    Only::Revision(revision) => old.as_ref().is_some_and(|old| old.modified == *revision),
                };
                if !holds {
                    return (Answer::Conflict(old), None);
                }
                let change = self.put(key, value, *attach);
                self.commit(vec![change]);
                // Some callers ask for what was there.
                let answer = if *only == Only::Present { Answer::Replaced(old) } else { Answer::Written };
                (answer, Some(self.revision()))
            }
            Op::Delete { keys, .. } => {
                let changes = self.remove(keys);
                let count = changes.len() as u64;
                self.commit(changes);
                (Answer::Deleted(count), Some(self.revision()))
            }
            Op::Txn { when, then, otherwise } => {
                let holds = |condition: &Condition| match &condition.test {
                    Test::Absent => self.list(&condition.keys).is_empty(),
                    Test::ValueIs(value) => {
                        self.list(&condition.keys).first().is_some_and(|(_, seen)| seen.value == *value)
                    }
                    other => unreachable!("the generator makes no {other:?}"),
                };
                let failed = when.iter().position(|condition| !holds(condition));
                let (mut changes, mut results) = (Vec::new(), Vec::new());
                for step in if failed.is_some() { otherwise } else { then } {
                    results.push(match step {
                        Step::Put { key, value, attach } => {
                            changes.push(self.put(key, value, *attach));
                            StepAnswer::Put
                        }
                        Step::Remove(keys) => {
                            let gone = self.remove(keys);
                            changes.extend(gone.iter().cloned());
                            StepAnswer::Removed(gone.len() as u64)
                        }
                        Step::Read(key) => StepAnswer::Read(self.keys.get(key).cloned()),
                        Step::List(keys) => StepAnswer::List(self.list(keys)),
                    });
                }
                let changed = self.commit(changes);
                let failed = failed.map(|place| place as u32);
                (Answer::Txn { failed, changed, results: Some(results) }, Some(self.revision()))
            }
            other => unreachable!("the generator makes no {other:?}"),
        }
    }

    /// Ends a lease as if its time were over.
    fn expire(&mut self, lease: u64) {
        self.leases_ended.push(lease);
        let on_it = self.keys.iter().filter(|(_, seen)| seen.lease == Some(LeaseId::new(lease)));
        let changes = on_it.map(|(key, _)| Change { key: key.clone(), kind: Kind::Expired, now: None }).collect();
        self.commit(changes);
    }
}

/// What a generated history is made of.
#[derive(Copy, Clone)]
pub(super) struct Shape {
    pub(super) clients: u64,
    pub(super) calls_each: u64,
    pub(super) keys: &'static [&'static str],
    pub(super) leases: bool,
    pub(super) stale_reads: bool,
    pub(super) unknown_one_in: u64,
}

pub(super) const SMALL: Shape =
    Shape { clients: 4, calls_each: 12, keys: &["a", "b", "c"], leases: true, stale_reads: true, unknown_one_in: 8 };

/// A history that is right, and what was committed.
pub(super) fn right_history(seed: u64, shape: Shape) -> (History, CommitLog) {
    let mut rng = Rng(seed);
    let mut calls = Vec::new();
    // (when it takes place, place in `calls`)
    let mut moments = Vec::new();
    for client in 1..=shape.clients {
        let mut now = rng.below(100);
        for id in 0..shape.calls_each {
            let invoked = now + 1 + rng.below(300);
            let mut moment = invoked + 1 + rng.below(300);
            let returned = moment + 1 + rng.below(300);
            now = returned;
            let op = random_op(&mut rng, &shape, client * 1000 + id);
            let outcome = match rng.below(shape.unknown_one_in) {
                0 => Outcome::Unknown,
                1 if rng.one_in(4) => Outcome::Fail,
                _ => Outcome::Ok,
            };
            let happens = outcome == Outcome::Ok || (outcome == Outcome::Unknown && rng.one_in(2));
            if outcome == Outcome::Unknown {
                // It may take place long after the client gave up.
                moment = invoked + 1 + rng.below(2000);
            }
            if happens {
                moments.push((moment, calls.len()));
            }
            let returned_ns = Some(returned).filter(|_| outcome != Outcome::Unknown || rng.one_in(2));
            calls.push(Call {
                client,
                id,
                op,
                invoked_ns: invoked,
                returned_ns,
                outcome,
                response: None,
                revision: None,
                ticket: None,
            });
        }
    }
    moments.sort_unstable();
    let mut store = Store::new();
    let mut floors = BTreeMap::new();
    for (_, place) in moments {
        if shape.leases && rng.one_in(10) {
            store.expire(1 + rng.below(3));
        }
        take_place(&mut calls[place], &mut store, &mut floors, &mut rng);
    }
    (History::new(calls), CommitLog::complete(store.commits))
}

fn take_place(call: &mut Call, store: &mut Store, floors: &mut BTreeMap<u64, u64>, rng: &mut Rng) {
    let dead = |attach: &Attach| matches!(attach, Attach::Lease(lease) if store.leases_ended.contains(&lease.get()));
    if let Op::Set { attach, .. } = &call.op
        && dead(attach)
    {
        if call.outcome == Outcome::Ok {
            call.outcome = Outcome::Fail;
        }
        return;
    }
    if let Op::Get { moment: Moment::Linearizable, .. } | Op::Range { moment: Moment::Linearizable, .. } = call.op {
        floors.insert(call.client, store.revision());
    }
    let (answer, revision) = match &call.op {
        Op::Get { key, moment: Moment::Stale } => {
            let floor = floors.entry(call.client).or_insert(0);
            *floor += rng.below(store.revision() - *floor + 1);
            (Answer::Got(store.past[*floor as usize].get(key).cloned()), None)
        }
        op => store.apply(op),
    };
    if call.outcome == Outcome::Ok {
        call.response = Some(answer);
        call.revision = revision.map(rev);
    }
}

fn random_op(rng: &mut Rng, shape: &Shape, unique: u64) -> Op {
    let key = (*rng.pick(shape.keys)).to_owned();
    let value = format!("v{unique}");
    match rng.below(12) {
        0 if shape.stale_reads => Op::Get { key, moment: Moment::Stale },
        0..4 => Op::get(key),
        4 => Op::range(Span::all()),
        5 => Op::delete(&*key),
        6 => Op::set_only(key, value, Only::Absent),
        7 => Op::set_only(key, value, Only::Present),
        8 if shape.leases => {
            let attach = if rng.one_in(3) { Attach::Ttl(500) } else { Attach::Lease(LeaseId::new(1 + rng.below(3))) };
            Op::Set { key, value, only: Only::Always, attach }
        }
        9 => {
            let other = *rng.pick(shape.keys);
            let condition = Condition { keys: Span::key(other), test: Test::Absent };
            let mut then = vec![Step::put(key.clone(), value.clone()), Step::Read(other.into())];
            if other != key {
                then.push(Step::Remove(Span::key(other)));
            }
            Op::Txn {
                when: vec![condition],
                then,
                otherwise: vec![Step::List(Span::all()), Step::put(key, format!("{value}e"))],
            }
        }
        _ => Op::set(key, value),
    }
}
