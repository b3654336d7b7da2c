//! The mirrored keys as of one revision.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;

use super::chunks::{self, Chunks, Keyed};
use crate::api::key::Key;
use crate::api::keys::Keys;
use crate::api::kv::Entry;
use crate::api::layout::Layout;
use crate::command::KeyValue;
use crate::error::Error;
use crate::format::keys;
use crate::types::Revision;

/// The mirrored keys and their entries as of one revision: what [`Mirror::load`](crate::Mirror::load) returns.
///
/// It never changes. Snapshots share what they have in common: to keep an old one costs what has changed since.
///
/// A value that was not written as a `V` does not hide the others: [`Mirrored::get`] reports it for its key,
/// [`Mirrored::errors`] lists them, and all else is about the entries that can be read.
pub struct Mirrored<V, K = String> {
    pub(super) table: &'static str,
    pub(super) revision: Revision,
    pub(super) items: Chunks<Item<V, K>>,
    /// How many items cannot be read.
    pub(super) unreadable: usize,
}

impl<V, K> Mirrored<V, K> {
    pub(super) fn empty(table: &'static str, revision: Revision) -> Self {
        Mirrored { table, revision, items: Chunks::new(), unreadable: 0 }
    }

    /// The revision of the newest change that it shows, or that at which the keys were listed. What the cluster has written
    /// to other keys since, up to [`Mirror::revision`](crate::Mirror::revision), does not move it.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.items.len() - self.unreadable
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries, in key order.
    pub fn iter(&self) -> MirroredEntries<'_, V, K> {
        MirroredEntries { items: self.items.iter() }
    }

    /// What could not be read: values that were not written as a `V` ([`Error::Codec`]), and keys that are no `K`
    /// ([`Error::Key`]), in key order.
    pub fn errors(&self) -> impl Iterator<Item = &Error> {
        self.items.iter().filter_map(|item| item.error())
    }

    /// The entry at `key`; `None` if nothing is there, or if the mirror was not asked for that key.
    ///
    /// `key` has the type of the table's keys, or another one for the same keys: `"web"` and `&String` for text,
    /// `&("web", 7u64)`, `&7u64`.
    ///
    /// # Errors
    /// [`Error::Codec`] if there is a value that was not written as a `V`.
    pub fn get<Q: Key<Owned = K> + ?Sized>(&self, key: &Q) -> Result<Option<&Arc<Entry<V>>>, Error> {
        let stored = keys::host_with(self.table, |bytes| key.encode(bytes));
        self.items.get(&stored).map_or(Ok(None), |item| item.entry().map(Some))
    }

    /// The entries of `keys`, in key order.
    ///
    /// # Errors
    /// [`Error::Invalid`] for keys that cannot exist.
    pub fn range<Q: Key<Owned = K> + ?Sized>(
        &self,
        keys: impl Into<Keys<Q>>,
    ) -> Result<MirroredEntries<'_, V, K>, Error> {
        let range = keys.into().stored_in(self.table)?;
        Ok(MirroredEntries { items: self.items.range(&range.start, range.end.as_deref()) })
    }

    /// Puts `item` in its place, and returns what was there.
    pub(super) fn insert(&mut self, item: Arc<Item<V, K>>) -> Option<Arc<Item<V, K>>> {
        self.unreadable += usize::from(item.error().is_some());
        let before = self.items.insert(item);
        self.forget(before.as_deref());
        before
    }

    /// Adds an item behind all others.
    pub(super) fn push(&mut self, item: Arc<Item<V, K>>) {
        self.unreadable += usize::from(item.error().is_some());
        self.items.push(item);
    }

    pub(super) fn remove(&mut self, stored: &[u8]) -> Option<Arc<Item<V, K>>> {
        let before = self.items.remove(stored);
        self.forget(before.as_deref());
        before
    }

    fn forget(&mut self, item: Option<&Item<V, K>>) {
        self.unreadable -= usize::from(item.is_some_and(|item| item.error().is_some()));
    }
}

