//! The lock oracle.

use super::world::{gone, put, rev};
use crate::sim::check::{Commit, CommitLog, FencedWrite, Hold, Kind, LockRecord, Property, Span};
use crate::types::Fence;

const MS: u64 = 1_000_000;

fn fence(revision: u64) -> Fence {
    Fence::new(rev(revision)).unwrap()
}

fn hold(revision: u64, granted: u64, ended: impl Into<Option<u64>>, lost: bool) -> Hold {
    let ended_ns = ended.into().map(|ended| ended * MS);
    Hold { client: revision, fence: fence(revision), granted_ns: granted * MS, ended_ns, lost }
}

fn lock(holds: Vec<Hold>) -> LockRecord {
    LockRecord { name: "jobs".into(), holds, ..LockRecord::default() }
}

fn write(fenced: u64, revision: u64, applied: bool) -> FencedWrite {
    FencedWrite { fence: fence(fenced), revision: rev(revision), applied }
}

fn at(ms: u64, commit: Commit) -> Commit {
    Commit { applied_ns: Some(ms * MS), ..commit }
}

/// The claims of fence 1 and 2; the first one is deleted at 100 ms (revision 3), the second one expires at 300 ms
/// (revision 5).
fn claims() -> CommitLog {
    CommitLog::complete(vec![
        at(5, put(1, "lock/x", "")),
        at(6, put(2, "lock/y", "")),
        at(100, gone(3, Kind::Deleted, &["lock/x"])),
        at(120, put(4, "a", "1")),
        at(300, gone(5, Kind::Expired, &["lock/y"])),
    ])
}

fn shown(violations: Vec<crate::sim::check::Violation>) -> Vec<Property> {
    violations.iter().for_each(|violation| println!("{violation}"));
    violations.iter().map(|violation| violation.property).collect()
}

fn believed(holds: Vec<Hold>) -> Vec<Property> {
    shown(lock(holds).check())
}

fn with_claims(holds: Vec<Hold>) -> Vec<Property> {
    shown(lock(holds).check_with(&claims(), &Span::prefix("lock/")))
}

#[test]
fn holders_in_turn_pass() {
    let holds = vec![hold(1, 10, 90, false), hold(2, 110, 250, true)];
    assert_eq!(believed(holds.clone()), []);
    assert_eq!(with_claims(holds), []);
}

#[test]
fn two_holders_at_a_time_are_seen() {
    assert_eq!(believed(vec![hold(1, 10, 120, false), hold(2, 110, 250, false)]), [Property::K1]);
    assert_eq!(believed(vec![hold(1, 10, None, false), hold(2, 110, 250, false)]), [Property::K1]);
    assert_eq!(believed(vec![hold(1, 10, 110, false), hold(2, 110, None, false)]), []);
    // The one in between is over when the last one comes.
    let holds = vec![hold(1, 10, 500, false), hold(2, 20, 30, false), hold(3, 110, 120, false)];
    assert_eq!(believed(holds), [Property::K1, Property::K1]);
}

#[test]
fn a_guard_that_is_lost_after_the_lock_has_moved_is_seen() {
    assert_eq!(believed(vec![hold(1, 10, 120, true), hold(2, 110, 250, false)]), [Property::K5]);
    assert_eq!(with_claims(vec![hold(2, 110, 301, true)]), [Property::K5]);
    assert_eq!(with_claims(vec![hold(2, 110, None, false)]), [Property::K5]);
}

#[test]
fn fences_grow() {
    assert_eq!(believed(vec![hold(2, 10, 90, false), hold(1, 110, 250, false)]), [Property::K2]);
    assert_eq!(believed(vec![hold(1, 10, 90, false), hold(1, 110, 250, false)]), [Property::K2]);
}

#[test]
fn a_lock_is_granted_only_to_a_claim_that_stands() {
    assert_eq!(with_claims(vec![hold(4, 130, 140, false)]), [Property::K3]);
    assert_eq!(with_claims(vec![hold(2, 300, 310, true)]), [Property::K3]);
}

#[test]
fn a_claim_that_somebody_else_deleted_is_seen() {
    assert_eq!(with_claims(vec![hold(1, 10, 101, true)]), [Property::K4]);
    let record = LockRecord { deleted: vec![fence(1)], ..lock(vec![hold(1, 10, 101, true)]) };
    assert_eq!(shown(record.check_with(&claims(), &Span::prefix("lock/"))), []);
}

#[test]
fn nobody_is_served_before_an_earlier_claim_is_gone() {
    assert_eq!(with_claims(vec![hold(2, 99, 250, false)]), [Property::K7]);
    let mut log = claims();
    log.commits.remove(2);
    let record = lock(vec![hold(2, 110, 250, false)]);
    assert_eq!(shown(record.check_with(&log, &Span::prefix("lock/"))), [Property::K7]);
    log.commits.truncate(2);
    assert_eq!(shown(record.check_with(&log, &Span::prefix("lock/"))), [Property::K7], "both stand to this day");
}

#[test]
fn a_write_with_a_stale_fence_does_not_take_place_and_one_with_the_holders_does() {
    let judged = |writes: Vec<FencedWrite>| {
        let record = LockRecord { writes, ..lock(vec![]) };
        (shown(record.check()), shown(record.check_with(&claims(), &Span::prefix("lock/"))))
    };
    assert_eq!(judged(vec![write(2, 4, true), write(1, 4, false)]), (vec![], vec![]));
    assert_eq!(judged(vec![write(1, 4, true)]), (vec![], vec![Property::K6]));
    assert_eq!(judged(vec![write(2, 4, false)]), (vec![], vec![Property::K6]));
    assert_eq!(judged(vec![write(9, 4, true)]), (vec![], vec![Property::K6]));
    assert_eq!(judged(vec![write(2, 3, true), write(1, 4, true)]).0, [Property::K6]);
}

#[test]
fn a_line_of_holders_is_right_by_construction_and_wrong_when_one_holds_on() {
    let mut rng = super::world::Rng(21);
    for _ in 0..500 {
        let (mut holds, mut log, mut now) = (Vec::new(), Vec::new(), 0);
        let count = 2 + rng.below(6);
        let name = |place: u64| format!("lock/{place}");
        for place in 1..=count {
            log.push(at(place, put(place, &name(place), "")));
        }
        now += count;
        for place in 1..=count {
            let granted = now + 1 + rng.below(10);
            let ended = granted + rng.below(20);
            now = ended + 1 + rng.below(10);
            let lost = rng.one_in(2);
            let kind = if lost { Kind::Expired } else { Kind::Deleted };
            log.push(at(now, gone(count + place, kind, &[&name(place)])));
            holds.push(hold(place, granted, ended, lost));
        }
        let log = CommitLog::complete(log);
        let record = lock(holds);
        assert_eq!(record.check_with(&log, &Span::prefix("lock/")), []);
        let mut damaged = record.clone();
        let place = rng.below(count - 1) as usize;
        damaged.holds[place].ended_ns = Some(record.holds[place + 1].granted_ns + 1);
        let found = shown(damaged.check_with(&log, &Span::prefix("lock/")));
        let state = if damaged.holds[place].lost { Property::K5 } else { Property::K4 };
        assert!(found.contains(&state) && found.len() == 2, "{found:?}");
    }
}
