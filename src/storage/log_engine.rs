//! The log's way to the disk: takes what has queued up and makes it durable with one sync.
//!
//! While one group is in its fsync, the next one queues up behind it. So the cost of a sync is shared by however many
//! changes arrive during one, without anybody waiting for company.
//!
//! Order is everything here:
//! * Changes are applied in the order in which they were enqueued, whatever their kind: a vote that is on disk says that
//!   every append before it is, because consensus takes it to say so.
//! * A group is one frame of the file: one write, one sync. After a crash the log stands between two frames, never inside
//!   one. A group for which the segment has no room goes on in the next one with a frame and a sync of its own; it is cut
//!   between two changes, or between two entries if the segment is too small for one append. What is committed is written
//!   in the frame of its entries or a later one, and never ahead of them.
//! * Nobody is told before the sync has returned, and nobody is told of success after an error: see [`Poison`].
//!
//! Changes that nobody waits for (truncate, purge, committed) do not cost a sync of their own: they go with the next group
//! that somebody does wait for, or after [`LAZY_MAX`].

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::error::StorageError;
use crate::format::identity::{IdentityRow, encode_identity};
use crate::format::log_items::{Item, Opening};
use crate::rt::worker::{Engine, Step};
use crate::rt::{Mark, mark, mutant};
use crate::types::LogId;

use super::disk::File;
use super::log::{Op, Shared, Write};
use super::log_file::LogFile;
use super::log_pen::{Pen, PenError};
use super::poison::Poison;
use super::positions::Moved;

/// Changes in one group.
pub(crate) const GROUP_OPS_MAX: usize = 4096;

/// A group takes nothing more once its entries have reached this size.
pub(crate) const GROUP_BYTES_MAX: usize = 8 << 20;

/// How long a change that nobody waits for may stay off the disk.
pub(crate) const LAZY_MAX: Duration = Duration::from_millis(100);

/// Drives `log.wal`. Made by [`storage::open`](super::open), started by [`Log::start`](super::log::Log::start).
pub(crate) struct LogEngine {
    file: LogFile,
    /// What the file says, but for the entries.
    front: Opening,
    shared: Arc<Shared>,
    poison: Poison,
    /// Taken from the queue and not on disk: the group that is being gathered.
    group: Vec<Op>,
}

impl Engine for LogEngine {
    type Op = Op;

    fn step(&mut self, queue: &mut VecDeque<Op>) -> Step {
        if let Some(error) = self.poison.error() {
            return self.refuse(queue, error);
        }
        let time_is_up = queue.is_empty();
        self.gather(queue);
        let awaited = self.group.iter().any(|op| op.write.is_awaited()) || self.group.len() >= GROUP_OPS_MAX;
        if awaited || time_is_up && (self.file.has_retired() || !self.group.is_empty()) {
            return match self.flush() {
                Ok(Flushed::Closed) => Step::Stop,
                Ok(Flushed::Open) if !queue.is_empty() => Step::Again,
                Ok(Flushed::Open) => self.rest(),
                Err(error) => {
                    let error = self.poison.fail(error);
                    self.refuse(queue, error)
                }
            };
        }
        self.rest()
    }

    fn panicked(&mut self, message: &str) {
        let error = self.poison.fail(StorageError::new(File::Log.name(), "log thread", message));
        self.shared.ended();
        self.fail_group(&error);
    }
}

/// What a group left behind.
enum Flushed {
    Open,
    Closed,
}

impl LogEngine {
    pub(super) fn new(file: LogFile, front: Opening, shared: Arc<Shared>, poison: Poison) -> Self {
        LogEngine { file, front, shared, poison, group: Vec::new() }
    }

    /// Writes who the directory is, before the engine is started. Durable when this returns.
    pub(super) fn write_identity(&mut self, row: &IdentityRow) -> Result<(), StorageError> {
        self.write_items("write the identity", &[Item::Identity(encode_identity(row))])
    }

    /// Makes sure, before the engine is started, that the log goes on from what the state machine has applied.
    ///
    /// If entry `applied` is not in the log, and is not purged, the log is of another past: its end was to be truncated
    /// and written anew, and that was lost in a crash while the state machine's part of it was not. What is below
    /// `applied` is in the state machine and what is above follows an entry that was never committed. So all entries go,
    /// and the log goes on behind `applied`; the vote stays. Durable before this returns. Answers whether it had to.
    ///
    /// The state engine waits for the log before it commits, so this is the second line of defence.
    pub(crate) fn repair_to_applied(&mut self, applied: LogId) -> Result<bool, StorageError> {
        assert!(self.group.is_empty(), "the log is repaired before it is used");
        if !self.shared.lacks(applied)? {
            return Ok(false);
        }
        tracing::warn!(%applied, "the log does not hold what is applied; it is cleared and goes on from there");
        let committed = self.shared.restart_after(applied);
        self.write_items("repair", &[Item::Truncate(None), Item::Committed(committed), Item::Purge(applied)])?;
        mark(Mark::LogCleared);
        Ok(true)
    }

    /// Writes and syncs items that nobody has queued.
    fn write_items(&mut self, what: &'static str, items: &[Item]) -> Result<(), StorageError> {
        let mut pen = Pen::new(&mut self.file, &mut self.front, &self.shared);
        let written = items.iter().try_for_each(|item| pen.put(item)).and_then(|()| pen.finish());
        let moved = written.map_err(|error| self.failed(what, error))?;
        self.flushed(0, 0, moved);
        Ok(())
    }

