"""Programs of two releases side by side: B and the router know a version 3 of the schema, A does not.

Version 3 stands for any next one. It has its labels in a field of its own, and a priority, which no older version has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from libs.contract.descriptors import Contract, length_delimited
from libs.contract.schemas import SchemaUnknown, SchemaVersions
from libs.ownership.model import BUCKETS, Row, Store, Version
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import FlatSandbox, Sandbox
from libs.rpc import metadata
from libs.rpc.errors import reason_of
from libs.sandboxes.columns import sandbox_columns
from libs.sandboxes.operations import SandboxOperations
from libs.sandboxes.schema import FLAT, METADATA, STRUCTURED, Form, Schemas, write_model
from libs.sandboxes.unknown import split
from libs.store.inspection import ExportQuery
from services.router.core.phase import Phase
from services.router.flows.steering.migration import Decision
from tests.system.store import Kit, new
from tests.system.whole import System, running_system, step
from tests.waiting import eventually

BY_HAND = Decision("a test", "because", override=True)
LABEL = 40
"""The field of version 3 with a label as "key=value"."""
PRIORITY = b"\xa0\x06\x07"
"""Field 100 of version 3, with the value 7."""
NAME = "sandboxes/one"


def write_third(sandbox: Sandbox) -> bytes:
    labels = [f"{name}={value}".encode() for name, value in sorted(sandbox.labels.items())]
    sandbox.ClearField("labels")
    return write_model(sandbox) + b"".join(length_delimited(LABEL) + bytes([len(text)]) + text for text in labels)


def read_third(data: bytes) -> Sandbox:
    sandbox = Sandbox()
    for number, raw in split(data):
        if number == LABEL:
            name, _, value = raw[3:].decode().partition("=")
            sandbox.labels[name] = value
        else:
            sandbox.MergeFromString(raw)
    return sandbox


THIRD = Form(3, write_third, read_third, numbers=frozenset({LABEL}))
SCHEMAS = Schemas((FLAT, STRUCTURED, THIRD))
CONTRACT = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
NEWER = Kit(
    SandboxOperations(SCHEMAS),
    replace(CONTRACT, schemas=SchemaVersions(METADATA, 1, 3)),
    partial(sandbox_columns, schemas=SCHEMAS),
    schema_version=3,
)
OLDER = Kit(SandboxOperations(), CONTRACT, sandbox_columns, schema_version=2)


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(NEWER, kit_of_a=OLDER) as running:
        yield running


@pytest.fixture
async def known() -> AsyncIterator[System]:
    """One release, without a mover: a record moves for calls only."""
    async with running_system(OLDER, mover=False) as running:
        yield running


async def send(
    system: System, method: str, request: Message, version: int, *said: tuple[str, str]
) -> tuple[bytes, dict[str, Any]]:
    call = system.client.multi_callable(f"/{CONTRACT.service}/{method}")(
        request.SerializeToString(), timeout=5, metadata=grpc.aio.Metadata((METADATA, str(version)), *said)
    )
    return await call, dict(await call.trailing_metadata() or ())


async def answer(system: System, method: str, request: Message, version: int) -> Sandbox:
    return Sandbox.FromString((await send(system, method, request, version))[0])


async def get(system: System, version: int, name: str = NAME) -> Sandbox:
    return await answer(system, "GetSandbox", pb.GetSandboxRequest(name=name), version)


async def names(system: System, version: int) -> list[str]:
    data, _ = await send(system, "ListSandboxes", pb.ListSandboxesRequest(), version)
    return [sandbox.name for sandbox in pb.ListSandboxesResponse.FromString(data).sandboxes]


async def refusal(system: System, method: str, request: Message, version: int) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(system, method, request, version)
    return caught.value


async def row(system: System, store: Store, name: str = NAME) -> Row:
    found = (await system.ports(store).records.read(name)).row
    assert found is not None
    return found


async def walk(system: System, phases: Sequence[Phase]) -> None:
    for phase in phases:
        assert (await step(system.migration, BY_HAND))[0].phase is phase
    await eventually(lambda: system.mover.settled and system.mover.buckets_at_b == BUCKETS)


def flat_create(name: str) -> pb.CreateSandboxRequest:
    flat = FlatSandbox(account="acme", image="image:1")
    return pb.CreateSandboxRequest(sandbox=Sandbox.FromString(flat.SerializeToString()), sandbox_id=name)


def third(**fields: Any) -> pb.UpdateSandboxRequest:
    """An update as a client of version 3 writes it."""
    sandbox = Sandbox(name=NAME, **fields)
    sandbox.MergeFromString(PRIORITY + length_delimited(LABEL) + b"\x09team=gold")
    return pb.UpdateSandboxRequest(sandbox=sandbox)


async def to_b_and_third(system: System) -> None:
    """Two records of version 2, at B, one of which a client of version 3 has written since."""
    for name in ("one", "two"):
        await answer(system, "CreateSandbox", new(name, labels={"team": "blue"}), 2)
    await walk(system, [Phase.SHADOW, Phase.DUAL_WRITE, Phase.DUAL_READ])
    await answer(system, "UpdateSandbox", third(), 3)


async def test_clients_of_three_versions_share_a_record(system: System) -> None:
    await to_b_and_third(system)
    assert (await row(system, Store.B)).schema_version == 3
    newest = await get(system, 3)
    assert b"team=gold" in newest.SerializeToString() and not newest.labels
    middle = await get(system, 2)
    assert (middle.schema_version, dict(middle.labels)) == (2, {"team": "gold"})
    flat = FlatSandbox.FromString((await get(system, 1)).SerializeToString())
    assert (flat.schema_version, flat.image, dict(flat.metadata)) == (1, "image:1", {"team": "gold"})
    data, _ = await send(system, "ListSandboxes", pb.ListSandboxesRequest(), 1)
    (listed, _) = pb.ListSandboxesResponse.FromString(data).sandboxes
    assert FlatSandbox.FromString(listed.SerializeToString()) == flat
    flat.image = "image:2"
    change = pb.UpdateSandboxRequest(sandbox=Sandbox.FromString(flat.SerializeToString()))
    await answer(system, "UpdateSandbox", change, 1)
    now = await get(system, 3)
    assert (now.spec.image, now.schema_version) == ("image:2", 3)
    assert PRIORITY in now.SerializeToString(), "what older versions have no field for is kept"


async def test_a_store_that_does_not_understand_a_record_keeps_it_and_gives_it_back(system: System) -> None:
    await to_b_and_third(system)
    before = await get(system, 3)

    async def same() -> bool:
        return (await row(system, Store.A)).payload == (await row(system, Store.B)).payload

    await eventually(same, what="A takes the envelope and the bytes")
    await system.migration.rollback(BY_HAND, Phase.OFF)
    await eventually(lambda: system.mover.settled and system.mover.buckets_at_b == 0)
    at_a = await row(system, Store.A)
    assert (at_a.owner, at_a.schema_version, at_a.live) == (Store.A, 3, True)
    for method, request in (("GetSandbox", pb.GetSandboxRequest(name=NAME)), ("UpdateSandbox", third())):
        for version in (1, 2):
            error = await refusal(system, method, request, version)
            assert (error.code(), reason_of(error)[0]) == (grpc.StatusCode.FAILED_PRECONDITION, SchemaUnknown.reason)
            assert f"record {NAME!r} has schema version 3, this store understands 1 to 2" in (error.details() or "")
    error = await refusal(system, "DeleteSandbox", pb.DeleteSandboxRequest(name=NAME), 2)
    assert reason_of(error)[0] == SchemaUnknown.reason
    assert await names(system, 2) == [NAME, "sandboxes/two"], "lists go on: B has the same version and shows it"
    assert (await get(system, 2, "sandboxes/two")).labels["team"] == "blue"
    await system.migration.lift_hold(BY_HAND)
    await walk(system, [Phase.SHADOW, Phase.DUAL_WRITE, Phase.DUAL_READ])
    assert await get(system, 3) == before


async def watch(system: System) -> set[str]:
    """The names that a client of version 2 is shown in a whole view."""
    return set(await watched(system, 2))


async def watched(system: System, version: int) -> dict[str, Sandbox]:
    """The complete view of a watch in that version, by name."""
    stream: Any = system.client.stream_callable(f"/{CONTRACT.service}/WatchSandboxes")(
        pb.WatchSandboxesRequest().SerializeToString(), metadata=grpc.aio.Metadata((METADATA, str(version)))
    )
    seen: dict[str, Sandbox] = {}
    try:
        while True:
            async with asyncio.timeout(20):
                answer = pb.WatchSandboxesResponse.FromString(await stream.read())
            seen = ({} if answer.reset else seen) | {sandbox.name: sandbox for sandbox in answer.sandboxes}
            if answer.synced:
                return seen
    finally:
        stream.cancel()


async def test_a_watch_goes_on_at_the_store_that_understands_what_it_shows(system: System) -> None:
    await to_b_and_third(system)

    async def arrived() -> bool:
        return (await row(system, Store.A)).schema_version == 3

    await eventually(arrived)
    await system.migration.rollback(BY_HAND, Phase.OFF)
    assert await watch(system) == {NAME, "sandboxes/two"}


async def test_a_watch_shows_a_record_in_the_version_of_its_client(known: System) -> None:
    await answer(known, "CreateSandbox", new("one", labels={"team": "blue"}), 2)
    assert (await watched(known, 2))[NAME].labels["team"] == "blue"
    flat = FlatSandbox.FromString((await watched(known, 1))[NAME].SerializeToString())
    assert (flat.schema_version, dict(flat.metadata)) == (1, {"team": "blue"})


async def test_a_watch_ends_when_no_store_understands_what_it_should_show(known: System) -> None:
    await answer(known, "CreateSandbox", new("one"), 2)
    (before,) = (await known.ports(Store.A).inspection.export(ExportQuery()))[0]
    later = replace(before.row, version=Version(0, 2), write_version=Version(0, 2), schema_version=3)
    for store in Store:
        await known.ports(store).transfers.apply([replace(before, row=later)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch(known)
    assert reason_of(caught.value)[0] == SchemaUnknown.reason


async def test_what_a_store_does_not_understand_is_no_difference_of_the_stores(system: System) -> None:
    await to_b_and_third(system)
    await system.migration.set_shadow(BY_HAND, 1000)
    await get(system, 2)
    assert await names(system, 2) == [NAME, "sandboxes/two"]
    await eventually(lambda: system.shadow.counts.error > 0 and system.shadow.report().waiting == 0)
    assert (system.shadow.counts.mismatch, system.shadow.counts.missing) == (0, 0)


async def test_the_older_program_refuses_a_version_that_it_does_not_know(system: System) -> None:
    error = await refusal(system, "CreateSandbox", new("one"), 3)
    assert error.details() == f"{METADATA}: '3' is not valid: 1 to 2"
    error = await refusal(system, "CreateSandbox", new("one"), 4)
    assert error.details() == f"{METADATA}: '4' is not valid: 1 to 3"


async def test_an_old_clients_reads_begin_at_a_and_move_nothing(known: System) -> None:
    for phase in (Phase.SHADOW, Phase.DUAL_WRITE, Phase.DUAL_READ):
        assert (await step(known.migration, BY_HAND))[0].phase is phase
    await answer(known, "CreateSandbox", new("one"), 2)
    assert (await row(known, Store.B)).owner is Store.B, "a new client's new name is made at home"
    moved = known.traffic.handoffs
    request = pb.GetSandboxRequest(name=NAME)
    found, told = await send(known, "GetSandbox", request, 1, (metadata.EXPLAIN, "1"))
    assert FlatSandbox.FromString(found).image == "image:1"
    assert (told[metadata.REASON], told[metadata.STORE]) == ("client schema", "B")
    _, told = await send(known, "GetSandbox", request, 2, (metadata.EXPLAIN, "1"))
    assert (told[metadata.REASON], told[metadata.STORE]) == ("phase", "B")
    _, told = await send(known, "CreateSandbox", flat_create("two"), 1, (metadata.EXPLAIN, "1"))
    assert (told[metadata.REASON], told[metadata.STORE]) == ("client schema", "A"), "A may make it, so it does"
    assert known.traffic.handoffs == moved
    assert [(client.schema_version, client.calls) for client in known.clients.seen()] == [(1, 2)]


async def test_an_old_clients_new_name_is_made_where_that_may_be(system: System) -> None:
    """A has given up the right to make names: it does not get it back for an old client."""
    await walk(system, [Phase.SHADOW, Phase.DUAL_WRITE, Phase.DUAL_READ])
    _, told = await send(system, "CreateSandbox", flat_create("two"), 1, (metadata.EXPLAIN, "1"))
    assert (told[metadata.REASON], told[metadata.STORE]) == ("client schema", "B")
    assert system.traffic.handoffs == 0
    assert (await row(system, Store.B, "sandboxes/two")).schema_version == 1
    await system.stop(Store.A)
    _, told = await send(system, "CreateSandbox", flat_create("three"), 1, (metadata.EXPLAIN, "1"))
    assert (told[metadata.REASON], told[metadata.STORE]) == ("client schema", "B"), "A is asked first, and is away"
