//! The block: neighbouring records in one row of `state.redb`.
//!
//! The database looks up, copies and writes page by page. A record is a tenth of a page, so with a row for each of them most
//! of the work would be the database's; a block is written by one search and one system call.
//!
//! ```text
//! block = crc32 of what stands before the records | version: 1 byte | count: 4 bytes
//!         | count x ( revision: 8 bytes | ordinal: 4 bytes | where the record ends: 4 bytes ) | the records
//! ```
//!
//! Numbers are little-endian; ends count from the first byte of the first record. Ids ascend, and the first of them is the
//! key of the row. The checksum is that of the list alone: each record has one of its own.

use super::wire::DecodeError;
use crate::command::RecordId;
use crate::types::Revision;

/// A block is closed rather than made longer than this, unless it is of one record. With its key and what the database adds
/// it fills a page of 16 KiB.
pub(crate) const BLOCK_BYTES_MAX: usize = 16 * 1024 - 64;

const VERSION: u8 = 1;
const CRC_BYTES: usize = 4;
const HEAD_BYTES: usize = CRC_BYTES + 1 + 4;
const ITEM_BYTES: usize = 8 + 4 + 4;
const WHAT: &str = "block of records";

/// Bytes of a block that holds `count` records of `bytes` in all.
const fn block_bytes(count: usize, bytes: usize) -> usize {
    HEAD_BYTES + count * ITEM_BYTES + bytes
}

/// Collects the records of one block, in ascending order.
#[derive(Debug, Default)]
pub(crate) struct BlockWriter {
    first: Option<RecordId>,
    items: Vec<u8>,
    records: Vec<u8>,
}

impl BlockWriter {
    /// The key of the row; `None` while there is no record.
    pub(crate) fn first(&self) -> Option<RecordId> {
        self.first
    }

    /// Whether a record of `bytes` can be added without making the block too long. An empty block takes any.
    pub(crate) fn takes(&self, bytes: usize) -> bool {
        let count = self.items.len() / ITEM_BYTES;
        count == 0 || block_bytes(count + 1, self.records.len() + bytes) <= BLOCK_BYTES_MAX
    }

    /// Adds a record, above those that are there.
    pub(crate) fn push(&mut self, id: RecordId, record: &[u8]) {
        self.first.get_or_insert(id);
        self.records.extend_from_slice(record);
        let end = u32::try_from(self.records.len()).expect("a record is shorter than 4 GiB");
        self.items.extend_from_slice(&id.revision.get().to_le_bytes());
        self.items.extend_from_slice(&id.ordinal.to_le_bytes());
        self.items.extend_from_slice(&end.to_le_bytes());
    }

    /// Bytes of the block so far.
    pub(crate) fn len(&self) -> usize {
        block_bytes(self.items.len() / ITEM_BYTES, self.records.len())
    }

    /// Puts the block in the place of what is in `bytes`, and begins the next one.
    pub(crate) fn seal_into(&mut self, bytes: &mut Vec<u8>) {
        let count = u32::try_from(self.items.len() / ITEM_BYTES).expect("each record takes room in memory");
        bytes.clear();
        bytes.resize(HEAD_BYTES, VERSION);
        bytes[CRC_BYTES + 1..].copy_from_slice(&count.to_le_bytes());
        let crc = checksum(&bytes[CRC_BYTES..], &self.items);
        bytes[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&self.items);
        bytes.extend_from_slice(&self.records);
        self.first = None;
        self.items.clear();
        self.records.clear();
    }
}

/// A block as it is stored.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Block<'a> {
    items: &'a [u8],
    records: &'a [u8],
}

impl<'a> Block<'a> {
    /// # Errors
    /// [`DecodeError::Checksum`] for a list that is damaged. The records themselves are not looked at.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES).ok_or(DecodeError::Truncated(WHAT))?;
        let found = u32_of(&head[..CRC_BYTES]);
        let count = u32_of(&head[CRC_BYTES + 1..]) as usize;
        let (items, records) =
            rest.split_at_checked(count.saturating_mul(ITEM_BYTES)).ok_or(DecodeError::Truncated(WHAT))?;
        let computed = checksum(&head[CRC_BYTES..], items);
        if found != computed {
            return Err(DecodeError::Checksum { what: WHAT, found, computed });
        }
        if head[CRC_BYTES] != VERSION {
            let (found, known) = (head[CRC_BYTES].into(), VERSION.into());
            return Err(DecodeError::UnknownVersion { what: WHAT, found, known });
        }
        let block = Block { items, records };
        let end = block.count().checked_sub(1).map_or(0, |last| block.end(last));
        match records.len().checked_sub(end) {
            Some(0) => Ok(block),
            Some(left) => Err(DecodeError::LeftOver { what: WHAT, left }),
            None => Err(DecodeError::Truncated(WHAT)),
        }
    }

    /// The record `id`, if it is here.
    pub(crate) fn find(&self, id: RecordId) -> Result<Option<&'a [u8]>, DecodeError> {
        let at = self.first_from(id);
        match at < self.count() && self.id(at) == id {
            true => self.record(at).map(Some),
            false => Ok(None),
        }
    }

    pub(crate) fn first(&self) -> Option<RecordId> {
        (self.count() > 0).then(|| self.id(0))
    }

    pub(crate) fn last(&self) -> Option<RecordId> {
        self.count().checked_sub(1).map(|at| self.id(at))
    }

    /// The records from `id` on.
    pub(crate) fn from(self, id: RecordId) -> impl Iterator<Item = Result<(RecordId, &'a [u8]), DecodeError>> {
        (self.first_from(id)..self.count()).map(move |at| Ok((self.id(at), self.record(at)?)))
    }

    fn count(&self) -> usize {
        self.items.len() / ITEM_BYTES
    }

    /// Where the first record stands that is not below `id`.
    fn first_from(&self, id: RecordId) -> usize {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low.midpoint(high);
            if self.id(middle) < id { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn id(&self, at: usize) -> RecordId {
        let item = &self.items[at * ITEM_BYTES..];
        let revision = u64::from_le_bytes(*item.first_chunk().expect("an item begins with 8 bytes"));
        RecordId { revision: Revision::new(revision), ordinal: u32_of(&item[8..]) }
    }

    fn end(&self, at: usize) -> usize {
        u32_of(&self.items[at * ITEM_BYTES + 12..]) as usize
    }

    fn record(&self, at: usize) -> Result<&'a [u8], DecodeError> {
        let start = at.checked_sub(1).map_or(0, |before| self.end(before));
        self.records.get(start..self.end(at)).ok_or(DecodeError::Truncated(WHAT))
    }
}

