//! Proposals and answers as bytes: what a log entry carries, and what its proposer is told.
//!
//! Both start with a format version of their own. Every alternative has an explicit tag that is never used again for
//! something else; a range that holds exactly one key is written as that key. A tag or version this build does not know
//! is reported as [`DecodeError::is_newer`], so that a node can stop before it applies what it does not understand.
//! Byte strings are slices of the input, not copies.

use bytes::Bytes;

use super::wire::{DecodeError, Reader, Writer};
use crate::command::{
    Attach, Command, Compare, KeyRange, KeyValue, Op, OpResult, Order, Proposal, Refusal, Resolution, Response, Stamp,
    Test, Txn, TxnResponse,
};
use crate::types::{ClientId, LeaderId, LeaseId, NodeId, Revision};

/// The newest vocabulary this build proposes and applies. A command that only a later version has is never proposed
/// before `Command::ClusterVersion` has raised the cluster's version to it.
pub(crate) const COMMAND_VERSION: u32 = 1;

const PROPOSAL_FORMAT: u8 = 1;
const RESPONSE_FORMAT: u8 = 1;

pub(crate) fn encode_proposal(proposal: &Proposal) -> Bytes {
    let mut w = Writer::with_capacity(64);
    w.u8(PROPOSAL_FORMAT);
    w.fixed_u64(proposal.origin.get());
    w.varint(proposal.wall_ms);
    w.option(proposal.stamp, |w, stamp| {
        w.varint(stamp.client.get());
        w.varint(stamp.seq);
        w.varint(stamp.low);
    });
    write_command(&mut w, &proposal.command);
    w.finish()
}

/// # Errors
/// [`DecodeError::is_newer`] tells an entry of a newer release from a damaged one; either stops the node.
pub(crate) fn decode_proposal(bytes: Bytes) -> Result<Proposal, DecodeError> {
    let mut r = Reader::new(bytes);
    format_version(&mut r, "proposal", PROPOSAL_FORMAT)?;
    let origin = NodeId::new(r.fixed_u64("proposal origin")?);
    let wall_ms = r.varint("proposal time")?;
    let stamp = r.option("stamp", |r| {
        let client = read_client(r)?;
        Ok(Stamp { client, seq: r.varint("stamp seq")?, low: r.varint("stamp low")? })
    })?;
    let command = read_command(&mut r)?;
    r.end("proposal")?;
    Ok(Proposal { origin, wall_ms, stamp, command })
}

pub(crate) fn encode_response(response: &Response) -> Bytes {
    let mut w = Writer::with_capacity(32);
    w.u8(RESPONSE_FORMAT);
    write_response(&mut w, response);
    w.finish()
}

pub(crate) fn decode_response(bytes: Bytes) -> Result<Response, DecodeError> {
    let mut r = Reader::new(bytes);
    format_version(&mut r, "response", RESPONSE_FORMAT)?;
    let response = read_response(&mut r)?;
    r.end("response")?;
    Ok(response)
}

/// Takes the leading version byte and refuses any but `known`: there is only one so far.
pub(super) fn format_version(r: &mut Reader, what: &'static str, known: u8) -> Result<(), DecodeError> {
    match r.u8(what)? {
        found if found == known => Ok(()),
        found => Err(DecodeError::UnknownVersion { what, found: found.into(), known: known.into() }),
    }
}

fn unknown<T>(what: &'static str, tag: u8) -> Result<T, DecodeError> {
    Err(DecodeError::UnknownTag { what, tag: tag.into() })
}

fn write_command(w: &mut Writer, command: &Command) {
    match command {
        Command::Txn(txn) => {
            w.u8(1);
            w.list(&txn.compares, write_compare);
            w.list(&txn.then, write_op);
            w.list(&txn.otherwise, write_op);
        }
        Command::LeaseGrant { ttl_ms } => {
            w.u8(2);
            w.varint(*ttl_ms);
        }
        Command::LeaseRevoke { lease } => {
            w.u8(3);
            w.varint(lease.get());
        }
        Command::LeaseExpire { lease, issued_by } => {
            w.u8(4);
            w.varint(lease.get());
            w.varint(issued_by.term);
            w.fixed_u64(issued_by.node.get());
        }
        Command::ClientOpen { ttl_ms } => {
            w.u8(5);
            w.varint(*ttl_ms);
        }
        Command::ClientClose { client } => {
            w.u8(6);
            w.varint(client.get());
        }
        Command::Resolve { client, seq } => {
            w.u8(7);
            w.varint(client.get());
            w.varint(*seq);
        }
        Command::Compact { floor } => {
            w.u8(8);
            w.varint(floor.get());
        }
        Command::ClusterVersion { version } => {
            w.u8(9);
            w.varint((*version).into());
        }
    }
}

