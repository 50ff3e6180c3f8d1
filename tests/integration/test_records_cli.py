"""`baton records` against a running router: a corrupt record is shown, deleted and replaced at its owner."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from libs.ownership.model import Record, Row, Store, Version
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2 import GetSandboxRequest, ListSandboxesRequest
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from services.router.cli.failure import Exit
from services.router.flows.feed.repair import REPAIRED
from tests.commands import answer, baton
from tests.integration.test_write_ledger import SANDBOXES
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.store import new
from tests.waiting import eventually

A, B = Store.A, Store.B
NAME, FINE = "sandboxes/poison", "sandboxes/fine"


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(kit=replace(SANDBOXES, schema_version=2), mover=False) as running:
        await SandboxServiceStub(running.system.client.grpc).CreateSandbox(new("fine"))
        await eventually(lambda: FINE in rows(running, B))
        yield running


def rows(controlled: ControlledSystem, store: Store) -> dict[str, Row]:
    return controlled.system.ports(store)._state.rows


async def poison(controlled: ControlledSystem, at: Store, revision: int, owner: Store, key: str = NAME) -> None:
    version = Version(0, revision)
    row = Row(key, version, owner, version, True, b"\xff" * 5, 2)
    await controlled.system.ports(at).transfers.apply([Record(row, (), owner, 0.0)])


async def journaled(controlled: ControlledSystem) -> list[tuple[str, str]]:
    return [(one.actor, one.reason) for one in await controlled.store.journal(10) if one.action == REPAIRED]


async def listed(controlled: ControlledSystem) -> list[str]:
    client = SandboxServiceStub(controlled.system.client.grpc)
    return [one.name for one in (await client.ListSandboxes(ListSandboxesRequest())).sandboxes]


async def get(controlled: ControlledSystem, name: str) -> Sandbox:
    return await SandboxServiceStub(controlled.system.client.grpc).GetSandbox(GetSandboxRequest(name=name))


@pytest.mark.parametrize("owner", [A, B])
async def test_a_corrupt_record_is_shown_and_deleted_at_its_owner(controlled: ControlledSystem, owner: Store) -> None:
    for store in Store:
        await poison(controlled, store, 7, owner)
    view = await answer(controlled, "records", "show", NAME)
    assert [one["store"] for one in view["records"]] == ["A", "B"]
    named = (await baton(controlled, "records", "show", "--help")).stdout
    for one in view["records"]:
        assert (one["version"], one["owner"], one["bytes"], one["head"]) == ("0-7", owner.value, 5, "")
        assert "not a sandbox" in one["corrupt"]
        assert all(key in named for key in one)
    revealed = await answer(controlled, "records", "show", NAME, "--reveal", "--reason", "why")
    assert [one["head"] for one in revealed["records"]] == ["ff" * 5] * 2
    planned = await answer(controlled, "records", "delete", NAME, "--dry-run")
    assert planned["effects"] == [f"store {owner} deletes {NAME} and drops its content"] and planned["version"] is None
    assert rows(controlled, owner)[NAME].live and not await journaled(controlled)
    done = await answer(controlled, "records", "delete", NAME, "--reason", "forged", "--actor", "ann", "--yes")
    assert (done["owner"], done["version"]) == (owner.value, "0-8")
    ((actor, reason),) = await journaled(controlled)
    assert actor == "ann" and "forged" in reason and NAME in reason
    await eventually(lambda: all(rows(controlled, store)[NAME].version == (0, 8) for store in Store))
    assert all(
        (rows(controlled, store)[NAME].live, rows(controlled, store)[NAME].payload) == (False, b"") for store in Store
    )
    assert await listed(controlled) == [FINE]


async def test_a_record_whose_key_is_outside_the_contract_is_deleted_at_both_stores(
    controlled: ControlledSystem,
) -> None:
    for store in Store:
        await poison(controlled, store, 7, A, "poison")
    await answer(controlled, "records", "delete", "poison", "--reason", "forged", "--yes")
    await eventually(lambda: all(not rows(controlled, store)["poison"].live for store in Store))
    for store in Store:
        assert (await controlled.system.ports(store).feed.state()).parked == 0


async def test_a_corrupt_record_is_replaced_from_a_file_and_by_the_other_stores_copy(
    controlled: ControlledSystem, tmp_path: Path
) -> None:
    for store in Store:
        await poison(controlled, store, 7, B)
    file = tmp_path / "record.json"
    file.write_text(json.dumps({"account": "acme", "spec": {"image": "image:2"}}), encoding="utf-8")
    arguments = ("records", "replace", NAME, "--from", str(file), "--reason", "from the ticket", "--yes")
    assert (await answer(controlled, *arguments))["version"] == "0-8"
    assert (await get(controlled, NAME)).spec.image == "image:2"
    # A poison at B alone, newer than the record that A owns: what A has is right.
    kept = await get(controlled, FINE)
    await poison(controlled, B, 40, A, FINE)
    assert FINE not in await listed(controlled)
    done = await answer(controlled, "records", "replace", FINE, "--from", "A", "--reason", "A is right", "--yes")
    assert (done["owner"], done["version"]) == ("A", "0-41")
    await eventually(lambda: rows(controlled, B)[FINE].version == (0, 41))
    now = await get(controlled, FINE)
    assert (now.uid, now.account, now.spec, now.create_time) == (kept.uid, kept.account, kept.spec, kept.create_time)
    assert sorted(await listed(controlled)) == [FINE, NAME]


async def test_a_record_that_its_owner_has_given_up_is_handed_over_before_it_is_repaired(
    controlled: ControlledSystem,
) -> None:
    await poison(controlled, A, 7, A)
    await controlled.system.ports(A).transfers.release([NAME], B, create=False)
    rows(controlled, B).pop(NAME, None)
    planned = await answer(controlled, "records", "delete", NAME, "--dry-run")
    assert planned["owner"] == "B"
    done = await answer(controlled, "records", "delete", NAME, "--reason", "forged", "--yes")
    assert done["owner"] == "B" and not rows(controlled, B)[NAME].live


async def test_a_readable_record_a_corrupt_copy_no_record_and_no_reason_are_refused(
    controlled: ControlledSystem,
) -> None:
    await poison(controlled, A, 7, A)
    before = {store: dict(rows(controlled, store)) for store in Store}
    for arguments, code, said in (
        (("delete", FINE, "--reason", "x", "--yes"), Exit.FAILED, "can be read"),
        (("delete", "sandboxes/none", "--reason", "x", "--yes"), Exit.FAILED, "a record of this name"),
        (("delete", NAME, "--yes"), Exit.USAGE, "--reason is required"),
        (("replace", NAME, "--from", "A", "--reason", "x", "--yes"), Exit.USAGE, "readable content"),
        (("replace", NAME, "--from", "/no/file", "--reason", "x", "--yes"), Exit.USAGE, "no such file"),
    ):
        told = await baton(controlled, "records", *arguments)
        assert (told.exit_code, said in told.stderr.lower()) == (code, True), told.stderr
    assert {store: rows(controlled, store) for store in Store} == before and not await journaled(controlled)
