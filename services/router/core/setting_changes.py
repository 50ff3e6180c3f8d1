"""The differences between two settings, in words: for the journal, the log, and plans. Pure."""

from __future__ import annotations

from libs.text import plain
from services.router.core.phase import Setting


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
    old, new = dict(before.flags), dict(after.flags)
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            found.append(f"flag {name} = {_word(new.get(name))} (was {_word(old.get(name))})")
    limits, limits_now = dict(before.limits), dict(after.limits)
    for name in sorted({*limits, *limits_now}):
        if limits.get(name) != limits_now.get(name):
            found.append(f"limit {name} = {_number(limits_now.get(name))} (was {_number(limits.get(name))})")
    return found


def _number(value: float | None) -> str:
    return "unset" if value is None else plain(value)


def _percent(permille: int) -> str:
    return f"{plain(permille / 10)} %"


def _shadow(setting: Setting) -> str:
    return _percent(setting.shadow_permille) + (" with itself" if setting.shadow_same else "")


def _word(value: bool | None) -> str:
    return {True: "true", False: "false", None: "unset"}[value]
