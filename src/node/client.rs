//! This process's client record: the numbers under which its writes are decided once.
//!
//! A record is opened with the first write and kept by renewing its lease. A write whose outcome stayed unknown keeps its
//! number unanswered, so that its ticket can be resolved; when such a number would block the record's window, the process
//! opens another record and lets the old one live out its lease, with its tickets.
//!
//! When a record ends, what is known of its numbers ends with it: of a write under one that is gone nobody can say whether
//! it was carried out before. So no number is taken from a record that may have ended, because it was not renewed in time;
//! it is renewed first, or replaced.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Node;
use crate::command::{Command, Refusal, Response, Stamp};
use crate::error::{Error, Obstacle};
use crate::rt::{self, Instant};
use crate::state_machine::ANSWERS_MAX;
use crate::types::{ClientId, LeaseId, Ticket};

/// The record in use, if any.
#[derive(Default)]
pub(super) struct Clients {
    current: Mutex<Option<Arc<Record>>>,
    opening: tokio::sync::Mutex<()>,
}

/// One client record, as this process knows it.
pub(super) struct Record {
    client: ClientId,
    lease: LeaseId,
    numbers: Mutex<Numbers>,
    /// When the last renewal that was acknowledged was sent, on the clock that counts suspend.
    renewed: Mutex<Duration>,
}

#[derive(Default)]
struct Numbers {
    next: u64,
    /// Numbers handed out and not answered, abandoned ones included.
    unanswered: BTreeSet<u64>,
    /// Those that nobody holds any more; some have tickets.
    abandoned: usize,
}

impl Numbers {
    fn low(&self) -> u64 {
        self.unanswered.first().copied().unwrap_or(self.next)
    }
}

/// One number, held by the caller it was given to.
pub(super) struct Claim {
    record: Arc<Record>,
    seq: u64,
    logged_perhaps: bool,
    answered: bool,
}

impl Clients {
    /// A fresh number; `None` if there is no record to take it from.
    pub(super) fn claim(&self) -> Result<Option<Claim>, Error> {
        let mut current = self.current.lock().expect("no panic while held");
        let Some(record) = current.clone() else { return Ok(None) };
        let mut numbers = record.numbers.lock().expect("no panic while held");
        let under_way = numbers.unanswered.len() - numbers.abandoned;
        if under_way as u64 >= ANSWERS_MAX {
            let why = Obstacle::Busy { what: "unanswered writes of this process", limit: ANSWERS_MAX };
            return Err(Error::NotApplied { why, waited: Duration::ZERO });
        }
        if numbers.next >= numbers.low() + ANSWERS_MAX {
            if numbers.abandoned == 0 {
                let why = Obstacle::Busy { what: "writes behind the oldest unanswered one", limit: ANSWERS_MAX };
                return Err(Error::NotApplied { why, waited: Duration::ZERO });
            }
            // An abandoned number blocks the window. Its record stays behind for its ticket; new writes get a new record.
            *current = None;
            return Ok(None);
        }
        let seq = numbers.next;
        numbers.next += 1;
        numbers.unanswered.insert(seq);
        drop(numbers);
        Ok(Some(Claim { record, seq, logged_perhaps: false, answered: false }))
    }

    /// Drops a record that the cluster no longer knows.
    pub(super) fn forget(&self, client: ClientId) {
        self.current.lock().expect("no panic while held").take_if(|record| record.client == client);
    }

    pub(super) fn lease(&self) -> Option<(ClientId, LeaseId)> {
        let current = self.current.lock().expect("no panic while held");
        current.as_ref().map(|record| (record.client, record.lease))
    }

    /// The record in use, if it was last renewed longer ago than this.
    fn not_renewed_for(&self, age: Duration) -> Option<(ClientId, LeaseId)> {
        let current = self.current.lock().expect("no panic while held");
        let record = current.as_ref()?;
        let renewed = *record.renewed.lock().expect("no panic while held");
        (rt::boot_now().saturating_sub(renewed) > age).then_some((record.client, record.lease))
    }

    fn renewed(&self, client: ClientId, sent: Duration) {
        let current = self.current.lock().expect("no panic while held");
        if let Some(record) = current.as_ref().filter(|record| record.client == client) {
            let mut renewed = record.renewed.lock().expect("no panic while held");
            *renewed = sent.max(*renewed);
        }
    }

    fn open(&self, client: ClientId, lease: LeaseId, sent: Duration) {
        let numbers = Mutex::new(Numbers { next: 1, ..Numbers::default() });
        let record = Record { client, lease, numbers, renewed: Mutex::new(sent) };
        *self.current.lock().expect("no panic while held") = Some(Arc::new(record));
    }
}

