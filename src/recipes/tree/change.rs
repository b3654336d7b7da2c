//! Changing the tree: what a verb comes to on what is there, and carrying that out if it still is so.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::error::TreeError;
use super::path::Path;
use super::read::{missing, stored, stored_node};
use super::{TreeValue, node_entry};
use crate::api::cluster::Cluster;
use crate::api::kv::{Entry, ttl_attach};
use crate::api::read::{read_error, view_at_least};
use crate::api::session::Session;
use crate::codec::{self, Value};
use crate::command::{
    Attach, Command, Compare, KeyRange, KeyValue, Op, OpResult, Order, Refusal, Response, Test, Txn, TxnResponse,
};
use crate::error::{Error, Obstacle};
use crate::format::tree::{TreeNode, encode_node};
use crate::node::Node;
use crate::rt::Instant;
use crate::storage::view::View;
use crate::types::{LeaseId, Revision, VALUE_BYTES_MAX};

/// How often a verb is worked out anew that others keep coming in front of.
const ATTEMPTS_MAX: u32 = 1000;

/// What is to be put.
#[derive(Clone, Debug)]
pub(super) struct Content {
    stored: Bytes,
}

impl Content {
    pub(super) fn directory() -> Result<Self, Error> {
        Ok(Content { stored: encode_node(&TreeNode::Directory) })
    }

    pub(super) fn file<V: Value>(path: &str, value: &V) -> Result<Self, Error> {
        let stored = encode_node(&TreeNode::File(codec::encode(path, value)?));
        if stored.len() > VALUE_BYTES_MAX {
            let why = format!("has {} bytes, the limit is {VALUE_BYTES_MAX}", stored.len());
            return Err(Error::Invalid { what: "value", why });
        }
        Ok(Content { stored })
    }
}

/// What must be at the path for a put.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    Nothing,
    File,
    FileOrNothing,
    /// The path is that of a directory, in which a name is to be found.
    Ordered,
}

/// A file or directory to be put. See [`Tree::mk`](super::Tree::mk), [`Tree::set`](super::Tree::set),
/// [`Tree::update`](super::Tree::update), [`Tree::mkdir`](super::Tree::mkdir) and
/// [`Tree::mk_in_order`](super::Tree::mk_in_order).
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Clone, Debug)]
pub struct TreePut {
    cluster: Cluster,
    path: Result<Path, TreeError>,
    content: Result<Content, Error>,
    expect: Expect,
    own: Result<Attach, Error>,
    if_rev: Option<Revision>,
    timeout: Duration,
}

impl TreePut {
    pub(super) fn new(
        cluster: &Cluster,
        path: Result<Path, TreeError>,
        content: Result<Content, Error>,
        expect: Expect,
    ) -> Self {
        let timeout = cluster.node().settings().timeout;
        TreePut { cluster: cluster.clone(), path, content, expect, own: Ok(Attach::Forever), if_rev: None, timeout }
    }

    /// Has the node deleted `ttl` after the leader accepts the write (milliseconds count; 1 ms to one year); of a directory,
    /// with everything in it. Not for a node in a directory that has a time to live: that is refused with
    /// [`TreeError::TtlInside`].
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.own = ttl_attach(ttl);
        self
    }

    /// Has the node deleted when the session ends; of a directory, with everything in it. Otherwise as [`TreePut::ttl`].
    pub fn session(mut self, session: &Session) -> Self {
        self.own = Ok(Attach::Lease(session.lease()));
        self
    }

    /// Writes only a file whose newest put is that of `revision` (its entry's `modified`); otherwise
    /// [`TreeError::CompareFailed`], or [`TreeError::KeyNotFound`] if none is there.
    pub fn if_rev(mut self, revision: Revision) -> Self {
        self.if_rev = Some(revision);
        self
    }

    /// Gives up after `timeout` instead of the default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// What a put did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TreeChanged {
    /// The node's path: that of [`Tree::mk_in_order`](super::Tree::mk_in_order) was found by it.
    pub path: String,
    /// The revision it made.
    pub revision: Revision,
    /// The revision of the put that created the node.
    pub created: Revision,
    /// What was there before.
    pub prev: Option<Entry<TreeValue>>,
}

