//! One key that is read and written again until nobody came in between.
//!
//! Unlike a transaction's closure, this needs no read beforehand: it begins with what this node happens to know, and an
//! attempt that came too late brings what it should have known. An attempt that succeeds is one round trip.

use std::borrow::Borrow;
use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::cluster::Cluster;
use super::fence::{Fenced, Fences};
use super::key::Key;
use super::keys::{stored_key, stored_key_in};
use super::kv::{Entry, ttl_attach};
use super::layout;
use super::read::{Moment, Reading, read_error};
use super::retry::{Retry, TXN_ATTEMPTS};
use super::session::Session;
use super::table::Map;
use crate::codec::{Format, Value};
use crate::command::{Attach, Compare, KeyRange, KeyValue, Op, OpResult, Order, Test, Txn, TxnResponse};
use crate::error::Error;
use crate::types::{LeaseId, Revision};

/// What is to become of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Keep,
    Put { value: Bytes, attach: Attach },
    Remove,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Rewritten<T> {
    pub(crate) told: T,
    pub(crate) old: Option<KeyValue>,
    /// The store's revision right after it.
    pub(crate) revision: Revision,
    /// The lease that a key that was put hangs on.
    pub(crate) lease: Option<LeaseId>,
    pub(crate) attempts: u32,
}

/// How it is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) fences: Fences,
    pub(crate) attempts: u32,
    pub(crate) timeout: Duration,
}

impl Rules {
    pub(crate) fn within(timeout: Duration) -> Self {
        Rules { fences: Fences::default(), attempts: TXN_ATTEMPTS, timeout }
    }
}

/// Makes of the value at `key` what `change` says of the present one; returns what else `change` said.
///
/// At most one attempt takes effect: each but the last one was decided, and found that somebody else had come first. What
/// writes nothing, be it an error, is confirmed by one linearizable read: the value it was said of may be an old one.
///
/// # Errors
/// Those of `change`. [`Error::NotApplied`] after the last attempt (others of this process wait for each other, so that it is
/// other processes who came first), or when the time was up. [`Error::Indeterminate`] for the
/// attempt under way then.
pub(crate) async fn rewrite<T>(
    cluster: &Cluster,
    key: &Bytes,
    rules: Rules,
    mut change: impl FnMut(Option<&KeyValue>) -> Result<(Change, T), Error>,
) -> Result<Rewritten<T>, Error> {
    cluster.node().check_open()?;
    let mut retry = Retry::new(rules.attempts, rules.timeout)?;
    let _turn = cluster.turn(key.clone(), retry.left()).await?;
    // What this node happens to know will do to begin with: if it is not the newest, the answer brings that.
    let (mut old, _) = present(cluster, key, Moment::Stale, &Fences::default(), rules.timeout).await?;
    loop {
        retry.again()?;
        let nothing = match change(old.as_ref()) {
            Ok((Change::Keep, told)) => Ok(told),
            Ok((change, told)) => {
                let txn = rewriting(key, old.as_ref(), change);
                let answer = rules.fences.write(cluster, txn, retry.left()).await?;
                if answer.failed.is_none() {
                    let (revision, lease) = (answer.revision, attached(&answer));
                    return Ok(Rewritten { told, old, revision, lease, attempts: retry.attempt() });
                }
                old = found_instead(cluster, key, answer, retry.left()).await?;
                continue;
            }
            Err(error) => Err(error),
        };
        let (now, revision) = present(cluster, key, Moment::Linearizable, &rules.fences, retry.left()).await?;
        if modified(now.as_ref()) == modified(old.as_ref()) {
            let told = nothing?;
            return Ok(Rewritten { told, old, revision, lease: None, attempts: retry.attempt() });
        }
        old = now;
    }
}

/// As [`rewrite`], as a task of the node: it goes on when the caller has gone away.
pub(crate) async fn rewrite_detached<T: Send + 'static>(
    cluster: &Cluster,
    key: Bytes,
    timeout: Duration,
    change: impl FnMut(Option<&KeyValue>) -> Result<(Change, T), Error> + Send + 'static,
) -> Result<T, Error> {
    let handle = cluster.clone();
    let rewriting = cluster.on_node(move |_| async move {
        let rewritten = rewrite(&handle, &key, Rules::within(timeout), change).await?;
        Ok(rewritten.told)
    });
    rewriting.await
}

/// What an attempt that came too late has found.
async fn found_instead(
    cluster: &Cluster,
    key: &Bytes,
    answer: TxnResponse,
    timeout: Duration,
) -> Result<Option<KeyValue>, Error> {
    match answer.results.into_iter().next() {
        Some(OpResult::Get(found)) => Ok(found),
        // The answer was lost once and too large to be remembered.
        _ => {
            let (found, _) =
                present(cluster, key, Moment::AtLeast(answer.revision), &Fences::default(), timeout).await?;
            Ok(found)
        }
    }
}

