//! Mirrors: a typed copy of some keys in memory, kept up to date, and read without I/O.
//!
//! What a mirror promises, on every node:
//! * It begins with all of its keys at one revision (linearizable unless asked otherwise), and every later revision is applied
//!   whole: a snapshot shows a state that the cluster was in.
//! * It goes on, and misses nothing, through changes of leader, compactions, snapshots from the leader and restarts of the
//!   consensus core. Where it has fallen behind it takes the whole state anew, finds what was deleted by comparing, and its
//!   users see a larger change and nothing else.
//! * It ends with its node. The last state can still be read then.
//!
//! One task follows the keys for all clones of a [`Mirror`] ([`follow`]); it ends with the last of them. A snapshot is
//! immutable and shares what it has in common with the one before it ([`chunks`]). A handle that is slow holds on to the
//! snapshot it has seen last, and is told the difference when it looks: there is no queue. What can be read of a value is
//! decided once, when it arrives.
//!
//! Left to others: [`feed`](super::watch::feed) decides where the changes come from.

mod chunks;
mod delta;
mod follow;
mod one;
mod snapshot;

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

pub use self::delta::{Change, Delta};
use self::follow::{Latest, Line, Published};
pub use self::one::{MirrorKey, OpenMirrorKey};
pub use self::snapshot::{Mirrored, MirroredEntries};
use super::cluster::Cluster;
use super::keys::{Keys, stored_key};
use super::layout::Layout;
use super::read::{Reading, reading};
use super::watch::feed::{Feed, Lag, Start};
use crate::codec::{Format, Value};
use crate::command::KeyRange;
use crate::error::Error;
use crate::rt::watch;
use crate::types::Revision;

/// Describes a mirror, which is opened by awaiting it. See [`Cluster::mirror`].
#[must_use = "a mirror is opened by awaiting it"]
#[derive(Debug)]
pub struct OpenMirror<V: 'static, K = String> {
    reading: Reading,
    table: &'static str,
    keys: Result<KeyRange, Error>,
    layout: Layout<V, K>,
}

impl<V, K> OpenMirror<V, K> {
    reading!();

    pub(crate) fn new(
        cluster: &Cluster,
        table: &'static str,
        keys: Result<KeyRange, Error>,
        layout: Layout<V, K>,
    ) -> Self {
        OpenMirror { reading: Reading::new(cluster), table, keys, layout }
    }
}

impl<V, K> OpenMirror<V, K>
where
    V: Send + Sync + 'static,
    K: Send + Sync + 'static,
{
    async fn open(self) -> Result<Mirror<V, K>, Error> {
        let keys = self.keys?;
        // What this node has applied from now on shows everything that the caller may know of.
        self.reading.view().await?;
        let node = self.reading.cluster.node();
        let feed = Feed::open(node, keys, Start::Initial, Lag::Coalesce, false)?;
        let (line, latest, published) = follow::start(node, feed, self.table, self.layout).await?;
        let seen = latest.load_full();
        Ok(Mirror { line: Arc::new(line), latest, published, seen })
    }
}

impl<V, K> IntoFuture for OpenMirror<V, K>
where
    V: Send + Sync + 'static,
    K: Send + Sync + 'static,
{
    type Output = Result<Mirror<V, K>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}

/// A copy of some keys and their values in this process's memory, kept up to date. See [`Cluster::mirror`].
///
/// A clone reads the same copy and has seen what its original has; what it sees from then on is its own. The copy is kept by
/// one task on the node's runtime, for all clones, until the last one is dropped. A mirror does not keep its node running:
/// when that stops, [`Mirror::load`] goes on to return the last state, and whoever waits is told.
///
/// The verbs are those of `tokio::sync::watch`.
pub struct Mirror<V: 'static, K = String> {
    line: Arc<Line>,
    latest: Latest<V, K>,
    published: watch::Receiver<Published>,
    seen: Arc<Mirrored<V, K>>,
}

impl<V, K> Mirror<V, K> {
    /// The present state, without I/O and without a lock.
    ///
    /// Does not count as looked at: see [`Mirror::borrow_and_update`].
    pub fn load(&self) -> Arc<Mirrored<V, K>> {
        self.latest.load_full()
    }

