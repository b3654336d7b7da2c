use std::collections::BTreeSet;
use std::future::pending;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::run::{Play, play};
use super::*;
use crate::{Error, Health, StartError};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const SECOND: Duration = Duration::from_secs(1);

fn play_one<Fut: Future<Output: std::process::Termination>>(seed: u64, scenario: impl Fn(Sim) -> Fut) -> u64 {
    play(&Play { seed, ..Play::default() }, &scenario).hash()
}

/// What a run says when it fails.
fn failure<Fut: Future<Output: std::process::Termination>>(how: Play, scenario: impl Fn(Sim) -> Fut) -> String {
    let outcome = catch_unwind(std::panic::AssertUnwindSafe(|| play(&how, &scenario)));
    *outcome.expect_err("it is to fail").downcast::<String>().expect("a text")
}

#[test]
fn each_seed_is_played_once_in_a_world_of_its_own() {
    let played = std::sync::Mutex::new(Vec::new());
    run(5..8, |sim| {
        assert_eq!((sim.elapsed(), sim.names()), (Duration::ZERO, Vec::new()));
        played.lock().unwrap().push(sim.seed());
        async move { sim.run_for(SECOND * 3600).await }
    });
    assert_eq!(*played.lock().unwrap(), [5, 6, 7]);
}

#[test]
fn a_failure_names_the_seed_what_happened_and_how_to_see_it_again() {
    let how = Play { seed: 7, ..Play::default() };
    let asserted = failure(how, |sim| async move {
        sim.nodes(1).unwrap();
        sim.run_for(SECOND).await;
        sim.kill("node-1").unwrap();
        assert_eq!(1 + 1, 3, "arithmetic");
    });
    for part in ["seed 7", "arithmetic", "QUORATE_SIM_SEED=7 cargo test sim::tests::a_failure", "1.000s node-1 ends"] {
        assert!(asserted.contains(part), "{asserted}");
    }
    let returned = failure(how, |sim| async move { sim.kill("nobody") });
    assert!(returned.contains("returned an error"), "{returned}");
    let host = failure(how, |sim| async move {
        sim.hosts(["a"], |host| async move {
            host.spawn(async { panic!("the vase broke") });
            pending::<()>().await
        })
        .unwrap();
        pending::<()>().await
    });
    assert!(host.contains("a, life 1, panicked") && host.contains("the vase broke"), "{host}");
    let endless = failure(Play { limit: SECOND * 60, ..how }, |_| pending::<()>());
    assert!(endless.contains("has not ended after 60s"), "{endless}");
}

#[test]
fn a_process_ends_and_begins_again_with_what_its_disk_holds() {
    let lives = Arc::new(AtomicU64::new(0));
    let begun = lives.clone();
    play_one(1, |sim| {
        let begun = begun.clone();
        async move {
            sim.hosts(["a", "b", "c"], move |host| {
                begun.fetch_add(1, Ordering::Relaxed);
                async move {
                    let cluster = host.cluster().await?;
                    cluster.set(format!("{}/{}", host.name(), host.life()), &1).await?;
                    pending::<Result<(), Box<dyn std::error::Error + Send + Sync>>>().await
                }
            })?;
            sim.run_for(SECOND * 10).await;
            let old = sim.node("b")?;
            for lost in [LostWrites::All, LostWrites::Torn] {
                sim.crash("b", lost)?;
                sim.crash("c", lost)?;
                let gone = old.get::<i32>("a/1").await;
                assert!(matches!(gone, Err(Error::Stopped { .. })), "{gone:?}");
                assert!(matches!(sim.node("b"), Err(SimError::NotRunning { .. })));
                sim.restart("b")?;
                sim.restart("c")?;
                sim.run_for(SECOND * 10).await;
            }
            sim.kill("a")?;
            sim.restart("a")?;
            sim.run_for(SECOND * 10).await;
            let there = sim.node("a")?.range::<i32>(..).await?;
            let keys: BTreeSet<&str> = there.iter().map(|(key, _)| key.as_str()).collect();
            assert_eq!(keys, BTreeSet::from(["a/1", "a/2", "b/1", "b/2", "b/3", "c/1", "c/2", "c/3"]));
            Outcome::Ok(())
        }
    });
    assert_eq!(lives.load(Ordering::Relaxed), 8);
}

