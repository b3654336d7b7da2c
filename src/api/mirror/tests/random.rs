//! Mirrors on all nodes under random writes, faults and pauses, against the committed history.

use std::collections::BTreeMap;

use futures::future::join_all;

use super::*;
use crate::api::testing::Dice;
use crate::api::watch::Event;
use crate::rt::Mark;
use crate::rt::marks::counts;
use crate::{Batch, Keys};

const KEYS: u64 = 12;

type State = BTreeMap<String, (u64, Revision)>;

/// A key and what it holds since, or why it is gone.
type Fate = (String, Result<u64, Cause>);

/// What was committed, revision by revision.
#[derive(Default)]
struct History(BTreeMap<Revision, Vec<Fate>>);

impl History {
    fn add(&mut self, batch: Batch<u64>) {
        let told = batch.events.into_iter().map(|event| match event {
            Event::Put { key, entry, .. } => (key, Ok(entry.value)),
            Event::Delete { key, cause, .. } => (key, Err(cause)),
        });
        self.0.insert(batch.revision, told.collect());
    }

    fn state(&self, at: Revision, watched: impl Fn(&str) -> bool) -> State {
        let mut state = State::new();
        let told = self.0.range(..=at).flat_map(|(revision, told)| told.iter().map(move |one| (revision, one)));
        for (revision, (key, now)) in told.filter(|(_, (key, _))| watched(key)) {
            match now {
                Ok(value) => state.insert(key.clone(), (*value, *revision)),
                Err(_) => state.remove(key),
            };
        }
        state
    }

    /// Why `key` was deleted, each time behind `after` and up to `until`.
    fn causes(&self, key: &str, after: Revision, until: Revision) -> Vec<Cause> {
        let told = self.0.range(after.next()..=until).flat_map(|(_, told)| told);
        told.filter(|(other, _)| other == key).filter_map(|(_, now)| now.as_ref().err().copied()).collect()
    }
}

fn state_of(mirrored: &Mirrored<u64>) -> State {
    mirrored.iter().map(|(key, entry)| (key.clone(), (entry.value, entry.modified))).collect()
}

/// Which keys a mirror shows.
#[derive(Copy, Clone, Debug)]
enum Part {
    All,
    One,
    Some,
}

impl Part {
    fn keys(self) -> Keys {
        match self {
            Part::All => prefix("k/"),
            Part::One => "k/03".into(),
            Part::Some => ("k/02".."k/07").into(),
        }
    }

    fn has(self, key: &str) -> bool {
        match self {
            Part::All => true,
            Part::One => key == "k/03",
            Part::Some => ("k/02".."k/07").contains(&key),
        }
    }
}

/// One handle and everything it was shown.
struct Reader {
    name: String,
    part: Part,
    mirror: Mirror<u64>,
    dice: Dice,
    /// States, and up to where they were said to be complete.
    states: Vec<(Arc<Mirrored<u64>>, Revision)>,
    deltas: Vec<(Arc<Mirrored<u64>>, Delta<u64>)>,
}

impl Reader {
    /// Looks again and again, in one way or another, until it has seen `end`, once that is known.
    async fn read(mut self, end: watch::Receiver<Revision>) -> Self {
        let mut seen = self.mirror.load();
        loop {
            match self.dice.roll(6) {
                0 => rt::sleep(ms(self.dice.roll(400))).await,
                1 => self.look(),
                2 => seen = self.mirror.borrow_and_update(),
                3 if self.dice.roll(3) == 0 => {
                    let mut part = self.mirror.clone();
                    let wait = part.wait_for(|state| state.len() == 2);
                    if let Ok(state) = rt::timeout(ms(50), wait).await {
                        assert_eq!(state.expect("the node runs").len(), 2);
                    }
                }
                _ => {
                    let patience = ms(self.dice.roll(100));
                    if let Ok(delta) = rt::timeout(patience, self.mirror.changed()).await {
                        let delta = delta.unwrap_or_else(|error| panic!("{}: {error}", self.name));
                        let now = delta.snapshot().clone();
                        self.deltas.push((std::mem::replace(&mut seen, now), delta));
                    } else if !self.mirror.has_changed() {
                        // What it passed over came to nothing.
                        seen = self.mirror.borrow_and_update();
                    }
                }
            }
            if end.borrow() > Revision::ZERO && self.mirror.revision() >= end.borrow() {
                self.look();
                return self;
            }
            // Of no interest to a quiet mirror, unless it is asked.
            let _ = rt::timeout(ms(20), self.mirror.at_least(end.borrow())).await;
        }
    }

