"""Hostile and careless callers: they cannot block a listener, and their requests are not kept in memory."""

from __future__ import annotations

import asyncio
import gc
import struct
import sys
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from libs.errors import InvalidField
from libs.rpc import bodies, errors, gate, metadata, standard
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import Context, reason_of
from libs.rpc.gate import ServerLimits
from libs.rpc.limits import METADATA_BYTES, REQUEST_BYTES
from libs.rpc.reflection import CONNECTION_STREAMS
from libs.rpc.server import RawService, Server, ServerConfig
from libs.rpc.standard import CONNECTION_WATCHES, WATCHES
from tests.unit.test_rpc_server import SERVICE, TOKEN, config, echo, refusal, serving
from tests.waiting import eventually
from tests.wire import wire_to

ECHO, HOLD = f"/{SERVICE}/Echo", f"/{SERVICE}/Hold"
OVERLOADED = (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
BOUND_SECONDS = 20


class Held:
    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, request: bytes, context: Context) -> bytes:
        await self.go_on.wait()
        return request


def outcome(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    return error.code(), reason_of(error)[0]


def without_a_body(channel: Any, **call: Any) -> Any:
    """A call that sends its headers and nothing more."""
    return channel.grpc.stream_unary(ECHO)(**{"timeout": BOUND_SECONDS, **call})


async def test_calls_whose_body_never_comes_do_not_keep_others_out() -> None:
    async with serving(config(), RawService(SERVICE, {"Echo": echo})) as (server, channel):
        # Long enough that a busy machine takes no body that was sent for a slow one.
        server._gate._bodies = bodies.Bodies(reading=4, slow_seconds=0.5)
        stalled = [without_a_body(channel) for _ in range(12)]
        await eventually(lambda: server.in_flight == 12)
        for _ in range(4):
            assert await channel.multi_callable(ECHO)(b"x", timeout=bodies.BODY_SECONDS / 2) == b"x"
        ended = [call for call in stalled if call.done()]
        assert ended, "the slowest bodies gave their places up"
        for call in ended:
            assert outcome(await refusal(call))[1] == "DEADLINE_EXCEEDED"
        for call in stalled:
            call.cancel()


async def test_a_body_that_never_comes_ends_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.1)
    async with serving(config(), RawService(SERVICE, {"Echo": echo})) as (server, channel):
        refused = await refusal(without_a_body(channel, timeout=None))
        assert outcome(refused)[1] == "DEADLINE_EXCEEDED"
        assert server.in_flight == 0


