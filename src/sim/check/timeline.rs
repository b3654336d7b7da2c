//! What every key held at every revision.

use std::collections::BTreeMap;

use super::log::CommitLog;
use super::op::{Seen, Span};
use crate::types::LeaseId;

/// The contents of the store at each revision of a log, by key.
#[derive(Debug)]
pub(super) struct Timeline {
    /// For each key what it holds from which revision on; before the first one, nothing.
    keys: BTreeMap<String, Vec<(u64, Option<Seen>)>>,
    /// When a key was attached to a lease, and which.
    attached: BTreeMap<LeaseId, Vec<String>>,
    first: u64,
}

impl Timeline {
    pub(super) fn new(log: &CommitLog) -> Self {
        let first = log.base_revision.get();
        let mut timeline = Timeline { keys: BTreeMap::new(), attached: BTreeMap::new(), first };
        for (key, seen) in &log.base {
            timeline.add(first, key, Some(seen));
        }
        for commit in &log.commits {
            for change in &commit.changes {
                timeline.add(commit.revision.get(), &change.key, change.now.as_ref());
            }
        }
        timeline
    }

    fn add(&mut self, revision: u64, key: &str, seen: Option<&Seen>) {
        self.keys.entry(key.to_owned()).or_default().push((revision, seen.cloned()));
        if let Some(lease) = seen.and_then(|seen| seen.lease) {
            self.attached.entry(lease).or_default().push(key.to_owned());
        }
    }

    /// The oldest revision that can be asked for.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// What `key` held at `revision`.
    pub(super) fn get(&self, key: &str, revision: u64) -> Option<&Seen> {
        newest(self.keys.get(key)?, revision)
    }

    /// What was there at `revision`, in key order.
    pub(super) fn range<'a>(
        &'a self,
        keys: &'a Span,
        revision: u64,
    ) -> impl DoubleEndedIterator<Item = (&'a String, &'a Seen)> {
        keys.of(&self.keys).filter_map(move |(key, states)| Some((key, newest(states, revision)?)))
    }

    /// The first revision after `revision` that changed one of the keys.
    pub(super) fn next_change(&self, keys: &Span, revision: u64) -> Option<u64> {
        let next = |states: &Vec<(u64, Option<Seen>)>| states.get(place_after(states, revision)).map(|state| state.0);
        keys.of(&self.keys).filter_map(|(_, states)| next(states)).min()
    }

    /// Whether the key ever held this.
    pub(super) fn held(&self, key: &str, seen: &Seen) -> bool {
        self.get(key, seen.modified.get()).is_some_and(|held| held == seen)
    }

    /// The keys that hung on `lease` at `revision`.
    pub(super) fn attached(&self, lease: LeaseId, revision: u64) -> impl Iterator<Item = &String> {
        let on_it = move |key: &&String| self.get(key, revision).is_some_and(|seen| seen.lease == Some(lease));
        self.attached.get(&lease).into_iter().flatten().filter(on_it)
    }
}

fn place_after(states: &[(u64, Option<Seen>)], revision: u64) -> usize {
    states.partition_point(|state| state.0 <= revision)
}

fn newest(states: &[(u64, Option<Seen>)], revision: u64) -> Option<&Seen> {
    states[..place_after(states, revision)].last()?.1.as_ref()
}
