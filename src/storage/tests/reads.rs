//! Entries that have left the memory, read while their place in the file is used again.

use super::hooked::Hooked;
use super::segments::{SEGMENT, frames, refusal, rig};
use super::*;
use crate::rt::worker::Drive;
use crate::storage::disk::File;

/// Reads `range` of a log of ten entries that are on disk only; `meanwhile` happens between the look at where they are and
/// the reading. Answers the leaders' terms and the indexes of what was read.
fn read_while(range: std::ops::Range<u64>, meanwhile: impl FnOnce(&mut Rig) + Send + 'static) -> Vec<(u64, u64)> {
    let disk = Hooked::new(&FaultDisk::new(1));
    let next = disk.before_read.clone();
    let mut rig = Rig::of(super::super::open_sized(Arc::new(disk), "a", SEGMENT, mint).unwrap());
    let log = rig.log().clone();
    log.limit_tail(0);
    for index in 0..10 {
        rig.append_sized(index, 1, SEGMENT / 3);
        rig.step();
    }
    log.applied(9);
    assert_eq!(log.in_memory_from(), 10, "they are still in memory");
    *next.lock().unwrap() = Some(Box::new(move || {
        meanwhile(&mut rig);
        // Kept: a closed log would answer otherwise.
        std::mem::forget(rig);
    }));
    let read = log.entries(range, usize::MAX).expect("nothing is damaged");
    assert!(next.lock().unwrap().is_none(), "the disk was not read");
    read.iter().map(|entry| (entry.log_id.leader.term, entry.log_id.index)).collect()
}

/// Goes on writing until every segment there was has been used again.
fn go_round(rig: &mut Rig, term: u64, from: u64) {
    for index in from..from + 60 {
        rig.append_sized(index, term, SEGMENT / 3);
        rig.step();
        rig.log().applied(index);
        rig.log().purge(log_id(term, index));
        rig.settle();
    }
}

#[test]
fn entries_that_are_purged_and_overwritten_while_they_are_read_are_reported_as_purged() {
    let read = read_while(2..6, |rig| {
        rig.log().purge(log_id(1, 9));
        rig.settle();
        go_round(rig, 1, 10);
    });
    assert_eq!(read, []);
    let read = read_while(2..6, |rig| {
        rig.log().purge(log_id(1, 3));
        rig.settle();
    });
    assert_eq!(read, [(1, 4), (1, 5)]);
}

#[test]
fn entries_that_are_replaced_while_they_are_read_are_read_as_they_are_now() {
    let read = read_while(2..99, |rig| {
        rig.log().truncate_after(Some(log_id(1, 3)));
        for index in 4..6 {
            rig.append_sized(index, 2, SEGMENT / 3);
        }
        rig.settle();
    });
    assert_eq!(read, [(1, 2), (1, 3), (2, 4), (2, 5)]);
}

#[test]
fn an_old_entry_that_is_damaged_on_disk_stops_the_node_when_it_is_read() {
    let (disk, mut rig) = rig();
    rig.log().limit_tail(0);
    rig.append_sized(0, 1, 100);
    rig.append(1..3, 1);
    rig.step();
    rig.log().applied(2);
    let (offset, _) = *frames(&disk).last().unwrap();
    disk.flip(File::Log, (offset + 80) as u64 * 8);
    assert_eq!(rig.log().entries(1..3, usize::MAX).unwrap().len(), 2, "the others can be read");
    let error = rig.log().entries(0..3, usize::MAX).unwrap_err().to_string();
    assert!(error.starts_with("log.wal: read: entry 0 at offset"), "{error}");
    assert!(matches!(refusal(&disk), StartError::InUse { .. } | StartError::Failed { .. }));
}

#[test]
fn readers_of_old_entries_and_a_file_that_goes_round_do_not_disturb_each_other() {
    const ENTRIES: u64 = 3000;
    const KEPT: u64 = 40;
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(crate::storage::disk::DirDisk::open(dir.path().join("node")).unwrap());
    let opened = super::super::open_sized(disk, "a", SEGMENT, mint).unwrap();
    let driver = opened.log.start(opened.log_engine, Drive::Thread).unwrap();
    let log = opened.log;
    log.limit_tail(0);
    let over = std::sync::atomic::AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut reads = 0;
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        let first = log.bounds().0.map_or(0, |purged| purged.index + 1);
                        let read = log.entries(first..first + 8, 20_000).expect("nothing is damaged");
                        let begin = read.first().map_or(first, |entry| entry.log_id.index);
                        assert!(begin >= first);
                        for (index, entry) in (begin..).zip(&read) {
                            assert_eq!(*entry, sized_entry(1, index, 700));
                        }
                        reads += read.len();
                    }
                    reads
                })
            })
            .collect();
        for index in 0..ENTRIES {
            log.append(vec![sized_entry(1, index, 700)], Box::new(|result| result.unwrap()));
            log.applied(index);
            if index % 16 == 0 && index > KEPT {
                log.flushed().wait_blocking(log.enqueued().saturating_sub(8)).unwrap();
                log.purge(log_id(1, index - KEPT));
            }
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum::<usize>()
    });
    assert!(reads > 0);
    let (closed, all) = std::sync::mpsc::channel();
    log.close(Box::new(move |result| closed.send(result).unwrap()));
    all.recv().unwrap().unwrap();
    driver.join_blocking();
    let size = std::fs::metadata(dir.path().join("node").join("log.wal")).unwrap().len();
    assert!(size < 20 * SEGMENT as u64, "{size} bytes");
}
