//! What a user sees of a data directory: it belongs to one node, says clearly what is wrong with it, and survives.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::executor::block_on;
use quorate::{Cluster, Error, Formation, MemoryNetwork, Peer, StartError, Timing};

async fn alone(dir: &Path) -> Result<Cluster, StartError> {
    Cluster::builder("node-1").storage(dir).await
}

/// A directory that a node has used and closed.
async fn used(dir: &Path) {
    let cluster = alone(dir).await.expect("starts");
    cluster.set("k", &1u64).await.expect("written");
    cluster.shutdown().await.expect("shuts down");
}

#[test]
fn a_directory_can_be_opened_again_at_once_after_a_shutdown_and_goes_on_where_it_stopped() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let mut old = Vec::new();
        for round in 1..=4u64 {
            let cluster = alone(dir.path()).await.expect("starts");
            let written = cluster.set("k", &round).await.expect("written");
            assert_eq!(written.revision.get(), round);
            cluster.shutdown().await.expect("shuts down");
            assert!(matches!(cluster.get::<u64>("k").await, Err(Error::Stopped { .. })));
            // A handle on the node that was may stay around.
            old.push(cluster);
        }
        let ids: Vec<_> = old.iter().map(|cluster| cluster.status().id).collect();
        assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
    });
}

#[test]
fn a_directory_in_use_is_refused_and_whoever_uses_it_goes_on() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let first = alone(dir.path()).await.expect("starts");
        first.set("k", &1u64).await.expect("written");
        let second = alone(dir.path()).await;
        assert!(matches!(&second, Err(StartError::InUse { path }) if path.starts_with(dir.path())), "{second:?}");
        first.set("k", &2u64).await.expect("written");
        first.shutdown().await.expect("shuts down");
        alone(dir.path()).await.expect("free again").shutdown().await.expect("shuts down");
    });
}

#[test]
fn a_directory_in_use_by_another_process_is_refused() {
    const HOLD: &str = "QUORATE_TEST_HOLD";
    if let Some(dir) = std::env::var_os(HOLD) {
        // This is the other process: it holds the directory until its input ends.
        return block_on(async {
            let held = alone(dir.as_ref()).await.expect("starts");
            println!("held");
            std::io::stdin().read_to_end(&mut Vec::new()).expect("its input ends");
            held.shutdown().await.expect("shuts down");
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "a_directory_in_use_by_another_process_is_refused"])
        .env(HOLD, dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("held")), "the other process ended");
    block_on(async {
        let refused = alone(dir.path()).await;
        assert!(matches!(&refused, Err(StartError::InUse { path }) if path.starts_with(dir.path())), "{refused:?}");
    });
    drop(other.stdin.take());
    assert!(lines.all(|line| line.is_ok()) && other.wait().unwrap().success());
    block_on(async {
        alone(dir.path()).await.expect("free again").shutdown().await.expect("shuts down");
    });
}

#[test]
fn half_a_directory_is_lost_data_and_whole_again_when_the_other_half_is_found() {
    block_on(async {
        for missing in ["log.wal", "state.redb"] {
            let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            used(dir.path()).await;
            let (here, there) = (dir.path().join(missing), elsewhere.path().join(missing));
            fs::copy(&here, &there).unwrap();
            fs::remove_file(&here).unwrap();
            let refused = alone(dir.path()).await;
            assert!(
                matches!(&refused, Err(StartError::DataLost { what, .. }) if what.contains(missing)),
                "{refused:?}"
            );
            assert!(!here.exists(), "a new {missing} was made");
            fs::copy(&there, &here).unwrap();
            let whole = alone(dir.path()).await.expect("starts");
            assert_eq!(whole.get::<u64>("k").await.expect("read").map(|entry| *entry), Some(1), "{missing}");
            whole.shutdown().await.expect("shuts down");
        }
    });
}

#[test]
fn halves_of_two_directories_do_not_make_one() {
    block_on(async {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        used(one.path()).await;
        used(other.path()).await;
        fs::copy(other.path().join("state.redb"), one.path().join("state.redb")).unwrap();
        let refused = alone(one.path()).await;
        assert!(matches!(&refused, Err(StartError::DataLost { .. })), "{refused:?}");
    });
}

#[test]
fn the_directory_of_another_node_is_refused_by_name_and_stays_its_own() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        used(dir.path()).await;
        let refused = Cluster::builder("node-2").storage(dir.path()).await;
        let Err(StartError::OtherNode { found, wanted, .. }) = &refused else { panic!("{refused:?}") };
        assert_eq!((found.as_str(), wanted.as_str()), ("node-1", "node-2"));
        let again = alone(dir.path()).await.expect("the right name opens it");
        assert_eq!(again.get::<u64>("k").await.expect("read").map(|entry| *entry), Some(1));
        again.shutdown().await.expect("shuts down");
    });
}

#[test]
fn a_wrong_setting_is_named_and_touches_nothing() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("data");
        let peers = vec![Peer::new("node-2", ""), Peer::new("node-3", "")];
        let builders = [
            Cluster::builder("").storage(&place),
            Cluster::builder("node-1").storage(&place).timeout(Duration::ZERO),
            Cluster::builder("node-1").storage(&place).history(1),
            Cluster::builder("node-1").storage(&place).formation(Formation::Peers(peers)),
            Cluster::builder("node-1"),
        ];
        for builder in builders {
            let refused = builder.await;
            assert!(matches!(refused, Err(StartError::Config { .. })), "{refused:?}");
            assert!(!place.exists());
        }
    });
}

#[test]
fn three_nodes_on_real_disks_come_back_together() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let peers: Vec<Peer> = (1..=3).map(|n| Peer::new(format!("node-{n}"), "")).collect();
        for round in 0..2u64 {
            let network = MemoryNetwork::new();
            let mut nodes = Vec::new();
            for peer in &peers {
                let builder = Cluster::builder(peer.name.clone())
                    .storage(dir.path().join(&peer.name))
                    .transport(network.transport(&peer.name))
                    .formation(Formation::Peers(peers.clone()))
                    .timing(Timing::fast())
                    .timeout(Duration::from_secs(60));
                nodes.push(builder.await.expect("starts"));
            }
            for (n, node) in nodes.iter().enumerate() {
                node.ready().await.expect("ready");
                let written = node.set(format!("k{n}"), &round).await.expect("written");
                assert_eq!(written.revision.get(), 3 * round + n as u64 + 1);
            }
            let all = nodes[2].range::<u64>(..).await.expect("read");
            assert!(all.len() == 3 && all.iter().all(|(_, entry)| **entry == round), "{all:?}");
            for node in nodes {
                node.shutdown().await.expect("shuts down");
            }
        }
    });
}
