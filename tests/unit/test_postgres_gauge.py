"""The depth of PostgreSQL's outbox while changes fall into a count of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

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
