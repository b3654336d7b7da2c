//! Rules of reads at a revision.

use super::super::index::SLICE_KEYS_MAX;
use super::super::read::{self, RANGE_ENTRIES_MAX, ReadError};
use super::*;
use crate::command::KeyValue;

fn get(m: &Machine, at: u64, key: &str) -> Result<Option<String>, ReadError> {
    let found = read::get(m.state.index(), &m.rows, rev(at), key.as_bytes())?;
    Ok(found.map(|entry| String::from_utf8(entry.value.to_vec()).unwrap()))
}

fn range(m: &Machine, at: u64, limit: usize, reverse: bool) -> (Vec<String>, bool) {
    let (entries, more) = read::range(m.state.index(), &m.rows, rev(at), &everything(), limit, reverse).unwrap();
    let text = |entry: KeyValue| String::from_utf8(entry.key.to_vec()).unwrap();
    (entries.into_iter().map(text).collect(), more)
}

#[test]
fn every_revision_above_the_floor_reads_as_it_was() {
    let mut m = Machine::new();
    m.put("k", "1");
    m.put("k", "2");
    m.delete("k");
    m.put("k", "4");
    m.put("other", "");
    let seen: Vec<_> = (0..=5).map(|at| get(&m, at, "k").unwrap()).collect();
    let text = |value: &str| Some(value.to_string());
    assert_eq!(seen, [None, text("1"), text("2"), None, text("4"), text("4")]);
    assert_eq!(range(&m, 3, 9, false), (vec![], false));
    assert_eq!(range(&m, 5, 9, true), (vec!["other".into(), "k".into()], false));
    assert_eq!(read::count(m.state.index(), rev(5), &everything()).unwrap(), 2);
    assert_eq!(read::count(m.state.index(), rev(3), &everything()).unwrap(), 0);
}

#[test]
fn the_floor_itself_can_be_read_and_what_is_swept_below_is_refused() {
    let mut m = Machine::new();
    for value in ["1", "2", "3"] {
        m.put("k", value);
    }
    m.compact(2);
    assert_eq!(get(&m, 1, "k").unwrap().as_deref(), Some("1"), "a view from before is still served");
    m.sweep_all();
    let error = get(&m, 1, "k").unwrap_err();
    assert!(matches!(error, ReadError::Compacted { oldest } if oldest == rev(2)), "{error:?}");
    assert_eq!(get(&m, 2, "k").unwrap().as_deref(), Some("2"));
    assert!(read::range(m.state.index(), &m.rows, rev(1), &everything(), 9, false).is_err());
    assert!(read::count(m.state.index(), rev(1), &everything()).is_err());
    m.reopen();
    assert!(get(&m, 1, "k").is_err(), "also after a restart, before it sweeps again");
    assert_eq!(get(&m, 3, "k").unwrap().as_deref(), Some("3"));
}

#[test]
fn a_view_that_holds_the_sweep_back_reads_on_over_newer_rows() {
    let mut m = Machine::new();
    m.put("k", "1");
    m.put("k", "2");
    let view = m.rows.clone();
    m.compact(2);
    m.state.sweep(&mut m.rows, rev(1), usize::MAX).unwrap();
    let found = read::get(m.state.index(), &view, rev(1), b"k").unwrap();
    assert_eq!(found.map(|entry| entry.value), Some(bytes("1")));
}

