//! The watch oracle.

use std::collections::BTreeMap;

use super::world::{Rng, SMALL, gone, put, put_seen, rev, right_history, seen};
use crate::sim::check::{
    Change, CommitLog, Kind, Property, Seen, Span, WatchEvent, WatchRecord, WatchStart, WatchStep,
};

/// `a` = 1, `b` = 2, `a` = 3, both gone at once.
fn log() -> CommitLog {
    let third = Seen { created: rev(1), version: 2, ..seen("3", 3) };
    CommitLog::complete(vec![
        put(1, "a", "1"),
        put(2, "b", "2"),
        put_seen("a", third),
        gone(4, Kind::Deleted, &["a", "b"]),
    ])
}

/// What was there at `revision`.
fn state(log: &CommitLog, revision: u64) -> BTreeMap<String, Seen> {
    let upto = log.commits.iter().filter(|commit| commit.revision <= rev(revision)).cloned().collect();
    CommitLog::complete(upto).state()
}

/// The right batch of a revision.
fn live(log: &CommitLog, revision: u64, keys: &Span) -> WatchStep {
    let before = state(log, revision - 1);
    let changes = log.at(rev(revision)).into_iter().flat_map(|commit| commit.changes.iter().cloned());
    let event = |change: Change| WatchEvent { prev: before.get(&change.key).cloned(), change };
    let events = changes.filter(|change| keys.contains(&change.key)).map(event).collect();
    WatchStep::Live { revision: rev(revision), events }
}

fn whole(log: &CommitLog, revision: u64, keys: &Span, resync: bool) -> WatchStep {
    let entries = state(log, revision).into_iter().filter(|(key, _)| keys.contains(key)).collect();
    WatchStep::Whole { revision: rev(revision), resync, entries }
}

fn watch(start: WatchStart, steps: Vec<WatchStep>) -> WatchRecord {
    WatchRecord { prev: true, steps, ..WatchRecord::new("w", Span::all(), start) }
}

fn properties(record: &WatchRecord) -> Vec<Property> {
    let violations = record.check(&log());
    violations.iter().for_each(|violation| println!("{violation}"));
    violations.iter().map(|violation| violation.property).collect()
}

fn batches(revisions: &[u64]) -> Vec<WatchStep> {
    revisions.iter().map(|revision| live(&log(), *revision, &Span::all())).collect()
}

const FROM_1: WatchStart = WatchStart::From(crate::types::Revision::new(1));

#[test]
fn a_watch_that_delivers_everything_in_order_passes() {
    let whole_story = WatchRecord { drained: true, ..watch(FROM_1, batches(&[1, 2, 3, 4])) };
    assert_eq!(properties(&whole_story), []);
    assert_eq!(properties(&watch(WatchStart::After(rev(2)), batches(&[3, 4]))), []);
}

#[test]
fn order_and_uniqueness() {
    assert_eq!(properties(&watch(FROM_1, batches(&[1, 2, 3, 2]))), [Property::W1]);
    assert_eq!(properties(&watch(FROM_1, batches(&[1, 2, 2]))), [Property::W2]);
}

#[test]
fn gaps_are_seen_in_the_middle_at_the_start_and_at_the_end() {
    assert_eq!(properties(&watch(FROM_1, batches(&[1, 3]))), [Property::W3]);
    assert_eq!(properties(&watch(FROM_1, batches(&[2]))), [Property::W5]);
    let unfinished = watch(FROM_1, batches(&[1, 2]));
    assert_eq!(properties(&unfinished), []);
    assert_eq!(properties(&WatchRecord { drained: true, ..unfinished }), [Property::W3]);
}

#[test]
fn a_revision_comes_whole_and_in_one_batch() {
    let mut steps = batches(&[1, 2, 3, 4]);
    let WatchStep::Live { events, .. } = &mut steps[3] else { panic!() };
    let second = events.split_off(1);
    assert_eq!(properties(&watch(FROM_1, steps.clone())), [Property::W4]);
    steps.push(WatchStep::Live { revision: rev(4), events: second });
    assert_eq!(properties(&watch(FROM_1, steps)), [Property::W4, Property::W4]);
}

#[test]
fn a_place_is_never_ahead_of_what_was_delivered() {
    let with_place = |revisions: &[u64], place, rest: &[u64]| {
        let steps = batches(revisions).into_iter().chain([WatchStep::Place(rev(place))]).chain(batches(rest));
        properties(&watch(FROM_1, steps.collect()))
    };
    assert_eq!(with_place(&[1, 2], 2, &[3]), []);
    assert_eq!(with_place(&[1, 2], 3, &[]), [Property::W6]);
    assert_eq!(with_place(&[1, 2], 3, &[3]), [Property::W6, Property::W6]);
    assert_eq!(with_place(&[1, 2], 1, &[]), [Property::W6]);
    // Over keys that are not watched, it moves on.
    let steps = vec![live(&log(), 1, &"a".into()), WatchStep::Place(rev(2)), live(&log(), 3, &"a".into())];
    assert_eq!(properties(&WatchRecord { keys: "a".into(), ..watch(FROM_1, steps) }), []);
}

