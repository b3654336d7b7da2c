//! Finding the instances of a service: a mirror of their records, seen through a filter.
//!
//! What is listed is a function of one state of the table: the service's records that are not leaving and match the filters.
//! Events are the difference between two such lists, so a reader that is slow is told what it comes to, and never a step of
//! it twice.

use std::collections::BTreeMap;
use std::fmt;
use std::future::IntoFuture;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::hindsight::departures;
use super::instance::{Registered, SERVICE_NAME_BYTES_MAX, SERVICES, check_name};
use super::srv::{self, Lot, Ranked};
use crate::api::cluster::Cluster;
use crate::api::keys::leading;
use crate::api::kv::Entry;
use crate::api::mirror::{Change, Mirror, Mirrored};
use crate::error::Error;
use crate::node::Node;
use crate::rt;
use crate::types::Revision;

type Record = Arc<Entry<Registered>>;
type Snapshot = Arc<Mirrored<Registered, (String, String)>>;

/// Which instances of a service are meant.
#[derive(Clone, Debug)]
struct Filter {
    service: String,
    metadata: BTreeMap<String, String>,
}

impl Filter {
    fn lists(&self, record: &Registered) -> bool {
        let has = |(key, value)| record.instance.metadata.get(key) == Some(value);
        !record.is_leaving() && self.metadata.iter().all(has)
    }
}

/// A service to be discovered by awaiting this. See [`Services::discover`](crate::Services::discover).
#[must_use = "nothing is discovered until it is awaited"]
#[derive(Clone, Debug)]
pub struct Discover {
    cluster: Cluster,
    filter: Filter,
    stale: bool,
    timeout: Option<Duration>,
}

impl Discover {
    pub(super) fn new(cluster: &Cluster, service: String) -> Self {
        let filter = Filter { service, metadata: BTreeMap::new() };
        Discover { cluster: cluster.clone(), filter, stale: false, timeout: None }
    }

    /// Only instances whose metadata has this entry; of several entries, all.
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.filter.metadata.insert(key.into(), value.into());
        self
    }

    /// Begins with what this node has applied, without asking a leader.
    pub fn stale(mut self) -> Self {
        self.stale = true;
        self
    }

    /// Gives up opening after `timeout` instead of the default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    async fn open(self) -> Result<Discovery, Error> {
        let Discover { cluster, filter, stale, timeout } = self;
        check_name("service name", &filter.service, SERVICE_NAME_BYTES_MAX)?;
        let mut opening = cluster.table(SERVICES).mirror(leading((filter.service.as_str(),)));
        if stale {
            opening = opening.stale();
        }
        if let Some(timeout) = timeout {
            opening = opening.timeout(timeout);
        }
        let mut mirror = opening.await?;
        let snapshot = mirror.borrow_and_update();
        let (seen, node) = (snapshot.revision(), Arc::downgrade(cluster.node()));
        let filter = Arc::new(filter);
        let last = Arc::new(Mutex::new(Instances::new(snapshot, filter.clone())));
        Ok(Discovery { mirror, filter, seen, last, node })
    }
}

impl IntoFuture for Discover {
    type Output = Result<Discovery, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.open().boxed()
    }
}

/// The instances of a service, kept up to date in this process's memory. See [`Services::discover`](crate::Services::discover).
///
/// It is a [`Mirror`](crate::Mirror) of their records, with its promises and its verbs. While this node is cut off it goes on
/// to list what it knew ([`Discovery::staleness`] says for how long): its list does not become empty by that.
#[derive(Clone)]
pub struct Discovery {
    mirror: Mirror<Registered, (String, String)>,
    filter: Arc<Filter>,
    /// As of when this handle has seen the list.
    seen: Revision,
    /// The newest list that was asked for, so that what is found out about it is found out once.
    last: Arc<Mutex<Instances>>,
    /// Not held: a mirror does not keep its node running.
    node: Weak<Node>,
}

impl Discovery {
    /// The name of the service.
    pub fn service(&self) -> &str {
        &self.filter.service
    }

    /// The instances that are listed at this moment. No I/O.
    pub fn load(&self) -> Instances {
        self.list(self.mirror.load())
    }

    /// One instance to talk to, by priority and weight: [`Instances::pick`] of the present ones.
    pub fn pick(&self) -> Option<Arc<Entry<Registered>>> {
        self.load().pick()
    }

    /// All instances in the order in which to try them: [`Instances::order`] of the present ones.
    pub fn order(&self) -> Vec<Arc<Entry<Registered>>> {
        self.load().order()
    }