impl<V, K> Clone for Mirrored<V, K> {
    fn clone(&self) -> Self {
        Mirrored { table: self.table, revision: self.revision, items: self.items.clone(), unreadable: self.unreadable }
    }
}

impl<V: fmt::Debug, K: fmt::Debug> fmt::Debug for Mirrored<V, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(key, entry)| (key, &entry.value))).finish()
    }
}

impl<'a, V, K> IntoIterator for &'a Mirrored<V, K> {
    type Item = (&'a K, &'a Arc<Entry<V>>);
    type IntoIter = MirroredEntries<'a, V, K>;

    fn into_iter(self) -> MirroredEntries<'a, V, K> {
        self.iter()
    }
}

/// The entries of a [`Mirrored`], or some of them, in key order.
pub struct MirroredEntries<'a, V, K = String> {
    items: chunks::Items<'a, Item<V, K>>,
}

impl<'a, V, K> Iterator for MirroredEntries<'a, V, K> {
    type Item = (&'a K, &'a Arc<Entry<V>>);

    fn next(&mut self) -> Option<Self::Item> {
        self.items.find_map(|item| item.readable())
    }
}

impl<V, K> DoubleEndedIterator for MirroredEntries<'_, V, K> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.items.by_ref().rev().find_map(|item| item.readable())
    }
}

impl<V, K> FusedIterator for MirroredEntries<'_, V, K> {}

impl<V, K> Clone for MirroredEntries<'_, V, K> {
    fn clone(&self) -> Self {
        MirroredEntries { items: self.items.clone() }
    }
}

impl<V, K> fmt::Debug for MirroredEntries<'_, V, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MirroredEntries").finish_non_exhaustive()
    }
}

/// One stored key and what was made of it, once, for all snapshots that hold it.
pub(super) struct Item<V, K> {
    /// A copy: what arrives is a slice of something larger, which would be kept as long as the key.
    stored: Arc<[u8]>,
    /// The revision of its newest put.
    pub(super) modified: Revision,
    content: Content<V, K>,
}

enum Content<V, K> {
    Readable(K, Arc<Entry<V>>),
    /// Its value is no `V`.
    Value(K, Box<Error>),
    /// Its key is no `K`.
    Key(Box<Error>),
}

impl<V, K> Item<V, K> {
    pub(super) fn read(kv: &KeyValue, layout: &Layout<V, K>) -> Self {
        let content = match (layout.key(&kv.key), layout.entry(kv)) {
            (Ok(key), Ok(entry)) => Content::Readable(key, Arc::new(entry)),
            (Ok(key), Err(error)) => Content::Value(key, Box::new(error)),
            (Err(error), _) => Content::Key(Box::new(error)),
        };
        let item = Item { stored: kv.key.as_ref().into(), modified: kv.modified, content };
        if let Some(error) = item.error() {
            tracing::warn!(%error, "a mirrored key cannot be read");
        }
        item
    }

    pub(super) fn stored(&self) -> &Arc<[u8]> {
        &self.stored
    }

    /// `None` if what is there is no `K`.
    pub(super) fn key(&self) -> Option<&K> {
        match &self.content {
            Content::Readable(key, _) | Content::Value(key, _) => Some(key),
            Content::Key(_) => None,
        }
    }

    pub(super) fn entry(&self) -> Result<&Arc<Entry<V>>, Error> {
        match &self.content {
            Content::Readable(_, entry) => Ok(entry),
            Content::Value(_, error) | Content::Key(error) => Err((**error).clone()),
        }
    }

    pub(super) fn readable(&self) -> Option<(&K, &Arc<Entry<V>>)> {
        match &self.content {
            Content::Readable(key, entry) => Some((key, entry)),
            Content::Value(..) | Content::Key(_) => None,
        }
    }

    pub(super) fn error(&self) -> Option<&Error> {
        match &self.content {
            Content::Readable(..) => None,
            Content::Value(_, error) | Content::Key(error) => Some(error),
        }
    }
}

impl<V, K> Keyed for Item<V, K> {
    fn key(&self) -> &[u8] {
        &self.stored
    }
}
