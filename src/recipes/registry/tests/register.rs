//! Registrations through deletions, partitions, restarts and failing probes.

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::api::session::LostReason;
use crate::api::testing::{HUNG, Trio, ms, until};
use crate::recipes::testing::TTL;
use crate::rt;
use crate::types::{LeaseId, Revision};

fn registering(cluster: &Cluster, id: &str) -> Register {
    cluster.services().register("web", at(80)).id(id).ttl(TTL)
}

async fn register(cluster: &Cluster, id: &str) -> Registration {
    registering(cluster, id).await.expect("registers")
}

fn leases(cluster: &Cluster) -> usize {
    cluster.node().state().view().leases().expect("readable").len()
}

fn lost(reason: LostReason) -> RegistrationState {
    RegistrationState::Lost { reason }
}

/// The next state; a test that waits in vain says so.
async fn next(states: &mut RegistrationStates) -> Option<RegistrationState> {
    rt::timeout(HUNG, states.changed()).await.expect("nothing happens")
}

/// The state it ends in.
async fn end(registration: &Registration) -> RegistrationState {
    rt::timeout(HUNG, registration.states().wait_for(|_| false)).await.expect("it does not end")
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_listed_on_every_node_until_it_is_deregistered_and_says_that_it_goes() {
    let trio = Trio::start().await;
    let mut watch = trio.nodes[2].table(SERVICES).watch(..).await.expect("opens");
    let web = register(&trio.nodes[0], "web-1").await;
    assert!(web.state().is_registered());
    for node in &trio.nodes {
        let listed = node.services().list("web").await.expect("reads");
        let [(id, entry)] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((id.as_str(), &entry.instance, entry.registrar.as_str()), ("web-1", &at(80), "a"));
        assert_eq!((entry.incarnation, entry.ttl), (web.incarnation(), Some(TTL)));
        assert_eq!(web.state(), RegistrationState::Registered { revision: entry.modified });
    }
    rt::sleep(TTL * 3).await;
    settled(&trio.nodes[1], &["web-1"]).await;
    web.deregister().await.expect("deregistered");
    assert_eq!(trio.nodes[1].services().list("web").await, Ok(vec![]));
    settled(&trio.nodes[2], &[]).await;
    assert_eq!(told(&mut watch).await, ["10.0.0.7:80", "leaving: Deregistered", "Deleted"]);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_somebody_deletes_is_put_again_at_once_and_more_slowly_if_that_goes_on() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let web = register(&trio.nodes[here], "web-1").await;
    let mut states = web.states();
    rt::sleep(Duration::from_secs(20)).await;
    let mut repairs = Vec::new();
    for _ in 0..6 {
        let deleted = trio.nodes[there].table(SERVICES).delete(("web", "web-1")).await.expect("deletes");
        assert_eq!((deleted.count, next(&mut states).await), (1, Some(lost(LostReason::Deleted))));
        let gone = rt::Instant::now();
        let Some(RegistrationState::Registered { revision }) = next(&mut states).await else { panic!("{web:?}") };
        assert!(revision > deleted.revision);
        repairs.push(rt::Instant::now() - gone);
    }
    assert!(repairs[0] < ms(50), "{repairs:?}");
    for (nth, repair) in repairs.iter().enumerate().skip(1) {
        let pause = ms(100 << (nth - 1));
        assert!((pause..pause * 5 / 4 + ms(50)).contains(repair), "repair {nth}: {repairs:?}");
    }
    // And when it has stood for a while, at once again.
    rt::sleep(Duration::from_secs(20)).await;
    let deleted = trio.nodes[there].table(SERVICES).delete(..).await.expect("deletes");
    let gone = rt::Instant::now();
    trio.nodes[here].node().wait_revision(deleted.revision).await.expect("runs");
    settled(&trio.nodes[here], &["web-1"]).await;
    assert!(rt::Instant::now() - gone < ms(50), "{:?}", rt::Instant::now() - gone);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_was_cut_off_for_longer_than_its_ttl_is_listed_again_when_it_is_back() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let web = register(&trio.nodes[here], "web-1").await;
    let (mut states, incarnation, before) = (web.states(), web.incarnation(), trio.nodes[here].status().revision);
    trio.isolate(here);
    let cut = rt::Instant::now();
    assert_eq!(next(&mut states).await, Some(lost(LostReason::Unsure)));
    assert!(rt::Instant::now() - cut <= TTL, "it believed to be listed for {:?}", rt::Instant::now() - cut);
    settled(&trio.nodes[there], &[]).await;
    rt::sleep(TTL * 3).await;
    assert_eq!(web.state(), lost(LostReason::Unsure));
    trio.network.heal();
    assert_eq!(next(&mut states).await, Some(lost(LostReason::Expired)));
    let again = next(&mut states).await;
    let Some(RegistrationState::Registered { revision }) = again else { panic!("{again:?}") };
    assert!(revision > before, "what it had put before is gone");
    settled(&trio.nodes[there], &["web-1"]).await;
    assert_eq!(records(&trio.nodes[there]).await[0].1.incarnation, incarnation);
    rt::sleep(TTL * 3).await;
    assert_eq!((ids(&trio.nodes[there]).await.len(), web.state().is_registered()), (1, true));
    trio.stop().await;
}

/// Shorter than the ttl: the lease still exists, and nobody else has noticed.
#[tokio::test(start_paused = true)]
async fn an_instance_whose_node_cannot_renew_for_a_while_is_unsure_and_then_as_registered_as_before() {
    let trio = Trio::start().await;
    let (leader, _, there) = trio.roles().await;
    let web = register(&trio.nodes[leader], "web-1").await;
    let (mut states, before) = (web.states(), web.state());
    let mut watch = trio.nodes[there].table(SERVICES).watch(..).await.expect("opens");
    trio.isolate(leader);
    // Its successor gives the lease a full time.
    assert_eq!(next(&mut states).await, Some(lost(LostReason::Unsure)));
    trio.network.heal();
    assert_eq!(next(&mut states).await, Some(before));
    rt::sleep(TTL * 3).await;
    assert_eq!(told(&mut watch).await, [""; 0], "watchers have seen something");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_instance_replaces_its_record_at_once_and_the_old_registration_does_not_fight() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    // Both processes' own client records are there from now on.
    register(&trio.nodes[there], "web-0").await.deregister().await.expect("deregistered");
    let old = register(&trio.nodes[here], "web-1").await;
    trio.nodes[there].node().wait_revision(trio.nodes[here].status().revision).await.expect("runs");
    let before = leases(&trio.nodes[there]);
    let mut watch = trio.nodes[there].table(SERVICES).watch(..).await.expect("opens");
    let asked = rt::Instant::now();
    let new = trio.nodes[there].services().register("web", at(81)).id("web-1").ttl(TTL).await.expect("registers");
    assert!(new.state().is_registered() && rt::Instant::now() - asked < TTL / 4);
    assert!(new.incarnation() > old.incarnation());
    let ended = end(&old).await;
    assert_eq!(ended, RegistrationState::Replaced { by: Some(new.incarnation()) });
    rt::sleep(TTL * 3).await;
    assert_eq!(leases(&trio.nodes[there]), before, "the old lease should have been given up");
    let now = records(&trio.nodes[there]).await;
    assert_eq!((now.len(), now[0].1.port, now[0].1.version), (1, 81, 2), "{now:?}");
    assert_eq!((told(&mut watch).await, new.state().is_registered()), (vec!["10.0.0.7:81".to_string()], true));
    // The old one has ended: to deregister it changes nothing.
    old.deregister().await.expect("nothing to do");
    rt::sleep(TTL).await;
    settled(&trio.nodes[there], &["web-1"]).await;
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_comes_back_after_its_successor_registered_gives_way_to_it() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let old = register(&trio.nodes[here], "web-1").await;
    trio.isolate(here);
    settled(&trio.nodes[there], &[]).await;
    let new = register(&trio.nodes[there], "web-1").await;
    trio.network.heal();
    let ended = end(&old).await;
    assert_eq!(ended, RegistrationState::Replaced { by: Some(new.incarnation()) });
    let updated = old.update(at(82)).await.expect("valid");
    assert_eq!(updated, ended);
    rt::sleep(TTL * 3).await;
    let now = records(&trio.nodes[there]).await;
    assert_eq!((now.len(), now[0].1.version, now[0].1.incarnation), (1, 1, new.incarnation()));
    trio.stop().await;
}

/// After each number of milliseconds that registering may take, and after it is done.
#[tokio::test(start_paused = true)]
async fn a_registration_that_is_dropped_at_whatever_moment_leaves_neither_record_nor_lease() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let cluster = &trio.nodes[here];
    // The process's own client record is there from now on.
    register(cluster, "web-1").await.deregister().await.expect("deregistered");
    let before = leases(cluster);
    trio.network.delay(ms(5));
    for after in (0..80).step_by(3) {
        drop(rt::timeout(ms(after), registering(cluster, "web-1").into_future()).await);
        rt::sleep(ms(300)).await;
        assert_eq!((ids(&trio.nodes[there]).await.len(), leases(cluster)), (0, before), "dropped after {after} ms");
    }
    trio.stop().await;
}

