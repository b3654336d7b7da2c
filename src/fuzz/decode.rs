//! Decoders: they refuse what they do not understand, and what they understand has one spelling.

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::Bytes;

use crate::codec::{Json, Raw, Value};
use crate::command::RecordId;
use crate::format::block::{self, Block, BlockWriter};
use crate::format::log::{FileHead, Frame, FrameHead};
use crate::format::log_items::{Items, Placed};
use crate::format::wire::{DecodeError, Writer, seal};
use crate::format::{claim, command, identity, message, record, rows, snapshot};
use crate::types::Revision;

/// A format, given the bytes that stand in it, without the checksum.
type Format = fn(Bytes);

/// What travels between nodes. A corpus names a format by its place: new ones come last.
pub(super) const WIRE: [Format; 4] = [
    |body| {
        canonical(seal(&body), message::decode_request, |(header, request)| message::encode_request(header, request))
    },
    |body| canonical(seal(&body), message::decode_reply, |(header, reply)| message::encode_reply(header, reply)),
    |body| canonical(body, command::decode_proposal, command::encode_proposal),
    |body| canonical(body, command::decode_response, command::encode_response),
];

/// What is kept in files. A corpus names a format by its place: new ones come last.
pub(super) const STORAGE: [Format; 15] = [
    log_payload,
    log_head,
    log_frame,
    |body| canonical(seal(&body), identity::decode_identity, identity::encode_identity),
    |body| canonical(seal(&body), rows::decode_meta, rows::encode_meta),
    |body| canonical(seal(&body), rows::decode_lease, rows::encode_lease),
    |body| canonical(seal(&body), rows::decode_client, rows::encode_client),
    |body| canonical(seal(&body), rows::decode_answer, rows::encode_answer),
    |body| canonical(seal(&body), rows::decode_swept, |swept| rows::encode_swept(*swept)),
    one_record,
    |body| canonical(body, snapshot::decode_meta, snapshot::encode_meta),
    chunk,
    |body| canonical(body, claim::decode_claim, claim::encode_claim),
    value,
    |body| {
        one_block(&body);
        one_block(&block::sealed(&body));
    },
];

/// Reads `data` as what its first byte says, as it is and with the checksum it should have.
pub(super) fn run(formats: &[Format], data: &[u8]) {
    let Some((selector, body)) = data.split_first() else { return };
    formats[usize::from(*selector) % formats.len()](Bytes::copy_from_slice(body));
}

/// What is understood is written down in the same bytes: one meaning, one spelling.
fn canonical<T: Debug>(bytes: Bytes, decode: impl Fn(Bytes) -> Result<T, DecodeError>, encode: impl Fn(&T) -> Bytes) {
    if let Ok(value) = decode(bytes.clone()) {
        assert_eq!(encode(&value), bytes, "{value:?} has two spellings");
    }
}

/// What a frame of the log says, as it is, and as entries whose checksums hold.
fn log_payload(data: Bytes) {
    canonical(data.clone(), items, |placed| encode_items(placed));
    canonical(entries(&data), items, |placed| encode_items(placed));
}

fn items(payload: Bytes) -> Result<Vec<Placed>, DecodeError> {
    Items::new(payload).collect()
}

fn encode_items(placed: &[Placed]) -> Bytes {
    let mut frame = Frame::new();
    placed.iter().for_each(|placed| frame.put(&placed.item));
    payload(&frame.seal(1, 1, 1)).unwrap_or_default()
}

fn payload(frame: &Bytes) -> Option<Bytes> {
    FrameHead::read(frame, 1)?.payload(frame)
}

/// A block of records, which are not looked into; each is found by its id.
fn one_block(bytes: &[u8]) {
    let first = RecordId { revision: Revision::ZERO, ordinal: 0 };
    let Ok(block) = Block::decode(bytes) else { return };
    let Ok(records) = block.from(first).collect::<Result<Vec<_>, _>>() else { return };
    // Only what is in order is ever written.
    if !records.is_sorted_by(|(one, _), (other, _)| one < other) {
        return;
    }
    let (mut writer, mut again) = (BlockWriter::default(), Vec::new());
    for (id, record) in records {
        assert_eq!(block.find(id), Ok(Some(record)));
        writer.push(id, record);
    }
    writer.seal_into(&mut again);
    assert_eq!(again, bytes, "a block has two spellings");
}

/// Entries whose bodies come each behind its length.
fn entries(data: &[u8]) -> Bytes {
    let mut entries = Writer::default();
    let mut rest = data;
    while let Some((length, behind)) = rest.split_first() {
        let (body, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        entries.u8(0);
        entries.fixed_u32(crc32fast::hash(body));
        entries.bytes(body);
        rest = behind;
    }
    entries.finish()
}

/// The head of the log's file, as it is and with the checksum it should have.
fn log_head(data: Bytes) {
    let mut sealed = Writer::default();
    let body = &data[..data.len().min(24)];
    sealed.raw(body);
    sealed.fixed_u32(crc32fast::hash(body));
    for front in [data.clone(), sealed.finish()] {
        if let Ok(Some(head)) = FileHead::read(&front) {
            assert!(head.encode().starts_with(&front[..28]), "{head:?} has two spellings");
        }
    }
}

/// A frame that holds gives no more than there is.
fn log_frame(data: Bytes) {
    let Some(head) = FrameHead::read(&data, 0) else { return };
    let payload = head.payload(&data);
    assert!(payload.is_none_or(|payload| payload.len() < data.len()), "{head:?} holds more than its bytes");
}

fn one_record(body: Bytes) {
    let id = RecordId { revision: Revision::new(300), ordinal: 2 };
    let mut bytes = Writer::default();
    bytes.raw(&body);
    bytes.fixed_u32(record::checksum(id, &body));
    canonical(
        bytes.finish(),
        |bytes| record::decode_record(id, bytes),
        |found| record::encode_record(id, found).into(),
    );
}

/// A chunk is not written by its reader: what counts is that its rows fill it.
fn chunk(body: Bytes) {
    let Ok(chunk) = snapshot::Chunk::decode(seal(&body)) else { return };
    let bytes: usize = chunk.rows.iter().map(|row| row.key.len() + row.value.len() + 3).sum();
    assert!(bytes <= body.len(), "{chunk:?} holds more than its {} bytes", body.len());
}

type Described = BTreeMap<String, (u64, Option<i32>, Vec<Vec<u16>>)>;

/// Values of the host, of types that have every shape in them.
fn value(body: Bytes) {
    read_back::<Described>(&body);
    read_back::<(bool, char, f64, Result<String, u8>, [i8; 3])>(&body);
    read_back::<Json<Described>>(&body);
    assert_eq!(Raw::read(&body).map(|raw| raw.0).as_ref(), Ok(&body));
}

/// What can be read is written in a way that reads the same. Not always as it was: codecs have several spellings.
fn read_back<V: Value + Debug>(bytes: &[u8]) {
    let Ok(value) = V::read(bytes) else { return };
    let written = value.write().unwrap_or_else(|error| panic!("{value:?}: {error}"));
    let again = V::read(&written).unwrap_or_else(|error| panic!("{value:?}: {error}"));
    // Compared as bytes: not every number equals itself.
    assert_eq!(again.write().as_ref(), Ok(&written), "{value:?} became {again:?}");
}
