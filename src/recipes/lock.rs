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
//! What one call of [`Cluster::lock`] goes through on this side:
//!
//! ```text
//!  placing ──▶ standing alone, session valid ───────────────────────────▶ held ──▶ lost or released
//!     │                                                                     ▲         (for good)
//!     └──────▶ waiting ──▶ first here ──▶ session valid ──▶ confirmed ──────┘
//!                 ▲   one before it is gone      read shows the claim standing
//!                 └──────────────┘
//!  from every state before held: cancelled, timed out, session lost ──▶ withdrawing ──▶ (nothing)
//! ```
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

use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{BoxFuture, Either, select};

use super::claim::{CLAIMS_MAX, Claim, Line, Placed, session_error, withdraw};
use super::hold::Hold;
use crate::api::cluster::Cluster;
use crate::api::kv::ttl_ms;
use crate::api::session::{ELECTIONS_OUTLIVED, Lifeline, Lost, LostReason, Session, default_ttl};
use crate::api::txn::Transaction;
use crate::command::{Attach, KeyValue};
use crate::error::{Error, Obstacle};
use crate::format::claim::{ClaimNote, decode_claim};
use crate::node::Node;
use crate::rt::{self, Instant};
use crate::types::{Fence, LeaseId};

/// Most claims on one lock, its holder included; one more is refused with [`Error::NotApplied`] (busy).
pub const LOCK_CLAIMS_MAX: u64 = CLAIMS_MAX;
/// Longest name of a lock, in bytes.
pub const LOCK_NAME_BYTES_MAX: usize = 512;

const RECIPE: &str = "lock";

/// A lock to be taken by awaiting it, or to be looked at. See [`Cluster::lock`].
#[must_use = "a lock is not taken until it is awaited"]
#[derive(Clone, Debug)]
pub struct Lock {
    cluster: Cluster,
    name: String,
    ttl: Option<Duration>,
    session: Option<Arc<Lifeline>>,
    timeout: Option<Duration>,
}

impl Lock {
    /// How long the lock outlives a holder that died: at least three times the maximal election timeout, at most one year.
    /// Default 10 s, or those three election timeouts if that is more.
    ///
    /// The lock then has a session of its own, made and ended with its claim.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Lives by `session` instead of one of its own: when that ends or lapses, the lock is lost. Not together with a ttl.
    pub fn session(mut self, session: &Session) -> Self {
        self.session = Some(session.lifeline().clone());
        self
    }

