//! The load that a node puts on its cluster: reads, writes of every kind, and a lock. Every value is written once.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate::sim::check::{Answer, Attach, Condition, Only, Op, Pending, Recorder, Span, Step, Test, WatchStep, text};
use quorate::{Cas, Cluster, Entry, Error, Fence, LockGuard, Revision, put, read, when};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::lines::Lines;
use crate::node::{Args, TIMEOUT, lock_ttl, now_ns};

/// Clients of one life of a node; the last one takes the lock.
pub const CLIENTS: u64 = 4;
/// Incremented by whoever can. Its value is the count and who made it so.
pub const COUNTER: &str = "counter";
/// Written by whoever holds the lock. Its value begins with the holder's fence.
pub const GUARDED: &str = "guarded";
/// Keys that are only read and set, so that they can be judged one by one without believing in revisions.
const REGISTERS: [&str; 2] = ["r0", "r1"];
/// Where a life puts what its holders of the lock saw.
pub const HOLDS: &str = "holds.jsonl";
/// Where it puts what its watch saw.
pub const WATCH: &str = "watch.jsonl";
/// Keys of all other writes.
const KEYS: u64 = 8;

/// Starts the load; it goes on until `quiet` says so.
pub fn start(cluster: &Cluster, recorder: &Recorder, args: &Args, quiet: watch::Receiver<bool>) -> Vec<JoinHandle<()>> {
    let client = |place: u64| Client {
        cluster: cluster.clone(),
        recorder: recorder.clone(),
        number: args.first_client + place,
        rng: StdRng::seed_from_u64(args.seed ^ (args.first_client + place)),
        modified: BTreeMap::new(),
        written: 0,
    };
    let mut tasks: Vec<_> = (0..CLIENTS - 1).map(|place| tokio::spawn(client(place).run(quiet.clone()))).collect();
    let holds = Lines::create(&args.told, HOLDS);
    tasks.push(tokio::spawn(client(CLIENTS - 1).run_locks(holds, quiet)));
    tokio::spawn(watch_all(cluster.clone(), Lines::create(&args.told, WATCH)));
    tasks
}

struct Client {
    cluster: Cluster,
    recorder: Recorder,
    number: u64,
    rng: StdRng,
    /// Where each key stood when this client last saw it.
    modified: BTreeMap<String, Revision>,
    written: u64,
}

impl Client {
    async fn run(mut self, quiet: watch::Receiver<bool>) {
        while !*quiet.borrow() {
            let key = self.key();
            match self.rng.random_range(0..100) {
                0..25 => self.get(&key).await,
                25..40 => self.set(&key).await,
                40..50 => self.replace(&key).await,
                50..65 => self.set_if(&key).await,
                65..72 => self.set_with_ttl(&key).await,
                72..78 => self.delete(&key).await,
                78..83 => {
                    let third = self.key();
                    self.transact(&key, &format!("{key}'"), &third).await;
                }
                83..86 => self.transact("p", "q", "q").await,
                86..94 => self.count().await,
                _ => self.register().await,
            }
            self.pause(12).await;
        }
    }

