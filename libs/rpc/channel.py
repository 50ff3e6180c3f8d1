"""Channels to other processes. A dead or stalled peer is noticed within about two seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc

from libs.rpc import tls as rpc_tls
from libs.rpc.limits import HARD_MESSAGE_BYTES, METADATA_BYTES
from libs.tls.process import ClientTls

RawCallable: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
RawStreamCallable: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]"

_CLOSE_SECONDS = 0.5


class SentMetadata(grpc.aio.Metadata):
    """Metadata of one call, sent in the order given. gRPC's own class sorts the pairs into lists by name, and reads
    them back, which takes four times as long."""

    def __init__(self, *pairs: tuple[str, str | bytes]) -> None:
        self._pairs = pairs

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Without it, a stalled peer is noticed only after a minute.
    ("grpc.http2.ping_timeout_ms", 1000),
    # Short: calls wait for a peer that restarts.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.max_send_message_length", HARD_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", HARD_MESSAGE_BYTES),
    ("grpc.max_metadata_size", METADATA_BYTES),
    # Equal to the soft limit: between the two, gRPC refuses calls at random.
    ("grpc.absolute_max_metadata_size", METADATA_BYTES),
    # Baton's processes reach each other directly. A proxy in the environment is meant for other traffic.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # With it, gRPC lets a peer send megabytes ahead on each stream: a slow watch would hold them here, unread.
    ("grpc.http2.bdp_probe", 0),
)
"""gRPC's own retries are off: the caller decides, and repeats a write with the same request_id."""


_IN_TURN = ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')


class Channel:
    """A channel to one address ("host:port"), or round-robin to the reachable ones of several processes
    ("127.0.0.1:1,127.0.0.1:2"). It belongs to the event loop that opened it.

    One host name may stand for several processes: gRPC connects to each address that it resolves to, and resolves it
    again if a connection fails. Several addresses must be IP addresses of one family (`check_addresses`): gRPC accepts
    no list of names.
    """

    def __init__(self, address: str, tls: ClientTls | None = None) -> None:
        """Raises TlsUnfit."""
        self.address = address
        family = "ipv6" if address.startswith("[") else "ipv4"
        target = f"{family}:{address}" if "," in address else address
        self.grpc: grpc.aio.Channel
        """Channel for generated stubs."""
        if tls is None:
            self.grpc = grpc.aio.insecure_channel(target, (*OPTIONS, _IN_TURN))
        else:
            rpc_tls.check_addresses(address, tls)
            options = (*OPTIONS, _IN_TURN, *rpc_tls.name_options(tls.server_name))
            self.grpc = rpc_tls.ReloadingChannel(
                tls.files, lambda credentials: grpc.aio.secure_channel(target, credentials, options)
            )
        self._callables: dict[str, RawCallable] = {}

    def __repr__(self) -> str:
        return f"<Channel {self.address} {self.grpc.get_state().name}>"

    def multi_callable(self, method: str) -> RawCallable:
        """Callable for `method` ("/package.Service/Method"), bytes in and out, cached per method."""
        found = self._callables.get(method)
        if found is None:
            found = self._callables[method] = self.grpc.unary_unary(method)
        return found

    def stream_callable(self, method: str) -> RawStreamCallable:
        """Like `multi_callable`, for a method that streams its answers."""
        return self.grpc.unary_stream(method)

    async def close(self) -> None:
        await self.grpc.close(_CLOSE_SECONDS)


@asynccontextmanager
async def open_channel(address: str, tls: ClientTls | None = None) -> AsyncIterator[Channel]:
    """A channel that connects at the first call, and again after a lost connection. Raises TlsUnfit."""
    channel = Channel(address, tls)
    try:
        yield channel
    finally:
        await channel.close()
