//! A node takes its threads with it. Alone in its file: it counts the threads of the process.
#![cfg(target_os = "linux")]

use std::fs;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use quorate::Cluster;

fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        // A thread may end between the listing and the look at its name.
        fs::read_to_string(task.ok()?.path().join("comm")).ok()
    });
    tasks.map(|name| name.trim().to_owned()).collect()
}

fn wait_for(count: usize, what: &str) {
    let start = Instant::now();
    while threads().len() > count {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} left threads behind: {:?}", threads());
        std::thread::yield_now();
    }
}

#[test]
fn a_node_that_was_shut_down_or_dropped_leaves_no_thread_behind() {
    let before = threads().len();
    let dir = tempfile::tempdir().unwrap();
    for orderly in [true, false, true] {
        block_on(async {
            let cluster = Cluster::builder("node-1").storage(dir.path()).await.expect("starts");
            cluster.set("k", &orderly).await.expect("written");
            assert!(threads().len() > before, "the node has threads of its own: {:?}", threads());
            if orderly {
                cluster.shutdown().await.expect("shuts down");
            }
        });
        wait_for(before, if orderly { "a shutdown" } else { "a drop" });
    }
}
