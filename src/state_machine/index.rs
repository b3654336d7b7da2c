//! The index in memory: which record holds a key's value at which revision.
//!
//! It maps every key to its versions, newest first in reach, and never holds a value: memory grows with the number of
//! keys. The state thread is its only writer and takes the lock once per applied entry; readers share it and hold it for
//! a bounded number of keys. A reader names the revision it reads at, so versions that are being written at the same time
//! are not seen, whether their transaction is committed yet or not. What has been pruned below that revision cannot be
//! answered, and is refused under the same lock that finds the version.

mod keys;

use std::fmt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use self::keys::{History, Keys};
use super::{ReadError, ShortBytes};
use crate::command::{KeyRange, RecordId};
use crate::types::{LeaseId, Revision};

/// Keys a reader looks at before it lets the writer in.
pub(crate) const SLICE_KEYS_MAX: usize = 1024;

/// Every key with the versions that are still kept.
#[derive(Default)]
pub(crate) struct KeyIndex {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    keys: Keys,
    /// Versions superseded at or below may be missing, so reads below are refused.
    pruned: Revision,
}

/// One version of one key: where its record is, and what is needed without reading it. Zero stands for "none": no record
/// is created at revision zero, and no lease has that number.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    revision: u64,
    created: u64,
    version: u64,
    lease: u64,
    hash: u64,
    ordinal: u32,
    bytes: u32,
}

/// What one version is made from.
pub(super) struct NewVersion {
    pub(super) id: RecordId,
    pub(super) created: Revision,
    pub(super) version: u64,
    pub(super) lease: Option<LeaseId>,
    /// The record's share of the state's hash, and of its logical size: needed again when it becomes unreachable.
    pub(super) hash: u64,
    pub(super) bytes: u32,
}

impl Version {
    pub(super) fn live(new: NewVersion) -> Self {
        assert_ne!(new.created, Revision::ZERO, "record {:?} is live but was never created", new.id);
        Version {
            revision: new.id.revision.get(),
            created: new.created.get(),
            version: new.version,
            lease: new.lease.map_or(0, LeaseId::get),
            hash: new.hash,
            ordinal: new.id.ordinal,
            bytes: new.bytes,
        }
    }

    pub(super) fn tombstone(id: RecordId, hash: u64, bytes: u32) -> Self {
        let (revision, ordinal) = (id.revision.get(), id.ordinal);
        Version { revision, created: 0, version: 0, lease: 0, hash, ordinal, bytes }
    }

    pub(crate) fn id(&self) -> RecordId {
        RecordId { revision: Revision::new(self.revision), ordinal: self.ordinal }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.created != 0
    }

    pub(crate) fn created(&self) -> Revision {
        Revision::new(self.created)
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn lease(&self) -> Option<LeaseId> {
        (self.lease != 0).then_some(LeaseId::new(self.lease))
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn bytes(&self) -> u32 {
        self.bytes
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_live() {
            true => write!(f, "{}.{} v{} lease {:x}", self.revision, self.ordinal, self.version, self.lease),
            false => write!(f, "{}.{} deleted", self.revision, self.ordinal),
        }
    }
}

impl fmt::Debug for KeyIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.read();
        f.debug_struct("KeyIndex")
            .field("live", &inner.keys.live())
            .field("pruned", &inner.pruned)
            .finish_non_exhaustive()
    }
}

/// Some live keys of a range, in the order asked for.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) entries: Vec<(Bytes, Version)>,
    /// What has not been looked at yet.
    pub(crate) rest: Option<KeyRange>,
}

impl KeyIndex {
    /// The version of `key` that was live at `at`.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] if `at` lies below what has been pruned.
    pub(crate) fn newest_at(&self, key: &[u8], at: Revision) -> Result<Option<Version>, ReadError> {
        let inner = self.read_at(at)?;
        Ok(inner.keys.get(key).and_then(|history| history.live_at(at)))
    }

