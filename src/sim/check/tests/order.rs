//! The revision-order oracle.

use super::world::{Rng, SMALL, Shape, call, ended, gone, put, put_seen, rev, right_history, seen};
use crate::sim::check::{
    Answer, Attach, Call, CommitLog, Condition, History, Kind, Moment, Only, Op, OrderCheck, Outcome, Property,
    Resolution, Seen, Span, Step, StepAnswer, Test,
};
use crate::types::{ClientId, LeaseId, Ticket};

const TICKET: Ticket = Ticket { client: ClientId::new(7), seq: 3 };

fn properties(calls: Vec<Call>, log: &CommitLog) -> Vec<Property> {
    let violations = OrderCheck::new().check(&History::new(calls), log);
    violations.iter().for_each(|violation| println!("{violation}"));
    violations.iter().map(|violation| violation.property).collect()
}

fn set_a(id: u64, times: (u64, u64), value: &str, revision: u64) -> Call {
    call(id, times, Op::set("a", value), Answer::Written, revision)
}

fn get_a(id: u64, times: (u64, u64), found: Option<Seen>) -> Call {
    call(id, times, Op::get("a"), Answer::Got(found), None)
}

/// `a` is put twice: 1 then 2.
fn two_puts() -> CommitLog {
    let second = Seen { created: rev(1), version: 2, ..seen("2", 2) };
    CommitLog::complete(vec![put(1, "a", "1"), put_seen("a", second)])
}

fn second() -> Seen {
    Seen { created: rev(1), version: 2, ..seen("2", 2) }
}

#[test]
fn right_histories_pass_however_their_calls_overlap() {
    for seed in 0..400 {
        let (history, log) = right_history(seed, SMALL);
        let violations = OrderCheck::new().check(&history, &log);
        let shown: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(shown.is_empty(), "seed {seed}:\n{}", shown.join("\n"));
    }
}

#[test]
fn a_large_history_is_judged_in_little_more_than_linear_time() {
    let shape = Shape { clients: 20, calls_each: 1000, ..SMALL };
    let (history, log) = right_history(1, shape);
    assert!(log.commits.len() > 5_000);
    assert_eq!(OrderCheck::new().check(&history, &log), []);
}

#[test]
fn a_read_that_misses_an_acknowledged_write_is_out_of_order() {
    let log = two_puts();
    let writes = || vec![set_a(1, (0, 1), "1", 1), set_a(2, (2, 3), "2", 2)];
    let with = |read: Call| writes().into_iter().chain([read]).collect();
    assert_eq!(properties(with(get_a(3, (4, 5), Some(second()))), &log), []);
    assert_eq!(properties(with(get_a(3, (2, 5), Some(seen("1", 1)))), &log), []);
    assert_eq!(properties(with(get_a(3, (4, 5), Some(seen("1", 1)))), &log), [Property::Kv1]);
    assert_eq!(properties(with(get_a(3, (2, 5), None)), &log), [Property::Kv8]);
}

#[test]
fn a_read_that_shows_a_write_before_it_began_is_out_of_order() {
    let calls = vec![set_a(1, (0, 1), "1", 1), get_a(2, (2, 3), Some(second())), set_a(3, (4, 5), "2", 2)];
    assert_eq!(properties(calls, &two_puts()), [Property::Kv1]);
}

#[test]
fn two_reads_do_not_go_back() {
    let writes = [set_a(1, (0, 1), "1", 1), set_a(2, (2, 20), "2", 2)];
    let reads = |first, then| {
        let reads = [get_a(3, (3, 4), Some(first)), get_a(4, (5, 6), Some(then))];
        properties(writes.iter().cloned().chain(reads).collect(), &two_puts())
    };
    assert_eq!(reads(seen("1", 1), second()), []);
    assert_eq!(reads(second(), seen("1", 1)), [Property::Kv1]);
}

#[test]
fn writes_are_ordered_as_they_ended_and_began() {
    let calls = vec![set_a(1, (2, 3), "1", 1), set_a(2, (0, 1), "2", 2)];
    assert_eq!(properties(calls, &two_puts()), [Property::Kv1]);
}

