"""Changes on their way to the log, on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from libs.ownership.model import Version
from libs.store.limits import PULL_BYTES
from libs.store.outbox import ChangeEntry, Depth
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_pool import Connection
from services.service_layer.store.postgres_rows import columnar

_FIRST_POLL_SECONDS = 0.005
_LAST_POLL_SECONDS = 0.1


class PostgresOutbox:
    """`libs.store.port.Outbox`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def pull(
        self, limit: int, wait_seconds: float, without: Collection[tuple[str, Version]] = ()
    ) -> list[ChangeEntry]:
        """Commits of this process end the wait at once. Commits of other processes are found by polling: after 5 ms at
        first, because writes may wait until the log has their events, then less often, down to every 100 ms.

        NOTIFY would serialize all writers: at commit it takes one lock for the whole server.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        pause = _FIRST_POLL_SECONDS
        changed = self._context.gauge.changed
        while True:
            changed.clear()
            entries = await self._pull(limit, without)
            left = deadline - loop.time()
            if entries or left <= 0:
                return entries
            try:
                async with asyncio.timeout(min(pause, left)):
                    await changed.wait()
            except TimeoutError:
                pause = min(pause * 1.5, _LAST_POLL_SECONDS)

    async def ack(self, changes: Sequence[tuple[str, Version]]) -> int:
        if not changes:
            return 0
        # Sorted, so that two processes that acknowledge the same entries do not deadlock.
        names = sorted({(key.encode(), version) for key, version in changes})
        rows = [(key.decode(), *version) for key, version in names]

        async def work(connection: Connection) -> list[int]:
            return [row["bytes"] for row in await connection.fetch(sql.ACK, *columnar(rows, 3))]

        removed = await self._context.apply.run(work)
        self._context.gauge.removed(len(removed), sum(removed))
        return len(removed)

    async def unlogged(self, changes: Sequence[tuple[str, Version]]) -> set[tuple[str, Version]]:
        if not changes:
            return set()
        rows = [(key, *version) for key, version in changes]

        async def work(connection: Connection) -> set[tuple[str, Version]]:
            found = await connection.fetch(sql.UNLOGGED, *columnar(rows, 3))
            return {(row["key"], Version(row["term"], row["revision"])) for row in found}

        return await self._context.apply.run(work)

    async def depth(self) -> Depth:
        return await self._context.gauge.depth()

    async def _pull(self, limit: int, without: Collection[tuple[str, Version]]) -> list[ChangeEntry]:
        async def work(connection: Connection) -> list[ChangeEntry]:
            rows = await connection.fetch(sql.PULL, limit + len(without), PULL_BYTES)
            entries = [
                ChangeEntry(row["key"], Version(row["term"], row["revision"]), row["event"], row["traceparent"])
                for row in rows
            ]
            return [one for one in entries if (one.key, one.version) not in without][:limit]

        return await self._context.apply.run(work)
