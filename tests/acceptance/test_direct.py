"""Direct traffic on real processes: B fails or becomes slow while no call comes through a router, and is left."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from libs.ownership.model import bucket_of
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2 import GetSandboxRequest, UpdateSandboxRequest
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from libs.rpc import metadata
from libs.rpc.channel import Channel, open_channel
from libs.sandboxes.schema import METADATA
from tests.acceptance.test_rollback import BOUND_SECONDS, READS_BACK_SECONDS, REASON, journaled, old_database, phase_of
from tests.storms import sized
from tests.waiting import eventually

RECORDS = 400
WINDOW_SECONDS = sized(short=12, full=30)
DEADLINE_SECONDS = 1.5
"""Long enough for a call that passes it to count against the store."""
WRITERS, READERS = 12, 1
PAUSE_SECONDS = 0.05
BLOCKED_SECONDS, FREE_SECONDS = 1.7, 0.2
"""The first is longer than a deadline, so calls fail. Both together are shorter than a sixth of the window, and each of
these parts must have faults."""

_SERVICE = "/sandbox.v1.SandboxService"
B = 1


class DirectClients:
    """Clients with old routes, or none: all calls go to B, at all times."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.answered = self.failed = 0
        self.acknowledged: dict[str, int] = {}
        """Highest acknowledged revision by name."""

    async def call(self, method: str, name: str, message: GetSandboxRequest | UpdateSandboxRequest) -> Sandbox:
        sent = grpc.aio.Metadata((metadata.BUCKET, str(bucket_of(name))), (METADATA, "2"))
        call = self._channel.multi_callable(f"{_SERVICE}/{method}")
        return Sandbox.FromString(await call(message.SerializeToString(), timeout=DEADLINE_SECONDS, metadata=sent))

    async def read(self, name: str) -> Sandbox:
        return await self.call("GetSandbox", name, GetSandboxRequest(name=name))

    async def write(self, name: str) -> None:
        sandbox = Sandbox(name=name, annotations={"value": str(uuid4())})
        mask = FieldMask(paths=["annotations"])
        message = UpdateSandboxRequest(sandbox=sandbox, update_mask=mask, request_id=str(uuid4()))
        answer = await self.call("UpdateSandbox", name, message)
        self.acknowledged[name] = max(self.acknowledged.get(name, 0), answer.revision)

    async def _go_on(self, work: Callable[[str], object], seed: int) -> None:
        number = seed
        while True:
            number = (number + 37) % RECORDS
            try:
                await work(f"sandboxes/r-{number:05d}")  # type: ignore[misc]
                self.answered += 1
            except grpc.aio.AioRpcError:
                self.failed += 1
            await asyncio.sleep(PAUSE_SECONDS)

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._go_on(self.write, seed)) for seed in range(WRITERS)]
        tasks += [asyncio.create_task(self._go_on(self.read, seed)) for seed in range(READERS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert [task.exception() for task in tasks if not task.cancelled()] == []


@contextmanager
def failing(database: Path) -> Iterator[None]:
    """A third of B's changes fail in the middle of their transaction."""
    with closing(sqlite3.connect(database, timeout=20.0)) as connection:
        connection.execute(
            "CREATE TRIGGER broken AFTER UPDATE ON record WHEN abs(random()) % 3 = 0"
            " BEGIN SELECT RAISE(ABORT, 'the disk is broken'); END"
        )
        connection.commit()
        yield
        connection.execute("DROP TRIGGER broken")
        connection.commit()


@contextmanager
def slow(database: Path) -> Iterator[None]:
    """Another program holds B's database most of the time."""
    ended = threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(database, timeout=20.0, isolation_level=None)) as connection:
            while not ended.is_set():
                connection.execute("BEGIN IMMEDIATE")
                ended.wait(BLOCKED_SECONDS)
                connection.execute("ROLLBACK")
                ended.wait(FREE_SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("harmed", [failing, slow])
async def test_a_b_that_serves_direct_calls_alone_is_left_when_it_fails_or_becomes_slow(
    harmed: Callable[[Path], object], tmp_path: Path
) -> None:
    settings = {"rollback_seconds": str(WINDOW_SECONDS), "rollback_calls": "60", "xds_sample_permille": "0"}
    size = Size(routers=2, xds=True, router_settings=(settings, settings))
    world = World.embedded(tmp_path, old_database(tmp_path / "old.db", RECORDS), size)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.running())
        walk = await stack.enter_async_context(Walk.open(world.controls, "acceptance", world.token))
        walk.patience_seconds = BOUND_SECONDS
        walk.counts_records = False
        await walk.backfill()
        for _ in ("SHADOW", "DUAL_WRITE", "DUAL_READ", "CUTOVER"):
            await walk.advance(REASON)

        async def all_moved() -> bool:
            status = await walk.status()
            return status.settled and status.stores[B].owned_records == RECORDS

        await eventually(all_moved, BOUND_SECONDS)
        clients = DirectClients(await stack.enter_async_context(open_channel(world.nodes["b-1"].public)))
        async with clients.busy():

            async def all_direct() -> bool:
                measured = (await walk.status()).measured[B]
                return clients.answered > 200 and measured.direct_calls_per_second > 5

            await eventually(all_direct, BOUND_SECONDS, "the status shows B's direct calls")
            measured = (await walk.status()).measured[B]
            # The routers' own calls to B are few: those of the backfill's end and of the ledger.
            assert measured.direct_calls_per_second > 0.9 * measured.calls_per_second
            assert clients.failed < clients.answered / 20, "all is well at first"

            async def held() -> pb.GetStatusResponse | None:
                status = await walk.status()
                return status if status.setting.hold else None

            began = time.monotonic()
            with harmed(tmp_path / "b.db"):  # type: ignore[attr-defined]
                status = await eventually(held, WINDOW_SECONDS + BOUND_SECONDS, "traffic is held at A")
                seconds = time.monotonic() - began
            assert status is not None and phase_of(status) == "DUAL_WRITE"
            assert clients.failed > 20
            assert seconds < WINDOW_SECONDS + READS_BACK_SECONDS
            assert "server faults" in (await journaled(walk)).reason

            async def all_home() -> bool:
                status = await walk.status()
                return status.settled and status.stores[B].owned_records == 0

            await eventually(all_home, BOUND_SECONDS, "every record is at A again")
            failed, answered = clients.failed, clients.answered
            await eventually(lambda: clients.answered > answered + 100, BOUND_SECONDS, "B passes the calls on")
            assert clients.failed <= failed + WRITERS + READERS + 20, "those in flight, and some on a busy machine"
            assert (await walk.status()).stores[B].passed_on > 0
        for name, revision in clients.acknowledged.items():
            assert (await clients.read(name)).revision >= revision, name
