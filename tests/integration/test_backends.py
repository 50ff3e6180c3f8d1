"""Both services as real processes on real databases."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from libs.eventlog.port import Event
from libs.eventlog.sqlite import SqliteEventLog
from libs.ownership.model import Record, Row, Store, Version, bucket_of
from libs.ownership.wire import event_of
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.proving.servers.ports import free_port
from libs.rpc import metadata
from libs.rpc.errors import reason_of
from libs.sandboxes.schema import METADATA
from tests.contracts.identity_adapters import write_tokens
from tests.integration.processes import Service, run_to_end, running
from tests.system.store import new, refusal
from tests.waiting import eventually

A, B = "simple_mcp", "service_layer"
NAME = "sandboxes/one"
SPOKEN = ((METADATA, "2"),)
"""Sent to both: the old service treats a client without it as one of version 1."""
KINDS = ["simple_mcp on SQLite", "service_layer on SQLite", "service_layer on PostgreSQL"]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    return {"event_log": f"sqlite:///{tmp_path}/log.db"}


@pytest.fixture(params=KINDS)
async def kind(
    request: pytest.FixtureRequest, tmp_path: Path, settings: dict[str, object]
) -> tuple[str, dict[str, object]]:
    """Program and settings of a service with an empty database of its own."""
    if request.param == KINDS[0]:
        settings["database"] = tmp_path / "a.db"
        code, errors = await run_to_end(A, settings, "init")
        assert code == 0, errors
        return A, settings
    if request.param == KINDS[1]:
        settings["database"] = f"sqlite:///{tmp_path}/b.db"
    else:
        settings["database"] = request.getfixturevalue("postgres_dsn")
    return B, settings


@asynccontextmanager
async def owning(program: str, settings: dict[str, object], *names: str) -> AsyncIterator[Service]:
    """The service, with the right to create these names."""
    async with running(program, **settings) as service:
        if program == B:
            for bucket in {bucket_of(name) for name in names}:
                bucket_owner = record_pb2.BucketOwner(bucket=bucket, version=1, owner=record_pb2.STORE_B)
                await service.replication.AdoptBuckets(rpb.AdoptBucketsRequest(bucket_owners=[bucket_owner]))
        yield service


async def test_a_sandbox_lives_through_every_method(kind: tuple[str, dict[str, object]]) -> None:
    async with owning(*kind, NAME) as service:
        client, request_id = service.client, str(uuid4())
        made = await client.CreateSandbox(new("one", request_id=request_id, labels={"tier": "gold"}), metadata=SPOKEN)
        assert (
            await client.CreateSandbox(new("one", request_id=request_id, labels={"tier": "gold"}), metadata=SPOKEN)
            == made
        )
        assert await client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=SPOKEN) == made
        change = pb.UpdateSandboxRequest(sandbox=sandbox_pb2.Sandbox(name=NAME, etag=made.etag))
        change.sandbox.labels["tier"] = "silver"
        changed = await client.UpdateSandbox(change, metadata=SPOKEN)
        assert (changed.revision, dict(changed.labels)) == (2, {"tier": "silver"})
        stale = await refusal(client.UpdateSandbox(change, metadata=SPOKEN))
        assert (stale.code(), reason_of(stale)[0]) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
        await client.DeleteSandbox(pb.DeleteSandboxRequest(name=NAME), metadata=SPOKEN)
        gone = await refusal(client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=SPOKEN))
        assert (gone.code(), reason_of(gone)[0]) == (grpc.StatusCode.NOT_FOUND, "SANDBOX_NOT_FOUND")
        assert not (await client.ListSandboxes(pb.ListSandboxesRequest(), metadata=SPOKEN)).sandboxes
        back = await client.UndeleteSandbox(pb.UndeleteSandboxRequest(name=NAME), metadata=SPOKEN)
        assert back.revision == 4
        found = await client.ListSandboxes(pb.ListSandboxesRequest(filter='labels.tier = "silver"'), metadata=SPOKEN)
        assert list(found.sandboxes) == [back]
        pulled = await service.replication.PullChanges(rpb.PullChangesRequest())
        assert [change.version.revision for change in pulled.changes] == [1, 2, 3, 4]


async def test_bad_input_is_refused_and_leaves_nothing(kind: tuple[str, dict[str, object]]) -> None:
    async with owning(*kind, NAME, "sandboxes/two") as service:
        for request, field in (
            (new("one", request_id="nonsense"), "request_id"),
            (new("two", state=99), "sandbox.state"),
            (pb.CreateSandboxRequest(sandbox_id="one"), "sandbox.account"),
        ):
            refused = await refusal(service.client.CreateSandbox(request))
            assert (refused.code(), reason_of(refused)[1]) == (grpc.StatusCode.INVALID_ARGUMENT, {"field": field})
        status = await service.replication.GetStatus(rpb.GetStatusRequest())
        assert (status.records, status.outbox.entries) == (0, 0)


async def test_what_was_acknowledged_before_a_kill_is_there_after_it(kind: tuple[str, dict[str, object]]) -> None:
    program, settings = kind
    request_id = str(uuid4())
    async with owning(program, settings, NAME) as service:
        made = await service.client.CreateSandbox(new("one", request_id=request_id))
        service.signal(signal.SIGKILL)
        await service.ended()
    async with running(program, **settings) as service:
        assert await service.client.GetSandbox(pb.GetSandboxRequest(name=NAME)) == made
        assert await service.client.CreateSandbox(new("one", request_id=request_id)) == made
        status = await service.replication.GetStatus(rpb.GetStatusRequest())
        assert (status.serving, status.records, status.outbox.entries) == (True, 1, 1)


async def test_a_service_that_is_told_to_stop_finishes_what_is_under_way(kind: tuple[str, dict[str, object]]) -> None:
    async with running(kind[0], **kind[1]) as service:
        waiting = asyncio.ensure_future(service.replication.PullChanges(rpb.PullChangesRequest(wait_seconds=1.0)))
        # Answered on the same connection after the one above has arrived.
        await asyncio.sleep(0)
        await service.replication.GetStatus(rpb.GetStatusRequest())
        service.signal(signal.SIGTERM)
        assert not (await waiting).changes
        assert await service.ended() == 0


async def test_what_the_log_brings_arrives_and_is_counted(kind: tuple[str, dict[str, object]]) -> None:
    program, settings = kind
    other = Store.B if program == A else Store.A
    version = Version(0, 1)
    row = Row(NAME, version, other, version, True, sandbox_pb2.Sandbox(name=NAME).SerializeToString(), 1)
    async with running(program, **settings) as service:
        file = str(settings["event_log"]).removeprefix("sqlite:///")
        async with SqliteEventLog.open(Path(file)) as log:
            await log.append([Event(NAME, event_of(Record(row, (), other, 0.0))), Event("bad", b"\xff")])

        async def applied() -> bool:
            feed = (await service.replication.GetStatus(rpb.GetStatusRequest())).feed
            return (feed.read, feed.applied, feed.parked, feed.trouble) == (2, 1, 1, "")

        await eventually(applied)
        parked = await service.replication.ListParked(rpb.ListParkedRequest())
        assert [event.key for event in parked.parked] == ["bad"]
        refused = await refusal(service.client.GetSandbox(pb.GetSandboxRequest(name=NAME)))
        assert (refused.code(), reason_of(refused)[0]) == (grpc.StatusCode.UNAVAILABLE, "OWNER_UNAVAILABLE")


async def test_health_and_reflection_answer_on_both_listeners(kind: tuple[str, dict[str, object]]) -> None:
    async with running(kind[0], **kind[1]) as service:
        for channel, name in (
            (service.public, "sandbox.v1.SandboxService"),
            (service.internal, "baton.replication.v1.ReplicationService"),
        ):
            health: Any = health_pb2_grpc.HealthStub(channel.grpc)
            for asked in ("", name):
                found = await health.Check(health_pb2.HealthCheckRequest(service=asked))
                assert found.status == health_pb2.HealthCheckResponse.SERVING
            reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel.grpc)  # type: ignore[arg-type]
            call = reflection.ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)])
            )
            assert (await call.read()).file_descriptor_response.file_descriptor_proto
            call.cancel()


async def test_a_second_process_on_the_same_file_refuses_to_start(tmp_path: Path, settings: dict[str, object]) -> None:
    for program, database, command in ((A, tmp_path / "a.db", "init"), (B, f"sqlite:///{tmp_path}/b.db", "migrate")):
        settings["database"] = database
        code, _ = await run_to_end(program, settings, command)
        assert code == 0
        async with running(program, **settings) as service:
            code, errors = await run_to_end(program, settings)
            assert code == 1
            assert "is open in another process" in errors
            assert "Traceback" not in errors
            assert (await service.replication.GetStatus(rpb.GetStatusRequest())).serving


async def test_the_old_service_does_not_take_a_missing_file_for_its_own(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    code, errors = await run_to_end(A, {**settings, "database": tmp_path / "a.db"})
    assert code == 1
    assert "simple_mcp init" in errors
    assert not (tmp_path / "a.db").exists()


async def test_a_token_is_asked_for_at_the_internal_listener(tmp_path: Path, settings: dict[str, object]) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("a-token-for-this-test\n")
    async with running(B, **settings, database=f"sqlite:///{tmp_path}/b.db", token_file=token) as service:
        request = rpb.GetStatusRequest()
        refused = await refusal(service.replication.GetStatus(request))
        assert (refused.code(), reason_of(refused)[0]) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REFUSED")
        shown = ((metadata.TOKEN, "a-token-for-this-test"),)
        assert (await service.replication.GetStatus(request, metadata=shown)).serving
        assert not (await service.client.ListSandboxes(pb.ListSandboxesRequest())).sandboxes


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"writes": "many"}, 2, "writes: 'many' is not valid"),
        ({"database": "mysql://x/y"}, 2, "database: 'mysql://x/y' is not valid"),
        ({"internal": "0.0.0.0:0"}, 1, "internal: 0.0.0.0:0 can be reached from other machines: set token_file"),
        ({"public": "0.0.0.0:0"}, 1, "public: 0.0.0.0:0 can be reached from other machines: set public_auth"),
        ({"http": "0.0.0.0:0"}, 1, "http: 0.0.0.0:0 can be reached from other machines: set public_auth"),
        ({"public_auth": "some"}, 2, "public_auth: 'some' is not valid"),
        ({"public_auth": "tokens"}, 2, "public_auth_file: it is not set"),
        ({"public_auth": "jwt"}, 2, "jwt_issuer: it is not set"),
        ({"public_auth": "tokens", "public_auth_file": "/missing"}, 1, "/missing cannot be read"),
        ({"event_log_partitions": "8"}, 1, "has 16 partitions, the settings say 8"),
    ],
)
async def test_a_wrong_setting_stops_the_start_and_is_named(
    tmp_path: Path, settings: dict[str, object], changes: dict[str, object], code: int, message: str
) -> None:
    async with SqliteEventLog.open(tmp_path / "log.db"):
        pass
    base = {**settings, "database": f"sqlite:///{tmp_path}/b.db"}
    found, errors = await run_to_end(B, base | changes)
    assert (found, message in errors) == (code, True), errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("program", [A, B])
async def test_a_store_that_authenticates_its_clients_needs_the_token_of_the_internal_listener(
    tmp_path: Path, settings: dict[str, object], program: str
) -> None:
    """Without it every process of this machine could be any client."""
    database: dict[str, object] = {
        "database": tmp_path / "a.db" if program == A else f"sqlite:///{tmp_path}/b.db",
        "public_auth": "tokens",
        "public_auth_file": write_tokens(tmp_path / "tokens.toml"),
    }
    if program == A:
        assert (await run_to_end(A, settings | {"database": tmp_path / "a.db"}, "init"))[0] == 0
    code, errors = await run_to_end(program, settings | database)
    assert (code, "token_file: it is not set" in errors) == (2, True), errors


async def test_two_stores_that_start_without_the_log_ask_each_other_and_serve(tmp_path: Path) -> None:
    away: dict[str, object] = {"event_log": "kafka://127.0.0.1:1/sandbox.events.v1"}
    a, b = (f"127.0.0.1:{free_port()}" for _ in range(2))
    database: dict[str, object] = {"database": tmp_path / "a.db"}
    assert (await run_to_end(A, away | database, "init"))[0] == 0
    at_b: dict[str, object] = {"database": f"sqlite:///{tmp_path}/b.db", "internal": b, "other": a}
    async with running(B, **away, **at_b) as first:

        async def status(service: Service) -> rpb.GetStatusResponse:
            return await service.replication.GetStatus(rpb.GetStatusRequest())

        async def trouble() -> str:
            return (await status(first)).feed.trouble

        assert "LOG_UNAVAILABLE" in await eventually(trouble)
        alone = await status(first)
        assert not alone.serving and "it is not known whether this store may serve" in alone.reason
        async with running(A, **away, **database, internal=a, other=b) as second:

            async def both() -> bool:
                return all([(await status(one)).serving for one in (first, second)])

            assert await eventually(both)


async def test_a_port_in_use_stops_the_start_and_names_the_setting(tmp_path: Path, settings: dict[str, object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        base = {**settings, "database": f"sqlite:///{tmp_path}/b.db", "public": address}
        code, errors = await run_to_end(B, base)
    assert code == 1
    assert f"public: cannot listen on {address}: the port is in use" in errors
