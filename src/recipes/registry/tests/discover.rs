//! What a discovery lists and tells.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::api::testing::{Dice, Trio, ms};
use crate::recipes::testing::TTL;
use crate::rt;

async fn register(cluster: &Cluster, id: &str, instance: Instance) -> Registration {
    cluster.services().register("web", instance).id(id).ttl(TTL).await.expect("registers")
}

/// The next events, in few words.
async fn next(discovery: &mut Discovery) -> Vec<String> {
    let events = rt::timeout(Duration::from_secs(60), discovery.changed()).await.expect("nothing happens");
    events.expect("the node runs").iter().map(short).collect()
}

fn short(event: &InstanceEvent) -> String {
    match event {
        InstanceEvent::Registered { id, now } => format!("{id} registered {}", now.port),
        InstanceEvent::Updated { id, now, before } => format!("{id} updated {} {}", before.port, now.port),
        InstanceEvent::Replaced { id, now, before } => format!("{id} replaced {} {}", before.port, now.port),
        InstanceEvent::Gone { id, why, before } => format!("{id} gone {} {why:?}", before.port),
    }
}

fn listed(instances: &Instances) -> Vec<(String, u16)> {
    instances.iter().map(|(id, record)| (id.to_owned(), record.port)).collect()
}

#[tokio::test(start_paused = true)]
async fn each_event_says_what_happened_to_the_instance_and_why() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let mut web = trio.nodes[there].services().discover("web").await.expect("opens");
    let other = trio.nodes[here].services().register("website", at(99)).ttl(TTL).await.expect("registers");
    let one = register(&trio.nodes[here], "1", at(80)).await;
    assert_eq!(next(&mut web).await, ["1 registered 80"]);
    one.update(at(81)).await.expect("valid");
    assert_eq!(next(&mut web).await, ["1 updated 80 81"]);
    let again = register(&trio.nodes[there], "1", at(82)).await;
    assert_eq!(next(&mut web).await, ["1 replaced 81 82"]);
    again.deregister().await.expect("deregistered");
    assert_eq!(next(&mut web).await, ["1 gone 82 Deregistered"]);

    let two = register(&trio.nodes[here], "2", at(80)).await;
    assert_eq!(next(&mut web).await, ["2 registered 80"]);
    trio.nodes[there].table(SERVICES).delete(("web", "2")).await.expect("deletes");
    assert_eq!(next(&mut web).await, ["2 gone 80 Deleted"]);
    assert_eq!(next(&mut web).await, ["2 registered 80"]);
    trio.isolate(here);
    assert_eq!(next(&mut web).await, ["2 gone 80 Expired"]);
    trio.network.heal();
    assert_eq!(next(&mut web).await, ["2 registered 80"]);
    drop(two);
    assert_eq!(next(&mut web).await, ["2 gone 80 Deregistered"]);

    let sick = trio.nodes[here].services().register("web", at(80)).id("3").ttl(TTL).probe_every(ms(100));
    let born = rt::Instant::now();
    let sick =
        sick.healthy_when(move || async move { if born.elapsed() < ms(500) { Ok(()) } else { Err("worn out") } });
    let sick = sick.await.expect("registers");
    assert_eq!(next(&mut web).await, ["3 registered 80"]);
    assert_eq!(next(&mut web).await, ["3 gone 80 Unhealthy(\"worn out\")"]);
    assert!(web.load().is_empty() && other.state().is_registered());
    drop(sick);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_looks_late_is_told_the_last_reason() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let mut web = trio.nodes[there].services().discover("web").await.expect("opens");
    let left = register(&trio.nodes[here], "left", at(80)).await;
    let torn = register(&trio.nodes[here], "torn", at(80)).await;
    let twice = register(&trio.nodes[here], "twice", at(80)).await;
    web.wait_for(|web| web.len() == 3).await.expect("runs");
    trio.nodes[there].table(SERVICES).delete(("web", "twice")).await.expect("deletes");
    eventually("put again", || async { ids(&trio.nodes[there]).await.len() == 3 }).await;
    twice.deregister().await.expect("deregistered");
    left.deregister().await.expect("deregistered");
    // The node of this one cannot put it again.
    trio.isolate(here);
    trio.nodes[there].table(SERVICES).delete(("web", "torn")).await.expect("deletes");
    settled(&trio.nodes[there], &[]).await;
    let mut late = web.clone();
    let told = ["left gone 80 Deregistered", "torn gone 80 Deleted", "twice gone 80 Deregistered"];
    assert_eq!(
        (next(&mut web).await, next(&mut late).await),
        (told.map(String::from).into(), told.map(String::from).into())
    );
    drop(torn);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_filter_lists_those_whose_metadata_has_all_of_its_entries() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let a = register(&trio.nodes[here], "a", at(1).meta("zone", "a").meta("tier", "gold")).await;
    let _b = register(&trio.nodes[here], "b", at(2).meta("zone", "b").meta("tier", "gold")).await;
    let c = register(&trio.nodes[here], "c", at(3)).await;
    let services = trio.nodes[there].services();
    let mut gold = services.discover("web").with("tier", "gold").await.expect("opens");
    let gold_a = services.discover("web").with("tier", "gold").with("zone", "a").stale().await.expect("opens");
    assert_eq!(listed(&gold.load()), [("a".to_string(), 1), ("b".to_string(), 2)]);
    assert_eq!(listed(&gold_a.load()), [("a".to_string(), 1)]);
    assert_eq!((gold.load().len(), services.discover("web").await.expect("opens").load().len()), (2, 3));
    assert!(gold.load().get("c").is_none() && gold.load().get("b").is_some_and(|b| b.port == 2));
    // What happens to others is not told.
    let updated = c.update(at(4)).await.expect("valid");
    a.update(at(5).meta("tier", "silver")).await.expect("valid");
    assert_eq!(next(&mut gold).await, ["a gone 1 Filtered"]);
    a.update(at(6).meta("tier", "gold")).await.expect("valid");
    assert_eq!(next(&mut gold).await, ["a registered 6"]);
    let RegistrationState::Registered { revision } = updated else { panic!("{updated:?}") };
    let now = services.discover("web").await.expect("opens").at_least(revision).await.expect("runs");
    assert_eq!(now.get("c").map(|c| c.port), Some(4));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn instances_are_picked_and_ordered_by_priority_and_weight() {
    let trio = Trio::start().await;
    let mut held = Vec::new();
    for (id, priority, weight) in [("a", 10, 30), ("b", 10, 10), ("backup", 20, 0), ("c", 10, 0)] {
        held.push(register(&trio.nodes[0], id, at(80).priority(priority).weight(weight)).await);
    }
    let web = trio.nodes[1].services().discover("web").await.expect("opens");
    let mut picked: BTreeMap<u16, u32> = BTreeMap::new();
    for _ in 0..4000 {
        *picked.entry(web.pick().expect("there are some").weight).or_default() += 1;
        let order = web.order();
        assert_eq!((order.len(), order[3].priority), (4, 20));
    }
    // Of 41 draws 30 and 10, and one for the weight 0; far more than five standard deviations of room.
    let of = |weight| picked.get(&weight).copied().unwrap_or(0);
    assert!((2650..3200).contains(&of(30)) && (780..1200).contains(&of(10)) && of(0) < 250, "{picked:?}");
    let once = trio.nodes[2].services().endpoints("web").await.expect("read");
    assert!(once.len() == 4 && once[3].0 == "backup", "{once:?}");
    assert!(trio.nodes[1].services().discover("nobody").await.expect("opens").pick().is_none());
    trio.stop().await;
}

