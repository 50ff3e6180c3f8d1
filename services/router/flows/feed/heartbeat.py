"""Reports each store's position to the other store.

So a store whose database was restored from a backup can detect that at its start, even while the log is unavailable.
"""

from __future__ import annotations

import asyncio

from libs.errors import BatonError
from libs.pb.baton.replication.v1 import recovery_pb2 as pb
from libs.tasks import Loop
from services.router.flows.stores import StoreClient, Stores

INTERVAL_SECONDS = 1.0
CALL_SECONDS = 2.0


class PositionReporter:
    """The reporter of positions. Several routers may run it at once."""

    def __init__(self, stores: Stores) -> None:
        self.loop = Loop("position reports", self._run)
        self._stores = stores
        self._reported: dict[str, tuple[str, int]] = {}

    async def _run(self, loop: Loop) -> None:
        for client in self._stores.values():
            try:
                await self.report(client)
            except BatonError:
                # The status shows an unreachable store; the next round asks it again.
                continue
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)

    async def report(self, client: StoreClient) -> None:
        """Report the position of a store to the other one. Raises the errors of the clients.

        A store that does not serve is left out: its database may have been restored.
        """
        standing = await client.ask(client.recovery.GetStanding, pb.GetStandingRequest(), CALL_SECONDS)
        now = (standing.now.database, standing.now.changes)
        if not standing.serving or self._reported.get(client.store) == now:
            return
        other = self._stores[client.store.other]
        await other.ask(other.recovery.NoteOther, pb.NoteOtherRequest(other=standing.now), CALL_SECONDS)
        self._reported[client.store] = now
