"""The event log in a Kafka topic.

After an error or a timeout, the producer is discarded and the next append makes a new one. Events that the old one
still holds may reach the topic a little later, as `LogUnavailable` documents. The producer is not idempotent: batches
of an idempotent one never expire, so a stalled broker would block appends and shutdown forever, and consumers here do
not need its guarantee.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from libs.eventlog.kafka_client import stop_within
from libs.eventlog.kafka_reader import KafkaReader
from libs.eventlog.kafka_topic import KafkaSettings, check_topic
from libs.eventlog.port import Event, EventTooLarge, LogUnavailable, Retention, check_positions, check_time, place

_STOP_SECONDS = 2.0
_BATCH_BYTES = 64 * 1024
_MAX_REQUEST_BYTES = 1024 * 1024
_MAX_RETIRING = 4


class KafkaEventLog:
    """An `EventLog` in the topic of the settings, made by `open`."""

    def __init__(self, settings: KafkaSettings, retention: Retention) -> None:
        self._settings = settings
        self.retention = retention
        self._producer: Any = None
        self._producer_lock = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._query_consumer: Any = None
        self._query_lock = asyncio.Lock()
        self._closed = False

    def __repr__(self) -> str:
        settings = self._settings
        state = "closed" if self._closed else f"producing={self._producer is not None} retiring={len(self._retiring)}"
        return f"<KafkaEventLog {settings.topic} at {settings.bootstrap} {state}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: KafkaSettings) -> AsyncIterator[Self]:
        """Check the topic, or create it if the settings allow; close the log at the end.

        Raises:
            TopicUnfit: the topic is missing, compacted, has another number of partitions or too small a message limit.
            LogUnavailable: the broker is unavailable.
        """
        event_log = cls(settings, await check_topic(settings))
        try:
            yield event_log
        finally:
            await event_log.close()

    @property
    def partitions(self) -> int:
        return self._settings.partitions

    @property
    def name(self) -> str:
        return self._settings.topic

    @property
    def id(self) -> str:
        """Empty: aiokafka (0.14) uses versions of Kafka's protocol that do not return a topic's id."""
        return ""

    async def append(self, events: Sequence[Event], partition: int | None = None) -> None:
        placed = place(events, partition, self.partitions)
        if not placed:
            return
        producer: Any = None
        try:
            async with asyncio.timeout(self._settings.append_timeout_seconds):
                producer = await self._get_producer()
                await self._send(producer, placed)
        except MessageSizeTooLargeError as error:
            raise EventTooLarge(f"the broker refused a message: {error}") from error
        except (KafkaError, OSError, TimeoutError) as error:
            # Of several appends that fail together, the first discards the producer.
            if producer is not None and producer is self._producer:
                self._producer = None
                self._retire(producer)
            raise self._unavailable("append", error) from error

    @asynccontextmanager
    async def reader(self, positions: Mapping[int, int]) -> AsyncIterator[KafkaReader]:
        reader = KafkaReader(self._settings, check_positions(positions, self.partitions))
        try:
            yield reader
        finally:
            await reader.close()

    async def ends(self) -> dict[int, tuple[int, int]]:
        async with self._query("ends") as consumer:
            oldest = await consumer.beginning_offsets(self._tps)
            following = await consumer.end_offsets(self._tps)
        return {tp.partition: (oldest[tp], following[tp]) for tp in self._tps}

    async def offsets_at(self, time_seconds: float) -> dict[int, int]:
        check_time(time_seconds)
        # Kafka counts whole milliseconds. Round up, but ignore the rounding error of the product.
        wanted = math.ceil(round(time_seconds * 1000, 3))
        async with self._query("offsets by time") as consumer:
            # Read the ends first: an event that is appended in between is found by its time, or comes after them.
            following = await consumer.end_offsets(self._tps)
            found = await consumer.offsets_for_times(dict.fromkeys(self._tps, wanted))
        return {tp.partition: following[tp] if (first := found[tp]) is None else int(first.offset) for tp in self._tps}

    async def close(self) -> None:
        self._closed = True
        for client in (self._producer, self._query_consumer):
            if client is not None:
                self._retire(client)
        self._producer = self._query_consumer = None
        if self._retiring:
            _, late = await asyncio.wait(self._retiring, timeout=_STOP_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=_STOP_SECONDS)

    @property
    def _tps(self) -> list[TopicPartition]:
        return [TopicPartition(self._settings.topic, number) for number in range(self.partitions)]

    @asynccontextmanager
    async def _query(self, what: str) -> AsyncIterator[Any]:
        """The consumer for queries. Raises LogUnavailable if a query fails."""
        try:
            async with asyncio.timeout(self._settings.append_timeout_seconds), self._query_lock:
                yield await self._get_query_consumer()
        except (KafkaError, OSError, TimeoutError) as error:
            if self._query_consumer is not None:
                inquirer, self._query_consumer = self._query_consumer, None
                self._retire(inquirer)
            raise self._unavailable(what, error) from error

    async def _send(self, producer: Any, placed: list[tuple[int, Event]]) -> None:
        sent: list[asyncio.Future[Any]] = []
        for number, event in placed:
            future = await producer.send(
                self._settings.topic, event.value, event.key.encode(), number, headers=list(event.headers)
            )
            future.add_done_callback(_retrieve_exception)
            sent.append(future)
        await asyncio.wait(sent)
        for future in sent:
            future.result()

    async def _get_producer(self) -> Any:
        async with self._producer_lock:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **self._settings.client(),
                    acks="all",
                    enable_idempotence=False,
                    # An append has all its events: they are in batches before the first request.
                    linger_ms=0,
                    max_batch_size=_BATCH_BYTES,
                    max_request_size=_MAX_REQUEST_BYTES,
                )
                self._producer = await self._start(producer)
            return self._producer

    async def _get_query_consumer(self) -> Any:
        if self._query_consumer is None:
            consumer = AIOKafkaConsumer(**self._settings.client(), enable_auto_commit=False, auto_offset_reset="none")
            self._query_consumer = await self._start(consumer)
        return self._query_consumer

    async def _start(self, client: Any) -> Any:
        try:
            if len(self._retiring) >= _MAX_RETIRING:
                raise LogUnavailable(f"{len(self._retiring)} earlier clients of the broker have not ended yet")
            await client.start()
            if self._closed:
                raise LogUnavailable("the log is closed")
        except BaseException:
            self._retire(client)
            raise
        return client

    def _retire(self, client: Any) -> None:
        """Stop `client` in a task. It must not be used any more."""
        # A producer's batches expire after the request timeout; it can end once they are gone.
        task = asyncio.create_task(stop_within(client, 4 * self._settings.request_timeout_seconds))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _unavailable(self, what: str, error: BaseException) -> LogUnavailable:
        settings = self._settings
        return LogUnavailable(f"{what} on {settings.topic} at {settings.bootstrap}: {error!r}")


def _retrieve_exception(future: "asyncio.Future[Any]") -> None:
    """Mark the exception as retrieved: the task that waited for it may be gone."""
    if not future.cancelled():
        future.exception()
