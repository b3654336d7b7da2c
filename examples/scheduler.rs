//! A small fleet: machines register, the elected leader places units on live ones, and units move when a machine dies.
//!
//! Run: `cargo run --release --example scheduler`
//!
//! Each of three nodes is a machine that runs the units placed on it, and a candidate for the office of the scheduler. Six units
//! are submitted. The machine that schedules is cut off from the others: it stops its units and its scheduling before anybody
//! takes them over, another machine is elected, and places them anew. Then it comes back, and gets its share of what is
//! submitted next. Prints who runs what, and `ok`; exits non-zero if a unit ever runs twice at a time, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate::{
    Cluster, Discovery, Error, Formation, Instance, Leadership, MemoryNetwork, Mirror, Peer, RegistrationState,
    Revision, Table, Timing,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What is to run, and how much of a machine it takes.
const UNITS: Table<str, u32> = Table::new("units");
/// Which machine each unit is to run on.
const PLACED: Table<str, String> = Table::new("placed");
const TTL: Duration = Duration::from_secs(2);
const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let network = MemoryNetwork::new();
    let peers: Vec<Peer> = NAMES.map(|name| Peer::new(name, "")).into();
    let mut nodes = Vec::new();
    for name in NAMES {
        let builder = Cluster::builder(name).in_memory().transport(network.transport(name)).timing(Timing::fast());
        nodes.push(builder.formation(Formation::Peers(peers.clone())).await?);
    }
    let fleet = Arc::new(Fleet::default());
    for node in &nodes {
        node.ready().await?;
        tokio::spawn(run_machine(node.clone(), fleet.clone()));
        tokio::spawn(run_for_scheduler(node.clone()));
    }

    for unit in ["cron", "mail", "web-1", "web-2", "web-3", "web-4"] {
        nodes[0].table(UNITS).set(unit, &1).await?;
    }
    fleet.until("two units on each machine", |runs| NAMES.iter().all(|name| count(runs, name) == 2)).await?;

    let mut leaders = nodes[0].election::<String>("scheduler").observe().await?;
    let leader = leaders.next().await.ok_or("the observer ended")??.ok_or("nobody schedules")?.value;
    println!("{leader} schedules, and is cut off");
    network.isolate(&leader);
    fleet.until("its units run elsewhere", |runs| count(runs, &leader) == 0 && runs.len() == 6).await?;

    println!("{leader} is back");
    network.heal();
    nodes[0].services().discover("machines").await?.wait_for(|machines| machines.len() == 3).await?;
    let place = NAMES.iter().position(|name| *name == leader).ok_or("a stranger schedules")?;
    for unit in ["web-5", "web-6"] {
        nodes[place].table(UNITS).set(unit, &1).timeout(TTL * 10).await?;
    }
    fleet.until("it has a share again", |runs| count(runs, &leader) > 0 && runs.len() == 8).await?;

    for node in &nodes {
        node.shutdown().await?;
    }
    println!("ok");
    Ok(())
}

/// A machine: registered for as long as it can be counted on, and running what is placed on it for just as long.
async fn run_machine(node: Cluster, fleet: Arc<Fleet>) -> Result<Infallible, Error> {
    let name = node.status().name;
    let registering = node.services().register("machines", Instance::new(format!("{name}:1"))).id(&name);
    let registration = registering.ttl(TTL).await?;
    let mut states = registration.states();
    let mut placed = node.table(PLACED).mirror(..).await?;
    loop {
        let mine = match states.borrow() {
            // Since it was registered anew its units may be elsewhere: what it goes by must not be older.
            RegistrationState::Registered { revision, .. } => {
                placed.at_least(revision).await?;
                let placements = placed.borrow_and_update();
                let mine = placements.iter().filter(|(_, machine)| machine.value == name);
                mine.map(|(unit, _)| unit.clone()).collect()
            }
            // Who is not sure to be registered may have been replaced already.
            _ => BTreeSet::new(),
        };
        fleet.run(&name, mine);
        tokio::select! {
            changed = placed.changed() => drop(changed?),
            state = states.changed() => drop(state.ok_or(Error::Stopped { reason: "the registration ended".into() })?),
        }
    }
}

