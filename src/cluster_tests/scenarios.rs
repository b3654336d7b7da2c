//! One kind of fault at a time, and what is to come of it.
//!
//! What these do not have, other files here do: isolated leaders (`propose`, `read`), lost answers (`exactly_once`), power
//! failures (`power`), disks that fail (`supervise`), emptied and foreign directories (`formation`).

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::support::converged;
use crate::api::cluster::{Cluster, Health, Outcome};
use crate::api::txn::put;
use crate::config::Timing;
use crate::error::{Error, Obstacle};
use crate::rt::{self, Instant};
use crate::sim::{Harm, LostWrites, Play, Sim, Wire, play};

const SECOND: Duration = Duration::from_secs(1);
/// Far beyond what an election takes.
const SOON: Duration = Duration::from_secs(10);

/// Three nodes with [`Timing::fast`] that have a leader everybody follows, and what is to be done with them.
fn three<F: Future<Output = ()>>(seed: u64, scenario: impl Fn(Sim, Trio) -> F) {
    play(&Play { seed, scale: 100, ..Play::default() }, &|sim: Sim| {
        let scenario = &scenario;
        async move {
            sim.tune(|settings| settings.timing = Timing::fast());
            sim.nodes(3).expect("new names");
            let trio = settled(&sim).await;
            scenario(sim, trio).await;
        }
    });
}

/// The names of the leader and of the two others.
struct Trio {
    leader: String,
    others: [String; 2],
}

impl Trio {
    fn others(&self) -> [&str; 2] {
        [&self.others[0], &self.others[1]]
    }
}

/// Waits until all nodes follow one leader.
async fn settled(sim: &Sim) -> Trio {
    let followed = || {
        let open = sim.open();
        let (_, leader) = open.iter().find(|(_, node)| node.status().is_leader)?;
        let id = leader.status().id;
        let all = open.len() == 3 && open.iter().all(|(_, node)| node.status().leader == Some(id));
        all.then(|| sim.leader()).flatten()
    };
    sim.until("a leader whom all follow", 60 * SECOND, || followed().is_some()).await.unwrap();
    let leader = followed().expect("nothing ran since");
    let others: Vec<String> = sim.names().into_iter().filter(|name| *name != leader).collect();
    Trio { leader, others: others.try_into().expect("there are three") }
}

fn node(sim: &Sim, name: &str) -> Cluster {
    sim.node(name).unwrap_or_else(|error| panic!("{error}"))
}

async fn written(node: &Cluster, key: &str, value: u64) {
    let written = node.set(key, &value).timeout(SOON).await;
    written.unwrap_or_else(|error| panic!("{key} = {value}: {error}"));
}

async fn found(node: &Cluster, key: &str) -> Result<Option<u64>, Error> {
    Ok(node.get::<u64>(key).timeout(SOON).await?.map(|entry| *entry))
}

#[test]
fn a_follower_that_was_cut_off_for_a_minute_comes_back_without_an_election() {
    three(1, |sim, trio| async move {
        let [away, other] = trio.others();
        let term = node(&sim, &trio.leader).status().term;
        sim.isolate(away).unwrap();
        sim.run_for(60 * SECOND).await;
        written(&node(&sim, other), "k", 1).await;
        sim.heal();
        assert_eq!(found(&node(&sim, away), "k").await.unwrap(), Some(1));
        sim.run_for(SOON).await;
        let status = node(&sim, &trio.leader).status();
        assert_eq!((status.is_leader, status.term), (true, term));
    });
}

