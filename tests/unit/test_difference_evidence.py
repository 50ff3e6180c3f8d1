"""The evidence of a difference: request, both answers and their fields, bounded and without secrets."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from libs.clock import ManualClock
from libs.errors import HIDDEN
from libs.ownership.model import Store, Version
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.pb.sandbox.v1.sandbox_service_pb2 import GetSandboxRequest, UpdateSandboxRequest
from services.router.control.memory import MemoryControlStore
from services.router.core.compare import Kind, ShownRecord
from services.router.core.difference_evidence import (
    MAX_JSON_CHARACTERS,
    MAX_VALUE_CHARACTERS,
    SLOTS,
    Example,
    example_of,
    from_json,
    name_of,
    names,
    to_json,
)
from services.router.core.tally import Difference, Side
from services.router.flows.calls.difference_book import WRITE_SECONDS, DifferenceBook
from tests.system.control import running_loops
from tests.waiting import eventually

SECRET = "hunter2"
AT = Version(0, 3)


def sandbox(word: str, **fields: Any) -> Sandbox:
    spec = SandboxSpec(image="i", env={"TOKEN": f"{SECRET}{word}"}, command=[word])
    return Sandbox(name="sandboxes/x", labels={"word": word}, spec=spec, **fields)


def difference(*fields: str, kind: Kind = Kind.MISMATCH, key: str = "sandboxes/x", time: float = 1.0) -> Difference:
    sides = Side(Store.A, AT, "a"), Side(Store.B, None, "b")
    return Difference(time, "get", key, kind, fields, sides, 2.5)


def shown(message: Sandbox) -> ShownRecord:
    return ShownRecord(AT, message.SerializeToString())


def example(found: Difference, one: Sandbox, other: Sandbox, request: Any = None) -> Example:
    asked = request or GetSandboxRequest(name="sandboxes/x")
    return example_of(found, 7, "router-1", asked, Sandbox, (shown(one), shown(other)))


def test_an_example_has_the_request_both_answers_and_each_field_that_differs() -> None:
    made = example(difference("labels", "spec.command", "account"), sandbox("one"), sandbox("two", account="acme"))
    assert json.loads(made.request) == {"name": "sandboxes/x"}
    assert [json.loads(answer)["labels"] for answer in made.answers] == [{"word": "one"}, {"word": "two"}]
    assert [tuple(value) for value in made.values] == [
        ("labels", '{"word": "one"}', '{"word": "two"}'),
        ("spec.command", '["one"]', '["two"]'),
        ("account", "null", '"acme"'),
    ]


def test_no_secret_is_in_the_request_the_answers_or_the_fields() -> None:
    made = example(difference("spec.env"), sandbox("one"), sandbox("two"), UpdateSandboxRequest(sandbox=sandbox("new")))
    assert SECRET not in to_json(made)
    assert to_json(made).count(HIDDEN) == 5


def test_an_error_and_an_absent_record_are_shown_as_such() -> None:
    sides = ShownRecord(None, status="NOT_FOUND/SANDBOX_NOT_FOUND"), ShownRecord(Version(0, 0))
    made = example_of(difference("(status)"), 7, "r", GetSandboxRequest(), Sandbox, sides)
    assert made.answers == ("NOT_FOUND/SANDBOX_NOT_FOUND", "")
    unreadable = example_of(difference(), 7, "r", GetSandboxRequest(), Sandbox, (ShownRecord(AT, b"\xff"), sides[1]))
    assert unreadable.answers == ("null", "")
    late = Sandbox(name="sandboxes/x", update_time=Timestamp(seconds=10**15))
    made = example(difference("update_time.seconds"), late, sandbox("two"))
    assert made.answers[0] == made.values[0].one == "null", "JSON has no such time"


def test_request_answers_and_fields_are_cut() -> None:
    long = sandbox("x" * 100_000)
    made = example(difference("labels"), long, long, UpdateSandboxRequest(sandbox=long))
    assert {len(made.request), *map(len, made.answers)} == {MAX_JSON_CHARACTERS}
    assert {len(text) for text in made.values[0][1:]} == {MAX_VALUE_CHARACTERS}
    assert made.request.endswith("…")


def test_the_control_store_gives_back_what_it_was_given_and_skips_what_a_newer_release_wrote() -> None:
    made = example(difference("labels"), sandbox("one"), sandbox("two"))
    assert from_json(to_json(made)) == made
    assert from_json(to_json(made).replace("MISMATCH", "NEW")) is None
    assert from_json("{}") is from_json("[") is None


def test_one_example_is_kept_of_each_kind_of_difference() -> None:
    made = [example(difference(f"f{number}"), sandbox("a"), sandbox("b")) for number in range(500)]
    assert {one.slot for one in made} == set(range(SLOTS))
    assert {name_of(kind, one.slot) for kind in (Kind.MISMATCH, Kind.MISSING) for one in made} == set(names())
    again = example(difference("f1", key="sandboxes/y", time=9.0), sandbox("a"), sandbox("b"))
    assert (again.slot, again.id == made[1].id) == (made[1].slot, False)


async def test_the_book_writes_the_latest_example_and_not_too_often() -> None:
    control, clock = MemoryControlStore(), ManualClock()
    book = DifferenceBook(control, "router-1", clock)
    first = example(difference("labels"), sandbox("one"), sandbox("two"))
    later = replace(first, difference=replace(first.difference, key="sandboxes/later"))
    for one in (first, later, example(difference(kind=Kind.ERROR), sandbox("a"), sandbox("b"))):
        book.offer(one)
    await book.write()
    assert await book.examples() == [later]
    book.offer(first)
    await book.write()
    assert await book.examples() == [later], "one write of an example in WRITE_SECONDS"
    clock.advance(WRITE_SECONDS)
    await book.write()
    assert await book.examples() == [first]
    assert await book.find(first.id) == first


async def test_an_example_is_written_once_the_control_store_answers_again() -> None:
    control = MemoryControlStore()
    book = DifferenceBook(control, "router-1", ManualClock())
    made = example(difference("labels"), sandbox("one"), sandbox("two"))
    control.reachable = False
    book.offer(made)
    async with running_loops(book.loop):
        await eventually(lambda: book.loop.failures)
        control.reachable = True
        await eventually(book.examples)
    assert await book.examples() == [made]


async def test_two_sorts_with_one_slot_are_both_kept_while_there_is_room() -> None:
    made = [example(difference(f"f{number}", time=number), sandbox("a"), sandbox("b")) for number in range(2 * SLOTS)]
    crowded = [one for one in made if one.slot == made[0].slot]
    assert len(crowded) > 1
    clock = ManualClock()
    book = DifferenceBook(MemoryControlStore(), "router-1", clock)
    for one in crowded:
        book.offer(one)
    await book.write()
    assert await book.examples() == crowded[::-1]
    for one in made:
        clock.advance(WRITE_SECONDS)
        book.offer(one)
        await book.write()
    assert len(await book.examples()) == SLOTS
    assert made[-1] in await book.examples(), "the latest takes a place when none is free"
