//! The host's values, to bytes and back.
//!
//! A stored value is a codec byte, a schema version (two bytes, little-endian; 0 until a table declares one), and the
//! codec's bytes. Reading
//! with another codec, another version, or a type that leaves bytes over is an error that says so, never a wrong value.

use std::any::type_name;
use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::RwLock;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::types::VALUE_BYTES_MAX;

const BINCODE: u8 = 1;
const JSON: u8 = 2;
const RAW: u8 = 3;

/// Codec byte and schema version.
const HEADER_BYTES: usize = 3;
/// The schema version of a value that no table declares.
const PLAIN: u16 = 0;

/// A value that can be stored: any serde type (through bincode), [`Json`] of one, or [`Raw`] bytes.
///
/// # Limits
/// An encoded value may have at most [`VALUE_BYTES_MAX`](crate::VALUE_BYTES_MAX) bytes. Bincode does not describe itself:
/// types whose serde attributes need that (`flatten`, `untagged`, `tag`, `skip_serializing_if`) cannot be read back from it.
/// Store those as [`Json`]; a write that could not be read back is refused.
pub trait Value: Sized {
    #[doc(hidden)]
    const CODEC: u8;

    #[doc(hidden)]
    fn write(&self) -> Result<Vec<u8>, String>;

    #[doc(hidden)]
    fn read(bytes: &[u8]) -> Result<Self, String>;
}

/// A value stored as JSON: larger and slower than the default, readable by people and by other programs.
///
/// ```
/// # use quorate::Json;
/// let stored = Json(vec![1, 2, 3]);
/// assert_eq!(stored.len(), 3); // derefs to the value
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Json<T>(pub T);

/// Bytes stored as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Raw(pub Bytes);

impl<T> Deref for Json<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Json<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl Deref for Raw {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<B: Into<Bytes>> From<B> for Raw {
    fn from(bytes: B) -> Self {
        Raw(bytes.into())
    }
}

fn bincode_config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<VALUE_BYTES_MAX>()
}

impl<T: Serialize + DeserializeOwned> Value for T {
    const CODEC: u8 = BINCODE;

    fn write(&self) -> Result<Vec<u8>, String> {
        bincode::serde::encode_to_vec(self, bincode_config()).map_err(|error| error.to_string())
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        let (value, read) =
            bincode::serde::decode_from_slice(bytes, bincode_config()).map_err(|error| error.to_string())?;
        match bytes.len() - read {
            0 => Ok(value),
            left => Err(format!("leaves {left} of {} bytes over when read as {}", bytes.len(), type_name::<T>())),
        }
    }
}

impl<T: Serialize + DeserializeOwned> Value for Json<T> {
    const CODEC: u8 = JSON;

    fn write(&self) -> Result<Vec<u8>, String> {
        serde_json::to_vec(&self.0).map_err(|error| error.to_string())
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map(Json).map_err(|error| error.to_string())
    }
}

impl Value for Raw {
    const CODEC: u8 = RAW;

    fn write(&self) -> Result<Vec<u8>, String> {
        Ok(self.0.to_vec())
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        Ok(Raw(Bytes::copy_from_slice(bytes)))
    }
}

/// Types whose values have been read back once; a type that fails never gets in.
static READ_BACK: RwLock<BTreeSet<&'static str>> = RwLock::new(BTreeSet::new());

/// The stored bytes of `value`, to be kept at `key` (named in errors only).
pub(crate) fn encode<V: Value>(key: &str, value: &V) -> Result<Bytes, Error> {
    let problem = |problem: String| Error::Codec { key: key.into(), codec: V::CODEC, version: 0, problem };
    let bytes = value.write().map_err(|why| problem(format!("cannot be written: {why}")))?;
    let size = HEADER_BYTES + bytes.len();
    if size > VALUE_BYTES_MAX {
        let why = format!("has {size} bytes, the limit is {VALUE_BYTES_MAX}");
        return Err(Error::Invalid { what: "value", why });
    }
    let seen = || READ_BACK.read().expect("no panic while held").contains(type_name::<V>());
    if cfg!(debug_assertions) || !seen() {
        V::read(&bytes).map_err(|why| problem(format!("could not be read back once written, use Json: {why}")))?;
        READ_BACK.write().expect("no panic while held").insert(type_name::<V>());
    }
    let mut stored = Vec::with_capacity(size);
    stored.push(V::CODEC);
    stored.extend_from_slice(&PLAIN.to_le_bytes());
    stored.extend_from_slice(&bytes);
    Ok(stored.into())
}

