"""Tells each store how far the other one has come: so that a database that went back in time can be told so at its
start, also while the log is away."""

from __future__ import annotations

import asyncio

from libs.errors import BatonError
from libs.pb.baton.replication.v1 import recovery_pb2 as pb
from libs.tasks import Loop
from services.router.flows.stores import StoreClient, Stores

INTERVAL_SECONDS = 1.0
CALL_SECONDS = 2.0


class Witness:
    """Several routers may be one at once."""

    def __init__(self, stores: Stores) -> None:
        self.loop = Loop("witness", self._run)
        self._stores = stores
        self._told: dict[str, tuple[str, int]] = {}

    async def _run(self, loop: Loop) -> None:
        for client in self._stores.values():
            try:
                await self.tell(client)
            except BatonError:
                # A store that is away is shown by its status; it is asked again in a moment.
                continue
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)

    async def tell(self, client: StoreClient) -> None:
        """Nothing of a store that does not serve: it may be one that went back. Raises what the clients raise."""
        standing = await client.ask(client.recovery.GetStanding, pb.GetStandingRequest(), CALL_SECONDS)
        now = (standing.now.place, standing.now.changes)
        if not standing.serving or self._told.get(client.store) == now:
            return
        other = self._stores[client.store.other]
        await other.ask(other.recovery.NoteOther, pb.NoteOtherRequest(other=standing.now), CALL_SECONDS)
        self._told[client.store] = now
