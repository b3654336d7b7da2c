use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::Semaphore;

use super::super::disk::{DirDisk, Disk, File, MemDisk};
use super::super::fault_disk::{FaultDisk, IoKind, PowerLoss};
use super::super::support::{
    Node, Parts, ask, at, chunks, compact, delete, entry, everything, history, moment, put, quiet, replay, run, settle,
    stamped,
};
use super::super::view::VIEW_AGE_MAX;
use super::tidy::SWEEP_RECORDS;
use super::*;
use crate::command::{Command, Stamp};
use crate::format::rows::{META_KEY, decode_answer_key, decode_meta};
use crate::rt::worker::Drive;
use crate::state_machine::{ReadError, RowSpace, RowsRead, RowsScan};
use crate::storage::committer::transact;
use crate::storage::records::{self, Packer};
use crate::storage::state_rows::TxnRows;
use crate::types::{ClientId, Revision};
use redb::Durability;

/// Holds the log's engine before each step until it is let through.
fn held() -> (Arc<Semaphore>, Drive) {
    let gate = Arc::new(Semaphore::new(0));
    let passage = gate.clone();
    let wait = move || {
        let passage = passage.clone();
        async move { passage.acquire().await.expect("never closed").forget() }.boxed()
    };
    (gate, Drive::Delayed(Arc::new(wait)))
}

/// Steps an engine by hand, and behind each step the commit that it began.
struct Stepped {
    parts: Parts,
    queue: VecDeque<Op>,
    committer: Committer,
    commits: VecDeque<Commit>,
    answers: Arc<Mutex<Vec<u64>>>,
}

impl Stepped {
    fn new() -> Self {
        Stepped::of(Parts::open(Arc::new(MemDisk::new())).unwrap())
    }

    fn of(parts: Parts) -> Self {
        let (queue, committer, commits) = Default::default();
        Stepped { parts, queue, committer, commits, answers: Arc::default() }
    }

    fn push(&mut self, entries: Vec<LogEntry>) {
        let answers = self.answers.clone();
        let index = entries.last().unwrap().log_id.index;
        let done = Box::new(move |applied: Result<Vec<Applied>, StorageError>| {
            applied.unwrap();
            answers.lock().unwrap().push(index);
        });
        self.queue.push_back(Op::Apply { entries, done });
    }

    /// Lets the engine know that nothing has come for a while.
    fn quiet(&mut self) {
        self.queue.extend([Op::Tick { now: Duration::ZERO }, Op::Tick { now: Duration::ZERO }]);
    }

    fn step(&mut self) -> Step {
        let step = self.parts.engine.step(&mut self.queue);
        // It ends whenever it ends: what it leads to is for the next step.
        if self.commit() { Step::Again } else { step }
    }

    /// Lets the commit under way end; whether there was one.
    fn commit(&mut self) -> bool {
        self.parts.engine.commits.take(&mut self.commits);
        !self.commits.is_empty() && matches!(self.committer.step(&mut self.commits), Step::Idle)
    }

    fn checkpoint(&mut self) {
        self.queue.push_back(Op::Checkpoint { done: Box::new(|done| done.unwrap()) });
        self.finish();
    }

    /// Steps until there is nothing to do; answers how often.
    fn finish(&mut self) -> usize {
        (1..).find(|_| matches!(self.step(), Step::Idle)).unwrap()
    }

    fn answered(&self) -> Option<u64> {
        self.answers.lock().unwrap().last().copied()
    }

    /// Records in the database, and those that are to come there.
    fn records(&self) -> usize {
        let engine = &self.parts.engine;
        let rows = past_rows(engine.db.as_ref().unwrap(), live_table).unwrap();
        let mut count = 0;
        rows.each_record(&mut |_, _| {
            count += 1;
            Ok(())
        })
        .unwrap();
        engine
            .recent
            .each_record(|_, _| {
                count += 1;
                Ok(())
            })
            .unwrap();
        count
    }
}

#[test]
fn a_replayed_history_is_the_same_on_disk_as_in_memory_however_it_is_batched() {
    let entries = history(60, 30);
    let model = replay(&entries);
    for batch in [1, 7, 60] {
        run(async {
            let node = Node::open(Arc::new(MemDisk::new())).unwrap();
            for group in entries.chunks(batch) {
                let applied = node.apply(group).await.unwrap();
                let ids: Vec<_> = applied.iter().map(|applied| applied.log_id).collect();
                assert_eq!(ids, group.iter().map(|entry| entry.log_id).collect::<Vec<_>>());
                let last = ids.last().unwrap().index as usize;
                assert_eq!(
                    moment(&*node.whole().await).unwrap(),
                    model[last],
                    "after entry {last}, batches of {batch}"
                );
            }
        });
    }
}

#[test]
fn whoever_has_an_answer_finds_its_effect_committed_and_published() {
    run(async {
        let node = Node::open(Arc::new(MemDisk::new())).unwrap();
        for i in 0..20 {
            let store = node.store.clone();
            let (tell, told) = tokio::sync::oneshot::channel();
            let done = move |applied: Result<Vec<Applied>, StorageError>| {
                // Looked at inside the callback: this is the first moment anybody can know of the entry.
                let view = store.view();
                let value = view.get(b"k").map_err(|error| error.to_string());
                let seen = (view.applied, value.map(|entry| entry.map(|entry| (entry.value, entry.version))));
                tell.send((applied.map(|applied| applied.len()), seen)).unwrap();
            };
            node.store.apply(vec![entry(1, i, put("k", &i.to_string()))], Box::new(done));
            let (applied, (position, value)) = told.await.unwrap();
            assert_eq!(applied.unwrap(), 1);
            assert_eq!(position, Some(at(1, i)));
            assert_eq!(value, Ok(Some((i.to_string().into(), i + 1))));
        }
    });
}

