//! Rules of the floor, the sweep and the hash.

use super::super::RowSpace;
use super::*;
use crate::command::{RecordId, Refusal};
use crate::format::record::{Record, decode_record, encode_record};

/// Keys, deletes, leases and a client: something of everything.
fn busy() -> Machine {
    let mut m = Machine::new();
    let (client, lease) = m.open_client();
    for round in 0..4 {
        for key in ["a", "b", "c"] {
            m.put(key, &format!("{key}{round}"));
        }
        m.delete("b");
        m.txn(then([put_on("t", "", Attach::Ttl { ttl_ms: 7 }), put_on("l", "", Attach::Lease(lease))]));
        m.apply(stamp(client, round, 0), put_command("d", "x"));
    }
    m
}

#[test]
fn the_floor_only_rises_and_never_beyond_the_present() {
    let mut m = Machine::new();
    for _ in 0..5 {
        m.put("k", "");
    }
    assert_eq!(m.compact(3), rev(3));
    assert_eq!(m.compact(2), rev(3));
    assert_eq!(m.compact(99), rev(5));
    assert_eq!(m.revision(), rev(5), "compacting is no change");
}

#[test]
fn compacting_takes_the_unreachable_out_of_size_and_hash_at_once_and_sweeping_changes_neither() {
    let mut m = Machine::new();
    m.put("kept", "1");
    let one = m.counters().bytes;
    m.put("gone", "1");
    m.put("gone", "22");
    m.delete("gone");
    assert!(m.counters().bytes > 3 * one - 4, "all of history counts: {:?}", m.counters());
    m.compact(3);
    let to_be_deleted = m.counters().bytes;
    m.compact(4);
    assert_eq!(m.counters().bytes, one, "the delete at 4 shows nothing once 4 is the floor; before: {to_be_deleted}");
    let compacted = m.counters();
    m.check("compacted");
    assert_eq!(m.rows.records.len(), 4, "nothing is removed yet");
    m.sweep_all();
    assert_eq!(m.counters(), compacted);
    assert_eq!(m.rows.records.len(), 1);
    m.check("swept");
}

#[test]
fn the_hash_does_not_depend_on_when_or_how_far_a_node_has_swept() {
    let mut lazy = busy();
    let mut eager = busy();
    for floor in [3, 9, 17] {
        lazy.compact(floor);
        eager.compact(floor);
        eager.state.sweep(&mut eager.rows, rev(u64::MAX), 3).unwrap();
        assert_eq!(lazy.counters(), eager.counters());
    }
    eager.sweep_all();
    assert_eq!(lazy.counters(), eager.counters());
    assert!(eager.rows.records.len() < lazy.rows.records.len());
    lazy.check("lazy");
    eager.check("eager");
}

#[test]
fn a_sweep_is_done_in_slices_held_back_by_older_views_and_goes_on_after_a_restart() {
    let mut m = busy();
    m.compact(20);
    let all = m.rows.records.len();
    let mut slices = 0;
    while m.rows.records.len() == all {
        m.state.sweep(&mut m.rows, rev(5), 2).unwrap();
        slices += 1;
    }
    assert!(slices > 2, "the index is gone through before, in slices of its own; this took {slices}");
    let after_one = m.rows.records.len();
    assert!(all - after_one <= 2, "one slice has removed {}", all - after_one);
    m.reopen();
    while m.state.sweep(&mut m.rows, rev(5), 2).unwrap() {}
    let held_back = m.rows.records.len();
    assert!(held_back <= after_one && held_back < all, "{all} {after_one} {held_back}");
    assert!(
        m.rows.records.keys().any(|id| id.revision == rev(6)),
        "the view of revision 5 still needs what came after"
    );
    m.reopen();
    m.sweep_all();
    let mut fresh = busy();
    fresh.compact(20);
    fresh.sweep_all();
    assert_eq!(m.rows.records, fresh.rows.records, "in the end it is the same, whatever the slices were");
    assert!(!m.state.sweep(&mut m.rows, rev(u64::MAX), 2).unwrap());
    m.check("swept");
}

#[test]
fn a_snapshot_with_or_without_swept_history_restores_to_the_same_state() {
    let mut m = busy();
    m.compact(15);
    m.state.sweep(&mut m.rows, rev(u64::MAX), 5).unwrap();
    m.state.save(&mut m.rows).unwrap();
    let mut restored = Machine::open(m.rows.snapshot());
    assert_eq!(restored.counters(), m.counters());
    restored.sweep_all();
    m.sweep_all();
    assert_eq!(restored.counters(), m.counters());
    assert_eq!(restored.rows.records, m.rows.records, "a restored node sweeps what its source had left");
    restored.check("restored");
}

