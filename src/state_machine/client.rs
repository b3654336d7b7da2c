//! Client records: each mutation is decided once, however often it reaches the log.
//!
//! A mutation carries its client, a number, and the client's watermark: the lowest number that is still unanswered.
//! Everything decided is remembered under its number in the same transaction as its effect, also what had no effect:
//! otherwise a compare that failed could succeed when a double of it arrives later, after the caller was told
//! "conflict". What is below the watermark may be forgotten, and is refused from then on.
//!
//! What is looked at, in this order:
//! 1. no such client: refused;
//! 2. below the watermark (raised by this very stamp): refused as forgotten;
//! 3. remembered: answered as it was the first time, or refused as sealed if it was resolved as never to happen;
//! 4. [`ANSWERS_MAX`] or more above the watermark: refused and *not* remembered, so a double may still be decided later;
//! 5. else it is decided and remembered, be it carried out, a failed compare or a refusal.
//!
//! A watermark above the stamp's own number would declare the very mutation answered that asks for an answer. It is
//! taken as that number.

use std::collections::{BTreeMap, VecDeque};

use super::apply::Entry;
use super::hash::row_hash;
use super::state::damaged;
use super::{RowError, RowSpace, Rows, RowsRead, State};
use crate::command::{Few, Refusal, Resolution, Response, Stamp, TxnResponse};
use crate::format::command::decode_response;
use crate::format::rows::{
    AnswerRow, ClientRow, LeaseKind, Outcome, answer_key, client_key, decode_answer, encode_answer, encode_client,
    encode_decided,
};
use crate::rt::{Mark, mark, mutant};
use crate::types::{ClientId, Revision, Ticket};

/// Client records that can be open at once; beyond, opening one is refused. None is ever dropped to make room.
pub(crate) const CLIENTS_MAX: usize = 10_000;

/// How far a client's numbers may be ahead of its lowest unanswered one, and so how many answers are remembered for it.
pub(crate) const ANSWERS_MAX: u64 = 4096;

/// Encoded size up to which a transaction's answer is remembered whole; the results of a larger one are left out.
pub(crate) const ANSWER_BYTES_MAX: usize = 1024;

/// All client records.
#[derive(Debug, Default)]
pub(super) struct Clients {
    records: BTreeMap<ClientId, Client>,
}

/// One client record.
#[derive(Debug)]
pub(super) struct Client {
    row: ClientRow,
    /// The watermark. Also in the row of the last answer that was recorded; in the client's own row only when it moved
    /// without one.
    low: u64,
    /// The hash of the row of each remembered number from the watermark on; `None` for one that is not remembered. As long
    /// as the highest needs it to be, so never longer than [`ANSWERS_MAX`].
    answers: VecDeque<Option<u64>>,
}

impl Clients {
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn insert(&mut self, client: ClientId, row: ClientRow) {
        self.records.insert(client, Client { row, low: row.low, answers: VecDeque::new() });
    }

    pub(super) fn record_mut(&mut self, client: ClientId) -> Option<&mut Client> {
        self.records.get_mut(&client)
    }
}

/// What the record knows of a number.
enum Place {
    Forgotten { low: u64 },
    Remembered,
    TooFarAhead,
    Open,
}

impl Client {
    fn place(&self, seq: u64) -> Place {
        match seq.checked_sub(self.low) {
            None => Place::Forgotten { low: self.low },
            Some(ahead) if self.is_remembered(ahead) => Place::Remembered,
            Some(ahead) if ahead >= ANSWERS_MAX => Place::TooFarAhead,
            Some(_) => Place::Open,
        }
    }

    fn is_remembered(&self, ahead: u64) -> bool {
        usize::try_from(ahead).ok().and_then(|ahead| self.answers.get(ahead)).is_some_and(Option::is_some)
    }

    /// Notes the row of an open number, at or above the watermark and within [`ANSWERS_MAX`] of it.
    fn remember(&mut self, seq: u64, hash: u64) {
        let ahead = usize::try_from(seq - self.low).expect("a number that is too far ahead is not remembered");
        if self.answers.len() <= ahead {
            self.answers.resize(ahead + 1, None);
        }
        let earlier = self.answers[ahead].replace(hash);
        assert_eq!(earlier, None, "number {seq} is decided twice");
    }

    /// Raises the watermark; answers the remembered numbers that are below it now, each with the hash of its row.
    fn raise(&mut self, low: u64) -> Vec<(u64, u64)> {
        let below = usize::try_from(low - self.low).unwrap_or(usize::MAX).min(self.answers.len());
        let numbers = self.low..;
        self.low = low;
        let forgotten = numbers.zip(self.answers.drain(..below));
        forgotten.filter_map(|(seq, hash)| Some((seq, hash?))).collect()
    }

