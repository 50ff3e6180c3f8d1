"""The CPU time that codes of events cost a router that publishes them, and a store that applies them.

Publishing appends batches to Kafka; applying reads the same events from Kafka into B's store on a file. Both are
measured with and without codes, in alternating rounds of one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from libs.backend.arrivals import Arrivals
from libs.backend.event_auth import EventAuth
from libs.backend.feed import ApplyLoop
from libs.clock import SystemClock
from libs.eventlog.address import LogAddress, open_event_log
from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.codes import Codes
from libs.eventlog.key_ring import KeyRing
from libs.eventlog.port import Event, EventLog
from libs.eventlog.signed import SignedLog
from libs.ownership.model import Record, Store
from libs.ownership.wire import event_of
from libs.sandboxes.operations import SandboxOperations
from services.router.flows.feed.relay import EVENT_TYPE
from services.service_layer.store.embedded import open_store
from tests.bench.measure import Figure
from tests.bench.site import Site, records
from tests.system.store import HeldKeys

RING = KeyRing("bench", {"bench": bytes(range(32))})
BATCH = 500
PARTITIONS = 4


async def measure(site: Site) -> list[Figure]:
    count, rounds = site.pick(4000, 1500), site.pick(5, 3)
    made = records(count, Store.A)
    publish: dict[bool, list[float]] = {False: [], True: []}
    apply: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for signed in (False, True) if number % 2 else (True, False):
            topic = f"kafka://{site.stack.kafka.bootstrap}/codes.{number}.{int(signed)}.{time.time_ns()}"
            address = LogAddress(topic, PARTITIONS, create=True, replication_factor=1, min_insync_replicas=1)
            published, applied = await _round(address, site.directory / f"codes-{number}-{signed}.db", made, signed)
            if number:
                publish[signed].append(published / count * 1e6)
                apply[signed].append(applied / count * 1e6)
    return [
        Figure(name, "µs CPU/event", statistics.median(found[True]), statistics.median(found[False]), "without codes")
        for name, found in (("publish", publish), ("apply", apply))
    ]


async def _round(address: LogAddress, database: Path, made: list[Record], signed: bool) -> tuple[float, float]:
    """CPU seconds of publishing and of applying all records."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(open_event_log(address))
        ports = await stack.enter_async_context(open_store(database, clock))

        async def opened() -> EventLog:
            return log

        auth = EventAuth("off", log.name, ports.feed)
        if signed:
            auth = EventAuth("require", log.name, ports.feed, HeldKeys(RING))
        await auth.begin(log)
        feed = ApplyLoop(ports, opened, clock, Arrivals(ports, SandboxOperations().check_row, None, auth))
        published = await _cpu(lambda: _publish(SignedLog(log, Codes(lambda: RING, log.name)) if signed else log, made))
        applied = await _cpu(lambda: _apply(feed, log, len(made)))
        state = await ports.feed.state()
        if (state.applied, state.unauthenticated) != (len(made), 0):
            raise RuntimeError(f"{state.applied} of {len(made)} events were applied")
    return published, applied


async def _publish(log: EventLog, made: list[Record]) -> None:
    headers = HeaderWriter("A", EVENT_TYPE)
    for start in range(0, len(made), BATCH):
        events = []
        for record in made[start : start + BATCH]:
            row = record.row
            events.append(Event(row.key, event_of(record), headers.write(row.key, row.version, record.made_seconds)))
        await log.append(events)


async def _apply(feed: ApplyLoop, log: EventLog, count: int) -> None:
    positions = dict.fromkeys(range(log.partitions), 0)
    async with log.reader(positions) as reader:
        while sum(positions.values()) < count:
            await feed.read_once(log, reader, positions)


async def _cpu(work: Callable[[], Awaitable[None]]) -> float:
    """CPU seconds of this process, its threads included."""
    before = time.process_time()
    await work()
    return time.process_time() - before
