//! Power failures of all nodes at once, under load, again and again.
//!
//! Writers keep what they were told: a write that was acknowledged has to be there for ever, under the revision it was
//! given; one whose outcome stayed unknown has to be what its ticket says it is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::support::{Group, seeds, slow_disks};
use crate::api::cluster::Outcome;
use crate::rt;
use crate::storage::fault_disk::{PowerLoss, SplitMix};
use crate::{Cluster, Entry, Error, Revision, Ticket, Written};

pub(super) const MODES: [PowerLoss; 5] =
    [PowerLoss::DropAll, PowerLoss::KeepAll, PowerLoss::Prefix, PowerLoss::Subset(50), PowerLoss::Subset(90)];

/// What writers were told, by key; every key is written once.
#[derive(Default)]
pub(super) struct Told {
    pub(super) acked: BTreeMap<String, Revision>,
    pub(super) unknown: BTreeMap<String, Ticket>,
    /// Certainly not written.
    pub(super) refused: Vec<String>,
    /// The node went away before it could say anything.
    pub(super) silent: Vec<String>,
}

async fn write_on(node: Cluster, prefix: String, told: Arc<Mutex<Told>>) {
    for i in 0.. {
        let key = format!("{prefix}/{i}");
        // Noted before it is sent: the power may fail while this task waits for the answer.
        told.lock().unwrap().silent.push(key.clone());
        let written = node.set(&key, &key).timeout(Duration::from_millis(400)).await;
        let gone = matches!(written, Err(Error::Stopped { .. }));
        told.lock().unwrap().silent.retain(|silent| *silent != key);
        told.lock().unwrap().note(key, written);
        if gone {
            return;
        }
    }
}

impl Told {
    pub(super) fn note(&mut self, key: String, written: Result<Written, Error>) {
        match written {
            Ok(written) => drop(self.acked.insert(key, written.revision)),
            Err(Error::Indeterminate { ticket }) => drop(self.unknown.insert(key, ticket)),
            Err(Error::NotApplied { .. }) => self.refused.push(key),
            Err(Error::Stopped { .. }) => self.silent.push(key),
            Err(other) => panic!("{key}: {other}"),
        }
    }
}

/// Compares what is there with what writers were told.
pub(super) async fn audit(group: &Group, told: &Mutex<Told>, context: &str) {
    let (acked, unknown, refused) = {
        let told = told.lock().unwrap();
        (told.acked.clone(), told.unknown.clone(), told.refused.clone())
    };
    let revisions: std::collections::BTreeSet<_> = acked.values().collect();
    assert_eq!(revisions.len(), acked.len(), "{context}: two writes were acknowledged under one revision");
    let all = group.node(0).range::<String>(..).await.unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(!all.more, "{context}: too much was written for one look");
    let found: BTreeMap<&str, &Entry<String>> = all.iter().map(|(key, entry)| (key.as_str(), entry)).collect();
    for (key, revision) in &acked {
        let entry = found.get(key.as_str());
        let entry = entry.unwrap_or_else(|| panic!("{context}: {key} was acknowledged at {revision} and is gone"));
        assert_eq!((&entry.value, entry.modified, entry.version), (key, *revision, 1), "{context}");
    }
    for (key, ticket) in &unknown {
        let outcome = group.node(1).resolve(ticket).await.expect("resolved");
        let entry = found.get(key.as_str()).map(|entry| entry.modified);
        match outcome {
            Outcome::Applied(revision) => assert_eq!(entry, Some(revision), "{context}: {key}"),
            Outcome::Never => assert_eq!(entry, None, "{context}: {key} was never to be applied"),
            other => panic!("{context}: {key}: {other:?}"),
        }
    }
    for key in &refused {
        assert!(!found.contains_key(key.as_str()), "{context}: {key} was said not to be applied");
    }
}

async fn power_failures(seed: u64, rounds: u64) -> (usize, usize) {
    let mut rng = SplitMix(seed);
    let mut group = Group::new(3, seed).tune(move |settings| settings.drive = slow_disks(seed, 12));
    let told = Arc::new(Mutex::new(Told::default()));
    let mut newest = Revision::ZERO;
    for round in 0..rounds {
        let context = format!("seed {seed}, round {round}");
        group.start_all().await;
        for n in 0..3 {
            for writer in 0..3 {
                let task = write_on(group.node(n).clone(), format!("{round}/{n}/{writer}"), told.clone());
                rt::spawn("writer", task).detach();
            }
        }
        // Some rounds end between two operations of a disk, some in the middle of one.
        if rng.below(2) == 0 {
            group.disks[rng.below(3) as usize].die_at(rng.below(400));
        }
        rt::sleep(Duration::from_millis(50 + rng.below(900))).await;
        let seen = told.lock().unwrap().acked.values().max().copied().unwrap_or_default();
        newest = newest.max(seen);
        for n in 0..3 {
            group.power_loss(n, MODES[rng.below(5) as usize]);
        }
        group.start_all().await;
        // What a node shows by itself may be behind at first: it has yet to hear what is committed.
        group.node(0).get::<String>("any").await.unwrap_or_else(|error| panic!("{context}: {error}"));
        let revision = group.node(0).status().revision;
        assert!(revision >= newest, "{context}: revision {revision} after {newest} was acknowledged");
        audit(&group, &told, &context).await;
        group.converged().await;
    }
    let told = told.lock().unwrap();
    (told.acked.len(), told.unknown.len() + told.silent.len())
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_survives_power_failures_of_all_nodes_and_what_was_unknown_is_resolved_truly() {
    let (mut acked, mut unknown) = (0, 0);
    for seed in seeds(1..4) {
        let (a, u) = power_failures(seed, 4).await;
        acked += a;
        unknown += u;
    }
    assert!(acked > 200 && unknown > 10, "{acked} acknowledged, {unknown} unknown: nothing much was tested");
}
