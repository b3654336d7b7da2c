//! Getting, setting and deleting keys.

use std::future::IntoFuture;
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::cluster::Cluster;
use super::fence::{Fenced, Fences};
use super::keys::{Keys, named, stored_key};
use super::layout;
use super::read::{Reading, read_error, reading, view_at_least};
use super::session::Session;
use crate::codec::{Format, Value};
use crate::command::{
    Attach, Command, Compare, KeyRange, KeyValue, Op, OpResult, Order, Refusal, Response, Test, Txn, TxnResponse,
};
use crate::error::Error;
use crate::rt::Instant;
use crate::types::{LeaseId, Revision};
use crate::types::{TTL_MAX, TTL_MIN};

/// A stored value and where it stands in the history. Derefs to the value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry<V> {
    /// The value.
    pub value: V,
    /// The revision of the put that created the key.
    pub created: Revision,
    /// The revision of the newest put.
    pub modified: Revision,
    /// 1 for the put that created the key, one more for each later one.
    pub version: u64,
    /// The lease the key hangs on.
    pub lease: Option<LeaseId>,
    /// That lease's time to live. How much of it is left: [`Cluster::remaining`].
    pub ttl: Option<Duration>,
}

impl<V> Deref for Entry<V> {
    type Target = V;
    fn deref(&self) -> &V {
        &self.value
    }
}

impl<V: 'static> Entry<V> {
    pub(crate) fn read(kv: &KeyValue, format: &Format<V>) -> Result<Self, Error> {
        Ok(Entry {
            value: format.decode(|| named(&kv.key), &kv.value)?,
            created: kv.created,
            modified: kv.modified,
            version: kv.version,
            lease: kv.lease,
            ttl: kv.ttl_ms.map(Duration::from_millis),
        })
    }
}

/// A write that took effect.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// The revision it made.
    pub revision: Revision,
}

/// A write that took effect, and what it replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replaced<V> {
    /// The revision it made.
    pub revision: Revision,
    /// What the key held before.
    pub prev: Option<Entry<V>>,
}

/// What a conditional write did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cas<V> {
    /// The condition held and the write took effect.
    Applied(Written),
    /// The condition did not hold; nothing changed. What the key holds instead.
    Conflict(Option<Entry<V>>),
}

impl<V> Cas<V> {
    /// Whether the write took effect.
    pub fn is_applied(&self) -> bool {
        matches!(self, Cas::Applied(_))
    }
}

/// What a delete did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deleted {
    /// How many keys were there and are gone.
    pub count: u64,
    /// The store's revision after it; its own if `count` is not 0.
    pub revision: Revision,
}

/// A read of one key. See [`Cluster::get`].
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct Get<V: 'static> {
    reading: Reading,
    key: Result<Bytes, Error>,
    format: Format<V>,
}

impl<V> Get<V> {
    reading!(at);

    pub(crate) fn new(cluster: &Cluster, key: Result<Bytes, Error>, format: Format<V>) -> Self {
        Get { reading: Reading::new(cluster), key, format }
    }
}

impl<V: Send + 'static> IntoFuture for Get<V> {
    type Output = Result<Option<Entry<V>>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let key = self.key?;
            let found = self.reading.run(move |view, at| view.get_at(at, &key)).await?;
            found.map(|stored| Entry::read(&stored, &self.format)).transpose()
        })
    }
}

/// What writes of one key have in common.
#[derive(Debug)]
struct Writing {
    cluster: Cluster,
    /// In stored form.
    key_value: Result<(Bytes, Bytes), Error>,
    attach: Result<Attach, Error>,
    fences: Fences,
    timeout: Duration,
}

impl Writing {
    fn put(&self, prev: bool) -> Result<(Bytes, Op), Error> {
        let ((key, value), lease) = (self.key_value.clone()?, self.attach.clone()?);
        Ok((key.clone(), Op::Put { key, value, lease, prev }))
    }

    async fn send(&self, txn: Txn) -> Result<TxnResponse, Error> {
        self.fences.write(&self.cluster, txn, self.timeout).await
    }
}