#[test]
fn across_a_bridge_that_does_not_forward_writes_go_on_and_elections_come_to_an_end() {
    for bridge_leads in [true, false] {
        three(2, |sim, trio| async move {
            let [one, two] = trio.others();
            // Who sees both of the others, who do not see each other.
            let (bridge, left, right) =
                if bridge_leads { (trio.leader.as_str(), one, two) } else { (one, trio.leader.as_str(), two) };
            sim.partition(&[&[left, bridge], &[bridge, right]]).unwrap();
            sim.run_for(20 * SECOND).await;
            let term = node(&sim, bridge).status().term;
            for i in 0..20 {
                written(&node(&sim, bridge), "k", i).await;
                sim.run_for(SECOND).await;
            }
            let terms = node(&sim, bridge).status().term - term;
            assert!(terms <= 1, "{terms} elections in 20 s though a majority is connected");
        });
    }
}

#[test]
fn a_leader_that_nobody_reaches_gives_way_though_all_hear_it() {
    three(3, |sim, trio| async move {
        let (old, [other, third]) = (trio.leader.as_str(), trio.others());
        for name in [other, third] {
            sim.cut(name, old).unwrap();
        }
        let started = sim.elapsed();
        let written = node(&sim, other).set("k", &1u64).timeout(60 * SECOND).await;
        assert!(written.is_ok(), "{written:?}");
        let took = sim.elapsed() - started;
        assert!(took < SOON, "the others were without a leader for {took:?}");
        let stale = node(&sim, old).get::<u64>("k").timeout(SECOND).await;
        assert!(stale.is_err(), "{stale:?}");
    });
}

#[test]
fn a_leader_that_nobody_hears_is_replaced_and_serves_no_read_from_then_on() {
    three(4, |sim, trio| async move {
        let (old, [other, third]) = (trio.leader.as_str(), trio.others());
        written(&node(&sim, old), "k", 1).await;
        for name in [other, third] {
            sim.cut(old, name).unwrap();
        }
        written(&node(&sim, other), "k", 2).await;
        let stale = node(&sim, old).get::<u64>("k").timeout(2 * SECOND).await;
        assert!(!matches!(&stale, Ok(Some(entry)) if **entry == 1), "{stale:?}");
    });
}

#[test]
fn a_network_of_every_vice_applies_each_write_once() {
    three(5, |sim, trio| async move {
        let vice = Wire::default().latency(Duration::ZERO, Duration::from_millis(60)).loss(0.3).duplication(0.5);
        sim.wires(vice.lateness(0.1, 60 * SECOND).corruption(0.05));
        let (mut acked, mut unknown) = (0, Vec::new());
        for i in 0..25u64 {
            let name = trio.others()[i as usize % 2];
            match node(&sim, name).set(format!("{i}"), &i).prev().timeout(3 * SECOND).await {
                Ok(replaced) => {
                    assert!(replaced.prev.is_none(), "{i} was applied twice: {replaced:?}");
                    acked += 1;
                }
                Err(Error::Indeterminate { ticket }) => unknown.push((i, ticket)),
                Err(Error::NotApplied { .. }) => {}
                Err(other) => panic!("{i}: {other}"),
            }
        }
        sim.wires(Wire::default());
        // Until the last late frame has arrived.
        sim.run_for(65 * SECOND).await;
        let leader = settled(&sim).await.leader;
        let mut applied = acked;
        for (i, ticket) in unknown {
            let outcome = node(&sim, &leader).resolve(&ticket).await.unwrap();
            let there = node(&sim, &leader).get::<u64>(format!("{i}")).await.unwrap();
            match outcome {
                Outcome::Applied(revision) => assert_eq!(there.map(|entry| entry.modified), Some(revision)),
                other => assert!(other == Outcome::Never && there.is_none(), "{i}: {other:?}, {there:?}"),
            }
            applied += u64::from(matches!(outcome, Outcome::Applied(_)));
        }
        let all = node(&sim, &leader).range::<u64>(..).await.unwrap();
        assert!(all.iter().all(|(_, entry)| entry.version == 1), "{all:?}");
        assert_eq!(all.len() as u64, applied);
        let harm = sim.harm_done();
        let harmed = [Harm::FrameLate, Harm::FrameDamaged].map(|kind| harm.of(kind));
        assert!(acked > 5 && harmed.iter().all(|times| *times > 30), "{acked} acknowledged, {harm}");
    });
}

