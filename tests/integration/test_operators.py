"""Operators at a router's control listener: who they are, and what each may call."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from libs.clock import SystemClock
from libs.errors import BatonError
from libs.identity.port import AUTHORIZATION
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.rpc.auth import operator_metadata
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import reason_of
from libs.settings import WrongSetting
from libs.tls.process import ClientTls
from services.router.api.roles import ELEVATED, ROLES
from services.router.cli.failure import Exit
from services.router.features.operators import open_operators
from services.router.features.router import open_router
from services.router.settings import RouterSettings
from tests.certificates import Authority, files
from tests.commands import answer, baton
from tests.contracts.identity_adapters import AUDIENCE, EC, ISSUER, claims, jwks, write
from tests.http_client import ask
from tests.integration.test_tls_processes import BATON, BOUND_SECONDS
from tests.integration.test_tls_processes import running as process
from tests.system.control import running_loops
from tests.system.programs import Programs, running_programs

HELD = ("", "viewer", "operator", "admin")
"""One operator for each set of roles, with the role as the name; "" has none."""
METHODS = pb.DESCRIPTOR.services_by_name["ControlService"].methods_by_name
REVEALING = sorted(name for name, method in METHODS.items() if "reveal" in method.input_type.fields_by_name)
ANSWER_SECONDS = 20.0


def token_of(role: str) -> str:
    return f"token-of-the-{role or 'visitor'}-0000"


def operators_file(folder: Path) -> Path:
    entries = [
        f'[[token]]\nsubject = "{role or "visitor"}"\ntoken = "{token_of(role)}"\n'
        f"roles = {json.dumps([role] if role else [])}\n"
        for role in HELD
    ]
    return write(folder / "operators.toml", "".join(entries))


def token_file(folder: Path, role: str) -> str:
    return str(write(folder / f"token-{role}", token_of(role)))


def router_settings(**settings: Any) -> RouterSettings:
    given = {"store_a": "127.0.0.1:1", "store_b": "127.0.0.1:2", "control_store": "memory:", "event_log": "memory:"}
    return RouterSettings(**{**given, "public": "127.0.0.1:0", "control": "127.0.0.1:0", **settings})


@asynccontextmanager
async def running_router(**settings: Any) -> AsyncIterator[str]:
    """The control address of a router whose stores are out of reach."""
    async with open_router(router_settings(**settings)) as router, running_loops(*router.loops):
        yield router.control.address


async def outcome(channel: Channel, name: str, request: Any, shown: Mapping[str, str]) -> str:
    """Reason of the refusal; "" for an answer, or for a stream that stays open."""
    call = getattr(ControlServiceStub(channel.grpc), name)
    running = call(request, timeout=ANSWER_SECONDS, metadata=grpc.aio.Metadata(*shown.items()))
    try:
        if METHODS[name].server_streaming:
            await running.read()
            running.cancel()
        else:
            await running
    except grpc.aio.AioRpcError as error:
        return reason_of(error)[0] or error.code().name
    return ""


def bearer(token: str) -> dict[str, str]:
    return {AUTHORIZATION: f"Bearer {token}"}


def empty(name: str, **fields: Any) -> Any:
    return GetMessageClass(METHODS[name].input_type)(**fields)


async def test_every_method_over_grpc_is_open_to_its_role_and_those_above(tmp_path: Path) -> None:
    """A call that is let in may still be refused for another reason, such as a missing field."""
    async with (
        running_router(control_auth="tokens", control_auth_file=operators_file(tmp_path)) as address,
        open_channel(address) as channel,
    ):
        for name, role in sorted(ROLES.items()):
            for level, held in enumerate(HELD):
                found = await outcome(channel, name, empty(name), bearer(token_of(held)))
                assert (found == "ROLE_MISSING") == (level < role), (name, held, found)
                assert "TOKEN" not in found
            strangers = [await outcome(channel, name, empty(name), shown) for shown in ({}, bearer("x" * 20))]
            assert strangers == ["TOKEN_MISSING", "TOKEN_UNKNOWN"], name


async def test_secrets_are_shown_to_admins_only_by_every_method_that_can(tmp_path: Path) -> None:
    assert set(REVEALING) == {"ReadEvents", "ShowRecord", "ListConflicts"} and set(REVEALING) <= set(ELEVATED)
    async with (
        running_router(control_auth="tokens", control_auth_file=operators_file(tmp_path)) as address,
        open_channel(address) as channel,
    ):
        for name in REVEALING:
            request = empty(name, reveal=True, actor="ann", reason="")
            for held in HELD[:-1]:
                assert await outcome(channel, name, request, bearer(token_of(held))) == "ROLE_MISSING", (name, held)
            # An admin is asked for the reason.
            assert await outcome(channel, name, request, bearer(token_of("admin"))) == "INVALID_FIELD"


async def test_the_subject_is_the_actor_and_the_given_name_is_beside_it(tmp_path: Path) -> None:
    async with running_router(control_auth="tokens", control_auth_file=operators_file(tmp_path)) as address:
        router = At(address)
        flags = await answer(router, "flags", "list", "--token-file", token_file(tmp_path, "viewer"))
        change = ("flags", "set", flags["flags"][0]["name"], "false", "--reason", "drill", "--yes")
        await answer(router, *change, "--token-file", token_file(tmp_path, "operator"))
        newest = (await answer(router, "journal", "--token-file", token_file(tmp_path, "viewer")))["entries"][0]
        assert (newest["actor"], newest["reason"]) == ("tokens:operator (ann@host)", "drill")


async def test_the_command_says_what_is_missing_and_exits_with_5(tmp_path: Path) -> None:
    async with running_router(control_auth="tokens", control_auth_file=operators_file(tmp_path)) as address:
        router = At(address)
        without = await baton(router, "status")
        assert (without.exit_code, "name the file of yours with --token-file" in without.stderr) == (Exit.REFUSED, True)
        unknown = await baton(router, "status", "--token-file", str(write(tmp_path / "other", "x" * 20)))
        assert (unknown.exit_code, "the router refuses your token" in unknown.stderr) == (Exit.REFUSED, True)
        viewer = await baton(router, "rollback", "OFF", "--yes", "--token-file", token_file(tmp_path, "viewer"))
        assert viewer.exit_code == Exit.FAILED, "a phase that is not later is refused before the call"
        hold = await baton(router, "hold", "lift", "--yes", "--token-file", token_file(tmp_path, "viewer"))
        assert hold.exit_code == Exit.FAILED
        tried = await baton(router, "audit", "--yes", "--token-file", token_file(tmp_path, "viewer"))
        assert tried.exit_code == Exit.REFUSED
        assert "StartJob needs the role operator; the roles of this caller: viewer; ask" in tried.stderr


async def test_operators_use_the_issuer_of_clients_with_another_audience(tmp_path: Path) -> None:
    keys = write(tmp_path / "jwks.json", jwks(EC))
    shared = {"public_auth": "jwt", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_keys": str(keys)}
    async with (
        running_router(**shared, control_auth="jwt", control_jwt_audience="baton") as address,
        open_channel(address) as channel,
    ):
        request = empty("GetStatus")
        for audience, found in ((AUDIENCE, "TOKEN_WRONG_AUDIENCE"), ("baton", "")):
            token = EC.sign(claims("ops", aud=audience, roles=["viewer"]))
            assert await outcome(channel, "GetStatus", request, bearer(token)) == found
        no_role = EC.sign(claims("ops", aud="baton", roles=[]))
        assert await outcome(channel, "GetStatus", request, bearer(no_role)) == "ROLE_MISSING"


async def test_an_operator_is_known_by_the_name_in_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("router")
    names = '[[certificate]]\nname = "viewer.baton"\nroles = ["viewer"]\n'
    settings = {
        "tls_certificate": own.certificate,
        "tls_key": own.key,
        "tls_client_ca": authority.file,
        "control_auth": "mtls",
        "control_auth_file": write(tmp_path / "names.toml", names),
    }
    expected = {"viewer": ("", "ROLE_MISSING"), "stranger": ("CERTIFICATE_UNKNOWN", "CERTIFICATE_UNKNOWN")}
    async with running_router(**settings) as address:
        for name, found in expected.items():
            tls = ClientTls(files(authority.issue(name, f"{name}.baton"), authority.file))
            async with open_channel(address, tls) as channel:
                asked = [await outcome(channel, method, empty(method), {}) for method in ("GetStatus", "SetFlag")]
            assert tuple(asked) == found, name


async def test_a_command_sends_one_token_to_a_router_of_either_kind(tmp_path: Path) -> None:
    """So operators keep access while the routers change from the shared token to tokens of their own."""
    shown = dict(operator_metadata(token_of("admin")))
    shared = write(tmp_path / "shared", token_of("admin"))
    async with running_router(control_token_file=shared) as address, open_channel(address) as channel:
        assert await outcome(channel, "GetStatus", empty("GetStatus"), shown) == ""
        assert await outcome(channel, "GetStatus", empty("GetStatus"), {}) == "TOKEN_REFUSED"
    async with (
        running_router(control_auth="tokens", control_auth_file=operators_file(tmp_path)) as address,
        open_channel(address) as channel,
    ):
        assert await outcome(channel, "GetStatus", empty("GetStatus"), shown) == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"control": "0.0.0.0:0"}, "control: 0.0.0.0:0 can be reached from other machines: set control_auth"),
        ({"control_auth": "token"}, "control_token_file: it is not set: control_auth = token needs it"),
        ({"control_auth": "tokens"}, "control_auth_file: it is not set: control_auth = tokens needs a TOML file"),
        ({"control_auth": "jwt"}, "jwt_issuer: it is not set: control_auth = jwt needs it"),
        ({"control_auth": "jwt", "control_jwt_issuer": "x"}, "an issuer and its keys belong together"),
        ({"control_auth": "none", "control_token_file": "shared"}, "control_auth = none does not accept it: remove it"),
    ],
)
async def test_a_router_does_not_start_without_the_authentication_that_it_needs(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BatonError, match=message):
        async with running_router(**settings):
            pass


async def test_operators_without_authentication_beyond_loopback_are_written_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        async with running_router(control="0.0.0.0:0", control_auth="none"):
            pass
    assert "control_auth = none: everyone who reaches the control listener has all roles" in caplog.text


async def test_a_shared_token_still_opens_the_listener_beyond_loopback(tmp_path: Path) -> None:
    async with running_router(control="0.0.0.0:0", control_token_file=write(tmp_path / "t", "x" * 20)):
        pass


async def tool(programs: Programs, name: str, headers: Mapping[str, str]) -> str:
    """Reason of the refusal of an MCP tool; "" for a result."""
    arguments = {"migration_status": {}, "explain_route": {"key": "sandboxes/one", "operation": "get"}}[name]
    params = {"name": name, "arguments": arguments}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    sent = {"content-type": "application/json", "accept": "application/json, text/event-stream", **headers}
    found = (await ask(programs.http["router"], "POST", "/mcp", body, sent)).json()
    result = found.get("result") or {"isError": True, "structuredContent": found["error"]["data"]}
    if not result.get("isError"):
        return ""
    details = result["structuredContent"]["error"]["details"]
    return next(str(detail["reason"]) for detail in details if "reason" in detail)


@pytest.mark.parametrize("name", ["migration_status", "explain_route"])
async def test_a_tool_gives_a_client_no_more_than_the_control_listener(tmp_path: Path, name: str) -> None:
    """A client's own roles count at the listener that issued them for operators, not at the public one."""
    clients = write(
        tmp_path / "clients.toml",
        "".join(
            f'[[token]]\nsubject = "c{number}"\ntoken = "{token}"\nroles = ["admin"]\n'
            for number, token in enumerate((token_of("viewer"), token_of(""), "an-admin-among-clients"))
        ),
    )
    operators = {"control_auth": "tokens", "control_auth_file": operators_file(tmp_path)}
    async with running_programs(
        tmp_path, router_settings=operators, public_auth="tokens", public_auth_file=clients
    ) as programs:
        assert await tool(programs, name, bearer("an-admin-among-clients")) == "TOKEN_UNKNOWN"
        assert await tool(programs, name, bearer(token_of(""))) == "ROLE_MISSING"
        assert await tool(programs, name, bearer(token_of("viewer"))) == ""


