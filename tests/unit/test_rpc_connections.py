"""The number of connections of a listener, and of a process's open files."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable

import pytest

from libs.rpc import limits
from libs.rpc.channel import open_channel
from libs.rpc.errors import Context
from libs.rpc.server import RawService, Server, ServerConfig
from tests.waiting import eventually

ECHO = "/test.Service/Echo"


async def _echo(request: bytes, context: Context) -> bytes:
    return request


async def _is_open(reader: asyncio.StreamReader) -> bool:
    """Whether the listener greets the connection; otherwise it closes it."""
    try:
        async with asyncio.timeout(10):
            return bool(await reader.read(1))
    except ConnectionError:
        return False


async def test_connections_beyond_the_limit_are_closed_and_those_before_are_served() -> None:
    server = Server(ServerConfig("127.0.0.1:0", "public", connections=3), [RawService("test.Service", {"Echo": _echo})])
    await server.start()
    host, _, port = server.address.rpartition(":")
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> bool:
        reader, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)
        return await _is_open(reader)

    try:
        async with open_channel(server.address) as channel:
            assert await channel.multi_callable(ECHO)(b"x", timeout=10) == b"x"
            assert [await connect() for _ in range(2)] == [True, True]
            assert [await connect() for _ in range(5)] == [False] * 5
            assert await channel.multi_callable(ECHO)(b"x", timeout=10) == b"x"
            for writer in writers:
                writer.close()
            # A place is free again once the listener has seen the end of a connection.
            again: Callable[[], Awaitable[bool]] = connect
            await eventually(again)
    finally:
        for writer in writers:
            writer.close()
        await server.drain(1.0)


@pytest.mark.parametrize(
    ("soft", "hard", "wanted"),
    [
        (1024, 4096, 4096),
        (1024, 1 << 20, limits.MOST_FILES),
        (1024, resource.RLIM_INFINITY, limits.MOST_FILES),
        (1 << 20, 1 << 20, None),
        (1024, 1024, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
    ],
)
def test_a_process_asks_for_as_many_open_files_as_it_may_have(
    soft: int, hard: int, wanted: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: asked.append(pair))
    limits.raise_open_files()
    assert asked == ([] if wanted is None else [(wanted, hard)])


def test_a_listener_leaves_files_to_the_rest_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, connections in ((256, 128), (1 << 20, limits.CONNECTIONS), (resource.RLIM_INFINITY, limits.CONNECTIONS)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert limits.most_connections() == connections
