//! The state machine's rows in tables of redb: written in one transaction, or read from a past moment.
//!
//! Only names of tables decide whether these are the live rows or those of a snapshot on its way in.

use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use bytes::Bytes;
use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, TableError, WriteTransaction};

use crate::command::RecordId;
use crate::format::snapshot::{Part, SnapshotMeta, decode_meta};
use crate::format::state::POSITION;
use crate::rt::worker::panic_message;
use crate::state_machine::{EachRecord, EachRow, RowError, RowSpace, RowsRead, RowsScan};
use crate::storage::records;

/// The names under which a set of tables goes.
pub(crate) type Naming = fn(Part) -> &'static str;

/// As [`BytesTable`], of a read transaction.
pub(crate) type PastTable = ReadOnlyTable<&'static [u8], &'static [u8]>;

pub(crate) type BytesTable<'txn> = Table<'txn, &'static [u8], &'static [u8]>;

pub(crate) fn definition(name: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(name)
}

/// The tables of one write transaction, each opened (and created) when it is first needed.
pub(crate) struct TxnRows<'txn> {
    txn: &'txn WriteTransaction,
    name: Naming,
    tables: [Option<BytesTable<'txn>>; Part::ALL.len()],
}

impl<'txn> TxnRows<'txn> {
    pub(crate) fn new(txn: &'txn WriteTransaction, name: Naming) -> Self {
        TxnRows { txn, name, tables: Default::default() }
    }

    /// Creates the tables that are not there.
    pub(crate) fn create(txn: &'txn WriteTransaction, name: Naming) -> Result<(), RowError> {
        let mut rows = TxnRows::new(txn, name);
        Part::ALL.into_iter().try_for_each(|part| rows.table(part).map(drop))
    }

    /// Writes a row of any part but [`Part::Records`].
    pub(crate) fn put(&mut self, part: Part, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        self.table(part)?.insert(key, value).map_err(disk)?;
        Ok(())
    }

    /// Removes a row of any part but [`Part::Records`].
    pub(crate) fn remove(&mut self, part: Part, key: &[u8]) -> Result<(), RowError> {
        self.table(part)?.remove(key).map_err(disk)?;
        Ok(())
    }

    /// The table of records, which are in blocks.
    pub(crate) fn records(&mut self) -> Result<&mut BytesTable<'txn>, RowError> {
        self.table(Part::Records)
    }

    fn table(&mut self, part: Part) -> Result<&mut BytesTable<'txn>, RowError> {
        let place = &mut self.tables[part as usize];
        match place {
            Some(table) => Ok(table),
            None => Ok(place.insert(self.txn.open_table(definition((self.name)(part))).map_err(disk)?)),
        }
    }
}

/// The tables as of one read transaction; what is not there reads as empty.
pub(crate) struct PastRows {
    txn: ReadTransaction,
    name: Naming,
    /// Each opened when it is first needed, and kept open.
    tables: [OnceLock<Option<PastTable>>; Part::ALL.len()],
}

impl PastRows {
    pub(crate) fn open(txn: ReadTransaction, name: Naming) -> Self {
        PastRows { txn, name, tables: Default::default() }
    }

    /// The table of `part`, if there is one.
    pub(crate) fn table(&self, part: Part) -> Result<Option<&PastTable>, RowError> {
        let place = &self.tables[part as usize];
        if place.get().is_none() {
            let opened = past_table(&self.txn, (self.name)(part))?;
            // Another thread may have been first, with the same.
            let _ = place.set(opened);
        }
        Ok(place.get().expect("filled above").as_ref())
    }

    /// A row of the table called `table`, which may be one that is not named by parts.
    pub(crate) fn row_of(&self, table: &str, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        past_table(&self.txn, table)?.map_or(Ok(None), |table| value(&table, key))
    }
}

impl RowsRead for PastRows {
    fn record(&self, id: RecordId) -> Result<Option<Bytes>, RowError> {
        self.table(Part::Records)?.map_or(Ok(None), |table| records::record(table, id))
    }

    fn row(&self, space: RowSpace, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        self.table(space.into())?.map_or(Ok(None), |table| value(table, key))
    }
}

impl RowsScan for PastRows {
    fn records_in(&self, ids: RangeInclusive<RecordId>, each: &mut EachRecord<'_>) -> Result<(), RowError> {
        self.table(Part::Records)?.map_or(Ok(()), |table| records::records_in(table, ids, each))
    }

    fn each_row(&self, space: RowSpace, each: &mut EachRow<'_>) -> Result<(), RowError> {
        let Some(table) = self.table(space.into())? else { return Ok(()) };
        for row in table.iter().map_err(disk)? {
            let (key, value) = row.map_err(disk)?;
            each(key.value(), Bytes::copy_from_slice(value.value()))?;
        }
        Ok(())
    }
}

impl From<RowSpace> for Part {
    fn from(space: RowSpace) -> Self {
        match space {
            RowSpace::Meta => Part::Meta,
            RowSpace::Lease => Part::Lease,
            RowSpace::Client => Part::Client,
            RowSpace::Answer => Part::Answer,
            RowSpace::Local => Part::Local,
        }
    }
}

/// Turns whatever redb said into what the state machine's traits speak of.
pub(crate) fn disk(error: impl std::fmt::Display) -> RowError {
    RowError::new(error.to_string())
}

/// Reads what may be damaged: redb refuses most damage with an error, and some with a panic.
pub(crate) fn undamaged<T, E: From<RowError>>(read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|panic| Err(RowError::new(format!("panicked: {}", panic_message(&*panic))).into()))
}

/// One of the rows of [`POSITION`].
pub(crate) fn read_position(rows: &PastRows, name: &[u8]) -> Result<Option<SnapshotMeta>, RowError> {
    rows.row_of(POSITION, name)?
        .map(|meta| decode_meta(meta).map_err(|error| RowError::unread("position", &error)))
        .transpose()
}

fn past_table(txn: &ReadTransaction, name: &str) -> Result<Option<PastTable>, RowError> {
    match txn.open_table(definition(name)) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(disk(error)),
    }
}

fn value(table: &impl ReadableTable<&'static [u8], &'static [u8]>, key: &[u8]) -> Result<Option<Bytes>, RowError> {
    let value = table.get(key).map_err(disk)?;
    Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
}
