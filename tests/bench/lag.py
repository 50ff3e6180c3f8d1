"""The time from a change at A to its row at B, while clients write at half of their maximum rate.

The time starts when A stamps the record and ends when B's replication API shows the version. The bench asks B every few
milliseconds for the sampled changes that it lacks. The baseline is a bare producer and consumer that send the same
number of bytes through the same broker at the same rate.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.proving.trial.requests import revision_of
from libs.proving.trial.stores import Reader, open_readers
from libs.rpc.channel import RawCallable
from tests.bench.calls import UPDATE, path_of, run_calls, update_request
from tests.bench.measure import Figure, Round, Target, alternate
from tests.bench.site import CALL_SECONDS, PAYLOAD_BYTES, Site

TARGET = Target(250.0)
IN_FLIGHT = 32
NAMES = 400
SAMPLE = 4
"""One of this many changes is followed."""
POLL_SECONDS = 0.004
LATE_SECONDS = 20.0
PARTITIONS = 16
_TIME = struct.Struct("<d")


@dataclass(slots=True)
class _Followed:
    """The sampled changes."""

    waiting: dict[str, tuple[tuple[int, int], float]] = field(default_factory=dict)
    """Version and time of each change that B lacks, by key."""
    milliseconds: list[float] = field(default_factory=list)
    """Lag of each change that B has."""


async def measure(site: Site) -> list[Figure]:
    world = await site.world()
    call = (await site.channel(world.routers[0])).multi_callable(path_of(UPDATE))
    top = await _top_rate(call, site.pick(2000, 1000))
    rate = top / 2
    seconds = site.pick(5, 3)
    async with open_readers(world.stores) as (_, new), _bare(site.stack.kafka.bootstrap) as bare:
        contenders: dict[str, Callable[[int], Awaitable[Round]]] = {
            "system": partial(_through_system, call, new, rate, seconds),
            "bare": partial(bare.run, rate, seconds),
        }
        found = await alternate(site.pick(4, 2), contenders)
    system, kafka = found["system"], found["bare"]
    broker = "bare aiokafka"
    return [
        Figure("maximum rate of writes through the router", "writes/s", top, rate, "half"),
        Figure("lag A to B: p50", "ms", system.p50, kafka.p50, broker),
        Figure("lag A to B: p99", "ms", system.p99, kafka.p99, broker, TARGET),
    ]


async def _top_rate(call: RawCallable, count: int) -> float:
    began = time.perf_counter()
    await run_calls(call, [update_request(number % NAMES) for number in range(count)], IN_FLIGHT)
    return count / (time.perf_counter() - began)


async def at_rate(rate: float, seconds: float, do: Callable[[int], Awaitable[None]]) -> None:
    """Start `rate` calls per second, even if earlier ones have not ended, with at most IN_FLIGHT at a time."""
    count = int(rate * seconds)
    began = time.perf_counter()
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0.0))
            await do(number)

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))


async def _through_system(call: RawCallable, new: Reader, rate: float, seconds: float, _: int) -> Round:
    followed = _Followed()

    async def write(number: int) -> None:
        answer = await call(update_request(number % NAMES), timeout=CALL_SECONDS)
        if number % SAMPLE == 0:
            sandbox = Sandbox.FromString(answer)
            version = revision_of(sandbox)
            assert version is not None, "every etag names the version of a write"
            followed.waiting[sandbox.name] = version, sandbox.update_time.ToNanoseconds() / 1e9

    ended = asyncio.Event()
    following = asyncio.create_task(_follow(new, followed, ended))
    began = time.perf_counter()
    try:
        await at_rate(rate, seconds, write)
    finally:
        ended.set()
        await following
    return Round(time.perf_counter() - began, followed.milliseconds)


async def _follow(new: Reader, followed: _Followed, ended: asyncio.Event) -> None:
    """Follow the sampled changes until the load has ended and B has all of them. Raises TimeoutError."""
    late = 0.0
    while followed.waiting or not ended.is_set():
        if ended.is_set():
            late = late or time.monotonic() + LATE_SECONDS
            if time.monotonic() > late:
                raise TimeoutError(f"B lacks {len(followed.waiting)} changes {LATE_SECONDS:g} s after the last write")
        if followed.waiting:
            asked = dict(followed.waiting)
            answer = await new.ask(new.stub.ReadRecords, pb.ReadRecordsRequest(keys=list(asked)))
            now = time.time()
            for row in answer.rows:
                version, made = asked[row.key]
                if (row.record.version.term, row.record.version.revision) >= version:
                    followed.milliseconds.append((now - made) * 1000)
                    if followed.waiting[row.key][0] == version:
                        del followed.waiting[row.key]
        await asyncio.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class _Bare:
    """A producer with the settings of the event log, and a consumer of the same topic."""

    topic: str
    producer: AIOKafkaProducer
    consumer: AIOKafkaConsumer

    async def run(self, rate: float, seconds: float, _: int) -> Round:
        milliseconds: list[float] = []
        count = int(rate * seconds)
        padding = b"x" * (2 * PAYLOAD_BYTES - _TIME.size)
        """Padding to the approximate size of an event: payload, envelope and headers."""

        async def send(number: int) -> None:
            await self.producer.send(
                self.topic, _TIME.pack(time.perf_counter()) + padding, partition=number % PARTITIONS
            )

        async def receive() -> None:
            while len(milliseconds) < count:
                for messages in (await self.consumer.getmany(timeout_ms=500)).values():
                    now = time.perf_counter()
                    milliseconds.extend((now - _TIME.unpack_from(message.value)[0]) * 1000 for message in messages)

        began = time.perf_counter()
        async with asyncio.timeout(seconds + LATE_SECONDS):
            await asyncio.gather(at_rate(rate, seconds, send), receive())
        return Round(time.perf_counter() - began, milliseconds)


@asynccontextmanager
async def _bare(bootstrap: str) -> AsyncIterator[_Bare]:
    topic = f"bench.{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    finally:
        await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=2, max_batch_size=64 * 1024)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    await producer.start()
    try:
        for partition in range(PARTITIONS):
            # A new partition has a leader once it accepts a message.
            await producer.send_and_wait(topic, b"", partition=partition)
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
            consumer.assign(partitions)
            await consumer.seek_to_end(*partitions)
            yield _Bare(topic, producer, consumer)
        finally:
            await consumer.stop()
    finally:
        await producer.stop()