    async fn pause(&mut self, ms_max: u64) {
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..=ms_max))).await;
    }

    fn key(&mut self) -> String {
        format!("k{}", self.rng.random_range(0..KEYS))
    }

    /// A value that nobody else writes and that this client has not written before.
    fn value(&mut self) -> String {
        self.written += 1;
        format!("c{}.{}", self.number, self.written)
    }

    fn begin(&self, op: Op) -> Pending {
        self.recorder.invoke(self.number, op)
    }

    async fn get(&mut self, key: &str) {
        let call = self.begin(Op::get(key));
        let got = self.cluster.get::<String>(key).timeout(TIMEOUT).await;
        if let Some(entry) = end(call, got, |entry| (Answer::got(entry.as_ref()), None)) {
            self.note(key, entry.as_ref());
        }
    }

    /// Remembers where the key stands, for conditions.
    fn note(&mut self, key: &str, entry: Option<&Entry<String>>) {
        match entry {
            Some(entry) => drop(self.modified.insert(key.to_owned(), entry.modified)),
            None => drop(self.modified.remove(key)),
        }
    }

    async fn set(&mut self, key: &str) {
        let value = self.value();
        let call = self.begin(Op::set(key, text(&value)));
        let written = self.cluster.set(key, &value).timeout(TIMEOUT).await;
        end(call, written, |written| (Answer::Written, Some(written.revision)));
    }

    async fn set_with_ttl(&mut self, key: &str) {
        let (value, ttl) = (self.value(), self.rng.random_range(200..1500));
        let attach = Attach::Ttl(ttl);
        let call = self.begin(Op::Set { key: key.into(), value: text(&value), only: Only::Always, attach });
        let written = self.cluster.set(key, &value).ttl(Duration::from_millis(ttl)).timeout(TIMEOUT).await;
        end(call, written, |written| (Answer::Written, Some(written.revision)));
    }

    async fn replace(&mut self, key: &str) {
        let value = self.value();
        let call = self.begin(Op::set(key, text(&value)));
        let replaced = self.cluster.set(key, &value).prev().timeout(TIMEOUT).await;
        end(call, replaced, |replaced| (Answer::replaced(replaced), Some(replaced.revision)));
    }

    async fn set_if(&mut self, key: &str) {
        let only = self.modified.get(key).map_or(Only::Absent, |modified| Only::Revision(*modified));
        let value = self.value();
        self.set_only(key, value, only).await;
    }

    async fn set_only(&mut self, key: &str, value: String, only: Only) {
        let call = self.begin(Op::set_only(key, text(&value), only));
        let set = self.cluster.set(key, &value);
        let set = match only {
            Only::Revision(revision) => set.if_rev(revision),
            _ => set.if_absent(),
        };
        let done = end(call, set.timeout(TIMEOUT).await, Answer::cas);
        if let Some(Cas::Conflict(now)) = done {
            self.note(key, now.as_ref());
        }
    }

    async fn count(&mut self) {
        let call = self.begin(Op::get(COUNTER));
        let got = self.cluster.get::<String>(COUNTER).timeout(TIMEOUT).await;
        let got = end(call, got, |entry| (Answer::got(entry.as_ref()), None));
        let Some(entry) = got else { return };
        let only = entry.as_ref().map_or(Only::Absent, |entry| Only::Revision(entry.modified));
        let value = format!("{} {}", entry.map_or(0, |entry| count_of(&entry)) + 1, self.value());
        self.set_only(COUNTER, value, only).await;
    }

    async fn register(&mut self) {
        let key = REGISTERS[self.rng.random_range(0..REGISTERS.len())];
        match self.rng.random_range(0..4) {
            0 | 1 => self.get(key).await,
            2 => self.set(key).await,
            _ => self.set_if(key).await,
        }
    }

    async fn delete(&mut self, key: &str) {
        let if_revision = self.modified.get(key).copied().filter(|_| self.rng.random_bool(0.5));
        let call = self.begin(Op::Delete { keys: Span::key(key), if_revision });
        let delete = self.cluster.delete(key).timeout(TIMEOUT);
        let deleted = match if_revision {
            Some(revision) => delete.if_rev(revision).await,
            None => delete.await,
        };
        end(call, deleted, |deleted| (Answer::Deleted(deleted.count), Some(deleted.revision)));
    }

    /// Writes two keys if one of them stands where it did, and reads a third.
    async fn transact(&mut self, key: &str, other: &str, third: &str) {
        let modified = self.modified.get(key).copied().unwrap_or(Revision::ZERO);
        let values = (self.value(), self.value());
        let then = vec![Step::put(key, text(&values.0)), Step::put(other, text(&values.1)), Step::Read(third.into())];
        let otherwise = vec![Step::Read(key.into())];
        let condition = Condition { keys: Span::key(key), test: Test::ModifiedAt(modified) };
        let op = Op::Txn { when: vec![condition], then: then.clone(), otherwise: otherwise.clone() };
        let call = self.begin(op);
        let txn = self
            .cluster
            .transaction()
            .when(when(key).modified_at(modified))
            .then(put(key, &values.0))
            .then(put(other, &values.1))
            .then(read(third))
            .otherwise(read(key))
            .timeout(TIMEOUT);
        let done = end(call, txn.await, |done| {
            (Answer::txn::<String>(done, &then, &otherwise).expect("strings"), Some(done.revision()))
        });
        if let Some(done) = done.filter(|done| !done.succeeded() && !done.results_lost()) {
            self.note(key, done.entry::<String>(0).expect("a string").as_ref());
        }
    }

    /// Takes the lock, writes what it guards, and lets go, again and again.
    async fn run_locks(mut self, mut holds: Lines, quiet: watch::Receiver<bool>) {
        while !*quiet.borrow() {
            match self.cluster.lock("job").ttl(lock_ttl()).timeout(TIMEOUT).await {
                Ok(guard) => {
                    let (client, fence) = (self.number, guard.fence());
                    holds.write(&Held::Granted { client, fence, granted_ns: now_ns() });
                    self.hold(guard, &mut holds).await;
                }
                Err(Error::NotApplied { .. } | Error::Indeterminate { .. } | Error::LeaseNotFound { .. }) => {}
                Err(error) => panic!("c{} asks for the lock: {error}", self.number),
            }
            self.pause(50).await;
        }
    }

    async fn hold(&mut self, guard: LockGuard, holds: &mut Lines) {
        let fence = guard.fence();
        for _ in 0..self.rng.random_range(1..8) {
            let before_ns = now_ns();
            if !guard.valid_for().is_zero() {
                holds.write(&Held::Sure { fence, before_ns });
            }
            let value = format!("{fence} {}", self.value());
            let then = vec![Step::put(GUARDED, text(&value))];
            let call = self.begin(Op::Txn { when: vec![], then: then.clone(), otherwise: vec![] });
            let done = guard.txn().then(put(GUARDED, &value)).timeout(TIMEOUT).await;
            if let Err(Error::Fenced { current, .. }) = done {
                holds.write(&Held::Wrote { fence, revision: current, applied: false });
                return call.fail();
            }
            let done = end(call, done, |done| {
                (Answer::txn::<String>(done, &then, &[]).expect("strings"), Some(done.revision()))
            });
            if let Some(done) = done {
                holds.write(&Held::Wrote { fence, revision: done.revision(), applied: true });
            }
            self.pause(60).await;
        }
        if self.rng.random_bool(0.7) {
            // What does not get through is left to the lease.
            let _ = guard.release().await;
        }
    }
}

