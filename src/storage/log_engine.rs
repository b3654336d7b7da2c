//! The log's way to the disk: takes what has queued up and makes it durable with one sync.
//!
//! While one group is in its fsync, the next one queues up behind it. So the cost of a sync is shared by however many
//! changes arrive during one, without anybody waiting for company.
//!
//! Order is everything here:
//! * Changes are applied in the order in which they were enqueued, whatever their kind: a vote that is on disk says that
//!   every append before it is, because consensus takes it to say so.
//! * A group is one redb transaction, so after a crash the log stands between two groups, never inside one. What is
//!   committed is written in the group of its entries or a later one, and never ahead of them.
//! * Nobody is told before the commit has returned, and nobody is told of success after an error: see [`Poison`].
//!
//! Changes that nobody waits for (truncate, purge, committed) do not cost a sync of their own: they go with the next group
//! that somebody does wait for, or after [`LAZY_MAX`].

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use redb::{Database, Durability};

use crate::error::StorageError;
use crate::format::identity::encode_identity;
use crate::format::log::{COMMITTED_KEY, IDENTITY_KEY, PURGED_KEY, VOTE_KEY, encode_position, encode_vote};
use crate::rt::worker::{Engine, Step};
use crate::rt::{Mark, mark, mutant};
use crate::types::{LogEntry, LogId};

use super::disk::File;
use super::log::{Op, Shared, Write};
use super::log_rows::{Loaded, Rows, RowsError};
use super::poison::Poison;

/// Changes in one group.
pub(crate) const GROUP_OPS_MAX: usize = 4096;

/// A group takes nothing more once its entries have reached this size.
pub(crate) const GROUP_BYTES_MAX: usize = 8 << 20;

/// How long a change that nobody waits for may stay off the disk.
pub(crate) const LAZY_MAX: Duration = Duration::from_millis(100);

/// Rows that one group removes of what is purged. A group adds a handful, so removal keeps up.
pub(crate) const PURGE_ROWS_MAX: usize = 256;

/// Drives `log.redb`. Made by [`storage::open`](super::open), started by [`Log::start`](super::log::Log::start).
pub(crate) struct LogEngine {
    /// Gone once the log is closed.
    db: Option<Arc<Database>>,
    shared: Arc<Shared>,
    poison: Poison,
    /// Taken from the queue and not on disk: the group that is being gathered.
    group: Vec<Op>,
    /// What the rows of entries take on disk.
    bytes: u64,
    /// Rows up to this index are purged, and some of them are still there.
    leftovers: Option<u64>,
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
        let purging = self.leftovers.is_some();
        if awaited || time_is_up && (purging || !self.group.is_empty()) {
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
    pub(super) fn new(db: Arc<Database>, loaded: &Loaded, shared: Arc<Shared>, poison: Poison) -> Self {
        let leftovers = loaded.purged.filter(|_| loaded.leftovers).map(|purged| purged.index);
        LogEngine { db: Some(db), shared, poison, group: Vec::new(), bytes: loaded.bytes, leftovers }
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
        let write = |rows: &mut Rows<'_>| {
            rows.truncate(0)?;
            rows.put(COMMITTED_KEY, &encode_position(committed))?;
            rows.put(PURGED_KEY, &encode_position(Some(applied)))
        };
        self.bytes = self.transact(write).map_err(|error| self.poison.fail(error.while_doing("repair")))?;
        self.leftovers = None;
        self.shared.flushed(0, 0, self.bytes);
        mark(Mark::LogCleared);
        Ok(true)
    }

