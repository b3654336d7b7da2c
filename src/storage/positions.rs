//! Where the entries of the log are on disk, and how changes of the log move its bounds.
//!
//! Pure bookkeeping, made twice of the same changes: in memory as soon as they are asked for, and for the disk as they are
//! written or read back.

use std::collections::VecDeque;
use std::ops::Range;

use crate::format::log_items::Summary;
use crate::types::LogId;

impl Summary {
    /// The index of the entry that comes next; a log that has never held one may begin anywhere.
    pub(super) fn next(&self) -> Option<u64> {
        self.last.map(|last| last.index + 1)
    }

    /// The indexes of the entries there are.
    pub(super) fn entries(&self) -> Range<u64> {
        self.first..self.next().unwrap_or(self.first).max(self.first)
    }

    /// One entry more, the one that comes next.
    pub(super) fn append(&mut self, log_id: LogId) {
        if self.last.is_none() {
            self.first = log_id.index;
        }
        self.last = Some(log_id);
    }

    /// Drops what is behind `keep`.
    pub(super) fn truncate(&mut self, keep: Option<LogId>) {
        if self.last.map(|last| last.index) > keep.map(|keep| keep.index) {
            self.last = keep.filter(|keep| keep.index >= self.first).or(self.purged);
        }
    }

    /// Forgets what is up to `upto`, which may be beyond the end.
    pub(super) fn purge(&mut self, upto: LogId) {
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
            self.last = self.last.filter(|last| last.index > upto.index).or(self.purged);
            self.first = self.first.max(upto.index + 1);
        }
    }
}

/// Where an entry is in the file.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// 0, where no entry ever is, if it is not known.
    pub(super) at: u64,
    pub(super) len: u32,
}

impl Position {
    pub(super) fn end(&self) -> u64 {
        self.at + u64::from(self.len)
    }
}

/// A change of what is on disk.
#[derive(Copy, Clone, Debug)]
pub(super) enum Moved {
    Appended(u64, Position),
    Truncated(Option<LogId>),
    Purged(LogId),
}

/// The positions of the entries that are on disk: sixteen bytes for each.
#[derive(Debug, Default)]
pub(super) struct Positions {
    first: u64,
    of: VecDeque<Position>,
}

impl Positions {
    /// Room for entries that are there, but nobody knows where.
    pub(super) fn unknown(entries: Range<u64>) -> Self {
        let count = usize::try_from(entries.end - entries.start).expect("more entries than memory is no log of ours");
        Positions { first: entries.start, of: std::iter::repeat_n(Position::default(), count).collect() }
    }

    pub(super) fn apply(&mut self, moved: Moved) {
        match moved {
            Moved::Appended(index, position) => {
                if self.of.is_empty() {
                    self.first = index;
                }
                debug_assert_eq!(index, self.first + self.of.len() as u64, "the log has no gaps");
                self.of.push_back(position);
            }
            Moved::Truncated(keep) => {
                let kept = keep.map_or(0, |keep| (keep.index + 1).saturating_sub(self.first));
                self.of.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
            }
            Moved::Purged(upto) => {
                while self.first <= upto.index && self.of.pop_front().is_some() {
                    self.first += 1;
                }
            }
        }
    }

    /// Where the first entry is.
    pub(super) fn first(&self) -> Option<Position> {
        self.of.front().copied()
    }

    /// The first entry whose position is not known.
    pub(super) fn first_unknown(&self) -> Option<u64> {
        (self.first..).zip(&self.of).find(|(_, position)| position.at == 0).map(|(index, _)| index)
    }

    /// Positions of the entries of `range`, as many as take no more than `bytes_max`; at least one.
    pub(super) fn of(&self, range: Range<u64>, bytes_max: usize) -> Vec<Position> {
        let mut left = bytes_max;
        let mut found = Vec::new();
        for position in self.of.range((range.start - self.first) as usize..(range.end - self.first) as usize) {
            let len = position.len as usize;
            if len > left && !found.is_empty() {
                break;
            }
            left = left.saturating_sub(len);
            found.push(*position);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LeaderId;

    fn at(index: u64) -> LogId {
        LogId { leader: LeaderId::default(), index }
    }

    fn positions(range: Range<u64>) -> Positions {
        let mut positions = Positions::default();
        range.for_each(|index| positions.apply(Moved::Appended(index, Position { at: index * 100, len: 10 })));
        positions
    }

    fn found(positions: &Positions) -> Vec<u64> {
        (positions.first..)
            .zip(&positions.of)
            .map(|(index, position)| (index, position.at))
            .map(|(index, at)| {
                assert_eq!(at, index * 100);
                index
            })
            .collect()
    }

    #[test]
    fn positions_follow_the_log_through_truncations_and_purges() {
        let mut p = positions(5..10);
        p.apply(Moved::Truncated(Some(at(8))));
        p.apply(Moved::Purged(at(5)));
        assert_eq!(found(&p), [6, 7, 8]);
        assert_eq!(p.first(), Some(Position { at: 600, len: 10 }));
        p.apply(Moved::Truncated(Some(at(20))));
        p.apply(Moved::Purged(at(2)));
        assert_eq!(found(&p), [6, 7, 8]);
        p.apply(Moved::Truncated(Some(at(3))));
        assert_eq!(p.first(), None);
        p.apply(Moved::Appended(4, Position { at: 400, len: 1 }));
        p.apply(Moved::Purged(at(90)));
        p.apply(Moved::Appended(91, Position { at: 9100, len: 1 }));
        assert_eq!(found(&p), [91]);
    }

    #[test]
    fn a_position_that_is_not_known_is_told_until_its_entry_is_gone() {
        let mut p = Positions::unknown(3..6);
        p.apply(Moved::Appended(6, Position { at: 600, len: 1 }));
        p.apply(Moved::Purged(at(3)));
        assert_eq!(p.first_unknown(), Some(4));
        p.apply(Moved::Purged(at(5)));
        assert_eq!((p.first_unknown(), found(&p)), (None, vec![6]));
    }

    #[test]
    fn positions_are_handed_out_up_to_a_size_and_at_least_one() {
        let p = positions(5..10);
        for (bytes_max, expected) in [(0, 1), (10, 1), (19, 1), (20, 2), (usize::MAX, 3)] {
            assert_eq!(p.of(6..9, bytes_max).len(), expected, "{bytes_max}");
        }
        assert_eq!(p.of(6..9, 20)[1].at, 700);
    }

    #[test]
    fn the_bounds_follow_the_log_wherever_it_is_cut() {
        let mut s = Summary::default();
        (7..10).for_each(|index| s.append(at(index)));
        assert_eq!(s.entries(), 7..10);
        s.truncate(Some(at(12)));
        assert_eq!(s.entries(), 7..10, "behind the end");
        s.truncate(Some(at(8)));
        assert_eq!((s.entries(), s.last), (7..9, Some(at(8))));
        s.purge(at(7));
        assert_eq!((s.entries(), s.purged), (8..9, Some(at(7))));
        s.purge(at(6));
        assert_eq!(s.entries(), 8..9, "purged before");
        s.truncate(Some(at(7)));
        assert_eq!((s.entries(), s.last), (8..8, Some(at(7))));
        s.purge(at(30));
        assert_eq!((s.entries(), s.last), (31..31, Some(at(30))));
        s.append(at(31));
        assert_eq!(s.entries(), 31..32);
    }
}
