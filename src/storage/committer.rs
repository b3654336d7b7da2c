//! Makes what has been applied durable, beside the thread that goes on applying.
//!
//! To write some megabytes and to sync them takes as long as applying thousands of entries, and callers would wait for all of
//! it. So the state engine hands over what the database lacks, goes on, and is told when it is there.
//!
//! *The log first*: no commit begins before `log.wal` has synced everything that was enqueued when it was planned.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use redb::{Database, Durability, WriteTransaction};

use crate::command::RecordId;
use crate::error::StorageError;
use crate::format::state::{APPLIED, POSITION, live_table};
use crate::rt::watermark::Watermark;
use crate::rt::worker::{Engine, Knocker, Step, panic_message};
use crate::state_machine::RowError;
use crate::storage::live_rows::Leaving;
use crate::storage::poison::Poison;
use crate::storage::records::{self, Packer};
use crate::storage::state::{FILE, Op};
use crate::storage::state_rows::{TxnRows, definition, disk};

/// What the log must have synced before a commit begins; `None` if it was not behind.
pub(crate) type LogGate = Option<(Watermark, u64)>;

/// What the database lacks of the state as it was after one batch.
pub(crate) struct Lacking {
    pub(crate) written: Leaving,
    /// To be removed, ascending. All are in the database.
    pub(crate) removed: Vec<RecordId>,
    /// Encoded.
    pub(crate) position: Bytes,
}

impl Lacking {
    pub(crate) fn write(&self, txn: &WriteTransaction) -> Result<(), RowError> {
        let mut rows = TxnRows::new(txn, live_table);
        let table = rows.records()?;
        records::remove(table, &self.removed)?;
        let mut packer = Packer::default();
        self.written.recent.each_record(|id, record| packer.push(table, id, record))?;
        packer.finish(table)?;
        self.written.recent.each_row(|space, key, row| match row {
            Some(row) => rows.put(space.into(), key, row),
            None => rows.remove(space.into(), key),
        })?;
        self.written.answers.write(&mut rows)?;
        put_position(txn, APPLIED, &self.position)
    }
}

/// A commit for the engine to make.
pub(crate) struct Commit {
    db: Arc<Database>,
    lacking: Lacking,
    log: LogGate,
    poison: Poison,
    teller: Teller,
    /// The driver has been asked to wait for the log.
    waited: bool,
}

impl Commit {
    pub(crate) fn new(db: Arc<Database>, lacking: Lacking, log: LogGate, poison: Poison, teller: Teller) -> Self {
        Commit { db, lacking, log, poison, teller, waited: false }
    }

    fn carry_out(self) {
        let Commit { db, lacking, poison, mut teller, .. } = self;
        let outcome = match poison.check() {
            Ok(()) => {
                guarded(&poison, "checkpoint", || transact(Some(&db), Durability::Immediate, |txn| lacking.write(txn)))
            }
            Err(error) => Err(error),
        };
        // Whoever is told may close the database, and must be the only one who has it.
        drop((lacking, db));
        teller.tell(outcome);
    }
}

/// How a commit ended, for the one who waits for it.
#[derive(Clone, Default)]
pub(crate) struct Landing {
    outcome: Arc<OnceLock<Result<(), StorageError>>>,
    over: Watermark,
}

impl Landing {
    pub(crate) fn outcome(&self) -> Option<Result<(), StorageError>> {
        self.outcome.get().cloned()
    }

    /// The step that waits until it has ended.
    pub(crate) fn wait(&self) -> Step {
        Step::After(self.over.clone(), 1)
    }
}

/// Tells how a commit ended, be it that nobody makes it any more.
pub(crate) struct Teller {
    landing: Landing,
    knocker: Knocker<Op>,
}

impl Teller {
    pub(crate) fn new(landing: Landing, knocker: Knocker<Op>) -> Self {
        Teller { landing, knocker }
    }

    fn tell(&mut self, outcome: Result<(), StorageError>) {
        if self.landing.outcome.set(outcome).is_ok() {
            self.landing.over.advance(1);
            // An engine that has ended needs no telling.
            let _ = self.knocker.push(Op::Landed);
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.tell(Err(StorageError::new(FILE, "checkpoint", "it was given up")));
    }
}

/// Makes one commit after the other.
#[derive(Default)]
pub(crate) struct Committer {
    /// Waits for the log.
    held: Option<Commit>,
}

impl Engine for Committer {
    type Op = Commit;

    fn step(&mut self, queue: &mut VecDeque<Commit>) -> Step {
        let Some(mut commit) = self.held.take().or_else(|| queue.pop_front()) else { return Step::Idle };
        if let Some((mark, target)) = &commit.log
            && mark.get() < *target
        {
            if commit.waited {
                commit.teller.tell(Err(log_ended(&commit.poison)));
                return Step::Again;
            }
            let step = Step::After(mark.clone(), *target);
            commit.waited = true;
            self.held = Some(commit);
            return step;
        }
        commit.carry_out();
        if queue.is_empty() { Step::Idle } else { Step::Again }
    }

    fn panicked(&mut self, message: &str) {
        tracing::error!(message, "the state's committer panicked");
    }
}

/// The log was waited for, and has ended: it will never sync the rest.
pub(crate) fn log_ended(poison: &Poison) -> StorageError {
    poison.fail(StorageError::new(FILE, "checkpoint", "the log ended before it was synced"))
}

/// Runs `work`; an error or a panic in it poisons the node.
///
/// Consensus does not notice a panic on this side of it, and goes on promising; so a panic is treated as what it is, a
/// state that nobody can vouch for any more.
pub(crate) fn guarded<T>(
    poison: &Poison,
    what: &'static str,
    work: impl FnOnce() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    let outcome = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(StorageError::new(FILE, what, panic_message(&*panic))));
    outcome.map_err(|error| poison.fail(error))
}

/// Writes in one transaction of its own. Waits for the one that is under way.
pub(crate) fn transact<T>(
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

pub(crate) fn closed() -> RowError {
    RowError::new("it is closed")
}

pub(crate) fn put_position(txn: &WriteTransaction, name: &[u8], meta: &[u8]) -> Result<(), RowError> {
    txn.open_table(definition(POSITION)).map_err(disk)?.insert(name, meta).map_err(disk)?;
    Ok(())
}
