//! What the frames of `log.wal` say: the changes of the log, in the order in which they were made.
//!
//! ```text
//! payload   = item*
//! item      = 0 entry | 1 keep: log id? (truncate) | 2 log id (purge) | 3 vote | 4 log id? (committed) | 5 identity row
//!           | 6 opening | 7 (closed), each behind its number as u8
//! entry     = crc: u32 LE of body, body length: varint, body
//! body      = index: varint, leader, kind: u8, payload to the end of the body
//! kind      = 0 blank (no payload) | 1 proposal (its bytes) | 2 membership
//! opening   = vote?, committed: log id?, purged: log id?, first: varint, last: log id?, identity row
//! ```
//!
//! The first item of a segment is its opening, and it is nowhere else: it repeats what the segments before said, but for
//! the entries. So a segment can go once its entries are not needed any more.
//!
//! An entry has a checksum of its own, beside that of the frame: it is read back alone, years later, from bytes that a
//! disk may have lost.

use bytes::Bytes;

use super::parts::{self, put_leader, put_log_id, put_membership, put_vote};
use super::wire::{DecodeError, Reader, Writer};
use crate::types::{LogEntry, LogId, Payload, Vote};

/// What a log says of itself without its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// The index of the first entry; without meaning while there is none.
    pub(crate) first: u64,
    /// The last entry, or what is purged.
    pub(crate) last: Option<LogId>,
}

/// What a segment begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) summary: Summary,
    /// The row of [`super::identity`].
    pub(crate) identity: Bytes,
}

/// One change of the log. Entries come by a way of their own: they are written without being copied first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Entry(LogEntry),
    /// Everything behind `keep` goes; everything there is, if that is none.
    Truncate(Option<LogId>),
    Purge(LogId),
    Vote(Vote),
    Committed(Option<LogId>),
    /// The row of [`super::identity`].
    Identity(Bytes),
    Opening(Box<Opening>),
    /// The log was closed here, with nothing left to write.
    Closed,
}

pub(super) fn put_item(w: &mut Writer, item: &Item) {
    match item {
        Item::Entry(entry) => drop(put_entry_item(w, entry)),
        Item::Truncate(keep) => {
            w.u8(1);
            w.option(*keep, put_log_id);
        }
        Item::Purge(upto) => {
            w.u8(2);
            put_log_id(w, *upto);
        }
        Item::Vote(vote) => {
            w.u8(3);
            put_vote(w, vote);
        }
        Item::Committed(committed) => {
            w.u8(4);
            w.option(*committed, put_log_id);
        }
        Item::Identity(row) => {
            w.u8(5);
            w.bytes(row);
        }
        Item::Opening(opening) => put_opening(w, opening),
        Item::Closed => w.u8(7),
    }
}

pub(super) fn put_opening(w: &mut Writer, opening: &Opening) {
    let Opening { summary: Summary { vote, committed, purged, first, last }, identity } = opening;
    w.u8(6);
    w.option(*vote, |w, vote| put_vote(w, &vote));
    w.option(*committed, put_log_id);
    w.option(*purged, put_log_id);
    w.varint(*first);
    w.option(*last, put_log_id);
    w.bytes(identity);
}

/// Answers where the entry begins in `w`, behind the number of its kind of item, and how many bytes it takes.
pub(super) fn put_entry_item(w: &mut Writer, entry: &LogEntry) -> (usize, u32) {
    let (kind, payload) = match &entry.payload {
        Payload::Blank => (0, Bytes::new()),
        Payload::Proposal(bytes) => (1, bytes.clone()),
        Payload::Membership(membership) => {
            let mut w = Writer::default();
            put_membership(&mut w, membership);
            (2, w.finish())
        }
    };
    // The payload is hashed where it lies and copied once, straight into the frame.
    let mut front = Writer::with_capacity(ENTRY_OVERHEAD_BYTES);
    front.varint(entry.log_id.index);
    put_leader(&mut front, entry.log_id.leader);
    front.u8(kind);
    let mut crc = crc32fast::Hasher::new();
    crc.update(front.as_slice());
    crc.update(&payload);
    w.u8(0);
    let begin = w.len();
    w.fixed_u32(crc.finalize());
    w.varint((front.len() + payload.len()) as u64);
    w.raw(front.as_slice());
    w.raw(&payload);
    (begin, u32::try_from(w.len() - begin).expect("an entry is smaller than a segment"))
}

