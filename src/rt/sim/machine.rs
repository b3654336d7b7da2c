//! The clocks of one simulated machine.
//!
//! All three run at one rate, since they count the same crystal. The monotonic one stands still while the machine is
//! suspended; the other two do not, and can be set. They outlive the processes of the machine.

use std::time::Duration;

/// What to change about a machine's clocks; the default changes nothing.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SetClock {
    /// How much faster than the world's time the clocks run from now on, in millionths; at least -900 000.
    pub(crate) drift_ppm: Option<i32>,
    /// The clock that counts suspend is moved forward by this: the machine slept, and nobody noticed.
    pub(crate) boot_jump: Duration,
    /// The wall clock is moved by this many milliseconds.
    pub(crate) wall_jump_ms: i64,
}

/// All times are nanoseconds; `at` is of the world's clock.
#[derive(Clone, Debug)]
pub(super) struct Clocks {
    /// When the rest was last settled.
    at: u128,
    monotonic: u128,
    boot: u128,
    wall: i128,
    /// Millionths of the world's rate.
    rate: u128,
    suspended: bool,
}

impl Clocks {
    /// The clocks of a machine that is switched on now. Booted for `boot` already, so that subtraction does not meet zero.
    pub(super) fn new(now: Duration, boot: Duration) -> Self {
        Clocks {
            at: now.as_nanos(),
            monotonic: now.as_nanos(),
            boot: boot.as_nanos(),
            wall: (WALL_START + now).as_nanos() as i128,
            rate: MILLION,
            suspended: false,
        }
    }

    pub(super) fn monotonic(&self, now: Duration) -> Duration {
        let passed = if self.suspended { 0 } else { self.passed(now) };
        nanos(self.monotonic + passed)
    }

    pub(super) fn boot(&self, now: Duration) -> Duration {
        nanos(self.boot + self.passed(now))
    }

    pub(super) fn wall_ms(&self, now: Duration) -> u64 {
        u64::try_from((self.wall + self.passed(now) as i128) / 1_000_000).unwrap_or(0)
    }

    /// When, on the world's clock, the monotonic clock will first show `monotonic`, if nothing changes until then;
    /// `None` while it stands still.
    pub(super) fn when(&self, monotonic: Duration, now: Duration) -> Option<Duration> {
        let left = monotonic.as_nanos().saturating_sub(self.monotonic);
        if left == 0 || self.monotonic(now) >= monotonic {
            return Some(now);
        }
        (!self.suspended).then(|| nanos(self.at + (left * MILLION).div_ceil(self.rate)))
    }

    pub(super) fn set(&mut self, now: Duration, change: SetClock) {
        self.settle(now);
        if let Some(ppm) = change.drift_ppm {
            self.rate = (MILLION as i128 + i128::from(ppm)).max(100_000) as u128;
        }
        self.boot += change.boot_jump.as_nanos();
        self.wall += i128::from(change.wall_jump_ms) * 1_000_000;
    }

    pub(super) fn suspend(&mut self, now: Duration, suspended: bool) {
        self.settle(now);
        self.suspended = suspended;
    }

    fn settle(&mut self, now: Duration) {
        let passed = self.passed(now);
        self.monotonic += if self.suspended { 0 } else { passed };
        self.boot += passed;
        self.wall += passed as i128;
        self.at = now.as_nanos();
    }

    fn passed(&self, now: Duration) -> u128 {
        now.as_nanos().saturating_sub(self.at) * self.rate / MILLION
    }
}

fn nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

const MILLION: u128 = 1_000_000;

/// 2030-01-01: recognizable, and the same in every run.
const WALL_START: Duration = Duration::from_secs(1_893_456_000);
