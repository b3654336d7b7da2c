use std::slice;

use super::super::disk::MemDisk;
use super::super::fault_disk::{FaultDisk, PowerLoss};
use super::super::state::{Installed, StageError};
use super::super::support::{
    Node, ask, at, chunks, entry, everything, history, moment, put, quiet, replay, run, settle,
};
use super::super::view::View;
use super::*;
use crate::types::{Account, LogEntry};

fn node() -> Node {
    Node::open(Arc::new(MemDisk::new())).unwrap()
}

/// A node at the end of `entries`. If `unswept`, nothing that its history made unreachable has been removed.
async fn node_at(entries: &[LogEntry], unswept: bool) -> Node {
    let node = node();
    let first = node.store.view();
    for entry in entries {
        node.apply(slice::from_ref(entry)).await.unwrap();
    }
    if !unswept {
        drop(first);
        ask::<_, StorageError>(|done| node.store.checkpoint(done)).await.unwrap();
        quiet(&node.store).await;
    }
    node
}

/// Enough for several chunks.
fn large() -> Vec<LogEntry> {
    (0..300).map(|i| entry(1, i, put(&format!("k{i}"), &"v".repeat(4000)))).collect()
}

/// Every answer that a view gives about its keys, at every revision it answers for, and the changes on the way.
fn told(view: &View) -> Vec<String> {
    let mut told = Vec::new();
    for revision in (view.floor.get()..=view.revision.get()).map(Revision::new) {
        told.push(format!("{:?}", view.range_at(revision, &everything(), 100, revision.get() % 2 == 0).unwrap()));
    }
    told.push(format!("{:?}", view.changes(view.floor.next()..=view.revision, 10_000).unwrap()));
    told
}

#[test]
fn an_installed_snapshot_is_the_state_it_was_read_from() {
    let entries = history(60, 30);
    let model = replay(&entries);
    for (end, behind) in [1, 5, 23, 41, 50, 57].into_iter().flat_map(|end| [(end, 0), (end, end / 2)]) {
        let what = format!("after {end} entries, from {behind}");
        run(async {
            let sender = node_at(&entries[..end], true).await;
            let view = sender.whole().await;
            let meta = view.meta();
            let receiver = node_at(&entries[..behind], false).await;
            assert_eq!(receiver.store.account().milestones.len(), usize::from(behind > 0), "{what}");
            let installed = receiver.install(meta.clone(), &chunks(&view).unwrap()).await.unwrap();
            assert_eq!(installed, Installed::Replaced, "{what}");
            let account = Account { since: end as u64 - 1, milestones: vec![] };
            assert_eq!(receiver.store.account(), account, "not of the state that was replaced, {what}");
            let copy = receiver.store.view();
            assert_eq!(copy.meta(), meta, "{what}");
            assert_eq!(copy.counters, view.counters, "{what}");
            assert_eq!(moment(&copy).unwrap(), model[end - 1], "{what}");
            assert_eq!(told(&copy), told(&view), "{what}");
            assert_eq!(receiver.store.durable_applied(), meta.last_applied, "{what}");
            assert_eq!(receiver.store.current_snapshot(), Some(meta.clone()), "{what}");
            // What comes next, doubles of earlier commands among it, is answered alike.
            let go_on = (sender.apply(&entries[end..]).await, receiver.apply(&entries[end..]).await);
            assert_eq!(go_on.0.unwrap(), go_on.1.unwrap(), "{what}");
            assert_eq!(moment(&*receiver.whole().await).unwrap(), model[59], "{what}");
        });
    }
}

#[test]
fn a_snapshot_is_the_same_bytes_whatever_its_sender_has_swept() {
    let entries = history(60, 30);
    run(async {
        let (lazy, swept) = (node_at(&entries, true).await, node_at(&entries, false).await);
        let (lazy, swept) = (lazy.whole().await, swept.whole().await);
        assert_ne!(told_by_rows(&lazy), told_by_rows(&swept), "there was nothing left to sweep");
        assert_eq!(chunks(&lazy).unwrap(), chunks(&swept).unwrap());
    });
}

/// How many records the view's file holds, reachable or not.
fn told_by_rows(view: &View) -> usize {
    (1..=view.revision.get())
        .flat_map(|revision| (0..4).map(move |ordinal| RecordId { revision: Revision::new(revision), ordinal }))
        .filter(|id| view.record(*id).unwrap().is_some())
        .count()
}