    /// Every remembered number with the hash of its row.
    fn remembered(&self) -> impl Iterator<Item = (u64, u64)> {
        (self.low..).zip(&self.answers).filter_map(|(seq, hash)| Some((seq, (*hash)?)))
    }

    /// Takes over an answer that was recorded under the watermark `low`, the lower numbers first. False if this cannot be:
    /// what is below a watermark was removed with it, and what is far above was never recorded.
    pub(super) fn load_answer(&mut self, seq: u64, hash: u64, low: u64) -> bool {
        let lost = if low > self.low { self.raise(low) } else { Vec::new() };
        let is_open = matches!(self.place(seq), Place::Open);
        if is_open {
            self.remember(seq, hash);
        }
        lost.is_empty() && is_open
    }
}

impl State {
    pub(super) fn open_client(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        ttl_ms: u64,
    ) -> Result<Response, RowError> {
        if self.clients.len() >= CLIENTS_MAX {
            return Ok(Response::Refused(Refusal::TooManyClients { limit: CLIENTS_MAX as u64 }));
        }
        let client = ClientId::new(self.meta.next_client);
        self.meta.next_client += 1;
        let lease = self.make_lease(rows, entry, ttl_ms, LeaseKind::Client(client))?;
        let row = ClientRow { lease, low: 0 };
        self.add_row(rows, RowSpace::Client, &client_key(client), encode_client(&row).as_ref().into())?;
        self.clients.insert(client, row);
        Ok(Response::ClientOpened { client, lease })
    }

    pub(super) fn close_client(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        client: ClientId,
    ) -> Result<Response, RowError> {
        let Some(record) = self.clients.records.get(&client) else {
            return Ok(Response::Refused(Refusal::UnknownClient));
        };
        let lease = record.row.lease;
        self.end_client_lease(rows, entry, lease)?;
        Ok(Response::ClientClosed)
    }

    /// Decides the entry's command unless its number is decided already.
    pub(super) fn decide_once(
        &mut self,
        rows: &mut dyn Rows,
        entry: &mut Entry<'_>,
        stamp: Stamp,
    ) -> Result<Response, RowError> {
        let Some(raised) = self.raise_low(rows, stamp)? else {
            return Ok(Response::Refused(Refusal::UnknownClient));
        };
        let ticket = Ticket { client: stamp.client, seq: stamp.seq };
        let response = match self.clients.records[&stamp.client].place(stamp.seq) {
            Place::Open => {
                let response = self.decide(rows, entry)?;
                let applied = applied(&response, self.meta.revision);
                if applied.is_none() && mutant("record_only_effective") {
                    return Ok(response);
                }
                self.remember(rows, ticket, |low| encode_outcome(low, applied, &response))?;
                return Ok(response);
            }
            Place::Forgotten { low } => Response::Refused(Refusal::Forgotten { low }),
            Place::TooFarAhead => Response::Refused(Refusal::TooFarAhead { limit: ANSWERS_MAX }),
            Place::Remembered if mutant("retry_without_dedup") => return self.decide(rows, entry),
            Place::Remembered => match self.recall(rows, ticket)? {
                Outcome::Never => Response::Refused(Refusal::Sealed),
                Outcome::Decided { response, .. } => {
                    mark(Mark::DuplicateSuppressed);
                    decode_response(response).map_err(damaged("remembered response"))?
                }
            },
        };
        if raised {
            self.save_low(rows, stamp.client)?;
        }
        Ok(response)
    }

    /// Says what became of a mutation, and seals it if nothing has.
    ///
    /// A stamp of the same client raises its watermark and counts for nothing else: resolving is safe to repeat, so it
    /// takes no number of its own. Numbers too far ahead cannot be sealed; they are unknowable *for now*, which is
    /// true, where "never" could turn out to be false.
    pub(super) fn resolve(
        &mut self,
        rows: &mut dyn Rows,
        ticket: Ticket,
        stamp: Option<Stamp>,
    ) -> Result<Resolution, RowError> {
        let raised = match stamp.filter(|stamp| stamp.client == ticket.client) {
            Some(stamp) => self.raise_low(rows, stamp)?.unwrap_or(false),
            None => false,
        };
        let Some(client) = self.clients.records.get(&ticket.client) else { return Ok(Resolution::Unknowable) };
        let resolution = match client.place(ticket.seq) {
            Place::Open => {
                self.remember(rows, ticket, |low| encode_answer(&AnswerRow { low, outcome: Outcome::Never }).into())?;
                return Ok(Resolution::Never);
            }
            Place::Forgotten { .. } | Place::TooFarAhead => Resolution::Unknowable,
            Place::Remembered => match self.recall(rows, ticket)? {
                Outcome::Never => Resolution::Never,
                Outcome::Decided { applied: Some(revision), .. } => Resolution::Applied(revision),
                Outcome::Decided { applied: None, .. } => Resolution::NoEffect,
            },
        };
        if raised {
            self.save_low(rows, ticket.client)?;
        }
        Ok(resolution)
    }

