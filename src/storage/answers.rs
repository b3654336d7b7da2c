//! Answers that are not in the database yet, and those that are and should be no longer.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::format::snapshot::Part;
use crate::state_machine::{RowError, ShortBytes};
use crate::storage::state_rows::TxnRows;

/// What became of answers since the last durable commit.
///
/// An answer is of use until its caller has it, which is some milliseconds; the next durable commit comes later than that.
/// So most answers are never written at all: what a crash loses, replaying the log brings back. [`Answers::write`] goes
/// with every durable commit, so that what is durable is always whole, and before a snapshot is read.
/// No view shows them. Bounded by what may be applied between two durable commits.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pending: BTreeMap<ShortBytes, Pending>,
}

#[derive(Debug)]
enum Pending {
    /// To be written; the database has no row of this key. In line as a rule: freeing what was allocated long ago is dear.
    New(ShortBytes),
    /// To be removed from the database.
    Gone,
}

impl Answers {
    /// Brings the database up to date.
    pub(crate) fn write(&self, rows: &mut TxnRows<'_>) -> Result<(), RowError> {
        self.pending.iter().try_for_each(|(key, pending)| match pending {
            Pending::New(row) => rows.put(Part::Answer, key.as_slice(), row.as_slice()),
            Pending::Gone => rows.remove(Part::Answer, key.as_slice()),
        })
    }

    /// The answer if it was put or, inside, `None` if it was removed; `None` if the database knows better.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.pending.get(key).map(|pending| match pending {
            Pending::New(row) => Some(Bytes::copy_from_slice(row.as_slice())),
            Pending::Gone => None,
        })
    }

    pub(crate) fn put(&mut self, key: &[u8], row: &[u8]) {
        let replaced = self.pending.insert(key.into(), Pending::New(row.into()));
        assert!(replaced.is_none(), "an answer is written once: {key:?}");
    }

    pub(crate) fn remove(&mut self, key: &[u8]) {
        if !matches!(self.pending.remove(key), Some(Pending::New(_))) {
            self.pending.insert(key.into(), Pending::Gone);
        }
    }
}
