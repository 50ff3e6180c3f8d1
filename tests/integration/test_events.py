"""`baton events` and `baton replay` against a running router."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import Event, LogUnavailable, partition_of
from libs.ownership.model import Record, Row, Served, Store, Version
from libs.ownership.wire import event_of
from libs.pb.baton.control.v1 import events_pb2
from libs.pb.baton.record.v1 import record_pb2
from libs.store.port import FeedStep, Parked, Position
from services.router.cli.failure import Exit
from services.router.flows.feed import events as flows_events
from services.router.flows.feed.events import MAX_CONTENTS, LogEvents, Question
from tests.commands import baton
from tests.contracts.pb.toy import shelf_pb2
from tests.shelf import CONTRACT
from tests.system.control import ControlledSystem, running_controlled_system

BOOK = "rooms/r/books/1"


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(feeds=False, mover=False) as running:
        yield running


async def answers(controlled: ControlledSystem, *arguments: str, code: Exit = Exit.OK) -> list[Any]:
    """One for each line."""
    result = await baton(controlled, *arguments, "-o", "json")
    assert result.exit_code == code, (result.stderr, result.exception)
    return [json.loads(line) for line in result.stdout.splitlines()]


def event(key: str, revision: int = 1, *, live: bool = True) -> Event:
    version = Version(0, revision)
    payload = shelf_pb2.Book(reader=f"reader {revision}").SerializeToString()
    served = Served("ann", "request-1", b"h" * 16, version, b"answer")
    row = Row(key, version, Store.A, version, live, payload, 1)
    headers = HeaderWriter("A", "baton.record.v1").write(key, version, 1.7e9)
    return Event(key, event_of(Record(row, (served,), Store.A, 1.7e9)), headers)


HEARTBEAT = Event("", b"", HeaderWriter("A", "baton.heartbeat.v1").write("", (0, 0), 1.7e9))


async def test_the_last_events_are_shown_by_time_and_each_for_what_it_is(controlled: ControlledSystem) -> None:
    for number in range(30):
        await controlled.system.log.append([event(f"rooms/r/books/{number}")])
    await controlled.system.log.append([HEARTBEAT])
    await controlled.system.log.append([Event("odd", b"\xff")], partition=2)
    found = await answers(controlled, "events", "tail", "-n", "3")
    assert [one["key"] for one in found] == ["rooms/r/books/29", "", "odd"]
    book, heartbeat, odd = found
    assert (book["version"], book["owner"], book["origin"], book["live"]) == ("0-1", "A", "A", True)
    assert (book["content"], book["served"]) == (None, [{"request_id": "request-1", "principal": "ann"}])
    assert (heartbeat["type"], heartbeat["version"], heartbeat["trouble"]) == ("baton.heartbeat.v1", None, "")
    assert odd["version"] is None and "not a serialized record" in odd["trouble"]
    lines = (await baton(controlled, "events", "tail", "-n", "3")).stdout
    assert "rooms/r/books/29  0-1  owner A" in lines and "cannot be read: not a serialized record" in lines
    assert len(await answers(controlled, "events", "tail")) == 20


async def test_events_are_shown_from_somewhere_on(controlled: ControlledSystem) -> None:
    for number in range(5):
        await controlled.system.log.append([event(f"rooms/r/books/{number}")], partition=number % 2)
    first = await answers(controlled, "events", "tail", "--from", "start", "-n", "4")
    assert [one["key"][-1] for one in first] == ["0", "1", "2", "3"]
    assert [one["key"][-1] for one in await answers(controlled, "events", "tail", "-n", "2")] == ["3", "4"]
    assert [one["position"] for one in await answers(controlled, "events", "tail", "--from", "0/1")] == ["0/1", "0/2"]
    assert await answers(controlled, "events", "tail", "--from", "1/2") == [], "where the log ends"
    for start, why in (("1/3", "at most 1/2, where the log ends"), ("then", "is not valid: start, a time")):
        refused = await baton(controlled, "events", "tail", "--from", start)
        assert refused.exit_code == Exit.USAGE and why in refused.stderr
    await controlled.system.log.trim(0, 1)
    gone = await baton(controlled, "events", "tail", "--from", "0/0")
    assert gone.exit_code == Exit.FAILED and "was dropped by retention" in gone.stderr


async def test_one_event_or_those_of_one_record_are_shown_with_their_content(controlled: ControlledSystem) -> None:
    await controlled.system.log.append(
        [event(BOOK, 1), event("rooms/r/books/2"), event(BOOK, 2, live=False)], partition=3
    )
    (one,) = await answers(controlled, "events", "show", "3/0")
    assert (one["position"], one["content"]) == ("3/0", {"reader": "reader 1"})
    screen = (await baton(controlled, "events", "show", "3/2")).stdout
    assert "deleted" in screen and "reader 2" in screen and "request: request-1 of ann" in screen
    for place, code in (("3/3", Exit.FAILED), ("3/4", Exit.USAGE), ("99/0", Exit.USAGE)):
        assert (await baton(controlled, "events", "show", place)).exit_code == code
    nobody = await baton(controlled, "events", "show", "rooms/r/books/none")
    assert nobody.exit_code == Exit.FAILED and "the log holds no event rooms/r/books/none" in nobody.stderr


async def test_of_one_record_the_last_events_are_found_wherever_they_are_in_its_partition(
    controlled: ControlledSystem,
) -> None:
    for revision in range(1, 40):
        await controlled.system.log.append([event(BOOK, revision)])
        await controlled.system.log.append([event(f"rooms/r/books/other-{revision}")])
    found = await answers(controlled, "events", "show", BOOK, "-n", "2")
    assert [one["version"] for one in found] == ["0-38", "0-39"]
    first = await answers(controlled, "events", "tail", "--from", "start", "--name", BOOK, "-n", "2")
    assert [one["version"] for one in first] == ["0-1", "0-2"]


async def test_content_of_a_schema_version_that_is_not_known_here_is_left_out() -> None:
    class Newer:
        schemas = type("", (), {"newest": 2})
        methods = CONTRACT.methods

    async with running_controlled_system(feeds=False, mover=False) as controlled:
        await controlled.system.log.append([event(BOOK)])
        seen = [one async for one in LogEvents(controlled.system.log, Newer).read(Question(content=True))]  # type: ignore[arg-type]
    assert [(one.key, one.content) for one in seen] == [(BOOK, "")]


async def test_a_tail_that_follows_shows_new_events_as_they_come(controlled: ControlledSystem) -> None:
    await controlled.system.log.append([event("rooms/r/books/1"), event("rooms/r/books/2")])
    stream = controlled.control.ReadEvents(events_pb2.ReadEventsRequest(follow=True, limit=1))
    keys = []
    async with asyncio.timeout(10):
        async for answer in stream:
            keys.append(answer.event.key)
            if len(keys) == 4:
                break
            await controlled.system.log.append([event(f"new-{len(keys)}")])
    stream.cancel()
    assert keys[1:] == ["new-1", "new-2", "new-3"]


async def test_too_many_at_once_are_refused(controlled: ControlledSystem) -> None:
    for request in (
        events_pb2.ReadEventsRequest(limit=MAX_CONTENTS + 1, content=True),
        events_pb2.ReadEventsRequest(limit=1001),
        events_pb2.ReadEventsRequest(limit=-1),
    ):
        with pytest.raises(Exception, match=r"limit: .* is not valid"):
            async for _ in controlled.control.ReadEvents(request):
                pass


async def park(controlled: ControlledSystem, *offsets: int, event: bytes = b"\xff") -> None:
    parked = tuple(Parked(0, offset, BOOK, "made no sense", event) for offset in offsets)
    await controlled.system.ports(Store.B).transfers.apply([], FeedStep((Position(0, 0, 9),), parked))


async def test_parked_events_are_listed_and_tried_again(controlled: ControlledSystem) -> None:
    assert "no event is parked" in (await baton(controlled, "events", "parked")).stdout
    await park(controlled, 3, event=event(BOOK).value)
    (listed,) = await answers(controlled, "events", "parked")
    (one,) = listed["parked"]
    assert (one["store"], one["position"], one["key"], one["reason"]) == ("B", "0/3", BOOK, "made no sense")
    assert (await answers(controlled, "events", "parked", "--store", "A"))[0]["parked"] == []
    assert (await answers(controlled, "events", "retry", "--all", "--dry-run"))[0] == {
        "retried": [],
        "dry_run": True,
        "effects": ["B: event 0/3 is retried"],
    }
    (tried,) = await answers(controlled, "events", "retry", "--store", "B", "0/3", "--yes")
    assert tried["retried"] == [{"store": "B", "position": "0/3", "applied": True, "reason": ""}]
    assert (await controlled.system.ports(Store.B).records.read(BOOK)).row is not None
    again = await baton(controlled, "events", "retry", "--store", "B", "0/3", "--yes")
    assert again.exit_code == Exit.FAILED and "no event 0/3 is parked" in again.stderr


async def test_a_retry_that_fails_says_why_with_its_exit_code(controlled: ControlledSystem) -> None:
    await park(controlled, 3, 4)
    result = await baton(controlled, "events", "retry", "--all", "--yes")
    assert result.exit_code == Exit.FAILED and "2 of 2 still cannot be applied" in result.stderr
    assert result.stdout.count("not a serialized record") == 2
    for words in (["retry"], ["retry", "0/3"], ["retry", "0/3", "--all"], ["retry", "--store", "C", "0/3"]):
        assert (await baton(controlled, "events", *words, "--yes")).exit_code == Exit.USAGE


async def test_a_parked_event_is_dropped_with_a_reason_that_the_journal_keeps(controlled: ControlledSystem) -> None:
    await park(controlled, 3)
    words = ["events", "drop", "--store", "service_layer", "0/3", "--yes"]
    without = await baton(controlled, *words)
    assert without.exit_code == Exit.USAGE and "--reason is required" in without.stderr
    too_long = await baton(controlled, *words, "--reason", "x" * 990)
    assert too_long.exit_code == Exit.USAGE and "reason: " in too_long.stderr
    assert (await controlled.system.ports(Store.B).feed.state()).parked_now == 1
    (dropped,) = await answers(controlled, *words, "--reason", "half a record")
    assert (dropped["key"], dropped["dry_run"]) == (BOOK, False)
    assert (await controlled.system.ports(Store.B).feed.state()).parked_now == 0
    (latest,) = await controlled.store.journal(1)
    assert (latest.actor, latest.action) == ("ann@host", "parked event dropped")
    assert latest.reason == f"half a record (B 0/3, {BOOK}: made no sense)"
    assert latest.before.phase is latest.after.phase
    nothing = await baton(controlled, *words, "--reason", "again")
    assert nothing.exit_code == Exit.FAILED and "no event 0/3 is parked" in nothing.stderr
    assert (await controlled.store.journal(1))[0] == latest, "what does not happen is not journaled"


async def test_nothing_is_dropped_without_a_reason_or_a_name_whoever_asks(controlled: ControlledSystem) -> None:
    await park(controlled, 3)
    for actor, reason in (("ann", " "), ("", "half a record")):
        request = events_pb2.DropParkedRequest(
            actor=actor, reason=reason, store=record_pb2.STORE_B, partition=0, offset=3
        )
        with pytest.raises(grpc.aio.AioRpcError, match=r"(reason|actor): .* is not valid"):
            await controlled.control.DropParked(request)
    assert (await controlled.system.ports(Store.B).feed.state()).parked_now == 1


class Hollow(MemoryEventLog):
    """Says that each partition has two events more than it has."""

    async def ends(self) -> dict[int, tuple[int, int]]:
        return {partition: (oldest, end + 2) for partition, (oldest, end) in (await super().ends()).items()}


async def test_a_log_that_does_not_give_what_it_says_it_has_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Hollow(1)
    await log.append([event(BOOK)])
    monkeypatch.setattr(flows_events, "POLL_SECONDS", 0.01)
    with pytest.raises(LogUnavailable, match="where some are known to be"):
        _ = [seen async for seen in LogEvents(log, CONTRACT).read(Question())]


async def test_a_store_that_is_away_keeps_no_other_s_parked_events_back(controlled: ControlledSystem) -> None:
    await park(controlled, 3)
    await controlled.system.stop(Store.A)
    result = await baton(controlled, "events", "parked")
    assert result.exit_code == Exit.FAILED and "store A" in result.stderr
    assert "made no sense" in result.stdout


async def test_a_replay_is_previewed_done_and_refused_by_command(controlled: ControlledSystem) -> None:
    await controlled.system.log.append([event(BOOK, revision) for revision in (1, 2, 3)])
    part = partition_of(BOOK, controlled.system.log.partitions)
    to_b = ["replay", "--to", "service_layer", "--from"]
    preview = await baton(controlled, *to_b, "10:00", "--dry-run")
    assert preview.exit_code == Exit.OK, preview.stderr
    assert "would apply 3, ignore 0 as known: of 3 events. No record was changed." in preview.stdout
    assert (await controlled.system.ports(Store.B).records.read(BOOK)).row is None
    (done,) = await answers(controlled, *to_b, "start", "--name", BOOK, "--wait", "--yes")
    assert (done["state"], done["unit"], done["dry_run"]) == ("FINISHED", "events", False)
    (said,) = await answers(controlled, *to_b, f"{part}/1", "--dry-run")
    assert (said["dry_run"], said["report"]["applied"], said["report"]["known"]) == (True, 0, 2)
    await controlled.system.log.trim(part, 1)
    before = len(controlled.flows.jobs.view)
    gone = await baton(controlled, *to_b, f"{part}/0", "--yes")
    assert gone.exit_code == Exit.FAILED and "offset 0 was dropped by retention" in gone.stderr
    for words in (["--to", "C", "--from", "start"], ["--to", "B", "--from", "soon"], ["--to", "B", "--from", "99/1"]):
        assert (await baton(controlled, "replay", *words, "--yes")).exit_code == Exit.USAGE
    assert len(controlled.flows.jobs.view) == before, "nothing half done"
