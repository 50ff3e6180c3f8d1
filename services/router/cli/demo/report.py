"""The report of a demo, as JSON and as text, and its exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from libs.proving.trial.load import Load
from libs.proving.trial.stats import Stats
from libs.proving.trial.verdict import Result
from libs.proving.trial.walk import Move
from services.router.cli.certificate_page import page
from services.router.cli.demo.screen import table_of_rows
from services.router.cli.demo.script import Kill, Rollback

ZERO = {
    "lost": "acknowledged writes lost",
    "duplicated": "requests done twice",
    "stale_strict_reads": "strict reads without an acknowledged write",
    "diverged": "records that differ between the stores",
    "misowned": "records without exactly one owner",
    "unjudged": "answers that lack the fields for a check",
    "not_linearizable": "records whose history is not linearizable",
    "old_records_lost": "records of the old database lost",
    "old_records_changed": "records of the old database changed by the move",
    "buckets_misowned": "buckets without exactly one owner",
}
"""The counts that must be 0, in words."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a run, besides the verdict. ``failure``: why the demo did not finish; "" if it did."""

    stack: str
    clients: int
    seconds: float
    moves: Sequence[Move] = ()
    kills: Sequence[Kill] = ()
    rollbacks: Sequence[Rollback] = ()
    """Automatic rollbacks."""
    overrides: Sequence[str] = ()
    """Reasons of overrides in the journal."""
    blocked: str = ""
    handoffs: int = 0
    strangers: int | None = None
    """Calls of strangers, each of which was refused; None in a demo that is not secure."""
    certificate: dict[str, Any] | None = None
    """The certificate with its seal."""
    failure: str = ""
    evidence: str = ""
    """The directory of histories, exports and logs; "" if it was removed."""


@dataclass(slots=True)
class DemoReport:
    """A complete report. No result means that the evidence could not be gathered: the demo proves nothing."""

    facts: Facts
    load: Load | None
    result: Result | None
    _stats: Stats = field(init=False)

    def __post_init__(self) -> None:
        self._stats = self.load.stats if self.load is not None else Stats()

    @property
    def ok(self) -> bool:
        return not self.facts.failure and self.result is not None and self.result.ok

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1

    @property
    def verdict(self) -> str:
        if self.ok:
            return "nothing was lost"
        wrong = [f"{count} {ZERO[name]}" for name, count in self._counts().items() if count]
        if self.result is not None and not wrong:
            wrong = self.result.problems
        return f"FAILED: {'; '.join([*filter(None, [self.facts.failure]), *wrong])}"

    def as_dict(self) -> dict[str, Any]:
        facts, stats = self.facts, self._stats
        return {
            "verdict": self.verdict,
            "ok": self.ok,
            "stack": facts.stack,
            "secure": facts.strangers is not None,
            "clients": facts.clients,
            "seconds": round(facts.seconds, 1),
            "requests": stats.requests,
            "calls": stats.attempts,
            "calls_per_second": round(self.load.calls_per_second, 1) if self.load is not None else 0.0,
            **(
                self.result.as_dict() if self.result is not None else {"acknowledged_writes": stats.acknowledged_writes}
            ),
            "switches": [self._switch(move) for move in facts.moves],
            "slowest_request_ms": round(max((done.milliseconds for done in stats.finished), default=0.0), 1),
            "p50_ms": round(stats.percentile(0.5), 1),
            "p99_ms": round(stats.percentile(0.99), 1),
            "stale_reads_marked": stats.stale_reads,
            "unknown_outcomes": stats.unknown_outcomes,
            "errors": dict(stats.errors),
            "refused": dict(stats.refused),
            "handoffs": facts.handoffs,
            **({} if facts.strangers is None else {"strangers_refused": facts.strangers}),
            "kills": [
                {"process": kill.process, "signal": "SIGKILL", "seconds": round(kill.seconds, 1)}
                for kill in facts.kills
            ],
            "automatic_rollbacks": [
                {
                    "fault": back.fault,
                    "reason": back.reason,
                    "held_seconds": round(back.held_seconds, 1),
                    "reads_seconds": round(back.reads_seconds, 1),
                    "home_seconds": round(back.home_seconds, 1),
                }
                for back in facts.rollbacks
            ],
            "gates_blocked": facts.blocked,
            "overrides": list(facts.overrides),
            "certificate": facts.certificate,
            "evidence": facts.evidence,
        }

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def write_certificate(self, path: Path) -> None:
        """Write the certificate as a page, if there is one."""
        if self.facts.certificate is not None:
            path.write_text(page(self.facts.certificate), encoding="utf-8")

    def show(self, console: Console, path: Path) -> None:
        """Print the report as text. A count that is absent was not checked."""
        found = self.as_dict()
        console.print(Text("\nSwitches", style="bold"))
        columns = ("from", "to", "seconds", "records", "slowest request", "failed calls")
        console.print(table_of_rows(columns, [_row(switch) for switch in found["switches"]]))
        console.print(Text("\nFound in the clients' own records, the log and both stores' exports", style="bold"))
        counts = self._counts()
        rows = [(words, str(counts[name]) if name in counts else "not judged") for name, words in ZERO.items()]
        console.print(table_of_rows(("must be 0", "found"), rows))
        console.print("\n" + _figures(found))
        console.print(f"report: {path}" + (f", evidence: {self.facts.evidence}" if self.facts.evidence else ""))
        for problem in found.get("offenders", []):
            console.print(f"  {problem}")
        console.print(Text(self.verdict, style="bold green" if self.ok else "bold red"))

    def _counts(self) -> dict[str, int]:
        return {} if self.result is None else {name: tally.count for name, tally in self.result.tallies.items()}

    def _switch(self, move: Move) -> dict[str, Any]:
        window = self._stats.window(move.started, move.ended)
        return {
            "from": move.before,
            "to": move.after,
            "seconds": round(move.seconds, 2),
            "records": move.records,
            "slowest_request_ms": round(window.slowest_milliseconds, 1),
            "errors": window.errors,
        }


def _figures(found: dict[str, Any]) -> str:
    parts = (
        f"{found['requests']} requests of {found['clients']} clients, {found['calls_per_second']:g} calls/s",
        f"{found['acknowledged_writes']} acknowledged writes",
        f"p50 {found['p50_ms']:g} ms, p99 {found['p99_ms']:g} ms",
        f"{found['stale_reads_marked']} reads marked stale",
        f"{found['unknown_outcomes']} writes of unknown outcome",
        f"{found['handoffs']} handoffs, {len(found['kills'])} kill",
        f"{len(found['overrides'])} overrides in the journal",
        *([f"{found['strangers_refused']} calls of strangers refused"] if found["secure"] else []),
        *(
            f"rolled back by itself {back['held_seconds']} s after {back['fault']}, reads right after"
            f" {back['reads_seconds']} s, all records home {back['home_seconds']} s after it was over"
            for back in found["automatic_rollbacks"]
        ),
    )
    return "; ".join(parts)


def _row(switch: dict[str, Any]) -> tuple[str, ...]:
    slowest = f"{switch['slowest_request_ms']:.0f} ms"
    return (
        switch["from"],
        switch["to"],
        f"{switch['seconds']:.2f}",
        str(switch["records"]),
        slowest,
        str(switch["errors"]),
    )
