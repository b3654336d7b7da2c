//! Semaphores of three nodes on a paused clock.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::*;
use crate::api::testing::{Dice, Trio, ms, until};
use crate::api::txn::put;
use crate::error::Obstacle;
use crate::recipes::testing::{TTL, claims, isolations, standing, traces, wipe};
use crate::rt;

fn semaphore(cluster: &Cluster) -> Semaphore {
    cluster.semaphore("s", 2).ttl(TTL)
}

async fn take(cluster: &Cluster) -> Permit {
    semaphore(cluster).await.expect("granted")
}

fn taking(cluster: &Cluster) -> rt::Task<Result<Permit, Error>> {
    rt::spawn("taking", semaphore(cluster).into_future())
}

/// Waits until this node has applied that so many stand in the line, beside the size.
async fn in_line(cluster: &Cluster, count: usize) {
    standing(cluster, count + 1).await;
}

#[tokio::test(start_paused = true)]
async fn as_many_hold_as_there_are_permits_and_the_others_follow_in_order() {
    let trio = Trio::start().await;
    let mut held = vec![take(&trio.nodes[0]).await, take(&trio.nodes[1]).await];
    let mut waiting = Vec::new();
    for place in [2, 0, 1] {
        waiting.push(taking(&trio.nodes[place]));
        in_line(&trio.nodes[place], waiting.len() + 2).await;
    }
    let state = semaphore(&trio.nodes[1]).inspect().await.expect("read");
    let members = |claims: &[Claimant]| claims.iter().map(|claim| claim.member.clone()).collect::<Vec<_>>();
    assert_eq!((state.permits, members(&state.holders)), (Some(2), vec!["a".to_string(), "b".into()]));
    assert_eq!(members(&state.waiters), ["c", "a", "b"]);
    let mut fences: Vec<Fence> = held.iter().map(Permit::fence).collect();
    // Not the older one first: whichever goes makes room.
    for (place, next) in [1, 0, 1].into_iter().zip(waiting) {
        rt::sleep(ms(100)).await;
        assert!(!next.is_finished(), "three hold two permits");
        held.remove(place).release().await.expect("released");
        held.push(next.await.expect("no panic").expect("granted"));
        fences.push(held[1].fence());
    }
    assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
    drop(held);
    for node in &trio.nodes {
        in_line(node, 0).await;
    }
    semaphore(&trio.nodes[0]).remove().await.expect("nobody uses it");
    standing(&trio.nodes[0], 0).await;
    trio.stop().await;
}

/// Who holds, by fence, and everything that was wrong with that.
#[derive(Default)]
struct Seen {
    holders: BTreeSet<u64>,
    grants: [usize; 5],
    wrong: Vec<String>,
}

