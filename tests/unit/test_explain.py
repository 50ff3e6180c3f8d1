"""Explanations of a call's target, with the stores of a whole system in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from libs.contract.descriptors import Contract
from libs.errors import InvalidField
from libs.ownership.model import Store, Version, bucket_of
from services.router.control.port import JournalEntry
from services.router.core.phase import Phase, Setting, set_flag
from services.router.core.plan import Target
from services.router.flows.calls.explain import Explainer, RowView
from services.router.flows.steering.migration import Decision
from tests.system.control import ControlledSystem, running_controlled_system

KEY = "shelf/r/00000"
FLAGS = {
    operation: f"toy.routing.{operation}_shelf_use_service_layer" for operation in ("create", "get", "list", "update")
}
ALL = "toy.routing.use_service_layer"


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(feeds=False, mover=False) as running:
        await running.put(1)
        yield running


@pytest.fixture
def explainer(controlled: ControlledSystem) -> Explainer:
    return Explainer(controlled.system.contract, controlled.flows.cache, controlled.system.stores)


async def put_setting(controlled: ControlledSystem, setting: Setting) -> None:
    before = await controlled.flows.cache.refresh()
    await controlled.store.change(JournalEntry(0.0, "ann", "test", "", before, setting))
    await controlled.flows.cache.refresh()


async def test_what_nothing_else_decides_the_phase_decides(controlled: ControlledSystem, explainer: Explainer) -> None:
    found = await explainer.explain(KEY, "update")
    assert found.target == (Store.A, "phase")
    assert found.because == "no other rule applies, and the home of all traffic in OFF is A: the call goes to A"
    assert found.bucket == bucket_of(KEY)
    a, b = found.rows
    assert a == RowView(Store.A, exists=True, live=True, version=Version(0, 1), owner=Store.A)
    assert (b.exists, b.owner) == (False, Store.A)
    assert found.then == "store A owns the record and answers"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("00000", "a record's name, shelf/.../..."),
        ("", "a record's name, shelf/.../..."),
        ("other/r/00000", "a record's name, shelf/.../..."),
    ],
)
async def test_a_name_without_its_prefix_is_refused_with_the_form_of_a_name(
    explainer: Explainer, name: str, expected: str
) -> None:
    for operation in ("get", "create", "update"):
        with pytest.raises(InvalidField) as refused:
            await explainer.explain(name, operation)
        assert refused.value.expected.startswith(expected)


async def test_a_bare_id_is_refused_with_the_name_it_would_have(controlled: ControlledSystem) -> None:
    contract = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
    explainer = Explainer(contract, controlled.flows.cache, controlled.system.stores)
    for operation in ("get", "update", "delete", "create"):
        with pytest.raises(InvalidField, match=r"key: 'load-1' is not valid: a record's name, .*: sandboxes/load-1\?"):
            await explainer.explain("load-1", operation)
    assert (await explainer.explain("sandboxes/load-1", "get")).bucket == bucket_of("sandboxes/load-1")


RULES = [
    (Setting(9, hold=True, flags=((ALL, True),)), "hold", Store.A, "held at A"),
    (set_flag(Setting(9), ALL, False), "global flag", Store.A, "the global flag is false"),
    (set_flag(Setting(9), ALL, True), "global flag", Store.B, "the global flag is true"),
    (set_flag(Setting(9), FLAGS["update"], True), "update flag", Store.B, "the flag for update is true"),
    (set_flag(Setting(9, Phase.CUTOVER), FLAGS["update"], False), "update flag", Store.A, "for update is false"),
    (Setting(9, Phase.DUAL_WRITE, 1000), "canary", Store.B, "1024 canary buckets (100 %)"),
    (Setting(9, Phase.DUAL_WRITE, rehearsal=(bucket_of(KEY),)), "rehearsal", Store.B, "away for a rehearsal"),
    (Setting(9, Phase.CUTOVER), "phase", Store.B, "the home of all traffic in CUTOVER is B"),
]


@pytest.mark.parametrize(("setting", "rule", "store", "words"), RULES)
async def test_the_rule_that_decides_is_named(
    controlled: ControlledSystem, explainer: Explainer, setting: Setting, rule: str, store: Store, words: str
) -> None:
    await put_setting(controlled, setting)
    found = await explainer.explain(KEY, "update")
    assert found.target == Target(store, rule)
    assert words in found.because
    assert found.because.endswith(f"the call goes to {store}")


async def test_what_a_write_does_to_a_record_elsewhere_is_said(
    controlled: ControlledSystem, explainer: Explainer
) -> None:
    await put_setting(controlled, Setting(9, Phase.CUTOVER))
    assert "a write first brings it there from store A" in (await explainer.explain(KEY, "update")).then
    assert "the read is answered by store A, its owner" in (await explainer.explain(KEY, "get")).then
    missing = await explainer.explain("shelf/r/none", "update")
    assert missing.then == "there is no such record: store A owns its bucket and answers so"
    assert "a write first brings it there" in (await explainer.explain("shelf/r/none", "create")).then


async def test_a_row_that_is_too_large_to_be_read_is_shown_with_its_owner(
    controlled: ControlledSystem, explainer: Explainer
) -> None:
    rows = controlled.system.ports(Store.A)._state.rows
    version = rows[KEY].version
    rows[KEY] = replace(rows[KEY], payload=b"x" * 17 * 1024 * 1024)
    found = await explainer.explain(KEY, "update")
    assert found.rows[0] == RowView(Store.A, "", True, True, version, Store.A)
    assert found.then == "store A owns the record and answers"


async def test_a_store_that_is_away_is_a_part_of_the_answer(controlled: ControlledSystem, explainer: Explainer) -> None:
    await controlled.system.stop(Store.B)
    found = await explainer.explain(KEY, "update")
    assert found.rows[0].exists
    assert found.rows[1].trouble
    assert found.then == "store A owns the record and answers"
    await put_setting(controlled, Setting(9, Phase.CUTOVER))
    assert "store B is out of reach: the call goes to store A" in (await explainer.explain(KEY, "update")).then


async def test_a_list_has_no_rows_and_says_on_which_store_it_depends(
    controlled: ControlledSystem, explainer: Explainer
) -> None:
    await put_setting(controlled, set_flag(Setting(9, Phase.CUTOVER), FLAGS["list"], False))
    found = await explainer.explain("", "list")
    assert (found.target, found.bucket, found.rows) == ((Store.A, "list flag"), None, ())
    assert "if store B cannot answer, the page of store A is the answer, marked stale" in found.then


@pytest.mark.parametrize(
    ("key", "operation", "field", "named"),
    [
        (KEY, "", "operation", "create, get, update, list"),
        (KEY, "delete", "operation", "create, get, update, list"),
        (KEY, "UPDATE", "operation", "create, get, update, list"),
        ("", "create", "key", "shelf/.../..."),
        ("00000", "create", "key", "shelf/.../..."),
        (KEY, "list", "key", "a list is not a call on one record"),
        ("x" * 1001, "get", "key", "a record's name"),
    ],
)
async def test_what_cannot_be_explained_is_refused_by_field(
    explainer: Explainer, key: str, operation: str, field: str, named: str
) -> None:
    with pytest.raises(InvalidField) as caught:
        await explainer.explain(key, operation)
    assert caught.value.field == field
    assert named in caught.value.message


async def test_to_explain_moves_and_changes_nothing(controlled: ControlledSystem, explainer: Explainer) -> None:
    await controlled.flows.migration.set_flag(Decision("ann"), ALL, True)
    before = await controlled.flows.migration.journal(100)
    await explainer.explain(KEY, "update")
    await explainer.explain("shelf/r/none", "create")
    assert await controlled.flows.migration.journal(100) == before
    assert controlled.system.traffic.handoffs == 0
    assert (await controlled.system.ports(Store.A).inspection.census()).owned_records == 1
