"""Cohorts on a whole system: records go first, stay last, and go home."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from itertools import count
from typing import Any
from uuid import uuid4

import grpc
import pytest

from libs.backend.replication import Replication
from libs.identity.port import AUTHORIZATION
from libs.identity.principal import Principal
from libs.ownership.model import Store, bucket_of
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from services.router.cli.failure import Exit
from services.router.core.cohorts import share_buckets
from services.router.core.phase import Phase
from tests.commands import answer, baton
from tests.contracts.account_rig import ANN, ROOT, create
from tests.integration.test_accounts_router import ByName
from tests.integration.test_router import BY_HAND, go_to
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.store import SANDBOXES
from tests.waiting import eventually

A, B = Store.A, Store.B
STAGING = [f"sandboxes/stg-{number:02}" for number in range(12)]
WEB = [f"sandboxes/web-{number:02}" for number in range(6)]
OLD = [f"sandboxes/old-{number:02}" for number in range(6)]
HALF = [key for key in STAGING if bucket_of(key) < share_buckets(500)]


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(kit=SANDBOXES, authenticator=ByName()) as running:
        yield running


async def make(controlled: ControlledSystem, who: Principal, key: str, account: str) -> None:
    request = create(key.removeprefix("sandboxes/"), account, str(uuid4()))
    await _call(controlled, who, "CreateSandbox", request.SerializeToString())


async def update(controlled: ControlledSystem, who: Principal, key: str) -> None:
    request = pb.UpdateSandboxRequest(sandbox=Sandbox(name=key, labels={"k": "v"}), request_id=str(uuid4()))
    request.update_mask.paths.append("labels")
    await _call(controlled, who, "UpdateSandbox", request.SerializeToString())


async def _call(controlled: ControlledSystem, who: Principal, method: str, data: bytes) -> None:
    sent = grpc.aio.Metadata((AUTHORIZATION, who.subject))
    path = f"/sandbox.v1.SandboxService/{method}"
    await controlled.system.client.multi_callable(path)(data, timeout=10, metadata=sent)


def owned(controlled: ControlledSystem, store: Store) -> set[str]:
    """The records that a store owns by its own row."""
    rows = controlled.system.ports(store)._state.rows
    return {key for key, row in rows.items() if row.owner is store}


def revision(controlled: ControlledSystem, key: str) -> int:
    return max(controlled.system.ports(store)._state.rows[key].version.revision for store in Store)


async def settled(controlled: ControlledSystem, at_b: Iterable[str]) -> None:
    """Exactly these records are at B, and the mover has nothing more to do."""
    everything, there = {*STAGING, *WEB, *OLD}, set(at_b)

    def arrived() -> bool:
        at_a = everything - there
        return owned(controlled, B) & everything == there and owned(controlled, A) & everything == at_a

    await eventually(lambda: arrived() and controlled.system.mover.settled, 30.0)


async def cohort(controlled: ControlledSystem, *words: str) -> dict[str, int]:
    """Change a cohort after a dry run, which counts the same and changes nothing."""
    before = controlled.system.setting.current.generation
    dry = await answer(controlled, "canary", "cohort", *words, "--dry-run")
    assert controlled.system.setting.current.generation == before
    done = await answer(controlled, "canary", "cohort", *words, "--yes", "--reason", "a test")
    assert dry["preview"] == done["preview"]
    assert done["generation"] == before + 1
    preview: dict[str, int] = done["preview"]
    return preview


async def test_records_go_first_stay_last_and_go_home(controlled: ControlledSystem) -> None:
    system = controlled.system
    for keys, account in ((STAGING, "corp"), (WEB, "acme"), (OLD, "acme")):
        for key in keys:
            await make(controlled, ROOT, key, account)
    await go_to(system, Phase.DUAL_WRITE)
    await settled(controlled, [])

    # First: half of a cohort by name, then a cohort by account, while every bucket stays at A.
    counted = await cohort(controlled, "add", "staging", "--names", "sandboxes/stg-*", "--percent", "50")
    assert counted == {"records": 12, "at_b": 0, "to_b": len(HALF), "to_a": 0, "more": False}
    await settled(controlled, HALF)
    await cohort(controlled, "add", "acme", "--account", "acme", "--percent", "100")
    await settled(controlled, [*HALF, *WEB, *OLD])
    assert system.mover.buckets_to_b == 0
    assert all(owner.owner is A for owner in await system.ports(A).transfers.bucket_owners())

    # A caller of whom the account is unknown moves no record; one of the account creates at B at once.
    before = revision(controlled, WEB[0])
    await update(controlled, ROOT, WEB[0])
    assert revision(controlled, WEB[0]) == before + 1
    await make(controlled, ANN, "sandboxes/new", "acme")
    await make(controlled, ROOT, "sandboxes/newer", "acme")
    assert {"sandboxes/new", "sandboxes/newer"} <= owned(controlled, B)
    explained = await answer(controlled, "explain", WEB[0])
    assert (explained["target"], explained["rule"]) == ("B", "cohort acme")
    assert "account acme" in explained["because"]

    # Last: by name, which comes before the account, whatever the canary does.
    assert (await cohort(controlled, "add", "last", "--names", "sandboxes/old-*"))["to_a"] == len(OLD)
    await settled(controlled, [*HALF, *WEB])
    revisions = {key: revision(controlled, key) for key in (*OLD, *HALF)}
    await answer(controlled, "canary", "set", "100", "--yes")
    await settled(controlled, [*HALF, *WEB])
    listed = await answer(controlled, "canary", "cohort", "list")
    assert [(view["name"], view["records"], view["at_b"], view["to_b"]) for view in listed["cohorts"]] == [
        ("staging", 12, len(HALF), 0),
        ("last", 6, 0, 0),
        ("acme", 8, 8, 0),
    ]
    assert "cohorts: staging 50 %, acme 100 %, last 0 %" in (await baton(controlled, "status")).stdout
    await make(controlled, ROOT, "sandboxes/old-new", "acme")
    assert "sandboxes/old-new" in owned(controlled, A)

    # They stay through DUAL_READ, where growing only adds, and the gate of CUTOVER sees them.
    await go_to(system, Phase.DUAL_READ)
    await settled(controlled, [*HALF, *WEB])
    assert revisions == {key: revision(controlled, key) for key in revisions}, "no bucket took them along"
    gates = {gate.name: gate.verdict.value for gate in (await system.migration.plan()).results}
    assert gates["buckets-done"] == "FAIL"
    await cohort(controlled, "set", "staging", "100")
    await settled(controlled, [*STAGING, *WEB])
    assert (await cohort(controlled, "remove", "staging"))["to_b"] == 0

    # A rollback sends everything home and keeps it there.
    await system.migration.rollback(BY_HAND, Phase.DUAL_WRITE)
    await settled(controlled, [])
    await system.migration.lift_hold(BY_HAND)
    assert [one.permille for one in system.setting.current.cohorts] == [0, 0]
    await settled(controlled, [])
    journal = (await answer(controlled, "journal"))["entries"]
    assert {"cohort last (names sandboxes/old-*, 0 %) (was none)"} == {
        change for entry in journal for change in entry["changes"] if "cohort last" in change and "none" in change
    }


WORDS = ("canary", "cohort", "add", "last", "--names", "sandboxes/old-*", "--yes")


async def test_no_cohort_is_added_beside_a_store_of_an_earlier_release(monkeypatch: pytest.MonkeyPatch) -> None:
    export = Replication.ExportRecords

    async def earlier(self: Replication, request: rpb.ExportRecordsRequest, context: Any) -> rpb.ExportRecordsResponse:
        request.ClearField("pattern")
        return await export(self, request, context)

    monkeypatch.setattr(Replication, "ExportRecords", earlier)
    async with running_controlled_system() as controlled:
        refused = await baton(controlled, *WORDS)
        assert (refused.exit_code, "store A runs an earlier release" in refused.stderr) == (Exit.FAILED, True), refused


async def test_no_cohort_is_added_or_grown_beside_a_router_of_an_earlier_release(controlled: ControlledSystem) -> None:
    await answer(controlled, *WORDS)
    mine = next(iter(await eventually(controlled.store.reports)))
    measured = json.loads(mine.text)
    measured["setting_fields"].remove("cohorts")
    numbers = count()

    async def reported() -> bool:
        await controlled.store.report(replace(mine, router="earlier", number=next(numbers), text=json.dumps(measured)))
        return "earlier" in controlled.flows.measurement.without("cohorts")

    for words in (("add", "other", "--names", "x"), ("set", "last", "0")):
        await eventually(reported)
        refused = await baton(controlled, "canary", "cohort", *words, "--yes")
        assert (refused.exit_code, "router earlier is of an earlier release" in refused.stderr) == (Exit.FAILED, True)
    await eventually(reported)
    alerts = (await answer(controlled, "status"))["alerts"]
    assert "router earlier is of an earlier release and moves the records of cohorts back: upgrade or stop it" in alerts
    assert [one.name for one in controlled.system.setting.current.cohorts] == ["last"]
    await answer(controlled, "canary", "cohort", "remove", "last", "--yes")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["add", "x"], "a pattern of names, or an account"),
        (["add", "x", "--names", "a*b"], "one * at the end"),
        (["add", "x", "--names", "a", "--percent", "5"], "DUAL_WRITE, DUAL_READ"),
        (["set", "x", "5"], "there is no cohort 'x'"),
        (["remove", "x"], "there is no cohort 'x'"),
    ],
)
async def test_a_change_that_is_not_valid_is_refused_and_changes_nothing(
    controlled: ControlledSystem, words: list[str], named: str
) -> None:
    result = await baton(controlled, "canary", "cohort", *words, "--yes")
    assert result.exit_code != Exit.OK and named in result.stderr, result
    assert controlled.system.setting.current.generation == 1
