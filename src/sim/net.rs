//! The simulated network: one that loses, doubles, delays, reorders and damages frames, as its seed says.
//!
//! It behaves as a network does and not as a function call does:
//! * What is lost is *lost*: its sender hears nothing until its own timeout, as it would of a pulled cable.
//! * A frame under way is nobody's: it arrives though its sender has died or its caller has given up, and if the receiver
//!   was started again meanwhile, it arrives at the new life.
//! * A request and its answer travel different wires, and each suffers by itself.
//! * A receiver that is not there refuses, as a machine does whose process has died, or is silent, as one without power.
//!
//! What it leaves to others: when nodes live and die, and what makes the draw of the faults ([`super::Sim`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use xxhash_rust::xxh3::xxh3_64;

use super::harm::{Harm, HarmCounts};
pub(crate) use super::wire::Passage;
use super::wire::Wire;
use crate::rt::{self, NodeRuntime, RuntimeKind, watch};
use crate::storage::fault_disk::SplitMix;
use crate::transport::partitions::{Obstacle, Partitions};
use crate::transport::{Inbound, Lane, Transport, TransportError, check_size};
use crate::types::Peer;

/// Frames under way at once, in the whole network; any more are lost.
const FLIGHTS_MAX: usize = 65_536;
/// Calls that one node handles at once on one lane; any more are refused.
const CALLS_MAX: usize = 1024;
/// Frames that take less than this are not counted as overtaken: jitter is no fault.
const JITTER: Duration = Duration::from_millis(10);

/// Runs what carries frames, which belongs to no node.
pub(crate) type Spawner = Arc<dyn Fn(&'static str, BoxFuture<'static, ()>) + Send + Sync>;

/// A network in memory. Clones are the same network.
#[derive(Clone)]
pub(crate) struct SimNet {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Changes whenever frames are released.
    released: watch::Sender<u64>,
    spawner: Spawner,
}

struct State {
    rng: SplitMix,
    partitions: Partitions,
    /// Every wire that has no conditions of its own.
    usual: Wire,
    wires: BTreeMap<(String, String), Wire>,
    held: BTreeSet<(String, String)>,
    script: Option<Script>,
    /// By name: who listens, or how the name is away.
    ends: BTreeMap<String, End>,
    /// The last frame that was sent in order, by from, to and lane: the next one waits until it has arrived.
    last: BTreeMap<(String, String, Lane), oneshot::Receiver<()>>,
    /// The newest frame that has arrived, by from, to and lane.
    newest: BTreeMap<(String, String, Lane), u64>,
    flights: usize,
    lives: u64,
    /// Requests that callers have made, and frames that have set out.
    calls: u64,
    frames: u64,
    harm: HarmCounts,
}

/// Decides in place of a wire, if it likes: for tests that need one very frame to be lost.
pub(crate) type Script = Arc<dyn Fn(&Sight) -> Option<Vec<Passage>> + Send + Sync>;

/// What a [`Script`] sees of a frame that sets out.
pub(crate) struct Sight {
    pub(crate) lane: Lane,
    pub(crate) leg: Leg,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leg {
    Request,
    /// The answer, and whether it is one rather than a refusal.
    Answer {
        ok: bool,
    },
}

/// How a node is away.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Away {
    /// The machine runs and says that nobody listens: callers hear [`TransportError::Unreachable`] at once.
    Refusing,
    /// Nothing is heard.
    Silent,
}

#[derive(Clone)]
enum End {
    Here(Listener),
    Away(Away),
}

/// One life of one node that has started.
#[derive(Clone)]
struct Listener {
    life: u64,
    inbound: Inbound,
    /// The runtime, and with it the context, in which it was started.
    runtime: Option<NodeRuntime>,
    /// Calls being handled, by the number of the lane.
    handling: Arc<Mutex<[usize; Lane::ALL.len()]>>,
    alive: Arc<AtomicBool>,
}

impl SimNet {
    /// Everybody is connected by `usual`.
    pub(crate) fn new(seed: u64, usual: Wire, spawner: Spawner) -> Self {
        let state = State {
            rng: SplitMix(seed),
            partitions: Partitions::default(),
            usual,
            wires: BTreeMap::new(),
            held: BTreeSet::new(),
            script: None,
            ends: BTreeMap::new(),
            last: BTreeMap::new(),
            newest: BTreeMap::new(),
            flights: 0,
            lives: 0,
            calls: 0,
            frames: 0,
            harm: HarmCounts::default(),
        };
        SimNet { shared: Arc::new(Shared { state: Mutex::new(state), released: watch::channel(0).0, spawner }) }
    }

