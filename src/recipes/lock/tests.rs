//! Locks of three nodes on a paused clock. K1 to K7 are the properties of locks.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use super::*;
use crate::api::testing::{Dice, NAMES, Trio, eventually, ms, until};
use crate::api::txn::{put, read, when};
use crate::command::{Attach, Command};
use crate::error::Obstacle;
use crate::format::claim::ClaimNote;
use crate::recipes::claim::Placed;
use crate::recipes::testing::{SetOnDrop, TTL, claims, isolations, standing, traces, wipe};
use crate::rt::{self, Instant};
use crate::types::Revision;

async fn take(cluster: &Cluster) -> LockGuard {
    cluster.lock("l").ttl(TTL).await.expect("granted")
}

/// Takes the lock in a task of its own.
fn taking(cluster: &Cluster) -> rt::Task<Result<LockGuard, Error>> {
    rt::spawn("taking", cluster.lock("l").ttl(TTL).into_future())
}

fn applied(cluster: &Cluster) -> u64 {
    cluster.node().state().view().applied.expect("formed").index
}

#[tokio::test(start_paused = true)]
async fn a_free_lock_takes_one_entry_and_one_round_trip_and_its_release_another() {
    let trio = Trio::start().await;
    let (_, follower, _) = trio.roles().await;
    let cluster = &trio.nodes[follower];
    take(cluster).await.release().await.expect("released");
    standing(cluster, 0).await;
    trio.network.delay(ms(10));
    let (index, started) = (applied(cluster), Instant::now());
    let guard = take(cluster).await;
    let took = started.elapsed();
    // To the leader and back, and from the leader to a quorum and back.
    assert!(took < ms(50), "granted after {took:?}");
    cluster.node().wait_revision(guard.fence().revision()).await.expect("applied");
    assert_eq!(applied(cluster), index + 1);
    assert!(guard.valid_for() > TTL - TTL / 100 - ms(60), "{:?}", guard.valid_for());
    guard.release().await.expect("released");
    standing(cluster, 0).await;
    assert_eq!((applied(cluster), claims(cluster).len()), (index + 2, 0));
    trio.stop().await;
}

/// Who holds the lock as its contenders see it, and everything that was wrong with that.
#[derive(Default)]
struct Seen {
    holder: Option<(usize, u64)>,
    newest: u64,
    wrong: Vec<String>,
}

impl Seen {
    fn granted(&mut self, who: usize, fence: u64) {
        if let Some(other) = self.holder {
            self.wrong.push(format!("{who} was granted {fence} while {other:?} held it"));
        }
        if fence <= self.newest {
            self.wrong.push(format!("{who} was granted {fence} after {}", self.newest));
        }
        (self.holder, self.newest) = (Some((who, fence)), fence);
    }
}

/// K1, K2, K5, K7: through isolations of leaders and holders, no two guards are valid at once, and fences rise.
#[tokio::test(start_paused = true)]
async fn no_two_guards_are_valid_at_once_and_every_fence_is_above_the_last() {
    for seed in [1, 2, 3, 4] {
        let trio = Trio::start().await;
        let held: Arc<Mutex<Seen>> = Arc::default();
        let grants = Arc::new(Mutex::new([0usize; 6]));
        let contenders: Vec<_> = (0..6)
            .map(|who| {
                let (cluster, held, grants) = (trio.nodes[who % 3].clone(), held.clone(), grants.clone());
                let mut dice = Dice(seed * 100 + who as u64);
                rt::spawn("contender", async move {
                    loop {
                        // Cut off for longer than its time to live, it begins again.
                        let Ok(guard) = cluster.lock("l").ttl(TTL).timeout(ms(20_000)).await else { continue };
                        let fence = guard.fence().get();
                        held.lock().unwrap().granted(who, fence);
                        grants.lock().unwrap()[who] += 1;
                        // Lets go when it must, or when it wants to.
                        let _ = guard.run(rt::sleep(ms(dice.roll(300)))).await;
                        held.lock().unwrap().holder.take_if(|held| held.1 == fence);
                        if dice.roll(2) == 0 {
                            let _ = guard.release().await;
                        }
                    }
                })
                .abort_on_drop()
            })
            .collect();
        isolations(&trio, Dice(seed), 6).await;
        rt::sleep(ms(5000)).await;
        drop(contenders);
        let wrong = held.lock().unwrap().wrong.clone();
        assert!(wrong.is_empty(), "seed {seed}: {wrong:?}");
        let grants = *grants.lock().unwrap();
        assert!(grants.iter().all(|grants| *grants > 1), "seed {seed}: somebody starved: {grants:?}");
        trio.stop().await;
    }
}

