//! One write, from its caller to its answer, exactly once.
//!
//! Every mutation carries a number of this process's client record. An attempt that fails without a proof that nothing
//! happened is repeated under the same number: the state machine decides each number once and repeats its answer. What is
//! left at the deadline is either certainly not applied or a ticket that can be resolved.
//!
//! A write whose first attempt is decided, as nearly all are, has no task of its own: its caller waits for the answer, and the
//! funnel and its batches see to the rest, deadline included. A task takes over what has to be tried again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;

use super::Node;
use super::client::Claim;
use super::funnel::Submission;
use super::room::{Kept, WRITES_BYTES_MAX};
use crate::command::{Command, Proposal, Refusal, Response};
use crate::error::{Error, Obstacle};
use crate::format::command::{encode_command, encode_proposal, put_proposal};
use crate::format::wire::Writer;
use crate::rt::{self, Instant};
use crate::types::NodeId;

/// Pause before another attempt when nothing says that the leader has changed.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

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

/// Where a caller waits for the end of its write.
pub(super) type Answer = oneshot::Sender<Result<Response, Error>>;

/// A write as it comes from its caller.
pub(super) struct Asked {
    command: Kept,
    started: Instant,
    deadline: Instant,
    answer: Answer,
}

/// A write that has its number.
///
/// Let go without an end, because the node stops or a task has panicked, it ends by itself: its outcome is unknown if it may
/// be in a log, and otherwise its caller learns that the node has stopped.
pub(super) struct Write {
    command: Kept,
    started: Instant,
    deadline: Instant,
    claim: Claim,
    /// There until it is used.
    answer: Option<Answer>,
}

impl Asked {
    /// Begins now: where the write came from, it may have been another time.
    pub(super) fn new(command: Kept, timeout: Duration, answer: Answer) -> Self {
        let started = Instant::now();
        Asked { command, started, deadline: started + timeout, answer }
    }

    pub(super) fn claimed(self, claim: Claim) -> Write {
        let Asked { command, started, deadline, answer } = self;
        Write { command, started, deadline, claim, answer: Some(answer) }
    }

    pub(super) fn refuse(self, why: Error) {
        // Nobody need be waiting any more.
        let _ = self.answer.send(Err(why));
    }
}

impl Write {
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Appends the proposal of it, as of now.
    pub(super) fn put_proposal(&self, w: &mut Writer, origin: NodeId) {
        put_proposal(w, origin, rt::wall_ms(), Some(self.claim.stamp()), |w| w.raw(&self.command.command));
    }

    /// It has been sent, and nobody may ever be told what becomes of it.
    pub(super) fn logged_perhaps(&mut self) {
        self.claim.logged_perhaps();
    }

    /// Ends it, if this attempt does. Otherwise it comes back with what stands in its way.
    fn conclude(mut self, node: &Node, attempt: Attempt) -> Option<(Self, Obstacle)> {
        match attempt {
            Attempt::Decided(response) => return self.decided(node, response),
            Attempt::NotSent(why) => return Some((self, why)),
            Attempt::Unknown => {
                self.logged_perhaps();
                return Some((self, Obstacle::Timeout));
            }
            Attempt::Stopped(reason) => tracing::debug!(reason, "stopped with a write under way"),
        }
        None
    }

    fn decided(mut self, node: &Node, response: Response) -> Option<(Self, Obstacle)> {
        match response {
            Response::Refused(Refusal::UnknownClient) => {
                // The record is gone, and with it what it knew of this number. Even to the first attempt this is no proof
                // that nothing was carried out: it may answer a double of the frame, and the record have ended in between.
                // Under another record it could be carried out again.
                node.clients.forget(self.claim.ticket().client);
                self.logged_perhaps();
            }
            Response::Refused(Refusal::TooFarAhead { limit }) => {
                return Some((self, Obstacle::Busy { what: "unanswered writes of this process", limit }));
            }
            Response::Refused(Refusal::Sealed) => self.not_applied(Obstacle::Sealed),
            response => self.known(Ok(response)),
        }
        None
    }

    /// Ends it at its deadline.
    fn give_up(self, obstacle: Obstacle) {
        if !self.claim.may_be_logged() {
            self.not_applied(obstacle);
        }
    }

    fn not_applied(self, why: Obstacle) {
        let waited = self.started.elapsed();
        self.known(Err(Error::NotApplied { why, waited }));
    }

    fn known(mut self, outcome: Result<Response, Error>) {
        self.claim.answered();
        self.end(outcome);
    }

