//! The state machine written a second time, as plainly as possible, to be held against the first.
//!
//! It keeps the full contents of every revision and a list of everything that ever happened, and answers every question by
//! looking through them. It shares the vocabulary with the real one and nothing else: no index, no rows, no records, no
//! sums.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::command::{
    Attach, ChangeKind, Command, Compare, Few, KeyRange, KeyValue, LeaseChange, Op, OpResult, Proposal, Refusal,
    Resolution, Response, Stamp, Test, Txn, TxnResponse,
};
use crate::format::command::encode_response;
use crate::types::{ClientId, LeaderId, LeaseId, Revision};

type Store = BTreeMap<Bytes, Cell>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    value: Bytes,
    created: u64,
    modified: u64,
    version: u64,
    lease: Option<u64>,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) revision: u64,
    pub(super) kind: ChangeKind,
    pub(super) key: Bytes,
    pub(super) value: Bytes,
    /// The revision of the value it superseded.
    pub(super) prev: Option<u64>,
}

#[derive(Clone, Debug)]
struct Client {
    lease: u64,
    low: u64,
    /// `None`: sealed.
    decided: BTreeMap<u64, Option<(Response, Option<u64>)>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) store: Store,
    /// The whole store as of each revision; before the first entry there is none.
    pub(super) past: BTreeMap<u64, Store>,
    pub(super) events: Vec<Event>,
    leases: BTreeMap<u64, u64>,
    anonymous: BTreeSet<u64>,
    clients: BTreeMap<u64, Client>,
    pub(super) revision: u64,
    pub(super) floor: u64,
    leases_made: u64,
    clients_made: u64,
    version_raised: u32,
}

/// What one entry came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) response: Response,
    pub(super) events: Vec<Event>,
    /// In no particular order.
    pub(super) leases: BTreeSet<(bool, u64, u64)>,
}

impl Model {
    pub(super) fn apply(&mut self, leader: LeaderId, proposal: &Proposal) -> Outcome {
        let (events_before, leases_before) = (self.events.len(), self.leases.clone());
        let made_before = self.leases_made;
        let response = self.respond(leader, proposal);
        self.past.insert(self.revision, self.store.clone());
        let mut leases: BTreeSet<_> =
            (made_before + 1..=self.leases_made).map(|lease| (true, lease, self.leases[&lease])).collect();
        let ended = leases_before.keys().filter(|lease| !self.leases.contains_key(lease));
        leases.extend(ended.map(|lease| (false, *lease, 0)));
        Outcome { response, events: self.events[events_before..].to_vec(), leases }
    }

    pub(super) fn lease_ids(&self) -> Vec<u64> {
        self.leases.keys().copied().collect()
    }

    /// Each client and its watermark.
    pub(super) fn client_lows(&self) -> Vec<(u64, u64)> {
        self.clients.iter().map(|(id, client)| (*id, client.low)).collect()
    }

    pub(super) fn lease_changes(changes: &[LeaseChange]) -> BTreeSet<(bool, u64, u64)> {
        let plain = |change: &LeaseChange| match change {
            LeaseChange::Granted { lease, ttl_ms } => (true, lease.get(), *ttl_ms),
            LeaseChange::Ended { lease } => (false, lease.get(), 0),
        };
        changes.iter().map(plain).collect()
    }

    /// Keys, values and overhead of whatever can still be read at the floor or above, or be watched above it.
    pub(super) fn logical_bytes(&self, overhead: u64) -> u64 {
        let reachable = |(place, event): &(usize, &Event)| match event.kind {
            ChangeKind::Put => {
                let later = self.events[place + 1..].iter().find(|later| later.key == event.key);
                later.is_none_or(|later| later.revision > self.floor)
            }
            _ => event.revision > self.floor,
        };
        let kept = self.events.iter().enumerate().filter(reachable);
        kept.map(|(_, event)| event.key.len() as u64 + event.value.len() as u64 + overhead).sum()
    }

    pub(super) fn counts(&self) -> (u64, u64, u64, u32) {
        let clients = self.clients.len() as u64;
        (self.store.len() as u64, self.leases.len() as u64, clients, self.version_raised.max(1))
    }

