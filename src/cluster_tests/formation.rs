//! How a cluster comes about, and how nodes that do not belong to it are kept out.

use std::collections::BTreeSet;
use std::time::Duration;

use super::support::Group;
use crate::api::cluster::Health;
use crate::rt;
use crate::storage::fault_disk::{FaultDisk, PowerLoss, SplitMix};
use crate::{Cluster, Error, Formation, FormationError, Peer, StartError};

fn refusal(node: &Cluster) -> impl Future<Output = FormationError> + use<> {
    let node = node.clone();
    async move {
        match node.ready().await {
            Err(Error::Formation(refused)) => refused,
            other => panic!("{node:?} should be refused: {other:?}, {:?}", node.status()),
        }
    }
}

fn clusters(group: &Group) -> BTreeSet<Option<u128>> {
    group.running().map(|node| node.status().cluster.map(|id| id.get())).collect()
}

#[tokio::test(start_paused = true)]
async fn a_formation_that_a_power_failure_interrupts_anywhere_ends_in_one_cluster_all_the_same() {
    let mut interrupted = 0;
    for victim in [0, 1] {
        // Every operation at first, where the directory is made and the promises are given, then ever fewer.
        let points = (0..40).step_by(3).chain((40..160).step_by(15));
        for point in points {
            let seed = 1000 * victim as u64 + point;
            let mut group = Group::new(3, seed);
            group.disks[victim].die_at(point);
            let mut rng = SplitMix(seed);
            for n in 0..3 {
                match group.builder(n).await {
                    Ok(node) => group.adopt(n, node),
                    Err(StartError::Io { .. }) if n == victim => {}
                    Err(error) => panic!("seed {seed}, node {n}: {error}"),
                }
            }
            rt::sleep(Duration::from_millis(rng.below(1500))).await;
            interrupted += u64::from(group.disks[victim].has_lost_power());
            let mode = [PowerLoss::DropAll, PowerLoss::KeepAll, PowerLoss::Subset(50)][rng.below(3) as usize];
            group.power_loss(victim, mode);
            group.start_all().await;
            assert_eq!(clusters(&group).len(), 1, "seed {seed}: {:?}", clusters(&group));
            group.node(victim).set("k", &seed).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            group.converged().await;
        }
    }
    assert!(interrupted > 20, "only {interrupted} formations were interrupted");
}

