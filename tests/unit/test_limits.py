"""Limits of gates and of automatic rollback that change while the migration runs."""

import math

import pytest
from pydantic import ValidationError

from libs.errors import InvalidField
from services.router.core.automatic_rollback import AUTOMATIC, CALLS
from services.router.core.gates.data import AUDIT_AGE
from services.router.core.gates.service import ERRORS
from services.router.core.limits import THRESHOLDS, changed
from services.router.core.thresholds import Limits, Threshold
from services.router.settings import RouterSettings

NEEDED = {
    "event_log": "memory:",
    "store_a": "127.0.0.1:1",
    "store_b": "127.0.0.1:2",
    "control_store": "memory:",
}


@pytest.mark.parametrize("threshold", THRESHOLDS.values(), ids=THRESHOLDS)
def test_a_threshold_is_the_setting_of_that_name_with_its_default_and_range(threshold: Threshold[float]) -> None:
    name = threshold.name
    assert RouterSettings(**NEEDED).limits[threshold] == Limits()[threshold]  # type: ignore[arg-type]
    assert RouterSettings.model_fields[name].description == threshold.meaning and threshold.meaning.endswith(".")
    for inside in (threshold.least, threshold.most):
        settings = RouterSettings(**NEEDED, **{name: inside})  # type: ignore[arg-type]
        assert settings.limits.typed(threshold) == threshold.check(inside)
    for outside in (threshold.least - 1, threshold.most + 1):
        with pytest.raises(ValidationError, match=name):
            RouterSettings(**NEEDED, **{name: outside})  # type: ignore[arg-type]


def test_an_overlay_changes_what_it_names_and_nothing_else() -> None:
    overlay = changed((), {"gate_error_percent": 5, "gate_audit_days": 1, "rollback_calls": 50})
    limits = Limits({"gate_error_calls": 7}).overlaid(overlay)
    assert (limits[ERRORS], limits[AUDIT_AGE], limits[CALLS]) == (0.05, 86_400.0, 50)
    unchanged = set(THRESHOLDS) - {"gate_error_percent", "gate_audit_days", "rollback_calls", "gate_error_calls"}
    assert all(limits[THRESHOLDS[name]] == Limits()[THRESHOLDS[name]] for name in unchanged)
    assert changed(overlay, {"rollback_automatic": 0}, ("gate_error_percent", "gate_audit_days")) == (
        ("rollback_automatic", 0.0),
        ("rollback_calls", 50),
    )
    assert Limits().overlaid((("rollback_automatic", 0.0),))[AUTOMATIC] is False


def test_a_limit_of_a_newer_program_has_no_effect() -> None:
    limits = Limits().overlaid((("gate_of_tomorrow", 1.0),))
    assert all(limits[threshold] == Limits()[threshold] for threshold in THRESHOLDS.values())


@pytest.mark.parametrize(
    ("to_set", "words"),
    [
        ({"gate_none": 1.0}, "one of gate_audit_days, gate_lag_seconds"),
        ({"gate_error_calls": 0}, "a whole number from 1 to 100000000"),
        ({"gate_error_calls": 2.5}, "a whole number"),
        ({"gate_latency_calls": 298}, "from 299"),
        ({"gate_error_percent": 101}, "to 100"),
        ({"gate_lag_seconds": math.nan}, "a number from"),
        ({"rollback_seconds": 51}, "from 6 to 50"),
    ],
)
def test_a_wrong_limit_is_refused_with_the_valid_range(to_set: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidField) as refused:
        changed((), to_set)
    assert words in refused.value.expected


def test_a_limit_is_set_or_unset_not_both() -> None:
    with pytest.raises(InvalidField, match="set or unset, not both"):
        changed((), {"gate_error_calls": 7}, ("gate_error_calls",))
