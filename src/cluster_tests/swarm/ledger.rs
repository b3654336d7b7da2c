//! What the clients of the swarm write down, and what is committed, for the oracles to judge.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::clients::{HISTORY, PATIENCE};
use super::counters::{COUNTERS, Counts};
use super::holders::{LOCK, REGISTERED};
use super::queues::Items;
use crate::api::cluster::Cluster;
use crate::api::keys::prefix;
use crate::api::watch::Batch;
use crate::codec::decode;
use crate::error::Error;
use crate::rt;
use crate::rt::sim::World;
use crate::sim::Sim;
use crate::sim::check::{
    Answer, Commit, CommitLog, Evidence, LeaseEnd, LeaseRecord, LockEvidence, LockRecord, Op, Recorder, Span,
    WatchRecord, WatchStep, text,
};
use crate::storage::view::View;
use crate::types::{Revision, Ticket};

/// What all clients of one world write down. Times are the world's.
pub(super) struct Ledger {
    world: World,
    pub(super) recorder: Recorder,
    clients: AtomicU64,
    over: AtomicBool,
    pub(super) watches: Mutex<Vec<WatchRecord>>,
    pub(super) lock: Mutex<LockRecord>,
    pub(super) tickets: Mutex<Vec<Ticket>>,
    /// The lives of sessions, by the prefix of their keys.
    pub(super) leases: Mutex<BTreeMap<String, LeaseRecord>>,
    /// Promises to holders of sessions that were not kept.
    pub(super) broken: Mutex<Vec<String>>,
    pub(super) counts: Counts,
    pub(super) items: Items,
    /// The newest revision that any client of the recorded keys was told.
    acknowledged: AtomicU64,
    /// Everything that was committed, as far as it was read. History may be forgotten behind it.
    commits: Mutex<Vec<Commit>>,
}

impl Ledger {
    pub(super) fn new(sim: &Sim) -> Arc<Self> {
        let (world, clock) = (sim.world().clone(), sim.world().clone());
        Arc::new(Ledger {
            recorder: Recorder::new(move || clock.now().as_nanos() as u64),
            world,
            clients: AtomicU64::new(1),
            over: AtomicBool::new(false),
            watches: Mutex::default(),
            lock: Mutex::new(LockRecord { name: LOCK.into(), ..LockRecord::default() }),
            tickets: Mutex::default(),
            leases: Mutex::default(),
            broken: Mutex::default(),
            counts: Counts::default(),
            items: Items::default(),
            acknowledged: AtomicU64::new(0),
            commits: Mutex::default(),
        })
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.world.now().as_nanos() as u64
    }

