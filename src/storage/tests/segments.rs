//! The log's file over many segments: used again and again, torn, and damaged.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;

use super::hooked::Hooked;
use super::*;
use crate::format::log::{BLOCK_BYTES, FileHead, Frame, FrameHead};
use crate::format::log_items::Item;
use crate::storage::disk::File;
use crate::storage::fault_disk::{Fault, IoKind, PowerLoss, SECTOR_BYTES};
use crate::storage::log_file::FREE_SEGMENTS_MAX;

pub(super) const SEGMENT: usize = SMALL_SEGMENT_BYTES;

pub(super) fn rig() -> (FaultDisk, Rig) {
    let disk = FaultDisk::new(1);
    let rig = Rig::open(&disk).unwrap();
    (disk, rig)
}

fn file_bytes(disk: &FaultDisk) -> usize {
    disk.bytes(File::Log).len()
}

/// The heads of all frames in the file that belong to the segment they are in, with their offsets, oldest first.
pub(super) fn frames(disk: &FaultDisk) -> Vec<(usize, FrameHead)> {
    let bytes = disk.bytes(File::Log);
    let head = FileHead::read(&bytes[..BLOCK_BYTES]).unwrap().unwrap();
    let mut frames = Vec::new();
    for (slot, segment) in bytes[BLOCK_BYTES..].chunks(SEGMENT).enumerate() {
        let Some(opening) = FrameHead::read(segment, head.salt) else { continue };
        for at in (0..segment.len()).step_by(BLOCK_BYTES) {
            let found = FrameHead::read(&segment[at..], head.salt);
            frames.extend(
                found
                    .filter(|frame| frame.segment == opening.segment)
                    .map(|frame| (BLOCK_BYTES + slot * SEGMENT + at, frame)),
            );
        }
    }
    frames.sort_by_key(|(_, frame)| frame.number);
    frames
}

pub(super) fn refusal(disk: &FaultDisk) -> StartError {
    open(disk).map(|opened| opened.identity).expect_err("the log was opened")
}

#[track_caller]
fn assert_damaged(disk: &FaultDisk, expected: &str) {
    let before = disk.bytes(File::Log);
    let error = refusal(disk);
    let named =
        matches!(&error, StartError::Corrupted { path, what } if path.ends_with("log.wal") && what.contains(expected));
    assert!(named, "{error}, and not: {expected}");
    assert!(disk.bytes(File::Log) == before, "something was written");
}

#[test]
fn a_log_that_goes_round_and_round_stays_as_large_as_what_it_holds() {
    let (disk, mut rig) = rig();
    let kept = 12;
    let mut largest = 0;
    for index in 0..600 {
        rig.append_sized(index, 1, 3000 + (index as usize * 37) % 2000);
        rig.step();
        if index >= kept {
            rig.log().purge(log_id(1, index - kept));
        }
        largest = largest.max(file_bytes(&disk));
        assert!(rig.log().bytes() <= 4 * SEGMENT as u64, "{} in use at {index}", rig.log().bytes());
    }
    assert!(largest <= BLOCK_BYTES + 6 * SEGMENT, "{largest} bytes for {kept} entries");
    let written = frames(&disk).last().unwrap().1;
    assert!(written.segment > 50, "only {} segments were ever begun", written.segment);
    rig.settle();
    disk.power_loss(PowerLoss::DropAll);
    let contents = Rig::open(&disk).unwrap().contents();
    assert_eq!(contents.entries.keys().copied().collect::<Vec<_>>(), (600 - kept..600).collect::<Vec<_>>());
    assert!(contents.entries.iter().all(|(index, entry)| entry.log_id == log_id(1, *index)));
}

#[test]
fn a_file_that_was_large_once_gives_back_all_but_some_of_it() {
    let (disk, mut rig) = rig();
    let segments = FREE_SEGMENTS_MAX + 20;
    let last = segments as u64;
    for index in 0..=last {
        rig.append_sized(index, 1, SEGMENT - 3 * BLOCK_BYTES);
        rig.step();
    }
    let full = file_bytes(&disk);
    assert!(full > segments * SEGMENT, "{full}");
    rig.log().purge(log_id(1, last));
    rig.settle();
    // The end of the file is in use until the log has gone on at its front.
    for index in last + 1..last + 4 {
        rig.append_sized(index, 1, SEGMENT - 3 * BLOCK_BYTES);
        rig.step();
        rig.log().purge(log_id(1, index));
        rig.settle();
    }
    let left = file_bytes(&disk);
    assert!(left <= BLOCK_BYTES + (FREE_SEGMENTS_MAX + 3) * SEGMENT, "{left} of {full}");
    assert!(left >= FREE_SEGMENTS_MAX * SEGMENT, "{left} of {full}: nothing is left for the next time");
    rig.vote(9);
    rig.settle();
    disk.power_loss(PowerLoss::KeepAll);
    let rig = Rig::open(&disk).unwrap();
    assert_eq!((rig.log().bounds().1, rig.log().vote()), (Some(log_id(1, last + 3)), Some(vote(9))));
    // One that is in part in use, and one that the opening may have begun to count itself in.
    assert!(rig.log().bytes() <= 2 * SEGMENT as u64);
}

