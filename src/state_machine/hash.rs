//! The state's hash: a wrapping sum over everything reachable, so that what is written can be added and what becomes
//! unreachable taken away again, in any order.
//!
//! Each part is the XXH3 of the stored bytes, seeded with the XXH3 of the place where they stand, so equal bytes in two
//! places do not look alike. A small number would not do for a seed: on short inputs XXH3 mixes the seed into the bytes so
//! simply that key 1 of one kind and key 2 of another come out the same. The hash is compared between nodes, so it is as
//! fixed as the formats are.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::RowSpace;
use crate::command::RecordId;

/// Raised by any release that makes another digest of the same rows: members compare only digests of one version. A release
/// that applies or stores something otherwise must do more: members that begin with it at different entries would differ, so
/// it has to begin at one entry of the log.
pub(crate) const STATE_VERSION: u64 = 1;

pub(super) fn record_hash(id: RecordId, stored: &[u8]) -> u64 {
    let mut place = [0; 12];
    place[..8].copy_from_slice(&id.revision.get().to_le_bytes());
    place[8..].copy_from_slice(&id.ordinal.to_le_bytes());
    xxh3_64_with_seed(stored, xxh3_64(&place))
}

pub(super) fn row_hash(space: RowSpace, key: &[u8], stored: &[u8]) -> u64 {
    let mut place = [0; 1 + ROW_KEY_BYTES_MAX];
    place[0] = match space {
        RowSpace::Meta => 1,
        RowSpace::Lease => 2,
        RowSpace::Client => 3,
        RowSpace::Answer => 4,
        RowSpace::Local => unreachable!("local rows are no part of the replicated state"),
    };
    place[1..=key.len()].copy_from_slice(key);
    xxh3_64_with_seed(stored, xxh3_64(&place[..=key.len()]))
}

/// The longest key of a row: client and number.
const ROW_KEY_BYTES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    #[test]
    fn the_hash_of_equal_bytes_depends_on_their_place_and_never_changes_between_releases() {
        let id = |revision, ordinal| RecordId { revision: Revision::new(revision), ordinal };
        let found = [
            record_hash(id(1, 0), b"bytes"),
            record_hash(id(0, 1), b"bytes"),
            record_hash(id(1, 0), &[7; 300]),
            row_hash(RowSpace::Meta, b"key", b"bytes"),
            row_hash(RowSpace::Lease, b"key", b"bytes"),
            row_hash(RowSpace::Client, b"key", b"bytes"),
            row_hash(RowSpace::Answer, b"key", b"bytes"),
            row_hash(RowSpace::Answer, b"kez", b"bytes"),
        ];
        let pinned = [
            0x5fc1_e9c9_419a_958e,
            0x6cbe_ade1_e255_b790,
            0x029e_9e53_860e_d9d6,
            0x71f2_e6b8_9915_59a6,
            0x5dce_869d_c91f_6f79,
            0x62df_d40a_0ec9_2a26,
            0xe1e8_c4dc_03c6_24a1,
            0x47c1_da1e_8ab9_cc4c,
        ];
        assert_eq!(found, pinned, "{found:#x?}");
    }

    #[test]
    fn neighbouring_rows_with_equal_bytes_have_different_hashes() {
        let spaces = [RowSpace::Meta, RowSpace::Lease, RowSpace::Client, RowSpace::Answer];
        let keys = (0..300u64).flat_map(|n| [n.to_be_bytes().to_vec(), u128::from(n).to_be_bytes().to_vec()]);
        let mut hashes: Vec<u64> = keys.flat_map(|key| spaces.map(|space| row_hash(space, &key, b"bytes"))).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 300 * 2 * spaces.len());
    }
}
