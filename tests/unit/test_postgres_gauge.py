"""The depth of PostgreSQL's outbox while changes fall into a count of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from libs.ownership.errors import OutboxFull
from libs.store import engine
from libs.store.limits import OutboxLimits
from libs.store.transaction import Transaction
from services.service_layer.store.postgres_context import Gauge
from services.service_layer.store.postgres_pool import Pool
from services.service_layer.store.postgres_transaction import PostgresTransactions


class Database:
    """An outbox. `meanwhile` runs after a count has its snapshot and before its answer arrives."""

    def __init__(self) -> None:
        self.entries = 0
        self.counts = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        return await work(self)

    async def execute(self, _: str) -> None: ...

    async def fetchrow(self, _: str) -> dict[str, float]:
        self.counts += 1
        row = {"entries": self.entries, "bytes": self.entries * 10, "age": 0.0}
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return row


async def test_a_commit_that_falls_into_a_count_is_not_lost() -> None:
    database = Database()
    gauge = Gauge(cast(Pool, database))

    def commit() -> None:
        database.entries += 3
        gauge.added(3, 30)

    database.meanwhile = commit
    assert (await gauge.recent())[:2] == (3, 30)
    assert (await gauge.depth())[:2] == (3, 30)
    await gauge.close()


async def test_a_write_is_not_refused_for_a_change_that_fell_into_the_count() -> None:
    fits = partial(OutboxLimits(entries=4).fits, size=10)
    for change, before, counted in ((Gauge.added, 3, 5), (Gauge.removed, 5, 5)):
        database = Database()
        gauge = Gauge(cast(Pool, database))
        database.entries, database.meanwhile = before, partial(change, gauge, 2, 20)
        assert (await gauge.recent()).entries == counted
        assert not fits(await gauge.recent())
        database.entries = 3
        assert fits(await gauge.before_refusal(fits))
        assert database.counts == 2
        await gauge.close()


async def test_an_outbox_that_is_full_without_doubt_is_not_counted_for_each_refusal() -> None:
    database = Database()
    gauge = Gauge(cast(Pool, database))
    fits = partial(OutboxLimits(entries=4).fits, size=10)
    database.entries, database.meanwhile = 9, lambda: gauge.added(1, 10)
    assert not fits(await gauge.recent())
    for _ in range(3):
        assert (await gauge.before_refusal(fits)).entries == 10
    assert database.counts == 1
    await gauge.close()


async def test_a_transaction_that_was_refused_in_doubt_runs_once_more() -> None:
    database = Database()
    gauge = Gauge(cast(Pool, database))
    context: Any = SimpleNamespace(gauge=gauge, requests=database, apply=database, control=database)
    seen: list[int] = []

    async def procedure(tx: Transaction) -> None:
        depth = await tx.depth()
        seen.append(depth.entries)
        if depth.entries >= 4:
            raise engine.full(depth)

    database.entries, database.meanwhile = 3, lambda: gauge.added(2, 20)
    await gauge.depth()
    await PostgresTransactions(context).run(procedure)
    assert seen == [5, 3]
    database.entries = 9
    await Gauge._count(gauge)
    with pytest.raises(OutboxFull):
        await PostgresTransactions(context).run(procedure)
    assert seen == [5, 3, 9]
    await gauge.close()


async def test_a_depth_is_counted_again_if_a_change_fell_into_the_count() -> None:
    database = Database()
    gauge = Gauge(cast(Pool, database))
    database.entries = 5

    def acknowledge() -> None:
        database.entries -= 2
        gauge.removed(2, 20)

    database.meanwhile = acknowledge
    await gauge.depth()
    assert (await gauge.depth())[:2] == (3, 30)
    assert (await gauge.depth())[:2] == (3, 30)
    assert database.counts == 2