#[test]
fn a_slow_disk_of_a_follower_slows_nobody_and_one_of_the_leader_only_its_writes() {
    three(6, |sim, trio| async move {
        let took = async |sim: &Sim, name: &str| {
            let started = Instant::now();
            for i in 0..5 {
                let written = node(sim, name).set("k", &i).timeout(60 * SECOND).await;
                written.unwrap_or_else(|error| panic!("{error}"));
            }
            started.elapsed() / 5
        };
        let usual = took(&sim, &trio.leader).await;
        let term = node(&sim, &trio.leader).status().term;
        // Longer than heartbeats are apart, and than elections take.
        sim.slow_disk(trio.others()[0], 2 * SECOND, 2 * SECOND).unwrap();
        let with_slow_follower = took(&sim, &trio.leader).await;
        assert!(with_slow_follower < usual * 3 + SECOND / 20, "{usual:?} became {with_slow_follower:?}");
        sim.run_for(20 * SECOND).await;
        let now = (sim.leader(), node(&sim, &trio.leader).status().term);
        assert_eq!(now, (Some(trio.leader.clone()), term), "who cannot sync takes its leader for dead");
        sim.recover();
        sim.run_for(SOON).await;
        let leader = settled(&sim).await.leader;
        sim.slow_disk(&leader, SECOND / 5, SECOND / 5).unwrap();
        let with_slow_leader = took(&sim, &leader).await;
        assert!(with_slow_leader < 2 * SECOND, "{with_slow_leader:?}");
        assert_eq!(sim.leader().as_ref(), Some(&leader), "it was deposed for being slow");
    });
}

#[test]
fn a_leader_whose_disk_hangs_makes_room_for_another_says_so_and_is_back_when_the_disk_is() {
    three(16, |sim, trio| async move {
        let [one, two] = trio.others();
        sim.hang_disk(&trio.leader).unwrap();
        let stuck = node(&sim, &trio.leader).set("k", &1u64).timeout(SECOND).await;
        assert!(stuck.is_err(), "its disk has not answered: {stuck:?}");
        let led_by_another = || [one, two].iter().any(|name| node(&sim, name).status().is_leader);
        sim.until("another leader", 30 * SECOND, led_by_another).await.unwrap();
        let status = node(&sim, &trio.leader).status();
        assert_eq!((status.health, status.is_leader), (Health::DiskStalled, false));
        for (value, name) in [(2, one), (3, two)] {
            written(&node(&sim, name), "k", value).await;
        }
        // A follower's hung disk, which it is now, concerns nobody else.
        sim.run_for(60 * SECOND).await;
        written(&node(&sim, one), "k", 4).await;
        sim.mend_disk(&trio.leader).unwrap();
        let serves = || node(&sim, &trio.leader).status().health == Health::Serving;
        sim.until("the disk is back", 30 * SECOND, serves).await.unwrap();
        assert_eq!(found(&node(&sim, &trio.leader), "k").await.unwrap(), Some(4));
    });
}

#[test]
fn a_shutdown_on_a_disk_that_hangs_says_so_in_time_and_ends_with_the_disk() {
    for stopped_by_itself in [false, true] {
        three(17, |sim, trio| async move {
            let name = trio.others()[0];
            let member = node(&sim, name);
            sim.hang_disk(name).unwrap();
            if stopped_by_itself {
                member.node().fail_disk();
                let stopped = || matches!(member.status().health, Health::Stopped(_));
                sim.until("it has stopped", SOON, stopped).await.unwrap();
            }
            // As often as it is called: the files are not closed.
            for _ in 0..2 {
                let (started, waited) = (Instant::now(), SOON + Timing::fast().election_max);
                assert_eq!(member.shutdown().await, Err(Error::ShuttingDown { waited }));
                assert!(started.elapsed() < 2 * waited, "{:?}", started.elapsed());
            }
            assert!(matches!(member.set("k", &1u64).await, Err(Error::Stopped { .. })), "it serves nobody any more");
            sim.mend_disk(name).unwrap();
            assert_eq!(member.shutdown().await, Ok(()));
            assert!(matches!(member.status().health, Health::Stopped(_)));
            written(&node(&sim, &trio.leader), "k", 2).await;
        });
    }
}