@pytest.mark.parametrize("kind", [None, "none"])
@pytest.mark.parametrize("name", ["migration_status", "explain_route"])
async def test_a_control_listener_of_this_machine_alone_opens_no_tool_to_clients(
    tmp_path: Path, name: str, kind: str | None
) -> None:
    """Clients may come from other machines, and an explanation shows records of every account."""
    clients = write(
        tmp_path / "clients.toml",
        f'[[token]]\nsubject = "ann"\ntoken = "{token_of("ann")}"\naccounts = ["acme"]\nroles = ["operator"]\n'
        f'[[token]]\nsubject = "root"\ntoken = "{token_of("root")}"\nroles = ["admin"]\n',
    )
    control = {"control_auth": kind} if kind else {}
    async with running_programs(
        tmp_path, router_settings=control, public_auth="tokens", public_auth_file=clients
    ) as programs:
        assert await tool(programs, name, bearer(token_of("ann"))) == "ROLE_MISSING"
        assert await tool(programs, name, bearer(token_of("root"))) == ""


async def test_a_tool_needs_the_shared_token_of_the_control_listener(tmp_path: Path) -> None:
    shared = {"control_token_file": write(tmp_path / "shared", "x" * 20)}
    async with running_programs(tmp_path, router_settings=shared) as programs:
        assert await tool(programs, "migration_status", {}) == "TOKEN_REFUSED"
        assert await tool(programs, "migration_status", {"baton-token": "x" * 20}) == ""


