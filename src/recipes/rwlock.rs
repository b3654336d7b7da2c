//! Reader-writer locks: many readers or one writer, first come first served, each with a token.
//!
//! # Model
//!
//! A lock is one line with two kinds of claims (see [`super::claim`]). What the cluster holds:
//!
//! ```text
//!            put, hanging on a lease                  deleted: released, cancelled, session ended
//!  (nothing) ───────────────────────▶ claim in line ─────────────────────────────────────────────▶ (nothing)
//!                                     writer, first of all           = holds
//!                                     reader, no writer before it    = holds
//! ```
//!
//! What one call goes through on this side is [`super::attempt`]'s.
//!
//! * At any revision the holders are the first claim, if that is a writer's, or the readers before the first writer: never a
//!   writer together with anybody.
//! * It is fair: a writer that waits stands in the line, so readers that come later wait behind it, and it waits for those
//!   only who came before. Nobody starves.
//! * Tokens come from one line: a writer's is greater than those of all readers and writers that held before it.
//! * Everything said of a lock's guard holds for both kinds of guards.
//!
//! What is left to others: no guard becomes one of the other kind. A reader that waits for the write lock while it holds on to
//! its own waits for itself.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::attempt::{Request, claiming};
use super::claim::{Line, Turn};
use super::guard::{Guard, fenced, guarding};
use super::inspect::Claimant;
use crate::api::cluster::Cluster;
use crate::api::session::{Lost, LostReason, Session};
use crate::api::txn::Transaction;
use crate::error::Error;
use crate::types::Fence;

const RECIPE: &str = "rwlock";
/// The kinds of claims.
const READER: &str = "r";
const WRITER: &str = "w";

/// A lock to be read or written under. See [`Cluster::rwlock`].
#[must_use = "a lock is not taken until an access is awaited"]
#[derive(Clone, Debug)]
pub struct RwLock {
    request: Request,
}

impl RwLock {
    claiming!("the lock");

    /// Takes the lock together with other readers, once no writer holds it or has waited for longer.
    ///
    /// # Errors
    /// Of the future: as [`Cluster::lock`].
    /// # Cancel safety
    /// Dropping the future withdraws the claim in the background, whether it was still being placed, waiting, or just granted.
    pub fn read(&self) -> Access<ReadGuard> {
        let line = self.line().map(|line| Line { kind: READER, turn: Turn::FirstOf(WRITER), ..line });
        Access { request: self.request.clone(), line, guard: |guard| ReadGuard { guard } }
    }

    /// Takes the lock alone, once everybody who came before has gone.
    ///
    /// # Errors
    /// Of the future: as [`Cluster::lock`].
    /// # Cancel safety
    /// As [`RwLock::read`].
    pub fn write(&self) -> Access<WriteGuard> {
        let line = self.line().map(|line| Line { kind: WRITER, ..line });
        Access { request: self.request.clone(), line, guard: |guard| WriteGuard { guard } }
    }

    /// Who holds the lock and who waits, as of one linearizable moment.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn inspect(&self) -> Result<RwLockState, Error> {
        let line = self.line()?;
        let writers = line.range_of(WRITER);
        let claims = self.request.look(move |view| line.claims(view)).await?;
        let mut state = RwLockState { writer: None, readers: vec![], waiters: vec![] };
        for claim in &claims {
            let (claimant, writes) = (Claimant::read(claim)?, writers.contains(&claim.key));
            let before = (state.writer.is_some(), state.readers.is_empty(), state.waiters.is_empty());
            match (writes, before) {
                (true, (false, true, true)) => state.writer = Some(claimant),
                (false, (false, _, true)) => state.readers.push(claimant),
                _ => state.waiters.push(RwWaiter { claimant, writes }),
            }
        }
        Ok(state)
    }

    fn line(&self) -> Result<Line, Error> {
        Ok(Line::new(RECIPE, self.request.checked_name("lock name")?))
    }
}

/// An access to be gained by awaiting it. See [`RwLock::read`] and [`RwLock::write`].
#[must_use = "a lock is not taken until it is awaited"]
pub struct Access<G> {
    request: Request,
    line: Result<Line, Error>,
    guard: fn(Guard) -> G,
}

impl<G> Access<G> {
    /// Gains access only if that needs no waiting: awaited, gives `None` otherwise, and nothing was written.
    pub fn try_now(self) -> TryAccess<G> {
        TryAccess { access: self }
    }

