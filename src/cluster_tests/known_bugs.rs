//! Bugs that others had, each with the test that would find it here.
//!
//! A list of what has gone wrong in systems like this one, taken from their issue trackers, from Jepsen's reports and from papers.
//! The last column names the test of this crate that fails if we make the same mistake, wherever it stands, or says why we
//! cannot. Tests that were written for an entry of this list are in the modules below. `#` is an issue or pull request of the
//! project named before it.
//!
//! # Logs, snapshots, elections
//!
//! | origin | what went wrong there | the test here |
//! |---|---|---|
//! | hashicorp/raft #697; openraft #559, #753, #1761 | A follower with entries that nobody else has was sent a snapshot: it kept the conflicting ones and refused all that followed, replicated them later, or died of the writes that waited for them. | `a_long_log_that_nobody_else_has_gives_way_to_a_shorter_snapshot` |
//! | NuRaft #407; Zeebe (camunda #6092) | A snapshot that came late was installed over a newer state, or truncated a newer log. | `a_snapshot_that_is_not_ahead_is_dropped` |
//! | rqlite #2759 | An error after the swap of the databases had a snapshot's entries applied a second time. | `a_power_failure_while_a_snapshot_comes_in_leaves_the_old_state_or_the_new_one`, `after_the_first_error_of_either_file_nothing_succeeds_and_the_node_does_not_start_again` |
//! | openraft #2116 | The core died of a snapshot that overtook an apply, on a quorum of the nodes, for good. | `a_panic_of_the_consensus_core_is_survived_by_the_node`, `writes_go_on_exactly_once_across_panics_of_the_core`, `snapshots_that_come_in_while_much_is_written_on_real_threads_and_disks_lose_nothing` |
//! | openraft #1511 | A leader that restarted quickly went on in its old term with less than it had sent: one place in the log could be given out twice. | `a_leader_that_restarts_without_what_it_had_only_sent_gives_no_place_in_the_log_twice` |
//! | ScyllaDB #9965; Copycat (atomix/copycat #265) | A deposed leader took the commit index of a heartbeat for its own longer log, and committed what nobody else had. | `what_a_deposed_leader_could_not_commit_is_seen_by_nobody` |
//! | ZOOKEEPER-5010 | What a leader had not committed when it died stayed in the memory of some followers for ever. | `what_a_deposed_leader_could_not_commit_is_seen_by_nobody`, `an_expiry_that_reached_nobody_is_forgotten_and_the_lease_lives_on` |
//! | CockroachDB #63302 | A cache of log entries kept what had been truncated. | `truncating_and_purging_keep_the_rest_in_place`, `entries_that_are_replaced_while_they_are_read_are_read_as_they_are_now` |
//! | openraft #2080 | A leader that could send and not hear kept the others from electing one that could. | `a_leader_that_nobody_reaches_gives_way_though_all_hear_it` |
//! | hashicorp/raft #503; Consul #22064 | A leader whose disk hung went on to send heartbeats: no write, no election. | `a_leader_whose_disk_hangs_makes_room_for_another_says_so_and_is_back_when_the_disk_is` |
//! | hashicorp/raft #614 | A node that could not write kept being elected. | `a_leader_whose_disk_has_failed_stops_leading_though_nobody_writes`, `a_disk_error_stops_its_node_for_good_and_the_others_go_on` |
//! | raft-dev, "bug in single-server membership changes" (Ongaro 2015); RethinkDB 2.2.3 (Jepsen); openraft #1808, #2002; NATS #7545 | Two quorums that do not meet, during or after a change of members. | does not apply: the members of a cluster do not change yet |
//!
//! # Disks
//!
//! | origin | what went wrong there | the test here |
//! |---|---|---|
//! | etcd #13766, #14685 | How far the state had come was saved without what had brought it there: after a crash entries were skipped. | `a_node_that_loses_power_at_any_operation_and_again_on_the_way_back_has_all_it_had_told`, `a_checkpoint_survives_the_loss_of_power_and_what_came_later_is_replayed_to_the_same_state` |
//! | etcd #14370 | A single member answered before its own log was synced. | `a_lone_node_acknowledges_nothing_that_its_disk_could_still_lose` |
//! | NATS #7564; hiqlite #361; sled #654 | Writes were acknowledged before they were synced, and gone when all machines lost their power. | `what_was_acknowledged_this_moment_survives_the_power_failure_of_all_disks_however_slow`, `what_was_acknowledged_survives_power_failures_of_all_nodes_and_what_was_unknown_is_resolved_truly` |
//! | NATS #7567 | A node that had lost what it had acknowledged helped elect a leader without it. | `a_vote_is_answered_when_it_and_all_before_it_would_survive_a_power_failure`, `a_member_that_has_lost_what_it_acknowledged_stops_when_its_leader_reminds_it` |
//! | etcd #11410, #9613; openraft #2002 | A member came back under its old identity with an empty directory. | `a_node_whose_directory_was_emptied_is_told_so_and_kept_out` |
//! | ZOOKEEPER-582 | A directory with a part of its files missing was taken for a valid older state. | `one_file_without_the_other_is_lost_data`, `an_unused_log_put_in_place_of_a_used_one_is_noticed` |
//! | dragonboat #156 | A state older than the snapshot beside it was taken for as new as that, with a gap behind it. | `a_state_file_from_before_what_the_log_holds_is_refused` |
//! | NATS #7549, #7556 | One flipped bit on one node took acknowledged data away from all. | `a_flipped_bit_is_found_or_harmless`, `a_record_that_has_rotted_is_neither_shown_nor_sent_and_stops_the_node` |
//! | Protocol-Aware Recovery (Alagappan et al., FAST '18) | A checksum that failed in the middle of a log was taken for a torn end, and everything behind it cut off. | `a_last_frame_that_is_torn_is_cut_off_and_any_other_is_damage_that_is_named` |
//! | PostgreSQL ("fsyncgate", 2018); Rebello et al., ATC '20 | A sync that had failed was tried again, and its success believed. | `a_sync_that_has_failed_is_never_tried_again` |
//! | redb #1290 | A recovery made a torn commit valid; a second crash made it the newest. | `a_node_that_loses_power_at_any_operation_and_again_on_the_way_back_has_all_it_had_told` |
//! | etcd #17780, #6633 | The newest revision was a deletion and was compacted away: after a restart revisions were given out again. | `the_revision_stands_though_the_newest_changes_were_deletions_and_are_forgotten` |
//! | RaftKeeper #332; databend #14047 | What an entry does depended on the clock of whoever replayed it. | `wall_clocks_that_jump_by_ten_years_change_nothing`, `random_commands_come_to_the_same_however_they_are_batched_restarted_restored_or_swept` |
//! | etcd #18667 | A transaction read below the floor and failed on one member only. | `unchanged_since_sees_puts_and_deletes_and_claims_nothing_below_the_floor`, `the_hash_does_not_depend_on_when_or_how_far_a_node_has_swept` |
//!
//! # Reads
//!
//! | origin | what went wrong there | the test here |
//! |---|---|---|
//! | etcd #20418, #21399 | A read was answered from a round that had begun before it. | `a_read_does_not_join_a_round_that_began_before_it`, `a_leader_that_was_stopped_reads_nothing_stale_and_ends_no_lease_when_it_goes_on` |
//! | d-engine #381; Redis-Raft 1b3fbf6 (Jepsen) | A leader in the minority answered reads without asking anybody. | `an_isolated_leader_serves_no_linearizable_read_though_it_believes_to_lead` |
//! | TiKV #9208 | A new leader gave out a read index from before its own term. | `every_acknowledged_write_is_seen_by_the_next_read_on_every_node` |
//! | TigerBeetle 0.16.11 (Jepsen) | Queries with several conditions left results out. | `a_stream_gives_what_a_sorted_map_would_for_every_range_limit_and_direction` |
//!
//! # Retries
//!
//! | origin | what went wrong there | the test here |
//! |---|---|---|
//! | etcd #14890 and jetcd 0.8.2 (Jepsen); Redis-Raft #13; fluree/db #1839 | A client, or a follower on its way to the leader, sent a write again that had been carried out. | `a_counter_counts_what_was_acknowledged_or_resolved_as_applied_over_a_network_that_loses_and_doubles`, `a_network_of_every_vice_applies_each_write_once` |
//! | openraft #2095; hashicorp/raft #561 | "Not the leader" was said of a write that was in a log, and that the next leader committed. | `a_write_of_an_isolated_leader_is_indeterminate_and_its_ticket_tells_in_the_end`, `a_refusal_that_answers_the_second_copy_of_a_frame_is_no_proof_that_the_first_was_not_applied` |
//! | Raft's sessions that expire (Ongaro's dissertation, 6.3); LogCabin ends such a client | "No such session" taken for "nothing was done": what went before under the session is forgotten with it, and would be done twice. | `a_write_whose_record_ended_between_two_copies_of_it_is_not_carried_out_twice`, `a_node_that_was_away_for_longer_than_its_record_lives_writes_at_once_and_once` |
//! | openraft #2096 (what its documentation demands since) | What suppresses doubles is not in the snapshot. | `what_a_number_was_decided_as_survives_in_a_snapshot` |
//! | Redis-Raft #26; Redpanda #10638 | The answer to one request was taken for the answer to another. | `answers_that_a_transport_mixes_up_reach_nobody` |
//! | tikv/raft-rs #571 | An answer to an earlier leader, or to an earlier life of one, counted as one to the present. | `what_was_acknowledged_to_a_leader_says_nothing_to_the_next`, `a_member_is_heard_in_its_latest_life_only` |
//!
//! # Watches
//!
//! | origin | what went wrong there | the test here |
//! |---|---|---|
//! | etcd 3.4.3 (Jepsen) | Revision zero meant "from now" and not "from the beginning". | `a_watch_from_the_first_revision_or_from_zero_delivers_the_whole_history` |
//! | etcd #15220 | A watcher was told how far it had seen everything before it had been given it. | `the_place_moves_on_while_the_watched_keys_are_quiet_but_never_past_what_was_delivered` |
//! | etcd #15271 | After its member had been sent a snapshot, a watcher was given older events again. | `across_a_snapshot_nothing_is_missing_and_nothing_older_comes_again` |
//! | etcd #17247 | Events of one transaction came twice. | `all_that_one_transaction_did_to_the_watched_keys_comes_in_one_batch`, `several_revisions_are_handed_out_in_order_once_and_whole` |
//! | etcd #17529; d-engine #294 | Watchers that were too slow lost events and were not told. | `a_watcher_that_falls_behind_is_given_the_present_state_and_goes_on_from_there`, `under_backpressure_a_watcher_behind_the_history_is_told_so_and_ends` |
//! | etcd #18089, #19179 | Deletions at the revision of a compaction were not delivered. | `the_first_delete_above_the_floor_is_not_lost`, `a_start_that_history_no_longer_holds_is_refused_with_the_oldest_it_holds` |
//! | etcd #20221 | A watch from a future revision was given older events. | `a_watch_from_the_future_delivers_nothing_below_it` |
//! | etcd #20655 | Watches that were opened while much happened missed some of it. | `watches_that_are_opened_without_a_pause_while_others_write_miss_nothing`, `the_initial_state_is_one_batch_and_the_changes_behind_it_follow_without_gap_or_double`, `whatever_happens_every_watcher_is_given_exactly_what_was_committed` |
//! | Khepri #259 | A mirror heard nothing of what a snapshot had brought. | `a_mirror_goes_on_through_a_snapshot_and_learns_of_what_it_took_away` |
//!
//! # Leases, sessions, locks, elections
//!
//! | origin | what went wrong there | the test here |
//! |---|---|---|
//! | etcd #15247 | A leader that was stuck, and no leader any more, renewed leases that its successor ended, and ended those that its successor renewed. | `a_leader_without_a_quorum_acknowledges_no_renewal`, `a_lease_outlives_a_disk_that_is_slower_than_its_renewals` |
//! | etcd #12528 | What a deposed leader had found expired was ended under its successor. | `an_expiry_that_another_leader_appended_is_void`, `a_new_leader_acknowledges_no_renewal_before_it_has_applied_its_predecessors_expiry` |
//! | etcd #9888, #17132; Consul #1172 | Leases lived on and on through changes of leader, or twice as long as they were to. | `a_lease_ends_neither_before_its_time_nor_long_after_through_changes_of_leader` |
//! | etcd #17642 | What was said of the time that a lease had left was any number while the leader changed. | `what_a_key_has_left_is_told_truly_while_it_is_renewed_and_leaders_change` |
//! | ZOOKEEPER-3144 | A server that had its sessions from a snapshot did not end what hung on them, or ended it too early. | `leases_that_came_with_a_snapshot_live_and_end_under_the_node_that_got_it` |
//! | ZOOKEEPER-1367 | After a restart of all servers, nodes of sessions that were gone stayed. | `leases_whose_holders_went_with_all_the_power_are_ended_in_time` |
//! | ZOOKEEPER-1208 | A node that was made while its session was being closed stayed. | `a_put_on_a_lease_that_is_not_there_refuses_the_whole_transaction`, `a_lease_that_expires_takes_all_its_keys_at_one_revision` |
//! | etcd #6093 | A key went on to hang on a lease that was gone, and deleting it brought all members down. | `a_put_replaces_what_its_key_hangs_on`, `an_expiry_of_a_lease_that_is_gone_is_refused_and_harmless` |
//! | etcd #11456 (Jepsen), #11007, #22387 | A waiter was given the lock, or the office, when its own lease was long gone. | `a_waiter_whose_session_has_lapsed_is_not_granted_the_lock_and_learns_why`, `a_candidate_whose_claim_is_gone_does_not_lead_when_the_one_before_it_goes` |
//! | etcd #10811; CURATOR-206 | Two holders at once, one of which had been asleep. | `the_late_write_of_a_holder_that_was_paused_is_refused_with_the_fence_and_not_without`, `after_a_sleep_beyond_the_deadline_the_guarded_work_is_not_polled_once_more` |
//! | Consul #18271 | A holder that was cut off learnt for minutes nothing of its loss. | `a_holder_that_is_cut_off_is_told_before_anybody_else_is_granted_the_lock` |
//! | hiqlite #352 | A late release brought the lock's handler down; a waiter that had died blocked the lock for ever. | `a_guard_whose_claim_is_deleted_by_anybody_is_lost_at_once_and_its_release_harms_nobody`, `a_waiter_that_died_blocks_nobody` |
//! | etcd #22082 | A release that was tried again ended a newer holding of the same lock. | `dropping_a_guard_releases_it_and_withdrawing_a_claim_twice_does_nothing_more` |
//! | CURATOR-527; etcd #21128 | A waiter missed that the one before it had gone: it waited for ever, or failed and left its claim behind. | `a_waiter_whose_node_was_sent_a_snapshot_in_place_of_the_release_gets_the_lock`, `giving_up_at_any_moment_leaves_nothing_behind` |
//!
//! # Formation
//!
//! | origin | what went wrong there | the test here |
//! |---|---|---|
//! | etcd #5909; openraft #1535; hashicorp/raft #336 | Nodes that were started together, or once more, formed two clusters. | `two_formations_at_once_never_form_two_clusters_that_both_take_writes`, `a_formation_that_a_power_failure_interrupts_anywhere_ends_in_one_cluster_all_the_same` |

