//! Targets for a fuzzer: plain functions of bytes that panic when something is wrong.
//!
//! Ordinary tests run them over their corpora and over inputs mutated from these (`tests/fuzz_targets.rs`); the crate in
//! `tests/fuzz` hands them to libFuzzer. No promise holds for anything in here.

mod decode;
mod snapshot;

use crate::choices::Choices;
use crate::{state_machine, storage, watch_hub};

/// One thing to be fuzzed.
#[derive(Copy, Clone, Debug)]
pub struct Target {
    /// Also the name of its corpus.
    pub name: &'static str,
    /// Panics if `data` shows a fault.
    pub run: fn(data: &[u8]),
}

/// Every target.
pub const TARGETS: [Target; 7] = [
    Target { name: "wire_decode", run: wire_decode },
    Target { name: "storage_decode", run: storage_decode },
    Target { name: "state_machine", run: state_machine },
    Target { name: "log_engine", run: log_engine },
    Target { name: "watch_hub", run: watch_hub },
    Target { name: "snapshot_stream", run: snapshot_stream },
    Target { name: "state_load", run: state_load },
];

/// Frames and what they carry: bytes are refused, or are the one spelling of what they say.
pub fn wire_decode(data: &[u8]) {
    decode::run(&decode::WIRE, data);
}

/// Rows and files: as [`wire_decode`].
pub fn storage_decode(data: &[u8]) {
    decode::run(&decode::STORAGE, data);
}

/// Commands, however they are batched, restarted, restored and swept, come to what a plain model says.
pub fn state_machine(data: &[u8]) {
    state_machine::tests::random::run("bytes", Choices::from_bytes(data), &mut Default::default());
}

/// The log is what the same requests make of a map, also after a power failure.
pub fn log_engine(data: &[u8]) {
    storage::tests::random::run("bytes", Choices::from_bytes(data), &mut Default::default());
}

/// Every watcher finds what a plain list says.
pub fn watch_hub(data: &[u8]) {
    watch_hub::tests::random::run("bytes", Choices::from_bytes(data), &mut Default::default());
}

/// A snapshot whose chunks are lost, doubled, reordered, torn, damaged or mixed with another's is taken whole or not at all.
pub fn snapshot_stream(data: &[u8]) {
    snapshot::stream(Choices::from_bytes(data));
}

/// Rows that are not quite those of a state are refused, or make one that can be written down again.
pub fn state_load(data: &[u8]) {
    snapshot::load(Choices::from_bytes(data));
}
