//! A network inside one process, with partitions: for clusters in one program, and for tests.
//!
//! It behaves as a network does and not as a function call does. What is lost to a partition is *lost*: the caller hears
//! nothing until its timeout, as it would of a pulled cable. A receiver handles what reached it to the end, whether or not
//! its caller still waits. Nodes may run on runtimes of their own.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::partitions::Partitions;
use super::{Inbound, Lane, Transport, TransportError, check_size};
use crate::rt::{self, NodeRuntime, RuntimeKind};
use crate::types::Peer;

/// The calls that one node handles at once on one lane; any more are refused with [`TransportError::Other`].
const CALLS_MAX: usize = 1024;

/// A network in memory. Clones are the same network.
///
/// Nodes are found by [`Peer::name`]; addresses are ignored. All are connected until told otherwise. Connections are
/// looked at when a frame sets out and when it arrives: a partition that is healed in between goes unnoticed, and one
/// that comes while a call is being handled loses the answer.
///
/// ```
/// use std::time::Duration;
/// use quorate::transport::{Bytes, Inbound, Lane, MemoryNetwork, Peer, Transport, TransportError};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let network = MemoryNetwork::new();
/// let (a, b) = (network.transport("a"), network.transport("b"));
/// b.start(Inbound::new(|_lane, frame| Box::pin(async move { Ok(frame) })));
///
/// let to = Peer::new("b", "");
/// let call = |timeout| a.call(&to, Lane::Client, Bytes::from("hello"), timeout);
/// assert_eq!(call(Duration::from_secs(5)).await, Ok(Bytes::from("hello")));
/// network.isolate("b");
/// assert_eq!(call(Duration::from_millis(10)).await, Err(TransportError::TimedOut));
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryNetwork {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    listeners: BTreeMap<String, Listener>,
    /// Counts transports, to tell one that is dropped from its successor under the same name.
    transports: u64,
    partitions: Partitions,
    one_way: Duration,
}

/// One node that has started.
#[derive(Clone, Debug)]
struct Listener {
    transport: u64,
    inbound: Inbound,
    /// The runtime it was started on; none if it was started outside one, and then frames are handled on their sender's.
    runtime: Option<NodeRuntime>,
    /// By the number of the lane.
    places: [Arc<Semaphore>; Lane::ALL.len()],
}

impl MemoryNetwork {
    /// A network in which everybody is connected and nothing takes time.
    pub fn new() -> Self {
        Self::default()
    }

    /// The transport of the node called `name`. A node that is opened again may use the same or a new one.
    pub fn transport(&self, name: impl Into<String>) -> MemoryTransport {
        let mut state = self.state();
        state.transports += 1;
        MemoryTransport { network: self.clone(), name: name.into(), id: state.transports }
    }

    /// Splits the network: only names that share a group are connected, and a name in no group is alone.
    ///
    /// It replaces an earlier partition. A name may be in several groups, which makes it a bridge that does not forward.
    pub fn partition(&self, groups: &[&[&str]]) {
        let groups = groups.iter().map(|group| group.iter().map(|name| (*name).to_owned()).collect());
        self.state().partitions.split(groups);
    }

    /// Cuts `name` off from everybody, beside any partition.
    pub fn isolate(&self, name: impl Into<String>) {
        self.state().partitions.isolate(name.into());
    }

    /// Loses every frame from `from` to `to`, requests and answers alike, beside any partition.
    ///
    /// One way: `to` can still send to `from`, but gets no answer to a request of its own, since that is lost on its way.
    pub fn cut(&self, from: impl Into<String>, to: impl Into<String>) {
        self.state().partitions.cut(from.into(), to.into());
    }

    /// Ends every partition, isolation and cut. What was lost stays lost.
    pub fn heal(&self) {
        self.state().partitions.heal();
    }

    /// Lets every frame travel for `one_way` (default zero) from now on: a call takes twice that.
    pub fn delay(&self, one_way: Duration) {
        self.state().one_way = one_way;
    }

    fn connected(&self, from: &str, to: &str) -> bool {
        self.state().partitions.connected(from, to)
    }

