//! Tables: keys and values with their types fixed, codecs chosen, and versions declared.
//!
//! A [`Table`] is a constant that says what is stored under a name; [`Cluster::table`] gives the verbs for it, and its own
//! methods the parts of transactions. Nothing is registered anywhere: a table is there as soon as a key is written in it, and
//! what it promises is checked value by value as they are read. The flat verbs of [`Cluster`] are the table with the empty
//! name, keyed by `str`.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use super::cluster::Cluster;
use super::history::Explain;
use super::key::Key;
use super::keys::{Keys, stored_key_in};
use super::kv::{Delete, Get, Set};
use super::layout::Layout;
use super::mirror::{OpenMirror, OpenMirrorKey};
use super::range::Range;
use super::txn::{Operation, TableWhen};
use super::watch::WatchBuilder;
use crate::codec::{Bincode, Codec, Format, Upgrade};
use crate::error::Error;
use crate::types::TABLE_NAME_BYTES_MAX;

/// What is stored under a name: keys of type `K`, values of type `V`, written by the codec `C`.
///
/// A constant, shared by all parts of a program (and by all releases of it) that use the table. Two tables of different names
/// have nothing to do with each other; two constants of one name are the same table, and it is an error
/// ([`Error::Codec`], [`Error::Key`]), found when reading, if they do not agree.
///
/// `K` is a [`Key`]: `str`, `[u8]`, integers, and tuples in the order of their parts. `V` is any serde type, stored by
/// [`Bincode`] unless `C` says [`Json`](crate::Json), or bytes with [`Raw`](crate::Raw). Key and codec of a table can never be
/// changed; its values can, by declaring a new [`Table::schema`].
///
/// # Examples
/// ```
/// # futures::executor::block_on(async {
/// use std::time::Duration;
/// use quorate::{Cas, Cluster, Json, Table, leading, upgrade};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Instance { address: String, weight: u32 }
///
/// #[derive(Serialize, Deserialize)]
/// struct ConfigV1 { pool: u32 }
/// #[derive(Serialize, Deserialize)]
/// struct Config { pool: u32, log: String }
///
/// impl From<ConfigV1> for Config {
///     fn from(old: ConfigV1) -> Self {
///         Config { pool: old.pool, log: "info".into() }
///     }
/// }
///
/// /// Service and instance number.
/// const SERVICES: Table<(&'static str, u32), Instance> = Table::new("services");
/// /// JSON, so that people can read it; values of version 1 are still there.
/// const CONFIG: Table<str, Config, Json> = Table::new("config").schema(2, &[upgrade::<ConfigV1, Config>(1)]);
///
/// let nodes = Cluster::local(3).await?;
/// let services = nodes[0].table(SERVICES);
/// for n in 1..=3 {
///     let instance = Instance { address: format!("10.0.0.{n}:80"), weight: n };
///     services.set(("web", n), &instance).ttl(Duration::from_secs(30)).await?;
/// }
///
/// // The same verbs and options as on the cluster, on every node, with types that fit.
/// let second = nodes[1].table(SERVICES).get(("web", 2)).await?.expect("just set");
/// assert_eq!(second.address, "10.0.0.2:80");
/// let web = nodes[2].table(SERVICES).range(leading(("web",))).await?;
/// let weights: Vec<u32> = web.iter().map(|(_, instance)| instance.weight).collect();
/// assert_eq!(weights, [1, 2, 3]);
///
/// // Tables meet in transactions.
/// let config = Config { pool: 10, log: "debug".into() };
/// let done = nodes[1]
///     .transaction()
///     .when(SERVICES.when(("web", 3)).present())
///     .then(CONFIG.put("web", &config))
///     .then(SERVICES.remove(("web", 1)..("web", 3)))
///     .await?;
/// assert_eq!((done.succeeded(), done.deleted(1)), (true, 2));
///
/// let taken = nodes[0].table(CONFIG).set("web", &config).if_absent().await?;
/// assert!(matches!(taken, Cas::Conflict(Some(now)) if now.log == "debug"));
/// # for node in &nodes { node.shutdown().await?; }
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct Table<K: ?Sized, V: 'static, C = Bincode> {
    name: &'static str,
    format: Format<V>,
    /// Covariant, so that a table of `(&'static str, u64)` takes keys that live for as long as the call.
    key: PhantomData<fn() -> Box<K>>,
    codec: PhantomData<fn() -> C>,
}

