//! The few shapes all formats are built from: varints, length-prefixed bytes, checked frames.

use bytes::{Buf, Bytes};

use crate::command::Few;

/// Why some bytes could not be read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("the bytes end inside {0}")]
    Truncated(&'static str),
    #[error("unknown {what} {tag}")]
    UnknownTag { what: &'static str, tag: u64 },
    #[error("{what} has format version {found}; this build reads up to {known}")]
    UnknownVersion { what: &'static str, found: u64, known: u64 },
    #[error("{left} bytes left over after {what}")]
    LeftOver { what: &'static str, left: usize },
    #[error("{what} of {size} bytes is over the limit of {limit}")]
    TooLarge { what: &'static str, size: u64, limit: u64 },
    #[error("checksum of {what} is {found:08x}, the bytes give {computed:08x}")]
    Checksum { what: &'static str, found: u32, computed: u32 },
    #[error("{0} is not valid UTF-8")]
    Utf8(&'static str),
}

impl DecodeError {
    /// The bytes are whole but say something this build has no word for: a newer release wrote them.
    ///
    /// Only meaningful for bytes whose checksum was verified; damaged ones can look like anything.
    pub(crate) fn is_newer(&self) -> bool {
        matches!(self, DecodeError::UnknownTag { .. } | DecodeError::UnknownVersion { .. })
    }

    /// The format of the bytes, and the newest one that this build reads, if they are in a newer one.
    pub(crate) fn newer_format(&self) -> Option<(u64, u64)> {
        match *self {
            // No release has written one that is below the known ones.
            DecodeError::UnknownVersion { found, known, .. } if found > known => Some((found, known)),
            _ => None,
        }
    }
}

/// Appends values to a buffer. Writing cannot fail.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    buf: Vec<u8>,
}

/// Items of a list that room is made for before they are read.
const LIST_ROOM: u64 = 64;

/// Of the CRC-32 that sealed bytes begin with.
const SEAL_BYTES: usize = 4;

impl Writer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Writer { buf: Vec::with_capacity(bytes) }
    }

    /// A writer in the room of a buffer whose content is not needed any more.
    pub(crate) fn in_place_of(mut buf: Vec<u8>, bytes: usize) -> Self {
        buf.clear();
        buf.reserve(bytes);
        Writer { buf }
    }

    /// A writer of a body that is to be sealed: ends with [`Writer::seal`] only.
    pub(crate) fn sealing(body_bytes: usize) -> Self {
        let mut writer = Writer::with_capacity(SEAL_BYTES + body_bytes);
        writer.raw(&[0; SEAL_BYTES]);
        writer
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.buf.push(value);
    }

    /// A fixed-width little-endian number, where a varint would not do (identifiers drawn at random, checksums).
    pub(crate) fn fixed_u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    pub(crate) fn fixed_u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    pub(crate) fn fixed_u128(&mut self, value: u128) {
        self.raw(&value.to_le_bytes());
    }

    pub(crate) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.buf.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.buf.push(value as u8);
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.buf.push(value.into());
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.varint(value.len() as u64);
        self.raw(value);
    }

    pub(crate) fn str(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    /// Bytes without their length: only where the reader knows it.
    pub(crate) fn raw(&mut self, value: &[u8]) {
        self.buf.extend_from_slice(value);
    }

    pub(crate) fn zeros(&mut self, count: usize) {
        self.buf.resize(self.buf.len() + count, 0);
    }

    /// Puts bytes in place of others that were written before.
    pub(crate) fn overwrite(&mut self, at: usize, value: &[u8]) {
        self.buf[at..at + value.len()].copy_from_slice(value);
    }

    pub(crate) fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    pub(crate) fn list<T>(&mut self, values: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.varint(values.len() as u64);
        for value in values {
            write(self, value);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.buf.len()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.buf
    }

    pub(crate) fn finish(self) -> Bytes {
        self.buf.into()
    }

    /// As [`Writer::finish`], for the one who copies the bytes somewhere else.
    pub(crate) fn into_vec(self) -> Vec<u8> {
        self.buf
    }

    /// The body behind its CRC-32 (IEEE); see [`unseal`].
    pub(crate) fn seal(self) -> Bytes {
        self.sealed().into()
    }

    /// As [`Writer::seal`], for what is copied anyway.
    pub(crate) fn sealed(mut self) -> Vec<u8> {
        let (crc, body) = self.buf.split_at_mut(SEAL_BYTES);
        crc.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        self.buf
    }
}

/// Takes values off the front of a buffer; byte strings are slices of it, not copies.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    buf: Bytes,
}

impl Reader {
    pub(crate) fn new(buf: Bytes) -> Self {
        Reader { buf }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.buf.len()
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.need(1, what)?;
        Ok(self.buf.get_u8())
    }

    pub(crate) fn fixed_u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.need(4, what)?;
        Ok(self.buf.get_u32_le())
    }

    pub(crate) fn fixed_u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.need(8, what)?;
        Ok(self.buf.get_u64_le())
    }

    pub(crate) fn fixed_u128(&mut self, what: &'static str) -> Result<u128, DecodeError> {
        self.need(16, what)?;
        Ok(self.buf.get_u128_le())
    }

    pub(crate) fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit; and a trailing zero byte would be a second spelling of one number.
            if (shift == 63 && bits > 1) || (shift > 0 && byte == 0) {
                return Err(DecodeError::UnknownTag { what, tag: byte.into() });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Truncated(what))
    }

    pub(crate) fn varint_u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        let value = self.varint(what)?;
        u32::try_from(value).map_err(|_| DecodeError::TooLarge { what, size: value, limit: u32::MAX.into() })
    }

    pub(crate) fn bool(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(DecodeError::UnknownTag { what, tag: tag.into() }),
        }
    }

    pub(crate) fn bytes(&mut self, what: &'static str) -> Result<Bytes, DecodeError> {
        let len = self.varint(what)?;
        if len > self.buf.len() as u64 {
            return Err(DecodeError::Truncated(what));
        }
        Ok(self.buf.split_to(len as usize))
    }

    pub(crate) fn str(&mut self, what: &'static str) -> Result<String, DecodeError> {
        String::from_utf8(self.bytes(what)?.to_vec()).map_err(|_| DecodeError::Utf8(what))
    }

    /// All that is left.
    pub(crate) fn rest(self) -> Bytes {
        self.buf
    }

    pub(crate) fn option<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        Ok(if self.bool(what)? { Some(read(self)?) } else { None })
    }

    pub(crate) fn list<T>(
        &mut self,
        what: &'static str,
        read: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let len = self.list_len(what)?;
        // Exact for the short ones, which most are; a long one proves itself by growing.
        self.items(len, Vec::with_capacity(len.min(LIST_ROOM) as usize), read)
    }

    /// As [`Reader::list`], of one item mostly.
    pub(crate) fn few<T>(
        &mut self,
        what: &'static str,
        read: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Few<T>, DecodeError> {
        let len = self.list_len(what)?;
        self.items(len, Few::with_capacity(len.min(LIST_ROOM) as usize), read)
    }

    fn list_len(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let len = self.varint(what)?;
        // Each item takes at least a byte, so a length beyond what is left is a lie and not worth an allocation.
        if len > self.buf.len() as u64 { Err(DecodeError::Truncated(what)) } else { Ok(len) }
    }

    fn items<T, L: Extend<T>>(
        &mut self,
        len: u64,
        mut list: L,
        mut read: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<L, DecodeError> {
        for _ in 0..len {
            list.extend([read(self)?]);
        }
        Ok(list)
    }

    /// Checks that nothing is left.
    pub(crate) fn end(self, what: &'static str) -> Result<(), DecodeError> {
        match self.buf.len() {
            0 => Ok(()),
            left => Err(DecodeError::LeftOver { what, left }),
        }
    }

    fn need(&self, bytes: usize, what: &'static str) -> Result<(), DecodeError> {
        if self.buf.len() < bytes { Err(DecodeError::Truncated(what)) } else { Ok(()) }
    }
}

/// What [`Writer::seal`] makes of a body that is there already.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn seal(body: &[u8]) -> Bytes {
    let mut writer = Writer::sealing(body.len());
    writer.raw(body);
    writer.seal()
}

