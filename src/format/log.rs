//! `log.wal`: frames in a row of segments.
//!
//! ```text
//! file    = head, zeros to the end of the block, segment*
//! head    = magic: 8 bytes, version: u32 LE = 1, bytes of a segment: u32 LE, salt: u64 LE, crc: u32 LE of what is before it
//! segment = frame*, each from the beginning of a block on; what is behind the last one has no meaning
//! frame   = crc: u32 LE of salt and the rest of the frame's head, crc of the payload: u32 LE, length of the payload: u32 LE,
//!           segment: u64 LE, number: u64 LE, payload, zeros to the end of the block
//! ```
//!
//! A frame is what one write and one sync make durable; its payload is a list of [items](super::log_items). The number
//! goes up by one with every frame of the file, the segment by one with every segment that is begun, wherever in the file
//! it comes to lie. So bytes from an earlier life of a segment never pass for a frame of the present one.
//!
//! A frame never shares a block with another, and a block is the least that disks write at once: a write that is torn
//! cannot damage what was made durable before it. Larger blocks, of a page of the system, were no faster and made the log
//! of a single caller eight times as long, on disk and to be read at a start.
//!
//! The salt is minted with the file. It keeps a value that was made to look like a frame from being taken for one.

use bytes::Bytes;

use super::log_items::{Item, Opening, put_entry_item, put_item, put_opening};
use super::wire::{DecodeError, Reader, Writer};
use crate::types::LogEntry;

/// What frames begin at a multiple of.
pub(crate) const BLOCK_BYTES: usize = 512;

/// Entries have indexes below this.
pub(crate) const INDEX_END: u64 = u64::MAX - 15;

const MAGIC: [u8; 8] = *b"quor.wal";
const FILE_VERSION: u32 = 1;
const FILE_HEAD_BYTES: usize = 28;
pub(crate) const FRAME_HEAD_BYTES: usize = 28;

/// What stands at the front of the file.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileHead {
    /// A multiple of [`BLOCK_BYTES`].
    pub(crate) segment_bytes: u32,
    pub(crate) salt: u64,
}

impl FileHead {
    pub(crate) fn encode(self) -> Bytes {
        let mut w = Writer::with_capacity(BLOCK_BYTES);
        w.raw(&MAGIC);
        w.fixed_u32(FILE_VERSION);
        w.fixed_u32(self.segment_bytes);
        w.fixed_u64(self.salt);
        w.fixed_u32(crc32fast::hash(w.as_slice()));
        w.zeros(BLOCK_BYTES - w.len());
        w.finish()
    }

    /// `None` if nothing has been written yet. `front` is the first block of the file, or all there is of it.
    pub(crate) fn read(front: &[u8]) -> Result<Option<FileHead>, DecodeError> {
        const WHAT: &str = "log file";
        if front.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let head = front.get(..FILE_HEAD_BYTES).ok_or(DecodeError::Truncated(WHAT))?;
        if head[..MAGIC.len()] != MAGIC {
            let tag = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
            return Err(DecodeError::UnknownTag { what: WHAT, tag });
        }
        let mut r = Reader::new(Bytes::copy_from_slice(&head[MAGIC.len()..]));
        let version = r.fixed_u32(WHAT)?;
        let (segment_bytes, salt, found) = (r.fixed_u32(WHAT)?, r.fixed_u64(WHAT)?, r.fixed_u32(WHAT)?);
        // The checksum before the version: a flipped bit is not a newer release.
        let computed = crc32fast::hash(&head[..FILE_HEAD_BYTES - 4]);
        if found != computed {
            return Err(DecodeError::Checksum { what: WHAT, found, computed });
        }
        if version != FILE_VERSION {
            return Err(DecodeError::UnknownVersion { what: WHAT, found: version.into(), known: FILE_VERSION.into() });
        }
        if segment_bytes == 0 || !(segment_bytes as usize).is_multiple_of(BLOCK_BYTES) {
            return Err(DecodeError::UnknownTag { what: "segment size", tag: segment_bytes.into() });
        }
        Ok(Some(FileHead { segment_bytes, salt }))
    }
}

