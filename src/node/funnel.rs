//! Where proposals of all callers meet, so that a burst becomes one batch for the log or one frame for the leader.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::{mpsc, oneshot};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tokio::sync::Semaphore;

use super::Node;
use super::batch::{BATCH_MAX, Proposed};
use super::gather::{Gather, Source};
use super::room::{Kept, Room};
use super::write::{Answer, Asked, Attempt, Write};
use crate::error::Obstacle;
use crate::rt::{self, Instant};

/// Batches of this node's callers under way at a time in its own log; while one is, the next one fills. One batch of
/// all who wait costs less than two of a half each, and takes no longer.
const BATCHES_HERE_MAX: usize = 1;
/// As [`BATCHES_HERE_MAX`], on their way to another leader, which takes longer by the way there and back.
const BATCHES_AWAY_MAX: usize = 2;

/// How long fewer than half as many as are on their way wait, to go with those who come back: about the way there and back
/// within a site. Sent at once they would be a group of their own for good, and each group pays for a round.
const COMPANY_WAIT_MAX: Duration = Duration::from_millis(2);
/// Most submissions that are let in at a time, before others get to run.
const LET_IN_MAX: usize = BATCH_MAX;

/// What is handed to the funnel.
pub(super) enum Submission {
    /// A new write. Its command, encoded, is numbered when it is let in.
    Write { command: Kept, timeout: Duration, answer: Answer },
    /// A write that has its number.
    Claimed(Write),
    /// A proposal, encoded. Whoever sent it sees to all else.
    Encoded { proposal: Bytes, answer: oneshot::Sender<Attempt> },
}

/// Entrance of the funnel.
pub(super) struct Funnel {
    submissions: mpsc::UnboundedSender<Submission>,
    /// For the writes of this process.
    pub(super) room: Room,
}

pub(super) type Submissions = mpsc::UnboundedReceiver<Submission>;

impl Funnel {
    /// The queue needs no limit of its own: it is emptied whenever the node's thread comes by, and whoever finds
    /// [`crate::state_machine::ANSWERS_MAX`] writes of this process under way is refused at once. So is whoever finds no
    /// [`Room`].
    pub(super) fn new() -> (Self, Submissions) {
        let (submissions, queue) = mpsc::unbounded();
        (Funnel { submissions, room: Room::default() }, queue)
    }

    /// Gives it back if there is nobody to take it any more.
    pub(super) fn submit(&self, submission: Submission) -> Result<(), Submission> {
        self.submissions.unbounded_send(submission).map_err(mpsc::TrySendError::into_inner)
    }
}

/// Drains the funnel for as long as the node lives.
pub(super) async fn run_funnel(node: Arc<Node>, queue: Submissions) {
    let here = Arc::new(Semaphore::new(BATCHES_HERE_MAX));
    let away = Arc::new(Semaphore::new(BATCHES_AWAY_MAX));
    let mut gather = Gather::new(node.id());
    let mut line = Line::new(node.clone(), queue);
    loop {
        // The slot first, then the batch: what comes while all slots are taken goes with the next one.
        let leads = node.status.borrow().leads;
        let slots = if leads { &here } else { &away };
        let Some(slot) = line.until(slots.clone().acquire_owned()).await else { return };
        let slot = slot.expect("the semaphore is never closed");
        if !leads && away.available_permits() < BATCHES_AWAY_MAX - 1 {
            let back = rt::timeout(COMPANY_WAIT_MAX, away.acquire()).map(drop);
            line.until_as_many_as(gather.last() / 2, back).await;
        }
        let Some(batch) = gather.next_batch(&mut line).await else { return };
        let status = node.status.borrow();
        match status.leader {
            _ if !node.accepts() => batch.refuse(node.clone(), || Attempt::Stopped(node.stop_reason())),
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
            None => batch.refuse(node.clone(), || Attempt::NotSent(Obstacle::NoLeader)),
        }
    }
}

/// Those who were let in and are in no batch yet, in the order in which they came.
struct Line {
    node: Arc<Node>,
    queue: Submissions,
    waiting: VecDeque<Proposed>,
    /// No deadline of those who wait is earlier.
    earliest: Option<Instant>,
    /// Goes off at the given moment, which may be long before the next deadline.
    alarm: Option<(Instant, BoxFuture<'static, ()>)>,
}

impl Line {
    fn new(node: Arc<Node>, queue: Submissions) -> Self {
        Line { node, queue, waiting: VecDeque::new(), earliest: None, alarm: None }
    }

    /// Lets in who comes, and sends away whose time is up, until `ready`; `None` once nobody can come any more.
    async fn until<T>(&mut self, ready: impl Future<Output = T>) -> Option<T> {
        let mut ready = pin!(ready);
        std::future::poll_fn(|cx| match self.look(cx) {
            true => ready.as_mut().poll(cx).map(Some),
            false => Poll::Ready(None),
        })
        .await
    }

    /// As [`Line::until`], or until `count` wait.
    async fn until_as_many_as(&mut self, count: usize, ready: impl Future<Output = ()>) {
        let mut ready = pin!(ready);
        std::future::poll_fn(|cx| match self.look(cx) {
            true if self.waiting.len() < count => ready.as_mut().poll(cx),
            _ => Poll::Ready(()),
        })
        .await
    }

    /// False once nobody can come any more.
    fn look(&mut self, cx: &mut Context<'_>) -> bool {
        match self.queue.poll_next_unpin(cx) {
            Poll::Ready(Some(submission)) => {
                self.let_in(submission);
                // There may be more. But others are to run in between, however fast they come.
                cx.waker().wake_by_ref();
            }
            Poll::Ready(None) => return false,
            Poll::Pending => {}
        }
        // Here, so that nobody whose time is up gets into a batch.
        self.look_at_the_time(cx);
        true
    }