/// Declares the methods all writes share.
macro_rules! writing {
    () => {
        /// Has the key deleted `ttl` after the leader accepts the write (milliseconds count; 1 ms to one year). A later write
        /// of the key without a ttl lets it stay.
        pub fn ttl(mut self, ttl: Duration) -> Self {
            self.writing.attach = ttl_attach(ttl);
            self
        }

        /// Has the key deleted when the lease ends: all keys of a lease go at one revision.
        pub fn lease(mut self, lease: LeaseId) -> Self {
            self.writing.attach = Ok(Attach::Lease(lease));
            self
        }

        /// Has the key deleted when the session ends, together with its other keys. Refused with
        /// [`Error::LeaseNotFound`](crate::Error::LeaseNotFound) if it has ended.
        pub fn session(self, session: &Session) -> Self {
            self.lease(session.lease())
        }

        /// Writes only while `held` stands: a guard, or a session. See [`Fenced`](crate::Fenced). May be called for several.
        pub fn fenced(mut self, held: &(impl Fenced + ?Sized)) -> Self {
            self.writing.fences.add(held.terms());
            self
        }

        /// Gives up after `timeout` instead of the default.
        pub fn timeout(mut self, timeout: Duration) -> Self {
            self.writing.timeout = timeout;
            self
        }
    };
}

pub(crate) fn ttl_attach(ttl: Duration) -> Result<Attach, Error> {
    Ok(Attach::Ttl { ttl_ms: ttl_ms(ttl)? })
}

pub(crate) fn ttl_ms(ttl: Duration) -> Result<u64, Error> {
    if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
        let why = format!("it is {ttl:?}, but must be from {TTL_MIN:?} to {TTL_MAX:?}");
        return Err(Error::Invalid { what: "ttl", why });
    }
    Ok(ttl.as_millis() as u64)
}

/// A write of one key. See [`Cluster::set`].
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct Set<V: 'static> {
    writing: Writing,
    format: Format<V>,
}

impl<V> Set<V> {
    writing!();

    pub(crate) fn new(
        cluster: &Cluster,
        table: &'static str,
        key: Result<Bytes, Error>,
        value: &V,
        format: Format<V>,
    ) -> Self {
        let key_value = key.and_then(|key| {
            let value = layout::encode(&format, table, &key, value)?;
            Ok((key, value))
        });
        let timeout = cluster.node().settings().timeout;
        let (attach, fences) = (Ok(Attach::Forever), Fences::default());
        let writing = Writing { cluster: cluster.clone(), key_value, attach, fences, timeout };
        Set { writing, format }
    }

    /// Writes only if the key is not there.
    pub fn if_absent(self) -> SetIf<V> {
        self.when(Test::Absent)
    }

    /// Writes only if the key is there.
    pub fn if_present(self) -> SetIf<V> {
        self.when(Test::Present)
    }

    /// Writes only if the newest put of the key is that of `revision` (an entry's `modified`).
    pub fn if_rev(self, revision: Revision) -> SetIf<V> {
        self.when(Test::Modified(Order::Equal, revision))
    }

    /// Also returns what the key held before.
    pub fn prev(self) -> SetPrev<V> {
        SetPrev { writing: self.writing, format: self.format }
    }

    fn when(self, test: Test) -> SetIf<V> {
        SetIf { writing: self.writing, test, format: self.format }
    }
}

impl<V: Send + 'static> IntoFuture for Set<V> {
    type Output = Result<Written, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (_, put) = self.writing.put(false)?;
            let answer = self.writing.send(Txn { then: [put].into(), ..Txn::default() }).await?;
            Ok(Written { revision: answer.revision })
        })
    }
}

/// A write that also returns what it replaced. See [`Set::prev`].
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct SetPrev<V: 'static> {
    writing: Writing,
    format: Format<V>,
}

impl<V> SetPrev<V> {
    writing!();
}

impl<V: Send + 'static> IntoFuture for SetPrev<V> {
    type Output = Result<Replaced<V>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (key, put) = self.writing.put(true)?;
            let answer = self.writing.send(Txn { then: [put].into(), ..Txn::default() }).await?;
            let prev = match answer.results.first() {
                Some(OpResult::Put { prev, .. }) => prev.clone(),
                // The answer was lost once and too large to be remembered: the old value is still in the history.
                _ => {
                    let before = Revision::new(answer.revision.get() - 1);
                    self.writing.cluster.value_at(key, before).await?
                }
            };
            Ok(Replaced {
                revision: answer.revision,
                prev: prev.map(|stored| Entry::read(&stored, &self.format)).transpose()?,
            })
        })
    }
}