/// `bytes` with the checksum that a block of them should have.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some((head, rest)) = bytes.split_at_mut_checked(HEAD_BYTES) {
        let items = (u32_of(&head[CRC_BYTES + 1..]) as usize).saturating_mul(ITEM_BYTES).min(rest.len());
        let crc = checksum(&head[CRC_BYTES..], &rest[..items]);
        head[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

fn checksum(head: &[u8], items: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(items);
    crc.finalize()
}

fn u32_of(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(*bytes.first_chunk().expect("called with 4 bytes or more"))
}

#[cfg(test)]
mod tests {
    use super::super::wire::golden::hex;
    use super::*;

    fn id(revision: u64, ordinal: u32) -> RecordId {
        RecordId { revision: Revision::new(revision), ordinal }
    }

    fn block_of(records: &[(RecordId, &[u8])]) -> Vec<u8> {
        let mut writer = BlockWriter::default();
        records.iter().for_each(|(id, record)| writer.push(*id, record));
        let (len, mut block) = (writer.len(), vec![0xff; 100]);
        writer.seal_into(&mut block);
        assert_eq!(block.len(), len);
        assert!(writer.first().is_none() && writer.len() == HEAD_BYTES, "the next block begins with nothing");
        block
    }

    #[test]
    fn a_block_keeps_its_bytes() {
        let block = block_of(&[(id(300, 0), b"one"), (id(300, 1), b""), (id(302, 0), b"three")]);
        let pinned = "d7afce0801030000002c010000000000000000000003000000\
                      2c0100000000000001000000030000002e01000000000000000000000800\
                      00006f6e657468726565";
        assert_eq!(hex(&block), pinned);
    }

    #[test]
    fn records_are_found_by_id_and_from_an_id_on() {
        let records = [(id(3, 0), &b"a"[..]), (id(3, 1), b"bb"), (id(3, 7), b""), (id(9, 0), b"ccc")];
        let bytes = block_of(&records);
        let block = Block::decode(&bytes).unwrap();
        for (id, record) in records {
            assert_eq!(block.find(id).unwrap(), Some(record));
        }
        for gone in [id(0, 0), id(3, 2), id(4, 0), id(9, 1), id(u64::MAX, u32::MAX)] {
            assert_eq!(block.find(gone).unwrap(), None);
        }
        for (from, left) in [(id(0, 0), 4), (id(3, 1), 3), (id(3, 2), 2), (id(9, 0), 1), (id(9, 1), 0)] {
            let found: Vec<_> = block.from(from).collect::<Result<_, _>>().unwrap();
            assert_eq!(found, records[records.len() - left..], "from {from:?}");
        }
    }

    #[test]
    fn a_block_is_closed_before_it_is_too_long_but_one_record_may_be_of_any_length() {
        let mut writer = BlockWriter::default();
        assert!(writer.takes(1 << 20));
        let mut revision = 0;
        while writer.takes(300) {
            revision += 1;
            writer.push(id(revision, 0), &[7; 300]);
        }
        assert!(writer.len() <= BLOCK_BYTES_MAX && writer.len() + 300 + ITEM_BYTES > BLOCK_BYTES_MAX);
        assert!(!writer.takes(1 << 20));
    }

    #[test]
    fn a_flipped_bit_in_the_list_of_a_block_is_seen_and_so_is_a_missing_end() {
        let bytes = block_of(&[(id(300, 0), b"one"), (id(301, 0), b"two")]);
        for bit in 0..(HEAD_BYTES + 2 * ITEM_BYTES) * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let found = Block::decode(&bad);
            assert!(
                matches!(found, Err(DecodeError::Checksum { .. } | DecodeError::Truncated(_))),
                "bit {bit}: {found:?}"
            );
        }
        for len in 0..bytes.len() {
            let read = Block::decode(&bytes[..len])
                .and_then(|block| block.from(id(0, 0)).try_for_each(|record| record.map(drop)));
            assert!(read.is_err(), "the first {len} bytes");
        }
    }

    #[test]
    fn a_block_of_a_newer_release_is_told_from_a_damaged_one() {
        let mut bytes = block_of(&[(id(1, 0), b"one")]);
        bytes[CRC_BYTES] = 2;
        let bytes = sealed(&bytes);
        assert!(Block::decode(&bytes).is_err_and(|error| error.is_newer()));
    }
}
