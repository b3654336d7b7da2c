//! Rows in maps, for tests.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;

use super::{EachRecord, EachRow, RowError, RowSpace, Rows, RowsRead, RowsScan};
use crate::command::RecordId;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemRows {
    pub(crate) records: BTreeMap<RecordId, Bytes>,
    pub(crate) rows: BTreeMap<(RowSpace, Vec<u8>), Bytes>,
}

impl MemRows {
    /// What a snapshot carries: everything but the local rows.
    pub(crate) fn snapshot(&self) -> MemRows {
        let mut copy = self.clone();
        copy.rows.retain(|(space, _), _| *space != RowSpace::Local);
        copy
    }
}

impl RowsRead for MemRows {
    fn record(&self, id: RecordId) -> Result<Option<Bytes>, RowError> {
        Ok(self.records.get(&id).cloned())
    }

    fn row(&self, space: RowSpace, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        Ok(self.rows.get(&(space, key.to_vec())).cloned())
    }
}

impl RowsScan for MemRows {
    fn records_in(&self, ids: RangeInclusive<RecordId>, each: &mut EachRecord<'_>) -> Result<(), RowError> {
        for (id, record) in self.records.range(ids) {
            if each(*id, record.clone())?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn each_row(&self, space: RowSpace, each: &mut EachRow<'_>) -> Result<(), RowError> {
        let mut of_space = self.rows.iter().filter(|((in_space, _), _)| *in_space == space);
        of_space.try_for_each(|((_, key), row)| each(key, row.clone()))
    }
}

impl Rows for MemRows {
    fn put_record(&mut self, id: RecordId, record: &[u8]) -> Result<(), RowError> {
        self.records.insert(id, Bytes::copy_from_slice(record));
        Ok(())
    }

    fn remove_records(&mut self, ids: &[RecordId]) -> Result<(), RowError> {
        assert!(ids.is_sorted(), "{ids:?}");
        for id in ids {
            self.records.remove(id);
        }
        Ok(())
    }

    fn put_row(&mut self, space: RowSpace, key: &[u8], value: Cow<'_, [u8]>) -> Result<(), RowError> {
        self.rows.insert((space, key.to_vec()), Bytes::copy_from_slice(&value));
        Ok(())
    }

    fn remove_row(&mut self, space: RowSpace, key: &[u8]) -> Result<(), RowError> {
        self.rows.remove(&(space, key.to_vec()));
        Ok(())
    }
}
