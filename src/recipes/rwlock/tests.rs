//! Reader-writer locks of three nodes on a paused clock.

use std::sync::{Arc, Mutex};

use super::*;
use crate::api::testing::{Dice, Trio, ms};
use crate::api::txn::put;
use crate::error::Obstacle;
use crate::recipes::testing::{TTL, claims, isolations, standing, traces};
use crate::rt;

fn lock(cluster: &Cluster) -> RwLock {
    cluster.rwlock("rw").ttl(TTL)
}

async fn reads(cluster: &Cluster) -> ReadGuard {
    lock(cluster).read().await.expect("granted")
}

async fn writes(cluster: &Cluster) -> WriteGuard {
    lock(cluster).write().await.expect("granted")
}

fn reading(cluster: &Cluster) -> rt::Task<Result<ReadGuard, Error>> {
    rt::spawn("reading", lock(cluster).read().into_future())
}

fn writing(cluster: &Cluster) -> rt::Task<Result<WriteGuard, Error>> {
    rt::spawn("writing", lock(cluster).write().into_future())
}

#[tokio::test(start_paused = true)]
async fn readers_share_and_a_writer_that_waits_goes_before_readers_that_come_later() {
    let trio = Trio::start().await;
    let [a, b, c] = &trio.nodes[..] else { panic!("three") };
    let (one, two) = (reads(a).await, reads(b).await);
    let writer = writing(c);
    standing(a, 3).await;
    let third = reading(a);
    standing(a, 4).await;
    let last = writing(b);
    standing(b, 5).await;
    let state = lock(b).inspect().await.expect("read");
    let members = |claims: &[Claimant]| claims.iter().map(|claim| claim.member.clone()).collect::<Vec<_>>();
    assert_eq!((state.writer, members(&state.readers)), (None, vec!["a".to_string(), "b".into()]));
    let waiters: Vec<_> = state.waiters.iter().map(|w| (w.claimant.member.as_str(), w.writes)).collect();
    assert_eq!(waiters, [("c", true), ("a", false), ("b", true)]);
    one.release().await.expect("released");
    rt::sleep(ms(200)).await;
    assert!(!writer.is_finished(), "a writer together with a reader");
    assert!(!third.is_finished(), "a reader overtook a writer");
    let fence = two.fence();
    two.release().await.expect("released");
    let writer = writer.await.expect("no panic").expect("granted");
    assert!(writer.fence() > fence);
    let state = lock(a).inspect().await.expect("read");
    assert_eq!((state.writer.map(|w| w.fence), state.readers), (Some(writer.fence()), vec![]));
    rt::sleep(ms(200)).await;
    assert!(!third.is_finished() && !last.is_finished());
    writer.release().await.expect("released");
    let third = third.await.expect("no panic").expect("granted");
    rt::sleep(ms(200)).await;
    assert!(!last.is_finished(), "a writer together with a reader");
    drop(third);
    drop(last.await.expect("no panic").expect("granted"));
    standing(a, 0).await;
    trio.stop().await;
}

/// Who is inside, by fence, and everything that was wrong with that.
#[derive(Default)]
struct Seen {
    readers: usize,
    writers: usize,
    newest_writer: u64,
    together: usize,
    grants: [usize; 6],
    wrong: Vec<String>,
}

impl Seen {
    fn enter(&mut self, who: usize, writes: bool, fence: u64) {
        self.grants[who] += 1;
        match writes {
            true => {
                self.writers += 1;
                if fence <= self.newest_writer {
                    self.wrong.push(format!("{who} writes with {fence} after {}", self.newest_writer));
                }
                self.newest_writer = fence;
            }
            false => self.readers += 1,
        }
        self.together = self.together.max(self.readers);
        if self.writers > 1 || (self.writers == 1 && self.readers > 0) {
            self.wrong.push(format!("{} writers and {} readers", self.writers, self.readers));
        }
    }

    fn leave(&mut self, writes: bool) {
        *if writes { &mut self.writers } else { &mut self.readers } -= 1;
    }
}

