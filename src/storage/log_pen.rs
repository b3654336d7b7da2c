//! Puts changes of the log into frames, and begins another segment where one is full.

use std::io;

use crate::format::log::{BLOCK_BYTES, Frame};
use crate::format::log_items::{ITEM_BYTES_MAX, Item, Opening, entry_bytes};
use crate::types::LogEntry;

use super::log::Shared;
use super::log_file::LogFile;
use super::positions::{Moved, Position};

/// Why a group is not on disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum PenError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("a change of {bytes} bytes does not fit into a segment of {segment}")]
    TooLarge { bytes: usize, segment: usize },
}

/// Writes one group. Nothing is written before the frame is full or [`Pen::finish`] is called.
pub(super) struct Pen<'a> {
    file: &'a mut LogFile,
    /// What the file says once all that was put is written.
    front: &'a mut Opening,
    shared: &'a Shared,
    frame: Frame,
    moved: Vec<Moved>,
}

impl<'a> Pen<'a> {
    pub(super) fn new(file: &'a mut LogFile, front: &'a mut Opening, shared: &'a Shared) -> Self {
        Pen { file, front, shared, frame: Frame::new(), moved: Vec::new() }
    }

    /// Adds a change that is no append.
    pub(super) fn put(&mut self, item: &Item) -> Result<(), PenError> {
        let row = if let Item::Identity(row) = item { row.len() } else { 0 };
        self.make_room(ITEM_BYTES_MAX + row)?;
        self.frame.put(item);
        let Opening { summary, identity } = &mut *self.front;
        match item {
            Item::Truncate(keep) => {
                summary.truncate(*keep);
                self.moved.push(Moved::Truncated(*keep));
            }
            Item::Purge(upto) => {
                summary.purge(*upto);
                self.moved.push(Moved::Purged(*upto));
            }
            Item::Vote(vote) => summary.vote = Some(*vote),
            Item::Committed(committed) => summary.committed = *committed,
            Item::Identity(row) => *identity = row.clone(),
            Item::Closed => {}
            Item::Entry(_) | Item::Opening(_) => unreachable!("neither comes this way"),
        }
        Ok(())
    }

    /// Adds entries, which take no more than `bytes`. They stay together if a segment has room for all of them.
    pub(super) fn append(&mut self, entries: &[LogEntry], bytes: usize) -> Result<(), PenError> {
        let together = bytes <= self.room_at_most();
        if together {
            self.make_room(bytes)?;
        }
        for entry in entries {
            if !together {
                self.make_room(entry_bytes(entry))?;
            }
            let begin = self.file.offset();
            let (at, len) = self.frame.put_entry(entry);
            self.front.summary.append(entry.log_id);
            self.moved.push(Moved::Appended(entry.log_id.index, Position { at: begin + at as u64, len }));
        }
        Ok(())
    }

    /// Whether there is nothing to write.
    pub(super) fn is_blank(&self) -> bool {
        self.frame.is_empty()
    }

    /// Writes what is left. Answers what has moved, all of it on disk.
    pub(super) fn finish(mut self) -> Result<Vec<Moved>, PenError> {
        self.write()?;
        Ok(self.moved)
    }

    /// Sees to it that the frame can take `bytes` more, in the next segment if need be.
    fn make_room(&mut self, bytes: usize) -> Result<(), PenError> {
        if self.frame.is_empty() && self.file.is_at_opening() {
            self.frame.put_opening(self.front);
        }
        if bytes <= self.room() {
            return Ok(());
        }
        if bytes > self.room_at_most() {
            return Err(PenError::TooLarge { bytes, segment: self.file.segment_bytes() });
        }
        self.write()?;
        self.file.next_segment()?;
        self.frame.put_opening(self.front);
        Ok(())
    }

    fn room(&self) -> usize {
        self.file.room().saturating_sub(self.frame.len())
    }

    /// What a change may take: what a segment has room for behind its opening.
    fn room_at_most(&self) -> usize {
        let opening = BLOCK_BYTES.max(2 * ITEM_BYTES_MAX + self.front.identity.len());
        self.file.segment_bytes().saturating_sub(opening)
    }

    fn write(&mut self) -> Result<(), PenError> {
        let frame = std::mem::replace(&mut self.frame, Frame::new());
        if frame.is_empty() {
            return Ok(());
        }
        self.file.write(frame)?;
        self.shared.synced();
        Ok(())
    }
}
