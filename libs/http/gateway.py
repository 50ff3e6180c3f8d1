"""Calls of a contract at one listener, for doors other than gRPC: with the same handlers, gate and errors.

A door turns a request into a `DoorCall` and the result into its own form. Limits and errors of calls belong to the gate
(`libs.rpc.gate`) and the handlers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast

import grpc

from libs.contract.descriptors import Contract, Method
from libs.contract.schemas import NEWEST
from libs.errors import BatonError, InvalidField
from libs.http.call import DoorCall, Ended
from libs.http.errors import Failure, failure_from, failure_of
from libs.http.forms import Forms
from libs.rpc.errors import DETAILS_KEY, Context, DeadlineExceeded, Pairs, status_of
from libs.rpc.gate import Gate, Handler
from libs.rpc.server import RawService


class Gateway:
    """The contract as one public listener serves it."""

    def __init__(self, contract: Contract, service: RawService, gate: Gate, default_schema: int = NEWEST) -> None:
        """`default_schema`: schema version of callers that send none."""
        self.contract = contract
        self.gate = gate
        self.forms = Forms(contract)
        self._service = service
        self._default_schema = default_schema
        self.request_bytes = gate.request_bytes

    def __repr__(self) -> str:
        return f"<Gateway {self.contract.service}>"

    def methods(self) -> Iterable[Method]:
        """The methods that this listener serves."""
        served = {*self._service.methods, *self._service.streams}
        return (method for method in self.contract.methods.values() if method.name in served)

    def schema(self, metadata: Pairs) -> int:
        """Schema version of a call, from its metadata.

        If the version does not exist it is the newest: the handler will refuse the call.
        """
        return self._asked(metadata) or NEWEST

    def _asked(self, metadata: Pairs) -> int | None:
        try:
            return self.contract.schemas.asked(metadata, self._default_schema)
        except InvalidField:
            return None

    async def answer(self, method: Method, call: DoorCall) -> bytes:
        """The serialized reply. Raises Ended."""
        return await self.run(self._service.methods[method.name], method.name, call)

    async def run(self, handler: Handler, name: str, call: DoorCall) -> bytes:
        """Like `answer`, for a method outside the contract, with the listener's limits and errors."""
        self._check_schema(call)
        try:
            async with asyncio.timeout(call.time_remaining()):
                answer: bytes = await self.gate.answer(handler, name, None, cast("Context", call))
                return answer
        except TimeoutError:
            raise _late(call) from None

    def _check_schema(self, call: DoorCall) -> None:
        """A request of a schema version that does not exist cannot be parsed, so the handler gets an empty one to
        refuse."""
        if self._asked(call.invocation_metadata()) is None:
            call.read_nothing()

    async def stream(self, method: Method, call: DoorCall) -> None:
        """Pass each serialized message to the call's `write`; return at the regular end of the stream. Raises Ended."""
        handler = self._service.streams[method.name]
        self._check_schema(call)
        try:
            async with asyncio.timeout(call.time_remaining()):
                await self.gate.stream(handler, method.name, None, cast("Context", call))
        except TimeoutError:
            raise _late(call) from None


def failure(error: BatonError | Ended) -> Failure:
    if isinstance(error, Ended):
        return failure_from(error.code, error.message, dict(error.trailers), error.http_code)
    return failure_of(error)


def _late(call: DoorCall) -> Ended:
    """The error that the gate raises when a call's own deadline passes."""
    error = DeadlineExceeded()
    status = status_of(error)
    details = (DETAILS_KEY, status.SerializeToString())
    return Ended(grpc.StatusCode.DEADLINE_EXCEEDED, status.message, (*call.trailers, details))
