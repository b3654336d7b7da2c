//! Applying one log entry: which command does what, and what all commands share.
//!
//! An entry first works out everything it will write against the state as it was before it, then makes it the state in
//! one step ([`State::commit`]). So reads inside a transaction do not see its own writes, and a command that turns out
//! to be refused has touched nothing.

use bytes::Bytes;

use super::hash::record_hash;
use super::index::Version;
use super::state::version_of;
use super::{RowError, Rows, State};
use crate::command::{
    Change, ChangeKind, Command, Effects, Few, LeaseChange, Op, Proposal, RecordId, Refusal, Response, Stamp,
};
use crate::format::record::{Record, encode_record_into};
use crate::rt::{self, mutant};
use crate::types::{LeaseId, LogId, Revision, Ticket};

/// An entry that is being applied: where it stands, who sent it, and what it has come to so far.
pub(super) struct Entry<'a> {
    pub(super) at: LogId,
    proposal: &'a Proposal,
    /// The revision its changes have, should there be any.
    revision: Revision,
    room: Room,
    changes: Few<Change>,
    pub(super) leases: Vec<LeaseChange>,
}

/// What an entry needs until it is applied, in memory that is kept for the next one.
#[derive(Debug, Default)]
pub(super) struct Room {
    writes: Vec<Write>,
    /// An encoded record.
    record: Vec<u8>,
}

/// Writes, and bytes of a record, for which room is kept.
const WRITES_KEPT_MAX: usize = 64;
const RECORD_BYTES_KEPT_MAX: usize = 64 * 1024;

impl Room {
    fn emptied(mut self) -> Self {
        self.writes.clear();
        self.writes.shrink_to(WRITES_KEPT_MAX);
        self.record.clear();
        self.record.shrink_to(RECORD_BYTES_KEPT_MAX);
        self
    }
}

/// One key's step from one version to the next.
#[derive(Debug)]
struct Write {
    old: Option<Version>,
    new: Version,
}

/// What is to become of one key.
pub(super) struct Step {
    pub(super) kind: ChangeKind,
    pub(super) key: Bytes,
    pub(super) value: Bytes,
    /// For a put: what the key hangs on from here on. For a delete: what it hung on.
    pub(super) lease: Option<LeaseId>,
}

