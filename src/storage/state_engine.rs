//! The state thread: applies committed entries, makes them durable now and then, removes what history no longer needs,
//! brings snapshots in.
//!
//! What a batch of entries writes stays in memory ([`Recent`]) until the next durable commit, which takes all of it to
//! `state.redb` in one transaction, on the thread of the [`Committer`]. Recovery is the last durable commit and the log
//! behind it.
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
//! * A queued batch waits for at most one slice of tidying up; for a durable commit only if twice as much as it takes has come
//!   before it has ended, or somebody needs the whole state in the database.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use redb::{Database, ReadableDatabase};

use self::flush::Flight;
use self::install::refusable;
use crate::command::{Effects, Proposal, RecordId};
use crate::error::{StartError, StorageError};
use crate::format::command::decode_proposal;
use crate::format::snapshot::SnapshotMeta;
use crate::format::state::{APPLIED, SNAPSHOT, live_table};
use crate::format::wire::DecodeError;
use crate::rt::worker::{Drive, Engine, Knocker, Mailbox, Step, drive_from};
use crate::state_machine::{RowError, State};
use crate::storage::answers::Answers;
use crate::storage::committer::{Commit, Committer, LogGate, guarded, log_ended};
use crate::storage::disk::Disk;
use crate::storage::leftovers::Leftovers;
use crate::storage::live_rows::{LiveRows, MomentRows};
use crate::storage::log::Log;
use crate::storage::poison::Poison;
use crate::storage::recent::Recent;
use crate::storage::snapshot::Stage;
use crate::storage::state::{Answer, Applied, FILE, Installed, Op, Shared, StageError, StateStore};
use crate::storage::state_rows::{Naming, PastRows, disk, read_position, undamaged};
use crate::storage::view::{Alarm, LiveViews, View};
use crate::types::{LogEntry, LogId, Membership, NodeId, Payload, StoredMembership};

/// A durable commit is begun behind the batch that brings the entries since the last one to this many, or before, when it is
/// this member's turn: members of one cluster take turns, so that only one of them has a commit under way as a rule, and a
/// quorum none. At twice as many no batch is taken until the one before has ended.
///
/// Together with [`CHECKPOINT_BYTES`] it bounds what is replayed after a crash, and what is kept in memory meanwhile. What
/// tidying up removes counts as well.
pub(crate) const CHECKPOINT_ENTRIES: u64 = 8192;

/// As [`CHECKPOINT_ENTRIES`], for the bytes of entries, of the records they write, of blocks that lose some, and of arriving
/// snapshots.
pub(crate) const CHECKPOINT_BYTES: u64 = 8 << 20;

/// What a record takes beside its entry's bytes, about.
const RECORD_ROOM_BYTES: usize = 48;

pub(crate) struct StateEngine {
    /// `None` once closed. Shared with the commit under way, if there is one.
    db: Option<Arc<Database>>,
    me: NodeId,
    log: Log,
    commits: Mailbox<Commit>,
    /// For those who have news.
    knocker: Knocker<Op>,
    flight: Option<Flight>,
    poison: Poison,
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    alarm: Alarm,
    state: State,
    /// The database. What is on its way there (see `flight`), and then `recent`, is what has come since.
    past: Arc<PastRows>,
    recent: Arc<Recent>,
    answers: Answers,
    /// Records that a sweep has found, to be removed with the next commit. Ascending.
    removed: Vec<RecordId>,
    /// Position and membership as of the last batch.
    position: SnapshotMeta,
    /// There has been a batch since the last commit was begun.
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

/// What the last durable commit, or the one under way, does not cover.
#[derive(Debug)]
struct Unsynced {
    /// The entry behind the last one that is covered.
    from: u64,
    /// The commit that covers it was begun for the bytes it took.
    behind_bytes: bool,
    /// Batches, and commits that were not durable.
    commits: u64,
    entries: u64,
    bytes: u64,
}

impl Unsynced {
    fn behind(covered: Option<LogId>) -> Self {
        let from = covered.map_or(0, |last| last.index + 1);
        Unsynced { from, behind_bytes: false, commits: 0, entries: 0, bytes: 0 }
    }

    fn add(&mut self, entries: u64, bytes: u64) {
        self.commits += 1;
        self.entries += entries;
        self.bytes += bytes;
    }

    fn is_too_much(&self) -> bool {
        self.is_times_too_much(1)
    }

