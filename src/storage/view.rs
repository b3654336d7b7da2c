//! One moment of the store, to be read by anybody for as long as they hold it.
//!
//! A view joins the rows of one moment (the database's, and before them those that are not written there yet) with the
//! shared index of keys, which does not stand still: the index is asked for the newest revision at or below the view's, so
//! what later batches add to it cannot be seen. What sweeps take out of it can be missed, so a sweep spares whatever a live
//! view can still reach, for as long as the view is young enough. A view past that age may find that its revision is
//! compacted.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::command::{Change, KeyRange, KeyValue, RecordId};
use crate::error::StorageError;
use crate::format::record::{Record, decode_record};
use crate::format::rows::{decode_lease, decode_lease_key, lease_key};
use crate::format::snapshot::SnapshotMeta;
use crate::format::state::APPLIED;
use crate::state_machine::read::{self, KeyHistory, KeySlice, ReadError};
use crate::state_machine::{Counters, KeyIndex, RowError, RowSpace, RowsRead, RowsScan, State};
use crate::storage::live_rows::MomentRows;
use crate::storage::poison::Poison;
use crate::storage::snapshot::SnapshotReader;
use crate::storage::state::FILE;
use crate::storage::state_rows::{disk, read_position, undamaged};
use crate::types::{LeaseId, LogId, Revision};

/// How long a view that is no longer the newest keeps sweeps away from what it can reach.
pub(crate) const VIEW_AGE_MAX: Duration = Duration::from_secs(60);

/// * Shows the effects of the entries up to `applied` and of no later one.
/// * Answers for every revision from `floor` to `revision`.
pub(crate) struct View {
    pub(crate) revision: Revision,
    pub(crate) floor: Revision,
    pub(crate) applied: Option<LogId>,
    pub(crate) counters: Counters,
    meta: SnapshotMeta,
    /// Whether all of it is in the database, remembered answers too: only then a snapshot can be read.
    whole: bool,
    index: Arc<KeyIndex>,
    rows: MomentRows,
    alarm: Alarm,
}

impl View {
    /// `rows` must hold what `state` has written, or the index would lead to records that are not there; `whole` says that all
    /// of it is in the database.
    pub(crate) fn new(rows: MomentRows, whole: bool, state: &State, meta: SnapshotMeta, alarm: Alarm) -> Self {
        debug_assert!(
            !whole
                || matches!(read_position(rows.past(), APPLIED), Ok(found) if found.clone().unwrap_or_default() == meta),
            "the rows are of another moment than {meta:?}"
        );
        let counters = state.counters();
        View {
            revision: counters.revision,
            floor: counters.floor,
            applied: meta.last_applied,
            counters,
            meta,
            whole,
            index: state.index().clone(),
            rows,
            alarm,
        }
    }

