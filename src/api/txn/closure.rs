//! What a closure sees of its transaction: reads and writes, on the spot.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::merge;
use super::range_set::RangeSet;
use super::writes::{Known, Writes};
use crate::api::fence::{Fenced, Fences, Terms, too_large, too_many};
use crate::api::key::Key;
use crate::api::keys::{Keys, stored_key, stored_key_in};
use crate::api::kv::{Entry, ttl_attach};
use crate::api::layout::{self, Layout};
use crate::api::listing::{Listing, Source};
use crate::api::read::read_error;
use crate::api::session::Session;
use crate::api::table::Table;
use crate::codec::{Codec, Format, Value};
use crate::command::{self, Attach, Compare, KeyRange, KeyValue, Test};
use crate::error::Error;
use crate::state_machine::read::ReadError;
use crate::storage::view::View;
use crate::types::{LeaseId, Revision, TXN_OPS_MAX, WRITE_BYTES_MAX};

/// One run of a transaction's closure. See [`Cluster::txn`](crate::Cluster::txn).
///
/// Reads show one moment, with the transaction's own writes over it, and wait for nobody. Writes are carried out when the
/// closure has returned `Ok`: all at one revision, if what was read is still so, or not at all.
pub struct Txn {
    view: Arc<View>,
    /// Every key of these was read, or found missing.
    reads: RangeSet,
    writes: Writes,
    fences: Fences,
    /// Why this cannot be carried out, whatever the closure makes of it.
    ruined: Option<Ruin>,
}

/// Why a run cannot count.
#[derive(Clone, Debug)]
pub(super) enum Ruin {
    /// Its view has become too old while it ran.
    Outdated,
    For(Error),
}

/// What a run is to come to.
pub(super) enum Outcome<R> {
    /// Nothing is to be written: it is over.
    Read(R),
    /// To be written with these conditions.
    Write(R, command::Txn, Fences),
    /// To be run again, on a newer view.
    Outdated,
}

impl Txn {
    /// # Errors
    /// What of `fences` is lost as of `view`.
    pub(super) fn new(view: Arc<View>, fences: Fences) -> Result<Self, Error> {
        fences.check(&view)?;
        Ok(Txn { view, reads: RangeSet::default(), writes: Writes::default(), fences, ruined: None })
    }

    /// The revision that all reads are of.
    pub fn revision(&self) -> Revision {
        self.view.revision
    }

    /// Reads the value at `key`; `None` if nothing is there. That it is still so becomes a condition of the transaction, unless
    /// the transaction has written the key itself.
    ///
    /// An entry that this transaction has put has no place in the history yet: its revisions and its version are 0.
    ///
    /// # Errors
    /// [`Error::Codec`] if the value was not written as a `V`. [`Error::Invalid`] if the transaction has become too large: more
    /// than [`TXN_OPS_MAX`](crate::TXN_OPS_MAX) conditions and operations (neighbouring ranges count as one).
    /// [`Error::Compacted`] if the closure has run for so long that its moment is forgotten: hand it on; the closure is run
    /// again.
    pub fn get<V: Value>(&mut self, key: impl AsRef<str>) -> Result<Option<Entry<V>>, Error> {
        self.entry(stored_key(key.as_ref())?, &Format::flat())
    }

