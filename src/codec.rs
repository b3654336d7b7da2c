//! The host's values, to bytes and back.
//!
//! A stored value is a codec byte, a schema version (two bytes, little-endian; 0 unless its table declares one), and the
//! codec's bytes. Reading with another codec, a version that is not known, or a type that leaves bytes over is an error
//! that says so, never a wrong value. A [`Format`] is what one table knows of its values.

use std::any::{TypeId, type_name};
use std::collections::BTreeSet;
use std::fmt;
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
/// Of no stored value: the format of a recipe, which has no header.
const OWN: u8 = 0;

/// Codec byte and schema version.
const HEADER_BYTES: usize = 3;
/// The schema version of a value whose table declares none.
const PLAIN: u16 = 0;

/// A value that the flat verbs can store: any serde type (through bincode), [`Json`] of one, or [`Raw`] bytes.
///
/// # Limits
/// An encoded value may have at most [`VALUE_BYTES_MAX`](crate::VALUE_BYTES_MAX) bytes. Bincode does not describe itself:
/// types whose serde attributes need that (`flatten`, `untagged`, `tag`, `skip_serializing_if`) cannot be read back from it.
/// Store those as [`Json`]; a write that could not be read back is refused.
pub trait Value: Sized + 'static {
    #[doc(hidden)]
    const CODEC: u8;

    #[doc(hidden)]
    fn write(&self) -> Result<Vec<u8>, String>;

    #[doc(hidden)]
    fn read(bytes: &[u8]) -> Result<Self, String>;
}

/// How a [`Table`](crate::Table) turns its values into bytes: [`Bincode`] (the default), [`Json`] or [`Raw`].
///
/// Named as the table's third parameter: `Table<str, Config, Json>`. The codec is stored with every value; a value of another
/// one is an error, never a wrong value. Its limits are those of [`Value`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot store values of type `{V}`",
    note = "`Bincode` and `Json` store types that are `Serialize` and `DeserializeOwned`, `Raw` stores `Bytes` and `Vec<u8>`"
)]
pub trait Codec<V> {
    #[doc(hidden)]
    const ID: u8;

    #[doc(hidden)]
    fn write(value: &V) -> Result<Vec<u8>, String>;

    #[doc(hidden)]
    fn read(bytes: &[u8]) -> Result<V, String>;
}

/// The default [`Codec`]: small and fast, for any serde type that needs no self-describing format.
#[derive(Copy, Clone, Debug)]
pub enum Bincode {}

/// A value stored as JSON: larger and slower than the default, readable by people and by other programs.
///
/// `Json(value)` is how the flat verbs take it. As the [`Codec`] of a table it is written `Json`, and the values are plain.
///
/// ```
/// # use quorate::{Json, Table};
/// let stored = Json(vec![1, 2, 3]);
/// assert_eq!(stored.len(), 3); // derefs to the value
///
/// const LISTS: Table<str, Vec<u32>, Json> = Table::new("lists");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Json<T = ()>(pub T);

/// Bytes stored as they are. As the [`Codec`] of a table it stores [`Bytes`] or `Vec<u8>`.
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

impl<T: Serialize + DeserializeOwned> Codec<T> for Bincode {
    const ID: u8 = BINCODE;

    fn write(value: &T) -> Result<Vec<u8>, String> {
        bincode::serde::encode_to_vec(value, bincode_config()).map_err(|error| error.to_string())
    }

    fn read(bytes: &[u8]) -> Result<T, String> {
        let (value, read) =
            bincode::serde::decode_from_slice(bytes, bincode_config()).map_err(|error| error.to_string())?;
        match bytes.len() - read {
            0 => Ok(value),
            left => Err(format!("leaves {left} of {} bytes over", bytes.len())),
        }
    }
}

impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    const ID: u8 = JSON;

    fn write(value: &T) -> Result<Vec<u8>, String> {
        serde_json::to_vec(value).map_err(|error| error.to_string())
    }

    fn read(bytes: &[u8]) -> Result<T, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }
}

impl Codec<Bytes> for Raw {
    const ID: u8 = RAW;

    fn write(value: &Bytes) -> Result<Vec<u8>, String> {
        Ok(value.to_vec())
    }

    fn read(bytes: &[u8]) -> Result<Bytes, String> {
        Ok(Bytes::copy_from_slice(bytes))
    }
}

impl Codec<Vec<u8>> for Raw {
    const ID: u8 = RAW;

    fn write(value: &Vec<u8>) -> Result<Vec<u8>, String> {
        Ok(value.clone())
    }

    fn read(bytes: &[u8]) -> Result<Vec<u8>, String> {
        Ok(bytes.to_vec())
    }
}

impl<T: Serialize + DeserializeOwned + 'static> Value for T {
    const CODEC: u8 = BINCODE;

    fn write(&self) -> Result<Vec<u8>, String> {
        <Bincode as Codec<T>>::write(self)
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        <Bincode as Codec<T>>::read(bytes)
    }
}

