"""Of the status: the clients that must change something before the old service or an old schema version can end."""

from __future__ import annotations

from collections.abc import Sequence

from libs.clock import Clock
from libs.ownership.model import Store
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.clients import Clients
from services.router.flows.steering.report import OldClient
from services.router.flows.stores import StoreViews


def fill_clients(answer: pb.GetStatusResponse, views: StoreViews, at_routers: Sequence[OldClient]) -> None:
    """Those that call a store directly, and those of all routers."""
    for store in Store:
        status = views.view(store).status
        for client in status.clients if status is not None else ():
            answer.clients.add(client=client, store=STORE_NUMBERS[store])
    for seen in at_routers:
        client = answer.clients.add().client
        client.name, client.schema_version, client.calls = seen.name, seen.schema_version, seen.calls
        client.idle_seconds = seen.idle_seconds


def old_clients(own: Clients, clock: Clock) -> list[OldClient]:
    """Those of this router, for its report."""
    now = clock.monotonic()
    return [OldClient(seen.name, seen.schema_version, seen.calls, now - seen.last_at) for seen in own.seen()]
