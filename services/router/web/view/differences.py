"""Differences between the stores: compared reads by field, and the last comparison of all records. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.web.view.words import count, duration, enum_word, percent, share, stamp, store, version

MOST_ROWS = 20
_REPAIRED = ("MISSING", "STALE")
"""Kinds that a reconcile job repairs."""


@dataclass(frozen=True, slots=True)
class DifferenceView:
    time: str
    operation: str
    key: str
    kind: str
    fields: Sequence[str]
    sides: Sequence[str]
    waited: str
    id: str = ""
    """Id of the example with request and answers; "" if there is none."""
    router: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """A difference with its evidence. Secrets are hidden by the API."""

    difference: DifferenceView
    values: Sequence[tuple[str, str, str]]
    """Path, and the value on both sides."""
    texts: Sequence[tuple[str, str]]
    """Title and JSON of the request and of both answers."""


@dataclass(frozen=True, slots=True)
class Compared:
    wanted: str
    """Percent of the reads that are compared."""
    with_itself: bool
    """The comparison is with a second answer of the same store: the noise floor."""
    counts: Sequence[tuple[str, str, str]]
    """Label, number, share."""
    by_field: Sequence[tuple[str, str]]
    rows: Sequence[DifferenceView]
    noise: str
    """The noise floor: numbers and share; "" if it was not measured."""


@dataclass(frozen=True, slots=True)
class Repair:
    """The last comparison of all records, or the one that runs."""

    job: str
    state: str
    records: str
    different: str
    repaired: str
    left: str
    kinds: Sequence[tuple[str, str, bool]] = ()
    """Kind, number, whether a repair covers it."""
    rows: Sequence[tuple[str, str, str, str, bool]] = field(default=())
    """Kind, key, version at A, version at B, repaired."""


def compared(found: pb.GetShadowResponse, examples: Sequence[pb.DifferenceExample] = ()) -> Compared:
    """`found`: counts and latest differences of this router. `examples`: of all routers, instead of the latter."""
    total = found.total
    labels = ("match", "allowed", "stale", "mismatch", "missing", "error", "dropped")
    numbers = [(label, getattr(total, label)) for label in labels]
    fields = Counter(name for one in found.differences for name in one.fields)
    return Compared(
        percent(found.setting.shadow_permille),
        found.setting.shadow_same,
        [(label, count(number), share(number, total.compared)) for label, number in numbers],
        [(name, count(number)) for name, number in fields.most_common()],
        [_example(one) for one in examples[:MOST_ROWS]] or [_difference(one) for one in found.differences[:MOST_ROWS]],
        _noise(found.noise_different, found.noise_compared),
    )


def _noise(different: int, compared: int) -> str:
    return f"{count(different)} of {count(compared)} reads, {share(different, compared)}" if compared else ""


def _difference(found: pb.ShadowDifference) -> DifferenceView:
    return DifferenceView(
        stamp(found.time),
        found.operation,
        found.key,
        enum_word(pb.ShadowDifference.Kind.Name(found.kind), "KIND_").lower(),
        list(found.fields),
        [_side(found.one), _side(found.other)],
        duration(found.waited_seconds),
    )


def _example(found: pb.DifferenceExample) -> DifferenceView:
    return replace(_difference(found.difference), id=found.id, router=found.router)


def example(found: pb.DifferenceExample) -> Example:
    texts = [
        ("Request", found.request),
        (f"Answer of {store(found.difference.one.store)}", found.one),
        (f"Answer of {store(found.difference.other.store)}", found.other),
    ]
    return Example(
        _example(found),
        [(one.path, one.one, one.other) for one in found.values],
        [(title, text) for title, text in texts if text],
    )


def _side(side: pb.ShadowDifference.Side) -> str:
    shown = version(side.version) if side.HasField("version") else "no row"
    return f"{store(side.store)} {shown} {side.content[:12]}"


def repair(job: pb.Job) -> Repair:
    """Return the repair of a job "reconcile" with its report."""
    state = enum_word(pb.Job.State.Name(job.state), "STATE_").lower()
    report: Mapping[str, Any] = json.loads(job.report) if job.report else {}
    found: Mapping[str, int] = report.get("found", {})
    return Repair(
        job.id,
        state,
        count(report.get("records")),
        count(report.get("different")),
        count(report.get("repaired")),
        count(report.get("left")),
        [(kind, count(number), kind in _REPAIRED) for kind, number in found.items() if number],
        [_row(one) for one in report.get("differences", ())[:MOST_ROWS]],
    )


def _row(one: Mapping[str, Any]) -> tuple[str, str, str, str, bool]:
    return one["kind"], one["key"], _at(one["A"]), _at(one["B"]), bool(one["repaired"])


def _at(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "no row"
    return f"{row['version']} of {row['owner'] or 'no store'}"
