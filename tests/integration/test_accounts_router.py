"""Accounts through the router: in no phase, and wherever a record is, a caller of another account sees it."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.message import Message

from libs.contract.pages import HASH_BYTES
from libs.identity.port import AUTHORIZATION, Credentials
from libs.identity.principal import Principal
from libs.ownership.model import Store, bucket_of
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.rpc import metadata
from libs.rpc.errors import own_metadata, reason_of
from services.router.core.phase import Phase
from services.router.core.plan import canary_buckets
from services.router.flows.calls import listing
from tests.contracts.account_rig import ANN, BOB, BOTH, CALLERS, NOBODY, ROOT, Outcome, create
from tests.contracts.test_store_accounts import EXPLAIN, ON_ONE_RECORD, renamed
from tests.integration.test_router import BY_HAND, go_to
from tests.system.store import SANDBOXES
from tests.system.whole import System, running_system
from tests.waiting import eventually

CANARY = 500
PHASES = {"OFF": Phase.OFF, "canary": Phase.DUAL_WRITE, "CUTOVER": Phase.CUTOVER}


class ByName:
    """Callers show their subject."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        shown = dict(credentials.invocation_metadata() or ())[AUTHORIZATION]
        return next(who for who in CALLERS if who.subject == shown)


@pytest.fixture
async def system() -> AsyncIterator[System]:
    """Without a mover: records and buckets move by calls alone."""
    async with running_system(SANDBOXES, mover=False, authenticator=ByName()) as running:
        yield running


async def enter(system: System, phase: str) -> None:
    await go_to(system, PHASES[phase])
    if phase == "canary":
        await system.migration.set_canary(BY_HAND, CANARY)


async def ask(
    system: System, who: Principal, method: str, request: Message, pairs: tuple[tuple[str, str], ...] = ()
) -> Outcome:
    sent = grpc.aio.Metadata((AUTHORIZATION, who.subject), *pairs)
    path = f"/sandbox.v1.SandboxService/{method}"
    call = system.client.multi_callable(path)(request.SerializeToString(), timeout=10, metadata=sent)
    try:
        data = await call
    except grpc.aio.AioRpcError as error:
        found = own_metadata(error.trailing_metadata())
        status = b"".join(value for name, value in found if isinstance(value, bytes))
        rest = tuple(item for item in found if isinstance(item[1], str))
        return Outcome(b"", status + (error.details() or "").encode(), error.code().name, reason_of(error)[0], rest)
    return Outcome(data, trailers=own_metadata(await call.trailing_metadata()))


async def make(system: System, who: Principal, name: str, account: str) -> Outcome:
    return await ask(system, who, "CreateSandbox", create(name, account, str(uuid4())))


def names_of(at_b: bool, stem: str) -> Iterator[str]:
    """Names of this stem and six characters, in the canary or not."""
    for number in count():
        name = f"{stem}{number:05}"
        if (bucket_of(f"sandboxes/{name}") < canary_buckets(CANARY)) is at_b:
            yield name


@pytest.mark.parametrize("phase", PHASES)
async def test_a_hidden_record_is_answered_as_an_absent_one_and_stays_where_it_is(system: System, phase: str) -> None:
    absent = {at_b: names_of(at_b, "a") for at_b in (True, False)}
    hidden = [next(names_of(at_b, "h")) for at_b in (True, False)]
    for name in hidden:
        assert (await make(system, BOB, name, "corp")).code == "OK"
    keys = [f"sandboxes/{name}" for name in hidden]
    await eventually(lambda: all(key in system.ports(Store.B)._state.rows for key in keys))
    await enter(system, phase)
    before = {key: system.ports(Store.A)._state.rows[key] for key in keys}
    for method, request in ON_ONE_RECORD.values():
        for name, at_b in zip(hidden, (True, False), strict=True):
            missing = next(absent[at_b])
            for pairs in ((), EXPLAIN):
                if pairs and method == "DeleteSandbox" and getattr(request(name), "allow_missing", False):
                    # The second such delete of an absent name has a predecessor.
                    continue
                found = await ask(system, ANN, method, request(name), pairs)
                expected = await ask(system, ANN, method, request(missing), pairs)
                assert renamed(found, name) == renamed(expected, missing), (method, pairs)
    assert {key: system.ports(Store.A)._state.rows[key] for key in keys} == before
    for name in hidden:
        for who, account, reason in ((ANN, "acme", "NAME_TAKEN"), (ANN, "corp", "ACCOUNT_NOT_YOURS")):
            assert (await make(system, who, name, account)).reason == reason
    assert {key: system.ports(Store.A)._state.rows[key] for key in keys} == before
    for name in hidden:
        assert (await ask(system, BOB, "GetSandbox", pb.GetSandboxRequest(name=f"sandboxes/{name}"))).code == "OK"


