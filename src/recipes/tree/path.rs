//! Paths: what a node of the tree is called, and where it is stored.

use std::fmt;

use bytes::Bytes;

use super::error::TreeError;
use crate::command::KeyRange;
use crate::error::KeyError;
use crate::format::keys;

/// Longest path, in bytes.
pub const TREE_PATH_BYTES_MAX: usize = 1024;
/// Most names in a path: how deep the tree may be.
pub const TREE_DEPTH_MAX: usize = 32;

/// The way from the root to a node: names that are neither empty, nor `.` or `..`, nor hold a slash or a zero byte.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Path {
    names: Vec<String>,
}

impl Path {
    /// The path that `text` is: `/`, or `/a/b` without a slash at the end.
    pub(crate) fn parse(text: &str) -> Result<Self, TreeError> {
        let refused = |why: String| Err(TreeError::Path { path: text.to_owned(), why });
        let Some(rest) = text.strip_prefix('/') else { return refused("it does not begin with a slash".into()) };
        if text.len() > TREE_PATH_BYTES_MAX {
            return refused(format!("it has {} bytes, the limit is {TREE_PATH_BYTES_MAX}", text.len()));
        }
        let names: Vec<String> = if rest.is_empty() { vec![] } else { rest.split('/').map(str::to_owned).collect() };
        if names.len() > TREE_DEPTH_MAX {
            return refused(format!("it has {} names, the limit is {TREE_DEPTH_MAX}", names.len()));
        }
        match names.iter().find(|name| matches!(name.as_str(), "" | "." | "..") || name.contains('\0')) {
            Some(name) if name.is_empty() => refused("one of its names is empty".into()),
            Some(name) => refused(format!("{name:?} is no name")),
            None => Ok(Path { names }),
        }
    }

    pub(crate) fn is_root(&self) -> bool {
        self.names.is_empty()
    }

    /// The directory it is in; the root is in none.
    pub(crate) fn parent(&self) -> Option<Path> {
        let (_, names) = self.names.split_last()?;
        Some(Path { names: names.to_vec() })
    }

    pub(crate) fn child(&self, name: &str) -> Result<Path, TreeError> {
        Path::parse(&format!("{}/{name}", if self.is_root() { String::new() } else { self.to_string() }))
    }

    pub(crate) fn key(&self) -> Bytes {
        keys::tree_node(self.names.iter().map(String::as_str))
    }

    /// Everything below it.
    pub(crate) fn below(&self) -> KeyRange {
        keys::tree_below(&self.key())
    }

    /// It and everything below it.
    pub(crate) fn subtree(&self) -> KeyRange {
        keys::tree_subtree(&self.key())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names.is_empty() {
            true => f.write_str("/"),
            false => self.names.iter().try_for_each(|name| write!(f, "/{name}")),
        }
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The path of a stored key, behind its space.
pub(crate) fn read_path(key: &[u8]) -> Result<String, KeyError> {
    let names = keys::tree_names(key).map_err(|error| KeyError::new(format!("is no path: {error}")))?;
    Ok(Path { names: names.into_iter().map(str::to_owned).collect() }.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_back_from_its_key() {
        for text in ["/a", "/a/b", "/ä/b c/...", "/a/.b/c."] {
            let path = Path::parse(text).expect("a path");
            assert_eq!(path.to_string(), text);
            assert_eq!(read_path(&keys::strip(&path.key())), Ok(text.to_owned()));
        }
        let path = Path::parse("/a/b").expect("a path");
        assert_eq!(path.parent().expect("not the root").to_string(), "/a");
        assert_eq!(path.child("c").expect("a path").to_string(), "/a/b/c");
        let root = Path::parse("/").expect("the root");
        assert!(root.is_root() && root.parent().is_none());
        assert_eq!((root.to_string(), root.child("c").expect("a path").to_string()), ("/".into(), "/c".into()));
    }

    #[test]
    fn what_has_no_place_in_the_tree_is_refused_with_the_reason() {
        let (deep, long) = ("/a".repeat(TREE_DEPTH_MAX + 1), format!("/{}", "a".repeat(TREE_PATH_BYTES_MAX)));
        assert!(Path::parse(&deep[2..]).is_ok() && Path::parse(&long[..TREE_PATH_BYTES_MAX]).is_ok());
        for (text, reason) in [
            ("", "slash"),
            ("a/b", "slash"),
            ("//", "empty"),
            ("/a/", "empty"),
            ("/a//b", "empty"),
            ("/a/./b", "no name"),
            ("/..", "no name"),
            ("/a\0b", "no name"),
            (&deep, "33 names"),
            (&long, "1025 bytes"),
        ] {
            let refused = Path::parse(text);
            let Err(TreeError::Path { path, why }) = &refused else { panic!("{text:?}: {refused:?}") };
            assert!(path == text && why.contains(reason), "{refused:?}");
        }
    }
}
