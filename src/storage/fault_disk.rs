//! A disk that fails on demand: it dies at any operation, loses and tears what was not synced, and refuses operations.
//!
//! Nothing here is global and nothing is random but what the seed says, so that a run repeats itself.
//!
//! The model:
//! * A write or a change of length is seen by every later read at once, and is safe from a power failure after the next
//!   successful sync of its file.
//! * A power failure keeps of the unsynced rest what its [`PowerLoss`] says. Writes tear at [`SECTOR_BYTES`]; changes of
//!   length are kept or lost by themselves.
//! * That a file exists is safe at once, as [`Disk`] asks for. The marker of a failure is, too.
//! * A sync that fails leaves the pages looking clean: reads see the data, the disk does not have it and never will.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

use crate::error::StartError;

use super::disk::{Disk, File, span};

/// What a disk writes at once or not at all.
pub(crate) const SECTOR_BYTES: usize = 512;

/// What of the unsynced rest survives a power failure.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum PowerLoss {
    DropAll,
    KeepAll,
    /// Everything up to some operation, the last one torn.
    Prefix,
    /// Each sector and each change of length by itself, with this chance in percent.
    Subset(u64),
}

/// What faults have done to a disk so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Writes, and changes of length, of which a power failure kept nothing.
    pub(crate) dropped: u64,
    /// Writes of which a power failure kept some sectors.
    pub(crate) torn: u64,
    failed: BTreeMap<(IoKind, io::ErrorKind), u64>,
}

impl Damage {
    /// Operations of these kinds that have failed with this error because of [`FaultDisk::inject`].
    pub(crate) fn failed(&self, kinds: &[IoKind], error: io::ErrorKind) -> u64 {
        kinds.iter().filter_map(|kind| self.failed.get(&(*kind, error))).sum()
    }
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum IoKind {
    Read,
    Write,
    SetLen,
    Sync,
}

/// Fails the `nth` operation (from 0) among `kinds`, counted from when it is set, and all of these kinds after it.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kinds: Vec<IoKind>,
    pub(crate) nth: u64,
    pub(crate) error: io::ErrorKind,
    /// Only the one operation fails; later ones succeed, as they do after a failed fsync.
    pub(crate) once: bool,
}

/// Clones share one disk; [`FaultDisk::fork`] makes another. A node gets it through [`FaultDisk::mount`].
#[derive(Clone, Debug)]
pub(crate) struct FaultDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Clone)]
struct Inner {
    files: BTreeMap<File, FaultFile>,
    marker: Option<String>,
    /// Raised by each power failure: handles of an earlier one are dead.
    generation: u64,
    on: bool,
    counts: BTreeMap<IoKind, u64>,
    /// The power fails at the operation with this number, of all kinds.
    die_at: Option<u64>,
    fault: Option<Fault>,
    damage: Damage,
    /// What it says when it is asked for room; nothing depends on it.
    free_bytes: Option<u64>,
    rng: SplitMix,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("on", &self.on).field("counts", &self.counts).finish_non_exhaustive()
    }
}

#[derive(Clone, Default)]
struct FaultFile {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
    locked: bool,
}

