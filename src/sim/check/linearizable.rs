//! The black-box checker: is there any order at all that explains what the clients saw?
//!
//! It knows nothing of revisions, terms or logs: only what was asked, what was answered, and when. Any object can be
//! checked that has a [`Model`].
//!
//! The search is that of Wing and Gong with Lowe's memory of what has been tried (*Testing for linearizability*, 2017):
//! take any operation that began before the first open one ended, see whether the model allows its answer, go on, and go
//! back when nothing fits. A call whose outcome is not known may take place at any time after it began, or never.
//! In the worst case that takes exponential time, so it ends after a number of steps; that number, and not a time, so
//! that a verdict can be reproduced.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

use super::history::{Call, History, Outcome};
use super::violation::{Property, Violation};

/// What an object does when one operation after the other is carried out on it.
///
/// # Examples
/// A counter whose clients add to it and are told the sum:
/// ```
/// use quorate::sim::check::{History, Model, Recorder, Verdict, linearizable};
///
/// struct Counter;
/// impl Model for Counter {
///     type Op = u64;
///     type Answer = u64;
///     type State = u64;
///     fn initial(&self) -> u64 {
///         0
///     }
///     fn step(&self, sum: &u64, add: &u64, answer: Option<&u64>) -> Option<u64> {
///         let sum = sum + add;
///         answer.is_none_or(|answer| *answer == sum).then_some(sum)
///     }
/// }
///
/// let ticks = std::sync::atomic::AtomicU64::new(0);
/// let recorder = Recorder::<u64, u64>::new(move || ticks.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
/// let (one, two) = (recorder.invoke(1, 10), recorder.invoke(2, 5));
/// one.ok(15, None);
/// two.ok(5, None);
/// assert!(matches!(linearizable(&Counter, &recorder.history()), Verdict::Linearizable));
///
/// recorder.invoke(1, 1).ok(11, None); // the 5 is gone
/// assert!(matches!(linearizable(&Counter, &recorder.history()), Verdict::Violated(_)));
/// ```
pub trait Model {
    /// What can be asked.
    type Op;
    /// What is answered.
    type Answer;
    /// All that matters for future answers.
    type State: Clone + Eq + Hash;

    /// The object before the first operation.
    fn initial(&self) -> Self::State;

    /// The object after `op`; `None` if `op` cannot answer this here. Without an answer (the caller did not get it), every
    /// answer is right.
    fn step(&self, state: &Self::State, op: &Self::Op, answer: Option<&Self::Answer>) -> Option<Self::State>;
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none. The witnesses are the longest beginning of one that was found, and what does not fit behind it.
    Violated(Violation),
    /// The search was given up.
    Inconclusive {
        /// After so many steps.
        steps: u64,
    },
}

/// Steps that [`linearizable`] takes at most.
pub const STEPS_MAX: u64 = 2_000_000;

/// Operations of the longest beginning that a violation shows.
const SHOWN: usize = 6;

/// Whether some order of the calls that agrees with real time explains every answer; gives up after [`STEPS_MAX`] steps.
///
/// Calls that failed for certain are taken as not having happened.
pub fn linearizable<M: Model>(model: &M, history: &History<M::Op, M::Answer>) -> Verdict
where
    M::Op: Debug,
    M::Answer: Debug,
{
    linearizable_within(model, history, STEPS_MAX)
}

