"""A client of HTTP/2 that grants no room for answers: it takes headers and nothing else.

Frames: https://www.rfc-editor.org/rfc/rfc9113#section-4.1. Headers are literals without compression:
https://www.rfc-editor.org/rfc/rfc7541#section-6.2.2.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_HEAD_BYTES = 9


class Greedy:
    """Begin calls with `call`. `ended`: streams that the server has ended, which it can do without room."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._next = 1
        self.ended: set[int] = set()

    async def call(self, path: str, request: bytes, metadata: Mapping[str, str] | None = None) -> int:
        """Send a whole request. Returns its stream."""
        stream, self._next = self._next, self._next + 2
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "listener",
            "content-type": "application/grpc",
            "te": "trailers",
            **(metadata or {}),
        }
        block = b"".join(_literal(name.encode(), value.encode()) for name, value in headers.items())
        message = struct.pack(">BI", 0, len(request)) + request
        self._writer.write(_frame(_HEADERS, _END_HEADERS, stream, block) + _frame(_DATA, _END_STREAM, stream, message))
        await self._writer.drain()
        return stream

    async def grant(self) -> None:
        """Grant room for every answer of every call so far, and of the connection."""
        room = struct.pack(">I", 1 << 20)
        streams = [0, *(set(range(1, self._next, 2)) - self.ended)]
        self._writer.write(b"".join(_frame(_WINDOW_UPDATE, 0, stream, room) for stream in streams))
        await self._writer.drain()

    async def run(self) -> None:
        """Read until the connection ends, or cancelled."""
        while True:
            try:
                head = await self._reader.readexactly(_HEAD_BYTES)
                size = int.from_bytes(head[:3], "big")
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big")
                content = await self._reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            if kind == _RESET or (kind in (_HEADERS, _DATA) and flags & _END_STREAM):
                self.ended.add(stream)
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._writer.write(_frame(kind, _ACK, 0, content if kind == _PING else b""))


@asynccontextmanager
async def greedy(address: str) -> AsyncIterator[Greedy]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)
    writer.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings))
    client = Greedy(reader, writer)
    reading = asyncio.create_task(client.run())
    try:
        yield client
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        writer.close()


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + content


def _literal(name: bytes, value: bytes) -> bytes:
    if len(name) > 126 or len(value) > 126:
        raise ValueError("a longer text needs an integer of several bytes")
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
