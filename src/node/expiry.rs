//! The leader's clock of leases.
//!
//! Deadlines live here, in the memory of the node that leads, on its monotonic clock; the log only ever says that a lease
//! was granted or ended. A new leader gives every lease its full time again, so a change of leader can only prolong one.
//! A lease is ended by an entry that names its issuer and is void under any other leader (see
//! [`crate::state_machine`]).
//!
//! A renewal is answered after three things, in this order: it arrived; a quorum confirmed this leader in a round that
//! started later, and everything up to that round's index is applied here; and then, in one step, the lease was still there
//! and this leader had not proposed its end. Without the second, a deposed leader or one that has not yet applied its
//! predecessor's expiry could promise time that the lease does not have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::Instrument;

use super::Node;
use crate::command::{Command, LeaseChange, Response};
use crate::error::{Error, Obstacle};
use crate::format::command::encode_proposal;
use crate::format::message::{KeepAlive, Reply, Request};
use crate::raft::ASK_TIMEOUT;
use crate::rt::{self, Instant, Mark, mark, mutant};
use crate::transport::Lane;
use crate::types::{LeaderId, LeaseId};

/// Leases ended in one go, so that many at once do not hold up other writes.
const EXPIRE_BATCH_MAX: usize = 256;
/// Pause before an expiry that was not carried out is proposed again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Pause between attempts of a renewal.
const RENEW_PAUSE: Duration = Duration::from_millis(50);

/// All leases of the applied state, and their deadlines while this node leads.
#[derive(Default)]
pub(super) struct Leases {
    state: Mutex<Table>,
    /// Woken when the earliest deadline may have changed.
    changed: tokio::sync::Notify,
}

#[derive(Default)]
struct Table {
    /// Every lease of the applied state with its time to live in milliseconds.
    ttl_ms: BTreeMap<LeaseId, u64>,
    reign: Option<Reign>,
    /// What the last leadership of this node was ending when it ceased. It can be the same that begins again: while the disk
    /// hangs this node does not count as the leader.
    ceased: Option<(LeaderId, BTreeSet<LeaseId>)>,
}

/// One uninterrupted leadership of this node.
struct Reign {
    leader: LeaderId,
    began: Instant,
    deadlines: BTreeMap<LeaseId, Instant>,
    queue: BTreeSet<(Instant, LeaseId)>,
    /// Leases whose end this leader has proposed; they are not renewed any more.
    ending: BTreeSet<LeaseId>,
}

impl Reign {
    fn set(&mut self, lease: LeaseId, deadline: Instant) {
        if let Some(old) = self.deadlines.insert(lease, deadline) {
            self.queue.remove(&(old, lease));
        }
        self.queue.insert((deadline, lease));
    }

    fn forget(&mut self, lease: LeaseId) {
        self.ending.remove(&lease);
        if let Some(old) = self.deadlines.remove(&lease) {
            self.queue.remove(&(old, lease));
        }
    }
}

impl Leases {
    /// Replaces the table: at start, and after a snapshot was installed.
    pub(super) fn load(&self, leases: Vec<(LeaseId, u64)>) {
        let mut table = self.lock();
        table.ttl_ms = leases.into_iter().collect();
        if let Some(leader) = table.cease() {
            table.begin(leader);
        }
        drop(table);
        self.changed.notify_one();
    }

    /// Follows what was applied.
    pub(super) fn applied(&self, changes: impl Iterator<Item = LeaseChange>) {
        let mut table = self.lock();
        let now = Instant::now();
        let mut any = false;
        for change in changes {
            any = true;
            match change {
                LeaseChange::Granted { lease, ttl_ms } => {
                    table.ttl_ms.insert(lease, ttl_ms);
                    if let Some(reign) = &mut table.reign {
                        reign.set(lease, now + Duration::from_millis(ttl_ms));
                    }
                }
                LeaseChange::Ended { lease } => {
                    table.ttl_ms.remove(&lease);
                    if let Some(reign) = &mut table.reign {
                        reign.forget(lease);
                    }
                }
            }
        }
        drop(table);
        if any {
            self.changed.notify_one();
        }
    }

    /// Starts or ends this node's leadership; each beginning gives every lease its full time.
    pub(super) fn reign(&self, leader: Option<LeaderId>) {
        let mut table = self.lock();
        if table.reign.as_ref().map(|reign| reign.leader) == leader {
            return;
        }
        table.cease();
        if let Some(leader) = leader {
            table.begin(leader);
        }
        drop(table);
        self.changed.notify_one();
    }

    #[cfg(test)]
    pub(super) fn ttl_ms(&self, lease: LeaseId) -> Option<u64> {
        self.lock().ttl_ms.get(&lease).copied()
    }

    /// Renews in one step what may be renewed; `None` for a lease whose end is under way: ask again.
    fn renew(&self, lease: LeaseId, leader: LeaderId) -> Option<KeepAlive> {
        let mut table = self.lock();
        let Some(ttl_ms) = table.ttl_ms.get(&lease).copied() else { return Some(KeepAlive::NotFound) };
        let reign = table.reign.as_mut().filter(|reign| reign.leader == leader)?;
        if reign.ending.contains(&lease) {
            return None;
        }
        reign.set(lease, Instant::now() + Duration::from_millis(ttl_ms));
        Some(KeepAlive::Renewed { ttl_ms })
    }

