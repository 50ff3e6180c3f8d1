"""xDS's aggregated discovery service: gives clients the direct routes, and again whenever they change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc

from libs.contract.requests import parse_request
from libs.errors import InvalidField
from libs.pb.baton.xds.v1 import xds_pb2 as pb
from libs.rpc.errors import Context
from libs.rpc.server import RawService
from libs.store.concurrency import Notifier
from libs.text import visible
from services.router.core.discovery import MOST_NAMES, Request, Response, Snapshot, Subscriptions, TooManyNames

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"

_LOOK_SECONDS = 60.0
_ERROR_LENGTH = 300

log = logging.getLogger(__name__)


class Discovery:
    """The streams of all clients of this router."""

    def __init__(self, snapshot: Callable[[], Snapshot], changes: Notifier, name: str) -> None:
        """`changes`: notified when the snapshot may have changed. `name`: of this router."""
        self._snapshot = snapshot
        self._changes = changes
        self._name = name
        self._clients: dict[object, Subscriptions] = {}
        self.refused = 0
        """Responses that clients have refused since the start."""

    @property
    def streams(self) -> int:
        return len(self._clients)

    @property
    def alerts(self) -> list[str]:
        """Clients that have refused the newest routes, while they are connected."""
        refusals = [client.refusals for client in self._clients.values()]
        refusing = [texts[0] for texts in refusals if texts]
        if not refusing:
            return []
        return [f"{len(refusing)} xDS clients refused the newest routes and use the ones before: {refusing[0]}"]

    def service(self) -> RawService:
        return RawService(SERVICE, {}, {"StreamAggregatedResources": self._stream})

    async def _stream(self, first: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        client, key = Subscriptions(), object()
        self._clients[key] = client
        reading: asyncio.Future[Any] | None = None
        try:
            self._note(client, first, context)
            while True:
                count = self._changes.count
                while (response := client.next_response(self._snapshot())) is not None:
                    yield self._message(response)
                if reading is None:
                    reading = asyncio.ensure_future(context.read())
                    reading.add_done_callback(_retrieve_outcome)
                changed = asyncio.ensure_future(self._changes.after(count, _LOOK_SECONDS))
                try:
                    await asyncio.wait((reading, changed), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if reading.done():
                    request, reading = reading.result(), None
                    if request is grpc.aio.EOF:
                        return
                    self._note(client, request, context)
        finally:
            del self._clients[key]
            if reading is not None:
                reading.cancel()

    def _note(self, client: Subscriptions, data: bytes, context: Context) -> None:
        """Raises InvalidField."""
        message = parse_request(pb.DiscoveryRequest, data)
        error = ""
        if message.HasField("error_detail"):
            error = visible(message.error_detail.message[:_ERROR_LENGTH], keep="") or "no reason given"
        try:
            refused = client.note(Request(message.type_url, message.resource_names, message.response_nonce, error))
        except TooManyNames:
            count = len(message.resource_names)
            raise InvalidField("resource_names", f"{count} names", f"at most {MOST_NAMES}") from None
        if refused:
            self.refused += 1
            log.warning("xds: %s refused %s: %s", context.peer(), message.type_url.rpartition(".")[2], refused)

    def _message(self, response: Response) -> bytes:
        packed = [pb.Packed(type_url=response.type_url, value=data) for data in response.resources]
        return pb.DiscoveryResponse(
            version_info=response.version,
            resources=packed,
            type_url=response.type_url,
            nonce=response.nonce,
            control_plane=pb.ControlPlane(identifier=self._name),
        ).SerializeToString()


def _retrieve_outcome(reading: asyncio.Future[Any]) -> None:
    """Retrieve the exception of a client that left; otherwise asyncio logs it."""
    if not reading.cancelled():
        reading.exception()
