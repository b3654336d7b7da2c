//! What is registered: an instance of a service, and the record that says so.
//!
//! Records are ordinary entries of an ordinary table, [`SERVICES`]: whoever wants to can watch it, list it, or use it in
//! transactions. Only who writes there without being a registration is on his own.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::api::table::Table;
use crate::codec::Json;
use crate::error::Error;
use crate::types::LeaseId;

/// Longest name of a service, in bytes.
pub const SERVICE_NAME_BYTES_MAX: usize = 255;
/// Longest id of an instance, in bytes.
pub const INSTANCE_ID_BYTES_MAX: usize = 255;
/// Longest host of an instance's address, in bytes: that of a DNS name.
pub const INSTANCE_HOST_BYTES_MAX: usize = 255;
/// Most entries of an instance's metadata.
pub const INSTANCE_METADATA_MAX: usize = 64;
/// Most bytes of all keys and values of an instance's metadata.
pub const INSTANCE_METADATA_BYTES_MAX: usize = 8 * 1024;

/// The registered instances of all services: by name of the service and id of the instance.
///
/// An ordinary table, called `quorate.services`: the name is the registry's, and a program's own table may be called
/// `services`. Its values are JSON, so that people and other programs can read them, and releases that know more fields and
/// those that know fewer can read each other's. Every entry hangs on a lease. See
/// [`Cluster::services`](crate::Cluster::services) for who writes it, and [`Registered::is_leaving`] for the one thing to look
/// at when reading it.
///
/// # Examples
/// ```
/// # futures::executor::block_on(async {
/// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
/// use quorate::{Instance, SERVICES, leading};
/// let mut watch = cluster.table(SERVICES).watch(leading(("web",))).await?;
/// let web = cluster.services().register("web", Instance::new("10.0.0.7:8080")).id("web-1").await?;
/// let batch = watch.next().await.expect("a watch ends with an error")?;
/// assert_eq!(batch.events[0].key().1, "web-1");
/// # drop(web); cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub const SERVICES: Table<(&'static str, &'static str), Registered, Json> = Table::new("quorate.services");

const PRIORITY: u16 = 10;
const WEIGHT: u16 = 10;

/// Where an instance of a service is reached, and what is to be known of it.
///
/// # Examples
/// ```
/// use quorate::Instance;
/// let instance = Instance::new("10.0.0.7:8080").meta("zone", "a").priority(10).weight(20);
/// assert_eq!((instance.host.as_str(), instance.port), ("10.0.0.7", 8080));
/// assert_eq!(Instance::new("[2001:db8::7]:80").address(), "[2001:db8::7]:80");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Instance {
    /// An IP address (without brackets and zone), or a name: 1 to 255 bytes, letters and digits of ASCII, `.`, `-` and `_`.
    pub host: String,
    /// From 1 to 65535.
    pub port: u16,
    /// The lower, the earlier it is tried: all of one priority before any of the next. Default 10.
    pub priority: u16,
    /// Its share among those of one priority. Default 10; 0: hardly any, while there are others.
    pub weight: u16,
    /// Whatever else clients want to know or choose by: a zone, a version. At most 64 entries and 8 KiB.
    pub metadata: BTreeMap<String, String>,
}

impl Instance {
    /// The instance at `address`: `host:port`, an IPv6 address in brackets.
    ///
    /// What is not of that form is refused when it is to be registered.
    pub fn new(address: impl AsRef<str>) -> Self {
        let address = address.as_ref();
        let (host, port) = parse(address).unwrap_or((address, 0));
        Instance::at(host, port)
    }

    /// The instance at this host and port.
    pub fn at(host: impl Into<String>, port: u16) -> Self {
        Instance { host: host.into(), port, ..Instance::default() }
    }

    /// Adds an entry to the metadata, or replaces it.
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Sets [`Instance::priority`].
    pub fn priority(mut self, priority: u16) -> Self {
        self.priority = priority;
        self
    }

    /// Sets [`Instance::weight`].
    pub fn weight(mut self, weight: u16) -> Self {
        self.weight = weight;
        self
    }