#[test]
fn the_hash_notices_a_changed_row_a_moved_record_and_a_changed_counter() {
    let mut m = busy();
    m.state.save(&mut m.rows).unwrap();
    let hash = m.counters().hash;
    let reloaded = |rows: &MemRows| State::load(rows).map(|state| state.counters().hash);
    assert_eq!(reloaded(&m.rows).unwrap(), hash);
    for (place, _) in m.rows.rows.clone() {
        let mut other = m.rows.clone();
        other.rows.remove(&place);
        let found = reloaded(&other);
        assert!(!matches!(found, Ok(found) if found == hash), "{place:?} is gone unnoticed");
    }
    for id in m.rows.records.keys() {
        let mut other = m.rows.clone();
        other.records.remove(id);
        let found = reloaded(&other);
        assert!(!matches!(found, Ok(found) if found == hash), "{id:?} is gone unnoticed");
    }
    let mut moved = m.rows.clone();
    let (last, record) = moved.records.pop_last().unwrap();
    moved.records.insert(RecordId { ordinal: last.ordinal + 1, ..last }, record);
    assert!(State::load(&moved).unwrap_err().to_string().contains("checksum"));
    let mut later = m;
    later.run(Command::ClusterVersion { version: 2 });
    assert_ne!(later.counters().hash, hash);
}

#[test]
fn damage_is_an_error_that_names_the_record() {
    let mut m = busy();
    m.state.save(&mut m.rows).unwrap();
    let ids: Vec<RecordId> = m.rows.records.keys().copied().collect();
    for id in ids {
        let mut rotten = m.rows.clone();
        let mut stored = rotten.records[&id].to_vec();
        let middle = stored.len() / 2;
        stored[middle] ^= 0x10;
        rotten.records.insert(id, stored.into());
        let error = State::load(&rotten).unwrap_err().to_string();
        assert!(error.contains(&format!("{id:?}")) && error.contains("checksum"), "{error}");
    }
}

#[test]
fn sound_rows_that_no_state_has_are_an_error_and_not_a_panic() {
    let mut m = busy();
    m.state.save(&mut m.rows).unwrap();
    for space in [RowSpace::Lease, RowSpace::Client, RowSpace::Answer] {
        let mut foreign = m.rows.clone();
        foreign.rows.insert((space, vec![0; 100]), Bytes::from_static(b"row"));
        let error = State::load(&foreign).expect_err("a key of a hundred bytes").to_string();
        assert!(error.contains("key"), "{error}");
    }
    for created in [rev(0), m.revision().next()] {
        let mut foreign = m.rows.clone();
        let (id, stored) = foreign.records.pop_last().unwrap();
        let record = Record { created, ..decode_record(id, stored).unwrap() };
        foreign.records.insert(id, encode_record(id, &record).into());
        let error = State::load(&foreign).expect_err("created at no time or later").to_string();
        assert!(error.contains(&format!("{id:?} was created at {created}")), "{error}");
    }
}

#[test]
fn the_vocabulary_in_force_only_rises() {
    let mut m = Machine::new();
    assert_eq!(m.counters().cluster_version, 1);
    assert_eq!(m.run(Command::ClusterVersion { version: 3 }), Response::Version { version: 3 });
    assert_eq!(m.run(Command::ClusterVersion { version: 3 }), Response::Version { version: 3 });
    let refused = Response::Refused(Refusal::VersionInForce { version: 3 });
    assert_eq!(m.run(Command::ClusterVersion { version: 2 }), refused);
    m.reopen();
    assert_eq!((m.counters().cluster_version, m.revision()), (3, rev(0)));
}

#[test]
fn a_sweep_is_worth_it_for_few_records_if_they_are_large() {
    let mut m = Machine::new();
    let large = "x".repeat(1 << 20);
    let due = |m: &Machine| m.state.should_sweep(rev(u64::MAX));
    for written in 1..=64 {
        m.put("k", &large);
        m.compact(u64::MAX);
        assert!(!due(&m), "after {written} MiB, one of them reachable");
    }
    m.put("k", &large);
    assert!(!due(&m), "what history keeps is not to be swept");
    m.compact(u64::MAX);
    assert!(due(&m));
    // A state that is loaded finds as much to do; swept, there is nothing left.
    m.state.save(&mut m.rows).unwrap();
    assert!(State::load(&m.rows).unwrap().should_sweep(rev(u64::MAX)));
    m.sweep_all();
    assert!(!due(&m));
}
