//! Rules of exactly-once: what is decided under a number stays decided.

use super::super::client::{ANSWERS_MAX, CLIENTS_MAX};
use super::*;
use crate::command::{LeaseChange, OpResult, Refusal, Resolution};

fn resolve(m: &mut Machine, client: ClientId, seq: u64) -> Resolution {
    match m.run(Command::Resolve { client, seq }) {
        Response::Resolved(resolution) => resolution,
        got => panic!("{got:?}"),
    }
}

#[test]
fn a_double_of_a_failed_compare_fails_even_after_its_condition_has_become_true() {
    // CAS (7,5) fails at index 10 and its caller is told Conflict; 11 makes the compare true; its forwarded double at 12
    // must not apply.
    let mut m = Machine::new();
    while m.open_client().0 != ClientId::new(7) {}
    let seven = ClientId::new(7);
    m.put("k", "old");
    m.index = 9;
    let (conflict, _) = m.apply(stamp(seven, 5, 5), cas("k", "expected", "mine"));
    assert_eq!(txn_of(conflict.clone()).failed, Some(0));
    m.put("k", "expected");
    assert_eq!(m.index, 11);
    let (double, effects) = m.apply(stamp(seven, 5, 5), cas("k", "expected", "mine"));
    assert_eq!((double, effects), (conflict, Effects::default()));
    assert_eq!(m.value("k").as_deref(), Some("expected"));
    assert_eq!(resolve(&mut m, seven, 5), Resolution::NoEffect);
}

#[test]
fn a_double_gets_the_first_answer_and_has_no_second_effect_also_after_a_restart_and_on_another_node() {
    let mut m = Machine::new();
    let (client, _) = m.open_client();
    let (first, _) = m.apply(stamp(client, 0, 0), put_command("k", "1"));
    let mut restored = Machine::open({
        m.state.save(&mut m.rows).unwrap();
        m.rows.snapshot()
    });
    restored.index = m.index;
    m.reopen();
    for node in [&mut m, &mut restored] {
        node.put("k", "2");
        let (double, effects) = node.apply(stamp(client, 0, 0), put_command("k", "1"));
        assert_eq!((double, effects), (first.clone(), Effects::default()));
        assert_eq!(node.value("k").as_deref(), Some("2"));
    }
    assert_eq!(m.counters(), restored.counters());
}

#[test]
fn refusals_are_remembered_like_answers() {
    let mut m = Machine::new();
    let (client, _) = m.open_client();
    let lease = LeaseId::new(2);
    let on_lease = || Command::Txn(then([put_on("k", "", Attach::Lease(lease))]));
    let refused = Response::Refused(Refusal::LeaseNotFound { lease });
    assert_eq!(m.apply(stamp(client, 0, 0), on_lease()).0, refused);
    assert_eq!(m.grant(1000), lease);
    assert_eq!(m.apply(stamp(client, 0, 0), on_lease()).0, refused, "the lease is there now, but this was decided");
    let twice = || Command::Txn(then([put("a", ""), put("a", "")]));
    let duplicate = Response::Refused(Refusal::DuplicateKey { key: bytes("a") });
    assert_eq!(m.apply(stamp(client, 1, 0), twice()).0, duplicate);
    assert_eq!(resolve(&mut m, client, 0), Resolution::NoEffect);
    assert_eq!(resolve(&mut m, client, 1), Resolution::NoEffect);
    m.check("after");
}

#[test]
fn a_lease_granted_under_a_number_is_granted_once() {
    let mut m = Machine::new();
    let (client, _) = m.open_client();
    let (first, _) = m.apply(stamp(client, 3, 0), Command::LeaseGrant { ttl_ms: 5 });
    let (double, effects) = m.apply(stamp(client, 3, 0), Command::LeaseGrant { ttl_ms: 5 });
    assert_eq!((first, effects), (double, Effects::default()));
    assert_eq!(m.counters().leases, 2);
    assert_eq!(resolve(&mut m, client, 3), Resolution::Applied(rev(0)));
}

#[test]
fn an_unknown_client_is_refused_before_anything_else() {
    let mut m = Machine::new();
    let (client, lease) = m.open_client();
    m.run(Command::LeaseRevoke { lease });
    let before = m.counters();
    for client in [client, ClientId::new(99)] {
        let (response, effects) = m.apply(stamp(client, 0, 0), put_command("k", ""));
        assert_eq!((response, effects), (Response::Refused(Refusal::UnknownClient), Effects::default()));
        assert_eq!(resolve(&mut m, client, 0), Resolution::Unknowable);
    }
    assert_eq!(m.counters(), before);
}