impl<K: Key + ?Sized, V: 'static, C: Codec<V>> Table<K, V, C> {
    /// The table called `name`: at most [`TABLE_NAME_BYTES_MAX`](crate::TABLE_NAME_BYTES_MAX) bytes, none of them zero. The
    /// empty name is that of the flat verbs' table.
    ///
    /// # Panics
    /// If that is no name. In a `const`, where tables belong, it does not compile then.
    pub const fn new(name: &'static str) -> Self {
        assert!(name.len() <= TABLE_NAME_BYTES_MAX, "a table's name has at most TABLE_NAME_BYTES_MAX bytes");
        let (bytes, mut place) = (name.as_bytes(), 0);
        while place < bytes.len() {
            assert!(bytes[place] != 0, "a table's name has no zero byte");
            place += 1;
        }
        Table { name, format: Format::plain::<C>(), key: PhantomData, codec: PhantomData }
    }

    /// Declares that values are written in `version` (1 to 65535), and how those of older versions are read.
    ///
    /// Raise it whenever `V` changes, and keep a way up ([`upgrade`](crate::upgrade)) from each version that may still be
    /// stored; a table without a schema writes version 0. Stored values stay as they are until they are written again. A value
    /// of a version without a way up, or of a newer one (written by a newer release of the program), is an [`Error::Codec`]:
    /// so release programs that can read a version before any that write it.
    ///
    /// Conditions on values ([`TableWhen::value_is`]) compare stored bytes, so they do not hold for an older version of the
    /// same value; those on revisions are not concerned.
    ///
    /// # Panics
    /// If these are not the versions of a schema (version 0, an upgrade from this version or a newer one, two from the same
    /// one). In a `const` it does not compile then.
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::{Table, upgrade};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Limits { requests: u64, burst: u64 }
    ///
    /// impl From<u32> for Limits {
    ///     fn from(requests: u32) -> Self {
    ///         Limits { requests: requests.into(), burst: 0 }
    ///     }
    /// }
    ///
    /// // The release of last year, and this one.
    /// const OLD: Table<str, u32> = Table::new("limits");
    /// const LIMITS: Table<str, Limits> = Table::new("limits").schema(1, &[upgrade::<u32, Limits>(0)]);
    ///
    /// cluster.table(OLD).set("api", &300).await?;
    /// assert_eq!(cluster.table(LIMITS).get("api").await?.expect("just set").requests, 300);
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub const fn schema(self, version: u16, upgrades: &'static [Upgrade<V>]) -> Self {
        Table { format: self.format.schema(version, upgrades), ..self }
    }

    /// The name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Begins a condition of a transaction on keys of this table. On a range, it must hold for every key present in it.
    /// See [`Cluster::transaction`].
    pub fn when(self, keys: impl Into<Keys<K>>) -> TableWhen<V> {
        TableWhen::new(self.name, keys.into().stored_in(self.name), self.format)
    }

    /// Puts `value` at `key`, in a transaction.
    pub fn put(self, key: impl Borrow<K>, value: &V) -> Operation {
        Operation::put(self.name, stored_key_in(self.name, key.borrow()), &self.format, value)
    }

    /// Deletes keys of this table, in a transaction.
    pub fn remove(self, keys: impl Into<Keys<K>>) -> Operation {
        Operation::remove(keys.into().stored_in(self.name))
    }

    /// Reads one key, as it was before the transaction's own writes. What it found:
    /// [`TxnOutcome::entry_in`](crate::TxnOutcome::entry_in).
    pub fn read(self, key: impl Borrow<K>) -> Operation {
        Operation::read(stored_key_in(self.name, key.borrow()))
    }

    /// Reads all entries of `keys`, as they were before the transaction's own writes. What it found:
    /// [`TxnOutcome::entries_in`](crate::TxnOutcome::entries_in).
    pub fn list(self, keys: impl Into<Keys<K>>) -> Operation {
        Operation::list(keys.into().stored_in(self.name))
    }

    pub(crate) fn layout(&self) -> Layout<V, K::Owned> {
        Layout::of::<K>(self.format)
    }

    pub(crate) fn format(&self) -> &Format<V> {
        &self.format
    }
}

impl<K: ?Sized, V, C> Copy for Table<K, V, C> {}

impl<K: ?Sized, V, C> Clone for Table<K, V, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K: ?Sized, V, C> fmt::Debug for Table<K, V, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("name", &self.name).field("format", &self.format).finish()
    }
}