    async fn travel(&self) {
        let one_way = self.state().one_way;
        if !one_way.is_zero() {
            rt::sleep(one_way).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn route(&self, from: &str, to: &str) -> Route {
        // In this order: whoever is cut off cannot know whether the other has started.
        if !self.partitions.connected(from, to) {
            return Route::Lost;
        }
        self.listeners.get(to).cloned().map_or(Route::Nobody, Route::To)
    }
}

/// What becomes of a frame that sets out.
enum Route {
    Lost,
    Nobody,
    To(Listener),
}

/// One node's access to a [`MemoryNetwork`]. Dropping it stops the listening, but not what is being handled.
///
/// A frame is handled on the runtime on which [`start`](Transport::start) was called, to the end, even if the caller's
/// future has been dropped; if that runtime ends, callers get [`TransportError::Unreachable`] at once. So does a call to a
/// name that has not started. One node handles at most 1024 calls at once on each lane; the rest are refused.
#[derive(Debug)]
pub struct MemoryTransport {
    network: MemoryNetwork,
    name: String,
    id: u64,
}

impl Transport for MemoryTransport {
    fn start(&self, inbound: Inbound) {
        let listener = Listener {
            transport: self.id,
            inbound,
            runtime: NodeRuntime::start(&self.name, RuntimeKind::Current).ok(),
            places: std::array::from_fn(|_| Arc::new(Semaphore::new(CALLS_MAX))),
        };
        let replaced = self.network.state().listeners.insert(self.name.clone(), listener);
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

impl MemoryTransport {
    /// Brings the frame there and the answer back. Never returns if either is lost.
    async fn carry(&self, to: &str, lane: Lane, frame: Bytes) -> Result<Bytes, TransportError> {
        let route = self.network.state().route(&self.name, to);
        let listener = match route {
            Route::Lost => return pending().await,
            Route::Nobody => return Err(TransportError::Unreachable),
            Route::To(listener) => listener,
        };
        let place = listener.places[usize::from(u8::from(lane))]
            .clone()
            .try_acquire_owned()
            .map_err(|_| TransportError::Other(format!("{to} is handling {CALLS_MAX} calls on this lane already")))?;
        let (network, from, to) = (self.network.clone(), self.name.clone(), to.to_owned());
        let delivery = deliver(network, from, to, listener.inbound, lane, frame, place);
        let delivered = match listener.runtime {
            Some(runtime) => runtime.spawn("memory delivery", delivery),
            None => rt::spawn("memory delivery", delivery),
        };
        match delivered.await {
            Ok(Some(answer)) => answer,
            Ok(None) => pending().await,
            // The receiver's runtime has ended, or its handler has panicked: the connection breaks.
            Err(_) => Err(TransportError::Unreachable),
        }
    }
}

/// Handles one frame at its receiver; none if the frame or its answer got lost. Holds `_place` until it is done.
async fn deliver(
    network: MemoryNetwork,
    from: String,
    to: String,
    inbound: Inbound,
    lane: Lane,
    frame: Bytes,
    _place: OwnedSemaphorePermit,
) -> Option<Result<Bytes, TransportError>> {
    network.travel().await;
    if !network.connected(&from, &to) {
        return None;
    }
    let answer = inbound.receive(lane, frame).await;
    if !network.connected(&to, &from) {
        return None;
    }
    network.travel().await;
    network.connected(&to, &from).then_some(answer)
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        let mut state = self.network.state();
        let ours = state.listeners.get(&self.name).is_some_and(|listener| listener.transport == self.id);
        let stopped = if ours { state.listeners.remove(&self.name) } else { None };
        drop(state);
        drop(stopped);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;

    use super::*;
    use crate::rt::{Instant, watch};

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn echo() -> Inbound {
        Inbound::new(|_, frame| Box::pin(async move { Ok(frame) }))
    }

    fn frame() -> Bytes {
        Bytes::from_static(b"frame")
    }

    async fn call(from: &MemoryTransport, to: &str) -> (Result<Bytes, TransportError>, Duration) {
        let start = Instant::now();
        let answer = from.call(&Peer::new(to, "ignored"), Lane::Client, frame(), TIMEOUT).await;
        (answer, start.elapsed())
    }

    /// Three nodes that answer with what they are sent.
    fn three() -> (MemoryNetwork, [MemoryTransport; 3]) {
        let network = MemoryNetwork::new();
        let nodes = ["a", "b", "c"].map(|name| network.transport(name));
        nodes.iter().for_each(|node| node.start(echo()));
        (network, nodes)
    }

    /// Which of three nodes get an answer from which, as rows of "x" and ".".
    async fn reach(nodes: &[MemoryTransport; 3]) -> String {
        let mut table = Vec::new();
        for from in nodes {
            let mut row = String::new();
            for to in nodes {
                row += if call(from, &to.name).await.0.is_ok() { "x" } else { "." };
            }
            table.push(row);
        }
        table.join(" ")
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_lost_to_a_partition_holds_its_caller_until_the_timeout() {
        let (network, [a, b, _]) = three();
        network.isolate("b");
        assert_eq!(call(&a, "b").await, (Err(TransportError::TimedOut), TIMEOUT));
        assert_eq!(call(&b, "a").await, (Err(TransportError::TimedOut), TIMEOUT));
        network.heal();
        assert_eq!(call(&a, "b").await, (Ok(frame()), Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn partitions_isolation_and_cuts_part_exactly_whom_they_name() {
        let (network, nodes) = three();
        assert_eq!(reach(&nodes).await, "xxx xxx xxx");
        network.partition(&[&["a", "b"]]);
        assert_eq!(reach(&nodes).await, "xx. xx. ..x");
        network.partition(&[&["a", "b"], &["b", "c"]]);
        assert_eq!(reach(&nodes).await, "xx. xxx .xx");
        network.isolate("c");
        assert_eq!(reach(&nodes).await, "xx. xx. ..x");
        network.partition(&[]);
        assert_eq!(reach(&nodes).await, "x.. .x. ..x");
        network.heal();
        assert_eq!(reach(&nodes).await, "xxx xxx xxx");
        // The answer needs the other direction.
        network.cut("a", "b");
        assert_eq!(reach(&nodes).await, "x.x .xx xxx");
        network.heal();
        assert_eq!(reach(&nodes).await, "xxx xxx xxx");
    }

    #[tokio::test(start_paused = true)]
    async fn a_one_way_cut_delivers_the_other_way_and_loses_the_answer() {
        let (network, [a, b, _]) = three();
        let handled = Arc::new(AtomicUsize::new(0));
        let count = handled.clone();
        a.start(Inbound::new(move |_, frame| {
            count.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move { Ok(frame) })
        }));
        network.cut("a", "b");
        assert_eq!(call(&b, "a").await, (Err(TransportError::TimedOut), TIMEOUT));
        assert_eq!(handled.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_that_comes_while_a_call_is_being_handled_loses_the_answer() {
        let (network, [a, b, _]) = three();
        let cutter = network.clone();
        b.start(Inbound::new(move |_, frame| {
            cutter.isolate("b");
            Box::pin(async move { Ok(frame) })
        }));
        assert_eq!(call(&a, "b").await, (Err(TransportError::TimedOut), TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_not_there_is_unreachable_at_once_but_lost_behind_a_partition() {
        let (network, [a, ..]) = three();
        assert_eq!(call(&a, "d").await, (Err(TransportError::Unreachable), Duration::ZERO));
        network.isolate("d");
        assert_eq!(call(&a, "d").await, (Err(TransportError::TimedOut), TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_stops_is_gone_and_one_that_starts_again_is_back() {
        let (network, [a, b, c]) = three();
        drop(b);
        assert_eq!(call(&a, "b").await.0, Err(TransportError::Unreachable));
        let (old, new) = (network.transport("b"), network.transport("b"));
        old.start(echo());
        new.start(Inbound::new(|_, _| Box::pin(async { Ok(Bytes::from_static(b"new")) })));
        // Dropping a transport whose place was taken leaves its successor listening.
        drop(old);
        assert_eq!(call(&a, "b").await.0, Ok(Bytes::from_static(b"new")));
        let inbound = echo();
        c.start(inbound.clone());
        inbound.close();
        assert_eq!(call(&a, "c").await, (Err(TransportError::Closed), Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_handles_a_frame_to_the_end_though_its_caller_has_gone() {
        let (_network, [a, b, _]) = three();
        let (done, mut seen) = watch::channel(false);
        b.start(Inbound::new(move |_, frame| {
            let done = done.clone();
            Box::pin(async move {
                rt::sleep(Duration::from_secs(1)).await;
                done.send(true);
                Ok(frame)
            })
        }));
        let to = Peer::new("b", "");
        let call = a.call(&to, Lane::Client, frame(), TIMEOUT);
        assert!(rt::timeout(Duration::from_millis(1), call).await.is_err());
        assert_eq!(rt::timeout(TIMEOUT, seen.wait_for(|done| *done)).await, Ok(Ok(true)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_is_paid_once_each_way_and_a_partition_on_the_way_is_met() {
        let (network, [a, b, _]) = three();
        let one_way = Duration::from_millis(40);
        network.delay(one_way);
        assert_eq!(call(&a, "b").await, (Ok(frame()), 2 * one_way));
        network.delay(TIMEOUT);
        assert_eq!(call(&a, "b").await, (Err(TransportError::TimedOut), TIMEOUT));
        // On its way there it does not arrive; on its way back it has.
        for (cut_after, arrives) in [(one_way / 2, 0), (one_way + one_way / 2, 1)] {
            network.delay(one_way);
            let handled = Arc::new(AtomicUsize::new(0));
            let count = handled.clone();
            b.start(Inbound::new(move |_, frame| {
                count.fetch_add(1, Ordering::Relaxed);
                Box::pin(async move { Ok(frame) })
            }));
            let (lost, ()) = futures::join!(call(&a, "b"), async {
                rt::sleep(cut_after).await;
                network.isolate("b");
            });
            assert_eq!(lost, (Err(TransportError::TimedOut), TIMEOUT), "cut after {cut_after:?}");
            assert_eq!(handled.load(Ordering::Relaxed), arrives, "cut after {cut_after:?}");
            network.heal();
        }
    }

    #[tokio::test]
    async fn nodes_on_threads_of_their_own_reach_each_other_and_their_end_is_noticed() {
        let network = MemoryNetwork::new();
        let a = network.transport("a");
        let b = Arc::new(network.transport("b"));
        let runtime = NodeRuntime::start("b's own", RuntimeKind::Dedicated).unwrap();
        let starting = b.clone();
        let started = runtime.spawn("start", async move {
            starting.start(Inbound::new(|_, _| {
                let name = std::thread::current().name().unwrap_or_default().to_owned();
                Box::pin(async move { if name == "b's own" { Ok(name.into()) } else { std::future::pending().await } })
            }));
        });
        started.await.unwrap();
        assert_eq!(call(&a, "b").await.0, Ok(Bytes::from_static(b"b's own")));
        runtime.shutdown().await;
        assert_eq!(call(&a, "b").await.0, Err(TransportError::Unreachable));
    }

    #[tokio::test]
    async fn a_handler_that_panics_breaks_the_connection_and_not_the_network() {
        let (_network, [a, b, c]) = three();
        b.start(Inbound::new(|_, _| Box::pin(async { panic!("on purpose") })));
        assert_eq!(call(&a, "b").await.0, Err(TransportError::Unreachable));
        assert_eq!(call(&c, "a").await.0, Ok(frame()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_at_its_limit_refuses_at_once_and_the_others_do_not_notice() {
        let (_network, [a, b, _]) = three();
        b.start(Inbound::new(|lane, frame| {
            Box::pin(async move { if lane == Lane::Append { std::future::pending().await } else { Ok(frame) } })
        }));
        let to = Peer::new("b", "");
        let append = || a.call(&to, Lane::Append, frame(), TIMEOUT);
        let mut held: Vec<_> = (0..CALLS_MAX).map(|_| append()).collect();
        assert!(held.iter_mut().all(|call| call.now_or_never().is_none()));
        let refused = append().await;
        assert!(matches!(refused, Err(TransportError::Other(_))), "{refused:?}");
        assert_eq!(call(&a, "b").await.0, Ok(frame()));
    }
}
