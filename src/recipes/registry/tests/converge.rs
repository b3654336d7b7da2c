//! Registrations of whole processes, through everything that the simulation can do to them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::sim::{self, Faults, Host, LostWrites, Sim};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

const TTL: Duration = Duration::from_secs(3);
const SECOND: Duration = Duration::from_secs(1);
const NAMES: [&str; 3] = ["node-1", "node-2", "node-3"];

/// What processes and scenario share.
#[derive(Clone, Default)]
struct World {
    /// The registrations that each process holds at this moment, by name of the process.
    held: Arc<Mutex<BTreeMap<String, Vec<RegistrationStates>>>>,
    /// While this is set, every second question to a probe is answered with no.
    ill: Arc<AtomicBool>,
}

/// A process: registers itself, something of weak health, stands for the one place that all want, and speaks for a container
/// that has no voice. A new life of it does so anew, under the same ids.
async fn process(host: Host, world: World) -> Result<(), AnyError> {
    let cluster = host.cluster().await?;
    let services = cluster.services();
    let (asked, ill) = (Arc::new(AtomicU32::new(0)), world.ill.clone());
    let probe = move || {
        let no = ill.load(Ordering::Relaxed) && asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        std::future::ready(!no)
    };
    let frail = |register: Register| {
        register.healthy_when(probe.clone()).probe_every(Duration::from_millis(300)).unhealthy_after(1)
    };
    let own = instance_of(&services, host.name(), |register| register).await;
    let frail = instance_of(&services, &format!("frail-{}", host.name()), frail).await;
    let shared = instance_of(&services, "shared", |register| register).await;
    let states = vec![shared.states(), own.states(), frail.states()];
    world.held.lock().expect("no panic").insert(host.name().to_owned(), states);
    let container = format!("container-of-{}", host.name());
    let mut target = loop {
        match services.register_for("web", &container, at(81)).ttl(TTL).await {
            Ok(target) => break target,
            Err(_) => tokio::time::sleep(SECOND).await,
        }
    };
    loop {
        // Not answered in time: the next one may be.
        let _ = target.renew().await;
        tokio::time::sleep(SECOND).await;
    }
}

async fn instance_of(services: &Services, id: &str, with: impl Fn(Register) -> Register) -> Registration {
    loop {
        match with(services.register("web", at(80)).id(id).ttl(TTL).refresh(SECOND)).await {
            Ok(registration) => return registration,
            Err(_) => tokio::time::sleep(SECOND).await,
        }
    }
}

/// What must be listed while exactly these processes live.
fn expected(alive: &[&str]) -> Vec<String> {
    let of = |name: &&str| [format!("container-of-{name}"), format!("frail-{name}"), name.to_string()];
    let mut ids: Vec<String> = alive.iter().flat_map(of).collect();
    ids.push("shared".into());
    ids.sort();
    ids
}

/// Exactly the instances of living processes are listed, on every node, and each process knows where it stands.
async fn check(sim: &Sim, world: &World, alive: &[&str]) -> Result<(), AnyError> {
    let mut seen = Vec::new();
    for name in alive {
        seen.push(sim.node(name)?.services().list("web").await?);
    }
    for (name, listed) in alive.iter().zip(&seen) {
        let ids: Vec<String> = listed.iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(ids, expected(alive), "as {name} lists them");
        assert_eq!(listed, &seen[0], "{name} and {} do not agree", alive[0]);
    }
    let shared = seen[0].iter().find(|(id, _)| id == "shared").expect("asserted above");
    let mut holders = Vec::new();
    for name in alive {
        let states: Vec<_> =
            world.held.lock().expect("no panic")[*name].iter().map(RegistrationStates::borrow).collect();
        assert!(
            states[1..].iter().all(RegistrationState::is_registered),
            "{name} is listed and does not know it: {states:?}"
        );
        match &states[0] {
            RegistrationState::Registered { revision } => holders.push((*name, *revision)),
            RegistrationState::Replaced { by: Some(by) } => assert!(*by <= shared.1.incarnation, "{name}: {states:?}"),
            other => panic!("{name} neither has the shared place nor gave way: {other:?}"),
        }
    }
    assert_eq!(holders, [(shared.1.registrar.as_str(), shared.1.modified)], "who believes to have the shared place");
    Ok(())
}

async fn after_every_storm_exactly_the_living_are_listed(sim: Sim) -> Result<(), AnyError> {
    let world = World::default();
    let shared = world.clone();
    sim.hosts(NAMES, move |host| process(host, shared.clone()))?;
    sim.run_for(SECOND * 15).await;
    check(&sim, &world, &NAMES).await?;

    // By hand: each in turn is away for longer than its ttl.
    for name in NAMES {
        sim.isolate(name)?;
        sim.run_for(TTL * 4).await;
        sim.heal();
        sim.run_for(SECOND * 10).await;
        check(&sim, &world, &NAMES).await?;
    }

    // By chance, and all that can happen.
    world.ill.store(true, Ordering::Relaxed);
    sim.chaos(Faults::all().swarm(), SECOND * 20).await;
    world.ill.store(false, Ordering::Relaxed);
    sim.run_for(SECOND * 40).await;
    check(&sim, &world, &NAMES).await?;

    // Who does not come back is gone a ttl later; who does is listed again.
    sim.crash("node-2", LostWrites::Torn)?;
    sim.run_for(TTL * 4).await;
    let alive = ["node-1", "node-3"];
    let listed = sim.node("node-1")?.services().list("web").await?;
    let ids: Vec<&str> = listed.iter().map(|(id, _)| id.as_str()).filter(|id| *id != "shared").collect();
    assert_eq!(ids, expected(&alive).iter().map(String::as_str).filter(|id| *id != "shared").collect::<Vec<_>>());
    sim.restart("node-2")?;
    sim.run_for(SECOND * 20).await;
    check(&sim, &world, &NAMES).await
}

#[test]
fn after_partitions_crashes_and_pauses_exactly_the_instances_of_the_living_are_listed() {
    sim::run(0..2, after_every_storm_exactly_the_living_are_listed);
}
