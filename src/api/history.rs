//! What is known of a key's past: who wrote what, when, under which number.
//!
//! Every write leaves a record with the node and the process it came from. Those that the history still reaches are listed
//! here, the newest first, with what each replaced. Nodes that stand at one revision list the same. The times are the
//! writers' own clocks, for people to read; the order is that of the revisions.

use std::future::IntoFuture;
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::cluster::Cluster;
use super::keys::{named, stored_key};
use super::read::{Reading, read_error, reading};
use crate::codec::{Format, Value};
use crate::command::{ChangeKind, RecordId};
use crate::error::Error;
use crate::format::record::Record;
use crate::rt::{self, WallTime};
use crate::state_machine::read::KeyHistory;
use crate::storage::view::View;
use crate::types::{LeaseId, Member, NodeId, Revision, Ticket};

/// Changes that [`Cluster::explain`] lists unless [`Explain::limit`] says otherwise.
pub const HISTORY_ENTRIES: u32 = 100;
/// Most changes that one [`Cluster::explain`] lists, whatever the limit.
pub const HISTORY_ENTRIES_MAX: u32 = 1_000;

/// A read of one key's past. See [`Cluster::explain`].
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct Explain<V: 'static> {
    reading: Reading,
    key: Result<Bytes, Error>,
    limit: u32,
    format: Format<V>,
}

impl<V> Explain<V> {
    reading!();

    pub(crate) fn new(cluster: &Cluster, key: Result<Bytes, Error>, format: Format<V>) -> Self {
        Explain { reading: Reading::new(cluster), key, limit: HISTORY_ENTRIES, format }
    }

    /// Lists at most `limit` changes, the newest ones. Default [`HISTORY_ENTRIES`](crate::HISTORY_ENTRIES), at most
    /// [`HISTORY_ENTRIES_MAX`](crate::HISTORY_ENTRIES_MAX); about 4 MiB of values in any case, but at least one change.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = limit;
        self
    }
}

/// What is known of one key's past, newest first. Derefs to the list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct History<V> {
    /// The changes, each of them with what it replaced.
    pub entries: Vec<HistoryEntry<V>>,
    /// Whether older changes are kept that the limit kept from the list.
    pub more: bool,
    /// The revision as of which it was read.
    pub revision: Revision,
    /// Changes up to this revision are forgotten, but for the put whose value the key had then. Zero: nothing has ever been
    /// forgotten.
    pub compacted: Revision,
}

impl<V> Deref for History<V> {
    type Target = Vec<HistoryEntry<V>>;
    fn deref(&self) -> &Self::Target {
        &self.entries
    }
}

impl<V> IntoIterator for History<V> {
    type Item = HistoryEntry<V>;
    type IntoIter = std::vec::IntoIter<Self::Item>;
    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

/// One change of a key, and whose it was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryEntry<V> {
    /// The revision at which it happened.
    pub revision: Revision,
    /// When that was by the clock of the node that asked for it. To be shown: clocks jump, and differ from node to node.
    pub when: WallTime,
    /// The node whose host asked for it; for an expiry, the leader that found the lease expired.
    pub node: NodeId,
    /// That node's name, if it is a member as this node knows them.
    pub member: Option<String>,
    /// The number of the write, as [`Cluster::resolve`] knows it. `None` for what the cluster did by itself (an expiry, the
    /// end of a session, the release of a lock).
    pub ticket: Option<Ticket>,
    /// The revision of the put that had created the key.
    pub created: Revision,
    /// 1 for the put that created the key, one more for each later one; of a delete, the version that was deleted.
    pub version: u64,
    /// The lease the key hung on from then on, or when it was deleted.
    pub lease: Option<LeaseId>,
    /// What happened.
    pub change: HistoryChange<V>,
}

/// What happened to a key.
///
/// A value is an [`Error::Codec`] if it was not written as a `V`. What was replaced is an [`Error::Compacted`] if it is
/// forgotten, which can only be in the oldest entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HistoryChange<V> {
    /// It was written.
    #[non_exhaustive]
    Put {
        /// What it held from then on.
        new: Result<V, Error>,
        /// What it held before; `None` if it was not there.
        old: Option<Result<V, Error>>,
    },
    /// Somebody deleted it, or revoked the lease it hung on.
    #[non_exhaustive]
    Deleted {
        /// What it held.
        old: Result<V, Error>,
    },
    /// Its time to live ran out, or the lease it hung on was not renewed.
    #[non_exhaustive]
    Expired {
        /// What it held.
        old: Result<V, Error>,
    },
}

