//! Transactions in compare form: if these conditions hold, do this, else that, at one point and one revision.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::api::cluster::Cluster;
use crate::api::fence::{Fenced, Fences, Terms};
use crate::api::key::Key;
use crate::api::keys::{Keys, stored_key};
use crate::api::kv::{Entry, ttl_attach};
use crate::api::layout::{self, Layout};
use crate::api::range::RANGE_ENTRIES_MAX;
use crate::api::session::Session;
use crate::api::table::Table;
use crate::codec::{Codec, Format, Value};
use crate::command::{Attach, Compare, KeyRange, KeyValue, Op, OpResult, Order, Test, Txn, TxnResponse};
use crate::error::Error;
use crate::format::keys;
use crate::types::{LeaseId, Revision};

/// A condition on one key, or on every key of a range. Made by [`when`].
#[derive(Clone, Debug)]
pub struct Condition(Result<Compare, Error>);

/// Declares the conditions that are the same whatever the values are.
macro_rules! conditions {
    () => {
        /// Nothing is there.
        pub fn absent(self) -> Condition {
            self.test(Test::Absent)
        }

        /// Something is there; on a range: at least one key.
        pub fn present(self) -> Condition {
            self.test(Test::Present)
        }

        /// The newest put is that of `revision`; revision 0: nothing is there.
        pub fn modified_at(self, revision: Revision) -> Condition {
            self.test(Test::Modified(Order::Equal, revision))
        }

        /// The newest put is of `revision` or older; also true of a missing key.
        pub fn not_modified_after(self, revision: Revision) -> Condition {
            self.test(Test::Modified(Order::LessOrEqual, revision))
        }

        /// The put that created the key is that of `revision`: tells a key from a later one of the same name.
        pub fn created_at(self, revision: Revision) -> Condition {
            self.test(Test::Created(Order::Equal, revision))
        }

        /// The key was put `version` times since it was created; 0: nothing is there.
        pub fn version_is(self, version: u64) -> Condition {
            self.test(Test::Version(Order::Equal, version))
        }

        /// The key hangs on `lease`.
        pub fn lease_is(self, lease: LeaseId) -> Condition {
            self.test(Test::Lease(Some(lease)))
        }

        /// No key of the range was put or deleted after `revision`; false if history does not reach back that far.
        pub fn unchanged_since(self, revision: Revision) -> Condition {
            self.test(Test::UnchangedSince(revision))
        }
    };
}

/// Begins a condition on `keys`. On a range, it must hold for every key present in it.
///
/// ```
/// # use quorate::{Revision, prefix, when};
/// let free = when("owner").absent();
/// let untouched = when(prefix("config/")).unchanged_since(Revision::new(7));
/// ```
pub fn when(keys: impl Into<Keys>) -> When {
    When { keys: keys.into() }
}

/// Some keys that a condition is to be put on. See [`when`].
#[derive(Clone, Debug)]
pub struct When {
    keys: Keys,
}

impl When {
    conditions!();

    /// The stored bytes are those of `value`. A missing key has no value.
    pub fn value_is<V: Value>(self, value: &V) -> Condition {
        TableWhen::new("", self.keys.stored(), Format::flat()).value_is(value)
    }

    /// The stored bytes are not those of `value`. False for a missing key.
    pub fn value_is_not<V: Value>(self, value: &V) -> Condition {
        TableWhen::new("", self.keys.stored(), Format::flat()).value_is_not(value)
    }

    fn test(self, test: Test) -> Condition {
        condition(self.keys.stored(), test)
    }
}

/// Some keys of a table that a condition is to be put on. See [`Table::when`].
#[derive(Clone, Debug)]
pub struct TableWhen<V: 'static> {
    table: &'static str,
    keys: Result<KeyRange, Error>,
    format: Format<V>,
}

impl<V> TableWhen<V> {
    pub(crate) fn new(table: &'static str, keys: Result<KeyRange, Error>, format: Format<V>) -> Self {
        TableWhen { table, keys, format }
    }

    conditions!();

    /// The stored bytes are those of `value`, so it was written in this schema version. A missing key has no value.
    pub fn value_is(self, value: &V) -> Condition {
        self.value(Order::Equal, value)
    }

    /// The stored bytes are not those of `value`; also true of the same value in another schema version. False for a missing
    /// key.
    pub fn value_is_not(self, value: &V) -> Condition {
        self.value(Order::NotEqual, value)
    }

    fn value(self, order: Order, value: &V) -> Condition {
        Condition(self.keys.and_then(|keys| {
            let value = layout::encode(&self.format, self.table, &keys.start, value)?;
            Ok(Compare { keys, test: Test::Value(order, value) })
        }))
    }

    fn test(self, test: Test) -> Condition {
        condition(self.keys, test)
    }
}

