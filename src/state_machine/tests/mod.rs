//! What the tests share: a machine on rows in memory, short ways to say commands, and the invariants of the state.

#[cfg(test)]
mod clients;
#[cfg(test)]
mod history;
#[cfg(test)]
mod leases;
mod model;
pub(crate) mod random;
#[cfg(test)]
mod reads;
#[cfg(test)]
mod txns;

use bytes::Bytes;

use super::index::{KeyIndex, Version};
use super::memory::MemRows;
use super::{Counters, State};
use crate::command::{
    Attach, Change, ChangeKind, Command, Compare, Effects, KeyRange, Op, Order, Proposal, Response, Stamp, Test, Txn,
    TxnResponse,
};
use crate::types::{ClientId, LeaderId, LeaseId, LogId, NodeId, Revision};

/// The state machine of one node that applies what the test says.
#[derive(Debug)]
struct Machine {
    rows: MemRows,
    state: State,
    leader: LeaderId,
    index: u64,
}

impl Machine {
    fn new() -> Self {
        Machine::open(MemRows::default())
    }

    fn open(rows: MemRows) -> Self {
        let state = State::load(&rows).unwrap();
        Machine { rows, state, leader: LeaderId { term: 1, node: NodeId::new(0xA) }, index: 0 }
    }

    /// Goes on from what the rows say, as after a restart.
    fn reopen(&mut self) {
        self.state.save(&mut self.rows).unwrap();
        self.state = State::load(&self.rows).unwrap();
    }

    fn apply(&mut self, stamp: Option<Stamp>, command: Command) -> (Response, Effects) {
        let proposal = Proposal { origin: NodeId::new(0xB), wall_ms: 1_700_000_000_000, stamp, command };
        self.apply_proposal(&proposal)
    }

    fn apply_proposal(&mut self, proposal: &Proposal) -> (Response, Effects) {
        self.index += 1;
        let at = LogId { leader: self.leader, index: self.index };
        self.state.apply(&mut self.rows, at, proposal).unwrap()
    }

    fn run(&mut self, command: Command) -> Response {
        self.apply(None, command).0
    }

    fn txn(&mut self, txn: Txn) -> TxnResponse {
        txn_of(self.run(Command::Txn(txn)))
    }

    fn put(&mut self, key: &str, value: &str) -> Revision {
        self.txn(then([put(key, value)])).revision
    }

    fn delete(&mut self, key: &str) -> Revision {
        self.txn(then([delete(key)])).revision
    }

    fn grant(&mut self, ttl_ms: u64) -> LeaseId {
        match self.run(Command::LeaseGrant { ttl_ms }) {
            Response::Granted { lease, .. } => lease,
            got => panic!("{got:?}"),
        }
    }

    fn open_client(&mut self) -> (ClientId, LeaseId) {
        match self.run(Command::ClientOpen { ttl_ms: 10_000 }) {
            Response::ClientOpened { client, lease } => (client, lease),
            got => panic!("{got:?}"),
        }
    }

    fn compact(&mut self, floor: u64) -> Revision {
        match self.run(Command::Compact { floor: Revision::new(floor) }) {
            Response::Compacted { floor } => floor,
            got => panic!("{got:?}"),
        }
    }

    fn sweep_all(&mut self) {
        while self.state.sweep(&mut self.rows, Revision::new(u64::MAX), 1).unwrap() {}
    }

    fn counters(&self) -> Counters {
        self.state.counters()
    }

    fn revision(&self) -> Revision {
        self.counters().revision
    }

    fn value(&self, key: &str) -> Option<String> {
        let found = super::read::get(self.state.index(), &self.rows, self.revision(), key.as_bytes()).unwrap();
        found.map(|entry| String::from_utf8(entry.value.to_vec()).unwrap())
    }

