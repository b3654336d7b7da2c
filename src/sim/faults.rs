//! Faults drawn from the seed: which kinds, how hard, and when.

use std::collections::BTreeSet;
use std::time::Duration;

use super::disk::LostWrites;
use super::error::SimError;
use super::wire::{Wire, exponential, uniform};
use super::world::Sim;

/// A kind of fault that [`Sim::chaos`] knows.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The network falls into two parts, or into parts that only a bridge sees both of, or one host is cut off.
    Partition,
    /// One host no longer reaches another, which still reaches it.
    OneWay,
    /// Frames are lost.
    Loss,
    /// Frames arrive twice.
    Duplication,
    /// Frames take up to hundreds of milliseconds and overtake each other.
    Reordering,
    /// Frames arrive when their senders have long given them up, up to minutes later.
    Lateness,
    /// Frames arrive with a flipped bit.
    Corruption,
    /// A process is killed and started again.
    Kill,
    /// A host loses its power, and writes that were not synced.
    Crash,
    /// All hosts of the world lose their power at once.
    CrashAll,
    /// A host loses its power, is started again, and loses it once more before it has got anywhere.
    DoubleCrash,
    /// A process stands still for a while.
    Pause,
    /// A machine sleeps for a while.
    Suspend,
    /// Clocks run fast or slow, by up to a thousandth.
    Drift,
    /// A wall clock jumps by up to years.
    WallClock,
    /// A disk becomes slow.
    SlowDisk,
    /// A disk answers nothing for a while.
    HungDisk,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Fault; 17] = [
        Fault::Partition,
        Fault::OneWay,
        Fault::Loss,
        Fault::Duplication,
        Fault::Reordering,
        Fault::Lateness,
        Fault::Corruption,
        Fault::Kill,
        Fault::Crash,
        Fault::CrashAll,
        Fault::DoubleCrash,
        Fault::Pause,
        Fault::Suspend,
        Fault::Drift,
        Fault::WallClock,
        Fault::SlowDisk,
        Fault::HungDisk,
    ];
}

/// The kinds of faults that may happen. See [`Sim::chaos`].
///
/// ```
/// use quorate::sim::{Fault, Faults};
///
/// // What the network does, and processes that are killed; of these, about half in each run.
/// let faults = Faults::only([Fault::Partition, Fault::Loss, Fault::Kill]).swarm();
/// assert_ne!(faults, Faults::all());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    kinds: BTreeSet<Fault>,
    swarm: bool,
}

impl Faults {
    /// Every kind.
    pub fn all() -> Self {
        Faults::only(Fault::ALL)
    }

    /// These kinds.
    pub fn only(kinds: impl IntoIterator<Item = Fault>) -> Self {
        Faults { kinds: kinds.into_iter().collect(), swarm: false }
    }

    /// All of these kinds but one.
    pub fn without(mut self, kind: Fault) -> Self {
        self.kinds.remove(&kind);
        self
    }

    /// Leaves each kind out of a run with a chance of one half, as its seed says. Faults that are not there let others show
    /// what they would hide: over many seeds this finds more than all of them at once (Groce et al., *Swarm Testing*, 2012).
    pub fn swarm(mut self) -> Self {
        self.swarm = true;
        self
    }
}

/// How a fault ends.
enum End {
    Heal,
    Restart(Vec<String>),
    Resume(String),
    Mend(String),
    Steady(String),
    Nothing,
}

/// How long the world is whole between two storms, at least and on average.
const CALM: (Duration, Duration) = (Duration::from_millis(800), Duration::from_secs(3));
/// How long a storm lasts.
const STORM: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1500));
/// The most faults of one storm.
const TOGETHER_MAX: u64 = 3;
/// The most disk operations of a start within which the second power failure of a double crash strikes, as a power of two.
const START_OPS_LOG2: u64 = 10;
/// What keeps a storm from outlasting the calm in one run by bad luck.
const STORM_MAX: Duration = Duration::from_secs(10);

impl Sim {
    /// Lets faults of these kinds happen for about `time`: storms of one to three faults, each followed by a calm that is
    /// twice as long on average, in which everything works and everybody runs. At the end all is as after
    /// [`Sim::recover`].
    ///
    /// Hosts that end by themselves are started again with the others.
    ///
    /// # Cancel safety
    /// When it is dropped, the faults of that moment stay; [`Sim::recover`] ends them.
    pub async fn chaos(&self, faults: Faults, time: Duration) {
        let kinds: Vec<Fault> = match faults.swarm {
            true => faults.kinds.into_iter().filter(|_| self.chance(0.5)).collect(),
            false => faults.kinds.into_iter().collect(),
        };
        self.note(|| format!("chaos of {kinds:?} for {time:?}"));
        let over = self.elapsed() + time;
        while self.elapsed() < over {
            self.run_for(self.about(CALM)).await;
            if kinds.is_empty() {
                continue;
            }
            let mut ends = Vec::new();
            for _ in 0..1 + self.random(TOGETHER_MAX) {
                let kind = kinds[self.random(kinds.len() as u64) as usize];
                // What it meets may have ended by itself.
                ends.extend(self.strike(kind).await.ok());
                if self.chance(0.5) {
                    self.run_for(self.about(STORM) / 4).await;
                }
            }
            self.run_for(self.about(STORM).min(STORM_MAX)).await;
            ends.into_iter().for_each(|end| self.undo(end));
            self.restart_all();
        }
        self.recover();
    }

