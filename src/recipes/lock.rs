//! Locks: one holder at a time, first come first served, with a token that outlives the holder's own judgement.
//!
//! # Model
//!
//! A lock is a line of claims (see [`super::claim`]); the holder *is* the first claim of the line. What the cluster holds:
//!
//! ```text
//!            put, hanging on a lease                  deleted: released, cancelled, session ended
//!  (nothing) ───────────────────────▶ claim in line ─────────────────────────────────────────────▶ (nothing)
//!                                     first in line = holder
//! ```
//!
//! What one call of [`Cluster::lock`] goes through on this side is [`super::attempt`]'s.
//!
//! * At any revision at most one claim is first, so there is at most one holder (K1). Claims are ordered by the revision that
//!   created them, and that revision is the fence: it grows from holder to holder (K2).
//! * A guard is made only of a claim that was seen standing, in one transaction or one linearizable read, while the session's
//!   local deadline had not passed (K3). A claim hangs on its lease, so a dead process's claim goes, first in line or not (K7).
//! * A guard's word is good until the local deadline, and never again after it (K5). Until then the lease cannot have expired,
//!   so no other claim can have become first, unless somebody deleted this one.
//! * None of that can stop a process that is paused between asking its guard and acting. What can is the fence: [`LockGuard::txn`]
//!   checks it where the write is decided (K6), and an outside resource can do the same with [`LockGuard::fence`].
//! * A release names the claim, which is minted once: late or doubled, it cannot touch another's (K4).
//!
//! What is left to others: sessions and their deadlines are [`crate::api::session`]'s, expiry is the leader's.

use std::future::{Future, IntoFuture};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::attempt::{NAME_BYTES_MAX, Request, claiming};
use super::claim::{CLAIMS_MAX, Line};
use super::guard::{Guard, fenced, guarding};
use super::inspect::Claimant;
use crate::api::cluster::Cluster;
use crate::api::session::{Lost, LostReason, Session};
use crate::api::txn::Transaction;
use crate::error::Error;
use crate::types::Fence;

/// Most claims on one lock, its holder included; one more is refused with [`Error::NotApplied`] (busy).
pub const LOCK_CLAIMS_MAX: u64 = CLAIMS_MAX;
/// Longest name of a lock, in bytes.
pub const LOCK_NAME_BYTES_MAX: usize = NAME_BYTES_MAX;

const RECIPE: &str = "lock";

/// A lock to be taken by awaiting it, or to be looked at. See [`Cluster::lock`].
#[must_use = "a lock is not taken until it is awaited"]
#[derive(Clone, Debug)]
pub struct Lock {
    request: Request,
}

impl Lock {
    claiming!("the lock");

    /// Takes the lock only if nobody holds it or waits for it: awaited, gives `None` otherwise.
    pub fn try_now(self) -> TryLock {
        TryLock { lock: self }
    }

    /// Who holds the lock and who waits, as of one linearizable moment.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn inspect(&self) -> Result<LockState, Error> {
        let line = self.line()?;
        let claims = self.request.look(move |view| line.claims(view)).await?;
        let mut claimants = claims.iter().map(Claimant::read).collect::<Result<Vec<_>, _>>()?.into_iter();
        Ok(LockState { holder: claimants.next(), waiters: claimants.collect() })
    }

    fn line(&self) -> Result<Line, Error> {
        Ok(Line::new(RECIPE, self.request.checked_name("lock name")?))
    }

    async fn take(self, queue: bool) -> Result<Option<LockGuard>, Error> {
        let line = self.line()?;
        Ok(self.request.acquire(line, Bytes::new(), queue).await?.map(|guard| LockGuard { guard }))
    }
}

impl IntoFuture for Lock {
    type Output = Result<LockGuard, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.take(true)
            .map(|guard| guard.map(|guard| guard.expect("who queues is never told to come back later")))
            .boxed()
    }
}

