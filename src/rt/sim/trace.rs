//! What happened, as one number; and, if it is asked for, in words.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How much of a run is kept in words.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Recording {
    #[default]
    Nothing,
    Last(usize),
    Everything,
}

/// Where the first line stands in which two recordings differ, and both lines; an ended recording has an empty one.
pub(crate) fn first_difference(one: &[String], two: &[String]) -> Option<(usize, String, String)> {
    let at = (0..one.len().max(two.len())).find(|at| one.get(*at) != two.get(*at))?;
    let line = |lines: &[String]| lines.get(at).cloned().unwrap_or_default();
    Some((at, line(one), line(two)))
}

/// Grows by one line with everything that happens, until it is closed.
#[derive(Debug, Default)]
pub(super) struct Trace {
    hash: u64,
    lines: u64,
    closed: bool,
    recording: Recording,
    recorded: VecDeque<Line>,
}

#[derive(Debug)]
pub(super) struct Line {
    number: u64,
    at: Duration,
    who: Option<Who>,
    kind: &'static str,
    bits: Vec<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) process: Arc<str>,
    pub(super) generation: u64,
    pub(super) task: u64,
    pub(super) name: &'static str,
}

impl Trace {
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn record(&mut self, recording: Recording) {
        self.recording = recording;
    }

    pub(super) fn recorded(&self) -> Vec<String> {
        self.recorded.iter().map(Line::to_string).collect()
    }

    pub(super) fn add(&mut self, at: Duration, who: Option<Who>, kind: &'static str, bits: &[u64]) {
        if self.closed {
            return;
        }
        self.lines += 1;
        self.mix(at.as_nanos() as u64);
        if let Some(who) = &who {
            self.mix_text(&who.process);
            self.mix(who.generation);
            self.mix(who.task);
        }
        self.mix_text(kind);
        self.mix(bits.len() as u64);
        bits.iter().for_each(|bits| self.mix(*bits));
        match self.recording {
            Recording::Nothing => return,
            Recording::Last(most) => drop(self.recorded.drain(..(self.recorded.len() + 1).saturating_sub(most))),
            Recording::Everything => {}
        }
        self.recorded.push_back(Line { number: self.lines, at, who, kind, bits: bits.to_vec() });
    }

    fn mix_text(&mut self, text: &str) {
        self.mix(xxhash_rust::xxh3::xxh3_64(text.as_bytes()));
    }

    /// One round of splitmix64: every bit of the past and of `word` moves every bit of the hash.
    fn mix(&mut self, word: u64) {
        self.hash = super::world::mixed(self.hash ^ word);
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} ", self.number, self.at)?;
        if let Some(Who { process, generation, task, name }) = &self.who {
            write!(f, "{process}.{generation} {task}:{name} ")?;
        }
        write!(f, "{}", self.kind)?;
        self.bits.iter().try_for_each(|bits| write!(f, " {bits:x}"))
    }
}
