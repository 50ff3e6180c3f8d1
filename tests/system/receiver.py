"""An HTTP receiver of webhooks that fails, hangs, refuses, redirects and answers as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

HANG = 0
"""Instead of a status: no answer."""
HANGING_SECONDS = 0.3
"""`webhook.POST_SECONDS` for a receiver that hangs. The request may not even have arrived by then."""
USUAL_SECONDS = 30.0
"""The same for any other receiver: enough on a busy machine."""
ENDLESS = 1_000_000
"""Length of a body that does not come to its end."""


@dataclass
class Receiver:
    port: int = 0
    status: int = 200
    body: bytes | None = None
    """None: a body without an end."""
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.received]

    @property
    def ids(self) -> list[str]:
        return [event["id"] for event in self.events]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._answer(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        self.received.append((headers, await reader.readexactly(int(headers["content-length"]))))
        self.paths.append(first.split(" ")[1])
        if self.status == HANG:
            await self.over.wait()
        moved = f"location: {self.url}/moved\r\n" if self.status in (302, 307) else ""
        length = ENDLESS if self.body is None else len(self.body)
        writer.write(f"HTTP/1.1 {self.status} x\r\n{moved}content-length: {length}\r\n\r\n".encode())
        writer.write(self.body or b"")
        await writer.drain()


@asynccontextmanager
async def running_receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        made.over.set()
        server.close()
        await asyncio.gather(*made.tasks)
