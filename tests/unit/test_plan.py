"""Where a call goes: the order of the rules, and the canary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.ownership.model import BUCKETS, Store
from services.router.core.phase import CANARY_FULL, Phase, Setting
from services.router.core.plan import NO_FLAGS, Flags, home, is_canary, target

A, B = Store.A, Store.B

permilles = st.integers(0, CANARY_FULL)
buckets = st.integers(0, BUCKETS - 1)
settings = st.builds(
    Setting, phase=st.sampled_from(Phase), canary_permille=permilles, hold=st.booleans(), generation=st.just(1)
)

# Each row adds the rule that precedes the rows above it: hold, flags, the rule that decides, the target.
PRIORITY = [
    (False, NO_FLAGS, 900, "phase", A),
    (False, NO_FLAGS, 10, "canary", B),
    (False, Flags(use_service_layer=True), 900, "global flag", B),
    (False, Flags(use_service_layer=True, operations={"get": False}), 900, "get flag", A),
    (False, Flags(operations={"get": True}), 900, "get flag", B),
    (False, Flags(use_service_layer=False, operations={"get": True}), 10, "global flag", A),
    (True, Flags(use_service_layer=True, operations={"get": True}), 10, "hold", A),
]


@pytest.mark.parametrize(("hold", "flags", "bucket", "rule", "store"), PRIORITY)
def test_the_first_rule_that_speaks_decides(hold: bool, flags: Flags, bucket: int, rule: str, store: Store) -> None:
    setting = Setting(1, Phase.DUAL_WRITE, 100, hold)
    assert target(setting, flags, "get", bucket) == (store, rule)


@pytest.mark.parametrize("phase", Phase)
def test_without_flags_the_phase_decides(phase: Phase) -> None:
    expected = A if phase in {Phase.OFF, Phase.SHADOW, Phase.DUAL_WRITE} else B
    assert target(Setting(1, phase), NO_FLAGS, "create", 5).store is expected


def test_an_operations_flag_steers_that_operation_alone() -> None:
    flags = Flags(operations={"update": True})
    assert target(Setting(), flags, "update", 5).store is B
    assert target(Setting(), flags, "delete", 5).store is A


def test_a_canary_outside_its_phase_steers_nothing() -> None:
    for phase in (Phase.OFF, Phase.SHADOW):
        assert target(Setting(1, phase, CANARY_FULL), NO_FLAGS, "get", 0).store is A


@pytest.mark.parametrize("phase", Phase)
def test_an_old_client_reads_at_a_before_the_cutover_where_nothing_else_speaks(phase: Phase) -> None:
    at_a = {Phase.OFF, Phase.SHADOW, Phase.DUAL_WRITE, Phase.DUAL_READ}
    found = target(Setting(1, phase), NO_FLAGS, "get", 5, old_client=True)
    assert found.store is (A if phase in at_a else B)
    assert found.moves is (phase is not Phase.DUAL_READ), "no record follows a client"


@pytest.mark.parametrize(
    ("setting", "flags", "expected"),
    [
        (Setting(1, Phase.DUAL_READ), Flags(use_service_layer=True), (B, "global flag")),
        (Setting(1, Phase.DUAL_READ), Flags(operations={"get": True}), (B, "get flag")),
        (Setting(1, Phase.DUAL_WRITE, CANARY_FULL), NO_FLAGS, (B, "canary")),
        (Setting(1, Phase.DUAL_WRITE, rehearsal=(5,)), NO_FLAGS, (B, "rehearsal")),
        (Setting(1, Phase.DUAL_READ, rehearsal=(5,)), NO_FLAGS, (A, "rehearsal")),
        (Setting(1, Phase.DUAL_READ), NO_FLAGS, (A, "client schema")),
    ],
)
def test_a_clients_schema_speaks_after_all_but_the_phase(
    setting: Setting, flags: Flags, expected: tuple[Store, str]
) -> None:
    assert target(setting, flags, "get", 5, old_client=True) == expected


def test_a_call_without_a_key_is_never_canary() -> None:
    assert target(Setting(1, Phase.DUAL_WRITE, CANARY_FULL), NO_FLAGS, "list", None) == (A, "phase")


@given(settings, buckets, st.sampled_from([None, True, False]))
def test_without_operation_flags_calls_go_where_the_mover_brings_the_bucket(
    setting: Setting, bucket: int, flag: bool | None
) -> None:
    flags = Flags(use_service_layer=flag)
    assert home(setting, flags, bucket) is target(setting, flags, "update", bucket).store


@given(settings, buckets, st.booleans())
def test_operation_flags_never_move_a_bucket(setting: Setting, bucket: int, value: bool) -> None:
    flags = Flags(operations=dict.fromkeys(("create", "get", "list", "update", "delete"), value))
    assert home(setting, flags, bucket) is home(setting, NO_FLAGS, bucket)


@given(permilles, permilles, buckets)
def test_a_growing_canary_only_adds_buckets(one: int, other: int, bucket: int) -> None:
    small, large = sorted((one, other))
    assert not is_canary(bucket, small) or is_canary(bucket, large)


@pytest.mark.parametrize(
    ("permille", "count"), [(0, 0), (1, 1), (10, 10), (50, 51), (100, 102), (500, 512), (999, 1023), (1000, 1024)]
)
def test_a_canary_has_its_share_of_the_buckets(permille: int, count: int) -> None:
    assert sum(is_canary(bucket, permille) for bucket in range(BUCKETS)) == count
