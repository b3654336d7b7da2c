//! Nodes that leave.

use std::time::Duration;

use super::support::{Group, Mischief, eventually};
use crate::api::cluster::Health;
use crate::rt::{self, Instant};
use crate::{Error, StartError};

#[tokio::test(start_paused = true)]
async fn a_leader_that_shuts_down_hands_over_before_anybody_misses_it() {
    for seed in 1..6 {
        let mut group = Group::started(3, seed).await;
        let leader = group.leader().await;
        group.node(leader).set("k", &1).await.expect("written");
        let (others, started) = ((leader + 1) % 3, Instant::now());
        group.stop(leader).await;
        group.leader().await;
        assert!(started.elapsed() < Duration::from_millis(200), "seed {seed}: {:?}", started.elapsed());
        group.node(others).set("k", &2).await.expect("written");
        assert!(started.elapsed() < Duration::from_millis(200), "seed {seed}: {:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_shutdown_every_operation_says_so_and_the_directory_can_be_opened_at_once() {
    let mut group = Group::started(3, 1).await;
    for n in 0..3 {
        let node = group.node(n).clone();
        let inbound = node.inbound();
        node.set("k", &1).await.expect("written");
        group.stop(n).await;
        let stopped =
            |outcome: Result<(), Error>| assert!(matches!(outcome, Err(Error::Stopped { .. })), "{outcome:?}");
        stopped(node.set("k", &2).await.map(drop));
        stopped(node.get::<i32>("k").await.map(drop));
        stopped(node.get::<i32>("k").stale().await.map(drop));
        stopped(node.delete("k").await.map(drop));
        stopped(node.remaining("k").await.map(drop));
        stopped(node.ready().await);
        node.shutdown().await.expect("once more is no error");
        let status = node.status();
        assert!(matches!(status.health, Health::Stopped(_)) && !status.is_leader, "{status:?}");
        assert!(inbound.is_closed(), "the host's server is not told to stop listening");
        group.start(n).await.ready().await.expect("open again");
    }
}

#[tokio::test(start_paused = true)]
async fn two_shutdowns_at_once_both_wait_until_the_files_are_closed() {
    let mut group = Group::started(3, 1).await;
    let node = group.node(0).clone();
    let (one, two) = futures::join!(node.shutdown(), node.shutdown());
    assert_eq!((one, two), (Ok(()), Ok(())));
    group.start(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_under_way_at_a_shutdown_is_answered_and_not_forgotten() {
    let group = Group::started(3, 1).await;
    let leader = group.leader().await;
    let node = group.node(leader).clone();
    node.set("warm", &0).await.expect("written");
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    for n in &others {
        group.network.isolate(group.peers[*n].name.clone());
    }
    let started = Instant::now();
    let stop = async {
        rt::sleep(Duration::from_millis(50)).await;
        node.shutdown().await
    };
    // While that one is under way nothing else is sent.
    let behind = async {
        rt::sleep(Duration::from_millis(10)).await;
        node.set("behind", &1).await
    };
    let (written, behind, stopped) = futures::join!(node.set("k", &1).into_future(), behind, stop);
    stopped.expect("shuts down");
    assert!(matches!(written, Err(Error::Indeterminate { .. })), "{written:?}");
    assert!(matches!(behind, Err(Error::Stopped { .. })), "{behind:?}");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_shuts_down_answers_what_it_has_sent_and_sends_nothing_more() {
    for (seed, leads) in (1..6).flat_map(|seed| [(seed, true), (seed, false)]) {
        let group = Group::started(3, seed).await;
        group.mischief(Mischief { delay_ms_max: 20, ..Mischief::default() });
        let leader = group.leader().await;
        let n = if leads { leader } else { (leader + 1) % 3 };
        let node = group.node(n).clone();
        node.set("warm", &0).await.expect("written");
        let write = |k: usize| {
            let node = node.clone();
            async move {
                let mut written = 0;
                loop {
                    match node.set(format!("k{k}"), &written).await {
                        Ok(_) => written += 1,
                        Err(Error::Stopped { .. }) => return written,
                        Err(error) => panic!("seed {seed}: {error}"),
                    }
                }
            }
        };
        let stop = async {
            rt::sleep(Duration::from_millis(100 + seed)).await;
            node.shutdown().await
        };
        let (written, stopped) = futures::join!(futures::future::join_all((0..20).map(write)), stop);
        assert_eq!(stopped, Ok(()));
        assert!(written.iter().sum::<i32>() > 20, "{written:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_stops_the_node_in_the_background() {
    let mut group = Group::started(3, 1).await;
    let mut last = Some(group.node(2).clone());
    let weak = std::sync::Arc::downgrade(group.node(2).node());
    group.release(2);
    rt::sleep(Duration::from_secs(1)).await;
    assert!(weak.upgrade().is_some_and(|node| node.check_open().is_ok()), "stopped with a handle left");
    drop(last.take());
    eventually("the node is gone, tasks and all", || weak.strong_count() == 0).await;
    group.start(2).await.ready().await.expect("open again");
}

#[tokio::test(start_paused = true)]
async fn a_builder_that_is_dropped_halfway_leaves_no_node_behind() {
    let mut group = Group::new(3, 1).tune(|settings| settings.drive = super::support::slow_disks(1, 5));
    for polls in 1..30 {
        let mut starting = group.builder(0).into_future();
        for _ in 0..polls {
            if futures::poll!(&mut starting).is_ready() {
                break;
            }
            rt::sleep(Duration::from_millis(1)).await;
        }
        drop(starting);
        let started = Instant::now();
        loop {
            match group.builder(0).await {
                Ok(node) => {
                    node.shutdown().await.expect("shuts down");
                    break;
                }
                Err(StartError::InUse { .. }) if started.elapsed() < Duration::from_secs(20) => {
                    rt::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("dropped after {polls} polls: {error}"),
            }
        }
    }
}
