//! What a granted claim is worth on this side, and for how long.
//!
//! A hold ends, once and for good, at the first of these: its session's local deadline passes (also if the session recovers
//! later), the session is lost, the claim is deleted by anybody, it is given up. All but the clock are events this process
//! is told of; the clock is asked each time somebody wants to know, so that a machine that slept does not believe for even
//! one poll that it still holds what it held. A hold that ended while its claim may still stand deletes it: it will not be used
//! any more, and others wait.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{Either, select};

use super::claim::{Claim, until_gone, withdraw};
use crate::api::session::{Lifeline, Lost, LostReason};
use crate::error::Error;
use crate::node::Node;
use crate::rt::{self, watch};

/// A claim that was granted while its session had had `lapses` lapses.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) claim: Claim,
    session: Arc<Lifeline>,
    lapses: u64,
    /// The session was made for this claim alone and ends with it.
    own_session: bool,
    lost: watch::Sender<Option<LostReason>>,
}

impl Hold {
    /// Begins to watch over a claim that was just granted.
    pub(crate) fn start(
        node: &Arc<Node>,
        claim: Claim,
        session: Arc<Lifeline>,
        lapses: u64,
        own_session: bool,
    ) -> Arc<Self> {
        let (lost, _) = watch::channel(None);
        let hold = Arc::new(Hold { claim, session, lapses, own_session, lost });
        node.spawn("hold", hold.clone().watch_over(node.clone())).detach();
        hold
    }

    /// The session it lives by.
    pub(crate) fn session(&self) -> &Arc<Lifeline> {
        &self.session
    }

    /// How long the claim certainly holds from now on; zero once it is lost.
    pub(crate) fn valid_for(&self) -> Duration {
        let (standing, now) = (self.session.standing(), rt::boot_now());
        match self.lost.borrow() {
            None if standing.sure(now) == Some(self.lapses) => standing.valid_for(now),
            _ => Duration::ZERO,
        }
    }

    /// Why it is lost, if it is, by the clock of now.
    fn reason(&self) -> Option<LostReason> {
        let reason = self.lost.borrow();
        reason.or_else(|| {
            let standing = self.session.standing();
            let valid = standing.sure(rt::boot_now()) == Some(self.lapses);
            (!valid).then(|| standing.lost.unwrap_or(LostReason::Unsure))
        })
    }

    /// Resolves when the claim is lost, at the local deadline at the latest.
    pub(crate) fn lost(self: &Arc<Self>) -> Lost {
        let hold = self.clone();
        let told = self.clone();
        let mut told = async move {
            let reason = told.lost.subscribe().wait_for(Option::is_some).await;
            reason.ok().flatten().expect("the sender is in the hold")
        }
        .boxed();
        Lost::new(poll_fn(move |cx| match hold.reason() {
            Some(reason) => Poll::Ready(reason),
            None => told.poll_unpin(cx),
        }))
    }

    /// Marks it as given up; whether the caller must withdraw the claim: otherwise it was lost, and that is done.
    pub(crate) fn give_up(&self) -> bool {
        self.lose(LostReason::Released)
    }

    /// Deletes the claim. The caller has given it up.
    pub(crate) async fn withdraw(&self, node: &Arc<Node>) -> Result<(), Error> {
        withdraw(node, &self.claim).await
    }

    /// Ends the hold, and the session if it was for this claim alone; whether this was the first reason.
    fn lose(&self, reason: LostReason) -> bool {
        // Asked of the clock first: a hold that lapsed unnoticed was lost before whatever is to be said now.
        let reason = self.reason().unwrap_or(reason);
        let first = self.lost.send_if_modified(|lost| lost.is_none() && lost.insert(reason) == &reason);
        if first && self.own_session {
            self.session.end(LostReason::Closed);
        }
        first
    }

    async fn watch_over(self: Arc<Self>, node: Arc<Node>) {
        // However this task ends, nobody waits for a loss that no one watches for.
        let _end = EndOnDrop(self.clone());
        let (gone, lapsed) = (pin!(self.gone(&node)), pin!(self.lapsed()));
        let mut given_up = self.lost.subscribe();
        let reason = match select(pin!(given_up.wait_for(Option::is_some)), select(gone, lapsed)).await {
            Either::Left(_) => return,
            Either::Right((Either::Left((reason, _)) | Either::Right((reason, _)), _)) => reason,
        };
        let first = self.lose(reason);
        if first && matches!(reason, LostReason::Unsure | LostReason::Closed) {
            // An error says that this node has stopped: the claim goes with its lease.
            let _ = self.withdraw(&node).await;
        }
    }

    /// Waits until this node sees that the claim is gone.
    async fn gone(&self, node: &Node) -> LostReason {
        // The claim may have been granted by a leader that this node is behind.
        match node.wait_revision(self.claim.fence.revision()).await {
            Ok(()) => until_gone(node, &self.claim.key).await,
            Err(_) => LostReason::Stopped,
        }
    }

    /// Waits until the session is lost or its deadline has passed; the session's task says when to look.
    async fn lapsed(&self) -> LostReason {
        let mut standing = self.session.watch();
        loop {
            if let Some(reason) = self.reason() {
                return reason;
            }
            let _ = standing.changed().await;
        }
    }
}

/// Ends the hold of a task that is dropped with its runtime.
struct EndOnDrop(Arc<Hold>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.lose(LostReason::Stopped);
    }
}