#[test]
fn an_append_goes_into_the_next_segment_whole_if_one_has_room_and_in_parts_if_none_has() {
    let (disk, mut rig) = rig();
    rig.append_sized(0, 1, SEGMENT / 2);
    rig.step();
    let before = (disk.count(IoKind::Sync), frames(&disk).len());
    rig.append(1..2, 1);
    let done = rig.done();
    rig.log().append((2..8).map(|index| sized_entry(1, index, SEGMENT / 10)).collect(), done);
    rig.step();
    assert_eq!((disk.count(IoKind::Sync), frames(&disk).len()), (before.0 + 2, before.1 + 2));
    let torn = disk.fork();
    torn.power_loss(PowerLoss::DropAll);
    torn.flip(File::Log, frames(&disk).last().unwrap().0 as u64 * 8);
    assert_eq!(Rig::open(&torn).unwrap().contents().next(), 2, "a part of the append is in the frame before");
    let done = rig.done();
    rig.log().append((8..30).map(|index| sized_entry(1, index, SEGMENT / 10)).collect(), done);
    rig.step();
    assert_eq!(rig.answered(), [0, 2, 1, 3]);
    disk.power_loss(PowerLoss::DropAll);
    let rig = Rig::open(&disk).unwrap();
    assert_eq!(rig.contents().entries.len(), 30);
}

#[test]
fn an_entry_that_no_segment_has_room_for_stops_the_node_and_what_was_acknowledged_stays() {
    let (disk, mut rig) = rig();
    rig.append(0..3, 1);
    rig.step();
    rig.append_sized(3, 1, SEGMENT);
    rig.step();
    let answers = rig.answers.lock().unwrap().clone();
    let [(0, Ok(())), (1, Err(error))] = &answers[..] else { panic!("{answers:?}") };
    assert!(error.to_string().contains("does not fit"), "{error}");
    disk.unmark();
    disk.power_loss(PowerLoss::KeepAll);
    assert_eq!(Rig::open(&disk).unwrap().contents().next(), 3);
}

/// A log of several frames in three segments, in use and not closed.
fn several_frames() -> (FaultDisk, Vec<(usize, FrameHead)>) {
    let (disk, mut rig) = rig();
    for index in 0..7 {
        rig.append_sized(index, 1, SEGMENT / 3);
        rig.step();
    }
    for index in 7..10 {
        rig.append(index..index + 1, 1);
        rig.step();
    }
    disk.power_loss(PowerLoss::DropAll);
    let frames = frames(&disk);
    assert!(frames.last().unwrap().1.segment >= 2 && frames.len() >= 9, "{frames:?}");
    (disk, frames)
}

#[test]
fn a_last_frame_that_is_torn_is_cut_off_and_any_other_is_damage_that_is_named() {
    let (whole, frames) = several_frames();
    let last = frames.len() - 1;
    for (i, (offset, frame)) in frames.iter().enumerate() {
        // In its head, in its payload's first block, and in its last.
        for at in [5, 40, frame.payload_bytes as usize] {
            let disk = whole.fork();
            disk.flip(File::Log, (offset + at) as u64 * 8);
            if i == last {
                let contents = Rig::open(&disk).unwrap().contents();
                assert_eq!(contents.next(), 9, "the last frame held entry 9");
                continue;
            }
            let error = refusal(&disk);
            let StartError::Corrupted { what, .. } = &error else { panic!("frame {i}, byte {at}: {error}") };
            let opens = (offset - BLOCK_BYTES).is_multiple_of(SEGMENT);
            let names = what.contains(&format!("segment {} at offset {offset}:", frame.segment));
            // Without its opening, a segment has no number: what is told then is what was in it.
            assert!(names || opens && what.contains("is missing"), "frame {i} at {offset}, byte {at}: {what}");
        }
    }
}

