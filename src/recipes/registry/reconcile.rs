//! The task that keeps one registration what it should be.
//!
//! # Model
//!
//! ```text
//!              registered                          unsure
//!             ┌────────────▶ Registered ◀──────────────────────▶ Lost(Unsure)
//!             │  update ┌────┘ │  │  │                             │
//!  (starting) │         └──────┘  │  └── deleted, lease gone ──▶ Lost(Deleted | Expired) ──┐ put again, at once the first
//!             │   probe says yes  │ probe says no                ◀──────────────────────────┘ time, then after a pause
//!             └── Unhealthy ◀─────┘
//!
//!  from every one of these:  a newer incarnation's record is found ──▶ Replaced       (for good)
//!                            deregistered or dropped ────────────────▶ Deregistered   (for good)
//!                            this node stops ────────────────────────▶ Stopped        (for good)
//! ```
//!
//! What should be is a value ([`Wanted`]): an instance, whether it is healthy, whether it is over. What is, is what the watch
//! of the registration's own record has said last, as far as that is newer than what was written here last, and what the
//! session says of its lease. Whenever either changes, one step is made towards what should be; a step that fails is made
//! again after a pause. So it makes no difference why a record is not there: it is put again.
//!
//! A write that was not answered counts as not made, until the watch shows it: a record of this incarnation on the session's
//! lease is this registration's own, and what should be is looked at again in its light. It may come after the probe has said
//! no, and is taken away then; or say that it goes after the probe has said yes again, and is overwritten then. Nothing else
//! would find it: the session renews its lease.
//!
//! It never fights: a record of a newer incarnation ends it (see [`super::slot`]). Records of older ones, and what was written
//! there by hand, are overwritten. Pauses after failures and repeated losses grow from [`PAUSE_MIN`] to [`PAUSE_MAX`], and
//! begin anew when nothing has happened for [`CALM`].

use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;

use super::instance::{Incarnation, Instance, Leaving, Registered};
use super::register::RegistrationState;
use super::slot::{Placed, Slot};
use crate::api::kv::Entry;
use crate::api::session::{LostReason, Session, Standing};
use crate::api::watch::{Batch, BatchKind, Cause, Event, Watch};
use crate::error::Error;
use crate::rt::{self, Instant, watch};
use crate::types::Revision;

/// Pause after the first failure, and before the second repair.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause, but for a quarter by chance on top.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Failures and losses that lie further back are not counted any more.
const CALM: Duration = Duration::from_secs(10);

/// What should be.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) instance: Instance,
    /// How often the instance was changed.
    pub(super) version: u64,
    pub(super) health: Result<(), String>,
    pub(super) over: bool,
}

/// What is, for those who hold the registration.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) state: RegistrationState,
    /// The version of the instance that was registered last.
    pub(super) version: u64,
    /// What kept the end from being told to the cluster.
    pub(super) failure: Option<Error>,
}

/// How sessions are opened.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) ttl: Duration,
    pub(super) refresh: Option<Duration>,
}

impl Terms {
    pub(super) async fn open(&self, slot: &Slot) -> Result<Session, Error> {
        let opening = slot.cluster.session().ttl(self.ttl).name(&slot.registrar).timeout(slot.timeout);
        match self.refresh {
            Some(refresh) => opening.refresh(refresh).await,
            None => opening.await,
        }
    }
}

/// What the table holds in this registration's place, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Ours {
        modified: Revision,
        /// Of the instance it describes; `None`: not the one that is wanted.
        version: Option<u64>,
    },
    /// Ours, saying that it goes.
    Leaving,
    /// Nothing (`None`), or what is to be overwritten.
    Other(Option<Revision>),
}

type Changes = Batch<Registered, (String, String)>;

/// What happened.
enum Woken {
    Wanted,
    Records(Option<Result<Changes, Error>>),
    Session,
    Timer,
}

/// One registration's task.
pub(super) struct Reconciler {
    slot: Slot,
    terms: Terms,
    session: Session,
    standing: watch::Receiver<Standing>,
    wanted: watch::Receiver<Wanted>,
    told: Told,
    records: Watch<Registered, (String, String)>,
    found: Found,
    /// The newest write of this registration: what the watch says of older revisions is out of date.
    written: Revision,
    pauses: Pauses,
}