impl IntoFuture for TreePut {
    type Output = Result<TreeChanged, TreeError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (path, content, own) = (self.path?, self.content?, self.own?);
            let (expect, if_rev) = (self.expect, self.if_rev);
            let plan = move |view: &View| plan_put(view, &path, &content, expect, own, if_rev);
            let (Plan { path, prev, .. }, answer) = carry_out(&self.cluster, self.timeout, plan).await?;
            let prev = prev.map(|kv| node_entry(&path.to_string(), &kv)).transpose()?;
            let created = prev.as_ref().map_or(answer.revision, |prev| prev.created);
            Ok(TreeChanged { path: path.to_string(), revision: answer.revision, created, prev })
        })
    }
}

/// A file or directory to be deleted. See [`Tree::rm`](super::Tree::rm) and [`Tree::rmdir`](super::Tree::rmdir).
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Clone, Debug)]
pub struct TreeRemove {
    cluster: Cluster,
    path: Result<Path, TreeError>,
    directory: bool,
    recursive: bool,
    if_rev: Option<Revision>,
    timeout: Duration,
}

impl TreeRemove {
    pub(super) fn new(cluster: &Cluster, path: Result<Path, TreeError>, directory: bool) -> Self {
        let timeout = cluster.node().settings().timeout;
        TreeRemove { cluster: cluster.clone(), path, directory, recursive: false, if_rev: None, timeout }
    }

    /// Deletes everything below the directory too, at the same revision. A file has nothing below it.
    pub fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }

    /// Deletes only what was put last at `revision`; otherwise [`TreeError::CompareFailed`]. What changes below a directory
    /// does not count as a put of that.
    pub fn if_rev(mut self, revision: Revision) -> Self {
        self.if_rev = Some(revision);
        self
    }

    /// Gives up after `timeout` instead of the default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// What a delete did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TreeRemoved {
    /// The node's path.
    pub path: String,
    /// The revision it made.
    pub revision: Revision,
    /// How many nodes are gone, the one at the path included.
    pub count: u64,
    /// What was there.
    pub prev: Entry<TreeValue>,
}

impl IntoFuture for TreeRemove {
    type Output = Result<TreeRemoved, TreeError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let path = self.path?;
            let (directory, recursive, if_rev) = (self.directory, self.recursive, self.if_rev);
            let plan = move |view: &View| plan_remove(view, &path, directory, recursive, if_rev);
            let (Plan { path, prev, .. }, answer) = carry_out(&self.cluster, self.timeout, plan).await?;
            let prev = node_entry(&path.to_string(), &prev.expect("only what is there is deleted"))?;
            let count = match answer.results.first() {
                Some(OpResult::Delete { deleted, .. }) => *deleted,
                other => unreachable!("the answer of one delete is short enough to be remembered whole: {other:?}"),
            };
            Ok(TreeRemoved { path: path.to_string(), revision: answer.revision, count, prev })
        })
    }
}

/// What a verb comes to on what is there.
struct Plan {
    /// The node's.
    path: Path,
    prev: Option<KeyValue>,
    txn: Txn,
}

/// Works a verb out on what this node has applied and carries that out, again and again until nobody came in between.
///
/// At most one attempt takes effect: each but the last one was decided, and found something else than it was worked out from.
async fn carry_out(
    cluster: &Cluster,
    timeout: Duration,
    plan: impl Fn(&View) -> Result<Plan, TreeError> + Send + 'static,
) -> Result<(Plan, TxnResponse), TreeError> {
    let handle = cluster.clone();
    let working = cluster.on_node(move |node| async move {
        let started = Instant::now();
        let left = || timeout.saturating_sub(started.elapsed());
        // What this node happens to know will do to begin with: if it is old, the transaction finds that out.
        let (mut view, mut of_now) = (node.state().view(), false);
        for _ in 0..ATTEMPTS_MAX {
            let plan = match plan(&view) {
                Ok(plan) => plan,
                Err(refusal) if of_now => return Ok(Err(refusal)),
                // A refusal is no transaction that could find that out.
                Err(_) => {
                    (view, of_now) = (node.linearizable_view(left()).await?, true);
                    continue;
                }
            };
            handle.check_space(&plan.txn)?;
            // Not held while waiting: an old view keeps history from being swept.
            drop(view);
            let answer = propose(&node, plan.txn.clone(), left()).await?;
            if answer.failed.is_none() {
                return Ok(Ok((plan, answer)));
            }
            // It was decided during this call, so what this node shows from there on is of now.
            (view, of_now) = (view_at_least(node.clone(), answer.revision, left()).await?, true);
        }
        let why = Obstacle::Conflict { attempts: ATTEMPTS_MAX };
        Err(Error::NotApplied { why, waited: started.elapsed() })
    });
    working.await?
}

