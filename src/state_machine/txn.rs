//! Transactions: compares at one point, then the operations of one branch, at one revision or none.
//!
//! Everything is evaluated against the store as it was before the transaction. Whether the branch can run at all is found
//! out before its first write, so a refused transaction has no effect.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::apply::{Entry, Step};
use super::index::Version;
use super::read::{self, RANGE_BYTES_MAX, RANGE_ENTRIES_MAX, ReadError};
use super::{RowError, Rows, RowsRead, State};
use crate::command::{
    Attach, ChangeKind, Compare, Few, KeyRange, KeyValue, Op, OpResult, Refusal, Response, Test, Txn, TxnResponse,
};
use crate::format::rows::LeaseKind;
use crate::rt::mutant;
use crate::types::{LeaseId, Revision};

impl State {
    pub(super) fn txn(&mut self, rows: &mut dyn Rows, entry: &mut Entry<'_>, txn: &Txn) -> Result<Response, RowError> {
        let failed = self.first_failure(rows, &txn.compares)?;
        let branch = if failed.is_none() { &txn.then[..] } else { &txn.otherwise };
        if let Some(key) = written_twice(branch) {
            return Ok(Response::Refused(Refusal::DuplicateKey { key }));
        }
        if let Some(lease) = self.missing_lease(branch) {
            return Ok(Response::Refused(Refusal::LeaseNotFound { lease }));
        }
        let mut results = Few::with_capacity(branch.len());
        let mut budget = RANGE_BYTES_MAX;
        for op in branch {
            results.push(self.run(rows, entry, op, &mut budget)?);
        }
        self.commit(rows, entry)?;
        let (revision, changed) = (self.meta.revision, entry.has_changes());
        Ok(Response::Txn(TxnResponse { revision, changed, failed, results, elided: false }))
    }

    fn first_failure(&self, rows: &dyn RowsRead, compares: &[Compare]) -> Result<Option<u32>, RowError> {
        for (place, compare) in compares.iter().enumerate() {
            if !self.holds(rows, compare)? {
                return Ok(Some(u32::try_from(place).expect("a frame has fewer compares than bytes")));
            }
        }
        Ok(None)
    }

