"""MCP at both stores and the router, by the SDK's own client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from libs.sandboxes.schema import METADATA
from tests.contracts.identity_adapters import ANN, TOKENS, write, write_tokens
from tests.system.programs import PLACES, Programs, running_programs

CONTRACT_TOOLS = {
    "create_sandbox",
    "get_sandbox",
    "list_sandboxes",
    "update_sandbox",
    "delete_sandbox",
    "undelete_sandbox",
    "acquire_lease",
    "renew_lease",
    "release_lease",
}
ROUTER_TOOLS = {"migration_status", "explain_route"}
NEWEST = {METADATA: "2"}
NEW = {"account": "acme", "spec": {"image": "image:1"}}
REQUEST_ID = "6f1c1f0e-5ff5-4a5e-9a3f-3f5a0c9f8f11"
PATIENCE_SECONDS = 60.0
BATON = Path(sys.executable).parent / "baton"
ACCEPT = {"content-type": "application/json", "accept": "application/json, text/event-stream"}


@pytest.fixture
async def programs(tmp_path: Path) -> AsyncIterator[Programs]:
    async with running_programs(tmp_path) as running:
        yield running


@asynccontextmanager
async def client(url: str, headers: Mapping[str, str] = NEWEST, mode: Any = "auto") -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers=dict(headers), timeout=PATIENCE_SECONDS) as http,
        Client(streamable_http_client(url, http_client=http), read_timeout_seconds=PATIENCE_SECONDS, mode=mode) as one,
    ):
        yield one


async def call(one: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured content of a result without an error. The SDK's client checks it against the output schema."""
    result = await one.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert json.loads(text_of(result)) == result.structured_content
    found: dict[str, Any] = result.structured_content
    return found


