//! Recipes: what is built of keys, leases, transactions and watches, and of nothing else.
//!
//! Each could be deleted without touching anything below. What they share:
//!
//! * [`claim`]: standing in a line. A place is a key that hangs on a lease; the line is ordered by when the keys were made.
//! * [`attempt`]: taking a place and waiting for its turn, without leaving anything behind.
//! * [`hold`]: what a granted claim is worth on this side, and for how long.
//! * [`guard`]: the verbs of what is held.
//! * [`inspect`]: who stands in a line.
//!
//! The recipes without claims change one key until nobody came in between: [`crate::api::update`].

pub(crate) mod attempt;
pub(crate) mod barrier;
pub(crate) mod claim;
pub(crate) mod counter;
pub(crate) mod election;
pub(crate) mod guard;
pub(crate) mod hold;
pub(crate) mod inspect;
pub(crate) mod latch;
pub(crate) mod lock;
pub(crate) mod queue;
pub(crate) mod registry;
pub(crate) mod rwlock;
pub(crate) mod semaphore;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tree;