    pub(super) fn client(&self) -> u64 {
        self.clients.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(super) async fn last_write(&self, node: &Cluster, name: &str) -> Result<(), Error> {
        let (key, value) = (format!("{HISTORY}end/{name}"), name.to_owned());
        let call = self.recorder.invoke(self.client(), Op::set(&key, text(&value)));
        let written = node.set(&key, &value).timeout(Duration::from_secs(60)).await?;
        call.ok(Answer::Written, Some(written.revision));
        self.acknowledge(written.revision);
        Ok(())
    }

    /// Begins to note what a watch delivers; where.
    pub(super) fn watching(&self, record: WatchRecord) -> usize {
        let mut watches = self.watches.lock().unwrap();
        watches.push(record);
        watches.len() - 1
    }

    /// Notes what the watch at `place` has delivered, and up to where it says that it has.
    pub(super) fn delivered(&self, place: usize, batch: &Result<Batch<String>, Error>, told: Revision) {
        let record = &mut self.watches.lock().unwrap()[place];
        record.push(batch);
        // Behind an error nothing is delivered any more, and no place is reached.
        if batch.is_ok() {
            record.steps.push(WatchStep::Place(told));
        }
    }

    /// Notes what a mirror shows, as a step of the watch at `place`.
    pub(super) fn mirrored(&self, place: usize, step: WatchStep) {
        self.watches.lock().unwrap()[place].steps.push(step);
    }

    /// Notes that somebody was told this revision.
    pub(super) fn acknowledge(&self, revision: Revision) {
        self.acknowledged.fetch_max(revision.get(), Ordering::AcqRel);
    }

    /// The newest revision that anybody was told.
    pub(super) fn acknowledged(&self) -> Revision {
        Revision::new(self.acknowledged.load(Ordering::Acquire))
    }

    /// Notes what `node` has committed behind what is known; up to where that is.
    pub(super) fn collect(&self, node: &Cluster) -> Revision {
        let view = node.node().state().view();
        let mut commits = self.commits.lock().unwrap();
        let known = commits.last().map_or(Revision::ZERO, |commit| commit.revision);
        assert!(view.floor <= known, "history up to {} was forgotten, and {known} was read", view.floor);
        commits.extend(committed(&view, known));
        commits.last().map_or(Revision::ZERO, |commit| commit.revision)
    }

    /// Notes that the keys of a session went, now.
    pub(super) fn ended(&self, key: &str, expired: bool) {
        let name = &key[..=key.rfind('/').expect("a prefix and a number")];
        if let Some(record) = self.leases.lock().unwrap().get_mut(name) {
            record.end.get_or_insert(LeaseEnd { applied_ns: self.now_ns(), expired });
        }
    }

    /// Whose keys went by themselves.
    pub(super) fn expired(&self) -> usize {
        self.leases.lock().unwrap().values().filter(|lease| lease.end.is_some_and(|end| end.expired)).count()
    }

    /// Waits until every session has ended that nobody holds on to any more: none may last for ever.
    pub(super) async fn outlive_sessions(&self, node: &Cluster) {
        let deadline = rt::Instant::now() + Duration::from_secs(60);
        while node.range::<u64>(prefix(REGISTERED)).count().await.expect("all is whole") > 0 {
            assert!(rt::Instant::now() < deadline, "keys of sessions that are gone are still there");
            rt::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What holders of sessions complain of.
    pub(super) fn broken(&self) -> Vec<String> {
        self.broken.lock().unwrap().clone()
    }

    /// Lets all clients finish what they are at.
    pub(super) async fn end(&self) {
        self.over.store(true, Ordering::Release);
        rt::sleep(PATIENCE).await;
    }

    /// Has every ticket settled, so that nothing of unknown outcome is still to come.
    pub(super) async fn settle(&self, node: &Cluster) {
        let tickets = std::mem::take(&mut *self.tickets.lock().unwrap());
        for ticket in tickets {
            node.resolve(&ticket).await.unwrap_or_else(|error| panic!("{ticket:?} is not resolved: {error}"));
        }
    }

    /// All that was written down, beside what `node` has committed. A holder that stood still could not say when it
    /// stopped believing: then only its writes count.
    pub(super) fn evidence(&self, node: &Cluster, stood_still: bool) -> Evidence {
        self.collect(node);
        let commits = self.commits.lock().unwrap().clone();
        let view = node.node().state().view();
        let kept = commits.partition_point(|commit| commit.revision <= view.floor);
        assert_eq!(committed(&view, view.floor), commits[kept..], "the past is another than it was");
        let mut record = self.lock.lock().unwrap().clone();
        let now_ns = self.now_ns();
        let observed = |lease| LeaseRecord { observed_ns: now_ns, ..lease };
        if stood_still {
            record.holds.clear();
        }
        Evidence {
            history: self.recorder.history(),
            log: CommitLog::complete(commits),
            watches: self.watches.lock().unwrap().clone(),
            leases: self.leases.lock().unwrap().values().cloned().map(observed).collect(),
            locks: vec![LockEvidence { record, claims: Some(Span::claims(LOCK)) }],
            strangers: vec![
                Span::prefix("fenced/"),
                Span::prefix(REGISTERED),
                Span::prefix(COUNTERS),
                Span::not_flat(),
            ],
        }
    }
}

/// All that a view's history has behind `known`.
fn committed(view: &View, known: Revision) -> Vec<Commit> {
    let (mut commits, mut from) = (Vec::new(), known.next());
    while from <= view.revision {
        let (changes, to) = view.changes(from..=view.revision, 1000).expect("it is kept");
        for of_one in changes.chunk_by(|a, b| a.id.revision == b.id.revision) {
            commits.extend(Commit::of_changes(of_one, |change| shown(&change.value)));
        }
        from = to.next();
    }
    commits
}

/// A stored string as [`text`] has it, and whatever else there is.
fn shown(stored: &bytes::Bytes) -> String {
    decode::<String>("", stored).map_or_else(|_| format!("{stored:?}"), |value| text(&value))
}
