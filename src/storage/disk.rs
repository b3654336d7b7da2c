//! Where the files of one node live: a directory, or memory.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;
use redb::backends::FileBackend;

use crate::error::StartError;

/// The two files of a node.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum File {
    Log,
    State,
}

impl File {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            File::Log => "log.wal",
            File::State => "state.redb",
        }
    }
}

/// One data directory.
///
/// Implementations promise that a file which [`Disk::backend`] made, and a marker which [`Disk::mark_failed`] wrote, is
/// still there after a power failure: the directory is synced too.
pub(crate) trait Disk: Debug + Send + Sync + 'static {
    /// Opens `file`, creating an empty one if there is none, and locks it until the backend is closed or dropped.
    ///
    /// # Errors
    /// [`StartError::InUse`] if it is locked, by another process or by another handle of this one.
    fn backend(&self, file: File) -> Result<Box<dyn StorageBackend>, StartError>;

    fn exists(&self, file: File) -> Result<bool, StartError>;

    /// What the marker of a failure says, if there is one.
    fn failed(&self) -> Result<Option<String>, StartError>;

    /// Leaves the marker. As this is called when a disk has just failed, it does what it can and logs what it cannot.
    fn mark_failed(&self, text: &str);

    /// The directory, for messages.
    fn path(&self) -> &Path;

    /// Bytes that this process may still write, `None` where nobody knows. May take as long as the disk does.
    fn free_bytes(&self) -> Option<u64> {
        None
    }
}

/// A directory of the file system.
#[derive(Debug)]
pub(crate) struct DirDisk {
    dir: PathBuf,
}

/// The file that marks a directory as failed.
pub(crate) const FAILED_FILE: &str = "FAILED";

impl DirDisk {
    /// The directory at `dir`, made if its parent is there.
    ///
    /// # Errors
    /// [`StartError::Io`] if it is not there and cannot be made.
    pub(crate) fn open(dir: impl Into<PathBuf>) -> Result<Self, StartError> {
        let dir = dir.into();
        match fs::create_dir(&dir) {
            Ok(()) => {
                let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
                sync_dir(parent.unwrap_or(Path::new("."))).map_err(|source| io_error(&dir, source))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(source) => return Err(io_error(&dir, source)),
        }
        Ok(DirDisk { dir })
    }

    fn sync(&self) -> io::Result<()> {
        sync_dir(&self.dir)
    }
}

impl Disk for DirDisk {
    fn backend(&self, file: File) -> Result<Box<dyn StorageBackend>, StartError> {
        let path = self.dir.join(file.name());
        let open = || -> io::Result<Option<FileBackend>> {
            let handle = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            // Whether or not this call made the file: an earlier one may have died before it synced the directory.
            self.sync()?;
            let backend = FileBackend::new(handle).map_err(io::Error::other)?;
            let locked = backend.try_lock_range(Bound::Unbounded, Bound::Unbounded).map_err(io::Error::from)?;
            Ok(locked.then_some(backend))
        };
        match open() {
            Ok(Some(backend)) => Ok(Box::new(Locked(backend))),
            Ok(None) => Err(StartError::InUse { path }),
            Err(source) => Err(io_error(&path, source)),
        }
    }

    fn exists(&self, file: File) -> Result<bool, StartError> {
        let path = self.dir.join(file.name());
        path.try_exists().map_err(|source| io_error(&path, source))
    }

