"""Authentication at every door of A, B and the router: the same answer and the same reason."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from libs.http import connection
from libs.http.envelopes import pack
from libs.http.protected import WELL_KNOWN
from libs.identity.port import AUTHORIZATION
from libs.identity.principal import Principal, Role
from libs.pb.baton.control.v1 import control_pb2 as control_pb
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceStub
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.rpc import metadata
from libs.rpc.channel import open_channel
from libs.rpc.errors import reason_of
from libs.rpc.forwarded import pair_of
from libs.sandboxes.schema import METADATA
from tests.contracts.identity_adapters import (
    ANN,
    AUDIENCE,
    EC,
    ISSUER,
    SPIFFE,
    TOKENS,
    claims,
    jwks,
    write,
    write_names,
    write_tokens,
)
from tests.http_client import Answer, ask
from tests.system.programs import PLACES, Programs, running_programs
from tests.system.store import new
from tests.waiting import eventually

SERVICE = "sandbox.v1.SandboxService"
NAME = "sandboxes/one"
GET = pb.GetSandboxRequest(name=NAME)
JSON = {"content-type": "application/json"}

Headers = dict[str, str]


@pytest.fixture(params=[False, True], ids=["public", "internal"])
async def programs(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Programs]:
    """Stores pass calls on to the router's public listener with the caller's token, or to its internal one."""
    file = write_tokens(tmp_path / "tokens.toml")
    inside = {"router_internal": request.param, "token_file": write(tmp_path / "token", "t" * 16)}
    async with running_programs(tmp_path, public_auth="tokens", public_auth_file=file, **inside) as running:
        yield running


def signed(token: str) -> Headers:
    return {AUTHORIZATION: f"Bearer {token}"} if token else {}


async def by_grpc(at: Programs, place: str, headers: Headers) -> str:
    """Image of the sandbox, or the reason of the refusal. So for every door."""
    async with open_channel(at.grpc[place]) as channel:
        call = channel.multi_callable(f"/{SERVICE}/GetSandbox")
        try:
            answer = await call(GET.SerializeToString(), metadata=grpc.aio.Metadata(*headers.items(), (METADATA, "2")))
        except grpc.aio.AioRpcError as error:
            return reason_of(error)[0] if error.code() is grpc.StatusCode.UNAUTHENTICATED else error.code().name
    return _image(answer)


def _image(answer: bytes) -> str:
    return Sandbox.FromString(answer).spec.image


def _of_json(answer: Answer, details: Callable[[Any], list[Any]]) -> str:
    body = answer.json()
    if answer.status == 200:
        return str(body["spec"]["image"])
    assert answer.status == 401
    challenge = answer.headers["www-authenticate"]
    (reason,) = [detail["reason"] for detail in details(body) if "reason" in detail]
    if reason == "TOKEN_MISSING":
        assert challenge == "Bearer"
    else:
        assert challenge.startswith('Bearer error="invalid_token", error_description="')
    return str(reason)


async def by_rest(at: Programs, place: str, headers: Headers) -> str:
    answer = await ask(at.http[place], "GET", f"/v1/{NAME}", headers={**headers, METADATA: "2"})
    return _of_json(answer, lambda body: body["error"]["details"])


async def by_connect(at: Programs, place: str, headers: Headers) -> str:
    body = json.dumps({"name": NAME}).encode()
    path = f"/{SERVICE}/GetSandbox"
    answer = await ask(at.http[place], "POST", path, body, {**JSON, **headers, METADATA: "2"})
    return _of_json(answer, lambda found: [detail["debug"] for detail in found["details"]])


async def by_grpc_web(at: Programs, place: str, headers: Headers) -> str:
    sent = {"content-type": "application/grpc-web+proto", **headers, METADATA: "2"}
    answer = await ask(at.http[place], "POST", f"/{SERVICE}/GetSandbox", pack(GET.SerializeToString()), sent)
    assert answer.status == 200
    if b"grpc-status:16" in answer.body.replace(b" ", b""):
        (line,) = [one for one in answer.body.split(b"\r\n") if one.startswith(b"grpc-status-details-bin")]
        details = base64.b64decode(line.partition(b":")[2].strip() + b"==")
        return next(reason for reason in ("TOKEN_MISSING", "TOKEN_UNKNOWN") if reason.encode() in details)
    size = int.from_bytes(answer.body[1:5], "big")
    return _image(answer.body[5 : 5 + size])


async def by_mcp(at: Programs, place: str, headers: Headers) -> str:
    answer = await _mcp(at, place, headers)
    body = answer.json()
    if answer.status == 200:
        return str(body["result"]["structuredContent"]["spec"]["image"])
    return _of_json(answer, lambda found: found["error"]["data"]["error"]["details"])


async def _mcp(at: Programs, place: str, headers: Headers) -> Answer:
    call = {"name": "get_sandbox", "arguments": {"name": NAME}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}).encode()
    sent = {**JSON, "accept": "application/json, text/event-stream", **headers, METADATA: "2"}
    return await ask(at.http[place], "POST", "/mcp", body, sent)


DOORS: dict[str, Callable[[Programs, str, Headers], Awaitable[str]]] = {
    "gRPC": by_grpc,
    "REST": by_rest,
    "Connect": by_connect,
    "gRPC-Web": by_grpc_web,
    "MCP": by_mcp,
}


async def create(at: Programs, place: str, who: str, request_id: str = "", name: str = "one") -> None:
    async with open_channel(at.grpc[place]) as channel:
        call = channel.multi_callable(f"/{SERVICE}/CreateSandbox")
        request = new(name, request_id=request_id or str(uuid4())).SerializeToString()
        await call(request, metadata=grpc.aio.Metadata(*signed(TOKENS[who]).items(), (METADATA, "2")))


async def test_every_door_of_every_program_accepts_and_refuses_alike(programs: Programs) -> None:
    """B passes the call on to the router, with the caller's token."""
    await create(programs, "a", ANN)
    for place in PLACES:
        for door, called in DOORS.items():
            found = [await called(programs, place, signed(token)) for token in (TOKENS[ANN], "", "a-stranger-000000")]
            assert found == ["image:1", "TOKEN_MISSING", "TOKEN_UNKNOWN"], f"{door} at {place}"


