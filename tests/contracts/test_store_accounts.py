"""Accounts at every store: a record of another account is answered as one that does not exist."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from libs.clock import ManualClock
from libs.contract.pages import HASH_BYTES, Filter, Page
from libs.identity.principal import ANONYMOUS, Principal
from libs.ownership.errors import NotOwner
from libs.ownership.model import Row, Store, Version, bucket_of
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.rpc import metadata
from libs.store.port import StorePorts
from tests.contracts.account_rig import (
    ANN,
    BOB,
    BOTH,
    CALLERS,
    NOBODY,
    OPERATOR,
    ROOT,
    Outcome,
    Rig,
    create,
    rig_of,
)
from tests.contracts.store_adapters import everything, record_of, row_of
from tests.contracts.test_store_lists import bounded

ID = "00000000-0000-4000-8000-00000000abcd"
EXPLAIN = ((metadata.EXPLAIN, "1"),)
REPLICA = ((metadata.REPLICA, "1"),)


@pytest.fixture
def rig(store: StorePorts, clock: ManualClock) -> Rig:
    return rig_of(store, clock)


def named(kind: Callable[..., Message], name: str, **fields: Any) -> Message:
    return kind(name=f"sandboxes/{name}", **fields)


def update(name: str, **fields: Any) -> pb.UpdateSandboxRequest:
    own = {one: fields.pop(one) for one in ("account", "etag") if one in fields}
    sandbox = Sandbox(name=f"sandboxes/{name}", labels={"k": "v"}, spec=SandboxSpec(image="image:2"), **own)
    paths = fields.pop("paths", ["labels"])
    return pb.UpdateSandboxRequest(sandbox=sandbox, update_mask=FieldMask(paths=paths), request_id=ID, **fields)


ON_ONE_RECORD: dict[str, tuple[str, Callable[[str], Message]]] = {
    "get": ("GetSandbox", lambda name: named(pb.GetSandboxRequest, name)),
    "update": ("UpdateSandbox", update),
    "update, etag": ("UpdateSandbox", lambda name: update(name, etag='"0-9"')),
    "update, lease": ("UpdateSandbox", lambda name: update(name, lease_token="0.9")),
    "update, transition": ("UpdateSandbox", lambda name: update(name, paths=["state"])),
    "update, all fields": ("UpdateSandbox", lambda name: update(name, paths=[], account="acme")),
    "update, only checked": ("UpdateSandbox", lambda name: update(name, validate_only=True)),
    "update, missing with an etag": ("UpdateSandbox", lambda name: update(name, etag='"0-9"', allow_missing=True)),
    "delete": ("DeleteSandbox", lambda name: named(pb.DeleteSandboxRequest, name, request_id=ID)),
    "delete, etag": ("DeleteSandbox", lambda name: named(pb.DeleteSandboxRequest, name, request_id=ID, etag='"0-9"')),
    "delete, missing": (
        "DeleteSandbox",
        lambda name: named(pb.DeleteSandboxRequest, name, request_id=ID, allow_missing=True),
    ),
    "delete, missing, only checked": (
        "DeleteSandbox",
        lambda name: named(pb.DeleteSandboxRequest, name, request_id=ID, allow_missing=True, validate_only=True),
    ),
    "undelete": ("UndeleteSandbox", lambda name: named(pb.UndeleteSandboxRequest, name, request_id=ID)),
    "undelete, etag": (
        "UndeleteSandbox",
        lambda name: named(pb.UndeleteSandboxRequest, name, request_id=ID, etag='"0-9"'),
    ),
    "acquire": (
        "AcquireLease",
        lambda name: named(pb.AcquireLeaseRequest, name, holder="h", ttl=Duration(seconds=9), request_id=ID),
    ),
    "renew": ("RenewLease", lambda name: named(pb.RenewLeaseRequest, name, token="0.1", request_id=ID)),
    "release": ("ReleaseLease", lambda name: named(pb.ReleaseLeaseRequest, name, token="0.1", request_id=ID)),
}
"""Calls that do not create: a hidden record and an absent one must not differ."""


async def rows_of(rig: Rig) -> list[Row]:
    return [record.row for record in await everything(rig.ports)]


def renamed(outcome: Outcome, name: str) -> Outcome:
    """The outcome of a call, with another name in the place of this one."""
    before, after = name.encode(), b"nobody"
    return outcome._replace(data=outcome.data.replace(before, after), status=outcome.status.replace(before, after))


@pytest.mark.parametrize("state", ["live", "deleted"])
@pytest.mark.parametrize("call", ON_ONE_RECORD)
async def test_a_hidden_record_is_answered_as_an_absent_one(rig: Rig, call: str, state: str) -> None:
    method, request = ON_ONE_RECORD[call]
    await rig.create(BOB, "hidden", "corp")
    if state == "deleted":
        await rig.delete(BOB, "hidden")
    for asked in ((), EXPLAIN, REPLICA):
        before = await rows_of(rig)
        hidden = [await rig.ask(who, method, request("hidden"), metadata=asked) for who in (ANN, NOBODY, OPERATOR)]
        assert await rows_of(rig) == before
        absent = await rig.ask(ANN, method, request("absent"), metadata=asked)
        assert {renamed(one, "hidden") for one in hidden} == {renamed(absent, "absent")}, asked


async def test_each_caller_reaches_the_records_of_its_accounts(rig: Rig) -> None:
    await rig.create(ANN, "a", "acme")
    await rig.create(BOB, "c", "corp")
    reached = {who.subject: [name for name in "ac" if (await rig.get(who, name)).code == "OK"] for who in CALLERS}
    assert reached == {
        "test:ann": ["a"],
        "test:bob": ["c"],
        "test:both": ["a", "c"],
        "test:nobody": [],
        "test:operator": ["a"],
        "test:root": ["a", "c"],
        "anonymous": ["a", "c"],
    }
    for who in CALLERS:
        assert (await rig.list(who))[0] == reached[who.subject]
        async with rig.watch(who) as watching:
            assert (await watching.view()).shown == reached[who.subject]
    labelled = await rig.ask(ANN, "UpdateSandbox", update("a"))
    assert labelled.sandbox.labels == {"k": "v"}


async def test_a_record_is_created_in_an_account_of_the_caller_only(rig: Rig) -> None:
    for only in (False, True):
        refused = await rig.create(ANN, "a", "corp", validate_only=only)
        assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "ACCOUNT_NOT_YOURS")
        assert b"sandbox.account" in refused.status and b"'corp'" in refused.status
        request = update("a", paths=[], account="corp", allow_missing=True, validate_only=only)
        refused = await rig.ask(ANN, "UpdateSandbox", request)
        assert refused.reason == "ACCOUNT_NOT_YOURS"
    assert await rows_of(rig) == []
    assert (await rig.create(ROOT, "a", "corp")).code == "OK"
    assert (await rig.create(ANN, "a", "corp")).reason == "ACCOUNT_NOT_YOURS", "also of a taken name"


@pytest.mark.parametrize("state", ["live", "deleted"])
async def test_a_taken_name_shows_no_more_than_that(rig: Rig, state: str) -> None:
    await rig.create(BOB, "there", "corp", labels={"secret": "word"})
    if state == "deleted":
        await rig.delete(BOB, "there")
    before = await rows_of(rig)
    for only in (False, True):
        created = await rig.create(ANN, "there", "acme", validate_only=only)
        made = await rig.ask(
            ANN,
            "UpdateSandbox",
            update("there", paths=[], account="acme", allow_missing=True, validate_only=only),
        )
        for refused in (created, made):
            assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "NAME_TAKEN")
            assert refused.trailers == () and b"corp" not in refused.status and b"deleted" not in refused.status
    assert await rows_of(rig) == before
    assert (await rig.get(BOB, "there")).code == ("OK" if state == "live" else "NOT_FOUND")


async def test_a_deleted_record_keeps_its_account(rig: Rig) -> None:
    await rig.create(ANN, "a", "acme")
    await rig.delete(ANN, "a")
    for who in (ROOT, BOTH):
        for only in (False, True):
            refused = await rig.create(who, "a", "corp", validate_only=only)
            assert refused.reason == "NAME_TAKEN"
    undelete = named(pb.UndeleteSandboxRequest, "a", request_id=rig.request_id())
    assert (await rig.ask(BOB, "UndeleteSandbox", undelete)).code == "NOT_FOUND"
    assert (await rig.ask(ANN, "UndeleteSandbox", undelete)).sandbox.account == "acme"
    await rig.delete(ANN, "a")
    assert (await rig.create(ANN, "a", "acme")).sandbox.revision == 5
    await rig.delete(ANN, "a")
    moved = await rig.create(ANONYMOUS, "a", "corp")
    assert moved.sandbox.account == "corp", "without identities, as ever"


async def test_a_list_pages_over_foreign_records_and_its_tokens_name_none(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded(monkeypatch, rows=6, step=2, seconds=60.0)
    mine = {3, 40, 41, 42, 43, 44, 45, 46, 47, 90}
    rows = [
        row_of(
            f"sandboxes/{number:03}",
            (0, 1),
            Store.A,
            account="acme" if number in mine else ("corp", "other")[number % 2],
            state="STOPPED" if number in (3, 90) else "RUNNING",
        )
        for number in range(100)
    ]
    await rig.ports.transfers.apply([record_of(row) for row in rows])
    for wanted in ("", "state = STOPPED", 'labels.none = "such"', 'account = "acme"'):
        shown = {number for number in mine if not wanted.startswith("state") or number in (3, 90)}
        shown = set() if wanted.startswith("labels") else shown
        for size in (1, 3, 50):
            names, tokens = await rig.list(ANN, filter=wanted, page_size=size)
            assert names == [f"{number:03}" for number in sorted(shown)], wanted
            last = {base64.urlsafe_b64decode(token + "==")[HASH_BYTES:].decode() for token in tokens}
            assert last <= {f"sandboxes/{number:03}" for number in mine}
    assert await rig.list(ANN, filter='account = "corp"') == ([], [])
    assert await rig.list(NOBODY) == ([], [])
    names, _ = await rig.list(BOTH, page_size=7)
    assert names == [f"{number:03}" for number in range(100) if number in mine or number % 2 == 0]


async def test_a_page_of_many_accounts_does_the_work_of_one(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, rows=40, step=10, seconds=60.0)
    accounts = [f"account-{number:02}" for number in range(20)]
    keys = [f"sandboxes/{number:04}" for number in range(400)]
    rows = [row_of(key, (0, 1), Store.A, account=accounts[number % 20]) for number, key in enumerate(keys)]
    await rig.ports.transfers.apply([record_of(row) for row in rows])
    wanted = Filter(labels=(("none", "such"),), accounts=tuple(accounts))
    page = await rig.ports.records.page(Page(wanted))
    assert len(page) == 1 and not page[0].matches and page[0].row.key <= keys[59]
    seen, after = [], ""
    while page := await rig.ports.records.page(Page(Filter(accounts=tuple(accounts)), after, 30)):
        seen += [one.row.key for one in page if one.matches]
        after = page[-1].row.key
    assert seen == keys


async def test_a_row_that_is_asked_for_by_its_key_matches_only_in_the_callers_accounts(rig: Rig) -> None:
    """The router asks so, for the rows of the other store's page: the version, and the verdict."""
    rows = [
        row_of(f"sandboxes/{name}", (0, 1), Store.A, account=account)
        for name, account in (("a", "acme"), ("c", "corp"), ("n", ""))
    ]
    await rig.ports.transfers.apply([record_of(row) for row in rows])
    for accounts, matching in ((("acme",), "a"), (("acme", "corp"), "ac"), ((), ""), (None, "acn")):
        page = await rig.ports.records.page(Page(Filter(accounts=accounts), keys=tuple(row.key for row in rows)))
        assert [one.row.key for one in page if one.matches] == [f"sandboxes/{name}" for name in matching]
        assert [one.row.version for one in page] == [Version(0, 1)] * 3


