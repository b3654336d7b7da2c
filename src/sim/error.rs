//! What a test can do wrong with its simulation.

use std::time::Duration;

/// Why something was not done to the simulated world.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// No host was given this name.
    #[error("there is no host {name:?}; there are: {known}")]
    UnknownHost {
        /// The name.
        name: String,
        /// All names, separated by commas.
        known: String,
    },
    /// Another host has this name, in this call or an earlier one.
    #[error("there is a host {name:?} already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A cluster was asked for with no host, or with more than a formation takes.
    #[error("a cluster of {count} hosts was asked for; it must have 1 to {limit}")]
    HostCount {
        /// The hosts asked for.
        count: usize,
        /// The most that are possible.
        limit: usize,
    },
    /// The host runs: end it first, with [`kill`](super::Sim::kill) or [`crash`](super::Sim::crash).
    #[error("{name:?} runs: end it first with kill or crash")]
    Running {
        /// The host.
        name: String,
    },
    /// The host does not run: start it, with [`restart`](super::Sim::restart).
    #[error("{name:?} does not run ({why}): start it with restart")]
    NotRunning {
        /// The host.
        name: String,
        /// How it ended.
        why: String,
    },
    /// The host runs and has no open [`Cluster`](crate::Cluster): it has not got there yet, or has let go of it.
    #[error("{name:?} has no open cluster now")]
    NotOpen {
        /// The host.
        name: String,
    },
    /// A clock was to run at an impossible rate.
    #[error("a clock cannot drift by {ppm} ppm; it must be from -500000 to 500000")]
    Drift {
        /// The drift asked for.
        ppm: i32,
    },
    /// What was waited for did not come true.
    #[error("after {waited:?} there is still not: {what}")]
    Waited {
        /// What was waited for.
        what: String,
        /// How long, in virtual time.
        waited: Duration,
    },
}
