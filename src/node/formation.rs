//! How a cluster comes about, once, whatever is started first.
//!
//! The node whose name sorts first asks every listed peer who it is (*hello*). When all have answered, with one list of
//! names and no data, it asks each for a durable *promise* to be part of one cluster id and of no other. Only when all have
//! promised does that one node write the first membership into its log; the others never do. Every step can be repeated:
//! the promise is on disk before it is answered, and the former comes back to the id it has promised itself.
//!
//! A promise may be replaced only while the promiser's log and vote are empty, that is: while no cluster can have been formed
//! on its strength. A node whose directory is empty while a peer holds a cluster has lost its data; it stays out.

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
    cluster: Option<ClusterId>,
    promised: Option<ClusterId>,
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
        let cluster = self.settle(None).await;
        self.join(cluster);
        self.initialize(BTreeMap::from([(self.id(), self.info(self.name()))])).await;
        Ok(())
    }

    async fn form_with(&self, peers: Vec<Peer>) -> Result<(), FormationError> {
        let first = peers.iter().map(|peer| &peer.name).min().expect("a list of peers holds this node");
        let mut pause = ROUND_PAUSE;
        let mut missing = String::new();
        loop {
            // Entries of the leader may have arrived on the strength of the promise: then the cluster is there.
            if self.holds_data() {
                return Ok(());
            }
            let others: Vec<&Peer> = peers.iter().filter(|peer| peer.name != self.name()).collect();
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
        for peer in others {
            let heard = self.hello(peer).await?;
            self.check_fresh(peer, &heard)?;
            members.insert(heard.id, self.info(&peer.name));
        }
        // The id this node has promised before, or a new one; durable before anybody else hears of it.
        let cluster = self.settle(None).await;
        for peer in others {
            self.ask_promise(peer, cluster).await?;
        }
        self.join(cluster);
        tracing::info!(name = self.name(), %cluster, members = members.len(), "the cluster is formed");
        self.initialize(members).await;
        Ok(())
    }

    /// The part of the others: wait to be asked, and find out if the cluster exists without this node's data.
    async fn look_around(&self, others: &[&Peer]) -> Result<(), Outcome> {
        for peer in others {
            let Ok(heard) = self.hello(peer).await.map_err(|outcome| match outcome {
                Outcome::Refused(refused) => Err(Outcome::Refused(refused)),
                Outcome::Again(why) => Ok(why),
            }) else {
                continue;
            };
            self.check_fresh(peer, &heard)?;
        }
        Err(Outcome::Again("the first of the peers to ask this node".into()))
    }

    /// Nobody may hold a cluster that this node has no part in.
    fn check_fresh(&self, peer: &Peer, heard: &Heard) -> Result<(), Outcome> {
        let Some(theirs) = heard.cluster.filter(|_| heard.holds_data) else { return Ok(()) };
        let (here, there) = (self.name().to_owned(), peer.name.clone());
        match self.cluster() {
            // Promised and not reached yet by the leader's first entries: the leader will come.
            Some(ours) if ours == theirs => Err(Outcome::Again(format!("the leader of cluster {ours}"))),
            Some(ours) => Err(Outcome::Refused(FormationError::OtherCluster { here, ours, there, theirs })),
            None => Err(Outcome::Refused(FormationError::DataLost { here, there, cluster: theirs })),
        }
    }

    async fn hello(&self, peer: &Peer) -> Result<Heard, Outcome> {
        let request = Request::Hello { name: self.name().into(), peers: self.names(), promised: self.cluster() };
        let (header, reply) = self.ask_peer(peer, &request).await?;
        let Reply::Hello { name, peers, holds_data, promised } = reply else {
            return Err(Outcome::Again(format!("an answer of {peer}")));
        };
        if name != peer.name {
            return Err(Outcome::Again(format!("{}: {name} answers at its address", peer.name)));
        }
        self.check_names(&name, &peers)?;
        Ok(Heard { id: header.from, holds_data, cluster: header.cluster, promised })
    }

    async fn ask_promise(&self, peer: &Peer, cluster: ClusterId) -> Result<(), Outcome> {
        let request = Request::Promise { name: self.name().into(), peers: self.names(), cluster };
        let (header, reply) = self.ask_peer(peer, &request).await?;
        match reply {
            Reply::Promised { promised: Some(promised), .. } if promised == cluster => Ok(()),
            Reply::Promised { holds_data: true, promised } => {
                let theirs = promised.or(header.cluster);
                let refused = theirs.map(|theirs| FormationError::OtherCluster {
                    here: self.name().into(),
                    ours: cluster,
                    there: peer.name.clone(),
                    theirs,
                });
                Err(refused.map_or(Outcome::Again(format!("the promise of {peer}")), Outcome::Refused))
            }
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
        if former.as_deref() != Some(name) || self.names() != peers {
            return Reply::Promised { holds_data: self.holds_data(), promised: None };
        }
        if self.cluster() != Some(cluster) {
            if self.holds_data() {
                return Reply::Promised { holds_data: true, promised: self.cluster() };
            }
            self.settle(Some(cluster)).await;
        }
        self.join(cluster);
        Reply::Promised { holds_data: self.holds_data(), promised: Some(cluster) }
    }

    /// Makes a cluster id durable: the given one, or the one promised before, or a new one.
    async fn settle(&self, wanted: Option<ClusterId>) -> ClusterId {
        let mut settled = self.forming.lock().await;
        let before = settled.identity.cluster;
        let cluster = wanted.or(before).unwrap_or_else(|| ClusterId::new(rt::random_u128()));
        if before != Some(cluster) {
            let peers = crate::format::parts::names_hash(&self.names());
            settled.identity.cluster = Some(cluster);
            settled.identity.promise = Some(Promise { cluster, peers });
            let (done, saved) = futures::channel::oneshot::channel();
            self.log.save_identity(settled.identity.clone(), Box::new(move |result| drop(done.send(result))));
            if !matches!(saved.await, Ok(Ok(()))) {
                // The engine has failed and stops the node; nobody may be told a promise that is not on disk.
                std::future::pending::<()>().await;
            }
        }
        cluster
    }

    fn join(&self, cluster: ClusterId) {
        self.link.join(cluster);
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
