//! The store as a black box.

use std::collections::BTreeMap;

use super::world::{Rng, SMALL, Shape, call, ended, put, rev, right_history, seen};
use crate::sim::check::{
    Answer, Attach, BlackBox, Call, CommitLog, Condition, History, Only, Op, Outcome, Resolution, Seen, Span, Step,
    StepAnswer, Test, black_box,
};
use crate::types::{ClientId, LeaseId, Ticket};

/// Single keys and transactions over all three.
const FOREVER: Shape = Shape { leases: false, stale_reads: true, ..SMALL };

/// The same, and every outcome is known.
const CERTAIN: Shape = Shape { unknown_one_in: 1 << 40, ..FOREVER };

fn judge(calls: Vec<Call>, log: Option<&CommitLog>) -> BlackBox {
    black_box(&History::new(calls), log)
}

fn set_a(id: u64, times: (u64, u64), value: &str) -> Call {
    call(id, times, Op::set("a", value), Answer::Written, None)
}

fn get_a(id: u64, times: (u64, u64), found: Option<Seen>) -> Call {
    call(id, times, Op::get("a"), Answer::Got(found), None)
}

#[test]
fn right_histories_are_explained_with_and_without_the_commits() {
    let mut explained = 0;
    for seed in 0..150 {
        let (history, log) = right_history(seed, FOREVER);
        for log in [None, Some(&log)] {
            let found = black_box(&history, log);
            let shown: Vec<String> = found.violations.iter().map(ToString::to_string).collect();
            assert!(shown.is_empty(), "seed {seed}:\n{}", shown.join("\n"));
            explained += found.explained;
        }
    }
    assert!(explained > 250, "{explained}");
}

#[test]
fn damaged_answers_are_rejected() {
    let (mut rng, mut rejected) = (Rng(8), BTreeMap::new());
    for seed in 0..300 {
        let (history, log) = right_history(seed, CERTAIN);
        let mut calls = history.calls().to_vec();
        let end = calls.iter().filter_map(|call| call.returned_ns).max().unwrap() + 1;
        let kind = rng.below(3);
        let name = match kind {
            0 => {
                let got = |call: &&mut Call| matches!(call.response, Some(Answer::Got(Some(_))));
                let Some(call) = calls.iter_mut().find(got) else { continue };
                let Some(Answer::Got(Some(seen))) = &mut call.response else { continue };
                seen.value.push('x');
                "a read shows what nobody wrote"
            }
            1 => {
                // Two reads in a row, and nobody writes any more.
                let state = log.state();
                let Some((key, now)) = state.iter().find(|(_, now)| now.version > 1) else { continue };
                let old = Seen { version: now.version - 1, ..now.clone() };
                for (id, found) in [(1, now.clone()), (2, old)] {
                    let late = call(id, (0, 0), Op::get(key), Answer::Got(Some(found)), None);
                    let (invoked_ns, returned_ns) = (end + 2 * id, Some(end + 2 * id + 1));
                    calls.push(Call { client: 99, invoked_ns, returned_ns, ..late });
                }
                "a late read shows an old version"
            }
            _ => {
                let conflict = |call: &&mut Call| matches!(call.response, Some(Answer::Conflict(Some(_))));
                let Some(call) = calls.iter_mut().find(conflict) else { continue };
                call.response = Some(Answer::Conflict(None));
                "a conflict with nothing"
            }
        };
        let stale = |call: &Call| matches!(&call.op, Op::Get { moment, .. } if *moment != Default::default());
        if calls.iter().zip(history.calls()).any(|(now, before)| now != before && stale(now)) {
            continue;
        }
        let found = judge(calls, Some(&log));
        assert!(!found.violations.is_empty(), "seed {seed}: {name}: {found:?}");
        *rejected.entry(name).or_insert(0) += 1;
    }
    assert!(rejected.len() == 3 && rejected.values().all(|count| *count > 20), "{rejected:?}");
}

#[test]
fn keys_that_no_call_touches_together_are_judged_apart() {
    let found = judge(vec![set_a(1, (0, 1), "1"), call(2, (0, 1), Op::set("b", "1"), Answer::Written, None)], None);
    assert_eq!((found.explained, found.violations.len()), (2, 0));
    let both = Op::Txn { when: vec![], then: vec![Step::Read("a".into()), Step::Read("b".into())], otherwise: vec![] };
    let results = vec![StepAnswer::Read(Some(seen("1", 1))), StepAnswer::Read(None)];
    let answer = Answer::Txn { failed: None, changed: false, results: Some(results) };
    let read = call(3, (2, 3), both, answer, None);
    let set_b = call(2, (0, 1), Op::set("b", "1"), Answer::Written, None);
    let found = judge(vec![set_a(1, (0, 1), "1"), set_b, read], None);
    assert_eq!((found.explained, found.violations.len()), (0, 1), "b was written before");
}

