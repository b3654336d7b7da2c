//! The changes of a range, in stored form: from the hub while it has them, from the store's history or from its present
//! state when it has not.
//!
//! Everything is done where the feed is polled, a bounded piece at a time; no task stands behind it. Nothing is held
//! between polls but what has been found and not handed out, so that a consumer that does not poll holds back neither
//! the hub nor the store.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::{BatchKind, Cause};
use crate::api::range::RANGE_ENTRIES_MAX;
use crate::api::read::read_error;
use crate::command::{Change, ChangeKind, KeyRange, KeyValue, RecordId};
use crate::error::Error;
use crate::node::Node;
use crate::rt::{Mark, mark, mutant};
use crate::state_machine::read::ReadError;
use crate::storage::state::StateStore;
use crate::storage::view::View;
use crate::types::Revision;
use crate::watch_hub::{self, Next, Subscription};

/// Records of history read at once by a watcher that is behind; a revision with more comes whole.
const HISTORY_RECORDS: usize = 64;
/// Pieces (looks at the hub, pages of a range, stretches of history) that one poll goes through before it lets its
/// executor run something else.
const PIECES_PER_POLL: usize = 4;

/// What becomes of a watcher that has fallen behind what the hub keeps.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lag {
    /// It is given the whole range at one revision, and goes on from there.
    Coalesce,
    /// It is given every revision, from the store's history, as long as that reaches back.
    Backpressure,
}

/// Where a feed begins.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Behind what this node has applied.
    Now,
    /// Behind this revision, which may lie in the future.
    After(Revision),
    /// With the whole range as of now.
    Initial,
}

/// All that happened in the range at one revision, or all that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Up to where everything had been handed out before.
    pub(crate) after: Revision,
    pub(crate) revision: Revision,
    pub(crate) kind: BatchKind,
    pub(crate) events: Vec<StoredEvent>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoredEvent {
    Put { entry: KeyValue, prev: Option<KeyValue> },
    Delete { key: Bytes, cause: Cause, revision: Revision, prev: Option<KeyValue> },
}

impl StoredEvent {
    pub(crate) fn key(&self) -> &Bytes {
        match self {
            StoredEvent::Put { entry, .. } => &entry.key,
            StoredEvent::Delete { key, .. } => key,
        }
    }
}

/// * Everything of the range up to `place` has been handed out.
/// * `found` holds what follows, in order; behind its last one nothing else has happened up to `found_to`.
pub(crate) struct Feed {
    state: StateStore,
    changes: Subscription,
    keys: KeyRange,
    lag: Lag,
    /// It has not yet come to what the hub keeps from a start in the past. Until then it is not behind: it was asked
    /// for.
    resuming: bool,
    prev: bool,
    place: Revision,
    found: VecDeque<Arc<watch_hub::Batch>>,
    found_to: Revision,
    doing: Doing,
}

enum Doing {
    Following,
    Listing(Listing),
    Over,
}

/// The whole range at one revision, read page by page. Each page takes the newest view, so that none is held between
/// polls: history answers for the revision, and if it no longer does, the list is begun anew.
struct Listing {
    kind: BatchKind,
    at: Revision,
    rest: KeyRange,
    events: Vec<StoredEvent>,
}

/// What one piece of work came to.
enum Piece {
    Batch(Stored),
    /// Nothing to hand out yet; there is more to do.
    Again,
    /// Nothing to do until something changes.
    Wait,
    End(Error),
}

impl Feed {
    /// # Errors
    /// [`Error::Compacted`] if the history does not reach back to the start.
    pub(crate) fn open(node: &Node, keys: KeyRange, start: Start, lag: Lag, prev: bool) -> Result<Self, Error> {
        // In this order: what is published from now on is found in the hub, and the view shows what was before.
        let changes = node.hub().subscribe(keys.clone());
        let view = node.state().view();
        let (place, doing) = match start {
            Start::After(place) if place < view.floor => {
                mark(Mark::WatchCompacted);
                return Err(Error::Compacted { requested: place.next(), oldest: view.floor.next() });
            }
            Start::After(place) => (place, Doing::Following),
            Start::Now => (view.revision, Doing::Following),
            Start::Initial => {
                (Revision::ZERO, Doing::Listing(Listing::begin(BatchKind::Initial, view.revision, &keys)))
            }
        };
        Ok(Feed {
            state: node.state().clone(),
            changes,
            keys,
            lag,
            resuming: matches!(start, Start::After(_)),
            prev,
            place,
            found: VecDeque::new(),
            found_to: place,
            doing,
        })
    }

