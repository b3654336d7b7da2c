//! The log as a whole, on a disk that does as it is told.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::error::StorageError;
use crate::format::log_items::entry_bytes;
use crate::rt::worker::Drive;
use crate::storage::disk::{DirDisk, Disk, File, MemDisk};
use crate::storage::fault_disk::IoKind;
use crate::storage::identity::Promise;
use crate::storage::log_engine::{GROUP_OPS_MAX, LAZY_MAX};
use crate::types::ClusterId;

fn rig() -> (FaultDisk, Rig) {
    let disk = FaultDisk::new(1);
    let rig = Rig::open(&disk).unwrap();
    (disk, rig)
}

fn indexes(entries: &[LogEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.log_id.index).collect()
}

#[test]
fn however_many_appends_have_queued_up_cost_one_sync() {
    let (disk, mut rig) = rig();
    for round in 0..3 {
        (0..100).for_each(|i| rig.append(round * 100 + i..round * 100 + i + 1, 1));
        let before = disk.count(IoKind::Sync);
        assert!(matches!(rig.step(), Step::Idle));
        assert_eq!(disk.count(IoKind::Sync) - before, 1, "round {round}");
        assert_eq!(rig.answered().len(), (round as usize + 1) * 100);
    }
}

#[test]
fn a_group_takes_no_more_than_its_limit_and_the_rest_follows_at_once() {
    let (disk, mut rig) = rig();
    for term in 0..GROUP_OPS_MAX as u64 + 1 {
        // The ends of the two groups are all that is written.
        if term + 2 > GROUP_OPS_MAX as u64 { rig.vote(term) } else { rig.barrier() }
    }
    let before = disk.count(IoKind::Sync);
    assert!(matches!(rig.step(), Step::Again));
    assert_eq!(rig.answered().len(), GROUP_OPS_MAX);
    assert!(matches!(rig.step(), Step::Idle));
    assert_eq!((rig.answered().len(), disk.count(IoKind::Sync) - before), (GROUP_OPS_MAX + 1, 2));
}

#[test]
fn replies_come_in_order_and_appends_newest_first_after_them() {
    let (_, mut rig) = rig();
    rig.append(0..2, 1);
    rig.vote(1);
    rig.append(2..3, 1);
    rig.barrier();
    rig.append(3..4, 1);
    assert!(rig.answered().is_empty());
    rig.step();
    assert_eq!(rig.answered(), [1, 3, 4, 2, 0]);
}

#[test]
fn whoever_is_told_finds_the_watermark_raised_already() {
    let (_, mut rig) = rig();
    let (mark, seen) = (rig.log().flushed(), Arc::new(Mutex::new(0)));
    rig.append(0..1, 1);
    let note = seen.clone();
    rig.log().barrier(Box::new(move |_| *note.lock().unwrap() = mark.get()));
    rig.step();
    assert_eq!(*seen.lock().unwrap(), 2);
}

#[test]
fn entries_can_be_read_before_they_are_on_disk_and_not_after_they_are_truncated() {
    let (disk, mut rig) = rig();
    let syncs = disk.count(IoKind::Sync);
    rig.append(0..5, 1);
    assert_eq!(indexes(&rig.log().entries(1..9, usize::MAX).unwrap()), [1, 2, 3, 4]);
    rig.log().truncate_after(Some(log_id(1, 2)));
    rig.append(3..4, 2);
    let read = rig.log().entries(0..9, usize::MAX).unwrap();
    assert_eq!(read, [entry(1, 0), entry(1, 1), entry(1, 2), entry(2, 3)]);
    assert_eq!((rig.log().flushed().get(), rig.log().enqueued(), disk.count(IoKind::Sync)), (0, 3, syncs));
    assert_eq!(rig.log().bounds(), (None, Some(log_id(2, 3))));
}

#[test]
fn a_vote_is_answered_when_it_and_all_before_it_would_survive_a_power_failure() {
    let (disk, mut rig) = rig();
    rig.append(0..3, 1);
    rig.vote(4);
    assert_eq!((rig.log().vote(), rig.answered()), (Some(vote(4)), vec![]));
    rig.step();
    assert_eq!(rig.answered(), [1, 0]);
    disk.power_loss(crate::storage::fault_disk::PowerLoss::DropAll);
    let contents = Rig::open(&disk).unwrap().contents();
    assert_eq!((contents.vote, contents.next()), (Some(vote(4)), 3));
}