impl State {
    /// Gets ready for applying these proposals, which takes less for many than for each. Changes nothing.
    pub(crate) fn foresee<'a>(&self, proposals: impl Iterator<Item = &'a Proposal>) {
        let transactions = proposals.filter_map(|proposal| match &proposal.command {
            Command::Txn(txn) => Some(txn),
            _ => None,
        });
        let puts = transactions.flat_map(|txn| txn.then.iter()).filter_map(|op| match op {
            Op::Put { key, .. } => Some(key.as_ref()),
            _ => None,
        });
        self.index.touch(puts);
    }

    /// Applies the entry at `at`. Every command has an answer in every state.
    ///
    /// # Errors
    /// The rows' own. The state is then of no more use; nothing of the entry may be committed.
    pub(crate) fn apply(
        &mut self,
        rows: &mut dyn Rows,
        at: LogId,
        proposal: &Proposal,
    ) -> Result<(Response, Effects), RowError> {
        let revision = self.meta.revision.next();
        let (changes, leases) = Default::default();
        let mut entry = Entry { at, proposal, revision, room: std::mem::take(&mut self.room), changes, leases };
        let response = match (proposal.stamp, &proposal.command) {
            (stamp, Command::Resolve { client, seq }) => {
                let ticket = Ticket { client: *client, seq: *seq };
                Response::Resolved(self.resolve(rows, ticket, stamp)?)
            }
            (Some(stamp), _) => self.decide_once(rows, &mut entry, stamp)?,
            (None, _) => self.decide(rows, &mut entry)?,
        };
        let Entry { room, changes, leases, .. } = entry;
        self.room = room.emptied();
        Ok((response, Effects { changes, leases }))
    }

    /// Runs the entry's command, whoever sent it and however often.
    pub(super) fn decide(&mut self, rows: &mut dyn Rows, entry: &mut Entry<'_>) -> Result<Response, RowError> {
        match &entry.proposal.command {
            Command::Txn(txn) => self.txn(rows, entry, txn),
            Command::LeaseGrant { ttl_ms } => self.grant(rows, entry, *ttl_ms),
            Command::LeaseRevoke { lease } => self.revoke(rows, entry, *lease),
            Command::LeaseExpire { lease, issued_by } => self.expire(rows, entry, *lease, *issued_by),
            Command::ClientOpen { ttl_ms } => self.open_client(rows, entry, *ttl_ms),
            Command::ClientClose { client } => self.close_client(rows, entry, *client),
            Command::Compact { floor } => Ok(self.compact(*floor)),
            Command::ClusterVersion { version } => Ok(self.raise_version(*version)),
            Command::Resolve { .. } => unreachable!("a resolve is answered before stamps are looked at"),
        }
    }

    /// Writes the record of one step. The index, and with it every other operation of the entry, sees it only after
    /// [`State::commit`].
    pub(super) fn write(&mut self, rows: &mut dyn Rows, entry: &mut Entry<'_>, step: Step) -> Result<(), RowError> {
        let ordinal =
            u32::try_from(entry.room.writes.len()).expect("an entry's keys fit in memory, so they can be numbered");
        let id = RecordId { revision: entry.revision, ordinal };
        let last = self.index.newest(&step.key);
        let live = last.filter(Version::is_live);
        let prev = live.map(|old| old.id());
        let (created, version) = match (step.kind, &live) {
            (ChangeKind::Put, None) => (entry.revision, 1),
            (ChangeKind::Put, Some(old)) => (old.created(), old.version() + 1),
            (_, Some(old)) => (old.created(), old.version()),
            (_, None) => panic!("record {id:?} would delete {:?}, which is not there", step.key),
        };
        let Step { kind, key, value, lease } = step;
        let record = Record {
            kind,
            key,
            value,
            created,
            version,
            prev,
            lease,
            origin: entry.proposal.origin,
            ticket: entry.proposal.stamp.map(|Stamp { client, seq, .. }| Ticket { client, seq }),
            wall_ms: if mutant("apply_reads_clock") { rt::wall_ms() } else { entry.proposal.wall_ms },
            index: entry.at.index,
        };
        let stored = encode_record_into(std::mem::take(&mut entry.room.record), id, &record);
        rows.put_record(id, &stored)?;
        entry.room.writes.push(Write { old: live, new: version_of(id, &record, record_hash(id, &stored)) });
        entry.room.record = stored;
        let Record { key, value, .. } = record;
        entry.changes.push(Change { id, prev, kind, key, value, created, version, lease });
        Ok(())
    }

    /// Makes what the entry has written the state: counters, index, leases. An entry without changes takes no revision.
    pub(super) fn commit(&mut self, rows: &mut dyn Rows, entry: &mut Entry<'_>) -> Result<(), RowError> {
        let writes = &entry.room.writes;
        if writes.is_empty() {
            return Ok(());
        }
        self.meta.revision = entry.revision;
        for write in writes {
            self.count_record(&write.new);
            self.garbage.add(entry.revision, write.old.as_ref(), &write.new);
        }
        let keys = entry.changes.iter().map(|change| change.key.as_ref());
        self.index.insert(keys.clone().zip(writes.iter().map(|write| write.new)));
        let left: Vec<LeaseId> = writes.iter().filter_map(|write| write.old?.lease()).collect();
        for (key, write) in keys.zip(writes) {
            self.leases.reattach(key, write.old.and_then(|old| old.lease()), write.new.lease());
        }
        self.end_abandoned(rows, entry, left)
    }

    fn raise_version(&mut self, version: u32) -> Response {
        let in_force = self.meta.cluster_version;
        if version < in_force {
            return Response::Refused(Refusal::VersionInForce { version: in_force });
        }
        self.meta.cluster_version = version;
        Response::Version { version }
    }
}

impl Entry<'_> {
    pub(super) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    pub(super) fn change_count(&self) -> u64 {
        self.changes.len() as u64
    }
}
