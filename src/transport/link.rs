//! One node's way to ask another: seals a request into a frame, hands it to the host's transport, and believes only the
//! reply that answers it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use bytes::Bytes;

use super::{Lane, Transport, TransportError};
use crate::format::message::{self, Header, Reply, Request};
use crate::types::{ClusterId, NodeId, NodeInfo, Peer};

/// Why a request has no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// Nobody is there, or nobody is there any more: whether the frame was handled is not known.
    #[error("{0}")]
    Unreachable(String),
    /// It may have been.
    #[error("no answer from {peer} within {waited:?}")]
    TimedOut { peer: String, waited: Duration },
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
    #[error("node {from} spoke before from another data directory: a directory was copied")]
    Cloned { from: NodeId },
}

#[derive(Clone)]
pub(crate) struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    incarnation: u64,
    transport: Arc<dyn Transport>,
    cluster: RwLock<Option<ClusterId>>,
    nonce: AtomicU64,
    /// Names to addresses as this start's formation list gives them; they win over what the membership says.
    addresses: BTreeMap<String, String>,
    /// The data directory each node id was first heard from.
    incarnations: Mutex<BTreeMap<NodeId, u64>>,
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
        incarnation: u64,
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
        self.check_reply(peer, to, header.nonce, answer)
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
        self.check_sender(&theirs).map_err(|refused| garbled(refused.to_string()))?;
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
        match *incarnations.entry(header.from).or_insert(header.incarnation) {
            known if known == header.incarnation => Ok(()),
            _ => Err(FrameRefused::Cloned { from: header.from }),
        }
    }
}
