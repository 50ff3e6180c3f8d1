"""The differences between two settings, in words: for the journal, the log, and plans. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from libs.ownership.model import ANONYMOUS
from libs.text import plain
from services.router.core.phase import Setting

T = TypeVar("T")


def changes(before: Setting, after: Setting) -> list[str]:
    """One entry per difference: "flag sandbox.routing.use_service_layer = false (was unset)"."""
    found = []
    if before.phase is not after.phase:
        found.append(f"phase {before.phase.value} -> {after.phase.value}")
    if before.canary_permille != after.canary_permille:
        found.append(f"canary {_percent(before.canary_permille)} -> {_percent(after.canary_permille)}")
    if _shadow(before) != _shadow(after):
        found.append(f"shadow {_shadow(before)} -> {_shadow(after)}")
    if before.hold != after.hold:
        found.append("hold set: all traffic at A" if after.hold else "hold lifted")
    if before.rehearsal != after.rehearsal:
        buckets = ", ".join(map(str, after.rehearsal or before.rehearsal))
        found.append(f"rehearsal of buckets {buckets} {'begun' if after.rehearsal else 'ended'}")
    if before.serves_subjects != after.serves_subjects:
        found.append(f"requests served under {principals(before)} -> {principals(after)}")
    if before.two_person != after.two_person:
        found.append(f"two-person rule {'on' if after.two_person else 'off'}")
    cohorts = _differing(
        [(one.name, str(one)) for one in before.cohorts], [(one.name, str(one)) for one in after.cohorts]
    )
    found += [f"cohort {new} (was {old or 'none'})" if new else f"cohort {old} removed" for _, old, new in cohorts]
    found += [
        f"flag {name} = {_word(new)} (was {_word(old)})" for name, old, new in _differing(before.flags, after.flags)
    ]
    limits = _differing(before.limits, after.limits)
    found += [f"limit {name} = {_number(new)} (was {_number(old)})" for name, old, new in limits]
    return found


def _differing(before: Iterable[tuple[str, T]], after: Iterable[tuple[str, T]]) -> list[tuple[str, T | None, T | None]]:
    """Return name, old and new value of each difference, by name."""
    old, new = dict(before), dict(after)
    return [(name, old.get(name), new.get(name)) for name in sorted({*old, *new}) if old.get(name) != new.get(name)]


def principals(setting: Setting) -> str:
    """Return "subjects" or "anonymous"."""
    return "subjects" if setting.serves_subjects else ANONYMOUS


def _number(value: float | None) -> str:
    return "unset" if value is None else plain(value)


def _percent(permille: int) -> str:
    return f"{plain(permille / 10)} %"


def _shadow(setting: Setting) -> str:
    return _percent(setting.shadow_permille) + (" with itself" if setting.shadow_same else "")


def _word(value: bool | None) -> str:
    return {True: "true", False: "false", None: "unset"}[value]
