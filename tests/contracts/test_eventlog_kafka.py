"""The Kafka event log: unfit topics, and behaviour while the broker is unavailable."""

import asyncio
import dataclasses
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from libs.eventlog.kafka import KafkaEventLog
from libs.eventlog.port import LogReader, LogUnavailable, Retention, Stored, TopicUnfit
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.ports import free_port
from tests.contracts.eventlog_adapters import event, from_start, kafka_settings, read

BOUND_SECONDS = 30.0
ALL_REPLICAS = -1
"""acks=all in Kafka's protocol."""


@pytest.fixture
async def log(kafka: Kafka, kafka_topic: str) -> AsyncIterator[KafkaEventLog]:
    async with KafkaEventLog.open(kafka_settings(kafka, kafka_topic)) as opened:
        yield opened


@contextmanager
def paused(kafka: Kafka) -> Iterator[None]:
    """Let the broker stand still: its port is open, and nothing answers."""
    kafka.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        kafka.kill(signal.SIGCONT)


async def append_until_done(log: KafkaEventLog, number: int) -> None:
    async with asyncio.timeout(BOUND_SECONDS):
        while True:
            try:
                return await log.append([event("sandboxes/a", number)])
            except LogUnavailable:
                await asyncio.sleep(0.05)


async def read_until(reader: LogReader, number: int) -> list[Stored]:
    """Read on until the event with `number` has come, whatever trouble is on the way."""
    found: list[Stored] = []
    async with asyncio.timeout(BOUND_SECONDS):
        while not found or found[-1].event != event("sandboxes/a", number):
            try:
                found += await reader.poll(1, 1.0)
            except LogUnavailable:
                await asyncio.sleep(0.05)
    return found


async def test_a_missing_topic_is_refused_unless_it_is_to_be_made(kafka: Kafka) -> None:
    settings = kafka_settings(kafka, "no.such.topic", partitions=3)
    with pytest.raises(TopicUnfit, match=r"no\.such\.topic does not exist .* make it with 3 partitions"):
        async with KafkaEventLog.open(settings):
            pytest.fail("a log without a topic was opened")
    async with KafkaEventLog.open(dataclasses.replace(settings, create=True)) as log:
        await log.append([event("sandboxes/a")])
    async with KafkaEventLog.open(settings) as log:
        assert sum(end for _, end in (await log.ends()).values()) == 1
    await kafka.delete_topic(settings.topic)


@pytest.mark.parametrize(
    ("partitions", "config", "problem"),
    [
        (8, {}, "has 8 partitions, the settings say 16; make them equal"),
        (16, {"cleanup.policy": "compact"}, "has cleanup.policy=compact, it must be delete"),
        (16, {"cleanup.policy": "compact,delete"}, "has cleanup.policy=compact,delete, it must be delete"),
        (16, {"max.message.bytes": "500000"}, "has max.message.bytes=500000, it must be at least 1032768"),
    ],
)
async def test_an_unfit_topic_is_refused_with_what_to_do(
    kafka: Kafka, partitions: int, config: dict[str, str], problem: str
) -> None:
    # A name of its own each time: for a moment a broker shows a topic that was made again as it was before.
    topic = f"unfit.{uuid.uuid4().hex}"
    await kafka.create_topic(topic, partitions, config)
    try:
        with pytest.raises(TopicUnfit, match=f"{topic} {problem}"):
            async with KafkaEventLog.open(kafka_settings(kafka, topic, create=True)):
                pytest.fail("a log on an unfit topic was opened")
    finally:
        await kafka.delete_topic(topic)


@pytest.mark.parametrize(
    ("config", "retention"),
    [
        ({"retention.ms": "3600000"}, Retention(3600.0, by_size=False)),
        ({"retention.ms": "-1", "retention.bytes": "1000000"}, Retention(None, by_size=True)),
    ],
)
async def test_a_topic_tells_why_it_drops_events(kafka: Kafka, config: dict[str, str], retention: Retention) -> None:
    topic = f"kept.{uuid.uuid4().hex[:8]}"
    await kafka.create_topic(topic, 2, config)
    try:
        async with KafkaEventLog.open(kafka_settings(kafka, topic, partitions=2)) as log:
            assert log.retention == retention
    finally:
        await kafka.delete_topic(topic)


