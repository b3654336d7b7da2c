//! The watch oracle: what a watch delivered, held against what was committed.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::log::{Change, CommitLog, Kind};
use super::op::{Seen, Span};
use super::timeline::Timeline;
use super::violation::{Property, Violation};
use crate::types::Revision;

/// Everything one watch delivered, in the order in which it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRecord {
    /// What violations call it.
    pub name: String,
    /// The watched keys.
    pub keys: Span,
    /// How it began.
    pub start: WatchStart,
    /// Whether it was to deliver previous values.
    #[serde(default)]
    pub prev: bool,
    /// Whether it must deliver every revision however far it is behind.
    #[serde(default)]
    pub backpressure: bool,
    /// Whether it was read at the end until it had nothing more to deliver, on a node that had caught up.
    #[serde(default)]
    pub drained: bool,
    /// What came.
    pub steps: Vec<WatchStep>,
}

/// How a watch began.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchStart {
    /// With what happens next; the place it told right after it was opened.
    After(Revision),
    /// With the changes of this revision.
    From(Revision),
    /// With everything that is there, at this revision or a later one.
    Initial(Revision),
}

/// Something a watch delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchStep {
    /// The changes of one revision.
    Live {
        /// The revision.
        revision: Revision,
        /// The changes.
        events: Vec<WatchEvent>,
    },
    /// All watched keys at one revision.
    Whole {
        /// The revision.
        revision: Revision,
        /// Whether it replaces changes that were not delivered, and is not what the watch began with.
        resync: bool,
        /// What is there.
        entries: Vec<(String, Seen)>,
    },
    /// The watch said that everything up to here has been delivered.
    Place(Revision),
    /// It ended because history no longer reaches back to `requested`.
    Compacted {
        /// What it needed.
        requested: Revision,
        /// The oldest revision that it could still have had.
        oldest: Revision,
    },
    /// It ended because its node did.
    Stopped,
}

/// What happened to one key, as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// The change.
    #[serde(flatten)]
    pub change: Change,
    /// What the key held before, if the watch was to deliver that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<Seen>,
}

impl WatchRecord {
    /// A watch that has delivered nothing yet.
    pub fn new(name: impl Into<String>, keys: impl Into<Span>, start: WatchStart) -> Self {
        let (name, keys) = (name.into(), keys.into());
        WatchRecord { name, keys, start, prev: false, backpressure: false, drained: false, steps: Vec::new() }
    }

    /// Holds the watch against the commits: W1 to W13.
    pub fn check(&self, log: &CommitLog) -> Vec<Violation> {
        self.check_on(log, &Timeline::new(log))
    }

    /// As [`WatchRecord::check`], for whoever holds many watches against one log.
    pub(super) fn check_on(&self, log: &CommitLog, timeline: &Timeline) -> Vec<Violation> {
        let mut following = Following {
            record: self,
            log,
            timeline,
            at: match self.start {
                WatchStart::After(place) => Some(place.get()),
                WatchStart::From(first) => Some(first.get().saturating_sub(1)),
                WatchStart::Initial(_) => None,
            },
            delivered: None,
            over: false,
            violations: Vec::new(),
        };
        self.steps.iter().for_each(|step| following.take(step));
        if self.drained && !following.over {
            following.look_for_missing(log.last().get(), "the end");
        }
        following.violations
    }
}

impl fmt::Display for WatchStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WatchStep::Live { revision, events } => {
                write!(f, "batch @{revision}")?;
                events.iter().try_for_each(|event| match &event.change.now {
                    Some(now) => write!(f, " {:?} = {now}", event.change.key),
                    None => write!(f, " {:?} {:?}", event.change.key, event.change.kind),
                })
            }
            WatchStep::Whole { revision, resync, entries } => {
                write!(f, "{} @{revision}, {} entries", if *resync { "resync" } else { "initial" }, entries.len())
            }
            other => write!(f, "{other:?}"),
        }
    }
}

/// A watch that is gone through step by step.
struct Following<'a> {
    record: &'a WatchRecord,
    log: &'a CommitLog,
    timeline: &'a Timeline,
    /// Up to here everything has been delivered; `None` before the initial state.
    at: Option<u64>,
    /// The newest batch of changes.
    delivered: Option<(u64, &'a [WatchEvent])>,
    over: bool,
    violations: Vec<Violation>,
}

impl<'a> Following<'a> {
    fn take(&mut self, step: &'a WatchStep) {
        if self.over {
            self.violated(Property::W10, "something was delivered behind the end".into(), Some(step));
        }
        match step {
            WatchStep::Live { revision, events } => self.live(step, revision.get(), events),
            WatchStep::Whole { revision, resync, entries } => self.whole(step, revision.get(), *resync, entries),
            WatchStep::Place(place) => self.place(step, place.get()),
            WatchStep::Compacted { requested, oldest } => {
                self.over = true;
                // It may have moved on over quiet revisions, but it never needs one that it has delivered.
                if oldest <= requested || self.at.is_some_and(|at| requested.get() <= at) {
                    let what = format!("revision {requested} was refused as compacted, the oldest being {oldest}");
                    self.violated(Property::W10, what, Some(step));
                }
            }
            WatchStep::Stopped => self.over = true,
        }
    }

    fn live(&mut self, step: &'a WatchStep, revision: u64, events: &'a [WatchEvent]) {
        let Some(at) = self.at else {
            self.violated(Property::W3, "changes came before the initial state".into(), Some(step));
            self.at = Some(revision);
            return;
        };
        if revision <= at {
            let (property, what) = self.repetition(revision, events);
            self.violated(property, format!("revision {revision} {what} (delivered up to {at})"), Some(step));
            return;
        }
        self.look_for_missing(revision - 1, "this batch");
        (self.at, self.delivered) = (Some(revision), Some((revision, events)));
        self.compare(step, revision, events);
    }