#[tokio::test(start_paused = true)]
async fn through_isolations_no_more_permits_are_valid_at_once_than_there_are() {
    for seed in [1, 2] {
        let trio = Trio::start().await;
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let contenders: Vec<_> = (0..5)
            .map(|who| {
                let (cluster, seen) = (trio.nodes[who % 3].clone(), seen.clone());
                let mut dice = Dice(seed * 100 + who as u64);
                rt::spawn("contender", async move {
                    loop {
                        let Ok(permit) = semaphore(&cluster).timeout(ms(20_000)).await else { continue };
                        let fence = permit.fence().get();
                        {
                            let mut seen = seen.lock().unwrap();
                            seen.holders.insert(fence);
                            seen.grants[who] += 1;
                            if seen.holders.len() > 2 {
                                let wrong = format!("{:?}", seen.holders);
                                seen.wrong.push(wrong);
                            }
                        }
                        let _ = permit.run(rt::sleep(ms(dice.roll(400)))).await;
                        seen.lock().unwrap().holders.remove(&fence);
                    }
                })
                .abort_on_drop()
            })
            .collect();
        isolations(&trio, Dice(seed), 5).await;
        rt::sleep(ms(5000)).await;
        drop(contenders);
        {
            let seen = seen.lock().unwrap();
            assert!(seen.wrong.is_empty(), "seed {seed}: {:?}", seen.wrong);
            assert!(seen.grants.iter().all(|grants| *grants > 1), "seed {seed}: somebody starved: {:?}", seen.grants);
        }
        trio.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_is_cut_off_is_told_before_its_permit_is_granted_again_and_its_late_write_is_refused() {
    let trio = Trio::start().await;
    let (cut, other, _) = trio.roles().await;
    let (old, kept) = (take(&trio.nodes[cut]).await, take(&trio.nodes[other]).await);
    let next = taking(&trio.nodes[other]);
    in_line(&trio.nodes[cut], 3).await;
    trio.isolate(cut);
    assert_eq!(old.lost().await, LostReason::Unsure);
    assert!(!next.is_finished(), "granted again before the holder was told");
    let next = next.await.expect("no panic").expect("granted");
    trio.network.heal();
    trio.leader().await;
    let late = old.txn().then(put("k", &1)).await;
    assert!(matches!(&late, Err(Error::Fenced { held, .. }) if *held == old.fence().get()), "{late:?}");
    for permit in [&kept, &next] {
        permit.txn().then(put("k", &2)).await.expect("it holds");
        assert!(permit.valid_for() > Duration::ZERO);
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_size_is_refused_until_the_old_one_is_removed() {
    let trio = Trio::start().await;
    let permit = take(&trio.nodes[0]).await;
    for node in &trio.nodes {
        let what = "permits of the semaphore";
        for given in [1, 3] {
            let other = || node.semaphore("s", given).ttl(TTL).timeout(ms(2000));
            assert_eq!(other().await.map(|permit| permit.fence()), Err(Error::Mismatch { what, stored: 2, given }));
            // Whether one would be free by that count or not.
            let tried = other().try_now().await.map(|permit| permit.is_some());
            assert_eq!(tried, Err(Error::Mismatch { what, stored: 2, given }));
        }
    }
    let held = semaphore(&trio.nodes[1]).remove().await;
    assert!(matches!(held, Err(Error::NotApplied { why: Obstacle::Held, .. })), "{held:?}");
    permit.release().await.expect("released");
    semaphore(&trio.nodes[1]).remove().await.expect("nobody uses it");
    // Of two that choose at once, one wins; the node that has not heard of the removal asks again.
    let (a, b) = (trio.nodes[0].semaphore("s", 1).ttl(TTL), trio.nodes[2].semaphore("s", 3).ttl(TTL));
    let both = futures::join!(a.into_future(), b.into_future());
    assert!(
        matches!(
            &both,
            (Ok(_), Err(Error::Mismatch { stored: 1, given: 3, .. }))
                | (Err(Error::Mismatch { stored: 3, given: 1, .. }), Ok(_))
        ),
        "{both:?}"
    );
    for permits in [0, SEMAPHORE_PERMITS_MAX + 1] {
        let refused = trio.nodes[0].semaphore("t", permits).await.map(|permit| permit.fence());
        assert!(matches!(&refused, Err(Error::Invalid { what: "permits", .. })), "{refused:?}");
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn trying_takes_a_free_permit_and_none_that_is_held_or_waited_for() {
    let trio = Trio::start().await;
    let first = semaphore(&trio.nodes[0]).try_now().await.expect("answered").expect("free");
    let second = semaphore(&trio.nodes[1]).try_now().await.expect("answered").expect("free");
    let tried = semaphore(&trio.nodes[2]).try_now().await.expect("answered");
    assert!(tried.is_none() && claims(&trio.nodes[2]).len() == 3, "{tried:?}");
    let waiter = taking(&trio.nodes[2]);
    in_line(&trio.nodes[2], 3).await;
    first.release().await.expect("released");
    let third = waiter.await.expect("no panic").expect("granted");
    // At once with others, for fewer permits than there are who try: none too many, and nothing is left of those who lost.
    drop((second, third));
    in_line(&trio.nodes[0], 0).await;
    let tries = trio.nodes.iter().chain(&trio.nodes).map(|node| semaphore(node).try_now().into_future());
    let permits: Vec<_> =
        futures::future::join_all(tries).await.into_iter().map(|tried| tried.expect("answered")).collect();
    assert_eq!(permits.iter().flatten().count(), 2, "{permits:?}");
    in_line(&trio.nodes[0], 2).await;
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn giving_up_at_any_moment_leaves_nothing_but_the_size_behind() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    for place in [leader, follower] {
        take(&trio.nodes[place]).await.release().await.expect("released");
    }
    let cluster = &trio.nodes[follower];
    rt::sleep(ms(500)).await;
    let before = traces(cluster);
    trio.network.delay(ms(5));
    for contended in [false, true] {
        for after in 0..40 {
            let holders = match contended {
                true => vec![take(&trio.nodes[leader]).await, take(&trio.nodes[leader]).await],
                false => vec![],
            };
            drop(rt::timeout(ms(after), semaphore(cluster).into_future()).await);
            drop(rt::timeout(ms(after), semaphore(cluster).try_now().into_future()).await);
            let late = semaphore(cluster).timeout(ms(after)).await.map(drop);
            assert!(!contended || matches!(late, Err(Error::NotApplied { .. })), "after {after} ms: {late:?}");
            drop(holders);
            rt::sleep(ms(300)).await;
            assert_eq!(traces(cluster), before, "contended: {contended}, given up after {after} ms");
        }
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_died_blocks_nobody_and_one_whose_claim_is_deleted_learns_why() {
    let trio = Trio::start().await;
    let (leader, dead, alive) = trio.roles().await;
    let held = (take(&trio.nodes[leader]).await, take(&trio.nodes[leader]).await);
    let died = taking(&trio.nodes[dead]);
    in_line(&trio.nodes[leader], 3).await;
    let waiter = taking(&trio.nodes[alive]);
    in_line(&trio.nodes[leader], 4).await;
    trio.isolate(dead);
    held.0.release().await.expect("released");
    let permit = rt::timeout(ms(60_000), waiter).await.expect("blocked").expect("no panic").expect("granted");
    trio.network.heal();
    let late = died.await.expect("no panic");
    assert!(matches!(late, Err(Error::LeaseNotFound { .. })), "{late:?}");
    let waiter = taking(&trio.nodes[alive]);
    in_line(&trio.nodes[alive], 3).await;
    wipe(&trio.nodes[leader]).await;
    let superseded = waiter.await.expect("no panic");
    assert!(matches!(superseded, Err(Error::Fenced { .. })), "{superseded:?}");
    assert_eq!(rt::timeout(ms(200), permit.lost()).await, Ok(LostReason::Deleted));
    until("lost", || held.1.valid_for().is_zero()).await;
    trio.stop().await;
}
