//! Closures whose answers are lost, and money that is moved while everything fails.

use std::collections::BTreeMap;
use std::future::{IntoFuture, pending};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::support::{Group, Mischief, converged, eventually, seeds, slow_disks};
use crate::api::cluster::{Cluster, Outcome};
use crate::config::{Retention, TestDrive, Timing};
use crate::rt;
use crate::rt::worker::Drive;
use crate::sim::{Faults, Host, Play, Sim, play};
use crate::storage::fault_disk::SplitMix;
use crate::{Error, StartError, Ticket, Txn, prefix};

const ACCOUNTS: u64 = 6;
const DEPOSIT: u64 = 100;
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_closure_is_carried_out_once_when_answers_are_lost_and_frames_are_doubled() {
    for seed in seeds(1..4) {
        let mut group = Group::new(3, seed).tune(move |settings| settings.drive = slow_disks(seed, 5));
        group.start_all().await;
        group.mischief(Mischief { lose_replies: 30, double: 30, delay_ms_max: 25, ..Default::default() });
        let adding = |n: usize| {
            let node = group.node(n);
            async move {
                let mut added = 0;
                for _ in 0..12 {
                    let txn = node.txn(|t| {
                        let next = t.get::<u64>("counter")?.map_or(0, |now| *now) + 1;
                        t.put("counter", &next).map(drop)
                    });
                    match txn.timeout(Duration::from_millis(1500)).await {
                        Ok(_) => added += 1,
                        Err(Error::Indeterminate { ticket }) => added += u64::from(was_applied(node, &ticket).await),
                        Err(Error::NotApplied { .. }) => {}
                        Err(error) => panic!("seed {seed}: {error}"),
                    }
                }
                added
            }
        };
        let added: u64 = futures::future::join_all((0..3).map(adding)).await.into_iter().sum();
        group.mischief(Mischief::default());
        let counter = group.node(0).get::<u64>("counter").await.expect("read").map_or(0, |entry| *entry);
        assert_eq!(counter, added, "seed {seed}");
        assert!(counter > 5, "seed {seed}: only {counter} got through");
        group.converged().await;
    }
}

/// Answers of this size are not remembered whole: an attempt that lost its answer has to look for itself.
#[tokio::test(start_paused = true)]
async fn an_update_of_a_large_value_is_carried_out_once_when_answers_are_lost() {
    for seed in seeds(1..3) {
        let mut group = Group::new(3, seed);
        group.start_all().await;
        group.mischief(Mischief { lose_replies: 40, delay_ms_max: 10, ..Default::default() });
        let adding = |n: usize| {
            let node = group.node(n);
            async move {
                let mut added = 0;
                for _ in 0..8 {
                    let add = |old: Option<&(u64, Vec<u8>)>| Some((old.map_or(0, |old| old.0) + 1, vec![7; 3000]));
                    match node.update("large", add).timeout(Duration::from_secs(20)).await {
                        Ok(done) => {
                            let (old, new) = (done.old.map_or(0, |old| old.0), done.new.expect("put").0);
                            assert_eq!(old + 1, new, "seed {seed}");
                            added += 1;
                        }
                        Err(Error::Indeterminate { ticket }) => added += u64::from(was_applied(node, &ticket).await),
                        Err(Error::NotApplied { .. }) => {}
                        Err(error) => panic!("seed {seed}: {error}"),
                    }
                }
                added
            }
        };
        let added: u64 = futures::future::join_all((0..3).map(adding)).await.into_iter().sum();
        group.mischief(Mischief::default());
        let large = group.node(0).get::<(u64, Vec<u8>)>("large").await.expect("read").map_or(0, |entry| entry.0);
        assert_eq!(large, added, "seed {seed}");
        assert!(large > 10, "seed {seed}: only {large} got through");
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_does_not_run_again_before_what_it_conflicted_with_is_here() {
    let (slow, disks) = (Arc::new(AtomicBool::new(false)), Duration::from_millis(60));
    let is_slow = slow.clone();
    let mut group = Group::new(3, 1).tune(move |settings| {
        if is_slow.load(Ordering::Relaxed) {
            settings.drive = TestDrive(Some(Drive::Delayed(Arc::new(move || Box::pin(rt::sleep(disks))))));
        }
    });
    group.start(0).await;
    group.start(1).await;
    slow.store(true, Ordering::Relaxed);
    group.start_all().await;
    group.node(2).set("warm", &0u64).await.expect("written");
    let heir = group.node(0).status().id;
    // To itself would be to nobody.
    match group.leader().await {
        0 => {}
        leader => group.node(leader).node().transfer_to(heir).await,
    }
    let leads = || group.node(0).status().is_leader && group.node(2).status().leader == Some(heir);
    eventually("the leader is fast", leads).await;

    group.node(0).set("warm", &0u64).await.expect("written");

    let (runs, first) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(None)));
    let (notes, before, leader) = (runs.clone(), first.clone(), group.node(0).clone());
    let adding = group.node(2).txn(move |t| {
        let next = t.get::<u64>("n")?.map_or(0, |n| *n) + 1;
        notes.lock().unwrap().push((next, t.revision()));
        // Has a shorter way to the leader's log than what this is going to write.
        let write = || rt::spawn("first", leader.set("n", &10u64).into_future());
        before.lock().unwrap().get_or_insert_with(write);
        t.put("n", &next).map(drop)
    });
    let done = adding.await.expect("committed");
    let first = first.lock().unwrap().take().expect("it ran");
    let first = first.await.expect("no panic").expect("written").revision;
    let runs = runs.lock().unwrap();
    assert_eq!(done.attempts, 2, "{runs:?}");
    assert!(matches!(runs[..], [(1, before), (11, again)] if before < first && again >= first), "{runs:?}");
}

