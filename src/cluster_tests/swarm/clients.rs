//! What the processes of the swarm do, and what they write down of it.

use std::collections::BTreeMap;
use std::future::pending;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{Either, select};

use crate::api::cluster::Cluster;
use crate::api::keys::prefix;
use crate::api::session::Session;
use crate::api::txn::{Transaction, list, put, read, remove, when};
use crate::api::watch::{Batch, Cause, Event};
use crate::codec::decode;
use crate::error::{Error, StartError};
use crate::recipes::lock::LockGuard;
use crate::rt;
use crate::rt::sim::World;
use crate::sim::check::{
    Answer, Belief, Commit, CommitLog, Condition, Evidence, FencedWrite, Hold, LeaseEnd, LeaseRecord, LockEvidence,
    LockRecord, Moment, Only, Op, Pending, Recorder, Renewal, RenewalAnswer, Span, Step, Test, WatchRecord, WatchStart,
    WatchStep, text,
};
use crate::sim::{Host, Sim};
use crate::storage::fault_disk::SplitMix;
use crate::types::{Fence, Revision, Ticket};

/// Keys of the recorded history are few, so that clients meet on them.
const KEYS: u64 = 5;
const HISTORY: &str = "k/";
/// Keys of the history that are judged one by one: no range of the others holds them.
const ALONE: &str = "history-alone/";
const REGISTERED: &str = "s/";
const LOCK: &str = "job";
const LOCK_TTL: Duration = Duration::from_millis(1300);
const OP_TIMEOUT_MS: u64 = 1200;
/// Within this, whatever a client is at has come to an end.
const PATIENCE: Duration = Duration::from_secs(4);

/// What all clients of one world write down. Times are the world's.
pub(super) struct Ledger {
    world: World,
    recorder: Recorder,
    clients: AtomicU64,
    over: AtomicBool,
    watches: Mutex<Vec<WatchRecord>>,
    lock: Mutex<LockRecord>,
    tickets: Mutex<Vec<Ticket>>,
    /// The lives of sessions, by the prefix of their keys.
    leases: Mutex<BTreeMap<String, LeaseRecord>>,
    /// Promises to holders of sessions that were not kept.
    broken: Mutex<Vec<String>>,
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
        })
    }

    fn now_ns(&self) -> u64 {
        self.world.now().as_nanos() as u64
    }

    fn client(&self) -> u64 {
        self.clients.fetch_add(1, Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(super) async fn last_write(&self, node: &Cluster, name: &str) -> Result<(), Error> {
        let (key, value) = (format!("{HISTORY}end/{name}"), name.to_owned());
        let call = self.recorder.invoke(self.client(), Op::set(&key, text(&value)));
        let written = node.set(&key, &value).timeout(Duration::from_secs(60)).await?;
        call.ok(Answer::Written, Some(written.revision));
        Ok(())
    }

    /// Notes what the watch at `place` has delivered, and up to where it says that it has.
    fn delivered(&self, place: usize, batch: &Result<Batch<String>, Error>, told: Revision) {
        let record = &mut self.watches.lock().unwrap()[place];
        record.push(batch);
        // Behind an error nothing is delivered any more, and no place is reached.
        if batch.is_ok() {
            record.steps.push(WatchStep::Place(told));
        }
    }

    /// Notes that the keys of a session went, now.
    fn ended(&self, key: &str, expired: bool) {
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
        let mut record = self.lock.lock().unwrap().clone();
        let now_ns = self.now_ns();
        let observed = |lease| LeaseRecord { observed_ns: now_ns, ..lease };
        if stood_still {
            record.holds.clear();
        }
        Evidence {
            history: self.recorder.history(),
            log: committed(node),
            watches: self.watches.lock().unwrap().clone(),
            leases: self.leases.lock().unwrap().values().cloned().map(observed).collect(),
            locks: vec![LockEvidence { record, claims: Some(Span::claims(LOCK)) }],
            strangers: vec![Span::prefix("fenced/"), Span::prefix(REGISTERED), Span::not_flat()],
        }
    }
}

/// All that was ever committed, as a node's history has it.
fn committed(node: &Cluster) -> CommitLog {
    let view = node.node().state().view();
    assert_eq!(view.floor, Revision::ZERO, "history is kept whole here");
    let (mut commits, mut from) = (Vec::new(), Revision::new(1));
    while from <= view.revision {
        let (changes, to) = view.changes(from..=view.revision, 1000).expect("it is kept");
        for of_one in changes.chunk_by(|a, b| a.id.revision == b.id.revision) {
            commits.extend(Commit::of_changes(of_one, |change| shown(&change.value)));
        }
        from = to.next();
    }
    CommitLog::complete(commits)
}

/// A stored string as [`text`] has it, and whatever else there is.
fn shown(stored: &bytes::Bytes) -> String {
    decode::<String>("", stored).map_or_else(|_| format!("{stored:?}"), |value| text(&value))
}

/// One life of a process: its node and its clients.
pub(super) async fn process(host: Host, ledger: Arc<Ledger>) -> Result<(), StartError> {
    let cluster = host.cluster().await?;
    let rng = || SplitMix(rt::random_u64());
    for _ in 0..2 {
        host.spawn(work(cluster.clone(), ledger.clone(), rng()));
    }
    host.spawn(hold(cluster.clone(), ledger.clone(), rng()));
    host.spawn(register(cluster.clone(), ledger.clone(), rng()));
    host.spawn(look_on(cluster.clone(), ledger.clone()));
    host.spawn(watch(cluster.clone(), ledger.clone(), rng(), host.name().to_owned()));
    let _kept = cluster;
    pending().await
}

/// Operations of all kinds, each recorded with its answer.
async fn work(cluster: Cluster, ledger: Arc<Ledger>, mut rng: SplitMix) {
    let mut client = ledger.client();
    let mut number = 0;
    while !ledger.is_over() {
        number += 1;
        let worker = Worker { cluster: &cluster, ledger: &ledger, client, value: format!("{client}-{number}") };
        match worker.one(&mut rng).await {
            Ok(()) => {}
            Err(Error::Stopped { .. }) => return,
            // Whoever does not know what became of its call is another client from then on.
            Err(_) => client = ledger.client(),
        }
        rt::sleep(Duration::from_millis(rng.below(60))).await;
    }
}

struct Worker<'a> {
    cluster: &'a Cluster,
    ledger: &'a Ledger,
    client: u64,
    value: String,
}

