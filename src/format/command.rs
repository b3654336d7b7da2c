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

const PROPOSAL_FORMAT: u8 = 1;
const RESPONSE_FORMAT: u8 = 1;

pub(crate) fn encode_proposal(proposal: &Proposal) -> Bytes {
    let Proposal { origin, wall_ms, stamp, command } = proposal;
    let mut w = Writer::with_capacity(64 + payload(command));
    put_proposal(&mut w, *origin, *wall_ms, *stamp, |w| write_command(w, command));
    w.finish()
}

/// The end of an encoded proposal: what does not change however often it is sent.
pub(crate) fn encode_command(command: &Command) -> Bytes {
    let mut w = Writer::with_capacity(16 + payload(command));
    write_command(&mut w, command);
    w.finish()
}

/// Appends what [`encode_proposal`] would return, if `command` writes what [`encode_command`] would.
pub(crate) fn put_proposal(
    w: &mut Writer,
    origin: NodeId,
    wall_ms: u64,
    stamp: Option<Stamp>,
    command: impl FnOnce(&mut Writer),
) {
    w.u8(PROPOSAL_FORMAT);
    w.fixed_u64(origin.get());
    w.varint(wall_ms);
    w.option(stamp, |w, stamp| {
        w.varint(stamp.client.get());
        w.varint(stamp.seq);
        w.varint(stamp.low);
    });
    command(w);
}

/// About as many bytes as the command takes: those of what it puts.
fn payload(command: &Command) -> usize {
    let Command::Txn(txn) = command else { return 0 };
    let put = |op: &Op| match op {
        Op::Put { key, value, .. } => key.len() + value.len() + 16,
        _ => 32,
    };
    txn.then.iter().chain(&txn.otherwise).map(put).sum()
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
    put_response(&mut w, response);
    w.finish()
}