/// A conditional write of one key. See [`Set::if_absent`], [`Set::if_present`], [`Set::if_rev`].
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct SetIf<V: 'static> {
    writing: Writing,
    test: Test,
    format: Format<V>,
}

impl<V> SetIf<V> {
    writing!();
}

impl<V: Send + 'static> IntoFuture for SetIf<V> {
    type Output = Result<Cas<V>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (key, put) = self.writing.put(false)?;
            let compares = vec![Compare { keys: KeyRange::single(key.clone()), test: self.test }];
            let txn = Txn { compares, then: [put].into(), otherwise: vec![Op::Get { key: key.clone() }] };
            let answer = self.writing.send(txn).await?;
            if answer.failed.is_none() {
                return Ok(Cas::Applied(Written { revision: answer.revision }));
            }
            let now = match answer.results.into_iter().next() {
                Some(OpResult::Get(now)) => now,
                _ => self.writing.cluster.value_at(key, answer.revision).await?,
            };
            Ok(Cas::Conflict(now.map(|stored| Entry::read(&stored, &self.format)).transpose()?))
        })
    }
}

/// A delete. See [`Cluster::delete`].
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct Delete {
    cluster: Cluster,
    keys: Result<KeyRange, Error>,
    test: Option<Test>,
    fences: Fences,
    timeout: Duration,
}

impl Delete {
    pub(crate) fn new(cluster: &Cluster, keys: Result<KeyRange, Error>) -> Self {
        let timeout = cluster.node().settings().timeout;
        Delete { cluster: cluster.clone(), keys, test: None, fences: Fences::default(), timeout }
    }

    /// Deletes only if the newest put of the key is that of `revision`; otherwise the count is 0.
    pub fn if_rev(mut self, revision: Revision) -> Self {
        self.test = Some(Test::Modified(Order::Equal, revision));
        self
    }

    /// Deletes only while `held` stands: a guard, or a session. See [`Fenced`]. May be called for several.
    pub fn fenced(mut self, held: &(impl Fenced + ?Sized)) -> Self {
        self.fences.add(held.terms());
        self
    }

    /// Gives up after `timeout` instead of the default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl IntoFuture for Delete {
    type Output = Result<Deleted, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let keys = self.keys?;
            let compares = self.test.map(|test| Compare { keys: keys.clone(), test }).into_iter().collect();
            let txn = Txn { compares, then: [Op::Delete { keys, prev: false }].into(), otherwise: vec![] };
            let answer = self.fences.write(&self.cluster, txn, self.timeout).await?;
            let count = match answer.results.first() {
                Some(OpResult::Delete { deleted, .. }) => *deleted,
                _ => 0,
            };
            Ok(Deleted { count, revision: answer.revision })
        })
    }
}

impl Cluster {
    /// Reads the value at `key`; `None` if nothing is there.
    ///
    /// Linearizable by default, on every node: it shows every write that was acknowledged before the call. Options:
    /// [`Get::stale`], [`Get::at_least`], [`Get::at`], [`Get::timeout`]. Several keys of one moment: [`Cluster::read`].
    ///
    /// # Errors
    /// [`Error::Codec`] if the value was not written as a `V`. [`Error::NotApplied`] if no leader answered in time: try again,
    /// or read [`Get::stale`].
    /// # Cancel safety
    /// Nothing is lost.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// cluster.set("limit", &300u32).await?;
    /// assert_eq!(cluster.get::<u32>("limit").await?.map(|entry| *entry), Some(300));
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn get<V: Value>(&self, key: impl AsRef<str>) -> Get<V> {
        Get::new(self, stored_key(key.as_ref()), Format::flat())
    }

