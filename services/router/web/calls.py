"""Calls of the control API in the name of a session: through the control listener's gate, with its authentication,
roles, limits and errors. The page has no other way to the state."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.protobuf.message_factory import GetMessageClass

from libs.errors import BatonError
from libs.http.call import DoorCall, Ended
from libs.http.errors import HTTP_CODES
from libs.http.gateway import failure
from libs.identity.principal import Principal
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.auth import operator_metadata
from libs.rpc.errors import Context
from libs.rpc.gate import Gate
from libs.rpc.server import RawService
from services.router.web.session import Session

CALL_SECONDS = 10.0

_ANSWERS: Mapping[str, Any] = {
    method.name: GetMessageClass(method.output_type)
    for method in pb.DESCRIPTOR.services_by_name["ControlService"].methods
}
"""Type of the answer by method."""


class CallFailed(Exception):
    """A call of the control API failed. The message is the API's."""

    def __init__(self, message: str, code: grpc.StatusCode = grpc.StatusCode.UNKNOWN) -> None:
        super().__init__(message)
        self.message = message
        self.http_code = HTTP_CODES[code]
        self.signed_out = code is grpc.StatusCode.UNAUTHENTICATED
        """The API does not accept the session's credentials (any more)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The browser's connection."""

    address: str
    """Address in gRPC's notation."""
    names: Mapping[str, Sequence[bytes]]
    """Names in its certificate, by gRPC's keys."""


class ControlApi:
    """The control API, for any session."""

    def __init__(self, service: RawService, gate: Gate) -> None:
        self._service = service
        self._gate = gate

    async def principal(self, session: Session, peer: Peer) -> Principal:
        """The session's operator. Raises BatonError."""
        return await self._gate.authenticate(_call(session, peer, b""))

    def caller(self, session: Session, peer: Peer) -> Caller:
        return Caller(self._service, self._gate, session, peer)


class Caller:
    """The control API for one session."""

    def __init__(self, service: RawService, gate: Gate, session: Session, peer: Peer) -> None:
        self._service = service
        self._gate = gate
        self._session = session
        self._peer = peer

    @property
    def actor(self) -> str:
        return self._session.actor

    async def call(self, method: str, request: Any, seconds: float = CALL_SECONDS) -> Any:
        """Raises CallFailed, also if there is no answer within the time."""
        call = _call(self._session, self._peer, request.SerializeToString())

        # A context of its own: the gate sets the principal of the running call there.
        async def answer() -> bytes:
            async with asyncio.timeout(seconds):
                found: bytes = await self._gate.answer(
                    self._service.methods[method], method, None, cast("Context", call)
                )
                return found

        try:
            data = await asyncio.create_task(answer())
        except Ended as error:
            raise failed(error) from None
        except TimeoutError:
            raise _late(method, seconds) from None
        return _ANSWERS[method].FromString(data)

    async def stream(self, method: str, request: Any, take: Callable[[Any], Awaitable[None]]) -> None:
        """Pass each answer to `take`, until the stream ends. Raises CallFailed."""
        call = _call(self._session, self._peer, request.SerializeToString(), None)

        async def write(data: bytes) -> None:
            await take(_ANSWERS[method].FromString(data))

        call.writer = write
        try:
            await self._gate.stream(self._service.streams[method], method, None, cast("Context", call))
        except Ended as error:
            raise failed(error) from None

    async def collect(self, method: str, request: Any) -> list[Any]:
        """All answers of a stream that ends. Raises CallFailed."""
        found: list[Any] = []

        async def take(answer: Any) -> None:
            found.append(answer)

        try:
            async with asyncio.timeout(CALL_SECONDS):
                await asyncio.create_task(self.stream(method, request, take))
        except TimeoutError:
            raise _late(method, CALL_SECONDS) from None
        return found


def _call(session: Session, peer: Peer, request: bytes, seconds: float | None = CALL_SECONDS) -> DoorCall:
    async def read() -> bytes:
        return request

    return DoorCall(operator_metadata(session.token), peer.address, read, seconds, peer.names)


def failed(error: BatonError | Ended) -> CallFailed:
    """The API's error."""
    found = failure(error)
    return CallFailed(found.status.message, found.code)


def _late(method: str, seconds: float) -> CallFailed:
    return CallFailed(
        f"{method}: the router did not answer within {seconds:g} s; if it is a change, the journal shows whether it was"
        " made",
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
