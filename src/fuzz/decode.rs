//! Decoders: they refuse what they do not understand, and what they understand has one spelling.

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::Bytes;

use crate::codec::{Json, Raw, Value};
use crate::command::RecordId;
use crate::format::log::{RowReader, decode_position, decode_vote, encode_position, encode_row, encode_vote};
use crate::format::wire::{DecodeError, Writer, seal};
use crate::format::{claim, command, identity, message, record, rows, snapshot};
use crate::types::{LogEntry, Revision};

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
pub(super) const STORAGE: [Format; 14] = [
    log_row,
    |body| canonical(seal(&body), decode_vote, |vote| encode_vote(*vote)),
    |body| canonical(seal(&body), decode_position, |position| encode_position(*position)),
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

/// A row of the log, as it is, and made of frames whose checksums hold.
fn log_row(data: Bytes) {
    let key = |row: &[u8]| row.get(1..9).map_or(0, |first| u64::from_le_bytes(first.try_into().expect("eight bytes")));
    let read = |row: Bytes| RowReader::new(row.clone(), key(&row))?.collect::<Result<Vec<LogEntry>, _>>();
    canonical(data.clone(), read, |entries| encode_row(entries));
    canonical(framed(&data), read, |entries| encode_row(entries));
}

/// A row whose first index and number of entries come first in `data`, then each frame's length and body.
fn framed(data: &[u8]) -> Bytes {
    let (first, data) = data.split_at(data.len().min(2));
    let mut frames = Writer::default();
    let (mut rest, mut count) = (data, 0);
    while let Some((length, behind)) = rest.split_first() {
        let (body, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        frames.fixed_u32(crc32fast::hash(body));
        frames.bytes(body);
        (rest, count) = (behind, count + 1);
    }
    let mut row = Writer::default();
    row.u8(1);
    row.fixed_u64(first.iter().rfold(0, |index, byte| index << 8 | u64::from(*byte)));
    row.fixed_u32(count);
    row.fixed_u32(crc32fast::hash(row.as_slice()));
    row.raw(frames.as_slice());
    row.finish()
}

fn one_record(body: Bytes) {
    let id = RecordId { revision: Revision::new(300), ordinal: 2 };
    let mut bytes = Writer::default();
    bytes.raw(&body);
    bytes.fixed_u32(record::checksum(id, &body));
    canonical(bytes.finish(), |bytes| record::decode_record(id, bytes), |found| record::encode_record(id, found));
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