#[test]
fn readers_on_other_threads_see_whole_batches_that_are_committed() {
    let Parts { log, log_engine, store, engine, poison } = Parts::open(Arc::new(MemDisk::new())).unwrap();
    let drivers = [log.start(log_engine, Drive::Thread).unwrap(), store.start(engine, Drive::Thread).unwrap()];
    // Each reader's count of moments; enough of them end the writing, whose last index ends the reading.
    let (moments, end) = ([AtomicU64::new(0), AtomicU64::new(0)], AtomicU64::new(u64::MAX));
    let read = |view: &View, key: &[u8]| view.get(key).map(|entry| entry.map(|entry| entry.value));
    let reader = |moments: &AtomicU64| {
        let mut last = None;
        while last < Some(end.load(Ordering::SeqCst)) {
            assert!(poison.error().is_none(), "{:?}", poison.error());
            let view = store.view();
            let applied = view.applied.map(|at| at.index);
            assert!(applied >= last, "the view went back from {last:?} to {applied:?}");
            moments.fetch_add(u64::from(applied > last), Ordering::SeqCst);
            let both = (read(&view, b"a"), read(&view, b"b"));
            let expected = applied.map(|index| Bytes::from((index / 2).to_string()));
            assert!(
                matches!(&both, (Ok(a), Ok(b)) if *a == expected && *b == expected),
                "at {applied:?}: {both:?}, {:?}",
                poison.error()
            );
            last = applied;
        }
    };
    std::thread::scope(|scope| {
        let readers = moments.each_ref().map(|moments| (moments, scope.spawn(|| reader(moments))));
        run(async {
            let enough = || readers.iter().all(|(seen, it)| seen.load(Ordering::SeqCst) > 50 || it.is_finished());
            for i in (0..).take_while(|i| *i < 300 || !enough()) {
                let pair = [("a", 2 * i), ("b", 2 * i + 1)];
                let entries = pair.map(|(key, index)| entry(1, index, put(key, &i.to_string())));
                ask(|done| store.apply(entries.to_vec(), done)).await.unwrap();
            }
            end.store(store.view().applied.unwrap().index, Ordering::SeqCst);
        });
    });
    run(ask::<(), StorageError>(|done| store.close(done))).unwrap();
    run(ask::<(), StorageError>(|done| log.close(done))).unwrap();
    drivers.iter().for_each(crate::rt::worker::Driver::join_blocking);
}

#[test]
fn a_view_goes_on_showing_its_moment() {
    run(async {
        let node = Node::open(Arc::new(MemDisk::new())).unwrap();
        let entries = history(60, 30);
        let mut views = Vec::new();
        for entry in &entries {
            node.apply(std::slice::from_ref(entry)).await.unwrap();
            let view = node.store.view();
            let shown = view.range(&everything(), 100, false).unwrap();
            views.push((view, shown));
        }
        settle().await;
        for (view, shown) in views {
            assert_eq!(view.range(&everything(), 100, false).unwrap(), shown, "{view:?}");
            assert_eq!(view.count(&everything()).unwrap(), shown.0.len() as u64);
            assert_eq!(view.counters.keys, shown.0.len() as u64);
        }
    });
}

#[test]
fn nothing_becomes_durable_before_the_log_has_synced_what_was_enqueued_ahead_of_it() {
    run(async {
        let disk = FaultDisk::new(1);
        let (gate, log_drive) = held();
        let node = Node::open_with(disk.mount(), log_drive).unwrap();
        let entries = history(20, 20);
        type Ask = fn(&Node, Answer<()>);
        let asks: [(&str, Ask); 3] = [
            ("checkpoint", |node, done| node.store.checkpoint(done)),
            ("build", |node, done| node.store.build_snapshot(Box::new(|built| done(built.map(drop))))),
            ("close", |node, done| node.store.close(done)),
        ];
        for (i, (what, operation)) in asks.into_iter().enumerate() {
            let entries = &entries[i * 5..][..5];
            let mut appended = Box::pin(ask::<(), StorageError>(|done| node.log.append(entries.to_vec(), done)));
            node.apply(entries).await.unwrap();
            let (before, syncs) = (node.store.durable_applied(), disk.count(IoKind::Sync));
            let mut durable = Box::pin(ask(|done| operation(&node, done)));
            settle().await;
            assert!(futures::poll!(&mut durable).is_pending(), "{what} did not wait for the log");
            assert_eq!(disk.count(IoKind::Sync), syncs, "{what} synced something ahead of the log");
            assert_eq!(node.store.durable_applied(), before, "{what}");
            assert!(futures::poll!(&mut appended).is_pending(), "the log was not held back");
            gate.add_permits(1000);
            durable.await.unwrap();
            appended.await.unwrap();
            assert_eq!(node.store.durable_applied(), Some(entries[4].log_id), "{what}");
            gate.forget_permits(usize::MAX);
        }
    });
}

