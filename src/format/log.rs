//! `log.redb`: one table of rows, keyed by the index of the first entry in a row.
//!
//! ```text
//! row    = version: u8 = 1, first: u64 LE, count: u32 LE, crc: u32 LE of what is before it, frame * count
//! frame  = crc: u32 LE of body, body length: varint, body
//! body   = index: varint, leader, kind: u8, payload to the end of the body
//! leader = term: varint, node: u64 LE
//! kind   = 0 blank (no payload) | 1 proposal (its bytes) | 2 membership
//! ```
//!
//! The vote, what is committed, what is purged and the directory's identity are rows of the same table under the highest
//! keys, each behind a checksum of its own: a second table would cost every commit another page or two.
//!
//! redb does not verify its checksums on ordinary reads; these are what stands between a flipped bit and a wrong answer.

use bytes::Bytes;

use super::parts::{self, put_leader, put_log_id, put_membership, put_vote};
use super::wire::{DecodeError, Reader, Writer, unseal};
use crate::types::{LogEntry, LogId, Payload, Vote};

/// The one table of `log.redb`: `u64` to bytes.
pub(crate) const LOG_TABLE: &str = "log";

/// Entries have indexes below this; from here up a key names a single row.
pub(crate) const INDEX_END: u64 = u64::MAX - 15;
pub(crate) const VOTE_KEY: u64 = u64::MAX;
pub(crate) const COMMITTED_KEY: u64 = u64::MAX - 1;
pub(crate) const PURGED_KEY: u64 = u64::MAX - 2;
pub(crate) const IDENTITY_KEY: u64 = u64::MAX - 3;

const ROW_VERSION: u8 = 1;
const ROW_HEAD_BYTES: usize = 17;
const META_VERSION: u64 = 1;

/// What stands at the front of a row.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowHead {
    pub(crate) first: u64,
    pub(crate) count: u32,
}

impl RowHead {
    /// The index of the row's last entry.
    pub(crate) fn last(self) -> u64 {
        self.first + u64::from(self.count) - 1
    }

    /// Reads the head of the row that was found under `key`.
    pub(crate) fn read(row: &[u8], key: u64) -> Result<Self, DecodeError> {
        const WHAT: &str = "log row";
        let head = row.get(..ROW_HEAD_BYTES).ok_or(DecodeError::Truncated(WHAT))?;
        let mut r = Reader::new(Bytes::copy_from_slice(head));
        let version = r.u8(WHAT)?;
        let (first, count, found) = (r.fixed_u64(WHAT)?, r.fixed_u32(WHAT)?, r.fixed_u32(WHAT)?);
        let computed = crc32fast::hash(&head[..ROW_HEAD_BYTES - 4]);
        // The checksum before the version: a flipped bit is not a newer release. A release that moves the checksum raises
        // the version of the directory, which is read before any row.
        if found != computed {
            return Err(DecodeError::Checksum { what: WHAT, found, computed });
        }
        if version != ROW_VERSION {
            return Err(DecodeError::UnknownVersion { what: WHAT, found: version.into(), known: ROW_VERSION.into() });
        }
        // A sound row under a foreign key, or one without entries, is nothing this code ever wrote.
        let sound = first == key && count > 0 && first.checked_add(count.into()).is_some_and(|end| end <= INDEX_END);
        if sound { Ok(RowHead { first, count }) } else { Err(DecodeError::UnknownTag { what: WHAT, tag: first }) }
    }
}

/// One row of at least one entry, whose indexes follow each other.
pub(crate) fn encode_row(entries: &[LogEntry]) -> Bytes {
    let first = entries.first().expect("a row holds an entry").log_id.index;
    let count = u32::try_from(entries.len()).expect("a row is cut long before this many entries");
    let mut w = Writer::with_capacity(ROW_HEAD_BYTES + entries.iter().map(entry_bytes).sum::<usize>());
    w.u8(ROW_VERSION);
    w.fixed_u64(first);
    w.fixed_u32(count);
    w.fixed_u32(crc32fast::hash(w.as_slice()));
    for entry in entries {
        write_frame(&mut w, entry);
    }
    w.finish()
}