#[derive(Clone)]
enum Pending {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

impl FaultDisk {
    pub(crate) fn new(seed: u64) -> Self {
        let inner = Inner {
            files: BTreeMap::new(),
            marker: None,
            generation: 0,
            on: true,
            counts: BTreeMap::new(),
            die_at: None,
            fault: None,
            damage: Damage::default(),
            free_bytes: None,
            rng: SplitMix(seed),
        };
        FaultDisk { inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of the lock panics")
    }

    /// The disk as a node sees it that starts now; dead after the next power failure, together with the node.
    pub(crate) fn mount(&self) -> Arc<dyn Disk> {
        Arc::new(Mounted { disk: self.clone(), generation: self.lock().generation })
    }

    /// From now on it says that it has so much room.
    #[cfg(test)]
    pub(crate) fn set_free_bytes(&self, free: u64) {
        self.lock().free_bytes = Some(free);
    }

    /// A disk of its own that is as this one is now.
    pub(crate) fn fork(&self) -> Self {
        FaultDisk { inner: Arc::new(Mutex::new(self.lock().clone())) }
    }

    /// Operations so far, of all kinds.
    pub(crate) fn ops(&self) -> u64 {
        self.lock().counts.values().sum()
    }

    /// Operations of one kind so far.
    pub(crate) fn count(&self, kind: IoKind) -> u64 {
        self.lock().counts.get(&kind).copied().unwrap_or(0)
    }

    /// Lets the power fail at the `nth` operation from now, from 0: that one and all later ones do nothing and fail.
    pub(crate) fn die_at(&self, nth: u64) {
        let now = self.ops();
        self.lock().die_at = Some(now + nth);
    }

    /// Whether the power has failed at [`FaultDisk::die_at`] and not come back yet.
    pub(crate) fn has_lost_power(&self) -> bool {
        !self.lock().on
    }

    pub(crate) fn inject(&self, fault: Fault) {
        self.lock().fault = Some(fault);
    }

    /// Operations that have failed because of [`FaultDisk::inject`].
    pub(crate) fn injected(&self) -> u64 {
        self.lock().damage.failed.values().sum()
    }

    /// What faults have done to this disk so far, however often it was wiped.
    pub(crate) fn damage(&self) -> Damage {
        self.lock().damage.clone()
    }

    /// Removes the marker of a failure, as nobody should.
    pub(crate) fn unmark(&self) {
        self.lock().marker = None;
    }

    /// Fails the power, unless it has failed, and brings it back. Open handles stay dead and hold no locks.
    pub(crate) fn power_loss(&self, mode: PowerLoss) {
        let mut inner = self.lock();
        let Inner { files, rng, damage, .. } = &mut *inner;
        for file in files.values_mut() {
            file.power_loss(mode, rng, damage);
        }
        inner.generation += 1;
        inner.on = true;
        inner.die_at = None;
        inner.fault = None;
    }

    /// Ends the process that has the disk mounted, as a kill does. Its handles are dead and hold no locks; what it wrote
    /// without a sync is safe from that, and still not from a power failure.
    pub(crate) fn process_gone(&self) {
        let mut inner = self.lock();
        inner.files.values_mut().for_each(|file| file.locked = false);
        inner.generation += 1;
        inner.die_at = None;
        inner.fault = None;
    }

    /// Empties the disk, as a new one is. Whoever has it mounted finds it dead.
    pub(crate) fn wipe(&self) {
        self.process_gone();
        let mut inner = self.lock();
        inner.files.clear();
        inner.marker = None;
    }

    /// Puts a copy of what `other` holds in place of what is here. Whoever has it mounted finds it dead.
    pub(crate) fn copy_of(&self, other: &FaultDisk) {
        // One lock after the other: the two may be one disk.
        let (files, marker) = {
            let other = other.lock();
            (other.files.clone(), other.marker.clone())
        };
        self.wipe();
        let mut inner = self.lock();
        (inner.files, inner.marker) = (files, marker);
        inner.files.values_mut().for_each(|file| file.locked = false);
    }

    /// Flips one bit of a file, as if it had been written so.
    pub(crate) fn flip(&self, file: File, bit: u64) {
        let mut inner = self.lock();
        let file = inner.files.get_mut(&file).expect("the file is there");
        for bytes in [&mut file.live, &mut file.durable] {
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
    }

    /// The bytes of a file as readers see them.
    pub(crate) fn bytes(&self, file: File) -> Vec<u8> {
        self.lock().files.get(&file).map(|file| file.live.clone()).unwrap_or_default()
    }

    pub(crate) fn remove(&self, file: File) {
        self.lock().files.remove(&file);
    }

    /// Puts bytes in place of a file, as if they had always been there.
    pub(crate) fn put(&self, file: File, bytes: Vec<u8>) {
        let replaced = FaultFile { live: bytes.clone(), durable: bytes, ..FaultFile::default() };
        self.lock().files.insert(file, replaced);
    }
}

impl FaultFile {
    fn apply(bytes: &mut Vec<u8>, op: &Pending) {
        match op {
            Pending::SetLen(len) => bytes.resize(*len as usize, 0),
            Pending::Write(offset, data) => bytes[*offset as usize..][..data.len()].copy_from_slice(data),
        }
    }

    fn change(&mut self, op: Pending) {
        Self::apply(&mut self.live, &op);
        self.pending.push(op);
    }

    fn power_loss(&mut self, mode: PowerLoss, rng: &mut SplitMix, damage: &mut Damage) {
        let kept = rng.below(self.pending.len() as u64 + 1) as usize;
        for (i, op) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            let percent = match mode {
                PowerLoss::DropAll => 0,
                PowerLoss::KeepAll => 100,
                PowerLoss::Prefix if i < kept => 100,
                PowerLoss::Prefix if i == kept => 50,
                PowerLoss::Prefix => 0,
                PowerLoss::Subset(percent) => percent,
            };
            let survived = self.survive(&op, percent, rng);
            damage.dropped += u64::from(survived == Survived::Nothing);
            damage.torn += u64::from(survived == Survived::Part);
        }
        self.live = self.durable.clone();
        self.locked = false;
    }

    fn survive(&mut self, op: &Pending, percent: u64, rng: &mut SplitMix) -> Survived {
        let (mut kept, mut lost) = (0, 0);
        match op {
            Pending::SetLen(len) => match rng.below(100) < percent {
                true => {
                    self.durable.resize(*len as usize, 0);
                    kept += 1;
                }
                false => lost += 1,
            },
            Pending::Write(offset, data) => {
                for (i, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                    let at = *offset as usize + i * SECTOR_BYTES;
                    // A write behind the end of a file whose growth was lost has nowhere to go.
                    if rng.below(100) < percent && at + sector.len() <= self.durable.len() {
                        self.durable[at..at + sector.len()].copy_from_slice(sector);
                        kept += 1;
                    } else {
                        lost += 1;
                    }
                }
            }
        }
        match (kept, lost) {
            (_, 0) => Survived::Whole,
            (0, _) => Survived::Nothing,
            _ => Survived::Part,
        }
    }
}

/// What is left of an operation after a power failure.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Survived {
    Whole,
    Part,
    Nothing,
}

/// A disk from one power failure to the next. What a node of an earlier time does to it has no effect.
#[derive(Debug)]
struct Mounted {
    disk: FaultDisk,
    generation: u64,
}

impl Mounted {
    fn lock(&self) -> Option<MutexGuard<'_, Inner>> {
        Some(self.disk.lock()).filter(|inner| inner.on && inner.generation == self.generation)
    }

