//! What a cluster without any faults does.

use super::support::{Group, eventually};
use crate::Revision;

#[tokio::test(start_paused = true)]
async fn a_write_through_any_node_is_read_from_every_node() {
    let group = Group::started(3, 1).await;
    for n in 0..3 {
        let written = group.node(n).set(format!("k{n}"), &(n as u64)).await.expect("written");
        assert_eq!(written.revision, Revision::new(n as u64 + 1));
        for m in 0..3 {
            let read = group.node(m).get::<u64>(format!("k{n}")).await.expect("read");
            assert_eq!(read.map(|entry| *entry), Some(n as u64), "{n} {m}");
        }
    }
    group.converged().await;
}

#[tokio::test(start_paused = true)]
async fn any_order_of_starts_forms_one_cluster_of_all() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut group = Group::new(3, 1);
        for n in order {
            group.start(n).await;
            crate::rt::sleep(std::time::Duration::from_secs(3)).await;
        }
        group.start_all().await;
        let ids: Vec<_> = group.running().map(|node| node.status().cluster).collect();
        assert!(ids[0].is_some() && ids.iter().all(|id| *id == ids[0]), "{order:?}: {ids:?}");
        eventually("everybody knows the three members", || group.running().all(|node| node.members().len() == 3)).await;
    }
}
