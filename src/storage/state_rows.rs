//! The state machine's rows in tables of redb: read and written inside one transaction, or read from a past moment.
//!
//! Only names of tables decide whether these are the live rows or those of a snapshot on its way in.

use std::ops::{ControlFlow, RangeInclusive};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, TableError, WriteTransaction};

use crate::command::RecordId;
use crate::format::snapshot::{Part, SnapshotMeta, decode_meta};
use crate::format::state::{POSITION, record_id, record_key};
use crate::rt::worker::panic_message;
use crate::state_machine::{RowError, RowSpace, Rows, RowsRead};

/// The names under which a set of tables goes.
pub(crate) type Naming = fn(Part) -> &'static str;

/// As [`BytesTable`], of a read transaction.
pub(crate) type PastTable = ReadOnlyTable<&'static [u8], &'static [u8]>;

pub(crate) type BytesTable<'txn> = Table<'txn, &'static [u8], &'static [u8]>;

pub(crate) fn definition(name: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(name)
}

/// The tables of one write transaction, opened once for all entries applied in it.
pub(crate) struct TxnRows<'txn> {
    records: BytesTable<'txn>,
    meta: BytesTable<'txn>,
    lease: BytesTable<'txn>,
    client: BytesTable<'txn>,
    answer: BytesTable<'txn>,
    local: BytesTable<'txn>,
}

impl<'txn> TxnRows<'txn> {
    /// Opens the tables, creating those that are not there.
    pub(crate) fn open(txn: &'txn WriteTransaction, name: Naming) -> Result<Self, TableError> {
        let open = |part| txn.open_table(definition(name(part)));
        Ok(TxnRows {
            records: open(Part::Records)?,
            meta: open(Part::Meta)?,
            lease: open(Part::Lease)?,
            client: open(Part::Client)?,
            answer: open(Part::Answer)?,
            local: open(Part::Local)?,
        })
    }

    pub(crate) fn put(&mut self, part: Part, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        self.table_mut(part).insert(key, value).map_err(disk)?;
        Ok(())
    }

    fn table(&self, part: Part) -> &BytesTable<'txn> {
        match part {
            Part::Records => &self.records,
            Part::Meta => &self.meta,
            Part::Lease => &self.lease,
            Part::Client => &self.client,
            Part::Answer => &self.answer,
            Part::Local => &self.local,
        }
    }

    fn table_mut(&mut self, part: Part) -> &mut BytesTable<'txn> {
        match part {
            Part::Records => &mut self.records,
            Part::Meta => &mut self.meta,
            Part::Lease => &mut self.lease,
            Part::Client => &mut self.client,
            Part::Answer => &mut self.answer,
            Part::Local => &mut self.local,
        }
    }
}

impl RowsRead for TxnRows<'_> {
    fn record(&self, id: RecordId) -> Result<Option<Bytes>, RowError> {
        value(&self.records, &record_key(id))
    }

    fn row(&self, space: RowSpace, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        value(self.table(space.into()), key)
    }

    fn records_in(&self, ids: RangeInclusive<RecordId>, each: &mut EachRecord<'_>) -> Result<(), RowError> {
        records_in(&self.records, ids, each)
    }

    fn each_row(&self, space: RowSpace, each: &mut EachRow<'_>) -> Result<(), RowError> {
        each_row(self.table(space.into()), each)
    }
}

impl Rows for TxnRows<'_> {
    fn put_record(&mut self, id: RecordId, record: &[u8]) -> Result<(), RowError> {
        self.put(Part::Records, &record_key(id), record)
    }

    fn remove_record(&mut self, id: RecordId) -> Result<(), RowError> {
        self.records.remove(record_key(id).as_slice()).map_err(disk)?;
        Ok(())
    }

    fn put_row(&mut self, space: RowSpace, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        self.put(space.into(), key, value)
    }

    fn remove_row(&mut self, space: RowSpace, key: &[u8]) -> Result<(), RowError> {
        self.table_mut(space.into()).remove(key).map_err(disk)?;
        Ok(())
    }
}

/// The tables as of one read transaction; what is not there reads as empty.
pub(crate) struct PastRows {
    txn: ReadTransaction,
    name: Naming,
    /// Kept open, since nearly every read ends here.
    records: Option<PastTable>,
}

impl PastRows {
    pub(crate) fn open(txn: ReadTransaction, name: Naming) -> Result<Self, RowError> {
        let records = past_table(&txn, name(Part::Records))?;
        Ok(PastRows { txn, name, records })
    }

    /// The table of `part`, if there is one.
    pub(crate) fn table(&self, part: Part) -> Result<Option<PastTable>, RowError> {
        past_table(&self.txn, (self.name)(part))
    }

    /// A row of the table called `table`, which may be one that is not named by parts.
    pub(crate) fn row_of(&self, table: &str, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        past_table(&self.txn, table)?.map_or(Ok(None), |table| value(&table, key))
    }
}

impl RowsRead for PastRows {
    fn record(&self, id: RecordId) -> Result<Option<Bytes>, RowError> {
        self.records.as_ref().map_or(Ok(None), |records| value(records, &record_key(id)))
    }

    fn row(&self, space: RowSpace, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        self.table(space.into())?.map_or(Ok(None), |table| value(&table, key))
    }

    fn records_in(&self, ids: RangeInclusive<RecordId>, each: &mut EachRecord<'_>) -> Result<(), RowError> {
        self.records.as_ref().map_or(Ok(()), |records| records_in(records, ids, each))
    }

    fn each_row(&self, space: RowSpace, each: &mut EachRow<'_>) -> Result<(), RowError> {
        self.table(space.into())?.map_or(Ok(()), |table| each_row(&table, each))
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
    RowError(error.to_string())
}

/// Reads what may be damaged: redb refuses most damage with an error, and some with a panic.
pub(crate) fn undamaged<T, E: From<RowError>>(read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|panic| Err(RowError(format!("panicked: {}", panic_message(&*panic))).into()))
}

/// One of the rows of [`POSITION`].
pub(crate) fn read_position(rows: &PastRows, name: &[u8]) -> Result<Option<SnapshotMeta>, RowError> {
    rows.row_of(POSITION, name)?.map(|meta| decode_meta(meta).map_err(disk)).transpose()
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

type EachRow<'a> = dyn FnMut(&[u8], Bytes) -> Result<(), RowError> + 'a;

type EachRecord<'a> = dyn FnMut(RecordId, Bytes) -> Result<ControlFlow<()>, RowError> + 'a;

fn records_in(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    ids: RangeInclusive<RecordId>,
    each: &mut EachRecord<'_>,
) -> Result<(), RowError> {
    let (from, to) = (record_key(*ids.start()), record_key(*ids.end()));
    if from > to {
        return Ok(());
    }
    for row in table.range::<&[u8]>(from.as_slice()..=to.as_slice()).map_err(disk)? {
        let (key, value) = row.map_err(disk)?;
        let id = record_id(key.value()).map_err(disk)?;
        if each(id, Bytes::copy_from_slice(value.value()))?.is_break() {
            break;
        }
    }
    Ok(())
}

fn each_row(table: &impl ReadableTable<&'static [u8], &'static [u8]>, each: &mut EachRow<'_>) -> Result<(), RowError> {
    for row in table.iter().map_err(disk)? {
        let (key, value) = row.map_err(disk)?;
        each(key.value(), Bytes::copy_from_slice(value.value()))?;
    }
    Ok(())
}