fn read_command(r: &mut Reader) -> Result<Command, DecodeError> {
    Ok(match r.u8("command")? {
        1 => Command::Txn(Txn {
            compares: r.list("compares", read_compare)?,
            then: r.list("then", read_op)?,
            otherwise: r.list("otherwise", read_op)?,
        }),
        2 => Command::LeaseGrant { ttl_ms: r.varint("ttl")? },
        3 => Command::LeaseRevoke { lease: read_lease(r)? },
        4 => {
            let lease = read_lease(r)?;
            let term = r.varint("issuer's term")?;
            let node = NodeId::new(r.fixed_u64("issuer")?);
            Command::LeaseExpire { lease, issued_by: LeaderId { term, node } }
        }
        5 => Command::ClientOpen { ttl_ms: r.varint("ttl")? },
        6 => Command::ClientClose { client: read_client(r)? },
        7 => Command::Resolve { client: read_client(r)?, seq: r.varint("seq")? },
        8 => Command::Compact { floor: read_revision(r)? },
        9 => Command::ClusterVersion { version: r.varint_u32("cluster version")? },
        tag => return unknown("command", tag),
    })
}

fn write_range(w: &mut Writer, keys: &KeyRange) {
    match (keys.as_single(), &keys.end) {
        (Some(key), _) => {
            w.u8(1);
            w.bytes(key);
        }
        (None, Some(end)) => {
            w.u8(2);
            w.bytes(&keys.start);
            w.bytes(end);
        }
        (None, None) => {
            w.u8(3);
            w.bytes(&keys.start);
        }
    }
}

fn read_range(r: &mut Reader) -> Result<KeyRange, DecodeError> {
    Ok(match r.u8("range")? {
        1 => KeyRange::single(r.bytes("key")?),
        2 => KeyRange { start: r.bytes("range start")?, end: Some(r.bytes("range end")?) },
        3 => KeyRange { start: r.bytes("range start")?, end: None },
        tag => return unknown("range", tag),
    })
}

fn write_compare(w: &mut Writer, compare: &Compare) {
    write_range(w, &compare.keys);
    match &compare.test {
        Test::Value(order, value) => {
            w.u8(1);
            write_order(w, *order);
            w.bytes(value);
        }
        Test::Created(order, revision) => {
            w.u8(2);
            write_order(w, *order);
            w.varint(revision.get());
        }
        Test::Modified(order, revision) => {
            w.u8(3);
            write_order(w, *order);
            w.varint(revision.get());
        }
        Test::Version(order, version) => {
            w.u8(4);
            write_order(w, *order);
            w.varint(*version);
        }
        Test::Lease(lease) => {
            w.u8(5);
            w.option(*lease, |w, lease| w.varint(lease.get()));
        }
        Test::Absent => w.u8(6),
        Test::Present => w.u8(7),
        Test::UnchangedSince(revision) => {
            w.u8(8);
            w.varint(revision.get());
        }
    }
}

fn read_compare(r: &mut Reader) -> Result<Compare, DecodeError> {
    let keys = read_range(r)?;
    let test = match r.u8("compare")? {
        1 => Test::Value(read_order(r)?, r.bytes("compared value")?),
        2 => Test::Created(read_order(r)?, read_revision(r)?),
        3 => Test::Modified(read_order(r)?, read_revision(r)?),
        4 => Test::Version(read_order(r)?, r.varint("compared version")?),
        5 => Test::Lease(r.option("compared lease", read_lease)?),
        6 => Test::Absent,
        7 => Test::Present,
        8 => Test::UnchangedSince(read_revision(r)?),
        tag => return unknown("compare", tag),
    };
    Ok(Compare { keys, test })
}

fn write_order(w: &mut Writer, order: Order) {
    w.u8(match order {
        Order::Equal => 1,
        Order::NotEqual => 2,
        Order::Less => 3,
        Order::LessOrEqual => 4,
        Order::Greater => 5,
        Order::GreaterOrEqual => 6,
    });
}

fn read_order(r: &mut Reader) -> Result<Order, DecodeError> {
    Ok(match r.u8("order")? {
        1 => Order::Equal,
        2 => Order::NotEqual,
        3 => Order::Less,
        4 => Order::LessOrEqual,
        5 => Order::Greater,
        6 => Order::GreaterOrEqual,
        tag => return unknown("order", tag),
    })
}