#[test]
fn a_snapshot_is_of_its_moment_while_the_store_moves_on() {
    run(async {
        let sender = node_at(&large(), false).await;
        let expected = chunks(&*sender.whole().await).unwrap();
        assert!(expected.len() > 3, "{} chunks", expected.len());
        let mut reader = sender.whole().await.read_snapshot().unwrap();
        let mut read = Vec::new();
        let mut next = 300;
        while let Some(chunk) = reader.next_chunk().unwrap() {
            read.push(chunk);
            sender.apply(&[entry(1, next, put(&format!("k{}", next % 300), "new"))]).await.unwrap();
            sender.checkpoint().await.unwrap();
            next += 1;
        }
        assert_eq!(read, expected);
        assert_eq!(reader.meta().last_applied, Some(at(1, 299)));
        assert_eq!(reader.next_chunk().unwrap(), None);
    });
}

#[test]
fn a_row_longer_than_a_chunk_travels_whole() {
    run(async {
        let value = "v".repeat(3 * crate::format::snapshot::CHUNK_BYTES);
        let entries = [entry(1, 0, put("a", "1")), entry(1, 1, put("b", &value)), entry(1, 2, put("c", "3"))];
        let sender = node_at(&entries, false).await;
        let view = sender.whole().await;
        let receiver = node();
        receiver.install(view.meta(), &chunks(&view).unwrap()).await.unwrap();
        let copied = receiver.store.view().get(b"b").unwrap().unwrap();
        assert_eq!(copied.value.len(), value.len());
    });
}

#[test]
fn chunks_that_are_torn_doubled_corrupted_missing_or_of_another_snapshot_change_nothing() {
    run(async {
        let sender = node_at(&large(), false).await;
        let view = sender.whole().await;
        let (meta, good) = (view.meta(), chunks(&view).unwrap());
        let other = {
            sender.apply(&[entry(1, 300, put("k0", "other"))]).await.unwrap();
            chunks(&*sender.whole().await).unwrap()
        };
        let receiver = node_at(&history(30, 30), false).await;
        let before = (moment(&*receiver.whole().await).unwrap(), receiver.store.durable_applied());
        let send = |stage, index, chunk: &Bytes| {
            let (store, chunk) = (receiver.store.clone(), chunk.clone());
            ask(move |done| store.stage_chunk(stage, index, chunk, done))
        };
        let refused = |result: Result<u64, StageError>| match result {
            Err(StageError::Refused(refused)) => refused,
            other => panic!("{other:?}"),
        };

        let stage = ask::<_, StorageError>(|done| receiver.store.stage_begin(meta.clone(), done)).await.unwrap();
        let early = ask(|done| receiver.store.stage_finish(stage, done)).await;
        assert!(matches!(early, Err(StageError::Refused(SnapshotRefused::Incomplete { next: 0 }))), "{early:?}");
        assert_eq!(send(stage, 0, &good[0]).await.unwrap(), 1);
        assert_eq!(send(stage, 0, &good[0]).await.unwrap(), 1, "a double");
        assert_eq!(refused(send(stage, 2, &good[2]).await), SnapshotRefused::Gap { expected: 1, found: 2 });
        assert_eq!(refused(send(stage, 1, &good[2]).await), SnapshotRefused::Gap { expected: 1, found: 2 });
        for cut in [0, 3, 4, 100, good[1].len() - 1] {
            let torn = refused(send(stage, 1, &good[1].slice(..cut)).await);
            assert!(matches!(torn, SnapshotRefused::Damaged(_)), "cut at {cut}: {torn:?}");
        }
        for bit in [0, 40, 8 * 1000, good[1].len() * 8 - 1] {
            let mut bad = good[1].to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let corrupted = refused(send(stage, 1, &bad.into()).await);
            assert!(matches!(corrupted, SnapshotRefused::Damaged(_)), "bit {bit}: {corrupted:?}");
        }
        // All of these were refused one by one, so the good ones can still follow.
        for (index, chunk) in (1..).zip(&good[1..]) {
            assert_eq!(send(stage, index, chunk).await.unwrap(), index + 1);
        }
        let beyond = refused(send(stage, good.len() as u64, &good[0]).await);
        assert!(matches!(beyond, SnapshotRefused::Gap { .. }), "{beyond:?}");
        ask(|done| receiver.store.stage_finish(stage, done)).await.unwrap();

        // A good chunk of another snapshot in its place: each is whole, together they are nothing.
        let stage = ask::<_, StorageError>(|done| receiver.store.stage_begin(meta.clone(), done)).await.unwrap();
        for (index, chunk) in (0..).zip(good.iter().take(good.len() - 1).chain(other.last())) {
            send(stage, index, chunk).await.unwrap();
        }
        for _ in 0..2 {
            let mixed = ask(|done| receiver.store.stage_finish(stage, done)).await;
            assert!(matches!(mixed, Err(StageError::Refused(SnapshotRefused::Mismatch { .. }))), "{mixed:?}");
            let unfinished = ask(|done| receiver.store.install(stage, done)).await;
            assert!(matches!(unfinished, Err(StageError::Refused(SnapshotRefused::NotStaged))), "{unfinished:?}");
        }
        // The right rows under a wrong position.
        let wrong = SnapshotMeta { last_applied: Some(at(1, 300)), ..meta.clone() };
        let relabelled = receiver.stage(wrong, &good).await;
        assert!(matches!(relabelled, Err(StageError::Refused(SnapshotRefused::Mismatch { .. }))), "{relabelled:?}");

        assert_eq!((moment(&*receiver.whole().await).unwrap(), receiver.store.durable_applied()), before);
        assert!(receiver.poison.error().is_none(), "a bad chunk is not the disk's fault");
        assert_eq!(receiver.install(meta, &good).await.unwrap(), Installed::Replaced);
        assert_eq!(moment(&*receiver.whole().await).unwrap().counters, view.counters);
    });
}

