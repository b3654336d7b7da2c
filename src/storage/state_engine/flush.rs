//! How what was applied reaches the database: beside the state thread as a rule, on it where somebody waits for all of it.

use std::mem;
use std::sync::Arc;

use redb::{Durability, WriteTransaction};

use super::{CHECKPOINT_BYTES, CHECKPOINT_ENTRIES, Exclusive, StateEngine, Unsynced, not_applied, past_rows};
use crate::error::StorageError;
use crate::format::snapshot::encode_meta;
use crate::format::state::{SNAPSHOT, live_table};
use crate::rt::mutant;
use crate::state_machine::RowError;
use crate::storage::committer::{Commit, Lacking, Landing, LogGate, Teller, closed, put_position, transact};
use crate::storage::live_rows::{Leaving, LiveRows};
use crate::storage::recent::Recent;
use crate::storage::state::{Answer, FILE};
use crate::storage::view::View;
use crate::types::{LogId, Membership, NodeId};

/// A commit that is made beside this thread.
pub(super) struct Flight {
    pub(super) leaving: Leaving,
    /// Durable once it has landed.
    position: Option<LogId>,
    pub(super) landing: Landing,
    done: Option<Answer<()>>,
}

impl Flight {
    pub(super) fn fail(self, error: StorageError) {
        if let Some(done) = self.done {
            done(Err(error));
        }
    }
}

impl StateEngine {
    /// What the log must have synced before what was taken so far may become durable.
    ///
    /// What was enqueued to the log before a batch was handed to this engine has been enqueued by now.
    pub(super) fn log_gate(&self) -> LogGate {
        self.log.behind().filter(|_| !mutant("state_ahead_of_log"))
    }

    /// Whether the database lacks anything, or has something that is not durable.
    fn has_to_commit(&self) -> bool {
        self.unsynced.commits > 0 || self.held_back || !self.removed.is_empty()
    }

    pub(super) fn commit_if_due(&mut self) {
        let due = self.unsynced.is_too_much() || self.has_its_turn();
        if self.due.is_some() || !due || self.poison.error().is_some() {
            return;
        }
        if self.flight.is_none() {
            self.launch(None);
        } else if self.unsynced.is_times_too_much(2) {
            self.schedule(Exclusive::Checkpoint(None));
        }
    }

    /// Whether an entry behind the last commit's is one at which this member begins another. Not if bytes were what the last
    /// one was begun for: it would be one more, and the members are apart from the turn before.
    fn has_its_turn(&self) -> bool {
        let turn = turn(self.me, &self.position.membership.membership);
        let turns_before = |index: u64| (index + CHECKPOINT_ENTRIES - turn) / CHECKPOINT_ENTRIES;
        let end = self.position.last_applied.map_or(0, |last| last.index + 1);
        !self.unsynced.behind_bytes && turns_before(end) > turns_before(self.unsynced.from)
    }

    /// Has everything taken so far made durable. Only one commit is under way at a time.
    pub(super) fn launch(&mut self, done: Option<Answer<()>>) {
        debug_assert!(self.flight.is_none(), "two commits under way");
        if !self.has_to_commit() {
            return done.into_iter().for_each(|done| done(Ok(())));
        }
        let launched = self.guarded("checkpoint", |engine| {
            let db = engine.db.clone().ok_or_else(closed).map_err(not_applied)?;
            let log = engine.log_gate();
            let lacking = engine.seal()?;
            let (leaving, landing) = (lacking.written.clone(), Landing::default());
            let teller = Teller::new(landing.clone(), engine.knocker.clone());
            let commit = Commit::new(db, lacking, log, engine.poison.clone(), teller);
            // A committer that has ended drops it, and so tells.
            drop(engine.commits.push(commit));
            let behind_bytes = engine.unsynced.bytes >= CHECKPOINT_BYTES;
            engine.unsynced = Unsynced { behind_bytes, ..Unsynced::behind(engine.position.last_applied) };
            Ok((leaving, landing))
        });
        match launched {
            Ok((leaving, landing)) => {
                let position = self.position.last_applied;
                self.flight = Some(Flight { leaving, position, landing, done });
            }
            Err(error) => done.into_iter().for_each(|done| done(Err(error.clone()))),
        }
    }