#[test]
fn what_nobody_waits_for_costs_no_sync_until_its_time_is_up_or_somebody_waits() {
    let (disk, mut rig) = rig();
    rig.append(0..9, 1);
    rig.settle();
    let syncs = disk.count(IoKind::Sync);
    rig.log().save_committed(Some(log_id(1, 3)));
    rig.log().truncate_after(Some(log_id(1, 7)));
    rig.log().purge(log_id(1, 1));
    assert!(matches!(rig.step(), Step::Within(LAZY_MAX)));
    assert_eq!((disk.count(IoKind::Sync), rig.log().flushed().get()), (syncs, 1));
    assert!(matches!(rig.step(), Step::Idle), "an empty queue says that the time is up");
    assert_eq!((disk.count(IoKind::Sync), rig.log().flushed().get()), (syncs + 1, 4));
    rig.log().save_committed(Some(log_id(1, 4)));
    let (mark, target) = rig.log().behind().expect("the log is behind");
    rig.step();
    assert_eq!((disk.count(IoKind::Sync), mark.get()), (syncs + 2, target));
    assert!(rig.log().behind().is_none());
}

#[test]
fn unflushed_bytes_are_those_of_appends_that_were_not_answered() {
    let (_, mut rig) = rig();
    rig.append(0..3, 1);
    rig.vote(1);
    assert_eq!(rig.log().unflushed_bytes(), (0..3).map(|i| entry_bytes(&entry(1, i))).sum::<usize>());
    rig.step();
    assert_eq!(rig.log().unflushed_bytes(), 0);
}

#[test]
fn memory_forgets_entries_that_are_on_disk_and_applied_and_reads_them_from_there() {
    let (_, mut rig) = rig();
    rig.log().limit_tail(2 * entry_bytes(&entry(1, 10)));
    rig.append(0..20, 1);
    rig.log().applied(14);
    assert_eq!(rig.log().in_memory_from(), 0, "nothing is on disk");
    rig.settle();
    assert_eq!(rig.log().in_memory_from(), 15, "the rest is not applied");
    rig.log().applied(19);
    assert_eq!(rig.log().in_memory_from(), 18);
    let all: Vec<u64> = (0..20).collect();
    assert_eq!(indexes(&rig.log().entries(0..u64::MAX, usize::MAX).unwrap()), all);
    assert_eq!(indexes(&rig.log().entries(17..19, usize::MAX).unwrap()), [17, 18]);
    let three = 3 * entry_bytes(&entry(1, 10));
    assert_eq!(indexes(&rig.log().entries(16..20, three).unwrap()), [16, 17, 18]);
    assert_eq!(indexes(&rig.log().entries(3..20, 0).unwrap()), [3]);
}

#[test]
fn a_log_that_has_held_nothing_may_begin_anywhere_and_one_that_was_purged_goes_on_behind_that() {
    let (_, mut rig) = rig();
    rig.append(7..9, 1);
    rig.settle();
    assert_eq!(indexes(&rig.log().entries(0..99, usize::MAX).unwrap()), [7, 8]);
    rig.log().purge(log_id(2, 30));
    assert_eq!(rig.log().bounds(), (Some(log_id(2, 30)), Some(log_id(2, 30))));
    rig.append(31..33, 2);
    rig.settle();
    assert_eq!(indexes(&rig.log().entries(0..99, usize::MAX).unwrap()), [31, 32]);
}

#[test]
#[should_panic(expected = "does not follow")]
fn a_gap_in_an_append_is_a_bug_of_the_caller() {
    let (_, mut rig) = rig();
    rig.append(0..3, 1);
    rig.append(4..5, 1);
}

#[test]
#[should_panic(expected = "into what is committed")]
fn a_truncation_of_what_is_committed_is_a_bug_of_the_caller() {
    let (_, mut rig) = rig();
    rig.append(0..3, 1);
    rig.log().save_committed(Some(log_id(1, 2)));
    rig.log().truncate_after(Some(log_id(1, 1)));
}

#[test]
fn a_barrier_behind_what_is_on_disk_costs_no_sync() {
    let (disk, mut rig) = rig();
    rig.append(0..3, 1);
    rig.settle();
    let syncs = disk.count(IoKind::Sync);
    rig.barrier();
    rig.settle();
    assert_eq!((rig.answered(), disk.count(IoKind::Sync)), (vec![0, 1], syncs));
    rig.log().truncate_after(Some(log_id(1, 1)));
    rig.barrier();
    rig.step();
    assert_eq!((rig.answered().len(), disk.count(IoKind::Sync)), (3, syncs + 1), "and one otherwise");
}

