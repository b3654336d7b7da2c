//! Keys and ranges as the flat verbs take them.

use std::ops::{Range, RangeFrom, RangeFull, RangeInclusive, RangeTo};

use bytes::Bytes;

use crate::command::KeyRange;
use crate::error::Error;
use crate::format::keys;
use crate::types::KEY_BYTES_MAX;

/// Some keys: one, those with a prefix, or a range in byte order.
///
/// Made from `"key"` (that one key), [`prefix`]`("config/")`, `"a".."m"` (the end not included), `"a"..="m"`, `"a"..`,
/// `.."m"` or `..` (every key).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys(Selection);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Selection {
    One(String),
    Prefix(String),
    Range { start: String, end: Option<String>, inclusive: bool },
}

/// Every key that starts with `prefix`.
///
/// ```
/// # use quorate::{Keys, prefix};
/// let keys: Keys = prefix("config/");
/// ```
pub fn prefix(prefix: impl Into<String>) -> Keys {
    Keys(Selection::Prefix(prefix.into()))
}

impl Keys {
    /// The stored range, if the keys can exist.
    pub(crate) fn stored(&self) -> Result<KeyRange, Error> {
        match &self.0 {
            Selection::One(key) => Ok(KeyRange::single(stored_key(key)?)),
            Selection::Prefix(prefix) => {
                check_length(prefix)?;
                Ok(KeyRange::prefix(keys::host("", prefix.as_bytes())))
            }
            Selection::Range { start, end, inclusive } => {
                check_length(start)?;
                let all = keys::host_table("");
                let end = match end {
                    None => all.end,
                    Some(end) => {
                        check_length(end)?;
                        let bound = keys::host("", end.as_bytes());
                        if *inclusive { KeyRange::single(bound).end } else { Some(bound) }
                    }
                };
                Ok(KeyRange { start: keys::host("", start.as_bytes()), end })
            }
        }
    }
}

/// The stored form of one key, if it is a valid one.
pub(crate) fn stored_key(key: &str) -> Result<Bytes, Error> {
    if key.is_empty() {
        return Err(Error::Invalid { what: "key", why: "it is empty".into() });
    }
    check_length(key)?;
    Ok(keys::host("", key.as_bytes()))
}

fn check_length(key: &str) -> Result<(), Error> {
    match key.len() {
        0..=KEY_BYTES_MAX => Ok(()),
        len => Err(Error::Invalid { what: "key", why: format!("it has {len} bytes, the limit is {KEY_BYTES_MAX}") }),
    }
}

/// The key as the host wrote it.
pub(crate) fn shown(stored: &Bytes) -> String {
    String::from_utf8_lossy(&keys::strip(stored)).into_owned()
}

impl From<&str> for Keys {
    fn from(key: &str) -> Self {
        Keys(Selection::One(key.into()))
    }
}

impl From<&String> for Keys {
    fn from(key: &String) -> Self {
        key.as_str().into()
    }
}

impl From<String> for Keys {
    fn from(key: String) -> Self {
        Keys(Selection::One(key))
    }
}

impl From<RangeFull> for Keys {
    fn from(_: RangeFull) -> Self {
        Keys(Selection::Range { start: String::new(), end: None, inclusive: false })
    }
}

impl<S: Into<String>> From<Range<S>> for Keys {
    fn from(range: Range<S>) -> Self {
        Keys(Selection::Range { start: range.start.into(), end: Some(range.end.into()), inclusive: false })
    }
}

impl<S: Into<String>> From<RangeInclusive<S>> for Keys {
    fn from(range: RangeInclusive<S>) -> Self {
        let (start, end) = range.into_inner();
        Keys(Selection::Range { start: start.into(), end: Some(end.into()), inclusive: true })
    }
}

impl<S: Into<String>> From<RangeFrom<S>> for Keys {
    fn from(range: RangeFrom<S>) -> Self {
        Keys(Selection::Range { start: range.start.into(), end: None, inclusive: false })
    }
}

impl<S: Into<String>> From<RangeTo<S>> for Keys {
    fn from(range: RangeTo<S>) -> Self {
        Keys(Selection::Range { start: String::new(), end: Some(range.end.into()), inclusive: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_selects_the_keys_it_says() {
        let holds = |keys: Keys, key: &str| keys.stored().expect("valid").contains(&keys::host("", key.as_bytes()));
        assert!(holds("a".into(), "a") && !holds("a".into(), "aa"));
        assert!(holds(prefix("a/"), "a/b") && !holds(prefix("a/"), "a0") && !holds(prefix("a/"), "a"));
        assert!(holds(("a".."c").into(), "b") && !holds(("a".."c").into(), "c"));
        assert!(holds(("a"..="c").into(), "c") && !holds(("a"..="c").into(), "ca"));
        assert!(holds(("b"..).into(), "\u{10ffff}") && !holds(("b"..).into(), "a"));
        assert!(holds((.."b").into(), "a") && !holds((.."b").into(), "b"));
        assert!(holds((..).into(), "x"));
    }

    #[test]
    fn no_range_of_the_flat_verbs_reaches_another_table_or_the_recipes() {
        for keys in [Keys::from(..), Keys::from("a"..), prefix("")] {
            let range = keys.stored().expect("valid");
            assert!(!range.contains(&keys::host("t", b"z")) && !range.contains(&keys::coordination("lock", b"z")));
        }
    }

    #[test]
    fn an_empty_or_oversized_key_is_refused() {
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        for key in ["", long.as_str()] {
            assert!(matches!(stored_key(key), Err(Error::Invalid { what: "key", .. })), "{}", key.len());
        }
    }
}
