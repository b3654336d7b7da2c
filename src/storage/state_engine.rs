//! The state thread: applies committed entries, makes them durable now and then, removes what history no longer needs,
//! brings snapshots in.
//!
//! What a batch of entries writes stays in memory ([`Recent`]) until the next durable commit, which takes all of it to
//! `state.redb` in one transaction. Recovery is the last durable commit and the log behind it.
//!
//! Promised:
//! * *Applied, then published, then answered.* A caller that has its answer finds its effect in the published view.
//! * *The log first.* No durable commit begins before `log.wal` has synced everything that was enqueued ahead of it,
//!   truncations included. Otherwise a power failure could leave a state that is past a log which still holds the entries
//!   that were replaced, and consensus could not be started on the two ever again.
//! * *Fail-stop.* The first error, and any panic, poisons the node: this and every later operation fails, nothing is
//!   written any more.
//! * *Whole when durable.* What is durable is the state after one batch: records, rows, remembered answers ([`Answers`]),
//!   counters, position and membership reach the database together, and only there.
//! * A queued batch waits for at most one slice of tidying up, and for a durable commit when one is due.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use redb::{Database, Durability, ReadableDatabase, WriteTransaction};

use self::install::refusable;
use crate::command::{Effects, Proposal};
use crate::error::{StartError, StorageError};
use crate::format::command::decode_proposal;
use crate::format::snapshot::{SnapshotMeta, encode_meta};
use crate::format::state::{APPLIED, POSITION, SNAPSHOT, live_table};
use crate::rt::mutant;
use crate::rt::watermark::Watermark;
use crate::rt::worker::{Engine, Mailbox, Step, panic_message};
use crate::state_machine::{RowError, State};
use crate::storage::answers::Answers;
use crate::storage::leftovers::Leftovers;
use crate::storage::live_rows::{LiveRows, MomentRows};
use crate::storage::log::Log;
use crate::storage::poison::Poison;
use crate::storage::recent::Recent;
use crate::storage::records::{self, Packer};
use crate::storage::snapshot::Stage;
use crate::storage::state::{Answer, Applied, FILE, Installed, Op, Shared, StageError, StateStore};
use crate::storage::state_rows::{Naming, PastRows, TxnRows, definition, disk, read_position, undamaged};
use crate::storage::view::{Alarm, LiveViews, View};
use crate::types::{LogEntry, LogId, Membership, Payload, Revision, StoredMembership};

/// A durable commit follows the batch that brings the entries since the last one to this many.
///
/// Together with [`CHECKPOINT_BYTES`] it bounds what is replayed after a crash, what is kept in memory meanwhile, and how far
/// the file can grow: a commit without a sync cannot reuse the pages of the last durable one. What tidying up removes
/// counts as well.
pub(crate) const CHECKPOINT_ENTRIES: u64 = 8192;

/// As [`CHECKPOINT_ENTRIES`], for the bytes of entries, of the records they write, of blocks that lose some, and of arriving
/// snapshots.
pub(crate) const CHECKPOINT_BYTES: u64 = 8 << 20;

/// What a record takes beside its entry's bytes, about.
const RECORD_ROOM_BYTES: usize = 48;

/// Records that one slice of a sweep looks at or removes at most.
pub(crate) const SWEEP_RECORDS: usize = 1024;

pub(crate) struct StateEngine {
    /// `None` once closed.
    db: Option<Database>,
    log: Log,
    poison: Poison,
    shared: Arc<Shared>,
    alarm: Alarm,
    state: State,
    /// The database as it was when `recent` began; no record that is in it is missing in the database now, unless it has
    /// been swept.
    past: Arc<PastRows>,
    recent: Arc<Recent>,
    answers: Answers,
    /// Position and membership as of the last batch.
    position: SnapshotMeta,
    /// The database lacks the last batch.
    held_back: bool,
    unsynced: Unsynced,
    due: Option<Due>,
    /// The last step took an operation and left the rest, which comes before the next operation.
    has_put_off: bool,
    views: LiveViews,
    /// Nothing has been applied between the last two ticks: the time for a sweep that would not be worth it otherwise.
    quiet: bool,
    /// Something has been applied since the last tick.
    busy: bool,
    stage: Option<Stage>,
    stages_begun: u64,
    leftovers: Leftovers,
}

