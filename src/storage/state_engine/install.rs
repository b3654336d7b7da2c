//! How a snapshot comes in: its rows are collected in tables beside the live ones, checked as a whole, swapped in.
//!
//! Until the swap nothing of the live state is touched, and entries go on being applied between two chunks. While a
//! snapshot is checked and installed, its index and the live one are both in memory.

use std::sync::Arc;

use bytes::Bytes;
use redb::Durability;

use super::{Exclusive, StateEngine, past_rows};
use crate::error::StorageError;
use crate::format::snapshot::{Chunk, Part, Row, SnapshotMeta, encode_meta};
use crate::format::state::{APPLIED, SNAPSHOT, record_id, staged_table};
use crate::rt::{Mark, mark, mutant};
use crate::state_machine::{RowError, State};
use crate::storage::answers::Answers;
use crate::storage::committer::{closed, put_position, transact};
use crate::storage::recent::Recent;
use crate::storage::records::Packer;
use crate::storage::snapshot::{SnapshotRefused, Stage, StageId};
use crate::storage::state::{Answer, Installed, StageError};
use crate::storage::state_rows::{TxnRows, disk};
use crate::storage::view::LiveViews;

impl StateEngine {
    pub(super) fn stage_begin(&mut self, meta: SnapshotMeta) -> Result<StageId, StorageError> {
        let leftovers = &mut self.leftovers;
        transact(self.db.as_deref(), Durability::None, |txn| {
            leftovers.retire_staged(txn)?;
            TxnRows::create(txn, staged_table)
        })?;
        self.unsynced.add(0, 0);
        self.stages_begun += 1;
        let id = StageId(self.stages_begun);
        self.stage = Some(Stage::new(id, meta));
        Ok(id)
    }

    pub(super) fn stage_chunk(
        &mut self,
        id: StageId,
        index: u64,
        bytes: Bytes,
    ) -> Result<Result<u64, SnapshotRefused>, StorageError> {
        let len = bytes.len() as u64;
        let stage = match staged(&mut self.stage, id) {
            Ok(stage) => stage,
            Err(refused) => return Ok(Err(refused)),
        };
        let chunk = match stage.accept(index, bytes) {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(Ok(stage.next())),
            Err(refused) => return Ok(Err(refused)),
        };
        transact(self.db.as_deref(), Durability::None, |txn| {
            write_chunk(&mut TxnRows::new(txn, staged_table), &chunk)
        })?;
        self.unsynced.add(0, len);
        Ok(Ok(stage.next()))
    }

    /// Checks the snapshot as a whole and loads it, so that nothing is left that could refuse it when it is installed.
    pub(super) fn stage_finish(&mut self, id: StageId) -> Result<Result<(), SnapshotRefused>, StorageError> {
        let db = self.db.as_deref();
        let stage = match staged(&mut self.stage, id) {
            Ok(stage) => stage,
            Err(refused) => return Ok(Err(refused)),
        };
        if let Err(refused) = stage.complete() {
            return Ok(Err(refused));
        }
        Ok(match db.ok_or_else(closed).and_then(|db| State::load(&past_rows(db, staged_table)?)) {
            Ok(state) => {
                stage.loaded = Some(state);
                Ok(())
            }
            Err(error) => Err(SnapshotRefused::Unreadable(error.to_string())),
        })
    }

    pub(super) fn take_install(&mut self, id: StageId, done: Answer<Installed, StageError>) {
        match self.stage.take_if(|stage| stage.id == id && stage.loaded.is_some()) {
            None => done(Err(SnapshotRefused::NotStaged.into())),
            Some(stage) => match self.position.last_applied {
                // Going back would take back answers that were given.
                Some(applied) if !stage.is_past(applied) && !mutant("install_older_snapshot") => {
                    self.leftovers.abandon_staged();
                    done(Ok(Installed::Older { applied }));
                }
                _ => self.schedule(Exclusive::Install(Box::new(stage), done)),
            },
        }
    }

    /// Swaps the staged tables in, in one durable commit: a crash leaves the old state whole or the new one.
    pub(super) fn install(&mut self, mut stage: Stage) -> Result<Installed, StorageError> {
        let state = stage.loaded.take().expect("only a loaded stage is installed");
        let leftovers = &mut self.leftovers;
        let meta = encode_meta(&stage.meta);
        transact(self.db.as_deref(), Durability::Immediate, |txn| {
            leftovers.swap_in_staged(txn)?;
            put_position(txn, APPLIED, &meta)?;
            put_position(txn, SNAPSHOT, &meta)
        })?;
        self.state = state;
        self.recent = Arc::new(Recent::new(self.state.revision()));
        self.answers = Answers::default();
        self.removed.clear();
        self.held_back = false;
        // Views of the replaced state have an index of their own, which nothing is swept from any more.
        self.views = LiveViews::default();
        self.quiet = false;
        self.position = stage.meta;
        self.shared.milestones.begin_anew(self.position.last_applied);
        self.synced();
        self.shared.publish_snapshot(self.position.clone());
        self.refresh()?;
        mark(Mark::SnapshotInstalled);
        Ok(Installed::Replaced)
    }
}

fn write_chunk(rows: &mut TxnRows<'_>, chunk: &Chunk) -> Result<(), RowError> {
    let mut packer = Packer::default();
    for Row { part, key, value } in &chunk.rows {
        match part {
            Part::Records => packer.push(rows.records()?, record_id(key).map_err(disk)?, value)?,
            _ => rows.put(*part, key, value)?,
        }
    }
    packer.finish(rows.records()?)
}

fn staged(stage: &mut Option<Stage>, id: StageId) -> Result<&mut Stage, SnapshotRefused> {
    stage.as_mut().filter(|stage| stage.id == id).ok_or(SnapshotRefused::NotStaged)
}

/// A refusal inside an outcome, as one error.
pub(super) fn refusable<T>(outcome: Result<Result<T, SnapshotRefused>, StorageError>) -> Result<T, StageError> {
    Ok(outcome??)
}
