//! What the rest of the node gets to know about the group, and operators about its elections.

use std::sync::Arc;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;

use super::Library;
use super::heard::Heard;
use super::types::FromRaft;
use crate::rt::{self, Instant};
use crate::types::{LeaderId, NodeId, StoredMembership};

/// What the rest of the node needs to know about the group, as of now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RaftStatus {
    pub(crate) term: u64,
    /// The leader this node follows, and has heard from lately, or is; committed by a quorum's votes.
    pub(crate) leader: Option<LeaderId>,
    /// Set while this node leads.
    pub(crate) leads: bool,
    pub(crate) membership: StoredMembership,
}

/// Copies what matters out of the library's metrics whenever it changes, so that nobody else holds on to them: a borrow
/// of the library's watch that is held blocks its core.
pub(super) async fn follow_status(me: NodeId, raft: Library, heard: Arc<Heard>, sender: rt::watch::Sender<RaftStatus>) {
    let mut metrics = raft.server_metrics();
    let mut election = None;
    loop {
        let news = heard.news();
        let now = metrics.borrow_watched().clone();
        let vote = now.vote.to_plain();
        let elected = (vote.committed && now.current_leader == Some(vote.leader.node.get())).then_some(vote.leader);
        let leads = now.state == ServerState::Leader && elected.is_some_and(|leader| leader.node == me);
        // The library goes on naming a leader that has died, or that led before this node was restarted.
        let heard_until = elected.filter(|_| !leads).and_then(|leader| heard.until(leader));
        let status = RaftStatus {
            term: vote.leader.term,
            leader: elected.filter(|_| leads || heard_until.is_some()),
            leads,
            membership: now.membership_config.to_plain(),
        };
        tell(me, now.state == ServerState::Candidate, &status, &mut election);
        sender.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
        let (changed, news) = (std::pin::pin!(metrics.changed()), std::pin::pin!(news));
        let changed = futures::future::select(changed, news);
        let changed = match heard_until {
            Some(until) => rt::timeout_at(until, changed).await,
            None => Ok(changed.await),
        };
        if let Ok(futures::future::Either::Left((Err(_), _))) = changed {
            return;
        }
    }
}

/// The time without a leader.
struct Election {
    span: tracing::Span,
    began: Instant,
    /// The last term that this node stood for.
    stood: Option<u64>,
}

/// Tells when this node begins to be without a leader (by a span), when it stands itself, and who has been elected.
fn tell(me: NodeId, stands: bool, status: &RaftStatus, election: &mut Option<Election>) {
    if let Some(leader) = status.leader {
        if let Some(Election { span, began, .. }) = election.take() {
            span.in_scope(|| tracing::info!(%leader, took = ?began.elapsed(), "elected"));
        }
        return;
    }
    let election = election.get_or_insert_with(|| Election {
        span: tracing::info_span!("election", %me, term = status.term),
        began: Instant::now(),
        stood: None,
    });
    if stands && election.stood.replace(status.term) != Some(status.term) {
        election.span.in_scope(|| tracing::info!(term = status.term, "standing for election"));
    }
}
