"""Clients of the sandbox service, blocking and for asyncio."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import grpc
import grpc.aio

from baton_client.calls import Metadata, Settings
from baton_client.channel import Options, merged
from baton_client.methods import SCHEMA, AsyncMethods, Methods
from baton_client.tls import Tls

TIMEOUT_SECONDS = 30.0
"""Time limit of a call without a timeout of its own, including retries. Also how long a watch may fail between two
answers."""
CLOSE_SECONDS = 0.5

TokenProvider = Callable[[], str]

C = TypeVar("C", bound="Client")
A = TypeVar("A", bound="AsyncClient")


class Client(Methods):
    """A blocking client, made by `connect`. Any number of threads may use it."""

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all calls and watches."""
        self._channel.close()


class AsyncClient(AsyncMethods):
    """A client for the event loop in which `connect_async` made it."""

    async def __aenter__(self: A) -> A:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and watches."""
        await self._channel.close(CLOSE_SECONDS)


def connect(
    target: str,
    *,
    tls: bool | Tls = False,
    credentials: grpc.ChannelCredentials | None = None,
    token: str | TokenProvider | None = None,
    timeout: float = TIMEOUT_SECONDS,
    name: str = "",
    metadata: Metadata = (),
    options: Options = (),
) -> Client:
    """A client of the service at `target` ("host:port", or any other target of gRPC). It connects at the first call,
    and again after a lost connection. With the target "xds:///sandbox.v1.SandboxService", calls go directly to the
    store that owns their record (see `write_bootstrap`).

    `tls`: encrypt the connection and check the service's certificate, by the CAs that gRPC knows or by the files in a
    `Tls`. `credentials`: gRPC's own, instead. Without either the connection is not encrypted. `token`: sent with
    every call as "authorization: Bearer TOKEN"; a function returns the current token before each attempt, for tokens
    that expire, and must not block for long. `timeout`: seconds for a call without a timeout of its own. `name`: name
    of this client, shown to the service's operators. `metadata`: metadata of every call. `options`: channel options of
    gRPC that override this package's.
    """
    settings = _settings(timeout, name, metadata, _provider(token))
    credentials = credentials or _credentials(target, tls)
    if credentials is None:
        return Client(grpc.insecure_channel(target, merged(options)), settings)
    return Client(grpc.secure_channel(target, credentials, merged(options)), settings)


def connect_async(
    target: str,
    *,
    tls: bool | Tls = False,
    credentials: grpc.ChannelCredentials | None = None,
    token: str | TokenProvider | None = None,
    timeout: float = TIMEOUT_SECONDS,
    name: str = "",
    metadata: Metadata = (),
    options: Options = (),
) -> AsyncClient:
    """Like `connect`, for asyncio. Call it in the event loop that uses the client."""
    settings = _settings(timeout, name, metadata, _provider(token))
    credentials = credentials or _credentials(target, tls)
    if credentials is None:
        return AsyncClient(grpc.aio.insecure_channel(target, merged(options)), settings)
    return AsyncClient(grpc.aio.secure_channel(target, credentials, merged(options)), settings)


def _credentials(target: str, tls: bool | Tls) -> grpc.ChannelCredentials | None:
    if not tls:
        return None
    found = tls.credentials() if isinstance(tls, Tls) else grpc.ssl_channel_credentials()
    # With xDS, the certificate provider in the bootstrap comes first, if the routers name it.
    return grpc.xds_channel_credentials(found) if target.startswith("xds:") else found


def _provider(token: str | TokenProvider | None) -> TokenProvider | None:
    if isinstance(token, str):
        fixed = token
        return lambda: fixed
    return token


def _settings(timeout: float, name: str, metadata: Metadata, token: TokenProvider | None) -> Settings:
    if not timeout > 0:
        raise ValueError(f"timeout: {timeout!r} is not valid: seconds, more than 0")
    given = {key for key, _ in metadata}
    own = [SCHEMA, *([("baton-client", name)] if name else [])]
    return Settings(timeout, (*(pair for pair in own if pair[0] not in given), *metadata), token)
