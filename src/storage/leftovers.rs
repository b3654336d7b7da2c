//! Tables whose content is no longer wanted: replaced by a snapshot, or collected for one that was given up.
//!
//! Removing a large table at once would hold up everything else, so it is renamed, which costs nothing, and emptied in
//! slices between other work, also after a restart.

use redb::{Database, ReadableDatabase, ReadableTable, TableError, TableHandle, WriteTransaction};

use crate::format::snapshot::Part;
use crate::format::state::{is_staged, live_table, old_number, old_table, staged_table};
use crate::state_machine::RowError;
use crate::storage::state_rows::{Naming, definition, disk};

/// Rows that one slice removes at most: some megabytes, since a row of records is a block.
const LEFTOVER_ROWS: usize = 256;

pub(crate) struct Leftovers {
    /// To be emptied, then deleted.
    tables: Vec<String>,
    /// Above the number of every name in use.
    next: u64,
    /// Whether staged tables of an earlier run, or of a stage given up, are there under their own names.
    staged: bool,
}

impl Leftovers {
    /// What an earlier run left behind.
    pub(crate) fn find(db: &Database) -> Result<Self, RowError> {
        let txn = db.begin_read().map_err(disk)?;
        let names: Vec<String> = txn.list_tables().map_err(disk)?.map(|table| table.name().to_owned()).collect();
        let staged = names.iter().any(|name| is_staged(name));
        let next = names.iter().filter_map(|name| old_number(name)).max().map_or(0, |last| last + 1);
        let tables = names.into_iter().filter(|name| old_number(name).is_some()).collect();
        Ok(Leftovers { tables, next, staged })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tables.is_empty() && !self.staged
    }

    /// Notes that the staged tables are nobody's any more; the next slice sets them aside.
    pub(crate) fn abandon_staged(&mut self) {
        self.staged = true;
    }

    /// Sets the staged tables aside, so that their names are free.
    pub(crate) fn retire_staged(&mut self, txn: &WriteTransaction) -> Result<(), RowError> {
        self.staged = false;
        self.retire(txn, staged_table)
    }

    /// Sets the live tables aside and puts the staged ones in their place.
    pub(crate) fn swap_in_staged(&mut self, txn: &WriteTransaction) -> Result<(), RowError> {
        self.retire(txn, live_table)?;
        for part in Part::ALL {
            txn.rename_table(definition(staged_table(part)), definition(live_table(part))).map_err(disk)?;
        }
        Ok(())
    }

    /// Removes up to [`LEFTOVER_ROWS`] rows, or one empty table; answers how many rows. The caller stops when
    /// [`Leftovers::is_empty`].
    pub(crate) fn remove_slice(&mut self, txn: &WriteTransaction) -> Result<usize, RowError> {
        if self.staged {
            return self.retire_staged(txn).map(|()| 0);
        }
        let Some(name) = self.tables.last() else { return Ok(0) };
        let removed = empty_slice(txn, name)?;
        if removed == 0 {
            txn.delete_table(definition(name)).map_err(disk)?;
            self.tables.pop();
        }
        Ok(removed)
    }

    fn retire(&mut self, txn: &WriteTransaction, name: Naming) -> Result<(), RowError> {
        let number = self.next;
        self.next += 1;
        for part in Part::ALL {
            let old = old_table(number, part);
            match txn.rename_table(definition(name(part)), definition(&old)) {
                Ok(()) => self.tables.push(old),
                Err(TableError::TableDoesNotExist(_)) => {}
                Err(error) => return Err(disk(error)),
            }
        }
        Ok(())
    }
}

/// Removes the first rows of a table; answers how many.
fn empty_slice(txn: &WriteTransaction, name: &str) -> Result<usize, RowError> {
    let mut table = txn.open_table(definition(name)).map_err(disk)?;
    let (mut last, mut count) = (None, 0);
    for row in table.iter().map_err(disk)?.take(LEFTOVER_ROWS) {
        last = Some(row.map_err(disk)?.0.value().to_vec());
        count += 1;
    }
    let Some(last) = last else { return Ok(0) };
    table.retain_in(..=last.as_slice(), |_, _| false).map_err(disk)?;
    Ok(count)
}
