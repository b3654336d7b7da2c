//! Why a record has gone, for who looks when it has gone already.
//!
//! A record that its owner takes away says why in its last moment, and a mirror's difference between two states passes that
//! over. The node remembers every change for a while; here it is asked again, only when it is in doubt.

use std::collections::BTreeMap;
use std::task::{Context, Poll};

use futures::task::noop_waker_ref;

use super::discover::Departure;
use super::instance::{Leaving, Registered, SERVICES};
use crate::api::keys::{Keys, leading};
use crate::api::watch::feed::{Feed, Lag, Start, StoredEvent};
use crate::api::watch::{BatchKind, Cause};
use crate::command::KeyValue;
use crate::error::Error;
use crate::node::Node;
use crate::types::Revision;

/// Most changes of a service's records that are looked at: who is further behind is told what its mirror knows.
const CHANGES_MAX: usize = 4096;

/// Why records of `service` went behind `after`, up to `to`: the last time for each, by id. What the node does not hold in
/// memory any more is left out.
pub(super) fn departures(
    node: &Node,
    service: &str,
    after: Revision,
    to: Revision,
) -> Result<BTreeMap<String, Departure>, Error> {
    let keys: Keys<(&str, &str)> = leading((service,));
    let keys = keys.stored_in(SERVICES.name())?;
    let mut feed = Feed::open(node, keys, Start::After(after), Lag::Coalesce, true)?;
    let mut gone = BTreeMap::new();
    let mut left = CHANGES_MAX;
    // Not waited for: what is not there at once would have to be read from the store.
    while let Poll::Ready(Some(Ok(batch))) = feed.poll_next(&mut Context::from_waker(noop_waker_ref())) {
        left = left.saturating_sub(batch.events.len());
        if batch.kind != BatchKind::Live || batch.revision > to || left == 0 {
            break;
        }
        for event in batch.events {
            if let StoredEvent::Delete { key, cause, prev, .. } = event {
                let (_, id) = SERVICES.layout().key(&key)?;
                gone.insert(id, departure(cause, prev.as_ref()));
            }
        }
    }
    Ok(gone)
}

fn departure(cause: Cause, last: Option<&KeyValue>) -> Departure {
    let last: Option<Registered> = last.and_then(|last| Some(SERVICES.layout().entry(last).ok()?.value));
    Departure::of(last.and_then(|last| last.leaving).as_ref(), Some(cause))
}

impl Departure {
    /// Of a record that is gone, and last said that it was `leaving`.
    pub(super) fn of(leaving: Option<&Leaving>, cause: Option<Cause>) -> Self {
        match (leaving, cause) {
            (Some(Leaving::Deregistered), _) => Departure::Deregistered,
            (Some(Leaving::Unhealthy(why)), _) => Departure::Unhealthy(why.clone()),
            (None, Some(Cause::Expired)) => Departure::Expired,
            (None, Some(Cause::Deleted)) => Departure::Deleted,
            (None, None) => Departure::Unknown,
        }
    }
}
