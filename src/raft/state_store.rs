//! The state engine as the consensus library wants to see it.

use std::io;
use std::sync::Arc;

use futures::channel::oneshot;
use futures::{Stream, StreamExt};
use openraft::RaftSnapshotBuilder;
use openraft::storage::{EntryResponder, RaftStateMachine};

use super::types::{Config, FromRaft, OLogId, OSnapshotMeta, OStoredMembership, Reply, ToRaft};
use crate::format::snapshot::SnapshotMeta;
use crate::storage::log::Log;
use crate::storage::snapshot::{SnapshotReader, StageId};
use crate::storage::state::{Applied, StateStore};

/// Entries handed to the state engine at once; a longer run (a node catching up) is cut.
const APPLY_ENTRIES_MAX: usize = 4096;

/// What the rest of the node does with each applied batch: tell watchers, leases, waiting readers.
///
/// Called after the batch is committed and its view published, before anyone is answered.
pub(crate) type Observer = Arc<dyn Fn(&mut [Applied]) + Send + Sync>;

/// A snapshot on its way out or in.
pub(crate) enum SnapshotData {
    /// Of this node, read from one transaction.
    Local(Box<SnapshotReader>),
    /// Received whole and verified, staged beside the live tables.
    Staged(StageId),
}

type Snapshot = openraft::alias::SnapshotOf<Config, SnapshotData>;

#[derive(Clone)]
pub(crate) struct StateMachine {
    state: StateStore,
    log: Log,
    observer: Observer,
    /// Locked by whatever changes the state, to its end; true once this machine's core is gone.
    retired: Arc<tokio::sync::Mutex<bool>>,
}

impl StateMachine {
    pub(crate) fn new(state: StateStore, log: Log, observer: Observer) -> Self {
        StateMachine { state, log, observer, retired: Arc::default() }
    }

    /// Waits for the change under way, and refuses all later ones.
    ///
    /// The library's worker outlives a core that panicked and works off what that has left: entries that the next core
    /// will apply too, since it starts from the position as it is now.
    pub(crate) async fn retire(&self) {
        *self.retired.lock().await = true;
    }

    async fn in_office(&self) -> Result<tokio::sync::MutexGuard<'_, bool>, io::Error> {
        let retired = self.retired.lock().await;
        if *retired { Err(io::Error::other("the core that asked for this is gone")) } else { Ok(retired) }
    }

    async fn apply_batch(&self, batch: Vec<EntryResponder<Config>>) -> Result<(), io::Error> {
        let Some((last, _)) = batch.last() else { return Ok(()) };
        let last = last.log_id.index;
        let _in_office = self.in_office().await?;
        let entries = batch.iter().map(|(entry, _)| entry.to_plain()).collect();
        let mut applied = wait(|done| self.state.apply(entries, done)).await?;
        // The engine has committed and published: now watchers, then those who asked.
        (self.observer)(&mut applied);
        self.log.applied(last);
        for ((_, responder), applied) in batch.into_iter().zip(applied) {
            if let Some(responder) = responder {
                responder.send(Reply(applied.response));
            }
        }
        Ok(())
    }
}

impl StateMachine {
    /// Takes in a snapshot that is read in this process.
    async fn stage(&self, mut reader: SnapshotReader) -> Result<StageId, io::Error> {
        let stage = wait(|done| self.state.stage_begin(reader.meta().clone(), done)).await?;
        let mut index = 0;
        while let Some(chunk) = reader.next_chunk()? {
            wait(|done| self.state.stage_chunk(stage, index, chunk, done)).await?;
            index += 1;
        }
        wait(|done| self.state.stage_finish(stage, done)).await?;
        Ok(stage)
    }
}

/// Runs one engine operation and waits for its callback; a dropped callback is a stopped engine.
async fn wait<T: Send + 'static, E: std::error::Error + Send + Sync + 'static>(
    start: impl FnOnce(Box<dyn FnOnce(Result<T, E>) + Send>),
) -> Result<T, io::Error> {
    let (done, result) = oneshot::channel();
    start(Box::new(move |result| drop(done.send(result))));
    result.await.map_err(|_| io::Error::other("the state engine has stopped"))?.map_err(io::Error::other)
}

impl RaftStateMachine<Config> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<OLogId>, OStoredMembership), io::Error> {
        let SnapshotMeta { last_applied, membership } = self.state.applied();
        Ok((last_applied.map(|id| id.to_raft()), membership.to_raft()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Config>, io::Error>> + Unpin + Send,
    {
        let mut batch = Vec::new();
        while let Some(entry) = entries.next().await {
            batch.push(entry?);
            if batch.len() == APPLY_ENTRIES_MAX {
                self.apply_batch(std::mem::take(&mut batch)).await?;
            }
        }
        self.apply_batch(batch).await
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, _meta: &OSnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let stage = match snapshot {
            SnapshotData::Staged(stage) => stage,
            SnapshotData::Local(reader) => self.stage(*reader).await?,
        };
        let _in_office = self.in_office().await?;
        wait(|done| self.state.install(stage, done)).await?;
        // Watchers cannot be told the changes one by one; an empty batch makes them look at the published revision.
        (self.observer)(&mut []);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        // The present state, read in one transaction, stands for any older snapshot; before the first one was taken there
        // is none, as the library expects of a new node.
        if self.state.current_snapshot().is_none() {
            return Ok(None);
        }
        let reader = wait(|done| self.state.whole(done)).await?.read_snapshot()?;
        let meta = snapshot_meta(reader.meta());
        Ok(Some(Snapshot { meta, snapshot: SnapshotData::Local(Box::new(reader)) }))
    }
}

impl RaftSnapshotBuilder<Config> for StateMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        // The library purges the log on the strength of this answer, so it is given only after a durable checkpoint.
        let view = wait(|done| self.state.build_snapshot(done)).await?;
        tracing::debug!(applied = ?view.applied, "snapshot taken");
        let reader = view.read_snapshot()?;
        Ok(Snapshot { meta: snapshot_meta(reader.meta()), snapshot: SnapshotData::Local(Box::new(reader)) })
    }
}

fn snapshot_meta(meta: &SnapshotMeta) -> OSnapshotMeta {
    OSnapshotMeta { last_log_id: meta.last_applied.map(|id| id.to_raft()), last_membership: meta.membership.to_raft() }
}
