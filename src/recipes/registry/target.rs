//! Registering on behalf of others: a registrar that knows of many instances and says of each that it lives.
//!
//! A target has a lease of its own, and nothing runs for it in the background: who registered it renews it, target by target,
//! as long as there is reason to. A registrar that dies takes its targets along, each when its time is over; one that comes
//! back registers them again and so replaces them at once.

use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::instance::{INSTANCE_ID_BYTES_MAX, Incarnation, Instance, Leaving, SERVICE_NAME_BYTES_MAX, check_name};
use super::slot::{Placed, Slot};
use crate::api::cluster::Cluster;
use crate::api::kv::ttl_ms;
use crate::api::session::{SESSION_TTL_MIN, check_name as check_registrar, default_ttl};
use crate::command::{Command, Response};
use crate::error::Error;
use crate::types::{LeaseId, Revision};

/// Somebody else's instance, to be registered by awaiting it. See [`Services::register_for`](crate::Services::register_for).
#[must_use = "nothing is registered until it is awaited"]
#[derive(Clone, Debug)]
pub struct RegisterTarget {
    cluster: Cluster,
    service: String,
    id: String,
    instance: Instance,
    registrar: Option<String>,
    ttl: Option<Duration>,
}

impl RegisterTarget {
    pub(super) fn new(cluster: &Cluster, service: String, id: String, instance: Instance) -> Self {
        RegisterTarget { cluster: cluster.clone(), service, id, instance, registrar: None, ttl: None }
    }

    /// Who registers it, for people: what [`Registered::registrar`](crate::Registered::registrar) says; at most 256 bytes.
    /// Default: the name of the node.
    pub fn by(mut self, registrar: impl Into<String>) -> Self {
        self.registrar = Some(registrar.into());
        self
    }

    /// How long the record lasts after it was registered or last renewed: as [`OpenSession::ttl`](crate::OpenSession::ttl).
    /// Default 10 s, or three times the maximal election timeout if that is more.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    async fn put(self) -> Result<Target, Error> {
        let node = self.cluster.node();
        check_name("service name", &self.service, SERVICE_NAME_BYTES_MAX)?;
        check_name("instance id", &self.id, INSTANCE_ID_BYTES_MAX)?;
        self.instance.check()?;
        let registrar = self.registrar.unwrap_or_else(|| node.name().to_owned());
        check_registrar(&registrar)?;
        let ttl = self.ttl.unwrap_or_else(|| default_ttl(&self.cluster));
        if ttl < SESSION_TTL_MIN {
            let why = format!("it is {ttl:?}, but a registration's must be at least {SESSION_TTL_MIN:?}");
            return Err(Error::Invalid { what: "ttl", why });
        }
        let timeout = node.settings().timeout;
        let lease = Lease::grant(&self.cluster, ttl, timeout).await?;
        let slot = Slot {
            cluster: self.cluster,
            service: self.service,
            id: self.id,
            incarnation: Incarnation::of(lease.id),
            registrar,
            timeout,
        };
        let mut target = Target { slot, instance: self.instance, ttl, lease, modified: None, replaced: None };
        // Whether it was replaced already, the target says.
        let _: Renewal = target.place().await?;
        Ok(target)
    }
}

impl IntoFuture for RegisterTarget {
    type Output = Result<Target, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let cluster = self.cluster.clone();
        async move { cluster.on_node(|_| self.put()).await }.boxed()
    }
}

/// What [`Target::renew`] found and did.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Renewal {
    /// The record was there, and has its full ttl again.
    Renewed,
    /// The record was gone (its time was over, or somebody deleted it), and is there again, since this revision.
    Restored(Revision),
    /// A newer registration has this service and id. Nothing was done, and nothing will be.
    Replaced {
        /// Which one; `None` if this release cannot read its record.
        by: Option<Incarnation>,
    },
}

/// Somebody else's instance, registered for as long as it is renewed in time. See
/// [`Services::register_for`](crate::Services::register_for).
///
/// Dropping it does nothing: the record goes when its time is over, or with [`Target::deregister`].
#[must_use = "a target expires unless it is renewed"]
pub struct Target {
    slot: Slot,
    instance: Instance,
    ttl: Duration,
    lease: Lease,
    /// The revision of the record as it was put last.
    modified: Option<Revision>,
    replaced: Option<Option<Incarnation>>,
}

impl Target {
    /// The name of the service.
    pub fn service(&self) -> &str {
        &self.slot.service
    }

    /// The id among the instances of the service.
    pub fn id(&self) -> &str {
        &self.slot.id
    }

