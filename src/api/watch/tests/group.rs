//! The same on every node, across leaders and snapshots.

use super::*;
use crate::api::keys::prefix;

#[tokio::test(start_paused = true)]
async fn a_follower_sees_a_commit_without_waiting_for_a_heartbeat() {
    let heartbeat = Duration::from_millis(300);
    let timing = Timing { heartbeat, election_min: Duration::from_secs(1), election_max: Duration::from_secs(2) };
    let group = three(|settings| settings.timing = timing.clone()).await;
    let leader = group.leader().await;
    let mut watches = Vec::new();
    for node in &group.nodes {
        watches.push(node.watch::<u32>("k").await.unwrap());
    }
    let mut slowest = Duration::ZERO;
    for n in 0..40u32 {
        // An idle cluster, at all phases of the heartbeat.
        rt::sleep(Duration::from_millis(607)).await;
        let write = async {
            group.nodes[leader].set("k", &n).await.unwrap();
            rt::Instant::now()
        };
        let arrivals = futures::future::join_all(watches.iter_mut().map(async |watch| {
            batch(watch).await;
            rt::Instant::now()
        }));
        let (acknowledged, arrivals) = futures::future::join(write, arrivals).await;
        assert!(arrivals[leader] <= acknowledged, "the leader publishes before it answers");
        for arrived in arrivals {
            slowest = slowest.max(if arrived > acknowledged { arrived - acknowledged } else { Duration::ZERO });
        }
    }
    println!("watch_delay heartbeat={heartbeat:?} one_way=1ms after_ack={slowest:?}");
    // One way to the follower, to whole milliseconds of the timer.
    assert!(slowest <= Duration::from_millis(3), "{slowest:?}");
}

