//! Sessions: a lease that keeps itself alive, and what this process may believe about it.
//!
//! The cluster knows whether a lease exists; this side only knows when a renewal was last acknowledged. From that it
//! derives a *local deadline*: the moment the acknowledged renewal was **sent**, plus the time to live, less a margin for
//! clocks that do not run alike. The leader started to count later than that, so the lease cannot have expired before the
//! deadline (property L1 of leases; [`crate::node`]'s expiry has the other half of the argument). The clock is the one that
//! counts suspend: a machine that slept wakes up behind its deadline.
//!
//! Past the deadline the session is *unsure*: it may or may not exist. It goes on renewing and recovers if it does. It is
//! *lost* only when the cluster has said that the lease is gone, when it was closed, or when this node has stopped.
//! Whoever must stop in time (the guards of the recipes) treats the deadline itself as the loss, and for good: a
//! [`Standing`] counts its lapses, so that a recovered session is not taken for one that never lapsed.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, select};

use super::cluster::Cluster;
use super::kv::ttl_ms;
use crate::command::{Command, Response};
use crate::error::Error;
use crate::node::Node;
use crate::rt::{self, watch};
use crate::types::LeaseId;

/// The shortest time to live of a session. Below three times the maximal election timeout a session does not outlive an
/// ordinary change of leader.
pub const SESSION_TTL_MIN: Duration = Duration::from_millis(100);
/// Time to live of a session that names none, unless three election timeouts are more.
const SESSION_TTL: Duration = Duration::from_secs(10);
/// How many of the longest election timeouts a lease should outlive, and that of a lock must.
pub(crate) const ELECTIONS_OUTLIVED: u32 = 3;
/// Longest name of a session, in bytes.
pub const SESSION_NAME_BYTES_MAX: usize = 256;
/// By how many percent this node's and the leader's clocks may differ in speed.
const DRIFT_PERCENT: u32 = 1;
/// Taken off every deadline besides, for timers that fire late by a tick or two.
const DRIFT_FIXED: Duration = Duration::from_millis(5);
/// Renewals per time to live.
const RENEWALS: u32 = 3;
/// The shortest pause between two renewals that can be asked for.
pub const SESSION_REFRESH_MIN: Duration = Duration::from_millis(10);
/// Pause before a renewal that got no answer is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Timers stand still while the machine sleeps: after waking up, a deadline that has passed is noticed within this.
const SUSPEND_NOTICED: Duration = Duration::from_secs(1);

/// Why a session or a guard does not hold any more.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum LostReason {
    /// The cluster says that the lease is gone: it was not renewed in time, or somebody revoked it.
    #[error("the lease has expired or was revoked")]
    Expired,
    /// The session was closed or dropped here.
    #[error("the session was closed")]
    Closed,
    /// Of guards and registrations: the local deadline came before a renewal was acknowledged. A lock may be granted to
    /// somebody else.
    #[error("the lease could not be renewed before the local deadline")]
    Unsure,
    /// Of guards and registrations: somebody deleted the claim, or the record.
    #[error("the claim was deleted")]
    Deleted,
    /// Of guards only: it was released here.
    #[error("it was released")]
    Released,
    /// This node has stopped and renews nothing any more.
    #[error("this node has stopped")]
    Stopped,
}

/// Resolves when a session or guard does not hold any more. Independent of what it came from; there may be any number.
///
/// # Cancel safety
/// Nothing is lost: another one resolves to the same reason.
#[must_use = "a future does nothing unless it is awaited"]
pub struct Lost(BoxFuture<'static, LostReason>);

impl Lost {
    pub(crate) fn new(lost: impl Future<Output = LostReason> + Send + 'static) -> Self {
        Lost(Box::pin(lost))
    }
}

impl Future for Lost {
    type Output = LostReason;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LostReason> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lost")
    }
}

