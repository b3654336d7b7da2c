//! Who made which commit.
//!
//! A write that was acknowledged names its revision. One whose outcome is not known is found by its ticket, or by the
//! values it put if nobody else puts the same, or (a delete) by what it would have done at that revision. What is found
//! more than once, not at all, or against what the client was told, is a broken promise.

use std::collections::BTreeMap;

use super::history::{Call, History, Outcome};
use super::log::{Commit, CommitLog, outside};
use super::op::{Answer, Op, Resolution, Span};
use super::replay::{View, same_changes};
use super::timeline::Timeline;
use super::violation::{Property, Violation};
use crate::types::Ticket;

/// The revision each call made, if it made one.
pub(super) struct Attribution {
    /// By place of the call in its history.
    pub(super) effects: Vec<Option<u64>>,
    pub(super) violations: Vec<Violation>,
}

/// Attributes every commit to a call. Changes of keys in `strangers` may have been made by anybody.
pub(super) fn attribute(history: &History, log: &CommitLog, timeline: &Timeline, strangers: &[Span]) -> Attribution {
    let calls = history.calls();
    let mut finding = Finding {
        calls,
        log,
        timeline,
        strangers,
        owners: BTreeMap::new(),
        by_ticket: by_ticket(calls),
        by_put: by_put(calls),
        found: Attribution { effects: vec![None; calls.len()], violations: Vec::new() },
    };
    finding.take_claims();
    finding.take_resolutions();
    log.commits.iter().for_each(|commit| finding.find_owner(commit));
    finding.look_for_lost();
    finding.check_resolutions();
    finding.found
}

/// Whether the answer says that a key was changed.
pub(super) fn claims_change(call: &Call) -> bool {
    match call.answered() {
        Some((Answer::Written | Answer::Replaced(_), _)) => true,
        Some((Answer::Deleted(count), _)) => *count > 0,
        Some((Answer::Txn { changed, .. }, _)) => *changed,
        _ => false,
    }
}

struct Finding<'a> {
    calls: &'a [Call],
    log: &'a CommitLog,
    timeline: &'a Timeline,
    strangers: &'a [Span],
    /// The call that made each revision.
    owners: BTreeMap<u64, usize>,
    by_ticket: BTreeMap<(u64, u64), usize>,
    /// Who puts this value at this key; `None`: more than one.
    by_put: BTreeMap<(&'a str, &'a str), Option<usize>>,
    found: Attribution,
}