    /// Describes a read of all entries of `keys`: [`Listing::entries`], or [`Listing::count`]. That there are no others becomes
    /// a condition of the transaction; with a limit, as far as that let the read see.
    pub fn range<V: Value>(&mut self, keys: impl Into<Keys>) -> Listing<'_, V> {
        Listing::new(Source::Txn(self), keys.into().stored(), Layout::flat())
    }

    /// Puts `value` at `key`, for good unless [`Put::ttl`] and its like say otherwise.
    ///
    /// # Errors
    /// [`Error::Codec`] if the value cannot be written. [`Error::Invalid`] for a key that cannot be one, or if the transaction
    /// has become too large: as [`Txn::get`], or more than [`WRITE_BYTES_MAX`](crate::WRITE_BYTES_MAX) bytes.
    pub fn put<V: Value>(&mut self, key: impl AsRef<str>, value: &V) -> Result<Put<'_>, Error> {
        self.put_in("", stored_key(key.as_ref())?, &Format::flat(), value)
    }

    /// Removes one key, or all keys of a range: those that are there when the transaction is carried out, read or not.
    ///
    /// # Errors
    /// As [`Txn::put`].
    pub fn remove(&mut self, keys: impl Into<Keys>) -> Result<(), Error> {
        self.remove_in(keys.into().stored()?)
    }

    /// The same for a table, with the types of key and value fixed.
    pub fn table<K: Key + ?Sized, V: 'static, C: Codec<V>>(&mut self, table: Table<K, V, C>) -> TxnTable<'_, K, V> {
        TxnTable { txn: self, table: table.name(), format: *table.format(), key: PhantomData }
    }

    /// Has the transaction carried out only while `held` stands: a guard, or a session. See [`Fenced`].
    ///
    /// # Errors
    /// [`Error::Fenced`] or [`Error::LeaseNotFound`] if it was lost before this transaction's moment.
    pub fn require(&mut self, held: &(impl Fenced + ?Sized)) -> Result<(), Error> {
        let terms: Terms = held.terms();
        if let Err(error) = terms.check(&self.view) {
            return Err(self.ruin(error));
        }
        self.fences.add(terms);
        self.check_size()
    }

    /// An error that says why the transaction is given up: nothing is written if the closure returns it.
    ///
    /// For errors of your own there is [`Cluster::try_txn`](crate::Cluster::try_txn).
    pub fn abort(&self, why: impl Into<String>) -> Error {
        Error::Aborted { why: why.into() }
    }

    fn entry<V>(&mut self, key: Bytes, format: &Format<V>) -> Result<Option<Entry<V>>, Error> {
        let found = match self.writes.known(&key) {
            Known::Put(own) => Some(own),
            Known::Removed => None,
            Known::Untouched => {
                let found = self.view.get(&key);
                let found = self.readable(found)?;
                self.saw(KeyRange::single(key))?;
                found
            }
        };
        found.map(|stored| Entry::read(&stored, format)).transpose()
    }

    pub(in crate::api) fn list(
        &mut self,
        keys: KeyRange,
        limit: usize,
        reverse: bool,
    ) -> Result<(Vec<KeyValue>, bool), Error> {
        if keys.is_empty() {
            return Ok((Vec::new(), false));
        }
        let found = merge::range(&self.view, &self.writes, keys, limit, reverse);
        let found = self.readable(found)?;
        self.saw(found.seen)?;
        Ok((found.entries, found.more))
    }

    pub(in crate::api) fn count(&mut self, keys: KeyRange) -> Result<u64, Error> {
        if keys.is_empty() {
            return Ok(0);
        }
        let count = merge::count(&self.view, &self.writes, &keys);
        let count = self.readable(count)?;
        self.saw(keys)?;
        Ok(count)
    }

    fn put_in<V>(&mut self, table: &'static str, key: Bytes, format: &Format<V>, value: &V) -> Result<Put<'_>, Error> {
        let value = layout::encode(format, table, &key, value)?;
        self.writes.put(key.clone(), value);
        self.check_size()?;
        let attach = self.writes.attach(&key).expect("just put");
        Ok(Put { attach })
    }

    fn remove_in(&mut self, keys: KeyRange) -> Result<(), Error> {
        self.writes.remove(keys);
        self.check_size()
    }

    fn readable<T>(&mut self, read: Result<T, ReadError>) -> Result<T, Error> {
        read.map_err(|error| {
            if let ReadError::Compacted { .. } = error {
                self.ruined.get_or_insert(Ruin::Outdated);
            }
            let error = read_error(error, self.view.revision);
            self.ruin(error)
        })
    }

    fn saw(&mut self, keys: KeyRange) -> Result<(), Error> {
        self.reads.insert(keys);
        self.check_size()
    }

    fn check_size(&mut self) -> Result<(), Error> {
        let parts = self.reads.len() + self.writes.len() + self.fences.len();
        let why = match self.writes.bytes() {
            _ if parts > TXN_OPS_MAX => too_many(parts),
            bytes if bytes > WRITE_BYTES_MAX => too_large(bytes),
            _ => return Ok(()),
        };
        Err(self.ruin(Error::Invalid { what: "transaction", why }))
    }

    /// Takes note that this run cannot count, also if the closure swallows the error.
    fn ruin(&mut self, error: Error) -> Error {
        self.ruined.get_or_insert_with(|| Ruin::For(error.clone()));
        error
    }

    /// What it comes to that the closure has returned this.
    pub(super) fn finish<R, E: From<Error>>(self, returned: Result<R, E>) -> Result<Outcome<R>, E> {
        let value = match (returned, self.ruined) {
            (_, Some(Ruin::Outdated)) => return Ok(Outcome::Outdated),
            (Err(error), _) => return Err(error),
            (Ok(_), Some(Ruin::For(error))) => return Err(error.into()),
            (Ok(value), None) => value,
        };
        if self.writes.is_empty() {
            return Ok(Outcome::Read(value));
        }
        let unchanged = Test::UnchangedSince(self.view.revision);
        let compares = self.reads.iter().map(|keys| Compare { keys, test: unchanged.clone() }).collect();
        let txn = command::Txn { compares, then: self.writes.ops().into(), otherwise: Vec::new() };
        Ok(Outcome::Write(value, txn, self.fences))
    }
}

