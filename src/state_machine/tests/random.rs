//! Random commands, applied three times: by the plain model, by a machine that runs straight through, and by one that is
//! restarted, crashed, replaced by its snapshot and swept at random points. All three must agree at every step.

use std::collections::BTreeMap;

use super::super::read::{self, ReadError};
use super::super::state::RECORD_OVERHEAD_BYTES;
use super::model::{Event, Model, Outcome};
use super::*;
use crate::choices::Choices;
use crate::command::{Refusal, Resolution};
use crate::format::command::{decode_proposal, decode_response, encode_proposal, encode_response};

#[cfg(test)]
const SEEDS: std::ops::Range<u64> = 0..200;
/// Most commands of one run: the model goes through everything that ever happened.
const STEPS: usize = 120;

/// Runs commands of these choices, as many as there are choices for; panics where the three differ.
pub(crate) fn run(name: &str, choices: Choices, marks: &mut Marks) {
    Run::new(name, choices).run(marks);
}

#[test]
fn random_commands_come_to_the_same_however_they_are_batched_restarted_restored_or_swept() {
    let mut marks = Marks::default();
    for seed in SEEDS {
        run(&format!("seed {seed}"), Choices::seeded(seed), &mut marks);
    }
    for mark in EXPECTED_MARKS {
        assert!(marks.contains_key(mark), "no run came to: {mark} (marks: {marks:?})");
    }
}

/// What has happened at least once over all seeds. A test that never meets a double proves nothing about doubles.
pub(crate) type Marks = BTreeMap<&'static str, u64>;

#[cfg(test)]
const EXPECTED_MARKS: [&str; 20] = [
    "answer repeated",
    "answer repeated without results",
    "applied resolved",
    "client refused",
    "crash lost entries",
    "duplicate key refused",
    "expired keys",
    "expiry void",
    "forgotten refused",
    "history swept",
    "lease not found",
    "lease of a client ended",
    "never resolved",
    "no effect resolved",
    "read refused as compacted",
    "sealed refused",
    "snapshot with garbage restored",
    "too far ahead refused",
    "unknowable resolved",
    "version refused",
];

struct Run {
    name: String,
    rng: Choices,
    model: Model,
    straight: Machine,
    churned: Machine,
    /// The churned machine's rows as of its last commit, and how much of the log they hold.
    committed: (MemRows, usize),
    log: Vec<(LogId, Proposal)>,
}

impl Run {
    fn new(name: &str, rng: Choices) -> Self {
        let (model, straight, churned) = (Model::default(), Machine::new(), Machine::new());
        let (committed, log) = Default::default();
        Run { name: name.to_owned(), rng, model, straight, churned, committed, log }
    }

    fn run(mut self, marks: &mut Marks) {
        for step in 0..STEPS {
            if !self.rng.more() {
                break;
            }
            let context = format!("{} step {step}", self.name);
            self.step(&context, marks);
            self.churn(&context, marks);
            self.compare_counters(&context);
            self.compare_reads(&context, marks);
            if step % 12 == 11 {
                self.straight.check(&context);
                self.churned.check(&context);
                // Saving is a commit: what has been checked is not rolled back.
                self.committed = (self.churned.rows.clone(), self.log.len());
            }
        }
        self.straight.sweep_all();
        self.churned.sweep_all();
        self.compare_counters(&format!("{} swept", self.name));
        self.straight.check("the end");
        self.churned.check("the end");
        assert_eq!(self.straight.rows.records, self.churned.rows.records, "{}", self.name);
        assert_eq!(self.straight.rows.snapshot(), self.churned.rows.snapshot(), "{}", self.name);
    }

