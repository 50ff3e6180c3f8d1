"""A process's metrics, as Prometheus reads them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from opentelemetry.metrics import Meter

from libs.clock import ManualClock
from libs.errors import LockTimeout
from libs.http.hosts import Hosts
from libs.locks.measured import MeasuredLocks
from libs.locks.memory import MemoryLocks
from libs.proving.servers.ports import free_port
from libs.rpc.gate import Gate, ServerLimits
from libs.rpc.refusals import measure_refusals
from libs.telemetry.metrics import CannotExport, open_metrics
from tests.waiting import eventually

WAIT_SECONDS = 10.0


@pytest.fixture
async def exported() -> AsyncIterator[tuple[Meter, int]]:
    port = free_port()
    async with open_metrics(f"127.0.0.1:{port}") as metrics:
        yield metrics.meter, port


async def ask(port: int, request: bytes) -> str:
    async with asyncio.timeout(WAIT_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return answer.decode()


async def page(port: int) -> list[str]:
    answer = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK")
    assert f"Content-Length: {len(body.encode())}" in head
    return body.splitlines()


async def test_locks_are_exported_with_their_backend_and_how_they_were_answered(exported: tuple[Meter, int]) -> None:
    meter, port = exported
    locks = MeasuredLocks(MemoryLocks(), ManualClock(), meter)
    async with locks.hold("key", 0):
        with pytest.raises(LockTimeout):
            async with locks.hold("key", 0):
                pass
        lines = await page(port)
    assert 'baton_lock_held{backend="memory"} 1.0' in lines
    assert 'baton_lock_waiting{backend="memory"} 0.0' in lines
    assert 'baton_lock_lost_total{backend="memory"} 0.0' in lines
    for outcome in ("ACQUIRED", "LOCK_TIMEOUT"):
        assert f'baton_lock_acquisition_duration_seconds_count{{backend="memory",outcome="{outcome}"}} 1.0' in lines
    assert not [line for line in lines if line.startswith("baton_lock_server_away{")], "memory has no server"


@pytest.mark.parametrize("request_bytes", [b"GET / HTTP/1.1\r\n\r\n", b"POST /metrics HTTP/1.1\r\n\r\n", b"\r\n\r\n"])
async def test_nothing_else_is_served(exported: tuple[Meter, int], request_bytes: bytes) -> None:
    assert (await ask(exported[1], request_bytes)).startswith("HTTP/1.1 404 ")


async def test_a_reader_that_sends_too_much_or_too_little_is_let_go(exported: tuple[Meter, int]) -> None:
    assert await ask(exported[1], b"x" * 20_000) == ""
    assert await page(exported[1]) is not None


async def test_readers_that_say_nothing_keep_only_few_places(exported: tuple[Meter, int]) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", exported[1]) for _ in range(8)]
    request = b"GET /metrics HTTP/1.1\r\n\r\n"
    # The connection ends in one of two ways, depending on how much was read by then.
    with suppress(ConnectionResetError):
        assert await ask(exported[1], request) == "", "sent away"
    for _, writer in silent:
        writer.close()

    async def answers() -> bool:
        try:
            return (await ask(exported[1], request)).startswith("HTTP/1.1 200")
        except ConnectionResetError:
            return False

    await eventually(answers)


async def test_a_port_that_is_in_use_stops_the_start_with_its_name(exported: tuple[Meter, int]) -> None:
    with pytest.raises(CannotExport, match=f"metrics: cannot listen on 127.0.0.1:{exported[1]}"):
        async with open_metrics(f"127.0.0.1:{exported[1]}"):
            pass


async def test_without_an_address_nothing_is_kept() -> None:
    async with open_metrics("") as metrics:
        MeasuredLocks(MemoryLocks(), ManualClock(), metrics.meter)
        assert metrics.served is None and metrics.sent is None


async def test_refused_calls_are_exported_by_listener_and_limit(exported: tuple[Meter, int]) -> None:
    meter, port = exported
    gate = Gate(ServerLimits(), None)
    measure_refusals(meter, {"public": gate.refused, "http": Hosts(4, 0.5).refused})
    gate.refused["LIMIT_RATE"] += 2
    found = sorted(line for line in await page(port) if line.startswith("baton_refused_calls_total"))
    assert found == [
        'baton_refused_calls_total{limit="LIMIT_ANSWERS",listener="public"} 0.0',
        'baton_refused_calls_total{limit="LIMIT_CALLS",listener="public"} 0.0',
        'baton_refused_calls_total{limit="LIMIT_RATE",listener="public"} 2.0',
        'baton_refused_calls_total{limit="LIMIT_REQUEST_BYTES",listener="public"} 0.0',
        'baton_refused_calls_total{limit="LIMIT_STREAMS",listener="public"} 0.0',
        'baton_refused_calls_total{limit="OVERLOADED",listener="public"} 0.0',
        'baton_refused_calls_total{limit="TOO_MANY_CONNECTIONS",listener="http"} 0.0',
    ]
