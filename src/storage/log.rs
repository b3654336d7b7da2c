//! The log as the rest of the node sees it: a façade that never waits for the disk, except to read old entries.
//!
//! Every change is made twice. First here, at once, in memory: whoever reads afterwards sees it. Then by the
//! [`LogEngine`], in the same order, on disk. So the memory is always what the disk will become, and the disk is always
//! some earlier moment of the memory: after a crash the log is as it was after some prefix of the changes, and that
//! prefix holds every change that was reported as durable.
//!
//! Kept in memory are the vote, the bounds, and the tail of the log: [`TAIL_BYTES_MAX`], and whatever is not on disk or
//! not applied. Unflushed entries have no limit here; whoever lets proposals in asks [`Log::unflushed_bytes`].

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use redb::{Database, ReadableDatabase};

use crate::error::StorageError;
use crate::format::log::{INDEX_END, entry_bytes};
use crate::rt::watermark::Watermark;
use crate::rt::worker::{Drive, Driver, Mailbox, drive_from};
use crate::rt::{Mark, mark, mutant};
use crate::types::{LogEntry, LogId, Vote};

use super::Done;
use super::disk::File;
use super::identity::Identity;
use super::log_engine::LogEngine;
use super::log_rows::{self, Loaded, RowsError};
use super::poison::Poison;
use super::tail::{Budget, Tail};

/// Bytes of entries kept in memory beyond those that have to be.
pub(crate) const TAIL_BYTES_MAX: usize = 64 << 20;

/// A cheap handle; clones share one log.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    mailbox: Mailbox<Op>,
}

/// What façade and engine both know. The engine holds no [`Log`]: it would keep its own mailbox open.
pub(super) struct Shared {
    state: Mutex<State>,
    flushed: Watermark,
    bytes: AtomicU64,
    syncs: AtomicU64,
    poison: Poison,
}

/// The log as it will be once everything enqueued is on disk.
struct State {
    /// Gone once the log is closed.
    db: Option<Arc<Database>>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// The index of the first entry; without meaning while there is none.
    first: u64,
    tail: Tail,
    tail_bytes_max: usize,
    enqueued: u64,
    unflushed_bytes: usize,
    /// Entries below this are applied.
    unapplied: u64,
}

/// One change, for the engine, and whom to tell when it is on disk.
pub(crate) struct Op {
    pub(super) write: Write,
    pub(super) reply: Reply,
}

pub(crate) enum Write {
    Vote(Vote),
    Identity(Box<Identity>),
    Append {
        entries: Vec<LogEntry>,
        bytes: usize,
    },
    Truncate {
        from: u64,
    },
    Purge {
        upto: LogId,
    },
    Committed(Option<LogId>),
    /// Nothing; what was enqueued before it is to be on disk.
    Barrier,
    Close,
}

/// Tells once how a change ended. Dropped without having told, it tells that the change failed, so that nobody waits for
/// an engine that is gone.
pub(crate) struct Reply {
    done: Option<Done>,
    poison: Poison,
}