/// A candidate: schedules while it leads, and its work is dropped before another's can begin.
async fn run_for_scheduler(node: Cluster) -> Result<Infallible, Error> {
    let (election, name) = (node.election::<String>("scheduler").ttl(TTL), node.status().name);
    let schedule = |lead: Arc<Leadership<String>>| schedule(node.clone(), lead);
    loop {
        // An error of one reign is not the end: somebody has to schedule.
        let Err(error) = election.run(&name, schedule).await?;
        println!("{name}: {error}");
    }
}

/// Gives every unit a machine that is there, the one with the least to do, whenever something has changed.
async fn schedule(node: Cluster, lead: Arc<Leadership<String>>) -> Result<Infallible, Error> {
    let mut machines: Discovery = node.services().discover("machines").await?;
    let mut units: Mirror<u32> = node.table(UNITS).mirror(..).await?;
    let mut placed: Mirror<String> = node.table(PLACED).mirror(..).await?;
    loop {
        let mut load: BTreeMap<String, u32> = machines.load().iter().map(|(id, _)| (id.to_owned(), 0)).collect();
        let (wanted, placements) = (units.borrow_and_update(), placed.borrow_and_update());
        let mut homeless = Vec::new();
        for (unit, takes) in wanted.iter() {
            let placement = placements.get(unit.as_str())?;
            match placement.and_then(|placement| load.get_mut(placement.value.as_str())) {
                Some(load) => *load += takes.value,
                None => {
                    homeless.push((unit, takes.value, placement.map_or(Revision::ZERO, |placement| placement.modified)))
                }
            }
        }
        for (unit, takes, seen) in homeless {
            let Some((machine, load)) = load.iter_mut().min_by_key(|(_, load)| **load) else { break };
            *load += takes;
            // Refused if somebody else schedules by now; without effect if the unit was placed meanwhile.
            let placing = lead.txn().when(PLACED.when(unit.as_str()).modified_at(seen));
            placing.then(PLACED.put(unit.as_str(), machine)).await?;
        }
        tokio::select! {
            changed = machines.changed() => drop(changed?),
            changed = units.changed() => drop(changed?),
            changed = placed.changed() => drop(changed?),
        }
    }
}

/// What runs where, as somebody sees it who sees all machines at once.
#[derive(Default)]
struct Fleet {
    runs: Mutex<BTreeMap<String, String>>,
    twice: Mutex<Vec<String>>,
}

impl Fleet {
    /// Has a machine run these units and no others.
    fn run(&self, machine: &str, units: BTreeSet<String>) {
        let mut runs = self.runs.lock().expect("nobody panics");
        runs.retain(|unit, on| on != machine || units.contains(unit));
        for unit in units {
            if let Some(other) = runs.insert(unit.clone(), machine.to_owned()).filter(|other| other != machine) {
                let twice = format!("{unit} was started on {machine} while it ran on {other}");
                self.twice.lock().expect("nobody panics").push(twice);
            }
        }
    }

    async fn until(&self, what: &str, holds: impl Fn(&BTreeMap<String, String>) -> bool) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            let runs = self.runs.lock().expect("nobody panics").clone();
            if holds(&runs) {
                println!("{what}: {runs:?}");
                let twice = self.twice.lock().expect("nobody panics").clone();
                return if twice.is_empty() { Ok(()) } else { Err(twice.join("; ").into()) };
            }
            if began.elapsed() > Duration::from_secs(60) {
                return Err(format!("it does not come about that {what}: {runs:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn count(runs: &BTreeMap<String, String>, machine: &str) -> usize {
    runs.values().filter(|on| *on == machine).count()
}
