//! A consensus key-value store inside your own process: a service's replicas are the cluster.
//!
//! Every replica links this crate, opens a [`Cluster`] on a directory of its own, and passes it a [`Transport`]. From then on
//! it holds the whole state, takes writes and answers reads, whichever replica leads.
//!
//! ```
//! # futures::executor::block_on(async {
//! use std::time::Duration;
//! use quorate::{Cluster, prefix};
//!
//! // Three nodes in one process, in memory. `Cluster::builder` starts one on a directory.
//! let nodes = Cluster::local(3).await?;
//!
//! // An instance registers itself for three seconds; it would renew that each second.
//! let mut watch = nodes[2].watch::<String>(prefix("services/web/")).await?;
//! nodes[0].set("services/web/1", &"10.0.0.7:8080".to_string()).ttl(Duration::from_secs(3)).await?;
//!
//! // Every node sees it at once, and a watcher on any of them is told.
//! let address = nodes[1].get::<String>("services/web/1").await?.expect("just registered");
//! assert_eq!(*address, "10.0.0.7:8080");
//! let batch = watch.next().await.expect("the node runs")?;
//! assert_eq!(batch.events[0].key(), "services/web/1");
//! # for node in &nodes { node.shutdown().await?; }
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```
//!
//! # Promises
//!
//! * **Strict serializability.** All transactions have one order, which agrees with real time. Reads are linearizable on
//!   every node by a shared round of the leader's quorum (ReadIndex; Ongaro, *Consensus: Bridging Theory and Practice*, 6.4);
//!   `.stale()`, `.at_least(revision)` and `.at(revision)` are explicit.
//! * **Durability.** Acknowledged means on disk, by fsync, on a majority; it survives the loss of power of all nodes at once.
//! * **Exactly once.** A write is decided once, across retries, forwarding, changes of leader and restarts. An unknown outcome
//!   is [`Error::Indeterminate`] with a [`Ticket`], which [`Cluster::resolve`] settles.
//! * **Watches** are ordered, whole, resumable, and never lossy without saying so ([`Cluster::watch`]). A mirror is a typed copy
//!   in memory that follows them: each of its states is one that was committed ([`Cluster::mirror`]).
//! * **Leases never end early**, and never by anybody's wall clock.
//! * **Locks** have one holder in the state, strictly increasing [`Fence`]s, and guards that are lost before another can hold
//!   ([`Cluster::lock`]). So have elections, reader-writer locks and semaphores ([`Cluster::election`], [`Cluster::rwlock`],
//!   [`Cluster::semaphore`]). Barriers, latches and counters count each party, event and addition once ([`Cluster::barrier`],
//!   [`Cluster::latch`], [`Cluster::counter`]).
//! * **Registrations** put themselves right after deletions and partitions, are replaced at once by a restart, and never
//!   outlive their lease ([`Cluster::services`]).
//! * **Queues** give each item to one worker at a time, in order, again if that worker dies, and acknowledge it once
//!   ([`Cluster::queue`]).
//! * **A broken disk stops its node.** After the first storage error nothing is acknowledged or voted. So does a state that is
//!   not what a majority has: members compare digests of theirs ([`Status::state_hash`]).
//!
//! Not promised: tolerance of nodes that lie; exclusion at a resource that does not check the fence; room for more than one
//! disk holds.
//!
//! # Words
//!
//! A *revision* counts the transactions that changed something; each key knows the revisions that created and last modified
//! it. A *lease* is a time to live with keys attached; a [`Session`] is a lease that renews itself. A *member* is one data
//! directory, for life; its *name* is what people call it.
//!
//! # Tables
//!
//! The verbs of [`Cluster`] take text as keys and any type of value, chosen call by call. A [`Table`] is a constant that fixes
//! both, with the codec and the schema version, and has the same verbs: `cluster.table(JOBS).get(("web", 1))`. Its keys are
//! text, bytes, integers or tuples, and its ranges are in their order. Beside them there is one tree of files and directories
//! ([`Cluster::tree`]). What was at a key before, and whose write that was, is told by [`Cluster::explain`].
//!
//! # Transactions
//!
//! What belongs together is read from one [`Snapshot`] ([`Cluster::read`], also of a past revision) and written by one
//! transaction: a closure whose reads are checked when its writes are decided, and which is run again if they do not hold any
//! more ([`Cluster::txn`]), or conditions and operations said beforehand ([`Cluster::transaction`]). One key is changed by a
//! function of its value with [`Cluster::update`], and any write can be held to a guard or a session ([`Fenced`]).
//!
//! # Operations
//!
//! An operation is described by a builder (`cluster.set("k", &v).ttl(d).if_absent()`) and carried out when that is awaited, on
//! the node's own runtime: it works from any executor, and dropping the future does not leave it half done (closures run in the
//! caller's task). A condition that does not hold is a value ([`Cas::Conflict`]), not an error; errors are typed by what the
//! caller can do ([`Error`]).
//!
//! The node's tasks run on a thread of their own unless [`Builder::runtime`] says otherwise, beside one thread for each of its
//! two files and one that makes the applied state durable. Events go to the [`tracing`](https://docs.rs/tracing) subscriber of the host.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
// What only tests use is judged where tests are built.
#![cfg_attr(not(test), allow(dead_code))]

mod api;
#[cfg(any(test, feature = "internals"))]
mod choices;
#[cfg(test)]
mod cluster_tests;
mod codec;
mod command;
mod config;
mod error;
mod format;
#[cfg(any(test, feature = "internals"))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod node;
mod raft;
mod recipes;
mod rt;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod state_machine;
mod storage;
pub mod transport;
mod types;
mod watch_hub;

pub use crate::api::builder::Builder;
pub use crate::api::cluster::{Cluster, Health, Outcome, Status};
pub use crate::api::fence::Fenced;
pub use crate::api::history::{Explain, HISTORY_ENTRIES, HISTORY_ENTRIES_MAX, History, HistoryChange, HistoryEntry};
pub use crate::api::key::{Key, Leading};
pub use crate::api::keys::{Keys, leading, prefix};
pub use crate::api::kv::{Cas, Delete, Deleted, Entry, Get, Replaced, Set, SetIf, SetPrev, Written};
pub use crate::api::listing::Listing;
pub use crate::api::mirror::{Change, Delta, Mirror, MirrorKey, Mirrored, MirroredEntries, OpenMirror, OpenMirrorKey};
pub use crate::api::range::{Count, Entries, RANGE_ENTRIES_MAX, Range, Scan};
pub use crate::api::retry::{TXN_ATTEMPTS, TXN_ATTEMPTS_MAX};
pub use crate::api::session::{
    Lost, LostReason, OpenSession, SESSION_NAME_BYTES_MAX, SESSION_REFRESH_MIN, SESSION_TTL_MIN, Session,
};
pub use crate::api::snapshot::{OpenSnapshot, Snapshot, SnapshotTable};
pub use crate::api::table::{Map, Table};
pub use crate::api::txn::{
    Committed, Condition, Operation, Put, TableWhen, Transact, Transaction, Txn, TxnOutcome, TxnTable, When, list, put,
    read, remove, when,
};
pub use crate::api::update::{Update, Updated};
pub use crate::api::watch::{Batch, BatchKind, Cause, Event, Watch, WatchBuilder};
pub use crate::codec::{Bincode, Codec, Json, Raw, Upgrade, Value, upgrade, upgrade_with};
pub use crate::config::{Runtime, Timing};
pub use crate::error::{Error, FormationError, KeyError, Obstacle, StartError};
pub use crate::node::Formation;
pub use crate::recipes::barrier::{BARRIER_PARTIES_MAX, Barrier, BarrierState, Meeting};
pub use crate::recipes::counter::Counter;
pub use crate::recipes::election::{
    Campaign, ELECTION_VALUE_BYTES_MAX, Election, ElectionState, Leader, Leadership, Observe, TryCampaign,
};
pub use crate::recipes::inspect::Claimant;
pub use crate::recipes::latch::Latch;
pub use crate::recipes::lock::{LOCK_CLAIMS_MAX, LOCK_NAME_BYTES_MAX, Lock, LockGuard, LockState, TryLock};
pub use crate::recipes::queue::{Ack, Delivery, Pop, QUEUE_ITEMS_MAX, Queue, QueueHeld, QueueItem, QueueState, TryPop};
pub use crate::recipes::registry::{
    Departure, Discover, Discovery, INSTANCE_HOST_BYTES_MAX, INSTANCE_ID_BYTES_MAX, INSTANCE_METADATA_BYTES_MAX,
    INSTANCE_METADATA_MAX, Incarnation, Instance, InstanceEvent, Instances, Leaving, Register, RegisterTarget,
    Registered, Registration, RegistrationState, RegistrationStates, Renewal, SERVICE_NAME_BYTES_MAX, SERVICES,
    Services, Target, Verdict,
};
pub use crate::recipes::rwlock::{Access, ReadGuard, RwLock, RwLockState, RwWaiter, TryAccess, WriteGuard};
pub use crate::recipes::semaphore::{Permit, SEMAPHORE_PERMITS_MAX, Semaphore, SemaphoreState, TrySemaphore};
pub use crate::recipes::tree::{
    TREE_DEPTH_MAX, TREE_PATH_BYTES_MAX, Tree, TreeChanged, TreeError, TreeGet, TreeList, TreePut, TreeRemove,
    TreeRemoved, TreeValue,
};
pub use crate::transport::{Inbound, Lane, MemoryNetwork, MemoryTransport, Transport, TransportError};
pub use crate::types::{
    ClientId, ClusterId, Fence, KEY_BYTES_MAX, LeaseId, Member, NodeId, Peer, Revision, TABLE_NAME_BYTES_MAX, TTL_MAX,
    TTL_MIN, TXN_OPS_MAX, Ticket, VALUE_BYTES_MAX, WRITE_BYTES_MAX,
};

/// The README's blocks compile, but for those that are only shapes.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
