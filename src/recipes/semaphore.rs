//! Semaphores: at most so many holders at a time, first come first served, each with a token.
//!
//! # Model
//!
//! A semaphore of `n` permits is a line of claims (see [`super::claim`]) and its size; the first `n` claims hold a permit each.
//! What the cluster holds:
//!
//! ```text
//!            put, hanging on a lease                  deleted: released, cancelled, session ended
//!  (nothing) ───────────────────────▶ claim in line ─────────────────────────────────────────────▶ (nothing)
//!                                     among the first n = holder
//!
//!            put by the first claim of all        deleted by `remove`, while the line is empty
//!  (no size) ──────────────────────────────▶ n ────────────────────────────────────────────────▶ (no size)
//! ```
//!
//! What one call goes through on this side is [`super::attempt`]'s.
//!
//! * A claim is placed on the condition that the size is the caller's, in the same transaction. Nobody can stand in the line
//!   who has counted to another number, so at any revision at most `n` claims are among the first `n` of anybody's counting.
//! * Nobody gets in front of a claim that stands: once it is among the first `n`, it stays there until it goes.
//! * Everything said of a lock's guard holds for a permit: it is given only to a claim seen standing while its session was
//!   valid, its word ends at the local deadline, its transactions are refused once the claim is gone, a dead holder's or
//!   waiter's claim goes with its lease.
//!
//! What is left to others: a permit's fence tells claims apart and orders them, but up to `n` of them are current at a time.
//! A resource that must refuse late holders has to know which are; [`Permit::txn`] does.

use std::future::{Future, IntoFuture};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::attempt::{Request, claiming};
use super::claim::{CLAIMS_MAX, Line, Size, Turn};
use super::guard::{Guard, fenced, guarding};
use super::inspect::Claimant;
use crate::api::cluster::Cluster;
use crate::api::session::{Lost, LostReason, Session};
use crate::api::txn::Transaction;
use crate::error::Error;
use crate::types::Fence;

/// Most permits of a semaphore, and most claims on one, waiting ones included.
pub const SEMAPHORE_PERMITS_MAX: u64 = CLAIMS_MAX;

const RECIPE: &str = "semaphore";

/// A semaphore, of which a permit is taken by awaiting it. See [`Cluster::semaphore`].
#[must_use = "a permit is not taken until the semaphore is awaited"]
#[derive(Clone, Debug)]
pub struct Semaphore {
    request: Request,
    permits: u64,
}

impl Semaphore {
    claiming!("the permit");

    /// Takes a permit only if one is free and nobody waits: awaited, gives `None` otherwise.
    ///
    /// When others take the last one at the same moment, the line may hold this claim for the length of a round trip.
    pub fn try_now(self) -> TrySemaphore {
        TrySemaphore { semaphore: self }
    }

    /// Who holds permits and who waits, as of one linearizable moment.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn inspect(&self) -> Result<SemaphoreState, Error> {
        let line = self.line()?;
        let looking = self.request.look(move |view| Ok((line.stored_size(view)?, line.claims(view)?)));
        let (permits, claims) = looking.await?;
        let mut holders = claims.iter().map(Claimant::read).collect::<Result<Vec<_>, _>>()?;
        let held = permits.unwrap_or(0).min(holders.len() as u64);
        let waiters = holders.split_off(usize::try_from(held).expect("not more than there are"));
        Ok(SemaphoreState { permits, holders, waiters })
    }

    /// Forgets the semaphore's size, so that the next caller's counts. Nothing else is ever left of one that nobody uses.
    ///
    /// # Errors
    /// [`Error::NotApplied`] if somebody holds a permit or waits. Otherwise as [`Cluster::delete`].
    /// # Cancel safety
    /// Dropping the future does not withdraw a removal that was sent.
    pub async fn remove(&self) -> Result<(), Error> {
        self.line()?.forget_size(&self.request.cluster, self.request.step_timeout()).await
    }

    fn line(&self) -> Result<Line, Error> {
        if !(1..=SEMAPHORE_PERMITS_MAX).contains(&self.permits) {
            let why = format!("it is {}, but must be from 1 to {SEMAPHORE_PERMITS_MAX}", self.permits);
            return Err(Error::Invalid { what: "permits", why });
        }
        let size = Some(Size { what: "permits of the semaphore", of: self.permits });
        let turn = Turn::Among(self.permits);
        Ok(Line { turn, size, ..Line::new(RECIPE, self.request.checked_name("semaphore name")?) })
    }

    async fn take(self, queue: bool) -> Result<Option<Permit>, Error> {
        let line = self.line()?;
        Ok(self.request.acquire(line, Bytes::new(), queue).await?.map(|guard| Permit { guard }))
    }
}