    fn io<T>(&self, found: Option<T>) -> Result<T, StartError> {
        found.ok_or_else(|| StartError::Io { path: self.path().to_owned(), source: power_failed() })
    }
}

impl Disk for Mounted {
    fn backend(&self, file: File) -> Result<Box<dyn StorageBackend>, StartError> {
        let mut inner = self.io(self.lock())?;
        let opened = inner.files.entry(file).or_default();
        if opened.locked {
            return Err(StartError::InUse { path: self.path().join(file.name()) });
        }
        opened.locked = true;
        Ok(Box::new(FaultHandle {
            disk: self.disk.clone(),
            file,
            generation: self.generation,
            closed: AtomicBool::new(false),
        }))
    }

    fn exists(&self, file: File) -> Result<bool, StartError> {
        self.io(self.lock().map(|inner| inner.files.contains_key(&file)))
    }

    fn failed(&self) -> Result<Option<String>, StartError> {
        self.io(self.lock().map(|inner| inner.marker.clone()))
    }

    fn mark_failed(&self, text: &str) {
        if let Some(mut inner) = self.lock() {
            inner.marker.get_or_insert_with(|| text.to_owned());
        }
    }

    fn path(&self) -> &Path {
        Path::new("(faulty)")
    }

    fn free_bytes(&self) -> Option<u64> {
        self.lock()?.free_bytes
    }
}