async def test_a_call_without_a_message_is_refused(served: Server) -> None:
    async with open_channel(served.address) as channel:
        call: Any = channel.grpc.stream_unary(ECHO)(timeout=BOUND_SECONDS)
        await call.done_writing()
        assert outcome(await refusal(call)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


@pytest.fixture
async def served() -> AsyncGenerator[Server, None]:
    async with serving(config(), RawService(SERVICE, {"Echo": echo})) as (server, _):
        yield server


async def test_the_token_is_asked_for_before_a_call_takes_a_place() -> None:
    limits = ServerLimits(calls=2)
    async with serving(config(limits, TOKEN), RawService(SERVICE, {"Echo": echo})) as (server, channel):
        for _ in range(8):
            # Refused from the headers on, although no body comes.
            assert outcome(await refusal(without_a_body(channel)))[1] == "TOKEN_REFUSED"
        assert server.in_flight == 0
        shown = ((metadata.TOKEN, TOKEN.decode()),)
        assert await channel.multi_callable(ECHO)(b"x", metadata=shown, timeout=BOUND_SECONDS) == b"x"


async def test_one_connection_has_no_more_than_its_share() -> None:
    held = Held()
    limits = ServerLimits(calls=8, connection_share=0.5)
    async with (
        serving(config(limits), RawService(SERVICE, {"Hold": held, "Echo": echo})) as (server, greedy),
        open_channel(server.address) as other,
    ):
        calls = [greedy.multi_callable(HOLD)(b"x", timeout=BOUND_SECONDS) for _ in range(4)]
        await eventually(lambda: server.in_flight == 4)
        assert outcome(await refusal(greedy.multi_callable(ECHO)(b"x"))) == OVERLOADED
        assert await other.multi_callable(ECHO)(b"y", timeout=BOUND_SECONDS) == b"y"
        held.go_on.set()
        assert await asyncio.gather(*calls) == [b"x"] * 4
        assert await greedy.multi_callable(ECHO)(b"x", timeout=BOUND_SECONDS) == b"x"


async def test_an_urgent_method_is_served_while_others_fill_the_listener() -> None:
    held = Held()
    limits = ServerLimits(calls=4, urgent=frozenset({"Echo"}), urgent_calls=2)
    async with serving(config(limits), RawService(SERVICE, {"Hold": held, "Echo": echo})) as (server, channel):
        calls = [channel.multi_callable(HOLD)(b"x", timeout=BOUND_SECONDS) for _ in range(4)]
        await eventually(lambda: server.in_flight == 4)
        assert outcome(await refusal(channel.multi_callable(HOLD)(b"x"))) == OVERLOADED
        assert await channel.multi_callable(ECHO)(b"go back", timeout=BOUND_SECONDS) == b"go back"
        held.go_on.set()
        await asyncio.gather(*calls)


async def test_calls_of_one_urgent_method_leave_the_slots_of_another() -> None:
    held, looking = Held(), Held()
    limits = ServerLimits(calls=2, urgent=frozenset({"Look", "Back"}), urgent_calls=2)
    methods = RawService(SERVICE, {"Hold": held, "Look": looking, "Back": echo})
    async with serving(config(limits), methods) as (server, channel):
        calls = [channel.multi_callable(HOLD)(b"x", timeout=BOUND_SECONDS) for _ in range(2)]
        await eventually(lambda: server.in_flight == 2)
        look = channel.multi_callable(f"/{SERVICE}/Look")
        calls += [look(b"x", timeout=BOUND_SECONDS) for _ in range(2)]
        await eventually(lambda: server.in_flight == 4)
        assert outcome(await refusal(look(b"x"))) == OVERLOADED
        assert await channel.multi_callable(f"/{SERVICE}/Back")(b"back", timeout=BOUND_SECONDS) == b"back"
        held.go_on.set()
        looking.go_on.set()
        await asyncio.gather(*calls)
        assert not server.gate._urgent_of


async def test_an_urgent_call_waits_for_no_body_of_another() -> None:
    limits = ServerLimits(urgent=frozenset({"Back"}))
    async with serving(config(limits), RawService(SERVICE, {"Echo": echo, "Back": echo})) as (server, channel):
        server.gate._bodies = bodies.Bodies(reading=1, slow_seconds=BOUND_SECONDS)
        stalled = [without_a_body(channel) for _ in range(2)]
        await eventually(lambda: server.in_flight == 2)
        assert await channel.multi_callable(f"/{SERVICE}/Back")(b"back", timeout=BOUND_SECONDS / 2) == b"back"
        for call in stalled:
            call.cancel()


async def test_http2_limits_the_streams_of_a_connection_far_above_the_gate(served: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    async with asyncio.timeout(BOUND_SECONDS):
        head = await reader.readexactly(9)
        assert head[3] == 4, "SETTINGS"
        settings = dict(struct.iter_unpack(">HI", await reader.readexactly(int.from_bytes(head[:3], "big"))))
    writer.close()
    max_concurrent_streams = 3
    assert settings[max_concurrent_streams] == 4096
    many = ServerConfig("127.0.0.1:0", "public", ServerLimits(calls=5000, streams=1000))
    assert many.connection_streams == 12_000


async def test_a_call_with_too_much_metadata_is_refused(served: Server) -> None:
    async with open_channel(served.address) as channel:
        call = channel.multi_callable(ECHO)
        fits = grpc.aio.Metadata(("a", "x" * (METADATA_BYTES // 2)))
        assert await call(b"x", metadata=fits, timeout=BOUND_SECONDS) == b"x"
        refused = await refusal(call(b"x", metadata=grpc.aio.Metadata(("a", "x" * METADATA_BYTES)), timeout=10))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(b"x", timeout=BOUND_SECONDS) == b"x"


async def test_watches_of_health_are_bounded_and_take_no_places_of_calls(served: Server) -> None:
    async with AsyncExitStack() as stack:
        watches: list[Any] = []
        for host in ("127.0.0.1", "127.0.0.2"):
            for _ in range(WATCHES // 2 // CONNECTION_WATCHES):
                channel = await stack.enter_async_context(connected_from(host, served))
                stub: Any = health_pb2_grpc.HealthStub(channel.grpc)
                watches += [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(CONNECTION_WATCHES)]
                await asyncio.gather(*(watch.read() for watch in watches[-CONNECTION_WATCHES:]))
                # The same connection gets no more.
                await refused_stream(stub.Watch(health_pb2.HealthCheckRequest()))
            # Nor does another one of this host.
            more = await stack.enter_async_context(connected_from(host, served))
            stub = health_pb2_grpc.HealthStub(more.grpc)
            await refused_stream(stub.Watch(health_pb2.HealthCheckRequest()))
        last = await stack.enter_async_context(connected_from("127.0.0.3", served))
        stub = health_pb2_grpc.HealthStub(last.grpc)
        await refused_stream(stub.Watch(health_pb2.HealthCheckRequest()))
        assert await last.multi_callable(ECHO)(b"x", timeout=BOUND_SECONDS) == b"x"
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        for watch in watches:
            watch.cancel()


async def test_streams_of_reflection_are_bounded(served: Server) -> None:
    async with open_channel(served.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel.grpc)  # type: ignore[arg-type]
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        streams = [stub.ServerReflectionInfo() for _ in range(CONNECTION_STREAMS)]
        for stream in streams:
            await stream.write(request)
            assert await stream.read()
        await refused_stream(stub.ServerReflectionInfo())
        for stream in streams:
            stream.cancel()


@asynccontextmanager
async def connected_from(host: str, server: Server) -> AsyncIterator[Channel]:
    """A channel whose connection comes from this address."""
    async with wire_to(server.port, host) as (_, port), open_channel(f"127.0.0.1:{port}") as channel:
        yield channel


async def refused_stream(stream: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(BOUND_SECONDS):
            await stream.read()
    assert outcome(caught.value) == OVERLOADED


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_request_far_above_the_limit_is_refused_unread(served: Server, compression: grpc.Compression) -> None:
    async with open_channel(served.address) as channel:
        send: Any = channel.grpc.unary_unary(ECHO)
        call = send(bytes(15 * REQUEST_BYTES), compression=compression, timeout=BOUND_SECONDS)
        refused = await refusal(call)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in (refused.details() or "")


@pytest.mark.parametrize("make", [lambda: InvalidField("name", "x", "y"), ZeroDivisionError])
async def test_what_a_refused_call_has_sent_is_free_at_once(
    make: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(request: bytes, context: Context) -> bytes:
        raise make()

    # The test runner keeps log records, and with them the frames of a defect.
    monkeypatch.setattr(errors.log, "disabled", True)

    async with serving(config(), RawService(SERVICE, {"Refuse": refuse})) as (server, _):
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            # A process of its own, since the client's memory must not count as the server's.
            client = await asyncio.create_subprocess_exec(sys.executable, "-c", CLIENT, server.address)
            assert await client.wait() == 0
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
    assert kept < 4 * REQUEST_BYTES, f"{kept / REQUEST_BYTES:.1f} of {CALLS} requests are kept"


CALLS = 30
CLIENT = f"""
import grpc, sys
with grpc.insecure_channel(sys.argv[1]) as channel:
    call = channel.unary_unary("/{SERVICE}/Refuse")
    for _ in range({CALLS}):
        try:
            call(bytes({REQUEST_BYTES}), timeout=20)
        except grpc.RpcError as error:
            assert error.code().name in ("INVALID_ARGUMENT", "INTERNAL"), error
"""


async def test_a_stream_whose_caller_takes_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "WRITE_SECONDS", 0.1)
    seen: list[str] = []

    async def flood(request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield bytes(256 * 1024)
        except gate.SlowReader as slow:
            seen.append(slow.reason)
            raise

    async with serving(config(), RawService(SERVICE, {}, {"Flood": flood})) as (server, channel):
        watch: Any = channel.grpc.unary_stream(f"/{SERVICE}/Flood")
        stream = watch(b"x", timeout=BOUND_SECONDS)
        await eventually(lambda: seen == ["SLOW_READER"])
        await eventually(lambda: server.streams == 0)

        async def read_to_the_end() -> None:
            while await stream.read() is not grpc.aio.EOF:
                pass

        assert outcome(await refusal(read_to_the_end())) == (grpc.StatusCode.UNAVAILABLE, "SLOW_READER")


async def test_checks_of_health_without_a_request_keep_nobody_out(
    served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard, "REQUEST_SECONDS", BOUND_SECONDS)
    server_requests = served._health.requests = standard.Requests(8)
    async with AsyncExitStack() as stack:
        floods: dict[str, list[Any]] = {}
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            channel = await stack.enter_async_context(connected_from(host, served))
            await channel.multi_callable(ECHO)(b"x", timeout=BOUND_SECONDS)
            silent: Any = channel.grpc.stream_unary("/grpc.health.v1.Health/Check")
            calls = floods[host] = [silent(timeout=BOUND_SECONDS) for _ in range(6)]
            await eventually(partial(_ended, calls, 2))
            stub: Any = health_pb2_grpc.HealthStub(channel.grpc)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=BOUND_SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ended = [call for some in floods.values() for call in some if call.done()]
        assert len(ended) >= 10, "the oldest calls of a host, and of all, made room"
        for call in ended:
            assert outcome(await refusal(call)) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        for some in floods.values():
            for call in some:
                call.cancel()
        await eventually(lambda: not server_requests._waiting and not server_requests._of)


def _ended(calls: Sequence[Any], number: int) -> bool:
    return len([call for call in calls if call.done()]) == number


@pytest.mark.parametrize("method", ["Check", "Watch"])
async def test_a_request_of_health_that_never_comes_ends_its_call(
    method: str, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard, "REQUEST_SECONDS", 0.1)
    async with open_channel(served.address) as channel:
        silent: Any = channel.grpc.stream_unary(f"/grpc.health.v1.Health/{method}")
        assert outcome(await refusal(silent(timeout=BOUND_SECONDS)))[1] == "DEADLINE_EXCEEDED"
