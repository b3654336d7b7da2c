//! The log engine as the consensus library wants to see it.
//!
//! What the library relies on, and where it is kept: appended entries are readable when `append` returns (the engine's
//! tail); a completed flush covers every operation before it (one FIFO); a vote is durable before `save_vote` returns.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use futures::channel::oneshot;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, RaftLogReader};

use super::types::{Config, FromRaft, OEntry, OLogId, OVote, ToRaft};
use crate::storage::log::Log;

/// Most bytes of entries handed out for one append frame, one oversized entry excepted.
pub(crate) const REPLICATION_BYTES_MAX: usize = 2 * 1024 * 1024;

#[derive(Clone)]
pub(crate) struct LogStore {
    log: Log,
}

impl LogStore {
    pub(crate) fn new(log: Log) -> Self {
        LogStore { log }
    }

    /// Reads until the range is exhausted; the engine answers with at least one entry at a time.
    fn read_all(&self, mut next: u64, end: u64) -> Result<Vec<OEntry>, io::Error> {
        let mut entries = Vec::new();
        while next < end {
            let part = self.log.entries(next..end, usize::MAX)?;
            let Some(last) = part.last() else { break };
            next = last.log_id.index + 1;
            entries.extend(part.iter().map(ToRaft::to_raft));
        }
        Ok(entries)
    }
}

impl RaftLogReader<Config> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<OEntry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read_all(start, end)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<OEntry>, io::Error> {
        let part = self.log.entries(start..end, REPLICATION_BYTES_MAX)?;
        Ok(part.iter().map(ToRaft::to_raft).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<OVote>, io::Error> {
        Ok(self.log.vote().map(|vote| vote.to_raft()))
    }
}

impl RaftLogStorage<Config> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Config>, io::Error> {
        let (purged, last) = self.log.bounds();
        let purged = purged.map(|id| id.to_raft());
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.map(|id| id.to_raft()).or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &OVote) -> Result<(), io::Error> {
        let (done, saved) = oneshot::channel();
        self.log.save_vote(vote.to_plain(), Box::new(move |result| drop(done.send(result))));
        // Whoever asked for this vote is answered only after it: a vote that is forgotten elects two leaders.
        Ok(saved.await.map_err(|_| io::Error::other("the log engine has stopped"))??)
    }

    async fn save_committed(&mut self, committed: Option<OLogId>) -> Result<(), io::Error> {
        self.log.save_committed(committed.map(|id| id.to_plain()));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<OLogId>, io::Error> {
        Ok(self.log.committed().map(|id| id.to_raft()))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Config>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = OEntry> + Send,
        I::IntoIter: Send,
    {
        let entries = entries.into_iter().map(|entry| entry.to_plain()).collect();
        self.log.append(entries, Box::new(move |result| callback.io_completed(result.map_err(io::Error::from))));
        Ok(())
    }

    async fn truncate_after(&mut self, keep: Option<OLogId>) -> Result<(), io::Error> {
        self.log.truncate_after(keep.map(|id| id.to_plain()));
        Ok(())
    }

    async fn purge(&mut self, upto: OLogId) -> Result<(), io::Error> {
        self.log.purge(upto.to_plain());
        Ok(())
    }
}
