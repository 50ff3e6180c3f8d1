"""Accounts at every door of A, B and the router: a record of another account is no record there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.message import Message

from baton_client import CallError, connect_async
from baton_client.messages import GetSandboxRequest, ListSandboxesRequest, WatchSandboxesRequest
from libs.identity.port import AUTHORIZATION
from libs.pb.baton.control.v1 import control_pb2 as control
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.pb.sandbox.v1 import sandbox_service_pb2
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.rpc import metadata
from libs.rpc.channel import open_channel
from libs.sandboxes.schema import METADATA
from tests.contracts.identity_adapters import write
from tests.http_client import Answer, ask, connected
from tests.system.http import envelope, envelopes
from tests.system.programs import PLACES, Programs, running_programs
from tests.waiting import eventually

SERVICE = "sandbox.v1.SandboxService"
WEB = "application/grpc-web+proto"
HOLDERS = {"ann": 'accounts = ["acme"]', "bob": 'accounts = ["corp"]', "root": 'roles = ["admin"]', "nobody": ""}
SPEC = {"image": "image:1"}

Call = Callable[[Programs, str, str, str], Awaitable[Answer]]
"""Arguments: the programs, a place, the caller, an id."""


@pytest.fixture(params=[False, True], ids=["public", "internal"])
async def programs(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Programs]:
    """Stores pass calls on to the router's public listener with the caller's token, or to its internal one."""
    entries = [f'[[token]]\nsubject = "{who}"\ntoken = "{token_of(who)}"\n{rest}\n' for who, rest in HOLDERS.items()]
    file = write(tmp_path / "tokens.toml", "".join(entries))
    inside = {"router_internal": request.param, "token_file": write(tmp_path / "token", "t" * 16)}
    async with running_programs(tmp_path, public_auth="tokens", public_auth_file=file, **inside) as running:
        yield running


def token_of(who: str) -> str:
    return f"token-of-{who}-0000000000"


async def send(at: Programs, place: str, who: str, way: str, path: str, body: object = None) -> Answer:
    headers = {
        AUTHORIZATION: f"Bearer {token_of(who)}",
        METADATA: "2",
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        metadata.EXPLAIN: "1",
    }
    return await ask(at.http[place], way, path, b"" if body is None else json.dumps(body).encode(), headers)


async def by_rest(at: Programs, place: str, who: str, name: str) -> Answer:
    return await send(at, place, who, "GET", f"/v1/sandboxes/{name}")


async def rest_update(at: Programs, place: str, who: str, name: str) -> Answer:
    return await send(at, place, who, "PATCH", f"/v1/sandboxes/{name}?updateMask=labels", {"labels": {"k": "v"}})


async def rest_delete(at: Programs, place: str, who: str, name: str) -> Answer:
    return await send(at, place, who, "DELETE", f"/v1/sandboxes/{name}?etag=%220-9%22")


async def by_connect(at: Programs, place: str, who: str, name: str) -> Answer:
    return await send(at, place, who, "POST", f"/{SERVICE}/GetSandbox", {"name": f"sandboxes/{name}"})


async def connect_lease(at: Programs, place: str, who: str, name: str) -> Answer:
    body = {"name": f"sandboxes/{name}", "holder": "h", "ttl": "9s"}
    return await send(at, place, who, "POST", f"/{SERVICE}/AcquireLease", body)


async def by_mcp(at: Programs, place: str, who: str, name: str) -> Answer:
    return await _tool(at, place, who, "get_sandbox", {"name": f"sandboxes/{name}"})


async def _tool(at: Programs, place: str, who: str, tool: str, arguments: object) -> Answer:
    call = {"name": tool, "arguments": arguments}
    return await send(
        at, place, who, "POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    )


CALLS: dict[str, Call] = {
    "REST": by_rest,
    "REST update": rest_update,
    "REST delete": rest_delete,
    "Connect": by_connect,
    "Connect lease": connect_lease,
    "MCP": by_mcp,
}


async def make(at: Programs, place: str, who: str, name: str, account: str) -> Answer:
    path = f"/v1/sandboxes?sandboxId={name}&requestId={uuid4()}"
    return await send(at, place, who, "POST", path, {"account": account, "spec": SPEC})


async def shown(at: Programs, place: str) -> dict[tuple[str, str], tuple[int, bytes, dict[str, str]]]:
    """The answers to callers of other accounts, for each call on "hidden"."""
    found: dict[tuple[str, str], tuple[int, bytes, dict[str, str]]] = {}
    for kind, call in CALLS.items():
        for who in ("ann", "nobody"):
            answer = await call(at, place, who, "hidden")
            assert b"NOT_FOUND" in answer.body or b"not_found" in answer.body
            headers = {name: value for name, value in answer.headers.items() if name != "date"}
            found[kind, who] = answer.status, answer.body, headers
    return found


PHASES = {"OFF": (), "canary": ("SHADOW", "DUAL_WRITE"), "CUTOVER": ("SHADOW", "DUAL_WRITE", "DUAL_READ", "CUTOVER")}


async def enter(at: Programs, phase: str) -> None:
    async with open_channel(at.address) as channel:
        stub: Any = ControlServiceStub(channel.grpc)
        for name in PHASES[phase]:
            to = control.Phase.Value(f"PHASE_{name}")
            await stub.AdvancePhase(control.AdvancePhaseRequest(actor="a", reason="a test", to=to, override=True))
        if phase == "canary":
            await stub.SetCanary(control.SetCanaryRequest(actor="a", reason="a test", permille=500))


def _plain(shown: tuple[int, bytes, dict[str, str]]) -> tuple[int, Any]:
    """Status and body, without the explanation that an MCP answer has in it: it names the phase."""
    body = json.loads(shown[1])
    body.get("result", {}).pop("_meta", None)
    return shown[0], body


@pytest.mark.parametrize("phase", ["canary", "CUTOVER"])
async def test_no_door_shows_a_record_of_another_account_in_a_later_phase(programs: Programs, phase: str) -> None:
    absent = {place: await shown(programs, place) for place in PLACES}
    assert (await make(programs, "router", "bob", "hidden", "corp")).status == 200
    await enter(programs, phase)
    for place in PLACES:
        found = await shown(programs, place)
        assert {key: _plain(one) for key, one in found.items()} == {
            key: _plain(one) for key, one in absent[place].items()
        }
        assert (await by_rest(programs, place, "bob", "hidden")).json()["account"] == "corp"
        assert b"NAME_TAKEN" in (await make(programs, place, "ann", "hidden", "acme")).body
        listed = await send(programs, place, "ann", "GET", "/v1/sandboxes")
        assert listed.json().get("sandboxes", []) == []


async def test_no_door_shows_a_record_while_it_is_handed_over(programs: Programs) -> None:
    """Its owner goes on writing, and the records go from store to store."""
    names = [f"hidden-{number}" for number in range(8)]
    for name in names:
        assert (await make(programs, "router", "bob", name, "corp")).status == 200
    await enter(programs, "canary")
    moved = asyncio.Event()

    async def spy(place: str, looks: int = 0) -> int:
        while not moved.is_set():
            name = names[looks % len(names)]
            answer = await by_rest(programs, place, "ann", name)
            assert (answer.status, b"SANDBOX_NOT_FOUND" in answer.body) == (404, True), answer
            if place == "router":
                assert b"NAME_TAKEN" in (await make(programs, place, "ann", name, "acme")).body
                assert (await rest_update(programs, place, "bob", name)).status == 200
            looks += 1
        return looks

    async with asyncio.TaskGroup() as group, open_channel(programs.address) as channel:
        spies = [group.create_task(spy(place)) for place in PLACES]
        stub: Any = ControlServiceStub(channel.grpc)
        for permille, share in ((1000, 1024), (0, 0)):
            await stub.SetCanary(control.SetCanaryRequest(actor="a", reason="a test", permille=permille))

            async def arrived(share: int = share) -> bool:
                status = await stub.GetStatus(control.GetStatusRequest())
                return bool(status.settled and status.buckets_at_b == share)

            await eventually(arrived, 30.0)
        moved.set()
    assert all(one.result() for one in spies)


@pytest.mark.parametrize("place", PLACES)
async def test_no_door_shows_a_record_of_another_account(programs: Programs, place: str) -> None:
    absent = await shown(programs, place)
    assert (await make(programs, place, "bob", "hidden", "corp")).status == 200
    assert await shown(programs, place) == absent
    for who in ("bob", "root"):
        assert (await by_rest(programs, place, who, "hidden")).json()["account"] == "corp"
    taken = await make(programs, place, "ann", "hidden", "acme")
    assert (taken.status, b"NAME_TAKEN" in taken.body, b"corp" in taken.body) == (409, True, False)
    foreign = await make(programs, place, "ann", "other", "corp")
    assert (foreign.status, b"ACCOUNT_NOT_YOURS" in foreign.body, b"account" in foreign.body) == (403, True, True)
    listed = await send(programs, place, "ann", "GET", "/v1/sandboxes?showDeleted=true")
    assert listed.json().get("sandboxes", []) == []
    tool = await _tool(programs, place, "ann", "list_sandboxes", {})
    assert b"hidden" not in tool.body and tool.status == 200
    assert (await make(programs, place, "ann", "mine", "acme")).status == 200
    for who, names in (("ann", ["mine"]), ("bob", ["hidden"]), ("root", ["hidden", "mine"]), ("nobody", [])):
        listed = await send(programs, place, who, "GET", "/v1/sandboxes")
        assert [one["name"] for one in listed.json().get("sandboxes", [])] == [f"sandboxes/{name}" for name in names]


@pytest.mark.parametrize("entry", ["", '[[token]]\nsubject = "bob"\ntoken = "token-of-bob-0000000000"\n'])
async def test_a_watch_ends_when_its_token_is_revoked_or_loses_its_account(
    programs: Programs, tmp_path: Path, entry: str
) -> None:
    assert (await make(programs, "router", "bob", "hidden", "corp")).status == 200
    headers = {AUTHORIZATION: f"Bearer {token_of('bob')}", METADATA: "2", "accept": "application/x-ndjson"}
    async with connected(programs.http["router"]) as client, asyncio.timeout(60):
        await client.request("GET", "/v1/sandboxes:watch", headers=headers)
        assert (await client.head())[0] == 200
        write(tmp_path / "tokens.toml", f'[[token]]\nsubject = "x"\ntoken = "{token_of("x")}"\n{entry}')
        found = b""
        while (part := await client.data()) is not None:
            found += part
    assert (b"IDENTITY_CHANGED" if entry else b"TOKEN_UNKNOWN") in found


async def by_web(at: Programs, place: str, who: str, method: str, request: Message, kind: str = WEB) -> Answer:
    headers = {AUTHORIZATION: f"Bearer {token_of(who)}", METADATA: "2", "content-type": kind}
    body = envelope(request.SerializeToString())
    return await ask(at.http[place], "POST", f"/{SERVICE}/{method}", body, headers)


@pytest.mark.parametrize("place", PLACES)
async def test_grpc_web_shows_the_records_of_the_callers_accounts_only(programs: Programs, place: str) -> None:
    get = sandbox_service_pb2.GetSandboxRequest(name="sandboxes/hidden")
    absent = await by_web(programs, place, "ann", "GetSandbox", get)
    assert b"grpc-status: 5" in absent.body
    assert (await make(programs, place, "bob", "hidden", "corp")).status == 200
    assert (await by_web(programs, place, "ann", "GetSandbox", get)).body == absent.body
    (flags, found), _ = envelopes((await by_web(programs, place, "bob", "GetSandbox", get)).body)
    assert (flags, Sandbox.FromString(found).account) == (0, "corp")
    for who, names in (("ann", []), ("bob", ["sandboxes/hidden"])):
        answer = await by_web(programs, place, who, "ListSandboxes", sandbox_service_pb2.ListSandboxesRequest())
        page = sandbox_service_pb2.ListSandboxesResponse.FromString(envelopes(answer.body)[0][1])
        assert [one.name for one in page.sandboxes] == names


@pytest.mark.parametrize("place", PLACES)
async def test_the_python_client_sees_the_records_of_its_accounts_only(programs: Programs, place: str) -> None:
    assert (await make(programs, place, "bob", "hidden", "corp")).status == 200
    assert (await make(programs, place, "ann", "mine", "acme")).status == 200
    address = programs.grpc[place]
    for who, own, other in (("ann", "mine", "hidden"), ("bob", "hidden", "mine")):
        async with connect_async(address, token=token_of(who)) as client:
            page = await client.ListSandboxes(ListSandboxesRequest())
            assert [one.name for one in page.sandboxes] == [f"sandboxes/{own}"]
            with pytest.raises(CallError) as refused:
                await client.GetSandbox(GetSandboxRequest(name=f"sandboxes/{other}"))
            assert refused.value.code is grpc.StatusCode.NOT_FOUND
            async with asyncio.timeout(15), aclosing(client.WatchSandboxes(WatchSandboxesRequest())) as answers:
                seen = set()
                async for answer in answers:
                    seen |= {one.name for one in answer.sandboxes}
                    if answer.synced:
                        break
            assert seen == {f"sandboxes/{own}"}
