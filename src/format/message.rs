//! Frames between nodes: an envelope that says whose they are, and one request or reply.
//!
//! Layout: CRC-32 over the rest, version byte, cluster id (or none), sender, sender's incarnation, target, nonce, kind,
//! body. A reply repeats the request's nonce. Versioned as a whole; there is one version so far, and a frame of another one is
//! refused.

use bytes::Bytes;

use super::parts;
use super::wire::{DecodeError, Reader, Writer, unseal};
use crate::types::{
    Account, ClusterId, Incarnation, LeaderId, LeaseId, LogEntry, LogId, Milestone, NodeId, ShortDisk,
    StoredMembership, Vote,
};

/// The only version so far.
const VERSION: u8 = 1;

/// Who a frame is from, whom it is for, and which question it answers.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// `None` only while a cluster is being formed.
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) from: NodeId,
    /// The life of the sender's data directory: tells a copy of it from what has become of it.
    pub(crate) incarnation: Incarnation,
    /// `None` while the sender does not know the target's id.
    pub(crate) to: Option<NodeId>,
    /// Drawn per request; a reply repeats it.
    pub(crate) nonce: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Entries (or none: a heartbeat), numbered within their stream so that early ones can be held back.
    Append {
        stream: u64,
        seq: u64,
        vote: Vote,
        prev: Option<LogId>,
        entries: Vec<LogEntry>,
        commit: Option<LogId>,
    },
    Vote {
        pre: bool,
        vote: Vote,
        last: Option<LogId>,
        transfer: bool,
    },
    TransferLeader {
        from: Vote,
        to: NodeId,
        last: Option<LogId>,
    },
    SnapshotBegin {
        session: u64,
        vote: Vote,
        applied: Option<LogId>,
        membership: StoredMembership,
    },
    SnapshotChunk {
        session: u64,
        index: u64,
        chunk: Bytes,
    },
    SnapshotFinish {
        session: u64,
        vote: Vote,
    },
    /// Reminds a follower that it has acknowledged the entries up to `index` to the leader of `vote`.
    Reminder {
        vote: Vote,
        index: u64,
    },
    /// Tells a member that what it said in this life is taken for the words of a copy. See [`Reply::Copied`].
    Copied {
        incarnation: Incarnation,
    },
    /// Encoded proposals for the leader's log, in order.
    Propose {
        proposals: Vec<Bytes>,
    },
    /// Asks the leader for the index a linearizable read must wait for.
    ReadIndex,
    /// Renews leases.
    KeepAlive {
        leases: Vec<LeaseId>,
    },
    /// Asks the leader how long a lease has left.
    Remaining {
        lease: LeaseId,
    },
    /// Asks a member how it is.
    Checkup,
    /// First words of a node that would form a cluster: its name and its list of peers.
    Hello {
        name: String,
        peers: Vec<String>,
        promised: Option<ClusterId>,
    },
    /// Asks the receiver to be part of `cluster` and of no other.
    Promise {
        name: String,
        peers: Vec<String>,
        cluster: ClusterId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Append(AppendReply),
    Vote {
        vote: Vote,
        granted: bool,
        last: Option<LogId>,
    },
    /// Empty: accepted. Otherwise why not.
    Transferred {
        refused: Option<String>,
    },
    /// A step of a snapshot was taken, or why not.
    Snapshot {
        refused: Option<String>,
    },
    SnapshotInstalled {
        vote: Vote,
    },
    /// One answer per proposal: the encoded response, or `None` when its fate is unknown here.
    Proposed {
        answers: Vec<Option<Bytes>>,
    },
    ReadIndex {
        index: u64,
    },
    /// One per lease asked about.
    KeptAlive {
        results: Vec<KeepAlive>,
    },
    Remaining {
        left_ms: Option<u64>,
        ttl_ms: u64,
    },
    /// The receiver does not lead, and did nothing.
    NotLeader {
        leader: Option<LeaderId>,
    },
    /// The receiver leads but has no room or no quorum now, and did nothing.
    Busy {
        what: String,
    },
    Hello {
        name: String,
        peers: Vec<String>,
        holds_data: bool,
        promised: Option<ClusterId>,
    },
    Promised {
        holds_data: bool,
        promised: Option<ClusterId>,
    },
    /// What the state was behind fixed entries, and the disk's room if that is short.
    Checkup {
        /// Of the state's digests; only equal ones can be compared.
        version: u64,
        account: Account,
        short: Option<ShortDisk>,
    },
    /// Answers a reminder: whether the entries are there.
    Reminded {
        held: bool,
    },
    /// The asker's data directory is a copy of one that has spoken since, or an older state of it. Nothing was served.
    Copied,
    /// The request could not be served; nothing more is known.
    Failed {
        why: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AppendReply {
    Success,
    Partial(Option<LogId>),
    Conflict,
    HigherVote(Vote),
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeepAlive {
    /// Holds for another full time to live, counted from when the renewal was sent.
    Renewed {
        ttl_ms: u64,
    },
    NotFound,
}

impl Header {
    fn write(&self, w: &mut Writer) {
        w.option(self.cluster, |w, cluster| w.fixed_u128(cluster.get()));
        w.fixed_u64(self.from.get());
        w.fixed_u64(self.incarnation.bits());
        w.option(self.to, |w, to| w.fixed_u64(to.get()));
        w.fixed_u64(self.nonce);
    }

    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Header {
            cluster: r.option("cluster", |r| Ok(ClusterId::new(r.fixed_u128("cluster")?)))?,
            from: NodeId::new(r.fixed_u64("sender")?),
            incarnation: Incarnation::from_bits(r.fixed_u64("incarnation")?),
            to: r.option("target", |r| Ok(NodeId::new(r.fixed_u64("target")?)))?,
            nonce: r.fixed_u64("nonce")?,
        })
    }
}

pub(crate) fn encode_request(header: &Header, request: &Request) -> Bytes {
    frame(header, 256 + request.size_hint(), |w| request.write(w))
}

pub(crate) fn decode_request(frame: Bytes) -> Result<(Header, Request), DecodeError> {
    let mut r = open(frame)?;
    let header = Header::read(&mut r)?;
    let request = Request::read(&mut r)?;
    r.end("request")?;
    Ok((header, request))
}

pub(crate) fn encode_reply(header: &Header, reply: &Reply) -> Bytes {
    frame(header, 256 + reply.size_hint(), |w| reply.write(w))
}

pub(crate) fn decode_reply(frame: Bytes) -> Result<(Header, Reply), DecodeError> {
    let mut r = open(frame)?;
    let header = Header::read(&mut r)?;
    let reply = Reply::read(&mut r)?;
    r.end("reply")?;
    Ok((header, reply))
}

fn frame(header: &Header, capacity: usize, body: impl FnOnce(&mut Writer)) -> Bytes {
    let mut w = Writer::sealing(capacity);
    w.u8(VERSION);
    header.write(&mut w);
    body(&mut w);
    w.seal()
}

fn open(frame: Bytes) -> Result<Reader, DecodeError> {
    let mut r = Reader::new(unseal(frame, "frame")?);
    match r.u8("frame version")? {
        VERSION => Ok(r),
        found => Err(DecodeError::UnknownVersion { what: "frame", found: found.into(), known: VERSION.into() }),
    }
}

impl Request {
    fn size_hint(&self) -> usize {
        match self {
            Request::Append { entries, .. } => entries.iter().map(parts::entry_size_hint).sum(),
            Request::SnapshotChunk { chunk, .. } => chunk.len(),
            Request::Propose { proposals } => proposals.iter().map(|p| p.len() + 4).sum(),
            _ => 0,
        }
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Request::Append { stream, seq, vote, prev, entries, commit } => {
                w.u8(1);
                w.fixed_u64(*stream);
                w.varint(*seq);
                parts::put_vote(w, vote);
                w.option(*prev, parts::put_log_id);
                w.list(entries, parts::put_entry);
                w.option(*commit, parts::put_log_id);
            }
            Request::Vote { pre, vote, last, transfer } => {
                w.u8(2);
                w.bool(*pre);
                parts::put_vote(w, vote);
                w.option(*last, parts::put_log_id);
                w.bool(*transfer);
            }
            Request::TransferLeader { from, to, last } => {
                w.u8(3);
                parts::put_vote(w, from);
                w.fixed_u64(to.get());
                w.option(*last, parts::put_log_id);
            }
            Request::SnapshotBegin { session, vote, applied, membership } => {
                w.u8(4);
                w.fixed_u64(*session);
                parts::put_vote(w, vote);
                w.option(*applied, parts::put_log_id);
                parts::put_stored_membership(w, membership);
            }
            Request::SnapshotChunk { session, index, chunk } => {
                w.u8(5);
                w.fixed_u64(*session);
                w.varint(*index);
                w.bytes(chunk);
            }
            Request::SnapshotFinish { session, vote } => {
                w.u8(6);
                w.fixed_u64(*session);
                parts::put_vote(w, vote);
            }
            Request::Propose { proposals } => {
                w.u8(7);
                w.list(proposals, |w, p| w.bytes(p));
            }
            Request::ReadIndex => w.u8(8),
            Request::KeepAlive { leases } => {
                w.u8(9);
                w.list(leases, |w, lease| w.varint(lease.get()));
            }
            Request::Remaining { lease } => {
                w.u8(10);
                w.varint(lease.get());
            }
            Request::Hello { name, peers, promised } => {
                w.u8(11);
                w.str(name);
                w.list(peers, |w, peer| w.str(peer));
                w.option(*promised, |w, id| w.fixed_u128(id.get()));
            }
            Request::Promise { name, peers, cluster } => {
                w.u8(12);
                w.str(name);
                w.list(peers, |w, peer| w.str(peer));
                w.fixed_u128(cluster.get());
            }
            Request::Reminder { vote, index } => {
                w.u8(13);
                parts::put_vote(w, vote);
                w.varint(*index);
            }
            Request::Copied { incarnation } => {
                w.u8(14);
                w.fixed_u64(incarnation.bits());
            }
            Request::Checkup => w.u8(15),
        }
    }

    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match r.u8("request kind")? {
            1 => Request::Append {
                stream: r.fixed_u64("stream")?,
                seq: r.varint("seq")?,
                vote: parts::vote(r)?,
                prev: r.option("prev", parts::log_id)?,
                entries: r.list("entries", parts::entry)?,
                commit: r.option("commit", parts::log_id)?,
            },
            2 => Request::Vote {
                pre: r.bool("pre-vote")?,
                vote: parts::vote(r)?,
                last: r.option("last", parts::log_id)?,
                transfer: r.bool("transfer")?,
            },
            3 => Request::TransferLeader {
                from: parts::vote(r)?,
                to: NodeId::new(r.fixed_u64("to")?),
                last: r.option("last", parts::log_id)?,
            },
            4 => Request::SnapshotBegin {
                session: r.fixed_u64("session")?,
                vote: parts::vote(r)?,
                applied: r.option("applied", parts::log_id)?,
                membership: parts::stored_membership(r)?,
            },
            5 => Request::SnapshotChunk {
                session: r.fixed_u64("session")?,
                index: r.varint("chunk index")?,
                chunk: r.bytes("chunk")?,
            },
            6 => Request::SnapshotFinish { session: r.fixed_u64("session")?, vote: parts::vote(r)? },
            7 => Request::Propose { proposals: r.list("proposals", |r| r.bytes("proposal"))? },
            8 => Request::ReadIndex,
            9 => Request::KeepAlive { leases: r.list("leases", |r| Ok(LeaseId::new(r.varint("lease")?)))? },
            10 => Request::Remaining { lease: LeaseId::new(r.varint("lease")?) },
            11 => Request::Hello {
                name: r.str("name")?,
                peers: r.list("peers", |r| r.str("peer"))?,
                promised: r.option("promised", |r| Ok(ClusterId::new(r.fixed_u128("promised")?)))?,
            },
            12 => Request::Promise {
                name: r.str("name")?,
                peers: r.list("peers", |r| r.str("peer"))?,
                cluster: ClusterId::new(r.fixed_u128("cluster")?),
            },
            13 => Request::Reminder { vote: parts::vote(r)?, index: r.varint("index")? },
            14 => Request::Copied { incarnation: Incarnation::from_bits(r.fixed_u64("incarnation")?) },
            15 => Request::Checkup,
            tag => return Err(DecodeError::UnknownTag { what: "request kind", tag: tag.into() }),
        })
    }
}

