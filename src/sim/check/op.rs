//! The operations of the store, and their answers, as a history records them: plain data, the same whoever ran them.
//!
//! Values are strings. What a host stores is recorded as its JSON text, or as anything else that tells values apart. An
//! oracle sees most where every written value is unique.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::{LeaseId, Revision, Ticket};

/// One operation on the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Reads one key.
    Get {
        /// The key.
        key: String,
        /// Which moment it is to show.
        #[serde(default, skip_serializing_if = "Moment::is_linearizable")]
        moment: Moment,
    },
    /// Reads the entries of a range.
    Range {
        /// The keys.
        keys: Span,
        /// Which moment it is to show.
        #[serde(default, skip_serializing_if = "Moment::is_linearizable")]
        moment: Moment,
        /// At most so many entries.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u32>,
        /// From the last key down.
        #[serde(default, skip_serializing_if = "is_false")]
        reverse: bool,
    },
    /// Writes one key.
    Set {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// When it is to be written.
        #[serde(default, skip_serializing_if = "Only::is_always")]
        only: Only,
        /// What the key hangs on.
        #[serde(default, skip_serializing_if = "Attach::is_forever")]
        attach: Attach,
    },
    /// Deletes the keys of a range.
    Delete {
        /// The keys.
        keys: Span,
        /// Only if the newest put of the (one) key is of this revision.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_revision: Option<Revision>,
    },
    /// A transaction in compare form.
    Txn {
        /// All must hold for `then` to run.
        when: Vec<Condition>,
        /// Run if all conditions hold.
        then: Vec<Step>,
        /// Run if one does not.
        otherwise: Vec<Step>,
    },
    /// Opens a lease (a session).
    Grant {
        /// Its time to live, in milliseconds.
        ttl_ms: u64,
    },
    /// Renews a lease.
    KeepAlive {
        /// The lease.
        lease: LeaseId,
    },
    /// Ends a lease and deletes its keys.
    Revoke {
        /// The lease.
        lease: LeaseId,
    },
    /// Asks what became of a write.
    Resolve {
        /// The write.
        ticket: Ticket,
    },
}

impl Op {
    /// A linearizable read of one key.
    pub fn get(key: impl Into<String>) -> Self {
        Op::Get { key: key.into(), moment: Moment::Linearizable }
    }

    /// A linearizable read of a range.
    pub fn range(keys: impl Into<Span>) -> Self {
        Op::Range { keys: keys.into(), moment: Moment::Linearizable, limit: None, reverse: false }
    }

    /// An unconditional write that stays.
    pub fn set(key: impl Into<String>, value: impl Into<String>) -> Self {
        Op::set_only(key, value, Only::Always)
    }

    /// A conditional write that stays.
    pub fn set_only(key: impl Into<String>, value: impl Into<String>, only: Only) -> Self {
        Op::Set { key: key.into(), value: value.into(), only, attach: Attach::Forever }
    }

    /// An unconditional delete.
    pub fn delete(keys: impl Into<Span>) -> Self {
        Op::Delete { keys: keys.into(), if_revision: None }
    }

    /// Whether it can change a key.
    pub fn is_mutation(&self) -> bool {
        matches!(self, Op::Set { .. } | Op::Delete { .. } | Op::Txn { .. } | Op::Revoke { .. })
    }

