//! What operators are told, by spans and events.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span;

use super::snapshot::{forgetful, purged_beyond};
use super::support::{Group, eventually};
use crate::config::TestDrive;
use crate::rt;
use crate::rt::worker::Drive;
use crate::storage::fault_disk::PowerLoss;

/// Keeps the names of spans, and what events say.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn has(&self, what: &str) -> bool {
        self.0.lock().unwrap().iter().any(|told| told == what)
    }
}

impl tracing::Subscriber for Told {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("quorate")
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        self.0.lock().unwrap().push(format!("({})", span.metadata().name()));
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut Message(&mut self.0.lock().unwrap()));
    }

    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Message<'a>(&'a mut Vec<String>);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0.push(format!("{value:?}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn elections_lost_quorums_expiries_and_snapshots_are_told() {
    let told = Told::default();
    let _guard = tracing::subscriber::set_default(told.clone());
    let mut group = forgetful(1);
    group.start_all().await;
    for what in
        ["(open)", "opening", "state.redb is loaded", "(election)", "standing for election", "elected", "leader"]
    {
        assert!(told.has(what), "{what}");
    }
    let leader = group.leader().await;
    group.node(leader).set("short", &1).ttl(Duration::from_secs(3)).await.expect("written");
    eventually("the expiry is told", || told.has("(expiry)") && told.has("lease expired")).await;

    let away = (leader + 1) % 3;
    let index = group.node(away).node().log_ends_at();
    group.power_loss(away, PowerLoss::DropAll);
    for i in 0..80 {
        group.node(leader).set(format!("k{i}"), &i).await.expect("written");
    }
    purged_beyond(&group, leader, index).await;
    assert!(told.has("snapshot taken") && !told.has("(snapshot)"));
    group.start(away).await;
    for what in [
        "(snapshot)",
        "sending a snapshot",
        "receiving a snapshot",
        "the snapshot is received",
        "the snapshot is installed",
    ] {
        eventually(what, || told.has(what)).await;
    }

    let leader = group.leader().await;
    assert!(!told.has("quorum lost: no majority answers this leader"));
    group.network.isolate(group.peers[leader].name.clone());
    eventually("the loss is told", || told.has("quorum lost: no majority answers this leader")).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_long_is_told() {
    let took_long = |ms: u64| async move {
        let told = Told::default();
        let _guard = tracing::subscriber::set_default(told.clone());
        let disk = Drive::Delayed(Arc::new(move || Box::pin(rt::sleep(Duration::from_millis(ms)))));
        let mut group = Group::new(1, 1).tune(move |settings| settings.drive = TestDrive(Some(disk.clone())));
        group.start(0).await.set("k", &1).await.expect("written");
        group.stop(0).await;
        told.has("a disk operation took long")
    };
    assert!(took_long(600).await);
    assert!(!took_long(100).await);
}
