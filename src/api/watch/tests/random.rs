//! Watchers of all kinds on all nodes under random writes, faults and pauses, against the committed history (W1 to W8,
//! W13): what etcd's `validateWatch` does.

use std::collections::BTreeMap;
use std::ops::Range;

use super::*;
use crate::api::keys::{Keys, prefix, shown};
use crate::codec;
use crate::command::{Change, ChangeKind};

/// A generator of its own, so that a seed names the same run everywhere (Steele, Lea, Flood 2014: "SplitMix").
#[derive(Clone)]
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Everything that can be told of a live key.
type Told = (u64, Revision, Revision, u64);

/// The committed history, replayed: what each revision did, and what was there after it.
struct History {
    changes: BTreeMap<Revision, Vec<Change>>,
}

impl History {
    /// Read from a node that has forgotten nothing.
    fn of(cluster: &Cluster) -> Self {
        let view = cluster.node().state().view();
        let (changes, complete) =
            view.changes(Revision::new(1)..=view.revision, usize::MAX).expect("nothing compacted");
        assert_eq!(complete, view.revision);
        let mut history = History { changes: BTreeMap::new() };
        for change in changes {
            history.changes.entry(change.id.revision).or_default().push(change);
        }
        history
    }

    /// The host's keys as of `revision`, or right before it.
    fn state(&self, revision: Revision, before: bool) -> BTreeMap<String, Told> {
        let mut state = BTreeMap::new();
        let until = self.changes.range(..=revision).filter(|(at, _)| !before || **at < revision);
        for change in until.flat_map(|(_, changes)| changes) {
            let key = shown(&change.key);
            match change.kind {
                ChangeKind::Put => state.insert(key.clone(), told(&key, change)),
                _ => state.remove(&key),
            };
        }
        state
    }
}

fn told(key: &str, change: &Change) -> Told {
    let value = codec::decode::<u64>(key, &change.value).expect("only numbers are written");
    (value, change.created, change.id.revision, change.version)
}

fn told_by(entry: &Entry<u64>) -> Told {
    (entry.value, entry.created, entry.modified, entry.version)
}

/// What happened at least once over all seeds. A test that never meets a case proves nothing about it.
#[derive(Debug, Default)]
struct Marks {
    initial: usize,
    live: usize,
    resync: usize,
    expired: usize,
    deleted: usize,
    previous: usize,
}

/// One watcher, and everything it was given.
struct Recorder {
    name: String,
    keys: KeyRange,
    prev: bool,
    lossless: bool,
    /// The first revision it may be given.
    from: Revision,
    batches: Vec<Batch<u64>>,
    /// The place it told of behind each batch.
    places: Vec<Revision>,
}

impl Recorder {
    fn check(&self, history: &History, marks: &mut Marks) {
        let mut next = self.from;
        for (batch, place) in self.batches.iter().zip(&self.places) {
            let context = format!("{}, revision {}", self.name, batch.revision);
            assert!(batch.revision >= next, "{context}: expected {next} or later");
            match batch.kind {
                BatchKind::Live => {
                    self.assert_nothing_in(next..batch.revision, history, &context);
                    self.check_live(batch, history, marks, &context);
                }
                kind => {
                    assert!(kind == BatchKind::Initial || !self.lossless, "{context}: {kind:?}");
                    self.check_list(batch, history, &context);
                    *(if kind == BatchKind::Initial { &mut marks.initial } else { &mut marks.resync }) += 1;
                }
            }
            assert!(*place >= batch.revision, "{context}: place {place}");
            next = place.next();
            self.assert_nothing_in(batch.revision.next()..next, history, &context);
        }
        let end = history.changes.keys().next_back().expect("something was written").next();
        self.assert_nothing_in(next..end.max(next), history, &format!("{}, at the end", self.name));
    }

    /// Of the watched keys.
    fn assert_nothing_in(&self, revisions: Range<Revision>, history: &History, context: &str) {
        for (revision, changes) in history.changes.range(revisions) {
            let mine = changes.iter().find(|change| self.keys.contains(&change.key));
            assert!(mine.is_none(), "{context}: revision {revision} was passed over: {mine:?}");
        }
    }

