//! What was committed in the end: the truth that answers, watches, leases and locks are held against.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::op::{Seen, Span};
use super::timeline::Timeline;
use super::violation::{Property, Violation};
use crate::types::{Revision, Ticket};

/// Everything that was committed, by revision: read at the end, from a node that has caught up.
///
/// A watch from revision 1 delivers it, as long as the history still reaches back that far; otherwise take the state at
/// the oldest revision as its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitLog {
    /// The revision of `base`.
    pub base_revision: Revision,
    /// What was there at that revision.
    pub base: BTreeMap<String, Seen>,
    /// Everything after that, by ascending revision.
    pub commits: Vec<Commit>,
    /// Up to where nothing is missing: behind the last of `commits` if what came then touched no key of this log. Zero
    /// counts as the revision of the last commit.
    pub until: Revision,
    /// Whether `commits` hold every revision and not only those that touch some keys.
    pub complete: bool,
}

/// What one revision changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The revision.
    pub revision: Revision,
    /// At most one change for each key.
    pub changes: Vec<Change>,
    /// The write that made it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<Ticket>,
    /// When the first node applied it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_ns: Option<u64>,
}

impl Commit {
    /// A commit of which nothing else is known.
    pub fn new(revision: Revision, changes: Vec<Change>) -> Self {
        Commit { revision, changes, ticket: None, applied_ns: None }
    }

    /// Whether it deleted keys because their lease ended by itself.
    pub fn is_expiry(&self) -> bool {
        self.changes.iter().any(|change| change.kind == Kind::Expired)
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "commit @{}", self.revision)?;
        if let Some(ticket) = self.ticket {
            write!(f, " ticket {ticket}")?;
        }
        for change in &self.changes {
            match &change.now {
                Some(now) => write!(f, " {:?} = {now}", change.key)?,
                None => write!(f, " {:?} {:?}", change.key, change.kind)?,
            }
        }
        Ok(())
    }
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key.
    pub key: String,
    /// What happened to it.
    pub kind: Kind,
    /// What it holds since: `None` if it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Seen>,
}

/// What happened to a key.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It was written.
    Put,
    /// It was deleted by an operation.
    Deleted,
    /// It was deleted because its lease ended by itself.
    Expired,
}

impl CommitLog {
    /// A log that begins with the empty store and holds every revision.
    pub fn complete(commits: Vec<Commit>) -> Self {
        CommitLog { commits, complete: true, ..CommitLog::default() }
    }

    /// A log that begins with the empty store and holds those revisions up to `until` that changed the keys it is about.
    pub fn partial(commits: Vec<Commit>, until: Revision) -> Self {
        CommitLog { commits, until, ..CommitLog::default() }
    }

    /// The newest revision that it tells of.
    pub fn last(&self) -> Revision {
        self.commits.last().map_or(self.base_revision, |commit| commit.revision).max(self.until)
    }

    /// What that revision changed.
    pub fn at(&self, revision: Revision) -> Option<&Commit> {
        let place = self.commits.binary_search_by_key(&revision, |commit| commit.revision).ok()?;
        Some(&self.commits[place])
    }

    /// What is there at the end.
    pub fn state(&self) -> BTreeMap<String, Seen> {
        let mut state = self.base.clone();
        for change in self.commits.iter().flat_map(|commit| &commit.changes) {
            match &change.now {
                Some(now) => state.insert(change.key.clone(), now.clone()),
                None => state.remove(&change.key),
            };
        }
        state
    }

    /// Holds what a node that has caught up says is there against the log: nothing acknowledged is lost or comes back (D1).
    pub fn check_state(&self, node: &str, found: &BTreeMap<String, Seen>) -> Vec<Violation> {
        let wanted = self.state();
        let keys: BTreeSet<&String> = wanted.keys().chain(found.keys()).collect();
        let differs = |key: &&String| wanted.get(*key) != found.get(*key);
        let shown = |seen: Option<&Seen>| seen.map_or("nothing".to_owned(), Seen::to_string);
        let violation = |key: &String| {
            let what = format!("{node} holds {} at {key:?}", shown(found.get(key)));
            Violation::new(Property::D1, what).with(format!("committed: {}", shown(wanted.get(key))))
        };
        keys.into_iter().filter(differs).map(violation).collect()
    }

