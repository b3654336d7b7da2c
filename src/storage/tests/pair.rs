//! Both engines over one disk that dies: at every operation, in every way, and again while recovering.
//!
//! One script does everything that touches the two files. Whatever it was told to be safe must be there afterwards, and
//! what is there must be a state that a pure replay of the history passes through.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;

use super::super::fault_disk::{Fault, FaultDisk, IoKind, PowerLoss, SplitMix};
use super::super::state::{Installed, StageError};
use super::super::support::{
    Moment, Node, Parts, ask, at, chunks, entry, history, moment, put, quiet, replay, run, settle,
};
use crate::error::{StartError, StorageError};
use crate::format::snapshot::SnapshotMeta;
use crate::rt::worker::Drive;
use crate::types::{LogEntry, LogId, Vote};

const ENTRIES: u64 = 70;
/// The snapshot that is installed on the way ends in front of this entry.
const INSTALLED: usize = 55;

struct Story {
    entries: Vec<LogEntry>,
    model: Vec<Moment>,
    /// Uncommitted entries of term 1 where term 2 goes on.
    replaced: Vec<LogEntry>,
    snapshot: (SnapshotMeta, Vec<Bytes>),
}

impl Story {
    fn new() -> Self {
        let entries = history(ENTRIES, 20);
        let model = replay(&entries);
        let replaced = (20..26).map(|i| entry(1, i, put("z", "never"))).collect();
        let snapshot = run(async {
            let sender = Node::open(Arc::new(super::super::disk::MemDisk::new())).unwrap();
            sender.apply(&entries[..INSTALLED]).await.unwrap();
            let view = sender.whole().await;
            (view.meta(), chunks(&view).unwrap())
        });
        Story { entries, model, replaced, snapshot }
    }
}

/// What the script was told to be safe, as positions in the history; 0 is nothing.
#[derive(Clone, Debug, Default)]
struct Told {
    /// Entries that the log has synced.
    flushed: usize,
    /// Entries whose effects are durable in the state.
    durable: usize,
    finished: bool,
}

async fn script(story: &Story, node: &Node, told: &RefCell<Told>) -> Result<(), StorageError> {
    let Story { entries, replaced, .. } = story;
    let flushed = |to: usize| told.borrow_mut().flushed = to;
    let durable = |to: usize| {
        let mut told = told.borrow_mut();
        told.durable = to;
        told.flushed = told.flushed.max(to);
        assert!(node.store.durable_applied() >= Some(entries[to - 1].log_id), "{to}");
    };
    ask(|done| node.log.save_vote(Vote { leader: at(1, 0).leader, committed: true }, done)).await?;
    node.append(&entries[..12]).await?;
    flushed(12);
    node.apply(&entries[..8]).await?;
    node.append(&entries[12..20]).await?;
    flushed(20);
    node.append(replaced).await?;
    node.apply(&entries[8..17]).await?;
    node.checkpoint().await?;
    durable(17);

    // A new leader: our tail is replaced, and what replaces it is applied and checkpointed before our log has it.
    node.log.truncate_after(Some(entries[19].log_id));
    let appended = ask::<(), StorageError>(|done| node.log.append(entries[20..30].to_vec(), done));
    node.log.save_committed(Some(entries[27].log_id));
    node.apply(&entries[17..28]).await?;
    node.checkpoint().await?;
    durable(28);
    appended.await?;
    flushed(30);
    settle().await;

    let view = node.store.view();
    ask(|done| node.store.build_snapshot(done)).await?;
    node.log.purge(entries[20].log_id);
    node.append(&entries[30..45]).await?;
    flushed(45);
    for entry in &entries[28..43] {
        node.apply(std::slice::from_ref(entry)).await?;
    }
    drop(view);
    // Sweeps what the view had spared, in commits of its own.
    quiet(&node.store).await;
    node.checkpoint().await?;
    durable(43);

    let (meta, chunks) = &story.snapshot;
    match node.install(meta.clone(), chunks).await {
        Ok(installed) => assert_eq!(installed, Installed::Replaced),
        Err(StageError::Storage(error)) => return Err(error),
        Err(StageError::Refused(refused)) => panic!("{refused}"),
    }
    durable(INSTALLED);
    node.log.purge(entries[INSTALLED - 1].log_id);
    node.append(&entries[INSTALLED..]).await?;
    flushed(entries.len());
    node.apply(&entries[INSTALLED..65]).await?;
    settle().await;
    node.apply(&entries[65..]).await?;
    node.close().await?;
    told.borrow_mut().durable = entries.len();
    told.borrow_mut().finished = true;
    Ok(())
}

