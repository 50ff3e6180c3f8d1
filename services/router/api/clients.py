"""Of the status: the clients that must change something before the old service or an old schema version can end."""

from __future__ import annotations

from libs.clock import Clock
from libs.ownership.model import Store
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.clients import Clients
from services.router.flows.clients import Views


def fill_clients(answer: pb.GetStatusResponse, views: Views, own: Clients, clock: Clock) -> None:
    """Those that call a store directly, and those of this router."""
    for store in Store:
        status = views.view(store).status
        for client in status.clients if status is not None else ():
            answer.clients.add(client=client, store=STORE_NUMBERS[store])
    now = clock.monotonic()
    for seen in own.seen():
        client = answer.clients.add().client
        client.name, client.schema_version, client.calls = seen.name, seen.schema_version, seen.calls
        client.idle_seconds = now - seen.last_at