    fn look(&mut self) {
        let place = self.mirror.revision();
        self.states.push((self.mirror.load(), place));
    }

    fn check(&self, history: &History, unknown: &mut usize, known: &mut usize) {
        let (name, part) = (&self.name, self.part);
        let expected = |at| history.state(at, |key| part.has(key));
        for (state, place) in &self.states {
            let at = state.revision();
            assert_eq!(state_of(state), expected(at), "{name} at {at}");
            assert_eq!(expected(at), expected(at.max(*place)), "{name} at {at}, which is said to last until {place}");
        }
        for (before, delta) in &self.deltas {
            let after = delta.snapshot();
            let at = format!("{name} from {} to {}", before.revision(), after.revision());
            assert!(before.revision() < after.revision(), "{at}");
            assert_eq!(state_of(after), expected(after.revision()), "{at}");
            let mut walked = state_of(before);
            for change in delta {
                let value = |entry: &Arc<crate::Entry<u64>>| (entry.value, entry.modified);
                let (key, now) = (change.key(), change.entry().map(value));
                assert_eq!(change.before().map(value), walked.get(key).copied(), "{at}, {key}");
                assert_ne!(walked.get(key).copied(), now, "{at}, {key} is as it was");
                match now {
                    Some(now) => walked.insert(key.clone(), now),
                    None => walked.remove(key),
                };
                match (change.is_delete(), change.cause()) {
                    (false, cause) => assert_eq!(cause, None, "{at}, {key}"),
                    (true, None) => *unknown += 1,
                    (true, Some(cause)) => {
                        let causes = history.causes(key, before.revision(), after.revision());
                        assert!(causes.contains(&cause), "{at}, {key}: {cause:?} of {causes:?}");
                        *known += 1;
                    }
                }
            }
            assert_eq!(walked, state_of(after), "{at}");
        }
    }
}

/// Writes for a while, whatever comes of it; now and then so much at once that mirrors fall behind.
async fn write(node: Cluster, mut dice: Dice) {
    let timeout = ms(1500);
    for _ in 0..70 {
        let key = format!("k/{:02}", dice.roll(KEYS));
        match dice.roll(12) {
            0..=2 => drop(node.delete(&key).timeout(timeout).await),
            3 => drop(node.delete("k/00".."k/05").timeout(timeout).await),
            4..=5 => drop(node.set(&key, &dice.roll(100)).ttl(ms(1 + dice.roll(300))).timeout(timeout).await),
            6 => {
                let txn = node.transaction().then(put("k/03", &dice.roll(100))).then(put("k/09", &dice.roll(100)));
                drop(txn.then(remove("k/05")).timeout(timeout).await);
            }
            7 => {
                let burst = (0..16).map(|_| {
                    let (key, value) = (format!("k/{:02}", dice.roll(KEYS)), dice.roll(100));
                    let (node, deletes) = (&node, dice.roll(2) == 0);
                    async move {
                        match deletes {
                            true => drop(node.delete(&key).timeout(timeout).await),
                            false => drop(node.set(&key, &value).timeout(timeout).await),
                        }
                    }
                });
                join_all(burst.collect::<Vec<_>>()).await;
            }
            _ => drop(node.set(&key, &dice.roll(100)).timeout(timeout).await),
        }
        rt::sleep(ms(dice.roll(60))).await;
    }
}

