//! Rules of leases.

use super::*;
use crate::command::{LeaseChange, OpResult, Refusal};

const OTHER: LeaderId = LeaderId { term: 2, node: NodeId::new(0xC) };

#[test]
fn a_lease_that_expires_takes_all_its_keys_at_one_revision() {
    let mut m = Machine::new();
    let lease = m.grant(1000);
    assert_eq!(m.revision(), rev(0), "a grant changes no key");
    for key in ["c", "a", "b"] {
        m.txn(then([put_on(key, "", Attach::Lease(lease))]));
    }
    m.put("free", "");
    let (response, effects) = m.apply(None, Command::LeaseExpire { lease, issued_by: m.leader });
    assert_eq!(response, Response::LeaseEnded { deleted: 3, revision: rev(5) });
    let expired = |key: &str| (ChangeKind::Expired, key.to_string(), 5);
    assert_eq!(summary(&effects.changes), [expired("a"), expired("b"), expired("c")]);
    assert!(effects.changes.iter().all(|change| change.lease == Some(lease)), "{effects:?}");
    assert_eq!(effects.leases, [LeaseChange::Ended { lease }]);
    assert_eq!((m.counters().keys, m.state.leases()), (1, vec![]));
    m.check("after expiry");
}

#[test]
fn a_revoked_lease_says_deleted_and_one_without_keys_takes_no_revision() {
    let mut m = Machine::new();
    let (full, empty) = (m.grant(1000), m.grant(1000));
    m.txn(then([put_on("k", "", Attach::Lease(full))]));
    let (_, effects) = m.apply(None, Command::LeaseRevoke { lease: full });
    assert_eq!(summary(&effects.changes), [(ChangeKind::Deleted, "k".into(), 2)]);
    let (response, effects) = m.apply(None, Command::LeaseRevoke { lease: empty });
    assert_eq!(response, Response::LeaseEnded { deleted: 0, revision: rev(2) });
    assert_eq!((effects.changes.len(), effects.leases), (0, vec![LeaseChange::Ended { lease: empty }]));
    assert_eq!(m.run(Command::LeaseRevoke { lease: full }), Response::Refused(Refusal::LeaseNotFound { lease: full }));
}

#[test]
fn an_expiry_that_another_leader_appended_is_void() {
    let mut m = Machine::new();
    let lease = m.grant(1000);
    m.txn(then([put_on("k", "", Attach::Lease(lease))]));
    let issued_by = m.leader;
    let same_node_later_term = LeaderId { term: 2, ..issued_by };
    for leader in [OTHER, same_node_later_term] {
        m.leader = leader;
        let before = m.counters();
        let (response, effects) = m.apply(None, Command::LeaseExpire { lease, issued_by });
        assert_eq!((response, effects), (Response::ExpiryVoid, Effects::default()));
        assert_eq!(m.counters(), before);
    }
    m.leader = issued_by;
    assert!(matches!(m.run(Command::LeaseExpire { lease, issued_by }), Response::LeaseEnded { deleted: 1, .. }));
}

#[test]
fn a_put_replaces_what_its_key_hangs_on() {
    let mut m = Machine::new();
    let (first, second) = (m.grant(1), m.grant(2));
    let entry_of = |m: &mut Machine| match m.txn(then([Op::Get { key: bytes("k") }])).results.remove(0) {
        OpResult::Get(Some(entry)) => (entry.lease, entry.ttl_ms),
        got => panic!("{got:?}"),
    };
    m.txn(then([put_on("k", "", Attach::Lease(first))]));
    assert_eq!(entry_of(&mut m), (Some(first), Some(1)));
    m.txn(then([put_on("k", "", Attach::Lease(second))]));
    assert_eq!(entry_of(&mut m), (Some(second), Some(2)));
    m.check("moved");
    m.run(Command::LeaseRevoke { lease: first });
    assert_eq!(m.value("k").as_deref(), Some(""), "the first lease has nothing to take");
    m.put("k", "");
    assert_eq!(entry_of(&mut m), (None, None));
    m.run(Command::LeaseRevoke { lease: second });
    assert_eq!(m.value("k").as_deref(), Some(""));
    m.check("free");
}

#[test]
fn a_time_to_live_is_a_lease_of_its_own_that_goes_with_its_key() {
    let (lease, issued_by) = (LeaseId::new(1), Machine::new().leader);
    let ends = [
        ("overwritten", put_command("k", "2")),
        ("deleted", Command::Txn(then([delete("k")]))),
        ("revoked", Command::LeaseRevoke { lease }),
        ("expired", Command::LeaseExpire { lease, issued_by }),
    ];
    for (how, end) in ends {
        let mut m = Machine::new();
        let (response, effects) = m.apply(None, Command::Txn(then([put_on("k", "1", Attach::Ttl { ttl_ms: 250 })])));
        assert_eq!(txn_of(response).results, [OpResult::Put { prev: None, lease: Some(lease) }].into());
        assert_eq!(effects.leases, [LeaseChange::Granted { lease, ttl_ms: 250 }]);
        let (_, effects) = m.apply(None, end);
        assert_eq!(effects.leases, [LeaseChange::Ended { lease }], "{how}");
        assert_eq!(m.counters().leases, 0, "{how}");
        m.check(how);
    }
}

#[test]
fn renewing_a_time_to_live_makes_a_new_lease_and_numbers_are_never_reused() {
    let mut m = Machine::new();
    let ttl = || Command::Txn(then([put_on("k", "1", Attach::Ttl { ttl_ms: 9 })]));
    m.run(ttl());
    let (_, effects) = m.apply(None, ttl());
    let (old, new) = (LeaseId::new(1), LeaseId::new(2));
    assert_eq!(effects.leases, [LeaseChange::Granted { lease: new, ttl_ms: 9 }, LeaseChange::Ended { lease: old }]);
    m.delete("k");
    m.reopen();
    assert_eq!(m.grant(1), LeaseId::new(3), "both others are gone, their numbers are not free");
    m.check("after");
}

#[test]
fn an_anonymous_lease_survives_a_put_that_names_it_and_goes_with_the_last_of_its_keys() {
    let mut m = Machine::new();
    m.txn(then([put_on("a", "1", Attach::Ttl { ttl_ms: 9 })]));
    let lease = LeaseId::new(1);
    let (_, effects) = m.apply(None, Command::Txn(then([put_on("a", "2", Attach::Lease(lease))])));
    assert_eq!(effects.leases, [], "the same key, still on its own lease");
    // In one transaction: another key joins, the first one leaves.
    m.txn(then([put("a", "3"), put_on("b", "1", Attach::Lease(lease))]));
    assert_eq!(m.counters().leases, 1);
    m.check("handed over");
    m.delete("b");
    assert_eq!(m.counters().leases, 0);
    m.check("gone");
}

#[test]
fn an_expiry_of_a_lease_that_is_gone_is_refused_and_harmless() {
    let mut m = Machine::new();
    let lease = m.grant(5);
    m.run(Command::LeaseRevoke { lease });
    let before = m.counters();
    let response = m.run(Command::LeaseExpire { lease, issued_by: m.leader });
    assert_eq!(response, Response::Refused(Refusal::LeaseNotFound { lease }));
    assert_eq!(m.counters(), before);
}