/// What the last durable commit does not cover.
#[derive(Debug, Default)]
struct Unsynced {
    commits: u64,
    entries: u64,
    bytes: u64,
}

impl Unsynced {
    fn add(&mut self, entries: u64, bytes: u64) {
        self.commits += 1;
        self.entries += entries;
        self.bytes += bytes;
    }

    fn is_too_much(&self) -> bool {
        self.entries >= CHECKPOINT_ENTRIES || self.bytes >= CHECKPOINT_BYTES
    }
}

/// A durable commit to come, and what it is for.
struct Due {
    work: Durable,
    /// What the log must have synced first; `None` if it was not behind. Nothing is taken between the plan and the
    /// commit, so nothing joins the commit that this does not cover.
    log: Option<(Watermark, u64)>,
    /// The driver has been asked to wait for it.
    waited: bool,
}

enum Durable {
    Checkpoint(Option<Answer<()>>),
    Build(Answer<Arc<View>>),
    Install(Box<Stage>, Answer<Installed, StageError>),
    Close(Answer<()>),
}

impl Durable {
    fn fail(self, error: StorageError) {
        match self {
            Durable::Checkpoint(None) => {}
            Durable::Checkpoint(Some(done)) | Durable::Close(done) => done(Err(error)),
            Durable::Build(done) => done(Err(error)),
            Durable::Install(_, done) => done(Err(error.into())),
        }
    }
}

/// Loads the state in `db` and makes the engine for it. The handle can be used before the engine runs: its operations
/// wait in the mailbox, which [`StateStore::start`] drives.
///
/// # Errors
/// [`StartError::Io`] if the disk fails, [`StartError::Corrupted`] if a row is not what this release writes.
pub(crate) fn open(
    db: Database,
    log: Log,
    poison: Poison,
    path: &Path,
) -> Result<(StateStore, StateEngine), StartError> {
    undamaged(|| load(db, log, poison.clone())).map_err(|error| match poison.error() {
        // The disk's own words, where there are any.
        Some(error) => StartError::Io { path: path.to_owned(), source: error.into() },
        None => StartError::Corrupted { path: path.to_owned(), what: error.to_string() },
    })
}

fn load(db: Database, log: Log, poison: Poison) -> Result<(StateStore, StateEngine), RowError> {
    let past = Arc::new(past_rows(&db, live_table)?);
    let position = read_position(&past, APPLIED)?.unwrap_or_default();
    let snapshot = read_position(&past, SNAPSHOT)?;
    let state = State::load(&*past)?;
    let leftovers = Leftovers::find(&db)?;
    let alarm = Alarm::new(poison.clone());
    let revision = state.counters().revision;
    let recent = Arc::new(Recent::new(revision));
    let rows = MomentRows::new(past.clone(), recent.clone(), revision);
    let view = Arc::new(View::new(rows, true, &state, position.clone(), alarm.clone()));
    let mut views = LiveViews::default();
    views.published(&view);
    let shared = Arc::new(Shared::new(view, position.last_applied, snapshot));
    let store = StateStore::new(Mailbox::new(), shared.clone());
    let engine = StateEngine {
        db: Some(db),
        log,
        poison,
        shared,
        alarm,
        state,
        past,
        recent,
        answers: Answers::default(),
        position,
        held_back: false,
        unsynced: Unsynced::default(),
        due: None,
        has_put_off: false,
        views,
        quiet: false,
        busy: false,
        stage: None,
        stages_begun: 0,
        leftovers,
    };
    Ok((store, engine))
}

impl Engine for StateEngine {
    type Op = Op;

