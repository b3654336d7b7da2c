//! Late writes of holders that hold no more, in every form a write can have.

use super::*;
use crate::api::session::Session;
use crate::api::testing::{Trio, eventually, ms};
use crate::api::txn::{put, when};
use crate::recipes::lock::LockGuard;
use crate::recipes::testing::{TTL, standing, wipe};

async fn guard(cluster: &Cluster, name: &str) -> LockGuard {
    cluster.lock(name).ttl(TTL).await.expect("free")
}

async fn session(cluster: &Cluster) -> Session {
    cluster.session().ttl(TTL).await.expect("open")
}

/// Ends the session's lease behind its back.
async fn revoke(cluster: &Cluster, session: &Session) {
    let lease = session.lease();
    cluster.node().housekeep(Command::LeaseRevoke { lease }, ms(5000)).await.expect("carried out");
}

/// What every form of a write says that requires `held` and would write `value` at `k`.
async fn every_form(cluster: &Cluster, held: &(impl Fenced + ?Sized), value: u64) -> Vec<Result<(), Error>> {
    let txn = cluster.transaction().require(held).when(when("missing").absent()).then(put("k", &value));
    vec![
        cluster.set("k", &value).fenced(held).await.map(drop),
        cluster.set("k", &value).fenced(held).prev().await.map(drop),
        cluster.set("k", &value).if_present().fenced(held).await.map(|cas| assert!(cas.is_applied())),
        cluster.table(crate::Table::<str, u64>::new("")).set("k", &value).fenced(held).await.map(drop),
        cluster.update("k", move |_: Option<&u64>| Some(value + 1)).fenced(held).await.map(drop),
        // Nothing to write, and required all the same.
        cluster.update("k", |old: Option<&u64>| old.copied()).fenced(held).await.map(drop),
        txn.await.map(|outcome| assert!(outcome.succeeded())),
        cluster.txn(move |t| t.put("k", &value).map(drop)).require(held).await.map(drop),
        cluster.txn(|t| t.get::<u64>("k").map(drop)).require(held).await.map(drop),
        cluster.delete("other").fenced(held).await.map(drop),
    ]
}

async fn value(cluster: &Cluster) -> Option<u64> {
    cluster.get::<u64>("k").await.expect("read").map(|entry| *entry)
}

#[tokio::test(start_paused = true)]
async fn whoever_holds_writes_in_every_form_and_whoever_held_in_none() {
    let trio = Trio::start().await;
    let (leader, follower, other) = trio.roles().await;
    let node = &trio.nodes[follower];
    let (guard, session) = (guard(node, "job").await, session(node).await);
    node.set("k", &0u64).await.expect("written");
    for held in [&guard as &dyn DynFenced, &session] {
        for (form, written) in held.every_form(node, 1).await.into_iter().enumerate() {
            written.unwrap_or_else(|error| panic!("form {form}: {error}"));
        }
        assert_eq!(value(node).await, Some(1));
    }
    // The lock's own session goes on; its claim is gone.
    let fence = guard.fence();
    wipe(&trio.nodes[leader]).await;
    revoke(&trio.nodes[leader], &session).await;
    for (form, refused) in every_form(node, &guard, 2).await.into_iter().enumerate() {
        assert!(matches!(refused, Err(Error::Fenced { held, .. }) if held == fence.get()), "form {form}: {refused:?}");
    }
    for (form, refused) in every_form(node, &session, 2).await.into_iter().enumerate() {
        let lease = session.lease();
        assert!(matches!(refused, Err(Error::LeaseNotFound { lease: l }) if l == lease), "form {form}: {refused:?}");
    }
    assert_eq!(value(&trio.nodes[other]).await, Some(1));
    trio.stop().await;
}

/// [`every_form`] of things of different types.
trait DynFenced {
    fn every_form<'a>(
        &'a self,
        cluster: &'a Cluster,
        value: u64,
    ) -> futures::future::BoxFuture<'a, Vec<Result<(), Error>>>;
}

