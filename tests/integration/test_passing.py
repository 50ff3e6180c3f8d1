"""Calls that a store passes on to a router, with the identity that it has verified or with the caller's own token."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from libs.http import connection
from libs.identity.port import AUTHORIZATION
from libs.identity.principal import ANONYMOUS, Principal, Role
from libs.ownership.model import Store
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceStub
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.proving.servers.ports import free_port
from libs.rpc import metadata
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import reason_of
from libs.rpc.forwarded import pair_of
from libs.sandboxes.schema import METADATA
from libs.settings import WrongSetting
from services.router.features.router import open_router
from services.router.settings import RouterSettings
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
from tests.http_client import ask
from tests.system.programs import Programs, running_programs
from tests.system.store import new, refusal, running_store

SERVICE = "sandbox.v1.SandboxService"
NAME = "sandboxes/one"
TOKEN = "t" * 16
ADMIN = Principal("tests:root", roles=frozenset({Role.ADMIN}))
BOB = Principal("tests:bob", frozenset({"corp"}))
NEWEST = ((METADATA, "2"),)


def settings_of(kind: str, folder: Path) -> dict[str, Any]:
    shared = {"router_internal": True, "token_file": write(folder / "token", TOKEN)}
    match kind:
        case "tokens":
            return {**shared, "public_auth": kind, "public_auth_file": write_tokens(folder / "tokens.toml")}
        case "mtls":
            return {**shared, "public_auth": kind, "public_auth_file": write_names(folder / "names.toml")}
        case "jwt":
            keys = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_keys": str(folder / "jwks.json")}
            write(folder / "jwks.json", jwks(EC))
            return {**shared, "public_auth": kind, **keys}
    return shared


def credentials(kind: str) -> dict[str, str]:
    token = {"tokens": TOKENS[ANN], "jwt": EC.sign(claims())}.get(kind)
    return {AUTHORIZATION: f"Bearer {token}"} if token else {}


async def by_router(channel: Channel, method: str, request: Any, *extra: tuple[str, str | bytes]) -> bytes:
    """A call of the router's internal listener, as a store makes it."""
    sent = grpc.aio.Metadata((metadata.TOKEN, TOKEN), *NEWEST, *extra)
    return await channel.multi_callable(f"/{SERVICE}/{method}")(request.SerializeToString(), metadata=sent)


async def names_at(at: Programs, place: str, headers: dict[str, str]) -> list[str]:
    listed = await ask(at.http[place], "GET", "/v1/sandboxes", headers={**headers, METADATA: "2"})
    assert listed.status == 200, listed.body
    return [one["name"] for one in listed.json().get("sandboxes", [])]


