//! The state's hash: a wrapping sum over everything reachable, so that what is written can be added and what becomes
//! unreachable taken away again, in any order.
//!
//! Each part is the XXH3 of the stored bytes, seeded with where they stand: equal bytes in two places do not look alike,
//! and a pair of them does not cancel out. It is compared between nodes, so it is as fixed as the formats are.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::RowSpace;
use crate::command::RecordId;

pub(super) fn record_hash(id: RecordId, stored: &[u8]) -> u64 {
    let mut place = [0; 12];
    place[..8].copy_from_slice(&id.revision.get().to_le_bytes());
    place[8..].copy_from_slice(&id.ordinal.to_le_bytes());
    xxh3_64_with_seed(stored, xxh3_64(&place))
}

pub(super) fn row_hash(space: RowSpace, key: &[u8], stored: &[u8]) -> u64 {
    let tag = match space {
        RowSpace::Meta => 1,
        RowSpace::Lease => 2,
        RowSpace::Client => 3,
        RowSpace::Answer => 4,
        RowSpace::Local => unreachable!("local rows are no part of the replicated state"),
    };
    xxh3_64_with_seed(stored, xxh3_64_with_seed(key, tag))
}
