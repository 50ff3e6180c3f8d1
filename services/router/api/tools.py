"""A router's MCP tools besides the contract's calls: the state of the migration, and the routing of a call.

A tool is a call of the operator's API, so its caller is authenticated as the control listener authenticates: with the
credentials of an operator, in addition to those that the public listener requires. A role in a token of the public
issuer gives nothing here. Without authentication the control listener is for this machine alone, but clients may come
from others: then the tools are for clients who reach all records.

The tools are read-only and leave out the names of people, clients, routers and hosts, and the texts of errors. `baton
status` and `baton explain` show those by the control listener.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from libs.http.gateway import Gateway
from libs.http.tools import Tool
from libs.identity.port import Credentials
from libs.identity.principal import Principal, current, current_principal
from libs.ownership.model import Store
from libs.ownership.wire import STORES
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from libs.rpc.gate import Handler
from libs.rpc.server import TypedService, raw_service
from services.router.api.control import SERVICE
from services.router.api.roles import RoleMissing

_PUBLIC = FieldMask(
    paths=[
        "setting",
        "setting_stale",
        "buckets",
        "buckets_at_b",
        "buckets_to_b",
        "permille_at_b",
        "settled",
        "next",
        "handoffs",
        "stale_reads",
        "unavailable",
        "rollback_cost.possible",
        "rollback_cost.records",
        "rollback_cost.seconds",
        "rollback_cost.writes_lost",
    ]
)
_PUBLIC_OF_STORE = FieldMask(
    paths=["store", "reachable", "serving", "records", "owned_records", "owned_buckets", "lag_events", "lag_seconds"]
)

_OUT_OF_DATE = "The control store is out of reach: this is its last known state."


Authenticate = Callable[[Credentials], Awaitable[Principal]]


async def as_client(credentials: Credentials) -> Principal:
    """The authentication for a control listener without one. Raises RoleMissing."""
    client = current_principal()
    if client.reachable is not None:
        raise RoleMissing("operators are not authenticated here (control_auth), so this tool needs the role admin")
    return client


def router_tools(control: TypedService, authenticate: Authenticate, gateway: Gateway) -> Iterator[Tool]:
    """`control`: the operator's API. `authenticate`: that of its listener."""
    methods = raw_service(control).methods

    async def call(name: str, request: bytes, context: Context) -> bytes:
        """Call the method as the operator whose credentials the call has. Raises Unauthenticated, RoleMissing."""
        public = current.set(await authenticate(context))
        try:
            return await methods[name](request, context)
        finally:
            current.reset(public)

    async def status(request: bytes, context: Context) -> bytes:
        found = pb.GetStatusResponse.FromString(await call("GetStatus", request, context))
        return public_status(found).SerializeToString()

    async def route(request: bytes, context: Context) -> bytes:
        answer = pb.ExplainResponse.FromString(await call("Explain", request, context))
        for flag in answer.flags:
            flag.ClearField("trouble")
        return answer.SerializeToString()

    yield _tool("migration_status", "GetStatus", status, gateway, status_text)
    yield _tool("explain_route", "Explain", route, gateway, route_text)


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


def public_status(status: pb.GetStatusResponse) -> pb.GetStatusResponse:
    """The part of a status that is for every client."""
    found = pb.GetStatusResponse()
    _PUBLIC.MergeMessage(status, found)
    for store in status.stores:
        _PUBLIC_OF_STORE.MergeMessage(store, found.stores.add())
    for gate in status.gates:
        found.gates.add(name=gate.name, sentence=gate.sentence, verdict=gate.verdict)
    return found


def status_text(status: pb.GetStatusResponse) -> str:
    setting = status.setting
    held = ", and all traffic is held at A since a rollback" if setting.hold else ""
    at_b = status.buckets_at_b if status.HasField("buckets_at_b") else "an unknown number"
    lines = [
        f"The migration from store A to store B is in phase {_phase(setting.phase)} (generation"
        f" {setting.generation}){held}.",
        f"B has {at_b} of {status.buckets} buckets of records; {status.buckets_to_b} are meant to be there.",
        *(_store(store) for store in status.stores),
        _next(status),
        _rollback(status.rollback_cost),
    ]
    if status.setting_stale:
        lines.append(_OUT_OF_DATE)
    return "\n".join(lines)


def _store(status: pb.StoreStatus) -> str:
    name = STORES[status.store].value
    if not status.reachable:
        return f"Store {name} is out of reach."
    serves = "serves" if status.serving else "does not serve"
    lag = f", {status.lag_events} events behind" if status.lag_events > 0 else ""
    return f"Store {name} {serves}: it owns {status.owned_records} of its {status.records} records{lag}."


def _next(status: pb.GetStatusResponse) -> str:
    if not status.next:
        return "There is no next phase now."
    closed = [gate.name for gate in status.gates if gate.verdict != pb.VERDICT_PASS]
    return f"The next phase is {_phase(status.next)}; " + (
        f"closed by {', '.join(closed)}." if closed else "it is open."
    )


def _rollback(cost: pb.RollbackCost) -> str:
    if not cost.possible:
        return "A rollback is not possible now."
    records = str(cost.records) if cost.HasField("records") else "an unknown number of"
    return f"A rollback is possible and moves {records} records back to A."


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
