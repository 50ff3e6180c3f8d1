"""Clients that must change something before the old service, or an old schema version, can end: `baton clients`, and
the line of `baton status` about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from services.router.cli.options import Common, command

if TYPE_CHECKING:
    from libs.pb.baton.control.v1 import control_pb2 as pb

MOST_SHOWN = 5


def register(app: typer.Typer) -> None:
    command(app, "clients", Common)(list_clients)


def list_clients(options: Common) -> None:
    """List clients that call a store directly, or with an old schema version:
    each must change before A, or that version, can end.

    \b
    JSON keys: clients: list of name at schema_version calls idle_seconds
    at: router, store A or store B. The last to call is the first.
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show
    from services.router.cli.client import control

    with control(options) as router:
        status = router.call("GetStatus", pb.GetStatusRequest())
    clients = sorted(map(client_view, status.clients), key=lambda client: float(client["idle_seconds"]))
    if options.json:
        show.print_json({"clients": clients})
    elif not clients:
        show.show("no client calls a store directly, or with an old schema version")
    else:
        table = show.table_of("client", "calls at", "schema", "calls", "last call")
        for client in clients:
            idle = f"{client['idle_seconds']:.0f} s ago"
            table.add_row(client["name"], client["at"], str(client["schema_version"]), str(client["calls"]), idle)
        show.show(table)


def client_view(status: pb.ClientStatus) -> dict[str, Any]:
    from libs.ownership.wire import STORES

    client = status.client
    return {
        "name": client.name,
        "at": f"store {STORES[status.store]}" if status.store else "router",
        "schema_version": client.schema_version,
        "calls": client.calls,
        "idle_seconds": round(client.idle_seconds, 3),
    }


def clients_lines(clients: Sequence[dict[str, Any]]) -> str:
    """For people, those that called last; "" when there are none."""
    last = sorted(clients, key=lambda client: float(client["idle_seconds"]))
    shown = [
        f"{client['name']}, at the {client['at'].replace('store', 'listener of store')}, schema version"
        f" {client['schema_version']}: {client['calls']} calls, the last one {client['idle_seconds']:.0f} s ago"
        for client in last[:MOST_SHOWN]
    ]
    if len(last) > MOST_SHOWN:
        shown.append(f"and {len(last) - MOST_SHOWN} more: baton clients")
    return "\n".join(shown)
