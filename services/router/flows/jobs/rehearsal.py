"""The job `rehearsal`: moves a few live buckets to the other store and back, by the mover.

The setting lists the buckets that are away, so every router sends their calls to the other store, and any router's
mover moves them there. One run makes all measurements, with its own clock and counts. A run that takes the job over has
no measurements, so it reports that the rehearsal failed.

No bucket stays away, however a rehearsal ends: if the setting lists buckets and no rehearsal is queued or running, each
router returns them (`Rehearsals`).

    choose     no checkpoint: choose buckets that are wholly at one store
    begin      every router has read the buckets to count; the setting sends them to the other store
    there      wait until all have arrived
    turn       the setting returns them
    back       wait until all are back
    count      read every router's counts
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

from libs.clock import Clock
from libs.errors import BatonError, InvalidField
from libs.ownership.model import BUCKETS, Store
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.tasks import Loop
from services.router.control.port import ControlUnavailable
from services.router.core.evidence import Evidence
from services.router.core.jobs import Job
from services.router.core.phase import IllegalMove, Outdated, begin_rehearsal
from services.router.flows.jobs.kind import Position, Step
from services.router.flows.jobs.last_report import LastReport
from services.router.flows.jobs.runner import Jobs
from services.router.flows.moving.transfer import BULK_SECONDS
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache
from services.router.flows.stores import Stores
from services.router.flows.traffic import Answered, Traffic, Watch

NAME = "rehearsal"
BUCKETS_WANTED = "buckets"
"""Name of the argument: the number of buckets."""
MAX_BUCKETS = 64
WAY_SECONDS = 120.0
"""Maximum time for one direction."""
POLL_SECONDS = 0.1
LOOK_SECONDS = 0.25
"""Interval at which a router reads the buckets of the rehearsal."""
ACTOR = "baton"
"""Actor in the journal if a router returns the buckets of an abandoned rehearsal."""


@dataclass(frozen=True, slots=True)
class PropagationDelays:
    """Time that a change needs to reach all routers. Tests with one router use shorter delays."""

    seen_by_all_seconds: float = 1.5
    """Time until every healthy router has read that a rehearsal begins."""
    counted_by_all_seconds: float = 2.5
    """Time until this router has read every router's last counts from the control store."""


DEFAULT_DELAYS = PropagationDelays()


class RehearsalFailed(BatonError):
    """The rehearsal could not be completed."""

    reason = "REHEARSAL_FAILED"


@dataclass(frozen=True, slots=True)
class Result:
    """The report of a finished rehearsal."""

    passed: bool
    """All buckets arrived and came back in time, and no call on them failed."""
    note: str
    buckets: tuple[int, ...] = ()
    records: int = 0
    """Number of records moved in each direction."""
    there_seconds: float = 0.0
    back_seconds: float = 0.0
    calls: int = 0
    """Clients' calls on these buckets, at all routers; likewise `errors` and `handoffs`."""
    errors: int = 0
    handoffs: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Result:
        fields = json.loads(text)
        return cls(**{**fields, "buckets": tuple(fields["buckets"])})


@dataclass(frozen=True, slots=True)
class State:
    """A rehearsal's checkpoint."""

    stage: str
    run: str
    """The run that measures."""
    name: str
    """Name under which routers count calls: `Position.job`."""
    homes: Mapping[int, str] = field(default_factory=dict)
    """The store from which each bucket comes."""
    records: int = 0
    began: float = 0.0
    """Start of the direction that is measured, by the run's monotonic clock."""
    there_seconds: float = 0.0
    back_seconds: float = 0.0

    @property
    def buckets(self) -> tuple[int, ...]:
        return tuple(sorted(self.homes))

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, checkpoint: bytes) -> State:
        fields = json.loads(checkpoint)
        return cls(**{**fields, "homes": {int(bucket): store for bucket, store in fields["homes"].items()}})


class BucketLocation(NamedTuple):
    """The store that has the whole bucket, or None, and the number of its records."""

    store: Store | None
    records: int


