//! The registry on three nodes and a paused clock.

mod converge;
mod discover;
mod register;
mod slot;
mod target;
mod unanswered;
mod unreadable;

use super::*;
use crate::api::testing::eventually;
use crate::api::watch::{Event, Watch};

/// The records of the service `web` as this node has applied them, with their ids.
async fn records(cluster: &Cluster) -> Vec<(String, Entry<Registered>)> {
    let range = cluster.table(SERVICES).range(leading(("web",))).stale();
    let read = |((_, id), entry)| (id, entry);
    range.await.expect("readable").into_iter().map(read).collect()
}

async fn ids(cluster: &Cluster) -> Vec<String> {
    records(cluster).await.into_iter().map(|(id, _)| id).collect()
}

/// Waits until this node has applied that exactly these instances are there.
async fn settled(cluster: &Cluster, expected: &[&str]) {
    let what = format!("exactly {expected:?}");
    eventually(&what, || async { ids(cluster).await == expected }).await;
}

fn at(port: u16) -> Instance {
    Instance::at("10.0.0.7", port)
}

/// Everything that happened to the records that this node has applied by now: what they say, or why they are gone.
async fn told(watch: &mut Watch<Registered, (String, String)>) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(Some(batch)) = futures::FutureExt::now_or_never(watch.next()) {
        told.extend(batch.expect("readable").events.into_iter().map(|event| match event {
            Event::Put { entry, .. } => match &entry.leaving {
                Some(leaving) => format!("leaving: {leaving:?}"),
                None => entry.address(),
            },
            Event::Delete { cause, .. } => format!("{cause:?}"),
        }));
    }
    told
}
