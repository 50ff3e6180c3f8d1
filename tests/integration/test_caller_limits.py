"""The limits of a caller at every door of A, B and the router, and the service of others during one caller's flood."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.http.envelopes import pack
from libs.identity.port import AUTHORIZATION
from libs.pb.baton.control.v1 import control_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceStub
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.rpc import bodies
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import reason_of
from libs.sandboxes.schema import METADATA
from tests.contracts.identity_adapters import write
from tests.http_client import Answer, ask, connected
from tests.system.programs import PLACES, Programs, running_programs
from tests.waiting import eventually

SERVICE = "sandbox.v1.SandboxService"
CONTROL = "/baton.control.v1.ControlService"
NAME = "sandboxes/one"
GET = pb.GetSandboxRequest(name=NAME)
JSON = {"content-type": "application/json"}
BOUND_SECONDS = 20.0
LOOK_SECONDS = 1.0


def token(who: str) -> str:
    return f"the-token-of-{who}"


def headers(who: str) -> dict[str, str]:
    return {AUTHORIZATION: f"Bearer {token(who)}", METADATA: "2"}


def write_tokens(folder: Path, *subjects: str) -> dict[str, Any]:
    """Settings of authentication with a token for each subject."""
    entries = (f'[[token]]\nsubject = "{who}"\ntoken = "{token(who)}"\nroles = ["admin"]\n' for who in subjects)
    return {"public_auth": "tokens", "public_auth_file": write(folder / "tokens.toml", "".join(entries))}


async def by_grpc(at: Programs, place: str, who: str) -> str:
    async with open_channel(at.grpc[place]) as channel:
        return await reason(channel, f"/{SERVICE}/GetSandbox", GET.SerializeToString(), who)


async def reason(channel: Channel, path: str, request: bytes, who: str, seconds: float = BOUND_SECONDS) -> str:
    """Reason of a call's refusal; "" if it is answered, or not answered in time."""
    shown = grpc.aio.Metadata(*headers(who).items())
    try:
        await channel.multi_callable(path)(request, metadata=shown, timeout=seconds)
    except grpc.aio.AioRpcError as error:
        return reason_of(error)[0]
    return ""


def _of(answer: Answer, details: Callable[[Any], Any]) -> str:
    (found,) = [detail["reason"] for detail in details(answer.json()) if "reason" in detail]
    if answer.status == 429:
        assert int(answer.headers["retry-after"]) > 60
        assert found == "LIMIT_RATE"
    return str(found)


async def by_rest(at: Programs, place: str, who: str) -> str:
    return _of(
        await ask(at.http[place], "GET", f"/v1/{NAME}", headers=headers(who)), lambda body: body["error"]["details"]
    )


async def by_connect(at: Programs, place: str, who: str) -> str:
    body = json.dumps({"name": NAME}).encode()
    answer = await ask(at.http[place], "POST", f"/{SERVICE}/GetSandbox", body, {**JSON, **headers(who)})
    return _of(answer, lambda found: [detail["debug"] for detail in found["details"]])


async def by_grpc_web(at: Programs, place: str, who: str) -> str:
    sent = {"content-type": "application/grpc-web+proto", **headers(who)}
    answer = await ask(at.http[place], "POST", f"/{SERVICE}/GetSandbox", pack(GET.SerializeToString()), sent)
    (line,) = [one for one in answer.body.split(b"\r\n") if one.startswith(b"grpc-status-details-bin")]
    details = base64.b64decode(line.partition(b":")[2].strip() + b"==")
    return next(reason for reason in ("LIMIT_RATE", "NOT_FOUND") if reason.encode() in details)


async def by_mcp(at: Programs, place: str, who: str) -> str:
    call = {"name": "get_sandbox", "arguments": {"name": NAME}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}).encode()
    sent = {**JSON, "accept": "application/json, text/event-stream", **headers(who)}
    answer = await ask(at.http[place], "POST", "/mcp", body, sent)
    return next(reason for reason in ("LIMIT_RATE", "NOT_FOUND") if reason in answer.body.decode())


DOORS: dict[str, Callable[[Programs, str, str], Awaitable[str]]] = {
    "grpc": by_grpc,
    "rest": by_rest,
    "connect": by_connect,
    "grpc-web": by_grpc_web,
    "mcp": by_mcp,
}


async def test_every_door_of_every_program_has_the_limits_of_a_caller(tmp_path: Path) -> None:
    """The second call comes too soon for the caller, whichever door the first one took."""
    who = [f"{place}-{door}" for place in PLACES for door in DOORS]
    settings = write_tokens(tmp_path, "other", *who)
    async with running_programs(tmp_path, caller_rate=0.01, caller_burst=1, **settings) as at:
        for place in PLACES:
            for door, called in DOORS.items():
                caller = f"{place}-{door}"
                assert "NOT_FOUND" in await called(at, place, caller), f"{door} at {place}"
                assert await called(at, place, caller) == "LIMIT_RATE", f"{door} at {place}"
                assert await by_grpc(at, place, caller) == "LIMIT_RATE", f"gRPC after {door} at {place}"


