//! Doors for this crate's own benchmarks and tests, behind the feature `internals`. No promise holds for anything in here.

#[cfg(feature = "sim")]
mod simulate;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;

#[cfg(feature = "sim")]
pub use self::simulate::{Simulated, in_a_simulated_process, run_in_a_simulated_process, simulate};
use crate::api::builder::Builder;
use crate::api::cluster::Cluster;
use crate::command::{Attach, Command, Op, Proposal, Stamp, Txn};
use crate::error::StartError;
use crate::format::command::encode_proposal;
use crate::rt::worker::{Drive, Driver};
use crate::storage::disk::{DirDisk, Disk};
use crate::storage::journal::{self, JournalDisk};
use crate::storage::log::Log;
use crate::storage::state::StateStore;
use crate::storage::{self, Opened, state_engine};
use crate::types::{ClientId, LeaderId, LogEntry, LogId, NodeId, Payload, Revision};

pub use crate::storage::journal::Lost;

/// What one node has done since it was opened.
#[derive(Copy, Clone, Debug, Default)]
pub struct Counters {
    /// Groups that the log engine made durable: one sync each.
    pub log_syncs: u64,
    /// Index of the newest applied entry.
    pub applied: u64,
}

/// Reads the counters of the handle's node.
pub fn counters(cluster: &Cluster) -> Counters {
    let node = cluster.node();
    let applied = node.state().view().applied.map_or(0, |id| id.index);
    Counters { log_syncs: node.log().syncs(), applied }
}

/// A log engine without a node around it, on its own thread.
pub struct LogAlone {
    log: Log,
    next: Mutex<u64>,
    driver: Driver,
}

impl LogAlone {
    /// Opens the log of an empty or existing directory.
    ///
    /// # Errors
    /// As when a node is opened.
    pub fn open(directory: &Path) -> Result<Self, StartError> {
        let disk = Arc::new(DirDisk::open(directory.to_owned())?);
        let Opened { log, log_engine, .. } = storage::open(disk, "bench", || (NodeId::new(1), 1))?;
        let next = log.bounds().1.map_or(0, |last| last.index + 1);
        let io = |source| StartError::Io { path: directory.to_owned(), source };
        let driver = log.start(log_engine, Drive::Thread).map_err(io)?;
        Ok(LogAlone { log, next: Mutex::new(next), driver })
    }

    /// Appends one entry and blocks until it is on disk.
    ///
    /// # Errors
    /// The disk's.
    pub fn append(&self, payload: Bytes) -> io::Result<()> {
        let (done, durable) = mpsc::sync_channel(1);
        let mut next = self.next.lock().expect("no panic while held");
        let log_id = LogId { leader: LeaderId { term: 1, node: NodeId::new(1) }, index: *next };
        let entry = LogEntry { log_id, payload: Payload::Proposal(payload) };
        // Under the lock, so that the entries are appended in the order of their numbers.
        self.log.append(vec![entry], Box::new(move |result| drop(done.send(result))));
        *next += 1;
        drop(next);
        Ok(durable.recv().expect("the engine tells every outcome")?)
    }

    /// Groups made durable so far: one sync each.
    pub fn syncs(&self) -> u64 {
        self.log.syncs()
    }

    /// Closes the file.
    ///
    /// # Errors
    /// The disk's.
    pub fn close(self) -> io::Result<()> {
        let (done, closed) = mpsc::sync_channel(1);
        self.log.close(Box::new(move |result| drop(done.send(result))));
        let result = closed.recv().expect("the engine tells every outcome");
        self.driver.join_blocking();
        Ok(result?)
    }
}

/// A state engine without a node around it, on its own thread.
pub struct StateAlone {
    state: StateStore,
    log: Log,
    next: u64,
    drivers: [Driver; 2],
}

