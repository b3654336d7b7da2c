//! What can go wrong, one variant for each thing a caller can do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::types::{ClusterId, LeaseId, Revision, Ticket};

/// Why a data directory was not opened. Nothing that it holds was changed, except where a variant says so (the file of the
/// state may have been marked as opened, and the start counted).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is outside its range; nothing was opened.
    #[error("{setting} is {value}, but {rule}")]
    Config {
        /// The setting's name.
        setting: &'static str,
        /// What it was set to.
        value: String,
        /// The rule it breaks.
        rule: String,
    },
    /// Another process (or another handle in this one) holds the directory. Stop it, or choose another directory.
    #[error("{path} is in use by another process or another Cluster in this one: a data directory belongs to one node")]
    InUse {
        /// The file that is locked.
        path: PathBuf,
    },
    /// The directory held this node's data once and part of it is missing or from another time.
    ///
    /// The node must not come back under this identity: what it promised may be forgotten. Replace the member with one
    /// on an empty directory.
    #[error("{path}: {what}: this member's data is lost; replace the member, starting it on an empty directory")]
    DataLost {
        /// The directory.
        path: PathBuf,
        /// What is missing, or does not fit.
        what: String,
    },
    /// This node was stopped for good in an earlier run: its disk failed, or what it held was not what its cluster has. What
    /// the directory holds since is not known. Replace the member.
    #[error("{path} is marked as failed ({reason}): replace the member, starting it on an empty directory")]
    Failed {
        /// The marker file.
        path: PathBuf,
        /// What the marker says.
        reason: String,
    },
    /// The files are damaged.
    #[error("{path} is damaged: {what}; replace the member, starting it on an empty directory")]
    Corrupted {
        /// The damaged file.
        path: PathBuf,
        /// What does not add up.
        what: String,
    },
    /// The directory was written by a newer release. Start that release.
    #[error("{path} has format {found}; this build reads up to {known}: start the newer release")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format version.
        found: u64,
        /// The newest one this build reads.
        known: u64,
    },
    /// The directory is another node's. Nothing was changed.
    #[error("{path} belongs to node {found:?}, but this node was started as {wanted:?}")]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// The name in the directory.
        found: String,
        /// The name in the arguments.
        wanted: String,
    },
    /// The directory cannot be opened or created.
    ///
    /// If the disk failed while the files in it were read or written, the directory is marked as failed by now.
    #[error("cannot open {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The peers do not agree on who forms the cluster.
    #[error("{0}")]
    Formation(#[from] FormationError),
}

/// Why no cluster was formed, or why this node may not be part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormationError {
    /// Two nodes were started with different lists of peers.
    #[error("{here} was started with the peers {ours}, {there} with {theirs}: give every node the same list")]
    DifferentPeers {
        /// This node's name.
        here: String,
        /// This node's list.
        ours: String,
        /// The other's name.
        there: String,
        /// The other's list.
        theirs: String,
    },
    /// A peer holds data of another cluster.
    #[error("{here} belongs to cluster {ours}, {there} to cluster {theirs}: one of them has the wrong directory")]
    OtherCluster {
        /// This node's name.
        here: String,
        /// This node's cluster.
        ours: ClusterId,
        /// The other's name.
        there: String,
        /// The other's cluster.
        theirs: ClusterId,
    },
    /// This node's directory is empty, but its peers already form a cluster that had it as a member.
    #[error(
        "the directory of {here} is empty, but {there} already belongs to cluster {cluster}: \
         what {here} promised is lost; replace the member"
    )]
    DataLost {
        /// This node's name.
        here: String,
        /// A peer that holds data.
        there: String,
        /// The cluster it belongs to.
        cluster: ClusterId,
    },
}