#[test]
fn kind_value_and_previous_value_are_compared() {
    let damaged = |damage: fn(&mut WatchEvent)| {
        let mut steps = batches(&[1, 2, 3, 4]);
        let WatchStep::Live { events, .. } = &mut steps[3] else { panic!() };
        damage(&mut events[0]);
        properties(&watch(FROM_1, steps))
    };
    assert_eq!(damaged(|event| event.change.kind = Kind::Expired), [Property::W7]);
    assert_eq!(damaged(|event| event.change.now = Some(seen("9", 4))), [Property::W7]);
    assert_eq!(damaged(|event| event.prev = None), [Property::W7]);
    assert_eq!(damaged(|event| event.prev = Some(seen("1", 1))), [Property::W7]);
    assert_eq!(damaged(|_| {}), []);
}

#[test]
fn only_the_watched_keys_come() {
    let record = WatchRecord { keys: "a".into(), ..watch(FROM_1, batches(&[1])) };
    assert_eq!(properties(&record), []);
    let record = WatchRecord { keys: "a".into(), ..watch(FROM_1, batches(&[1, 2])) };
    assert_eq!(properties(&record), [Property::W8]);
}

#[test]
fn nothing_below_the_start_comes() {
    assert_eq!(properties(&watch(WatchStart::From(rev(3)), batches(&[2, 3]))), [Property::W9]);
    assert_eq!(properties(&watch(WatchStart::After(rev(1)), batches(&[1, 2]))), [Property::W9]);
    let initial = |revision| vec![whole(&log(), revision, &Span::all(), false)];
    assert_eq!(properties(&watch(WatchStart::Initial(rev(2)), initial(2))), []);
    assert_eq!(properties(&watch(WatchStart::Initial(rev(3)), initial(2))), [Property::W9]);
}

#[test]
fn compaction_is_told_and_only_where_it_is_true() {
    let compacted = |requested, oldest| WatchStep::Compacted { requested: rev(requested), oldest: rev(oldest) };
    assert_eq!(properties(&watch(FROM_1, vec![compacted(1, 3)])), []);
    assert_eq!(properties(&watch(FROM_1, vec![compacted(3, 3)])), [Property::W10]);
    let behind = |steps: Vec<WatchStep>| batches(&[1, 2]).into_iter().chain(steps).collect();
    assert_eq!(properties(&watch(FROM_1, behind(vec![compacted(2, 3)]))), [Property::W10]);
    let goes_on = behind(vec![compacted(3, 4)].into_iter().chain(batches(&[3])).collect());
    assert_eq!(properties(&watch(FROM_1, goes_on)), [Property::W10]);
}

#[test]
fn a_resync_shows_the_whole_state_and_replaces_what_was_missed() {
    let resync = |state_of| {
        let WatchStep::Whole { entries, .. } = whole(&log(), state_of, &Span::all(), true) else { panic!() };
        vec![WatchStep::Whole { revision: rev(3), resync: true, entries }]
    };
    let with = |first: &[u64], middle: Vec<WatchStep>, rest: &[u64]| {
        watch(FROM_1, batches(first).into_iter().chain(middle).chain(batches(rest)).collect())
    };
    assert_eq!(properties(&with(&[1], resync(3), &[4])), []);
    assert_eq!(properties(&with(&[1], resync(1), &[4])), [Property::W11]);
    assert_eq!(properties(&with(&[1, 2, 3, 4], resync(3), &[])), [Property::W1]);
    let strict = WatchRecord { backpressure: true, ..with(&[1], resync(3), &[4]) };
    assert_eq!(properties(&strict), [Property::W11]);
}

#[test]
fn the_initial_state_comes_first_once_and_only_if_it_was_asked_for() {
    let initial = || vec![whole(&log(), 2, &Span::all(), false)];
    let start = WatchStart::Initial(rev(0));
    let with = |start, steps: Vec<WatchStep>| properties(&watch(start, steps));
    assert_eq!(with(start, initial().into_iter().chain(batches(&[3])).collect()), []);
    assert_eq!(with(start, initial().into_iter().chain(batches(&[4])).collect()), [Property::W3]);
    assert_eq!(with(start, batches(&[3])), [Property::W3]);
    assert_eq!(with(start, initial().into_iter().chain(initial()).collect()), [Property::W3]);
    assert_eq!(with(FROM_1, initial()), [Property::W3]);
}

