//! The file of the log as a row of segments: where the next frame goes, and which segment is used again.
//!
//! * [`LogFile::write`] is one write and one sync. So a frame that is whole proves that every frame before it is durable.
//! * Frames fill one segment after the other. Segments in use form a chain, oldest first; a segment that holds no entry
//!   that is still needed leaves the chain from its front. That must be durable before the segment is touched: it is
//!   *retired* first, then its beginning is wiped along with a later frame, and once that is synced it is *free*.
//! * Free segments are used again, those nearest to the front of the file first. Their blocks are allocated and have been
//!   written, so that a sync has only data to write. The file grows only when none is free, ahead of need; what is new is
//!   filled with zeros step by step, along with the frames. It shrinks when more than [`FREE_SEGMENTS_MAX`] are free and
//!   its end is among them.
//!
//! What the frames say is the engine's business; reading them back is [`super::log_recovery`]'s.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use redb::StorageBackend;

use crate::format::log::{BLOCK_BYTES, FileHead, Frame};
use crate::types::WRITE_BYTES_MAX;

use super::poison::GuardedBackend;

/// Bytes of a segment in a file that is made now. An entry has to fit into one.
pub(crate) const SEGMENT_BYTES: usize = 8 << 20;

const _: () = assert!(SEGMENT_BYTES > WRITE_BYTES_MAX + WRITE_BYTES_MAX / 2, "the largest write fits into a segment");

/// Segments that are kept for the next time. What a purge after a snapshot gives back is filled again until the next one.
pub(crate) const FREE_SEGMENTS_MAX: usize = 8;

/// Retired segments that are wiped along with one frame. A frame begins at most a handful of segments, so this keeps up.
pub(crate) const WIPES_MAX: usize = 16;

/// How far ahead of the frames new parts of the file are filled with zeros, and in which steps.
const FILL_AHEAD_BYTES: u64 = 1 << 20;
const FILL_STEP_BYTES: u64 = 128 << 10;

/// The file, open for frames. Nothing of it is used again after an error: see [`super::poison`].
#[derive(Debug)]
pub(super) struct LogFile {
    backend: Arc<GuardedBackend>,
    head: FileHead,
    /// How many segments there are room for.
    slots: u64,
    layout: Layout,
    /// What is before this has been written before, if only with zeros.
    filled: u64,
}

/// Which segment is where. A slot is a place in the file, counted from 0.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// Slots of the segments in use, oldest first; the last one takes the next frame.
    pub(super) chain: VecDeque<u64>,
    /// The number of the last segment in the chain.
    pub(super) sequence: u64,
    /// Where in it the next frame goes.
    pub(super) at: usize,
    /// The number of that frame.
    pub(super) number: u64,
    /// Not needed any more, and not wiped.
    pub(super) retired: VecDeque<u64>,
    pub(super) free: BTreeSet<u64>,
}

impl LogFile {
    /// Begins an empty file, or one whose making died. Durable is only that it is a log; there is no frame yet.
    pub(super) fn create(backend: Arc<GuardedBackend>, head: FileHead) -> io::Result<Self> {
        // Whatever is there goes first: zeros are what is not there yet.
        backend.set_len(0)?;
        let layout = Layout { chain: [0].into(), ..Layout::default() };
        let file = LogFile { backend, head, slots: 1, layout, filled: BLOCK_BYTES as u64 };
        file.backend.set_len(file.end())?;
        file.backend.write(0, &head.encode())?;
        file.backend.sync_data()?;
        Ok(file)
    }

    /// A file that was read back.
    pub(super) fn resume(backend: Arc<GuardedBackend>, head: FileHead, slots: u64, layout: Layout) -> Self {
        let mut file = LogFile { backend, head, slots, layout, filled: 0 };
        // How far the last segment had been filled is not known, unless something lies behind it.
        file.filled = if file.current() + 1 == slots { file.offset() } else { file.end() };
        file
    }

    pub(super) fn backend(&self) -> &Arc<GuardedBackend> {
        &self.backend
    }

    /// Bytes that are left in the current segment.
    pub(super) fn room(&self) -> usize {
        self.segment_bytes() - self.layout.at
    }

    pub(super) fn segment_bytes(&self) -> usize {
        self.head.segment_bytes as usize
    }

    /// Whether the current segment holds no frame yet: the next one has to open it.
    pub(super) fn is_at_opening(&self) -> bool {
        self.layout.at == 0
    }

    /// Where in the file the next frame goes.
    pub(super) fn offset(&self) -> u64 {
        self.start(self.current()) + self.layout.at as u64
    }

