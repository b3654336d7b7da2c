//! The tree: files and directories, as the keys API of etcd's version 2 had them.
//!
//! # Model
//!
//! A file is a key with a value, a directory a key that says so. What the cluster holds at one path:
//!
//! ```text
//!             mk, set                              mkdir, or something is put below
//!      file ◀───────── (nothing, parent there) ─────────────────────────────────────▶ directory
//!  set, │ ▲                   ▲        ▲                                                │
//!  update─┘ └── rm, expired ──┘        └── rmdir (empty, or recursive), expired ────────┘
//! ```
//!
//! * Each node but the root is in a directory: at every revision, what a path leads through is there and is a directory.
//!   Parents that are missing are made by the same transaction that puts the node. A directory goes alone if it is empty, and
//!   otherwise only with everything below it.
//! * Every verb is one transaction. It is worked out on what this node has applied, and carried out on the condition that what
//!   it was worked out from still is so; otherwise it is worked out anew. A refusal is given only of a state that was seen
//!   after the verb was called.
//! * A directory with a time to live is a key on a lease, and whatever is put below it hangs on the same lease: all of it goes
//!   at one revision, as expired. So nothing below it can have a time to live of its own: one that is longer could not be kept,
//!   and one that is shorter could outlive the directory through a change of leader, which gives every lease its whole time
//!   again. That is refused ([`TreeError::TtlInside`]).
//! * In-order names are numbers of revisions. A name is the revision this node has seen plus one, put on the condition that
//!   since then nothing of that name or a greater one has changed in the directory. Whatever was put in before that has a
//!   lesser one, since no name is greater than the revision that made it: names grow, also across those that were removed.
//!
//! What is left to others: values are bytes with a codec, as those of the flat verbs; watches are [`crate::api::watch`]'s.
//!
//! Where this differs from etcd: `set` on a file keeps its `created` and counts up its `version`; a directory is never turned
//! into a file; a directory's time to live can be [refreshed](Tree::refresh), not changed; `rmdir` does not remove files.

mod change;
mod error;
mod path;
mod read;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

pub use self::change::{TreeChanged, TreePut, TreeRemove, TreeRemoved};
pub use self::error::TreeError;
pub use self::path::{TREE_DEPTH_MAX, TREE_PATH_BYTES_MAX};
pub use self::read::{TreeGet, TreeList};

use self::change::{Content, Expect};
use self::path::{Path, read_path};
use crate::api::cluster::Cluster;
use crate::api::kv::Entry;
use crate::api::layout::Layout;
use crate::api::watch::WatchBuilder;
use crate::codec::{self, Format, Value};
use crate::command::KeyValue;
use crate::error::Error;
use crate::format::tree::{TreeNode, decode_node};
use crate::rt::Instant;

/// The tree of a cluster: files and directories below `/`. See [`Cluster::tree`].
#[derive(Clone, Debug)]
pub struct Tree {
    cluster: Cluster,
}

/// What stands at a path: a directory, or a file's value.
#[derive(Clone, PartialEq, Eq)]
pub struct TreeValue(TreeNode);

impl TreeValue {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.0 == TreeNode::Directory
    }

    /// The value of the file.
    ///
    /// # Errors
    /// [`Error::Codec`] if it was not written as a `V`. [`Error::Invalid`] if it is a directory.
    pub fn value<V: Value>(&self) -> Result<V, Error> {
        match &self.0 {
            TreeNode::File(value) => codec::decode("(a file of the tree)", value),
            TreeNode::Directory => Err(Error::Invalid { what: "tree node", why: "a directory has no value".into() }),
        }
    }
}

impl fmt::Debug for TreeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            TreeNode::Directory => f.write_str("Directory"),
            TreeNode::File(value) => write!(f, "File({} bytes)", value.len()),
        }
    }
}