    /// Nothing to do but to wait, and for how long.
    fn rest(&self) -> Step {
        if self.group.is_empty() && !self.file.has_retired() { Step::Idle } else { Step::Within(LAZY_MAX) }
    }

    /// Moves operations from the queue to the group, within the limits and not beyond a close.
    fn gather(&mut self, queue: &mut VecDeque<Op>) {
        let mut bytes: usize = self.group.iter().map(|op| op.write.bytes()).sum();
        while self.group.len() < GROUP_OPS_MAX && bytes < GROUP_BYTES_MAX {
            let vote = queue.iter().position(|op| mutant("reorder_vote_append") && matches!(op.write, Write::Vote(_)));
            let Some(op) = queue.remove(vote.unwrap_or(0)) else { return };
            let close = matches!(op.write, Write::Close) || vote.is_some();
            bytes += op.write.bytes();
            self.group.push(op);
            if close {
                return;
            }
        }
    }

    /// Makes the group durable, then tells of it.
    fn flush(&mut self) -> Result<Flushed, StorageError> {
        let moved = self.write_group().map_err(|error| self.failed("write", error))?;
        let closing = self.group.last().is_some_and(|op| matches!(op.write, Write::Close));
        if closing {
            self.close()?;
        }
        let group = mem::take(&mut self.group);
        // The watermark first: whoever is told by a callback may go on to look at it.
        self.flushed(group.len() as u64, group.iter().map(|op| op.write.bytes()).sum(), moved);
        tell(group);
        Ok(if closing { Flushed::Closed } else { Flushed::Open })
    }

    /// Writes a group in its order. If there is nothing to write, wipes what is to be wiped.
    fn write_group(&mut self) -> Result<Vec<Moved>, PenError> {
        let mut pen = Pen::new(&mut self.file, &mut self.front, &self.shared);
        for op in &self.group {
            match &op.write {
                Write::Append { entries, bytes } => pen.append(entries, *bytes)?,
                Write::Truncate { keep } => pen.put(&Item::Truncate(*keep))?,
                Write::Purge { upto } => pen.put(&Item::Purge(*upto))?,
                Write::Vote(vote) => pen.put(&Item::Vote(*vote))?,
                Write::Committed(committed) => pen.put(&Item::Committed(*committed))?,
                Write::Identity(identity) => pen.put(&Item::Identity(encode_identity(&identity.row(true))))?,
                // What came before is on disk with the group, or was before it.
                Write::Barrier | Write::Close => {}
            }
        }
        let nothing = pen.is_blank();
        let moved = pen.finish()?;
        if nothing && self.file.has_retired() {
            self.file.wipe_and_sync()?;
        }
        Ok(moved)
    }

    /// Tells what is on disk now, and lets go of segments that are not needed for it.
    fn flushed(&mut self, ops: u64, appended: usize, moved: Vec<Moved>) {
        let first = self.shared.flushed(ops, appended, moved, self.file.bytes());
        self.file.retire_before(first);
    }

    fn failed(&self, what: &'static str, error: PenError) -> StorageError {
        self.poison.fail(StorageError::new(File::Log.name(), what, error))
    }

    /// Says at the end of the file that it is the end, and gives it up.
    fn close(&mut self) -> Result<(), StorageError> {
        // A frame of its own, so that what was acknowledged is not in the last one: see the reading back.
        let mut pen = Pen::new(&mut self.file, &mut self.front, &self.shared);
        let written = pen.put(&Item::Closed).and_then(|()| pen.finish());
        written.map_err(|error| self.failed("close", error))?;
        self.shared.close();
        self.file.close().map_err(|error| StorageError::new(File::Log.name(), "close", error))
    }

    /// After an error nothing succeeds any more: whatever was gathered and whatever comes is answered with it.
    fn refuse(&mut self, queue: &mut VecDeque<Op>, error: StorageError) -> Step {
        self.shared.ended();
        self.group.extend(queue.drain(..));
        let closing = self.group.iter().any(|op| matches!(op.write, Write::Close));
        if closing {
            self.shared.close();
            if let Err(error) = self.file.close() {
                tracing::error!(%error, "the log's file could not be closed");
            }
        }
        self.fail_group(&error);
        if closing { Step::Stop } else { Step::Idle }
    }

    fn fail_group(&mut self, error: &StorageError) {
        for op in self.group.drain(..) {
            op.reply.tell(Err(error.clone()));
        }
    }
}

impl Write {
    /// Whether somebody waits for this to be on disk.
    fn is_awaited(&self) -> bool {
        !matches!(self, Write::Truncate { .. } | Write::Purge { .. } | Write::Committed(_))
    }

    fn bytes(&self) -> usize {
        if let Write::Append { bytes, .. } = self { *bytes } else { 0 }
    }
}

/// Replies first, oldest first. Then the appends, newest first: consensus keeps the newest it has heard of, so the older
/// ones find nothing to do and wake nobody.
fn tell(group: Vec<Op>) {
    let (appends, others): (Vec<Op>, Vec<Op>) =
        group.into_iter().partition(|op| matches!(op.write, Write::Append { .. }));
    others.into_iter().for_each(|op| op.reply.tell(Ok(())));
    appends.into_iter().rev().for_each(|op| op.reply.tell(Ok(())));
}
