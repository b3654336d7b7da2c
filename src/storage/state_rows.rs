//! The state machine's rows in tables of redb: read and written inside one transaction, or read from a past moment.
//!
//! Only names of tables decide whether these are the live rows or those of a snapshot on its way in.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, TableError, WriteTransaction};

use crate::command::RecordId;
use crate::format::snapshot::{Part, SnapshotMeta, decode_meta};
use crate::format::state::{POSITION, record_id, record_key};
use crate::rt::worker::panic_message;
use crate::state_machine::{RowError, RowSpace, Rows, RowsRead, ShortBytes};

/// The names under which a set of tables goes.
pub(crate) type Naming = fn(Part) -> &'static str;

/// As [`BytesTable`], of a read transaction.
pub(crate) type PastTable = ReadOnlyTable<&'static [u8], &'static [u8]>;

pub(crate) type BytesTable<'txn> = Table<'txn, &'static [u8], &'static [u8]>;

pub(crate) fn definition(name: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(name)
}

/// The tables of one write transaction, each opened (and created) when it is first needed: a batch touches few of them.
pub(crate) struct TxnRows<'txn> {
    txn: &'txn WriteTransaction,
    name: Naming,
    tables: [OnceCell<BytesTable<'txn>>; Part::ALL.len()],
}

impl<'txn> TxnRows<'txn> {
    pub(crate) fn new(txn: &'txn WriteTransaction, name: Naming) -> Self {
        TxnRows { txn, name, tables: Default::default() }
    }

    /// Creates the tables that are not there.
    pub(crate) fn create(txn: &'txn WriteTransaction, name: Naming) -> Result<(), RowError> {
        let rows = TxnRows::new(txn, name);
        Part::ALL.into_iter().try_for_each(|part| rows.table(part).map(drop))
    }

    pub(crate) fn put(&mut self, part: Part, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        self.table_mut(part)?.insert(key, value).map_err(disk)?;
        Ok(())
    }

    pub(crate) fn remove(&mut self, part: Part, key: &[u8]) -> Result<(), RowError> {
        self.table_mut(part)?.remove(key).map_err(disk)?;
        Ok(())
    }

    fn table(&self, part: Part) -> Result<&BytesTable<'txn>, RowError> {
        let cell = &self.tables[part as usize];
        if cell.get().is_none() {
            let opened = self.txn.open_table(definition((self.name)(part))).map_err(disk)?;
            // Nobody else fills it meanwhile: a transaction is one thread's.
            let _ = cell.set(opened);
        }
        Ok(cell.get().expect("filled above"))
    }

    fn table_mut(&mut self, part: Part) -> Result<&mut BytesTable<'txn>, RowError> {
        self.table(part)?;
        Ok(self.tables[part as usize].get_mut().expect("opened above"))
    }
}

/// Answers that are not in the database yet, and those that are and should be no longer.
///
/// An answer is of use until its caller has it, which is some milliseconds; the next durable commit comes later than that.
/// So most answers are never written at all: what a crash loses, replaying the log brings back. [`Answers::write`] goes
/// with every durable commit, so that what is durable is always whole, and before a snapshot is read.
///
/// Bounded by what may be applied between two durable commits.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pending: BTreeMap<ShortBytes, Pending>,
}

#[derive(Debug)]
enum Pending {
    /// To be written; the database has no row of this key.
    New(Vec<u8>),
    /// To be removed from the database.
    Gone,
}

impl Answers {
    /// Brings the database up to date.
    pub(crate) fn write(&mut self, rows: &mut TxnRows<'_>) -> Result<(), RowError> {
        for (key, pending) in std::mem::take(&mut self.pending) {
            match pending {
                Pending::New(row) => rows.put(Part::Answer, key.as_slice(), &row)?,
                Pending::Gone => rows.remove(Part::Answer, key.as_slice())?,
            }
        }
        Ok(())
    }