/// The one open handle of a file, until the power fails.
#[derive(Debug)]
struct FaultHandle {
    disk: FaultDisk,
    file: File,
    generation: u64,
    closed: AtomicBool,
}

impl FaultHandle {
    /// Tells a simulated world what is done to the file.
    #[cfg_attr(not(any(test, feature = "sim")), expect(unused_variables, reason = "there is no world to tell"))]
    fn trace(&self, what: &'static str, bits: &[u64]) {
        #[cfg(any(test, feature = "sim"))]
        crate::rt::sim::trace(what, &[&[self.file as u64, self.generation], bits].concat());
    }

    /// Counts an operation, lets it fail if it is to, and otherwise carries it out.
    fn run<T>(&self, kind: IoKind, run: impl FnOnce(&mut FaultFile) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.disk.lock();
        if !inner.on || inner.generation != self.generation {
            return Err(power_failed());
        }
        let number = inner.counts.values().sum::<u64>();
        *inner.counts.entry(kind).or_default() += 1;
        if inner.die_at.is_some_and(|at| number >= at) {
            inner.on = false;
            return Err(power_failed());
        }
        let fault = inner.fault(kind);
        let file = inner.files.get_mut(&self.file).ok_or_else(power_failed)?;
        match fault {
            None => run(file),
            Some(error) => {
                if kind == IoKind::Sync {
                    file.pending.clear();
                }
                Err(io::Error::new(error, "injected"))
            }
        }
    }
}

impl Inner {
    fn fault(&mut self, kind: IoKind) -> Option<io::ErrorKind> {
        let fault = self.fault.as_mut().filter(|fault| fault.kinds.contains(&kind))?;
        if fault.nth > 0 {
            fault.nth -= 1;
            return None;
        }
        let (error, once) = (fault.error, fault.once);
        *self.damage.failed.entry((kind, error)).or_default() += 1;
        if once {
            self.fault = None;
        }
        Some(error)
    }
}

fn power_failed() -> io::Error {
    io::Error::other("the power has failed")
}

impl FaultHandle {
    fn unlock(&self) {
        let mut inner = self.disk.lock();
        if inner.generation == self.generation
            && let Some(file) = inner.files.get_mut(&self.file)
        {
            file.locked = false;
        }
    }
}

impl Drop for FaultHandle {
    fn drop(&mut self) {
        if !self.closed.load(Ordering::Acquire) {
            self.unlock();
        }
    }
}

impl StorageBackend for FaultHandle {
    fn close(&self) -> io::Result<()> {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.unlock();
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.run(IoKind::Read, |file| Ok(file.live.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.run(IoKind::Read, |file| {
            let at = span(offset, out.len(), file.live.len())?;
            out.copy_from_slice(&file.live[at]);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.run(IoKind::SetLen, |file| {
            self.trace("set-len", &[len]);
            file.change(Pending::SetLen(len));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.run(IoKind::Sync, |file| {
            self.trace("sync", &[]);
            let FaultFile { durable, pending, .. } = file;
            pending.drain(..).for_each(|op| FaultFile::apply(durable, &op));
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.run(IoKind::Write, |file| {
            self.trace("write", &[offset, xxhash_rust::xxh3::xxh3_64(data)]);
            span(offset, data.len(), file.live.len())?;
            file.change(Pending::Write(offset, data.to_vec()));
            Ok(())
        })
    }
}

/// Sebastiano Vigna's splitmix64: small, and good enough to choose what a disk forgets.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[cfg(test)]
mod tests;