#[test]
fn a_segment_that_was_wiped_although_it_is_needed_is_noticed() {
    let (whole, frames) = several_frames();
    let segments = frames.last().unwrap().1.segment as usize + 1;
    let opening = |n: usize| frames.iter().find(|(_, frame)| frame.segment == n as u64).unwrap().0;
    let openings: Vec<usize> = (0..segments).map(opening).collect();
    for n in 0..segments {
        let expected = if n + 1 < segments { "entry 0 is missing" } else { "its opening is damaged" };
        let disk = whole.fork();
        let mut bytes = disk.bytes(File::Log);
        bytes[openings[n]..openings[n] + BLOCK_BYTES].fill(0);
        disk.put(File::Log, bytes);
        assert_damaged(&disk, expected);
    }
    let disk = whole.fork();
    let mut bytes = disk.bytes(File::Log);
    openings.iter().for_each(|at| bytes[*at..*at + BLOCK_BYTES].fill(0));
    disk.put(File::Log, bytes);
    assert_damaged(&disk, "no segment of the log can be read");
}

#[test]
fn a_segment_that_is_there_twice_is_damage() {
    let (disk, frames) = several_frames();
    let mut bytes = disk.bytes(File::Log);
    let first = bytes[BLOCK_BYTES..BLOCK_BYTES + SEGMENT].to_vec();
    let second = frames.iter().find(|(_, frame)| frame.segment == 1).unwrap().0;
    bytes[second..second + SEGMENT].copy_from_slice(&first);
    disk.put(File::Log, bytes);
    assert_damaged(&disk, "too");
}

#[test]
fn a_log_that_was_closed_loses_nothing_to_a_flipped_bit_without_saying_so() {
    let (disk, mut rig) = rig();
    rig.append(0..3, 1);
    rig.step();
    rig.vote(4);
    let done = rig.done();
    rig.log().close(done);
    rig.settle();
    drop(rig);
    let frames = frames(&disk);
    let (offset, _) = frames[frames.len() - 2];
    disk.flip(File::Log, (offset + 30) as u64 * 8);
    assert_damaged(&disk, &format!("at offset {offset}:"));
}

#[test]
fn what_is_left_of_a_torn_frame_is_wiped_before_the_log_goes_on() {
    // Torn in the middle of a segment, and as the opening of one: used before, or new.
    for rounds in [1, 4, 40] {
        let (disk, mut rig) = rig();
        for index in 0..rounds {
            rig.append_sized(index, 1, SEGMENT / 4);
            rig.step();
            rig.log().purge(log_id(1, index));
            rig.settle();
        }
        for size in [2 * BLOCK_BYTES, SEGMENT - 3 * BLOCK_BYTES] {
            let (disk, rounds) = (disk.fork(), rounds);
            disk.power_loss(PowerLoss::DropAll);
            let mut rig = Rig::open(&disk).unwrap();
            let end = frames(&disk).last().unwrap().1.number;
            // Unlike anything that was written before: what an earlier life has left could make the frame whole.
            let payload = Payload::Proposal(Bytes::from(vec![b'#'; size]));
            let done = rig.done();
            rig.log().append(vec![LogEntry { log_id: log_id(2, rounds), payload }], done);
            disk.inject(Fault { kinds: vec![IoKind::Sync], nth: 0, error: ErrorKind::Other, once: true });
            let mut bytes = disk.bytes(File::Log);
            // The write is seen by readers, and its sync fails: as if the machine stopped between the two.
            rig.step();
            let written = disk.bytes(File::Log);
            disk.unmark();
            disk.power_loss(PowerLoss::DropAll);
            let changed = (0..written.len()).step_by(SECTOR_BYTES);
            let differs = |at: &usize| bytes.get(*at..at + SECTOR_BYTES) != written.get(*at..at + SECTOR_BYTES);
            let head = changed.into_iter().find(differs).expect("something was written");
            bytes.resize(written.len(), 0);
            bytes[head..head + SECTOR_BYTES].copy_from_slice(&written[head..head + SECTOR_BYTES]);
            disk.put(File::Log, bytes);
            let salt = FileHead::read(&written[..BLOCK_BYTES]).unwrap().unwrap().salt;
            let head_now = || FrameHead::read(&disk.bytes(File::Log)[head..], salt).map(|frame| frame.number);
            assert_eq!(head_now(), Some(end + 1), "{rounds} rounds, {size}: the head of the torn frame is not there");
            let rig = Rig::open(&disk).unwrap();
            assert_eq!(rig.log().bounds().1, Some(log_id(1, rounds - 1)), "{rounds} rounds, {size}");
            disk.power_loss(PowerLoss::DropAll);
            // The opening may have put a frame of its own there.
            let torn = disk.bytes(File::Log)[head..].starts_with(&written[head..head + SECTOR_BYTES]);
            assert!(!torn, "{rounds} rounds, {size}: it can still be completed");
        }
    }
}