    /// Leases that are due, marked as ending; or when the next one will be.
    fn due(&self) -> (Vec<LeaseId>, Option<LeaderId>, Option<Instant>) {
        let mut table = self.lock();
        let table = &mut *table;
        let Some(reign) = &mut table.reign else { return (Vec::new(), None, None) };
        let now = Instant::now();
        let mut due = Vec::new();
        while let Some((deadline, lease)) = reign.queue.first().copied() {
            if deadline > now || due.len() == EXPIRE_BATCH_MAX {
                break;
            }
            reign.queue.pop_first();
            if table.ttl_ms.get(&lease).is_some_and(|ttl_ms| reign.began + Duration::from_millis(*ttl_ms) == deadline) {
                mark(Mark::InheritedLeaseExpired);
            }
            reign.ending.insert(lease);
            due.push(lease);
        }
        (due, Some(reign.leader), reign.queue.first().map(|(deadline, _)| *deadline))
    }

    /// An expiry was not carried out: try again soon, if this leadership still lasts.
    fn not_ended(&self, lease: LeaseId, leader: LeaderId) {
        let mut table = self.lock();
        if !table.ttl_ms.contains_key(&lease) {
            return;
        }
        if let Some(reign) = table.reign.as_mut().filter(|reign| reign.leader == leader) {
            // Still marked as ending: its end may be in the log, so it must not be renewed.
            reign.set(lease, Instant::now() + RETRY_PAUSE);
        }
    }

    fn left(&self, lease: LeaseId) -> Option<(Option<Duration>, u64)> {
        let table = self.lock();
        let ttl_ms = *table.ttl_ms.get(&lease)?;
        let deadline = table.reign.as_ref().and_then(|reign| reign.deadlines.get(&lease));
        Some((deadline.map(|deadline| *deadline - Instant::now()), ttl_ms))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.state.lock().expect("no panic while held")
    }
}

impl Table {
    /// Ends the leadership, if there is one, and remembers what it was ending.
    fn cease(&mut self) -> Option<LeaderId> {
        let Reign { leader, ending, .. } = self.reign.take()?;
        self.ceased = Some((leader, ending));
        Some(leader)
    }

    fn begin(&mut self, leader: LeaderId) {
        // What was proposed under the same leadership may be in the log, and would count: a lease whose end may come is not
        // renewed.
        let mut ending = match self.ceased.take() {
            Some((ceased, ending)) if ceased == leader => ending,
            _ => BTreeSet::new(),
        };
        ending.retain(|lease| self.ttl_ms.contains_key(lease));
        let now = Instant::now();
        let mut reign = Reign { leader, began: now, deadlines: BTreeMap::new(), queue: BTreeSet::new(), ending };
        for (lease, ttl_ms) in &self.ttl_ms {
            reign.set(*lease, now + Duration::from_millis(*ttl_ms));
        }
        self.reign = Some(reign);
    }
}

impl Node {
    /// Ends leases as they fall due, for as long as the node lives.
    pub(super) async fn run_expiry(self: Arc<Self>) {
        loop {
            let changed = self.leases.changed.notified();
            let (due, leader, next) = self.leases.due();
            if let Some(leader) = leader.filter(|_| !due.is_empty()) {
                self.expire(due, leader).await;
                continue;
            }
            match next {
                Some(next) => drop(rt::timeout_at(next, changed).await),
                None => changed.await,
            }
        }
    }

    async fn expire(&self, due: Vec<LeaseId>, leader: LeaderId) {
        let span = tracing::debug_span!("expiry", name = self.name(), leases = due.len());
        let proposals = due
            .iter()
            .map(|lease| encode_proposal(&self.proposal(Command::LeaseExpire { lease: *lease, issued_by: leader })))
            .collect();
        self.raft()
            .propose(proposals, |at, outcome| {
                let lease = due[at];
                match outcome {
                    Ok((_, Response::LeaseEnded { deleted, revision })) => {
                        tracing::debug!(%lease, deleted, %revision, "lease expired");
                    }
                    _ => self.leases.not_ended(lease, leader),
                }
            })
            .instrument(span)
            .await;
    }

    /// Renews a lease at the leader. `Some(ttl)` if it holds for another full time to live counted from this call, `None`
    /// if it is gone.
    pub(crate) async fn keep_alive(
        self: &Arc<Self>,
        lease: LeaseId,
        timeout: Duration,
    ) -> Result<Option<Duration>, Error> {
        let started = Instant::now();
        let deadline = started + timeout;
        loop {
            self.check_open()?;
            let left = deadline - Instant::now();
            let renewed = rt::timeout(left.min(ASK_TIMEOUT), self.keep_alive_once(lease)).await;
            match renewed.ok().flatten() {
                Some(KeepAlive::Renewed { ttl_ms }) => return Ok(Some(Duration::from_millis(ttl_ms))),
                Some(KeepAlive::NotFound) => return Ok(None),
                None if Instant::now() + RENEW_PAUSE >= deadline => {
                    return Err(Error::NotApplied { why: Obstacle::NoLeader, waited: started.elapsed() });
                }
                None => rt::sleep(RENEW_PAUSE).await,
            }
        }
    }

