"""The HTTP listener against peers that are slow, silent, many or no HTTP clients, and its end."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from starlette.types import Receive, Scope, Send

from libs.http import connection, listener
from libs.http.asgi import respond
from libs.http.connection import HttpConnection
from libs.http.listener import HttpConfig, HttpListener
from libs.rpc.server import CannotListen
from tests.http_client import ask, connected
from tests.waiting import eventually

MEGABYTE = 1 << 20


class App:
    """Answers by path, and counts."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.go_on = asyncio.Event()
        self.bodies: list[bytes] = []
        self.cut_off = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.seen.append(path)
        if path == "/wait":
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.cut_off += 1
                raise
        if path == "/body":
            more = True
            while more:
                event = await receive()
                if event["type"] == "http.disconnect":
                    self.cut_off += 1
                    return
                self.bodies.append(event["body"])
                more = event["more_body"]
        size = {"/large": MEGABYTE, "/huge": 16 * MEGABYTE}.get(path)
        await respond(send, 200, {}, b"x" * size if size else path.encode(), "text/plain")


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def served(app: App, request: pytest.FixtureRequest) -> AsyncIterator[HttpListener]:
    found = HttpListener(HttpConfig("127.0.0.1:0", "http", getattr(request, "param", 100)), app)
    await found.start()
    yield found
    await found.drain(0.0)


def waiting_bytes(served: HttpListener) -> int:
    return sum(one.transport.get_write_buffer_size() for one in served._state.connections)


def connections(served: HttpListener) -> int:
    return len(served._state.connections)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 40\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
        b"POST /body HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding:\r\n chunked\r\n\r\n",
        b"POST /body HTTP/1.1\r\nhost: x\r\nx: y\r\n\tz\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /body HTTP/1.1\r\nhost: x\r\nx: y\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /body HTTP/1.1\nhost: x\ntransfer-encoding: chunked\n\n",
        b"POST /body HTTP/1.1\r\nhost: x\r\nx: y\x01z\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /body HTTP/1.1\r\nhost: x\r\nx: y\rtransfer-encoding: chunked\r\n\r\n",
        b"POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\n\r\n",
        b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n",
    ],
)
@pytest.mark.parametrize("before", [b"", b"GET /before HTTP/1.1\r\nhost: x\r\n\r\n"], ids=["first", "second"])
async def test_a_request_that_a_proxy_may_read_differently_is_refused_with_all_that_follow(
    served: HttpListener, app: App, before: bytes, head: bytes
) -> None:
    async with connected(served.address) as client:
        await client.send(before + head + b"0\r\n\r\nGET /hidden HTTP/1.1\r\nhost: x\r\n\r\n")
        found = await client.read_to_end()
    assert found.count(b"HTTP/1.1 200") == len(app.seen) == bool(before)
    assert found.count(b"HTTP/1.1 400") + found.count(b"HTTP/1.1 501") == 1


