//! A batch's way into the leader's log, from any node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Node;
use super::batch::Batch;
use super::write::Attempt;
use crate::command::Response;
use crate::error::Obstacle;
use crate::format::command::{decode_response, encode_response};
use crate::format::message::{Reply, Request};
use crate::raft::RaftFailure;
use crate::rt::{self, Mark, mark};
use crate::transport::{FRAME_BYTES_MAX, Lane};
use crate::types::NodeId;

/// How long a forwarded frame may take before its proposals are sent again.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the answer of a leader that leads no more is still waited for.
const LAST_ANSWERS: Duration = Duration::from_millis(100);
/// Most bytes of answers in one frame; whose answer does not fit asks again, and gets what is remembered of it.
const ANSWERS_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024 * 1024;

impl Node {
    /// Puts a batch into this leader's log and answers each caller as its entry is applied.
    pub(super) async fn propose_here(self: Arc<Self>, batch: Batch) {
        let (proposals, waiting) = batch.close(self.clone());
        if self.is_flooded() {
            let limit = self.settings.unflushed_bytes;
            let busy = || Obstacle::Busy { what: "bytes waiting for the leader's disk", limit };
            return waiting.tell_all(|| Attempt::NotSent(busy()));
        }
        let raft = self.raft();
        waiting.until(raft.propose(proposals, |at, outcome| waiting.tell(at, attempt_of(outcome)))).await;
    }

    /// Sends a batch to the leader in one frame.
    pub(super) async fn forward(self: Arc<Self>, leader: NodeId, batch: Batch) {
        let (proposals, waiting) = batch.close(self.clone());
        let Some(peer) = self.peer(leader) else {
            return waiting.tell_all(|| Attempt::NotSent(Obstacle::NoLeader));
        };
        let (count, request) = (proposals.len(), Request::Propose { proposals });
        let ask = self.link.ask(&peer, Some(leader), Lane::Client, &request, FORWARD_TIMEOUT);
        match waiting.until(self.while_leading(leader, ask)).await {
            Some(Ok(Reply::Proposed { answers })) if answers.len() == count => {
                for (at, answer) in answers.into_iter().enumerate() {
                    let response = answer.and_then(|bytes| decode_response(bytes).ok());
                    waiting.tell(at, response.map_or(Attempt::Unknown, Attempt::Decided));
                }
            }
            None => {
                mark(Mark::LeaderChangedUnderWrite);
                waiting.tell_all(|| Attempt::Unknown)
            }
            // Not even a refusal proves that nothing was logged: it may answer a double of the frame, which came later than
            // the first. Nor does an unreachable leader: the connection may have broken behind the frame.
            _ => waiting.tell_all(|| Attempt::Unknown),
        }
    }

    /// What a question to the leader comes to; `None` once somebody else leads, or nobody, and the answer is not there soon
    /// after: what waits for one that has vanished would wait for its timeout.
    pub(super) async fn while_leading<T>(&self, leader: NodeId, ask: impl Future<Output = T>) -> Option<T> {
        let mut status = self.status.subscribe();
        let deposed = async {
            let deposed = status.wait_for(|status| status.leader.map(|leader| leader.node) != Some(leader));
            if deposed.await.is_ok() {
                // A leader that hands over still answers what it has taken.
                rt::sleep(LAST_ANSWERS).await;
            }
        };
        match futures::future::select(std::pin::pin!(ask), std::pin::pin!(deposed)).await {
            futures::future::Either::Left((answer, _)) => Some(answer),
            futures::future::Either::Right(_) => None,
        }
    }

    /// Whether more waits for this leader's disk than it should take.
    fn is_flooded(&self) -> bool {
        self.log.unflushed_bytes() as u64 > self.settings.unflushed_bytes
    }

