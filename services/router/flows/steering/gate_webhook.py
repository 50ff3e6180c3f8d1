"""The gate `webhook`: an endpoint of somebody else allows or refuses the next phase.

Each router asks for itself: when the setting changes, every INTERVAL_SECONDS, and anew before it enters a phase. So the
verdict of a step is never older than its attempt. The latest answer is kept, for the setting that it was asked about.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Protocol
from uuid import uuid4

from libs.clock import Clock
from libs.tasks import Loop
from services.router.core import phase as phases
from services.router.core.evidence import Decided, Evidence
from services.router.core.gates.webhook import MOST_BYTES, NOT_ASKED, WEBHOOK, read_decision
from services.router.core.phase import IllegalMove, Phase, Setting
from services.router.flows.steering.notices import Notice
from services.router.flows.steering.webhook import Reply, Webhook

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 5.0
ASKED = "baton.gate.asked"
"""Type of the event."""


class Steering(Protocol):
    @property
    def current(self) -> Setting: ...

    async def changed(self, since: Setting, timeout_seconds: float) -> Setting: ...


class GateWebhook:
    """The caller runs `loop`."""

    def __init__(self, webhook: Webhook, entering: Collection[Phase], steering: Steering, clock: Clock) -> None:
        """`entering`: the phases that the endpoint decides about."""
        self._webhook = webhook
        self._entering = entering
        self._steering = steering
        self._clock = clock
        self._asked = 0
        self._latest = 0
        """Number of the attempt that gave the answer."""
        self._answer: tuple[tuple[int, Phase], Decided] | None = None
        self.loop = Loop("gate-webhook", self._body)

    def gates(self, to: Phase) -> tuple[str, ...]:
        """The gate before this phase, if the endpoint decides about it."""
        return (WEBHOOK,) if to in self._entering else ()

    def evidence(self, evidence: Evidence) -> Evidence:
        setting = self._steering.current
        to = self._next(setting)
        if to is None:
            return evidence
        known = self._answer
        decided = known[1] if known is not None and known[0] == (setting.generation, to) else NOT_ASKED
        return replace(evidence, webhook=decided)

    async def ask(self, setting: Setting, to: Phase) -> None:
        """Ask about a phase, if the endpoint decides about it. It ends within `webhook.POST_SECONDS`."""
        if to not in self._entering:
            return
        self._asked += 1
        number = self._asked
        decided = _decided(await self._webhook.post(self._question(setting, to), MOST_BYTES))
        if number < self._latest:
            # A later attempt was faster.
            return
        self._latest = number
        known, self._answer = self._answer, ((setting.generation, to), decided)
        if known is None or known[1].passes is not decided.passes:
            log.info("gate %s of %s: %s", WEBHOOK, to.value, decided.text)

    def _question(self, setting: Setting, to: Phase) -> Notice:
        data = {"generation": setting.generation, "phase": setting.phase.value, "next": to.value}
        text = f"may the migration go from {setting.phase.value} to {to.value}?"
        return Notice(f"gate-{uuid4()}", ASKED, f"phases/{to.value}", self._clock.now(), text, data)

    def _next(self, setting: Setting) -> Phase | None:
        """The next phase, if the endpoint decides about it."""
        try:
            to = phases.next_phase(setting)
        except IllegalMove:
            return None
        return to if setting.generation and to in self._entering else None

    async def _body(self, loop: Loop) -> None:
        setting = self._steering.current
        to = self._next(setting)
        if to is not None:
            await self.ask(setting, to)
        loop.well()
        await self._steering.changed(setting, INTERVAL_SECONDS)


def _decided(reply: Reply) -> Decided:
    if reply.trouble:
        return Decided(None, f"the webhook does not answer: {reply.trouble}")
    return read_decision(reply.status, reply.body)
