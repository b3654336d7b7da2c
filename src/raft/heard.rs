//! When the leader was last heard from.
//!
//! The library names the leader of the last election for as long as there is no other, also one that has died and one that
//! led before this node was restarted. Whoever waits for a leader, or is about to ask it, needs to know better.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;

use crate::rt::Instant;
use crate::types::LeaderId;

pub(super) struct Heard {
    last: Mutex<Option<(LeaderId, Instant)>>,
    /// After this long without a word there is no leader: by then every follower has asked for an election.
    silence_max: Duration,
    news: Notify,
}

impl Heard {
    pub(super) fn new(silence_max: Duration) -> Self {
        Heard { last: Mutex::new(None), silence_max, news: Notify::new() }
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

    /// Waits for a word that changes who is there. News that came before the wait, and after the last one, count.
    pub(super) fn news(&self) -> impl Future<Output = ()> + '_ {
        self.news.notified()
    }
}
