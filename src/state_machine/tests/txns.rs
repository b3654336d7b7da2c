//! Rules of transactions.

use super::*;
use crate::command::{KeyValue, OpResult, RecordId, Refusal};

#[test]
fn each_change_takes_the_next_revision_and_what_changes_nothing_takes_none() {
    let mut m = Machine::new();
    assert_eq!(m.put("a", "1"), rev(1));
    assert_eq!(m.put("a", "1"), rev(2), "a put is a change even with equal bytes");
    assert_eq!(m.delete("absent"), rev(2));
    assert_eq!(m.txn(then([])).revision, rev(2));
    assert_eq!(m.txn(then([Op::Get { key: bytes("a") }])).revision, rev(2));
    let failed = txn_of(m.run(cas("a", "other", "x")));
    assert_eq!((failed.revision, failed.changed, failed.failed), (rev(2), false, Some(0)));
    assert_eq!(m.delete("a"), rev(3));
    let both = m.txn(then([put("x", ""), put("y", "")]));
    assert_eq!((both.revision, both.changed), (rev(4), true));
}

#[test]
fn a_key_keeps_its_creation_and_counts_its_versions_until_it_is_deleted() {
    let mut m = Machine::new();
    m.put("k", "1");
    m.put("k", "2");
    let response = m.txn(then([Op::Get { key: bytes("k") }]));
    let entry = |created, modified, version, value: &str| KeyValue {
        key: bytes("k"),
        value: bytes(value),
        created: rev(created),
        modified: rev(modified),
        version,
        lease: None,
        ttl_ms: None,
    };
    assert_eq!(response.results, [OpResult::Get(Some(entry(1, 2, 2, "2")))].into());
    m.delete("k");
    m.put("k", "3");
    let response = m.txn(then([Op::Get { key: bytes("k") }]));
    assert_eq!(response.results, [OpResult::Get(Some(entry(4, 4, 1, "3")))].into());
}

#[test]
fn operations_see_the_store_as_it_was_before_their_own_transaction() {
    let mut m = Machine::new();
    m.put("a", "old");
    let keys = everything();
    let response = m.txn(then([
        Op::Put { key: bytes("a"), value: bytes("new"), lease: Attach::Forever, prev: true },
        Op::Put { key: bytes("b"), value: bytes("new"), lease: Attach::Forever, prev: true },
        Op::Get { key: bytes("a") },
        Op::Get { key: bytes("b") },
        Op::Range { keys, limit: 10, reverse: false },
    ]));
    let old = |result: &OpResult| match result {
        OpResult::Put { prev, .. } => prev.iter().map(|kv| kv.value.clone()).collect(),
        OpResult::Get(entry) => entry.iter().map(|kv| kv.value.clone()).collect(),
        OpResult::Range { entries, .. } => entries.iter().map(|kv| kv.value.clone()).collect(),
        OpResult::Delete { prev, .. } => prev.iter().map(|kv| kv.value.clone()).collect::<Vec<_>>(),
    };
    let seen: Vec<_> = response.results.iter().map(old).collect();
    let (a, none) = (vec![bytes("old")], vec![]);
    assert_eq!(seen, [a.clone(), none.clone(), a.clone(), none, a]);
}

#[test]
fn the_first_compare_that_fails_is_named_and_the_other_branch_runs() {
    let mut m = Machine::new();
    m.put("a", "1");
    let on = |key: &str, test| Compare { keys: KeyRange::single(bytes(key)), test };
    let response = m.txn(Txn {
        compares: vec![on("a", Test::Present), on("b", Test::Present), on("a", Test::Absent)],
        then: [put("x", "then")].into(),
        otherwise: vec![put("x", "else")],
    });
    assert_eq!(response.failed, Some(1));
    assert_eq!(m.value("x").as_deref(), Some("else"));
}

#[test]
fn a_missing_key_compares_as_never_created_and_its_value_as_nothing() {
    let mut m = Machine::new();
    m.put("gone", "x");
    m.delete("gone");
    for key in ["never", "gone"] {
        let holds = |m: &mut Machine, test: Test| m.txn(when(test, KeyRange::single(bytes(key)), [])).failed.is_none();
        assert!(holds(&mut m, Test::Created(Order::Equal, rev(0))), "{key}");
        assert!(holds(&mut m, Test::Modified(Order::Less, rev(1))), "{key}");
        assert!(holds(&mut m, Test::Version(Order::Equal, 0)), "{key}");
        assert!(holds(&mut m, Test::Lease(None)), "{key}");
        assert!(holds(&mut m, Test::Absent), "{key}");
        assert!(!holds(&mut m, Test::Present), "{key}");
        for order in [Order::Equal, Order::NotEqual, Order::Less, Order::GreaterOrEqual] {
            assert!(!holds(&mut m, Test::Value(order, bytes(""))), "{key}, {order:?}");
        }
    }
}