    /// What is wrong with a revision that is not after everything that was delivered.
    fn repetition(&self, revision: u64, events: &[WatchEvent]) -> (Property, &'static str) {
        let first = match self.record.start {
            WatchStart::From(first) => first.get(),
            WatchStart::After(place) => place.get() + 1,
            WatchStart::Initial(_) => 0,
        };
        match self.delivered {
            _ if revision < first => (Property::W9, "lies below the start of the watch"),
            Some((newest, before)) if newest == revision => {
                let again = events.iter().any(|event| before.iter().any(|other| other.change.key == event.change.key));
                if again { (Property::W2, "came twice") } else { (Property::W4, "came in two batches") }
            }
            Some((newest, _)) if revision < newest => (Property::W1, "came after a later one"),
            _ => (Property::W6, "came although it had been passed"),
        }
    }

    /// The events of a batch against the commit of its revision.
    fn compare(&mut self, step: &'a WatchStep, revision: u64, events: &[WatchEvent]) {
        let record = self.record;
        let Some(commit) = self.log.at(Revision::new(revision)) else {
            self.violated(Property::W13, format!("there is no commit of revision {revision}"), Some(step));
            return;
        };
        for event in events {
            let key = &event.change.key;
            let committed = commit.changes.iter().find(|change| change.key == *key);
            let before = self.timeline.get(key, revision - 1);
            let wrong = match committed {
                _ if !record.keys.contains(key) => Some((Property::W8, "is not watched")),
                None => Some((Property::W13, "was not changed by that commit")),
                Some(committed) if *committed != event.change => Some((Property::W7, "was changed in another way")),
                Some(_) if record.prev && event.prev.as_ref() != before => {
                    Some((Property::W7, "held something else before"))
                }
                Some(_) => None,
            };
            if let Some((property, what)) = wrong {
                self.violated(property, format!("{key:?} {what}: {commit}"), Some(step));
            }
        }
        let mut watched = commit.changes.iter().filter(|change| record.keys.contains(&change.key));
        let told = |change: &&Change| events.iter().any(|event| event.change.key == change.key);
        if let Some(left_out) = watched.find(|change| !told(change)) {
            self.violated(Property::W4, format!("the batch leaves out {:?}: {commit}", left_out.key), Some(step));
        }
    }

    fn whole(&mut self, step: &'a WatchStep, revision: u64, resync: bool, entries: &[(String, Seen)]) {
        let wrong = match (self.at, self.record.start) {
            (None, _) if resync => Some((Property::W3, "a resync came before the initial state".to_owned())),
            (None, WatchStart::Initial(at_least)) if revision < at_least.get() => {
                Some((Property::W9, format!("the initial state is older than {at_least}")))
            }
            (Some(_), _) if !resync => Some((Property::W3, "an initial state that was not asked for".to_owned())),
            (Some(_), _) if self.record.backpressure => {
                Some((Property::W11, "changes were left out of a watch that wants each of them".to_owned()))
            }
            (Some(at), _) if revision < at => {
                Some((Property::W1, format!("a state of {revision} came after everything up to {at}")))
            }
            _ if revision > self.log.last().get() => Some((Property::W13, format!("there is no revision {revision}"))),
            _ => None,
        };
        if let Some((property, what)) = wrong {
            self.violated(property, what, Some(step));
        }
        let there: Vec<_> = self.timeline.range(&self.record.keys, revision).collect();
        let same = there.iter().map(|(key, seen)| (key.as_str(), *seen));
        if !same.eq(entries.iter().map(|(key, seen)| (key.as_str(), seen))) {
            let what = format!("{} keys are listed, and not what was there at {revision}: {there:?}", entries.len());
            self.violated(Property::W11, what, Some(step));
        }
        self.at = Some(self.at.unwrap_or(0).max(revision));
        self.delivered = None;
    }

    fn place(&mut self, step: &'a WatchStep, place: u64) {
        let Some(at) = self.at else { return };
        let missing = self.missing(at, place);
        if let Some(missing) = missing {
            self.violated(Property::W6, format!("revision {missing} has not been delivered"), Some(step));
        } else if place < at || place > self.log.last().get() {
            let what = format!("the place is {place}, everything up to {at} has been delivered");
            self.violated(Property::W6, what, Some(step));
        }
        self.at = Some(at.max(place));
    }

    /// Complains if changes up to `until` have not been delivered.
    fn look_for_missing(&mut self, until: u64, before: &str) {
        let Some(at) = self.at else { return };
        if let Some(missing) = self.missing(at, until) {
            let begins = self.delivered.is_none() && matches!(self.record.start, WatchStart::From(_));
            let property = if begins { Property::W5 } else { Property::W3 };
            let what = format!("revision {missing} is missing between {at} and {before}");
            let commit = self.log.at(Revision::new(missing)).map(ToString::to_string);
            self.violated(property, what, None);
            let violation = self.violations.last_mut().expect("just pushed");
            violation.witnesses.extend(commit);
        }
    }

    /// The first revision after `from` and up to `until` that changed a watched key.
    fn missing(&self, from: u64, until: u64) -> Option<u64> {
        self.timeline.next_change(&self.record.keys, from).filter(|next| *next <= until)
    }

    fn violated(&mut self, property: Property, what: String, step: Option<&WatchStep>) {
        let violation = Violation::new(property, format!("watch {}: {what}", self.record.name));
        self.violations.push(step.into_iter().fold(violation, |violation, step| violation.with(step)));
    }
}

impl WatchEvent {
    /// Whether the key is gone.
    pub fn is_delete(&self) -> bool {
        self.change.kind != Kind::Put
    }
}