/// Takes the items out of a payload, one after the other.
#[derive(Debug)]
pub(crate) struct Items {
    left: Reader,
    bytes: usize,
}

/// An item and where it lies in the payload; of an entry, what is to be read again to have it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) item: Item,
    pub(crate) at: usize,
    pub(crate) len: u32,
}

impl Items {
    pub(crate) fn new(payload: Bytes) -> Self {
        Items { bytes: payload.len(), left: Reader::new(payload) }
    }

    fn item(&mut self) -> Result<Placed, DecodeError> {
        const WHAT: &str = "log item";
        let r = &mut self.left;
        let kind = r.u8(WHAT)?;
        let at = self.bytes - r.remaining();
        let item = match kind {
            0 => Item::Entry(take_entry(r)?),
            1 => Item::Truncate(r.option(WHAT, parts::log_id)?),
            2 => Item::Purge(parts::log_id(r)?),
            3 => Item::Vote(parts::vote(r)?),
            4 => Item::Committed(r.option(WHAT, parts::log_id)?),
            5 => Item::Identity(r.bytes(WHAT)?),
            6 => Item::Opening(Box::new(opening(r)?)),
            7 => Item::Closed,
            tag => return Err(DecodeError::UnknownTag { what: WHAT, tag: tag.into() }),
        };
        let len = self.bytes - self.left.remaining() - at;
        Ok(Placed { item, at, len: u32::try_from(len).expect("a payload's length is a u32") })
    }
}

impl Iterator for Items {
    type Item = Result<Placed, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.left.remaining() > 0).then(|| self.item())
    }
}

fn opening(r: &mut Reader) -> Result<Opening, DecodeError> {
    const WHAT: &str = "opening of a segment";
    let summary = Summary {
        vote: r.option(WHAT, parts::vote)?,
        committed: r.option(WHAT, parts::log_id)?,
        purged: r.option(WHAT, parts::log_id)?,
        first: r.varint(WHAT)?,
        last: r.option(WHAT, parts::log_id)?,
    };
    Ok(Opening { summary, identity: r.bytes(WHAT)? })
}

/// Reads the entry `index` from the bytes that [`Placed`] told of.
pub(crate) fn decode_entry(bytes: Bytes, index: u64) -> Result<LogEntry, DecodeError> {
    let mut r = Reader::new(bytes);
    let entry = take_entry(&mut r)?;
    r.end("log entry")?;
    if entry.log_id.index == index {
        Ok(entry)
    } else {
        Err(DecodeError::UnknownTag { what: "log index", tag: entry.log_id.index })
    }
}

fn take_entry(r: &mut Reader) -> Result<LogEntry, DecodeError> {
    const WHAT: &str = "log entry";
    let found = r.fixed_u32(WHAT)?;
    let body = r.bytes(WHAT)?;
    let computed = crc32fast::hash(&body);
    if found != computed {
        return Err(DecodeError::Checksum { what: WHAT, found, computed });
    }
    let mut r = Reader::new(body);
    let index = r.varint(WHAT)?;
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
    Ok(LogEntry { log_id, payload })
}

/// About what an entry takes, in memory and on disk, and never less than on disk. Limits count in it.
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

