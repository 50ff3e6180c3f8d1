"""A replaced log is distinguished from the one that a store has read, on every adapter."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.eventlog.identity import LogReplaced, Mark, check_log, mark_of
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import EventLog, LogUnavailable, OffsetGone
from libs.eventlog.sqlite import SqliteEventLog
from libs.proving.servers.kafka import Kafka
from tests.contracts.eventlog_adapters import (
    PARTITIONS,
    Adapter,
    KafkaAdapter,
    MemoryAdapter,
    SqliteAdapter,
    event,
    from_start,
    read,
)
from tests.waiting import eventually


class Replaceable:
    """A log, and how another one comes into its place while it is open."""

    def __init__(self, adapter: Adapter, path: Path, kafka: Kafka | None) -> None:
        self.adapter = adapter
        self._path = path
        self._kafka = kafka

    async def replace(self, log: EventLog) -> None:
        if isinstance(log, MemoryEventLog):
            await log.replace()
        elif isinstance(log, SqliteEventLog):
            made = self._path.with_name("other.db")
            async with SqliteEventLog.open(made, PARTITIONS):
                pass
            for name in self._path.parent.glob(f"{self._path.name}-*"):
                name.unlink()
            os.replace(made, self._path)
        else:
            assert self._kafka is not None
            await self._kafka.delete_topic(log.name)
            await self._kafka.create_topic(log.name, PARTITIONS)


@pytest.fixture(params=["memory", "sqlite", "kafka"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Replaceable]:
    kafka: Kafka | None = None
    adapter: Adapter = MemoryAdapter()
    if request.param == "sqlite":
        adapter = SqliteAdapter(tmp_path / "log.db")
    elif request.param == "kafka":
        found: Kafka = request.getfixturevalue("kafka")
        kafka, adapter = found, KafkaAdapter(found)
    yield Replaceable(adapter, tmp_path / "log.db", kafka)
    await adapter.remove()


@pytest.fixture
async def log(place: Replaceable) -> AsyncIterator[EventLog]:
    async with place.adapter.open() as opened:
        yield opened


async def appended(log: EventLog, count: int, first: int = 0) -> None:
    """To one partition; waits for a topic that was just made."""

    async def taken() -> bool:
        try:
            await log.append([event("sandboxes/a", first + number) for number in range(count)], partition=3)
        except LogUnavailable:
            return False
        return True

    await eventually(taken, 60.0)


async def marks_of(log: EventLog, count: int) -> dict[int, Mark]:
    async with log.reader({3: 0}) as reader:
        last = (await read(reader, count))[count - 1]
    return {3: Mark(count, mark_of(log.id, last))}


async def test_the_log_that_was_read_is_itself(log: EventLog, place: Replaceable) -> None:
    await appended(log, 5)
    marks = await marks_of(log, 3)
    assert await check_log(log, marks) == {}
    async with place.adapter.open() as again:
        assert await check_log(again, marks) == {}
        assert again.id == log.id


async def test_a_mark_that_was_not_known_is_told(log: EventLog) -> None:
    await appended(log, 5)
    marks = await marks_of(log, 3)
    assert await check_log(log, {3: Mark(3, "")}) == {3: marks[3].text}


@pytest.mark.parametrize("count", [0, 2, 9], ids=["empty", "shorter", "longer"])
async def test_another_log_in_its_place_is_told_however_far_it_has_grown(
    log: EventLog, place: Replaceable, count: int
) -> None:
    await appended(log, 5)
    marks = await marks_of(log, 5)
    await place.replace(log)
    if count:
        await appended(log, count)

    async def told() -> bool:
        try:
            await check_log(log, marks)
        except LogReplaced:
            return True
        except LogUnavailable:
            return False
        pytest.fail("another log was taken for the one that was read")

    assert await eventually(told, 60.0)


async def test_a_reader_shows_that_another_log_may_have_come_before_it_gives_its_events(
    log: EventLog, place: Replaceable
) -> None:
    await appended(log, 2)
    async with log.reader({**from_start(log), 3: 0}) as reader:
        await read(reader, 2)
        epoch = reader.epoch
        await place.replace(log)
        await appended(log, 9)

        async def another() -> bool:
            try:
                found = await reader.poll(100, 0.2)
            except (LogUnavailable, OffsetGone):
                return True
            assert not found or reader.epoch > epoch
            return reader.epoch > epoch

        await eventually(another, 60.0)


async def test_where_retention_has_dropped_the_last_event_offsets_and_id_decide(
    log: EventLog, place: Replaceable
) -> None:
    await appended(log, 5)
    marks = await marks_of(log, 3)
    await place.adapter.trim(3, 4)
    assert await check_log(log, marks) == {}
    with pytest.raises(LogReplaced, match="ends at offset 5, and was read up to 6"):
        await check_log(log, {3: Mark(6, marks[3].text)})
    if log.id:
        with pytest.raises(LogReplaced, match="the log has the id"):
            await check_log(log, {3: Mark(3, "another/" + marks[3].text.rpartition("/")[2])})
