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

use crate::error::StorageError;
use crate::format::log::INDEX_END;
use crate::format::log_items::{Summary, entry_bytes};
use crate::rt::watermark::Watermark;
use crate::rt::worker::{Drive, Driver, Mailbox, drive_from};
use crate::rt::{Mark, mark, mutant};
use crate::types::{LogEntry, LogId, Vote};

use super::Done;
use super::disk::File;
use super::identity::Identity;
use super::log_engine::LogEngine;
use super::log_reads::read_entries;
use super::poison::{GuardedBackend, Poison};
use super::positions::{Moved, Positions};
use super::tail::{Budget, Tail};

/// Bytes of entries kept in memory beyond those that have to be.
pub(crate) const TAIL_BYTES_MAX: usize = 16 << 20;

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
    file: Option<Arc<GuardedBackend>>,
    summary: Summary,
    tail: Tail,
    /// Of what is on disk, and so behind everything else in here.
    positions: Positions,
    /// How often entries were dropped from the end.
    truncations: u64,
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
        keep: Option<LogId>,
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
    /// `bytes` is what the entries take in the file.
    pub(super) fn new(
        file: Arc<GuardedBackend>,
        summary: Summary,
        positions: Positions,
        bytes: u64,
        poison: Poison,
    ) -> (Self, Arc<Shared>) {
        let state = State {
            file: Some(file),
            tail: Tail::starting_at(summary.next().unwrap_or(0)),
            summary,
            positions,
            truncations: 0,
            tail_bytes_max: TAIL_BYTES_MAX,
            enqueued: 0,
            unflushed_bytes: 0,
            unapplied: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            flushed: Watermark::new(),
            bytes: AtomicU64::new(bytes),
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
        self.shared.lock().summary.vote
    }

    /// `done` is called once the vote is on disk, and with it everything enqueued before.
    pub(crate) fn save_vote(&self, vote: Vote, done: Done) {
        let done = if mutant("skip_vote_fsync") { told_at_once(done) } else { done };
        self.enqueue(Write::Vote(vote), done, |state| {
            state.summary.vote = Some(vote);
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
        self.enqueue_lazy(Write::Truncate { keep }, |state| state.truncate(keep));
    }

    /// Forgets everything up to `upto`, also if the log does not reach so far: it then goes on behind it. As lazy on disk
    /// as a truncation, and the space comes back in whole segments. The caller answers for `upto` being applied durably.
    pub(crate) fn purge(&self, upto: LogId) {
        self.enqueue_lazy(Write::Purge { upto }, |state| state.purge(upto));
    }

    /// Remembers what is committed, as lazily as a truncation, but never on disk ahead of the entries.
    pub(crate) fn save_committed(&self, committed: Option<LogId>) {
        self.enqueue_lazy(Write::Committed(committed), |state| {
            state.summary.committed = committed;
            true
        });
    }

    pub(crate) fn committed(&self) -> Option<LogId> {
        self.shared.lock().summary.committed
    }

    /// What is purged, and the last entry; if there is no entry, what is purged stands for it.
    pub(crate) fn bounds(&self) -> (Option<LogId>, Option<LogId>) {
        let state = self.shared.lock();
        (state.summary.purged, state.summary.last)
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

    /// Bytes of the file that are in use: those of purged entries too, until nothing else is in their segment and it has
    /// been made ready to be used again. One segment, in part, is always in use.
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

#[cfg(any(test, feature = "internals"))]
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
            match self.summary.last {
                Some(last) => assert_eq!(index, last.index + 1, "{} does not follow {last}", entry.log_id),
                None => self.tail.restart_at(index),
            }
            assert!(index < INDEX_END, "{} is beyond the last index there is", entry.log_id);
            self.summary.append(entry.log_id);
            self.tail.push(entry, self.enqueued + 1);
        }
        self.unflushed_bytes += bytes;
        true
    }

    fn truncate(&mut self, keep: Option<LogId>) -> bool {
        let from = keep.map_or(0, |keep| keep.index + 1);
        let kept = |position: Option<LogId>| position.is_none_or(|position| position.index < from);
        let Summary { purged, committed, last, .. } = self.summary;
        assert!(kept(purged), "truncation from {from} into what is purged ({purged:?})");
        if kept(last) {
            return false;
        }
        assert!(kept(committed), "truncation from {from} into what is committed ({committed:?})");
        self.summary.truncate(keep);
        self.truncations += 1;
        self.tail.truncate(from);
        mark(Mark::LogTruncated);
        true
    }

    fn purge(&mut self, upto: LogId) -> bool {
        if self.summary.purged.is_some_and(|purged| purged.index >= upto.index) {
            return false;
        }
        self.summary.purge(upto);
        if self.summary.entries().is_empty() {
            self.tail.restart_at(upto.index + 1);
        } else {
            self.tail.purge(upto.index + 1);
        }
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
        loop {
            if let Some(entries) = self.try_entries(&range, bytes_max)? {
                return Ok(entries);
            }
        }
    }

    /// `None` if the entries were dropped while they were read.
    fn try_entries(&self, range: &Range<u64>, bytes_max: usize) -> Result<Option<Vec<LogEntry>>, StorageError> {
        self.poison.check()?;
        let state = self.lock();
        let Range { start: first, end: next } = state.summary.entries();
        let (start, end) = (first.max(range.start), next.min(range.end));
        let split = state.tail.first().min(end);
        if start >= end {
            return Ok(Some(Vec::new()));
        }
        if start >= split {
            return Ok(Some(state.tail.read(start..end, bytes_max)));
        }
        // What is below the tail is on disk, and its positions are known since before it left the memory.
        let file = state.file.clone().ok_or_else(closed)?;
        let positions = state.positions.of(start..split, bytes_max);
        let newer =
            if positions.len() as u64 == split - start { state.tail.read(split..end, bytes_max) } else { vec![] };
        let truncations = state.truncations;
        drop(state);
        let older = read_entries(&file, start, &positions);
        // A place on disk is used again only after its entry was dropped here. So if the entries are there now, they were
        // when they were read.
        let state = self.lock();
        if state.truncations != truncations || state.summary.first > start {
            return Ok(None);
        }
        drop(state);
        let older = older.map_err(|error| self.poison.fail(StorageError::new(File::Log.name(), "read", error)))?;
        let mut budget = Budget::new(bytes_max);
        Ok(Some(older.into_iter().chain(newer).take_while(|entry| budget.admits(entry_bytes(entry))).collect()))
    }

    /// `ops` operations more are on disk, with `appended` bytes of entries; this is where, and what the file has in use.
    /// Answers where the first entry is.
    pub(super) fn flushed(&self, ops: u64, appended: usize, moved: Vec<Moved>, bytes: u64) -> Option<u64> {
        let mut state = self.lock();
        let flushed = self.flushed.get() + ops;
        moved.into_iter().for_each(|moved| state.positions.apply(moved));
        state.unflushed_bytes -= appended;
        state.trim(flushed);
        let first = state.positions.first().map(|first| first.at);
        drop(state);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.flushed.advance(flushed);
        first
    }

    /// One sync more was made.
    pub(super) fn synced(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    /// Nothing more will be on disk.
    pub(super) fn ended(&self) {
        self.flushed.close();
    }

    /// Takes the file away from readers.
    pub(super) fn close(&self) {
        self.lock().file = None;
    }

    /// Whether the log is in need of [`Shared::restart_after`]: it does not hold the entry at `applied`.
    pub(super) fn lacks(&self, applied: LogId) -> Result<bool, StorageError> {
        if self.lock().summary.purged.is_some_and(|purged| purged.index >= applied.index) {
            return Ok(false);
        }
        let found = self.entries(applied.index..applied.index + 1, 0)?;
        Ok(found.first().is_none_or(|entry| entry.log_id != applied))
    }

    /// Forgets all entries and goes on behind `applied`. Answers what is committed: no more than that.
    pub(super) fn restart_after(&self, applied: LogId) -> Option<LogId> {
        let mut state = self.lock();
        state.truncations += 1;
        let summary = &mut state.summary;
        summary.truncate(None);
        summary.purge(applied);
        summary.committed = summary
            .committed
            .filter(|committed| committed.index <= applied.index)
            .or_else(|| summary.committed.map(|_| applied));
        let committed = summary.committed;
        state.tail.restart_at(applied.index + 1);
        committed
    }
}