    /// Takes note of the commit under way, if it has ended.
    pub(super) fn land(&mut self) {
        let Some(outcome) = self.flight.as_ref().and_then(|flight| flight.landing.outcome()) else { return };
        let flight = self.flight.take().expect("looked at above");
        let landed = self.guarded("checkpoint", |engine| {
            outcome?;
            engine.refresh()?;
            // Not said to be durable before it is.
            engine.shared.publish_durable(flight.position);
            Ok(())
        });
        if let Some(done) = flight.done {
            done(landed);
        }
        self.commit_if_due();
    }

    /// Begins a new layer; what there was so far is handed out.
    fn seal(&mut self) -> Result<Lacking, StorageError> {
        let mut rows = LiveRows::new(&self.past, None, &self.recent, &mut self.answers, 0);
        self.state.save(&mut rows).map_err(not_applied)?;
        self.recent.add(rows.batch);
        let next = Arc::new(Recent::new(self.state.revision()));
        let recent = mem::replace(&mut self.recent, next);
        let answers = Arc::new(mem::take(&mut self.answers));
        self.held_back = false;
        let (mut removed, position) = (mem::take(&mut self.removed), encode_meta(&self.position));
        // Of one sweep they are in order; another one may have begun behind it.
        removed.sort_unstable();
        Ok(Lacking { written: Leaving { recent, answers }, removed, position })
    }

    pub(super) fn build(&mut self) -> Result<Arc<View>, StorageError> {
        let meta = self.position.clone();
        let snapshot = encode_meta(&meta);
        let durability = if mutant("purge_past_durable") { Durability::None } else { Durability::Immediate };
        self.commit(durability, |txn| put_position(txn, SNAPSHOT, &snapshot))?;
        self.shared.publish_snapshot(meta);
        Ok(self.shared.view())
    }

    /// Publishes a view whose rows are complete in the database, for a snapshot to be read from.
    pub(super) fn whole(&mut self) -> Result<Arc<View>, StorageError> {
        if self.held_back || !self.removed.is_empty() {
            self.commit(Durability::None, |_| Ok(()))?;
        }
        Ok(self.shared.view())
    }

    pub(super) fn close(&mut self) -> Result<(), StorageError> {
        if self.has_to_commit() {
            self.commit(Durability::Immediate, |_| Ok(()))?;
        }
        self.alarm.disarm();
        // Nothing is pending that redb could make durable by itself: what it adds is the mark of a clean end.
        let db = self.db.take().expect("an engine that was closed is not called again");
        let db = Arc::into_inner(db).expect("no commit is under way");
        db.close().map_err(|error| StorageError::new(FILE, "close", error))
    }

    /// Commits on this thread what the database lacks, and what `write` adds.
    fn commit(
        &mut self,
        durability: Durability,
        write: impl FnOnce(&WriteTransaction) -> Result<(), RowError>,
    ) -> Result<(), StorageError> {
        let lacking = self.seal()?;
        transact(self.db.as_deref(), durability, |txn| {
            lacking.write(txn)?;
            write(txn)
        })?;
        match durability {
            Durability::Immediate => self.synced(),
            _ => self.unsynced.add(0, 0),
        }
        self.refresh()
    }

    /// The position is durable, and not said to be before it is.
    pub(super) fn synced(&mut self) {
        self.unsynced = Unsynced::behind(self.position.last_applied);
        self.shared.publish_durable(self.position.last_applied);
    }

    /// Lets go of the database's earlier pages: from here on it is read as it is now.
    pub(super) fn refresh(&mut self) -> Result<(), StorageError> {
        let past = self.db.as_ref().ok_or_else(closed).and_then(|db| past_rows(db, live_table));
        self.past = Arc::new(past.map_err(|error| StorageError::new(FILE, "read", error))?);
        self.publish();
        Ok(())
    }
}

/// At which of [`CHECKPOINT_ENTRIES`] entries a member begins its commits: voters share them out by the order of their ids.
fn turn(me: NodeId, membership: &Membership) -> u64 {
    let Some(voters) = membership.configs.last() else { return 0 };
    let place = voters.iter().position(|voter| *voter == me).unwrap_or(0);
    CHECKPOINT_ENTRIES * place as u64 / voters.len().max(1) as u64
}

impl Exclusive {
    pub(super) fn fail(self, error: StorageError) {
        match self {
            Exclusive::Checkpoint(done) => done.into_iter().for_each(|done| done(Err(error.clone()))),
            Exclusive::Close(done) => done(Err(error)),
            Exclusive::Build(done) | Exclusive::Whole(done) => done(Err(error)),
            Exclusive::Install(_, done) => done(Err(error.into())),
        }
    }
}
