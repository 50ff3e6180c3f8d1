"""One write that is sent again by another door, in other words: it has one effect, and the first answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.http_client import Answer, ask
from tests.system.http import JSON, OPEN, Door
from tests.system.store import SERVICE

REQUEST_ID = "6d1f3c52-0a52-4d0e-9d3b-000000000001"
NAMES = "abcdefgh"
PLAIN = {"content-type": JSON}
MCP = {**PLAIN, "accept": f"{JSON}, text/event-stream"}


def content(version: int, *, turned: bool) -> dict[str, Any]:
    """`turned`: the same fields the other way round, with defaults and nulls said."""
    pairs = dict.fromkeys(reversed(NAMES) if turned else NAMES, "1")
    labels = "labels" if version == 2 else "metadata"
    said: dict[str, Any] = {"image": "image:1", "env": pairs}
    if turned:
        said = dict(reversed([*said.items(), ("command", []), ("timeout" if version == 2 else "timeoutS", None)]))
    found: dict[str, Any] = {"account": "acme", labels: pairs, **({"spec": said} if version == 2 else said)}
    return dict(reversed([*found.items(), ("name", "")])) if turned else found


async def by_rest(door: Door, sandbox: dict[str, Any], schema: dict[str, str]) -> Answer:
    headers = {**PLAIN, "idempotency-key": REQUEST_ID, **schema}
    return await ask(door.address, "POST", "/v1/sandboxes?sandboxId=one", json.dumps(sandbox).encode(), headers)


async def by_connect(door: Door, sandbox: dict[str, Any], schema: dict[str, str]) -> Answer:
    body = {"requestId": REQUEST_ID.upper(), "sandbox": sandbox, "sandbox_id": "one", "validateOnly": False}
    return await ask(door.address, "POST", f"/{SERVICE}/CreateSandbox", json.dumps(body).encode(), {**PLAIN, **schema})


async def by_mcp(door: Door, sandbox: dict[str, Any], schema: dict[str, str]) -> Answer:
    arguments = {"sandbox": sandbox, "sandboxId": "one", "requestId": REQUEST_ID, "validateOnly": None}
    params = {"name": "create_sandbox", "arguments": arguments}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    found = await ask(door.address, "POST", "/mcp", body, {**MCP, **schema})
    result = found.json()["result"]
    return Answer(400 if result["isError"] else 200, found.headers, json.dumps(result["structuredContent"]).encode())


BY = {"REST": by_rest, "Connect": by_connect, "MCP": by_mcp}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", ["store", "router", "old store"])
async def test_a_create_in_other_words_by_another_door_is_the_same_one(kind: str, version: int) -> None:
    schema = {"sandbox-schema-version": str(version)}
    async with OPEN[kind]() as door:
        first = await by_rest(door, content(version, turned=False), schema)
        assert first.status == 200, first.body
        for name, call in BY.items():
            for turned in (False, True):
                found = await call(door, content(version, turned=turned), schema)
                assert (found.status, found.json()) == (200, first.json()), (name, turned, found.body)