impl<T: Fenced + Sync> DynFenced for T {
    fn every_form<'a>(
        &'a self,
        cluster: &'a Cluster,
        value: u64,
    ) -> futures::future::BoxFuture<'a, Vec<Result<(), Error>>> {
        Box::pin(every_form(cluster, self, value))
    }
}

#[tokio::test(start_paused = true)]
async fn of_several_that_are_required_the_one_that_is_lost_is_named() {
    let trio = Trio::start().await;
    let node = &trio.nodes[0];
    let (first, session) = (guard(node, "first").await, session(node).await);
    let (second, third) = (guard(node, "second").await, guard(node, "third").await);
    let write = || node.set("k", &1u64).fenced(&first).fenced(&session).fenced(&second).fenced(&third);
    write().await.expect("all of them stand");
    let (fence, lost) = (second.fence(), second.terms());
    second.release().await.expect("released");
    let mut fences = Fences::default();
    for terms in [first.terms(), session.terms(), lost, third.terms()] {
        fences.add(terms);
    }
    let put = Op::Put {
        key: crate::format::keys::host("", b"k"),
        value: Bytes::from_static(b"x"),
        lease: Attach::Forever,
        prev: false,
    };
    let refused = fences.write(node, Txn { then: [put].into(), ..Txn::default() }, ms(5000)).await;
    assert!(matches!(refused, Err(Error::Fenced { held, .. }) if held == fence.get()), "{refused:?}");
    revoke(node, &session).await;
    let refused = node.set("k", &2u64).fenced(&first).fenced(&session).fenced(&third).await;
    assert!(matches!(refused, Err(Error::LeaseNotFound { lease }) if lease == session.lease()), "{refused:?}");
    assert_eq!(value(node).await, Some(1));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn conditions_of_the_callers_own_are_told_from_what_is_required() {
    let trio = Trio::start().await;
    let node = &trio.nodes[0];
    let (guard, session) = (guard(node, "job").await, session(node).await);
    let txn = node.transaction().require(&guard).require(&session);
    let tried = txn.when(when("a").absent()).when(when("b").present()).then(put("a", &1u64)).await;
    assert_eq!(tried.expect("both stand").failed_condition(), Some(1));
    let around = node.transaction().require(&session).when(when("b").present()).otherwise(put("a", &1u64)).await;
    assert!(matches!(around, Err(Error::Invalid { what: "transaction", .. })), "{around:?}");
    let conflict = node.set("missing", &1u64).if_present().fenced(&session).await;
    assert!(matches!(conflict, Ok(crate::Cas::Conflict(None))), "{conflict:?}");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_does_not_listen_to_its_guards_end_writes_nothing_all_the_same() {
    let trio = Trio::start().await;
    let node = trio.nodes[0].clone();
    let guard = std::sync::Arc::new(guard(&node, "job").await);
    let required = guard.clone();
    let run = move |t: &mut crate::Txn| {
        // Not listening to the answer does not help.
        let _ = t.require(&*required);
        t.put("k", &1u64).map(drop)
    };
    node.txn(run.clone()).await.expect("it stands");
    wipe(&node).await;
    let late = node.txn(run).await;
    assert!(matches!(late, Err(Error::Fenced { held, .. }) if held == guard.fence().get()), "{late:?}");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_mark_of_a_session_is_put_once_and_goes_with_it() {
    let trio = Trio::start().await;
    let (_, follower, other) = trio.roles().await;
    let session = session(&trio.nodes[follower]).await;
    for n in 0..5u64 {
        trio.nodes[follower].set("k", &n).fenced(&session).await.expect("it stands");
    }
    standing(&trio.nodes[other], 1).await;
    let mark = &crate::recipes::testing::claims(&trio.nodes[other])[0];
    assert_eq!((mark.version, mark.lease), (1, Some(session.lease())));
    session.close().await.expect("closed");
    standing(&trio.nodes[other], 0).await;
    eventually("the write is there", || async { value(&trio.nodes[other]).await == Some(4) }).await;
    trio.stop().await;
}
