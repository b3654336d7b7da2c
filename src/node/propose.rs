//! A write's way into the leader's log, from any node, exactly once.
//!
//! Every mutation carries a number of this process's client record. An attempt that fails without a proof that nothing
//! happened is repeated under the same number: the state machine decides each number once and repeats its answer. What is
//! left at the deadline is either certainly not applied or a ticket that can be resolved.
//!
//! Proposals of all callers pass one funnel, so that a burst becomes one batch for the log or one frame for the leader.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::channel::{mpsc, oneshot};
use tokio::sync::Semaphore;

use super::Node;
use super::client::Claim;
use super::gather::{Gather, Submission};
use crate::command::{Command, Proposal, Refusal, Response, Stamp};
use crate::error::{Error, Obstacle};
use crate::format::command::{decode_response, encode_proposal, encode_response};
use crate::format::message::{Reply, Request};
use crate::raft::RaftFailure;
use crate::rt::{self, Instant, Mark, mark};
use crate::transport::{FRAME_BYTES_MAX, Lane};
use crate::types::NodeId;

/// Batches of this node's callers under way at a time in its own log; while one is, the next one fills. One batch of
/// all who wait costs less than two of a half each, and takes no longer.
const BATCHES_HERE_MAX: usize = 1;
/// As [`BATCHES_HERE_MAX`], on their way to another leader, which takes longer by the way there and back.
const BATCHES_AWAY_MAX: usize = 2;
/// How long a forwarded frame may take before its proposals are sent again.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the answer of a leader that leads no more is still waited for.
const LAST_ANSWERS: Duration = Duration::from_millis(100);
/// Most bytes of answers in one frame; whose answer does not fit asks again, and gets what is remembered of it.
const ANSWERS_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024 * 1024;
/// Pause before another attempt when nothing says that the leader has changed.
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// Bytes proposed but not yet durable beyond which the leader takes no more (`Busy`).
pub(super) const UNFLUSHED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What became of one attempt.
#[derive(Debug)]
pub(super) enum Attempt {
    /// The state machine has answered.
    Decided(Response),
    /// It certainly did not get into any log.
    NotSent(Obstacle),
    /// It may be in a log.
    Unknown,
    /// This node has stopped.
    Stopped(String),
}

/// Entrance of the funnel.
#[derive(Clone)]
pub(super) struct Funnel {
    submissions: mpsc::UnboundedSender<Submission>,
}

impl Funnel {
    /// The queue needs no limit of its own: callers wait for their answers, and a client has at most
    /// [`crate::state_machine::ANSWERS_MAX`] under way.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Submission>) {
        let (submissions, queue) = mpsc::unbounded();
        (Funnel { submissions }, queue)
    }

    async fn attempt(&self, bytes: Bytes) -> Attempt {
        let (answer, attempt) = oneshot::channel();
        if self.submissions.unbounded_send(Submission { bytes, answer }).is_err() {
            return Attempt::Stopped("shut down".into());
        }
        attempt.await.unwrap_or(Attempt::Unknown)
    }
}

