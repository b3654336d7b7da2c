//! The test that a host runs on its own transport.
//!
//! [`check`] plays both nodes of a pair over two real endpoints, and looks for what [the contract](super#the-contract)
//! asks. It needs a healthy network between them: what the contract lets a transport lose, it loses here too often to be
//! of use to anybody. Its bounds are wide (seconds, where milliseconds are expected), so that a busy machine does not fail
//! a good transport.
//!
//! It cannot see everything: that bulk does not slow down small frames on a line which is busy, for one, shows here only
//! when it is a matter of seconds.
//!
//! ```
//! use quorate::transport::contract::{Endpoint, check};
//! use quorate::transport::{MemoryNetwork, Peer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let network = MemoryNetwork::new();
//! let a = Endpoint::new(network.transport("a"), Peer::new("a", ""));
//! let b = Endpoint::new(network.transport("b"), Peer::new("b", ""));
//! let report = check(a, b, Peer::new("nobody", "")).await?;
//! assert!(report.restartable, "{report:?}");
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::{join, join_all};

use super::{FRAME_BYTES_MAX, Inbound, Lane, Transport, TransportError};
use crate::rt::{self, Instant, watch};
use crate::types::Peer;

/// For calls that are to succeed.
const PATIENT: Duration = Duration::from_secs(30);
/// For calls that are to end without an answer.
const BRIEF: Duration = Duration::from_millis(500);
/// For small frames on the control lane while other lanes are slow or full; far below [`PATIENT`], which those have.
const CONTROL: Duration = Duration::from_secs(5);
/// How long beyond its timeout a call may take on a busy machine.
const SLACK: Duration = Duration::from_secs(5);
/// How long a transport may take to connect, at first or after it was disturbed.
const SETTLE: Duration = Duration::from_secs(10);
/// Between attempts while it settles.
const RETRY: Duration = Duration::from_millis(20);
/// How long a call is left under way before it is abandoned.
const ABANDON: Duration = Duration::from_millis(50);

/// One node's transport, and where the other node's transport reaches it.
#[derive(Clone)]
pub struct Endpoint {
    /// The transport. It must not be in use by a node.
    pub transport: Arc<dyn Transport>,
    /// What the other's [`Transport::call`] is given.
    pub peer: Peer,
}

