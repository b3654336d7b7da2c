//! The only code that names the consensus library.
//!
//! Above this floor there are proposals, answers, indexes and plain types. What the library is told, and why, stands in
//! `config.rs`; what it asks of us is implemented in `log_store.rs`, `state_store.rs` and `network.rs`.

mod config;
mod heard;
mod log_store;
mod network;
mod order;
mod state_store;
mod status;
mod types;

#[cfg(test)]
mod conformance;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use openraft::errors::{ClientWriteError, InitializeError, LinearizableReadError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use openraft::{ReadPolicy, async_runtime::WatchReceiver};

use self::heard::Heard;
use self::log_store::LogStore;
use self::network::Factory;
use self::order::Order;
pub(crate) use self::state_store::Observer;
use self::state_store::{SnapshotData, StateMachine};
pub(crate) use self::status::RaftStatus;
use self::status::follow_status;
use self::types::{Config, Encoded, FromRaft, OSnapshotMeta, ToRaft};
use crate::command::Response;
use crate::config::{Retention, Timing};
use crate::format::message::{AppendReply, Reply, Request};
use crate::format::snapshot::SnapshotMeta;
use crate::rt;
use crate::storage::log::Log;
use crate::storage::snapshot::StageId;
use crate::storage::state::StateStore;
use crate::transport::link::Link;
use crate::types::{LogEntry, LogId, NodeId, NodeInfo, Vote};

type Library = openraft::Raft<Config, StateMachine>;

/// Received snapshots that may be under way at a time: one. A newer transfer replaces an older one.
const RECEIVING_MAX: usize = 1;

/// Why the library did not take something.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RaftFailure {
    /// Somebody else leads, or nobody does. Nothing was done.
    #[error("this node does not lead")]
    NotLeader(Option<NodeId>),
    /// The entry was appended here and taken away again; it may yet be committed by another leader.
    #[error("the entry was discarded by a change of leader")]
    Discarded,
    /// The leader could not confirm that it still leads.
    #[error("no quorum confirmed the leader")]
    NoQuorum,
    /// The library has stopped: shut down, panicked, or the disk failed.
    #[error("{0}")]
    Stopped(String),
}

/// One member's consensus module.
#[derive(Clone)]
pub(crate) struct Raft {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    raft: Library,
    machine: StateMachine,
    state: StateStore,
    log: Log,
    link: Link,
    order: Order,
    heard: Arc<Heard>,
    muted: Arc<AtomicBool>,
    receiving: std::sync::Mutex<Option<Receiving>>,
    /// The session whose snapshot was installed last, and the answer to that; locked while one is being installed.
    installed: tokio::sync::Mutex<Option<(u64, Vote)>>,
    status: rt::watch::Receiver<RaftStatus>,
    follow: rt::Task<()>,
}

/// A snapshot that is coming in.
#[derive(Clone)]
struct Receiving {
    session: u64,
    stage: StageId,
    meta: SnapshotMeta,
}

/// Everything the module stands on.
pub(crate) struct Parts<'a> {
    pub(crate) me: NodeId,
    pub(crate) cluster_name: &'a str,
    pub(crate) timing: &'a Timing,
    pub(crate) retention: Retention,
    pub(crate) log: Log,
    pub(crate) state: StateStore,
    pub(crate) link: Link,
    pub(crate) observer: Observer,
}