impl Claim {
    /// The stamp for the next attempt; the lowest unanswered number is the one of now.
    pub(super) fn stamp(&self) -> Stamp {
        let low = self.record.numbers.lock().expect("no panic while held").low();
        Stamp { client: self.record.client, seq: self.seq, low }
    }

    pub(super) fn logged_perhaps(&mut self) {
        self.logged_perhaps = true;
    }

    pub(super) fn may_be_logged(&self) -> bool {
        self.logged_perhaps
    }

    /// What asks for the outcome, should it stay unknown.
    pub(super) fn ticket(&self) -> Ticket {
        Ticket { client: self.record.client, seq: self.seq }
    }

    /// The outcome is known: the number may be forgotten by the cluster.
    pub(super) fn answered(&mut self) {
        self.answered = true;
        self.record.numbers.lock().expect("no panic while held").unanswered.remove(&self.seq);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The number is kept for its ticket, also if none was given out: nothing may be forgotten that could still be applied.
        if !self.answered {
            self.record.numbers.lock().expect("no panic while held").abandoned += 1;
        }
    }
}

impl Node {
    /// Makes sure that there is a record. One attempt at a time; the others wait for it.
    pub(super) async fn open_client(self: &Arc<Self>, started: Instant, deadline: Instant) -> Result<(), Error> {
        let not_in_time = |why| Error::NotApplied { why, waited: started.elapsed() };
        let opening = rt::timeout_at(deadline, self.clients.opening.lock()).await;
        let _opening = opening.map_err(|_| not_in_time(Obstacle::NoLeader))?;
        if self.clients.lease().is_some() {
            return Ok(());
        }
        let ttl_ms = self.settings.client_ttl.as_millis() as u64;
        let (left, sent) = (deadline - Instant::now(), rt::boot_now());
        // A double of this command leaves a record nobody uses; it goes with its lease.
        match self.housekeep(Command::ClientOpen { ttl_ms }, left).await? {
            Response::ClientOpened { client, lease } => {
                tracing::debug!(%client, "client record opened");
                self.clients.open(client, lease, sent);
                Ok(())
            }
            Response::Refused(Refusal::TooManyClients { limit }) => {
                Err(not_in_time(Obstacle::Busy { what: "client records of the cluster", limit }))
            }
            other => unreachable!("a client open is answered with {other:?}"),
        }
    }

    /// Renews the record's lease three times per time to live, for as long as the node lives.
    pub(super) async fn keep_client(self: Arc<Self>) {
        loop {
            rt::sleep(self.settings.client_ttl / 3).await;
            let Some((client, lease)) = self.clients.lease() else { continue };
            if let Err(error) = self.renew_client(client, lease, self.settings.client_ttl / 4).await {
                tracing::debug!(%client, %error, "the client record could not be renewed yet");
            }
        }
    }

    /// Makes sure that the record in use, if there is one, is not about to end: one that was not renewed when it was time is
    /// renewed now, or forgotten if it is gone. One attempt at a time; the others wait for it.
    pub(super) async fn check_client(self: &Arc<Self>, started: Instant, deadline: Instant) -> Result<(), Error> {
        match self.client_is_overdue() {
            true => self.renew_overdue(started, deadline).await,
            false => Ok(()),
        }
    }

    /// Whether the record in use was not renewed when it was time.
    pub(super) fn client_is_overdue(&self) -> bool {
        self.clients.not_renewed_for(self.settings.client_ttl / 2).is_some()
    }

    async fn renew_overdue(self: &Arc<Self>, started: Instant, deadline: Instant) -> Result<(), Error> {
        let overdue = self.settings.client_ttl / 2;
        let opening = rt::timeout_at(deadline, self.clients.opening.lock()).await;
        let late = |_| Error::NotApplied { why: Obstacle::NoLeader, waited: started.elapsed() };
        let _opening = opening.map_err(late)?;
        match self.clients.not_renewed_for(overdue) {
            Some((client, lease)) => self.renew_client(client, lease, deadline - Instant::now()).await,
            None => Ok(()),
        }
    }

    async fn renew_client(self: &Arc<Self>, client: ClientId, lease: LeaseId, timeout: Duration) -> Result<(), Error> {
        let sent = rt::boot_now();
        match self.keep_alive(lease, timeout).await? {
            Some(_) => self.clients.renewed(client, sent),
            None => {
                tracing::warn!(%client, "the client record has expired; the next write opens another");
                self.clients.forget(client);
            }
        }
        Ok(())
    }
}
