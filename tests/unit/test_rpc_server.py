"""Admission of calls to a listener, and its end."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc.aio._server import Server as CoreServer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.baton.replication.v1 import replication_pb2_grpc as pb_grpc
from libs.rpc import metadata
from libs.rpc.auth import TokenUnfit, read_token
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import Context, reason_of
from libs.rpc.gate import ServerLimits
from libs.rpc.server import CannotListen, RawService, Server, ServerConfig, TypedService
from libs.tls.hosts import is_loopback
from tests.waiting import eventually

SERVICE = "test.Service"
TOKEN = b"a-token-of-some-length"
REPLICATION = "baton.replication.v1.ReplicationService"


class Held:
    """A handler that answers on command."""

    def __init__(self) -> None:
        self.entered = 0
        self.cancelled = 0
        self.go_on = asyncio.Event()

    async def __call__(self, request: bytes, context: Context) -> bytes:
        self.entered += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b"done"


async def echo(request: bytes, context: Context) -> bytes:
    return request


@asynccontextmanager
async def serving(config: ServerConfig, *services: RawService | TypedService) -> AsyncIterator[tuple[Server, Channel]]:
    server = Server(config, list(services))
    await server.start()
    try:
        async with open_channel(server.address) as channel:
            yield server, channel
    finally:
        await server.drain(1.0)


def config(limits: ServerLimits | None = None, token: bytes | None = None) -> ServerConfig:
    return ServerConfig("127.0.0.1:0", "public", limits or ServerLimits(), token, "token_file")


async def refusal(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(10):
            await call  # type: ignore[misc]
    return caught.value


async def test_bytes_go_in_and_out_as_they_are() -> None:
    async with serving(config(), RawService(SERVICE, {"Echo": echo})) as (_, channel):
        assert await channel.multi_callable(f"/{SERVICE}/Echo")(b"\xff\x00") == b"\xff\x00"
        assert channel.multi_callable(f"/{SERVICE}/Echo") is channel.multi_callable(f"/{SERVICE}/Echo")


async def test_a_call_above_the_limit_is_refused_and_the_others_are_not_disturbed() -> None:
    held = Held()
    async with serving(config(ServerLimits(calls=2)), RawService(SERVICE, {"Hold": held})) as (server, channel):
        call = channel.multi_callable(f"/{SERVICE}/Hold")
        first, second = call(b""), call(b"")
        await eventually(lambda: server.in_flight == 2)
        refused = await refusal(call(b""))
        assert (refused.code(), reason_of(refused)[0]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        held.go_on.set()
        assert [await first, await second] == [b"done", b"done"]
        assert server.in_flight == 0
        assert held.entered == 2


async def test_a_call_without_a_deadline_gets_one() -> None:
    held = Held()
    limits = ServerLimits(default_deadline_seconds=0.05)
    async with serving(config(limits), RawService(SERVICE, {"Hold": held})) as (_, channel):
        refused = await refusal(channel.multi_callable(f"/{SERVICE}/Hold")(b""))
    assert refused.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason_of(refused)[0] == "DEADLINE_EXCEEDED"
    assert held.cancelled == 1


async def test_a_deadline_too_far_away_is_brought_nearer() -> None:
    held = Held()
    limits = ServerLimits(longest_deadline_seconds=0.05)
    async with serving(config(limits), RawService(SERVICE, {"Hold": held})) as (_, channel):
        refused = await refusal(channel.multi_callable(f"/{SERVICE}/Hold")(b"", timeout=3600))
    assert reason_of(refused)[0] == "DEADLINE_EXCEEDED"


async def test_a_timeout_inside_a_handler_is_a_defect_and_no_deadline() -> None:
    async def late(request: bytes, context: Context) -> bytes:
        raise TimeoutError

    async with serving(config(), RawService(SERVICE, {"Late": late})) as (_, channel):
        assert (await refusal(channel.multi_callable(f"/{SERVICE}/Late")(b""))).code() is grpc.StatusCode.INTERNAL


async def test_a_message_too_large_is_refused_with_its_field() -> None:
    async with serving(config(ServerLimits(request_bytes=100)), RawService(SERVICE, {"Echo": echo})) as (_, channel):
        call = channel.multi_callable(f"/{SERVICE}/Echo")
        assert len(await call(b"x" * 100)) == 100
        refused = await refusal(call(b"x" * 101))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(refused) == ("INVALID_FIELD", {"field": "request"})


async def test_drain_lets_calls_under_way_finish_and_takes_no_new_ones() -> None:
    held = Held()
    server = Server(config(), [RawService(SERVICE, {"Hold": held})])
    await server.start()
    async with open_channel(server.address) as channel, open_channel(server.address) as other:
        first = channel.multi_callable(f"/{SERVICE}/Hold")(b"")
        await eventually(lambda: server.in_flight == 1)
        draining = asyncio.create_task(server.drain(10.0))
        await eventually(lambda: "draining" in repr(server))
        refused = await refusal(other.multi_callable(f"/{SERVICE}/Hold")(b""))
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert not draining.done()
        held.go_on.set()
        assert await first == b"done"
        assert await draining == 0
    assert held.entered == 1


async def test_drain_has_a_bound() -> None:
    held = Held()
    server = Server(config(), [RawService(SERVICE, {"Hold": held})])
    await server.start()
    async with open_channel(server.address) as channel:
        call = channel.multi_callable(f"/{SERVICE}/Hold")(b"")
        await eventually(lambda: server.in_flight == 1)
        assert await server.drain(0.05) == 1
        assert (await refusal(call)).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_drain_beside_another_ends_with_it_and_stops_the_core_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stops: list[float | None] = []
    stop = CoreServer.stop

    async def counted(server: CoreServer, grace: float | None) -> None:
        stops.append(grace)
        await stop(server, grace)

    monkeypatch.setattr(CoreServer, "stop", counted)
    held = Held()
    server = Server(config(), [RawService(SERVICE, {"Hold": held})])
    await server.start()
    async with open_channel(server.address) as channel:
        call = channel.multi_callable(f"/{SERVICE}/Hold")(b"")
        await eventually(lambda: server.in_flight == 1)
        first = asyncio.create_task(server.drain(0.2))
        await eventually(lambda: "draining" in repr(server))
        assert (await server.drain(0.01), await first) == (1, 1)
        assert len(stops) == 1
        assert (await refusal(call)).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_watcher_of_health_sees_the_drain_and_does_not_hold_it_up() -> None:
    server = Server(config(), [RawService(SERVICE, {"Echo": echo})])
    await server.start()
    async with open_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel.grpc)
        seen = []
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        seen.append((await watch.read()).status)
        async with asyncio.timeout(10):
            draining = asyncio.create_task(server.drain(60.0))
            seen.append((await watch.read()).status)
            await draining
    statuses = health_pb2.HealthCheckResponse
    assert seen == [statuses.SERVING, statuses.NOT_SERVING]


async def test_a_client_of_reflection_that_stays_does_not_hold_a_drain_up() -> None:
    server = Server(config(), [RawService(SERVICE, {"Echo": echo})])
    await server.start()
    async with open_channel(server.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel.grpc)  # type: ignore[arg-type]
        stream = stub.ServerReflectionInfo()
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await stream.read()
        assert SERVICE in {service.name for service in answer.list_services_response.service}
        async with asyncio.timeout(10):
            assert await server.drain(60.0) == 0


async def test_health_answers_overall_and_for_each_service() -> None:
    async with serving(config(), RawService(SERVICE, {"Echo": echo})) as (server, channel):
        stub: Any = health_pb2_grpc.HealthStub(channel.grpc)
        for name in ("", SERVICE):
            found = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        await server.set_serving(False)
        found = await stub.Check(health_pb2.HealthCheckRequest())
        assert found.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection_names_the_services() -> None:
    async with serving(config(), RawService(SERVICE, {"Echo": echo})) as (_, channel):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel.grpc)  # type: ignore[arg-type]
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([request]))
        answer = await call.read()
        call.cancel()
        names = {service.name for service in answer.list_services_response.service}
    assert names == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }


@pytest.mark.parametrize("shown", [None, "", "a-token-of-some-lengt", "another-token-entirely"])
async def test_a_caller_without_the_token_is_refused(shown: str | None) -> None:
    async with serving(config(token=TOKEN), RawService(SERVICE, {"Echo": echo})) as (_, channel):
        call = channel.multi_callable(f"/{SERVICE}/Echo")
        refused = await refusal(call(b"", metadata=() if shown is None else ((metadata.TOKEN, shown),)))
        assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
        assert reason_of(refused)[0] == "TOKEN_REFUSED"
        assert await call(b"x", metadata=((metadata.TOKEN, TOKEN.decode()),)) == b"x"


async def test_an_internal_listener_beyond_loopback_needs_a_token() -> None:
    server = Server(ServerConfig("0.0.0.0:0", "internal", token_setting="token_file"), [])
    with pytest.raises(CannotListen, match=r"internal: .* set token_file"):
        await server.start()


async def test_a_port_in_use_names_the_setting() -> None:
    async with serving(config(), RawService(SERVICE, {"Echo": echo})) as (first, _):
        second = Server(ServerConfig(first.address, "public"), [])
        with pytest.raises(CannotListen, match=rf"public: cannot listen on {first.address}: the port is in use"):
            await second.start()


class Replication(pb_grpc.ReplicationServiceServicer):
    async def AckChanges(self, request: pb.AckChangesRequest, context: object) -> pb.AckChangesResponse:  # noqa: N802
        return pb.AckChangesResponse(acknowledged=len(request.changes))


async def test_a_generated_service_goes_through_the_same_gate() -> None:
    service = TypedService(
        REPLICATION,
        Replication(),  # type: ignore[abstract]
        pb_grpc.add_ReplicationServiceServicer_to_server,
    )
    async with serving(config(token=TOKEN), service) as (_, channel):
        stub = pb_grpc.ReplicationServiceStub(channel.grpc)
        request = pb.AckChangesRequest(changes=[pb.AckChangesRequest.Name(key="a")])
        assert reason_of(await refusal(stub.AckChanges(request)))[0] == "TOKEN_REFUSED"
        shown = ((metadata.TOKEN, TOKEN.decode()),)
        assert (await stub.AckChanges(request, metadata=shown)).acknowledged == 1
        bad = await refusal(channel.multi_callable(f"/{REPLICATION}/AckChanges")(b"\xff\xff", metadata=shown))
    assert (bad.code(), reason_of(bad)) == (grpc.StatusCode.INVALID_ARGUMENT, ("INVALID_FIELD", {"field": "request"}))


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/x", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("example.org:1", False),
    ],
)
def test_loopback_is_known_by_its_address(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


@pytest.mark.parametrize(
    "content", ["", "short", "x" * 513, "two lines of text\nand more", "caf\u00e9 caf\u00e9 caf\u00e9 caf\u00e9"]
)
def test_a_token_file_that_cannot_serve_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(content)
    with pytest.raises(TokenUnfit, match=str(file)):
        read_token(file)


def test_a_token_file_may_end_in_a_newline(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("0123456789abcdef\n")
    assert read_token(file) == b"0123456789abcdef"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are for this user only."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_a_token_file_in_a_folder_that_no_other_user_may_enter_is_read(open_folder: Path) -> None:
    file = open_folder / "token"
    file.write_text("0123456789abcdef\n")
    file.chmod(0o444)
    open_folder.chmod(0o700)
    assert read_token(file) == b"0123456789abcdef"


@pytest.mark.parametrize(("mode", "fit"), [(0o600, True), (0o640, True), (0o400, True), (0o604, False), (0o602, False)])
def test_a_token_file_that_every_user_can_read_or_change_is_refused(mode: int, fit: bool, open_folder: Path) -> None:
    file = open_folder / "token"
    file.write_text("0123456789abcdef\n")
    file.chmod(mode)
    if fit:
        assert read_token(file) == b"0123456789abcdef"
    else:
        with pytest.raises(TokenUnfit, match=f"chmod 600 {file}"):
            read_token(file)


@pytest.mark.parametrize("size", [9_000, 12_000, 15_000, 20_000])
async def test_metadata_beyond_the_limit_is_refused_every_time_and_says_so(size: int) -> None:
    async with serving(config(), RawService(SERVICE, {"Echo": echo})) as (_, channel):
        call = channel.multi_callable(f"/{SERVICE}/Echo")
        for _ in range(20):
            refused = await refusal(call(b"", metadata=(("x-large", "x" * size),)))
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "metadata size exceeds" in (refused.details() or "")


async def test_a_proxy_that_the_environment_names_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with serving(config(), RawService(SERVICE, {"Echo": echo})) as (_, channel):
        assert await channel.multi_callable(f"/{SERVICE}/Echo")(b"x") == b"x"
