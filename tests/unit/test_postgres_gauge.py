"""The depth of PostgreSQL's outbox while changes fall into a count of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

from libs.store.limits import OutboxLimits
from services.service_layer.store.postgres_context import Gauge
from services.service_layer.store.postgres_pool import Pool


class Database:
    """An outbox. `meanwhile` runs after a count has its snapshot and before its answer arrives."""

    def __init__(self) -> None:
        self.entries = 0
        self.counts = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        return await work(self)

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