fn write_frame(w: &mut Writer, entry: &LogEntry) {
    let (kind, payload) = match &entry.payload {
        Payload::Blank => (0, Bytes::new()),
        Payload::Proposal(bytes) => (1, bytes.clone()),
        Payload::Membership(membership) => {
            let mut w = Writer::default();
            put_membership(&mut w, membership);
            (2, w.finish())
        }
    };
    // The payload is hashed where it lies and copied once, straight into the row.
    let mut front = Writer::with_capacity(ENTRY_OVERHEAD_BYTES);
    front.varint(entry.log_id.index);
    put_leader(&mut front, entry.log_id.leader);
    front.u8(kind);
    let mut crc = crc32fast::Hasher::new();
    crc.update(front.as_slice());
    crc.update(&payload);
    w.fixed_u32(crc.finalize());
    w.varint((front.len() + payload.len()) as u64);
    w.raw(front.as_slice());
    w.raw(&payload);
}

/// Takes the entries out of a row, one after the other.
#[derive(Debug)]
pub(crate) struct RowReader {
    frames: Reader,
    next: u64,
    left: u32,
}

impl RowReader {
    pub(crate) fn new(row: Bytes, key: u64) -> Result<Self, DecodeError> {
        let head = RowHead::read(&row, key)?;
        Ok(RowReader { frames: Reader::new(row.slice(ROW_HEAD_BYTES..)), next: head.first, left: head.count })
    }

    fn frame(&mut self) -> Result<LogEntry, DecodeError> {
        const WHAT: &str = "log entry";
        let found = self.frames.fixed_u32(WHAT)?;
        let body = self.frames.bytes(WHAT)?;
        let computed = crc32fast::hash(&body);
        if found != computed {
            return Err(DecodeError::Checksum { what: WHAT, found, computed });
        }
        let mut r = Reader::new(body);
        let index = r.varint(WHAT)?;
        if index != self.next {
            return Err(DecodeError::UnknownTag { what: "log index", tag: index });
        }
        let log_id = LogId { leader: parts::leader(&mut r)?, index };
        let payload = match r.u8(WHAT)? {
            0 => r.end(WHAT).map(|()| Payload::Blank)?,
            1 => Payload::Proposal(r.rest()),
            2 => {
                let membership = parts::membership(&mut r)?;
                r.end(WHAT).map(|()| Payload::Membership(membership))?
            }
            tag => return Err(DecodeError::UnknownTag { what: WHAT, tag: tag.into() }),
        };
        self.next += 1;
        self.left -= 1;
        Ok(LogEntry { log_id, payload })
    }
}

impl Iterator for RowReader {
    type Item = Result<LogEntry, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left > 0 {
            return Some(self.frame());
        }
        let left = self.frames.remaining();
        self.frames = Reader::new(Bytes::new());
        (left > 0).then_some(Err(DecodeError::LeftOver { what: "log row", left }))
    }
}

/// About what an entry takes, in memory and on disk. Limits count in it.
pub(crate) fn entry_bytes(entry: &LogEntry) -> usize {
    ENTRY_OVERHEAD_BYTES
        + match &entry.payload {
            Payload::Blank => 0,
            Payload::Proposal(bytes) => bytes.len(),
            Payload::Membership(m) => {
                let nodes = m.nodes.values().map(|node| 16 + node.name.len() + node.address.len()).sum::<usize>();
                nodes + m.configs.iter().map(|config| 1 + 8 * config.len()).sum::<usize>()
            }
        }
}

const ENTRY_OVERHEAD_BYTES: usize = 40;

/// The row under [`VOTE_KEY`].
pub(crate) fn encode_vote(vote: Vote) -> Bytes {
    meta_row(|w| {
        put_vote(w, &vote);
    })
}

pub(crate) fn decode_vote(row: Bytes) -> Result<Vote, DecodeError> {
    read_meta_row(row, "vote", parts::vote)
}

/// The row under [`COMMITTED_KEY`] or [`PURGED_KEY`].
pub(crate) fn encode_position(position: Option<LogId>) -> Bytes {
    meta_row(|w| w.option(position, put_log_id))
}

pub(crate) fn decode_position(row: Bytes) -> Result<Option<LogId>, DecodeError> {
    read_meta_row(row, "log position", |r| r.option("log position", parts::log_id))
}

fn meta_row(write: impl FnOnce(&mut Writer)) -> Bytes {
    let mut w = Writer::sealing(0);
    w.varint(META_VERSION);
    write(&mut w);
    w.seal()
}

