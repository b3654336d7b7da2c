//! From what the store answers to what is recorded.
//!
//! A value is recorded as its JSON text ([`text`]), on both sides: in the operation that writes it and in the answers.

use bytes::Bytes;
use serde::Serialize;

use super::history::Outcome;
use super::log::{Change, Commit, CommitLog, Kind};
use super::op::{Answer, Resolution, Seen, Span, Step, StepAnswer};
use super::recorder::Pending;
use super::watch::{WatchEvent, WatchRecord, WatchStep};
use crate::api::cluster::Outcome as Resolved;
use crate::api::keys::shown;
use crate::api::kv::{Cas, Entry, Replaced};
use crate::api::range::Entries;
use crate::api::txn::TxnOutcome;
use crate::api::watch::{Batch, BatchKind, Cause, Event};
use crate::codec::Value;
use crate::command::{self, ChangeKind};
use crate::error::Error;
use crate::format::keys;
use crate::types::{Revision, Ticket};

/// What tells a value from others: its JSON text.
///
/// # Panics
/// If the type cannot be written as JSON (a map whose keys are no strings, for one).
pub fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a recorded value can be written as JSON")
}

impl<V: Serialize> From<&Entry<V>> for Seen {
    fn from(entry: &Entry<V>) -> Self {
        let Entry { created, modified, version, lease, .. } = *entry;
        Seen { value: text(&entry.value), created, modified, version, lease }
    }
}

impl Outcome {
    /// What an error says of the operation: whether it certainly did nothing, and the ticket if it has one.
    pub fn of(error: &Error) -> (Outcome, Option<Ticket>) {
        match error {
            Error::Indeterminate { ticket } => (Outcome::Unknown, Some(*ticket)),
            Error::Invalid { .. }
            | Error::NotApplied { .. }
            | Error::LeaseNotFound { .. }
            | Error::Fenced { .. }
            | Error::Mismatch { .. }
            | Error::Aborted { .. }
            | Error::Compacted { .. }
            | Error::NoSpace { .. }
            | Error::DiskFull { .. }
            | Error::ShuttingDown { .. }
            | Error::Formation(_) => (Outcome::Fail, None),
            // It may be the answer of a write that cannot be read, or the node stopped with the write under way.
            Error::Codec { .. } | Error::Key { .. } | Error::Stopped { .. } => (Outcome::Unknown, None),
        }
    }
}

impl<O, A> Pending<O, A> {
    /// It ended with this error: failed for certain, or unknown.
    pub fn error(self, error: &Error) {
        match Outcome::of(error) {
            (Outcome::Fail, _) => self.fail(),
            (_, ticket) => self.unknown(ticket),
        }
    }
}

impl Answer {
    /// To a get.
    pub fn got<V: Serialize>(found: Option<&Entry<V>>) -> Self {
        Answer::Got(found.map(Seen::from))
    }

    /// To a range.
    pub fn listed<V: Serialize>(found: &Entries<V>) -> Self {
        let entries = found.entries.iter().map(|(key, entry)| (key.clone(), entry.into())).collect();
        Answer::Listed { entries, more: found.more }
    }

    /// To a set that was to tell what it replaced.
    pub fn replaced<V: Serialize>(written: &Replaced<V>) -> Self {
        Answer::Replaced(written.prev.as_ref().map(Seen::from))
    }

    /// To a conditional set, and the revision it made.
    pub fn cas<V: Serialize>(cas: &Cas<V>) -> (Self, Option<Revision>) {
        match cas {
            Cas::Applied(written) => (Answer::Written, Some(written.revision)),
            Cas::Conflict(found) => (Answer::Conflict(found.as_ref().map(Seen::from)), None),
        }
    }

    /// To a transaction whose branches were these.
    ///
    /// # Errors
    /// [`Error::Codec`] if a value that was read is not a `V`.
    pub fn txn<V: Value + Serialize>(outcome: &TxnOutcome, then: &[Step], otherwise: &[Step]) -> Result<Self, Error> {
        let branch = if outcome.succeeded() { then } else { otherwise };
        let answer = |(place, step): (usize, &Step)| {
            Ok(match step {
                Step::Put { .. } => StepAnswer::Put,
                Step::Remove(_) => StepAnswer::Removed(outcome.deleted(place)),
                Step::Read(_) => StepAnswer::Read(outcome.entry::<V>(place)?.as_ref().map(Seen::from)),
                Step::List(_) => {
                    let entries = outcome.entries::<V>(place)?;
                    StepAnswer::List(entries.iter().map(|(key, entry)| (key.clone(), entry.into())).collect())
                }
            })
        };
        let results = match outcome.results_lost() {
            true => None,
            false => Some(branch.iter().enumerate().map(answer).collect::<Result<_, Error>>()?),
        };
        let failed = outcome.failed_condition().map(|place| u32::try_from(place).unwrap_or(u32::MAX));
        Ok(Answer::Txn { failed, changed: outcome.changed(), results })
    }
}