/// Appends what [`encode_response`] would return.
pub(super) fn put_response(w: &mut Writer, response: &Response) {
    w.u8(RESPONSE_FORMAT);
    write_response(w, response);
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
            then: r.few("then", read_op)?,
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
        results: r.few("results", read_result)?,
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

fn write_key_value(w: &mut Writer, entry: &KeyValue) {
    w.bytes(&entry.key);
    w.bytes(&entry.value);
    w.varint(entry.created.get());
    w.varint(entry.modified.get());
    w.varint(entry.version);
    w.option(entry.lease, |w, lease| w.varint(lease.get()));
    w.option(entry.ttl_ms, Writer::varint);
}

fn read_key_value(r: &mut Reader) -> Result<KeyValue, DecodeError> {
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

#[cfg(test)]
mod tests {
    use super::super::wire::golden::pinned;
    use super::*;

    fn proposal(command: Command) -> Proposal {
        Proposal { origin: NodeId::new(0x0102), wall_ms: 3, stamp: None, command }
    }

    fn key(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn compare(test: Test) -> Command {
        Command::Txn(Txn { compares: vec![Compare { keys: KeyRange::single(key("k")), test }], ..Txn::default() })
    }

    fn op(op: Op) -> Command {
        Command::Txn(Txn { then: [op].into(), ..Txn::default() })
    }

    fn put(lease: Attach) -> Command {
        op(Op::Put { key: key("k"), value: key("v"), lease, prev: false })
    }

    fn delete(keys: KeyRange) -> Command {
        op(Op::Delete { keys, prev: true })
    }

    fn entry() -> KeyValue {
        let (created, modified) = (Revision::new(5), Revision::new(300));
        KeyValue { key: key("k"), value: key("v"), created, modified, version: 2, lease: None, ttl_ms: None }
    }

    #[test]
    fn a_proposal_starts_with_its_sender_and_its_number() {
        let command = Command::LeaseGrant { ttl_ms: 1 };
        let stamp = Some(Stamp { client: ClientId::new(7), seq: 300, low: 299 });
        let stamped = Proposal { origin: NodeId::new(u64::MAX), wall_ms: 1_700_000_000_000, stamp, command };
        pinned(encode_proposal, decode_proposal, &[(stamped, "01ffffffffffffffff80d095ffbc310107ac02ab020201")]);
    }

    #[test]
    fn every_command_keeps_its_bytes() {
        let issued_by = LeaderId { term: 9, node: NodeId::new(0xabcd) };
        let (lease, client) = (LeaseId::new(300), ClientId::new(7));
        let golden = [
            (Command::Txn(Txn::default()), "010201000000000000030001000000"),
            (Command::LeaseGrant { ttl_ms: 10_000 }, "010201000000000000030002904e"),
            (Command::LeaseRevoke { lease }, "010201000000000000030003ac02"),
            (Command::LeaseExpire { lease, issued_by }, "010201000000000000030004ac0209cdab000000000000"),
            (Command::ClientOpen { ttl_ms: 10_000 }, "010201000000000000030005904e"),
            (Command::ClientClose { client }, "01020100000000000003000607"),
            (Command::Resolve { client, seq: 300 }, "01020100000000000003000707ac02"),
            (Command::Compact { floor: Revision::new(1 << 40) }, "010201000000000000030008808080808020"),
            (Command::ClusterVersion { version: 2 }, "01020100000000000003000902"),
        ];
        pinned(encode_proposal, decode_proposal, &golden.map(|(command, hex)| (proposal(command), hex)));
    }

    #[test]
    fn every_part_of_a_transaction_keeps_its_bytes() {
        let (revision, lease) = (Revision::new(300), LeaseId::new(300));
        let golden = [
            (compare(Test::Value(Order::Equal, key("v"))), "0102010000000000000300010101016b010101760000"),
            (compare(Test::Created(Order::NotEqual, revision)), "0102010000000000000300010101016b0202ac020000"),
            (compare(Test::Modified(Order::Less, revision)), "0102010000000000000300010101016b0303ac020000"),
            (compare(Test::Version(Order::LessOrEqual, 2)), "0102010000000000000300010101016b0404020000"),
            (compare(Test::Version(Order::Greater, 2)), "0102010000000000000300010101016b0405020000"),
            (compare(Test::Version(Order::GreaterOrEqual, 2)), "0102010000000000000300010101016b0406020000"),
            (compare(Test::Lease(None)), "0102010000000000000300010101016b05000000"),
            (compare(Test::Lease(Some(lease))), "0102010000000000000300010101016b0501ac020000"),
            (compare(Test::Absent), "0102010000000000000300010101016b060000"),
            (compare(Test::Present), "0102010000000000000300010101016b070000"),
            (compare(Test::UnchangedSince(revision)), "0102010000000000000300010101016b08ac020000"),
            (put(Attach::Forever), "010201000000000000030001000101016b0176010000"),
            (put(Attach::Lease(lease)), "010201000000000000030001000101016b017602ac020000"),
            (put(Attach::Ttl { ttl_ms: 10_000 }), "010201000000000000030001000101016b017603904e0000"),
            (delete(KeyRange::single(key("k"))), "01020100000000000003000100010201016b0100"),
            (delete(KeyRange::prefix(key("k"))), "01020100000000000003000100010202016b016c0100"),
            (delete(KeyRange { start: key("k"), end: None }), "01020100000000000003000100010203016b0100"),
            (op(Op::Get { key: key("k") }), "010201000000000000030001000103016b00"),
            (
                op(Op::Range { keys: KeyRange::prefix(key("k")), limit: 100, reverse: true }),
                "01020100000000000003000100010402016b016c640100",
            ),
            (
                Command::Txn(Txn {
                    compares: vec![Compare { keys: KeyRange::single(key("k")), test: Test::Absent }],
                    then: [Op::Get { key: key("t") }].into(),
                    otherwise: vec![Op::Get { key: key("o") }],
                }),
                "0102010000000000000300010101016b06010301740103016f",
            ),
        ];
        pinned(encode_proposal, decode_proposal, &golden.map(|(command, hex)| (proposal(command), hex)));
    }

    #[test]
    fn every_response_keeps_its_bytes() {
        let (revision, lease, client) = (Revision::new(300), LeaseId::new(300), ClientId::new(7));
        let txn = |results: Vec<OpResult>| TxnResponse {
            results: results.into(),
            revision,
            changed: true,
            failed: None,
            elided: false,
        };
        let full = KeyValue { lease: Some(lease), ttl_ms: Some(10_000), ..entry() };
        let refused = Response::Refused;
        pinned(
            encode_response,
            decode_response,
            &[
                (Response::Txn(txn(vec![])), "0101ac0201000000"),
                (
                    Response::Txn(TxnResponse { changed: false, failed: Some(2), elided: true, ..txn(vec![]) }),
                    "0101ac020001020001",
                ),
                (
                    Response::Txn(txn(vec![OpResult::Put { prev: None, lease: Some(lease) }])),
                    "0101ac02010001010001ac0200",
                ),
                (
                    Response::Txn(txn(vec![OpResult::Put { prev: Some(full), lease: None }])),
                    "0101ac020100010101016b017605ac020201ac0201904e0000",
                ),
                (
                    Response::Txn(txn(vec![OpResult::Delete { deleted: 300, prev: vec![entry()] }])),
                    "0101ac0201000102ac0201016b017605ac0202000000",
                ),
                (
                    Response::Txn(txn(vec![OpResult::Get(None), OpResult::Get(Some(entry()))])),
                    "0101ac0201000203000301016b017605ac0202000000",
                ),
                (
                    Response::Txn(txn(vec![OpResult::Range { entries: vec![entry(), entry()], more: true }])),
                    "0101ac020100010402016b017605ac02020000016b017605ac020200000100",
                ),
                (Response::Granted { lease, ttl_ms: 10_000, revision }, "0102ac02904eac02"),
                (Response::LeaseEnded { deleted: 3, revision }, "010303ac02"),
                (Response::ExpiryVoid, "0104"),
                (Response::ClientOpened { client, lease }, "010507ac02"),
                (Response::ClientClosed, "0106"),
                (Response::Resolved(Resolution::Applied(revision)), "010701ac02"),
                (Response::Resolved(Resolution::NoEffect), "010702"),
                (Response::Resolved(Resolution::Never), "010703"),
                (Response::Resolved(Resolution::Unknowable), "010704"),
                (Response::Compacted { floor: revision }, "0108ac02"),
                (Response::Version { version: 2 }, "010902"),
                (refused(Refusal::UnknownClient), "010a01"),
                (refused(Refusal::Forgotten { low: 300 }), "010a02ac02"),
                (refused(Refusal::TooFarAhead { limit: 4096 }), "010a038020"),
                (refused(Refusal::Sealed), "010a04"),
                (refused(Refusal::LeaseNotFound { lease }), "010a05ac02"),
                (refused(Refusal::DuplicateKey { key: key("k") }), "010a06016b"),
                (refused(Refusal::TooManyClients { limit: 10_000 }), "010a07904e"),
                (refused(Refusal::VersionInForce { version: 3 }), "010a0803"),
            ],
        );
    }

    #[test]
    fn a_command_of_a_newer_release_is_told_from_a_damaged_one() {
        let known = encode_proposal(&proposal(Command::ClusterVersion { version: 2 }));
        let tag_at = known.len() - 2;
        let with = |place: usize, byte: u8| {
            let mut bytes = known.to_vec();
            bytes[place] = byte;
            decode_proposal(bytes.into())
        };
        let unknown_command = with(tag_at, 10);
        assert_eq!(unknown_command, Err(DecodeError::UnknownTag { what: "command", tag: 10 }));
        assert!(unknown_command.is_err_and(|error| error.is_newer()));
        let unknown_format = with(0, PROPOSAL_FORMAT + 1);
        assert!(unknown_format.as_ref().is_err_and(DecodeError::is_newer), "{unknown_format:?}");
        let cut = decode_proposal(known.slice(..tag_at));
        assert!(cut.as_ref().is_err_and(|error| !error.is_newer()), "{cut:?}");
    }

    #[test]
    fn keys_and_values_are_slices_of_the_entry_they_came_in() {
        let entry = encode_proposal(&proposal(put(Attach::Forever)));
        let whole = entry.as_ptr_range();
        let Command::Txn(txn) = decode_proposal(entry.clone()).unwrap().command else { panic!("a transaction") };
        let Op::Put { key, value, .. } = &txn.then[0] else { panic!("a put") };
        assert!(whole.contains(&key.as_ptr()) && whole.contains(&value.as_ptr()));
    }

    #[test]
    fn a_command_that_was_encoded_before_makes_the_same_proposal() {
        for sample in samples().0 {
            let Proposal { origin, wall_ms, stamp, command } = decode_proposal(sample.clone()).unwrap();
            let (mut w, command) = (Writer::default(), encode_command(&command));
            put_proposal(&mut w, origin, wall_ms, stamp, |w| w.raw(&command));
            assert_eq!(w.finish(), sample);
        }
    }

    /// Whatever the bytes, decoding neither panics nor reads two spellings of what it would write differently the second
    /// time.
    #[test]
    fn damaged_bytes_are_refused_or_mean_something_that_can_be_written() {
        let (proposals, responses) = samples();
        let mut read = 0;
        for sample in proposals {
            for bytes in damaged(&sample) {
                if let Ok(proposal) = decode_proposal(bytes) {
                    assert_eq!(decode_proposal(encode_proposal(&proposal)), Ok(proposal));
                    read += 1;
                }
            }
        }
        for sample in responses {
            for bytes in damaged(&sample) {
                if let Ok(response) = decode_response(bytes) {
                    assert_eq!(decode_response(encode_response(&response)), Ok(response));
                    read += 1;
                }
            }
        }
        assert!(read > 1000, "only {read} of the damaged samples could be read: the test has become vacuous");
    }

    fn samples() -> (Vec<Bytes>, Vec<Bytes>) {
        let txn = Txn {
            compares: vec![Compare { keys: KeyRange::prefix(key("p")), test: Test::Value(Order::Less, key("v")) }],
            then: vec![
                Op::Put { key: key("key"), value: key("value"), lease: Attach::Ttl { ttl_ms: 10_000 }, prev: true },
                Op::Range { keys: KeyRange::single(key("s")), limit: 9, reverse: false },
            ]
            .into(),
            otherwise: vec![Op::Delete { keys: KeyRange { start: key("k"), end: None }, prev: false }],
        };
        let proposals =
            vec![encode_proposal(&proposal(Command::Txn(txn))), encode_proposal(&proposal(put(Attach::Forever)))];
        let results = vec![
            OpResult::Range { entries: vec![entry(), entry()], more: true },
            OpResult::Delete { deleted: 1, prev: vec![entry()] },
        ];
        let revision = Revision::new(9);
        let txn = TxnResponse { revision, changed: true, failed: Some(1), results: results.into(), elided: false };
        (proposals, vec![encode_response(&Response::Txn(txn))])
    }

    /// Every byte replaced by every other one.
    fn damaged(sample: &Bytes) -> impl Iterator<Item = Bytes> {
        (0..sample.len()).flat_map(move |place| {
            (0..=u8::MAX).map(move |byte| {
                let mut bytes = sample.to_vec();
                bytes[place] = byte;
                Bytes::from(bytes)
            })
        })
    }
}