    /// Checks the log against itself: revisions grow by one (KV2), what each change says of itself follows from what was
    /// there before (KV3), keys of a lease go together (L4) and none is attached to it afterwards (L3).
    pub fn check(&self) -> Vec<Violation> {
        let timeline = Timeline::new(self);
        let mut violations = Vec::new();
        let (mut before, mut ended) = (self.base_revision, BTreeSet::new());
        for commit in &self.commits {
            let next = commit.revision == before.next() || (!self.complete && commit.revision > before);
            if !next {
                let what = format!("revision {} follows revision {before}", commit.revision);
                violations.push(Violation::new(Property::Kv2, what).with(commit));
            }
            let attached = commit.changes.iter().filter_map(|change| change.now.as_ref()?.lease);
            if let Some(lease) = attached.into_iter().find(|lease| ended.contains(lease)) {
                let what = format!("a key was attached to lease {lease}, which had ended");
                violations.push(Violation::new(Property::L3, what).with(commit));
            }
            violations.extend(commit.changes.iter().filter_map(|change| misfit(&timeline, commit, change)));
            if commit.is_expiry() {
                violations.extend(self.check_expiry(&timeline, commit));
                ended.extend(expired_lease(&timeline, commit));
            }
            before = commit.revision;
        }
        violations
    }

    /// All changes of an expiry are expiries of one lease, and none of its keys is left.
    fn check_expiry(&self, timeline: &Timeline, commit: &Commit) -> Option<Violation> {
        let before = commit.revision.get() - 1;
        let lease = expired_lease(timeline, commit);
        let violation = |what: String| Some(Violation::new(Property::L4, what).with(commit));
        let Some(lease) = lease else { return violation("a key expired that hung on no lease".into()) };
        let on_it: BTreeSet<&String> = timeline.attached(lease, before).collect();
        let gone: BTreeSet<&String> = commit.changes.iter().map(|change| &change.key).collect();
        if let Some(stranger) = gone.difference(&on_it).next() {
            return violation(format!("lease {lease} expired and took {stranger:?}, which did not hang on it"));
        }
        if let Some(left) = on_it.difference(&gone).next() {
            return violation(format!("lease {lease} expired and left {left:?}"));
        }
        let deleted = commit.changes.iter().find(|change| change.kind != Kind::Expired)?;
        violation(format!("lease {lease} expired, but {:?} counts as {:?}", deleted.key, deleted.kind))
    }
}

/// The lease of the first key that an expiry took.
pub(super) fn expired_lease(timeline: &Timeline, commit: &Commit) -> Option<crate::types::LeaseId> {
    let expired = commit.changes.iter().find(|change| change.kind == Kind::Expired)?;
    timeline.get(&expired.key, commit.revision.get() - 1)?.lease
}

/// What a change says of itself that does not follow from what was there before.
fn misfit(timeline: &Timeline, commit: &Commit, change: &Change) -> Option<Violation> {
    let before = timeline.get(&change.key, commit.revision.get().saturating_sub(1));
    let violation = |what: &str| {
        let was = before.map_or("absent".to_owned(), Seen::to_string);
        let what = format!("{:?} {what}; before, it was {was}", change.key);
        Some(Violation::new(Property::Kv3, what).with(commit))
    };
    match (&change.now, before) {
        (None, None) => violation("was deleted without being there"),
        (None, Some(_)) if change.kind == Kind::Put => violation("was put without a value"),
        (Some(_), _) if change.kind != Kind::Put => violation("was deleted and holds a value"),
        (None, Some(_)) => None,
        (Some(now), before) => {
            let created = before.map_or(commit.revision, |before| before.created);
            let version = before.map_or(0, |before| before.version) + 1;
            let fits = now.modified == commit.revision && now.created == created && now.version == version;
            if fits { None } else { violation("carries numbers that do not follow") }
        }
    }
}

/// The part of a commit that lies outside the spans.
pub(super) fn outside<'a>(commit: &'a Commit, spans: &'a [Span]) -> impl Iterator<Item = &'a Change> {
    commit.changes.iter().filter(move |change| !spans.iter().any(|span| span.contains(&change.key)))
}
