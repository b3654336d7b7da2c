//! Reading the tree: one node, or what is in a directory.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::error::TreeError;
use super::path::{Path, read_path};
use super::{TreeValue, entry_of, node_entry};
use crate::api::cluster::Cluster;
use crate::api::kv::Entry;
use crate::api::range::{Entries, RANGE_ENTRIES_MAX};
use crate::api::read::{Reading, read_error, reading};
use crate::codec::{self, Value};
use crate::command::{KeyRange, KeyValue};
use crate::error::Error;
use crate::format::keys;
use crate::format::tree::{TreeNode, decode_node};
use crate::storage::view::View;
use crate::types::{Revision, VALUE_BYTES_MAX};

/// Nodes read at a time.
const PAGE: usize = 256;
/// Bytes of values after which a list ends and says that there is more; one node is always given.
const LIST_BYTES_MAX: usize = 4 * VALUE_BYTES_MAX;

/// A read of one node. See [`Tree::get`](super::Tree::get) and [`Tree::stat`](super::Tree::stat).
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct TreeGet<V: 'static> {
    reading: Reading,
    path: Result<Path, TreeError>,
    read: fn(&View, &Path) -> Result<Entry<V>, TreeError>,
}

impl<V> TreeGet<V> {
    reading!();

    pub(super) fn new(
        cluster: &Cluster,
        path: Result<Path, TreeError>,
        read: fn(&View, &Path) -> Result<Entry<V>, TreeError>,
    ) -> Self {
        TreeGet { reading: Reading::new(cluster), path, read }
    }
}

impl<V: Send + 'static> IntoFuture for TreeGet<V> {
    type Output = Result<Entry<V>, TreeError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let path = self.path?;
            let view = self.reading.view().await?;
            (self.read)(&view, &path)
        })
    }
}

/// The value of the file at `path`.
pub(super) fn file<V: Value>(view: &View, path: &Path) -> Result<Entry<V>, TreeError> {
    let not_a_file = || TreeError::NotAFile { path: path.to_string(), revision: view.revision };
    let kv = found(view, path)?.ok_or_else(not_a_file)?;
    match stored_node(path, &kv)? {
        TreeNode::File(value) => Ok(entry_of(&kv, codec::decode(&path.to_string(), &value)?)),
        TreeNode::Directory => Err(not_a_file()),
    }
}

/// What stands at `path`.
pub(super) fn node(view: &View, path: &Path) -> Result<Entry<TreeValue>, TreeError> {
    match found(view, path)? {
        Some(kv) => Ok(node_entry(&path.to_string(), &kv)?),
        None => Ok(Entry {
            value: TreeValue(TreeNode::Directory),
            created: Revision::ZERO,
            modified: Revision::ZERO,
            version: 0,
            lease: None,
            ttl: None,
        }),
    }
}

/// What is stored of the node at `path`, which is there; `None` for the root.
pub(super) fn found(view: &View, path: &Path) -> Result<Option<KeyValue>, TreeError> {
    if path.is_root() {
        return Ok(None);
    }
    match stored(view, path)? {
        Some(kv) => Ok(Some(kv)),
        None => Err(missing(view, path)?),
    }
}

/// What is stored at `path`, if anything.
pub(super) fn stored(view: &View, path: &Path) -> Result<Option<KeyValue>, TreeError> {
    Ok(view.get(&path.key()).map_err(|error| read_error(error, view.revision))?)
}

/// Why nothing is at `path`: the way to it ends in a file, or before it is there.
pub(super) fn missing(view: &View, path: &Path) -> Result<TreeError, TreeError> {
    let revision = view.revision;
    let mut first = path.clone();
    while let Some(parent) = first.parent().filter(|parent| !parent.is_root()) {
        match stored(view, &parent)? {
            Some(kv) if stored_node(&parent, &kv)? != TreeNode::Directory => {
                return Ok(TreeError::NotADirectory { path: parent.to_string(), revision });
            }
            Some(_) => break,
            None => first = parent,
        }
    }
    Ok(TreeError::KeyNotFound { path: first.to_string(), revision })
}

