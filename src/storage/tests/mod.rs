//! Tests of the files as a whole: the log against a model, against crashes at every operation, and the opening.

#[cfg(test)]
mod crash;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod hooked;
#[cfg(test)]
mod log;
#[cfg(test)]
mod open;
#[cfg(test)]
mod pair;
pub(crate) mod random;
#[cfg(test)]
mod reads;
mod script;
#[cfg(test)]
mod segments;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::fault_disk::FaultDisk;
use super::log::{Log, Op};
use super::log_engine::LogEngine;
use super::{Done, Opened};
use crate::error::{StartError, StorageError};
use crate::rt::worker::{Engine, Step};
use crate::types::{LeaderId, LogEntry, LogId, NodeId, Payload, Vote};

/// So small that a run of a few dozen entries goes through several segments.
pub(crate) const SMALL_SEGMENT_BYTES: usize = 40 << 10;

/// Which requests were answered, in the order of the answers.
type Answers = Arc<Mutex<Vec<(usize, Result<(), StorageError>)>>>;

/// A log whose engine is driven by hand.
struct Rig {
    opened: Opened,
    queue: VecDeque<Op>,
    answers: Answers,
    asked: usize,
}

impl Rig {
    fn open(disk: &FaultDisk) -> Result<Self, StartError> {
        Ok(Rig::of(open(disk)?))
    }

    fn of(opened: Opened) -> Self {
        Rig { opened, queue: VecDeque::new(), answers: Answers::default(), asked: 0 }
    }

    fn log(&self) -> &Log {
        &self.opened.log
    }

    fn engine(&mut self) -> &mut LogEngine {
        &mut self.opened.log_engine
    }

    /// A callback that notes the answer under the number of the request.
    fn done(&mut self) -> Done {
        let (number, answers) = (self.asked, self.answers.clone());
        self.asked += 1;
        Box::new(move |result| answers.lock().unwrap().push((number, result)))
    }

    fn append(&mut self, range: std::ops::Range<u64>, term: u64) {
        let done = self.done();
        self.log().append(range.map(|index| entry(term, index)).collect(), done);
    }

    /// Appends one entry of about `bytes`.
    fn append_sized(&mut self, index: u64, term: u64, bytes: usize) {
        let done = self.done();
        self.log().append(vec![sized_entry(term, index, bytes)], done);
    }

    fn vote(&mut self, term: u64) {
        let done = self.done();
        self.log().save_vote(vote(term), done);
    }

    fn barrier(&mut self) {
        let done = self.done();
        self.log().barrier(done);
    }

    fn step(&mut self) -> Step {
        self.opened.log.mailbox().take(&mut self.queue);
        let queue = &mut self.queue;
        self.opened.log_engine.step(queue)
    }

    /// Steps until nothing is left to do, as if the time of what is lazy were always up.
    fn settle(&mut self) {
        let settled = (0..1000).any(|_| matches!(self.step(), Step::Idle | Step::Stop));
        assert!(settled, "the engine always finds more to do");
    }

    /// The requests answered so far, in the order of the answers; all of them well.
    fn answered(&self) -> Vec<usize> {
        let answers = self.answers.lock().unwrap();
        answers.iter().map(|(number, result)| result.clone().map(|()| *number).expect("no request failed")).collect()
    }

    fn contents(&self) -> Contents {
        Contents::of(self.log())
    }
}

/// Opens a directory as the node "a". Each call mints another id, so that a new directory is told from an old one.
fn open(disk: &FaultDisk) -> Result<Opened, StartError> {
    super::open_sized(disk.mount(), "a", SMALL_SEGMENT_BYTES, mint)
}

fn mint() -> (NodeId, u64) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    (NodeId::new(id), id << 32)
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader: LeaderId { term, node: NodeId::new(1) }, index }
}

/// An entry whose content tells it from any other of its index.
fn entry(term: u64, index: u64) -> LogEntry {
    sized_entry(term, index, 0)
}

fn sized_entry(term: u64, index: u64, bytes: usize) -> LogEntry {
    let mut payload = format!("{term}/{index}").into_bytes();
    payload.resize(payload.len() + bytes, b'.');
    LogEntry { log_id: log_id(term, index), payload: Payload::Proposal(Bytes::from(payload)) }
}

fn vote(term: u64) -> Vote {
    Vote { leader: LeaderId { term, node: NodeId::new(2) }, committed: term.is_multiple_of(2) }
}

/// All that a log can be asked for, and the simplest thing that behaves like one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Contents {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, LogEntry>,
}

impl Contents {
    fn of(log: &Log) -> Self {
        let (purged, last) = log.bounds();
        let entries = log.entries(0..u64::MAX, usize::MAX).expect("the log can be read");
        let entries: BTreeMap<u64, LogEntry> = entries.into_iter().map(|entry| (entry.log_id.index, entry)).collect();
        let contents = Contents { vote: log.vote(), committed: log.committed(), purged, entries };
        assert_eq!(contents.last(), last, "the bounds and the entries disagree");
        contents
    }

    fn last(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|entry| entry.log_id).or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    fn append(&mut self, entries: Vec<LogEntry>) {
        self.entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
    }

    fn truncate(&mut self, keep: Option<LogId>) {
        self.entries.retain(|index, _| keep.is_some_and(|keep| *index <= keep.index));
    }

    fn purge(&mut self, upto: LogId) {
        self.entries.retain(|index, _| *index > upto.index);
        self.purged = self.purged.max(Some(upto));
    }
}
