//! What of a queue there is at one moment.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::api::read::read_error;
use crate::command::{KeyRange, KeyValue};
use crate::error::Error;
use crate::format::claim::decode_numbers;
use crate::format::queue::{self, Part, part_key, part_range};
use crate::recipes::attempt::Request;
use crate::storage::view::View;
use crate::types::Revision;

/// Keys looked at at a time.
const PAGE: usize = 512;

/// Where the parts of one queue are kept.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) name: String,
}

/// An item that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: String,
    /// The revision of its push.
    pub(super) pushed: Revision,
}

/// How often an item was given out, and which revision wrote that down; zero and zero if it never was.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) deliveries: u64,
    pub(super) modified: Revision,
}

impl Place {
    pub(super) fn of(request: &Request) -> Result<Self, Error> {
        Ok(Place { name: request.checked_name("queue name")? })
    }

    /// How many items and dead letters there are.
    pub(super) fn count(&self, view: &View) -> Result<u64, Error> {
        Ok(self.count_of(view, Part::Item)? + self.count_of(view, Part::Dead)?)
    }

    pub(super) fn count_of(&self, view: &View, part: Part) -> Result<u64, Error> {
        view.count(&part_range(&self.name, part)).map_err(|error| read_error(error, view.revision))
    }

    /// The items that somebody works on.
    pub(super) fn claimed(&self, view: &View) -> Result<BTreeSet<String>, Error> {
        let mut claimed = BTreeSet::new();
        self.each_key(view, queue::claims(&self.name), |key, _| {
            claimed.extend(queue::id_in(key));
            true
        })?;
        Ok(claimed)
    }

    /// The item that was pushed first of those that nobody works on.
    ///
    /// No id is greater than the revision of its push: once the ids have got beyond the best one's revision, whatever follows
    /// was pushed later.
    pub(super) fn first_free(&self, view: &View) -> Result<Option<Found>, Error> {
        let claimed = self.claimed(view)?;
        let mut best: Option<Found> = None;
        self.each_key(view, part_range(&self.name, Part::Item), |key, pushed| {
            let Some(id) = queue::id_in(key) else { return true };
            let bound = queue::bound_of(&id).unwrap_or(Revision::ZERO);
            if best.as_ref().is_some_and(|best| bound > best.pushed) {
                return false;
            }
            if !claimed.contains(&id) && best.as_ref().is_none_or(|best| pushed < best.pushed) {
                best = Some(Found { id, pushed });
            }
            true
        })?;
        Ok(best)
    }

    /// Calls `look` with each live key of the range and the revision that created it, for as long as it says to go on.
    fn each_key(
        &self,
        view: &View,
        keys: KeyRange,
        mut look: impl FnMut(&Bytes, Revision) -> bool,
    ) -> Result<(), Error> {
        let mut rest = Some(keys);
        while let Some(range) = rest {
            let slice = view.keys(&range, PAGE).map_err(|error| read_error(error, view.revision))?;
            if !slice.keys.iter().all(|(key, created)| look(key, *created)) {
                return Ok(());
            }
            rest = slice.rest;
        }
        Ok(())
    }

    pub(super) fn tally(&self, view: &View, id: &str) -> Result<Tally, Error> {
        let found = self.get(view, Part::Tally, id)?;
        found.map_or(Ok(Tally::default()), |kv| Tally::read(&kv))
    }

    pub(super) fn get(&self, view: &View, part: Part, id: &str) -> Result<Option<KeyValue>, Error> {
        view.get(&part_key(&self.name, part, id)).map_err(|error| read_error(error, view.revision))
    }
}

impl Tally {
    fn read(kv: &KeyValue) -> Result<Self, Error> {
        let [deliveries] = decode_numbers(kv.value.clone())
            .map_err(|error| Error::Invalid { what: "stored tally", why: error.to_string() })?;
        Ok(Tally { deliveries, modified: kv.modified })
    }
}

/// The value of an item, as the codec wrote it.
pub(super) fn item_value(kv: KeyValue) -> Result<Bytes, Error> {
    queue::decode_item(kv.value).map_err(|error| Error::Invalid { what: "stored item", why: error.to_string() })
}