#[tokio::test(start_paused = true)]
async fn a_lone_node_that_a_power_failure_interrupts_anywhere_becomes_one_cluster_all_the_same() {
    let mut interrupted = 0;
    for point in (0..40).chain((40..120).step_by(4)) {
        let mut group = Group::new(1, point).single();
        group.disks[0].die_at(point);
        let mut formed = None;
        if let Ok(node) = group.builder(0).await {
            group.adopt(0, node.clone());
            let written = node.set("k", &point).timeout(Duration::from_secs(2)).await;
            formed = written.is_ok().then(|| node.status().cluster);
        }
        interrupted += u64::from(group.disks[0].has_lost_power() && formed.is_none());
        group.power_loss(0, PowerLoss::Prefix);
        group.start_all().await;
        group.node(0).set("k", &point).await.unwrap_or_else(|error| panic!("point {point}: {error}"));
        let cluster = group.node(0).status().cluster;
        assert!(formed.is_none_or(|before| before == cluster), "point {point}: {formed:?}, and now {cluster:?}");
    }
    assert!(interrupted > 10, "only {interrupted} formations were interrupted");
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_directory_was_emptied_is_told_so_and_kept_out() {
    for (wiped, down) in [(0, None), (1, None), (0, Some(1)), (2, Some(0))] {
        let mut group = Group::started(3, 7).await;
        group.node(0).set("k", &1).await.expect("written");
        group.converged().await;
        if let Some(down) = down {
            group.stop(down).await;
        }
        group.power_loss(wiped, PowerLoss::DropAll);
        group.disks[wiped] = FaultDisk::new(99);
        let node = group.start(wiped).await;
        let refused = refusal(&node).await;
        assert!(matches!(refused, FormationError::DataLost { .. }), "{wiped} {down:?}: {refused:?}");
        assert!(matches!(node.set("k", &2).await, Err(Error::Formation(_))));
        assert!(matches!(node.status().health, Health::Stopped(_)), "{:?}", node.status());
        if down.is_none() {
            let other = (wiped + 1) % 3;
            group.node(other).set("k", &3).await.expect("the two others go on");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_with_different_lists_say_so_and_form_nothing() {
    let mut group = Group::new(3, 7);
    let all = group.peers.clone();
    for n in 0..3 {
        let list = if n == 1 { all[..2].to_vec() } else { all.clone() };
        let node = group.builder(n).formation(Formation::Peers(list)).await.expect("starts");
        group.adopt(n, node);
    }
    for n in 0..3 {
        let refused = refusal(group.node(n)).await;
        let FormationError::DifferentPeers { ours, theirs, .. } = &refused else { panic!("{n}: {refused:?}") };
        assert_ne!(ours, theirs);
    }
    assert!(group.running().all(|node| node.members().is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_refused_promises_nothing_to_those_who_come_later() {
    let mut group = Group::new(3, 7);
    let all = group.peers.clone();
    let wrong = group.builder(0).formation(Formation::Peers(all[..2].to_vec())).await.expect("starts");
    group.adopt(0, wrong);
    for n in 1..3 {
        group.start(n).await;
    }
    for n in 0..3 {
        refusal(group.node(n)).await;
    }
    // The one with the wrong list is mended; the others have to be started again too, and until then nothing is formed.
    group.stop(0).await;
    group.start(0).await;
    rt::sleep(Duration::from_secs(5)).await;
    assert!(group.running().all(|node| node.members().is_empty()), "{:?}", group.node(0).members());
    for n in 1..3 {
        group.stop(n).await;
    }
    group.start_all().await;
    assert_eq!(clusters(&group).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_with_the_directory_of_another_cluster_is_told_so() {
    let mut group = Group::started(3, 7).await;
    let mut other = Group::started(3, 8).await;
    group.stop(2).await;
    other.stop(2).await;
    group.disks[2] = other.disks[2].clone();
    let stranger = group.start(2).await;
    let refused = refusal(&stranger).await;
    let FormationError::OtherCluster { ours, theirs, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(Some(ours), other.node(0).status().cluster);
    assert_eq!(Some(theirs), group.node(0).status().cluster);
    group.node(0).set("k", &1).await.expect("the two others go on");
}

#[tokio::test(start_paused = true)]
async fn a_fresh_node_beside_one_of_another_cluster_forms_nothing() {
    let mut other = Group::started(3, 8).await;
    other.stop(1).await;
    let mut group = Group::new(3, 7);
    group.disks[1] = other.disks[1].clone();
    for n in 0..3 {
        group.start(n).await;
    }
    for n in [0, 2] {
        let refused = refusal(group.node(n)).await;
        assert!(matches!(refused, FormationError::DataLost { .. }), "{n}: {refused:?}");
    }
}

/// Two processes under the former's name, each with a directory of its own, and the network passes from one to the other
/// in the middle of it all.
#[tokio::test(start_paused = true)]
async fn two_formations_at_once_never_form_two_clusters_that_both_take_writes() {
    let mut won = BTreeSet::new();
    for switch_ms in (0..400).step_by(25) {
        let mut group = Group::new(3, switch_ms);
        group.mischief(super::support::Mischief { delay_ms_max: 15, ..Default::default() });
        let second_disk = FaultDisk::new(switch_ms + 1000);
        for n in [1, 2] {
            group.start(n).await;
        }
        let first = group.start(0).await;
        rt::sleep(Duration::from_millis(switch_ms)).await;
        // The name now leads to another process; the first one can still speak, as one whose address was taken can.
        let second = group.builder_keeping_the_old(0).disk(second_disk.mount()).await.expect("starts");
        let (one, two) = futures::join!(
            first.set("first", &1).timeout(Duration::from_secs(8)).into_future(),
            second.set("second", &2).timeout(Duration::from_secs(8)).into_future(),
        );
        let acked: Vec<&str> = [("first", one.is_ok()), ("second", two.is_ok())]
            .into_iter()
            .filter_map(|(key, ok)| ok.then_some(key))
            .collect();
        assert!(acked.len() < 2 || first.status().cluster == second.status().cluster, "{switch_ms}: both took writes");
        // Read where it was written: to the others the former's name now means the second process, whoever leads them.
        for (key, node) in [("first", &first), ("second", &second)].into_iter().filter(|(key, _)| acked.contains(key)) {
            let found = node.get::<i32>(key).await;
            assert!(matches!(found, Ok(Some(_))), "{switch_ms}: {key} was acknowledged: {found:?}");
        }
        won.extend(acked);
    }
    assert_eq!(won.len(), 2, "only one of the two ever formed a cluster: {won:?}");
}

#[tokio::test(start_paused = true)]
async fn the_directory_wins_over_a_list_that_has_changed() {
    let mut group = Group::started(3, 7).await;
    group.node(0).set("k", &1).await.expect("written");
    group.stop(1).await;
    let alone = vec![group.peers[1].clone(), Peer::new("node-9", "")];
    let node = group.builder(1).formation(Formation::Peers(alone)).await.expect("starts");
    group.adopt(1, node.clone());
    node.ready().await.expect("it is still a member of its cluster");
    assert_eq!(node.members().len(), 3);
    assert_eq!(node.get::<i32>("k").await.expect("read").map(|entry| *entry), Some(1));
}

#[tokio::test(start_paused = true)]
async fn frames_to_a_name_that_now_means_another_node_do_not_spin() {
    let mut group = Group::started(3, 7).await;
    let leader = group.leader().await;
    let wiped = (leader + 1) % 3;
    group.power_loss(wiped, PowerLoss::DropAll);
    group.disks[wiped] = FaultDisk::new(99);
    group.start(wiped).await;
    let node = group.node(leader).clone();
    for i in 0..20 {
        node.set("k", &i).await.expect("written");
    }
    let before = group.frames();
    rt::sleep(Duration::from_secs(10)).await;
    let each_second = (group.frames() - before) / 10;
    assert!(each_second < 200, "{each_second} frames in each second of silence");
}