/// The schedule of the design: without the gate this node could never be started again but for the repair.
#[test]
fn a_state_is_never_durable_past_a_log_that_still_holds_the_entries_that_were_replaced() {
    for (seed, mode) in [(1, PowerLoss::DropAll), (2, PowerLoss::KeepAll), (3, PowerLoss::Subset(50))] {
        let disk = FaultDisk::new(seed);
        let old: Vec<_> = (0..20).map(|i| entry(1, i, put("k", "old"))).collect();
        let new: Vec<_> = (10..16).map(|i| entry(2, i, put("k", "new"))).collect();
        run(async {
            let (gate, log_drive) = held();
            let node = Node::open_with(disk.mount(), log_drive).unwrap();
            gate.add_permits(1000);
            node.append(&old).await.unwrap();
            node.apply(&old[..10]).await.unwrap();
            node.checkpoint().await.unwrap();
            gate.forget_permits(usize::MAX);
            // A new leader replaces the uncommitted end; a quorum elsewhere commits it before our log has written it.
            node.log.truncate_after(Some(at(1, 9)));
            let _unsynced = ask::<(), StorageError>(|done| node.log.append(new.clone(), done));
            node.apply(&new).await.unwrap();
            let _checkpoint = ask::<(), StorageError>(|done| node.store.checkpoint(done));
            settle().await;
            disk.die_at(0);
        });
        disk.power_loss(mode);
        run(async {
            let node = Node::open(disk.mount()).unwrap();
            assert!(!node.repaired, "{mode:?}: the state was ahead of its log");
            assert_eq!(node.store.applied().last_applied, Some(at(1, 9)), "{mode:?}");
            assert_eq!(node.log.entries(10..20, usize::MAX).unwrap(), old[10..], "{mode:?}");
        });
    }
}

/// Applies what the log has not synced, does `more`, and lets both engines go: nothing of it may be found again.
fn let_go_before_the_log_is_synced(disk: &FaultDisk, entries: &[LogEntry], more: impl AsyncFnOnce(&Node)) {
    run(async {
        let (_gate, log_drive) = held();
        let node = Node::open_with(disk.mount(), log_drive).unwrap();
        let _unsynced = ask::<(), StorageError>(|done| node.log.append(entries.to_vec(), done));
        node.apply(entries).await.unwrap();
        more(&node).await;
        settle().await;
    });
    run(async {
        let node = Node::open(disk.mount()).unwrap();
        assert_eq!(node.store.applied().last_applied, None);
        assert!(!node.repaired);
    });
}

#[test]
fn an_engine_that_is_let_go_makes_nothing_durable_by_itself() {
    let disk = FaultDisk::new(1);
    let entries = history(10, 10);
    let_go_before_the_log_is_synced(&disk, &entries, async |_| {});
    // Nor with the log synced: the answers that go with a durable commit would be missing.
    run(async {
        let node = Node::open(disk.mount()).unwrap();
        node.append(&entries).await.unwrap();
        node.apply(&entries[..5]).await.unwrap();
        node.checkpoint().await.unwrap();
        node.apply(&entries[5..]).await.unwrap();
    });
    run(async {
        let node = Node::open(disk.mount()).unwrap();
        assert_eq!(node.store.applied().last_applied, Some(at(1, 4)));
        assert_eq!(node.log.bounds().1, Some(at(1, 9)));
        node.apply(&entries[5..]).await.unwrap();
        assert_eq!(moment(&*node.whole().await).unwrap(), *replay(&entries).last().unwrap());
    });
}

/// A commit that is only planned has cleared the count of what is not durable.
#[test]
fn an_engine_that_is_let_go_before_its_commit_has_begun_makes_nothing_durable_by_itself() {
    let disk = FaultDisk::new(1);
    let entries = history(10, 10);
    let_go_before_the_log_is_synced(&disk, &entries, async |node| {
        // In the database from here on, though not durably.
        drop(node.whole().await);
        let _waits_for_the_log = ask::<(), StorageError>(|done| node.store.checkpoint(done));
        settle().await;
    });
}

#[test]
fn an_answer_is_on_disk_only_if_a_durable_commit_finds_it_unforgotten() {
    let mut stepped = Stepped::new();
    let rows = |stepped: &Stepped| {
        let mut seqs = Vec::new();
        let rows = past_rows(stepped.parts.engine.db.as_ref().unwrap(), live_table).unwrap();
        rows.each_row(RowSpace::Answer, &mut |key, _| {
            seqs.push(decode_answer_key(key).unwrap().1);
            Ok(())
        })
        .unwrap();
        seqs
    };
    let write = |index, seq, low| {
        let stamp = Stamp { client: ClientId::new(1), seq, low };
        stamped(1, index, Some(stamp), put("k", "v"))
    };
    stepped.push(vec![entry(1, 0, Command::ClientOpen { ttl_ms: 10_000 }), write(1, 1, 1), write(2, 2, 1)]);
    stepped.push(vec![write(3, 3, 2)]);
    stepped.finish();
    assert_eq!(rows(&stepped), [] as [u64; 0], "written before anything wants them");
    stepped.checkpoint();
    assert_eq!(rows(&stepped), [2, 3]);
    // One that is on disk is remembered, forgotten and removed like any other.
    stepped.push(vec![write(4, 2, 2), write(5, 4, 3)]);
    stepped.finish();
    let applied = stepped.parts.store.view().revision;
    assert_eq!(applied, Revision::new(4), "the double of number 2 was decided again");
    assert_eq!(rows(&stepped), [2, 3]);
    stepped.checkpoint();
    assert_eq!(rows(&stepped), [3, 4]);
    let again = State::load(&past_rows(stepped.parts.engine.db.as_ref().unwrap(), live_table).unwrap()).unwrap();
    assert_eq!(again.counters(), stepped.parts.engine.state.counters(), "what is durable is not the whole state");
}

