//! Three clocks: one for timeouts, one for leases, one for people.
//!
//! * [`Instant`] is monotonic and stands still while the machine is suspended. Timeouts and elections use it.
//! * [`boot_now`] is monotonic and counts suspend. Leases and sessions use it: a laptop that slept through its lease must
//!   not wake up believing that it holds it.
//! * [`wall_ms`] can jump in both directions. It is written into records to be shown, and decides nothing.
//!
//! All timers are tokio's. Under a clock that a test has paused, the first two follow the test's clock. In a simulated
//! process all three are its machine's.

use std::future::Future;
use std::ops::{Add, AddAssign, Sub};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::scope;

/// A moment on the monotonic clock.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Instant(tokio::time::Instant);

impl Instant {
    pub(crate) fn now() -> Self {
        Instant(scope::now())
    }

    /// How long ago this was; zero if it is still to come.
    pub(crate) fn elapsed(self) -> Duration {
        Self::now() - self
    }

    pub(super) fn into_tokio(self) -> tokio::time::Instant {
        self.0
    }

    pub(super) fn from_tokio(instant: tokio::time::Instant) -> Self {
        Instant(instant)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// Durations come from callers, and `Duration::MAX` is how one writes "for ever": what lies beyond [`FOREVER`] is
    /// moved there instead of overflowing.
    fn add(self, duration: Duration) -> Instant {
        Instant(self.0 + duration.min(FOREVER))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub for Instant {
    type Output = Duration;

    /// How long after `earlier` this is; zero if it is before.
    fn sub(self, earlier: Instant) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

/// The farthest a deadline is set: thirty years, which is also how far tokio sets a timer without end.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Waits for `duration`, rounded up to the next millisecond. Dropping it is safe at any time.
pub(crate) fn sleep(duration: Duration) -> impl Future<Output = ()> + Send {
    scope::sleep(duration)
}

/// Waits until `deadline`; returns at once if it has passed. Dropping it is safe at any time.
pub(crate) fn sleep_until(deadline: Instant) -> impl Future<Output = ()> + Send {
    scope::sleep_until(deadline.0)
}

/// The future was not done in time. It has been dropped.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time is up")]
pub(crate) struct Elapsed;

/// Runs `future` for `duration` at most, and drops it then. A future that is ready in its last moment wins.
pub(crate) async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    scope::timeout(duration, future).await.map_err(|_| Elapsed)
}

/// Runs `future` until `deadline` at most, and drops it then. A future that is ready in its last moment wins.
pub(crate) async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    scope::timeout_at(deadline.0, future).await.map_err(|_| Elapsed)
}

/// The time since the machine was started, suspend included. Callable from any thread, in or out of a runtime.
///
/// Linux, Android, Fuchsia and OpenBSD have `CLOCK_BOOTTIME`. Elsewhere this is the system's monotonic clock: macOS keeps
/// that one running through sleep, the other BSDs and illumos do not promise it, and Windows counts from the process's
/// first call with a counter that in practice keeps running through sleep.
///
/// # Under a paused clock
///
/// tokio does not say whether its clock is paused, but it shows: an unpaused [`tokio::time::Instant::now`] lies between
/// the two readings of the system's clock taken before and after it, and a paused one does not (should the test's clock be
/// passing through the present at that very moment, both rules give the same answer). Between the two, this is exactly
/// the system's clock. Otherwise it is the point of the boot clock to which the test's clock has been moved, so that it
/// advances as the test's does and not by itself; suspend does not exist there.
pub(crate) fn boot_now() -> Duration {
    if let Some(simulated) = scope::boot_now() {
        return simulated;
    }
    let epoch = *EPOCH.get_or_init(Epoch::take);
    let before = std::time::Instant::now();
    let tokio = tokio::time::Instant::now().into_std();
    let after = std::time::Instant::now();
    if before <= tokio && tokio <= after { system_boot_time() } else { epoch.boot_time_at(tokio) }
}

/// One moment, read from the monotonic and from the boot clock.
#[derive(Copy, Clone)]
struct Epoch {
    monotonic: std::time::Instant,
    boot: Duration,
}

static EPOCH: OnceLock<Epoch> = OnceLock::new();

impl Epoch {
    fn take() -> Self {
        Epoch { monotonic: std::time::Instant::now(), boot: system_boot_time() }
    }

    fn boot_time_at(self, monotonic: std::time::Instant) -> Duration {
        match monotonic.checked_duration_since(self.monotonic) {
            Some(later) => self.boot + later,
            None => self.boot.saturating_sub(self.monotonic - monotonic),
        }
    }
}

#[cfg(unix)]
fn system_boot_time() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "fuchsia", target_os = "openbsd"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "fuchsia", target_os = "openbsd")))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    Duration::try_from(rustix::time::clock_gettime(CLOCK)).expect("time since boot is not negative")
}

