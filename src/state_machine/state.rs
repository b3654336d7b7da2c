//! What the state machine holds in memory, and how it is read back from rows.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::apply::Room;
use super::client::Clients;
use super::hash::{record_hash, row_hash};
use super::history::{Garbage, Sweeping};
use super::index::{KeyIndex, NewVersion, Version};
use super::lease::Leases;
use super::{RowError, RowSpace, Rows, RowsScan, read};
use crate::command::RecordId;
use crate::format::record::Record;
use crate::format::rows::{self, Meta};
use crate::format::wire::DecodeError;
use crate::types::{LeaseId, Revision};

/// The replicated state, except for the values, which stay in the rows.
///
/// * It is a function of the applied entries: how they were batched, when history was swept, and whether it came by
///   snapshot make no difference to any answer, nor to the hash.
/// * The revision grows by exactly one per entry that changes a key.
/// * A key with a lease is listed under that lease, and the reverse.
/// * What is in memory equals what [`State::load`] makes of the rows, once [`State::save`] has written the counters.
///
/// An error from any method means that memory and rows may disagree: the state is of no more use.
#[derive(Debug)]
pub(crate) struct State {
    pub(super) meta: Meta,
    /// The counters as they are in the rows; `None` in an empty store.
    saved: Option<Meta>,
    pub(super) index: Arc<KeyIndex>,
    pub(super) leases: Leases,
    pub(super) clients: Clients,
    /// What has become unreachable and is not swept yet, and what will be when the floor moves.
    pub(super) garbage: Garbage,
    /// Sum of the hashes of all reachable records and of all rows but the counters.
    sum: u64,
    /// Logical size of all reachable records.
    pub(super) bytes: u64,
    /// Unreachable records up to here have been removed from the rows.
    pub(super) swept: RecordId,
    pub(super) sweeping: Option<Sweeping>,
    pub(super) room: Room,
}

/// The state in figures.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) revision: Revision,
    /// History below may be forgotten; the store as of the floor itself can still be read.
    pub(crate) floor: Revision,
    /// Logical size of all reachable records: keys, values and [`RECORD_OVERHEAD_BYTES`] each.
    pub(crate) bytes: u64,
    /// Equal on all nodes that have applied the same entries.
    pub(crate) hash: u64,
    pub(crate) cluster_version: u32,
    /// Live keys.
    pub(crate) keys: u64,
    pub(crate) leases: u64,
    pub(crate) clients: u64,
}

/// What a record counts for beside its key and value, so that many small ones are not free.
pub(crate) const RECORD_OVERHEAD_BYTES: u32 = 64;

impl State {
    /// Reads everything back. Reads below the floor are refused from here on.
    ///
    /// # Errors
    /// A row or record that cannot be read or understood, or that contradicts another one.
    pub(crate) fn load(rows: &dyn RowsScan) -> Result<State, RowError> {
        let saved = rows.row(RowSpace::Meta, rows::META_KEY)?.map(rows::decode_meta).transpose();
        let saved = saved.map_err(damaged("counters"))?;
        let swept = rows.row(RowSpace::Local, rows::SWEPT_KEY)?.map(rows::decode_swept).transpose();
        let mut state = State {
            meta: saved.unwrap_or_default(),
            saved,
            index: Arc::default(),
            leases: Leases::default(),
            clients: Clients::default(),
            garbage: Garbage::default(),
            sum: 0,
            bytes: 0,
            swept: swept.map_err(damaged("sweep position"))?.unwrap_or_default(),
            sweeping: None,
            room: Room::default(),
        };
        state.index.refuse_below(state.meta.floor);
        rows.each_record(&mut |id, stored| state.load_record(id, stored))?;
        rows.each_row(RowSpace::Lease, &mut |key, row| state.load_lease(key, row))?;
        rows.each_row(RowSpace::Client, &mut |key, row| state.load_client(key, row))?;
        rows.each_row(RowSpace::Answer, &mut |key, row| state.load_answer(key, row))?;
        state.attach_leases()?;
        Ok(state)
    }

    /// Writes the counters, if they have changed: before what is to be loaded again is committed.
    pub(crate) fn save(&mut self, rows: &mut dyn Rows) -> Result<(), RowError> {
        if self.saved != Some(self.meta) {
            rows.put_row(RowSpace::Meta, rows::META_KEY, rows::encode_meta(&self.meta).as_ref().into())?;
            self.saved = Some(self.meta);
        }
        Ok(())
    }

    pub(crate) fn revision(&self) -> Revision {
        self.meta.revision
    }

    pub(crate) fn counters(&self) -> Counters {
        let counters_hash = row_hash(RowSpace::Meta, rows::META_KEY, &rows::encode_meta(&self.meta));
        Counters {
            revision: self.meta.revision,
            floor: self.meta.floor,
            bytes: self.bytes,
            hash: self.sum.wrapping_add(counters_hash),
            cluster_version: self.meta.cluster_version,
            keys: self.index.live(),
            leases: self.leases.len() as u64,
            clients: self.clients.len() as u64,
        }
    }

    /// The index that readers share. Its revisions run ahead of what is committed.
    pub(crate) fn index(&self) -> &Arc<KeyIndex> {
        &self.index
    }