async def test_the_body_of_a_refused_request_is_no_request(served: HttpListener, app: App) -> None:
    hidden = b"GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"
    chunk = b"%x;a=b\r\n%b\r\n0\r\nhost: y\r\n\r\n" % (len(hidden), hidden)
    async with connected(served.address) as client:
        head = b"POST /a HTTP/1.1\r\nhost: x\r\n"
        await client.send(head + b"content-length: %d\r\n\r\n" % len(hidden) + hidden)
        await client.send(head + b"transfer-encoding: chunked\r\n\r\n" + chunk)
        await client.send(b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await client.read_to_end()
    assert app.seen == ["/a", "/a", "/last"]


async def test_requests_share_a_connection(served: HttpListener, app: App) -> None:
    async with connected(served.address) as client:
        for path in ("/a", "/b"):
            await client.request("GET", path)
            found = await client.answer()
            assert (found.status, found.body) == (200, path.encode())
            assert "date" in found.headers and "server" not in found.headers


async def test_pipelined_requests_are_answered_in_order(served: HttpListener, app: App) -> None:
    async with connected(served.address) as client:
        await client.send(b"".join(f"GET /{n} HTTP/1.1\r\nhost: x\r\n\r\n".encode() for n in range(20)))
        found = b""
        while b"/19" not in found:
            found += await client.read_raw()
    assert app.seen == [f"/{n}" for n in range(20)]
    assert found.count(b"HTTP/1.1 200") == 20


async def test_a_slow_head_is_refused(served: HttpListener, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    async with connected(served.address) as client:
        await client.send(b"GET / HTTP/1.1\r\nhost:")
        assert b"HTTP/1.1 408 " in await client.read_to_end()
    assert not app.seen


async def test_a_connection_without_a_request_is_closed(served: HttpListener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    async with connected(served.address) as client:
        assert await client.read_to_end() == b""
    await eventually(lambda: connections(served) == 0)


async def test_the_second_head_of_a_connection_has_its_time_too(
    served: HttpListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(served.address) as client:
        await client.request("GET", "/a")
        assert (await client.answer()).status == 200
        monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
        await client.send(b"GET /b HTTP/1.1\r\n")
        assert b"HTTP/1.1 408 " in await client.read_to_end()


async def test_a_slow_answer_is_not_taken_for_a_slow_head(served: HttpListener, app: App) -> None:
    async with connected(served.address) as client:
        await client.request("GET", "/wait")
        await eventually(lambda: app.seen == ["/wait"])
        (found,) = served._state.connections
        assert isinstance(found, HttpConnection) and found._head_timer is None
        app.go_on.set()
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"x" * (64 << 10), b"431"),
        (b"GET /" + b"x" * (64 << 10), b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\na : b\r\n\r\n", b"400"),
        (b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
        (b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", b"501"),
    ],
)
async def test_what_is_no_request_has_a_clear_error(
    served: HttpListener, app: App, sent: bytes, code: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(served.address) as client:
        await client.send(sent)
        found = await client.read_to_end()
    assert found.startswith(b"HTTP/1.1 " + code), found[:80]
    head, _, body = found.partition(b"\r\n\r\n")
    assert b"connection: close" in head and b"x-content-type-options: nosniff" in head
    (info,) = json.loads(body)["error"]["details"]
    assert info["@type"].endswith("ErrorInfo") and info["reason"]
    assert not app.seen
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], "a stranger fills no log"


async def test_a_broken_chunk_ends_the_request(served: HttpListener, app: App) -> None:
    async with connected(served.address) as client:
        await client.send(b"POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n")
        await eventually(lambda: app.bodies == [b"ab"])
        await client.send(b"zz\r\n")
        assert (await client.read_to_end()).startswith(b"HTTP/1.1 400")
    await eventually(lambda: app.cut_off == 1)


@pytest.mark.parametrize("served", [2], indirect=True)
async def test_connections_above_the_limit_are_refused(served: HttpListener, app: App) -> None:
    async with connected(served.address) as first, connected(served.address) as second:
        for client in (first, second):
            await client.request("GET", "/a")
            assert (await client.answer()).status == 200
        refused = await ask(served.address, "POST", "/b", b"x" * 100_000)
        assert (refused.status, refused.headers["connection"], refused.headers["retry-after"]) == (503, "close", "1")
        assert refused.json()["error"]["status"] == "UNAVAILABLE"
        await first.request("GET", "/c")
        assert (await first.answer()).status == 200
    await eventually(lambda: connections(served) == 0)
    assert (await ask(served.address, "GET", "/d")).status == 200
    assert "/b" not in app.seen


async def test_a_host_has_no_more_than_its_share_of_the_connections(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", 60.0)
    served = HttpListener(HttpConfig("127.0.0.1:0", "http", 4, host_share=0.5), app)
    await served.start()
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(connected(served.address, "127.0.0.2")) for _ in range(2)]
        for one in opened:
            await one.request("GET", "/a")
            assert (await one.answer()).status == 200
        for _ in range(2):
            refused = await stack.enter_async_context(connected(served.address, "127.0.0.2"))
            assert b"TOO_MANY_CONNECTIONS" in await refused.read_to_end()
        # Refused connections have a limit too, and take no place of another host.
        cut = await stack.enter_async_context(connected(served.address, "127.0.0.2"))
        assert await cut.read_to_end() == b""
        assert served.hosts.refused == {"TOO_MANY_CONNECTIONS": 3}
        others = [await stack.enter_async_context(connected(served.address, "127.0.0.1")) for _ in range(2)]
        for one in others:
            await one.request("GET", "/readyz")
            assert (await one.answer()).status == 200
        opened[0].close()
        await eventually(lambda: served.hosts.accepted_of("ipv4:127.0.0.2") == 1)
        again = await stack.enter_async_context(connected(served.address, "127.0.0.2"))
        await again.request("GET", "/a")
        assert (await again.answer()).status == 200
    await served.drain(0.0)
    await eventually(lambda: not served.hosts.accepted_of("ipv4:127.0.0.2"))


@pytest.mark.parametrize(
    ("files", "connections"), [(1024, 256), (64, 16), (1_000_000, 1024), (resource.RLIM_INFINITY, 1024)]
)
def test_connections_leave_files_for_the_rest_of_the_process(
    files: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    found = HttpConfig("127.0.0.1:0", "http")
    assert found.connections == connections
    assert files < 0 or 2 * found.connections + 3 * found.backlog <= files * 7 // 8


@pytest.mark.parametrize("served", [1], indirect=True)
async def test_a_flood_of_connections_is_cut_off(
    served: HttpListener, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", 60.0)
    async with (
        connected(served.address),
        connected(served.address) as refused,
        connected(served.address) as cut,
    ):
        assert (await refused.read_raw()).startswith(b"HTTP/1.1 503")
        assert await cut.read_to_end() == b""


async def test_a_large_body_that_is_not_read_leaves_its_answer_and_the_connection(
    served: HttpListener, app: App
) -> None:
    async with connected(served.address) as client:
        await client.request("POST", "/a", b"x" * 8 * MEGABYTE)
        assert (await client.answer()).status == 200
        await client.request("GET", "/b")
        assert (await client.answer()).body == b"/b"


async def test_a_connection_is_read_in_small_parts(
    served: HttpListener, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that chunks of one byte do not keep the event loop busy for long."""
    sizes: list[int] = []
    received = HttpConnection.data_received

    def noting(self: HttpConnection, data: bytes) -> None:
        sizes.append(len(data))
        received(self, data)

    monkeypatch.setattr(HttpConnection, "data_received", noting)
    async with connected(served.address) as client:
        await client.request("POST", "/body", b"x" * MEGABYTE)
        assert (await client.answer()).status == 200
    assert sum(sizes) > MEGABYTE and max(sizes) <= connection.READ_BYTES


async def test_the_rest_of_a_body_has_a_bound(served: HttpListener, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(served.address) as client:
        await client.send(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nx")
        assert (await client.read_raw()).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
        await client.send(b"x")
        assert await client.read_to_end() == b""


async def test_a_peer_who_takes_no_answers_loses_the_connection(
    served: HttpListener, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "WRITE_SECONDS", 0.2)
    async with connected(served.address) as client:
        await client.send(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n" * 50)
        await eventually(lambda: len(app.seen) > 1)
        await eventually(lambda: connections(served) == 0)
    assert len(app.seen) < 50


async def test_a_peer_who_reads_slowly_gets_the_whole_answer(
    served: HttpListener, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(connection, "WRITE_BYTES", 1)
    async with connected(served.address) as client:
        for _ in range(20):
            await client.request("GET", "/large")
            assert len((await client.answer()).body) == MEGABYTE


async def test_a_drain_answers_what_is_under_way_and_closes_behind_it(served: HttpListener, app: App) -> None:
    async with connected(served.address) as busy, connected(served.address) as idle:
        await idle.request("GET", "/a")
        assert "connection" not in (await idle.answer()).headers
        await busy.request("GET", "/wait")
        await eventually(lambda: "/wait" in app.seen)
        draining = asyncio.ensure_future(served.drain(30.0))
        await eventually(lambda: served.draining)
        await idle.request("GET", "/b")
        late = await idle.answer()
        assert (late.body, late.headers["connection"]) == (b"/b", "close")
        assert await idle.read_raw() == b""
        app.go_on.set()
        found = await busy.answer()
        assert (found.body, found.headers["connection"]) == (b"/wait", "close")
        assert await draining == 0
    with pytest.raises(ConnectionRefusedError):
        await ask(served.address, "GET", "/c")


async def test_a_drain_waits_for_a_peer_who_still_reads_its_answer(
    served: HttpListener, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_QUIET_SECONDS", 0.05)
    async with connected(served.address) as client:
        await client.send(b"GET /huge HTTP/1.1\r\nhost: x\r\n\r\n")
        await eventually(lambda: waiting_bytes(served) > 0)
        draining = asyncio.ensure_future(served.drain(30.0))
        await eventually(lambda: served._server is not None and not served._server.is_serving())
        done, _ = await asyncio.wait([draining], timeout=0.3)
        assert not done
        found = await client.read_to_end()
        assert await draining == 0
    assert found.endswith(b"x" * 16 * MEGABYTE)


async def test_a_drain_closes_idle_connections(served: HttpListener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_QUIET_SECONDS", 0.05)
    async with connected(served.address) as idle:
        await idle.request("GET", "/a")
        await idle.answer()
        assert await served.drain(30.0) == 0
        assert await idle.read_raw() == b""


async def test_a_drain_cuts_off_what_takes_too_long(
    served: HttpListener, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(served.address) as client:
        await client.request("GET", "/wait")
        await eventually(lambda: app.seen == ["/wait"])
        assert await served.drain(0.1) == 1
        assert await client.read_to_end() == b""
    assert (app.cut_off, connections(served)) == (1, 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_address_that_is_taken_is_named(served: HttpListener, app: App) -> None:
    with pytest.raises(CannotListen, match=f"http: cannot listen on {served.address}"):
        await HttpListener(HttpConfig(served.address, "http"), app).start()
