//! What happens to machines and their processes: ends, pauses, restarts, disks and clocks.

use std::time::Duration;

use super::disk::{DiskFault, LostWrites};
use super::error::SimError;
use super::harm::Harm;
use super::net::Away;
use super::world::{Life, Machine, Sim, alive, known};
use crate::rt;
use crate::rt::sim::SetClock;

/// How long a power failure in the middle of a write is waited for, if the host does not write.
const MID_WRITE: Duration = Duration::from_secs(1);
/// The operations of a disk within which such a failure strikes.
const MID_WRITE_OPS: u64 = 60;
/// The fastest and the slowest a clock may run beside the world's, in millionths.
const DRIFT_MAX: i32 = 500_000;

impl Sim {
    /// Ends the host's process at once, as SIGKILL does. Its machine runs on: nothing that it wrote is lost, and its peers
    /// are refused.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`], [`SimError::NotRunning`].
    pub fn kill(&self, name: &str) -> Result<(), SimError> {
        self.end_life(name, Away::Refusing, "killed".into(), Some(Harm::Kill), |machine| machine.disk.process_gone())
    }

    /// Takes the host's power away. Its disk loses of the writes that were not synced what `lost` says, and its peers hear
    /// nothing.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`], [`SimError::NotRunning`].
    pub fn crash(&self, name: &str, lost: LostWrites) -> Result<(), SimError> {
        let cut = |machine: &Machine| machine.disk.power_loss(lost.into());
        self.end_life(name, Away::Silent, crashed(lost), Some(Harm::Crash), cut)
    }

    /// As [`Sim::crash`], in the middle of one of the next writes, which is torn with the rest; after a second of virtual
    /// time at the latest. Right after [`Sim::restart`] it strikes a process that starts.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`], [`SimError::NotRunning`]; that too if the process ends by itself before the power fails.
    /// # Cancel safety
    /// When it is dropped, the power may still fail in that write, and the host is left with a dead disk.
    pub async fn crash_mid_write(&self, name: &str, lost: LostWrites) -> Result<(), SimError> {
        self.crash_within(MID_WRITE_OPS, name, lost).await
    }

    /// As [`Sim::crash_mid_write`], in one of the disk's next `ops` operations.
    pub(super) async fn crash_within(&self, ops: u64, name: &str, lost: LostWrites) -> Result<(), SimError> {
        self.doom(name, self.random(ops))?;
        self.crash_doomed(name, lost).await
    }

    /// Lets the power of the host's disk fail at the `nth` operation from now, from 0. To be followed by
    /// [`Sim::crash_doomed`], before which only the disk is dead.
    pub(crate) fn doom(&self, name: &str, nth: u64) -> Result<(), SimError> {
        let mut machines = self.machines();
        let machine = known(&mut machines, name)?;
        alive(machine, name)?;
        machine.disk.die_at(nth);
        Ok(())
    }