    fn check_live(&self, batch: &Batch<u64>, history: &History, marks: &mut Marks, context: &str) {
        let state = history.state(batch.revision, true);
        let changes = &history.changes[&batch.revision];
        let mine: Vec<&Change> = changes.iter().filter(|change| self.keys.contains(&change.key)).collect();
        assert_eq!(batch.events.len(), mine.len(), "{context}: {batch:?}");
        for (event, change) in batch.events.iter().zip(mine) {
            let key = shown(&change.key);
            let expected_prev = state.get(&key).copied().filter(|_| self.prev);
            let prev = match event {
                Event::Put { key: named, entry, prev } => {
                    assert_eq!((named, change.kind), (&key, ChangeKind::Put), "{context}");
                    assert_eq!(told_by(entry), told(&key, change), "{context}, {key}");
                    prev
                }
                Event::Delete { key: named, cause, revision, prev } => {
                    let kind = if *cause == Cause::Expired { ChangeKind::Expired } else { ChangeKind::Deleted };
                    assert_eq!((named, change.kind, *revision), (&key, kind, batch.revision), "{context}");
                    *(if kind == ChangeKind::Expired { &mut marks.expired } else { &mut marks.deleted }) += 1;
                    prev
                }
            };
            assert_eq!(prev.as_ref().map(told_by), expected_prev, "{context}, {key}");
            marks.previous += usize::from(prev.is_some());
        }
        marks.live += 1;
    }

    fn check_list(&self, batch: &Batch<u64>, history: &History, context: &str) {
        let mut state = history.state(batch.revision, false);
        state.retain(|key, _| self.keys.contains(&crate::api::keys::stored_key(key).expect("it was written")));
        let listed: Vec<(String, Told)> = batch
            .events
            .iter()
            .map(|event| (event.key().to_owned(), told_by(event.entry().expect("only puts are listed"))))
            .collect();
        assert_eq!(listed, state.into_iter().collect::<Vec<_>>(), "{context}");
    }
}

/// Polls at its own pace until it has been given everything up to `end`, once that is known.
async fn record(
    mut watch: Watch<u64>,
    mut recorder: Recorder,
    mut rng: SplitMix,
    slow: bool,
    end: rt::watch::Receiver<Revision>,
) -> Recorder {
    loop {
        if slow && rng.below(4) == 0 {
            rt::sleep(Duration::from_millis(rng.below(400))).await;
        }
        match rt::timeout(Duration::from_millis(100), watch.next()).await {
            Ok(Some(Ok(batch))) => {
                recorder.batches.push(batch);
                recorder.places.push(watch.revision());
            }
            Ok(other) => panic!("{}: {other:?}", recorder.name),
            Err(_) if end.borrow() > Revision::ZERO && watch.revision() >= end.borrow() => return recorder,
            Err(_) => {}
        }
    }
}

/// Writes for a while, whatever comes of it.
async fn write(node: Cluster, mut rng: SplitMix, place: u64) -> Vec<(Revision, String, u64)> {
    let mut written = Vec::new();
    for n in 0..120 {
        let (key, value) = (format!("{}/{}", ["k", "l"][rng.below(2) as usize], rng.below(5)), n * 10 + place);
        let timeout = Duration::from_millis(1500);
        match rng.below(10) {
            0 => drop(node.delete(&key).timeout(timeout).await),
            1 => drop(node.delete(prefix("k/")).timeout(timeout).await),
            2..=3 => {
                let ttl = Duration::from_millis(1 + rng.below(300));
                drop(node.set(&key, &value).ttl(ttl).timeout(timeout).await);
            }
            4 => {
                let txn = node.transaction().then(put("k/0", &value)).then(put("l/0", &value)).then(remove("k/1"));
                drop(txn.timeout(timeout).await);
            }
            _ => {
                if let Ok(done) = node.set(&key, &value).timeout(timeout).await {
                    written.push((done.revision, key, value));
                }
            }
        }
        if rng.below(8) == 0 {
            rt::sleep(Duration::from_millis(rng.below(60))).await;
        }
    }
    written
}