    /// Raises the client's watermark and forgets the answers below. Whether it moved; `None` if there is no such client.
    ///
    /// Where the watermark is to be found after a restart is left to the caller: in the answer it records next, or in
    /// the client's row.
    fn raise_low(&mut self, rows: &mut dyn Rows, stamp: Stamp) -> Result<Option<bool>, RowError> {
        let Some(client) = self.clients.record_mut(stamp.client) else { return Ok(None) };
        let low = stamp.low.min(stamp.seq);
        if low <= client.low {
            return Ok(Some(false));
        }
        for (seq, hash) in client.raise(low) {
            self.drop_row(rows, RowSpace::Answer, &answer_key(stamp.client, seq), hash)?;
        }
        Ok(Some(true))
    }

    /// Writes the watermark into the client's row: no answer of this entry carries it.
    fn save_low(&mut self, rows: &mut dyn Rows, id: ClientId) -> Result<(), RowError> {
        let client = self.clients.record_mut(id).expect("a raised watermark is a client's");
        let old = client.row;
        client.row.low = client.low;
        let new = client.row;
        let key = client_key(id);
        self.drop_row(rows, RowSpace::Client, &key, row_hash(RowSpace::Client, &key, &encode_client(&old)))?;
        self.add_row(rows, RowSpace::Client, &key, encode_client(&new).as_ref().into())?;
        Ok(())
    }

    /// Records an outcome, which is encoded with the client's watermark, unless the client has just ended itself: then its
    /// doubles meet an unknown client.
    fn remember(
        &mut self,
        rows: &mut dyn Rows,
        ticket: Ticket,
        encode: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<(), RowError> {
        let Some(client) = self.clients.records.get(&ticket.client) else { return Ok(()) };
        let row = encode(client.low);
        let hash = self.add_row(rows, RowSpace::Answer, &answer_key(ticket.client, ticket.seq), row.into())?;
        let client = self.clients.record_mut(ticket.client).expect("looked up above");
        client.remember(ticket.seq, hash);
        Ok(())
    }

    fn recall(&self, rows: &dyn RowsRead, ticket: Ticket) -> Result<Outcome, RowError> {
        let row = rows.row(RowSpace::Answer, &answer_key(ticket.client, ticket.seq))?;
        let row = row.ok_or_else(|| RowError::new(format!("the answer to {ticket} is remembered but not on disk")))?;
        Ok(decode_answer(row).map_err(damaged("answer"))?.outcome)
    }

    /// Drops a client record and its answers: its lease is over.
    pub(super) fn forget_client(&mut self, rows: &mut dyn Rows, id: ClientId) -> Result<(), RowError> {
        let client = self.clients.records.remove(&id).expect("a client lives as long as its lease");
        for (seq, hash) in client.remembered() {
            self.drop_row(rows, RowSpace::Answer, &answer_key(id, seq), hash)?;
        }
        let key = client_key(id);
        self.drop_row(rows, RowSpace::Client, &key, row_hash(RowSpace::Client, &key, &encode_client(&client.row)))
    }
}

/// What is remembered of an answer: all of it, or without its results if they make it too large.
fn encode_outcome(low: u64, applied: Option<Revision>, response: &Response) -> Vec<u8> {
    let (row, size) = encode_decided(low, applied, response);
    match response {
        Response::Txn(txn) if size > ANSWER_BYTES_MAX => {
            let (revision, changed, failed) = (txn.revision, txn.changed, txn.failed);
            let short = TxnResponse { revision, changed, failed, results: Few::new(), elided: true };
            encode_decided(low, applied, &Response::Txn(short)).0
        }
        _ => row,
    }
}

/// The revision at which the command had its effect, if it had one. An effect on something else than a key has the
/// revision it found.
fn applied(response: &Response, revision: Revision) -> Option<Revision> {
    match response {
        Response::Txn(txn) => txn.changed.then_some(txn.revision),
        Response::Granted { .. }
        | Response::LeaseEnded { .. }
        | Response::ClientOpened { .. }
        | Response::ClientClosed
        | Response::Compacted { .. }
        | Response::Version { .. } => Some(revision),
        Response::ExpiryVoid | Response::Resolved(_) | Response::Refused(_) => None,
    }
}