    fn step(&mut self, queue: &mut VecDeque<Op>) -> Step {
        if let Some(error) = self.poison.error() {
            return self.refuse(queue, &error);
        }
        if self.due.is_none()
            && !self.has_put_off
            && let Some(op) = queue.pop_front()
        {
            self.take(op);
            // What can wait is for a step of its own: this one may be made on the thread of the one who asked.
            self.has_put_off = self.due.is_some() || self.has_to_tidy();
            return if self.has_put_off || !queue.is_empty() { Step::Again } else { Step::Idle };
        }
        self.has_put_off = false;
        if let Some(due) = self.due.take() {
            return self.make_durable(due);
        }
        if self.tidy() || !queue.is_empty() { Step::Again } else { Step::Idle }
    }

    fn panicked(&mut self, message: &str) {
        self.poison.fail(StorageError::new(FILE, "state engine", message));
    }
}

impl StateEngine {
    fn take(&mut self, op: Op) {
        match op {
            Op::Apply { entries, done } => {
                let applied = self.guarded("apply", |engine| engine.apply(entries));
                // `apply` has published the view that shows these effects: whoever has the answer finds them there.
                done(applied);
            }
            Op::Checkpoint { done } => self.schedule(Durable::Checkpoint(Some(done))),
            Op::Tick { now } => {
                self.views.tick(now);
                self.quiet = !std::mem::take(&mut self.busy);
            }
            Op::Build { done } => self.schedule(Durable::Build(done)),
            Op::Whole { done } => done(self.guarded("read a snapshot", StateEngine::whole)),
            Op::StageBegin { meta, done } => done(self.guarded("begin a snapshot", |engine| engine.stage_begin(meta))),
            Op::StageChunk { stage, index, bytes, done } => {
                let taken = self.guarded("stage a chunk", |engine| engine.stage_chunk(stage, index, bytes));
                done(refusable(taken));
            }
            Op::StageFinish { stage, done } => {
                let finished = self.guarded("finish a snapshot", |engine| engine.stage_finish(stage));
                done(refusable(finished));
            }
            Op::Install { stage, done } => self.take_install(stage, done),
            Op::Close { done } => self.schedule(Durable::Close(done)),
        }
        // After the answer: only what comes later waits for this commit.
        if self.due.is_none() && self.unsynced.is_too_much() {
            self.schedule(Durable::Checkpoint(None));
        }
    }

    /// Applies a batch and publishes what it led to.
    fn apply(&mut self, entries: Vec<LogEntry>) -> Result<Vec<Applied>, StorageError> {
        // All are decoded before any is applied: a command that this release does not know stops the node as it was.
        let mut decoded = Vec::with_capacity(entries.len());
        for entry in entries {
            decoded.push(decode(entry)?);
        }
        let entries = decoded;
        let bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
        let room = usize::try_from(bytes).unwrap_or(0) + entries.len() * RECORD_ROOM_BYTES;
        let mut rows = LiveRows::new(&self.past, &self.recent, &mut self.answers, room);
        let mut position = self.position.clone();
        let (state, mut applied) = (&mut self.state, Vec::with_capacity(entries.len()));
        for entry in &entries {
            advance(&mut position, entry).map_err(not_applied)?;
            let (response, effects) = match &entry.content {
                Content::Proposal(proposal) => {
                    let (response, effects) = state.apply(&mut rows, entry.log_id, proposal).map_err(not_applied)?;
                    (Some(response), effects)
                }
                Content::Blank | Content::Membership(_) => (None, Effects::default()),
            };
            applied.push(Applied { log_id: entry.log_id, response, effects });
        }
        let batch = rows.batch;
        self.unsynced.add(entries.len() as u64, bytes.max(batch.bytes()));
        self.recent.add(batch);
        self.held_back = true;
        (self.busy, self.quiet) = (true, false);
        self.position = position;
        self.publish();
        if let Some(at) = self.position.last_applied {
            self.log.applied(at.index);
        }
        Ok(applied)
    }

    fn publish(&mut self) {
        let rows = MomentRows::new(self.past.clone(), self.recent.clone(), self.state.counters().revision);
        let (whole, position) = (!self.held_back, self.position.clone());
        let view = Arc::new(View::new(rows, whole, &self.state, position, self.alarm.clone()));
        self.views.published(&view);
        self.shared.publish_view(view);
    }

