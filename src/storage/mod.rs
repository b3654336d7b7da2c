//! The files of one node: a log, a redb database, and who they belong to.
//!
//! `log.wal` is what a node has promised (votes, entries); `state.redb` is what it has applied. Each has an engine of its
//! own: the log is one small write and one sync at a time, and nothing else may hold it up. The state has a second one, which
//! makes durable what the first has applied. This floor is the only one that names redb. It is synchronous, and knows no clock:
//! [`rt::worker`](crate::rt::worker) drives it.
//!
//! [`open`] answers for the identity of what it opens; everything after that is the engines' business. All writing goes
//! through one [`Poison`]: the first error of either file stops both.

mod answers;
mod committer;
pub(crate) mod disk;
#[cfg(any(test, feature = "sim", feature = "internals"))]
pub(crate) mod fault_disk;
pub(crate) mod identity;
#[cfg(any(test, feature = "internals"))]
pub(crate) mod journal;
mod leftovers;
mod live_rows;
pub(crate) mod log;
pub(crate) mod log_engine;
pub(crate) mod log_file;
mod log_pen;
mod log_reads;
mod log_recovery;
mod milestones;
pub(crate) mod poison;
mod positions;
mod recent;
mod records;
pub(crate) mod snapshot;
pub(crate) mod state;
pub(crate) mod state_engine;
mod state_rows;
#[cfg(test)]
mod support;
mod tail;
#[cfg(any(test, feature = "internals"))]
pub(crate) mod tests;
pub(crate) mod view;

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use redb::{Builder, Database, StorageBackend};

use crate::error::{StartError, StorageError};
use crate::format::identity::{IdentityRow, decode_identity, encode_identity, failure_reason};
use crate::format::log::FileHead;
use crate::format::log_items::Opening;
use crate::format::wire::DecodeError;
use crate::rt::{Mark, mark};
use crate::types::NodeId;

use disk::{Disk, FAILED_FILE, File};
use identity::{DbError, Identity, guarded, read_row, write_row};
use log::Log;
use log_engine::LogEngine;
use log_file::{LogFile, SEGMENT_BYTES};
use log_recovery::{LogError, Recovered, recover};
use poison::{GuardedBackend, Poison};

/// Told once how a request to a storage engine ended.
pub(crate) type Done = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// Pages of `state.redb` kept in memory.
const STATE_CACHE_BYTES: usize = 256 << 20;

/// A data directory whose files are open, locked, and known to belong together.
pub(crate) struct Opened {
    pub(crate) identity: Identity,
    pub(crate) log: Log,
    /// To be started with [`Log::start`], after [`LogEngine::repair_to_applied`].
    pub(crate) log_engine: LogEngine,
    /// `state.redb`, its identity checked; its other tables are the state engine's business.
    pub(crate) state_db: Database,
    /// Shared by both engines.
    pub(crate) poison: Poison,
}

/// Opens the node's directory, or makes what it holds; `mint` gives a new directory its id and nonce.
///
/// A directory is made in this order, and each step is synced before the next begins:
/// 1. `log.wal`, with the identity, not `complete`;
/// 2. `state.redb`, with the same identity;
/// 3. `complete`, in `log.wal`. Every later opening counts itself there.
///
/// Until the third step nothing else is written and nobody is told the id, so a creation that died before it is taken up
/// where it stopped. After it, one file without the other, or of another nonce, is lost data: what the node promised in it
/// is forgotten, and it must not come back. (Both files gone are a new directory, as far as can be told here; whether its
/// peers know better is asked when a cluster is formed.)
///
/// # Errors
/// Every [`StartError`] but those of configuration and formation.
pub(crate) fn open(
    disk: Arc<dyn Disk>,
    name: &str,
    mint: impl FnOnce() -> (NodeId, u64),
) -> Result<Opened, StartError> {
    open_sized(disk, name, SEGMENT_BYTES, mint)
}

/// As [`open`]; a log that is made gets segments of `segment_bytes`.
fn open_sized(
    disk: Arc<dyn Disk>,
    name: &str,
    segment_bytes: usize,
    mint: impl FnOnce() -> (NodeId, u64),
) -> Result<Opened, StartError> {
    let directory = Directory { poison: Poison::new(disk.clone()), disk };
    if let Some(marker) = directory.disk.failed()? {
        let path = directory.disk.path().join(FAILED_FILE);
        return Err(StartError::Failed { path, reason: failure_reason(&marker) });
    }
    // In this order: another process may be making the two files just now, `log.wal` first.
    if directory.disk.exists(File::State)? && !directory.disk.exists(File::Log)? {
        return Err(directory.lost("log.wal is missing"));
    }
    let OpenedLog { row, log, mut engine } = directory.open_log(name, segment_bytes, mint)?;
    let used = log.vote().is_some() || log.bounds().1.is_some() || row.promise.is_some();
    if !row.complete && used {
        return Err(directory.damaged(File::Log, "it has been used, but was never completed".to_owned()));
    }
    let state_db = directory.open_state(&row)?;
    // Before anybody hears of this node: what tells one life of a directory from the next has to outlive it.
    let row = IdentityRow { complete: true, starts: row.starts + 1, ..row };
    engine.write_identity(&row).map_err(|error| directory.io(File::Log, error.into()))?;
    Ok(Opened { identity: row.into(), log, log_engine: engine, state_db, poison: directory.poison })
}

struct Directory {
    disk: Arc<dyn Disk>,
    poison: Poison,
}

/// `log.wal`, and who it says this is.
struct OpenedLog {
    row: IdentityRow,
    log: Log,
    engine: LogEngine,
}