impl Reply {
    pub(super) fn tell(mut self, result: Result<(), StorageError>) {
        if let Some(done) = self.done.take() {
            done(result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(Err(self.poison.error().unwrap_or_else(closed)));
        }
    }
}

/// A mutant's: says that something is on disk which has yet to be written.
fn told_at_once(done: Done) -> Done {
    done(Ok(()));
    Box::new(|_| ())
}

fn closed() -> StorageError {
    StorageError::new(File::Log.name(), "log", "closed")
}

impl Log {
    pub(super) fn new(db: Arc<Database>, loaded: &Loaded, poison: Poison) -> (Self, Arc<Shared>) {
        let next = loaded.last.map_or(0, |last| last.index + 1);
        let state = State {
            db: Some(db),
            vote: loaded.vote,
            committed: loaded.committed,
            purged: loaded.purged,
            last: loaded.last,
            first: loaded.first.unwrap_or(next),
            tail: Tail::starting_at(next),
            tail_bytes_max: TAIL_BYTES_MAX,
            enqueued: 0,
            unflushed_bytes: 0,
            unapplied: 0,
        };
        let bytes = AtomicU64::new(loaded.bytes);
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            flushed: Watermark::new(),
            bytes,
            syncs: AtomicU64::new(0),
            poison,
        });
        (Log { shared: shared.clone(), mailbox: Mailbox::new() }, shared)
    }

    /// Starts the engine, once, with whatever has been enqueued already.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub(crate) fn start(&self, engine: LogEngine, how: Drive) -> io::Result<Driver> {
        drive_from(&self.mailbox, "quorate-log", how, engine)
    }

    pub(crate) fn vote(&self) -> Option<Vote> {
        self.shared.lock().vote
    }

    /// `done` is called once the vote is on disk, and with it everything enqueued before.
    pub(crate) fn save_vote(&self, vote: Vote, done: Done) {
        let done = if mutant("skip_vote_fsync") { told_at_once(done) } else { done };
        self.enqueue(Write::Vote(vote), done, |state| {
            state.vote = Some(vote);
            true
        });
    }

    /// `done` is called once the identity is on disk. Node, name and nonce must be what they were.
    pub(crate) fn save_identity(&self, identity: Identity, done: Done) {
        self.enqueue(Write::Identity(Box::new(identity)), done, |_| true);
    }

    /// Adds entries to the end. They can be read when this returns; `done` is called once they are on disk.
    ///
    /// # Panics
    /// If the entries do not follow each other and the end of the log. A log that has never held an entry may begin
    /// anywhere.
    pub(crate) fn append(&self, entries: Vec<LogEntry>, done: Done) {
        let done = if mutant("ack_before_fsync") { told_at_once(done) } else { done };
        let bytes = entries.iter().map(entry_bytes).sum();
        let copy = entries.clone();
        self.enqueue(Write::Append { entries, bytes }, done, |state| state.append(copy, bytes));
    }

    /// Drops everything behind `keep`, at once. On disk it is before whatever is enqueued after it, within
    /// [`LAZY_MAX`](super::log_engine::LAZY_MAX) at the latest.
    ///
    /// # Panics
    /// If that would drop what is purged or committed.
    pub(crate) fn truncate_after(&self, keep: Option<LogId>) {
        let from = keep.map_or(0, |keep| keep.index + 1);
        self.enqueue_lazy(Write::Truncate { from }, |state| state.truncate(keep));
    }

    /// Forgets everything up to `upto`, also if the log does not reach so far: it then goes on behind it. As lazy on disk
    /// as a truncation, and the space comes back in slices. The caller answers for `upto` being applied durably.
    pub(crate) fn purge(&self, upto: LogId) {
        self.enqueue_lazy(Write::Purge { upto }, |state| state.purge(upto));
    }

    /// Remembers what is committed, as lazily as a truncation, but never on disk ahead of the entries.
    pub(crate) fn save_committed(&self, committed: Option<LogId>) {
        self.enqueue_lazy(Write::Committed(committed), |state| {
            state.committed = committed;
            true
        });
    }

    pub(crate) fn committed(&self) -> Option<LogId> {
        self.shared.lock().committed
    }

    /// What is purged, and the last entry; if there is no entry, what is purged stands for it.
    pub(crate) fn bounds(&self) -> (Option<LogId>, Option<LogId>) {
        let state = self.shared.lock();
        (state.purged, state.last)
    }

    /// The entries of `range` that are there, as many as fit into `bytes_max`; at least one if there is any.
    ///
    /// Reads the disk, on the calling thread, for entries that memory has forgotten.
    ///
    /// # Errors
    /// If the disk fails or an entry is damaged, which stops the node; and after [`Log::close`].
    pub(crate) fn entries(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<LogEntry>, StorageError> {
        self.shared.entries(range, bytes_max)
    }

    /// `done` is called once everything enqueued before is on disk.
    pub(crate) fn barrier(&self, done: Done) {
        self.enqueue(Write::Barrier, done, |_| true);
    }

    /// Counts what is on disk, in operations. Closed by the first error.
    pub(crate) fn flushed(&self) -> Watermark {
        self.shared.flushed.clone()
    }

    /// Counts what has been enqueued, in the operations of [`Log::flushed`].
    pub(crate) fn enqueued(&self) -> u64 {
        self.shared.lock().enqueued
    }

    /// `None` if everything enqueued is on disk. Otherwise hurries what may wait, and says what to wait for.
    pub(crate) fn behind(&self) -> Option<(Watermark, u64)> {
        let flushed = self.flushed();
        if flushed.get() >= self.enqueued() {
            return None;
        }
        self.barrier(Box::new(|_| ()));
        Some((flushed, self.enqueued()))
    }

    /// Bytes of the entries that are not on disk yet.
    pub(crate) fn unflushed_bytes(&self) -> usize {
        self.shared.lock().unflushed_bytes
    }

    /// Everything up to `index` is applied: memory may forget it once it is on disk.
    pub(crate) fn applied(&self, index: u64) {
        let mut state = self.shared.lock();
        state.unapplied = state.unapplied.max(index + 1);
        state.trim(self.shared.flushed.get());
    }

    /// Bytes that entries take on disk; purged ones until their space has come back.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Groups made durable since the log was opened: one sync each.
    pub(crate) fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    /// Writes what is enqueued, closes the file and ends the engine. `done` is called when the file is closed. Whatever is
    /// enqueued later fails.
    pub(crate) fn close(&self, done: Done) {
        self.enqueue(Write::Close, done, |_| true);
    }

    fn enqueue_lazy(&self, write: Write, change: impl FnOnce(&mut State) -> bool) {
        self.enqueue(write, Box::new(|_| ()), change);
    }

    /// Changes the memory and queues the same for the disk, in one step, so that both see one order. If `change` says
    /// that it changed nothing, there is nothing to write either.
    fn enqueue(&self, write: Write, done: Done, change: impl FnOnce(&mut State) -> bool) {
        let reply = Reply { done: Some(done), poison: self.shared.poison.clone() };
        // A close goes through all the same: it ends the engine, which is waited for.
        if !matches!(write, Write::Close)
            && let Err(error) = self.shared.poison.check()
        {
            return reply.tell(Err(error));
        }
        let mut state = self.shared.lock();
        if !change(&mut state) {
            drop(state);
            return reply.tell(Ok(()));
        }
        state.enqueued += 1;
        let refused = self.mailbox.push(Op { write, reply });
        drop(state);
        // A refused operation tells of its failure as it is dropped: outside the lock, since that runs foreign code.
        drop(refused);
    }
}

