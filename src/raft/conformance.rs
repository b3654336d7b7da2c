//! The consensus library's own conformance suite, on both engines with both drivers.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::log_store::LogStore;
use super::state_store::StateMachine;
use super::types::Config;
use crate::rt::worker::{Drive, Driver};
use crate::storage::disk::{Disk, MemDisk};
use crate::storage::{self, Opened, state_engine};
use crate::types::NodeId;

struct Engines {
    how: fn() -> Drive,
}

impl StoreBuilder<Config, LogStore, StateMachine, (Driver, Driver)> for Engines {
    async fn build(&self) -> Result<((Driver, Driver), LogStore, StateMachine), StorageError<Config>> {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
        let opened = storage::open(disk.clone(), "node", || (NodeId::new(1), 1)).expect("a new disk opens");
        let Opened { identity, log, log_engine, state_db, poison } = opened;
        let (state, state_engine) =
            state_engine::open(state_db, identity.node, log.clone(), poison, &disk).expect("an empty state opens");
        let drivers = (
            log.start(log_engine, (self.how)()).expect("starts"),
            state.start(state_engine, (self.how)()).expect("starts"),
        );
        let machine = StateMachine::new(state, log.clone(), Arc::new(|_| {}));
        Ok((drivers, LogStore::new(log), machine))
    }
}

#[test]
fn both_engines_on_threads_keep_the_librarys_contract() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(Suite::test_all(Engines { how: || Drive::Thread })).expect("the suite passes");
}

#[test]
fn both_engines_inline_keep_the_librarys_contract() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(Suite::test_all(Engines { how: || Drive::Inline })).expect("the suite passes");
}