fn condition(keys: Result<KeyRange, Error>, test: Test) -> Condition {
    Condition(keys.map(|keys| Compare { keys, test }))
}

/// One operation of a transaction. Made by [`put`], [`remove`], [`read`] and [`list`].
#[derive(Clone, Debug)]
pub struct Operation(Result<Op, Error>);

/// Puts `value` at `key`.
pub fn put<V: Value>(key: impl AsRef<str>, value: &V) -> Operation {
    Operation::put("", stored_key(key.as_ref()), &Format::flat(), value)
}

/// Deletes keys.
pub fn remove(keys: impl Into<Keys>) -> Operation {
    Operation::remove(keys.into().stored())
}

/// Reads one key, as it was before the transaction's own writes.
pub fn read(key: impl AsRef<str>) -> Operation {
    Operation::read(stored_key(key.as_ref()))
}

/// Reads all entries of `keys`, as they were before the transaction's own writes.
pub fn list(keys: impl Into<Keys>) -> Operation {
    Operation::list(keys.into().stored())
}

impl Operation {
    pub(crate) fn put<V>(table: &'static str, key: Result<Bytes, Error>, format: &Format<V>, value: &V) -> Operation {
        Operation(key.and_then(|key| {
            let value = layout::encode(format, table, &key, value)?;
            Ok(Op::Put { key, value, lease: Attach::Forever, prev: false })
        }))
    }

    pub(crate) fn remove(keys: Result<KeyRange, Error>) -> Operation {
        Operation(keys.map(|keys| Op::Delete { keys, prev: false }))
    }

    pub(crate) fn read(key: Result<Bytes, Error>) -> Operation {
        Operation(key.map(|key| Op::Get { key }))
    }

    pub(crate) fn list(keys: Result<KeyRange, Error>) -> Operation {
        Operation(keys.map(|keys| Op::Range { keys, limit: RANGE_ENTRIES_MAX, reverse: false }))
    }

    /// Has a put key deleted after `ttl` (see [`Set::ttl`](crate::Set::ttl)). Other operations are refused with it.
    pub fn ttl(self, ttl: Duration) -> Self {
        self.attach(ttl_attach(ttl))
    }

    /// Has a put key deleted when the lease ends. Other operations are refused with it.
    pub fn lease(self, lease: LeaseId) -> Self {
        self.attach(Ok(Attach::Lease(lease)))
    }

    /// Has a put key deleted when the session ends. Other operations are refused with it.
    pub fn session(self, session: &Session) -> Self {
        self.lease(session.lease())
    }

    fn attach(self, attach: Result<Attach, Error>) -> Self {
        Operation(self.0.and_then(|op| match op {
            Op::Put { key, value, prev, .. } => Ok(Op::Put { key, value, prev, lease: attach? }),
            _ => Err(Error::Invalid { what: "operation", why: "only a put can have a ttl or a lease".into() }),
        }))
    }
}

/// A transaction in compare form. See [`Cluster::transaction`].
#[must_use = "a transaction does nothing until it is awaited"]
#[derive(Debug)]
pub struct Transaction {
    cluster: Cluster,
    txn: Result<Txn, Error>,
    timeout: Duration,
    fences: Fences,
}

impl Transaction {
    /// Has it carried out only while `held` stands: a guard, or a session. See [`Fenced`]. May be called for several.
    ///
    /// Its `otherwise` branch may only read then. Places of conditions and operations count as in any transaction.
    pub fn require(self, held: &(impl Fenced + ?Sized)) -> Self {
        self.with(held.terms())
    }

    pub(crate) fn with(mut self, terms: Terms) -> Self {
        self.fences.add(terms);
        self
    }

    /// Adds a condition. All must hold for the `then` branch to run.
    pub fn when(mut self, condition: Condition) -> Self {
        self.txn = self.txn.and_then(|mut txn| {
            txn.compares.push(condition.0?);
            Ok(txn)
        });
        self
    }

    /// Adds an operation for when all conditions hold.
    pub fn then(mut self, operation: Operation) -> Self {
        self.txn = self.txn.and_then(|mut txn| {
            txn.then.push(operation.0?);
            Ok(txn)
        });
        self
    }

    /// Adds an operation for when a condition does not hold.
    pub fn otherwise(mut self, operation: Operation) -> Self {
        self.txn = self.txn.and_then(|mut txn| {
            txn.otherwise.push(operation.0?);
            Ok(txn)
        });
        self
    }

    /// Gives up after `timeout` instead of the default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// What a transaction did. See [`Cluster::transaction`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnOutcome {
    answer: TxnResponse,
}

impl TxnOutcome {
    /// Whether all conditions held and the `then` branch ran.
    pub fn succeeded(&self) -> bool {
        self.answer.failed.is_none()
    }

    /// The place (from 0) of the first condition that did not hold.
    pub fn failed_condition(&self) -> Option<usize> {
        self.answer.failed.map(|place| place as usize)
    }

