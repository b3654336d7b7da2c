use std::collections::BTreeMap;
use std::ops::ControlFlow;

use redb::{Database, ReadableDatabase, ReadableTableMetadata, backends::InMemoryBackend};

use super::*;
use crate::choices::Choices;
use crate::storage::state_rows::{PastTable, definition};

fn id(revision: u64, ordinal: u32) -> RecordId {
    RecordId { revision: Revision::new(revision), ordinal }
}

/// A table of records, and what should be in it.
struct Records {
    db: Database,
    expected: BTreeMap<RecordId, Vec<u8>>,
}

impl Records {
    fn new() -> Self {
        let db = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let mut records = Records { db, expected: BTreeMap::new() };
        records.add([]);
        records
    }

    fn write(&self, write: impl FnOnce(&mut BytesTable<'_>) -> Result<(), RowError>) {
        let txn = self.db.begin_write().unwrap();
        write(&mut txn.open_table(definition("records")).unwrap()).unwrap();
        txn.commit().unwrap();
    }

    fn add(&mut self, records: impl IntoIterator<Item = (RecordId, Vec<u8>)>) {
        let records: Vec<_> = records.into_iter().collect();
        self.write(|table| {
            let mut packer = Packer::default();
            records.iter().try_for_each(|(id, record)| packer.push(table, *id, record))?;
            packer.finish(table)
        });
        self.expected.extend(records);
    }

    fn remove(&mut self, ids: &[RecordId]) {
        self.write(|table| remove(table, ids));
        ids.iter().for_each(|id| drop(self.expected.remove(id)));
    }

    fn table(&self) -> PastTable {
        self.db.begin_read().unwrap().open_table(definition("records")).unwrap()
    }

    fn blocks(&self) -> u64 {
        self.table().len().unwrap()
    }

    fn read(&self, ids: RangeInclusive<RecordId>, max: usize) -> Vec<(RecordId, Vec<u8>)> {
        let mut found = Vec::new();
        records_in(&self.table(), ids, &mut |id, record| {
            found.push((id, record.to_vec()));
            Ok(if found.len() == max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
        .unwrap();
        found
    }

    fn check(&self) {
        let all = FIRST..=id(u64::MAX, u32::MAX);
        let expected: Vec<_> = self.expected.iter().map(|(id, record)| (*id, record.clone())).collect();
        assert_eq!(self.read(all, usize::MAX), expected);
    }
}

#[test]
fn records_are_found_one_by_one_and_by_range_wherever_blocks_begin() {
    let mut records = Records::new();
    records.add((1..=300).flat_map(|revision| [0, 1].map(|ordinal| (id(2 * revision, ordinal), vec![7; 300]))));
    assert!(records.blocks() > 5 && records.blocks() < 600 / 40, "{} blocks", records.blocks());
    records.check();
    let table = records.table();
    for revision in 0..=602 {
        for ordinal in 0..3 {
            let id = id(revision, ordinal);
            let found = record(&table, id).unwrap().map(|record| record.to_vec());
            assert_eq!(found.as_ref(), records.expected.get(&id), "{id:?}");
        }
        let range = id(revision, 1)..=id(revision + 60, 0);
        let expected: Vec<_> =
            records.expected.range(range.clone()).map(|(id, record)| (*id, record.clone())).collect();
        assert_eq!(records.read(range.clone(), usize::MAX), expected, "{range:?}");
        assert_eq!(records.read(range.clone(), 3), expected[..expected.len().min(3)], "{range:?}");
    }
    assert_eq!(records.read(id(9, 0)..=id(8, 0), 1), []);
}

#[test]
fn removing_records_spares_those_between_and_does_not_mind_those_that_are_gone() {
    let mut records = Records::new();
    records.add((1..=300).flat_map(|revision| [0, 1].map(|ordinal| (id(revision, ordinal), vec![7; 300]))));
    let gone = [id(1, 0), id(2, 1), id(9, 0), id(10, 0), id(200, 5), id(300, 1), id(301, 0)];
    for ids in [&[][..], &[id(9, 0)], &gone, &[id(0, 0)], &gone] {
        records.remove(ids);
        records.check();
    }
    let all: Vec<RecordId> = records.expected.keys().copied().collect();
    records.remove(&all);
    assert_eq!((records.blocks(), records.read(FIRST..=id(u64::MAX, 0), 1)), (0, vec![]));
}

#[test]
fn a_removal_touches_no_block_that_holds_nothing_of_it_unless_it_can_be_joined() {
    let mut records = Records::new();
    records.add((1..=600).map(|revision| (id(revision, 0), vec![7; 300])));
    let keys = |records: &Records| -> Vec<RecordId> {
        records.table().range::<&[u8]>(..).unwrap().map(|row| record_id(row.unwrap().0.value()).unwrap()).collect()
    };
    let before = keys(&records);
    assert!(before.len() > 6);
    records.remove(&[before[3]]);
    let mut expected = before.clone();
    expected[3] = id(before[3].revision.get() + 1, 0);
    assert_eq!(keys(&records), expected);
    // What is left of two blocks is one block.
    let most: Vec<RecordId> =
        (expected[1].revision.get() + 5..expected[3].revision.get()).map(|at| id(at, 0)).collect();
    records.remove(&most);
    expected.remove(2);
    assert_eq!(keys(&records), expected);
    records.check();
}

#[test]
fn whatever_is_added_and_removed_every_record_is_found_and_blocks_do_not_stay_small() {
    for seed in 0..20 {
        let mut choices = Choices::seeded(seed);
        let (mut records, mut revision) = (Records::new(), 0);
        for _ in 0..30 {
            let count = choices.below(200);
            let added: Vec<_> = (0..count)
                .map(|_| {
                    revision += choices.below(3) + 1;
                    let len = if choices.below(50) == 0 { 40_000 } else { choices.below(600) };
                    (id(revision, choices.below(3) as u32), vec![revision as u8; len as usize])
                })
                .collect();
            records.add(added);
            let share = choices.below(4) + 1;
            let gone: Vec<_> = records.expected.keys().copied().filter(|_| choices.below(4) < share).collect();
            records.remove(&gone);
            records.check();
        }
        let bytes: usize = records.expected.values().map(|record| record.len() + 16).sum();
        let limit = 2 + 4 * bytes / BLOCK_BYTES_MAX;
        assert!(records.blocks() as usize <= limit, "seed {seed}: {} blocks for {bytes} bytes", records.blocks());
    }
}

#[test]
fn a_block_in_another_ones_place_is_seen() {
    let mut records = Records::new();
    records.add((1..=10).map(|revision| (id(revision, 0), vec![7; 30])));
    records.write(|table| {
        let block = table.remove(record_key(id(1, 0)).as_slice()).unwrap().unwrap().value().to_vec();
        table.insert(record_key(id(2, 0)).as_slice(), block.as_slice()).unwrap();
        Ok(())
    });
    let table = records.table();
    let found = record(&table, id(3, 0));
    assert!(found.as_ref().is_err_and(|error| error.to_string().contains("begins with")), "{found:?}");
    assert!(records_in(&table, FIRST..=id(9, 0), &mut |_, _| Ok(ControlFlow::Continue(()))).is_err());
}
