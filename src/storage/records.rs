//! The table of records: blocks of neighbours, each under the id of its first record.
//!
//! A record is in the last block whose key is not above its id. Blocks are written full, from records in ascending order;
//! what is removed leaves its block shorter, which then takes in the blocks behind it as long as they fit.

use std::ops::RangeInclusive;

use bytes::Bytes;
use redb::ReadableTable;

use crate::command::RecordId;
use crate::format::block::{BLOCK_BYTES_MAX, Block, BlockWriter};
use crate::format::state::{record_id, record_key};
use crate::state_machine::{EachRecord, RowError};
use crate::storage::state_rows::{BytesTable, disk};
use crate::types::Revision;

const FIRST: RecordId = RecordId { revision: Revision::ZERO, ordinal: 0 };

/// A table of records that is read.
pub(crate) trait RecordTable: ReadableTable<&'static [u8], &'static [u8]> {}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> RecordTable for T {}

/// The encoded record at `id`.
pub(crate) fn record(table: &impl RecordTable, id: RecordId) -> Result<Option<Bytes>, RowError> {
    let key = record_key(id);
    let Some(row) = table.range::<&[u8]>(..=key.as_slice()).map_err(disk)?.next_back() else { return Ok(None) };
    let (key, block) = row.map_err(disk)?;
    let found = block_at(key.value(), block.value())?.find(id).map_err(disk)?;
    Ok(found.map(Bytes::copy_from_slice))
}

/// Calls `each` with the records of `ids`, in ascending order, until it breaks off.
pub(crate) fn records_in(
    table: &impl RecordTable,
    ids: RangeInclusive<RecordId>,
    each: &mut EachRecord<'_>,
) -> Result<(), RowError> {
    if ids.is_empty() {
        return Ok(());
    }
    let (first, last) = (record_key(*ids.start()), record_key(*ids.end()));
    // The first of them may stand inside a block that begins before it.
    let before = table.range::<&[u8]>(..=first.as_slice()).map_err(disk)?.next_back().transpose().map_err(disk)?;
    let from = before.map_or_else(|| first.to_vec(), |(key, _)| key.value().to_vec());
    for row in table.range::<&[u8]>(from.as_slice()..=last.as_slice()).map_err(disk)? {
        let (key, block) = row.map_err(disk)?;
        for item in block_at(key.value(), block.value())?.from(*ids.start()) {
            let (id, record) = item.map_err(disk)?;
            if id > *ids.end() || each(id, Bytes::copy_from_slice(record))?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Writes records into blocks, in ascending order. Ends with [`Packer::finish`].
#[derive(Default)]
pub(crate) struct Packer {
    block: BlockWriter,
    /// Room for a sealed block.
    sealed: Vec<u8>,
}

impl Packer {
    pub(crate) fn push(&mut self, table: &mut BytesTable<'_>, id: RecordId, record: &[u8]) -> Result<(), RowError> {
        if !self.block.takes(record.len()) {
            self.seal(table)?;
        }
        self.block.push(id, record);
        Ok(())
    }

    pub(crate) fn finish(mut self, table: &mut BytesTable<'_>) -> Result<(), RowError> {
        self.seal(table)
    }

    fn seal(&mut self, table: &mut BytesTable<'_>) -> Result<(), RowError> {
        let Some(first) = self.block.first() else { return Ok(()) };
        self.block.seal_into(&mut self.sealed);
        table.insert(record_key(first).as_slice(), self.sealed.as_slice()).map_err(disk)?;
        Ok(())
    }

    /// Whether `bytes` of another block fit behind what is here.
    fn has_room_for(&self, bytes: usize) -> bool {
        self.block.first().is_some() && self.block.len() + bytes <= BLOCK_BYTES_MAX
    }
}

/// Removes each of `ids`, which are in ascending order. What is not there is passed over.
pub(crate) fn remove(table: &mut BytesTable<'_>, mut ids: &[RecordId]) -> Result<(), RowError> {
    while let Some(id) = ids.first() {
        let block = stored(table.range::<&[u8]>(..=record_key(*id).as_slice()).map_err(disk)?.next_back())?;
        match block {
            Some(block) if block.get()?.find(*id).map_err(disk)?.is_some() => ids = rewrite(table, block, ids)?,
            _ => ids = &ids[1..],
        }
    }
    Ok(())
}

/// Writes `block` anew without those of `ids`, and with it the blocks behind it that hold any of them, or fit in. Answers
/// those of `ids` that were not come to.
fn rewrite<'a>(
    table: &mut BytesTable<'_>,
    block: StoredBlock,
    mut ids: &'a [RecordId],
) -> Result<&'a [RecordId], RowError> {
    let mut packer = Packer::default();
    let mut next = Some(block);
    while let Some(block) = next {
        table.remove(block.key.as_slice()).map_err(disk)?;
        // Found before anything is written: what is written has a key within this block, or one before it.
        let behind = record_key(block.last()?);
        next = stored(table.range::<&[u8]>(behind.as_slice()..).map_err(disk)?.next())?;
        for item in block.get()?.from(FIRST) {
            let (id, record) = item.map_err(disk)?;
            while ids.first().is_some_and(|gone| *gone < id) {
                ids = &ids[1..];
            }
            if ids.first() != Some(&id) {
                packer.push(table, id, record)?;
            }
        }
        if let Some(block) = &next
            && !block.holds_any(ids)?
            && !packer.has_room_for(block.bytes.len())
        {
            break;
        }
    }
    packer.finish(table)?;
    Ok(ids)
}

/// A block, taken out of the table so that the table can be written.
struct StoredBlock {
    key: Vec<u8>,
    bytes: Vec<u8>,
}

impl StoredBlock {
    fn get(&self) -> Result<Block<'_>, RowError> {
        block_at(&self.key, &self.bytes)
    }

    fn last(&self) -> Result<RecordId, RowError> {
        self.get()?.last().ok_or_else(|| RowError::new("a block of no records"))
    }

    fn holds_any(&self, ids: &[RecordId]) -> Result<bool, RowError> {
        let (block, last) = (self.get()?, self.last()?);
        for id in ids.iter().take_while(|id| **id <= last) {
            if block.find(*id).map_err(disk)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

type Row<'a> = (redb::AccessGuard<'a, &'static [u8]>, redb::AccessGuard<'a, &'static [u8]>);

fn stored(row: Option<Result<Row<'_>, redb::StorageError>>) -> Result<Option<StoredBlock>, RowError> {
    let Some(row) = row else { return Ok(None) };
    let (key, block) = row.map_err(disk)?;
    Ok(Some(StoredBlock { key: key.value().to_vec(), bytes: block.value().to_vec() }))
}

/// The block in the row `key`, if it is that row's.
fn block_at<'a>(key: &[u8], bytes: &'a [u8]) -> Result<Block<'a>, RowError> {
    let place = record_id(key).map_err(disk)?;
    let block =
        Block::decode(bytes).map_err(|error| RowError::unread(format_args!("the block at {place:?}"), &error))?;
    let first = block.first();
    match first == Some(place) {
        true => Ok(block),
        false => Err(RowError::new(format!("the block at {place:?} begins with {first:?}"))),
    }
}

#[cfg(test)]
mod tests;
