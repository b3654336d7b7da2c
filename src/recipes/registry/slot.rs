//! The place of one instance in the table, and whose it is.
//!
//! ```text
//!                      put by N
//!   (nothing) ────────────────────────▶ N's record ──┐ put by N (update)
//!       ▲                               │  │   ▲     │
//!       │  N leaves, its lease ends,    │  │   └─────┘
//!       └── or somebody deletes it ─────┘  │ put by M, if M > N
//!                                          └───────────────────▶ M's record
//! ```
//!
//! Every put has as its condition what was found there, and is given up when that is of a newer incarnation. So of two
//! registrations under one id the newer one ends up in the table, whichever comes first and however late the other's write
//! arrives, and neither ever overwrites the other in turn.

use std::time::Duration;

use super::instance::{Incarnation, Instance, Leaving, Registered, SERVICES};
use crate::api::cluster::Cluster;
use crate::error::{Error, Obstacle};
use crate::rt::Instant;
use crate::types::{LeaseId, Revision};

/// How often a put is tried in whose way others keep coming.
const ATTEMPTS_MAX: u64 = 100;

/// The place of one instance, as one registration sees it.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) cluster: Cluster,
    pub(super) service: String,
    pub(super) id: String,
    pub(super) incarnation: Incarnation,
    pub(super) registrar: String,
    /// How long one question to the cluster may take.
    pub(super) timeout: Duration,
}

/// What became of a put.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    /// The record is there, since this revision.
    Standing(Revision),
    /// A newer incarnation is there; `None`: whose record this release cannot read.
    Newer(Option<Incarnation>),
}

impl Slot {
    pub(super) fn key(&self) -> (&str, &str) {
        (&self.service, &self.id)
    }

    /// Writes the record, hanging on `lease`, unless that of a newer incarnation is there. `found` is the revision of what is
    /// thought to be there; it saves a round trip if that is right.
    pub(super) async fn put(
        &self,
        instance: &Instance,
        lease: LeaseId,
        mut found: Option<Revision>,
    ) -> Result<Placed, Error> {
        let started = Instant::now();
        let record = self.record(instance, None);
        for _ in 0..ATTEMPTS_MAX {
            // Revision 0: nothing is there.
            let condition = SERVICES.when(self.key()).modified_at(found.unwrap_or(Revision::ZERO));
            let put = SERVICES.put(self.key(), &record).lease(lease);
            let txn = self.cluster.transaction().when(condition).then(put).otherwise(SERVICES.read(self.key()));
            let outcome = txn.timeout(self.timeout.saturating_sub(started.elapsed())).await?;
            if outcome.succeeded() {
                return Ok(Placed::Standing(outcome.revision()));
            }
            let now = match outcome.results_lost() {
                false => outcome.entry_in(SERVICES, 0),
                true => self.cluster.table(SERVICES).get(self.key()).timeout(self.timeout).await,
            };
            found = match now {
                Ok(Some(now)) if now.incarnation > self.incarnation => return Ok(Placed::Newer(Some(now.incarnation))),
                Ok(now) => now.map(|now| now.modified),
                // Not to be overwritten: every release writes what this one can read, so a later one wrote it.
                Err(Error::Codec { .. }) => return Ok(Placed::Newer(None)),
                Err(error) => return Err(error),
            };
        }
        let why = Obstacle::Busy { what: "attempts to register where others do", limit: ATTEMPTS_MAX };
        Err(Error::NotApplied { why, waited: started.elapsed() })
    }

    /// Says in the record why it goes, if it is there and hangs on `lease`; the revision of that.
    pub(super) async fn leave(
        &self,
        instance: &Instance,
        lease: LeaseId,
        why: Leaving,
    ) -> Result<Option<Revision>, Error> {
        let put = SERVICES.put(self.key(), &self.record(instance, Some(why))).lease(lease);
        let txn = self.cluster.transaction().when(SERVICES.when(self.key()).lease_is(lease)).then(put);
        let outcome = txn.timeout(self.timeout).await?;
        Ok(outcome.succeeded().then(|| outcome.revision()))
    }

    /// Deletes the record if it hangs on `lease`; the revision after that.
    pub(super) async fn delete(&self, lease: LeaseId) -> Result<Revision, Error> {
        let txn = self.cluster.transaction().when(SERVICES.when(self.key()).lease_is(lease));
        let outcome = txn.then(SERVICES.remove(self.key())).timeout(self.timeout).await?;
        Ok(outcome.revision())
    }

    fn record(&self, instance: &Instance, leaving: Option<Leaving>) -> Registered {
        Registered {
            instance: instance.clone(),
            incarnation: self.incarnation,
            registrar: self.registrar.clone(),
            leaving,
        }
    }
}