#[cfg(test)]
impl Log {
    /// What has been enqueued, for an engine that is driven by hand.
    pub(super) fn mailbox(&self) -> &Mailbox<Op> {
        &self.mailbox
    }

    pub(super) fn limit_tail(&self, bytes_max: usize) {
        self.shared.lock().tail_bytes_max = bytes_max;
    }

    /// The index from which on entries are in memory.
    pub(super) fn in_memory_from(&self) -> u64 {
        self.shared.lock().tail.first()
    }
}

impl State {
    fn append(&mut self, entries: Vec<LogEntry>, bytes: usize) -> bool {
        for entry in entries {
            let index = entry.log_id.index;
            match self.last {
                Some(last) => assert_eq!(index, last.index + 1, "{} does not follow {last}", entry.log_id),
                None => {
                    self.first = index;
                    self.tail.restart_at(index);
                }
            }
            assert!(index < INDEX_END, "{} is beyond the last index there is", entry.log_id);
            self.last = Some(entry.log_id);
            self.tail.push(entry, self.enqueued + 1);
        }
        self.unflushed_bytes += bytes;
        true
    }

    fn truncate(&mut self, keep: Option<LogId>) -> bool {
        let from = keep.map_or(0, |keep| keep.index + 1);
        let kept = |position: Option<LogId>| position.is_none_or(|position| position.index < from);
        assert!(kept(self.purged), "truncation from {from} into what is purged ({:?})", self.purged);
        if kept(self.last) {
            return false;
        }
        assert!(kept(self.committed), "truncation from {from} into what is committed ({:?})", self.committed);
        self.last = keep.filter(|keep| keep.index >= self.first).or(self.purged);
        self.tail.truncate(from);
        mark(Mark::LogTruncated);
        true
    }

