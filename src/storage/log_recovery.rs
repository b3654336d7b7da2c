//! Reading the log back when it is opened.
//!
//! A frame is written only after the one before it was synced. So exactly one frame can be torn, the last one, and the rule
//! is: *the first frame that is not whole ends the log, if nothing behind it was ever written*. If there is as much as the
//! head of a later frame, the broken one had been durable, and perhaps been promised to somebody: that is damage, and the
//! log is refused. Cutting it off there would forget what was promised (Protocol-Aware Recovery, FAST'18).
//!
//! What cannot be told apart is a last frame that was torn, and one that was synced and damaged later. A log that was
//! closed has a last frame that says nothing else, so this concerns a log only that ended in a crash.
//!
//! Nothing is written here. What is left of a torn frame is wiped by [`Recovered::settle`], so that it can never be
//! completed by a later write, and what was found is synced before anybody relies on it: the process may have died between
//! a write and its sync.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use redb::StorageBackend;

use crate::format::log::{BLOCK_BYTES, FRAME_HEAD_BYTES, FileHead, FrameHead};
use crate::format::log_items::{Item, Items, Opening, Placed};
use crate::format::wire::DecodeError;
use crate::rt::mutant;

use super::log_file::{Layout, LogFile};
use super::poison::GuardedBackend;
use super::positions::{Moved, Position, Positions};

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Format(DecodeError),
    #[error("segment {segment} at offset {offset}: {what}")]
    Damaged { segment: u64, offset: u64, what: String },
    #[error("entry {0} is missing")]
    Missing(u64),
    #[error("no segment of the log can be read")]
    NoSegment,
}

/// The log as the file has it.
pub(super) struct Recovered {
    pub(super) front: Opening,
    pub(super) positions: Positions,
    pub(super) file: LogFile,
    /// Where heads of torn frames are.
    torn: Vec<u64>,
}

impl Recovered {
    /// What there is of a log that is made now.
    pub(super) fn new(front: Opening, file: LogFile) -> Self {
        Recovered { front, positions: Positions::default(), file, torn: Vec::new() }
    }

    /// Makes what was found durable, and the rest never to be found.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        for offset in self.torn.drain(..) {
            self.file.backend().write(offset, &[0; BLOCK_BYTES])?;
        }
        self.file.backend().sync_data()
    }
}

/// Reads a whole log; `None` if its making had not got to its first frame.
pub(super) fn recover(backend: &Arc<GuardedBackend>) -> Result<Option<Recovered>, LogError> {
    let mut front = vec![0; backend.len()?.min(BLOCK_BYTES as u64) as usize];
    backend.read(0, &mut front)?;
    let Some(head) = FileHead::read(&front).map_err(LogError::Format)? else { return Ok(None) };
    let slots = backend.len()?.saturating_sub(BLOCK_BYTES as u64) / u64::from(head.segment_bytes);
    let scan = Scan { backend, head, slots };
    let starts = scan.starts()?;
    let Some((newest, _)) = starts.last_key_value() else {
        return if scan.holds_nothing()? { Ok(None) } else { Err(LogError::NoSegment) };
    };
    // A missing one is wiped, which nothing needs, or damaged; in which case entries will turn out to be missing.
    let oldest = (0..*newest).rev().find(|sequence| !starts.contains_key(sequence)).map_or(0, |missing| missing + 1);
    let chain: Vec<(u64, u64)> = starts.range(oldest..).map(|(sequence, slot)| (*sequence, *slot)).collect();
    let mut replay = Replay::default();
    for (sequence, slot) in &chain {
        replay.segment(&scan, *sequence, *slot)?;
    }
    if let Some(missing) = replay.positions.first_unknown() {
        return Err(LogError::Missing(missing));
    }
    let mut torn = scan.torn_frame(&replay, *newest, chain[chain.len() - 1].1)?;
    let in_chain = |slot: u64| chain.iter().any(|(_, used)| *used == slot);
    for slot in (0..slots).filter(|slot| !in_chain(*slot)) {
        torn.extend(scan.torn_opening(&replay, *newest, slot)?);
    }
    let stale = |slot: &u64| !in_chain(*slot) && starts.values().any(|used| used == slot);
    let layout = Layout {
        chain: chain.iter().map(|(_, slot)| *slot).collect(),
        sequence: *newest,
        at: replay.at,
        number: replay.number,
        retired: (0..slots).filter(stale).collect(),
        free: (0..slots).filter(|slot| !in_chain(*slot) && !stale(slot)).collect(),
    };
    let mut file = LogFile::resume(backend.clone(), head, slots, layout);
    file.retire_before(replay.positions.first().map(|first| first.at));
    Ok(Some(Recovered { front: replay.front, positions: replay.positions, file, torn }))
}

