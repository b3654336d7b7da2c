//! Recipes: what is built of keys, leases, transactions and watches, and of nothing else.
//!
//! Each could be deleted without touching anything below. What they share:
//!
//! * [`claim`]: standing in a line. A place is a key that hangs on a lease; the line is ordered by when the keys were made.
//! * [`hold`]: what a granted claim is worth on this side, and for how long.

pub(crate) mod claim;
pub(crate) mod hold;
pub(crate) mod lock;
