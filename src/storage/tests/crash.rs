//! The power fails at every operation of a run, and again at operations of the recovery.
//!
//! After each failure the log must be as it was after some prefix of the requests, and the prefix must hold every request
//! that was answered. That also says that no later request is on disk without an earlier one.

use super::open;
use super::script::run;
use crate::storage::fault_disk::{FaultDisk, PowerLoss, SplitMix};

const MODES: [PowerLoss; 5] =
    [PowerLoss::DropAll, PowerLoss::KeepAll, PowerLoss::Prefix, PowerLoss::Subset(50), PowerLoss::Subset(90)];

#[test]
fn a_run_without_a_failure_is_answered_to_the_end() {
    let disk = FaultDisk::new(1);
    let run = run(&disk);
    assert_eq!(run.answered(), run.states.len() - 1);
    assert_eq!(run.check(&disk, "after a close"), run.states[run.answered()]);
}

#[test]
fn wherever_the_power_fails_the_log_is_a_prefix_that_holds_all_that_was_answered() {
    let whole = FaultDisk::new(0);
    run(&whole);
    let (mut torn, mut kept) = (0, 0);
    for k in 0..whole.ops() {
        let disk = FaultDisk::new(k);
        disk.die_at(k);
        let run = run(&disk);
        // Every operation, two modes at each; the next one has the others.
        for mode in [MODES[(k % 5) as usize], MODES[(k + 2) as usize % 5]] {
            let when = format!("power failed at operation {k}, {mode:?}");
            let disk = disk.fork();
            disk.power_loss(mode);
            let found = run.check(&disk, &when);
            torn += u64::from(matches!(mode, PowerLoss::Subset(_)) && found == run.states[run.answered()]);
            kept += u64::from(found != run.states[run.answered()]);
            // What a node has seen at its start it will tell others: it must not be lost by the next failure.
            disk.power_loss(PowerLoss::DropAll);
            assert_eq!(run.check(&disk, &when), found, "{when}: a second failure lost what the first start found");
        }
    }
    assert!(torn > 0 && kept > 0, "the failures were all alike: {torn} fell back, {kept} kept more than was answered");
}

#[test]
fn a_second_failure_during_the_recovery_from_the_first_loses_nothing_either() {
    let whole = FaultDisk::new(0);
    run(&whole);
    let mut rng = SplitMix(7);
    let mut first = rng.below(5);
    while first < whole.ops() {
        let disk = FaultDisk::new(first);
        disk.die_at(first);
        let run = run(&disk);
        disk.power_loss(MODES[rng.below(5) as usize]);
        let recovery = {
            let disk = disk.fork();
            let before = disk.ops();
            run.check(&disk, &format!("power failed at operation {first}"));
            disk.ops() - before
        };
        let mut second = rng.below(4);
        while second < recovery {
            let disk = disk.fork();
            disk.die_at(second);
            drop(open(&disk));
            let mode = MODES[rng.below(5) as usize];
            disk.power_loss(mode);
            run.check(&disk, &format!("power failed at operation {first}, and at {second} of the recovery, {mode:?}"));
            second += 1 + rng.below(8);
        }
        first += 1 + rng.below(14);
    }
}
