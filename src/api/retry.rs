//! How often, and for how long, something is tried that others keep coming in front of.

use std::time::Duration;

use crate::error::{Error, Obstacle};
use crate::rt::Instant;

/// How often the closure of a transaction or an update is run at the most, unless `attempts` says otherwise.
pub const TXN_ATTEMPTS: u32 = 1_000;
/// The most that `attempts` takes.
pub const TXN_ATTEMPTS_MAX: u32 = 100_000;

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Retry {
    /// The number of the one under way, from 1.
    attempt: u32,
    attempts: u32,
    started: Instant,
    timeout: Duration,
}

impl Retry {
    pub(crate) fn new(attempts: u32, timeout: Duration) -> Result<Self, Error> {
        if !(1..=TXN_ATTEMPTS_MAX).contains(&attempts) {
            let why = format!("it is {attempts}, but must be from 1 to {TXN_ATTEMPTS_MAX}");
            return Err(Error::Invalid { what: "attempts", why });
        }
        Ok(Retry { attempt: 0, attempts, started: Instant::now(), timeout })
    }

    /// Begins another attempt.
    ///
    /// # Errors
    /// [`Error::NotApplied`] if that was the last one, or time is up. The first one is always tried.
    pub(crate) fn again(&mut self) -> Result<(), Error> {
        if self.attempt == self.attempts || (self.attempt > 0 && self.left().is_zero()) {
            let why = Obstacle::Conflict { attempts: self.attempt };
            return Err(Error::NotApplied { why, waited: self.started.elapsed() });
        }
        self.attempt += 1;
        Ok(())
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How much of the time is left.
    pub(crate) fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.started.elapsed())
    }
}
