//! The simulated cluster.

pub(crate) mod net;
mod wire;

pub use self::wire::Wire;