    /// This one, and those who have come behind it, up to [`LET_IN_MAX`].
    fn let_in(&mut self, submission: Submission) {
        let door = Door::new(&self.node);
        let behind = std::iter::from_fn(|| self.queue.try_recv().ok()).take(LET_IN_MAX - 1);
        for submission in std::iter::once(submission).chain(behind) {
            if let Some(proposed) = door.admit(&self.node, submission) {
                self.earliest = self.earliest.into_iter().chain(proposed.deadline()).min();
                self.waiting.push_back(proposed);
            }
        }
    }

    fn look_at_the_time(&mut self, cx: &mut Context<'_>) {
        while let Some(earliest) = self.earliest {
            let (_, timer) = match &mut self.alarm {
                Some(alarm) if alarm.0 <= earliest => alarm,
                alarm => alarm.insert((earliest, Box::pin(rt::sleep_until(earliest)))),
            };
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            self.alarm = None;
            self.send_away(Instant::now());
        }
    }

    /// Nothing was sent of those whose deadline has passed.
    fn send_away(&mut self, now: Instant) {
        let late = |proposed: &Proposed| proposed.deadline().is_some_and(|deadline| deadline <= now);
        let (late, waiting): (VecDeque<_>, _) = std::mem::take(&mut self.waiting).into_iter().partition(late);
        self.waiting = waiting;
        self.earliest = self.waiting.iter().filter_map(Proposed::deadline).min();
        for proposed in late {
            proposed.tell(&self.node, Attempt::NotSent(Obstacle::Timeout));
        }
    }
}

impl Source for Line {
    fn take(&mut self) -> Option<Proposed> {
        if self.waiting.is_empty()
            && let Ok(submission) = self.queue.try_recv()
        {
            self.let_in(submission);
        }
        let first = self.waiting.pop_front();
        if self.waiting.is_empty() {
            self.earliest = None;
        }
        first
    }

    async fn wait(&mut self) -> Option<Proposed> {
        loop {
            if let Some(proposed) = self.take() {
                return Some(proposed);
            }
            let submission = self.queue.next().await?;
            self.let_in(submission);
        }
    }
}

/// What is the same for all who come at one moment.
struct Door {
    open: bool,
    /// There may be numbers to be had.
    numbered: bool,
}

impl Door {
    fn new(node: &Node) -> Self {
        Door { open: node.accepts(), numbered: !node.client_is_overdue() }
    }

    /// What is to go with a batch. Anybody else is answered, or seen to by a task.
    fn admit(&self, node: &Arc<Node>, submission: Submission) -> Option<Proposed> {
        let asked = match submission {
            Submission::Claimed(write) => return Some(Proposed::Write(write)),
            Submission::Encoded { proposal, answer } => {
                // Given up before it came in.
                return (!answer.is_canceled()).then_some(Proposed::Encoded { proposal, answer });
            }
            Submission::Write { command, timeout, answer } => Asked::new(command, timeout, answer),
        };
        let claim = if self.open && self.numbered { node.clients.claim() } else { Ok(None) };
        match claim {
            Ok(Some(claim)) => return Some(Proposed::Write(asked.claimed(claim))),
            Ok(None) => rt::spawn("write", node.clone().claim_and_write(asked)).detach(),
            Err(error) => asked.refuse(error),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Wake, Waker};

    use super::*;
    use crate::Cluster;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Hands in so many; they are waited for as long as what this returns is held.
    fn come(funnel: &Funnel, count: usize) -> Vec<oneshot::Receiver<Attempt>> {
        let one = || {
            let (answer, outcome) = oneshot::channel();
            let sent = funnel.submit(Submission::Encoded { proposal: Bytes::from_static(b"write"), answer });
            assert!(sent.is_ok());
            outcome
        };
        (0..count).map(|_| one()).collect()
    }

    #[tokio::test]
    async fn few_wait_for_those_who_come_back_and_many_do_not() {
        let cluster = Cluster::local(1).await.expect("starts").remove(0);
        let (funnel, queue) = Funnel::new();
        let mut line = Line::new(cluster.node().clone(), queue);
        let mut outcomes = come(&funnel, 3);
        drop(come(&funnel, 5));
        assert!(line.until_as_many_as(4, std::future::pending()).now_or_never().is_none(), "five gave up at once");
        assert!(line.until_as_many_as(4, std::future::ready(())).now_or_never().is_some(), "somebody is back");
        outcomes.extend(come(&funnel, 1));
        assert!(line.until_as_many_as(4, std::future::pending()).now_or_never().is_some());
        cluster.shutdown().await.expect("shuts down");
    }

    #[tokio::test]
    async fn however_many_come_the_others_get_to_run_in_between() {
        let cluster = Cluster::local(1).await.expect("starts").remove(0);
        let (funnel, queue) = Funnel::new();
        let mut line = Line::new(cluster.node().clone(), queue);
        let _outcomes = come(&funnel, 2 * LET_IN_MAX + 1);
        let woken = Arc::new(Woken::default());
        let (waker, mut let_in) = (Waker::from(woken.clone()), 0);
        loop {
            woken.0.store(false, Ordering::Relaxed);
            let free = pin!(line.until(std::future::ready("free"))).poll(&mut Context::from_waker(&waker));
            assert_eq!(free, Poll::Ready(Some("free")), "nobody waits for those who come");
            let more = std::mem::replace(&mut let_in, line.waiting.len());
            assert!(let_in - more <= LET_IN_MAX);
            if !woken.0.load(Ordering::Relaxed) {
                break;
            }
        }
        assert_eq!(let_in, 2 * LET_IN_MAX + 1);
        cluster.shutdown().await.expect("shuts down");
    }
}
