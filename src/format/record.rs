//! The record: one write of one key, and the only place where its value is stored.
//!
//! Stored bytes: the body, then a CRC-32 over the record's id and the body. The database below does not verify its pages
//! when it reads them, so the checksum is what stands between a rotten page and a wrong answer; the id in it also catches
//! a good record in a wrong place.

use bytes::Bytes;

use super::command::{format_version, read_client, read_lease, read_revision};
use super::wire::{DecodeError, Reader, Writer};
use crate::command::{ChangeKind, RecordId};
use crate::types::{LeaseId, NodeId, Revision, Ticket};

/// One write of one key. The revision of the write is in its [`RecordId`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: ChangeKind,
    pub(crate) key: Bytes,
    /// Empty for a delete.
    pub(crate) value: Bytes,
    /// For a delete: when the deleted key had been created.
    pub(crate) created: Revision,
    /// For a delete: the version that was deleted.
    pub(crate) version: u64,
    /// The live record this one supersedes; `None` if the key was not there.
    pub(crate) prev: Option<RecordId>,
    /// For a delete: the lease the deleted key hung on.
    pub(crate) lease: Option<LeaseId>,
    /// The node whose host asked for the write.
    pub(crate) origin: NodeId,
    /// The client's number for the write; the cluster's own housekeeping has none.
    pub(crate) ticket: Option<Ticket>,
    /// The proposer's wall clock, milliseconds since 1970: shown to people, never decided on.
    pub(crate) wall_ms: u64,
    /// Index of the log entry that wrote it.
    pub(crate) index: u64,
}

impl Record {
    pub(crate) fn is_live(&self) -> bool {
        self.kind == ChangeKind::Put
    }
}

const RECORD_FORMAT: u8 = 1;
const CRC_BYTES: usize = 4;

pub(crate) fn encode_record(id: RecordId, record: &Record) -> Vec<u8> {
    encode_record_into(Vec::new(), id, record)
}

/// [`encode_record`] in the room of `buffer`, whose content goes.
pub(crate) fn encode_record_into(buffer: Vec<u8>, id: RecordId, record: &Record) -> Vec<u8> {
    let mut w = Writer::in_place_of(buffer, record.key.len() + record.value.len() + 64);
    w.u8(RECORD_FORMAT);
    w.u8(match record.kind {
        ChangeKind::Put => 1,
        ChangeKind::Deleted => 2,
        ChangeKind::Expired => 3,
    });
    w.bytes(&record.key);
    w.bytes(&record.value);
    w.varint(record.created.get());
    w.varint(record.version);
    w.option(record.prev, |w, prev| {
        w.varint(prev.revision.get());
        w.varint(prev.ordinal.into());
    });
    w.option(record.lease, |w, lease| w.varint(lease.get()));
    w.fixed_u64(record.origin.get());
    w.option(record.ticket, |w, ticket| {
        w.varint(ticket.client.get());
        w.varint(ticket.seq);
    });
    w.varint(record.wall_ms);
    w.varint(record.index);
    w.fixed_u32(checksum(id, w.as_slice()));
    w.into_vec()
}

/// # Errors
/// [`DecodeError::Checksum`] for bytes that are damaged or stand in another record's place.
pub(crate) fn decode_record(id: RecordId, mut bytes: Bytes) -> Result<Record, DecodeError> {
    let body_len = bytes.len().checked_sub(CRC_BYTES).ok_or(DecodeError::Truncated("record"))?;
    let found = Reader::new(bytes.split_off(body_len)).fixed_u32("record checksum")?;
    let computed = checksum(id, &bytes);
    if found != computed {
        return Err(DecodeError::Checksum { what: "record", found, computed });
    }
    let mut r = Reader::new(bytes);
    format_version(&mut r, "record", RECORD_FORMAT)?;
    let kind = match r.u8("record kind")? {
        1 => ChangeKind::Put,
        2 => ChangeKind::Deleted,
        3 => ChangeKind::Expired,
        tag => return Err(DecodeError::UnknownTag { what: "record kind", tag: tag.into() }),
    };
    let record = Record {
        kind,
        key: r.bytes("record key")?,
        value: r.bytes("record value")?,
        created: read_revision(&mut r)?,
        version: r.varint("record version")?,
        prev: r.option("record prev", |r| {
            Ok(RecordId { revision: read_revision(r)?, ordinal: r.varint_u32("prev ordinal")? })
        })?,
        lease: r.option("record lease", read_lease)?,
        origin: NodeId::new(r.fixed_u64("record origin")?),
        ticket: r.option("record ticket", |r| Ok(Ticket { client: read_client(r)?, seq: r.varint("ticket seq")? }))?,
        wall_ms: r.varint("record time")?,
        index: r.varint("record index")?,
    };
    r.end("record")?;
    Ok(record)
}

/// What stands behind the body of the record `id`.
pub(crate) fn checksum(id: RecordId, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&id.revision.get().to_le_bytes());
    crc.update(&id.ordinal.to_le_bytes());
    crc.update(body);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::super::wire::golden::{hex, pinned};
    use super::*;

    use crate::types::ClientId;

    const ID: RecordId = RecordId { revision: Revision::new(300), ordinal: 2 };

    fn record() -> Record {
        Record {
            kind: ChangeKind::Put,
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(b"value"),
            created: Revision::new(5),
            version: 2,
            prev: Some(RecordId { revision: Revision::new(299), ordinal: 1 }),
            lease: Some(LeaseId::new(7)),
            origin: NodeId::new(0xabcd),
            ticket: Some(Ticket { client: ClientId::new(3), seq: 300 }),
            wall_ms: 1_700_000_000_000,
            index: 301,
        }
    }

    #[test]
    fn every_kind_of_record_keeps_its_bytes() {
        let first = Record { prev: None, lease: None, ticket: None, version: 1, created: ID.revision, ..record() };
        let deleted = Record { kind: ChangeKind::Deleted, value: Bytes::new(), ..record() };
        let expired = Record { kind: ChangeKind::Expired, ticket: None, ..deleted.clone() };
        pinned(
            |record| encode_record(ID, record).into(),
            |bytes| decode_record(ID, bytes),
            &[
                (record(), "0101036b65790576616c7565050201ab02010107cdab0000000000000103ac0280d095ffbc31ad02c8ff355f"),
                (first, "0101036b65790576616c7565ac02010000cdab0000000000000080d095ffbc31ad02eab5cd7a"),
                (deleted, "0102036b657900050201ab02010107cdab0000000000000103ac0280d095ffbc31ad02af50d852"),
                (expired, "0103036b657900050201ab02010107cdab0000000000000080d095ffbc31ad0258588b1f"),
            ],
        );
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_record_is_seen() {
        let stored = Bytes::from(encode_record(ID, &record()));
        for bit in 0..stored.len() * 8 {
            let mut bad = stored.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let found = decode_record(ID, bad.into());
            assert!(matches!(found, Err(DecodeError::Checksum { .. })), "bit {bit}: {found:?}");
        }
    }

    #[test]
    fn a_record_in_another_ones_place_is_seen() {
        let stored = Bytes::from(encode_record(ID, &record()));
        let places = [RecordId { ordinal: 3, ..ID }, RecordId { revision: Revision::new(301), ..ID }];
        for place in places {
            let found = decode_record(place, stored.clone());
            assert!(matches!(found, Err(DecodeError::Checksum { .. })), "{place:?}: {found:?}");
        }
        assert_eq!(hex(&encode_record(ID, &record())), hex(&stored));
    }
}