impl Reconciler {
    pub(super) fn new(
        slot: Slot,
        terms: Terms,
        session: Session,
        wanted: watch::Receiver<Wanted>,
        told: watch::Sender<Progress>,
        records: Watch<Registered, (String, String)>,
    ) -> Self {
        let standing = session.lifeline().watch();
        let (found, written) = (Found::Other(None), Revision::ZERO);
        let told = Told(told);
        Reconciler { slot, terms, session, standing, wanted, told, records, found, written, pauses: Pauses::default() }
    }

    /// Goes on until the registration is over, having made the first step already.
    pub(super) async fn run(mut self) {
        let mut due = None;
        loop {
            match due.map(|due| due - Instant::now()) {
                Some(Duration::ZERO) => match self.step().await {
                    Ok(true) => return,
                    Ok(false) => due = None,
                    Err(error) => {
                        tracing::debug!(service = self.slot.service, id = self.slot.id, %error, "not registered yet");
                        due = Some(Instant::now() + self.pauses.after_failure());
                    }
                },
                left => match self.event(left.unwrap_or(Duration::MAX)).await {
                    Woken::Timer => {}
                    Woken::Wanted => due = Some(Instant::now()),
                    Woken::Session => due = self.look_at_session().or(due),
                    Woken::Records(Some(Ok(batch))) => match self.take_note(batch) {
                        Noted::Nothing => {}
                        Noted::Own => due = Some(self.recognised()),
                        Noted::Lost(reason) => due = Some(self.lost(reason)),
                        Noted::Newer(by) => return self.replaced(Some(by)).await,
                    },
                    Woken::Records(Some(Err(Error::Codec { .. } | Error::Key { .. }))) => {
                        // The step finds out whose it is.
                        self.found = Found::Other(None);
                        due = Some(Instant::now());
                    }
                    Woken::Records(Some(Err(_)) | None) => return self.told.end(RegistrationState::Stopped, None),
                },
            }
        }
    }

    /// Makes of what is what should be, as of now; whether that is the end.
    ///
    /// # Errors
    /// The cluster did not answer, or not as hoped: to be tried again.
    pub(super) async fn step(&mut self) -> Result<bool, Error> {
        match self.try_step().await {
            Err(Error::Stopped { .. } | Error::Formation(_)) => {
                self.told.end(RegistrationState::Stopped, None);
                Ok(true)
            }
            Err(error @ Error::LeaseNotFound { .. }) => {
                // Known here before the next renewal would have said so.
                self.session.lifeline().end(LostReason::Expired);
                Err(error)
            }
            done => done,
        }
    }

    async fn try_step(&mut self) -> Result<bool, Error> {
        let wanted = self.wanted.borrow_and_update();
        if wanted.over {
            self.leave(&wanted.instance).await;
            return Ok(true);
        }
        if self.session.lifeline().standing().lost.is_some() {
            self.session = self.terms.open(&self.slot).await?;
            self.standing = self.session.lifeline().watch();
            self.found = Found::Other(None);
        }
        match &wanted.health {
            Ok(()) => self.list(&wanted).await,
            Err(why) => {
                self.delist(&wanted.instance, why).await?;
                self.told.tell(RegistrationState::Unhealthy { why: why.clone() }, None);
                Ok(false)
            }
        }
    }

    async fn list(&mut self, wanted: &Wanted) -> Result<bool, Error> {
        let found = match self.found {
            Found::Ours { version, .. } if version == Some(wanted.version) => None,
            Found::Ours { modified, .. } => Some(Some(modified)),
            Found::Leaving => Some(Some(self.written)),
            Found::Other(found) => Some(found),
        };
        if let Some(found) = found {
            match self.slot.put(&wanted.instance, self.session.lease(), found).await? {
                Placed::Standing(revision) => {
                    self.written = revision;
                    self.found = Found::Ours { modified: revision, version: Some(wanted.version) };
                }
                Placed::Newer(by) => {
                    self.replaced(by).await;
                    return Ok(true);
                }
            }
        }
        self.tell_standing();
        Ok(false)
    }

