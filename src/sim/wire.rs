//! What the way from one node to another does to the frames that travel it.

use std::time::Duration;

use crate::storage::fault_disk::SplitMix;

/// The way from one node to another, in one direction: how long frames take, and what happens to them.
///
/// Requests and answers travel different wires and suffer each by itself. Chances are from 0 to 1; what is outside counts
/// as the nearer end. The default takes a millisecond on average, half of it at least, and harms nothing.
///
/// ```
/// use std::time::Duration;
/// use quorate::sim::Wire;
///
/// let radio = Wire::default()
///     .latency(Duration::from_millis(20), Duration::from_millis(80))
///     .loss(0.1)
///     .duplication(0.02);
/// assert_ne!(radio, Wire::default());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Wire {
    least: Duration,
    mean: Duration,
    loss: f64,
    duplication: f64,
    corruption: f64,
    lateness: f64,
    late_max: Duration,
    in_order: bool,
}

impl Default for Wire {
    fn default() -> Self {
        Wire {
            least: Duration::from_micros(500),
            mean: Duration::from_millis(1),
            loss: 0.0,
            duplication: 0.0,
            corruption: 0.0,
            lateness: 0.0,
            late_max: Duration::ZERO,
            in_order: false,
        }
    }
}

impl Wire {
    /// A wire that takes no time.
    pub(crate) fn instant() -> Self {
        Wire::default().latency(Duration::ZERO, Duration::ZERO)
    }

    /// Lets each frame travel for `least`, and for a time of its own above that whose distribution is about exponential, so
    /// that all take `mean` on average (a `mean` below `least` counts as `least`). Default 0.5 ms and 1 ms.
    pub fn latency(mut self, least: Duration, mean: Duration) -> Self {
        (self.least, self.mean) = (least, mean.max(least));
        self
    }

    /// Loses a frame with this chance: its sender hears nothing until its timeout. Default 0.
    pub fn loss(mut self, chance: f64) -> Self {
        self.loss = chance;
        self
    }

    /// Delivers a frame twice with this chance, each copy with a latency of its own. Default 0.
    pub fn duplication(mut self, chance: f64) -> Self {
        self.duplication = chance;
        self
    }

    /// Flips one bit of a frame with this chance. Default 0.
    pub fn corruption(mut self, chance: f64) -> Self {
        self.corruption = chance;
        self
    }

    /// Delivers a frame with this chance only after a time up to `at_most`: minutes later, if that is what it says, when its
    /// sender has long given it up. Default never.
    pub fn lateness(mut self, chance: f64, at_most: Duration) -> Self {
        (self.lateness, self.late_max) = (chance, at_most);
        self
    }

    /// Lets frames of one lane arrive in the order in which they were sent, as over one connection; late ones excepted. By
    /// default each takes its own time, and they overtake each other.
    pub fn in_order(mut self) -> Self {
        self.in_order = true;
        self
    }

    pub(super) fn is_in_order(&self) -> bool {
        self.in_order
    }

    /// What becomes of one frame: the copies that set out. None: it is lost.
    pub(super) fn draw(&self, rng: &mut SplitMix) -> Vec<Passage> {
        let mut copies = Vec::new();
        if !hits(rng, self.loss) {
            copies.push(self.copy(rng));
        }
        if hits(rng, self.duplication) {
            copies.push(self.copy(rng));
        }
        copies
    }

    fn copy(&self, rng: &mut SplitMix) -> Passage {
        let late = hits(rng, self.lateness);
        let delay = match late {
            true => uniform(rng, self.late_max),
            false => self.least + exponential(rng, self.mean - self.least),
        };
        let flip = hits(rng, self.corruption).then(|| rng.next());
        Passage { delay, late, flip, muted: false }
    }
}

/// One frame under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passage {
    pub(crate) delay: Duration,
    /// It waits for nobody and nobody waits for it, whatever the wire says of order.
    pub(crate) late: bool,
    /// The bit that arrives flipped, modulo the frame's length.
    pub(crate) flip: Option<u64>,
    /// Its answer is lost.
    pub(crate) muted: bool,
}

/// Whether something with this chance happens.
pub(super) fn hits(rng: &mut SplitMix, chance: f64) -> bool {
    // 53 bits are what a double holds exactly.
    let drawn = (rng.next() >> 11) as f64 / (1u64 << 53) as f64;
    drawn < chance
}

pub(super) fn uniform(rng: &mut SplitMix, at_most: Duration) -> Duration {
    nanos((u128::from(rng.next()) * at_most.as_nanos()) >> 64)
}

/// About exponential around `mean`, at most 45 times as long.
///
/// The logarithm is drawn piece by piece with straight lines between powers of two: the same on every machine, which the
/// floating point one does not promise.
pub(super) fn exponential(rng: &mut SplitMix, mean: Duration) -> Duration {
    let drawn = rng.next() | 1;
    let zeros = drawn.leading_zeros();
    // -log2(drawn / 2^64), as a whole part and a fraction of 32 bits. Shifted in two steps: there may be 63 zeros.
    let fraction = ((drawn << zeros) << 1) >> 32;
    let log2 = (u128::from(zeros + 1) << 32) - u128::from(fraction);
    // The straight lines' mean is 1.5 on the interval [0, 1), and doubles are half as likely each time: 1.5 in all.
    nanos((mean.as_nanos() * log2 * 2 / 3) >> 32)
}

fn nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn latencies_are_never_below_the_least_and_take_the_mean_on_average() {
        let (wire, mut rng) = (Wire::default().latency(MS * 2, MS * 10), SplitMix(1));
        let drawn: Vec<Duration> = (0..10_000).map(|_| wire.draw(&mut rng)[0].delay).collect();
        let mean = drawn.iter().sum::<Duration>() / 10_000;
        assert!(drawn.iter().all(|delay| *delay >= MS * 2));
        assert!((MS * 19 / 2..MS * 21 / 2).contains(&mean), "{mean:?}");
        // About one in 150 takes five times as long as the others' mean.
        let long = drawn.iter().filter(|delay| **delay > MS * 42).count();
        assert!((30..200).contains(&long), "{long}");
        assert_eq!(Wire::default().latency(MS * 5, MS).draw(&mut rng)[0].delay, MS * 5);
    }

    #[test]
    fn each_fault_strikes_as_often_as_it_says_and_a_wire_without_faults_harms_nothing() {
        let (mut rng, clean) = (SplitMix(2), Wire::default());
        let count = |wire: &Wire, rng: &mut SplitMix, struck: fn(&[Passage]) -> bool| {
            (0..10_000).filter(|_| struck(&wire.draw(rng))).count()
        };
        let harmed: fn(&[Passage]) -> bool = |copies| !matches!(copies, [Passage { late: false, flip: None, .. }]);
        assert_eq!(count(&clean, &mut rng, harmed), 0);
        let about = 1700..2300;
        assert!(about.contains(&count(&clean.clone().loss(0.2), &mut rng, |copies| copies.is_empty())));
        assert!(about.contains(&count(&clean.clone().duplication(0.2), &mut rng, |copies| copies.len() == 2)));
        assert!(about.contains(&count(&clean.clone().corruption(0.2), &mut rng, |copies| copies[0].flip.is_some())));
        let minute = Duration::from_secs(60);
        let late = clean.clone().lateness(0.2, minute);
        assert!(about.contains(&count(&late, &mut rng, |copies| copies[0].late)));
        assert_eq!(count(&late, &mut rng, |copies| copies[0].delay > Duration::from_secs(60)), 0);
        assert_eq!(count(&clean.clone().loss(1.0), &mut rng, |copies| copies.is_empty()), 10_000);
    }
}