@pytest.mark.parametrize("kind", ["none", "tokens", "jwt", "mtls"])
async def test_a_call_that_a_store_passes_on_has_the_rights_of_its_caller_and_no_others(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every list is passed on, and at B every call, since A owns all records."""
    if kind == "mtls":
        monkeypatch.setattr(connection, "identity_of", lambda _: {"peer_uri": [SPIFFE[ANN].encode()]})
    async with running_programs(tmp_path, **settings_of(kind, tmp_path)) as at:
        async with open_channel(at.passed_on) as router:
            await by_router(router, "CreateSandbox", new("one"), pair_of(ADMIN))
            theirs = new("two")
            theirs.sandbox.account = "corp"
            await by_router(router, "CreateSandbox", theirs, pair_of(ADMIN))
        visible = [NAME, "sandboxes/two"] if kind == "none" else [NAME]
        for place in ("a", "b"):
            assert await names_at(at, place, credentials(kind)) == visible, place
        for number, name in enumerate(("one", "two")):
            found = await ask(
                at.http["b"], "GET", f"/v1/sandboxes/{name}", headers={**credentials(kind), METADATA: "2"}
            )
            assert found.status == (200 if number < len(visible) else 404), name


@pytest.mark.parametrize("kind", ["none", "tokens"])
async def test_the_internal_listener_of_a_router_believes_authenticated_stores_only(kind: str, tmp_path: Path) -> None:
    forged = pair_of(ADMIN)
    async with running_programs(tmp_path, **settings_of(kind, tmp_path)) as at, open_channel(at.passed_on) as router:
        await by_router(router, "CreateSandbox", new("one"), pair_of(ANONYMOUS))
        call = router.multi_callable(f"/{SERVICE}/GetSandbox")
        request = pb.GetSandboxRequest(name=NAME).SerializeToString()
        bearer = (AUTHORIZATION, f"Bearer {TOKENS[ANN]}")
        for sent, reason in (
            ((forged,), "TOKEN_REFUSED"),
            ((forged, bearer), "TOKEN_REFUSED"),
            ((forged, (metadata.TOKEN, "u" * 16)), "TOKEN_REFUSED"),
            (((metadata.TOKEN, TOKEN),), "PRINCIPAL_MISSING"),
            (((metadata.TOKEN, TOKEN), bearer), "PRINCIPAL_MISSING"),
            (((metadata.TOKEN, TOKEN), (metadata.PRINCIPAL, "tests:root")), "PRINCIPAL_MISSING"),
            (((metadata.TOKEN, TOKEN), (metadata.PRINCIPAL_BIN, b"\xff")), "INVALID_FIELD"),
        ):
            assert reason_of(await refusal(call(request, metadata=grpc.aio.Metadata(*sent, *NEWEST))))[0] == reason
        refused = await refusal(by_router(router, "GetSandbox", pb.GetSandboxRequest(name=NAME), pair_of(BOB)))
        assert refused.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("place", ["a", "b"])
async def test_a_client_of_a_store_cannot_forge_what_the_store_passes_on(place: str, tmp_path: Path) -> None:
    async with running_programs(tmp_path, **settings_of("tokens", tmp_path)) as at:
        async with open_channel(at.passed_on) as router:
            theirs = new("one")
            theirs.sandbox.account = "corp"
            await by_router(router, "CreateSandbox", theirs, pair_of(ADMIN))
        forged = (pair_of(ADMIN), (metadata.PRINCIPAL, "root"), (metadata.TOKEN, TOKEN))
        async with open_channel(at.grpc[place]) as store:
            call = store.multi_callable(f"/{SERVICE}/ListSandboxes")
            request = pb.ListSandboxesRequest().SerializeToString()
            refused = await refusal(call(request, metadata=grpc.aio.Metadata(*forged, *NEWEST)))
            assert reason_of(refused)[0] == "TOKEN_MISSING"
            own = credentials("tokens").items()
            answer = await call(request, metadata=grpc.aio.Metadata(*forged, *own, *NEWEST))
        assert not pb.ListSandboxesResponse.FromString(answer).sandboxes


async def test_a_router_that_authenticates_clients_believes_no_store_without_a_token(tmp_path: Path) -> None:
    settings = settings_of("tokens", tmp_path)
    settings["token_file"] = None
    with pytest.raises(WrongSetting, match="token_file: it is not set"):
        async with running_programs(tmp_path, **settings):
            pass


async def test_a_call_that_comes_back_to_the_store_ends_with_the_settings_to_check(tmp_path: Path) -> None:
    """The router calls the store's public listener, by a wrong setting."""
    address = f"127.0.0.1:{free_port()}"
    async with running_store(Store.A, router=address) as at:
        settings = RouterSettings(
            public=address,
            control="127.0.0.1:0",
            store_a=at.server.address,
            store_b=at.server.address,
            event_log="memory:",
            control_store="memory:",
        )
        async with open_router(settings):
            await at.client.CreateSandbox(new("one"))
            given = rpb.ReleaseRecordsRequest(keys=[NAME], to=STORE_NUMBERS[Store.B])
            await at.replication.ReleaseRecords(given)
            async with asyncio.timeout(30):
                refused = await refusal(at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), timeout=20))
            assert (refused.code(), reason_of(refused)[0]) == (grpc.StatusCode.FAILED_PRECONDITION, "CALL_LOOP")
            assert "router_internal" in (refused.details() or "")


async def test_a_store_explains_no_direct_call_to_a_caller_of_some_accounts(tmp_path: Path) -> None:
    """Store and version may depend on a record that the caller must not know."""
    async with running_programs(tmp_path, **settings_of("tokens", tmp_path)) as at:
        async with open_channel(at.passed_on) as router:
            await by_router(router, "CreateSandbox", new("one"), pair_of(ADMIN))
        async with open_channel(at.internal["a"]) as internal:
            stub: Any = ReplicationServiceStub(internal.grpc)
            known = rpb.SyncDirectCallsRequest(router="test")
            await stub.SyncDirectCalls(known, metadata=((metadata.TOKEN, TOKEN),))
        async with open_channel(at.grpc["a"]) as store:
            call = store.multi_callable(f"/{SERVICE}/GetSandbox")(
                pb.GetSandboxRequest(name=NAME).SerializeToString(),
                metadata=grpc.aio.Metadata(
                    *credentials("tokens").items(), (metadata.BUCKET, "1"), (metadata.EXPLAIN, "1")
                ),
            )
            await call
            found = dict(await call.trailing_metadata() or ())
        assert found[metadata.REASON] == "phase", "a router answers"
