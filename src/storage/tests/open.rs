//! What a directory may and may not be opened as.

use crate::storage::identity::Identity;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::*;
use crate::format::block::sealed;
use crate::format::identity::{IDENTITY_KEY, IDENTITY_TABLE};
use crate::format::log::{BLOCK_BYTES, FileHead, Frame};
use crate::format::log_items::{Item, Opening};
use crate::format::snapshot::Part;
use crate::format::state::{POSITION, live_table};
use crate::format::wire::seal;
use crate::storage::disk::{DirDisk, Disk, FAILED_FILE, File, MemDisk};
use crate::storage::fault_disk::{PowerLoss, SplitMix};
use crate::storage::state_rows::definition;
use crate::storage::support::{Node, history, run};

/// A directory that was made, used a little and closed.
fn used() -> FaultDisk {
    let disk = FaultDisk::new(1);
    let mut rig = Rig::open(&disk).unwrap();
    (0..40).for_each(|i| rig.append(i * 5..i * 5 + 5, 1));
    rig.vote(3);
    let done = rig.done();
    rig.log().close(done);
    rig.settle();
    disk
}

fn refusal(disk: &FaultDisk) -> StartError {
    open(disk).map(|opened| opened.identity).expect_err("the directory was opened")
}

#[track_caller]
fn assert_lost(disk: &FaultDisk, expected: &str) {
    let error = refusal(disk);
    assert!(matches!(&error, StartError::DataLost { what, .. } if what.contains(expected)), "{error}");
}

#[test]
fn a_directory_keeps_the_identity_it_was_made_with_and_counts_its_openings() {
    let disk = FaultDisk::new(1);
    let first = open(&disk).unwrap().identity;
    let again = super::super::open(disk.mount(), "a", || panic!("an id is minted once")).unwrap().identity;
    assert_eq!((first.starts, again.starts), (1, 2));
    assert_eq!(Identity { starts: 2, ..first.clone() }, again);
    assert_eq!(first.name, "a");
}

#[test]
fn one_file_without_the_other_is_lost_data() {
    for (file, expected) in [(File::Log, "log.wal is missing"), (File::State, "state.redb is missing")] {
        let disk = used();
        disk.remove(file);
        assert_lost(&disk, expected);
    }
    for (file, expected) in [(File::Log, "log.wal is empty"), (File::State, "state.redb is empty")] {
        for bytes in [vec![], vec![0; 4096]] {
            let disk = used();
            disk.put(file, bytes.clone());
            assert_lost(&disk, expected);
            assert_eq!(disk.bytes(File::State).is_empty(), file == File::State && bytes.is_empty());
        }
    }
}

#[test]
fn files_of_two_directories_do_not_make_one() {
    let (one, other) = (used(), used());
    one.put(File::State, other.bytes(File::State));
    assert_lost(&one, "different directories");
}

#[test]
fn an_unused_log_put_in_place_of_a_used_one_is_noticed() {
    let (used, fresh) = (used(), FaultDisk::new(2));
    drop(open(&fresh).unwrap());
    used.put(File::Log, fresh.bytes(File::Log));
    assert_lost(&used, "different directories");
}

#[test]
fn a_directory_of_another_name_is_left_alone() {
    let disk = used();
    let before = [disk.bytes(File::State), disk.bytes(File::Log)];
    let error = super::super::open(disk.mount(), "b", mint).map(|opened| opened.identity).unwrap_err();
    let StartError::OtherNode { found, wanted, .. } = &error else { panic!("{error}") };
    assert_eq!((&found[..], &wanted[..]), ("a", "b"));
    assert_eq!(disk.bytes(File::State), before[0]);
    drop(open(&disk).expect("its own node can still open it"));
}

#[test]
fn a_marker_of_a_failure_keeps_the_directory_closed_and_says_why() {
    let disk = used();
    disk.mount().mark_failed("log.wal: sync: broken\nmore");
    let error = refusal(&disk);
    let StartError::Failed { path, reason } = &error else { panic!("{error}") };
    assert_eq!((path, &reason[..]), (&disk.mount().path().join(FAILED_FILE), "log.wal: sync: broken"));
}

