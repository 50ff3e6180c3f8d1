"""The HTTP listener over TLS: limits hold from the first byte, and certificates change while it serves."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from libs.http import connection, handshake
from libs.http.asgi import respond
from libs.http.connection import HttpConnection
from libs.http.listener import HttpConfig, HttpListener
from libs.tls.files import TlsFiles
from tests.certificates import Authority, Pair, files
from tests.waiting import eventually

BODY_BYTES = 1 << 20


class App:
    """Answers with the length of the body, and keeps the names of the client."""

    def __init__(self) -> None:
        self.names: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            event = await receive()
            size += len(event.get("body", b""))
            more = event.get("more_body", False)
        (kept,) = scope["state"].values()
        self.names = list(kept.peer_identity.get("x509_subject_alternative_name", ()))
        await respond(send, 200, {}, str(size).encode(), "text/plain")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def serving(tls: TlsFiles, app: App | None = None, connections: int = 100) -> AsyncIterator[HttpListener]:
    listener = HttpListener(HttpConfig("127.0.0.1:0", "http", connections, tls=tls), app or App())
    await listener.start()
    try:
        yield listener
    finally:
        await listener.drain(0.0)


def trusting(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    return context


async def connected(
    listener: HttpListener, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = listener.address.rpartition(":")
    return await asyncio.open_connection(host, int(port), ssl=context)


async def ask(listener: HttpListener, context: ssl.SSLContext | None, head: bytes = b"", body: bytes = b"") -> bytes:
    """The whole answer to a request; b"" if the connection ends without one."""
    async with asyncio.timeout(20):
        reader, writer = await connected(listener, context)
        try:
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + head + b"\r\n" + body)
            await writer.drain()
            return await reader.read()
        except (ConnectionResetError, BrokenPipeError):
            return b""
        except ssl.SSLError as error:
            if "ALERT" not in str(error):
                raise
            return b""
        finally:
            writer.close()


async def test_a_client_with_a_certificate_is_served_and_known_by_its_names(authority: Authority) -> None:
    app = App()
    async with serving(files(authority.issue("own"), authority.file), app) as listener:
        caller = trusting(authority, authority.issue("caller", "caller.baton", "ops@example.com"))
        assert b"200 OK" in await ask(listener, caller)
    assert app.names == [b"caller.baton", b"ops@example.com"]


async def test_a_client_that_cannot_be_trusted_is_refused(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    async with serving(files(authority.issue("own"), authority.file)) as listener:
        for caller in (trusting(authority), trusting(authority, other.issue("stranger"))):
            # In TLS 1.3 a client learns of the refusal when it reads.
            assert await ask(listener, caller) == b""
        assert await ask(listener, None) == b""
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(listener, trusting(other))
        await eventually(lambda: not listener._handshakes)


async def test_a_replaced_certificate_is_shown_to_the_next_client(authority: Authority) -> None:
    async with serving(files(authority.issue("own"))) as listener:

        async def serial() -> str:
            _, writer = await connected(listener, trusting(authority))
            found: Any = writer.get_extra_info("peercert")
            writer.close()
            return str(found["serialNumber"])

        before = await serial()
        authority.issue("own")
        assert await serial() != before


async def test_a_body_in_small_chunks_arrives_whole_and_in_pieces(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    receive = HttpConnection._receive

    def noted(self: HttpConnection, data: bytes) -> None:
        sizes.append(len(data))
        receive(self, data)

    monkeypatch.setattr(HttpConnection, "_receive", noted)
    async with serving(files(authority.issue("own"))) as listener:
        chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
        body = chunk * (BODY_BYTES // 1024) + b"0\r\n\r\n"
        answer = await ask(listener, trusting(authority), b"transfer-encoding: chunked\r\n", body)
    assert answer.endswith(str(BODY_BYTES).encode())
    assert max(sizes) <= connection.READ_BYTES
    assert sum(sizes) > BODY_BYTES


async def test_silent_clients_count_before_their_handshake_and_do_not_stay(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 1.0)
    async with serving(files(authority.issue("own")), connections=2) as listener:
        silent = [await connected(listener, None) for _ in range(8)]
        # The first four fill the listener and its reserve; the others are closed at once.
        await eventually(lambda: len(listener._handshakes) == 4)
        async with asyncio.timeout(10):
            ends = [await reader.read() for reader, _ in silent]
        assert ends == [b""] * 8
        await eventually(lambda: not listener._handshakes)
        for _, writer in silent:
            writer.close()
        assert b"200 OK" in await ask(listener, trusting(authority))


async def test_a_full_listener_answers_over_tls(authority: Authority) -> None:
    async with serving(files(authority.issue("own")), connections=1) as listener:
        _, kept = await connected(listener, trusting(authority))
        await eventually(lambda: len(listener._state.connections) == 1)
        assert b"503" in (await ask(listener, trusting(authority))).partition(b"\r\n")[0]
        kept.close()


async def test_a_connection_over_tls_counts_once_for_its_host(authority: Authority) -> None:
    host = "ipv4:127.0.0.1"
    async with serving(files(authority.issue("own"))) as listener:
        _, silent = await connected(listener, None)
        await eventually(lambda: (listener.hosts.open_of(host), listener.hosts.accepted_of(host)) == (1, 0))
        _, kept = await connected(listener, trusting(authority))
        await eventually(lambda: (listener.hosts.open_of(host), listener.hosts.accepted_of(host)) == (2, 1))
        for writer in (silent, kept):
            writer.close()
        await eventually(lambda: (listener.hosts.open_of(host), listener.hosts.accepted_of(host)) == (0, 0))


async def test_a_drain_ends_handshakes_in_progress(authority: Authority) -> None:
    async with serving(files(authority.issue("own"))) as listener:
        reader, writer = await connected(listener, None)
        await eventually(lambda: listener._handshakes)
        async with asyncio.timeout(10):
            await listener.drain(5.0)
            assert await reader.read() == b""
        writer.close()
