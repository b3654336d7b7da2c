//! The state machine's other rows: counters, leases, client records, remembered answers, and the local sweep's place.
//!
//! Every row is sealed (CRC-32, then the body), and every body starts with the format version of its kind. Keys are
//! big-endian, so that they sort by number.

use bytes::Bytes;

use super::command::{format_version, put_response, read_client, read_lease, read_revision};
use super::wire::{DecodeError, Reader, Writer, unseal};
use crate::command::{RecordId, Response};
use crate::types::{ClientId, LeaseId, Revision};

/// Key of the one [`Meta`] row.
pub(crate) const META_KEY: &[u8] = b"counters";
/// Key of the local row that says how far the sweep has come.
pub(crate) const SWEPT_KEY: &[u8] = b"swept";

const META_FORMAT: u8 = 1;
const LEASE_FORMAT: u8 = 1;
const CLIENT_FORMAT: u8 = 1;
const ANSWER_FORMAT: u8 = 1;
const SWEPT_FORMAT: u8 = 1;

/// The counters of the whole store. Its hash is no part of it: that is computed, and must come out the same everywhere.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) revision: Revision,
    pub(crate) floor: Revision,
    /// The next lease to be granted; ids are never used twice.
    pub(crate) next_lease: u64,
    /// The next client to be opened; ids are never used twice.
    pub(crate) next_client: u64,
    /// The vocabulary that may be proposed.
    pub(crate) cluster_version: u32,
}

impl Default for Meta {
    /// The empty store. Identifiers start at 1: zero means "none" where a compare or a compact layout needs a number.
    fn default() -> Self {
        Meta { revision: Revision::ZERO, floor: Revision::ZERO, next_lease: 1, next_client: 1, cluster_version: 1 }
    }
}

/// What a lease was made for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum LeaseKind {
    /// Asked for by name; stays until it expires or is revoked.
    Granted,
    /// Came with a put's time to live; goes with its last key.
    Anonymous,
    /// Carries this client record, which goes with it.
    Client(ClientId),
}

/// One lease. Its keys are not listed: the records name their lease.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseRow {
    pub(crate) ttl_ms: u64,
    pub(crate) kind: LeaseKind,
}

/// One client record.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientRow {
    pub(crate) lease: LeaseId,
    /// A lower bound of the client's watermark: the answers carry it too, and the highest one counts.
    pub(crate) low: u64,
}

/// What is remembered of one number of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AnswerRow {
    /// The client's watermark when the answer was recorded. Kept here because nearly every command moves it, and the
    /// client's own row would have to be written again each time.
    pub(crate) low: u64,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Decided: `applied` is the revision at which it took effect, if it did, and `response` the encoded answer.
    Decided { applied: Option<Revision>, response: Bytes },
    /// Resolved before it was decided: it never will be.
    Never,
}

pub(crate) fn encode_meta(meta: &Meta) -> Bytes {
    let mut w = Writer::sealing(32);
    w.u8(META_FORMAT);
    w.varint(meta.revision.get());
    w.varint(meta.floor.get());
    w.varint(meta.next_lease);
    w.varint(meta.next_client);
    w.varint(meta.cluster_version.into());
    w.seal()
}

pub(crate) fn decode_meta(row: Bytes) -> Result<Meta, DecodeError> {
    let mut r = open(row, "counters", META_FORMAT)?;
    let meta = Meta {
        revision: read_revision(&mut r)?,
        floor: read_revision(&mut r)?,
        next_lease: r.varint("next lease")?,
        next_client: r.varint("next client")?,
        cluster_version: r.varint_u32("cluster version")?,
    };
    r.end("counters")?;
    Ok(meta)
}

pub(crate) fn lease_key(lease: LeaseId) -> [u8; 8] {
    lease.get().to_be_bytes()
}

pub(crate) fn decode_lease_key(key: &[u8]) -> Result<LeaseId, DecodeError> {
    Ok(LeaseId::new(u64::from_be_bytes(fixed_key(key, "lease key")?)))
}