#[test]
fn revisions_leave_no_gap_and_belong_to_one_write() {
    let log = CommitLog::complete(vec![put(1, "a", "1"), put(3, "b", "2")]);
    let calls = vec![set_a(1, (0, 1), "1", 1), call(2, (2, 3), Op::set("b", "2"), Answer::Written, 3)];
    assert_eq!(properties(calls.clone(), &log), [Property::Kv2]);
    assert_eq!(properties(calls, &CommitLog { complete: false, ..log }), []);
    let calls = vec![set_a(1, (0, 1), "1", 1), set_a(2, (0, 1), "2", 1)];
    let found = properties(calls, &two_puts());
    assert!(found.contains(&Property::Kv2), "{found:?}");
}

#[test]
fn a_failed_compare_that_wrote_and_one_that_held_and_did_not_are_seen() {
    let only_if_1 = Condition { keys: Span::key("a"), test: Test::ValueIs("1".into()) };
    let txn =
        Op::Txn { when: vec![only_if_1], then: vec![Step::put("a", "2")], otherwise: vec![Step::Read("a".into())] };
    let put = |failed| Answer::Txn { failed, changed: true, results: Some(vec![StepAnswer::Put]) };
    let writes = |answer, revision| vec![set_a(1, (0, 1), "1", 1), call(2, (2, 3), txn.clone(), answer, revision)];
    assert_eq!(properties(writes(put(None), 2), &two_puts()), []);
    assert_eq!(properties(writes(put(Some(0)), 2), &two_puts()), [Property::Kv3]);

    let read =
        Answer::Txn { failed: Some(0), changed: false, results: Some(vec![StepAnswer::Read(Some(seen("1", 1)))]) };
    let log = CommitLog::complete(vec![super::world::put(1, "a", "1")]);
    assert_eq!(properties(writes(read, 1), &log), [Property::Kv3]);
}

#[test]
fn half_a_transaction_is_seen() {
    let txn = Op::Txn { when: vec![], then: vec![Step::put("a", "1"), Step::put("b", "1")], otherwise: vec![] };
    let answer = Answer::Txn { failed: None, changed: true, results: None };
    let calls = vec![call(1, (0, 1), txn, answer, 1)];
    assert_eq!(properties(calls.clone(), &CommitLog::complete(vec![put(1, "a", "1")])), [Property::Kv3]);
    let mut both = put(1, "a", "1");
    both.changes.extend(put(1, "b", "1").changes);
    assert_eq!(properties(calls, &CommitLog::complete(vec![both])), []);
}

#[test]
fn a_value_nobody_wrote_is_a_phantom() {
    let calls = vec![set_a(1, (0, 1), "1", 1), get_a(2, (2, 3), Some(Seen { value: "9".into(), ..seen("1", 1) }))];
    assert_eq!(properties(calls, &CommitLog::complete(vec![put(1, "a", "1")])), [Property::Kv4]);
    let log = CommitLog::complete(vec![put(1, "a", "1")]);
    assert_eq!(properties(vec![], &log), [Property::Kv4]);
    let stranger = OrderCheck::new().strangers(Span::prefix("a"));
    assert_eq!(stranger.check(&History::default(), &log), []);
}

#[test]
fn stale_reads_of_one_handle_do_not_go_back_and_those_of_two_may() {
    let stale =
        |id, times, found| Call { op: Op::Get { key: "a".into(), moment: Moment::Stale }, ..get_a(id, times, found) };
    let writes = [set_a(1, (0, 1), "1", 1), set_a(2, (2, 3), "2", 2)];
    let reads =
        |first: Call, then: Call| properties(writes.iter().cloned().chain([first, then]).collect(), &two_puts());
    let (old, new) = (stale(3, (4, 5), None), stale(4, (6, 7), Some(second())));
    assert_eq!(reads(old.clone(), new.clone()), []);
    let back = stale(5, (8, 9), Some(seen("1", 1)));
    assert_eq!(reads(new.clone(), back.clone()), [Property::Kv5]);
    assert_eq!(reads(new, Call { client: 2, ..back }), []);
    let at_least = |revision| Call {
        op: Op::Get { key: "a".into(), moment: Moment::AtLeast(rev(revision)) },
        ..stale(6, (8, 9), None)
    };
    assert_eq!(reads(old.clone(), at_least(0)), []);
    assert_eq!(reads(old, at_least(1)), [Property::Kv5]);
}

