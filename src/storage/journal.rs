//! A directory that keeps a journal of everything done to its files, so that a killed process can be turned into a node
//! that lost its power.
//!
//! Killing a process loses nothing: what it wrote is in the page cache, synced or not. Here each write, change of length
//! and sync also goes to a journal beside the directory, and [`power_failure`] makes of it what a disk may have been left
//! with: all that was synced, and of the rest what a seed says, by the rules of [`fault_disk`](super::fault_disk).
//!
//! It promises that a write is in the journal before it is in the file, and a sync after it has succeeded: what the node
//! was told is durable is durable in every image. A journal goes on through ordinary restarts, which make nothing durable.
//! That a file exists, and the marker of a failure, are safe at once, as [`Disk`] asks for.

use std::fs::{self, File as OsFile, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use redb::StorageBackend;

use super::disk::{DirDisk, Disk, File};
use super::fault_disk::{FaultDisk, PowerLoss, SplitMix};
use crate::error::StartError;
use crate::format::wire::{DecodeError, Reader, Writer, seal, unseal};

/// A directory of the file system with a journal.
#[derive(Debug)]
pub(crate) struct JournalDisk {
    inner: DirDisk,
    journals: PathBuf,
}

impl JournalDisk {
    /// The directory at `dir`, with its journals in the directory at `journals`, which must be there.
    ///
    /// # Errors
    /// As [`DirDisk::open`].
    pub(crate) fn open(dir: impl Into<PathBuf>, journals: impl Into<PathBuf>) -> Result<Self, StartError> {
        Ok(JournalDisk { inner: DirDisk::open(dir)?, journals: journals.into() })
    }
}

impl Disk for JournalDisk {
    fn backend(&self, file: File) -> Result<Box<dyn StorageBackend>, StartError> {
        let backend = self.inner.backend(file)?;
        let names = Names::new(&self.journals, file);
        let journal = names.resume(backend.as_ref());
        let journal = journal.map_err(|source| StartError::Io { path: names.journal.clone(), source })?;
        Ok(Box::new(Journaled { backend, journal: Mutex::new(journal) }))
    }

    fn exists(&self, file: File) -> Result<bool, StartError> {
        self.inner.exists(file)
    }

    fn failed(&self) -> Result<Option<String>, StartError> {
        self.inner.failed()
    }

    fn mark_failed(&self, text: &str) {
        self.inner.mark_failed(text);
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.inner.free_bytes()
    }
}

/// What a power failure found. See [`power_failure`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Operations that were made durable since the journal began.
    pub synced: u64,
    /// Operations that were not, and survived in part or not at all.
    pub unsynced: u64,
}

/// Makes of the files in `dir`, whose process must be gone, what a power failure may have left; `seed` chooses. The
/// journals in `journals` begin anew.
///
/// # Errors
/// The file system's; [`io::ErrorKind::InvalidData`] for a journal that does not fit its file.
pub(crate) fn power_failure(dir: &Path, journals: &Path, seed: u64) -> io::Result<Lost> {
    let mut lost = Lost::default();
    let disk = FaultDisk::new(seed);
    let mount = disk.mount();
    for file in FILES {
        let names = Names::new(journals, file);
        if names.journal.try_exists()? {
            disk.put(file, fs::read(&names.base)?);
            let replayed = names.replay(mount.as_ref())?;
            lost.synced += replayed.synced;
            lost.unsynced += replayed.unsynced;
        }
    }
    disk.power_loss(MODES[SplitMix(seed).below(MODES.len() as u64) as usize]);
    for file in FILES {
        let names = Names::new(journals, file);
        if names.journal.try_exists()? {
            fs::write(dir.join(file.name()), disk.bytes(file))?;
            fs::remove_file(&names.journal)?;
            fs::remove_file(&names.base)?;
        }
    }
    Ok(lost)
}

const FILES: [File; 2] = [File::Log, File::State];

const MODES: [PowerLoss; 5] =
    [PowerLoss::Subset(50), PowerLoss::Prefix, PowerLoss::DropAll, PowerLoss::Subset(90), PowerLoss::KeepAll];

