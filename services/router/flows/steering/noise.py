"""The noise floor, measured while a store is compared with itself, and kept when both stores are compared again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

from libs.tasks import Loop
from services.router.control.port import RememberedValues
from services.router.core.evidence import Evidence
from services.router.core.noise import NoiseFloor
from services.router.core.phase import Setting
from services.router.flows.steering.measure import Measurement

NAME = "noise floor"
"""The name of the value in the control store."""
INTERVAL_SECONDS = 2.0


class Steering(Protocol):
    @property
    def current(self) -> Setting: ...


class NoiseWatch:
    """Several routers may run it at once: each adds up the counts of all."""

    def __init__(self, measurement: Measurement, values: RememberedValues, steering: Steering) -> None:
        self._measurement = measurement
        self._values = values
        self._steering = steering
        self.floor: NoiseFloor | None = None
        """None: it was not measured, or not read yet."""
        self.loop = Loop("noise floor", self._body)

    async def look(self) -> None:
        """Read the floor, or write it during a comparison of a store with itself. Raises ControlUnavailable."""
        known = NoiseFloor.from_json(await self._values.remembered(NAME) or "")
        run, counts = self._measurement.noise()
        measured = NoiseFloor.of(run, counts)
        setting = self._steering.current
        is_more = known is None or known.run != run or known.compared < measured.compared
        if setting.shadow_same and run == setting.shadow_since and measured.compared and is_more:
            await self._values.remember(NAME, measured.to_json())
            known = measured
        self.floor = known

    def evidence(self, evidence: Evidence) -> Evidence:
        return replace(evidence, noise=self.floor)

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)
