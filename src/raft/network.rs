//! Replication, votes and snapshots on their way to a peer.
//!
//! Three clients per peer, each on its own lane, so that bulk never delays a heartbeat. Append frames are pipelined up to a
//! window, numbered so that the receiver can put them back in order, and answered in order; no task is left behind when the
//! library drops the stream.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use futures::{FutureExt, Stream};
use openraft::base::BoxFuture;
use openraft::errors::{ErrorSource, NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::impls::BoxedErrorSource;
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use tracing::Instrument;

use super::order::ALONE;
use super::state_store::SnapshotData;
use super::types::{Config, FromRaft, OSnapshotMeta, OVote, ToRaft};
use crate::format::message::{AppendReply, Reply, Request};
use crate::rt;
use crate::storage::snapshot::SnapshotReader;
use crate::transport::Lane;
use crate::transport::link::{Link, LinkError};
use crate::types::{LeaderId, LogId, NodeId, NodeInfo, Peer, Vote};

/// Append frames under way to one peer at a time. More does not help where a round trip is shorter than an fsync, and
/// splits the follower's batches.
pub(crate) const APPEND_WINDOW: usize = 4;
/// How many times longer than a heartbeat an append may take, the follower's fsync included: 1.5 s at the default timing.
const APPEND_PATIENCE: u32 = 10;
/// How a snapshot begins, and how its chunks are sent: a receiver that was cut off when the transfer began is asked again soon
/// after it is back. One with a slow disk, or behind a slow line, has ten seconds for each after that, and some fifty in all
/// before the library starts the transfer anew.
const CHUNK: Patience = Patience { soon: 2, timeout: Duration::from_secs(10), tries: 7 };
/// How the receiver is asked to install what it has received: it may take five minutes, but it is not a question of five
/// minutes whether a request or its answer was lost.
const FINISH: Patience = Patience { soon: 0, timeout: Duration::from_secs(10), tries: 30 };
/// How long the first tries take at the most.
const SOON: Duration = Duration::from_secs(2);
/// The longest pause between two tries.
const TRY_PAUSE_MAX: Duration = Duration::from_millis(250);

/// How long one step of a snapshot may take to be acknowledged before it is sent again, and how often it is.
struct Patience {
    /// So many tries have [`SOON`], the others `timeout`.
    soon: u32,
    timeout: Duration,
    tries: u32,
}

type Rpc = RPCError<Config>;
type Snapshot = openraft::alias::SnapshotOf<Config, SnapshotData>;

pub(crate) struct Factory {
    pub(crate) link: Link,
    pub(crate) streams: Arc<AtomicU64>,
    /// Set while this node is to lead nobody: heartbeats and entries fail before they are sent.
    pub(crate) muted: Arc<AtomicBool>,
    pub(crate) acked: Arc<Acked>,
}

/// The last entry that each follower has acknowledged, and to which leader's vote.
#[derive(Default)]
pub(crate) struct Acked(Mutex<BTreeMap<NodeId, (LeaderId, u64)>>);

impl Acked {
    fn note(&self, follower: NodeId, leader: LeaderId, index: u64) {
        let mut acked = self.0.lock().expect("no panic while held");
        let known = acked.entry(follower).or_insert((leader, index));
        match leader.term.cmp(&known.0.term) {
            // A late answer to a leader that was.
            std::cmp::Ordering::Less => {}
            _ if leader == known.0 => known.1 = known.1.max(index),
            _ => *known = (leader, index),
        }
    }

    fn by(&self, follower: NodeId, leader: LeaderId) -> Option<u64> {
        let acked = self.0.lock().expect("no panic while held");
        acked.get(&follower).filter(|(to, _)| *to == leader).map(|(_, index)| *index)
    }
}

impl RaftNetworkFactory<Config> for Factory {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &NodeInfo) -> Client {
        self.client(target, node, Lane::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &NodeInfo) -> Client {
        self.client(target, node, Lane::Control)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &NodeInfo) -> Client {
        self.client(target, node, Lane::Snapshot)
    }
}

impl Factory {
    fn client(&self, target: u64, node: &NodeInfo, lane: Lane) -> Client {
        Client {
            link: self.link.clone(),
            peer: self.link.peer(node),
            target: NodeId::new(target),
            lane,
            streams: self.streams.clone(),
            muted: self.muted.clone(),
            acked: self.acked.clone(),
        }
    }
}

/// One lane to one peer.
pub(crate) struct Client {
    link: Link,
    peer: Peer,
    target: NodeId,
    lane: Lane,
    /// Numbers the append streams of this node; shared, so that no two streams have one number, and none that of heartbeats.
    streams: Arc<AtomicU64>,
    muted: Arc<AtomicBool>,
    acked: Arc<Acked>,
}

impl Client {
    /// How long an append frame may take. The library's limit follows from the heartbeat interval, and suits heartbeats; an
    /// append is answered only when the follower has synced it, which a busy disk may take much longer for.
    fn append_limit(&self, option: &RPCOption) -> Duration {
        match self.lane {
            Lane::Append => option.soft_ttl() * APPEND_PATIENCE,
            _ => option.soft_ttl(),
        }
    }

    /// The number for another stream of appends. What goes on another lane is a heartbeat, which the library sends as a stream
    /// of one frame.
    fn stream_number(&self) -> u64 {
        match self.lane {
            Lane::Append => self.streams.fetch_add(1, Ordering::Relaxed),
            _ => ALONE,
        }
    }

    /// Where a vote or a handover goes, whatever this client's lane is.
    async fn ask_control(&self, request: &Request, option: &RPCOption) -> Result<Reply, Rpc> {
        let asked = self.link.ask(&self.peer, Some(self.target), Lane::Control, request, option.soft_ttl()).await;
        asked.map_err(|error| self.rpc_error(error, option.soft_ttl()))
    }

    async fn append(&self, request: Request, limit: Duration) -> Result<AppendEntriesResponse<Config>, Rpc> {
        if self.muted.load(Ordering::Relaxed) {
            return Err(Unreachable::from_string("this node's disk does not answer: another is to lead").into());
        }
        let Request::Append { vote, prev, entries, .. } = &request else { unreachable!("made by append_request") };
        let (vote, prev) = (*vote, *prev);
        let last = entries.last().map(|entry| entry.log_id).or(prev);
        let reply = self.link.ask(&self.peer, Some(self.target), self.lane, &request, limit).await;
        match reply.map_err(|error| self.rpc_error(error, limit))? {
            Reply::Append(AppendReply::Success) => {
                self.acked_up_to(&vote, last);
                Ok(AppendEntriesResponse::Success)
            }
            Reply::Append(AppendReply::Partial(upto)) => {
                self.acked_up_to(&vote, upto);
                Ok(AppendEntriesResponse::PartialSuccess(upto.map(|id| id.to_raft())))
            }
            Reply::Append(AppendReply::Conflict) => self.conflict(vote, prev, limit).await,
            Reply::Append(AppendReply::HigherVote(vote)) => Ok(AppendEntriesResponse::HigherVote(vote.to_raft())),
            other => Err(unexpected(&other)),
        }
    }

    fn acked_up_to(&self, vote: &Vote, last: Option<LogId>) {
        if let Some(last) = last {
            self.acked.note(self.target, vote.leader, last.index);
        }
    }

    /// The follower does not have `prev`. If it has acknowledged that, to this very leader, then either this answer is an old
    /// one, or its directory is: it looks for itself. The library is not told: it would count what is not there any more.
    async fn conflict(
        &self,
        vote: Vote,
        prev: Option<LogId>,
        limit: Duration,
    ) -> Result<AppendEntriesResponse<Config>, Rpc> {
        let acked = self.acked.by(self.target, vote.leader);
        let Some(index) = acked.filter(|acked| prev.is_some_and(|prev| prev.index <= *acked)) else {
            return Ok(AppendEntriesResponse::Conflict);
        };
        let reminder = Request::Reminder { vote, index };
        let reply = self.link.ask(&self.peer, Some(self.target), Lane::Control, &reminder, limit).await;
        // Without an answer nothing is known: it is asked again with the next frame.
        if let Ok(Reply::Reminded { held: false }) = reply {
            tracing::error!(peer = %self.peer, index, "a follower has lost entries that it had acknowledged");
        }
        Err(Unreachable::from_string(format!("it acknowledged entry {index}, and was asked whether it is there"))
            .into())
    }

    fn rpc_error(&self, error: LinkError, limit: Duration) -> Rpc {
        rpc_error(&self.link, self.target, error, limit)
    }

    /// Sends one step of a snapshot until it is acknowledged; steps are idempotent.
    async fn snapshot_step(&self, request: Request, patience: Patience) -> Result<Reply, StreamingError<Config>> {
        let mut tries = 0;
        loop {
            tries += 1;
            let timeout = if tries <= patience.soon { SOON } else { patience.timeout };
            match self.link.ask(&self.peer, Some(self.target), Lane::Snapshot, &request, timeout).await {
                Ok(Reply::Snapshot { refused: Some(why) }) => {
                    return Err(StreamingError::Network(NetworkError::from_string(why)));
                }
                Ok(Reply::Failed { why }) => return Err(StreamingError::Network(NetworkError::from_string(why))),
                Ok(reply) => return Ok(reply),
                Err(error) if tries == patience.tries => return Err(self.rpc_error(error, timeout).into()),
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, tries, "a snapshot step is sent again");
                    rt::sleep((Duration::from_millis(50) * tries).min(TRY_PAUSE_MAX)).await;
                }
            }
        }
    }

    async fn send_snapshot(
        &self,
        vote: OVote,
        meta: &OSnapshotMeta,
        mut reader: SnapshotReader,
        session: u64,
    ) -> Result<SnapshotResponse<Config>, StreamingError<Config>> {
        let vote = vote.to_plain();
        let begin = Request::SnapshotBegin {
            session,
            vote,
            applied: meta.last_log_id.map(|id| id.to_plain()),
            membership: meta.last_membership.to_plain(),
        };
        let started = rt::Instant::now();
        tracing::info!("sending a snapshot");
        self.snapshot_step(begin, CHUNK).await?;
        let (mut index, mut bytes) = (0, 0);
        while let Some(chunk) = next_chunk(&mut reader)? {
            bytes += chunk.len();
            self.snapshot_step(Request::SnapshotChunk { session, index, chunk }, CHUNK).await?;
            index += 1;
        }
        match self.snapshot_step(Request::SnapshotFinish { session, vote }, FINISH).await? {
            Reply::SnapshotInstalled { vote: theirs } => {
                if theirs.leader == vote.leader {
                    self.acked_up_to(&vote, meta.last_log_id.map(|id| id.to_plain()));
                }
                let took = started.elapsed();
                tracing::info!(chunks = index, bytes, ?took, "the snapshot is installed");
                Ok(SnapshotResponse::new(theirs.to_raft()))
            }
            other => Err(unexpected(&other).into()),
        }
    }
}

