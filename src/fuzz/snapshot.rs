//! Snapshots on a bad way, and states made of damaged rows.

use bytes::Bytes;

use crate::choices::Choices;
use crate::command::{Command, KeyRange, Op, Proposal, RecordId, Stamp, Txn};
use crate::format::snapshot::{ChunkWriter, Part, SnapshotMeta, encode_meta};
use crate::format::state::{record_id, record_key};
use crate::format::wire::seal;
use crate::state_machine::memory::MemRows;
use crate::state_machine::{Rows, State};
use crate::storage::snapshot::{SnapshotRefused, Stage, StageId};
use crate::types::{ClientId, LeaderId, LogId, NodeId, Revision};

type Row = (Part, Vec<u8>, Vec<u8>);

/// A snapshot as its sender has it.
struct Sent {
    rows: Vec<Row>,
    chunks: Vec<Bytes>,
    /// How many of the rows are in each chunk.
    counts: Vec<usize>,
}

impl Sent {
    /// Any rows, with records that are in order as a rule, cut into chunks anywhere: which chunk a row falls into carries no
    /// meaning.
    fn new(choices: &mut Choices, meta: &SnapshotMeta) -> Self {
        let mut sent = Sent { rows: Vec::new(), chunks: Vec::new(), counts: vec![0] };
        let mut id = RecordId::default();
        for _ in 0..choices.below(12) {
            let part = choices.pick(&Part::SENT);
            let key = if part == Part::Records && !choices.one_in(16) {
                let revision = Revision::new(id.revision.get() + choices.below(3));
                id = RecordId { revision, ordinal: choices.below(2) as u32 };
                record_key(id).to_vec()
            } else {
                any_bytes(choices)
            };
            sent.rows.push((part, key, any_bytes(choices)));
            *sent.counts.last_mut().expect("never empty") += 1;
            if choices.one_in(3) {
                sent.counts.push(0);
            }
        }
        sent.write(meta);
        sent
    }

    /// Another one, that may differ from this one in a single byte.
    fn twin(&self, choices: &mut Choices, meta: &SnapshotMeta) -> Self {
        let mut twin = Sent { rows: self.rows.clone(), chunks: Vec::new(), counts: self.counts.clone() };
        let place = choices.below(twin.rows.len() as u64 + 1) as usize;
        if let Some(byte) = twin.rows.get_mut(place).and_then(|(_, _, value)| value.first_mut()) {
            *byte = byte.wrapping_add(1);
        }
        twin.write(meta);
        twin
    }

    fn write(&mut self, meta: &SnapshotMeta) {
        let mut writer = ChunkWriter::new(&encode_meta(meta));
        let mut rows = self.rows.iter();
        for (chunk, count) in self.counts.iter().enumerate() {
            rows.by_ref().take(*count).for_each(|(part, key, value)| writer.push(*part, key, value));
            self.chunks.push(writer.seal(chunk + 1 == self.counts.len()));
        }
    }

    fn rows_of(&self, chunk: usize) -> &[Row] {
        let before: usize = self.counts[..chunk].iter().sum();
        &self.rows[before..before + self.counts[chunk]]
    }
}

fn any_bytes(choices: &mut Choices) -> Vec<u8> {
    (0..choices.below(5)).map(|_| choices.below(256) as u8).collect()
}

/// Whether each record among `rows` has an id that is above those before it.
fn in_order<'a>(rows: impl Iterator<Item = &'a Row>) -> bool {
    let ids: Vec<_> = rows.filter(|(part, ..)| *part == Part::Records).map(|(_, key, _)| record_id(key)).collect();
    ids.iter().all(Result::is_ok) && ids.is_sorted_by(|one, other| one.as_ref().ok() < other.as_ref().ok())
}

/// What has been taken, kept apart from the stage that takes it.
#[derive(Default)]
struct Taken {
    rows: Vec<Row>,
    next: usize,
    /// Of which snapshot the last chunk came: what the whole is held against.
    ended_by: Option<usize>,
}

