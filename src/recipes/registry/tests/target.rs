//! Registrations on behalf of others.

use super::*;
use crate::api::testing::{Trio, ms};
use crate::recipes::testing::TTL;
use crate::rt;

async fn target(cluster: &Cluster, id: &str) -> Target {
    cluster.services().register_for("web", id, at(80)).by("host-7").ttl(TTL).await.expect("registers")
}

#[tokio::test(start_paused = true)]
async fn each_target_is_listed_for_its_own_ttl_from_its_last_renewal() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let (mut kept, left) = (target(&trio.nodes[here], "c-1").await, target(&trio.nodes[here], "c-2").await);
    let registered = rt::Instant::now();
    settled(&trio.nodes[there], &["c-1", "c-2"]).await;
    assert_eq!(records(&trio.nodes[there]).await[0].1.registrar, "host-7");
    let mut watch = trio.nodes[there].table(SERVICES).watch(..).await.expect("opens");
    drop(left);
    let before = trio.nodes[there].status().revision;
    for _ in 0..6 {
        rt::sleep(TTL / 2).await;
        assert_eq!(kept.renew().await, Ok(Renewal::Renewed));
        let expected: &[&str] = if registered.elapsed() < TTL { &["c-1", "c-2"] } else { &["c-1"] };
        settled(&trio.nodes[there], expected).await;
    }
    assert_eq!(trio.nodes[there].status().revision, before.next(), "only the expiry was written");
    let renewed = rt::Instant::now();
    settled(&trio.nodes[there], &[]).await;
    assert!(renewed.elapsed() >= TTL && renewed.elapsed() < TTL * 2, "{:?}", renewed.elapsed());
    assert_eq!(told(&mut watch).await, ["Expired", "Expired"]);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_target_whose_record_is_gone_for_whatever_reason_is_restored_when_it_is_renewed() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let mut container = target(&trio.nodes[here], "c-1").await;
    trio.nodes[there].table(SERVICES).delete(..).await.expect("deletes");
    let Ok(Renewal::Restored(revision)) = container.renew().await else { panic!("{container:?}") };
    assert_eq!(trio.nodes[there].services().list("web").await.expect("reads")[0].1.modified, revision);
    assert_eq!(container.renew().await, Ok(Renewal::Renewed));
    settled(&trio.nodes[there], &["c-1"]).await;
    settled(&trio.nodes[there], &[]).await;
    assert!(matches!(container.renew().await, Ok(Renewal::Restored(_))));
    settled(&trio.nodes[there], &["c-1"]).await;
    let incarnation = records(&trio.nodes[there]).await[0].1.incarnation;
    assert_eq!(incarnation, container.incarnation());
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_registrar_that_comes_back_replaces_its_targets_at_once_and_the_old_ones_give_way() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let mut old = target(&trio.nodes[here], "c-1").await;
    let mut new = target(&trio.nodes[there], "c-1").await;
    assert!(new.incarnation() > old.incarnation());
    let replaced = Renewal::Replaced { by: Some(new.incarnation()) };
    assert!(!old.is_replaced() && !new.is_replaced(), "nobody has looked");
    assert_eq!((old.renew().await, old.update(at(81)).await), (Ok(replaced), Ok(replaced)));
    assert!(old.is_replaced());
    old.deregister().await.expect("ends its lease");
    rt::sleep(TTL / 2).await;
    assert_eq!(new.renew().await, Ok(Renewal::Renewed));
    rt::sleep(TTL * 3 / 4).await;
    let now = records(&trio.nodes[there]).await;
    assert_eq!((now.len(), now[0].1.version, now[0].1.incarnation), (1, 2, new.incarnation()), "{now:?}");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_target_is_updated_in_place_and_deregistered_at_once() {
    let trio = Trio::start().await;
    let (_, here, there) = trio.roles().await;
    let mut container = target(&trio.nodes[here], "c-1").await;
    let mut watch = trio.nodes[there].table(SERVICES).watch(..).await.expect("opens");
    assert_eq!(container.update(at(81)).await, Ok(Renewal::Renewed));
    let refused = container.update(Instance::new("nowhere")).await;
    assert!(matches!(refused, Err(Error::Invalid { what: "address", .. })), "{refused:?}");
    assert_eq!(container.instance(), &at(81));
    container.deregister().await.expect("deregistered");
    assert_eq!(trio.nodes[here].services().list("web").await, Ok(vec![]));
    settled(&trio.nodes[there], &[]).await;
    assert_eq!(told(&mut watch).await, ["10.0.0.7:81", "leaving: Deregistered", "Deleted"]);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_target_without_a_sensible_ttl_or_name_is_refused() {
    let trio = Trio::start().await;
    let services = trio.nodes[0].services();
    for (what, register) in [
        ("ttl", services.register_for("web", "c", at(80)).ttl(ms(99))),
        ("ttl", services.register_for("web", "c", at(80)).ttl(std::time::Duration::MAX)),
        ("service name", services.register_for("", "c", at(80))),
        ("instance id", services.register_for("web", "", at(80))),
        ("address", services.register_for("web", "c", Instance::default())),
        ("session name", services.register_for("web", "c", at(80)).by("x".repeat(257))),
    ] {
        let answer = register.await.map(|target| target.ttl());
        assert!(matches!(&answer, Err(Error::Invalid { what: found, .. }) if *found == what), "{what}: {answer:?}");
    }
    trio.stop().await;
}