class Rehearsal:
    """A `JobKind`. Argument: the number of buckets."""

    name = NAME
    unit = "records"

    def __init__(
        self,
        stores: Stores,
        migration: Migration,
        cache: SettingCache,
        answered: Callable[[], Mapping[str, Answered]],
        clock: Clock,
        waits: PropagationDelays = DEFAULT_DELAYS,
    ) -> None:
        """`answered`: the counts that each router reports, by router."""
        self._stores = stores
        self._migration = migration
        self._cache = cache
        self._answered = answered
        self._clock = clock
        self._waits = waits

    def lane(self, arguments: Mapping[str, str]) -> str:
        for name in arguments:
            if name != BUCKETS_WANTED:
                raise InvalidField("arguments", name, BUCKETS_WANTED)
        text = arguments.get(BUCKETS_WANTED, "")
        if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= MAX_BUCKETS):
            raise InvalidField(BUCKETS_WANTED, text, f"1 to {MAX_BUCKETS}")
        return NAME

    async def check(self, arguments: Mapping[str, str]) -> None:
        """Raises IllegalMove in a phase without rehearsals, ControlUnavailable."""
        begin_rehearsal(await self._cache.refresh(), (0,))
        if self._cache.flags.use_service_layer is not None:
            raise IllegalMove("the global flag steers all traffic, so a rehearsal would move no bucket: clear it first")

    async def step(self, at: Position) -> Step:
        """Raises ControlUnavailable, Outdated."""
        state = State.decode(at.checkpoint) if at.checkpoint else State("choose", at.run, at.job)
        if state.run != at.run:
            return self._ended(state, "the run that measured it has ended; the buckets return", passed=False)
        stages = {
            "choose": self._choose,
            "begin": self._begin,
            "there": self._there,
            "turn": self._turn,
            "back": self._back,
            "count": self._count,
        }
        try:
            return await stages[state.stage](at, state)
        except (ControlUnavailable, Outdated):
            raise
        except BatonError as error:
            return self._ended(state, error.message or error.reason, passed=False)

    async def _choose(self, at: Position, state: State) -> Step:
        """Choose buckets that are wholly at one store; empty ones only if needed. Raises RehearsalFailed."""
        wanted = int(at.arguments[BUCKETS_WANTED])
        found = await self._look(range(BUCKETS))
        whole = [(bucket, where.store) for bucket, where in found.items() if where.store is not None]
        if len(whole) < wanted:
            raise RehearsalFailed(
                f"only {len(whole)} buckets are wholly at one store, {wanted} are needed: try again later"
            )
        random.shuffle(whole)
        whole.sort(key=lambda one: not found[one[0]].records)
        homes = {bucket: store.value for bucket, store in whole[:wanted]}
        state = replace(state, stage="begin", homes=homes, records=sum(found[bucket].records for bucket in homes))
        # Wait so that every router counts from the first call.
        return _step(state, "starting", wait_seconds=self._waits.seen_by_all_seconds)

    async def _begin(self, at: Position, state: State) -> Step:
        setting = await self._cache.refresh()
        if setting.rehearsal != state.buckets:
            decision = Decision(at.actor, at.reason, setting.generation)
            await self._migration.begin_rehearsal(decision, state.buckets)
        return _step(replace(state, stage="there", began=self._clock.monotonic()), "moving to the other store")

    async def _there(self, at: Position, state: State) -> Step:
        seconds = await self._arrived(state, away=True)
        if seconds is None:
            return _step(state, "", wait_seconds=POLL_SECONDS)
        return _step(replace(state, stage="turn", there_seconds=seconds), "")

    async def _turn(self, at: Position, state: State) -> Step:
        setting = await self._cache.refresh()
        # If an operator has changed the setting, the buckets go to the stores that it assigns.
        if setting.rehearsal == state.buckets:
            await self._migration.end_rehearsal(Decision(at.actor, at.reason, setting.generation))
        return _step(replace(state, stage="back", began=self._clock.monotonic()), "moving back")

    async def _back(self, at: Position, state: State) -> Step:
        seconds = await self._arrived(state, away=False)
        if seconds is None:
            return _step(state, "", wait_seconds=POLL_SECONDS)
        state = replace(state, stage="count", back_seconds=seconds)
        return _step(state, "counting calls", wait_seconds=self._waits.counted_by_all_seconds)

    async def _count(self, at: Position, state: State) -> Step:
        calls, errors, _ = self._seen(state)
        way = f"{state.records} records there in {state.there_seconds:.2f} s and back in {state.back_seconds:.2f} s"
        return self._ended(state, f"{way}, {errors} of {calls} calls failed", passed=not errors)

    async def _arrived(self, state: State, *, away: bool) -> float | None:
        """Seconds until all buckets were at the other store, or back; None while some are not. Raises
        RehearsalFailed."""
        found = await self._look(state.buckets)
        homes = {bucket: Store(name) for bucket, name in state.homes.items()}
        left = sum((where.store is homes[bucket]) is away or where.store is None for bucket, where in found.items())
        seconds = self._clock.monotonic() - state.began
        if not left:
            return seconds
        if self._cache.current.rehearsal != (state.buckets if away else ()):
            raise RehearsalFailed("the setting was changed during the rehearsal; the buckets follow the new setting")
        if seconds > WAY_SECONDS:
            raise RehearsalFailed(f"{left} of {len(found)} buckets had not arrived after {WAY_SECONDS:g} s")
        return None

    async def _look(self, buckets: Sequence[int]) -> dict[int, BucketLocation]:
        """The location of each bucket. Raises Away, Refused."""
        bucket_owners: dict[int, Store] = {}
        owned: dict[int, dict[Store, int]] = {bucket: {} for bucket in buckets}
        for store, client in self._stores.items():
            request = pb.ListBucketsRequest(buckets=buckets)
            answer: pb.ListBucketsResponse = await client.ask(client.replication.ListBuckets, request, BULK_SECONDS)
            for bucket_owner in answer.bucket_owners:
                if bucket_owner.owner == STORE_NUMBERS[store]:
                    bucket_owners[bucket_owner.bucket] = store
            digests: pb.DigestBucketsResponse = await client.ask(
                client.replication.DigestBuckets, pb.DigestBucketsRequest(buckets=buckets), BULK_SECONDS
            )
            for digest in digests.buckets:
                if digest.bucket in owned:
                    owned[digest.bucket][store] = digest.owned
        found = {}
        for bucket in buckets:
            at = bucket_owners.get(bucket)
            here = at is not None and not owned[bucket].get(at.other)
            found[bucket] = BucketLocation(at if here else None, sum(owned[bucket].values()))
        return found

    def _seen(self, state: State) -> tuple[int, int, int]:
        """Calls, errors and handoffs on the buckets, at all routers."""
        counts = [answered for answered in self._answered().values() if answered.watch == state.name]
        return sum(one.calls for one in counts), sum(one.errors for one in counts), sum(one.handoffs for one in counts)

    def _ended(self, state: State, note: str, *, passed: bool) -> Step:
        seen = self._seen(state)
        result = Result(passed, note, state.buckets, state.records, state.there_seconds, state.back_seconds, *seen)
        words = "passed" if passed else "failed"
        return replace(
            _step(state, f"{words}: {note}"),
            done=state.records if passed else 0,
            finished=True,
            report=result.to_json(),
        )


