//! Elections: one leader at a time, who has something to say of itself, and everybody who wants to know.
//!
//! # Model
//!
//! An election is a lock whose claims carry their candidates' values (see [`super::claim`] and [`super::lock`]); the leader
//! *is* the first claim of the line. What the cluster holds:
//!
//! ```text
//!            campaign: put with the value, hanging on a lease         deleted: resigned, cancelled, session ended
//!  (nothing) ───────────────────────────────────────▶ candidate ─────────────────────────────────────────▶ (nothing)
//!                                                     first in line = leader  ◀─┐
//!                                                     proclaim: put again ──────┘
//! ```
//!
//! What a candidate goes through on this side is [`super::attempt`]'s.
//!
//! * Everything said of locks holds: one leader at any revision, fences that grow from leader to leader (E1), the next
//!   candidate in order follows (E3), and a leader that lost its office knows that before there is another.
//! * A campaign is won only by a claim that was seen standing, after its turn had come. That the one before it is gone is not
//!   enough: its own may be gone as well.
//! * A proclamation changes the value of a claim that stands and never makes one: the claim's fence is its condition.
//! * What an observer is told is a function of the line at successive revisions, as this node has applied them. A claim that is
//!   gone never comes back and none gets in front, so leaders appear in the order of their fences (E2), and none is shown once
//!   its claim is gone: then it is the next one, or nobody.
//!
//! What is left to others: whether the leader's process knows yet that it leads, and what it does about it.

mod observe;

use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

pub use self::observe::Observe;
use super::attempt::{Request, claiming};
use super::claim::Line;
use super::guard::{Guard, fenced, guarding};
use super::inspect::{Claimant, note};
use crate::api::cluster::Cluster;
use crate::api::session::{Lost, LostReason, Session};
use crate::api::txn::Transaction;
use crate::codec::{self, Value};
use crate::command::{Attach, Compare, KeyRange, KeyValue, Op, Order, Test, Txn};
use crate::error::Error;
use crate::format::claim::{ClaimNote, encode_claim};
use crate::rt;
use crate::types::{Fence, Revision};

/// Most bytes of a candidate's value, encoded. Every candidate's is kept, and every observer reads them.
pub const ELECTION_VALUE_BYTES_MAX: usize = 64 * 1024;
/// Pause before [`Election::run`] campaigns again after a campaign that came to nothing.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

const RECIPE: &str = "election";

/// An election to stand in, to watch, or to look at. See [`Cluster::election`].
#[must_use = "an election is nothing until somebody campaigns or observes"]
pub struct Election<V> {
    request: Request,
    value: PhantomData<fn() -> V>,
}

impl<V: Value> Election<V> {
    claiming!("the office");

    /// Stands in the election with a value that observers see, at most 64 KiB encoded, and waits to be the leader. Candidates
    /// follow each other in the order in which they came.
    ///
    /// # Errors
    /// Of the future: [`Error::Invalid`] and [`Error::Codec`] before anything is sent, otherwise as [`Cluster::lock`].
    /// # Cancel safety
    /// Dropping the future withdraws the candidate in the background, whether it was still being placed, waiting, or just
    /// elected.
    pub fn campaign(&self, value: &V) -> Campaign<V> {
        let payload = encoded(&self.request.name, value);
        Campaign { election: self.clone(), payload }
    }

    /// Campaigns, does `work` as the leader, and resigns when that is done, whoever else holds on to the leadership by then.
    ///
    /// When the office is lost, `work` is dropped before anybody else can lead, and another campaign begins, at the end of the
    /// line; likewise when a campaign comes to nothing because no leader of the cluster answered, or this node was cut off for
    /// longer than the ttl. That is repeated, after a pause of 100 ms, for as long as the future is polled.
    ///
    /// # Errors
    /// What another campaign would not mend: [`Error::Invalid`], [`Error::Codec`], [`Error::Stopped`], [`Error::Formation`],
    /// [`Error::LeaseNotFound`] if the session it was given has ended. With a [`Election::timeout`], also the
    /// [`Error::NotApplied`] of a campaign that took longer.
    /// # Cancel safety
    /// Dropping the future drops `work` and resigns in the background.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// let election = cluster.election::<String>("scheduler");
    /// let done = election.run(&"10.0.0.7:8080".to_string(), |lead| async move {
    ///     // A loop that schedules for as long as it is polled, say.
    ///     lead.fence()
    /// });
    /// println!("led with fence {}", done.await?);
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn run<F, W>(&self, value: &V, work: F) -> impl Future<Output = Result<W::Output, Error>> + use<V, F, W>
    where
        F: FnMut(Arc<Leadership<V>>) -> W,
        W: Future,
    {
        self.campaign(value).lead(work)
    }