impl Raft {
    /// Starts the module on the current runtime, at whatever log and state the engines hold.
    pub(crate) async fn start(parts: Parts<'_>) -> Result<Self, RaftFailure> {
        let Parts { me, cluster_name, timing, retention, log, state, link, observer } = parts;
        let config = config::config(cluster_name, timing, retention).validate().map_err(stopped)?;
        let muted = Arc::new(AtomicBool::new(false));
        // Far from where the numbers end, and never that of frames that stand alone.
        let first = (rt::random_u64() >> 1).max(order::ALONE + 1);
        let streams = Arc::new(AtomicU64::new(first));
        let factory = Factory { link: link.clone(), streams, muted: muted.clone(), acked: Arc::default() };
        let machine = StateMachine::new(state.clone(), log.clone(), observer);
        let raft = Library::new(me.get(), Arc::new(config), factory, LogStore::new(log.clone()), machine.clone())
            .await
            .map_err(|fatal| stopped(&fatal))?;
        let (sender, status) = rt::watch::channel(RaftStatus::default());
        let heard = Arc::new(Heard::new(timing.election_max));
        let follow = rt::spawn("raft-status", follow_status(me, raft.clone(), heard.clone(), sender));
        Ok(Raft {
            inner: Arc::new(Inner {
                me,
                raft,
                machine,
                state,
                log,
                link,
                order: Order::default(),
                heard,
                muted,
                receiving: std::sync::Mutex::new(None),
                installed: tokio::sync::Mutex::new(None),
                status,
                follow,
            }),
        })
    }

