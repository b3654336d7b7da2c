//! Clients that hold something for a while: a lock, or keys under a session.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};

use super::clients::PATIENCE;
use super::ledger::Ledger;
use crate::api::cluster::Cluster;
use crate::api::keys::prefix;
use crate::api::session::Session;
use crate::api::txn::{Transaction, put};
use crate::error::Error;
use crate::recipes::lock::LockGuard;
use crate::rt;
use crate::sim::check::{Belief, FencedWrite, Hold, LeaseRecord, Renewal, RenewalAnswer};
use crate::storage::fault_disk::SplitMix;
use crate::types::Fence;

pub(super) const REGISTERED: &str = "s/";
pub(super) const LOCK: &str = "job";
const LOCK_TTL: Duration = Duration::from_millis(1300);

/// A guard that is believed in, until this is dropped: by its holder, or with its process.
struct Held<'a> {
    ledger: &'a Ledger,
    fence: Fence,
    lost: bool,
}

impl<'a> Held<'a> {
    fn new(ledger: &'a Ledger, client: u64, guard: &LockGuard) -> Self {
        let fence = guard.fence();
        let hold = Hold { client, fence, granted_ns: ledger.now_ns(), ended_ns: None, lost: false };
        ledger.lock.lock().unwrap().holds.push(hold);
        Held { ledger, fence, lost: false }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let now_ns = self.ledger.now_ns();
        let mut lock = self.ledger.lock.lock().unwrap();
        let hold = lock.holds.iter_mut().find(|hold| hold.fence == self.fence).expect("it was written down");
        (hold.ended_ns, hold.lost) = (Some(now_ns), self.lost);
    }
}

/// Takes the lock again and again, and writes under its fence; also when it is lost.
pub(super) async fn hold(cluster: Cluster, ledger: Arc<Ledger>, mut rng: SplitMix) {
    while !ledger.is_over() {
        let client = ledger.client();
        let guard = match cluster.lock(LOCK).ttl(LOCK_TTL).timeout(PATIENCE / 2).await {
            Ok(guard) => guard,
            Err(Error::Stopped { .. }) => return,
            Err(_) => {
                rt::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let mut held = Held::new(&ledger, client, &guard);
        let working = async {
            for _ in 0..rng.below(3) {
                fenced(&guard, &ledger, client).await;
                rt::sleep(Duration::from_millis(rng.below(150))).await;
            }
        };
        let lost = matches!(select(pin!(guard.lost()), pin!(working)).await, Either::Left(_));
        held.lost = lost;
        drop(held);
        if lost {
            // As somebody who does not listen.
            fenced(&guard, &ledger, client).await;
        }
        let _ = guard.release().await;
        rt::sleep(Duration::from_millis(rng.below(100))).await;
    }
}

async fn fenced(guard: &LockGuard, ledger: &Ledger, client: u64) {
    let fence = guard.fence();
    let key = format!("fenced/{client}");
    let write = match guard.txn().then(put(&key, &"x".to_owned())).timeout(Duration::from_millis(900)).await {
        Ok(outcome) => FencedWrite { fence, revision: outcome.revision(), applied: true },
        Err(Error::Fenced { current, .. }) => FencedWrite { fence, revision: current, applied: false },
        Err(_) => return,
    };
    ledger.lock.lock().unwrap().writes.push(write);
}

/// Registers itself under sessions, several keys at once, and looks whether they stand.
pub(super) async fn register(cluster: Cluster, ledger: Arc<Ledger>, mut rng: SplitMix) {
    while !ledger.is_over() {
        let ttl = Duration::from_millis(300 + rng.below(1500));
        let invoked_ns = ledger.now_ns();
        match cluster.session().ttl(ttl).timeout(PATIENCE / 2).await {
            Ok(session) => registered(&cluster, &ledger, &mut rng, session, invoked_ns).await,
            Err(Error::Stopped { .. }) => return,
            Err(_) => rt::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// As long as the session is sure of itself, its keys are there, whichever leader is asked.
async fn registered(cluster: &Cluster, ledger: &Ledger, rng: &mut SplitMix, session: Session, invoked_ns: u64) {
    let name = format!("{REGISTERED}{}/", ledger.client());
    let granted = Renewal { invoked_ns, returned_ns: ledger.now_ns(), answer: RenewalAnswer::Alive };
    let record = LeaseRecord {
        lease: session.lease(),
        ttl_ms: session.ttl().as_millis() as u64,
        renewals: vec![granted],
        beliefs: Vec::new(),
        end: None,
        observed_ns: 0,
    };
    ledger.leases.lock().unwrap().insert(name.clone(), record);
    let believe = || {
        let belief = Belief { at_ns: ledger.now_ns(), valid_for_ns: session.valid_for().as_nanos() as u64 };
        ledger.leases.lock().unwrap().get_mut(&name).expect("just noted").beliefs.push(belief);
    };
    let keys = (0..4).map(|n| put(format!("{name}{n}"), &n).session(&session));
    let registering = keys.fold(cluster.transaction(), Transaction::then).timeout(PATIENCE / 2);
    if registering.await.is_err() {
        return;
    }
    let sure = || session.lifeline().standing().sure(rt::boot_now());
    for _ in 0..rng.below(8) {
        let before = sure();
        believe();
        let found = cluster.range::<u64>(prefix(name.as_str())).timeout(PATIENCE / 4).await;
        if let Ok(found) = found
            && found.len() < 4
            && before.is_some()
            && before == sure()
        {
            let what =
                format!("{name} has {} keys at {} ns, and its {session:?} is sure", found.len(), ledger.now_ns());
            ledger.broken.lock().unwrap().push(what);
        }
        believe();
        rt::sleep(Duration::from_millis(rng.below(1 + session.ttl().as_millis() as u64 / 2))).await;
    }
}
