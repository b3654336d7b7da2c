//! The keys themselves: in order, by hash, and with their versions.
//!
//! Most of what the state thread waits for is memory: an ordered map of a hundred thousand keys is half a dozen cache
//! lines away, a hash table two. So a write finds its key by hash, and the order is for ranges, and changes only when a
//! key comes or goes. Versions lie in numbered places that are used again, since one is superseded by nearly every write.
//! The room of keys and versions that are gone is kept for others.
//!
//! The hash has no seed: keys that somebody makes so as to collide are found one behind the other, and no others are
//! slowed down by it.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::ops::Bound;

use slab::Slab;
use xxhash_rust::xxh3::xxh3_64;

use super::{SLICE_KEYS_MAX, Version};
use crate::command::{KeyRange, RecordId};
use crate::state_machine::ShortBytes;
use crate::types::Revision;

/// Every key with the versions that are still kept.
#[derive(Debug, Default)]
pub(super) struct Keys {
    ordered: BTreeMap<ShortBytes, Place>,
    /// By the lower bits of the hash, a power of two of them: the key that came last of those with the same; it knows the
    /// others.
    buckets: Vec<Option<Place>>,
    keys: Slab<Key>,
    older: Slab<Older>,
    /// No key has had a higher place.
    places: usize,
    live: u64,
}

/// A key and its versions. The newest is in line: most keys have no other.
#[derive(Debug)]
struct Key {
    name: ShortBytes,
    newest: Version,
    older: Option<Place>,
    /// Another key of the same bucket.
    next: Option<Place>,
}

/// A superseded version, and the one before it.
#[derive(Debug)]
struct Older {
    version: Version,
    older: Option<Place>,
}

/// Buckets that the first key makes; there are never fewer than keys.
const BUCKETS_MIN: usize = 64;

/// Of `count`, a power of two. In none of no buckets.
fn bucket(hash: u64, count: usize) -> usize {
    hash as usize & count.wrapping_sub(1)
}

/// A place in a slab, in half the room of a pointer.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Place(NonZeroU32);

impl Place {
    fn new(at: usize) -> Self {
        let number = u32::try_from(at + 1).expect("4 billion keys do not fit into memory");
        Place(NonZeroU32::new(number).expect("one was added"))
    }

    fn at(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// The versions of one key, to be read.
#[derive(Copy, Clone)]
pub(super) struct History<'a> {
    newest: &'a Version,
    older: Option<Place>,
    all: &'a Slab<Older>,
}

impl<'a> History<'a> {
    pub(super) fn newest(&self) -> &'a Version {
        self.newest
    }

    pub(super) fn newest_first(&self) -> impl Iterator<Item = &'a Version> {
        let (all, mut next) = (self.all, self.older);
        let older = std::iter::from_fn(move || {
            let Older { version, older } = &all[next?.at()];
            next = *older;
            Some(version)
        });
        std::iter::once(self.newest).chain(older)
    }

    pub(super) fn live_at(&self, at: Revision) -> Option<Version> {
        let version = self.newest_first().find(|version| version.revision <= at.get())?;
        version.is_live().then_some(*version)
    }
}

impl Keys {
    /// Keys that are live now.
    pub(super) fn live(&self) -> u64 {
        self.live
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<History<'_>> {
        self.find(key).map(|place| self.history(place))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ShortBytes, History<'_>)> {
        self.ordered.iter().map(|(key, place)| (key, self.history(*place)))
    }

    pub(super) fn range(&self, range: &KeyRange) -> impl DoubleEndedIterator<Item = (&ShortBytes, History<'_>)> {
        self.places_of(range).map(|(key, place)| (key, self.history(*place)))
    }

    /// Adds a version, newer than what the key has.
    pub(super) fn insert(&mut self, key: &[u8], version: Version) {
        let hash = xxh3_64(key);
        let was_live = match self.find_hashed(hash, key) {
            Some(place) => self.supersede(place, version),
            None => {
                self.add(hash, key.into(), version);
                false
            }
        };
        self.live = self.live + u64::from(version.is_live()) - u64::from(was_live);
    }

    /// Forgets the versions that were superseded at or below `up_to`, deletes at or below it among them, of the keys in the
    /// next [`SLICE_KEYS_MAX`] places from `from` on. The place to go on from; `None` at the end.
    pub(super) fn prune_slice(&mut self, from: usize, up_to: RecordId) -> Option<usize> {
        let end = (from + SLICE_KEYS_MAX).min(self.places);
        for at in from..end {
            self.prune(at, up_to);
        }
        (end < self.places).then_some(end)
    }

