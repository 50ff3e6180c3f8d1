"""Makes recorded calls and whole random histories for the tests of the checkers."""

from __future__ import annotations

import itertools
import random

from libs.proving.history.history import Call, Outcome, Version
from libs.proving.history.operations import Status

KEY = "sandboxes/one"
OK, FAILED, UNKNOWN = Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN
_numbers = itertools.count()


def call(
    method: str,
    start: float,
    end: float | None,
    value: str | None = None,
    revision: int | None = None,
    *,
    request: str | None = None,
    reason: str = "",
    outcome: Outcome | None = None,
    stale: bool = False,
) -> Call:
    number = next(_numbers)
    if outcome is None:
        outcome = FAILED if reason else UNKNOWN if end is None else OK
    version = None if revision is None else (0, revision)
    return Call(1, number, method, KEY, request, start, end, outcome, reason, value, version, stale)


def execution(seed: int, length: int, concurrency: int, *, revisions: bool) -> list[Call]:
    """A sequential execution of random operations at the times 1, 2, 3…, each seen as an interval around its time."""
    chance = random.Random(seed)
    status, value, revision = Status.ABSENT, None, 0
    calls: list[Call] = []
    for at in range(1, length + 1):
        start, end = at - chance.uniform(0, concurrency), at + chance.uniform(0, concurrency)
        method = chance.choice(["get", "get", "get", "update", "update", "update", "create", "delete", "undelete"])
        version: Version | None = None
        wrote = f"v{at}" if method in {"create", "update"} else None
        reason = ""
        if method == "get":
            wrote = value if status is Status.LIVE else None
            version = (0, revision) if wrote else None
        elif status is Status.LIVE and method in {"create", "undelete"}:
            reason = "SANDBOX_ALREADY_EXISTS"
        elif (status is not Status.LIVE and method in {"update", "delete"}) or (
            status is Status.ABSENT and method == "undelete"
        ):
            reason = "SANDBOX_NOT_FOUND"
        lost = method != "get" and chance.random() < 0.1
        if not reason and method != "get" and (not lost or chance.random() < 0.5):
            status = Status.DELETED if method == "delete" else Status.LIVE
            value = wrote or value
            revision += chance.randint(1, 3)
            version = (0, revision)
        outcome = UNKNOWN if lost else FAILED if reason else OK
        version = version if revisions and outcome is OK else None
        calls.append(
            Call(at % 16, at, method, KEY, f"r{at}", start, end, outcome, "" if lost else reason, wrote, version)
        )
    return calls