#[test]
fn ranges_and_counts_go_over_more_keys_than_the_index_gives_at_once() {
    let mut m = Machine::new();
    let keys: Vec<String> = (0..2 * SLICE_KEYS_MAX + 10).map(|n| format!("{n:05}")).collect();
    m.txn(then(keys.iter().map(|key| put(key, ""))));
    // A long run of deleted keys in the middle: the reader looks at all of them and finds none.
    m.txn(then([delete_range("00005", "02000")]));
    let live: Vec<String> = keys.iter().filter(|key| !("00005".."02000").contains(&key.as_str())).cloned().collect();
    assert_eq!(range(&m, 2, usize::MAX, false), (live.clone(), false));
    assert_eq!(range(&m, 2, usize::MAX, true).0, live.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(range(&m, 2, live.len(), false), (live.clone(), false));
    assert!(range(&m, 2, live.len() - 1, false).1);
    assert_eq!(read::count(m.state.index(), rev(2), &everything()).unwrap(), live.len() as u64);
    assert_eq!(read::count(m.state.index(), rev(1), &everything()).unwrap(), keys.len() as u64);
}

#[test]
fn a_range_stops_at_its_limit_of_entries_and_goes_on_behind_the_last() {
    let mut m = Machine::new();
    let keys = (0..RANGE_ENTRIES_MAX + 1).map(|n| format!("{n:05}"));
    m.txn(then(keys.map(|key| put(&key, ""))));
    let (first, more) = range(&m, 1, usize::MAX, false);
    assert_eq!((first.len(), more), (RANGE_ENTRIES_MAX, true));
    let rest = KeyRange { start: bytes(&format!("{}\0", first.last().unwrap())), end: None };
    let (rest, more) = read::range(m.state.index(), &m.rows, rev(1), &rest, usize::MAX, false).unwrap();
    assert_eq!((rest.len(), more), (1, false));
}

#[test]
fn a_range_that_ends_before_it_starts_is_empty() {
    let mut m = Machine::new();
    m.put("b", "");
    for keys in [between("c", "a"), between("b", "b")] {
        assert_eq!(read::count(m.state.index(), rev(1), &keys).unwrap(), 0);
        assert!(read::range(m.state.index(), &m.rows, rev(1), &keys, 9, true).unwrap().0.is_empty());
    }
}

#[test]
fn changes_come_in_whole_revisions_in_order_and_end_where_they_say() {
    let mut m = Machine::new();
    m.put("a", "1");
    m.txn(then([put("a", "2"), put("b", "2"), put("c", "2")]));
    m.put("a", "3");
    m.delete("b");
    let changes = |m: &Machine, from, to, max| {
        let (changes, complete) = read::changes(m.state.index(), &m.rows, rev(0), rev(from), rev(to), max).unwrap();
        (changes.iter().map(|change| change.id.revision.get()).collect::<Vec<_>>(), complete.get())
    };
    assert_eq!(changes(&m, 1, 4, 100), (vec![1, 2, 2, 2, 3, 4], 4));
    assert_eq!(changes(&m, 1, 4, 2), (vec![1], 1), "revision 2 does not fit and is not split");
    assert_eq!(changes(&m, 2, 4, 1), (vec![2, 2, 2], 2), "one revision is always given, and given whole");
    assert_eq!(changes(&m, 2, 4, 0), (vec![2, 2, 2], 2));
    assert_eq!(changes(&m, 2, 4, 4), (vec![2, 2, 2, 3], 3));
    assert_eq!(changes(&m, 3, 3, 100), (vec![3], 3));
    assert_eq!(changes(&m, 5, 4, 100), (vec![], 4));
}

#[test]
fn changes_read_back_equal_what_was_reported_when_they_were_applied() {
    let mut m = Machine::new();
    let lease = m.grant(9);
    let mut reported = Vec::new();
    let commands = [
        Command::Txn(then([put_on("a", "1", Attach::Lease(lease)), put("b", "1")])),
        put_command("b", "2"),
        Command::LeaseExpire { lease, issued_by: m.leader },
        Command::Txn(then([delete("b")])),
    ];
    for command in commands {
        reported.extend(m.apply(None, command).1.changes);
    }
    let (read_back, _) = read::changes(m.state.index(), &m.rows, rev(0), rev(1), m.revision(), usize::MAX).unwrap();
    assert_eq!(read_back, reported);
}

#[test]
fn changes_from_the_floor_or_below_are_refused_and_just_above_are_complete() {
    let mut m = Machine::new();
    for value in ["1", "2", "3"] {
        m.put("k", value);
    }
    m.delete("k");
    let floor = m.compact(2);
    m.sweep_all();
    let changes = |from| read::changes(m.state.index(), &m.rows, floor, rev(from), rev(4), 9);
    for from in [0, 1, 2] {
        let error = changes(from).unwrap_err();
        assert!(matches!(error, ReadError::Compacted { oldest } if oldest == rev(3)), "{error:?}");
    }
    assert_eq!(changes(3).unwrap().0.len(), 2);
}

#[test]
fn explain_lists_what_is_kept_of_a_key_newest_first() {
    let mut m = Machine::new();
    let (client, _) = m.open_client();
    m.apply(stamp(client, 0, 0), put_command("k", "1"));
    m.delete("k");
    m.put("k", "3");
    let listed = |m: &Machine, max| {
        let records = read::explain(m.state.index(), &m.rows, m.revision(), b"k", max).unwrap();
        records.into_iter().map(|(id, record)| (id.revision.get(), record.kind, record.index)).collect::<Vec<_>>()
    };
    use ChangeKind::{Deleted, Put};
    assert_eq!(listed(&m, 9), [(3, Put, 4), (2, Deleted, 3), (1, Put, 2)]);
    assert_eq!(listed(&m, 2).len(), 2);
    let records = read::explain(m.state.index(), &m.rows, rev(1), b"k", 9).unwrap();
    assert_eq!(records[0].1.ticket, Some(crate::types::Ticket { client, seq: 0 }));
    assert_eq!((records[0].1.origin, records[0].1.wall_ms), (NodeId::new(0xB), 1_700_000_000_000));
    m.compact(3);
    m.sweep_all();
    assert_eq!(listed(&m, 9), [(3, Put, 4)]);
}

#[test]
fn a_history_is_what_the_floor_leaves_of_it_however_far_the_sweep_has_come() {
    let mut m = Machine::new();
    m.put("k", "1");
    m.put("k", "2");
    m.delete("k");
    m.put("k", "4");
    m.put("k", "5");
    let listed = |m: &Machine, max| {
        let past = read::history(m.state.index(), &m.rows, m.state.counters().floor, m.revision(), b"k", max).unwrap();
        let ids = past.records.iter().map(|(id, _)| id.revision.get()).collect::<Vec<_>>();
        (ids, past.more)
    };
    assert_eq!(listed(&m, 5), (vec![5, 4, 3, 2, 1], false));
    assert_eq!(listed(&m, 4), (vec![5, 4, 3, 2], true));
    assert_eq!(listed(&m, 0), (vec![], true));
    for (floor, left) in
        [(1, vec![5, 4, 3, 2, 1]), (2, vec![5, 4, 3, 2]), (3, vec![5, 4]), (4, vec![5, 4]), (5, vec![5])]
    {
        m.compact(floor);
        for swept in [false, true] {
            if swept {
                m.sweep_all();
            }
            assert_eq!(listed(&m, 9), (left.clone(), false), "floor {floor}, swept: {swept}");
            assert_eq!(listed(&m, left.len()), (left.clone(), false), "floor {floor}, swept: {swept}");
        }
    }
    // A view from before the sweep tells what is left, and says from where.
    let past = read::history(m.state.index(), &m.rows, Revision::new(1), m.revision(), b"k", 9).unwrap();
    assert_eq!((past.records.len(), past.floor), (1, Revision::new(5)));
}