#[test]
fn a_member_whose_directory_was_set_back_is_stopped_and_named_and_the_others_go_on() {
    three(17, |sim, trio| async move {
        let [member, other] = trio.others();
        sim.hosts(["shelf"], |_| async {}).unwrap();
        sim.kill("shelf").ok();
        written(&node(&sim, other), "k", 1).await;
        sim.kill(member).unwrap();
        sim.copy_disk(member, "shelf").unwrap();
        sim.restart(member).unwrap();
        sim.until("it is back", SOON, || sim.node(member).is_ok()).await.unwrap();
        written(&node(&sim, member), "k", 2).await;
        sim.kill(member).unwrap();
        sim.copy_disk("shelf", member).unwrap();
        sim.restart(member).unwrap();
        let stopped = || sim.node(member).is_ok_and(|node| matches!(node.status().health, Health::Stopped(_)));
        sim.until("it is told", SOON, stopped).await.unwrap();
        let health = node(&sim, member).status().health;
        assert!(matches!(&health, Health::Stopped(why) if why.contains("copy of its directory")), "{health:?}");
        // Nor does it come back by itself.
        sim.kill(member).unwrap();
        sim.restart(member).unwrap();
        sim.run_for(SECOND).await;
        assert!(sim.exit(member).unwrap().is_some_and(|why| why.contains("Failed")));
        written(&node(&sim, other), "k", 3).await;
    });
}

