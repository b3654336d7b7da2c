//! Who stands in a line, for people to read.

use super::attempt::Request;
use crate::command::KeyValue;
use crate::error::Error;
use crate::format::claim::{ClaimNote, decode_claim};
use crate::storage::view::View;
use crate::types::{Fence, LeaseId};

/// One claim on a lock or whatever else there is a line for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claimant {
    /// Its token. [`Fence::revision`] is since when it has stood in the line.
    pub fence: Fence,
    /// The lease it lives by.
    pub lease: LeaseId,
    /// The name of its session; that of its node if it has one of its own.
    pub session: String,
    /// The name of the node whose host asked for it.
    pub member: String,
}

impl Claimant {
    pub(crate) fn read(claim: &KeyValue) -> Result<Self, Error> {
        Ok(Self::of(claim, note(claim)?))
    }

    /// The claim, whose note has been read.
    pub(crate) fn of(claim: &KeyValue, note: ClaimNote) -> Self {
        Claimant {
            fence: Fence::new(claim.created).expect("a key was created at a revision above zero"),
            lease: claim.lease.expect("every claim hangs on a lease"),
            session: note.session,
            member: note.member,
        }
    }
}

/// What is written in a claim.
pub(crate) fn note(claim: &KeyValue) -> Result<ClaimNote, Error> {
    decode_claim(claim.value.clone()).map_err(|error| Error::Invalid { what: "claim", why: error.to_string() })
}

impl Request {
    /// Looks at one linearizable moment.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let timeout = self.step_timeout();
        self.cluster.on_node(move |node| async move { look(&*node.linearizable_view(timeout).await?) }).await
    }
}
