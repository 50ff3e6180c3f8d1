"""Cohorts: who is in one, where its records are, and how it changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import BatonError, InvalidField
from libs.ownership.model import BUCKETS, Store, bucket_of
from libs.ownership.patterns import MAX_PATTERN_BYTES, bounds, check_pattern, matches
from services.router.control.codec import setting_from_json, setting_to_json
from services.router.core.automatic_rollback import rolled_back
from services.router.core.cohort_changes import MAX_COHORTS, add_cohort, remove_cohort, set_share
from services.router.core.cohorts import Cohort, CohortNotFound, cohort_of
from services.router.core.phase import PHASES, IllegalMove, Phase, Setting, advance, rollback, set_canary
from services.router.core.plan import (
    NO_FLAGS,
    UNKNOWN_ACCOUNT,
    Flags,
    aim,
    home,
    kinds,
    parts_from,
    record_home,
    target,
)
from services.router.core.setting_changes import changes

A, B = Store.A, Store.B
STEERED = [phase for phase, rule in PHASES.items() if rule.cohorts]

permilles = st.integers(0, 1000)
texts = st.text(st.sampled_from("ab/*é\U0010ffff\ud7ff"), max_size=6)
names = st.text(st.sampled_from("ab/é"), min_size=1, max_size=6)
patterns = names | names.map(lambda name: f"{name}*") | st.just("*")
accounts = st.sampled_from(["", "acme", "corp"])
by_names = st.builds(lambda name, names, share: Cohort(name, names, "", share), names, patterns, permilles)
by_accounts = st.builds(Cohort, names, st.just(""), st.sampled_from(["acme", "corp"]), permilles)
settings = st.builds(
    Setting,
    generation=st.just(1),
    phase=st.sampled_from(Phase),
    canary_permille=permilles,
    cohorts=st.lists(by_names | by_accounts, max_size=4).map(tuple),
    rehearsal=st.lists(st.integers(0, BUCKETS - 1), max_size=3, unique=True).map(tuple),
)


def at(phase: Phase, *cohorts: Cohort, canary: int = 0) -> Setting:
    return Setting(7, phase, canary, cohorts=cohorts)


def where(setting: Setting, key: str, account: str | None = "", flags: Flags = NO_FLAGS) -> tuple[Store, str]:
    return target(setting, flags, "update", bucket_of(key), key=key, account=account)


# --- Rules -----------------------------------------------------------------------------------------------------------


@given(patterns, texts)
def test_the_matches_of_a_pattern_are_exactly_the_names_within_its_bounds(pattern: str, name: str) -> None:
    first, beyond = bounds(pattern)
    data = name.encode("utf-8", "surrogatepass")
    within = data >= first.encode("utf-8", "surrogatepass")
    if beyond:
        within = within and data < beyond.encode("utf-8", "surrogatepass")
    assert matches(pattern, name) is within


@pytest.mark.parametrize("pattern", ["", "a*b", "**", "a\n", "x" * (MAX_PATTERN_BYTES + 1), "é" * 129])
def test_a_pattern_is_a_name_or_a_beginning_and_at_most_256_bytes(pattern: str) -> None:
    with pytest.raises(InvalidField):
        check_pattern("names", pattern)
    check_pattern("names", "é" * 128)


def test_the_first_cohort_by_name_decides_and_after_those_the_one_of_the_account() -> None:
    of_acme, staging, some = Cohort("acme", account="acme"), Cohort("staging", "s/stg-*"), Cohort("some", "s/*")
    cohorts = (of_acme, staging, some)
    assert cohort_of(cohorts, "s/stg-1", "acme") is staging
    assert cohort_of(cohorts, "s/one", "acme") is some
    assert cohort_of(cohorts, "t/one", "acme") is of_acme
    assert cohort_of(cohorts, "t/one", "corp") is None
    assert cohort_of((Cohort("none"),), "t/one", "") is None, "a rule of a newer release takes no record"


# --- Where a record is -----------------------------------------------------------------------------------------------


@given(names, permilles, permilles, st.sampled_from(STEERED), permilles)
def test_a_larger_share_only_adds_records_and_a_smaller_one_only_removes_some(
    key: str, one: int, other: int, phase: Phase, canary: int
) -> None:
    small, large = sorted((one, other))
    stores = [record_home(at(phase, Cohort("c", "*", "", s), canary=canary), NO_FLAGS, key, "") for s in (small, large)]
    assert stores != [B, A]


@given(names, permilles)
def test_a_share_takes_the_records_that_a_canary_of_that_share_takes(key: str, share: int) -> None:
    cohort, canary = at(Phase.DUAL_WRITE, Cohort("c", "*", "", share)), at(Phase.DUAL_WRITE, canary=share)
    assert where(cohort, key)[0] is where(canary, key)[0]


@given(settings, names, accounts, st.booleans(), st.none() | st.booleans())
def test_the_mover_and_a_call_that_knows_the_account_want_a_record_at_the_same_store(
    setting: Setting, key: str, account: str, hold: bool, flag: bool | None
) -> None:
    setting, flags = replace(setting, hold=hold), Flags(flag)
    assert record_home(setting, flags, key, account) is where(setting, key, account, flags)[0]


@given(settings, names, accounts)
def test_a_call_that_does_not_know_the_account_moves_no_record_that_may_belong_elsewhere(
    setting: Setting, key: str, account: str
) -> None:
    found = target(setting, NO_FLAGS, "update", bucket_of(key), key=key)
    assert not found.moves or found.store is record_home(setting, NO_FLAGS, key, account)


@given(settings, names, accounts)
def test_only_in_mixed_buckets_a_cohort_wants_a_record_elsewhere(setting: Setting, key: str, account: str) -> None:
    bucket = bucket_of(key)
    (kind,) = (kind for kind in kinds(setting) if bucket in kind.buckets)
    wanted = [parts_from(setting, one, bucket) for one in aim(setting, NO_FLAGS).cohorts]
    assert kind.is_mixed is any(wanted)
    if not kind.is_mixed:
        assert record_home(setting, NO_FLAGS, key, account) is home(setting, NO_FLAGS, bucket)


def test_hold_flags_and_rehearsals_come_before_a_cohort_and_canary_and_phase_after_it() -> None:
    first, key = Cohort("first", "k*", "", 1000), "key"
    setting = at(Phase.DUAL_WRITE, first)
    assert where(setting, key) == (B, "cohort first")
    assert where(replace(setting, canary_permille=1000, cohorts=(replace(first, permille=0),)), key) == (
        A,
        "cohort first",
    )
    assert where(at(Phase.DUAL_READ, replace(first, permille=0)), key) == (A, "cohort first")
    assert where(replace(setting, hold=True), key) == (A, "hold")
    assert where(setting, key, flags=Flags(False)) == (A, "global flag")
    assert where(setting, key, flags=Flags(operations={"update": False})) == (A, "update flag")
    assert where(replace(setting, rehearsal=(bucket_of(key),)), key) == (B, "rehearsal")
    assert where(setting, "other") == (A, "phase")


@pytest.mark.parametrize("phase", Phase)
def test_cohorts_steer_in_the_phases_in_which_records_of_both_stores_are_at_home(phase: Phase) -> None:
    last = at(phase, Cohort("last", "k*"), canary=1000 if phase is Phase.DUAL_WRITE else 0)
    assert (where(last, "key")[1] == "cohort last") is (phase in (Phase.DUAL_WRITE, Phase.DUAL_READ))
    assert where(last, "key")[0] is (B if phase in (Phase.CUTOVER, Phase.DEPRECATED) else A)


def test_a_call_that_does_not_know_the_account_goes_where_the_bucket_goes() -> None:
    setting = at(Phase.DUAL_WRITE, Cohort("first", account="acme", permille=1000))
    assert where(setting, "key", None) == (A, UNKNOWN_ACCOUNT)
    assert where(setting, "key", "acme") == (B, "cohort first")
    assert where(setting, "key", "corp") == (A, "phase")
    assert where(replace(setting, canary_permille=1000), "key", None) == (B, "canary"), "both want it at B"


# --- Changes ---------------------------------------------------------------------------------------------------------


def test_what_goes_back_to_a_takes_the_share_of_each_cohort() -> None:
    setting = at(Phase.DUAL_READ, Cohort("first", "s/*", "", 500), Cohort("acme", account="acme", permille=1000))
    for after in (rollback(setting, Phase.DUAL_WRITE), rollback(setting, Phase.OFF), rolled_back(setting)):
        assert [cohort.permille for cohort in after.cohorts] == [0, 0]
        assert home(after, NO_FLAGS, 0) is record_home(after, NO_FLAGS, "s/1", "acme") is A
    cut_over = advance(setting, Phase.CUTOVER)
    assert record_home(cut_over, NO_FLAGS, "s/1", "acme") is B, "CUTOVER ends the wait of the last"
    assert rollback(cut_over, Phase.DUAL_READ).cohorts == setting.cohorts


def test_a_change_is_the_next_generation_and_shown_in_words() -> None:
    before = at(Phase.DUAL_WRITE)
    added = add_cohort(before, Cohort("staging", "s/stg-*", permille=50))
    grown = set_share(added, "staging", 1000)
    gone = remove_cohort(grown, "staging")
    assert [added.generation, grown.generation, gone.generation] == [8, 9, 10]
    assert changes(before, added) == ["cohort staging (names s/stg-*, 5 %) (was none)"]
    assert changes(added, grown) == ["cohort staging (names s/stg-*, 100 %) (was staging (names s/stg-*, 5 %))"]
    assert changes(grown, gone) == ["cohort staging (names s/stg-*, 100 %) removed"]
    two = add_cohort(grown, Cohort("one", "s/1"), first=True)
    assert [cohort.name for cohort in two.cohorts] == ["one", "staging"]
    assert add_cohort(replace(before, rehearsal=(3,)), Cohort("x", "y")).rehearsal == ()


WRONG = [
    Cohort("", "x"),
    Cohort("Upper", "x"),
    Cohort("x" * 33, "x"),
    Cohort("none"),
    Cohort("both", "x", "acme"),
    Cohort("glob", "a*b"),
    Cohort("long", account="a" * 65),
    Cohort("more", "x", permille=1001),
    Cohort("less", "x", permille=-1),
    Cohort("taken", "y"),
    Cohort("other", "s/*"),
]


@pytest.mark.parametrize("cohort", WRONG, ids=lambda cohort: cohort.name[:8])
def test_a_cohort_that_is_not_valid_is_refused(cohort: Cohort) -> None:
    with pytest.raises(InvalidField):
        add_cohort(at(Phase.DUAL_WRITE, Cohort("taken", "s/*")), cohort)


def test_there_are_at_most_64_cohorts() -> None:
    setting = at(Phase.DUAL_WRITE)
    for number in range(MAX_COHORTS):
        setting = add_cohort(setting, Cohort(f"c{number}", f"s/{number}"))
    with pytest.raises(BatonError, match="remove one first"):
        add_cohort(setting, Cohort("more", "more"))


@pytest.mark.parametrize("phase", Phase)
def test_a_share_above_0_needs_a_phase_in_which_cohorts_steer_and_no_hold(phase: Phase) -> None:
    stays, goes = Cohort("stays", "s/*"), Cohort("goes", "g/*", permille=1)
    setting = add_cohort(at(phase), stays)
    if phase in STEERED:
        assert add_cohort(setting, goes).cohorts == (stays, goes)
        with pytest.raises(IllegalMove, match="held"):
            set_share(replace(setting, hold=True), "stays", 1)
    else:
        with pytest.raises(IllegalMove, match="DUAL_WRITE, DUAL_READ"):
            add_cohort(setting, goes)
        with pytest.raises(IllegalMove, match="DUAL_WRITE, DUAL_READ"):
            set_share(setting, "stays", 1)
    assert remove_cohort(setting, "stays").cohorts == ()
    with pytest.raises(CohortNotFound):
        remove_cohort(setting, "goes")


def test_canary_and_phase_keep_the_cohorts() -> None:
    setting = at(Phase.DUAL_WRITE, Cohort("first", "s/*", permille=500))
    assert set_canary(setting, 1000).cohorts == advance(setting, Phase.DUAL_READ).cohorts == setting.cohorts


def test_the_control_store_keeps_cohorts_with_the_fields_of_a_newer_release() -> None:
    one = Cohort("first", "s/*", permille=5, unknown=(("label", '"env=x"'),))
    setting = at(Phase.DUAL_WRITE, one, Cohort("acme", account="acme"))
    assert setting_from_json(setting_to_json(setting)) == setting
