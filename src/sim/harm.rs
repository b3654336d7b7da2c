//! What faults have really done: how a test learns that it was worth running.

use std::fmt;
use std::ops::AddAssign;

use super::disk::DiskFault;
use super::faults::Fault;
use super::world::Sim;
use crate::storage::fault_disk::Damage;

/// Something that a fault does to a simulated world.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Harm {
    /// A frame, request or answer, was stopped by a partition, or because its host was isolated.
    FramePartitioned,
    /// A frame was stopped by a cut of its direction.
    FrameCut,
    /// A frame was lost on its wire.
    FrameLost,
    /// A frame was delivered twice.
    FrameDoubled,
    /// A frame that took 10 ms or more was overtaken by one that was sent later. Late ones do not count.
    FrameOvertaken,
    /// A frame set out that takes as long as its wire's lateness says.
    FrameLate,
    /// A frame set out with a flipped bit.
    FrameDamaged,
    /// A frame was kept under way by a hold.
    FrameHeld,
    /// A process was killed.
    Kill,
    /// A process ended because its host lost its power.
    Crash,
    /// All hosts of the world lost their power at once.
    Blackout,
    /// A process that had been started again was killed, or its host lost its power, before it had opened its node.
    DoubleCrash,
    /// A process was stopped where it was.
    Pause,
    /// A machine was suspended.
    Suspend,
    /// The clocks of a machine were made to run at another rate than the world's.
    Drift,
    /// A wall clock was set.
    WallClockJump,
    /// A step of a node's storage ran at the pace of a slowed disk.
    SlowStep,
    /// A step of a node's storage waited on a hung disk.
    HungStep,
    /// A read failed.
    ReadFailed,
    /// A write failed, or growing a file did.
    WriteFailed,
    /// A sync failed.
    SyncFailed,
    /// A write failed for want of room, or growing a file did.
    DiskFull,
    /// Nothing was kept of a write when the power failed.
    WriteDropped,
    /// A part was kept of a write when the power failed.
    WriteTorn,
    /// A disk was emptied.
    Wipe,
    /// A disk was replaced by a copy of another.
    DiskCopied,
}

impl Harm {
    /// Every kind.
    pub const ALL: [Harm; 26] = [
        Harm::FramePartitioned,
        Harm::FrameCut,
        Harm::FrameLost,
        Harm::FrameDoubled,
        Harm::FrameOvertaken,
        Harm::FrameLate,
        Harm::FrameDamaged,
        Harm::FrameHeld,
        Harm::Kill,
        Harm::Crash,
        Harm::Blackout,
        Harm::DoubleCrash,
        Harm::Pause,
        Harm::Suspend,
        Harm::Drift,
        Harm::WallClockJump,
        Harm::SlowStep,
        Harm::HungStep,
        Harm::ReadFailed,
        Harm::WriteFailed,
        Harm::SyncFailed,
        Harm::DiskFull,
        Harm::WriteDropped,
        Harm::WriteTorn,
        Harm::Wipe,
        Harm::DiskCopied,
    ];
}

impl Fault {
    /// What a fault of this kind does, once for each frame, step or process that it meets.
    pub fn harm(self) -> Harm {
        match self {
            Fault::Partition => Harm::FramePartitioned,
            Fault::OneWay => Harm::FrameCut,
            Fault::Loss => Harm::FrameLost,
            Fault::Duplication => Harm::FrameDoubled,
            Fault::Reordering => Harm::FrameOvertaken,
            Fault::Lateness => Harm::FrameLate,
            Fault::Corruption => Harm::FrameDamaged,
            Fault::Kill => Harm::Kill,
            Fault::Crash => Harm::Crash,
            Fault::CrashAll => Harm::Blackout,
            Fault::DoubleCrash => Harm::DoubleCrash,
            Fault::Pause => Harm::Pause,
            Fault::Suspend => Harm::Suspend,
            Fault::Drift => Harm::Drift,
            Fault::WallClock => Harm::WallClockJump,
            Fault::SlowDisk => Harm::SlowStep,
            Fault::HungDisk => Harm::HungStep,
        }
    }
}