    /// Which of the registrations under this id it is.
    pub fn incarnation(&self) -> Incarnation {
        self.slot.incarnation
    }

    /// What was registered last.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// How long the record lasts from one renewal to the next.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Whether a newer registration, or a record that this release cannot read, was found under this service and id, when it
    /// was registered or renewed last: then this is not registered any more, and [`Target::renew`] says by whom.
    pub fn is_replaced(&self) -> bool {
        self.replaced.is_some()
    }

    /// Says that the instance lives: it has its full ttl from now on. Writes nothing as long as the record is there.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when the cluster did not answer in time: renew it again, while it may still be there.
    /// [`Error::Indeterminate`]: likewise. [`Error::Stopped`].
    /// # Cancel safety
    /// It may be renewed, or restored, all the same.
    pub async fn renew(&mut self) -> Result<Renewal, Error> {
        if let Some(by) = self.replaced {
            return Ok(Renewal::Replaced { by });
        }
        let (lease, timeout) = (self.lease.id, self.slot.timeout);
        let cluster = &self.slot.cluster;
        if cluster.on_node(move |node| async move { node.keep_alive(lease, timeout).await }).await?.is_none() {
            self.lease = Lease::grant(cluster, self.ttl, timeout).await?;
            self.modified = None;
            return self.place().await;
        }
        match self.stands().await? {
            true => Ok(Renewal::Renewed),
            false => self.place().await,
        }
    }

    /// Registers `instance` in place of the present one, and renews it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an instance that cannot be registered; the present one stays. Otherwise as [`Target::renew`],
    /// after which the new one is what that registers.
    /// # Cancel safety
    /// It may be registered all the same.
    pub async fn update(&mut self, instance: Instance) -> Result<Renewal, Error> {
        instance.check()?;
        self.instance = instance;
        match self.renew().await? {
            Renewal::Renewed => self.place().await.map(|placed| match placed {
                Renewal::Restored(_) => Renewal::Renewed,
                other => other,
            }),
            other => Ok(other),
        }
    }

    /// Takes the record away, unless it is another registration's by now.
    ///
    /// # Errors
    /// [`Error::NotApplied`] when the cluster did not answer in time: the record goes when its time is over.
    /// # Cancel safety
    /// It may be taken away all the same.
    pub async fn deregister(self) -> Result<(), Error> {
        // What matters is that the lease ends; this only lets watchers know why.
        let _ = self.slot.leave(&self.instance, self.lease.id, Leaving::Deregistered).await;
        self.lease.revoke(&self.slot.cluster, self.slot.timeout).await
    }

    /// Whether this node sees the record there, as it was put last.
    async fn stands(&self) -> Result<bool, Error> {
        let Some(modified) = self.modified else { return Ok(false) };
        let table = self.slot.cluster.table(super::SERVICES);
        match table.get(self.slot.key()).at_least(modified).timeout(self.slot.timeout).await {
            Ok(now) => Ok(now.is_some_and(|now| now.modified == modified)),
            // Whose it is, putting it finds out.
            Err(Error::Codec { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn place(&mut self) -> Result<Renewal, Error> {
        match self.slot.put(&self.instance, self.lease.id, self.modified).await? {
            Placed::Standing(revision) => {
                self.modified = Some(revision);
                Ok(Renewal::Restored(revision))
            }
            Placed::Newer(by) => {
                self.replaced = Some(by);
                Ok(Renewal::Replaced { by })
            }
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("service", &self.slot.service)
            .field("id", &self.slot.id)
            .field("incarnation", &self.slot.incarnation)
            .finish_non_exhaustive()
    }
}

/// A lease that nobody renews by himself.
struct Lease {
    id: LeaseId,
}

impl Lease {
    async fn grant(cluster: &Cluster, ttl: Duration, timeout: Duration) -> Result<Self, Error> {
        let ttl_ms = ttl_ms(ttl)?;
        let granting = cluster.on_node(move |node| async move {
            match node.mutate(Command::LeaseGrant { ttl_ms }, timeout).await? {
                Response::Granted { lease, .. } => Ok(Lease { id: lease }),
                other => unreachable!("a grant is answered with {other:?}"),
            }
        });
        granting.await
    }

    async fn revoke(&self, cluster: &Cluster, timeout: Duration) -> Result<(), Error> {
        let lease = self.id;
        let revoking = cluster.on_node(move |node| async move {
            node.housekeep(Command::LeaseRevoke { lease }, timeout).await.map(drop)
        });
        revoking.await
    }
}