    fn purge(&mut self, upto: LogId) -> bool {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return false;
        }
        self.purged = Some(upto);
        match self.last {
            Some(last) if last.index > upto.index => self.tail.purge(upto.index + 1),
            _ => {
                self.last = Some(upto);
                self.tail.restart_at(upto.index + 1);
            }
        }
        self.first = self.first.max(upto.index + 1);
        true
    }

    fn trim(&mut self, flushed: u64) {
        self.tail.trim(self.tail_bytes_max, flushed, self.unapplied);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no caller has broken the log's contract")
    }

    pub(super) fn entries(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<LogEntry>, StorageError> {
        self.poison.check()?;
        let state = self.lock();
        let end = state.last.map_or(0, |last| last.index + 1).min(range.end);
        let start = state.first.max(range.start);
        let split = state.tail.first().min(end);
        if start >= end {
            return Ok(Vec::new());
        }
        if start >= split {
            return Ok(state.tail.read(start..end, bytes_max));
        }
        // The disk is a moment the memory was in before, and it has had these entries since before they left the memory.
        // Whatever may change them on disk has changed them here first. So a transaction that begins while the memory
        // stands still sees them as they are; a later one might see them truncated and replaced.
        let txn = state.db.as_ref().ok_or_else(closed)?.begin_read();
        let newer = state.tail.read(split..end, bytes_max);
        drop(state);
        let read = log_rows::guarded(|| log_rows::read(&txn?, start..split, bytes_max));
        let older = read.map_err(|error| self.read_failed(error))?;
        if (older.len() as u64) < split - start {
            return Ok(older);
        }
        let mut budget = Budget::new(bytes_max);
        Ok(older.into_iter().chain(newer).take_while(|entry| budget.admits(entry_bytes(entry))).collect())
    }

    fn read_failed(&self, error: RowsError) -> StorageError {
        // redb tells a transaction that outlives its database so: that is the end of the log, not of the disk.
        if self.lock().db.is_none() { closed() } else { self.poison.fail(error.while_doing("read")) }
    }

    /// `ops` operations more are on disk, with `appended` bytes of entries; rows now take `bytes`.
    pub(super) fn flushed(&self, ops: u64, appended: usize, bytes: u64) {
        let mut state = self.lock();
        let flushed = self.flushed.get() + ops;
        state.unflushed_bytes -= appended;
        state.trim(flushed);
        drop(state);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.flushed.advance(flushed);
    }

    /// Nothing more will be on disk.
    pub(super) fn ended(&self) {
        self.flushed.close();
    }

    /// Takes the database away from readers.
    pub(super) fn close(&self) -> Option<Arc<Database>> {
        self.lock().db.take()
    }

    /// Whether the log is in need of [`Shared::restart_after`]: it does not hold the entry at `applied`.
    pub(super) fn lacks(&self, applied: LogId) -> Result<bool, StorageError> {
        if self.lock().purged.is_some_and(|purged| purged.index >= applied.index) {
            return Ok(false);
        }
        let found = self.entries(applied.index..applied.index + 1, 0)?;
        Ok(found.first().is_none_or(|entry| entry.log_id != applied))
    }

    /// Forgets all entries and goes on behind `applied`. Answers what is committed: no more than that.
    pub(super) fn restart_after(&self, applied: LogId) -> Option<LogId> {
        let mut state = self.lock();
        state.purged = None;
        state.last = None;
        state.purge(applied);
        state.first = applied.index + 1;
        state.committed =
            state.committed.map(|committed| if committed.index > applied.index { applied } else { committed });
        state.committed
    }
}