#[test]
fn counters_and_position_are_on_disk_with_a_durable_commit_and_before_a_snapshot_is_read() {
    let mut stepped = Stepped::new();
    let on_disk = |stepped: &Stepped| {
        let rows = past_rows(stepped.parts.engine.db.as_ref().unwrap(), live_table).unwrap();
        let position = read_position(&rows, APPLIED).unwrap().and_then(|meta| meta.last_applied);
        let counters = rows.row(RowSpace::Meta, META_KEY).unwrap().map(|row| decode_meta(row).unwrap());
        (position.map(|id| id.index), counters.map(|meta| meta.revision.get()))
    };
    stepped.push(vec![entry(1, 0, put("k", "1"))]);
    stepped.finish();
    assert_eq!(on_disk(&stepped), (None, None), "written before anything wants them");
    let view = stepped.parts.engine.whole().unwrap();
    assert_eq!(on_disk(&stepped), (Some(0), Some(1)));
    assert_eq!(view.meta().last_applied, Some(at(1, 0)));
    stepped.push(vec![entry(1, 1, put("k", "2"))]);
    stepped.push(vec![LogEntry { log_id: at(1, 2), payload: Payload::Blank }]);
    stepped.finish();
    assert_eq!(on_disk(&stepped), (Some(0), Some(1)));
    stepped.checkpoint();
    assert_eq!(on_disk(&stepped), (Some(2), Some(2)), "what is durable is not the whole state");
    // An entry that changes nothing moves the position all the same.
    stepped.push(vec![LogEntry { log_id: at(1, 3), payload: Payload::Blank }]);
    stepped.checkpoint();
    assert_eq!(on_disk(&stepped), (Some(3), Some(2)));
}

#[test]
fn a_checkpoint_comes_by_itself_once_enough_is_at_stake_and_after_the_answer() {
    let cases: [(&str, Vec<LogEntry>); 2] = [
        ("entries", (0..CHECKPOINT_ENTRIES).map(|i| LogEntry { log_id: at(1, i), payload: Payload::Blank }).collect()),
        ("bytes", vec![entry(1, 0, put("k", &"x".repeat(CHECKPOINT_BYTES as usize)))]),
    ];
    for (what, entries) in cases {
        let mut stepped = Stepped::new();
        let last = entries.last().unwrap().log_id;
        let (rest, end) = entries.split_at(entries.len() - 1);
        if !rest.is_empty() {
            stepped.push(rest.to_vec());
            stepped.finish();
            assert_eq!(stepped.parts.store.durable_applied(), None, "{what}: too early");
        }
        let durable = Arc::new(Mutex::new(None));
        let (store, seen) = (stepped.parts.store.clone(), durable.clone());
        let done = Box::new(move |_| *seen.lock().unwrap() = Some(store.durable_applied()));
        stepped.queue.push_back(Op::Apply { entries: end.to_vec(), done });
        stepped.finish();
        assert_eq!(*durable.lock().unwrap(), Some(None), "{what}: the answer waited for the checkpoint");
        assert_eq!(stepped.parts.store.durable_applied(), Some(last), "{what}");
        assert_eq!(stepped.parts.engine.unsynced.commits, 0, "{what}");
    }
}

#[test]
fn members_make_their_states_durable_at_different_entries() {
    let blank = |i| LogEntry { log_id: at(1, i), payload: Payload::Blank };
    let voters = |ids: &[u64]| Membership {
        configs: vec![ids.iter().copied().map(NodeId::new).collect()],
        nodes: Default::default(),
    };
    // This one is 1.
    for (membership, turn) in
        [(voters(&[1, 2, 3]), 0), (voters(&[0, 1, 3]), CHECKPOINT_ENTRIES / 3), (voters(&[2, 3]), 0)]
    {
        let mut stepped = Stepped::new();
        stepped.push(vec![LogEntry { log_id: at(1, 0), payload: Payload::Membership(membership) }]);
        let mut commits = Vec::new();
        for i in 1..2 * CHECKPOINT_ENTRIES {
            stepped.push(vec![blank(i)]);
            stepped.finish();
            if stepped.parts.store.durable_applied() == Some(at(1, i)) {
                commits.push(i + 1);
            }
        }
        let expected = [turn, turn + CHECKPOINT_ENTRIES, turn + 2 * CHECKPOINT_ENTRIES];
        let expected: Vec<_> = expected.into_iter().filter(|at| (2..=2 * CHECKPOINT_ENTRIES).contains(at)).collect();
        assert_eq!(commits, expected);
    }
}

#[test]
fn entries_that_are_large_make_no_more_commits_than_their_bytes_do() {
    let value = "x".repeat(1100);
    let mut stepped = Stepped::new();
    let (mut commits, mut durable) = (0, None);
    for i in 0..3 * CHECKPOINT_ENTRIES {
        stepped.push(vec![entry(1, i, put("k", &value))]);
        stepped.finish();
        let now = stepped.parts.store.durable_applied();
        commits += u64::from(now != durable);
        durable = now;
    }
    let bytes = 3 * CHECKPOINT_ENTRIES * value.len() as u64;
    assert!((bytes / CHECKPOINT_BYTES..=1 + bytes * 9 / 8 / CHECKPOINT_BYTES).contains(&commits), "{commits}");
}

