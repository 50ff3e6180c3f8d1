"""A client of the sandbox service as a program: reads a call as JSON from each line of stdin, and prints the answer.

python -m tests.direct_client TARGET
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from baton_client import CallError, connect_async
from baton_client.client import AsyncClient
from baton_client.messages import GetSandboxRequest, ListSandboxesRequest, Sandbox, UpdateSandboxRequest


async def main(target: str) -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with connect_async(target, timeout=10) as client:
        while line := await lines.readline():
            try:
                answer = await call(client, json.loads(line))
            except CallError as error:
                answer = error.code.name
            print(json.dumps({"answer": answer}), flush=True)


async def call(client: AsyncClient, command: dict[str, Any]) -> str:
    if command["call"] == "list":
        return (await client.ListSandboxes(ListSandboxesRequest())).next_page_token
    if command["call"] == "update":
        sandbox = Sandbox(name=command["name"])
        return (await client.UpdateSandbox(UpdateSandboxRequest(sandbox=sandbox))).name
    if command.get("bucket", True):
        return (await client.GetSandbox(GetSandboxRequest(name=command["name"]))).name
    channel = client._channel
    get = channel.unary_unary(
        "/sandbox.v1.SandboxService/GetSandbox", GetSandboxRequest.SerializeToString, Sandbox.FromString
    )
    found: Sandbox = await get(GetSandboxRequest(name=command["name"]), timeout=10)
    return found.name


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