/// The body of what [`Writer::seal`] made, if its checksum holds.
pub(crate) fn unseal(mut sealed: Bytes, what: &'static str) -> Result<Bytes, DecodeError> {
    if sealed.len() < 4 {
        return Err(DecodeError::Truncated(what));
    }
    let found = sealed.get_u32_le();
    let computed = crc32fast::hash(&sealed);
    if found == computed { Ok(sealed) } else { Err(DecodeError::Checksum { what, found, computed }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_format_above_the_known_one_is_a_newer_one() {
        let version = |found| DecodeError::UnknownVersion { what: "row", found, known: 2 };
        assert_eq!([1, 2, 3].map(|found| version(found).newer_format()), [None, None, Some((3, 2))]);
        assert_eq!(DecodeError::Truncated("row").newer_format(), None);
    }

    #[test]
    fn what_is_written_is_read_back_to_the_last_byte() {
        let mut w = Writer::default();
        for n in [0, 1, 127, 128, 16_383, 16_384, u64::MAX] {
            w.varint(n);
        }
        w.str("naïve");
        w.option(Some(7u64), Writer::varint);
        w.option(None::<u64>, Writer::varint);
        w.list(&[1u64, 2], |w, n| w.varint(*n));
        w.fixed_u128(1 << 100);
        let mut r = Reader::new(w.finish());
        for n in [0, 1, 127, 128, 16_383, 16_384, u64::MAX] {
            assert_eq!(r.varint("n"), Ok(n));
        }
        assert_eq!(r.str("s").as_deref(), Ok("naïve"));
        assert_eq!(r.option("o", |r| r.varint("n")), Ok(Some(7)));
        assert_eq!(r.option("o", |r| r.varint("n")), Ok(None));
        assert_eq!(r.list("l", |r| r.varint("n")), Ok(vec![1, 2]));
        assert_eq!(r.fixed_u128("id"), Ok(1 << 100));
        assert_eq!(r.end("all"), Ok(()));
    }

    #[test]
    fn a_number_has_one_spelling_and_a_length_cannot_promise_more_than_there_is() {
        assert!(Reader::new(Bytes::from_static(&[0x80, 0x00])).varint("n").is_err());
        assert!(Reader::new(Bytes::from_static(&[0xff; 10])).varint("n").is_err());
        assert_eq!(Reader::new(Bytes::from_static(&[5, 1])).bytes("b"), Err(DecodeError::Truncated("b")));
        assert!(Reader::new(Bytes::from_static(&[0xff, 0xff, 3])).list("l", |r| r.u8("x")).is_err());
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_sealed_body_is_seen() {
        let sealed = seal(b"quorum");
        assert_eq!(unseal(sealed.clone(), "x").as_deref(), Ok(&b"quorum"[..]));
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(unseal(bad.into(), "x"), Err(DecodeError::Checksum { .. })), "bit {bit}");
        }
    }
}

/// Golden bytes: what the tests of every format compare with.
#[cfg(test)]
pub(super) mod golden {
    use super::*;

    pub(in crate::format) fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Each value must become exactly these bytes and be read back from them. A format that was released never changes:
    /// a difference here needs a new format version, not a new literal.
    pub(in crate::format) fn pinned<T: PartialEq + std::fmt::Debug>(
        encode: impl Fn(&T) -> Bytes,
        decode: impl Fn(Bytes) -> Result<T, DecodeError>,
        golden: &[(T, &str)],
    ) {
        let mut wrong = Vec::new();
        for (value, expected) in golden {
            let encoded = encode(value);
            if hex(&encoded) != *expected {
                wrong.push(format!("{value:?}\n  now {}\n  was {expected}", hex(&encoded)));
            }
            assert_eq!(decode(encoded.clone()).as_ref(), Ok(value));
            for cut in 0..encoded.len() {
                assert!(decode(encoded.slice(..cut)).is_err(), "{value:?} cut at {cut}");
            }
            let longer = Bytes::from([&encoded[..], &[0]].concat());
            assert!(decode(longer).is_err(), "{value:?} with a byte more");
        }
        assert!(wrong.is_empty(), "bytes have changed:\n{}", wrong.join("\n"));
    }
}
