//! Stored keys: one ordered space for everything.
//!
//! A key of the host's is `0x01, table name, 0x00, key bytes`; the flat verbs are the table with the empty name. Keys of the
//! recipes are `0x02, recipe, 0x00, ...`, a space no public verb can name. Table names hold no zero byte, so no table's range
//! touches another's.

use bytes::{BufMut, Bytes, BytesMut};

use crate::command::KeyRange;

const HOST: u8 = 0x01;
const COORDINATION: u8 = 0x02;

/// Room for most keys.
const KEY_BYTES_USUAL: usize = 46;

/// The key `key` of table `table`.
pub(crate) fn host(table: &str, key: &[u8]) -> Bytes {
    stored(HOST, table, key)
}

/// The key of table `table` that `write` writes, for whoever only compares with it.
pub(crate) fn host_with(table: &str, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut stored = Vec::with_capacity(2 + table.len() + KEY_BYTES_USUAL);
    stored.push(HOST);
    stored.extend_from_slice(table.as_bytes());
    stored.push(0);
    write(&mut stored);
    stored
}

/// The key `key` of recipe `recipe`.
pub(crate) fn coordination(recipe: &str, key: &[u8]) -> Bytes {
    stored(COORDINATION, recipe, key)
}

/// Every key of table `table`.
pub(crate) fn host_table(table: &str) -> KeyRange {
    KeyRange::prefix(host(table, b""))
}

/// What follows the table's name in a stored key.
pub(crate) fn strip(stored: &Bytes) -> Bytes {
    stored.slice(table_end(stored) + 1..)
}

/// The name of the table, or of the recipe, that a stored key belongs to.
pub(crate) fn table(stored: &Bytes) -> &str {
    str::from_utf8(&stored[1..table_end(stored)]).expect("names are text")
}

fn table_end(stored: &Bytes) -> usize {
    stored.iter().position(|byte| *byte == 0).expect("every stored key has a zero byte behind its table")
}

fn stored(space: u8, table: &str, key: &[u8]) -> Bytes {
    debug_assert!(!table.contains('\0'), "table names are checked where they are made");
    let mut stored = BytesMut::with_capacity(2 + table.len() + key.len());
    stored.put_u8(space);
    stored.put_slice(table.as_bytes());
    stored.put_u8(0);
    stored.put_slice(key);
    stored.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_keys_are_these_bytes() {
        assert_eq!(host("", b"a/b").as_ref(), b"\x01\x00a/b");
        assert_eq!(host("services", b"web").as_ref(), b"\x01services\x00web");
        assert_eq!(host_with("services", |to| to.extend_from_slice(b"web")), b"\x01services\x00web");
        assert_eq!(coordination("lock", b"job").as_ref(), b"\x02lock\x00job");
        assert_eq!(strip(&host("services", b"we\x00b")).as_ref(), b"we\x00b");
        assert_eq!((table(&host("services", b"we\x00b")), table(&host("", b"x"))), ("services", ""));
    }

    #[test]
    fn the_range_of_a_table_holds_its_keys_and_no_others() {
        let range = host_table("web");
        assert!(range.contains(&host("web", b"")) && range.contains(&host("web", &[0xff; 40])));
        for other in [host("we", b"b"), host("webs", b""), host("", b"web"), coordination("web", b"")] {
            assert!(!range.contains(&other), "{other:?}");
        }
    }
}
