//! One place, several who claim it.

use std::time::Duration;

use super::*;
use crate::api::testing::{Dice, Trio, ms};
use crate::recipes::registry::slot::{Placed, Slot};
use crate::recipes::testing::TTL;
use crate::rt;

fn slot(cluster: &Cluster, incarnation: Incarnation) -> Slot {
    let (service, id) = ("web".into(), "web-1".into());
    Slot { cluster: cluster.clone(), service, id, incarnation, registrar: "r".into(), timeout: Duration::from_secs(60) }
}

#[tokio::test(start_paused = true)]
async fn the_newest_incarnation_has_the_place_whoever_comes_first_and_whatever_was_thought_to_be_there() {
    let trio = Trio::start().await;
    let mut sessions = Vec::new();
    for node in &trio.nodes {
        sessions.push(node.session().ttl(TTL).await.expect("opens"));
    }
    let incarnations: Vec<Incarnation> = sessions.iter().map(|session| Incarnation::of(session.lease())).collect();
    assert!(incarnations.is_sorted());
    for seed in 0..40 {
        let mut dice = Dice(seed);
        trio.network.delay(ms(dice.roll(5)));
        let newest = incarnations[2];
        let mut tasks = Vec::new();
        for who in 0..3 {
            let (slot, lease) = (slot(&trio.nodes[who], incarnations[who]), sessions[who].lease());
            let (wait, guess) = (ms(dice.roll(15)), dice.roll(4));
            tasks.push(rt::spawn("claiming", async move {
                rt::sleep(wait).await;
                let found = (guess > 0).then(|| crate::Revision::new(guess));
                slot.put(&at(80 + who as u16), lease, found).await.expect("decided")
            }));
        }
        let mut placed = Vec::new();
        for task in tasks {
            placed.push(task.await.expect("no panic"));
        }
        let now = trio.nodes[0].services().list("web").await.expect("reads");
        assert_eq!((now.len(), now[0].1.incarnation), (1, newest), "seed {seed}: {placed:?}");
        assert_eq!(placed[2], Placed::Standing(now[0].1.modified), "seed {seed}");
        for (older, placed) in placed[..2].iter().enumerate() {
            let Placed::Newer(by) = placed else { continue };
            assert!(by.expect("readable") > incarnations[older], "seed {seed}: {placed:?}");
        }
        let gone = trio.nodes[1].table(SERVICES).delete(..).await.expect("deletes");
        assert_eq!(gone.count, 1);
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn only_what_hangs_on_ones_own_lease_is_taken_away() {
    let trio = Trio::start().await;
    let (mine, yours) = (trio.nodes[0].session().ttl(TTL).await, trio.nodes[1].session().ttl(TTL).await);
    let (mine, yours) = (mine.expect("opens"), yours.expect("opens"));
    let slot = slot(&trio.nodes[0], Incarnation::of(mine.lease()));
    let placed = slot.put(&at(80), mine.lease(), None).await.expect("decided");
    assert!(matches!(placed, Placed::Standing(_)));
    assert_eq!(slot.leave(&at(80), yours.lease(), Leaving::Deregistered).await, Ok(None));
    slot.delete(yours.lease()).await.expect("decided");
    assert_eq!(trio.nodes[0].services().list("web").await.expect("reads").len(), 1);
    let left = slot.leave(&at(80), mine.lease(), Leaving::Deregistered).await.expect("decided");
    assert!(left.is_some());
    assert_eq!(trio.nodes[0].services().list("web").await, Ok(vec![]), "who leaves is not listed");
    assert_eq!(trio.nodes[0].services().names().await, Ok(BTreeSet::new()));
    assert_eq!(ids(&trio.nodes[0]).await, ["web-1"]);
    slot.delete(mine.lease()).await.expect("decided");
    assert_eq!(ids(&trio.nodes[0]).await, [""; 0]);
    trio.stop().await;
}