    /// The keys and values it may put.
    pub(super) fn puts(&self) -> Vec<(&str, &str)> {
        match self {
            Op::Set { key, value, .. } => vec![(key, value)],
            Op::Txn { then, otherwise, .. } => then.iter().chain(otherwise).filter_map(Step::as_put).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether it may hang a key on this lease.
    pub(super) fn attaches_to(&self, lease: LeaseId) -> bool {
        let attaches = |step: &Step| matches!(step, Step::Put { attach, .. } if *attach == Attach::Lease(lease));
        match self {
            Op::Set { attach, .. } => *attach == Attach::Lease(lease),
            Op::Txn { then, otherwise, .. } => then.iter().chain(otherwise).any(attaches),
            _ => false,
        }
    }

    /// The keys it looks at or writes.
    pub(super) fn spans(&self) -> Vec<Span> {
        match self {
            Op::Get { key, .. } | Op::Set { key, .. } => vec![Span::key(key)],
            Op::Range { keys, .. } | Op::Delete { keys, .. } => vec![keys.clone()],
            Op::Txn { when, then, otherwise } => {
                let conditions = when.iter().map(|condition| condition.keys.clone());
                conditions.chain(then.iter().chain(otherwise).map(Step::span)).collect()
            }
            Op::Grant { .. } | Op::KeepAlive { .. } | Op::Revoke { .. } | Op::Resolve { .. } => Vec::new(),
        }
    }
}

/// Which moment a read shows.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Everything that was acknowledged before the read began.
    #[default]
    Linearizable,
    /// Whatever the node has applied.
    Stale,
    /// Whatever the node has applied, once that is at least this.
    AtLeast(Revision),
}

impl Moment {
    fn is_linearizable(&self) -> bool {
        *self == Moment::Linearizable
    }
}

/// When a write of one key is to take place.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Only {
    /// Whatever is there.
    #[default]
    Always,
    /// If nothing is there.
    Absent,
    /// If something is there.
    Present,
    /// If the newest put is of this revision.
    Revision(Revision),
}

impl Only {
    fn is_always(&self) -> bool {
        *self == Only::Always
    }
}

/// What a put hangs its key on.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attach {
    /// Nothing: it stays until it is deleted.
    #[default]
    Forever,
    /// A lease.
    Lease(LeaseId),
    /// A lease of its own, with this time to live in milliseconds.
    Ttl(u64),
}

impl Attach {
    fn is_forever(&self) -> bool {
        *self == Attach::Forever
    }
}

/// Some keys: from `start` on, up to and without `end`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    /// The first key.
    pub start: String,
    /// The first key behind; `None`: there is no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
}

impl Span {
    /// This key and no other.
    pub fn key(key: impl Into<String>) -> Self {
        let start = key.into();
        let end = format!("{start}\0");
        Span { start, end: Some(end) }
    }

    /// Every key that starts with `prefix`.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        let start = prefix.into();
        // The next string of the same length, if the last character has a successor.
        let mut rest = start.clone();
        while let Some(last) = rest.pop() {
            if let Some(next) = ((last as u32 + 1)..=(char::MAX as u32)).find_map(char::from_u32) {
                rest.push(next);
                return Span { start, end: Some(rest) };
            }
        }
        Span { start, end: None }
    }

    /// Every key.
    pub fn all() -> Self {
        Span { start: String::new(), end: None }
    }

    /// Whether `key` is one of them.
    pub fn contains(&self, key: &str) -> bool {
        key >= self.start.as_str() && self.end.as_ref().is_none_or(|end| key < end.as_str())
    }

    /// The key, if there can be only one.
    pub fn as_key(&self) -> Option<&str> {
        let one = self.end.as_ref()?.strip_suffix('\0')? == self.start;
        one.then_some(&self.start)
    }

    pub(super) fn of<'a, V>(
        &'a self,
        map: &'a BTreeMap<String, V>,
    ) -> impl DoubleEndedIterator<Item = (&'a String, &'a V)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        // A range that ends before it starts is empty; the map would panic.
        let end = self.end.as_ref().map(|end| end.max(&self.start));
        map.range::<String, _>((Included(&self.start), end.map_or(Unbounded, Excluded)))
    }
}

impl From<&str> for Span {
    fn from(key: &str) -> Self {
        Span::key(key)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.as_key(), &self.end) {
            (Some(key), _) => write!(f, "{key:?}"),
            (None, Some(end)) => write!(f, "{:?}..{end:?}", self.start),
            (None, None) => write!(f, "{:?}..", self.start),
        }
    }
}

/// A condition on one key, or on every key that is there in a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// The keys.
    pub keys: Span,
    /// What is to hold.
    pub test: Test,
}