    /// Lets go of the database's earlier pages: from here on it is read as it is now.
    fn refresh(&mut self) -> Result<(), StorageError> {
        let past = self.db.as_ref().ok_or_else(closed).and_then(|db| past_rows(db, live_table));
        self.past = Arc::new(past.map_err(|error| StorageError::new(FILE, "read", error))?);
        self.publish();
        Ok(())
    }

    /// Plans a durable commit of everything taken so far.
    fn schedule(&mut self, work: Durable) {
        let log = self.log.behind().filter(|_| !mutant("state_ahead_of_log"));
        self.due = Some(Due { work, log, waited: false });
    }

    /// Begins the durable commit, unless the log has still to sync what was enqueued when the commit was planned.
    ///
    /// This is the one place where the state becomes durable while the node runs, and so the one gate. What was enqueued
    /// to the log before a batch was handed to this engine had been enqueued when the commit was planned, and no batch is
    /// taken between the plan and the commit.
    fn make_durable(&mut self, due: Due) -> Step {
        if let Some((mark, target)) = &due.log
            && mark.get() < *target
        {
            if due.waited {
                // Called again below the target: the log has ended, and will never sync the rest.
                let error =
                    self.poison.fail(StorageError::new(FILE, "checkpoint", "the log ended before it was synced"));
                due.work.fail(error);
                return Step::Again;
            }
            let step = Step::After(mark.clone(), *target);
            self.due = Some(Due { waited: true, ..due });
            return step;
        }
        match due.work {
            Durable::Checkpoint(done) => {
                let synced = self.guarded("checkpoint", StateEngine::checkpoint);
                if let Some(done) = done {
                    done(synced);
                }
            }
            Durable::Build(done) => done(self.guarded("build a snapshot", StateEngine::build)),
            Durable::Install(stage, done) => {
                let installed = self.guarded("install a snapshot", |engine| engine.install(*stage));
                done(installed.map_err(StageError::from));
            }
            Durable::Close(done) => {
                done(self.guarded("close", StateEngine::close));
                return Step::Stop;
            }
        }
        Step::Again
    }

    fn checkpoint(&mut self) -> Result<(), StorageError> {
        if self.unsynced.commits == 0 && !self.held_back {
            return Ok(());
        }
        self.commit_durably(|_| Ok(()))
    }

    fn close(&mut self) -> Result<(), StorageError> {
        self.checkpoint()?;
        self.alarm.disarm();
        // Nothing is pending that redb could make durable by itself: what it adds is the mark of a clean end.
        let db = self.db.take().expect("an engine that was closed is not called again");
        db.close().map_err(|error| StorageError::new(FILE, "close", error))
    }

    fn build(&mut self) -> Result<Arc<View>, StorageError> {
        let meta = self.position.clone();
        if mutant("purge_past_durable") {
            transact(self.db.as_ref(), Durability::None, |txn| put_position(txn, SNAPSHOT, &encode_meta(&meta)))?;
        } else {
            self.commit_durably(|txn| put_position(txn, SNAPSHOT, &encode_meta(&meta)))?;
        }
        self.shared.publish_snapshot(meta);
        self.whole()
    }

    /// Publishes a view whose rows are complete in the database, for a snapshot to be read from.
    fn whole(&mut self) -> Result<Arc<View>, StorageError> {
        if self.held_back {
            self.commit_whole(Durability::None, |_| Ok(()))?;
            self.unsynced.add(0, 0);
        }
        Ok(self.shared.view())
    }

    fn commit_durably(
        &mut self,
        write: impl FnOnce(&WriteTransaction) -> Result<(), RowError>,
    ) -> Result<(), StorageError> {
        self.commit_whole(Durability::Immediate, write)?;
        self.synced();
        Ok(())
    }

    /// Commits what was held back, and what `write` adds.
    fn commit_whole(
        &mut self,
        durability: Durability,
        write: impl FnOnce(&WriteTransaction) -> Result<(), RowError>,
    ) -> Result<(), StorageError> {
        let mut rows = LiveRows::new(&self.past, &self.recent, &mut self.answers, 0);
        self.state.save(&mut rows).map_err(not_applied)?;
        self.recent.add(rows.batch);
        let (recent, answers, position) = (&self.recent, &mut self.answers, &self.position);
        transact(self.db.as_ref(), durability, |txn| {
            let mut rows = TxnRows::new(txn, live_table);
            write_recent(&mut rows, recent)?;
            answers.write(&mut rows)?;
            put_position(txn, APPLIED, &encode_meta(position))?;
            write(txn)
        })?;
        self.recent = Arc::new(Recent::new(self.state.counters().revision));
        self.held_back = false;
        self.refresh()
    }

