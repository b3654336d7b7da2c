//! Whole clusters in one process, on disks and networks that fail on demand, mostly on a paused clock.
//!
//! One file per thing that can go wrong; `support.rs` holds the cluster they all use.

mod basics;
mod determinism;
mod exactly_once;
mod formation;
mod known_bugs;
mod limits;
mod power;
mod propose;
mod queue;
mod read;
mod restart;
mod scenarios;
mod shutdown;
mod snapshot;
mod supervise;
mod support;
mod swarm;
mod telling;
mod transactions;