/// Sends the chunks of two snapshots of one position as the choices say; panics if anything is taken that was not sent,
/// taken twice, or passed off as whole.
pub(super) fn stream(mut choices: Choices) {
    let at = LogId { leader: LeaderId { term: 1, node: NodeId::new(1) }, index: 7 };
    let meta = SnapshotMeta { last_applied: Some(at), ..SnapshotMeta::default() };
    let first = Sent::new(&mut choices, &meta);
    let second = if choices.one_in(2) { first.twin(&mut choices, &meta) } else { Sent::new(&mut choices, &meta) };
    let sent = [first, second];
    let mut stage = Stage::new(StageId(1), meta);
    let mut taken = Taken::default();
    while choices.more() {
        let from = usize::from(choices.one_in(8));
        let chunks = &sent[from].chunks;
        // Mostly the one that is due.
        let index = if choices.one_in(4) { choices.below(chunks.len() as u64 + 2) as usize } else { taken.next };
        let Some(good) = chunks.get(index.min(chunks.len() - 1)) else { unreachable!("there is a last chunk") };
        let bytes = if choices.one_in(4) { damaged(&mut choices, good) } else { good.clone() };
        offer(&mut stage, &mut taken, &sent, (from, index, bytes));
        complete(&stage, &taken, &sent);
    }
}

fn damaged(choices: &mut Choices, good: &Bytes) -> Bytes {
    let mut bytes = good.to_vec();
    let at = choices.below(bytes.len() as u64) as usize;
    match choices.below(4) {
        0 => bytes[at] ^= 1 << choices.below(8),
        1 => bytes.truncate(at),
        2 => bytes.push(choices.below(256) as u8),
        _ => drop(bytes.remove(at)),
    }
    bytes.into()
}

fn offer(stage: &mut Stage, taken: &mut Taken, sent: &[Sent; 2], (from, index, bytes): (usize, usize, Bytes)) {
    let whole = sent[from].chunks.get(index) == Some(&bytes);
    let answer = stage.accept(index as u64, bytes);
    if index < taken.next {
        assert_eq!(answer, Ok(None), "chunk {index} was taken twice");
    } else if index > taken.next || taken.ended_by.is_some() {
        assert!(matches!(answer, Err(SnapshotRefused::Gap { .. })), "chunk {index}: {answer:?}");
    } else if whole && !in_order(taken.rows.iter().chain(sent[from].rows_of(index))) {
        let refused = matches!(answer, Err(SnapshotRefused::Unreadable(_) | SnapshotRefused::Damaged(_)));
        assert!(refused, "chunk {index} is out of order: {answer:?}");
    } else if whole {
        let rows = answer.expect("a good chunk").expect("it was due").rows;
        let rows: Vec<Row> = rows.into_iter().map(|row| (row.part, row.key.to_vec(), row.value.to_vec())).collect();
        assert_eq!(rows, sent[from].rows_of(index), "chunk {index}");
        taken.rows.extend(rows);
        taken.next += 1;
        taken.ended_by = (taken.next == sent[from].chunks.len()).then_some(from);
    } else {
        assert!(answer.is_err(), "chunk {index} was damaged and taken: {answer:?}");
    }
    assert_eq!(stage.next(), taken.next as u64);
}

/// Whole is what the sender of the last chunk has, row by row.
fn complete(stage: &Stage, taken: &Taken, sent: &[Sent; 2]) {
    let complete = stage.complete();
    let expected = taken.ended_by.map(|from| taken.rows == sent[from].rows);
    match expected {
        None => assert!(matches!(complete, Err(SnapshotRefused::Incomplete { .. })), "{complete:?}"),
        Some(true) => assert_eq!(complete, Ok(())),
        Some(false) => assert!(matches!(complete, Err(SnapshotRefused::Mismatch { .. })), "{complete:?}"),
    }
}