    /// The transport for a new life of the node called `name`. It listens once it is started.
    pub(crate) fn end(&self, name: &str) -> SimEnd {
        let mut state = self.state();
        state.lives += 1;
        SimEnd { net: self.clone(), name: name.to_owned(), life: state.lives, alive: Arc::new(AtomicBool::new(true)) }
    }

    /// Ends whatever life of `name` is listening: what is left of it neither sends nor answers.
    pub(crate) fn close(&self, name: &str, away: Away) {
        let before = self.state().ends.insert(name.to_owned(), End::Away(away));
        if let Some(End::Here(listener)) = &before {
            listener.alive.store(false, Ordering::Release);
        }
    }

    /// Lets frames travel by `wire` wherever [`SimNet::wire`] says nothing else.
    pub(crate) fn usual(&self, wire: Wire) {
        self.state().usual = wire;
    }

    /// Lets frames from `from` to `to` travel by `wire`, requests and answers alike.
    pub(crate) fn wire(&self, from: &str, to: &str, wire: Wire) {
        self.state().wires.insert((from.to_owned(), to.to_owned()), wire);
    }

    /// Takes back what [`SimNet::wire`] has said.
    pub(crate) fn unwire(&self) {
        self.state().wires.clear();
    }

    pub(crate) fn script(&self, script: Option<Script>) {
        self.state().script = script;
    }

    /// Changes who is cut off from whom. Looked at when a frame sets out and when it arrives.
    pub(crate) fn partition<T>(&self, change: impl FnOnce(&mut Partitions) -> T) -> T {
        change(&mut self.state().partitions)
    }

    pub(crate) fn isolate(&self, name: impl Into<String>) {
        self.partition(|partitions| partitions.isolate(name.into()));
    }

    pub(crate) fn cut(&self, from: impl Into<String>, to: impl Into<String>) {
        self.partition(|partitions| partitions.cut(from.into(), to.into()));
    }

    /// Ends every partition, isolation and cut, and releases what is held. What was lost stays lost.
    pub(crate) fn heal(&self) {
        self.partition(Partitions::heal);
        self.release();
    }

    /// Keeps what arrives from `from` at `to` under way until it is released.
    pub(crate) fn hold(&self, from: &str, to: &str) {
        self.state().held.insert((from.to_owned(), to.to_owned()));
    }

    /// Lets everything arrive that is held, and holds nothing any more.
    pub(crate) fn release(&self) {
        self.state().held.clear();
        self.shared.released.send_modify(|times| *times += 1);
    }

    /// Requests that callers have made so far.
    pub(crate) fn calls(&self) -> u64 {
        self.state().calls
    }

    /// What has been done to frames so far, requests and answers alike.
    pub(crate) fn harm(&self) -> HarmCounts {
        self.state().harm.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("no holder of the lock panics")
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        (self.shared.spawner)(name, Box::pin(task));
    }

    /// Sends a frame out, in as many copies as the draw says. Each that arrives calls `arrived`.
    fn send<F>(&self, leg: &Leg, route: Route, frame: Bytes, arrived: impl Fn(SimNet, Route, Bytes, bool) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (number, copies) = self.state().depart(*leg, &route);
        rt::sim::trace("frame", &[u8::from(route.lane).into(), copies.len() as u64, xxh3_64(&frame)]);
        for (copy, in_order) in copies {
            let turn = in_order.then(|| self.state().turn(&route));
            let (net, route) = (self.clone(), route.clone());
            let frame = copy.flip.map_or_else(|| frame.clone(), |bit| flipped(&frame, bit));
            let arrived = {
                let (net, route, muted) = (self.clone(), route.clone(), copy.muted);
                arrived(net, route, frame, muted)
            };
            self.spawn("frame", async move {
                if !copy.delay.is_zero() {
                    rt::sleep(copy.delay).await;
                }
                let turn = match turn {
                    Some((before, done)) => {
                        if let Some(before) = before {
                            let _ = before.await;
                        }
                        Some(done)
                    }
                    None => None,
                };
                net.unheld(&route).await;
                drop(turn);
                let slow = copy.delay >= JITTER && !copy.late;
                if net.state().arrive(&route, number, slow) {
                    arrived.await;
                }
            });
        }
    }

    async fn unheld(&self, route: &Route) {
        let mut released = self.shared.released.subscribe();
        let mut first = true;
        while self.state().holds(route, std::mem::take(&mut first)) {
            released.changed().await.expect("this network holds the sender");
        }
    }

