"""Clients of the sandbox service, blocking and for asyncio."""

from __future__ import annotations

from typing import TypeVar

import grpc
import grpc.aio

from baton_client.calls import Metadata, Settings
from baton_client.channel import Options, merged
from baton_client.methods import SCHEMA, AsyncMethods, Methods

TIMEOUT_SECONDS = 30.0
"""Of a call without a timeout of its own, its retries included. Also how long a watch may fail between two answers."""
CLOSE_SECONDS = 0.5

C = TypeVar("C", bound="Client")
A = TypeVar("A", bound="AsyncClient")


class Client(Methods):
    """A blocking client, for any number of threads. Made by `connect`."""

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the calls and watches under way."""
        self._channel.close()


class AsyncClient(AsyncMethods):
    """A client for the event loop in which it was made, by `connect_async`."""

    async def __aenter__(self: A) -> A:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the calls and watches under way."""
        await self._channel.close(CLOSE_SECONDS)


def connect(
    target: str,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    timeout: float = TIMEOUT_SECONDS,
    name: str = "",
    metadata: Metadata = (),
    options: Options = (),
) -> Client:
    """A client of the service at `target` ("host:port", or any other target that gRPC takes). It connects at its first
    call, and again when the connection is lost.

    `credentials`: for TLS (grpc.ssl_channel_credentials()); without them the connection is not encrypted.
    `timeout`: seconds for a call without a timeout of its own.
    `name`: what this client calls itself; the service's operators see it.
    `metadata`: for every call.
    `options`: channel options of gRPC, in place of this package's.
    """
    settings = _settings(timeout, name, metadata)
    if credentials is None:
        return Client(grpc.insecure_channel(target, merged(options)), settings)
    return Client(grpc.secure_channel(target, credentials, merged(options)), settings)


def connect_async(
    target: str,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    timeout: float = TIMEOUT_SECONDS,
    name: str = "",
    metadata: Metadata = (),
    options: Options = (),
) -> AsyncClient:
    """As `connect`, for asyncio. Call it in the event loop that uses the client."""
    settings = _settings(timeout, name, metadata)
    if credentials is None:
        return AsyncClient(grpc.aio.insecure_channel(target, merged(options)), settings)
    return AsyncClient(grpc.aio.secure_channel(target, credentials, merged(options)), settings)


def _settings(timeout: float, name: str, metadata: Metadata) -> Settings:
    if not timeout > 0:
        raise ValueError(f"timeout: {timeout!r} is not valid: seconds, more than 0")
    given = {key for key, _ in metadata}
    own = [SCHEMA, *([("baton-client", name)] if name else [])]
    return Settings(timeout, (*(pair for pair in own if pair[0] not in given), *metadata))