#[test]
fn a_checkpoint_survives_the_loss_of_power_and_what_came_later_is_replayed_to_the_same_state() {
    let entries = history(50, 25);
    let model = replay(&entries);
    let disk = FaultDisk::new(4);
    run(async {
        let node = Node::open(disk.mount()).unwrap();
        node.append(&entries).await.unwrap();
        node.apply(&entries[..30]).await.unwrap();
        node.checkpoint().await.unwrap();
        node.apply(&entries[30..]).await.unwrap();
        disk.die_at(0);
    });
    disk.power_loss(PowerLoss::DropAll);
    run(async {
        let node = Node::open(disk.mount()).unwrap();
        assert_eq!(node.store.applied().last_applied, Some(at(2, 29)));
        assert_eq!(node.store.durable_applied(), Some(at(2, 29)));
        assert_eq!(moment(&*node.whole().await).unwrap(), model[29]);
        node.apply(&node.log.entries(30..50, usize::MAX).unwrap()).await.unwrap();
        assert_eq!(moment(&*node.whole().await).unwrap(), model[49]);
        node.close().await.unwrap();
    });
    run(async {
        let node = Node::open(disk.mount()).unwrap();
        assert_eq!(moment(&*node.whole().await).unwrap(), model[49], "after an orderly close");
        assert_eq!(node.store.applied().membership.log_id, Some(at(1, 0)));
    });
}

#[test]
fn an_entry_that_cannot_be_read_stops_the_node_before_anything_of_its_batch_is_applied() {
    run(async {
        let disk = MemDisk::new();
        let node = Node::open(Arc::new(disk.clone())).unwrap();
        node.apply(&[entry(1, 0, put("k", "1"))]).await.unwrap();
        let cut = LogEntry { log_id: at(1, 2), payload: Payload::Proposal(Bytes::from_static(b"\x01")) };
        let failed = node.apply(&[entry(1, 1, put("k", "2")), cut]).await.unwrap_err();
        assert!(failed.reason.contains("t1-n1.2"), "{failed}");
        assert_eq!(node.store.applied().last_applied, Some(at(1, 0)));
        let refused = [
            node.apply(&[entry(1, 1, put("k", "2"))]).await.map(drop),
            node.checkpoint().await,
            ask(|done| node.store.build_snapshot(done)).await.map(drop),
            ask(|done| node.store.stage_begin(SnapshotMeta::default(), done)).await.map(drop),
            ask(|done| node.store.close(done)).await,
            node.append(&[entry(1, 0, put("k", "1"))]).await,
        ];
        for (i, result) in refused.into_iter().enumerate() {
            assert_eq!(result.map_err(|error| error.reason), Err(failed.reason.clone()), "operation {i}");
        }
        assert!(disk.failed().unwrap().is_some(), "no marker was left");
    });
}

#[test]
fn an_entry_of_a_newer_release_stops_the_node_and_leaves_its_directory_to_that_release() {
    let disk = MemDisk::new();
    run(async {
        let node = Node::open(Arc::new(disk.clone())).unwrap();
        node.append(&[entry(1, 0, put("k", "1"))]).await.unwrap();
        node.apply(&[entry(1, 0, put("k", "1"))]).await.unwrap();
        let newer = LogEntry { log_id: at(1, 2), payload: Payload::Proposal(Bytes::from_static(b"\xff\xff")) };
        let failed = node.apply(&[entry(1, 1, put("k", "2")), newer]).await.unwrap_err();
        assert!(failed.reason.contains("t1-n1.2") && failed.reason.contains("start that release"), "{failed}");
        let next = node.apply(&[entry(1, 1, put("k", "2"))]).await.map(drop);
        assert_eq!(next.map_err(|error| error.reason), Err(failed.reason), "nothing is applied behind it");
    });
    assert_eq!(disk.failed().unwrap(), None, "the member need not be replaced");
    run(async {
        let node = Node::open(Arc::new(disk)).unwrap();
        node.apply(&[entry(1, 0, put("k", "1")), entry(1, 1, put("k", "2"))]).await.unwrap();
        assert_eq!(node.store.applied().last_applied, Some(at(1, 1)));
    });
}

#[test]
fn an_entry_that_was_applied_before_stops_the_node() {
    run(async {
        let node = Node::open(Arc::new(MemDisk::new())).unwrap();
        node.apply(&[entry(1, 1, put("k", "1"))]).await.unwrap();
        let failed = node.apply(&[entry(1, 1, put("k", "2"))]).await.unwrap_err();
        assert!(failed.reason.contains("does not follow"), "{failed}");
        assert!(node.poison.error().is_some());
    });
}

#[test]
fn a_panic_while_applying_stops_the_node_as_an_error_does() {
    let mut stepped = Stepped::new();
    stepped.push(vec![entry(1, 0, put("k", "1"))]);
    stepped.finish();
    let engine = &mut stepped.parts.engine;
    let failed = engine.guarded::<()>("apply", |engine| {
        let _ = transact(engine.db.as_deref(), Durability::None, |_| -> Result<(), RowError> { panic!("a bug") });
        Ok(())
    });
    assert!(failed.as_ref().is_err_and(|error| error.reason == "a bug"), "{failed:?}");
    let answer = Arc::new(Mutex::new(None));
    let told = answer.clone();
    let done = Box::new(move |applied: Result<Vec<Applied>, _>| *told.lock().unwrap() = Some(applied));
    stepped.queue.push_back(Op::Apply { entries: vec![entry(1, 1, put("k", "2"))], done });
    stepped.step();
    let answer = answer.lock().unwrap().take().unwrap();
    assert!(answer.as_ref().is_err_and(|error| error.reason == "a bug"), "{answer:?}");
}