#[cfg(not(unix))]
fn system_boot_time() -> Duration {
    static FIRST: OnceLock<std::time::Instant> = OnceLock::new();
    FIRST.get_or_init(std::time::Instant::now).elapsed()
}

/// Milliseconds since 1970 by the wall clock; zero before that. For display only.
pub(crate) fn wall_ms() -> u64 {
    if let Some(simulated) = scope::wall_ms() {
        return simulated;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A time of the wall clock, as hosts know it.
pub type WallTime = SystemTime;

/// What [`wall_ms`] returned, for people.
pub(crate) fn wall_time(ms: u64) -> WallTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn under_a_paused_clock_boot_time_moves_with_it_to_the_nanosecond_and_not_by_itself() {
        let start = boot_now();
        for _ in 0..1000 {
            assert_eq!(boot_now(), start);
        }
        tokio::time::advance(HOUR).await;
        assert_eq!(boot_now() - start, HOUR);
        let before = (Instant::now(), boot_now());
        sleep(Duration::from_millis(1500)).await;
        assert_eq!(boot_now() - before.1, Instant::now() - before.0);
    }

    #[tokio::test]
    async fn boot_time_does_not_jump_when_the_clock_is_paused_and_does_not_go_back_when_it_runs_again() {
        let running = boot_now();
        tokio::time::pause();
        let paused = boot_now();
        // The two readings that make the epoch are not of the same instant; a microsecond or so is what that costs; the rest
        // of the minute is for a machine that does something else in between.
        let drift = paused.abs_diff(running);
        assert!(drift < Duration::from_secs(60), "{running:?} then {paused:?}");
        tokio::time::advance(HOUR).await;
        tokio::time::resume();
        let resumed = boot_now();
        assert!(resumed >= paused + HOUR, "{paused:?} then {resumed:?}");
    }

    #[test]
    fn outside_a_runtime_boot_time_is_the_systems_and_never_goes_back() {
        let mut last = boot_now();
        for _ in 0..10_000 {
            let (floor, now, ceiling) = (system_boot_time(), boot_now(), system_boot_time());
            assert!(last <= now && floor <= now && now <= ceiling, "{last:?} {floor:?} {now:?} {ceiling:?}");
            last = now;
        }
    }

    #[test]
    fn a_moment_before_the_epoch_is_reckoned_backwards_and_not_below_zero() {
        let monotonic = std::time::Instant::now() + HOUR;
        let epoch = Epoch { monotonic, boot: Duration::from_secs(10) };
        assert_eq!(epoch.boot_time_at(monotonic - Duration::from_secs(4)), Duration::from_secs(6));
        assert_eq!(epoch.boot_time_at(monotonic - Duration::from_secs(40)), Duration::ZERO);
        assert_eq!(epoch.boot_time_at(monotonic + HOUR), Duration::from_secs(10) + HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_drops_what_is_late_and_keeps_what_is_ready() {
        let start = Instant::now();
        let late = timeout(Duration::from_millis(20), std::future::pending::<()>()).await;
        assert_eq!((late, start.elapsed()), (Err(Elapsed), Duration::from_millis(20)));
        assert_eq!(timeout(Duration::ZERO, std::future::ready(7)).await, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_duration_without_end_is_a_deadline_and_not_an_overflow() {
        let now = Instant::now();
        let never = now + Duration::MAX;
        assert_eq!(never - now, FOREVER);
        assert_eq!(now - never, Duration::ZERO);
        assert_eq!(timeout(HOUR, sleep_until(never)).await, Err(Elapsed));
        assert_eq!(timeout(HOUR, sleep(Duration::MAX)).await, Err(Elapsed));
    }

    #[test]
    fn the_wall_clock_counts_from_1970() {
        // 2024-01-01 and 2200-01-01: a unit mistaken by a thousand falls outside.
        let now = wall_ms();
        assert!((1_704_067_200_000..7_258_118_400_000).contains(&now), "{now}");
    }
}
