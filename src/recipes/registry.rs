//! A registry of services: who is where, kept true by leases.
//!
//! # Model
//!
//! What the cluster holds is one record for each instance, in the table [`SERVICES`] under (service, id), hanging on a lease.
//! An instance is listed exactly as long as its record is there; nothing else is stored.
//!
//! * No record without a lease: whatever happens to whoever registered it, it is gone a ttl later.
//! * One record for each (service, id): an instance that is restarted replaces its record, and does not wait for the old one
//!   to expire. Of two registrations under one id the newer one has the place, for good; [`slot`] is the argument.
//! * A record that should be there and is not is put again, whatever became of it; [`reconcile`] is the model of that.
//! * A record that its owner takes away says so first ([`Leaving`]): so everybody can tell a deregistration, a failed probe,
//!   an expiry and a deletion by somebody else from each other.
//!
//! Why a table of the user's kind and not one of the coordination space: registrations are data. Whoever draws up a list of
//! upstreams, answers DNS queries or asks who is there wants to watch and list them with the ordinary verbs.
//!
//! What is left to others: whether an instance that is listed answers. A record says that its owner's node reached the cluster
//! within the ttl, and that the probe, if there is one, was content.

mod discover;
mod hindsight;
mod instance;
mod probe;
mod reconcile;
mod register;
mod slot;
mod srv;
mod target;

use std::collections::BTreeSet;
use std::fmt;

pub use self::discover::{Departure, Discover, Discovery, InstanceEvent, Instances};
pub use self::instance::{
    INSTANCE_HOST_BYTES_MAX, INSTANCE_ID_BYTES_MAX, INSTANCE_METADATA_BYTES_MAX, INSTANCE_METADATA_MAX, Incarnation,
    Instance, Leaving, Registered, SERVICE_NAME_BYTES_MAX, SERVICES,
};
pub use self::probe::Verdict;
pub use self::register::{Register, Registration, RegistrationState, RegistrationStates};
pub use self::target::{RegisterTarget, Renewal, Target};

use self::instance::check_name;
use crate::api::cluster::Cluster;
use crate::api::keys::leading;
use crate::api::kv::Entry;
use crate::error::Error;

/// The registry of services. See [`Cluster::services`].
#[derive(Clone)]
pub struct Services {
    cluster: Cluster,
}

