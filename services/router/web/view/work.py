"""Jobs, parked events, conflicts, the ledger and old clients. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libs.pb.baton.control.v1 import conflicts_pb2, events_pb2
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.web.view.words import count, duration, enum_word, rate, stamp, store, version

ENDED = frozenset({pb.Job.STATE_FINISHED, pb.Job.STATE_CANCELLED})
_TONES = {"FAILED": "bad", "PAUSED": "warn", "RUNNING": "live", "QUEUED": "live", "FINISHED": "good"}


@dataclass(frozen=True, slots=True)
class JobView:
    id: str
    kind: str
    state: str
    tone: str
    done: str
    total: str
    unit: str
    share: float | None
    """Done of total, as a length of 100; None if the total is not known."""
    rate: str
    eta: str
    wanted_rate: str
    waits: str
    note: str
    actor: str
    reason: str
    started: str
    actions: Sequence[str]
    """Changes that are possible now: pause, resume, tune, cancel."""


@dataclass(frozen=True, slots=True)
class ParkedView:
    store: str
    partition: int
    offset: int
    key: str
    reason: str
    unauthenticated: bool


@dataclass(frozen=True, slots=True)
class ConflictView:
    store: str
    key: str
    version: str
    term: int
    revision: int
    why: str
    resolution: str


@dataclass(frozen=True, slots=True)
class ClientView:
    name: str
    at: str
    schema_version: str
    calls: str
    idle: str


@dataclass(frozen=True, slots=True)
class Ledger:
    lost: str
    checked: str
    waiting: str
    dropped: str
    """Never checked, for lack of room or time; "" if there are none."""
    tone: str


def jobs(found: Sequence[pb.Job]) -> list[JobView]:
    """Jobs under way come first."""
    return [job(one) for one in sorted(found, key=lambda one: one.state in ENDED)]


def job(found: pb.Job) -> JobView:
    state = enum_word(pb.Job.State.Name(found.state), "STATE_")
    runs = state == "RUNNING"
    total = found.total if found.HasField("total") else None
    return JobView(
        id=found.id,
        kind=found.kind,
        state=state.lower(),
        tone=_TONES.get(state, ""),
        done=count(found.done),
        total=count(total) if total is not None else "",
        unit=found.unit,
        share=min(100.0, 100 * found.done / total) if total else None,
        rate=rate(found.rate) if runs else "",
        eta=duration(found.eta_seconds) if runs and found.HasField("eta_seconds") else "",
        wanted_rate=rate(found.wanted_rate) if found.HasField("wanted_rate") else "",
        waits=found.waits,
        note=found.note,
        actor=found.actor,
        reason=found.reason,
        started=stamp(found.create_time) if found.HasField("create_time") else "",
        actions=_actions(state),
    )


def _actions(state: str) -> list[str]:
    if state in ("RUNNING", "QUEUED"):
        return ["pause", "tune", "cancel"]
    return ["resume", "cancel"] if state in ("PAUSED", "FAILED") else []


def parked(found: Sequence[events_pb2.ParkedEvent]) -> list[ParkedView]:
    return [
        ParkedView(store(one.store), one.partition, one.offset, one.key, one.reason, one.unauthenticated)
        for one in found
    ]


def conflicts(found: Sequence[conflicts_pb2.Conflict]) -> list[ConflictView]:
    return [
        ConflictView(
            store(one.store),
            one.key,
            version(one.version),
            one.version.term,
            one.version.revision,
            one.why,
            one.resolution,
        )
        for one in found
    ]


def ledger(counts: pb.LedgerCounts) -> Ledger:
    return Ledger(
        count(counts.lost),
        count(counts.checked),
        count(counts.waiting),
        count(counts.dropped) if counts.dropped else "",
        "bad" if counts.lost else "good" if counts.checked else "",
    )


def clients(found: Sequence[pb.ClientStatus]) -> list[ClientView]:
    """The most recent callers first."""
    ordered = sorted(found, key=lambda one: one.client.idle_seconds)
    return [
        ClientView(
            one.client.name,
            f"store {store(one.store)}" if one.store else "router",
            str(one.client.schema_version or ""),
            count(one.client.calls),
            duration(one.client.idle_seconds),
        )
        for one in ordered
    ]
