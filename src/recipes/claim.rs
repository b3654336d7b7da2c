//! Standing in a line.
//!
//! A claim is a key of its own that hangs on a lease. Keys of one line are ordered by the revision that created them, then by
//! key; nobody can get in front of a claim that stands, and a claim that is gone never comes back (its key is minted once).
//! From that follows what waiting needs:
//!
//! * A node that is behind sees a line that once was. If a claim is first there, everybody who was before it is gone for
//!   good; all that is left to find out is whether the claim itself still stands.
//! * A claim that waits for everybody before it watches the last of them and nobody else: when a claim goes, one waiter wakes.
//! * The claim of a process that died goes with its lease, wherever it stands.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};

use crate::api::cluster::Cluster;
use crate::api::read::read_error;
use crate::api::session::{Lifeline, LostReason};
use crate::command::{
    Attach, ChangeKind, Command, Compare, KeyRange, KeyValue, Op, OpResult, Order, Refusal, Response, Test, Txn,
    TxnResponse,
};
use crate::error::{Error, Obstacle};
use crate::format::claim::{self, ClaimNote};
use crate::node::Node;
use crate::rt::{self, mutant};
use crate::storage::view::View;
use crate::types::{Fence, LeaseId, Revision, Ticket};
use crate::watch_hub::{Batch, Next};

/// Most claims in one line, holder included, as far as this node can see when another is to be placed; one more is refused
/// as busy.
pub(crate) const CLAIMS_MAX: u64 = 1024;
/// Claims read from the state at a time.
const PAGE: usize = 512;
/// How long the read that confirms a claim, or a step of a withdrawal, may take before it is tried again.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a claim is sent anew because the size of its line has come or gone meanwhile.
const SIZE_ATTEMPTS_MAX: u64 = 8;

/// One line of claims, and how the caller's are to stand in it.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) recipe: &'static str,
    pub(crate) name: String,
    /// Empty where a recipe has one kind of claims only.
    pub(crate) kind: &'static str,
    pub(crate) turn: Turn,
    /// What all who stand in the line must agree on; kept beside it by the first of them.
    pub(crate) size: Option<Size>,
}

/// When it is a claim's turn.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// When nobody is before it.
    First,
    /// When nobody of this kind is before it.
    FirstOf(&'static str),
    /// When fewer than this many are before it.
    Among(u64),
}

/// A size and what it is called.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) what: &'static str,
    pub(crate) of: u64,
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
    /// It stands. `alone`: it is known that nobody stood in its way at the revision that made it.
    Standing { claim: Claim, lease: LeaseId, alone: bool },
    /// Somebody stands in the line, and the caller did not want to queue. Nothing was written.
    Occupied,
}

impl Line {
    /// A line in which each waits for everybody before it.
    pub(crate) fn new(recipe: &'static str, name: String) -> Self {
        Line { recipe, name, kind: "", turn: Turn::First, size: None }
    }

    pub(crate) fn range(&self) -> KeyRange {
        claim::line(self.recipe, &self.name)
    }

    /// The claims of one kind.
    pub(crate) fn range_of(&self, kind: &str) -> KeyRange {
        claim::line_of(self.recipe, &self.name, kind)
    }

    /// Where the size is kept.
    pub(crate) fn size_key(&self) -> Bytes {
        claim::object_key(self.recipe, &self.name)
    }

    /// The size that is kept, if there is one.
    pub(crate) fn stored_size(&self, view: &View) -> Result<Option<u64>, Error> {
        let found = view.get(&self.size_key()).map_err(|error| read_error(error, view.revision))?;
        found.map(read_size).transpose()
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

    /// Places a claim in one transaction, which also tells whether somebody stood in its way. The put hangs it on `attach`.
    ///
    /// If its outcome stays unknown, it is found out and undone in the background.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the line has another size.
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
        let key = claim::claim_key(self.recipe, &self.name, self.kind, rt::random_u128());
        let put = Op::Put { key: key.clone(), value: claim::encode_claim(note), lease: attach, prev: false };
        let Some(size) = self.size else {
            let answer = send(cluster, self.placing(put, queue), &key, timeout).await?;
            return Ok(placed(answer, key, true));
        };
        let mut known = self.stored_size(&node.state().view())?;
        for _ in 0..SIZE_ATTEMPTS_MAX {
            let answer = send(cluster, self.placing_sized(put.clone(), size, known.is_some()), &key, timeout).await?;
            // Nobody has counted those before it: its turn is still to be found out.
            if answer.changed {
                return Ok(placed(answer, key, false));
            }
            known = match answer.results.into_iter().next() {
                Some(OpResult::Get(found)) => found.map(read_size).transpose()?,
                other => unreachable!("the answer of one get is short enough to be remembered whole: {other:?}"),
            };
            self.check_size(known)?;
        }
        let why = Obstacle::Busy { what: "changes of a size", limit: SIZE_ATTEMPTS_MAX };
        Err(Error::NotApplied { why, waited: Duration::ZERO })
    }

