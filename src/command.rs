//! The vocabulary of the state machine: what can be asked of it, what it answers, what it reports.
//!
//! A [`Command`] stands alone in one log entry. Its bytes are declared in [`crate::format`]; what it does is
//! [`crate::state_machine`]'s business.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::types::{ClientId, LeaderId, LeaseId, NodeId, Revision};

/// What is written into a log entry: the command, who sent it, and under which number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// The node whose host asked for it.
    pub(crate) origin: NodeId,
    /// The proposer's wall clock, milliseconds since 1970. Shown to people, never decided on.
    pub(crate) wall_ms: u64,
    /// Set on every mutation of a client; absent on the cluster's own housekeeping.
    pub(crate) stamp: Option<Stamp>,
    pub(crate) command: Command,
}

/// Names one mutation of one client, so that it is decided once however often it reaches the log.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) client: ClientId,
    pub(crate) seq: u64,
    /// The lowest number of this client that is still unanswered: everything below may be forgotten.
    pub(crate) low: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Evaluates the compares at one point and runs one of the two branches, at one revision or none.
    Txn(Txn),
    /// Creates a lease.
    LeaseGrant { ttl_ms: u64 },
    /// Ends a lease now and deletes its keys at one revision.
    LeaseRevoke { lease: LeaseId },
    /// As revoke, but void unless the entry was appended by the leader that issued it.
    LeaseExpire { lease: LeaseId, issued_by: LeaderId },
    /// Opens a client record that lives by a lease of its own.
    ClientOpen { ttl_ms: u64 },
    /// Forgets a client record and its lease.
    ClientClose { client: ClientId },
    /// Says what became of a mutation; if it was never decided, makes sure that it never will be.
    Resolve { client: ClientId, seq: u64 },
    /// Moves the floor below which history may be forgotten. Never moves it back.
    Compact { floor: Revision },
    /// Raises the version of the vocabulary that may be proposed.
    ClusterVersion { version: u32 },
}

/// One transaction: `if compares then .. else ..`.
///
/// Reads inside see the store as it was before the transaction's own writes. No key may be written twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Txn {
    pub(crate) compares: Vec<Compare>,
    pub(crate) then: Few<Op>,
    pub(crate) otherwise: Vec<Op>,
}

/// A list that most often has one item, which then costs no allocation: a batch of entries holds several for each.
pub(crate) type Few<T> = SmallVec<[T; 1]>;

/// A half-open range of stored keys; `end == None` runs to the last key of all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyRange {
    pub(crate) start: Bytes,
    pub(crate) end: Option<Bytes>,
}

impl KeyRange {
    /// Exactly the key `key`: from it to its immediate successor.
    pub(crate) fn single(key: Bytes) -> Self {
        let mut end = Vec::with_capacity(key.len() + 1);
        end.extend_from_slice(&key);
        end.push(0);
        KeyRange { start: key, end: Some(end.into()) }
    }