mod coordination;
mod replication;
mod threads;

use std::collections::BTreeSet;
use std::path::Path;

/// What an entry that names no test begins with.
const NOT_OURS: &str = "does not apply: ";

/// The last column of each entry.
fn last_columns() -> Vec<String> {
    let rows = include_str!("known_bugs.rs").lines().filter_map(|line| line.strip_prefix("//! | "));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.trim_end_matches(" |").split(" | ").collect()).collect();
    assert!(rows.iter().all(|row| row.len() == 3), "a row that has not three columns");
    let rows = rows.into_iter().filter(|row| row[0] != "origin");
    rows.map(|row| row[2].to_owned()).collect()
}

/// The names of all test functions below `directory`.
fn tests_in(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).expect("the sources are there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            tests_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).expect("readable");
            let mut is_test = false;
            for line in source.lines().map(str::trim) {
                match line.strip_prefix("async fn ").or(line.strip_prefix("fn ")) {
                    Some(named) if is_test => {
                        let name = named.split(['(', '<']).next().expect("the first part");
                        found.insert(name.to_owned());
                    }
                    _ => {}
                }
                // Between the attribute that makes it a test and the function there may be others.
                is_test = line.starts_with("#[test]")
                    || line.starts_with("#[tokio::test")
                    // One that the gate passes over finds nothing there.
                    || is_test && line.starts_with("#[") && !line.starts_with("#[ignore");
            }
        }
    }
}

#[test]
fn every_test_that_is_named_for_a_known_bug_exists() {
    let mut tests = BTreeSet::new();
    tests_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut tests);
    let columns = last_columns();
    assert!(columns.len() > 40, "only {} entries were found", columns.len());
    for column in columns.iter().filter(|column| !column.starts_with(NOT_OURS)) {
        let named: Vec<&str> = column.split(", ").map(|name| name.trim_matches('`')).collect();
        let missing: Vec<&&str> = named.iter().filter(|name| !tests.contains(**name)).collect();
        assert!(missing.is_empty(), "there is no such test: {missing:?}");
    }
}
