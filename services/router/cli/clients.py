"""`baton clients`: clients that must change before the old service, or an old schema version, can end."""

from __future__ import annotations

import typer

from services.router.cli.options import Common, command


def register(app: typer.Typer) -> None:
    command(app, "clients", Common)(list_clients)


def list_clients(options: Common) -> None:
    """List clients that call a store directly, or with an old schema version:
    each must change before A, or that version, can end.

    \b
    JSON keys: clients: list of name at schema_version calls idle_seconds
    at: router, store A or store B. The most recent caller comes first.
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show
    from services.router.cli.client import control
    from services.router.cli.views import client_view

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