/// The events add up: applied to the list that was there, they give the list that is there.
#[tokio::test(start_paused = true)]
async fn whatever_happens_and_however_slow_the_reader_is_the_events_add_up_to_the_list() {
    for seed in 0..4 {
        let (mut dice, trio) = (Dice(seed), Trio::start().await);
        let mut web = trio.nodes[1].services().discover("web").with("zone", "a").await.expect("opens");
        let mut list: BTreeMap<String, u16> = BTreeMap::new();
        let mut held: BTreeMap<String, Registration> = BTreeMap::new();
        for step in 0..60 {
            let (node, id) = (&trio.nodes[dice.roll(3) as usize], dice.roll(4).to_string());
            let instance = at(100 + step).meta("zone", if dice.roll(3) == 0 { "b" } else { "a" });
            match (dice.roll(6), held.get(&id)) {
                (0, _) => drop(held.remove(&id)),
                (1, _) => drop(node.table(SERVICES).delete(("web", id.as_str())).await.expect("deletes")),
                (2 | 3, Some(registration)) => drop(registration.update(instance).await.expect("valid")),
                _ => drop(held.insert(id.clone(), register(node, &id, instance).await)),
            }
            if dice.roll(3) > 0 {
                continue;
            }
            rt::sleep(ms(dice.roll(300))).await;
            while let Some(events) = futures::FutureExt::now_or_never(web.changed()) {
                for event in events.expect("the node runs") {
                    let id = event.id().to_owned();
                    let known = match &event {
                        InstanceEvent::Registered { now, .. } => list.insert(id, now.port).is_none(),
                        InstanceEvent::Updated { now, before, .. } | InstanceEvent::Replaced { now, before, .. } => {
                            list.insert(id, now.port) == Some(before.port)
                        }
                        InstanceEvent::Gone { before, .. } => list.remove(&id) == Some(before.port),
                    };
                    assert!(known, "seed {seed}, step {step}: {event:?} after {list:?}");
                }
            }
            assert_eq!(listed(&web.load()), list.clone().into_iter().collect::<Vec<_>>(), "seed {seed}, step {step}");
        }
        trio.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_cut_off_goes_on_to_list_what_it_knew_and_one_that_has_stopped_says_so() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let one = register(&trio.nodes[here], "1", at(80)).await;
    let mut web = trio.nodes[there].services().discover("web").await.expect("opens");
    trio.isolate(there);
    one.deregister().await.expect("deregistered");
    rt::sleep(TTL * 3).await;
    assert_eq!(web.load().len(), 1);
    assert!(web.staleness().is_none_or(|stale| stale >= TTL * 2), "{:?}", web.staleness());
    trio.network.heal();
    assert!(web.wait_for(Instances::is_empty).await.expect("runs").is_empty());
    trio.nodes[there].shutdown().await.expect("stops");
    assert!(matches!(web.changed().await, Err(Error::Stopped { .. })));
    assert!(web.load().is_empty());
    trio.stop().await;
}
