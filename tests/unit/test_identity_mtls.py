"""Identity by client certificates, with real ones, over gRPC and HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from starlette.types import Receive, Scope, Send

from libs.clock import ManualClock
from libs.http.asgi import names_of, respond
from libs.http.listener import HttpConfig, HttpListener
from libs.identity.errors import Unauthenticated
from libs.identity.mtls import CertificateNames
from libs.identity.principal import current_principal
from libs.rpc.channel import open_channel
from libs.rpc.errors import Context, reason_of
from libs.rpc.server import RawService, Server, ServerConfig
from libs.secret_file import LOOK_SECONDS
from libs.tls.files import NamedFile, TlsFiles
from libs.tls.process import ClientTls
from tests.certificates import Authority, Pair, files
from tests.contracts.identity_adapters import Shown, write

WHO = "/test.Service/Who"
SUBJECT = "mtls:payments.example"

Ask = Callable[[Pair], Awaitable[str]]
"""The subject of a caller with this certificate, or the reason of its refusal."""


async def who(request: bytes, context: Context) -> bytes:
    return current_principal().subject.encode()


@asynccontextmanager
async def over_grpc(authority: Authority, names: CertificateNames) -> AsyncIterator[Ask]:
    tls = files(authority.issue("own"), authority.file)
    config = ServerConfig("127.0.0.1:0", "public", authenticator=names, tls=tls)
    server = Server(config, [RawService("test.Service", {"Who": who}, {})])

    async def ask(pair: Pair) -> str:
        own = files(pair)
        caller = ClientTls(TlsFiles(own._certificate, own._key, NamedFile("tls_ca", authority.file)))
        async with open_channel(server.address, caller) as channel:
            try:
                answer: bytes = await channel.multi_callable(WHO)(b"", timeout=10)
            except grpc.aio.AioRpcError as error:
                return reason_of(error)[0]
        return answer.decode()

    await server.start()
    try:
        yield ask
    finally:
        await server.drain(2.0)


@asynccontextmanager
async def over_http(authority: Authority, names: CertificateNames) -> AsyncIterator[Ask]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = (await names.authenticate(Shown(names=names_of(scope)))).subject
        except Unauthenticated as error:
            answer = error.reason
        await respond(send, 200, {}, answer.encode(), "text/plain")

    tls = files(authority.issue("own"), authority.file)
    listener = HttpListener(HttpConfig("127.0.0.1:0", "http", 10, tls=tls), app)

    async def ask(pair: Pair) -> str:
        context = ssl.create_default_context(cafile=str(authority.file))
        context.load_cert_chain(pair.certificate, pair.key)
        host, _, port = listener.address.rpartition(":")
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
        return answer.rpartition(b"\r\n")[2].decode()

    await listener.start()
    try:
        yield ask
    finally:
        await listener.drain(0.0)


def fingerprint(pair: Pair) -> str:
    """The fingerprint that `openssl x509 -noout -fingerprint -sha256` prints."""
    first = pair.certificate.read_text().partition("-----END CERTIFICATE-----")
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(first[0] + first[1])).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


@pytest.mark.parametrize("serving", [over_grpc, over_http])
async def test_a_certificate_is_known_by_its_name_until_it_is_revoked(
    serving: Callable[[Authority, CertificateNames], AbstractAsyncContextManager[Ask]], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    old, new = authority.issue("old", "payments.example"), authority.issue("new", "payments.example")
    stranger = authority.issue("stranger", "nobody.example")
    known = '[[certificate]]\nname = "payments.example"\naccounts = ["acme"]\n'
    path = write(tmp_path / "names.toml", known)
    clock = ManualClock()
    names = CertificateNames(path, clock)
    async with serving(authority, names) as ask:
        assert [await ask(pair) for pair in (old, new, stranger)] == [SUBJECT, SUBJECT, "CERTIFICATE_UNKNOWN"]
        # An entry of another name holds the fingerprint: it counts for every certificate.
        write(path, f'{known}[[certificate]]\nname = "other.example"\nrevoked = ["{fingerprint(old).lower()}"]\n')
        clock.advance(LOOK_SECONDS)
        assert [await ask(pair) for pair in (old, new)] == ["CERTIFICATE_REVOKED", SUBJECT]


async def test_a_connection_that_hides_its_certificate_is_refused_once_one_is_revoked(tmp_path: Path) -> None:
    entry = '[[certificate]]\nname = "payments.example"\n'
    shown = Shown(names={"peer_dns": [b"payments.example"]})
    names = CertificateNames(write(tmp_path / "names.toml", entry), ManualClock())
    assert (await names.authenticate(shown)).subject == SUBJECT
    names = CertificateNames(write(tmp_path / "names.toml", f'{entry}revoked = ["{"A0" * 32}"]\n'), ManualClock())
    with pytest.raises(Unauthenticated) as refused:
        await names.authenticate(shown)
    assert refused.value.reason == "CERTIFICATE_REVOKED"


def test_a_wrong_fingerprint_names_the_entry_and_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path / "names.toml", '[[certificate]]\nname = "a"\nrevoked = ["A0:FF"]\n')
    with pytest.raises(Exception, match=r"number 1: revoked: 'A0:FF' is not a SHA-256 fingerprint: openssl x509"):
        CertificateNames(path, ManualClock())