    /// Forgets all of it: the database has been replaced by another one.
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
    }

    fn put(&mut self, key: &[u8], row: Vec<u8>) {
        let replaced = self.pending.insert(key.into(), Pending::New(row));
        assert!(replaced.is_none(), "an answer is written once: {key:?}");
    }

    fn remove(&mut self, key: &[u8]) {
        if !matches!(self.pending.remove(key), Some(Pending::New(_))) {
            self.pending.insert(key.into(), Pending::Gone);
        }
    }
}

/// The rows as the state machine sees them while it applies: the tables of one write transaction, with the answers that
/// have not been written to them.
pub(crate) struct LiveRows<'a, 'txn> {
    rows: TxnRows<'txn>,
    answers: &'a mut Answers,
}

impl<'a, 'txn> LiveRows<'a, 'txn> {
    pub(crate) fn new(rows: TxnRows<'txn>, answers: &'a mut Answers) -> Self {
        LiveRows { rows, answers }
    }
}

impl RowsRead for LiveRows<'_, '_> {
    fn record(&self, id: RecordId) -> Result<Option<Bytes>, RowError> {
        value(self.rows.table(Part::Records)?, &record_key(id))
    }

    fn row(&self, space: RowSpace, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        let pending = if space == RowSpace::Answer { self.answers.pending.get(key) } else { None };
        match pending {
            Some(Pending::New(row)) => Ok(Some(Bytes::copy_from_slice(row))),
            Some(Pending::Gone) => Ok(None),
            None => value(self.rows.table(space.into())?, key),
        }
    }

    fn records_in(&self, ids: RangeInclusive<RecordId>, each: &mut EachRecord<'_>) -> Result<(), RowError> {
        records_in(self.rows.table(Part::Records)?, ids, each)
    }

    fn each_row(&self, space: RowSpace, each: &mut EachRow<'_>) -> Result<(), RowError> {
        let table = self.rows.table(space.into())?;
        if space != RowSpace::Answer {
            return each_row(table, each);
        }
        let mut rows = BTreeMap::new();
        each_row(table, &mut |key, row| {
            rows.insert(key.to_vec(), row);
            Ok(())
        })?;
        for (key, pending) in &self.answers.pending {
            match pending {
                Pending::New(row) => rows.insert(key.as_slice().to_vec(), Bytes::copy_from_slice(row)),
                Pending::Gone => rows.remove(key.as_slice()),
            };
        }
        rows.into_iter().try_for_each(|(key, row)| each(&key, row))
    }
}

impl Rows for LiveRows<'_, '_> {
    fn put_record(&mut self, id: RecordId, record: &[u8]) -> Result<(), RowError> {
        self.rows.put(Part::Records, &record_key(id), record)
    }

    fn remove_records(&mut self, ids: &[RecordId]) -> Result<(), RowError> {
        let [first, .., last] = ids else {
            return ids.iter().try_for_each(|id| self.rows.remove(Part::Records, &record_key(*id)));
        };
        let (first, last) = (record_key(*first), record_key(*last));
        let mut ids = ids.iter().map(|id| record_key(*id)).peekable();
        let mut keep = |key: &[u8], _: &[u8]| {
            while ids.next_if(|id| id.as_slice() < key).is_some() {}
            ids.next_if(|id| id.as_slice() == key).is_none()
        };
        let records = self.rows.table_mut(Part::Records)?;
        records.retain_in::<&[u8], _>(first.as_slice()..=last.as_slice(), &mut keep).map_err(disk)
    }

    fn put_row(&mut self, space: RowSpace, key: &[u8], value: Cow<'_, [u8]>) -> Result<(), RowError> {
        if space == RowSpace::Answer {
            self.answers.put(key, value.into_owned());
            return Ok(());
        }
        self.rows.put(space.into(), key, &value)
    }

    fn remove_row(&mut self, space: RowSpace, key: &[u8]) -> Result<(), RowError> {
        if space == RowSpace::Answer {
            self.answers.remove(key);
            return Ok(());
        }
        self.rows.remove(space.into(), key)
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
