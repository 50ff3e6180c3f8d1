"""The requirements of the migration by id, and the tests that show them.

`tests/unit/test_requirements.py` checks the list: it must not name a missing test, and every acceptance test must be in
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Planned(Enum):
    """State of a requirement that is not complete."""

    PLANNED = "planned"


PLANNED: Final = Planned.PLANNED


@dataclass(frozen=True, slots=True)
class Requirement:
    """``tests``: "tests/acceptance/test_feed.py::test_name" each, without parameters."""

    sentence: str
    tests: tuple[str, ...] | Planned = PLANNED


def _in(path: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/{path}::test_{name}" for name in names)


_NOTHING_IS_LOST = _in(
    "acceptance/test_faults.py",
    "nothing_is_lost_while_our_own_processes_die_in_turn",
    "nothing_is_lost_while_the_servers_die_in_turn",
) + _in("acceptance/test_direct_storms.py", "nothing_is_lost_under_direct_clients_while_our_own_processes_die_in_turn")
_DIRECT = "integration/test_direct_routes.py"
_DEMO = "acceptance/test_demo.py"
_FLAGS = "integration/test_flags.py"
_FEED = "acceptance/test_feed.py"
_IDENTICAL = "acceptance/test_identical.py"
_INTERLEAVINGS = "integration/test_postgres_interleavings.py"
_KILLED = _in(
    "integration/test_jobs_killed.py",
    "a_job_whose_routers_die_at_random_points_ends_with_the_same_result",
    "routers_that_stood_still_while_another_one_ended_their_job_change_nothing",
)
_LEASES = "acceptance/test_leases.py"
_MODEL = "model/test_model.py"
_PHASE = "unit/test_phase.py"
_RECONCILE = "integration/test_reconcile.py"
_ROUTER = "integration/test_router.py"
_SHADOW = "integration/test_shadow.py"
_STRESS = _in(
    "integration/test_ownership_stress.py",
    "the_protocol_holds_on_the_old_store_and_the_embedded_new_one",
    "the_protocol_holds_on_the_old_store_and_postgresql",
)

REQUIREMENTS: Mapping[str, Requirement] = {
    "traffic.shadow-reads": Requirement(
        "A sample of the reads goes to the other store too and is compared; no client waits, no write is duplicated",
        _in(
            _SHADOW,
            "a_small_share_is_sampled",
            "where_b_answers_a_is_asked",
            "with_the_other_store_dead_clients_are_served_as_ever",
            "shadow_reads_are_no_traffic",
            "writes_are_never_sent_twice",
            "reads_beyond_the_queue_are_dropped_and_counted",
        ),
    ),
    "traffic.shadow-classes": Requirement(
        "Differences are told apart from lag: only other content at one version, or a lasting gap, counts against B",
        _in("unit/test_compare.py", "versions_say_what_a_difference_is")
        + _in(
            _SHADOW,
            "answers_that_are_the_same_match",
            "while_the_other_store_is_behind_an_older_row_is_no_finding",
            "other_content_at_the_same_version_is_a_mismatch_and_shows_no_values",
            "a_record_that_is_gone_beyond_the_lag_is_missing",
            "a_store_that_fails_is_an_error_and_the_client_has_its_answer",
        ),
    ),
    "traffic.canary": Requirement(
        "A stable share of the sandboxes goes to B; a larger share only adds sandboxes",
        _in(
            "unit/test_plan.py",
            "a_growing_canary_only_adds_buckets",
            "a_canary_has_its_share_of_the_buckets",
            "a_canary_outside_its_phase_steers_nothing",
        )
        + _in(
            "integration/test_rehearsal.py",
            "a_walk_goes_step_by_step_to_its_end_and_journals_each",
            "a_gate_that_fails_takes_the_canary_back_and_says_why",
            "another_router_goes_on_with_a_walk_whose_router_died",
        )
        + _in(_DEMO, "the_demo_goes_there_and_back_and_there_again"),
    ),
    "traffic.kill-switch": Requirement(
        "All traffic, or one operation, is redirected within a second, at run time",
        _in("unit/test_flags.py", "the_sandbox_contract_has_the_flags_of_the_seed")
        + _in(
            _FLAGS,
            "a_flag_is_in_force_at_once_is_journaled_and_shown",
            "an_operations_flag_takes_along_what_it_writes_and_nothing_else",
            "routers_that_see_flips_at_different_times_lose_nothing",
        ),
    ),
    "traffic.any-provider": Requirement(
        "Flags may come from any provider; while it is unavailable the last good value holds",
        _in(
            "contracts/test_flags.py",
            "a_flag_is_true_or_false_or_unset",
            "a_broken_file_says_nothing_and_the_next_good_one_is_taken",
            "a_value_of_a_wrong_type_is_trouble_of_that_flag_alone",
        )
        + _in(
            "unit/test_flags.py",
            "before_anybody_has_spoken_all_flags_are_unset",
            "a_provider_that_is_away_leaves_what_it_said_last",
            "a_provider_that_hangs_is_away_and_is_not_asked_again_meanwhile",
        )
        + _in(
            _FLAGS,
            "a_providers_flags_steer_and_an_operators_go_before_them",
            "a_broken_file_leaves_the_last_good_flags_in_force_and_is_shown",
        ),
    ),
    "phase.table": Requirement(
        "Phases advance one step at a time; a transition that is not in the table is refused and changes nothing",
        _in(
            _PHASE,
            "a_step_forward_enters_the_next_phase_with_the_canary_at_0",
            "after_the_last_phase_there_is_no_step",
            "a_way_back_is_legal_exactly_where_the_table_says",
            "from_deprecated_no_way_leads_back",
        )
        + _in("integration/test_control.py", "a_move_that_the_table_does_not_have_is_illegal")
        + _in(_DEMO, "the_demo_goes_there_and_back_and_there_again")
        + _in(_IDENTICAL, "the_contract_is_kept_at_every_endpoint"),
    ),
    "phase.gates": Requirement(
        "A step is open if its gates pass with enough evidence, or are overridden with a recorded reason",
        _in(
            "unit/test_gates.py",
            "a_gate_returns_the_verdict_of_its_evidence",
            "every_gate_has_a_case_for_each_verdict_it_can_give",
            "what_is_not_known_never_passes",
        )
        + _in(
            "integration/test_control.py",
            "a_gate_blocks_and_nothing_is_changed",
            "a_gate_without_evidence_is_told_from_one_that_fails",
            "an_override_passes_and_is_journaled_with_its_gates",
        )
        + _in("integration/test_control_cli.py", "a_limit_changes_at_once_and_is_journaled")
        + _in(
            "integration/test_probe.py",
            "a_probe_gives_samples_of_both_stores_and_no_client_sees_its_writes",
        )
        + _in(_DEMO, "a_demo_passes_its_gates_on_evidence"),
    ),
    "phase.journal": Requirement(
        "Changes of the setting are journaled with time, actor, reason, before and after, and cannot be altered",
        _in(_IDENTICAL, "every_step_is_in_the_journal")
        + _in(_DEMO, "a_gate_blocked_and_its_override_is_in_the_journal")
        + _in(
            "contracts/test_control_store.py",
            "of_two_changers_one_wins_and_the_loser_changes_nothing",
            "the_journal_keeps_every_field_newest_first",
            "the_journal_in_sqlite_cannot_be_altered_or_cut",
            "the_journal_in_postgres_cannot_be_altered_or_cut",
        ),
    ),
    "write.dual-async": Requirement(
        "The owner answers after its commit; the other store follows by the log, and its faults reach no client",
        _in(
            _FEED,
            "a_side_that_stands_still_is_behind_by_events_and_seconds_and_catches_up",
            "without_a_broker_writes_go_on_and_nothing_is_lost",
        ),
    ),
    "write.no-loss": Requirement(
        "Acknowledged writes survive phase changes, the death of any one process, and the loss of the broker",
        _NOTHING_IS_LOST
        + _in(
            _DEMO,
            "a_demo_loses_nothing_and_says_so",
            "the_report_has_its_keys_and_is_what_was_printed",
            "a_write_that_is_dropped_from_the_kept_exports_is_missed",
            "a_process_that_dies_unasked_fails_the_demo_and_is_named",
            "a_directory_that_is_in_use_is_refused",
            "ctrl_c_stops_every_process_and_ends_with_130",
        )
        + _in(
            _FEED,
            "without_a_broker_writes_go_on_and_nothing_is_lost",
            "a_full_outbox_refuses_writes_and_lets_reads_and_handoffs_go_on",
            "where_writes_wait_for_the_log_a_dead_broker_is_told_at_once_once_it_is_known",
            "a_topic_that_would_lose_events_is_refused_by_every_process",
        )
        + _in("acceptance/test_lost_store.py", "a_store_that_is_lost_with_its_disk_takes_no_answered_write_with_it")
        + _in("integration/test_ack_logged.py", "the_phase_decides_when_a_write_is_answered")
        + _in(
            "integration/test_write_ledger.py",
            "a_row_that_went_back_in_time_is_found",
            "a_row_that_is_gone_is_found_even_long_after_it_was_seen",
            "a_row_with_other_content_than_the_client_was_shown_is_found",
            "it_invents_nothing_while_records_move_under_load",
        )
        + _STRESS,
    ),
    "write.one-effect": Requirement(
        "A repeated request has no second effect at either store and gets the same answer",
        _NOTHING_IS_LOST
        + _in(_IDENTICAL, "the_contract_is_kept_at_every_endpoint", "an_old_client_stays_right_at_its_endpoint")
        + _in(_ROUTER, "a_retry_after_the_handoff_gets_the_same_answer_and_has_no_second_effect")
        + _STRESS,
    ),
    "owner.single": Requirement(
        "At most one of the two stores accepts writes to a record, whatever routers assume",
        _in(_MODEL, "the_protocol_keeps_every_property_in_every_state")
        + _STRESS
        + _in(
            _INTERLEAVINGS,
            "a_write_that_waited_for_a_release_changes_nothing",
            "a_release_of_the_bucket_owner_waits_for_a_create_that_came_first",
        ),
    ),
    "read.strict": Requirement(
        "A read that is not marked stale shows every write that was acknowledged before it began",
        _NOTHING_IS_LOST
        + _in(_DEMO, "a_demo_loses_nothing_and_says_so")
        + _in(_ROUTER, "a_read_of_a_record_on_its_way_shows_the_newest_row")
        + _in(_IDENTICAL, "an_old_client_stays_right_at_its_endpoint"),
    ),
    "read.stale-marked": Requirement(
        "While the owner is unavailable the other store answers reads, marked stale with their maximum age",
        _in(_FEED, "while_the_owner_is_away_reads_are_marked_stale_with_their_age")
        + _in(_ROUTER, "a_read_whose_owner_is_away_is_answered_by_the_replica_marked_stale"),
    ),
    "read.watch": Requirement(
        "A watch shows a sandbox's versions in order and never misses the last, through handoffs, phases and crashes",
        _in("acceptance/test_watch.py", "a_watcher_misses_nothing_through_all_phases_and_the_death_of_its_store")
        + _in(
            "contracts/test_store_watch.py",
            "every_write_after_a_place_is_shown_once",
            "a_handoff_is_no_write",
            "nobody_misses_the_last_write_of_a_key_while_many_write_at_once",
        )
        + _in(
            "integration/test_postgres_watch.py",
            "a_write_that_commits_late_is_seen_after_later_ones",
            "a_transaction_that_stays_open_holds_back_no_watcher",
        )
        + _in(
            "integration/test_router_watch.py",
            "neither_phases_nor_handoffs_disturb_a_watch",
            "a_store_that_is_back_soon_is_watched_on_from_where_it_was_lost",
            "a_token_goes_on_at_the_store_where_it_was_made",
            "a_watch_of_a_dead_store_is_taken_up_by_the_other_one",
        ),
    ),
    "feed.lag": Requirement(
        "The lag of a store is measured in events and in seconds, and a stopped feed is visible",
        _in(
            _FEED,
            "a_side_that_stands_still_is_behind_by_events_and_seconds_and_catches_up",
            "without_a_broker_writes_go_on_and_nothing_is_lost",
        )
        + _in(
            "integration/test_relay.py",
            "an_idle_relay_sends_a_heartbeat",
            "a_pull_acknowledges_the_last_batch_unless_the_store_is_of_an_earlier_release",
            "a_relay_whose_lease_ends_acknowledges_before_it_asks_for_it_again",
        )
        + _in("unit/test_backend_feed.py", "how_far_behind_it_is_comes_from_events_and_heartbeats_of_the_other_store")
        + _in("unit/test_observe.py", "a_store_that_is_away_falls_behind_from_where_it_was_last_seen")
        + _in(
            "unit/test_retention.py",
            "a_store_that_is_away_is_warned_of_when_half_of_the_time_is_over_that_the_log_keeps_its_events",
            "a_log_that_drops_for_its_size_warns_from_the_first_time_on",
        ),
    ),
    "feed.parked": Requirement(
        "An invalid event is parked, shown and retried; the feed continues and its counters add up",
        _in(_FEED, "an_event_that_cannot_be_understood_is_parked_and_the_feed_goes_on")
        + _in(
            "unit/test_backend_feed.py",
            "parked_events_are_tried_again",
            "events_that_can_never_be_applied_do_not_keep_later_ones_parked",
            "every_event_is_applied_old_or_parked_and_the_counters_add_up",
            "the_positions_of_its_own_events_wait_for_other_events_or_a_moment",
        )
        + _in(
            "integration/test_events.py",
            "parked_events_are_listed_and_tried_again",
            "a_parked_event_is_dropped_with_a_reason_that_the_journal_keeps",
            "one_event_or_those_of_one_record_are_shown_with_their_content",
        ),
    ),
    "data.audit": Requirement(
        "The old data are audited before anything moves: schema, invalid data, orphans, a trial copy",
        _in(
            "acceptance/test_audit.py",
            "every_kind_of_dirt_is_found_and_must_be_accepted_by_name",
            "an_audit_that_is_killed_at_random_ends_with_the_same_result",
        )
        + _in("acceptance/test_demo.py", "a_demo_begins_with_an_audit_whose_dirt_must_be_accepted")
        + _in(
            "unit/test_sqlite_snapshot.py",
            "a_snapshot_shows_one_moment_while_the_store_goes_on",
            "a_disk_without_room_is_refused_before_anything_is_written",
            "what_somebody_has_written_beside_the_protocol_is_found",
        )
        + _in("unit/test_sandbox_audit.py", "a_conversion_that_loses_something_blocks")
        + _KILLED
        + _in("unit/test_audit_report.py", "the_gate_wants_a_fresh_audit_without_trouble")
        + _in(
            "integration/test_scratch.py",
            "records_are_tried_out_beside_a_real_store_that_notices_nothing",
            "what_a_killed_process_left_is_dropped_before_the_next_trial",
        ),
    ),
    "data.backfill": Requirement(
        "All of A's records are copied under live traffic, with a rate limit, progress, and resume",
        _in(
            "acceptance/test_jobs.py",
            "a_backfill_that_is_killed_at_random_goes_on_at_its_row_and_ends_with_the_same_result",
        )
        + _in(
            "integration/test_control.py",
            "a_backfill_copies_every_record_of_a_and_opens_its_gate",
            "the_mirror_copies_what_b_has_to_a_and_opens_no_gate",
            "a_job_is_paused_tuned_and_resumed_where_it_stopped",
        )
        + _KILLED
        + _in("unit/test_jobs.py", "live_traffic_that_suffers_slows_a_job_down_and_the_job_says_so"),
    ),
    "data.reconcile": Requirement(
        "The stores are compared continuously; differences are classified and repaired from the owner",
        _in(
            "acceptance/test_reconcile.py",
            "edits_by_hand_are_found_and_what_is_missing_is_copied_whoever_is_killed",
        )
        + _in(
            _RECONCILE,
            "each_kind_of_fault_is_found_in_one_run_wherever_that_is_interrupted",
            "under_load_a_fault_is_found_and_none_is_invented",
            "what_is_on_its_way_is_no_difference",
            "a_repair_lowers_no_version_and_takes_nothing_from_the_owner",
            "a_corrupt_record_is_mended_when_a_person_names_it_and_with_its_owners_content",
        )
        + _in(
            "integration/test_reconcile_cli.py",
            "the_stores_are_compared_every_few_minutes_from_the_first_backfill_on",
            "what_was_found_is_the_gates_evidence_and_an_alert",
        )
        + _KILLED
        + _in("unit/test_differences.py", "two_rows_say_how_they_differ")
        + _in("unit/test_alerts.py", "what_is_above_a_limit_fails_the_gate_and_sounds_the_alarm"),
    ),
    "data.validate": Requirement(
        "Queries show the ids that only one store has, and the lag",
        _in("unit/test_ages.py", "each_query_counts_what_it_asks_for")
        + _in(
            "integration/test_reconcile_cli.py",
            "validate_tells_how_far_each_store_is_behind_by_what_the_records_say",
        )
        + _in(_RECONCILE, "validate_tells_what_only_one_store_has_and_what_differs"),
    ),
    "data.replay": Requirement(
        "A part of the log can be replayed to either store, after a dry run",
        _in(
            "acceptance/test_replay.py",
            "a_replay_that_is_killed_at_random_brings_back_every_row_that_a_store_has_lost",
        )
        + _in(
            "integration/test_replay.py",
            "a_replay_brings_back_what_a_store_lacks_and_leaves_its_feed_as_it_was",
            "a_dry_run_says_what_a_replay_would_do_and_changes_nothing",
            "a_replay_of_one_record_reads_its_partition_only",
            "a_replay_from_a_place_or_a_time_leaves_out_what_was_before",
            "what_the_log_does_not_hold_is_refused_with_the_reason",
            "a_replay_that_retention_has_overtaken_fails_and_says_so",
            "a_replay_that_is_broken_off_at_random_goes_on_and_ends_with_the_same_result",
        )
        + _KILLED
        + _in("integration/test_events.py", "a_replay_is_previewed_done_and_refused_by_command"),
    ),
    "data.recovery": Requirement(
        "B can be rebuilt from A and the log in bounded time, and is verified before it serves",
        _in(
            "acceptance/test_recovery.py",
            "each_way_in_which_a_postgresql_goes_back_is_recognised_and_recovered",
            "a_store_whose_disk_burns_is_seized_from_and_a_new_one_takes_its_place",
            "an_old_copy_of_a_s_file_is_recognised_and_recovered",
            "restarts_of_one_of_three_processes_fence_no_store",
        )
        + _in(
            "integration/test_recovery.py",
            "a_recovered_store_has_everything_and_owns_nothing",
            "a_change_that_the_gone_store_still_has_gets_to_the_log_before_the_seizure",
            "a_share_that_was_seized_is_the_other_store_s_and_its_return_loses_nothing_in_silence",
        )
        + _KILLED
        + _in(
            "model/test_model.py",
            "a_store_that_lost_its_disk_comes_back_without_breaking_a_property",
        ),
    ),
    "api.identical": Requirement(
        "Old service, new service and router answer the same calls with the same answers, in every phase, by gRPC, "
        "REST, Connect and MCP",
        _in(
            _IDENTICAL,
            "the_contract_is_kept_at_every_endpoint",
            "every_conversation_is_held_by_each_door_with_records_of_both_owners",
            "the_answers_of_all_endpoints_are_the_same",
            "the_answers_of_all_phases_are_the_same",
            "an_old_client_stays_right_at_its_endpoint",
            "health_and_reflection_are_the_same_everywhere",
            "an_answer_that_differs_is_found",
        )
        + _in("acceptance/test_old_names.py", "every_name_of_the_old_service_is_served_there_and_back")
        + _in("integration/test_doors_differential.py", "random_calls_have_the_same_answer_by_every_door")
        + _in("integration/test_client_go.py", "the_go_client_works_at_the_three_real_processes"),
    ),
    "api.mcp": Requirement(
        "All three servers offer the operations as MCP tools",
        _in(
            "integration/test_mcp.py",
            "every_method_is_a_tool",
            "a_repeated_write_has_one_effect",
            "an_error_begins_with_its_reason_and_says_what_to_do",
            "a_record_is_a_resource",
            "a_client_of_the_old_service_gets_records_of_schema_version_1",
            "an_agent_sees_where_the_migration_is_and_where_a_call_goes",
            "a_client_of_an_earlier_protocol_is_served",
            "a_request_that_is_none_stores_nothing",
            "any_host_and_a_page_of_this_machine_are_served",
            "a_desktop_client_has_the_same_tools_over_stdio",
        ),
    ),
    "lock.port": Requirement(
        "One lock interface, in memory at A and in Redis at B; a lock belongs to its record's owner",
        _in(
            "contracts/test_locks.py",
            "one_holder_at_a_time",
            "a_caller_that_is_cancelled_at_any_step_leaves_nothing",
            "no_user_starves_however_busy_the_others_are",
        )
        + _in(
            "contracts/test_locks_redis.py",
            "a_lock_is_renewed_beyond_its_time_to_live",
            "only_the_holder_gives_a_lock_back",
        )
        + _in("unit/test_backend_write_locks.py", "a_store_that_does_not_own_the_record_asks_for_no_lock"),
    ),
    "lock.handoff": Requirement(
        "A handoff of a leased record never creates a second holder",
        _in(
            _LEASES,
            "a_lease_moves_with_its_sandbox_and_its_tokens_only_grow",
            "eight_writers_of_one_record_that_is_handed_to_and_fro_all_get_on",
        )
        + _in(
            "unit/test_backend_write_locks.py",
            "a_release_waits_for_the_holder_of_the_lock",
            "a_release_goes_on_when_the_holder_does_not_leave_or_locks_are_away",
            "whoever_lost_the_record_while_waiting_for_the_lock_changes_nothing",
        )
        + _in(
            "contracts/test_store_leases.py",
            "a_lease_that_comes_from_elsewhere_is_counted_from_then_on",
            "other_writes_and_a_release_do_not_begin_the_count_anew_and_a_renewal_does",
        )
        + _in("unit/test_sandbox_leases.py", "the_same_holder_gets_a_new_token_and_the_old_one_is_void")
        + _NOTHING_IS_LOST[1:],
    ),
    "lock.redis-down": Requirement(
        "Without Redis, writes continue by version, leases fail at once, and memory locks never take over",
        _in(
            "integration/test_lock_server_faults.py",
            "without_redis_writes_go_on_and_leases_are_refused_until_it_is_back",
            "a_flush_takes_no_lease_and_no_token_goes_back",
        )
        + _in(
            "contracts/test_locks_redis_faults.py",
            "the_first_call_of_a_server_that_is_away_is_refused_within_a_second",
            "a_lock_whose_answer_was_lost_is_given_back_when_the_server_is_heard_again",
        )
        + _in(
            "unit/test_backend_write_locks.py",
            "without_locks_a_write_that_needs_one_fails_and_changes_nothing",
            "a_request_that_was_served_is_answered_without_a_lock",
        )
        + _in(_LEASES, "a_lease_moves_with_its_sandbox_and_its_tokens_only_grow")
        + _NOTHING_IS_LOST[1:],
    ),
    "lock.limit": Requirement(
        "A free lock is acquired in 50 ms at P99, every wait ends, and no deadlock lasts",
        _in(
            "contracts/test_locks.py",
            "a_wait_is_bounded_and_says_for_what",
            "holders_that_wait_for_each_other_both_get_an_answer",
        )
        + _in("unit/test_gates.py", "a_gate_returns_the_verdict_of_its_evidence"),
    ),
    "pool.sizing": Requirement(
        "Pool sizes follow a rule, are measured on the machine, and wrong ones raise a warning",
        _in(
            "integration/test_pools.py",
            "a_full_pool_refuses_its_own_work_and_leaves_the_others_theirs",
            "a_process_has_no_more_connections_than_it_says",
            "a_process_without_free_connections_refuses_instead_of_letting_calls_pile_up",
            "a_store_tells_what_its_processes_take_of_what_the_server_allows",
        )
        + _in(
            "integration/test_bench_pool.py",
            "a_bench_tells_the_curve_and_its_knee_and_leaves_nothing",
            "an_interrupted_bench_leaves_nothing",
        )
        + _in("unit/test_pool_curve.py", "the_knee_is_the_smallest_pool_that_gives_nearly_the_most")
        + _in(
            "unit/test_program_settings.py",
            "a_pool_for_calls_follows_the_cores_of_the_database_unless_it_is_given",
        )
        + _in(
            "unit/test_diagnose.py",
            "more_processes_than_the_database_has_connections_for_are_warned_about",
        ),
    ),
    "schema.versions": Requirement(
        "Records of several schema versions coexist and lose no field at an older store",
        _in(
            "unit/test_sandbox_schema.py",
            "nothing_is_lost_on_the_way_to_version_1_and_back",
            "a_record_of_version_1_comes_back_byte_for_byte",
            "of_a_version_that_is_not_in_the_table_nothing_is_read",
        )
        + _in(
            "unit/test_old_clients.py",
            "an_old_client_changes_what_it_can_say_and_nothing_else",
            "an_unknown_version_is_refused_with_those_that_are_known",
        )
        + _in(
            "integration/test_schema_versions.py",
            "clients_of_three_versions_share_a_record",
            "a_store_that_does_not_understand_a_record_keeps_it_and_gives_it_back",
            "the_older_program_refuses_a_version_that_it_does_not_know",
            "an_old_clients_reads_begin_at_a_and_move_nothing",
        )
        + _in("unit/test_protos.py", "a_field_that_changes_its_type_is_a_breaking_change")
        + _in(_IDENTICAL, "an_old_client_stays_right_at_its_endpoint"),
    ),
    "rollback.auto": Requirement(
        "If B exceeds its error limits, reads and then writes roll back automatically, with an alert",
        _in(
            "acceptance/test_rollback.py",
            "a_b_that_fails_a_fifth_of_its_calls_is_left_and_its_records_come_home",
            "a_dead_b_is_left_and_its_records_come_home_when_it_is_back",
        )
        + _in(_DEMO, "a_hanging_b_is_left_by_the_router_itself_and_its_records_come_home")
        + _in(
            "unit/test_automatic_rollback.py",
            "just_above_five_percent_goes_back",
            "29_seconds_are_not_enough",
            "199_calls_are_not_enough",
            "what_both_stores_suffer_from_is_not_the_fault_of_b",
            "it_happens_once_in_ten_minutes_then_a_person_decides",
        ),
    ),
    "rollback.lossless": Requirement(
        "Every phase but the last can be rolled back, and a rollback loses no acknowledged write",
        _NOTHING_IS_LOST
        + _in(_DEMO, "the_demo_goes_there_and_back_and_there_again", "a_demo_loses_nothing_and_says_so")
        + _in(_IDENTICAL, "an_old_client_stays_right_at_its_endpoint"),
    ),
    "rollback.partial": Requirement(
        "A single operation can be rolled back",
        _in(
            "integration/test_rehearsal_cli.py",
            "one_operation_goes_back_while_the_others_stay",
            "a_rollback_that_is_not_clear_is_refused_with_what_is",
        ),
    ),
    "rollback.rehearsed": Requirement(
        "A rollback is rehearsed with live buckets, and the rehearsal is a gate",
        _in(
            "integration/test_rehearsal.py",
            "a_rehearsal_moves_live_buckets_there_and_back",
            "buckets_of_a_rehearsal_whose_router_died_are_sent_home",
        )
        + _in("integration/test_rehearsal_cli.py", "a_rehearsal_is_typed_and_told"),
    ),
    "chaos.flip": Requirement(
        "Continuous flag changes under load lose no write and leak no resource",
        _in("acceptance/test_flips.py", "a_flip_storm_loses_nothing_and_leaves_nothing_behind")
        + _in("acceptance/test_direct_storms.py", "a_flip_storm_with_direct_clients_loses_nothing")
        + _in("unit/test_chaos.py", "every_flip_is_one_that_the_router_allows_and_does_what_it_says"),
    ),
    "metrics.thresholds": Requirement(
        "Each limit of the plan is a metric, evidence for a gate, and an alert",
        _in(
            "unit/test_alerts.py",
            "what_is_above_a_limit_fails_the_gate_and_sounds_the_alarm",
            "nothing_sounds_at_the_limits_themselves",
            "every_rule_names_metrics_that_are_exported_and_says_what_to_do",
        ),
    ),
    "cost.writes": Requirement(
        "A transaction of several writes counts as one change of the store, and the age of the outbox is read at times",
        _in(
            "unit/test_sqlite_book.py",
            "a_transaction_of_several_jobs_counts_as_one_change_even_if_the_first_of_them_is_undone",
            "the_age_of_the_oldest_entry_is_of_an_entry_that_is_there",
        ),
    ),
    "cost.point-reads": Requirement(
        "A read of one record at SQLite costs no thread, and never blocks the process for long",
        _in(
            "unit/test_sqlite_inline.py",
            "a_point_read_takes_no_thread",
            "a_busy_database_does_not_block_the_loop",
            "reads_leave_the_loop_while_they_are_slow",
        ),
    ),
    "cost.calls": Requirement(
        "A call reads its metadata once and parses its record once, and shares its timer with other calls",
        _in("unit/test_rpc_call_context.py", "a_call_decodes_its_metadata_once")
        + _in("unit/test_sqlite_layouts.py", "a_payload_is_parsed_once_for_all_columns")
        + _in(
            "unit/test_rpc_time_limit.py",
            "many_calls_share_one_timer",
            "work_that_takes_too_long_is_cancelled",
            "each_call_has_its_own_time",
            "a_cancel_from_outside_wins_over_the_limit",
        ),
    ),
    "routers.workers": Requirement(
        "Several routers serve the same ports of one machine; a kill of one loses nothing, and it comes back",
        _in(
            "integration/test_router_workers.py",
            "two_workers_serve_one_port_and_a_kill_loses_nothing",
            "a_supervisor_ends_with_all_its_workers",
        )
        + _in(
            "unit/test_router_workers.py",
            "a_worker_that_is_killed_is_started_again_alone",
            "the_pause_before_a_start_doubles_up_to_a_limit",
            "all_workers_drain_when_the_supervisor_is_stopped",
            "a_worker_that_does_not_end_in_time_is_killed",
            "a_worker_that_cannot_start_ends_all",
            "workers_share_their_addresses_and_have_names_and_metrics_of_their_own",
            "a_port_of_another_program_is_not_shared",
            "workers_need_databases_that_processes_share",
        ),
    ),
    "deprecate.clients": Requirement(
        "Clients of the old endpoint are counted, named and warned, and A waits for the last of them",
        _in(
            "unit/test_old_clients.py",
            "at_the_old_service_who_says_nothing_speaks_version_1_and_is_warned",
            "direct_and_old_clients_are_in_the_status_the_last_one_first",
            "what_is_passed_on_says_whose_call_it_is_and_what_it_speaks",
            "a_client_is_warned_once_beside_what_the_router_says",
            "a_client_that_is_refused_is_warned_too",
            "a_watch_is_warned_before_its_first_answer",
        )
        + _in(
            "unit/test_direct_clients.py",
            "the_gate_asks_for_four_weeks_without_a_direct_call",
            "a_restart_does_not_end_the_watch_and_a_longer_time_unseen_does",
            "what_is_known_survives_the_router",
        ),
    ),
    "restart.no-failed-call": Requirement(
        "A planned restart of any process or of PostgreSQL, and a quick one after a kill, fails no call",
        _in(
            "acceptance/test_restarts.py",
            "planned_restarts_of_every_process_fail_no_call",
            "calls_for_a_store_that_does_not_come_back_end_with_a_reason_in_bounded_memory",
        )
        + _in(
            "unit/test_rpc_drain.py",
            "a_drain_under_load_fails_no_call_of_a_client_with_another_address",
            "health_reports_the_drain_before_clients_are_sent_away",
        )
        + _in(
            "integration/test_patience.py",
            "a_write_waits_for_a_store_that_restarts_and_has_one_effect",
            "a_read_and_a_list_wait_for_a_store_that_restarts_and_are_not_stale",
            "a_write_ends_with_a_reason_before_its_callers_deadline",
            "too_many_calls_that_wait_are_refused",
            "a_refusal_by_one_process_after_another_broke_off_leaves_the_outcome_unknown",
        ),
    ),
    "deprecate.certificate": Requirement(
        "A final report shows by digests, ledger and gates that every record has arrived",
        _in(
            "unit/test_ending.py",
            "a_certificate_is_complete_only_if_nothing_is_open",
            "equal_certificates_are_equal_bytes",
            "a_seal_is_of_one_document_and_one_key",
            "a_page_shows_names_as_text_and_holds_its_json",
            "a_history_has_phases_overrides_rollbacks_and_interventions_each_once",
            "the_totals_keep_the_counts_of_routers_that_have_ended_or_started_again",
            "a_chronicle_outlives_its_router_its_jobs_and_its_clients",
            "counts_of_another_release_are_kept_and_not_taken_for_none",
            "a_change_during_a_look_pushes_no_entry_out_of_the_history",
            "each_step_waits_for_those_before_it",
            "a_backup_is_read_back_from_its_file",
            "an_export_that_ends_early_leaves_no_file",
            "a_backup_is_written_over_no_file_and_through_no_link",
            "the_name_of_a_backup_is_durable_too",
        )
        + _in(
            "unit/test_write_ledger.py",
            "two_answers_to_one_request_with_different_revisions_are_one_effect_too_many",
        )
        + _in(
            "integration/test_ending_cli.py",
            "a_migration_ends_with_a_certificate_a_backup_and_without_a",
        )
        + _in(_DEMO, "a_demo_ends_with_a_signed_certificate_that_names_its_window"),
    ),
    "api.openapi": Requirement(
        "The contract as OpenAPI 3.1, made from the descriptors, served by all three",
        _in(
            "unit/test_openapi.py",
            "every_form_of_a_method_is_an_operation_with_its_path_query_and_body",
            "a_message_s_schema_is_what_proto3_json_writes",
            "headers_and_errors_are_those_that_a_method_can_take_and_give",
            "every_error_has_its_code_and_its_delay_in_the_document",
            "every_reference_of_the_shipped_document_leads_somewhere",
        )
        + _in(
            "unit/test_http_documents.py",
            "the_document_is_served_as_it_ships_and_again_only_if_it_is_another",
            "the_page_may_load_and_run_only_what_this_listener_serves",
        )
        + _in(
            "integration/test_openapi.py",
            "all_three_serve_the_same_document_and_page",
            "schemathesis_finds_no_answer_that_the_document_does_not_have",
        )
        + _in(
            "integration/test_page.py",
            "the_page_shows_every_operation_and_loads_nothing_from_elsewhere",
            "a_form_sends_what_its_curl_line_sends",
            "a_watch_is_shown_while_it_comes_and_can_be_stopped",
        ),
    ),
    "feed.identity": Requirement(
        "A recreated, emptied or replaced log is detected while running, stops the feed and "
        "raises an alert; no event is skipped silently",
        _in(
            "contracts/test_eventlog_identity.py",
            "another_log_in_its_place_is_told_however_far_it_has_grown",
            "a_reader_shows_that_another_log_may_have_come_before_it_gives_its_events",
            "where_retention_has_dropped_the_last_event_offsets_and_id_decide",
        )
        + _in(
            "unit/test_backend_feed.py",
            "a_feed_stops_where_another_log_came_into_its_log_s_place",
            "a_feed_that_starts_on_another_log_reads_nothing_of_it",
            "offsets_of_an_earlier_version_take_the_log_as_it_is_and_hold_it_to_that",
            "a_log_that_is_replaced_while_positions_wait_is_noticed",
        )
        + _in("unit/test_backend_replication.py", "a_pull_acknowledges_changes_unless_the_log_has_been_replaced")
        + _in(
            "integration/test_log_replaced.py",
            "a_log_that_was_made_anew_stops_both_feeds_and_is_shown_where_people_and_gates_look",
            "the_feeds_go_on_behind_the_other_log_and_what_they_have_missed_is_copied",
            "a_seizure_before_the_records_are_copied_is_refused_unless_their_loss_is_accepted",
            "a_gap_is_shown_until_the_records_are_copied_and_then_a_store_may_be_given_up",
        )
        + _in("contracts/test_log_gap.py", "a_gap_outlives_the_routers_and_names_the_job_to_wait_for")
        + _in(
            "acceptance/test_log_identity.py",
            "a_topic_that_was_deleted_and_made_anew_stops_the_feeds_until_a_person_restarts_them",
        ),
    ),
    "feed.poison": Requirement(
        "A bad event in the log harms at most its own record: it is parked, shown, and never stops a "
        "feed, a list or a start",
        _in(
            "unit/test_backend_feed.py",
            "an_event_of_a_record_that_cannot_be_is_parked_with_its_message_and_changes_nothing",
            "a_higher_term_that_the_other_store_confirms_fences_this_one_and_is_applied",
            "a_parked_record_is_applied_once_a_terms_event_has_confirmed_its_term",
            "a_terms_event_that_no_store_can_have_made_is_passed",
        )
        + _in("unit/test_admission.py", "a_poison_event_is_no_evidence")
        + _in(
            "unit/test_backend_corrupt.py",
            "lists_go_around_a_record_that_cannot_be_read_and_calls_name_it",
            "a_deep_comparison_shows_a_record_that_cannot_be_read_as_another_content",
        )
        + _in(
            "contracts/test_eventlog_foreign.py",
            "a_message_whose_header_name_is_not_utf_8_shows_the_rest_and_is_passed",
            "messages_in_every_codec_are_read",
            "a_row_that_another_program_wrote_into_the_file_stops_no_reader",
        )
        + _in("integration/test_replay.py", "a_replay_gives_a_store_no_event_that_its_feed_would_not_apply")
        + _in(
            "contracts/test_store_repair.py",
            "a_deleted_corrupt_record_is_a_tombstone_that_the_other_store_takes_from_the_log",
        )
        + _in(
            "contracts/test_store_last_revision.py",
            "a_seizure_restarts_the_revision_and_the_record_is_written_again",
        )
        + _in(
            "integration/test_records_cli.py",
            "a_corrupt_record_is_shown_and_deleted_at_its_owner",
            "a_corrupt_record_is_replaced_from_a_file_and_by_the_other_stores_copy",
        ),
    ),
    "traffic.zero-hop": Requirement(
        "Clients with xDS call the owner directly; routes follow setting, flags and bucket owners at once; all other "
        "calls still use the router",
        _in(
            _DIRECT,
            "calls_go_to_their_buckets_store_and_others_to_a_router",
            "a_rollback_takes_the_calls_off_their_store_at_once_and_to_the_other_once_the_records_are_there",
            "the_flag_of_an_operation_takes_only_its_calls_to_a_router",
            "a_share_of_the_direct_calls_still_goes_through_a_router",
        )
        + _in("integration/test_direct_go.py", "a_go_client_calls_each_records_store"),
    ),
    "route.rule": Requirement(
        "A call is direct exactly where its bucket is settled, its store serves and nothing needs a router",
        _in(
            "unit/test_routes.py",
            "a_call_is_direct_exactly_where_no_router_is_needed",
            "a_change_takes_the_calls_that_it_steers_elsewhere_off_their_store_at_once",
            "a_share_of_the_calls_keeps_the_routers_evidence_where_a_gate_needs_it",
        ),
    ),
    "route.failover": Requirement(
        "After the death or drain of a store's process, the next direct calls are answered through a router",
        _in(
            _DIRECT,
            "after_a_stores_death_the_next_call_goes_through_a_router",
            "a_process_that_drains_leaves_the_routes_before_it_closes",
        )
        + _in(
            "integration/test_direct_processes.py",
            "a_direct_client_outlives_the_routers_and_is_served_by_one_when_its_store_dies",
            "a_store_that_drains_costs_a_direct_client_no_error",
            "direct_writes_survive_a_rollback_and_go_on_at_the_other_store",
        ),
    ),
    "route.envoy": Requirement(
        "An Envoy gets the same routes from a router, for clients without xDS",
        _in(
            "integration/test_direct_envoy.py",
            "envoy_sends_calls_to_their_buckets_store_and_others_to_a_router",
            "envoy_follows_a_rollback",
            "envoy_sends_the_calls_of_a_dead_store_through_a_router",
        ),
    ),
    "route.security": Requirement(
        "Direct calls check certificates; beyond loopback the xDS listener needs a decision; it shows no record",
        _in(
            _DIRECT,
            "direct_calls_over_tls_check_certificates_and_the_listener_requires_one",
        )
        + _in(
            "unit/test_discovery_resources.py",
            "a_listener_without_the_authentication_that_it_needs_does_not_open",
            "tls_checks_the_common_name_by_the_clients_certificate_provider",
        ),
    ),
    "route.refusal": Requirement(
        "A client that refuses routes keeps its last ones, and operators see it",
        _in(
            _DIRECT,
            "a_client_that_refuses_the_routes_keeps_its_own_and_is_named_in_the_status",
        )
        + _in("unit/test_discovery.py", "a_refused_response_is_not_repeated_until_it_changes"),
    ),
    "traffic.direct-stores": Requirement(
        "A store answers a direct call as its owner or passes it on, follows a rollback without its clients, "
        "and its direct calls count for gates and automatic rollback; nothing is lost under clients with old routes",
        _in(
            "acceptance/test_direct.py",
            "a_b_that_serves_direct_calls_alone_is_left_when_it_fails_or_becomes_slow",
        )
        + _in(
            "acceptance/test_direct_storms.py",
            "a_flip_storm_with_direct_clients_loses_nothing",
            "nothing_is_lost_under_direct_clients_while_our_own_processes_die_in_turn",
        )
        + _in(
            "integration/test_direct_traffic.py",
            "several_routers_count_each_call_once_in_all_their_figures",
            "a_router_that_is_started_again_counts_no_call_again_and_another_one_remembers",
            "faults_of_direct_calls_alone_roll_back",
        )
        + _in(
            "unit/test_direct_calls.py",
            "a_direct_call_is_answered_or_passed_on_as_the_routers_report",
            "the_routes_of_the_newest_setting_count_of_all_routers_together",
            "a_direct_client_is_no_client_of_the_old_service_while_routers_lead_it",
            "a_direct_write_is_acknowledged_from_the_log_if_the_routers_say_so",
        ),
    ),
    "traffic.passed-on": Requirement(
        "A call that a store cannot answer goes to a router with the rights of its caller and no others, "
        "and never goes round in a circle",
        _in(
            "integration/test_passing.py",
            "a_call_that_a_store_passes_on_has_the_rights_of_its_caller_and_no_others",
            "the_internal_listener_of_a_router_believes_authenticated_stores_only",
            "a_client_of_a_store_cannot_forge_what_the_store_passes_on",
            "a_router_that_authenticates_clients_believes_no_store_without_a_token",
            "a_call_that_comes_back_to_the_store_ends_with_the_settings_to_check",
        ),
    ),
    "traffic.cohorts": Requirement(
        "Named records or accounts go first or stay last, sticky, journaled",
        (
            *_in(
                "unit/test_cohorts.py",
                "a_larger_share_only_adds_records_and_a_smaller_one_only_removes_some",
                "a_share_takes_the_records_that_a_canary_of_that_share_takes",
                "the_first_cohort_by_name_decides_and_after_those_the_one_of_the_account",
                "hold_flags_and_rehearsals_come_before_a_cohort_and_canary_and_phase_after_it",
                "what_goes_back_to_a_takes_the_share_of_each_cohort",
                "a_call_that_does_not_know_the_account_moves_no_record_that_may_belong_elsewhere",
            ),
            *_in(
                "integration/test_cohorts.py",
                "records_go_first_stay_last_and_go_home",
                "no_cohort_is_added_beside_a_store_of_an_earlier_release",
                "no_cohort_is_added_or_grown_beside_a_router_of_an_earlier_release",
            ),
            *_in("contracts/test_store_rules.py", "the_keys_of_a_pattern_or_an_account_are_listed_deleted_ones_too"),
            *_in("unit/test_routes.py", "buckets_of_which_a_cohort_wants_records_elsewhere_go_to_a_router"),
        ),
    ),
    "move.handoff": Requirement(
        "A handoff takes few round trips, and keeps every guarantee while its write rides along",
        _in(
            "integration/test_arriving.py",
            "a_write_takes_its_record_along_and_a_large_record_goes_apart",
            "a_store_of_an_earlier_release_leaves_the_record_and_gets_the_next_ones_apart",
            "a_write_is_decided_by_the_stored_row_and_not_by_the_record_that_it_takes_along",
            "a_write_takes_no_other_record_along",
            "a_record_of_a_later_term_that_a_write_takes_along_fences_the_store_first",
            "a_client_cannot_make_a_store_adopt_a_record",
        )
        + _in(
            "integration/test_postgres_interleavings.py",
            "a_release_of_a_record_that_was_written_since_the_read_changes_nothing",
            "a_release_of_a_busy_record_does_not_wait_outside_a_transaction",
            "a_release_carries_the_request_that_was_served_while_it_waited",
        )
        + _in(_MODEL, "one_version_has_two_writers_if_the_record_that_a_write_takes_along_decides"),
    ),
    "move.bulk": Requirement(
        "Many records change owner in chunks without their payloads crossing the log, with the guarantees of "
        "the single handoff",
        _in(
            "integration/test_bulk_moves.py",
            "records_whose_target_has_followed_move_in_bulk",
            "records_whose_target_has_not_followed_are_fetched_whole",
            "a_release_whose_answer_was_lost_gets_home_by_the_log",
            "records_that_no_store_owns_are_brought_home_without_the_log",
            "the_last_step_is_closed_while_records_are_on_their_way",
            "a_store_that_does_not_know_bulk_releases_gets_its_records_whole",
        )
        + _in("unit/test_ownership_wire.py", "an_earlier_release_cannot_take_a_bulk_release_for_a_record")
        + _in(
            "contracts/test_store_bulk.py",
            "many_records_move_in_one_event_without_payloads",
            "a_store_that_lacks_something_does_not_take_the_record",
            "a_retry_at_the_new_owner_has_no_second_effect",
            "a_full_outbox_still_takes_a_bulk_release_in_its_reserve",
        )
        + _in(
            _MODEL,
            "a_request_has_two_effects_if_an_entry_of_a_bulk_release_does_not_name_its_requests",
            "a_write_is_lost_if_an_entry_of_a_bulk_release_is_taken_on_an_older_row",
            "a_record_stays_without_an_owner_if_an_entry_that_could_not_be_taken_is_dropped",
            "a_request_has_two_effects_if_an_entry_of_a_bulk_release_is_taken_under_a_higher_term",
        ),
    ),
    "trust.identity": Requirement(
        "Callers are authenticated (JWT, mTLS, tokens); a refusal has a reason and shows nothing more",
        _in(
            "contracts/test_identity.py",
            "each_holder_has_a_subject_accounts_and_roles",
            "no_credentials_and_unknown_ones_are_refused_with_a_reason",
            "a_refusal_shows_nothing_of_credentials_and_configuration",
        )
        + _in(
            "unit/test_identity_jwt.py",
            "a_token_that_is_not_right_is_refused_with_its_reason",
            "claims_of_any_kind_are_refused_or_ignored_without_a_defect",
            "a_change_of_the_keys_ends_the_memory",
            "unknown_keys_ask_the_issuer_at_most_once_in_ten_seconds",
            "the_last_good_keys_stay_in_force_for_a_limited_time",
        )
        + _in("unit/test_identity_files.py", "a_changed_file_is_read_again_and_a_wrong_one_changes_nothing")
        + _in("unit/test_identity_mtls.py", "a_certificate_is_known_by_its_name_until_it_is_revoked"),
    ),
    "trust.identity-closed": Requirement(
        "Beyond loopback, access is closed unless a setting opens it; a call without a principal takes no slot",
        _in(
            "unit/test_identity_gate.py",
            "beyond_loopback_the_absence_of_authentication_must_be_written_down",
            "a_caller_without_a_principal_is_refused_with_a_reason_and_takes_no_slot",
            "a_defect_of_the_authenticator_serves_no_call_and_shows_nothing",
            "reflection_needs_a_principal_and_health_does_not",
        )
        + _in("integration/test_backends.py", "a_wrong_setting_stops_the_start_and_is_named"),
    ),
    "trust.identity-doors": Requirement(
        "Every door of A, B and the router authenticates alike; MCP clients find the issuer",
        _in(
            "integration/test_identity_doors.py",
            "every_door_of_every_program_accepts_and_refuses_alike",
            "a_watch_and_a_list_need_a_token_at_every_program",
            "mcp_clients_learn_where_to_get_a_token",
        ),
    ),
    "trust.owasp": Requirement(
        "Each risk of the OWASP API Security Top 10 (2023) has an answer, shown by tests",
        _in("unit/test_docs.py", "every_risk_of_owasp_has_an_answer_and_tests_that_exist"),
    ),
    "trust.pages": Requirement(
        "A web page of a stranger changes nothing through a user's browser, over any protocol",
        _in(
            "integration/test_origins.py",
            "a_page_of_a_stranger_changes_nothing_over_any_protocol",
            "a_page_whose_name_resolves_to_this_machine_reads_nothing",
            "a_call_with_a_token_is_served_whatever_its_page_is",
        )
        + _in("unit/test_http_origins.py", "over_tls_a_page_of_the_listeners_own_name_is_served"),
    ),
    "trust.identity-principal": Requirement(
        "The subject is the principal of served requests; stores believe it only on the internal listener",
        _in(
            "integration/test_identity_doors.py",
            "the_subject_is_the_principal_of_served_requests",
            "a_forged_principal_has_no_effect_on_a_public_listener",
        )
        + _in(
            "unit/test_identity_gate.py",
            "an_internal_listener_takes_the_principal_from_a_router_of_this_and_of_the_last_release",
            "a_made_id_is_what_it_was_before_callers_had_an_identity",
        ),
    ),
    "trust.identity-change": Requirement(
        "A change of identity while clients write loses nothing and doubles nothing, forward and back",
        _in(
            "acceptance/test_identity_change.py",
            "identities_change_there_and_back_under_load_and_no_write_is_lost_or_doubled",
        )
        + _in(
            "contracts/test_store_identities.py",
            "a_retry_under_another_identity_of_its_caller_gets_the_first_answer",
            "so_does_a_retry_at_the_store_that_the_record_has_moved_to",
            "so_does_a_retry_after_a_seizure",
            "concurrent_attempts_under_every_identity_have_one_effect",
            "a_request_of_another_subject_is_another_request",
            "a_caller_without_identity_gets_the_answer_to_its_own_content",
            "a_request_that_runs_again_is_known_by_its_last_effect_under_every_identity",
            "a_store_that_does_not_own_the_record_answers_no_attempt_without_an_effect",
            "a_release_carries_the_newest_requests_of_every_principal",
        )
        + _in("model/test_model.py", "a_request_has_two_effects_if_it_is_looked_up_under_one_principal")
        + _in(
            "integration/test_identity_doors.py",
            "every_door_serves_callers_without_a_token_while_tokens_are_optional",
        )
        + _in("integration/test_control_cli.py", "an_operator_sees_and_switches_the_principal_of_served_requests")
        + _in(
            "unit/test_identity_change.py",
            "optional_credentials_may_be_missing",
            "optional_credentials_that_are_wrong_are_refused",
            "credentials_of_operators_are_never_optional",
            "the_router_names_the_principal_of_its_calls_and_the_setting_that_of_direct_ones",
            "a_switch_is_journaled_and_in_force_when_every_process_follows",
            "a_process_that_would_not_recognise_a_retry_prevents_the_switch",
            "a_router_of_an_earlier_release_prevents_the_switch",
        ),
    ),
    "trust.accounts": Requirement(
        "A caller sees and changes only its accounts' records, at either store, in lists and watches",
        _in(
            "contracts/test_store_accounts.py",
            "a_hidden_record_is_answered_as_an_absent_one",
            "each_caller_reaches_the_records_of_its_accounts",
            "a_record_is_created_in_an_account_of_the_caller_only",
            "a_taken_name_shows_no_more_than_that",
            "a_deleted_record_keeps_its_account",
            "a_list_pages_over_foreign_records_and_its_tokens_name_none",
            "a_watch_shows_changes_of_the_callers_accounts_only",
            "a_watch_is_continued_by_a_caller_of_the_same_accounts_only",
            "a_retry_is_answered_only_while_the_caller_may_see_the_record",
            "a_record_without_an_account_that_can_be_read_is_for_admins",
        )
        + _in(
            "integration/test_accounts_router.py",
            "a_hidden_record_is_answered_as_an_absent_one_and_stays_where_it_is",
            "a_list_of_both_stores_shows_the_callers_accounts_and_no_token_names_another",
            "a_watch_through_the_router_keeps_to_the_callers_accounts",
        )
        + _in(
            "contracts/test_accounts_property.py",
            "a_caller_sees_no_difference_to_a_store_without_the_records_of_others",
        )
        + _in("unit/test_old_rows.py", "a_list_of_some_accounts_ends_at_no_row_of_another_one")
        + _in(
            "integration/test_account_doors.py",
            "no_door_shows_a_record_of_another_account",
            "no_door_shows_a_record_of_another_account_in_a_later_phase",
            "no_door_shows_a_record_while_it_is_handed_over",
            "a_watch_ends_when_its_token_is_revoked_or_loses_its_account",
            "grpc_web_shows_the_records_of_the_callers_accounts_only",
            "the_python_client_sees_the_records_of_its_accounts_only",
        )
        + _in("integration/test_http_streams.py", "a_watch_ends_with_the_token_that_opened_it")
        + _in("unit/test_identity_gate.py", "a_stream_ends_when_its_caller_is_somebody_else_or_no_one")
        + _in("unit/test_descriptors.py", "an_account_that_could_change_or_is_ambiguous_is_refused")
        + _in("unit/test_identity_gate.py", "a_stream_ends_with_the_proof_of_its_callers_identity"),
    ),
    "trust.roles": Requirement(
        "Each operator's verb needs its role; the journal names the authenticated actor",
        _in(
            "integration/test_operators.py",
            "every_method_over_grpc_is_open_to_its_role_and_those_above",
            "secrets_are_shown_to_admins_only_by_every_method_that_can",
            "the_subject_is_the_actor_and_the_given_name_is_beside_it",
            "a_tool_gives_a_client_no_more_than_the_control_listener",
            "a_control_listener_of_this_machine_alone_opens_no_tool_to_clients",
            "a_router_does_not_start_without_the_authentication_that_it_needs",
            "the_command_and_the_router_as_processes_know_the_operator",
        )
        + _in(
            "unit/test_roles.py",
            "every_method_names_its_role",
            "a_step_without_a_way_back_needs_an_admin",
            "an_operator_can_always_go_back",
        ),
    ),
    "trust.two-person": Requirement(
        "A step without a way back can be made to need two admins; a rollback never needs a second one",
        _in(
            "integration/test_two_person.py",
            "a_seizure_waits_for_a_second_admin_and_runs_once",
            "the_last_phase_waits_and_meets_its_gates_on_approval",
            "a_call_on_another_setting_is_outdated",
            "a_step_runs_on_the_setting_of_its_approval",
            "of_two_people_who_approve_at_once_one_runs_the_call",
            "a_call_is_withdrawn_by_its_caller_or_by_an_admin",
            "a_call_of_a_newer_release_is_shown_and_not_run",
            "the_rule_is_not_switched_on_while_a_router_does_not_know_it",
            "one_admin_can_roll_back_alone_and_cannot_switch_the_rule_off",
            "a_router_without_names_is_no_way_around",
            "two_people_at_the_command_line",
        )
        + _in("unit/test_approvals.py", "steps_without_a_way_back_need_a_second_person", "a_call_expires")
        + _in("unit/test_flags.py", "a_router_keeps_the_fields_of_a_newer_release")
        + _in(
            "contracts/test_control_store.py",
            "a_call_that_waits_for_a_second_person_is_seen_by_all_routers_and_taken_once",
        ),
    ),
    "trust.tls": Requirement(
        "TLS on every leg between clients, operators and processes; peers that cannot be trusted are refused in words",
        _in(
            "integration/test_tls_processes.py",
            "a_system_serves_over_tls_with_certificates_on_both_sides",
            "a_process_with_a_bad_file_does_not_start_and_says_why",
        )
        + _in(
            "unit/test_tls_files.py",
            "a_bad_file_is_refused_by_setting_file_and_remedy",
            "a_key_that_every_user_can_read_or_change_is_refused",
            "no_key_is_in_a_text_about_its_files",
        )
        + _in(
            "unit/test_rpc_tls.py",
            "a_peer_that_cannot_be_trusted_is_refused_in_words",
            "another_name_is_checked_if_the_setting_says_so",
            "tls_before_1_2_is_refused",
            "a_drain_answers_the_calls_in_progress_over_tls",
        )
        + _in(
            "unit/test_http_tls.py",
            "a_client_that_cannot_be_trusted_is_refused",
            "a_client_with_a_certificate_is_served_and_known_by_its_names",
            "silent_clients_count_before_their_handshake_and_do_not_stay",
        ),
    ),
    "trust.tls-reload": Requirement(
        "Certificates reload without a restart and without a failed call; a bad replacement leaves the last good one",
        _in("integration/test_tls_processes.py", "certificates_are_replaced_under_traffic_without_a_failed_call")
        + _in(
            "unit/test_tls_files.py",
            "a_bad_replacement_leaves_the_last_good_certificate_in_force",
            "a_bad_replacement_is_logged_once_and_measured",
        )
        + _in(
            "unit/test_rpc_tls.py",
            "a_listener_shows_a_replaced_certificate_and_no_call_fails",
            "a_ca_that_is_withdrawn_admits_no_new_client",
            "a_client_shows_a_replaced_certificate_and_its_calls_in_progress_end_well",
        )
        + _in("unit/test_http_tls.py", "a_replaced_certificate_is_shown_to_the_next_client"),
    ),
    "trust.tls-servers": Requirement(
        "Kafka (SSL, SASL), PostgreSQL (verify-full) and Redis (TLS, ACL) are used over TLS; no secret is in an error",
        _in(
            "integration/test_tls_servers.py",
            "events_pass_through_kafka_over_tls",
            "kafka_that_cannot_be_trusted_or_refuses_us_is_named_without_secrets",
            "kafka_settings_that_do_not_fit_each_other_are_refused",
            "postgres_is_used_over_tls_for_the_store_and_the_control_store",
            "postgres_that_cannot_be_trusted_or_refuses_us_is_named_without_secrets",
            "locks_are_held_over_tls_by_a_user_with_a_password",
            "a_lock_server_that_cannot_be_trusted_or_refuses_us_is_named_without_secrets",
        ),
    ),
    "trust.events": Requirement(
        "An event without a valid authentication code is never applied",
        _in(
            "contracts/test_event_codes.py",
            "a_golden_event_has_the_golden_code",
            "each_code_is_that_of_the_description",
            "the_code_of_one_event_is_right_for_no_other",
            "a_rotation_leaves_no_event_without_a_right_code",
        )
        + _in("unit/test_key_ring.py", "a_changed_file_is_read_again_and_a_broken_one_leaves_the_last_good_ring")
        + _in(
            "unit/test_backend_event_auth.py",
            "a_message_without_a_right_code_is_parked_with_its_headers_and_changes_nothing",
            "events_that_were_in_the_log_when_the_check_began_are_applied_and_later_ones_need_a_code",
            "all_events_of_a_log_that_replaced_another_one_need_a_code",
            "a_parked_event_without_a_code_is_not_applied_after_the_check_was_switched_off",
            "a_replayed_record_is_taken_only_from_a_router_that_checks_codes",
            "a_store_gives_its_changes_only_to_a_relay_that_signs",
            "a_forged_seizure_of_a_far_term_changes_nothing_in_any_mode",
        )
        + _in(
            "contracts/test_store_queues.py",
            "only_the_last_events_without_a_code_are_kept_and_all_others",
            "an_event_without_a_code_takes_the_place_of_no_other_one",
            "where_the_check_of_codes_starts_is_recorded_once",
        )
        + _in(
            "integration/test_event_auth.py",
            "every_kind_of_message_that_a_router_sends_has_a_right_code",
            "a_store_keeps_its_changes_from_a_relay_that_does_not_sign_and_another_one_takes_over",
            "a_replay_gives_older_events_only_after_confirmation_and_forged_ones_never",
            "each_event_is_shown_with_the_state_of_its_code",
            "events_without_a_code_are_alarmed_and_dropped_together",
        )
        + _in(
            "acceptance/test_event_auth.py",
            "codes_are_switched_on_and_rotated_under_load_and_a_forged_event_changes_nothing",
        ),
    ),
    "trust.demo": Requirement(
        "A whole migration runs with TLS, tokens and signed events; strangers get nothing at any listener or topic",
        _in("acceptance/test_demo.py", "a_demo_loses_nothing_and_says_so", "no_stranger_was_let_in")
        + _in(
            "unit/test_tls_making.py",
            "made_certificates_are_trusted_by_name_and_address_on_both_sides",
            "keys_are_for_their_owner_only",
            "a_pair_is_kept_until_it_does_not_fit_any_more",
            "a_certificate_that_expires_soon_is_made_again",
        ),
    ),
    "trust.limits": Requirement(
        "No caller can exhaust a listener, a process's memory or another caller's share",
        _in(
            "acceptance/test_memory.py",
            "refused_requests_are_not_kept",
            "watches_of_many_clients_share_a_bounded_memory",
        )
        + _in(
            "unit/test_rpc_limits.py",
            "calls_whose_body_never_comes_do_not_keep_others_out",
            "one_connection_has_no_more_than_its_share",
            "an_urgent_method_is_served_while_others_fill_the_listener",
            "calls_of_one_urgent_method_leave_the_slots_of_another",
            "a_body_that_never_comes_ends_its_call",
            "a_call_with_too_much_metadata_is_refused",
            "http2_limits_the_streams_of_a_connection_far_above_the_gate",
        )
        + _in(
            "unit/test_rpc_caller_limits.py",
            "a_caller_with_many_connections_has_no_more_than_its_share",
            "anonymous_connections_of_one_host_have_one_share",
            "a_caller_has_no_more_streams_than_its_own",
            "the_requests_of_a_caller_in_flight_have_a_size",
            "a_caller_that_waits_as_told_keeps_its_rate",
            "slow_bodies_of_one_caller_leave_slots_to_others",
        )
        + _in(
            "contracts/test_store_quota.py",
            "a_create_beyond_the_quota_is_refused_with_account_limit_and_count",
            "every_way_to_make_a_record_counts_and_other_writes_do_not",
            "several_processes_exceed_the_quota_by_at_most_what_they_make_between_two_counts",
        )
        + _in(
            "unit/test_rpc_untaken.py",
            "a_caller_has_a_limited_number_of_answers_that_it_has_not_taken",
            "answers_that_a_caller_has_not_taken_are_limited_in_bytes_together",
            "streams_whose_end_is_not_taken_are_counted",
            "a_host_that_takes_no_answer_of_health_is_refused_and_keeps_no_calls",
        )
        + _in(
            "unit/test_rpc_connections.py",
            "connections_beyond_the_limit_are_closed_and_those_before_are_served",
            "a_process_asks_for_as_many_open_files_as_it_may_have",
        )
        + _in("unit/test_callers.py", "the_number_of_remembered_callers_is_limited_and_those_with_calls_stay")
        + _in(
            "unit/test_http_listener.py",
            "a_host_has_no_more_than_its_share_of_the_connections",
            "a_request_that_a_proxy_may_read_differently_is_refused_with_all_that_follow",
            "the_body_of_a_refused_request_is_no_request",
        )
        + _in(
            "integration/test_caller_limits.py",
            "every_door_of_every_program_has_the_limits_of_a_caller",
            "a_flood_of_one_caller_leaves_calls_health_and_rollback_to_others",
            "a_body_that_comes_too_slowly_ends_its_request",
        ),
    ),
    "trust.fuzz": Requirement(
        "Hostile requests to any listener leave no fault, no hang and no record; decoders refuse by their own error",
        _in("fuzz/test_listeners.py", "hostile_requests_to_every_listener_leave_no_fault_and_no_record")
        + _in(
            "fuzz/test_decoders.py",
            "an_event_is_a_record_of_its_key_or_unreadable",
            "headers_are_those_of_an_event_or_invalid",
            "a_log_that_another_program_wrote_is_read_or_refused",
            "a_token_is_one_of_ours_or_refused",
            "a_filter_is_understood_or_refused",
            "a_mask_selects_or_is_refused",
            "a_file_of_flags_is_taken_or_refused_whole",
            "a_plan_is_taken_or_refused",
            "a_file_of_settings_is_taken_or_refused",
        ),
    ),
    "trust.secrets": Requirement(
        "Secrets of records reach no log, error, report or operator's output, unless an admin gives a reason",
        _in(
            "integration/test_secrets.py",
            "secrets_are_in_no_log_error_report_and_output",
            "secrets_are_shown_to_an_operator_who_gives_a_reason_which_is_journaled",
            "a_redacted_record_is_not_taken_for_a_whole_one",
        )
        + _in(
            "unit/test_secrets.py",
            "values_of_secret_maps_are_replaced_and_their_keys_stay",
            "a_refused_secret_is_named_and_not_shown",
            "json_with_a_secret_of_a_wrong_type_is_refused_without_it",
            "representations_have_no_content",
        ),
    ),
    "trust.passwords": Requirement(
        "Passwords in settings reach no log line, error or representation",
        _in(
            "unit/test_secrets.py",
            "settings_show_no_password",
            "an_address_whose_password_hides_its_port_is_refused_without_it",
            "a_log_line_hides_the_password_of_an_address",
        ),
    ),
    "operate.page": Requirement(
        "One live page shows and controls the migration, tested in a real browser",
        _in("acceptance/test_console.py", "an_operator_steers_a_migration_from_the_page")
        + _in(
            "integration/test_console_verbs.py",
            "the_page_shows_the_plan_of_the_command_and_changes_nothing",
            "a_change_is_the_one_that_was_shown_and_the_journal_names_its_author",
            "a_form_without_the_value_of_the_session_or_from_elsewhere_changes_nothing",
            "the_api_refuses_what_a_role_does_not_allow",
        )
        + _in("integration/test_console.py", "a_look_at_the_stream_has_an_end")
        + _in(
            "unit/test_console_live.py",
            "a_stream_ends_with_its_session",
            "a_stream_that_no_longer_reads_fails_instead_of_showing_old_answers",
        )
        + _in(
            "unit/test_console_view.py",
            "hostile_text_is_escaped_wherever_it_stands",
            "the_name_in_a_form_is_the_name_of_the_record",
            "a_list_that_is_cut_says_so",
        ),
    ),
    "operate.telemetry": Requirement(
        "Metrics, traces and logs by OpenTelemetry's conventions through router, stores, log and apply",
        _in("integration/test_signals.py", "real_processes_show_their_metrics_their_traces_and_their_logs")
        + _in("integration/test_postgres_pool.py", "a_pool_shows_its_connections_and_the_requests_that_wait_for_one")
        + _in(
            "unit/test_otlp_metrics.py",
            "a_receiver_gets_the_instruments_and_the_durations_with_their_sender",
            "the_last_metrics_are_sent_at_the_end_of_a_process",
            "a_receiver_that_is_away_is_named_once_and_gets_newer_metrics_when_it_is_back",
            "a_receiver_that_hangs_does_not_keep_a_process_from_ending",
            "an_interval_without_a_receiver_stops_the_start",
            "an_interval_out_of_bounds_stops_the_start",
        )
        + _in("unit/test_docs.py", "every_instrument_is_made_from_the_table_of_metrics")
        + _in(
            "unit/test_signals.py",
            "a_histogram_counts_each_duration_once_and_shows_the_last_trace_of_each_bucket",
            "a_process_without_metrics_puts_nothing_around_its_calls",
            "a_call_that_fails_is_counted_under_the_status_that_its_caller_gets",
            "a_job_is_idle_from_its_last_advance_on",
            "the_fullest_limit_of_an_outbox_counts",
            "a_trace_context_that_is_not_valid_is_ignored",
            "a_valid_trace_context_is_kept_as_it_is",
            "a_call_is_a_span_of_its_callers_trace_and_the_parent_of_the_calls_it_makes",
            "changes_are_spans_only_if_the_trace_of_their_write_is_recorded",
            "a_log_line_of_a_traced_call_names_the_trace",
            "an_error_names_the_trace_that_its_caller_gave",
            "a_share_of_the_calls_gets_a_log_line",
        ),
    ),
    "operate.alerts": Requirement(
        "Dashboards, alert rules and runbooks from code, each alert with its runbook",
        _in(
            "unit/test_alert_rules.py",
            "every_rule_fires_at_its_condition_and_only_then",
            "every_alert_has_a_runbook_and_reads_exported_metrics",
            "every_query_of_a_dashboard_names_an_exported_metric",
            "the_dashboards_are_fresh_and_lint_notices_if_they_are_not",
        )
        + _in(
            "unit/test_observability.py",
            "prometheus_reads_the_metrics_of_each_program",
            "the_programs_send_traces_to_the_collector",
            "the_services_beside_the_system_start_only_if_they_are_asked_for",
            "prometheus_takes_its_file",
        )
        + _in("integration/test_signals.py", "real_processes_show_their_metrics_their_traces_and_their_logs")
        + _in(
            "unit/test_runbooks.py",
            "each_kind_has_one_page_and_each_page_only_kinds_that_exist",
            "a_page_has_its_parts_and_a_heading_for_each_reason",
            "each_line_under_look_at_this_has_a_page",
        )
        + _in(
            "integration/test_runbook_commands.py",
            "every_command_of_the_runbooks_runs",
            "commands_name_the_page_of_a_gate_of_a_limit_and_of_an_error",
        ),
    ),
    "operate.notify": Requirement(
        "Webhooks report phases, rollbacks, gates that fail, job ends and conflicts, signed, each at least once",
        _in(
            "unit/test_notices.py",
            "each_change_of_phase_and_hold_is_told_once_and_in_order",
            "each_end_of_a_job_is_told_once",
            "a_gate_is_told_when_it_begins_to_fail",
            "a_gate_that_fails_when_its_phase_begins_is_no_news",
            "conflicts_are_told_when_there_are_more",
            "a_notice_is_a_cloud_event",
        )
        + _in(
            "integration/test_notify.py",
            "a_receiver_that_fails_hangs_and_comes_back_gets_each_notice_in_order",
            "a_notice_is_signed",
            "one_router_sends",
            "a_router_reports_a_rollback",
            "a_notice_about_a_gate_is_the_same_in_each_attempt_and_is_given_up_too",
            "a_router_that_has_just_started_does_not_report_old_jobs_again",
            "every_router_shows_that_notices_are_not_delivered_until_they_are",
            "a_router_that_stood_still_does_not_put_back_the_record_of_the_next_one",
        ),
    ),
    "operate.gate-webhook": Requirement(
        "A gate can ask an external URL, signed; no answer in time, or none with a verdict, is INCONCLUSIVE",
        _in(
            "integration/test_gate_webhook.py",
            "an_endpoint_that_does_not_decide_makes_the_gate_inconclusive",
            "the_question_is_signed_and_names_the_step",
            "a_step_asks_anew_and_an_override_passes_as_with_any_gate",
            "an_answer_that_comes_late_does_not_replace_a_later_one",
            "operators_see_the_endpoints_message_and_the_page_of_the_gate",
        )
        + _in(
            "unit/test_notices.py",
            "a_feature_refuses_settings_that_do_not_fit",
            "the_webhook_decides_about_all_phases_or_about_those_that_the_setting_names",
        ),
    ),
    "operate.evidence": Requirement(
        "A difference is shown with request, both answers and fields, bounded, without secrets; one that the contract"
        " allows counts apart, and so does the noise of one store",
        (
            *_in(
                "unit/test_difference_evidence.py",
                "an_example_has_the_request_both_answers_and_each_field_that_differs",
                "no_secret_is_in_the_request_the_answers_or_the_fields",
                "request_answers_and_fields_are_cut",
                "one_example_is_kept_of_each_kind_of_difference",
            ),
            *_in(
                "unit/test_comparison_rules.py",
                "a_difference_within_a_rule_is_allowed_and_no_other",
                "allowed_differences_have_a_count_of_their_own",
            ),
            *_in("unit/test_noise.py", "the_counts_of_all_routers_make_the_floor_and_it_outlives_the_comparison"),
            *_in("unit/test_gates.py", "a_gate_returns_the_verdict_of_its_evidence", "noise_alone_calls_no_person"),
            *_in(
                "contracts/test_control_differences.py",
                "examples_of_all_routers_are_shown_newest_first_and_their_number_is_bounded",
            ),
            *_in(
                "integration/test_shadow_cli.py",
                "the_evidence_of_a_difference_is_shown_with_request_and_answers_and_without_secrets",
            ),
        ),
    ),
    "operate.cli": Requirement(
        "Every command prints JSON, has a dry run if it changes something and a wait if it starts something;"
        " systems have names, settings show their source, a shell completes names of the running system",
        _in(
            "unit/test_cli_tree.py",
            "every_command_prints_json",
            "every_command_that_changes_something_has_a_dry_run",
            "every_command_that_starts_something_can_wait_for_its_end",
            "every_method_that_starts_something_is_listed",
            "a_shell_offers_names_of_the_running_system",
            "a_router_that_does_not_answer_is_no_completion_and_no_error",
            "a_wait_ends_in_time_and_says_that_the_work_goes_on",
        )
        + _in(
            "unit/test_cli_contexts.py",
            "an_option_or_a_variable_goes_before_the_context_in_use",
            "the_token_of_one_system_is_not_sent_to_another",
            "a_change_names_the_context_before_it_asks",
        )
        + _in(
            "unit/test_cli_config.py",
            "every_setting_is_shown_with_its_source",
            "a_password_is_not_shown",
            "a_file_that_a_setting_names_is_checked",
        )
        + _in("unit/test_cli_plain.py", "a_value_that_is_not_known_is_no_number")
        + _in("unit/test_cli_wait.py", "a_move_is_shown_until_every_bucket_is_in_its_place"),
    ),
    "deploy.compose": Requirement(
        "Containers talk over TLS with tokens and signed events; only the router's ports are reachable",
        _in(
            "integration/test_compose.py",
            "every_leg_is_encrypted_and_every_caller_is_known",
            "a_secret_that_a_container_names_is_mounted_there_and_no_other_is",
            "no_server_lets_anybody_in_from_the_network",
            "only_what_clients_call_is_published_and_on_this_machine_only",
            "making_secrets_again_leaves_them_as_they_are",
        )
        + _in(
            "integration/test_compose_start.py", "what_the_file_starts_becomes_healthy_in_its_order_and_ends_in_order"
        ),
    ),
    "deploy.kubernetes": Requirement(
        "Manifests are rendered and validated, and their commands, environment and probes are run",
        _in(
            "integration/test_kubernetes.py",
            "the_manifests_are_valid_for_the_oldest_kubernetes",
            "a_field_that_kubernetes_does_not_know_is_refused",
            "the_environment_of_a_container_loads_as_its_programs_settings",
            "only_calls_that_the_settings_name_are_allowed",
            "a_program_is_ready_when_its_listeners_are",
            "a_program_survives_the_loss_of_a_node",
            "a_pod_has_more_time_to_end_than_its_program_takes",
            "in_production_every_leg_is_encrypted_and_every_caller_is_known",
            "prometheus_finds_every_program",
        )
        + _in(
            "integration/test_kubernetes_files.py",
            "a_document_has_only_fields_that_kubernetes_knows",
            "a_pod_can_do_no_more_than_it_needs",
            "a_fenced_store_is_not_killed",
            "the_old_file_is_copied_into_the_volume_that_the_old_service_gets",
        )
        + _in(
            "integration/test_kubernetes_start.py",
            "both_overlays_start_in_no_order_serve_a_client_and_end_in_time",
        ),
    ),
    "adapter.guide": Requirement(
        "A new SQL store is a set of small operations on one transaction; the protocol is not written again"
    ),
}