/// What a probe answers: the number of noes to come; from 1000 on it panics, from 2000 on it hangs.
fn probed(cluster: &Cluster, noes: &Arc<AtomicU32>) -> Register {
    let noes = noes.clone();
    let probe = move || {
        let noes = noes.clone();
        async move {
            match noes.load(Ordering::Relaxed) {
                0 => Ok(()),
                1000..2000 => panic!("the probe's own mistake"),
                2000.. => std::future::pending().await,
                left => {
                    noes.store(left - 1, Ordering::Relaxed);
                    Err("database away")
                }
            }
        }
    };
    registering(cluster, "web-1").healthy_when(probe).probe_every(ms(100)).probe_timeout(ms(50)).unhealthy_after(3)
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_listed_while_its_probe_says_yes() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let mut watch = trio.nodes[there].table(SERVICES).watch(..).await.expect("opens");
    let noes = Arc::new(AtomicU32::new(4));
    let web = probed(&trio.nodes[here], &noes).await.expect("registers");
    let mut states = web.states();
    assert_eq!(web.state(), RegistrationState::Unhealthy { why: "database away".into() });
    assert_eq!(ids(&trio.nodes[there]).await, [""; 0]);
    assert!(next(&mut states).await.expect("goes on").is_registered());
    // Fewer than three in a row say nothing.
    for _ in 0..3 {
        noes.store(2, Ordering::Relaxed);
        rt::sleep(ms(1000)).await;
    }
    assert!(web.state().is_registered());
    noes.store(10, Ordering::Relaxed);
    assert_eq!(next(&mut states).await, Some(RegistrationState::Unhealthy { why: "database away".into() }));
    settled(&trio.nodes[there], &[]).await;
    assert!(next(&mut states).await.expect("goes on").is_registered());
    for (trouble, says) in [(1000, "task probe panicked"), (2000, "within 50ms")] {
        noes.store(trouble, Ordering::Relaxed);
        let Some(RegistrationState::Unhealthy { why }) = next(&mut states).await else { panic!("{web:?}") };
        assert!(why.contains(says), "{why}");
        noes.store(0, Ordering::Relaxed);
        assert!(next(&mut states).await.expect("goes on").is_registered());
    }
    settled(&trio.nodes[there], &["web-1"]).await;
    let told = told(&mut watch).await;
    let unhealthy = "leaving: Unhealthy(\"database away\")";
    assert_eq!(told[..4], ["10.0.0.7:80", unhealthy, "Deleted", "10.0.0.7:80"], "{told:?}");
    assert_eq!(told.iter().filter(|told| *told == "Deleted").count(), 3, "{told:?}");
    trio.stop().await;
}