#[tokio::test(start_paused = true)]
async fn every_node_delivers_the_same_batches_whoever_wrote() {
    let group = three(|_| {}).await;
    let mut watches = Vec::new();
    for node in &group.nodes {
        watches.push(node.watch::<u32>(prefix("k/")).prev().from(Revision::new(1)).await.unwrap());
    }
    for n in 0..60u32 {
        let node = &group.nodes[n as usize % 3];
        node.set(format!("k/{}", n % 7), &n).await.unwrap();
        if n % 5 == 0 {
            node.delete(format!("k/{}", n % 7)).await.unwrap();
        }
    }
    let mut delivered: Vec<Vec<Batch<u32>>> = Vec::new();
    for watch in &mut watches {
        let mut batches = Vec::new();
        for _ in 0..72 {
            batches.push(batch(watch).await);
        }
        assert_quiet(watch).await;
        delivered.push(batches);
    }
    assert_eq!(delivered[0], delivered[1]);
    assert_eq!(delivered[0], delivered[2]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_on_another_node_where_it_ended_on_the_first() {
    // W5
    let group = three(|_| {}).await;
    let leader = group.leader().await;
    let writer = &group.nodes[leader];
    let mut seen = Vec::new();
    let mut watch = group.nodes[(leader + 1) % 3].watch::<u32>("k").await.unwrap();
    for n in 0..20u32 {
        writer.set("k", &n).await.unwrap();
    }
    for _ in 0..7 {
        seen.extend(contents(&batch(&mut watch).await).into_iter().map(|(_, n)| n.unwrap()));
    }
    group.nodes[(leader + 1) % 3].shutdown().await.unwrap();
    while let Some(item) = item(&mut watch).await {
        match item {
            Ok(batch) => seen.extend(contents(&batch).into_iter().map(|(_, n)| n.unwrap())),
            Err(error) => assert!(matches!(error, Error::Stopped { .. }), "{error:?}"),
        }
    }
    let mut resumed = group.nodes[(leader + 2) % 3].watch::<u32>("k").from(watch.revision().next()).await.unwrap();
    while seen.len() < 20 {
        seen.extend(contents(&batch(&mut resumed).await).into_iter().map(|(_, n)| n.unwrap()));
    }
    assert_eq!(seen, (0..20).collect::<Vec<_>>());
    assert_quiet(&mut resumed).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_deposed_leader_could_not_commit_is_seen_by_nobody() {
    // W13
    let group = three(|settings| settings.timeout = Duration::from_secs(20)).await;
    let old = group.leader().await;
    let mut watches = Vec::new();
    for node in &group.nodes {
        watches.push(node.watch::<u32>("k").await.unwrap());
    }
    group.network.isolate(format!("node-{}", old + 1));
    let lost = {
        let node = group.nodes[old].clone();
        rt::spawn("lost", async move { node.set("k", &666u32).timeout(Duration::from_secs(1)).await })
    };
    assert_quiet(&mut watches[old]).await;
    let others: Vec<usize> = (0..3).filter(|n| *n != old).collect();
    let mut written = Vec::new();
    for n in 0..10u32 {
        written.push((group.nodes[others[n as usize % 2]].set("k", &n).await.unwrap().revision, n));
    }
    let lost = lost.await.unwrap();
    assert!(lost.is_err(), "{lost:?}");
    // The writer, still cut off, is given nothing and told nothing.
    assert_quiet(&mut watches[old]).await;
    group.network.heal();
    for (place, watch) in watches.iter_mut().enumerate() {
        let mut delivered = Vec::new();
        while delivered.len() < written.len() {
            let batch = batch(watch).await;
            delivered.push((batch.revision, *batch.events[0].entry().unwrap().clone()));
        }
        assert_eq!(delivered, written, "on node {place}");
        assert_quiet(watch).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_through_changes_of_leader() {
    let group = three(|_| {}).await;
    let mut watches = Vec::new();
    for node in &group.nodes {
        watches.push(node.watch::<u32>("k").await.unwrap());
    }
    let mut written = Vec::new();
    for round in 0..4u32 {
        let leader = group.leader().await;
        let write = |n| group.nodes[(leader + 1) % 3].set("k", &n).into_future();
        written.push((write(2 * round).await.unwrap().revision, 2 * round));
        group.network.isolate(format!("node-{}", leader + 1));
        written.push((write(2 * round + 1).await.unwrap().revision, 2 * round + 1));
        group.network.heal();
    }
    for watch in &mut watches {
        let mut delivered = Vec::new();
        while delivered.len() < written.len() {
            let batch = batch(watch).await;
            delivered.push((batch.revision, *batch.events[0].entry().unwrap().clone()));
        }
        assert_eq!(delivered, written);
    }
}

/// A follower that was away for so long that it is sent a snapshot: its watchers, and what they had seen.
#[tokio::test(start_paused = true)]
async fn across_a_snapshot_nothing_is_missing_and_nothing_older_comes_again() {
    // W12; etcd#15271
    let group = three(|_| {}).await;
    let leader = group.leader().await;
    let (writer, away) = (&group.nodes[leader], (leader + 1) % 3);
    for n in 0..10u32 {
        writer.set(format!("k/{n}"), &n).await.unwrap();
    }
    let follower = &group.nodes[away];
    let mut pressing = follower.watch::<u32>(prefix("k/")).from(Revision::new(1)).backpressure().prev().await.unwrap();
    let mut coalescing = follower.watch::<u32>(prefix("k/")).from(Revision::new(1)).await.unwrap();
    let mut quiet = follower.watch::<u32>("quiet").await.unwrap();
    for n in 0..10 {
        assert_eq!(contents(&batch(&mut pressing).await), [(format!("k/{n}").as_str(), Some(n))]);
        assert_eq!(contents(&batch(&mut coalescing).await), [(format!("k/{n}").as_str(), Some(n))]);
    }
    assert_quiet(&mut quiet).await;
    group.network.isolate(format!("node-{}", away + 1));
    for n in 10..40u32 {
        writer.set(format!("k/{}", n % 10), &n).await.unwrap();
    }
    writer.delete("k/3").await.unwrap();
    let last = writer.set("k/new", &99u32).await.unwrap().revision;
    writer.node().purge_log_now().await;
    group.network.heal();

    let resync = batch(&mut coalescing).await;
    assert_eq!(resync.kind, BatchKind::Resync, "the snapshot cannot say what happened one by one: {resync:?}");
    assert_eq!(resync.revision, last);
    let expected: Vec<(String, Option<u32>)> =
        [0, 1, 2, 4, 5, 6, 7, 8, 9].map(|n| (format!("k/{n}"), Some(30 + n))).into_iter().collect();
    let expected: Vec<(&str, Option<u32>)> = expected.iter().map(|(key, n)| (key.as_str(), *n)).collect();
    assert_eq!(contents(&resync), [expected, vec![("k/new", Some(99))]].concat());

    // The history came with it.
    for n in 10..40 {
        let batch = batch(&mut pressing).await;
        let right = matches!(&batch.events[..], [Event::Put { entry, prev: Some(prev), .. }]
            if entry.value == n && prev.value == n - 10);
        assert!(right && batch.kind == BatchKind::Live, "at {n}: {batch:?}");
    }
    assert_eq!(contents(&batch(&mut pressing).await), [("k/3", None)]);
    assert_eq!(contents(&batch(&mut pressing).await), [("k/new", Some(99))]);

    let resync = batch(&mut quiet).await;
    assert_eq!((resync.kind, resync.events.len()), (BatchKind::Resync, 0));
    // And all three are live again.
    writer.set("k/0", &100u32).await.unwrap();
    writer.set("quiet", &1u32).await.unwrap();
    assert_eq!(contents(&batch(&mut pressing).await), [("k/0", Some(100))]);
    assert_eq!(contents(&batch(&mut coalescing).await), [("k/0", Some(100))]);
    assert_eq!(batch(&mut quiet).await.kind, BatchKind::Live);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_behind_the_history_of_a_snapshot_is_told_so() {
    // W12, W10
    let group = three(|_| {}).await;
    let leader = group.leader().await;
    let (writer, away) = (&group.nodes[leader], (leader + 1) % 3);
    let start = writer.set("k", &0u32).await.unwrap().revision;
    let mut watch = group.nodes[away].watch::<u32>("k").from(start).backpressure().await.unwrap();
    assert_eq!(batch(&mut watch).await.revision, start);
    group.network.isolate(format!("node-{}", away + 1));
    for n in 1..=30u32 {
        writer.set("k", &n).await.unwrap();
    }
    let floor = Revision::new(start.get() + 10);
    compact(writer, floor).await;
    writer.node().purge_log_now().await;
    group.network.heal();
    let ended = item(&mut watch).await;
    assert_eq!(ended, Some(Err(Error::Compacted { requested: start.next(), oldest: floor.next() })));
    assert_eq!(item(&mut watch).await, None);
}
