//! The plain identifiers and positions that every floor speaks of.
//!
//! Nothing here does anything: these are the words. Consensus types are our own, so that neither a public signature nor
//! a byte on disk depends on the consensus library.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A point in the history of the store.
///
/// One counter for the whole cluster: every transaction that changes something takes the next value, and nothing else
/// moves it. It never decreases, on any node, across crashes and restarts. Zero is the empty store.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(u64);

impl Revision {
    /// The empty store, before the first change.
    pub const ZERO: Revision = Revision(0);

    /// Wraps a number that was read from [`Revision::get`].
    pub const fn new(revision: u64) -> Self {
        Revision(revision)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The revision after this one.
    pub const fn next(self) -> Self {
        Revision(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A fencing token: strictly increasing for each successive holder of one lock.
///
/// It is the revision that created the holder's claim. Hand it to the resource that the lock protects, and let the
/// resource refuse any token below the highest it has seen.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(NonZeroU64);

impl Fence {
    /// The token of a claim that was created at `revision`; `None` for the empty store's revision, which creates nothing.
    pub const fn new(revision: Revision) -> Option<Self> {
        match NonZeroU64::new(revision.0) {
            Some(n) => Some(Fence(n)),
            None => None,
        }
    }

    /// The number to hand to the protected resource.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The revision that created the claim.
    pub const fn revision(self) -> Revision {
        Revision(self.0.get())
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a state was behind one entry of the log. Equal on all members, at equal indexes, unless one of them has gone wrong.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Milestone {
    pub(crate) index: u64,
    pub(crate) hash: u64,
}

/// What a member says of its state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// It has come to its state by itself from behind this entry on; up to there it was sent to it, or loaded at its start.
    pub(crate) since: u64,
    /// By ascending index.
    pub(crate) milestones: Vec<Milestone>,
}

/// A disk with less room left than it should have. Bytes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShortDisk {
    pub(crate) free: u64,
    pub(crate) reserve: u64,
}

/// Declares a 64-bit identifier that is shown in hexadecimal.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a number that was read from `get`.
            pub const fn new(id: u64) -> Self {
                $name(id)
            }

            /// The number.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }
    };
}

id! {
    /// One data directory, for its whole life. Minted at random when the directory is made, never reused.
    NodeId
}
id! {
    /// A lease: keys attached to it are deleted together when it expires or is revoked.
    LeaseId
}
id! {
    /// The record under which one process's writes are remembered, so that each takes effect once.
    ClientId
}

/// One cluster, minted at its formation. Frames and directories of another cluster are refused.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(u128);

impl ClusterId {
    /// Wraps a number that was read from [`ClusterId::get`].
    pub const fn new(id: u128) -> Self {
        ClusterId(id)
    }

    /// The number.
    pub const fn get(self) -> u128 {
        self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Names one write whose outcome is not known, so that it can be asked for later, also by another process.
///
/// Plain data: store it, send it, and pass it to `Cluster::resolve`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ticket {
    /// The client record the write was sent under.
    pub client: ClientId,
    /// The write's number within that record.
    pub seq: u64,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.client, self.seq)
    }
}

/// One life of a data directory, from one opening to the next: how often it has been opened, in the upper 24 bits, and a
/// number drawn at this opening.
///
/// A member's lives follow each other. Two of one count, or an earlier one behind a later one, mean that there are two
/// directories where there was one: a copy, or an older state of it that was put back.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incarnation(u64);

impl Incarnation {
    const DRAWN_BITS: u32 = 40;

    pub(crate) fn new(starts: u64, drawn: u64) -> Self {
        let starts = starts.min(u64::MAX >> Self::DRAWN_BITS);
        Incarnation(starts << Self::DRAWN_BITS | drawn >> (64 - Self::DRAWN_BITS))
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Incarnation(bits)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// How often the directory has been opened, counted up to 2^24 - 1.
    pub(crate) fn starts(self) -> u64 {
        self.0 >> Self::DRAWN_BITS
    }
}

/// The leader of one term.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LeaderId {
    pub(crate) term: u64,
    pub(crate) node: NodeId,
}

impl fmt::Display for LeaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}-n{}", self.term, self.node)
    }
}

/// The position of one log entry and the leader that wrote it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LogId {
    pub(crate) leader: LeaderId,
    pub(crate) index: u64,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.leader, self.index)
    }
}

/// What a node has promised to a candidate, and whether a quorum made that candidate leader.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vote {
    pub(crate) leader: LeaderId,
    pub(crate) committed: bool,
}

/// What an operator knows a node by, and where it last said it can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeInfo {
    pub(crate) name: String,
    pub(crate) address: String,
}

/// The voters of one or (during a change) two quorums, and everybody's name and address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) configs: Vec<BTreeSet<NodeId>>,
    pub(crate) nodes: BTreeMap<NodeId, NodeInfo>,
}

impl Membership {
    pub(crate) fn is_voter(&self, node: NodeId) -> bool {
        self.configs.iter().any(|config| config.contains(&node))
    }
}

/// A membership and the entry that brought it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredMembership {
    pub(crate) log_id: Option<LogId>,
    pub(crate) membership: Membership,
}

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub(crate) log_id: LogId,
    pub(crate) payload: Payload,
}

/// What a log entry carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// Written by a new leader to commit what its predecessors left.
    Blank,
    /// An encoded [`Proposal`](crate::command::Proposal); decoded only where it is applied.
    Proposal(Bytes),
    /// A change of the voters.
    Membership(Membership),
}

/// A member of the cluster as the host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The data directory's identity.
    pub id: NodeId,
    /// The name the node was started with.
    pub name: String,
    /// The address the formation gave for it.
    pub address: String,
    /// Whether it takes part in quorums.
    pub voter: bool,
}

/// Where a frame is to be delivered. Handed to the host's transport.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// The name the peer was started with; unique within the cluster.
    pub name: String,
    /// What the formation list says for that name. quorate never looks inside it.
    pub address: String,
}

impl Peer {
    /// A peer called `name`, to be reached at `address`.
    pub fn new(name: impl Into<String>, address: impl Into<String>) -> Self {
        Peer { name: name.into(), address: address.into() }
    }
}

impl From<(&str, &str)> for Peer {
    fn from((name, address): (&str, &str)) -> Self {
        Peer::new(name, address)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.address)
    }
}

/// Longest key, table name included, in bytes.
pub const KEY_BYTES_MAX: usize = 4 * 1024;
/// Longest name of a table, in bytes.
pub const TABLE_NAME_BYTES_MAX: usize = 256;
/// Largest value, header included, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Largest transaction (all its keys and values, those of its conditions too), in bytes.
pub const WRITE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most compares and operations in one transaction.
pub const TXN_OPS_MAX: usize = 4096;
/// Shortest and longest time to live of a key or a session.
pub const TTL_MIN: Duration = Duration::from_millis(1);
/// See [`TTL_MIN`].
pub const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
