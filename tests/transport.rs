//! The transport contract from a host's side: it passes on a good transport, and each of its checks can fail.
//!
//! Uses nothing but the public API. All of it runs under a paused clock, in which a timeout of thirty seconds costs nothing.

// Outside the house, tokio is called by its name.
#![allow(clippy::disallowed_methods)]

use std::future::pending;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use quorate::transport::contract::{Endpoint, Report, Violation, check};
use quorate::transport::{
    BoxFuture, Bytes, FRAME_BYTES_MAX, Inbound, Lane, MemoryNetwork, MemoryTransport, Peer, Transport, TransportError,
};

type Answer = Result<Bytes, TransportError>;

/// Runs the check over a pair of transports, each made by `wrap` from a good one.
async fn run<T: Transport>(wrap: impl Fn(MemoryTransport) -> T) -> Result<Report, Violation> {
    let network = MemoryNetwork::new();
    let endpoint = |name: &str| Endpoint::new(wrap(network.transport(name)), Peer::new(name, ""));
    check(endpoint("a"), endpoint("b"), Peer::new("absent", "")).await
}

async fn fails<T: Transport>(wrap: impl Fn(MemoryTransport) -> T, expected: &str) {
    let outcome = run(wrap).await;
    assert!(matches!(&outcome, Err(violation) if violation.check == expected), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn the_memory_network_keeps_the_contract() {
    let report = run(|inner| inner).await.expect("a good transport");
    assert!(report.restartable);
    assert_eq!(report.passed.len(), 11, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn the_memory_network_keeps_the_contract_over_a_slow_line_and_behind_an_arc() {
    let network = MemoryNetwork::new();
    network.delay(Duration::from_millis(100));
    let endpoint = |name: &str| Endpoint::new(Arc::new(network.transport(name)), Peer::new(name, ""));
    let report = check(endpoint("a"), endpoint("b"), Peer::new("absent", "")).await;
    assert!(matches!(&report, Ok(report) if report.restartable), "{report:?}");
}

/// A transport that goes wrong in the way `call` says. `call` gets the transport, the call, and may do what it likes.
struct Bad<F> {
    inner: MemoryTransport,
    call: F,
}

struct Call<'a> {
    to: &'a Peer,
    lane: Lane,
    frame: Bytes,
    timeout: Duration,
}

impl<F> Transport for Bad<F>
where
    F: for<'a> Fn(&'a MemoryTransport, Call<'a>) -> BoxFuture<'a, Answer> + Send + Sync + 'static,
{
    fn start(&self, inbound: Inbound) {
        self.inner.start(inbound);
    }

    fn call<'a>(&'a self, to: &'a Peer, lane: Lane, frame: Bytes, timeout: Duration) -> BoxFuture<'a, Answer> {
        (self.call)(&self.inner, Call { to, lane, frame, timeout })
    }
}

/// Helps inference: a closure passed straight to [`Bad`] would not be general over the lifetime.
fn bad<F>(inner: MemoryTransport, call: F) -> Bad<F>
where
    F: for<'a> Fn(&'a MemoryTransport, Call<'a>) -> BoxFuture<'a, Answer> + Send + Sync + 'static,
{
    Bad { inner, call }
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_reaches_nobody_is_found() {
    let nobody = |inner| bad(inner, |_, _| Box::pin(async { Err(TransportError::Unreachable) }));
    fails(nobody, "both ends become reachable").await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_delivers_to_its_own_node_is_found() {
    struct Mirror(Mutex<Option<Inbound>>);
    impl Transport for Mirror {
        fn start(&self, inbound: Inbound) {
            *self.0.lock().unwrap() = Some(inbound);
        }
        fn call<'a>(&'a self, _: &'a Peer, lane: Lane, frame: Bytes, _: Duration) -> BoxFuture<'a, Answer> {
            let own = self.0.lock().unwrap().clone().expect("started");
            Box::pin(async move { own.receive(lane, frame).await })
        }
    }
    fails(|_| Mirror(Mutex::default()), "both ends become reachable").await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_truncates_large_frames_is_found() {
    for max in [64 * 1024 - 1, FRAME_BYTES_MAX - 1] {
        let short = |inner| {
            bad(inner, move |inner, mut c| {
                c.frame.truncate(max);
                inner.call(c.to, c.lane, c.frame, c.timeout)
            })
        };
        fails(short, "frames of every size pass unchanged on every lane").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_has_no_room_for_the_largest_frame_or_drops_empty_ones_is_found() {
    for refused in [0, FRAME_BYTES_MAX] {
        let picky = |inner| {
            bad(inner, move |inner, c| match c.frame.len() {
                n if n == refused => Box::pin(async { Err(TransportError::Other("no room".into())) }),
                _ => inner.call(c.to, c.lane, c.frame, c.timeout),
            })
        };
        fails(picky, "frames of every size pass unchanged on every lane").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_forgets_the_lane_is_found() {
    let one_lane = |inner| bad(inner, |inner, c| inner.call(c.to, Lane::Client, c.frame, c.timeout));
    fails(one_lane, "both ends become reachable").await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_bends_a_byte_in_the_middle_is_found() {
    let bent = |inner| {
        bad(inner, |inner, c| {
            Box::pin(async move {
                let mut answer = inner.call(c.to, c.lane, c.frame, c.timeout).await?.to_vec();
                let middle = answer.len() / 2;
                if answer.len() > 1000 {
                    answer[middle] ^= 1;
                }
                Ok(answer.into())
            })
        })
    };
    fails(bent, "frames of every size pass unchanged on every lane").await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_swaps_the_answers_of_concurrent_calls_is_found() {
    let swaps = |inner| {
        let (under_way, stash) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
        bad(inner, move |inner, c| {
            let (under_way, stash) = (under_way.clone(), stash.clone());
            Box::pin(async move {
                under_way.fetch_add(1, Ordering::Relaxed);
                let answer = inner.call(c.to, c.lane, c.frame, c.timeout).await;
                let alone = under_way.fetch_sub(1, Ordering::Relaxed) == 1;
                // Two that are under way together get each other's answers.
                if alone { answer } else { stash.lock().unwrap().replace(answer).unwrap_or(Ok(Bytes::new())) }
            })
        })
    };
    fails(swaps, "concurrent calls each get their own answer").await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_takes_answers_to_come_in_the_order_of_the_calls_is_found() {
    type Waiting = std::collections::VecDeque<tokio::sync::oneshot::Sender<Answer>>;
    let in_order = |inner| {
        let waiting = Arc::new(Mutex::new(Waiting::new()));
        bad(inner, move |inner, c| {
            let waiting = waiting.clone();
            Box::pin(async move {
                let (give, mut given) = tokio::sync::oneshot::channel();
                waiting.lock().unwrap().push_back(give);
                let call = async {
                    let answer = inner.call(c.to, c.lane, c.frame, c.timeout).await;
                    let first = waiting.lock().unwrap().pop_front().expect("as many calls as answers");
                    let _ = first.send(answer);
                    pending().await
                };
                tokio::select! {
                    biased;
                    answer = &mut given => answer.expect("it is answered before it is dropped"),
                    never = call => never,
                }
            })
        })
    };
    fails(in_order, "concurrent calls each get their own answer").await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_sends_one_frame_at_a_time_across_lanes_is_found() {
    let serial = |inner| {
        let line = Arc::new(tokio::sync::Mutex::new(()));
        bad(inner, move |inner, c| {
            let line = line.clone();
            let timeout = c.timeout;
            let call = async move {
                let _line = line.lock().await;
                inner.call(c.to, c.lane, c.frame, c.timeout).await
            };
            Box::pin(async move { tokio::time::timeout(timeout, call).await.unwrap_or(Err(TransportError::TimedOut)) })
        })
    };
    fails(serial, "slow lanes do not hold up the control lane").await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_with_one_call_at_a_time_on_each_lane_is_poor_but_keeps_the_contract() {
    let serial_lanes = |inner| {
        let lines: Arc<[tokio::sync::Mutex<()>; 4]> = Arc::default();
        bad(inner, move |inner, c| {
            let lines = lines.clone();
            let timeout = c.timeout;
            let call = async move {
                let _line = lines[c.lane as usize].lock().await;
                inner.call(c.to, c.lane, c.frame, c.timeout).await
            };
            Box::pin(async move { tokio::time::timeout(timeout, call).await.unwrap_or(Err(TransportError::TimedOut)) })
        })
    };
    let report = run(serial_lanes).await;
    assert!(report.is_ok(), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_transport_whose_lanes_share_one_slow_line_is_found() {
    let shared = |inner| {
        let line = Arc::new(tokio::sync::Mutex::new(()));
        bad(inner, move |inner, c| {
            let line = line.clone();
            Box::pin(async move {
                let turn = line.lock().await;
                // 4 MiB/s: the largest frame takes two seconds.
                tokio::time::sleep(Duration::from_millis(c.frame.len() as u64 * 1000 / (4 << 20))).await;
                drop(turn);
                inner.call(c.to, c.lane, c.frame, c.timeout).await
            })
        })
    };
    fails(shared, "bulk does not hold up the control lane").await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_waits_for_an_absent_peer_for_ever_is_found() {
    let waits = |inner| {
        bad(inner, |inner, c| {
            Box::pin(async move {
                match inner.call(c.to, c.lane, c.frame, c.timeout).await {
                    Err(TransportError::Unreachable) => pending().await,
                    answer => answer,
                }
            })
        })
    };
    fails(waits, "a call to an absent peer ends with an error").await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_never_times_out_is_found() {
    let endless = |inner| bad(inner, |inner, c| inner.call(c.to, c.lane, c.frame, Duration::MAX));
    fails(endless, "a call that is never answered ends with an error").await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_makes_an_empty_answer_of_an_error_is_found() {
    for (which, check) in [
        (TransportError::Unreachable, "a call to an absent peer ends with an error"),
        (TransportError::TimedOut, "a call that is never answered ends with an error"),
        (TransportError::Other("refused by the test".into()), "a refusal reaches the caller as an error"),
        (
            TransportError::TooLarge { size: FRAME_BYTES_MAX + 1, limit: FRAME_BYTES_MAX },
            "a frame over the limit is refused",
        ),
    ] {
        let hushes = |inner| {
            let which = which.clone();
            bad(inner, move |inner, c| {
                let which = which.clone();
                Box::pin(async move {
                    let answer = inner.call(c.to, c.lane, c.frame, c.timeout).await;
                    if answer == Err(which) { Ok(Bytes::new()) } else { answer }
                })
            })
        };
        fails(hushes, check).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_stops_after_a_refusal_is_found() {
    let sulks = |inner| {
        let stopped = Arc::new(AtomicBool::new(false));
        bad(inner, move |inner, c| {
            let stopped = stopped.clone();
            Box::pin(async move {
                if stopped.load(Ordering::Relaxed) {
                    return Err(TransportError::Closed);
                }
                let answer = inner.call(c.to, c.lane, c.frame, c.timeout).await;
                stopped.store(matches!(answer, Err(TransportError::Other(_))), Ordering::Relaxed);
                answer
            })
        })
    };
    fails(sulks, "a refusal reaches the caller as an error").await;
}

/// One connection for each lane, with answers read off it in order: a call that is abandoned leaves its answer there.
#[tokio::test(start_paused = true)]
async fn a_transport_that_gives_an_abandoned_calls_answer_to_the_next_is_found() {
    type Line = (tokio::sync::mpsc::UnboundedSender<Answer>, tokio::sync::mpsc::UnboundedReceiver<Answer>);
    let stale = |inner: MemoryTransport, frames_up_to| {
        let inner = Arc::new(inner);
        let lines: Arc<[tokio::sync::Mutex<Line>; 4]> =
            Arc::new(std::array::from_fn(|_| tokio::sync::Mutex::new(tokio::sync::mpsc::unbounded_channel())));
        Stale { inner, lines, frames_up_to }
    };

    struct Stale {
        inner: Arc<MemoryTransport>,
        lines: Arc<[tokio::sync::Mutex<Line>; 4]>,
        /// Larger frames have a connection each.
        frames_up_to: usize,
    }
    impl Transport for Stale {
        fn start(&self, inbound: Inbound) {
            self.inner.start(inbound);
        }
        fn call<'a>(&'a self, to: &'a Peer, lane: Lane, frame: Bytes, timeout: Duration) -> BoxFuture<'a, Answer> {
            if frame.len() > self.frames_up_to {
                return self.inner.call(to, lane, frame, timeout);
            }
            let (inner, to) = (self.inner.clone(), to.clone());
            let call = async move {
                let mut line = self.lines[lane as usize].lock().await;
                let answers = line.0.clone();
                tokio::spawn(async move { answers.send(inner.call(&to, lane, frame, timeout).await) });
                line.1.recv().await.expect("the line holds a sender")
            };
            Box::pin(async move {
                let Ok(answer) = tokio::time::timeout(timeout, call).await else {
                    // It has thought of this, and starts a new connection; of an abandoned call it has not.
                    *self.lines[lane as usize].lock().await = tokio::sync::mpsc::unbounded_channel();
                    return Err(TransportError::TimedOut);
                };
                answer
            })
        }
    }
    // Abandoned on its way, and abandoned while it waits for its answer.
    for frames_up_to in [FRAME_BYTES_MAX, 1000] {
        fails(|inner| stale(inner, frames_up_to), "an abandoned call does not disturb later ones").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_keeps_its_first_inbound_passes_and_is_reported_as_such() {
    struct Once(MemoryTransport, AtomicBool);
    impl Transport for Once {
        fn start(&self, inbound: Inbound) {
            if !self.1.swap(true, Ordering::Relaxed) {
                self.0.start(inbound);
            }
        }
        fn call<'a>(&'a self, to: &'a Peer, lane: Lane, frame: Bytes, timeout: Duration) -> BoxFuture<'a, Answer> {
            self.0.call(to, lane, frame, timeout)
        }
    }
    let report = run(|inner| Once(inner, AtomicBool::new(false))).await;
    assert!(matches!(&report, Ok(report) if !report.restartable), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_starts_anew_with_its_lanes_mixed_up_is_found() {
    struct Mixed(MemoryTransport, AtomicBool);
    impl Transport for Mixed {
        fn start(&self, inbound: Inbound) {
            let again = self.1.swap(true, Ordering::Relaxed);
            self.0.start(Inbound::new(move |lane, frame| {
                let (inbound, lane) = (inbound.clone(), if again { Lane::Client } else { lane });
                Box::pin(async move { inbound.receive(lane, frame).await })
            }));
        }
        fn call<'a>(&'a self, to: &'a Peer, lane: Lane, frame: Bytes, timeout: Duration) -> BoxFuture<'a, Answer> {
            self.0.call(to, lane, frame, timeout)
        }
    }
    fails(|inner| Mixed(inner, AtomicBool::new(false)), "a second start replaces the first").await;
}