impl Directory {
    fn open_log(
        &self,
        name: &str,
        segment_bytes: usize,
        mint: impl FnOnce() -> (NodeId, u64),
    ) -> Result<OpenedLog, StartError> {
        let backend = Arc::new(self.poison.backend(File::Log)?);
        match recover(&backend).map_err(|error| self.log_refused(error))? {
            Some(recovered) => self.resume_log(name, recovered),
            // Looked at again behind the lock: now nobody else can be making it.
            None if self.disk.exists(File::State)? => Err(self.lost("log.wal is empty")),
            None => {
                let (node, nonce) = mint();
                let identity = Identity { node, name: name.to_owned(), nonce, starts: 0, cluster: None, promise: None };
                self.create_log(backend, segment_bytes, identity.row(false))
            }
        }
    }

    fn create_log(
        &self,
        backend: Arc<GuardedBackend>,
        segment_bytes: usize,
        row: IdentityRow,
    ) -> Result<OpenedLog, StartError> {
        let segment_bytes = u32::try_from(segment_bytes).expect("a segment is far smaller");
        let head = FileHead { segment_bytes, salt: row.nonce };
        let file = LogFile::create(backend, head).map_err(|error| self.io(File::Log, error))?;
        let front = Opening { identity: encode_identity(&row), ..Opening::default() };
        let mut opened = self.opened_log(row, Recovered::new(front, file));
        let written = opened.engine.write_identity(&opened.row);
        written.map_err(|error| self.io(File::Log, error.into()))?;
        Ok(opened)
    }

    /// Takes up a log that was read back, if it is the one of the node `name`.
    fn resume_log(&self, name: &str, mut recovered: Recovered) -> Result<OpenedLog, StartError> {
        let row = decode_identity(recovered.front.identity.clone());
        let row = row.map_err(|error| self.log_refused(LogError::Format(error)))?;
        if row.name != name {
            let path = self.disk.path().to_owned();
            return Err(StartError::OtherNode { path, found: row.name, wanted: name.to_owned() });
        }
        recovered.settle().map_err(|error| self.io(File::Log, error))?;
        Ok(self.opened_log(row, recovered))
    }

    fn opened_log(&self, row: IdentityRow, recovered: Recovered) -> OpenedLog {
        let Recovered { front, positions, file, .. } = recovered;
        let (backend, bytes) = (file.backend().clone(), file.bytes());
        let (log, shared) = Log::new(backend, front.summary.clone(), positions, bytes, self.poison.clone());
        OpenedLog { row, log, engine: LogEngine::new(file, front, shared, self.poison.clone()) }
    }

    /// `state.redb`, which has to be there and to fit if the directory was made to the end.
    fn open_state(&self, log: &IdentityRow) -> Result<Database, StartError> {
        if log.complete && !self.disk.exists(File::State)? {
            return Err(self.lost("state.redb is missing"));
        }
        let backend = self.poison.backend(File::State)?;
        let unfinished = is_unfinished(&backend).map_err(|error| self.io(File::State, error))?;
        if log.complete && unfinished {
            return Err(self.lost("state.redb is empty"));
        }
        if unfinished {
            // Its making died in redb's first steps.
            backend.set_len(0).map_err(|error| self.io(File::State, error))?;
        }
        let mut builder = Builder::new();
        builder.set_cache_size(STATE_CACHE_BYTES).set_repair_callback(|_| mark(Mark::DatabaseRepaired));
        let db = self.state(|| Ok(builder.create_with_backend(backend)?))?;
        match self.state(|| read_row(&db))? {
            Some(row) if (row.node, row.nonce) == (log.node, log.nonce) => {}
            Some(_) => return Err(self.lost("log.wal and state.redb come from different directories")),
            None if log.complete => return Err(self.lost("state.redb does not say whose it is")),
            None => self.state(|| write_row(&db, log))?,
        }
        Ok(db)
    }

    fn state<T>(&self, with: impl FnOnce() -> Result<T, DbError>) -> Result<T, StartError> {
        guarded(with).map_err(|error| match &error {
            DbError::Open(redb::DatabaseError::DatabaseAlreadyOpen) => {
                StartError::InUse { path: self.path(File::State) }
            }
            DbError::Row(row) => self.refused(File::State, Some(row), &error),
            _ => self.refused(File::State, None, &error),
        })
    }

    fn log_refused(&self, error: LogError) -> StartError {
        match &error {
            LogError::Format(format) => self.refused(File::Log, Some(format), &error),
            _ => self.refused(File::Log, None, &error),
        }
    }

    fn path(&self, file: File) -> PathBuf {
        self.disk.path().join(file.name())
    }

    fn lost(&self, what: &str) -> StartError {
        StartError::DataLost { path: self.disk.path().to_owned(), what: what.to_owned() }
    }

    fn damaged(&self, file: File, what: String) -> StartError {
        StartError::Corrupted { path: self.path(file), what }
    }

    fn io(&self, file: File, source: io::Error) -> StartError {
        StartError::Io { path: self.path(file), source }
    }

    /// What a file that cannot be read means to whoever opens the directory; `format` is what its bytes say, if that is
    /// why.
    fn refused(&self, file: File, format: Option<&DecodeError>, error: &dyn Display) -> StartError {
        // The disk's own words, where there are any: redb repeats the first error in other ones.
        if let Some(error) = self.poison.error() {
            return self.io(file, error.into());
        }
        match format.and_then(DecodeError::newer_format) {
            Some((found, known)) => StartError::NewerFormat { path: self.path(file), found, known },
            None => self.damaged(file, error.to_string()),
        }
    }
}

/// Whether redb never finished making this file: it writes the first bytes, which name the format, last of all.
fn is_unfinished(backend: &GuardedBackend) -> io::Result<bool> {
    let mut front = [0; 9];
    let len = backend.len()?.min(front.len() as u64) as usize;
    backend.read(0, &mut front[..len])?;
    Ok(front == [0; 9])
}