    /// Waits until what is listed is not as this handle saw it last, and returns what has happened, in order of the ids.
    ///
    /// However much has happened in between, there is at most one event for each instance, and none for one that came and
    /// went.
    ///
    /// # Errors
    /// [`Error::Stopped`] when this node has stopped, behind the last change.
    /// # Cancel safety
    /// Nothing is lost: what was not returned is returned next time.
    pub async fn changed(&mut self) -> Result<Vec<InstanceEvent>, Error> {
        loop {
            let delta = self.mirror.changed().await?;
            let now = delta.snapshot().revision();
            let before = std::mem::replace(&mut self.seen, now);
            let mut events: Vec<_> = delta.iter().filter_map(|change| event(&self.filter, change)).collect();
            if events.iter().any(InstanceEvent::is_in_doubt) {
                self.look_back(&mut events, before, now);
            }
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    /// Waits until `wanted` holds of the list, looking at the present one first, and returns that one, which counts as seen.
    ///
    /// # Errors
    /// [`Error::Stopped`] when this node has stopped and it does not hold of the last one.
    /// # Cancel safety
    /// Lists for which it did not hold count as seen.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&Instances) -> bool) -> Result<Instances, Error> {
        loop {
            let snapshot = self.mirror.borrow_and_update();
            self.seen = snapshot.revision();
            let now = self.list(snapshot);
            if wanted(&now) {
                return Ok(now);
            }
            self.mirror.changed().await?;
        }
    }

    /// Waits until the list shows everything up to `revision`, and returns it: so one finds what one has registered.
    ///
    /// # Errors
    /// [`Error::Stopped`] when this node has stopped before.
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn at_least(&self, revision: Revision) -> Result<Instances, Error> {
        Ok(self.list(self.mirror.at_least(revision).await?))
    }

    /// How long ago this node knew for the last time that it was up to date: as [`Mirror::staleness`](crate::Mirror::staleness).
    pub fn staleness(&self) -> Option<Duration> {
        self.mirror.staleness()
    }

    /// Says why instances are gone, where the node still knows better than the mirror.
    fn look_back(&self, events: &mut [InstanceEvent], after: Revision, to: Revision) {
        let Some(node) = self.node.upgrade() else { return };
        // An error says that it does not.
        let Ok(mut gone) = departures(&node, self.service(), after, to) else { return };
        for event in events.iter_mut().filter(|event| event.is_in_doubt()) {
            let InstanceEvent::Gone { id, why, .. } = event else { continue };
            if let Some(known) = gone.remove(id) {
                *why = known;
            }
        }
    }

    fn list(&self, snapshot: Snapshot) -> Instances {
        // Held while pointers are copied, and no longer.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&last.snapshot, &snapshot) {
            *last = Instances::new(snapshot, self.filter.clone());
        }
        last.clone()
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").field("filter", &self.filter).field("instances", &self.load()).finish()
    }
}

/// The instances of a service at one moment, in order of their ids. See [`Discovery::load`].
///
/// Cheap to clone, and never changes. To iterate, and to draw the first time, passes over all records of the service; after
/// that, clones and later [`Discovery::load`]s draw from what that came to, for as long as nothing changes.
#[derive(Clone)]
pub struct Instances {
    snapshot: Snapshot,
    filter: Arc<Filter>,
    lot: Arc<OnceLock<Lot<Record>>>,
}

impl Instances {
    fn new(snapshot: Snapshot, filter: Arc<Filter>) -> Self {
        Instances { snapshot, filter, lot: Arc::default() }
    }

    /// The instances, with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Entry<Registered>>)> + Clone {
        let listed = self.snapshot.iter().filter(|(_, record)| self.filter.lists(record));
        listed.map(|((_, id), record)| (id.as_str(), record))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The instance with this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Entry<Registered>>> {
        // One whose record cannot be read is not listed.
        let record = self.snapshot.get(&(self.filter.service.as_str(), id)).ok().flatten();
        record.filter(|record| self.filter.lists(record))
    }

    /// The revision of the newest change that it shows.
    pub fn revision(&self) -> Revision {
        self.snapshot.revision()
    }

    /// One of them to talk to, drawn by the rules of SRV records (RFC 2782): one of the lowest priority, with a chance
    /// proportional to its weight. `None` if there is none.
    pub fn pick(&self) -> Option<Arc<Entry<Registered>>> {
        let lot = self.lot.get_or_init(|| Lot::new(self.iter().map(|(_, record)| record.clone())));
        lot.draw(below).cloned()
    }

    /// All of them in the order in which to try them, drawn by the rules of SRV records (RFC 2782): all of a lower priority
    /// before any of a higher one; within one, each next one with a chance proportional to its weight.
    pub fn order(&self) -> Vec<Arc<Entry<Registered>>> {
        srv::order(self.iter().map(|(_, record)| record.clone()).collect(), below)
    }
}

