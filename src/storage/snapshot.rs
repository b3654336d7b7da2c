//! Snapshots: read in chunks from one moment of the store, and collected chunk by chunk on the other side.
//!
//! A snapshot holds what can still be reached at its position and nothing else, so it is a function of the applied log:
//! two nodes at the same position send the same rows and the same digest, whatever each has physically removed.
//!
//! Reading needs nothing from the state thread: a [`SnapshotReader`] is opened when somebody asks for chunks and pins its
//! moment only until it is dropped. Collecting is the engine's: [`Stage`] says which chunks may be written, and whether
//! all of them arrived; the rows themselves go to tables beside the live ones.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use crate::command::ChangeKind;
use crate::command::RecordId;
use crate::error::StorageError;
use crate::format::record::decode_record;
use crate::format::rows::{SWEPT_KEY, decode_swept};
use crate::format::snapshot::{Chunk, ChunkWriter, Part, SnapshotMeta, Summary, Tally, encode_meta};
use crate::format::state::{record_id, record_key};
use crate::format::wire::DecodeError;
use crate::rt::mutant;
use crate::state_machine::{RowError, RowSpace, RowsRead, RowsScan, State};
use crate::storage::state_rows::{PastRows, disk, undamaged};
use crate::storage::view::Alarm;
use crate::types::{LogId, Revision};

const WHAT: &str = "read a snapshot";

/// Reads one snapshot, chunk by chunk, from one moment of the store. Blocks on the disk.
pub(crate) struct SnapshotReader {
    rows: Arc<PastRows>,
    meta: SnapshotMeta,
    garbage: BTreeSet<RecordId>,
    writer: ChunkWriter,
    /// The parts still to be sent; the first is being sent, from behind `after`.
    parts: &'static [Part],
    after: Option<Vec<u8>>,
    finished: bool,
    alarm: Alarm,
}

impl SnapshotReader {
    /// Nothing superseded at or below `floor` can be reached.
    pub(crate) fn open(
        rows: Arc<PastRows>,
        meta: SnapshotMeta,
        floor: Revision,
        alarm: Alarm,
    ) -> Result<Self, StorageError> {
        let garbage = undamaged(|| unreachable(&rows, floor)).map_err(|error| alarm.raise(WHAT, &error))?;
        let meta = if mutant("snapshot_includes_extra_entry") { one_back(meta) } else { meta };
        let writer = ChunkWriter::new(&encode_meta(&meta));
        Ok(SnapshotReader { rows, meta, garbage, writer, parts: &Part::SENT, after: None, finished: false, alarm })
    }

