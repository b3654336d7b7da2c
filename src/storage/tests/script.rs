//! A fixed run of requests of every kind, which knows after each of them what the log has to be.

use std::sync::Mutex;

use super::*;

/// What a run asked for until the power failed.
pub(super) struct Run {
    /// Of the node, if its directory was made to the end.
    pub(super) node: Option<NodeId>,
    /// The log after no request, after the first, and so on.
    pub(super) states: Vec<Contents>,
    /// The requests that were answered, in the order of the answers, and whether well.
    pub(super) answers: Vec<(usize, bool)>,
}

impl Run {
    /// The number of the last request that was answered well.
    pub(super) fn answered(&self) -> usize {
        self.answers.iter().filter(|(_, well)| *well).map(|(number, _)| *number).max().unwrap_or(0)
    }

    /// Checks what a restart after this run has found; `when` says which.
    pub(super) fn check(&self, disk: &FaultDisk, when: &str) -> Contents {
        let opened = open(disk).unwrap_or_else(|error| panic!("{when}: {error}"));
        if let Some(node) = self.node {
            assert_eq!(opened.identity.node, node, "{when}: the node came back as another");
        }
        let found = Contents::of(&opened.log);
        let allowed = &self.states[self.answered()..];
        assert!(
            allowed.contains(&found),
            "{when}: request {} of {} was answered, but found is the log after {:?}: {found:#?}",
            self.answered(),
            self.states.len() - 1,
            self.states.iter().rposition(|state| *state == found),
        );
        found
    }
}

/// A rig that knows after each request what the log has to be.
struct Script {
    rig: Rig,
    states: Vec<Contents>,
    answers: Arc<Mutex<Vec<(usize, bool)>>>,
}

impl Script {
    fn now(&mut self, change: impl FnOnce(&mut Contents)) -> Done {
        let mut state = self.states.last().expect("it begins with the empty log").clone();
        change(&mut state);
        self.states.push(state);
        let (number, answers) = (self.states.len() - 1, self.answers.clone());
        Box::new(move |result| answers.lock().unwrap().push((number, result.is_ok())))
    }

    fn vote(&mut self, term: u64) {
        let done = self.now(|state| state.vote = Some(vote(term)));
        self.rig.log().save_vote(vote(term), done);
    }

    fn append(&mut self, range: std::ops::Range<u64>, term: u64, bytes: usize) {
        let entries: Vec<_> = range.map(|index| sized_entry(term, index, bytes)).collect();
        let done = self.now(|state| state.append(entries.clone()));
        self.rig.log().append(entries, done);
    }

    fn truncate(&mut self, keep: LogId) {
        drop(self.now(|state| state.truncate(Some(keep))));
        self.rig.log().truncate_after(Some(keep));
    }

    fn purge(&mut self, upto: LogId) {
        drop(self.now(|state| state.purge(upto)));
        self.rig.log().purge(upto);
    }

    fn committed(&mut self, at: LogId) {
        drop(self.now(|state| state.committed = Some(at)));
        self.rig.log().save_committed(Some(at));
    }
}

/// Makes a directory and uses it, until the end or until the power fails.
pub(super) fn run(disk: &FaultDisk) -> Run {
    let Ok(rig) = Rig::open(disk) else {
        return Run { node: None, states: vec![Contents::default()], answers: Vec::new() };
    };
    let node = Some(rig.opened.identity.node);
    let mut s = Script { rig, states: vec![Contents::default()], answers: Arc::default() };
    s.vote(1);
    s.append(0..3, 1, 0);
    s.rig.step();
    s.append(3..5, 1, 10);
    s.append(5..9, 1, 0);
    s.committed(log_id(1, 3));
    s.rig.step();
    s.truncate(log_id(1, 6));
    s.append(7..8, 2, 0);
    s.vote(2);
    s.append(8..30, 2, 900);
    s.rig.step();
    s.committed(log_id(1, 6));
    s.purge(log_id(1, 4));
    s.rig.settle();
    s.truncate(log_id(2, 12));
    s.rig.settle();
    s.append(13..14, 3, 30_000);
    s.truncate(log_id(2, 12));
    s.append(13..15, 4, 0);
    s.rig.step();
    s.purge(log_id(5, 40));
    s.committed(log_id(5, 40));
    s.append(41..43, 5, 0);
    s.vote(6);
    s.rig.step();
    // Round and round: segments are given up, wiped and used again.
    for index in 43..52 {
        s.append(index..index + 1, 5, 12_000);
        s.rig.step();
        s.purge(log_id(5, index - 1));
        s.rig.settle();
    }
    s.append(52..53, 5, 0);
    let done = s.now(|_| ());
    s.rig.log().close(done);
    s.rig.settle();
    // Whatever is still queued is dropped here, and answered by that.
    let Script { rig, states, answers } = s;
    drop(rig);
    let answers = std::mem::take(&mut *answers.lock().unwrap());
    Run { node, states, answers }
}
