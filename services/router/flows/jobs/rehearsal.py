"""Rehearses the way there and back with a few live buckets, by the mover's own mechanism, and measures it.

The buckets that are away stand in the setting, so every router sends their calls to the other store and the mover of
whichever router brings them there. One router holds the lease and watches; if it dies, the next one sends the buckets
home and says that the rehearsal failed. So nothing stays away, whoever dies when.

Every router counts what clients saw on these buckets meanwhile; the counts travel by the control store.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

from libs.clock import Age, Clock
from libs.errors import BatonError, InvalidField
from libs.ownership.model import BUCKETS, Store
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.tasks import Loop
from services.router.control.port import ControlStore, ControlUnavailable, Progress
from services.router.core.phase import IllegalMove, Outdated, begin_rehearsal
from services.router.core.plan import Flags
from services.router.flows.moving.transfer import BULK_SECONDS
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache
from services.router.flows.stores import Stores
from services.router.flows.traffic import Answered, Traffic, Watch

JOB = "rehearsal"
LEASE = "rehearsal"
LEASE_SECONDS = 10.0
MAX_BUCKETS = 64
WAY_SECONDS = 120.0
"""How long one way may take."""
POLL_SECONDS = 0.1
CHECK_SECONDS = 0.5
SEEN_BY_ALL_SECONDS = 1.5
"""Until every router that is well has read, at its next look, that a rehearsal begins."""
COUNTED_BY_ALL_SECONDS = 2.5
"""Until every router's last counts are in the control store, and were read from there."""