    /// Hands a request that has arrived to whoever listens, and sends the answer back.
    async fn serve(self, route: Route, frame: Bytes, answer: Answer) {
        let end = self.state().ends.get(&route.to).cloned().unwrap_or(End::Away(Away::Refusing));
        let listener = match end {
            End::Here(listener) => listener,
            End::Away(Away::Silent) => return,
            End::Away(Away::Refusing) => return self.reply(route, Err(TransportError::Unreachable), answer),
        };
        let Some(place) = listener.place(route.lane) else {
            let full = format!("{} is handling {CALLS_MAX} calls on this lane already", route.to);
            return self.reply(route, Err(TransportError::Other(full)), answer);
        };
        let (inbound, lane) = (listener.inbound.clone(), route.lane);
        // To the end, whether or not anybody still waits for it.
        let handled = async move {
            let _place = place;
            inbound.receive(lane, frame).await
        };
        let handled = match &listener.runtime {
            Some(runtime) => runtime.spawn("delivery", handled),
            None => rt::spawn("delivery", handled),
        };
        let outcome = handled.await;
        if listener.alive.load(Ordering::Acquire) {
            // A handler that panicked breaks the connection.
            return self.reply(route, outcome.unwrap_or(Err(TransportError::Unreachable)), answer);
        }
        let silent = matches!(self.state().ends.get(&route.to), Some(End::Away(Away::Silent)));
        if !silent {
            self.reply(route, Err(TransportError::Unreachable), answer);
        }
    }

    fn reply(&self, asked: Route, outcome: Result<Bytes, TransportError>, answer: Answer) {
        let route = Route { from: asked.to, to: asked.from, lane: asked.lane };
        let leg = Leg::Answer { ok: outcome.is_ok() };
        let frame = outcome.as_ref().cloned().unwrap_or_default();
        self.send(&leg, route, frame, |_, _, frame, _| {
            let (answer, outcome) = (answer.clone(), outcome.clone().map(|_| frame));
            async move { answer.give(outcome) }
        });
    }
}

impl State {
    /// The number of a frame, and the copies of it that set out, and whether each has to keep the order.
    fn depart(&mut self, leg: Leg, route: &Route) -> (u64, Vec<(Passage, bool)>) {
        let Route { from, to, lane } = route;
        let scripted = self.script.as_ref().and_then(|script| script(&Sight { lane: *lane, leg }));
        let wire = self.wires.get(&(from.clone(), to.clone())).unwrap_or(&self.usual);
        let in_order = wire.is_in_order();
        let copies = scripted.unwrap_or_else(|| wire.draw(&mut self.rng));
        self.calls += u64::from(leg == Leg::Request);
        self.frames += 1;
        let room = FLIGHTS_MAX - self.flights;
        let open = self.passes(route);
        self.harm.add(Harm::FrameLost, u64::from(open && copies.is_empty()));
        if !open || copies.len() > room {
            return (self.frames, Vec::new());
        }
        self.flights += copies.len();
        let count = |what: fn(&Passage) -> bool| copies.iter().filter(|copy| what(copy)).count() as u64;
        self.harm.add(Harm::FrameDoubled, u64::from(copies.len() > 1));
        self.harm.add(Harm::FrameLate, count(|copy| copy.late));
        self.harm.add(Harm::FrameDamaged, count(|copy| copy.flip.is_some()));
        let copies = copies.into_iter().map(|copy| {
            let keeps_order = in_order && !copy.late;
            (copy, keeps_order)
        });
        (self.frames, copies.collect())
    }

    /// Whether nothing stops a frame now; counts what does.
    fn passes(&mut self, route: &Route) -> bool {
        let obstacle = self.partitions.obstacle(&route.from, &route.to);
        self.harm.add(Harm::FramePartitioned, u64::from(obstacle == Some(Obstacle::Partition)));
        self.harm.add(Harm::FrameCut, u64::from(obstacle == Some(Obstacle::Cut)));
        obstacle.is_none()
    }

    /// Whether frames of this route are held; counts it where it is asked for the first time.
    fn holds(&mut self, route: &Route, first: bool) -> bool {
        let held = self.held.contains(&(route.from.clone(), route.to.clone()));
        self.harm.add(Harm::FrameHeld, u64::from(held && first));
        held
    }

    /// Takes the next turn on a wire that keeps the order: what to wait for, and what to drop when it is over.
    fn turn(&mut self, route: &Route) -> (Option<oneshot::Receiver<()>>, oneshot::Sender<()>) {
        let (done, over) = oneshot::channel();
        (self.last.insert((route.from.clone(), route.to.clone(), route.lane), over), done)
    }

