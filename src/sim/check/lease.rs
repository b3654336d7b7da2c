//! The lease oracle: bounds from both sides.
//!
//! A lease must not end by itself too early (L1), must end (L2), must stay ended (L3), and nobody may believe in it for
//! too long (L8). Times are true ones; the clocks of the processes may run faster or slower by a bounded rate.

use serde::{Deserialize, Serialize};

use super::violation::{Millis, Property, Violation};
use crate::types::LeaseId;

/// The life of one lease. All times are nanoseconds on one true clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The lease.
    pub lease: LeaseId,
    /// Its time to live, in milliseconds.
    pub ttl_ms: u64,
    /// The grant, and every attempt to renew it.
    pub renewals: Vec<Renewal>,
    /// What its holder believed.
    #[serde(default)]
    pub beliefs: Vec<Belief>,
    /// How it ended, if it did.
    #[serde(default)]
    pub end: Option<LeaseEnd>,
    /// Until when it was looked at.
    pub observed_ns: u64,
}

/// One attempt to make a lease last.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// Before it was sent.
    pub invoked_ns: u64,
    /// When its answer came, or it was given up.
    pub returned_ns: u64,
    /// What came of it.
    pub answer: RenewalAnswer,
}

/// What came of a renewal.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RenewalAnswer {
    /// It was acknowledged.
    Alive,
    /// The lease is said to be gone.
    Gone,
    /// Nothing is known.
    Unknown,
}

/// The holder was sure, at this moment, that the lease lasts this much longer on its own clock.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Belief {
    /// When it was asked.
    pub at_ns: u64,
    /// Its answer.
    pub valid_for_ns: u64,
}

/// How a lease ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseEnd {
    /// When the first node applied it.
    pub applied_ns: u64,
    /// Whether it ended by itself, and nobody revoked it.
    pub expired: bool,
}

/// How leases are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseCheck {
    drift_ppm: u64,
    slack_ns: Option<u64>,
    disturbed_ns: Vec<u64>,
}

impl Default for LeaseCheck {
    fn default() -> Self {
        LeaseCheck { drift_ppm: 10_000, slack_ns: None, disturbed_ns: Vec::new() }
    }
}

impl LeaseCheck {
    /// Clocks that run wrong by at most one percent, and no upper bound.
    pub fn new() -> Self {
        LeaseCheck::default()
    }

    /// The rate by which clocks may be wrong, in millionths. Default 10 000: one percent.
    pub fn drift_ppm(mut self, ppm: u64) -> Self {
        self.drift_ppm = ppm;
        self
    }

    /// Also asks that leases end (L2): at most `slack_ns` late while nothing disturbs the cluster. Each moment of
    /// `disturbed_ns` (a new leader, a quorum that is back) may give every lease a whole time to live from there.
    pub fn ends_within(mut self, slack_ns: u64, mut disturbed_ns: Vec<u64>) -> Self {
        disturbed_ns.sort_unstable();
        (self.slack_ns, self.disturbed_ns) = (Some(slack_ns), disturbed_ns);
        self
    }

    /// Every broken promise that is found.
    pub fn check(&self, record: &LeaseRecord) -> Vec<Violation> {
        let early = record.end.filter(|end| end.expired).into_iter().flat_map(|end| self.too_early(record, end));
        early.chain(self.reported_gone(record)).chain(self.resurrected(record)).chain(self.too_late(record)).collect()
    }

