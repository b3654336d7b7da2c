//! The index in memory: which record holds a key's value at which revision.
//!
//! It maps every key to its versions, newest first in reach, and never holds a value: memory grows with the number of
//! keys. The state thread is its only writer and takes the lock once per applied entry; readers share it and hold it for
//! a bounded number of keys. A reader names the revision it reads at, so versions that are being written at the same time
//! are not seen, whether their transaction is committed yet or not. What has been pruned below that revision cannot be
//! answered, and is refused under the same lock that finds the version.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::fmt;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

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
    keys: BTreeMap<ShortBytes, History>,
    live: u64,
    /// Versions superseded at or below may be missing, so reads below are refused.
    pruned: Revision,
}

/// The versions of one key. Most keys have one, which is held in line.
struct History {
    newest: Version,
    /// Ascending; boxed so that a key without history pays for one pointer only.
    #[expect(clippy::box_collection, reason = "the vector's own three words would be paid by every key")]
    older: Option<Box<Vec<Version>>>,
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
        f.debug_struct("KeyIndex").field("live", &inner.live).field("pruned", &inner.pruned).finish_non_exhaustive()
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
        let keys = inner.range(range);
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
        for (key, history) in inner.range(range).take(SLICE_KEYS_MAX) {
            live += u64::from(history.live_at(at).is_some());
            last = Some(key);
        }
        Ok((live, last.map(|last| KeyRange { start: successor(last.as_slice()), end: range.end.clone() })))
    }

    /// Whether any key of `range` was put or deleted after `since`. Knows nothing of changes at or below the floor.
    pub(crate) fn changed_since(&self, range: &KeyRange, since: Revision) -> bool {
        self.read().range(range).any(|(_, history)| history.newest.revision > since.get())
    }

    /// The kept versions of `key` at or below `at`, newest first, deletes included.
    pub(crate) fn versions(&self, key: &[u8], at: Revision, limit: usize) -> Vec<Version> {
        let inner = self.read();
        let Some(history) = inner.keys.get(key) else { return Vec::new() };
        history.newest_first().filter(|version| version.revision <= at.get()).take(limit).copied().collect()
    }

    /// Keys that are live now.
    pub(crate) fn live(&self) -> u64 {
        self.read().live
    }

    /// Reads below this revision are refused.
    pub(crate) fn pruned(&self) -> Revision {
        self.read().pruned
    }

    /// The last version written of `key`, be it a delete. For the writer, who needs no revision to read at.
    pub(super) fn newest(&self, key: &[u8]) -> Option<Version> {
        self.read().keys.get(key).map(|history| history.newest)
    }

    /// Calls `each` with every key that is live now, in order.
    pub(super) fn each_live<E>(&self, mut each: impl FnMut(&[u8], &Version) -> Result<(), E>) -> Result<(), E> {
        let inner = self.read();
        let mut live = inner.keys.iter().filter(|(_, history)| history.newest.is_live());
        live.try_for_each(|(key, history)| each(key.as_slice(), &history.newest))
    }

    /// Adds the versions that one entry wrote. Each is newer than what its key has.
    pub(super) fn insert<'a>(&self, versions: impl IntoIterator<Item = (&'a [u8], Version)>) {
        let mut inner = self.write();
        for (key, version) in versions {
            inner.insert(key, version);
        }
    }

    /// Refuses reads below `up_to` from now on: called before anything they could need is removed.
    pub(super) fn refuse_below(&self, up_to: Revision) {
        let mut inner = self.write();
        inner.pruned = inner.pruned.max(up_to);
    }

    /// Forgets what each of these records made unreachable: the versions before it, and itself if it is a delete.
    pub(super) fn prune<'a>(&self, records: impl IntoIterator<Item = (&'a [u8], RecordId)>) {
        let mut inner = self.write();
        for (key, id) in records {
            assert!(
                id.revision <= inner.pruned,
                "pruning at {id:?}, but reads are refused below {} only",
                inner.pruned
            );
            inner.prune(key, id);
        }
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

impl Inner {
    fn range(&self, range: &KeyRange) -> Range<'_, ShortBytes, History> {
        let start = range.start.as_ref();
        // The map panics on a range that ends before it starts; an empty one is asked for at the same place instead.
        let end = range.end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(end.as_ref().max(start)));
        self.keys.range::<[u8], _>((Bound::Included(start), end))
    }

    fn insert(&mut self, key: &[u8], version: Version) {
        let was_live = match self.keys.get_mut(key) {
            Some(history) => {
                let was_live = history.newest.is_live();
                history.push(version);
                was_live
            }
            None => {
                self.keys.insert(key.into(), History { newest: version, older: None });
                false
            }
        };
        self.live = self.live + u64::from(version.is_live()) - u64::from(was_live);
    }

    fn prune(&mut self, key: &[u8], id: RecordId) {
        let Some(history) = self.keys.get_mut(key) else { return };
        history.drop_before(id);
        if history.newest.id() == id && !history.newest.is_live() {
            self.keys.remove(key);
        }
    }
}

impl History {
    fn push(&mut self, version: Version) {
        assert!(self.newest.id() < version.id(), "{version:?} is written after {:?}", self.newest);
        let superseded = std::mem::replace(&mut self.newest, version);
        self.older.get_or_insert_default().push(superseded);
    }

    fn newest_first(&self) -> impl Iterator<Item = &Version> {
        std::iter::once(&self.newest).chain(self.older.iter().flat_map(|older| older.iter().rev()))
    }

    fn live_at(&self, at: Revision) -> Option<Version> {
        let version = self.newest_first().find(|version| version.revision <= at.get())?;
        version.is_live().then_some(*version)
    }

    /// Drops the versions before `id`, and `id` itself if it is a delete with something written after it.
    fn drop_before(&mut self, id: RecordId) {
        let Some(older) = &mut self.older else { return };
        older.retain(|version| version.id() > id || (version.id() == id && version.is_live()));
        if older.is_empty() {
            self.older = None;
        }
    }
}

fn collect<'a>(
    keys: impl Iterator<Item = (&'a ShortBytes, &'a History)>,
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
    fn a_short_key_without_history_costs_88_bytes() {
        // So a million of them cost about 130 MB with the tree's slack; a key over 30 bytes costs its own and an allocation
        // more. A superseded version costs 48 bytes until it is swept.
        assert_eq!(size_of::<Version>(), 48);
        assert_eq!(size_of::<ShortBytes>() + size_of::<History>(), 88);
    }

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
        index.prune([(&b"k"[..], id(2))]);
        assert_eq!(kept(), [5, 4, 3, 2]);
        index.prune([(&b"k"[..], id(3))]);
        assert_eq!(kept(), [5, 4]);
        index.prune([(&b"k"[..], id(5))]);
        assert!(kept().is_empty());
        assert!(index.read().keys.is_empty());
    }
}
