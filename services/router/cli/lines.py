"""Views formatted as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from services.router.cli.views import View

MOST_CLIENTS = 5


def job_line(view: View) -> str:
    of = f" of {view['total']}" if view["total"] else ""
    parts = [view["state"], f"{view['done']}{of} {view['unit']}"]
    if view["state"] == "RUNNING":
        left = "" if view["eta_seconds"] is None else f", about {view['eta_seconds']:.0f} s left"
        parts.append(f"{view['rate']:.0f}/s{left}")
    if view["waits"]:
        parts.append(f"waits: {view['waits']}")
    return "; ".join([*parts, *([view["note"]] if view["note"] else [])])


def counts_line(view: View) -> str:
    left = ", ".join(f"{view[name]} {name}" for name in ("superseded", "dropped", "waiting") if view[name])
    lost = f"{view['lost']} of {view['checked']} acknowledged writes lost, {view['doubled']} done twice"
    return f"{lost}; {left}" if left else lost


def clients_lines(clients: Sequence[View]) -> str:
    """List the clients with the most recent calls; "" if there are none."""
    last = sorted(clients, key=lambda client: float(client["idle_seconds"]))
    shown = [
        f"{client['name']}, at the {client['at'].replace('store', 'listener of store')}, schema version"
        f" {client['schema_version']}: {client['calls']} calls, the last one {client['idle_seconds']:.0f} s ago"
        for client in last[:MOST_CLIENTS]
    ]
    if len(last) > MOST_CLIENTS:
        shown.append(f"and {len(last) - MOST_CLIENTS} more: baton clients")
    return "\n".join(shown)