async fn propose(node: &Arc<Node>, txn: Txn, timeout: Duration) -> Result<TxnResponse, Error> {
    match node.mutate(Command::Txn(txn), timeout).await? {
        Response::Txn(answer) => Ok(answer),
        Response::Refused(Refusal::LeaseNotFound { lease }) => Err(Error::LeaseNotFound { lease }),
        other => unreachable!("a transaction that writes no key twice is answered with {other:?}"),
    }
}

fn plan_put(
    view: &View,
    path: &Path,
    content: &Content,
    expect: Expect,
    own: Attach,
    if_rev: Option<Revision>,
) -> Result<Plan, TreeError> {
    let mut compares = Vec::new();
    let path = match expect {
        Expect::Ordered => next_name(view, path, &mut compares)?,
        _ => path.clone(),
    };
    let prev = existing(view, &path)?;
    check_present(view, &path, prev.as_ref(), expect)?;
    check_revision(view, &path, prev.as_ref(), if_rev)?;
    let modified = prev.as_ref().map_or(Revision::ZERO, |kv| kv.modified);
    compares.push(Compare { keys: KeyRange::single(path.key()), test: Test::Modified(Order::Equal, modified) });
    let ground = Ground::of(view, &path)?;
    let lease = ground.attach(view, &path, own)?;
    let put = |path: &Path, value: Bytes, lease| Op::Put { key: path.key(), value, lease, prev: false };
    let parent = |parent: &Path| put(parent, encode_node(&TreeNode::Directory), ground.inherited());
    // The parents first, from the root on: so the watchers are told.
    let mut then: Vec<Op> = ground.missing.iter().rev().map(parent).collect();
    then.push(put(&path, content.stored.clone(), lease));
    compares.extend(ground.compares);
    Ok(Plan { path, prev, txn: Txn { compares, then: then.into(), otherwise: vec![] } })
}

/// The path of the next in-order name of a directory. That nothing of that name or a greater one was changed since is added to
/// the conditions.
fn next_name(view: &View, directory: &Path, compares: &mut Vec<Compare>) -> Result<Path, TreeError> {
    let name = |number: u64| directory.child(&format!("{number:020}"));
    let (next, last) = (name(view.revision.next().get())?, name(u64::MAX)?);
    let keys = KeyRange { start: next.key(), end: last.subtree().end };
    compares.push(Compare { keys, test: Test::UnchangedSince(view.revision) });
    Ok(next)
}

fn check_present(view: &View, path: &Path, prev: Option<&KeyValue>, expect: Expect) -> Result<(), TreeError> {
    let (text, revision) = (path.to_string(), view.revision);
    match (prev, expect) {
        (None, Expect::File) => Err(missing(view, path)?),
        (None, _) => Ok(()),
        (Some(_), Expect::Nothing | Expect::Ordered) => Err(TreeError::AlreadyExists { path: text, revision }),
        (Some(kv), Expect::File | Expect::FileOrNothing) => match stored_node(path, kv)? {
            TreeNode::File(_) => Ok(()),
            TreeNode::Directory => Err(TreeError::NotAFile { path: text, revision }),
        },
    }
}