#[test]
fn a_write_that_failed_for_certain_is_not_in_the_log() {
    let calls = vec![ended(set_a(1, (0, 1), "1", 1), Outcome::Fail)];
    assert_eq!(properties(calls, &CommitLog::complete(vec![put(1, "a", "1")])), [Property::Kv6]);
    let calls = vec![ended(set_a(1, (0, 1), "1", 1), Outcome::Unknown)];
    assert_eq!(properties(calls, &CommitLog::complete(vec![put(1, "a", "1")])), []);
}

#[test]
fn a_delete_that_failed_for_certain_is_not_in_the_log() {
    let log = CommitLog::complete(vec![put(1, "a", "1"), gone(2, Kind::Deleted, &["a"])]);
    let delete = call(2, (2, 3), Op::delete("a"), Answer::Deleted(1), 2);
    let calls = |delete| vec![set_a(1, (0, 1), "1", 1), delete];
    assert_eq!(properties(calls(delete.clone()), &log), []);
    assert_eq!(properties(calls(ended(delete.clone(), Outcome::Unknown)), &log), []);
    assert_eq!(properties(calls(ended(delete, Outcome::Fail)), &log), [Property::Kv6]);
}

#[test]
fn what_a_write_replaced_is_the_newest_below_it() {
    let replace = |prev| {
        let op = Op::set("a", "2");
        vec![set_a(1, (0, 1), "1", 1), call(2, (2, 3), op, Answer::Replaced(prev), 2)]
    };
    assert_eq!(properties(replace(Some(seen("1", 1))), &two_puts()), []);
    assert_eq!(properties(replace(None), &two_puts()), [Property::Kv7]);
}

#[test]
fn a_conflict_shows_what_was_there() {
    let conflict = |found| {
        let op = Op::set_only("a", "9", Only::Absent);
        vec![set_a(1, (0, 1), "1", 1), call(2, (2, 3), op, Answer::Conflict(found), None)]
    };
    let log = CommitLog::complete(vec![put(1, "a", "1")]);
    assert_eq!(properties(conflict(Some(seen("1", 1))), &log), []);
    assert_eq!(properties(conflict(None), &log), [Property::Kv3]);
}

#[test]
fn a_write_that_is_applied_twice_is_seen_by_value_and_by_ticket() {
    let again = Seen { created: rev(1), version: 2, ..seen("1", 2) };
    let log = CommitLog::complete(vec![put(1, "a", "1"), put_seen("a", again)]);
    assert_eq!(properties(vec![set_a(1, (0, 1), "1", 1)], &log), [Property::X1]);
    assert_eq!(properties(vec![ended(set_a(1, (0, 1), "1", 1), Outcome::Unknown)], &log), [Property::X1]);

    let mut log = CommitLog::complete(vec![put(1, "a", "1"), gone(2, Kind::Deleted, &["a"]), put(3, "a", "1")]);
    log.commits.push(gone(4, Kind::Deleted, &["a"]));
    let two_sets = || vec![set_a(1, (0, 1), "1", 1), set_a(2, (6, 7), "1", 3)];
    let delete = ended(call(3, (2, 3), Op::delete("a"), Answer::Deleted(1), 2), Outcome::Unknown);
    let delete = Call { ticket: Some(TICKET), ..delete };
    log.commits[1].ticket = Some(TICKET);
    log.commits[3].ticket = Some(TICKET);
    assert_eq!(properties(two_sets().into_iter().chain([delete]).collect(), &log), [Property::X1]);
}

#[test]
fn a_resolved_ticket_is_held_to_its_word() {
    let resolve = |resolution| call(9, (8, 9), Op::Resolve { ticket: TICKET }, Answer::Resolved(resolution), None);
    let write = Call { ticket: Some(TICKET), ..ended(set_a(1, (0, 1), "1", 1), Outcome::Unknown) };
    let log = CommitLog::complete(vec![put(1, "a", "1")]);
    let told = |resolution, log: &CommitLog| properties(vec![write.clone(), resolve(resolution)], log);
    assert_eq!(told(Resolution::Applied(rev(1)), &log), []);
    assert_eq!(told(Resolution::Never, &log), [Property::X4]);
    assert_eq!(told(Resolution::NoEffect, &log), [Property::X4]);
    assert_eq!(told(Resolution::Never, &CommitLog::complete(vec![])), []);
    assert_eq!(told(Resolution::Applied(rev(1)), &CommitLog::complete(vec![])), [Property::D1]);
}