/// Where the journal of one file is.
struct Names {
    file: File,
    journal: PathBuf,
    /// The file as it was when the journal began.
    base: PathBuf,
}

impl Names {
    fn new(journals: &Path, file: File) -> Self {
        let beside = |what: &str| journals.join(format!("{}.{what}", file.name()));
        Names { file, journal: beside("journal"), base: beside("base") }
    }

    /// Opens the journal for more, behind its last whole record, or begins it.
    fn resume(&self, backend: &dyn StorageBackend) -> io::Result<OsFile> {
        if !self.journal.try_exists()? {
            let mut base = vec![0; usize::try_from(backend.len()?).map_err(io::Error::other)?];
            backend.read(0, &mut base)?;
            // The journal last: as long as it is not there, the base does not count.
            fs::write(&self.base, base)?;
        }
        let journal = OpenOptions::new().create(true).append(true).open(&self.journal)?;
        let (_, whole) = records(fs::read(&self.journal)?)?;
        journal.set_len(whole as u64)?;
        Ok(journal)
    }

    /// Does to the file on `disk` all that the journal says.
    fn replay(&self, disk: &dyn Disk) -> io::Result<Lost> {
        let file = disk.backend(self.file).map_err(|error| io::Error::other(error.to_string()))?;
        let mut lost = Lost::default();
        for record in records(fs::read(&self.journal)?)?.0 {
            lost.unsynced += 1;
            match record {
                Record::Write(offset, data) => file.write(offset, &data),
                Record::SetLen(len) => file.set_len(len),
                Record::Sync => {
                    lost.synced += lost.unsynced - 1;
                    lost.unsynced = 0;
                    file.sync_data()
                }
            }
            .map_err(invalid)?;
        }
        Ok(lost)
    }
}

/// A file whose operations are journaled.
#[derive(Debug)]
struct Journaled {
    backend: Box<dyn StorageBackend>,
    /// Held for the whole of each operation, so that the journal has them in the order of the file.
    journal: Mutex<OsFile>,
}

impl Journaled {
    fn lock(&self) -> MutexGuard<'_, OsFile> {
        self.journal.lock().expect("no holder of the lock panics")
    }
}

impl StorageBackend for Journaled {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut journal = self.lock();
        Record::SetLen(len).append_to(&mut journal)?;
        self.backend.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut journal = self.lock();
        self.backend.sync_data()?;
        Record::Sync.append_to(&mut journal)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut journal = self.lock();
        Record::Write(offset, Bytes::copy_from_slice(data)).append_to(&mut journal)?;
        self.backend.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }
}

/// One operation. In the journal: the length of what follows, then a checksum, a tag and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Record {
    Write(u64, Bytes),
    SetLen(u64),
    Sync,
}

impl Record {
    /// In one call, so that a process that is killed leaves a whole record or the front of one.
    fn append_to(&self, journal: &mut OsFile) -> io::Result<()> {
        let mut body = Writer::with_capacity(32);
        match self {
            Record::Write(offset, data) => {
                body.u8(0);
                body.fixed_u64(*offset);
                body.raw(data);
            }
            Record::SetLen(len) => {
                body.u8(1);
                body.fixed_u64(*len);
            }
            Record::Sync => body.u8(2),
        }
        let sealed = seal(body.as_slice());
        let mut record = Writer::with_capacity(8 + sealed.len());
        record.bytes(&sealed);
        journal.write_all(record.as_slice())
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        let mut body = Reader::new(unseal(r.bytes("journal record")?, "journal record")?);
        match body.u8("journal record")? {
            0 => Ok(Record::Write(body.fixed_u64("offset")?, body.rest())),
            1 => Ok(Record::SetLen(body.fixed_u64("length")?)),
            2 => Ok(Record::Sync),
            tag => Err(DecodeError::UnknownTag { what: "journal record", tag: tag.into() }),
        }
    }
}

