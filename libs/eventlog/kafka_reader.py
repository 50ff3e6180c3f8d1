"""Reader of the Kafka log: a consumer without a group, replaced if the broker is silent."""

import asyncio
import time
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from libs.eventlog.kafka_client import stop_within, watch_metadata
from libs.eventlog.kafka_records import install
from libs.eventlog.kafka_topic import KafkaSettings
from libs.eventlog.port import POLL_BYTES, Event, LogUnavailable, OffsetGone, Stored, check_poll

_FETCH_WAIT_SECONDS = 0.5
_SLICE_SECONDS = 1.0
_STOP_SECONDS = 2.0
_RETRY_SECONDS = 0.1
_PARTITION_BYTES = 1024 * 1024
_PAUSED_SECONDS = 5.0

install()


class KafkaReader:
    """A `LogReader` of a topic. The first poll makes the consumer; after an error a new one is made."""

    def __init__(self, settings: KafkaSettings, positions: dict[int, int]) -> None:
        self._settings = settings
        self._positions = {TopicPartition(settings.topic, number): at for number, at in positions.items()}
        self._consumer: Any = None
        self._heard = 0
        self._heard_at = 0.0
        self._closed = False
        self._epoch = 0
        self._polled_at = 0.0

    @property
    def epoch(self) -> int:
        return self._epoch

    def _changed(self, *_: object) -> None:
        self._epoch += 1

    async def poll(self, limit: int, wait_seconds: float) -> list[Stored]:
        check_poll(limit, wait_seconds)
        now = time.monotonic()
        deadline = now + wait_seconds
        if now - self._polled_at > _PAUSED_SECONDS:
            # The process or its event loop was paused: the topic may have been recreated meanwhile.
            self._changed()
        self._polled_at = deadline
        while True:
            try:
                return await self._poll(limit, deadline)
            except OffsetOutOfRangeError as error:
                raise await self._offset_gone(error) from error
            except (KafkaError, OSError, TimeoutError) as error:
                await self._drop_consumer()
                if time.monotonic() + _RETRY_SECONDS >= deadline:
                    settings = self._settings
                    raise LogUnavailable(f"read {settings.topic} at {settings.bootstrap}: {error!r}") from error
                await asyncio.sleep(_RETRY_SECONDS)

    async def close(self) -> None:
        self._closed = True
        await self._drop_consumer()

    async def _poll(self, limit: int, deadline: float) -> list[Stored]:
        consumer = await self._get_consumer()
        while True:
            wait = min(max(deadline - time.monotonic(), 0.0), _SLICE_SECONDS)
            batches = await consumer.getmany(timeout_ms=round(wait * 1000), max_records=limit)
            found = []
            for tp, records in batches.items():
                found += [_stored(record) for record in records]
                self._positions[tp] = records[-1].offset + 1
            if found:
                self._heard_at = time.monotonic()
                return found
            self._check_heard(consumer)
            if time.monotonic() >= deadline:
                return []

    def _check_heard(self, consumer: Any) -> None:
        """Raise TimeoutError if the broker has been silent for longer than the request timeout.

        A live broker answers a fetch for each partition within half a second, with or without events. The consumer
        itself does not report a lost broker, nor that its own fetching has stopped.
        """
        heard = min(consumer.last_poll_timestamp(tp) or 0 for tp in self._positions)
        now = time.monotonic()
        if heard != self._heard:
            self._heard, self._heard_at = heard, now
        elif now - self._heard_at > self._settings.request_timeout_seconds:
            raise TimeoutError(f"the broker has been silent for {now - self._heard_at:.1f} s")

    async def _get_consumer(self) -> Any:
        if self._closed:
            raise LogUnavailable("the reader is closed")
        if self._consumer is None:
            settings = self._settings
            consumer = AIOKafkaConsumer(
                **settings.client(),
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="none",
                fetch_max_wait_ms=round(_FETCH_WAIT_SECONDS * 1000),
                fetch_max_bytes=POLL_BYTES,
                max_partition_fetch_bytes=_PARTITION_BYTES,
            )
            try:
                async with asyncio.timeout(settings.request_timeout_seconds):
                    await consumer.start()
            except BaseException:
                await stop_within(consumer, _STOP_SECONDS)
                raise
            consumer.assign(list(self._positions))
            for tp, position in self._positions.items():
                consumer.seek(tp, position)
            self._heard, self._heard_at = 0, time.monotonic()
            self._changed()
            watch_metadata(consumer, self._changed)
            self._consumer = consumer
        return self._consumer

    async def _drop_consumer(self) -> None:
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            await stop_within(consumer, _STOP_SECONDS)

    async def _offset_gone(self, error: OffsetOutOfRangeError) -> OffsetGone | LogUnavailable:
        ((tp, offset),) = error.args[0].items()
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                oldest = await self._consumer.beginning_offsets([tp])
        except (KafkaError, TimeoutError) as trouble:
            return LogUnavailable(f"oldest offset of {tp.topic}, partition {tp.partition}: {trouble!r}")
        return OffsetGone(tp.partition, offset, oldest[tp])


def _stored(record: ConsumerRecord[bytes, bytes]) -> Stored:
    # Other programs that write to the topic must not stop the reader: the caller sets malformed messages aside.
    key = (record.key or b"").decode(errors="replace")
    headers = tuple([(name, value or b"") for name, value in record.headers])
    return Stored(record.partition, record.offset, Event(key, record.value or b"", headers), record.timestamp / 1000)
