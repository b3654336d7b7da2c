//! The consensus library instantiated once, and the way to and from our own plain types.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use openraft::RaftTypeConfig;
use openraft::impls::leader_id_adv;

use crate::command::Response;
use crate::rt::Rt;
use crate::types::{self, LeaderId, NodeId, NodeInfo, Payload};

/// An encoded proposal on its way through the log. Decoded only where it is applied.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Encoded(pub(crate) Bytes);

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The state machine's answer to one entry; `None` for entries that are not proposals.
#[derive(Clone, Debug)]
pub(crate) struct Reply(pub(crate) Option<Response>);

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Config;

impl RaftTypeConfig for Config {
    type D = Encoded;
    type R = Reply;
    type NodeId = u64;
    type Node = NodeInfo;
    type Term = u64;
    // Several leaders per term, each with its own identity: the mode the library's own fuzzer runs.
    type LeaderId = leader_id_adv::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Encoded, u64, NodeInfo>;
    type Entry = openraft::alias::DefaultEntryOf<Self>;
    type AsyncRuntime = Rt;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type OLeaderId = leader_id_adv::LeaderId<u64, u64>;
pub(crate) type OLogId = openraft::alias::LogIdOf<Config>;
pub(crate) type OVote = openraft::alias::VoteOf<Config>;
pub(crate) type OEntry = openraft::alias::EntryOf<Config>;
pub(crate) type OMembership = openraft::Membership<u64, NodeInfo>;
pub(crate) type OStoredMembership = openraft::alias::StoredMembershipOf<Config>;
pub(crate) type OSnapshotMeta = openraft::alias::SnapshotMetaOf<Config>;

/// Ours to theirs.
pub(crate) trait ToRaft {
    type Raft;
    fn to_raft(&self) -> Self::Raft;
}

/// Theirs to ours.
pub(crate) trait FromRaft {
    type Plain;
    fn to_plain(&self) -> Self::Plain;
}

impl ToRaft for LeaderId {
    type Raft = OLeaderId;
    fn to_raft(&self) -> OLeaderId {
        OLeaderId { term: self.term, node_id: self.node.get() }
    }
}

impl FromRaft for OLeaderId {
    type Plain = LeaderId;
    fn to_plain(&self) -> LeaderId {
        LeaderId { term: self.term, node: NodeId::new(self.node_id) }
    }
}

impl ToRaft for types::LogId {
    type Raft = OLogId;
    fn to_raft(&self) -> OLogId {
        OLogId::new(self.leader.to_raft(), self.index)
    }
}

impl FromRaft for OLogId {
    type Plain = types::LogId;
    fn to_plain(&self) -> types::LogId {
        types::LogId { leader: self.leader_id.to_plain(), index: self.index }
    }
}

impl ToRaft for types::Vote {
    type Raft = OVote;
    fn to_raft(&self) -> OVote {
        OVote { leader_id: self.leader.to_raft(), committed: self.committed }
    }
}

impl FromRaft for OVote {
    type Plain = types::Vote;
    fn to_plain(&self) -> types::Vote {
        types::Vote { leader: self.leader_id.to_plain(), committed: self.committed }
    }
}

impl ToRaft for types::Membership {
    type Raft = OMembership;
    fn to_raft(&self) -> OMembership {
        let configs: Vec<_> = self.configs.iter().map(|config| config.iter().map(|id| id.get()).collect()).collect();
        let nodes: BTreeMap<u64, NodeInfo> = self.nodes.iter().map(|(id, info)| (id.get(), info.clone())).collect();
        if self.configs.is_empty() {
            return OMembership::default();
        }
        OMembership::new(configs, nodes).expect("a membership is stored and sent with a node for each of its voters")
    }
}

impl FromRaft for OMembership {
    type Plain = types::Membership;
    fn to_plain(&self) -> types::Membership {
        types::Membership {
            configs: self
                .get_joint_config()
                .iter()
                .map(|config| config.iter().map(|id| NodeId::new(*id)).collect())
                .collect(),
            nodes: self.nodes().map(|(id, info)| (NodeId::new(*id), info.clone())).collect(),
        }
    }
}

impl ToRaft for types::StoredMembership {
    type Raft = OStoredMembership;
    fn to_raft(&self) -> OStoredMembership {
        OStoredMembership::new(self.log_id.map(|id| id.to_raft()), self.membership.to_raft())
    }
}

impl FromRaft for OStoredMembership {
    type Plain = types::StoredMembership;
    fn to_plain(&self) -> types::StoredMembership {
        types::StoredMembership {
            log_id: self.log_id().map(|id| id.to_plain()),
            membership: self.membership().to_plain(),
        }
    }
}

impl ToRaft for types::LogEntry {
    type Raft = OEntry;
    fn to_raft(&self) -> OEntry {
        let payload = match &self.payload {
            Payload::Blank => openraft::EntryPayload::Blank,
            Payload::Proposal(bytes) => openraft::EntryPayload::Normal(Encoded(bytes.clone())),
            Payload::Membership(membership) => openraft::EntryPayload::Membership(membership.to_raft()),
        };
        OEntry { log_id: self.log_id.to_raft(), payload }
    }
}

impl FromRaft for OEntry {
    type Plain = types::LogEntry;
    fn to_plain(&self) -> types::LogEntry {
        let payload = match &self.payload {
            openraft::EntryPayload::Blank => Payload::Blank,
            openraft::EntryPayload::Normal(encoded) => Payload::Proposal(encoded.0.clone()),
            openraft::EntryPayload::Membership(membership) => Payload::Membership(membership.to_plain()),
        };
        types::LogEntry { log_id: self.log_id.to_plain(), payload }
    }
}
