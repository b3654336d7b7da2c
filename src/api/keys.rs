//! Keys and ranges as the verbs take them, and as they are stored.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

use bytes::Bytes;

use super::key::{Key, Leading};
use crate::command::KeyRange;
use crate::error::Error;
use crate::format::keys;
use crate::types::KEY_BYTES_MAX;

/// Some keys of type `K`: one, those with a common beginning, or a range in key order.
///
/// Made from a key (`"key"`, `&7u64`, `7u64`: that one key), [`prefix`]`("config/")`, [`leading`]`(("web",))`, `a..b` (the end
/// not included), `a..=b`, `a..`, `..b`, `..=b` or `..` (every key). A key type of your own is taken by reference.
pub struct Keys<K: ?Sized = str> {
    selection: Selection,
    key: PhantomData<fn() -> Box<K>>,
}

/// In encoded form.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Selection {
    One(Bytes),
    Prefix(Bytes),
    Range { start: Bytes, end: Option<Bytes>, inclusive: bool },
}

/// Every key that starts with `prefix`.
///
/// ```
/// # use quorate::{Keys, prefix};
/// let keys: Keys = prefix("config/");
/// ```
pub fn prefix(prefix: impl Into<String>) -> Keys {
    Keys::of(Selection::Prefix(prefix.into().into()))
}

/// Every key that begins with these parts: `leading(("web",))` of keys `(&str, u64)`. Also the typed form of [`prefix`], for
/// text and for bytes.
///
/// ```
/// # futures::executor::block_on(async {
/// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
/// use quorate::{Table, leading};
///
/// const JOBS: Table<(&'static str, u64), String> = Table::new("jobs");
/// let jobs = cluster.table(JOBS);
/// jobs.set(("web", 1), &"build".to_string()).await?;
/// jobs.set(("web", 2), &"test".to_string()).await?;
/// jobs.set(("website", 1), &"draw".to_string()).await?;
/// assert_eq!(jobs.range(leading(("web",))).await?.len(), 2);
/// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub fn leading<K: ?Sized>(parts: impl Leading<K>) -> Keys<K> {
    let mut encoded = Vec::new();
    parts.encode_leading(&mut encoded);
    Keys::of(Selection::Prefix(encoded.into()))
}

impl<K: ?Sized> Keys<K> {
    fn of(selection: Selection) -> Self {
        Keys { selection, key: PhantomData }
    }

    /// The range in `table`, if the keys can exist.
    pub(crate) fn stored_in(&self, table: &str) -> Result<KeyRange, Error> {
        let bound = |encoded: &Bytes| check_length(table, encoded).map(|()| keys::host(table, encoded));
        match &self.selection {
            Selection::One(encoded) => Ok(KeyRange::single(stored_bytes(table, encoded)?)),
            Selection::Prefix(encoded) => Ok(KeyRange::prefix(bound(encoded)?)),
            Selection::Range { start, end, inclusive } => {
                let end = match end.as_ref().map(bound).transpose()? {
                    None => keys::host_table(table).end,
                    Some(end) if *inclusive => KeyRange::single(end).end,
                    Some(end) => Some(end),
                };
                Ok(KeyRange { start: bound(start)?, end })
            }
        }
    }
}

impl Keys {
    /// The range of the flat verbs.
    pub(crate) fn stored(&self) -> Result<KeyRange, Error> {
        self.stored_in("")
    }
}

/// The stored form of one key of the flat verbs, if it is a valid one.
pub(crate) fn stored_key(key: &str) -> Result<Bytes, Error> {
    stored_bytes("", key.as_bytes())
}

/// The stored form of one key of `table`, if it is a valid one.
pub(crate) fn stored_key_in<K: Key + ?Sized>(table: &str, key: &K) -> Result<Bytes, Error> {
    stored_bytes(table, &encoded(key))
}

fn stored_bytes(table: &str, encoded: &[u8]) -> Result<Bytes, Error> {
    if encoded.is_empty() {
        return Err(Error::Invalid { what: "key", why: "it is empty".into() });
    }
    check_length(table, encoded)?;
    Ok(keys::host(table, encoded))
}

