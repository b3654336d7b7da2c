//! "This has happened": how a test with faults learns that it was worth running.
//!
//! A run in which nothing failed says little if nothing that could fail came up. Code at a place that only faults lead to
//! sets a [`Mark`]; whoever plays a simulation looks afterwards which were set. Outside of tests and simulations a mark is
//! nothing at all.

/// A place in the code that only faults lead to.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// A snapshot replaced a node's state.
    SnapshotInstalled,
    /// Entries were taken out of the end of a log.
    LogTruncated,
    /// A log that did not hold what was applied was cleared at a start.
    LogCleared,
    /// A database was found as a crash had left it.
    DatabaseRepaired,
    /// The leader changed while a write was under way.
    LeaderChangedUnderWrite,
    /// A write of unknown outcome turned out to be applied.
    UnknownApplied,
    /// A write of unknown outcome turned out not to be, for ever.
    UnknownNever,
    /// A write that was decided came again and was answered from memory.
    DuplicateSuppressed,
    /// A lease ran out that the leader had taken over from another.
    InheritedLeaseExpired,
    /// A renewal was not answered because no quorum confirmed the leader, or it was one no more.
    KeepaliveRefused,
    /// A waiter's turn came because the claim before it ran out.
    LockGrantedByExpiry,
    /// A write under a superseded fence was refused.
    StaleFenceRefused,
    /// A watcher fell behind and was given the present state.
    WatchLagged,
    /// A watcher was told that its start is compacted.
    WatchCompacted,
    /// A watcher that began in the past read the history.
    WatchResumed,
}

impl Mark {
    pub(crate) const ALL: [Mark; 15] = [
        Mark::SnapshotInstalled,
        Mark::LogTruncated,
        Mark::LogCleared,
        Mark::DatabaseRepaired,
        Mark::LeaderChangedUnderWrite,
        Mark::UnknownApplied,
        Mark::UnknownNever,
        Mark::DuplicateSuppressed,
        Mark::InheritedLeaseExpired,
        Mark::KeepaliveRefused,
        Mark::LockGrantedByExpiry,
        Mark::StaleFenceRefused,
        Mark::WatchLagged,
        Mark::WatchCompacted,
        Mark::WatchResumed,
    ];
}

/// Counts that this has happened, on this thread: a simulation is one. Tells the simulated world that it happens in.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn mark(mark: Mark) {
    COUNTS.with(|counts| counts[mark as usize].set(counts[mark as usize].get() + 1));
    super::sim::marked(mark);
}

/// Nobody counts.
#[cfg(not(any(test, feature = "sim")))]
#[inline(always)]
pub(crate) fn mark(_: Mark) {}

/// How often each has been set on this thread.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn counts() -> [u64; Mark::ALL.len()] {
    COUNTS.with(|counts| std::array::from_fn(|place| counts[place].get()))
}

#[cfg(any(test, feature = "sim"))]
thread_local!(static COUNTS: [std::cell::Cell<u64>; Mark::ALL.len()] = const { [const { std::cell::Cell::new(0) }; Mark::ALL.len()] });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_has_a_place_of_its_own() {
        for (place, one) in Mark::ALL.into_iter().enumerate() {
            let before = counts();
            mark(one);
            let mut after = counts();
            assert_eq!(after[place], before[place] + 1, "{one:?}");
            after[place] = before[place];
            assert_eq!(after, before);
        }
    }
}