    async fn keep_alive_once(self: &Arc<Self>, lease: LeaseId) -> Option<KeepAlive> {
        let status = self.status.borrow();
        let reply = if status.leads {
            self.serve_keep_alive(vec![lease]).await
        } else {
            let leader = status.leader?.node;
            let request = Request::KeepAlive { leases: vec![lease] };
            // On the control lane: a renewal must not queue behind bulk.
            self.link.ask(&self.peer(leader)?, Some(leader), Lane::Control, &request, ASK_TIMEOUT).await.ok()?
        };
        match reply {
            Reply::KeptAlive { results } => results.into_iter().next(),
            _ => None,
        }
    }

    /// Serves renewals as the leader; see the module's words on the order of its three steps.
    pub(super) async fn serve_keep_alive(self: &Arc<Self>, leases: Vec<LeaseId>) -> Reply {
        let status = self.status.borrow();
        let Some(leader) = status.leader.filter(|_| status.leads) else {
            mark(Mark::KeepaliveRefused);
            return Reply::NotLeader { leader: status.leader };
        };
        let started = Instant::now();
        let confirmed = match mutant("keepalive_ack_without_quorum") {
            true => Ok(self.applied.get()),
            false => self.read_barrier(started, started + ASK_TIMEOUT).await,
        };
        let Ok(index) = confirmed else {
            mark(Mark::KeepaliveRefused);
            return Reply::Busy { what: "no quorum confirmed this leader".into() };
        };
        if !mutant("keepalive_over_inherited_expiry") && !self.has_applied(index, started + ASK_TIMEOUT).await {
            return Reply::Busy { what: "what was committed is not applied yet".into() };
        }
        let results: Option<Vec<_>> = leases.iter().map(|lease| self.leases.renew(*lease, leader)).collect();
        match results {
            Some(results) => Reply::KeptAlive { results },
            None => Reply::Busy { what: "a lease is being ended".into() },
        }
    }

    /// Waits until this node has applied the entry at `index`; false if it has not by then, or has stopped.
    async fn has_applied(&self, index: u64, deadline: Instant) -> bool {
        matches!(rt::timeout_at(deadline, self.applied.wait(index)).await, Ok(Ok(())))
    }

    /// How long a lease has left by the leader's clock, and its time to live; `None` if there is no such lease.
    pub(crate) async fn remaining(
        self: &Arc<Self>,
        lease: LeaseId,
        timeout: Duration,
    ) -> Result<Option<(Duration, Duration)>, Error> {
        let started = Instant::now();
        let deadline = started + timeout;
        loop {
            self.check_open()?;
            let left = deadline - Instant::now();
            let asked = rt::timeout(left.min(ASK_TIMEOUT), self.remaining_once(lease)).await;
            match asked.ok().flatten() {
                Some(Reply::Remaining { left_ms: None, ttl_ms: 0 }) => return Ok(None),
                Some(Reply::Remaining { left_ms: Some(left), ttl_ms }) => {
                    return Ok(Some((Duration::from_millis(left), Duration::from_millis(ttl_ms))));
                }
                _ if Instant::now() + RENEW_PAUSE >= deadline => {
                    return Err(Error::NotApplied { why: Obstacle::NoLeader, waited: started.elapsed() });
                }
                _ => rt::sleep(RENEW_PAUSE).await,
            }
        }
    }

    async fn remaining_once(self: &Arc<Self>, lease: LeaseId) -> Option<Reply> {
        let status = self.status.borrow();
        if status.leads {
            return Some(self.serve_remaining(lease).await);
        }
        let leader = status.leader?.node;
        let request = Request::Remaining { lease };
        self.link.ask(&self.peer(leader)?, Some(leader), Lane::Client, &request, ASK_TIMEOUT).await.ok()
    }

    /// Serves the question as the leader, after a round like any linearizable read.
    pub(super) async fn serve_remaining(self: &Arc<Self>, lease: LeaseId) -> Reply {
        let started = Instant::now();
        let deadline = started + ASK_TIMEOUT;
        let leader = self.status.borrow().leader;
        match self.read_barrier(started, deadline).await {
            Ok(index) if self.has_applied(index, deadline).await => match self.leases.left(lease) {
                Some((Some(left), ttl_ms)) => Reply::Remaining { left_ms: Some(left.as_millis() as u64), ttl_ms },
                Some((None, _)) => Reply::NotLeader { leader },
                None => Reply::Remaining { left_ms: None, ttl_ms: 0 },
            },
            _ => Reply::Busy { what: "no quorum confirmed this leader".into() },
        }
    }
}

#[cfg(test)]
mod tests;