def _step(state: State, note: str, *, wait_seconds: float = 0.0) -> Step:
    return Step(state.encode(), total=state.records, note=note, wait_seconds=wait_seconds)


class Rehearsals:
    """Rehearsals at one router: counts calls, returns abandoned buckets, and keeps the last result. The caller runs
    `loop`."""

    def __init__(self, jobs: Jobs, migration: Migration, cache: SettingCache, traffic: Traffic, clock: Clock) -> None:
        self._jobs = jobs
        self._migration = migration
        self._cache = cache
        self._traffic = traffic
        self.last = LastReport(jobs, NAME, Result.from_json, clock)
        self.loop = Loop("rehearsal", self._body, first_pause_seconds=0.1, longest_pause_seconds=1.0)

    async def look(self) -> None:
        """Raises ControlUnavailable, JobNotFound."""
        if self._cache.current.rehearsal:
            await self._send_home()
        await self._count(self._jobs.latest(NAME))
        await self.last.look()

    def evidence(self, evidence: Evidence) -> Evidence:
        """The evidence with the result of the last finished rehearsal."""
        result = self.last.report
        if result is None:
            return evidence
        failure = "" if result.passed else result.note or "it did not pass"
        return replace(evidence, rehearsal_seconds_ago=self.last.seconds_ago, rehearsal_failure=failure)

    async def _count(self, job: Job | None) -> None:
        """Count the calls on the rehearsal's buckets, from before they leave until they are back."""
        if job is None or not job.state.wants_a_runner:
            self._traffic.watch = None
        elif self._traffic.watch is None or not self._traffic.watch.name.startswith(f"{job.id} "):
            checkpoint = (await self._jobs.job(job.id)).checkpoint
            state = State.decode(checkpoint) if checkpoint else None
            self._traffic.watch = Watch(state.name, frozenset(state.homes)) if state and state.homes else None

    async def _send_home(self) -> None:
        """Return the buckets if no rehearsal is queued or running."""
        # Read the setting first: a rehearsal is stored as a job before its buckets leave.
        setting = await self._cache.refresh()
        job = await self._jobs.under_way(NAME)
        if not setting.rehearsal or (job is not None and job.state.wants_a_runner):
            return
        why = "no rehearsal is under way" if job is None else f"{job.id} is {job.state.value}"
        try:
            await self._migration.end_rehearsal(Decision(ACTOR, why, setting.generation))
        except (Outdated, IllegalMove):
            return  # Another router returned them, or an operator changed the setting: the next look reads it.

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(LOOK_SECONDS)