#[test]
fn a_process_that_returns_has_ended_and_says_how() {
    play_one(1, |sim| async move {
        sim.hosts(["a"], |host| async move {
            let _cluster = host.cluster().await?;
            host.spawn(async { pending::<()>().await });
            tokio::time::sleep(SECOND).await;
            Err::<(), _>(StartError::Failed { path: "/data".into(), reason: "enough".into() })
        })?;
        assert_eq!(sim.exit("a")?, None);
        sim.run_for(SECOND * 2).await;
        assert!(!sim.is_running("a")?);
        let how = sim.exit("a")?.expect("it has ended");
        assert!(how.contains("returned Err") && how.contains("enough"), "{how}");
        sim.restart("a")?;
        assert!(sim.is_running("a")?);
        Outcome::Ok(())
    });
}

#[test]
fn whoever_is_cut_off_cannot_write_and_whoever_is_paused_does_nothing() {
    play_one(3, |sim| async move {
        sim.nodes(3)?;
        sim.until("a leader", SECOND * 20, || sim.leader().is_some()).await?;
        sim.isolate("node-2")?;
        let write = |name: &str| sim.node(name).map(|node| node.set("k", &1).timeout(SECOND * 5));
        let cut_off = write("node-2")?.await;
        assert!(matches!(cut_off, Err(Error::NotApplied { .. } | Error::Indeterminate { .. })), "{cut_off:?}");
        write("node-1")?.timeout(SECOND * 20).await?;
        sim.heal();
        write("node-2")?.timeout(SECOND * 20).await?;

        sim.pause("node-3")?;
        let seen = sim.node("node-3")?.status().revision;
        write("node-1")?.timeout(SECOND * 20).await?;
        sim.run_for(SECOND * 20).await;
        assert_eq!(sim.node("node-3")?.status().revision, seen);
        sim.resume("node-3")?;
        sim.run_for(SECOND * 5).await;
        assert!(sim.node("node-3")?.status().revision > seen);
        Outcome::Ok(())
    });
}

#[test]
fn a_wiped_disk_and_a_cloned_one_are_told_by_the_others() {
    play_one(4, |sim| async move {
        sim.nodes(3)?;
        sim.run_for(SECOND * 10).await;
        sim.node("node-1")?.set("k", &1).await?;
        sim.crash("node-3", LostWrites::None)?;
        sim.wipe("node-3")?;
        sim.restart("node-3")?;
        sim.run_for(SECOND * 10).await;
        let wiped = sim.node("node-3")?.status().health;
        assert!(matches!(&wiped, Health::Stopped(why) if why.contains("node-3")), "{wiped:?}");

        sim.kill("node-3")?;
        sim.kill("node-2")?;
        sim.copy_disk("node-2", "node-3")?;
        sim.restart("node-2")?;
        sim.restart("node-3")?;
        sim.run_for(SECOND * 10).await;
        let cloned = sim.exit("node-3")?.expect("it does not start");
        assert!(cloned.contains("OtherNode"), "{cloned}");
        Outcome::Ok(())
    });
}

#[test]
fn a_failed_disk_stops_its_node_and_a_hung_one_only_until_it_is_mended() {
    play_one(5, |sim| async move {
        sim.nodes(3)?;
        sim.run_for(SECOND * 10).await;
        for (name, fault) in [("node-1", DiskFault::Sync)] {
            sim.fail_disk(name, fault, 0)?;
            sim.node("node-2")?.set("k", &1).timeout(SECOND * 30).await?;
            sim.run_for(SECOND * 5).await;
            let health = sim.node(name)?.status().health;
            assert!(matches!(health, Health::Stopped(_)), "{health:?}");
            sim.kill(name)?;
            sim.restart(name)?;
            sim.run_for(SECOND).await;
            let refused = sim.exit(name)?.expect("it does not start");
            assert!(refused.contains("Failed"), "{refused}");
        }
        // The two that are left need each other.
        sim.hang_disk("node-3")?;
        let stuck = sim.node("node-2")?.set("k", &2).timeout(SECOND * 10).await;
        assert!(stuck.is_err(), "{stuck:?}");
        sim.mend_disk("node-3")?;
        sim.node("node-2")?.set("k", &3).timeout(SECOND * 30).await?;
        Outcome::Ok(())
    });
}

#[test]
fn a_power_failure_while_a_host_starts_is_one_and_the_host_starts_after_it() {
    play_one(9, |sim| async move {
        sim.nodes(1)?;
        sim.run_for(SECOND * 10).await;
        let mut written = 0;
        for (round, lost) in
            [LostWrites::All, LostWrites::Torn, LostWrites::None].into_iter().cycle().take(12).enumerate()
        {
            sim.node("node-1")?.set("k", &round).timeout(SECOND * 10).await?;
            written = round;
            sim.crash("node-1", lost)?;
            sim.restart("node-1")?;
            sim.crash_mid_write("node-1", lost).await?;
            let how = sim.exit("node-1")?.expect("it has no power");
            assert!(how.starts_with("crashed"), "{how}");
            sim.restart("node-1")?;
            sim.run_for(SECOND * 5).await;
        }
        assert_eq!(*sim.node("node-1")?.get::<usize>("k").await?.expect("it is on the disk"), written);
        let [crashes, double] = [Harm::Crash, Harm::DoubleCrash].map(|harm| sim.harm_done().of(harm));
        assert!(crashes == 24 && double > 0, "{}", sim.harm_done());
        Outcome::Ok(())
    });
}

