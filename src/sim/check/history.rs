//! What clients asked, what they were told, and when.
//!
//! A [`History`] is a list of [`Call`]s. In a file it is one JSON object per line, the same from simulated and from real
//! processes; a line that repeats a call replaces the earlier one, so that a process may write a call when it begins and
//! again when it ends, and be killed at any moment in between.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::io::{self, BufRead, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::op::{Answer, Op};
use super::violation::Millis;
use crate::types::{Revision, Ticket};

/// One operation of one client, from its beginning to its end.
///
/// Times are nanoseconds on one clock for the whole history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(serialize = "O: Serialize, A: Serialize", deserialize = "O: DeserializeOwned, A: DeserializeOwned"))]
pub struct Call<O = Op, A = Answer> {
    /// Whose call it is: one handle on one node, in one life of its process.
    pub client: u64,
    /// Its number; no two calls of a client have the same.
    pub id: u64,
    /// What was asked.
    pub op: O,
    /// Before it was sent.
    pub invoked_ns: u64,
    /// After the answer came; `None` if none did.
    pub returned_ns: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// The answer of a call that succeeded.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub response: Option<A>,
    /// The store's revision that came with the answer: its own if it changed something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// The ticket of a write whose outcome was not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<Ticket>,
}

/// How a call ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was carried out, and this is its answer. A condition that did not hold is an answer too.
    Ok,
    /// It was not carried out and never will be.
    Fail,
    /// It may have been carried out, or may be later.
    Unknown,
}

impl<O, A> Call<O, A> {
    /// The answer and the time it came, if there is one.
    pub fn answered(&self) -> Option<(&A, u64)> {
        match (self.outcome, &self.response, self.returned_ns) {
            (Outcome::Ok, Some(response), Some(returned)) => Some((response, returned)),
            _ => None,
        }
    }

    /// When it was certainly over: never, if its outcome is not known.
    pub fn over_ns(&self) -> Option<u64> {
        self.returned_ns.filter(|_| self.outcome != Outcome::Unknown)
    }
}

impl<O: Debug, A: Debug> fmt::Display for Call<O, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Call { client, id, op, invoked_ns, .. } = self;
        write!(f, "c{client}#{id} [{}..", Millis(*invoked_ns))?;
        match self.returned_ns {
            Some(returned) => write!(f, "{}] ", Millis(returned))?,
            None => f.write_str("] ")?,
        }
        write!(f, "{op:?} -> ")?;
        match (&self.outcome, &self.response) {
            (Outcome::Ok, Some(response)) => write!(f, "{response:?}")?,
            (outcome, _) => write!(f, "{outcome:?}")?,
        }
        if let Some(revision) = self.revision {
            write!(f, " @{revision}")?;
        }
        self.ticket.map_or(Ok(()), |ticket| write!(f, " ticket {ticket}"))
    }
}

/// The calls of any number of clients, in the order in which they began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History<O = Op, A = Answer> {
    calls: Vec<Call<O, A>>,
}

impl<O, A> Default for History<O, A> {
    fn default() -> Self {
        History { calls: Vec::new() }
    }
}

impl<O, A> History<O, A> {
    /// A history of these calls. Of two with the same client and number, the later one counts.
    pub fn new(calls: impl IntoIterator<Item = Call<O, A>>) -> Self {
        let by_name: BTreeMap<_, _> = calls.into_iter().map(|call| ((call.client, call.id), call)).collect();
        let mut calls: Vec<_> = by_name.into_values().collect();
        calls.sort_by_key(|call| call.invoked_ns);
        History { calls }
    }

    /// The calls, in the order in which they began.
    pub fn calls(&self) -> &[Call<O, A>] {
        &self.calls
    }

    /// This and another history as one: their clients must differ, their clocks must be the same.
    pub fn merged(self, other: Self) -> Self {
        History::new(self.calls.into_iter().chain(other.calls))
    }
}

impl<O: Serialize, A: Serialize> History<O, A> {
    /// Writes one line of JSON for each call.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write_jsonl(&self, mut to: impl Write) -> io::Result<()> {
        self.calls.iter().try_for_each(|call| write_line(&mut to, call))
    }
}

impl<O: DeserializeOwned, A: DeserializeOwned> History<O, A> {
    /// Reads what [`History::write_jsonl`] or a [`Recorder`](super::Recorder) wrote. A last line without its end, as a
    /// killed process leaves it, is passed over.
    ///
    /// # Errors
    /// Those of `from`; [`io::ErrorKind::InvalidData`] with the line's number for one that is not a call.
    pub fn read_jsonl(from: impl BufRead) -> io::Result<Self> {
        Ok(History::new(read_lines(from)?))
    }
}

pub(super) fn write_line(to: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    // In one piece, so that a process that is killed leaves whole lines and at most one torn one.
    to.write_all(&text)
}

pub(super) fn read_lines<T: DeserializeOwned>(mut from: impl BufRead) -> io::Result<Vec<T>> {
    let (mut lines, mut line) = (Vec::new(), Vec::new());
    for number in 1.. {
        line.clear();
        from.read_until(b'\n', &mut line)?;
        let Some((b'\n', text)) = line.split_last() else { break };
        if text.trim_ascii().is_empty() {
            continue;
        }
        let bad = |error| io::Error::new(io::ErrorKind::InvalidData, format!("line {number}: {error}"));
        lines.push(serde_json::from_slice(text).map_err(bad)?);
    }
    Ok(lines)
}