    /// Follows who leads, beginning with who does now. Reads what this node has applied, and needs no leader of the cluster.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name out of range. [`Error::Stopped`], [`Error::Formation`].
    /// # Cancel safety
    /// Nothing is lost.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// let election = cluster.election::<String>("scheduler");
    /// let mut leaders = election.observe().await?;
    /// assert_eq!(leaders.next().await.expect("the node runs")?, None);
    /// let lead = election.campaign(&"10.0.0.7:8080".to_string()).await?;
    /// let leader = leaders.next().await.expect("the node runs")?.expect("just elected");
    /// assert_eq!((leader.value.as_str(), leader.fence), ("10.0.0.7:8080", lead.fence()));
    /// # lead.resign().await?; cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn observe(&self) -> Result<Observe<V>, Error> {
        Observe::open(self.request.cluster.node(), self.line()?.range())
    }

    /// Who leads and who would follow, as of one linearizable moment.
    ///
    /// # Errors
    /// As [`Cluster::get`]; [`Error::Codec`] if the leader's value was not written as a `V`.
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn inspect(&self) -> Result<ElectionState<V>, Error> {
        let line = self.line()?;
        let claims = self.request.look(move |view| line.claims(view)).await?;
        let leader = claims.first().map(Leader::read).transpose()?;
        let candidates = claims.iter().skip(1).map(Claimant::read).collect::<Result<_, _>>()?;
        Ok(ElectionState { leader, candidates })
    }

    fn line(&self) -> Result<Line, Error> {
        Ok(Line::new(RECIPE, self.request.checked_name("election name")?))
    }
}

impl<V> Clone for Election<V> {
    fn clone(&self) -> Self {
        Election { request: self.request.clone(), value: PhantomData }
    }
}

impl<V> fmt::Debug for Election<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election").field("name", &self.request.name).finish_non_exhaustive()
    }
}

/// The stored form of a candidate's value.
fn encoded<V: Value>(name: &str, value: &V) -> Result<Bytes, Error> {
    let bytes = codec::encode(name, value)?;
    if bytes.len() > ELECTION_VALUE_BYTES_MAX {
        let why = format!("has {} bytes, a candidate's may have {ELECTION_VALUE_BYTES_MAX}", bytes.len());
        return Err(Error::Invalid { what: "value", why });
    }
    Ok(bytes)
}

/// A candidate, who stands when this is awaited. See [`Election::campaign`].
#[must_use = "nobody campaigns until it is awaited"]
pub struct Campaign<V> {
    election: Election<V>,
    payload: Result<Bytes, Error>,
}

impl<V: Value> Campaign<V> {
    /// Becomes the leader only if nobody leads or campaigns: awaited, gives `None` otherwise, and nothing was written.
    pub fn try_now(self) -> TryCampaign<V> {
        TryCampaign { campaign: self }
    }

    async fn take(self, queue: bool) -> Result<Option<Leadership<V>>, Error> {
        let (line, payload) = (self.election.line()?, self.payload?);
        let guard = self.election.request.acquire(line, payload, queue).await?;
        Ok(guard.map(|guard| Leadership { guard, value: PhantomData }))
    }