    fn failed(&self) -> Result<Option<String>, StartError> {
        let path = self.dir.join(FAILED_FILE);
        match fs::read(&path) {
            Ok(text) => Ok(Some(String::from_utf8_lossy(&text).trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error(&path, source)),
        }
    }

    fn mark_failed(&self, text: &str) {
        let path = self.dir.join(FAILED_FILE);
        let write = || -> io::Result<()> {
            let mut marker = OpenOptions::new().create(true).append(true).open(&path)?;
            // The marker speaks by being there: its name is made durable even if there is no room for the text.
            let written = marker.write_all(text.as_bytes()).and_then(|()| marker.sync_all());
            self.sync().and(written)
        };
        if let Err(error) = write() {
            tracing::error!(path = %path.display(), %error, text, "the marker of a disk failure could not be written");
        }
    }

    fn path(&self) -> &Path {
        &self.dir
    }

    #[cfg(unix)]
    fn free_bytes(&self) -> Option<u64> {
        let system = rustix::fs::statvfs(&self.dir).ok()?;
        // Some do not tell: their size is 0.
        (system.f_blocks > 0).then(|| system.f_bavail.saturating_mul(system.f_frsize))
    }
}

fn io_error(path: &Path, source: io::Error) -> StartError {
    StartError::Io { path: path.to_owned(), source }
}

/// Makes the names in `dir` durable. Only Unix needs and allows it.
fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { fs::File::open(dir)?.sync_all() } else { Ok(()) }
}

/// A file that is locked as a whole already, so that redb's own locking has nothing left to do: it would take the same
/// lock a second time, later, and answer a conflict in its own words.
#[derive(Debug)]
struct Locked(FileBackend);

impl StorageBackend for Locked {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

/// A directory in memory. Clones share it, so that what is closed can be opened again.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemDisk {
    inner: Arc<Mutex<MemDir>>,
}

#[derive(Debug, Default)]
struct MemDir {
    files: BTreeMap<File, Arc<Mutex<MemFile>>>,
    failed: Option<String>,
}

#[derive(Default)]
struct MemFile {
    bytes: Vec<u8>,
    locked: bool,
}

impl Debug for MemFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemFile").field("len", &self.bytes.len()).field("locked", &self.locked).finish()
    }
}

const MEMORY_PATH: &str = "(memory)";

impl MemDisk {
    pub(crate) fn new() -> Self {
        MemDisk::default()
    }

    fn lock(&self) -> MutexGuard<'_, MemDir> {
        self.inner.lock().expect("no holder of the lock panics")
    }
}

impl Disk for MemDisk {
    fn backend(&self, file: File) -> Result<Box<dyn StorageBackend>, StartError> {
        let shared = self.lock().files.entry(file).or_default().clone();
        let mut open = shared.lock().expect("no holder of the lock panics");
        if open.locked {
            return Err(StartError::InUse { path: Path::new(MEMORY_PATH).join(file.name()) });
        }
        open.locked = true;
        drop(open);
        Ok(Box::new(MemHandle { file: shared, released: AtomicBool::new(false) }))
    }

    fn exists(&self, file: File) -> Result<bool, StartError> {
        Ok(self.lock().files.contains_key(&file))
    }

    fn failed(&self) -> Result<Option<String>, StartError> {
        Ok(self.lock().failed.clone())
    }

    fn mark_failed(&self, text: &str) {
        self.lock().failed.get_or_insert_with(|| text.to_owned());
    }

    fn path(&self) -> &Path {
        Path::new(MEMORY_PATH)
    }
}

/// The one open handle of a file in memory.
#[derive(Debug)]
struct MemHandle {
    file: Arc<Mutex<MemFile>>,
    /// The lock is no longer this handle's, and may be another one's.
    released: AtomicBool,
}

impl MemHandle {
    fn lock(&self) -> MutexGuard<'_, MemFile> {
        self.file.lock().expect("no holder of the lock panics")
    }

    fn release(&self) {
        if !self.released.swap(true, Ordering::SeqCst) {
            self.lock().locked = false;
        }
    }
}

impl Drop for MemHandle {
    fn drop(&mut self) {
        self.release();
    }
}

impl StorageBackend for MemHandle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = self.lock();
        let at = span(offset, out.len(), file.bytes.len())?;
        out.copy_from_slice(&file.bytes[at]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut file = self.lock();
        if file.bytes.is_empty() {
            // Fresh from the system, which gives memory only to what is touched: a log's file is made larger than it is used.
            file.bytes = vec![0; len];
        } else {
            file.bytes.resize(len, 0);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut file = self.lock();
        let at = span(offset, data.len(), file.bytes.len())?;
        file.bytes[at].copy_from_slice(data);
        Ok(())
    }

    // A reader may keep the handle alive past the end of its database.
    fn close(&self) -> io::Result<()> {
        self.release();
        Ok(())
    }
}

/// The range of `len` bytes at `offset`, if a file of `size` bytes has it.
pub(super) fn span(offset: u64, len: usize, size: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(io::Error::other)?;
    match start.checked_add(len).filter(|end| *end <= size) {
        Some(end) => Ok(start..end),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{len} bytes at {offset} of {size}"))),
    }
}