    fn end(&mut self, outcome: Result<Response, Error>) {
        if let Some(answer) = self.answer.take() {
            // Nobody need be waiting any more.
            let _ = answer.send(outcome);
        }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        // Otherwise the answer is dropped, if it is still there, and by that the caller knows.
        if self.claim.may_be_logged() {
            self.end(Err(Error::Indeterminate { ticket: self.claim.ticket() }));
        }
    }
}

fn no_room() -> Error {
    let why = Obstacle::Busy { what: "bytes of unanswered writes of this process", limit: WRITES_BYTES_MAX as u64 };
    Error::NotApplied { why, waited: Duration::ZERO }
}

impl Node {
    /// Carries out a mutation once, trying until the timeout. It is under way when this returns, and goes on if the future is
    /// dropped.
    pub(crate) fn mutate<'a>(
        &'a self,
        command: Command,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Error>> + Send + use<'a> {
        // Not an async function: that would have room for the command in every write.
        let (answer, outcome) = oneshot::channel();
        let kept = self.funnel.room.keep(encode_command(&command)).ok_or_else(no_room);
        let submitted = kept.map(|command| {
            // If there is nobody to take it, the answer is dropped.
            drop(self.funnel.submit(Submission::Write { command, timeout, answer }));
        });
        async move {
            submitted?;
            match outcome.await {
                Ok(outcome) => outcome,
                Err(_) => {
                    self.check_open()?;
                    Err(Error::Stopped { reason: "shut down with this operation under way".into() })
                }
            }
        }
    }

    /// Tells the caller how its write has ended, or goes on trying.
    pub(super) fn settle(self: &Arc<Self>, write: Write, attempt: Attempt) {
        match write.conclude(self, attempt) {
            None => {}
            Some((write, obstacle)) if Instant::now() >= write.deadline() => write.give_up(obstacle),
            Some((write, obstacle)) => rt::spawn("write", self.clone().try_again(write, obstacle)).detach(),
        }
    }

    async fn try_again(self: Arc<Self>, write: Write, obstacle: Obstacle) {
        self.pause(write.deadline()).await;
        if Instant::now() >= write.deadline() {
            return write.give_up(obstacle);
        }
        self.hand_in(write);
    }

    /// Carries out a write for which there was no number to be had at once.
    pub(super) async fn claim_and_write(self: Arc<Self>, asked: Asked) {
        match self.claim(asked.started, asked.deadline).await {
            Ok(claim) => self.hand_in(asked.claimed(claim)),
            Err(error) => asked.refuse(error),
        }
    }

    /// Sends a write to the end of the line.
    fn hand_in(self: &Arc<Self>, write: Write) {
        // If there is nobody to take it any more, it ends by itself.
        drop(self.funnel.submit(Submission::Claimed(write)));
    }

    async fn claim(self: &Arc<Self>, started: Instant, deadline: Instant) -> Result<Claim, Error> {
        loop {
            self.check_open()?;
            self.check_client(started, deadline).await?;
            if let Some(claim) = self.clients.claim()? {
                return Ok(claim);
            }
            self.open_client(started, deadline).await?;
        }
    }

    /// Carries out housekeeping that may be done twice without harm, trying until the timeout.
    pub(crate) async fn housekeep(self: &Arc<Self>, command: Command, timeout: Duration) -> Result<Response, Error> {
        let started = Instant::now();
        let deadline = started + timeout;
        let proposal = encode_proposal(&self.proposal(command));
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

    /// A command of the cluster's own.
    pub(super) fn proposal(&self, command: Command) -> Proposal {
        Proposal { origin: self.id(), wall_ms: rt::wall_ms(), stamp: None, command }
    }

    /// One attempt, given up at the deadline; what was handed to the funnel may still be logged then.
    async fn attempt_until(&self, proposal: Bytes, deadline: Instant) -> Attempt {
        let (answer, outcome) = oneshot::channel();
        if self.funnel.submit(Submission::Encoded { proposal, answer }).is_err() {
            return Attempt::Stopped("shut down".into());
        }
        match rt::timeout_at(deadline, outcome).await {
            Ok(Ok(attempt)) => attempt,
            Ok(Err(_)) | Err(_) => Attempt::Unknown,
        }
    }

    /// Waits a little, less if the leader changes or the deadline comes.
    async fn pause(&self, deadline: Instant) {
        let mut status = self.status.subscribe();
        let until = deadline.min(Instant::now() + RETRY_PAUSE);
        let _ = Box::pin(rt::timeout_at(until, status.changed())).await;
    }
}