    pub(super) fn entries(&self, at: u64, keys: &KeyRange) -> Vec<KeyValue> {
        let store = self.past.get(&at).into_iter().flatten();
        let inside = store.filter(|(key, _)| keys.contains(key));
        inside.map(|(key, cell)| self.key_value(key, cell)).collect()
    }

    fn key_value(&self, key: &Bytes, cell: &Cell) -> KeyValue {
        KeyValue {
            key: key.clone(),
            value: cell.value.clone(),
            created: Revision::new(cell.created),
            modified: Revision::new(cell.modified),
            version: cell.version,
            lease: cell.lease.map(LeaseId::new),
            ttl_ms: cell.lease.and_then(|lease| self.leases.get(&lease).copied()),
        }
    }

    fn respond(&mut self, leader: LeaderId, proposal: &Proposal) -> Response {
        if let Command::Resolve { client, seq } = proposal.command {
            return Response::Resolved(self.resolve(client.get(), seq, proposal.stamp));
        }
        let Some(stamp) = proposal.stamp else { return self.decide(leader, &proposal.command) };
        let Some(client) = self.raise(stamp) else { return Response::Refused(Refusal::UnknownClient) };
        if stamp.seq < client.low {
            return Response::Refused(Refusal::Forgotten { low: client.low });
        }
        match client.decided.get(&stamp.seq) {
            Some(None) => return Response::Refused(Refusal::Sealed),
            Some(Some((response, _))) => return response.clone(),
            None => {}
        }
        if stamp.seq - client.low >= 4096 {
            return Response::Refused(Refusal::TooFarAhead { limit: 4096 });
        }
        let response = self.decide(leader, &proposal.command);
        let effective = match &response {
            Response::Txn(txn) => txn.changed,
            Response::ExpiryVoid | Response::Refused(_) => false,
            _ => true,
        };
        let mut remembered = response.clone();
        if let Response::Txn(txn) = &mut remembered
            && encode_response(&response).len() > 1024
        {
            *txn = TxnResponse { results: Few::new(), elided: true, ..txn.clone() };
        }
        if let Some(client) = self.clients.get_mut(&stamp.client.get()) {
            client.decided.insert(stamp.seq, Some((remembered, effective.then_some(self.revision))));
        }
        response
    }

    fn raise(&mut self, stamp: Stamp) -> Option<&Client> {
        let client = self.clients.get_mut(&stamp.client.get())?;
        client.low = client.low.max(stamp.low.min(stamp.seq));
        let low = client.low;
        client.decided.retain(|seq, _| *seq >= low);
        Some(client)
    }

    fn resolve(&mut self, id: u64, seq: u64, stamp: Option<Stamp>) -> Resolution {
        if let Some(stamp) = stamp
            && stamp.client == ClientId::new(id)
        {
            self.raise(stamp);
        }
        let Some(client) = self.clients.get_mut(&id) else { return Resolution::Unknowable };
        match client.decided.get(&seq) {
            Some(None) => Resolution::Never,
            Some(Some((_, Some(revision)))) => Resolution::Applied(Revision::new(*revision)),
            Some(Some((_, None))) => Resolution::NoEffect,
            None if seq < client.low || seq - client.low >= 4096 => Resolution::Unknowable,
            None => {
                client.decided.insert(seq, None);
                Resolution::Never
            }
        }
    }