#[test]
fn a_transaction_is_held_to_its_conditions_and_its_branch() {
    let txn = |when: Test, failed, changed, results| {
        let when = vec![Condition { keys: Span::key("a"), test: when }];
        let op = Op::Txn { when, then: vec![Step::put("a", "2")], otherwise: vec![Step::Remove(Span::key("a"))] };
        let answer = Answer::Txn { failed, changed, results: Some(vec![results]) };
        judge(vec![set_a(1, (0, 1), "1"), call(2, (2, 3), op, answer, None)], None).violations.len()
    };
    let is_1 = || Test::ValueIs("1".into());
    assert_eq!(txn(is_1(), None, true, StepAnswer::Put), 0);
    assert_eq!(txn(is_1(), Some(0), true, StepAnswer::Removed(1)), 1);
    assert_eq!(txn(Test::Absent, Some(0), true, StepAnswer::Removed(1)), 0);
    assert_eq!(txn(Test::Absent, Some(0), true, StepAnswer::Removed(0)), 1);
    assert_eq!(txn(Test::Absent, None, true, StepAnswer::Put), 1);
    // What depends on revisions is taken as told.
    assert_eq!(txn(Test::ModifiedAt(rev(1)), None, true, StepAnswer::Put), 0);
    assert_eq!(txn(Test::ModifiedAt(rev(1)), Some(0), true, StepAnswer::Removed(1)), 0);
    assert_eq!(txn(Test::ModifiedAt(rev(1)), Some(0), false, StepAnswer::Removed(1)), 1);
}

#[test]
fn conditional_sets_and_deletes_are_held_to_what_was_there() {
    let after_set =
        |op: Op, answer| judge(vec![set_a(1, (0, 1), "1"), call(2, (2, 3), op, answer, None)], None).violations.len();
    let absent = || Op::set_only("a", "2", Only::Absent);
    assert_eq!(after_set(absent(), Answer::Conflict(Some(seen("1", 1)))), 0);
    assert_eq!(after_set(absent(), Answer::Written), 1);
    let present = || Op::set_only("a", "2", Only::Present);
    assert_eq!(after_set(present(), Answer::Replaced(Some(seen("1", 1)))), 0);
    assert_eq!(after_set(present(), Answer::Replaced(None)), 1);
    assert_eq!(after_set(present(), Answer::Conflict(Some(seen("1", 1)))), 1);
    let revision = || Op::set_only("a", "2", Only::Revision(rev(4)));
    assert_eq!(after_set(revision(), Answer::Written), 0);
    assert_eq!(after_set(revision(), Answer::Conflict(Some(seen("1", 1)))), 0);
    assert_eq!(after_set(revision(), Answer::Conflict(None)), 1);
    assert_eq!(after_set(Op::delete("a"), Answer::Deleted(1)), 0);
    assert_eq!(after_set(Op::delete("a"), Answer::Deleted(0)), 1);
}

#[test]
fn a_write_of_unknown_outcome_may_have_happened_or_not_but_not_undone() {
    let unknown = ended(set_a(1, (0, 1), "1"), Outcome::Unknown);
    let then = |reads: Vec<Call>| judge([unknown.clone()].into_iter().chain(reads).collect(), None).violations.len();
    let (nothing, one) = (|id, at| get_a(id, (at, at + 1), None), |id, at| get_a(id, (at, at + 1), Some(seen("1", 1))));
    assert_eq!(then(vec![nothing(2, 2), nothing(3, 4)]), 0);
    assert_eq!(then(vec![nothing(2, 2), one(3, 4)]), 0);
    assert_eq!(then(vec![one(2, 2), nothing(3, 4)]), 1);
}

#[test]
fn a_write_that_is_not_among_the_commits_or_was_resolved_as_never_is_dropped() {
    let ticket = Ticket { client: ClientId::new(1), seq: 2 };
    let unknown = Call { ticket: Some(ticket), ..ended(set_a(1, (0, 1), "1"), Outcome::Unknown) };
    let read = get_a(2, (2, 3), Some(seen("1", 1)));
    let with = |resolution: Option<Resolution>, log: Option<&CommitLog>| {
        let resolve = |resolution| call(3, (4, 5), Op::Resolve { ticket }, Answer::Resolved(resolution), None);
        let calls = [unknown.clone(), read.clone()].into_iter().chain(resolution.map(resolve));
        judge(calls.collect(), log).violations.len()
    };
    assert_eq!(with(None, None), 0);
    assert_eq!(with(None, Some(&CommitLog::complete(vec![put(1, "a", "1")]))), 0);
    assert_eq!(with(None, Some(&CommitLog::complete(vec![]))), 1);
    assert_eq!(with(None, Some(&CommitLog { base_revision: rev(9), ..CommitLog::default() })), 0);
    assert_eq!(with(Some(Resolution::Applied(rev(1))), None), 0);
    assert_eq!(with(Some(Resolution::Never), None), 1);
}

#[test]
fn what_cannot_be_judged_without_revisions_is_counted() {
    let on_lease =
        Op::Set { key: "a".into(), value: "1".into(), only: Only::Always, attach: Attach::Lease(LeaseId::new(1)) };
    let found = judge(vec![call(1, (0, 1), on_lease, Answer::Written, None)], None);
    assert_eq!(found.left_out, [["a"]]);
    let keys = ["a", "b", "c", "d", "e"];
    let then = keys.iter().map(|key| Step::put(*key, "1")).collect();
    let answer = Answer::Txn { failed: None, changed: true, results: None };
    let found = judge(vec![call(1, (0, 1), Op::Txn { when: vec![], then, otherwise: vec![] }, answer, None)], None);
    assert_eq!(found.left_out, [keys]);
}