/// A lease with a name, kept alive in the background until it is closed or dropped. See [`Cluster::session`].
///
/// Keys attached to it (`set(..).session(&session)`) are deleted together, at one revision, when it ends. It keeps its node
/// running, as a handle does.
///
/// Dropping it revokes the lease in the background, as best it can: if the cluster cannot be reached, the keys go when
/// the lease expires. [`Session::close`] waits for that.
pub struct Session {
    cluster: Cluster,
    line: Arc<Lifeline>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.line.name)
            .field("lease", &self.line.lease)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// The lease, to attach keys to and to recognise them by.
    pub fn lease(&self) -> LeaseId {
        self.line.lease
    }

    /// The name it was opened with: what [`Lock::inspect`](crate::Lock::inspect) shows.
    pub fn name(&self) -> &str {
        &self.line.name
    }

    /// How long the lease lasts without a renewal.
    pub fn ttl(&self) -> Duration {
        self.line.ttl
    }

    /// How long the lease certainly exists from now on, were no further renewal acknowledged; zero when that is not sure.
    pub fn valid_for(&self) -> Duration {
        self.line.standing().valid_for(rt::boot_now())
    }

    /// Whether the local deadline has passed without the lease being known to be gone: it is still being renewed, and may
    /// recover.
    pub fn is_unsure(&self) -> bool {
        let standing = self.line.standing();
        standing.lost.is_none() && standing.valid_for(rt::boot_now()).is_zero()
    }

    /// Resolves when the lease is known to be gone or the session is closed; not while it is only unsure.
    pub fn lost(&self) -> Lost {
        let line = self.line.clone();
        Lost::new(async move { line.lost().await })
    }

    /// Ends the lease now and deletes its keys at one revision. Guards that live by it are lost before that is sent.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when the cluster did not answer in time: the lease is not renewed any more and will expire.
    /// # Cancel safety
    /// The closing goes on in the background.
    pub async fn close(self) -> Result<(), Error> {
        self.end().await
    }

    /// As [`Session::close`], for who cannot give it away. It is of no use any more.
    pub(crate) async fn end(&self) -> Result<(), Error> {
        self.line.end(LostReason::Closed);
        let (lease, timeout) = (self.line.lease, self.cluster.node().settings().timeout);
        self.cluster.on_node(move |node| async move { revoke(&node, lease, timeout).await }).await
    }

    pub(crate) fn lifeline(&self) -> &Arc<Lifeline> {
        &self.line
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.line.end(LostReason::Closed) {
            return;
        }
        let (cluster, lease) = (self.cluster.clone(), self.line.lease);
        let node = cluster.node().clone();
        let closing = async move {
            let node = cluster.node();
            if let Err(error) = revoke(node, lease, node.settings().timeout).await {
                tracing::debug!(%lease, %error, "a dropped session was not revoked; its lease will expire");
            }
        };
        node.spawn("session-close", closing).detach();
    }
}

/// Ends a lease; one that is gone is fine.
async fn revoke(node: &Arc<Node>, lease: LeaseId, timeout: Duration) -> Result<(), Error> {
    // Doing it twice does no harm: lease numbers are never given out again.
    node.housekeep(Command::LeaseRevoke { lease }, timeout).await.map(drop)
}

/// A session to be opened by awaiting it. See [`Cluster::session`].
#[must_use = "a session is not opened until it is awaited"]
#[derive(Debug)]
pub struct OpenSession {
    cluster: Cluster,
    ttl: Option<Duration>,
    refresh: Option<Duration>,
    name: Option<String>,
    timeout: Duration,
}

impl OpenSession {
    /// How long the lease lasts without a renewal: from [`SESSION_TTL_MIN`](crate::SESSION_TTL_MIN) to one year. Default
    /// 10 s, or three times the maximal election timeout if that is more.
    ///
    /// It is renewed three times in that time unless [`OpenSession::refresh`] says otherwise. Shorter than three times the maximal election timeout, it may expire in an
    /// ordinary change of leader, and locks refuse it.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How long after a renewal was sent the next one is: from [`SESSION_REFRESH_MIN`](crate::SESSION_REFRESH_MIN) to half the
    /// ttl, so that one may be lost. Default: a third of the ttl.
    pub fn refresh(mut self, refresh: Duration) -> Self {
        self.refresh = Some(refresh);
        self
    }

    /// What inspections show for this session, at most 256 bytes. Default: the node's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Gives up opening after `timeout` instead of the default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl IntoFuture for OpenSession {
    type Output = Result<Session, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let OpenSession { cluster, ttl, refresh, name, timeout } = self;
            let ttl = ttl.unwrap_or_else(|| default_ttl(&cluster));
            let ttl_ms = ttl_ms(ttl)?;
            if ttl < SESSION_TTL_MIN {
                let why = format!("it is {ttl:?}, but a session's must be at least {SESSION_TTL_MIN:?}");
                return Err(Error::Invalid { what: "ttl", why });
            }
            let refresh = refresh.unwrap_or(ttl / RENEWALS);
            check_refresh(refresh, ttl)?;
            let name = name.unwrap_or_else(|| cluster.node().name().to_owned());
            check_name(&name)?;
            let handle = cluster.clone();
            let opening = cluster.on_node(move |node| async move {
                // Before it is sent: the leader cannot have begun to count earlier.
                let sent = rt::boot_now();
                match node.mutate(Command::LeaseGrant { ttl_ms }, timeout).await? {
                    Response::Granted { lease, .. } => {
                        let ttl = Duration::from_millis(ttl_ms);
                        let line = Lifeline::renewing(&node, lease, (ttl, refresh), name, sent);
                        // Made here, so that a caller who has gone away drops, and thereby revokes, it.
                        Ok(Session { cluster: handle, line })
                    }
                    other => unreachable!("a grant is answered with {other:?}"),
                }
            });
            opening.await
        })
    }
}