class RehearsalUnderWay(BatonError):
    """A rehearsal is under way: wait for its end. Nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "REHEARSAL_UNDER_WAY"


class RehearsalFailed(BatonError):
    """The rehearsal could not be carried through."""

    reason = "REHEARSAL_FAILED"


class Seen(NamedTuple):
    """What clients saw on the rehearsed buckets, at one router or at several."""

    calls: int = 0
    errors: int = 0
    handoffs: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a rehearsal."""

    id: str
    by: str
    passed: bool
    """All went there and came back in time, and no call on these buckets failed."""
    note: str
    """What was found, in words."""
    finished_seconds: float
    """UNIX time."""
    buckets: tuple[int, ...] = ()
    records: int = 0
    """Moved, each way."""
    there_seconds: float = 0.0
    back_seconds: float = 0.0
    calls: int = 0
    errors: int = 0
    handoffs: int = 0


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The rehearsal that is under way or was the last, and what came of the last one that ended."""

    id: str = ""
    by: str = ""
    reason: str = ""
    wanted: int = 0
    """How many buckets."""
    buckets: tuple[int, ...] = ()
    last: Mapping[str, object] = field(default_factory=dict)

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> _Cursor:
        fields = json.loads(text) if text else {}
        return cls(**{**fields, "buckets": tuple(fields.get("buckets", ()))})

    @property
    def result(self) -> Result | None:
        fields = dict(self.last)
        if not fields:
            return None
        buckets = fields.pop("buckets", ())
        return Result(**fields, buckets=tuple(buckets))  # type: ignore[arg-type]


def result_of(progress: Progress | None) -> Result | None:
    """Of the last rehearsal that ended, from the job "rehearsal"; None: there was none."""
    return _Cursor.decode(progress.cursor).result if progress else None


@dataclass(frozen=True, slots=True)
class Where:
    """One bucket: the store at which all of it is, else None, and its records."""

    store: Store | None
    records: int


@dataclass(frozen=True, slots=True)
class Around:
    """What a rehearsal looks at."""

    stores: Stores
    traffic: Traffic
    flags: Callable[[], Flags]
    answered: Callable[[], Mapping[str, Answered]]
    """By router, what it and the others tell."""
    seen_by_all_seconds: float = SEEN_BY_ALL_SECONDS
    counted_by_all_seconds: float = COUNTED_BY_ALL_SECONDS


class Rehearsals:
    """The job, at one router. The process runs `loop`."""

    def __init__(
        self,
        control: ControlStore,
        migration: Migration,
        cache: SettingCache,
        around: Around,
        holder: str,
        clock: Clock,
    ) -> None:
        self._control = control
        self._migration = migration
        self._cache = cache
        self._around = around
        self._holder = holder
        self._clock = clock
        self._age = Age(clock)
        self._told = asyncio.Event()
        self._progress = Progress(JOB, False)
        self.loop = Loop("rehearsal", self.run_once, first_pause_seconds=0.1, longest_pause_seconds=1.0)

    @property
    def progress(self) -> Progress:
        """How far it is, whichever router watches it; half a second old, older while the control store is away."""
        return self._progress

    @property
    def last(self) -> Result | None:
        """What came of the last one that ended."""
        return result_of(self._progress)

    @property
    def last_seconds_ago(self) -> float:
        """The age of `last`; 0 if there is none."""
        return self._age.seconds(self.last.finished_seconds) if self.last is not None else 0.0

    async def start(self, decision: Decision, buckets: int) -> Progress:
        """Asks for a rehearsal. Raises InvalidField, IllegalMove, Outdated, RehearsalUnderWay, ControlUnavailable;
        nothing is changed then."""
        decision.check()
        if not 1 <= buckets <= MAX_BUCKETS:
            raise InvalidField("buckets", buckets, f"1 to {MAX_BUCKETS}")
        setting = await self._cache.refresh()
        if decision.generation and decision.generation != setting.generation:
            raise Outdated()
        begin_rehearsal(setting, (0,))
        if self._around.flags().use_service_layer is not None:
            raise IllegalMove("the global flag steers all traffic: clear it first, a rehearsal would move nothing")
        progress = await self._load()
        if progress.running:
            raise RehearsalUnderWay()
        cursor = _Cursor(
            uuid.uuid4().hex, decision.actor, decision.reason, buckets, last=_Cursor.decode(progress.cursor).last
        )
        note = f"asked for by {decision.actor}"
        await self._save(Progress(JOB, True, note=note, finished_seconds=progress.finished_seconds), cursor)
        self._told.set()
        return self._progress

    async def run_once(self, loop: Loop) -> None:
        """One look: counts what clients see during a rehearsal, and carries it out if no other router does."""
        self._told.clear()
        progress = await self._load()
        loop.well()
        self._watch(progress)
        if progress.running and await self._renew():
            try:
                await self._carry_out(progress)
            finally:
                with suppress(ControlUnavailable):
                    await self._control.lease(LEASE, self._holder, 0.0)
            return
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self._told.wait()
        except TimeoutError:
            pass

    def _watch(self, progress: Progress) -> None:
        """Count the calls on the buckets that are rehearsed, from before they leave until they are home."""
        cursor = _Cursor.decode(progress.cursor)
        traffic = self._around.traffic
        if not progress.running:
            traffic.watch = None
        elif cursor.buckets and (traffic.watch is None or traffic.watch.name != cursor.id):
            traffic.watch = Watch(cursor.id, frozenset(cursor.buckets))

    async def _carry_out(self, progress: Progress) -> None:
        """Raises ControlUnavailable; then this or another router ends it later."""
        cursor = _Cursor.decode(progress.cursor)
        if cursor.buckets:
            # The router that watched it is gone, or was cut off from the control store: nobody measured.
            await self._send_home(cursor)
            await self._finish(self._failed(cursor, "the router that watched it went away; the buckets were sent home"))
            return
        try:
            result = await self._rehearse(cursor)
        except ControlUnavailable:
            raise
        except BatonError as error:
            cursor = _Cursor.decode(self._progress.cursor)
            await self._send_home(cursor)
            result = self._failed(cursor, error.message or error.reason)
        await self._finish(result)

    async def _rehearse(self, cursor: _Cursor) -> Result:
        chosen = await self._choose(cursor.wanted)
        records = sum(where.records for where in chosen.values())
        cursor = replace(cursor, buckets=tuple(sorted(chosen)))
        await self._note(cursor, records, "begins")
        self._watch(self._progress)
        # So that every router counts from the first call on.
        await asyncio.sleep(self._around.seen_by_all_seconds)
        await self._migration.begin_rehearsal(Decision(cursor.by, cursor.reason), cursor.buckets)
        await self._note(cursor, records, "to the other store")
        there = await self._arrival({bucket: where.store for bucket, where in chosen.items()}, cursor, away=True)
        await self._migration.end_rehearsal(Decision(cursor.by, cursor.reason))
        await self._note(cursor, records, "back home")
        back = await self._arrival({bucket: where.store for bucket, where in chosen.items()}, cursor, away=False)
        await self._note(cursor, records, "counts")
        await asyncio.sleep(self._around.counted_by_all_seconds)
        seen = self._seen(cursor.id)
        way = f"{records} records there in {there:.2f} s and back in {back:.2f} s"
        return Result(
            id=cursor.id,
            by=cursor.by,
            passed=seen.errors == 0,
            note=f"{way}, {seen.errors} of {seen.calls} calls failed",
            finished_seconds=self._clock.now(),
            buckets=cursor.buckets,
            records=records,
            there_seconds=there,
            back_seconds=back,
            **seen._asdict(),
        )

    async def _choose(self, wanted: int) -> dict[int, Where]:
        """Buckets that are wholly at one store, those with records before empty ones. Raises RehearsalFailed."""
        found = await self._look(range(BUCKETS))
        whole = [bucket for bucket, where in found.items() if where.store is not None]
        if len(whole) < wanted:
            raise RehearsalFailed(f"{len(whole)} buckets are wholly at one store, {wanted} are wanted: try again later")
        random.shuffle(whole)
        whole.sort(key=lambda bucket: not found[bucket].records)
        return {bucket: found[bucket] for bucket in whole[:wanted]}

    async def _arrival(self, homes: Mapping[int, Store | None], cursor: _Cursor, *, away: bool) -> float:
        """Waits until all are at the other store, or all at home; returns seconds. Raises RehearsalFailed."""
        began = self._clock.monotonic()
        renewed = began
        wanted = cursor.buckets if away else ()
        while True:
            found = await self._look(cursor.buckets)
            left = sum((where.store is homes[bucket]) is away or where.store is None for bucket, where in found.items())
            now = self._clock.monotonic()
            if not left:
                return now - began
            if self._cache.current.rehearsal != wanted:
                raise RehearsalFailed("the setting was changed meanwhile; the buckets go where it says")
            if now - began > WAY_SECONDS:
                raise RehearsalFailed(f"{left} of {len(found)} buckets had not arrived after {WAY_SECONDS:g} s")
            if now - renewed > LEASE_SECONDS / 4:
                renewed = now
                if not await self._renew():
                    raise RehearsalFailed("another router has taken it over")
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self, buckets: Sequence[int]) -> dict[int, Where]:
        """Where these buckets are. Raises Away, Refused."""
        absences: dict[int, Store] = {}
        owned: dict[int, dict[Store, int]] = {bucket: {} for bucket in buckets}
        for store, client in self._around.stores.items():
            request = pb.ListAbsencesRequest(buckets=buckets)
            answer: pb.ListAbsencesResponse = await client.ask(client.replication.ListAbsences, request, BULK_SECONDS)
            for absence in answer.absences:
                if absence.owner == STORE_NUMBERS[store]:
                    absences[absence.bucket] = store
            digests: pb.DigestBucketsResponse = await client.ask(
                client.replication.DigestBuckets, pb.DigestBucketsRequest(buckets=buckets), BULK_SECONDS
            )
            for digest in digests.buckets:
                if digest.bucket in owned:
                    owned[digest.bucket][store] = digest.owned
        found = {}
        for bucket in buckets:
            at = absences.get(bucket)
            here = at is not None and not owned[bucket].get(at.other)
            found[bucket] = Where(at if here else None, sum(owned[bucket].values()))
        return found

    def _seen(self, name: str) -> Seen:
        told = [answered for answered in self._around.answered().values() if answered.watch == name]
        return Seen(sum(one.calls for one in told), sum(one.errors for one in told), sum(one.handoffs for one in told))

    async def _send_home(self, cursor: _Cursor) -> None:
        """Raises ControlUnavailable."""
        if not cursor.buckets or (await self._cache.refresh()).rehearsal != cursor.buckets:
            return
        # Outdated or IllegalMove: somebody has changed the setting between look and change; the loop looks again.
        await self._migration.end_rehearsal(Decision(cursor.by, "the rehearsal failed"))

    def _failed(self, cursor: _Cursor, note: str) -> Result:
        seen = self._seen(cursor.id)
        return Result(cursor.id, cursor.by, False, note, self._clock.now(), cursor.buckets, **seen._asdict())

    async def _finish(self, result: Result) -> None:
        cursor = replace(_Cursor.decode(self._progress.cursor), last=asdict(result))
        words = "passed" if result.passed else "failed"
        await self._save(
            replace(
                self._progress,
                running=False,
                done=self._progress.total if result.passed else 0,
                note=f"{words}: {result.note}",
                finished_seconds=result.finished_seconds,
            ),
            cursor,
        )

    async def _note(self, cursor: _Cursor, records: int, note: str) -> None:
        await self._save(replace(self._progress, running=True, total=records, note=note), cursor)

    async def _renew(self) -> bool:
        return await self._control.lease(LEASE, self._holder, LEASE_SECONDS)

    async def _load(self) -> Progress:
        self._progress = await self._control.progress(JOB) or Progress(JOB, False)
        _ = self.last_seconds_ago  # It grows from the first look.
        return self._progress

    async def _save(self, progress: Progress, cursor: _Cursor) -> None:
        progress = replace(progress, cursor=cursor.encode())
        await self._control.save(progress)
        self._progress = progress