async def test_too_many_replicas_are_refused_with_the_brokers_reason(kafka: Kafka) -> None:
    settings = dataclasses.replace(kafka_settings(kafka, "replicated", create=True), replication_factor=3)
    with pytest.raises(TopicUnfit, match=r"replicated could not be made: InvalidReplicationFactorError: .*3"):
        async with KafkaEventLog.open(settings):
            pytest.fail("a log with too few brokers was opened")


async def test_the_broker_is_asked_to_answer_when_all_replicas_in_sync_hold_an_event(log: KafkaEventLog) -> None:
    """Checked in the producer's request, since a single broker answers alike for every setting."""
    await log.append([event("sandboxes/a")])
    assert log._producer._sender._acks == ALL_REPLICAS


async def test_a_broker_that_is_not_there_is_unavailable(kafka: Kafka) -> None:
    settings = dataclasses.replace(kafka_settings(kafka, "any"), bootstrap=f"127.0.0.1:{free_port()}")
    async with asyncio.timeout(BOUND_SECONDS):
        with pytest.raises(LogUnavailable, match=f"topic any at {settings.bootstrap}"):
            async with KafkaEventLog.open(settings):
                pytest.fail("a log without a broker was opened")


async def test_everything_is_unavailable_while_the_broker_stands_still_and_works_again_after(
    kafka: Kafka, log: KafkaEventLog
) -> None:
    await log.append([event("sandboxes/a", 0)])
    async with log.reader(from_start(log)) as reader:
        await read(reader, 1)
        with paused(kafka):
            async with asyncio.timeout(BOUND_SECONDS):
                for _ in range(2):
                    with pytest.raises(LogUnavailable, match="append"):
                        await log.append([event("sandboxes/a", 1)])
                    assert "producing=False" in repr(log), "a producer in doubt must not be used again"
                with pytest.raises(LogUnavailable, match="ends"):
                    await log.ends()
                with pytest.raises(LogUnavailable, match="read"):
                    await reader.poll(1, 4.0)
        await append_until_done(log, 2)
        # The appends whose outcome was unknown may be there, even twice; nothing else is.
        found = await read_until(reader, 2)
    offsets = [stored.offset for stored in found]
    assert offsets == list(range(1, 1 + len(found)))
    assert {stored.event for stored in found} <= {event("sandboxes/a", 1), event("sandboxes/a", 2)}
    assert sum(end for _, end in (await log.ends()).values()) >= 2


@pytest.mark.parametrize("request_seconds", [1.5, 20.0], ids=["requests expire", "requests are still waiting"])
async def test_a_log_closes_while_the_broker_stands_still(
    kafka: Kafka, kafka_topic: str, request_seconds: float
) -> None:
    settings = dataclasses.replace(
        kafka_settings(kafka, kafka_topic), request_timeout_seconds=request_seconds, append_timeout_seconds=60.0
    )
    async with (
        asyncio.timeout(BOUND_SECONDS),
        KafkaEventLog.open(settings) as log,
        log.reader(from_start(log)) as reader,
    ):
        await log.append([event("sandboxes/a", 0)])
        await read(reader, 1)
        await log.ends()
        with paused(kafka):
            assert await reader.poll(1, 0.0) == []
            sending = asyncio.create_task(log.append([event("sandboxes/a", 1)]))
            await asyncio.wait([sending], timeout=0.1)
            await log.close()
            with pytest.raises(LogUnavailable):
                await sending


async def test_appends_and_readers_go_on_after_the_broker_was_killed_and_started_again(
    kafka: Kafka, log: KafkaEventLog
) -> None:
    async with log.reader(from_start(log)) as reader:
        await log.append([event("sandboxes/a", 0)])
        await read(reader, 1)
        kafka.kill()
        async with asyncio.timeout(BOUND_SECONDS):
            with pytest.raises(LogUnavailable):
                await log.append([event("sandboxes/a", 1)])
            with pytest.raises(LogUnavailable):
                await reader.poll(1, 4.0)
        await asyncio.to_thread(kafka.restart)
        await append_until_done(log, 2)
        found = await read_until(reader, 2)
        assert [stored.offset for stored in found] == list(range(1, 1 + len(found)))
        assert max(end for _, end in (await log.ends()).values()) >= 2