    /// The first keys of `range` live at `at`: at most `limit`, and no more than [`SLICE_KEYS_MAX`] keys are looked at.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] if `at` lies below what has been pruned.
    pub(crate) fn slice(
        &self,
        range: &KeyRange,
        at: Revision,
        limit: usize,
        reverse: bool,
    ) -> Result<Slice, ReadError> {
        let inner = self.read_at(at)?;
        let keys = inner.keys.range(range);
        Ok(match reverse {
            false => collect(keys, at, limit, |last| KeyRange { start: successor(last), end: range.end.clone() }),
            true => collect(keys.rev(), at, limit, |last| KeyRange {
                start: range.start.clone(),
                end: Some(Bytes::copy_from_slice(last)),
            }),
        })
    }

    /// How many of the first [`SLICE_KEYS_MAX`] keys of `range` were live at `at`, and the range behind them.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] if `at` lies below what has been pruned.
    pub(crate) fn count_slice(&self, range: &KeyRange, at: Revision) -> Result<(u64, Option<KeyRange>), ReadError> {
        let inner = self.read_at(at)?;
        let mut live = 0;
        let mut last = None;
        for (key, history) in inner.keys.range(range).take(SLICE_KEYS_MAX) {
            live += u64::from(history.live_at(at).is_some());
            last = Some(key);
        }
        Ok((live, last.map(|last| KeyRange { start: successor(last.as_slice()), end: range.end.clone() })))
    }

    /// Whether any key of `range` was put or deleted after `since`. Knows nothing of changes at or below the floor.
    pub(crate) fn changed_since(&self, range: &KeyRange, since: Revision) -> bool {
        self.read().keys.range(range).any(|(_, history)| history.newest().revision > since.get())
    }

    /// The kept versions of `key` at or below `at`, newest first, deletes included.
    pub(crate) fn versions(&self, key: &[u8], at: Revision, limit: usize) -> Vec<Version> {
        let inner = self.read();
        let Some(history) = inner.keys.get(key) else { return Vec::new() };
        history.newest_first().filter(|version| version.revision <= at.get()).take(limit).copied().collect()
    }

    /// Keys that are live now.
    pub(crate) fn live(&self) -> u64 {
        self.read().keys.live()
    }

    /// Reads below this revision are refused.
    pub(crate) fn pruned(&self) -> Revision {
        self.read().pruned
    }

    /// The last version written of `key`, be it a delete. For the writer, who needs no revision to read at.
    pub(super) fn newest(&self, key: &[u8]) -> Option<Version> {
        self.read().keys.get(key).map(|history| *history.newest())
    }

    /// Calls `each` with every key that is live now, in order.
    pub(super) fn each_live<E>(&self, mut each: impl FnMut(&[u8], &Version) -> Result<(), E>) -> Result<(), E> {
        let inner = self.read();
        let mut live = inner.keys.iter().filter(|(_, history)| history.newest().is_live());
        live.try_for_each(|(key, history)| each(key.as_slice(), history.newest()))
    }

