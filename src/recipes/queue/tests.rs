//! Queues of three nodes on a paused clock.

use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;
use std::sync::{Arc, Mutex};

use super::*;
use crate::api::cluster::Outcome;
use crate::api::session::LostReason;
use crate::api::testing::{Dice, HUNG, Trio, eventually, ms, single, until};
use crate::api::txn::put;
use crate::format::queue::part_range;
use crate::recipes::testing::{TTL, claims, isolations, standing, traces, wipe};
use crate::types::Revision;

fn queue(cluster: &Cluster) -> Queue<u32> {
    cluster.queue("q").ttl(TTL)
}

async fn push(cluster: &Cluster, value: u32) -> Revision {
    queue(cluster).push(&value).await.expect("pushed").revision
}

async fn pop(cluster: &Cluster) -> Delivery<u32> {
    queue(cluster).timeout(ms(20_000)).pop().await.expect("popped")
}

fn popping(cluster: &Cluster) -> rt::Task<Result<Delivery<u32>, Error>> {
    rt::spawn("popping", queue(cluster).timeout(HUNG).pop().into_future())
}

fn value(delivery: &Delivery<u32>) -> u32 {
    delivery.value().expect("a number")
}

/// How many keys this node knows of the queue, beside the claims.
fn kept(cluster: &Cluster) -> usize {
    let view = cluster.node().state().view();
    let keys = |part| view.count(&part_range("q", part)).expect("readable") as usize;
    keys(Part::Item) + keys(Part::Tally) + keys(Part::Dead)
}

