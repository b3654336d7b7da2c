//! Bounds what is kept of the past: of the history, by count, age and the quota, and of the log, by bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::Node;
use crate::command::{Command, Response};
use crate::config::Retention;
use crate::rt;
use crate::storage::view::View;
use crate::types::Revision;

/// How often the leader looks whether history has outgrown its bounds.
const COMPACT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a compaction may take before the next look.
const COMPACT_TIMEOUT: Duration = Duration::from_millis(500);
/// The last part of the quota (one eighth) in which history is given up for room.
const QUOTA_MARGIN: u64 = 8;
/// Steps in which history grows too old: it is forgotten up to one such part of the bound later, and that many times the
/// revision is remembered that was the newest then.
const AGE_STEPS: u32 = 64;
/// Most log entries left by a purge for bytes, for followers that are a little behind; fewer if they are large.
const LOG_KEPT_ENTRIES: u64 = 10_000;

/// Which revision was the newest when.
#[derive(Debug)]
struct Ages {
    bound: Duration,
    /// By ascending time: no two within a step, and none but the first beyond the bound.
    seen: VecDeque<(Duration, u64)>,
}

impl Ages {
    fn new(bound: Duration) -> Self {
        Ages { bound, seen: VecDeque::new() }
    }

    /// `revision` is the newest one `now`. Answers the revision that everything below of was superseded too long ago.
    fn look(&mut self, now: Duration, revision: u64) -> u64 {
        if self.seen.back().is_none_or(|(last, _)| now.saturating_sub(*last) >= self.bound / AGE_STEPS) {
            self.seen.push_back((now, revision));
        }
        let too_old = |(at, _): &(Duration, u64)| now.saturating_sub(*at) >= self.bound;
        while self.seen.get(1).is_some_and(too_old) {
            self.seen.pop_front();
        }
        self.seen.front().filter(|seen| too_old(seen)).map_or(0, |(_, revision)| *revision)
    }
}

impl Node {
    /// Proposes, while this node leads, to forget history beyond its bounds; and has the log purged by bytes.
    pub(super) async fn keep_compacting(self: Arc<Self>) {
        let mut ages = self.settings.history_age.map(Ages::new);
        loop {
            rt::sleep(COMPACT_INTERVAL).await;
            if self.log.bytes() > self.settings.retention.log_bytes {
                self.purge_by_bytes().await;
            }
            let (now, view) = (rt::boot_now(), self.state.view());
            // Ages the views that readers hold, so that a forgotten one does not keep history for ever.
            self.state.tick(now);
            // Also while another node leads: this one is to know how old history is when its turn comes.
            let too_old = ages.as_mut().map_or(0, |ages| ages.look(now, view.revision.get()));
            let floor = too_old.max(self.too_many(&view));
            if floor > view.floor.get() && self.status.borrow().leads {
                match self.housekeep(Command::Compact { floor: Revision::new(floor) }, COMPACT_TIMEOUT).await {
                    Ok(Response::Compacted { floor }) => tracing::debug!(%floor, "history compacted"),
                    other => tracing::debug!(?other, "history not compacted yet"),
                }
            }
        }
    }

    /// The revision up to which history goes beyond its count, or is given up for room; 0: there is none.
    fn too_many(&self, view: &View) -> u64 {
        let (revision, floor) = (view.revision.get(), view.floor.get());
        let keep = self.settings.history_revisions;
        let kept = revision.saturating_sub(floor);
        // In steps of a tenth, so that an idle bound does not cost an entry per write. Near the quota half of the history
        // goes each time: it is part of what is counted, and deleting makes room only when it is forgotten.
        let near_quota = self.settings.quota_bytes - self.settings.quota_bytes / QUOTA_MARGIN;
        let keep = if view.counters.bytes > near_quota { keep.min(kept / 2) } else { keep };
        if kept > keep + keep / 10 { revision - keep } else { 0 }
    }

    async fn purge_by_bytes(&self) {
        let raft = self.raft();
        if raft.snapshot().await.is_err() {
            return;
        }
        if let Some(durable) = self.state.durable_applied() {
            let Retention { kept_entries, log_bytes, .. } = self.settings.retention;
            let (purged, last) = self.log.bounds();
            let entries = last.map_or(0, |last| last.index) - purged.map_or(0, |purged| purged.index);
            let each = (self.log.bytes() / entries.max(1)).max(1);
            let kept = LOG_KEPT_ENTRIES.min(kept_entries).min(log_bytes / 2 / each);
            let _ = raft.purge_log(durable.index.saturating_sub(kept)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_superseded_before_the_bound_is_too_old_and_nothing_else() {
        let mut ages = Ages::new(Duration::from_secs(64));
        let mut look = |now: u64, revision| ages.look(Duration::from_secs(now), revision);
        assert_eq!(look(1000, 50), 0);
        assert_eq!(look(1001, 60), 0);
        assert_eq!(look(1063, 60), 0);
        // The state of 1000 was superseded behind it by a revision that nobody knows the age of: 50 is still needed.
        assert_eq!(look(1064, 70), 50);
        assert_eq!(look(1065, 80), 60);
        // Nobody looked for long.
        assert_eq!(look(5000, 90), 80);
        assert_eq!(look(5001, 95), 80);
        assert_eq!(look(5064, 95), 90);
    }

    #[test]
    fn however_often_it_is_looked_at_little_is_remembered() {
        let mut ages = Ages::new(Duration::from_secs(10));
        for ms in 0..100_000 {
            let floor = ages.look(Duration::from_millis(ms), ms);
            let late = ms.saturating_sub(floor).saturating_sub(10_000);
            assert!(floor == 0 && ms < 10_200 || late <= 200, "{floor} at {ms}");
            assert!(ages.seen.len() <= AGE_STEPS as usize + 2);
        }
    }
}
