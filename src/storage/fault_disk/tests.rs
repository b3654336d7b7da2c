use super::*;

fn written(mode: PowerLoss, seed: u64) -> Vec<u8> {
    let disk = FaultDisk::new(seed);
    let file = disk.mount().backend(File::Log).unwrap();
    file.set_len(4 * SECTOR_BYTES as u64).unwrap();
    file.write(0, &[1; SECTOR_BYTES]).unwrap();
    file.sync_data().unwrap();
    file.write(0, &[2; 4 * SECTOR_BYTES]).unwrap();
    file.set_len(6 * SECTOR_BYTES as u64).unwrap();
    disk.power_loss(mode);
    assert!(file.read(0, &mut [0]).is_err(), "a handle from before the failure still reads");
    disk.bytes(File::Log)
}

#[test]
fn a_killed_process_loses_nothing_and_what_it_did_not_sync_is_still_lost_with_the_power() {
    let disk = FaultDisk::new(1);
    let file = disk.mount().backend(File::Log).unwrap();
    file.set_len(4).unwrap();
    file.sync_data().unwrap();
    file.write(0, &[1; 4]).unwrap();
    disk.process_gone();
    assert!(file.write(0, &[2; 4]).is_err(), "a dead process still writes");
    let next = disk.mount().backend(File::Log).expect("the dead hold no locks");
    let mut read = [0; 4];
    next.read(0, &mut read).unwrap();
    assert_eq!(read, [1; 4]);
    disk.power_loss(PowerLoss::DropAll);
    assert_eq!(disk.bytes(File::Log), [0; 4]);
}

#[test]
fn a_wiped_disk_is_empty_and_a_copy_is_one_of_its_own() {
    let (disk, other) = (FaultDisk::new(1), FaultDisk::new(2));
    disk.mount().backend(File::Log).unwrap().set_len(3).unwrap();
    disk.mount().mark_failed("on purpose");
    other.copy_of(&disk);
    assert_eq!((other.bytes(File::Log).len(), other.mount().failed().unwrap().is_some()), (3, true));
    let mounted = disk.mount();
    disk.wipe();
    assert!(mounted.exists(File::Log).is_err() && !disk.mount().exists(File::Log).unwrap());
    assert!(disk.mount().failed().unwrap().is_none());
    other.mount().backend(File::Log).expect("a copy is not locked").set_len(9).unwrap();
    assert!(disk.bytes(File::Log).is_empty());
}

#[test]
fn a_power_failure_keeps_what_was_synced_and_of_the_rest_what_the_mode_says() {
    let dropped = written(PowerLoss::DropAll, 1);
    assert_eq!((dropped.len(), dropped[0], dropped[SECTOR_BYTES]), (4 * SECTOR_BYTES, 1, 0));
    let kept = written(PowerLoss::KeepAll, 1);
    assert_eq!((kept.len(), kept[0], kept[4 * SECTOR_BYTES - 1]), (6 * SECTOR_BYTES, 2, 2));
    let torn = (0..50).map(|seed| written(PowerLoss::Subset(50), seed));
    assert!(torn.clone().any(|bytes| bytes[0] == 1 && bytes[SECTOR_BYTES] == 2), "no write was ever torn");
    assert!(torn.clone().any(|bytes| bytes.len() == 6 * SECTOR_BYTES && bytes[0] == 1), "no length came alone");
    for bytes in torn {
        assert!(bytes.chunks(SECTOR_BYTES).all(|sector| sector.iter().all(|b| *b == sector[0])), "torn in a sector");
    }
}

#[test]
fn a_failed_sync_leaves_pages_that_read_well_and_are_lost_with_the_power() {
    let disk = FaultDisk::new(1);
    let file = disk.mount().backend(File::Log).unwrap();
    file.set_len(8).unwrap();
    disk.inject(Fault { kinds: vec![IoKind::Sync], nth: 0, error: io::ErrorKind::Other, once: true });
    assert!(file.sync_data().is_err());
    assert_eq!(file.sync_data().map_err(|e| e.to_string()), Ok(()));
    assert_eq!(disk.bytes(File::Log).len(), 8);
    disk.power_loss(PowerLoss::KeepAll);
    assert_eq!(disk.bytes(File::Log).len(), 0);
}

#[test]
fn what_a_disk_has_suffered_is_counted_by_kind_and_only_where_something_was_lost() {
    let disk = FaultDisk::new(1);
    let file = disk.mount().backend(File::Log).unwrap();
    file.set_len(4 * SECTOR_BYTES as u64).unwrap();
    file.sync_data().unwrap();
    disk.power_loss(PowerLoss::DropAll);
    assert_eq!(disk.damage(), Damage::default(), "there was nothing to lose");

    let file = disk.mount().backend(File::Log).unwrap();
    (0..20).for_each(|_| file.write(0, &[3; 4 * SECTOR_BYTES]).unwrap());
    file.set_len(5 * SECTOR_BYTES as u64).unwrap();
    disk.power_loss(PowerLoss::Subset(50));
    let Damage { dropped, torn, .. } = disk.damage();
    assert!(torn > 10 && dropped + torn < 22, "{dropped} dropped, {torn} torn");

    let file = disk.mount().backend(File::Log).unwrap();
    file.write(0, &[4; SECTOR_BYTES]).unwrap();
    disk.power_loss(PowerLoss::DropAll);
    assert_eq!((disk.damage().dropped, disk.damage().torn), (dropped + 1, torn));

    let file = disk.mount().backend(File::Log).unwrap();
    let full = io::ErrorKind::StorageFull;
    disk.inject(Fault { kinds: vec![IoKind::Write, IoKind::SetLen], nth: 1, error: full, once: false });
    let failed = (0..4).filter(|_| file.write(0, &[5]).is_err()).count();
    disk.wipe();
    let counted = |kind, error| disk.damage().failed(&[kind], error);
    assert_eq!((failed, counted(IoKind::Write, full), counted(IoKind::SetLen, full)), (3, 3, 0));
    assert_eq!((counted(IoKind::Write, io::ErrorKind::Other), disk.injected()), (0, 3));
}
