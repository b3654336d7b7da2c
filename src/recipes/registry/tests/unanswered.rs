//! Writes of a registration that are carried out after it has given up waiting for their answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;
use crate::api::session::LostReason;
use crate::api::testing::{HUNG, Trio, ms};
use crate::recipes::testing::TTL;
use crate::rt;

/// How long a write is waited for. At [`SLOW`], the leader has it by then, and no quorum.
const PATIENCE: Duration = Duration::from_millis(100);
/// What a frame takes: a follower's write is carried out after three times that and answered after four times.
const SLOW: Duration = Duration::from_millis(60);

async fn impatient() -> Trio {
    Trio::tuned(|settings| settings.timeout = PATIENCE).await
}

/// A registration that is listed while `well`, and asks for that every 10 ms.
async fn register(cluster: &Cluster, well: &Arc<AtomicBool>) -> Registration {
    let well = well.clone();
    let probe = move || std::future::ready(well.load(Ordering::Relaxed));
    let web = cluster.services().register("web", at(80)).id("web-1").ttl(TTL);
    let web = web.healthy_when(probe).probe_every(ms(10)).unhealthy_after(1).await.expect("registers");
    assert!(web.state().is_registered());
    web
}

/// The next state; a test that waits in vain says so.
async fn next(states: &mut RegistrationStates) -> RegistrationState {
    rt::timeout(HUNG, states.changed()).await.expect("nothing happens").expect("goes on")
}

fn unhealthy() -> RegistrationState {
    RegistrationState::Unhealthy { why: "the probe said no".into() }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_put_only_after_the_probe_has_said_no_is_taken_away() {
    let trio = impatient().await;
    let (leader, here, _) = trio.roles().await;
    let well = Arc::new(AtomicBool::new(true));
    let web = register(&trio.nodes[here], &well).await;
    let mut states = web.states();
    let mut watch = trio.nodes[leader].table(SERVICES).watch(..).await.expect("opens");
    trio.network.delay(SLOW);
    trio.nodes[leader].table(SERVICES).delete(("web", "web-1")).timeout(HUNG).await.expect("deletes");
    assert_eq!(next(&mut states).await, RegistrationState::Lost { reason: LostReason::Deleted });
    // It is being put again, and gives up on that before it is done.
    rt::sleep(ms(20)).await;
    well.store(false, Ordering::Relaxed);
    assert_eq!(next(&mut states).await, unhealthy());
    assert_eq!(told(&mut watch).await, ["Deleted"]);
    settled(&trio.nodes[leader], &["web-1"]).await;
    settled(&trio.nodes[leader], &[]).await;
    rt::sleep(TTL * 3).await;
    let told = told(&mut watch).await;
    assert_eq!(told[..2], ["10.0.0.7:80", "leaving: Unhealthy(\"the probe said no\")"], "{told:?}");
    assert_eq!((told.last().map(String::as_str), web.state()), (Some("Deleted"), unhealthy()), "{told:?}");
    assert_eq!(ids(&trio.nodes[leader]).await, [""; 0]);
    // And it comes back.
    trio.network.delay(Duration::ZERO);
    well.store(true, Ordering::Relaxed);
    settled(&trio.nodes[leader], &["web-1"]).await;
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_says_that_it_goes_goes_although_nobody_heard_that_it_says_so() {
    let trio = impatient().await;
    let (leader, here, _) = trio.roles().await;
    let well = Arc::new(AtomicBool::new(true));
    let web = register(&trio.nodes[here], &well).await;
    let mut states = web.states();
    trio.network.delay(SLOW);
    well.store(false, Ordering::Relaxed);
    assert_eq!(next(&mut states).await, unhealthy(), "it was not lost, least of all to somebody else");
    settled(&trio.nodes[leader], &[]).await;
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_healthy_again_before_its_leaving_is_carried_out_is_listed_again() {
    let trio = impatient().await;
    let (leader, here, _) = trio.roles().await;
    let well = Arc::new(AtomicBool::new(true));
    let web = register(&trio.nodes[here], &well).await;
    let (mut states, before) = (web.states(), web.state());
    let mut watch = trio.nodes[leader].table(SERVICES).watch(..).await.expect("opens");
    trio.network.delay(SLOW);
    well.store(false, Ordering::Relaxed);
    rt::sleep(ms(30)).await;
    well.store(true, Ordering::Relaxed);
    // As long as it is not listed it does not say that it is.
    assert_eq!(next(&mut states).await, RegistrationState::Lost { reason: LostReason::Unsure });
    let again = next(&mut states).await;
    assert!(again.is_registered() && again != before, "{again:?}");
    trio.network.delay(Duration::ZERO);
    rt::sleep(TTL).await;
    let listed = &records(&trio.nodes[leader]).await[0].1;
    assert!(!listed.is_leaving(), "{listed:?}");
    assert_eq!(web.state(), RegistrationState::Registered { revision: listed.modified });
    assert_eq!(told(&mut watch).await, ["leaving: Unhealthy(\"the probe said no\")", "10.0.0.7:80"]);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_update_that_is_carried_out_without_an_answer_is_not_taken_for_somebody_elses() {
    let trio = impatient().await;
    let (leader, here, _) = trio.roles().await;
    let web = register(&trio.nodes[here], &Arc::new(AtomicBool::new(true))).await;
    let mut states = web.states();
    trio.network.delay(SLOW);
    let updated = rt::timeout(HUNG, web.update(at(81))).await.expect("it is never registered").expect("valid");
    assert_eq!(next(&mut states).await, updated, "nothing else was told");
    trio.network.delay(Duration::ZERO);
    rt::sleep(TTL).await;
    let listed = &records(&trio.nodes[leader]).await[0].1;
    assert_eq!((listed.port, web.state()), (81, RegistrationState::Registered { revision: listed.modified }));
    trio.stop().await;
}

/// Of two updates, the answer of the first one is lost and the second one made before it is carried out.
#[tokio::test(start_paused = true)]
async fn an_update_is_not_registered_when_an_earlier_one_turns_out_to_be() {
    let trio = impatient().await;
    let (leader, here, _) = trio.roles().await;
    let web = register(&trio.nodes[here], &Arc::new(AtomicBool::new(true))).await;
    trio.network.delay(SLOW);
    let earlier = web.update(at(81));
    let later = async {
        rt::sleep(ms(20)).await;
        web.update(at(82)).await
    };
    let (_, later) = rt::timeout(HUNG, futures::future::join(earlier, later)).await.expect("never registered");
    assert!(later.expect("valid").is_registered());
    assert_eq!(records(&trio.nodes[leader]).await[0].1.port, 82);
    trio.stop().await;
}
