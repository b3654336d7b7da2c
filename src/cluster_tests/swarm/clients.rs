//! What the processes of the swarm do, and what they write down of it.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use super::counters::count;
use super::holders::{REGISTERED, hold, register};
use super::ledger::Ledger;
use super::mirrors::reflect;
use super::queues::{push, take};
use crate::api::cluster::Cluster;
use crate::api::keys::prefix;
use crate::api::txn::{list, put, read, remove, when};
use crate::api::watch::{Cause, Event};
use crate::error::{Error, StartError};
use crate::rt;
use crate::sim::Host;
use crate::sim::check::{
    Answer, Condition, Moment, Only, Op, Pending, Span, Step, Test, WatchRecord, WatchStart, text,
};
use crate::storage::fault_disk::SplitMix;
use crate::types::Revision;

/// Keys of the recorded history are few, so that clients meet on them.
const KEYS: u64 = 5;
pub(super) const HISTORY: &str = "k/";
/// Keys of the history that are judged one by one: no range of the others holds them.
const ALONE: &str = "history-alone/";
const OP_TIMEOUT_MS: u64 = 1200;
/// Within this, whatever a client is at has come to an end.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);

/// One life of a process: its node and its clients.
pub(super) async fn process(host: Host, ledger: Arc<Ledger>) -> Result<(), StartError> {
    let cluster = host.cluster().await?;
    let rng = || SplitMix(rt::random_u64());
    for _ in 0..2 {
        host.spawn(work(cluster.clone(), ledger.clone(), rng()));
    }
    host.spawn(hold(cluster.clone(), ledger.clone(), rng()));
    host.spawn(register(cluster.clone(), ledger.clone(), rng()));
    host.spawn(count(cluster.clone(), ledger.clone(), rng()));
    host.spawn(push(cluster.clone(), ledger.clone(), rng()));
    host.spawn(take(cluster.clone(), ledger.clone(), rng()));
    host.spawn(reflect(cluster.clone(), ledger.clone(), rng(), host.name().to_owned()));
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
                revision.into_iter().for_each(|revision| self.ledger.acknowledge(revision));
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

/// Notes when sessions end: at the first node that applies it, since somebody looks on at each.
async fn look_on(cluster: Cluster, ledger: Arc<Ledger>) {
    // Whoever has fallen behind the history begins anew; what it missed others may have seen.
    while let Ok(mut watch) = cluster.watch::<u64>(prefix(REGISTERED)).backpressure().await {
        while let Some(Ok(batch)) = watch.next().await {
            for event in batch.events {
                if let Event::Delete { key, cause, .. } = &event {
                    ledger.ended(key, *cause == Cause::Expired);
                }
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
        let record =
            WatchRecord::new(format!("{name}/{life} from {start}"), Span::prefix(HISTORY), WatchStart::From(start));
        let record = WatchRecord { prev: true, backpressure, ..record };
        let mut watch = match builder.await {
            Ok(watch) => watch,
            Err(Error::Compacted { requested, oldest }) => {
                ledger.delivered(ledger.watching(record), &Err(Error::Compacted { requested, oldest }), start);
                resume = oldest;
                rt::sleep(Duration::from_millis(rng.below(100))).await;
                continue;
            }
            Err(_) => return,
        };
        let place = ledger.watching(record);
        for _ in 0..rng.below(200) {
            let Ok(next) = rt::timeout(PATIENCE / 2, watch.next()).await else { break };
            let Some(batch) = next else { return };
            let told = watch.revision();
            ledger.delivered(place, &batch, told);
            match batch {
                Ok(_) => resume = told.next(),
                Err(Error::Compacted { oldest, .. }) => {
                    resume = oldest;
                    break;
                }
                Err(_) => break,
            }
            if rng.below(20) == 0 {
                rt::sleep(Duration::from_millis(rng.below(1500))).await;
            }
        }
    }
}
