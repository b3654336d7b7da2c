//! Puts append frames back into the order they were sent in.
//!
//! A transport may reorder; the library's pipeline may not be: a frame that overtakes its predecessor is answered with a
//! conflict and costs the stream. Frames of one stream are numbered; an early one waits for its turn, within a window and a
//! time limit. Correctness does not depend on any of it.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use futures::channel::oneshot;

use super::network::APPEND_WINDOW;
use crate::rt;
use crate::types::NodeId;

/// The number of frames that are of no stream: heartbeats, which come all the time and need no order. Remembered like streams,
/// they would push out those that idle.
pub(super) const ALONE: u64 = 0;
/// Streams remembered at a time. A peer has one; older ones are of peers that started over.
const STREAMS_MAX: usize = 64;
/// Frames that may wait in one stream: what a sender may have under way.
const EARLY_MAX: usize = APPEND_WINDOW * 2;
/// How long an early frame waits for its predecessors before it is refused.
const PATIENCE: Duration = Duration::from_secs(2);

/// The streams this node receives.
#[derive(Default)]
pub(super) struct Order {
    streams: Mutex<VecDeque<Stream>>,
}

struct Stream {
    from: NodeId,
    number: u64,
    next: u64,
    early: Vec<(u64, oneshot::Sender<()>)>,
}

/// The frame came too early by too much, or its predecessors did not come.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutOfOrder;

impl Order {
    /// Waits until every frame of the stream before `seq` has been handed in. Call [`Order::handed_in`] afterwards.
    ///
    /// A frame that stands alone or was handed in before (a double) passes at once: the library judges it by its contents.
    pub(super) async fn turn(&self, from: NodeId, number: u64, seq: u64) -> Result<(), OutOfOrder> {
        if number == ALONE {
            return Ok(());
        }
        let wait = {
            let mut streams = self.streams.lock().expect("no panic while held");
            let stream = find(&mut streams, from, number);
            if seq <= stream.next {
                return Ok(());
            }
            if stream.early.len() >= EARLY_MAX {
                return Err(OutOfOrder);
            }
            let (sender, wait) = oneshot::channel();
            stream.early.push((seq, sender));
            wait
        };
        match rt::timeout(PATIENCE, wait).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(OutOfOrder),
        }
    }

    /// Says that frame `seq` is with the library, and lets its successor through.
    pub(super) fn handed_in(&self, from: NodeId, number: u64, seq: u64) {
        if number == ALONE {
            return;
        }
        let mut streams = self.streams.lock().expect("no panic while held");
        let stream = find(&mut streams, from, number);
        stream.next = stream.next.max(seq + 1);
        let next = stream.next;
        let (ready, early) = std::mem::take(&mut stream.early).into_iter().partition(|(seq, _)| *seq <= next);
        stream.early = early;
        for (_, sender) in ready as Vec<(u64, oneshot::Sender<()>)> {
            // A waiter that gave up is refused at its end; nothing to do here.
            let _ = sender.send(());
        }
    }
}

/// The stream, now the most recently used: a long one is not to be forgotten over short ones.
fn find(streams: &mut VecDeque<Stream>, from: NodeId, number: u64) -> &mut Stream {
    let known = streams.iter().position(|s| s.from == from && s.number == number).and_then(|at| streams.remove(at));
    if known.is_none() && streams.len() == STREAMS_MAX {
        streams.pop_front();
    }
    streams.push_back(known.unwrap_or(Stream { from, number, next: 0, early: Vec::new() }));
    streams.back_mut().expect("just pushed")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_early_frame_waits_for_its_predecessor() {
        let order = Arc::new(Order::default());
        let from = NodeId::new(7);
        let early = rt::spawn("early", {
            let order = order.clone();
            async move { order.turn(from, 1, 1).await }
        });
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        assert!(!early.is_finished(), "frame 1 went in before frame 0");
        assert_eq!(order.turn(from, 1, 0).await, Ok(()));
        order.handed_in(from, 1, 0);
        assert_eq!(early.await.expect("no panic"), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_whose_predecessor_never_comes_is_refused_in_the_end() {
        let order = Order::default();
        assert_eq!(order.turn(NodeId::new(7), 1, 3).await, Err(OutOfOrder));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_in_use_is_not_forgotten_over_many_short_ones() {
        let order = Order::default();
        let from = NodeId::new(7);
        for seq in 0..1000 {
            assert_eq!(rt::timeout(Duration::ZERO, order.turn(from, 1, seq)).await, Ok(Ok(())), "frame {seq}");
            order.handed_in(from, 1, seq);
            assert_eq!(order.turn(from, 100 + seq, 0).await, Ok(()));
            order.handed_in(from, 100 + seq, 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_idles_is_not_forgotten_over_any_number_of_heartbeats() {
        let order = Order::default();
        let from = NodeId::new(7);
        assert_eq!(order.turn(from, 1, 0).await, Ok(()));
        order.handed_in(from, 1, 0);
        for _ in 0..1000 {
            assert_eq!(order.turn(from, ALONE, 0).await, Ok(()));
            order.handed_in(from, ALONE, 0);
        }
        assert_eq!(rt::timeout(Duration::ZERO, order.turn(from, 1, 1)).await, Ok(Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_double_passes_and_streams_do_not_hold_each_other_up() {
        let order = Order::default();
        let from = NodeId::new(7);
        assert_eq!(order.turn(from, 1, 0).await, Ok(()));
        order.handed_in(from, 1, 0);
        assert_eq!(order.turn(from, 1, 0).await, Ok(()));
        assert_eq!(order.turn(from, 2, 0).await, Ok(()));
    }
}
