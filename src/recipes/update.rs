//! One key that is read and written again until nobody came in between.

use bytes::Bytes;
use std::time::Duration;

use crate::api::cluster::Cluster;
use crate::api::read::read_error;
use crate::command::{Attach, Command, Compare, KeyRange, KeyValue, Op, OpResult, Order, Response, Test, Txn};
use crate::error::{Error, Obstacle};
use crate::rt::Instant;
use crate::types::Revision;

/// How often a change is tried that others keep coming in front of.
const ATTEMPTS_MAX: u64 = 1000;

/// Changes the value at `key` to what `change` makes of the present one, in one transaction; returns what else `change` said.
/// No value from `change`: nothing is written.
///
/// At most one attempt takes effect: each but the last one was decided, and found that somebody else had come first.
///
/// # Errors
/// Those of `change`. [`Error::NotApplied`] after a thousand attempts, or when the time was up. [`Error::Indeterminate`] for the
/// last attempt.
pub(crate) async fn update<T: Send + 'static>(
    cluster: &Cluster,
    key: Bytes,
    timeout: Duration,
    mut change: impl FnMut(Option<Bytes>) -> Result<(Option<Bytes>, T), Error> + Send + 'static,
) -> Result<T, Error> {
    let handle = cluster.clone();
    let updating = cluster.on_node(move |node| async move {
        let started = Instant::now();
        let view = node.state().view();
        // What this node happens to know will do to begin with: if it is not the newest, the answer brings that.
        let mut now = view.get(&key).map_err(|error| read_error(error, view.revision))?;
        drop(view);
        for _ in 0..ATTEMPTS_MAX {
            let (value, told) = change(now.as_ref().map(|kv| kv.value.clone()))?;
            let txn = rewriting(&key, now.as_ref(), value);
            handle.check_space(&txn)?;
            let left = timeout.saturating_sub(started.elapsed());
            let answer = match node.mutate(Command::Txn(txn), left).await? {
                Response::Txn(answer) => answer,
                other => unreachable!("a transaction without leases is answered with {other:?}"),
            };
            if answer.failed.is_none() {
                return Ok(told);
            }
            now = match answer.results.into_iter().next() {
                Some(OpResult::Get(found)) => found,
                other => unreachable!("the answer of one get is short enough to be remembered whole: {other:?}"),
            };
        }
        let why = Obstacle::Busy { what: "attempts to change what others change too", limit: ATTEMPTS_MAX };
        Err(Error::NotApplied { why, waited: started.elapsed() })
    });
    updating.await
}

/// On the condition that nobody has written the key since it was `now`.
fn rewriting(key: &Bytes, now: Option<&KeyValue>, value: Option<Bytes>) -> Txn {
    let test = Test::Modified(Order::Equal, now.map_or(Revision::ZERO, |kv| kv.modified));
    let put = |value| Op::Put { key: key.clone(), value, lease: Attach::Forever, prev: false };
    Txn {
        compares: vec![Compare { keys: KeyRange::single(key.clone()), test }],
        then: value.map(put).into_iter().collect(),
        otherwise: vec![Op::Get { key: key.clone() }],
    }
}

/// Deletes the key; one that is not there is fine.
pub(crate) async fn remove(cluster: &Cluster, key: Bytes, timeout: Duration) -> Result<(), Error> {
    let then = vec![Op::Delete { keys: KeyRange::single(key), prev: false }];
    cluster.write(Txn { then, ..Txn::default() }, timeout).await.map(drop)
}
