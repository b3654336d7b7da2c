//! Random requests against the log and the simplest thing that behaves like one, with reads, restarts and power failures
//! in between.

use super::script::Script;
use super::*;
use crate::choices::Choices;
use crate::format::log_items::entry_bytes;
use crate::storage::fault_disk::PowerLoss;
use crate::storage::tail::Budget;

/// Most requests of one run.
const ROUNDS: usize = 150;

const MODES: [PowerLoss; 5] =
    [PowerLoss::DropAll, PowerLoss::Subset(50), PowerLoss::Prefix, PowerLoss::Subset(90), PowerLoss::KeepAll];

/// Asks for what these choices say, as long as there are any; panics where the log is not what the requests made of it.
pub(crate) fn run(name: &str, mut rng: Choices, marks: &mut Marks) {
    let disk = FaultDisk::new(rng.below(1 << 32));
    let rig = Rig::open(&disk).expect("a new directory can be opened");
    let mut run = Run { rng, term: 1, script: Script::new(rig, Contents::default()), disk };
    for round in 0..ROUNDS {
        if !run.rng.more() {
            break;
        }
        let context = format!("{name}, round {round}");
        run = run.round(&context, marks);
        run.compare(&context);
    }
}

/// What has happened at least once. A test that never meets a torn commit proves nothing about one.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    truncated: usize,
    purged: usize,
    closed: usize,
    failures: usize,
    /// Power failures that took away requests which nobody had been told were done.
    lost: usize,
}

struct Run {
    rng: Choices,
    term: u64,
    script: Script,
    disk: FaultDisk,
}

impl Run {
    fn round(mut self, context: &str, marks: &mut Marks) -> Self {
        self.script.rig.log().limit_tail(self.rng.below(2000) as usize);
        match self.rng.below(16) {
            0..=4 => self.append(),
            5 => self.truncate(marks),
            6 => self.purge(marks),
            7 => self.script.vote(self.rng.below(100)),
            8 | 9 => {
                let state = self.script.state();
                if let Some(at) = state.last().max(state.committed) {
                    self.script.committed(at);
                }
            }
            10 | 11 => self.script.rig.log().applied(self.rng.below(self.script.state().next() + 1)),
            12..=14 => drop(self.script.rig.step()),
            _ => return self.restart(context, marks),
        }
        self
    }

    fn append(&mut self) {
        let (next, count) = (self.script.state().next(), self.rng.below(5));
        let entries = (next..next + count).map(|index| sized_entry(self.term, index, self.rng.below(300) as usize));
        let entries = entries.collect();
        self.script.append_entries(entries);
    }

    fn truncate(&mut self, marks: &mut Marks) {
        let state = self.script.state();
        let floor = state.purged.max(state.committed).map_or(0, |kept| kept.index + 1);
        let from = floor + self.rng.below((state.next() + 2).saturating_sub(floor).max(1));
        let keep = from.checked_sub(1).map(|index| match state.purged.filter(|purged| purged.index == index) {
            Some(purged) => purged,
            None => state.entries.get(&index).map_or(log_id(self.term, index), |entry| entry.log_id),
        });
        marks.truncated += usize::from(from < state.next());
        self.script.truncate_after(keep);
        self.term += 1;
    }

    fn purge(&mut self, marks: &mut Marks) {
        let state = self.script.state();
        let Some(committed) = state.committed else { return };
        let ahead = if self.rng.one_in(8) { 20 } else { 0 };
        let index = committed.index.saturating_sub(self.rng.below(6)) + ahead;
        let upto = state.entries.get(&index).map_or(log_id(self.term, index), |entry| entry.log_id);
        if state.purged.is_none_or(|purged| purged.index < index) {
            marks.purged += 1;
            self.script.purge(upto);
        }
    }

    /// Ends and begins anew: in order, after everything was done, or in the middle of it.
    fn restart(self, context: &str, marks: &mut Marks) -> Self {
        let Run { mut rng, term, mut script, disk } = self;
        let power = rng.one_in(2);
        match rng.below(3) {
            0 => {
                script.close();
                marks.closed += 1;
            }
            1 => script.rig.settle(),
            // In the middle of what is queued ...
            _ if power => {
                disk.die_at(rng.below(12));
                let _ = script.rig.step();
            }
            // ... or with all of it dropped.
            _ => {}
        }
        let expected = script.state().clone();
        if power {
            // First, so that the end of the process writes nothing more.
            disk.power_loss(rng.pick(&MODES));
            marks.failures += 1;
        }
        let ended = script.end();
        let rig = Rig::open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
        let found = rig.contents();
        ended.check_found(&found, context);
        marks.lost += usize::from(found != expected);
        // Terms only go up: what was lost may have been of this one.
        Run { rng, term: term + 1, script: Script::new(rig, found), disk }
    }

    fn compare(&mut self, context: &str) {
        let state = self.script.state();
        assert_eq!(self.script.rig.contents(), *state, "{context}");
        let (start, len) = (self.rng.below(state.next() + 3), self.rng.below(20));
        let bytes_max = self.rng.below(3000) as usize;
        let read = self.script.rig.log().entries(start..start + len, bytes_max).expect("the log can be read");
        let mut budget = Budget::new(bytes_max);
        let expected = state.entries.range(start..start + len).map(|(_, entry)| entry.clone());
        let expected: Vec<_> = expected.take_while(|entry| budget.admits(entry_bytes(entry))).collect();
        assert_eq!(read, expected, "{context}, {start} + {len}, {bytes_max} bytes");
    }
}

#[test]
fn the_log_is_what_the_same_requests_make_of_a_map_whenever_the_power_fails() {
    let mut marks = Marks::default();
    for seed in 0..30 {
        run(&format!("seed {seed}"), Choices::seeded(seed), &mut marks);
    }
    let Marks { truncated, purged, closed, failures, lost } = marks;
    assert!([truncated, purged, closed, failures, lost].iter().all(|n| *n > 20), "{marks:?}");
}