/// K7.
#[tokio::test(start_paused = true)]
async fn waiters_are_served_in_the_order_in_which_they_came() {
    let trio = Trio::start().await;
    let first = take(&trio.nodes[0]).await;
    let mut waiting = Vec::new();
    for place in [1, 2, 0, 1, 2] {
        waiting.push(taking(&trio.nodes[place]));
        until("one more claim", || claims(&trio.nodes[place]).len() == waiting.len() + 1).await;
    }
    let state = trio.nodes[1].lock("l").inspect().await.expect("read");
    assert_eq!(state.holder.as_ref().map(|holder| holder.fence), Some(first.fence()));
    let members: Vec<_> = state.waiters.iter().map(|waiter| waiter.member.as_str()).collect();
    assert_eq!(members, ["b", "c", "a", "b", "c"]);
    let expected: Vec<_> = state.waiters.iter().map(|waiter| waiter.fence).collect();
    let mut served = Vec::new();
    let mut holder = first;
    for next in waiting {
        assert!(!next.is_finished());
        holder.release().await.expect("released");
        holder = next.await.expect("no panic").expect("granted");
        served.push(holder.fence());
    }
    assert_eq!(served, expected);
    drop(holder);
    for node in &trio.nodes {
        standing(node, 0).await;
    }
    trio.stop().await;
}

/// K7.
#[tokio::test(start_paused = true)]
async fn a_waiter_that_died_blocks_nobody() {
    let trio = Trio::start().await;
    let (leader, dead, alive) = trio.roles().await;
    let holder = take(&trio.nodes[leader]).await;
    let died = taking(&trio.nodes[dead]);
    standing(&trio.nodes[leader], 2).await;
    let waiter = taking(&trio.nodes[alive]);
    standing(&trio.nodes[leader], 3).await;
    trio.isolate(dead);
    holder.release().await.expect("released");
    let released = Instant::now();
    let guard = rt::timeout(ms(60_000), waiter).await.expect("blocked").expect("no panic").expect("granted");
    assert!(released.elapsed() <= TTL + ms(200), "after {:?}", released.elapsed());
    trio.network.heal();
    let late = died.await.expect("no panic");
    assert!(matches!(late, Err(Error::LeaseNotFound { .. })), "{late:?}");
    assert!(guard.valid_for() > Duration::ZERO);
    trio.stop().await;
}

/// K3: the waiter's claim is first on its own node, which hears the leader; but it cannot speak to it, so its session lapses.
#[tokio::test(start_paused = true)]
async fn a_waiter_whose_session_has_lapsed_is_not_granted_the_lock_and_learns_why() {
    let trio = Trio::start().await;
    let (leader, mute, other) = trio.roles().await;
    let holder = take(&trio.nodes[leader]).await;
    let waiter = taking(&trio.nodes[mute]);
    for place in [leader, mute] {
        standing(&trio.nodes[place], 2).await;
    }
    trio.network.cut(NAMES[mute], NAMES[leader]);
    trio.network.cut(NAMES[mute], NAMES[other]);
    holder.release().await.expect("released");
    // It hears the release at once, and of its own expiry only later: in between it must not believe.
    standing(&trio.nodes[mute], 1).await;
    let first = Instant::now();
    standing(&trio.nodes[mute], 0).await;
    assert!(first.elapsed() > ms(100), "the schedule leaves no time in between: {:?}", first.elapsed());
    let refused = waiter.await.expect("no panic");
    assert!(matches!(refused, Err(Error::LeaseNotFound { .. })), "{refused:?}");
    trio.stop().await;
}

/// K3.
#[tokio::test(start_paused = true)]
async fn a_lock_is_refused_to_a_session_that_has_ended_whether_it_knows_or_not() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let session = trio.nodes[follower].session().ttl(TTL).await.expect("opens");
    let lease = session.lease();
    let revoke = Command::LeaseRevoke { lease };
    trio.nodes[leader].node().housekeep(revoke, ms(5000)).await.expect("revoked");
    for know in [false, true] {
        if know {
            assert_eq!(session.lost().await, LostReason::Expired);
        }
        let refused = trio.nodes[follower].lock("l").session(&session).await.map(|guard| guard.fence());
        assert_eq!(refused, Err(Error::LeaseNotFound { lease }), "know: {know}");
        assert_eq!(claims(&trio.nodes[leader]).len(), 0);
    }
    trio.stop().await;
}

