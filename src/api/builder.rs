//! From a name, a directory and a transport to a running node.

use std::future::IntoFuture;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::cluster::Cluster;
use crate::config::{Runtime, Settings, Timing};
use crate::error::StartError;
use crate::node::{self, Formation, Opening, Place};
use crate::transport::Transport;

/// Starts a node when awaited. Made by [`Cluster::builder`].
///
/// Needs a place for its files ([`Builder::storage`] or [`Builder::in_memory`]) and, unless it is alone, a
/// [`Builder::transport`]. Awaiting it opens the directory and starts the node; it does not wait for other nodes: use
/// [`Cluster::ready`] for that.
///
/// # Errors
/// See [`StartError`]. Whatever it is, the directory holds what it held. What only the peers know comes later, since nobody is
/// waited for here: that the directory is another cluster's, or was emptied while its cluster lives, is the
/// [`Error::Formation`](crate::Error::Formation) of [`Cluster::ready`] and of every operation.
#[must_use = "a builder does nothing until it is awaited"]
pub struct Builder {
    name: String,
    cluster_name: String,
    place: Option<Place>,
    transport: Option<Arc<dyn Transport>>,
    formation: Formation,
    settings: Settings,
    #[cfg(any(test, feature = "sim"))]
    opened: Option<Opened>,
}

/// Is told of the cluster once it is open.
#[cfg(any(test, feature = "sim"))]
pub(crate) type Opened = Box<dyn FnOnce(&Cluster) + Send>;

impl Builder {
    pub(crate) fn new(name: String) -> Self {
        Builder {
            name,
            cluster_name: "quorate".into(),
            place: None,
            transport: None,
            formation: Formation::Single,
            settings: Settings::default(),
            #[cfg(any(test, feature = "sim"))]
            opened: None,
        }
    }

    /// Keeps the node's files in `directory`, which is created if its parent exists. One directory belongs to one node.
    pub fn storage(mut self, directory: impl Into<PathBuf>) -> Self {
        self.place = Some(Place::Directory(directory.into()));
        self
    }

    /// Keeps everything in memory: nothing survives the process. For tests and examples.
    pub fn in_memory(mut self) -> Self {
        self.place = Some(Place::Memory);
        self
    }

    #[cfg(any(test, feature = "sim", feature = "internals"))]
    pub(crate) fn disk(mut self, disk: Arc<dyn crate::storage::disk::Disk>) -> Self {
        self.place = Some(Place::Disk(disk));
        self
    }

    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn opened(mut self, opened: impl FnOnce(&Cluster) + Send + 'static) -> Self {
        self.opened = Some(Box::new(opened));
        self
    }

    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Reaches the other nodes through `transport`.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transport = Some(Arc::new(transport));
        self
    }

    /// How the cluster comes about when the directory is empty. Default: [`Formation::Single`].
    pub fn formation(mut self, formation: Formation) -> Self {
        self.formation = formation;
        self
    }

    /// What the cluster is called in logs. Default: "quorate".
    pub fn cluster_name(mut self, name: impl Into<String>) -> Self {
        self.cluster_name = name.into();
        self
    }

    /// How fast nodes notice each other's silence. The same on every node.
    pub fn timing(mut self, timing: Timing) -> Self {
        self.settings.timing = timing;
        self
    }

    /// How long an operation tries before it gives up, unless the call says otherwise. Default 10 s, at least 1 ms.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// Bytes of keys and values, history included, beyond which growing writes are refused with
    /// [`Error::NoSpace`](crate::Error::NoSpace). Default 2 GiB.
    pub fn quota_bytes(mut self, bytes: u64) -> Self {
        self.settings.quota_bytes = bytes;
        self
    }

    /// Bytes of room on the disk below which growing writes are refused with [`Error::DiskFull`](crate::Error::DiskFull), on
    /// every node, as long as this one answers now and then. A disk that is full stops its node for good, and those of
    /// replicas fill at the same pace. Default 256 MiB; 0: do not look. Each node looks at its disk every second, and the
    /// others hear of it within ten: leave room for what is written in that time, which takes some three times its size (log,
    /// state, and what the state has still to give back). On a smaller volume than this nothing can be written.
    pub fn disk_reserve(mut self, bytes: u64) -> Self {
        self.settings.disk_reserve = bytes;
        self
    }

    /// Revisions of history to keep below the newest, for watches that resume and reads of the past. Default 100 000, at
    /// least 1000. The leader's setting counts.
    pub fn history(mut self, revisions: u64) -> Self {
        self.settings.history_revisions = revisions;
        self
    }

    /// How long history is kept, at the most: what was superseded longer ago than this is forgotten, however few revisions
    /// have come since. At least 10 s. Default: no bound but [`history`](Self::history). The leader's setting counts, and its
    /// clock: what happened before it was started counts as having happened then.
    pub fn history_age(mut self, age: Duration) -> Self {
        self.settings.history_age = Some(age);
        self
    }

    /// Where the node's own tasks run. Default: a thread of its own.
    ///
    /// [`Runtime::Current`] also runs the storage engines as tasks of that runtime, fsync included: only for tests on a
    /// paused clock.
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.settings.runtime = runtime;
        self.settings.inline_storage = runtime == Runtime::Current;
        self
    }
}

impl IntoFuture for Builder {
    type Output = Result<Cluster, StartError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let missing =
                |setting, rule: &str| StartError::Config { setting, value: "not set".into(), rule: rule.into() };
            let place =
                self.place.ok_or_else(|| missing("storage", "a node needs storage(directory) or in_memory()"))?;
            let transport = match self.transport {
                Some(transport) => transport,
                None if self.formation == Formation::Single => Arc::new(Alone) as Arc<dyn Transport>,
                None => return Err(missing("transport", "a node with peers needs a transport")),
            };
            let opening = Opening {
                cluster_name: self.cluster_name,
                name: self.name,
                place,
                transport,
                formation: self.formation,
                settings: self.settings,
            };
            let cluster = Cluster::new(node::start(opening).await?);
            #[cfg(any(test, feature = "sim"))]
            if let Some(opened) = self.opened {
                opened(&cluster);
            }
            Ok(cluster)
        })
    }
}

/// The transport of a node that has nobody to talk to.
struct Alone;

impl Transport for Alone {
    fn call<'a>(
        &'a self,
        _to: &'a crate::types::Peer,
        _lane: crate::transport::Lane,
        _frame: bytes::Bytes,
        _timeout: Duration,
    ) -> BoxFuture<'a, Result<bytes::Bytes, crate::transport::TransportError>> {
        Box::pin(std::future::ready(Err(crate::transport::TransportError::Unreachable)))
    }
}
