"""The certificate of a migration: what happened, what was found, and what is still open. Pure.

It is complete if A may be taken away: the gates of the last phase pass, but that of the backup, which is made after it.
In the last phase they passed when it was entered, and the journal has kept their evidence. The document is canonical
JSON (sorted keys, no spaces, UTF-8, whole numbers), so that equal certificates have equal digests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from libs.errors import BatonError
from services.router.core.gates import GATES, GateResult, Verdict
from services.router.core.gates.ending import BACKUP, COMPARISON
from services.router.core.phase import ORDER, PHASES, Setting
from services.router.core.write_ledger import LedgerCounts

KIND = "baton migration certificate 1"
LAST = ORDER[-1]
BEFORE_LAST = ORDER[-2].value
ENDING_GATES = tuple(name for name in PHASES[LAST].gates if name != BACKUP)
"""Gates that must pass before A is taken away."""

Fields = Mapping[str, Any]


class CertificateOpen(BatonError):
    """The certificate is not complete; nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "CERTIFICATE_OPEN"


class OpenItem(NamedTuple):
    """A condition that does not hold."""

    name: str
    verdict: Verdict
    """FAIL or INCONCLUSIVE."""
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a certificate shows. `history`, `deep`, `jobs` and `clients` are plain JSON values."""

    made: str
    router: str
    service: str
    """Full name of the contract."""
    setting: Setting
    results: Sequence[GateResult]
    """ENDING_GATES as of now; in the last phase those that let it be entered."""
    is_past: bool
    """The results are those of the journal."""
    history: Fields
    """phases, overrides, rollbacks, interventions: total and newest."""
    deep: Fields | None
    """The last comparison of all rows."""
    compared: Fields | None
    """The last scheduled comparison."""
    ledger: LedgerCounts | None
    """The totals of all routers since the start of the migration. None: they cannot be read."""
    ledger_permille: int
    jobs: Sequence[Fields]
    clients: Sequence[Fields]
    window_seconds: int
    """Time without a direct call that the last phase needs."""
    watched_seconds: int | None
    parked: int | None
    conflicts: int | None


def open_items(facts: Facts) -> list[OpenItem]:
    """Everything that keeps the certificate from being complete."""
    found = []
    phase = facts.setting.phase
    if ORDER.index(phase) < len(ORDER) - 2:
        remedy = "baton phase plan shows the next step"
        found.append(OpenItem("phase", Verdict.FAIL, f"the phase is {phase.value}, not yet {BEFORE_LAST}", remedy))
    if facts.setting.hold:
        found.append(OpenItem("hold", Verdict.FAIL, "all traffic is held at A since a rollback", "baton hold lift"))
    found += [
        OpenItem(result.name, result.verdict, result.evidence, GATES[result.name].runbook)
        for result in facts.results
        if _is_open(result, is_past=facts.is_past)
    ]
    if _is_before(facts.deep, facts.history) and COMPARISON not in [item.name for item in found]:
        text = f"all rows were compared before {BEFORE_LAST} was entered, and not since"
        found.append(OpenItem(COMPARISON, Verdict.INCONCLUSIVE, text, GATES[COMPARISON].runbook))
    if facts.ledger is None:
        text = "a router of another release keeps the totals of the ledger, the jobs and the clients"
        remedy = "run baton certificate at a router of that release, or wait until all have the same one"
        found.append(OpenItem("ledger-total", Verdict.INCONCLUSIVE, text, remedy))
    elif facts.ledger.lost or facts.ledger.doubled:
        text = f"of all acknowledged writes that were checked, {facts.ledger.lost} were lost"
        text = f"{text}, and {facts.ledger.doubled} were done twice"
        found.append(OpenItem("ledger-total", Verdict.FAIL, text, "baton ledger, and the routers' logs name them"))
    return found


def _is_before(deep: Fields | None, history: Fields) -> bool:
    """Whether the last comparison of all rows ended before B answered every call."""
    entered = [entry["seconds"] for entry in history["phases"]["newest"] if entry["phase"] == BEFORE_LAST]
    return deep is not None and bool(entered) and deep["ended_seconds"] < entered[-1]


def _is_open(result: GateResult, *, is_past: bool) -> bool:
    """An operator may decide on a gate without evidence, if an override can pass it; the phase needs that override. In
    the past, the journal has it, and the certificate lists it."""
    if result.verdict is Verdict.PASS:
        return False
    return not GATES[result.name].overridable or (result.verdict is Verdict.FAIL and not is_past)


def document(facts: Facts) -> bytes:
    """The certificate."""
    found = open_items(facts)
    value = {
        "kind": KIND,
        "made": facts.made,
        "router": facts.router,
        "service": facts.service,
        "complete": not found,
        "open": [{**item._asdict(), "verdict": item.verdict.value} for item in found],
        "phase": facts.setting.phase.value,
        "generation": facts.setting.generation,
        "history": facts.history,
        "gates": [_gate(result) for result in facts.results],
        "stores": _stores(facts.deep),
        "compared": facts.compared,
        "ledger": facts.ledger and {**facts.ledger._asdict(), "sampled_permille": facts.ledger_permille},
        "jobs": list(facts.jobs),
        "clients": {
            "window_seconds": facts.window_seconds,
            "watched_seconds": facts.watched_seconds,
            "old": list(facts.clients),
        },
        "parked": facts.parked,
        "conflicts": facts.conflicts,
    }
    return canonical(value)


def canonical(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _gate(result: GateResult) -> dict[str, str]:
    return {
        "name": result.name,
        "verdict": result.verdict.value,
        "evidence": result.evidence,
        "threshold": result.threshold,
    }


_DEEP = ("compared", "records", "different", "repaired", "left", "changing", "digests")


def _stores(deep: Fields | None) -> dict[str, Any] | None:
    return None if deep is None else {name: deep[name] for name in _DEEP}