fn check_revision(
    view: &View,
    path: &Path,
    prev: Option<&KeyValue>,
    if_rev: Option<Revision>,
) -> Result<(), TreeError> {
    let Some(wanted) = if_rev else { return Ok(()) };
    let Some(kv) = prev else { return Err(missing(view, path)?) };
    if kv.modified == wanted {
        return Ok(());
    }
    let (path, revision) = (path.to_string(), view.revision);
    Err(TreeError::CompareFailed { path, wanted, modified: kv.modified, revision })
}

fn plan_remove(
    view: &View,
    path: &Path,
    directory: bool,
    recursive: bool,
    if_rev: Option<Revision>,
) -> Result<Plan, TreeError> {
    let (text, revision) = (path.to_string(), view.revision);
    let Some(kv) = existing(view, path)? else { return Err(missing(view, path)?) };
    match (stored_node(path, &kv)?, directory) {
        (TreeNode::Directory, false) => return Err(TreeError::NotAFile { path: text, revision }),
        (TreeNode::File(_), true) => return Err(TreeError::NotADirectory { path: text, revision }),
        _ => {}
    }
    check_revision(view, path, Some(&kv), if_rev)?;
    let test = Test::Modified(Order::Equal, kv.modified);
    let mut compares = vec![Compare { keys: KeyRange::single(path.key()), test }];
    if directory && !recursive {
        let (below, _) = view.range(&path.below(), 1, false).map_err(|error| read_error(error, view.revision))?;
        if !below.is_empty() {
            return Err(TreeError::DirectoryNotEmpty { path: text, revision });
        }
        compares.push(Compare { keys: path.below(), test: Test::Absent });
    }
    let keys = if directory && recursive { path.subtree() } else { KeyRange::single(path.key()) };
    let then = vec![Op::Delete { keys, prev: false }];
    Ok(Plan { path: path.clone(), prev: Some(kv), txn: Txn { compares, then: then.into(), otherwise: vec![] } })
}

/// What is at `path`, which must not be the root.
fn existing(view: &View, path: &Path) -> Result<Option<KeyValue>, TreeError> {
    match path.is_root() {
        true => Err(TreeError::RootReadOnly { path: path.to_string(), revision: view.revision }),
        false => stored(view, path),
    }
}

/// Where a node is to be put: what of the way to it is there, and what is not.
struct Ground {
    /// The nearest directory on the way that is there, and the lease it goes with.
    directory: Path,
    lease: Option<LeaseId>,
    /// Those below it that are not, the deepest first.
    missing: Vec<Path>,
    /// That this is so.
    compares: Vec<Compare>,
}

impl Ground {
    fn of(view: &View, path: &Path) -> Result<Self, TreeError> {
        let mut directory = path.parent().expect("the root is not put");
        let (mut missing, mut compares) = (Vec::new(), Vec::new());
        while !directory.is_root() {
            let keys = KeyRange::single(directory.key());
            if let Some(kv) = stored(view, &directory)? {
                if stored_node(&directory, &kv)? != TreeNode::Directory {
                    return Err(TreeError::NotADirectory { path: directory.to_string(), revision: view.revision });
                }
                compares.push(Compare { keys, test: Test::Created(Order::Equal, kv.created) });
                return Ok(Ground { directory, lease: kv.lease, missing, compares });
            }
            compares.push(Compare { keys, test: Test::Absent });
            let parent = directory.parent().expect("not the root");
            missing.push(std::mem::replace(&mut directory, parent));
        }
        Ok(Ground { directory, lease: None, missing, compares })
    }

    /// What a node hangs on that has no time to live of its own.
    fn inherited(&self) -> Attach {
        self.lease.map_or(Attach::Forever, Attach::Lease)
    }

    /// What the node at `path` hangs on.
    fn attach(&self, view: &View, path: &Path, own: Attach) -> Result<Attach, TreeError> {
        match own {
            Attach::Forever => Ok(self.inherited()),
            own if self.lease.is_none() || own == self.inherited() => Ok(own),
            _ => Err(TreeError::TtlInside {
                path: path.to_string(),
                directory: self.directory.to_string(),
                revision: view.revision,
            }),
        }
    }
}
