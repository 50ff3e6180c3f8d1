"""gRPC over TLS: who is refused, with which words, and certificates that change under calls."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from libs.rpc import tls as rpc_tls
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import Context, never_sent
from libs.rpc.server import RawService, Server, ServerConfig
from libs.tls.files import NamedFile, TlsFiles, TlsUnfit
from libs.tls.process import ClientTls
from tests.certificates import Authority, Pair, files
from tests.waiting import eventually

ECHO = "/test.Service/Echo"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


class Service:
    """Answers with the request, and holds "wait" until `go_on`."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.waiting = 0
        self.names: list[str] = []

    async def echo(self, request: bytes, context: Context) -> bytes:
        self.names = [name.decode() for name in context.auth_context().get("x509_subject_alternative_name", ())]
        if request == b"wait":
            self.waiting += 1
            await self.go_on.wait()
        return request

    async def count(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        yield b"first"
        await self.go_on.wait()
        yield b"last"


@asynccontextmanager
async def serving(tls: TlsFiles | None, service: Service | None = None) -> AsyncIterator[Server]:
    service = service or Service()
    raw = RawService("test.Service", {"Echo": service.echo}, {"Count": service.count})  # type: ignore[dict-item]
    server = Server(ServerConfig("127.0.0.1:0", "public", tls=tls), [raw])
    await server.start()
    try:
        yield server
    finally:
        service.go_on.set()
        await server.drain(2.0)


def client(ca: Path, pair: Pair | None = None, name: str = "") -> ClientTls:
    own = files(pair)
    return ClientTls(TlsFiles(own._certificate, own._key, NamedFile("tls_ca", ca)), name)


async def failure(channel: Channel) -> str:
    """The meaning of the error of a call, which must have reached nobody."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await channel.multi_callable(ECHO)(b"x", timeout=5)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert never_sent(failed.value)
    return rpc_tls.meaning(failed.value.details() or "")


def served_serial(address: str, ca: Path, pair: Pair | None = None) -> str:
    """Serial number of the certificate that a listener shows."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    host, _, port = address.rpartition(":")
    plain = socket.create_connection((host, int(port)), 5)
    with plain, context.wrap_socket(plain, server_hostname=host) as encrypted:
        found: Any = encrypted.getpeercert()
        return str(found["serialNumber"])


async def test_a_client_with_a_certificate_is_served_and_known_by_its_names(authority: Authority) -> None:
    service = Service()
    caller = client(authority.file, authority.issue("router", "router.baton"))
    async with (
        serving(files(authority.issue("own"), authority.file), service) as server,
        open_channel(server.address, caller) as channel,
    ):
        assert await channel.multi_callable(ECHO)(b"x", timeout=5) == b"x"
        assert [one async for one in stream(channel, service)] == [b"first", b"last"]
    assert service.names == ["router.baton"]


async def stream(channel: Channel, service: Service) -> AsyncIterator[bytes]:
    service.go_on.set()
    async for one in channel.stream_callable("/test.Service/Count")(b"x", timeout=5):
        yield one


async def test_a_peer_that_cannot_be_trusted_is_refused_in_words(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    own, expired = authority.issue("own"), authority.issue("expired", days=1)
    elsewhere = authority.issue("elsewhere", "elsewhere.example")
    stranger = other.issue("stranger")
    stale = files(expired)
    cases: list[tuple[TlsFiles | None, ClientTls | None, str]] = [
        (files(own), None, "closed the connection: does it use TLS"),
        (None, client(authority.file), "does not use TLS"),
        (files(own), client(other.file), "is not from the CA in tls_ca"),
        (files(elsewhere), client(authority.file), "has another name"),
        (files(own, authority.file), client(authority.file), "require a client's certificate"),
        (files(own, authority.file), client(authority.file, stranger), "closed the connection"),
    ]
    for listener, caller, words in cases:
        async with serving(listener) as server, open_channel(server.address, caller) as channel:
            assert words in await failure(channel), words
    # A certificate that expires while it is served.
    authority.issue("expired", days=-1)
    past = expired.certificate.read_bytes(), expired.key.read_bytes()
    stale.material = type(stale.material)(past[0], past[1], None, None)
    async with serving(stale) as server, open_channel(server.address, client(authority.file)) as channel:
        assert "has expired" in await failure(channel)


async def test_another_name_is_checked_if_the_setting_says_so(authority: Authority) -> None:
    async with serving(files(authority.issue("own", "store.baton"))) as server:
        async with open_channel(server.address, client(authority.file, name="store.baton")) as channel:
            assert await channel.multi_callable(ECHO)(b"x", timeout=5) == b"x"
        several = f"{server.address},{server.address}"
        async with open_channel(several, client(authority.file, name="store.baton")) as channel:
            assert await channel.multi_callable(ECHO)(b"x", timeout=5) == b"x"
        with pytest.raises(TlsUnfit, match=r"tls_server_name: it is not set; .* several processes"):
            Channel(several, client(authority.file))


async def test_a_listener_shows_a_replaced_certificate_and_no_call_fails(authority: Authority) -> None:
    pair = authority.issue("own")
    shown = files(pair)
    async with serving(shown) as server, open_channel(server.address, client(authority.file)) as channel:
        stop = asyncio.Event()

        async def calls() -> int:
            done = 0
            while not stop.is_set():
                assert await channel.multi_callable(ECHO)(b"x", timeout=5) == b"x"
                done += 1
            return done

        running = [asyncio.create_task(calls()) for _ in range(4)]
        before = await asyncio.to_thread(served_serial, server.address, authority.file)
        authority.issue("own")
        assert shown.refresh()
        after = await asyncio.to_thread(served_serial, server.address, authority.file)
        again = await asyncio.to_thread(served_serial, server.address, authority.file)
        stop.set()
        assert min(await asyncio.gather(*running)) > 0
    assert before != after == again


async def test_a_ca_that_is_withdrawn_admits_no_new_client(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    trusted = files(authority.issue("own"), other.file)
    caller = client(authority.file, other.issue("caller"))
    async with serving(trusted) as server:
        async with open_channel(server.address, caller) as channel:
            assert await channel.multi_callable(ECHO)(b"x", timeout=5) == b"x"
        Authority(tmp_path, "other")
        assert trusted.refresh()
        async with open_channel(server.address, caller) as channel:
            assert "closed the connection" in await failure(channel)


async def test_a_client_shows_a_replaced_certificate_and_its_calls_in_progress_end_well(authority: Authority) -> None:
    service = Service()
    caller = client(authority.file, authority.issue("router", "first.baton"))
    async with (
        serving(files(authority.issue("own"), authority.file), service) as server,
        open_channel(server.address, caller) as channel,
    ):
        call = channel.multi_callable(ECHO)
        waiting = asyncio.ensure_future(call(b"wait", timeout=20))
        streaming = channel.stream_callable("/test.Service/Count")(b"x", timeout=20)
        assert await streaming.read() == b"first"
        await eventually(lambda: service.waiting)
        assert service.names == ["first.baton"]
        authority.issue("router", "second.baton")
        assert caller.files.refresh()
        assert await call(b"x", timeout=5) == b"x"
        assert service.names == ["second.baton"]
        assert isinstance(channel.grpc, rpc_tls.ReloadingChannel)
        assert len(channel.grpc._old) == 1
        service.go_on.set()
        assert await waiting == b"wait"
        assert await streaming.read() == b"last"
        assert await streaming.read() is grpc.aio.EOF
        replaced = channel.grpc._old
        await eventually(lambda: not replaced)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
async def test_tls_before_1_2_is_refused(authority: Authority, version: ssl.TLSVersion) -> None:
    def speak(port: int) -> str | None:
        context = ssl.create_default_context(cafile=str(authority.file))
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = version
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", port), 5)
        with plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
            return encrypted.version()

    async with serving(files(authority.issue("own"))) as server:
        if version is ssl.TLSVersion.TLSv1_2:
            assert await asyncio.to_thread(speak, server.port) == "TLSv1.2"
        else:
            with pytest.raises(OSError, match=r"EOF occurred|reset by peer"):
                await asyncio.to_thread(speak, server.port)


async def test_a_drain_answers_the_calls_in_progress_over_tls(authority: Authority) -> None:
    service = Service()
    async with (
        serving(files(authority.issue("own")), service) as server,
        open_channel(server.address, client(authority.file)) as channel,
    ):
        waiting = asyncio.ensure_future(channel.multi_callable(ECHO)(b"wait", timeout=20))
        await eventually(lambda: service.waiting)
        draining = asyncio.create_task(server.drain(20.0))
        await asyncio.sleep(0)
        service.go_on.set()
        assert await waiting == b"wait"
        assert await draining == 0