impl<T: Serialize + DeserializeOwned + 'static> Value for Json<T> {
    const CODEC: u8 = JSON;

    fn write(&self) -> Result<Vec<u8>, String> {
        <Json as Codec<T>>::write(&self.0)
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        <Json as Codec<T>>::read(bytes).map(Json)
    }
}

impl Value for Raw {
    const CODEC: u8 = RAW;

    fn write(&self) -> Result<Vec<u8>, String> {
        <Raw as Codec<Bytes>>::write(&self.0)
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        <Raw as Codec<Bytes>>::read(bytes).map(Raw)
    }
}

/// How values of an older schema version become a `V`. Made by [`upgrade`] and [`upgrade_with`], for
/// [`Table::schema`](crate::Table::schema).
pub struct Upgrade<V: 'static> {
    from: u16,
    read: ReadOld<V>,
}

enum ReadOld<V: 'static> {
    /// As an older type, with the codec it is given.
    Typed(fn(u8, &[u8]) -> Result<V, String>),
    With(fn(&[u8]) -> Result<V, String>),
}

/// Reads values of schema version `from` (0: written before the table declared one) as an `Old`, with the table's codec, and
/// turns them into a `New`.
///
/// ```
/// use quorate::{Table, Upgrade, upgrade};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct ConfigV1 { pool: u32 }
/// #[derive(Serialize, Deserialize)]
/// struct Config { pool: u32, log: String }
///
/// impl From<ConfigV1> for Config {
///     fn from(old: ConfigV1) -> Self {
///         Config { pool: old.pool, log: "info".into() }
///     }
/// }
///
/// const CONFIG: Table<str, Config> = Table::new("config").schema(2, &[upgrade::<ConfigV1, Config>(1)]);
/// ```
pub const fn upgrade<Old, New>(from: u16) -> Upgrade<New>
where
    Old: Serialize + DeserializeOwned,
    New: From<Old> + 'static,
{
    Upgrade { from, read: ReadOld::Typed(read_old::<Old, New>) }
}

/// Reads values of schema version `from` (0: written before the table declared one) with a function, which is given the bytes
/// that the table's codec wrote. For tables of [`Raw`] bytes, and for old types that are gone.
///
/// The function says in its error what does not fit. It is called for every such value that is read.
pub const fn upgrade_with<New: 'static>(from: u16, read: fn(&[u8]) -> Result<New, String>) -> Upgrade<New> {
    Upgrade { from, read: ReadOld::With(read) }
}

fn read_old<Old, New>(codec: u8, bytes: &[u8]) -> Result<New, String>
where
    Old: Serialize + DeserializeOwned,
    New: From<Old>,
{
    match codec {
        JSON => <Json as Codec<Old>>::read(bytes),
        _ => <Bincode as Codec<Old>>::read(bytes),
    }
    .map(New::from)
    .map_err(|why| format!("{why} (as {}, to be upgraded)", type_name::<Old>()))
}

impl<V> Copy for ReadOld<V> {}

impl<V> Clone for ReadOld<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Upgrade<V> {}

impl<V> Clone for Upgrade<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> fmt::Debug for Upgrade<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade").field("from", &self.from).finish_non_exhaustive()
    }
}

/// How the values of one table are stored: codec, schema version, and the way up from older ones.
pub(crate) struct Format<V: 'static> {
    codec: u8,
    version: u16,
    upgrades: &'static [Upgrade<V>],
    write: fn(&V) -> Result<Vec<u8>, String>,
    read: fn(&[u8]) -> Result<V, String>,
}

impl<V> Copy for Format<V> {}

impl<V> Clone for Format<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> fmt::Debug for Format<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Format").field("codec", &codec_name(self.codec)).field("version", &self.version).finish()
    }
}

impl<V: Value> Format<V> {
    /// That of the flat verbs.
    pub(crate) const fn flat() -> Self {
        Format { codec: V::CODEC, version: PLAIN, upgrades: &[], write: V::write, read: V::read }
    }
}