#[test]
fn a_batch_waits_for_one_slice_of_a_sweep_and_not_for_all_of_it() {
    let mut stepped = Stepped::new();
    let garbage = 3 * SWEEP_RECORDS as u64;
    stepped.push((0..=garbage).map(|i| entry(1, i, put("k", "v"))).collect());
    stepped.push(vec![entry(1, garbage + 1, compact(garbage + 1))]);
    stepped.checkpoint();
    let found = |stepped: &Stepped| stepped.parts.engine.removed.len();
    stepped.quiet();
    let mut next = garbage + 2;
    while found(&stepped) < garbage as usize {
        stepped.push(vec![entry(1, next, put(&next.to_string(), "v"))]);
        let before = found(&stepped);
        while stepped.answered() != Some(next) {
            stepped.step();
        }
        let found = found(&stepped) - before;
        assert!(found <= SWEEP_RECORDS, "a batch waited for a sweep of {found} records");
        next += 1;
        assert!(next < garbage + 30, "the sweep does not end");
    }
    assert!(next > garbage + 4, "it took one slice");
    stepped.checkpoint();
    assert_eq!(stepped.records() as u64, 1 + next - (garbage + 2), "what was found was not removed");
    let kept = stepped.parts.store.view().get(b"k").unwrap().unwrap();
    assert_eq!(kept.version, garbage + 1);
}

/// The commit under way is one of the first entries; those that come meanwhile change, delete and read what it holds.
#[test]
fn entries_that_come_while_a_commit_is_under_way_find_all_that_is_in_it() {
    let entries = history(60, 30);
    let model = replay(&entries);
    for end in [3, 10, 20, 33, 45, 59] {
        let mut stepped = Stepped::new();
        for step in 1..=3 {
            let (from, to) = (end * (step - 1) / 3, end * step / 3);
            entries[from..to].iter().for_each(|entry| stepped.push(vec![entry.clone()]));
            while stepped.answered() != Some(to as u64 - 1) {
                stepped.parts.engine.step(&mut stepped.queue);
            }
            let view = stepped.parts.store.view();
            assert_eq!(view.counters, model[to - 1].counters, "after {to} of {end}");
            let shown = view.range(&everything(), 100, false).unwrap().0;
            assert_eq!(shown.len() as u64, view.counters.keys);
            let leases = view.leases().unwrap();
            assert_eq!(leases, stepped.parts.engine.state.leases(), "after {to} of {end}");
            let (changes, _) = view.changes(view.floor.next()..=view.revision, 1000).unwrap();
            assert_eq!(changes.last().map(|change| change.id.revision), (!changes.is_empty()).then_some(view.revision));
            assert!(changes.is_sorted_by(|one, other| one.id < other.id), "{changes:?}");
            // The first commit ends only now, and the next one begins.
            stepped.commit();
            stepped.parts.engine.land();
            stepped.parts.engine.launch(None);
            assert!(stepped.parts.engine.flight.is_some());
            assert_eq!(view.range(&everything(), 100, false).unwrap().0, shown, "the view has changed");
        }
        stepped.finish();
        let whole = stepped.parts.engine.whole().unwrap();
        assert_eq!(moment(&whole).unwrap(), model[end - 1], "{end}");
    }
}

#[test]
fn no_batch_is_taken_while_twice_as_much_as_one_commit_takes_has_not_been_begun() {
    let mut stepped = Stepped::new();
    let half = CHECKPOINT_ENTRIES / 2;
    let blanks =
        |from: u64| (from..from + half).map(|i| LogEntry { log_id: at(1, i), payload: Payload::Blank }).collect();
    for batch in 0..8 {
        stepped.push(blanks(batch * half));
    }
    // Nobody makes the commit that the second batch begins.
    let waits = (0..100).any(|_| matches!(stepped.parts.engine.step(&mut stepped.queue), Step::After(..)));
    assert!(waits, "all was taken");
    assert_eq!(stepped.answered(), Some(6 * half - 1));
    assert_eq!(stepped.parts.store.durable_applied(), None);
    stepped.finish();
    assert_eq!(stepped.answered(), Some(8 * half - 1));
    assert_eq!(stepped.parts.store.durable_applied(), Some(at(1, 8 * half - 1)));
}

#[test]
fn a_commit_that_nobody_makes_any_more_stops_the_node_and_is_told_to_whoever_waits() {
    let mut stepped = Stepped::new();
    stepped.push(vec![entry(1, 0, put("k", "1"))]);
    stepped.finish();
    let answer = Arc::new(Mutex::new(None));
    let told = answer.clone();
    stepped.parts.engine.launch(Some(Box::new(move |done| *told.lock().unwrap() = Some(done))));
    let mut commits = VecDeque::new();
    stepped.parts.engine.commits.take(&mut commits);
    assert_eq!(commits.len(), 1);
    drop(commits);
    stepped.finish();
    let answer = answer.lock().unwrap().take();
    assert!(matches!(&answer, Some(Err(error)) if error.reason.contains("given up")), "{answer:?}");
    assert!(stepped.parts.poison.error().is_some());
}