    async fn lead<F, W>(self, mut work: F) -> Result<W::Output, Error>
    where
        F: FnMut(Arc<Leadership<V>>) -> W,
        W: Future,
    {
        let cluster = self.election.request.cluster.clone();
        loop {
            match self.clone().take(true).await {
                Ok(leadership) => {
                    let leadership = leadership.expect("who queues is never told to come back later");
                    let term = Term(Arc::new(leadership));
                    match term.0.run(work(term.0.clone())).await {
                        Ok(done) => {
                            // If that is not answered in time it goes on in the background: the work is done.
                            let _ = term.0.guard.release().await;
                            return Ok(done);
                        }
                        Err(reason) => tracing::debug!(%reason, "lost an office; campaigning again"),
                    }
                }
                Err(error) if self.is_over(&error) => return Err(error),
                Err(error) => tracing::debug!(%error, "a campaign came to nothing; campaigning again"),
            }
            let pause = async |_| {
                rt::sleep(RETRY_PAUSE).await;
                Ok(())
            };
            cluster.on_node(pause).await?;
        }
    }

    /// Whether another campaign would fail like this one.
    fn is_over(&self, error: &Error) -> bool {
        let request = &self.election.request;
        match error {
            Error::NotApplied { .. } => request.timeout.is_some(),
            Error::LeaseNotFound { .. } => request.session.is_some(),
            Error::Fenced { .. } => false,
            _ => true,
        }
    }
}

/// What [`Election::run`] has lent to the work; it ends with the run, not with what the work has kept of it.
struct Term<V>(Arc<Leadership<V>>);

impl<V> Drop for Term<V> {
    fn drop(&mut self) {
        self.0.guard.let_go();
    }
}

impl<V> Clone for Campaign<V> {
    fn clone(&self) -> Self {
        Campaign { election: self.election.clone(), payload: self.payload.clone() }
    }
}

impl<V> fmt::Debug for Campaign<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Campaign").field("election", &self.election.request.name).finish_non_exhaustive()
    }
}

impl<V: Value + 'static> IntoFuture for Campaign<V> {
    type Output = Result<Leadership<V>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.take(true).map(|lead| lead.map(|lead| lead.expect("who queues is never told to come back later"))).boxed()
    }
}

/// A candidate who stands when this is awaited, if nobody else does. See [`Campaign::try_now`].
#[must_use = "nobody campaigns until it is awaited"]
#[derive(Clone, Debug)]
pub struct TryCampaign<V> {
    campaign: Campaign<V>,
}

impl<V: Value + 'static> IntoFuture for TryCampaign<V> {
    type Output = Result<Option<Leadership<V>>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.campaign.take(false).boxed()
    }
}

/// An office that is held, for as long as [`Leadership::valid_for`] says.
///
/// **What it promises** is what a [`LockGuard`](crate::LockGuard) does: writes through [`Leadership::txn`] are exclusive,
/// always; that this process *believes* to lead is not enough for anything outside, which must check [`Leadership::fence`].
///
/// Once lost it stays lost, even if its session recovers: campaign again. It keeps its node running, as a handle does.
///
/// Dropping it resigns in the background; if the cluster cannot be reached, the office is free when the lease expires.
/// [`Leadership::resign`] waits for that.
#[must_use = "a leadership that is dropped resigns"]
pub struct Leadership<V> {
    guard: Guard,
    value: PhantomData<fn() -> V>,
}

fenced!(Leadership<V>);

impl<V: Value> Leadership<V> {
    guarding! {
        "the office",
        run,
        /// # Examples
        /// ```
        /// # futures::executor::block_on(async {
        /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
        /// use quorate::put;
        /// let lead = cluster.election::<u16>("scheduler").campaign(&8080).await?;
        /// lead.txn().then(put("plan", &"as the leader wants it".to_string())).await?;
        /// # lead.resign().await?; cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
        /// ```
        txn
    }