    /// Gets ready for writing `keys`, which need not be there. Changes nothing.
    pub(super) fn touch<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        self.read().keys.touch(keys);
    }

    /// Adds the versions that one entry wrote. Each is newer than what its key has.
    pub(super) fn insert<'a>(&self, versions: impl IntoIterator<Item = (&'a [u8], Version)>) {
        let mut inner = self.write();
        for (key, version) in versions {
            inner.keys.insert(key, version);
        }
    }

    /// Refuses reads below `up_to` from now on: called before anything they could need is removed.
    pub(super) fn refuse_below(&self, up_to: Revision) {
        let mut inner = self.write();
        inner.pruned = inner.pruned.max(up_to);
    }

    /// Forgets the versions that were superseded at or below `up_to`, deletes at or below it among them, of the next
    /// [`SLICE_KEYS_MAX`] places from `from` on. Where to go on; `None` when there are no more.
    ///
    /// By going through all keys, not by looking up those that were written: one comes for a few nanoseconds where the other
    /// has to be searched for. Keys that come meanwhile are newer than `up_to`, wherever they are put.
    pub(super) fn prune_slice(&self, from: usize, up_to: RecordId) -> Option<usize> {
        let mut inner = self.write();
        assert!(
            up_to.revision <= inner.pruned,
            "pruning up to {up_to:?}, but reads are refused below {} only",
            inner.pruned
        );
        inner.keys.prune_slice(from, up_to)
    }

    /// As [`KeyIndex::prune_slice`], of one key.
    pub(super) fn prune_key(&self, key: &[u8], up_to: RecordId) {
        self.write().keys.prune_key(key, up_to);
    }

    fn read_at(&self, at: Revision) -> Result<RwLockReadGuard<'_, Inner>, ReadError> {
        let inner = self.read();
        match inner.pruned <= at {
            true => Ok(inner),
            false => Err(ReadError::Compacted { oldest: inner.pruned }),
        }
    }

    // A writer that panicked has stopped the node. What it left half done is newer than every published view, so a
    // reader that still holds one is better served than killed.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn collect<'a>(
    keys: impl Iterator<Item = (&'a ShortBytes, History<'a>)>,
    at: Revision,
    limit: usize,
    rest: impl FnOnce(&[u8]) -> KeyRange,
) -> Slice {
    let mut entries = Vec::new();
    for (looked_at, (key, history)) in keys.enumerate() {
        if let Some(version) = history.live_at(at) {
            entries.push((Bytes::copy_from_slice(key.as_slice()), version));
        }
        if entries.len() >= limit || looked_at + 1 == SLICE_KEYS_MAX {
            return Slice { entries, rest: Some(rest(key.as_slice())) };
        }
    }
    Slice { entries, rest: None }
}

/// The smallest key above `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pruning_forgets_what_came_before_and_deletes_leave_no_trace() {
        let index = KeyIndex::default();
        let id = |revision| RecordId { revision: Revision::new(revision), ordinal: 0 };
        let live = |revision| {
            let (created, version, lease) = (Revision::new(revision), 1, None);
            Version::live(NewVersion { id: id(revision), created, version, lease, hash: 0, bytes: 0 })
        };
        let versions = [live(1), live(2), Version::tombstone(id(3), 0, 0), live(4), Version::tombstone(id(5), 0, 0)];
        index.insert(versions.map(|version| (&b"k"[..], version)));
        let kept = || index.versions(b"k", Revision::new(9), 9).iter().map(|v| v.revision).collect::<Vec<_>>();
        assert_eq!(kept(), [5, 4, 3, 2, 1]);
        index.refuse_below(Revision::new(5));
        for (up_to, left) in [(1, &[5, 4, 3, 2, 1][..]), (2, &[5, 4, 3, 2]), (3, &[5, 4]), (4, &[5, 4]), (5, &[])] {
            assert_eq!(index.prune_slice(0, id(up_to)), None);
            assert_eq!(kept(), left, "up to {up_to}");
        }
        assert_eq!(index.read().keys.iter().count(), 0);
    }

    #[test]
    fn pruning_goes_through_all_keys_a_slice_at_a_time() {
        let index = KeyIndex::default();
        let keys: Vec<String> = (0..2 * SLICE_KEYS_MAX + 1).map(|n| format!("{n:06}")).collect();
        for revision in [1, 2] {
            let id = RecordId { revision: Revision::new(revision), ordinal: 0 };
            let version = Version::live(NewVersion {
                id,
                created: Revision::new(1),
                version: revision,
                lease: None,
                hash: 0,
                bytes: 0,
            });
            index.insert(keys.iter().map(|key| (key.as_bytes(), version)));
        }
        index.refuse_below(Revision::new(2));
        let end = RecordId { revision: Revision::new(2), ordinal: u32::MAX };
        let superseded = || index.read().keys.iter().filter(|(_, history)| history.newest_first().count() > 1).count();
        let mut next = Some(0);
        for left in [SLICE_KEYS_MAX + 1, 1, 0] {
            next = index.prune_slice(next.expect("there are more"), end);
            assert_eq!(superseded(), left);
        }
        assert!(next.is_none() && index.live() == keys.len() as u64);
    }
}