impl Reply {
    fn size_hint(&self) -> usize {
        match self {
            Reply::Proposed { answers } => answers.iter().flatten().map(|a| a.len() + 5).sum(),
            _ => 0,
        }
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Reply::Append(reply) => {
                w.u8(1);
                match reply {
                    AppendReply::Success => w.u8(0),
                    AppendReply::Partial(upto) => {
                        w.u8(1);
                        w.option(*upto, parts::put_log_id);
                    }
                    AppendReply::Conflict => w.u8(2),
                    AppendReply::HigherVote(vote) => {
                        w.u8(3);
                        parts::put_vote(w, vote);
                    }
                }
            }
            Reply::Vote { vote, granted, last } => {
                w.u8(2);
                parts::put_vote(w, vote);
                w.bool(*granted);
                w.option(*last, parts::put_log_id);
            }
            Reply::Transferred { refused } => {
                w.u8(3);
                w.option(refused.as_ref(), |w, why| w.str(why));
            }
            Reply::Snapshot { refused } => {
                w.u8(4);
                w.option(refused.as_ref(), |w, why| w.str(why));
            }
            Reply::SnapshotInstalled { vote } => {
                w.u8(5);
                parts::put_vote(w, vote);
            }
            Reply::Proposed { answers } => {
                w.u8(6);
                w.list(answers, |w, answer| w.option(answer.as_ref(), |w, bytes| w.bytes(bytes)));
            }
            Reply::ReadIndex { index } => {
                w.u8(7);
                w.varint(*index);
            }
            Reply::KeptAlive { results } => {
                w.u8(8);
                w.list(results, |w, result| match result {
                    KeepAlive::NotFound => w.u8(0),
                    KeepAlive::Renewed { ttl_ms } => {
                        w.u8(1);
                        w.varint(*ttl_ms);
                    }
                });
            }
            Reply::Remaining { left_ms, ttl_ms } => {
                w.u8(9);
                w.option(*left_ms, Writer::varint);
                w.varint(*ttl_ms);
            }
            Reply::NotLeader { leader } => {
                w.u8(10);
                w.option(*leader, parts::put_leader);
            }
            Reply::Busy { what } => {
                w.u8(11);
                w.str(what);
            }
            Reply::Hello { name, peers, holds_data, promised } => {
                w.u8(12);
                w.str(name);
                w.list(peers, |w, peer| w.str(peer));
                w.bool(*holds_data);
                w.option(*promised, |w, id| w.fixed_u128(id.get()));
            }
            Reply::Promised { holds_data, promised } => {
                w.u8(13);
                w.bool(*holds_data);
                w.option(*promised, |w, id| w.fixed_u128(id.get()));
            }
            Reply::Failed { why } => {
                w.u8(14);
                w.str(why);
            }
            Reply::Reminded { held } => {
                w.u8(15);
                w.bool(*held);
            }
            Reply::Copied => w.u8(16),
            Reply::Checkup { version, account, short } => {
                w.u8(17);
                w.varint(*version);
                w.varint(account.since);
                w.list(&account.milestones, |w, milestone| {
                    w.varint(milestone.index);
                    w.fixed_u64(milestone.hash);
                });
                w.option(*short, |w, short| {
                    w.varint(short.free);
                    w.varint(short.reserve);
                });
            }
        }
    }

    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match r.u8("reply kind")? {
            1 => Reply::Append(match r.u8("append reply")? {
                0 => AppendReply::Success,
                1 => AppendReply::Partial(r.option("partial", parts::log_id)?),
                2 => AppendReply::Conflict,
                3 => AppendReply::HigherVote(parts::vote(r)?),
                tag => return Err(DecodeError::UnknownTag { what: "append reply", tag: tag.into() }),
            }),
            2 => Reply::Vote {
                vote: parts::vote(r)?,
                granted: r.bool("granted")?,
                last: r.option("last", parts::log_id)?,
            },
            3 => Reply::Transferred { refused: r.option("refused", |r| r.str("why"))? },
            4 => Reply::Snapshot { refused: r.option("refused", |r| r.str("why"))? },
            5 => Reply::SnapshotInstalled { vote: parts::vote(r)? },
            6 => Reply::Proposed { answers: r.list("answers", |r| r.option("answer", |r| r.bytes("answer")))? },
            7 => Reply::ReadIndex { index: r.varint("index")? },
            8 => Reply::KeptAlive {
                results: r.list("renewals", |r| match r.u8("renewal")? {
                    0 => Ok(KeepAlive::NotFound),
                    1 => Ok(KeepAlive::Renewed { ttl_ms: r.varint("ttl")? }),
                    tag => Err(DecodeError::UnknownTag { what: "renewal", tag: tag.into() }),
                })?,
            },
            9 => Reply::Remaining { left_ms: r.option("left", |r| r.varint("left"))?, ttl_ms: r.varint("ttl")? },
            10 => Reply::NotLeader { leader: r.option("leader", parts::leader)? },
            11 => Reply::Busy { what: r.str("what")? },
            12 => Reply::Hello {
                name: r.str("name")?,
                peers: r.list("peers", |r| r.str("peer"))?,
                holds_data: r.bool("holds data")?,
                promised: r.option("promised", |r| Ok(ClusterId::new(r.fixed_u128("promised")?)))?,
            },
            13 => Reply::Promised {
                holds_data: r.bool("holds data")?,
                promised: r.option("promised", |r| Ok(ClusterId::new(r.fixed_u128("promised")?)))?,
            },
            14 => Reply::Failed { why: r.str("why")? },
            15 => Reply::Reminded { held: r.bool("held")? },
            16 => Reply::Copied,
            17 => Reply::Checkup {
                version: r.varint("state version")?,
                account: Account {
                    since: r.varint("since")?,
                    milestones: r.list("milestones", |r| {
                        Ok(Milestone { index: r.varint("milestone")?, hash: r.fixed_u64("milestone's hash")? })
                    })?,
                },
                short: r.option("short disk", |r| {
                    Ok(ShortDisk { free: r.varint("free")?, reserve: r.varint("reserve")? })
                })?,
            },
            tag => return Err(DecodeError::UnknownTag { what: "reply kind", tag: tag.into() }),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::wire::golden::pinned;
    use super::*;
    use crate::format::wire::seal;
    use crate::types::{Membership, NodeInfo, Payload};

    const HEADER: Header = Header {
        cluster: Some(ClusterId::new(0xc1)),
        from: NodeId::new(0xa1),
        incarnation: Incarnation::from_bits(0x1c),
        to: Some(NodeId::new(0xb2)),
        nonce: 0x99,
    };

    fn log_id(index: u64) -> LogId {
        LogId { leader: LeaderId { term: 3, node: NodeId::new(0xa1) }, index }
    }

    fn vote() -> Vote {
        Vote { leader: log_id(0).leader, committed: true }
    }

    fn membership() -> Membership {
        let node = NodeId::new(0xa1);
        Membership {
            configs: vec![BTreeSet::from([node])],
            nodes: BTreeMap::from([(node, NodeInfo { name: "a".into(), address: "x:1".into() })]),
        }
    }

    fn requests() -> Vec<Request> {
        let entry = |index, payload| LogEntry { log_id: log_id(index), payload };
        vec![
            Request::Append {
                stream: 7,
                seq: 2,
                vote: vote(),
                prev: Some(log_id(4)),
                entries: vec![
                    entry(5, Payload::Blank),
                    entry(6, Payload::Proposal(Bytes::from_static(b"p"))),
                    entry(7, Payload::Membership(membership())),
                ],
                commit: Some(log_id(4)),
            },
            Request::Vote { pre: true, vote: vote(), last: None, transfer: false },
            Request::TransferLeader { from: vote(), to: NodeId::new(0xb2), last: Some(log_id(9)) },
            Request::SnapshotBegin {
                session: 5,
                vote: vote(),
                applied: Some(log_id(8)),
                membership: StoredMembership { log_id: Some(log_id(1)), membership: membership() },
            },
            Request::SnapshotChunk { session: 5, index: 300, chunk: Bytes::from_static(b"chunk") },
            Request::SnapshotFinish { session: 5, vote: vote() },
            Request::Propose { proposals: vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")] },
            Request::ReadIndex,
            Request::KeepAlive { leases: vec![LeaseId::new(1), LeaseId::new(300)] },
            Request::Remaining { lease: LeaseId::new(3) },
            Request::Hello { name: "a".into(), peers: vec!["a".into(), "b".into()], promised: None },
            Request::Promise { name: "a".into(), peers: vec!["a".into()], cluster: ClusterId::new(0xc1) },
            Request::Reminder { vote: vote(), index: 300 },
            Request::Copied { incarnation: Incarnation::from_bits(0x1d) },
            Request::Checkup,
        ]
    }

    fn replies() -> Vec<Reply> {
        vec![
            Reply::Append(AppendReply::Success),
            Reply::Append(AppendReply::Partial(Some(log_id(6)))),
            Reply::Append(AppendReply::Conflict),
            Reply::Append(AppendReply::HigherVote(vote())),
            Reply::Vote { vote: vote(), granted: true, last: Some(log_id(6)) },
            Reply::Transferred { refused: Some("no".into()) },
            Reply::Snapshot { refused: None },
            Reply::SnapshotInstalled { vote: vote() },
            Reply::Proposed { answers: vec![Some(Bytes::from_static(b"yes")), None] },
            Reply::ReadIndex { index: 128 },
            Reply::KeptAlive { results: vec![KeepAlive::Renewed { ttl_ms: 3000 }, KeepAlive::NotFound] },
            Reply::Remaining { left_ms: Some(5), ttl_ms: 3000 },
            Reply::NotLeader { leader: Some(log_id(0).leader) },
            Reply::Busy { what: "disk".into() },
            Reply::Hello { name: "b".into(), peers: vec!["b".into()], holds_data: true, promised: None },
            Reply::Promised { holds_data: false, promised: Some(ClusterId::new(0xc1)) },
            Reply::Failed { why: "x".into() },
            Reply::Reminded { held: true },
            Reply::Copied,
            Reply::Checkup {
                version: 1,
                account: Account { since: 300, milestones: vec![Milestone { index: 1024, hash: 7 }] },
                short: Some(ShortDisk { free: 5, reserve: 300 }),
            },
            Reply::Checkup { version: 2, account: Account::default(), short: None },
        ]
    }

    #[test]
    fn the_bytes_of_every_request_are_what_they_have_always_been() {
        let golden = GOLDEN_REQUESTS;
        assert_eq!(golden.len(), requests().len());
        let pairs: Vec<_> =
            requests().into_iter().map(|request| (HEADER, request)).zip(golden.iter().copied()).collect();
        pinned(|(header, request)| encode_request(header, request), decode_request, &pairs);
    }

    #[test]
    fn the_bytes_of_every_reply_are_what_they_have_always_been() {
        let golden = GOLDEN_REPLIES;
        assert_eq!(golden.len(), replies().len());
        let pairs: Vec<_> = replies().into_iter().map(|reply| (HEADER, reply)).zip(golden.iter().copied()).collect();
        pinned(|(header, reply)| encode_reply(header, reply), decode_reply, &pairs);
    }

    #[test]
    fn a_frame_with_a_flipped_bit_or_of_a_newer_version_is_refused() {
        let frame = encode_request(&HEADER, &Request::ReadIndex);
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_request(bad.into()).is_err(), "bit {bit}");
        }
        let mut newer = frame[4..].to_vec();
        newer[0] = VERSION + 1;
        let refused = decode_request(seal(&newer));
        assert!(matches!(refused, Err(DecodeError::UnknownVersion { found: 2, known: 1, .. })), "{refused:?}");
    }

    #[rustfmt::skip]
    const GOLDEN_REQUESTS: &[&str] = &[
        "0fc21ddd0101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000107000000000000000203a100000000000000010103a100000000000000040303a100000000000000050003a1000000000000000601017003a10000000000000007020101a10000000000000001a100000000000000016103783a310103a10000000000000004",
        "5e22cbe20101c1000000000000000000000000000000a1000000000000001c0000000000000001b2000000000000009900000000000000020103a100000000000000010000",
        "da6a5ef70101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000303a10000000000000001b2000000000000000103a10000000000000009",
        "b110cb8a0101c1000000000000000000000000000000a1000000000000001c0000000000000001b200000000000000990000000000000004050000000000000003a100000000000000010103a100000000000000080103a100000000000000010101a10000000000000001a100000000000000016103783a31",
        "648c69a60101c1000000000000000000000000000000a1000000000000001c0000000000000001b2000000000000009900000000000000050500000000000000ac02056368756e6b",
        "11923d4d0101c1000000000000000000000000000000a1000000000000001c0000000000000001b200000000000000990000000000000006050000000000000003a10000000000000001",
        "8e756e020101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000702036f6e650374776f",
        "2f3773650101c1000000000000000000000000000000a1000000000000001c0000000000000001b200000000000000990000000000000008",
        "4635ecbb0101c1000000000000000000000000000000a1000000000000001c0000000000000001b2000000000000009900000000000000090201ac02",
        "db9289d20101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000a03",
        "d8b309890101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000b0161020161016200",
        "46470ec00101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000c0161010161c1000000000000000000000000000000",
        "9cda97ac0101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000d03a10000000000000001ac02",
        "6dee70600101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000e1d00000000000000",
        "8ca217fb0101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000f",
    ];

    #[rustfmt::skip]
    const GOLDEN_REPLIES: &[&str] = &[
        "aa1a74a80101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000100",
        "d7379e370101c1000000000000000000000000000000a1000000000000001c0000000000000001b200000000000000990000000000000001010103a10000000000000006",
        "867b7a460101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000102",
        "d9434dce0101c1000000000000000000000000000000a1000000000000001c0000000000000001b2000000000000009900000000000000010303a10000000000000001",
        "a24f4ae40101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000203a10000000000000001010103a10000000000000006",
        "7994602b0101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000301026e6f",
        "efee03d50101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000400",
        "3c38a6480101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000503a10000000000000001",
        "b65abc5d0101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000602010379657300",
        "0e05a0ac0101c1000000000000000000000000000000a1000000000000001c0000000000000001b2000000000000009900000000000000078001",
        "00d9c0aa0101c1000000000000000000000000000000a1000000000000001c0000000000000001b2000000000000009900000000000000080201b81700",
        "ca0123ed0101c1000000000000000000000000000000a1000000000000001c0000000000000001b2000000000000009900000000000000090105b817",
        "296119040101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000a0103a100000000000000",
        "4b1056f80101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000b046469736b",
        "f5f7f9bf0101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000c01620101620100",
        "3c3492370101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000d0001c1000000000000000000000000000000",
        "135e30a80101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000e0178",
        "b207f0410101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000000f01",
        "79af1f760101c1000000000000000000000000000000a1000000000000001c0000000000000001b200000000000000990000000000000010",
        "e36549b00101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000001101ac0201800807000000000000000105ac02",
        "fb1102060101c1000000000000000000000000000000a1000000000000001c0000000000000001b20000000000000099000000000000001102000000",
    ];
}
