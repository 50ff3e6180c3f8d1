"""A connection between a client and a server that can be slow, or lose the server's answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK_BYTES = 65536


class Wire:
    """`slow_seconds`: delay of answers. `deaf`: answers are lost, while the server still receives requests. `answers`:
    number of answers from the server. `local_host`: address from which it connects to the server."""

    def __init__(self, host: str, port: int, local_host: str = "127.0.0.1") -> None:
        self.slow_seconds = 0.0
        self.deaf = False
        self.answers = 0
        self._target = host, port
        self._local_host = local_host
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a connection has a task"
        self._tasks.add(task)
        far: asyncio.StreamWriter | None = None
        try:
            answers, far = await asyncio.open_connection(*self._target, local_addr=(self._local_host, 0))
            async with asyncio.TaskGroup() as group:
                ways = [group.create_task(_copy(reader, far)), group.create_task(self._say(answers, writer))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
        except (OSError, asyncio.CancelledError):
            # Either end may close at any time, and all of them do at the end.
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, far):
                if end is not None:
                    end.close()

    async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            self.answers += 1
            if self.deaf:
                continue
            await asyncio.sleep(self.slow_seconds)
            writer.write(data)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)


@asynccontextmanager
async def wire_to(port: int, local_host: str = "127.0.0.1") -> AsyncIterator[tuple[Wire, int]]:
    """A wire to this port of 127.0.0.1, and the port at which it begins. For the server, the client's address is
    `local_host`."""
    wire = Wire("127.0.0.1", port, local_host)
    server = await asyncio.start_server(wire.accept, "127.0.0.1", 0)
    try:
        yield wire, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await wire.close()
        await server.wait_closed()