impl Tree {
    /// Creates a file. Directories on the way that are missing are made, without a time to live.
    ///
    /// Options: [`TreePut::ttl`], [`TreePut::session`], [`TreePut::timeout`].
    ///
    /// # Errors
    /// [`TreeError::AlreadyExists`], [`TreeError::NotADirectory`] if the path leads through a file,
    /// [`TreeError::RootReadOnly`], [`TreeError::TtlInside`], [`TreeError::Path`]. [`TreeError::Store`] as [`Cluster::set`].
    /// # Cancel safety
    /// Dropping the future does not withdraw what was sent.
    pub fn mk<V: Value>(&self, path: impl AsRef<str>, value: &V) -> TreePut {
        self.put(path.as_ref(), Content::file(path.as_ref(), value), Expect::Nothing)
    }

    /// Writes a file, whether it is there or not; otherwise as [`Tree::mk`].
    ///
    /// # Errors
    /// [`TreeError::NotAFile`] if it is a directory. Otherwise as [`Tree::mk`].
    /// # Cancel safety
    /// Dropping the future does not withdraw what was sent.
    pub fn set<V: Value>(&self, path: impl AsRef<str>, value: &V) -> TreePut {
        self.put(path.as_ref(), Content::file(path.as_ref(), value), Expect::FileOrNothing)
    }

    /// Writes a file that is there. Without [`TreePut::ttl`] it has none any more. Options: also [`TreePut::if_rev`].
    ///
    /// # Errors
    /// [`TreeError::KeyNotFound`], [`TreeError::NotAFile`]. Otherwise as [`Tree::mk`].
    /// # Cancel safety
    /// Dropping the future does not withdraw what was sent.
    pub fn update<V: Value>(&self, path: impl AsRef<str>, value: &V) -> TreePut {
        self.put(path.as_ref(), Content::file(path.as_ref(), value), Expect::File)
    }

    /// Creates a directory. Directories on the way that are missing are made too.
    ///
    /// With a [`TreePut::ttl`] (or a session), everything that is put below it goes with it, at one revision.
    ///
    /// # Errors
    /// As [`Tree::mk`].
    /// # Cancel safety
    /// Dropping the future does not withdraw what was sent.
    pub fn mkdir(&self, path: impl AsRef<str>) -> TreePut {
        self.put(path.as_ref(), Content::directory(), Expect::Nothing)
    }

    /// Creates a file in the directory `dir`, under a name that is greater than that of every file created so before: twenty
    /// digits, which sort as numbers do. The directory is made if it is missing. The path is [`TreeChanged::path`].
    ///
    /// Those who do so in one directory at the same moment wait for each other: one of them goes in at a time.
    ///
    /// # Errors
    /// [`TreeError::NotADirectory`], [`TreeError::TtlInside`], [`TreeError::Path`]; [`TreeError::AlreadyExists`] if somebody made
    /// the very name by hand that comes next. [`TreeError::Store`] as [`Cluster::set`].
    /// # Cancel safety
    /// Dropping the future does not withdraw what was sent.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// let tree = cluster.tree();
    /// let first = tree.mk_in_order("/jobs", &"build".to_string()).await?;
    /// let second = tree.mk_in_order("/jobs", &"test".to_string()).await?;
    /// assert!(first.path < second.path);
    /// let names: Vec<String> = tree.ls("/jobs").await?.into_iter().map(|(path, _)| path).collect();
    /// assert_eq!(names, [first.path, second.path]);
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn mk_in_order<V: Value>(&self, dir: impl AsRef<str>, value: &V) -> TreePut {
        self.put(dir.as_ref(), Content::file(dir.as_ref(), value), Expect::Ordered)
    }

    /// Deletes a file. Options: [`TreeRemove::if_rev`], [`TreeRemove::timeout`].
    ///
    /// # Errors
    /// [`TreeError::KeyNotFound`], [`TreeError::NotAFile`]. Otherwise as [`Tree::mk`].
    /// # Cancel safety
    /// Dropping the future does not withdraw what was sent.
    pub fn rm(&self, path: impl AsRef<str>) -> TreeRemove {
        TreeRemove::new(&self.cluster, Path::parse(path.as_ref()), false)
    }

