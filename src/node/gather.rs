//! Makes batches of the proposals that wait in the funnel.
//!
//! Callers in a loop would fall into groups: while one group's batch is under way, the others wait for the next one, and
//! each pays for two rounds. So a batch waits, for as long as waking a thread takes, for those whose answers have just been
//! given.

use super::batch::{Batch, Proposed};
use crate::rt;
use crate::types::NodeId;

/// How often a batch that waits for callers lets others run, in a row, before it goes without them: about as long as
/// waking a thread takes.
const GATHER_YIELDS_MAX: usize = 128;
/// As [`GATHER_YIELDS_MAX`], in all: callers who come one by one, and would not stop coming, are not waited for.
const GATHER_YIELDS_TOTAL: usize = 512;

/// Where proposals come from.
pub(super) trait Source {
    /// One that is there.
    fn take(&mut self) -> Option<Proposed>;

    /// The next one; `None` once there will be none any more.
    async fn wait(&mut self) -> Option<Proposed>;
}

/// What is known of who will come.
#[derive(Debug)]
pub(super) struct Gather {
    origin: NodeId,
    /// Proposals of the batch before, and their bytes.
    last: (usize, usize),
    /// It went without all it had waited for: they do not all come back.
    short: bool,
}

impl Gather {
    pub(super) fn new(origin: NodeId) -> Self {
        Gather { origin, last: (0, 0), short: false }
    }

    /// Proposals of the batch before.
    pub(super) fn last(&self) -> usize {
        self.last.0
    }

    /// At least one proposal, and whatever else is there, up to the limits.
    pub(super) async fn next_batch(&mut self, source: &mut impl Source) -> Option<Batch> {
        let (last, bytes) = self.last;
        let mut batch = Batch::new(self.origin, last, bytes);
        while batch.has_room()
            && let Some(proposed) = source.take()
        {
            batch.push(proposed);
        }
        let expected = last + if self.short { 0 } else { batch.len() };
        if batch.is_empty() {
            batch.push(source.wait().await?);
        }
        // Callers on this thread that are ready to run get to add theirs, whatever is expected.
        rt::yield_now().await;
        let (mut yields, mut total) = (0, 0);
        while batch.has_room() {
            if let Some(proposed) = source.take() {
                batch.push(proposed);
                yields = 0;
            } else if batch.len() < expected && yields < GATHER_YIELDS_MAX && total < GATHER_YIELDS_TOTAL {
                (yields, total) = (yields + 1, total + 1);
                rt::yield_now().await;
            } else {
                break;
            }
        }
        (self.last, self.short) = ((batch.len(), batch.bytes()), batch.len() < expected);
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::StreamExt;
    use futures::channel::{mpsc, oneshot};

    use super::super::batch::{BATCH_BYTES_MAX, BATCH_MAX};
    use super::*;

    impl Source for mpsc::UnboundedReceiver<Proposed> {
        fn take(&mut self) -> Option<Proposed> {
            self.try_recv().ok()
        }

        async fn wait(&mut self) -> Option<Proposed> {
            self.next().await
        }
    }

    fn gather() -> Gather {
        Gather::new(NodeId::new(1))
    }

    fn send_one(queue: &mpsc::UnboundedSender<Proposed>, bytes: usize) {
        let (answer, _) = oneshot::channel();
        let proposal = Bytes::from(vec![7; bytes]);
        queue.unbounded_send(Proposed::Encoded { proposal, answer }).expect("somebody takes it");
    }

    fn send(queue: &mpsc::UnboundedSender<Proposed>, count: usize) {
        (0..count).for_each(|_| send_one(queue, 5));
    }

    async fn batch(gather: &mut Gather, queue: &mut mpsc::UnboundedReceiver<Proposed>) -> usize {
        gather.next_batch(queue).await.expect("something was sent").len()
    }

    /// Lets others run, and then sends.
    async fn send_later(queue: mpsc::UnboundedSender<Proposed>, yields: usize, count: usize) {
        for _ in 0..yields {
            rt::yield_now().await;
        }
        send(&queue, count);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_were_answered_go_with_those_who_waited() {
        let (submissions, mut queue) = mpsc::unbounded();
        let mut gather = gather();
        send(&submissions, 3);
        assert_eq!(batch(&mut gather, &mut queue).await, 3);
        // Two others have come meanwhile; the three come back one after the other.
        send(&submissions, 2);
        for yields in [10, 60, 110] {
            rt::spawn("caller", send_later(submissions.clone(), yields, 1)).detach();
        }
        assert_eq!(batch(&mut gather, &mut queue).await, 5);
        // All five come back.
        rt::spawn("callers", send_later(submissions.clone(), 20, 5)).detach();
        send(&submissions, 1);
        assert_eq!(batch(&mut gather, &mut queue).await, 6);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_do_not_come_back_are_waited_for_once_and_not_for_long() {
        let (submissions, mut queue) = mpsc::unbounded();
        let mut gather = gather();
        for count in [5, 2] {
            send(&submissions, count);
            assert_eq!(batch(&mut gather, &mut queue).await, count);
        }
        assert!(gather.short);
        send(&submissions, 4);
        rt::spawn("late", send_later(submissions.clone(), 3, 1)).detach();
        assert_eq!(batch(&mut gather, &mut queue).await, 4, "there are more than the batch before had");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_of_callers_holds_nobody_up() {
        let (submissions, mut queue) = mpsc::unbounded();
        let mut gather = Gather { last: (1000, 0), ..gather() };
        let trickle = async move {
            for _ in 0..900 {
                send_later(submissions.clone(), GATHER_YIELDS_MAX / 2, 1).await;
            }
        };
        rt::spawn("trickle", trickle).detach();
        let taken = batch(&mut gather, &mut queue).await;
        assert!((2..=1 + 2 * GATHER_YIELDS_TOTAL / GATHER_YIELDS_MAX).contains(&taken), "{taken}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_waits_for_nobody() {
        let (submissions, mut queue) = mpsc::unbounded();
        let mut gather = gather();
        for _ in 0..3 {
            for yields in [1, 20] {
                rt::spawn("caller", send_later(submissions.clone(), yields, 1)).detach();
            }
            assert_eq!(batch(&mut gather, &mut queue).await, 1);
            assert_eq!(batch(&mut gather, &mut queue).await, 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_ends_at_its_limits() {
        let (submissions, mut queue) = mpsc::unbounded();
        let mut gather = gather();
        send(&submissions, BATCH_MAX + 1);
        assert_eq!(batch(&mut gather, &mut queue).await, BATCH_MAX);
        assert_eq!(batch(&mut gather, &mut queue).await, 1);
        for _ in 0..3 {
            send_one(&submissions, BATCH_BYTES_MAX / 2);
        }
        assert_eq!(batch(&mut gather, &mut queue).await, 2);
    }
}
