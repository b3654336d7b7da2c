//! Running a closure until what it has read still stood when its writes were decided.
//!
//! * The first run is on a view behind a read barrier, so that whatever it returns, an error too, is of a moment within the
//!   call.
//! * What it has read was unchanged, from that moment to the decision, or nothing is written. Below the floor nobody can tell:
//!   that counts as changed.
//! * It is run again only when the attempt before was decided (an attempt of unknown outcome ends the call, with its ticket),
//!   and only on a view that holds what it had missed.
//! * It runs in the caller's task, so that a slow one holds up no heartbeat, and its panic is the caller's.

use std::fmt;
use std::future::IntoFuture;
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::closure::{Outcome, Txn};
use crate::api::cluster::Cluster;
use crate::api::fence::{Fenced, Fences};
use crate::api::read::{Moment, Reading};
use crate::api::retry::{Retry, TXN_ATTEMPTS};
use crate::error::Error;
use crate::types::Revision;

/// Attempts that a closure makes without waiting for the others of this process: a conflict now and then costs no line.
const ATTEMPTS_AT_ONCE: u32 = 3;

type Closure<R, E> = Box<dyn FnMut(&mut Txn) -> Result<R, E> + Send>;

/// A transaction in closure form. See [`Cluster::txn`].
#[must_use = "a transaction does nothing until it is awaited"]
pub struct Transact<R, E = Error> {
    cluster: Cluster,
    closure: Closure<R, E>,
    fences: Fences,
    attempts: u32,
    timeout: Duration,
}

impl<R, E> Transact<R, E> {
    /// Has it carried out only while `held` stands: a guard, or a session. See [`Fenced`]. May be called for several; the
    /// closure is not run once one of them is known to be lost.
    pub fn require(mut self, held: &(impl Fenced + ?Sized)) -> Self {
        self.fences.add(held.terms());
        self
    }

    /// Runs the closure at most so many times: 1 to [`TXN_ATTEMPTS_MAX`](crate::TXN_ATTEMPTS_MAX), default
    /// [`TXN_ATTEMPTS`](crate::TXN_ATTEMPTS).
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Gives up after `timeout`, all attempts together, instead of the default. A closure that is running is not interrupted.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl<R, E> fmt::Debug for Transact<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Transact { cluster, attempts, timeout, .. } = self;
        f.debug_struct("Transact")
            .field("cluster", cluster)
            .field("attempts", attempts)
            .field("timeout", timeout)
            .finish_non_exhaustive()
    }
}

/// A transaction that took place. Derefs to what its closure returned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed<R> {
    /// What the closure returned, in the run that counts.
    pub value: R,
    /// The store's revision right after it; its own if it changed something.
    pub revision: Revision,
    /// Whether it changed anything.
    pub changed: bool,
    /// How often the closure was run.
    pub attempts: u32,
}

impl<R> Deref for Committed<R> {
    type Target = R;
    fn deref(&self) -> &R {
        &self.value
    }
}