/// The file as it is read.
struct Scan<'a> {
    backend: &'a Arc<GuardedBackend>,
    head: FileHead,
    slots: u64,
}

impl Scan<'_> {
    fn start(&self, slot: u64) -> u64 {
        BLOCK_BYTES as u64 + slot * u64::from(self.head.segment_bytes)
    }

    fn read(&self, slot: u64) -> Result<Bytes, LogError> {
        let mut segment = vec![0; self.head.segment_bytes as usize];
        self.backend.read(self.start(slot), &mut segment)?;
        Ok(segment.into())
    }

    /// Where the frames of a segment could begin, from `from` on, and the heads of those that do.
    fn heads(&self, segment: &Bytes, from: usize) -> impl Iterator<Item = (usize, FrameHead)> {
        let salt = self.head.salt;
        let at = (from..segment.len()).step_by(BLOCK_BYTES);
        at.filter_map(move |at| FrameHead::read(&segment[at..], salt).map(|head| (at, head)))
    }

    /// The slots whose first frame is whole, by the numbers of their segments.
    fn starts(&self) -> Result<BTreeMap<u64, u64>, LogError> {
        let mut starts = BTreeMap::new();
        for slot in 0..self.slots {
            let mut block = [0; BLOCK_BYTES];
            self.backend.read(self.start(slot), &mut block)?;
            let Some(head) = FrameHead::read(&block, self.head.salt) else { continue };
            if head.frame_bytes() > self.head.segment_bytes as usize {
                continue;
            }
            let mut frame = vec![0; head.frame_bytes()];
            self.backend.read(self.start(slot), &mut frame)?;
            if head.payload(&frame.into()).is_none() {
                continue;
            }
            if let Some(other) = starts.insert(head.segment, slot) {
                let what = format!("it is at offset {} too", self.start(other));
                return Err(self.damaged(head.segment, slot, 0, what));
            }
        }
        Ok(starts)
    }

    /// Whether there is no frame that was ever followed by another.
    fn holds_nothing(&self) -> Result<bool, LogError> {
        for slot in 0..self.slots {
            let segment = self.read(slot)?;
            if self.heads(&segment, 0).any(|(at, head)| at > 0 || head.number > 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The head of the frame that was torn at the end of the log, if it came so far.
    fn torn_frame(&self, replay: &Replay, newest: u64, slot: u64) -> Result<Vec<u64>, LogError> {
        let segment = self.read(slot)?;
        let mut torn = Vec::new();
        for (at, head) in self.heads(&segment, replay.at) {
            if head.segment != newest || head.number < replay.number {
                continue;
            }
            if mutant("truncate_on_crc_error") {
                continue;
            }
            if at > replay.at || head.number > replay.number {
                let what = format!("a frame is damaged, and frame {} follows it", head.number);
                return Err(self.damaged(newest, slot, replay.at, what));
            }
            torn.push(self.start(slot) + at as u64);
        }
        Ok(torn)
    }

    /// The same for a frame that was to open the next segment, in a slot that has none.
    fn torn_opening(&self, replay: &Replay, newest: u64, slot: u64) -> Result<Vec<u64>, LogError> {
        let segment = self.read(slot)?;
        let mut torn = Vec::new();
        for (at, head) in self.heads(&segment, 0) {
            if head.segment != newest + 1 || head.number < replay.number {
                continue;
            }
            if at > 0 || head.number > replay.number {
                let what = format!("its opening is damaged, and frame {} follows it", head.number);
                return Err(self.damaged(head.segment, slot, 0, what));
            }
            torn.push(self.start(slot));
        }
        Ok(torn)
    }

    fn damaged(&self, segment: u64, slot: u64, at: usize, what: String) -> LogError {
        LogError::Damaged { segment, offset: self.start(slot) + at as u64, what }
    }
}

/// What the frames so far make of the log.
#[derive(Default)]
struct Replay {
    front: Opening,
    positions: Positions,
    /// Where the next frame would be in the last segment, and its number.
    at: usize,
    number: u64,
    begun: bool,
    /// The segment before, and its slot.
    before: (u64, u64),
}

impl Replay {
    /// Replays the frames of one segment, up to the first that is none.
    fn segment(&mut self, scan: &Scan<'_>, sequence: u64, slot: u64) -> Result<(), LogError> {
        let bytes = scan.read(slot)?;
        let mut at = 0;
        while let Some(head) = bytes.get(at..).and_then(|from| FrameHead::read(from, scan.head.salt)) {
            let Some(payload) = head.payload(&bytes.slice(at..)).filter(|_| head.segment == sequence) else { break };
            if self.begun && head.number != self.number {
                let what = format!("frame {} belongs here, and frame {} follows", self.number, head.number);
                let (sequence, slot) = if at == 0 { self.before } else { (sequence, slot) };
                return Err(scan.damaged(sequence, slot, self.at, what));
            }
            let begin = scan.start(slot) + at as u64;
            self.frame(payload, begin + FRAME_HEAD_BYTES as u64, at == 0)
                .map_err(|what| scan.damaged(sequence, slot, at, what))?;
            self.begun = true;
            self.number = head.number + 1;
            at += head.frame_bytes();
            self.at = at;
        }
        self.before = (sequence, slot);
        Ok(())
    }

    /// Replays one frame, whose payload is at `offset` in the file.
    fn frame(&mut self, payload: Bytes, offset: u64, opens: bool) -> Result<(), String> {
        for (i, placed) in Items::new(payload).enumerate() {
            let Placed { item, at, len } = placed.map_err(|error| error.to_string())?;
            match item {
                Item::Opening(opening) if opens && i == 0 => self.opening(*opening)?,
                _ if opens && i == 0 => return Err("it does not begin with an opening".to_owned()),
                item => self.item(item, Position { at: offset + at as u64, len })?,
            }
        }
        Ok(())
    }

    fn opening(&mut self, opening: Opening) -> Result<(), String> {
        if !self.begun {
            self.positions = Positions::unknown(opening.summary.entries());
            self.front = opening;
        } else if self.front != opening {
            return Err(format!("it opens with {opening:?}, behind {:?}", self.front));
        }
        Ok(())
    }

    fn item(&mut self, item: Item, position: Position) -> Result<(), String> {
        let Opening { summary, identity } = &mut self.front;
        match item {
            Item::Entry(entry) => {
                let index = entry.log_id.index;
                if let Some(next) = summary.next().filter(|next| *next != index) {
                    return Err(format!("entry {index} is where entry {next} belongs"));
                }
                summary.append(entry.log_id);
                self.positions.apply(Moved::Appended(index, position));
            }
            Item::Truncate(keep) => {
                summary.truncate(keep);
                self.positions.apply(Moved::Truncated(keep));
            }
            Item::Purge(upto) => {
                summary.purge(upto);
                self.positions.apply(Moved::Purged(upto));
            }
            Item::Vote(vote) => summary.vote = Some(vote),
            Item::Committed(committed) => summary.committed = committed,
            Item::Identity(row) => *identity = row,
            Item::Opening(_) => return Err("an opening is in the middle of a segment".to_owned()),
            Item::Closed => {}
        }
        Ok(())
    }
}
