//! Stored keys: one ordered space for everything.
//!
//! A key of the host's is `0x01, table name, 0x00, key bytes`; the flat verbs are the table with the empty name. Keys of the
//! recipes are `0x02, recipe, 0x00, ...`, a space no public verb can name. Table names hold no zero byte, so no table's range
//! touches another's. Nodes of the tree are `0x03, 0x00, name, 0x00, name, ...`: a node's key is a prefix of those below it, and
//! no name holds a zero byte, so that each subtree is one range, in the order of its paths. What a recipe keeps for the host beyond any lease (the items of
//! queues) is `0x04, recipe, 0x00, ...`.

use bytes::{BufMut, Bytes, BytesMut};

use crate::command::KeyRange;

const HOST: u8 = 0x01;
const COORDINATION: u8 = 0x02;
const TREE: u8 = 0x03;
const KEPT: u8 = 0x04;
/// What stands between the names of a path.
const TREE_SEPARATOR: u8 = 0;

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

/// The key `key` of what recipe `recipe` keeps for the host.
pub(crate) fn kept(recipe: &str, key: &[u8]) -> Bytes {
    stored(KEPT, recipe, key)
}

/// Every key of table `table`.
pub(crate) fn host_table(table: &str) -> KeyRange {
    KeyRange::prefix(host(table, b""))
}

/// The node of the tree behind these names; that of no names, the root, is stored nowhere.
pub(crate) fn tree_node<'a>(names: impl Iterator<Item = &'a str>) -> Bytes {
    let path: Vec<&[u8]> = names.map(str::as_bytes).collect();
    debug_assert!(path.iter().all(|name| !name.contains(&TREE_SEPARATOR)), "names are checked where they come in");
    stored(TREE, "", &path.join(&TREE_SEPARATOR))
}

/// Everything below the node `stored`, itself not included.
pub(crate) fn tree_below(stored: &Bytes) -> KeyRange {
    if strip(stored).is_empty() {
        return KeyRange::prefix(stored.clone());
    }
    let mut start = BytesMut::from(stored.as_ref());
    start.put_u8(TREE_SEPARATOR);
    KeyRange::prefix(start.freeze())
}

/// The node `stored` and everything below it.
pub(crate) fn tree_subtree(stored: &Bytes) -> KeyRange {
    KeyRange { start: stored.clone(), end: tree_below(stored).end }
}

/// The names on the way to a node, if they are text.
pub(crate) fn tree_names(path: &[u8]) -> Result<Vec<&str>, std::str::Utf8Error> {
    path.split(|byte| *byte == TREE_SEPARATOR).map(str::from_utf8).collect()
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
        assert_eq!(kept("queue", b"mail").as_ref(), b"\x04queue\x00mail");
        assert_eq!(strip(&host("services", b"we\x00b")).as_ref(), b"we\x00b");
        assert_eq!((table(&host("services", b"we\x00b")), table(&host("", b"x"))), ("services", ""));
    }

    #[test]
    fn a_node_of_the_tree_stands_in_front_of_what_is_below_it_and_nothing_stands_between() {
        let node = |names: &[&str]| tree_node(names.iter().copied());
        assert_eq!(node(&[]).as_ref(), b"\x03\x00");
        assert_eq!(node(&["a", "bc"]).as_ref(), b"\x03\x00a\x00bc");
        assert_eq!(tree_names(&strip(&node(&["a", "bc"]))), Ok(vec!["a", "bc"]));
        let inside = [node(&["a", "b"]), node(&["a", "\x01"]), node(&["a", "b", "c"])];
        let outside = [node(&["a\x01"]), node(&["a-"]), node(&["ab"]), node(&["A", "b"]), node(&[]), host("", b"a")];
        let (below, subtree) = (tree_below(&node(&["a"])), tree_subtree(&node(&["a"])));
        assert!(inside.iter().all(|key| below.contains(key) && subtree.contains(key)));
        assert!(!outside.iter().any(|key| below.contains(key) || subtree.contains(key)));
        assert!(subtree.contains(&node(&["a"])) && !below.contains(&node(&["a"])));
        let all = tree_below(&node(&[]));
        assert!(inside.iter().chain(&outside[..4]).all(|key| all.contains(key)));
        assert!(!all.contains(&host("", b"a")) && !all.contains(&coordination("tree", b"a")));
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