/// What stands at the front of a frame.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct FrameHead {
    pub(crate) segment: u64,
    pub(crate) number: u64,
    pub(crate) payload_bytes: u32,
    payload_crc: u32,
}

impl FrameHead {
    /// The head at the front of `block`, if there is a whole one.
    pub(crate) fn read(block: &[u8], salt: u64) -> Option<FrameHead> {
        const WHAT: &str = "frame";
        let head = block.get(..FRAME_HEAD_BYTES)?;
        let mut r = Reader::new(Bytes::copy_from_slice(head));
        let crc = r.fixed_u32(WHAT).ok()?;
        let (payload_crc, payload_bytes) = (r.fixed_u32(WHAT).ok()?, r.fixed_u32(WHAT).ok()?);
        let (segment, number) = (r.fixed_u64(WHAT).ok()?, r.fixed_u64(WHAT).ok()?);
        let whole = crc == head_crc(salt, &head[4..]) && payload_bytes > 0;
        whole.then_some(FrameHead { segment, number, payload_bytes, payload_crc })
    }

    /// What the frame takes in its segment.
    pub(crate) fn frame_bytes(&self) -> usize {
        (FRAME_HEAD_BYTES + self.payload_bytes as usize).next_multiple_of(BLOCK_BYTES)
    }

    /// The payload, if it is the one the head was written for. `from` begins with the frame.
    pub(crate) fn payload(&self, from: &Bytes) -> Option<Bytes> {
        let end = FRAME_HEAD_BYTES.checked_add(self.payload_bytes as usize)?;
        let payload = (end <= from.len()).then(|| from.slice(FRAME_HEAD_BYTES..end))?;
        (crc32fast::hash(&payload) == self.payload_crc).then_some(payload)
    }
}

fn head_crc(salt: u64, rest: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&salt.to_le_bytes());
    crc.update(rest);
    crc.finalize()
}

/// A frame that is being written.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Room for the head, then the payload.
    w: Writer,
}

impl Frame {
    pub(crate) fn new() -> Self {
        let mut w = Writer::with_capacity(BLOCK_BYTES);
        w.zeros(FRAME_HEAD_BYTES);
        Frame { w }
    }

    /// Bytes so far, the head included.
    pub(crate) fn len(&self) -> usize {
        self.w.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == FRAME_HEAD_BYTES
    }

    pub(crate) fn put(&mut self, item: &Item) {
        put_item(&mut self.w, item);
    }

    pub(crate) fn put_opening(&mut self, opening: &Opening) {
        put_opening(&mut self.w, opening);
    }

    /// Adds an entry. Answers where in the frame it begins, and how many bytes it takes.
    pub(crate) fn put_entry(&mut self, entry: &LogEntry) -> (usize, u32) {
        put_entry_item(&mut self.w, entry)
    }