impl fmt::Debug for Txn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Txn").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

/// One table, within a transaction. Made by [`Txn::table`].
pub struct TxnTable<'a, K: ?Sized, V: 'static> {
    txn: &'a mut Txn,
    table: &'static str,
    format: Format<V>,
    key: PhantomData<fn() -> Box<K>>,
}

impl<K: Key + ?Sized, V: 'static> TxnTable<'_, K, V> {
    /// As [`Txn::get`].
    ///
    /// # Errors
    /// As [`Txn::get`]. [`Error::Codec`] also for a value of a schema version that the table declares no way up from.
    pub fn get(&mut self, key: impl Borrow<K>) -> Result<Option<Entry<V>>, Error> {
        self.txn.entry(stored_key_in(self.table, key.borrow())?, &self.format)
    }

    /// As [`Txn::range`].
    pub fn range(&mut self, keys: impl Into<Keys<K>>) -> Listing<'_, V, K::Owned> {
        let keys = keys.into().stored_in(self.table);
        Listing::new(Source::Txn(self.txn), keys, Layout::of::<K>(self.format))
    }

    /// As [`Txn::put`].
    ///
    /// # Errors
    /// As [`Txn::put`].
    pub fn put(&mut self, key: impl Borrow<K>, value: &V) -> Result<Put<'_>, Error> {
        self.txn.put_in(self.table, stored_key_in(self.table, key.borrow())?, &self.format, value)
    }

    /// As [`Txn::remove`].
    ///
    /// # Errors
    /// As [`Txn::remove`].
    pub fn remove(&mut self, keys: impl Into<Keys<K>>) -> Result<(), Error> {
        self.txn.remove_in(keys.into().stored_in(self.table)?)
    }
}

impl<K: ?Sized, V> fmt::Debug for TxnTable<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxnTable").field("txn", self.txn).field("table", &self.table).finish()
    }
}

/// A key that a transaction puts, to be hung on something. Ignored, the key stays until it is deleted.
#[derive(Debug)]
pub struct Put<'a> {
    attach: &'a mut Attach,
}

impl Put<'_> {
    /// Has the key deleted after `ttl` (see [`Set::ttl`](crate::Set::ttl)).
    ///
    /// # Errors
    /// [`Error::Invalid`] for a ttl out of range: the key stays until it is deleted.
    pub fn ttl(self, ttl: Duration) -> Result<(), Error> {
        *self.attach = ttl_attach(ttl)?;
        Ok(())
    }

    /// Has the key deleted when the lease ends. If it has ended by then, the transaction is
    /// [`Error::LeaseNotFound`](crate::Error::LeaseNotFound).
    pub fn lease(self, lease: LeaseId) {
        *self.attach = Attach::Lease(lease);
    }

    /// Has the key deleted when the session ends, as [`Put::lease`].
    pub fn session(self, session: &Session) {
        self.lease(session.lease());
    }
}