/// The verbs of one table. Made by [`Cluster::table`]; as cheap to clone as the cluster's handle, which it holds.
pub struct Map<K: ?Sized, V: 'static> {
    cluster: Cluster,
    table: &'static str,
    format: Format<V>,
    key: PhantomData<fn() -> Box<K>>,
}

impl<K: Key + ?Sized, V: 'static> Map<K, V> {
    /// Reads the value at `key`; `None` if nothing is there.
    ///
    /// Linearizable by default, on every node. Options: [`Get::stale`], [`Get::at_least`], [`Get::at`], [`Get::timeout`].
    ///
    /// # Errors
    /// As [`Cluster::get`]. [`Error::Codec`] also for a value of a schema version that the table declares no way up from.
    /// # Cancel safety
    /// Nothing is lost.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::Table;
    /// const PORTS: Table<u16, String> = Table::new("ports");
    /// let ports = cluster.table(PORTS);
    /// ports.set(443, &"https".to_string()).await?;
    /// assert_eq!(*ports.get(443).await?.expect("just set"), "https");
    /// assert!(ports.get(80).stale().await?.is_none());
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn get(&self, key: impl Borrow<K>) -> Get<V> {
        Get::new(&self.cluster, stored_key_in(self.table, key.borrow()), self.format)
    }

    /// Writes `value` at `key`. When it returns, the value is on disk on a quorum.
    ///
    /// Takes effect once, however often it had to be sent. Options: [`Set::ttl`], [`Set::lease`], [`Set::session`],
    /// [`Set::if_absent`], [`Set::if_present`], [`Set::if_rev`], [`Set::prev`], [`Set::fenced`], [`Set::timeout`].
    ///
    /// # Errors
    /// As [`Cluster::set`].
    /// # Cancel safety
    /// Dropping the future does not withdraw a write that was sent.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::{Cas, Table};
    /// const LEVELS: Table<str, u8> = Table::new("levels");
    /// let levels = cluster.table(LEVELS);
    /// let seen = levels.set("web", &3).await?.revision;
    /// levels.set("web", &4).await?;
    /// assert!(matches!(levels.set("web", &5).if_rev(seen).await?, Cas::Conflict(Some(now)) if *now == 4));
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn set(&self, key: impl Borrow<K>, value: &V) -> Set<V> {
        Set::new(&self.cluster, self.table, stored_key_in(self.table, key.borrow()), value, self.format)
    }

    /// Deletes one key, or all keys of a range at one revision. Deleting what is not there changes nothing.
    ///
    /// # Errors
    /// As [`Cluster::set`].
    /// # Cancel safety
    /// Dropping the future does not withdraw a delete that was sent.
    pub fn delete(&self, keys: impl Into<Keys<K>>) -> Delete {
        Delete::new(&self.cluster, keys.into().stored_in(self.table))
    }

    /// Reads all entries of `keys` as of one moment, in key order: awaited, at most
    /// [`RANGE_ENTRIES_MAX`](crate::RANGE_ENTRIES_MAX) as a list; all of them with [`Range::stream`].
    ///
    /// Options: [`Range::limit`], [`Range::reverse`], [`Range::stale`], [`Range::at_least`], [`Range::at`], [`Range::timeout`].
    /// Their number: [`Range::count`].
    ///
    /// # Errors
    /// As [`Map::get`]. [`Error::Key`] for a key that is not a `K`.
    /// # Cancel safety
    /// Nothing is lost.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::Table;
    /// const DEPTHS: Table<i32, String> = Table::new("depths");
    /// let depths = cluster.table(DEPTHS);
    /// for depth in [-300, -2, 0, 7] {
    ///     depths.set(depth, &format!("{depth} m")).await?;
    /// }
    /// let mut below = depths.range(..0).reverse().stream();
    /// let (depth, entry) = below.next().await.expect("there are two")?;
    /// assert_eq!((depth, entry.as_str()), (-2, "-2 m"));
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn range(&self, keys: impl Into<Keys<K>>) -> Range<V, K::Owned> {
        Range::new(&self.cluster, keys.into().stored_in(self.table), self.layout())
    }

    /// Watches `keys` on this node: every put and delete, in order, by revision, with nothing missing.
    ///
    /// Options: those of [`WatchBuilder`]. See [`Cluster::watch`].
    ///
    /// # Errors
    /// As [`Cluster::watch`].
    /// # Cancel safety
    /// Nothing is lost: no watch was opened.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::{Table, leading};
    /// const JOBS: Table<(&'static str, u64), u8> = Table::new("jobs");
    /// let jobs = cluster.table(JOBS);
    /// let mut watch = jobs.watch(leading(("web",))).await?;
    /// jobs.set(("mail", 1), &1).await?;
    /// jobs.set(("web", 2), &1).await?;
    /// let batch = watch.next().await.expect("a watch ends with an error")?;
    /// assert_eq!(*batch.events[0].key(), ("web".to_string(), 2));
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn watch(&self, keys: impl Into<Keys<K>>) -> WatchBuilder<V, K::Owned> {
        WatchBuilder::new(&self.cluster, keys.into().stored_in(self.table), self.layout())
    }

    /// Opens a mirror of `keys`: a typed copy in memory that follows every change. See [`Cluster::mirror`].
    ///
    /// # Errors
    /// As [`Cluster::mirror`].
    /// # Cancel safety
    /// Nothing is lost: no mirror was opened.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::{Table, leading};
    /// const JOBS: Table<(&'static str, u64), u8> = Table::new("jobs");
    /// let jobs = cluster.table(JOBS);
    /// jobs.set(("mail", 1), &1).await?;
    /// jobs.set(("web", 2), &7).await?;
    /// let web = jobs.mirror(leading(("web",))).await?;
    /// assert_eq!(web.load().len(), 1);
    /// assert_eq!(web.load().get(&("web", 2u64))?.map(|job| job.value), Some(7));
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn mirror(&self, keys: impl Into<Keys<K>>) -> OpenMirror<V, K::Owned> {
        OpenMirror::new(&self.cluster, self.table, keys.into().stored_in(self.table), self.layout())
    }

    /// Opens a mirror of one key. See [`MirrorKey`](crate::MirrorKey).
    ///
    /// # Errors
    /// As [`Cluster::mirror`].
    /// # Cancel safety
    /// Nothing is lost: no mirror was opened.
    pub fn mirror_key(&self, key: impl Borrow<K>) -> OpenMirrorKey<V> {
        OpenMirrorKey::new(&self.cluster, self.table, stored_key_in(self.table, key.borrow()), self.format)
    }

    /// Lists who wrote what at `key`, when and under which number, newest first. See [`Cluster::explain`].
    ///
    /// # Errors
    /// As [`Map::get`], but that a value which cannot be read spoils only its own place in the list.
    /// # Cancel safety
    /// Nothing is lost.
    pub fn explain(&self, key: impl Borrow<K>) -> Explain<V> {
        Explain::new(&self.cluster, stored_key_in(self.table, key.borrow()), self.format)
    }

    /// How long the key has before its lease expires, by the leader's clock; `None` if it is not there or hangs on no lease.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn remaining(&self, key: impl Borrow<K>) -> Result<Option<Duration>, Error> {
        let key = stored_key_in(self.table, key.borrow());
        self.cluster.remaining_of(key).await
    }

    /// The table's name.
    pub fn name(&self) -> &'static str {
        self.table
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(super) fn format(&self) -> &Format<V> {
        &self.format
    }

    fn layout(&self) -> Layout<V, K::Owned> {
        Layout::of::<K>(self.format)
    }
}

impl<K: ?Sized, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Map { cluster: self.cluster.clone(), table: self.table, format: self.format, key: PhantomData }
    }
}

impl<K: ?Sized, V> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("cluster", &self.cluster).field("table", &self.table).finish_non_exhaustive()
    }
}

impl Cluster {
    /// The verbs for `table`: those of the cluster, with the types of key and value fixed. See [`Table`].
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::Table;
    /// const PORTS: Table<str, u16> = Table::new("ports");
    /// cluster.table(PORTS).set("web", &8080).await?;
    /// assert_eq!(cluster.table(PORTS).get("web").await?.map(|port| *port), Some(8080));
    /// // Another table is another place.
    /// assert!(cluster.get::<u16>("web").await?.is_none());
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn table<K: Key + ?Sized, V: 'static, C: Codec<V>>(&self, table: Table<K, V, C>) -> Map<K, V> {
        Map { cluster: self.clone(), table: table.name, format: table.format, key: PhantomData }
    }
}

#[cfg(test)]
mod tests;