#[tokio::test(start_paused = true)]
async fn items_are_given_out_in_the_order_of_their_pushes_and_nothing_is_left_of_what_is_done() {
    let trio = Trio::start().await;
    let mut pushed = Vec::new();
    for n in 0..9 {
        pushed.push(push(&trio.nodes[n % 3], n as u32).await);
    }
    assert!(pushed.is_sorted_by(|a, b| a < b));
    // The leases of the processes' own records stay.
    let before = traces(&trio.nodes[(pushed.len() - 1) % 3]);
    for (n, id) in pushed.into_iter().enumerate() {
        let item = pop(&trio.nodes[(n + 1) % 3]).await;
        assert_eq!((item.id(), value(&item), item.deliveries()), (id, n as u32, 1));
        item.ack().await.expect("acknowledged");
    }
    for node in &trio.nodes {
        until("nothing left", || kept(node) == 0 && traces(node) == before).await;
    }
    assert!(queue(&trio.nodes[0]).pop().try_now().await.expect("asked").is_none());
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_behind_does_not_say_that_there_is_nothing() {
    let trio = Trio::start().await;
    trio.network.delay(ms(5));
    let mut late = 0;
    for n in 0..20 {
        let (leader, follower, _) = trio.roles().await;
        let pushed = push(&trio.nodes[leader], n).await;
        late += u32::from(trio.nodes[follower].status().revision < pushed);
        let item = queue(&trio.nodes[follower]).pop().try_now().await.expect("asked").expect("it was pushed before");
        item.ack().await.expect("acknowledged");
        assert!(queue(&trio.nodes[leader]).pop().try_now().await.expect("asked").is_none());
    }
    assert!(late > 10, "the follower was hardly ever behind: {late}");
    trio.stop().await;
}

/// A pusher that is far behind mints an id below those of items that were pushed before.
#[tokio::test(start_paused = true)]
async fn what_counts_is_when_an_item_was_pushed_and_not_what_its_pusher_had_seen() {
    let cluster = single(|_| {}).await;
    for n in 0..50 {
        push(&cluster, n).await;
    }
    for n in 50..60u32 {
        let key = part_key("q", Part::Item, &item_id(Revision::new(u64::from(60 - n)), 7));
        let item = stored("q", &n).expect("fits");
        let then = vec![Op::Put { key, value: item, lease: Attach::Forever, prev: false }];
        cluster.write(Txn { then: then.into(), ..Txn::default() }, ms(5000)).await.expect("written");
    }
    push(&cluster, 60).await;
    let mut held = Vec::new();
    for n in 0..=60 {
        let item = pop(&cluster).await;
        assert_eq!(value(&item), n);
        // Some are kept, so that what is worked on is stepped over.
        if n % 3 == 0 { held.push(item) } else { drop(item.ack().await.expect("acknowledged")) }
    }
    assert!(queue(&cluster).pop().try_now().await.expect("asked").is_none(), "somebody works on the others");
}

#[tokio::test(start_paused = true)]
async fn an_item_that_is_given_back_keeps_its_place() {
    let trio = Trio::start().await;
    for n in 0..4 {
        push(&trio.nodes[0], n).await;
    }
    let (first, second) = (pop(&trio.nodes[1]).await, pop(&trio.nodes[2]).await);
    first.release().await.expect("released");
    drop(second);
    standing(&trio.nodes[0], 0).await;
    for (n, deliveries) in [(0, 2), (1, 2), (2, 1), (3, 1)] {
        let item = pop(&trio.nodes[0]).await;
        assert_eq!((value(&item), item.deliveries()), (n, deliveries));
        item.ack().await.expect("acknowledged");
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_item_of_a_worker_that_is_gone_comes_before_those_behind_it_and_its_late_acknowledgement_is_refused() {
    let trio = Trio::start().await;
    let (cut, other, _) = trio.roles().await;
    for n in 0..3 {
        push(&trio.nodes[other], n).await;
    }
    let lost = pop(&trio.nodes[cut]).await;
    let kept_item = pop(&trio.nodes[other]).await;
    assert_eq!((value(&lost), value(&kept_item)), (0, 1));
    trio.isolate(cut);
    let redelivered = loop {
        let item = pop(&trio.nodes[other]).await;
        if value(&item) == 0 {
            break item;
        }
        assert!(!lost.valid_for().is_zero() || value(&item) == 2, "{item:?}");
        item.release().await.expect("released");
    };
    assert!(lost.valid_for().is_zero(), "it was given out again before its worker was told");
    assert_eq!(lost.lost().await, LostReason::Unsure);
    assert_eq!((redelivered.deliveries(), redelivered.id()), (2, lost.id()));
    assert!(redelivered.fence() > lost.fence());
    trio.network.heal();
    let fence = lost.fence().get();
    let late = lost.ack().then(put("done", &1u32)).await;
    assert!(matches!(late, Err(Error::Fenced { held, .. }) if held == fence), "{late:?}");
    assert!(trio.nodes[other].get::<u32>("done").await.expect("read").is_none(), "a refused acknowledgement wrote");
    redelivered.ack().then(put("done", &2u32)).await.expect("acknowledged");
    assert_eq!(*trio.nodes[cut].get::<u32>("done").await.expect("read").expect("written along"), 2);
    kept_item.ack().await.expect("acknowledged");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_waits_is_woken_by_a_push_a_release_and_an_expiry() {
    let trio = Trio::start().await;
    let (leader, follower, third) = trio.roles().await;
    let waiting = popping(&trio.nodes[follower]);
    rt::sleep(ms(20_000)).await;
    assert!(!waiting.is_finished());
    let started = rt::Instant::now();
    push(&trio.nodes[leader], 1).await;
    let item = waiting.await.expect("no panic").expect("popped");
    assert!(started.elapsed() < ms(200), "it took {:?}", started.elapsed());
    let waiting = popping(&trio.nodes[third]);
    rt::sleep(ms(5_000)).await;
    assert!(!waiting.is_finished(), "two work on one item");
    let started = rt::Instant::now();
    item.release().await.expect("released");
    let item = waiting.await.expect("no panic").expect("popped");
    assert!(started.elapsed() < ms(200), "it took {:?}", started.elapsed());
    let waiting = popping(&trio.nodes[leader]);
    rt::sleep(ms(5_000)).await;
    assert!(!waiting.is_finished(), "two work on one item");
    let started = rt::Instant::now();
    trio.isolate(third);
    let again = waiting.await.expect("no panic").expect("popped");
    assert!(started.elapsed() < TTL * 2, "it took {:?}", started.elapsed());
    assert_eq!((again.deliveries(), item.valid_for()), (3, Duration::ZERO));
    let patience = queue(&trio.nodes[follower]).timeout(ms(700)).pop().await;
    let Err(Error::NotApplied { why: Obstacle::Waiting, waited }) = patience else { panic!("{patience:?}") };
    assert!((ms(700)..ms(800)).contains(&waited), "{waited:?}");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_item_lives_by_the_session_it_was_popped_with() {
    let trio = Trio::start().await;
    let node = &trio.nodes[0];
    push(node, 1).await;
    push(node, 2).await;
    let session = node.session().ttl(TTL).name("worker").await.expect("opened");
    let items = [
        node.queue::<u32>("q").session(&session).pop().await.expect("popped"),
        node.queue::<u32>("q").session(&session).pop().await.expect("popped"),
    ];
    let waiting = rt::spawn("popping", node.queue::<u32>("q").session(&session).pop().into_future());
    let state = queue(&trio.nodes[1]).inspect().await.expect("read");
    let held: Vec<_> = state.held.iter().map(|held| (held.id, held.deliveries, held.holder.session.as_str())).collect();
    assert_eq!(held, [(items[0].id(), 1, "worker"), (items[1].id(), 1, "worker")]);
    rt::sleep(TTL * 5).await;
    assert!(items.iter().all(|item| !item.valid_for().is_zero()), "a session renews itself");
    let lease = session.lease();
    session.close().await.expect("closed");
    assert_eq!(items[0].lost().await, LostReason::Closed);
    assert_eq!(waiting.await.expect("no panic").map(drop), Err(Error::LeaseNotFound { lease }));
    let item = pop(&trio.nodes[2]).await;
    assert_eq!((value(&item), item.deliveries()), (1, 2));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pop_that_is_dropped_at_any_moment_leaves_the_item_to_others() {
    let trio = Trio::start().await;
    trio.network.delay(ms(3));
    let (_, follower, other) = trio.roles().await;
    // Waiting for an item.
    drop(popping(&trio.nodes[follower]).abort_on_drop());
    for node in &trio.nodes {
        push(node, 0).await;
        pop(node).await.ack().await.expect("acknowledged");
    }
    let before = traces(&trio.nodes[2]);
    let mut claimed = 0;
    for moment in 0..40 {
        push(&trio.nodes[other], moment).await;
        let popping = rt::timeout(ms(u64::from(moment)), queue(&trio.nodes[follower]).pop().into_future()).await;
        claimed += u32::from(popping.is_ok());
        drop(popping);
        eventually("the item is free", async || queue(&trio.nodes[other]).peek().await.expect("read").is_some()).await;
        let item = pop(&trio.nodes[other]).await;
        assert_eq!(value(&item), moment);
        item.ack().await.expect("acknowledged");
    }
    assert!(claimed > 3 && claimed < 37, "the moments were not before, in and behind the claim: {claimed}");
    for node in &trio.nodes {
        until("nothing left", || kept(node) == 0 && traces(node) == before).await;
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_to_grow_and_says_how_large_it_is() {
    let cluster = single(|_| {}).await;
    let small = queue(&cluster).capacity(3);
    for n in 0..3 {
        small.push(&n).await.expect("there is room");
    }
    let full = small.push(&3).await;
    let busy = Obstacle::Busy { what: "items in the queue", limit: 3 };
    assert_eq!(full, Err(Error::NotApplied { why: busy, waited: Duration::ZERO }));
    let item = pop(&cluster).await;
    assert!(small.push(&3).await.is_err(), "what is worked on is still there");
    item.ack().await.expect("acknowledged");
    small.push(&3).await.expect("there is room");
    assert_eq!(small.len().await, Ok(3));
    cluster.queue::<u32>("other").capacity(1).push(&1).await.expect("another queue is another place");
    let huge = cluster.queue::<Vec<u8>>("q").push(&vec![0; VALUE_BYTES_MAX - 6]).await;
    assert!(matches!(huge, Err(Error::Invalid { what: "value", .. })), "{huge:?}");
    let named = cluster.queue::<u32>("").push(&1).await;
    assert!(matches!(named, Err(Error::Invalid { what: "queue name", .. })), "{named:?}");
}

#[tokio::test(start_paused = true)]
async fn an_item_that_was_given_out_too_often_becomes_a_dead_letter_to_be_looked_at_and_discarded() {
    let trio = Trio::start().await;
    let limited = |place: usize| queue(&trio.nodes[place]).max_deliveries(2).capacity(2);
    let poison = push(&trio.nodes[0], 1).await;
    push(&trio.nodes[0], 2).await;
    for deliveries in [1, 2] {
        let item = limited(1).pop().await.expect("popped");
        assert_eq!((item.id(), item.deliveries()), (poison, deliveries));
        item.release().await.expect("released");
    }
    let next = limited(2).pop().try_now().await.expect("asked").expect("there is another one");
    assert_eq!((value(&next), next.deliveries()), (2, 1));
    let letters = limited(0).dead_letters().await.expect("read");
    let [letter] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!((letter.id, letter.deliveries, letter.value()), (poison, 2, Ok(1)));
    let state = limited(0).inspect().await.expect("read");
    assert_eq!((state.waiting, state.held.len(), state.dead, limited(0).len().await), (0, 1, 1, Ok(1)));
    assert!(limited(0).push(&3).await.is_err(), "a dead letter takes room");
    let peeked = limited(0).peek().await.expect("read");
    assert_eq!(peeked, None);
    assert_eq!(limited(0).discard(letter).await, Ok(true));
    assert_eq!(limited(1).discard(letter).await, Ok(false));
    let foreign = trio.nodes[0].queue::<u32>("other").discard(letter).await;
    assert!(matches!(foreign, Err(Error::Invalid { what: "dead letter", .. })), "{foreign:?}");
    next.ack().await.expect("acknowledged");
    assert_eq!(kept(&trio.nodes[trio.leader().await]), 0);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_look_shows_what_waits_who_works_and_how_often_it_was_given_out() {
    let trio = Trio::start().await;
    let look = queue(&trio.nodes[2]);
    assert_eq!((look.peek().await, look.is_empty().await), (Ok(None), Ok(true)));
    let ids = [push(&trio.nodes[0], 7).await, push(&trio.nodes[0], 8).await, push(&trio.nodes[0], 9).await];
    pop(&trio.nodes[1]).await.release().await.expect("released");
    let next = look.peek().await.expect("read").expect("nobody works");
    assert_eq!((next.id, next.deliveries, next.value()), (ids[0], 1, Ok(7)));
    let (first, second) = (pop(&trio.nodes[1]).await, pop(&trio.nodes[0]).await);
    let state = look.inspect().await.expect("read");
    let held: Vec<_> = state.held.iter().map(|held| (held.id, held.deliveries, held.holder.fence)).collect();
    assert_eq!(held, [(ids[0], 2, first.fence()), (ids[1], 1, second.fence())]);
    assert_eq!((state.held[0].holder.member.as_str(), state.held[1].holder.member.as_str()), ("b", "a"));
    assert_eq!((state.waiting, state.dead, look.len().await), (1, 0, Ok(3)));
    assert_eq!(look.peek().await.expect("read").map(|item| item.id), Some(ids[2]));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_item_of_another_type_can_still_be_taken_out() {
    let cluster = single(|_| {}).await;
    cluster.queue::<crate::codec::Json<String>>("q").push(&crate::codec::Json("a".into())).await.expect("pushed");
    let item = pop(&cluster).await;
    assert!(matches!(item.value(), Err(Error::Codec { .. })));
    item.ack().await.expect("acknowledged");
    assert_eq!(queue(&cluster).is_empty().await, Ok(true));
}

/// What was answered is in the queue once; what was not answered is settled by its ticket.
#[tokio::test(start_paused = true)]
async fn every_push_is_in_the_queue_once_through_lost_answers_and_changes_of_leader() {
    let trio = Trio::start().await;
    trio.network.delay(ms(2));
    let pushing = (0..30u32).map(|who| {
        let queue = trio.nodes[who as usize % 3].queue::<u32>("q").timeout(ms(1500));
        rt::spawn("pushing", async move {
            let mut answers = Vec::new();
            for n in 0..4 {
                answers.push((who * 10 + n, queue.push(&(who * 10 + n)).await));
                rt::sleep(ms(50)).await;
            }
            answers
        })
    });
    let pushing: Vec<_> = pushing.collect();
    for _ in 0..3 {
        rt::sleep(ms(150)).await;
        let leader = trio.leader().await;
        trio.isolate(leader);
        rt::sleep(ms(1200)).await;
        trio.network.heal();
    }
    let (mut expected, mut unknown) = (BTreeMap::new(), 0);
    for task in pushing {
        for (value, answer) in task.await.expect("no panic") {
            match answer {
                Ok(written) => drop(expected.insert(written.revision, value)),
                Err(Error::Indeterminate { ticket }) => {
                    unknown += 1;
                    if let Outcome::Applied(revision) = trio.nodes[0].resolve(&ticket).await.expect("answered") {
                        expected.insert(revision, value);
                    }
                }
                Err(Error::NotApplied { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(expected.len() > 60, "hardly anything was pushed: {} and {unknown} unknown", expected.len());
    let mut popped = BTreeMap::new();
    while let Some(item) = queue(&trio.nodes[1]).pop().try_now().await.expect("asked") {
        assert!(popped.last_key_value().is_none_or(|(last, _)| *last < item.id()), "out of order: {item:?}");
        popped.insert(item.id(), value(&item));
        item.ack().await.expect("acknowledged");
    }
    assert_eq!(popped, expected);
    trio.stop().await;
}

/// Who works on which item, and everything that was wrong with that.
#[derive(Default)]
struct Seen {
    working: BTreeSet<Revision>,
    given: u32,
    wrong: Vec<String>,
}

/// Works on items, some of them in vain, and writes down each that it has finished, until it is told to stop.
async fn work(cluster: Cluster, seen: Arc<Mutex<Seen>>, mut dice: Dice) {
    loop {
        let Ok(item) = queue(&cluster).timeout(ms(20_000)).pop().await else { continue };
        let id = item.id();
        {
            let mut seen = seen.lock().unwrap();
            seen.given += 1;
            if !seen.working.insert(id) {
                seen.wrong.push(format!("two work on item {id}"));
            }
        }
        let worked = item.run(rt::sleep(ms(dice.roll(300)))).await;
        seen.lock().unwrap().working.remove(&id);
        if worked.is_ok() && dice.roll(5) > 0 {
            let done = format!("done/{}", item.value().expect("a number"));
            // What became of it is in the record.
            let _ = item.ack().then(put(done, &id.get())).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn through_isolations_an_item_has_one_worker_at_a_time_and_is_finished_once() {
    for seed in [1, 2] {
        let trio = Trio::start().await;
        let seen: Arc<Mutex<Seen>> = Arc::default();
        for n in 0..40 {
            push(&trio.nodes[n % 3], n as u32).await;
        }
        let workers: Vec<_> = (0..5)
            .map(|who| {
                let (cluster, seen) = (trio.nodes[who % 3].clone(), seen.clone());
                rt::spawn("worker", work(cluster, seen, Dice(seed * 100 + who as u64))).abort_on_drop()
            })
            .collect();
        isolations(&trio, Dice(seed), 4).await;
        eventually("an empty queue", async || queue(&trio.nodes[0]).is_empty().await == Ok(true)).await;
        drop(workers);
        {
            let seen = seen.lock().unwrap();
            assert!(seen.wrong.is_empty(), "seed {seed}: {:?}", seen.wrong);
            assert!(seen.given > 45, "seed {seed}: nothing was given out again: {}", seen.given);
        }
        for n in 0..40 {
            let history = trio.nodes[0].explain::<u64>(format!("done/{n}")).await.expect("read");
            assert_eq!(history.len(), 1, "seed {seed}: item {n} was not finished once: {history:?}");
        }
        let leader = trio.leader().await;
        until("nothing left", || kept(&trio.nodes[leader]) == 0 && claims(&trio.nodes[leader]).is_empty()).await;
        trio.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_held_to_an_item_is_refused_once_the_item_is_somebody_elses() {
    let cluster = single(|_| ()).await;
    push(&cluster, 1).await;
    // Shared, as work that is spread over tasks would have it.
    let item = Arc::new(pop(&cluster).await);
    cluster.set("result", &1u32).fenced(&item).await.expect("it is held");
    wipe(&cluster).await;
    let late = cluster.set("result", &2u32).fenced(&item).await;
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
    assert_eq!(cluster.get::<u32>("result").await.expect("read").map(|result| *result), Some(1));
    cluster.shutdown().await.expect("stops");
}
