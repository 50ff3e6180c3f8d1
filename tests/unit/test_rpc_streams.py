"""Methods that stream their answers: admission, and the end of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest

from libs.errors import InvalidField
from libs.rpc import gate, metadata
from libs.rpc.channel import open_channel
from libs.rpc.errors import Context, reason_of
from libs.rpc.gate import ServerLimits
from libs.rpc.server import RawService, Server, ServerConfig
from tests.waiting import eventually

PATH = "/test.Service/Watch"
BOUND_SECONDS = 5


class Watched:
    """Streams answers on command, and counts its watches."""

    def __init__(self) -> None:
        self.watching = 0
        self.made = 0
        self.go_on = asyncio.Semaphore(1)

    async def __call__(self, request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        if request == b"bad":
            raise InvalidField("request", "bad", "anything else")
        if request == b"defect":
            raise ZeroDivisionError
        if request == b"warned":
            await context.send_initial_metadata(((metadata.DEPRECATED, "old"),))
        self.watching += 1
        try:
            while True:
                await self.go_on.acquire()
                self.made += 1
                yield request
        finally:
            self.watching -= 1


class Served:
    """A server with one such method, and a client of it."""

    def __init__(self, server: Server, channel: Any, watched: Watched) -> None:
        self.server = server
        self.watched = watched
        self._watch = channel.grpc.unary_stream(PATH)

    def watch(self, request: bytes = b"x", token: bytes | None = None) -> Any:
        given = grpc.aio.Metadata((metadata.TOKEN, token.decode())) if token else None
        return self._watch(request, metadata=given, timeout=BOUND_SECONDS)


@pytest.fixture
async def served(request: pytest.FixtureRequest) -> AsyncGenerator[Served, None]:
    limits, token = getattr(request, "param", (ServerLimits(), None))
    watched = Watched()
    server = Server(
        ServerConfig("127.0.0.1:0", "x", limits, token), [RawService("test.Service", {}, {"Watch": watched})]
    )
    await server.start()
    async with open_channel(server.address) as channel:
        yield Served(server, channel, watched)
    await server.drain(1.0)


async def refusal(stream: Any) -> tuple[grpc.StatusCode, str]:
    """Reads to the end of the stream, which the call's own deadline bounds."""

    async def read_all() -> None:
        while await stream.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all()
    return caught.value.code(), reason_of(caught.value)[0]


async def test_answers_come_as_they_are_made(served: Served) -> None:
    stream = served.watch(b"\xff\x00")
    assert await stream.read() == b"\xff\x00"
    served.watched.go_on.release()
    assert await stream.read() == b"\xff\x00"
    assert served.watched.made == 2
    stream.cancel()


async def test_a_stream_whose_caller_left_ends(served: Served) -> None:
    stream = served.watch()
    await stream.read()
    stream.cancel()
    await eventually(lambda: served.watched.watching == 0)


@pytest.mark.parametrize("served", [(ServerLimits(streams=1), None)], indirect=True)
async def test_streams_above_the_limit_are_refused_until_one_ends(served: Served) -> None:
    first = served.watch()
    await first.read()
    assert await refusal(served.watch()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    first.cancel()
    await eventually(lambda: served.watched.watching == 0)
    served.watched.go_on.release()
    second = served.watch()
    assert await second.read() == b"x"
    second.cancel()


@pytest.mark.parametrize("served", [(ServerLimits(), b"a-token-of-some-length")], indirect=True)
async def test_a_stream_asks_for_the_token_too(served: Served) -> None:
    assert await refusal(served.watch()) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REFUSED")
    stream = served.watch(token=b"a-token-of-some-length")
    assert await stream.read() == b"x"
    stream.cancel()


async def test_a_drain_ends_streams_with_unavailable(served: Served) -> None:
    stream = served.watch()
    await stream.read()
    ending = asyncio.create_task(refusal(stream))
    assert await served.server.drain(BOUND_SECONDS) == 0
    assert await ending == (grpc.StatusCode.UNAVAILABLE, "STORE_NOT_READY")
    assert served.watched.watching == 0


async def test_an_error_of_a_stream_is_sent_as_every_error_is(served: Served) -> None:
    assert await refusal(served.watch(b"bad")) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert (await refusal(served.watch(b"defect")))[0] is grpc.StatusCode.INTERNAL


async def test_a_server_sends_little_ahead_of_a_client_that_reads_fast_and_then_stops(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC's estimate of the bandwidth would raise the window of each stream to megabytes."""
    monkeypatch.setattr(gate, "WRITE_SECONDS", 0.3)
    watched, size, read = served.watched, 100_000, 300
    watched.go_on = asyncio.Semaphore(100 * read)
    stream = served.watch(bytes(size))
    for _ in range(read):
        assert len(await stream.read()) == size
    await eventually(lambda: not watched.watching, BOUND_SECONDS, "the stream ends by its blocked write")
    assert (watched.made - read) * size < 500_000
    stream.cancel()


async def test_a_stream_may_send_initial_metadata_of_its_own(served: Served) -> None:
    stream = served.watch(b"warned")
    assert (metadata.DEPRECATED, "old") in tuple(await stream.initial_metadata())
    assert await stream.read() == b"warned"
    stream.cancel()