    /// Position and membership.
    pub(crate) fn meta(&self) -> SnapshotMeta {
        self.meta.clone()
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, ReadError> {
        self.get_at(self.revision, key)
    }

    /// The key as of `at`, which must be one of the revisions this view answers for.
    pub(crate) fn get_at(&self, at: Revision, key: &[u8]) -> Result<Option<KeyValue>, ReadError> {
        self.reaches(at)?;
        self.look(|| read::get(&self.index, &self.rows, at, key))
    }

    /// Up to `limit` live keys in ascending (or descending) order, and whether there are more.
    pub(crate) fn range(
        &self,
        keys: &KeyRange,
        limit: usize,
        reverse: bool,
    ) -> Result<(Vec<KeyValue>, bool), ReadError> {
        self.range_at(self.revision, keys, limit, reverse)
    }

    pub(crate) fn range_at(
        &self,
        at: Revision,
        keys: &KeyRange,
        limit: usize,
        reverse: bool,
    ) -> Result<(Vec<KeyValue>, bool), ReadError> {
        self.reaches(at)?;
        self.look(|| read::range(&self.index, &self.rows, at, keys, limit, reverse))
    }

    /// The first live keys, at most `limit`. Values are not read.
    pub(crate) fn keys(&self, keys: &KeyRange, limit: usize) -> Result<KeySlice, ReadError> {
        self.look(|| read::keys(&self.index, self.revision, keys, limit))
    }

    pub(crate) fn count(&self, keys: &KeyRange) -> Result<u64, ReadError> {
        self.count_at(self.revision, keys)
    }

    pub(crate) fn count_at(&self, at: Revision, keys: &KeyRange) -> Result<u64, ReadError> {
        self.reaches(at)?;
        self.look(|| read::count(&self.index, at, keys))
    }

    /// The changes of `revisions`, in whole revisions: as many as fit `max_records`, but at least one. Also the last
    /// revision the answer covers.
    pub(crate) fn changes(
        &self,
        revisions: RangeInclusive<Revision>,
        max_records: usize,
    ) -> Result<(Vec<Change>, Revision), ReadError> {
        let (from, to) = (*revisions.start(), (*revisions.end()).min(self.revision));
        self.look(|| read::changes(&self.index, &self.rows, self.floor, from, to, max_records))
    }

    /// The value that a change superseded, while history still holds it.
    pub(crate) fn record(&self, id: RecordId) -> Result<Option<Record>, ReadError> {
        self.look(|| {
            let Some(stored) = self.rows.record(id)? else { return Ok(None) };
            Ok(Some(decode_record(id, stored).map_err(disk)?))
        })
    }

    /// The key's kept records, newest first, at most `max_records`: who wrote it, when, under which number.
    pub(crate) fn explain(&self, key: &[u8], max_records: usize) -> Result<Vec<(RecordId, Record)>, ReadError> {
        self.look(|| read::explain(&self.index, &self.rows, self.revision, key, max_records))
    }

    /// What is known of the key's past, newest first; the same on every node with a view of this revision and floor.
    pub(crate) fn history(&self, key: &[u8], max_records: usize) -> Result<KeyHistory, ReadError> {
        self.look(|| read::history(&self.index, &self.rows, self.floor, self.revision, key, max_records))
    }

    /// Every lease and its time to live in milliseconds, by id.
    pub(crate) fn leases(&self) -> Result<Vec<(LeaseId, u64)>, ReadError> {
        self.look(|| {
            let mut leases = Vec::new();
            self.rows.each_row(RowSpace::Lease, &mut |key, row| {
                leases.push((decode_lease_key(key).map_err(disk)?, decode_lease(row).map_err(disk)?.ttl_ms));
                Ok(())
            })?;
            Ok(leases)
        })
    }

    /// Opens this moment for reading it in chunks. Needs the records only, so sweeps do not wait for it.
    ///
    /// # Panics
    /// If the view is not one of [`StateStore::whole`](crate::storage::state::StateStore::whole).
    pub(crate) fn read_snapshot(&self) -> Result<SnapshotReader, StorageError> {
        assert!(self.whole, "the rows at {:?} lack the remembered answers", self.applied);
        SnapshotReader::open(self.rows.past().clone(), self.meta.clone(), self.floor, self.alarm.clone())
    }

    /// The lease's time to live in milliseconds; `None` if it is not there (any more).
    pub(crate) fn lease_ttl_ms(&self, lease: LeaseId) -> Result<Option<u64>, ReadError> {
        self.look(|| {
            let Some(row) = self.rows.row(RowSpace::Lease, &lease_key(lease))? else { return Ok(None) };
            Ok(Some(decode_lease(row).map_err(disk)?.ttl_ms))
        })
    }

    /// Whether this view answers for `at`, which it must have reached.
    pub(crate) fn reaches(&self, at: Revision) -> Result<(), ReadError> {
        assert!(at <= self.revision, "a view of revision {} was asked for revision {at}", self.revision);
        if at < self.floor { Err(ReadError::Compacted { oldest: self.floor }) } else { Ok(()) }
    }

    /// Reads, and stops the node if it turns out that the disk or what it holds is broken.
    fn look<T>(&self, read: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
        let answer = undamaged(read);
        if let Err(ReadError::Row(error)) = &answer {
            self.alarm.raise("read", error);
        }
        answer
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("meta", &self.meta).field("counters", &self.counters).finish_non_exhaustive()
    }
}

/// Stops the node over what a reader found.
#[derive(Clone)]
pub(crate) struct Alarm {
    poison: Poison,
    /// Set before the file is closed: from then on reading fails, and nothing is wrong with that.
    closed: Arc<AtomicBool>,
}

impl Alarm {
    pub(crate) fn new(poison: Poison) -> Self {
        Alarm { poison, closed: Arc::default() }
    }

    pub(crate) fn disarm(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn raise(&self, what: &'static str, error: &RowError) -> StorageError {
        let error = StorageError::new(FILE, what, error);
        if self.closed.load(Ordering::SeqCst) { error } else { self.poison.fail(error) }
    }
}

/// The views that somebody holds, the newest last.
#[derive(Default)]
pub(crate) struct LiveViews {
    views: Vec<Live>,
    /// The list is gone through for views that nobody holds any more when it is this long.
    prune_at: usize,
}

struct Live {
    view: Weak<View>,
    floor: Revision,
    /// The first time that was told when it was no longer the newest.
    superseded: Option<Duration>,
}

impl LiveViews {
    /// Notes the newest view.
    pub(crate) fn published(&mut self, view: &Arc<View>) {
        if self.views.len() >= self.prune_at {
            self.forget_dropped();
            self.prune_at = 2 * self.views.len() + 16;
        }
        self.views.push(Live { view: Arc::downgrade(view), floor: view.floor, superseded: None });
    }

    /// Takes the time: views superseded for [`VIEW_AGE_MAX`] are no longer minded.
    ///
    /// The age runs from the first tick behind the view's end, not from its beginning: a view may have been the newest
    /// for hours when somebody takes it.
    pub(crate) fn tick(&mut self, now: Duration) {
        self.forget_dropped();
        let Some((_newest, superseded)) = self.views.split_last_mut() else { return };
        for view in superseded {
            view.superseded.get_or_insert(now);
        }
        self.views.retain(|view| view.superseded.is_none_or(|since| now.saturating_sub(since) < VIEW_AGE_MAX));
    }

    /// The lowest floor of all views that are minded. The newest is always one of them, so the floor of the state is
    /// the most this can be.
    pub(crate) fn floor(&self) -> Revision {
        let floors = self.views.iter().filter(|live| live.view.strong_count() > 0).map(|live| live.floor);
        floors.min().unwrap_or(Revision::ZERO)
    }

    fn forget_dropped(&mut self) {
        self.views.retain(|live| live.view.strong_count() > 0);
    }
}