    /// Begins a fault; an error says that there is nothing to strike.
    async fn strike(&self, kind: Fault) -> Result<End, SimError> {
        let Some(name) = self.any() else { return Ok(End::Nothing) };
        Ok(match kind {
            Fault::Partition => self.part(name)?,
            Fault::OneWay => {
                let other = self.any().expect("there is one");
                self.cut(&name, &other)?;
                End::Heal
            }
            Fault::Loss => self.storm(|wire, sim| wire.loss(sim.up_to(40)))?,
            Fault::Duplication => self.storm(|wire, sim| wire.duplication(sim.up_to(50)))?,
            Fault::Reordering => {
                let mean = Duration::from_millis(1 + self.random(200));
                self.storm(|wire, _| wire.latency(Duration::ZERO, mean))?
            }
            Fault::Lateness => {
                let late = Duration::from_secs(1 + self.random(180));
                self.storm(|wire, sim| wire.lateness(sim.up_to(20), late))?
            }
            Fault::Corruption => self.storm(|wire, sim| wire.corruption(sim.up_to(20)))?,
            Fault::Kill => {
                self.kill(&name)?;
                End::Restart(vec![name])
            }
            Fault::Crash => {
                let lost = self.lost_writes();
                match self.chance(0.5) {
                    true => self.crash_mid_write(&name, lost).await?,
                    false => self.crash(&name, lost)?,
                }
                End::Restart(vec![name])
            }
            Fault::CrashAll => End::Restart(self.black_out(|| self.lost_writes())),
            Fault::DoubleCrash => {
                self.crash(&name, self.lost_writes())?;
                self.restart(&name)?;
                // As often early as late: a start reads a log of whatever length.
                let ops = 1 << self.random(START_OPS_LOG2);
                self.crash_within(ops, &name, self.lost_writes()).await?;
                End::Restart(vec![name])
            }
            Fault::Pause => {
                self.pause(&name)?;
                End::Resume(name)
            }
            Fault::Suspend => {
                self.suspend(&name)?;
                End::Resume(name)
            }
            Fault::Drift => {
                self.drift(&name, self.random(2001) as i32 - 1000)?;
                End::Steady(name)
            }
            Fault::WallClock => {
                let ten_years_ms = 315_360_000_000;
                self.jump_wall_clock(&name, self.random(2 * ten_years_ms) as i64 - ten_years_ms as i64)?;
                End::Nothing
            }
            Fault::SlowDisk => {
                let mean = Duration::from_millis(1 + self.random(200));
                self.slow_disk(&name, mean / 2, mean)?;
                End::Mend(name)
            }
            Fault::HungDisk => {
                self.hang_disk(&name)?;
                End::Mend(name)
            }
        })
    }

    fn undo(&self, end: End) {
        // An error says that it has ended otherwise.
        let _ = match end {
            End::Heal => {
                self.heal();
                Ok(())
            }
            End::Restart(names) => names.iter().try_for_each(|name| self.restart(name)),
            End::Resume(name) => self.resume(&name),
            End::Mend(name) => self.mend_disk(&name),
            End::Steady(name) => self.drift(&name, 0),
            End::Nothing => Ok(()),
        };
    }

    /// Starts whoever does not run, for whatever reason.
    fn restart_all(&self) {
        for name in self.names() {
            if self.is_running(&name) == Ok(false) {
                let _ = self.restart(&name);
            }
        }
    }

    fn part(&self, name: String) -> Result<End, SimError> {
        let names = self.names();
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for name in &names {
            if self.chance(0.5) { left.push(name.as_str()) } else { right.push(name.as_str()) }
        }
        match self.random(3) {
            0 => self.isolate(&name),
            1 => self.partition(&[&left, &right]),
            _ => {
                left.push(&name);
                right.push(&name);
                self.partition(&[&left, &right])
            }
        }?;
        Ok(End::Heal)
    }

    /// Changes all wires for a while, one of them, or those of one host. Storms of one run meet on the same wires.
    fn storm(&self, change: impl FnOnce(Wire, &Sim) -> Wire) -> Result<End, SimError> {
        let usual = self.inner.usual.lock().expect("no holder of the lock panics").clone();
        let wire = change(usual, self);
        let (from, to) = (self.any().expect("there is one"), self.any().expect("there is one"));
        match self.random(3) {
            0 => {
                self.note(|| format!("all wires: {wire:?}"));
                self.inner.net.usual(wire);
            }
            1 => self.wire(&from, &to, wire)?,
            _ => self.names().iter().try_for_each(|to| self.wire(&from, to, wire.clone()))?,
        }
        Ok(End::Heal)
    }

    pub(crate) fn lost_writes(&self) -> LostWrites {
        match self.random(5) {
            0 => LostWrites::None,
            1 => LostWrites::All,
            2 | 3 => LostWrites::Torn,
            _ => LostWrites::Scattered(self.random(101) as u8),
        }
    }

    fn any(&self) -> Option<String> {
        let names = self.names();
        let place = self.random(names.len() as u64) as usize;
        names.into_iter().nth(place)
    }

    fn up_to(&self, percent: u64) -> f64 {
        (1 + self.random(percent)) as f64 / 100.0
    }

    fn about(&self, (least, mean): (Duration, Duration)) -> Duration {
        let mut rng = self.rng();
        // Half of it even, half of it with a long tail.
        let rest = mean - least;
        least + uniform(&mut rng, rest) + exponential(&mut rng, rest / 2)
    }
}
