//! What is in a queue, for people to read.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;

use super::Queue;
use super::place::{Place, item_value};
use crate::api::read::read_error;
use crate::codec::{self, Value};
use crate::command::KeyRange;
use crate::error::Error;
use crate::format::queue::{Part, decode_dead, id_in, part_range};
use crate::recipes::inspect::Claimant;
use crate::storage::view::View;
use crate::types::Revision;

/// Dead letters that [`Queue::dead_letters`] returns at the most.
const DEAD_LETTERS: usize = 100;

/// An item, looked at. See [`Queue::peek`] and [`Queue::dead_letters`].
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueItem<V> {
    /// The revision of its push.
    pub id: Revision,
    /// How often it was given out so far.
    pub deliveries: u64,
    key: Bytes,
    stored: Bytes,
    value: PhantomData<fn() -> V>,
}

impl<V: Value> QueueItem<V> {
    /// The item.
    ///
    /// # Errors
    /// [`Error::Codec`] if it was not pushed as a `V`.
    pub fn value(&self) -> Result<V, Error> {
        codec::decode("(an item of a queue)", &self.stored)
    }
}

impl<V> fmt::Debug for QueueItem<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueItem").field("id", &self.id).field("deliveries", &self.deliveries).finish_non_exhaustive()
    }
}

/// What is in a queue and who works on it. See [`Queue::inspect`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueState {
    /// How many items wait for a worker.
    pub waiting: u64,
    /// The items that somebody works on, in the order in which they were claimed.
    pub held: Vec<QueueHeld>,
    /// How many dead letters there are.
    pub dead: u64,
}

/// An item that somebody works on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueHeld {
    /// The revision of its push.
    pub id: Revision,
    /// How often it was given out, this time included.
    pub deliveries: u64,
    /// Who works on it. The revision of the fence is since when.
    pub holder: Claimant,
}

impl<V: Value> Queue<V> {
    /// The item that would be given out next, as of one linearizable moment; `None` if all are worked on, or there is none.
    ///
    /// # Errors
    /// As [`Cluster::get`](crate::Cluster::get).
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn peek(&self) -> Result<Option<QueueItem<V>>, Error> {
        let place = self.place()?;
        let looking = self.request.look(move |view| {
            let Some(found) = place.first_free(view)? else { return Ok(None) };
            let item = place.get(view, Part::Item, &found.id)?.expect("the view does not change");
            let (key, deliveries) = (item.key.clone(), place.tally(view, &found.id)?.deliveries);
            let stored = item_value(item)?;
            Ok(Some(QueueItem { id: found.pushed, deliveries, key, stored, value: PhantomData }))
        });
        looking.await
    }

    /// How many items there are that nobody has acknowledged, those that are worked on included, dead letters not; as of one
    /// linearizable moment.
    ///
    /// # Errors
    /// As [`Cluster::get`](crate::Cluster::get).
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn len(&self) -> Result<u64, Error> {
        let place = self.place()?;
        self.request.look(move |view| place.count_of(view, Part::Item)).await
    }

    /// Whether there is no item that nobody has acknowledged. See [`Queue::len`].
    ///
    /// # Errors
    /// As [`Cluster::get`](crate::Cluster::get).
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len().await? == 0)
    }

    /// How many items wait, who works on which, and how many dead letters there are, as of one linearizable moment.
    ///
    /// # Errors
    /// As [`Cluster::get`](crate::Cluster::get).
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn inspect(&self) -> Result<QueueState, Error> {
        let (place, line) = (self.place()?, self.line()?);
        let looking = self.request.look(move |view| {
            let mut held = Vec::new();
            for claim in line.claims(view)? {
                let Some(id) = id_in(&claim.key) else { continue };
                // A claim goes with its item, but for one that is being withdrawn.
                let Some(item) = place.get(view, Part::Item, &id)? else { continue };
                let (deliveries, holder) = (place.tally(view, &id)?.deliveries, Claimant::read(&claim)?);
                held.push(QueueHeld { id: item.created, deliveries, holder });
            }
            let waiting = place.count_of(view, Part::Item)? - held.len() as u64;
            Ok(QueueState { waiting, held, dead: place.count_of(view, Part::Dead)? })
        });
        looking.await
    }

    /// The items that were given out as often as [`Queue::max_deliveries`] allows and never acknowledged: at most 100 of them,
    /// about in the order of their pushes. [`Queue::discard`] makes room for others.
    ///
    /// # Errors
    /// As [`Cluster::get`](crate::Cluster::get).
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn dead_letters(&self) -> Result<Vec<QueueItem<V>>, Error> {
        let place = self.place()?;
        self.request.look(move |view| dead_letters(&place, view)).await
    }

    /// Deletes a dead letter for good; whether it was still there.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the item is none of this queue's dead letters. Otherwise as
    /// [`Cluster::delete`](crate::Cluster::delete).
    /// # Cancel safety
    /// Dropping the future does not withdraw a delete that was sent.
    pub async fn discard(&self, letter: &QueueItem<V>) -> Result<bool, Error> {
        let place = self.place()?;
        if !part_range(&place.name, Part::Dead).contains(&letter.key) {
            let why = format!("the item of revision {} is no dead letter of the queue {:?}", letter.id, place.name);
            return Err(Error::Invalid { what: "dead letter", why });
        }
        self.delete(letter.key.clone()).await
    }
}

fn dead_letters<V>(place: &Place, view: &View) -> Result<Vec<QueueItem<V>>, Error> {
    let mut range = part_range(&place.name, Part::Dead);
    let mut letters = Vec::new();
    loop {
        let left = DEAD_LETTERS - letters.len();
        let (page, more) = view.range(&range, left, false).map_err(|error| read_error(error, view.revision))?;
        for kv in page {
            range.start = KeyRange::single(kv.key.clone()).end.expect("the range of one key ends behind it");
            let dead = decode_dead(kv.value)
                .map_err(|error| Error::Invalid { what: "stored dead letter", why: error.to_string() })?;
            let (id, deliveries, stored) = (dead.pushed, dead.deliveries, dead.value);
            letters.push(QueueItem { id, deliveries, key: kv.key, stored, value: PhantomData });
        }
        if !more || letters.len() == DEAD_LETTERS {
            return Ok(letters);
        }
    }
}
