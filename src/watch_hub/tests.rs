pub(crate) mod random;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use super::*;
use crate::choices::Choices;
use crate::command::{ChangeKind, RecordId};

fn rev(revision: u64) -> Revision {
    Revision::new(revision)
}

fn change(revision: u64, ordinal: u32, key: &str, bytes: usize) -> Change {
    Change {
        id: RecordId { revision: rev(revision), ordinal },
        prev: None,
        kind: ChangeKind::Put,
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::from(vec![7; bytes]),
        created: rev(revision),
        version: 1,
        lease: None,
    }
}

/// Publishes one revision that changes these keys.
fn publish(hub: &WatchHub, revision: u64, keys: &[&str]) {
    let changes: Vec<Change> =
        keys.iter().enumerate().map(|(ordinal, key)| change(revision, ordinal as u32, key, 1)).collect();
    hub.publish([changes.into()].into_iter());
}

fn key(key: &'static str) -> KeyRange {
    KeyRange::single(Bytes::from_static(key.as_bytes()))
}

fn prefix(prefix: &'static str) -> KeyRange {
    KeyRange::prefix(Bytes::from_static(prefix.as_bytes()))
}

fn range(start: &'static str, end: &'static str) -> KeyRange {
    KeyRange { start: Bytes::from_static(start.as_bytes()), end: Some(Bytes::from_static(end.as_bytes())) }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Bell {
    fn rung(&self) -> usize {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A watcher, its place and its bell.
struct Ear {
    watch: Subscription,
    place: Revision,
    bell: Arc<Bell>,
}

impl Ear {
    fn new(hub: &WatchHub, keys: KeyRange, place: u64) -> Self {
        Ear { watch: hub.subscribe(keys), place: rev(place), bell: Arc::default() }
    }

    fn poll(&mut self) -> Poll<Next> {
        let waker = Waker::from(self.bell.clone());
        let next = self.watch.poll_next(self.place, &mut Context::from_waker(&waker));
        if let Poll::Ready(Next::Batches(_, to)) = &next {
            self.place = *to;
        }
        next
    }

    /// The revisions of one look; none if it found nothing.
    fn revisions(&mut self) -> Vec<u64> {
        match self.poll() {
            Poll::Pending => vec![],
            Poll::Ready(Next::Batches(found, _)) => found.iter().map(|batch| batch.revision.get()).collect(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_watcher_is_woken_and_served_by_the_keys_of_its_range_only() {
    let hub = WatchHub::new(rev(0), 100);
    let all = KeyRange { start: Bytes::new(), end: None };
    let mut ears: Vec<Ear> =
        [key("b/1"), prefix("b/"), range("a", "b/2"), all].map(|keys| Ear::new(&hub, keys, 0)).into_iter().collect();
    let rings = [("b/1", [1, 1, 1, 1]), ("b/2", [0, 1, 0, 1]), ("a", [0, 0, 1, 1]), ("c", [0, 0, 0, 1])];
    for (n, (key, expected)) in rings.into_iter().enumerate() {
        let revision = n as u64 + 1;
        ears.iter_mut().for_each(|ear| assert!(ear.poll().is_pending()));
        publish(&hub, revision, &[key]);
        let rung: Vec<usize> = ears.iter().map(|ear| ear.bell.rung()).collect();
        assert_eq!(rung, expected, "for {key}");
        for (ear, expected) in ears.iter_mut().zip(expected) {
            assert_eq!(ear.revisions(), vec![revision; expected], "for {key}");
        }
    }
}

#[test]
fn several_revisions_are_handed_out_in_order_once_and_whole() {
    let hub = WatchHub::new(rev(10), 100);
    let mut ear = Ear::new(&hub, prefix("a"), 10);
    publish(&hub, 11, &["a", "x", "ab"]);
    publish(&hub, 12, &["x"]);
    publish(&hub, 13, &["a"]);
    let Poll::Ready(Next::Batches(found, to)) = ear.poll() else { panic!("nothing found") };
    assert_eq!(found.iter().map(|batch| batch.revision.get()).collect::<Vec<_>>(), [11, 13]);
    assert_eq!((found[0].changes.len(), to), (3, rev(13)));
    assert!(ear.poll().is_pending());
}

#[test]
fn a_place_that_was_not_moved_is_served_again() {
    let hub = WatchHub::new(rev(0), 100);
    let watch = hub.subscribe(key("a"));
    publish(&hub, 1, &["a"]);
    publish(&hub, 2, &["a"]);
    let mut cx = Context::from_waker(Waker::noop());
    let first = watch.poll_next(rev(0), &mut cx);
    assert!(matches!(&first, Poll::Ready(Next::Batches(found, _)) if found.len() == 2), "{first:?}");
    publish(&hub, 3, &["a"]);
    let rest = watch.poll_next(rev(1), &mut cx);
    // The first look has given it everything up to 2: what it does with that is its own affair.
    assert!(matches!(&rest, Poll::Ready(Next::Batches(found, _)) if found[0].revision == rev(3)), "{rest:?}");
}

#[test]
fn a_watcher_of_a_quiet_range_never_falls_behind() {
    let hub = WatchHub::new(rev(0), 10);
    let mut ear = Ear::new(&hub, key("quiet"), 0);
    assert!(ear.poll().is_pending());
    (1..=50).for_each(|revision| publish(&hub, revision, &["busy"]));
    assert_eq!(ear.watch.settled(ear.place), rev(50));
    publish(&hub, 51, &["quiet"]);
    assert_eq!(ear.watch.settled(ear.place), rev(50));
    assert_eq!(ear.revisions(), [51]);
}

#[test]
fn a_watcher_that_falls_behind_is_told_up_to_where_it_has_seen_everything() {
    let hub = WatchHub::new(rev(0), 10);
    let mut ear = Ear::new(&hub, key("mine"), 0);
    assert!(ear.poll().is_pending());
    (1..=5).for_each(|revision| publish(&hub, revision, &["other"]));
    (6..=30).for_each(|revision| publish(&hub, revision, &["mine"]));
    assert_eq!(ear.poll(), Poll::Ready(Next::Behind(rev(5))));
    // It stays behind until it has caught up elsewhere.
    assert_eq!(ear.poll(), Poll::Ready(Next::Behind(rev(5))));
    ear.place = rev(25);
    assert_eq!(ear.revisions(), [26, 27, 28, 29, 30]);
}

#[test]
fn a_watcher_that_starts_before_what_is_kept_is_behind_and_one_right_at_its_edge_is_not() {
    let hub = WatchHub::new(rev(100), 10);
    let _somebody = hub.subscribe(key("x"));
    (101..=130).for_each(|revision| publish(&hub, revision, &["a"]));
    assert_eq!(Ear::new(&hub, key("a"), 119).poll(), Poll::Ready(Next::Behind(rev(119))));
    assert_eq!(Ear::new(&hub, key("a"), 120).revisions(), (121..=130).collect::<Vec<_>>());
}

#[test]
fn nothing_is_kept_while_nobody_watches() {
    let hub = WatchHub::new(rev(0), 10);
    let ear = Ear::new(&hub, key("a"), 0);
    publish(&hub, 1, &["a"]);
    assert_ne!(hub.lock().kept_bytes, 0);
    drop(ear);
    publish(&hub, 2, &["a"]);
    assert_eq!(hub.lock().kept_bytes, 0);
    assert_eq!(Ear::new(&hub, key("a"), 1).poll(), Poll::Ready(Next::Behind(rev(1))));
    let mut ear = Ear::new(&hub, key("a"), 2);
    assert!(ear.poll().is_pending());
    publish(&hub, 3, &["a"]);
    assert_eq!(ear.revisions(), [3]);
}

#[test]
fn a_place_in_the_future_is_given_nothing_at_or_below_it() {
    let hub = WatchHub::new(rev(0), 100);
    let mut ear = Ear::new(&hub, key("a"), 5);
    for revision in 1..=5 {
        assert!(ear.poll().is_pending(), "at {revision}");
        publish(&hub, revision, &["a"]);
    }
    assert!(ear.poll().is_pending());
    assert_eq!(ear.watch.settled(ear.place), rev(5));
    publish(&hub, 6, &["a"]);
    assert_eq!(ear.revisions(), [6]);
}

#[test]
fn after_a_jump_everybody_who_has_seen_less_is_behind_and_nothing_older_comes() {
    let hub = WatchHub::new(rev(0), 100);
    let mut ears = [Ear::new(&hub, key("a"), 0), Ear::new(&hub, key("b"), 0), Ear::new(&hub, key("b"), 50)];
    publish(&hub, 1, &["a"]);
    ears.iter_mut().for_each(|ear| drop(ear.revisions()));
    publish(&hub, 2, &["a"]);
    ears.iter_mut().skip(1).for_each(|ear| assert!(ear.poll().is_pending()));
    hub.jump(rev(20));
    assert_eq!(ears.each_ref().map(|ear| ear.bell.rung()), [0, 1, 1]);
    assert_eq!(ears[0].poll(), Poll::Ready(Next::Behind(rev(1))));
    assert_eq!(ears[1].poll(), Poll::Ready(Next::Behind(rev(2))), "it had seen everything of its range");
    assert!(ears[2].poll().is_pending(), "its place lies beyond");
    // What the jump has passed may still be reported: the state showed it before its turn came.
    publish(&hub, 19, &["a", "b"]);
    assert_eq!(hub.revision(), rev(20), "it went back");
    (20..=21).for_each(|revision| publish(&hub, revision, &["a", "b"]));
    ears[0].place = rev(20);
    assert_eq!(ears[0].revisions(), [21]);
    assert_eq!(hub.revision(), rev(21));
}

#[test]
fn a_jump_back_changes_nothing() {
    let hub = WatchHub::new(rev(0), 100);
    let mut ear = Ear::new(&hub, key("a"), 0);
    publish(&hub, 1, &["a"]);
    publish(&hub, 2, &["a"]);
    hub.jump(rev(2));
    hub.jump(rev(1));
    assert_eq!(ear.revisions(), [1, 2]);
}

#[test]
fn revisions_that_nobody_reported_are_not_taken_for_silence() {
    let hub = WatchHub::new(rev(10), 100);
    let mut ear = Ear::new(&hub, key("a"), 10);
    assert!(ear.poll().is_pending());
    publish(&hub, 14, &["x"]);
    assert_eq!(ear.poll(), Poll::Ready(Next::Behind(rev(10))));
    assert_eq!(Ear::new(&hub, key("a"), 11).poll(), Poll::Ready(Next::Behind(rev(11))));
    assert_eq!(Ear::new(&hub, key("x"), 13).revisions(), [14]);
}

#[test]
fn closing_wakes_everybody_with_the_first_reason() {
    let hub = WatchHub::new(rev(0), 100);
    let mut waiting = Ear::new(&hub, key("a"), 0);
    assert!(waiting.poll().is_pending());
    hub.close("the disk failed");
    hub.close("shut down");
    assert_eq!(waiting.bell.rung(), 1);
    for ear in [&mut waiting, &mut Ear::new(&hub, prefix(""), 0)] {
        assert_eq!(ear.poll(), Poll::Ready(Next::Closed("the disk failed".into())));
    }
}

#[test]
fn one_look_hands_out_and_goes_through_no_more_than_its_limits() {
    let hub = WatchHub::new(rev(0), 10_000);
    let _somebody = hub.subscribe(key("x"));
    (1..=200).for_each(|revision| publish(&hub, revision, &["a"]));
    let mut ear = Ear::new(&hub, key("a"), 0);
    let looks: Vec<usize> = std::iter::from_fn(|| Some(ear.revisions().len()).filter(|n| *n > 0)).collect();
    assert_eq!(looks, [FOUND_REVISIONS_MAX, FOUND_REVISIONS_MAX, FOUND_REVISIONS_MAX, 200 - 3 * FOUND_REVISIONS_MAX]);

    let passed = PASSED_REVISIONS_MAX as u64;
    (201..=200 + passed).for_each(|revision| publish(&hub, revision, &["b"]));
    publish(&hub, 201 + passed, &["c"]);
    let mut ear = Ear::new(&hub, key("c"), 200);
    assert_eq!(ear.poll(), Poll::Ready(Next::Batches(vec![], rev(200 + passed))), "it is to look again");
    assert_eq!(ear.revisions(), [201 + passed]);

    let large = |revision| [change(revision, 0, "a", FOUND_BYTES_MAX / 2)].into();
    let (first, second, third) = (large(202 + passed), large(203 + passed), large(204 + passed));
    hub.publish([first, second, third].into_iter());
    assert_eq!(Ear::new(&hub, key("a"), 201 + passed).revisions(), [202 + passed, 203 + passed]);
}

#[test]
fn what_is_kept_is_bounded_by_bytes_but_holds_the_newest_revision() {
    let hub = WatchHub::new(rev(0), 100);
    let _somebody = hub.subscribe(key("x"));
    let third = [change(1, 0, "a", KEPT_BYTES_MAX / 3)].into();
    hub.publish([third].into_iter());
    let third = [change(2, 0, "a", KEPT_BYTES_MAX / 3)].into();
    hub.publish([third].into_iter());
    assert_eq!(Ear::new(&hub, key("a"), 0).revisions(), [1], "both are kept, and a look is bounded too");
    let whole = [change(3, 0, "a", KEPT_BYTES_MAX)].into();
    hub.publish([whole].into_iter());
    assert_eq!(Ear::new(&hub, key("a"), 1).poll(), Poll::Ready(Next::Behind(rev(1))));
    assert_eq!(Ear::new(&hub, key("a"), 2).revisions(), [3]);
    let hub = hub.lock();
    assert_eq!(hub.kept_bytes, hub.kept[0].bytes());
}

/// A waker that ends a watch of the same hub when it is woken or dropped, as an executor's may.
struct Dropping {
    _watch: Subscription,
}

impl Wake for Dropping {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn a_waker_that_ends_another_watch_does_not_block_the_hub() {
    let hub = WatchHub::new(rev(0), 100);
    let watch = hub.subscribe(key("a"));
    let park = |place| {
        let waker = Waker::from(Arc::new(Dropping { _watch: hub.subscribe(prefix("")) }));
        assert!(watch.poll_next(rev(place), &mut Context::from_waker(&waker)).is_pending());
    };
    park(0);
    park(0);
    publish(&hub, 1, &["a"]);
    assert!(watch.poll_next(rev(0), &mut Context::from_waker(Waker::noop())).is_ready());
    park(1);
    hub.jump(rev(5));
    assert!(watch.poll_next(rev(5), &mut Context::from_waker(Waker::noop())).is_pending());
    park(5);
    hub.close("over");
    drop(watch);
    assert_eq!(hub.lock().watchers.len(), 0);
}

#[test]
fn nothing_is_left_of_watches_that_have_ended() {
    let hub = WatchHub::new(rev(0), 100);
    let ranges = || [key("a"), key("a"), prefix("a/"), prefix("b/"), range("x", "z"), prefix("")];
    let watches: Vec<Subscription> = ranges().into_iter().map(|keys| hub.subscribe(keys)).collect();
    drop(watches);
    let hub = hub.lock();
    let interest = &hub.interest;
    assert!(interest.by_key.is_empty() && interest.by_prefix.is_empty() && interest.prefix_lengths.is_empty());
}

/// Up to four bytes out of those where prefixes are delicate.
fn any_key(rng: &mut Choices) -> Bytes {
    let length = rng.below(5);
    (0..length).map(|_| [0, b'a', b'b', 0xfe, 0xff][rng.below(5) as usize]).collect()
}

fn any_range(rng: &mut Choices) -> KeyRange {
    match rng.below(5) {
        0 => KeyRange::single(any_key(rng)),
        1 => KeyRange::prefix(any_key(rng)),
        2 => KeyRange { start: any_key(rng), end: None },
        _ => KeyRange { start: any_key(rng), end: Some(any_key(rng)) },
    }
}

#[cfg(test)]
const SEEDS: [u64; 8] = [1, 2, 3, 5, 8, 13, 21, 34];

#[test]
fn those_found_for_a_key_are_exactly_those_whose_range_holds_it() {
    for seed in SEEDS {
        let mut rng = Choices::seeded(seed);
        let (mut interest, mut ranges) = (Interest::default(), BTreeMap::new());
        for id in 0..400 {
            let keys = any_range(&mut rng);
            interest.add(id, &keys);
            ranges.insert(id, keys);
            if rng.below(3) == 0 {
                let gone = *ranges.keys().nth(rng.below(ranges.len() as u64) as usize).expect("not empty");
                interest.remove(gone, &ranges.remove(&gone).expect("listed"));
            }
            let key = any_key(&mut rng);
            let mut found = Vec::new();
            interest.each(&key, |id| found.push(id));
            found.sort_unstable();
            let expected: Vec<u64> = ranges.iter().filter(|(_, keys)| keys.contains(&key)).map(|(id, _)| *id).collect();
            assert_eq!(found, expected, "seed {seed}, {key:?}");
        }
    }
}

#[test]
fn a_key_is_not_compared_with_ranges_that_lie_elsewhere() {
    let mut interest = Interest::default();
    for id in 0..10_000 {
        interest.add(id, &KeyRange::prefix(Bytes::from(format!("service-{id:05}/"))));
    }
    interest.add(10_000, &range("service-00300/x", "service-00300/z"));
    let listed: Vec<usize> = [&b"service-00300/"[..], b"service-00300/x", b"service"]
        .iter()
        .map(|prefix| interest.by_prefix.get(*prefix).map_or(0, BTreeMap::len))
        .collect();
    // The range "x".."z" of a service shares no more than that service's prefix.
    assert_eq!(listed, [2, 0, 0]);
    assert_eq!(interest.prefix_lengths.keys().copied().collect::<Vec<_>>(), [14]);
}

/// How long one publish takes with many watchers elsewhere: `cargo test --release publishing -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn publishing_beside_ten_thousand_watchers_of_other_ranges() {
    type Shape = (&'static str, fn(usize) -> KeyRange);
    let shapes: [Shape; 3] = [
        ("key", |id| KeyRange::single(Bytes::from(format!("service-{id:05}/leader")))),
        ("prefix", |id| KeyRange::prefix(Bytes::from(format!("service-{id:05}/")))),
        ("same_prefix", |_| KeyRange::prefix(Bytes::from_static(b"service-00007/"))),
    ];
    for (shape, keys) in shapes {
        for watchers in [0, 10_000] {
            let hub = WatchHub::new(rev(0), 8192);
            let mut ears: Vec<Ear> = (0..watchers).map(|id| Ear::new(&hub, keys(id), 0)).collect();
            ears.iter_mut().for_each(|ear| assert!(ear.poll().is_pending()));
            let rounds = 20_000;
            let started = crate::rt::Instant::now();
            (1..=rounds).for_each(|revision| publish(&hub, revision, &["service-00007/leader"]));
            let each = started.elapsed().as_nanos() / u128::from(rounds);
            println!("hub_publish watchers={watchers} of={shape} ns={each}");
        }
    }
}