#[test]
fn numbers_below_the_watermark_are_forgotten_and_never_run() {
    let mut m = Machine::new();
    let (client, _) = m.open_client();
    for seq in 0..3 {
        m.apply(stamp(client, seq, 0), put_command("k", "1"));
    }
    m.apply(stamp(client, 5, 2), put_command("k", "2"));
    let answers = || m.rows.rows.keys().filter(|(space, _)| *space == super::super::RowSpace::Answer).count();
    assert_eq!(answers(), 2, "numbers 2 and 5");
    let before = m.counters();
    for seq in [0, 1] {
        let forgotten = Response::Refused(Refusal::Forgotten { low: 2 });
        assert_eq!(m.apply(stamp(client, seq, 0), put_command("k", "again")).0, forgotten);
        assert_eq!(resolve(&mut m, client, seq), Resolution::Unknowable);
    }
    assert_eq!(m.counters(), before);
    m.reopen();
    let (response, _) = m.apply(stamp(client, 1, 0), put_command("k", "again"));
    assert_eq!(response, Response::Refused(Refusal::Forgotten { low: 2 }), "a stamp never lowers the watermark");
    m.check("after");
}

#[test]
fn the_watermark_survives_a_restart_also_when_no_answer_carries_it() {
    let mut m = Machine::new();
    let (client, _) = m.open_client();
    m.apply(stamp(client, 9, 0), put_command("k", "1"));
    // Three ways to raise it without recording an answer: a double, a number too far ahead, a resolve of what is known.
    m.apply(stamp(client, 9, 3), put_command("k", "1"));
    m.check("after a double");
    m.reopen();
    let forgotten = |low| Response::Refused(Refusal::Forgotten { low });
    assert_eq!(m.apply(stamp(client, 2, 0), put_command("k", "2")).0, forgotten(3));
    m.apply(stamp(client, 9 + ANSWERS_MAX, 5), put_command("k", "2"));
    m.check("after a number too far ahead");
    m.reopen();
    assert_eq!(m.apply(stamp(client, 4, 0), put_command("k", "2")).0, forgotten(5));
    m.apply(stamp(client, 9, 7), Command::Resolve { client, seq: 9 });
    m.check("after a resolve");
    m.reopen();
    assert_eq!(m.apply(stamp(client, 6, 0), put_command("k", "2")).0, forgotten(7));
}

#[test]
fn a_watermark_above_its_own_number_is_taken_as_that_number() {
    let mut m = Machine::new();
    let (client, _) = m.open_client();
    let (response, _) = m.apply(stamp(client, 4, 100), put_command("k", "1"));
    assert!(txn_of(response.clone()).changed);
    assert_eq!(m.apply(stamp(client, 4, 100), put_command("k", "1")).0, response, "it is remembered");
    let (response, _) = m.apply(stamp(client, 3, 0), put_command("k", "1"));
    assert_eq!(response, Response::Refused(Refusal::Forgotten { low: 4 }));
    m.check("after");
}

#[test]
fn a_number_too_far_ahead_is_not_decided_until_the_lower_ones_are_answered() {
    let mut m = Machine::new();
    let (client, _) = m.open_client();
    m.apply(stamp(client, 0, 0), put_command("k", "0"));
    let last = ANSWERS_MAX - 1;
    assert!(txn_of(m.apply(stamp(client, last, 0), put_command("k", "last")).0).changed);
    let before = m.counters();
    let (response, effects) = m.apply(stamp(client, last + 1, 0), put_command("k", "beyond"));
    assert_eq!(response, Response::Refused(Refusal::TooFarAhead { limit: ANSWERS_MAX }));
    assert_eq!((effects, m.counters()), (Effects::default(), before));
    assert_eq!(resolve(&mut m, client, last + 1), Resolution::Unknowable, "it cannot be sealed, so not `never`");
    assert_eq!(resolve(&mut m, client, u64::MAX), Resolution::Unknowable);
    assert_eq!(m.counters(), before);
    assert!(txn_of(m.apply(stamp(client, last + 1, 1), put_command("k", "beyond")).0).changed);
    m.check("after");
}

#[test]
fn what_is_resolved_as_never_is_sealed_and_what_is_decided_resolves_the_same_for_ever() {
    let mut m = Machine::new();
    let (client, _) = m.open_client();
    m.apply(stamp(client, 0, 0), put_command("k", "1"));
    m.apply(stamp(client, 1, 0), cas("k", "no", "2"));
    for _ in 0..2 {
        assert_eq!(resolve(&mut m, client, 0), Resolution::Applied(rev(1)));
        assert_eq!(resolve(&mut m, client, 1), Resolution::NoEffect);
        assert_eq!(resolve(&mut m, client, 2), Resolution::Never);
        let (response, effects) = m.apply(stamp(client, 2, 0), put_command("k", "2"));
        assert_eq!((response, effects), (Response::Refused(Refusal::Sealed), Effects::default()));
        m.reopen();
    }
    assert_eq!(m.value("k").as_deref(), Some("1"));
    m.check("after");
}

