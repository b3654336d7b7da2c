//! The lock oracle: exclusion as the holders see it, and as the state has it.
//!
//! What holders believe is held against each other in true time. What they hold is held against the claims in the
//! [`CommitLog`]: a claim is a key under the lock's prefix, its fence is the revision that created it, and the holder is
//! the oldest claim that stands.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::log::{Commit, CommitLog, Kind};
use super::op::Span;
use super::violation::{Millis, Property, Violation};
use crate::types::{Fence, Revision};

/// Everything that happened around one lock. All times are nanoseconds on one true clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRecord {
    /// The lock's name.
    pub name: String,
    /// Every guard that was handed out.
    pub holds: Vec<Hold>,
    /// Every write with a fence whose outcome is known.
    #[serde(default)]
    pub writes: Vec<FencedWrite>,
    /// Fences of claims that somebody deleted on purpose.
    #[serde(default)]
    pub deleted: Vec<Fence>,
}

/// One guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Whose it is.
    pub client: u64,
    /// Its token.
    pub fence: Fence,
    /// When it was handed out.
    pub granted_ns: u64,
    /// When its holder stopped believing in it: before it sent the release, when it was told of the loss, or when its
    /// process died. `None`: it believes to this day.
    pub ended_ns: Option<u64>,
    /// Whether it was told of a loss.
    #[serde(default)]
    pub lost: bool,
}

/// One write that was to take place only while a claim stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencedWrite {
    /// The claim's token.
    pub fence: Fence,
    /// The revision it made; if it was refused, that at which it was.
    pub revision: Revision,
    /// Whether it took place.
    pub applied: bool,
}

impl LockRecord {
    /// Holds what the holders believed against each other: K1, K2, K5, K6.
    pub fn check(&self) -> Vec<Violation> {
        let mut holds: Vec<&Hold> = self.holds.iter().collect();
        holds.sort_by_key(|hold| hold.granted_ns);
        let mut violations = Vec::new();
        let mut longest: Option<&Hold> = None;
        for hold in &holds {
            if let Some(other) =
                longest.filter(|other| other.ends() > hold.granted_ns && hold.ends() > other.granted_ns)
            {
                // Who was told too late is another matter than who was not told at all.
                let property = if other.lost { Property::K5 } else { Property::K1 };
                violations.push(self.violation(property, "two hold it at a time").with(other).with(hold));
            }
            longest = longest.into_iter().chain([*hold]).max_by_key(|hold| hold.ends());
        }
        for pair in holds.windows(2).filter(|pair| pair[0].fence >= pair[1].fence) {
            let violation = self.violation(Property::K2, "a later holder has no greater fence");
            violations.push(violation.with(pair[0]).with(pair[1]));
        }
        let mut applied: Vec<&FencedWrite> = self.writes.iter().filter(|write| write.applied).collect();
        applied.sort_by_key(|write| write.revision);
        for pair in applied.windows(2).filter(|pair| pair[0].fence > pair[1].fence) {
            let violation = self.violation(Property::K6, "a write of an earlier holder came after that of a later one");
            violations.push(violation.with(pair[0]).with(pair[1]));
        }
        violations
    }

    /// Holds everything against the claims of the lock, which are the keys in `claims`: also K3, K4, K7.
    ///
    /// What depends on when a claim was deleted is looked at where the log has the time.
    pub fn check_with(&self, log: &CommitLog, claims: &Span) -> Vec<Violation> {
        let claims = Claim::all(log, claims);
        let mut violations = self.check();
        violations.extend(self.holds.iter().flat_map(|hold| self.check_hold(hold, &claims)));
        violations.extend(self.writes.iter().filter_map(|write| self.check_write(write, &claims)));
        violations
    }

