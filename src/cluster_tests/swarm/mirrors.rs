//! Clients that look at a mirror. What it shows is judged as what a watch delivers: all keys, at one revision.

use std::sync::Arc;
use std::time::Duration;

use super::clients::{HISTORY, PATIENCE};
use super::ledger::Ledger;
use crate::api::cluster::Cluster;
use crate::api::keys::prefix;
use crate::api::mirror::{Mirror, Mirrored};
use crate::error::Error;
use crate::rt;
use crate::sim::check::{Seen, Span, WatchRecord, WatchStart, WatchStep};
use crate::storage::fault_disk::SplitMix;
use crate::types::Revision;

/// Opens a mirror of the recorded keys and looks at it now and then; and once more when everybody has come to an end.
pub(super) async fn reflect(cluster: Cluster, ledger: Arc<Ledger>, mut rng: SplitMix, name: String) {
    let life = ledger.client();
    while !ledger.is_over() {
        // It shows what was acknowledged before it was asked for.
        let known = ledger.acknowledged();
        let mirror = match cluster.mirror::<String>(prefix(HISTORY)).timeout(PATIENCE / 4).await {
            Ok(mirror) => mirror,
            Err(Error::Stopped { .. }) => return,
            Err(_) => {
                rt::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let record =
            WatchRecord::new(format!("mirror of {name}/{life}"), Span::prefix(HISTORY), WatchStart::Initial(known));
        let mut looking = Looking { place: ledger.watching(record), ledger: &ledger, mirror, seen: None };
        for _ in 0..rng.below(40) {
            let looked = match rng.below(4) {
                0 => looking.catch_up().await,
                _ => looking.follow(Duration::from_millis(rng.below(400))).await,
            };
            if looked.is_err() {
                return;
            }
            if ledger.is_over() {
                let _ = looking.catch_up().await;
                break;
            }
        }
    }
}

struct Looking<'a> {
    ledger: &'a Ledger,
    place: usize,
    mirror: Mirror<String>,
    /// The revision of the newest state that was noted.
    seen: Option<Revision>,
}

impl Looking<'_> {
    /// Looks when something has changed, or at the end of `patience`.
    async fn follow(&mut self, patience: Duration) -> Result<(), Error> {
        let changed = rt::timeout(patience, self.mirror.changed()).await;
        self.note(&self.mirror.load());
        changed.map_or(Ok(()), |changed| changed.map(drop))
    }

    /// Waits until it shows everything that was acknowledged to anybody.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let known = self.ledger.acknowledged();
        if let Ok(state) = rt::timeout(PATIENCE / 4, self.mirror.at_least(known)).await {
            let state = state?;
            self.note(&state);
            self.ledger.mirrored(self.place, WatchStep::Place(known.max(state.revision())));
        }
        Ok(())
    }

    fn note(&mut self, state: &Mirrored<String>) {
        // The same state again says nothing.
        if self.seen == Some(state.revision()) {
            return;
        }
        let entries = state.iter().map(|(key, entry)| (key.clone(), Seen::from(&**entry))).collect();
        let whole = WatchStep::Whole { revision: state.revision(), resync: self.seen.is_some(), entries };
        self.seen = Some(state.revision());
        self.ledger.mirrored(self.place, whole);
    }
}