pub(crate) fn encode_lease(lease: &LeaseRow) -> Bytes {
    let mut w = Writer::sealing(16);
    w.u8(LEASE_FORMAT);
    w.varint(lease.ttl_ms);
    match lease.kind {
        LeaseKind::Granted => w.u8(1),
        LeaseKind::Anonymous => w.u8(2),
        LeaseKind::Client(client) => {
            w.u8(3);
            w.varint(client.get());
        }
    }
    w.seal()
}

pub(crate) fn decode_lease(row: Bytes) -> Result<LeaseRow, DecodeError> {
    let mut r = open(row, "lease", LEASE_FORMAT)?;
    let ttl_ms = r.varint("lease ttl")?;
    let kind = match r.u8("lease kind")? {
        1 => LeaseKind::Granted,
        2 => LeaseKind::Anonymous,
        3 => LeaseKind::Client(read_client(&mut r)?),
        tag => return Err(DecodeError::UnknownTag { what: "lease kind", tag: tag.into() }),
    };
    r.end("lease")?;
    Ok(LeaseRow { ttl_ms, kind })
}

pub(crate) fn client_key(client: ClientId) -> [u8; 8] {
    client.get().to_be_bytes()
}

pub(crate) fn decode_client_key(key: &[u8]) -> Result<ClientId, DecodeError> {
    Ok(ClientId::new(u64::from_be_bytes(fixed_key(key, "client key")?)))
}

pub(crate) fn encode_client(client: &ClientRow) -> Bytes {
    let mut w = Writer::sealing(16);
    w.u8(CLIENT_FORMAT);
    w.varint(client.lease.get());
    w.varint(client.low);
    w.seal()
}

pub(crate) fn decode_client(row: Bytes) -> Result<ClientRow, DecodeError> {
    let mut r = open(row, "client", CLIENT_FORMAT)?;
    let client = ClientRow { lease: read_lease(&mut r)?, low: r.varint("client low")? };
    r.end("client")?;
    Ok(client)
}

pub(crate) fn answer_key(client: ClientId, seq: u64) -> [u8; 16] {
    ((u128::from(client.get()) << 64) | u128::from(seq)).to_be_bytes()
}

pub(crate) fn decode_answer_key(key: &[u8]) -> Result<(ClientId, u64), DecodeError> {
    let both = u128::from_be_bytes(fixed_key(key, "answer key")?);
    Ok((ClientId::new((both >> 64) as u64), both as u64))
}

pub(crate) fn encode_answer(answer: &AnswerRow) -> Bytes {
    match &answer.outcome {
        Outcome::Decided { applied, response } => decided(answer.low, *applied, |w| w.raw(response)).0.into(),
        Outcome::Never => {
            let mut w = answer_writer(answer.low);
            w.u8(2);
            w.seal()
        }
    }
}

/// [`encode_answer`] of a response that is not encoded yet, and how many bytes the response takes in it.
pub(crate) fn encode_decided(low: u64, applied: Option<Revision>, response: &Response) -> (Vec<u8>, usize) {
    decided(low, applied, |w| put_response(w, response))
}

fn decided(low: u64, applied: Option<Revision>, put_response: impl FnOnce(&mut Writer)) -> (Vec<u8>, usize) {
    let mut w = answer_writer(low);
    w.u8(1);
    w.option(applied, |w, revision| w.varint(revision.get()));
    let head = w.len();
    put_response(&mut w);
    let size = w.len() - head;
    (w.sealed(), size)
}

fn answer_writer(low: u64) -> Writer {
    let mut w = Writer::sealing(80);
    w.u8(ANSWER_FORMAT);
    w.varint(low);
    w
}

pub(crate) fn decode_answer(row: Bytes) -> Result<AnswerRow, DecodeError> {
    let mut r = open(row, "answer", ANSWER_FORMAT)?;
    let low = r.varint("answer low")?;
    let outcome = match r.u8("answer outcome")? {
        1 => {
            let applied = r.option("answer revision", read_revision)?;
            Outcome::Decided { applied, response: r.rest() }
        }
        2 => {
            r.end("answer")?;
            Outcome::Never
        }
        tag => return Err(DecodeError::UnknownTag { what: "answer outcome", tag: tag.into() }),
    };
    Ok(AnswerRow { low, outcome })
}

