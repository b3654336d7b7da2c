//! The rows of the running state: the database, and before it what is not written there yet.
//!
//! Of the latter there are two layers at the most: what is on its way to the database, and what came after that.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;

use crate::command::RecordId;
use crate::state_machine::{EachRecord, EachRow, RowError, RowSpace, Rows, RowsRead, RowsScan};
use crate::storage::answers::Answers;
use crate::storage::recent::{Batch, Recent};
use crate::storage::state_rows::PastRows;
use crate::types::Revision;

/// What is on its way to the database.
#[derive(Clone, Debug)]
pub(crate) struct Leaving {
    pub(crate) recent: Arc<Recent>,
    pub(crate) answers: Arc<Answers>,
}

/// The rows as the state machine sees and writes them: what it writes goes to a batch.
pub(crate) struct LiveRows<'a> {
    past: &'a PastRows,
    leaving: Option<&'a Leaving>,
    recent: &'a Recent,
    answers: &'a mut Answers,
    pub(crate) batch: Batch,
    /// To be removed from the database, ascending.
    pub(crate) removed: Vec<RecordId>,
}

impl<'a> LiveRows<'a> {
    /// With room for records of `bytes` in all.
    pub(crate) fn new(
        past: &'a PastRows,
        leaving: Option<&'a Leaving>,
        recent: &'a Recent,
        answers: &'a mut Answers,
        bytes: usize,
    ) -> Self {
        LiveRows { past, leaving, recent, answers, batch: Batch::with_room(bytes), removed: Vec::new() }
    }
}

impl RowsRead for LiveRows<'_> {
    fn record(&self, id: RecordId) -> Result<Option<Bytes>, RowError> {
        if let Some(record) = self.batch.record(id) {
            return Ok(Some(Bytes::copy_from_slice(record)));
        }
        record(self.past, self.leaving.map(|leaving| &*leaving.recent), self.recent, id)
    }

    fn row(&self, space: RowSpace, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        let (leaving, now) = (self.leaving, u64::MAX);
        let written = match space {
            RowSpace::Answer => self.answers.get(key).or_else(|| leaving.and_then(|leaving| leaving.answers.get(key))),
            _ => {
                let batch = self.batch.row(space, key).map(Option::<&Bytes>::cloned);
                let recent = batch.or_else(|| self.recent.row(space, key, now));
                recent.or_else(|| leaving.and_then(|leaving| leaving.recent.row(space, key, now)))
            }
        };
        written.map_or_else(|| self.past.row(space, key), Ok)
    }
}

impl Rows for LiveRows<'_> {
    fn put_record(&mut self, id: RecordId, record: &[u8]) -> Result<(), RowError> {
        self.batch.put_record(id, record);
        Ok(())
    }

    fn remove_records(&mut self, ids: &[RecordId]) -> Result<(), RowError> {
        debug_assert!(self.leaving.is_none(), "nothing is swept while what it could be is on its way");
        debug_assert!(ids.iter().all(|id| id.revision <= self.recent.base()), "not in the database yet: {ids:?}");
        self.removed.extend_from_slice(ids);
        Ok(())
    }

    fn put_row(&mut self, space: RowSpace, key: &[u8], value: Cow<'_, [u8]>) -> Result<(), RowError> {
        match space {
            RowSpace::Answer => self.answers.put(key, &value),
            _ => self.batch.put_row(space, key, Some(Bytes::from(value.into_owned()))),
        }
        Ok(())
    }

    fn remove_row(&mut self, space: RowSpace, key: &[u8]) -> Result<(), RowError> {
        match space {
            RowSpace::Answer => self.answers.remove(key),
            _ => self.batch.put_row(space, key, None),
        }
        Ok(())
    }
}

/// The rows of one moment, all but answers. They stay as they are, whatever comes later.
pub(crate) struct MomentRows {
    past: Arc<PastRows>,
    leaving: Option<Arc<Recent>>,
    recent: Arc<Recent>,
    /// The last batch of `recent` that is shown.
    batch: u64,
    /// The last revision that is shown.
    revision: Revision,
}

impl MomentRows {
    /// The present, which is `revision`. `leaving` and then `recent` must be what has come since the moment of `past`.
    pub(crate) fn new(
        past: Arc<PastRows>,
        leaving: Option<Arc<Recent>>,
        recent: Arc<Recent>,
        revision: Revision,
    ) -> Self {
        let batch = recent.now();
        MomentRows { past, leaving, recent, batch, revision }
    }

    /// What of it is in the database.
    pub(crate) fn past(&self) -> &Arc<PastRows> {
        &self.past
    }

    /// What is not, in order, each with the last of its batches that is shown.
    fn layers(&self) -> impl DoubleEndedIterator<Item = (&Recent, u64)> {
        let leaving = self.leaving.as_deref().map(|leaving| (leaving, u64::MAX));
        leaving.into_iter().chain([(&*self.recent, self.batch)])
    }
}

impl RowsRead for MomentRows {
    fn record(&self, id: RecordId) -> Result<Option<Bytes>, RowError> {
        record(&self.past, self.leaving.as_deref(), &self.recent, id)
    }

    fn row(&self, space: RowSpace, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        let written = self.layers().rev().find_map(|(layer, batch)| layer.row(space, key, batch));
        written.map_or_else(|| self.past.row(space, key), Ok)
    }
}

impl RowsScan for MomentRows {
    fn records_in(&self, ids: RangeInclusive<RecordId>, each: &mut EachRecord<'_>) -> Result<(), RowError> {
        let (start, end) = ids.into_inner();
        let end = end.min(RecordId { revision: self.revision, ordinal: u32::MAX });
        let over = Cell::new(false);
        let mut each = |id, record| {
            let flow = each(id, record)?;
            over.set(flow.is_break());
            Ok(flow)
        };
        self.past.records_in(start..=end, &mut each)?;
        for (layer, _) in self.layers() {
            if !over.get() {
                layer.records_in(start..=end, &mut each)?;
            }
        }
        Ok(())
    }

    fn each_row(&self, space: RowSpace, each: &mut EachRow<'_>) -> Result<(), RowError> {
        let mut rows = BTreeMap::new();
        self.past.each_row(space, &mut |key, row| {
            rows.insert(key.to_vec(), row);
            Ok(())
        })?;
        for (key, row) in self.layers().flat_map(|(layer, batch)| layer.rows(space, batch)) {
            match row {
                Some(row) => rows.insert(key.as_slice().to_vec(), row),
                None => rows.remove(key.as_slice()),
            };
        }
        rows.into_iter().try_for_each(|(key, row)| each(&key, row))
    }
}

/// The record `id`, which only one of the three can have.
fn record(past: &PastRows, leaving: Option<&Recent>, recent: &Recent, id: RecordId) -> Result<Option<Bytes>, RowError> {
    if id.revision > recent.base() {
        return Ok(recent.record(id));
    }
    match leaving {
        Some(leaving) if id.revision > leaving.base() => Ok(leaving.record(id)),
        _ => past.record(id),
    }
}
