//! Registering an instance, and what its owner holds from then on.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::instance::{INSTANCE_ID_BYTES_MAX, Incarnation, Instance, SERVICE_NAME_BYTES_MAX, SERVICES, check_name};
use super::probe::{Probe, Verdict};
use super::reconcile::{Progress, Reconciler, Terms, Wanted};
use super::slot::Slot;
use crate::api::cluster::Cluster;
use crate::api::session::{LostReason, default_ttl};
use crate::error::Error;
use crate::node::Node;
use crate::rt::watch;
use crate::types::Revision;

/// An instance to be registered by awaiting it. See [`Services::register`](crate::Services::register).
#[must_use = "nothing is registered until it is awaited"]
#[derive(Clone, Debug)]
pub struct Register {
    cluster: Cluster,
    service: String,
    id: Option<String>,
    instance: Instance,
    ttl: Option<Duration>,
    refresh: Option<Duration>,
    probe: Probe,
}

impl Register {
    pub(super) fn new(cluster: &Cluster, service: String, instance: Instance) -> Self {
        let (cluster, probe) = (cluster.clone(), Probe::default());
        Register { cluster, service, id: None, instance, ttl: None, refresh: None, probe }
    }

    /// The instance's id among those of its service: what it keeps when it is restarted, so that it replaces itself at once. 1
    /// to 255 bytes, no control characters. Default: the name of the node, so one instance of a service for each node.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// How long the record outlives an instance that died: as [`OpenSession::ttl`](crate::OpenSession::ttl). Default 10 s, or
    /// three times the maximal election timeout if that is more.
    ///
    /// A change of leader does not end it, however long that takes: the new one gives every record a full ttl.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How often the record is renewed: as [`OpenSession::refresh`](crate::OpenSession::refresh). Default: a third of the ttl.
    pub fn refresh(mut self, refresh: Duration) -> Self {
        self.refresh = Some(refresh);
        self
    }

    /// Lists the instance only while `probe` says that it is healthy: with `true` or `Ok`.
    ///
    /// It is asked once before the instance is registered, and then every [`Register::probe_every`], by a task of the node's
    /// own runtime: it may use tokio's sockets and timers, and must not block. No answer within [`Register::probe_timeout`], or
    /// a panic, is a no. [`Register::unhealthy_after`] so many in a row the record is taken away; one yes puts it back.
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    /// use quorate::{Instance, RegistrationState};
    ///
    /// let ready = Arc::new(AtomicBool::new(false));
    /// let probe = ready.clone();
    /// let web = cluster
    ///     .services()
    ///     .register("web", Instance::new("10.0.0.7:8080"))
    ///     .healthy_when(move || {
    ///         let ready = probe.clone();
    ///         async move { ready.load(Ordering::Relaxed) }
    ///     })
    ///     .probe_every(std::time::Duration::from_millis(20))
    ///     .await?;
    /// assert!(matches!(web.state(), RegistrationState::Unhealthy { .. }));
    /// ready.store(true, Ordering::Relaxed);
    /// let state = web.states().wait_for(|state| state.is_registered()).await;
    /// assert!(state.is_registered());
    /// # web.deregister().await?; cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn healthy_when<P, F>(mut self, probe: P) -> Self
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output: Verdict> + Send + 'static,
    {
        self.probe.asking(probe);
        self
    }

    /// The pause between two questions to the probe: 10 ms to one hour. Default 1 s.
    pub fn probe_every(mut self, interval: Duration) -> Self {
        self.probe.interval = interval;
        self
    }

    /// How long the probe may take to answer: 10 ms to one hour. Default 1 s.
    pub fn probe_timeout(mut self, timeout: Duration) -> Self {
        self.probe.timeout = timeout;
        self
    }

    /// After how many noes in a row an instance that was healthy is taken away: at least 1. Default 3.
    pub fn unhealthy_after(mut self, failures: u32) -> Self {
        self.probe.failures = failures;
        self
    }

