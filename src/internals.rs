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
use crate::error::StartError;
use crate::rt::worker::{Drive, Driver};
use crate::storage::disk::DirDisk;
use crate::storage::journal::{self, JournalDisk};
use crate::storage::log::Log;
use crate::storage::{self, Opened};
use crate::types::{LeaderId, LogEntry, LogId, NodeId, Payload};

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
