//! The one task behind all handles of a mirror: takes the batches of a feed, and publishes a snapshot behind each.

use std::future::poll_fn;
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::delta::{Causes, locked};
use super::snapshot::{Item, Mirrored};
use crate::api::layout::Layout;
use crate::api::watch::BatchKind;
use crate::api::watch::feed::{Feed, Stored, StoredEvent};
use crate::command::KeyValue;
use crate::error::Error;
use crate::node::Node;
use crate::rt::task::AbortOnDrop;
use crate::rt::{self, watch};
use crate::types::Revision;

/// Events worked through before others on the runtime get their turn: values are decoded here, in well below a millisecond.
const EVENTS_PER_TURN: usize = 256;

/// The present state.
pub(super) type Latest<V, K> = Arc<ArcSwap<Mirrored<V, K>>>;

/// What is told to those who wait.
pub(super) struct Published {
    /// The state shows everything up to here.
    pub(super) place: Revision,
    /// Why there will be no other state.
    pub(super) ended: Option<Error>,
}

/// What the handles and the task have in common.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) causes: Mutex<Causes>,
    /// Asks the task to publish its place: it is not woken by what happens to other keys.
    pub(super) poke: Notify,
}

/// Held by all handles of one mirror: the task ends with the last one.
pub(super) struct Line {
    pub(super) shared: Arc<Shared>,
    /// Not held: a mirror does not keep its node running.
    pub(super) node: Weak<Node>,
    _task: AbortOnDrop<()>,
}

/// Takes the first state from `feed`, here, and begins to follow it on the node's runtime.
pub(super) async fn start<V, K>(
    node: &Arc<Node>,
    mut feed: Feed,
    table: &'static str,
    layout: Layout<V, K>,
) -> Result<(Line, Latest<V, K>, watch::Receiver<Published>), Error>
where
    V: Send + Sync + 'static,
    K: Send + Sync + 'static,
{
    let shared = Arc::new(Shared::default());
    let first = poll_fn(|cx| feed.poll_next(cx)).await.expect("a feed begins with a batch or an error")?;
    let now = Arc::new(Mirrored::empty(table, Revision::ZERO));
    let latest = Latest::new(ArcSwap::new(now.clone()));
    let mut follower = Follower { now, latest: latest.clone(), layout, shared: shared.clone() };
    follower.take(first).await;
    let (sender, receiver) = watch::channel(Published { place: feed.place(), ended: None });
    let task = node.spawn("mirror", follower.follow(feed, sender)).abort_on_drop();
    Ok((Line { shared, node: Arc::downgrade(node), _task: task }, latest, receiver))
}

struct Follower<V: 'static, K> {
    now: Arc<Mirrored<V, K>>,
    latest: Latest<V, K>,
    layout: Layout<V, K>,
    shared: Arc<Shared>,
}

impl<V, K> Follower<V, K> {
    /// Until the node stops.
    async fn follow(mut self, mut feed: Feed, sender: watch::Sender<Published>) {
        while let Some(next) = self.next(&mut feed, &sender).await {
            match next {
                Ok(batch) => {
                    let revision = batch.revision;
                    self.take(batch).await;
                    // Behind the state: who is told of a place finds it.
                    sender.send_modify(|published| published.place = revision);
                }
                Err(error) => return sender.send_modify(|published| published.ended = Some(error)),
            }
        }
    }

    /// The next batch. Publishes the place whenever there is none yet.
    async fn next(&self, feed: &mut Feed, sender: &watch::Sender<Published>) -> Option<Result<Stored, Error>> {
        let mut poked = pin!(self.shared.poke.notified());
        poll_fn(|cx| {
            loop {
                let next = feed.poll_next(cx);
                if next.is_ready() {
                    return next;
                }
                let place = feed.place();
                sender.send_if_modified(|published| mem::replace(&mut published.place, place) != place);
                if poked.as_mut().poll(cx).is_pending() {
                    return next;
                }
                poked.set(self.shared.poke.notified());
            }
        })
        .await
    }

    async fn take(&mut self, batch: Stored) {
        let next = match batch.kind {
            BatchKind::Live => self.changed(batch).await,
            BatchKind::Initial | BatchKind::Resync => self.listed(batch).await,
        };
        self.now = Arc::new(next);
        self.latest.store(self.now.clone());
    }

    async fn changed(&self, batch: Stored) -> Mirrored<V, K> {
        let mut next = (*self.now).clone();
        next.revision = batch.revision;
        for (count, event) in batch.events.into_iter().enumerate() {
            match event {
                StoredEvent::Put { entry, .. } => drop(next.insert(self.item(&entry))),
                StoredEvent::Delete { key, cause, revision, .. } => {
                    if let Some(item) = next.remove(&key) {
                        locked(&self.shared.causes).add(item.stored().clone(), revision, Some(cause));
                    }
                }
            }
            take_turns(count).await;
        }
        next
    }

    /// What a list of everything makes of the state: what is not in it is gone.
    async fn listed(&self, batch: Stored) -> Mirrored<V, K> {
        let mut next = Mirrored::empty(self.now.table, batch.revision);
        for (count, event) in batch.events.into_iter().enumerate() {
            if let StoredEvent::Put { entry, .. } = event {
                next.push(self.item(&entry));
            }
            take_turns(count).await;
        }
        self.now.items.diff(&next.items, |before, after| {
            if let (Some(before), None) = (before, after) {
                locked(&self.shared.causes).add(before.stored().clone(), batch.revision, None);
            }
        });
        next
    }

    /// What is known of this put already, or what can be read of it.
    fn item(&self, entry: &KeyValue) -> Arc<Item<V, K>> {
        match self.now.items.get(&entry.key) {
            Some(item) if item.modified == entry.modified => item.clone(),
            _ => Arc::new(Item::read(entry, &self.layout)),
        }
    }
}

/// Lets others run after so many events.
async fn take_turns(count: usize) {
    if (count + 1).is_multiple_of(EVENTS_PER_TURN) {
        rt::yield_now().await;
    }
}