/// A lock to be taken by awaiting it, if it is free. See [`Lock::try_now`].
#[must_use = "a lock is not taken until it is awaited"]
#[derive(Clone, Debug)]
pub struct TryLock {
    lock: Lock,
}

impl IntoFuture for TryLock {
    type Output = Result<Option<LockGuard>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.lock.take(false).boxed()
    }
}

/// A lock that is held, for as long as [`LockGuard::valid_for`] says.
///
/// **What it promises:** writes through [`LockGuard::txn`] are exclusive, always. *Execution* is not: a process can be paused
/// right after it asked, and run on behind the deadline. Whatever the lock protects outside this store must check
/// [`LockGuard::fence`] itself, or be content with most of the time.
///
/// Once lost it stays lost, even if its session recovers: take the lock again. It keeps its node running, as a handle does.
///
/// Dropping it releases the lock in the background; if the cluster cannot be reached, the lock goes when its lease expires.
/// [`LockGuard::release`] waits for that.
#[must_use = "a guard that is dropped releases its lock"]
#[derive(Debug)]
pub struct LockGuard {
    guard: Guard,
}

fenced!(LockGuard);

impl LockGuard {
    guarding! {
        "the lock",
        /// # Examples
        /// ```
        /// # futures::executor::block_on(async {
        /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
        /// let guard = cluster.lock("jobs/nightly").await?;
        /// let done = guard.run(async { 6 * 7 }).await;
        /// assert_eq!(done, Ok(42));
        /// # guard.release().await?; cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
        /// ```
        run,
        /// # Examples
        /// ```
        /// # futures::executor::block_on(async {
        /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
        /// use quorate::put;
        /// let guard = cluster.lock("jobs/nightly").await?;
        /// guard.txn().then(put("last-run", &1u64)).await?;
        /// # guard.release().await?; cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
        /// ```
        txn
    }

    /// Releases the lock and waits until the cluster has carried that out. A lock that is lost already is fine.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when the cluster did not answer in time: it goes on being tried in the background, and the lock
    /// goes with its lease at the latest. [`Error::Stopped`]: likewise, without the first half.
    /// # Cancel safety
    /// The release goes on in the background.
    pub async fn release(self) -> Result<(), Error> {
        self.guard.release().await
    }
}

/// Who holds a lock and who waits for it. See [`Lock::inspect`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockState {
    /// The first claim, if there is any. Its process may not have heard of it yet.
    pub holder: Option<Claimant>,
    /// The others, in the order in which they will be served.
    pub waiters: Vec<Claimant>,
}

impl Cluster {
    /// Takes the lock called `name` (1 to 512 bytes, no zero byte), waiting for its turn. Those who wait are served in the
    /// order in which they came. It is not reentrant: a second call waits for the first one's guard.
    ///
    /// An uncontended lock takes one round trip.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name or ttl out of range. [`Error::NotApplied`] when the [`Lock::timeout`] is over, the cluster
    /// did not answer, or too many wait already. [`Error::LeaseNotFound`] if the session ended meanwhile; a lock's own one does
    /// when this node is cut off for longer than the ttl: call again, at the end of the line. [`Error::Fenced`] if somebody
    /// deleted the claim meanwhile.
    /// # Cancel safety
    /// Dropping the future withdraws the claim in the background, whether it was still being placed, waiting, or just granted.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(3).await?; let cluster = &nodes[0];
    /// use std::time::Duration;
    /// let guard = cluster.lock("jobs/nightly").ttl(Duration::from_secs(10)).timeout(Duration::from_secs(5)).await?;
    /// assert!(nodes[1].lock("jobs/nightly").try_now().await?.is_none());
    /// println!("held with fence {} for at least {:?}", guard.fence(), guard.valid_for());
    /// guard.release().await?;
    /// # for node in nodes { node.shutdown().await?; } Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn lock(&self, name: impl Into<String>) -> Lock {
        Lock { request: Request::new(self, name.into()) }
    }
}

#[cfg(test)]
mod tests;