    fn decide(&mut self, leader: LeaderId, command: &Command) -> Response {
        let now = Revision::new(self.revision);
        match command {
            Command::Txn(txn) => self.txn(txn),
            Command::LeaseGrant { ttl_ms } => {
                let lease = self.make_lease(*ttl_ms);
                Response::Granted { lease: LeaseId::new(lease), ttl_ms: *ttl_ms, revision: now }
            }
            Command::LeaseRevoke { lease } => self.end(lease.get(), ChangeKind::Deleted),
            Command::LeaseExpire { issued_by, .. } if *issued_by != leader => Response::ExpiryVoid,
            Command::LeaseExpire { lease, .. } => self.end(lease.get(), ChangeKind::Expired),
            Command::ClientOpen { ttl_ms } => {
                self.clients_made += 1;
                let (client, lease) = (self.clients_made, self.make_lease(*ttl_ms));
                self.clients.insert(client, Client { lease, low: 0, decided: BTreeMap::new() });
                Response::ClientOpened { client: ClientId::new(client), lease: LeaseId::new(lease) }
            }
            Command::ClientClose { client } => match self.clients.get(&client.get()).map(|client| client.lease) {
                None => Response::Refused(Refusal::UnknownClient),
                Some(lease) => {
                    self.end(lease, ChangeKind::Deleted);
                    Response::ClientClosed
                }
            },
            Command::Compact { floor } => {
                self.floor = self.floor.max(floor.get().min(self.revision));
                Response::Compacted { floor: Revision::new(self.floor) }
            }
            Command::ClusterVersion { version } if *version < self.version_raised.max(1) => {
                Response::Refused(Refusal::VersionInForce { version: self.version_raised.max(1) })
            }
            Command::ClusterVersion { version } => {
                self.version_raised = *version;
                Response::Version { version: *version }
            }
            Command::Resolve { .. } => unreachable!(),
        }
    }

    fn make_lease(&mut self, ttl_ms: u64) -> u64 {
        self.leases_made += 1;
        self.leases.insert(self.leases_made, ttl_ms);
        self.leases_made
    }

    fn end(&mut self, lease: u64, kind: ChangeKind) -> Response {
        if self.leases.remove(&lease).is_none() {
            return Response::Refused(Refusal::LeaseNotFound { lease: LeaseId::new(lease) });
        }
        self.clients.retain(|_, client| client.lease != lease);
        let on_it = self.store.iter().filter(|(_, cell)| cell.lease == Some(lease)).map(|(key, _)| key.clone());
        let keys: Vec<Bytes> = on_it.collect();
        if !keys.is_empty() {
            self.revision += 1;
        }
        for key in &keys {
            self.remove(key, kind);
        }
        Response::LeaseEnded { deleted: keys.len() as u64, revision: Revision::new(self.revision) }
    }

    fn remove(&mut self, key: &Bytes, kind: ChangeKind) {
        let old = self.store.remove(key).unwrap();
        let (revision, prev) = (self.revision, Some(old.modified));
        self.events.push(Event { revision, kind, key: key.clone(), value: Bytes::new(), prev });
    }

    fn txn(&mut self, txn: &Txn) -> Response {
        let failed = txn.compares.iter().position(|compare| !self.holds(compare));
        let branch = if failed.is_some() { &txn.otherwise[..] } else { &txn.then };
        if let Some(key) = twice(branch) {
            return Response::Refused(Refusal::DuplicateKey { key });
        }
        for op in branch {
            if let Op::Put { lease: Attach::Lease(lease), .. } = op
                && !self.leases.contains_key(&lease.get())
            {
                return Response::Refused(Refusal::LeaseNotFound { lease: *lease });
            }
        }
        let before = Model { store: self.store.clone(), leases: self.leases.clone(), ..Model::default() };
        let deletes_something = |keys: &KeyRange| before.store.keys().any(|key| keys.contains(key));
        let changed = branch.iter().any(|op| match op {
            Op::Put { .. } => true,
            Op::Delete { keys, .. } => deletes_something(keys),
            _ => false,
        });
        self.revision += u64::from(changed);
        let results = branch.iter().map(|op| self.run(op, &before)).collect();
        let on_some_key: BTreeSet<u64> = self.store.values().filter_map(|cell| cell.lease).collect();
        let abandoned: Vec<u64> = self.anonymous.difference(&on_some_key).copied().collect();
        for lease in abandoned {
            self.anonymous.remove(&lease);
            self.leases.remove(&lease);
        }
        let (revision, failed) = (Revision::new(self.revision), failed.map(|place| place as u32));
        Response::Txn(TxnResponse { revision, changed, failed, results, elided: false })
    }