    /// Ends a flight; false if a partition has come in its way.
    fn arrive(&mut self, route: &Route, number: u64, slow: bool) -> bool {
        self.flights -= 1;
        if !self.passes(route) {
            return false;
        }
        let newest = self.newest.entry((route.from.clone(), route.to.clone(), route.lane)).or_default();
        self.harm.add(Harm::FrameOvertaken, u64::from(slow && number < *newest));
        *newest = number.max(*newest);
        true
    }
}

impl Listener {
    /// A place among the calls being handled, if there is one.
    fn place(&self, lane: Lane) -> Option<Place> {
        let lane = usize::from(u8::from(lane));
        let mut handling = self.handling.lock().expect("no holder of the lock panics");
        if handling[lane] >= CALLS_MAX {
            return None;
        }
        handling[lane] += 1;
        Some(Place { handling: self.handling.clone(), lane })
    }
}

/// Given back when it is dropped.
struct Place {
    handling: Arc<Mutex<[usize; Lane::ALL.len()]>>,
    lane: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handling.lock().expect("no holder of the lock panics")[self.lane] -= 1;
    }
}

#[derive(Clone)]
struct Route {
    from: String,
    to: String,
    lane: Lane,
}

/// What comes of a call.
type Outcome = Result<Bytes, TransportError>;

/// Where the answer to a call goes: the first that arrives counts.
#[derive(Clone)]
struct Answer(Arc<Mutex<Option<oneshot::Sender<Outcome>>>>);

impl Answer {
    fn give(&self, outcome: Result<Bytes, TransportError>) {
        let waiting = self.0.lock().expect("no holder of the lock panics").take();
        if let Some(waiting) = waiting {
            // An error says that the caller has given up.
            let _ = waiting.send(outcome);
        }
    }
}

fn flipped(frame: &Bytes, bit: u64) -> Bytes {
    let mut bytes = frame.to_vec();
    if !bytes.is_empty() {
        let bit = (bit % (bytes.len() as u64 * 8)) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    bytes.into()
}

/// One life of one node on a [`SimNet`].
pub(crate) struct SimEnd {
    net: SimNet,
    name: String,
    life: u64,
    alive: Arc<AtomicBool>,
}

impl fmt::Debug for SimEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimEnd").field("name", &self.name).field("life", &self.life).finish_non_exhaustive()
    }
}

impl SimEnd {
    /// Set to false, this life is over on the network.
    pub(crate) fn alive(&self) -> Arc<AtomicBool> {
        self.alive.clone()
    }

    /// Brings the frame there and the answer back. Never returns if all copies of either are lost.
    async fn carry(&self, to: &str, lane: Lane, frame: Bytes) -> Result<Bytes, TransportError> {
        if !self.alive.load(Ordering::Acquire) {
            return pending().await;
        }
        let (answer, answered) = oneshot::channel();
        let answer = Answer(Arc::new(Mutex::new(Some(answer))));
        let route = Route { from: self.name.clone(), to: to.to_owned(), lane };
        self.net.send(&Leg::Request, route, frame, |net, route, frame, muted| {
            // Muted: served, and the answer goes to somebody who does not exist.
            let answer = if muted { Answer(Arc::default()) } else { answer.clone() };
            net.serve(route, frame, answer)
        });
        drop(answer);
        match answered.await {
            Ok(outcome) if self.alive.load(Ordering::Acquire) => outcome,
            _ => pending().await,
        }
    }
}

impl Transport for SimEnd {
    fn start(&self, inbound: Inbound) {
        let listener = Listener {
            life: self.life,
            inbound,
            runtime: NodeRuntime::start(&self.name, RuntimeKind::Current).ok(),
            handling: Arc::default(),
            alive: self.alive.clone(),
        };
        let replaced = self.net.state().ends.insert(self.name.clone(), End::Here(listener));
        // The network is no longer locked: dropping the host's handler may run anything.
        drop(replaced);
    }

    fn call<'a>(
        &'a self,
        to: &'a Peer,
        lane: Lane,
        frame: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, TransportError>> {
        Box::pin(async move {
            check_size(&frame)?;
            rt::timeout(timeout, self.carry(&to.name, lane, frame)).await.unwrap_or(Err(TransportError::TimedOut))
        })
    }
}

impl Drop for SimEnd {
    fn drop(&mut self) {
        let mut state = self.net.state();
        let ours = matches!(state.ends.get(&self.name), Some(End::Here(listener)) if listener.life == self.life);
        let stopped = match ours {
            true => state.ends.insert(self.name.clone(), End::Away(Away::Refusing)),
            false => None,
        };
        drop(state);
        drop(stopped);
    }
}

#[cfg(test)]
mod tests;