    /// Everything of the range up to here has been handed out.
    pub(crate) fn place(&self) -> Revision {
        match &self.doing {
            Doing::Following if self.found.is_empty() || mutant("progress_ahead_of_events") => {
                self.changes.settled(self.place)
            }
            _ => self.place,
        }
    }

    /// The next batch; `None` behind the error that ended the feed.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Stored, Error>>> {
        for _ in 0..PIECES_PER_POLL {
            let piece = match &mut self.doing {
                Doing::Over => return Poll::Ready(None),
                Doing::Listing(_) => self.list(),
                Doing::Following => self.follow(cx),
            };
            match piece {
                Piece::Batch(batch) => return Poll::Ready(Some(Ok(batch))),
                Piece::Again => {}
                Piece::Wait => return Poll::Pending,
                Piece::End(error) => {
                    self.doing = Doing::Over;
                    self.found.clear();
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn follow(&mut self, cx: &mut Context<'_>) -> Piece {
        if let Some(batch) = self.found.pop_front() {
            return self.hand_out(&batch);
        }
        match self.changes.poll_next(self.place, cx) {
            Poll::Pending => Piece::Wait,
            Poll::Ready(Next::Batches(found, to)) => {
                self.resuming = false;
                self.take(found.into(), to)
            }
            Poll::Ready(Next::Closed(reason)) => Piece::End(Error::Stopped { reason }),
            Poll::Ready(Next::Behind(place)) => {
                self.place = place;
                match self.lag {
                    Lag::Coalesce if !self.resuming => self.resync(),
                    Lag::Coalesce | Lag::Backpressure => self.read_history(),
                }
            }
        }
    }

    fn take(&mut self, found: VecDeque<Arc<watch_hub::Batch>>, to: Revision) -> Piece {
        if found.is_empty() {
            self.place = to;
        }
        (self.found, self.found_to) = (found, to);
        Piece::Again
    }

    /// The next stretch of history, of which the range's own revisions are kept.
    fn read_history(&mut self) -> Piece {
        let view = self.state.view();
        let from = self.place.next();
        if self.resuming {
            mark(Mark::WatchResumed);
        }
        match view.changes(from..=view.revision, HISTORY_RECORDS) {
            Ok((changes, complete)) => self.take(revisions(changes, &self.keys), complete),
            Err(ReadError::Compacted { .. }) if self.lag == Lag::Coalesce => self.resync(),
            Err(error) => self.broken(error, from),
        }
    }

    fn hand_out(&mut self, batch: &watch_hub::Batch) -> Piece {
        if mutant("watch_split_batch") && batch.changes.len() > 1 {
            return self.hand_out_split(batch);
        }
        let view = self.state.view();
        let mine = batch.changes.iter().filter(|change| self.keys.contains(&change.key));
        let events = mine.map(|change| stored_event(&view, change, self.prev)).collect();
        match events {
            Ok(events) => {
                let place = if self.found.is_empty() { self.found_to } else { batch.revision };
                let after = std::mem::replace(&mut self.place, place);
                Piece::Batch(Stored { after, revision: batch.revision, kind: BatchKind::Live, events })
            }
            // A previous value is gone from the history: the watcher is as far behind as if the change itself were.
            Err(ReadError::Compacted { .. }) if self.lag == Lag::Coalesce => self.resync(),
            Err(error) => self.broken(error, batch.revision),
        }
    }

    /// A mutant's way: each change comes by itself.
    fn hand_out_split(&mut self, batch: &watch_hub::Batch) -> Piece {
        for change in batch.changes.iter().rev() {
            let changes = vec![change.clone()];
            self.found.push_front(Arc::new(watch_hub::Batch { revision: batch.revision, changes: changes.into() }));
        }
        Piece::Again
    }

    fn resync(&mut self) -> Piece {
        mark(Mark::WatchLagged);
        self.found.clear();
        self.resuming = false;
        self.doing = Doing::Listing(Listing::begin(BatchKind::Resync, self.state.view().revision, &self.keys));
        Piece::Again
    }

    /// What a failed read comes to. Reading fails when the node stops, too: then that is what it was.
    fn broken(&self, error: ReadError, requested: Revision) -> Piece {
        Piece::End(match (error, self.changes.closed()) {
            (ReadError::Row(_), Some(reason)) => Error::Stopped { reason },
            (error, _) => read_error(error, requested),
        })
    }

    /// Reads one more page of the whole range.
    fn list(&mut self) -> Piece {
        let Doing::Listing(listing) = &mut self.doing else { unreachable!("asked only while listing") };
        if let Some(reason) = self.changes.closed() {
            return Piece::End(Error::Stopped { reason });
        }
        let view = self.state.view();
        match listing.read_page(&view) {
            Ok(true) => Piece::Again,
            Ok(false) => {
                let (revision, kind) = (listing.at, listing.kind);
                let events = std::mem::take(&mut listing.events);
                let after = std::mem::replace(&mut self.place, revision);
                self.doing = Doing::Following;
                Piece::Batch(Stored { after, revision, kind, events })
            }
            Err(ReadError::Compacted { .. }) => {
                *listing = Listing::begin(listing.kind, view.revision, &self.keys);
                Piece::Again
            }
            Err(error) => self.broken(error, view.revision),
        }
    }
}

impl Listing {
    fn begin(kind: BatchKind, at: Revision, keys: &KeyRange) -> Self {
        Listing { kind, at, rest: keys.clone(), events: Vec::new() }
    }

    /// Whether there is more.
    fn read_page(&mut self, view: &View) -> Result<bool, ReadError> {
        let (entries, more) = view.range_at(self.at, &self.rest, RANGE_ENTRIES_MAX as usize, false)?;
        if let Some(last) = entries.last() {
            self.rest.start = KeyRange::single(last.key.clone()).end.expect("a single key has a successor");
        }
        self.events.extend(entries.into_iter().map(|entry| StoredEvent::Put { entry, prev: None }));
        Ok(more)
    }
}

/// Splits changes, which come in order, by revision, leaving out what is not in `keys`.
fn revisions(changes: Vec<Change>, keys: &KeyRange) -> VecDeque<Arc<watch_hub::Batch>> {
    let mine: Vec<Change> = changes.into_iter().filter(|change| keys.contains(&change.key)).collect();
    let whole = mine.chunk_by(|a, b| a.id.revision == b.id.revision);
    whole
        .map(|changes| {
            Arc::new(watch_hub::Batch { revision: changes[0].id.revision, changes: changes.to_vec().into() })
        })
        .collect()
}

fn stored_event(view: &View, change: &Change, prev: bool) -> Result<StoredEvent, ReadError> {
    let prev = match change.prev.filter(|_| prev) {
        Some(id) => Some(superseded(view, id)?),
        None => None,
    };
    let (key, revision) = (change.key.clone(), change.id.revision);
    let cause = match change.kind {
        ChangeKind::Deleted => Cause::Deleted,
        ChangeKind::Expired => Cause::Expired,
        ChangeKind::Put => {
            let entry = KeyValue {
                key,
                value: change.value.clone(),
                created: change.created,
                modified: revision,
                version: change.version,
                lease: change.lease,
                ttl_ms: change.lease.map(|lease| view.lease_ttl_ms(lease)).transpose()?.flatten(),
            };
            return Ok(StoredEvent::Put { entry, prev });
        }
    };
    Ok(StoredEvent::Delete { key, cause, revision, prev })
}

/// The live record that a change took the place of.
fn superseded(view: &View, id: RecordId) -> Result<KeyValue, ReadError> {
    let record = view.record(id)?.ok_or(ReadError::Compacted { oldest: view.floor.next() })?;
    Ok(KeyValue {
        ttl_ms: record.lease.map(|lease| view.lease_ttl_ms(lease)).transpose()?.flatten(),
        key: record.key,
        value: record.value,
        created: record.created,
        modified: id.revision,
        version: record.version,
        lease: record.lease,
    })
}

#[cfg(test)]
mod tests;