/// Damages the rows of a state, under checksums that hold, and loads what is left.
pub(super) fn load(mut choices: Choices) {
    let mut rows = state();
    while choices.more() {
        let records: Vec<RecordId> = rows.records.keys().copied().collect();
        let others: Vec<_> = rows.rows.keys().cloned().collect();
        let place = choices.below((records.len() + others.len()) as u64 + 1) as usize;
        if let Some(id) = records.get(place) {
            let record = rows.records.remove(id).expect("listed");
            if !choices.one_in(4) {
                let moved = moved(&mut choices, *id);
                let body = changed(&mut choices, &record[..record.len() - 4]);
                let mut bytes = body.to_vec();
                bytes.extend(crate::format::record::checksum(moved, &body).to_le_bytes());
                rows.records.insert(moved, bytes.into());
            }
        } else if let Some(key) = others.get(place - records.len()) {
            let row = rows.rows.remove(key).expect("listed");
            if !choices.one_in(4) {
                let moved = (key.0, changed(&mut choices, &key.1));
                rows.rows.insert(moved, seal(&changed(&mut choices, &row[4..])));
            }
        }
    }
    if let Ok(mut state) = State::load(&rows) {
        let counters = state.counters();
        state.save(&mut rows).expect("rows in memory");
        let again = State::load(&rows).unwrap_or_else(|error| panic!("a state cannot be loaded again: {error}"));
        assert_eq!(again.counters(), counters);
    }
}

fn moved(choices: &mut Choices, id: RecordId) -> RecordId {
    match choices.below(8) {
        0 => RecordId { revision: id.revision.next(), ..id },
        1 => RecordId { ordinal: id.ordinal + 1, ..id },
        _ => id,
    }
}

/// Mostly as it was.
fn changed(choices: &mut Choices, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = choices.below(bytes.len() as u64 + 1) as usize;
    match choices.below(6) {
        0 if at < bytes.len() => bytes[at] = choices.below(256) as u8,
        1 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(1),
        2 if at < bytes.len() => drop(bytes.remove(at)),
        3 => bytes.insert(at, choices.below(256) as u8),
        _ => {}
    }
    bytes
}

/// The rows of a small state with something of everything in it.
fn state() -> MemRows {
    let mut rows = MemRows::default();
    let mut state = State::load(&rows).expect("no rows are the empty state");
    let mut index = 0;
    let mut apply = |stamp, command| {
        index += 1;
        let at = LogId { leader: LeaderId { term: 1, node: NodeId::new(1) }, index };
        let proposal = Proposal { origin: NodeId::new(1), wall_ms: 1, stamp, command };
        state.apply(&mut rows as &mut dyn Rows, at, &proposal).expect("rows in memory");
    };
    let put = |key: &'static str, value: &'static str, lease| Op::Put {
        key: Bytes::from_static(key.as_bytes()),
        value: Bytes::from_static(value.as_bytes()),
        lease,
        prev: false,
    };
    let txn = |then| Command::Txn(Txn { then, ..Txn::default() });
    use crate::command::Attach::{Forever, Lease, Ttl};
    apply(None, Command::ClientOpen { ttl_ms: 1000 });
    apply(None, Command::LeaseGrant { ttl_ms: 1000 });
    let stamp = |seq| Some(Stamp { client: ClientId::new(1), seq, low: 0 });
    apply(stamp(1), txn(vec![put("a", "1", Forever), put("b", "1", Ttl { ttl_ms: 5 })].into()));
    apply(stamp(2), txn(vec![put("a", "2", Lease(crate::types::LeaseId::new(2)))].into()));
    apply(None, Command::Resolve { client: ClientId::new(1), seq: 4 });
    apply(None, txn(vec![Op::Delete { keys: KeyRange::single(Bytes::from_static(b"b")), prev: false }].into()));
    apply(None, txn(vec![put("b", "3", Forever), put("c", "1", Forever)].into()));
    apply(None, Command::Compact { floor: Revision::new(2) });
    state.save(&mut rows).expect("rows in memory");
    rows
}