async def test_an_operators_setting_overrides_that_of_clients(tmp_path: Path) -> None:
    keys = write(tmp_path / "jwks.json", jwks(EC))
    settings = router_settings(
        control_auth="jwt",
        jwt_issuer="https://customers.example",
        jwt_audience=AUDIENCE,
        jwt_keys=str(tmp_path / "none.json"),
        control_jwt_issuer=ISSUER,
        control_jwt_keys=str(keys),
        control_jwt_roles_claim="groups",
    )
    operators = await open_operators(settings, SystemClock())
    assert operators.identity.authenticator is not None and operators.identity.issuer == ISSUER
    with pytest.raises(WrongSetting):
        await open_operators(router_settings(control_auth="token"), SystemClock())


async def test_the_command_and_the_router_as_processes_know_the_operator(tmp_path: Path) -> None:
    settings = {
        "public": "127.0.0.1:0",
        "control": "127.0.0.1:0",
        "store_a": "127.0.0.1:1",
        "store_b": "127.0.0.1:2",
        "control_store": f"sqlite:///{tmp_path}/control.db",
        "event_log": "memory:",
        "control_auth": "tokens",
        "control_auth_file": str(operators_file(tmp_path)),
    }
    async with process("router", settings) as router:
        (address, *_) = [line.split("control=")[1].split()[0] for line in router.lines if "control=" in line]
        environment = {"BATON_CONTROL": address, "BATON_TOKEN_FILE": token_file(tmp_path, "operator")}
        flag = json.loads(await command(environment, "flags", "list", "-o", "json"))["flags"][0]["name"]
        await command(environment, "flags", "set", flag, "false", "--yes", "--actor", "bob", "--reason", "drill")
        (newest, *_) = json.loads(await command(environment, "journal", "-o", "json"))["entries"]
        assert (newest["actor"], newest["reason"]) == ("tokens:operator (bob)", "drill")
        stranger = {"BATON_CONTROL": address}
        assert "--token-file" in await command(stranger, "flags", "set", flag, "true", "--yes", code=Exit.REFUSED)


async def command(environment: Mapping[str, str], *arguments: str, code: Exit = Exit.OK) -> str:
    """Output of `baton` as a process: stdout, or stderr if it failed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(
        BATON, *arguments, env={**kept, **environment}, stdout=pipe, stderr=pipe
    )
    async with asyncio.timeout(BOUND_SECONDS):
        done, errors = await running.communicate()
    assert running.returncode == code, errors.decode()
    return (errors if code else done).decode()


class At:
    """A router for `tests.commands`."""

    def __init__(self, address: str) -> None:
        self.address = address
