//! What all guards are made of: a granted claim, and the handle it came through.
//!
//! A guard's word on time is [`super::hold`]'s; here are the verbs that its public faces share, and the promise that one that
//! is dropped is released.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use futures::FutureExt;

use super::hold::Hold;
use crate::api::cluster::Cluster;
use crate::api::fence::Terms;
use crate::api::session::{Lifeline, LostReason};
use crate::api::txn::Transaction;
use crate::error::{Error, Obstacle};
use crate::rt;
use crate::types::Fence;

/// A granted claim. Dropping it releases it in the background.
pub(crate) struct Guard {
    pub(crate) cluster: Cluster,
    pub(crate) name: String,
    pub(crate) hold: Arc<Hold>,
}

/// Declares the verbs that all guards share. They keep theirs in a field `guard`. The attributes are further documentation.
macro_rules! guarding {
    ($thing:literal, $(#[$run:meta])* run, $(#[$txn:meta])* txn) => {
        #[doc = concat!("The token to hand to whatever ", $thing, " protects. Later claims have greater ones.")]
        pub fn fence(&self) -> Fence {
            self.guard.fence()
        }

        /// The name it was asked for by.
        pub fn name(&self) -> &str {
            &self.guard.name
        }

        #[doc = concat!("How long ", $thing, " is certainly held from now on, were no further renewal acknowledged; zero once")]
        /// it is lost.
        pub fn valid_for(&self) -> Duration {
            self.guard.hold.valid_for()
        }

        #[doc = concat!("Resolves when ", $thing, " is lost: at the local deadline at the latest (a timer's tick aside), which")]
        /// is before the cluster can grant it to anybody else; earlier if the claim is deleted or the session ends.
        ///
        /// Polled after the machine was suspended, it resolves at once.
        pub fn lost(&self) -> Lost {
            self.guard.hold.lost()
        }

        #[doc = concat!("Runs `work` for as long as ", $thing, " is held, and drops it when that is lost.")]
        ///
        /// The guard is asked before each poll of `work`, so that a machine that slept does not go on with it. Dropping a
        /// future does not undo what it has sent: see the type's words on fences.
        ///
        /// # Errors
        /// The [`LostReason`]; `work` was dropped unfinished.
        /// # Cancel safety
        /// That of `work`.
        $(#[$run])*
        pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, LostReason> {
            self.guard.run(work).await
        }

        /// Begins a transaction that is carried out only while this claim stands, whatever this process believes by then.
        ///
        /// Its `otherwise` branch may only read. Places of conditions and operations count as in any transaction.
        ///
        /// # Errors
        #[doc = concat!("[`Error::Fenced`] if ", $thing, " was lost: nothing was written. Otherwise as [`Cluster::transaction`](crate::Cluster::transaction).")]
        $(#[$txn])*
        pub fn txn(&self) -> Transaction {
            self.guard.txn()
        }
    };
}
pub(crate) use guarding;

/// Declares that writes can be held to a guard, which keeps it in a field `guard`.
macro_rules! fenced {
    ($guard:ident $(<$parameter:ident>)?) => {
        impl$(<$parameter>)? $crate::api::fence::Fenced for $guard$(<$parameter>)? {}

        impl$(<$parameter>)? $crate::api::fence::Holds for $guard$(<$parameter>)? {
            fn terms(&self) -> $crate::api::fence::Terms {
                self.guard.terms()
            }
        }
    };
}
pub(crate) use fenced;

impl Guard {
    pub(crate) fn new(cluster: Cluster, name: String, hold: Arc<Hold>) -> Self {
        Guard { cluster, name, hold }
    }

    pub(crate) fn fence(&self) -> Fence {
        self.hold.claim.fence
    }

    /// What writes can be held to.
    pub(crate) fn terms(&self) -> Terms {
        Terms::claim(self.hold.claim.key.clone(), self.fence())
    }

    /// The session it lives by.
    pub(crate) fn session(&self) -> &Arc<Lifeline> {
        self.hold.session()
    }

    pub(crate) async fn run<F: Future>(&self, work: F) -> Result<F::Output, LostReason> {
        let (mut work, mut lost) = (pin!(work), self.hold.lost());
        poll_fn(|cx| match lost.poll_unpin(cx) {
            Poll::Ready(reason) => Poll::Ready(Err(reason)),
            Poll::Pending => work.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    pub(crate) fn txn(&self) -> Transaction {
        self.cluster.transaction().with(self.terms())
    }

    /// Releases it and waits until the cluster has carried that out. One that is lost already is fine.
    pub(crate) async fn release(&self) -> Result<(), Error> {
        let Some(releasing) = self.give_up() else { return Ok(()) };
        let timeout = self.cluster.node().settings().timeout;
        let released = self.cluster.on_node(move |_| async move {
            match rt::timeout(timeout, releasing).await {
                Ok(released) => released.unwrap_or(Err(Error::Stopped { reason: "shut down".into() })),
                Err(_) => Err(Error::NotApplied { why: Obstacle::Timeout, waited: timeout }),
            }
        });
        released.await
    }

    /// Releases it in the background, unless it is lost already.
    pub(crate) fn let_go(&self) {
        if let Some(releasing) = self.give_up() {
            releasing.detach();
        }
    }

    /// Ends the hold and withdraws the claim in a task of the node; `None` if it was lost.
    fn give_up(&self) -> Option<rt::Task<Result<(), Error>>> {
        if !self.hold.give_up() {
            return None;
        }
        // With the handle: a node whose last guard goes is to stop after that, and not before.
        let (cluster, hold) = (self.cluster.clone(), self.hold.clone());
        let node = cluster.node().clone();
        Some(node.spawn("claim-release", async move { hold.withdraw(cluster.node()).await }))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("name", &self.name).field("fence", &self.fence()).finish_non_exhaustive()
    }
}
