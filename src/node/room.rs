//! How much memory the unanswered writes of this process may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// Most bytes of commands whose callers wait: of the largest writes, that is a sixty-fourth of what may be under way by number.
pub(super) const WRITES_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Room for commands. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Room(Arc<AtomicUsize>);

/// An encoded command, and the room that it takes until it is dropped.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) command: Bytes,
    room: Room,
}

impl Room {
    /// `None` if it is too much.
    pub(super) fn keep(&self, command: Bytes) -> Option<Kept> {
        let len = command.len();
        let before = self.0.fetch_add(len, Ordering::Relaxed);
        // Dropped at once if there is no room, which gives it back.
        let kept = Kept { command, room: self.clone() };
        (before + len <= WRITES_BYTES_MAX).then_some(kept)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.room.0.fetch_sub(self.command.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_makes_room_for_others() {
        let room = Room::default();
        let half = Bytes::from(vec![0; WRITES_BYTES_MAX / 2]);
        let one = room.keep(half.clone());
        let two = room.keep(half.clone());
        assert!(one.is_some() && two.is_some());
        assert!(room.keep(Bytes::from_static(b"x")).is_none());
        drop(one);
        assert!(room.keep(Bytes::from_static(b"x")).is_some());
        assert!(room.keep(half).is_some(), "what was refused, and what was dropped, takes nothing");
    }
}