async def refusal(one: Client, tool: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    """Text and status of a result with an error."""
    result = await one.call_tool(tool, arguments)
    assert result.is_error
    return text_of(result), result.structured_content["error"]


def text_of(result: Any) -> str:
    (content,) = result.content
    return str(content.text)


@pytest.mark.parametrize("place", PLACES)
async def test_every_method_is_a_tool(programs: Programs, place: str) -> None:
    async with client(programs.url(place)) as one:
        made = await call(one, "create_sandbox", sandboxId="one", sandbox=NEW)
        name = made["name"]
        assert (name, made["state"]) == ("sandboxes/one", "STATE_PENDING")
        assert await call(one, "get_sandbox", name=name) == made
        assert [each["name"] for each in (await call(one, "list_sandboxes", pageSize=5))["sandboxes"]] == [name]
        change = {"name": name, "etag": made["etag"], "labels": {"team": "blue"}}
        changed = await call(one, "update_sandbox", sandbox=change, updateMask="labels")
        assert changed["labels"] == {"team": "blue"}
        text, status = await refusal(one, "update_sandbox", sandbox=change, updateMask="labels")
        assert status["status"] == "ABORTED" and text.endswith("; read the record, then decide anew")
        token = (await call(one, "acquire_lease", name=name, holder="me", ttl="60s"))["lease"]["token"]
        assert (await call(one, "renew_lease", name=name, token=token))["lease"]["renewals"] == "1"
        assert "lease" not in await call(one, "release_lease", name=name, token=token)
        assert "deleteTime" in await call(one, "delete_sandbox", name=name)
        assert "deleteTime" not in await call(one, "undelete_sandbox", name=name)
        tools = {tool.name: tool for tool in (await one.list_tools()).tools}
    assert set(tools) == CONTRACT_TOOLS | (ROUTER_TOOLS if place == "router" else set())
    hints = {name: tool.annotations for name, tool in tools.items()}
    assert all(hint is not None and hint.idempotent_hint for hint in hints.values())
    reads = {name for name, hint in hints.items() if hint is not None and hint.read_only_hint}
    assert reads == {"get_sandbox", "list_sandboxes"} | (ROUTER_TOOLS if place == "router" else set())
    destroys = {name for name, hint in hints.items() if hint is not None and hint.destructive_hint}
    assert destroys == CONTRACT_TOOLS - reads - {"create_sandbox"}
    assert tools["get_sandbox"].input_schema["required"] == ["name"]
    assert tools["create_sandbox"].input_schema["additionalProperties"] is False
    described = [tool.description or "" for tool in tools.values()]
    assert not [text for text in described if text.startswith("Calls ")], "each method has a comment"


@pytest.mark.parametrize("place", PLACES)
async def test_a_repeated_write_has_one_effect(programs: Programs, place: str) -> None:
    async with client(programs.url(place)) as one:
        first = await call(one, "create_sandbox", sandbox=NEW, requestId=REQUEST_ID)
        assert await call(one, "create_sandbox", sandbox=NEW, requestId=REQUEST_ID) == first
        result = await one.call_tool("create_sandbox", {"sandbox": NEW})
        assert result.meta is not None
        again = await one.call_tool("create_sandbox", {"sandbox": NEW, "requestId": result.meta["requestId"]})
        assert again.structured_content == result.structured_content
        assert len((await call(one, "list_sandboxes"))["sandboxes"]) == 2


@pytest.mark.parametrize("place", PLACES)
async def test_an_error_begins_with_its_reason_and_says_what_to_do(programs: Programs, place: str) -> None:
    async with client(programs.url(place)) as one:
        text, status = await refusal(one, "get_sandbox", name="sandboxes/nowhere")
        assert text.startswith("SANDBOX_NOT_FOUND: ") and text.endswith(
            "; check the name: a list shows which there are"
        )
        assert (status["code"], status["status"]) == (404, "NOT_FOUND")
        deep: dict[str, Any] = {}
        for _ in range(100):
            deep = {"sandbox": deep}
        bad: list[tuple[dict[str, Any], str]] = [
            ({"sandboxId": "x", "sandbox": {**NEW, "bogus": 1}}, "arguments.sandbox.bogus"),
            ({"sandboxId": "x", "sandbox": NEW, "bogus": 1}, "arguments.bogus"),
            ({"sandboxId": 5, "sandbox": NEW}, "arguments"),
            ({"sandboxId": "x", "sandbox": "text"}, "arguments"),
            ({"sandboxId": "x", "sandbox": {**NEW, "state": "NO_STATE"}}, "arguments.sandbox.state"),
            (deep, "arguments"),
            ({"sandboxId": "x", "sandbox": NEW, "requestId": "no uuid"}, "request_id"),
        ]
        for arguments, field in bad:
            text, status = await refusal(one, "create_sandbox", **arguments)
            assert text.startswith("INVALID_FIELD: ") and text.endswith("; correct the argument and call again"), text
            assert status["details"][0]["metadata"]["field"].startswith(field), status
        with pytest.raises(MCPError, match="there is no tool 'watch_sandboxes'"):
            await one.call_tool("watch_sandboxes", {})
        assert "sandboxes" not in await call(one, "list_sandboxes"), "nothing was stored"


async def test_a_record_is_a_resource(programs: Programs) -> None:
    async with client(programs.url("router")) as one:
        made = await call(one, "create_sandbox", sandboxId="one", sandbox=NEW)
        (template,) = (await one.list_resource_templates()).resource_templates
        assert template.uri_template == "sandbox://{name}"
        for uri in ("sandbox://sandboxes/one", "sandbox://sandboxes%2Fone"):
            (content,) = (await one.read_resource(uri)).contents
            assert json.loads(getattr(content, "text", "")) == made
        for uri, reason in (
            ("sandbox://sandboxes/two", "SANDBOX_NOT_FOUND"),
            ("sandbox://one", "INVALID_FIELD"),
            ("sandbox://", "uri"),
            ("shelf://x", "there is no resource"),
        ):
            with pytest.raises(MCPError, match=reason):
                await one.read_resource(uri)
        assert (await one.list_resources()).resources == []


async def test_a_client_of_the_old_service_gets_records_of_schema_version_1(programs: Programs) -> None:
    async with client(programs.url("a"), {}) as one:
        result = await one.call_tool(
            "create_sandbox", {"sandboxId": "one", "sandbox": {"account": "acme", "image": "x"}}
        )
        assert (result.structured_content["image"], result.structured_content["schemaVersion"]) == ("x", 1)
        assert result.meta is not None and "baton-deprecated" in result.meta
        (tool,) = [tool for tool in (await one.list_tools()).tools if tool.name == "get_sandbox"]
        assert tool.output_schema is not None and "image" in tool.output_schema["properties"]
    async with client(programs.url("a")) as one:
        assert (await call(one, "get_sandbox", name="sandboxes/one"))["spec"] == {"image": "x"}
        (tool,) = [tool for tool in (await one.list_tools()).tools if tool.name == "get_sandbox"]
        assert tool.output_schema is not None and "image" not in tool.output_schema["properties"]
    async with client(programs.url("a"), {METADATA: "9"}) as one:
        text, _ = await refusal(one, "get_sandbox", name="sandboxes/one")
        assert text.startswith(f"INVALID_FIELD: {METADATA}: '9' is not valid: 1 to 2")


async def test_an_agent_sees_where_the_migration_is_and_where_a_call_goes(programs: Programs) -> None:
    async with client(programs.url("router")) as one:
        await call(one, "create_sandbox", sandboxId="one", sandbox=NEW)
        status = await one.call_tool("migration_status", {})
        assert "is in phase OFF" in text_of(status)
        assert status.structured_content["setting"]["phase"] == "PHASE_OFF"
        for_operators = {"phaseActor", "phaseReason", "routers", "clients", "alerts", "logTrouble", "jobs"}
        for_operators.add("automaticRollback")
        assert not for_operators & set(status.structured_content)
        assert "note" not in status.structured_content["rollbackCost"]
        route = await one.call_tool("explain_route", {"key": "sandboxes/one", "operation": "update"})
        assert text_of(route).startswith(
            "The call goes to store A, because no other rule applies, and the home of all traffic in OFF"
        )
        assert "Store A has the record in version" in text_of(route)
        text, _ = await refusal(one, "explain_route", key="one", operation="get")
        assert text.startswith("INVALID_FIELD: key: 'one' is not valid")


@pytest.mark.parametrize("place", PLACES)
async def test_a_client_of_an_earlier_protocol_is_served(programs: Programs, place: str) -> None:
    async with client(programs.url(place) + "/", mode="legacy") as one:
        assert one.protocol_version == "2025-11-25"
        made = await call(one, "create_sandbox", sandboxId="one", sandbox=NEW)
        assert await call(one, "get_sandbox", name="sandboxes/one") == made


def _call_of(arguments: str) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"create_sandbox","arguments":%b}}' % (
        arguments.encode("latin-1")
    )