/// Records how a call ended; its result, if it was carried out.
fn end<T>(call: Pending, result: Result<T, Error>, told: impl FnOnce(&T) -> (Answer, Option<Revision>)) -> Option<T> {
    match result {
        Ok(done) => {
            let (answer, revision) = told(&done);
            call.ok(answer, revision);
            return Some(done);
        }
        Err(error @ (Error::Indeterminate { .. } | Error::NotApplied { .. })) => call.error(&error),
        Err(error) => panic!("{call:?}: {error}"),
    }
    None
}

/// The number that a value of [`COUNTER`] or [`GUARDED`] begins with.
pub fn count_of(value: &str) -> u64 {
    let number = value.split_once(' ').and_then(|(number, _)| number.parse().ok());
    number.unwrap_or_else(|| panic!("{value:?} does not begin with a number"))
}

/// What happened to a holder of the lock.
#[derive(Debug, Serialize, Deserialize)]
pub enum Held {
    Granted {
        client: u64,
        fence: Fence,
        granted_ns: u64,
    },
    /// Some time after this the guard said that it held the lock.
    Sure {
        fence: Fence,
        before_ns: u64,
    },
    /// A write that only the holder can do.
    Wrote {
        fence: Fence,
        revision: Revision,
        applied: bool,
    },
}

/// Watches every key for as long as the process lives, and writes down where it began and what came.
async fn watch_all(cluster: Cluster, mut lines: Lines) {
    let opened = cluster.watch::<String>(..).prev().await;
    let mut watch = opened.unwrap_or_else(|error| panic!("a watch is not opened: {error}"));
    lines.write(&Watched::After(watch.revision()));
    while let Some(batch) = watch.next().await {
        let batch = match batch {
            Ok(batch) => batch,
            Err(Error::Stopped { .. }) => return,
            Err(error) => panic!("a watch ended: {error}"),
        };
        lines.write(&Watched::Step(WatchStep::from(&batch)));
        lines.write(&Watched::Step(WatchStep::Place(watch.revision())));
    }
}

/// A line of what a watch saw: the first, or a later one.
#[derive(Debug, Serialize, Deserialize)]
pub enum Watched {
    After(Revision),
    Step(WatchStep),
}
