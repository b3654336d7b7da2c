//! That a simulated run repeats itself: without this, no seed that fails is worth anything.
//!
//! The runs are compared by the hash over everything that is traced: each poll with its task and its time, each frame and
//! each write to a disk with its bytes. On a difference both runs are made again, and the first line that differs is shown.

use super::support::seeds;
use super::swarm::short as run;
use crate::rt::sim::{Recording, World, first_difference};

fn assert_repeats(seed: u64, yields: u32) -> World {
    let (one, two) = (run(seed, yields, |_| {}), run(seed, yields, |_| {}));
    if (one.hash(), one.events()) != (two.hash(), two.events()) {
        let recorded = || run(seed, yields, |world| world.record(Recording::Everything)).recorded();
        let found = first_difference(&recorded(), &recorded());
        panic!("seed {seed}: {} lines and {} lines; first difference: {found:#?}", one.events(), two.events());
    }
    one
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    for seed in seeds(1..3) {
        let world = assert_repeats(seed, 0);
        println!("seed {seed}: {} lines, hash {:016x}", world.events(), world.hash());
    }
}

#[test]
fn a_seed_gives_the_same_run_twice_also_when_tasks_give_way_at_random() {
    for seed in seeds(3..4) {
        let world = assert_repeats(seed, 50);
        assert_ne!(world.hash(), run(seed, 0, |_| {}).hash(), "nobody gave way");
    }
}

#[test]
fn a_watch_that_wakes_in_random_order_is_noticed() {
    let differ = |seed| run(seed, 0, World::set_unfair).hash() != run(seed, 0, World::set_unfair).hash();
    assert!(seeds(1..4).any(differ), "the comparison would not see what it is there for");
}
