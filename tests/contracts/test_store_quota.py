"""The quota of an account at every store: a soft bound of its live records."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2, status_pb2

from libs.backend import quota
from libs.clock import ManualClock
from libs.identity.principal import ANONYMOUS
from libs.ownership.model import Store
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.store.port import StorePorts
from tests.contracts.account_rig import ANN, BOB, ROOT, Outcome, Rig, create, rig_of
from tests.contracts.store_adapters import record_of, row_of

EXCEEDED = ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
MOST = 3


@pytest.fixture
def rig(store: StorePorts, clock: ManualClock) -> Rig:
    return rig_of(store, clock, account_records=MOST)


def code(outcome: Outcome) -> tuple[str, str]:
    return outcome.code, outcome.reason


async def fill(rig: Rig, account: str = "acme") -> None:
    for number in range(MOST):
        assert code(await rig.create(ROOT, f"{account}-{number}", account)) == ("OK", "")


def upsert(name: str, account: str) -> pb.UpdateSandboxRequest:
    sandbox = Sandbox(name=f"sandboxes/{name}", account=account, spec=SandboxSpec(image="image:1"))
    mask = FieldMask(paths=["spec.image"])
    return pb.UpdateSandboxRequest(
        sandbox=sandbox, update_mask=mask, allow_missing=True, request_id=str(UUID(int=77, version=4))
    )


async def test_a_create_beyond_the_quota_is_refused_with_account_limit_and_count(rig: Rig) -> None:
    await fill(rig)
    for who in (ANN, ROOT, ANONYMOUS):
        refused = await rig.create(who, "more", "acme")
        assert code(refused) == EXCEEDED
        status = status_pb2.Status.FromString(refused.status)
        (info,) = (one for one in status.details if one.type_url.endswith("ErrorInfo"))
        found = error_details_pb2.ErrorInfo.FromString(info.value).metadata
        assert found == {"limit": "account_records", "account": "acme", "count": "3", "most": "3"}
    assert (await rig.get(ROOT, "more")).code == "NOT_FOUND"
    assert code(await rig.create(BOB, "theirs", "corp")) == ("OK", "")


async def test_every_way_to_make_a_record_counts_and_other_writes_do_not(rig: Rig, clock: ManualClock) -> None:
    await fill(rig)
    assert code(await rig.ask(ANN, "UpdateSandbox", upsert("more", "acme"))) == EXCEEDED
    assert code(await rig.ask(ANN, "CreateSandbox", create("more", "acme", "", validate_only=True))) == EXCEEDED
    assert code(await rig.ask(ANN, "UpdateSandbox", upsert("acme-0", "acme"))) == ("OK", "")
    assert code(await rig.delete(ANN, "acme-0")) == ("OK", "")
    clock.advance(quota.REFUSED_SECONDS)
    assert code(await rig.create(ANN, "instead", "acme")) == ("OK", "")
    undelete = pb.UndeleteSandboxRequest(name="sandboxes/acme-0", request_id=rig.request_id())
    assert code(await rig.ask(ANN, "UndeleteSandbox", undelete)) == EXCEEDED


async def test_a_retry_of_a_create_that_took_effect_is_answered_at_the_quota(rig: Rig) -> None:
    request = create("first", "acme", rig.request_id())
    first = await rig.ask(ANN, "CreateSandbox", request)
    await fill_up(rig, MOST - 1)
    assert await rig.ask(ANN, "CreateSandbox", request) == first
    assert code(await rig.create(ANN, "more", "acme")) == EXCEEDED


async def fill_up(rig: Rig, count: int) -> None:
    for number in range(count):
        assert (await rig.create(ANN, f"up-{number}", "acme")).code == "OK"


async def test_records_of_the_other_store_count(rig: Rig, store: StorePorts) -> None:
    other = Store.B if store.store is Store.A else Store.A
    rows = [row_of(f"sandboxes/copy-{number}", (0, 5), other, account="acme") for number in range(MOST)]
    await store.transfers.apply([record_of(row) for row in rows])
    assert code(await rig.create(ANN, "more", "acme")) == EXCEEDED


async def test_the_count_stops_at_the_quota_and_knows_only_live_records(rig: Rig, store: StorePorts) -> None:
    await fill(rig)
    await fill(rig, "corp")
    assert [await store.inspection.count_of("acme", most) for most in (1, 2, 3, 10)] == [1, 2, 3, 3]
    await rig.delete(ANN, "acme-1")
    assert await store.inspection.count_of("acme", 10) == 2
    assert await store.inspection.count_of("unknown", 10) == 0


async def test_a_full_account_is_counted_at_most_once_a_second(
    rig: Rig, clock: ManualClock, counting: list[str]
) -> None:
    await fill(rig)
    counting.clear()
    for _ in range(20):
        assert code(await rig.create(ANN, "more", "acme")) == EXCEEDED
    assert len(counting) <= 1
    clock.advance(quota.REFUSED_SECONDS)
    assert code(await rig.create(ANN, "more", "acme")) == EXCEEDED
    assert len(counting) <= 2


@pytest.fixture
def counting(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Accounts that were counted."""
    seen: list[str] = []
    quotas = rig.calls._quota
    assert quotas is not None
    count = quotas._count_now

    async def note(account: str) -> None:
        seen.append(account)
        await count(account)

    monkeypatch.setattr(quotas, "_count_now", note)
    return seen


async def test_far_below_the_quota_few_creates_count(
    store: StorePorts, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "COUNT_CREATES", 10)
    rig = rig_of(store, clock, account_records=1000)
    quotas = rig.calls._quota
    assert quotas is not None
    for number in range(25):
        await rig.create(ANN, f"one-{number}", "acme")
    count = quotas._counts["acme"]
    assert (count.records, count.made) == (20, 5)
    clock.advance(quota.COUNT_SECONDS)
    await rig.create(ANN, "last", "acme")
    assert (quotas._counts["acme"].records, quotas._counts["acme"].made) == (25, 1)


async def test_several_processes_exceed_the_quota_by_at_most_what_they_make_between_two_counts(
    store: StorePorts, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, steps, processes = 20, 3, 4
    monkeypatch.setattr(quota, "COUNT_CREATES", steps)
    rigs = [rig_of(store, clock, account_records=most) for _ in range(processes)]
    for number, rig in enumerate(rigs):
        rig.count = 1000 * number
    for number in range(60):
        await rigs[number % processes].create(ANN, f"one-{number}", "acme")
    found = await store.inspection.count_of("acme", 1000)
    assert most <= found <= most + steps * (processes - 1)


async def test_creates_at_the_same_time_exceed_the_quota_by_at_most_their_number(rig: Rig, store: StorePorts) -> None:
    writes = 8
    outcomes = await asyncio.gather(*(rig.create(ANN, f"one-{number}", "acme") for number in range(writes)))
    assert {code(one) for one in outcomes} <= {("OK", ""), EXCEEDED}
    found = await store.inspection.count_of("acme", 1000)
    assert found == sum(one.code == "OK" for one in outcomes)
    assert MOST <= found <= MOST + writes - 1
    assert code(await rig.create(ANN, "more", "acme")) == EXCEEDED


async def test_the_number_of_counted_accounts_is_limited(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MOST_ACCOUNTS", 4)
    for number in range(10):
        assert (await rig.create(ROOT, f"one-{number}", f"account-{number}")).code == "OK"
    quotas = rig.calls._quota
    assert quotas is not None and len(quotas._counts) == 4