async def test_every_program_has_the_quota_of_an_account_and_shows_it(tmp_path: Path) -> None:
    async with running_programs(tmp_path, store_settings={"account_records": 2}) as at:
        made = []
        for number, place in enumerate((*PLACES, "router")):
            body = json.dumps({"account": "acme", "spec": {"image": "debian:13"}}).encode()
            sent = {**JSON, METADATA: "2"}
            answer = await ask(at.http[place], "POST", f"/v1/sandboxes?sandboxId=one-{number}", body, sent)
            made.append(answer.status)
            if answer.status == 429:
                (info,) = (one for one in answer.json()["error"]["details"] if "reason" in one)
                assert (info["reason"], info["metadata"]["account"]) == ("QUOTA_EXCEEDED", "acme")
        assert made == [200, 200, 429, 429]
        for place in ("a", "b"):
            async with open_channel(at.internal[place]) as channel:
                stub: Any = ReplicationServiceStub(channel.grpc)
                assert (await stub.GetStatus(rpb.GetStatusRequest())).account_records == 2


@pytest.mark.slow
async def test_a_flood_of_one_caller_leaves_calls_health_and_rollback_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flood takes slots with calls whose bodies do not come."""
    monkeypatch.setattr(bodies, "BODY_SECONDS", 10 * BOUND_SECONDS)
    monkeypatch.setattr(bodies, "SLOW_SECONDS", 10 * BOUND_SECONDS)
    settings = write_tokens(tmp_path, "mallory", "ann", "ben")
    async with (
        running_programs(tmp_path, public_calls=8, **settings) as at,
        open_channel(at.grpc["router"]) as first,
        open_channel(at.grpc["router"]) as second,
        open_channel(at.grpc["router"]) as quiet,
        open_channel(at.address) as control,
    ):
        get = f"/{SERVICE}/GetSandbox"
        flood = [_stalled(channel, get, "mallory") for channel in (first, second) * 2]

        async def refused(looks: tuple[Channel, str, str], reason: str, stalls: tuple[Channel, str, str]) -> bool:
            """A call that looks whether the slots are taken may take one, in which it may wait behind bodies that do
            not come. It gives the slot up after `LOOK_SECONDS`, and another one fills it."""
            if await _is(*looks, reason):
                return True
            flood.append(_stalled(*stalls))
            return False

        mallory = first, get, "mallory"
        await eventually(lambda: refused(mallory, "LIMIT_CALLS", mallory))
        assert "NOT_FOUND" in await reason(quiet, get, GET.SerializeToString(), "ann")
        assert "NOT_FOUND" in await by_rest(at, "router", "ann")
        # A second caller fills this listener. At the control listener one has all that one may have.
        flood += [_stalled(quiet, get, "ben") for _ in range(4)]
        await eventually(lambda: refused((quiet, get, "ann"), "OVERLOADED", (quiet, get, "ben")))
        vitals = control, f"{CONTROL}/GetVitals", "mallory"
        flood += [_stalled(*vitals) for _ in range(128)]
        await eventually(lambda: refused(vitals, "LIMIT_CALLS", vitals))
        for channel in (quiet, control):
            stub: Any = health_pb2_grpc.HealthStub(channel.grpc)
            checked = await stub.Check(health_pb2.HealthCheckRequest(), timeout=BOUND_SECONDS)
            assert checked.status == health_pb2.HealthCheckResponse.SERVING
        assert (await ask(at.http["router"], "GET", "/readyz")).status == 200
        status = await control.multi_callable(f"{CONTROL}/GetStatus")(b"", timeout=BOUND_SECONDS)
        setting = control_pb2.GetStatusResponse.FromString(status).setting
        back = control_pb2.RollbackPhaseRequest(
            to=control_pb2.PHASE_OFF, actor="ann", reason="a flood", generation=setting.generation
        )
        assert await reason(control, f"{CONTROL}/RollbackPhase", back.SerializeToString(), "") == "ILLEGAL_MOVE", (
            "OFF already"
        )
        for call in flood:
            call.cancel()


def _stalled(channel: Channel, path: str, who: str) -> Any:
    """A call that has sent only its headers."""
    begin: Any = channel.grpc.stream_unary(path)
    return begin(timeout=10 * BOUND_SECONDS, metadata=grpc.aio.Metadata(*headers(who).items()))


async def _is(channel: Channel, path: str, who: str, expected: str) -> bool:
    return await reason(channel, path, b"", who, LOOK_SECONDS) == expected


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/v1/sandboxes?sandboxId=one", JSON),
        (f"/{SERVICE}/GetSandbox", JSON),
        (f"/{SERVICE}/GetSandbox", {"content-type": "application/grpc-web+proto"}),
        ("/mcp", JSON),
    ],
)
async def test_a_body_that_comes_too_slowly_ends_its_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, sent: dict[str, str]
) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    async with running_programs(tmp_path) as at, connected(at.http["router"]) as client:
        head = "".join(f"{name}: {value}\r\n" for name, value in {"host": "x", **sent, "content-length": "9"}.items())
        await client.send(f"POST {path} HTTP/1.1\r\n{head}\r\n{{".encode())
        received = b""
        while b"did not arrive in time" not in received:
            part = await client.read_raw()
            assert part, received
            received += part