    async fn delist(&mut self, instance: &Instance, why: &str) -> Result<(), Error> {
        let lease = self.session.lease();
        if let Found::Ours { .. } = self.found {
            match self.slot.leave(instance, lease, Leaving::Unhealthy(why.to_owned())).await? {
                Some(revision) => (self.written, self.found) = (revision, Found::Leaving),
                None => self.found = Found::Other(None),
            }
        }
        if self.found == Found::Leaving {
            self.written = self.slot.delete(lease).await?;
            self.found = Found::Other(None);
        }
        Ok(())
    }

    /// Ends the registration: the record says so, and goes with the session.
    async fn leave(&mut self, instance: &Instance) {
        if let Found::Ours { .. } = self.found {
            // What matters is that the lease ends; this only lets watchers know why.
            let _ = self.slot.leave(instance, self.session.lease(), Leaving::Deregistered).await;
        }
        let failure = self.session.end().await.err();
        self.told.end(RegistrationState::Deregistered, failure);
    }

    async fn replaced(&mut self, by: Option<Incarnation>) {
        self.told.end(RegistrationState::Replaced { by }, None);
        // Nothing hangs on it any more; if it is not revoked it expires.
        let _ = self.session.end().await;
    }

    /// When the next step is due, if the session was lost.
    fn look_at_session(&mut self) -> Option<Instant> {
        match self.standing.borrow_and_update().lost {
            Some(reason) => {
                self.found = Found::Other(None);
                Some(self.lost(reason))
            }
            None => {
                self.tell_standing();
                None
            }
        }
    }

    /// Tells of a loss; when it is to be repaired.
    fn lost(&mut self, reason: LostReason) -> Instant {
        if self.wanted.with(|wanted| wanted.health.is_ok()) {
            self.told.tell(RegistrationState::Lost { reason }, None);
        }
        Instant::now() + self.pauses.after_loss()
    }

    /// When what becomes of a record that turned out to be one's own is due.
    fn recognised(&mut self) -> Instant {
        let (healthy, version) = self.wanted.with(|wanted| (wanted.health.is_ok(), wanted.version));
        let to_be_put = match self.found {
            Found::Ours { version: found, .. } => healthy && found != Some(version),
            _ => healthy,
        };
        if healthy && self.found == Found::Leaving {
            self.told.tell(RegistrationState::Lost { reason: LostReason::Unsure }, None);
        }
        // It may also be somebody else who changes it in place: no quicker than after a loss, then.
        let pause = if to_be_put { self.pauses.after_loss() } else { Duration::ZERO };
        Instant::now() + pause
    }

    /// Tells that the record is there, as far as that is sure.
    fn tell_standing(&self) {
        let Found::Ours { modified, version } = self.found else { return };
        match self.session.lifeline().standing().sure(rt::boot_now()) {
            Some(_) => self.told.tell(RegistrationState::Registered { revision: modified }, version),
            None => self.told.tell(RegistrationState::Lost { reason: LostReason::Unsure }, None),
        }
    }

    /// Takes note of what became of the record without this task's knowing.
    fn take_note(&mut self, batch: Changes) -> Noted {
        if batch.revision <= self.written {
            return Noted::Nothing;
        }
        let ours = matches!(self.found, Found::Ours { .. } | Found::Leaving);
        let reason = match batch.events.first() {
            Some(Event::Put { entry, .. }) if entry.modified <= self.written => return Noted::Nothing,
            Some(Event::Put { entry, .. }) if entry.incarnation > self.slot.incarnation => {
                return Noted::Newer(entry.incarnation);
            }
            Some(Event::Put { entry, .. }) if self.is_own(entry) => {
                self.written = entry.modified;
                self.found = match entry.is_leaving() {
                    true => Found::Leaving,
                    false => Found::Ours { modified: entry.modified, version: self.version_of(entry) },
                };
                return Noted::Own;
            }
            Some(Event::Put { entry, .. }) => {
                // Of an older one, or by hand.
                self.found = Found::Other(Some(entry.modified));
                LostReason::Deleted
            }
            Some(Event::Delete { cause: Cause::Expired, .. }) => LostReason::Expired,
            Some(Event::Delete { .. }) => LostReason::Deleted,
            None if batch.kind == BatchKind::Live => return Noted::Nothing,
            None => LostReason::Deleted,
        };
        if !matches!(batch.events.first(), Some(Event::Put { .. })) {
            self.found = Found::Other(None);
        }
        if ours { Noted::Lost(reason) } else { Noted::Nothing }
    }

