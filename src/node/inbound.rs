//! Frames from peers, on their way to whoever serves them.

use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::Node;
use crate::format::message::{Reply, Request};
use crate::transport::link::FrameRefused;
use crate::transport::{Inbound, TransportError};
use crate::types::NodeId;

/// What the host's transport is given: it holds on to the node only as long as somebody else does.
pub(super) fn inbound(node: &Arc<Node>) -> Inbound {
    let node: Weak<Node> = Arc::downgrade(node);
    Inbound::new(move |_lane, frame| {
        let node = node.clone();
        Box::pin(async move {
            let Some(node) = node.upgrade() else { return Err(TransportError::Closed) };
            let serving = node.clone();
            // On the node's own runtime, to its end: a transport that drops its call must not leave a frame half served.
            let served = node.spawn("inbound", async move { serving.receive(frame).await });
            served.await.unwrap_or(Err(TransportError::Closed))
        })
    })
}

impl Node {
    /// Serves one frame and returns the reply's frame.
    async fn receive(self: Arc<Self>, frame: Bytes) -> Result<Bytes, TransportError> {
        let (header, request) = match self.link.accept(frame) {
            Ok(accepted) => accepted,
            Err(refused) => {
                tracing::debug!(name = self.name(), %refused, "frame refused");
                return match refused {
                    FrameRefused::Copied { asker } => Ok(self.link.reply(&asker, &Reply::Copied)),
                    refused => Err(TransportError::Other(refused.to_string())),
                };
            }
        };
        let reply = self.serve(header.from, request).await;
        Ok(self.link.reply(&header, &reply))
    }

    async fn serve(self: &Arc<Self>, from: NodeId, request: Request) -> Reply {
        match request {
            Request::Propose { proposals } => self.serve_proposals(proposals).await,
            Request::ReadIndex => self.serve_read_index().await,
            Request::KeepAlive { leases } => self.serve_keep_alive(leases).await,
            Request::Checkup => self.serve_checkup(),
            Request::Remaining { lease } => self.serve_remaining(lease).await,
            Request::Hello { name, peers, promised: _ } => self.serve_hello(&name, &peers).await,
            Request::Promise { name, peers, cluster } => self.serve_promise(&name, &peers, cluster).await,
            Request::Copied { incarnation } => {
                self.link.told_of_copy(from, incarnation);
                // Whoever says this does not look at the answer.
                Reply::Reminded { held: false }
            }
            request => {
                let raft = self.raft();
                let served = raft.serve(from, request).await;
                served.unwrap_or_else(|| Reply::Failed { why: "not a request between members".into() })
            }
        }
    }
}
