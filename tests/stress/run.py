"""A run: clients call repeatedly, a nemesis delivers any message at any time, and in the end the system heals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from uuid import UUID

from libs.errors import BatonError
from libs.ownership.errors import NotOwner
from libs.ownership.model import BulkRelease, Record, Store, bucket_of
from libs.ownership.wire import read_bulk, record_of_event
from libs.proving.history.history import Call, Outcome
from libs.store.inspection import ExportQuery
from libs.store.outbox import ChangeEntry
from libs.store.port import StorePorts
from tests.contracts.store_adapters import word_of
from tests.stress.calls import REFUSALS, Write, names
from tests.stress.coordinator import Coordinator, Stopped, Unknown

CLIENTS = 8
BUCKETS = 6
HOT = 2
"""Names of each bucket that are used again and again."""
FRESH = 40
"""Names of each bucket that are seldom used, so that there are always some that do not exist."""
ATTEMPTS = 4
WEIGHTS = {"update": 5, "create": 4, "delete": 2}


@dataclass
class Run:
    stores: Mapping[Store, StorePorts]
    seed: int
    calls_of_each: int
    history: list[Call] = field(default_factory=list)
    events: dict[bytes, Record] = field(default_factory=dict)
    """Every event that was ever pulled."""
    bulk: dict[bytes, BulkRelease] = field(default_factory=dict)
    """Every bulk release that was ever pulled or answered, by its event."""
    taken: int = 0
    """Records that a store has taken from a bulk release."""
    foreign: list[Record | BulkRelease] = field(default_factory=list)
    """Events that were pulled from another store than the one that made the version."""

    def __post_init__(self) -> None:
        self.chance = Random(self.seed)
        self.coordinator = Coordinator(self.stores, self.chance)
        self.groups = names(BUCKETS, HOT + FRESH)
        self.keys = [key for group in self.groups for key in group]
        self._times = count()
        self._turns = asyncio.Semaphore(0)

    async def play(self) -> None:
        """Everything up to the moment when nothing is on its way any more."""
        nemeses = [asyncio.ensure_future(self._nemesis()) for _ in range(2)]
        clients = [asyncio.ensure_future(self._client(number)) for number in range(CLIENTS)]
        try:
            await asyncio.gather(*clients)
        finally:
            for task in (*nemeses, *clients):
                task.cancel()
            ended = await asyncio.gather(*nemeses, *clients, return_exceptions=True)
        for end in ended:
            if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
                raise end
        await self.heal()

    # Clients

    async def _client(self, number: int) -> None:
        for turn in range(self.calls_of_each):
            key = self._any_key()
            if self.chance.random() < 0.35:
                await self._get(number, key)
                continue
            (method,) = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
            request = str(UUID(int=self.chance.getrandbits(128), version=4))
            write = Write(method, key, request, f"{number}.{turn}")
            for _ in range(ATTEMPTS):
                outcome = await self._attempt(number, write)
                # A few ask again although they know.
                if outcome is Outcome.FAILED or (outcome is Outcome.OK and self.chance.random() < 0.9):
                    break

    async def _attempt(self, client: int, write: Write) -> Outcome:
        self._turns.release()  # One act of the nemesis for one attempt of a client.
        start, value = next(self._times), write.value if write.method != "delete" else None
        end: int | None = None
        outcome, reason, revision = Outcome.UNKNOWN, "", None
        try:
            revision = await self.coordinator.write(write)
            outcome, end = Outcome.OK, next(self._times)
        except REFUSALS as refusal:
            outcome, reason, end = Outcome.FAILED, refusal.reason, next(self._times)
        except Unknown:
            pass
        self.history.append(
            Call(client, start, write.method, write.key, write.request_id, start, end, outcome, reason, value, revision)
        )
        return outcome

    async def _get(self, client: int, key: str) -> None:
        start = next(self._times)
        try:
            row = await self.coordinator.read(key)
        except BatonError:
            return  # No answer says nothing.
        live = row is not None and row.live
        value = word_of(row.payload) if row is not None and live else None
        revision = row.write_version if row is not None and live else None
        end = next(self._times)
        self.history.append(
            Call(client, start, "get", key, None, start, end, Outcome.OK, "", value, revision),
        )

    def _any_key(self) -> str:
        group = self.chance.choice(self.groups)
        return self.chance.choice(group[:HOT] if self.chance.random() < 0.7 else group)

    # Nemesis

    async def _nemesis(self) -> None:
        acts: list[Callable[[], Awaitable[None]]] = [
            self._collect,
            self._deliver,
            self._deliver,
            self._export,
            self._copy,
            self._move_bucket,
            self._give_up_records,
            self._give_up_in_bulk,
            self._carry_out_late,
        ]
        while True:
            await self._turns.acquire()
            await self.coordinator.pause()
            with suppress(Stopped, BatonError):
                await self.chance.choice(acts)()

    async def _collect(self) -> None:
        """Collect like a relay; some of the acknowledgements are lost."""
        store = self._any_store()
        changes = await store.outbox.pull(self.chance.randrange(1, 20), 0)
        self._learn(store.store, changes)
        await self.coordinator.pause()
        if self.chance.random() < 0.7:
            await store.outbox.ack([(change.key, change.version) for change in changes])

    def _learn(self, store: Store, changes: Sequence[ChangeEntry]) -> None:
        for change in changes:
            if (bulk := read_bulk(change.key, change.event)) is not None:
                self.bulk[change.event] = bulk
                if bulk.origin is not store:
                    self.foreign.append(bulk)
                continue
            record = self.events.setdefault(change.event, record_of_event(change.event))
            if record.origin is not store:
                self.foreign.append(record)

    async def _deliver(self) -> None:
        """Anything ever sent, in any order, to either store, again and again."""
        sent = [*self.events.values(), *self.coordinator.parcels]
        if sent:
            await self._any_store().transfers.apply(self.chance.choices(sent, k=4))
        if self.bulk:
            await self._take(self.chance.choice(list(self.bulk.values())))

    async def _take(self, bulk: BulkRelease) -> None:
        self.taken += (await self.stores[bulk.to].transfers.take(bulk)).taken

    async def _export(self) -> None:
        store = self._any_store()
        bucket = bucket_of(self._any_key())
        records, _ = await store.inspection.export(ExportQuery(buckets=(bucket,)))
        await self.coordinator.pause()
        await self.stores[store.store.other].transfers.apply(records)

    async def _copy(self) -> None:
        store = self._any_store().store
        await self.coordinator.copy(sorted({self._any_key() for _ in range(3)}), store)

    async def _move_bucket(self) -> None:
        await self.coordinator.move_bucket(bucket_of(self._any_key()), self._any_store().store)

    async def _give_up_records(self) -> None:
        """The first half of a handoff of several records; another coordinator may copy meanwhile."""
        store = self._any_store()
        keys = sorted({self._any_key() for _ in range(3)})
        released = await store.transfers.release(keys, store.store.other, create=self.chance.random() < 0.3)
        self.coordinator.parcels += [result.record for result in released.results if result.record]
        if self.chance.random() < 0.5:
            await self.coordinator.copy(keys, store.store.other)

    async def _give_up_in_bulk(self) -> None:
        """The first half of a bulk move; its answer may be lost."""
        store, bucket = self._any_store(), bucket_of(self._any_key())
        released = await store.transfers.release_bulk([bucket], store.store.other)
        bulk = read_bulk("", released.event)
        if bulk is not None and self.chance.random() < 0.5:
            await self.coordinator.pause()
            await self._take(bulk)

    async def _carry_out_late(self) -> None:
        late = self.coordinator.late
        if late:
            store, write = late.pop(self.chance.randrange(len(late)))
            with suppress(NotOwner, *REFUSALS):
                await write.carry_out(self.stores[store])

    def _any_store(self) -> StorePorts:
        return self.stores[self.chance.choice(list(Store))]

    # The end of all trouble

    async def heal(self) -> None:
        """Late requests arrive or are lost for good, every event arrives everywhere, every move is finished."""
        self.coordinator.trouble = 0.0
        while self.coordinator.late:
            with suppress(BatonError):
                await self._carry_out_late()
        await _persist(self.drain)
        await _persist(self.bring_home)
        for bucket in sorted({bucket_of(key) for key in self.keys}):
            await _persist(partial(self.coordinator.finish_bucket, bucket))
        await _persist(self.drain)

    async def drain(self) -> None:
        """Empties both outboxes, then delivers every event ever made to both stores, in any order."""
        for store in self.stores.values():
            while changes := await store.outbox.pull(500, 0):
                self._learn(store.store, changes)
                await store.outbox.ack([(change.key, change.version) for change in changes])
        for store in self.stores.values():
            sent = list(self.events.values())
            self.chance.shuffle(sent)
            for start in range(0, len(sent), 200):
                await store.transfers.apply(sent[start : start + 200])
        for bulk in self.chance.sample(list(self.bulk.values()), len(self.bulk)):
            await self._take(bulk)

    async def bring_home(self) -> None:
        """Release records that no store owns again, whole, as the mover does."""
        for store in self.stores.values():
            there = self.stores[store.store.other]
            for start in range(0, len(self.keys), 100):
                keys = self.keys[start : start + 100]
                for here, other in zip(
                    await store.records.read_many(keys), await there.records.read_many(keys), strict=True
                ):
                    if here.row is not None and here.row.owner is there.store and here.version > other.version:
                        released = await store.transfers.release([here.key], there.store, create=False)
                        await there.transfers.apply([one.record for one in released.results if one.record is not None])


async def _persist(work: Callable[[], Awaitable[None]]) -> None:
    """Does it again, a few times, while a store is busy or away."""
    for _ in range(9):
        with suppress(BatonError):
            return await work()
    return await work()
