//! Proposals that go to the log, or to the leader, together, and those who wait for what becomes of them.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::Bytes;
use futures::channel::oneshot;

use super::Node;
use super::write::{Attempt, Write};
use crate::format::wire::Writer;
use crate::rt::{self, Instant};
use crate::types::NodeId;

/// Most proposals of one batch or frame.
pub(super) const BATCH_MAX: usize = 1024;
/// Most bytes of one batch or frame, one oversized proposal excepted.
pub(super) const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What may go with a batch.
pub(super) enum Proposed {
    /// To be stamped when it does.
    Write(Write),
    /// Encoded. Whoever sent it sees to all else.
    Encoded { proposal: Bytes, answer: oneshot::Sender<Attempt> },
}

impl Proposed {
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Proposed::Write(write) => Some(write.deadline()),
            Proposed::Encoded { .. } => None,
        }
    }

    fn put(&self, w: &mut Writer, origin: NodeId) {
        match self {
            Proposed::Write(write) => write.put_proposal(w, origin),
            Proposed::Encoded { proposal, .. } => w.raw(proposal),
        }
    }

    /// It has come to this.
    pub(super) fn tell(self, node: &Arc<Node>, attempt: Attempt) {
        match self {
            Proposed::Write(write) => node.settle(write, attempt),
            // Nobody need be waiting any more.
            Proposed::Encoded { answer, .. } => drop(answer.send(attempt)),
        }
    }
}

/// A batch that fills.
pub(super) struct Batch {
    origin: NodeId,
    /// All proposals side by side: the log keeps them in memory for a while, and gives back one allocation for all of them
    /// then instead of one for each.
    encoded: Writer,
    ends: Vec<usize>,
    proposed: Vec<Proposed>,
}

impl Batch {
    /// For this node's proposals. There is room for `count` of `bytes` in all; more is no error.
    pub(super) fn new(origin: NodeId, count: usize, bytes: usize) -> Self {
        let (encoded, ends) = (Writer::with_capacity(bytes), Vec::with_capacity(count));
        Batch { origin, encoded, ends, proposed: Vec::with_capacity(count) }
    }

    pub(super) fn push(&mut self, proposed: Proposed) {
        proposed.put(&mut self.encoded, self.origin);
        self.ends.push(self.encoded.len());
        self.proposed.push(proposed);
    }

    pub(super) fn len(&self) -> usize {
        self.proposed.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.proposed.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.encoded.len()
    }

    pub(super) fn has_room(&self) -> bool {
        self.len() < BATCH_MAX && self.bytes() < BATCH_BYTES_MAX
    }

    /// The proposals, and those who wait.
    pub(super) fn close(self, node: Arc<Node>) -> (Vec<Bytes>, Waiting) {
        let (proposals, proposed) = self.proposals();
        let proposed = Mutex::new(proposed.into_iter().map(Some).collect());
        (proposals, Waiting { node, proposed })
    }

    /// Everybody is told.
    pub(super) fn refuse(self, node: Arc<Node>, why: impl Fn() -> Attempt) {
        self.close(node).1.tell_all(why);
    }

    fn proposals(self) -> (Vec<Bytes>, Vec<Proposed>) {
        let mut encoded = self.encoded.into_vec();
        // It is kept for as long as any of them is.
        if encoded.capacity() / 2 > encoded.len() {
            encoded.shrink_to_fit();
        }
        let (mut rest, mut begin) = (Bytes::from(encoded), 0);
        let take = |end| rest.split_to(end - std::mem::replace(&mut begin, end));
        (self.ends.into_iter().map(take).collect(), self.proposed)
    }
}

/// Those who wait for a batch's outcomes, by their places in it. Whoever is told waits no more.
pub(super) struct Waiting {
    node: Arc<Node>,
    proposed: Mutex<Vec<Option<Proposed>>>,
}

impl Waiting {
    pub(super) fn tell(&self, at: usize, attempt: Attempt) {
        let waiting = self.proposed.lock().expect("no panic while held")[at].take();
        if let Some(waiting) = waiting {
            waiting.tell(&self.node, attempt);
        }
    }

    pub(super) fn tell_all(self, attempt: impl Fn() -> Attempt) {
        self.take_all().for_each(|waiting| waiting.tell(&self.node, attempt()));
    }

