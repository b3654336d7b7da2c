//! Taking a place in a line and waiting for its turn: what every recipe's entry verb does.
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
//! It promises that an attempt that is not granted, for whatever reason and at whatever moment, is withdrawn. What a turn is
//! is the line's to say, and what a granted claim is worth the guard's.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{Either, select};

use super::claim::{Claim, Line, Placed, session_error, withdraw};
use super::guard::Guard;
use super::hold::Hold;
use crate::api::cluster::Cluster;
use crate::api::kv::ttl_ms;
use crate::api::session::{ELECTIONS_OUTLIVED, Lifeline, LostReason, default_ttl};
use crate::command::Attach;
use crate::error::{Error, Obstacle};
use crate::format::claim::ClaimNote;
use crate::node::Node;
use crate::rt::{self, Instant};
use crate::types::LeaseId;

/// Longest name of a lock, an election, or whatever else a recipe names, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 512;

/// How a place is to be taken: what the builders of all recipes have in common.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) cluster: Cluster,
    pub(crate) name: String,
    pub(crate) ttl: Option<Duration>,
    pub(crate) session: Option<Arc<Lifeline>>,
    pub(crate) timeout: Option<Duration>,
}

/// Declares the options that the builders of all recipes share. They keep them in a field `request`.
macro_rules! claiming {
    ($thing:literal) => {
        #[doc = concat!("How long ", $thing, " outlives a holder that died: at least three times the maximal election")]
        /// timeout, at most one year. Default 10 s, or those three election timeouts if that is more.
        ///
        /// There is then a session for it alone, made and ended with its claim.
        pub fn ttl(mut self, ttl: Duration) -> Self {
            self.request.ttl = Some(ttl);
            self
        }

        #[doc = concat!("Lives by `session` instead of one of its own: when that ends or lapses, ", $thing, " is lost. Not")]
        /// together with a ttl.
        pub fn session(mut self, session: &Session) -> Self {
            self.request.session = Some(session.lifeline().clone());
            self
        }

        /// Stops waiting after `timeout`, with [`Error::NotApplied`]. Default: waits as long as it takes.
        pub fn timeout(mut self, timeout: Duration) -> Self {
            self.request.timeout = Some(timeout);
            self
        }
    };
}
pub(crate) use claiming;

impl Request {
    pub(crate) fn new(cluster: &Cluster, name: String) -> Self {
        Request { cluster: cluster.clone(), name, ttl: None, session: None, timeout: None }
    }

    /// The name, if it is one; `what` is what the refusal calls it.
    pub(crate) fn checked_name(&self, what: &'static str) -> Result<String, Error> {
        checked_name(&self.name, what).map(str::to_owned)
    }

    /// How long a question about the line may take.
    pub(crate) fn step_timeout(&self) -> Duration {
        self.timeout.unwrap_or(self.cluster.node().settings().timeout)
    }

    /// Waits in `line` for the turn; `None` if that is not now and the caller does not queue.
    ///
    /// # Cancel safety
    /// Dropping the returned future makes the attempt withdraw.
    pub(crate) async fn acquire(self, line: Line, payload: Bytes, queue: bool) -> Result<Option<Guard>, Error> {
        let cluster = self.cluster.clone();
        while_wanted(&cluster, move |node, gone| self.take(node, line, payload, queue, gone)).await
    }

    async fn take(
        self,
        node: Arc<Node>,
        line: Line,
        payload: Bytes,
        queue: bool,
        mut gone: oneshot::Receiver<()>,
    ) -> Result<Option<Guard>, Error> {
        let started = Instant::now();
        // What its transaction cannot count is looked at first: mostly, nothing is written for nothing.
        if !queue && line.size.is_some() && line.is_full(&*node.linearizable_view(self.step_timeout()).await?)? {
            return Ok(None);
        }
        let Some(mut attempt) = self.place(&node, line, payload, queue).await? else { return Ok(None) };
        let patience = self.timeout.or((!queue).then_some(node.settings().timeout)).unwrap_or(Duration::MAX);
        let turn = patiently(started, patience, Obstacle::Held, &mut gone, attempt.turn(queue)).await?;
        Ok(turn.map(|lapses| attempt.granted(self.cluster.clone(), self.name, lapses)))
    }

    /// Places a claim; `None` if the line is occupied and the caller does not queue.
    pub(crate) async fn place(
        &self,
        node: &Arc<Node>,
        line: Line,
        payload: Bytes,
        queue: bool,
    ) -> Result<Option<Attempt>, Error> {
        let footing = self.footing(node)?;
        let note = footing.note(node, payload);
        match line.place(&self.cluster, &note, footing.attach(), queue, footing.timeout).await? {
            Placed::Occupied => Ok(None),
            Placed::Standing { claim, lease, alone } => Ok(Some(footing.stand(node, line, claim, lease, alone))),
        }
    }

    /// What a claim that is placed from now on will live by.
    pub(crate) fn footing(&self, node: &Node) -> Result<Footing, Error> {
        let support = self.support()?;
        if let Support::Session(session) = &support
            && let Some(reason) = session.standing().lost
        {
            return Err(session_error(session, reason));
        }
        let timeout = node.settings().timeout.min(self.timeout.unwrap_or(Duration::MAX));
        Ok(Footing { support, timeout, sent: rt::boot_now() })
    }