/// The records of a journal, up to one that was cut short by the end of the process, and how many bytes they are.
fn records(journal: Vec<u8>) -> io::Result<(Vec<Record>, usize)> {
    let size = journal.len();
    let mut rest = Reader::new(Bytes::from(journal));
    let mut records = Vec::new();
    loop {
        let whole = size - rest.remaining();
        match Record::take(&mut rest) {
            Ok(record) => records.push(record),
            Err(DecodeError::Truncated(_)) => return Ok((records, whole)),
            Err(error) => return Err(invalid(error)),
        }
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        dir: tempfile::TempDir,
        journals: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Place { dir: tempfile::tempdir().unwrap(), journals: tempfile::tempdir().unwrap() }
        }

        fn open(&self) -> Box<dyn StorageBackend> {
            JournalDisk::open(self.dir.path(), self.journals.path()).unwrap().backend(File::Log).unwrap()
        }

        fn power_failure(&self, seed: u64) -> (Lost, Vec<u8>) {
            let lost = power_failure(self.dir.path(), self.journals.path(), seed).unwrap();
            (lost, self.bytes())
        }

        fn bytes(&self) -> Vec<u8> {
            fs::read(self.dir.path().join(File::Log.name())).unwrap()
        }
    }

    const SIZE: usize = 8 * crate::storage::fault_disk::SECTOR_BYTES;

    /// Eight sectors of ones that were synced, with twos over them that were not.
    fn written(place: &Place) -> Box<dyn StorageBackend> {
        let file = place.open();
        file.set_len(SIZE as u64).unwrap();
        file.write(0, &[1; SIZE]).unwrap();
        file.sync_data().unwrap();
        file.write(0, &[2; SIZE]).unwrap();
        file
    }

    #[test]
    fn what_was_synced_survives_every_power_failure_and_of_the_rest_sectors_are_lost() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let place = Place::new();
            drop(written(&place));
            assert_eq!(place.bytes(), [2; SIZE], "the end of a process loses nothing");
            let (lost, bytes) = place.power_failure(seed);
            assert_eq!(lost, Lost { synced: 2, unsynced: 1 });
            assert_eq!(bytes.len(), SIZE, "seed {seed}");
            assert!(bytes.iter().all(|byte| [1, 2].contains(byte)), "seed {seed}: a synced sector is gone");
            seen.insert(bytes.iter().filter(|byte| **byte == 2).count());
        }
        assert!(seen.contains(&0) && seen.contains(&SIZE) && seen.len() > 4, "{seen:?}");
    }

    #[test]
    fn a_restart_without_a_power_failure_makes_nothing_durable() {
        let place = Place::new();
        drop(written(&place));
        drop(place.open());
        let bytes: Vec<_> = (0..20).map(|seed| (seed, copy(&place).power_failure(seed).1)).collect();
        assert!(bytes.iter().any(|(_, bytes)| bytes.contains(&1)), "nothing was ever lost");

        let file = place.open();
        file.sync_data().unwrap();
        drop(file);
        for seed in 0..20 {
            assert_eq!(copy(&place).power_failure(seed).1, [2; SIZE], "seed {seed}");
        }
    }

    #[test]
    fn the_journal_begins_anew_with_what_a_power_failure_left() {
        let place = Place::new();
        drop(written(&place));
        let (_, left) = place.power_failure(0);
        drop(place.open());
        let (lost, bytes) = place.power_failure(1);
        assert_eq!((lost, bytes), (Lost::default(), left));
    }

    #[test]
    fn a_record_that_the_end_of_the_process_cut_short_never_was_and_damage_is_refused() {
        let place = Place::new();
        drop(written(&place));
        let path = place.journals.path().join(format!("{}.journal", File::Log.name()));
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let file = place.open();
        file.write(0, &[3]).unwrap();
        drop(file);
        assert_eq!(copy(&place).power_failure(4).0, Lost { synced: 2, unsynced: 1 });

        let mut damaged = whole.clone();
        damaged[20] ^= 1;
        fs::write(&path, damaged).unwrap();
        let error = power_failure(place.dir.path(), place.journals.path(), 0).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }

    fn copy(place: &Place) -> Place {
        let twin = Place::new();
        for (from, to) in [(&place.dir, &twin.dir), (&place.journals, &twin.journals)] {
            for entry in fs::read_dir(from.path()).unwrap().map(Result::unwrap) {
                fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
            }
        }
        twin
    }
}
