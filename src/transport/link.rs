//! One node's way to ask another: seals a request into a frame, hands it to the host's transport, and believes only the
//! reply that answers it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use bytes::Bytes;

use super::{Lane, Transport, TransportError};
use crate::format::message::{self, Header, Reply, Request};
use crate::types::{ClusterId, Incarnation, NodeId, NodeInfo, Peer};

/// Why a request has no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// Nobody is there, or nobody is there any more: whether the frame was handled is not known.
    #[error("{0}")]
    Unreachable(String),
    /// It may have been.
    #[error("no answer from {peer} within {waited:?}")]
    TimedOut { peer: String, waited: Duration },
    /// Somebody answered from a copy of the peer's directory, or from an earlier life of it.
    #[error("{peer} answered from an older or copied data directory")]
    Copied { peer: String, incarnation: Incarnation },
    /// Something came back that is not the answer.
    #[error("{peer}: {why}")]
    Garbled { peer: String, why: String },
}

/// Why an inbound frame was not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameRefused {
    #[error("the frame does not decode: {0}")]
    Undecodable(String),
    #[error("it is of cluster {theirs:?}, this node belongs to {ours:?}")]
    OtherCluster { ours: Option<ClusterId>, theirs: Option<ClusterId> },
    #[error("it is for node {to}, this is {me}")]
    OtherTarget { to: NodeId, me: NodeId },
    #[error("node {} has spoken from a later life of its directory, or from another one", asker.from)]
    Copied { asker: Header },
}

#[derive(Clone)]
pub(crate) struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    incarnation: Incarnation,
    transport: Arc<dyn Transport>,
    cluster: RwLock<Option<ClusterId>>,
    nonce: AtomicU64,
    /// Names to addresses as this start's formation list gives them; they win over what the membership says.
    addresses: BTreeMap<String, String>,
    /// The latest life of each node's directory that was heard of.
    incarnations: Mutex<BTreeMap<NodeId, Incarnation>>,
    /// What a peer has found out about this node's directory.
    accusation: OnceLock<String>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("me", &self.inner.me).finish_non_exhaustive()
    }
}

impl Link {
    /// `first_nonce` should be drawn at random, so that replies to an earlier life of this process answer nothing.
    pub(crate) fn new(
        me: NodeId,
        incarnation: Incarnation,
        transport: Arc<dyn Transport>,
        peers: &[Peer],
        first_nonce: u64,
    ) -> Self {
        let addresses = peers.iter().map(|peer| (peer.name.clone(), peer.address.clone())).collect();
        Link {
            inner: Arc::new(Inner {
                me,
                incarnation,
                transport,
                cluster: RwLock::new(None),
                nonce: AtomicU64::new(first_nonce),
                addresses,
                incarnations: Mutex::new(BTreeMap::new()),
                accusation: OnceLock::new(),
            }),
        }
    }