impl DiskFault {
    /// What a fault of this kind does, once for each operation that it fails.
    pub fn harm(self) -> Harm {
        match self {
            DiskFault::Read => Harm::ReadFailed,
            DiskFault::Write => Harm::WriteFailed,
            DiskFault::Sync => Harm::SyncFailed,
            DiskFault::Full => Harm::DiskFull,
        }
    }

    const ALL: [DiskFault; 4] = [DiskFault::Read, DiskFault::Write, DiskFault::Sync, DiskFault::Full];
}

/// How often each kind of harm has been done.
///
/// What faults *may* do says little of what they did: a partition between hosts that have nothing to say to each other
/// stops nothing. Counted is what was done, where it was done.
///
/// ```
/// use std::time::Duration;
///
/// use quorate::sim::{self, Fault, Faults, HarmCounts};
///
/// let all = std::cell::RefCell::new(HarmCounts::default());
/// let counted = &all;
/// sim::run(0..3, |sim| async move {
///     sim.nodes(3)?;
///     sim.chaos(Faults::only([Fault::Kill, Fault::Loss]), Duration::from_secs(10)).await;
///     *counted.borrow_mut() += sim.harm_done();
///     Ok::<(), sim::SimError>(())
/// });
/// let all = all.into_inner();
/// // Else these runs have shown nothing.
/// for fault in [Fault::Kill, Fault::Loss] {
///     assert!(all.of(fault.harm()) > 0, "{fault:?} never struck: {all}");
/// }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct HarmCounts([u64; Harm::ALL.len()]);

impl HarmCounts {
    /// How often this has been done.
    pub fn of(&self, harm: Harm) -> u64 {
        self.0[harm as usize]
    }

    /// Every kind of harm, and how often it has been done.
    pub fn iter(&self) -> impl Iterator<Item = (Harm, u64)> {
        Harm::ALL.into_iter().zip(self.0)
    }

    pub(super) fn add(&mut self, harm: Harm, times: u64) {
        self.0[harm as usize] += times;
    }

    pub(super) fn add_damage(&mut self, damage: &Damage) {
        self.add(Harm::WriteDropped, damage.dropped);
        self.add(Harm::WriteTorn, damage.torn);
        for fault in DiskFault::ALL {
            let (kinds, error) = fault.fails();
            self.add(fault.harm(), damage.failed(&kinds, error));
        }
    }
}

impl Sim {
    /// What faults have done to this world so far, by chance or by hand.
    pub fn harm_done(&self) -> HarmCounts {
        let mut counts = self.inner.harm.lock().expect("no holder of the lock panics").clone();
        counts += self.inner.net.harm();
        for machine in self.machines().values() {
            counts += machine.pace.harm();
            counts.add_damage(&machine.disk.damage());
        }
        counts
    }

    pub(super) fn harmed(&self, harm: Harm) {
        self.inner.harm.lock().expect("no holder of the lock panics").add(harm, 1);
    }
}

impl Default for HarmCounts {
    fn default() -> Self {
        HarmCounts([0; Harm::ALL.len()])
    }
}

impl AddAssign for HarmCounts {
    fn add_assign(&mut self, more: HarmCounts) {
        for (harm, times) in more.iter() {
            self.add(harm, times);
        }
    }
}

impl fmt::Display for HarmCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (harm, times) in self.iter() {
            write!(f, "{comma}{harm:?} {times}")?;
            comma = ", ";
        }
        Ok(())
    }
}

impl fmt::Debug for HarmCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_harm_is_counted_by_itself() {
        for (place, harm) in Harm::ALL.into_iter().enumerate() {
            let mut counts = HarmCounts::default();
            counts.add(harm, 2);
            counts += counts.clone();
            let found: Vec<u64> = counts.iter().map(|(_, times)| times).collect();
            let wanted: Vec<u64> = (0..Harm::ALL.len()).map(|other| if other == place { 4 } else { 0 }).collect();
            assert_eq!((found, counts.of(harm)), (wanted, 4), "{harm:?}");
        }
    }
}