/// What the key holds as of a moment at which all fences stand, and that moment's revision.
async fn present(
    cluster: &Cluster,
    key: &Bytes,
    moment: Moment,
    fences: &Fences,
    timeout: Duration,
) -> Result<(Option<KeyValue>, Revision), Error> {
    let view = Reading { cluster: cluster.clone(), moment, timeout }.view().await?;
    fences.check(&view)?;
    let found = view.get(key).map_err(|error| read_error(error, view.revision))?;
    Ok((found, view.revision))
}

/// When the key was written last; 0 if nothing is there.
fn modified(now: Option<&KeyValue>) -> Revision {
    now.map_or(Revision::ZERO, |kv| kv.modified)
}

/// On the condition that nobody has written the key since it was `old`.
fn rewriting(key: &Bytes, old: Option<&KeyValue>, change: Change) -> Txn {
    let keys = KeyRange::single(key.clone());
    let then = match change {
        Change::Keep => vec![],
        Change::Put { value, attach } => vec![Op::Put { key: key.clone(), value, lease: attach, prev: false }],
        Change::Remove => vec![Op::Delete { keys: keys.clone(), prev: false }],
    };
    let test = Test::Modified(Order::Equal, modified(old));
    Txn { compares: vec![Compare { keys, test }], then: then.into(), otherwise: vec![Op::Get { key: key.clone() }] }
}

fn attached(answer: &TxnResponse) -> Option<LeaseId> {
    match answer.results.first() {
        Some(OpResult::Put { lease, .. }) => *lease,
        _ => None,
    }
}

/// Deletes the key; one that is not there is fine.
pub(crate) async fn remove(cluster: &Cluster, key: Bytes, timeout: Duration) -> Result<(), Error> {
    let then = vec![Op::Delete { keys: KeyRange::single(key), prev: false }];
    cluster.write(Txn { then: then.into(), ..Txn::default() }, timeout).await.map(drop)
}

type Function<V> = Box<dyn FnMut(Option<&V>) -> Option<V> + Send>;

/// A change of one key by a function of what it holds. See [`Cluster::update`].
#[must_use = "an operation does nothing until it is awaited"]
pub struct Update<V: 'static> {
    cluster: Cluster,
    table: &'static str,
    key: Result<Bytes, Error>,
    change: Function<V>,
    /// `None`: what it hung on before.
    attach: Option<Result<Attach, Error>>,
    rules: Rules,
    format: Format<V>,
}

impl<V> Update<V> {
    fn new(
        cluster: &Cluster,
        table: &'static str,
        key: Result<Bytes, Error>,
        format: Format<V>,
        change: impl FnMut(Option<&V>) -> Option<V> + Send + 'static,
    ) -> Self {
        let rules = Rules::within(cluster.node().settings().timeout);
        Update { cluster: cluster.clone(), table, key, change: Box::new(change), attach: None, rules, format }
    }

    /// Has the key deleted `ttl` after the leader accepts the write, whatever it hung on before (see
    /// [`Set::ttl`](crate::Set::ttl)). Writes also what is equal.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.attach = Some(ttl_attach(ttl));
        self
    }

    /// Has the key deleted when the lease ends, whatever it hung on before. Writes also what is equal.
    pub fn lease(mut self, lease: LeaseId) -> Self {
        self.attach = Some(Ok(Attach::Lease(lease)));
        self
    }

    /// Has the key deleted when the session ends, as [`Update::lease`].
    pub fn session(self, session: &Session) -> Self {
        self.lease(session.lease())
    }

    /// Writes only while `held` stands: a guard, or a session. See [`Fenced`]. May be called for several.
    pub fn fenced(mut self, held: &(impl Fenced + ?Sized)) -> Self {
        self.rules.fences.add(held.terms());
        self
    }

    /// Calls the function at most so many times: 1 to [`TXN_ATTEMPTS_MAX`](crate::TXN_ATTEMPTS_MAX), default
    /// [`TXN_ATTEMPTS`](crate::TXN_ATTEMPTS).
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.rules.attempts = attempts;
        self
    }

    /// Gives up after `timeout`, all attempts together, instead of the default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.rules.timeout = timeout;
        self
    }
}

impl<V> fmt::Debug for Update<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Update { cluster, key, rules, .. } = self;
        f.debug_struct("Update")
            .field("cluster", cluster)
            .field("key", key)
            .field("rules", rules)
            .finish_non_exhaustive()
    }
}

/// What an update found and what it left.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Updated<V> {
    /// What the key held before.
    pub old: Option<Entry<V>>,
    /// What it holds now.
    pub new: Option<Entry<V>>,
    /// The store's revision right after the update; its own if it changed something.
    pub revision: Revision,
    /// How often the function was called.
    pub attempts: u32,
}