/// Most that any other item takes, an identity or an opening apart from the row in it.
pub(crate) const ITEM_BYTES_MAX: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::wire::golden::hex;
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

    fn at() -> LogId {
        LogId { leader: leader(300, 7), index: 129 }
    }

    fn opening() -> Opening {
        let summary = Summary {
            vote: Some(Vote { leader: leader(300, 7), committed: true }),
            committed: Some(at()),
            purged: None,
            first: 5,
            last: Some(at()),
        };
        Opening { summary, identity: Bytes::from_static(b"who") }
    }

    fn items() -> Vec<Item> {
        let mut items: Vec<Item> = entries().into_iter().map(Item::Entry).collect();
        items.extend([
            Item::Truncate(None),
            Item::Truncate(Some(at())),
            Item::Purge(at()),
            Item::Vote(Vote { leader: leader(300, 7), committed: true }),
            Item::Committed(None),
            Item::Committed(Some(at())),
            Item::Identity(Bytes::from_static(b"who")),
            Item::Opening(Box::new(opening())),
            Item::Closed,
        ]);
        items
    }

    fn encode(items: &[Item]) -> Bytes {
        let mut w = Writer::default();
        items.iter().for_each(|item| put_item(&mut w, item));
        w.finish()
    }

    #[test]
    fn the_bytes_of_every_item_are_what_they_have_always_been() {
        let found: Vec<String> = items().iter().map(|item| hex(&encode(std::slice::from_ref(item)))).collect();
        assert_eq!(found, GOLDEN, "a change of these bytes needs a new version and a reader of the old one");
    }

    const GOLDEN: [&str; 12] = [
        "0021bfe7a60cac02030b0a00000000000000",
        "0084dc6bcb0fad02030b0a00000000000001707574",
        "00619ea9d352ae02030b0a000000000000020202010000000000000002000000000000000103000000000000000301000000\
         00000000016103613a310200000000000000016203623a310300000000000000016303633a31",
        "0100",
        "0101ac0207000000000000008101",
        "02ac0207000000000000008101",
        "03ac02070000000000000001",
        "0400",
        "0401ac0207000000000000008101",
        "050377686f",
        "0601ac0207000000000000000101ac0207000000000000008101000501ac02070000000000000081010377686f",
        "07",
    ];

    #[test]
    fn a_payload_gives_back_its_items_in_their_order_and_entries_also_alone() {
        let payload = encode(&items());
        let read: Vec<Placed> = Items::new(payload.clone()).collect::<Result<_, _>>().unwrap();
        assert_eq!(read.iter().map(|placed| placed.item.clone()).collect::<Vec<_>>(), items());
        for placed in read {
            let Item::Entry(entry) = placed.item else { continue };
            let alone = payload.slice(placed.at..placed.at + placed.len as usize);
            assert_eq!(decode_entry(alone.clone(), entry.log_id.index), Ok(entry.clone()));
            assert!(decode_entry(alone, entry.log_id.index + 1).is_err(), "as another entry");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_in_an_entry_is_seen() {
        for entry in entries() {
            let bytes = encode(&[Item::Entry(entry.clone())]).slice(1..);
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                let read = decode_entry(bad.into(), entry.log_id.index);
                assert!(read.is_err(), "bit {bit}: {read:?}");
            }
        }
    }

    #[test]
    fn an_item_cut_short_or_of_an_unknown_kind_is_refused() {
        for item in items() {
            let bytes = encode(&[item]);
            for len in 1..bytes.len() {
                let read: Result<Vec<_>, _> = Items::new(bytes.slice(..len)).collect();
                assert!(read.is_err(), "length {len}: {read:?}");
            }
        }
        assert!(Items::new(Bytes::from_static(&[8])).next().expect("there is something").is_err());
    }

    #[test]
    fn nothing_is_ever_counted_as_less_than_it_takes() {
        for entry in entries() {
            let most = LogId { leader: leader(u64::MAX, u64::MAX), index: u64::MAX - 20 };
            let entry = LogEntry { log_id: most, ..entry };
            let taken = encode(&[Item::Entry(entry.clone())]).len();
            assert!(taken <= entry_bytes(&entry), "{taken} {entry:?}");
        }
        let most = Some(LogId { leader: leader(u64::MAX, u64::MAX), index: u64::MAX });
        let vote = Some(Vote { leader: leader(u64::MAX, u64::MAX), committed: true });
        let summary = Summary { vote, committed: most, purged: most, first: u64::MAX, last: most };
        let opening = Item::Opening(Box::new(Opening { summary, identity: Bytes::new() }));
        let taken = encode(&[opening]).len();
        assert!(taken <= ITEM_BYTES_MAX, "{taken}");
    }
}
