//! Power failures at moments that chance seldom meets: right behind something that only faults lead to.

use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc;

use crate::rt;
use crate::rt::marks::Mark;
use crate::sim::Sim;
use crate::storage::fault_disk::SplitMix;

/// What has just changed a disk in a way that a start must cope with.
const MOMENTS: [Mark; 4] = [Mark::SnapshotInstalled, Mark::LogTruncated, Mark::LogCleared, Mark::DatabaseRepaired];
/// One of so many moments is used.
const ONE_IN: u64 = 3;
/// The operations of the disk within which the power fails.
const OPS: u64 = 12;

/// Lies in wait for `time`; how often it struck. Whoever it has struck runs again when this returns.
pub(super) async fn ambush(sim: &Sim, time: Duration) -> u64 {
    let over = sim.elapsed() + time;
    let (victims, mut doomed) = mpsc::unbounded();
    let rng = Mutex::new(SplitMix(sim.seed() ^ 0xa3b5));
    sim.on_mark(Some(move |sim: &Sim, name: &str, mark| {
        let mut rng = rng.lock().unwrap();
        // At once: a poll later the moment is gone.
        if MOMENTS.contains(&mark) && rng.below(ONE_IN) == 0 && sim.doom(name, rng.below(OPS)).is_ok() {
            let _ = victims.unbounded_send(name.to_owned());
        }
    }));
    let mut struck = 0;
    while let Ok(Some(name)) = rt::timeout(over.saturating_sub(sim.elapsed()), doomed.next()).await {
        struck += strike(sim, &name).await;
    }
    sim.on_mark(None::<fn(&Sim, &str, Mark)>);
    while let Some(name) = doomed.next().await {
        struck += strike(sim, &name).await;
    }
    struck
}

/// Carries out what was begun when the mark was met.
async fn strike(sim: &Sim, name: &str) -> u64 {
    let struck = sim.crash_doomed(name, sim.lost_writes()).await.is_ok();
    sim.run_for(Duration::from_millis(sim.random(500))).await;
    // An error says that somebody else has started it.
    let _ = sim.restart(name);
    u64::from(struck)
}