async def test_every_door_serves_callers_without_a_token_while_tokens_are_optional(tmp_path: Path) -> None:
    file = write_tokens(tmp_path / "tokens.toml")
    async with running_programs(tmp_path, public_auth="tokens", public_auth_file=file, public_auth_optional=True) as at:
        await create(at, "a", ANN)
        for place in PLACES:
            for door, called in DOORS.items():
                found = [await called(at, place, signed(token)) for token in (TOKENS[ANN], "", "a-stranger-000000")]
                assert found == ["image:1", "image:1", "TOKEN_UNKNOWN"], f"{door} at {place}"


async def test_a_watch_and_a_list_need_a_token_at_every_program(programs: Programs) -> None:
    await create(programs, "router", ANN)
    for place in PLACES:
        for path in ("/v1/sandboxes:watch", "/v1/sandboxes"):
            refused = await ask(programs.http[place], "GET", path, headers={METADATA: "2"})
            assert (refused.status, "TOKEN_MISSING" in refused.body.decode()) == (401, True), f"{path} at {place}"
        listed = await ask(programs.http[place], "GET", "/v1/sandboxes", headers={**signed(TOKENS[ANN]), METADATA: "2"})
        assert [one["name"] for one in listed.json()["sandboxes"]] == [NAME]


async def _served(at: Programs) -> set[str]:
    """Principals of the served requests at A."""
    token = ((metadata.TOKEN, "t" * 16),)
    async with open_channel(at.internal["a"]) as channel:
        stub: Any = ReplicationServiceStub(channel.grpc)
        exported = await stub.ExportRecords(rpb.ExportRecordsRequest(), metadata=token)
    return {one.principal for record in exported.records for one in record.served}


async def _switch(at: Programs) -> None:
    """Serve requests under subjects, at every program."""
    async with open_channel(at.address) as channel:
        control: Any = ControlServiceStub(channel.grpc)

        async def shown() -> Any:
            return await control.GetIdentity(control_pb.GetIdentityRequest())

        async def ready() -> bool:
            return not (await shown()).obstacles

        async def in_force() -> bool:
            return bool((await shown()).in_force)

        await eventually(ready)
        await control.SwitchIdentity(control_pb.SwitchIdentityRequest(actor="ops", serve_subjects=True))
        await eventually(in_force)


