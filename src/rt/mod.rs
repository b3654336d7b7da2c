//! The only door to time, tasks, threads and chance.
//!
//! Nothing else in the crate names tokio's timers or `spawn`, `std::thread`, a random generator or a system clock; clippy
//! and `tests/house.rs` hold it to that. So one folder decides what time is: today the machine's, and in a simulation the
//! simulator's.
//!
//! * [`clock`]: the monotonic clock for timeouts, the clock that counts suspend for leases and sessions, and the wall clock
//!   that is only ever shown to people.
//! * [`task`] and [`runtime`]: named tasks whose panics are kept, and the runtime of one node.
//! * [`watch`]: a value whose watchers are woken in the order in which they began to wait.
//! * [`random`]: identifiers and nonces.
//! * [`marks`]: that something worth testing has happened, for tests. [`mutant`]: what tests must notice.
//! * [`consensus`]: all of that for the consensus library.
//! * [`sim`]: simulated processes that all of it belongs to, in tests and with the feature of that name. [`scope`] is the one
//!   place where the rest of this folder asks for it.
//! * [`worker`] and [`watermark`]: one consumer of a queue on a thread or on a task, and how far it has got.
//!
//! What a task does, and when it ends, is decided by whoever spawns it: nothing here retries, restarts or joins by itself.

// This folder is what the bans in `.clippy.toml` protect.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub(crate) mod clock;
pub(crate) mod consensus;
pub(crate) mod marks;
mod mutant;
pub(crate) mod random;
pub(crate) mod runtime;
#[cfg(not(any(test, feature = "sim")))]
mod scope;
#[cfg(any(test, feature = "sim"))]
pub(crate) mod sim;
pub(crate) mod task;
pub(crate) mod watch;
pub(crate) mod watermark;
pub(crate) mod worker;

pub use clock::WallTime;
pub(crate) use clock::{Instant, boot_now, sleep, sleep_until, timeout, timeout_at, wall_ms, wall_time};
pub(crate) use consensus::Rt;
pub(crate) use marks::{Mark, mark};
pub(crate) use mutant::{hash_order, mutant};
pub(crate) use random::{random_u64, random_u128};
pub(crate) use runtime::{NodeRuntime, RuntimeKind};
#[cfg(any(test, feature = "sim"))]
use sim::scope;
pub(crate) use task::{Task, spawn};

pub(crate) use tokio::task::yield_now;