    /// Bytes of the segments that are not free, as far as they are written.
    pub(super) fn bytes(&self) -> u64 {
        let full = (self.layout.chain.len() - 1 + self.layout.retired.len()) as u64;
        full * self.segment_bytes() as u64 + self.layout.at as u64
    }

    /// Whether there is something to wipe.
    pub(super) fn has_retired(&self) -> bool {
        !self.layout.retired.is_empty()
    }

    /// Goes on in another segment. What is left of the current one stays unused.
    pub(super) fn next_segment(&mut self) -> io::Result<()> {
        if self.layout.free.is_empty() {
            self.grow()?;
        }
        let slot = self.layout.free.pop_first().expect("there is one now");
        self.layout.chain.push_back(slot);
        self.layout.sequence += 1;
        self.layout.at = 0;
        Ok(())
    }

    /// Writes a frame, which has to fit, and syncs it. It is durable when this returns, and so is what comes along with it.
    pub(super) fn write(&mut self, frame: Frame) -> io::Result<()> {
        let bytes = frame.seal(self.layout.sequence, self.layout.number, self.head.salt);
        assert!(bytes.len() <= self.room(), "a frame of {} bytes, and room for {}", bytes.len(), self.room());
        self.fill_ahead(bytes.len() as u64)?;
        self.backend.write(self.offset(), &bytes)?;
        self.layout.at += bytes.len();
        self.layout.number += 1;
        self.wipe_and_sync()
    }

    /// Wipes retired segments, a limited number of them, and syncs.
    pub(super) fn wipe_and_sync(&mut self) -> io::Result<()> {
        let wiped = self.layout.retired.len().min(WIPES_MAX);
        for slot in self.layout.retired.iter().take(wiped) {
            self.backend.write(self.start(*slot), &[0; BLOCK_BYTES])?;
        }
        self.backend.sync_data()?;
        self.layout.free.extend(self.layout.retired.drain(..wiped));
        self.shrink()
    }

    /// Retires the segments before the one in which `first` is, the first entry that is needed. That they are not needed
    /// has to be durable.
    pub(super) fn retire_before(&mut self, first: Option<u64>) {
        let needed = first.map_or(self.current(), |at| self.slot_of(at));
        debug_assert!(self.layout.chain.contains(&needed));
        while self.layout.chain[0] != needed {
            self.layout.retired.extend(self.layout.chain.pop_front());
        }
    }

    /// Gives up the file and its lock.
    pub(super) fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn current(&self) -> u64 {
        *self.layout.chain.back().expect("there is always a current segment")
    }

    fn start(&self, slot: u64) -> u64 {
        BLOCK_BYTES as u64 + slot * u64::from(self.head.segment_bytes)
    }

    fn end(&self) -> u64 {
        self.start(self.slots)
    }

    fn slot_of(&self, offset: u64) -> u64 {
        (offset - BLOCK_BYTES as u64) / u64::from(self.head.segment_bytes)
    }

    fn grow(&mut self) -> io::Result<()> {
        self.layout.free.insert(self.slots);
        self.slots += 1;
        self.backend.set_len(self.end())
    }

    /// Lets go of free segments at the end of the file if there are too many.
    fn shrink(&mut self) -> io::Result<()> {
        let before = self.slots;
        while self.layout.free.len() > FREE_SEGMENTS_MAX && self.layout.free.last() == Some(&(self.slots - 1)) {
            self.layout.free.pop_last();
            self.slots -= 1;
        }
        if self.slots == before {
            return Ok(());
        }
        self.filled = self.filled.min(self.end());
        // Needs no sync: until there is one, what is cut off is as free as before.
        self.backend.set_len(self.end())
    }

    /// Sees to it that the frames after the next one, of `bytes`, overwrite something.
    fn fill_ahead(&mut self, bytes: u64) -> io::Result<()> {
        let (current, segment) = (self.current(), u64::from(self.head.segment_bytes));
        let written = self.offset() + bytes;
        let wanted = written + FILL_AHEAD_BYTES.min(segment / 4);
        let beyond = wanted.saturating_sub(self.start(current + 1));
        if beyond > 0 && self.layout.free.is_empty() {
            self.grow()?;
        }
        // Only the end of the file can be new.
        let last = self.slots - 1;
        let target = if current == last {
            wanted.min(self.end())
        } else if beyond > 0 && self.layout.free.first() == Some(&last) {
            self.start(last) + beyond
        } else {
            return Ok(());
        };
        let from = self.filled.max(if current + 1 >= last { written } else { self.start(last) });
        if from + FILL_STEP_BYTES.min(segment / 8) > target {
            return Ok(());
        }
        self.backend.write(from, &vec![0; (target - from) as usize])?;
        self.filled = target;
        Ok(())
    }
}
