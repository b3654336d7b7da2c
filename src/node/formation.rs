//! How a cluster comes about, once, whatever is started first.
//!
//! The node whose name sorts first asks every listed peer who it is (*hello*). When all have answered, with one list of
//! names and no data, it asks each, twice, for its word on one cluster id:
//!
//! 1. The first time the peer *promises* it. A promise is durable before it is answered, and gives way to a later one: the
//!    former may have died for good before it got any further.
//! 2. The second time, if that is still its promise, the peer becomes a *member*. That too is durable before it is
//!    answered, and final. Only a member takes part in consensus.
//!
//! When all are members, that one node writes the first membership into its log; the others never do. Every step can be
//! repeated, and the former comes back to the id it has promised itself. Should two processes go by the former's name, at
//! most one of them finds all peers members of its cluster: no peer is ever a member of two.
//!
//! A node whose directory is empty while a peer is a member has lost its data; it stays out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Formation, Node, Phase};
use crate::error::FormationError;
use crate::format::message::{Header, Reply, Request};
use crate::raft::ASK_TIMEOUT;
use crate::rt;
use crate::storage::identity::{Identity, Promise};
use crate::transport::Lane;
use crate::types::{ClusterId, NodeId, NodeInfo, Peer};

/// Pause between rounds while peers are missing.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// The longest such pause.
const ROUND_PAUSE_MAX: Duration = Duration::from_millis(500);

/// What this node has settled about its cluster, as on disk.
pub(super) struct Settled {
    pub(super) identity: Identity,
}

/// What one peer said.
struct Heard {
    id: NodeId,
    holds_data: bool,
    /// The cluster it is a member of.
    cluster: Option<ClusterId>,
}

/// Why a round did not end in a cluster.
enum Outcome {
    /// Somebody is not there yet.
    Again(String),
    Refused(FormationError),
}

impl Node {
    /// Takes part in the formation until this node is a member. Started for directories that hold no cluster yet.
    pub(super) async fn form(self: Arc<Self>, formation: Formation) {
        let formed = match formation {
            Formation::Single => self.form_alone().await,
            Formation::Peers(peers) => self.form_with(peers).await,
        };
        match formed {
            Ok(()) => self.set_phase(Phase::Running),
            Err(refused) => {
                tracing::error!(name = self.name(), %refused, "no cluster was formed");
                self.set_phase(Phase::Refused(refused));
            }
        }
    }

    async fn form_alone(&self) -> Result<(), FormationError> {
        let cluster = self.own_promise().await;
        self.become_member(cluster).await;
        self.initialize(BTreeMap::from([(self.id(), self.info(self.name()))])).await;
        Ok(())
    }

    async fn form_with(&self, peers: Vec<Peer>) -> Result<(), FormationError> {
        let first = peers.iter().map(|peer| &peer.name).min().expect("a list of peers holds this node");
        let others: Vec<&Peer> = peers.iter().filter(|peer| peer.name != self.name()).collect();
        let mut pause = ROUND_PAUSE;
        let mut missing = String::new();
        loop {
            // Entries of the leader may have arrived at a member: then the cluster is there.
            if self.holds_data() {
                return Ok(());
            }
            let round = match first == self.name() {
                true => self.form_as_first(&others).await,
                false => self.look_around(&others).await,
            };
            match round {
                Ok(()) => return Ok(()),
                Err(Outcome::Refused(refused)) => return Err(refused),
                Err(Outcome::Again(why)) => {
                    if why != missing {
                        tracing::info!(name = self.name(), waiting_for = %why, "forming the cluster");
                        missing = why;
                    }
                    rt::sleep(pause).await;
                    pause = (pause * 2).min(ROUND_PAUSE_MAX);
                }
            }
        }
    }

    /// The part of the node whose name sorts first.
    async fn form_as_first(&self, others: &[&Peer]) -> Result<(), Outcome> {
        let mut members = BTreeMap::from([(self.id(), self.info(self.name()))]);
        for (peer, heard) in self.hello_all(others).await? {
            members.insert(heard.id, self.info(&peer.name));
        }
        // The id this node has promised before, or a new one; durable before anybody else hears of it.
        let cluster = self.own_promise().await;
        for peer in others {
            self.ask_promise(peer, cluster).await?;
        }
        // Not before all have promised: a member does not change its mind.
        self.become_member(cluster).await;
        for peer in others {
            if !self.ask_promise(peer, cluster).await? {
                return Err(Outcome::Again(format!("{peer} to become a member")));
            }
        }
        tracing::info!(name = self.name(), %cluster, members = members.len(), "the cluster is formed");
        self.initialize(members).await;
        Ok(())
    }

    /// The part of the others: wait to be asked, and find out if the cluster exists without this node's data.
    async fn look_around(&self, others: &[&Peer]) -> Result<(), Outcome> {
        self.hello_all(others).await?;
        Err(Outcome::Again("the first of the peers to ask this node".into()))
    }