/// Changes a closed file.
fn change(disk: &FaultDisk, file: File, change: impl FnOnce(&redb::WriteTransaction)) {
    struct Plain(Box<dyn redb::StorageBackend>);
    impl std::fmt::Debug for Plain {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Plain")
        }
    }
    impl redb::StorageBackend for Plain {
        fn len(&self) -> std::io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> std::io::Result<()> {
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
            self.0.write(offset, data)
        }
    }
    let backend = Plain(disk.mount().backend(file).unwrap());
    let db = redb::Builder::new().create_with_backend(backend).unwrap();
    let txn = db.begin_write().unwrap();
    change(&txn);
    txn.commit().unwrap();
}

/// Puts a row into a closed file.
fn put_row(disk: &FaultDisk, file: File, table: &str, key: u64, row: &[u8]) {
    let table: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new(table);
    change(disk, file, |txn| drop(txn.open_table(table).unwrap().insert(key, row).unwrap()));
}

#[test]
fn a_directory_of_a_newer_release_is_refused() {
    let state = used();
    put_row(&state, File::State, IDENTITY_TABLE, IDENTITY_KEY, &seal(&[2]));
    let log = used();
    let mut bytes = log.bytes(File::Log);
    let head = FileHead::read(&bytes).unwrap().unwrap();
    let mut frame = Frame::new();
    frame.put(&Item::Opening(Box::new(Opening { identity: seal(&[2]), ..Opening::default() })));
    let frame = frame.seal(9, 900, head.salt);
    bytes[BLOCK_BYTES..BLOCK_BYTES + frame.len()].copy_from_slice(&frame);
    log.put(File::Log, bytes);
    for (disk, file) in [(log, File::Log), (state, File::State)] {
        let before = disk.bytes(File::Log);
        let error = refusal(&disk);
        let newer =
            matches!(&error, StartError::NewerFormat { found: 2, known: 1, path } if path.ends_with(file.name()));
        assert!(newer, "{error}");
        assert_eq!(disk.bytes(File::Log), before, "something was written first");
    }
}

/// Otherwise whoever goes back to an older release for a moment would be told to give up the directory.
#[test]
fn a_state_with_a_row_of_a_newer_release_is_refused_as_that_and_not_as_damaged() {
    let disk = FaultDisk::new(1);
    run(async {
        let node = Node::open(disk.mount()).unwrap();
        let entries = history(60, 30);
        node.append(&entries).await.unwrap();
        node.apply(&entries).await.unwrap();
        node.close().await.unwrap();
    });
    let mut refused = 0;
    for name in Part::ALL.map(live_table).into_iter().chain([POSITION]) {
        let disk = disk.fork();
        let mut raised = false;
        change(&disk, File::State, |txn| {
            let mut table = txn.open_table(definition(name)).unwrap();
            let first = redb::ReadableTable::first(&table)
                .unwrap()
                .map(|(key, row)| (key.value().to_vec(), row.value().to_vec()));
            let Some((key, row)) = first else { return };
            // The version is the first byte of all, or stands behind a checksum.
            let at = if name == POSITION { 0 } else { 4 };
            assert_eq!(row[at], 1, "the version");
            let rest = [&[2], &row[at + 1..]].concat();
            let newer = match name {
                POSITION => rest,
                "records" => sealed(&[&row[..4], &rest].concat()),
                _ => seal(&rest).to_vec(),
            };
            table.insert(&key[..], &newer[..]).unwrap();
            raised = true;
        });
        if raised {
            let refusal = run(async { Node::open(disk.mount()).map(drop).expect_err("it was opened") });
            let newer = matches!(&refusal, StartError::NewerFormat { found: 2, known: 1, path } if path.ends_with("state.redb"));
            assert!(newer, "{name}: {refusal}");
            refused += 1;
        }
    }
    assert!(refused >= 6, "only {refused} tables had rows");
}