    /// Writes `value` at `key`. When it returns, the value is on disk on a quorum.
    ///
    /// Takes effect once, however often it had to be sent. Options: [`Set::ttl`], [`Set::lease`], [`Set::if_absent`],
    /// [`Set::if_present`], [`Set::if_rev`], [`Set::prev`], [`Set::fenced`], [`Set::timeout`].
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::Codec`] before anything is sent. [`Error::NoSpace`] and [`Error::DiskFull`] likewise.
    /// [`Error::NotApplied`]: not written, safe to try again. [`Error::Indeterminate`]: may or may not be written; ask
    /// [`Cluster::resolve`].
    /// # Cancel safety
    /// Dropping the future does not withdraw a write that was sent.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::Cas;
    /// let first = cluster.set("owner", &"a".to_string()).if_absent().await?;
    /// assert!(first.is_applied());
    /// let second = cluster.set("owner", &"b".to_string()).if_absent().await?;
    /// assert!(matches!(second, Cas::Conflict(Some(now)) if *now == "a"));
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn set<V: Value>(&self, key: impl AsRef<str>, value: &V) -> Set<V> {
        Set::new(self, "", stored_key(key.as_ref()), value, Format::flat())
    }

    /// Deletes one key, or all keys of a range at one revision. Deleting what is not there changes nothing.
    ///
    /// # Errors
    /// As [`Cluster::set`].
    /// # Cancel safety
    /// Dropping the future does not withdraw a delete that was sent.
    pub fn delete(&self, keys: impl Into<Keys>) -> Delete {
        Delete::new(self, keys.into().stored())
    }

    /// How long the key has before its lease expires, by the leader's clock; `None` if it is not there or hangs on no lease.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn remaining(&self, key: impl AsRef<str>) -> Result<Option<Duration>, Error> {
        self.remaining_of(stored_key(key.as_ref())).await
    }

    pub(crate) async fn remaining_of(&self, key: Result<Bytes, Error>) -> Result<Option<Duration>, Error> {
        let key = key?;
        let timeout = self.node().settings().timeout;
        self.on_node(move |node| async move {
            let deadline = Instant::now() + timeout;
            loop {
                let view = node.linearizable_view(deadline - Instant::now()).await?;
                let found = view.get(&key).map_err(|error| read_error(error, view.revision))?;
                let Some(lease) = found.and_then(|kv| kv.lease) else { return Ok(None) };
                if let Some((left, _)) = node.remaining(lease, deadline - Instant::now()).await? {
                    return Ok(Some(left));
                }
                // The lease has gone since the look: with the key, or because the key hangs on another one now.
            }
        })
        .await
    }

    /// Proposes one transaction, once, and returns its answer.
    pub(crate) async fn write(&self, txn: Txn, timeout: Duration) -> Result<TxnResponse, Error> {
        self.check_space(&txn)?;
        let answer = self.node().mutate(Command::Txn(txn), timeout).await?;
        match answer {
            Response::Txn(answer) => Ok(answer),
            Response::Refused(Refusal::LeaseNotFound { lease }) => Err(Error::LeaseNotFound { lease }),
            Response::Refused(Refusal::DuplicateKey { key }) => {
                let why = format!("the transaction writes {:?} twice", named(&key));
                Err(Error::Invalid { what: "transaction", why })
            }
            other => unreachable!("a transaction is answered with {other:?}"),
        }
    }

    /// Refuses a growing write when the store is at its quota, or a member's disk short of room; deletes always pass.
    pub(crate) fn check_space(&self, txn: &Txn) -> Result<(), Error> {
        let grows = txn.then.iter().chain(&txn.otherwise).any(|op| matches!(op, Op::Put { .. }));
        if !grows {
            return Ok(());
        }
        // First: one that has stopped for want of room stays short of it.
        self.node().check_open()?;
        self.node().check_disks()?;
        let (used, limit) = (self.node().state().view().counters.bytes, self.node().settings().quota_bytes);
        if used >= limit { Err(Error::NoSpace { used, limit }) } else { Ok(()) }
    }

    /// What `key` held at `revision`, read from this node's history once it has got there.
    async fn value_at(&self, key: Bytes, revision: Revision) -> Result<Option<KeyValue>, Error> {
        let timeout = self.node().settings().timeout;
        let view = self.on_node(move |node| view_at_least(node, revision, timeout)).await?;
        view.get_at(revision, &key).map_err(|error| read_error(error, revision))
    }
}