/// `swept`: every unreachable record at or below it has been removed.
pub(crate) fn encode_swept(swept: RecordId) -> Bytes {
    let mut w = Writer::sealing(16);
    w.u8(SWEPT_FORMAT);
    w.varint(swept.revision.get());
    w.varint(swept.ordinal.into());
    w.seal()
}

pub(crate) fn decode_swept(row: Bytes) -> Result<RecordId, DecodeError> {
    let mut r = open(row, "sweep position", SWEPT_FORMAT)?;
    let swept = RecordId { revision: read_revision(&mut r)?, ordinal: r.varint_u32("sweep ordinal")? };
    r.end("sweep position")?;
    Ok(swept)
}

fn open(row: Bytes, what: &'static str, known: u8) -> Result<Reader, DecodeError> {
    let mut r = Reader::new(unseal(row, what)?);
    format_version(&mut r, what, known)?;
    Ok(r)
}

fn fixed_key<const N: usize>(key: &[u8], what: &'static str) -> Result<[u8; N], DecodeError> {
    key.try_into().map_err(|_| DecodeError::TooLarge { what, size: key.len() as u64, limit: N as u64 })
}

#[cfg(test)]
mod tests {
    use super::super::command::encode_response;
    use super::super::wire::golden::pinned;
    use super::*;
    use crate::command::{Refusal, Response};

    #[test]
    fn every_row_keeps_its_bytes() {
        let (revision, floor) = (Revision::new(300), Revision::new(200));
        let meta = Meta { revision, floor, next_lease: 5, next_client: 6, cluster_version: 1 };
        pinned(
            encode_meta,
            decode_meta,
            &[(Meta::default(), "e6194015010000010101"), (meta, "6256042201ac02c801050601")],
        );
        let lease = |kind| LeaseRow { ttl_ms: 10_000, kind };
        pinned(
            encode_lease,
            decode_lease,
            &[
                (lease(LeaseKind::Granted), "9452167d01904e01"),
                (lease(LeaseKind::Anonymous), "2e031fe401904e02"),
                (lease(LeaseKind::Client(ClientId::new(300))), "8856a93e01904e03ac02"),
            ],
        );
        let client = ClientRow { lease: LeaseId::new(300), low: 4097 };
        pinned(encode_client, decode_client, &[(client, "bc258de601ac028120")]);
        let swept = RecordId { revision, ordinal: u32::MAX };
        pinned(|swept| encode_swept(*swept), decode_swept, &[(swept, "95d229cd01ac02ffffffff0f")]);
    }

    #[test]
    fn a_remembered_answer_keeps_its_bytes() {
        let response = encode_response(&Response::Refused(Refusal::Sealed));
        let decided = |applied| Outcome::Decided { applied, response: response.clone() };
        let golden = [
            (AnswerRow { low: 300, outcome: decided(Some(Revision::new(301))) }, "d47828ff01ac020101ad02010a04"),
            (AnswerRow { low: 300, outcome: decided(None) }, "f2a86ba501ac020100010a04"),
            (AnswerRow { low: 0, outcome: Outcome::Never }, "09d28d10010002"),
        ];
        // The response is the rest of the row, so a row cut short or run long is told by its checksum alone.
        pinned(encode_answer, decode_answer, &golden);
    }

    #[test]
    fn keys_of_rows_sort_by_number_and_are_read_back() {
        let numbers = [0, 1, 255, 256, u64::MAX];
        let leases: Vec<_> = numbers.iter().map(|n| lease_key(LeaseId::new(*n))).collect();
        let clients: Vec<_> = numbers.iter().map(|n| client_key(ClientId::new(*n))).collect();
        assert!(leases.is_sorted() && clients.is_sorted());
        for (place, n) in numbers.into_iter().enumerate() {
            assert_eq!(decode_lease_key(&leases[place]), Ok(LeaseId::new(n)));
            assert_eq!(decode_client_key(&clients[place]), Ok(ClientId::new(n)));
            assert_eq!(decode_answer_key(&answer_key(ClientId::new(7), n)), Ok((ClientId::new(7), n)));
        }
        let answers = [(1, u64::MAX), (2, 0), (2, 1)].map(|(client, seq)| answer_key(ClientId::new(client), seq));
        assert!(answers.is_sorted());
        assert!(decode_lease_key(b"short").is_err() && decode_answer_key(&[0; 15]).is_err());
    }
}
