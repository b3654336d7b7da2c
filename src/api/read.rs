//! What all reads have in common: which moment they show, and how long they wait for it.

use std::sync::Arc;
use std::time::Duration;

use super::cluster::Cluster;
use crate::error::{Error, Obstacle};
use crate::node::Node;
use crate::rt;
use crate::state_machine::read::ReadError;
use crate::storage::view::View;
use crate::types::Revision;

/// Which moment a read shows.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Linearizable,
    Stale,
    AtLeast(Revision),
    At(Revision),
}

#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) cluster: Cluster,
    pub(crate) moment: Moment,
    pub(crate) timeout: Duration,
}

impl Reading {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        Reading { cluster: cluster.clone(), moment: Moment::Linearizable, timeout: cluster.node().settings().timeout }
    }

    /// A view that answers for the wanted moment: the one that [`Reading::at`] says.
    pub(crate) async fn view(&self) -> Result<Arc<View>, Error> {
        let Reading { cluster, moment, timeout } = self;
        let (moment, timeout) = (*moment, *timeout);
        cluster.node().check_open()?;
        match moment {
            Moment::Stale => Ok(cluster.node().state().view()),
            Moment::AtLeast(revision) | Moment::At(revision) if cluster.node().state().view().revision >= revision => {
                Ok(cluster.node().state().view())
            }
            Moment::AtLeast(revision) | Moment::At(revision) => {
                cluster.on_node(move |node| view_at_least(node, revision, timeout)).await
            }
            Moment::Linearizable => {
                cluster.on_node(move |node| async move { node.linearizable_view(timeout).await }).await
            }
        }
    }

    /// Which revision of such a view is to be read.
    pub(crate) fn at(&self, view: &View) -> Revision {
        match self.moment {
            Moment::At(revision) => revision,
            Moment::Linearizable | Moment::Stale | Moment::AtLeast(_) => view.revision,
        }
    }

    /// Runs `read` on a view, and at the revision of it, of the wanted moment.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        read: impl Fn(&View, Revision) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, Error> {
        let view = self.view().await?;
        let at = self.at(&view);
        read(&view, at).map_err(|error| read_error(error, at))
    }
}

pub(crate) async fn view_at_least(node: Arc<Node>, revision: Revision, timeout: Duration) -> Result<Arc<View>, Error> {
    let started = rt::Instant::now();
    let deadline = started + timeout;
    loop {
        node.check_open()?;
        let view = node.state().view();
        if view.revision >= revision {
            return Ok(view);
        }
        if rt::timeout_at(deadline, node.wait_revision(revision)).await.is_err() {
            return Err(Error::NotApplied { why: Obstacle::Timeout, waited: started.elapsed() });
        }
    }
}

pub(crate) fn read_error(error: ReadError, requested: Revision) -> Error {
    match error {
        ReadError::Compacted { oldest } => Error::Compacted { requested, oldest },
        ReadError::Row(error) => Error::Stopped { reason: format!("the state cannot be read: {error}") },
    }
}

/// Declares the methods all reads share.
macro_rules! reading {
    () => {
        /// Reads what this node has applied, without asking anybody. May be behind by as much as this node is.
        pub fn stale(mut self) -> Self {
            self.reading.moment = $crate::api::read::Moment::Stale;
            self
        }

        /// Reads what this node has applied once that is at least `revision`: sees one's own writes without a round trip.
        pub fn at_least(mut self, revision: Revision) -> Self {
            self.reading.moment = $crate::api::read::Moment::AtLeast(revision);
            self
        }

        /// Gives up after `timeout` instead of the default.
        pub fn timeout(mut self, timeout: Duration) -> Self {
            self.reading.timeout = timeout;
            self
        }
    };
    // Of those that can also read the past.
    (at) => {
        $crate::api::read::reading!();

        /// Reads the state exactly as of `revision`, once this node has applied that. The past costs no round trip.
        ///
        /// [`Error::Compacted`](crate::Error::Compacted) if the history does not reach back that far (100 000 revisions unless
        /// [`Builder::history`](crate::Builder::history) says otherwise). A revision that is not made in time is
        /// [`Error::NotApplied`](crate::Error::NotApplied).
        pub fn at(mut self, revision: Revision) -> Self {
            self.reading.moment = $crate::api::read::Moment::At(revision);
            self
        }
    };
}

pub(crate) use reading;
