//! Random histories, watched: every watcher must find what a plain list of them says.

use super::*;

/// What a watcher must find, kept as a plain list.
#[derive(Default)]
struct Model {
    /// The keys each revision changed; `None` where a jump hid them.
    revisions: Vec<Option<Vec<Bytes>>>,
    kept_after: u64,
    kept_max: u64,
}

impl Model {
    fn revision(&self) -> u64 {
        self.revisions.len() as u64
    }

    /// The revisions after `from` up to `to` that concern `keys`, hidden ones included.
    fn concerning(&self, keys: &KeyRange, from: u64, to: u64) -> Vec<u64> {
        let concerns = |revision: &u64| {
            let changed = &self.revisions[*revision as usize - 1];
            changed.as_ref().is_none_or(|changed| changed.iter().any(|key| keys.contains(key)))
        };
        (from + 1..=to.min(self.revision())).filter(concerns).collect()
    }

    /// Nothing is kept where nobody is there to be given it.
    fn publish(&mut self, hub: &WatchHub, rng: &mut Choices, is_watched: bool) {
        let revision = self.revision() + 1;
        let keys: Vec<Bytes> = (0..=rng.below(3)).map(|_| any_key(rng)).collect();
        let changes: Vec<Change> = keys
            .iter()
            .enumerate()
            .map(|(n, key)| Change { key: key.clone(), ..change(revision, n as u32, "", 1) })
            .collect();
        hub.publish([changes.into()].into_iter());
        self.revisions.push(Some(keys));
        let kept = if is_watched { self.kept_max } else { 0 };
        self.kept_after = self.kept_after.max(revision.saturating_sub(kept));
    }

    fn jump(&mut self, hub: &WatchHub, by: u64) {
        let to = self.revision() + by;
        hub.jump(rev(to));
        self.revisions.resize_with(to as usize, || None);
        self.kept_after = to;
    }
}

/// One watcher of the model test.
struct Checked {
    ear: Ear,
    keys: KeyRange,
    /// Its last look left it waiting; so it has seen everything up to here.
    waiting_at: Option<u64>,
}

impl Checked {
    fn check(&mut self, model: &Model, seen: &mut Marks, context: &str) {
        let place = self.ear.place.get();
        let woken = self.ear.bell.rung() > 0;
        if let Some(at) = self.waiting_at {
            let stirred = !model.concerning(&self.keys, place.max(at), model.revision()).is_empty();
            // Whoever waits for the future may be woken early.
            let early = place > at;
            assert!(early || woken == stirred, "woken wrongly, {context}");
        }
        let settled = self.ear.watch.settled(self.ear.place).get();
        assert_eq!(model.concerning(&self.keys, place, settled), Vec::<u64>::new(), "settled at {settled}, {context}");
        match self.ear.poll() {
            Poll::Pending => {
                assert_eq!(model.concerning(&self.keys, place, model.revision()), Vec::<u64>::new(), "{context}");
                self.waiting_at = Some(model.revision());
                seen.pending += 1;
            }
            Poll::Ready(Next::Batches(found, to)) => {
                let found: Vec<u64> = found.iter().map(|batch| batch.revision.get()).collect();
                assert_eq!(found, model.concerning(&self.keys, place, to.get()), "to {to}, {context}");
                self.waiting_at = None;
                seen.found += found.len();
            }
            Poll::Ready(Next::Behind(at)) => {
                assert!(at.get() < model.kept_after, "at {at}, kept after {}, {context}", model.kept_after);
                assert_eq!(model.concerning(&self.keys, place, at.get()), Vec::<u64>::new(), "at {at}, {context}");
                // One that waited for the future may have been stirred by what came before it, and cannot tell any more.
                if self.waiting_at.take().is_some_and(|waited| place <= waited) {
                    let lost = model.concerning(&self.keys, at.get(), model.kept_after);
                    assert!(!lost.is_empty(), "behind for nothing, {context}");
                    seen.behind_after_waiting += 1;
                }
                self.ear.place = rev(model.revision());
                seen.behind += 1;
            }
            Poll::Ready(other) => panic!("{other:?}, {context}"),
        }
    }
}

/// A test that never meets a case proves nothing about it.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pending: usize,
    found: usize,
    behind: usize,
    behind_after_waiting: usize,
    in_future: usize,
}

/// Most steps of one run.
const STEPS: usize = 3000;

/// Publishes, jumps, watches and looks as these choices say, as long as there are any; panics where a watcher finds
/// something else than the list has.
pub(crate) fn run(name: &str, mut rng: Choices, marks: &mut Marks) {
    let kept_max = 1 + rng.below(40);
    let hub = WatchHub::new(rev(0), kept_max as usize);
    let mut model = Model { kept_max, ..Model::default() };
    let mut watchers: Vec<Checked> = Vec::new();
    for step in 0..STEPS {
        if !rng.more() {
            break;
        }
        let context = format!("{name}, step {step}");
        match rng.below(20) {
            0 => {
                let keys = any_range(&mut rng);
                // Mostly from now, sometimes from the past or the future.
                let place = match rng.below(4) {
                    0 => rng.below(model.revision() + 1),
                    1 => model.revision() + rng.below(30),
                    _ => model.revision(),
                };
                marks.in_future += usize::from(place > model.revision());
                watchers.push(Checked { ear: Ear::new(&hub, keys.clone(), place), keys, waiting_at: None });
            }
            1 if watchers.len() > 20 => drop(watchers.swap_remove(rng.below(20) as usize)),
            2 if rng.one_in(5) => model.jump(&hub, 1 + rng.below(20)),
            3..=11 => model.publish(&hub, &mut rng, !watchers.is_empty()),
            _ => {
                let count = watchers.len() as u64;
                if let Some(watcher) = watchers.get_mut(rng.below(count.max(1)) as usize) {
                    watcher.check(&model, marks, &context);
                }
            }
        }
    }
}

#[test]
fn under_random_histories_every_watcher_finds_what_a_plain_list_says() {
    let mut marks = Marks::default();
    for seed in SEEDS {
        run(&format!("seed {seed}"), Choices::seeded(seed), &mut marks);
    }
    let Marks { pending, found, behind, behind_after_waiting, in_future } = marks;
    assert!([pending, found, behind, behind_after_waiting, in_future].iter().all(|n| *n > 50), "{marks:?}");
}
