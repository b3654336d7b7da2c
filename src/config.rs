//! Every knob, with its unit, default and range, checked once before anything is opened.

use std::time::Duration;

use crate::error::StartError;

/// How fast the members of a cluster notice each other's silence.
///
/// The three durations are one setting: choose `election_min` for how long a cluster may be without a leader after one
/// dies (about `election_max` on average), and keep it well above the slowest ordinary fsync plus a round trip.
/// Every node of a cluster should use the same values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often the leader tells its followers that it lives. Default 200 ms; from 10 ms to a third of `election_min`.
    /// Above four thirds of the longest round trip: what is not answered within three quarters of it counts for nothing,
    /// and a leader that no quorum answers serves no reads.
    pub heartbeat: Duration,
    /// The shortest silence after which a follower asks for an election. Default 1 s.
    pub election_min: Duration,
    /// The longest such silence; each node draws its own between the two. Default 2 s; more than `election_min`.
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(1000),
            election_max: Duration::from_millis(2000),
        }
    }
}

impl Timing {
    /// For nodes in one process or one machine room with fast disks, and for tests: elections within about 300 ms.
    pub fn fast() -> Self {
        Timing {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(200),
            election_max: Duration::from_millis(400),
        }
    }

    /// How long one operation of the disk may be under way before a node takes its disk for hung, and does not lead any more:
    /// five times `election_max`, 5 s at the least. Far beyond a slow sync; a leader that waits longer keeps a cluster that
    /// could elect another from doing so.
    pub(crate) fn disk_stall(&self) -> Duration {
        (self.election_max * 5).max(Duration::from_secs(5))
    }

    fn check(&self) -> Result<(), StartError> {
        let wrong = |setting, value: Duration, rule: String| {
            Err(StartError::Config { setting, value: format!("{value:?}"), rule })
        };
        if self.heartbeat < Duration::from_millis(10) {
            return wrong("timing.heartbeat", self.heartbeat, "it must be at least 10ms".into());
        }
        if self.election_min < self.heartbeat * 3 {
            return wrong(
                "timing.election_min",
                self.election_min,
                format!("it must be at least 3 heartbeats of {:?}", self.heartbeat),
            );
        }
        if self.election_max <= self.election_min {
            return wrong(
                "timing.election_max",
                self.election_max,
                format!("it must be above election_min, {:?}", self.election_min),
            );
        }
        if self.election_max > Duration::from_secs(60) {
            return wrong("timing.election_max", self.election_max, "it must be at most 60s".into());
        }
        Ok(())
    }
}

/// Where a node's own tasks run.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    /// On a thread of the node's own (default): a busy host cannot starve heartbeats.
    #[default]
    Dedicated,
    /// On the runtime the builder is awaited on. For tests on a paused clock.
    Current,
}

/// Shorter than this, a watcher that is cut off for a moment could not go on where it was.
const HISTORY_AGE_MIN: Duration = Duration::from_secs(10);

/// Everything about one node that is not its name, its place or its peers.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) timing: Timing,
    pub(crate) runtime: Runtime,
    /// How long an operation tries before it gives up, unless the call says otherwise.
    pub(crate) timeout: Duration,
    /// Logical bytes of all reachable records beyond which growing writes are refused before they are proposed.
    pub(crate) quota_bytes: u64,
    /// Room on the disk below which growing writes are refused before they are proposed.
    pub(crate) disk_reserve: u64,
    /// Bytes proposed but not yet durable beyond which a leader takes no more (`Busy`).
    pub(crate) unflushed_bytes: u64,
    /// Revisions of history to keep below the newest.
    pub(crate) history_revisions: u64,
    /// Age beyond which even these are forgotten.
    pub(crate) history_age: Option<Duration>,
    /// Revisions kept in memory for watchers; who is further behind reads from the store.
    pub(crate) watch_revisions: usize,
    /// How long a client record outlives its process. Below this no write is forgotten while it is being retried.
    pub(crate) client_ttl: Duration,
    /// Whether the engines run on threads (production) or on tasks of the node's runtime (paused clocks).
    pub(crate) inline_storage: bool,
    pub(crate) retention: Retention,
    /// How the engines run instead, for tests that want disks to take time.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) drive: TestDrive,
}

