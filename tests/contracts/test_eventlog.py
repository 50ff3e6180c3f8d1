"""The contract of `libs.eventlog.port`, run against each adapter."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as murmur2_of_aiokafka
from hypothesis import given
from hypothesis import strategies as st

from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import (
    MAX_EVENT_BYTES,
    Event,
    EventLog,
    EventTooLarge,
    LogUnavailable,
    OffsetGone,
    Stored,
    murmur2,
    partition_of,
)
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

BOUND_SECONDS = 20.0


@pytest.fixture(params=["memory", "sqlite", "kafka"])
def backing(request: pytest.FixtureRequest, tmp_path: Path) -> Adapter:
    if request.param == "memory":
        return MemoryAdapter()
    if request.param == "sqlite":
        return SqliteAdapter(tmp_path / "log.db")
    kafka: Kafka = request.getfixturevalue("kafka")
    return KafkaAdapter(kafka)


@pytest.fixture
async def adapter(backing: Adapter) -> AsyncIterator[Adapter]:
    yield backing
    await backing.remove()


@pytest.fixture
async def log(adapter: Adapter) -> AsyncIterator[EventLog]:
    async with adapter.open() as opened:
        yield opened


def by_partition(found: list[Stored]) -> dict[int, list[Stored]]:
    groups: dict[int, list[Stored]] = defaultdict(list)
    for stored in found:
        groups[stored.partition].append(stored)
    return groups


async def test_an_event_comes_back_as_it_was_appended(log: EventLog) -> None:
    sent = Event("sandboxes/ä-☃", bytes(range(256)), (("a", b"1"), ("b", b"\x00\xff"), ("a", b""), ("ü", b"2")))
    before = time.time()
    await log.append([sent, Event("sandboxes/empty", b"")])
    after = time.time()
    async with log.reader(from_start(log)) as reader:
        found = {stored.event.key: stored for stored in await read(reader, 2)}
    assert found["sandboxes/ä-☃"].event == sent
    assert found["sandboxes/empty"].event == Event("sandboxes/empty", b"")
    # Whole milliseconds, by another process's reading of the same clock.
    assert all(before - 1 <= stored.time <= after + 1 for stored in found.values())


async def test_the_events_of_a_key_keep_the_order_of_their_appends(log: EventLog) -> None:
    keys = [f"sandboxes/{number}" for number in range(20)]
    for start in (0, 50):
        await log.append([event(key, number) for number in range(start, start + 50) for key in keys])
    async with log.reader(from_start(log)) as reader:
        found = await read(reader, 2000)
    for key in keys:
        assert [stored.event for stored in found if stored.event.key == key] == [event(key, n) for n in range(100)]


async def test_a_partition_has_offsets_without_gaps_and_a_key_always_the_same_partition(log: EventLog) -> None:
    await log.append([event(f"sandboxes/{number}", number) for number in range(300)])
    async with log.reader(from_start(log)) as reader:
        groups = by_partition(await read(reader, 300, limit=7))
    assert set(groups) == set(range(PARTITIONS))
    for partition, stored in groups.items():
        assert [one.offset for one in stored] == list(range(len(stored)))
        assert {partition_of(one.event.key, PARTITIONS) for one in stored} == {partition}


async def test_an_append_may_name_the_partition(log: EventLog) -> None:
    await log.append([event(f"sandboxes/{number}") for number in range(5)], partition=3)
    assert (await log.ends())[3] == (0, 5)
    assert sum(end for _, end in (await log.ends()).values()) == 5


@pytest.mark.parametrize("backing", ["sqlite", "kafka"], indirect=True)
async def test_what_an_append_returned_for_is_there_after_the_log_was_closed_and_opened(adapter: Adapter) -> None:
    async with adapter.open() as log:
        await log.append([event("sandboxes/a", number) for number in range(3)])
    async with adapter.open() as log, log.reader(from_start(log)) as reader:
        await log.append([event("sandboxes/a", 3)])
        assert [stored.event for stored in await read(reader, 4)] == [event("sandboxes/a", n) for n in range(4)]


async def test_a_reader_reads_the_named_partitions_from_the_named_offsets(log: EventLog) -> None:
    for partition in (2, 5, 9):
        await log.append([event("k", number) for number in range(10)], partition=partition)
    async with log.reader({2: 7, 5: 10}) as reader:
        assert [(stored.partition, stored.offset) for stored in await read(reader, 3)] == [(2, 7), (2, 8), (2, 9)]
        await log.append([event("k")], partition=9)
        await log.append([event("k")], partition=5)
        assert [(stored.partition, stored.offset) for stored in await read(reader, 1)] == [(5, 10)]


async def test_the_first_event_of_a_time_is_found(log: EventLog, adapter: Adapter) -> None:
    for number in range(12):
        await log.append([event("", number), event("", number + 100)], partition=3)
    async with log.reader({3: 0}) as reader:
        found = await read(reader, 24)
    for stored in found:
        first = next(other.offset for other in found if other.time >= stored.time)
        assert await log.offsets_at(stored.time) == {**dict.fromkeys(range(PARTITIONS), 0), 3: first}
    assert (await log.offsets_at(found[-1].time + 3600))[3] == 24, "nothing yet"
    await adapter.trim(3, 5)
    assert (await log.offsets_at(0.0))[3] == 5, "the oldest that is held"
    with pytest.raises(ValueError, match="time_seconds is -1"):
        await log.offsets_at(-1)


async def test_two_readers_do_not_disturb_each_other(log: EventLog) -> None:
    await log.append([event("k", number) for number in range(10)], partition=0)
    async with log.reader({0: 0}) as first, log.reader({0: 0}) as second:
        assert len(await read(first, 10)) == 10
        assert len(await read(second, 10, limit=3)) >= 10


async def test_a_waiting_poll_returns_as_soon_as_something_arrives(log: EventLog) -> None:
    async with log.reader(from_start(log)) as reader:
        assert await reader.poll(10, 0.0) == []
        waiting = asyncio.create_task(reader.poll(10, 600.0))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        await log.append([event("sandboxes/a")])
        found = await asyncio.wait_for(waiting, BOUND_SECONDS)
    assert [stored.event for stored in found] == [event("sandboxes/a")]


async def test_a_poll_that_finds_nothing_ends(log: EventLog) -> None:
    async with log.reader(from_start(log)) as reader:
        assert await asyncio.wait_for(reader.poll(10, 0.05), BOUND_SECONDS) == []


async def test_a_cancelled_poll_loses_nothing(log: EventLog) -> None:
    async with log.reader(from_start(log)) as reader:
        for number in range(5):
            waiting = asyncio.create_task(reader.poll(10, 600.0))
            await log.append([event("sandboxes/a", number)])
            waiting.cancel()
            await asyncio.wait([waiting])
            expected = event("sandboxes/a", number)
            found = await read(reader, 1) if waiting.cancelled() else waiting.result()
            assert [stored.event for stored in found] == [expected]


async def test_a_partition_that_stays_busy_does_not_keep_the_others_waiting_for_ever(log: EventLog) -> None:
    await log.append([event("busy") for _ in range(100)], partition=0)
    await log.append([event("rare")], partition=1)
    async with log.reader(from_start(log)) as reader:
        for _ in range(100):
            found = await read(reader, 1, limit=10)
            if "rare" in {stored.event.key for stored in found}:
                return
            await log.append([event("busy") for _ in found], partition=0)
    pytest.fail("the rare event did not come")


async def test_the_ends_follow_appends_and_retention(adapter: Adapter, log: EventLog) -> None:
    assert await log.ends() == dict.fromkeys(range(PARTITIONS), (0, 0))
    await log.append([event("k", number) for number in range(6)], partition=4)
    await adapter.trim(4, 2)
    assert await log.ends() == dict.fromkeys(range(PARTITIONS), (0, 0)) | {4: (2, 6)}


@pytest.mark.parametrize("backing", ["memory", "sqlite"], indirect=True)
async def test_retention_never_goes_back_nor_beyond_the_end(adapter: Adapter, log: EventLog) -> None:
    await log.append([event("k", number) for number in range(6)], partition=4)
    for oldest, held in ((3, (3, 6)), (1, (3, 6)), (9, (6, 6))):
        await adapter.trim(4, oldest)
        assert (await log.ends())[4] == held


async def test_a_log_in_memory_keeps_as_many_events_as_it_was_told() -> None:
    log = MemoryEventLog(2, retained=3)
    await log.append([event("k", number) for number in range(5)], partition=1)
    assert await log.ends() == {0: (0, 0), 1: (2, 5)}
    async with log.reader({1: 2}) as reader:
        assert [stored.event for stored in await read(reader, 3)] == [event("k", number) for number in (2, 3, 4)]


async def test_a_log_in_memory_can_be_made_unreachable() -> None:
    log = MemoryEventLog()
    async with log.reader(from_start(log)) as reader:
        log.reachable = False
        for call in (log.append([event("k")]), log.ends(), reader.poll(1, 0.0)):
            with pytest.raises(LogUnavailable):
                await call
        log.reachable = True
        await log.append([event("k")])
        assert len(await read(reader, 1)) == 1


async def test_a_position_that_retention_dropped_is_refused_with_the_oldest_offset(
    adapter: Adapter, log: EventLog
) -> None:
    await log.append([event("k", number) for number in range(6)], partition=4)
    await adapter.trim(4, 2)
    async with log.reader({4: 1}) as reader:
        for _ in range(2):
            with pytest.raises(OffsetGone) as refused:
                await reader.poll(10, BOUND_SECONDS)
            assert (refused.value.partition, refused.value.offset, refused.value.oldest) == (4, 1, 2)
    async with log.reader({4: 2}) as reader:
        assert [stored.offset for stored in await read(reader, 4)] == [2, 3, 4, 5]


async def test_a_position_beyond_the_end_is_refused(log: EventLog) -> None:
    await log.append([event("k")], partition=4)
    async with log.reader({4: 2}) as reader:
        with pytest.raises(OffsetGone, match="partition 4, wanted offset 2, oldest held 0"):
            await reader.poll(10, BOUND_SECONDS)


async def test_appends_at_the_same_time_lose_nothing_and_keep_the_order_of_each_key(log: EventLog) -> None:
    async def append_one_by_one(key: str) -> None:
        for number in range(20):
            await log.append([event(key, number)])

    keys = [f"sandboxes/{number}" for number in range(8)]
    await asyncio.gather(*(append_one_by_one(key) for key in keys))
    async with log.reader(from_start(log)) as reader:
        found = await read(reader, 160)
    for key in keys:
        assert [stored.event for stored in found if stored.event.key == key] == [event(key, n) for n in range(20)]


async def test_the_largest_event_is_accepted_and_a_larger_one_refuses_the_whole_append(log: EventLog) -> None:
    largest = Event("k", b"x" * (MAX_EVENT_BYTES - 4), (("h", b"12"),))
    assert largest.size == MAX_EVENT_BYTES
    await log.append([largest, largest, largest])
    with pytest.raises(EventTooLarge, match=f"'k' has {MAX_EVENT_BYTES + 1} bytes, at most {MAX_EVENT_BYTES}"):
        await log.append([event("k"), Event("k", largest.value + b"x", largest.headers)])
    async with log.reader(from_start(log)) as reader:
        assert [stored.event for stored in await read(reader, 3)] == [largest] * 3
        assert await reader.poll(1, 0.05) == []


async def test_appending_nothing_does_nothing(log: EventLog) -> None:
    await log.append([])
    assert await log.ends() == dict.fromkeys(range(PARTITIONS), (0, 0))


async def test_senseless_arguments_are_named(log: EventLog) -> None:
    with pytest.raises(ValueError, match="partition is 16; the log has partitions 0 to 15"):
        await log.append([event("k")], partition=16)
    for positions, problem in (({}, "empty"), ({16: 0}, "partition 16"), ({0: -1}, "offset -1 for partition 0")):
        with pytest.raises(ValueError, match=problem):
            async with log.reader(positions):
                pytest.fail("a senseless reader was opened")
    async with log.reader({0: 0}) as reader:
        with pytest.raises(ValueError, match="limit is 0"):
            await reader.poll(0, 1.0)
        with pytest.raises(ValueError, match="wait_seconds is -1"):
            await reader.poll(1, -1.0)


async def test_a_closed_log_says_so(adapter: Adapter) -> None:
    async with adapter.open() as log:
        await log.close()
        await log.close()
        for call in (log.append([event("k")]), log.ends()):
            with pytest.raises(LogUnavailable, match="closed"):
                await call


@pytest.mark.parametrize(
    ("key", "value"),
    [
        # The cases of Kafka's own UtilsTest.testMurmur2, as unsigned numbers.
        (b"21", 0x100000000 - 973932308),
        (b"foobar", 0x100000000 - 790332482),
        (b"a-little-bit-long-string", 0x100000000 - 985981536),
        (b"a-little-bit-longer-string", 0x100000000 - 1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", 0x100000000 - 58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_the_values_of_kafkas_own_tests(key: bytes, value: int) -> None:
    assert murmur2(key) == value


@given(st.binary(max_size=40))
def test_murmur2_agrees_with_another_implementation(data: bytes) -> None:
    assert murmur2(data) == murmur2_of_aiokafka(data) & 0xFFFFFFFF


@given(st.text(max_size=40), st.integers(1, 100))
def test_a_key_is_in_the_partition_that_kafkas_clients_choose(key: str, partitions: int) -> None:
    choose = DefaultPartitioner()
    assert partition_of(key, partitions) == choose(key.encode(), list(range(partitions)), [])


def test_partitions_of_keys_never_change() -> None:
    keys = ["", "a", "sandboxes/a", "sandboxes/0b9f7a34-58d0-4f0e-9d5e-1f6f5f0f6f11", "sandboxes/ä"]
    assert [partition_of(key, PARTITIONS) for key in keys] == [9, 12, 4, 6, 4]
    assert [partition_of(key, 7) for key in keys] == [2, 5, 2, 3, 3]
