//! Barriers of three nodes on a paused clock.

use super::*;
use crate::api::testing::{Trio, eventually, ms, until};
use crate::recipes::testing::{TTL, claims, standing, traces, wipe};
use crate::rt;

fn barrier(cluster: &Cluster) -> Barrier {
    cluster.barrier("b", 3).ttl(TTL)
}

fn coming(cluster: &Cluster) -> rt::Task<Result<Meeting, Error>> {
    let barrier = barrier(cluster);
    rt::spawn("coming", async move { barrier.wait().await })
}

/// Waits until this node has applied that so many stand in the line, beside the size.
async fn in_line(cluster: &Cluster, count: usize) {
    standing(cluster, count + 1).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_passes_before_all_are_there_and_all_pass_in_the_same_meeting() {
    let trio = Trio::start().await;
    let mut last = None;
    for generation in 1..=3 {
        let early = [coming(&trio.nodes[1]), coming(&trio.nodes[2])];
        in_line(&trio.nodes[0], 2).await;
        rt::sleep(TTL * 2).await;
        assert!(early.iter().all(|party| !party.is_finished()), "two of three have met");
        let state = barrier(&trio.nodes[0]).inspect().await.expect("read");
        assert_eq!((state.parties, state.generation, state.waiting.len()), (Some(3), generation - 1, 2));
        let met = barrier(&trio.nodes[0]).wait().await.expect("all are there");
        for party in early {
            assert_eq!(party.await.expect("no panic"), Ok(met));
        }
        assert_eq!(met.generation, generation);
        assert!(last.replace(met.fence) < Some(met.fence), "{met:?}");
        in_line(&trio.nodes[0], 0).await;
    }
    barrier(&trio.nodes[1]).remove().await.expect("nobody waits");
    standing(&trio.nodes[1], 0).await;
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn more_than_enough_meet_in_the_order_in_which_they_came() {
    let trio = Trio::start().await;
    let two = trio.nodes[0].barrier("b", 2).ttl(TTL);
    let mut parties = Vec::new();
    for place in [0, 1, 2, 0, 1] {
        let node = trio.nodes[place].barrier("b", 2).ttl(TTL);
        parties.push(rt::spawn("coming", async move { node.wait().await }));
        rt::sleep(ms(50)).await;
    }
    let last = parties.pop().expect("five");
    let mut generations = Vec::new();
    for party in parties {
        generations.push(party.await.expect("no panic").expect("met").generation);
    }
    assert_eq!(generations, [1, 1, 2, 2]);
    assert!(!last.is_finished(), "one alone has met");
    assert_eq!(two.inspect().await.expect("read").waiting.len(), 1);
    let met = two.wait().await.expect("met");
    assert_eq!((last.await.expect("no panic"), met.generation), (Ok(met), 3));
    trio.stop().await;
}

/// All at once, from every node: whoever is first calls the meeting, and no party is counted twice.
#[tokio::test(start_paused = true)]
async fn parties_that_come_at_once_meet_in_full_generations() {
    let trio = Trio::start().await;
    trio.network.delay(ms(3));
    let parties: Vec<_> = (0..12).map(|nth| coming(&trio.nodes[nth % 3])).collect();
    let mut generations = Vec::new();
    for party in parties {
        generations.push(party.await.expect("no panic").expect("met").generation);
    }
    generations.sort_unstable();
    assert_eq!(generations, [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_party_that_died_is_not_counted_even_if_it_was_to_call_the_meeting() {
    let trio = Trio::start().await;
    let (dead, alive, other) = trio.roles().await;
    let died = coming(&trio.nodes[dead]);
    in_line(&trio.nodes[alive], 1).await;
    trio.isolate(dead);
    let parties = [coming(&trio.nodes[alive]), coming(&trio.nodes[other])];
    // The dead one's claim still stands when the third comes, so that it falls to it to call; its lease ends that.
    in_line(&trio.nodes[alive], 2).await;
    rt::sleep(TTL * 2).await;
    assert!(parties.iter().all(|party| !party.is_finished()), "met with the dead");
    let third = coming(&trio.nodes[alive]);
    let met = rt::timeout(ms(30_000), third).await.expect("blocked").expect("no panic").expect("all are there");
    for party in parties {
        assert_eq!(party.await.expect("no panic"), Ok(met));
    }
    trio.network.heal();
    let late = died.await.expect("no panic");
    assert!(matches!(late, Err(Error::LeaseNotFound { .. })), "{late:?}");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_has_met_and_could_not_leave_yet_does_not_count_as_waiting() {
    let trio = Trio::start().await;
    let (one, other, cut) = trio.roles().await;
    let early = [coming(&trio.nodes[one]), coming(&trio.nodes[other])];
    in_line(&trio.nodes[one], 2).await;
    let third = coming(&trio.nodes[cut]);
    in_line(&trio.nodes[one], 3).await;
    trio.isolate(cut);
    for party in early {
        party.await.expect("no panic").expect("all were there");
    }
    in_line(&trio.nodes[one], 1).await;
    let state = barrier(&trio.nodes[one]).inspect().await.expect("read");
    assert!(state.waiting.is_empty() && state.generation == 1, "{state:?}");
    trio.network.heal();
    let _ = third.await.expect("no panic");
    trio.stop().await;
}

/// The call is in the log of a leader that nobody hears any more, or it was heard and its answer was not: either way all meet
/// once.
#[tokio::test(start_paused = true)]
async fn the_meeting_survives_a_change_of_leader_at_any_moment() {
    let trio = Trio::start().await;
    for after in 0..12 {
        let (leader, follower, other) = trio.roles().await;
        trio.network.delay(ms(3));
        let long = |place: usize| {
            let barrier = trio.nodes[place].barrier("b", 3).ttl(ms(8000));
            rt::spawn("coming", async move { barrier.wait().await })
        };
        let parties = [long(follower), long(other), long(follower)];
        rt::sleep(ms(after * 3)).await;
        trio.isolate(leader);
        let mut met = Vec::new();
        for party in parties {
            met.push(rt::timeout(ms(60_000), party).await.expect("blocked").expect("no panic").expect("all are there"));
        }
        assert!(met.iter().all(|meeting| *meeting == met[0]), "after {after}: {met:?}");
        assert_eq!(met[0].generation, after + 1);
        trio.network.heal();
        eventually("none left", || async {
            barrier(&trio.nodes[other]).inspect().await.is_ok_and(|state| state.waiting.is_empty())
        })
        .await;
        in_line(&trio.nodes[other], 0).await;
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn giving_up_at_any_moment_leaves_nothing_but_the_size_behind() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    for place in [leader, follower] {
        let alone = trio.nodes[place].barrier("warm", 1).ttl(TTL).wait().await;
        alone.expect("one is enough");
        drop(rt::timeout(ms(200), barrier(&trio.nodes[place]).wait()).await);
    }
    let cluster = &trio.nodes[follower];
    rt::sleep(ms(500)).await;
    let before = traces(cluster);
    assert_eq!(before.0, 2, "the sizes");
    trio.network.delay(ms(5));
    for after in 0..40 {
        drop(rt::timeout(ms(after), barrier(cluster).wait()).await);
        let late = barrier(cluster).timeout(ms(after)).wait().await;
        assert!(matches!(late, Err(Error::NotApplied { .. })), "after {after} ms: {late:?}");
        rt::sleep(ms(300)).await;
        assert_eq!(traces(cluster), before, "given up after {after} ms");
        // Given up around the meeting itself: whoever is left goes too.
        let three = [barrier(cluster), barrier(cluster), barrier(cluster)];
        let three = futures::future::join_all(three.iter().map(|party| rt::timeout(ms(after), party.wait())));
        drop(three.await);
        rt::sleep(ms(300)).await;
        assert_eq!(traces(cluster), before, "given up around the meeting after {after} ms");
    }
    trio.stop().await;
}

/// The call is on its way when one of those who are called goes: it is not brought back, and the others meet with it or not at
/// all.
#[tokio::test(start_paused = true)]
async fn a_party_that_leaves_while_the_meeting_is_called_is_not_brought_back() {
    let trio = Trio::start().await;
    let (leader, caller, other) = trio.roles().await;
    let mut sessions = Vec::new();
    for place in 0..3 {
        sessions.push(trio.nodes[place].session().ttl(ms(600_000)).await.expect("opens"));
    }
    let party = |place: usize| trio.nodes[place].barrier("b", 3).session(&sessions[place]);
    let mut met = 0;
    for after in 0..60 {
        let coming = |place: usize| {
            let party = party(place);
            rt::spawn("coming", async move { party.wait().await })
        };
        let first = coming(caller);
        until("one waits", || waits(&trio.nodes[leader]) == 1).await;
        let second = coming(other);
        until("two wait", || waits(&trio.nodes[leader]) == 2).await;
        trio.network.delay(ms(5));
        let third = rt::timeout(ms(after), party(leader).wait()).await;
        rt::sleep(ms(300)).await;
        trio.network.delay(ms(0));
        assert_eq!(first.is_finished(), second.is_finished(), "after {after} ms");
        assert!(third.is_err() || first.is_finished(), "after {after} ms: {third:?}");
        met += usize::from(first.is_finished());
        first.abort();
        second.abort();
        until("nobody is left", || waits(&trio.nodes[leader]) == 0).await;
    }
    assert!((1..60).contains(&met), "the schedules do not reach both ends: {met}");
    trio.stop().await;
}

/// Claims beside the size.
fn waits(cluster: &Cluster) -> usize {
    claims(cluster).len().saturating_sub(1)
}

#[tokio::test(start_paused = true)]
async fn another_number_of_parties_is_refused_and_a_deleted_claim_is_told() {
    let trio = Trio::start().await;
    let waiting = coming(&trio.nodes[0]);
    in_line(&trio.nodes[0], 1).await;
    let other = trio.nodes[1].barrier("b", 2).ttl(TTL).wait().await;
    assert_eq!(other, Err(Error::Mismatch { what: "parties of the barrier", stored: 3, given: 2 }));
    let held = barrier(&trio.nodes[1]).remove().await;
    assert!(matches!(held, Err(Error::NotApplied { why: Obstacle::Held, .. })), "{held:?}");
    for parties in [0, BARRIER_PARTIES_MAX + 1] {
        let refused = trio.nodes[1].barrier("c", parties).wait().await;
        assert!(matches!(&refused, Err(Error::Invalid { what: "parties", .. })), "{refused:?}");
    }
    wipe(&trio.nodes[1]).await;
    let superseded = waiting.await.expect("no panic");
    assert!(matches!(superseded, Err(Error::Fenced { .. })), "{superseded:?}");
    let session = trio.nodes[0].session().ttl(TTL).await.expect("opens");
    let by_session = trio.nodes[0].barrier("b", 3).session(&session);
    let waiting = rt::spawn("coming", async move { by_session.wait().await });
    in_line(&trio.nodes[0], 1).await;
    let lease = session.lease();
    session.close().await.expect("closed");
    assert_eq!(waiting.await.expect("no panic"), Err(Error::LeaseNotFound { lease }));
    assert_eq!(claims(&trio.nodes[0]).len(), 1);
    trio.stop().await;
}