/// K5.
#[tokio::test(start_paused = true)]
async fn a_holder_that_is_cut_off_is_told_before_anybody_else_is_granted_the_lock() {
    let trio = Trio::start().await;
    for cut in 0..3 {
        trio.leader().await;
        let guard = take(&trio.nodes[cut]).await;
        let next = taking(&trio.nodes[(cut + 1) % 3]);
        standing(&trio.nodes[cut], 2).await;
        trio.isolate(cut);
        let dropped = Arc::new(AtomicBool::new(false));
        let flag = SetOnDrop(dropped.clone());
        let work = guard.run(async move {
            let _flag = flag;
            std::future::pending::<()>().await
        });
        let deadline = rt::boot_now() + guard.valid_for();
        assert_eq!(work.await, Err(LostReason::Unsure));
        let told = rt::boot_now();
        assert!(told <= deadline + ms(1) && told >= deadline, "told {told:?}, deadline {deadline:?}");
        assert!(dropped.load(Ordering::Relaxed), "the work was not dropped");
        assert_eq!(guard.valid_for(), Duration::ZERO);
        assert!(!next.is_finished(), "granted to another before the holder was told");
        let next = next.await.expect("no panic").expect("granted");
        assert!(next.fence() > guard.fence());
        trio.network.heal();
        // Lost is lost, although its node is back.
        trio.leader().await;
        rt::sleep(TTL).await;
        assert_eq!((guard.valid_for(), guard.lost().await), (Duration::ZERO, LostReason::Unsure));
        assert!(next.valid_for() > Duration::ZERO);
        next.release().await.expect("released");
    }
    trio.stop().await;
}

/// K5: nothing has had a chance to run between the machine's waking up and the next poll.
#[tokio::test(start_paused = true)]
async fn after_a_sleep_beyond_the_deadline_the_guarded_work_is_not_polled_once_more() {
    let trio = Trio::start().await;
    let guard = take(&trio.nodes[0]).await;
    let polls = std::cell::Cell::new(0);
    let mut work = pin!(guard.run(poll_fn(|_| {
        polls.set(polls.get() + 1);
        Poll::<()>::Pending
    })));
    assert!(futures::poll!(&mut work).is_pending());
    tokio::time::advance(TTL * 2).await;
    assert_eq!(futures::poll!(&mut work), Poll::Ready(Err(LostReason::Unsure)));
    assert_eq!(polls.get(), 1);
    rt::sleep(ms(500)).await;
    assert_eq!(guard.valid_for(), Duration::ZERO, "renewals that come back later change nothing");
    trio.stop().await;
}

/// A session recovers; a guard does not, and its claim makes room.
#[tokio::test(start_paused = true)]
async fn a_guard_stays_lost_when_its_session_recovers_and_its_claim_is_withdrawn() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let session = trio.nodes[leader].session().ttl(TTL).name("nightly").await.expect("opens");
    let guard = trio.nodes[leader].lock("l").session(&session).await.expect("granted");
    let state = trio.nodes[follower].lock("l").inspect().await.expect("read");
    let holder = state.holder.expect("held");
    assert_eq!((holder.session.as_str(), holder.lease), ("nightly", session.lease()));
    trio.isolate(leader);
    until("unsure", || session.is_unsure()).await;
    trio.network.heal();
    until("sure again", || !session.is_unsure()).await;
    assert!(session.valid_for() > Duration::ZERO);
    assert_eq!((guard.valid_for(), guard.lost().await), (Duration::ZERO, LostReason::Unsure));
    standing(&trio.nodes[follower], 0).await;
    let next = trio.nodes[leader].lock("l").session(&session).await.expect("granted");
    assert!(next.fence() > guard.fence() && next.valid_for() > Duration::ZERO);
    // The late guard's end does not touch its successor's claim.
    guard.release().await.expect("nothing to do");
    assert_eq!(claims(&trio.nodes[leader]).len(), 1);
    trio.stop().await;
}

