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
from services.router.cli.options import Exit
from services.router.core.phase import Phase
from services.router.flows.steering.migration import Decision
from tests.commands import answer, baton
from tests.panel import Panel, running_panel
from tests.system import Kit, step
from tests.waiting import eventually

BY_HAND = Decision("ann", "by hand", override=True)
CONTRACT = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
SANDBOXES = Kit(SandboxOperations(), CONTRACT, sandbox_columns, schema_version=2)
SECRET = "hunter2"
NAME = "sandboxes/x"


@pytest.fixture
async def panel() -> AsyncIterator[Panel]:
    async with running_panel(kit=SANDBOXES) as running:
        await eventually(
            lambda: all(running.system.observer.view(store).lag_seconds == 0 for store in Store), what="both answer"
        )
        yield running


async def go_to(panel: Panel, phase: Phase) -> None:
    while panel.flows.cache.current.phase is not phase:
        await step(panel.flows.migration, BY_HAND)


async def call(panel: Panel, method: str, request: Any) -> bytes:
    path = f"/sandbox.v1.SandboxService/{method}"
    found: bytes = await panel.system.client.multi_callable(path)(request.SerializeToString(), timeout=5)
    return found


async def planted(panel: Panel) -> None:
    """A record with a secret in it, whose replica is another one at the same version."""
    await go_to(panel, Phase.SHADOW)
    spec = sandbox_pb2.SandboxSpec(image="i", env={SECRET: SECRET})
    made = sandbox_pb2.Sandbox(account="acc", spec=spec, labels={SECRET: SECRET})
    await call(
        panel,
        "CreateSandbox",
        sandboxes.CreateSandboxRequest(sandbox_id="x", request_id=str(uuid4()), sandbox=made),
    )
    rows = panel.system.ports(Store.B)._state.rows
    await eventually(lambda: NAME in rows)
    other = sandbox_pb2.Sandbox.FromString(rows[NAME].payload)
    other.spec.env[SECRET] = "something else"
    other.labels["another"] = SECRET
    rows[NAME] = replace(rows[NAME], payload=other.SerializeToString())


async def test_a_mismatch_of_sandboxes_is_shown_with_names_versions_and_hashes_and_no_secret(panel: Panel) -> None:
    await planted(panel)
    await answer(panel, "shadow", "set", "100", "--reason", "look", "--yes")
    await call(panel, "GetSandbox", sandboxes.GetSandboxRequest(name=NAME))
    await call(panel, "ListSandboxes", sandboxes.ListSandboxesRequest())
    with pytest.raises(grpc.aio.AioRpcError):
        await call(panel, "GetSandbox", sandboxes.GetSandboxRequest(name="sandboxes/none"))
    await eventually(lambda: panel.system.shadow.counts.compared == 3)
    view = await answer(panel, "shadow", "show")
    assert (view["shadow_percent"], view["compared"], view["mismatch"], view["match"]) == (100.0, 3, 2, 1)
    assert {name: counts["mismatch"] for name, counts in view["operations"].items()} == {"get": 1, "list": 1}
    for found in view["differences"]:
        assert (found["key"], found["kind"], found["fields"]) == (NAME, "MISMATCH", ["spec.env", "labels"])
        assert (found["one"]["store"], found["other"]["store"]) == ("A", "B")
        assert found["one"]["version"] == found["other"]["version"] == "0-1"
        assert found["one"]["content"] != found["other"]["content"]
    text = (await baton(panel, "shadow", "show")).stdout
    for words in ("100 % of the reads", "MISMATCH", NAME, "spec.env, labels", "A 0-1", "B 0-1"):
        assert words in text, text
    assert SECRET not in text + json.dumps(view)
    assert (await answer(panel, "shadow", "show", "--limit", "1"))["differences"] == view["differences"][:1]
    assert len((await panel.control.GetShadow(pb.GetShadowRequest())).differences) == 2


async def test_show_prints_every_key_that_its_help_names(panel: Panel) -> None:
    named = (await baton(panel, "shadow", "show", "--help")).stdout
    for key in await answer(panel, "shadow", "show"):
        assert key in named, key
    assert "shadow off" in (await baton(panel, "shadow", "show")).stdout


async def test_the_share_is_set_journaled_shown_and_turned_off(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    now = await answer(panel, "shadow", "set", "12.5", "--reason", "look", "--yes")
    assert (now["shadow_percent"], now["before"]["shadow_percent"], now["shadow_same"]) == (12.5, 0.0, False)
    newest = (await answer(panel, "journal", "--limit", "1"))["entries"][0]
    assert (newest["action"], newest["reason"], newest["after"]["shadow_percent"]) == ("shadow", "look", 12.5)
    assert "shadow 12.5 %" in (await baton(panel, "status")).stdout
    now = await answer(panel, "shadow", "set", "5%", "--same", "--yes")
    assert (now["shadow_percent"], now["shadow_same"]) == (5.0, True)
    assert "noise only" in (await baton(panel, "shadow", "show")).stdout
    now = await answer(panel, "shadow", "set", "OFF", "--yes")
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
async def test_a_share_that_is_none_is_refused_with_what_is_allowed(panel: Panel, typed: str, refusal: str) -> None:
    await go_to(panel, Phase.SHADOW)
    before = panel.flows.cache.current
    result = await baton(panel, "shadow", "set", typed, "--yes")
    assert (result.exit_code, refusal in result.stderr) == (Exit.USAGE, True), result.stderr
    assert "0 to 100, in steps of 0.1, or off" in result.stderr
    assert await panel.store.load() == before


async def test_where_nothing_is_compared_a_share_is_refused_with_where_it_is(panel: Panel) -> None:
    result = await baton(panel, "shadow", "set", "5", "--yes")
    assert result.exit_code == Exit.FAILED
    assert "only in SHADOW, DUAL_WRITE, DUAL_READ; the phase is OFF" in result.stderr
    assert (await baton(panel, "shadow", "set", "off", "--yes")).exit_code == Exit.OK


@pytest.mark.parametrize("permille", [-1, 1001])
async def test_the_api_refuses_a_share_that_is_none(panel: Panel, permille: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await panel.control.SetShadow(pb.SetShadowRequest(actor="ann", permille=permille))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "permille" in (refused.value.details() or "")


async def test_a_dry_run_sets_nothing(panel: Panel) -> None:
    await go_to(panel, Phase.SHADOW)
    before = panel.flows.cache.current
    assert (await answer(panel, "shadow", "set", "5", "--dry-run"))["dry_run"] is True
    assert (await baton(panel, "shadow", "set", "5")).exit_code == Exit.USAGE
    assert await panel.store.load() == before
