//! Barriers: parties that wait until all of them are there, again and again.
//!
//! # Model
//!
//! A barrier of `n` parties is a line of claims (see [`super::claim`]) and its size. What the cluster holds:
//!
//! ```text
//!            put, hanging on a lease          put again, all n at one revision
//!  (nothing) ───────────────────────▶ waiting ───────────────────────────────▶ met in generation g
//!      ▲                                 │                                         │
//!      └─────────────────────────────────┴─────────────────────────────────────────┘
//!                 deleted: cancelled, timed out, session ended, or done with
//! ```
//!
//! * They meet in one transaction: it is carried out on the condition that the first `n` waiting claims stand, writes into each
//!   of them that they have met, and puts the size anew, whose version thereby counts the meetings. So either all `n` have met,
//!   in the same generation and at the same revision, or none.
//! * The first waiting claim sends that transaction, once it sees `n`. If its process dies, its claim goes with its lease: then
//!   there are not `n` any more, and another one is first.
//! * A party that dies before the meeting is not counted; one that gives up at the moment of the meeting may be.
//! * More than `n` parties: the first `n` meet, the others wait for those to come.
//!
//! What is left to others: a meeting is an event, not a state that is held. What a party does afterwards is not guarded;
//! [`Meeting::fence`] orders it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};

use super::attempt::{Attempt, Request, claiming, patiently, while_wanted};
use super::claim::{CLAIMS_MAX, Claim, Line, STEP_TIMEOUT, Size, gone, how_gone, session_error};
use super::inspect::{Claimant, note};
use crate::api::cluster::Cluster;
use crate::api::read::read_error;
use crate::api::session::{LostReason, Session};
use crate::command::{Attach, Compare, KeyRange, KeyValue, Op, Order, Test, Txn};
use crate::error::{Error, Obstacle};
use crate::format::claim::{ClaimNote, decode_numbers, encode_claim, encode_numbers};
use crate::node::Node;
use crate::rt::Instant;
use crate::storage::view::View;
use crate::types::Fence;
use crate::watch_hub::Next;

/// Most parties of a barrier: half of the claims of a line, so that one generation finds room while the last one leaves.
pub const BARRIER_PARTIES_MAX: u64 = CLAIMS_MAX / 2;

const RECIPE: &str = "barrier";

/// A barrier to wait at. See [`Cluster::barrier`].
#[derive(Clone, Debug)]
pub struct Barrier {
    request: Request,
    parties: u64,
}

impl Barrier {
    claiming!("the place at the barrier");

    /// Comes to the barrier and waits until all parties are there.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the barrier has another number of parties. [`Error::NotApplied`] when the [`Barrier::timeout`] is
    /// over before all are there. [`Error::LeaseNotFound`] if the session ended meanwhile; one of its own does when this node is
    /// cut off for longer than the ttl: the party was not counted, unless the others met just then. Otherwise as
    /// [`Cluster::lock`].
    /// # Cancel safety
    /// Dropping the future withdraws the claim in the background. If that is too late, the others meet without this one.
    pub async fn wait(&self) -> Result<Meeting, Error> {
        let (line, request) = (self.line()?, self.request.clone());
        while_wanted(&self.request.cluster, move |node, mut gone| async move {
            let started = Instant::now();
            let Some(attempt) = request.place(&node, line.clone(), Bytes::new(), true).await? else {
                unreachable!("who queues is never told to come back later");
            };
            let patience = request.timeout.unwrap_or(Duration::MAX);
            let meeting = met(&request.cluster, &line, &attempt);
            // The claim goes with the attempt, whatever came of it.
            patiently(started, patience, Obstacle::Waiting, &mut gone, meeting).await
        })
        .await
    }

    /// Who waits, as of one linearizable moment.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn inspect(&self) -> Result<BarrierState, Error> {
        let line = self.line()?;
        let look = move |view: &View| {
            let waiting = waiting(&line, view)?.iter().map(Claimant::read).collect::<Result<_, _>>()?;
            let generation = generation(&line, view)?.saturating_sub(1);
            Ok(BarrierState { parties: line.stored_size(view)?, generation, waiting })
        };
        self.request.look(look).await
    }

    /// Forgets the number of parties and of generations, so that the next caller's counts.
    ///
    /// # Errors
    /// [`Error::NotApplied`] if somebody waits, or has met and not left yet. Otherwise as [`Cluster::delete`].
    /// # Cancel safety
    /// Dropping the future does not withdraw a removal that was sent.
    pub async fn remove(&self) -> Result<(), Error> {
        self.line()?.forget_size(&self.request.cluster, self.request.step_timeout()).await
    }

    fn line(&self) -> Result<Line, Error> {
        if !(1..=BARRIER_PARTIES_MAX).contains(&self.parties) {
            let why = format!("it is {}, but must be from 1 to {BARRIER_PARTIES_MAX}", self.parties);
            return Err(Error::Invalid { what: "parties", why });
        }
        let size = Some(Size { what: "parties of the barrier", of: self.parties });
        Ok(Line { size, ..Line::new(RECIPE, self.request.checked_name("barrier name")?) })
    }
}

/// That all parties were there at once. See [`Barrier::wait`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Meeting {
    /// Which one it was, counted from 1 since the barrier was first used, or removed.
    pub generation: u64,
    /// The same for all parties of the meeting, and greater than that of every earlier one.
    pub fence: Fence,
}

/// Who waits at a barrier. See [`Barrier::inspect`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BarrierState {
    /// How many parties it has; `None` if nobody has ever come, or it was removed.
    pub parties: Option<u64>,
    /// How many meetings there were.
    pub generation: u64,
    /// Who waits, in the order in which they came.
    pub waiting: Vec<Claimant>,
}

