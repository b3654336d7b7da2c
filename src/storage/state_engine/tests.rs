use std::sync::Mutex;

use super::super::disk::MemDisk;
use super::super::support::{self, Node, Parts, ask, at, compact, entry, history, moment, put, replay, run, settle};
use super::*;

#[test]
fn a_replayed_history_is_the_same_on_disk_as_in_memory() {
    let entries = history(60, 30);
    let model = replay(&entries);
    run(async {
        let node = Node::open(Arc::new(MemDisk::new())).unwrap();
        for (i, entry) in entries.iter().enumerate() {
            node.apply(&[entry.clone()]).await.unwrap();
            assert_eq!(moment(&node.store.view()).unwrap(), model[i], "after entry {i}");
        }
    });
}