impl Node {
    /// Carries out a mutation once, trying until the timeout.
    pub(crate) fn mutate(
        self: &Arc<Self>,
        command: Command,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Error>> + Send + use<> {
        // Not an async function: that would have room for the command, and for the proposal of it twice, in every write.
        let node = self.clone();
        let mut proposal = Proposal { origin: node.identity.node, wall_ms: 0, stamp: None, command };
        async move { node.carry_out(&mut proposal, timeout).await }
    }

    async fn carry_out(self: &Arc<Self>, proposal: &mut Proposal, timeout: Duration) -> Result<Response, Error> {
        let started = Instant::now();
        let deadline = started + timeout;
        let mut claim = self.claim(started, deadline).await?;
        // Here, not where the proposal was made: that may have been in another process's scope, under another clock.
        proposal.wall_ms = rt::wall_ms();
        let mut obstacle = Obstacle::Timeout;
        loop {
            let stamp = claim.stamp();
            proposal.stamp = Some(stamp);
            match self.attempt_until(encode_proposal(proposal), deadline).await {
                Attempt::Decided(Response::Refused(Refusal::UnknownClient)) => {
                    // The record is gone, and with it what it knew of this number. Even to the first attempt this is no proof
                    // that nothing was carried out: it may answer a double of the frame, and the record have ended in
                    // between. Under another record it could be carried out again.
                    self.clients.forget(stamp.client);
                    return Err(Error::Indeterminate { ticket: claim.abandon() });
                }
                Attempt::Decided(Response::Refused(Refusal::TooFarAhead { limit })) => {
                    obstacle = Obstacle::Busy { what: "unanswered writes of this process", limit };
                    self.pause(deadline).await;
                }
                Attempt::Decided(Response::Refused(Refusal::Sealed)) => {
                    claim.answered();
                    return Err(Error::NotApplied { why: Obstacle::Sealed, waited: started.elapsed() });
                }
                Attempt::Decided(response) => {
                    claim.answered();
                    return Ok(response);
                }
                Attempt::NotSent(why) => {
                    obstacle = why;
                    self.pause(deadline).await;
                }
                Attempt::Unknown => {
                    claim.logged_perhaps();
                    self.pause(deadline).await;
                }
                Attempt::Stopped(reason) if claim.may_be_logged() => {
                    tracing::debug!(reason, "stopped with a write under way");
                    return Err(Error::Indeterminate { ticket: claim.abandon() });
                }
                Attempt::Stopped(reason) => return Err(Error::Stopped { reason }),
            }
            if Instant::now() >= deadline {
                return Err(match claim.may_be_logged() {
                    true => Error::Indeterminate { ticket: claim.abandon() },
                    false => {
                        claim.answered();
                        Error::NotApplied { why: obstacle, waited: started.elapsed() }
                    }
                });
            }
        }
    }

    /// Carries out housekeeping that may be done twice without harm, trying until the timeout.
    pub(crate) async fn housekeep(self: &Arc<Self>, command: Command, timeout: Duration) -> Result<Response, Error> {
        let started = Instant::now();
        let deadline = started + timeout;
        let proposal = encode_proposal(&self.proposal(None, command));
        loop {
            let obstacle = match self.attempt_until(proposal.clone(), deadline).await {
                Attempt::Decided(response) => return Ok(response),
                Attempt::Stopped(reason) => return Err(Error::Stopped { reason }),
                Attempt::NotSent(why) => why,
                Attempt::Unknown => Obstacle::Timeout,
            };
            if Instant::now() >= deadline {
                return Err(Error::NotApplied { why: obstacle, waited: started.elapsed() });
            }
            self.pause(deadline).await;
        }
    }

    /// One attempt, given up at the deadline; what was handed to the funnel may still be logged then.
    async fn attempt_until(&self, bytes: Bytes, deadline: Instant) -> Attempt {
        match rt::timeout_at(deadline, self.funnel.attempt(bytes)).await {
            Ok(attempt) => attempt,
            Err(_) => Attempt::Unknown,
        }
    }

    pub(super) fn proposal(&self, stamp: Option<Stamp>, command: Command) -> Proposal {
        Proposal { origin: self.identity.node, wall_ms: rt::wall_ms(), stamp, command }
    }

    async fn claim(self: &Arc<Self>, started: Instant, deadline: Instant) -> Result<Claim, Error> {
        loop {
            self.check_open()?;
            self.check_client(started, deadline).await?;
            if let Some(claim) = self.clients.claim()? {
                return Ok(claim);
            }
            // Seldom and large: on the heap it is no part of every write.
            Box::pin(self.open_client(started, deadline)).await?;
        }
    }

    /// Waits a little, less if the leader changes or the deadline comes.
    async fn pause(&self, deadline: Instant) {
        let mut status = self.status.subscribe();
        let until = deadline.min(Instant::now() + RETRY_PAUSE);
        let _ = Box::pin(rt::timeout_at(until, status.changed())).await;
    }
}

/// Drains the funnel for as long as the node lives.
pub(super) async fn run_funnel(node: Arc<Node>, mut queue: mpsc::UnboundedReceiver<Submission>) {
    let here = Arc::new(Semaphore::new(BATCHES_HERE_MAX));
    let away = Arc::new(Semaphore::new(BATCHES_AWAY_MAX));
    let mut gather = Gather::default();
    loop {
        // The slot first, then the batch: what comes while all slots are taken goes with the next one.
        let slots = if node.status.borrow().leads { &here } else { &away };
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Some(batch) = gather.next_batch(&mut queue).await else { return };
        let status = node.status.borrow();
        match status.leader {
            _ if !node.accepts() => refuse(batch, || Attempt::Stopped(node.stop_reason())),
            Some(_) if status.leads => {
                let node = node.clone();
                let proposed = async move {
                    node.propose_here(batch).await;
                    drop(slot);
                };
                rt::spawn("propose", proposed).detach();
            }
            Some(leader) => {
                let node = node.clone();
                let forwarded = async move {
                    node.forward(leader.node, batch).await;
                    drop(slot);
                };
                rt::spawn("forward", forwarded).detach();
            }
            None => refuse(batch, || Attempt::NotSent(Obstacle::NoLeader)),
        }
    }
}

fn refuse(batch: Vec<Submission>, why: impl Fn() -> Attempt) {
    for submission in batch {
        let _ = submission.answer.send(why());
    }
}

impl Node {
    /// Puts a batch into this leader's log and answers each caller as its entry is applied.
    async fn propose_here(self: Arc<Self>, batch: Vec<Submission>) {
        if self.log.unflushed_bytes() > UNFLUSHED_BYTES_MAX {
            return refuse(batch, || Attempt::NotSent(busy()));
        }
        let (proposals, mut answers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|submission| (submission.bytes, Some(submission.answer))).unzip();
        self.raft()
            .propose(in_one_buffer(proposals), |at, outcome| {
                if let Some(answer) = answers[at].take() {
                    let _ = answer.send(attempt_of(outcome));
                }
            })
            .await;
    }

