//! What a simulated process sees of the simulation.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;

use super::world::{Sim, WeakSim};
use crate::api::builder::Builder;
use crate::api::cluster::Cluster;
use crate::config::{Runtime, TestDrive};
use crate::error::StartError;
use crate::node::Formation;
use crate::rt::sim::Context;

/// One life of one simulated process: what the function given to [`Sim::hosts`] gets. Clones are the same life.
#[derive(Clone)]
pub struct Host {
    name: String,
    context: Context,
    sim: WeakSim,
}

impl Host {
    pub(super) fn new(name: &str, context: Context, sim: WeakSim) -> Self {
        Host { name: name.to_owned(), context, sim }
    }

    /// The name that [`Sim::hosts`] gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which life this is: 1 at first, one more after each restart.
    pub fn life(&self) -> u64 {
        self.context.generation()
    }

    /// Opens this host's node with the default configuration: `builder().await`.
    ///
    /// # Errors
    /// What [`Builder`] says: [`StartError::Failed`] after a disk fault, for one.
    pub fn cluster(&self) -> BoxFuture<'static, Result<Cluster, StartError>> {
        Box::pin(std::future::IntoFuture::into_future(self.builder()))
    }

    /// Describes this host's node: its name, disk, transport, peers and runtime are the simulation's; timing, quota and the
    /// rest are the host's to set, as it does in production.
    ///
    /// # Panics
    /// After the simulation has ended.
    pub fn builder(&self) -> Builder {
        let sim = self.sim();
        let parts = sim.parts(&self.name);
        let (sim, name, life) = (self.sim.clone(), self.name.clone(), self.life());
        let tune = parts.tune;
        Cluster::builder(self.name.clone())
            .disk(parts.disk.mount())
            .transport(parts.end)
            .formation(Formation::Peers(parts.peers))
            .runtime(Runtime::Current)
            .settings(move |settings| {
                settings.drive = TestDrive(Some(parts.pace.drive()));
                tune(settings);
            })
            .opened(move |cluster| {
                if let Some(sim) = sim.upgrade() {
                    sim.opened(&name, life, cluster.downgrade());
                }
            })
    }

    /// Runs a task of this process: it is paused with the process and ends with it.
    ///
    /// A task that `tokio::spawn` starts is not: see [what is simulated](super#what-is-simulated-and-what-is-not).
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.context.spawn("host task", task).detach();
    }

    /// Virtual time since the simulation began, by the world's clock and not by this host's own.
    ///
    /// # Panics
    /// After the simulation has ended.
    pub fn elapsed(&self) -> Duration {
        self.sim().elapsed()
    }

    fn sim(&self) -> Sim {
        self.sim.upgrade().expect("the simulation outlives its hosts")
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("name", &self.name).field("life", &self.life()).finish_non_exhaustive()
    }
}