    fn step(&mut self, context: &str, marks: &mut Marks) {
        let terms = LeaderId { term: 1 + self.log.len() as u64 / 40, node: NodeId::new(self.rng.below(2)) };
        let recent = &self.log[self.log.len().saturating_sub(8)..];
        let proposal = match recent.is_empty() || !self.rng.one_in(4) {
            true => self.proposal(),
            false => self.rng.pick(recent).1,
        };
        let encoded = encode_proposal(&proposal);
        assert_eq!(decode_proposal(encoded).as_ref(), Ok(&proposal), "{context}");
        let at = LogId { leader: terms, index: self.log.len() as u64 + 1 };
        self.log.push((at, proposal.clone()));

        let expected = self.model.apply(at.leader, &proposal);
        if self.rng.one_in(2) {
            self.churned.state.foresee([&proposal].into_iter());
        }
        for machine in [&mut self.straight, &mut self.churned] {
            let (response, effects) = machine.state.apply(&mut machine.rows, at, &proposal).unwrap();
            assert_eq!(decode_response(encode_response(&response)).as_ref(), Ok(&response), "{context}");
            let leases = Model::lease_changes(&effects.leases);
            let found = Outcome { response, events: effects.changes.iter().map(event).collect(), leases };
            assert_eq!(found, expected, "{context}: {proposal:?} at {at}");
        }
        mark(&expected, marks);
    }

    fn churn(&mut self, context: &str, marks: &mut Marks) {
        let node = &mut self.churned;
        match self.rng.below(20) {
            0 => {
                if self.committed.1 < self.log.len() {
                    *marks.entry("crash lost entries").or_default() += 1;
                }
                *node = Machine::open(self.committed.0.clone());
                for (at, proposal) in &self.log[self.committed.1..] {
                    node.state.apply(&mut node.rows, *at, proposal).unwrap();
                }
            }
            1 => {
                node.state.save(&mut node.rows).unwrap();
                let snapshot = node.rows.snapshot();
                let mut whole = Machine::open(snapshot.clone());
                whole.sweep_all();
                if whole.rows.records.len() < snapshot.records.len() {
                    *marks.entry("snapshot with garbage restored").or_default() += 1;
                }
                *node = Machine::open(snapshot);
                self.committed = (node.rows.clone(), self.log.len());
            }
            2 => {
                node.reopen();
                self.committed = (node.rows.clone(), self.log.len());
            }
            3..8 => {
                node.state.save(&mut node.rows).unwrap();
                self.committed = (node.rows.clone(), self.log.len());
            }
            8..12 => {
                let before = node.rows.records.len();
                let up_to = rev(self.rng.below(self.model.floor + 3));
                node.state.sweep(&mut node.rows, up_to, self.rng.below(6) as usize).unwrap();
                if node.rows.records.len() < before {
                    *marks.entry("history swept").or_default() += 1;
                }
                assert!(node.rows.records.len() <= before, "{context}");
            }
            _ => {}
        }
    }

    fn compare_counters(&self, context: &str) {
        let (found, churned) = (self.straight.counters(), self.churned.counters());
        assert_eq!(found, churned, "{context}: straight and churned");
        let expected = (rev(self.model.revision), rev(self.model.floor), self.model.counts());
        let counts = (found.keys, found.leases, found.clients, found.cluster_version);
        assert_eq!((found.revision, found.floor, counts), expected, "{context}");
        assert_eq!(found.bytes, self.model.logical_bytes(RECORD_OVERHEAD_BYTES.into()), "{context}");
        let leases: Vec<u64> = self.straight.state.leases().iter().map(|(lease, _)| lease.get()).collect();
        assert_eq!(leases, self.model.lease_ids(), "{context}");
    }

