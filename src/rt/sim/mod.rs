//! Simulated processes: their tasks, clocks and chance, all from one seed.
//!
//! A [`World`] is one run: a seed, a scale of time, a trace. A [`Context`] is one life of one process in it: a node and what
//! its host runs beside it. Whatever is polled inside a context spawns into it, reads its clocks and draws its chance, through
//! the same functions of `rt` that production calls; outside of any context those do what they always do.
//!
//! * The same seed gives the same run, task poll by task poll, in every process: [`World::hash`] is how one tells.
//! * A context can be paused, suspended and killed, and its clocks can drift and jump. It refuses to be polled when dead.
//! * Everything runs on one thread. What waits for another thread, or reads the machine's clock by itself, is outside of the
//!   simulation.
//! * Time jumps to the next timer when all tasks wait. A world in which nothing will ever happen hangs.
//!
//! What the processes talk over, and what breaks, is decided by whoever makes them.

mod context;
mod machine;
pub(super) mod scope;
mod scoped;
mod trace;
mod world;

#[cfg(test)]
mod tests;

use std::cell::RefCell;

use super::marks::Mark;

// Not all of it is used by every build that has this.
#[allow(unused_imports)]
pub(crate) use self::{
    context::Context,
    machine::SetClock,
    trace::{Recording, first_difference},
    world::{Met, OUTSIDE, Panicked, World},
};

/// The context of what is being polled on this thread.
pub(crate) fn current() -> Option<Context> {
    CURRENT.try_with(|current| current.borrow().as_ref().map(|current| current.context.clone())).ok().flatten()
}

/// Adds a line to the trace of the current world; outside of one, does nothing.
pub(crate) fn trace(kind: &'static str, bits: &[u64]) {
    if let Some(context) = current() {
        context.world().trace(kind, bits);
    }
}

/// Tells the current world, if there is one, that its current process has come by a mark.
pub(super) fn marked(mark: Mark) {
    if let Some(context) = current() {
        context.world().marked(context.name(), mark);
    }
}

thread_local!(static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) });

/// Who is being polled.
#[derive(Clone)]
struct Current {
    context: Context,
    task: u64,
    name: &'static str,
}

/// Puts back, when dropped, who was being polled before.
struct Inside {
    before: Option<Current>,
}

impl Inside {
    fn of(current: Current) -> Self {
        Inside { before: CURRENT.with(|place| place.borrow_mut().replace(current)) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let before = self.before.take();
        let inside = CURRENT.try_with(|place| std::mem::replace(&mut *place.borrow_mut(), before));
        drop(inside);
    }
}
