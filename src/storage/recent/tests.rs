use super::*;

fn id(revision: u64, ordinal: u32) -> RecordId {
    RecordId { revision: Revision::new(revision), ordinal }
}

type RowChange<'a> = (RowSpace, &'a [u8], Option<&'static [u8]>);

fn batch(records: &[(RecordId, &[u8])], rows: &[RowChange<'_>]) -> Batch {
    let mut batch = Batch::with_room(10);
    records.iter().for_each(|(id, record)| batch.put_record(*id, record));
    rows.iter().for_each(|(space, key, row)| batch.put_row(*space, key, row.map(Bytes::from_static)));
    batch
}

#[test]
fn records_are_found_in_the_batch_and_behind_it_by_id_and_by_range() {
    let recent = Recent::new(Revision::new(10));
    let records = [(id(11, 0), &b"a"[..]), (id(11, 1), b""), (id(14, 0), b"ccc"), (id(15, 0), b"d")];
    let first = batch(&records[..3], &[]);
    assert_eq!((first.record(id(11, 0)), first.record(id(11, 1))), (Some(&b"a"[..]), Some(&b""[..])));
    assert_eq!((first.record(id(14, 0)), first.bytes()), (Some(&b"ccc"[..]), 4));
    for gone in [id(10, 0), id(11, 2), id(13, 0), id(15, 0)] {
        assert_eq!(first.record(gone), None, "{gone:?}");
    }
    recent.add(first);
    recent.add(Batch::default());
    recent.add(batch(&records[3..], &[]));
    assert_eq!(recent.now(), 3);
    for (id, record) in records {
        assert_eq!(recent.record(id).as_deref(), Some(record));
    }
    assert_eq!(recent.record(id(12, 0)), None);
    let read = |ids, max| {
        let mut found = Vec::new();
        let each = &mut |id, record: Bytes| {
            found.push((id, record.to_vec()));
            Ok(if found.len() == max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        recent.records_in(ids, each).unwrap();
        found
    };
    let expected: Vec<_> = records.iter().map(|(id, record)| (*id, record.to_vec())).collect();
    assert_eq!(read(id(0, 0)..=id(99, 0), 99), expected);
    assert_eq!(read(id(11, 1)..=id(14, 0), 99), expected[1..3]);
    assert_eq!(read(id(11, 0)..=id(99, 0), 2), expected[..2]);
    let mut all = Vec::new();
    recent
        .each_record(|id, record| {
            all.push((id, record.to_vec()));
            Ok(())
        })
        .unwrap();
    assert_eq!(all, expected);
}

#[test]
fn a_range_of_more_records_than_are_copied_at_once_is_complete() {
    let recent = Recent::new(Revision::ZERO);
    let count = 3 * SLICE_RECORDS_MAX as u64 + 1;
    let mut all = Batch::default();
    (1..=count).for_each(|revision| all.put_record(id(revision, 0), &revision.to_le_bytes()));
    recent.add(all);
    let mut next = 1;
    recent
        .records_in(id(1, 0)..=id(u64::MAX, 0), &mut |found, record| {
            assert_eq!((found, &record[..]), (id(next, 0), &next.to_le_bytes()[..]));
            next += 1;
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    assert_eq!(next, count + 1);
}

#[test]
fn a_row_is_as_it_was_after_each_batch() {
    let recent = Recent::new(Revision::ZERO);
    let (lease, client) = (RowSpace::Lease, RowSpace::Client);
    recent.add(batch(&[], &[(lease, b"1", Some(b"a")), (lease, b"2", Some(b"b")), (client, b"1", Some(b"c"))]));
    recent.add(batch(&[], &[(lease, b"1", None)]));
    recent.add(batch(&[], &[(lease, b"1", Some(b"d")), (lease, b"3", None)]));
    let row = |key: &'static [u8], at| recent.row(lease, key, at).map(|row| row.map(|row| row.to_vec()));
    let some = |row: &[u8]| Some(Some(row.to_vec()));
    assert_eq!([0, 1, 2, 3, u64::MAX].map(|at| row(b"1", at)), [None, some(b"a"), Some(None), some(b"d"), some(b"d")]);
    assert_eq!([2, 3].map(|at| row(b"3", at)), [None, Some(None)]);
    let rows = |space, at| {
        let rows = recent.rows(space, at);
        rows.into_iter().map(|(key, row)| (key.as_slice().to_vec(), row.map(|row| row.to_vec()))).collect::<Vec<_>>()
    };
    let shown = |key: &[u8], row: Option<&[u8]>| (key.to_vec(), row.map(<[u8]>::to_vec));
    assert_eq!(rows(lease, 1), [shown(b"1", Some(b"a")), shown(b"2", Some(b"b"))]);
    assert_eq!(rows(lease, 3), [shown(b"1", Some(b"d")), shown(b"2", Some(b"b")), shown(b"3", None)]);
    assert_eq!(rows(client, 3), [shown(b"1", Some(b"c"))]);
    assert_eq!(rows(RowSpace::Meta, 3), []);
    let mut last = Vec::new();
    recent
        .each_row(|space, key, row| {
            last.push((space, key.to_vec(), row.map(|row| row.to_vec())));
            Ok(())
        })
        .unwrap();
    assert_eq!(last.len(), 4);
    assert_eq!(last[0], (lease, b"1".to_vec(), Some(b"d".to_vec())));
}