    /// The present state, which counts as seen: [`Mirror::changed`] goes on from here.
    pub fn borrow_and_update(&mut self) -> Arc<Mirrored<V, K>> {
        self.seen = self.load();
        self.seen.clone()
    }

    /// Whether there is a newer state than the one that this handle has seen last.
    pub fn has_changed(&self) -> bool {
        !Arc::ptr_eq(&self.latest.load(), &self.seen)
    }

    /// Waits until the mirrored keys are not as this handle saw them last, and returns what is different.
    ///
    /// A handle has seen the state at which it was opened, and then what this method, [`Mirror::borrow_and_update`] and
    /// [`Mirror::wait_for`] returned. One that is slow misses nothing but what has been undone: see [`Delta`].
    ///
    /// # Errors
    /// [`Error::Stopped`] when this node has stopped, behind the last change: open a mirror on another one.
    /// # Cancel safety
    /// Nothing is lost: what was not returned is returned next time.
    pub async fn changed(&mut self) -> Result<Delta<V, K>, Error> {
        loop {
            // First the end, then the state: what was published before the end is found.
            let over = self.over();
            let now = self.load();
            if !Arc::ptr_eq(&now, &self.seen) {
                let delta = Delta::between(&self.seen, &now, &self.line.shared.causes);
                self.seen = now;
                if !delta.is_empty() {
                    return Ok(delta);
                }
            }
            match over {
                Some(error) => return Err(error),
                // Closed: the next round finds that it is over.
                None => drop(self.published.changed().await),
            }
        }
    }

    /// Waits until `wanted` holds of the state, looking at the present one first, and returns that state, which counts as
    /// seen.
    ///
    /// States that follow each other quickly may be passed over.
    ///
    /// # Errors
    /// [`Error::Stopped`] when this node has stopped and `wanted` does not hold of the last state.
    /// # Cancel safety
    /// States for which it did not hold count as seen.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// use quorate::prefix;
    /// let mut workers = cluster.mirror::<String>(prefix("workers/")).await?;
    /// for n in 1..=3 {
    ///     cluster.set(format!("workers/{n}"), &"idle".to_string()).await?;
    /// }
    /// let complete = workers.wait_for(|workers| workers.len() == 3).await?;
    /// assert_eq!(complete.iter().last().expect("three").0, "workers/3");
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn wait_for(
        &mut self,
        mut wanted: impl FnMut(&Mirrored<V, K>) -> bool,
    ) -> Result<Arc<Mirrored<V, K>>, Error> {
        loop {
            let over = self.over();
            let now = self.borrow_and_update();
            if wanted(&now) {
                return Ok(now);
            }
            match over {
                Some(error) => return Err(error),
                None => drop(self.published.changed().await),
            }
        }
    }

    /// The state shows everything that happened to the mirrored keys up to this revision.
    ///
    /// Moves when one of them changes, and when somebody waits for [`Mirror::at_least`]; not with every write to other keys.
    pub fn revision(&self) -> Revision {
        self.published.with(|published| published.place)
    }

