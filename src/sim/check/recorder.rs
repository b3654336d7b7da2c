//! Recording a history while it happens.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::history::{Call, History, Outcome, write_line};
use super::op::{Answer, Op};
use crate::types::{Revision, Ticket};

/// Records calls as they begin and end. Cheap to clone; all clones write one history.
///
/// Keeps every call in memory, and writes it to a file as well if it was given one.
///
/// # Examples
/// ```
/// use std::time::Instant;
/// use quorate::sim::check::{Answer, Op, Recorder};
///
/// let start = Instant::now();
/// let recorder: Recorder = Recorder::new(move || start.elapsed().as_nanos() as u64);
/// let call = recorder.invoke(1, Op::set("owner", "a"));
/// // let written = cluster.set("owner", &"a").await;
/// call.ok(Answer::Written, Some(quorate::Revision::new(1)));
///
/// // Whatever keeps a call from ending, it is not forgotten that it began.
/// drop(recorder.invoke(1, Op::get("owner")));
/// assert_eq!(recorder.history().calls().len(), 2);
/// ```
pub struct Recorder<O = Op, A = Answer> {
    shared: Arc<Mutex<Shared<O, A>>>,
    now_ns: Arc<dyn Fn() -> u64 + Send + Sync>,
}

struct Shared<O, A> {
    /// In the order in which they began; a call's place is its number.
    calls: Vec<Call<O, A>>,
    sink: Option<Sink<O, A>>,
    failed: Option<io::Error>,
}

type Sink<O, A> = Box<dyn FnMut(&Call<O, A>) -> io::Result<()> + Send>;

impl<O, A> Recorder<O, A> {
    /// Records on a clock that counts nanoseconds. All processes of one history must read the same clock.
    pub fn new(now_ns: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let shared = Shared { calls: Vec::new(), sink: None, failed: None };
        Recorder { shared: Arc::new(Mutex::new(shared)), now_ns: Arc::new(now_ns) }
    }

    /// Begins a call of `client`. Ask right before the operation is sent.
    ///
    /// Dropping what it returns says that the outcome is not known.
    #[must_use = "a call whose end is not recorded counts as unknown"]
    pub fn invoke(&self, client: u64, op: O) -> Pending<O, A> {
        let mut shared = self.lock();
        let place = shared.calls.len();
        shared.calls.push(Call {
            client,
            id: place as u64,
            op,
            invoked_ns: (self.now_ns)(),
            returned_ns: None,
            outcome: Outcome::Unknown,
            response: None,
            revision: None,
            ticket: None,
        });
        shared.write(place);
        drop(shared);
        Pending { recorder: self.clone(), place }
    }

    /// What has been recorded so far. Calls that have not ended are unknown.
    pub fn history(&self) -> History<O, A>
    where
        O: Clone,
        A: Clone,
    {
        History::new(self.lock().calls.iter().cloned())
    }

    /// The first error of the file, if there was one: from there on nothing was written to it.
    pub fn write_error(&self) -> Option<io::Error> {
        self.lock().failed.take()
    }

    fn lock(&self) -> MutexGuard<'_, Shared<O, A>> {
        // A panic while it was held left at worst a call without its end.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<O: Serialize + 'static, A: Serialize + 'static> Recorder<O, A> {
    /// Also writes each call as a line of JSON when it begins, and again when it ends, flushed each time: what a killed
    /// process has begun is in the file.
    pub fn write_to(self, mut file: impl Write + Send + 'static) -> Self {
        self.lock().sink = Some(Box::new(move |call| {
            write_line(&mut file, call)?;
            file.flush()
        }));
        self
    }
}

impl<O, A> Shared<O, A> {
    fn write(&mut self, place: usize) {
        let Some(sink) = &mut self.sink else { return };
        if let Err(error) = sink(&self.calls[place]) {
            self.sink = None;
            self.failed = Some(error);
        }
    }
}

impl<O, A> Clone for Recorder<O, A> {
    fn clone(&self) -> Self {
        Recorder { shared: self.shared.clone(), now_ns: self.now_ns.clone() }
    }
}

impl<O, A> fmt::Debug for Recorder<O, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("calls", &self.lock().calls.len()).finish_non_exhaustive()
    }
}

/// A call that has begun. Say how it ended; dropped without that, its outcome is unknown.
#[must_use = "a call whose end is not recorded counts as unknown"]
pub struct Pending<O = Op, A = Answer> {
    recorder: Recorder<O, A>,
    place: usize,
}

impl<O, A> Pending<O, A> {
    /// It was carried out. `revision`: the store's revision that came with the answer, if one did.
    pub fn ok(self, response: A, revision: Option<Revision>) {
        self.end(Outcome::Ok, |call| {
            call.response = Some(response);
            call.revision = revision;
        });
    }

    /// It was not carried out and never will be.
    pub fn fail(self) {
        self.end(Outcome::Fail, |_| {});
    }

    /// It may or may not have been carried out, now or later. The ticket tells it from others at the end.
    pub fn unknown(self, ticket: Option<Ticket>) {
        self.end(Outcome::Unknown, |call| call.ticket = ticket);
    }

    fn end(self, outcome: Outcome, fill: impl FnOnce(&mut Call<O, A>)) {
        let now = (self.recorder.now_ns)();
        let mut shared = self.recorder.lock();
        let call = &mut shared.calls[self.place];
        call.returned_ns = Some(now);
        call.outcome = outcome;
        fill(call);
        shared.write(self.place);
    }
}

impl<O, A> fmt::Debug for Pending<O, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("call", &self.place).finish_non_exhaustive()
    }
}