    /// Deletes a directory that is empty; with [`TreeRemove::recursive`], also one that is not, with everything below it, at
    /// one revision.
    ///
    /// # Errors
    /// [`TreeError::KeyNotFound`], [`TreeError::NotADirectory`], [`TreeError::DirectoryNotEmpty`]. Otherwise as [`Tree::mk`].
    /// # Cancel safety
    /// Dropping the future does not withdraw what was sent.
    pub fn rmdir(&self, path: impl AsRef<str>) -> TreeRemove {
        TreeRemove::new(&self.cluster, Path::parse(path.as_ref()), true)
    }

    /// Reads the value of a file. Linearizable by default; options as those of [`Cluster::get`].
    ///
    /// # Errors
    /// [`TreeError::KeyNotFound`], [`TreeError::NotAFile`], [`TreeError::NotADirectory`], [`TreeError::Path`].
    /// [`TreeError::Store`] as [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    pub fn get<V: Value>(&self, path: impl AsRef<str>) -> TreeGet<V> {
        TreeGet::new(&self.cluster, Path::parse(path.as_ref()), read::file)
    }

    /// Reads what stands at a path, be it a file or a directory; the root is created and modified at revision 0.
    ///
    /// # Errors
    /// As [`Tree::get`], but for [`TreeError::NotAFile`].
    /// # Cancel safety
    /// Nothing is lost.
    pub fn stat(&self, path: impl AsRef<str>) -> TreeGet<TreeValue> {
        TreeGet::new(&self.cluster, Path::parse(path.as_ref()), read::node)
    }

    /// Lists what is in a directory, in the order of the names, as of one moment: paths and what stands there.
    ///
    /// Options: [`TreeList::recursive`], [`TreeList::limit`], [`TreeList::after`], and those of [`Cluster::get`].
    ///
    /// # Errors
    /// [`TreeError::KeyNotFound`], [`TreeError::NotADirectory`], [`TreeError::Path`]. [`TreeError::Store`] as [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    pub fn ls(&self, path: impl AsRef<str>) -> TreeList {
        TreeList::new(&self.cluster, Path::parse(path.as_ref()))
    }

    /// Watches a path and everything below it on this node, whether there is something yet or not: every put and delete, in
    /// order, by revision, with causes. The keys are paths. See [`Cluster::watch`].
    ///
    /// # Errors
    /// Of this call: [`TreeError::Path`]. Of the builder: as [`Cluster::watch`].
    /// # Cancel safety
    /// Nothing is lost: no watch was opened.
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
    /// let tree = cluster.tree();
    /// let mut watch = tree.watch("/config")?.await?;
    /// tree.set("/config/web/port", &8080u16).await?;
    /// let batch = watch.next().await.expect("a watch ends with an error")?;
    /// let paths: Vec<&str> = batch.events.iter().map(|event| event.key().as_str()).collect();
    /// assert_eq!(paths, ["/config", "/config/web", "/config/web/port"]);
    /// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn watch(&self, path: impl AsRef<str>) -> Result<WatchBuilder<TreeValue, String>, TreeError> {
        let keys = Path::parse(path.as_ref())?.subtree();
        let layout = Layout::read_by(read_path, Format::own(read_value));
        Ok(WatchBuilder::new(&self.cluster, Ok(keys), layout))
    }

    /// Gives a node its whole time to live again: a file its own, a directory that of everything in it; what is in a directory
    /// with a time to live goes with that, and refreshes that. Writes nothing, and no watch is told. The time from now on;
    /// `None` if it has no end.
    ///
    /// # Errors
    /// As [`Tree::stat`]; [`TreeError::KeyNotFound`] also if it expires at this moment.
    /// # Cancel safety
    /// It may have been refreshed.
    pub async fn refresh(&self, path: impl AsRef<str>) -> Result<Option<Duration>, TreeError> {
        let path = Path::parse(path.as_ref())?;
        let timeout = self.cluster.node().settings().timeout;
        let refreshing = self.cluster.on_node(move |node| async move {
            let deadline = Instant::now() + timeout;
            loop {
                let view = node.linearizable_view(deadline - Instant::now()).await?;
                let found = match read::found(&view, &path) {
                    Ok(found) => found,
                    Err(error) => return Ok(Err(error)),
                };
                drop(view);
                let Some(lease) = found.and_then(|kv| kv.lease) else { return Ok(Ok(None)) };
                if let Some(ttl) = node.keep_alive(lease, deadline - Instant::now()).await? {
                    return Ok(Ok(Some(ttl)));
                }
                // The lease has gone since the look: with the node, or because it was put anew with another one.
            }
        });
        refreshing.await?
    }

    /// How long a node has left, by the leader's clock; `None` if it is not there or has no time to live.
    ///
    /// # Errors
    /// [`TreeError::Path`]. [`TreeError::Store`] as [`Cluster::get`].
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn remaining(&self, path: impl AsRef<str>) -> Result<Option<Duration>, TreeError> {
        let key = Path::parse(path.as_ref())?.key();
        Ok(self.cluster.remaining_of(Ok(key)).await?)
    }

    fn put(&self, path: &str, content: Result<Content, Error>, expect: Expect) -> TreePut {
        TreePut::new(&self.cluster, Path::parse(path), content, expect)
    }
}