/// What a [`Condition`] asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// Nothing is there.
    Absent,
    /// Something is there.
    Present,
    /// The value is this one; false for a missing key.
    ValueIs(String),
    /// The value is another one; false for a missing key.
    ValueIsNot(String),
    /// The newest put is of this revision; 0: the key is missing.
    ModifiedAt(Revision),
    /// The newest put is of this revision or older.
    NotModifiedAfter(Revision),
    /// The put that created the key is of this revision; 0: the key is missing.
    CreatedAt(Revision),
    /// The key was put so many times since it was created; 0: the key is missing.
    VersionIs(u64),
    /// The key hangs on this lease.
    LeaseIs(LeaseId),
    /// Nothing of the range was put or deleted after this revision.
    UnchangedSince(Revision),
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Puts a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What the key hangs on.
        #[serde(default, skip_serializing_if = "Attach::is_forever")]
        attach: Attach,
    },
    /// Deletes keys.
    Remove(Span),
    /// Reads a key, as it was before the transaction.
    Read(String),
    /// Reads the entries of a range, as they were before the transaction.
    List(Span),
}

impl Step {
    /// Puts `value` at `key`, to stay.
    pub fn put(key: impl Into<String>, value: impl Into<String>) -> Self {
        Step::Put { key: key.into(), value: value.into(), attach: Attach::Forever }
    }

    fn as_put(&self) -> Option<(&str, &str)> {
        match self {
            Step::Put { key, value, .. } => Some((key, value)),
            _ => None,
        }
    }

    fn span(&self) -> Span {
        match self {
            Step::Put { key, .. } | Step::Read(key) => Span::key(key),
            Step::Remove(keys) | Step::List(keys) => keys.clone(),
        }
    }
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The value.
    pub value: String,
    /// The revision of the put that created the key.
    pub created: Revision,
    /// The revision of the newest put.
    pub modified: Revision,
    /// How many times it was put since it was created.
    pub version: u64,
    /// The lease it hangs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} (created {}, modified {}, version {}", self.value, self.created, self.modified, self.version)?;
        match self.lease {
            Some(lease) => write!(f, ", lease {lease})"),
            None => f.write_str(")"),
        }
    }
}

/// What an operation answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To a get.
    Got(Option<Seen>),
    /// To a range.
    Listed {
        /// In key order (or against it).
        entries: Vec<(String, Seen)>,
        /// Whether the limit left some out.
        more: bool,
    },
    /// To a set that took place.
    Written,
    /// To a set that took place and was to tell what it replaced.
    Replaced(Option<Seen>),
    /// To a conditional set that did not take place: what was there instead.
    Conflict(Option<Seen>),
    /// To a delete: how many keys are gone.
    Deleted(u64),
    /// To a transaction.
    Txn {
        /// Place of the first condition that did not hold.
        failed: Option<u32>,
        /// Whether it changed a key.
        changed: bool,
        /// One for each step of the branch that ran; `None` if they were lost.
        results: Option<Vec<StepAnswer>>,
    },
    /// To a grant.
    Granted(LeaseId),
    /// To a keepalive: the lease was renewed.
    Alive,
    /// To a keepalive or a revoke: there is no such lease (any more).
    Gone,
    /// To a revoke: the lease is gone, with its keys.
    Revoked,
    /// To a resolve.
    Resolved(Resolution),
}

/// What a step of a transaction answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepAnswer {
    /// To a put.
    Put,
    /// To a removal: how many keys.
    Removed(u64),
    /// To a read.
    Read(Option<Seen>),
    /// To a list.
    List(Vec<(String, Seen)>),
}

/// What became of a write.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// It took effect at this revision.
    Applied(Revision),
    /// It was decided and changed nothing.
    NoEffect,
    /// It was not decided and never will be.
    Never,
    /// Nobody can tell any more.
    Unknowable,
}

fn is_false(flag: &bool) -> bool {
    !flag
}