    /// Takes the power of the whole host away when its disk has lost it, after a second of virtual time at the latest.
    pub(crate) async fn crash_doomed(&self, name: &str, lost: LostWrites) -> Result<(), SimError> {
        let disk = known(&mut self.machines(), name)?.disk.clone();
        let start = rt::Instant::now();
        while !disk.has_lost_power() && start.elapsed() < MID_WRITE {
            rt::sleep(Duration::from_millis(1)).await;
        }
        match self.crash(name, lost) {
            // It has fallen over its dead disk before the rest of the machine was gone.
            Err(SimError::NotRunning { .. }) if disk.has_lost_power() => {
                disk.power_loss(lost.into());
                self.inner.net.close(name, Away::Silent);
                known(&mut self.machines(), name)?.life = Err(crashed(lost));
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Starts the host's process again, on what its disk holds.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`], [`SimError::Running`].
    pub fn restart(&self, name: &str) -> Result<(), SimError> {
        self.start(name)
    }

    /// Stops the host's process where it is, as SIGSTOP does, until [`Sim::resume`]: nothing of it runs, while its clocks go
    /// on. Frames that arrive wait for it.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`], [`SimError::NotRunning`].
    pub fn pause(&self, name: &str) -> Result<(), SimError> {
        self.life(name, "is paused", Some(Harm::Pause), |life| {
            life.still = true;
            life.context.pause();
        })
    }

    /// As [`Sim::pause`], and the monotonic clock of the machine stands still too, as when a laptop is closed or a virtual
    /// machine suspended.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`], [`SimError::NotRunning`].
    pub fn suspend(&self, name: &str) -> Result<(), SimError> {
        self.life(name, "is suspended", Some(Harm::Suspend), |life| {
            life.still = true;
            life.context.suspend();
        })
    }

    /// Lets a paused or suspended host go on; timers that expired meanwhile all fire now. Does nothing to a running one.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`], [`SimError::NotRunning`].
    pub fn resume(&self, name: &str) -> Result<(), SimError> {
        self.life(name, "goes on", None, |life| {
            life.still = false;
            life.context.resume();
        })
    }

    /// Empties the disk of a host that does not run, as a new one is.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`], [`SimError::Running`].
    pub fn wipe(&self, name: &str) -> Result<(), SimError> {
        self.at_rest(name)?.wipe();
        self.harmed(Harm::Wipe);
        self.note(|| format!("{name} is given an empty disk"));
        Ok(())
    }

    /// Puts a copy of one host's disk into another machine, neither of which runs: an old backup, or a cloned image.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`], [`SimError::Running`].
    pub fn copy_disk(&self, from: &str, to: &str) -> Result<(), SimError> {
        let (from_disk, to_disk) = (self.at_rest(from)?, self.at_rest(to)?);
        to_disk.copy_of(&from_disk);
        self.harmed(Harm::DiskCopied);
        self.note(|| format!("{to} is given a copy of the disk of {from}"));
        Ok(())
    }

    /// Lets each step of the host's storage take at least `least`, and `mean` on average, until [`Sim::mend_disk`]. Usually a
    /// step, which has a sync in it, takes about a millisecond.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`].
    pub fn slow_disk(&self, name: &str, least: Duration, mean: Duration) -> Result<(), SimError> {
        known(&mut self.machines(), name)?.pace.set(least, mean);
        self.note(|| format!("the disk of {name} takes {mean:?} for each step"));
        Ok(())
    }

    /// Lets the host's disk answer nothing any more until [`Sim::mend_disk`].
    ///
    /// # Errors
    /// [`SimError::UnknownHost`].
    pub fn hang_disk(&self, name: &str) -> Result<(), SimError> {
        known(&mut self.machines(), name)?.pace.hang();
        self.note(|| format!("the disk of {name} hangs"));
        Ok(())
    }

    /// Lets a slow or hung disk be as it was.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`].
    pub fn mend_disk(&self, name: &str) -> Result<(), SimError> {
        known(&mut self.machines(), name)?.pace.recover();
        self.note(|| format!("the disk of {name} is mended"));
        Ok(())
    }

    /// Lets the `nth` operation of this kind from now, from 0, fail on the host's disk, and unless it is a sync all after it
    /// until the next crash. The node stops for good then, and is not to be started on that disk again.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`], [`SimError::NotRunning`].
    pub fn fail_disk(&self, name: &str, fault: DiskFault, nth: u64) -> Result<(), SimError> {
        let mut machines = self.machines();
        let machine = known(&mut machines, name)?;
        alive(machine, name)?;
        machine.disk.inject(fault.at(nth));
        drop(machines);
        self.note(|| format!("the disk of {name} is to fail: {fault:?}, operation {nth} from now"));
        Ok(())
    }

    /// Lets all clocks of the host's machine run faster than the world's by so many millionths, or slower if negative, from
    /// now on and through restarts.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`], [`SimError::Drift`] beyond half of the world's rate.
    pub fn drift(&self, name: &str, ppm: i32) -> Result<(), SimError> {
        if ppm.unsigned_abs() > DRIFT_MAX.unsigned_abs() {
            return Err(SimError::Drift { ppm });
        }
        self.clock(name, SetClock { drift_ppm: Some(ppm), ..SetClock::default() })?;
        if ppm != 0 {
            self.harmed(Harm::Drift);
        }
        self.note(|| format!("the clocks of {name} drift by {ppm} ppm"));
        Ok(())
    }

    /// Moves the wall clock of the host's machine by so many milliseconds, back if negative.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`].
    pub fn jump_wall_clock(&self, name: &str, by_ms: i64) -> Result<(), SimError> {
        self.clock(name, SetClock { wall_jump_ms: by_ms, ..SetClock::default() })?;
        self.harmed(Harm::WallClockJump);
        self.note(|| format!("the wall clock of {name} jumps by {by_ms} ms"));
        Ok(())
    }

    /// Ends every fault: the network is whole, disks are mended and clocks right, who is still goes on, and who does not run
    /// is started again. What was lost stays lost, and a disk that has failed stays failed.
    pub fn recover(&self) {
        self.heal();
        for name in self.names() {
            let (still, down) = {
                let mut machines = self.machines();
                let machine = known(&mut machines, &name).expect("it has just been listed");
                machine.pace.recover();
                (machine.life.as_ref().is_ok_and(|life| life.still), machine.life.is_err())
            };
            let done = self
                .drift(&name, 0)
                .and_then(|()| if still { self.resume(&name) } else { Ok(()) })
                .and_then(|()| if down { self.start(&name) } else { Ok(()) });
            done.expect("nothing has happened since it was looked at");
        }
    }

    fn clock(&self, name: &str, change: SetClock) -> Result<(), SimError> {
        let (context, lives) = {
            let mut machines = self.machines();
            let machine = known(&mut machines, name)?;
            (machine.life.as_ref().ok().map(|life| life.context.clone()), machine.lives())
        };
        // The clocks are the machine's, whether or not a process is there to read them.
        context.unwrap_or_else(|| self.inner.world.context(name, lives)).set_clock(change);
        Ok(())
    }

    fn life(
        &self,
        name: &str,
        event: &str,
        harm: Option<Harm>,
        change: impl FnOnce(&mut Life),
    ) -> Result<(), SimError> {
        change(alive(known(&mut self.machines(), name)?, name)?);
        harm.into_iter().for_each(|harm| self.harmed(harm));
        self.note(|| format!("{name} {event}"));
        Ok(())
    }

    fn at_rest(&self, name: &str) -> Result<crate::storage::fault_disk::FaultDisk, SimError> {
        let mut machines = self.machines();
        let machine = known(&mut machines, name)?;
        match machine.life {
            Ok(_) => Err(SimError::Running { name: name.to_owned() }),
            Err(_) => Ok(machine.disk.clone()),
        }
    }

    /// The process has returned from its main function.
    pub(super) fn exited(&self, name: &str, life: u64, how: String) {
        let current = {
            let mut machines = self.machines();
            known(&mut machines, name)
                .ok()
                .filter(|machine| machine.lives() == life)
                .map(|machine| machine.disk.clone())
        };
        if let Some(disk) = current {
            let harm = disk.has_lost_power().then_some(Harm::Crash);
            // An error says that it was killed in its last moment.
            let how = format!("it returned {how}");
            let _ = self.end_life(name, Away::Refusing, how, harm, |machine| machine.disk.process_gone());
        }
    }

    /// Has all hosts lose their power at once, each what `lost` draws.
    pub(super) fn black_out(&self, mut lost: impl FnMut() -> LostWrites) -> Vec<String> {
        let names = self.names();
        // An error says that it has ended otherwise.
        let crashed = names.iter().filter(|name| self.crash(name, lost()).is_ok()).count();
        if crashed > 0 {
            self.harmed(Harm::Blackout);
        }
        names
    }

    /// In this order, so that nothing that is left of the process can write or speak while it is dropped.
    fn end_life(
        &self,
        name: &str,
        away: Away,
        how: String,
        harm: Option<Harm>,
        cut: impl FnOnce(&Machine),
    ) -> Result<(), SimError> {
        let life = {
            let mut machines = self.machines();
            let machine = known(&mut machines, name)?;
            alive(machine, name)?;
            cut(machine);
            std::mem::replace(&mut machine.life, Err(how.clone())).unwrap_or_else(|_| unreachable!("it is alive"))
        };
        harm.into_iter().for_each(|harm| self.harmed(harm));
        if harm.is_some() && life.is_starting() && life.context.generation() > 1 {
            self.harmed(Harm::DoubleCrash);
        }
        self.inner.net.close(name, away);
        life.context.kill();
        self.note(|| format!("{name} ends: {how}"));
        Ok(())
    }
}

fn crashed(lost: LostWrites) -> String {
    format!("crashed, {lost:?}")
}
