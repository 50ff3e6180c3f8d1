"""The live page: one stream of server-sent events, with each section whose HTML has changed.

An event "section" has the section's id and HTML; "tick" comes with each status, changed or not, so that a browser
notices a stream that has stopped; "ended" has the reason for which the stream ends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from libs.clock import Clock
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.web.calls import Caller, CallFailed
from services.router.web.reading import read
from services.router.web.render import sections
from services.router.web.view.page import OF_STATUS, SECTIONS, Answers, context

STATUS_SECONDS = 1.0
READ_SECONDS = 3.0
"""Pause between two rounds of the other calls."""
RETRY_MILLISECONDS = 1000


def event(name: str, value: Any) -> bytes:
    # JSON has no line breaks of its own, which would end the field.
    return f"event: {name}\ndata: {json.dumps(value)}\n\n".encode()


async def follow(
    caller: Caller, own: Mapping[str, Any], clock: Clock, draining: Callable[[], bool], until: float
) -> AsyncIterator[bytes]:
    """`own`: the context of this operator. `until`: end of the session, in UNIX seconds."""
    yield b"retry: %d\n\n" % RETRY_MILLISECONDS
    latest, answers = _Latest(), _Answers(caller)
    request = pb.WatchStatusRequest(interval_seconds=STATUS_SECONDS)
    watch = asyncio.create_task(caller.stream("WatchStatus", request, latest.take))
    watch.add_done_callback(latest.end)
    reading = asyncio.create_task(answers.keep())
    reading.add_done_callback(latest.end)
    try:
        shown: dict[str, str] = {}
        while (status := await latest.next()) is not None and not draining():
            if clock.now() >= until:
                yield event("ended", {"text": "the session is over", "signed_out": True})
                return
            names = OF_STATUS if answers.latest is None else SECTIONS
            values = {**own, **context(status, answers.latest or Answers(), clock.now())}
            for name, html in sections(values, names).items():
                if shown.get(name) != html:
                    shown[name] = html
                    yield event("section", {"id": name, "html": html})
            yield event("tick", {"generation": status.setting.generation})
        if (error := _failure(watch) or _failure(reading)) is not None:
            yield event("ended", {"text": error.message, "signed_out": error.signed_out})
    finally:
        for task in (watch, reading):
            task.cancel()
        await asyncio.gather(watch, reading, return_exceptions=True)


class _Answers:
    """The latest answers of the other calls. A store that does not answer delays them, and never the status."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.latest: Answers | None = None

    async def keep(self) -> None:
        while True:
            self.latest = await read(self._caller, self.latest)
            await asyncio.sleep(READ_SECONDS)


class _Latest:
    """The newest status of the stream. Older ones that were not taken are dropped."""

    def __init__(self) -> None:
        self._status: pb.GetStatusResponse | None = None
        self._changed = asyncio.Event()
        self._ended = False

    async def take(self, answer: pb.WatchStatusResponse) -> None:
        self._status = answer.status
        self._changed.set()

    def end(self, _: asyncio.Task[None]) -> None:
        self._ended = True
        self._changed.set()

    async def next(self) -> pb.GetStatusResponse | None:
        """None when the stream has ended."""
        await self._changed.wait()
        if self._ended:
            return None
        self._changed.clear()
        return self._status


def _failure(task: asyncio.Task[None]) -> CallFailed | None:
    """Raises the error if it is a defect."""
    error = task.exception() if task.done() and not task.cancelled() else None
    if error is not None and not isinstance(error, CallFailed):
        raise error
    return error