    /// The whole frame, to the end of its last block.
    pub(crate) fn seal(mut self, segment: u64, number: u64, salt: u64) -> Bytes {
        let payload = &self.w.as_slice()[FRAME_HEAD_BYTES..];
        let mut head = Writer::with_capacity(FRAME_HEAD_BYTES);
        head.fixed_u32(crc32fast::hash(payload));
        head.fixed_u32(u32::try_from(payload.len()).expect("a frame is smaller than a segment"));
        head.fixed_u64(segment);
        head.fixed_u64(number);
        self.w.overwrite(0, &head_crc(salt, head.as_slice()).to_le_bytes());
        self.w.overwrite(4, head.as_slice());
        self.w.zeros(self.w.len().next_multiple_of(BLOCK_BYTES) - self.w.len());
        self.w.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::wire::golden::hex;
    use crate::types::{LeaderId, LogId, NodeId, Payload};

    fn frame() -> Bytes {
        let mut frame = Frame::new();
        let log_id = LogId { leader: LeaderId { term: 3, node: NodeId::new(0x0a0b) }, index: 300 };
        frame.put_entry(&LogEntry { log_id, payload: Payload::Proposal(Bytes::from_static(b"put")) });
        frame.put(&Item::Truncate(Some(log_id)));
        frame.seal(7, 21, 0x5a17)
    }

    #[test]
    fn the_bytes_of_heads_and_frames_are_what_they_have_always_been() {
        let head = FileHead { segment_bytes: 8 << 20, salt: 0x0102_0304_0506_0708 }.encode();
        assert_eq!((hex(&head[..FILE_HEAD_BYTES]), head.len()), (GOLDEN_HEAD.to_owned(), BLOCK_BYTES));
        let frame = frame();
        assert_eq!((hex(&frame[..GOLDEN_FRAME.len() / 2]), frame.len()), (GOLDEN_FRAME.to_owned(), BLOCK_BYTES));
        let rest = [&head[FILE_HEAD_BYTES..], &frame[GOLDEN_FRAME.len() / 2..]].concat();
        assert!(rest.iter().all(|byte| *byte == 0));
    }

    const GOLDEN_HEAD: &str = "71756f722e77616c010000000000800008070605040302018904a61d";
    const GOLDEN_FRAME: &str = "cae31e2beaf4ffb02200000007000000000000001500000000000000006c0790720fac02030b0a000000000000017075\
        740101030b0a000000000000ac02";

    #[test]
    fn a_file_head_is_read_back_and_refused_with_any_bit_flipped() {
        let head = FileHead { segment_bytes: 8192, salt: 9 };
        let bytes = head.encode();
        assert_eq!(FileHead::read(&bytes), Ok(Some(head)));
        for bit in 0..FILE_HEAD_BYTES * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let read = FileHead::read(&bad);
            assert!(
                matches!(read, Err(DecodeError::Checksum { .. } | DecodeError::UnknownTag { .. })),
                "bit {bit}: {read:?}"
            );
        }
        for len in 1..FILE_HEAD_BYTES {
            assert!(FileHead::read(&bytes[..len]).is_err(), "length {len}");
        }
        assert_eq!((FileHead::read(&[]), FileHead::read(&[0; BLOCK_BYTES])), (Ok(None), Ok(None)));
    }

    #[test]
    fn a_file_of_a_newer_version_or_of_an_impossible_size_is_refused() {
        let sealed = |version: u32, segment_bytes: u32| {
            let mut bytes = FileHead { segment_bytes, salt: 1 }.encode().to_vec();
            bytes[8..12].copy_from_slice(&version.to_le_bytes());
            let crc = crc32fast::hash(&bytes[..FILE_HEAD_BYTES - 4]);
            bytes[FILE_HEAD_BYTES - 4..FILE_HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
            FileHead::read(&bytes)
        };
        let newer = sealed(2, 8192);
        assert!(matches!(newer, Err(DecodeError::UnknownVersion { found: 2, known: 1, .. })), "{newer:?}");
        assert!(sealed(1, 0).is_err());
        assert!(sealed(1, 5000).is_err());
        assert!(sealed(1, 4096).is_ok());
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_frame_is_seen_and_so_is_another_salt() {
        let bytes = frame();
        let head = FrameHead::read(&bytes, 0x5a17).expect("it is whole");
        assert_eq!((head.segment, head.number, head.frame_bytes()), (7, 21, BLOCK_BYTES));
        assert!(head.payload(&bytes).is_some());
        assert_eq!(FrameHead::read(&bytes, 0x5a16), None);
        for bit in 0..(FRAME_HEAD_BYTES + head.payload_bytes as usize) * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let bad = Bytes::from(bad);
            let read = FrameHead::read(&bad, 0x5a17).and_then(|head| head.payload(&bad));
            assert_eq!(read, None, "bit {bit}");
        }
        assert_eq!(head.payload(&bytes.slice(..40)), None, "cut short");
    }

    #[test]
    fn zeros_are_no_frame_whatever_the_salt() {
        assert!((0..1000).all(|salt| FrameHead::read(&[0; BLOCK_BYTES], salt).is_none()));
        assert_eq!(FrameHead::read(&[0; FRAME_HEAD_BYTES - 1], 1), None);
    }
}