    /// Reads the whole store at some revision, and the changes after some revision, on both machines.
    fn compare_reads(&mut self, context: &str, marks: &mut Marks) {
        let at = self.rng.below(self.model.revision + 1);
        let keys = self.range();
        let reverse = self.rng.one_in(2);
        let mut expected = self.model.entries(at, &keys);
        if reverse {
            expected.reverse();
        }
        let changes_after: Vec<Event> = self.model.events.iter().filter(|event| event.revision > at).cloned().collect();
        for (floor, machine) in [(rev(0), &self.straight), (rev(self.model.floor), &self.churned)] {
            let index = machine.state.index();
            let limit = 1 + self.rng.below(4) as usize;
            match read::range(index, &machine.rows, rev(at), &keys, limit, reverse) {
                Ok((found, more)) => {
                    assert_eq!(found, expected[..limit.min(expected.len())], "{context}: {keys:?} at {at}");
                    assert_eq!(more, expected.len() > limit, "{context}");
                    assert_eq!(read::count(index, rev(at), &keys).unwrap(), expected.len() as u64, "{context}");
                }
                Err(ReadError::Compacted { oldest }) => {
                    assert!(rev(at) < oldest && oldest <= rev(self.model.floor), "{context}: {at} {oldest}");
                    *marks.entry("read refused as compacted").or_default() += 1;
                }
                Err(error) => panic!("{context}: {error}"),
            }
            if rev(at) < floor {
                let refused = read::changes(index, &machine.rows, floor, rev(at + 1), machine.revision(), 1);
                assert!(matches!(refused, Err(ReadError::Compacted { .. })), "{context}: {refused:?}");
                continue;
            }
            let (mut from, mut found) = (rev(at + 1), Vec::new());
            while from <= machine.revision() {
                let (some, complete) =
                    read::changes(index, &machine.rows, floor, from, machine.revision(), limit).unwrap();
                found.extend(some.iter().map(event));
                from = complete.next();
            }
            assert_eq!(found, changes_after, "{context}: changes after {at}");
        }
    }

    fn proposal(&mut self) -> Proposal {
        let command = self.command();
        let stamp = match self.rng.below(10) {
            0..4 => None,
            _ => Some(self.stamp()),
        };
        Proposal { origin: NodeId::new(self.rng.below(3)), wall_ms: self.rng.below(1 << 40), stamp, command }
    }

    fn stamp(&mut self) -> Stamp {
        let (client, low) = self.client();
        let seq = low + self.rng.pick(&[0, 0, 1, 1, 2, 2, 3, 5, 4095, 4096, 4100]);
        let seq = seq.saturating_sub(self.rng.pick(&[0, 0, 0, 0, 1, 2]));
        let low = self.rng.pick(&[0, 0, 0, low, low, low + 1, seq.saturating_sub(1), seq, seq + 1]);
        Stamp { client, seq, low }
    }

    fn command(&mut self) -> Command {
        match self.rng.below(100) {
            _ if self.model.counts().2 == 0 && self.rng.one_in(3) => Command::ClientOpen { ttl_ms: 9 },
            0..56 => Command::Txn(self.txn()),
            56..62 => Command::LeaseGrant { ttl_ms: 1 + self.rng.below(5) },
            62..66 => Command::LeaseRevoke { lease: self.lease() },
            66..74 => {
                let lease = self.lease();
                let term = 1 + self.log.len() as u64 / 40;
                Command::LeaseExpire { lease, issued_by: LeaderId { term, node: NodeId::new(self.rng.below(2)) } }
            }
            74..79 => Command::ClientOpen { ttl_ms: 1 + self.rng.below(5) },
            79..81 => Command::ClientClose { client: self.client().0 },
            81..91 => {
                let stamp = self.stamp();
                Command::Resolve { client: stamp.client, seq: stamp.seq }
            }
            91..98 => Command::Compact { floor: rev(self.rng.below(self.model.revision + 4)) },
            _ => Command::ClusterVersion { version: self.rng.below(4) as u32 },
        }
    }

    fn txn(&mut self) -> Txn {
        let compares = (0..self.rng.below(3)).map(|_| self.compare()).collect();
        let then = (0..self.rng.below(4)).map(|_| self.op()).collect();
        let otherwise = (0..self.rng.below(3)).map(|_| self.op()).collect();
        Txn { compares, then, otherwise }
    }

    fn compare(&mut self) -> Compare {
        let order = self.rng.pick(&[
            Order::Equal,
            Order::NotEqual,
            Order::Less,
            Order::LessOrEqual,
            Order::Greater,
            Order::GreaterOrEqual,
        ]);
        let revision = rev(self.rng.below(self.model.revision + 2));
        let test = match self.rng.below(10) {
            0 | 1 => Test::Value(order, self.value()),
            2 => Test::Created(order, revision),
            3 => Test::Modified(order, revision),
            4 => Test::Version(order, self.rng.below(4)),
            5 => Test::Lease(if self.rng.one_in(2) { None } else { Some(self.lease()) }),
            6 => Test::Absent,
            7 => Test::Present,
            _ => Test::UnchangedSince(revision),
        };
        Compare { keys: self.range(), test }
    }