fn check_length(table: &str, encoded: &[u8]) -> Result<(), Error> {
    match table.len() + encoded.len() {
        0..=KEY_BYTES_MAX => Ok(()),
        len => Err(Error::Invalid { what: "key", why: format!("it has {len} bytes, the limit is {KEY_BYTES_MAX}") }),
    }
}

fn encoded<K: Key + ?Sized>(key: &K) -> Bytes {
    let mut encoded = Vec::new();
    key.encode(&mut encoded);
    encoded.into()
}

/// The key as the host wrote it.
pub(crate) fn shown(stored: &Bytes) -> String {
    String::from_utf8_lossy(&keys::strip(stored)).into_owned()
}

/// The key with its table, for people: `services:web/1`; what is not text is escaped.
pub(crate) fn named(stored: &Bytes) -> String {
    let key = key_named(stored);
    match keys::table(stored) {
        "" => key,
        table => format!("{table}:{key}"),
    }
}

/// The key without its table, for people.
pub(crate) fn key_named(stored: &Bytes) -> String {
    let key = keys::strip(stored);
    match str::from_utf8(&key) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => key.escape_ascii().to_string(),
    }
}

impl<K: ?Sized> Clone for Keys<K> {
    fn clone(&self) -> Self {
        Keys::of(self.selection.clone())
    }
}

impl<K: ?Sized> fmt::Debug for Keys<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.selection).finish()
    }
}

impl<K: ?Sized> PartialEq for Keys<K> {
    fn eq(&self, other: &Self) -> bool {
        self.selection == other.selection
    }
}

impl<K: ?Sized> Eq for Keys<K> {}

impl<K: Key + ?Sized, B: Borrow<K> + ?Sized> From<&B> for Keys<K> {
    fn from(key: &B) -> Self {
        Keys::of(Selection::One(encoded(key.borrow())))
    }
}

/// Declares what stands for the one key that it is.
macro_rules! one_key {
    ($(($($generic:tt)*) $one:ty => $key:ty),* $(,)?) => {$(
        impl<$($generic)*> From<$one> for Keys<$key> {
            fn from(key: $one) -> Self {
                Keys::of(Selection::One(encoded::<$key>(key.borrow())))
            }
        }
    )*};
}

one_key!(
    () String => str,
    () Vec<u8> => [u8],
    (const N: usize) [u8; N] => [u8; N],
    () u8 => u8,
    () u16 => u16,
    () u32 => u32,
    () u64 => u64,
    () u128 => u128,
    () i8 => i8,
    () i16 => i16,
    () i32 => i32,
    () i64 => i64,
    () i128 => i128,
    (A: Key, B: Key) (A, B) => (A, B),
    (A: Key, B: Key, C: Key) (A, B, C) => (A, B, C),
    (A: Key, B: Key, C: Key, D: Key) (A, B, C, D) => (A, B, C, D),
    (A: Key, B: Key, C: Key, D: Key, E: Key) (A, B, C, D, E) => (A, B, C, D, E),
);

/// Declares how a range of keys is selected.
macro_rules! key_range {
    ($($range:ident, $bounds:ident => $start:expr, $end:expr, $inclusive:expr;)*) => {$(
        impl<K: Key + ?Sized, B: Borrow<K>> From<$range<B>> for Keys<K> {
            fn from($bounds: $range<B>) -> Self {
                Keys::of(Selection::Range { start: $start, end: $end, inclusive: $inclusive })
            }
        }
    )*};
}

key_range!(
    Range, range => encoded(range.start.borrow()), Some(encoded(range.end.borrow())), false;
    RangeInclusive, range => encoded(range.start().borrow()), Some(encoded(range.end().borrow())), true;
    RangeFrom, range => encoded(range.start.borrow()), None, false;
    RangeTo, range => Bytes::new(), Some(encoded(range.end.borrow())), false;
    RangeToInclusive, range => Bytes::new(), Some(encoded(range.end.borrow())), true;
);

