//! Deliberate mistakes, by name: how the tests are tested.
//!
//! Built with `--cfg quorate_mutants`, code at some places asks here whether it is to do the wrong thing; the environment
//! variable `QUORATE_MUTANT` chooses one mistake for the whole process. `.ci/mutants` plays the simulated swarm, and the
//! tests written for a schedule that the swarm cannot be relied on to meet, against each of them, and demands that they
//! fail. In every other build the answer is a constant `false`, and nothing of the mistakes is left.

/// What there is to choose from. Each is explained where it is made.
#[cfg(quorate_mutants)]
const MUTANTS: [&str; 24] = [
    "ack_before_fsync",
    "skip_vote_fsync",
    "reorder_vote_append",
    "retry_without_dedup",
    "dedup_not_in_snapshot",
    "read_without_barrier",
    "keepalive_ack_without_quorum",
    "lead_on_a_hung_disk",
    "expire_without_issuer_check",
    "apply_reads_clock",
    "lock_grant_ignores_lease",
    "watch_drop_on_snapshot",
    "watch_split_batch",
    "progress_ahead_of_events",
    "purge_past_durable",
    "install_older_snapshot",
    "snapshot_includes_extra_entry",
    "truncate_on_crc_error",
    "hashmap_order_in_apply",
    "restore_leader",
    "state_ahead_of_log",
    "record_only_effective",
    "keepalive_over_inherited_expiry",
    "local_floor",
];

/// Whether this process is to make the mistake called `name`.
///
/// # Panics
/// If `name`, or what the environment asks for, is none of those there are: a mistake nobody makes proves nothing.
#[cfg(quorate_mutants)]
pub(crate) fn mutant(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let known = |name: &str| assert!(MUTANTS.contains(&name), "there is no mutant {name:?}");
    known(name);
    let chosen = CHOSEN.get_or_init(|| {
        let chosen = std::env::var("QUORATE_MUTANT").ok().filter(|chosen| !chosen.is_empty());
        chosen.inspect(|chosen| known(chosen))
    });
    chosen.as_deref() == Some(name)
}

/// Never.
#[cfg(not(quorate_mutants))]
#[inline(always)]
pub(crate) const fn mutant(_: &str) -> bool {
    false
}

// Known when the library is compiled, so that nothing is left to decide when it runs.
#[cfg(not(quorate_mutants))]
const _: () = assert!(!mutant("any"));

/// The items in the order in which a hash map would hand them out: another one on every node and in every run.
pub(crate) fn hash_order<T>(items: Vec<T>) -> Vec<T> {
    items.into_iter().enumerate().collect::<std::collections::HashMap<_, _>>().into_values().collect()
}
