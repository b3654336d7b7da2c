//! The consensus library's whole configuration, a reason for each line.

use openraft::{Config, SnapshotPolicy, StepDownPolicy};

use crate::config::{Retention, Timing};
use crate::rt::mutant;

/// Most entries in one append frame; the byte budget usually ends it first.
const FRAME_ENTRIES_MAX: u64 = 2048;
/// How long installing a received snapshot may take.
const INSTALL_TIMEOUT_MS: u64 = 10 * 60 * 1000;

/// The configuration of one node of cluster `name`.
pub(super) fn config(name: &str, timing: &Timing, retention: Retention) -> Config {
    let election_max = timing.election_max.as_millis() as u64;
    Config {
        // Shown in logs only.
        cluster_name: name.into(),
        // The host's: see `Timing` for what they cost and how they hang together, which it checks.
        heartbeat_interval: timing.heartbeat.as_millis() as u64,
        election_timeout_min: timing.election_min.as_millis() as u64,
        election_timeout_max: election_max,
        // No suppression: an idle follower must hear of a commit within one heartbeat.
        heartbeat_min_interval: Some(0),
        // The time limit of a whole transfer is ours (network.rs bounds each chunk), this one must not cut it short: a
        // limit shorter than the transfer restarts it for ever.
        install_snapshot_timeout: INSTALL_TIMEOUT_MS,
        // See there.
        max_payload_entries: FRAME_ENTRIES_MAX,
        // Appends merge freely: the log engine makes one write of whatever is queued.
        max_append_entries: Some(4096),
        // Only consulted when a learner is added: it counts as caught up within this many entries.
        replication_lag_threshold: 5_000,
        // A snapshot is a durable checkpoint and costs next to nothing more; it lets the log be purged.
        snapshot_policy: SnapshotPolicy::LogsSinceLast(retention.snapshot_entries),
        // The library's own chunking is not used; ours is in storage/snapshot.rs.
        snapshot_max_chunk_size: 3 * 1024 * 1024,
        // Large: see there.
        max_in_snapshot_log_to_keep: retention.kept_entries,
        // Purging in larger steps: each one is a write in the log engine.
        purge_batch_size: retention.kept_entries.clamp(1, 4096),
        // More than our own funnels ever have under way.
        api_channel_size: Some(65_536),
        notification_channel_size: Some(65_536),
        state_machine_channel_size: Some(1024),
        api_batch_capacity: 4096,
        // A linger is at least a millisecond; batches form while the disk is busy.
        api_batch_linger_ms: 0,
        // Measured without effect here; the default keeps batches larger.
        broadcast_submitted_on_append: None,
        // Of statistics that are kept with a feature that is off.
        log_stage_capacity: None,
        // Time drives all of it: without ticks nothing is elected, and nothing is retried.
        enable_tick: true,
        // Followers stand for election when they hear none.
        enable_heartbeat: true,
        // Every member is a voter that may lead.
        enable_elect: true,
        // One that was removed leads on for as long as it takes the others to elect another.
        removed_leader_step_down: StepDownPolicy::After(election_max),
        // A leader that can send but not hear must fall silent, or its heartbeats hold the others back for ever (upstream
        // issue 2080). At least lease + election_max.
        quorum_loss_probe_interval: Some(2 * election_max),
        // A node that was away must not depose a working leader by its mere return.
        enable_pre_vote: Some(true),
        // A dead peer is asked again soon: a restart should not cost a second.
        backoff: "20ms 50ms 100ms ...500ms".into(),
        // The new leader begins with peers it has not tried yet.
        reset_backoff_on_transfer_leader: Some(true),
        // A follower whose log went backwards has lost data and must not be counted.
        allow_log_reversion: Some(false),
        // Never: our followers flush and commit before the leader does, so a leader that restarts on its old vote can
        // give one log id to two payloads (reproduced; acknowledged writes are lost).
        enable_leader_restore: Some(mutant("restore_leader")),
        // What is left is deprecated and not read: `send_snapshot_timeout`.
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_passes_the_librarys_own_checks_and_keeps_what_is_not_negotiable() {
        for timing in [Timing::default(), Timing::fast()] {
            let config = config("test", &timing, Retention::default()).validate().expect("valid");
            assert_eq!(config.enable_leader_restore, Some(false));
            assert_eq!(config.enable_pre_vote, Some(true));
            let lease_and_election = 2 * timing.election_max.as_millis() as u64;
            assert!(config.quorum_loss_probe_interval >= Some(lease_and_election), "{config:?}");
        }
    }
}