#[tokio::test(start_paused = true)]
async fn through_isolations_no_writer_is_ever_together_with_anybody() {
    for seed in [1, 2] {
        let trio = Trio::start().await;
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let contenders: Vec<_> = (0..6)
            .map(|who| {
                let (cluster, seen) = (trio.nodes[who % 3].clone(), seen.clone());
                let mut dice = Dice(seed * 100 + who as u64);
                rt::spawn("contender", async move {
                    loop {
                        let (access, work) = (lock(&cluster).timeout(ms(20_000)), rt::sleep(ms(dice.roll(300))));
                        if who < 2 {
                            let Ok(guard) = access.write().await else { continue };
                            seen.lock().unwrap().enter(who, true, guard.fence().get());
                            let _ = guard.run(work).await;
                            seen.lock().unwrap().leave(true);
                        } else {
                            let Ok(guard) = access.read().await else { continue };
                            seen.lock().unwrap().enter(who, false, guard.fence().get());
                            let _ = guard.run(work).await;
                            seen.lock().unwrap().leave(false);
                        }
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
            assert!(seen.together > 1, "seed {seed}: readers never shared");
        }
        trio.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn both_kinds_of_guards_are_fenced_and_lost_before_others_get_in() {
    let trio = Trio::start().await;
    let (cut, other, _) = trio.roles().await;
    let reader = reads(&trio.nodes[cut]).await;
    reader.txn().then(put("seen", &1)).await.expect("it holds");
    let next = writing(&trio.nodes[other]);
    standing(&trio.nodes[cut], 2).await;
    trio.isolate(cut);
    assert_eq!(reader.lost().await, LostReason::Unsure);
    assert!(!next.is_finished(), "granted before the reader was told");
    let writer = next.await.expect("no panic").expect("granted");
    trio.network.heal();
    trio.leader().await;
    let late = reader.txn().then(put("seen", &2)).await;
    assert!(matches!(&late, Err(Error::Fenced { held, .. }) if *held == reader.fence().get()), "{late:?}");
    let (cut, other, _) = (other, cut, 0);
    let next = reading(&trio.nodes[other]);
    standing(&trio.nodes[cut], 2).await;
    trio.isolate(cut);
    assert_eq!(writer.lost().await, LostReason::Unsure);
    assert!(!next.is_finished(), "granted before the writer was told");
    let next = next.await.expect("no panic").expect("granted");
    trio.network.heal();
    trio.leader().await;
    let late = writer.txn().then(put("seen", &3)).await;
    assert!(matches!(&late, Err(Error::Fenced { held, .. }) if *held == writer.fence().get()), "{late:?}");
    assert!(next.fence() > writer.fence() && next.valid_for() > Duration::ZERO);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn trying_an_access_that_would_wait_writes_nothing() {
    let trio = Trio::start().await;
    let node = &trio.nodes[0];
    let reader = lock(node).read().try_now().await.expect("answered").expect("free");
    assert!(lock(node).write().try_now().await.expect("answered").is_none());
    let second = lock(&trio.nodes[1]).read().try_now().await.expect("answered").expect("shared");
    drop((reader, second));
    standing(node, 0).await;
    let writer = lock(node).write().try_now().await.expect("answered").expect("free");
    assert!(lock(node).read().try_now().await.expect("answered").is_none());
    assert!(lock(node).write().try_now().await.expect("answered").is_none());
    assert_eq!(claims(node).len(), 1);
    let named = node.rwlock("").read().await.map(|guard| guard.fence());
    assert!(matches!(&named, Err(Error::Invalid { what: "lock name", .. })), "{named:?}");
    drop(writer);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn giving_up_at_any_moment_leaves_nothing_behind_and_lets_those_behind_in() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    for place in [leader, follower] {
        writes(&trio.nodes[place]).await.release().await.expect("released");
    }
    let cluster = &trio.nodes[follower];
    rt::sleep(ms(500)).await;
    let before = traces(cluster);
    trio.network.delay(ms(5));
    for contended in [false, true] {
        for after in 0..30 {
            let holder = if contended { Some(reads(&trio.nodes[leader]).await) } else { None };
            drop(rt::timeout(ms(after), lock(cluster).write().into_future()).await);
            let late = lock(cluster).timeout(ms(after)).write().await.map(drop);
            if contended {
                assert!(
                    matches!(late, Err(Error::NotApplied { why: Obstacle::Held | Obstacle::Timeout, .. })),
                    "{late:?}"
                );
            }
            // The reader does not wait for writers that gave up.
            drop(rt::timeout(ms(500), reads(cluster)).await.expect("blocked"));
            drop(holder);
            rt::sleep(ms(300)).await;
            assert_eq!(traces(cluster), before, "contended: {contended}, given up after {after} ms");
        }
    }
    trio.stop().await;
}
