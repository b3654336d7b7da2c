use std::sync::atomic::AtomicUsize;

use super::*;
use crate::rt::Instant;

const TIMEOUT: Duration = Duration::from_secs(5);
const MS: Duration = Duration::from_millis(1);

fn net(seed: u64, usual: Wire) -> SimNet {
    SimNet::new(seed, usual, Arc::new(|name, task| rt::spawn(name, task).detach()))
}

/// Counts what it is sent, and sends it back.
fn counting() -> (Inbound, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let inbound = Inbound::new(move |_, frame| {
        counted.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { Ok(frame) })
    });
    (inbound, count)
}

fn pair(net: &SimNet) -> (SimEnd, SimEnd, Arc<AtomicUsize>) {
    let (a, b) = (net.end("a"), net.end("b"));
    let (inbound, count) = counting();
    a.start(counting().0);
    b.start(inbound);
    (a, b, count)
}

fn frame() -> Bytes {
    Bytes::from_static(b"frame")
}

async fn call(from: &SimEnd, to: &str) -> (Result<Bytes, TransportError>, Duration) {
    let start = Instant::now();
    let answer = from.call(&Peer::new(to, "ignored"), Lane::Client, frame(), TIMEOUT).await;
    (answer, start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_frame_takes_the_time_of_the_wires_there_and_back() {
    let net = net(1, Wire::default());
    let (a, _b, _) = pair(&net);
    net.wire("a", "b", Wire::default().latency(MS * 10, MS * 10));
    net.wire("b", "a", Wire::default().latency(MS * 30, MS * 30));
    assert_eq!(call(&a, "b").await, (Ok(frame()), MS * 40));
    net.unwire();
    assert!(call(&a, "b").await.1 < MS * 40);
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_is_not_handled_a_lost_answer_is_and_both_hold_their_caller_until_the_timeout() {
    let net = net(1, Wire::instant());
    let (a, _b, handled) = pair(&net);
    net.wire("a", "b", Wire::instant().loss(1.0));
    assert_eq!(call(&a, "b").await, (Err(TransportError::TimedOut), TIMEOUT));
    assert_eq!(handled.load(Ordering::Relaxed), 0);
    net.unwire();
    net.wire("b", "a", Wire::instant().loss(1.0));
    assert_eq!(call(&a, "b").await, (Err(TransportError::TimedOut), TIMEOUT));
    assert_eq!(handled.load(Ordering::Relaxed), 1);
    assert_eq!((net.calls(), net.harm().of(Harm::FrameLost)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_doubled_request_is_handled_twice_and_answered_once() {
    let net = net(1, Wire::instant());
    let (a, _b, handled) = pair(&net);
    net.wire("a", "b", Wire::instant().duplication(1.0));
    assert_eq!(call(&a, "b").await.0, Ok(frame()));
    rt::sleep(MS).await;
    assert_eq!(handled.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_frame_differs_in_one_bit() {
    let net = net(1, Wire::instant());
    let (a, _b, _) = pair(&net);
    net.wire("b", "a", Wire::instant().corruption(1.0));
    let answer = call(&a, "b").await.0.expect("it arrives");
    let bits: u32 = answer.iter().zip(&frame()).map(|(got, sent)| (got ^ sent).count_ones()).sum();
    assert_eq!((answer.len(), bits), (frame().len(), 1));
}

#[tokio::test(start_paused = true)]
async fn a_late_frame_is_handled_after_its_caller_has_given_up_and_its_sender_has_died() {
    let net = net(3, Wire::instant().lateness(1.0, Duration::from_secs(600)));
    let (a, _b, handled) = pair(&net);
    assert_eq!(call(&a, "b").await, (Err(TransportError::TimedOut), TIMEOUT));
    net.close("a", Away::Silent);
    drop(a);
    assert_eq!(handled.load(Ordering::Relaxed), 0);
    rt::sleep(Duration::from_secs(600)).await;
    assert_eq!(handled.load(Ordering::Relaxed), 1);
}

/// The order in which twenty numbered frames arrive.
async fn order_over(wire: Wire) -> Vec<u8> {
    let net = net(5, wire);
    let (a, b) = (net.end("a"), net.end("b"));
    let arrived: Arc<Mutex<Vec<u8>>> = Arc::default();
    let seen = arrived.clone();
    b.start(Inbound::new(move |_, frame| {
        seen.lock().unwrap().push(frame[0]);
        Box::pin(async move { Ok(frame) })
    }));
    let to = Peer::new("b", "");
    let calls = (0..20).map(|n| a.call(&to, Lane::Append, Bytes::from(vec![n]), TIMEOUT));
    futures::future::join_all(calls).await;
    arrived.lock().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn frames_overtake_each_other_unless_their_wire_keeps_the_order() {
    let slow = Wire::default().latency(MS, MS * 50);
    let free = order_over(slow.clone()).await;
    let mut sorted = free.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..20).collect::<Vec<u8>>());
    assert_ne!(free, sorted);
    assert_eq!(order_over(slow.in_order()).await, sorted);
}

#[tokio::test(start_paused = true)]
async fn a_cut_loses_what_is_under_way_in_its_direction_only() {
    let net = net(1, Wire::default().latency(MS * 10, MS * 10));
    let (a, b, handled) = pair(&net);
    let under_way = call(&a, "b");
    let cutter = async {
        rt::sleep(MS * 5).await;
        net.cut("a", "b");
    };
    let (answer, ()) = futures::join!(under_way, cutter);
    assert_eq!(answer, (Err(TransportError::TimedOut), TIMEOUT));
    // The request of the other arrives, its answer does not.
    assert_eq!(call(&b, "a").await.0, Err(TransportError::TimedOut));
    assert_eq!(handled.load(Ordering::Relaxed), 0);
    net.heal();
    assert_eq!(call(&a, "b").await.0, Ok(frame()));
}

#[tokio::test(start_paused = true)]
async fn a_held_frame_arrives_when_it_is_released_and_at_whoever_listens_then() {
    let net = net(1, Wire::instant());
    let (a, b, handled) = pair(&net);
    net.hold("a", "b");
    assert_eq!(call(&a, "b").await.0, Err(TransportError::TimedOut));
    drop(b);
    let (inbound, handled_later) = counting();
    let b = net.end("b");
    b.start(inbound);
    rt::sleep(TIMEOUT).await;
    assert_eq!(handled_later.load(Ordering::Relaxed), 0);
    net.release();
    assert_eq!(call(&a, "b").await.0, Ok(frame()));
    assert_eq!((handled.load(Ordering::Relaxed), handled_later.load(Ordering::Relaxed)), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_machine_whose_process_died_refuses_and_one_without_power_is_silent() {
    let net = net(1, Wire::instant());
    let (a, _b, handled) = pair(&net);
    net.close("b", Away::Refusing);
    assert_eq!(call(&a, "b").await, (Err(TransportError::Unreachable), Duration::ZERO));
    net.close("b", Away::Silent);
    assert_eq!(call(&a, "b").await, (Err(TransportError::TimedOut), TIMEOUT));
    assert_eq!(call(&a, "nobody").await, (Err(TransportError::Unreachable), Duration::ZERO));
    assert_eq!(handled.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_life_that_is_over_neither_sends_nor_answers_nor_hears() {
    let net = net(1, Wire::default().latency(MS * 10, MS * 10));
    let (a, b, handled) = pair(&net);
    let dying = async {
        rt::sleep(MS * 15).await;
        net.close("a", Away::Silent);
        net.close("b", Away::Silent);
    };
    // The answer of b is under way to a when both die: a does not hear it.
    let (answer, ()) = futures::join!(call(&a, "b"), dying);
    assert_eq!(answer.0, Err(TransportError::TimedOut));
    assert_eq!(handled.load(Ordering::Relaxed), 1);
    let c = net.end("c");
    c.start(counting().0);
    assert_eq!(call(&b, "c").await.0, Err(TransportError::TimedOut));
    assert_eq!(net.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lane_at_its_limit_refuses_and_the_others_do_not_notice() {
    let net = net(1, Wire::instant());
    let (a, b) = (net.end("a"), net.end("b"));
    b.start(Inbound::new(|lane, frame| {
        Box::pin(async move { if lane == Lane::Append { pending().await } else { Ok(frame) } })
    }));
    let to = Peer::new("b", "");
    let calls = (0..=CALLS_MAX).map(|_| a.call(&to, Lane::Append, frame(), TIMEOUT));
    let answers = futures::future::join_all(calls).await;
    let refused = answers.iter().filter(|answer| matches!(answer, Err(TransportError::Other(_)))).count();
    assert_eq!(refused, 1);
    assert_eq!(call(&a, "b").await.0, Ok(frame()));
}

#[tokio::test(start_paused = true)]
async fn what_a_script_decides_goes_before_what_the_wire_says() {
    let net = net(1, Wire::instant());
    let (a, _b, handled) = pair(&net);
    net.script(Some(Arc::new(|sight| {
        let muted = Passage { muted: true, ..Passage::default() };
        (sight.leg == Leg::Request && sight.lane == Lane::Client)
            .then(|| vec![muted, Passage { delay: MS * 7, ..Passage::default() }])
    })));
    assert_eq!(call(&a, "b").await, (Ok(frame()), MS * 7));
    assert_eq!(handled.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_frame_counts_as_overtaken_if_it_was_slow_and_one_that_was_sent_later_came_first() {
    let (count, slow) = (|net: &SimNet| net.harm().of(Harm::FrameOvertaken), Wire::instant().latency(MS * 20, MS * 20));
    let net = net(1, Wire::instant());
    let (a, _b, _) = pair(&net);
    for (first, second, overtaken) in [(slow.clone(), slow.clone(), 0), (slow, Wire::instant(), 1)] {
        net.wire("a", "b", first);
        let first = call(&a, "b");
        futures::pin_mut!(first);
        assert!(futures::poll!(&mut first).is_pending());
        net.wire("a", "b", second);
        assert_eq!(call(&a, "b").await.0, Ok(frame()));
        assert_eq!(first.await.0, Ok(frame()));
        assert_eq!(count(&net), overtaken);
    }
    // Jitter.
    net.wire("a", "b", Wire::default());
    let calls = futures::future::join_all((0..50).map(|_| call(&a, "b"))).await;
    assert!(calls.iter().all(|(answer, _)| answer.is_ok()) && count(&net) == 1, "{}", net.harm());
}

#[tokio::test(start_paused = true)]
async fn one_seed_has_one_fate() {
    async fn run(seed: u64) -> (Vec<bool>, HarmCounts) {
        let wire = Wire::default().loss(0.2).duplication(0.2).corruption(0.2).lateness(0.2, TIMEOUT);
        let net = net(seed, wire);
        let (a, _b, _) = pair(&net);
        let mut answers = Vec::new();
        for _ in 0..50 {
            answers.push(call(&a, "b").await.0.is_ok());
        }
        (answers, net.harm())
    }
    assert_eq!(run(7).await, run(7).await);
    assert_ne!(run(7).await, run(8).await);
}