    /// Waits until the state shows everything up to `revision`, whichever keys were written, and returns it: so one reads
    /// one's own writes. Waits as long as it takes; put a timeout around it.
    ///
    /// # Errors
    /// [`Error::Stopped`] when this node has stopped before.
    /// # Cancel safety
    /// Nothing is lost.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(3).await?; let cluster = &nodes[0];
    /// use quorate::prefix;
    /// let limits = nodes[2].mirror::<u32>(prefix("limits/")).await?;
    /// let written = nodes[0].set("limits/api", &300u32).await?;
    /// let now = limits.at_least(written.revision).await?;
    /// assert_eq!(now.get("limits/api")?.map(|entry| entry.value), Some(300));
    /// # for node in &nodes { node.shutdown().await?; }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn at_least(&self, revision: Revision) -> Result<Arc<Mirrored<V, K>>, Error> {
        let mut published = self.published.clone();
        if published.with(|published| published.place) < revision {
            if let Some(error) = self.over() {
                return Err(error);
            }
            let Some(node) = self.line.node.upgrade() else { return Err(self.stopped()) };
            node.wait_revision(revision).await?;
            drop(node);
            // The node has it; the task says when it has it too, or that none of it concerned its keys.
            self.line.shared.poke.notify_one();
        }
        loop {
            let over = self.over();
            if published.with(|published| published.place) >= revision {
                return Ok(self.load());
            }
            match over {
                Some(error) => return Err(error),
                None => drop(published.changed().await),
            }
        }
    }

    /// How long ago this node knew for the last time that it was up to date: that it had applied everything the leader had
    /// committed, by that leader's word; on the leader itself, that a majority still followed it. `None` if that has not been so
    /// since the node started, and when it has stopped.
    ///
    /// About a heartbeat at most while all is well; grows while this node is cut off, or behind with applying. What was
    /// written since may be missing from the state. It costs nothing and proves nothing: a word takes its time to arrive, and in
    /// a group of five or more a node that is cut off together with a deposed leader goes on hearing from that. What must not be
    /// stale is read with [`Cluster::get`], or waited for with [`Mirror::at_least`].
    pub fn staleness(&self) -> Option<Duration> {
        self.line.node.upgrade()?.staleness()
    }

    /// Why there will be no other state, if so.
    fn over(&self) -> Option<Error> {
        let ended = self.published.with(|published| published.ended.clone());
        ended.or_else(|| self.published.is_closed().then(|| self.stopped()))
    }

    /// For a task that could not say so itself.
    fn stopped(&self) -> Error {
        let stopped = self.line.node.upgrade().and_then(|node| node.check_open().err());
        // A running node drops the task of a mirror only if it panics.
        stopped.unwrap_or_else(|| Error::Stopped {
            reason: "reading a value of this mirror panicked, or the node was dropped".into(),
        })
    }
}

impl<V, K> Clone for Mirror<V, K> {
    fn clone(&self) -> Self {
        let Mirror { line, latest, published, seen } = self;
        Mirror { line: line.clone(), latest: latest.clone(), published: published.clone(), seen: seen.clone() }
    }
}

impl<V, K> fmt::Debug for Mirror<V, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.load().len();
        f.debug_struct("Mirror").field("revision", &self.revision()).field("entries", &entries).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Opens a mirror of `keys`: a typed copy in memory that follows every change, for values that are read all the time.
    ///
    /// It begins with a state that shows every write acknowledged before the call; [`OpenMirror::stale`] is content with what
    /// this node has applied, and needs no leader. From then on it follows what this node applies: on a follower about a round
    /// trip behind the writer's answer. All its values are held in memory, decoded.
    ///
    /// # Errors
    /// [`Error::NotApplied`] if no leader answered in time: try again, or open it [`OpenMirror::stale`].
    /// [`Error::Invalid`] for keys that cannot exist, [`Error::Stopped`]. Values that cannot be read are no error here: see
    /// [`Mirrored`].
    /// # Cancel safety
    /// Nothing is lost: no mirror was opened.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(3).await?; let cluster = &nodes[0];
    /// use quorate::prefix;
    ///
    /// cluster.set("limits/api", &300u32).await?;
    /// let mut limits = nodes[2].mirror::<u32>(prefix("limits/")).await?;
    ///
    /// // In the middle of a request: no I/O.
    /// let now = limits.load();
    /// assert_eq!(now.get("limits/api")?.map(|entry| entry.value), Some(300));
    ///
    /// // In a task of its own: what is different.
    /// cluster.set("limits/login", &10u32).await?;
    /// for change in limits.changed().await? {
    ///     match change.entry() {
    ///         Some(entry) => println!("{} is {} now", change.key(), entry.value),
    ///         None => println!("{} is gone: {:?}", change.key(), change.cause()),
    ///     }
    /// }
    /// # for node in &nodes { node.shutdown().await?; }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn mirror<V: Value>(&self, keys: impl Into<Keys>) -> OpenMirror<V> {
        OpenMirror::new(self, "", keys.into().stored(), Layout::flat())
    }

    /// Opens a mirror of one key. See [`MirrorKey`], and [`Cluster::mirror`] for what all mirrors have in common.
    ///
    /// # Errors
    /// As [`Cluster::mirror`].
    /// # Cancel safety
    /// Nothing is lost: no mirror was opened.
    pub fn mirror_key<V: Value>(&self, key: impl AsRef<str>) -> OpenMirrorKey<V> {
        OpenMirrorKey::new(self, "", stored_key(key.as_ref()), Format::flat())
    }
}

#[cfg(test)]
mod tests;