impl<R: Send + 'static, E: From<Error> + Send + 'static> IntoFuture for Transact<R, E> {
    type Output = Result<Committed<R>, E>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<R, E: From<Error>> Transact<R, E> {
    async fn run(mut self) -> Result<Committed<R>, E> {
        let mut retry = Retry::new(self.attempts, self.timeout)?;
        let mut reading = Reading::new(&self.cluster);
        let mut turn = None;
        loop {
            retry.again()?;
            if retry.attempt() > ATTEMPTS_AT_ONCE && turn.is_none() {
                // What it will read nobody knows, so all that have come so far stand in one line.
                turn = Some(self.cluster.turn(Bytes::new(), retry.left()).await?);
            }
            reading.timeout = retry.left();
            let view = reading.view().await?;
            let revision = view.revision;
            let mut txn = Txn::new(view, self.fences.clone())?;
            let returned = (self.closure)(&mut txn);
            match txn.finish(returned)? {
                Outcome::Outdated => reading.moment = Moment::Linearizable,
                Outcome::Read(value) => {
                    return Ok(Committed { value, revision, changed: false, attempts: retry.attempt() });
                }
                Outcome::Write(value, txn, fences) => {
                    let answer = fences.write(&self.cluster, txn, retry.left()).await?;
                    if answer.failed.is_none() {
                        let (revision, changed) = (answer.revision, answer.changed);
                        return Ok(Committed { value, revision, changed, attempts: retry.attempt() });
                    }
                    // What has changed is of this revision or an older one: before that is here, nothing would be new.
                    reading.moment = Moment::AtLeast(answer.revision);
                }
            }
        }
    }
}

impl Cluster {
    /// Runs a closure as one transaction: what it reads is of one moment, and what it writes takes effect at one revision, if
    /// everything it has read is still so, or not at all.
    ///
    /// The closure runs in the caller's task whenever this is awaited, on this node's own state behind a read barrier; nothing
    /// in it waits. If others have changed what it had read (a key, or any key of a range, there or not), it is **run
    /// again** on what they left, as often as it takes, up to [`Transact::attempts`]: so it should do nothing but read, write
    /// and compute. What only reads is not sent anywhere; what only writes cannot conflict.
    ///
    /// If the closure returns an error nothing is written, and the error is returned; [`Txn::abort`] makes one. If it panics
    /// nothing is written, and the panic goes on to the caller. [`Cluster::try_txn`] takes errors of any type.
    ///
    /// # Errors
    /// As [`Cluster::set`], and the closure's. [`Error::NotApplied`] with [`Obstacle::Conflict`](crate::Obstacle::Conflict) if others were faster each
    /// time.
    /// # Cancel safety
    /// Dropping the future does not withdraw writes that were sent; the closure is not run any more.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::{Error, Table, prefix};
    /// const ACCOUNTS: Table<str, u64> = Table::new("accounts");
    /// cluster.table(ACCOUNTS).set("alice", &50).await?;
    ///
    /// let left = cluster
    ///     .txn(|t| {
    ///         let mut accounts = t.table(ACCOUNTS);
    ///         let alice = accounts.get("alice")?.map_or(0, |balance| *balance);
    ///         let bob = accounts.get("bob")?.map_or(0, |balance| *balance);
    ///         if alice < 20 {
    ///             return Err(t.abort("alice has not enough"));
    ///         }
    ///         accounts.put("alice", &(alice - 20))?;
    ///         accounts.put("bob", &(bob + 20))?;
    ///         let number = t.range::<String>(prefix("transfers/")).count()?;
    ///         t.put(format!("transfers/{number}"), &"20 from alice to bob".to_string())?;
    ///         Ok(alice - 20)
    ///     })
    ///     .await?;
    /// assert_eq!((*left, left.attempts), (30, 1));
    /// assert_eq!(cluster.table(ACCOUNTS).get("bob").await?.map(|balance| *balance), Some(20));
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn txn<R>(&self, closure: impl FnMut(&mut Txn) -> Result<R, Error> + Send + 'static) -> Transact<R> {
        self.try_txn(closure)
    }

    /// As [`Cluster::txn`], with errors of the caller's own type: one that this crate's [`Error`] can be turned into.
    ///
    /// # Errors
    /// As [`Cluster::txn`].
    /// # Cancel safety
    /// As [`Cluster::txn`].
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// #[derive(Debug)]
    /// enum OrderError {
    ///     SoldOut,
    ///     Store(quorate::Error),
    /// }
    ///
    /// impl From<quorate::Error> for OrderError {
    ///     fn from(error: quorate::Error) -> Self {
    ///         OrderError::Store(error)
    ///     }
    /// }
    ///
    /// let order = cluster.try_txn(|t| {
    ///     let stock = t.get::<u32>("stock")?.map_or(0, |stock| *stock);
    ///     let left = stock.checked_sub(1).ok_or(OrderError::SoldOut)?;
    ///     t.put("stock", &left)?;
    ///     Ok::<u32, OrderError>(left)
    /// });
    /// assert!(matches!(order.await, Err(OrderError::SoldOut)));
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn try_txn<R, E: From<Error>>(
        &self,
        closure: impl FnMut(&mut Txn) -> Result<R, E> + Send + 'static,
    ) -> Transact<R, E> {
        let timeout = self.node().settings().timeout;
        let (cluster, fences) = (self.clone(), Fences::default());
        Transact { cluster, closure: Box::new(closure), fences, attempts: TXN_ATTEMPTS, timeout }
    }
}