#[test]
fn a_sweep_spares_what_a_view_can_reach_until_the_view_is_too_old() {
    let mut stepped = Stepped::new();
    let tick = |stepped: &mut Stepped, now| {
        stepped.queue.push_back(Op::Tick { now });
        stepped.finish();
    };
    stepped.push(vec![entry(1, 0, put("k", "1")), entry(1, 1, put("gone", "1"))]);
    stepped.finish();
    let view = stepped.parts.store.view();
    // However long it has been the newest: that is not its age.
    tick(&mut stepped, Duration::from_secs(1));
    tick(&mut stepped, 10 * VIEW_AGE_MAX);
    let start = 11 * VIEW_AGE_MAX;
    stepped.push(vec![entry(1, 2, put("k", "2")), entry(1, 3, delete("gone")), entry(1, 4, compact(4))]);
    stepped.finish();
    for now in [start, start + VIEW_AGE_MAX / 2, start + VIEW_AGE_MAX - Duration::from_millis(1)] {
        tick(&mut stepped, now);
        let shown = view.get(b"k").unwrap().map(|entry| entry.value);
        assert_eq!((shown, stepped.records()), (Some("1".into()), 4), "at {now:?}");
        assert_eq!(view.count(&everything()).unwrap(), 2, "at {now:?}");
    }
    tick(&mut stepped, start + VIEW_AGE_MAX);
    assert_eq!(stepped.records(), 1);
    let old = view.get(b"k");
    assert!(matches!(old, Err(ReadError::Compacted { oldest }) if oldest == Revision::new(4)), "{old:?}");
    let now = stepped.parts.store.view();
    assert_eq!(now.get(b"k").unwrap().map(|entry| entry.value), Some("2".into()));
    assert!(stepped.parts.poison.error().is_none());
}

#[test]
fn a_view_that_nobody_holds_keeps_nothing_from_being_swept() {
    let mut stepped = Stepped::new();
    stepped.push(vec![entry(1, 0, put("k", "1"))]);
    stepped.finish();
    drop(stepped.parts.store.view());
    stepped.push(vec![entry(1, 1, put("k", "2")), entry(1, 2, compact(2))]);
    stepped.quiet();
    stepped.finish();
    assert_eq!(stepped.records(), 1);
}

#[test]
fn what_two_sweeps_have_found_is_removed_by_one_commit() {
    let mut stepped = Stepped::new();
    let commands = [put("a", "1"), put("b", "1"), put("b", "2"), compact(3)];
    stepped.push((0..).zip(commands).map(|(i, command)| entry(1, i, command)).collect());
    stepped.finish();
    let view = stepped.parts.store.view();
    stepped.push(vec![entry(1, 4, put("a", "2")), entry(1, 5, compact(4))]);
    stepped.checkpoint();
    let sweep = |stepped: &mut Stepped| {
        let engine = &mut stepped.parts.engine;
        while engine.state.is_sweeping() || engine.state.can_sweep(engine.sweepable()) {
            engine.sweep_slice().unwrap();
        }
        engine.removed.iter().map(|id| id.revision.get()).collect::<Vec<_>>()
    };
    assert_eq!(sweep(&mut stepped), [2], "the view can reach the other one");
    drop(view);
    assert_eq!(sweep(&mut stepped), [2, 1]);
    stepped.checkpoint();
    assert_eq!(stepped.records(), 2);
}

#[test]
fn a_sweep_goes_on_after_a_restart() {
    let disk = MemDisk::new();
    let entries: Vec<_> = (0..50).map(|i| entry(1, i, put("k", "v"))).collect();
    run(async {
        let node = Node::open(Arc::new(disk.clone())).unwrap();
        let held = node.store.view();
        node.apply(&entries).await.unwrap();
        node.apply(&[entry(1, 50, compact(50))]).await.unwrap();
        settle().await;
        drop(held);
        node.close().await.unwrap();
    });
    run(async {
        let parts = Parts::open(Arc::new(disk.clone())).unwrap();
        let mut stepped = Stepped::of(parts);
        assert_eq!(stepped.records(), 50, "there was nothing left to sweep");
        stepped.quiet();
        stepped.finish();
        assert_eq!(stepped.records(), 1);
    });
}

#[test]
fn history_is_read_from_a_view_down_to_its_floor() {
    run(async {
        let node = Node::open(Arc::new(MemDisk::new())).unwrap();
        let entries: Vec<_> = (0..10).map(|i| entry(1, i, put("k", &i.to_string()))).collect();
        node.apply(&entries).await.unwrap();
        node.apply(&[entry(1, 10, compact(4))]).await.unwrap();
        quiet(&node.store).await;
        let view = node.store.view();
        assert_eq!((view.floor, view.revision), (Revision::new(4), Revision::new(10)));
        for revision in 4..=10 {
            let read = view.get_at(Revision::new(revision), b"k").unwrap().unwrap();
            assert_eq!(read.value, (revision - 1).to_string());
        }
        let below = view.get_at(Revision::new(3), b"k");
        assert!(matches!(below, Err(ReadError::Compacted { oldest }) if oldest.get() == 4), "{below:?}");
        let (changes, complete) = view.changes(Revision::new(5)..=Revision::new(100), 3).unwrap();
        assert_eq!((changes.len(), complete), (3, Revision::new(7)));
        let prev = view.record(changes[0].prev.unwrap()).unwrap().unwrap();
        assert_eq!(prev.value, "3");
        let gone = view.changes(Revision::new(4)..=Revision::new(10), 3);
        assert!(matches!(gone, Err(ReadError::Compacted { oldest }) if oldest.get() == 5), "{gone:?}");
        let explained = view.explain(b"k", 100).unwrap();
        assert_eq!(explained.len(), 7, "{explained:?}");
        assert_eq!(explained[0].1.index, 9);
    });
}

