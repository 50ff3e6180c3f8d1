"""The noise floor is measured while a store is compared with itself, by all routers, and kept afterwards."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from libs.clock import ManualClock
from services.router.control.memory import MemoryControlState, MemoryControlStore
from services.router.core.evidence import Evidence
from services.router.core.measure import Meter, ShadowCounts
from services.router.core.noise import NoiseFloor
from services.router.core.phase import Setting
from services.router.flows.steering.measure import Measurement, Sources
from services.router.flows.steering.noise import NAME, NoiseWatch
from services.router.flows.steering.report import Measured

SAME, BOTH = Setting(4, shadow_permille=10, shadow_same=True, shadow_since=4), Setting(5, shadow_since=5)
COUNTS = ShadowCounts(10, 7, 1, 1, error=1)


@dataclass
class Router:
    name: str
    shared: MemoryControlState
    clock: ManualClock
    setting: Setting = SAME
    counts: ShadowCounts = COUNTS
    measurement: Measurement = field(init=False)
    watch: NoiseWatch = field(init=False)

    def __post_init__(self) -> None:
        control = MemoryControlStore(self.shared, clock=self.clock)
        sources = Sources(
            lambda: (self.setting.shadow_since, ShadowCounts()),
            lambda: self.counts if self.setting.shadow_same else ShadowCounts(),
        )
        self.measurement = Measurement(control, Meter(), self.name, self.clock, sources)
        self.watch = NoiseWatch(self.measurement, control, SimpleNamespace(current=self.setting))

    async def look(self) -> NoiseFloor | None:
        self.watch._steering = SimpleNamespace(current=self.setting)
        await self.watch.look()
        return self.watch.floor


async def test_the_counts_of_all_routers_make_the_floor_and_it_outlives_the_comparison() -> None:
    shared, clock = MemoryControlState(), ManualClock()
    one, other = Router("one", shared, clock), Router("other", shared, clock)
    assert await Router("both", MemoryControlState(), clock, BOTH).look() is None
    for _ in range(3):
        for router in (one, other):
            await router.measurement.exchange()
    assert await one.look() == NoiseFloor(4, 2, 18)
    other.counts = ShadowCounts()
    await other.measurement.exchange()
    await one.measurement.exchange()
    assert await one.look() == NoiseFloor(4, 2, 18), "a router that has ended takes nothing away"
    for router in (one, other):
        router.setting = BOTH
        assert await router.look() == NoiseFloor(4, 2, 18)
        assert router.watch.evidence(Evidence()).noise == NoiseFloor(4, 2, 18)
    one.setting, one.counts = Setting(6, shadow_permille=10, shadow_same=True, shadow_since=6), ShadowCounts(1, 1)
    assert await one.look() == NoiseFloor(6, 0, 1), "a new run begins anew"


def test_a_report_has_the_counts_and_one_of_an_earlier_release_has_none() -> None:
    measured = Router("one", MemoryControlState(), ManualClock()).measurement.mine()
    assert measured.noise == COUNTS
    assert Measured.from_json(measured.to_json()) == measured
    fields = json.loads(measured.to_json())
    del fields["noise"]
    assert Measured.from_json(json.dumps(fields)).noise == ShadowCounts()
    fields["noise"] = [*COUNTS, 9]
    assert Measured.from_json(json.dumps(fields)).noise == COUNTS, "a newer release may count more"


@pytest.mark.parametrize("text", ["", "[]", '{"run": 1}', '{"run": "x", "different": 1, "compared": 1}'])
async def test_a_floor_that_another_release_wrote_is_not_known(text: str) -> None:
    router = Router("one", MemoryControlState(), ManualClock(), BOTH)
    await router.watch._values.remember(NAME, text)
    assert await router.look() is None
