//! The mirror of one key.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{Mirror, Mirrored, OpenMirror};
use crate::api::cluster::Cluster;
use crate::api::kv::Entry;
use crate::api::layout::Layout;
use crate::codec::Format;
use crate::command::KeyRange;
use crate::error::Error;
use crate::types::Revision;

/// Describes a mirror of one key, which is opened by awaiting it. See [`Cluster::mirror_key`].
#[must_use = "a mirror is opened by awaiting it"]
#[derive(Debug)]
pub struct OpenMirrorKey<V: 'static>(OpenMirror<V, ()>);

impl<V> OpenMirrorKey<V> {
    pub(crate) fn new(cluster: &Cluster, table: &'static str, key: Result<Bytes, Error>, format: Format<V>) -> Self {
        OpenMirrorKey(OpenMirror::new(cluster, table, key.map(KeyRange::single), Layout::of_one(format)))
    }

    /// As [`OpenMirror::stale`].
    pub fn stale(self) -> Self {
        OpenMirrorKey(self.0.stale())
    }

    /// As [`OpenMirror::at_least`].
    pub fn at_least(self, revision: Revision) -> Self {
        OpenMirrorKey(self.0.at_least(revision))
    }

    /// As [`OpenMirror::timeout`].
    pub fn timeout(self, timeout: Duration) -> Self {
        OpenMirrorKey(self.0.timeout(timeout))
    }
}

impl<V: Send + Sync + 'static> IntoFuture for OpenMirrorKey<V> {
    type Output = Result<MirrorKey<V>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(MirrorKey(self.0.await?)) })
    }
}

/// A copy of one key's entry in memory, kept up to date: [`Mirror`] of one key. See [`Cluster::mirror_key`].
///
/// A value that was not written as a `V` is an [`Error::Codec`] wherever it would have been returned; the mirror goes on.
///
/// # Examples
/// ```
/// # futures::executor::block_on(async {
/// # let nodes = quorate::Cluster::local(3).await?;
/// use quorate::Table;
/// const LEVELS: Table<str, u8> = Table::new("levels");
///
/// let mut level = nodes[1].table(LEVELS).mirror_key("web").await?;
/// assert!(level.load()?.is_none());
/// nodes[0].table(LEVELS).set("web", &3).await?;
/// let now = level.changed().await?.expect("it was set");
/// assert_eq!(now.value, 3);
/// # for node in &nodes { node.shutdown().await?; }
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct MirrorKey<V: 'static>(Mirror<V, ()>);

impl<V> MirrorKey<V> {
    /// The present entry; `None` if nothing is there. As [`Mirror::load`].
    ///
    /// # Errors
    /// [`Error::Codec`] if there is a value that was not written as a `V`.
    pub fn load(&self) -> Result<Option<Arc<Entry<V>>>, Error> {
        entry(&self.0.load())
    }

    /// The present entry, which counts as seen: [`MirrorKey::changed`] goes on from here.
    ///
    /// # Errors
    /// As [`MirrorKey::load`].
    pub fn borrow_and_update(&mut self) -> Result<Option<Arc<Entry<V>>>, Error> {
        entry(&self.0.borrow_and_update())
    }

    /// Whether there is a newer state than the one that this handle has seen last.
    pub fn has_changed(&self) -> bool {
        self.0.has_changed()
    }

    /// Waits until the entry is not the one that this handle saw last, and returns what is there now; `None` if it was deleted.
    ///
    /// # Errors
    /// [`Error::Codec`] if what is there now was not written as a `V`; it counts as seen. [`Error::Stopped`] when this node has
    /// stopped, behind the last change.
    /// # Cancel safety
    /// Nothing is lost: what was not returned is returned next time.
    pub async fn changed(&mut self) -> Result<Option<Arc<Entry<V>>>, Error> {
        let delta = self.0.changed().await?;
        entry(delta.snapshot())
    }

    /// Waits until `wanted` holds of the value (`None`: there is none), looking at the present one first, and returns the
    /// entry, which counts as seen.
    ///
    /// # Errors
    /// [`Error::Codec`] when there is a value that was not written as a `V`. [`Error::Stopped`] when this node has stopped.
    /// # Cancel safety
    /// Values for which it did not hold count as seen.
    pub async fn wait_for(
        &mut self,
        mut wanted: impl FnMut(Option<&V>) -> bool,
    ) -> Result<Option<Arc<Entry<V>>>, Error> {
        let settles = |state: &Mirrored<V, ()>| match entry(state) {
            Ok(entry) => wanted(entry.as_ref().map(|entry| &entry.value)),
            Err(_) => true,
        };
        entry(&*self.0.wait_for(settles).await?)
    }

    /// As [`Mirror::revision`].
    pub fn revision(&self) -> Revision {
        self.0.revision()
    }

    /// As [`Mirror::at_least`]; returns the entry.
    ///
    /// # Errors
    /// [`Error::Codec`] if there is a value that was not written as a `V`. [`Error::Stopped`] when this node has stopped.
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn at_least(&self, revision: Revision) -> Result<Option<Arc<Entry<V>>>, Error> {
        entry(&*self.0.at_least(revision).await?)
    }

    /// As [`Mirror::staleness`].
    pub fn staleness(&self) -> Option<Duration> {
        self.0.staleness()
    }
}

/// The only entry there can be.
fn entry<V>(state: &Mirrored<V, ()>) -> Result<Option<Arc<Entry<V>>>, Error> {
    state.items.iter().next().map(|item| item.entry().cloned()).transpose()
}

impl<V> Clone for MirrorKey<V> {
    fn clone(&self) -> Self {
        MirrorKey(self.0.clone())
    }
}

impl<V: fmt::Debug> fmt::Debug for MirrorKey<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MirrorKey").field(&self.load()).finish()
    }
}
