//! The same on every node, across leaders, snapshots and restarts of the consensus core.

use super::*;
use crate::Health;

#[tokio::test(start_paused = true)]
async fn a_mirror_opened_on_any_node_shows_every_write_acknowledged_before() {
    // KV1
    let trio = Trio::start().await;
    let (leader, behind, _) = trio.roles().await;
    trio.network.delay(ms(20));
    for n in 0..10u32 {
        trio.nodes[leader].set("k", &n).await.unwrap();
        let stale = trio.nodes[behind].mirror::<u32>("k").stale().await.unwrap();
        assert_ne!(contents(&stale.load()), [("k", n)], "the follower is not behind: this proves nothing");
        let mirror = trio.nodes[behind].mirror::<u32>("k").await.unwrap();
        assert_eq!(contents(&mirror.load()), [("k", n)]);
    }
    let written = trio.nodes[leader].set("k", &99u32).await.unwrap().revision;
    let mirror = trio.nodes[behind].mirror::<u32>("k").at_least(written).await.unwrap();
    assert_eq!(contents(&mirror.load()), [("k", 99)]);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_only_a_stale_mirror_is_opened() {
    let trio = Trio::start().await;
    trio.nodes[0].set("k", &1u32).await.unwrap();
    let (_, alone, _) = trio.roles().await;
    until("it is applied", || trio.nodes[alone].status().revision.get() == 1).await;
    trio.isolate(alone);
    until("it has noticed", || trio.nodes[alone].status().health == Health::NoLeader).await;
    let refused = trio.nodes[alone].mirror::<u32>("k").timeout(ms(500)).await;
    assert!(matches!(refused, Err(Error::NotApplied { .. })), "{refused:?}");
    let stale = trio.nodes[alone].mirror::<u32>("k").stale().await.unwrap();
    assert_eq!(contents(&stale.load()), [("k", 1)]);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_reads_ones_own_writes_from_a_mirror_on_another_node() {
    let trio = Trio::start().await;
    trio.network.delay(ms(5));
    let (leader, other, _) = trio.roles().await;
    let mirror = trio.nodes[other].mirror::<u32>(prefix("k/")).await.unwrap();
    for n in 0..20u32 {
        let written = trio.nodes[leader].set(format!("k/{n:02}"), &n).await.unwrap().revision;
        assert_eq!(shown(&mirror, written).await.len() as u32, n + 1);
        let elsewhere = trio.nodes[leader].set("elsewhere", &n).await.unwrap().revision;
        assert_eq!(shown(&mirror, elsewhere).await.len() as u32, n + 1);
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_goes_on_through_a_snapshot_and_learns_of_what_it_took_away() {
    // W12
    let trio = Trio::start().await;
    let (leader, away, _) = trio.roles().await;
    let writer = &trio.nodes[leader];
    for n in 0..10u32 {
        writer.set(format!("k/{n}"), &n).await.unwrap();
    }
    let mut mirror = trio.nodes[away].mirror::<u32>(prefix("k/")).await.unwrap();
    let mut quiet = trio.nodes[away].mirror::<u32>("quiet").await.unwrap();
    trio.isolate(away);
    writer.delete("k/3").await.unwrap();
    writer.set("k/4", &44u32).await.unwrap();
    let last = writer.set("k/new", &99u32).await.unwrap().revision;
    writer.node().purge_log_now().await;
    trio.network.heal();
    let state = shown(&mirror, last).await;
    assert_eq!(
        told(&changed(&mut mirror).await),
        [("k/3", Some(3), None, None), ("k/4", Some(4), Some(44), None), ("k/new", None, Some(99), None)]
    );
    assert_eq!((state.len(), state.revision()), (10, last));
    shown(&quiet, last).await;
    assert!(quiet.changed().now_or_never().is_none(), "nothing of its has changed");
    writer.delete("k/4").await.unwrap();
    assert_eq!(told(&changed(&mut mirror).await), [("k/4", Some(44), None, Some(Cause::Deleted))]);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_goes_on_through_restarts_of_the_consensus_core_and_changes_of_leader() {
    let trio = Trio::start().await;
    let mut mirrors = Vec::new();
    for node in &trio.nodes {
        mirrors.push(node.mirror::<u32>("k").await.unwrap());
    }
    for round in 0..6u32 {
        let leader = trio.leader().await;
        let place = (leader + round as usize) % 3;
        trio.nodes[place].node().panic_core().await;
        let retried = || trio.nodes[(place + 1) % 3].set("k", &round).timeout(HUNG).into_future();
        let written = retried().await.unwrap().revision;
        for mirror in &mirrors {
            assert_eq!(contents(&*shown(mirror, written).await), [("k", round)]);
        }
    }
    for mirror in &mut mirrors {
        assert_eq!(told(&changed(mirror).await), [("k", None, Some(5), None)]);
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_tells_how_long_ago_it_knew_that_it_was_up_to_date() {
    let trio = Trio::start().await;
    let heartbeat = crate::Timing::fast().heartbeat;
    let mut mirrors = Vec::new();
    for node in &trio.nodes {
        mirrors.push(node.mirror::<u32>("k").await.unwrap());
    }
    let staleness = |place: usize| mirrors[place].staleness().unwrap_or(Duration::MAX);
    let (leader, other, third) = trio.roles().await;
    for _ in 0..100 {
        rt::sleep(ms(17)).await;
        for place in 0..3 {
            assert!(staleness(place) <= heartbeat * 2, "{place} of leader {leader}: {:?}", staleness(place));
        }
    }
    // Cut off: the follower, and then the leader.
    trio.isolate(other);
    rt::sleep(ms(3000)).await;
    assert!((ms(2900)..ms(3200)).contains(&staleness(other)), "{:?}", staleness(other));
    assert!(staleness(leader) <= heartbeat * 2 && staleness(third) <= heartbeat * 2);
    trio.network.heal();
    until("it is current again", || staleness(other) <= heartbeat * 2).await;
    let leader = trio.leader().await;
    trio.isolate(leader);
    rt::sleep(ms(3000)).await;
    assert!(staleness(leader) >= ms(2800), "{:?}", staleness(leader));
    trio.network.heal();
    until("all are current again", || (0..3).all(|place| staleness(place) <= heartbeat * 2)).await;
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_applies_slowly_does_not_take_its_leaders_word_for_being_up_to_date() {
    let trio = Trio::start().await;
    let (leader, _, _) = trio.roles().await;
    let mut mirrors = Vec::new();
    for node in &trio.nodes {
        mirrors.push(node.mirror::<u32>("k").await.unwrap());
    }
    // Each look at a follower that is behind must find it at least as stale as what it lacks is old.
    trio.slow_disks(ms(300));
    let mut behind = 0;
    for n in 0..20u32 {
        let Ok(written) = trio.nodes[leader].set("k", &n).timeout(HUNG).await else { continue };
        let acknowledged = rt::Instant::now();
        for _ in 0..8 {
            rt::sleep(ms(60)).await;
            for mirror in &mirrors {
                let lacks = mirror.load().revision() < written.revision;
                let stale =
                    mirror.staleness().is_none_or(|stale| stale >= acknowledged.elapsed().saturating_sub(ms(55)));
                assert!(!lacks || stale, "{:?} after {:?}", mirror.staleness(), acknowledged.elapsed());
                behind += u32::from(lacks && acknowledged.elapsed() > ms(100));
            }
        }
    }
    assert!(behind > 5, "nobody was ever behind: {behind}");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_of_one_is_always_up_to_date() {
    let cluster = single(|_| {}).await;
    let mirror = cluster.mirror::<u32>("k").await.unwrap();
    rt::sleep(ms(60_000)).await;
    assert_eq!(mirror.staleness(), Some(Duration::ZERO));
}
