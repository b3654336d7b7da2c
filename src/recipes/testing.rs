//! What tests of recipes have in common: looking at what the cluster holds for them, and disturbing it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::api::cluster::Cluster;
use crate::api::testing::{Dice, Trio, ms, until};
use crate::command::{Command, KeyRange, KeyValue, Op, Txn};
use crate::rt;

/// The shortest time to live of what is to be held, with the trio's timing: three times 400 ms.
pub(crate) const TTL: Duration = Duration::from_millis(1200);

/// Every key of every recipe.
fn all() -> KeyRange {
    KeyRange { start: Bytes::from_static(b"\x02"), end: Some(Bytes::from_static(b"\x03")) }
}

/// Every claim of every recipe (and every size), as this node has applied it.
pub(crate) fn claims(cluster: &Cluster) -> Vec<KeyValue> {
    cluster.node().state().view().range(&all(), 1000, false).expect("readable").0
}

/// What a recipe may leave behind: claims, and the leases they hung on.
pub(crate) fn traces(cluster: &Cluster) -> (usize, usize) {
    (claims(cluster).len(), cluster.node().state().view().leases().expect("readable").len())
}

/// Waits until this node has applied that there are so many claims (and sizes).
pub(crate) async fn standing(cluster: &Cluster, count: usize) {
    until("claims", || claims(cluster).len() == count).await;
}

/// Deletes every claim, as nobody should.
pub(crate) async fn wipe(cluster: &Cluster) {
    let txn = Txn { then: [Op::Delete { keys: all(), prev: false }].into(), ..Txn::default() };
    cluster.node().housekeep(Command::Txn(txn), ms(5000)).await.expect("carried out");
}

/// Cuts one node after another off for a while, at moments that the dice choose.
pub(crate) async fn isolations(trio: &Trio, mut dice: Dice, count: u64) {
    for _ in 0..count {
        rt::sleep(ms(dice.roll(1500))).await;
        trio.isolate(dice.roll(3) as usize);
        rt::sleep(ms(dice.roll(3000))).await;
        trio.network.heal();
    }
}

/// Says when it was dropped.
pub(crate) struct SetOnDrop(pub(crate) Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