/// Beyond what one process may have under way a write is refused, and nothing else happens to it or to others; leases that end
/// together are ended in batches; and while that goes on others are served.
#[test]
fn a_flood_of_writes_is_refused_beyond_its_limit_and_thousands_of_leases_end_together_while_others_are_served() {
    const FLOOD: u64 = 6000;
    three(18, |sim, trio| async move {
        let [one, two] = trio.others();
        let (flooded, beside) = (node(&sim, one), node(&sim, two));
        let ttl = Duration::from_secs(3);
        let set = |n| flooded.set(format!("flood/{n}"), &n).ttl(ttl).timeout(SOON * 3).into_future();
        let flood: Vec<_> = (0..FLOOD).map(|n| rt::spawn("flood", set(n))).collect();
        written(&beside, "k", 1).await;
        let (mut done, mut refused) = (0, 0);
        for write in flood {
            match write.await.expect("no panic") {
                Ok(_) => done += 1,
                Err(Error::NotApplied { why: Obstacle::Busy { limit: 4096, .. }, .. }) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(done >= 4096 && refused > 0, "{done} written, {refused} refused");
        assert_eq!(beside.range::<u64>(crate::prefix("flood/")).count().await.expect("served"), done);
        let ended = Instant::now() + ttl + SOON;
        while beside.range::<u64>(crate::prefix("flood/")).count().timeout(SOON).await.expect("served") > 0 {
            assert!(Instant::now() < ended, "leases are left");
            written(&beside, "k", 2).await;
        }
        assert_eq!(found(&node(&sim, &trio.leader), "k").await.unwrap(), Some(2));
    });
}

#[test]
fn a_lease_outlives_a_disk_that_is_slower_than_its_renewals() {
    three(7, |sim, trio| async move {
        let session = node(&sim, trio.others()[0]).session().ttl(3 * SECOND).await.unwrap();
        let key = node(&sim, trio.others()[0]).set("alive", &1u64).session(&session).await;
        key.unwrap();
        sim.slow_disk(&trio.leader, 2 * SECOND, 2 * SECOND).unwrap();
        sim.run_for(30 * SECOND).await;
        sim.recover();
        assert_eq!(found(&node(&sim, trio.others()[1]), "alive").await.unwrap(), Some(1));
    });
}

#[test]
fn wall_clocks_that_jump_by_ten_years_change_nothing() {
    three(8, |sim, trio| async move {
        let ten_years_ms = 315_360_000_000;
        let session = node(&sim, &trio.leader).session().ttl(3 * SECOND).await.unwrap();
        node(&sim, &trio.leader).set("alive", &1u64).session(&session).await.unwrap();
        let before = node(&sim, &trio.leader).status();
        for (name, by_ms) in [(trio.leader.as_str(), ten_years_ms), (trio.others()[0], -ten_years_ms)] {
            sim.jump_wall_clock(name, by_ms).unwrap();
        }
        sim.run_for(60 * SECOND).await;
        assert_eq!(found(&node(&sim, trio.others()[1]), "alive").await.unwrap(), Some(1));
        let after = node(&sim, &trio.leader).status();
        assert_eq!((before.term, before.revision, true), (after.term, after.revision, after.is_leader));
        drop(session);
    });
}

#[test]
fn fences_grow_though_clocks_run_five_percent_apart() {
    let fences = Arc::new(std::sync::Mutex::new(Vec::new()));
    three(9, |sim, trio| {
        let fences = fences.clone();
        async move {
            sim.drift(trio.others()[0], 50_000).unwrap();
            sim.drift(trio.others()[1], -50_000).unwrap();
            for turn in 0..12 {
                let name = trio.others()[turn % 2];
                let guard = node(&sim, name).lock("l").ttl(2 * SECOND).timeout(30 * SECOND).await.unwrap();
                fences.lock().unwrap().push(guard.fence());
                guard.txn().then(put("k", &turn)).await.unwrap();
                match turn % 3 {
                    // Its holder dies, and the lease has to run out.
                    0 => {
                        drop(guard);
                        sim.kill(name).unwrap();
                        sim.restart(name).unwrap();
                        settled(&sim).await;
                    }
                    _ => guard.release().await.unwrap(),
                }
            }
        }
    });
    let fences = fences.lock().unwrap();
    assert!(fences.windows(2).all(|pair| pair[0] < pair[1]), "{fences:?}");
}

#[test]
fn a_leader_that_was_stopped_reads_nothing_stale_and_ends_no_lease_when_it_goes_on() {
    three(10, |sim, trio| async move {
        let (old, [other, third]) = (trio.leader.as_str(), trio.others());
        written(&node(&sim, old), "k", 1).await;
        // Renewed only at the new leader; to the old one it is long overdue.
        let session = node(&sim, other).session().ttl(3 * SECOND).await.unwrap();
        node(&sim, other).set("alive", &1u64).session(&session).await.unwrap();
        sim.pause(old).unwrap();
        written(&node(&sim, third), "k", 2).await;
        sim.run_for(SOON).await;
        let late = node(&sim, old).get::<u64>("k").timeout(2 * SECOND).into_future();
        sim.resume(old).unwrap();
        let late = late.await;
        assert!(!matches!(&late, Ok(Some(entry)) if **entry == 1), "{late:?}");
        sim.run_for(SOON).await;
        for name in [old, other, third] {
            assert_eq!(found(&node(&sim, name), "alive").await.unwrap(), Some(1));
            assert_eq!(found(&node(&sim, name), "k").await.unwrap(), Some(2));
        }
    });
}

#[test]
fn the_guard_of_a_machine_that_slept_is_lost_when_it_wakes() {
    three(11, |sim, trio| async move {
        let [sleeper, other] = trio.others();
        let guard = node(&sim, sleeper).lock("l").ttl(2 * SECOND).await.unwrap();
        let mut lost = guard.lost();
        sim.suspend(sleeper).unwrap();
        let next = node(&sim, other).lock("l").ttl(2 * SECOND).timeout(30 * SECOND).await.unwrap();
        assert!(next.fence() > guard.fence());
        sim.resume(sleeper).unwrap();
        // Not by hearing of it: by its own clock, which counts the sleep.
        let told = rt::timeout(SECOND / 10, &mut lost).await;
        assert!(told.is_ok(), "it still believes to hold the lock");
        let late = guard.txn().then(put("k", &1u64)).timeout(SOON).await;
        assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
        next.release().await.unwrap();
    });
}

#[test]
fn twenty_leaders_killed_one_after_the_other_take_nothing_with_them() {
    three(12, |sim, trio| async move {
        let (mut leader, mut acked, next) = (trio.leader, Vec::new(), AtomicU64::new(0));
        let mut longest = Duration::ZERO;
        for round in 0..20 {
            for _ in 0..5 {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if node(&sim, &leader).set(format!("{i}"), &i).timeout(SECOND).await.is_ok() {
                    acked.push(i);
                }
            }
            if round % 2 == 0 {
                sim.kill(&leader).unwrap()
            } else {
                sim.crash(&leader, LostWrites::Torn).unwrap()
            }
            let (ended, alive) = (sim.elapsed(), sim.open());
            written(&alive[0].1, "gap", round).await;
            longest = longest.max(sim.elapsed() - ended);
            sim.restart(&leader).unwrap();
            leader = settled(&sim).await.leader;
        }
        for i in &acked {
            assert_eq!(found(&node(&sim, &leader), &format!("{i}")).await.unwrap(), Some(*i));
        }
        assert_eq!(acked.len(), 100);
        assert!(longest < 3 * SECOND, "without a leader for {longest:?}");
    });
}

#[test]
fn frames_with_flipped_bits_are_refused_and_everything_else_goes_on() {
    three(13, |sim, trio| async move {
        sim.wires(Wire::default().corruption(0.3));
        for i in 0..30 {
            written(&node(&sim, trio.others()[i as usize % 2]), "k", i).await;
        }
        assert_eq!(found(&node(&sim, &trio.leader), "k").await.unwrap(), Some(29));
        assert!(sim.harm_done().of(Harm::FrameDamaged) > 50, "{}", sim.harm_done());
    });
}

#[test]
fn what_was_acknowledged_this_moment_survives_the_power_failure_of_all_disks_however_slow() {
    three(14, |sim, trio| async move {
        let mut leader = trio.leader;
        for i in 0..4 {
            for name in sim.names() {
                sim.slow_disk(&name, SECOND / 5, SECOND / 5).unwrap();
            }
            written(&node(&sim, &leader), "k", i).await;
            for name in sim.names() {
                sim.crash(&name, LostWrites::All).unwrap();
            }
            sim.recover();
            leader = settled(&sim).await.leader;
            assert_eq!(found(&node(&sim, &leader), "k").await.unwrap(), Some(i));
        }
    });
}

#[test]
fn a_leader_that_restarts_without_what_it_had_only_sent_gives_no_place_in_the_log_twice() {
    for seed in 15..18 {
        three(seed, |sim, trio| async move {
            let leader = trio.leader.as_str();
            written(&node(&sim, leader), "before", 0).await;
            sim.hang_disk(leader).unwrap();
            // The others have them on disk, and the leader nowhere.
            let old = node(&sim, leader);
            let sent = (0..5u64).map(|i| old.set(format!("sent/{i}"), &i).timeout(SECOND / 20).into_future());
            futures::future::join_all(sent).await;
            sim.crash(leader, LostWrites::All).unwrap();
            sim.mend_disk(leader).unwrap();
            sim.restart(leader).unwrap();
            let again = settled(&sim).await.leader;
            for i in 0..5 {
                written(&node(&sim, &again), &format!("after/{i}"), i).await;
            }
            let nodes: Vec<Cluster> = sim.open().into_iter().map(|(_, node)| node).collect();
            converged(&nodes, &format!("seed {seed}")).await;
        });
    }
}