#[test]
fn a_flipped_bit_is_found_or_harmless() {
    let whole = used();
    let expected = Rig::open(&whole.fork()).unwrap().contents();
    let bits = whole.bytes(File::Log).len() as u64 * 8;
    let mut rng = SplitMix(3);
    let (mut found, mut harmless) = (0, 0);
    // Flips in the head of the file, where redb keeps its roots, and then all over it.
    let all_over = (0..120).map(|i| if i < 40 { rng.below(320 * 8) } else { rng.below(bits) });
    for bit in all_over.collect::<Vec<_>>() {
        let disk = whole.fork();
        disk.flip(File::Log, bit);
        let read = catch_unwind(AssertUnwindSafe(|| {
            let opened = open(&disk).ok()?;
            opened.log.entries(0..u64::MAX, usize::MAX).ok().map(|_| Contents::of(&opened.log))
        }));
        match read {
            Ok(Some(contents)) => {
                assert_eq!(contents, expected, "bit {bit} changed what is read");
                harmless += 1;
            }
            Ok(None) | Err(_) => found += 1,
        }
    }
    assert!(found > 0 && harmless > 0, "{found} found, {harmless} harmless");
}

#[test]
fn a_file_is_locked_also_against_a_second_handle_of_the_same_process() {
    let dir = tempfile::tempdir().unwrap();
    let at = || Arc::new(DirDisk::open(dir.path()).unwrap());
    let memory = MemDisk::new();
    let pairs: [(Arc<dyn Disk>, Arc<dyn Disk>); 2] =
        [(at(), at()), (Arc::new(memory.clone()), Arc::new(memory.clone()))];
    for (one, other) in pairs {
        let opened = super::super::open(one.clone(), "a", mint).unwrap();
        let error = super::super::open(other.clone(), "a", mint).map(|opened| opened.identity).unwrap_err();
        assert!(matches!(&error, StartError::InUse { path } if path.ends_with("log.wal")), "{error}");
        drop(opened);
        drop(super::super::open(other, "a", mint).expect("the first one is closed"));
    }
}

#[test]
fn a_directory_that_cannot_be_made_or_read_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    for path in [dir.path().join("no").join("parent"), file] {
        let error = DirDisk::open(&path).unwrap_err();
        assert!(matches!(&error, StartError::Io { path: named, .. } if *named == path), "{error}");
    }
    let made = dir.path().join("made");
    drop(DirDisk::open(&made).unwrap());
    std::fs::create_dir(made.join("log.wal")).unwrap();
    let error = super::super::open(Arc::new(DirDisk::open(&made).unwrap()), "a", mint).map(|o| o.identity).unwrap_err();
    assert!(matches!(&error, StartError::Io { path, .. } if path.ends_with("log.wal")), "{error}");
}

#[test]
fn something_else_under_the_name_of_the_log_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.wal");
    std::fs::write(&path, b"this is somebody's diary, not a database").unwrap();
    let error = super::super::open(Arc::new(DirDisk::open(dir.path()).unwrap()), "a", mint).map(|o| o.identity);
    assert!(matches!(&error, Err(StartError::Corrupted { .. })), "{error:?}");
    assert_eq!(std::fs::read(&path).unwrap(), b"this is somebody's diary, not a database");
    assert!(!dir.path().join(FAILED_FILE).exists());
}

#[test]
fn the_marker_of_a_real_directory_is_found_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let disk = DirDisk::open(dir.path()).unwrap();
    assert_eq!(disk.failed().unwrap(), None);
    disk.mark_failed("first\n");
    disk.mark_failed("second\n");
    assert!(disk.failed().unwrap().is_some_and(|text| text.starts_with("first")));
    assert!(Path::new(&dir.path().join(FAILED_FILE)).exists());
}

#[test]
fn a_creation_that_died_is_taken_up_under_the_id_that_was_written() {
    let whole = FaultDisk::new(1);
    drop(open(&whole).unwrap());
    let mut kept = 0;
    for k in 0..whole.ops() {
        let disk = FaultDisk::new(k);
        disk.die_at(k);
        let first = open(&disk).map(|opened| opened.identity);
        disk.power_loss(PowerLoss::DropAll);
        let second = open(&disk).unwrap_or_else(|error| panic!("died at {k}: {error}")).identity;
        if let Ok(first) = first {
            assert_eq!(Identity { starts: 2, ..first }, second, "died at {k}");
        }
        let third = open(&disk).unwrap().identity;
        assert_eq!(Identity { starts: second.starts + 1, ..second }, third, "died at {k}");
        kept += u64::from(disk.count(crate::storage::fault_disk::IoKind::SetLen) > 0);
    }
    assert!(kept > 0);
}