impl Endpoint {
    /// The transport `transport`, reached as `peer`.
    pub fn new(transport: impl Transport, peer: Peer) -> Self {
        Endpoint { transport: Arc::new(transport), peer }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// What a transport was seen to do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The names of the checks it passed, in order.
    pub passed: Vec<&'static str>,
    /// Whether it delivered to a second inbound after the first was closed. Only a host that opens a node twice on one
    /// transport needs that.
    pub restartable: bool,
}

impl Report {
    async fn run(
        &mut self,
        check: &'static str,
        outcome: impl Future<Output = Result<(), String>>,
    ) -> Result<(), Violation> {
        outcome.await.map_err(|what| Violation { check, what })?;
        self.passed.push(check);
        Ok(())
    }
}

/// The first thing a transport was seen to do that it must not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{check}: {what}")]
#[non_exhaustive]
pub struct Violation {
    /// The check it failed.
    pub check: &'static str,
    /// What happened, with the values.
    pub what: String,
}

/// Checks the transports of `a` and `b` against the contract; `absent` is a peer that nobody listens for.
///
/// Both are started with inbounds of the test, which are closed at the end. Runs for a few seconds, on a tokio runtime
/// with timers; some 200 MB cross the transport. If a transport does not start anew, that takes ten seconds more.
///
/// # Errors
/// The first [`Violation`].
/// # Cancel safety
/// Dropping it leaves both transports started, with inbounds that may never answer.
pub async fn check(a: Endpoint, b: Endpoint, absent: Peer) -> Result<Report, Violation> {
    let mut report = Report { passed: Vec::new(), restartable: false };
    let (a, mut b) = (Side::start(a, 0xa5), Side::start(b, 0x5a));
    let outcome = check_sides(&a, &mut b, &absent, &mut report).await;
    a.inbound.close();
    b.inbound.close();
    outcome.map(|()| report)
}

async fn check_sides(a: &Side, b: &mut Side, absent: &Peer, report: &mut Report) -> Result<(), Violation> {
    let there = Way { from: a, to: b };
    let back = Way { from: b, to: a };
    report.run("both ends become reachable", connects(there, back)).await?;
    report.run("frames of every size pass unchanged on every lane", sizes(there, back)).await?;
    report.run("concurrent calls each get their own answer", concurrent(there, back)).await?;
    report.run("slow lanes do not hold up the control lane", slow_lanes(there, back)).await?;
    report.run("bulk does not hold up the control lane", bulk(there, back)).await?;
    report.run("a call to an absent peer ends with an error", absent_peer(there, absent)).await?;
    report.run("a call that is never answered ends with an error", never_answered(there)).await?;
    report.run("a refusal reaches the caller as an error", refused(there)).await?;
    report.run("a frame over the limit is refused", oversized(there)).await?;
    report.run("an abandoned call does not disturb later ones", abandoned(there)).await?;
    let mut restartable = false;
    report.run("a second start replaces the first", restarted(a, b, &mut restartable)).await?;
    report.restartable = restartable;
    Ok(())
}

async fn connects(there: Way<'_>, back: Way<'_>) -> Result<(), String> {
    there.settles().await?;
    back.settles().await
}

async fn sizes(there: Way<'_>, back: Way<'_>) -> Result<(), String> {
    for way in [there, back] {
        for lane in Lane::ALL {
            for size in [0, 1, 64 * 1024, FRAME_BYTES_MAX] {
                way.exchange(lane, pattern(size, size as u64), PATIENT).await?;
            }
        }
    }
    Ok(())
}

/// A hundred calls in each direction, over all lanes, answered in another order than sent.
async fn concurrent(there: Way<'_>, back: Way<'_>) -> Result<(), String> {
    there.to.script.send([Mode::Scatter; 4]);
    back.to.script.send([Mode::Scatter; 4]);
    let calls = (0..200).map(|i| {
        let way = if i % 2 == 0 { there } else { back };
        way.exchange(Lane::ALL[i / 2 % 4], pattern(16 + i * 37 % 1000, i as u64), PATIENT)
    });
    let outcomes = join_all(calls).await;
    there.to.answer();
    back.to.answer();
    outcomes.into_iter().collect()
}

async fn slow_lanes(there: Way<'_>, back: Way<'_>) -> Result<(), String> {
    there.to.script.send_modify(|modes| Mode::set(modes, Mode::Hold, |lane| lane != Lane::Control));
    let held = (0..12).map(|i| there.exchange(Lane::ALL[1 + i % 3], pattern(64 * 1024, i as u64), PATIENT));
    let control = async {
        // The first call of each lane has arrived and will not be answered; what else is held waits behind it.
        let mut handled = there.to.handled.subscribe();
        let wanted = handled.borrow().map(|calls| calls + 1);
        let all =
            handled.wait_for(|calls| Lane::ALL[1..].iter().all(|&lane| calls[lane as usize] >= wanted[lane as usize]));
        let arrived = rt::timeout(SETTLE, all).await.is_ok();
        let pings = pings(there, back).await;
        there.to.answer();
        if arrived { pings } else { Err(format!("the lanes other than control did not all deliver within {SETTLE:?}")) }
    };
    let (control, held) = join(control, join_all(held)).await;
    control?;
    held.into_iter().collect()
}

async fn bulk(there: Way<'_>, back: Way<'_>) -> Result<(), String> {
    let calls = (0..4).map(|i| there.exchange(Lane::ALL[1 + i % 2], pattern(FRAME_BYTES_MAX, i as u64), PATIENT));
    // The calls are polled first, so that they are under way when the first ping sets out.
    let (calls, pings) = join(join_all(calls), pings(there, back)).await;
    pings?;
    calls.into_iter().collect()
}

/// Small frames on the control lane, one after the other.
async fn pings(there: Way<'_>, back: Way<'_>) -> Result<(), String> {
    for i in 0..20 {
        let way = if i % 2 == 0 { there } else { back };
        let start = Instant::now();
        way.exchange(Lane::Control, way.fresh(), CONTROL).await?;
        let took = start.elapsed();
        // Slack is for the ends of timeouts; this bound has its own.
        if took > CONTROL {
            return Err(format!("a small call on {:?} took {took:?} (timeout {CONTROL:?})", Lane::Control));
        }
    }
    Ok(())
}

async fn absent_peer(way: Way<'_>, absent: &Peer) -> Result<(), String> {
    for lane in Lane::ALL {
        way.call_peer(absent, lane, way.fresh(), BRIEF).await?.no_answer()?;
    }
    Ok(())
}

async fn never_answered(way: Way<'_>) -> Result<(), String> {
    way.to.script.send([Mode::Hold; 4]);
    let calls = join_all(Lane::ALL.map(|lane| way.call(lane, way.fresh(), BRIEF))).await;
    way.to.answer();
    for call in calls {
        call?.no_answer()?;
    }
    way.settles().await
}

async fn refused(way: Way<'_>) -> Result<(), String> {
    way.to.script.send([Mode::Refuse; 4]);
    let calls = join_all(Lane::ALL.map(|lane| way.call(lane, way.fresh(), CONTROL))).await;
    way.to.answer();
    for call in calls {
        call?.no_answer()?;
    }
    way.settles().await
}

async fn oversized(way: Way<'_>) -> Result<(), String> {
    way.call(Lane::Snapshot, pattern(FRAME_BYTES_MAX + 1, 0), CONTROL).await?.no_answer()?;
    way.settles().await
}

/// Abandons calls in every state: before the first poll, while a large frame is on its way, and waiting for an answer.
async fn abandoned(way: Way<'_>) -> Result<(), String> {
    for lane in [Lane::Snapshot, Lane::Client] {
        for polled in [None, Some(0), Some(1), Some(2), Some(5)] {
            let call = way.call(lane, pattern(FRAME_BYTES_MAX, 0), PATIENT);
            if let Some(ms) = polled {
                let _ = rt::timeout(Duration::from_millis(ms), call).await;
            }
        }
        way.to.script.send([Mode::Hold; 4]);
        for _ in 0..4 {
            let _ = rt::timeout(ABANDON, way.call(lane, way.fresh(), PATIENT)).await;
        }
        way.to.answer();
        // An answer that comes for an abandoned call now must not be taken for the answer to one of these.
        for _ in 0..10 {
            way.settles_on(lane).await?;
        }
    }
    way.settles().await
}

async fn restarted(a: &Side, b: &mut Side, restartable: &mut bool) -> Result<(), String> {
    b.inbound.close();
    *b = Side::start(Endpoint { transport: b.transport.clone(), peer: b.peer.clone() }, 0x3c);
    let way = Way { from: a, to: b };
    // The first inbound is closed and answers nothing, so that an answer is the second's or wrong.
    for lane in Lane::ALL {
        let start = Instant::now();
        while !way.attempt(lane).await? {
            if start.elapsed() > SETTLE {
                return Ok(());
            }
        }
    }
    *restartable = true;
    Ok(())
}

/// What an inbound of the test does with a frame, by the number of its lane.
type Script = [Mode; Lane::ALL.len()];

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Mode {
    Answer,
    /// Answer after a few milliseconds, another number for each frame.
    Scatter,
    /// Answer when the script says something else.
    Hold,
    Refuse,
}

impl Mode {
    fn set(script: &mut Script, mode: Mode, lanes: impl Fn(Lane) -> bool) {
        Lane::ALL.into_iter().filter(|&lane| lanes(lane)).for_each(|lane| script[lane as usize] = mode);
    }
}

/// One endpoint with an inbound of the test behind it.
struct Side {
    transport: Arc<dyn Transport>,
    peer: Peer,
    inbound: Inbound,
    /// Goes into every answer, so that an answer tells who gave it.
    mark: u8,
    script: watch::Sender<Script>,
    /// How many frames have arrived, by the number of the lane.
    handled: watch::Sender<[usize; Lane::ALL.len()]>,
    /// The seed of the next small frame.
    seeds: AtomicU64,
}

impl Side {
    fn start(endpoint: Endpoint, mark: u8) -> Self {
        let (script, followed) = watch::channel([Mode::Answer; Lane::ALL.len()]);
        let (handled, _) = watch::channel([0; Lane::ALL.len()]);
        let counted = handled.clone();
        let inbound = Inbound::new(move |lane, frame| {
            counted.send_modify(|calls| calls[lane as usize] += 1);
            let mut script = followed.clone();
            Box::pin(async move {
                match script.borrow()[lane as usize] {
                    Mode::Answer => {}
                    Mode::Scatter => rt::sleep(Duration::from_millis(frame.len() as u64 % 10)).await,
                    // The script ends with the test, and then nobody waits for an answer.
                    Mode::Hold => drop(script.wait_for(|script| script[lane as usize] != Mode::Hold).await),
                    Mode::Refuse => return Err(TransportError::Other("refused by the test".into())),
                }
                Ok(answer(mark, lane, &frame))
            })
        });
        endpoint.transport.start(inbound.clone());
        Side {
            transport: endpoint.transport,
            peer: endpoint.peer,
            inbound,
            mark,
            script,
            handled,
            seeds: AtomicU64::new(0),
        }
    }

