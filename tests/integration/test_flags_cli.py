"""Flags and explanations at the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.router.cli.failure import Exit
from services.router.flows.steering.migration import Decision
from tests.commands import answer, baton
from tests.system.control import ControlledSystem, running_controlled_system

ALL = "toy.routing.use_service_layer"
CREATE, GET, LIST, UPDATE = (
    f"toy.routing.{operation}_shelf_use_service_layer" for operation in ("create", "get", "list", "update")
)
NAMES = [ALL, CREATE, GET, LIST, UPDATE]
ANN = Decision("ann", "a test")


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(mover=False) as running:
        yield running


async def test_flags_are_set_listed_and_unset_from_the_command_line(controlled: ControlledSystem) -> None:
    view = await answer(controlled, "flags", "set", GET, "true", "--reason", "try it", "--yes")
    assert (view["set_flags"], view["before"]["set_flags"], view["dry_run"]) == ({GET: True}, {}, False)
    listed = await answer(controlled, "flags", "list")
    assert [flag["name"] for flag in listed["flags"]] == NAMES
    (found,) = [flag for flag in listed["flags"] if flag["value"] is not None]
    assert (found["name"], found["value"], found["source"], found["trouble"]) == (GET, True, "control store", "")
    assert found["good_seconds"] is not None
    assert f"{GET} true, control store" in (await baton(controlled, "status")).stdout
    assert (await answer(controlled, "journal"))["entries"][0]["reason"] == "try it"
    view = await answer(controlled, "flags", "set", GET, "UNSET", "--yes")
    assert view["set_flags"] == {}
    assert "unset" in (await baton(controlled, "flags", "list")).stdout


async def test_a_dry_run_says_what_would_happen_and_sets_nothing(controlled: ControlledSystem) -> None:
    result = await baton(controlled, "flags", "set", ALL, "false", "--dry-run")
    assert result.exit_code == Exit.OK
    assert "its calls go to A, at every router within a second" in result.stderr
    assert "the records move to A, after 5 s" in result.stderr
    assert (await controlled.store.load()).generation == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["flags", "set", "no.such.flag", "true", "--yes"], NAMES),
        (["flags", "set", "sandbox.routing.use_service_layer", "true", "--yes"], NAMES),
        (["flags", "set", ALL, "maybe", "--yes"], ["true, false, unset"]),
        (["flags", "set", ALL, "1", "--yes"], ["true, false, unset"]),
        (["flags", "set", ALL, "", "--yes"], ["true, false, unset"]),
        (["flags", "set", ALL, "true"], ["--yes"]),
        (["explain", "shelf/r/x", "--op", "destroy"], ["create, get, update, list"]),
        (["explain", "x/y", "--op", "create"], ["shelf/.../..."]),
        (["explain", "--op", "get"], ["a record's name"]),
    ],
)
async def test_bad_input_is_wrong_usage_names_what_is_allowed_and_changes_nothing(
    controlled: ControlledSystem, words: list[str], named: list[str]
) -> None:
    result = await baton(controlled, *words)
    assert result.exit_code == Exit.USAGE, (result.stdout, result.exception)
    assert all(name in result.stderr for name in named), result.stderr
    assert (await controlled.store.load()).generation == 1


async def test_an_explanation_is_printed_with_every_key_that_its_help_names(controlled: ControlledSystem) -> None:
    await controlled.put(1)
    await answer(controlled, "flags", "set", UPDATE, "true", "--yes")
    view = await answer(controlled, "explain", "shelf/r/00000", "--op", "update", "--at", controlled.address)
    named = (await baton(controlled, "explain", "--help")).stdout
    for keys in (view, view["flags"][0], view["rows"][0], view["setting"]):
        for key in keys:
            assert key in named, key
    assert (view["target"], view["rule"]) == ("B", "update flag")
    assert [flag["name"] for flag in view["flags"]] == [ALL, UPDATE]
    row = view["rows"][0]
    assert (row["store"], row["owner"], row["version"]) == ("A", "A", "0-1")
    text = (await baton(controlled, "explain", "shelf/r/00000", "--op", "update")).stdout
    assert "the flag for update is true" in text
    assert "a write first brings it there from store A" in text