/// Starts a node whose log takes as long for a step as the other engine for `log_lag`.
fn start(disk: &FaultDisk, log_lag: u64) -> Result<Node, StorageError> {
    let wait = move || {
        async move {
            for _ in 0..log_lag {
                tokio::task::yield_now().await;
            }
        }
        .boxed()
    };
    Node::open_with(disk.mount(), Drive::Delayed(Arc::new(wait)))
        .map_err(|error| StorageError::new("directory", "open", error))
}

/// Runs the script until the disk dies or the end.
fn play(story: &Story, disk: &FaultDisk, log_lag: u64) -> Told {
    let told = RefCell::new(Told::default());
    let result = run(async {
        let node = start(disk, log_lag)?;
        let result = script(story, &node, &told).await;
        let seen = position(node.store.durable_applied());
        let mut told = told.borrow_mut();
        told.durable = told.durable.max(seen);
        result
    });
    let told = told.into_inner();
    assert_eq!(result.is_ok(), told.finished, "{result:?}");
    told
}

/// How many entries there are up to a position.
fn position(at: Option<LogId>) -> usize {
    at.map_or(0, |at| at.index as usize + 1)
}

/// Opens what a crash has left and checks it against what had been told; then goes on as far as the log does.
async fn recover(story: &Story, disk: &FaultDisk, told: &Told, context: &str) -> Result<(), StorageError> {
    let node = start(disk, 0)?;
    let applied = position(node.store.applied().last_applied);
    assert!(applied >= told.durable, "{context}: applied {applied}, told {told:?}");
    assert!(!node.repaired || applied == INSTALLED, "{context}: the state at {applied} was ahead of its log");
    let check = async |what: &str, end: usize| -> Result<(), StorageError> {
        let found = moment(&*ask(|done| node.store.whole(done)).await?)?;
        if end > 0 {
            assert_eq!(found, story.model[end - 1], "{context}: {what} {end}");
        }
        Ok(())
    };
    check("opened at", applied).await?;
    let (purged, last) = node.log.bounds();
    assert!(position(purged) <= applied, "{context}: purged to {purged:?}, applied {applied}");
    let logged = node.log.entries(applied as u64..u64::MAX, usize::MAX)?;
    let follow = logged.iter().zip(&story.entries[applied..]).take_while(|(logged, entry)| logged == entry).count();
    let end = applied + follow;
    assert!(end >= told.flushed, "{context}: recovered to {end} of {last:?}, told {told:?}");
    node.apply(&story.entries[applied..end]).await?;
    check("went on to", end).await?;
    settle().await;
    node.close().await
}

const MODES: [PowerLoss; 5] =
    [PowerLoss::DropAll, PowerLoss::KeepAll, PowerLoss::Prefix, PowerLoss::Subset(50), PowerLoss::Subset(90)];

/// The log is as fast as the state, or so slow that everything else is done while it is at one sync.
const LOG_LAGS: [u64; 3] = [0, 3, 40];

/// Which crashes of the recovery are tried after one of the script.
enum Again {
    /// This many, the next ones after each next operation of the script: together, all of them.
    Some(u64),
    All,
}