fn write_op(w: &mut Writer, op: &Op) {
    match op {
        Op::Put { key, value, lease, prev } => {
            w.u8(1);
            w.bytes(key);
            w.bytes(value);
            write_attach(w, *lease);
            w.bool(*prev);
        }
        Op::Delete { keys, prev } => {
            w.u8(2);
            write_range(w, keys);
            w.bool(*prev);
        }
        Op::Get { key } => {
            w.u8(3);
            w.bytes(key);
        }
        Op::Range { keys, limit, reverse } => {
            w.u8(4);
            write_range(w, keys);
            w.varint((*limit).into());
            w.bool(*reverse);
        }
    }
}

fn read_op(r: &mut Reader) -> Result<Op, DecodeError> {
    Ok(match r.u8("operation")? {
        1 => Op::Put {
            key: r.bytes("key")?,
            value: r.bytes("value")?,
            lease: read_attach(r)?,
            prev: r.bool("prev wanted")?,
        },
        2 => Op::Delete { keys: read_range(r)?, prev: r.bool("prev wanted")? },
        3 => Op::Get { key: r.bytes("key")? },
        4 => {
            Op::Range { keys: read_range(r)?, limit: r.varint_u32("range limit")?, reverse: r.bool("range direction")? }
        }
        tag => return unknown("operation", tag),
    })
}

fn write_attach(w: &mut Writer, attach: Attach) {
    match attach {
        Attach::Forever => w.u8(1),
        Attach::Lease(lease) => {
            w.u8(2);
            w.varint(lease.get());
        }
        Attach::Ttl { ttl_ms } => {
            w.u8(3);
            w.varint(ttl_ms);
        }
    }
}

fn read_attach(r: &mut Reader) -> Result<Attach, DecodeError> {
    Ok(match r.u8("attachment")? {
        1 => Attach::Forever,
        2 => Attach::Lease(read_lease(r)?),
        3 => Attach::Ttl { ttl_ms: r.varint("ttl")? },
        tag => return unknown("attachment", tag),
    })
}

fn write_response(w: &mut Writer, response: &Response) {
    match response {
        Response::Txn(txn) => {
            w.u8(1);
            write_txn_response(w, txn);
        }
        Response::Granted { lease, ttl_ms, revision } => {
            w.u8(2);
            w.varint(lease.get());
            w.varint(*ttl_ms);
            w.varint(revision.get());
        }
        Response::LeaseEnded { deleted, revision } => {
            w.u8(3);
            w.varint(*deleted);
            w.varint(revision.get());
        }
        Response::ExpiryVoid => w.u8(4),
        Response::ClientOpened { client, lease } => {
            w.u8(5);
            w.varint(client.get());
            w.varint(lease.get());
        }
        Response::ClientClosed => w.u8(6),
        Response::Resolved(resolution) => {
            w.u8(7);
            write_resolution(w, *resolution);
        }
        Response::Compacted { floor } => {
            w.u8(8);
            w.varint(floor.get());
        }
        Response::Version { version } => {
            w.u8(9);
            w.varint((*version).into());
        }
        Response::Refused(refusal) => {
            w.u8(10);
            write_refusal(w, refusal);
        }
    }
}

fn read_response(r: &mut Reader) -> Result<Response, DecodeError> {
    Ok(match r.u8("response")? {
        1 => Response::Txn(read_txn_response(r)?),
        2 => Response::Granted { lease: read_lease(r)?, ttl_ms: r.varint("ttl")?, revision: read_revision(r)? },
        3 => Response::LeaseEnded { deleted: r.varint("deleted")?, revision: read_revision(r)? },
        4 => Response::ExpiryVoid,
        5 => Response::ClientOpened { client: read_client(r)?, lease: read_lease(r)? },
        6 => Response::ClientClosed,
        7 => Response::Resolved(read_resolution(r)?),
        8 => Response::Compacted { floor: read_revision(r)? },
        9 => Response::Version { version: r.varint_u32("cluster version")? },
        10 => Response::Refused(read_refusal(r)?),
        tag => return unknown("response", tag),
    })
}

fn write_txn_response(w: &mut Writer, txn: &TxnResponse) {
    w.varint(txn.revision.get());
    w.bool(txn.changed);
    w.option(txn.failed, |w, place| w.varint(place.into()));
    w.list(&txn.results, write_result);
    w.bool(txn.elided);
}

fn read_txn_response(r: &mut Reader) -> Result<TxnResponse, DecodeError> {
    Ok(TxnResponse {
        revision: read_revision(r)?,
        changed: r.bool("changed")?,
        failed: r.option("failed compare", |r| r.varint_u32("failed compare"))?,
        results: r.list("results", read_result)?,
        elided: r.bool("elided")?,
    })
}

