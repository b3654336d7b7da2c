//! How frames travel between nodes: the host's half and ours.
//!
//! The host supplies a [`Transport`], which carries one frame to a peer and brings one frame back. The node supplies an
//! [`Inbound`], which the host calls with each frame that arrives. Frames are opaque: they are versioned and checksummed
//! by the node, and a host needs no knowledge of them to carry them, now or in a later release.
//!
//! # The contract
//!
//! A transport may lose, delay, double and reorder frames, and may deliver one whose caller has long given up: no promise
//! of the store depends on any of it. What it must keep is this.
//!
//! * **Whole frames.** What arrives is what was sent, to the last byte, or nothing. An answer is the answer to that very
//!   call. (Frames carry a checksum and the identity of cluster, sender and receiver, so that a mistake here is refused and
//!   costs availability rather than data.)
//! * **Every call ends** within its `timeout`, with an answer or an error. A call that never ends holds back its peer.
//! * **Lanes do not hold each other up.** A snapshot of gigabytes under way on [`Lane::Snapshot`], or a slow peer on
//!   [`Lane::Client`], must not delay a heartbeat on [`Lane::Control`]: the others would elect a new leader. One connection
//!   for each lane is the simple way to keep this.
//! * **Size.** Frames of up to [`FRAME_BYTES_MAX`] pass, in both directions, empty ones too.
//!
//! A host can run [`contract::check`] on its transport to see whether it keeps them.
//!
//! Calls are polled on the node's runtime, which is a single thread of its own unless the host chose otherwise: they must
//! not block. Dropping the future of a call says that the caller has lost interest; the frame may still arrive.
//!
//! Within a lane the node keeps a bounded number of calls under way, and does not need them to arrive in order.

pub mod contract;
pub(crate) mod link;
mod memory;
pub(crate) mod partitions;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

pub use bytes::Bytes;
pub use futures::future::BoxFuture;

pub use self::memory::{MemoryNetwork, MemoryTransport};
use crate::rt::watch;
pub use crate::types::Peer;

/// The largest frame that is sent, in bytes: 8 MiB.
///
/// A single value is smaller than this by far, and a snapshot is cut into pieces. A frame of this size takes less than a
/// second on a 100 Mbit/s line, which bounds how long one frame can hold up the next on its lane.
pub const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a frame is for. Frames of one lane must not hold up those of another.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Lane {
    /// Votes and heartbeats: small, and late ones cost an election.
    Control = 0,
    /// Replication of the log.
    Append = 1,
    /// Pieces of snapshots: bulk.
    Snapshot = 2,
    /// Requests that a node forwards to the leader, and everything else.
    Client = 3,
}

impl Lane {
    /// Every lane, in the order of their numbers.
    pub const ALL: [Lane; 4] = [Lane::Control, Lane::Append, Lane::Snapshot, Lane::Client];
}

/// The lane's number, for hosts that put it on a wire. It never changes.
impl From<Lane> for u8 {
    fn from(lane: Lane) -> u8 {
        lane as u8
    }
}

/// No lane has this number: the peer runs a newer release, or the bytes are not a lane's.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not the number of a lane; this build knows 0 to 3")]
pub struct UnknownLane(pub u8);

impl TryFrom<u8> for Lane {
    type Error = UnknownLane;

    fn try_from(number: u8) -> Result<Self, UnknownLane> {
        Lane::ALL.get(usize::from(number)).copied().ok_or(UnknownLane(number))
    }
}

/// Why a call brought no answer.
///
/// For logs and for a caller's patience: what the store does never depends on which one it is, since none of them proves
/// that the frame did not arrive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Nobody listens there, or the connection broke.
    #[error("the peer cannot be reached")]
    Unreachable,
    /// The timeout passed without an answer.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// The node, or the transport, has been shut down.
    #[error("the node has been shut down")]
    Closed,
    /// The frame, or the answer to it, is over the limit.
    #[error("a frame of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// [`FRAME_BYTES_MAX`], or what the transport can carry.
        limit: usize,
    },
    /// Anything else, for the log.
    #[error("{0}")]
    Other(String),
}

/// Carries frames to other nodes. Written by the host, or one of ours.
///
/// The module's documentation states [what is expected of it](self#the-contract).
pub trait Transport: Send + Sync + 'static {
    /// Called once whenever a node opens, on the node's runtime and before its first call, with where to deliver what
    /// arrives for that node.
    ///
    /// A transport that listens by itself starts to listen here (on a task of its own: this must not block), and stops
    /// when the inbound [is closed](Inbound::closed). If the node is opened again with the same transport, the new inbound
    /// replaces the old. The default does nothing, for hosts that own the server and pass frames to the node themselves.
    fn start(&self, inbound: Inbound) {
        let _ = inbound;
    }

    /// Sends `frame` to `to` and returns the answer, or an error within `timeout`.
    ///
    /// At the other end, `frame` goes into [`Inbound::receive`] with the same lane, and what that returns is the answer.
    ///
    /// # Errors
    /// Any [`TransportError`] says that there is no answer; none says that the frame did not arrive.
    /// # Cancel safety
    /// Dropping the future means that nobody wants the answer any more. Later calls must not be disturbed by it, least of
    /// all by receiving that answer.
    fn call<'a>(
        &'a self,
        to: &'a Peer,
        lane: Lane,
        frame: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, TransportError>>;
}

impl<T: Transport + ?Sized> Transport for Arc<T> {
    fn start(&self, inbound: Inbound) {
        (**self).start(inbound);
    }