    /// The first entry of a new cluster: its members. Harmless when the log already has one.
    pub(crate) async fn initialize(&self, members: BTreeMap<NodeId, NodeInfo>) -> Result<(), RaftFailure> {
        let members: BTreeMap<u64, NodeInfo> = members.into_iter().map(|(id, info)| (id.get(), info)).collect();
        match self.inner.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(stopped(&error)),
        }
    }

    /// Asks for an election now instead of after the timeout.
    pub(crate) async fn elect(&self) -> Result<(), RaftFailure> {
        self.inner.raft.trigger().elect(true).await.map_err(|fatal| stopped(&fatal))
    }

    pub(crate) fn status(&self) -> rt::watch::Receiver<RaftStatus> {
        self.inner.status.clone()
    }

    /// Hands encoded proposals to the log, in order, as one batch; `each` gets every outcome with its place.
    pub(crate) async fn propose(
        &self,
        proposals: Vec<Bytes>,
        mut each: impl FnMut(usize, Result<(LogId, Response), RaftFailure>) + Send,
    ) {
        let count = proposals.len();
        let written = self.inner.raft.client_write_many(proposals.into_iter().map(Encoded)).await;
        let mut answers = match written {
            Ok(answers) => answers,
            Err(fatal) => return (0..count).for_each(|at| each(at, Err(stopped(&fatal)))),
        };
        let mut answered = 0;
        while let Some(answer) = answers.next().await {
            let outcome = match answer {
                Ok(Ok(written)) => match written.response.0 {
                    Some(response) => Ok((written.log_id.to_plain(), response)),
                    None => Err(RaftFailure::Discarded),
                },
                Ok(Err(ClientWriteError::ForwardToLeader(to))) => {
                    Err(RaftFailure::NotLeader(to.leader_id.map(NodeId::new)))
                }
                Ok(Err(_)) => Err(RaftFailure::Discarded),
                Err(fatal) => Err(stopped(&fatal)),
            };
            each(answered, outcome);
            answered += 1;
        }
        // A stream that ends early has lost its core.
        (answered..count).for_each(|at| each(at, Err(RaftFailure::Stopped("the consensus core has stopped".into()))));
    }

    /// Confirms with a quorum that this node leads; a read is linearizable once this index is applied.
    pub(crate) async fn read_index(&self) -> Result<u64, RaftFailure> {
        match self.inner.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(read.index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
                Err(RaftFailure::NotLeader(to.leader_id.map(NodeId::new)))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(RaftFailure::NoQuorum),
            Err(RaftError::Fatal(fatal)) => Err(stopped(&fatal)),
        }
    }

    /// Asks `to` to take over. Answers when the request is on its way, not when it has happened.
    pub(crate) async fn transfer_leader(&self, to: NodeId) -> Result<(), RaftFailure> {
        self.inner.raft.trigger().transfer_leader(to.get()).await.map_err(|fatal| stopped(&fatal))
    }

    /// The voter, other than this node, whose log is furthest, if it has everything this leader had committed.
    pub(crate) fn best_successor(&self) -> Option<NodeId> {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let committed = metrics.cluster_committed.map(|id| id.index);
        let (node, matched) = metrics
            .replication?
            .into_iter()
            .filter(|(id, _)| *id != self.inner.me.get())
            .filter(|(id, _)| metrics.membership_config.voter_ids().any(|voter| voter == *id))
            .max_by_key(|(_, matched)| matched.map(|id| id.index))?;
        (matched.map(|id| id.index) >= committed).then(|| NodeId::new(node))
    }

    /// Has this node lead nobody while `muted`: what a leader tells its followers fails here, and is not sent.
    pub(crate) fn mute(&self, muted: bool) {
        self.inner.muted.store(muted, Ordering::Relaxed);
    }

    /// How long ago a quorum last answered this leader; `None` if it does not lead or has not heard from one yet.
    pub(crate) fn quorum_silence(&self) -> Option<Duration> {
        let acked = self.inner.raft.metrics().borrow_watched().last_quorum_acked?;
        Some(acked.elapsed())
    }

    /// How long ago this node knew for the last time that it had applied everything that was committed: by the leader's word,
    /// or, as the leader, by that of a quorum. `None` if it has not known it since this module was started.
    pub(crate) fn staleness(&self) -> Option<Duration> {
        let applied = self.inner.state.view().applied;
        let me = self.inner.me;
        let (reigns, alone) = self.inner.status.with(|status| {
            // A leader that has applied an entry of its own term has applied everything before it.
            let reigns = status.leads && applied.is_some_and(|applied| Some(applied.leader) == status.leader);
            let mine = |config: &BTreeSet<NodeId>| config.len() == 1 && config.contains(&me);
            (reigns, status.membership.membership.configs.iter().all(mine))
        });
        match (reigns, alone) {
            // Nobody else can commit anything, and nobody acknowledges anything to it.
            (true, true) => Some(Duration::ZERO),
            (true, false) => self.quorum_silence(),
            (false, _) => self.inner.heard.current_at(applied).map(rt::Instant::elapsed),
        }
    }

    /// Drops log entries up to `index` that a snapshot covers.
    pub(crate) async fn purge_log(&self, index: u64) -> Result<(), RaftFailure> {
        self.inner.raft.trigger().purge_log(index).await.map_err(|fatal| stopped(&fatal))
    }

    /// Takes a snapshot (a durable checkpoint) soon.
    pub(crate) async fn snapshot(&self) -> Result<(), RaftFailure> {
        self.inner.raft.trigger().snapshot().await.map_err(|fatal| stopped(&fatal))
    }

    /// An error if the library has stopped or panicked; asks the core itself, since its metrics do not tell.
    pub(crate) async fn check(&self) -> Result<(), RaftFailure> {
        self.inner.raft.with_raft_state(|_| ()).await.map_err(|fatal| stopped(&fatal))
    }

    #[cfg(test)]
    pub(crate) async fn panic_core(&self) {
        let _ = self.inner.raft.with_raft_state(|_| panic!("provoked by a test")).await;
    }

    /// Stops the library. The engines stay open.
    pub(crate) async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "the consensus core panicked before it was shut down");
        }
        self.inner.follow.abort();
    }

    /// Makes sure that nothing of this module changes the state any more. For a module that was shut down.
    pub(crate) async fn retire(&self) {
        self.inner.machine.retire().await;
    }

    /// Serves one request of a peer; `None` if it is not consensus business.
    pub(crate) async fn serve(&self, from: NodeId, request: Request) -> Option<Reply> {
        let served = match request {
            Request::Append { stream, seq, vote, prev, entries, commit } => {
                self.serve_append(from, (stream, seq), vote, prev, entries, commit).await
            }
            Request::Vote { pre, vote, last, transfer } => self.serve_vote(pre, vote, last, transfer).await,
            Request::TransferLeader { from, to, last } => {
                let request = TransferLeaderRequest::new(from.to_raft(), to.get(), last.map(|id| id.to_raft()));
                match self.inner.raft.handle_transfer_leader(request).await {
                    Ok(Ok(())) => Ok(Reply::Transferred { refused: None }),
                    Ok(Err(refused)) => Ok(Reply::Transferred { refused: Some(refused.to_string()) }),
                    Err(fatal) => Err(stopped(&fatal)),
                }
            }
            Request::Reminder { vote, index } => Ok(self.serve_reminder(&vote, index)),
            Request::SnapshotBegin { session, vote: _, applied, membership } => {
                self.serve_snapshot_begin(session, SnapshotMeta { last_applied: applied, membership }).await
            }
            Request::SnapshotChunk { session, index, chunk } => self.serve_snapshot_chunk(session, index, chunk).await,
            Request::SnapshotFinish { session, vote } => self.serve_snapshot_finish(session, vote).await,
            _ => return None,
        };
        Some(served.unwrap_or_else(|failure| Reply::Failed { why: failure.to_string() }))
    }

    /// An append is acknowledged when it is on disk, so nothing short of another disk ends a log below it: under one leader it
    /// only grows, and before another's entries replace it that leader's vote is saved.
    fn serve_reminder(&self, vote: &Vote, index: u64) -> Reply {
        let end = self.inner.log.bounds().1.map_or(0, |last| last.index);
        let follows = self.inner.log.vote().is_some_and(|own| own.leader == vote.leader);
        let held = end >= index || !follows;
        if !held {
            self.inner.link.accuse(format!(
                "this member acknowledged entry {index} to the leader {}, and its log ends at {end}: \
                 an older state of its directory was put back",
                vote.leader
            ));
        }
        Reply::Reminded { held }
    }

    async fn serve_append(
        &self,
        from: NodeId,
        (stream, seq): (u64, u64),
        vote: Vote,
        prev: Option<LogId>,
        entries: Vec<LogEntry>,
        commit: Option<LogId>,
    ) -> Result<Reply, RaftFailure> {
        let arrived = rt::Instant::now();
        if self.inner.order.turn(from, stream, seq).await.is_err() {
            return Ok(Reply::Failed { why: format!("frame {seq} of stream {stream} came without its predecessors") });
        }
        let request = AppendEntriesRequest {
            vote: vote.to_raft(),
            prev_log_id: prev.map(|id| id.to_raft()),
            entries: entries.iter().map(ToRaft::to_raft).collect(),
            leader_commit: commit.map(|id| id.to_raft()),
        };
        let mut answer = std::pin::pin!(self.inner.raft.append_entries(request).fuse());
        // One poll hands the request to the core; only then may the next frame follow. The answer waits for the disk.
        let first = futures::poll!(&mut answer);
        self.inner.order.handed_in(from, stream, seq);
        let answer = match first {
            std::task::Poll::Ready(answer) => answer,
            std::task::Poll::Pending => answer.await,
        };
        let answer = answer.map_err(|error| stopped(&error))?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.inner.heard.from(vote.leader);
            self.inner.heard.told(vote.leader, arrived, commit, self.inner.state.view().applied);
        }
        Ok(Reply::Append(match answer {
            AppendEntriesResponse::Success => AppendReply::Success,
            AppendEntriesResponse::PartialSuccess(upto) => AppendReply::Partial(upto.map(|id| id.to_plain())),
            AppendEntriesResponse::Conflict => AppendReply::Conflict,
            AppendEntriesResponse::HigherVote(vote) => AppendReply::HigherVote(vote.to_plain()),
        }))
    }

    async fn serve_vote(
        &self,
        pre: bool,
        vote: Vote,
        last: Option<LogId>,
        transfer: bool,
    ) -> Result<Reply, RaftFailure> {
        let mut request = VoteRequest::new(vote.to_raft(), last.map(|id| id.to_raft()));
        request.leadership_transfer = transfer;
        let answer = match pre {
            true => self.inner.raft.pre_vote(request).await,
            false => self.inner.raft.vote(request).await,
        };
        let answer = answer.map_err(|error| stopped(&error))?;
        Ok(Reply::Vote {
            vote: answer.vote.to_plain(),
            granted: answer.vote_granted,
            last: answer.last_log_id.map(|id| id.to_plain()),
        })
    }

    async fn serve_snapshot_begin(&self, session: u64, meta: SnapshotMeta) -> Result<Reply, RaftFailure> {
        if self.receiving(session).is_some() {
            return Ok(Reply::Snapshot { refused: None });
        }
        let staged = engine(|done| self.inner.state.stage_begin(meta.clone(), done)).await;
        Ok(match staged {
            Ok(stage) => {
                tracing::info!(me = %self.inner.me, session, applied = ?meta.last_applied, "receiving a snapshot");
                *self.inner.receiving.lock().expect("no panic while held") = Some(Receiving { session, stage, meta });
                Reply::Snapshot { refused: None }
            }
            Err(why) => Reply::Snapshot { refused: Some(why) },
        })
    }

    async fn serve_snapshot_chunk(&self, session: u64, index: u64, chunk: Bytes) -> Result<Reply, RaftFailure> {
        let Some(receiving) = self.receiving(session) else { return Ok(replaced()) };
        let taken = engine(|done| self.inner.state.stage_chunk(receiving.stage, index, chunk, done)).await;
        Ok(Reply::Snapshot { refused: taken.err() })
    }

    async fn serve_snapshot_finish(&self, session: u64, vote: Vote) -> Result<Reply, RaftFailure> {
        // A request that is sent again, because its answer was lost or takes long, waits here and gets the same answer.
        let mut last = self.inner.installed.lock().await;
        if let Some((_, vote)) = last.filter(|(known, _)| *known == session) {
            return Ok(Reply::SnapshotInstalled { vote });
        }
        let Some(receiving) = self.receiving(session) else { return Ok(replaced()) };
        if let Err(why) = engine(|done| self.inner.state.stage_finish(receiving.stage, done)).await {
            return Ok(Reply::Snapshot { refused: Some(why) });
        }
        // Upstream issue 2116: an install that reaches the core while appends are still on their way to the disk can be
        // overtaken by them. Everything the core has handed to the log so far is durable before the core sees the snapshot.
        if let Err(why) = engine(|done| self.inner.log.barrier(done)).await {
            return Ok(Reply::Failed { why });
        }
        let Receiving { stage, meta, .. } = receiving;
        let snapshot = openraft::Snapshot {
            meta: OSnapshotMeta {
                last_log_id: meta.last_applied.map(|id| id.to_raft()),
                last_membership: meta.membership.to_raft(),
            },
            snapshot: SnapshotData::Staged(stage),
        };
        let installed = self.inner.raft.install_full_snapshot(vote.to_raft(), snapshot).await;
        let installed = installed.map_err(|fatal| stopped(&fatal))?.vote.to_plain();
        tracing::info!(me = %self.inner.me, session, "the snapshot is received");
        *last = Some((session, installed));
        self.inner.receiving.lock().expect("no panic while held").take_if(|now| now.session == session);
        Ok(Reply::SnapshotInstalled { vote: installed })
    }

    fn receiving(&self, session: u64) -> Option<Receiving> {
        const { assert!(RECEIVING_MAX == 1) };
        let receiving = self.inner.receiving.lock().expect("no panic while held");
        receiving.as_ref().filter(|now| now.session == session).cloned()
    }
}

fn replaced() -> Reply {
    Reply::Snapshot { refused: Some("another snapshot has taken this one's place".into()) }
}

/// Runs one engine operation to its callback, with its error as text for the peer.
async fn engine<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    start: impl FnOnce(Box<dyn FnOnce(Result<T, E>) + Send>),
) -> Result<T, String> {
    let (done, result) = futures::channel::oneshot::channel();
    start(Box::new(move |result| drop(done.send(result))));
    match result.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the engine has stopped".into()),
    }
}

fn stopped(error: impl std::fmt::Display) -> RaftFailure {
    RaftFailure::Stopped(error.to_string())
}

/// How long a peer may take to answer a question that is not the library's own.
pub(crate) const ASK_TIMEOUT: Duration = Duration::from_secs(2);