async def test_a_watch_shows_changes_of_the_callers_accounts_only(rig: Rig) -> None:
    await rig.create(ANN, "a", "acme")
    await rig.create(BOB, "c", "corp")
    async with rig.watch(ANN) as watching, rig.watch(ROOT) as whole:
        assert (await watching.view())[:3] == (True, ["a"], [])
        await whole.view()
        await rig.create(BOB, "d", "corp")
        await rig.delete(BOB, "c")
        while "c" not in (await whole.news()).removed:
            pass
        await rig.create(ANN, "b", "acme")
        assert (await watching.news())[:3] == (False, ["b"], [])
        await rig.delete(ANN, "a")
        assert (await watching.news())[:3] == (False, [], ["a"])


async def test_a_watch_is_continued_by_a_caller_of_the_same_accounts_only(rig: Rig) -> None:
    await rig.create(ANN, "a", "acme")
    await rig.create(BOB, "c", "corp")
    tokens: dict[str, str] = {}
    for who in CALLERS:
        async with rig.watch(who) as watching:
            tokens[who.subject] = (await watching.view()).token
    await rig.create(ANN, "b", "acme")
    same = Principal("test:carol", ANN.accounts)
    for who, earlier, reset in (
        (ANN, ANN, False),
        (same, ANN, False),
        (OPERATOR, ANN, False),
        (BOTH, ANN, True),
        (ANN, BOTH, True),
        (NOBODY, ANN, True),
        (ROOT, ANN, True),
        (ANN, ROOT, True),
        (ROOT, ANONYMOUS, False),
        (ANONYMOUS, ROOT, False),
    ):
        async with rig.watch(who, resume_token=tokens[earlier.subject]) as watching:
            view = await watching.view()
        assert view.reset is reset, (who, earlier)
        if not reset:
            assert view.shown == ["b"]