    fn is_times_too_much(&self, times: u64) -> bool {
        self.entries >= times * CHECKPOINT_ENTRIES || self.bytes >= times * CHECKPOINT_BYTES
    }
}

/// What is to be done next, with the database for itself.
struct Due {
    work: Exclusive,
    /// Nothing is taken between the plan and the work, so nothing becomes durable by it that this does not cover.
    log: LogGate,
    /// The driver has been asked to wait for the log.
    waited: bool,
}

/// Work that no commit may be under way beside.
enum Exclusive {
    /// Begins a commit beside this thread.
    Checkpoint(Option<Answer<()>>),
    Build(Answer<Arc<View>>),
    Whole(Answer<Arc<View>>),
    Install(Box<Stage>, Answer<Installed, StageError>),
    Close(Answer<()>),
}

impl Exclusive {
    /// Whether this thread makes something durable by it.
    fn syncs(&self) -> bool {
        matches!(self, Exclusive::Build(_) | Exclusive::Install(..) | Exclusive::Close(_))
    }
}

/// Loads the state in `db` and makes the engine for it. The handle can be used before the engine runs: its operations
/// wait in the mailbox, which [`StateStore::start`] drives.
///
/// # Errors
/// [`StartError::Io`] if the disk fails, [`StartError::NewerFormat`] if a newer release wrote a row,
/// [`StartError::Corrupted`] if no release can have written it.
pub(crate) fn open(
    db: Database,
    me: NodeId,
    log: Log,
    poison: Poison,
    disk: &Arc<dyn Disk>,
) -> Result<(StateStore, StateEngine), StartError> {
    undamaged(|| load(db, me, log, poison.clone(), disk.clone())).map_err(|error| {
        let path = disk.path().join(FILE);
        match (poison.error(), error.newer()) {
            // The disk's own words, where there are any.
            (Some(error), _) => StartError::Io { path, source: error.into() },
            (None, Some((found, known))) => StartError::NewerFormat { path, found, known },
            (None, None) => StartError::Corrupted { path, what: error.to_string() },
        }
    })
}

fn load(
    db: Database,
    me: NodeId,
    log: Log,
    poison: Poison,
    disk: Arc<dyn Disk>,
) -> Result<(StateStore, StateEngine), RowError> {
    let past = Arc::new(past_rows(&db, live_table)?);
    let position = read_position(&past, APPLIED)?.unwrap_or_default();
    let snapshot = read_position(&past, SNAPSHOT)?;
    let state = State::load(&*past)?;
    let leftovers = Leftovers::find(&db)?;
    let alarm = Alarm::new(poison.clone());
    let revision = state.revision();
    let recent = Arc::new(Recent::new(revision));
    let rows = MomentRows::new(past.clone(), None, recent.clone(), revision);
    let view = Arc::new(View::new(rows, true, &state, position.clone(), alarm.clone()));
    let mut views = LiveViews::default();
    views.published(&view);
    let shared = Arc::new(Shared::new(view, position.last_applied, snapshot));
    let mailbox = Mailbox::new();
    let knocker = mailbox.knocker();
    let store = StateStore::new(mailbox, shared.clone());
    let engine = StateEngine {
        db: Some(Arc::new(db)),
        unsynced: Unsynced::behind(position.last_applied),
        me,
        log,
        commits: Mailbox::new(),
        knocker,
        flight: None,
        poison,
        disk,
        shared,
        alarm,
        state,
        past,
        recent,
        answers: Answers::default(),
        removed: Vec::new(),
        position,
        held_back: false,
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
        self.land();
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
            return self.exclude(due);
        }
        if self.tidy() || !queue.is_empty() { Step::Again } else { Step::Idle }
    }

    fn panicked(&mut self, message: &str) {
        self.poison.fail(StorageError::new(FILE, "state engine", message));
    }
}