async def _list(system: System, who: Principal, size: int) -> tuple[list[str], set[str]]:
    names: list[str] = []
    last: set[str] = set()
    request = pb.ListSandboxesRequest(page_size=size)
    while True:
        page = pb.ListSandboxesResponse.FromString((await ask(system, who, "ListSandboxes", request)).data)
        names += [one.name for one in page.sandboxes]
        if not page.next_page_token:
            return names, last
        request.page_token = page.next_page_token
        last.add(base64.urlsafe_b64decode(page.next_page_token + "==")[HASH_BYTES:].decode())


async def test_a_list_of_both_stores_shows_the_callers_accounts_and_no_token_names_another(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    from libs.store import memory

    monkeypatch.setattr(memory, "LIST_ROWS", 3)
    monkeypatch.setattr(listing, "PAGE_SECONDS", 0.0)
    for number in range(24):
        who, account = ((ANN, "acme"), (BOB, "corp"))[number % 4 > 0]
        await make(system, who, f"n{number:02}", account)
    mine = [f"sandboxes/n{number:02}" for number in range(0, 24, 4)]
    for phase in PHASES:
        await enter(system, phase)
        # Some records move, and have then a newer version at one store.
        for name in ("n04", "n05"):
            who = ANN if name == "n04" else BOB
            change = ON_ONE_RECORD["update"][1](name)
            assert isinstance(change, pb.UpdateSandboxRequest)
            change.request_id = str(uuid4())
            assert (await ask(system, who, "UpdateSandbox", change)).code == "OK"
        for size in (1, 4, 100):
            names, last = await _list(system, ANN, size)
            assert names == mine and last <= set(mine)
        assert await _list(system, NOBODY, 1) == ([], set())
        assert len((await _list(system, BOTH, 5))[0]) == len((await _list(system, ROOT, 5))[0]) == 24


async def _views(
    system: System, who: Principal, token: str = ""
) -> AsyncGenerator[tuple[bool, list[str], list[str], str], None]:
    """Each complete view of a watch: records shown and names removed since the last one, and the token."""
    request = pb.WatchSandboxesRequest(resume_token=token).SerializeToString()
    sent = grpc.aio.Metadata((AUTHORIZATION, who.subject))
    call = system.client.stream_callable("/sandbox.v1.SandboxService/WatchSandboxes")(request, metadata=sent)
    reset, shown, removed = False, [], []
    try:
        while True:
            data: Any = await call.read()
            answer = pb.WatchSandboxesResponse.FromString(data)
            reset |= answer.reset
            shown += [one.name for one in answer.sandboxes]
            removed += list(answer.removed)
            if answer.synced:
                yield reset, shown, removed, answer.resume_token
                reset, shown, removed = False, [], []
    finally:
        call.cancel()


@pytest.mark.parametrize("phase", PHASES)
async def test_a_watch_through_the_router_keeps_to_the_callers_accounts(system: System, phase: str) -> None:
    await make(system, ANN, "a", "acme")
    await make(system, BOB, "c", "corp")
    await eventually(lambda: len(system.ports(Store.B)._state.rows) == 2)
    await enter(system, phase)
    views = _views(system, ANN)
    first = await anext(views)
    assert first[:3] == (True, ["sandboxes/a"], [])
    request: Callable[[str], Message] = ON_ONE_RECORD["delete"][1]
    assert (await ask(system, BOB, "DeleteSandbox", request("c"))).code == "OK"
    assert (await ask(system, ANN, "DeleteSandbox", request("a"))).code == "OK"
    while not (view := await anext(views))[2]:
        assert view[1] == []
    assert view[:3] == (False, [], ["sandboxes/a"])
    await views.aclose()
    resumed = _views(system, ANN, first[3])
    assert (await anext(resumed))[:3] == (False, [], ["sandboxes/a"])
    await resumed.aclose()
    for who in (BOTH, ROOT, NOBODY):
        other = _views(system, who, first[3])
        assert (await anext(other))[:3] == (True, [], []), "a new view, not an error"
        await other.aclose()


async def test_the_version_of_a_record_that_no_store_can_read_is_not_shown(system: System) -> None:
    from libs.ownership.model import Row, Version
    from tests.contracts.store_adapters import record_of

    key = "sandboxes/newer"
    row = Row(key, Version(0, 7), Store.A, Version(0, 7), True, b"\x3a\x04acme", 99)
    await system.ports(Store.A).transfers.apply([record_of(row)])
    for pairs in ((), EXPLAIN):
        hidden = await ask(system, ANN, "GetSandbox", pb.GetSandboxRequest(name=key), pairs)
        absent = await ask(system, ANN, "GetSandbox", pb.GetSandboxRequest(name="sandboxes/never"), pairs)
        assert renamed(hidden, "newer") == renamed(absent, "never")
        assert metadata.VERSION not in dict(hidden.trailers)
    whole = await ask(system, ROOT, "GetSandbox", pb.GetSandboxRequest(name=key), EXPLAIN)
    assert dict(whole.trailers)[metadata.VERSION] == "0-7"
