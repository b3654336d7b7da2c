//! Every byte that outlives the process or leaves it.
//!
//! Each format starts with a version of its own and is pinned by golden bytes in its tests. Integers are little-endian
//! base-128 varints unless a line says otherwise; byte strings carry their length. Decoding never allocates more than the
//! input justifies, refuses what it does not know, and refuses bytes left over.

pub(crate) mod block;
pub(crate) mod claim;
pub(crate) mod command;
pub(crate) mod identity;
pub(crate) mod keys;
pub(crate) mod log;
pub(crate) mod log_items;
pub(crate) mod message;
pub(crate) mod ordered;
pub(crate) mod parts;
pub(crate) mod queue;
pub(crate) mod record;
pub(crate) mod rows;
pub(crate) mod snapshot;
pub(crate) mod state;
pub(crate) mod tree;
pub(crate) mod wire;