@pytest.mark.parametrize("place", PLACES)
async def test_the_subject_is_the_principal_of_served_requests(programs: Programs, place: str) -> None:
    """Once the operator has switched; until then it is anonymous."""
    await create(programs, place, ANN)
    assert await _served(programs) == {"anonymous"}
    await _switch(programs)
    await create(programs, place, ANN, name="two")
    assert await _served(programs) == {"anonymous", "tokens:ann"}


@pytest.mark.parametrize("place", PLACES)
async def test_a_forged_principal_has_no_effect_on_a_public_listener(programs: Programs, place: str) -> None:
    forged = (
        pair_of(Principal("root", roles=frozenset({Role.ADMIN}))),
        (metadata.PRINCIPAL, "root"),
        (metadata.SERVED_AS, metadata.SUBJECT),
    )
    async with open_channel(programs.grpc[place]) as channel:
        call = channel.multi_callable(f"/{SERVICE}/CreateSandbox")
        request = new("one").SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request, metadata=grpc.aio.Metadata(*forged, (METADATA, "2")))
        assert reason_of(refused.value)[0] == "TOKEN_MISSING"
        shown = signed(TOKENS[ANN]).items()
        await call(request, metadata=grpc.aio.Metadata(*forged, *shown, (METADATA, "2")))
    headers = {**signed(TOKENS[ANN]), metadata.PRINCIPAL: "root", METADATA: "2", **JSON}
    body = json.dumps({"account": "acme", "spec": {"image": "image:1"}}).encode()
    made = await ask(programs.http[place], "POST", "/v1/sandboxes?sandboxId=two", body, headers)
    assert made.status == 200, made.body
    assert await _served(programs) == {"anonymous"}


async def test_mcp_clients_learn_where_to_get_a_token(tmp_path: Path) -> None:
    keys = write(tmp_path / "jwks.json", jwks(EC))
    settings: dict[str, Any] = {
        "public_auth": "jwt",
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "jwt_keys": str(keys),
    }
    async with running_programs(tmp_path, **settings) as at:
        for place in PLACES:
            host = {"host": at.http[place]}
            refused = await _mcp(at, place, host)
            address = f"http://{at.http[place]}{WELL_KNOWN}/mcp"
            assert refused.status == 401
            assert refused.headers["www-authenticate"] == f'Bearer resource_metadata="{address}"'
            for path in (WELL_KNOWN, f"{WELL_KNOWN}/mcp"):
                assert (await ask(at.http[place], "GET", path, headers=host)).json() == {
                    "resource": f"http://{at.http[place]}/mcp",
                    "authorization_servers": [ISSUER],
                    "bearer_methods_supported": ["header"],
                }
            answered = await _mcp(at, place, {**host, **signed(EC.sign(claims()))})
            assert "NOT_FOUND" in answered.body.decode()
            expired = await _mcp(at, place, {**host, **signed(EC.sign(claims(exp=1)))})
            assert expired.headers["www-authenticate"] == (
                'Bearer error="invalid_token", error_description="The token has expired: get a new one.",'
                f' resource_metadata="{address}"'
            )


async def test_the_name_in_a_certificate_is_the_identity_at_every_door_over_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"public_auth": "mtls", "public_auth_file": write_names(tmp_path / "names.toml")}
    async with running_programs(tmp_path, **settings) as at:
        for names, expected in (
            ({"peer_uri": [SPIFFE[ANN].encode()]}, "NOT_FOUND"),
            ({"peer_uri": [b"spiffe://prod.example/nobody"]}, "CERTIFICATE_UNKNOWN"),
            ({}, "CERTIFICATE_MISSING"),
        ):
            # As TLS reports them: tests/integration/test_tls_processes.py has certificates.
            monkeypatch.setattr(connection, "identity_of", lambda _, found=names: found)
            answers = [
                await ask(at.http["a"], "GET", f"/v1/{NAME}", headers={METADATA: "2"}),
                await ask(at.http["a"], "POST", f"/{SERVICE}/GetSandbox", b'{"name": "sandboxes/one"}', JSON),
                await _mcp(at, "a", {}),
            ]
            assert [expected in answer.body.decode() for answer in answers] == [True] * 3, answers


async def test_without_authentication_every_caller_is_anonymous(tmp_path: Path) -> None:
    async with running_programs(tmp_path) as at:
        for place in PLACES:
            found = await ask(at.http[place], "GET", WELL_KNOWN)
            assert found.status == 404
        await create(at, "router", ANN)
        assert await _served(at) == {"anonymous"}
        assert await by_rest(at, "router", {}) == "image:1"
