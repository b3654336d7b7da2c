//! Turns: who changes what others of this process change too waits for them, in order.
//!
//! Correctness does not need it. But of several that try to change one key at a time only one can succeed, and as it is
//! answered first it is the first to come back: without turns the others would never have theirs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;

/// One line for each key that somebody is changing, and for no other: as many as there are changes under way.
#[derive(Clone, Default)]
pub(crate) struct Turns {
    lines: Arc<Mutex<Lines>>,
}

type Lines = BTreeMap<Bytes, Arc<tokio::sync::Mutex<()>>>;

impl Turns {
    /// Waits until everybody who asked for this key before has dropped his turn.
    ///
    /// # Cancel safety
    /// Who gives up waiting leaves the line.
    pub(crate) async fn take(&self, key: Bytes) -> Turn {
        let line = self.lines().entry(key.clone()).or_default().clone();
        // Made before waiting, so that a line is taken away by whoever leaves it last.
        let mut turn = Turn { turns: self.clone(), key, held: None };
        turn.held = Some(line.lock_owned().await);
        turn
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().expect("no holder of the lock panics")
    }
}

/// A turn, until it is dropped.
pub(crate) struct Turn {
    turns: Turns,
    key: Bytes,
    held: Option<OwnedMutexGuard<()>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.held = None;
        let mut lines = self.turns.lines();
        // Whoever waits holds on to the line; nobody joins it while the lines are locked.
        if lines.get(&self.key).is_some_and(|line| Arc::strong_count(line) == 1) {
            lines.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn key(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    #[test]
    fn turns_come_in_the_order_in_which_they_were_asked_for_and_nothing_is_left_of_them() {
        let turns = Turns::default();
        let first = turns.take(key("a")).now_or_never().expect("nobody is there");
        let mut second = Box::pin(turns.take(key("a")));
        let mut gives_up = Box::pin(turns.take(key("a")));
        let mut third = Box::pin(turns.take(key("a")));
        assert!(second.as_mut().now_or_never().is_none() && gives_up.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        drop(turns.take(key("b")).now_or_never().expect("another key is another line"));
        drop(gives_up);
        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        drop(second.as_mut().now_or_never().expect("it is its turn"));
        drop(third.as_mut().now_or_never().expect("it is its turn"));
        drop((second, third));
        assert!(turns.lines().is_empty());
    }
}