impl<V: Send + 'static> IntoFuture for Update<V> {
    type Output = Result<Updated<V>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<V> Update<V> {
    async fn run(self) -> Result<Updated<V>, Error> {
        let Update { cluster, table, key, mut change, attach, rules, format } = self;
        let (key, attach) = (key?, attach.transpose()?);
        let function = |stored: Option<&KeyValue>| {
            let old = stored.map(|kv| Entry::read(kv, &format)).transpose()?;
            let Some(value) = change(old.as_ref().map(|entry| &entry.value)) else {
                let change = if stored.is_some() { Change::Remove } else { Change::Keep };
                return Ok((change, (old, None)));
            };
            let bytes = layout::encode(&format, table, &key, &value)?;
            let change = match stored {
                Some(kv) if attach.is_none() && kv.value == bytes => Change::Keep,
                _ => Change::Put { value: bytes, attach: attach.unwrap_or_else(|| as_before(stored)) },
            };
            Ok((change.clone(), (old, Some((value, change)))))
        };
        let Rewritten { told: (old, left), old: stored, revision, lease, attempts } =
            rewrite(&cluster, &key, rules, function).await?;
        let new = left.map(|(value, change)| match change {
            Change::Put { attach, .. } => written(&cluster, value, stored.as_ref(), revision, lease, attach),
            Change::Keep | Change::Remove => kept(value, &stored.expect("what is kept is there")),
        });
        Ok(Updated { old, new, revision, attempts })
    }
}

/// What hangs a key where it hung before.
fn as_before(old: Option<&KeyValue>) -> Attach {
    old.and_then(|kv| kv.lease).map_or(Attach::Forever, Attach::Lease)
}

fn kept<V>(value: V, stored: &KeyValue) -> Entry<V> {
    let KeyValue { created, modified, version, lease, ttl_ms, .. } = *stored;
    Entry { value, created, modified, version, lease, ttl: ttl_ms.map(Duration::from_millis) }
}

fn written<V>(
    cluster: &Cluster,
    value: V,
    old: Option<&KeyValue>,
    revision: Revision,
    lease: Option<LeaseId>,
    attach: Attach,
) -> Entry<V> {
    let (created, version) = old.map_or((revision, 1), |kv| (kv.created, kv.version + 1));
    let ttl_ms = match attach {
        Attach::Forever => None,
        Attach::Ttl { ttl_ms } => Some(ttl_ms),
        Attach::Lease(lease) => match old {
            Some(kv) if kv.lease == Some(lease) => kv.ttl_ms,
            // The write is done: that this node does not know the lease (any more) is no reason to fail.
            _ => cluster.node().state().view().lease_ttl_ms(lease).ok().flatten(),
        },
    };
    Entry { value, created, modified: revision, version, lease, ttl: ttl_ms.map(Duration::from_millis) }
}

impl Cluster {
    /// Changes the value at `key` to what a function makes of the present one, once, with nobody in between.
    ///
    /// The function is given what is there (`None`: nothing) and says what is to be there: `None` removes the key. A value
    /// equal to the stored one is not written again, so what is to stay as it is, is returned as it is. A key that hangs
    /// on a lease stays on it unless [`Update::ttl`], [`Update::lease`] or [`Update::session`] say otherwise.
    ///
    /// The function runs in the caller's task whenever this is awaited. If somebody else writes the key in between it is
    /// **called again** with what they wrote, as often as it takes, up to [`Update::attempts`]: so it should only compute. If
    /// it panics nothing is written, and the panic goes on to the caller. Several keys at once: [`Cluster::txn`].
    ///
    /// # Errors
    /// As [`Cluster::set`]. [`Error::Codec`] also if the present value is no `V`. [`Error::NotApplied`] with
    /// [`Obstacle::Conflict`](crate::Obstacle::Conflict) if others were faster each time.
    /// # Cancel safety
    /// Dropping the future does not withdraw a write that was sent; the function is not called any more.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// let add = |seen: Option<&u64>| Some(seen.copied().unwrap_or(0) + 1);
    /// cluster.update("visits", add).await?;
    /// let second = cluster.update("visits", add).await?;
    /// assert_eq!((second.old.map(|old| *old), second.new.map(|new| *new)), (Some(1), Some(2)));
    ///
    /// // Removed when it has become too old, kept as it is otherwise.
    /// let swept = cluster.update("visits", |seen: Option<&u64>| seen.copied().filter(|seen| *seen < 1000)).await?;
    /// assert_eq!(swept.new.map(|kept| kept.version), Some(2));
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn update<V: Value>(
        &self,
        key: impl AsRef<str>,
        change: impl FnMut(Option<&V>) -> Option<V> + Send + 'static,
    ) -> Update<V> {
        Update::new(self, "", stored_key(key.as_ref()), Format::flat(), change)
    }
}

impl<K: Key + ?Sized, V: 'static> Map<K, V> {
    /// Changes the value at `key` to what a function makes of the present one. See [`Cluster::update`].
    ///
    /// # Errors
    /// As [`Cluster::update`].
    /// # Cancel safety
    /// As [`Cluster::update`].
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::Table;
    /// const LEVELS: Table<str, u8> = Table::new("levels");
    /// let raised = cluster.table(LEVELS).update("web", |level| Some(level.map_or(1, |level| level + 1))).await?;
    /// assert_eq!(raised.new.map(|level| *level), Some(1));
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn update(
        &self,
        key: impl Borrow<K>,
        change: impl FnMut(Option<&V>) -> Option<V> + Send + 'static,
    ) -> Update<V> {
        Update::new(self.cluster(), self.name(), stored_key_in(self.name(), key.borrow()), *self.format(), change)
    }
}

#[cfg(test)]
mod tests;
