"""A contract's calls at one listener, for doors other than gRPC: the same handlers, the same gate, the same errors.

A door turns what it is sent into a `DoorCall`, and what comes back into its own form. What a call may do, its limits
and its errors are the gate's and the handlers' (`libs.rpc.gate`).
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
        """`default_schema`: the schema version of a caller who says none."""
        self.contract = contract
        self.gate = gate
        self.forms = Forms(contract)
        self._service = service
        self._default_schema = default_schema
        self.request_bytes = gate.request_bytes

    def __repr__(self) -> str:
        return f"<Gateway {self.contract.service}>"

    def methods(self) -> Iterable[Method]:
        """Those that this listener serves."""
        served = {*self._service.methods, *self._service.streams}
        return (method for method in self.contract.methods.values() if method.name in served)

    def schema(self, metadata: Pairs) -> int:
        """The schema version that a call speaks, from its metadata; the newest if it names one that does not exist:
        then its handler refuses it, whatever it asks."""
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
        """As `answer`, for a method that is not of the contract: with the listener's limits and errors."""
        self._check_schema(call)
        try:
            async with asyncio.timeout(call.time_remaining()):
                return await self.gate.answer(handler, name, None, cast("Context", call))
        except TimeoutError:
            raise _late(call) from None

    def _check_schema(self, call: DoorCall) -> None:
        """A request cannot be read in a schema version that does not exist: then the handler gets none to read."""
        if self._asked(call.invocation_metadata()) is None:
            call.read_nothing()

    async def stream(self, method: Method, call: DoorCall) -> None:
        """Gives each serialized answer to the call's `write`; returns when the stream has ended in order. Raises
        Ended."""
        handler = self._service.streams[method.name]
        self._check_schema(call)
        try:
            async with asyncio.timeout(call.time_remaining()):
                await self.gate.stream(handler, None, cast("Context", call))
        except TimeoutError:
            raise _late(call) from None


def failure(error: BatonError | Ended) -> Failure:
    """As the client gets it."""
    if isinstance(error, Ended):
        return failure_from(error.code, error.message, dict(error.trailers), error.http_code)
    return failure_of(error)


def _late(call: DoorCall) -> Ended:
    """As the gate ends a call whose own deadline has passed."""
    error = DeadlineExceeded()
    status = status_of(error)
    details = (DETAILS_KEY, status.SerializeToString())
    return Ended(grpc.StatusCode.DEADLINE_EXCEEDED, status.message, (*call.trailers, details))