    /// Changes the value that observers see, and returns the revision at which they do. The fence stays the same.
    ///
    /// # Errors
    /// Of the future: [`Error::Fenced`] if the office was lost: nothing was written. Otherwise as [`Cluster::set`].
    /// # Cancel safety
    /// Dropping the future does not withdraw a proclamation that was sent.
    pub fn proclaim(&self, value: &V) -> BoxFuture<'static, Result<Revision, Error>> {
        let (cluster, fence) = (self.guard.cluster.clone(), self.fence());
        let txn = self.proclamation(value);
        let proclaiming = async move {
            let timeout = cluster.node().settings().timeout;
            let answer = cluster.write(txn?, timeout).await?;
            match answer.failed {
                None => Ok(answer.revision),
                Some(_) => Err(Error::Fenced { held: fence.get(), current: answer.revision }),
            }
        };
        proclaiming.boxed()
    }

    /// The claim, written again with another value, on the condition that it stands.
    fn proclamation(&self, value: &V) -> Result<Txn, Error> {
        let (claim, session) = (&self.guard.hold.claim, self.guard.session());
        let note = ClaimNote {
            member: self.guard.cluster.node().name().to_owned(),
            session: session.name.clone(),
            payload: encoded(&self.guard.name, value)?,
        };
        let test = Test::Created(Order::Equal, claim.fence.revision());
        let (key, lease) = (claim.key.clone(), Attach::Lease(session.lease));
        Ok(Txn {
            compares: vec![Compare { keys: KeyRange::single(key.clone()), test }],
            then: [Op::Put { key, value: encode_claim(&note), lease, prev: false }].into(),
            otherwise: vec![],
        })
    }

    /// Gives the office up and waits until the cluster has carried that out. One that is lost already is fine.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when the cluster did not answer in time: it goes on being tried in the background, and the office
    /// is free when the lease expires at the latest. [`Error::Stopped`]: likewise, without the first half.
    /// # Cancel safety
    /// The resignation goes on in the background.
    pub async fn resign(self) -> Result<(), Error> {
        self.guard.release().await
    }
}

impl<V> fmt::Debug for Leadership<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership").field("guard", &self.guard).finish_non_exhaustive()
    }
}

/// Who leads, and with which value. See [`Election::observe`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader<V> {
    /// What it last said of itself.
    pub value: V,
    /// Its token: greater than that of every earlier leader.
    pub fence: Fence,
    /// The revision of that value: the campaign's, or that of the last [`Leadership::proclaim`].
    pub proclaimed: Revision,
    /// The name of its session; that of its node if it has one of its own.
    pub session: String,
    /// The name of the node whose host campaigned.
    pub member: String,
}

impl<V: Value> Leader<V> {
    fn read(claim: &KeyValue) -> Result<Self, Error> {
        let note = note(claim)?;
        let value = codec::decode("(candidate)", &note.payload)?;
        let Claimant { fence, session, member, .. } = Claimant::of(claim, note);
        Ok(Leader { value, fence, proclaimed: claim.modified, session, member })
    }
}

/// Who leads an election and who would follow. See [`Election::inspect`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ElectionState<V> {
    /// The first candidate, if there is any. Its process may not have heard of it yet.
    pub leader: Option<Leader<V>>,
    /// The others, in the order in which they would follow.
    pub candidates: Vec<Claimant>,
}

impl Cluster {
    /// The election called `name` (1 to 512 bytes, no zero byte), whose candidates say a `V` of themselves. Sends nothing.
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(3).await?; let cluster = &nodes[0];
    /// let election = cluster.election::<String>("scheduler");
    /// let lead = election.campaign(&"10.0.0.7:8080".to_string()).await?;
    /// assert!(nodes[1].election::<String>("scheduler").campaign(&"10.0.0.8:8080".to_string()).try_now().await?.is_none());
    /// lead.proclaim(&"10.0.0.7:9090".to_string()).await?;
    /// let state = nodes[1].election::<String>("scheduler").inspect().await?;
    /// assert_eq!(state.leader.map(|leader| leader.value).as_deref(), Some("10.0.0.7:9090"));
    /// lead.resign().await?;
    /// # for node in nodes { node.shutdown().await?; } Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn election<V: Value>(&self, name: impl Into<String>) -> Election<V> {
        Election { request: Request::new(self, name.into()), value: PhantomData }
    }
}

#[cfg(test)]
mod tests;