    /// What all the others say of themselves. All are asked even when one is missing: another may know that this node does
    /// not belong here.
    async fn hello_all<'p>(&self, others: &[&'p Peer]) -> Result<Vec<(&'p Peer, Heard)>, Outcome> {
        let asked = others.iter().map(|peer| async move {
            let heard = self.hello(peer).await?;
            self.check_fresh(peer, &heard).await?;
            Ok((*peer, heard))
        });
        let (mut all, mut missing) = (Vec::new(), None);
        for outcome in futures::future::join_all(asked).await {
            match outcome {
                Ok(heard) => all.push(heard),
                Err(Outcome::Again(why)) => missing = Some(why),
                Err(refused) => return Err(refused),
            }
        }
        missing.map_or(Ok(all), |why| Err(Outcome::Again(why)))
    }

    /// Nobody may be a member of a cluster that this node has no part in.
    async fn check_fresh(&self, peer: &Peer, heard: &Heard) -> Result<(), Outcome> {
        let Some(theirs) = heard.cluster else { return Ok(()) };
        let (here, there) = (self.name().to_owned(), peer.name.clone());
        let promised = self.forming.lock().await.identity.promise.map(|promise| promise.cluster);
        match self.cluster().or(promised) {
            // A member that has not been reached yet by the leader's first entries: the leader will come.
            Some(ours) if ours == theirs && heard.holds_data => {
                Err(Outcome::Again(format!("the leader of cluster {ours}")))
            }
            Some(ours) if ours == theirs => Ok(()),
            // This node's promise may still give way.
            Some(_) if self.cluster().is_none() => Err(Outcome::Again(format!("{there}, a member of {theirs}"))),
            Some(ours) => Err(Outcome::Refused(FormationError::OtherCluster { here, ours, there, theirs })),
            None => Err(Outcome::Refused(FormationError::DataLost { here, there, cluster: theirs })),
        }
    }

    /// Finds out, while no leader is heard, if this directory belongs to another cluster than most of its peers.
    ///
    /// One peer of another cluster is that peer's mistake. So many that no quorum is left are this node's.
    pub(super) async fn look_for_own(self: Arc<Self>) {
        let mut status = self.status.subscribe();
        while status.borrow().leader.is_none() && self.check_open().is_ok() {
            if let Some(refused) = self.find_strangers().await {
                tracing::error!(name = self.name(), %refused, "this node is among strangers");
                return self.set_phase(Phase::Refused(refused));
            }
            let _ = rt::timeout(ROUND_PAUSE_MAX, status.wait_for(|status| status.leader.is_some())).await;
        }
    }

    async fn find_strangers(&self) -> Option<FormationError> {
        let ours = self.cluster()?;
        let members = self.members();
        let voters = members.iter().filter(|member| member.voter);
        let mut peers: Vec<Peer> = voters.map(|voter| Peer::new(&voter.name, &voter.address)).collect();
        if peers.is_empty() {
            peers.clone_from(&self.peers);
        }
        let others = peers.iter().filter(|peer| peer.name != self.name());
        let asked = others.map(|peer| async move { Some((peer, self.ask_hello(peer).await.ok()?)) });
        let heard = futures::future::join_all(asked).await.into_iter().flatten();
        let strangers: Vec<_> =
            heard.filter_map(|(peer, (header, _))| Some((peer, header.cluster.filter(|c| *c != ours)?))).collect();
        let (there, theirs) = strangers.first()?;
        let quorum = peers.len() / 2 + 1;
        (peers.len() - strangers.len() < quorum).then(|| FormationError::OtherCluster {
            here: self.name().into(),
            ours,
            there: there.name.clone(),
            theirs: *theirs,
        })
    }

    async fn hello(&self, peer: &Peer) -> Result<Heard, Outcome> {
        let (header, reply) = self.ask_hello(peer).await?;
        let Reply::Hello { name, peers, holds_data, promised: _ } = reply else {
            return Err(Outcome::Again(format!("an answer of {peer}")));
        };
        if name != peer.name {
            return Err(Outcome::Again(format!("{}: {name} answers at its address", peer.name)));
        }
        self.check_names(&name, &peers)?;
        Ok(Heard { id: header.from, holds_data, cluster: header.cluster })
    }

    async fn ask_hello(&self, peer: &Peer) -> Result<(Header, Reply), Outcome> {
        let request = Request::Hello { name: self.name().into(), peers: self.names(), promised: self.cluster() };
        self.ask_peer(peer, &request).await
    }

    /// Asks once for the peer's word; true if it is a member now.
    async fn ask_promise(&self, peer: &Peer, cluster: ClusterId) -> Result<bool, Outcome> {
        let request = Request::Promise { name: self.name().into(), peers: self.names(), cluster };
        let (header, reply) = self.ask_peer(peer, &request).await?;
        match (reply, header.cluster) {
            (Reply::Promised { promised: Some(promised), .. }, member) if promised == cluster => {
                Ok(member == Some(cluster))
            }
            (Reply::Promised { .. }, Some(theirs)) => Err(Outcome::Refused(FormationError::OtherCluster {
                here: self.name().into(),
                ours: cluster,
                there: peer.name.clone(),
                theirs,
            })),
            _ => Err(Outcome::Again(format!("the promise of {peer}"))),
        }
    }

    async fn ask_peer(&self, peer: &Peer, request: &Request) -> Result<(Header, Reply), Outcome> {
        let asked = self.link.ask_with_header(peer, None, Lane::Control, request, ASK_TIMEOUT).await;
        asked.map_err(|_| Outcome::Again(peer.to_string()))
    }

    fn check_names(&self, there: &str, theirs: &[String]) -> Result<(), Outcome> {
        let ours = self.names();
        if ours == theirs {
            return Ok(());
        }
        Err(Outcome::Refused(FormationError::DifferentPeers {
            here: self.name().into(),
            ours: ours.join(", "),
            there: there.into(),
            theirs: theirs.join(", "),
        }))
    }

    /// Serves another node's first words.
    pub(super) async fn serve_hello(&self, _name: &str, _peers: &[String]) -> Reply {
        Reply::Hello {
            name: self.name().into(),
            peers: self.names(),
            holds_data: self.holds_data(),
            promised: self.cluster(),
        }
    }

    /// Serves the former's request: durable before it is answered.
    pub(super) async fn serve_promise(&self, name: &str, peers: &[String], cluster: ClusterId) -> Reply {
        let former = self.names().first().cloned();
        let refuse = || Reply::Promised { holds_data: self.holds_data(), promised: self.cluster() };
        if former.as_deref() != Some(name) || self.names() != peers || !self.accepts() {
            return refuse();
        }
        // Held to the end, so that two formers do not both find their promise in force.
        let mut settled = self.forming.lock().await;
        let Identity { cluster: member, promise, .. } = &settled.identity;
        match (*member, promise.map(|promise| promise.cluster)) {
            (Some(member), _) if member == cluster => {}
            (Some(_), _) => return refuse(),
            (None, Some(promised)) if promised == cluster => self.settle_member(&mut settled, cluster).await,
            (None, _) => self.settle_promise(&mut settled, cluster).await,
        }
        Reply::Promised { holds_data: self.holds_data(), promised: Some(cluster) }
    }

    /// The id that this node's own cluster is to have: the one settled before, or a new one, durable.
    async fn own_promise(&self) -> ClusterId {
        let mut settled = self.forming.lock().await;
        let Identity { cluster, promise, .. } = &settled.identity;
        match cluster.or(promise.map(|promise| promise.cluster)) {
            Some(before) => before,
            None => {
                let cluster = ClusterId::new(rt::random_u128());
                self.settle_promise(&mut settled, cluster).await;
                cluster
            }
        }
    }

    async fn become_member(&self, cluster: ClusterId) {
        let mut settled = self.forming.lock().await;
        self.settle_member(&mut settled, cluster).await;
    }

    async fn settle_promise(&self, settled: &mut Settled, cluster: ClusterId) {
        let peers = crate::format::parts::names_hash(&self.names());
        settled.identity.promise = Some(Promise { cluster, peers });
        self.save(settled).await;
    }

    async fn settle_member(&self, settled: &mut Settled, cluster: ClusterId) {
        if settled.identity.cluster != Some(cluster) {
            settled.identity.cluster = Some(cluster);
            self.save(settled).await;
        }
        // Only now are frames of this cluster let in, and nothing but frames brings data.
        self.link.join(cluster);
    }

    async fn save(&self, settled: &Settled) {
        let (done, saved) = futures::channel::oneshot::channel();
        self.log.save_identity(settled.identity.clone(), Box::new(move |result| drop(done.send(result))));
        if !matches!(saved.await, Ok(Ok(()))) {
            // The engine has failed and stops the node; nobody may be told what is not on disk.
            std::future::pending::<()>().await;
        }
    }

    async fn initialize(&self, members: BTreeMap<NodeId, NodeInfo>) {
        let alone = members.len() == 1;
        let raft = self.raft();
        if let Err(error) = raft.initialize(members).await {
            return tracing::error!(name = self.name(), %error, "the first membership could not be written");
        }
        if alone && let Err(error) = raft.elect().await {
            tracing::error!(name = self.name(), %error, "the sole voter could not stand for election");
        }
    }

    /// Whether this node has anything of a cluster in its log or has voted.
    pub(super) fn holds_data(&self) -> bool {
        let (purged, last) = self.log.bounds();
        purged.is_some() || last.is_some() || self.log.vote().is_some_and(|vote| vote.leader.term > 0)
    }

    /// The names of the formation list, sorted.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.peers.iter().map(|peer| peer.name.clone()).collect();
        names.sort();
        names
    }

    fn info(&self, name: &str) -> NodeInfo {
        let address = self.peers.iter().find(|peer| peer.name == name).map(|peer| peer.address.clone());
        NodeInfo { name: name.into(), address: address.unwrap_or_default() }
    }
}
