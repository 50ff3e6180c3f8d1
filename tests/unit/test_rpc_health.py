"""Answers of a container's health check."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from libs.rpc.health import main, trouble
from libs.rpc.server import RawService, Server, ServerConfig
from tests.composed import ROOT
from tests.system.http import OPEN

TOKEN = b"a-token-of-some-length"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server(ServerConfig("127.0.0.1:0", "internal", token=TOKEN), [RawService("test.Service", {})])
    await found.start()
    yield found
    await found.drain(0.0)


async def test_a_listener_that_serves_has_no_trouble_and_asks_for_no_token(server: Server) -> None:
    assert await asyncio.to_thread(trouble, server.address) == ""
    assert await asyncio.to_thread(main, [server.address, server.address]) == 0


async def test_a_listener_that_does_not_serve_yet_is_in_trouble(server: Server) -> None:
    await server.set_serving(False)
    assert await asyncio.to_thread(trouble, server.address) == "NOT_SERVING"


async def test_one_silent_listener_of_several_is_named(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        # This address accepts connections and never answers: the time limit of the call ends it.
        assert await asyncio.to_thread(main, [server.address, address, "--timeout", "0.2"]) == 1
    assert capsys.readouterr().err.startswith(f"{address}: DEADLINE_EXCEEDED")


def test_a_port_that_nobody_has_is_in_trouble() -> None:
    with socket.socket() as taken:
        # Bound and not listening: connections are refused, and no other process can take the port meanwhile.
        taken.bind(("127.0.0.1", 0))
        assert trouble(f"127.0.0.1:{taken.getsockname()[1]}").startswith("UNAVAILABLE")


def test_the_command_ends_with_1_when_nobody_listens() -> None:
    command = [sys.executable, "-m", "libs.rpc.health", "127.0.0.1:1"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert "127.0.0.1:1: UNAVAILABLE" in found.stderr


async def test_an_http_listener_is_asked_too() -> None:
    async with OPEN["store"]() as door:
        assert await asyncio.to_thread(trouble, f"http://{door.address}") == ""
        await door.listener.set_serving(False)
        assert await asyncio.to_thread(trouble, f"http://{door.address}") == "503 Service Unavailable"
    assert "refused" in await asyncio.to_thread(trouble, f"http://{door.address}")