#[test]
fn rows_that_are_no_state_are_refused_before_anything_is_replaced() {
    run(async {
        let mut writer = ChunkWriter::new(&encode_meta(&SnapshotMeta::default()));
        writer.push(Part::Records, &[0; 12], b"no record");
        let receiver = node_at(&history(10, 10), false).await;
        let before = moment(&*receiver.whole().await).unwrap();
        let staged = receiver.stage(SnapshotMeta::default(), &[writer.seal(true)]).await;
        assert!(matches!(staged, Err(StageError::Refused(SnapshotRefused::Unreadable(_)))), "{staged:?}");
        assert_eq!(moment(&*receiver.whole().await).unwrap(), before);
        assert!(receiver.poison.error().is_none());
    });
}

#[test]
fn a_snapshot_that_is_not_ahead_is_dropped() {
    let entries = history(40, 40);
    run(async {
        let sender = node_at(&entries[..30], false).await;
        let (meta, sent) = (sender.store.view().meta(), chunks(&*sender.whole().await).unwrap());
        for end in [30, 40] {
            let receiver = node_at(&entries[..end], false).await;
            let before = moment(&*receiver.whole().await).unwrap();
            let installed = receiver.install(meta.clone(), &sent).await.unwrap();
            assert_eq!(installed, Installed::Older { applied: at(1, end as u64 - 1) });
            settle().await;
            assert_eq!(moment(&*receiver.whole().await).unwrap(), before);
            assert_eq!(receiver.store.current_snapshot(), None);
        }
        // Also one that was ahead when its chunks came.
        let receiver = node_at(&entries[..20], false).await;
        let stage = receiver.stage(meta, &sent).await.unwrap();
        receiver.apply(&entries[20..35]).await.unwrap();
        let installed = ask(|done| receiver.store.install(stage, done)).await.unwrap();
        assert_eq!(installed, Installed::Older { applied: at(1, 34) });
    });
}

#[test]
fn a_new_snapshot_takes_the_place_of_one_that_was_being_received() {
    let entries = history(60, 30);
    run(async {
        let senders = (node_at(&entries[..40], false).await, node_at(&entries, false).await);
        let (old, new) = (senders.0.whole().await, senders.1.whole().await);
        let receiver = node();
        let first = ask::<_, StorageError>(|done| receiver.store.stage_begin(old.meta(), done)).await.unwrap();
        let chunk = chunks(&old).unwrap().remove(0);
        ask(|done| receiver.store.stage_chunk(first, 0, chunk.clone(), done)).await.unwrap();
        let second = receiver.stage(new.meta(), &chunks(&new).unwrap()).await.unwrap();
        let late = ask(|done| receiver.store.stage_chunk(first, 0, chunk, done)).await;
        assert!(matches!(late, Err(StageError::Refused(SnapshotRefused::NotStaged))), "{late:?}");
        assert_eq!(ask(|done| receiver.store.install(second, done)).await.unwrap(), Installed::Replaced);
        assert_eq!(moment(&*receiver.whole().await).unwrap(), moment(&new).unwrap());
        let again = ask(|done| receiver.store.install(second, done)).await;
        assert!(matches!(again, Err(StageError::Refused(SnapshotRefused::NotStaged))), "{again:?}");
    });
}

