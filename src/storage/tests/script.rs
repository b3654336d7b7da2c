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
        self.check_found(&found, when);
        found
    }

    /// Checks that the log is one of those that the requests made, and no older than what was answered.
    pub(super) fn check_found(&self, found: &Contents, when: &str) {
        assert!(
            self.states[self.answered()..].contains(found),
            "{when}: request {} of {} was answered, but found is the log after {:?}: {found:#?}",
            self.answered(),
            self.states.len() - 1,
            self.states.iter().rposition(|state| state == found),
        );
    }
}

/// A rig that knows after each request what the log has to be.
pub(super) struct Script {
    pub(super) rig: Rig,
    states: Vec<Contents>,
    answers: Arc<Mutex<Vec<(usize, bool)>>>,
}

impl Script {
    /// Goes on with a log that is as `found` says.
    pub(super) fn new(rig: Rig, found: Contents) -> Self {
        Script { rig, states: vec![found], answers: Arc::default() }
    }

    /// What the log has to be.
    pub(super) fn state(&self) -> &Contents {
        self.states.last().expect("it begins with what was found")
    }

    /// Drops the rig, with whatever is still queued, which is answered by that.
    pub(super) fn end(self) -> Run {
        let Script { rig, states, answers } = self;
        let node = Some(rig.opened.identity.node);
        drop(rig);
        let answers = std::mem::take(&mut *answers.lock().unwrap());
        Run { node, states, answers }
    }

    fn now(&mut self, change: impl FnOnce(&mut Contents)) -> Done {
        let mut state = self.state().clone();
        change(&mut state);
        self.states.push(state);
        let (number, answers) = (self.states.len() - 1, self.answers.clone());
        Box::new(move |result| answers.lock().unwrap().push((number, result.is_ok())))
    }

    pub(super) fn vote(&mut self, term: u64) {
        let done = self.now(|state| state.vote = Some(vote(term)));
        self.rig.log().save_vote(vote(term), done);
    }

    fn append(&mut self, range: std::ops::Range<u64>, term: u64, bytes: usize) {
        self.append_entries(range.map(|index| sized_entry(term, index, bytes)).collect());
    }

    pub(super) fn append_entries(&mut self, entries: Vec<LogEntry>) {
        let done = self.now(|state| state.append(entries.clone()));
        self.rig.log().append(entries, done);
    }

    fn truncate(&mut self, keep: LogId) {
        self.truncate_after(Some(keep));
    }

    pub(super) fn truncate_after(&mut self, keep: Option<LogId>) {
        drop(self.now(|state| state.truncate(keep)));
        self.rig.log().truncate_after(keep);
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        drop(self.now(|state| state.purge(upto)));
        self.rig.log().purge(upto);
    }

    pub(super) fn committed(&mut self, at: LogId) {
        drop(self.now(|state| state.committed = Some(at)));
        self.rig.log().save_committed(Some(at));
    }

    pub(super) fn close(&mut self) {
        let done = self.now(|_| ());
        self.rig.log().close(done);
        self.rig.settle();
    }
}

/// Makes a directory and uses it, until the end or until the power fails.
pub(super) fn run(disk: &FaultDisk) -> Run {
    let Ok(rig) = Rig::open(disk) else {
        return Run { node: None, states: vec![Contents::default()], answers: Vec::new() };
    };
    let mut s = Script::new(rig, Contents::default());
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
    s.close();
    s.end()
}