    /// Sends a batch to the leader in one frame.
    async fn forward(&self, leader: NodeId, batch: Vec<Submission>) {
        let Some(peer) = self.peer(leader) else {
            return refuse(batch, || Attempt::NotSent(Obstacle::NoLeader));
        };
        let proposals = batch.iter().map(|submission| submission.bytes.clone()).collect();
        let request = Request::Propose { proposals };
        let ask = self.link.ask(&peer, Some(leader), Lane::Client, &request, FORWARD_TIMEOUT);
        match self.while_leading(leader, ask).await {
            Some(Ok(Reply::Proposed { answers })) if answers.len() == batch.len() => {
                for (submission, answer) in batch.into_iter().zip(answers) {
                    let response = answer.and_then(|bytes| decode_response(bytes).ok());
                    let _ = submission.answer.send(response.map_or(Attempt::Unknown, Attempt::Decided));
                }
            }
            None => {
                mark(Mark::LeaderChangedUnderWrite);
                refuse(batch, || Attempt::Unknown)
            }
            // Not even a refusal proves that nothing was logged: it may answer a double of the frame, which came later than
            // the first. Nor does an unreachable leader: the connection may have broken behind the frame.
            _ => refuse(batch, || Attempt::Unknown),
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

    /// Serves another node's frame of proposals. A frame this node cannot take is refused whole, before any of it is logged.
    pub(super) async fn serve_proposals(&self, proposals: Vec<Bytes>) -> Reply {
        let status = self.status.borrow();
        if !status.leads {
            return Reply::NotLeader { leader: status.leader };
        }
        if self.log.unflushed_bytes() > UNFLUSHED_BYTES_MAX {
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

/// The same bytes, side by side: the log keeps them in memory for a while, and gives back one allocation for all of them
/// then instead of two for each, which nothing has touched in between.
fn in_one_buffer(proposals: Vec<Bytes>) -> Vec<Bytes> {
    if proposals.len() < 2 {
        return proposals;
    }
    let mut buffer = BytesMut::with_capacity(proposals.iter().map(Bytes::len).sum());
    proposals.iter().for_each(|proposal| buffer.extend_from_slice(proposal));
    let mut rest = buffer.freeze();
    proposals.iter().map(|proposal| rest.split_to(proposal.len())).collect()
}

fn busy() -> Obstacle {
    Obstacle::Busy { what: "bytes waiting for the leader's disk", limit: UNFLUSHED_BYTES_MAX as u64 }
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
    use super::*;

    #[test]
    fn proposals_side_by_side_are_the_same_proposals() {
        let proposals: Vec<Bytes> = (0..5usize).map(|n| vec![n as u8; n * 100].into()).collect();
        assert_eq!(in_one_buffer(proposals.clone()), proposals);
        assert_eq!(in_one_buffer(vec![]), Vec::<Bytes>::new());
    }
}