#[test]
fn what_was_never_committed_is_seen() {
    let event = WatchEvent { change: put(5, "a", "5").changes.remove(0), prev: None };
    let steps = batches(&[1, 2, 3, 4]);
    let live = |revision, event: &WatchEvent| WatchStep::Live { revision: rev(revision), events: vec![event.clone()] };
    let ahead = steps.iter().cloned().chain([live(5, &event)]).collect();
    assert_eq!(properties(&watch(FROM_1, ahead)), [Property::W13]);
    let other = WatchEvent { change: put(1, "z", "1").changes.remove(0), prev: None };
    assert_eq!(properties(&watch(FROM_1, vec![live(1, &other)])), [Property::W13, Property::W4]);
}

/// A watch as it should be: batches, places now and then, sometimes a resync over what it missed.
fn right_watch(log: &CommitLog, rng: &mut Rng) -> WatchRecord {
    let keys = if rng.one_in(2) { Span::all() } else { Span::key(*rng.pick(&["a", "b", "c"])) };
    let (last, start) = (log.last().get(), rng.below(log.last().get()));
    let (mut steps, mut at) = (Vec::new(), start);
    let begin = match rng.below(3) {
        0 => WatchStart::After(rev(start)),
        1 => WatchStart::From(rev(start + 1)),
        _ => {
            steps.push(whole(log, start, &keys, false));
            WatchStart::Initial(rev(rng.below(start + 1)))
        }
    };
    while at < last {
        match rng.below(8) {
            0 => steps.push(WatchStep::Place(rev(at))),
            1 => {
                at += 1 + rng.below(last - at);
                steps.push(whole(log, at, &keys, true));
            }
            _ => {
                at += 1;
                let step = live(log, at, &keys);
                if !matches!(&step, WatchStep::Live { events, .. } if events.is_empty()) {
                    steps.push(step);
                }
            }
        }
    }
    WatchRecord { prev: true, drained: true, steps, ..WatchRecord::new("w", keys, begin) }
}

/// Makes a right watch wrong.
fn damage(record: &WatchRecord, rng: &mut Rng) -> Option<(WatchRecord, &'static str)> {
    let mut record = record.clone();
    let is_live = |step: &WatchStep| matches!(step, WatchStep::Live { .. });
    let live: Vec<usize> = (0..record.steps.len()).filter(|place| is_live(&record.steps[*place])).collect();
    let place = *live.get(rng.below(live.len().max(1) as u64) as usize)?;
    let next_is_live = record.steps.get(place + 1).is_some_and(is_live);
    let name = match rng.below(5) {
        0 if next_is_live || place + 1 == record.steps.len() => {
            record.steps.remove(place);
            "a batch is missing"
        }
        1 => {
            record.steps.insert(place, record.steps[place].clone());
            "a batch comes twice"
        }
        2 if next_is_live => {
            record.steps.swap(place, place + 1);
            "two batches have changed places"
        }
        3 => {
            let WatchStep::Live { events, .. } = &mut record.steps[place] else { return None };
            let event = events.first_mut()?;
            event.prev = if event.prev.is_some() { None } else { Some(seen("x", 1)) };
            "a previous value is wrong"
        }
        _ => {
            let WatchStep::Live { revision, .. } = &mut record.steps[place] else { return None };
            *revision = rev(revision.get() + 1);
            "a batch tells another revision"
        }
    };
    Some((record, name))
}

#[test]
fn right_watches_pass_and_damaged_ones_do_not() {
    let (mut rng, mut rejected) = (Rng(5), BTreeMap::new());
    for seed in 0..1000 {
        let (_, log) = right_history(seed, SMALL);
        let record = right_watch(&log, &mut rng);
        assert_eq!(record.check(&log), [], "seed {seed}: {record:#?}");
        let Some((damaged, name)) = damage(&record, &mut rng) else { continue };
        assert_ne!(damaged.check(&log), [], "seed {seed}: {name}: {damaged:#?}");
        *rejected.entry(name).or_insert(0) += 1;
    }
    assert!(rejected.len() == 5 && rejected.values().all(|count| *count > 50), "{rejected:?}");
}

/// Seen with real processes: the last thing that happened was that a lock was given back.
#[test]
fn a_place_behind_the_last_commit_of_the_watched_keys_is_right_as_far_as_the_log_tells() {
    let log = CommitLog::partial(log().commits, rev(6));
    let at = |place| {
        let mut steps = batches(&[1, 2, 3, 4]);
        steps.push(WatchStep::Place(rev(place)));
        let violations = watch(FROM_1, steps).check(&log);
        violations.iter().map(|violation| violation.property).collect::<Vec<_>>()
    };
    assert_eq!(at(6), []);
    assert_eq!(at(7), [Property::W6]);
}