fn read_meta_row<T>(
    row: Bytes,
    what: &'static str,
    read: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let mut r = Reader::new(unseal(row, what)?);
    let found = r.varint(what)?;
    if found != META_VERSION {
        return Err(DecodeError::UnknownVersion { what, found, known: META_VERSION });
    }
    let value = read(&mut r)?;
    r.end(what)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::wire::seal;
    use crate::types::{LeaderId, Membership, NodeId, NodeInfo};

    fn leader(term: u64, node: u64) -> LeaderId {
        LeaderId { term, node: NodeId::new(node) }
    }

    fn membership() -> Membership {
        let node = |id, name: &str| (NodeId::new(id), NodeInfo { name: name.into(), address: format!("{name}:1") });
        Membership {
            configs: vec![[NodeId::new(1), NodeId::new(2)].into(), [NodeId::new(3)].into()],
            nodes: [node(1, "a"), node(2, "b"), node(3, "c")].into(),
        }
    }

    fn entries() -> Vec<LogEntry> {
        let payloads =
            [Payload::Blank, Payload::Proposal(Bytes::from_static(b"put")), Payload::Membership(membership())];
        let entry = |(i, payload)| LogEntry { log_id: LogId { leader: leader(3, 0x0a0b), index: 300 + i }, payload };
        (0u64..).zip(payloads).map(entry).collect()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_every_row_are_what_they_have_always_been() {
        assert_eq!(
            hex(&encode_row(&entries())),
            GOLDEN_ROW,
            "a change of these bytes needs a new version and a reader of the old one"
        );
        let at = LogId { leader: leader(300, 7), index: 129 };
        assert_eq!(hex(&encode_vote(Vote { leader: leader(300, 7), committed: true })), GOLDEN_VOTE);
        assert_eq!(hex(&encode_position(Some(at))), GOLDEN_POSITION);
        assert_eq!(hex(&encode_position(None)), GOLDEN_NO_POSITION);
    }

    const GOLDEN_ROW: &str = "012c01000000000000030000005079e21c21bfe7a60cac02030b0a0000000000000084dc6bcb0fad02030b0a000000000000\
        01707574619ea9d352ae02030b0a000000000000020202010000000000000002000000000000000103000000000000000301\
        00000000000000016103613a310200000000000000016203623a310300000000000000016303633a31";
    const GOLDEN_VOTE: &str = "ed2f840c01ac02070000000000000001";
    const GOLDEN_POSITION: &str = "8983f1030101ac0207000000000000008101";
    const GOLDEN_NO_POSITION: &str = "be23c2580100";

    #[test]
    fn a_row_gives_back_its_entries_and_no_more() {
        let row = encode_row(&entries());
        assert_eq!(RowHead::read(&row, 300), Ok(RowHead { first: 300, count: 3 }));
        let read: Result<Vec<_>, _> = RowReader::new(row.clone(), 300).unwrap().collect();
        assert_eq!(read, Ok(entries()));
        let longer = Bytes::from([&row[..], &[0]].concat());
        let read: Result<Vec<_>, _> = RowReader::new(longer, 300).unwrap().collect();
        assert_eq!(read, Err(DecodeError::LeftOver { what: "log row", left: 1 }));
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_row_is_seen() {
        let row = encode_row(&entries());
        for bit in 0..row.len() * 8 {
            let mut bad = row.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let read = RowReader::new(bad.into(), 300).and_then(|row| row.collect::<Result<Vec<_>, _>>());
            assert!(read.is_err(), "bit {bit}: {read:?}");
        }
    }

    #[test]
    fn a_row_cut_short_or_moved_to_another_key_is_refused() {
        let row = encode_row(&entries());
        for len in 0..row.len() {
            let read = RowReader::new(row.slice(..len), 300).and_then(|row| row.collect::<Result<Vec<_>, _>>());
            assert!(read.is_err(), "length {len}: {read:?}");
        }
        assert!(RowHead::read(&row, 301).is_err());
    }

    #[test]
    fn votes_and_positions_survive_the_trip_and_refuse_a_newer_version() {
        for committed in [true, false] {
            let vote = Vote { leader: leader(u64::MAX, 9), committed };
            assert_eq!(decode_vote(encode_vote(vote)), Ok(vote));
        }
        for position in [None, Some(LogId { leader: leader(1, 2), index: 3 })] {
            assert_eq!(decode_position(encode_position(position)), Ok(position));
        }
        let newer = seal(&[2, 0]);
        let got = decode_position(newer);
        assert!(matches!(got, Err(DecodeError::UnknownVersion { found: 2, known: 1, .. })), "{got:?}");
    }

    #[test]
    fn an_entry_is_never_counted_as_less_than_it_takes() {
        for entry in entries() {
            let row = encode_row(std::slice::from_ref(&entry));
            assert!(row.len() - ROW_HEAD_BYTES <= entry_bytes(&entry), "{} {entry:?}", row.len());
        }
    }
}
