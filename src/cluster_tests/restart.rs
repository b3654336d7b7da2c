//! Nodes that stop, or lose their power, and come back.

use std::time::Duration;

use super::support::{Group, eventually};
use crate::storage::disk::File;
use crate::storage::fault_disk::PowerLoss;
use crate::{Formation, Peer, Revision, StartError};

#[tokio::test(start_paused = true)]
async fn all_nodes_come_back_from_a_stop_or_a_power_failure_with_everything_and_go_on() {
    for lost in [None, Some(PowerLoss::DropAll), Some(PowerLoss::KeepAll), Some(PowerLoss::Subset(50))] {
        let mut group = Group::started(3, 5).await;
        let ids: Vec<_> = group.running().map(|node| node.status().id).collect();
        let cluster = group.node(0).status().cluster;
        for i in 1..=20u64 {
            group.node(i as usize % 3).set("k", &i).await.expect("written");
        }
        for n in 0..3 {
            match lost {
                Some(mode) => group.power_loss(n, mode),
                None => group.stop(n).await,
            }
        }
        group.start_all().await;
        assert_eq!(ids, group.running().map(|node| node.status().id).collect::<Vec<_>>(), "{lost:?}");
        assert_eq!(group.node(0).status().cluster, cluster);
        for n in 0..3 {
            let read = group.node(n).get::<u64>("k").await.expect("read").expect("there");
            assert_eq!((*read, read.modified, read.version), (20, Revision::new(20), 20), "{lost:?}, node {n}");
        }
        let next = group.node(1).set("k", &21).await.expect("written");
        assert_eq!(next.revision, Revision::new(21), "{lost:?}");
        group.converged().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_node_comes_back_while_the_others_write_on() {
    for victim in 0..3 {
        let mut group = Group::started(3, 5).await;
        for round in 0..3u64 {
            match round % 2 {
                0 => group.power_loss(victim, PowerLoss::DropAll),
                _ => group.stop(victim).await,
            }
            for i in 0..10 {
                let n = (victim + 1 + i % 2) % 3;
                group.node(n).set(format!("k{i}"), &round).await.expect("written by the others");
            }
            group.start_all().await;
            let read = group.node(victim).get::<u64>("k9").await.expect("read");
            assert_eq!(read.map(|entry| *entry), Some(round), "victim {victim}");
        }
        group.converged().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_node_leads_again_at_once() {
    let mut group = Group::new(1, 5).single();
    for round in 0..4u64 {
        let started = crate::rt::Instant::now();
        group.start_all().await;
        assert!(started.elapsed() < Duration::from_millis(100), "round {round}: {:?}", started.elapsed());
        assert_eq!(group.node(0).set("k", &round).await.expect("written").revision, Revision::new(round + 1));
        match round % 2 {
            0 => group.stop(0).await,
            _ => group.power_loss(0, PowerLoss::DropAll),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_may_change_between_two_starts() {
    let mut group = Group::started(3, 5).await;
    for n in 0..3 {
        group.stop(n).await;
    }
    let moved: Vec<Peer> = (1..=3).map(|n| Peer::new(format!("node-{n}"), format!("elsewhere-{n}"))).collect();
    for n in 0..3 {
        let node = group.builder(n).formation(Formation::Peers(moved.clone())).await.expect("starts");
        group.adopt(n, node);
    }
    group.start_all().await;
    eventually("the new addresses", || {
        group.running().all(|node| {
            let members = node.members();
            members.len() == 3 && members.iter().all(|member| member.address.starts_with("elsewhere"))
        })
    })
    .await;
    group.node(0).set("k", &1).await.expect("written");
}

#[tokio::test(start_paused = true)]
async fn a_state_file_from_before_what_the_log_holds_is_refused() {
    let mut group = Group::new(1, 3).single();
    group.start_all().await;
    group.node(0).set("k", &0).await.expect("written");
    group.stop(0).await;
    let old = group.disks[0].bytes(File::State);
    group.start_all().await;
    for i in 1..40 {
        group.node(0).set("k", &i).await.expect("written");
    }
    group.node(0).node().purge_log_now().await;
    group.stop(0).await;
    group.disks[0].put(File::State, old);
    let started = group.builder(0).await.map(|node| node.status());
    assert!(matches!(&started, Err(StartError::DataLost { what, .. }) if what.contains("older")), "{started:?}");
}