/// Refuses a name that is too long.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    if name.len() > SESSION_NAME_BYTES_MAX {
        let why = format!("it has {} bytes, the limit is {SESSION_NAME_BYTES_MAX}", name.len());
        return Err(Error::Invalid { what: "session name", why });
    }
    Ok(())
}

fn check_refresh(refresh: Duration, ttl: Duration) -> Result<(), Error> {
    if !(SESSION_REFRESH_MIN..=ttl / 2).contains(&refresh) {
        let why = format!("it is {refresh:?}, but must be from {SESSION_REFRESH_MIN:?} to half the ttl, {:?}", ttl / 2);
        return Err(Error::Invalid { what: "refresh", why });
    }
    Ok(())
}

/// Ten seconds, or what outlives a change of leader if that is more.
pub(crate) fn default_ttl(cluster: &Cluster) -> Duration {
    SESSION_TTL.max(cluster.node().settings().timing.election_max * ELECTIONS_OUTLIVED)
}

impl Cluster {
    /// Opens a session: a lease that is kept alive in the background for as long as the [`Session`] lives.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a ttl or name out of range. [`Error::NotApplied`] if no leader answered in time.
    /// [`Error::Indeterminate`]: there may be a lease that nobody renews; open another session.
    /// # Cancel safety
    /// A session that nobody receives is closed again.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use std::time::Duration;
    /// let session = cluster.session().ttl(Duration::from_secs(5)).name("web@host-1").await?;
    /// cluster.set("instances/web-1", &"10.0.0.7:8080".to_string()).session(&session).await?;
    /// assert!(session.valid_for() > Duration::ZERO);
    /// session.close().await?;
    /// assert!(cluster.get::<String>("instances/web-1").await?.is_none());
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn session(&self) -> OpenSession {
        let timeout = self.node().settings().timeout;
        OpenSession { cluster: self.clone(), ttl: None, refresh: None, name: None, timeout }
    }
}

/// What this process may believe about a lease.
///
/// * `lost` is set once and for all.
/// * `lapses` grows by one each time the deadline passes before a renewal is acknowledged, whenever that is noticed: valid
///   now and still as many lapses as then means valid all the time in between.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// On the clock that counts suspend.
    until: Duration,
    lapses: u64,
    /// The lapse of the present `until` has been counted.
    lapsed: bool,
    pub(crate) lost: Option<LostReason>,
}

impl Standing {
    /// Zero if lost or past the deadline.
    pub(crate) fn valid_for(&self, now: Duration) -> Duration {
        if self.lost.is_some() { Duration::ZERO } else { self.until.saturating_sub(now) }
    }

    /// The number of lapses so far if it is valid now.
    pub(crate) fn sure(&self, now: Duration) -> Option<u64> {
        (!self.valid_for(now).is_zero()).then_some(self.lapses)
    }

    /// Takes note of the time; whether that changed anything.
    fn look_at_clock(&mut self, now: Duration) -> bool {
        let lapses = self.lost.is_none() && !self.lapsed && now >= self.until;
        if lapses {
            self.lapses += 1;
            self.lapsed = true;
        }
        lapses
    }
}

/// A lease that is kept alive, and its standing. Held by the session and by every guard that lives by it.
#[derive(Debug)]
pub(crate) struct Lifeline {
    pub(crate) lease: LeaseId,
    pub(crate) ttl: Duration,
    /// From one renewal to the next.
    refresh: Duration,
    pub(crate) name: String,
    standing: watch::Sender<Standing>,
}

impl Lifeline {
    /// Begins to keep alive a lease whose grant was sent at `sent` and has been acknowledged.
    pub(crate) fn start(node: &Arc<Node>, lease: LeaseId, ttl: Duration, name: String, sent: Duration) -> Arc<Self> {
        Lifeline::renewing(node, lease, (ttl, ttl / RENEWALS), name, sent)
    }

    /// As [`start`](Self::start), with a pause between renewals of the caller's.
    fn renewing(
        node: &Arc<Node>,
        lease: LeaseId,
        (ttl, refresh): (Duration, Duration),
        name: String,
        sent: Duration,
    ) -> Arc<Self> {
        let (standing, _) =
            watch::channel(Standing { until: deadline(sent, ttl), lapses: 0, lapsed: false, lost: None });
        let line = Arc::new(Lifeline { lease, ttl, refresh, name, standing });
        node.spawn("session", line.clone().keep(node.clone(), sent)).detach();
        line
    }

