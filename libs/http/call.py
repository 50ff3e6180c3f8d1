"""A call that did not come over gRPC, in the form that handlers expect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Never

import grpc

from libs.http.errors import RefusedByHttp
from libs.rpc.errors import Pairs


class Ended(grpc.aio.AbortError):
    """A status ended the call. The listener's gate passes it on, as it does gRPC's own."""

    def __init__(self, code: grpc.StatusCode, message: str, trailers: Pairs, http_code: int | None = None) -> None:
        """`http_code`: for an error that has an HTTP code of its own."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.trailers = trailers
        self.http_code = http_code


class DoorCall:
    """The part of a gRPC call's context (`libs.rpc.errors.Context`) that handlers and the gate use, for a call over
    HTTP."""

    def __init__(
        self,
        metadata: Pairs,
        peer: str,
        read: Callable[[], Awaitable[bytes]],
        seconds: float | None = None,
        names: Mapping[str, Iterable[bytes]] | None = None,
    ) -> None:
        """`peer`: address in gRPC's form. `read`: returns the serialized request; raises BatonError. `seconds`: time
        until the caller's deadline. `names`: of the caller's certificate, by gRPC's keys."""
        self._metadata = metadata
        self._peer = peer
        self._read = read
        self._names = names or {}
        self.writer: Callable[[bytes], Awaitable[None]] | None = None
        """Sends one message of a stream."""
        self._ends_at = None if seconds is None else asyncio.get_running_loop().time() + seconds
        self.initial: Pairs = ()
        self.trailers: Pairs = ()
        self.left = False
        """The caller has left."""
        self.was_read = asyncio.Event()
        self._http_code: int | None = None

    def read_nothing(self) -> None:
        """Give the handler an empty request, for a call that it refuses in any case."""

        async def nothing() -> bytes:
            return b""

        self._read = nothing

    def __repr__(self) -> str:
        return f"<DoorCall of {self._peer}>"

    def invocation_metadata(self) -> Pairs:
        return self._metadata

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self._names

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None without one."""
        return None if self._ends_at is None else max(self._ends_at - asyncio.get_running_loop().time(), 0.0)

    def cancelled(self) -> bool:
        return self.left

    async def read(self) -> Any:
        try:
            request = await self._read()
        except RefusedByHttp as error:
            self._http_code = error.http_code
            raise
        self.was_read.set()
        return request

    async def write(self, answer: bytes) -> None:
        if self.writer is None:
            raise TypeError("a call with one answer writes none")
        await self.writer(answer)

    async def send_initial_metadata(self, pairs: Pairs) -> None:
        """They are sent with the first message of the answer."""
        self.initial = (*self.initial, *pairs)

    def set_trailing_metadata(self, pairs: Pairs) -> None:
        self.trailers = tuple(pairs)

    def trailing_metadata(self) -> Pairs:
        return self.trailers

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Pairs = ()) -> Never:
        self.trailers = tuple(trailing_metadata)
        raise Ended(code, details, self.trailers, self._http_code)
