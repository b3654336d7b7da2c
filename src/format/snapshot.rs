//! The bytes of a snapshot: what one is of, and the chunks it travels in.
//!
//! A snapshot is a sequence of rows: every reachable record in ascending order, then every row of each row space, in
//! the order of [`Part::SENT`], ascending by key. Which chunk a row falls into carries no meaning. Two nodes that have applied
//! the same entries send the same rows, so the digest over meta and rows doubles as a fingerprint of the whole state.
//!
//! ```text
//! chunk  = crc32 of the rest | version | index | last: 0 or 1
//!          | if last: records, rows, bytes (of all rows) | digest: 16 bytes
//!          | rows to the end
//! row    = part: 1 byte | key with length | value with length
//! digest = xxh3-128 of the encoded meta, then of every row as encoded
//! ```

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::parts::{log_id, put_log_id, put_stored_membership, stored_membership};
use crate::format::wire::{DecodeError, Reader, Writer, unseal};
use crate::types::{LogId, StoredMembership};

/// The version every chunk and every meta starts with.
pub(crate) const SNAPSHOT_VERSION: u64 = 1;

/// Rows are added to a chunk until it holds this many bytes. A row is never split: a chunk may be longer by one row.
pub(crate) const CHUNK_BYTES: usize = 256 * 1024;

/// What a snapshot is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SnapshotMeta {
    pub(crate) last_applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl SnapshotMeta {
    /// Names the snapshot. Snapshots of one position are the same row by row, so the position is name enough.
    pub(crate) fn id(&self) -> String {
        self.last_applied.map_or_else(|| "empty".to_owned(), |at| at.to_string())
    }
}

pub(crate) fn encode_meta(meta: &SnapshotMeta) -> Bytes {
    let mut w = Writer::default();
    w.varint(SNAPSHOT_VERSION);
    w.option(meta.last_applied, put_log_id);
    put_stored_membership(&mut w, &meta.membership);
    w.finish()
}

pub(crate) fn decode_meta(bytes: Bytes) -> Result<SnapshotMeta, DecodeError> {
    const WHAT: &str = "snapshot meta";
    let mut r = Reader::new(bytes);
    read_version(&mut r, WHAT)?;
    let last_applied = r.option(WHAT, log_id)?;
    let membership = stored_membership(&mut r)?;
    r.end(WHAT)?;
    Ok(SnapshotMeta { last_applied, membership })
}

fn read_version(r: &mut Reader, what: &'static str) -> Result<(), DecodeError> {
    let found = r.varint("snapshot version")?;
    if found == SNAPSHOT_VERSION {
        Ok(())
    } else {
        Err(DecodeError::UnknownVersion { what, found, known: SNAPSHOT_VERSION })
    }
}

/// The groups of rows of a state.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Records,
    Meta,
    Lease,
    Client,
    Answer,
    /// What the state machine of one node keeps for itself. Never sent.
    Local,
}

impl Part {
    /// What a snapshot holds, in the order in which it is sent; a part's place is its tag.
    pub(crate) const SENT: [Part; 5] = [Part::Records, Part::Meta, Part::Lease, Part::Client, Part::Answer];

    pub(crate) const ALL: [Part; 6] = [Part::Records, Part::Meta, Part::Lease, Part::Client, Part::Answer, Part::Local];

    fn from_tag(tag: u8) -> Result<Self, DecodeError> {
        let unknown = DecodeError::UnknownTag { what: "snapshot part", tag: tag.into() };
        Part::SENT.get(usize::from(tag)).copied().ok_or(unknown)
    }
}

/// One row as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) part: Part,
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
}

/// How much a snapshot holds, counted on both sides.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Records among the rows.
    pub(crate) records: u64,
    pub(crate) rows: u64,
    /// Bytes of all keys and values.
    pub(crate) bytes: u64,
}

/// What the last chunk says about the whole.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) totals: Totals,
    pub(crate) digest: u128,
}

/// Counts rows and folds them into the digest: run by the sender over what it sends, by the receiver over what came.
#[derive(Clone)]
pub(crate) struct Tally {
    totals: Totals,
    digest: Xxh3,
}

impl Tally {
    /// Starts with the meta, so that rows cannot be passed off as those of another position.
    pub(crate) fn new(meta: &[u8]) -> Self {
        let mut digest = Xxh3::new();
        digest.update(meta);
        Tally { totals: Totals::default(), digest }
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary { totals: self.totals, digest: self.digest.digest128() }
    }

    fn count(&mut self, part: Part, key: &[u8], value: &[u8]) {
        self.totals.records += u64::from(part == Part::Records);
        self.totals.rows += 1;
        self.totals.bytes += (key.len() + value.len()) as u64;
    }
}

/// Builds one chunk after the other.
pub(crate) struct ChunkWriter {
    index: u64,
    rows: Writer,
    tally: Tally,
}

impl ChunkWriter {
    pub(crate) fn new(meta: &[u8]) -> Self {
        ChunkWriter { index: 0, rows: Writer::default(), tally: Tally::new(meta) }
    }

    pub(crate) fn push(&mut self, part: Part, key: &[u8], value: &[u8]) {
        self.rows.u8(part as u8);
        self.rows.bytes(key);
        self.rows.bytes(value);
        self.tally.count(part, key, value);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.rows.len() >= CHUNK_BYTES
    }

    /// The chunk of the rows pushed since the last one; `last` appends the summary of all.
    pub(crate) fn seal(&mut self, last: bool) -> Bytes {
        let rows = std::mem::take(&mut self.rows).finish();
        self.tally.digest.update(&rows);
        let mut w = Writer::sealing(rows.len() + 64);
        w.varint(SNAPSHOT_VERSION);
        w.varint(self.index);
        w.option(last.then(|| self.tally.summary()), |w, summary| {
            w.varint(summary.totals.records);
            w.varint(summary.totals.rows);
            w.varint(summary.totals.bytes);
            w.fixed_u128(summary.digest);
        });
        w.raw(&rows);
        self.index += 1;
        w.seal()
    }
}

