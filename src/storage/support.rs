//! What the tests of the state engine share: a node's two engines on one thread, a history to apply, and what a pure
//! replay of it comes to.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::disk::Disk;
use super::log::Log;
use super::poison::Poison;
use super::snapshot::StageId;
use super::state::{Answer, Applied, FILE, Installed, StageError, StateStore};
use super::state_engine::{self, StateEngine};
use super::tests::SMALL_SEGMENT_BYTES;
use super::view::View;
use crate::command::{Attach, Command, KeyRange, Op, Proposal, Stamp, Txn};
use crate::error::{StartError, StorageError};
use crate::format::command::encode_proposal;
use crate::format::snapshot::{Chunk, ChunkWriter, Part, SnapshotMeta, Summary, encode_meta};
use crate::format::state::record_key;
use crate::rt::worker::{Drive, Driver};
use crate::state_machine::memory::MemRows;
use crate::state_machine::{Counters, RowSpace, RowsScan, State};
use crate::types::{
    ClientId, LeaderId, LeaseId, LogEntry, LogId, Membership, NodeId, NodeInfo, Payload, Revision, StoredMembership,
};

/// Runs `test` on one thread under a clock that only moves when everything waits for it.
pub(crate) fn run<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test)
}

/// Lets every task go on until all of them wait.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Lets the state engine find that nothing has come for a while, and sweep.
pub(crate) async fn quiet(store: &StateStore) {
    store.tick(Duration::ZERO);
    store.tick(Duration::ZERO);
    settle().await;
}

/// Asks with a callback and waits for it. A callback that is dropped is an error, as it is to be.
pub(crate) fn ask<T: Send + 'static, E: From<StorageError> + Send + 'static>(
    ask: impl FnOnce(Answer<T, E>),
) -> impl Future<Output = Result<T, E>> {
    let (tell, told) = oneshot::channel();
    ask(Box::new(move |answer| drop(tell.send(answer))));
    async { told.await.unwrap_or_else(|_| Err(StorageError::new(FILE, "test", "the callback was dropped").into())) }
}

/// Both engines of one node, running on the current runtime.
pub(crate) struct Node {
    pub(crate) log: Log,
    pub(crate) store: StateStore,
    pub(crate) poison: Poison,
    /// Whether the log had to be cleared because it did not hold what was applied.
    pub(crate) repaired: bool,
    drivers: [Driver; 2],
}

impl Node {
    pub(crate) fn open(disk: Arc<dyn Disk>) -> Result<Node, StartError> {
        Node::open_with(disk, Drive::Inline)
    }

    /// As [`Node::open`], with the log's engine driven in its own way.
    pub(crate) fn open_with(disk: Arc<dyn Disk>, log_drive: Drive) -> Result<Node, StartError> {
        let Parts { log, mut log_engine, store, engine, poison } = Parts::open(disk)?;
        let applied = store.applied().last_applied;
        let io = |error: StorageError| StartError::Io { path: FILE.into(), source: error.into() };
        let repaired = applied.map_or(Ok(false), |at| log_engine.repair_to_applied(at)).map_err(io)?;
        let drivers = [log.start(log_engine, log_drive).unwrap(), store.start(engine, Drive::Inline).unwrap()];
        Ok(Node { log, store, poison, repaired, drivers })
    }

    pub(crate) async fn append(&self, entries: &[LogEntry]) -> Result<(), StorageError> {
        ask(|done| self.log.append(entries.to_vec(), done)).await
    }

    pub(crate) async fn apply(&self, entries: &[LogEntry]) -> Result<Vec<Applied>, StorageError> {
        ask(|done| self.store.apply(entries.to_vec(), done)).await
    }

    /// The present state, complete.
    pub(crate) async fn whole(&self) -> Arc<View> {
        ask(|done| self.store.whole(done)).await.expect("the state engine runs")
    }

    pub(crate) async fn checkpoint(&self) -> Result<(), StorageError> {
        ask(|done| self.store.checkpoint(done)).await
    }

