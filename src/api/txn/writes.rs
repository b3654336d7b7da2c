//! What a closure has written and nobody else has seen yet.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::range_set::RangeSet;
use crate::command::{Attach, KeyRange, KeyValue, Op};
use crate::types::Revision;

/// Puts and removals, each over what was written before it. A key that is put is put, removed or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Writes {
    puts: BTreeMap<Bytes, Pending>,
    /// What the puts take.
    bytes: usize,
    removed: RangeSet,
}

/// A value that is to be put.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) value: Bytes,
    pub(super) attach: Attach,
}

/// What the writes say of a key.
pub(super) enum Known {
    /// It will hold this.
    Put(KeyValue),
    Removed,
    /// Nothing: it is what the view says.
    Untouched,
}

impl Writes {
    pub(super) fn put(&mut self, key: Bytes, value: Bytes) {
        self.forget(&key);
        self.bytes += key.len() + value.len();
        self.puts.insert(key, Pending { value, attach: Attach::Forever });
    }

    /// What a key that is put hangs on.
    pub(super) fn attach(&mut self, key: &Bytes) -> Option<&mut Attach> {
        self.puts.get_mut(key).map(|put| &mut put.attach)
    }

    pub(super) fn remove(&mut self, keys: KeyRange) {
        if !keys.is_empty() {
            let gone: Vec<Bytes> = self.puts_in(&keys).map(|(key, _)| key.clone()).collect();
            gone.iter().for_each(|key| self.forget(key));
            self.removed.insert(keys);
        }
    }

    fn forget(&mut self, key: &Bytes) {
        if let Some(put) = self.puts.remove(key) {
            self.bytes -= key.len() + put.value.len();
        }
    }

    pub(super) fn known(&self, key: &Bytes) -> Known {
        match self.puts.get(key) {
            Some(put) => Known::Put(put.shown(key)),
            None if self.removed.contains(key) => Known::Removed,
            None => Known::Untouched,
        }
    }

    /// The puts in a range that is not empty, in order.
    pub(super) fn puts_in(&self, keys: &KeyRange) -> impl DoubleEndedIterator<Item = (&Bytes, &Pending)> {
        let end = keys.end.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        self.puts.range::<Bytes, _>((Bound::Included(&keys.start), end))
    }

    pub(super) fn removed(&self) -> &RangeSet {
        &self.removed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many operations it takes, or a few less.
    pub(super) fn len(&self) -> usize {
        self.puts.len() + self.removed.len()
    }

    /// Bytes of keys and values that are put.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is to be carried out. No key is in two of them: a removal leaves out what is put.
    pub(super) fn ops(self) -> Vec<Op> {
        let mut put = RangeSet::default();
        self.puts.keys().for_each(|key| put.insert(KeyRange::single(key.clone())));
        let removed = self.removed.iter().flat_map(|keys| put.gaps(&keys));
        let mut ops: Vec<Op> = removed.map(|keys| Op::Delete { keys, prev: false }).collect();
        let puts = self.puts.into_iter();
        ops.extend(puts.map(|(key, Pending { value, attach })| Op::Put { key, value, lease: attach, prev: false }));
        ops
    }
}

impl Pending {
    /// As an entry: one that has no place in the history yet.
    pub(super) fn shown(&self, key: &Bytes) -> KeyValue {
        let (lease, ttl_ms) = match self.attach {
            Attach::Forever => (None, None),
            Attach::Lease(lease) => (Some(lease), None),
            Attach::Ttl { ttl_ms } => (None, Some(ttl_ms)),
        };
        KeyValue {
            key: key.clone(),
            value: self.value.clone(),
            created: Revision::ZERO,
            modified: Revision::ZERO,
            version: 0,
            lease,
            ttl_ms,
        }
    }
}