    /// The position is durable, and not said to be before it is.
    fn synced(&mut self) {
        self.unsynced = Unsynced::default();
        self.shared.publish_durable(self.position.last_applied);
    }

    fn has_to_tidy(&self) -> bool {
        self.sweep_is_due() || self.has_to_flush() || !self.leftovers.is_empty()
    }

    /// Does one slice of what can wait; false when there is nothing to do.
    fn tidy(&mut self) -> bool {
        let tidied = if self.has_to_flush() {
            self.guarded("sweep", |engine| engine.whole().and_then(|_| engine.sweep_slice()))
        } else if self.sweep_is_due() {
            self.guarded("sweep", StateEngine::sweep_slice)
        } else if !self.leftovers.is_empty() {
            self.guarded("tidy up", StateEngine::leftover_slice)
        } else {
            return false;
        };
        if tidied.is_ok() && self.unsynced.is_too_much() {
            self.schedule(Durable::Checkpoint(None));
        }
        // On an error as well: the next step tells everybody in the queue.
        true
    }

    /// Up to where a sweep can go: it removes nothing that a view needs, and nothing that is not in the database yet.
    fn sweepable(&self) -> Revision {
        self.views.floor().min(self.recent.base())
    }

    /// Whether a sweep is under way, or has enough to do to be worth it, or anything while there is nothing else to do.
    fn sweep_is_due(&self) -> bool {
        let (state, up_to) = (&self.state, self.sweepable());
        state.is_sweeping() || state.should_sweep(up_to) || (self.quiet && state.can_sweep(up_to))
    }

    /// Whether it is a time to sweep what is not in the database yet.
    fn has_to_flush(&self) -> bool {
        let state = &self.state;
        self.quiet && self.held_back && !state.is_sweeping() && state.can_sweep(self.views.floor())
    }

    fn sweep_slice(&mut self) -> Result<(), StorageError> {
        let up_to = self.sweepable();
        let mut rows = LiveRows::new(&self.past, &self.recent, &mut self.answers, 0);
        self.state.sweep(&mut rows, up_to, SWEEP_RECORDS).map_err(not_applied)?;
        let LiveRows { batch, removed, .. } = rows;
        self.recent.add(batch);
        self.held_back = true;
        if !removed.is_empty() {
            let written = transact(self.db.as_ref(), Durability::None, |txn| {
                records::remove(TxnRows::new(txn, live_table).records()?, &removed)
            })?;
            self.unsynced.add(0, written);
        }
        if self.state.is_sweeping() {
            return Ok(());
        }
        // The newest view shows the same as before, but pins the pages of what has been removed.
        self.refresh()
    }

    fn leftover_slice(&mut self) -> Result<(), StorageError> {
        let leftovers = &mut self.leftovers;
        let removed = transact(self.db.as_ref(), Durability::None, |txn| leftovers.remove_slice(txn))?;
        self.unsynced.add(removed as u64, 0);
        if self.leftovers.is_empty() { self.refresh() } else { Ok(()) }
    }

    /// Runs `work`; an error or a panic in it poisons the node.
    ///
    /// Consensus does not notice a panic on this side of it, and goes on promising; so a panic is treated as what it is, a
    /// state that nobody can vouch for any more.
    fn guarded<T>(
        &mut self,
        what: &'static str,
        work: impl FnOnce(&mut Self) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let outcome = catch_unwind(AssertUnwindSafe(|| work(self)))
            .unwrap_or_else(|panic| Err(StorageError::new(FILE, what, panic_message(&*panic))));
        outcome.map_err(|error| self.poison.fail(error))
    }

