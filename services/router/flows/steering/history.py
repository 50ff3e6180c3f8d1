"""The history of a migration, folded from its journal: phases, overrides, rollbacks and interventions.

Each change of the setting makes the next generation and one entry of the journal. So a history up to generation n
misses exactly the entries of the generations after n. Lists keep their newest entries and count all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from services.router.control.port import AUTOMATIC, JournalEntry
from services.router.core.gates import GateResult, Verdict
from services.router.core.setting_changes import changes

KEPT = 100

Fields = Mapping[str, Any]

_ROLLBACKS = frozenset({"rollback", AUTOMATIC})
_USUAL = frozenset({"start", "advance", *_ROLLBACKS, "canary", "shadow", "flag"})
_ROUTINE_PREFIXES = ("rehearsal ", "job ", "probe ")
"""Actions that the certificate shows elsewhere, or that change no data."""


@dataclass(frozen=True, slots=True)
class Kept:
    total: int = 0
    newest: tuple[Fields, ...] = ()
    """The newest entries, at most KEPT, the newest last."""

    def plus(self, entry: Fields) -> Kept:
        return Kept(self.total + 1, (*self.newest, entry)[-KEPT:])

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Kept:
        return cls(found["total"], tuple(found["newest"]))


@dataclass(frozen=True, slots=True)
class History:
    generation: int = 0
    """The last generation that the history includes."""
    phases: Kept = Kept()
    """Phases that were entered, with the gates of the step."""
    overrides: Kept = Kept()
    rollbacks: Kept = Kept()
    interventions: Kept = Kept()
    """Other changes by a person: limits, dropped events, resolved conflicts, repairs."""

    def plus(self, entries: Iterable[JournalEntry]) -> History:
        """`entries`: oldest first."""
        found = self
        for entry in entries:
            if entry.after.generation > found.generation:
                found = found._with(entry)
        return found

    def _with(self, entry: JournalEntry) -> History:
        found = replace(self, generation=entry.after.generation)
        shown = _shown(entry)
        if entry.before.phase is not entry.after.phase or entry.action == "start":
            gates = [_gate(result) for result in entry.gates]
            found = replace(found, phases=found.phases.plus({**shown, "gates": gates}))
        if entry.overridden:
            gates = [_gate(result) for result in entry.gates if result.verdict is not Verdict.PASS]
            found = replace(found, overrides=found.overrides.plus({**shown, "gates": gates}))
        if entry.action in _ROLLBACKS:
            found = replace(found, rollbacks=found.rollbacks.plus(shown))
        elif entry.action not in _USUAL and not entry.action.startswith(_ROUTINE_PREFIXES):
            what = "; ".join(changes(entry.before, entry.after))
            found = replace(found, interventions=found.interventions.plus({**shown, "changes": what}))
        return found

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> History:
        """An empty history if another release wrote it."""
        try:
            found = json.loads(text)
            lists = {name: Kept.of(found[name]) for name in ("phases", "overrides", "rollbacks", "interventions")}
            return cls(generation=found["generation"], **lists)
        except (ValueError, KeyError, TypeError):
            return cls()


def utc(seconds: float) -> str:
    """RFC 3339, in whole seconds."""
    return datetime.fromtimestamp(round(seconds), UTC).isoformat().replace("+00:00", "Z")


def _shown(entry: JournalEntry) -> dict[str, Any]:
    return {
        "generation": entry.after.generation,
        "time": utc(entry.time_seconds),
        "seconds": round(entry.time_seconds),
        "action": entry.action,
        "phase": entry.after.phase.value,
        "actor": entry.actor,
        "reason": entry.reason,
    }


def _gate(result: GateResult) -> dict[str, str]:
    return {
        "name": result.name,
        "verdict": result.verdict.value,
        "evidence": result.evidence,
        "threshold": result.threshold,
    }