/// The lease lives on while nothing hangs on it: being listed again takes one write, under the same incarnation.
#[tokio::test(start_paused = true)]
async fn an_unhealthy_instance_keeps_its_incarnation_and_its_place_to_come_back_to() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let noes = Arc::new(AtomicU32::new(0));
    let web = probed(&trio.nodes[here], &noes).await.expect("registers");
    noes.store(100, Ordering::Relaxed);
    settled(&trio.nodes[there], &[]).await;
    assert_eq!(web.update(at(85)).await, Ok(RegistrationState::Unhealthy { why: "database away".into() }));
    settled(&trio.nodes[there], &["web-1"]).await;
    let now = &records(&trio.nodes[there]).await[0].1;
    assert_eq!((now.incarnation, now.port, now.ttl), (web.incarnation(), 85, Some(TTL)));
    noes.store(100, Ordering::Relaxed);
    settled(&trio.nodes[there], &[]).await;
    let new = register(&trio.nodes[there], "web-1").await;
    let ended = end(&web).await;
    assert_eq!(ended, RegistrationState::Replaced { by: Some(new.incarnation()) });
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_update_is_registered_when_it_returns_and_the_last_one_stays() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let web = register(&trio.nodes[here], "web-1").await;
    let updating = web.update(at(81).meta("zone", "b"));
    let state = rt::timeout(HUNG, updating).await.expect("it is never registered").expect("valid");
    let listed = trio.nodes[there].services().list("web").await.expect("reads");
    assert_eq!(listed[0].1.instance, at(81).meta("zone", "b"));
    assert_eq!(state, RegistrationState::Registered { revision: listed[0].1.modified });
    assert_eq!((listed[0].1.version, listed[0].1.incarnation), (2, web.incarnation()));
    let refused = web.update(Instance::new("nowhere")).await;
    assert!(matches!(refused, Err(Error::Invalid { what: "address", .. })), "{refused:?}");
    let several = (0..20).map(|nth| web.update(at(100 + nth)));
    for state in futures::future::join_all(several).await {
        assert!(state.expect("valid").is_registered());
    }
    let listed = trio.nodes[there].services().list("web").await.expect("reads");
    assert_eq!((listed[0].1.port, web.instance()), (119, at(119)));
    trio.stop().await;
}

