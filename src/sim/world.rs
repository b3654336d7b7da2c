//! The simulated world: its hosts, and the handle that a test has on all of it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use futures::future::BoxFuture;

use super::disk::Pace;
use super::error::SimError;
use super::harm::HarmCounts;
use super::host::Host;
use super::net::{SimEnd, SimNet};
use super::wire::{Wire, hits};
use crate::api::cluster::{Cluster, WeakCluster};
use crate::config::Settings;
use crate::rt;
use crate::rt::sim::{Context, Met, World};
use crate::storage::fault_disk::{FaultDisk, SplitMix};
use crate::types::Peer;

/// Most hosts of one cluster: what a formation takes.
const HOSTS_MAX: usize = 64;
/// How often a condition is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(5);
/// Lines of the journal that are kept.
const JOURNAL_LINES: usize = 200;

/// One simulated world, as the test that plays in it sees it. Clones are the same world.
///
/// Made by [`run`](super::run) for each seed. The module's documentation tells [what is
/// simulated](super#what-is-simulated-and-what-is-not).
#[derive(Clone)]
pub struct Sim {
    pub(super) inner: Arc<Inner>,
}

#[derive(Clone)]
pub(super) struct WeakSim(Weak<Inner>);

impl WeakSim {
    pub(super) fn upgrade(&self) -> Option<Sim> {
        self.0.upgrade().map(|inner| Sim { inner })
    }
}

pub(super) struct Inner {
    pub(super) world: World,
    pub(super) net: SimNet,
    machines: Mutex<BTreeMap<String, Machine>>,
    rng: Mutex<SplitMix>,
    /// The wires between faults.
    pub(super) usual: Mutex<Wire>,
    tune: Mutex<Tune>,
    journal: Journal,
    /// What was done to processes, machines and clocks.
    pub(super) harm: Mutex<HarmCounts>,
}

/// Changes the settings of every node that is opened from now on.
pub(super) type Tune = Arc<dyn Fn(&mut Settings) + Send + Sync>;

/// What a process does from its start to its end; the text says how it ended.
type Main = Arc<dyn Fn(Host) -> BoxFuture<'static, String> + Send + Sync>;

/// A machine: what outlives its processes.
pub(super) struct Machine {
    main: Main,
    /// Everybody in its cluster.
    peers: Vec<Peer>,
    pub(super) disk: FaultDisk,
    pub(super) pace: Pace,
    lives: u64,
    /// Or how the last one ended.
    pub(super) life: Result<Life, String>,
}

impl Life {
    /// Whether it has not got as far as to have a node.
    pub(super) fn is_starting(&self) -> bool {
        self.cluster.is_none()
    }

    fn cluster(&self) -> Option<Cluster> {
        self.cluster.as_ref()?.upgrade()
    }
}

impl Machine {
    /// The number of its newest process.
    pub(super) fn lives(&self) -> u64 {
        self.lives
    }
}

/// A process while it lives.
pub(super) struct Life {
    pub(super) context: Context,
    /// Once it has opened one.
    cluster: Option<WeakCluster>,
    /// Paused or suspended.
    pub(super) still: bool,
}

/// What a new node is made of.
pub(super) struct Parts {
    pub(super) disk: FaultDisk,
    pub(super) pace: Pace,
    pub(super) end: SimEnd,
    pub(super) peers: Vec<Peer>,
    pub(super) tune: Tune,
}

impl Sim {
    /// Inside [`World::block_on`].
    pub(super) fn new(world: World, journal: Journal) -> Self {
        let carrier = world.context("network", 0);
        let spawner = Arc::new(move |name, task| carrier.spawn(name, task).detach());
        let inner = Inner {
            net: SimNet::new(world.seed_for("network"), Wire::default(), spawner),
            machines: Mutex::default(),
            rng: Mutex::new(SplitMix(world.seed_for("scenario"))),
            usual: Mutex::default(),
            tune: Mutex::new(Arc::new(|_| {})),
            journal,
            harm: Mutex::default(),
            world,
        };
        Sim { inner: Arc::new(inner) }
    }