async def test_a_request_that_is_none_stores_nothing(programs: Programs) -> None:
    arguments = '{"sandboxId":"x","sandbox":{"account":"acme","image":"x","cpu":%s}}'
    bad: list[tuple[bytes, int, str]] = [
        (_call_of(arguments % "NaN"), 400, "body: 'NaN' is not valid: a finite number"),
        (_call_of(arguments % '1,"cpu":2'), 400, "body: 'cpu' is not valid: an object that has each key once"),
        (_call_of(arguments % '"\xff"'), 400, "JSON in UTF-8"),
        (_call_of(arguments % ("[" * 100_000)), 400, "deeply nested"),
        (_call_of(arguments % ("9" * 5000)), 400, "numbers"),
        (_call_of(arguments % "1")[:-1], 400, "line 1 column"),
        (b"", 400, "line 1 column"),
        (b"[]", 400, "body: 'list' is not valid: one JSON-RPC message"),
        (b'{"jsonrpc":"1.0"}', 400, "body.jsonrpc: '1.0' is not valid: a JSON-RPC message with"),
        (b'{"jsonrpc":"2.0","id":1}', 400, "body.method: None is not valid: the name of an MCP method"),
        (_call_of(arguments % ('"' + "x" * (3 << 20) + '"')), 413, "larger than 2097152 bytes"),
    ]
    url = programs.url("a")
    async with httpx2.AsyncClient(headers=ACCEPT, timeout=PATIENCE_SECONDS) as http:
        for body, code, message in bad:
            answer = await http.post(url, content=body)
            assert (answer.status_code, message in answer.json()["error"]["message"]) == (code, True), answer.text
        unfit: list[tuple[dict[str, Any], int]] = [
            ({"content-type": "text/plain"}, 415),
            ({"content-encoding": "gzip"}, 415),
            ({"origin": "http://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"x-server-timeout": "soon"}, 400),
            ({METADATA: b"\xe9"}, 400),
        ]
        for headers, code in unfit:
            answer = await http.post(url, content=_call_of(arguments % "1"), headers=headers)
            assert answer.status_code == code, answer.text
            assert answer.json()["error"]["message"]
        answer = await http.get(url)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert (await http.post(url + "/more", content=b"{}")).status_code == 404
    async with client(programs.url("a")) as one:
        assert "sandboxes" not in await call(one, "list_sandboxes")


async def test_any_host_and_a_page_of_this_machine_are_served(programs: Programs) -> None:
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    async with httpx2.AsyncClient(headers=ACCEPT, timeout=PATIENCE_SECONDS) as http:
        for headers in (
            {"host": "router.internal:8080"},
            {"origin": "http://localhost:6274"},
            {"origin": "http://[::1]"},
        ):
            answer = await http.post(programs.url("router"), content=ping, headers=headers)
            assert (answer.status_code, answer.json()["result"]) == (200, {})
            assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_desktop_client_has_the_same_tools_over_stdio(programs: Programs) -> None:
    for place in ("a", "router"):
        server = StdioServerParameters(command=str(BATON), args=["mcp", "--target", programs.grpc[place]])
        async with Client(stdio_client(server), read_timeout_seconds=PATIENCE_SECONDS, mode="legacy") as one:
            assert {tool.name for tool in (await one.list_tools()).tools} == CONTRACT_TOOLS
            made = await call(one, "create_sandbox", sandboxId=place, sandbox=NEW, requestId=REQUEST_ID)
            assert await call(one, "create_sandbox", sandboxId=place, sandbox=NEW, requestId=REQUEST_ID) == made
            text, status = await refusal(one, "get_sandbox", name="sandboxes/nowhere")
            assert text.startswith("SANDBOX_NOT_FOUND: ") and status["status"] == "NOT_FOUND"
            await refusal(one, "create_sandbox", sandboxId="nan", sandbox={"account": "acme", "cpu": float("nan")})


async def test_a_desktop_client_sends_the_token_that_its_file_has_now(tmp_path: Path) -> None:
    token = write(tmp_path / "token", "a-stranger-of-20-letters")
    known = write_tokens(tmp_path / "tokens.toml")
    async with running_programs(tmp_path, public_auth="tokens", public_auth_file=known) as programs:
        target = ["--target", programs.grpc["router"], "--token-file", str(token)]
        server = StdioServerParameters(command=str(BATON), args=["mcp", *target])
        async with Client(stdio_client(server), read_timeout_seconds=PATIENCE_SECONDS, mode="legacy") as one:
            text, _ = await refusal(one, "get_sandbox", name="sandboxes/one")
            assert text.startswith("TOKEN_UNKNOWN: ")
            token.write_text(TOKENS[ANN])
            text, _ = await refusal(one, "get_sandbox", name="sandboxes/one")
            assert text.startswith("SANDBOX_NOT_FOUND: ")


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ("127.0.0.1:1", 1, "baton: 127.0.0.1:1 does not answer: start A, B or a router there"),
        ("http://127.0.0.1:1", 2, "is not an address: give HOST:PORT"),
    ],
)
def test_a_target_that_is_away_is_named(target: str, code: int, message: str) -> None:
    done = subprocess.run([BATON, "mcp", "--target", target], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_no_process_loads_the_sdk_before_a_client_speaks_mcp() -> None:
    program = "import sys, libs.http.opening; sys.exit('mcp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