impl Services {
    /// Registers an instance of `service` (1 to 255 bytes, no control characters) and keeps it registered in the background
    /// for as long as the [`Registration`] lives. When it returns, the record is there, unless a health probe said no
    /// ([`RegistrationState::Unhealthy`]), or a newer registration, or a record that this release cannot read, has the id
    /// ([`RegistrationState::Replaced`]).
    ///
    /// Options: [`Register::id`], [`Register::ttl`], [`Register::refresh`], [`Register::healthy_when`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name, address or option out of range. [`Error::NotApplied`] if no leader answered in time: not
    /// registered. [`Error::Indeterminate`]: if it was, it goes when its ttl is over; register again.
    /// # Cancel safety
    /// A registration that nobody receives is deregistered.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(3).await?; let cluster = &nodes[0];
    /// use std::time::Duration;
    /// use quorate::Instance;
    ///
    /// let web = cluster
    ///     .services()
    ///     .register("web", Instance::new("10.0.0.7:8080").meta("zone", "a"))
    ///     .id("web-1")
    ///     .ttl(Duration::from_secs(3))
    ///     .refresh(Duration::from_secs(1))
    ///     .await?;
    /// let listed = nodes[1].services().list("web").await?;
    /// assert_eq!((listed[0].0.as_str(), listed[0].1.address().as_str()), ("web-1", "10.0.0.7:8080"));
    ///
    /// web.update(web.instance().weight(50)).await?;
    /// web.deregister().await?;
    /// assert!(nodes[2].services().list("web").await?.is_empty());
    /// # for node in &nodes { node.shutdown().await?; }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn register(&self, service: impl Into<String>, instance: Instance) -> Register {
        Register::new(&self.cluster, service.into(), instance)
    }

    /// Registers an instance on behalf of somebody who does not do so himself, a container say, for one ttl: it is renewed
    /// only by [`Target::renew`]. When it returns, the record is there, unless a newer registration, or a record that this
    /// release cannot read, has the id ([`Target::is_replaced`]).
    ///
    /// Options: [`RegisterTarget::by`], [`RegisterTarget::ttl`]. There may be any number of targets; renewing one writes
    /// nothing to the log.
    ///
    /// # Errors
    /// As [`Services::register`].
    /// # Cancel safety
    /// It may be registered all the same, until its ttl is over.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use std::time::Duration;
    /// use quorate::{Instance, Renewal};
    ///
    /// let services = cluster.services();
    /// let instance = Instance::new("172.17.0.2:80");
    /// let mut container = services.register_for("web", "c-4711", instance).by("host-7").ttl(Duration::from_secs(30)).await?;
    /// // Whenever the container was seen alive:
    /// assert_eq!(container.renew().await?, Renewal::Renewed);
    /// // When it has stopped:
    /// container.deregister().await?;
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn register_for(
        &self,
        service: impl Into<String>,
        id: impl Into<String>,
        instance: Instance,
    ) -> RegisterTarget {
        RegisterTarget::new(&self.cluster, service.into(), id.into(), instance)
    }

    /// Follows the instances of `service` in this process's memory: who is there costs no I/O to know, what changes is told,
    /// and whom to talk to is chosen by priority and weight.
    ///
    /// Begins with everybody whose registration was acknowledged before the call. Options: [`Discover::with`],
    /// [`Discover::stale`], [`Discover::timeout`].
    ///
    /// # Errors
    /// As [`Cluster::mirror`]; [`Error::Invalid`] for a name out of range.
    /// # Cancel safety
    /// Nothing is lost.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(3).await?; let cluster = &nodes[0];
    /// use quorate::{Departure, Instance, InstanceEvent};
    ///
    /// let mut web = nodes[1].services().discover("web").with("zone", "a").await?;
    /// assert!(web.load().is_empty());
    /// let instance = Instance::new("10.0.0.7:8080").meta("zone", "a");
    /// let registration = cluster.services().register("web", instance).id("web-1").await?;
    ///
    /// let there = web.wait_for(|web| web.len() == 1).await?;
    /// assert_eq!(there.get("web-1").map(|web| web.address()).as_deref(), Some("10.0.0.7:8080"));
    /// let backend = web.pick().expect("there is one");
    /// assert_eq!(backend.port, 8080);
    ///
    /// registration.deregister().await?;
    /// for event in web.changed().await? {
    ///     match event {
    ///         InstanceEvent::Gone { id, why, .. } => println!("{id} is gone: {why:?}"),
    ///         other => println!("{other:?}"),
    ///     }
    /// }
    /// # for node in &nodes { node.shutdown().await?; }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn discover(&self, service: impl Into<String>) -> Discover {
        Discover::new(&self.cluster, service.into())
    }

    /// The instances of `service` with their ids, in order of these, as of one linearizable moment. Records that cannot be read
    /// are not listed.
    ///
    /// # Errors
    /// As [`Cluster::get`]; [`Error::Invalid`] for a name out of range.
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn list(&self, service: impl AsRef<str>) -> Result<Vec<(String, Entry<Registered>)>, Error> {
        let service = service.as_ref();
        check_name("service name", service, SERVICE_NAME_BYTES_MAX)?;
        let mut scan = self.cluster.table(SERVICES).range(leading((service,))).stream();
        let mut listed = Vec::new();
        while let Some(next) = scan.next().await {
            if let Some(((_, id), entry)) = readable(next)?
                && !entry.is_leaving()
            {
                listed.push((id, entry));
            }
        }
        Ok(listed)
    }

    /// The instances of `service` with their ids, as of one linearizable moment, in the order in which a client should try them:
    /// by priority, drawn by weight within one (the rules of SRV records, RFC 2782). Each call draws anew. Records that cannot be
    /// read are not listed.
    ///
    /// For a client that asks once; who asks often keeps a [`Discovery`] and draws from that.
    ///
    /// # Errors
    /// As [`Services::list`].
    /// # Cancel safety
    /// Nothing is lost.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::Instance;
    ///
    /// let services = cluster.services();
    /// let spare = services.register("web", Instance::new("10.0.0.9:80").priority(20)).id("web-9").await?;
    /// let first = services.register("web", Instance::new("10.0.0.1:80")).id("web-1").await?;
    /// let addresses: Vec<String> = services.endpoints("web").await?.iter().map(|(_, web)| web.address()).collect();
    /// assert_eq!(addresses, ["10.0.0.1:80", "10.0.0.9:80"]);
    /// # drop((spare, first)); cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn endpoints(&self, service: impl AsRef<str>) -> Result<Vec<(String, Entry<Registered>)>, Error> {
        Ok(srv::order(self.list(service).await?, discover::below))
    }

    /// The names of all services that have an instance, as of one linearizable moment. Reads all records; those that cannot be
    /// read do not count.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn names(&self) -> Result<BTreeSet<String>, Error> {
        let mut scan = self.cluster.table(SERVICES).range(..).stream();
        let mut names = BTreeSet::new();
        while let Some(next) = scan.next().await {
            if let Some(((service, _), entry)) = readable(next)?
                && !entry.is_leaving()
            {
                names.insert(service);
            }
        }
        Ok(names)
    }
}

/// What was read; `None` for a record that cannot be, on which the others do not depend.
fn readable<T>(next: Result<T, Error>) -> Result<Option<T>, Error> {
    match next {
        Ok(read) => Ok(Some(read)),
        Err(error @ (Error::Codec { .. } | Error::Key { .. })) => {
            tracing::warn!(%error, "a registered instance cannot be read and is not listed");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").field("cluster", &self.cluster).finish()
    }
}

impl Cluster {
    /// The registry of services: registering instances, and finding them. Sends nothing.
    ///
    /// The records are those of the table [`SERVICES`], with all its verbs.
    pub fn services(&self) -> Services {
        Services { cluster: self.clone() }
    }
}

#[cfg(test)]
mod tests;