#[test]
fn what_is_done_to_a_world_is_counted_and_what_meets_nothing_is_not() {
    play_one(10, |sim| async move {
        sim.nodes(3)?;
        sim.run_for(SECOND * 10).await;
        assert_eq!(sim.harm_done(), HarmCounts::default());
        let counted = |harms: &[Harm]| harms.iter().map(|harm| sim.harm_done().of(*harm)).collect::<Vec<_>>();

        sim.cut("node-1", "node-2")?;
        sim.run_for(SECOND).await;
        assert!(counted(&[Harm::FrameCut])[0] > 0 && counted(&[Harm::FramePartitioned]) == [0]);
        sim.heal();
        let cut = counted(&[Harm::FrameCut]);
        sim.isolate("node-1")?;
        sim.run_for(SECOND).await;
        assert!(counted(&[Harm::FramePartitioned])[0] > 0 && counted(&[Harm::FrameCut]) == cut);
        sim.heal();

        sim.pause("node-2")?;
        sim.resume("node-2")?;
        sim.suspend("node-2")?;
        sim.resume("node-2")?;
        assert_eq!(counted(&[Harm::Pause, Harm::Suspend]), [1, 1]);
        sim.kill("node-2")?;
        assert!(sim.kill("node-2").is_err() && sim.pause("node-2").is_err());
        assert_eq!(counted(&[Harm::Kill, Harm::Pause, Harm::Crash, Harm::DoubleCrash]), [1, 1, 0, 0]);
        sim.restart("node-2")?;
        sim.kill("node-2")?;
        assert_eq!(counted(&[Harm::Kill, Harm::DoubleCrash]), [2, 1]);

        sim.drift("node-3", 100)?;
        sim.jump_wall_clock("node-3", -1000)?;
        // On a host that does not run nothing is slow.
        sim.hang_disk("node-2")?;
        sim.run_for(SECOND).await;
        sim.recover();
        assert_eq!(counted(&[Harm::Drift, Harm::WallClockJump, Harm::HungStep, Harm::SlowStep]), [1, 1, 0, 0]);
        sim.slow_disk("node-3", SECOND / 10, SECOND / 10)?;
        sim.node("node-1")?.set("k", &1).timeout(SECOND * 10).await?;
        sim.run_for(SECOND).await;
        assert!(counted(&[Harm::SlowStep])[0] > 0);

        sim.fail_disk("node-3", DiskFault::Sync, 0)?;
        sim.node("node-1")?.set("k", &2).timeout(SECOND * 10).await?;
        sim.run_for(SECOND).await;
        assert_eq!(counted(&[Harm::SyncFailed, Harm::WriteFailed, Harm::DiskFull]), [1, 0, 0]);
        ["node-1", "node-2"].iter().try_for_each(|name| sim.crash(name, LostWrites::All))?;
        sim.wipe("node-1")?;
        sim.copy_disk("node-2", "node-1")?;
        assert_eq!(counted(&[Harm::Wipe, Harm::DiskCopied, Harm::Crash, Harm::Blackout]), [1, 1, 2, 0]);
        Outcome::Ok(())
    });
}