async def test_a_retry_is_answered_only_while_the_caller_may_see_the_record(rig: Rig) -> None:
    request = create("a", "acme", ID)
    made = await rig.ask(ANN, "CreateSandbox", request)
    assert (await rig.ask(ANN, "CreateSandbox", request)) == made
    shrunk = Principal(ANN.subject, frozenset({"corp"}))
    again = await rig.ask(shrunk, "CreateSandbox", request)
    assert (again.code, again.reason, again.data) == ("PERMISSION_DENIED", "ACCOUNT_NOT_YOURS", b"")
    change = update("a")
    change.request_id = rig.request_id()
    assert (await rig.ask(ANN, "UpdateSandbox", change)).code == "OK"
    assert (await rig.ask(shrunk, "UpdateSandbox", change)).code == "NOT_FOUND"
    other = create("a", "corp", ID)
    assert (await rig.ask(shrunk, "CreateSandbox", other)).reason == "NAME_TAKEN", "not REQUEST_ID_REUSED"


async def test_a_record_without_an_account_that_can_be_read_is_for_admins(rig: Rig) -> None:
    at = Store.A
    rows = [
        row_of("sandboxes/none", (0, 1), at, account=""),
        row_of("sandboxes/long", (0, 1), at, account="x" * 65),
        Row("sandboxes/odd", Version(0, 1), at, Version(0, 1), True, b"\x3a\x04acme\xff", 2),
        Row("sandboxes/newer", Version(0, 1), at, Version(0, 1), True, Sandbox(account="acme").SerializeToString(), 99),
    ]
    await rig.ports.transfers.apply([record_of(row) for row in rows])
    await rig.create(ANN, "a", "acme")
    everyone = Principal("test:all", frozenset({"acme", "", "x" * 65}))
    assert (await rig.list(everyone))[0] == ["a"]
    async with rig.watch(everyone) as watching:
        assert (await watching.view())[:3] == (True, ["a"], [])
    for row in rows:
        name = row.key.removeprefix("sandboxes/")
        replica = await rig.ask(everyone, "GetSandbox", named(pb.GetSandboxRequest, name), metadata=REPLICA)
        assert (replica.code, replica.reason) == ("NOT_FOUND", "SANDBOX_NOT_FOUND"), name
        assert dict(replica.trailers)[metadata.VERSION] == "0-1", "the router needs it, and does not show it"
    assert (await rig.ask(ROOT, "GetSandbox", named(pb.GetSandboxRequest, "none"), metadata=REPLICA)).code == "OK"


