"""HTTP listeners beside the gRPC listeners of systems in one process, and calls in envelopes to them."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from opentelemetry.metrics import NoOpMeter

from libs.contract.descriptors import Contract
from libs.contract.schemas import NEWEST
from libs.http.listener import HttpListener
from libs.http.opening import http_listener
from libs.ownership.model import Store
from libs.rpc.gate import Gate
from libs.rpc.server import RawService, Server
from libs.store.memory import MemoryStore
from tests.http_client import Answer, Connection, ask, connected
from tests.system.store import CONTRACT, SANDBOXES, SERVICE, running_store
from tests.system.whole import running_system

ROOT = Path(__file__).parents[2]
NAMES = ("old service", "new service", "router")
JSON = "application/json"
NAME = "sandboxes/one"
CREATE = json.dumps({"sandboxId": "one", "sandbox": {"account": "acme", "spec": {"image": "image:1"}}}).encode()


@asynccontextmanager
async def http_door(
    contract: Contract, service: RawService, public: Server, *, default_schema: int = NEWEST
) -> AsyncIterator[HttpListener]:
    """A listener for the service that `public` serves, as a process opens it."""
    listener = http_listener("127.0.0.1:0", contract, service, public, NoOpMeter("test"), default_schema=default_schema)
    await listener.start()
    await listener.set_serving(True)
    try:
        yield listener
    finally:
        await listener.drain(0.0)


@dataclass
class Door:
    """An HTTP listener with the system behind it."""

    listener: HttpListener
    gate: Gate
    stores: list[MemoryStore]
    grpc: str
    """Address of the gRPC listener beside it."""

    @property
    def address(self) -> str:
        return self.listener.address

    async def post(self, method: str, body: bytes, kind: str = JSON, **headers: str) -> Answer:
        found = {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return await ask(self.address, "POST", f"/{SERVICE}/{method}", body, found)

    async def get(self, method: str, **query: str) -> Answer:
        text = "&".join(f"{name}={quote(value)}" for name, value in query.items())
        return await ask(self.address, "GET", f"/{SERVICE}/{method}?{text}")

    def end_streams(self) -> None:
        """End streams as the drain of the gRPC listener does."""
        self.gate.draining = True
        self.gate.close_streams()

    async def is_untouched(self) -> bool:
        """Whether no store has a record and no call is in progress."""
        found = [await store.records.read(NAME) for store in self.stores]
        return all(one.row is None for one in found) and not (self.gate.in_flight or self.gate.streams)


@asynccontextmanager
async def _store(*, old: bool = False) -> AsyncIterator[Door]:
    async with (
        running_store(old=old) as found,
        http_door(CONTRACT, found.service, found.server, default_schema=1 if old else 0) as listener,
    ):
        yield Door(listener, found.server.gate, [found.store], found.server.address)


@asynccontextmanager
async def _router() -> AsyncIterator[Door]:
    async with running_system(SANDBOXES) as system, http_door(CONTRACT, system.service, system.router) as listener:
        stores = [backend.ports for backend in system.backends.values()]
        yield Door(listener, system.router.gate, stores, system.router.address)


OPEN: dict[str, Callable[[], Any]] = {"store": _store, "router": _router, "old store": partial(_store, old=True)}


def envelope(message: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(message)) + message


def envelopes(body: bytes) -> list[tuple[int, bytes]]:
    found = []
    while body:
        flags, length = struct.unpack_from(">BI", body)
        found.append((flags, body[5 : 5 + length]))
        body = body[5 + length :]
    return found


class Reader:
    """Reads the envelopes of a stream."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buffer = b""

    async def next(self) -> tuple[int, bytes]:
        while len(self._buffer) < 5 or len(self._buffer) < 5 + struct.unpack_from(">BI", self._buffer)[1]:
            part = await self._connection.data()
            assert part is not None, "the stream has ended"
            self._buffer += part
        flags, length = struct.unpack_from(">BI", self._buffer)
        message, self._buffer = self._buffer[5 : 5 + length], self._buffer[5 + length :]
        return flags, message


@asynccontextmanager
async def watching(door: Door, body: bytes, kind: str, **headers: str) -> AsyncIterator[tuple[Reader, dict[str, str]]]:
    async with connected(door.address) as connection:
        found = {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
        await connection.request("POST", f"/{SERVICE}/WatchSandboxes", body, found)
        status, answered = await connection.head()
        assert status == 200
        yield Reader(connection), answered


BAD_FRAMES = {
    "no envelope": (b"", "one message"),
    "part of an envelope's head": (b"\x00\x00", "flags and length"),
    "a truncated message": (struct.pack(">BI", 0, 10) + b"{}", "10 bytes"),
    "a large message": (struct.pack(">BI", 0, 1 << 31) + b"{}", "larger than"),
    "two messages": (envelope(b"{}") * 2, "one message"),
    "a compressed message": (envelope(b"{}", 1), "compressed"),
    "an end of stream": (envelope(b"{}", 2), "flags"),
    "a reserved flag": (envelope(b"{}", 64), "flags"),
}
"""Bodies that are not one message in an envelope, each with a word of its error."""


@dataclass(frozen=True)
class Endpoint:
    """The addresses of one server."""

    grpc: str
    http: str


@asynccontextmanager
async def endpoint(name: str) -> AsyncIterator[Endpoint]:
    """`name`: one of NAMES."""
    async with AsyncExitStack() as stack:
        if name == "router":
            system = await stack.enter_async_context(running_system(SANDBOXES))
            service, server, schema = system.service, system.router, 0
        else:
            old = name == "old service"
            # Without a router, A owns all buckets.
            found = await stack.enter_async_context(running_store(Store.A, old=old))
            service, server, schema = found.service, found.server, 1 if old else 0
        door = await stack.enter_async_context(http_door(CONTRACT, service, server, default_schema=schema))
        yield Endpoint(server.address, door.address)