/// One chunk that arrived whole: its checksum held and every row in it could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) index: u64,
    /// Set on the last chunk.
    pub(crate) summary: Option<Summary>,
    pub(crate) rows: Vec<Row>,
    encoded_rows: Bytes,
}

impl Chunk {
    pub(crate) fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        const WHAT: &str = "snapshot chunk";
        let mut r = Reader::new(unseal(bytes, WHAT)?);
        read_version(&mut r, WHAT)?;
        let index = r.varint("chunk index")?;
        let summary = r.option("snapshot summary", |r| {
            let totals = Totals { records: r.varint("records")?, rows: r.varint("rows")?, bytes: r.varint("bytes")? };
            Ok(Summary { totals, digest: r.fixed_u128("digest")? })
        })?;
        let encoded_rows = r.rest();
        let mut r = Reader::new(encoded_rows.clone());
        let mut rows = Vec::new();
        while r.remaining() > 0 {
            let part = Part::from_tag(r.u8("snapshot part")?)?;
            rows.push(Row { part, key: r.bytes("row key")?, value: r.bytes("row value")? });
        }
        Ok(Chunk { index, summary, rows, encoded_rows })
    }

    /// Counts this chunk's rows. Chunks must be tallied in order.
    pub(crate) fn tally(&self, tally: &mut Tally) {
        for row in &self.rows {
            tally.count(row.part, &row.key, &row.value);
        }
        tally.digest.update(&self.encoded_rows);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::format::wire::seal;
    use crate::types::{LeaderId, Membership, NodeId, NodeInfo};

    fn meta() -> SnapshotMeta {
        let node = NodeId::new(0x0a0b);
        let at = |index| Some(LogId { leader: LeaderId { term: 3, node }, index });
        let info = NodeInfo { name: "a".into(), address: "host:1".into() };
        let membership = Membership { configs: vec![BTreeSet::from([node])], nodes: BTreeMap::from([(node, info)]) };
        SnapshotMeta { last_applied: at(300), membership: StoredMembership { log_id: at(2), membership } }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_a_meta_do_not_change() {
        let bytes = encode_meta(&meta());
        assert_eq!(decode_meta(bytes.clone()), Ok(meta()));
        assert_eq!(
            hex(&bytes),
            "0101030b0a000000000000ac0201030b0a0000000000000201010b0a000000000000010b0a000000000000016106686f73743a31"
        );
        assert_eq!(decode_meta(encode_meta(&SnapshotMeta::default())), Ok(SnapshotMeta::default()));
    }

    #[test]
    fn the_bytes_of_chunks_do_not_change() {
        let mut writer = ChunkWriter::new(&encode_meta(&meta()));
        writer.push(Part::Records, &[1; 12], b"record");
        let first = writer.seal(false);
        writer.push(Part::Answer, b"k", b"");
        let last = writer.seal(true);
        assert_eq!(hex(&first), "d8fad03e010000000c010101010101010101010101067265636f7264");
        assert_eq!(hex(&last), "7d410a980101010102135232ac97e6b4b7f8253852d05732864104016b00");

        let (first, last) = (Chunk::decode(first).unwrap(), Chunk::decode(last).unwrap());
        let row = |part, key: &[u8], value: &[u8]| Row {
            part,
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
        };
        assert_eq!((first.index, first.summary), (0, None));
        assert_eq!(first.rows, [row(Part::Records, &[1; 12], b"record")]);
        assert_eq!(last.index, 1);
        assert_eq!(last.rows, [row(Part::Answer, b"k", b"")]);
        assert_eq!(last.summary.map(|summary| summary.totals), Some(Totals { records: 1, rows: 2, bytes: 19 }));
    }

    #[test]
    fn the_receivers_tally_is_the_senders_wherever_the_rows_were_cut() {
        let rows: Vec<[u8; 12]> = (0..9).map(|i| [i; 12]).collect();
        let mut summaries = Vec::new();
        for cut in [1, 2, 4, 9] {
            let mut writer = ChunkWriter::new(b"meta");
            let mut tally = Tally::new(b"meta");
            let mut chunks = Vec::new();
            for group in rows.chunks(cut) {
                group.iter().for_each(|key| writer.push(Part::Records, key, key));
                chunks.push(writer.seal(false));
            }
            chunks.push(writer.seal(true));
            for chunk in chunks {
                Chunk::decode(chunk).unwrap().tally(&mut tally);
            }
            assert_eq!(tally.summary(), writer.tally.summary(), "cut into {cut}");
            summaries.push(tally.summary());
        }
        summaries.dedup();
        assert_eq!(summaries.len(), 1, "{summaries:?}");
        assert_ne!(Tally::new(b"meta").summary().digest, Tally::new(b"beta").summary().digest);
    }

    #[test]
    fn a_chunk_of_a_newer_release_and_a_row_of_no_known_part_are_refused() {
        let body = |bytes: &[u8]| Chunk::decode(seal(bytes));
        assert!(
            matches!(body(&[2, 0, 0]), Err(DecodeError::UnknownVersion { found: 2, .. })),
            "{:?}",
            body(&[2, 0, 0])
        );
        let local = body(&[1, 0, 0, Part::Local as u8, 0, 0]);
        assert!(matches!(local, Err(DecodeError::UnknownTag { tag: 5, .. })), "{local:?}");
        assert!(body(&[1, 0, 0, 0, 3, 1]).is_err(), "a key of three bytes of which one is there");
    }
}
