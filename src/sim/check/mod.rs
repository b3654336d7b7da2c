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
//!
//! Every [`Violation`] names its [`Property`] and shows the operations involved with their times.

mod attribution;
mod history;
mod linearizable;
mod log;
mod op;
mod order;
mod recorder;
mod replay;
mod timeline;
mod violation;

#[cfg(test)]
mod tests;

pub use self::history::{Call, History, Outcome};
pub use self::linearizable::{
    Model, Register, RegisterAnswer, RegisterOp, STEPS_MAX, Verdict, linearizable, linearizable_within,
};
pub use self::log::{Change, Commit, CommitLog, Kind};
pub use self::op::{Answer, Attach, Condition, Moment, Only, Op, Resolution, Seen, Span, Step, StepAnswer, Test};
pub use self::order::OrderCheck;
pub use self::recorder::{Pending, Recorder};
pub use self::violation::{Property, Violation};