    async fn take(self, queue: bool) -> Result<Option<G>, Error> {
        Ok(self.request.acquire(self.line?, Bytes::new(), queue).await?.map(self.guard))
    }
}

impl<G> fmt::Debug for Access<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("line", &self.line).finish_non_exhaustive()
    }
}

impl<G: 'static> IntoFuture for Access<G> {
    type Output = Result<G, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.take(true)
            .map(|guard| guard.map(|guard| guard.expect("who queues is never told to come back later")))
            .boxed()
    }
}

/// An access to be gained by awaiting it, if that needs no waiting. See [`Access::try_now`].
#[must_use = "a lock is not taken until it is awaited"]
#[derive(Debug)]
pub struct TryAccess<G> {
    access: Access<G>,
}

impl<G: 'static> IntoFuture for TryAccess<G> {
    type Output = Result<Option<G>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.access.take(false).boxed()
    }
}

/// A lock that is held together with other readers, for as long as [`ReadGuard::valid_for`] says.
///
/// **What it promises:** no writer's [`WriteGuard::txn`] is carried out while this claim stands, and transactions of
/// [`ReadGuard::txn`] are carried out only as long as it does. As with every guard, *execution* is not covered: a process can
/// be paused and run on behind the deadline.
///
/// Once lost it stays lost. It keeps its node running, as a handle does. Dropping it releases it in the background;
/// [`ReadGuard::release`] waits for that.
#[must_use = "a guard that is dropped releases its lock"]
#[derive(Debug)]
pub struct ReadGuard {
    guard: Guard,
}

fenced!(ReadGuard);

impl ReadGuard {
    guarding!("the lock", run, txn);

    /// Releases the lock and waits until the cluster has carried that out. A lock that is lost already is fine.
    ///
    /// # Errors
    /// As [`LockGuard::release`](crate::LockGuard::release).
    /// # Cancel safety
    /// The release goes on in the background.
    pub async fn release(self) -> Result<(), Error> {
        self.guard.release().await
    }
}

/// A lock that is held by nobody else, for as long as [`WriteGuard::valid_for`] says.
///
/// **What it promises:** writes through [`WriteGuard::txn`] exclude each other and all readers, always. Whatever the lock
/// protects outside this store must check [`WriteGuard::fence`] itself: a process can be paused and run on behind the deadline.
///
/// Once lost it stays lost. It keeps its node running, as a handle does. Dropping it releases it in the background;
/// [`WriteGuard::release`] waits for that.
#[must_use = "a guard that is dropped releases its lock"]
#[derive(Debug)]
pub struct WriteGuard {
    guard: Guard,
}

fenced!(WriteGuard);

impl WriteGuard {
    guarding!("the lock", run, txn);

    /// Releases the lock and waits until the cluster has carried that out. A lock that is lost already is fine.
    ///
    /// # Errors
    /// As [`LockGuard::release`](crate::LockGuard::release).
    /// # Cancel safety
    /// The release goes on in the background.
    pub async fn release(self) -> Result<(), Error> {
        self.guard.release().await
    }
}

/// Who holds a lock and who waits for it. See [`RwLock::inspect`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RwLockState {
    /// The writer that holds it, if one does.
    pub writer: Option<Claimant>,
    /// The readers that hold it; empty if a writer does.
    pub readers: Vec<Claimant>,
    /// The others, in the order in which they came.
    pub waiters: Vec<RwWaiter>,
}

/// One who waits for a [`RwLock`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RwWaiter {
    /// Who.
    pub claimant: Claimant,
    /// Whether for writing.
    pub writes: bool,
}

impl Cluster {
    /// The reader-writer lock called `name` (1 to 512 bytes, no zero byte). Sends nothing; not the lock that
    /// [`Cluster::lock`] calls by this name.
    ///
    /// It is fair: a writer that waits blocks readers that come later. An uncontended access takes one round trip.
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// let lock = cluster.rwlock("config");
    /// let (one, two) = (lock.read().await?, lock.read().await?);
    /// assert!(lock.write().try_now().await?.is_none());
    /// one.release().await?;
    /// two.release().await?;
    /// let writer = lock.write().await?;
    /// assert!(lock.read().try_now().await?.is_none());
    /// writer.release().await?;
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn rwlock(&self, name: impl Into<String>) -> RwLock {
        RwLock { request: Request::new(self, name.into()) }
    }
}

#[cfg(test)]
mod tests;