    /// What the claim will hang on: a session, or a lease that its put makes.
    fn support(&self) -> Result<Support, Error> {
        let shortest = self.cluster.node().settings().timing.election_max * ELECTIONS_OUTLIVED;
        let (ttl, support) = match (&self.session, self.ttl) {
            (Some(_), Some(_)) => {
                let why = "what is held has a ttl of its own or lives by a session, not both".into();
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
                "it is {ttl:?}, but what is to be held needs at least {shortest:?}, {ELECTIONS_OUTLIVED} times the \
                 maximal election timeout, or every change of leader would lose it"
            );
            return Err(Error::Invalid { what: "ttl", why });
        }
        Ok(support)
    }
}

/// The name of a lock, an election, or the like, if it can be one; `what` is what the refusal calls it.
pub(crate) fn checked_name<'a>(name: &'a str, what: &'static str) -> Result<&'a str, Error> {
    let invalid = |why| Err(Error::Invalid { what, why });
    match name {
        "" => invalid("it is empty".into()),
        name if name.contains('\0') => invalid(format!("{name:?} holds a zero byte")),
        name if name.len() > NAME_BYTES_MAX => {
            invalid(format!("it has {} bytes, the limit is {NAME_BYTES_MAX}", name.len()))
        }
        name => Ok(name),
    }
}

/// What a claim will live by, and since when that counts.
pub(crate) struct Footing {
    support: Support,
    /// How long placing it may take.
    pub(crate) timeout: Duration,
    /// Before it is sent: the leader cannot have begun to count a new lease's time earlier.
    sent: Duration,
}

impl Footing {
    pub(crate) fn attach(&self) -> Attach {
        match &self.support {
            Support::Session(session) => Attach::Lease(session.lease),
            Support::Ttl { ttl_ms } => Attach::Ttl { ttl_ms: *ttl_ms },
        }
    }

    /// What is written in the claim.
    pub(crate) fn note(&self, node: &Node, payload: Bytes) -> ClaimNote {
        ClaimNote { member: node.name().to_owned(), session: self.session_name(node), payload }
    }

    /// The claim was placed and hangs on `lease`. `alone`: nobody stood in its way.
    pub(crate) fn stand(self, node: &Arc<Node>, line: Line, claim: Claim, lease: LeaseId, alone: bool) -> Attempt {
        let name = self.session_name(node);
        let (session, own_session) = match self.support {
            Support::Session(session) => (session, false),
            Support::Ttl { ttl_ms } => {
                (Lifeline::start(node, lease, Duration::from_millis(ttl_ms), name, self.sent), true)
            }
        };
        // The put was refused unless its lease existed; that it still does is what the deadline says.
        let alone = session.standing().sure(rt::boot_now()).filter(|_| alone);
        Attempt { node: node.clone(), line, claim, session, own_session, alone, granted: false }
    }

    fn session_name(&self, node: &Node) -> String {
        match &self.support {
            Support::Session(session) => session.name.clone(),
            Support::Ttl { .. } => node.name().to_owned(),
        }
    }
}

/// What a claim hangs on.
enum Support {
    Session(Arc<Lifeline>),
    Ttl { ttl_ms: u64 },
}

/// A claim that was placed and not granted yet. Dropped without that, however it comes about, it is withdrawn.
pub(crate) struct Attempt {
    pub(crate) node: Arc<Node>,
    line: Line,
    pub(crate) claim: Claim,
    pub(crate) session: Arc<Lifeline>,
    own_session: bool,
    /// Set if nobody stood in its way when it was placed, in a valid session: that session's lapses.
    pub(crate) alone: Option<u64>,
    granted: bool,
}

impl Attempt {
    /// Waits until it is the claim's turn; the session's lapses as of when that was confirmed. `None` if it is not yet, and the
    /// caller does not queue.
    async fn turn(&self, queue: bool) -> Result<Option<u64>, Error> {
        if let Some(lapses) = self.alone {
            // Its own transaction has said so: no other round is needed.
            return Ok(Some(lapses));
        }
        if !queue {
            self.node.wait_revision(self.claim.fence.revision()).await?;
            if self.line.awaited(&self.node.state().view(), &self.claim)?.is_some() {
                return Ok(None);
            }
        }
        self.line.wait_turn(&self.node, &self.claim, &self.session).await.map(Some)
    }

    pub(crate) fn granted(&mut self, cluster: Cluster, name: String, lapses: u64) -> Guard {
        self.granted = true;
        let hold = Hold::start(&self.node, self.claim.clone(), self.session.clone(), lapses, self.own_session);
        Guard::new(cluster, name, hold)
    }
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

/// Runs `operation` on the node to its end; when the returned future is dropped, the receiver it was given is told.
pub(crate) async fn while_wanted<T, F>(
    cluster: &Cluster,
    operation: impl FnOnce(Arc<Node>, oneshot::Receiver<()>) -> F,
) -> Result<T, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let (here, gone) = oneshot::channel();
    let done = cluster.on_node(move |node| operation(node, gone)).await;
    // Held until the answer is here; an answer that comes after it was dropped is a guard that is dropped.
    drop::<oneshot::Sender<()>>(here);
    done
}

/// Waits for `work` until the patience is over that began at `started` (`why` says what it was that took too long), or the
/// caller is `gone`.
pub(crate) async fn patiently<T>(
    started: Instant,
    patience: Duration,
    why: Obstacle,
    gone: &mut oneshot::Receiver<()>,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let work = pin!(rt::timeout_at(started + patience, work));
    match select(gone, work).await {
        Either::Right((Ok(done), _)) => done,
        // On the left, nobody is there to receive this answer.
        Either::Left(_) | Either::Right((Err(_), _)) => Err(Error::NotApplied { why, waited: started.elapsed() }),
    }
}