    fn slot(&self) -> Result<(Slot, Terms), Error> {
        let node = self.cluster.node();
        let id = self.id.clone().unwrap_or_else(|| node.name().to_owned());
        check_name("service name", &self.service, SERVICE_NAME_BYTES_MAX)?;
        check_name("instance id", &id, INSTANCE_ID_BYTES_MAX)?;
        self.instance.check()?;
        self.probe.check()?;
        let ttl = self.ttl.unwrap_or_else(|| default_ttl(&self.cluster));
        let slot = Slot {
            cluster: self.cluster.clone(),
            service: self.service.clone(),
            id,
            incarnation: Incarnation::default(),
            registrar: node.name().to_owned(),
            // No longer than it takes to lose the record: what it is about to do may be out of date by then.
            timeout: node.settings().timeout.min(ttl),
        };
        Ok((slot, Terms { ttl, refresh: self.refresh }))
    }

    async fn start(self, node: Arc<Node>) -> Result<Registration, Error> {
        let (mut slot, terms) = self.slot()?;
        let session = terms.open(&slot).await?;
        slot.incarnation = Incarnation::of(session.lease());
        let records = self.cluster.table(SERVICES).watch(slot.key()).await?;
        let health = self.probe.ask(&node).await;
        let first = Wanted { instance: self.instance, version: 0, health: health.clone(), over: false };
        let starting = RegistrationState::Lost { reason: LostReason::Unsure };
        let (wanted, wants) = watch::channel(first);
        let (tell, told) = watch::channel(Progress { state: starting, version: 0, failure: None });
        let mut reconciler = Reconciler::new(slot.clone(), terms, session, wants, tell, records);
        // Made before the first step, so that whatever comes of that is taken back if nobody receives this.
        let registration = Registration { slot, wanted, told };
        if !reconciler.step().await? {
            let asking = self.probe.is_set().then(|| {
                let wanted = registration.wanted.clone();
                let tell = move |health| wanted.send_modify(|wanted| wanted.health = health);
                node.spawn("probing", self.probe.follow(node.clone(), health, tell)).abort_on_drop()
            });
            let running = async move {
                let _asking = asking;
                reconciler.run().await;
            };
            node.spawn("registration", running).detach();
        }
        Ok(registration)
    }
}

impl IntoFuture for Register {
    type Output = Result<Registration, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let cluster = self.cluster.clone();
        async move { cluster.on_node(move |node| self.start(node)).await }.boxed()
    }
}

/// Where a registration is in its life. See [`Registration::state`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistrationState {
    /// The record is in the table.
    #[non_exhaustive]
    Registered {
        /// Since when it is there as it is.
        revision: Revision,
    },
    /// The health probe fails: the record was taken away, or not put there yet. It is asked again.
    #[non_exhaustive]
    Unhealthy {
        /// What the last failure said.
        why: String,
    },
    /// The record is gone, or with [`LostReason::Unsure`] may be: this node cannot reach the cluster, or did not hear in time
    /// what became of a write. It is being repaired.
    #[non_exhaustive]
    Lost {
        /// [`LostReason::Expired`]: the lease is gone. [`LostReason::Deleted`]: somebody deleted or overwrote the record.
        reason: LostReason,
    },
    /// A newer registration has taken over this service and id. This one has ended.
    #[non_exhaustive]
    Replaced {
        /// Which one; `None` if this release cannot read its record.
        by: Option<Incarnation>,
    },
    /// It was deregistered here. It has ended.
    Deregistered,
    /// This node has stopped. The record goes when its lease expires.
    Stopped,
}

impl RegistrationState {
    /// Whether the instance is listed, and surely so.
    pub fn is_registered(&self) -> bool {
        matches!(self, RegistrationState::Registered { .. })
    }

    /// Whether nothing comes after it.
    pub fn is_final(&self) -> bool {
        use RegistrationState::{Deregistered, Replaced, Stopped};
        matches!(self, Replaced { .. } | Deregistered | Stopped)
    }
}

/// An instance that is kept registered in the background until this is dropped. See [`Services::register`](crate::Services::register).
///
/// Its record is put again when it is lost, be it that this node was cut off for longer than the ttl or that somebody deleted
/// it: at once the first time, after pauses of 100 ms to 5 s if that goes on. Only a registration that began later under the
/// same service and id ends it ([`RegistrationState::Replaced`]): of two processes that use one id, the later one is listed
/// and stays so.
///
/// It keeps its node running, as a handle does. Dropping it deregisters in the background; if the cluster cannot be reached,
/// or the node is shut down, the record goes when its lease expires. [`Registration::deregister`] waits for that.
#[must_use = "an instance whose registration is dropped is deregistered"]
pub struct Registration {
    slot: Slot,
    wanted: watch::Sender<Wanted>,
    told: watch::Receiver<Progress>,
}

