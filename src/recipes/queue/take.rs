//! Popping: finding the first item that nobody works on, and getting the claim on it.

use std::future::IntoFuture;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{BoxFuture, Either, pending, select};

use super::Queue;
use super::delivery::Delivery;
use super::place::{Found, Place, Tally, item_value};
use crate::api::session::Lifeline;
use crate::codec::Value;
use crate::command::{Attach, Command, Compare, KeyRange, Op, Order, Response, Test, Txn};
use crate::error::{Error, Obstacle};
use crate::format::claim::{encode_claim, encode_numbers};
use crate::format::queue::{self, DeadItem, Part, part_key, part_range};
use crate::node::Node;
use crate::recipes::attempt::{Request, patiently, while_wanted};
use crate::recipes::claim::{self, Line, Placed, session_error};
use crate::recipes::guard::Guard;
use crate::rt::{self, Instant};
use crate::storage::view::View;
use crate::types::Revision;
use crate::watch_hub::Next;

/// The next item, once there is one. See [`Queue::pop`].
#[must_use = "nothing is popped until it is awaited"]
#[derive(Clone, Debug)]
pub struct Pop<V> {
    queue: Queue<V>,
}

impl<V: Value> Pop<V> {
    pub(super) fn new(queue: Queue<V>) -> Self {
        Pop { queue }
    }

    /// Takes an item only if there is one that nobody works on: awaited, gives `None` otherwise.
    pub fn try_now(self) -> TryPop<V> {
        TryPop { pop: self }
    }

    async fn take(self, wait: bool) -> Result<Option<Delivery<V>>, Error> {
        let Queue { request, deliveries_max, .. } = self.queue.clone();
        let (cluster, line, place) = (request.cluster.clone(), self.queue.line()?, self.queue.place()?);
        let taking = Taking { request, line, place, deliveries_max };
        let taken = while_wanted(&cluster, move |node, gone| async move { taking.take(&node, wait, gone).await });
        Ok(taken.await?.map(|taken| Delivery::new(self.queue, taken)))
    }
}

impl<V: Value> IntoFuture for Pop<V> {
    type Output = Result<Delivery<V>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(self.take(true).await?.expect("who waits is never told that there is nothing")) })
    }
}

/// The next item, if there is one now. See [`Pop::try_now`].
#[must_use = "nothing is popped until it is awaited"]
#[derive(Clone, Debug)]
pub struct TryPop<V> {
    pop: Pop<V>,
}

impl<V: Value> IntoFuture for TryPop<V> {
    type Output = Result<Option<Delivery<V>>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.pop.take(false))
    }
}

/// An item that was claimed.
pub(super) struct Taken {
    pub(super) guard: Guard,
    pub(super) found: Found,
    pub(super) deliveries: u64,
    pub(super) value: Bytes,
}

/// One pop under way.
struct Taking {
    request: Request,
    line: Line,
    place: Place,
    deliveries_max: Option<u64>,
}

/// What was seen of the item to be claimed.
struct Candidate {
    found: Found,
    tally: Tally,
    value: Bytes,
}

/// When to look again.
enum Again {
    /// When something has happened to the queue behind this revision.
    Stirred(Revision),
    /// When this node has applied this revision: somebody else came first, or the item became a dead letter.
    At(Revision),
    /// When the session is valid again: until then no claim is worth anything.
    Sure(Arc<Lifeline>),
}

impl Taking {
    async fn take(self, node: &Arc<Node>, wait: bool, mut gone: oneshot::Receiver<()>) -> Result<Option<Taken>, Error> {
        let started = Instant::now();
        let patience = self.request.timeout.or((!wait).then_some(node.settings().timeout)).unwrap_or(Duration::MAX);
        // Who waits may as well begin with what this node knows; that there is nothing must be so everywhere.
        let mut view = match wait {
            true => node.state().view(),
            false => node.linearizable_view(self.request.step_timeout()).await?,
        };
        loop {
            let (candidate, seen) = (self.candidate(&view)?, view.revision);
            // Not held while waiting: an old view keeps history from being swept.
            drop(view);
            let again = match candidate {
                None if !wait => return Ok(None),
                None => Again::Stirred(seen),
                Some(candidate) if self.is_spent(&candidate) => Again::At(self.bury(node, candidate).await?),
                Some(candidate) => match self.claim(node, candidate).await? {
                    Ok(taken) => return Ok(Some(taken)),
                    Err(again) => again,
                },
            };
            self.patiently(node, started, patience, &mut gone, self.until(node, again)).await?;
            view = node.state().view();
        }
    }

    /// Waits for `work`, at most for the rest of the patience, and while the caller and the session it named are there.
    async fn patiently(
        &self,
        node: &Node,
        started: Instant,
        patience: Duration,
        gone: &mut oneshot::Receiver<()>,
        work: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        node.check_open()?;
        if started.elapsed() >= patience {
            return Err(Error::NotApplied { why: Obstacle::Waiting, waited: started.elapsed() });
        }
        let ended = async {
            match &self.request.session {
                Some(session) => session_error(session, session.lost().await),
                None => pending().await,
            }
        };
        let work = async {
            match select(pin!(work), pin!(ended)).await {
                Either::Left((done, _)) => done,
                Either::Right((error, _)) => Err(error),
            }
        };
        patiently(started, patience, Obstacle::Waiting, gone, work).await
    }