#[test]
fn a_lost_write_is_seen_whether_it_told_its_revision_or_not() {
    let write = set_a(1, (0, 1), "1", 1);
    assert_eq!(properties(vec![write.clone()], &CommitLog::complete(vec![])), [Property::D1]);
    assert_eq!(properties(vec![Call { revision: None, ..write }], &CommitLog::complete(vec![])), [Property::D1]);
}

#[test]
fn the_keys_of_a_lease_go_together_and_do_not_come_back() {
    let lease = LeaseId::new(5);
    let on_it = |key: &str, revision| put_seen(key, Seen { lease: Some(lease), ..seen("1", revision) });
    let set = |id: u64, key: &str, revision| {
        let op = Op::Set { key: key.into(), value: "1".into(), only: Only::Always, attach: Attach::Lease(lease) };
        call(id, (2 * id, 2 * id + 1), op, Answer::Written, revision)
    };
    let calls = || vec![set(1, "a", 1), set(2, "b", 2)];
    let log = |mut rest: Vec<_>| {
        let mut commits = vec![on_it("a", 1), on_it("b", 2)];
        commits.append(&mut rest);
        CommitLog::complete(commits)
    };
    assert_eq!(properties(calls(), &log(vec![gone(3, Kind::Expired, &["a", "b"])])), []);
    assert_eq!(properties(calls(), &log(vec![gone(3, Kind::Expired, &["a"])])), [Property::L4]);
    let with_late = calls().into_iter().chain([set(3, "c", 4)]).collect();
    assert_eq!(properties(with_late, &log(vec![gone(3, Kind::Expired, &["a", "b"]), on_it("c", 4)])), [Property::L3]);
    let wrong_lease = Op::Set { key: "a".into(), value: "1".into(), only: Only::Always, attach: Attach::Forever };
    let calls = vec![call(1, (2, 3), wrong_lease, Answer::Written, 1), set(2, "b", 2)];
    assert_eq!(properties(calls, &log(vec![])), [Property::Kv3]);
}

#[test]
fn a_revoke_tells_no_revision_and_is_found_by_what_it_took() {
    let lease = LeaseId::new(5);
    let set = Op::Set { key: "a".into(), value: "1".into(), only: Only::Always, attach: Attach::Lease(lease) };
    let calls = vec![
        call(1, (0, 1), set, Answer::Written, 1),
        call(2, (2, 3), Op::Revoke { lease }, Answer::Revoked, None),
        get_a(3, (4, 5), None),
    ];
    let on_it = put_seen("a", Seen { lease: Some(lease), ..seen("1", 1) });
    let log = CommitLog::complete(vec![on_it, gone(2, Kind::Deleted, &["a"])]);
    assert_eq!(properties(calls, &log), []);
}

#[test]
fn a_session_may_end_unrecorded_and_a_key_with_a_ttl_is_not_deleted_by_nobody() {
    let lease = LeaseId::new(5);
    let on_it = put_seen("a", Seen { lease: Some(lease), ..seen("1", 1) });
    let log = CommitLog::complete(vec![on_it, gone(2, Kind::Deleted, &["a"])]);
    let set = |attach| {
        let op = Op::Set { key: "a".into(), value: "1".into(), only: Only::Always, attach };
        vec![call(1, (0, 1), op, Answer::Written, 1)]
    };
    assert_eq!(properties(set(Attach::Lease(lease)), &log), []);
    assert_eq!(properties(set(Attach::Ttl(100)), &log), [Property::Kv4]);
}

#[test]
fn a_call_that_changes_nothing_does_not_tell_an_old_revision() {
    let writes = [set_a(1, (0, 1), "1", 1), set_a(2, (2, 3), "2", 2)];
    let none = |times, revision| {
        let delete = call(3, times, Op::delete("z"), Answer::Deleted(0), revision);
        properties(writes.iter().cloned().chain([delete]).collect(), &two_puts())
    };
    assert_eq!(none((4, 5), 2), []);
    assert_eq!(none((2, 5), 1), []);
    assert_eq!(none((4, 5), 1), [Property::Kv1]);
}

