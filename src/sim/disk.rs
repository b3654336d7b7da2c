//! How fast a simulated disk is, and how it breaks.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::harm::{Harm, HarmCounts};
use super::wire::exponential;
use crate::rt::worker::Drive;
use crate::rt::{self, watch};
use crate::storage::fault_disk::{Fault, IoKind, PowerLoss, SplitMix};

/// What a power failure takes of the writes that were not yet synced. What was synced is always there.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LostWrites {
    /// None of them.
    None,
    /// All of them.
    All,
    /// Those behind some point in time; the write at that point is torn between its sectors of 512 bytes.
    Torn,
    /// Each sector by itself, with this chance in percent: writes arrive out of order, with holes.
    Scattered(u8),
}

impl From<LostWrites> for PowerLoss {
    fn from(lost: LostWrites) -> PowerLoss {
        match lost {
            LostWrites::None => PowerLoss::KeepAll,
            LostWrites::All => PowerLoss::DropAll,
            LostWrites::Torn => PowerLoss::Prefix,
            LostWrites::Scattered(percent) => PowerLoss::Subset(100 - u64::from(percent.min(100))),
        }
    }
}

/// How a disk fails an operation. A node whose disk has failed once stops for good.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskFault {
    /// Reads fail with an I/O error.
    Read,
    /// Writes fail with an I/O error.
    Write,
    /// One sync fails with an I/O error, and later ones succeed; what was to be synced is lost, though reads still show it.
    Sync,
    /// Writes, and growing a file, fail for want of room.
    Full,
}

impl DiskFault {
    /// Fails the `nth` operation from now, from 0.
    pub(super) fn at(self, nth: u64) -> Fault {
        let (kinds, error) = self.fails();
        Fault { kinds, nth, error, once: self == DiskFault::Sync }
    }

    /// The operations that it fails, and how.
    pub(super) fn fails(self) -> (Vec<IoKind>, io::ErrorKind) {
        match self {
            DiskFault::Read => (vec![IoKind::Read], io::ErrorKind::Other),
            DiskFault::Write => (vec![IoKind::Write, IoKind::SetLen], io::ErrorKind::Other),
            DiskFault::Sync => (vec![IoKind::Sync], io::ErrorKind::Other),
            DiskFault::Full => (vec![IoKind::Write, IoKind::SetLen], io::ErrorKind::StorageFull),
        }
    }
}

/// How long each step of a node's storage engines takes. Clones are the same disk's.
#[derive(Clone)]
pub(super) struct Pace {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

struct State {
    least: Duration,
    mean: Duration,
    hung: bool,
    rng: SplitMix,
    harm: HarmCounts,
}

impl Pace {
    pub(super) fn new(seed: u64) -> Self {
        let state = State { least: LEAST, mean: MEAN, hung: false, rng: SplitMix(seed), harm: HarmCounts::default() };
        Pace { shared: Arc::new(Shared { state: Mutex::new(state), changed: watch::channel(0).0 }) }
    }

    pub(super) fn set(&self, least: Duration, mean: Duration) {
        let mut state = self.state();
        (state.least, state.mean) = (least, mean.max(least));
    }

    pub(super) fn hang(&self) {
        self.state().hung = true;
    }

    /// Lets whatever hangs go on, at the usual pace.
    pub(super) fn recover(&self) {
        self.set(LEAST, MEAN);
        self.state().hung = false;
        self.shared.changed.send_modify(|times| *times += 1);
    }

    /// What has been done to steps so far.
    pub(super) fn harm(&self) -> HarmCounts {
        self.state().harm.clone()
    }

    /// How the engines of a node on this disk are to be driven.
    pub(super) fn drive(&self) -> Drive {
        let pace = self.clone();
        Drive::Delayed(Arc::new(move || Box::pin(pace.clone().step())))
    }

    async fn step(self) {
        let mut changed = self.shared.changed.subscribe();
        if self.state().hung {
            self.state().harm.add(Harm::HungStep, 1);
        }
        while self.state().hung {
            changed.changed().await.expect("this disk holds the sender");
        }
        let delay = {
            let mut state = self.state();
            let State { least, mean, rng, harm, .. } = &mut *state;
            harm.add(Harm::SlowStep, u64::from((*least, *mean) != (LEAST, MEAN)));
            *least + exponential(rng, *mean - *least)
        };
        if !delay.is_zero() {
            rt::sleep(delay).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("no holder of the lock panics")
    }
}

/// The usual pace, about that of an ordinary solid-state disk with a sync in each step.
const LEAST: Duration = Duration::from_micros(200);
const MEAN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_step_takes_its_time_and_on_a_hung_disk_until_that_recovers() {
        let pace = Pace::new(1);
        let second = Duration::from_secs(1);
        pace.set(second, second);
        let start = rt::Instant::now();
        pace.clone().step().await;
        assert_eq!(start.elapsed(), second);
        pace.hang();
        let mut hung = Box::pin(pace.clone().step());
        rt::sleep(second * 60).await;
        assert!((&mut hung).now_or_never().is_none());
        pace.recover();
        hung.await;
        assert!(start.elapsed() < second * 62, "{:?}", start.elapsed());
        pace.clone().step().await;
        assert_eq!([Harm::SlowStep, Harm::HungStep].map(|harm| pace.harm().of(harm)), [1, 1]);
    }
}