    pub(super) fn prune_key(&mut self, key: &[u8], up_to: RecordId) {
        if let Some(place) = self.find(key) {
            self.prune(place.at(), up_to);
        }
    }

    /// Brings what [`Keys::get`] and [`Keys::insert`] need of each key into the processor's cache. Each of them waits for memory
    /// twice; here all wait together, since no lookup needs another one's outcome.
    pub(super) fn touch<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        let count = self.buckets.len();
        let places: Vec<Place> = keys.filter_map(|key| *self.buckets.get(bucket(xxh3_64(key), count))?).collect();
        let read = places.iter().map(|place| &self.keys[place.at()]);
        black_box(read.map(|key| key.name.len() as u64 + key.newest.revision).fold(0, u64::wrapping_add));
    }

    fn history(&self, place: Place) -> History<'_> {
        let Key { newest, older, .. } = &self.keys[place.at()];
        History { newest, older: *older, all: &self.older }
    }

    fn places_of(&self, range: &KeyRange) -> Range<'_, ShortBytes, Place> {
        let start = range.start.as_ref();
        // The map panics on a range that ends before it starts; an empty one is asked for at the same place instead.
        let end = range.end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(end.as_ref().max(start)));
        self.ordered.range::<[u8], _>((Bound::Included(start), end))
    }

    fn find(&self, key: &[u8]) -> Option<Place> {
        self.find_hashed(xxh3_64(key), key)
    }

    fn find_hashed(&self, hash: u64, key: &[u8]) -> Option<Place> {
        let mut next = *self.buckets.get(bucket(hash, self.buckets.len()))?;
        while let Some(place) = next {
            let found = &self.keys[place.at()];
            if found.name.as_slice() == key {
                return Some(place);
            }
            next = found.next;
        }
        None
    }

    fn add(&mut self, hash: u64, name: ShortBytes, newest: Version) {
        if self.keys.len() == self.buckets.len() {
            self.double_buckets();
        }
        let entry = self.keys.vacant_entry();
        let place = Place::new(entry.key());
        let count = self.buckets.len();
        let next = self.buckets[bucket(hash, count)].replace(place);
        entry.insert(Key { name: name.clone(), newest, older: None, next });
        self.ordered.insert(name, place);
        self.places = self.places.max(place.at() + 1);
    }

    fn double_buckets(&mut self) {
        let count = (2 * self.buckets.len()).max(BUCKETS_MIN);
        self.buckets = vec![None; count];
        for (at, key) in &mut self.keys {
            let hash = xxh3_64(key.name.as_slice());
            key.next = self.buckets[bucket(hash, count)].replace(Place::new(at));
        }
    }

    /// Whether the key was live before.
    fn supersede(&mut self, place: Place, version: Version) -> bool {
        let key = &mut self.keys[place.at()];
        assert!(key.newest.id() < version.id(), "{version:?} is written after {:?}", key.newest);
        let superseded = std::mem::replace(&mut key.newest, version);
        key.older = Some(Place::new(self.older.insert(Older { version: superseded, older: key.older })));
        superseded.is_live()
    }

    fn prune(&mut self, at: usize, up_to: RecordId) {
        let Some(key) = self.keys.get_mut(at) else { return };
        let (mut kept, mut rest) = (None, key.older);
        if key.newest.id() > up_to {
            while let Some(older) = rest.map(|place| &self.older[place.at()]) {
                let is_above = older.version.id() > up_to;
                // The newest one at or below is what readers at `up_to` see, unless it is a delete.
                if is_above || older.version.is_live() {
                    (kept, rest) = (rest, older.older);
                }
                if !is_above {
                    break;
                }
            }
        }
        match kept {
            Some(last) => self.older[last.at()].older = None,
            None => key.older = None,
        }
        let is_kept = key.older.is_some() || key.newest.is_live() || key.newest.id() > up_to;
        while let Some(place) = rest {
            rest = self.older.remove(place.at()).older;
        }
        if !is_kept {
            self.remove(Place::new(at));
        }
    }

    fn remove(&mut self, place: Place) {
        let hash = xxh3_64(self.keys[place.at()].name.as_slice());
        self.remove_hashed(hash, place);
    }

    fn remove_hashed(&mut self, hash: u64, place: Place) {
        let Key { name, next, .. } = self.keys.remove(place.at());
        self.ordered.remove(&name);
        let count = self.buckets.len();
        let mut link = &mut self.buckets[bucket(hash, count)];
        while *link != Some(place) {
            let before = link.expect("a key stands among those of its bucket");
            link = &mut self.keys[before.at()].next;
        }
        *link = next;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::NewVersion;
    use super::*;
    use crate::choices::Choices;

    #[test]
    fn a_short_key_without_history_costs_88_bytes_and_its_place_in_the_order_36() {
        // With the slack of the tree and the buckets, a million of them cost about 150 MB; a key over 30 bytes costs its own
        // more. A superseded version costs 56 bytes until it is swept.
        assert_eq!(size_of::<Version>(), 48);
        assert_eq!((size_of::<Key>(), size_of::<ShortBytes>() + size_of::<Place>()), (88, 36));
        assert_eq!(size_of::<Older>(), 56);
    }

    fn live(revision: u64) -> Version {
        let id = RecordId { revision: Revision::new(revision), ordinal: 0 };
        Version::live(NewVersion { id, created: id.revision, version: 1, lease: None, hash: 0, bytes: 0 })
    }

    #[test]
    fn keys_of_one_bucket_are_told_apart_and_leave_in_any_order() {
        // All are added under the same hash.
        let hash = xxh3_64(b"b");
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut keys = Keys::default();
            let names = [&b"a"[..], b"b", b"c"];
            names.iter().for_each(|name| keys.add(hash, (*name).into(), live(1)));
            let mut left: BTreeSet<&[u8]> = names.into();
            for gone in order {
                let found = |name: &[u8]| keys.find_hashed(hash, name).map(|place| &keys.keys[place.at()].name);
                for name in names {
                    assert_eq!(found(name).map(ShortBytes::as_slice), left.get(name).copied());
                }
                keys.remove_hashed(hash, keys.find_hashed(hash, names[gone]).unwrap());
                left.remove(names[gone]);
            }
            assert!(keys.buckets.iter().all(Option::is_none));
        }
    }

    #[test]
    fn every_key_is_found_however_many_there_are_and_none_that_is_gone() {
        let mut keys = Keys::default();
        assert!(keys.get(b"none").is_none());
        let names: Vec<String> = (0..20 * BUCKETS_MIN).map(|n| format!("key/{n}")).collect();
        let touch = |keys: &Keys| keys.touch(names.iter().map(String::as_bytes).chain([&b"none"[..]]));
        touch(&keys);
        names.iter().for_each(|name| keys.insert(name.as_bytes(), live(1)));
        assert!(names.iter().all(|name| keys.get(name.as_bytes()).is_some()));
        let place = |name: &String, keys: &Keys| keys.find(name.as_bytes()).expect("it is there");
        for name in names.iter().step_by(2) {
            keys.remove(place(name, &keys));
        }
        let found = |name: &String| keys.get(name.as_bytes()).is_some();
        assert_eq!(names.iter().filter(|name| found(name)).count(), names.len() / 2);
        assert!(found(&names[1]) && !found(&names[2]));
        touch(&keys);
    }

    #[test]
    fn whatever_is_written_and_pruned_the_order_and_the_table_hold_the_same_keys() {
        for seed in 0..50 {
            let mut choices = Choices::seeded(seed);
            let (mut keys, mut revision) = (Keys::default(), 0u64);
            for _ in 0..400 {
                revision += 1;
                let key = [choices.below(40) as u8; 3];
                let id = RecordId { revision: Revision::new(revision), ordinal: 0 };
                match choices.below(8) {
                    0 => keys.insert(&key, Version::tombstone(id, 0, 0)),
                    1 => {
                        let up_to = RecordId { revision: Revision::new(choices.below(revision)), ordinal: 0 };
                        let mut from = Some(0);
                        while let Some(place) = from {
                            from = keys.prune_slice(place, up_to);
                        }
                    }
                    _ => keys.insert(&key, live(revision)),
                }
                let in_order: Vec<_> = keys.iter().map(|(key, history)| (key.clone(), *history.newest())).collect();
                assert_eq!(in_order.len(), keys.keys.len());
                assert_eq!(in_order.iter().filter(|(_, newest)| newest.is_live()).count() as u64, keys.live());
                let versions: usize = keys.iter().map(|(_, history)| history.newest_first().count()).sum();
                assert_eq!(versions, keys.keys.len() + keys.older.len(), "a version that no key leads to");
                for (key, newest) in in_order {
                    assert_eq!(keys.get(key.as_slice()).map(|history| *history.newest()), Some(newest));
                }
            }
        }
    }
}
