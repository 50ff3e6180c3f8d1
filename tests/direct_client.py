"""A client of the sandbox service as a program: reads a call as JSON from each line of stdin, and prints the answer.

python -m tests.direct_client TARGET [CA CERTIFICATE KEY]
"""

from __future__ import annotations

import asyncio
import json
import sys

from baton_client import CallError, Tls, connect_async
from baton_client.client import AsyncClient
from baton_client.messages import (
    CreateSandboxRequest,
    GetSandboxRequest,
    ListSandboxesRequest,
    Sandbox,
    SandboxSpec,
    UpdateSandboxRequest,
)


async def main(target: str, *files: str) -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    tls = Tls(*files) if files else False
    async with connect_async(target, timeout=20, tls=tls) as client:
        while line := await lines.readline():
            try:
                answer = await call(client, **json.loads(line))
            except CallError as error:
                answer = {"answer": error.code.name}
            print(json.dumps(answer), flush=True)


async def call(client: AsyncClient, call: str, name: str = "", bucket: bool = True, label: str = "") -> dict[str, str]:
    received: dict[str, str] = {}
    if call == "list":
        return {"answer": (await client.ListSandboxes(ListSandboxesRequest())).next_page_token}
    if call == "create":
        sandbox = Sandbox(account="acme", spec=SandboxSpec(image="debian:13"))
        request = CreateSandboxRequest(sandbox_id=name.partition("/")[2], sandbox=sandbox)
        return {"answer": (await client.CreateSandbox(request)).name}
    if call in ("update", "label"):
        change = UpdateSandboxRequest(sandbox=Sandbox(name=name, labels={"number": label}))
        change.update_mask.paths.append("labels")
        return {"answer": (await client.UpdateSandbox(change)).name}
    if call == "number":
        return {"answer": (await client.GetSandbox(GetSandboxRequest(name=name))).labels["number"]}
    if call == "why":
        why = (("baton-explain", "1"),)
        found = await client.GetSandbox(GetSandboxRequest(name=name), metadata=why, received=received)
        return {"answer": found.name, "phase": received.get("baton-phase", "")}
    if bucket:
        return {"answer": (await client.GetSandbox(GetSandboxRequest(name=name))).name}
    return {"answer": await without_bucket(client, name)}


async def without_bucket(client: AsyncClient, name: str) -> str:
    """Call as a client that does not know of buckets."""
    path = "/sandbox.v1.SandboxService/GetSandbox"
    get = client._channel.unary_unary(path, GetSandboxRequest.SerializeToString, Sandbox.FromString)
    found: Sandbox = await get(GetSandboxRequest(name=name), timeout=20)
    return found.name


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