/// Loses power at operation `k` of the script, then again while recovering, then recovers. Answers how many operations the
/// recovery has, and at which it was broken off.
fn crash_twice(story: &Story, k: u64, mode: PowerLoss, again: Again) -> (u64, Vec<u64>) {
    let disk = FaultDisk::new(k);
    disk.die_at(k);
    let told = play(story, &disk, LOG_LAGS[k as usize % LOG_LAGS.len()]);
    disk.power_loss(mode);
    let context = format!("power lost at {k}, {mode:?}");
    let survivor = |disk: &FaultDisk, context: &str| {
        run(recover(story, disk, &told, context)).unwrap_or_else(|error| panic!("{context}: {error}"));
    };
    let first = disk.fork();
    let before = first.ops();
    survivor(&first, &context);
    let ops = first.ops() - before;
    let mut rng = SplitMix(k);
    let chosen: Vec<u64> = match again {
        Again::Some(count) => (0..count).map(|nth| (k * count + nth) % ops).collect(),
        Again::All => (0..ops).collect(),
    };
    for j in chosen.iter().copied() {
        let mode = MODES[rng.below(MODES.len() as u64) as usize];
        let context = format!("{context}, again at {j} of {ops} of the recovery, {mode:?}");
        let disk = disk.fork();
        disk.die_at(j);
        // What the first recovery came to was told to nobody.
        let _ = run(recover(story, &disk, &told, &context));
        disk.power_loss(mode);
        survivor(&disk, &context);
    }
    (ops, chosen)
}

fn operations(story: &Story) -> u64 {
    let disk = FaultDisk::new(0);
    assert!(play(story, &disk, 0).finished);
    disk.ops()
}

#[test]
fn a_node_that_loses_power_at_any_operation_and_again_on_the_way_back_has_all_it_had_told() {
    let story = Story::new();
    let ops = operations(&story);
    assert!(ops > 150, "only {ops} operations: the script no longer reaches the disk");
    let (mut longest, mut again) = (0, BTreeSet::new());
    for k in 0..ops {
        let (ops, chosen) = crash_twice(&story, k, MODES[k as usize % MODES.len()], Again::Some(8));
        longest = longest.max(ops);
        again.extend(chosen);
    }
    assert!(longest > 10 && (0..longest).all(|j| again.contains(&j)), "not every operation of a recovery: {again:?}");
}

#[test]
#[ignore = "minutes, optimised: every operation, in every way, and every operation of every recovery"]
fn a_node_that_loses_power_twice_at_any_two_operations_has_all_it_had_told() {
    let story = Story::new();
    for k in 0..operations(&story) {
        for mode in MODES {
            crash_twice(&story, k, mode, Again::All);
        }
    }
}

/// Asks for everything there is; none of it may succeed.
async fn assert_stopped(story: &Story, node: &Node, context: &str) {
    let (meta, chunks) = &story.snapshot;
    let asked = [
        node.apply(&story.entries[..1]).await.map(drop),
        node.checkpoint().await,
        ask(|done| node.store.build_snapshot(done)).await.map(drop),
        node.install(meta.clone(), chunks).await.map(drop).map_err(|error| StorageError::new("", "", error)),
        ask(|done| node.log.save_vote(Vote::default(), done)).await,
        ask(|done| node.log.barrier(done)).await,
        node.close().await,
    ];
    for (i, answer) in asked.iter().enumerate() {
        assert!(answer.is_err(), "{context}: operation {i} succeeded after the error");
    }
}

#[test]
fn after_the_first_error_of_either_file_nothing_succeeds_and_the_node_does_not_start_again() {
    let story = Story::new();
    let mut failed = 0;
    for (kinds, step) in [(vec![IoKind::Write], 7), (vec![IoKind::Sync], 1), (vec![IoKind::SetLen, IoKind::Read], 3)] {
        for k in (0..).step_by(step) {
            let disk = FaultDisk::new(k);
            let context = format!("{kinds:?} fails at {k}");
            // The disk works again right after, as it does after a failed fsync.
            disk.inject(Fault { kinds: kinds.clone(), nth: k, error: io::ErrorKind::StorageFull, once: true });
            let told = RefCell::new(Told::default());
            run(async {
                let Ok(node) = start(&disk, LOG_LAGS[k as usize % LOG_LAGS.len()]) else { return };
                if script(&story, &node, &told).await.is_err() {
                    assert_stopped(&story, &node, &context).await;
                }
            });
            if told.into_inner().finished && disk.injected() == 0 {
                break;
            }
            failed += 1;
            let marked = disk.mount().failed().unwrap();
            assert!(marked.is_some_and(|marker| marker.contains("injected")), "{context}: no marker was left");
            let again = Parts::open(disk.mount()).map(drop);
            assert!(matches!(again, Err(StartError::Failed { .. })), "{context}: {again:?}");
        }
    }
    assert!(failed > 50, "only {failed} errors were met");
}