    /// `host:port`, with brackets around an IPv6 address: what can be connected to.
    pub fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// An error if it cannot be registered.
    pub(super) fn check(&self) -> Result<(), Error> {
        let invalid = |what, why| Err(Error::Invalid { what, why });
        let host = &self.host;
        if self.port == 0 || host.is_empty() {
            let why =
                format!("{host:?} with port {} is none: it must be host:port, [IPv6]:port in brackets", self.port);
            return invalid("address", why);
        }
        if !is_host(host) {
            let why = format!(
                "the host {host:?} is neither an IP address nor a name: at most {INSTANCE_HOST_BYTES_MAX} letters and digits of \
                 ASCII, `.`, `-` and `_`"
            );
            return invalid("address", why);
        }
        let entries = self.metadata.len();
        let bytes: usize = self.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        if entries > INSTANCE_METADATA_MAX || bytes > INSTANCE_METADATA_BYTES_MAX {
            let why = format!(
                "it has {entries} entries with {bytes} bytes, the limits are {INSTANCE_METADATA_MAX} and \
                 {INSTANCE_METADATA_BYTES_MAX}"
            );
            return invalid("metadata", why);
        }
        Ok(())
    }
}

impl Default for Instance {
    /// Nowhere: a host and a port are still to be set.
    fn default() -> Self {
        Instance { host: String::new(), port: 0, priority: PRIORITY, weight: WEIGHT, metadata: BTreeMap::new() }
    }
}

impl From<SocketAddr> for Instance {
    fn from(address: SocketAddr) -> Self {
        Instance::at(address.ip().to_string(), address.port())
    }
}

/// Whether it is an IP address or may be a name. Those who read it write it into URLs and files of configuration: it must mean
/// nothing but itself there.
fn is_host(host: &str) -> bool {
    let named = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    host.parse::<IpAddr>().is_ok() || (1..=INSTANCE_HOST_BYTES_MAX).contains(&host.len()) && host.bytes().all(named)
}

/// Host and port of `host:port`, `[v6]:port`.
fn parse(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    // Digits alone: a number's own parser takes a sign as well.
    let port = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok()).flatten()?;
    match host.strip_prefix('[') {
        Some(bracketed) => Some((bracketed.strip_suffix(']')?, port)),
        // Without brackets, nobody can tell where an IPv6 address ends.
        None if host.contains(':') => None,
        None => Some((host, port)),
    }
}

/// Which of several registrations under one id: later ones have greater numbers, throughout the life of the cluster.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(u64);

impl Incarnation {
    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// That of the registration whose first lease this is: the numbers of leases grow and are never given out again.
    pub(super) fn of(lease: LeaseId) -> Self {
        Incarnation(lease.get())
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the table [`SERVICES`] holds of an instance. Derefs to the [`Instance`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Registered {
    /// Where it is reached and what it says of itself.
    pub instance: Instance,
    /// Which registration wrote it.
    pub incarnation: Incarnation,
    /// Who registered it: the name of the node, or what a [`Target`](crate::Target) was registered by.
    pub registrar: String,
    /// Set in the last moment before the record is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaving: Option<Leaving>,
}

impl Registered {
    /// Whether it is about to be deleted, on purpose: not to be used any more.
    ///
    /// A registration that ends, or is delisted for its health, says so in its record before it deletes it; that is how
    /// watchers tell it from a deletion by others. Should it die in that very moment, the record stays for its ttl.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }
}

impl Deref for Registered {
    type Target = Instance;
    fn deref(&self) -> &Instance {
        &self.instance
    }
}

/// Why a registration takes its own record away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Leaving {
    /// It was deregistered.
    Deregistered,
    /// Its health probe failed. What the last failure said.
    Unhealthy(String),
}

/// Refuses what is no name of a service or an instance.
pub(super) fn check_name(what: &'static str, name: &str, bytes_max: usize) -> Result<(), Error> {
    let invalid = |why| Err(Error::Invalid { what, why });
    match name {
        "" => invalid("it is empty".into()),
        name if name.contains(char::is_control) => invalid(format!("{name:?} holds a control character")),
        name if name.len() > bytes_max => invalid(format!("it has {} bytes, the limit is {bytes_max}", name.len())),
        _ => Ok(()),
    }
}