    /// Whether this registration wrote it, under the present session.
    fn is_own(&self, entry: &Entry<Registered>) -> bool {
        entry.incarnation == self.slot.incarnation && entry.lease == Some(self.session.lease())
    }

    /// The version that is wanted, if it is what the record says.
    fn version_of(&self, entry: &Entry<Registered>) -> Option<u64> {
        self.wanted.with(|wanted| (wanted.instance == entry.instance).then_some(wanted.version))
    }

    async fn event(&mut self, within: Duration) -> Woken {
        let wanted = self.wanted.changed().map(|_| Woken::Wanted).boxed();
        let records = self.records.next().map(Woken::Records).boxed();
        let session = self.standing.changed().map(|_| Woken::Session).boxed();
        match rt::timeout(within, select_all([wanted, records, session])).await {
            Ok((woken, ..)) => woken,
            Err(_) => Woken::Timer,
        }
    }
}

/// What a change of the record comes to.
enum Noted {
    Nothing,
    /// It is what this registration wrote without having had an answer.
    Own,
    Lost(LostReason),
    Newer(Incarnation),
}

/// Tells those who hold the registration; if it is dropped before it has told an end, that is one.
struct Told(watch::Sender<Progress>);

impl Told {
    fn tell(&self, state: RegistrationState, version: Option<u64>) {
        self.0.send_if_modified(|now| {
            let version = version.unwrap_or(now.version);
            let news = !now.state.is_final() && (now.state != state || now.version != version);
            if news {
                (now.state, now.version) = (state, version);
            }
            news
        });
    }

    fn end(&self, state: RegistrationState, failure: Option<Error>) {
        self.0.send_if_modified(|now| {
            let first = !now.state.is_final();
            if first {
                (now.state, now.failure) = (state, failure);
            }
            first
        });
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.end(RegistrationState::Stopped, None);
    }
}

/// How long to wait before something is tried again.
#[derive(Debug, Default)]
struct Pauses {
    /// What went wrong lately: how often, and when last.
    troubles: u32,
    last: Option<Instant>,
}

impl Pauses {
    /// Before a lost record is put again: nothing, if it stood for a while.
    fn after_loss(&mut self) -> Duration {
        let before = self.count();
        if before == 0 { Duration::ZERO } else { pause(before) }
    }

    fn after_failure(&mut self) -> Duration {
        pause(self.count() + 1)
    }

    /// Counts one more; how many there were before.
    fn count(&mut self) -> u32 {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last >= CALM) {
            self.troubles = 0;
        }
        self.last = Some(now);
        self.troubles += 1;
        self.troubles - 1
    }
}

/// The pause behind so many troubles, with up to a quarter more by chance, so that a crowd does not come back as one.
fn pause(troubles: u32) -> Duration {
    let pause = (PAUSE_MIN * 2u32.saturating_pow(troubles - 1).min(1 << 16)).min(PAUSE_MAX);
    let quarter_ms = pause.as_millis() as u64 / 4;
    pause + Duration::from_millis(rt::random_u64() % (quarter_ms + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_repair_is_made_at_once_and_pauses_grow_to_a_limit_until_it_is_calm() {
        let mut pauses = Pauses::default();
        assert_eq!(pauses.after_loss(), Duration::ZERO);
        let grown: Vec<Duration> = (0..9).map(|_| pauses.after_loss()).collect();
        for (nth, pause) in grown.iter().enumerate() {
            let least = (PAUSE_MIN * (1 << nth)).min(PAUSE_MAX);
            assert!((least..=least * 5 / 4).contains(pause), "{nth}: {pause:?}");
        }
        rt::sleep(CALM).await;
        assert_eq!(pauses.after_loss(), Duration::ZERO);
        rt::sleep(CALM).await;
        assert!(pauses.after_failure() >= PAUSE_MIN);
        assert!(pause(u32::MAX) <= PAUSE_MAX * 5 / 4);
    }
}