    /// L1 and L8: an expiry before somebody may count on it.
    fn too_early(&self, record: &LeaseRecord, end: LeaseEnd) -> Vec<Violation> {
        let ttl = record.ttl_ms * 1_000_000;
        let sent_before =
            |renewal: &&Renewal| renewal.answer == RenewalAnswer::Alive && renewal.invoked_ns <= end.applied_ns;
        let renewals = record.renewals.iter().filter(sent_before).filter_map(|renewal| {
            let until = renewal.invoked_ns + self.at_least(ttl);
            let what = format!("it expired {} before its time", Millis(until.checked_sub(end.applied_ns)?));
            (until > end.applied_ns).then(|| violation(record, Property::L1, &what).with(renewal))
        });
        let beliefs = record.beliefs.iter().filter(|belief| belief.valid_for_ns > 0).filter_map(|belief| {
            let until = belief.at_ns + self.at_least(belief.valid_for_ns);
            let what = format!("its holder counted on it for {} more", Millis(until.checked_sub(end.applied_ns)?));
            (until > end.applied_ns).then(|| violation(record, Property::L8, &what).with(belief))
        });
        renewals.chain(beliefs).collect()
    }

    /// L1: it is said to be gone while it is there.
    fn reported_gone<'a>(&self, record: &'a LeaseRecord) -> impl Iterator<Item = Violation> + use<'a> {
        let gone = record.renewals.iter().filter(|renewal| renewal.answer == RenewalAnswer::Gone);
        let there = move |renewal: &&Renewal| record.end.is_none_or(|end| renewal.returned_ns < end.applied_ns);
        gone.filter(there)
            .map(|renewal| violation(record, Property::L1, "it was said to be gone and was there").with(renewal))
    }

    /// L3: it is renewed after it ended.
    fn resurrected<'a>(&self, record: &'a LeaseRecord) -> impl Iterator<Item = Violation> + use<'a> {
        let ended = record.end.map_or(u64::MAX, |end| end.applied_ns);
        let after = move |renewal: &&Renewal| renewal.answer == RenewalAnswer::Alive && renewal.invoked_ns > ended;
        record
            .renewals
            .iter()
            .filter(after)
            .map(|renewal| violation(record, Property::L3, "it was renewed after it had ended").with(renewal))
    }

    /// L2: it lasts although nobody renews it.
    fn too_late(&self, record: &LeaseRecord) -> Option<Violation> {
        let slack = self.slack_ns?;
        let last = record.renewals.iter().map(|renewal| renewal.returned_ns).max()?;
        let ttl = self.at_most(record.ttl_ms * 1_000_000);
        let mut deadline = last + ttl + slack;
        for moment in self.disturbed_ns.iter().filter(|moment| **moment >= last) {
            if *moment <= deadline {
                deadline = deadline.max(moment + ttl + slack);
            }
        }
        let lasted = record.end.map_or(record.observed_ns, |end| end.applied_ns);
        let what = format!("it lasted {} too long", Millis(lasted.checked_sub(deadline)?));
        (lasted > deadline).then(|| violation(record, Property::L2, &what))
    }

    /// A time on a clock that runs too fast, in true time.
    fn at_least(&self, ns: u64) -> u64 {
        ns - self.share(ns)
    }

    fn at_most(&self, ns: u64) -> u64 {
        ns + self.share(ns)
    }

    fn share(&self, ns: u64) -> u64 {
        u64::try_from(u128::from(ns) * u128::from(self.drift_ppm) / 1_000_000).expect("a share of it")
    }
}

fn violation(record: &LeaseRecord, property: Property, what: &str) -> Violation {
    let LeaseRecord { lease, ttl_ms, end, .. } = record;
    let end = match end {
        Some(LeaseEnd { applied_ns, expired: true }) => format!("expired at {}", Millis(*applied_ns)),
        Some(LeaseEnd { applied_ns, expired: false }) => format!("revoked at {}", Millis(*applied_ns)),
        None => "never ended".to_owned(),
    };
    Violation::new(property, format!("lease {lease} (ttl {ttl_ms} ms, {end}): {what}"))
}

impl std::fmt::Display for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "renewal [{}..{}] -> {:?}", Millis(self.invoked_ns), Millis(self.returned_ns), self.answer)
    }
}

impl std::fmt::Display for Belief {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {} valid for {}", Millis(self.at_ns), Millis(self.valid_for_ns))
    }
}