pub(super) fn stored_node(path: &Path, kv: &KeyValue) -> Result<TreeNode, Error> {
    decode_node(&kv.value).map_err(|error| Error::Codec {
        key: path.to_string(),
        codec: 0,
        version: 0,
        problem: error.to_string(),
    })
}

/// A list of what is in a directory. See [`Tree::ls`](super::Tree::ls).
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct TreeList {
    reading: Reading,
    path: Result<Path, TreeError>,
    after: Option<String>,
    recursive: bool,
    limit: u32,
}

impl TreeList {
    reading!();

    pub(super) fn new(cluster: &Cluster, path: Result<Path, TreeError>) -> Self {
        TreeList { reading: Reading::new(cluster), path, after: None, recursive: false, limit: RANGE_ENTRIES_MAX }
    }

    /// Lists everything below the directory, not only what is in it: each directory in front of what is in that.
    pub fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }

    /// Returns at most `limit` nodes: at most [`RANGE_ENTRIES_MAX`](crate::RANGE_ENTRIES_MAX) (and about 4 MiB) in any case.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = limit;
        self
    }

    /// Begins behind `path`, the last one of a list that said that there is more.
    pub fn after(mut self, path: impl Into<String>) -> Self {
        self.after = Some(path.into());
        self
    }

    /// The keys that are still to be listed.
    fn keys(&self, path: &Path) -> Result<KeyRange, TreeError> {
        let mut keys = path.below();
        if let Some(after) = &self.after {
            let after = Path::parse(after)?;
            let from = if self.recursive { KeyRange::single(after.key()).end } else { after.subtree().end };
            keys.start = keys.start.max(from.expect("what is in the tree has something behind it"));
        }
        Ok(keys)
    }
}

impl IntoFuture for TreeList {
    type Output = Result<Entries<TreeValue, String>, TreeError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let path = self.path.clone()?;
            let keys = self.keys(&path)?;
            let limit = self.limit.min(RANGE_ENTRIES_MAX) as usize;
            let view = self.reading.view().await?;
            if !node(&view, &path)?.is_dir() {
                return Err(TreeError::NotADirectory { path: path.to_string(), revision: view.revision });
            }
            let (found, more) = match self.recursive {
                true => view.range(&keys, limit, false).map_err(|error| read_error(error, view.revision))?,
                false => children(&view, keys, limit)?,
            };
            let entries = found.iter().map(listed).collect::<Result<_, Error>>()?;
            Ok(Entries { entries, more, revision: view.revision })
        })
    }
}

fn listed(kv: &KeyValue) -> Result<(String, Entry<TreeValue>), Error> {
    let path = read_path(&keys::strip(&kv.key)).map_err(|error| Error::Key {
        table: "(tree)".into(),
        key: kv.key.escape_ascii().to_string(),
        problem: error.to_string(),
    })?;
    let entry = node_entry(&path, kv)?;
    Ok((path, entry))
}

/// The first `limit` nodes of `rest`, without what is below them, and whether there are more.
fn children(view: &View, mut rest: KeyRange, limit: usize) -> Result<(Vec<KeyValue>, bool), Error> {
    let (mut children, mut bytes): (Vec<KeyValue>, usize) = (Vec::new(), 0);
    loop {
        let (page, more) = view.range(&rest, PAGE, false).map_err(|error| read_error(error, view.revision))?;
        // Behind a directory, the page goes on with what is below it: that is stepped over by another page.
        let mut behind: Option<Bytes> = None;
        let last = page.last().map(|kv| kv.key.clone());
        for kv in page {
            if behind.as_ref().is_some_and(|behind| kv.key < *behind) {
                continue;
            }
            if children.len() == limit || (bytes >= LIST_BYTES_MAX && !children.is_empty()) {
                return Ok((children, true));
            }
            behind = keys::tree_subtree(&kv.key).end;
            bytes += kv.value.len();
            children.push(kv);
        }
        match (last, behind) {
            (Some(_), Some(behind)) if more => rest.start = rest.start.max(behind),
            _ => return Ok((children, false)),
        }
    }
}
