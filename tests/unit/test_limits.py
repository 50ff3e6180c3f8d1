"""Limits of gates and of automatic rollback that change while the migration runs."""

import math
from dataclasses import fields

import pytest
from annotated_types import Ge, Gt, Le

from libs.errors import InvalidField
from services.router.core.evidence import Limits
from services.router.core.judge import RollbackLimits
from services.router.core.limits import LIMITS, changed, gate_limits, rollback_limits
from services.router.settings import RouterSettings


def test_the_table_has_every_limit_of_the_gates_and_of_rollback() -> None:
    gates = {limit.field for limit in LIMITS.values() if not limit.of_rollback}
    rollback = {limit.field for limit in LIMITS.values() if limit.of_rollback}
    assert gates == {field.name for field in fields(Limits)}
    assert rollback == {field.name for field in fields(RollbackLimits)} - {"least_a_calls"}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_the_setting_of_that_name_with_its_range(name: str) -> None:
    limit, setting = LIMITS[name], RouterSettings.model_fields[name]
    usual = limit.typed((Limits(), RollbackLimits())[limit.of_rollback])
    assert usual == pytest.approx(float(setting.default))
    for bound in setting.metadata:
        if isinstance(bound, Ge):
            assert limit.least == bound.ge
        elif isinstance(bound, Gt):
            assert limit.least > float(bound.gt)  # type: ignore[arg-type]
        elif isinstance(bound, Le):
            assert limit.most == bound.le
    assert limit.least <= usual <= limit.most
    assert limit.sentence.endswith(".")


def test_an_overlay_changes_what_it_names_and_nothing_else() -> None:
    overlay = changed((), {"gate_error_percent": 5, "gate_audit_days": 1, "rollback_calls": 50})
    assert gate_limits(Limits(), overlay) == Limits(error_rate=0.05, audit_seconds=86_400.0)
    assert rollback_limits(RollbackLimits(), overlay) == RollbackLimits(least_calls=50)
    assert changed(overlay, {"rollback_automatic": 0}, ("gate_error_percent", "gate_audit_days")) == (
        ("rollback_automatic", 0.0),
        ("rollback_calls", 50),
    )
    assert rollback_limits(RollbackLimits(), (("rollback_automatic", 0.0),)).automatic is False


def test_a_limit_of_a_newer_program_is_left_out() -> None:
    assert gate_limits(Limits(), (("gate_of_tomorrow", 1.0),)) == Limits()


@pytest.mark.parametrize(
    ("to_set", "words"),
    [
        ({"gate_none": 1.0}, "one of gate_lag_seconds"),
        ({"gate_error_calls": 0}, "a whole number from 1 to 100000000"),
        ({"gate_error_calls": 2.5}, "a whole number"),
        ({"gate_latency_calls": 298}, "from 299"),
        ({"gate_error_percent": 101}, "to 100"),
        ({"gate_lag_seconds": math.nan}, "a number from"),
        ({"rollback_seconds": 51}, "from 6 to 50"),
    ],
)
def test_a_wrong_limit_is_refused_with_what_is_right(to_set: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidField) as refused:
        changed((), to_set)
    assert words in refused.value.expected


def test_a_limit_is_set_or_unset_not_both() -> None:
    with pytest.raises(InvalidField, match="set or unset, not both"):
        changed((), {"gate_error_calls": 7}, ("gate_error_calls",))