impl<V: 'static> Format<V> {
    /// That of a table which declares no schema.
    pub(crate) const fn plain<C: Codec<V>>() -> Self {
        Format { codec: C::ID, version: PLAIN, upgrades: &[], write: C::write, read: C::read }
    }

    /// That of values which are not the host's, but of a format of the crate's own: they are read as they are stored. Nothing
    /// is written with it.
    pub(crate) const fn own(read: fn(&[u8]) -> Result<V, String>) -> Self {
        let write = |_: &V| Err("is of a format that is only read".to_owned());
        Format { codec: OWN, version: PLAIN, upgrades: &[], write, read }
    }

    /// # Panics
    /// If these are not the versions of a schema. Tables are constants: then it does not compile.
    pub(crate) const fn schema(self, version: u16, upgrades: &'static [Upgrade<V>]) -> Self {
        assert!(self.version == PLAIN, "a table has one schema version");
        assert!(version != PLAIN, "schema versions begin at 1: version 0 is that of values without one");
        let mut place = 0;
        while place < upgrades.len() {
            assert!(upgrades[place].from < version, "an upgrade starts at an older version than the schema's");
            assert!(
                self.codec != RAW || matches!(upgrades[place].read, ReadOld::With(_)),
                "raw bytes are upgraded by upgrade_with"
            );
            let mut other = 0;
            while other < place {
                assert!(upgrades[other].from != upgrades[place].from, "there are two upgrades from one version");
                other += 1;
            }
            place += 1;
        }
        Format { version, upgrades, ..self }
    }

    /// The stored bytes of `value`, to be kept in `table`. `key` names the key in errors.
    pub(crate) fn encode(&self, table: &'static str, key: impl Fn() -> String, value: &V) -> Result<Bytes, Error> {
        let problem = |problem: String| self.problem(key(), self.codec, self.version, problem);
        let bytes = (self.write)(value).map_err(|why| problem(format!("cannot be written: {why}")))?;
        let size = HEADER_BYTES + bytes.len();
        if size > VALUE_BYTES_MAX {
            let why = format!("has {size} bytes, the limit is {VALUE_BYTES_MAX}");
            return Err(Error::Invalid { what: "value", why });
        }
        self.check_readable(cfg!(debug_assertions), table, &bytes)
            .map_err(|why| problem(format!("could not be read back once written, use Json: {why}")))?;
        let mut stored = Vec::with_capacity(size);
        stored.push(self.codec);
        stored.extend_from_slice(&self.version.to_le_bytes());
        stored.extend_from_slice(&bytes);
        Ok(stored.into())
    }

    /// Reads back what was written for `table`: always, or only if it is the first of its type there.
    fn check_readable(&self, always: bool, table: &'static str, bytes: &[u8]) -> Result<(), String> {
        let place = (table, self.codec, TypeId::of::<V>());
        let seen = || READ_BACK.read().expect("no panic while held").contains(&place);
        if !always && seen() {
            return Ok(());
        }
        (self.read)(bytes)?;
        // Nobody waits for the others in order to know what they know.
        if !seen() {
            READ_BACK.write().expect("no panic while held").insert(place);
        }
        Ok(())
    }

    /// The value stored as `bytes`. `key` names the key in errors.
    pub(crate) fn decode(&self, key: impl FnOnce() -> String, bytes: &Bytes) -> Result<V, Error> {
        if self.codec == OWN {
            return (self.read)(bytes).map_err(|problem| self.problem(key(), OWN, PLAIN, problem));
        }
        let Some((&[codec, low, high], body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(self.problem(key(), 0, PLAIN, format!("has only {} bytes", bytes.len())));
        };
        let version = u16::from_le_bytes([low, high]);
        self.read_body(codec, version, body).map_err(|problem| self.problem(key(), codec, version, problem))
    }

    fn read_body(&self, codec: u8, version: u16, body: &[u8]) -> Result<V, String> {
        if codec != self.codec {
            return Err(format!("was written as {}, and is read as {}", codec_name(codec), codec_name(self.codec)));
        }
        let read = if version == self.version {
            (self.read)(body)
        } else {
            match self.upgrade_from(version)?.read {
                ReadOld::Typed(read) => read(codec, body),
                ReadOld::With(read) => read(body),
            }
        };
        read.map_err(|why| format!("cannot be read as {} of {}: {why}", codec_name(codec), type_name::<V>()))
    }

    fn upgrade_from(&self, from: u16) -> Result<&Upgrade<V>, String> {
        self.upgrades.iter().find(|upgrade| upgrade.from == from).ok_or_else(|| match from > self.version {
            true => format!("has a newer schema version than the reader's, which is {}", self.version),
            false => format!("has a schema version from which the reader declares no upgrade to its {}", self.version),
        })
    }

    fn problem(&self, key: String, codec: u8, version: u16, problem: String) -> Error {
        Error::Codec { key, codec, version: version.into(), problem }
    }
}

/// The stored bytes of `value`, to be kept at `key` of the flat table (named in errors only).
pub(crate) fn encode<V: Value>(key: &str, value: &V) -> Result<Bytes, Error> {
    Format::flat().encode("", || key.to_owned(), value)
}

/// The value stored as `bytes` at `key` of the flat table.
pub(crate) fn decode<V: Value>(key: &str, bytes: &Bytes) -> Result<V, Error> {
    Format::flat().decode(|| key.to_owned(), bytes)
}

fn codec_name(codec: u8) -> &'static str {
    match codec {
        BINCODE => "bincode",
        JSON => "JSON",
        RAW => "raw bytes",
        OWN => "the crate's own format",
        _ => "an unknown codec",
    }
}

/// Table, codec and type of what has been read back once; a type that fails never gets in. As many as the program has in its
/// text.
static READ_BACK: RwLock<BTreeSet<(&'static str, u8, TypeId)>> = RwLock::new(BTreeSet::new());

#[cfg(test)]
mod tests;