impl Worker<'_> {
    fn invoke(&self, op: Op) -> Pending {
        self.ledger.recorder.invoke(self.client, op)
    }

    async fn one(&self, rng: &mut SplitMix) -> Result<(), Error> {
        // Keys that nothing joins with others can be judged as a black box: half of all calls are about those.
        let alone = rng.below(2) == 0;
        let key = if alone { format!("{ALONE}{}", rng.below(2)) } else { format!("{HISTORY}{}", rng.below(KEYS)) };
        let timeout = Duration::from_millis(1 + rng.below(OP_TIMEOUT_MS));
        let (cluster, written) = (self.cluster, text(&self.value));
        match rng.below(10) {
            0..=2 => {
                let call = self.invoke(Op::set(&key, written));
                let replaced = cluster.set(&key, &self.value).prev().timeout(timeout).await;
                self.told(call, replaced, |replaced| (Answer::replaced(replaced), Some(replaced.revision)))
            }
            3 => {
                let call = self.invoke(Op::set_only(&key, written, Only::Absent));
                let cas = cluster.set(&key, &self.value).if_absent().timeout(timeout).await;
                self.told(call, cas, Answer::cas)
            }
            4 => {
                let call = self.invoke(Op::delete(key.as_str()));
                let deleted = cluster.delete(key.as_str()).timeout(timeout).await;
                self.told(call, deleted, |deleted| (Answer::Deleted(deleted.count), Some(deleted.revision)))
            }
            5 if !alone => {
                let call = self.invoke(Op::range(Span::prefix(HISTORY)));
                let listed = cluster.range::<String>(prefix(HISTORY)).timeout(timeout).await;
                self.told(call, listed, |listed| (Answer::listed(listed), None))
            }
            6 => {
                let call = self.invoke(Op::Get { key: key.clone(), moment: Moment::Stale });
                let found = cluster.get::<String>(&key).stale().await;
                self.told(call, found, |found| (Answer::got(found.as_ref()), None))
            }
            7 if !alone => self.transfer(key, timeout).await,
            _ => {
                let call = self.invoke(Op::get(&key));
                let found = cluster.get::<String>(&key).timeout(timeout).await;
                self.told(call, found, |found| (Answer::got(found.as_ref()), None))
            }
        }
    }

    /// If `key` is there, it goes and another comes; otherwise both are looked at.
    async fn transfer(&self, key: String, timeout: Duration) -> Result<(), Error> {
        let other = format!("{HISTORY}0");
        if key == other {
            return Ok(());
        }
        let condition = Condition { keys: Span::key(&key), test: Test::Present };
        let then = vec![Step::Remove(Span::key(&key)), Step::put(&other, text(&self.value))];
        let otherwise = vec![Step::Read(key.clone()), Step::List(Span::prefix(HISTORY))];
        let call = self.invoke(Op::Txn { when: vec![condition], then: then.clone(), otherwise: otherwise.clone() });
        let transaction = self
            .cluster
            .transaction()
            .when(when(key.as_str()).present())
            .then(remove(key.as_str()))
            .then(put(&other, &self.value))
            .otherwise(read(&key))
            .otherwise(list(prefix(HISTORY)));
        match transaction.timeout(timeout).await {
            // What was done is known, and what was read is not.
            Ok(outcome) if outcome.results_lost() => call.unknown(None),
            Ok(outcome) => {
                let answer = Answer::txn::<String>(&outcome, &then, &otherwise).expect("it reads strings");
                call.ok(answer, Some(outcome.revision()));
            }
            Err(error) => return self.failed(call, error),
        }
        Ok(())
    }

    fn told<T>(
        &self,
        call: Pending,
        outcome: Result<T, Error>,
        answer: impl FnOnce(&T) -> (Answer, Option<Revision>),
    ) -> Result<(), Error> {
        match outcome {
            Ok(outcome) => {
                let (answer, revision) = answer(&outcome);
                call.ok(answer, revision);
                Ok(())
            }
            Err(error) => self.failed(call, error),
        }
    }

    fn failed(&self, call: Pending, error: Error) -> Result<(), Error> {
        call.error(&error);
        if let Error::Indeterminate { ticket } = &error {
            self.ledger.tickets.lock().unwrap().push(*ticket);
        }
        Err(error)
    }
}