/// How much of the log is kept behind the applied state.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Retention {
    /// Entries applied since the last snapshot after which the next one is taken. A snapshot here is a durable checkpoint
    /// and a few bytes, so the number bounds what a purge may leave behind, not work.
    pub(crate) snapshot_entries: u64,
    /// Entries kept behind a snapshot, so that a follower that was away catches up from the log. Large, so that installing
    /// a snapshot under load is rare (upstream issue 2116) and a short absence costs no state transfer.
    pub(crate) kept_entries: u64,
    /// Log bytes behind the last snapshot beyond which one is taken and the log is purged, whatever the number of entries.
    pub(crate) log_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { snapshot_entries: 50_000, kept_entries: 100_000, log_bytes: 512 << 20 }
    }
}

/// See [`Settings::drive`].
#[cfg(any(test, feature = "sim"))]
#[derive(Clone, Default)]
pub(crate) struct TestDrive(pub(crate) Option<crate::rt::worker::Drive>);

#[cfg(any(test, feature = "sim"))]
impl std::fmt::Debug for TestDrive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "set" } else { "unset" })
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            timing: Timing::default(),
            runtime: Runtime::default(),
            timeout: Duration::from_secs(10),
            quota_bytes: 2 << 30,
            disk_reserve: 256 << 20,
            unflushed_bytes: 64 << 20,
            history_revisions: 100_000,
            history_age: None,
            watch_revisions: 8192,
            client_ttl: Duration::from_secs(300),
            inline_storage: false,
            retention: Retention::default(),
            #[cfg(any(test, feature = "sim"))]
            drive: TestDrive::default(),
        }
    }
}

impl Settings {
    pub(crate) fn check(&self) -> Result<(), StartError> {
        self.timing.check()?;
        let at_least = |setting, value: Duration, least: Duration| {
            let rule = format!("it must be at least {least:?}");
            if value < least { Err(StartError::Config { setting, value: format!("{value:?}"), rule }) } else { Ok(()) }
        };
        at_least("timeout", self.timeout, Duration::from_millis(1))?;
        if let Some(age) = self.history_age {
            at_least("history_age", age, HISTORY_AGE_MIN)?;
        }
        if self.history_revisions < 1000 {
            let rule = "it must be at least 1000 revisions".into();
            return Err(StartError::Config { setting: "history", value: self.history_revisions.to_string(), rule });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_do_not_go_together_are_named_with_the_rule() {
        let ms = Duration::from_millis;
        let timing =
            |heartbeat, min, max| Timing { heartbeat: ms(heartbeat), election_min: ms(min), election_max: ms(max) };
        let wrong = |setting: &str, change: &dyn Fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            let refused = settings.check();
            let named = matches!(&refused, Err(StartError::Config { setting: named, .. }) if *named == setting);
            assert!(named, "{setting}: {refused:?}");
        };
        wrong("timing.heartbeat", &|settings| settings.timing = timing(9, 100, 200));
        wrong("timing.election_min", &|settings| settings.timing = timing(50, 149, 300));
        wrong("timing.election_max", &|settings| settings.timing = timing(50, 150, 150));
        wrong("timing.election_max", &|settings| settings.timing = timing(50, 150, 60_001));
        wrong("timeout", &|settings| settings.timeout = Duration::ZERO);
        wrong("history", &|settings| settings.history_revisions = 999);
        wrong("history_age", &|settings| settings.history_age = Some(ms(9_999)));
        let edge = Settings {
            timing: timing(10, 30, 31),
            timeout: ms(1),
            history_revisions: 1000,
            history_age: Some(ms(10_000)),
            ..Settings::default()
        };
        assert!(edge.check().is_ok() && Settings::default().check().is_ok());
        Timing::fast().check().expect("what is offered is right");
    }
}
