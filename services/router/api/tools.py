"""What an agent may ask a router beside the contract's calls: where the migration is, and where a call would go.

They only look, so they are at the public listener, without the control listener's token. What changes the migration is
at the control listener alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from libs.http.gateway import Gateway
from libs.http.tools import Tool
from libs.ownership.model import Store
from libs.ownership.wire import STORES
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.gate import Handler
from libs.rpc.server import raw_service
from services.router.api.control import SERVICE, Parts, control_service

_OUT_OF_DATE = "The control store is out of reach: this is as it was when it answered last."


def router_tools(parts: Parts, gateway: Gateway) -> Iterator[Tool]:
    handlers = raw_service(control_service(parts)).methods
    yield _tool("migration_status", "GetStatus", handlers["GetStatus"], gateway, status_text)
    yield _tool("explain_route", "Explain", handlers["Explain"], gateway, route_text)


def _tool(name: str, method: str, handler: Handler, gateway: Gateway, text: Any) -> Tool:
    request, reply = getattr(pb, f"{method}Request"), getattr(pb, f"{method}Response")
    return Tool(
        name=name,
        full_name=f"{SERVICE}.{method}",
        request=lambda _: request,
        reply=lambda _: reply,
        answer=partial(gateway.run, handler, name),
        text=text,
    )


def status_text(status: pb.GetStatusResponse) -> str:
    setting = status.setting
    held = ", and all traffic is held at A since a rollback" if setting.hold else ""
    at_b = status.buckets_at_b
    lines = [
        f"The migration from store A to store B is in phase {_phase(setting.phase)} (generation"
        f" {setting.generation}){held}.",
        f"B has {at_b if at_b >= 0 else 'an unknown number'} of {status.buckets} buckets of records;"
        f" {status.buckets_to_b} are meant to be there.",
        *(_store(store) for store in status.stores),
        f"Next phase: {_phase(status.next)}; {'blocked by ' + status.blocked if status.blocked else 'it is open'}."
        if status.next
        else f"There is no next phase: {status.blocked or 'the migration has ended'}.",
        f"Going back: {status.rollback_note}.",
        *(f"A person must look at this: {alert}." for alert in status.alerts),
    ]
    if status.setting_stale:
        lines.append(_OUT_OF_DATE)
    return "\n".join(lines)


def _store(status: pb.StoreStatus) -> str:
    name = STORES[status.store].value
    if not status.reachable:
        return f"Store {name} is out of reach: {status.note}."
    serves = "serves" if status.serving else f"does not serve ({status.note})"
    lag = f", {status.lag_events} events behind" if status.lag_events > 0 else ""
    return f"Store {name} {serves}: it owns {status.owned_records} of its {status.records} records{lag}."


def route_text(answer: pb.ExplainResponse) -> str:
    lines = [
        f"The call goes to store {STORES[answer.target].value}, because {answer.because}.",
        *(_row(row) for row in answer.rows),
        f"Then: {answer.then}.",
    ]
    if answer.setting_stale:
        lines.append(_OUT_OF_DATE)
    return "\n".join(lines)


def _row(row: pb.ExplainResponse.Row) -> str:
    name = STORES[row.store].value
    owner = STORES.get(row.owner)
    if row.trouble:
        return f"Store {name} cannot be asked: {row.trouble}."
    owned = f"owned by {owner.value}" if isinstance(owner, Store) else "without an owner, on its way between stores"
    if not row.exists:
        return f"Store {name} has no such record; the right to create it is {owned}."
    state = "" if row.live else " as deleted"
    version = f"{row.version.term}.{row.version.revision}"
    return f"Store {name} has the record{state} in version {version}, {owned}."


def _phase(number: pb.Phase.ValueType) -> str:
    return pb.Phase.Name(number).removeprefix("PHASE_")