fn write_result(w: &mut Writer, result: &OpResult) {
    match result {
        OpResult::Put { prev, lease } => {
            w.u8(1);
            w.option(prev.as_ref(), write_key_value);
            w.option(*lease, |w, lease| w.varint(lease.get()));
        }
        OpResult::Delete { deleted, prev } => {
            w.u8(2);
            w.varint(*deleted);
            w.list(prev, write_key_value);
        }
        OpResult::Get(entry) => {
            w.u8(3);
            w.option(entry.as_ref(), write_key_value);
        }
        OpResult::Range { entries, more } => {
            w.u8(4);
            w.list(entries, write_key_value);
            w.bool(*more);
        }
    }
}

fn read_result(r: &mut Reader) -> Result<OpResult, DecodeError> {
    Ok(match r.u8("result")? {
        1 => OpResult::Put { prev: r.option("prev", read_key_value)?, lease: r.option("lease", read_lease)? },
        2 => OpResult::Delete { deleted: r.varint("deleted")?, prev: r.list("prev", read_key_value)? },
        3 => OpResult::Get(r.option("entry", read_key_value)?),
        4 => OpResult::Range { entries: r.list("entries", read_key_value)?, more: r.bool("more")? },
        tag => return unknown("result", tag),
    })
}

pub(super) fn write_key_value(w: &mut Writer, entry: &KeyValue) {
    w.bytes(&entry.key);
    w.bytes(&entry.value);
    w.varint(entry.created.get());
    w.varint(entry.modified.get());
    w.varint(entry.version);
    w.option(entry.lease, |w, lease| w.varint(lease.get()));
    w.option(entry.ttl_ms, Writer::varint);
}

pub(super) fn read_key_value(r: &mut Reader) -> Result<KeyValue, DecodeError> {
    Ok(KeyValue {
        key: r.bytes("key")?,
        value: r.bytes("value")?,
        created: read_revision(r)?,
        modified: read_revision(r)?,
        version: r.varint("version")?,
        lease: r.option("lease", read_lease)?,
        ttl_ms: r.option("ttl", |r| r.varint("ttl"))?,
    })
}

fn write_resolution(w: &mut Writer, resolution: Resolution) {
    match resolution {
        Resolution::Applied(revision) => {
            w.u8(1);
            w.varint(revision.get());
        }
        Resolution::NoEffect => w.u8(2),
        Resolution::Never => w.u8(3),
        Resolution::Unknowable => w.u8(4),
    }
}

fn read_resolution(r: &mut Reader) -> Result<Resolution, DecodeError> {
    Ok(match r.u8("resolution")? {
        1 => Resolution::Applied(read_revision(r)?),
        2 => Resolution::NoEffect,
        3 => Resolution::Never,
        4 => Resolution::Unknowable,
        tag => return unknown("resolution", tag),
    })
}

fn write_refusal(w: &mut Writer, refusal: &Refusal) {
    match refusal {
        Refusal::UnknownClient => w.u8(1),
        Refusal::Forgotten { low } => {
            w.u8(2);
            w.varint(*low);
        }
        Refusal::TooFarAhead { limit } => {
            w.u8(3);
            w.varint(*limit);
        }
        Refusal::Sealed => w.u8(4),
        Refusal::LeaseNotFound { lease } => {
            w.u8(5);
            w.varint(lease.get());
        }
        Refusal::DuplicateKey { key } => {
            w.u8(6);
            w.bytes(key);
        }
        Refusal::TooManyClients { limit } => {
            w.u8(7);
            w.varint(*limit);
        }
        Refusal::VersionInForce { version } => {
            w.u8(8);
            w.varint((*version).into());
        }
    }
}

fn read_refusal(r: &mut Reader) -> Result<Refusal, DecodeError> {
    Ok(match r.u8("refusal")? {
        1 => Refusal::UnknownClient,
        2 => Refusal::Forgotten { low: r.varint("low")? },
        3 => Refusal::TooFarAhead { limit: r.varint("limit")? },
        4 => Refusal::Sealed,
        5 => Refusal::LeaseNotFound { lease: read_lease(r)? },
        6 => Refusal::DuplicateKey { key: r.bytes("key")? },
        7 => Refusal::TooManyClients { limit: r.varint("limit")? },
        8 => Refusal::VersionInForce { version: r.varint_u32("cluster version")? },
        tag => return unknown("refusal", tag),
    })
}

pub(super) fn read_revision(r: &mut Reader) -> Result<Revision, DecodeError> {
    r.varint("revision").map(Revision::new)
}

pub(super) fn read_lease(r: &mut Reader) -> Result<LeaseId, DecodeError> {
    r.varint("lease").map(LeaseId::new)
}

pub(super) fn read_client(r: &mut Reader) -> Result<ClientId, DecodeError> {
    r.varint("client").map(ClientId::new)
}
