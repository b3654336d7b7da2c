//! Linearizable reads on every node, many for the price of one.
//!
//! A read joins the next round that starts after it arrived, never one under way: the quorum of a round under way may have
//! been asked before a write that this reader already knows of. One round at a time; everybody who came meanwhile shares the
//! next one (ReadIndex: Ongaro, "Consensus: Bridging Theory and Practice", section 6.4).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::channel::oneshot;

use super::Node;
use crate::error::{Error, Obstacle};
use crate::format::message::{Reply, Request};
use crate::rt::{self, Instant, mutant};
use crate::storage::view::View;
use crate::transport::Lane;

/// How long one round may take before those who wait for it ask again.
const ROUND_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a round that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Those who wait for the next round.
#[derive(Default)]
pub(super) struct Rounds {
    state: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    running: bool,
    next: Vec<oneshot::Sender<Option<u64>>>,
}

impl Node {
    /// A view that shows every write acknowledged before this call.
    pub(crate) async fn linearizable_view(self: &Arc<Self>, timeout: Duration) -> Result<Arc<View>, Error> {
        if mutant("read_without_barrier") {
            return Ok(self.state.view());
        }
        let started = Instant::now();
        let deadline = started + timeout;
        let index = self.read_barrier(started, deadline).await?;
        let applied = rt::timeout_at(deadline, self.applied.wait(index)).await;
        match applied {
            Ok(Ok(())) => Ok(self.state.view()),
            Ok(Err(_)) => Err(Error::Stopped { reason: self.stop_reason() }),
            Err(_) => Err(Error::NotApplied { why: Obstacle::Timeout, waited: started.elapsed() }),
        }
    }

    /// The index that a read which arrived now must wait for.
    pub(super) async fn read_barrier(self: &Arc<Self>, started: Instant, deadline: Instant) -> Result<u64, Error> {
        loop {
            self.check_open()?;
            let round = self.join_next_round();
            if let Ok(Ok(Some(index))) = rt::timeout_at(deadline, round).await {
                return Ok(index);
            }
            if Instant::now() + RETRY_PAUSE >= deadline {
                return Err(Error::NotApplied { why: Obstacle::NoLeader, waited: started.elapsed() });
            }
            rt::sleep(RETRY_PAUSE).await;
        }
    }

    fn join_next_round(self: &Arc<Self>) -> oneshot::Receiver<Option<u64>> {
        let (sender, round) = oneshot::channel();
        let mut waiting = self.rounds.state.lock().expect("no panic while held");
        waiting.next.push(sender);
        if !std::mem::replace(&mut waiting.running, true) {
            let node = self.clone();
            rt::spawn("read-rounds", async move { node.run_rounds().await }).detach();
        }
        round
    }

    /// Runs rounds until nobody waits.
    async fn run_rounds(self: Arc<Self>) {
        loop {
            // Readers that were released together come back together: those who are ready to run get to join.
            rt::yield_now().await;
            let joined = {
                let mut waiting = self.rounds.state.lock().expect("no panic while held");
                if waiting.next.is_empty() {
                    waiting.running = false;
                    return;
                }
                std::mem::take(&mut waiting.next)
            };
            let index = rt::timeout(ROUND_TIMEOUT, self.round()).await.ok().flatten();
            for sender in joined {
                let _ = sender.send(index);
            }
        }
    }

    async fn round(&self) -> Option<u64> {
        let status = self.status.borrow();
        if status.leads {
            return self.raft().read_index().await.ok();
        }
        let leader = status.leader?.node;
        let peer = self.peer(leader)?;
        let ask = self.link.ask(&peer, Some(leader), Lane::Client, &Request::ReadIndex, ROUND_TIMEOUT);
        match self.while_leading(leader, ask).await {
            Some(Ok(Reply::ReadIndex { index })) => Some(index),
            _ => None,
        }
    }

    /// Serves a follower's round: joins this leader's own next one.
    pub(super) async fn serve_read_index(self: &Arc<Self>) -> Reply {
        let status = self.status.borrow();
        if !status.leads {
            return Reply::NotLeader { leader: status.leader };
        }
        match rt::timeout(ROUND_TIMEOUT, self.join_next_round()).await {
            Ok(Ok(Some(index))) => Reply::ReadIndex { index },
            _ => Reply::Busy { what: "no quorum confirmed this leader".into() },
        }
    }
}