    /// Stops waiting after `timeout`, with [`Error::NotApplied`]. Default: waits as long as it takes.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

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
        let (line, timeout) = (self.line()?, self.timeout.unwrap_or(self.cluster.node().settings().timeout));
        let looking = self.cluster.on_node(move |node| async move {
            let view = node.linearizable_view(timeout).await?;
            line.claims(&view)
        });
        let mut claimants = looking.await?.into_iter().map(Claimant::read).collect::<Result<Vec<_>, _>>()?.into_iter();
        Ok(LockState { holder: claimants.next(), waiters: claimants.collect() })
    }

    fn line(&self) -> Result<Line, Error> {
        let invalid = |why| Err(Error::Invalid { what: "lock name", why });
        match &self.name {
            name if name.is_empty() => invalid("it is empty".into()),
            name if name.contains('\0') => invalid(format!("{name:?} holds a zero byte")),
            name if name.len() > LOCK_NAME_BYTES_MAX => {
                invalid(format!("it has {} bytes, the limit is {LOCK_NAME_BYTES_MAX}", name.len()))
            }
            name => Ok(Line { recipe: RECIPE, name: name.clone() }),
        }
    }

    /// What the claim will hang on: a session, or a lease that its put makes.
    fn support(&self) -> Result<Support, Error> {
        let shortest = self.cluster.node().settings().timing.election_max * ELECTIONS_OUTLIVED;
        let (ttl, support) = match (&self.session, self.ttl) {
            (Some(_), Some(_)) => {
                let why = "a lock has a ttl of its own or lives by a session, not both".into();
                return Err(Error::Invalid { what: "ttl", why });
            }
            (Some(session), None) => (session.ttl, Support::Session(session.clone())),
            (None, ttl) => {
                let ttl = ttl.unwrap_or_else(|| default_ttl(&self.cluster));
                (ttl, Support::Ttl { ttl_ms: ttl_ms(ttl)? })
            }
        };
        if ttl < shortest {
            let why = format!(
                "it is {ttl:?}, but a lock's must be at least {shortest:?}, {ELECTIONS_OUTLIVED} times the maximal \
                 election timeout, or every change of leader would lose it"
            );
            return Err(Error::Invalid { what: "ttl", why });
        }
        Ok(support)
    }

    /// Takes the lock on the node, for a caller who signals on `gone` when it does not want it any more.
    async fn acquire(
        self,
        node: Arc<Node>,
        queue: bool,
        mut gone: oneshot::Receiver<()>,
    ) -> Result<Option<LockGuard>, Error> {
        let started = Instant::now();
        let Some(mut attempt) = self.place(&node, queue).await? else { return Ok(None) };
        let turn = async {
            match attempt.alone {
                // Its own transaction has said so: no other round is needed.
                Some(lapses) => Ok(lapses),
                None => attempt.line.wait_turn(&node, &attempt.claim, &attempt.session).await,
            }
        };
        let patience = self.timeout.or((!queue).then_some(node.settings().timeout)).unwrap_or(Duration::MAX);
        let turn = pin!(rt::timeout_at(started + patience, turn));
        let lapses = match select(&mut gone, turn).await {
            // Nobody is there to receive this answer.
            Either::Left(_) => return Err(Error::NotApplied { why: Obstacle::Held, waited: started.elapsed() }),
            Either::Right((Err(_), _)) => {
                return Err(Error::NotApplied { why: Obstacle::Held, waited: started.elapsed() });
            }
            Either::Right((Ok(turn), _)) => turn?,
        };
        attempt.granted = true;
        let (claim, session) = (attempt.claim.clone(), attempt.session.clone());
        let hold = Hold::start(&node, claim, session, lapses, attempt.own_session);
        Ok(Some(LockGuard { cluster: self.cluster.clone(), name: self.name.clone(), hold }))
    }

    /// Places a claim; `None` if the line is occupied and the caller does not queue.
    async fn place(&self, node: &Arc<Node>, queue: bool) -> Result<Option<Attempt>, Error> {
        let (line, support) = (self.line()?, self.support()?);
        let (attach, name) = match &support {
            Support::Session(session) => (Attach::Lease(session.lease), session.name.clone()),
            Support::Ttl { ttl_ms } => (Attach::Ttl { ttl_ms: *ttl_ms }, node.name().to_owned()),
        };
        if let Support::Session(session) = &support
            && let Some(reason) = session.standing().lost
        {
            return Err(session_error(session, reason));
        }
        let note = ClaimNote { member: node.name().to_owned(), session: name.clone(), payload: Bytes::new() };
        let timeout = node.settings().timeout.min(self.timeout.unwrap_or(Duration::MAX));
        // Before it is sent: the leader cannot have begun to count the new lease's time earlier.
        let sent = rt::boot_now();
        let (claim, lease, alone) = match line.place(&self.cluster, &note, attach, queue, timeout).await? {
            Placed::Occupied => return Ok(None),
            Placed::Standing { claim, lease, alone } => (claim, lease, alone),
        };
        let (session, own_session) = match support {
            Support::Session(session) => (session, false),
            Support::Ttl { ttl_ms } => (Lifeline::start(node, lease, Duration::from_millis(ttl_ms), name, sent), true),
        };
        // The put was refused unless its lease existed; that it still does is what the deadline says.
        let alone = session.standing().sure(rt::boot_now()).filter(|_| alone);
        Ok(Some(Attempt { node: node.clone(), line, claim, session, own_session, alone, granted: false }))
    }

    /// Runs `acquire` to its end on the node; dropping the returned future makes it withdraw.
    async fn run(self, queue: bool) -> Result<Option<LockGuard>, Error> {
        let (here, gone) = oneshot::channel();
        let cluster = self.cluster.clone();
        let acquired = cluster.on_node(move |node| self.acquire(node, queue, gone)).await;
        // Held until the answer is here; an answer that comes after it was dropped is a guard that is dropped.
        drop::<oneshot::Sender<()>>(here);
        acquired
    }
}

/// What a claim hangs on.
enum Support {
    Session(Arc<Lifeline>),
    Ttl { ttl_ms: u64 },
}

/// A claim that was placed and not granted yet. Dropped without that, however it comes about, it is withdrawn.
struct Attempt {
    node: Arc<Node>,
    line: Line,
    claim: Claim,
    session: Arc<Lifeline>,
    own_session: bool,
    /// Set if it stood alone when it was placed, in a valid session: that session's lapses.
    alone: Option<u64>,
    granted: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.granted {
            return;
        }
        if self.own_session {
            self.session.end(LostReason::Closed);
        }
        let (node, claim) = (self.node.clone(), self.claim.clone());
        // An error says that the node has stopped: the claim goes with its lease.
        self.node.spawn("claim-withdraw", async move { drop(withdraw(&node, &claim).await) }).detach();
    }
}

impl IntoFuture for Lock {
    type Output = Result<LockGuard, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.run(true)
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
        self.lock.run(false).boxed()
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
pub struct LockGuard {
    cluster: Cluster,
    name: String,
    hold: Arc<Hold>,
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard").field("name", &self.name).field("fence", &self.fence()).finish_non_exhaustive()
    }
}

