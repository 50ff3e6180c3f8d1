"""The protocol is safe in every state of its model, and the model finds the accident of each wrong variant."""

from __future__ import annotations

import pytest

from tests.model import ownership, recovery
from tests.model.__main__ import main, variant
from tests.model.explore import explore
from tests.model.wrong import VARIANTS

LARGE = ("reading", "copying")
"""Scenes with so many states that `make check` leaves them out."""
SCENES = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in ownership.SCENES]


@pytest.mark.parametrize("name", SCENES)
def test_the_protocol_keeps_every_property_in_every_state(name: str) -> None:
    scene = ownership.SCENES[name]
    explored = explore(ownership.Ownership(scene))
    assert explored.broken is None, str(explored)
    assert explored.states >= scene.least_states, "the model has lost steps"


@pytest.mark.slow
@pytest.mark.parametrize("name", recovery.SCENES)
def test_a_store_that_lost_its_disk_comes_back_without_breaking_a_property(name: str) -> None:
    scene = recovery.SCENES[name]
    explored = explore(recovery.Recovery(scene))
    assert explored.broken is None, str(explored)
    assert explored.states >= scene.least_states, "the model has lost steps"


def _breaks(name: str) -> None:
    explored = variant(name)
    wrong = VARIANTS[name]
    assert wrong.breaks in (explored.broken or "nothing"), f"{wrong.rule}: {explored}"


def test_two_stores_own_a_record_if_absent_records_are_free() -> None:
    _breaks("absent_is_free")


def test_two_stores_own_a_record_if_it_can_be_taken_without_a_release() -> None:
    _breaks("seize")


def test_a_request_has_two_effects_if_served_requests_do_not_travel() -> None:
    _breaks("requests_stay")


def test_a_request_has_two_effects_if_it_is_looked_up_under_one_principal() -> None:
    _breaks("one_principal")


def test_two_stores_own_a_record_if_keys_are_listed_before_the_bucket_is_released() -> None:
    _breaks("drain_before_release")


def test_two_stores_own_a_record_if_a_bucket_is_adopted_before_the_rows_are_there() -> None:
    _breaks("adopt_without_drain")


def test_two_stores_own_a_record_if_a_late_adopt_of_an_older_bucket_is_accepted() -> None:
    _breaks("adopt_any_version")


def test_two_stores_own_a_record_if_the_releaser_takes_its_bucket_back_by_itself() -> None:
    _breaks("take_back")


def test_two_stores_own_a_record_if_a_declined_bucket_is_adopted_before_the_rows_are_there() -> None:
    _breaks("declined_is_drained")


def test_an_owner_forgets_a_change_if_every_arriving_record_is_applied() -> None:
    _breaks("apply_anything")


def test_one_version_has_two_writers_if_the_record_that_a_write_takes_along_decides() -> None:
    _breaks("arriving_decides")


def test_a_request_has_two_effects_if_a_repeated_release_leaves_its_requests_out() -> None:
    _breaks("released_again_bare")


def test_a_request_has_two_effects_if_a_released_row_is_copied_without_its_requests() -> None:
    _breaks("copy_of_released_bare")


def test_a_read_is_stale_if_the_targets_row_answers_when_both_stores_deny() -> None:
    _breaks("read_the_target")


def test_a_request_has_two_effects_if_a_late_execution_is_not_looked_up() -> None:
    _breaks("late_is_not_looked_up")


def test_a_request_is_refused_though_it_was_done_if_only_the_store_that_did_it_knows() -> None:
    _breaks("requests_are_known_at_home")


def test_a_refused_request_has_an_effect_if_it_was_given_up_at_another_store_before() -> None:
    _breaks("refusal_is_told")


def test_a_request_has_two_effects_if_an_entry_of_a_bulk_release_does_not_name_its_requests() -> None:
    _breaks("bulk_without_requests")


def test_a_write_is_lost_if_an_entry_of_a_bulk_release_is_taken_on_an_older_row() -> None:
    _breaks("take_any_older")


def test_a_record_stays_without_an_owner_if_an_entry_that_could_not_be_taken_is_dropped() -> None:
    _breaks("untaken_is_dropped")


@pytest.mark.slow
def test_a_request_has_two_effects_if_an_entry_of_a_bulk_release_is_taken_under_a_higher_term() -> None:
    _breaks("take_by_revision")


def test_two_stores_own_a_record_if_a_restored_store_serves() -> None:
    _breaks("old_backup_serves")


def test_two_stores_own_a_record_if_a_returning_store_does_not_ask_for_the_terms() -> None:
    _breaks("nobody_is_asked")


def test_two_stores_own_a_record_if_lower_terms_belong_to_the_owner_of_the_bucket() -> None:
    _breaks("lazy_terms")


def test_two_stores_own_a_record_if_a_returned_store_keeps_its_own_old_bucket_owner() -> None:
    _breaks("own_old_bucket")


def test_two_stores_own_a_record_if_a_seizure_raises_the_revision_alone() -> None:
    _breaks("no_term")


def test_a_logged_write_is_lost_if_a_store_seizes_before_it_has_read_the_log() -> None:
    _breaks("log_not_read")


def test_two_stores_own_a_record_if_a_bucket_is_seized_before_the_log_has_the_term() -> None:
    _breaks("log_is_not_told")


def test_a_request_is_done_without_effect_if_a_journaled_row_leaves_its_requests() -> None:
    _breaks("journaled_stays_known")


def test_a_write_vanishes_if_what_comes_late_of_an_older_term_is_simply_old() -> None:
    _breaks("late_is_old")


@pytest.mark.slow
def test_a_write_vanishes_if_a_second_seizure_forgets_what_the_first_had_seen() -> None:
    _breaks("last_base")


def test_a_request_is_answered_without_its_effect_if_a_store_answers_every_request_that_a_copy_names() -> None:
    _breaks("known_is_done")


def test_a_request_has_two_effects_if_a_row_is_copied_without_the_requests_that_it_served() -> None:
    _breaks("copied_bare")


def test_every_wrong_variant_has_a_test_of_its_own() -> None:
    tested = {
        constant
        for name, test in globals().items()
        if name.startswith("test_")
        for constant in test.__code__.co_consts
        if isinstance(constant, str)
    }
    assert set(VARIANTS) <= tested


def test_the_command_shows_the_trace_of_a_wrong_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seize"]) == 1
    assert "seize: two owners" in capsys.readouterr().out


def test_the_command_names_the_variants_when_it_does_not_know_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gravity"]) == 2
    assert "requests_stay" in capsys.readouterr().err