    fn run(&mut self, op: &Op, before: &Model) -> OpResult {
        match op {
            Op::Put { key, value, lease, prev } => {
                let old = before.store.get(key);
                let lease = match lease {
                    Attach::Forever => None,
                    Attach::Lease(lease) => Some(lease.get()),
                    Attach::Ttl { ttl_ms } => {
                        let lease = self.make_lease(*ttl_ms);
                        self.anonymous.insert(lease);
                        Some(lease)
                    }
                };
                let cell = Cell {
                    value: value.clone(),
                    created: old.map_or(self.revision, |old| old.created),
                    modified: self.revision,
                    version: old.map_or(0, |old| old.version) + 1,
                    lease,
                };
                self.store.insert(key.clone(), cell);
                let (revision, kind) = (self.revision, ChangeKind::Put);
                let event =
                    Event { revision, kind, key: key.clone(), value: value.clone(), prev: old.map(|old| old.modified) };
                self.events.push(event);
                let prev = if *prev { before.entries_now(&KeyRange::single(key.clone())).pop() } else { None };
                OpResult::Put { prev, lease: lease.map(LeaseId::new) }
            }
            Op::Delete { keys, prev } => {
                let gone = before.entries_now(keys);
                for entry in &gone {
                    self.remove(&entry.key, ChangeKind::Deleted);
                }
                OpResult::Delete { deleted: gone.len() as u64, prev: if *prev { gone } else { vec![] } }
            }
            Op::Get { key } => OpResult::Get(before.entries_now(&KeyRange::single(key.clone())).pop()),
            Op::Range { keys, limit, reverse } => {
                let mut entries = before.entries_now(keys);
                if *reverse {
                    entries.reverse();
                }
                let more = entries.len() > *limit as usize;
                entries.truncate(*limit as usize);
                OpResult::Range { entries, more }
            }
        }
    }

    fn entries_now(&self, keys: &KeyRange) -> Vec<KeyValue> {
        let inside = self.store.iter().filter(|(key, _)| keys.contains(key));
        inside.map(|(key, cell)| self.key_value(key, cell)).collect()
    }

    fn holds(&self, Compare { keys, test }: &Compare) -> bool {
        let inside: Vec<&Cell> =
            self.store.iter().filter(|(key, _)| keys.contains(key)).map(|(_, cell)| cell).collect();
        match test {
            Test::Absent => return inside.is_empty(),
            Test::Present => return !inside.is_empty(),
            Test::UnchangedSince(since) => {
                let changed = |event: &Event| keys.contains(&event.key) && event.revision > since.get();
                return since.get() >= self.floor && !self.events.iter().any(changed);
            }
            _ => {}
        }
        let missing = Cell { value: Bytes::new(), created: 0, modified: 0, version: 0, lease: None };
        let is_value = matches!(test, Test::Value(..));
        if inside.is_empty() && keys.as_single().is_some() {
            return !is_value && one_holds(test, &missing);
        }
        inside.into_iter().all(|cell| one_holds(test, cell))
    }
}

fn one_holds(test: &Test, cell: &Cell) -> bool {
    match test {
        Test::Value(order, value) => order.holds(&cell.value, value),
        Test::Created(order, revision) => order.holds(&cell.created, &revision.get()),
        Test::Modified(order, revision) => order.holds(&cell.modified, &revision.get()),
        Test::Version(order, version) => order.holds(&cell.version, version),
        Test::Lease(lease) => cell.lease == lease.map(LeaseId::get),
        Test::Absent | Test::Present | Test::UnchangedSince(_) => unreachable!(),
    }
}

/// Keys in these tests are at most two bytes of a small alphabet, so all of them can be tried one by one.
fn twice(branch: &[Op]) -> Option<Bytes> {
    let mut seen: BTreeSet<&Bytes> = BTreeSet::new();
    for op in branch {
        if let Op::Put { key, .. } = op
            && !seen.insert(key)
        {
            return Some(key.clone());
        }
    }
    let ranges: Vec<&KeyRange> = branch
        .iter()
        .filter_map(|op| match op {
            Op::Delete { keys, .. } => Some(keys),
            _ => None,
        })
        .collect();
    let mut overlaps = Vec::new();
    for (place, one) in ranges.iter().enumerate() {
        for other in &ranges[place + 1..] {
            let start = (&one.start).max(&other.start);
            if one.contains(start) && other.contains(start) {
                overlaps.push(start.clone());
            }
        }
    }
    let in_range = |key: &&Bytes| ranges.iter().any(|keys| keys.contains(key));
    overlaps.into_iter().min().or_else(|| seen.into_iter().find(in_range).cloned())
}
