//! The oracles against histories that are right, that are wrong in one known way, and against brute force.

mod linearizable;
mod order;
mod record;
mod world;