async fn was_applied(node: &Cluster, ticket: &Ticket) -> bool {
    loop {
        match node.resolve(ticket).await {
            Ok(Outcome::Applied(_)) => return true,
            Ok(Outcome::Never | Outcome::NoEffect) => return false,
            Ok(other) => panic!("{ticket}: {other:?}"),
            Err(Error::NotApplied { .. }) => {}
            Err(error) => panic!("{ticket}: {error}"),
        }
    }
}

/// What the tellers were told.
#[derive(Default)]
struct Books {
    /// Transfers that are certainly done, and that are certainly not.
    done: Vec<String>,
    refused: Vec<String>,
    unknown: Vec<(String, Ticket)>,
    conflicts: u32,
    /// Sums of all accounts that did not come to what was paid in.
    wrong: Vec<u64>,
    over: bool,
}

fn account(n: u64) -> String {
    format!("account/{n}")
}

fn balance(t: &mut Txn, n: u64) -> Result<u64, Error> {
    Ok(t.get::<u64>(account(n))?.map_or(DEPOSIT, |balance| *balance))
}

/// Moves `amount` and notes that down under the transfer's name, if there is enough.
fn transfer(t: &mut Txn, name: &str, from: u64, to: u64, amount: u64) -> Result<(), Error> {
    let (has, had) = (balance(t, from)?, balance(t, to)?);
    if has < amount {
        return Err(t.abort("not enough"));
    }
    t.put(account(from), &(has - amount))?;
    t.put(account(to), &(had + amount))?;
    t.put(format!("done/{name}"), &(from, to, amount)).map(drop)
}

async fn bank(host: Host, books: Arc<Mutex<Books>>) -> Result<(), StartError> {
    let cluster = host.cluster().await?;
    for teller in 0..2 {
        let name = format!("{}-{}-{teller}", host.name(), host.life());
        host.spawn(serve(cluster.clone(), books.clone(), name));
    }
    host.spawn(audit(cluster.clone(), books));
    let _kept = cluster;
    pending().await
}

async fn serve(cluster: Cluster, books: Arc<Mutex<Books>>, teller: String) {
    let mut rng = SplitMix(rt::random_u64());
    for number in 0.. {
        if books.lock().unwrap().over {
            return;
        }
        let name = format!("{teller}-{number}");
        let (from, step, amount) = (rng.below(ACCOUNTS), 1 + rng.below(ACCOUNTS - 1), 1 + rng.below(40));
        let (to, noted) = ((from + step) % ACCOUNTS, name.clone());
        let moving = cluster.txn(move |t| transfer(t, &noted, from, to, amount));
        let moved = moving.timeout(Duration::from_millis(300 + rng.below(900))).await;
        {
            let mut books = books.lock().unwrap();
            match moved {
                Ok(done) => {
                    books.conflicts += done.attempts - 1;
                    books.done.push(name);
                }
                Err(Error::Indeterminate { ticket }) => books.unknown.push((name, ticket)),
                Err(Error::Stopped { .. }) => return,
                Err(Error::NotApplied { .. } | Error::Aborted { .. }) => books.refused.push(name),
                Err(error) => panic!("{name}: {error}"),
            }
        }
        rt::sleep(Duration::from_millis(rng.below(120))).await;
    }
}

