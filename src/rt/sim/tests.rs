use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::rt::task::TaskFailed;
use crate::rt::{self, Instant, NodeRuntime, RuntimeKind};

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_killed_process_is_not_polled_again_and_what_it_held_is_dropped() {
    World::new(1, 1).block_on(async {
        let process = current().unwrap().world().context("a", 0);
        let polls = Arc::new(Mutex::new(0));
        let counted = polls.clone();
        let task = process.spawn("ticking", async move {
            loop {
                *counted.lock().unwrap() += 1;
                rt::sleep(MS).await;
            }
        });
        rt::sleep(MS * 10).await;
        process.kill();
        let before = *polls.lock().unwrap();
        assert!(before >= 10, "{before}");
        let ended: Result<Result<(), _>, _> = rt::timeout(HOUR, task).await;
        assert_eq!(ended, Ok(Err(TaskFailed::Aborted { name: "ticking" })));
        assert_eq!((*polls.lock().unwrap(), Arc::strong_count(&polls)), (before, 1));
        let late = process.spawn("late", async {}).await;
        assert_eq!(late, Err(TaskFailed::Aborted { name: "late" }));
    });
}

#[test]
fn what_a_task_spawns_or_starts_belongs_to_its_process_and_not_to_who_asks() {
    World::new(1, 1).block_on(async {
        let name = || current().map(|context| context.name().to_owned());
        let process = current().unwrap().world().context("a", 0);
        let runtime = process.spawn("start", async { NodeRuntime::start("n", RuntimeKind::Dedicated) }).await;
        let runtime = runtime.unwrap().unwrap();
        assert_eq!(name().as_deref(), Some("outside"));
        assert_eq!(runtime.spawn("asked from outside", async move { name() }).await.unwrap().as_deref(), Some("a"));
        let child = process.spawn("parent", async move { rt::spawn("child", async move { name() }).await });
        assert_eq!(child.await.unwrap().unwrap().as_deref(), Some("a"));
        let (entered, spawned) = (process.enter(async { name() }).await, rt::spawn("own", async move { name() }).await);
        assert_eq!((entered.as_deref(), spawned.unwrap().as_deref()), (Some("a"), Some("outside")));
    });
}

#[test]
fn timers_that_expire_in_a_pause_fire_at_its_end_and_none_before() {
    World::new(1, 1).block_on(async {
        let process = current().unwrap().world().context("a", 0);
        let task = process.spawn("sleepers", async {
            let slept = |time| async move {
                rt::sleep(time).await;
                Instant::now()
            };
            let start = Instant::now();
            let (one, two) = futures::join!(slept(MS * 10), slept(MS * 500));
            (one - start, two - start)
        });
        rt::sleep(MS).await;
        process.pause();
        rt::sleep(MS * 100).await;
        process.resume();
        assert_eq!(task.await, Ok((MS * 101, MS * 500)));
    });
}

#[test]
fn a_suspended_machine_sleeps_on_and_only_its_boot_and_wall_clocks_know() {
    World::new(1, 1).block_on(async {
        let process = current().unwrap().world().context("a", 0);
        let clocks = || (Instant::now(), rt::boot_now(), rt::wall_ms());
        let task = process.spawn("sleeper", async move {
            let before = clocks();
            rt::sleep(MS * 10).await;
            let after = clocks();
            (after.0 - before.0, after.1 - before.1, after.2 - before.2)
        });
        rt::sleep(MS * 4).await;
        process.suspend();
        rt::sleep(HOUR).await;
        process.resume();
        assert_eq!(task.await, Ok((MS * 10, HOUR + MS * 10, 3_600_010)));
        // The next process of a machine that died in its sleep wakes it.
        process.suspend();
        rt::sleep(HOUR).await;
        process.kill();
        let next = current().unwrap().world().context("a", 1);
        next.spawn("sleeper", rt_sleep(MS * 10)).await.unwrap();
    });
}

#[test]
fn a_clock_that_drifts_shortens_or_stretches_what_its_machine_waits_even_in_the_middle() {
    World::new(1, 1).block_on(async {
        let process = current().unwrap().world().context("a", 0);
        let start = Instant::now();
        let sleeper = |time| process.spawn("sleeper", rt_sleep(time));
        let (short, long) = (sleeper(MS * 100), sleeper(MS * 300));
        rt::sleep(MS * 50).await;
        process.set_clock(SetClock { drift_ppm: Some(1_000_000), ..SetClock::default() });
        short.await.unwrap();
        assert_eq!(start.elapsed(), MS * 75);
        process.set_clock(SetClock { drift_ppm: Some(-500_000), ..SetClock::default() });
        long.await.unwrap();
        assert_eq!(start.elapsed(), MS * 475, "200 ms were left, at half the rate");
        let jumps = SetClock { boot_jump: HOUR, wall_jump_ms: -5, ..SetClock::default() };
        let (boot, wall) = (process.boot_now(), process.wall_ms());
        process.set_clock(jumps);
        assert_eq!((process.boot_now() - boot, process.wall_ms() + 5), (HOUR, wall));
        // The next process of the machine finds the clocks as they are.
        assert_eq!(process.world().context("a", 1).boot_now(), process.boot_now());
    });
}