#[test]
fn every_order_of_every_figure_is_compared_with_the_key_on_the_left() {
    let mut m = Machine::new();
    m.put("other", "");
    m.put("k", "b");
    m.put("k", "b");
    let orders = [
        (Order::Equal, [false, true, false]),
        (Order::NotEqual, [true, false, true]),
        (Order::Less, [false, false, true]),
        (Order::LessOrEqual, [false, true, true]),
        (Order::Greater, [true, false, false]),
        (Order::GreaterOrEqual, [true, true, false]),
    ];
    for (order, expected) in orders {
        for (place, expected) in expected.into_iter().enumerate() {
            // k was created at 2, modified at 3, has version 2 and value "b": each is held against one less, the same,
            // one more.
            let at = place as u64;
            let tests = [
                Test::Created(order, rev(1 + at)),
                Test::Modified(order, rev(2 + at)),
                Test::Version(order, 1 + at),
                Test::Value(order, bytes(["a", "b", "c"][place])),
            ];
            for test in tests {
                let held = m.txn(when(test.clone(), KeyRange::single(bytes("k")), [])).failed.is_none();
                assert_eq!(held, expected, "{test:?}");
            }
        }
    }
}

#[test]
fn a_compare_on_a_range_must_hold_for_every_key_in_it() {
    let mut m = Machine::new();
    for key in ["r/1", "r/2", "s"] {
        m.put(key, "same");
    }
    let holds = |m: &mut Machine, keys: KeyRange, test: Test| m.txn(when(test, keys, [])).failed.is_none();
    let same = Test::Value(Order::Equal, bytes("same"));
    let (r, none) = (KeyRange::prefix(bytes("r/")), KeyRange::prefix(bytes("none/")));
    assert!(holds(&mut m, r.clone(), same.clone()));
    assert!(holds(&mut m, none.clone(), same.clone()), "nothing there contradicts");
    assert!(holds(&mut m, none.clone(), Test::Absent));
    assert!(!holds(&mut m, r.clone(), Test::Absent));
    assert!(holds(&mut m, r.clone(), Test::Present));
    assert!(!holds(&mut m, none, Test::Present));
    m.put("r/2", "other");
    assert!(!holds(&mut m, r.clone(), same));
    assert!(holds(&mut m, r, Test::Created(Order::LessOrEqual, rev(2))));
}

#[test]
fn unchanged_since_sees_puts_and_deletes_and_claims_nothing_below_the_floor() {
    let mut m = Machine::new();
    m.put("r/a", "1");
    m.put("r/b", "1");
    m.put("s", "1");
    let r = KeyRange::prefix(bytes("r/"));
    let unchanged =
        |m: &mut Machine, since: u64| m.txn(when(Test::UnchangedSince(rev(since)), r.clone(), [])).failed.is_none();
    assert!(unchanged(&mut m, 2));
    assert!(!unchanged(&mut m, 1));
    m.delete("r/a");
    assert!(!unchanged(&mut m, 3), "the delete at 4 is a change");
    assert!(unchanged(&mut m, 4));
    m.put("s", "2");
    m.compact(5);
    assert!(!unchanged(&mut m, 4), "true once, but below the floor nobody can know: no matter that it is still there");
    m.sweep_all();
    assert!(!unchanged(&mut m, 4));
    assert!(unchanged(&mut m, 5));
    assert!(unchanged(&mut m, 99), "nothing has happened after the present");
}

