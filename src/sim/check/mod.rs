//! Oracles: they read what happened and say which promise was broken.
//!
//! Everything here is a function of recorded data: no cluster, no clock, no chance. So the same histories can come from a
//! simulation, from real processes, or from a file of last year.
//!
//! * A [`Recorder`] writes a [`History`] of [`Call`]s: what clients asked, when, and what they were told. In a file it is
//!   one JSON object per line.
//! * [`OrderCheck`] holds a history of the store against the [`CommitLog`]: what was committed in the end. It needs no
//!   search, so it judges histories of any length, and it says exactly what is wrong.
//! * [`linearizable`] believes nothing but the answers and their times, and asks whether any order explains them. It takes
//!   any object that has a [`Model`]: a host checks what it built on the store with it.
//! * [`WatchRecord`], [`LeaseRecord`] and [`LockRecord`] are what a watch delivered, how a lease was renewed and ended, and
//!   who believed to hold a lock; each checks itself, against the commits where that says more.
//! * [`black_box`] is that for histories of the store itself, key by key; [`Evidence`] is a whole run in one file, and all
//!   oracles over it.
//!
//! Every [`Violation`] names its [`Property`] and shows the operations involved with their times.

mod attribution;
mod black_box;
mod convert;
mod evidence;
mod history;
mod lease;
mod linearizable;
mod lock;
mod log;
mod op;
mod order;
mod recorder;
mod replay;
mod timeline;
mod violation;
mod watch;

#[cfg(test)]
mod tests;

pub use self::black_box::{BlackBox, PART_KEYS_MAX, black_box};
pub use self::convert::text;
pub use self::evidence::{Evidence, LockEvidence, Report};
pub use self::history::{Call, History, Outcome};
pub use self::lease::{Belief, LeaseCheck, LeaseEnd, LeaseRecord, Renewal, RenewalAnswer};
pub use self::linearizable::{
    Model, Register, RegisterAnswer, RegisterOp, STEPS_MAX, Verdict, linearizable, linearizable_within,
};
pub use self::lock::{FencedWrite, Hold, LockRecord};
pub use self::log::{Change, Commit, CommitLog, Kind};
pub use self::op::{Answer, Attach, Condition, Moment, Only, Op, Resolution, Seen, Span, Step, StepAnswer, Test};
pub use self::order::OrderCheck;
pub use self::recorder::{Pending, Recorder};
pub use self::violation::{Property, Violation};
pub use self::watch::{WatchEvent, WatchRecord, WatchStart, WatchStep};