    /// Every lease and its time to live in milliseconds, by id.
    pub(crate) fn leases(&self) -> Vec<(LeaseId, u64)> {
        self.leases.iter().map(|(lease, row)| (lease, row.ttl_ms)).collect()
    }

    /// Writes a row of the replicated state that was not there.
    pub(super) fn add_row(
        &mut self,
        rows: &mut dyn Rows,
        space: RowSpace,
        key: &[u8],
        row: Cow<'_, [u8]>,
    ) -> Result<u64, RowError> {
        let hash = row_hash(space, key, &row);
        self.sum = self.sum.wrapping_add(hash);
        rows.put_row(space, key, row)?;
        Ok(hash)
    }

    /// Removes a row that was written with `hash`.
    pub(super) fn drop_row(
        &mut self,
        rows: &mut dyn Rows,
        space: RowSpace,
        key: &[u8],
        hash: u64,
    ) -> Result<(), RowError> {
        self.sum = self.sum.wrapping_sub(hash);
        rows.remove_row(space, key)
    }

    /// Counts a record that is reachable from here on.
    pub(super) fn count_record(&mut self, version: &Version) {
        self.sum = self.sum.wrapping_add(version.hash());
        self.bytes += u64::from(version.bytes());
    }

    /// Takes back what is no longer reachable.
    pub(super) fn discount_record(&mut self, hash: u64, bytes: u32) {
        self.sum = self.sum.wrapping_sub(hash);
        self.bytes = self.bytes.checked_sub(u64::from(bytes)).expect("only what was counted becomes garbage");
    }

    fn load_record(&mut self, id: RecordId, stored: Bytes) -> Result<(), RowError> {
        if id.revision > self.meta.revision {
            return Err(RowError::new(format!("record {id:?} is beyond revision {}", self.meta.revision)));
        }
        let hash = record_hash(id, &stored);
        let record = read::decode(id, stored)?;
        if record.created == Revision::ZERO || record.created > id.revision {
            return Err(RowError::new(format!("record {id:?} was created at {}", record.created)));
        }
        let old = self.index.newest(&record.key).filter(Version::is_live);
        let prev = old.map(|old| old.id());
        // The sweep removes a superseded record before the one that names it, but only at or below the floor.
        if prev != record.prev && !(prev.is_none() && id.revision <= self.meta.floor) {
            return Err(RowError::new(format!("record {id:?} supersedes {:?}, but {prev:?} came before", record.prev)));
        }
        let version = version_of(id, &record, hash);
        self.count_record(&version);
        self.index.insert([(record.key.as_ref(), version)]);
        self.garbage.add(id.revision, old.as_ref(), &version);
        if id.revision <= self.meta.floor {
            self.discount_garbage();
            self.index.prune_key(&record.key, id);
        }
        Ok(())
    }

    fn load_lease(&mut self, key: &[u8], row: Bytes) -> Result<(), RowError> {
        let lease = rows::decode_lease_key(key).map_err(damaged("lease"))?;
        self.sum = self.sum.wrapping_add(row_hash(RowSpace::Lease, key, &row));
        self.leases.insert(lease, rows::decode_lease(row).map_err(damaged("lease"))?);
        Ok(())
    }

    fn load_client(&mut self, key: &[u8], row: Bytes) -> Result<(), RowError> {
        let client = rows::decode_client_key(key).map_err(damaged("client"))?;
        self.sum = self.sum.wrapping_add(row_hash(RowSpace::Client, key, &row));
        self.clients.insert(client, rows::decode_client(row).map_err(damaged("client"))?);
        Ok(())
    }

    fn load_answer(&mut self, key: &[u8], row: Bytes) -> Result<(), RowError> {
        let (client, seq) = rows::decode_answer_key(key).map_err(damaged("answer"))?;
        let hash = row_hash(RowSpace::Answer, key, &row);
        let low = rows::decode_answer(row).map_err(damaged("answer"))?.low;
        let client = self.clients.record_mut(client);
        let client = client.ok_or_else(|| RowError::new(format!("answer {seq} of an unknown client")))?;
        self.sum = self.sum.wrapping_add(hash);
        match client.load_answer(seq, hash, low) {
            true => Ok(()),
            false => Err(RowError::new(format!("answer {seq} is out of reach of the watermark {low}"))),
        }
    }

    fn attach_leases(&mut self) -> Result<(), RowError> {
        let leases = &mut self.leases;
        self.index.each_live(|key, version| match version.lease() {
            None => Ok(()),
            Some(lease) if leases.row(lease).is_some() => {
                leases.attach(lease, key);
                Ok(())
            }
            Some(lease) => {
                Err(RowError::new(format!("record {:?} hangs on lease {lease}, which is gone", version.id())))
            }
        })
    }
}

/// What the index keeps of a record.
pub(super) fn version_of(id: RecordId, record: &Record, hash: u64) -> Version {
    let payload = u32::try_from(record.key.len() + record.value.len()).unwrap_or(u32::MAX);
    let bytes = payload.saturating_add(RECORD_OVERHEAD_BYTES);
    if !record.is_live() {
        return Version::tombstone(id, hash, bytes);
    }
    let Record { created, version, lease, .. } = *record;
    Version::live(NewVersion { id, created, version, lease, hash, bytes })
}

pub(super) fn damaged(what: &'static str) -> impl Fn(DecodeError) -> RowError {
    move |error| RowError::unread(what, &error)
}