/// L7: a change of leader gives every record a full time.
#[tokio::test(start_paused = true)]
async fn registrations_survive_the_leaders_shutdown_without_a_watcher_noticing() {
    let trio = Trio::start().await;
    let (leader, here, there) = trio.roles().await;
    let (one, two) = (register(&trio.nodes[here], "web-1").await, register(&trio.nodes[there], "web-2").await);
    let mut watch = trio.nodes[here].table(SERVICES).watch(..).await.expect("opens");
    trio.nodes[leader].shutdown().await.expect("stops");
    rt::sleep(TTL * 5).await;
    assert!(one.state().is_registered() && two.state().is_registered());
    assert_eq!((ids(&trio.nodes[here]).await, told(&mut watch).await), (vec!["web-1".into(), "web-2".into()], vec![]));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_registration_ends_with_its_node_and_its_record_expires() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let web = register(&trio.nodes[here], "web-1").await;
    let mut watch = trio.nodes[there].table(SERVICES).watch(..).await.expect("opens");
    trio.nodes[here].shutdown().await.expect("stops");
    assert_eq!(end(&web).await, RegistrationState::Stopped);
    settled(&trio.nodes[there], &[]).await;
    assert_eq!(told(&mut watch).await, ["Expired"]);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_an_older_one_or_a_person_wrote_is_put_right_and_what_cannot_be_read_is_left_alone() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let web = register(&trio.nodes[here], "web-1").await;
    let by_hand = Registered { instance: at(6), ..Registered::default() };
    trio.nodes[there].table(SERVICES).set(("web", "web-1"), &by_hand).await.expect("sets");
    eventually("put right", || async { records(&trio.nodes[there]).await[0].1.port == 80 }).await;
    until("told", || web.state().is_registered()).await;
    const OF_ANOTHER_RELEASE: crate::Table<(&str, &str), u64> = crate::Table::new(SERVICES.name());
    trio.nodes[there].table(OF_ANOTHER_RELEASE).set(("web", "web-1"), &7).await.expect("sets");
    let ended = end(&web).await;
    assert_eq!(ended, RegistrationState::Replaced { by: None });
    rt::sleep(TTL * 3).await;
    assert_eq!(
        trio.nodes[there].table(OF_ANOTHER_RELEASE).get(("web", "web-1")).await.expect("read").as_deref(),
        Some(&7)
    );
    trio.stop().await;
}