    fn take_all(&self) -> impl Iterator<Item = Proposed> + use<> {
        std::mem::take(&mut *self.proposed.lock().expect("no panic while held")).into_iter().flatten()
    }

    /// Does `work`, and meanwhile tells everybody whose time is up that the outcome is not known.
    pub(super) async fn until<T>(&self, work: impl Future<Output = T>) -> T {
        let (mut work, mut expiry) = (pin!(work), pin!(self.expire()));
        std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Pending => expiry.as_mut().poll(cx).map(|never| match never {}),
            ready => ready,
        })
        .await
    }

    async fn expire(&self) -> std::convert::Infallible {
        while let Some(earliest) = self.earliest() {
            rt::sleep_until(earliest).await;
            let now = Instant::now();
            let is_late = |waiting: &Proposed| waiting.deadline().is_some_and(|deadline| deadline <= now);
            let late: Vec<_> = {
                let mut proposed = self.proposed.lock().expect("no panic while held");
                proposed.iter_mut().filter_map(|waiting| waiting.take_if(|waiting| is_late(waiting))).collect()
            };
            late.into_iter().for_each(|waiting| waiting.tell(&self.node, Attempt::Unknown));
        }
        std::future::pending().await
    }

    fn earliest(&self) -> Option<Instant> {
        let proposed = self.proposed.lock().expect("no panic while held");
        proposed.iter().flatten().filter_map(Proposed::deadline).min()
    }
}

impl Drop for Waiting {
    /// The task that was to tell them has panicked, or ends with its runtime.
    fn drop(&mut self) {
        for waiting in self.take_all() {
            if let Proposed::Write(mut write) = waiting {
                write.logged_perhaps();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::write::Asked;
    use super::*;
    use crate::command::Response;
    use crate::{Cluster, Error, Outcome};

    /// A write that nobody sees to, and where its caller would wait.
    fn write(node: &Node) -> (Write, oneshot::Receiver<Result<Response, Error>>) {
        let (answer, outcome) = oneshot::channel();
        let claim = node.clients.claim().expect("not busy").expect("there is a record");
        (
            Asked::new(node.funnel.room.keep(Bytes::new()).expect("it takes none"), Duration::from_secs(5), answer)
                .claimed(claim),
            outcome,
        )
    }

    fn batch_of(node: &Node, write: Write) -> Batch {
        let mut batch = Batch::new(node.id(), 1, 0);
        batch.push(Proposed::Write(write));
        batch
    }

    #[tokio::test]
    async fn what_nobody_sees_to_any_more_ends_by_what_may_have_become_of_it() {
        let cluster = Cluster::local(1).await.expect("starts").remove(0);
        cluster.set("opens a record", &1).await.expect("written");
        let node = cluster.node();

        let (new, outcome) = write(node);
        drop(batch_of(node, new));
        assert!(outcome.await.is_err(), "it was never sent: its caller finds the node stopped");

        let (mut repeated, outcome) = write(node);
        repeated.logged_perhaps();
        drop(batch_of(node, repeated));
        let Ok(Err(Error::Indeterminate { ticket })) = outcome.await else { panic!("an attempt may be in the log") };
        assert_eq!(cluster.resolve(&ticket).await, Ok(Outcome::Never));

        let (sent, outcome) = write(node);
        drop(batch_of(node, sent).close(node.clone()));
        assert!(matches!(outcome.await, Ok(Err(Error::Indeterminate { .. }))), "it was on its way");
        cluster.shutdown().await.expect("shuts down");
    }

    #[test]
    fn what_goes_with_a_batch_comes_out_of_it_as_it_was_in_order() {
        let proposals: Vec<Bytes> = (0..5usize).map(|n| vec![n as u8; n * 100].into()).collect();
        let mut batch = Batch::new(NodeId::new(1), 0, 0);
        for proposal in proposals.clone() {
            batch.push(Proposed::Encoded { proposal, answer: oneshot::channel().0 });
        }
        assert_eq!((batch.len(), batch.bytes()), (5, 1000));
        assert_eq!(batch.proposals().0, proposals);
        assert!(Batch::new(NodeId::new(1), 9, 9).proposals().0.is_empty());
    }
}
