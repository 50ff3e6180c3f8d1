"""One client of a load: one call at a time, recorded before it leaves and after it came back.

A write of unknown outcome is put aside and retried with the same request id, while the client makes other calls. So an
unavailable store does not stop its clients.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2 import ListSandboxesResponse
from libs.proving.history.history import Answer, HistoryWriter, Outcome
from libs.proving.history.leases import LEASE_HELD, LEASE_LOST
from libs.proving.trial.doors import Way
from libs.proving.trial.requests import Mix, Names, Request, revision_of, value_of
from libs.proving.trial.stats import Finished, Stats
from libs.rpc import metadata
from libs.rpc.errors import reason_of

ASKS = grpc.aio.Metadata((metadata.EXPLAIN, "1"))
"""Metadata of reads: ask for the record's version, which also comes with a not-found error."""
MOST_PUT_ASIDE = 8
"""A client with this many writes of unknown outcome makes only reads besides their retries."""
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.5

_Code = grpc.StatusCode
DEFINITE = frozenset({_Code.NOT_FOUND, _Code.ALREADY_EXISTS, _Code.INVALID_ARGUMENT, _Code.FAILED_PRECONDITION})
"""The owner has checked the record and refused: this write has had no effect and will have none."""
DEFINITE_REASONS = frozenset({"ETAG_MISMATCH", "LOCKS_UNAVAILABLE"})
"""Reasons with other codes. Not LOCK_TIMEOUT or OVERLOADED: the router may have tried the other store before, without
success."""
EXPECTED = frozenset({"SANDBOX_NOT_FOUND", "SANDBOX_ALREADY_EXISTS", "ETAG_MISMATCH", LEASE_HELD, LEASE_LOST})
"""Refusals that this load provokes. Any other one is an error."""


@dataclass(frozen=True, slots=True)
class Manner:
    """Timing of every client of a load."""

    deadline_seconds: float = 1.0
    interval_seconds: float = 0.0
    """Minimum time from the start of a call to that of the next one."""
    retry_seconds: float = 30.0
    """Time after which a write of unknown outcome is given up."""


@dataclass(slots=True)
class _Pending:
    request: Request
    started: float
    attempts: int = 0
    due: float = 0.0


