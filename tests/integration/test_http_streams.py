"""Streams over HTTP: their heads, their metrics, and other requests beside them on the same listener."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from libs.http.doors import Doors
from libs.identity.port import Credentials
from libs.identity.principal import Principal, Role
from tests.http_client import ask, connected
from tests.system.http import CREATE, JSON, NAME, OPEN, Door, envelope, watching
from tests.system.store import SERVICE
from tests.waiting import eventually

WATCH = "/v1/sandboxes:watch"
PROCEDURE = f"/{SERVICE}/WatchSandboxes"


@pytest.fixture
async def store() -> AsyncIterator[Door]:
    async with OPEN["store"]() as found:
        yield found


@pytest.mark.parametrize(
    ("accept", "kind"), [("*/*", "text/event-stream"), ("application/x-ndjson", "application/x-ndjson")]
)
async def test_the_head_of_a_watch_is_no_watch(store: Door, accept: str, kind: str) -> None:
    async with connected(store.address) as client:
        for _ in range(2):
            await client.send(f"HEAD {WATCH} HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\n\r\n".encode())
            found = await client.read_raw()
            assert found.startswith(b"HTTP/1.1 200") and kind.encode() in found
    assert not store.gate.streams


async def test_a_watch_by_rest_shows_changes_with_their_tokens(store: Door) -> None:
    await store.post("CreateSandbox", CREATE, JSON)
    async with connected(store.address) as client:
        await client.request("GET", WATCH, headers={"accept": "text/event-stream"})
        status, headers = await client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        text = b""
        while NAME.encode() not in text:
            text += await client.data() or b""
        assert text.startswith(b"retry: 1000\n\n") and b"\nid: " in text
    await eventually(lambda: not store.gate.streams)


async def test_a_watch_by_lines_ends_with_its_error(store: Door) -> None:
    async with connected(store.address) as client:
        await client.request("GET", WATCH, headers={"accept": "application/x-ndjson"})
        await client.head()
        found = await client.data() or b""
        store.end_streams()
        while (part := await client.data()) is not None:
            found += part
    first, *_, last = [json.loads(line) for line in found.splitlines()]
    assert first["reset"] is True
    assert last["error"]["status"] == "UNAVAILABLE"


async def test_an_error_before_the_first_answer_is_a_response_of_its_own(store: Door) -> None:
    found = await ask(store.address, "GET", f"{WATCH}?filter=nonsense")
    assert (found.status, found.headers["content-type"]) == (400, JSON)
    assert "filter" in found.json()["error"]["message"]


async def test_a_request_is_measured_by_its_route(store: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    doors = store.listener._app
    assert isinstance(doors, Doors)
    seen: list[tuple[str, str, int]] = []
    doors.measure = lambda verb, route, code, seconds: seen.append((verb, route, code))
    await store.post("GetSandbox", json.dumps({"name": NAME}).encode())
    await store.post("Nothing", b"{}")
    await ask(store.address, "GET", "/v1/sandboxes/one")
    await ask(store.address, "GET", "/nothing")
    assert seen == [
        ("POST", f"/{SERVICE}/GetSandbox", 404),
        ("POST", "other", 404),
        ("GET", "/v1/{name=sandboxes/*}", 404),
        ("GET", "other", 404),
    ]


async def test_calls_are_answered_while_a_stream_is_open(store: Door) -> None:
    async with watching(store, envelope(b"{}"), "application/connect+json") as (reader, _):
        await reader.next()
        assert (await store.post("CreateSandbox", CREATE, JSON)).status == 200
        while NAME.encode() not in (await reader.next())[1]:
            pass


@pytest.mark.parametrize(
    ("verb", "path", "kind", "body", "code"),
    [
        ("POST", "/v1/sandboxes", "text/plain", b"{}", 415),
        ("POST", "/v1/sandboxes", JSON, b"x" * (2 << 20 | 1), 413),
        ("PUT", "/v1/sandboxes", JSON, b"{}", 405),
        ("GET", "/v1/sandboxes", JSON, b"{}", 400),
        ("POST", "/v1/nothing", JSON, b"{}", 404),
    ],
)
async def test_rest_refuses_with_the_code_of_http(
    store: Door, verb: str, path: str, kind: str, body: bytes, code: int
) -> None:
    async with connected(store.address) as client:
        for _ in range(2):
            await client.request(verb, path, body, {"content-type": kind})
            found = await client.answer()
            assert (found.status, found.json()["error"]["code"]) == (code, code), "and the connection can be used again"
    assert await store.is_untouched()


class Expiring:
    """A principal whose proof soon ends."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        return Principal("test:ann", roles=frozenset({Role.ADMIN}), expires_at=time.time() + 0.3)


FORMS = {
    "events": ("GET", WATCH, None, {"accept": "text/event-stream"}),
    "lines": ("GET", WATCH, None, {"accept": "application/x-ndjson"}),
    "Connect": ("POST", PROCEDURE, envelope(b"{}"), {"content-type": "application/connect+json"}),
    "gRPC-Web": ("POST", PROCEDURE, envelope(b""), {"content-type": "application/grpc-web+proto"}),
}


@pytest.mark.parametrize("place", ["store", "router"])
@pytest.mark.parametrize("form", FORMS)
async def test_a_watch_ends_with_the_token_that_opened_it(place: str, form: str) -> None:
    verb, path, body, headers = FORMS[form]
    async with OPEN[place]() as door, connected(door.address) as client, asyncio.timeout(30):
        door.gate._authenticator = Expiring()
        await client.request(verb, path, body, headers)
        answer = await client.answer()
        assert b"token has expired" in answer.body
        await eventually(lambda: not door.gate.streams)