    /// The store's revision right after the transaction; its own if it changed something.
    pub fn revision(&self) -> Revision {
        self.answer.revision
    }

    /// Whether the transaction changed anything.
    pub fn changed(&self) -> bool {
        self.answer.changed
    }

    /// The answer was lost once and too large to be remembered: the transaction was carried out once, its reads are gone.
    pub fn results_lost(&self) -> bool {
        self.answer.elided
    }

    /// What the read at `place` (from 0, among the branch's operations) found; `None` also if that is not a read of one key.
    ///
    /// # Errors
    /// [`Error::Codec`] if the value was not written as a `V`.
    pub fn entry<V: Value>(&self, place: usize) -> Result<Option<Entry<V>>, Error> {
        match self.answer.results.get(place) {
            Some(OpResult::Get(Some(found))) => Entry::read(found, &Format::flat()).map(Some),
            _ => Ok(None),
        }
    }

    /// What the list at `place` (from 0, among the branch's operations) found; empty also if that is not a list.
    ///
    /// # Errors
    /// [`Error::Codec`] if a value was not written as a `V`.
    pub fn entries<V: Value>(&self, place: usize) -> Result<Vec<(String, Entry<V>)>, Error> {
        match self.answer.results.get(place) {
            Some(OpResult::Range { entries, .. }) => {
                entries.iter().map(|stored| Layout::flat().key_entry(stored)).collect()
            }
            _ => Ok(Vec::new()),
        }
    }

    /// As [`TxnOutcome::entry`], for a [`Table::read`].
    ///
    /// # Errors
    /// [`Error::Codec`] if the value is not one of the table's. [`Error::Invalid`] if it is another table's.
    pub fn entry_in<K: Key + ?Sized, V: 'static, C: Codec<V>>(
        &self,
        table: Table<K, V, C>,
        place: usize,
    ) -> Result<Option<Entry<V>>, Error> {
        let Some(OpResult::Get(Some(found))) = self.answer.results.get(place) else { return Ok(None) };
        check_table(table.name(), found)?;
        Entry::read(found, table.format()).map(Some)
    }

    /// As [`TxnOutcome::entries`], for a [`Table::list`].
    ///
    /// # Errors
    /// [`Error::Codec`] and [`Error::Key`] if a value or key is not one of the table's. [`Error::Invalid`] if it is another
    /// table's.
    #[expect(clippy::type_complexity, reason = "a name of its own would hide what the list holds")]
    pub fn entries_in<K: Key + ?Sized, V: 'static, C: Codec<V>>(
        &self,
        table: Table<K, V, C>,
        place: usize,
    ) -> Result<Vec<(K::Owned, Entry<V>)>, Error> {
        let Some(OpResult::Range { entries, .. }) = self.answer.results.get(place) else { return Ok(Vec::new()) };
        let layout = table.layout();
        let typed = entries.iter().map(|found| check_table(table.name(), found).and_then(|()| layout.key_entry(found)));
        typed.collect()
    }

    /// How many keys the operation at `place` deleted; 0 also if that is not a delete.
    pub fn deleted(&self, place: usize) -> u64 {
        match self.answer.results.get(place) {
            Some(OpResult::Delete { deleted, .. }) => *deleted,
            _ => 0,
        }
    }
}

impl IntoFuture for Transaction {
    type Output = Result<TxnOutcome, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let answer = self.fences.write(&self.cluster, self.txn?, self.timeout).await?;
            Ok(TxnOutcome { answer })
        })
    }
}

fn check_table(asked: &str, found: &KeyValue) -> Result<(), Error> {
    match keys::table(&found.key) {
        table if table == asked => Ok(()),
        table => {
            let why = format!("the operation at this place read table {table:?}, not {asked:?}");
            Err(Error::Invalid { what: "place", why })
        }
    }
}

impl Cluster {
    /// Begins a transaction in compare form: conditions, operations for when all hold, operations for when one does not.
    ///
    /// Conditions and reads see one moment; all writes take effect at one revision or not at all. No key may be written twice.
    ///
    /// # Errors
    /// As [`Cluster::set`]; a condition that does not hold is no error.
    /// # Cancel safety
    /// Dropping the future does not withdraw a transaction that was sent.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::{put, read, when};
    /// cluster.set("stock", &1u32).await?;
    /// let sold = cluster
    ///     .transaction()
    ///     .when(when("stock").value_is(&1u32))
    ///     .then(put("stock", &0u32))
    ///     .then(put("orders/1", &"one".to_string()))
    ///     .otherwise(read("stock"))
    ///     .await?;
    /// assert!(sold.succeeded());
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn transaction(&self) -> Transaction {
        Transaction {
            cluster: self.clone(),
            txn: Ok(Txn::default()),
            timeout: self.node().settings().timeout,
            fences: Fences::default(),
        }
    }
}
