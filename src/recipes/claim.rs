//! Standing in a line.
//!
//! A claim is a key of its own that hangs on a lease. Keys of one line are ordered by the revision that created them, then by
//! key; nobody can get in front of a claim that stands, and a claim that is gone never comes back (its key is minted once).
//! From that follows what waiting needs:
//!
//! * A node that is behind sees a line that once was. If a claim is first there, everybody who was before it is gone for
//!   good; all that is left to find out is whether the claim itself still stands.
//! * A claim that waits watches the one before it and nobody else: when a claim goes, one waiter wakes.
//! * The claim of a process that died goes with its lease, wherever it stands.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};

use crate::api::cluster::Cluster;
use crate::api::kv::read_error;
use crate::api::session::{Lifeline, LostReason};
use crate::command::{
    Attach, ChangeKind, Command, Compare, KeyRange, KeyValue, Op, OpResult, Order, Refusal, Response, Test, Txn,
};
use crate::error::{Error, Obstacle};
use crate::format::claim::{self, ClaimNote};
use crate::node::Node;
use crate::rt::{self, mutant};
use crate::storage::view::View;
use crate::types::{Fence, LeaseId, Revision, Ticket};
use crate::watch_hub::Next;

/// Most claims in one line, holder included, as far as this node can see when another is to be placed; one more is refused
/// as busy.
pub(crate) const CLAIMS_MAX: u64 = 1024;
/// Claims read from the state at a time.
const PAGE: usize = 512;
/// How long the read that confirms a claim, or a step of a withdrawal, may take before it is tried again.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// One line of claims.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) recipe: &'static str,
    pub(crate) name: String,
}

/// A claim that was placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) key: Bytes,
    pub(crate) fence: Fence,
}

/// What became of placing a claim.
#[derive(Debug)]
pub(crate) enum Placed {
    /// It stands. `alone`: nobody else stood in the line at the revision that made it.
    Standing { claim: Claim, lease: LeaseId, alone: bool },
    /// Somebody stands in the line, and the caller did not want to queue. Nothing was written.
    Occupied,
}

impl Line {
    pub(crate) fn range(&self) -> KeyRange {
        claim::line(self.recipe, &self.name)
    }

    /// The claims of the line as of `view`, the first one first.
    pub(crate) fn claims(&self, view: &View) -> Result<Vec<KeyValue>, Error> {
        let mut claims = Vec::new();
        let mut rest = self.range();
        loop {
            let (page, more) = view.range(&rest, PAGE, false).map_err(|error| read_error(error, view.revision))?;
            let last = page.last().map(|kv| kv.key.clone());
            claims.extend(page);
            match last {
                Some(last) if more => {
                    rest.start = KeyRange::single(last).end.expect("the range of one key ends behind it");
                }
                _ => break,
            }
        }
        claims.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
        Ok(claims)
    }

    /// Places a claim in one transaction, which also tells whether the line was empty. The put hangs it on `attach`.
    ///
    /// If its outcome stays unknown, it is found out and undone in the background.
    pub(crate) async fn place(
        &self,
        cluster: &Cluster,
        note: &ClaimNote,
        attach: Attach,
        queue: bool,
        timeout: Duration,
    ) -> Result<Placed, Error> {
        let node = cluster.node();
        self.check_length(node)?;
        let key = claim::claim_key(self.recipe, &self.name, rt::random_u128());
        let put = Op::Put { key: key.clone(), value: claim::encode_claim(note), lease: attach, prev: false };
        let otherwise = if queue { vec![put.clone()] } else { vec![] };
        let compares = vec![Compare { keys: self.range(), test: Test::Absent }];
        let txn = Txn { compares, then: vec![put], otherwise };
        cluster.check_space(&txn)?;
        match node.mutate(Command::Txn(txn), timeout).await {
            Ok(Response::Txn(answer)) if !answer.changed => Ok(Placed::Occupied),
            Ok(Response::Txn(answer)) => {
                let fence = Fence::new(answer.revision).expect("a change has a revision above zero");
                let Some(OpResult::Put { lease: Some(lease), .. }) = answer.results.first() else {
                    unreachable!("the answer of one put is short enough to be remembered whole: {answer:?}");
                };
                Ok(Placed::Standing { claim: Claim { key, fence }, lease: *lease, alone: answer.failed.is_none() })
            }
            Ok(Response::Refused(Refusal::LeaseNotFound { lease })) => Err(Error::LeaseNotFound { lease }),
            Ok(other) => unreachable!("a claim's transaction is answered with {other:?}"),
            Err(Error::Indeterminate { ticket }) => {
                let undoing = undo(node.clone(), ticket, key);
                node.spawn("claim-undo", async move { drop(undoing.await) }).detach();
                Err(Error::NotApplied { why: Obstacle::Timeout, waited: timeout })
            }
            Err(error) => Err(error),
        }
    }

    fn check_length(&self, node: &Node) -> Result<(), Error> {
        let view = node.state().view();
        let standing = view.count(&self.range()).map_err(|error| read_error(error, view.revision))?;
        if standing >= CLAIMS_MAX {
            let why = Obstacle::Busy { what: "claims in one line", limit: CLAIMS_MAX };
            return Err(Error::NotApplied { why, waited: Duration::ZERO });
        }
        Ok(())
    }

    /// Waits until the claim is first in its line, and returns the session's lapses as of when that was confirmed.
    ///
    /// An error as soon as this node knows that the claim, or the session it lives by, is gone.
    pub(crate) async fn wait_turn(&self, node: &Arc<Node>, claim: &Claim, session: &Lifeline) -> Result<u64, Error> {
        // Until it is applied here, there is no telling it from one that is gone.
        node.wait_revision(claim.fence.revision()).await?;
        let (ended, mine) = (pin!(session.lost()), pin!(until_gone(node, &claim.key)));
        match select(ended, select(mine, pin!(self.turn(node, claim, session)))).await {
            Either::Left((reason, _)) => Err(session_error(session, reason)),
            Either::Right((Either::Left((reason, _)), _)) => {
                Err(gone(session, claim, reason, node.state().view().revision))
            }
            Either::Right((Either::Right((turn, _)), _)) => turn,
        }
    }

