"""The recorded history of a run: one :class:`Call` per attempt of a client, kept in one JSON-lines file per client.

The intent is written before the call leaves and the answer after it came back, each line flushed to the operating
system. So a client that is killed loses at most the answer of a call whose intent is recorded. Such a call is UNKNOWN.
Times are monotonic seconds. On one Linux machine all processes share that clock, so files of several processes merge.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Version = tuple[int, int]
"""(term, revision), compared in that order."""

LEASES = frozenset({"acquire", "renew", "release"})
WRITES = frozenset({"create", "update", "delete", "undelete"}) | LEASES
READS = frozenset({"get", "list"})


class HistoryError(ValueError):
    """The recorded history cannot come from a correct recorder."""


class Outcome(StrEnum):
    """OK: answered. FAILED: certainly without effect, for the given reason. UNKNOWN: may or may not have had its
    effect."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Lease:
    """Lease data of a call. An acquire: holder, TTL, and the token that was granted. A renewal: the token, and a new
    TTL if there is one. All others: the token that must be held."""

    holder: str = ""
    ttl_seconds: float = 0.0
    token: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of one call.

    ``end``: None if no answer came back. ``value``: the unique string that a write wrote, or the value that a read
    returned (None: not found). ``revision``: revision of the last write in the answer, not the row's version, which
    handoffs change. A ``list`` call is about one record if ``key`` names it; otherwise the checks ignore it.
    """

    client: int
    number: int
    method: str
    key: str
    request_id: str | None
    start: float
    end: float | None
    outcome: Outcome
    reason: str = ""
    value: str | None = None
    revision: Version | None = None
    stale: bool = False
    label: str = ""
    lease: Lease | None = None

    @property
    def not_found(self) -> bool:
        """The answer shows that there was no live record."""
        if self.outcome is Outcome.FAILED:
            return self.reason.endswith("NOT_FOUND")
        return self.outcome is Outcome.OK and self.method in READS and self.value is None

    @property
    def already_exists(self) -> bool:
        """The answer shows that there was a live record."""
        return self.outcome is Outcome.FAILED and self.reason.endswith("ALREADY_EXISTS")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a call. ``value``: for reads only; a write's value belongs to its intent. ``token``: token of a
    granted lease."""

    outcome: Outcome
    reason: str = ""
    value: str | None = None
    revision: Version | None = None
    stale: bool = False
    token: str = ""


class HistoryWriter:
    """Appends one client's calls to a new file. Not for use from several threads.

    Raises FileExistsError if the file exists: every client of every run has a file of its own.
    """

    def __init__(self, path: Path, client: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._next_number = 0
        self.label = ""
        """Recorded with each call, such as the phase."""
        self._file = path.open("x", encoding="utf-8")

    def begin(
        self,
        method: str,
        key: str,
        *,
        request_id: str | None = None,
        value: str | None = None,
        lease: Lease | None = None,
    ) -> int:
        """Write the intent, before the request leaves. Returns the number for :meth:`finish`."""
        if method not in WRITES | READS:
            raise HistoryError(f"method={method!r}: must be one of {sorted(WRITES | READS)}")
        number = self._next_number
        self._next_number += 1
        intent = {"client": self._client, "number": number, "method": method, "key": key, "request_id": request_id}
        intent |= {"lease": asdict(lease) if lease else None, "label": self.label, "value": value}
        self._line(intent | {"start": self._clock()})
        return number

    def finish(self, number: int, answer: Answer) -> None:
        """Write the answer, as soon as it is known."""
        end = self._clock()
        line: dict[str, Any] = {"client": self._client, "number": number, "end": end, "outcome": answer.outcome.value}
        line |= {"reason": answer.reason, "seen": answer.value, "revision": answer.revision, "stale": answer.stale}
        line |= {"token": answer.token} if answer.token else {}
        self._line(line)

    def close(self) -> None:
        """Close the file. Calls without an answer stay UNKNOWN."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _line(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._file.flush()


def read_history(paths: Iterable[Path]) -> list[Call]:
    """Merge the clients' files into calls in the order of their starts.

    A last line without a newline was torn by a kill and is left out. Any other malformed line raises HistoryError with
    file and line: a history with holes proves nothing.
    """
    intents: dict[tuple[int, int], dict[str, Any]] = {}
    answers: dict[tuple[int, int], dict[str, Any]] = {}
    for path in paths:
        *lines, _torn = path.read_bytes().split(b"\n")
        for place, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                identity = (entry["client"], entry["number"])
            except (ValueError, KeyError, TypeError) as error:
                raise HistoryError(f"{path}:{place}: not a line of a history: {line[:80]!r}") from error
            into = intents if "start" in entry else answers
            if identity in into or (into is answers and identity not in intents):
                raise HistoryError(f"{path}:{place}: client, number={identity}: must have one intent, then one answer")
            into[identity] = entry
    calls = [_call(intent, answers.get(identity)) for identity, intent in intents.items()]
    return sorted(calls, key=lambda call: (call.start, call.client, call.number))


def _call(intent: dict[str, Any], answer: dict[str, Any] | None) -> Call:
    answer = answer or {}
    revision = answer.get("revision")
    return Call(
        client=intent["client"],
        number=intent["number"],
        method=intent["method"],
        key=intent["key"],
        request_id=intent["request_id"],
        start=intent["start"],
        end=answer.get("end"),
        outcome=Outcome(answer.get("outcome", Outcome.UNKNOWN)),
        reason=answer.get("reason", ""),
        value=answer.get("seen") if intent["method"] in READS else intent["value"],
        revision=(revision[0], revision[1]) if revision else None,
        stale=answer.get("stale", False),
        label=intent["label"],
        lease=_lease(intent["lease"], answer.get("token", "")),
    )


def _lease(intent: dict[str, Any] | None, granted: str) -> Lease | None:
    if intent is None:
        return None
    lease = Lease(**intent)
    return replace(lease, token=granted) if granted else lease