#[test]
fn a_log_that_lacks_what_is_applied_is_cleared_and_keeps_its_vote() {
    let (disk, mut rig) = rig();
    rig.append(0..21, 1);
    rig.log().save_committed(Some(log_id(1, 9)));
    rig.vote(1);
    rig.settle();
    // Truncated from 10 and appended with term 2 in memory, applied up to 15, and the power failed before that was on
    // disk.
    for (applied, cleared) in [(log_id(1, 20), false), (log_id(2, 15), true)] {
        disk.power_loss(crate::storage::fault_disk::PowerLoss::DropAll);
        let mut rig = Rig::open(&disk).unwrap();
        assert_eq!(rig.engine().repair_to_applied(applied).unwrap(), cleared, "{applied}");
    }
    for _ in 0..2 {
        disk.power_loss(crate::storage::fault_disk::PowerLoss::DropAll);
        let mut rig = Rig::open(&disk).unwrap();
        let at = Some(log_id(2, 15));
        assert_eq!((rig.log().bounds(), rig.log().vote()), ((at, at), Some(vote(1))));
        assert_eq!((rig.log().committed(), rig.contents().entries.len()), (Some(log_id(1, 9)), 0));
        assert!(!rig.engine().repair_to_applied(log_id(2, 15)).unwrap());
        assert!(!rig.engine().repair_to_applied(log_id(2, 9)).unwrap(), "what is purged is not asked for");
    }
    let mut rig = Rig::open(&{
        disk.power_loss(crate::storage::fault_disk::PowerLoss::DropAll);
        disk
    })
    .unwrap();
    rig.append(16..18, 3);
    rig.settle();
    assert_eq!(indexes(&rig.log().entries(0..99, usize::MAX).unwrap()), [16, 17]);
}

#[test]
fn a_log_shorter_than_what_is_applied_goes_on_from_there() {
    let (_, mut rig) = rig();
    rig.append(0..5, 1);
    rig.log().save_committed(Some(log_id(1, 4)));
    rig.settle();
    assert!(rig.engine().repair_to_applied(log_id(1, 9)).unwrap());
    assert_eq!((rig.log().bounds().1, rig.log().committed()), (Some(log_id(1, 9)), Some(log_id(1, 4))));
}

#[test]
fn a_closed_log_is_whole_on_disk_and_fails_whatever_comes_later() {
    let (disk, mut rig) = rig();
    rig.append(0..3, 1);
    rig.log().save_committed(Some(log_id(1, 2)));
    let done = rig.done();
    rig.log().close(done);
    rig.vote(9);
    assert!(matches!(rig.step(), Step::Stop));
    assert_eq!(rig.answered(), [1, 0]);
    assert!(rig.log().entries(0..9, usize::MAX).is_ok(), "what is in memory can still be read");
    rig.queue.clear();
    let refused = rig.answers.lock().unwrap().pop();
    assert!(matches!(refused, Some((2, Err(_)))), "{refused:?}");
    let Rig { opened: Opened { state_db, log, .. }, .. } = rig;
    drop(state_db);
    let contents = Rig::open(&disk).expect("the log is closed although a handle is left").contents();
    assert_eq!((contents.committed, contents.next(), contents.vote), (Some(log_id(1, 2)), 3, None));
    drop(log);
}

#[test]
fn the_identity_carries_its_cluster_and_promise_through_a_restart() {
    let (disk, mut rig) = rig();
    let mut identity = rig.opened.identity.clone();
    identity.cluster = Some(ClusterId::new(5));
    identity.promise = Some(Promise { cluster: ClusterId::new(6), peers: 7 });
    let done = rig.done();
    rig.log().save_identity(identity.clone(), done);
    rig.step();
    assert_eq!(rig.answered(), [0]);
    disk.power_loss(crate::storage::fault_disk::PowerLoss::DropAll);
    let starts = identity.starts + 1;
    assert_eq!(open(&disk).unwrap().identity, crate::storage::identity::Identity { starts, ..identity });
}

