"""A router's calls and handoffs, step by step, at the stores' ports, and its failures.

The steps are those of the router's own flows. Between any two of them other tasks run, and at each one this router may
be slow, lose an answer, give a request up, or stop for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from libs.errors import BatonError
from libs.ownership.errors import NotOwner
from libs.ownership.model import Outcome, Record, Row, Store, Version, bucket_of
from libs.ownership.rules import read_as_owner
from libs.store.inspection import ExportQuery
from libs.store.port import StorePorts
from libs.store.window import made_by
from tests.stress.calls import REFUSALS, Write

ROUNDS = 3


class Unknown(Exception):
    """The caller cannot know whether the write has happened or will."""


class Stopped(Exception):
    """The coordinator stopped half way."""


class Fate(Enum):
    """The fate of one request on its way to a store."""

    ANSWERED = "answered"
    LOST = "it never arrives"
    LATE = "it is carried out some time after it was given up"
    CANCELLED = "its caller leaves in the middle"
    UNANSWERED = "it is carried out, and the answer is lost"


TROUBLE = (Fate.LOST, Fate.LATE, Fate.CANCELLED, Fate.UNANSWERED)


@dataclass
class Coordinator:
    stores: Mapping[Store, StorePorts]
    chance: Random
    trouble: float = 0.15
    """How probable trouble is at each step."""
    late: list[tuple[Store, Write]] = field(default_factory=list)
    """Requests that were given up and are still on their way."""
    parcels: list[Record] = field(default_factory=list)
    """Records that were released, or copied, and may be adopted at any time."""

    async def write(self, write: Write) -> Version:
        """The version that the request made. Raises REFUSALS, which are final, and Unknown."""
        to = self._any_store()
        for _ in range(ROUNDS):
            try:
                return await self._send(to, write)
            except NotOwner:
                here = await self._bring(write, to)
            except Unknown:
                return await self._write_elsewhere(to.other, write)
            if not here:
                with suppress(NotOwner):
                    return await self._send(to.other, write)
        raise Unknown

    async def _write_elsewhere(self, store: Store, write: Write) -> Version:
        try:
            return await self._send(store, write)
        except (NotOwner, *REFUSALS):
            raise Unknown from None

    async def _send(self, to: Store, write: Write) -> Version:
        await self.pause()
        fate = self.chance.choice(TROUBLE) if self.chance.random() < self.trouble else Fate.ANSWERED
        if fate is Fate.LATE:
            self.late.append((to, write))
        if fate in (Fate.LOST, Fate.LATE):
            raise Unknown
        task = asyncio.ensure_future(write.carry_out(self.stores[to]))
        if fate is Fate.CANCELLED:
            await self.pause()
            task.cancel()
        try:
            outcome = await task
        except (NotOwner, *REFUSALS):
            if fate is Fate.ANSWERED:
                raise
            raise Unknown from None
        except BatonError:
            raise Unknown from None
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise Unknown from None
        if fate is not Fate.ANSWERED:
            raise Unknown
        return outcome.version

    async def read(self, key: str) -> Row | None:
        """A strict read: the owner's answer; if both stores deny, the row of the higher version."""
        to = self._any_store()
        for store in (to, to.other):
            await self.pause()
            with suppress(NotOwner):
                return read_as_owner(await self.stores[store].records.read(key), store)
        found = []
        for store in self.chance.sample(list(Store), 2):
            await self.pause()
            found.append(await self.stores[store].records.read(key))
        return max(found, key=lambda each: each.version).row

    async def _bring(self, write: Write, to: Store) -> bool:
        """Says whether the record, or its bucket's owner, may be at `to` now."""
        try:
            return await self.bring(write.key, to, create=write.may_create)
        except (Stopped, BatonError):
            return False

    async def bring(self, key: str, to: Store, *, create: bool) -> bool:
        await self.pause()
        released = await self.stores[to.other].transfers.release([key], to, create=create)
        result = released.results[0]
        if result.outcome is Outcome.NOT_OWNED:
            await self.finish_bucket(bucket_of(key))
            return True
        if result.record is None:
            return False
        self.parcels.append(result.record)
        await self.step()
        await self.stores[to].transfers.apply([result.record])
        return True

    async def move_bucket(self, bucket: int, to: Store) -> None:
        await self._copy_missing(bucket, to)
        await self.step()
        await self.stores[to.other].transfers.release_bucket(bucket, to)
        await self.step()
        await self.finish_bucket(bucket)

    async def finish_bucket(self, bucket: int) -> None:
        found = {}
        for store in self.chance.sample(list(Store), 2):
            found[store] = (await self.stores[store].transfers.bucket_owners([bucket]))[0]
            await self.step()
        if any(bucket_owner.owner is store for store, bucket_owner in found.items()):
            return
        releaser = max(found, key=lambda store: found[store].version)
        if not await self._copy_missing(bucket, releaser.other):
            return
        await self.step()
        if self.chance.random() < self.trouble:
            # As a target with open conflicts does. Some later call finishes the way back.
            await self.stores[releaser.other].transfers.return_bucket(found[releaser])
            return
        await self.stores[releaser.other].transfers.adopt_bucket(found[releaser])

    async def _copy_missing(self, bucket: int, to: Store) -> bool:
        keys = await self._keys(to.other, bucket)
        await self.step()
        known = set(await self._keys(to, bucket))
        return await self.copy([key for key in keys if key not in known], to)

    async def copy(self, keys: Sequence[str], to: Store) -> bool:
        """Says whether all that the other store has of these was handed over."""
        await self.step()
        given_up: list[str] = []
        for found in await self.stores[to.other].records.read_many(keys):
            if found.row is None:
                continue
            if found.row.owner is to:
                given_up.append(found.key)
                continue
            await self._hand_over([Record(found.row, (), made_by(found.row), 0.0)], to)
        for key in given_up:
            released = await self.stores[to.other].transfers.release([key], to, create=False)
            record = released.results[0].record
            if record is None:
                return False
            await self._hand_over([record], to)
        return True

    async def _hand_over(self, records: Sequence[Record], to: Store) -> None:
        self.parcels.extend(records)
        await self.step()
        await self.stores[to].transfers.apply(records)

    async def _keys(self, store: Store, bucket: int) -> list[str]:
        records, more = await self.stores[store].inspection.export(
            ExportQuery(buckets=(bucket,), keys_only=True, limit=1000)
        )
        assert not more
        return [record.row.key for record in records]

    async def step(self) -> None:
        """Between two steps of a move. Raises Stopped."""
        await self.pause()
        if self.chance.random() < self.trouble:
            raise Stopped

    async def pause(self) -> None:
        """Others may run."""
        for _ in range(self.chance.randrange(5)):
            await asyncio.sleep(0)

    def _any_store(self) -> Store:
        return self.chance.choice(list(Store))
