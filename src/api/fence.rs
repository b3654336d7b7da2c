//! What a write can be held to: that somebody still holds what he held.
//!
//! Whatever a process believes of its lock or session by the time a write of its arrives, the cluster decides: the claim's key,
//! or the session's mark, is a condition of the transaction. Conditions of this kind stand before all others, so that it is
//! known which one failed.
//!
//! A session has no key of its own: when the first write is to be held to it, its *mark* is put, a key that hangs on its
//! lease. While the mark is there and hangs on that lease, the lease exists.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::cluster::Cluster;
use super::read::read_error;
use super::session::Session;
use crate::command::{Attach, Command, Compare, KeyRange, Op, Order, Refusal, Response, Test, Txn, TxnResponse};
use crate::error::Error;
use crate::format::claim::{encode_numbers, object_key};
use crate::rt::{Instant, Mark, mark};
use crate::storage::view::View;
use crate::types::{Fence, LeaseId, Revision, TXN_OPS_MAX, WRITE_BYTES_MAX};

/// Something that is held, and that writes can be held to: guards of locks, elections, semaphores and reader-writer locks,
/// items of queues, and sessions. What is shared, in an `Arc`, is as good.
///
/// A write that requires it is carried out only while it stands *in the cluster*, whatever this process believes by then.
/// If it does not, nothing is written, and the error says what was lost: [`Error::Fenced`] with the guard's
/// [`Fence`](crate::Fence) number, or [`Error::LeaseNotFound`] with the session's lease.
///
/// Taken by [`Set::fenced`](crate::Set::fenced) and its like, [`Transaction::require`](crate::Transaction::require),
/// [`Transact::require`](crate::Transact::require) and [`Txn::require`](crate::Txn::require). Not to be implemented outside of
/// this crate.
///
/// # Examples
/// ```
/// # futures::executor::block_on(async {
/// # let nodes = quorate::Cluster::local(1).await?; let cluster = &nodes[0];
/// use quorate::Error;
///
/// let guard = cluster.lock("jobs/nightly").await?;
/// let session = cluster.session().await?;
///
/// match cluster.set("progress", &1u32).fenced(&guard).fenced(&session).await {
///     Ok(written) => println!("written at revision {}", written.revision),
///     Err(Error::Fenced { held, .. }) => println!("the lock of fence {held} has gone to somebody else"),
///     Err(Error::LeaseNotFound { .. }) => println!("the session has expired"),
///     Err(other) => return Err(other.into()),
/// }
/// # assert_eq!(cluster.get::<u32>("progress").await?.map(|progress| *progress), Some(1));
/// # guard.release().await?; session.close().await?;
/// # cluster.shutdown().await?; Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub trait Fenced: Holds {}

/// Keeps [`Fenced`] to this crate.
pub trait Holds {
    /// What must be true in the cluster.
    #[doc(hidden)]
    fn terms(&self) -> Terms;
}

/// What must be true in the cluster for a write to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    key: Bytes,
    held: Held,
}

/// What is lost if it is not.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Held {
    /// A claim: the key was created at the fence's revision.
    Claim(Fence),
    /// A session: the key, its mark, hangs on this lease.
    Session(LeaseId),
}

impl Terms {
    pub(crate) fn claim(key: Bytes, fence: Fence) -> Self {
        Terms { key, held: Held::Claim(fence) }
    }

    pub(crate) fn session(lease: LeaseId) -> Self {
        Terms { key: object_key("session", &lease.to_string()), held: Held::Session(lease) }
    }

    fn compare(&self) -> Compare {
        let test = match self.held {
            Held::Claim(fence) => Test::Created(Order::Equal, fence.revision()),
            Held::Session(lease) => Test::Lease(Some(lease)),
        };
        Compare { keys: KeyRange::single(self.key.clone()), test }
    }

    /// # Errors
    /// What is lost, if it does not stand as of `view`.
    pub(crate) fn check(&self, view: &View) -> Result<(), Error> {
        let failed = |error| read_error(error, view.revision);
        let stands = match self.held {
            Held::Claim(fence) => view.get(&self.key).map_err(failed)?.is_some_and(|kv| kv.created == fence.revision()),
            // Not by its mark, which may not have been put yet.
            Held::Session(lease) => view.lease_ttl_ms(lease).map_err(failed)?.is_some(),
        };
        if stands { Ok(()) } else { Err(self.lost(view.revision)) }
    }

    fn lost(&self, current: Revision) -> Error {
        mark(Mark::StaleFenceRefused);
        match self.held {
            Held::Claim(fence) => Error::Fenced { held: fence.get(), current },
            Held::Session(lease) => Error::LeaseNotFound { lease },
        }
    }
}

/// All that one write is held to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fences(Vec<Terms>);

