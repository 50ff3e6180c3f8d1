"""The contract, served by forwarding: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Never
from uuid import UUID, uuid4

import grpc
from google.protobuf.message import Message

from libs.contract.descriptors import Contract, Method
from libs.errors import BatonError, InvalidField
from libs.ownership.model import bucket_of
from libs.rpc import metadata
from libs.rpc.caller import make_id, read_caller
from libs.rpc.errors import Context, abort, pass_on
from libs.rpc.server import RawService
from libs.rpc.tasks import Background
from services.router.core.plan import Target
from services.router.flows.forward import ClientCall, Forward, Steering, Time
from services.router.flows.listing import Listing
from services.router.flows.shadow import Shadow
from services.router.flows.stores import Answer, Refused
from services.router.flows.traffic import Traffic

WRITE_SECONDS = 2.0
"""A write is given at least this long, even when its caller waits less: it is finished in a task of its own."""

DEFAULT_SECONDS = 5.0
"""For a caller without a deadline."""


@dataclass(frozen=True, slots=True)
class Proxy:
    contract: Contract
    forward: Forward
    listing: Listing
    steering: Steering
    traffic: Traffic
    writes: Background
    clock: Time
    shadow: Shadow

    def service(self) -> RawService:
        """To be registered at the public listener."""
        return RawService(
            self.contract.service, {name: self._handler(method) for name, method in self.contract.methods.items()}
        )

    def _handler(self, method: Method) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(request: bytes, context: Context) -> bytes:
            call: ClientCall | None = None
            try:
                message = method.parse(request)
                left = _time_left(context)
                if method.shape is not None:
                    answer = await self.listing.call(method, message, request, left)
                    chosen = None
                else:
                    call = self._client_call(method, message, request, context, left)
                    work = self.forward.call(call)
                    answer, chosen = await (work if method.is_read else self.writes.run(work))
            except Refused as refused:
                self._compare(call, refused)
                return await self._refuse(context, refused)
            except BatonError as error:
                self._count(error)
                return await abort(context, error)
            self._explain(context, answer, chosen)
            self._compare(call, answer)
            return answer.data

        return handle

    def _client_call(
        self, method: Method, message: Message, request: bytes, context: Context, left: float
    ) -> ClientCall:
        if method.key is None:
            raise ValueError(f"{method.path} has no key")
        given = context.invocation_metadata()
        caller = read_caller(given, internal=False)
        extra: list[tuple[str, str]] = [(metadata.PRINCIPAL, caller.principal)]
        key = method.key.of(message)
        if not method.is_read:
            request_id = getattr(message, method.request_id).lower() or _request_id(given) or str(uuid4())
            extra.append((metadata.REQUEST_ID, request_id))
            if method.key.lacks_id(message):
                made = make_id(caller.principal, request_id)
                extra.append((metadata.MADE_ID, made))
                key = method.key.with_id(message, made)
            left = max(left, WRITE_SECONDS)
        if caller.traceparent:
            extra.append((metadata.TRACEPARENT, caller.traceparent))
        return ClientCall(
            method=method,
            request=request,
            key=key,
            bucket=bucket_of(key),
            may_create=method.may_create(message),
            extra=tuple(extra),
            deadline=self.clock.monotonic() + left,
        )

    def _compare(self, call: ClientCall | None, outcome: Answer | Refused) -> None:
        """Some reads are asked again at the other store, later. Lists are compared by their rows where those are."""
        if call is not None and call.method.is_read:
            self.shadow.offer(call, outcome)

    async def _refuse(self, context: Context, refused: Refused) -> Never:
        if refused.error.code() is grpc.StatusCode.UNAVAILABLE:
            self.traffic.unavailable += 1
        await pass_on(context, refused.error)

    def _count(self, error: BatonError) -> None:
        if error.code == "UNAVAILABLE":
            self.traffic.unavailable += 1
        elif error.code == "RESOURCE_EXHAUSTED":
            self.traffic.overloaded += 1

    def _explain(self, context: Context, answer: Answer, chosen: Target | None) -> None:
        """What the client is told beside the answer."""
        trailers: list[tuple[str, str | bytes]] = [
            (name, value)
            for name, value in answer.trailers.items()
            if name in (metadata.STALE, metadata.AGE_SECONDS, metadata.VERSION)
        ]
        if any(name == metadata.EXPLAIN for name, _ in context.invocation_metadata() or ()):
            trailers.append((metadata.PHASE, self.steering.current.phase.value))
            if chosen is not None:
                trailers += [(metadata.STORE, answer.store.value), (metadata.REASON, chosen.rule)]
        if trailers:
            context.set_trailing_metadata(tuple(trailers))


def _time_left(context: Context) -> float:
    left: float | None = context.time_remaining()
    return DEFAULT_SECONDS if left is None else left


def _request_id(given: Any) -> str | None:
    """Of a call that a store passed on for its own client. Raises InvalidField."""
    value = dict(given or ()).get(metadata.REQUEST_ID)
    if value is None:
        return None
    try:
        return str(UUID(value))
    except (ValueError, AttributeError, TypeError):
        raise InvalidField(metadata.REQUEST_ID, value, "a UUID") from None