/// Adds all accounts up, again and again: at every moment there is as much as was paid in.
async fn audit(cluster: Cluster, books: Arc<Mutex<Books>>) {
    while !books.lock().unwrap().over {
        let sum = cluster.txn(|t| (0..ACCOUNTS).map(|n| balance(t, n)).sum::<Result<u64, Error>>()).timeout(SECOND);
        match sum.await {
            Ok(sum) if *sum != ACCOUNTS * DEPOSIT => books.lock().unwrap().wrong.push(*sum),
            Ok(_) | Err(Error::NotApplied { .. }) => {}
            Err(Error::Stopped { .. }) => return,
            Err(error) => panic!("{error}"),
        }
        rt::sleep(Duration::from_millis(100)).await;
    }
}

async fn run_bank(sim: Sim) {
    let books = Arc::new(Mutex::new(Books::default()));
    sim.tune(|settings| {
        settings.timing = Timing::fast();
        settings.retention = Retention { snapshot_entries: 200, kept_entries: 50, ..Retention::default() };
    });
    let shared = books.clone();
    sim.hosts(["node-1", "node-2", "node-3"], move |host| bank(host, shared.clone())).expect("names are new");
    sim.chaos(Faults::all().swarm(), 5 * SECOND).await;
    books.lock().unwrap().over = true;
    sim.run_for(2 * SECOND).await;
    let nodes: Vec<Cluster> = sim.open().into_iter().map(|(_, node)| node).collect();
    nodes[0].set("last", &0u64).timeout(60 * SECOND).await.expect("all is whole again");
    converged(&nodes, &format!("seed {}", sim.seed())).await;

    let unknown = std::mem::take(&mut books.lock().unwrap().unknown);
    for (name, ticket) in unknown {
        let applied = was_applied(&nodes[0], &ticket).await;
        let mut books = books.lock().unwrap();
        if applied { books.done.push(name) } else { books.refused.push(name) }
    }
    let snapshot = nodes[0].read().await.expect("taken");
    let noted = snapshot.range::<(u64, u64, u64)>(prefix("done/")).entries().expect("read");
    assert!(!noted.more);
    let mut balances: BTreeMap<u64, u64> = (0..ACCOUNTS).map(|n| (n, DEPOSIT * 1000)).collect();
    for (name, entry) in &noted.entries {
        let (from, to, amount) = entry.value;
        assert_eq!(entry.version, 1, "{name} was done twice");
        *balances.get_mut(&from).expect("an account") -= amount;
        *balances.get_mut(&to).expect("an account") += amount;
    }
    for (n, expected) in balances {
        let balance = snapshot.get::<u64>(account(n)).expect("read").map_or(DEPOSIT, |balance| *balance);
        assert_eq!(balance + DEPOSIT * 999, expected, "account {n}");
    }
    let books = books.lock().unwrap();
    assert_eq!(books.wrong, [0; 0], "there was not as much as was paid in");
    let is_noted = |name: &String| snapshot.get::<(u64, u64, u64)>(format!("done/{name}")).expect("read").is_some();
    assert!(books.done.iter().all(is_noted), "a transfer that was done is not there");
    assert!(!books.refused.iter().any(is_noted), "a transfer that was not done is there");
    println!("seed {}: {} done, {} conflicts", sim.seed(), books.done.len(), books.conflicts);
    assert!(books.done.len() > 30 && books.conflicts > 3, "{} done, {} conflicts", books.done.len(), books.conflicts);
}

#[test]
fn money_that_is_moved_by_closures_is_neither_made_nor_lost_whatever_fails() {
    for seed in seeds(1..3) {
        play(&Play { seed, yields: 30, ..Play::default() }, &run_bank);
    }
}