    /// Nothing to do but to wait, and for how long.
    fn rest(&self) -> Step {
        if self.group.is_empty() && self.leftovers.is_none() { Step::Idle } else { Step::Within(LAZY_MAX) }
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
        let mut leftovers = self.leftovers;
        let write = |rows: &mut Rows<'_>| write_group(rows, &self.group, &mut leftovers);
        self.bytes = self.transact(write).map_err(|error| error.while_doing("commit"))?;
        self.leftovers = leftovers;
        let closing = self.group.last().is_some_and(|op| matches!(op.write, Write::Close));
        if closing {
            self.close()?;
        }
        let group = mem::take(&mut self.group);
        // The watermark first: whoever is told by a callback may go on to look at it.
        self.shared.flushed(group.len() as u64, group.iter().map(|op| op.write.bytes()).sum(), self.bytes);
        tell(group);
        Ok(if closing { Flushed::Closed } else { Flushed::Open })
    }

    /// Runs `write` in one transaction and syncs it. Answers what the rows take now.
    fn transact(&self, write: impl FnOnce(&mut Rows<'_>) -> Result<(), RowsError>) -> Result<u64, RowsError> {
        let db = self.db.as_ref().expect("an engine whose log is closed is not called again");
        // Immediate is redb's default, and nothing less is good enough here: when commit returns, it is on disk.
        let mut txn = db.begin_write()?;
        txn.set_durability(Durability::Immediate).expect("only lowering it can be refused");
        let mut rows = Rows::open(&txn, self.bytes)?;
        write(&mut rows)?;
        let bytes = rows.bytes();
        drop(rows);
        txn.commit()?;
        Ok(bytes)
    }

    fn close(&mut self) -> Result<(), StorageError> {
        let readers = self.shared.close();
        drop(readers);
        let db = self.db.take().and_then(Arc::into_inner).expect("readers borrow the database under the lock only");
        db.close().map_err(|error| StorageError::new(File::Log.name(), "close", error))
    }

    /// After an error nothing succeeds any more: whatever was gathered and whatever comes is answered with it.
    fn refuse(&mut self, queue: &mut VecDeque<Op>, error: StorageError) -> Step {
        self.shared.ended();
        self.group.extend(queue.drain(..));
        let closing = self.group.iter().any(|op| matches!(op.write, Write::Close));
        if closing {
            // The poison keeps redb from writing anything on the way out.
            drop((self.shared.close(), self.db.take()));
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

/// Applies a group in its order. Appends that follow each other share a row.
fn write_group(rows: &mut Rows<'_>, group: &[Op], leftovers: &mut Option<u64>) -> Result<(), RowsError> {
    let mut appended: Vec<LogEntry> = Vec::new();
    for op in group {
        match &op.write {
            Write::Append { entries, .. } => appended.extend_from_slice(entries),
            Write::Truncate { from } => {
                rows.append(&mem::take(&mut appended))?;
                rows.truncate(*from)?;
            }
            Write::Purge { upto } => {
                rows.append(&mem::take(&mut appended))?;
                // With this row the entries are gone for every reader. Their rows go below, slice by slice.
                rows.put(PURGED_KEY, &encode_position(Some(*upto)))?;
                *leftovers = Some(upto.index);
            }
            Write::Vote(vote) => rows.put(VOTE_KEY, &encode_vote(*vote))?,
            Write::Committed(committed) => rows.put(COMMITTED_KEY, &encode_position(*committed))?,
            Write::Identity(identity) => rows.put(IDENTITY_KEY, &encode_identity(&identity.row(true)))?,
            Write::Barrier | Write::Close => {}
        }
    }
    rows.append(&appended)?;
    if let Some(upto) = *leftovers
        && !rows.purge(upto, PURGE_ROWS_MAX)?
    {
        *leftovers = None;
    }
    Ok(())
}

/// Replies first, oldest first. Then the appends, newest first: consensus keeps the newest it has heard of, so the older
/// ones find nothing to do and wake nobody.
fn tell(group: Vec<Op>) {
    let (appends, others): (Vec<Op>, Vec<Op>) =
        group.into_iter().partition(|op| matches!(op.write, Write::Append { .. }));
    others.into_iter().for_each(|op| op.reply.tell(Ok(())));
    appends.into_iter().rev().for_each(|op| op.reply.tell(Ok(())));
}