/// Follows everything, losing nothing, until it has seen `end`.
async fn historian(
    mut watch: crate::Watch<u64>,
    place: watch::Sender<Revision>,
    end: watch::Receiver<Revision>,
) -> History {
    let mut history = History::default();
    loop {
        if let Ok(batch) = rt::timeout(ms(20), watch.next()).await {
            history.add(batch.expect("the node runs").expect("nothing is forgotten that it has not seen"));
        }
        place.send(watch.revision());
        if end.borrow() > Revision::ZERO && watch.revision() >= end.borrow() {
            return history;
        }
    }
}

/// A partition that a snapshot ends, a panic of the core, and history forgotten up to where the historian is.
async fn fault(trio: &Trio, dice: &mut Dice, seen: Revision) {
    let (leader, follower, _) = trio.roles().await;
    match dice.roll(4) {
        0 => {
            trio.isolate(leader);
            rt::sleep(ms(500 + dice.roll(1000))).await;
        }
        1 => {
            trio.isolate(follower);
            rt::sleep(ms(1000)).await;
            trio.nodes[leader].node().purge_log_now().await;
        }
        2 => trio.nodes[dice.roll(3) as usize].node().panic_core().await,
        _ => {
            let floor = crate::command::Command::Compact { floor: seen };
            let _ = trio.nodes[leader].node().housekeep(floor, ms(1000)).await;
        }
    }
    trio.network.heal();
}

async fn run(seed: u64, unknown: &mut usize, known: &mut usize) {
    let trio = Trio::tuned(|settings| settings.watch_revisions = 6).await;
    trio.network.delay(ms(1));
    let mut dice = Dice(seed);
    let (end, ended) = watch::channel(Revision::ZERO);
    let (place, seen) = watch::channel(Revision::ZERO);
    let all = trio.nodes[0].watch::<u64>(prefix("k/")).from(Revision::new(1)).backpressure().await.unwrap();
    let historian = rt::spawn("historian", historian(all, place, ended.clone()));
    let writers: Vec<_> =
        trio.nodes.iter().map(|node| rt::spawn("writer", write(node.clone(), Dice(dice.roll(1 << 40))))).collect();
    let mut readers = Vec::new();
    for n in 0..9 {
        let part = [Part::All, Part::Some, Part::One][n / 3];
        let mirror = trio.nodes[n % 3].mirror::<u64>(part.keys()).stale().await.unwrap();
        let name = format!("seed {seed}, mirror {n} of {part:?}");
        let own = Dice(dice.roll(1 << 40));
        let reader = Reader { name, part, mirror, dice: own, states: Vec::new(), deltas: Vec::new() };
        readers.push(rt::spawn("reader", reader.read(ended.clone())));
        rt::sleep(ms(100)).await;
        fault(&trio, &mut dice, seen.borrow()).await;
    }
    for writer in writers {
        writer.await.expect("no panic");
    }
    // Outlives every time to live.
    rt::sleep(ms(3000)).await;
    let leader = trio.leader().await;
    end.send(trio.nodes[leader].set("k/99", &0u64).timeout(HUNG).await.expect("all is well").revision);
    let history = rt::timeout(HUNG, historian).await.expect("the historian is silent").expect("no panic");
    for reader in readers {
        let reader = rt::timeout(HUNG, reader).await.expect("a mirror is silent").expect("no panic");
        assert!(reader.states.len() + reader.deltas.len() > 3, "{} has seen nothing", reader.name);
        reader.check(&history, unknown, known);
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_every_state_is_one_that_was_committed_and_every_change_leads_to_the_next() {
    let before = counts();
    let (mut unknown, mut known) = (0, 0);
    for seed in 1..=5 {
        run(seed, &mut unknown, &mut known).await;
    }
    let happened = |mark: Mark| counts()[mark as usize] - before[mark as usize];
    let met = [happened(Mark::WatchLagged), happened(Mark::SnapshotInstalled), unknown as u64, known as u64];
    println!("lags, snapshots, deletions of unknown and of known cause: {met:?}");
    assert!(met.iter().all(|count| *count > 0), "{met:?}");
}
