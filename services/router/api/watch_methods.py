"""Watch methods of the contract: one request in, a stream of the stores' serialized answers out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from libs.contract.descriptors import Contract, Method
from libs.errors import BatonError
from libs.identity.principal import current_principal
from libs.ownership.model import Store
from libs.rpc import metadata
from libs.rpc.caller import read_caller
from libs.rpc.clients import Clients
from libs.rpc.errors import Context, pass_on
from libs.rpc.forwarded import pair_of
from libs.rpc.gate import SlowReader, Stream
from libs.rpc.hops import passed_on
from services.router.flows.calls.watch_streams import WatchCall, WatchStreams
from services.router.flows.stores import Metadata, Refused
from services.router.flows.traffic import Traffic


@dataclass(frozen=True, slots=True)
class WatchMethods:
    contract: Contract
    watching: WatchStreams
    traffic: Traffic
    clients: Clients

    def handler(self, method: Method, chosen: Callable[[bool], Store]) -> Stream:
        """`chosen`: the store for a watch without a position, by whether the client is an old one."""

        async def handle(request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
            try:
                version = self.contract.schemas.asked(context.invocation_metadata())
                if warning := self.clients.note(context, version):
                    await context.send_initial_metadata(warning)
                call = WatchCall(method, method.parse(request), self._extra(context, version))
                to = chosen(self.contract.schemas.is_old(version))
                async with aclosing(self.watching.answers(call, to)) as answers:
                    async for answer in answers:
                        yield answer
            except SlowReader:
                raise  # The caller cancelled: this does not count as unavailable.
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
        extra: list[tuple[str, str | bytes]] = [pair_of(current_principal())]
        if caller.traceparent:
            extra.append((metadata.TRACEPARENT, caller.traceparent))
        if schemas.metadata:
            extra.append((schemas.metadata, str(version)))
        extra += passed_on(context.invocation_metadata())
        return tuple(extra)
