//! The replicated state on disk, as the rest of the node sees it: a cheap handle on the state engine.
//!
//! Operations are queued and answered through callbacks; what has been applied is read without asking anybody, from the
//! [`View`] published last. Promised, in this order for every batch of entries: they are applied, then a view that shows them
//! is published, then their answers are given.
//!
//! The queue has no limit of its own. Its callers bound it: consensus has one batch under way, a snapshot arrives chunk by
//! chunk, each sent when the one before was answered.
//!
//! A callback that is dropped means "failed": the engine has ended.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use bytes::Bytes;

use crate::command::{Effects, Response};
use crate::error::StorageError;
use crate::format::snapshot::SnapshotMeta;
use crate::rt::worker::{Drive, Driver, Mailbox, drive_from};
use crate::storage::milestones::Milestones;
use crate::storage::snapshot::{SnapshotRefused, StageId};
use crate::storage::state_engine::StateEngine;
use crate::storage::view::View;
use crate::types::{Account, LogEntry, LogId};

/// What becomes of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) log_id: LogId,
    /// `None` for an entry that carries no command.
    pub(crate) response: Option<Response>,
    pub(crate) effects: Effects,
}

/// How an install ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Installed {
    /// The state is the snapshot's, durably.
    Replaced,
    /// The state was already at `applied`, past the snapshot; the snapshot was dropped.
    Older { applied: LogId },
}

/// Why an operation on an arriving snapshot failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum StageError {
    /// The snapshot's fault. The node goes on.
    #[error(transparent)]
    Refused(#[from] SnapshotRefused),
    /// The disk's. The node has stopped.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

pub(crate) type Answer<T, E = StorageError> = Box<dyn FnOnce(Result<T, E>) + Send>;

/// Most entries that are applied on the thread that brings them: some hundred microseconds, not much more than waking
/// another thread and being woken by it costs.
const APPLY_HERE_MAX: usize = 64;

/// A cheap handle; clones share one engine.
#[derive(Clone)]
pub(crate) struct StateStore {
    mailbox: Mailbox<Op>,
    shared: Arc<Shared>,
}

impl StateStore {
    pub(crate) fn new(mailbox: Mailbox<Op>, shared: Arc<Shared>) -> Self {
        StateStore { mailbox, shared }
    }

    /// Starts the engine that was opened with this handle; call once.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub(crate) fn start(&self, engine: StateEngine, how: Drive) -> io::Result<Driver> {
        engine.start_committer(how.clone())?;
        let driver = drive_from(&self.mailbox, "quorate-state", how, engine)?;
        // An engine begins when something arrives: what an earlier run left behind is tidied up without waiting for that.
        self.tick(Duration::ZERO);
        Ok(driver)
    }

    /// Applies committed entries, which continue where the last ones ended, all of them or (when the node stops) none.
    ///
    /// A few entries are applied on the caller's thread if the engine has nothing else to do: `done` may be called before
    /// this returns.
    pub(crate) fn apply(&self, entries: Vec<LogEntry>, done: Answer<Vec<Applied>>) {
        let few = entries.len() <= APPLY_HERE_MAX;
        let op = Op::Apply { entries, done };
        if let Err(op) = if few { self.mailbox.push_and_step(op) } else { self.mailbox.push(op) } {
            op.fail(ended());
        }
    }

    /// Makes everything applied so far durable.
    pub(crate) fn checkpoint(&self, done: Answer<()>) {
        self.push(Op::Checkpoint { done });
    }

    /// The store as of the last applied batch.
    pub(crate) fn view(&self) -> Arc<View> {
        self.shared.view()
    }

    /// Position and membership as of the last applied batch.
    pub(crate) fn applied(&self) -> SnapshotMeta {
        self.view().meta()
    }

    /// The last position that a loss of power cannot take back. The log may be purged up to here.
    pub(crate) fn durable_applied(&self) -> Option<LogId> {
        *self.shared.durable.lock().expect("no holder of the lock panics")
    }

    /// What the state was behind fixed entries of the log, as far as they were applied in this run; the newest
    /// [`MILESTONES_MAX`](crate::storage::milestones::MILESTONES_MAX), oldest first.
    pub(crate) fn account(&self) -> Account {
        self.shared.milestones.account()
    }

    /// See [`Milestones::falsify`].
    #[cfg(test)]
    pub(crate) fn falsify_milestone(&self) {
        self.shared.milestones.falsify();
    }

    /// Room on the disk, as of the last [`StateStore::tick`], in bytes; `None` where nobody knows.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        Some(self.shared.free_bytes.load(Ordering::Relaxed)).filter(|free| *free != UNKNOWN)
    }

    /// Tells the time, on any clock that does not go back: views that nobody should hold any more are aged by it. And has
    /// the engine look how much room the disk has.
    ///
    /// Once a second is often enough: a view is honoured for [`VIEW_AGE_MAX`](crate::storage::view::VIEW_AGE_MAX) and up to
    /// one such period longer. Without it, views are honoured for ever.
    pub(crate) fn tick(&self, now: Duration) {
        self.push(Op::Tick { now });
    }

    /// Makes everything applied so far durable, and remembers that position as the current snapshot. The answer shows it
    /// and can be read in chunks.
    pub(crate) fn build_snapshot(&self, done: Answer<Arc<View>>) {
        self.push(Op::Build { done });
    }

    /// The present state, to be read in chunks ([`View::read_snapshot`]). What has been overwritten meanwhile stays on disk
    /// for as long as somebody reads it.
    pub(crate) fn whole(&self, done: Answer<Arc<View>>) {
        self.push(Op::Whole { done });
    }

    /// The snapshot last built or installed.
    ///
    /// Its rows are not kept: [`StateStore::whole`] shows the present, which is never older.
    pub(crate) fn current_snapshot(&self) -> Option<SnapshotMeta> {
        self.shared.snapshot.lock().expect("no holder of the lock panics").clone()
    }

    /// Prepares for the chunks of a snapshot. One that was being received is given up.
    pub(crate) fn stage_begin(&self, meta: SnapshotMeta, done: Answer<StageId>) {
        self.push(Op::StageBegin { meta, done });
    }

    /// Takes chunk `index`, counted from 0. A chunk that was taken before changes nothing; answers which one is next.
    pub(crate) fn stage_chunk(&self, stage: StageId, index: u64, bytes: Bytes, done: Answer<u64, StageError>) {
        self.push(Op::StageChunk { stage, index, bytes, done });
    }

    /// Checks that all chunks have come and are what the sender read.
    pub(crate) fn stage_finish(&self, stage: StageId, done: Answer<(), StageError>) {
        self.push(Op::StageFinish { stage, done });
    }

    /// Puts the snapshot in the place of the state, unless the state is already past it.
    pub(crate) fn install(&self, stage: StageId, done: Answer<Installed, StageError>) {
        self.push(Op::Install { stage, done });
    }

    /// Makes everything applied durable, closes the file, ends the engine.
    pub(crate) fn close(&self, done: Answer<()>) {
        self.push(Op::Close { done });
    }

    fn push(&self, op: Op) {
        if let Err(op) = self.mailbox.push(op) {
            op.fail(ended());
        }
    }
}