/// K6, with its control: the same late write without the fence goes through.
#[tokio::test(start_paused = true)]
async fn the_late_write_of_a_holder_that_was_paused_is_refused_with_the_fence_and_not_without() {
    let trio = Trio::start().await;
    let (_, paused, other) = trio.roles().await;
    let old = take(&trio.nodes[paused]).await;
    let written = old.txn().then(put("protected", &1)).await.expect("it holds");
    assert!(written.succeeded());
    trio.isolate(paused);
    let new = take(&trio.nodes[other]).await;
    new.txn().then(put("protected", &2)).await.expect("it holds");
    trio.network.heal();
    trio.leader().await;
    let late = old.txn().then(put("protected", &1)).await;
    assert!(matches!(&late, Err(Error::Fenced { held, .. }) if *held == old.fence().get()), "{late:?}");
    let other_branch = old.txn().when(when("x").present()).otherwise(put("protected", &1)).await;
    assert!(matches!(&other_branch, Err(Error::Invalid { .. })), "{other_branch:?}");
    assert_eq!(trio.nodes[other].get::<i32>("protected").await.expect("read").map(|entry| *entry), Some(2));
    trio.nodes[paused].set("protected", &1).await.expect("nothing stands in its way");
    assert_eq!(trio.nodes[other].get::<i32>("protected").await.expect("read").map(|entry| *entry), Some(1));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_guards_transaction_counts_its_callers_conditions_only() {
    let trio = Trio::start().await;
    let guard = take(&trio.nodes[0]).await;
    let tried = guard.txn().when(when("a").absent()).when(when("b").present()).then(put("a", &1)).otherwise(read("b"));
    let outcome = tried.await.expect("it holds");
    assert_eq!((outcome.succeeded(), outcome.failed_condition()), (false, Some(1)));
    assert_eq!(outcome.entry::<i32>(0), Ok(None));
    trio.stop().await;
}

/// K4.
#[tokio::test(start_paused = true)]
async fn a_guard_whose_claim_is_deleted_by_anybody_is_lost_at_once_and_its_release_harms_nobody() {
    let trio = Trio::start().await;
    let (leader, follower, other) = trio.roles().await;
    let guard = take(&trio.nodes[follower]).await;
    let waiter = taking(&trio.nodes[other]);
    standing(&trio.nodes[leader], 2).await;
    wipe(&trio.nodes[leader]).await;
    assert_eq!(rt::timeout(ms(200), guard.lost()).await, Ok(LostReason::Deleted));
    let superseded = waiter.await.expect("no panic");
    assert!(matches!(superseded, Err(Error::Fenced { .. })), "{superseded:?}");
    let next = take(&trio.nodes[other]).await;
    guard.release().await.expect("nothing to do");
    rt::sleep(ms(200)).await;
    assert!(next.valid_for() > Duration::ZERO);
    assert_eq!(claims(&trio.nodes[other]).len(), 1);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn dropping_a_guard_releases_it_and_withdrawing_a_claim_twice_does_nothing_more() {
    let trio = Trio::start().await;
    let guard = take(&trio.nodes[0]).await;
    let (hold, lost) = (guard.guard.hold.clone(), guard.lost());
    drop(guard);
    assert_eq!(lost.await, LostReason::Released);
    let next = rt::timeout(TTL / 2, take(&trio.nodes[1])).await.expect("left to expire");
    let revision = trio.nodes[1].status().revision;
    hold.withdraw(trio.nodes[0].node()).await.expect("carried out");
    assert_eq!((trio.nodes[1].status().revision, claims(&trio.nodes[1]).len()), (revision, 1));
    drop(next);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn closing_a_session_ends_its_guards_before_the_lock_moves_on() {
    let trio = Trio::start().await;
    let (_, follower, other) = trio.roles().await;
    let session = trio.nodes[follower].session().ttl(TTL).await.expect("opens");
    let guard = trio.nodes[follower].lock("l").session(&session).await.expect("granted");
    let next = taking(&trio.nodes[other]);
    standing(&trio.nodes[follower], 2).await;
    trio.network.delay(ms(10));
    let closing = rt::spawn("closing", session.close());
    assert_eq!(guard.lost().await, LostReason::Closed);
    assert_eq!((guard.valid_for(), next.is_finished()), (Duration::ZERO, false));
    closing.await.expect("no panic").expect("closed");
    let next = rt::timeout(TTL / 2, next).await.expect("left to expire").expect("no panic").expect("granted");
    assert!(next.fence() > guard.fence());
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_ends_its_guards_and_turns_its_waiters_away() {
    let trio = Trio::start().await;
    let (_, follower, other) = trio.roles().await;
    let guard = take(&trio.nodes[follower]).await;
    let waiters = [taking(&trio.nodes[follower]), taking(&trio.nodes[other])];
    standing(&trio.nodes[follower], 3).await;
    let lost = guard.lost();
    trio.nodes[follower].shutdown().await.expect("stops");
    assert_eq!(rt::timeout(TTL, lost).await, Ok(LostReason::Stopped));
    assert_eq!(guard.valid_for(), Duration::ZERO);
    let [here, elsewhere] = waiters;
    let turned_away = rt::timeout(TTL, here).await.expect("left waiting").expect("no panic");
    assert!(matches!(turned_away, Err(Error::Stopped { .. })), "{turned_away:?}");
    drop(elsewhere.await.expect("no panic").expect("granted"));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn trying_a_lock_that_is_held_writes_nothing_and_one_that_is_free_takes_it() {
    let trio = Trio::start().await;
    let holder = take(&trio.nodes[0]).await;
    let revision = trio.nodes[0].get::<i32>("-").await.map(|_| trio.nodes[0].status().revision).expect("read");
    let tried = trio.nodes[1].lock("l").ttl(TTL).try_now().await.expect("answered");
    assert!(tried.is_none(), "{tried:?}");
    let now = trio.nodes[0].get::<i32>("-").await.map(|_| trio.nodes[0].status().revision).expect("read");
    assert_eq!(now, revision);
    holder.release().await.expect("released");
    let tried = trio.nodes[1].lock("l").ttl(TTL).try_now().await.expect("answered").expect("free");
    assert!(tried.valid_for() > Duration::ZERO);
    trio.stop().await;
}

/// Nothing is left of a lock that was given up, at whatever moment: dropped or timed out while it was placed, while it
/// waited, while it was granted.
#[tokio::test(start_paused = true)]
async fn giving_up_at_any_moment_leaves_nothing_behind() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    for place in [leader, follower] {
        // The first write of a node opens its client record, which has a lease.
        take(&trio.nodes[place]).await.release().await.expect("released");
    }
    let cluster = &trio.nodes[follower];
    rt::sleep(ms(500)).await;
    let before = traces(cluster);
    trio.network.delay(ms(5));
    for contended in [false, true] {
        for after in 0..40 {
            let holder = if contended { Some(take(&trio.nodes[leader]).await) } else { None };
            let lock = || cluster.lock("l").ttl(TTL);
            drop(rt::timeout(ms(after), lock().into_future()).await);
            let late = lock().timeout(ms(after)).await.map(drop);
            if contended {
                assert!(matches!(late, Err(Error::NotApplied { .. })), "after {after} ms: {late:?}");
            }
            drop(holder);
            rt::sleep(ms(300)).await;
            assert_eq!(traces(cluster), before, "contended: {contended}, given up after {after} ms");
        }
    }
    trio.stop().await;
}

/// The claim may be in the log of a leader that nobody hears: it is found out and undone when there is one again.
#[tokio::test(start_paused = true)]
async fn a_claim_whose_outcome_stayed_unknown_is_resolved_and_withdrawn() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let session = trio.nodes[leader].session().ttl(ms(60_000)).await.expect("opens");
    for reached in [false, true] {
        let (leader, follower, other) = match reached {
            false => (leader, follower, 3 - leader - follower),
            true => trio.roles().await,
        };
        let cluster = &trio.nodes[leader];
        // The claim is appended at the leader; `reached`: it gets to a follower, too, and will be committed by the next one.
        match reached {
            false => trio.isolate(leader),
            true => {
                trio.network.cut(NAMES[follower], NAMES[leader]);
                trio.network.cut(NAMES[other], NAMES[leader]);
            }
        }
        let given_up = cluster.lock("l").session(&session).timeout(ms(1000)).await;
        assert!(matches!(given_up, Err(Error::NotApplied { .. })), "reached: {reached}: {given_up:?}");
        trio.network.heal();
        let done = taking(&trio.nodes[other]);
        let guard = rt::timeout(ms(10_000), done).await.expect("blocked").expect("no panic").expect("granted");
        guard.release().await.expect("released");
        eventually("no claims", || async {
            trio.nodes[other].lock("l").inspect().await.is_ok_and(|s| s.holder.is_none())
        })
        .await;
        rt::sleep(ms(3000)).await;
        assert_eq!(claims(&trio.nodes[other]), [], "reached: {reached}");
    }
    trio.stop().await;
}

/// Its transaction is still on its way when the caller gives up, and arrives behind the delete that should undo it.
#[tokio::test(start_paused = true)]
async fn a_claim_that_arrives_after_it_was_given_up_is_refused() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let session = trio.nodes[follower].session().ttl(ms(60_000)).await.expect("opens");
    let taking = rt::spawn("taking", trio.nodes[follower].lock("l").session(&session).timeout(ms(1000)).into_future());
    trio.network.delay(ms(2500));
    rt::sleep(ms(1)).await;
    trio.network.delay(ms(0));
    let (given_up, sent) = (taking.await.expect("no panic").map(|guard| guard.fence()), Instant::now());
    assert!(matches!(given_up, Err(Error::NotApplied { .. })), "{given_up:?}");
    while sent.elapsed() < ms(4000) {
        assert_eq!(claims(&trio.nodes[leader]), [], "{:?} after it was given up", sent.elapsed());
        rt::sleep(ms(10)).await;
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lock_out_of_range_is_refused_and_the_refusal_names_both_values() {
    let trio = Trio::start().await;
    let cluster = &trio.nodes[0];
    let short = cluster.session().ttl(TTL - ms(1)).await.expect("opens");
    let long = cluster.session().ttl(TTL).await.expect("opens");
    let name = "x".repeat(LOCK_NAME_BYTES_MAX + 1);
    let lock = |name: &str| cluster.lock(name).ttl(TTL);
    for (refused, what) in [
        (cluster.lock("l").ttl(TTL - ms(1)), "ttl"),
        (cluster.lock("l").session(&short), "ttl"),
        (lock("l").session(&long), "ttl"),
        (lock(""), "lock name"),
        (lock("a\0b"), "lock name"),
        (lock(&name), "lock name"),
    ] {
        let found = refused.await.map(|guard| guard.fence());
        assert!(matches!(&found, Err(Error::Invalid { what: found, .. }) if *found == what), "{found:?}");
    }
    let why = cluster.lock("l").ttl(ms(5)).await.map(|guard| guard.fence()).expect_err("too short").to_string();
    assert!(why.contains("5ms") && why.contains("1.2s"), "{why}");
    cluster.lock("l").session(&long).await.expect("long enough").release().await.expect("released");
    trio.stop().await;
}

/// Claims that stand are counted here; the next one is refused as busy.
#[tokio::test(start_paused = true)]
async fn a_line_that_is_full_refuses_the_next_claim() {
    let trio = Trio::start().await;
    let cluster = &trio.nodes[0];
    let session = cluster.session().ttl(ms(60_000)).await.expect("opens");
    let line = Line::new(RECIPE, "l".into());
    let note = ClaimNote { member: String::new(), session: String::new(), payload: Bytes::new() };
    let mut last = Revision::ZERO;
    for nth in 0..CLAIMS_MAX {
        let attach = Attach::Lease(session.lease());
        let placed = line.place(cluster, &note, attach, true, ms(5000)).await;
        let Ok(Placed::Standing { claim, alone, .. }) = placed else { panic!("{nth}: {placed:?}") };
        assert_eq!(alone, nth == 0);
        last = claim.fence.revision();
        cluster.node().wait_revision(last).await.expect("applied");
    }
    let full = cluster.lock("l").ttl(TTL).await.map(|guard| guard.fence());
    let busy = Obstacle::Busy { what: "claims in one line", limit: CLAIMS_MAX };
    assert_eq!(full, Err(Error::NotApplied { why: busy, waited: Duration::ZERO }));
    let state = cluster.lock("l").inspect().await.expect("read");
    assert_eq!(state.waiters.len() as u64, CLAIMS_MAX - 1);
    assert_eq!(state.waiters.last().map(|waiter| waiter.fence.revision()), Some(last));
    session.close().await.expect("closed");
    take(cluster).await.release().await.expect("released");
    trio.stop().await;
}