    pub(crate) fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// The next chunk; `None` after the last.
    ///
    /// # Errors
    /// A row could not be read, or a record's checksum does not hold: a damaged record is not passed on. The node stops.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<Bytes>, StorageError> {
        undamaged(|| self.fill()).map_err(|error| self.alarm.raise(WHAT, &error))
    }

    fn fill(&mut self) -> Result<Option<Bytes>, RowError> {
        if self.finished {
            return Ok(None);
        }
        while let Some(&part) = self.parts.first() {
            if self.fill_from(part)? {
                return Ok(Some(self.writer.seal(false)));
            }
            self.parts = &self.parts[1..];
            self.after = None;
        }
        self.finished = true;
        Ok(Some(self.writer.seal(true)))
    }

    /// Adds rows of `part` to the chunk; true once the chunk is full.
    fn fill_from(&mut self, part: Part) -> Result<bool, RowError> {
        if part == Part::Answer && mutant("dedup_not_in_snapshot") {
            return Ok(false);
        }
        let after = self.after.take();
        if part == Part::Records {
            let after = after.map(|key| record_id(&key)).transpose().map_err(disk)?;
            return self.fill_from_records(after);
        }
        let Some(table) = self.rows.table(part)? else { return Ok(false) };
        let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        for row in table.range::<&[u8]>((from, Bound::Unbounded)).map_err(disk)? {
            let (key, value) = row.map_err(disk)?;
            self.writer.push(part, key.value(), value.value());
            if self.writer.is_full() {
                self.after = Some(key.value().to_vec());
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// As [`SnapshotReader::fill_from`], from behind the record `after`.
    fn fill_from_records(&mut self, after: Option<RecordId>) -> Result<bool, RowError> {
        let last = RecordId { revision: Revision::new(u64::MAX), ordinal: u32::MAX };
        let (garbage, writer, stopped) = (&self.garbage, &mut self.writer, &mut self.after);
        self.rows.records_in(after.unwrap_or_default()..=last, &mut |id, record| {
            // redb checks no checksum on a normal read: this is where rot would leave for another node.
            decode_record(id, record.clone()).map_err(disk)?;
            if Some(id) == after || garbage.contains(&id) {
                return Ok(ControlFlow::Continue(()));
            }
            let key = record_key(id);
            writer.push(Part::Records, &key, &record);
            if !writer.is_full() {
                return Ok(ControlFlow::Continue(()));
            }
            *stopped = Some(key.to_vec());
            Ok(ControlFlow::Break(()))
        })?;
        Ok(self.after.is_some())
    }
}

/// A mutant's: the position before the one that the rows are of.
fn one_back(mut meta: SnapshotMeta) -> SnapshotMeta {
    if let Some(at) = meta.last_applied.as_mut().filter(|at| at.index > 0) {
        at.index -= 1;
    }
    meta
}

/// The records that are still in the table although nothing can reach them any more.
///
/// The sweep goes through the records in order and removes what each superseded, and deletes themselves. So what is left
/// was superseded by a record between the sweep's place and the floor. Bounded by what the sweep has yet to remove.
fn unreachable(rows: &PastRows, floor: Revision) -> Result<BTreeSet<RecordId>, RowError> {
    let mut garbage = BTreeSet::new();
    let swept = rows.row(RowSpace::Local, SWEPT_KEY)?.map(decode_swept).transpose().map_err(disk)?;
    let from = swept.unwrap_or_default();
    let to = RecordId { revision: floor, ordinal: u32::MAX };
    rows.records_in(from..=to, &mut |id, record| {
        let record = decode_record(id, record).map_err(disk)?;
        garbage.extend(record.prev);
        if record.kind != ChangeKind::Put {
            garbage.insert(id);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(garbage)
}

/// Names one attempt at bringing a snapshot in, so that chunks of an abandoned one are told apart.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct StageId(pub(crate) u64);

/// A snapshot on its way in: which chunk comes next, and the tally of what came.
pub(crate) struct Stage {
    pub(crate) id: StageId,
    pub(crate) meta: SnapshotMeta,
    next: u64,
    tally: Tally,
    /// The highest record that came.
    last_record: Option<RecordId>,
    promised: Option<Summary>,
    /// The state of all the rows, once they have been checked.
    pub(crate) loaded: Option<State>,
}

impl Stage {
    pub(crate) fn new(id: StageId, meta: SnapshotMeta) -> Self {
        let tally = Tally::new(&encode_meta(&meta));
        Stage { id, meta, next: 0, tally, last_record: None, promised: None, loaded: None }
    }

    /// Takes chunk `index`: the rows to be written, or `None` if it had been taken before.
    ///
    /// Nothing is remembered of a chunk that is refused, so that a good copy of it can follow.
    pub(crate) fn accept(&mut self, index: u64, bytes: Bytes) -> Result<Option<Chunk>, SnapshotRefused> {
        if index < self.next {
            return Ok(None);
        }
        if index > self.next || self.promised.is_some() {
            return Err(SnapshotRefused::Gap { expected: self.next, found: index });
        }
        let chunk = Chunk::decode(bytes)?;
        if chunk.index != index {
            return Err(SnapshotRefused::Gap { expected: index, found: chunk.index });
        }
        self.last_record = self.ascending(&chunk)?;
        chunk.tally(&mut self.tally);
        self.promised = chunk.summary;
        self.next += 1;
        Ok(Some(chunk))
    }

    /// The highest record with those of `chunk`, which must come in ascending order.
    fn ascending(&self, chunk: &Chunk) -> Result<Option<RecordId>, SnapshotRefused> {
        let mut last = self.last_record;
        for row in chunk.rows.iter().filter(|row| row.part == Part::Records) {
            let id = record_id(&row.key)?;
            if last.is_some_and(|last| last >= id) {
                return Err(SnapshotRefused::Unreadable(format!("record {id:?} comes behind {last:?}")));
            }
            last = Some(id);
        }
        Ok(last)
    }

    /// The chunk that is due.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Whether the snapshot holds anything that a state at `applied` does not.
    pub(crate) fn is_past(&self, applied: LogId) -> bool {
        // Both are committed, so the index alone orders them.
        self.meta.last_applied.is_some_and(|at| at.index > applied.index)
    }

    /// Checks that the last chunk came and that all together are what the sender read.
    pub(crate) fn complete(&self) -> Result<(), SnapshotRefused> {
        let Some(promised) = self.promised else { return Err(SnapshotRefused::Incomplete { next: self.next }) };
        let found = self.tally.summary();
        if found == promised { Ok(()) } else { Err(SnapshotRefused::Mismatch { promised, found }) }
    }
}

/// Why an arriving snapshot, or a chunk of it, is not taken. Nothing of the live state has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SnapshotRefused {
    #[error("no such snapshot is being received: begin again")]
    NotStaged,
    #[error("chunk {found} came where chunk {expected} was due")]
    Gap { expected: u64, found: u64 },
    #[error("a chunk is damaged: {0}")]
    Damaged(#[from] DecodeError),
    #[error("only {next} chunks came, and none of them was the last")]
    Incomplete { next: u64 },
    #[error("the chunks add up to {found:?}, but the sender read {promised:?}")]
    Mismatch { promised: Summary, found: Summary },
    #[error("the rows are not those of a state: {0}")]
    Unreadable(String),
}

#[cfg(test)]
mod tests;
