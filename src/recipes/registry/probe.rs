//! Asking the host, again and again, whether an instance works.
//!
//! A probe is asked at a steady pace, one question at a time, and what it does not answer in time counts as a no. One yes is
//! enough to be listed; it takes several noes in a row to be delisted, so that one slow answer does not take an instance
//! out. Before the first yes there is nothing to be taken out, and the first no is told at once.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::error::Error;
use crate::node::Node;
use crate::rt;

/// The shortest and the longest pause between two questions.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3600));
/// Most bytes that are kept of what a failed probe says.
const WHY_BYTES_MAX: usize = 256;

/// What a health probe may answer: `bool`, or a `Result` whose error says what is wrong.
pub trait Verdict {
    /// What is wrong, if something is.
    fn into_verdict(self) -> Result<(), String>;
}

impl Verdict for bool {
    fn into_verdict(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("the probe said no".into()) }
    }
}

impl<E: fmt::Display> Verdict for Result<(), E> {
    fn into_verdict(self) -> Result<(), String> {
        self.map_err(|error| error.to_string())
    }
}

impl<E: fmt::Display> Verdict for Result<bool, E> {
    fn into_verdict(self) -> Result<(), String> {
        self.map_err(|error| error.to_string()).and_then(bool::into_verdict)
    }
}

/// A probe and how it is to be asked.
#[derive(Clone)]
pub(super) struct Probe {
    ask: Option<Ask>,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    /// After how many failures in a row a healthy instance counts as unhealthy.
    pub(super) failures: u32,
}

type Ask = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

impl Default for Probe {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Probe { ask: None, interval: second, timeout: second, failures: 3 }
    }
}

impl Probe {
    pub(super) fn asking<P, F>(&mut self, probe: P)
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output: Verdict> + Send + 'static,
    {
        let probe = Arc::new(probe);
        self.ask = Some(Arc::new(move || {
            let probe = probe.clone();
            async move { probe().await.into_verdict() }.boxed()
        }));
    }

    pub(super) fn is_set(&self) -> bool {
        self.ask.is_some()
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let (shortest, longest) = INTERVAL;
        for (what, given) in [("probe interval", self.interval), ("probe timeout", self.timeout)] {
            if !(shortest..=longest).contains(&given) {
                let why = format!("it is {given:?}, but must be from {shortest:?} to {longest:?}");
                return Err(Error::Invalid { what, why });
            }
        }
        if self.failures == 0 {
            return Err(Error::Invalid { what: "unhealthy_after", why: "it is 0, but must be at least 1".into() });
        }
        Ok(())
    }

    /// Asks once; without a probe, everything is well.
    pub(super) async fn ask(&self, node: &Node) -> Result<(), String> {
        let Some(ask) = self.ask.clone() else { return Ok(()) };
        // A task of its own: its panic is its own, and is dropped with its question.
        let asked = node.spawn("probe", async move { ask().await }).abort_on_drop();
        let answer = match rt::timeout(self.timeout, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(failed)) => Err(failed.to_string()),
            Err(_) => Err(format!("the probe did not answer within {:?}", self.timeout)),
        };
        answer.map_err(short)
    }

    /// Asks for ever, beginning a pause after the first question, whose answer was `first`, and tells each change of mind.
    pub(super) async fn follow(self, node: Arc<Node>, first: Result<(), String>, tell: impl Fn(Result<(), String>)) {
        let mut healthy = first.is_ok();
        let mut failures = 0;
        loop {
            rt::sleep(self.interval).await;
            match self.ask(&node).await {
                Ok(()) => {
                    failures = 0;
                    if !std::mem::replace(&mut healthy, true) {
                        tell(Ok(()));
                    }
                }
                Err(why) => {
                    failures = u32::saturating_add(failures, 1);
                    if failures >= self.failures && std::mem::replace(&mut healthy, false) {
                        tell(Err(why));
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("interval", &self.interval).finish_non_exhaustive()
    }
}

/// As much of it as is kept.
fn short(mut why: String) -> String {
    if why.len() > WHY_BYTES_MAX {
        let end = (0..=WHY_BYTES_MAX).rev().find(|end| why.is_char_boundary(*end)).unwrap_or(0);
        why.truncate(end);
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_healthy_only_if_every_part_of_it_is() {
        assert!(true.into_verdict().is_ok() && false.into_verdict().is_err());
        assert_eq!(Ok::<(), String>(()).into_verdict(), Ok(()));
        assert_eq!(Err::<(), _>("away").into_verdict(), Err("away".into()));
        assert!(Ok::<_, String>(true).into_verdict().is_ok() && Ok::<_, String>(false).into_verdict().is_err());
        assert_eq!(Err::<bool, _>("away").into_verdict(), Err("away".into()));
    }

    #[test]
    fn what_a_failure_says_is_cut_between_characters() {
        assert_eq!(short("away".into()), "away");
        let cut = short(format!("x{}", "ä".repeat(WHY_BYTES_MAX)));
        assert_eq!((cut.len(), cut.chars().count()), (WHY_BYTES_MAX - 1, WHY_BYTES_MAX / 2));
    }
}