    /// Answers everything from now on, and what is held as well.
    fn answer(&self) {
        self.script.send([Mode::Answer; Lane::ALL.len()]);
    }
}

/// One direction of the pair.
#[derive(Copy, Clone)]
struct Way<'a> {
    from: &'a Side,
    to: &'a Side,
}

impl Way<'_> {
    /// Calls with `frame`, and complains if that does not end in time.
    async fn call(self, lane: Lane, frame: Bytes, timeout: Duration) -> Result<Outcome, String> {
        self.call_peer(&self.to.peer, lane, frame, timeout).await
    }

    async fn call_peer(self, to: &Peer, lane: Lane, frame: Bytes, timeout: Duration) -> Result<Outcome, String> {
        let what = format!("a call of {} bytes from {} to {to} on {lane:?}", frame.len(), self.from.peer);
        let answer = rt::timeout(timeout + SLACK, self.from.transport.call(to, lane, frame, timeout)).await;
        match answer {
            Ok(answer) => Ok(Outcome { what, answer }),
            Err(_) => Err(format!("{what} with a timeout of {timeout:?} had not ended {SLACK:?} after it")),
        }
    }

    /// Calls with `frame`, and complains unless the right answer comes.
    async fn exchange(self, lane: Lane, frame: Bytes, timeout: Duration) -> Result<(), String> {
        let expected = answer(self.to.mark, lane, &frame);
        let Outcome { what, answer } = self.call(lane, frame, timeout).await?;
        let answer = answer.map_err(|error| format!("{what} failed: {error} (timeout {timeout:?})"))?;
        compare(&what, &answer, &expected)
    }

    /// As [`exchange`](Self::exchange), but says no if the call fails, and complains only of a wrong answer.
    async fn attempt(self, lane: Lane) -> Result<bool, String> {
        let frame = self.fresh();
        let expected = answer(self.to.mark, lane, &frame);
        let Outcome { what, answer } = self.call(lane, frame, BRIEF).await?;
        match answer {
            Ok(answer) => compare(&what, &answer, &expected).map(|()| true),
            Err(_) => {
                rt::sleep(RETRY).await;
                Ok(false)
            }
        }
    }

    /// Waits until `lane` works. A disturbed transport may reconnect, and lose calls over that; but not for long, and it may
    /// not mix up answers.
    async fn settles_on(self, lane: Lane) -> Result<(), String> {
        let start = Instant::now();
        while !self.attempt(lane).await? {
            if start.elapsed() > SETTLE {
                let (from, to) = (&self.from.peer, &self.to.peer);
                return Err(format!("calls from {from} to {to} on {lane:?} still fail after {SETTLE:?}"));
            }
        }
        Ok(())
    }

    /// Waits until all lanes work.
    async fn settles(self) -> Result<(), String> {
        for lane in Lane::ALL {
            self.settles_on(lane).await?;
        }
        Ok(())
    }

    /// A small frame that this side has not sent before, so that the answer to it cannot be that to another.
    fn fresh(self) -> Bytes {
        pattern(100, self.from.seeds.fetch_add(1, Ordering::Relaxed))
    }
}