impl<K: ?Sized> From<RangeFull> for Keys<K> {
    fn from(_: RangeFull) -> Self {
        Keys::of(Selection::Range { start: Bytes::new(), end: None, inclusive: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds<K: Key + ?Sized>(keys: impl Into<Keys<K>>, key: &K) -> bool {
        let key = stored_key_in("t", key).expect("valid");
        keys.into().stored_in("t").expect("valid").contains(&key)
    }

    #[test]
    fn each_form_selects_the_keys_it_says() {
        assert!(holds("a", "a") && !holds("a", "aa"));
        assert!(holds(prefix("a/"), "a/b") && !holds(prefix("a/"), "a0") && !holds(prefix("a/"), "a"));
        assert!(holds("a".."c", "b") && !holds("a".."c", "c"));
        assert!(holds("a"..="c", "c") && !holds("a"..="c", "ca"));
        assert!(holds("b".., "\u{10ffff}") && !holds("b".., "a"));
        assert!(holds(.."b", "a") && !holds(.."b", "b"));
        assert!(holds(..="b", "b") && !holds(..="b", "ba"));
        assert!(holds(.., "x"));
    }

    #[test]
    fn typed_forms_select_by_value() {
        let seven = &7u64;
        assert!(holds(7u64, &7) && !holds(7u64, &8) && holds(seven, &7) && !holds(seven, &8));
        assert!(holds(-2..3, &-1i32) && holds(-2..3, &2i32) && !holds(-2..3, &3i32) && !holds(-2..3, &-3i32));
        assert!(holds(250..=300, &300u16) && holds(250..=300, &256u16) && !holds(250..=300, &301u16));
        assert!(holds(("web", 2)..("web", 9), &("web", 8u8)) && !holds(("web", 2)..("web", 9), &("website", 3u8)));
        assert!(holds(leading(("web",)), &("web", 0u8)) && !holds(leading(("web",)), &("website", 0u8)));
        assert!(holds(("web", 3u8), &("web", 3u8)) && !holds(("web", 3u8), &("web", 4u8)));
        assert!(holds(leading("we"), "web") && holds(leading(&b"\x00"[..]), &b"\x00\x01"[..]));
        let (high, low) = (5u8, 1);
        let empty: Keys<u8> = (high..low).into();
        assert!(empty.stored_in("t").expect("valid").is_empty());
    }

    #[test]
    fn no_range_of_a_table_reaches_another_table_or_the_recipes() {
        for table in ["", "s"] {
            for keys in [Keys::from(..), Keys::from("a"..), prefix(""), Keys::from(..="z")] {
                let range = keys.stored_in(table).expect("valid");
                assert!(range.contains(&keys::host(table, b"b")));
                for other in ["t", "ss", "r", ""].into_iter().filter(|other| *other != table) {
                    assert!(!range.contains(&keys::host(other, b"b")), "{keys:?} of {table:?} reaches {other:?}");
                }
                assert!(!range.contains(&keys::coordination("lock", b"b")));
            }
        }
    }

    #[test]
    fn an_empty_or_oversized_key_is_refused() {
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        for key in ["", long.as_str()] {
            assert!(matches!(stored_key(key), Err(Error::Invalid { what: "key", .. })), "{}", key.len());
        }
        let longest = &long[..KEY_BYTES_MAX - 5];
        assert!(stored_key_in("table", longest).is_ok(), "the table's name counts");
        assert!(matches!(stored_key_in("tables", longest), Err(Error::Invalid { what: "key", .. })));
        assert!(Keys::<str>::from(longest..).stored_in("tables").is_err());
        assert!(Keys::<str>::from(..longest).stored_in("tables").is_err());
    }

    #[test]
    fn keys_are_named_with_their_table_and_what_is_no_text_is_escaped() {
        let name = |table, key: &[u8]| named(&keys::host(table, key));
        assert_eq!(name("", b"config/a"), "config/a");
        assert_eq!(name("services", "häuser".as_bytes()), "services:häuser");
        assert_eq!(name("jobs", b"web\x00\x00\x07"), "jobs:web\\x00\\x00\\x07");
        assert_eq!(name("jobs", b"\xff"), "jobs:\\xff");
    }
}
