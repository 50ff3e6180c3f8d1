"""The contract's document and page at a listener, and HTTP's own headers over REST."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.contract.descriptors import Contract
from libs.http.asgi import matches_etag
from libs.http.documents import documents
from libs.http.doors import Doors
from libs.http.gateway import Gateway
from libs.http.listener import HttpConfig, HttpListener
from libs.http.rest import RestDoor
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.rpc.errors import Context
from libs.rpc.gate import Gate, ServerLimits
from libs.rpc.server import RawService
from tests.http_client import Answer, ask
from tests.shelf import CONTRACT as SHELF

ROOT = Path(__file__).parents[2]
CONTRACT = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
JSON = {"content-type": "application/json"}


class Store:
    """Notes each request that reaches a handler."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def answer(self, request: bytes, context: Context) -> bytes:
        self.requests.append(request)
        await self.go_on.wait()
        return Sandbox(name="sandboxes/a", etag='"1-2"').SerializeToString()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def address(store: Store) -> AsyncIterator[str]:
    names = [name for name, method in CONTRACT.methods.items() if method.watch is None]
    service = RawService(CONTRACT.service, dict.fromkeys(names, store.answer))
    gateway = Gateway(CONTRACT, service, Gate(ServerLimits(), None))
    doors = Doors(RestDoor(gateway), lambda: True, None, documents(CONTRACT))
    listener = HttpListener(HttpConfig("127.0.0.1:0", "http"), doors)
    await listener.start()
    try:
        yield listener.address
    finally:
        await listener.drain(0.0)


async def test_the_document_is_served_as_it_ships_and_again_only_if_it_is_another(address: str) -> None:
    first = await ask(address, "GET", "/openapi.json")
    assert first.json() == json.loads((ROOT / "libs/pb/sandbox/v1/openapi.json").read_text())
    assert (first.status, first.headers["content-type"]) == (200, "application/json")
    again = await ask(address, "GET", "/openapi.json", headers={"if-none-match": first.headers["etag"]})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])
    head = await ask(address, "GET", "/openapi.json", headers={"if-none-match": '"another"'})
    assert head.status == 200


@pytest.mark.parametrize("path", ["/openapi.json", "/", "/try.js"])
async def test_a_document_takes_get_alone_and_says_so(address: str, path: str) -> None:
    refused = await ask(address, "POST", path, b"{}", JSON)
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert refused.json()["error"]["status"] == "UNIMPLEMENTED"
    options = await ask(address, "OPTIONS", path)
    assert (options.status, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


async def test_the_page_may_load_and_run_only_what_this_listener_serves(address: str) -> None:
    page = await ask(address, "GET", "/")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert (policy["script-src"], policy["connect-src"]) == ("'self'", "'self'")
    styles = re.findall(rb"<style>(.*?)</style>", page.body, re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(style).digest()).decode()}'" for style in styles]
    assert policy["style-src"].split() == hashes
    text = page.body.decode()
    assert re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL) == [""]
    assert not re.search(r"https?://|\bon[a-z]+=|style=", text)
    for place in re.findall(r'(?:src|href)="([^"]+)"', text):
        assert place == "data:," or (await ask(address, "GET", f"/{place}")).status == 200
    script = await ask(address, "GET", "/try.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "innerHTML" not in script.body.decode()


def test_a_contract_without_a_document_has_none() -> None:
    assert dict(documents(SHELF)) == {}


@pytest.mark.parametrize(
    ("header", "known"),
    [("", False), ('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("a", False)],
)
def test_an_etag_is_known_by_any_form_of_if_none_match(header: str, known: bool) -> None:
    assert matches_etag(header, '"a"') is known


async def test_a_record_that_the_caller_has_is_not_sent_again(address: str) -> None:
    again = await ask(address, "GET", "/v1/sandboxes/a", headers={"if-none-match": 'W/"1-1", "1-2"'})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", '"1-2"')


@pytest.mark.parametrize(
    ("name", "verb", "path", "body"),
    [
        ("If-Match", "DELETE", "/v1/sandboxes/a", None),
        ("If-Match", "PATCH", "/v1/sandboxes/a", b"{}"),
        ("If-Match", "POST", "/v1/sandboxes/a:undelete", b"{}"),
        ("Idempotency-Key", "POST", "/v1/sandboxes", b"{}"),
        ("X-Server-Timeout", "GET", "/v1/sandboxes/a", None),
    ],
)
async def test_an_empty_header_is_refused_and_changes_nothing(
    address: str, store: Store, name: str, verb: str, path: str, body: bytes | None
) -> None:
    """A caller whose variable is unset means a condition; without one the write would be done whatever came first."""
    refused = await ask(address, verb, path, body, {**(JSON if body else {}), name: ""})
    assert _field(refused) == name
    assert store.requests == []


async def test_a_creation_takes_no_if_match(address: str, store: Store) -> None:
    refused = await ask(address, "POST", "/v1/sandboxes", b"{}", {**JSON, "if-match": '"1-2"'})
    assert _field(refused) == "If-Match"
    assert store.requests == []


async def test_the_headers_of_a_write_are_its_fields(address: str, store: Store) -> None:
    key = "123e4567-e89b-42d3-a456-426614174000"
    await ask(address, "DELETE", "/v1/sandboxes/a", headers={"if-match": '"1-2"', "idempotency-key": f'"{key}"'})
    (request,) = store.requests
    assert pb.DeleteSandboxRequest.FromString(request) == pb.DeleteSandboxRequest(
        name="sandboxes/a", etag='"1-2"', request_id=key
    )


async def test_a_call_that_is_late_says_so_for_programs_too(address: str, store: Store) -> None:
    store.go_on.clear()
    late = await ask(address, "GET", "/v1/sandboxes/a", headers={"x-server-timeout": "0.05"})
    assert late.status == 504
    assert [detail.get("reason") for detail in late.json()["error"]["details"]] == ["DEADLINE_EXCEEDED"]


def _field(refused: Answer) -> str:
    assert refused.status == 400, refused
    found: str = refused.json()["error"]["details"][0]["metadata"]["field"]
    return found