    fn holds(&self, rows: &dyn RowsRead, compare: &Compare) -> Result<bool, RowError> {
        let newest = compare.keys.as_single().map(|key| self.index.newest(key));
        match (&compare.test, newest) {
            (Test::UnchangedSince(since), newest) => {
                let changed = || match newest {
                    Some(newest) => newest.is_some_and(|version| version.id().revision > *since),
                    None => self.index.changed_since(&compare.keys, *since),
                };
                // Below the floor a delete may have left no trace, so nothing can be said.
                let floor = if mutant("local_floor") { self.swept.revision } else { self.meta.floor };
                Ok(*since >= floor && !changed())
            }
            (test, Some(newest)) => test_holds(rows, test, newest.filter(Version::is_live).as_ref()),
            (Test::Absent, None) => Ok(self.live(&compare.keys, 1)?.is_empty()),
            (Test::Present, None) => Ok(!self.live(&compare.keys, 1)?.is_empty()),
            (test, None) => {
                for (_, version) in self.live(&compare.keys, usize::MAX)? {
                    if !test_holds(rows, test, Some(&version))? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        }
    }

    /// The live keys of a range, in order, at most `limit`.
    fn live(&self, keys: &KeyRange, limit: usize) -> Result<Vec<(Bytes, Version)>, RowError> {
        let mut live = Vec::new();
        let mut rest = Some(keys.clone());
        while let Some(range) = rest.filter(|_| live.len() < limit) {
            let slice = self.index.slice(&range, self.meta.revision, limit - live.len(), false);
            let slice = slice.map_err(at_present)?;
            live.extend(slice.entries);
            rest = slice.rest;
        }
        Ok(live)
    }

    fn missing_lease(&self, branch: &[Op]) -> Option<LeaseId> {
        branch.iter().find_map(|op| match op {
            Op::Put { lease: Attach::Lease(lease), .. } if self.leases.row(*lease).is_none() => Some(*lease),
            _ => None,
        })
    }

    fn run(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        op: &Op,
        budget: &mut usize,
    ) -> Result<OpResult, RowError> {
        match op {
            Op::Put { key, value, lease, prev } => {
                let prev = if *prev { self.current(rows, key)? } else { None };
                let lease = self.attach(rows, entry, *lease)?;
                let step = Step { kind: ChangeKind::Put, key: key.clone(), value: value.clone(), lease };
                self.write(rows, entry, step)?;
                Ok(OpResult::Put { prev, lease })
            }
            Op::Delete { keys, prev } => self.delete(rows, entry, keys, *prev, budget),
            Op::Get { key } => Ok(OpResult::Get(self.current(rows, key)?)),
            Op::Range { keys, limit, reverse } => {
                let limit = usize::try_from(*limit).unwrap_or(RANGE_ENTRIES_MAX);
                let (entries, more) = self.entries(rows, keys, limit, *reverse, budget)?;
                Ok(OpResult::Range { entries, more })
            }
        }
    }

    fn current(&self, rows: &dyn RowsRead, key: &[u8]) -> Result<Option<KeyValue>, RowError> {
        read::get(&self.index, rows, self.meta.revision, key).map_err(at_present)
    }

    fn entries(
        &self,
        rows: &dyn RowsRead,
        keys: &KeyRange,
        limit: usize,
        reverse: bool,
        budget: &mut usize,
    ) -> Result<(Vec<KeyValue>, bool), RowError> {
        let now = self.meta.revision;
        read::range_within(&self.index, rows, now, keys, limit, reverse, budget).map_err(at_present)
    }

    fn attach(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        attach: Attach,
    ) -> Result<Option<LeaseId>, RowError> {
        match attach {
            Attach::Forever => Ok(None),
            Attach::Lease(lease) => Ok(Some(lease)),
            Attach::Ttl { ttl_ms } => self.make_lease(rows, entry, ttl_ms, LeaseKind::Anonymous).map(Some),
        }
    }

    /// Deletes what is there. The deleted entries are given as far as the limits of a range allow; the count is exact.
    fn delete(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        keys: &KeyRange,
        prev: bool,
        budget: &mut usize,
    ) -> Result<OpResult, RowError> {
        let prev = match prev {
            true => self.entries(rows, keys, RANGE_ENTRIES_MAX, false, budget)?.0,
            false => Vec::new(),
        };
        let live = self.live(keys, usize::MAX)?;
        let deleted = live.len() as u64;
        for (key, version) in live {
            let lease = version.lease();
            self.write(rows, entry, Step { kind: ChangeKind::Deleted, key, value: Bytes::new(), lease })?;
        }
        Ok(OpResult::Delete { deleted, prev })
    }
}

fn test_holds(rows: &dyn RowsRead, test: &Test, version: Option<&Version>) -> Result<bool, RowError> {
    let created = version.map_or(Revision::ZERO, Version::created);
    let modified = version.map_or(Revision::ZERO, |version| version.id().revision);
    Ok(match test {
        Test::Value(order, wanted) => match version {
            Some(version) => order.holds(&read::record(rows, version.id())?.value, wanted),
            None => false,
        },
        Test::Created(order, wanted) => order.holds(&created, wanted),
        Test::Modified(order, wanted) => order.holds(&modified, wanted),
        Test::Version(order, wanted) => order.holds(&version.map_or(0, Version::version), wanted),
        Test::Lease(wanted) => version.and_then(Version::lease) == *wanted,
        Test::Absent => version.is_none(),
        Test::Present => version.is_some(),
        Test::UnchangedSince(_) => unreachable!("a question about history, answered for the whole range"),
    })
}

/// A key that the operations would write twice, if there is one. Ranges that are deleted count with every key they could
/// hold, so that the answer does not depend on what is there.
fn written_twice(branch: &[Op]) -> Option<Bytes> {
    if branch.len() < 2 {
        return None;
    }
    let mut puts = BTreeSet::new();
    let mut deletes = Vec::new();
    for op in branch {
        match op {
            Op::Put { key, .. } if !puts.insert(key) => return Some(key.clone()),
            Op::Delete { keys, .. } if !keys.is_empty() => deletes.push(keys),
            _ => {}
        }
    }
    deletes.sort();
    // Sorted by start, if any two of the ranges overlap then two neighbours do.
    if let Some(pair) = deletes.windows(2).find(|pair| pair[0].contains(&pair[1].start)) {
        return Some(pair[1].start.clone());
    }
    let first_in = |keys: &&KeyRange| puts.range::<Bytes, _>(&keys.start..).next().filter(|key| keys.contains(key));
    deletes.iter().find_map(first_in).map(|key| Bytes::clone(key))
}

/// What is read at the present revision cannot be compacted: the floor does not pass it.
fn at_present(error: ReadError) -> RowError {
    match error {
        ReadError::Row(error) => error,
        ReadError::Compacted { oldest } => panic!("the present is compacted: the oldest revision kept is {oldest}"),
    }
}