    pub(crate) fn standing(&self) -> Standing {
        self.standing.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Waits until the session is lost.
    pub(crate) async fn lost(&self) -> LostReason {
        let lost = self.watch().wait_for(|standing| standing.lost.is_some()).await;
        lost.ok().and_then(|standing| standing.lost).expect("the sender is in self")
    }

    /// Waits until the session is valid, and returns its lapses so far.
    pub(crate) async fn sure(&self) -> Result<u64, LostReason> {
        let valid = |standing: &Standing| standing.lost.is_some() || standing.sure(rt::boot_now()).is_some();
        loop {
            let standing = self.watch().wait_for(valid).await.expect("the sender is in self");
            if let Some(reason) = standing.lost {
                return Err(reason);
            }
            if let Some(lapses) = standing.sure(rt::boot_now()) {
                return Ok(lapses);
            }
        }
    }

    /// Marks the session as lost; whether this was the first reason.
    pub(crate) fn end(&self, reason: LostReason) -> bool {
        self.standing.send_if_modified(|standing| {
            let first = standing.lost.is_none();
            if first {
                standing.lost = Some(reason);
            }
            first
        })
    }

    /// A renewal that was sent at `sent` has been acknowledged.
    fn renewed(&self, sent: Duration) {
        self.standing.send_modify(|standing| {
            // First what has passed unnoticed: the answer may have come after the deadline it is too late for.
            standing.look_at_clock(rt::boot_now());
            standing.until = standing.until.max(deadline(sent, self.ttl));
            standing.lapsed = false;
        });
    }

    /// Renews, and keeps the standing up to date, until the session is lost.
    async fn keep(self: Arc<Self>, node: Arc<Node>, sent: Duration) {
        // However this task ends, nobody waits for a standing that no one keeps.
        let _end = EndOnDrop(self.clone());
        let (clock, renewals) = (pin!(self.follow_clock()), pin!(self.renew(&node, sent)));
        select(pin!(self.lost()), select(clock, renewals)).await;
    }

    /// Tells those who watch when the deadline has passed.
    async fn follow_clock(&self) {
        let mut standing = self.watch();
        loop {
            let now = rt::boot_now();
            self.standing.send_if_modified(|standing| standing.look_at_clock(now));
            let left = match standing.borrow_and_update() {
                standing if standing.lapsed => Duration::MAX,
                standing => standing.until.saturating_sub(now).min(SUSPEND_NOTICED),
            };
            let _ = rt::timeout(left, standing.changed()).await;
        }
    }

    async fn renew(&self, node: &Arc<Node>, mut sent: Duration) {
        loop {
            sleep_until_boot(sent + self.refresh).await;
            sent = match self.renew_once(node).await {
                Ok(sent) => sent,
                Err(reason) => {
                    self.end(reason);
                    return;
                }
            };
        }
    }

    /// Tries until the renewal is acknowledged and returns when that one was sent.
    async fn renew_once(&self, node: &Arc<Node>) -> Result<Duration, LostReason> {
        loop {
            // Before it is sent, and anew for each attempt: only the answered one counts.
            let sent = rt::boot_now();
            let leader = node.status().leader;
            let mut status = node.watch_status();
            // An attempt on its way to a leader that has been replaced would only wait for its timeout.
            let moved = status.wait_for(|status| status.leader.is_some() && status.leader != leader);
            let asked = node.keep_alive(self.lease, self.ttl / RENEWALS);
            let futures::future::Either::Left((answer, _)) = select(pin!(asked), pin!(moved)).await else { continue };
            match answer {
                Ok(Some(_)) => {
                    self.renewed(sent);
                    return Ok(sent);
                }
                Ok(None) => return Err(LostReason::Expired),
                Err(Error::Stopped { .. } | Error::Formation(_)) => return Err(LostReason::Stopped),
                Err(error) => tracing::debug!(lease = %self.lease, %error, "a session could not be renewed yet"),
            }
            rt::sleep(RETRY_PAUSE).await;
        }
    }
}

/// Ends the session of a task that is dropped with its runtime.
struct EndOnDrop(Arc<Lifeline>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(LostReason::Stopped);
    }
}

/// Until when a lease certainly exists whose renewal, sent at `sent`, was acknowledged.
fn deadline(sent: Duration, ttl: Duration) -> Duration {
    sent + ttl.saturating_sub(ttl * DRIFT_PERCENT / 100 + DRIFT_FIXED)
}

/// Waits for a moment of the clock that counts suspend.
async fn sleep_until_boot(moment: Duration) {
    loop {
        let left = moment.saturating_sub(rt::boot_now());
        if left.is_zero() {
            return;
        }
        rt::sleep(left.min(SUSPEND_NOTICED)).await;
    }
}

#[cfg(test)]
mod tests;