#[test]
fn a_clients_own_resolve_brings_its_watermark_so_its_latest_number_can_be_sealed() {
    let mut m = Machine::new();
    let (client, _) = m.open_client();
    let seq = 3 * ANSWERS_MAX;
    assert_eq!(
        resolve(&mut m, client, seq),
        Resolution::Unknowable,
        "a stranger does not know that all before is done"
    );
    let (response, _) = m.apply(stamp(client, seq, seq), Command::Resolve { client, seq });
    assert_eq!(response, Response::Resolved(Resolution::Never));
    assert_eq!(m.apply(stamp(client, seq, seq), put_command("k", "")).0, Response::Refused(Refusal::Sealed));
    // Another client's stamp says nothing about this one.
    let (other, _) = m.open_client();
    m.apply(stamp(other, seq, seq), Command::Resolve { client, seq: 2 * seq });
    assert_eq!(resolve(&mut m, other, 0), Resolution::Never, "its watermark has not moved");
    m.check("after");
}

#[test]
fn a_large_answer_is_repeated_without_its_results() {
    let mut m = Machine::new();
    let (client, _) = m.open_client();
    m.put("k", &"x".repeat(2000));
    let read = || Command::Txn(then([Op::Get { key: bytes("k") }, put("l", "")]));
    let first = txn_of(m.apply(stamp(client, 0, 0), read()).0);
    assert!(matches!(&first.results[..], [OpResult::Get(Some(_)), OpResult::Put { .. }]), "{first:?}");
    assert!(!first.elided);
    let double = txn_of(m.apply(stamp(client, 0, 0), read()).0);
    assert_eq!(double, TxnResponse { results: vec![].into(), elided: true, ..first });
}

#[test]
fn a_client_goes_with_its_lease_and_takes_its_answers_and_keys_along() {
    let (client, lease, issued_by) = (ClientId::new(1), LeaseId::new(1), Machine::new().leader);
    let ends = [
        ("closed", Command::ClientClose { client }, ChangeKind::Deleted),
        ("revoked", Command::LeaseRevoke { lease }, ChangeKind::Deleted),
        ("expired", Command::LeaseExpire { lease, issued_by }, ChangeKind::Expired),
    ];
    for (how, end, kind) in ends {
        let mut m = Machine::new();
        let empty = m.counters().hash;
        assert_eq!(m.open_client(), (client, lease));
        m.apply(stamp(client, 0, 0), Command::Txn(then([put_on("k", "", Attach::Lease(lease))])));
        let (_, effects) = m.apply(stamp(client, 1, 0), end.clone());
        assert_eq!(summary(&effects.changes), [(kind, "k".into(), 2)], "{how}");
        assert_eq!(effects.leases, [LeaseChange::Ended { lease }], "{how}");
        assert_eq!((m.counters().clients, m.counters().leases), (0, 0), "{how}");
        let (double, _) = m.apply(stamp(client, 1, 0), end);
        assert_eq!(double, Response::Refused(Refusal::UnknownClient), "{how}");
        m.check(how);
        m.state.save(&mut m.rows).unwrap();
        assert_eq!(m.rows.rows.len(), 1, "{how}: only the counters are left: {:?}", m.rows.rows.keys());
        assert_ne!(m.counters().hash, empty, "{how}: the counters and the history differ");
    }
}

#[test]
fn client_numbers_are_never_reused() {
    let mut m = Machine::new();
    let (first, _) = m.open_client();
    m.run(Command::ClientClose { client: first });
    assert_eq!(m.run(Command::ClientClose { client: first }), Response::Refused(Refusal::UnknownClient));
    m.reopen();
    let (second, _) = m.open_client();
    assert_eq!(second, ClientId::new(first.get() + 1));
}

#[test]
fn beyond_the_limit_of_clients_no_more_are_opened_and_none_is_dropped() {
    let mut m = Machine::new();
    for _ in 0..CLIENTS_MAX {
        m.open_client();
    }
    let before = m.counters();
    let refused = Response::Refused(Refusal::TooManyClients { limit: CLIENTS_MAX as u64 });
    assert_eq!(m.run(Command::ClientOpen { ttl_ms: 1 }), refused);
    assert_eq!(m.counters(), before);
    m.run(Command::ClientClose { client: ClientId::new(1) });
    assert!(matches!(m.run(Command::ClientOpen { ttl_ms: 1 }), Response::ClientOpened { .. }));
}