#[test]
fn a_view_from_before_an_install_goes_on_showing_its_moment() {
    let entries = history(60, 30);
    run(async {
        let receiver = node_at(&entries[..20], false).await;
        let view = receiver.store.view();
        let shown = told(&view);
        let sender = node_at(&entries, false).await;
        let new = sender.whole().await;
        receiver.install(new.meta(), &chunks(&new).unwrap()).await.unwrap();
        settle().await;
        assert_eq!(told(&view), shown);
    });
}

#[test]
fn records_that_come_twice_or_out_of_order_are_refused() {
    let id = |revision| RecordId { revision: Revision::new(revision), ordinal: 0 };
    let meta = SnapshotMeta { last_applied: Some(at(1, 5)), ..SnapshotMeta::default() };
    for (chunks, refused) in
        [(&[&[1, 2, 2][..]][..], 0), (&[&[1, 3, 2]], 0), (&[&[1, 3], &[2]], 1), (&[&[1, 3], &[3]], 1)]
    {
        let mut writer = ChunkWriter::new(&encode_meta(&meta));
        let mut stage = Stage::new(StageId(1), meta.clone());
        for (index, revisions) in chunks.iter().enumerate() {
            revisions.iter().for_each(|at| writer.push(Part::Records, &record_key(id(*at)), b"record"));
            let answer = stage.accept(index as u64, writer.seal(false));
            match index == refused {
                false => assert!(answer.is_ok(), "{chunks:?}: {answer:?}"),
                true => assert!(matches!(answer, Err(SnapshotRefused::Unreadable(_))), "{chunks:?}: {answer:?}"),
            }
        }
        assert_eq!(stage.next(), refused as u64, "{chunks:?}");
    }
}

#[test]
fn what_an_install_leaves_behind_is_emptied_at_once_or_after_a_restart() {
    let tables = |disk: &FaultDisk| {
        let opened = super::super::open(disk.mount(), "a", || unreachable!()).unwrap();
        let txn = redb::ReadableDatabase::begin_read(&opened.state_db).unwrap();
        let mut names: Vec<String> =
            txn.list_tables().unwrap().map(|table| redb::TableHandle::name(&table).to_owned()).collect();
        names.retain(|name| name.starts_with("old_") || name.starts_with("staged_"));
        names
    };
    let (meta, sent) = run(async {
        let sender = node_at(&large(), false).await;
        let view = sender.whole().await;
        (view.meta(), chunks(&view).unwrap())
    });
    for (installed, settled) in [(true, true), (true, false), (false, false)] {
        let disk = FaultDisk::new(1);
        run(async {
            let node = Node::open(disk.mount()).unwrap();
            node.apply(&history(30, 30)).await.unwrap();
            node.checkpoint().await.unwrap();
            let stage = node.stage(meta.clone(), &sent).await.unwrap();
            if installed {
                ask(|done| node.store.install(stage, done)).await.unwrap();
            } else {
                node.checkpoint().await.unwrap();
            }
            if settled {
                settle().await;
                node.close().await.unwrap();
            } else {
                disk.die_at(0);
            }
        });
        disk.power_loss(PowerLoss::DropAll);
        assert_eq!(tables(&disk).is_empty(), settled, "installed {installed}: {:?}", tables(&disk));
        run(async {
            let node = Node::open(disk.mount()).unwrap();
            settle().await;
            let at = if installed { at(1, 299) } else { at(1, 29) };
            assert_eq!(node.store.applied().last_applied, Some(at));
            node.close().await.unwrap();
        });
        assert!(tables(&disk).is_empty(), "installed {installed}, settled {settled}: {:?}", tables(&disk));
    }
}

#[test]
fn a_built_snapshot_is_durable_and_remembered() {
    let disk = FaultDisk::new(1);
    let entries = history(30, 30);
    run(async {
        let node = Node::open(disk.mount()).unwrap();
        assert_eq!(node.store.current_snapshot(), None);
        node.append(&entries).await.unwrap();
        node.apply(&entries).await.unwrap();
        let built = ask(|done| node.store.build_snapshot(done)).await.unwrap().meta();
        assert_eq!((built.last_applied, built.id()), (Some(at(1, 29)), "t1-n1.29".to_owned()));
        disk.die_at(0);
    });
    disk.power_loss(PowerLoss::DropAll);
    run(async {
        let node = Node::open(disk.mount()).unwrap();
        assert_eq!(node.store.durable_applied(), Some(at(1, 29)));
        let current = node.store.current_snapshot().unwrap();
        assert_eq!(current, node.store.applied());
    });
}
