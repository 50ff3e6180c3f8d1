"""The effects of an operator's change, in words: command and page show them before the change. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from libs.text import plain
from services.router.core.canary import CanaryPlan, OnFail
from services.router.core.phase import PHASES, Phase, Setting
from services.router.core.plan import LASTING_SECONDS
from services.router.core.setting_changes import changes

STORE_NAMES = {"A": "simple_mcp", "B": "service_layer"}
NO_COST = "no record to move back"
"""The cost of a rollback to a phase in which B keeps its records."""
_GLOBAL = ".use_service_layer"
"""Suffix of the flag that steers every call."""


def of_advance(before: str, to: str, effect: str, overridden: Iterable[tuple[str, str]]) -> list[str]:
    """`effect`: of the step, as the router plans it. `overridden`: name and evidence of gates that do not pass."""
    return [f"{before} -> {to}: {effect}", *(f"overridden: {name}: {evidence}" for name, evidence in overridden)]


def of_rollback(before: Phase, to: Phase, cost_note: str, *, comes_home: bool) -> list[str]:
    """`comes_home`: the home of all records in the phase `to` is A."""
    return [
        f"{before.value} -> {to.value}: {PHASES[to].effect}",
        f"rollback cost: {cost_note}; reads and writes of all other records continue meanwhile",
        *(["all traffic is held at A until `baton hold lift`"] if comes_home else []),
    ]


def of_canary(before_permille: int, permille: int) -> list[str]:
    where = "are handed to B" if permille >= before_permille else "return to A"
    shown = f"{plain(before_permille / 10)} % -> {plain(permille / 10)} %"
    return [f"canary {shown}: the buckets in between {where}, under traffic"]


def of_lift() -> list[str]:
    return ["the hold is lifted: traffic follows flags, canary and phase again"]


def of_flag(name: str, value: bool | None) -> list[str]:
    if value is None:
        return [f"{name} is unset: the flag provider decides, if there is one, else canary and phase"]
    to = "B" if value else "A"
    found = [f"{name} = {'true' if value else 'false'}: its calls go to {to}, at every router within a second"]
    if _GLOBAL in name:
        when = "at once" if value else f"after {LASTING_SECONDS:g} s"
        found.append(f"the records move to {to}, {when}, under traffic")
    else:
        found.append(f"a record that such a write touches is handed to {to}; other records do not move")
    return found


def of_backfill(to: str, per_second: float) -> list[str]:
    pace = f"at most {plain(per_second)} records/s" if per_second else "as fast as the live traffic allows"
    return [f"every record of {'B' if to == 'A' else 'A'} is copied to {to}, {pace}"]


def of_reconcile(*, repair: bool, deep: bool = False, corrupt: str = "") -> list[str]:
    return [
        "all records of A and B are compared" + (", each read and its digest recomputed" if deep else ""),
        "MISSING and STALE records are copied from their owner" if repair else "differences are listed, not repaired",
        *([f"{corrupt}, if it is CORRUPT, gets its owner's content at both stores"] if corrupt else []),
    ]


def of_audit(sample_percent: float, accept: str) -> list[str]:
    """`accept`: kinds of findings, separated by commas."""
    return [
        "A's data is copied to a snapshot beside it, checked, and the snapshot removed;"
        f" {plain(sample_percent)} % of its records are tried in a scratch store beside B",
        *([f"accepted kinds of findings: {accept}"] if accept else []),
    ]


def of_shadow(before_permille: int, permille: int, *, same: bool) -> list[str]:
    store = "the answering store itself" if same else "the other store"
    after = f"{plain(permille / 10)} %, compared with {store}" if permille else "off"
    return [
        f"shadow reads {plain(before_permille / 10)} % -> {after}; clients do not notice",
        "the counts are reset: gates use the comparisons made from now on",
    ]


def of_walk(plan: CanaryPlan, first: int, permille: int) -> list[str]:
    """`first`: index of the first step. `permille`: the canary now."""
    steps = plan.steps[first:]
    walk = " -> ".join(f"{plain(percent)} %" for percent in [permille / 10, *(step.percent for step in steps)])
    least = sum(step.minimum_seconds for step in steps)
    fails = "takes the canary to 0 % and ends the walk" if plan.on_fail is OnFail.BACK else "holds the walk"
    return [
        f"the canary walks {walk}, in {plain(least)} s at least, under traffic",
        f"a gate that fails {fails}; baton canary auto --stop ends it where it is",
    ]


def of_stop(permille: int) -> list[str]:
    return [f"the walk ends; the canary stays at {plain(permille / 10)} %"]


def of_rehearsal(buckets: int) -> list[str]:
    return [f"{buckets} buckets go to the other store and back; reads and writes go on meanwhile"]


JOB_EFFECTS = {
    "PAUSE": "pauses until it is resumed",
    "RESUME": "continues from the point where it stopped",
    "CANCEL": "ends for good; its finished work is not undone",
}
"""Effects of changes of a job, by action."""


def of_tuning(rate: float) -> str:
    return f"runs at most at {plain(rate)}/s" if rate else "runs as fast as live traffic allows"


def of_seizure(lost: str, owned_records: int | None, outbox_entries: int | None) -> list[str]:
    """`lost`: A or B. The numbers are the store's own, when it was last seen; None: it was never seen."""
    name, other = STORE_NAMES[lost], STORE_NAMES["B" if lost == "A" else "A"]
    stake = "their number is not known"
    if owned_records is not None:
        stake = f"when it was last seen it owned {owned_records} records, and {outbox_entries or 0} changes waited"
    return [
        f"{other} seizes every record and bucket that {name} owns: {stake}",
        f"writes of {name} that are not in the log are LOST; when {name} is back, `baton conflicts` lists them",
        f"{name} must stay stopped until this is done; after that only `baton recover {name}` lets it serve again",
    ]


def aside(before: Setting, after: Setting) -> list[str]:
    """Side effects of a change of phase: for example, shadow and canary become 0."""
    if before.phase is after.phase:
        return []
    return [f"also: {one}" for one in changes(before, after) if not one.startswith(("phase", "hold"))]