impl Registration {
    /// The name of the service.
    pub fn service(&self) -> &str {
        &self.slot.service
    }

    /// The id among the instances of the service.
    pub fn id(&self) -> &str {
        &self.slot.id
    }

    /// Which of the registrations under this id it is. Stays the same however often the record had to be put again.
    pub fn incarnation(&self) -> Incarnation {
        self.slot.incarnation
    }

    /// What is registered, or will be when it can be.
    pub fn instance(&self) -> Instance {
        self.wanted.with(|wanted| wanted.instance.clone())
    }

    /// Where it is in its life, as far as this node knows.
    pub fn state(&self) -> RegistrationState {
        self.told.with(|told| told.state.clone())
    }

    /// Follows the state. Independent of this; there may be any number.
    pub fn states(&self) -> RegistrationStates {
        RegistrationStates { told: self.told.clone(), seen: self.state() }
    }

    /// Registers `instance` in place of the present one, and returns the state when that has been done, or cannot be for now
    /// ([`RegistrationState::Unhealthy`]: it will be once it is healthy) or any more (the final ones).
    ///
    /// Waits for as long as the cluster cannot be reached. Of several at once, the last one stays.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an instance that cannot be registered; the present one stays.
    /// # Cancel safety
    /// Dropping the future does not take back the update.
    pub async fn update(&self, instance: Instance) -> Result<RegistrationState, Error> {
        instance.check()?;
        let mut version = 0;
        self.wanted.send_modify(|wanted| {
            wanted.instance = instance;
            wanted.version += 1;
            version = wanted.version;
        });
        let settled = |told: &Progress| match told.state {
            RegistrationState::Registered { .. } => told.version >= version,
            RegistrationState::Unhealthy { .. } => true,
            _ => told.state.is_final(),
        };
        // An error says that it is over: the last state is then the answer.
        let told = self.told.clone().wait_for(settled).await;
        Ok(told.map_or_else(|_| self.state(), |told| told.state))
    }

    /// Takes the record away and ends the lease.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when the cluster did not answer in time: the lease is not renewed any more, and the record goes
    /// when it expires. None if it has ended already, for whatever reason.
    /// # Cancel safety
    /// It goes on in the background.
    pub async fn deregister(self) -> Result<(), Error> {
        self.end();
        let told = self.told.clone().wait_for(|told| told.state.is_final()).await;
        told.ok().and_then(|told| told.failure).map_or(Ok(()), Err)
    }

    fn end(&self) {
        self.wanted.send_if_modified(|wanted| !std::mem::replace(&mut wanted.over, true));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("service", &self.slot.service)
            .field("id", &self.slot.id)
            .field("incarnation", &self.slot.incarnation)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// The states of a registration. See [`Registration::states`].
///
/// Only the newest is kept: who is slow does not see every one in between.
#[derive(Clone)]
pub struct RegistrationStates {
    told: watch::Receiver<Progress>,
    /// What the holder was told last.
    seen: RegistrationState,
}

impl RegistrationStates {
    /// The present one.
    pub fn borrow(&self) -> RegistrationState {
        self.told.with(|told| told.state.clone())
    }

    /// The next one that is another than the one last returned here; `None` behind the last.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn changed(&mut self) -> Option<RegistrationState> {
        let seen = self.seen.clone();
        let told = self.told.wait_for(|told| told.state != seen).await.ok()?;
        self.seen = told.state;
        Some(self.seen.clone())
    }

    /// Waits until `wanted` holds of the state, or it is a final one, and returns it.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&RegistrationState) -> bool) -> RegistrationState {
        let settled = |told: &Progress| told.state.is_final() || wanted(&told.state);
        self.seen = match self.told.wait_for(settled).await {
            Ok(told) => told.state,
            Err(_) => self.borrow(),
        };
        self.seen.clone()
    }
}

impl fmt::Debug for RegistrationStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RegistrationStates").field(&self.borrow()).finish()
    }
}