/// How a call ended, and which call it was.
struct Outcome {
    what: String,
    answer: Result<Bytes, TransportError>,
}

impl Outcome {
    fn no_answer(self) -> Result<(), String> {
        match self.answer {
            Err(_) => Ok(()),
            Ok(answer) => Err(format!("{} was answered with {} bytes; an error was due", self.what, answer.len())),
        }
    }
}

fn compare(what: &str, answer: &[u8], expected: &[u8]) -> Result<(), String> {
    if answer == expected {
        return Ok(());
    }
    let (got, due) = (answer.len(), expected.len());
    let at = answer.iter().zip(expected).position(|(got, due)| got != due).unwrap_or(got.min(due));
    Err(format!("{what} was answered with {got} bytes where {due} were due; they differ from byte {at}"))
}

/// `size` bytes that differ with `seed`, and in which nothing can be cut out or moved unnoticed.
fn pattern(size: usize, seed: u64) -> Bytes {
    // The length of a block is a prime, so that no buffer's size is a multiple of it.
    const BLOCK: usize = 4099;
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let block: Vec<u8> = (0..BLOCK.min(size))
        .map(|_| {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect();
    let mut bytes = BytesMut::with_capacity(size + BLOCK);
    while bytes.len() < size {
        bytes.extend_from_slice(&block);
    }
    bytes.truncate(size);
    bytes.freeze()
}

/// What the side marked `mark` answers: the frame, with both of its ends changed by who answers and on which lane.
fn answer(mark: u8, lane: Lane, frame: &[u8]) -> Bytes {
    const END: usize = 64;
    let mask = mark ^ (0x11 * lane as u8);
    let mut answer = BytesMut::from(frame);
    let size = answer.len();
    let (head, tail) = answer.split_at_mut(size.min(END));
    let tail_start = tail.len().saturating_sub(END);
    head.iter_mut().chain(&mut tail[tail_start..]).for_each(|byte| *byte ^= mask);
    answer.freeze()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_answer_tells_who_gave_it_and_on_which_lane() {
        for size in [1, 63, 64, 65, 127, 128, 129, 5000] {
            let frame = pattern(size, 1);
            let answers: BTreeSet<Bytes> =
                [0xa5, 0x5a, 0x3c].iter().flat_map(|&mark| Lane::ALL.map(|lane| answer(mark, lane, &frame))).collect();
            assert_eq!(answers.len(), 12, "size {size}");
            assert!(!answers.contains(&frame), "size {size}");
            assert!(answers.iter().all(|answer| answer[0] != frame[0] && answer[size - 1] != frame[size - 1]));
        }
    }

    #[test]
    fn patterns_differ_by_seed_and_from_their_own_rotations() {
        let patterns: BTreeSet<Bytes> = (0..300).map(|seed| pattern(16, seed)).collect();
        assert_eq!(patterns.len(), 300);
        let whole = pattern(FRAME_BYTES_MAX, 0);
        assert_eq!(whole.len(), FRAME_BYTES_MAX);
        for shift in [1, 512, 4096, 65536] {
            assert_ne!(whole[..100_000], whole[shift..100_000 + shift], "shift {shift}");
        }
    }

    #[test]
    fn a_difference_is_reported_where_it_begins() {
        assert_eq!(compare("x", b"abc", b"abc"), Ok(()));
        let cut = compare("x", b"ab", b"abc");
        assert!(
            matches!(&cut, Err(text) if text.contains("2 bytes where 3 were due; they differ from byte 2")),
            "{cut:?}"
        );
        let bent = compare("x", b"aXc", b"abc");
        assert!(matches!(&bent, Err(text) if text.contains("from byte 1")), "{bent:?}");
    }
}