    /// Brings a snapshot in, up to the point where it could be installed.
    pub(crate) async fn stage(&self, meta: SnapshotMeta, chunks: &[Bytes]) -> Result<StageId, StageError> {
        let stage = ask(|done| self.store.stage_begin(meta, done)).await?;
        for (index, chunk) in (0..).zip(chunks) {
            ask(|done| self.store.stage_chunk(stage, index, chunk.clone(), done)).await?;
        }
        ask(|done| self.store.stage_finish(stage, done)).await?;
        Ok(stage)
    }

    pub(crate) async fn install(&self, meta: SnapshotMeta, chunks: &[Bytes]) -> Result<Installed, StageError> {
        let stage = self.stage(meta, chunks).await?;
        ask(|done| self.store.install(stage, done)).await
    }

    pub(crate) async fn close(&self) -> Result<(), StorageError> {
        // The state first: its last durable commit waits for the log.
        ask(|done| self.store.close(done)).await?;
        ask(|done| self.log.close(done)).await?;
        for driver in &self.drivers {
            driver.join().await;
        }
        Ok(())
    }
}

/// A node that nobody drives.
pub(crate) struct Parts {
    pub(crate) log: Log,
    pub(crate) log_engine: super::log_engine::LogEngine,
    pub(crate) store: StateStore,
    pub(crate) engine: StateEngine,
    pub(crate) poison: Poison,
}

impl Parts {
    pub(crate) fn open(disk: Arc<dyn Disk>) -> Result<Parts, StartError> {
        let opened = super::open_sized(disk.clone(), "a", SMALL_SEGMENT_BYTES, || (NodeId::new(1), 1))?;
        let super::Opened { identity, log, log_engine, state_db, poison } = opened;
        let (store, engine) = state_engine::open(state_db, identity.node, log.clone(), poison.clone(), &disk)?;
        Ok(Parts { log, log_engine, store, engine, poison })
    }
}

/// The position `index` of the leader of `term`.
pub(crate) fn at(term: u64, index: u64) -> LogId {
    LogId { leader: LeaderId { term, node: NodeId::new(1) }, index }
}

pub(crate) fn entry(term: u64, index: u64, command: Command) -> LogEntry {
    stamped(term, index, None, command)
}

pub(crate) fn stamped(term: u64, index: u64, stamp: Option<Stamp>, command: Command) -> LogEntry {
    let proposal = Proposal { origin: NodeId::new(1), wall_ms: 1000 + index, stamp, command };
    LogEntry { log_id: at(term, index), payload: Payload::Proposal(encode_proposal(&proposal)) }
}

pub(crate) fn put(key: &str, value: &str) -> Command {
    put_on(key, value, Attach::Forever)
}

pub(crate) fn put_on(key: &str, value: &str, lease: Attach) -> Command {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    Command::Txn(Txn { then: [Op::Put { key, value, lease, prev: true }].into(), ..Txn::default() })
}

pub(crate) fn delete(key: &str) -> Command {
    let keys = KeyRange::single(Bytes::copy_from_slice(key.as_bytes()));
    Command::Txn(Txn { then: [Op::Delete { keys, prev: true }].into(), ..Txn::default() })
}

pub(crate) fn compact(floor: u64) -> Command {
    Command::Compact { floor: Revision::new(floor) }
}

pub(crate) fn everything() -> KeyRange {
    KeyRange::prefix(Bytes::new())
}

pub(crate) fn membership() -> Membership {
    let nodes = [(1, "a"), (2, "b"), (3, "c")]
        .map(|(id, name)| (NodeId::new(id), NodeInfo { name: name.into(), address: format!("{name}:1") }));
    let configs = vec![nodes.iter().map(|(id, _)| *id).collect::<BTreeSet<_>>()];
    Membership { configs, nodes: BTreeMap::from(nodes) }
}

