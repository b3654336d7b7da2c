//! Everything that was recorded of one run, in one file, and all oracles over it.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use super::black_box::{BlackBox, black_box};
use super::history::{Call, History, read_lines, write_line};
use super::lease::{LeaseCheck, LeaseRecord};
use super::lock::LockRecord;
use super::log::{Commit, CommitLog};
use super::op::{Seen, Span};
use super::order::OrderCheck;
use super::timeline::Timeline;
use super::violation::Violation;
use super::watch::WatchRecord;
use crate::types::Revision;

/// What was recorded of one run. What a run does not have, it leaves empty.
///
/// # Examples
/// A run is kept in a file, and judged again when the oracles know more:
/// ```
/// use quorate::sim::check::{Commit, Evidence};
///
/// let run = Evidence::default();
/// let mut file = Vec::new();
/// run.write_jsonl(&mut file)?;
/// let report = Evidence::read_jsonl(&file[..])?.judge();
/// assert!(report.violations.is_empty(), "{report}");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// What clients asked and were told.
    pub history: History,
    /// What was committed.
    pub log: CommitLog,
    /// What watches delivered.
    pub watches: Vec<WatchRecord>,
    /// How leases were renewed and ended.
    pub leases: Vec<LeaseRecord>,
    /// Who held locks.
    pub locks: Vec<LockEvidence>,
    /// Keys that others than the recorded clients may have written.
    pub strangers: Vec<Span>,
}

/// Who held a lock, and where its claims are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockEvidence {
    /// Who held it.
    pub record: LockRecord,
    /// The keys of its claims, if the log has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<Span>,
}

/// One line of a file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Call(Call),
    /// Where the log begins and ends, and whether it holds every revision.
    Log {
        base_revision: Revision,
        #[serde(default)]
        until: Revision,
        complete: bool,
    },
    Base {
        key: String,
        seen: Seen,
    },
    Commit(Commit),
    Watch(WatchRecord),
    Lease(LeaseRecord),
    Lock(LockEvidence),
    Strangers(Span),
}

/// What came of judging a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Every broken promise.
    pub violations: Vec<Violation>,
    /// What the black-box checker looked at; its violations are also above.
    pub black_box: BlackBox,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let BlackBox { explained, inconclusive, left_out, .. } = &self.black_box;
        write!(f, "{} violations; black box: {explained} parts explained, ", self.violations.len())?;
        write!(f, "{} given up, {} left out", inconclusive.len(), left_out.len())?;
        self.violations.iter().try_for_each(|violation| write!(f, "\n{violation}"))
    }
}

impl Evidence {
    /// Asks every oracle, leases with clocks that run wrong by at most one percent and without an upper bound.
    pub fn judge(&self) -> Report {
        self.judge_with(&LeaseCheck::new())
    }

    /// Asks every oracle.
    pub fn judge_with(&self, leases: &LeaseCheck) -> Report {
        let order = self.strangers.iter().cloned().fold(OrderCheck::new(), OrderCheck::strangers);
        let black_box = match self.strangers.is_empty() {
            true => black_box(&self.history, Some(&self.log)),
            // What strangers wrote is no part of the history.
            false => BlackBox::default(),
        };
        let mut violations = order.check(&self.history, &self.log);
        violations.extend(black_box.violations.iter().cloned());
        let timeline = Timeline::new(&self.log);
        violations.extend(self.watches.iter().flat_map(|watch| watch.check_on(&self.log, &timeline)));
        violations.extend(self.leases.iter().flat_map(|lease| leases.check(lease)));
        violations.extend(self.locks.iter().flat_map(|lock| match &lock.claims {
            Some(claims) => lock.record.check_with(&self.log, claims),
            None => lock.record.check(),
        }));
        Report { violations, black_box }
    }

    /// Writes one line of JSON for each thing that was recorded.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write_jsonl(&self, mut to: impl Write) -> io::Result<()> {
        let CommitLog { base_revision, base, commits, until, complete } = &self.log;
        let log = Line::Log { base_revision: *base_revision, until: *until, complete: *complete };
        let base = base.iter().map(|(key, seen)| Line::Base { key: key.clone(), seen: seen.clone() });
        let lines = [log]
            .into_iter()
            .chain(base)
            .chain(commits.iter().cloned().map(Line::Commit))
            .chain(self.history.calls().iter().cloned().map(Line::Call))
            .chain(self.watches.iter().cloned().map(Line::Watch))
            .chain(self.leases.iter().cloned().map(Line::Lease))
            .chain(self.locks.iter().cloned().map(Line::Lock))
            .chain(self.strangers.iter().cloned().map(Line::Strangers));
        lines.into_iter().try_for_each(|line| write_line(&mut to, &line))
    }

    /// Reads what [`Evidence::write_jsonl`] wrote. A last line without its end is passed over.
    ///
    /// # Errors
    /// Those of `from`; [`io::ErrorKind::InvalidData`] with the line's number for one that cannot be read.
    pub fn read_jsonl(from: impl BufRead) -> io::Result<Self> {
        let (mut evidence, mut calls) = (Evidence::default(), Vec::new());
        for line in read_lines(from)? {
            match line {
                Line::Call(call) => calls.push(call),
                Line::Log { base_revision, until, complete } => {
                    evidence.log = CommitLog { base_revision, until, complete, ..evidence.log };
                }
                Line::Base { key, seen } => drop(evidence.log.base.insert(key, seen)),
                Line::Commit(commit) => evidence.log.commits.push(commit),
                Line::Watch(watch) => evidence.watches.push(watch),
                Line::Lease(lease) => evidence.leases.push(lease),
                Line::Lock(lock) => evidence.locks.push(lock),
                Line::Strangers(keys) => evidence.strangers.push(keys),
            }
        }
        evidence.history = History::new(calls);
        Ok(evidence)
    }
}