    /// Answers everything with the error that stopped the node.
    fn refuse(&mut self, queue: &mut VecDeque<Op>, error: &StorageError) -> Step {
        let mut closing = false;
        if let Some(due) = self.due.take() {
            closing |= matches!(due.work, Durable::Close(_));
            due.work.fail(error.clone());
        }
        for op in queue.drain(..) {
            closing |= matches!(op, Op::Close { .. });
            op.fail(error.clone());
        }
        if closing { Step::Stop } else { Step::Idle }
    }
}

impl Drop for StateEngine {
    fn drop(&mut self) {
        self.alarm.disarm();
        // redb makes pending commits durable when a database is dropped, without the answers and perhaps before the log.
        // Closing in order leaves nothing pending; this is for an engine that is simply let go.
        if self.unsynced.commits > 0 {
            self.poison.power_off();
        }
    }
}

/// An entry, understood.
struct Decoded {
    log_id: LogId,
    content: Content,
    bytes: u64,
}

enum Content {
    Blank,
    Proposal(Proposal),
    Membership(Membership),
}

fn decode(entry: LogEntry) -> Result<Decoded, StorageError> {
    let LogEntry { log_id, payload } = entry;
    let mut bytes = 0;
    let content = match payload {
        Payload::Blank => Content::Blank,
        Payload::Membership(membership) => Content::Membership(membership),
        Payload::Proposal(encoded) => {
            bytes = encoded.len() as u64;
            let proposal = decode_proposal(encoded)
                .map_err(|error| StorageError::new(FILE, "apply", format_args!("entry {log_id}: {error}")))?;
            Content::Proposal(proposal)
        }
    };
    Ok(Decoded { log_id, content, bytes })
}

/// Moves the position past `entry`, which must be a later one. That none is left out is the consensus library's promise,
/// and its own conformance suite does not keep it.
fn advance(position: &mut SnapshotMeta, entry: &Decoded) -> Result<(), RowError> {
    if let Some(last) = position.last_applied
        && entry.log_id.index <= last.index
    {
        return Err(RowError(format!("entry {} does not follow {last}", entry.log_id)));
    }
    position.last_applied = Some(entry.log_id);
    if let Content::Membership(membership) = &entry.content {
        position.membership = StoredMembership { log_id: Some(entry.log_id), membership: membership.clone() };
    }
    Ok(())
}

fn transact<T>(
    db: Option<&Database>,
    durability: Durability,
    write: impl FnOnce(&WriteTransaction) -> Result<T, RowError>,
) -> Result<T, StorageError> {
    let run = || {
        let mut txn = db.ok_or_else(closed)?.begin_write().map_err(disk)?;
        // A database that was not closed is then opened without reading all of it.
        txn.set_quick_repair(matches!(durability, Durability::Immediate));
        txn.set_durability(durability).map_err(disk)?;
        let outcome = write(&txn)?;
        txn.commit().map_err(disk)?;
        Ok(outcome)
    };
    run().map_err(|error: RowError| StorageError::new(FILE, "write", error))
}

/// Brings the database up to date, but for the answers.
fn write_recent(rows: &mut TxnRows<'_>, recent: &Recent) -> Result<(), RowError> {
    let mut packer = Packer::default();
    let table = rows.records()?;
    recent.each_record(|id, record| packer.push(table, id, record))?;
    packer.finish(table)?;
    recent.each_row(|space, key, row| match row {
        Some(row) => rows.put(space.into(), key, row),
        None => rows.remove(space.into(), key),
    })
}

fn past_rows(db: &Database, name: Naming) -> Result<PastRows, RowError> {
    Ok(PastRows::open(db.begin_read().map_err(disk)?, name))
}

fn not_applied(error: RowError) -> StorageError {
    StorageError::new(FILE, "apply", error)
}

fn closed() -> RowError {
    RowError("it is closed".to_owned())
}

fn put_position(txn: &WriteTransaction, name: &[u8], meta: &[u8]) -> Result<(), RowError> {
    txn.open_table(definition(POSITION)).map_err(disk)?.insert(name, meta).map_err(disk)?;
    Ok(())
}

mod install;
#[cfg(test)]
mod tests;