fn ended() -> StorageError {
    StorageError::new(FILE, "state engine", "it has ended")
}

impl fmt::Debug for StateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateStore").field("applied", &self.view().applied).finish_non_exhaustive()
    }
}

/// How the file is called in errors.
pub(crate) const FILE: &str = "state.redb";

/// Stands for a number of bytes that nobody knows.
const UNKNOWN: u64 = u64::MAX;

/// What the engine publishes.
pub(crate) struct Shared {
    /// Locked for as long as it takes to clone or replace the pointer.
    view: RwLock<Arc<View>>,
    durable: Mutex<Option<LogId>>,
    snapshot: Mutex<Option<SnapshotMeta>>,
    pub(super) milestones: Milestones,
    /// Or [`UNKNOWN`]. Looked at with every write that makes the state larger.
    free_bytes: AtomicU64,
}

impl Shared {
    pub(crate) fn new(view: Arc<View>, durable: Option<LogId>, snapshot: Option<SnapshotMeta>) -> Self {
        Shared {
            view: RwLock::new(view),
            durable: Mutex::new(durable),
            snapshot: Mutex::new(snapshot),
            milestones: Milestones::new(durable),
            free_bytes: AtomicU64::new(UNKNOWN),
        }
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.view.read().expect("no holder of the lock panics").clone()
    }

    pub(crate) fn publish_view(&self, view: Arc<View>) {
        *self.view.write().expect("no holder of the lock panics") = view;
    }

    pub(crate) fn publish_durable(&self, applied: Option<LogId>) {
        *self.durable.lock().expect("no holder of the lock panics") = applied;
    }

    pub(crate) fn publish_free_bytes(&self, free: Option<u64>) {
        self.free_bytes.store(free.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    pub(crate) fn publish_snapshot(&self, meta: SnapshotMeta) {
        *self.snapshot.lock().expect("no holder of the lock panics") = Some(meta);
    }
}

/// What the engine is asked to do.
pub(crate) enum Op {
    Apply {
        entries: Vec<LogEntry>,
        done: Answer<Vec<Applied>>,
    },
    Checkpoint {
        done: Answer<()>,
    },
    Tick {
        now: Duration,
    },
    Build {
        done: Answer<Arc<View>>,
    },
    Whole {
        done: Answer<Arc<View>>,
    },
    StageBegin {
        meta: SnapshotMeta,
        done: Answer<StageId>,
    },
    StageChunk {
        stage: StageId,
        index: u64,
        bytes: Bytes,
        done: Answer<u64, StageError>,
    },
    StageFinish {
        stage: StageId,
        done: Answer<(), StageError>,
    },
    Install {
        stage: StageId,
        done: Answer<Installed, StageError>,
    },
    Close {
        done: Answer<()>,
    },
    /// A commit that was under way has ended.
    Landed,
}

impl Op {
    pub(crate) fn fail(self, error: StorageError) {
        match self {
            Op::Apply { done, .. } => done(Err(error)),
            Op::Checkpoint { done } | Op::Close { done } => done(Err(error)),
            Op::Tick { .. } | Op::Landed => {}
            Op::Build { done } | Op::Whole { done } => done(Err(error)),
            Op::StageBegin { done, .. } => done(Err(error)),
            Op::StageChunk { done, .. } => done(Err(error.into())),
            Op::StageFinish { done, .. } => done(Err(error.into())),
            Op::Install { done, .. } => done(Err(error.into())),
        }
    }
}
