//! The lease oracle.

use crate::sim::check::{Belief, LeaseCheck, LeaseEnd, LeaseRecord, Property, Renewal, RenewalAnswer};
use crate::types::LeaseId;

const MS: u64 = 1_000_000;

fn renewal(invoked: u64, returned: u64, answer: RenewalAnswer) -> Renewal {
    Renewal { invoked_ns: invoked * MS, returned_ns: returned * MS, answer }
}

/// A lease of one second that was granted at 0 and renewed at 500.
fn lease(end: Option<(u64, bool)>) -> LeaseRecord {
    LeaseRecord {
        lease: LeaseId::new(7),
        ttl_ms: 1000,
        renewals: vec![renewal(0, 10, RenewalAnswer::Alive), renewal(500, 520, RenewalAnswer::Alive)],
        beliefs: vec![],
        end: end.map(|(applied, expired)| LeaseEnd { applied_ns: applied * MS, expired }),
        observed_ns: 5000 * MS,
    }
}

fn properties(check: &LeaseCheck, record: &LeaseRecord) -> Vec<Property> {
    let violations = check.check(record);
    violations.iter().for_each(|violation| println!("{violation}"));
    violations.iter().map(|violation| violation.property).collect()
}

#[test]
fn a_lease_lasts_its_time_from_when_its_last_acknowledged_renewal_was_sent() {
    let check = LeaseCheck::new().drift_ppm(10_000);
    // 500 ms + 1000 ms less one percent.
    assert_eq!(properties(&check, &lease(Some((1490, true)))), []);
    assert_eq!(properties(&check, &lease(Some((1489, true)))), [Property::L1]);
    assert_eq!(properties(&check.clone().drift_ppm(50_000), &lease(Some((1489, true)))), []);
    assert_eq!(properties(&check, &lease(Some((600, false)))), [], "a revoke is at any time");
    let mut record = lease(Some((1200, true)));
    record.renewals[1].answer = RenewalAnswer::Unknown;
    assert_eq!(properties(&check, &record), [], "what was not acknowledged does not count");
}

#[test]
fn a_lease_that_is_there_is_not_said_to_be_gone() {
    let mut record = lease(Some((1600, true)));
    record.renewals.push(renewal(1590, 1610, RenewalAnswer::Gone));
    assert_eq!(properties(&LeaseCheck::new(), &record), []);
    record.renewals.push(renewal(1000, 1020, RenewalAnswer::Gone));
    assert_eq!(properties(&LeaseCheck::new(), &record), [Property::L1]);
    record.end = None;
    assert_eq!(properties(&LeaseCheck::new(), &record), [Property::L1, Property::L1]);
}

#[test]
fn a_lease_that_ended_is_not_renewed() {
    let mut record = lease(Some((1600, true)));
    record.renewals.push(renewal(1610, 1620, RenewalAnswer::Alive));
    assert_eq!(properties(&LeaseCheck::new(), &record), [Property::L3]);
    record.end = Some(LeaseEnd { expired: false, ..record.end.unwrap() });
    assert_eq!(properties(&LeaseCheck::new(), &record), [Property::L3]);
}

#[test]
fn a_lease_ends_in_time_and_each_disturbance_may_add_one_time_to_live() {
    let check = |disturbed: &[u64]| {
        let disturbed = disturbed.iter().map(|at| at * MS).collect();
        LeaseCheck::new().drift_ppm(0).ends_within(100 * MS, disturbed)
    };
    // 520 ms + 1000 ms + 100 ms.
    assert_eq!(properties(&check(&[]), &lease(Some((1620, true)))), []);
    assert_eq!(properties(&check(&[]), &lease(Some((1621, true)))), [Property::L2]);
    assert_eq!(properties(&check(&[]), &lease(None)), [Property::L2]);
    assert_eq!(properties(&check(&[1600]), &lease(Some((2700, true)))), []);
    assert_eq!(properties(&check(&[1600]), &lease(Some((2701, true)))), [Property::L2]);
    assert_eq!(properties(&check(&[2600, 1600]), &lease(Some((3700, true)))), []);
    assert_eq!(properties(&check(&[1700]), &lease(Some((2701, true)))), [Property::L2], "it had ended by then");
    assert_eq!(properties(&LeaseCheck::new(), &lease(None)), [], "not asked for");
    let young = LeaseRecord { observed_ns: 1000 * MS, ..lease(None) };
    assert_eq!(properties(&check(&[]), &young), []);
}

#[test]
fn a_holder_does_not_count_on_a_lease_that_ends() {
    let believing = |at, valid_for| LeaseRecord {
        beliefs: vec![Belief { at_ns: at * MS, valid_for_ns: valid_for * MS }],
        ..lease(Some((1600, true)))
    };
    let check = LeaseCheck::new().drift_ppm(10_000);
    assert_eq!(properties(&check, &believing(1000, 600)), []);
    assert_eq!(properties(&check, &believing(1000, 700)), [Property::L8]);
    assert_eq!(properties(&check, &believing(2000, 1)), [Property::L8]);
    assert_eq!(properties(&check, &believing(2000, 0)), []);
}

#[test]
fn leases_by_the_thousand_are_right_by_construction_and_wrong_by_a_millisecond() {
    let mut rng = super::world::Rng(11);
    for _ in 0..2000 {
        let ttl = 100 + rng.below(1000);
        let (mut renewals, mut sent, mut returned) = (Vec::new(), 0, 0);
        for _ in 0..1 + rng.below(6) {
            sent = returned + rng.below(ttl / 2);
            returned = sent + rng.below(ttl / 4);
            renewals.push(renewal(sent, returned, RenewalAnswer::Alive));
        }
        // The leader counts from some moment of the renewal.
        let end = sent + rng.below(returned - sent + 1) + ttl;
        let record = |end| LeaseRecord {
            ttl_ms: ttl,
            renewals: renewals.clone(),
            end: Some(LeaseEnd { applied_ns: end * MS, expired: true }),
            ..lease(None)
        };
        let check = LeaseCheck::new().drift_ppm(0).ends_within(0, vec![]);
        assert_eq!(properties(&check, &record(end)), []);
        assert_eq!(properties(&check, &record(sent + ttl - 1)).first(), Some(&Property::L1));
        assert_eq!(properties(&check, &record(returned + ttl + 1)), [Property::L2]);
    }
}