/// A guard that is believed in, until this is dropped: by its holder, or with its process.
struct Held<'a> {
    ledger: &'a Ledger,
    fence: Fence,
    lost: bool,
}

impl<'a> Held<'a> {
    fn new(ledger: &'a Ledger, client: u64, guard: &LockGuard) -> Self {
        let fence = guard.fence();
        let hold = Hold { client, fence, granted_ns: ledger.now_ns(), ended_ns: None, lost: false };
        ledger.lock.lock().unwrap().holds.push(hold);
        Held { ledger, fence, lost: false }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let now_ns = self.ledger.now_ns();
        let mut lock = self.ledger.lock.lock().unwrap();
        let hold = lock.holds.iter_mut().find(|hold| hold.fence == self.fence).expect("it was written down");
        (hold.ended_ns, hold.lost) = (Some(now_ns), self.lost);
    }
}

/// Takes the lock again and again, and writes under its fence; also when it is lost.
async fn hold(cluster: Cluster, ledger: Arc<Ledger>, mut rng: SplitMix) {
    while !ledger.is_over() {
        let client = ledger.client();
        let guard = match cluster.lock(LOCK).ttl(LOCK_TTL).timeout(PATIENCE / 2).await {
            Ok(guard) => guard,
            Err(Error::Stopped { .. }) => return,
            Err(_) => {
                rt::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let mut held = Held::new(&ledger, client, &guard);
        let working = async {
            for _ in 0..rng.below(3) {
                fenced(&guard, &ledger, client).await;
                rt::sleep(Duration::from_millis(rng.below(150))).await;
            }
        };
        let lost = matches!(select(pin!(guard.lost()), pin!(working)).await, Either::Left(_));
        held.lost = lost;
        drop(held);
        if lost {
            // As somebody who does not listen.
            fenced(&guard, &ledger, client).await;
        }
        let _ = guard.release().await;
        rt::sleep(Duration::from_millis(rng.below(100))).await;
    }
}

async fn fenced(guard: &LockGuard, ledger: &Ledger, client: u64) {
    let fence = guard.fence();
    let key = format!("fenced/{client}");
    let write = match guard.txn().then(put(&key, &"x".to_owned())).timeout(Duration::from_millis(900)).await {
        Ok(outcome) => FencedWrite { fence, revision: outcome.revision(), applied: true },
        Err(Error::Fenced { current, .. }) => FencedWrite { fence, revision: current, applied: false },
        Err(_) => return,
    };
    ledger.lock.lock().unwrap().writes.push(write);
}

/// Registers itself under sessions, several keys at once, and looks whether they stand.
async fn register(cluster: Cluster, ledger: Arc<Ledger>, mut rng: SplitMix) {
    while !ledger.is_over() {
        let ttl = Duration::from_millis(300 + rng.below(1500));
        let invoked_ns = ledger.now_ns();
        match cluster.session().ttl(ttl).timeout(PATIENCE / 2).await {
            Ok(session) => registered(&cluster, &ledger, &mut rng, session, invoked_ns).await,
            Err(Error::Stopped { .. }) => return,
            Err(_) => rt::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// As long as the session is sure of itself, its keys are there, whichever leader is asked.
async fn registered(cluster: &Cluster, ledger: &Ledger, rng: &mut SplitMix, session: Session, invoked_ns: u64) {
    let name = format!("{REGISTERED}{}/", ledger.client());
    let granted = Renewal { invoked_ns, returned_ns: ledger.now_ns(), answer: RenewalAnswer::Alive };
    let record = LeaseRecord {
        lease: session.lease(),
        ttl_ms: session.ttl().as_millis() as u64,
        renewals: vec![granted],
        beliefs: Vec::new(),
        end: None,
        observed_ns: 0,
    };
    ledger.leases.lock().unwrap().insert(name.clone(), record);
    let believe = || {
        let belief = Belief { at_ns: ledger.now_ns(), valid_for_ns: session.valid_for().as_nanos() as u64 };
        ledger.leases.lock().unwrap().get_mut(&name).expect("just noted").beliefs.push(belief);
    };
    let keys = (0..4).map(|n| put(format!("{name}{n}"), &n).session(&session));
    let registering = keys.fold(cluster.transaction(), Transaction::then).timeout(PATIENCE / 2);
    if registering.await.is_err() {
        return;
    }
    let sure = || session.lifeline().standing().sure(rt::boot_now());
    for _ in 0..rng.below(8) {
        let before = sure();
        believe();
        let found = cluster.range::<u64>(prefix(name.as_str())).timeout(PATIENCE / 4).await;
        if let Ok(found) = found
            && found.len() < 4
            && before.is_some()
            && before == sure()
        {
            let what =
                format!("{name} has {} keys at {} ns, and its {session:?} is sure", found.len(), ledger.now_ns());
            ledger.broken.lock().unwrap().push(what);
        }
        believe();
        rt::sleep(Duration::from_millis(rng.below(1 + session.ttl().as_millis() as u64 / 2))).await;
    }
}

/// Notes when sessions end: at the first node that applies it, since somebody looks on at each.
async fn look_on(cluster: Cluster, ledger: Arc<Ledger>) {
    let Ok(mut watch) = cluster.watch::<u64>(prefix(REGISTERED)).backpressure().await else { return };
    while let Some(Ok(batch)) = watch.next().await {
        for event in batch.events {
            if let Event::Delete { key, cause, .. } = &event {
                ledger.ended(key, *cause == Cause::Expired);
            }
        }
    }
}

/// Watches the recorded keys, from the beginning or where it left off, at times slowly.
async fn watch(cluster: Cluster, ledger: Arc<Ledger>, mut rng: SplitMix, name: String) {
    let life = ledger.client();
    let mut resume = Revision::new(1);
    while !ledger.is_over() {
        let start = if rng.below(2) == 0 { resume } else { Revision::new(1) };
        let backpressure = rng.below(2) == 0;
        let builder = cluster.watch::<String>(prefix(HISTORY)).from(start).prev();
        let builder = if backpressure { builder.backpressure() } else { builder.coalesce() };
        let Ok(mut watch) = builder.await else { return };
        let record =
            WatchRecord::new(format!("{name}/{life} from {start}"), Span::prefix(HISTORY), WatchStart::From(start));
        let place = {
            let mut watches = ledger.watches.lock().unwrap();
            watches.push(WatchRecord { prev: true, backpressure, ..record });
            watches.len() - 1
        };
        for _ in 0..rng.below(200) {
            let Ok(next) = rt::timeout(PATIENCE / 2, watch.next()).await else { break };
            let Some(batch) = next else { return };
            let told = watch.revision();
            ledger.delivered(place, &batch, told);
            match batch {
                Ok(_) => resume = told.next(),
                Err(_) => break,
            }
            if rng.below(20) == 0 {
                rt::sleep(Duration::from_millis(rng.below(1500))).await;
            }
        }
    }
}