/// As [`linearizable`], with another limit of steps. A step may take about a hundred bytes and a clone of the state.
pub fn linearizable_within<M: Model>(model: &M, history: &History<M::Op, M::Answer>, steps_max: u64) -> Verdict
where
    M::Op: Debug,
    M::Answer: Debug,
{
    let calls: Vec<&Call<M::Op, M::Answer>> =
        history.calls().iter().filter(|call| call.outcome != Outcome::Fail).collect();
    let intervals = calls.iter().map(|call| (call.invoked_ns, call.over_ns())).collect::<Vec<_>>();
    let step = |state: &M::State, place: usize| {
        let call = calls[place];
        let answer = call.response.as_ref().filter(|_| call.outcome == Outcome::Ok);
        model.step(state, &call.op, answer)
    };
    match search(&intervals, model.initial(), step, steps_max) {
        Found::Order => Verdict::Linearizable,
        Found::GaveUp(steps) => Verdict::Inconclusive { steps },
        Found::NoOrder { deepest, stuck } => {
            let what = format!(
                "no order of {} calls explains all answers; the longest one has {}",
                calls.len(),
                deepest.len()
            );
            let shown = deepest.iter().rev().take(SHOWN).rev();
            let violation = shown.fold(Violation::new(Property::Kv1, what), |violation, place| {
                violation.with(format!("   in order: {}", calls[*place]))
            });
            let stuck = stuck.iter().take(SHOWN);
            Verdict::Violated(
                stuck.fold(violation, |violation, place| violation.with(format!("does not fit: {}", calls[*place]))),
            )
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Order,
    GaveUp(u64),
    NoOrder {
        /// The longest beginning.
        deepest: Vec<usize>,
        /// What could have come next and did not fit.
        stuck: Vec<usize>,
    },
}

/// Looks for an order of the calls with these times.
fn search<S: Clone + Eq + Hash>(
    intervals: &[(u64, Option<u64>)],
    initial: S,
    step: impl Fn(&S, usize) -> Option<S>,
    steps_max: u64,
) -> Found {
    let mut events = Events::new(intervals);
    let mut open = intervals.iter().filter(|(_, over)| over.is_some()).count();
    let (mut state, mut done) = (initial, 0u128);
    let mut taken: Vec<(usize, S)> = Vec::new();
    let mut tried = HashSet::new();
    let (mut deepest, mut stuck) = (Vec::new(), Vec::new());
    let (mut at, mut steps) = (events.first(), 0);
    while open > 0 {
        steps += 1;
        if steps > steps_max {
            return Found::GaveUp(steps_max);
        }
        match events.begins(at) {
            Some(place) => {
                let next = step(&state, place);
                let next = next.filter(|next| tried.insert((done ^ mark(place), next.clone())));
                match next {
                    Some(next) => {
                        taken.push((place, std::mem::replace(&mut state, next)));
                        done ^= mark(place);
                        open -= usize::from(intervals[place].1.is_some());
                        events.lift(place);
                        at = events.first();
                    }
                    None => at = events.after(at),
                }
            }
            // A call ends here that has not taken place: what was taken so far cannot be the beginning.
            None => {
                if taken.len() >= deepest.len() {
                    deepest = taken.iter().map(|(place, _)| *place).collect();
                    stuck = events.begun_before(at);
                }
                let Some((place, before)) = taken.pop() else { return Found::NoOrder { deepest, stuck } };
                state = before;
                done ^= mark(place);
                open += usize::from(intervals[place].1.is_some());
                events.put_back(place);
                at = events.after(events.begin_of(place));
            }
        }
    }
    Found::Order
}

/// Beginnings and ends of calls in order of time, as a list from which calls are lifted and put back.
///
/// Event `2 * call` is the call's beginning, `2 * call + 1` its end; the last number is the list's head.
struct Events {
    next: Vec<usize>,
    prev: Vec<usize>,
    ends: Vec<bool>,
    head: usize,
}

impl Events {
    fn new(intervals: &[(u64, Option<u64>)]) -> Self {
        let begins = intervals.iter().enumerate().map(|(place, (begin, _))| (*begin, false, 2 * place));
        let ends = intervals.iter().enumerate().filter_map(|(place, (_, end))| Some(((*end)?, true, 2 * place + 1)));
        // At one and the same time, beginnings come first: such calls overlap.
        let mut order: Vec<_> = begins.chain(ends).collect();
        order.sort_unstable();
        let head = 2 * intervals.len();
        let ends = intervals.iter().map(|(_, end)| end.is_some()).collect();
        let mut events = Events { next: vec![head; head + 1], prev: vec![head; head + 1], ends, head };
        let mut last = head;
        for (.., event) in order {
            events.next[last] = event;
            events.prev[event] = last;
            last = event;
        }
        events.next[last] = head;
        events.prev[head] = last;
        events
    }

    fn first(&self) -> usize {
        self.next[self.head]
    }

    fn after(&self, event: usize) -> usize {
        self.next[event]
    }

    fn begin_of(&self, place: usize) -> usize {
        2 * place
    }

    /// The call that begins with this event.
    fn begins(&self, event: usize) -> Option<usize> {
        (event != self.head && event.is_multiple_of(2)).then_some(event / 2)
    }

    /// The calls that begin before `event` and are still in the list.
    fn begun_before(&self, event: usize) -> Vec<usize> {
        let mut begun = Vec::new();
        let mut at = self.first();
        while at != event && at != self.head {
            begun.extend(self.begins(at));
            at = self.next[at];
        }
        begun
    }

    fn lift(&mut self, place: usize) {
        self.unlink(2 * place);
        if self.ends[place] {
            self.unlink(2 * place + 1);
        }
    }

    /// Undoes the newest lift that has not been undone.
    fn put_back(&mut self, place: usize) {
        if self.ends[place] {
            self.link(2 * place + 1);
        }
        self.link(2 * place);
    }

    fn unlink(&mut self, event: usize) {
        let (prev, next) = (self.prev[event], self.next[event]);
        self.next[prev] = next;
        self.prev[next] = prev;
    }

    fn link(&mut self, event: usize) {
        let (prev, next) = (self.prev[event], self.next[event]);
        self.next[prev] = event;
        self.prev[next] = event;
    }
}

/// A number for each call, such that the exclusive or of some tells which they are (Zobrist): with 128 bits, two sets
/// that occur in one search are told apart for all practical purposes.
fn mark(place: usize) -> u128 {
    let half = |salt: u64| {
        // The finalizer of SplitMix64.
        let mut bits = (place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(salt);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    };
    u128::from(half(0x243f_6a88_85a3_08d3)) << 64 | u128::from(half(0x1319_8a2e_0370_7344))
}

/// One register with compare-and-set, the simplest [`Model`] that catches most things.
#[derive(Clone, Debug, Default)]
pub struct Register<V> {
    /// What it holds before the first operation.
    pub initial: Option<V>,
}

/// An operation on a [`Register`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum RegisterOp<V> {
    /// Reads it.
    Read,
    /// Writes this, or nothing at all.
    Write(Option<V>),
    /// Writes the second if it holds the first.
    CompareAndSet(Option<V>, Option<V>),
}

/// An answer of a [`Register`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum RegisterAnswer<V> {
    /// To a read: what it holds.
    Value(Option<V>),
    /// To a write.
    Written,
    /// To a compare-and-set: whether it was set.
    Set(bool),
}

impl<V: Clone + Eq + Hash> Model for Register<V> {
    type Op = RegisterOp<V>;
    type Answer = RegisterAnswer<V>;
    type State = Option<V>;

    fn initial(&self) -> Option<V> {
        self.initial.clone()
    }

    fn step(&self, now: &Option<V>, op: &RegisterOp<V>, answer: Option<&RegisterAnswer<V>>) -> Option<Option<V>> {
        let (next, right) = match op {
            RegisterOp::Read => (now.clone(), RegisterAnswer::Value(now.clone())),
            RegisterOp::Write(value) => (value.clone(), RegisterAnswer::Written),
            RegisterOp::CompareAndSet(old, new) if now == old => (new.clone(), RegisterAnswer::Set(true)),
            RegisterOp::CompareAndSet(..) => (now.clone(), RegisterAnswer::Set(false)),
        };
        answer.is_none_or(|answer| *answer == right).then_some(next)
    }
}