impl From<Resolved> for Resolution {
    fn from(outcome: Resolved) -> Self {
        match outcome {
            Resolved::Applied(revision) => Resolution::Applied(revision),
            Resolved::NoEffect => Resolution::NoEffect,
            Resolved::Never => Resolution::Never,
            Resolved::Unknowable => Resolution::Unknowable,
        }
    }
}

impl<V: Serialize> From<&Event<V>> for WatchEvent {
    fn from(event: &Event<V>) -> Self {
        let (kind, now, prev) = match event {
            Event::Put { entry, prev, .. } => (Kind::Put, Some(entry.into()), prev),
            Event::Delete { cause: Cause::Deleted, prev, .. } => (Kind::Deleted, None, prev),
            Event::Delete { cause: Cause::Expired, prev, .. } => (Kind::Expired, None, prev),
        };
        let change = Change { key: event.key().to_owned(), kind, now };
        WatchEvent { change, prev: prev.as_ref().map(Seen::from) }
    }
}

impl<V: Serialize> From<&Batch<V>> for WatchStep {
    fn from(batch: &Batch<V>) -> Self {
        let events = batch.events.iter().map(WatchEvent::from);
        if batch.kind == BatchKind::Live {
            return WatchStep::Live { revision: batch.revision, events: events.collect() };
        }
        let entry = |event: WatchEvent| Some((event.change.key, event.change.now?));
        WatchStep::Whole {
            revision: batch.revision,
            resync: batch.kind == BatchKind::Resync,
            entries: events.filter_map(entry).collect(),
        }
    }
}

impl WatchRecord {
    /// Adds what a watch delivered. An error that does not end it adds nothing: record such a watch as raw bytes.
    pub fn push<V: Serialize>(&mut self, delivered: &Result<Batch<V>, Error>) {
        self.steps.extend(match delivered {
            Ok(batch) => Some(WatchStep::from(batch)),
            Err(Error::Compacted { requested, oldest }) => {
                Some(WatchStep::Compacted { requested: *requested, oldest: *oldest })
            }
            Err(Error::Stopped { .. }) => Some(WatchStep::Stopped),
            Err(_) => None,
        });
    }
}

impl CommitLog {
    /// Adds a batch of a watch of all keys of a table. The first one may be the initial state; everything else must be
    /// the changes of one revision, as a watch with backpressure delivers them.
    pub fn push<V: Serialize>(&mut self, batch: &Batch<V>) {
        match WatchStep::from(batch) {
            WatchStep::Live { revision, events } => {
                let changes = events.into_iter().map(|event| event.change).collect();
                self.commits.push(Commit::new(revision, changes));
            }
            WatchStep::Whole { revision, entries, .. } => {
                *self =
                    CommitLog { base_revision: revision, base: entries.into_iter().collect(), ..CommitLog::default() };
            }
            _ => unreachable!("a batch is one of the two"),
        }
    }
}

impl Commit {
    /// What the state machine says it changed. Values are shown as `value` has it. Keys of the flat table are what the host
    /// calls them; every other key is shown with its space and table in front, so that none is taken for another.
    pub(crate) fn of_changes(changes: &[command::Change], value: impl Fn(&command::Change) -> String) -> Option<Self> {
        let revision = changes.first()?.id.revision;
        let change = |change: &command::Change| {
            let kind = match change.kind {
                ChangeKind::Put => Kind::Put,
                ChangeKind::Deleted => Kind::Deleted,
                ChangeKind::Expired => Kind::Expired,
            };
            let (created, version, lease) = (change.created, change.version, change.lease);
            let now = || Seen { value: value(change), created, modified: revision, version, lease };
            Change { key: recorded_key(&change.key), kind, now: (kind == Kind::Put).then(now) }
        };
        Some(Commit::new(revision, changes.iter().map(change).collect()))
    }
}

impl Span {
    /// Every key that [`Commit::of_changes`] shows with its table in front: the recipes' and those of other tables.
    pub(crate) fn not_flat() -> Self {
        // Spaces are the bytes 1 to 4, and no key of a test is as small.
        Span { start: String::new(), end: Some("\u{5}".into()) }
    }

    /// The claims of a lock, as [`Commit::of_changes`] shows them.
    pub(crate) fn claims(lock: &str) -> Self {
        Span::prefix(recorded_key(&crate::format::claim::line("lock", lock).start))
    }
}

/// A stored key as [`Commit::of_changes`] shows it.
fn recorded_key(stored: &Bytes) -> String {
    match keys::host_table("").contains(stored) {
        true => shown(stored),
        // One character for each byte keeps different keys different, and in order.
        false => stored.iter().map(|byte| char::from(*byte)).collect(),
    }
}
