//! Leases: keys that are deleted together.
//!
//! No time passes in here. When a lease is over is the leader's to judge; what is decided here is whether its verdict
//! still counts, and what ends with the lease.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::apply::{Entry, Step};
use super::hash::row_hash;
use super::{RowError, RowSpace, Rows, State};
use crate::command::{ChangeKind, LeaseChange, Refusal, Response};
use crate::format::rows::{LeaseKind, LeaseRow, encode_lease, lease_key};
use crate::rt::{hash_order, mutant};
use crate::types::{LeaderId, LeaseId};

/// All leases, and the keys that hang on them.
#[derive(Debug, Default)]
pub(super) struct Leases {
    rows: BTreeMap<LeaseId, LeaseRow>,
    /// One set for all leases: most have one key, and a set of its own for each would cost more than the key.
    attached: BTreeSet<(LeaseId, Box<[u8]>)>,
}

impl Leases {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn row(&self, lease: LeaseId) -> Option<&LeaseRow> {
        self.rows.get(&lease)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (LeaseId, &LeaseRow)> {
        self.rows.iter().map(|(lease, row)| (*lease, row))
    }

    pub(super) fn insert(&mut self, lease: LeaseId, row: LeaseRow) {
        self.rows.insert(lease, row);
    }

    /// The keys that hang on `lease`, in order.
    pub(super) fn keys(&self, lease: LeaseId) -> impl Iterator<Item = &[u8]> {
        let from = (lease, Box::default());
        self.attached.range(from..).take_while(move |(on, _)| *on == lease).map(|(_, key)| key.as_ref())
    }

    pub(super) fn attach(&mut self, lease: LeaseId, key: &[u8]) {
        self.attached.insert((lease, key.into()));
    }

    /// Hangs `key` on `to` instead of `from`.
    pub(super) fn reattach(&mut self, key: &[u8], from: Option<LeaseId>, to: Option<LeaseId>) {
        if from == to {
            return;
        }
        if let Some(from) = from {
            let listed = self.attached.remove(&(from, key.into()));
            assert!(listed, "{key:?} hangs on lease {from}, which does not list it");
        }
        if let Some(to) = to {
            self.attach(to, key);
        }
    }
}

impl State {
    pub(super) fn grant(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        ttl_ms: u64,
    ) -> Result<Response, RowError> {
        let lease = self.make_lease(rows, entry, ttl_ms, LeaseKind::Granted)?;
        Ok(Response::Granted { lease, ttl_ms, revision: self.meta.revision })
    }

    pub(super) fn revoke(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        lease: LeaseId,
    ) -> Result<Response, RowError> {
        self.end_with_keys(rows, entry, lease, ChangeKind::Deleted)
    }

    /// Ends a lease that the leader found expired.
    ///
    /// The verdict was reached on the issuer's clock and under its promise not to renew in between. An entry that was
    /// appended by another leader is no longer covered by that promise: the new one has given the lease a full time to
    /// live.
    pub(super) fn expire(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        lease: LeaseId,
        issued_by: LeaderId,
    ) -> Result<Response, RowError> {
        if issued_by != entry.at.leader && !mutant("expire_without_issuer_check") {
            return Ok(Response::ExpiryVoid);
        }
        self.end_with_keys(rows, entry, lease, ChangeKind::Expired)
    }

    /// Makes a lease under the next number, which is never given out again.
    pub(super) fn make_lease(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        ttl_ms: u64,
        kind: LeaseKind,
    ) -> Result<LeaseId, RowError> {
        let lease = LeaseId::new(self.meta.next_lease);
        self.meta.next_lease += 1;
        let row = LeaseRow { ttl_ms, kind };
        self.add_row(rows, RowSpace::Lease, &lease_key(lease), encode_lease(&row).as_ref().into())?;
        self.leases.insert(lease, row);
        entry.leases.push(LeaseChange::Granted { lease, ttl_ms });
        Ok(lease)
    }

    /// Deletes the lease and all its keys, at one revision and in key order. The client whose lease it was goes too.
    fn end_with_keys(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        lease: LeaseId,
        kind: ChangeKind,
    ) -> Result<Response, RowError> {
        let Some(row) = self.leases.row(lease).copied() else {
            return Ok(Response::Refused(Refusal::LeaseNotFound { lease }));
        };
        let keys: Vec<Bytes> = self.leases.keys(lease).map(Bytes::copy_from_slice).collect();
        let keys = if mutant("hashmap_order_in_apply") { hash_order(keys) } else { keys };
        for key in keys {
            self.write(rows, entry, Step { kind, key, value: Bytes::new(), lease: Some(lease) })?;
        }
        self.remove_lease(rows, entry, lease)?;
        if let LeaseKind::Client(client) = row.kind {
            self.forget_client(rows, client)?;
        }
        self.commit(rows, entry)?;
        Ok(Response::LeaseEnded { deleted: entry.change_count(), revision: self.meta.revision })
    }

    /// Ends those of `leases` that came with a put and have lost their last key.
    pub(super) fn end_abandoned(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        mut leases: Vec<LeaseId>,
    ) -> Result<(), RowError> {
        leases.sort_unstable();
        leases.dedup();
        for lease in leases {
            let anonymous = self.leases.row(lease).is_some_and(|row| row.kind == LeaseKind::Anonymous);
            if anonymous && self.leases.keys(lease).next().is_none() {
                self.remove_lease(rows, entry, lease)?;
            }
        }
        Ok(())
    }

    fn remove_lease(&mut self, rows: &mut dyn Rows, entry: &mut Entry<'_>, lease: LeaseId) -> Result<(), RowError> {
        let row = self.leases.rows.remove(&lease).expect("only a lease that is there is ended");
        let key = lease_key(lease);
        let hash = row_hash(RowSpace::Lease, &key, &encode_lease(&row));
        self.drop_row(rows, RowSpace::Lease, &key, hash)?;
        entry.leases.push(LeaseChange::Ended { lease });
        Ok(())
    }

    /// Ends a client's lease on behalf of the client itself.
    pub(super) fn end_client_lease(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        lease: LeaseId,
    ) -> Result<(), RowError> {
        let ended = self.end_with_keys(rows, entry, lease, ChangeKind::Deleted)?;
        assert!(matches!(ended, Response::LeaseEnded { .. }), "a client lives as long as its lease {lease}: {ended:?}");
        Ok(())
    }
}