    /// What memory says must be what the rows say: the index, the leases on both sides, the clients, the hash.
    fn check(&mut self, context: &str) {
        self.state.save(&mut self.rows).unwrap();
        let loaded = State::load(&self.rows).unwrap();
        assert_eq!(self.state.counters(), loaded.counters(), "{context}: counters, as kept and as loaded");
        let live = |index: &KeyIndex| {
            let mut all: Vec<(Vec<u8>, Version)> = Vec::new();
            let each = |key: &[u8], version: &Version| {
                all.push((key.to_vec(), *version));
                Ok::<(), ()>(())
            };
            index.each_live(each).unwrap();
            all
        };
        assert_eq!(live(self.state.index()), live(loaded.index()), "{context}: index, as kept and as loaded");
        assert_eq!(
            self.state.garbage.reachable(),
            loaded.garbage.reachable(),
            "{context}: garbage, as kept and as loaded"
        );
        assert_eq!(self.state.leases(), loaded.leases(), "{context}: leases, as kept and as loaded");
        assert_eq!(
            format!("{:?}", self.state.leases),
            format!("{:?}", loaded.leases),
            "{context}: leased keys, as kept and as loaded"
        );
        for (key, version) in live(self.state.index()) {
            if let Some(lease) = version.lease() {
                let listed = self.state.leases.keys(lease).any(|listed| listed == key);
                assert!(listed, "{context}: {key:?} hangs on lease {lease}, which does not list it");
            }
        }
        for (lease, _) in self.state.leases() {
            for key in self.state.leases.keys(lease) {
                let version = self.state.index().newest(key).filter(Version::is_live);
                let on = version.and_then(|version| version.lease());
                assert_eq!(on, Some(lease), "{context}: {key:?} is listed under lease {lease}");
            }
        }
        assert_eq!(
            format!("{:?}", self.state.clients),
            format!("{:?}", loaded.clients),
            "{context}: clients, as kept and as loaded"
        );
    }
}

fn txn_of(response: Response) -> TxnResponse {
    match response {
        Response::Txn(txn) => txn,
        got => panic!("{got:?}"),
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn rev(revision: u64) -> Revision {
    Revision::new(revision)
}

fn put(key: &str, value: &str) -> Op {
    put_on(key, value, Attach::Forever)
}

fn put_on(key: &str, value: &str, lease: Attach) -> Op {
    Op::Put { key: bytes(key), value: bytes(value), lease, prev: false }
}

fn delete(key: &str) -> Op {
    Op::Delete { keys: KeyRange::single(bytes(key)), prev: false }
}

fn delete_range(start: &str, end: &str) -> Op {
    Op::Delete { keys: between(start, end), prev: false }
}

fn between(start: &str, end: &str) -> KeyRange {
    KeyRange { start: bytes(start), end: Some(bytes(end)) }
}

fn everything() -> KeyRange {
    KeyRange { start: Bytes::new(), end: None }
}

fn then(ops: impl IntoIterator<Item = Op>) -> Txn {
    Txn { then: ops.into_iter().collect(), ..Txn::default() }
}

fn when(test: Test, keys: KeyRange, ops: impl IntoIterator<Item = Op>) -> Txn {
    Txn { compares: vec![Compare { keys, test }], ..then(ops) }
}

/// Sets `key` to `new` if it holds `old`.
fn cas(key: &str, old: &str, new: &str) -> Command {
    let test = Test::Value(Order::Equal, bytes(old));
    Command::Txn(when(test, KeyRange::single(bytes(key)), [put(key, new)]))
}

fn put_command(key: &str, value: &str) -> Command {
    Command::Txn(then([put(key, value)]))
}

fn stamp(client: ClientId, seq: u64, low: u64) -> Option<Stamp> {
    Some(Stamp { client, seq, low })
}

fn summary(changes: &[Change]) -> Vec<(ChangeKind, String, u64)> {
    let text = |key: &Bytes| String::from_utf8(key.to_vec()).unwrap();
    changes.iter().map(|change| (change.kind, text(&change.key), change.id.revision.get())).collect()
}
