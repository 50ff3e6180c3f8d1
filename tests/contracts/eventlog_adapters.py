"""The event logs that the contract suite runs against: how each is opened, and how its retention is forced."""

import itertools
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from libs.eventlog.kafka import KafkaEventLog
from libs.eventlog.kafka_topic import KafkaSettings
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import Event, EventLog, LogReader, Stored
from libs.eventlog.sqlite import SqliteEventLog
from libs.proving.servers.kafka import Kafka

PARTITIONS = 16

_numbers = itertools.count(1)


class Adapter(Protocol):
    """One log, which may be opened several times."""

    def open(self) -> AbstractAsyncContextManager[EventLog]: ...

    async def trim(self, partition: int, oldest: int) -> None:
        """Let retention drop the events below `oldest`."""
        ...

    async def remove(self) -> None: ...


class MemoryAdapter:
    def __init__(self) -> None:
        self._log = MemoryEventLog(PARTITIONS)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EventLog]:
        yield self._log

    async def trim(self, partition: int, oldest: int) -> None:
        await self._log.trim(partition, oldest)

    async def remove(self) -> None:
        await self._log.close()


class SqliteAdapter:
    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EventLog]:
        async with SqliteEventLog.open(self._path, PARTITIONS) as log:
            yield log

    async def trim(self, partition: int, oldest: int) -> None:
        async with SqliteEventLog.open(self._path, PARTITIONS) as log:
            await log.trim(partition, oldest)

    async def remove(self) -> None:
        pass


class KafkaAdapter:
    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._settings = kafka_settings(kafka, f"contract.{next(_numbers)}.{uuid.uuid4().hex[:8]}", create=True)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EventLog]:
        async with KafkaEventLog.open(self._settings) as log:
            yield log

    async def trim(self, partition: int, oldest: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._kafka.bootstrap)
        await admin.start()
        try:
            await admin.delete_records({TopicPartition(self._settings.topic, partition): RecordsToDelete(oldest)})
        finally:
            await admin.close()

    async def remove(self) -> None:
        await self._kafka.delete_topic(self._settings.topic)


def kafka_settings(kafka: Kafka, topic: str, *, create: bool = False, partitions: int = PARTITIONS) -> KafkaSettings:
    """Settings for a broker that has no others beside it, with waits short enough for tests in which it is away."""
    return KafkaSettings(
        bootstrap=kafka.bootstrap,
        topic=topic,
        partitions=partitions,
        create=create,
        replication_factor=1,
        min_insync_replicas=1,
        append_timeout_seconds=3.0,
        request_timeout_seconds=1.5,
    )


def event(key: str, number: int = 0, value: bytes = b"") -> Event:
    """An event that `number` distinguishes from others of its key."""
    return Event(key, value or b"value %d" % number, (("n", b"%d" % number),))


async def read(reader: LogReader, count: int, *, limit: int = 1000) -> list[Stored]:
    """Poll until there are `count` events or an empty poll has waited 20 s; the events in the order they came."""
    found: list[Stored] = []
    while len(found) < count:
        batch = await reader.poll(limit, 20.0)
        assert batch, f"{len(found)} events came, {count} were expected"
        assert len(batch) <= limit
        found += batch
    return found


def from_start(log: EventLog) -> dict[int, int]:
    """The positions of a reader of everything, in a log without retention."""
    return dict.fromkeys(range(log.partitions), 0)