impl StateEngine {
    /// Starts what this engine leaves to another one.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub(crate) fn start_committer(&self, how: Drive) -> io::Result<()> {
        drive_from(&self.commits, "quorate-commit", how, Committer::default()).map(drop)
    }

    fn take(&mut self, op: Op) {
        match op {
            Op::Apply { entries, done } => {
                let applied = self.guarded("apply", |engine| engine.apply(entries));
                // `apply` has published the view that shows these effects: whoever has the answer finds them there.
                done(applied);
            }
            Op::Checkpoint { done } => self.schedule(Exclusive::Checkpoint(Some(done))),
            Op::Tick { now } => {
                self.views.tick(now);
                self.shared.publish_free_bytes(self.disk.free_bytes());
                self.quiet = !std::mem::take(&mut self.busy);
            }
            Op::Build { done } => self.schedule(Exclusive::Build(done)),
            Op::Whole { done } => self.schedule(Exclusive::Whole(done)),
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
            Op::Close { done } => self.schedule(Exclusive::Close(done)),
            // Looked after before anything is taken.
            Op::Landed => {}
        }
        self.commit_if_due();
    }

    /// Applies a batch and publishes what it led to.
    fn apply(&mut self, entries: Vec<LogEntry>) -> Result<Vec<Applied>, StorageError> {
        // All are decoded before any is applied: a command that this release does not know stops the node as it was.
        let mut decoded = Vec::with_capacity(entries.len());
        for entry in entries {
            let log_id = entry.log_id;
            decoded.push(decode(entry).map_err(|error| self.not_understood(log_id, &error))?);
        }
        let entries = decoded;
        let bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
        let room = usize::try_from(bytes).unwrap_or(0) + entries.len() * RECORD_ROOM_BYTES;
        let leaving = self.flight.as_ref().map(|flight| &flight.leaving);
        let mut rows = LiveRows::new(&self.past, leaving, &self.recent, &mut self.answers, room);
        let mut position = self.position.clone();
        let (state, mut applied) = (&mut self.state, Vec::with_capacity(entries.len()));
        state.foresee(entries.iter().filter_map(|entry| match &entry.content {
            Content::Proposal(proposal) => Some(proposal),
            Content::Blank | Content::Membership(_) => None,
        }));
        for entry in &entries {
            advance(&mut position, entry).map_err(not_applied)?;
            let (response, effects) = match &entry.content {
                Content::Proposal(proposal) => {
                    let (response, effects) = state.apply(&mut rows, entry.log_id, proposal).map_err(not_applied)?;
                    (Some(response), effects)
                }
                Content::Blank | Content::Membership(_) => (None, Effects::default()),
            };
            self.shared.milestones.passed(entry.log_id.index, || state.counters().hash);
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

    /// An entry that a newer release proposed is no damage: that release will go on from here.
    fn not_understood(&self, log_id: LogId, error: &DecodeError) -> StorageError {
        let failed = |reason| StorageError::new(FILE, "apply", reason);
        match error.is_newer() {
            true => {
                let remedy = "a newer release proposed it: start that release on this node";
                self.poison.halt(failed(format_args!("entry {log_id}: {error}; {remedy}")))
            }
            false => failed(format_args!("entry {log_id}: {error}")),
        }
    }

    fn publish(&mut self) {
        let leaving = self.flight.as_ref().map(|flight| flight.leaving.recent.clone());
        let whole = leaving.is_none() && !self.held_back;
        let revision = self.state.revision();
        let rows = MomentRows::new(self.past.clone(), leaving, self.recent.clone(), revision);
        let view = Arc::new(View::new(rows, whole, &self.state, self.position.clone(), self.alarm.clone()));
        self.views.published(&view);
        self.shared.publish_view(view);
    }

    /// Plans work before which nothing is taken any more.
    fn schedule(&mut self, work: Exclusive) {
        let log = if work.syncs() { self.log_gate() } else { None };
        self.due = Some(Due { work, log, waited: false });
    }

    /// Does what was planned, unless a commit is under way, or the log has still to sync what was enqueued when it was
    /// planned.
    fn exclude(&mut self, due: Due) -> Step {
        if let Some(flight) = &self.flight {
            let step = flight.landing.wait();
            self.due = Some(due);
            return step;
        }
        if let Some((mark, target)) = &due.log
            && mark.get() < *target
        {
            if due.waited {
                due.work.fail(log_ended(&self.poison));
                return Step::Again;
            }
            let step = Step::After(mark.clone(), *target);
            self.due = Some(Due { waited: true, ..due });
            return step;
        }
        match due.work {
            Exclusive::Checkpoint(done) => self.launch(done),
            Exclusive::Build(done) => done(self.guarded("build a snapshot", StateEngine::build)),
            Exclusive::Whole(done) => done(self.guarded("read a snapshot", StateEngine::whole)),
            Exclusive::Install(stage, done) => {
                let installed = self.guarded("install a snapshot", |engine| engine.install(*stage));
                done(installed.map_err(StageError::from));
            }
            Exclusive::Close(done) => {
                done(self.guarded("close", StateEngine::close));
                return Step::Stop;
            }
        }
        Step::Again
    }

    /// Runs `work`; an error or a panic in it poisons the node.
    fn guarded<T>(
        &mut self,
        what: &'static str,
        work: impl FnOnce(&mut Self) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        guarded(&self.poison.clone(), what, || work(self))
    }

    /// Answers everything with the error that stopped the node.
    fn refuse(&mut self, queue: &mut VecDeque<Op>, error: &StorageError) -> Step {
        let mut closing = false;
        if let Some(due) = self.due.take() {
            closing |= matches!(due.work, Exclusive::Close(_));
            due.work.fail(error.clone());
        }
        if let Some(flight) = self.flight.take() {
            flight.fail(error.clone());
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
        // redb makes pending commits durable when a database is dropped, perhaps before the log. Closing in order leaves
        // nothing pending; this is for an engine that is simply let go.
        if self.unsynced.commits > 0 || self.flight.is_some() {
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

fn decode(entry: LogEntry) -> Result<Decoded, DecodeError> {
    let LogEntry { log_id, payload } = entry;
    let mut bytes = 0;
    let content = match payload {
        Payload::Blank => Content::Blank,
        Payload::Membership(membership) => Content::Membership(membership),
        Payload::Proposal(encoded) => {
            bytes = encoded.len() as u64;
            Content::Proposal(decode_proposal(encoded)?)
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
        return Err(RowError::new(format!("entry {} does not follow {last}", entry.log_id)));
    }
    position.last_applied = Some(entry.log_id);
    if let Content::Membership(membership) = &entry.content {
        position.membership = StoredMembership { log_id: Some(entry.log_id), membership: membership.clone() };
    }
    Ok(())
}

fn past_rows(db: &Database, name: Naming) -> Result<PastRows, RowError> {
    Ok(PastRows::open(db.begin_read().map_err(disk)?, name))
}

fn not_applied(error: RowError) -> StorageError {
    StorageError::new(FILE, "apply", error)
}

mod flush;
mod install;
#[cfg(test)]
mod tests;
mod tidy;
