//! Bugs of logs, snapshots, disks, reads and retries.

use std::collections::{BTreeMap, VecDeque};
use std::future::IntoFuture;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};

use crate::api::cluster::Outcome;
use crate::api::testing::{Trio, compact, ms};
use crate::cluster_tests::power::MODES;
use crate::cluster_tests::snapshot::forgetful;
use crate::cluster_tests::support::{Group, seeds, slow_disks};
use crate::config::Settings;
use crate::rt;
use crate::storage::fault_disk::PowerLoss;
use crate::transport::{Inbound, TransportError};
use crate::{Error, Lane, Peer, Ticket, Transport, Written, prefix};

const SECOND: Duration = Duration::from_secs(1);

/// A follower with entries that nobody else has, more of them than the snapshot it is sent covers: hashicorp/raft keeps the one
/// at the snapshot's end, refuses everything that follows and is sent snapshots for ever (#697); openraft could be left with
/// the conflicting entries after a crash (#559) or replicate them (#753).
///
/// Here: they are gone with the snapshot, also if the power fails meanwhile; the node follows, and goes on without the others.
#[tokio::test(start_paused = true)]
async fn a_long_log_that_nobody_else_has_gives_way_to_a_shorter_snapshot() {
    for seed in seeds(1..6) {
        let mut group = forgetful(seed);
        group.start_all().await;
        let old = group.leader().await;
        let others: Vec<usize> = (0..3).filter(|n| *n != old).collect();
        group.node(old).set("before", &0).await.expect("written");
        group.converged().await;
        let shared = group.node(old).node().log_ends_at();
        group.network.isolate(group.peers[old].name.clone());
        let lonely = |i| group.node(old).set(format!("lonely/{i}"), &i).timeout(SECOND).into_future();
        let tickets: Vec<Ticket> = join_all((0..80).map(lonely)).await.into_iter().filter_map(ticket).collect();
        let leader = group.leader_among(&others).await;
        for i in 0..10 {
            group.node(leader).set("k", &i).await.expect("written by the two others");
        }
        group.node(leader).node().purge_log_now().await;
        let ends = [old, leader].map(|n| group.node(n).node().log_ends_at());
        assert!(ends[0] > ends[1] + 20 && tickets.len() > 40, "seed {seed}: {ends:?}, {}", tickets.len());
        assert!(group.node(leader).node().log_starts_at() > shared + 1, "seed {seed}: the log reaches back");
        if seed % 2 == 0 {
            group.disks[old].die_at(seed * 7);
        }
        group.network.heal();
        if seed % 2 == 0 {
            rt::sleep(SECOND).await;
            group.power_loss(old, MODES[seed as usize % MODES.len()]);
            group.start_all().await;
        }
        group.node(leader).set("after", &1).await.expect("written");
        group.converged().await;
        assert!(group.node(old).node().log_starts_at() > shared + 1, "seed {seed}: it was sent no snapshot");
        for ticket in &tickets {
            assert_eq!(group.node(leader).resolve(ticket).await, Ok(Outcome::Never), "seed {seed}");
        }
        let leader = group.leader().await;
        if leader != old {
            group.power_loss(leader, PowerLoss::DropAll);
        }
        group.node(old).set("alone", &1).await.expect("written");
        let left = group.node(old).range::<i32>(prefix("lonely/")).count().await;
        assert_eq!(left, Ok(0), "seed {seed}");
    }
}

/// Of a write that nobody answered.
fn ticket(written: Result<Written, Error>) -> Option<Ticket> {
    match written {
        Err(Error::Indeterminate { ticket }) => Some(ticket),
        Err(Error::NotApplied { .. }) => None,
        other => panic!("{other:?}"),
    }
}

/// etcd compacted the newest revision away if it was a deletion, and after a crash counted on from the one before (#17780).
///
/// Here: the revision is a counter of its own; it never goes back and no number is given out twice.
#[tokio::test(start_paused = true)]
async fn the_revision_stands_though_the_newest_changes_were_deletions_and_are_forgotten() {
    for lost in [None, Some(PowerLoss::DropAll), Some(PowerLoss::KeepAll)] {
        let mut group = Group::new(1, 4).single();
        group.start_all().await;
        for i in 0..5 {
            group.node(0).set(format!("k{i}"), &i).await.expect("written");
        }
        for i in 0..5 {
            group.node(0).delete(format!("k{i}")).await.expect("deleted");
        }
        let before = group.node(0).status();
        compact(group.node(0), before.revision).await;
        // Swept, and nothing of it is left to be replayed from the log.
        rt::sleep(SECOND * 5).await;
        group.node(0).node().purge_log_now().await;
        match lost {
            None => group.stop(0).await,
            Some(mode) => group.power_loss(0, mode),
        }
        group.start_all().await;
        assert_eq!(group.node(0).status().revision, before.revision, "{lost:?}");
        let next = group.node(0).set("k0", &1).await.expect("written");
        assert_eq!(next.revision, before.revision.next(), "{lost:?}");
    }
}

