"""Requests that a web page makes a browser send, at every protocol over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.http.envelopes import pack
from libs.pb.sandbox.v1.sandbox_service_pb2 import GetSandboxRequest
from libs.sandboxes.schema import METADATA
from tests.contracts.identity_adapters import ANN, TOKENS, write_tokens
from tests.http_client import Answer, ask
from tests.system.programs import Programs, running_programs

SERVICE = "sandbox.v1.SandboxService"
SCHEMA = {METADATA: "2"}
FOREIGN = ("http://evil.example", "https://evil.example:7680", "null", "http://[")


@pytest.fixture
async def programs(tmp_path: Path) -> AsyncIterator[Programs]:
    async with running_programs(tmp_path) as running:
        yield running


async def each_way(address: str, headers: dict[str, str]) -> list[Answer]:
    """A write by REST with a body and without one, and a call by Connect and by gRPC-Web."""
    kinds = [{"content-type": f"application/{kind}"} for kind in ("json", "json", "grpc-web+proto")]
    create = json.dumps({"account": "acme", "spec": {"image": "image:1"}}).encode()
    get = GetSandboxRequest(name="sandboxes/one")
    return [
        await ask(address, "POST", "/v1/sandboxes?sandboxId=one", create, {**kinds[0], **SCHEMA, **headers}),
        await ask(address, "POST", "/v1/sandboxes/one:undelete", None, {**SCHEMA, **headers}),
        await ask(
            address, "POST", f"/{SERVICE}/GetSandbox", b'{"name": "sandboxes/one"}', {**kinds[1], **SCHEMA, **headers}
        ),
        await ask(
            address,
            "POST",
            f"/{SERVICE}/GetSandbox",
            pack(get.SerializeToString()),
            {**kinds[2], **SCHEMA, **headers},
        ),
    ]


async def test_a_page_of_a_stranger_changes_nothing_over_any_protocol(programs: Programs) -> None:
    for place in ("a", "router"):
        for origin in FOREIGN:
            for answer in await each_way(programs.http[place], {"origin": origin}):
                assert b"is not served" in answer.body or b"is%20not%20served" in answer.body, answer
                assert answer.status in (200, 403)
        listed = await ask(programs.http[place], "GET", "/v1/sandboxes", headers={**SCHEMA, "origin": FOREIGN[0]})
        assert listed.status == 200
        assert not listed.json().get("sandboxes")
        assert "access-control-allow-origin" not in listed.headers


async def test_a_page_whose_name_resolves_to_this_machine_reads_nothing(programs: Programs) -> None:
    """The browser takes such a page's request for one to its own server, so it has no origin."""
    connect = f"/{SERVICE}/GetSandbox?encoding=json&message=%7B%7D&connect=v1"
    for place in ("a", "router"):
        for host in ("evil.example", "evil.example:7680", "127.0.0.1.evil.example", "localhost.", "10.0.0.1"):
            for verb, path in (("GET", "/v1/sandboxes"), ("GET", "/v1/sandboxes:watch"), ("GET", connect)):
                answer = await ask(programs.http[place], verb, path, headers={**SCHEMA, "host": host})
                assert (answer.status, b"is not served" in answer.body) == (403, True), (host, path, answer)
        for host in ("localhost:7680", "app.localhost", "127.0.0.1", "[::1]:7680", "router"):
            answer = await ask(programs.http[place], "GET", "/v1/sandboxes", headers={**SCHEMA, "host": host})
            assert answer.status == 200, (host, answer)


async def test_a_page_of_this_machine_and_a_caller_without_a_page_are_served(programs: Programs) -> None:
    host = programs.http["a"]
    for headers in ({}, {"origin": "http://localhost:3000"}, {"origin": f"http://{host}"}):
        made = (await each_way(host, headers))[0]
        assert made.status in (200, 409), made


async def test_a_call_with_a_token_is_served_whatever_its_page_is(tmp_path: Path) -> None:
    """A foreign page cannot add a token: the browser asks first, and no answer allows it."""
    file = write_tokens(tmp_path / "tokens.toml")
    async with running_programs(tmp_path, public_auth="tokens", public_auth_file=file) as programs:
        host = programs.http["a"]
        token = {"authorization": f"Bearer {TOKENS[ANN]}", "origin": "https://app.example"}
        assert (await each_way(host, token))[0].status == 200
        asked = await ask(
            host,
            "OPTIONS",
            "/v1/sandboxes",
            headers={"origin": "https://app.example", "access-control-request-method": "POST"},
        )
        assert not [name for name in asked.headers if name.startswith("access-control-")]