/// Why an operation has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input cannot be accepted; nothing was sent. Mend the call.
    #[error("{what}: {why}")]
    Invalid {
        /// The offending argument.
        what: &'static str,
        /// The rule, with the values.
        why: String,
    },
    /// It was not carried out and never will be. Trying again is safe.
    #[error("not applied after {waited:?}: {why}; it is safe to try again")]
    NotApplied {
        /// What stood in the way.
        why: Obstacle,
        /// How long the operation tried.
        waited: Duration,
    },
    /// It may or may not have been carried out. Ask with `Cluster::resolve` before doing it again.
    #[error("the outcome of write {ticket} is not known: resolve the ticket before writing again")]
    Indeterminate {
        /// Names the write.
        ticket: Ticket,
    },
    /// The lease is not there: it expired or was revoked. Open a new session and attach the keys again.
    #[error("lease {lease} has expired or was revoked: open a new session")]
    LeaseNotFound {
        /// The lease.
        lease: LeaseId,
    },
    /// Others use this name with another size. Name theirs, choose another name, or remove the old one when nobody uses it.
    #[error(
        "{what}: there are {stored}, but {given} were asked for: name the same number, or remove the old one first"
    )]
    Mismatch {
        /// What has the size.
        what: &'static str,
        /// The size it has.
        stored: u64,
        /// The size that was asked for.
        given: u64,
    },
    /// The guard was superseded; what it protected now belongs to somebody else. Stop the work it covered.
    #[error("superseded: the claim of fence {held} is gone (revision {current}); stop the work it covered")]
    Fenced {
        /// The guard's fence.
        held: u64,
        /// The store's revision when this was found out.
        current: Revision,
    },
    /// The closure of a transaction gave it up; nothing was written. What it says is the closure's.
    #[error("the transaction was given up: {why}")]
    Aborted {
        /// The closure's words.
        why: String,
    },
    /// The history asked for is no longer kept. Read again and go on from there.
    #[error("revision {requested} is compacted; the oldest kept is {oldest}: read again and watch from there")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest revision that can still be asked for.
        oldest: Revision,
    },
    /// The stored value is not what the caller reads it as. Read it with the type and codec it was written with; if it is of
    /// another schema version, declare an upgrade from that, or start the newer release.
    #[error("the value at {key:?} {problem} (codec {codec}, schema version {version})")]
    Codec {
        /// The key, behind the name of its table if that has one: `services:web`.
        key: String,
        /// The codec byte found, or the codec the value was to be written with.
        codec: u8,
        /// The schema version found.
        version: u32,
        /// What does not fit.
        problem: String,
    },
    /// A stored key is not one of its table's type: the table is also written with another one. Give each type a table of
    /// its own name.
    #[error("the key {key:?} of table {table:?} cannot be read: it {problem}")]
    Key {
        /// The table's name.
        table: String,
        /// The key's bytes, as far as they can be shown.
        key: String,
        /// What does not fit.
        problem: String,
    },
    /// The store is at its quota; nothing was proposed. Deletes, reads and keepalives still work.
    #[error("no space: {used} bytes of {limit} in use; delete keys, or raise the quota")]
    NoSpace {
        /// Bytes in use.
        used: u64,
        /// The limit.
        limit: u64,
    },
    /// The disk of a member is nearly full; nothing was proposed. Make room there. Deletes, reads and keepalives still work.
    #[error(
        "the disk of {member:?} is nearly full: {free} bytes are free, {reserve} are kept in reserve; make room there"
    )]
    DiskFull {
        /// The name of the member.
        member: String,
        /// Bytes that are free.
        free: u64,
        /// Bytes that it keeps in reserve: see `Builder::disk_reserve`.
        reserve: u64,
    },
    /// No cluster was formed: the nodes' arguments or directories do not go together.
    #[error(transparent)]
    Formation(#[from] FormationError),
    /// The node is still shutting down: its disk does not come to an end with what it is at. Nothing is served any more, and
    /// the shutdown goes on; call it again to wait for it, or end the process: what was acknowledged is on disk.
    #[error("the node is still shutting down after {waited:?}: its disk does not answer")]
    ShuttingDown {
        /// How long this call waited.
        waited: Duration,
    },
    /// This node has stopped: shut down, or by itself, after a disk error, a bug, or finding that its state or directory is not
    /// what its cluster has. Its last words are in `reason`.
    #[error("this node has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

/// Why some bytes are not a key. See [`Key::decode`](crate::Key::decode).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct KeyError {
    problem: String,
}

impl KeyError {
    /// What does not fit, said of the bytes: "has 3 bytes where 4 are needed".
    pub fn new(problem: impl Into<String>) -> Self {
        KeyError { problem: problem.into() }
    }
}

/// What kept an operation from being carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Obstacle {
    /// No leader could be reached.
    #[error("no leader is known")]
    NoLeader,
    /// The leader did not answer, and what was sent cannot have been carried out.
    #[error("the leader did not answer in time")]
    Timeout,
    /// A limit on work under way is reached.
    #[error("too much is under way ({what}, limit {limit})")]
    Busy {
        /// Which limit.
        what: &'static str,
        /// Its value.
        limit: u64,
    },
    /// Somebody resolved the write's ticket before it was decided, so that it never will be.
    #[error("its ticket was resolved as never applied")]
    Sealed,
    /// Others changed what it depends on, each time it was tried. Try for longer, or depend on less.
    #[error("others changed what it depends on, {attempts} times")]
    Conflict {
        /// How often it was tried.
        attempts: u32,
    },
    /// The lock, office or permit is held, and the caller did not want to wait (any longer).
    #[error("held by somebody else")]
    Held,
    /// Others were waited for who did not come in time.
    #[error("others have not come yet")]
    Waiting,
}

/// The disk, or what was read from it, broke. The first one stops the node for good.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{file}: {what}: {reason}")]
pub(crate) struct StorageError {
    pub(crate) file: &'static str,
    pub(crate) what: &'static str,
    pub(crate) reason: String,
}

impl StorageError {
    pub(crate) fn new(file: &'static str, what: &'static str, reason: impl std::fmt::Display) -> Self {
        StorageError { file, what, reason: reason.to_string() }
    }
}

impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> Self {
        io::Error::other(error.to_string())
    }
}
