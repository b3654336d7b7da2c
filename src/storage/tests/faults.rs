//! The disk refuses operations, one by one: the node stops at the first, and stays stopped.

use std::io::ErrorKind;

use futures::FutureExt;

use super::script::{Run, run};
use super::*;
use crate::storage::disk::File;
use crate::storage::fault_disk::{Fault, IoKind, PowerLoss};

/// Runs the script once for each operation among `kinds`, failing that operation with `error`.
fn at_every_operation(kinds: &[IoKind], error: ErrorKind, once: bool, check: impl FnMut(&FaultDisk, &Run, &str)) {
    at_operations(1, kinds, error, once, check);
}

/// As [`at_every_operation`], for one operation out of `stride`.
fn at_operations(
    stride: u64,
    kinds: &[IoKind],
    error: ErrorKind,
    once: bool,
    mut check: impl FnMut(&FaultDisk, &Run, &str),
) {
    let mut nth = 0;
    loop {
        let disk = FaultDisk::new(nth);
        disk.inject(Fault { kinds: kinds.to_vec(), nth, error, once });
        let run = run(&disk);
        if disk.injected() == 0 {
            break;
        }
        check(&disk, &run, &format!("{error:?} at operation {nth} of {kinds:?}"));
        nth += stride;
    }
    assert!(nth > 2, "only {nth} operations of {kinds:?} were ever done");
}

fn stopped_for_good(disk: &FaultDisk, run: &Run, when: &str) {
    let first_error = run.answers.iter().position(|(_, well)| !well).unwrap_or(run.answers.len());
    assert!(
        run.answers[first_error..].iter().all(|(_, well)| !well),
        "{when}: success after a failure: {:?}",
        run.answers
    );
    let refused = open(disk).map(|opened| opened.identity);
    assert!(
        matches!(&refused, Err(StartError::Failed { reason, .. }) if reason.contains("injected")),
        "{when}: {refused:?}"
    );
    // Whoever ignores the marker finds, for all that, everything that was answered.
    disk.unmark();
    disk.power_loss(PowerLoss::DropAll);
    run.check(disk, when);
}

#[test]
fn an_error_of_any_write_stops_the_node_for_good() {
    for kind in [IoKind::Write, IoKind::SetLen] {
        at_every_operation(&[kind], ErrorKind::Other, false, stopped_for_good);
    }
}

#[test]
fn a_full_disk_stops_the_node_for_good() {
    // Growing the file is where a disk is found full; on the way of a write this is an error like any other.
    at_every_operation(&[IoKind::SetLen], ErrorKind::StorageFull, false, stopped_for_good);
    at_operations(5, &[IoKind::Write], ErrorKind::StorageFull, false, stopped_for_good);
}

#[test]
fn an_error_of_any_read_stops_the_node_for_good() {
    at_every_operation(&[IoKind::Read], ErrorKind::Other, false, stopped_for_good);
}

#[test]
fn a_sync_that_has_failed_is_never_tried_again() {
    at_every_operation(&[IoKind::Sync], ErrorKind::Other, true, |disk, run, when| {
        let syncs = disk.count(IoKind::Sync);
        stopped_for_good(disk, run, when);
        assert_eq!(disk.injected(), 1, "{when}");
        let at_failure = when.split_whitespace().nth(3).and_then(|n| n.parse::<u64>().ok()).expect("it is in there");
        assert_eq!(syncs, at_failure + 1, "{when}: there was another sync after the one that failed");
    });
}

#[test]
fn the_first_error_is_the_answer_to_everything_after_it() {
    let disk = FaultDisk::new(1);
    let mut rig = Rig::open(&disk).unwrap();
    rig.append(0..3, 1);
    rig.settle();
    disk.inject(Fault { kinds: vec![IoKind::Sync], nth: 0, error: ErrorKind::Other, once: true });
    rig.append(3..4, 1);
    rig.vote(2);
    assert!(matches!(rig.step(), Step::Idle));
    rig.append(4..5, 1);
    let done = rig.done();
    rig.log().close(done);
    rig.settle();
    let answers = rig.answers.lock().unwrap().clone();
    let numbers: Vec<usize> = answers.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    for (number, answer) in &answers[1..] {
        assert_eq!(answer.as_ref().unwrap_err().to_string(), "log.wal: sync: injected", "request {number}");
    }
    let waited = rig.log().flushed().wait(2).now_or_never();
    assert!(matches!(waited, Some(Err(_))), "whoever waits for the watermark is told {waited:?}");
    let read = rig.log().entries(0..9, usize::MAX);
    assert_eq!(read.unwrap_err().to_string(), "log.wal: sync: injected");
    assert!(disk.mount().backend(File::Log).is_ok(), "the log was closed and still holds its file");
}

#[test]
fn an_error_of_one_file_stops_the_other_too_before_any_database_is_dropped() {
    let disk = FaultDisk::new(1);
    let mut rig = Rig::open(&disk).unwrap();
    const TABLE: redb::TableDefinition<'static, u64, u64> = redb::TableDefinition::new("t");
    let put = |rig: &Rig, durability| -> Result<(), redb::Error> {
        let mut txn = rig.opened.state_db.begin_write()?;
        txn.set_durability(durability)?;
        txn.open_table(TABLE)?.insert(1, 1)?;
        Ok(txn.commit()?)
    };
    // Pending in state.redb: redb would make it durable when the database is dropped.
    put(&rig, redb::Durability::None).unwrap();
    let pending = disk.bytes(File::State);
    disk.inject(Fault { kinds: vec![IoKind::Sync], nth: 0, error: ErrorKind::Other, once: true });
    rig.vote(1);
    rig.step();
    assert!(put(&rig, redb::Durability::Immediate).is_err());
    let writes = disk.count(IoKind::Write) + disk.count(IoKind::Sync);
    drop(rig);
    assert_eq!(disk.count(IoKind::Write) + disk.count(IoKind::Sync), writes, "something was written on the way out");
    assert_eq!(disk.bytes(File::State), pending);
}

#[test]
fn a_node_whose_power_is_switched_off_writes_nothing_more_and_leaves_no_marker() {
    let disk = FaultDisk::new(1);
    let mut rig = Rig::open(&disk).unwrap();
    rig.append(0..3, 1);
    rig.settle();
    rig.append(3..4, 1);
    rig.opened.poison.power_off();
    let ops = disk.count(IoKind::Write);
    rig.settle();
    let last = rig.answers.lock().unwrap().last().cloned();
    assert!(matches!(last, Some((1, Err(_)))), "{last:?}");
    drop(rig);
    assert_eq!(disk.count(IoKind::Write), ops);
    assert_eq!(Rig::open(&disk).unwrap().contents().next(), 3);
}

#[test]
fn a_panic_of_the_engine_fails_what_is_queued_and_marks_the_directory() {
    let disk = FaultDisk::new(1);
    let mut rig = Rig::open(&disk).unwrap();
    rig.append(0..1, 1);
    rig.log().save_committed(None);
    rig.engine().panicked("out of luck");
    drop(rig.step());
    let answers = rig.answers.lock().unwrap().clone();
    let [(0, Err(error))] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(error.to_string(), "log.wal: log thread: out of luck");
    drop(rig);
    assert!(matches!(open(&disk), Err(StartError::Failed { .. })));
}