    /// Waits until it is worth looking again.
    async fn until(&self, node: &Node, again: Again) -> Result<(), Error> {
        match again {
            Again::Stirred(seen) => self.stirred(node, seen).await,
            Again::At(revision) => node.wait_revision(revision).await,
            Again::Sure(session) => match session.sure().await {
                Ok(_) => Ok(()),
                Err(reason) => Err(session_error(&session, reason)),
            },
        }
    }

    /// Waits until something has happened to the queue behind the revision that was `seen`.
    async fn stirred(&self, node: &Node, seen: Revision) -> Result<(), Error> {
        let items = node.hub().subscribe(part_range(&self.place.name, Part::Item));
        let claims = node.hub().subscribe(queue::claims(&self.place.name));
        let (items, claims) = (pin!(items.next(seen)), pin!(claims.next(seen)));
        let next = match select(items, claims).await {
            Either::Left((next, _)) | Either::Right((next, _)) => next,
        };
        match next {
            Next::Closed(reason) => Err(Error::Stopped { reason }),
            _ => Ok(()),
        }
    }

    fn candidate(&self, view: &View) -> Result<Option<Candidate>, Error> {
        let Some(found) = self.place.first_free(view)? else { return Ok(None) };
        let tally = self.place.tally(view, &found.id)?;
        let item = self.place.get(view, Part::Item, &found.id)?.expect("the view does not change");
        Ok(Some(Candidate { found, tally, value: item_value(item)? }))
    }

    /// Whether it was given out as often as it may be.
    fn is_spent(&self, candidate: &Candidate) -> bool {
        self.deliveries_max.is_some_and(|most| candidate.tally.deliveries >= most)
    }

    /// That the item is as it was seen, and nobody works on it.
    fn conditions(&self, candidate: &Candidate) -> Vec<Compare> {
        let (name, Candidate { found, tally, .. }) = (&self.place.name, candidate);
        let single = |part| KeyRange::single(part_key(name, part, &found.id));
        vec![
            Compare { keys: single(Part::Item), test: Test::Created(Order::Equal, found.pushed) },
            Compare { keys: queue::claims_on(name, &found.id), test: Test::Absent },
            Compare { keys: single(Part::Tally), test: Test::Modified(Order::Equal, tally.modified) },
        ]
    }

    /// Claims the item and counts that, in one transaction; or says when to try again.
    async fn claim(&self, node: &Arc<Node>, candidate: Candidate) -> Result<Result<Taken, Again>, Error> {
        let (name, id) = (&self.place.name, &candidate.found.id);
        let (footing, cluster) = (self.request.footing(node)?, &self.request.cluster);
        let key = queue::claim_key(name, id, rt::random_u128());
        let deliveries = candidate.tally.deliveries + 1;
        let note = encode_claim(&footing.note(node, Bytes::new()));
        let then = vec![
            Op::Put { key: key.clone(), value: note, lease: footing.attach(), prev: false },
            Op::Put {
                key: part_key(name, Part::Tally, id),
                value: encode_numbers([deliveries]),
                lease: Attach::Forever,
                prev: false,
            },
        ];
        let txn = Txn { compares: self.conditions(&candidate), then: then.into(), otherwise: vec![] };
        let answer = claim::send(cluster, txn, &key, footing.timeout).await?;
        let revision = answer.revision;
        let Placed::Standing { claim, lease, .. } = claim::placed(answer, key, true) else {
            return Ok(Err(Again::At(revision)));
        };
        let mut attempt = footing.stand(node, self.line.clone(), claim, lease, true);
        let Some(lapses) = attempt.alone else {
            // Whether the claim still stands is not certain. It is withdrawn, and a session of its own ends with it.
            let session = self.request.session.clone();
            return Ok(Err(session.map_or(Again::At(revision), Again::Sure)));
        };
        let guard = attempt.granted(cluster.clone(), name.clone(), lapses);
        let Candidate { found, value, .. } = candidate;
        Ok(Ok(Taken { guard, found, deliveries, value }))
    }

    /// Makes the item a dead letter, unless somebody came first; returns the revision as of which that is decided.
    async fn bury(&self, node: &Arc<Node>, candidate: Candidate) -> Result<Revision, Error> {
        let (name, id) = (&self.place.name, &candidate.found.id);
        let (pushed, deliveries) = (candidate.found.pushed, candidate.tally.deliveries);
        let dead = DeadItem { pushed, deliveries, value: candidate.value.clone() };
        let delete = |part| Op::Delete { keys: KeyRange::single(part_key(name, part, id)), prev: false };
        let then = vec![
            Op::Put {
                key: part_key(name, Part::Dead, id),
                value: queue::encode_dead(&dead),
                lease: Attach::Forever,
                prev: false,
            },
            delete(Part::Item),
            delete(Part::Tally),
        ];
        // Not a write of this process's that somebody waits for: done twice, the second one finds no item.
        let txn = Txn { compares: self.conditions(&candidate), then: then.into(), otherwise: vec![] };
        match node.housekeep(Command::Txn(txn), claim::STEP_TIMEOUT).await? {
            Response::Txn(answer) => Ok(answer.revision),
            other => unreachable!("a transaction without leases is answered with {other:?}"),
        }
    }
}
