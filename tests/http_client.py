"""An HTTP client for tests that control every byte: raw requests, and answers in the parts in which they arrive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import h11

BOUND_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One connection. Every wait has a time limit."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = h11.Connection(h11.CLIENT)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def request(
        self, verb: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a whole request."""
        found = {"host": "test", **(headers or {})}
        if body is not None:
            found["content-length"] = str(len(body))
        data = self._parser.send(h11.Request(method=verb, target=path, headers=list(found.items()))) or b""
        if body is not None:
            data += self._parser.send(h11.Data(body)) or b""
        data += self._parser.send(h11.EndOfMessage()) or b""
        await self.send(data)

    async def head(self) -> tuple[int, dict[str, str]]:
        event = await self._event()
        assert isinstance(event, h11.Response), event
        return event.status_code, {name.decode(): value.decode("latin-1") for name, value in event.headers}

    async def data(self) -> bytes | None:
        """The next part of the body; None at its end."""
        event = await self._event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        assert isinstance(event, h11.EndOfMessage), event
        return None

    async def answer(self) -> Answer:
        status, headers = await self.head()
        body = b""
        while (part := await self.data()) is not None:
            body += part
        if self._parser.our_state is h11.DONE and self._parser.their_state is h11.DONE:
            self._parser.start_next_cycle()
        return Answer(status, headers, body)

    async def read_raw(self, most: int = 65536) -> bytes:
        """The next bytes; b"" after the server has closed the connection."""
        async with asyncio.timeout(BOUND_SECONDS):
            try:
                return await self._reader.read(most)
            except ConnectionResetError:
                return b""

    async def read_to_end(self) -> bytes:
        found = b""
        while part := await self.read_raw():
            found += part
        return found

    def close(self) -> None:
        self._writer.transport.abort()

    async def _event(self) -> Any:
        while (event := self._parser.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout(BOUND_SECONDS):
                self._parser.receive_data(await self._reader.read(65536))
        return event


@asynccontextmanager
async def connected(address: str, local_host: str | None = None) -> AsyncIterator[Connection]:
    """`local_host`: the client's address."""
    host, _, port = address.rpartition(":")
    local = (local_host, 0) if local_host is not None else None
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=local)
    connection = Connection(reader, writer)
    try:
        yield connection
    finally:
        connection.close()


async def ask(
    address: str, verb: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send one request over a connection of its own."""
    async with connected(address) as connection:
        await connection.request(verb, path, body, headers)
        return await connection.answer()
