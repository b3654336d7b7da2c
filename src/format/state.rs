//! The tables of `state.redb`.
//!
//! Every table maps bytes to bytes, so that one that has been set aside can be emptied without knowing what it held.
//!
//! | table | key | value |
//! |---|---|---|
//! | `records` | the first one's revision, 8 bytes big-endian; its ordinal, 4 | [`format::block`](crate::format::block) |
//! | `meta` `lease` `client` `answer` | as the state machine likes | as the state machine likes |
//! | `local` | as the state machine likes | what it keeps for this node alone |
//! | `position` | [`APPLIED`] or [`SNAPSHOT`] | [`SnapshotMeta`](crate::format::snapshot::SnapshotMeta) |
//!
//! A snapshot on its way in fills the same tables under the prefix `staged_`. Tables that have been replaced, and
//! stages that were given up, are called `old_<number>_<name>` until they have been emptied.

use crate::command::RecordId;
use crate::format::snapshot::Part;
use crate::format::wire::DecodeError;
use crate::types::Revision;

/// Where this node stands. Not part of the replicated state, and not replaced with it.
pub(crate) const POSITION: &str = "position";

/// Position and membership as of the last applied entry.
pub(crate) const APPLIED: &[u8] = b"applied";
/// The meta of the snapshot last built or installed.
pub(crate) const SNAPSHOT: &[u8] = b"snapshot";

const STAGED: &str = "staged_";
const OLD: &str = "old_";

/// The live table of a part.
pub(crate) const fn live_table(part: Part) -> &'static str {
    match part {
        Part::Records => "records",
        Part::Meta => "meta",
        Part::Lease => "lease",
        Part::Client => "client",
        Part::Answer => "answer",
        Part::Local => "local",
    }
}

/// The table in which a part of an arriving snapshot is collected.
pub(crate) const fn staged_table(part: Part) -> &'static str {
    match part {
        Part::Records => "staged_records",
        Part::Meta => "staged_meta",
        Part::Lease => "staged_lease",
        Part::Client => "staged_client",
        Part::Answer => "staged_answer",
        Part::Local => "staged_local",
    }
}

/// What a table is called once its content is no longer wanted.
pub(crate) fn old_table(number: u64, part: Part) -> String {
    format!("{OLD}{number}_{}", live_table(part))
}

pub(crate) fn is_staged(table: &str) -> bool {
    table.starts_with(STAGED)
}

/// The number in the name of a table that is to be emptied; `None` for every other table.
pub(crate) fn old_number(table: &str) -> Option<u64> {
    table.strip_prefix(OLD)?.split_once('_')?.0.parse().ok()
}

/// Sorts as the id does.
pub(crate) fn record_key(id: RecordId) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&id.revision.get().to_be_bytes());
    key[8..].copy_from_slice(&id.ordinal.to_be_bytes());
    key
}

pub(crate) fn record_id(key: &[u8]) -> Result<RecordId, DecodeError> {
    let key: &[u8; 12] =
        key.try_into().map_err(|_| DecodeError::TooLarge { what: "record key", size: key.len() as u64, limit: 12 })?;
    let (revision, ordinal) = key.split_at(8);
    let revision = u64::from_be_bytes(revision.try_into().expect("a key of 12 bytes starts with 8"));
    let ordinal = u32::from_be_bytes(ordinal.try_into().expect("a key of 12 bytes ends in 4"));
    Ok(RecordId { revision: Revision::new(revision), ordinal })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_keys_sort_as_their_ids_and_read_back() {
        let id = |revision, ordinal| RecordId { revision: Revision::new(revision), ordinal };
        let ids = [id(0, 0), id(1, 0), id(1, 255), id(1, 256), id(2, 0), id(1 << 40, 7), id(u64::MAX, u32::MAX)];
        let keys = ids.map(record_key);
        assert!(keys.is_sorted(), "{keys:?}");
        assert_eq!(keys.map(|key| record_id(&key).unwrap()), ids);
        assert_eq!(record_key(id(0x0102, 3)), [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3]);
        assert!(record_id(&[0; 11]).is_err());
    }

    #[test]
    fn names_of_tables_do_not_change_and_do_not_collide() {
        assert_eq!(Part::ALL.map(live_table), ["records", "meta", "lease", "client", "answer", "local"]);
        assert_eq!(old_table(7, Part::Lease), "old_7_lease");
        for part in Part::ALL {
            assert_eq!(staged_table(part), format!("staged_{}", live_table(part)));
            assert_eq!(old_number(&old_table(12, part)), Some(12));
            assert!(is_staged(staged_table(part)) && !is_staged(live_table(part)) && !is_staged(POSITION));
            assert_eq!(
                (old_number(live_table(part)), old_number(staged_table(part)), old_number(POSITION)),
                (None, None, None)
            );
        }
    }
}
