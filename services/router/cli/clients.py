"""Clients that must change something before the old service, or an old schema version, can end: as `baton status`
shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from libs.ownership.wire import STORES
from libs.pb.baton.control.v1 import control_pb2 as pb

MOST_SHOWN = 5


def client_view(status: pb.ClientStatus) -> dict[str, Any]:
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
        shown.append(f"and {len(last) - MOST_SHOWN} more: baton status -o json")
    return "\n".join(shown)
