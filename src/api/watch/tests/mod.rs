//! Watches on real nodes, on a paused clock. The names in brackets are those of the promises in the crate's list.

mod events;
mod group;
mod lag;
mod random;

use std::time::Duration;

use super::*;
pub(super) use crate::api::testing::{compact, single};
use crate::api::txn::{put, remove};
use crate::command::{Command, Response};
use crate::config::{Runtime, Settings, Timing};
use crate::node::Formation;
use crate::rt;
use crate::transport::MemoryNetwork;
use crate::types::{LeaseId, Peer};

/// Far beyond what anything here takes on the paused clock.
const HUNG: Duration = Duration::from_secs(120);

struct Group {
    network: MemoryNetwork,
    nodes: Vec<Cluster>,
}

/// Three nodes called `node-1` to `node-3`, a millisecond apart, with a leader.
async fn three(tune: impl Fn(&mut Settings)) -> Group {
    let network = MemoryNetwork::new();
    network.delay(Duration::from_millis(1));
    let peers: Vec<Peer> = (1..=3).map(|n| Peer::new(format!("node-{n}"), "")).collect();
    let mut nodes = Vec::new();
    for peer in &peers {
        let builder = Cluster::builder(peer.name.clone())
            .in_memory()
            .runtime(Runtime::Current)
            .timing(Timing::fast())
            .transport(network.transport(&peer.name))
            .formation(Formation::Peers(peers.clone()));
        nodes.push(builder.settings(&tune).await.expect("starts"));
    }
    for node in &nodes {
        node.ready().await.expect("a leader is elected");
    }
    Group { network, nodes }
}

impl Group {
    /// The place of the node that the majority of nodes takes for the leader, once they agree.
    async fn leader(&self) -> usize {
        let started = rt::Instant::now();
        loop {
            assert!(started.elapsed() < HUNG, "no leader");
            let leads = |node: &Cluster| {
                let followers = self.nodes.iter().filter(|other| other.status().leader == Some(node.status().id));
                node.status().is_leader && followers.count() >= 2
            };
            if let Some(leader) = self.nodes.iter().position(leads) {
                return leader;
            }
            rt::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The next item, which must come.
async fn item<V: Value>(watch: &mut Watch<V>) -> Option<Result<Batch<V>, Error>> {
    rt::timeout(HUNG, watch.next()).await.expect("the watch is silent")
}

/// The next batch, which must come.
async fn batch<V: Value>(watch: &mut Watch<V>) -> Batch<V> {
    item(watch).await.expect("the watch has ended").expect("the watch is well")
}

/// Nothing comes for a while.
async fn assert_quiet<V: Value + fmt::Debug>(watch: &mut Watch<V>) {
    let came = rt::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(came.is_err(), "{came:?}");
}

/// Keys and values, in order; a deleted key has none.
fn contents<V: Clone>(batch: &Batch<V>) -> Vec<(&str, Option<V>)> {
    batch.events.iter().map(|event| (event.key().as_str(), event.entry().map(|entry| entry.value.clone()))).collect()
}

async fn grant_lease(cluster: &Cluster, ttl: Duration) -> LeaseId {
    let grant = Command::LeaseGrant { ttl_ms: ttl.as_millis() as u64 };
    match cluster.node().mutate(grant, HUNG).await {
        Ok(Response::Granted { lease, .. }) => lease,
        other => panic!("{other:?}"),
    }
}

/// Waits until the record that `revision` wrote first is gone from this node.
async fn swept(cluster: &Cluster, revision: Revision) {
    let started = rt::Instant::now();
    let first = crate::command::RecordId { revision, ordinal: 0 };
    while cluster.node().state().view().record(first).is_ok_and(|record| record.is_some()) {
        assert!(started.elapsed() < HUNG, "the sweep does not come to revision {revision}");
        rt::sleep(Duration::from_millis(5)).await;
    }
}