async fn opened(group: &Group, rng: &mut SplitMix, seed: u64, n: usize) -> (Watch<u64>, Recorder) {
    let node = &group.nodes[n % 3];
    let keys: Keys = match rng.below(4) {
        0 => "k/0".into(),
        1 => prefix("k/"),
        2 => ("k/2".."l/3").into(),
        _ => (..).into(),
    };
    let (prev, lossless, initial) = (rng.below(2) == 0, rng.below(2) == 0, rng.below(2) == 0);
    let from = Revision::new(1 + rng.below(node.status().revision.get() + 1));
    let mut builder = node.watch::<u64>(keys.clone());
    builder = if prev { builder.prev() } else { builder };
    builder = if lossless { builder.backpressure() } else { builder.coalesce() };
    builder = if initial { builder.with_initial() } else { builder.from(from) };
    let name = format!("seed {seed}, watcher {n} of {keys:?}, prev {prev}, lossless {lossless}, initial {initial}");
    let watch = builder.await.unwrap_or_else(|error| panic!("{name}: {error}"));
    let from = if initial { Revision::ZERO } else { from };
    let keys = keys.stored().expect("valid");
    (watch, Recorder { name, keys, prev, lossless, from, batches: vec![], places: vec![] })
}

async fn run(seed: u64, marks: &mut Marks) {
    let group = three(|settings| settings.watch_revisions = 24).await;
    let mut rng = SplitMix(seed);
    let (end, ended) = rt::watch::channel(Revision::ZERO);
    let mut recorders = Vec::new();
    let mut writers = Vec::new();
    for (place, node) in group.nodes.iter().enumerate() {
        let rng = SplitMix(rng.below(u64::MAX));
        writers.push(rt::spawn("writer", write(node.clone(), rng, place as u64)));
    }
    for n in 0..24 {
        let (watch, recorder) = opened(&group, &mut rng, seed, n).await;
        let own = SplitMix(rng.below(u64::MAX));
        recorders.push(rt::spawn("recorder", record(watch, recorder, own, n % 2 == 0, ended.clone())));
        rt::sleep(Duration::from_millis(rng.below(100))).await;
        if n % 8 == 3 {
            let leader = group.leader().await;
            group.network.isolate(format!("node-{}", leader + 1));
            rt::sleep(Duration::from_millis(500 + rng.below(1000))).await;
            group.network.heal();
        }
    }
    let mut written = Vec::new();
    for writer in writers {
        written.extend(writer.await.expect("no panic"));
    }
    // Outlives every time to live; and nobody is behind any more.
    rt::sleep(Duration::from_secs(3)).await;
    let leader = group.leader().await;
    let last = group.nodes[leader].set("end", &0u64).await.expect("all is well").revision;
    end.send(last);
    let mut recorded = Vec::new();
    for recorder in recorders {
        recorded.push(rt::timeout(HUNG, recorder).await.expect("a watcher is silent").expect("no panic"));
    }
    let histories: Vec<History> = group.nodes.iter().map(History::of).collect();
    for history in &histories {
        assert_eq!(history.changes, histories[0].changes, "seed {seed}");
    }
    for (revision, key, value) in written {
        let put = histories[0].changes[&revision].iter().find(|change| shown(&change.key) == key);
        assert_eq!(put.map(|change| told(&key, change).0), Some(value), "seed {seed}, revision {revision}");
    }
    recorded.iter().for_each(|recorder| recorder.check(&histories[0], marks));
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_every_watcher_is_given_exactly_what_was_committed() {
    let mut marks = Marks::default();
    for seed in [1, 2, 3] {
        run(seed, &mut marks).await;
    }
    let Marks { initial, live, resync, expired, deleted, previous } = marks;
    println!("{marks:?}");
    assert!([initial, live, resync, expired, deleted, previous].iter().all(|n| *n > 10), "{marks:?}");
}