async fn rt_sleep(time: Duration) {
    rt::sleep(time).await;
}

#[test]
fn a_scale_gives_events_within_a_millisecond_their_order() {
    for (scale, expected) in [(1, [MS, MS, MS]), (100, [MS / 10, MS / 5, MS])] {
        let world = World::new(1, scale);
        let slept = world.block_on(async {
            let start = Instant::now();
            let mut slept = Vec::new();
            for time in [MS / 10, MS / 5, MS] {
                let task = rt::spawn("sleeper", async move {
                    rt::sleep(time).await;
                    start.elapsed()
                });
                slept.push(task);
            }
            let late = rt::timeout(MS * 3, std::future::pending::<()>()).await;
            assert_eq!((late, start.elapsed()), (Err(rt::clock::Elapsed), MS * 3));
            futures::future::join_all(slept).await
        });
        assert_eq!(slept, expected.map(Ok));
        assert_eq!(world.scale(), scale);
    }
}

#[test]
fn chance_depends_on_the_seed_the_process_and_its_generation_and_on_nothing_else() {
    let drawn = |seed, name: &'static str, generation| {
        World::new(seed, 1).block_on(async move {
            rt::random_u64();
            let process = current().unwrap().world().context(name, generation);
            process.enter(async { (rt::random_u64(), rt::random_u128()) }).await
        })
    };
    let first = drawn(1, "a", 0);
    assert_eq!(drawn(1, "a", 0), first);
    for other in [drawn(2, "a", 0), drawn(1, "b", 0), drawn(1, "a", 1)] {
        assert_ne!(other, first);
    }
    let (one, two) = (World::new(1, 1), World::new(2, 1));
    assert_eq!(one.seed_for("network"), World::new(1, 100).seed_for("network"));
    assert!(one.seed_for("network") != one.seed_for("disk") && one.seed_for("disk") != two.seed_for("disk"));
}

#[test]
fn a_panic_is_written_down_and_still_reaches_whoever_waits() {
    let world = World::new(1, 1);
    world.block_on(async {
        rt::sleep(MS).await;
        let process = current().unwrap().world().context("a", 3);
        let failed: Result<(), _> = process.spawn("fragile", async { panic!("broken") }).await;
        assert_eq!(failed, Err(TaskFailed::Panicked { name: "fragile", message: "broken".into() }));
    });
    let (process, task, message) = ("a".to_owned(), "fragile".to_owned(), "broken".to_owned());
    assert_eq!(world.panics(), [Panicked { at: MS, process, generation: 3, task, message }]);
}

/// Tasks that meet at the same moments, and draw.
fn bustle(seed: u64, yields: u32) -> World {
    let world = World::new(seed, 100);
    world.record(Recording::Everything);
    world.set_yields(yields);
    world.block_on(async {
        let (news, _) = rt::watch::channel(0u64);
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let mut heard = news.subscribe();
                rt::spawn("listener", async move { while heard.wait_for(|n| *n > 20).await.is_err() {} })
            })
            .collect();
        for _ in 0..30 {
            rt::sleep(MS / 10 * (rt::random_u64() % 5) as u32).await;
            news.send_modify(|n| *n += 1);
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
    world
}

#[test]
fn a_seed_repeats_itself_with_and_without_yields_and_another_does_not() {
    for yields in [0, 200] {
        let (one, two) = (bustle(1, yields), bustle(1, yields));
        assert_eq!(first_difference(&one.recorded(), &two.recorded()), None);
        assert_eq!((one.hash(), one.events()), (two.hash(), two.events()));
        assert_eq!(one.events() as usize, one.recorded().len());
        assert_ne!(bustle(2, yields).hash(), one.hash());
    }
    assert_ne!(bustle(1, 0).hash(), bustle(1, 200).hash());
}

#[test]
fn a_recording_keeps_as_many_lines_as_it_was_told() {
    let world = World::new(1, 1);
    world.record(Recording::Last(3));
    world.block_on(async {
        (0..10).for_each(|n| trace("note", &[n]));
    });
    let lines = world.recorded();
    assert_eq!(lines.len(), 3);
    assert!(lines[1].ends_with("note 9") && lines[2].ends_with("done"), "{lines:?}");
}