    /// As [`Line::wait_turn`], for a claim that stands.
    ///
    /// The turn is confirmed by one linearizable read that shows the claim standing, which is also to say that its lease
    /// exists, and by the session's local deadline, which was not passed from before that read until after it.
    async fn turn(&self, node: &Arc<Node>, claim: &Claim, session: &Lifeline) -> Result<u64, Error> {
        while let Some(before) = self.before(&node.state().view(), claim)? {
            match until_gone(node, &before).await {
                LostReason::Stopped => return Err(session_error(session, LostReason::Stopped)),
                LostReason::Expired => rt::mark(rt::Mark::LockGrantedByExpiry),
                _ => {}
            }
        }
        if mutant("lock_grant_ignores_lease") {
            return Ok(session.standing().sure(rt::boot_now()).unwrap_or(0));
        }
        // First here is first for good, so that nothing below asks about the others again.
        loop {
            let lapses = session.sure().await.map_err(|reason| session_error(session, reason))?;
            let view = match node.linearizable_view(STEP_TIMEOUT).await {
                Ok(view) => view,
                Err(Error::NotApplied { .. }) => continue,
                Err(error) => return Err(error),
            };
            if let Some(reason) = how_gone(&view, &claim.key)? {
                return Err(gone(session, claim, reason, view.revision));
            }
            if session.standing().sure(rt::boot_now()) == Some(lapses) {
                return Ok(lapses);
            }
        }
    }

    /// The claim right before this one, if one stands there.
    fn before(&self, view: &View, claim: &Claim) -> Result<Option<Bytes>, Error> {
        let mine = (claim.fence.revision(), &claim.key);
        let claims = self.claims(view)?;
        Ok(claims.into_iter().take_while(|kv| (kv.created, &kv.key) < mine).last().map(|kv| kv.key))
    }
}

/// How the claim went, if it is gone. Its key is its own, so that nothing else can stand there.
fn how_gone(view: &View, key: &[u8]) -> Result<Option<LostReason>, Error> {
    let failed = |error| read_error(error, view.revision);
    if view.get(key).map_err(failed)?.is_some() {
        return Ok(None);
    }
    let last = view.explain(key, 1).map_err(failed)?;
    let expired = last.first().is_some_and(|(_, record)| record.kind == ChangeKind::Expired);
    Ok(Some(if expired { LostReason::Expired } else { LostReason::Deleted }))
}

/// Waits until this node sees that the claim is gone. The node must have applied the claim.
///
/// # Cancel safety
/// Nothing is lost.
pub(crate) async fn until_gone(node: &Node, key: &Bytes) -> LostReason {
    let changes = node.hub().subscribe(KeyRange::single(key.clone()));
    loop {
        // Watching before looking: what goes after the look stirs the watch.
        let view = node.state().view();
        match how_gone(&view, key) {
            Ok(None) => {}
            Ok(Some(reason)) => return reason,
            Err(_) => return LostReason::Stopped,
        }
        // Not held while waiting: an old view keeps history from being swept.
        let seen = view.revision;
        drop(view);
        if let Next::Closed(_) = changes.next(seen).await {
            return LostReason::Stopped;
        }
    }
}

/// Deletes a claim, trying until the cluster has answered or this node has stopped. May be done twice.
pub(crate) async fn withdraw(node: &Arc<Node>, claim: &Claim) -> Result<(), Error> {
    let keys = KeyRange::single(claim.key.clone());
    let compares = vec![Compare { keys: keys.clone(), test: Test::Created(Order::Equal, claim.fence.revision()) }];
    delete(node, Txn { compares, then: vec![Op::Delete { keys, prev: false }], otherwise: vec![] }).await
}

/// Finds out what became of a claim's transaction, then deletes the claim if there is one.
///
/// In this order: until the ticket is resolved, the transaction may still be carried out, behind the delete.
async fn undo(node: Arc<Node>, ticket: Ticket, key: Bytes) -> Result<(), Error> {
    persist(&node, Command::Resolve { client: ticket.client, seq: ticket.seq }).await?;
    let keys = KeyRange::single(key);
    delete(&node, Txn { then: vec![Op::Delete { keys, prev: false }], ..Txn::default() }).await
}

async fn delete(node: &Arc<Node>, txn: Txn) -> Result<(), Error> {
    persist(node, Command::Txn(txn)).await
}

/// Repeats a command that may be done twice until it is answered; an error when this node has stopped.
async fn persist(node: &Arc<Node>, command: Command) -> Result<(), Error> {
    loop {
        match node.housekeep(command.clone(), STEP_TIMEOUT).await {
            Ok(_) => return Ok(()),
            Err(Error::NotApplied { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What a waiter is told when its session is lost.
pub(crate) fn session_error(session: &Lifeline, reason: LostReason) -> Error {
    match reason {
        LostReason::Stopped => Error::Stopped { reason: "this node has stopped".into() },
        _ => Error::LeaseNotFound { lease: session.lease },
    }
}

/// What a waiter is told when its claim is gone.
fn gone(session: &Lifeline, claim: &Claim, reason: LostReason, current: Revision) -> Error {
    match (session.standing().lost, reason) {
        (Some(reason), _) => session_error(session, reason),
        (None, LostReason::Deleted) => Error::Fenced { held: claim.fence.get(), current },
        (None, reason) => session_error(session, reason),
    }
}