async def test_the_owner_of_the_bucket_answers_for_a_hidden_record(rig: Rig) -> None:
    """As for an absent one: wherever the record itself is."""
    await rig.create(BOB, "there", "corp")
    await rig.ports.transfers.release(["sandboxes/there"], rig.ports.store.other, create=False)
    assert (await rig.get(BOB, "there")).reason == NotOwner.reason
    assert (await rig.get(ANN, "there")).reason == "SANDBOX_NOT_FOUND"
    await rig.create(BOB, "elsewhere", "corp")
    await rig.ports.transfers.release_bucket(bucket_of("sandboxes/elsewhere"), rig.ports.store.other)
    refused = await rig.ask(ANN, "UpdateSandbox", update("elsewhere"))
    assert refused.reason == NotOwner.reason and b"hidden" in refused.status
    assert (await rig.ask(BOB, "UpdateSandbox", update("elsewhere"))).code == "OK"


async def test_a_restricted_caller_learns_no_version_from_a_write(rig: Rig) -> None:
    """The second delete of an absent name makes another version than the first; one of a hidden name makes none."""
    for who, shown in ((ANN, False), (ROOT, True)):
        request = create(f"x{shown}".lower(), "acme", rig.request_id())
        outcome = await rig.ask(who, "CreateSandbox", request, metadata=EXPLAIN)
        assert (metadata.VERSION in dict(outcome.trailers)) is shown