/// The cluster cannot be reached: it ends here all the same, and there when the time is over.
#[tokio::test(start_paused = true)]
async fn deregistering_where_the_cluster_cannot_be_reached_says_so_and_the_record_expires() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let web = register(&trio.nodes[here], "web-1").await;
    trio.isolate(here);
    let left = web.deregister().await;
    assert!(matches!(left, Err(Error::NotApplied { .. })), "{left:?}");
    settled(&trio.nodes[there], &[]).await;
    trio.network.heal();
    rt::sleep(TTL * 3).await;
    settled(&trio.nodes[there], &[]).await;
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_out_of_range_is_refused_before_anything_is_sent() {
    let trio = Trio::start().await;
    let (services, before) = (trio.nodes[0].services(), trio.nodes[0].status().revision);
    let long = "x".repeat(256);
    let refused = |what: &'static str, register: Register| async move {
        let answer = register.await.map(|web| web.state());
        assert!(matches!(&answer, Err(Error::Invalid { what: found, .. }) if *found == what), "{what}: {answer:?}");
    };
    for service in ["", "we\nb", "we\0b", &long] {
        refused("service name", services.register(service, at(80))).await;
    }
    for id in ["", "\u{7f}", &long] {
        refused("instance id", services.register("web", at(80)).id(id)).await;
    }
    for address in [
        "",
        "host",
        "host:",
        "host:0",
        "host:65536",
        "host:+80",
        ":80",
        "::1:80",
        "[::1:80",
        "a b:80",
        "[web]x:80",
        &long,
    ] {
        refused("address", services.register("web", Instance::new(address))).await;
    }
    for host in
        ["10.0.0.7:80", "a;b", "x/y", "a b", "a\n", "häuser", "[::1]", "fe80::1%eth0", "::g", "{web}", "", &long]
    {
        refused("address", services.register("web", Instance::at(host, 80))).await;
    }
    refused("metadata", services.register("web", at(80).meta("k", "x".repeat(INSTANCE_METADATA_BYTES_MAX)))).await;
    let many = (0..=INSTANCE_METADATA_MAX).fold(at(80), |instance, nth| instance.meta(nth.to_string(), ""));
    refused("metadata", services.register("web", many)).await;
    refused("ttl", services.register("web", at(80)).ttl(ms(99))).await;
    refused("refresh", services.register("web", at(80)).ttl(TTL).refresh(TTL)).await;
    refused("probe interval", services.register("web", at(80)).probe_every(Duration::ZERO)).await;
    refused("probe timeout", services.register("web", at(80)).probe_timeout(Duration::MAX)).await;
    refused("unhealthy_after", services.register("web", at(80)).unhealthy_after(0)).await;
    assert_eq!(trio.nodes[0].status().revision, before);
    assert_eq!(before, Revision::ZERO);
    trio.stop().await;
}

#[test]
fn a_host_is_an_ip_address_or_a_name() {
    let longest = "x".repeat(INSTANCE_HOST_BYTES_MAX);
    for host in
        ["10.0.0.7", "::1", "2001:db8::7", "::ffff:10.0.0.7", "localhost", "web-1.EXAMPLE.org.", "_web_2", &longest]
    {
        assert_eq!(Instance::at(host, 80).check(), Ok(()), "{host}");
    }
    assert_eq!(Instance::new("[2001:db8::7]:80").check(), Ok(()));
    assert_eq!(Instance::from(std::net::SocketAddr::from(([0u16, 0, 0, 0, 0, 0, 0, 1], 80))).check(), Ok(()));
}

#[test]
fn the_table_leaves_the_plain_name_to_programs() {
    assert_eq!(SERVICES.name(), "quorate.services");
}

/// What other programs, and other releases, find in the table.
#[test]
fn a_record_is_json_and_what_one_release_does_not_know_does_not_disturb_it() {
    let instance = Instance::new("[::1]:80").meta("zone", "a").priority(1).weight(2);
    let record =
        Registered { instance, incarnation: Incarnation::of(LeaseId::new(7)), registrar: "a".into(), leaving: None };
    let text = serde_json::to_string(&record).expect("is JSON");
    let instance = r#"{"host":"::1","port":80,"priority":1,"weight":2,"metadata":{"zone":"a"}}"#;
    assert_eq!(text, format!(r#"{{"instance":{instance},"incarnation":7,"registrar":"a"}}"#));
    let other = r#"{"instance":{"host":"h","port":1,"region":"eu"},"incarnation":8,"since":9}"#;
    let read: Registered = serde_json::from_str(other).expect("is read");
    assert_eq!((read.instance, read.incarnation), (Instance::at("h", 1), Incarnation::of(LeaseId::new(8))));
    let leaving = Registered { leaving: Some(Leaving::Unhealthy("no".into())), ..record };
    let text = serde_json::to_string(&leaving).expect("is JSON");
    assert!(text.ends_with(r#""leaving":{"Unhealthy":"no"}}"#), "{text}");
    assert_eq!(serde_json::from_str::<Registered>(&text).expect("is read"), leaving);
}