/// The key that a history's entry writes most often: overwritten, deleted and made again.
pub(crate) const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// `count` committed entries that use everything a state has: overwritten and deleted keys, leases, client records and
/// their answers, doubles, a floor that follows. Those from `second_term` on are of term 2, the others of term 1.
pub(crate) fn history(count: u64, second_term: u64) -> Vec<LogEntry> {
    let client = Stamp { client: ClientId::new(1), seq: 0, low: 0 };
    (0..count)
        .map(|i| {
            let term = if i < second_term { 1 } else { 2 };
            let key = KEYS[(i * 7 % 5) as usize];
            let value = format!("{i}-{}", "x".repeat(if i % 11 == 0 { 3000 } else { 40 }));
            match i {
                0 => LogEntry { log_id: at(term, 0), payload: Payload::Membership(membership()) },
                1 => LogEntry { log_id: at(term, 1), payload: Payload::Blank },
                2 => entry(term, i, Command::ClientOpen { ttl_ms: 10_000 }),
                3 => entry(term, i, Command::LeaseGrant { ttl_ms: 5_000 }),
                _ => match i % 8 {
                    0 => entry(term, i, compact(i / 2)),
                    1 => entry(term, i, delete(key)),
                    // Every second one repeats the number before it.
                    2 | 3 => stamped(
                        term,
                        i,
                        Some(Stamp { seq: i / 2, low: (i / 2).saturating_sub(4), ..client }),
                        put(key, &value),
                    ),
                    4 if i < 40 => entry(term, i, put_on(key, &value, Attach::Lease(LeaseId::new(2)))),
                    4 if i == 44 => entry(term, i, Command::LeaseRevoke { lease: LeaseId::new(2) }),
                    _ => entry(term, i, put(key, &value)),
                },
            }
        })
        .collect()
}

/// What the state is after one entry of a history.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Moment {
    pub(crate) counters: Counters,
    /// Over every reachable row, the position and the membership.
    pub(crate) summary: Summary,
}

/// The moments after each entry, from a state machine over maps that is never sent, swept or stopped on the way.
pub(crate) fn replay(entries: &[LogEntry]) -> Vec<Moment> {
    let mut rows = MemRows::default();
    let mut state = State::load(&rows).unwrap();
    let mut meta = SnapshotMeta::default();
    let mut moments = Vec::new();
    for entry in entries {
        match &entry.payload {
            Payload::Blank => {}
            Payload::Membership(membership) => {
                meta.membership = StoredMembership { log_id: Some(entry.log_id), membership: membership.clone() };
            }
            Payload::Proposal(bytes) => {
                let proposal = crate::format::command::decode_proposal(bytes.clone()).unwrap();
                state.apply(&mut rows, entry.log_id, &proposal).unwrap();
            }
        }
        meta.last_applied = Some(entry.log_id);
        state.save(&mut rows).unwrap();
        moments.push(Moment { counters: state.counters(), summary: summary_of(&rows, &meta) });
    }
    moments
}

fn summary_of(rows: &MemRows, meta: &SnapshotMeta) -> Summary {
    let mut rows = rows.clone();
    let mut state = State::load(&rows).unwrap();
    while state.sweep(&mut rows, Revision::new(u64::MAX), 1000).unwrap() {}
    let mut writer = ChunkWriter::new(&encode_meta(meta));
    rows.records.iter().for_each(|(id, record)| writer.push(Part::Records, &record_key(*id), record));
    for (part, space) in [
        (Part::Meta, RowSpace::Meta),
        (Part::Lease, RowSpace::Lease),
        (Part::Client, RowSpace::Client),
        (Part::Answer, RowSpace::Answer),
    ] {
        rows.each_row(space, &mut |key, row| {
            writer.push(part, key, &row);
            Ok(())
        })
        .unwrap();
    }
    Chunk::decode(writer.seal(true)).unwrap().summary.unwrap()
}

/// All chunks of the view's moment.
pub(crate) fn chunks(view: &View) -> Result<Vec<Bytes>, StorageError> {
    let mut reader = view.read_snapshot()?;
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk()? {
        chunks.push(chunk);
    }
    Ok(chunks)
}

/// What the view shows, in the terms of a replay.
pub(crate) fn moment(view: &View) -> Result<Moment, StorageError> {
    let chunks = chunks(view)?;
    let last = Chunk::decode(chunks.last().expect("there is always a last chunk").clone()).expect("just written");
    Ok(Moment { counters: view.counters, summary: last.summary.expect("the last chunk has the summary") })
}
