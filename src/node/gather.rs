//! Makes batches of the proposals that wait in the funnel.
//!
//! Callers in a loop would fall into groups: while one group's batch is under way, the others wait for the next one, and
//! each pays for two rounds. So a batch waits, for as long as waking a thread takes, for those whose answers have just been
//! given.

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::{mpsc, oneshot};

use super::propose::Attempt;
use crate::rt;

/// Most proposals of one batch or frame.
const BATCH_MAX: usize = 1024;
/// Most bytes of one batch or frame, one oversized proposal excepted.
const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How often a batch that waits for callers lets others run, in a row, before it goes without them: about as long as
/// waking a thread takes.
const GATHER_YIELDS_MAX: usize = 64;
/// As [`GATHER_YIELDS_MAX`], in all: callers who come one by one, and would not stop coming, are not waited for.
const GATHER_YIELDS_TOTAL: usize = 256;

/// One encoded proposal waiting for the funnel.
pub(super) struct Submission {
    pub(super) bytes: Bytes,
    pub(super) answer: oneshot::Sender<Attempt>,
}

/// What is known of who will come.
#[derive(Debug, Default)]
pub(super) struct Gather {
    /// Submissions of the batch before.
    last: usize,
    /// It went without all it had waited for: they do not all come back.
    short: bool,
}

impl Gather {
    /// At least one submission, and whatever else is there, up to the limits.
    pub(super) async fn next_batch(
        &mut self,
        queue: &mut mpsc::UnboundedReceiver<Submission>,
    ) -> Option<Vec<Submission>> {
        let mut batch = Batch::default();
        while batch.has_room() && batch.take(queue.try_recv().ok()) {}
        let waited = if self.short { 0 } else { batch.submissions.len() };
        let expected = self.last + waited;
        if batch.submissions.is_empty() {
            batch.take(Some(queue.next().await?));
        }
        // Callers on this thread that are ready to run get to add theirs, whatever is expected.
        rt::yield_now().await;
        let (mut yields, mut total) = (0, 0);
        while batch.has_room() {
            if batch.take(queue.try_recv().ok()) {
                yields = 0;
            } else if batch.submissions.len() < expected && yields < GATHER_YIELDS_MAX && total < GATHER_YIELDS_TOTAL {
                (yields, total) = (yields + 1, total + 1);
                rt::yield_now().await;
            } else {
                break;
            }
        }
        let submissions = batch.submissions;
        *self = Gather { last: submissions.len(), short: submissions.len() < expected };
        Some(submissions)
    }
}

#[derive(Default)]
struct Batch {
    submissions: Vec<Submission>,
    bytes: usize,
}

impl Batch {
    fn has_room(&self) -> bool {
        self.submissions.len() < BATCH_MAX && self.bytes < BATCH_BYTES_MAX
    }

    /// Whether there was one to take.
    fn take(&mut self, next: Option<Submission>) -> bool {
        let Some(next) = next else { return false };
        self.bytes += next.bytes.len();
        self.submissions.push(next);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(queue: &mpsc::UnboundedSender<Submission>, count: usize) {
        for _ in 0..count {
            let (answer, _) = oneshot::channel();
            queue
                .unbounded_send(Submission { bytes: Bytes::from_static(b"write"), answer })
                .expect("somebody takes it");
        }
    }

    async fn batch(gather: &mut Gather, queue: &mut mpsc::UnboundedReceiver<Submission>) -> usize {
        gather.next_batch(queue).await.expect("something was sent").len()
    }

    /// Lets others run, and then sends.
    async fn send_later(queue: mpsc::UnboundedSender<Submission>, yields: usize, count: usize) {
        for _ in 0..yields {
            rt::yield_now().await;
        }
        send(&queue, count);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_were_answered_go_with_those_who_waited() {
        let (submissions, mut queue) = mpsc::unbounded();
        let mut gather = Gather::default();
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
        let mut gather = Gather::default();
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
        let mut gather = Gather { last: 1000, short: false };
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
        let mut gather = Gather::default();
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
        let mut gather = Gather::default();
        send(&submissions, BATCH_MAX + 1);
        assert_eq!(batch(&mut gather, &mut queue).await, BATCH_MAX);
        assert_eq!(batch(&mut gather, &mut queue).await, 1);
        for _ in 0..3 {
            let (answer, _) = oneshot::channel();
            submissions.unbounded_send(Submission { bytes: vec![0; BATCH_BYTES_MAX / 2].into(), answer }).unwrap();
        }
        assert_eq!(batch(&mut gather, &mut queue).await, 2);
    }
}
