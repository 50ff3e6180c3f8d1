"""Rehearses the way there and back with a few live buckets, by the mover's own mechanism: a kind of job.

The buckets that are away stand in the setting, so every router sends their calls to the other store and the mover of
any router brings them there. One run measures all of it: a clock and counts of its own. So a run that takes the job
over measures nothing and reports that the rehearsal failed.

No bucket stays away, in whatever way a rehearsal ends: if the setting has buckets away and no rehearsal is queued or
running, each router sends them home (`Rehearsals`).

    choose     no checkpoint: buckets that are wholly at one store
    begin      every router has seen which buckets to count; the setting sends them to the other store
    there      wait until they are there
    turn       the setting sends them home
    back       wait until they are home
    count      every router's counts have arrived here
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
"""The argument: how many."""
MAX_BUCKETS = 64
WAY_SECONDS = 120.0
"""Longest time for one way."""
POLL_SECONDS = 0.1
LOOK_SECONDS = 0.25
"""Between two looks of a router at what is rehearsed."""
ACTOR = "baton"
"""Sends buckets home that no run watches."""


@dataclass(frozen=True, slots=True)
class PropagationDelays:
    """How long all routers need; tests, with one router in one process, shorten it."""

    seen_by_all_seconds: float = 1.5
    """Until every healthy router has read that a rehearsal begins."""
    counted_by_all_seconds: float = 2.5
    """Until every router's last counts are in the control store, and were read from there."""


DEFAULT_DELAYS = PropagationDelays()


class RehearsalFailed(BatonError):
    """The rehearsal could not be carried through."""

    reason = "REHEARSAL_FAILED"


@dataclass(frozen=True, slots=True)
class Result:
    """A finished job's report."""

    passed: bool
    """All buckets went there and came back in time, and no call on them failed."""
    note: str
    buckets: tuple[int, ...] = ()
    records: int = 0
    """Moved, each way."""
    there_seconds: float = 0.0
    back_seconds: float = 0.0
    calls: int = 0
    errors: int = 0
    handoffs: int = 0
    """What clients saw on these buckets, at all routers."""

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
    """By which routers count calls: `Position.job`."""
    homes: Mapping[int, str] = field(default_factory=dict)
    """The store that each bucket comes from."""
    records: int = 0
    began: float = 0.0
    """The way that is measured: since when, by the run's monotonic clock."""
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
    """One bucket: the store at which all of it is, else None, and its records."""

    store: Store | None
    records: int