@dataclass(slots=True)
class Client:
    """`run` until `ending` is set: then the client finishes the writes that were put aside, and begins no others."""

    channels: Sequence[Way]
    """Channels to the routers. If one does not answer, the next one is used."""
    mix: Mix
    names: Names
    manner: Manner
    stats: Stats
    history: HistoryWriter
    ending: asyncio.Event
    _aside: list[_Pending] = field(default_factory=list)
    _channel: int = 0

    async def run(self) -> None:
        # Random start: otherwise clients of one rate would move in step.
        next_start = time.monotonic() + random.random() * self.manner.interval_seconds
        while not self.ending.is_set() or self._aside:
            await self._pause(next_start)
            now = time.monotonic()
            next_start = max(next_start + self.manner.interval_seconds, now - self.manner.interval_seconds)
            pending = self._choose(now)
            if pending is not None:
                await self._attempt(pending)
            elif self._aside:
                next_start = min(waiting.due for waiting in self._aside)

    async def _pause(self, until: float) -> None:
        left = until - time.monotonic()
        await asyncio.sleep(max(left, 0.0))

    def _choose(self, now: float) -> _Pending | None:
        """A request that was put aside and is due, else a new one; None if the client must wait."""
        for place, pending in enumerate(self._aside):
            if pending.due <= now:
                return self._aside.pop(place)
        if self.ending.is_set():
            return None
        return _Pending(self.mix.next_read() if len(self._aside) >= MOST_PUT_ASIDE else self.mix.next(), now)

    async def _attempt(self, pending: _Pending) -> None:
        request = pending.request
        pending.attempts += 1
        self.stats.attempts += 1
        keys = request.names if request.method == "list" else (request.key,)
        numbers = {
            key: self.history.begin(
                request.method, key, request_id=request.request_id, value=request.value, lease=request.lease
            )
            for key in keys
        }
        channel = self.channels[self._channel]
        call = channel.multi_callable(request.path)(
            request.message, timeout=self.manner.deadline_seconds, metadata=ASKS if request.is_read else None
        )
        try:
            data = await call
            trailers = dict(await call.trailing_metadata() or ())
        except grpc.aio.AioRpcError as error:
            answers = dict.fromkeys(keys, self._refused(request, error))
        else:
            answers = self._answered(request, data, trailers)
        for key, answer in answers.items():
            self.history.finish(numbers[key], answer)
        self._settle(pending, next(iter(answers.values()), Answer(Outcome.OK)))

    def _refused(self, request: Request, error: grpc.aio.AioRpcError) -> Answer:
        code = error.code()
        reason = reason_of(error)[0] or code.name
        if code in DEFINITE or reason in DEFINITE_REASONS:
            stale = dict(error.trailing_metadata() or ()).get(metadata.STALE) == "1"
            answer = Answer(Outcome.FAILED, reason, revision=_version_of(error), stale=stale)
            not_found = reason.endswith("NOT_FOUND") and not stale
            self.names.learn(request.method, request.key, done=False, not_found=not_found)
            if reason == LEASE_LOST:
                self.mix.tokens.pop(request.key, None)
        else:
            answer = Answer(Outcome.UNKNOWN, reason)
            self._channel = (self._channel + 1) % len(self.channels)
        if answer.outcome is Outcome.FAILED and reason in EXPECTED:
            self.stats.refused[reason] += 1
        else:
            self.stats.error(reason, time.monotonic())
        return answer

    def _answered(self, request: Request, data: bytes, trailers: dict[str, str | bytes]) -> dict[str, Answer]:
        stale = trailers.get(metadata.STALE) == "1"
        self.stats.stale_reads += stale
        if request.method == "list":
            return _listed(request, ListSandboxesResponse.FromString(data), stale)
        sandbox = Sandbox.FromString(data)
        revision = revision_of(sandbox)
        if request.is_read:
            answer = Answer(Outcome.OK, value=value_of(sandbox), revision=revision, stale=stale)
        else:
            # A late retry gets the current record, with the version that its own request made.
            made = str(trailers.get(metadata.VERSION, "")) or sandbox.etag
            granted = sandbox.lease.token if request.method == "acquire" else ""
            answer = Answer(Outcome.OK, revision=revision_of(Sandbox(etag=made)), token=granted)
        if not stale:
            self.names.learn(request.method, request.key, done=True, not_found=False)
            self.mix.hold(request, sandbox)
            self.mix.etags[request.key] = sandbox.etag
        return {request.key: answer}

    def _settle(self, pending: _Pending, answer: Answer) -> None:
        request = pending.request
        now = time.monotonic()
        if answer.outcome is Outcome.UNKNOWN and not request.is_read:
            if now - pending.started < self.manner.retry_seconds:
                pause = min(FIRST_PAUSE_SECONDS * 2 ** (pending.attempts - 1), LONGEST_PAUSE_SECONDS)
                pending.due = now + pause
                self._aside.append(pending)
                return
            self.stats.unknown_outcomes += 1
        elif answer.outcome is Outcome.OK:
            if request.is_read:
                self.stats.answered_reads += 1
            else:
                self.stats.acknowledged_writes += 1
        self.stats.add(Finished(pending.started, now, request.method, answer.outcome, pending.attempts))


def _version_of(error: grpc.aio.AioRpcError) -> tuple[int, int] | None:
    """Version of the record in a refusal; None if there never was one."""
    found = revision_of(Sandbox(etag=str(dict(error.trailing_metadata() or ()).get(metadata.VERSION, ""))))
    return found if found and found[1] else None


def _listed(request: Request, page: ListSandboxesResponse, stale: bool) -> dict[str, Answer]:
    """The page's answer about each requested name. It has no information about names after its last one."""
    found = {sandbox.name: sandbox for sandbox in page.sandboxes}
    last = max(found, default="") if page.next_page_token else None
    answers = {}
    for name in request.names:
        sandbox = found.get(name)
        if sandbox is not None:
            seen = Answer(Outcome.OK, value=value_of(sandbox), revision=revision_of(sandbox), stale=stale)
        elif last is None or name <= last:
            seen = Answer(Outcome.OK, stale=stale)
        else:
            seen = Answer(Outcome.UNKNOWN, "BEYOND_THE_PAGE")
        answers[name] = seen
    return answers