impl<V: Send + 'static> IntoFuture for Explain<V> {
    type Output = Result<History<V>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Explain { reading, key, limit, format } = self;
            let (key, limit) = (key?, limit.min(HISTORY_ENTRIES_MAX) as usize);
            let view = reading.view().await?;
            let failed = |error| read_error(error, view.revision);
            let past = view.history(&key, limit).map_err(failed)?;
            let reader = Reader { view: &view, format, past: &past, members: reading.cluster.members() };
            let entries = (0..past.records.len()).map(|place| reader.entry(place)).collect::<Result<_, Error>>()?;
            Ok(History { entries, more: past.more, revision: view.revision, compacted: past.floor })
        })
    }
}

/// Gives the records of one answer their types.
struct Reader<'a, V: 'static> {
    view: &'a View,
    format: Format<V>,
    past: &'a KeyHistory,
    members: Vec<Member>,
}

impl<V> Reader<'_, V> {
    fn entry(&self, place: usize) -> Result<HistoryEntry<V>, Error> {
        let (id, record) = &self.past.records[place];
        let old = record.prev.map(|prev| self.old(place, prev)).transpose()?;
        let gone = |old: Option<_>| old.expect("only what is there is deleted");
        let change = match record.kind {
            ChangeKind::Put => HistoryChange::Put { new: self.value(record), old },
            ChangeKind::Deleted => HistoryChange::Deleted { old: gone(old) },
            ChangeKind::Expired => HistoryChange::Expired { old: gone(old) },
        };
        let member = self.members.iter().find(|member| member.id == record.origin);
        Ok(HistoryEntry {
            revision: id.revision,
            when: rt::wall_time(record.wall_ms),
            node: record.origin,
            member: member.map(|member| member.name.clone()),
            ticket: record.ticket,
            created: record.created,
            version: record.version,
            lease: record.lease,
            change,
        })
    }

    /// What the record at `place` replaced: the next one of the list, if the limit has not cut that off.
    fn old(&self, place: usize, prev: RecordId) -> Result<Result<V, Error>, Error> {
        if let Some((_, record)) = self.past.records.get(place + 1) {
            return Ok(self.value(record));
        }
        let (at, oldest) = (self.past.records[place].0.revision, self.past.floor);
        let forgotten = Error::Compacted { requested: prev.revision, oldest };
        if at <= oldest {
            return Ok(Err(forgotten));
        }
        let found = self.view.record(prev).map_err(|error| read_error(error, prev.revision))?;
        Ok(found.map_or(Err(forgotten), |record| self.value(&record)))
    }

    fn value(&self, record: &Record) -> Result<V, Error> {
        self.format.decode(|| named(&record.key), &record.value)
    }
}

impl Cluster {
    /// Lists who wrote what at `key`, when and under which number, newest first: every put, delete and expiry that the history
    /// still reaches, with what it replaced.
    ///
    /// History reaches 100 000 revisions back unless [`Builder::history`](crate::Builder::history) says otherwise, and the put
    /// behind the value that a key had then is kept as long as it is in force. Options: [`Explain::limit`], [`Explain::stale`],
    /// [`Explain::at_least`], [`Explain::timeout`].
    ///
    /// # Errors
    /// As [`Cluster::get`], but that a value which is no `V` spoils only its own place in the list.
    /// # Cancel safety
    /// Nothing is lost.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(3).await?;
    /// use quorate::HistoryChange;
    /// nodes[0].set("owner", &"ada".to_string()).await?;
    /// nodes[1].set("owner", &"bob".to_string()).await?;
    /// let history = nodes[2].explain::<String>("owner").await?;
    /// for entry in history.iter() {
    ///     println!("{} at {:?} by {:?}: {:?}", entry.revision, entry.when, entry.member, entry.change);
    /// }
    /// assert_eq!(history[0].member.as_deref(), Some("node-2"));
    /// let HistoryChange::Put { new: Ok(new), old: Some(Ok(old)), .. } = &history[0].change else { panic!("{history:?}") };
    /// assert_eq!((new.as_str(), old.as_str()), ("bob", "ada"));
    /// # for node in nodes { node.shutdown().await?; } Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn explain<V: Value>(&self, key: impl AsRef<str>) -> Explain<V> {
        Explain::new(self, stored_key(key.as_ref()), Format::flat())
    }
}

#[cfg(test)]
mod tests;