impl fmt::Debug for Instances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(id, record)| (id, record.address()))).finish()
    }
}

impl Ranked for Record {
    fn priority(&self) -> u16 {
        self.instance.priority
    }

    fn weight(&self) -> u16 {
        self.instance.weight
    }
}

impl Ranked for (String, Entry<Registered>) {
    fn priority(&self) -> u16 {
        self.1.instance.priority
    }

    fn weight(&self) -> u16 {
        self.1.instance.weight
    }
}

/// A number below `end`. The sums of weights are so small that the remainder's preference for low numbers is none to speak of.
pub(super) fn below(end: u64) -> u64 {
    rt::random_u64() % end
}

/// What has happened to one instance as a [`Discovery`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstanceEvent {
    /// It is listed, and was not.
    #[non_exhaustive]
    Registered {
        /// Its id.
        id: String,
        /// Its record.
        now: Arc<Entry<Registered>>,
    },
    /// It says something else of itself.
    #[non_exhaustive]
    Updated {
        /// Its id.
        id: String,
        /// Its record.
        now: Arc<Entry<Registered>>,
        /// What its record was.
        before: Arc<Entry<Registered>>,
    },
    /// A newer registration has taken its place: it was restarted, most likely.
    #[non_exhaustive]
    Replaced {
        /// Its id.
        id: String,
        /// The newer one's record.
        now: Arc<Entry<Registered>>,
        /// What its own record was.
        before: Arc<Entry<Registered>>,
    },
    /// It was listed, and is not any more.
    #[non_exhaustive]
    Gone {
        /// Its id.
        id: String,
        /// Why.
        why: Departure,
        /// What its record was.
        before: Arc<Entry<Registered>>,
    },
}

impl InstanceEvent {
    /// Whether it may be known better why the instance is gone.
    fn is_in_doubt(&self) -> bool {
        matches!(self, InstanceEvent::Gone { why: Departure::Deleted | Departure::Unknown, .. })
    }

    /// The record as it is now; `None` if it is gone.
    pub fn now(&self) -> Option<&Arc<Entry<Registered>>> {
        match self {
            InstanceEvent::Registered { now, .. }
            | InstanceEvent::Updated { now, .. }
            | InstanceEvent::Replaced { now, .. } => Some(now),
            InstanceEvent::Gone { .. } => None,
        }
    }

    /// The id of the instance it happened to.
    pub fn id(&self) -> &str {
        match self {
            InstanceEvent::Registered { id, .. }
            | InstanceEvent::Updated { id, .. }
            | InstanceEvent::Replaced { id, .. }
            | InstanceEvent::Gone { id, .. } => id,
        }
    }
}

/// Why an instance is not listed any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Departure {
    /// It was deregistered.
    Deregistered,
    /// Its health probe failed. What the last failure said.
    Unhealthy(String),
    /// Its lease was not renewed.
    Expired,
    /// Somebody else deleted its record. Also said of a deregistration (or a failed probe) by a handle that looks when so much
    /// has happened since that the node does not hold it in memory any more.
    Deleted,
    /// It is registered, but with metadata that the filters do not let through.
    Filtered,
    /// Its record is there and cannot be read: a newer release wrote it, or something else did.
    Unreadable,
    /// Nobody here saw why: this node has fallen behind, and was sent the state without the changes that led to it.
    Unknown,
}

/// What a change of a record comes to for those whom `filter` shows the list.
fn event(filter: &Filter, change: &Change<Registered, (String, String)>) -> Option<InstanceEvent> {
    let id = change.key().1.clone();
    let before = change.before().filter(|record| filter.lists(record)).cloned();
    let now = change.entry().filter(|record| filter.lists(record)).cloned();
    match (before, now) {
        (None, None) => None,
        (None, Some(now)) => Some(InstanceEvent::Registered { id, now }),
        (Some(before), None) => Some(InstanceEvent::Gone { id, why: departure(change), before }),
        (Some(before), Some(now)) => Some(match now.incarnation == before.incarnation {
            true => InstanceEvent::Updated { id, now, before },
            false => InstanceEvent::Replaced { id, now, before },
        }),
    }
}

fn departure(change: &Change<Registered, (String, String)>) -> Departure {
    match change.entry() {
        Some(now) if !now.is_leaving() => Departure::Filtered,
        Some(now) => Departure::of(now.leaving.as_ref(), None),
        None if change.error().is_some() => Departure::Unreadable,
        None => Departure::of(None, change.cause()),
    }
}