impl IntoFuture for Semaphore {
    type Output = Result<Permit, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.take(true)
            .map(|permit| permit.map(|permit| permit.expect("who queues is never told to come back later")))
            .boxed()
    }
}

/// A permit to be taken by awaiting it, if one is free. See [`Semaphore::try_now`].
#[must_use = "a permit is not taken until this is awaited"]
#[derive(Clone, Debug)]
pub struct TrySemaphore {
    semaphore: Semaphore,
}

impl IntoFuture for TrySemaphore {
    type Output = Result<Option<Permit>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.semaphore.take(false).boxed()
    }
}

/// One of a semaphore's permits, held for as long as [`Permit::valid_for`] says.
///
/// **What it promises:** at any revision, at most as many permits stand as the semaphore has, and writes through
/// [`Permit::txn`] are carried out only while this one does. *Execution* is not limited: a process can be paused right after
/// it asked, and run on behind the deadline.
///
/// Once lost it stays lost, even if its session recovers: take another. It keeps its node running, as a handle does.
///
/// Dropping it releases it in the background; if the cluster cannot be reached, it is free when its lease expires.
/// [`Permit::release`] waits for that.
#[must_use = "a permit that is dropped is released"]
#[derive(Debug)]
pub struct Permit {
    guard: Guard,
}

fenced!(Permit);

impl Permit {
    guarding!("the permit", run, txn);

    /// Releases the permit and waits until the cluster has carried that out. One that is lost already is fine.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when the cluster did not answer in time: it goes on being tried in the background, and the permit
    /// is free when its lease expires at the latest. [`Error::Stopped`]: likewise, without the first half.
    /// # Cancel safety
    /// The release goes on in the background.
    pub async fn release(self) -> Result<(), Error> {
        self.guard.release().await
    }
}

/// Who holds a semaphore's permits and who waits for one. See [`Semaphore::inspect`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SemaphoreState {
    /// How many permits it has; `None` if nobody has ever used it, or its size was removed.
    pub permits: Option<u64>,
    /// The claims that hold a permit, the oldest one first. A process may not have heard of its own yet.
    pub holders: Vec<Claimant>,
    /// The others, in the order in which they will be served.
    pub waiters: Vec<Claimant>,
}

impl Cluster {
    /// Takes one of `permits` permits (1 to 1024) of the semaphore called `name` (1 to 512 bytes, no zero byte), waiting for
    /// its turn. Those who wait are served in the order in which they came.
    ///
    /// The first to use a semaphore fixes how many permits it has; everybody must name the same number until
    /// [`Semaphore::remove`]. A free permit takes two round trips. Whenever somebody comes or goes, each waiter looks at the
    /// line: a semaphore is for dozens of waiters, not for a thousand.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it has another number of permits. Otherwise as [`Cluster::lock`].
    /// # Cancel safety
    /// Dropping the future withdraws the claim in the background, whether it was still being placed, waiting, or just granted.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::Error;
    /// let first = cluster.semaphore("downloads", 2).await?;
    /// let second = cluster.semaphore("downloads", 2).await?;
    /// assert!(cluster.semaphore("downloads", 2).try_now().await?.is_none());
    /// let other = cluster.semaphore("downloads", 3).await;
    /// assert!(matches!(other, Err(Error::Mismatch { stored: 2, given: 3, .. })));
    /// first.release().await?;
    /// second.release().await?;
    /// cluster.semaphore("downloads", 2).remove().await?;
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn semaphore(&self, name: impl Into<String>, permits: u64) -> Semaphore {
        Semaphore { request: Request::new(self, name.into()), permits }
    }
}

#[cfg(test)]
mod tests;