#[test]
fn after_the_close_everything_is_refused_and_nothing_is_marked_as_failed() {
    run(async {
        let disk = MemDisk::new();
        let node = Node::open(Arc::new(disk.clone())).unwrap();
        let entries = history(20, 20);
        node.apply(&entries).await.unwrap();
        let (store, view) = (node.store.clone(), node.whole().await);
        node.close().await.unwrap();
        let refused = ask(|done| store.apply(entries[..1].to_vec(), done)).await;
        assert!(refused.is_err(), "{refused:?}");
        let snapshot = chunks(&view);
        assert!(snapshot.is_err(), "a view of a closed file still reads all of it");
        assert_eq!(disk.failed().unwrap(), None);
    });
}

#[test]
fn a_directory_can_be_opened_again_while_a_view_of_its_last_life_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let (directory, memory) = (dir.path().join("node"), MemDisk::new());
    let disks: [&dyn Fn() -> Arc<dyn Disk>; 2] =
        [&|| Arc::new(DirDisk::open(&directory).unwrap()), &|| Arc::new(memory.clone())];
    for disk in disks {
        run(async {
            let node = Node::open(disk()).unwrap();
            node.apply(&[entry(1, 0, put("k", "1"))]).await.unwrap();
            let view = node.store.view();
            node.close().await.unwrap();
            let again = Node::open(disk()).unwrap();
            assert_eq!(again.store.view().get(b"k").unwrap().unwrap().value, "1");
            drop(view);
            again.apply(&[entry(1, 1, put("k", "2"))]).await.unwrap();
            again.close().await.unwrap();
        });
    }
}

#[test]
fn a_record_that_has_rotted_is_neither_shown_nor_sent_and_stops_the_node() {
    type Look = fn(&View) -> Result<(), String>;
    let looks: [(&str, Look); 3] = [
        ("get", |view| view.get(b"k").map(drop).map_err(|error| error.to_string())),
        ("snapshot", |view| chunks(view).map(drop).map_err(|error| error.to_string())),
        ("changes", |view| {
            view.changes(Revision::new(1)..=Revision::new(1), 9).map(drop).map_err(|error| error.to_string())
        }),
    ];
    for (what, look) in looks {
        let mut stepped = Stepped::new();
        stepped.push(vec![entry(1, 0, put("k", "precious"))]);
        stepped.finish();
        look(&stepped.parts.engine.whole().unwrap()).unwrap();
        let engine = &mut stepped.parts.engine;
        transact(engine.db.as_deref(), Durability::None, |txn| {
            let id = RecordId { revision: Revision::new(1), ordinal: 0 };
            let mut rows = TxnRows::new(txn, live_table);
            let table = rows.records()?;
            let mut record = records::record(table, id)?.unwrap().to_vec();
            let place = record.windows(8).position(|bytes| bytes == b"precious").unwrap();
            record[place] ^= 1;
            records::remove(table, &[id])?;
            let mut packer = Packer::default();
            packer.push(table, id, &record)?;
            packer.finish(table)
        })
        .unwrap();
        engine.refresh().unwrap();
        let looked = look(&stepped.parts.store.view());
        assert!(looked.as_ref().is_err_and(|error| error.contains("checksum")), "{what}: {looked:?}");
        assert!(stepped.parts.poison.error().is_some(), "{what} did not stop the node");
    }
}

#[test]
fn a_state_that_has_rotted_is_not_opened() {
    let disk = FaultDisk::new(1);
    run(async {
        let node = Node::open(disk.mount()).unwrap();
        node.apply(&[entry(1, 0, put("k", "precious"))]).await.unwrap();
        node.close().await.unwrap();
    });
    let bytes = disk.bytes(File::State);
    for (place, _) in bytes.windows(8).enumerate().filter(|(_, window)| *window == b"precious") {
        disk.flip(File::State, place as u64 * 8);
    }
    let opened = Parts::open(disk.mount()).map(drop);
    assert!(matches!(opened, Err(StartError::Corrupted { .. })), "{opened:?}");
}

#[test]
fn milestones_stand_behind_the_same_entries_however_these_come_in_batches() {
    let entries: Vec<_> = (0..2500).map(|i| entry(1, i, put(&format!("k{}", i % 7), &i.to_string()))).collect();
    let milestones = |sizes: &'static [usize]| {
        let entries = entries.clone();
        run(async move {
            let node = Node::open(Arc::new(MemDisk::new())).unwrap();
            let (mut rest, mut hashes) = (&entries[..], Vec::new());
            for size in sizes.iter().cycle() {
                let (batch, behind) = rest.split_at((*size).min(rest.len()));
                node.apply(batch).await.unwrap();
                let view = node.store.view();
                hashes.push((view.applied.unwrap().index, view.counters.hash));
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            (node.store.account().milestones, hashes)
        })
    };
    let (one_by_one, hashes) = milestones(&[1]);
    let wanted: Vec<_> = hashes.into_iter().filter(|(index, _)| index % 1024 == 0).collect();
    let found: Vec<_> = one_by_one.iter().map(|milestone| (milestone.index, milestone.hash)).collect();
    assert_eq!((found.len(), found), (3, wanted));
    assert_eq!(milestones(&[3, 200, 1, 64]).0, one_by_one);
    assert_eq!(milestones(&[2500]).0, one_by_one);
}
