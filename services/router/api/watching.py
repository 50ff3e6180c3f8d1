"""A method of the contract that watches: one request in, bytes out as the stores make them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from libs.contract.descriptors import Contract, Method
from libs.errors import BatonError
from libs.ownership.model import Store
from libs.rpc import metadata
from libs.rpc.caller import read_caller
from libs.rpc.clients import Clients
from libs.rpc.errors import Context, pass_on
from libs.rpc.gate import SlowReader, Stream
from services.router.flows.calls.watching import WatchCall, Watching
from services.router.flows.stores import Metadata, Refused
from services.router.flows.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Watches:
    contract: Contract
    watching: Watching
    traffic: Traffic
    clients: Clients

    def handler(self, method: Method, chosen: Callable[[bool], Store]) -> Stream:
        """`chosen`: where a watch begins now that does not say where it goes on, if its client is an old one or not."""

        async def handle(request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
            try:
                version = self.contract.schemas.asked(context.invocation_metadata())
                await self.clients.note(context, version)
                call = WatchCall(method, method.parse(request), self._extra(context, version))
                to = chosen(self.contract.schemas.is_old(version))
                async with aclosing(self.watching.answers(call, to)) as answers:
                    async for answer in answers:
                        yield answer
            except SlowReader:
                raise  # The caller's own doing: it does not count as unavailable.
            except Refused as refused:
                self.traffic.unavailable += refused.error.code() is grpc.StatusCode.UNAVAILABLE
                await pass_on(context, refused.error)
            except BatonError as error:
                self.traffic.unavailable += error.code == "UNAVAILABLE"
                raise

        return handle

    def _extra(self, context: Context, version: int) -> Metadata:
        caller = read_caller(context.invocation_metadata(), internal=False)
        schemas = self.contract.schemas
        extra: list[tuple[str, str]] = [(metadata.PRINCIPAL, caller.principal)]
        if caller.traceparent:
            extra.append((metadata.TRACEPARENT, caller.traceparent))
        if schemas.metadata:
            extra.append((schemas.metadata, str(version)))
        return tuple(extra)
