"""Routers that die while they run a job: before a call, after a call whose answer is lost, and before and after they
have saved the job's position. A dead router does nothing any more, not even cleanup; another one continues."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from libs.clock import SystemClock
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import Event, EventLog
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import recovery_pb2, replication_pb2
from libs.rpc.channel import Channel
from services.router.control.memory import MemoryControlState, MemoryControlStore
from services.router.control.port import ControlUnavailable
from services.router.core.jobs import Job
from services.router.flows.jobs.backfill import ADOPT
from services.router.flows.jobs.kind import JobKind, Position, Step
from services.router.flows.jobs.run import lease_of
from services.router.flows.jobs.runner import Jobs
from services.router.flows.stores import Answer, Metadata, StoreClient, Stores
from tests.system.control import running_loops
from tests.waiting import eventually

CLOCK = SystemClock()
LIVES = 300
"""Maximum number of routers that run one job."""
LATE_SECONDS = 0.3
"""Time in which a delayed call ends."""
MOST_DEATHS = 40
"""Maximum number of random deaths in one run."""

Result = dict[str, Any]

_CHANGING = {
    replication_pb2.AdoptRecordsRequest: replication_pb2.AdoptRecordsResponse,
    recovery_pb2.SeizeBucketsRequest: recovery_pb2.SeizeBucketsResponse,
    recovery_pb2.TakeTermsRequest: recovery_pb2.TakeTermsResponse,
}


@dataclass
class Doom:
    """The points at which routers die."""

    chance: random.Random
    odds: float
    """Probability of a death at a point, while `deaths` remain; 1: once at each point."""
    deaths: int = MOST_DEATHS
    hasty: bool = False
    """Routers save positions before their work."""
    woken: asyncio.Event | None = None
    """If set, dead routers only sleep: when the job has ended they wake up and continue where they were."""
    seen: set[str] = field(default_factory=set)
    """Points that were passed, or at which a router died."""
    died: set[str] = field(default_factory=set)

    def strikes(self, point: str) -> bool:
        self.seen.add(point)
        if point in self.died if self.odds == 1 else self.deaths == 0 or self.chance.random() >= self.odds:
            return False
        self.deaths -= 1
        self.died.add(point)
        return True


@dataclass
class Life:
    """The life of one router."""

    doom: Doom
    stage: str = ""
    """Stage of its job."""
    over: bool = False
    hasty: bool = False
    """It saves its position before its work, which no kind of job may do."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the router has reached its next point after a sleep."""
    put_off: list[Callable[[], Awaitable[Any]]] = field(default_factory=list)

    async def at(self, place: str) -> None:
        """Return only if the router lives."""
        if not self.over:
            self.over = self.doom.strikes(f"{self.stage}: {place}" if self.stage else place)
        elif self.doom.woken is not None and self.doom.woken.is_set():
            self.moved.set()
        if self.over:
            await (self.doom.woken or asyncio.Event()).wait()

    async def late(self) -> None:
        """Return only for a sleeping router, after the work that it slept through."""
        await (self.doom.woken or asyncio.Event()).wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(LATE_SECONDS):
                await self.moved.wait()


class MortalClient(StoreClient):
    """A store as a router sees it."""

    def __init__(self, store: Store, channel: Channel, life: Life) -> None:
        super().__init__(store, channel, None)
        self._life = life

    async def call(self, path: str, request: bytes, timeout_seconds: float, extra: Metadata = ()) -> Answer:
        name = f"{path.rpartition('/')[2]} at {self.store}"
        await self._life.at(f"before {name}")
        called = partial(super().call, path, request, timeout_seconds, extra)
        if self._life.hasty and path == ADOPT:
            self._life.put_off.append(called)
            return Answer(self.store, b"")
        answer = await called()
        await self._life.at(f"after {name}")
        return answer

    async def ask(self, method: Any, request: Any, timeout_seconds: float, extra: Any = ()) -> Any:
        name = f"{type(request).__name__.removesuffix('Request')} at {self.store}"
        await self._life.at(f"before {name}")
        asked = partial(super().ask, method, request, timeout_seconds, extra)
        if self._life.hasty and type(request) in _CHANGING:
            self._life.put_off.append(asked)
            return _CHANGING[type(request)]()
        answer = await asked()
        await self._life.at(f"after {name}")
        return answer


class MortalLog:
    """The log as a router sees it."""

    def __init__(self, log: MemoryEventLog, life: Life) -> None:
        self._log = log
        self._life = life

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(self, events: Sequence[Event], partition: int | None = None) -> None:
        await self._life.at("before the log is told")
        await self._log.append(events, partition)
        await self._life.at("after the log is told")