    fn check_hold(&self, hold: &Hold, claims: &[Claim<'_>]) -> Vec<Violation> {
        let mut violations = Vec::new();
        let mut violated = |property, what: &str, commit: Option<&Commit>| {
            let violation = self.violation(property, what).with(hold);
            violations.push(commit.into_iter().fold(violation, |violation, commit| violation.with(commit)));
        };
        let fence = hold.fence.revision();
        let Some(claim) = claims.iter().find(|claim| claim.created == fence) else {
            violated(Property::K3, "no claim has this fence", None);
            return violations;
        };
        for earlier in claims.iter().filter(|earlier| earlier.created < fence) {
            if earlier.gone_at() >= claim.gone_at() {
                violated(
                    Property::K7,
                    "an earlier claim stood as long as its own: it was never the first",
                    earlier.gone,
                );
            } else if earlier.gone.and_then(|gone| gone.applied_ns).is_some_and(|gone| gone > hold.granted_ns) {
                violated(Property::K7, "it was granted while an earlier claim stood", earlier.gone);
            }
        }
        let gone_ns = claim.gone.and_then(|gone| Some((gone, gone.applied_ns?)));
        match gone_ns {
            Some((gone, at)) if claim.expired && hold.granted_ns >= at => {
                violated(Property::K3, "it was granted after its lease had expired", Some(gone));
            }
            Some((gone, at)) if claim.expired && hold.ends() > at => {
                violated(Property::K5, "its lease had expired before its holder stopped believing in it", Some(gone));
            }
            Some((gone, at)) if !claim.expired && hold.ends() > at && !self.deleted.contains(&hold.fence) => {
                violated(Property::K4, "its claim was deleted, and not by its holder", Some(gone));
            }
            _ => {}
        }
        violations
    }

    fn check_write(&self, write: &FencedWrite, claims: &[Claim<'_>]) -> Option<Violation> {
        let Some(claim) = claims.iter().find(|claim| claim.created == write.fence.revision()) else {
            return write.applied.then(|| self.violation(Property::K6, "a write with a fence of no claim").with(write));
        };
        let stood = |at: u64| claim.created.get() <= at && at < claim.gone_at();
        let what = match write.applied {
            true if !stood(write.revision.get() - 1) => "a write took place although its claim did not stand",
            false if stood(write.revision.get()) => "a write was refused although its claim stood",
            _ => return None,
        };
        let violation = self.violation(Property::K6, what).with(write);
        Some(claim.gone.into_iter().fold(violation, |violation, gone| violation.with(gone)))
    }

    fn violation(&self, property: Property, what: &str) -> Violation {
        Violation::new(property, format!("lock {:?}: {what}", self.name))
    }
}

impl Hold {
    fn ends(&self) -> u64 {
        self.ended_ns.unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{} fence {} held [{}..", self.client, self.fence, Millis(self.granted_ns))?;
        match self.ended_ns {
            Some(ended) => write!(f, "{}] {}", Millis(ended), if self.lost { "lost" } else { "given up" }),
            None => f.write_str("]"),
        }
    }
}

impl fmt::Display for FencedWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.applied { "applied" } else { "refused" };
        write!(f, "write with fence {} {what} @{}", self.fence, self.revision)
    }
}

/// A claim as the state had it.
struct Claim<'a> {
    created: Revision,
    /// What deleted it.
    gone: Option<&'a Commit>,
    expired: bool,
}

impl<'a> Claim<'a> {
    fn all(log: &'a CommitLog, keys: &Span) -> Vec<Self> {
        let mut claims: Vec<(&str, Claim<'a>)> = Vec::new();
        for commit in &log.commits {
            for change in commit.changes.iter().filter(|change| keys.contains(&change.key)) {
                match &change.now {
                    // Written again, it is the claim it was.
                    Some(now) if now.created < commit.revision => {}
                    Some(now) => {
                        claims.push((&change.key, Claim { created: now.created, gone: None, expired: false }));
                    }
                    None => {
                        let open =
                            claims.iter_mut().rev().find(|(key, claim)| *key == change.key && claim.gone.is_none());
                        if let Some((_, claim)) = open {
                            (claim.gone, claim.expired) = (Some(commit), change.kind == Kind::Expired);
                        }
                    }
                }
            }
        }
        claims.into_iter().map(|(_, claim)| claim).collect()
    }

    /// The revision that deleted it.
    fn gone_at(&self) -> u64 {
        self.gone.map_or(u64::MAX, |gone| gone.revision.get())
    }
}