    /// Adds a host for each name and starts them: one process each, whose nodes make one cluster together.
    ///
    /// `main` is that process. It runs now, and again after each [`restart`](Sim::restart), with what the disk then holds;
    /// it is dropped where it waits when the process is killed. When it returns, the process ends, as if it had been killed
    /// in that moment, and with an error as well as without: what it returned is told by [`Sim::exit`]. A panic in it fails
    /// the test.
    ///
    /// A host that was added earlier belongs to another cluster.
    ///
    /// ```
    /// use quorate::sim;
    ///
    /// sim::run(0..1, |sim| async move {
    ///     sim.hosts(["a", "b", "c"], |host| async move {
    ///         let cluster = host.cluster().await?;
    ///         cluster.set(format!("up/{}", host.name()), &host.life()).await?;
    ///         std::future::pending::<()>().await; // a service that serves
    ///         Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    ///     })?;
    ///     sim.run_for(std::time::Duration::from_secs(10)).await;
    ///     assert_eq!(*sim.node("b")?.get::<u64>("up/c").await?.expect("c is up"), 1);
    ///     Ok::<(), Box<dyn std::error::Error>>(())
    /// });
    /// ```
    ///
    /// # Errors
    /// [`SimError::NameTaken`], and [`SimError::HostCount`] unless there are 1 to 64. Then no host was added.
    pub fn hosts<N, F, Fut>(&self, names: impl IntoIterator<Item = N>, main: F) -> Result<(), SimError>
    where
        N: Into<String>,
        F: Fn(Host) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: fmt::Debug,
    {
        let main = Arc::new(main);
        let main: Main = Arc::new(move |host| {
            let main = main.clone();
            Box::pin(async move { format!("{:?}", main(host).await) })
        });
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        if !(1..=HOSTS_MAX).contains(&names.len()) {
            return Err(SimError::HostCount { count: names.len(), limit: HOSTS_MAX });
        }
        let peers: Vec<Peer> = names.iter().map(|name| Peer::new(name.clone(), name.clone())).collect();
        {
            let mut machines = self.machines();
            for (place, name) in names.iter().enumerate() {
                if machines.contains_key(name) || names[..place].contains(name) {
                    return Err(SimError::NameTaken { name: name.clone() });
                }
            }
            for name in &names {
                let seed = |what| self.inner.world.seed_for(&format!("{what} of {name}"));
                let machine = Machine {
                    main: main.clone(),
                    peers: peers.clone(),
                    disk: FaultDisk::new(seed("disk")),
                    pace: Pace::new(seed("pace")),
                    lives: 0,
                    life: Err("not yet started".into()),
                };
                machines.insert(name.clone(), machine);
            }
        }
        names.iter().try_for_each(|name| self.start(name))
    }

    /// Adds `count` hosts, called `node-1` and so on, that run a node each and nothing else.
    ///
    /// # Errors
    /// As [`Sim::hosts`].
    pub fn nodes(&self, count: usize) -> Result<(), SimError> {
        self.hosts((1..=count).map(|n| format!("node-{n}")), |host| async move {
            let _cluster = host.cluster().await?;
            std::future::pending::<Result<(), crate::StartError>>().await
        })
    }

    /// Starts a process on a machine that has none.
    pub(super) fn start(&self, name: &str) -> Result<(), SimError> {
        let (main, context) = {
            let mut machines = self.machines();
            let machine = known(&mut machines, name)?;
            if machine.life.is_ok() {
                return Err(SimError::Running { name: name.to_owned() });
            }
            machine.lives += 1;
            let context = self.inner.world.context(name, machine.lives);
            machine.life = Ok(Life { context: context.clone(), cluster: None, still: false });
            (machine.main.clone(), context)
        };
        let (life, name, sim) = (context.generation(), name.to_owned(), self.downgrade());
        self.note(|| format!("{name} starts, life {life}"));
        let host = Host::new(&name, context.clone(), sim.clone());
        let main = async move {
            let how = main(host).await;
            if let Some(sim) = sim.upgrade() {
                sim.exited(&name, life, how);
            }
        };
        context.spawn("main", main).detach();
        Ok(())
    }

    /// The cluster that the host has opened, as that host sees it.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`], [`SimError::NotRunning`], and [`SimError::NotOpen`] before it has opened one.
    pub fn node(&self, name: &str) -> Result<Cluster, SimError> {
        let mut machines = self.machines();
        let life = alive(known(&mut machines, name)?, name)?;
        life.cluster().ok_or_else(|| SimError::NotOpen { name: name.to_owned() })
    }

    /// The names of all hosts.
    pub fn names(&self) -> Vec<String> {
        self.machines().keys().cloned().collect()
    }

    /// Whether the host's process runs; a paused one does.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`].
    pub fn is_running(&self, name: &str) -> Result<bool, SimError> {
        Ok(known(&mut self.machines(), name)?.life.is_ok())
    }

    /// How the host's last process ended, while there is no new one: what its main function returned, or what was done to
    /// it.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`].
    pub fn exit(&self, name: &str) -> Result<Option<String>, SimError> {
        Ok(known(&mut self.machines(), name)?.life.as_ref().err().cloned())
    }

    /// The host whose open node leads, by its own account. Of several that think so, the one of the newest term.
    pub fn leader(&self) -> Option<String> {
        let leading = |(name, node): (String, Cluster)| {
            let status = node.status();
            status.is_leader.then_some((status.term, name))
        };
        self.open().into_iter().filter_map(leading).max().map(|(_, name)| name)
    }

    /// Every host that has an open cluster now.
    pub(crate) fn open(&self) -> Vec<(String, Cluster)> {
        let machines = self.machines();
        let open = |(name, machine): (&String, &Machine)| {
            let cluster = machine.life.as_ref().ok()?.cluster()?;
            Some((name.clone(), cluster))
        };
        machines.iter().filter_map(open).collect()
    }

    /// The seed of this world.
    pub fn seed(&self) -> u64 {
        self.inner.world.seed()
    }

