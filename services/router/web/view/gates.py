"""The gates of the next step, the cost of a rollback, and the switches. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.core.flags import WORD
from services.router.web.view.words import NOT_KNOWN, count, duration

_VERDICTS = {
    pb.VERDICT_PASS: ("pass", "good"),
    pb.VERDICT_FAIL: ("fail", "bad"),
    pb.VERDICT_INCONCLUSIVE: ("no evidence yet", "warn"),
}


@dataclass(frozen=True, slots=True)
class GateView:
    name: str
    verdict: str
    tone: str
    sentence: str
    evidence: str
    threshold: str
    samples: str
    """Number and time to go; "" if there are enough."""
    remedy: str
    """The remedy, in words; "" if the gate passes."""
    page: str
    """The runbook; "" if the gate passes or has none."""


@dataclass(frozen=True, slots=True)
class Cost:
    records: str
    time: str
    writes_lost: str
    note: str


@dataclass(frozen=True, slots=True)
class Switch:
    name: str
    label: str
    value: str
    """A, B or unset."""
    source: str
    trouble: str


def gates(found: Sequence[pb.Gate]) -> list[GateView]:
    """Return the gates; those that do not pass come first."""
    views = [_gate(one) for one in found]
    return sorted(views, key=lambda one: ("bad", "warn", "good").index(one.tone))


def _gate(gate: pb.Gate) -> GateView:
    verdict, tone = _VERDICTS.get(gate.verdict, ("not known", "warn"))
    return GateView(
        gate.name,
        verdict,
        tone,
        gate.sentence,
        gate.evidence,
        gate.threshold,
        _samples(gate),
        "" if tone == "good" else gate.runbook,
        "" if tone == "good" else gate.runbook_page,
    )


def _samples(gate: pb.Gate) -> str:
    if gate.samples >= gate.least_samples:
        return ""
    seen = f"{count(gate.samples)} of {count(gate.least_samples)} samples"
    if not gate.HasField("seconds_left"):
        return f"{seen}, never enough at this rate"
    return f"{seen}, about {duration(gate.seconds_left)} to go"


def cost(found: pb.RollbackCost) -> Cost:
    return Cost(
        count(found.records) if found.HasField("records") else NOT_KNOWN,
        duration(found.seconds) if found.HasField("seconds") else NOT_KNOWN,
        count(found.writes_lost) if found.possible else NOT_KNOWN,
        found.note,
    )


def switches(flags: Sequence[pb.Flag]) -> list[Switch]:
    return [_switch(flag) for flag in flags]


def _switch(flag: pb.Flag) -> Switch:
    name = flag.name.rpartition(".")[2]
    value = ("B" if flag.value else "A") if flag.HasField("value") else "unset"
    label = "all operations" if name == WORD else name.removesuffix(f"_{WORD}").replace("_", " ")
    return Switch(flag.name, label, value, flag.source, flag.trouble)
