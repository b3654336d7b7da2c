//! The rows of the running state: the database, and before it what is not written there yet.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;

use crate::command::RecordId;
use crate::state_machine::{EachRecord, EachRow, RowError, RowSpace, Rows, RowsRead, RowsScan};
use crate::storage::answers::Answers;
use crate::storage::recent::{Batch, Recent};
use crate::storage::state_rows::PastRows;
use crate::types::Revision;

/// The rows as the state machine sees and writes them: what it writes goes to a batch.
pub(crate) struct LiveRows<'a> {
    past: &'a PastRows,
    recent: &'a Recent,
    answers: &'a mut Answers,
    pub(crate) batch: Batch,
    /// To be removed from the database, ascending.
    pub(crate) removed: Vec<RecordId>,
}

impl<'a> LiveRows<'a> {
    /// With room for records of `bytes` in all.
    pub(crate) fn new(past: &'a PastRows, recent: &'a Recent, answers: &'a mut Answers, bytes: usize) -> Self {
        LiveRows { past, recent, answers, batch: Batch::with_room(bytes), removed: Vec::new() }
    }
}

impl RowsRead for LiveRows<'_> {
    fn record(&self, id: RecordId) -> Result<Option<Bytes>, RowError> {
        if id.revision <= self.recent.base() {
            return self.past.record(id);
        }
        Ok(match self.batch.record(id) {
            Some(record) => Some(Bytes::copy_from_slice(record)),
            None => self.recent.record(id),
        })
    }

    fn row(&self, space: RowSpace, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        let written = match space {
            RowSpace::Answer => self.answers.get(key),
            _ => match self.batch.row(space, key) {
                Some(row) => Some(row.cloned()),
                None => self.recent.row(space, key, u64::MAX),
            },
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
        debug_assert!(ids.iter().all(|id| id.revision <= self.recent.base()), "not in the database yet: {ids:?}");
        self.removed.extend_from_slice(ids);
        Ok(())
    }

    fn put_row(&mut self, space: RowSpace, key: &[u8], value: Cow<'_, [u8]>) -> Result<(), RowError> {
        match space {
            RowSpace::Answer => self.answers.put(key, value.into_owned()),
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
#[derive(Clone)]
pub(crate) struct MomentRows {
    past: Arc<PastRows>,
    recent: Arc<Recent>,
    /// The last batch that is shown.
    batch: u64,
    /// The last revision that is shown.
    revision: Revision,
}

impl MomentRows {
    /// The present, which is `revision`. `recent` must be what has come since the moment of `past`.
    pub(crate) fn new(past: Arc<PastRows>, recent: Arc<Recent>, revision: Revision) -> Self {
        let batch = recent.now();
        MomentRows { past, recent, batch, revision }
    }

    /// What of it is in the database.
    pub(crate) fn past(&self) -> &Arc<PastRows> {
        &self.past
    }
}

impl RowsRead for MomentRows {
    fn record(&self, id: RecordId) -> Result<Option<Bytes>, RowError> {
        if id.revision <= self.recent.base() { self.past.record(id) } else { Ok(self.recent.record(id)) }
    }

    fn row(&self, space: RowSpace, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        self.recent.row(space, key, self.batch).map_or_else(|| self.past.row(space, key), Ok)
    }
}

impl RowsScan for MomentRows {
    fn records_in(&self, ids: RangeInclusive<RecordId>, each: &mut EachRecord<'_>) -> Result<(), RowError> {
        let (start, end) = ids.into_inner();
        let end = end.min(RecordId { revision: self.revision, ordinal: u32::MAX });
        let mut flow = ControlFlow::Continue(());
        self.past.records_in(start..=end, &mut |id, record| {
            flow = each(id, record)?;
            Ok(flow)
        })?;
        if flow.is_break() { Ok(()) } else { self.recent.records_in(start..=end, each) }
    }

    fn each_row(&self, space: RowSpace, each: &mut EachRow<'_>) -> Result<(), RowError> {
        let changed = self.recent.rows(space, self.batch);
        if changed.is_empty() {
            return self.past.each_row(space, each);
        }
        let mut rows = BTreeMap::new();
        self.past.each_row(space, &mut |key, row| {
            rows.insert(key.to_vec(), row);
            Ok(())
        })?;
        for (key, row) in changed {
            match row {
                Some(row) => rows.insert(key.as_slice().to_vec(), row),
                None => rows.remove(key.as_slice()),
            };
        }
        rows.into_iter().try_for_each(|(key, row)| each(&key, row))
    }
}