    /// Virtual time since this world began.
    pub fn elapsed(&self) -> Duration {
        self.inner.world.now()
    }

    /// A number below `end`, drawn from the seed; 0 if `end` is.
    pub fn random(&self, end: u64) -> u64 {
        self.rng().below(end.max(1))
    }

    /// Whether something happens that has this chance, from 0 to 1, as the seed says.
    pub fn chance(&self, chance: f64) -> bool {
        hits(&mut self.rng(), chance)
    }

    /// Lets virtual time pass.
    ///
    /// # Cancel safety
    /// It may be dropped at any time.
    pub async fn run_for(&self, time: Duration) {
        rt::sleep(time).await;
    }

    /// Lets virtual time pass until `holds`, for `patience` at most. It is asked every few milliseconds.
    ///
    /// # Errors
    /// [`SimError::Waited`].
    /// # Cancel safety
    /// It may be dropped at any time.
    pub async fn until(&self, what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Result<(), SimError> {
        let start = rt::Instant::now();
        while !holds() {
            let waited = start.elapsed();
            if waited >= patience {
                return Err(SimError::Waited { what: what.to_owned(), waited });
            }
            rt::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Changes the settings of every node that is opened from now on.
    pub(crate) fn tune(&self, tune: impl Fn(&mut Settings) + Send + Sync + 'static) {
        *self.inner.tune.lock().expect("no holder of the lock panics") = Arc::new(tune);
    }

    /// Has `met` called with the name of each host that comes by a mark from now on, in that moment; `None`: nobody.
    pub(crate) fn on_mark<F: Fn(&Sim, &str, rt::Mark) + Send + Sync + 'static>(&self, met: Option<F>) {
        let sim = self.downgrade();
        self.inner.world.on_mark(met.map(|met| -> Arc<Met> {
            Arc::new(move |name, mark| sim.upgrade().into_iter().for_each(|sim| met(&sim, name, mark)))
        }));
    }

    /// The world below, for whoever compares its runs.
    pub(crate) fn world(&self) -> &World {
        &self.inner.world
    }

    /// What the host called `name` makes its node of.
    pub(super) fn parts(&self, name: &str) -> Parts {
        let mut machines = self.machines();
        let machine = known(&mut machines, name).expect("a host knows its own name");
        Parts {
            disk: machine.disk.clone(),
            pace: machine.pace.clone(),
            end: self.inner.net.end(name),
            peers: machine.peers.clone(),
            tune: self.inner.tune.lock().expect("no holder of the lock panics").clone(),
        }
    }

    /// The host has opened a cluster.
    pub(super) fn opened(&self, name: &str, life: u64, cluster: WeakCluster) {
        if let Ok(Machine { life: Ok(current), .. }) = known(&mut self.machines(), name)
            && current.context.generation() == life
        {
            current.cluster = Some(cluster);
        }
    }

    /// Ends everything at once: what is left in memory is of no interest, and the disks need not write it.
    pub(super) fn end(&self) {
        for machine in self.machines().values() {
            machine.disk.process_gone();
        }
    }

    /// Writes a line into the journal, which is shown if the run fails.
    pub(super) fn note(&self, line: impl FnOnce() -> String) {
        self.inner.world.trace("journal", &[]);
        self.inner.journal.add(self.elapsed(), line());
    }

    pub(super) fn downgrade(&self) -> WeakSim {
        WeakSim(Arc::downgrade(&self.inner))
    }

    pub(super) fn machines(&self) -> MutexGuard<'_, BTreeMap<String, Machine>> {
        self.inner.machines.lock().expect("no holder of the lock panics")
    }

    pub(super) fn rng(&self) -> MutexGuard<'_, SplitMix> {
        self.inner.rng.lock().expect("no holder of the lock panics")
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("seed", &self.seed()).field("elapsed", &self.elapsed()).finish_non_exhaustive()
    }
}

pub(super) fn known<'a>(machines: &'a mut BTreeMap<String, Machine>, name: &str) -> Result<&'a mut Machine, SimError> {
    if !machines.contains_key(name) {
        let known = machines.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(SimError::UnknownHost { name: name.to_owned(), known });
    }
    Ok(machines.get_mut(name).expect("it is there"))
}

pub(super) fn alive<'a>(machine: &'a mut Machine, name: &str) -> Result<&'a mut Life, SimError> {
    machine.life.as_mut().map_err(|why| SimError::NotRunning { name: name.to_owned(), why: why.clone() })
}

/// What was done to a world, newest last. Clones are the same journal.
#[derive(Clone, Default)]
pub(super) struct Journal(Arc<Mutex<VecDeque<String>>>);

impl Journal {
    fn add(&self, at: Duration, line: String) {
        let mut lines = self.0.lock().expect("no holder of the lock panics");
        if lines.len() == JOURNAL_LINES {
            lines.pop_front();
        }
        lines.push_back(format!("{:>10.3}s {line}", at.as_secs_f64()));
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no holder of the lock panics").iter().cloned().collect()
    }
}