#[test]
fn entries_of_every_size_come_back() {
    let disk = FaultDisk::new(1);
    let mut rig = Rig::of(super::super::open(disk.mount(), "a", mint).unwrap());
    let sizes = [0, 1 << 20, 10, 700 << 10, 700 << 10, 3 << 20];
    let entries: Vec<_> = (0..).zip(sizes).map(|(index, size)| sized_entry(1, index, size)).collect();
    let done = rig.done();
    rig.log().append(entries.clone(), done);
    rig.settle();
    disk.power_loss(crate::storage::fault_disk::PowerLoss::DropAll);
    let mut rig = Rig::open(&disk).unwrap();
    assert_eq!(rig.contents().entries.into_values().collect::<Vec<_>>(), entries);
    rig.log().truncate_after(Some(log_id(1, 3)));
    rig.append(4..5, 2);
    rig.settle();
    disk.power_loss(crate::storage::fault_disk::PowerLoss::DropAll);
    let contents = Rig::open(&disk).unwrap().contents();
    assert_eq!((contents.entries.len(), contents.entries[&4].clone()), (5, entry(2, 4)));
}

/// Appends and reads from several threads while the engine runs on its own; answers how many syncs it took, if the disk
/// counts them.
fn hammer(disk: Arc<dyn Disk>) {
    const ENTRIES: u64 = 600;
    let opened = super::super::open(disk.clone(), "a", mint).unwrap();
    let driver = opened.log.start(opened.log_engine, Drive::Thread).unwrap();
    let log = opened.log;
    log.limit_tail(4000);
    let acked = crate::rt::watermark::Watermark::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in 0..ENTRIES {
                let ack = acked.clone();
                let done = move |result: Result<(), StorageError>| {
                    result.unwrap();
                    ack.advance(index + 1);
                };
                log.append(vec![entry(1, index)], Box::new(done));
                if index % 50 == 0 {
                    log.save_committed(Some(log_id(1, index)));
                    acked.wait_blocking(index / 2).unwrap();
                    log.applied(index / 2);
                }
            }
        });
        scope.spawn(|| {
            let mut seen = 0;
            while seen < ENTRIES {
                let read = log.entries(seen..ENTRIES, 1000).unwrap();
                for found in read {
                    assert_eq!(found, entry(1, seen));
                    seen += 1;
                }
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            for term in 1..50 {
                log.save_vote(vote(term), Box::new(|result| result.unwrap()));
            }
        });
    });
    acked.wait_blocking(ENTRIES).unwrap();
    let (closed, all) = std::sync::mpsc::channel();
    log.close(Box::new(move |result| closed.send(result).unwrap()));
    all.recv().unwrap().unwrap();
    driver.join_blocking();
    drop(opened.state_db);
    let contents = Contents::of(&super::super::open(disk, "a", mint).unwrap().log);
    assert_eq!((contents.next(), contents.vote), (ENTRIES, Some(vote(49))));
}

#[test]
fn a_log_on_a_thread_serves_writers_and_readers_at_once_on_real_files() {
    let dir = tempfile::tempdir().unwrap();
    hammer(Arc::new(DirDisk::open(dir.path().join("node")).unwrap()));
}

#[test]
fn a_log_on_a_thread_serves_writers_and_readers_at_once_in_memory() {
    hammer(Arc::new(MemDisk::new()));
}

#[tokio::test(start_paused = true)]
async fn an_inline_log_flushes_what_is_lazy_when_its_time_is_up() {
    let disk = FaultDisk::new(1);
    let opened = open(&disk).unwrap();
    let driver = opened.log.start(opened.log_engine, Drive::Inline).unwrap();
    let log = opened.log;
    let (start, mark) = (tokio::time::Instant::now(), log.flushed());
    log.append((0..3).map(|index| entry(1, index)).collect(), Box::new(|result| result.unwrap()));
    mark.wait(1).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    log.save_committed(Some(log_id(1, 1)));
    tokio::time::sleep(LAZY_MAX / 2).await;
    log.save_committed(Some(log_id(1, 2)));
    tokio::time::timeout(LAZY_MAX * 9, mark.wait(3)).await.expect("it is never flushed").unwrap();
    assert_eq!(start.elapsed(), LAZY_MAX, "a second lazy change does not push the time back");
    log.save_committed(Some(log_id(1, 2)));
    drop(log);
    driver.join().await;
    assert_eq!(mark.get(), 4, "what is lazy is flushed when the last handle goes");
    assert!(!disk.bytes(File::Log).is_empty());
}
