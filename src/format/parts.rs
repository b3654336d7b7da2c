//! Shapes that several formats share: log positions, votes, memberships, log entries.

use super::wire::{DecodeError, Reader, Writer};
use crate::types::{LeaderId, LogEntry, LogId, Membership, NodeId, NodeInfo, Payload, StoredMembership, Vote};

pub(crate) fn put_leader(w: &mut Writer, leader: LeaderId) {
    w.varint(leader.term);
    w.fixed_u64(leader.node.get());
}

pub(crate) fn leader(r: &mut Reader) -> Result<LeaderId, DecodeError> {
    Ok(LeaderId { term: r.varint("term")?, node: NodeId::new(r.fixed_u64("leader")?) })
}

pub(crate) fn put_log_id(w: &mut Writer, id: LogId) {
    put_leader(w, id.leader);
    w.varint(id.index);
}

pub(crate) fn log_id(r: &mut Reader) -> Result<LogId, DecodeError> {
    Ok(LogId { leader: leader(r)?, index: r.varint("log index")? })
}

pub(crate) fn put_vote(w: &mut Writer, vote: &Vote) {
    put_leader(w, vote.leader);
    w.bool(vote.committed);
}

pub(crate) fn vote(r: &mut Reader) -> Result<Vote, DecodeError> {
    Ok(Vote { leader: leader(r)?, committed: r.bool("vote committed")? })
}

pub(crate) fn put_membership(w: &mut Writer, membership: &Membership) {
    w.list(&membership.configs, |w, config| {
        w.varint(config.len() as u64);
        config.iter().for_each(|id| w.fixed_u64(id.get()));
    });
    w.varint(membership.nodes.len() as u64);
    for (id, info) in &membership.nodes {
        w.fixed_u64(id.get());
        w.str(&info.name);
        w.str(&info.address);
    }
}

pub(crate) fn membership(r: &mut Reader) -> Result<Membership, DecodeError> {
    let node = |r: &mut Reader| Ok(NodeId::new(r.fixed_u64("member")?));
    let config = |r: &mut Reader| {
        let ids = r.list("config", node)?;
        ascending(&ids, |id| *id)?;
        Ok(ids.into_iter().collect())
    };
    let info = |r: &mut Reader| Ok(NodeInfo { name: r.str("member name")?, address: r.str("member address")? });
    let configs = r.list("configs", config)?;
    let nodes = r.list("nodes", |r| Ok((node(r)?, info(r)?)))?;
    ascending(&nodes, |(id, _)| *id)?;
    Ok(Membership { configs, nodes: nodes.into_iter().collect() })
}

/// Members are written in order and once: another order would be a second spelling, and of one that comes twice only one
/// would be kept.
fn ascending<T>(members: &[T], id: impl Fn(&T) -> NodeId) -> Result<(), DecodeError> {
    match members.windows(2).find(|pair| id(&pair[0]) >= id(&pair[1])) {
        None => Ok(()),
        Some(pair) => Err(DecodeError::UnknownTag { what: "member out of order", tag: id(&pair[1]).get() }),
    }
}

pub(crate) fn put_stored_membership(w: &mut Writer, stored: &StoredMembership) {
    w.option(stored.log_id, put_log_id);
    put_membership(w, &stored.membership);
}

pub(crate) fn stored_membership(r: &mut Reader) -> Result<StoredMembership, DecodeError> {
    Ok(StoredMembership { log_id: r.option("membership position", log_id)?, membership: membership(r)? })
}

/// Position, kind, body.
pub(crate) fn put_entry(w: &mut Writer, entry: &LogEntry) {
    put_log_id(w, entry.log_id);
    match &entry.payload {
        Payload::Blank => w.u8(0),
        Payload::Proposal(bytes) => {
            w.u8(1);
            w.bytes(bytes);
        }
        Payload::Membership(membership) => {
            w.u8(2);
            put_membership(w, membership);
        }
    }
}

pub(crate) fn entry(r: &mut Reader) -> Result<LogEntry, DecodeError> {
    let log_id = log_id(r)?;
    let payload = match r.u8("payload kind")? {
        0 => Payload::Blank,
        1 => Payload::Proposal(r.bytes("proposal")?),
        2 => Payload::Membership(membership(r)?),
        tag => return Err(DecodeError::UnknownTag { what: "payload kind", tag: tag.into() }),
    };
    Ok(LogEntry { log_id, payload })
}

/// About how many bytes [`put_entry`] writes, for reserving room.
pub(crate) fn entry_size_hint(entry: &LogEntry) -> usize {
    match &entry.payload {
        Payload::Proposal(bytes) => bytes.len() + 32,
        Payload::Blank | Payload::Membership(_) => 64,
    }
}

/// A digest of a sorted list of names, kept with a formation promise.
pub(crate) fn names_hash(names: &[String]) -> u64 {
    let mut w = Writer::default();
    w.list(names, |w, name| w.str(name));
    xxhash_rust::xxh3::xxh3_64(w.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_out_of_order_or_listed_twice_are_refused() {
        let written = |config: &[u64], nodes: &[u64]| {
            let mut w = Writer::default();
            w.list(&[config], |w, ids| w.list(ids, |w, id| w.fixed_u64(*id)));
            w.list(nodes, |w, id| {
                w.fixed_u64(*id);
                w.str("name");
                w.str("address");
            });
            membership(&mut Reader::new(w.finish()))
        };
        assert!(written(&[1, 2, 3], &[1, 2, 3]).is_ok());
        for wrong in [[1, 3, 2], [1, 2, 2]] {
            assert!(written(&wrong, &[1, 2, 3]).is_err(), "{wrong:?}");
            assert!(written(&[1, 2, 3], &wrong).is_err(), "{wrong:?}");
        }
    }
}
