"""A caller of some accounts cannot tell a store from one that holds the records of these accounts only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from hypothesis import example, given
from hypothesis import strategies as st

from libs.clock import ManualClock
from libs.identity.principal import Principal
from libs.ownership.model import Store
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.rpc import metadata
from libs.sandboxes.columns import sandbox_columns
from libs.store import memory
from libs.store.memory import MemoryStore
from tests.contracts.account_rig import ANN, BOB, Outcome, Rig, View, rig_of

CAROL = Principal("test:carol", ANN.accounts)
NAMES = [f"sandboxes/n{number}" for number in range(6)]
PAIRS = ((), ((metadata.EXPLAIN, "1"),), ((metadata.REPLICA, "1"),))


class Asked(NamedTuple):
    """A call. `account`: "" for one of the caller's own. `again`: with the request id of the call so many calls before,
    if there is one."""

    who: Principal
    method: str
    name: str
    account: str
    etag: str
    flags: int
    pairs: Any
    again: int

    @property
    def foreign(self) -> bool:
        return self.who is BOB

    def request(self, request_id: str) -> Message:
        account = self.account or ("corp" if self.foreign else "acme")
        sandbox = Sandbox(account=account, spec=SandboxSpec(image="image:1"), etag=self.etag)
        checks, missing, whole = bool(self.flags & 1), bool(self.flags & 2) and not self.foreign, bool(self.flags & 4)
        match self.method:
            case "GetSandbox":
                return pb.GetSandboxRequest(name=self.name)
            case "ListSandboxes":
                filters = ("", 'account = "corp"', "state = RUNNING", 'labels.k = "v"')
                return pb.ListSandboxesRequest(
                    page_size=1 + self.flags % 3, filter=filters[self.flags % 4], show_deleted=whole
                )
            case "CreateSandbox":
                sandbox.state = Sandbox.STATE_RUNNING if whole else Sandbox.STATE_PENDING
                made = self.name.removeprefix("sandboxes/")
                sandbox.etag = ""
                return pb.CreateSandboxRequest(
                    sandbox_id=made, sandbox=sandbox, request_id=request_id, validate_only=checks
                )
            case "UpdateSandbox":
                sandbox.name = self.name
                sandbox.labels["k"] = "v"
                mask = FieldMask(paths=[] if whole else ["labels", "state"][: 1 + checks])
                request = pb.UpdateSandboxRequest(sandbox=sandbox, update_mask=mask, request_id=request_id)
                request.validate_only, request.allow_missing = checks, missing
                return request
            case "DeleteSandbox":
                return pb.DeleteSandboxRequest(
                    name=self.name, etag=self.etag, request_id=request_id, validate_only=checks, allow_missing=missing
                )
            case "UndeleteSandbox":
                return pb.UndeleteSandboxRequest(name=self.name, etag=self.etag, request_id=request_id)
            case "AcquireLease":
                ttl = Duration(seconds=60)
                return pb.AcquireLeaseRequest(name=self.name, holder=self.who.subject, ttl=ttl, request_id=request_id)
            case _:
                return pb.ReleaseLeaseRequest(name=self.name, token="0.2", request_id=request_id)


METHODS = (
    *("CreateSandbox",) * 3,
    *("UpdateSandbox",) * 2,
    *("DeleteSandbox",) * 2,
    "UndeleteSandbox",
    "AcquireLease",
    "ReleaseLease",
    "GetSandbox",
    "ListSandboxes",
)
CALLS = st.builds(
    Asked,
    who=st.sampled_from((ANN, CAROL, BOB)),
    method=st.sampled_from(METHODS),
    name=st.sampled_from(NAMES),
    account=st.sampled_from(("", "", "", "acme", "corp")),
    etag=st.sampled_from(("", "", '"0-1"')),
    flags=st.integers(0, 7),
    pairs=st.sampled_from(PAIRS),
    again=st.sampled_from((0, 0, 0, 1, 2, 3)),
)


def rig() -> Rig:
    clock = ManualClock()
    return rig_of(MemoryStore(Store.A, clock, sandbox_columns), clock)


async def _same(calls: Sequence[Asked]) -> None:
    whole, part = rig(), rig()
    tokens = [await _view(one, "") for one in (whole, part)]
    done: list[tuple[Asked, str]] = []
    for number, asked in enumerate(calls):
        request_id = str(UUID(int=number + 1, version=4))
        if asked.again and len(done) >= asked.again and not asked.foreign:
            asked, request_id = done[-asked.again]
        elif not asked.foreign:
            done.append((asked, request_id))
        request = asked.request(request_id)
        outcome = await whole.ask(asked.who, asked.method, request, metadata=asked.pairs)
        if outcome.reason == "NAME_TAKEN":
            assert (outcome.trailers == () and not asked.foreign) or asked.foreign
            done = [one for one in done if one != (asked, request_id)]
            continue
        if not asked.foreign:
            alone = await part.ask(asked.who, asked.method, request, metadata=asked.pairs)
            assert _as_shown(alone) == _as_shown(outcome), asked
    for size in (1, 2, 50):
        lists = [await one.list(ANN, page_size=size, show_deleted=True) for one in (whole, part)]
        assert lists[0] == lists[1]
    views = [await _view(one, "") for one in (whole, part)]
    assert sorted(views[0].shown) == sorted(views[1].shown)
    resumed = [await _view(one, view.token) for one, view in zip((whole, part), tokens, strict=True)]
    assert sorted(resumed[0].shown) == sorted(resumed[1].shown)
    assert sorted(resumed[0].removed) == sorted(resumed[1].removed)


def _as_shown(outcome: Outcome) -> Outcome:
    """As a router shows it. Of a refusal it does not show the version, by which it knows the newer of two copies: a
    stub has one, the absent record that stands for a hidden one has none."""
    if outcome.code == "OK":
        return outcome
    return outcome._replace(trailers=tuple(pair for pair in outcome.trailers if pair[0] != metadata.VERSION))


async def _view(one: Rig, token: str) -> View:
    async with one.watch(ANN, resume_token=token) as watching:
        return await watching.view()


@given(st.lists(CALLS, min_size=12, max_size=40))
@example(
    [
        Asked(ANN, "DeleteSandbox", NAMES[1], "", "", 2, (), 0),
        Asked(BOB, "CreateSandbox", NAMES[1], "corp", "", 0, (), 0),
        Asked(ANN, "GetSandbox", NAMES[1], "", "", 0, PAIRS[1], 0),
        Asked(ANN, "GetSandbox", NAMES[1], "", "", 0, PAIRS[2], 0),
    ]
).via("a name that the caller deleted before it was another one's")
def test_a_caller_sees_no_difference_to_a_store_without_the_records_of_others(calls: list[Asked]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "LIST_ROWS", 2)
        asyncio.run(_same(calls))
