//! When the leader was last heard from.
//!
//! The library names the leader of the last election for as long as there is no other, also one that has died and one that
//! led before this node was restarted. Whoever waits for a leader, or is about to ask it, needs to know better.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;

use crate::rt::Instant;
use crate::types::{LeaderId, LogId};

pub(super) struct Heard {
    last: Mutex<Option<(LeaderId, Instant)>>,
    current: Mutex<Current>,
    /// After this long without a word there is no leader: by then every follower has asked for an election.
    silence_max: Duration,
    news: Notify,
}

impl Heard {
    pub(super) fn new(silence_max: Duration) -> Self {
        Heard { last: Mutex::new(None), current: Mutex::default(), silence_max, news: Notify::new() }
    }

    /// A message of `leader` was taken.
    pub(super) fn from(&self, leader: LeaderId) {
        let now = Instant::now();
        let before = self.last.lock().expect("no panic while held").replace((leader, now));
        // The usual word of the usual leader wakes nobody.
        if before.is_none_or(|(known, at)| known != leader || now - at >= self.silence_max) {
            self.news.notify_one();
        }
    }

    /// Until when `leader` counts as there, going by its last word; `None` if it does not.
    pub(super) fn until(&self, leader: LeaderId) -> Option<Instant> {
        let (known, at) = (*self.last.lock().expect("no panic while held"))?;
        let until = at + self.silence_max;
        (known == leader && Instant::now() < until).then_some(until)
    }

    /// A message of `leader`, which arrived at `at`, said that everything up to `commit` is committed; up to `applied` it is
    /// applied here.
    pub(super) fn told(&self, leader: LeaderId, at: Instant, commit: Option<LogId>, applied: Option<LogId>) {
        // A leader that has committed nothing in its own term does not know yet what its predecessors committed (Ongaro and
        // Ousterhout, "In Search of an Understandable Consensus Algorithm", section 8).
        let Some(commit) = commit.filter(|commit| commit.leader == leader) else { return };
        let mut current = self.current.lock().expect("no panic while held");
        current.settle(applied);
        // The oldest word that is waited for stays: under load there is always a newer one that is not applied yet.
        current.waiting.get_or_insert((commit.index, at));
        current.settle(applied);
    }

    /// When this node last had applied everything that was committed, going by the word of a leader.
    pub(super) fn current_at(&self, applied: Option<LogId>) -> Option<Instant> {
        let mut current = self.current.lock().expect("no panic while held");
        current.settle(applied);
        current.at
    }

    /// Waits for a word that changes who is there. News that came before the wait, and after the last one, count.
    pub(super) fn news(&self) -> impl Future<Output = ()> + '_ {
        self.news.notified()
    }
}

/// When this node was up to date.
#[derive(Default)]
struct Current {
    /// The arrival of the newest word of a leader of which everything is applied.
    at: Option<Instant>,
    /// An index that a leader said to be committed, and when it said so.
    waiting: Option<(u64, Instant)>,
}

impl Current {
    fn settle(&mut self, applied: Option<LogId>) {
        if let Some((_, at)) = self.waiting.take_if(|(index, _)| applied.is_some_and(|applied| applied.index >= *index))
        {
            self.at = Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    fn log_id(term: u64, index: u64) -> LogId {
        LogId { leader: leader(term), index }
    }

    fn leader(term: u64) -> LeaderId {
        LeaderId { term, node: NodeId::new(term) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_was_current_when_the_word_came_that_it_has_applied_all_of() {
        let heard = Heard::new(Duration::from_secs(1));
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let applied = |index| Some(log_id(1, index));
        assert_eq!(heard.current_at(applied(9)), None, "nobody has said anything");
        heard.told(leader(1), at(1), None, applied(9));
        heard.told(leader(2), at(2), Some(log_id(1, 5)), applied(9));
        assert_eq!(heard.current_at(applied(9)), None, "a new leader does not know what is committed");
        heard.told(leader(2), at(3), Some(log_id(2, 10)), applied(9));
        assert_eq!(heard.current_at(applied(9)), None, "not applied yet");
        heard.told(leader(2), at(4), Some(log_id(2, 11)), applied(9));
        assert_eq!(heard.current_at(applied(10)), Some(at(3)), "the later word came with more");
        heard.told(leader(2), at(5), Some(log_id(2, 12)), applied(11));
        heard.told(leader(2), at(6), Some(log_id(2, 12)), applied(12));
        assert_eq!(heard.current_at(applied(12)), Some(at(6)));
    }
}
