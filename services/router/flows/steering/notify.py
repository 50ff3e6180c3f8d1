"""Delivery of notices by webhook: one router, the holder of a lease, sends them, one after the other.

A notice that is not delivered is tried again, after a pause that doubles up to a minute; the ones after it wait in the
journal. So nothing is queued in memory, and the calls of clients never wait. If the receiver refuses the notice itself
(`_REFUSES`), it is asked REFUSALS times: then the notice is given up, since the ones after it may be well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from libs.clock import Clock
from libs.errors import BatonError
from libs.tasks import Loop
from services.router.control.port import ControlStore, JournalEntry, RememberedValues
from services.router.core.gates import GateResult
from services.router.core.jobs import Job
from services.router.core.phase import Setting
from services.router.flows.steering.notices import MOST_ENTRIES, Notice, Sent, State, due
from services.router.flows.steering.webhook import Webhook

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
LEASE_NAME, LEASE_SECONDS = "notices", 15.0
SENT = "notices"
"""Name of the remembered value."""
REFUSALS = 3
_REFUSES = frozenset({400, 413, 415, 422})
"""Answers about the notice itself. Others, such as 401 or 404, are about the address or the signature: an operator
corrects those, and no notice is lost meanwhile."""
GIVEN_UP_SECONDS = 3600.0
"""Time for which a notice that was given up is an alert."""


class Control(ControlStore, RememberedValues, Protocol):
    """The parts of the control store that notices need."""


class NotDelivered(BatonError):
    """A notice was not delivered; it is tried again."""

    code = "UNAVAILABLE"
    reason = "NOTICE_NOT_DELIVERED"


@dataclass(frozen=True, slots=True)
class Watched:
    """The subjects of notices, beside the setting."""

    jobs: Callable[[], Sequence[Job]]
    gates: Callable[[Setting], Sequence[GateResult]]
    """Gates of the next step."""
    conflicts: Callable[[], dict[str, int]]
    """Unresolved conflicts by store, where they are known."""
    known: Callable[[], bool] = lambda: True
    """Whether this router has read the jobs and the measurements since its start."""


class Notifications:
    """The caller runs `loop`."""

    def __init__(self, control: Control, watched: Watched, webhook: Webhook, clock: Clock, holder: str) -> None:
        """`holder`: this router's name."""
        self._control = control
        self._watched = watched
        self._webhook = webhook
        self._clock = clock
        self._holder = holder
        self._refused = ("", 0)
        """Id of a notice that the receiver refuses, and how often."""
        self._sent: Sent | None = None
        """State of the last look, at the router that sends notices."""
        self.loop = Loop(
            "notices",
            self._body,
            first_pause_seconds=FIRST_PAUSE_SECONDS,
            longest_pause_seconds=LONGEST_PAUSE_SECONDS,
        )

    @property
    def alerts(self) -> list[str]:
        sent = self._sent
        trouble = self.loop.trouble or ("" if sent is None else sent.trouble)
        found = [f"notices are not delivered: {trouble}"] if trouble else []
        if sent is not None and 0 <= self._clock.now() - sent.given_up_seconds < GIVEN_UP_SECONDS:
            found.append(f"{sent.given_up} notices were refused by the receiver, and given up")
        return found

    async def look(self) -> None:
        """Deliver notices that are due, if this router holds the lease. Raises NotDelivered, ControlUnavailable."""
        if not self._watched.known():
            return
        sends = await self._has_lease()
        self._sent = sent = Sent.from_json(await self._control.remembered(SENT) or "")
        if not sends:
            return
        setting = await self._control.load()
        if sent is None:
            # The first look ever: earlier changes are no news.
            await self._record(Sent.of(self._state(setting, ())))
            return
        entries = await self._control.journal(MOST_ENTRIES) if setting.generation != sent.generation else ()
        for notice, after in due(sent, self._state(setting, entries)):
            trouble = "" if notice is None else await self._deliver(notice)
            # If this router stood still meanwhile, another one has sent more, and its record is the newer one.
            if notice is not None and not await self._has_lease():
                return
            if trouble:
                await self._record(sent, trouble)
                raise NotDelivered(trouble)
            sent = after
            await self._record(sent)
        if self._sent is not None and self._sent.trouble:
            await self._record(sent)

    async def _record(self, sent: Sent, trouble: str = "") -> None:
        """Write the record with the trouble, and with the notices that were given up since it was read."""
        known = self._sent or sent
        self._sent = replace(sent, trouble=trouble, given_up=known.given_up, given_up_seconds=known.given_up_seconds)
        await self._control.remember(SENT, self._sent.to_json())

    async def _has_lease(self) -> bool:
        return await self._control.lease(LEASE_NAME, self._holder, LEASE_SECONDS)

    def _state(self, setting: Setting, entries: Sequence[JournalEntry]) -> State:
        watched = self._watched
        return State(setting, entries, watched.jobs(), watched.gates(setting), watched.conflicts(), self._clock.now())

    async def _deliver(self, notice: Notice) -> str:
        """Returns why the notice is not delivered and must be tried again; "" if it need not."""
        reply = await self._webhook.post(notice)
        if reply.trouble:
            return f"the receiver does not answer: {reply.trouble}"
        if 200 <= reply.status < 300:
            return ""
        if reply.status in _REFUSES:
            known, times = self._refused
            self._refused = notice.id, (times if known == notice.id else 0) + 1
            if self._refused[1] >= REFUSALS and self._sent is not None:
                given_up = self._sent.given_up + 1
                self._sent = replace(self._sent, given_up=given_up, given_up_seconds=self._clock.now())
                log.error("the receiver refuses the notice %s with %d, it is given up", notice.id, reply.status)
                return ""
        return f"the receiver answers {reply.status} to {notice.id}"

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)
