//! The files of one node: two redb databases, and who they belong to.
//!
//! `log.redb` is what a node has promised (votes, entries); `state.redb` is what it has applied. Each has an engine of its
//! own, since redb has one writer per database and holds it through the fsync. This floor is the only one that names
//! redb. It is synchronous, and knows no clock: [`rt::worker`](crate::rt::worker) drives it.
//!
//! [`open`] answers for the identity of what it opens; everything after that is the engines' business. All writing goes
//! through one [`Poison`]: the first error of either file stops both.

pub(crate) mod disk;
#[cfg(any(test, feature = "internals"))]
pub(crate) mod fault_disk;
pub(crate) mod identity;
#[cfg(any(test, feature = "internals"))]
pub(crate) mod journal;
mod leftovers;
pub(crate) mod log;
pub(crate) mod log_engine;
mod log_rows;
pub(crate) mod poison;
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

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use redb::{Builder, Database, DatabaseError, StorageBackend};

use crate::error::{StartError, StorageError};
use crate::format::identity::failure_reason;
use crate::types::NodeId;

use disk::{Disk, FAILED_FILE, File};
use identity::Identity;
use log::Log;
use log_engine::LogEngine;
use log_rows::{RowsError, guarded};
use poison::{GuardedBackend, Poison};

/// Told once how a request to a storage engine ended.
pub(crate) type Done = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// Pages of `log.redb` kept in memory. Recent entries are read from the tail, so this only speeds up followers that lag.
const LOG_CACHE_BYTES: usize = 32 << 20;

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
/// 1. `log.redb`, with the identity, not `complete`;
/// 2. `state.redb`, with the same identity;
/// 3. `complete`, in `log.redb`.
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
    let directory = Directory { poison: Poison::new(disk.clone()), disk };
    if let Some(marker) = directory.disk.failed()? {
        let path = directory.disk.path().join(FAILED_FILE);
        return Err(StartError::Failed { path, reason: failure_reason(&marker) });
    }
    // In this order: another process may be making the two files just now, `log.redb` first.
    if directory.disk.exists(File::State)? && !directory.disk.exists(File::Log)? {
        return Err(directory.lost("log.redb is missing"));
    }
    let (log_db, identity, complete) = directory.open_log(name, mint)?;
    let loaded = directory.read(File::Log, || log_rows::load(&log_db))?;
    if !complete && (loaded.vote.is_some() || loaded.last.is_some() || identity.promise.is_some()) {
        return Err(directory.damaged(File::Log, "it has been used, but was never completed".to_owned()));
    }
    let state_db = directory.open_state(&identity, complete)?;
    if !complete {
        directory.write_identity(File::Log, &log_db, &identity, true)?;
    }
    let log_db = Arc::new(log_db);
    let (log, shared) = Log::new(log_db.clone(), &loaded, directory.poison.clone());
    let log_engine = LogEngine::new(log_db, &loaded, shared, directory.poison.clone());
    Ok(Opened { identity, log, log_engine, state_db, poison: directory.poison })
}

struct Directory {
    disk: Arc<dyn Disk>,
    poison: Poison,
}

impl Directory {
    /// `log.redb`, who it says this is, and whether the directory was made to the end.
    fn open_log(
        &self,
        name: &str,
        mint: impl FnOnce() -> (NodeId, u64),
    ) -> Result<(Database, Identity, bool), StartError> {
        let backend = self.poison.backend(File::Log)?;
        // Looked at again behind the lock: now nobody else can be making it.
        let orphan = self.disk.exists(File::State)?;
        if self.reset_if_unfinished(File::Log, &backend)? && orphan {
            return Err(self.lost("log.redb is empty"));
        }
        let db = self.open_database(File::Log, backend)?;
        match self.read_identity(File::Log, &db)? {
            Some(row) if row.name == name => {
                let complete = row.complete;
                Ok((db, row.into(), complete))
            }
            Some(row) => {
                let path = self.disk.path().to_owned();
                Err(StartError::OtherNode { path, found: row.name, wanted: name.to_owned() })
            }
            None if orphan => Err(self.lost("log.redb does not say whose it is")),
            None => {
                let (node, nonce) = mint();
                let identity = Identity { node, name: name.to_owned(), nonce, cluster: None, promise: None };
                self.write_identity(File::Log, &db, &identity, false)?;
                Ok((db, identity, false))
            }
        }
    }

    /// `state.redb`, which has to be there and to fit if the directory was made to the end.
    fn open_state(&self, identity: &Identity, complete: bool) -> Result<Database, StartError> {
        if complete && !self.disk.exists(File::State)? {
            return Err(self.lost("state.redb is missing"));
        }
        let backend = self.poison.backend(File::State)?;
        if complete && is_unfinished(&backend).map_err(|error| self.io(File::State, error))? {
            return Err(self.lost("state.redb is empty"));
        }
        self.reset_if_unfinished(File::State, &backend)?;
        let db = self.open_database(File::State, backend)?;
        match self.read_identity(File::State, &db)? {
            Some(row) if (row.node, row.nonce) == (identity.node, identity.nonce) => {}
            Some(_) => return Err(self.lost("log.redb and state.redb come from different directories")),
            None if complete => return Err(self.lost("state.redb does not say whose it is")),
            None => self.write_identity(File::State, &db, identity, false)?,
        }
        Ok(db)
    }

    /// Empties a file whose creation died in redb's first steps, and says whether it is empty now.
    fn reset_if_unfinished(&self, file: File, backend: &GuardedBackend) -> Result<bool, StartError> {
        let reset = || {
            let unfinished = is_unfinished(backend)?;
            if unfinished && backend.len()? > 0 {
                backend.set_len(0)?;
            }
            Ok(unfinished)
        };
        reset().map_err(|error| self.io(file, error))
    }

    fn open_database(&self, file: File, backend: GuardedBackend) -> Result<Database, StartError> {
        let cache_bytes = match file {
            File::Log => LOG_CACHE_BYTES,
            File::State => STATE_CACHE_BYTES,
        };
        self.read(file, || Ok(Builder::new().set_cache_size(cache_bytes).create_with_backend(backend)?))
    }

    fn read<T>(&self, file: File, read: impl FnOnce() -> Result<T, RowsError>) -> Result<T, StartError> {
        guarded(read).map_err(|error| self.refused(file, error))
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

    /// What a row or a database that cannot be read means to whoever opens the directory.
    fn refused(&self, file: File, error: RowsError) -> StartError {
        use crate::format::wire::DecodeError::UnknownVersion;
        // The disk's own words, where there are any: redb repeats the first error in other ones.
        if let Some(error) = self.poison.error() {
            return self.io(file, error.into());
        }
        match error {
            RowsError::Open(DatabaseError::DatabaseAlreadyOpen) => StartError::InUse { path: self.path(file) },
            RowsError::Row { error: UnknownVersion { found, known, .. }, .. } => {
                StartError::NewerFormat { path: self.path(file), found, known }
            }
            error => self.damaged(file, error.to_string()),
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