    /// Serves another node's frame of proposals. A frame this node cannot take is refused whole, before any of it is logged.
    pub(super) async fn serve_proposals(&self, proposals: Vec<Bytes>) -> Reply {
        let status = self.status.borrow();
        if !status.leads {
            return Reply::NotLeader { leader: status.leader };
        }
        if self.is_flooded() {
            return Reply::Busy { what: "bytes waiting for the leader's disk".into() };
        }
        let mut outcomes: Vec<Option<Attempt>> = proposals.iter().map(|_| None).collect();
        self.raft().propose(proposals, |at, outcome| outcomes[at] = Some(attempt_of(outcome))).await;
        if outcomes.iter().all(|outcome| matches!(outcome, Some(Attempt::NotSent(_)))) {
            return Reply::NotLeader { leader: self.status.borrow().leader };
        }
        let mut room = ANSWERS_BYTES_MAX;
        let answers = outcomes.into_iter().map(|outcome| {
            let Some(Attempt::Decided(response)) = outcome else { return None };
            let answer = encode_response(&response);
            room = room.checked_sub(answer.len())?;
            Some(answer)
        });
        Reply::Proposed { answers: answers.collect() }
    }
}

/// What an outcome proves. At the pinned version the library answers "not the leader" only before it appends an entry (and
/// "discarded" when it takes an appended one away, which may yet be committed elsewhere): read in its `write_entries` and
/// `run_truncate`, to be read again with each new version.
fn attempt_of(outcome: Result<(crate::types::LogId, Response), RaftFailure>) -> Attempt {
    match outcome {
        Ok((_, response)) => Attempt::Decided(response),
        Err(RaftFailure::NotLeader(_)) => Attempt::NotSent(Obstacle::NoLeader),
        Err(RaftFailure::Discarded | RaftFailure::NoQuorum | RaftFailure::Stopped(_)) => Attempt::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::config::TestDrive;
    use crate::rt::worker::Drive;
    use crate::{Cluster, MemoryNetwork, Runtime};

    #[tokio::test(start_paused = true)]
    async fn a_leader_takes_no_more_frames_and_batches_while_too_much_waits_for_its_disk() {
        let delay_ms = Arc::new(AtomicU64::new(0));
        let slow = delay_ms.clone();
        let pause = move || rt::sleep(Duration::from_millis(slow.load(Ordering::Relaxed)));
        let drive = Drive::Delayed(Arc::new(move || Box::pin(pause())));
        let cluster = Cluster::builder("node")
            .in_memory()
            .transport(MemoryNetwork::new().transport("node"))
            .runtime(Runtime::Current)
            .settings(|settings| (settings.drive, settings.unflushed_bytes) = (TestDrive(Some(drive)), 1000))
            .await
            .expect("starts");
        cluster.set("warm", &0).await.expect("written");
        let node = cluster.node();
        delay_ms.store(1000, Ordering::Relaxed);
        let write = cluster.set("k", &"x".repeat(2000)).into_future();
        let meanwhile = async {
            rt::sleep(Duration::from_millis(100)).await;
            let refused = node.serve_proposals(vec![Bytes::from_static(b"never looked at")]).await;
            assert!(matches!(&refused, Reply::Busy { what } if what.contains("disk")), "{refused:?}");
            let (answer, outcome) = futures::channel::oneshot::channel();
            let mut batch = Batch::new(node.id(), 1, 0);
            batch.push(super::super::batch::Proposed::Encoded { proposal: Bytes::from_static(b"nor this"), answer });
            node.clone().propose_here(batch).await;
            let attempt = outcome.await.expect("answered");
            assert!(matches!(attempt, Attempt::NotSent(Obstacle::Busy { limit: 1000, .. })), "{attempt:?}");
        };
        let (written, ()) = futures::join!(write, meanwhile);
        written.expect("what it had taken is written");
        delay_ms.store(0, Ordering::Relaxed);
        cluster.set("k", &1).await.expect("there is room again");
        cluster.shutdown().await.expect("closes its files");
    }
}