#[test]
fn a_log_that_contradicts_itself_is_seen() {
    let wrong_version = CommitLog::complete(vec![put_seen("a", Seen { version: 2, ..seen("1", 1) })]);
    assert_eq!(properties(vec![set_a(1, (0, 1), "1", 1)], &wrong_version), [Property::Kv3]);
    let log = CommitLog::complete(vec![gone(1, Kind::Expired, &["a"])]);
    let found = properties(vec![], &log);
    assert!(found.contains(&Property::Kv3) && found.contains(&Property::L4), "{found:?}");
}

/// Changes one thing of a right history so that it is certainly wrong.
fn damage(history: &History, log: &CommitLog, rng: &mut Rng) -> Option<(History, CommitLog, &'static str)> {
    let (mut calls, mut log) = (history.calls().to_vec(), log.clone());
    let written = |call: &&mut Call| matches!(call.response, Some(Answer::Written));
    let kind = rng.below(7);
    let name = match kind {
        0 => {
            let call = calls.iter_mut().filter(written).nth(rng.below(5) as usize)?;
            (call.outcome, call.response, call.revision) = (Outcome::Fail, None, None);
            "a write that took place is said to have failed"
        }
        1 => {
            let call = calls.iter_mut().filter(written).nth(rng.below(5) as usize)?;
            call.revision = Some(rev(call.revision?.get() + 1 + rng.below(3)));
            "a write tells another revision"
        }
        2 => {
            let got = |call: &&mut Call| matches!(call.response, Some(Answer::Got(Some(_))));
            let call = calls.iter_mut().filter(got).nth(rng.below(5) as usize)?;
            let Some(Answer::Got(Some(seen))) = &mut call.response else { return None };
            seen.value.push('x');
            "a read shows a value that was not written"
        }
        3 => {
            let put = log.commits.iter().position(|commit| {
                let acked =
                    |call: &Call| call.revision == Some(commit.revision) && call.response == Some(Answer::Written);
                calls.iter().any(acked)
            })?;
            log.commits.truncate(put);
            "the end of the log is gone"
        }
        4 => {
            let place = rng.below(log.commits.len() as u64 - 1) as usize;
            let (first, second) = log.commits.split_at_mut(place + 1);
            std::mem::swap(&mut first[place].changes, &mut second[0].changes);
            "two commits have changed places"
        }
        5 => {
            // Everything this client did moves behind everything else.
            let end = calls.iter().filter_map(|call| call.returned_ns).max()? + 10;
            let revision = log.last();
            let call = calls.iter_mut().filter(written).find(|call| call.revision < Some(revision))?;
            (call.invoked_ns, call.returned_ns) = (end, Some(end + 1));
            let last = |call: &Call| call.revision == Some(revision) && call.outcome == Outcome::Ok;
            if !calls.iter().any(last) {
                return None;
            }
            "a write began after a later revision had been told"
        }
        _ => {
            let place = log.commits.iter().position(|commit| commit.changes[0].kind == Kind::Put)?;
            let mut again = log.commits[place].clone();
            let key = again.changes[0].key.clone();
            let before = log.state().get(&key).cloned();
            again.revision = log.last().next();
            again.changes.truncate(1);
            let now = again.changes[0].now.as_mut()?;
            now.modified = again.revision;
            now.created = before.as_ref().map_or(again.revision, |before| before.created);
            now.version = before.map_or(0, |before| before.version) + 1;
            now.lease = None;
            log.commits.push(again);
            "a write is applied again at the end"
        }
    };
    Some((History::new(calls), log, name))
}

#[test]
fn damaged_histories_are_rejected() {
    let (mut rng, mut rejected) = (Rng(99), std::collections::BTreeMap::new());
    for seed in 0..600 {
        let (history, log) = right_history(seed, SMALL);
        let Some((damaged, log, name)) = damage(&history, &log, &mut rng) else { continue };
        assert!(!OrderCheck::new().check(&damaged, &log).is_empty(), "seed {seed}: {name}");
        *rejected.entry(name).or_insert(0) += 1;
    }
    assert!(rejected.len() == 7 && rejected.values().all(|count| *count > 20), "{rejected:?}");
}
