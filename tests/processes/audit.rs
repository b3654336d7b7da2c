//! What a node is asked for at the end: the truth that everything it told is held against.

use std::path::Path;
use std::time::Duration;

use quorate::sim::check::{Answer, Change, Commit, Kind, Op, Recorder, Resolution};
use quorate::{Cause, Cluster, Event, Outcome, Revision, Ticket};

use crate::workload::seen;

/// Settles what became of each write, and records it as calls of `client`.
pub async fn resolve(cluster: &Cluster, recorder: &Recorder, client: u64, tickets: Vec<Ticket>) {
    for ticket in tickets {
        loop {
            let call = recorder.invoke(client, Op::Resolve { ticket });
            let resolution = match cluster.resolve(&ticket).await {
                Ok(Outcome::Applied(revision)) => Resolution::Applied(revision),
                Ok(Outcome::NoEffect) => Resolution::NoEffect,
                Ok(Outcome::Never) => Resolution::Never,
                Ok(Outcome::Unknowable) => Resolution::Unknowable,
                Ok(other) => panic!("{ticket}: {other:?}"),
                // No answer; the supervisor knows how long to ask again.
                Err(error) => {
                    tracing::info!(%error, %ticket, "not resolved yet");
                    continue;
                }
            };
            call.ok(Answer::Resolved(resolution), None);
            break;
        }
    }
}

/// Writes every commit of the flat keys to `path`, as this node's history has them.
pub async fn dump(cluster: &Cluster, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    // Everything that was acknowledged until now is applied here when this returns.
    cluster.get::<String>("any").await?;
    let last = cluster.status().revision;
    let mut watch = cluster.watch::<String>(..).from(Revision::ZERO.next()).backpressure().await?;
    let mut commits = Vec::new();
    while watch.revision() < last {
        // The keys may be quiet up to there; then the watch moves on without a batch.
        let batch = match tokio::time::timeout(Duration::from_millis(50), watch.next()).await {
            Ok(batch) => batch.expect("a watch ends with an error")?,
            Err(_) => continue,
        };
        commits.push(Commit::new(batch.revision, batch.events.iter().map(change).collect()));
    }
    commits.retain(|commit| commit.revision <= last);
    std::fs::write(path, serde_json::to_vec(&(last, commits))?)?;
    Ok(())
}

fn change(event: &Event<String>) -> Change {
    match event {
        Event::Put { key, entry, .. } => Change { key: key.clone(), kind: Kind::Put, now: Some(seen(entry)) },
        Event::Delete { key, cause, .. } => {
            let kind = if *cause == Cause::Expired { Kind::Expired } else { Kind::Deleted };
            Change { key: key.clone(), kind, now: None }
        }
        other => panic!("an event of another kind: {other:?}"),
    }
}