/// Waits until the claim says that it has met; calls the meeting if that falls to it.
async fn met(cluster: &Cluster, line: &Line, attempt: &Attempt) -> Result<Meeting, Error> {
    let (node, claim, session) = (&attempt.node, &attempt.claim, &attempt.session);
    // Until it is applied here, there is no telling it from one that is gone.
    node.wait_revision(claim.fence.revision()).await?;
    let meeting = async {
        loop {
            let view = node.state().view();
            let Some(mine) = view.get(&claim.key).map_err(|error| read_error(error, view.revision))? else {
                let reason = how_gone(&view, &claim.key)?.unwrap_or(LostReason::Deleted);
                return Err(gone(session, claim, reason, view.revision));
            };
            if let Some(generation) = met_in(&mine)? {
                let fence = Fence::new(mine.modified).expect("a change has a revision above zero");
                return Ok(Meeting { generation, fence });
            }
            if let Some(call) = call(line, claim, &view)? {
                drop(view);
                carry_out(cluster, node, call).await?;
                continue;
            }
            let seen = view.revision;
            // Not held while waiting: an old view keeps history from being swept.
            drop(view);
            if let Next::Closed(_) = node.hub().subscribe(line.range()).next(seen).await {
                return Err(session_error(session, LostReason::Stopped));
            }
        }
    };
    match select(pin!(meeting), pin!(session.lost())).await {
        Either::Left((met, _)) => met,
        Either::Right((reason, _)) => Err(session_error(session, reason)),
    }
}

/// The transaction that lets the first `n` waiting claims meet, if there are as many and this one is the first.
fn call(line: &Line, claim: &Claim, view: &View) -> Result<Option<Txn>, Error> {
    let Some(size) = line.size else { return Ok(None) };
    let mut called = waiting(line, view)?;
    let parties = usize::try_from(size.of).expect("checked where it came in");
    if called.len() < parties || called[0].key != claim.key {
        return Ok(None);
    }
    called.truncate(parties);
    let generation = generation(line, view)?;
    let unchanged = |kv: &KeyValue| Compare {
        keys: KeyRange::single(kv.key.clone()),
        test: Test::Modified(Order::Equal, kv.modified),
    };
    let size_key = line.size_key();
    let as_counted =
        Compare { keys: KeyRange::single(size_key.clone()), test: Test::Version(Order::Equal, generation) };
    let put = |key, value, lease| Op::Put { key, value, lease, prev: false };
    let mut then = vec![put(size_key, encode_numbers([size.of]), Attach::Forever)];
    for kv in &called {
        let note = ClaimNote { payload: encode_numbers([generation]), ..note(kv)? };
        let lease = kv.lease.expect("every claim hangs on a lease");
        then.push(put(kv.key.clone(), encode_claim(&note), Attach::Lease(lease)));
    }
    let compares = called.iter().map(unchanged).chain([as_counted]).collect();
    Ok(Some(Txn { compares, then: then.into(), otherwise: vec![] }))
}

/// Sends the call and waits until this node shows what came of it. What came in between, or no answer, is no error: the
/// caller looks again.
async fn carry_out(cluster: &Cluster, node: &Arc<Node>, call: Txn) -> Result<(), Error> {
    match cluster.write(call, STEP_TIMEOUT).await {
        Ok(answer) => node.wait_revision(answer.revision).await,
        Err(Error::NotApplied { .. } | Error::Indeterminate { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The claims that have not met yet, the first one first.
fn waiting(line: &Line, view: &View) -> Result<Vec<KeyValue>, Error> {
    let mut waiting = line.claims(view)?;
    let mut error = None;
    waiting.retain(|claim| match met_in(claim) {
        Ok(met) => met.is_none(),
        Err(unreadable) => {
            error.get_or_insert(unreadable);
            false
        }
    });
    error.map_or(Ok(waiting), Err)
}

/// The generation in which the claim has met, if it has.
fn met_in(claim: &KeyValue) -> Result<Option<u64>, Error> {
    let payload = note(claim)?.payload;
    if payload.is_empty() {
        return Ok(None);
    }
    let [generation] =
        decode_numbers(payload).map_err(|error| Error::Invalid { what: "claim", why: error.to_string() })?;
    Ok(Some(generation))
}

/// The number of the next meeting: the size is put once in the beginning, and once more by each.
fn generation(line: &Line, view: &View) -> Result<u64, Error> {
    let size = view.get(&line.size_key()).map_err(|error| read_error(error, view.revision))?;
    Ok(size.map_or(0, |kv| kv.version))
}

impl Cluster {
    /// The barrier called `name` (1 to 512 bytes, no zero byte), at which `parties` parties (1 to 512) meet. Sends nothing.
    ///
    /// The first to come fixes how many there are; everybody must name the same number until [`Barrier::remove`]. A party is
    /// counted while its session lives. Whenever one comes, each that waits looks at the line.
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(3).await?;
    /// let barrier = |node: usize| nodes[node].barrier("loaded", 3);
    /// let (a, b, c) = (barrier(0), barrier(1), barrier(2));
    /// let (a, b, c) = futures::try_join!(a.wait(), b.wait(), c.wait())?;
    /// assert_eq!((a.generation, a), (1, b));
    /// assert_eq!(b, c);
    /// # for node in nodes { node.shutdown().await?; } Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn barrier(&self, name: impl Into<String>, parties: u64) -> Barrier {
        Barrier { request: Request::new(self, name.into()), parties }
    }
}

#[cfg(test)]
mod tests;