fn next_chunk(reader: &mut SnapshotReader) -> Result<Option<Bytes>, StreamingError<Config>> {
    // A read error is this node's disk: reported as such it stops the node instead of being retried for ever.
    reader.next_chunk().map_err(|error| {
        StreamingError::StorageError(openraft::StorageError::read_snapshot(None, BoxedErrorSource::from_error(&error)))
    })
}

fn rpc_error(link: &Link, target: NodeId, error: LinkError, limit: Duration) -> Rpc {
    match error {
        LinkError::Unreachable(_) | LinkError::Copied { .. } => Unreachable::from_string(error).into(),
        LinkError::TimedOut { .. } => {
            Timeout { action: RPCTypes::AppendEntries, id: link.me().get(), target: target.get(), timeout: limit }
                .into()
        }
        LinkError::Garbled { .. } => NetworkError::from_string(error).into(),
    }
}

fn unexpected(reply: &Reply) -> Rpc {
    // As unreachable, not as a network error: the latter is retried without a pause.
    match reply {
        Reply::Failed { why } => Unreachable::from_string(why).into(),
        other => Unreachable::from_string(format!("an answer to another question: {other:?}")).into(),
    }
}

impl RaftNetworkV2<Config> for Client {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Config>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Config>, Rpc> {
        let request = append_request(self.stream_number(), 0, &request);
        self.append(request, self.append_limit(&option)).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Config>, Rpc>>, Rpc>>
    where
        S: Stream<Item = AppendEntriesRequest<Config>> + Send + Unpin + 'static,
    {
        let stream = self.stream_number();
        let limit = self.append_limit(&option);
        let this = &*self;
        let answers = input
            .enumerate()
            .map(move |(seq, request)| {
                let prev = request.prev_log_id;
                let last = request.entries.last().map(|entry| entry.log_id).or(prev);
                let request = append_request(stream, seq as u64, &request);
                let answer = this.append(request, limit);
                answer.map(move |answer| answer.map(|answer| (answer, prev, last)))
            })
            .buffered(APPEND_WINDOW);
        // The first answer that is not a full success ends the stream: the library starts another from what it then knows.
        let ended = answers.scan(false, |ended, answer| {
            if *ended {
                return futures::future::ready(None);
            }
            let item = answer.map(|(answer, prev, last)| {
                *ended = !matches!(&answer, AppendEntriesResponse::Success);
                answer.into_stream_result(prev, last)
            });
            *ended |= item.is_err();
            futures::future::ready(Some(item))
        });
        futures::future::ready(Ok(ended.boxed())).boxed()
    }