impl Finding<'_> {
    fn take_claims(&mut self) {
        for (place, call) in self.calls.iter().enumerate() {
            if let Some(revision) = call.revision.filter(|_| claims_change(call)) {
                self.claim(place, revision.get());
            }
        }
    }

    fn claim(&mut self, place: usize, revision: u64) {
        self.found.effects[place] = Some(revision);
        if let Some(other) = self.owners.insert(revision, place) {
            let what = format!("two writes were told that they made revision {revision}");
            let violation = Violation::new(Property::Kv2, what).with(&self.calls[other]).with(&self.calls[place]);
            self.found.violations.push(violation);
        }
        let missing = revision > self.log.last().get()
            || (revision > self.timeline.first() && self.log.at(crate::types::Revision::new(revision)).is_none());
        if missing {
            let what = format!("a write was acknowledged at revision {revision}, where nothing of it is left");
            self.found.violations.push(Violation::new(Property::D1, what).with(&self.calls[place]));
        }
    }

    /// Writes whose tickets were resolved as applied.
    fn take_resolutions(&mut self) {
        for asked in self.calls {
            let Some((ticket, Resolution::Applied(revision))) = resolution(asked) else { continue };
            let Some(place) = self.place_of(ticket).filter(|place| self.may_write_keys(*place)) else { continue };
            match self.found.effects[place] {
                None => self.claim(place, revision.get()),
                Some(other) if other != revision.get() => {
                    let what = format!("a write of revision {other} was resolved as applied at {revision}");
                    let violation = Violation::new(Property::X4, what).with(&self.calls[place]).with(asked);
                    self.found.violations.push(violation);
                }
                Some(_) => {}
            }
        }
    }

    fn find_owner(&mut self, commit: &Commit) {
        let revision = commit.revision.get();
        if outside(commit, self.strangers).next().is_none() {
            return;
        }
        let by_ticket = commit.ticket.and_then(|ticket| self.place_of(ticket));
        let owner = by_ticket.or_else(|| self.writer_of(commit));
        match (owner, self.owners.get(&revision).copied()) {
            (Some(place), Some(other)) if place != other => {
                let what = format!("revision {revision} was made by another write than the one that was told so");
                let violation = Violation::new(Property::Kv3, what).with(commit);
                self.found.violations.push(violation.with(&self.calls[other]).with(&self.calls[place]));
            }
            (_, Some(_)) => {}
            (Some(place), None) => self.attribute(place, commit),
            (None, None) if commit.is_expiry() => {}
            (None, None) => match self.deleter_of(commit) {
                Some(place) => self.attribute(place, commit),
                // A session that is dropped ends its lease, and nobody waits for that.
                None if self.ends_a_session(commit) => {}
                None => {
                    let what = "a commit that nobody asked for";
                    self.found.violations.push(Violation::new(Property::Kv4, what).with(commit));
                }
            },
        }
    }

    /// The one call that puts what the commit put.
    fn writer_of(&self, commit: &Commit) -> Option<usize> {
        let put = |change: &super::log::Change| {
            let now = change.now.as_ref()?;
            *self.by_put.get(&(change.key.as_str(), now.value.as_str()))?
        };
        outside(commit, self.strangers).find_map(put)
    }

    /// A call of unknown effect that would have changed just this.
    fn deleter_of(&self, commit: &Commit) -> Option<usize> {
        let view = View { timeline: self.timeline, revision: commit.revision.get() - 1 };
        let fits = |place: &usize| {
            let call = &self.calls[*place];
            let free = self.found.effects[*place].is_none();
            // A revoke does not tell its revision.
            let open = call.outcome != Outcome::Ok || silent(call);
            let in_time = commit.applied_ns.is_none_or(|applied| call.invoked_ns <= applied);
            free && open
                && in_time
                && call.op.is_mutation()
                && view.run(&call.op).is_some_and(|would| same_changes(&would.changes, commit.changes.iter()))
        };
        let candidates = || (0..self.calls.len()).filter(fits);
        // A refused one only if there is no other: it is a violation.
        candidates().find(|place| self.calls[*place].outcome != Outcome::Fail).or_else(|| candidates().next())
    }

    /// Whether it is what revoking a lease does that somebody has put keys on by its number.
    fn ends_a_session(&self, commit: &Commit) -> bool {
        let view = View { timeline: self.timeline, revision: commit.revision.get() - 1 };
        let lease = commit.changes.first().and_then(|change| self.timeline.get(&change.key, view.revision)?.lease);
        lease.filter(|lease| self.calls.iter().any(|call| call.op.attaches_to(*lease))).is_some_and(|lease| {
            let revoked = view.run(&Op::Revoke { lease });
            revoked.is_some_and(|revoked| same_changes(&revoked.changes, commit.changes.iter()))
        })
    }

    fn attribute(&mut self, place: usize, commit: &Commit) {
        let (call, revision) = (&self.calls[place], commit.revision.get());
        let violation = match (self.found.effects[place], call.outcome) {
            (Some(first), _) => {
                let what = format!("a write was applied at revision {first} and again at {revision}");
                Some(Violation::new(Property::X1, what))
            }
            (None, Outcome::Fail) => {
                let what = format!("a write that failed for certain was applied at revision {revision}");
                Some(Violation::new(Property::Kv6, what))
            }
            (None, Outcome::Ok) if !claims_change(call) && !silent(call) => {
                let what = format!("a write that is said to have changed nothing made revision {revision}");
                Some(Violation::new(Property::Kv3, what))
            }
            (None, _) => None,
        };
        self.found.violations.extend(violation.map(|violation| violation.with(call).with(commit)));
        if self.found.effects[place].is_none() {
            self.found.effects[place] = Some(revision);
            self.owners.insert(revision, place);
        }
    }

    /// Acknowledged writes that did not tell their revision and are not in the log.
    fn look_for_lost(&mut self) {
        for (place, call) in self.calls.iter().enumerate() {
            if claims_change(call) && self.found.effects[place].is_none() {
                let what = "an acknowledged write is not among the commits";
                self.found.violations.push(Violation::new(Property::D1, what).with(call));
            }
        }
    }

    fn check_resolutions(&mut self) {
        for asked in self.calls {
            let Some((ticket, answer @ (Resolution::Never | Resolution::NoEffect))) = resolution(asked) else {
                continue;
            };
            let Some(place) = self.place_of(ticket) else { continue };
            if let Some(revision) = self.found.effects[place] {
                let what = format!("a write was resolved as {answer:?} and took effect at revision {revision}");
                let violation = Violation::new(Property::X4, what).with(&self.calls[place]).with(asked);
                self.found.violations.push(violation);
            }
        }
    }

    fn place_of(&self, ticket: Ticket) -> Option<usize> {
        self.by_ticket.get(&ticket_key(ticket)).copied()
    }

    fn may_write_keys(&self, place: usize) -> bool {
        matches!(self.calls[place].op, Op::Set { .. } | Op::Delete { .. } | Op::Txn { .. })
    }
}

/// Whether a success of this call does not tell whether it changed a key.
fn silent(call: &Call) -> bool {
    matches!(call.op, Op::Revoke { .. })
}

fn resolution(call: &Call) -> Option<(Ticket, Resolution)> {
    match (&call.op, call.answered()) {
        (Op::Resolve { ticket }, Some((Answer::Resolved(resolution), _))) => Some((*ticket, *resolution)),
        _ => None,
    }
}

fn by_ticket(calls: &[Call]) -> BTreeMap<(u64, u64), usize> {
    let ticket = |(place, call): (usize, &Call)| Some((ticket_key(call.ticket?), place));
    calls.iter().enumerate().filter_map(ticket).collect()
}

fn ticket_key(ticket: Ticket) -> (u64, u64) {
    (ticket.client.get(), ticket.seq)
}

fn by_put(calls: &[Call]) -> BTreeMap<(&str, &str), Option<usize>> {
    let mut by_put = BTreeMap::new();
    for (place, call) in calls.iter().enumerate() {
        for put in call.op.puts() {
            let writer = by_put.entry(put).or_insert(Some(place));
            *writer = writer.filter(|writer| *writer == place);
        }
    }
    by_put
}
