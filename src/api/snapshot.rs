//! Reads of several keys that belong together: one view, held for as long as it is wanted.

use std::borrow::Borrow;
use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::cluster::Cluster;
use super::key::Key;
use super::keys::{Keys, stored_key, stored_key_in};
use super::kv::Entry;
use super::layout::Layout;
use super::listing::{Listing, Source};
use super::read::{Reading, read_error, reading};
use super::table::Table;
use crate::codec::{Codec, Format, Value};
use crate::command::{KeyRange, KeyValue};
use crate::error::Error;
use crate::storage::view::View;
use crate::types::Revision;

/// A snapshot to be taken by awaiting it. See [`Cluster::read`].
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct OpenSnapshot {
    reading: Reading,
}

impl OpenSnapshot {
    reading!(at);
}

impl IntoFuture for OpenSnapshot {
    type Output = Result<Snapshot, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let view = self.reading.view().await?;
            let at = self.reading.at(&view);
            view.reaches(at).map_err(|error| read_error(error, at))?;
            Ok(Snapshot { view, at })
        })
    }
}

/// The whole store as of one revision. See [`Cluster::read`].
///
/// Reading it waits for nobody and asks nobody, whatever is written meanwhile; clones are the same moment. It can be used from
/// any thread.
///
/// **How long it lasts.** For 60 seconds after newer state has been published, the node keeps what an open snapshot can
/// reach. After that it forgets on: as soon as the history has moved past the snapshot's revision (100 000 revisions unless
/// [`Builder::history`](crate::Builder::history) says otherwise), reads of it are [`Error::Compacted`], never something else.
/// While it is held, the disk space of what is deleted is not used again, so drop it when done. It does not keep its node
/// running: after a shutdown it may still answer, or say [`Error::Stopped`].
#[derive(Clone)]
pub struct Snapshot {
    view: Arc<View>,
    at: Revision,
}

impl Snapshot {
    /// The revision all of it is of. To be told what happens since:
    /// [`WatchBuilder::from`](crate::WatchBuilder::from)`(revision.next())`.
    pub fn revision(&self) -> Revision {
        self.at
    }

    /// Reads the value at `key`; `None` if nothing was there.
    ///
    /// # Errors
    /// [`Error::Codec`] if the value was not written as a `V`. [`Error::Compacted`] if the snapshot is too old: take another.
    /// [`Error::Stopped`] if its node is.
    pub fn get<V: Value>(&self, key: impl AsRef<str>) -> Result<Option<Entry<V>>, Error> {
        self.entry(&stored_key(key.as_ref())?, &Format::flat())
    }

    /// Describes a read of all entries of `keys`: [`Listing::entries`], or [`Listing::count`].
    ///
    /// More than fits one list is read page by page with [`Range::at`](crate::Range::at) and
    /// [`Range::stream`](crate::Range::stream), which need no snapshot.
    pub fn range<V: Value>(&self, keys: impl Into<Keys>) -> Listing<'_, V> {
        Listing::new(Source::Snapshot(self), keys.into().stored(), Layout::flat())
    }

    /// The same for a table, with the types of key and value fixed.
    pub fn table<K: Key + ?Sized, V: 'static, C: Codec<V>>(&self, table: Table<K, V, C>) -> SnapshotTable<'_, K, V> {
        SnapshotTable { snapshot: self, table: table.name(), format: *table.format(), key: PhantomData }
    }

    fn entry<V>(&self, key: &Bytes, format: &Format<V>) -> Result<Option<Entry<V>>, Error> {
        let found = self.view.get_at(self.at, key).map_err(|error| read_error(error, self.at))?;
        found.map(|stored| Entry::read(&stored, format)).transpose()
    }

    pub(super) fn list(&self, keys: &KeyRange, limit: usize, reverse: bool) -> Result<(Vec<KeyValue>, bool), Error> {
        self.view.range_at(self.at, keys, limit, reverse).map_err(|error| read_error(error, self.at))
    }

    pub(super) fn count(&self, keys: &KeyRange) -> Result<u64, Error> {
        self.view.count_at(self.at, keys).map_err(|error| read_error(error, self.at))
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("revision", &self.at).finish_non_exhaustive()
    }
}

/// One table as of one revision. Made by [`Snapshot::table`].
pub struct SnapshotTable<'a, K: ?Sized, V: 'static> {
    snapshot: &'a Snapshot,
    table: &'static str,
    format: Format<V>,
    key: PhantomData<fn() -> Box<K>>,
}

impl<'a, K: Key + ?Sized, V: 'static> SnapshotTable<'a, K, V> {
    /// Reads the value at `key`; `None` if nothing was there.
    ///
    /// # Errors
    /// As [`Snapshot::get`]. [`Error::Codec`] also for a value of a schema version that the table declares no way up from.
    pub fn get(&self, key: impl Borrow<K>) -> Result<Option<Entry<V>>, Error> {
        self.snapshot.entry(&stored_key_in(self.table, key.borrow())?, &self.format)
    }

    /// Describes a read of all entries of `keys`: [`Listing::entries`], or [`Listing::count`].
    pub fn range(&self, keys: impl Into<Keys<K>>) -> Listing<'a, V, K::Owned> {
        let keys = keys.into().stored_in(self.table);
        Listing::new(Source::Snapshot(self.snapshot), keys, Layout::of::<K>(self.format))
    }
}

impl<K: ?Sized, V> fmt::Debug for SnapshotTable<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotTable").field("snapshot", self.snapshot).field("table", &self.table).finish()
    }
}

impl Cluster {
    /// Takes a view of the whole store as of one moment, to read any number of keys from without waiting.
    ///
    /// Linearizable by default, on every node. Options: [`OpenSnapshot::stale`], [`OpenSnapshot::at_least`],
    /// [`OpenSnapshot::at`], [`OpenSnapshot::timeout`]. To write what follows from what is read, use [`Cluster::txn`].
    ///
    /// # Errors
    /// As [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::{Table, prefix};
    /// const PORTS: Table<str, u16> = Table::new("ports");
    /// cluster.set("config/a", &1u32).await?;
    /// cluster.table(PORTS).set("web", &8080).await?;
    ///
    /// let now = cluster.read().await?;
    /// cluster.delete(prefix("config/")).await?; // changes nothing about what the snapshot shows
    /// assert_eq!(now.get::<u32>("config/a")?.map(|entry| *entry), Some(1));
    /// assert_eq!(now.range::<u32>(prefix("config/")).count()?, 1);
    /// assert_eq!(now.table(PORTS).range(..).entries()?.len(), 1);
    ///
    /// let before = cluster.read().at(now.revision()).await?;
    /// assert_eq!(before.get::<u32>("config/a")?.map(|entry| *entry), Some(1));
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn read(&self) -> OpenSnapshot {
        OpenSnapshot { reading: Reading::new(self) }
    }
}

#[cfg(test)]
mod tests;