/// The value stored as `bytes` at `key`.
pub(crate) fn decode<V: Value>(key: &str, bytes: &Bytes) -> Result<V, Error> {
    let problem = |codec, version: u16, problem: String| Error::Codec {
        key: key.into(),
        codec,
        version: version.into(),
        problem,
    };
    let Some((&[codec, low, high], body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(problem(0, PLAIN, format!("has only {} bytes", bytes.len())));
    };
    let version = u16::from_le_bytes([low, high]);
    if codec != V::CODEC {
        let why = format!("was written as {}, and is read as {}", codec_name(codec), codec_name(V::CODEC));
        return Err(problem(codec, version, why));
    }
    if version != PLAIN {
        return Err(problem(codec, version, "has a schema version that the reader does not declare".into()));
    }
    V::read(body).map_err(|why| problem(codec, version, format!("cannot be read: {why}")))
}

fn codec_name(codec: u8) -> &'static str {
    match codec {
        BINCODE => "bincode",
        JSON => "JSON",
        RAW => "raw bytes",
        _ => "an unknown codec",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Config {
        pool: u32,
        log: String,
    }

    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(u32),
    }

    fn config() -> Config {
        Config { pool: 300, log: "info".into() }
    }

    #[test]
    fn stored_values_are_these_bytes() {
        assert_eq!(encode("k", &config()).as_deref(), Ok(&[1, 0, 0, 251, 44, 1, 4, b'i', b'n', b'f', b'o'][..]));
        assert_eq!(encode("k", &Json(7)).as_deref(), Ok(&b"\x02\x00\x007"[..]));
        assert_eq!(encode("k", &Raw::from(&b"abc"[..])).as_deref(), Ok(&b"\x03\x00\x00abc"[..]));
    }

    #[test]
    fn values_come_back_as_they_were() {
        let stored = encode("k", &config()).expect("encodes");
        assert_eq!(decode::<Config>("k", &stored), Ok(config()));
        let stored = encode("k", &Json(config())).expect("encodes");
        assert_eq!(decode::<Json<Config>>("k", &stored), Ok(Json(config())));
    }

    #[test]
    fn a_value_of_another_codec_type_or_version_is_an_error_that_names_it() {
        let stored = encode("cfg", &config()).expect("encodes");
        let as_json = decode::<Json<Config>>("cfg", &stored);
        assert!(matches!(&as_json, Err(Error::Codec { key, codec: 1, .. }) if key == "cfg"), "{as_json:?}");
        let shorter = decode::<u8>("cfg", &stored);
        assert!(matches!(shorter, Err(Error::Codec { .. })), "{shorter:?}");
        let newer = decode::<u8>("cfg", &Bytes::from_static(&[1, 9, 0, 5]));
        assert!(matches!(newer, Err(Error::Codec { version: 9, .. })), "{newer:?}");
        assert!(decode::<u8>("cfg", &Bytes::new()).is_err());
    }

    #[test]
    fn a_value_that_could_not_be_read_back_is_refused_when_it_is_written() {
        let refused = encode("k", &Untagged::Number(1));
        assert!(matches!(refused, Err(Error::Codec { .. })), "{refused:?}");
        assert!(encode("k", &Json(Untagged::Number(1))).is_ok());
    }

    #[test]
    fn an_oversized_value_is_refused_with_its_size() {
        let refused = encode("k", &Raw::from(vec![0; VALUE_BYTES_MAX]));
        assert!(
            matches!(&refused, Err(Error::Invalid { what: "value", why }) if why.contains("1048579")),
            "{refused:?}"
        );
    }
}
