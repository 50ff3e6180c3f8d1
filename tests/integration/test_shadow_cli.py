"""`baton shadow` against a running router, and shadow reads of the sandbox contract."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import grpc
import pytest

from libs.contract.descriptors import Contract
from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as sandboxes
from libs.sandboxes.columns import sandbox_columns
from libs.sandboxes.operations import SandboxOperations
from services.router.cli.failure import Exit
from services.router.core.phase import Phase
from services.router.flows.steering.migration import Decision
from tests.commands import answer, baton
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.store import Kit
from tests.system.whole import step
from tests.waiting import eventually

BY_HAND = Decision("ann", "by hand", override=True)
CONTRACT = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
SANDBOXES = Kit(SandboxOperations(), CONTRACT, sandbox_columns, schema_version=2)
SECRET = "hunter2"
NAME = "sandboxes/x"


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(kit=SANDBOXES) as running:
        await eventually(
            lambda: all(running.system.observer.view(store).lag_seconds == 0 for store in Store), what="both answer"
        )
        yield running


async def go_to(controlled: ControlledSystem, phase: Phase) -> None:
    while controlled.flows.cache.current.phase is not phase:
        await step(controlled.flows.migration, BY_HAND)


async def call(controlled: ControlledSystem, method: str, request: Any) -> bytes:
    path = f"/sandbox.v1.SandboxService/{method}"
    found: bytes = await controlled.system.client.multi_callable(path)(request.SerializeToString(), timeout=5)
    return found


async def planted(controlled: ControlledSystem) -> None:
    """A record with a secret in it, whose replica is another one at the same version."""
    await go_to(controlled, Phase.SHADOW)
    spec = sandbox_pb2.SandboxSpec(image="i", env={SECRET: SECRET})
    made = sandbox_pb2.Sandbox(account="acc", spec=spec, labels={SECRET: SECRET})
    await call(
        controlled,
        "CreateSandbox",
        sandboxes.CreateSandboxRequest(sandbox_id="x", request_id=str(uuid4()), sandbox=made),
    )
    rows = controlled.system.ports(Store.B)._state.rows
    await eventually(lambda: NAME in rows)
    other = sandbox_pb2.Sandbox.FromString(rows[NAME].payload)
    other.spec.env[SECRET] = "something else"
    other.labels["another"] = SECRET
    rows[NAME] = replace(rows[NAME], payload=other.SerializeToString())


async def test_a_mismatch_of_sandboxes_is_shown_with_names_versions_and_hashes_and_no_secret(
    controlled: ControlledSystem,
) -> None:
    await planted(controlled)
    await answer(controlled, "shadow", "set", "100", "--reason", "look", "--yes")
    await call(controlled, "GetSandbox", sandboxes.GetSandboxRequest(name=NAME))
    await call(controlled, "ListSandboxes", sandboxes.ListSandboxesRequest())
    with pytest.raises(grpc.aio.AioRpcError):
        await call(controlled, "GetSandbox", sandboxes.GetSandboxRequest(name="sandboxes/none"))
    await eventually(lambda: controlled.system.shadow.counts.compared == 3)
    view = await answer(controlled, "shadow", "show")
    assert (view["shadow_percent"], view["compared"], view["mismatch"], view["match"]) == (100.0, 3, 2, 1)
    assert {name: counts["mismatch"] for name, counts in view["operations"].items()} == {"get": 1, "list": 1}
    for found in view["differences"]:
        assert (found["key"], found["kind"], found["fields"]) == (NAME, "MISMATCH", ["spec.env", "labels"])
        assert (found["one"]["store"], found["other"]["store"]) == ("A", "B")
        assert found["one"]["version"] == found["other"]["version"] == "0-1"
        assert found["one"]["content"] != found["other"]["content"]
    text = (await baton(controlled, "shadow", "show")).stdout
    for words in ("100 % of the reads", "MISMATCH", NAME, "spec.env, labels", "A 0-1", "B 0-1"):
        assert words in text, text
    assert SECRET not in text + json.dumps(view)
    assert (await answer(controlled, "shadow", "show", "--limit", "1"))["differences"] == view["differences"][:1]
    assert len((await controlled.control.GetShadow(pb.GetShadowRequest())).differences) == 2

    # The noise floor is kept when both stores are compared again.
    await answer(controlled, "shadow", "set", "100", "--same", "--yes")
    await call(controlled, "GetSandbox", sandboxes.GetSandboxRequest(name=NAME))

    async def noise() -> int:
        return (await controlled.control.GetShadow(pb.GetShadowRequest())).noise_compared

    await eventually(noise)
    await answer(controlled, "shadow", "set", "100", "--yes")
    assert "noise floor: 0 of 1 reads differed without a cause" in (await baton(controlled, "shadow", "show")).stdout


async def test_the_evidence_of_a_difference_is_shown_with_request_and_answers_and_without_secrets(
    controlled: ControlledSystem,
) -> None:
    await planted(controlled)
    assert "no differences" in (await baton(controlled, "shadow", "differences")).stdout
    await answer(controlled, "shadow", "set", "100", "--reason", "look", "--yes")
    await call(controlled, "GetSandbox", sandboxes.GetSandboxRequest(name=NAME))
    await call(controlled, "ListSandboxes", sandboxes.ListSandboxesRequest(filter='account = "acc"'))

    async def listed() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await answer(controlled, "shadow", "differences"))["examples"]
        return found if len(found) == 2 else []

    found = {one["difference"]["operation"]: one for one in await eventually(listed)}
    assert {one["difference"]["kind"] for one in found.values()} == {"MISMATCH"}
    assert all(not one["request"] and not one["values"] for one in found.values()), "a list has no content"
    shown = await answer(controlled, "shadow", "differences", found["get"]["id"])
    assert json.loads(shown["request"]) == {"name": NAME}
    assert {value["path"]: json.loads(value["other"]) for value in shown["values"]} == {
        "spec.env": {SECRET: "***"},
        "labels": {SECRET: SECRET, "another": SECRET},
    }
    assert [json.loads(shown[side])["spec"]["env"] for side in ("one", "other")] == [{SECRET: "***"}] * 2
    assert shown["difference"]["one"]["store"] == "A"
    text = (await baton(controlled, "shadow", "differences", found["list"]["id"])).stdout
    for words in ("MISMATCH of sandboxes/x, list", "router-1", "spec.env", "account = ", "A 0-1"):
        assert words in text, text
    assert "something else" not in text + json.dumps(shown)
    gone = await baton(controlled, "shadow", "differences", "mismatch-0-gone")
    assert (gone.exit_code, "baton shadow differences lists all" in gone.stderr) == (Exit.FAILED, True)


async def test_show_prints_every_key_that_its_help_names(controlled: ControlledSystem) -> None:
    named = (await baton(controlled, "shadow", "show", "--help")).stdout
    for key in await answer(controlled, "shadow", "show"):
        assert key in named, key
    assert "shadow off" in (await baton(controlled, "shadow", "show")).stdout


async def test_the_share_is_set_journaled_shown_and_turned_off(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    now = await answer(controlled, "shadow", "set", "12.5", "--reason", "look", "--yes")
    assert (now["shadow_percent"], now["before"]["shadow_percent"], now["shadow_same"]) == (12.5, 0.0, False)
    newest = (await answer(controlled, "journal", "--limit", "1"))["entries"][0]
    assert (newest["action"], newest["reason"], newest["after"]["shadow_percent"]) == ("shadow", "look", 12.5)
    assert "shadow 12.5 %" in (await baton(controlled, "status")).stdout
    now = await answer(controlled, "shadow", "set", "5%", "--same", "--yes")
    assert (now["shadow_percent"], now["shadow_same"]) == (5.0, True)
    assert "noise only" in (await baton(controlled, "shadow", "show")).stdout
    now = await answer(controlled, "shadow", "set", "OFF", "--yes")
    assert (now["shadow_percent"], now["shadow_same"]) == (0.0, False)


@pytest.mark.parametrize(
    ("typed", "refusal"),
    [
        ("101", "out of range"),
        ("-5", "out of range"),
        ("0.05", "too fine"),
        ("some", "not a number"),
        ("nan", "out of range"),
        ("", "not a number"),
        ("1e400", "out of range"),
    ],
)
async def test_a_share_that_is_none_is_refused_with_what_is_allowed(
    controlled: ControlledSystem, typed: str, refusal: str
) -> None:
    await go_to(controlled, Phase.SHADOW)
    before = controlled.flows.cache.current
    result = await baton(controlled, "shadow", "set", typed, "--yes")
    assert (result.exit_code, refusal in result.stderr) == (Exit.USAGE, True), result.stderr
    assert "0 to 100, in steps of 0.1, or off" in result.stderr
    assert await controlled.store.load() == before


async def test_where_nothing_is_compared_a_share_is_refused_with_where_it_is(controlled: ControlledSystem) -> None:
    result = await baton(controlled, "shadow", "set", "5", "--yes")
    assert result.exit_code == Exit.FAILED
    assert "only in SHADOW, DUAL_WRITE, DUAL_READ; the phase is OFF" in result.stderr
    assert (await baton(controlled, "shadow", "set", "off", "--yes")).exit_code == Exit.OK


@pytest.mark.parametrize("permille", [-1, 1001])
async def test_the_api_refuses_a_share_that_is_none(controlled: ControlledSystem, permille: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await controlled.control.SetShadow(pb.SetShadowRequest(actor="ann", permille=permille))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "permille" in (refused.value.details() or "")


async def test_a_dry_run_sets_nothing(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.SHADOW)
    before = controlled.flows.cache.current
    assert (await answer(controlled, "shadow", "set", "5", "--dry-run"))["dry_run"] is True
    assert (await baton(controlled, "shadow", "set", "5")).exit_code == Exit.USAGE
    assert await controlled.store.load() == before
