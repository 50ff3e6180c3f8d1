"""Forwarding of a client's call to a router: the same bytes and the client's own metadata.

This store has done nothing for the call, so the router may choose new ids for it. To a router's internal listener the
call goes with the principal that this store has verified, and without the client's token. To a public listener it goes
with the client's token, and the router verifies it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc

from libs.errors import OwnerUnavailable
from libs.identity.port import AUTHORIZATION
from libs.identity.principal import current_principal
from libs.rpc import metadata
from libs.rpc.channel import Channel
from libs.rpc.errors import Context, add_trailers, never_sent, own_metadata, pass_on, reason_of
from libs.rpc.forwarded import pair_of
from libs.rpc.hops import next_hop
from libs.telemetry import trace_context

_NOT_FROM_CLIENTS = frozenset(
    {
        metadata.TOKEN,
        metadata.PRINCIPAL,
        metadata.PRINCIPAL_BIN,
        metadata.SERVED_AS,
        metadata.REPLICA,
        metadata.REQUEST_ID,
        metadata.MADE_ID,
        metadata.ACK,
        metadata.HOPS,
    }
)
_NOT_FROM_THE_ROUTER = frozenset({metadata.DEPRECATED})
"""This listener warns its clients itself."""
MOST_WAITING = 64
"""Maximum number of calls that wait for the router. More fail at once: they must not occupy all calls of the
listener."""
PAUSE_SECONDS = 0.05
MARGIN_SECONDS = 0.2
"""Time before its caller's deadline at which a call stops waiting."""

_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


class Passing:
    """Forwards calls from a store's public listener to a router's. The listener limits their number."""

    def __init__(
        self, router: Channel, longest_seconds: float, *, internal: bool = False, token: bytes | None = None
    ) -> None:
        """`internal`: `router` is the router's internal listener, with `token`."""
        self._router = router
        self._longest_seconds = longest_seconds
        self._internal = internal
        self._token = ((metadata.TOKEN, token.decode()),) if internal and token else ()
        self._waiting = 0

    async def call(self, path: str, request: bytes, context: Context, extra: Sequence[tuple[str, str]] = ()) -> bytes:
        """The router's answer or error, unchanged. `extra`: metadata that is added to the client's and overrides it.

        Waits for a router that restarts, as long as nothing was sent. Raises OwnerUnavailable if it stays unavailable,
        and CallLoop.
        """
        remaining: float | None = context.time_remaining()
        clock = asyncio.get_running_loop().time
        ends_at = clock() + (self._longest_seconds if remaining is None else min(remaining, self._longest_seconds))
        call = self._router.multi_callable(path)
        sent = self._sent(context, extra)
        while True:
            answering = call(request, timeout=max(ends_at - clock(), 0.0), metadata=sent)
            try:
                answer = await answering
                break
            except grpc.aio.AioRpcError as error:
                if not never_sent(error) or clock() > ends_at - MARGIN_SECONDS or self._waiting >= MOST_WAITING:
                    _check_router(error)
                    return await pass_on(context, error, without=_NOT_FROM_THE_ROUTER)
            await self._pause()
        found = own_metadata(await answering.trailing_metadata())
        add_trailers(context, tuple(item for item in found if item[0] not in _NOT_FROM_THE_ROUTER))
        return answer

    async def _pause(self) -> None:
        self._waiting += 1
        try:
            await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._waiting -= 1

    async def stream(
        self, path: str, request: bytes, context: Context, extra: Sequence[tuple[str, str]] = ()
    ) -> AsyncGenerator[bytes, None]:
        """Like `call`, for a method that streams its answers; it lasts as long as the caller wants."""
        call = self._router.stream_callable(path)(request, metadata=self._sent(context, extra))
        try:
            while isinstance(answer := await call.read(), bytes):
                yield answer
        except grpc.aio.AioRpcError as error:
            _check_router(error)
            await pass_on(context, error)
        finally:
            call.cancel()

    def _sent(self, context: Context, extra: Sequence[tuple[str, str]]) -> grpc.aio.Metadata:
        """Raises CallLoop."""
        found: Sequence[tuple[str, Any]] = own_metadata(context.invocation_metadata())
        added: tuple[tuple[str, str | bytes], ...] = (*extra, next_hop(context.invocation_metadata()))
        kept_out = _NOT_FROM_CLIENTS | {name for name, _ in extra}
        if traceparent := trace_context.current.get():
            added += ((metadata.TRACEPARENT, traceparent),)
            kept_out |= {metadata.TRACEPARENT}
        if self._internal:
            added += (*self._token, pair_of(current_principal()))
            kept_out |= {AUTHORIZATION}
        return grpc.aio.Metadata(*(item for item in found if item[0] not in kept_out), *added)


def _check_router(error: grpc.aio.AioRpcError) -> None:
    """Raises OwnerUnavailable if the router is unavailable."""
    if error.code() in _AWAY and not reason_of(error)[0]:
        raise OwnerUnavailable(
            "another store may own this, and the router does not answer: retry with the same request_id"
        ) from error