    /// Every key that starts with `prefix`.
    pub(crate) fn prefix(prefix: Bytes) -> Self {
        let mut end = prefix.to_vec();
        while end.last() == Some(&0xff) {
            end.pop();
        }
        let end = end.last_mut().map(|last| *last += 1).is_some().then_some(end);
        KeyRange { start: prefix, end: end.map(Bytes::from) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        key >= self.start.as_ref() && self.end.as_ref().is_none_or(|end| key < end.as_ref())
    }

    /// What is left of this range behind `key`, going up, or down if `reverse`.
    pub(crate) fn behind(&self, key: &Bytes, reverse: bool) -> KeyRange {
        match reverse {
            true => KeyRange { start: self.start.clone(), end: Some(key.clone()) },
            false => {
                let next = KeyRange::single(key.clone()).end.expect("a single key has a successor");
                KeyRange { start: next, end: self.end.clone() }
            }
        }
    }

    /// The key, if this range can hold no other.
    pub(crate) fn as_single(&self) -> Option<&Bytes> {
        let end = self.end.as_ref()?;
        let one = end.len() == self.start.len() + 1 && end.starts_with(&self.start) && end.last() == Some(&0);
        one.then_some(&self.start)
    }
}

/// A condition. On one key it is about that key, a missing one counting as created 0, modified 0, version 0, no lease;
/// on a range it must hold for every key present in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compare {
    pub(crate) keys: KeyRange,
    pub(crate) test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// Against the stored bytes; false on a missing key, whatever the order asked for.
    Value(Order, Bytes),
    Created(Order, Revision),
    Modified(Order, Revision),
    Version(Order, u64),
    /// The key hangs on this lease (`None`: on no lease).
    Lease(Option<LeaseId>),
    /// Nothing is there.
    Absent,
    /// Something is there; on a range: at least one key.
    Present,
    /// No key of the range was put or deleted after `since`; false if `since` is below the floor.
    UnchangedSince(Revision),
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Order {
    pub(crate) fn holds<T: Ord + ?Sized>(self, left: &T, right: &T) -> bool {
        match self {
            Order::Equal => left == right,
            Order::NotEqual => left != right,
            Order::Less => left < right,
            Order::LessOrEqual => left <= right,
            Order::Greater => left > right,
            Order::GreaterOrEqual => left >= right,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Put { key: Bytes, value: Bytes, lease: Attach, prev: bool },
    Delete { keys: KeyRange, prev: bool },
    Get { key: Bytes },
    Range { keys: KeyRange, limit: u32, reverse: bool },
}

/// What a put hangs its key on.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attach {
    /// Nothing: the key stays until it is deleted.
    Forever,
    /// A lease that was granted before.
    Lease(LeaseId),
    /// A lease of its own, made here and gone with the key.
    Ttl { ttl_ms: u64 },
}

/// The answer to one proposal, remembered with its effect and repeated to every double.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    Txn(TxnResponse),
    Granted {
        lease: LeaseId,
        ttl_ms: u64,
        revision: Revision,
    },
    /// The lease is gone and took `deleted` keys with it, at `revision`.
    LeaseEnded {
        deleted: u64,
        revision: Revision,
    },
    /// An expiry whose issuer no longer leads: nothing happened.
    ExpiryVoid,
    ClientOpened {
        client: ClientId,
        lease: LeaseId,
    },
    ClientClosed,
    Resolved(Resolution),
    Compacted {
        floor: Revision,
    },
    Version {
        version: u32,
    },
    Refused(Refusal),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TxnResponse {
    /// The store's revision right after this transaction.
    pub(crate) revision: Revision,
    /// Whether the transaction took a revision of its own.
    pub(crate) changed: bool,
    /// Place of the first compare that did not hold; `None`: all held and `then` ran.
    pub(crate) failed: Option<u32>,
    /// One per operation of the branch that ran; empty when elided.
    pub(crate) results: Few<OpResult>,
    /// The answer was too large to be remembered: a double gets the rest of it without the results.
    pub(crate) elided: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OpResult {
    Put { prev: Option<KeyValue>, lease: Option<LeaseId> },
    Delete { deleted: u64, prev: Vec<KeyValue> },
    Get(Option<KeyValue>),
    Range { entries: Vec<KeyValue>, more: bool },
}

/// A live key as of some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyValue {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) created: Revision,
    pub(crate) modified: Revision,
    /// 1 for the put that created the key, one more for each later put.
    pub(crate) version: u64,
    pub(crate) lease: Option<LeaseId>,
    /// The lease's time to live in milliseconds, where the reader could tell.
    pub(crate) ttl_ms: Option<u64>,
}

/// What became of a mutation.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// It took effect, at this revision.
    Applied(Revision),
    /// It was decided and changed nothing.
    NoEffect,
    /// It was not decided, and from here on never will be.
    Never,
    /// The record that would know is gone.
    Unknowable,
}

/// Why a proposal was not carried out. None of these changed anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The client record is not there (expired or closed).
    UnknownClient,
    /// The number is below what its client has declared answered.
    Forgotten {
        low: u64,
    },
    /// The number is further ahead of the lowest unanswered one than the record remembers.
    TooFarAhead {
        limit: u64,
    },
    /// Resolved as never to be applied.
    Sealed,
    LeaseNotFound {
        lease: LeaseId,
    },
    /// The transaction writes this key twice.
    DuplicateKey {
        key: Bytes,
    },
    TooManyClients {
        limit: u64,
    },
    /// The entry asks for a version of the vocabulary below the one in force.
    VersionInForce {
        version: u32,
    },
}

/// One change of one key, as watchers see it. Values stay on disk until somebody asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) id: RecordId,
    /// The record this one supersedes, if the key was live before.
    pub(crate) prev: Option<RecordId>,
    pub(crate) kind: ChangeKind,
    pub(crate) key: Bytes,
    /// The new value; empty for a delete.
    pub(crate) value: Bytes,
    pub(crate) created: Revision,
    pub(crate) version: u64,
    pub(crate) lease: Option<LeaseId>,
}

/// What happened to a key.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Put,
    /// Deleted by a command.
    Deleted,
    /// Deleted because its lease ended by itself.
    Expired,
}

/// Where a record stands: its revision, and its place among the records of that revision.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RecordId {
    pub(crate) revision: Revision,
    pub(crate) ordinal: u32,
}

/// What one applied entry did, beside its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// All of one revision, in ordinal order; empty if the entry changed no key.
    pub(crate) changes: Few<Change>,
    pub(crate) leases: Vec<LeaseChange>,
}

/// A lease that came or went.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum LeaseChange {
    Granted { lease: LeaseId, ttl_ms: u64 },
    Ended { lease: LeaseId },
}