#[test]
fn a_transaction_that_writes_a_key_twice_is_refused_whole() {
    let mut m = Machine::new();
    m.put("b", "1");
    let before = m.counters();
    let twice: [(Vec<Op>, &str); 5] = [
        (vec![put("a", "1"), put("b", "2"), put("a", "2")], "a"),
        (vec![put("b", "2"), delete("b")], "b"),
        (vec![delete_range("a", "c"), put("x", ""), put("b", "2")], "b"),
        (vec![delete_range("a", "m"), delete_range("c", "z")], "c"),
        (vec![delete_range("a", "c"), put("absent", "")], "absent"),
    ];
    for (ops, key) in twice {
        let response = m.run(Command::Txn(then(ops.clone())));
        assert_eq!(response, Response::Refused(Refusal::DuplicateKey { key: bytes(key) }), "{ops:?}");
    }
    assert_eq!(m.counters(), before);
    let fine = [delete_range("a", "c"), put("c", ""), delete_range("d", "f"), put("f", ""), delete_range("z", "a")];
    assert!(m.txn(then(fine)).changed);
    m.check("after");
}

#[test]
fn a_put_on_a_lease_that_is_not_there_refuses_the_whole_transaction() {
    let mut m = Machine::new();
    let lease = LeaseId::new(77);
    let before = m.counters();
    let ops = [put("a", "1"), put_on("t", "1", Attach::Ttl { ttl_ms: 5 }), put_on("b", "1", Attach::Lease(lease))];
    assert_eq!(m.run(Command::Txn(then(ops))), Response::Refused(Refusal::LeaseNotFound { lease }));
    assert_eq!(m.counters(), before);
}

#[test]
fn deleting_a_range_reports_each_key_once_in_order_and_at_one_revision() {
    let mut m = Machine::new();
    for key in ["a", "b", "c", "d"] {
        m.put(key, key);
    }
    let ops = [Op::Delete { keys: between("b", "d"), prev: true }, put("d", "2")];
    let (response, effects) = m.apply(None, Command::Txn(then(ops)));
    let OpResult::Delete { deleted: 2, prev } = &txn_of(response).results[0] else { panic!("two keys in b..d") };
    assert_eq!(prev.iter().map(|entry| entry.value.clone()).collect::<Vec<_>>(), [bytes("b"), bytes("c")]);
    use ChangeKind::{Deleted, Put};
    let expected = [(Deleted, "b".into(), 5), (Deleted, "c".into(), 5), (Put, "d".into(), 5)];
    assert_eq!(summary(&effects.changes), expected);
    let id = |revision, ordinal| RecordId { revision: rev(revision), ordinal };
    let ids: Vec<_> = effects.changes.iter().map(|change| (change.id, change.prev)).collect();
    assert_eq!(ids, [(id(5, 0), Some(id(2, 0))), (id(5, 1), Some(id(3, 0))), (id(5, 2), Some(id(4, 0)))]);
}

#[test]
fn a_range_gives_the_first_or_last_keys_and_says_whether_there_are_more() {
    let mut m = Machine::new();
    for key in ["a", "b", "c", "d"] {
        m.put(key, "");
    }
    m.delete("b");
    let cases = [(0, false, "", true), (2, false, "ac", true), (3, false, "acd", false), (2, true, "dc", true)];
    for (limit, reverse, expected, expected_more) in cases {
        let response = m.txn(then([Op::Range { keys: everything(), limit, reverse }]));
        let OpResult::Range { entries, more } = &response.results[0] else { panic!("{response:?}") };
        let keys: String = entries.iter().map(|entry| String::from_utf8_lossy(&entry.key).into_owned()).collect();
        assert_eq!((keys.as_str(), *more), (expected, expected_more), "limit {limit}, reverse {reverse}");
    }
}

#[test]
fn the_answer_of_a_transaction_stops_at_its_limits_and_says_so() {
    let mut m = Machine::new();
    let megabyte = "x".repeat(1 << 20);
    for key in ["a", "b", "c", "d", "e", "f"] {
        m.put(key, &megabyte);
    }
    let range = || Op::Range { keys: everything(), limit: u32::MAX, reverse: false };
    let response = m.txn(then([range(), range(), Op::Delete { keys: everything(), prev: true }]));
    let shape = |result: &OpResult| match result {
        OpResult::Range { entries, more } => (entries.len(), u64::from(*more)),
        OpResult::Delete { deleted, prev } => (prev.len(), *deleted),
        other => panic!("{other:?}"),
    };
    // Four MiB for all; then one entry per range, so that reading on always advances. The delete is complete all the
    // same, and its count says so.
    let shapes: Vec<_> = response.results.iter().map(shape).collect();
    assert_eq!(shapes, [(4, 1), (1, 1), (1, 6)]);
    assert_eq!(m.counters().keys, 0);
}
