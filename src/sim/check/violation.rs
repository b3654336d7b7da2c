//! What an oracle says when a promise was broken.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Declares [`Property`]: identifiers and what they promise.
macro_rules! properties {
    ($($name:ident $id:literal $text:literal,)*) => {
        /// One promise. Shown by its identifier.
        #[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Property {
            $(#[doc = $text] $name,)*
        }

        impl Property {
            /// The identifier, such as `KV1`.
            pub fn id(self) -> &'static str {
                match self {
                    $(Property::$name => $id,)*
                }
            }

            /// What is promised.
            pub fn text(self) -> &'static str {
                match self {
                    $(Property::$name => $text,)*
                }
            }
        }
    };
}

properties! {
    Kv1 "KV1" "All operations have one order, which agrees with real time.",
    Kv2 "KV2" "The revision grows by one for each transaction that changes something, and by nothing else.",
    Kv3 "KV3" "A transaction is evaluated at one point; all of its effects come at one revision, or none.",
    Kv4 "KV4" "Every value that is seen was written by somebody.",
    Kv5 "KV5" "Stale reads of one handle never go back, and never show what is not committed.",
    Kv6 "KV6" "An operation that failed for certain was never applied.",
    Kv7 "KV7" "What a write says it replaced is the newest write below it.",
    Kv8 "KV8" "A key that was reported absent had no value at that point.",
    X1 "X1" "A write is applied at most once.",
    X4 "X4" "A resolved ticket says what became of the write, for good.",
    W1 "W1" "Batches come in ascending order of revision.",
    W2 "W2" "No revision is delivered twice.",
    W3 "W3" "Nothing that happened to the watched keys is missing between the first and the last batch.",
    W4 "W4" "A revision is delivered whole, in one batch.",
    W5 "W5" "A watch that goes on where another one ended misses and repeats nothing.",
    W6 "W6" "Everything up to the place a watch reports has been delivered.",
    W7 "W7" "Kind, cause, value and previous value of an event are what was committed.",
    W8 "W8" "Only events of the watched keys are delivered.",
    W9 "W9" "Nothing below the revision a watch starts with is delivered.",
    W10 "W10" "A start that is compacted is refused, and no other one is.",
    W11 "W11" "A consumer that falls behind is told so, with the whole state at one revision.",
    W13 "W13" "Only what is committed is delivered.",
    L1 "L1" "A lease does not end by itself before its time to live has passed since its last acknowledged renewal was sent.",
    L2 "L2" "A lease that nobody renews ends.",
    L3 "L3" "A lease that has ended stays so.",
    L4 "L4" "All keys of a lease are deleted at one revision.",
    L8 "L8" "A holder believes in its lease no longer than the lease certainly lasts.",
    K1 "K1" "A lock has one holder at a time.",
    K2 "K2" "The fences of a lock grow strictly from holder to holder.",
    K3 "K3" "A lock is granted only to a claim that stands.",
    K4 "K4" "A release never touches another holder's claim.",
    K5 "K5" "A guard is lost before the lock can be another's.",
    K6 "K6" "A write with a fence that is not the holder's is refused.",
    K7 "K7" "Who waits is served in the order of the claims, and a dead claim holds nobody up.",
    D1 "D1" "What was acknowledged is there at the end.",
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// A broken promise, and what shows that it is broken. Displays as one line and one more for each witness.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// The promise.
    pub property: Property,
    /// What does not fit.
    pub what: String,
    /// The operations, commits or events that show it, with their times.
    pub witnesses: Vec<String>,
}

impl Violation {
    pub(super) fn new(property: Property, what: impl Into<String>) -> Self {
        Violation { property, what: what.into(), witnesses: Vec::new() }
    }

    pub(super) fn with(mut self, witness: impl fmt::Display) -> Self {
        self.witnesses.push(witness.to_string());
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.what)?;
        self.witnesses.iter().try_for_each(|witness| write!(f, "\n    {witness}"))
    }
}

impl std::error::Error for Violation {}

/// A time in nanoseconds, shown in milliseconds.
pub(super) struct Millis(pub(super) u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}ms", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}