class MortalControl(MemoryControlStore):
    """The control store as a router sees it."""

    def __init__(self, shared: MemoryControlState, life: Life) -> None:
        super().__init__(shared)
        self._life = life

    async def put(self, job: Job) -> Job | None:
        await self._life.at("before its place is written down")
        saved = await super().put(job)
        await self._life.at("after its place is written down")
        if self._life.put_off:
            # Each time another point, so that the set of lost work does not depend on chance.
            await self._life.at(f"before work that is written down as done, {len(self._life.doom.seen)}")
        while self._life.put_off:
            await self._life.put_off.pop(0)()
        return saved

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> bool:
        if self._life.over:
            # A dead router does not release the job either, and a router that wakes up does not first ask whether it
            # still runs the job.
            if self._life.doom.woken is None:
                raise ControlUnavailable
            await self._life.late()
        return await super().lease(name, holder, ttl_seconds)


@dataclass
class SmallStepKind:
    """A kind of job that does little per step, so that it has many steps."""

    kind: JobKind
    life: Life
    stage_of: Callable[[bytes], str]
    limit: int

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def unit(self) -> str:
        return self.kind.unit

    def lane(self, arguments: Mapping[str, str]) -> str:
        return self.kind.lane(arguments)

    async def step(self, at: Position) -> Step:
        self.life.stage = self.stage_of(at.checkpoint)
        return await self.kind.step(replace(at, limit=min(at.limit, self.limit)))


@dataclass
class Scene:
    """The system that a job runs on."""

    stores: Stores
    log: MemoryEventLog
    result: Callable[[], Awaitable[Result]]
    """The job's result in the system."""


@dataclass(frozen=True)
class Case:
    name: str
    scene: Callable[[Path], AbstractAsyncContextManager[Scene]]
    """The same scene each time, in an empty directory."""
    make: Callable[[Stores, EventLog], JobKind]
    arguments: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    """Stages that the job must pass through; otherwise the case shows nothing."""
    stage_of: Callable[[bytes], str] = lambda checkpoint: ""
    limit: int = 7
    """Units per step."""
    needs_each: bool = False
    """Without one of its steps, the job still ends, with another result."""
    compared: Callable[[Result], Result] = lambda result: result
    """The part of the result that must equal that of an undisturbed run."""

    def __str__(self) -> str:
        return self.name


async def run(case: Case, directory: Path, doom: Doom) -> Result:
    """Run one router after the other until the job has ended. Returns its report and its result."""
    shared = MemoryControlState()
    async with case.scene(directory) as scene:
        kind = case.make(scene.stores, scene.log)
        asking = Jobs(MemoryControlStore(shared), [kind], "router-0", CLOCK)
        job = await asking.start(kind.name, case.arguments, "ann")
        routers = list[Jobs]()
        async with AsyncExitStack() as asleep:
            for number in range(LIVES):
                life = Life(doom, hasty=doom.hasty)
                jobs = _router(case, scene, shared, life, f"router-{number}")
                routers.append(jobs)
                async with AsyncExitStack() as alive:
                    await alive.enter_async_context(running_loops(jobs.loop))
                    await eventually(partial(_over, life, shared), 20.0, f"{case.name}, {shared.durable[1].note}")
                    # The remaining tasks of the router do nothing any more, or not now.
                    life.over = True
                    if doom.woken is not None:
                        await asleep.enter_async_context(alive.pop_all())
                shared.leases.pop(lease_of(job.id), None)
                if not shared.durable[1].state.wants_a_runner:
                    break
            if doom.woken is not None:
                doom.woken.set()
                await eventually(lambda: all(task.done() for one in routers for _, task in one._runs.values()))
        job = shared.durable[1]
        told = {"state": job.state.value, "done": job.done, "total": job.total, "note": job.note}
        report = json.loads(job.report) if job.report else {}
        return case.compared({**told, "report": report, **await scene.result()})


def _over(life: Life, shared: MemoryControlState) -> bool:
    return life.over or not shared.durable[1].state.wants_a_runner


def _router(case: Case, scene: Scene, shared: MemoryControlState, life: Life, name: str) -> Jobs:
    stores = {store: MortalClient(store, client.channel, life) for store, client in scene.stores.items()}
    kind = case.make(stores, cast(EventLog, MortalLog(scene.log, life)))
    mortal = SmallStepKind(kind, life, case.stage_of, case.limit)
    return Jobs(MortalControl(shared, life), [mortal], name, CLOCK)
