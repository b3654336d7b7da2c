//! The oracles against histories that are right, that are wrong in one known way, and against brute force.

mod black_box;
mod cluster;
mod evidence;
mod lease;
mod linearizable;
mod lock;
mod order;
mod record;
mod watch;
mod world;