/// What is stored at a path, with its type.
fn node_entry(path: &str, kv: &KeyValue) -> Result<Entry<TreeValue>, Error> {
    let value = Format::own(read_value).decode(|| path.to_owned(), &kv.value)?;
    Ok(entry_of(kv, value))
}

fn entry_of<V>(kv: &KeyValue, value: V) -> Entry<V> {
    Entry {
        value,
        created: kv.created,
        modified: kv.modified,
        version: kv.version,
        lease: kv.lease,
        ttl: kv.ttl_ms.map(Duration::from_millis),
    }
}

fn read_value(stored: &[u8]) -> Result<TreeValue, String> {
    decode_node(&Bytes::copy_from_slice(stored)).map(TreeValue).map_err(|error| error.to_string())
}

impl Cluster {
    /// The cluster's tree of files and directories. Sends nothing.
    ///
    /// Paths are `/` and `/a/b`: names that are neither empty, nor `.` or `..`, nor hold a slash or a zero byte; at most
    /// [`TREE_PATH_BYTES_MAX`](crate::TREE_PATH_BYTES_MAX) bytes and [`TREE_DEPTH_MAX`](crate::TREE_DEPTH_MAX) names. Values are
    /// of any type, chosen call by call, as those of the flat verbs. The tree shares nothing with flat keys and tables.
    ///
    /// A verb that others keep coming in front of is worked out anew, up to a thousand times, then [`Error::NotApplied`] (conflict).
    ///
    /// # Examples
    /// ```
    /// # futures::executor::block_on(async {
    /// # let nodes = quorate::Cluster::local(3).await?;
    /// use std::time::Duration;
    /// use quorate::TreeError;
    ///
    /// let tree = nodes[0].tree();
    /// tree.mk("/config/web/port", &8080u16).await?;
    /// let again = tree.mk("/config/web/port", &9090u16).await;
    /// assert!(matches!(again, Err(TreeError::AlreadyExists { .. })));
    ///
    /// // Other nodes see it, and what was there before comes with each change.
    /// let changed = nodes[1].tree().update("/config/web/port", &9090u16).await?;
    /// assert_eq!(changed.prev.expect("it was there").value::<u16>()?, 8080);
    /// assert_eq!(*nodes[2].tree().get::<u16>("/config/web/port").await?, 9090);
    ///
    /// // A directory with a time to live takes everything below it along.
    /// tree.mkdir("/workers").ttl(Duration::from_secs(30)).await?;
    /// tree.set("/workers/7/state", &"busy".to_string()).await?;
    ///
    /// let all = tree.ls("/").recursive().await?;
    /// let paths: Vec<&str> = all.iter().map(|(path, _)| path.as_str()).collect();
    /// assert_eq!(paths, ["/config", "/config/web", "/config/web/port", "/workers", "/workers/7", "/workers/7/state"]);
    ///
    /// assert_eq!(tree.rmdir("/config").await.map(drop).map_err(|error| error.code()), Err(Some(108)));
    /// assert_eq!(tree.rmdir("/config").recursive().await?.count, 3);
    /// # for node in nodes { node.shutdown().await?; } Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn tree(&self) -> Tree {
        Tree { cluster: self.clone() }
    }
}

#[cfg(test)]
mod tests;