impl LockGuard {
    /// The token to hand to whatever the lock protects: greater than that of every earlier holder.
    pub fn fence(&self) -> Fence {
        self.hold.claim.fence
    }

    /// The lock's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long the lock is certainly held from now on, were no further renewal acknowledged; zero once it is lost.
    pub fn valid_for(&self) -> Duration {
        self.hold.valid_for()
    }

    /// Resolves when the lock is lost: at the local deadline at the latest (a timer's tick aside), which is before the cluster
    /// can grant it to anybody else; earlier if the claim is deleted or the session ends.
    ///
    /// Polled after the machine was suspended, it resolves at once.
    pub fn lost(&self) -> Lost {
        self.hold.lost()
    }

    /// Runs `work` for as long as the lock is held, and drops it when the lock is lost.
    ///
    /// The lock is asked before each poll of `work`, so that a machine that slept does not go on with it. Dropping a future
    /// does not undo what it has sent: see the type's words on fences.
    ///
    /// # Errors
    /// The [`LostReason`]; `work` was dropped unfinished.
    /// # Cancel safety
    /// That of `work`.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// let guard = cluster.lock("jobs/nightly").await?;
    /// let done = guard.run(async { 6 * 7 }).await;
    /// assert_eq!(done, Ok(42));
    /// # guard.release().await?; cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, LostReason> {
        let (mut work, mut lost) = (pin!(work), self.lost());
        poll_fn(|cx| match lost.poll_unpin(cx) {
            Poll::Ready(reason) => Poll::Ready(Err(reason)),
            Poll::Pending => work.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    /// Begins a transaction that is carried out only while this claim stands, whatever this process believes by then.
    ///
    /// Its `otherwise` branch may only read. Places of conditions and operations count as in any transaction.
    ///
    /// # Errors
    /// [`Error::Fenced`] if the lock was lost: nothing was written. Otherwise as [`Cluster::transaction`].
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::put;
    /// let guard = cluster.lock("jobs/nightly").await?;
    /// guard.txn().then(put("last-run", &1u64)).await?;
    /// # guard.release().await?; cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn txn(&self) -> Transaction {
        Transaction::fenced(&self.cluster, self.hold.claim.key.clone(), self.fence())
    }

    /// Releases the lock and waits until the cluster has carried that out. A lock that is lost already is fine.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when the cluster did not answer in time: it goes on being tried in the background, and the lock
    /// goes with its lease at the latest. [`Error::Stopped`]: likewise, without the first half.
    /// # Cancel safety
    /// The release goes on in the background.
    pub async fn release(self) -> Result<(), Error> {
        let Some(releasing) = self.give_up() else { return Ok(()) };
        let timeout = self.cluster.node().settings().timeout;
        let released = self.cluster.on_node(move |_| async move {
            match rt::timeout(timeout, releasing).await {
                Ok(released) => released.unwrap_or(Err(Error::Stopped { reason: "shut down".into() })),
                Err(_) => Err(Error::NotApplied { why: Obstacle::Timeout, waited: timeout }),
            }
        });
        released.await
    }

    /// Ends the hold and withdraws the claim in a task of the node; `None` if it was lost.
    fn give_up(&self) -> Option<rt::Task<Result<(), Error>>> {
        if !self.hold.give_up() {
            return None;
        }
        // With the handle: a node whose last guard goes is to stop after that, and not before.
        let (cluster, hold) = (self.cluster.clone(), self.hold.clone());
        let node = cluster.node().clone();
        Some(node.spawn("lock-release", async move { hold.withdraw(cluster.node()).await }))
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if let Some(releasing) = self.give_up() {
            releasing.detach();
        }
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

/// One claim on a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claimant {
    /// Its token. [`Fence::revision`] is since when it has stood in the line.
    pub fence: Fence,
    /// The lease it lives by.
    pub lease: LeaseId,
    /// The name of its session; that of its node if it has one of its own.
    pub session: String,
    /// The name of the node whose host asked for it.
    pub member: String,
}

impl Claimant {
    fn read(claim: KeyValue) -> Result<Self, Error> {
        let unreadable = |problem: String| Error::Invalid { what: "claim", why: problem };
        let note = decode_claim(claim.value).map_err(|error| unreadable(error.to_string()))?;
        Ok(Claimant {
            fence: Fence::new(claim.created).expect("a key was created at a revision above zero"),
            lease: claim.lease.expect("every claim hangs on a lease"),
            session: note.session,
            member: note.member,
        })
    }
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
        Lock { cluster: self.clone(), name: name.into(), ttl: None, session: None, timeout: None }
    }
}

#[cfg(test)]
mod tests;
