//! What a node is asked for at the end: the truth that everything it told is held against.

use std::path::Path;
use std::time::Duration;

use quorate::sim::check::{Answer, CommitLog, Op, Recorder};
use quorate::{Cluster, Revision, Ticket};

/// Within this time everything with a time to live is gone, once nobody writes.
const LEASES_GONE: Duration = Duration::from_secs(15);

/// Settles what became of each write, and records it as calls of `client`.
pub async fn resolve(cluster: &Cluster, recorder: &Recorder, client: u64, tickets: Vec<Ticket>) {
    for ticket in tickets {
        loop {
            let call = recorder.invoke(client, Op::Resolve { ticket });
            let resolution = match cluster.resolve(&ticket).await {
                Ok(outcome) => outcome.into(),
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
    // What comes behind the log that is told here, nobody could judge. Nobody writes any more, but what was written with a
    // time to live has still to go. Everything that was acknowledged until now is applied here when this returns.
    let start = std::time::Instant::now();
    while cluster.range::<String>(..).await?.iter().any(|(_, entry)| entry.lease.is_some()) {
        assert!(start.elapsed() < LEASES_GONE, "keys with a time to live do not go");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let last = cluster.status().revision;
    let mut watch = cluster.watch::<String>(..).from(Revision::ZERO.next()).backpressure().await?;
    let mut log = CommitLog::default();
    while watch.revision() < last {
        // The keys may be quiet up to there; then the watch moves on without a batch.
        let batch = match tokio::time::timeout(Duration::from_millis(50), watch.next()).await {
            Ok(batch) => batch.expect("a watch ends with an error")?,
            Err(_) => continue,
        };
        log.push(&batch);
    }
    log.commits.retain(|commit| commit.revision <= last);
    std::fs::write(path, serde_json::to_vec(&(last, log.commits))?)?;
    Ok(())
}