/// A single etcd member answered before its own log was synced, since there was nobody else to wait for (#14370).
///
/// Here: a quorum of one is a disk of one; what it has answered survives the loss of power in that very moment.
#[tokio::test(start_paused = true)]
async fn a_lone_node_acknowledges_nothing_that_its_disk_could_still_lose() {
    // Whether the log's disk or the state's is the slower one differs from life to life.
    let lives = AtomicU64::new(1);
    let tune = move |settings: &mut Settings| settings.drive = slow_disks(lives.fetch_add(1, Ordering::Relaxed), 60);
    let mut group = Group::new(1, 9).single().tune(tune);
    for i in 0..20u64 {
        group.start_all().await;
        for written in [2 * i, 2 * i + 1] {
            group.node(0).set("k", &written).await.expect("written");
        }
        group.power_loss(0, PowerLoss::DropAll);
        group.start_all().await;
        let found = group.node(0).get::<u64>("k").await.expect("read").map(|entry| *entry);
        assert_eq!(found, Some(2 * i + 1));
    }
}

/// etcd's followers answered a read from a round that the leader had begun before a write which the reader already knew of
/// (#20418, #21399).
///
/// Here: a read joins the next round, never one under way.
#[tokio::test(start_paused = true)]
async fn a_read_does_not_join_a_round_that_began_before_it() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    trio.nodes[follower].set("k", &1).await.expect("written");
    trio.network.delay(ms(10));
    // What it is told next it applies long after the round is over.
    trio.slow_disk(follower, ms(500));
    let write = rt::spawn("write", trio.nodes[leader].set("k", &2).into_future());
    // Its round reaches the leader before the write is committed.
    rt::sleep(ms(10)).await;
    let mut early = rt::spawn("early", trio.nodes[follower].get::<i32>("k").into_future());
    write.await.expect("no panic").expect("written without the follower");
    assert!((&mut early).now_or_never().is_none(), "the round is over");
    let late = trio.nodes[follower].get::<i32>("k").await.expect("read");
    assert_eq!(late.map(|entry| *entry), Some(2));
    early.await.expect("no panic").expect("read");
    trio.stop().await;
}

/// Followers of RedisRaft that passed requests on handed answers to the wrong callers after a connection had broken (#26), and
/// Redpanda's leaders took replies of other nodes for the ones they had asked for (#10638).
///
/// Here: a reply repeats the number of its request and its sender's name; any other is no reply. Not even a transport that mixes
/// them up can pass one caller's answer to another.
#[tokio::test(start_paused = true)]
async fn answers_that_a_transport_mixes_up_reach_nobody() {
    let mut group = Group::new(3, 13);
    for n in 0..3 {
        let mixing = Mixing {
            network: group.network.end(&group.peers[n].name),
            last: Mutex::default(),
            calls: AtomicU64::new(0),
        };
        let node = group.builder(n).transport(mixing).await.expect("starts");
        group.adopt(n, node);
    }
    group.start_all().await;
    let (leader, follower) = (group.leader().await, group.follower().await);
    for i in 0..40u64 {
        let (mine, other) = (group.node(follower), group.node(leader));
        let writes = (0..4).map(|w| mine.set(format!("k{w}"), &(i * 10 + w)).prev().timeout(SECOND * 30).into_future());
        for (w, written) in join_all(writes).await.into_iter().enumerate() {
            let prev = written.expect("written").prev.map(|entry| *entry);
            assert_eq!(prev, i.checked_sub(1).map(|i| i * 10 + w as u64), "round {i}");
        }
        for w in 0..4 {
            let read = [mine, other].map(|node| node.get::<u64>(format!("k{w}")).timeout(SECOND * 30).into_future());
            for read in join_all(read).await {
                let entry = read.expect("read").expect("there");
                assert_eq!((*entry, entry.version), (i * 10 + w, i + 1));
            }
        }
    }
}

/// A transport that gives every other caller the answer to one of the last questions to the same node.
struct Mixing<T> {
    network: T,
    last: Mutex<BTreeMap<String, VecDeque<Bytes>>>,
    calls: AtomicU64,
}

impl<T: Transport> Transport for Mixing<T> {
    fn start(&self, inbound: Inbound) {
        self.network.start(inbound);
    }

    fn call<'a>(
        &'a self,
        to: &'a Peer,
        lane: Lane,
        frame: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, TransportError>> {
        Box::pin(async move {
            let answer = self.network.call(to, lane, frame, timeout).await?;
            // Only where operations travel: without heartbeats there would be nothing to see.
            if lane != Lane::Client {
                return Ok(answer);
            }
            let number = self.calls.fetch_add(1, Ordering::Relaxed);
            let mut last = self.last.lock().expect("no panic while held");
            let last = last.entry(to.name.clone()).or_default();
            last.push_front(answer);
            last.truncate(6);
            let age = if number.is_multiple_of(2) { 0 } else { number / 2 % last.len() as u64 };
            Ok(last[age as usize].clone())
        })
    }
}
