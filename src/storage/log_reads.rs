//! Entries that have left the memory, read back from where they are on disk.
//!
//! Whether they are still there is not asked here: the place may have been used again since it was looked up. The log asks
//! afterwards, and takes no entry and no error for granted before.

use std::io;

use bytes::Bytes;
use redb::StorageBackend;

use crate::format::log_items::decode_entry;
use crate::format::wire::DecodeError;
use crate::types::LogEntry;

use super::poison::GuardedBackend;
use super::positions::Position;

/// Bytes of the file that are read at once for entries that lie near each other. One entry may be larger.
const READ_BYTES_MAX: u64 = 1 << 20;

/// How far apart entries may be that are read at once: as those of a single caller are, each in a frame of its own.
const READ_GAP_BYTES: u64 = 4096;

/// Reads the entries from `first` on that are at `positions`.
pub(super) fn read_entries(file: &GuardedBackend, first: u64, positions: &[Position]) -> io::Result<Vec<LogEntry>> {
    let mut entries = Vec::with_capacity(positions.len());
    for run in runs(positions) {
        let begin = run[0].at;
        let mut bytes = vec![0; (run.last().map_or(begin, Position::end) - begin) as usize];
        file.read(begin, &mut bytes)?;
        let bytes = Bytes::from(bytes);
        for position in run {
            let at = (position.at - begin) as usize;
            let index = first + entries.len() as u64;
            let entry = decode_entry(bytes.slice(at..at + position.len as usize), index);
            entries.push(entry.map_err(|error| damaged(index, position, &error))?);
        }
    }
    Ok(entries)
}

/// Cuts positions into runs that are read at once.
fn runs(positions: &[Position]) -> impl Iterator<Item = &[Position]> {
    let mut left = positions;
    std::iter::from_fn(move || {
        let first = left.first()?;
        let mut end = first.end();
        let mut near = |next: &Position| {
            let near = next.at >= end && next.at - end < READ_GAP_BYTES && next.end() - first.at <= READ_BYTES_MAX;
            end = next.end();
            near
        };
        let count = 1 + left[1..].iter().copied().take_while(|next: &Position| near(next)).count();
        let run;
        (run, left) = left.split_at(count);
        Some(run)
    })
}

fn damaged(index: u64, position: &Position, error: &DecodeError) -> io::Error {
    let Position { at, .. } = position;
    io::Error::new(io::ErrorKind::InvalidData, format!("entry {index} at offset {at}: {error}"))
}