class Rehearsal:
    """A `JobKind`; the argument is how many buckets."""

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
        """`answered`: by router, what it reports to all."""
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
        """Raises IllegalMove where buckets cannot be away, ControlUnavailable."""
        begin_rehearsal(await self._cache.refresh(), (0,))
        if self._cache.flags.use_service_layer is not None:
            raise IllegalMove("the global flag steers all traffic: clear it first, a rehearsal would move nothing")

    async def step(self, at: Position) -> Step:
        """Raises ControlUnavailable, Outdated."""
        state = State.decode(at.checkpoint) if at.checkpoint else State("choose", at.run, at.job)
        if state.run != at.run:
            return self._ended(state, "the run that measured it has ended; the buckets are sent home", passed=False)
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
        """Buckets that are wholly at one store, those with records before empty ones. Raises RehearsalFailed."""
        wanted = int(at.arguments[BUCKETS_WANTED])
        found = await self._look(range(BUCKETS))
        whole = [(bucket, where.store) for bucket, where in found.items() if where.store is not None]
        if len(whole) < wanted:
            raise RehearsalFailed(f"{len(whole)} buckets are wholly at one store, {wanted} are wanted: try again later")
        random.shuffle(whole)
        whole.sort(key=lambda one: not found[one[0]].records)
        homes = {bucket: store.value for bucket, store in whole[:wanted]}
        state = replace(state, stage="begin", homes=homes, records=sum(found[bucket].records for bucket in homes))
        # So that every router counts from the first call on.
        return _step(state, "begins", wait_seconds=self._waits.seen_by_all_seconds)

    async def _begin(self, at: Position, state: State) -> Step:
        setting = await self._cache.refresh()
        if setting.rehearsal != state.buckets:
            decision = Decision(at.actor, at.reason, setting.generation)
            await self._migration.begin_rehearsal(decision, state.buckets)
        return _step(replace(state, stage="there", began=self._clock.monotonic()), "to the other store")

    async def _there(self, at: Position, state: State) -> Step:
        seconds = await self._arrived(state, away=True)
        if seconds is None:
            return _step(state, "", wait_seconds=POLL_SECONDS)
        return _step(replace(state, stage="turn", there_seconds=seconds), "")

    async def _turn(self, at: Position, state: State) -> Step:
        setting = await self._cache.refresh()
        # If somebody has set something else, the buckets go where that says.
        if setting.rehearsal == state.buckets:
            await self._migration.end_rehearsal(Decision(at.actor, at.reason, setting.generation))
        return _step(replace(state, stage="back", began=self._clock.monotonic()), "back home")

    async def _back(self, at: Position, state: State) -> Step:
        seconds = await self._arrived(state, away=False)
        if seconds is None:
            return _step(state, "", wait_seconds=POLL_SECONDS)
        state = replace(state, stage="count", back_seconds=seconds)
        return _step(state, "counts", wait_seconds=self._waits.counted_by_all_seconds)

    async def _count(self, at: Position, state: State) -> Step:
        calls, errors, _ = self._seen(state)
        way = f"{state.records} records there in {state.there_seconds:.2f} s and back in {state.back_seconds:.2f} s"
        return self._ended(state, f"{way}, {errors} of {calls} calls failed", passed=not errors)

    async def _arrived(self, state: State, *, away: bool) -> float | None:
        """Seconds until all were at the other store, or all at home; None: not all are. Raises RehearsalFailed."""
        found = await self._look(state.buckets)
        homes = {bucket: Store(name) for bucket, name in state.homes.items()}
        left = sum((where.store is homes[bucket]) is away or where.store is None for bucket, where in found.items())
        seconds = self._clock.monotonic() - state.began
        if not left:
            return seconds
        if self._cache.current.rehearsal != (state.buckets if away else ()):
            raise RehearsalFailed("the setting was changed meanwhile; the buckets go where it says")
        if seconds > WAY_SECONDS:
            raise RehearsalFailed(f"{left} of {len(found)} buckets had not arrived after {WAY_SECONDS:g} s")
        return None

    async def _look(self, buckets: Sequence[int]) -> dict[int, BucketLocation]:
        """Where these buckets are. Raises Away, Refused."""
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
        """Calls, errors and handoffs, at all routers."""
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
    """Rehearsals at one router: counts calls, sends abandoned buckets home, and has the last result. `loop` is the
    caller's to run."""

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
        """With the result of the last rehearsal that was finished."""
        result = self.last.report
        if result is None:
            return evidence
        failure = "" if result.passed else result.note or "it did not pass"
        return replace(evidence, rehearsal_seconds_ago=self.last.seconds_ago, rehearsal_failure=failure)

    async def _count(self, job: Job | None) -> None:
        """Count the calls on the buckets that are rehearsed, from before they leave until they are home."""
        if job is None or not job.state.wants_a_runner:
            self._traffic.watch = None
        elif self._traffic.watch is None or not self._traffic.watch.name.startswith(f"{job.id} "):
            checkpoint = (await self._jobs.job(job.id)).checkpoint
            state = State.decode(checkpoint) if checkpoint else None
            self._traffic.watch = Watch(state.name, frozenset(state.homes)) if state and state.homes else None

    async def _send_home(self) -> None:
        """Buckets are away: without a job that somebody runs, nothing else would send them home."""
        # In this order: a rehearsal is stored as a job before its buckets leave.
        setting = await self._cache.refresh()
        job = await self._jobs.under_way(NAME)
        if not setting.rehearsal or (job is not None and job.state.wants_a_runner):
            return
        why = "no rehearsal is under way" if job is None else f"{job.id} is {job.state.value}"
        try:
            await self._migration.end_rehearsal(Decision(ACTOR, why, setting.generation))
        except (Outdated, IllegalMove):
            return  # Another router sent them home, or somebody changed the setting: the next look sees it.

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(LOOK_SECONDS)