#[test]
fn what_a_process_had_written_and_not_synced_is_synced_before_the_next_one_relies_on_it() {
    let disk = FaultDisk::new(1);
    let hooked = Hooked::new(&disk);
    let mut rig = Rig::of(super::super::open_sized(Arc::new(hooked.clone()), "a", SEGMENT, mint).unwrap());
    rig.append(0..3, 1);
    rig.step();
    hooked.killed.store(true, Ordering::Relaxed);
    rig.append(3..5, 1);
    rig.step();
    drop(rig);
    disk.unmark();
    let found = Rig::open(&disk).unwrap().contents();
    assert_eq!(found.next(), 5, "the machine goes on, and its pages are whole");
    disk.power_loss(PowerLoss::DropAll);
    assert_eq!(Rig::open(&disk).unwrap().contents(), found);
}

#[test]
fn bytes_of_an_earlier_life_of_a_segment_never_come_back() {
    let (disk, mut rig) = rig();
    // Frames of one block each, so that those of an earlier life lie exactly where the next one is looked for.
    for index in 0..200 {
        rig.append(index..index + 1, 1);
        rig.step();
        rig.log().purge(log_id(1, index));
        rig.barrier();
        rig.settle();
        let crashed = disk.fork();
        crashed.power_loss(PowerLoss::DropAll);
        let contents = Rig::open(&crashed).unwrap_or_else(|error| panic!("after {index}: {error}")).contents();
        assert_eq!((contents.last(), contents.entries.len()), (Some(log_id(1, index)), 0), "after {index}");
    }
    assert!(file_bytes(&disk) <= BLOCK_BYTES + 3 * SEGMENT);
}

#[test]
fn a_write_that_looks_like_a_frame_is_not_taken_for_one() {
    let mut aligned = 0;
    for shift in 0..80 {
        let (disk, mut rig) = rig();
        let salt = FileHead::read(&disk.bytes(File::Log)[..BLOCK_BYTES]).unwrap().unwrap().salt;
        // What a client could send who knows everything but the salt: the frame that comes next, where a block begins.
        let end = frames(&disk).last().unwrap().1;
        let mut forged = Frame::new();
        forged.put(&Item::Vote(vote(99)));
        let forged = forged.seal(end.segment, end.number + 1, salt + 1);
        let value = [&vec![0; BLOCK_BYTES - shift], &forged[..]].concat();
        let done = rig.done();
        let entry = LogEntry { log_id: log_id(1, 0), payload: Payload::Proposal(Bytes::from(value)) };
        rig.log().append(vec![entry], done);
        rig.step();
        disk.power_loss(PowerLoss::DropAll);
        aligned += disk.bytes(File::Log).chunks(BLOCK_BYTES).filter(|block| block[..16] == forged[..16]).count();
        let (offset, _) = *frames(&disk).iter().find(|(_, frame)| frame.number > end.number).unwrap();
        disk.flip(File::Log, (offset + 5) as u64 * 8);
        let contents = Rig::open(&disk).unwrap().contents();
        assert_eq!((contents.vote, contents.entries.len()), (None, 0));
    }
    assert_eq!(aligned, 1);
}

#[test]
fn a_disk_that_is_full_when_the_file_has_to_grow_stops_the_node_and_keeps_what_was_acknowledged() {
    for (kind, nth) in [(IoKind::SetLen, 0), (IoKind::SetLen, 1), (IoKind::Write, 6), (IoKind::Write, 7)] {
        let (disk, mut rig) = rig();
        disk.inject(Fault { kinds: vec![kind], nth, error: ErrorKind::StorageFull, once: false });
        let mut index = 0;
        while disk.injected() == 0 {
            rig.append_sized(index, 1, BLOCK_BYTES);
            rig.step();
            index += 1;
            assert!(index < 100, "the file never had to grow");
        }
        let answers = rig.answers.lock().unwrap().clone();
        let (last, before) = answers.split_last().unwrap();
        assert!(last.1.is_err() && before.iter().all(|(_, result)| result.is_ok()), "{answers:?}");
        assert!(matches!(refusal(&disk), StartError::Failed { .. }));
        disk.unmark();
        disk.power_loss(PowerLoss::DropAll);
        assert_eq!(Rig::open(&disk).unwrap().contents().next(), index - 1, "{kind:?}");
    }
}
