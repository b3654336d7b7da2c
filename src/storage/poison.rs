//! Fail-stop: after the first storage error nothing of this node is written any more.
//!
//! What a disk holds after an error is not known: a failed fsync may leave pages that look clean and were never written,
//! and the next fsync would report success. So there is no second try. The first error, from whichever file, closes both
//! files for writing at once, below redb, which would otherwise go on: it makes pending commits durable when a database
//! is dropped. Then a marker is left in the directory, and a node that finds it does not start.

use std::io;
use std::sync::{Arc, OnceLock};

use redb::StorageBackend;

use crate::error::{StartError, StorageError};
use crate::format::identity::failure_marker;

use super::disk::{Disk, File};

/// Shared by everything that touches the files of one node.
#[derive(Clone, Debug)]
pub(crate) struct Poison {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    first: OnceLock<StorageError>,
}

impl Poison {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Poison { inner: Arc::new(Inner { disk, first: OnceLock::new() }) }
    }

    /// The first error, if there was one.
    pub(crate) fn error(&self) -> Option<StorageError> {
        self.inner.first.get().cloned()
    }

    /// Err with the first error, if there was one.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        self.error().map_or(Ok(()), Err)
    }

    /// Stops all writing and marks the directory. Answers the first error, which may have been another one.
    pub(crate) fn fail(&self, error: StorageError) -> StorageError {
        if self.inner.first.set(error.clone()).is_ok() {
            tracing::error!(%error, "this node stops for good, and marks its directory as failed");
            self.inner.disk.mark_failed(&failure_marker(&error));
        }
        self.error().unwrap_or(error)
    }

    /// Stops all writing and marks nothing: the files are as good as they were, but this release cannot go on with them.
    pub(crate) fn halt(&self, error: StorageError) -> StorageError {
        if self.inner.first.set(error.clone()).is_ok() {
            tracing::error!(%error, "this node stops; its directory is in order");
        }
        self.error().unwrap_or(error)
    }

    /// Stops all writing and marks nothing, as a power failure would. For dropping databases without a clean close.
    pub(crate) fn power_off(&self) {
        let _ = self.inner.first.set(StorageError::new("disk", "power", "switched off"));
    }

    /// The backend of `file`, locked and behind this poison.
    pub(crate) fn backend(&self, file: File) -> Result<GuardedBackend, StartError> {
        Ok(GuardedBackend { inner: self.inner.disk.backend(file)?, file, poison: self.clone() })
    }
}

/// A file that reports its first error to everybody and takes no write after any.
#[derive(Debug)]
pub(crate) struct GuardedBackend {
    inner: Box<dyn StorageBackend>,
    file: File,
    poison: Poison,
}

impl GuardedBackend {
    fn writing<T>(&self, what: &'static str, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.poison.check()?;
        write().map_err(|error| self.failed(what, error))
    }

    fn failed(&self, what: &'static str, error: io::Error) -> io::Error {
        self.poison.fail(StorageError::new(self.file.name(), what, &error));
        error
    }
}

impl StorageBackend for GuardedBackend {
    fn len(&self) -> io::Result<u64> {
        self.inner.len().map_err(|error| self.failed("length", error))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out).map_err(|error| match error.kind() {
            // The file is shorter than it says of itself: damage, which the reader reports in its own words.
            io::ErrorKind::UnexpectedEof => error,
            _ => self.failed("read", error),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writing("set length", || self.inner.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.writing("sync", || self.inner.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.writing("write", || self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}
