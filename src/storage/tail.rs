//! The end of the log, in memory.

use std::collections::VecDeque;
use std::ops::Range;

use crate::format::log_items::entry_bytes;
use crate::types::LogEntry;

/// The newest entries, without a gap.
///
/// * Everything that is not on disk yet is here, and everything that is not applied yet: replication and apply read from
///   memory, however slow the disk.
/// * Beyond that, entries stay as long as all of them take no more than the limit.
#[derive(Debug)]
pub(super) struct Tail {
    entries: VecDeque<Held>,
    /// The index of the first entry; of the next one to come, while there is none.
    first: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Held {
    entry: LogEntry,
    bytes: usize,
    /// The count of enqueued operations when this came: it is on disk once so many are.
    op: u64,
}

impl Tail {
    /// An empty tail of a log that goes on at `next`.
    pub(super) fn starting_at(next: u64) -> Self {
        Tail { entries: VecDeque::new(), first: next, bytes: 0 }
    }

    /// Everything from here on is in memory; what is below is on disk.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn push(&mut self, entry: LogEntry, op: u64) {
        let bytes = entry_bytes(&entry);
        self.bytes += bytes;
        self.entries.push_back(Held { entry, bytes, op });
    }

    /// Forgets everything and goes on at `next`.
    pub(super) fn restart_at(&mut self, next: u64) {
        *self = Tail::starting_at(next);
    }

    /// Drops the entries from `from` on.
    pub(super) fn truncate(&mut self, from: u64) {
        if from <= self.first {
            return self.restart_at(from);
        }
        while self.first + self.entries.len() as u64 > from {
            let dropped = self.entries.pop_back().expect("the length was just counted");
            self.bytes -= dropped.bytes;
        }
    }

    /// Drops the entries below `below`.
    pub(super) fn purge(&mut self, below: u64) {
        while self.first < below && self.drop_first() {}
    }

    /// Drops from the front what is neither needed nor within `bytes_max`: on disk, with the first `flushed` operations,
    /// and applied, below `unapplied`.
    pub(super) fn trim(&mut self, bytes_max: usize, flushed: u64, unapplied: u64) {
        let spare = |held: &Held| held.op <= flushed && held.entry.log_id.index < unapplied;
        while self.bytes > bytes_max && self.entries.front().is_some_and(spare) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) -> bool {
        let Some(dropped) = self.entries.pop_front() else { return false };
        self.bytes -= dropped.bytes;
        self.first += 1;
        true
    }

    /// The entries of `range`, which is within the tail, up to `bytes_max`; at least one if there is one.
    pub(super) fn read(&self, range: Range<u64>, bytes_max: usize) -> Vec<LogEntry> {
        let at = |index: u64| (index.max(self.first) - self.first).min(self.entries.len() as u64) as usize;
        let mut budget = Budget::new(bytes_max);
        let held = self.entries.range(at(range.start)..at(range.end).max(at(range.start)));
        held.take_while(|held| budget.admits(held.bytes)).map(|held| held.entry.clone()).collect()
    }
}

/// Counts out bytes; the first entry passes, whatever its size, or nobody could ever get past it.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
    unused: bool,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Budget { left: bytes, unused: true }
    }

    pub(super) fn admits(&mut self, bytes: usize) -> bool {
        let admitted = self.unused || bytes <= self.left;
        self.unused = false;
        // An entry that does not fit ends the reading, so that no later and smaller one slips in behind it.
        self.left = if admitted { self.left.saturating_sub(bytes) } else { 0 };
        admitted
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{LeaderId, LogId, Payload};

    fn entry(index: u64) -> LogEntry {
        let payload = Payload::Proposal(Bytes::from(vec![0; 100]));
        LogEntry { log_id: LogId { leader: LeaderId::default(), index }, payload }
    }

    fn tail(range: Range<u64>) -> Tail {
        let mut tail = Tail::starting_at(range.start);
        range.for_each(|index| tail.push(entry(index), index));
        tail
    }

    fn indexes(tail: &Tail) -> Vec<u64> {
        tail.read(0..u64::MAX, usize::MAX).iter().map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn only_what_is_on_disk_and_applied_is_forgotten() {
        for (flushed, unapplied, expected) in [(0, 99, 1), (5, 99, 6), (99, 4, 4), (99, 1, 1)] {
            let mut tail = tail(1..9);
            tail.trim(0, flushed, unapplied);
            assert_eq!(tail.first(), expected, "flushed {flushed}, unapplied {unapplied}");
        }
        let mut tail = tail(1..9);
        tail.trim(3 * entry_bytes(&entry(0)), 99, 99);
        assert_eq!(indexes(&tail), [6, 7, 8]);
    }

    #[test]
    fn truncating_and_purging_keep_the_rest_in_place() {
        let mut tail = tail(1..9);
        tail.truncate(7);
        tail.purge(3);
        assert_eq!((indexes(&tail), tail.first()), (vec![3, 4, 5, 6], 3));
        tail.truncate(2);
        assert_eq!((indexes(&tail), tail.first(), tail.bytes), (vec![], 2, 0));
    }

    #[test]
    fn a_read_returns_at_least_one_entry_and_stops_at_the_first_that_does_not_fit() {
        let tail = tail(1..9);
        let size = entry_bytes(&entry(0));
        for (bytes, expected) in [(0, 1), (size, 1), (2 * size, 2), (2 * size + 1, 2), (usize::MAX, 4)] {
            assert_eq!(tail.read(2..6, bytes).len(), expected, "{bytes} bytes");
        }
        assert_eq!(tail.read(5..5, 9).len(), 0);
        assert_eq!(tail.read(20..30, 9).len(), 0);
    }
}