    pub(crate) fn join(&self, cluster: ClusterId) {
        *self.inner.cluster.write().expect("no panic while held") = Some(cluster);
    }

    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        *self.inner.cluster.read().expect("no panic while held")
    }

    pub(crate) fn me(&self) -> NodeId {
        self.inner.me
    }

    /// Where a member is to be reached: by its name in the list this node was started with, else as the membership says.
    pub(crate) fn peer(&self, info: &NodeInfo) -> Peer {
        let address = self.inner.addresses.get(&info.name).unwrap_or(&info.address);
        Peer::new(info.name.clone(), address.clone())
    }

    /// A peer takes what `incarnation` has said for the words of a copy: that concerns this node if it is its own.
    pub(crate) fn told_of_copy(&self, from: NodeId, incarnation: Incarnation) {
        if incarnation == self.inner.incarnation {
            self.accuse(format!(
                "node {from} has heard this member from another copy of its directory, or from a later state of it"
            ));
        }
    }

    /// Notes that this node's directory is not what it was when a peer last dealt with it. The node is not to go on.
    pub(crate) fn accuse(&self, why: String) {
        // The first one will do.
        let _ = self.inner.accusation.set(why);
    }

    pub(crate) fn accusation(&self) -> Option<&str> {
        self.inner.accusation.get().map(String::as_str)
    }

    /// Asks `peer` and waits for its reply, at most `timeout`.
    ///
    /// # Cancel safety
    /// Dropping the future does not undo a frame that was sent.
    pub(crate) async fn ask(
        &self,
        peer: &Peer,
        to: Option<NodeId>,
        lane: Lane,
        request: &Request,
        timeout: Duration,
    ) -> Result<Reply, LinkError> {
        self.ask_with_header(peer, to, lane, request, timeout).await.map(|(_, reply)| reply)
    }

    /// As [`Link::ask`], with what the reply's envelope says of its sender.
    pub(crate) async fn ask_with_header(
        &self,
        peer: &Peer,
        to: Option<NodeId>,
        lane: Lane,
        request: &Request,
        timeout: Duration,
    ) -> Result<(Header, Reply), LinkError> {
        let header = self.header(to, self.inner.nonce.fetch_add(1, Ordering::Relaxed));
        let frame = message::encode_request(&header, request);
        let answer = match crate::rt::timeout(timeout, self.inner.transport.call(peer, lane, frame, timeout)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error @ TransportError::Unreachable)) => {
                return Err(LinkError::Unreachable(format!("{peer}: {error}")));
            }
            Ok(Err(TransportError::TimedOut)) | Err(_) => {
                return Err(LinkError::TimedOut { peer: peer.name.clone(), waited: timeout });
            }
            Ok(Err(other)) => return Err(LinkError::Garbled { peer: peer.name.clone(), why: other.to_string() }),
        };
        let checked = self.check_reply(peer, to, header.nonce, answer);
        if let Err(LinkError::Copied { incarnation, .. }) = checked {
            // It may have nothing to ask, and would never learn of it.
            let header = self.header(to, self.inner.nonce.fetch_add(1, Ordering::Relaxed));
            let telling = message::encode_request(&header, &Request::Copied { incarnation });
            let _ = crate::rt::timeout(timeout, self.inner.transport.call(peer, Lane::Control, telling, timeout)).await;
        }
        checked
    }

    fn check_reply(
        &self,
        peer: &Peer,
        to: Option<NodeId>,
        nonce: u64,
        answer: Bytes,
    ) -> Result<(Header, Reply), LinkError> {
        let garbled = |why: String| LinkError::Garbled { peer: peer.name.clone(), why };
        let (theirs, reply) = message::decode_reply(answer).map_err(|e| garbled(e.to_string()))?;
        if theirs.nonce != nonce {
            return Err(garbled("the reply answers another request".into()));
        }
        if to.is_some_and(|to| to != theirs.from) {
            return Err(garbled(format!("the reply is from node {}", theirs.from)));
        }
        self.check_sender(&theirs)
            .map_err(|_| LinkError::Copied { peer: peer.name.clone(), incarnation: theirs.incarnation })?;
        if reply == Reply::Copied {
            self.told_of_copy(theirs.from, self.inner.incarnation);
            return Err(garbled("it takes this node's directory for a copy".into()));
        }
        Ok((theirs, reply))
    }

    /// Opens an inbound frame, if it is for this node and from a member of its cluster.
    pub(crate) fn accept(&self, frame: Bytes) -> Result<(Header, Request), FrameRefused> {
        let (header, request) =
            message::decode_request(frame).map_err(|error| FrameRefused::Undecodable(error.to_string()))?;
        // Formation speaks across cluster borders: finding out that there is another cluster is its purpose.
        let forming = matches!(request, Request::Hello { .. } | Request::Promise { .. });
        let ours = self.cluster();
        if !forming && (header.cluster != ours || ours.is_none()) {
            return Err(FrameRefused::OtherCluster { ours, theirs: header.cluster });
        }
        if let Some(to) = header.to.filter(|to| *to != self.inner.me) {
            return Err(FrameRefused::OtherTarget { to, me: self.inner.me });
        }
        self.check_sender(&header)?;
        Ok((header, request))
    }

    /// Seals the reply to a frame that was accepted.
    pub(crate) fn reply(&self, to: &Header, reply: &Reply) -> Bytes {
        message::encode_reply(&self.header(Some(to.from), to.nonce), reply)
    }

    fn header(&self, to: Option<NodeId>, nonce: u64) -> Header {
        let Inner { me, incarnation, .. } = *self.inner;
        Header { cluster: self.cluster(), from: me, incarnation, to, nonce }
    }

    fn check_sender(&self, header: &Header) -> Result<(), FrameRefused> {
        let mut incarnations = self.inner.incarnations.lock().expect("no panic while held");
        let latest = incarnations.entry(header.from).or_insert(header.incarnation);
        if header.incarnation.starts() > latest.starts() {
            *latest = header.incarnation;
        }
        if *latest == header.incarnation { Ok(()) } else { Err(FrameRefused::Copied { asker: *header }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::MemoryNetwork;

    const CLUSTER: ClusterId = ClusterId::new(7);

    /// A node's end of a link, in one life of its directory.
    fn link(node: u64, starts: u64, drawn: u64) -> Link {
        let transport = Arc::new(MemoryNetwork::new().transport("a"));
        let link = Link::new(NodeId::new(node), Incarnation::new(starts, drawn << 32), transport, &[], 1);
        link.join(CLUSTER);
        link
    }

    fn frame(from: &Link) -> Bytes {
        message::encode_request(&from.header(Some(NodeId::new(1)), 5), &Request::ReadIndex)
    }

    #[test]
    fn a_member_is_heard_in_its_latest_life_only() {
        let (here, first, second) = (link(1, 3, 1), link(2, 8, 1), link(2, 9, 2));
        assert!(here.accept(frame(&first)).is_ok());
        assert!(here.accept(frame(&second)).is_ok());
        assert!(
            matches!(here.accept(frame(&first)), Err(FrameRefused::Copied { asker }) if asker.from == NodeId::new(2))
        );
        assert!(here.accept(frame(&second)).is_ok());
    }

    #[test]
    fn of_two_copies_of_a_directory_the_one_that_was_heard_first_is_heard() {
        let (here, first, second) = (link(1, 3, 1), link(2, 8, 1), link(2, 8, 2));
        assert!(here.accept(frame(&first)).is_ok());
        assert!(matches!(here.accept(frame(&second)), Err(FrameRefused::Copied { .. })));
        assert!(here.accept(frame(&first)).is_ok());
    }

    #[test]
    fn a_frame_for_another_node_or_of_another_cluster_is_refused() {
        let (here, there) = (link(1, 1, 1), link(2, 1, 2));
        let to_three = message::encode_request(&there.header(Some(NodeId::new(3)), 5), &Request::ReadIndex);
        let (one, three) = (NodeId::new(1), NodeId::new(3));
        assert!(matches!(here.accept(to_three), Err(FrameRefused::OtherTarget { to, me }) if (to, me) == (three, one)));
        let stranger = link(4, 1, 4);
        stranger.join(ClusterId::new(8));
        let refused = here.accept(frame(&stranger));
        assert!(matches!(refused, Err(FrameRefused::OtherCluster { theirs: Some(theirs), .. }) if theirs != CLUSTER));
        assert!(here.accept(frame(&there)).is_ok());
    }

    #[test]
    fn what_was_said_of_another_life_concerns_nobody() {
        let (now, before) = (link(2, 9, 1), link(2, 8, 1));
        now.told_of_copy(NodeId::new(1), before.inner.incarnation);
        assert_eq!(now.accusation(), None);
        now.told_of_copy(NodeId::new(1), now.inner.incarnation);
        assert!(now.accusation().is_some_and(|why| why.contains("node")));
    }
}