    fn call<'a>(
        &'a self,
        to: &'a Peer,
        lane: Lane,
        frame: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, TransportError>> {
        (**self).call(to, lane, frame, timeout)
    }
}

/// What a node does with a frame.
type Handler = dyn Fn(Lane, Bytes) -> BoxFuture<'static, Result<Bytes, TransportError>> + Send + Sync;

/// Where a transport delivers the frames that arrive for one node. Cheap to clone, usable from any thread and runtime.
#[derive(Clone)]
pub struct Inbound {
    shared: Arc<Shared>,
}

struct Shared {
    /// Gone once the node has been shut down, and with it all that it holds.
    handler: RwLock<Option<Arc<Handler>>>,
    closed: watch::Sender<bool>,
}

impl Inbound {
    /// An inbound that passes every frame to `handler`. The node makes its own; this is for tests of a transport.
    pub fn new(
        handler: impl Fn(Lane, Bytes) -> BoxFuture<'static, Result<Bytes, TransportError>> + Send + Sync + 'static,
    ) -> Self {
        let (closed, _) = watch::channel(false);
        Inbound { shared: Arc::new(Shared { handler: RwLock::new(Some(Arc::new(handler))), closed }) }
    }

    /// Hands a frame that has arrived to the node, and returns the node's answer, which goes back to the caller.
    ///
    /// # Errors
    /// [`TransportError::Closed`] after the node was shut down, [`TransportError::TooLarge`] for a frame, or an answer,
    /// above [`FRAME_BYTES_MAX`], and whatever the node answers with. The transport should let the caller know that there
    /// is no answer, so that it need not wait for its timeout; which error it was need not travel.
    /// # Cancel safety
    /// Dropping the future does not undo the frame: the node may have acted on it, or may still do so.
    pub async fn receive(&self, lane: Lane, frame: Bytes) -> Result<Bytes, TransportError> {
        check_size(&frame)?;
        let handler = self.handler().ok_or(TransportError::Closed)?;
        let answer = handler(lane, frame).await?;
        check_size(&answer)?;
        Ok(answer)
    }

    /// Whether the node has been shut down.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.with(|closed| *closed)
    }

    /// Waits until the node has been shut down: the moment to stop listening.
    ///
    /// # Cancel safety
    /// It may be dropped and called again at any time.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.subscribe();
        closed.wait_for(|closed| *closed).await.expect("this inbound holds the sender");
    }

    /// Refuses every later frame and drops the handler. Frames that are being handled are answered as their handler will.
    pub(crate) fn close(&self) {
        // Dropped outside the lock: what the handler holds may end up here again.
        let handler = self.shared.handler.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(handler);
        self.shared.closed.send(true);
    }

    fn handler(&self) -> Option<Arc<Handler>> {
        self.shared.handler.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

/// Refuses what is over [`FRAME_BYTES_MAX`].
pub(crate) fn check_size(frame: &Bytes) -> Result<(), TransportError> {
    match frame.len() {
        size if size > FRAME_BYTES_MAX => Err(TransportError::TooLarge { size, limit: FRAME_BYTES_MAX }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::FutureExt;

    use super::*;

    fn bytes(size: usize) -> Bytes {
        vec![7; size].into()
    }

    #[test]
    fn the_numbers_of_the_lanes_are_fixed() {
        assert_eq!(Lane::ALL.map(u8::from), [0, 1, 2, 3]);
        assert_eq!(Lane::ALL, [Lane::Control, Lane::Append, Lane::Snapshot, Lane::Client]);
        for lane in Lane::ALL {
            assert_eq!(Lane::try_from(u8::from(lane)), Ok(lane));
        }
        assert_eq!(Lane::try_from(4), Err(UnknownLane(4)));
        assert_eq!(Lane::try_from(255), Err(UnknownLane(255)));
    }

    #[test]
    fn a_frame_over_the_limit_never_reaches_the_node_and_an_answer_over_it_never_leaves() {
        let reached = Arc::new(AtomicBool::new(false));
        let seen = reached.clone();
        let inbound = Inbound::new(move |_, frame| {
            seen.store(true, Ordering::Relaxed);
            Box::pin(async move { Ok(if frame.is_empty() { bytes(FRAME_BYTES_MAX + 1) } else { frame }) })
        });
        let over = Err(TransportError::TooLarge { size: FRAME_BYTES_MAX + 1, limit: FRAME_BYTES_MAX });
        let receive = |size| inbound.receive(Lane::Client, bytes(size)).now_or_never().expect("the handler is ready");
        assert_eq!(receive(FRAME_BYTES_MAX + 1), over);
        assert!(!reached.load(Ordering::Relaxed));
        assert_eq!(receive(FRAME_BYTES_MAX).map(|answer| answer.len()), Ok(FRAME_BYTES_MAX));
        assert_eq!(receive(0), over);
    }

    #[test]
    fn a_closed_inbound_refuses_says_so_and_holds_nothing() {
        let held = Arc::new(());
        let node = held.clone();
        let inbound = Inbound::new(move |_, frame| {
            let _node = node.clone();
            Box::pin(async move { Ok(frame) })
        });
        let other = inbound.clone();
        assert!(!other.is_closed() && other.closed().now_or_never().is_none());
        inbound.close();
        assert_eq!(other.receive(Lane::Control, bytes(1)).now_or_never(), Some(Err(TransportError::Closed)));
        assert!(other.is_closed() && other.closed().now_or_never().is_some());
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