    async fn vote(&mut self, request: VoteRequest<Config>, option: RPCOption) -> Result<VoteResponse<Config>, Rpc> {
        self.ask_vote(false, request, option).await
    }

    async fn pre_vote(&mut self, request: VoteRequest<Config>, option: RPCOption) -> Result<VoteResponse<Config>, Rpc> {
        self.ask_vote(true, request, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: OVote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Config>, StreamingError<Config>> {
        let SnapshotData::Local(reader) = snapshot.snapshot else {
            return Err(NetworkError::from_string("a received snapshot is not sent on").into());
        };
        let session = rt::random_u64();
        let span = tracing::info_span!("snapshot", peer = %self.peer, session);
        let sent = self.send_snapshot(vote, &snapshot.meta, *reader, session).instrument(span);
        futures::pin_mut!(sent, cancel);
        match futures::future::select(cancel, sent).await {
            futures::future::Either::Left((closed, _)) => Err(closed.into()),
            futures::future::Either::Right((sent, _)) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Config>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Config>, Rpc> {
        let request = Request::TransferLeader {
            from: request.from_leader().to_plain(),
            to: NodeId::new(*request.to_node_id()),
            last: request.last_log_id().map(|id| id.to_plain()),
        };
        match self.ask_control(&request, &option).await? {
            Reply::Transferred { refused: None } => Ok(Ok(())),
            Reply::Transferred { refused: Some(why) } => Err(Unreachable::from_string(why).into()),
            other => Err(unexpected(&other)),
        }
    }
}

impl Client {
    async fn ask_vote(
        &self,
        pre: bool,
        request: VoteRequest<Config>,
        option: RPCOption,
    ) -> Result<VoteResponse<Config>, Rpc> {
        let request = Request::Vote {
            pre,
            vote: request.vote.to_plain(),
            last: request.last_log_id.map(|id| id.to_plain()),
            transfer: request.leadership_transfer,
        };
        match self.ask_control(&request, &option).await? {
            Reply::Vote { vote, granted, last } => {
                Ok(VoteResponse::new(vote.to_raft(), last.map(|id| id.to_raft()), granted))
            }
            other => Err(unexpected(&other)),
        }
    }
}

fn append_request(stream: u64, seq: u64, request: &AppendEntriesRequest<Config>) -> Request {
    Request::Append {
        stream,
        seq,
        vote: request.vote.to_plain(),
        prev: request.prev_log_id.map(|id| id.to_plain()),
        entries: request.entries.iter().map(FromRaft::to_plain).collect(),
        commit: request.leader_commit.map(|id| id.to_plain()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_to_a_leader_says_nothing_to_the_next() {
        let (acked, follower) = (Acked::default(), NodeId::new(2));
        let leader = |term| LeaderId { term, node: NodeId::new(1) };
        assert_eq!(acked.by(follower, leader(1)), None);
        acked.note(follower, leader(1), 10);
        acked.note(follower, leader(1), 7);
        assert_eq!(acked.by(follower, leader(1)), Some(10));
        acked.note(follower, leader(2), 8);
        acked.note(follower, leader(1), 20);
        assert_eq!((acked.by(follower, leader(1)), acked.by(follower, leader(2))), (None, Some(8)));
        assert_eq!(acked.by(NodeId::new(3), leader(2)), None);
    }
}