impl Fences {
    pub(crate) fn add(&mut self, terms: Terms) {
        if !self.0.contains(&terms) {
            self.0.push(terms);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// As [`Terms::check`], for all of them.
    pub(crate) fn check(&self, view: &View) -> Result<(), Error> {
        self.0.iter().try_for_each(|terms| terms.check(view))
    }

    /// Proposes one transaction, once, on the condition that all of this stands. The answer knows nothing of these conditions.
    ///
    /// # Errors
    /// As [`Cluster::write`], and what is lost.
    pub(crate) async fn write(&self, cluster: &Cluster, mut txn: Txn, timeout: Duration) -> Result<TxnResponse, Error> {
        if !self.0.is_empty() {
            check_otherwise(&txn)?;
            txn.compares.splice(0..0, self.0.iter().map(Terms::compare));
        }
        check_size(&txn)?;
        let started = Instant::now();
        for terms in &self.0 {
            if let Held::Session(lease) = terms.held {
                put_mark(cluster, &terms.key, lease, timeout).await?;
            }
        }
        let mut answer = cluster.write(txn, timeout.saturating_sub(started.elapsed())).await?;
        if let Some(failed) = &mut answer.failed {
            match self.0.get(*failed as usize) {
                Some(terms) => return Err(terms.lost(answer.revision)),
                None => *failed -= self.0.len() as u32,
            }
        }
        Ok(answer)
    }
}

/// Sees to it that the session's mark is there, as far as this node can see: once it is, it goes with the lease.
async fn put_mark(cluster: &Cluster, key: &Bytes, lease: LeaseId, timeout: Duration) -> Result<(), Error> {
    let view = cluster.node().state().view();
    if view.get(key).map_err(|error| read_error(error, view.revision))?.is_some() {
        return Ok(());
    }
    // Not held while waiting: an old view keeps history from being swept.
    drop(view);
    let put = Op::Put { key: key.clone(), value: encode_numbers([]), lease: Attach::Lease(lease), prev: false };
    let mark = Command::Txn(Txn { then: [put].into(), ..Txn::default() });
    // Putting it twice does no harm, so that nothing of unknown outcome is left when it cannot be put.
    match cluster.on_node(move |node| async move { node.housekeep(mark, timeout).await }).await? {
        Response::Refused(Refusal::LeaseNotFound { lease }) => Err(Error::LeaseNotFound { lease }),
        _ => Ok(()),
    }
}

/// The other branch also runs when what is required is gone: it must not be a way around that.
fn check_otherwise(txn: &Txn) -> Result<(), Error> {
    match txn.otherwise.iter().any(|op| matches!(op, Op::Put { .. } | Op::Delete { .. })) {
        true => {
            let why = "the `otherwise` branch of a transaction that requires a guard may only read: it also runs when that is lost";
            Err(Error::Invalid { what: "transaction", why: why.into() })
        }
        false => Ok(()),
    }
}

fn check_size(txn: &Txn) -> Result<(), Error> {
    let invalid = |why| Err(Error::Invalid { what: "transaction", why });
    let parts = txn.compares.len() + txn.then.len() + txn.otherwise.len();
    if parts > TXN_OPS_MAX {
        return invalid(too_many(parts));
    }
    // Everything counts that makes the entry large: what does not fit into a frame could be logged and never replicated.
    let ops = txn.then.iter().chain(&txn.otherwise).map(|op| match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Get { key } => key.len(),
        Op::Delete { keys, .. } | Op::Range { keys, .. } => range_bytes(keys),
    });
    let compares = txn.compares.iter().map(|compare| {
        let value = if let Test::Value(_, value) = &compare.test { value.len() } else { 0 };
        range_bytes(&compare.keys) + value
    });
    let bytes: usize = ops.chain(compares).sum();
    if bytes > WRITE_BYTES_MAX {
        return invalid(too_large(bytes));
    }
    Ok(())
}

/// What is wrong with a transaction of so many parts.
pub(crate) fn too_many(parts: usize) -> String {
    format!("it has {parts} conditions and operations, the limit is {TXN_OPS_MAX}")
}

/// What is wrong with a transaction of so many bytes.
pub(crate) fn too_large(bytes: usize) -> String {
    format!("its keys and values take {bytes} bytes, the limit is {WRITE_BYTES_MAX}")
}

fn range_bytes(keys: &KeyRange) -> usize {
    keys.start.len() + keys.end.as_ref().map_or(0, |end| end.len())
}

impl<T: Fenced + ?Sized> Fenced for Arc<T> {}

impl<T: Holds + ?Sized> Holds for Arc<T> {
    fn terms(&self) -> Terms {
        (**self).terms()
    }
}

impl Fenced for Session {}

impl Holds for Session {
    fn terms(&self) -> Terms {
        Terms::session(self.lease())
    }
}

#[cfg(test)]
mod tests;