/// Two hosts that write now and then, and faults of one kind.
async fn struck_by(sim: &Sim, fault: Fault) -> Outcome {
    sim.hosts(["a", "b"], |host| async move {
        let cluster = host.cluster().await?;
        for n in 0u64.. {
            let _ = cluster.set(host.name(), &n).timeout(SECOND).await;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        Ok::<(), StartError>(())
    })?;
    sim.run_for(SECOND * 3).await;
    sim.chaos(Faults::only([fault]), SECOND * 5).await;
    Outcome::Ok(())
}

#[test]
fn every_kind_of_fault_does_its_harm_and_no_other_kind_of_its_own() {
    for fault in Fault::ALL {
        let sum = std::cell::RefCell::new(HarmCounts::default());
        let mut seeds = 20..40;
        while sum.borrow().of(fault.harm()) == 0 {
            let seed = seeds.next().unwrap_or_else(|| panic!("{fault:?} does no harm: {}", sum.borrow()));
            play_one(seed, |sim| async {
                let sim = sim;
                struck_by(&sim, fault).await?;
                *sum.borrow_mut() += sim.harm_done();
                Outcome::Ok(())
            });
        }
        let sum = sum.into_inner();
        // Whoever loses power crashes.
        let crashes = matches!(fault, Fault::CrashAll | Fault::DoubleCrash);
        let others = Fault::ALL.into_iter().filter(|other| *other != fault && !(crashes && *other == Fault::Crash));
        let strangers: Vec<Fault> = others.filter(|other| sum.of(other.harm()) > 0).collect();
        assert!(strangers.is_empty(), "{fault:?} did the harm of {strangers:?}: {sum}");
    }
}

#[test]
fn misuse_is_told_by_name() {
    play_one(6, |sim| async move {
        sim.nodes(2)?;
        assert_eq!(sim.nodes(1), Err(SimError::NameTaken { name: "node-1".into() }));
        assert_eq!(sim.nodes(0), Err(SimError::HostCount { count: 0, limit: 64 }));
        let twice = sim.hosts(["x", "x"], |_| async {});
        assert_eq!(twice, Err(SimError::NameTaken { name: "x".into() }));
        let unknown = SimError::UnknownHost { name: "x".into(), known: "node-1, node-2".into() };
        assert_eq!(sim.cut("node-1", "x"), Err(unknown.clone()));
        assert_eq!(sim.partition(&[&["node-1", "x"]]), Err(unknown.clone()));
        assert_eq!(sim.pause("x"), Err(unknown));
        assert_eq!(sim.node("node-1").map(|_| ()), Err(SimError::NotOpen { name: "node-1".into() }));
        assert_eq!(sim.restart("node-1"), Err(SimError::Running { name: "node-1".into() }));
        assert_eq!(sim.wipe("node-1"), Err(SimError::Running { name: "node-1".into() }));
        assert_eq!(sim.drift("node-1", 600_000), Err(SimError::Drift { ppm: 600_000 }));
        sim.kill("node-1")?;
        let ended = SimError::NotRunning { name: "node-1".into(), why: "killed".into() };
        assert_eq!(sim.kill("node-1"), Err(ended.clone()));
        assert_eq!(sim.resume("node-1"), Err(ended));
        let waited = sim.until("pigs fly", SECOND, || false).await;
        assert_eq!(waited, Err(SimError::Waited { what: "pigs fly".into(), waited: SECOND }));
        Outcome::Ok(())
    });
}

#[test]
fn a_host_whose_clocks_run_wild_stays_a_member() {
    play_one(8, |sim| async move {
        sim.nodes(3)?;
        sim.run_for(SECOND * 10).await;
        sim.drift("node-1", 50_000)?;
        sim.drift("node-2", -50_000)?;
        sim.jump_wall_clock("node-3", -315_360_000_000)?;
        sim.run_for(SECOND * 60).await;
        for name in sim.names() {
            sim.node(&name)?.set(&name, &1).timeout(SECOND * 10).await?;
        }
        Outcome::Ok(())
    });
}

/// Writes on all hosts until the end; what was acknowledged is told to the scenario.
async fn chaotic(sim: Sim, time: Duration) -> Outcome {
    let acked: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let told = acked.clone();
    sim.hosts(["a", "b", "c"], move |host| {
        let told = told.clone();
        async move {
            let cluster = host.cluster().await?;
            for i in 0.. {
                let key = format!("{}/{}/{i}", host.name(), host.life());
                if cluster.set(&key, &i).timeout(SECOND * 3).await.is_ok() {
                    told.lock().unwrap().push(key);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok::<(), StartError>(())
        }
    })?;
    sim.chaos(Faults::all().swarm(), time).await;
    sim.run_for(SECOND * 10).await;
    let acked = acked.lock().unwrap().clone();
    assert!(acked.len() > 30, "{} writes in {:?}", acked.len(), sim.elapsed());
    for name in sim.names() {
        let there = sim.node(&name)?.range::<i64>(..).await?;
        let keys: BTreeSet<&str> = there.iter().map(|(key, _)| key.as_str()).collect();
        let gone = acked.iter().find(|key| !there.more && !keys.contains(key.as_str()));
        assert_eq!(gone, None, "acknowledged, and not there for {name}");
    }
    Outcome::Ok(())
}

#[test]
fn through_chaos_of_all_kinds_hosts_keep_what_was_acknowledged() {
    run(0..2, |sim| chaotic(sim, SECOND * 15));
}

#[test]
fn a_seed_is_one_run_and_another_seed_another() {
    let [first, again, other] = [11, 11, 12].map(|seed| play_one(seed, |sim| chaotic(sim, SECOND * 4)));
    assert_eq!(first, again);
    assert_ne!(first, other);
}
