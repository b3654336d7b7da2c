//! What one table knows of its keys and values: how stored ones get their types back.

use bytes::Bytes;

use super::key::Key;
use super::keys::{key_named, named};
use super::kv::Entry;
use crate::codec::{Format, Value};
use crate::command::KeyValue;
use crate::error::{Error, KeyError};
use crate::format::keys;

/// `K` is what keys are read back as.
pub(crate) struct Layout<V: 'static, K> {
    read_key: fn(&[u8]) -> Result<K, KeyError>,
    format: Format<V>,
}

impl<V: Value> Layout<V, String> {
    /// That of the flat verbs.
    pub(crate) fn flat() -> Self {
        Layout::of::<str>(Format::flat())
    }
}

impl<V> Layout<V, ()> {
    /// That of one key, which need not be read.
    pub(crate) fn of_one(format: Format<V>) -> Self {
        Layout { read_key: |_| Ok(()), format }
    }
}

impl<V, K> Layout<V, K> {
    pub(crate) fn of<T: Key<Owned = K> + ?Sized>(format: Format<V>) -> Self {
        Layout { read_key: T::decode, format }
    }

    /// Of what is no table: keys are read from what stands behind their space and the name in it.
    pub(crate) fn read_by(read_key: fn(&[u8]) -> Result<K, KeyError>, format: Format<V>) -> Self {
        Layout { read_key, format }
    }

    pub(crate) fn key(&self, stored: &Bytes) -> Result<K, Error> {
        (self.read_key)(&keys::strip(stored)).map_err(|error| Error::Key {
            table: keys::table(stored).into(),
            key: key_named(stored),
            problem: error.to_string(),
        })
    }

    pub(crate) fn entry(&self, stored: &KeyValue) -> Result<Entry<V>, Error> {
        Entry::read(stored, &self.format)
    }

    pub(crate) fn key_entry(&self, stored: &KeyValue) -> Result<(K, Entry<V>), Error> {
        Ok((self.key(&stored.key)?, self.entry(stored)?))
    }
}

impl<V, K> Copy for Layout<V, K> {}

impl<V, K> Clone for Layout<V, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V, K> std::fmt::Debug for Layout<V, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.format.fmt(f)
    }
}

/// The bytes of `value`, to be kept at the stored key `at` of `table`.
pub(crate) fn encode<V>(format: &Format<V>, table: &'static str, at: &Bytes, value: &V) -> Result<Bytes, Error> {
    format.encode(table, || named(at), value)
}
