//! A disk that lets a test in between two operations on the log's file.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::storage::disk::{Disk, File};

/// What is done just before the log's file is read the next time.
pub(super) type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

#[derive(Clone)]
pub(super) struct Hooked {
    disk: Arc<dyn Disk>,
    pub(super) before_read: Hook,
    /// The process is gone: no sync of the log is ever begun, and whatever asks for one fails.
    pub(super) killed: Arc<AtomicBool>,
}

impl Hooked {
    pub(super) fn new(disk: &FaultDisk) -> Self {
        Hooked { disk: disk.mount(), before_read: Hook::default(), killed: Arc::default() }
    }
}

struct HookedFile {
    file: Box<dyn redb::StorageBackend>,
    hooks: Hooked,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooked")
    }
}

impl std::fmt::Debug for HookedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HookedFile")
    }
}

impl Disk for Hooked {
    fn backend(&self, file: File) -> Result<Box<dyn redb::StorageBackend>, StartError> {
        let backend = self.disk.backend(file)?;
        Ok(match file {
            File::Log => Box::new(HookedFile { file: backend, hooks: self.clone() }),
            File::State => backend,
        })
    }

    fn exists(&self, file: File) -> Result<bool, StartError> {
        self.disk.exists(file)
    }

    fn failed(&self) -> Result<Option<String>, StartError> {
        self.disk.failed()
    }

    fn mark_failed(&self, text: &str) {
        self.disk.mark_failed(text);
    }

    fn path(&self) -> &Path {
        self.disk.path()
    }
}

impl redb::StorageBackend for HookedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let hook = self.hooks.before_read.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.hooks.killed.load(Ordering::Relaxed) {
            return Err(io::Error::other("killed"));
        }
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }
}