impl StateAlone {
    /// Opens the state of an empty directory, with one client's record, the first.
    ///
    /// # Errors
    /// As when a node is opened.
    pub fn open(directory: &Path) -> Result<Self, StartError> {
        let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(directory.to_owned())?);
        let Opened { identity, log, log_engine, state_db, poison } =
            storage::open(disk.clone(), "bench", || (NodeId::new(1), 1))?;
        let (state, state_engine) = state_engine::open(state_db, identity.node, log.clone(), poison, &disk)?;
        let io = |source| StartError::Io { path: directory.to_owned(), source };
        let log_driver = log.start(log_engine, Drive::Thread).map_err(io)?;
        let state_driver = state.start(state_engine, Drive::Thread).map_err(io)?;
        let mut alone = StateAlone { state, log, next: 1, drivers: [state_driver, log_driver] };
        alone.apply(vec![proposal(None, Command::ClientOpen { ttl_ms: 3_600_000 })]).map_err(io)?;
        Ok(alone)
    }

    /// Applies encoded proposals as one batch and blocks until that is done.
    ///
    /// # Errors
    /// The disk's.
    pub fn apply(&mut self, proposals: Vec<Bytes>) -> io::Result<()> {
        let (done, applied) = mpsc::sync_channel(1);
        let leader = LeaderId { term: 1, node: NodeId::new(1) };
        let first = self.next;
        self.next += proposals.len() as u64;
        let entry =
            |(index, payload)| LogEntry { log_id: LogId { leader, index }, payload: Payload::Proposal(payload) };
        let entries = (first..).zip(proposals).map(entry).collect();
        self.state.apply(entries, Box::new(move |result| drop(done.send(result.map(drop)))));
        Ok(applied.recv().expect("the engine tells every outcome")?)
    }

    /// Closes the files.
    ///
    /// # Errors
    /// The disk's.
    pub fn close(self) -> io::Result<()> {
        // The state first: its last commit waits for the log.
        let (done, closed) = mpsc::sync_channel(1);
        self.state.close(Box::new(move |result| drop(done.send(result))));
        closed.recv().expect("the engine tells every outcome")?;
        let (done, closed) = mpsc::sync_channel(1);
        self.log.close(Box::new(move |result| drop(done.send(result))));
        closed.recv().expect("the engine tells every outcome")?;
        self.drivers.iter().for_each(Driver::join_blocking);
        Ok(())
    }
}

/// A write of `key` as the first client's number `seq`, the lowest unanswered one being `low`.
pub fn put(seq: u64, low: u64, key: &str, value: Bytes) -> Bytes {
    let (key, lease) = (Bytes::copy_from_slice(key.as_bytes()), Attach::Forever);
    let put = Op::Put { key, value, lease, prev: false };
    let txn = Txn { compares: Vec::new(), then: [put].into(), otherwise: Vec::new() };
    proposal(Some(Stamp { client: ClientId::new(1), seq, low }), Command::Txn(txn))
}

/// Moves the floor of history.
pub fn compact(floor: u64) -> Bytes {
    proposal(None, Command::Compact { floor: Revision::new(floor) })
}

fn proposal(stamp: Option<Stamp>, command: Command) -> Bytes {
    encode_proposal(&Proposal { origin: NodeId::new(1), wall_ms: 1_700_000_000_000, stamp, command })
}

/// Keeps the node's files in `directory`, and in `journals`, which must be there, a journal of all that is done to them.
///
/// # Errors
/// [`StartError::Io`] if the directory is not there and cannot be made.
pub fn journaled(builder: Builder, directory: &Path, journals: &Path) -> Result<Builder, StartError> {
    Ok(builder.disk(Arc::new(JournalDisk::open(directory, journals)?)))
}

/// Makes of the files of a killed node what a power failure may have left of them; `seed` chooses.
///
/// # Errors
/// The file system's; [`io::ErrorKind::InvalidData`] for a journal that does not fit its file.
pub fn power_failure(directory: &Path, journals: &Path, seed: u64) -> io::Result<Lost> {
    journal::power_failure(directory, journals, seed)
}