    /// What places a claim; not if the caller does not queue and somebody stands in its way.
    fn placing(&self, put: Op, queue: bool) -> Txn {
        let rivals = match self.turn {
            Turn::FirstOf(kind) => self.range_of(kind),
            Turn::First | Turn::Among(_) => self.range(),
        };
        let otherwise = if queue { vec![put.clone()] } else { vec![] };
        Txn { compares: vec![Compare { keys: rivals, test: Test::Absent }], then: [put].into(), otherwise }
    }

    /// What places a claim if the line has this size, or, if none is known, gives it this size. Otherwise reads the size.
    fn placing_sized(&self, put: Op, size: Size, known: bool) -> Txn {
        let (key, value) = (self.size_key(), claim::encode_numbers([size.of]));
        let keys = KeyRange::single(key.clone());
        let otherwise = vec![Op::Get { key: key.clone() }];
        match known {
            true => {
                let test = Test::Value(Order::Equal, value);
                Txn { compares: vec![Compare { keys, test }], then: [put].into(), otherwise }
            }
            false => {
                let first = Op::Put { key, value, lease: Attach::Forever, prev: false };
                Txn { compares: vec![Compare { keys, test: Test::Absent }], then: vec![put, first].into(), otherwise }
            }
        }
    }

    /// Deletes the size if nobody stands in the line.
    pub(crate) async fn forget_size(&self, cluster: &Cluster, timeout: Duration) -> Result<(), Error> {
        let compares = vec![Compare { keys: self.range(), test: Test::Absent }];
        let then = vec![Op::Delete { keys: KeyRange::single(self.size_key()), prev: false }];
        match cluster.write(Txn { compares, then: then.into(), otherwise: vec![] }, timeout).await?.failed {
            None => Ok(()),
            Some(_) => Err(Error::NotApplied { why: Obstacle::Held, waited: Duration::ZERO }),
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
        loop {
            let view = node.state().view();
            let (awaited, seen) = (self.awaited(&view, claim)?, view.revision);
            // Not held while waiting: an old view keeps history from being swept.
            drop(view);
            let Some(awaited) = awaited else { break };
            match node.hub().subscribe(awaited).next(seen).await {
                Next::Closed(_) => return Err(session_error(session, LostReason::Stopped)),
                Next::Batches(batches, _) if has_expired(&batches) => rt::mark(rt::Mark::LockGrantedByExpiry),
                _ => {}
            }
        }
        if mutant("lock_grant_ignores_lease") {
            return Ok(session.standing().sure(rt::boot_now()).unwrap_or(0));
        }
        // Whose turn it is here has it for good, so that nothing below asks about the others again.
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

    /// Where something must change before it can be the claim's turn; `None` if it is.
    pub(crate) fn awaited(&self, view: &View, claim: &Claim) -> Result<Option<KeyRange>, Error> {
        let mine = (claim.fence.revision(), &claim.key);
        let claims = self.claims(view)?;
        let mut before = claims.into_iter().take_while(|kv| (kv.created, &kv.key) < mine);
        let last = match self.turn {
            Turn::First => before.last(),
            Turn::FirstOf(kind) => {
                let rivals = self.range_of(kind);
                before.filter(|kv| rivals.contains(&kv.key)).last()
            }
            // Any of them may be the one that makes room.
            Turn::Among(places) => {
                let full = usize::try_from(places - 1).is_ok_and(|places| before.nth(places).is_some());
                return Ok(full.then(|| self.range()));
            }
        };
        Ok(last.map(|kv| KeyRange::single(kv.key)))
    }

    /// Whether a claim that is placed now would have to wait for a place.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the line has another size.
    pub(crate) fn is_full(&self, view: &View) -> Result<bool, Error> {
        self.check_size(self.stored_size(view)?)?;
        let standing = view.count(&self.range()).map_err(|error| read_error(error, view.revision))?;
        Ok(matches!(self.turn, Turn::Among(places) if standing >= places))
    }

    fn check_size(&self, stored: Option<u64>) -> Result<(), Error> {
        match (self.size, stored) {
            (Some(size), Some(stored)) if size.of != stored => {
                Err(Error::Mismatch { what: size.what, stored, given: size.of })
            }
            _ => Ok(()),
        }
    }
}

/// Sends the transaction that places the claim `key`.
pub(crate) async fn send(cluster: &Cluster, txn: Txn, key: &Bytes, timeout: Duration) -> Result<TxnResponse, Error> {
    let node = cluster.node();
    cluster.check_space(&txn)?;
    match node.mutate(Command::Txn(txn), timeout).await {
        Ok(Response::Txn(answer)) => Ok(answer),
        Ok(Response::Refused(Refusal::LeaseNotFound { lease })) => Err(Error::LeaseNotFound { lease }),
        Ok(other) => unreachable!("a claim's transaction is answered with {other:?}"),
        Err(Error::Indeterminate { ticket }) => {
            let undoing = undo(node.clone(), ticket, key.clone());
            node.spawn("claim-undo", async move { drop(undoing.await) }).detach();
            Err(Error::NotApplied { why: Obstacle::Timeout, waited: timeout })
        }
        Err(error) => Err(error),
    }
}

/// What the transaction did that should place the claim `key`. `counts`: that its conditions held says that nobody stood in
/// the claim's way.
pub(crate) fn placed(answer: TxnResponse, key: Bytes, counts: bool) -> Placed {
    if !answer.changed {
        return Placed::Occupied;
    }
    let fence = Fence::new(answer.revision).expect("a change has a revision above zero");
    let Some(OpResult::Put { lease: Some(lease), .. }) = answer.results.first() else {
        unreachable!("the answer of a put or two is short enough to be remembered whole: {answer:?}");
    };
    Placed::Standing { claim: Claim { key, fence }, lease: *lease, alone: counts && answer.failed.is_none() }
}

/// Whether a claim has gone because its lease ran out.
fn has_expired(batches: &[Arc<Batch>]) -> bool {
    batches.iter().flat_map(|batch| &batch.changes).any(|change| change.kind == ChangeKind::Expired)
}

fn read_size(kv: KeyValue) -> Result<u64, Error> {
    let [size] = claim::decode_numbers(kv.value)
        .map_err(|error| Error::Invalid { what: "stored size", why: error.to_string() })?;
    Ok(size)
}

/// How the claim went, if it is gone. Its key is its own, so that nothing else can stand there.
pub(crate) fn how_gone(view: &View, key: &[u8]) -> Result<Option<LostReason>, Error> {
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
    delete(node, Txn { compares, then: [Op::Delete { keys, prev: false }].into(), otherwise: vec![] }).await
}

/// Finds out what became of a claim's transaction, then deletes the claim if there is one.
///
/// In this order: until the ticket is resolved, the transaction may still be carried out, behind the delete.
async fn undo(node: Arc<Node>, ticket: Ticket, key: Bytes) -> Result<(), Error> {
    persist(&node, Command::Resolve { client: ticket.client, seq: ticket.seq }).await?;
    let keys = KeyRange::single(key);
    delete(&node, Txn { then: [Op::Delete { keys, prev: false }].into(), ..Txn::default() }).await
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
pub(crate) fn gone(session: &Lifeline, claim: &Claim, reason: LostReason, current: Revision) -> Error {
    match (session.standing().lost, reason) {
        (Some(reason), _) => session_error(session, reason),
        (None, LostReason::Deleted) => Error::Fenced { held: claim.fence.get(), current },
        (None, reason) => session_error(session, reason),
    }
}
