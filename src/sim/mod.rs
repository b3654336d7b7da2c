//! A whole cluster in one test: real nodes, virtual time, and faults from a seed. With the feature `sim`.
//!
//! [`run`] plays a scenario once for each seed. In it, [`Sim::hosts`] starts simulated processes, each with a node of its own
//! and whatever the host runs beside it, on machines with disks and clocks, over a network; the scenario then lets time pass
//! and breaks things. Time jumps to the next event when everybody waits: what costs is what nodes do, not how long it lasts. An
//! optimised build plays a hundred and more seconds of a busy cluster in one; a debug build about ten. The same seed gives the
//! same run, so that what failed once can be looked at again and again.
//!
//! # Example
//!
//! A service in which instances register themselves, and one of them at a time does a job:
//!
//! ```
//! use std::time::Duration;
//!
//! use quorate::sim::{self, Faults, Host, LostWrites, Sim};
//! use quorate::{Cluster, prefix, put};
//!
//! type AnyError = Box<dyn std::error::Error + Send + Sync>;
//!
//! /// The service, which knows nothing of simulations.
//! async fn serve(cluster: &Cluster, name: &str) -> Result<(), AnyError> {
//!     let session = cluster.session().name(name).ttl(Duration::from_secs(10)).await?;
//!     cluster.set(format!("instances/{name}"), &format!("{name}:80")).session(&session).await?;
//!     tokio::select! {
//!         reason = session.lost() => Err(format!("{name} is not registered any more: {reason}").into()),
//!         failed = work(cluster) => failed,
//!     }
//! }
//!
//! /// One instance at a time adds one to the number of runs, again and again.
//! async fn work(cluster: &Cluster) -> Result<(), AnyError> {
//!     loop {
//!         let guard = cluster.lock("job").timeout(Duration::from_secs(60)).await?;
//!         let runs = cluster.get::<u64>("runs").await?.map_or(0, |runs| *runs);
//!         // Refused if the lock has moved on: an instance that was paused here does no harm.
//!         guard.txn().then(put("runs", &(runs + 1))).await?;
//!         guard.release().await?;
//!         tokio::time::sleep(Duration::from_millis(200)).await;
//!     }
//! }
//!
//! /// A process of it: opens its node and serves; if that fails, begins again.
//! async fn process(host: Host) -> Result<(), AnyError> {
//!     let cluster = host.cluster().await?;
//!     loop {
//!         let _ = serve(&cluster, host.name()).await;
//!         tokio::time::sleep(Duration::from_secs(1)).await;
//!     }
//! }
//!
//! async fn the_service_survives(sim: Sim) -> Result<(), AnyError> {
//!     sim.hosts(["node-1", "node-2", "node-3"], process)?;
//!     sim.run_for(Duration::from_secs(10)).await;
//!
//!     // By hand: a partition, a pause, a crash that loses what was not synced ...
//!     sim.partition(&[&["node-1"], &["node-2", "node-3"]])?;
//!     sim.pause("node-2")?;
//!     sim.run_for(Duration::from_secs(5)).await;
//!     sim.heal();
//!     sim.resume("node-2")?;
//!     sim.crash("node-3", LostWrites::Torn)?;
//!     sim.run_for(Duration::from_secs(5)).await;
//!     sim.restart("node-3")?;
//!
//!     // ... and by chance. At the end all is whole again, and a while later all has to be as it should.
//!     sim.chaos(Faults::all().swarm(), Duration::from_secs(10)).await;
//!     sim.run_for(Duration::from_secs(30)).await;
//!     let cluster = sim.node("node-1")?;
//!     let instances = cluster.range::<String>(prefix("instances/")).await?;
//!     assert_eq!(instances.len(), 3, "{instances:?}");
//!     let runs = cluster.get::<u64>("runs").await?.ok_or("the job never ran")?;
//!     assert!(*runs > 20, "the job ran only {} times", *runs);
//!     assert_eq!(*runs, runs.version, "two instances ran the job at once: a run was lost");
//!     Ok(())
//! }
//!
//! // In a #[test] of its own:
//! sim::run(0..1, the_service_survives);
//! ```
//!
//! # What is simulated, and what is not
//!
//! * **Time.** `tokio::time` is virtual for everything in a scenario, hosts included. It counts in milliseconds. A host's own
//!   clock may [drift](Sim::drift), stand still or jump; its node goes by that, and `tokio::time` in host code by the world's.
//! * **Processes.** A process is the future that its main function returns, its node, and what it [spawns](Host::spawn). It is
//!   paused and killed with all of these. A task that host code starts with `tokio::spawn` runs on through a pause, and through
//!   a kill too unless something that is dropped with the process aborts it, as a `JoinSet` does; its calls of a node that is
//!   dead end with [`Error::Stopped`](crate::Error::Stopped).
//! * **Disks** hold what nodes write. They forget on a crash what was not synced, tear writes, fail, and take time.
//! * **The network** carries frames of nodes: see [`Wire`], and [`Sim::partition`] and its like. Host code that talks to others
//!   in another way has to bring that along; sockets do not work here.
//! * **Chance** in nodes comes from the seed. Host code that wants to be the same in each run draws its own from [`Sim::random`]
//!   and [`Sim::seed`], and iterates over no `HashMap`.
//! * **Threads** take no part. While host code blocks, virtual time stands still; what it hands to another thread comes back
//!   at a moment of the real world, and the run is no longer the seed's.
//!
//! The nodes are the production code, from the public handle down to the storage engines; in place of the threads that drive
//! those in production, tasks do.

pub mod check;
mod disk;
mod error;
mod faults;
mod harm;
mod host;
mod links;
mod lives;
pub(crate) mod net;
mod run;
mod wire;
mod world;

pub use self::disk::{DiskFault, LostWrites};
pub use self::error::SimError;
pub use self::faults::{Fault, Faults};
pub use self::harm::{Harm, HarmCounts};
pub use self::host::Host;
pub use self::run::run;
#[cfg(test)]
pub(crate) use self::run::{Play, play};
pub use self::wire::Wire;
pub use self::world::Sim;

#[cfg(test)]
mod tests;
