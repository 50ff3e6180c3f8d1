"""The context of a call with one answer, which reads the call's metadata once.

gRPC's own context decodes all pairs at each `invocation_metadata()`, and asks the core at each `peer()`. The listener,
the authenticator and the handler ask several times.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Never

import grpc

from libs.rpc.errors import Context, Pairs


class CallContext:
    """The part of `Context` that handlers of one answer use."""

    __slots__ = ("_context", "_metadata", "_peer")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._metadata: Any = None
        self._peer = ""

    def __repr__(self) -> str:
        return f"<CallContext of {self.peer()}>"

    def invocation_metadata(self) -> Any:
        found = self._metadata
        if found is None:
            found = self._metadata = self._context.invocation_metadata() or ()
        return found

    def peer(self) -> str:
        return self._peer or self._read_peer()

    def auth_context(self) -> Mapping[str, Any]:
        return self._context.auth_context()

    def time_remaining(self) -> float | None:
        remaining: float | None = self._context.time_remaining()
        return remaining

    def cancelled(self) -> bool:
        return self._context.cancelled()

    def read(self) -> Awaitable[Any]:
        return self._context.read()

    def send_initial_metadata(self, pairs: Pairs) -> Awaitable[None]:
        return self._context.send_initial_metadata(pairs)

    def set_trailing_metadata(self, pairs: Pairs) -> None:
        self._context.set_trailing_metadata(pairs)

    def trailing_metadata(self) -> Any:
        return self._context.trailing_metadata()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Pairs = ()) -> Never:
        await self._context.abort(code, details, trailing_metadata)

    def _read_peer(self) -> str:
        self._peer = self._context.peer()
        return self._peer