    fn op(&mut self) -> Op {
        match self.rng.below(10) {
            0..6 => {
                let lease = match self.rng.below(6) {
                    0..3 => Attach::Forever,
                    3 | 4 => Attach::Lease(self.lease()),
                    _ => Attach::Ttl { ttl_ms: 1 + self.rng.below(5) },
                };
                Op::Put { key: self.key(), value: self.value(), lease, prev: self.rng.one_in(2) }
            }
            6 | 7 => Op::Delete { keys: self.range(), prev: self.rng.one_in(2) },
            8 => Op::Get { key: self.key() },
            _ => Op::Range { keys: self.range(), limit: self.rng.below(5) as u32, reverse: self.rng.one_in(2) },
        }
    }

    fn key(&mut self) -> Bytes {
        self.rng.pick(&[&b"a"[..], b"b", b"b\0", b"bb", b"c", b"\xff", b""]).into()
    }

    fn value(&mut self) -> Bytes {
        let value = self.rng.pick(&["", "1", "2", "3"]);
        if self.rng.one_in(6) { bytes(&"long".repeat(300)) } else { bytes(value) }
    }

    fn range(&mut self) -> KeyRange {
        let key = self.key();
        match self.rng.below(8) {
            0..4 => KeyRange::single(key),
            4 => KeyRange::prefix(key),
            5 | 6 => KeyRange { start: key, end: Some(self.key()) },
            _ => everything(),
        }
    }

    fn lease(&mut self) -> LeaseId {
        let alive = self.model.lease_ids();
        let any = LeaseId::new(self.rng.below(alive.last().copied().unwrap_or(0) + 2));
        if alive.is_empty() || self.rng.one_in(5) { any } else { LeaseId::new(self.rng.pick(&alive)) }
    }

    /// A client and its watermark; sometimes one that is not there.
    fn client(&mut self) -> (ClientId, u64) {
        let open = self.model.client_lows();
        if open.is_empty() || self.rng.one_in(12) {
            return (ClientId::new(self.rng.below(20)), self.rng.below(3));
        }
        let (client, low) = self.rng.pick(&open);
        (ClientId::new(client), low)
    }
}

fn event(change: &Change) -> Event {
    Event {
        revision: change.id.revision.get(),
        kind: change.kind,
        key: change.key.clone(),
        value: change.value.clone(),
        prev: change.prev.map(|prev| prev.revision.get()),
    }
}

fn mark(outcome: &Outcome, marks: &mut Marks) {
    let text = match &outcome.response {
        Response::Txn(txn) if txn.elided => "answer repeated without results",
        Response::Txn(txn) if txn.changed && outcome.events.is_empty() => "answer repeated",
        Response::LeaseEnded { .. } if outcome.events.iter().any(|event| event.kind == ChangeKind::Expired) => {
            "expired keys"
        }
        Response::ClientClosed => "lease of a client ended",
        Response::ExpiryVoid => "expiry void",
        Response::Resolved(Resolution::Applied(_)) => "applied resolved",
        Response::Resolved(Resolution::NoEffect) => "no effect resolved",
        Response::Resolved(Resolution::Never) => "never resolved",
        Response::Resolved(Resolution::Unknowable) => "unknowable resolved",
        Response::Refused(Refusal::UnknownClient) => "client refused",
        Response::Refused(Refusal::Forgotten { .. }) => "forgotten refused",
        Response::Refused(Refusal::TooFarAhead { .. }) => "too far ahead refused",
        Response::Refused(Refusal::Sealed) => "sealed refused",
        Response::Refused(Refusal::LeaseNotFound { .. }) => "lease not found",
        Response::Refused(Refusal::DuplicateKey { .. }) => "duplicate key refused",
        Response::Refused(Refusal::VersionInForce { .. }) => "version refused",
        _ => return,
    };
    *marks.entry(text).or_default() += 1;
}
