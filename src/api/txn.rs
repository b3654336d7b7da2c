//! Transactions in compare form: if these conditions hold, do this, else that, at one point and one revision.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::cluster::Cluster;
use super::key::Key;
use super::keys::{Keys, stored_key};
use super::kv::{Entry, ttl_attach};
use super::layout::{self, Layout};
use super::range::RANGE_ENTRIES_MAX;
use super::session::Session;
use super::table::Table;
use crate::codec::{Codec, Format, Value};
use crate::command::{Attach, Compare, KeyRange, KeyValue, Op, OpResult, Order, Test, Txn, TxnResponse};
use crate::error::Error;
use crate::format::keys;
use crate::rt::{Mark, mark};
use crate::types::{Fence, LeaseId, Revision};
use crate::types::{TXN_OPS_MAX, WRITE_BYTES_MAX};

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

impl Condition {
    /// A claim of a recipe stands: the key was created at the fence's revision.
    pub(crate) fn claim(key: Bytes, fence: Fence) -> Self {
        let test = Test::Created(Order::Equal, fence.revision());
        Condition(Ok(Compare { keys: crate::command::KeyRange::single(key), test }))
    }
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
    /// The first compare is that this claim stands.
    fence: Option<Fence>,
}

impl Transaction {
    /// The transaction of a guard: carried out only while the claim at `key` is the one of `fence`.
    pub(crate) fn fenced(cluster: &Cluster, key: Bytes, fence: Fence) -> Self {
        Transaction { fence: Some(fence), ..cluster.transaction() }.when(Condition::claim(key, fence))
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
            let txn = self.txn?;
            check_size(&txn)?;
            if self.fence.is_some() {
                check_fenced(&txn)?;
            }
            let mut answer = self.cluster.write(txn, self.timeout).await?;
            if let (Some(fence), Some(failed)) = (self.fence, &mut answer.failed) {
                // The claim is the first condition, and none of the caller's.
                match failed.checked_sub(1) {
                    None => {
                        mark(Mark::StaleFenceRefused);
                        return Err(Error::Fenced { held: fence.get(), current: answer.revision });
                    }
                    Some(place) => *failed = place,
                }
            }
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

/// The other branch also runs when the claim is gone: it must not be a way around the fence.
fn check_fenced(txn: &Txn) -> Result<(), Error> {
    match txn.otherwise.iter().any(|op| matches!(op, Op::Put { .. } | Op::Delete { .. })) {
        true => {
            let why =
                "the `otherwise` branch of a guard's transaction may only read: it also runs when the claim is gone";
            Err(Error::Invalid { what: "transaction", why: why.into() })
        }
        false => Ok(()),
    }
}

fn check_size(txn: &Txn) -> Result<(), Error> {
    let invalid = |why| Err(Error::Invalid { what: "transaction", why });
    let parts = txn.compares.len() + txn.then.len() + txn.otherwise.len();
    if parts > TXN_OPS_MAX {
        return invalid(format!("it has {parts} conditions and operations, the limit is {TXN_OPS_MAX}"));
    }
    // Everything counts that makes the entry large: what does not fit into a frame could be logged and never replicated.
    let ops = txn.then.iter().chain(&txn.otherwise).map(|op| match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Get { key } => key.len(),
        Op::Delete { keys, .. } | Op::Range { keys, .. } => range_bytes(keys),
    });
    let compares = txn.compares.iter().map(|compare| {
        let value = if let Test::Value(_, value) = &compare.test { value.len() } else { 0 };
        range_bytes(&compare.keys) + value
    });
    let bytes: usize = ops.chain(compares).sum();
    if bytes > WRITE_BYTES_MAX {
        return invalid(format!("its keys and values take {bytes} bytes, the limit is {WRITE_BYTES_MAX}"));
    }
    Ok(())
}

fn range_bytes(keys: &KeyRange) -> usize {
    keys.start.len() + keys.end.as_ref().map_or(0, |end| end.len())
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
            fence: None,
        }
    }
}
