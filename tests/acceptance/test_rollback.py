"""Automatic rollback on real processes with all records at B: once B fails a fifth of its calls, once it is dead."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2 import GetSandboxRequest, UpdateSandboxRequest
from libs.proving.servers.ports import free_port
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from libs.rpc import metadata
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import reason_of
from tests.acceptance.fault_proxy import FaultProxy, fault_proxy
from tests.fixtures.make_old_database import TABLE
from tests.storms import sized
from tests.waiting import eventually

MANY_RECORDS, RECORDS = sized(short=6_000, full=20_000), 4_000
"""The many come home through failing calls. Both are several in each bucket."""
SHORT_WINDOW_SECONDS = 12
WINDOW_SECONDS = sized(short=SHORT_WINDOW_SECONDS, full=30)
"""30 by default."""
WINDOW = sized(short={"rollback_seconds": f"{SHORT_WINDOW_SECONDS}", "rollback_calls": "80"}, full={})
"""Settings of the window. Calls for a dead B are few: the short window needs as many in a second as the default one."""
READS_BACK_SECONDS = 30.0
"""After the share of faults has been too high for the window."""
BOUND_SECONDS = 120.0
REASON = "an acceptance run"
UNANSWERED_SECONDS = 1.0
"""Deadline of calls for a store that is dead: they wait for it for most of this time."""
ANSWERED_SECONDS = 20.0
"""Deadline of calls that are all to be answered, on a busy machine too."""
READERS, WRITERS = 6, 2
PAUSE_SECONDS = sized(short=0.06, full=0.02)

_SERVICE = "/sandbox.v1.SandboxService"
_EXPLAIN = grpc.aio.Metadata((metadata.EXPLAIN, "1"))


def old_database(path: Path, records: int) -> Path:
    row = ("acme", "RUNNING", "debian:12-slim", '["true"]', "{}", 1.0, 512, 60, "{}", 1.4e9, 1.4e9)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(TABLE)
        rows = [(f"r-{number:05d}", *row) for number in range(records)]
        connection.executemany(f"INSERT INTO sandboxes VALUES ({', '.join('?' * 12)})", rows)
    return path


@dataclass
class Call:
    """One call of a client."""

    ended: float
    ok: bool
    store: str = ""
    stale: bool = False
    reason: str = ""


@dataclass
class Clients:
    """Clients that read and write records of the old database continuously, and record the results."""

    channel: Channel
    records: int
    call_seconds: float = ANSWERED_SECONDS
    reads: list[Call] = field(default_factory=list)
    writes: list[Call] = field(default_factory=list)
    acknowledged: dict[str, int] = field(default_factory=dict)
    """Highest acknowledged revision by name."""

    async def read(self, name: str) -> Sandbox:
        request = GetSandboxRequest(name=name).SerializeToString()
        call = self.channel.multi_callable(f"{_SERVICE}/GetSandbox")(
            request, timeout=self.call_seconds, metadata=_EXPLAIN
        )
        answer = Sandbox.FromString(await call)
        told = dict(await call.trailing_metadata() or ())
        stale = metadata.STALE in told
        self.reads.append(Call(time.monotonic(), True, str(told.get(metadata.STORE, "")), stale))
        return answer

    async def write(self, name: str, seconds: float = 0.0) -> Sandbox:
        """`seconds`: deadline instead of `call_seconds`."""
        sandbox = Sandbox(name=name, annotations={"value": str(uuid4())})
        mask = FieldMask(paths=["annotations"])
        request = UpdateSandboxRequest(sandbox=sandbox, update_mask=mask, request_id=str(uuid4()))
        call = self.channel.multi_callable(f"{_SERVICE}/UpdateSandbox")
        answer = Sandbox.FromString(await call(request.SerializeToString(), timeout=seconds or self.call_seconds))
        self.acknowledged[name] = max(self.acknowledged.get(name, 0), answer.revision)
        return answer

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._go_on(self.read, self.reads, seed)) for seed in range(READERS)]
        tasks += [asyncio.create_task(self._go_on(self._write, self.writes, seed)) for seed in range(WRITERS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        failures = [task.exception() for task in tasks if not task.cancelled()]
        assert failures == [], "a client ended by itself"

    async def _write(self, name: str) -> None:
        await self.write(name)
        self.writes.append(Call(time.monotonic(), True))

    async def _go_on(self, do: Callable[[str], object], calls: list[Call], seed: int) -> None:
        chance = random.Random(seed)
        while True:
            name = f"sandboxes/r-{chance.randrange(self.records):05d}"
            try:
                await do(name)  # type: ignore[misc]
            except grpc.aio.AioRpcError as error:
                reason = reason_of(error)[0] or error.code().name
                calls.append(Call(time.monotonic(), False, reason=reason))
            await asyncio.sleep(PAUSE_SECONDS)

    def reads_back_at(self, since: float) -> float:
        """From when on every read was answered by A; infinite when the last one was not."""
        after = [call for call in self.reads if call.ended >= since]
        bad = [call.ended for call in after if not (call.ok and call.store == "A")]
        if not bad:
            return since
        return min((call.ended for call in after if call.ended > bad[-1]), default=float("inf"))


@dataclass
class Rollback:
    """A world whose records are all at B, under load."""

    world: World
    walk: Walk
    clients: Clients
    proxy: FaultProxy

    async def held(self) -> pb.GetStatusResponse | None:
        status = await self.walk.status()
        return status if status.setting.hold else None

    async def reads_are_back(self, since: float) -> bool:
        """A hundred in a row, all answered by A."""
        last = [call for call in self.clients.reads if call.ended >= since][-100:]
        return len(last) == 100 and all(call.ok and call.store == "A" for call in last)

    async def all_home(self) -> pb.GetStatusResponse | None:
        status = await self.walk.status()
        return status if status.settled and status.buckets_at_b == 0 and status.stores[1].owned_records == 0 else None

    async def nothing_acknowledged_is_lost(self) -> None:
        for name, revision in list(self.clients.acknowledged.items()):
            assert (await self.clients.read(name)).revision >= revision, name


@asynccontextmanager
async def all_at_b(directory: Path, records: int, **settings: str) -> AsyncIterator[Rollback]:
    """CUTOVER, all records at B, clients on one router; B is behind a proxy that as yet does no harm."""
    address = f"127.0.0.1:{free_port()}"
    size = Size(router_settings=({"store_b": address, **settings},))
    world = World.embedded(directory, old_database(directory / "old.db", records), size)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(fault_proxy(address, world.nodes["b-1"].private))
        await stack.enter_async_context(world.running())
        walk = await stack.enter_async_context(Walk.open(world.controls, "acceptance", world.token))
        walk.patience_seconds = BOUND_SECONDS
        walk.counts_records = False
        await walk.backfill()
        for step in ("SHADOW", "DUAL_WRITE", "DUAL_READ", "CUTOVER"):
            await walk.advance(REASON)
            assert phase_of(await walk.status()) == step

        async def all_moved() -> bool:
            return (await walk.status()).stores[1].owned_records == records

        await eventually(all_moved, BOUND_SECONDS)
        told(directory, "moved to B", **{move.after.replace(" ", "_"): move.seconds for move in walk.moves})
        clients = Clients(await stack.enter_async_context(open_channel(world.routers[0])), records)
        async with clients.busy():
            await eventually(lambda: len(clients.writes) > 50 and len(clients.reads) > 200, BOUND_SECONDS)
            assert all(call.ok and call.store == "B" for call in clients.reads), "all is well at first"
            yield Rollback(world, walk, clients, proxy)


def phase_of(status: pb.GetStatusResponse) -> str:
    return pb.Phase.Name(status.setting.phase).removeprefix("PHASE_")


def told(directory: Path, name: str, **seconds: float) -> None:
    """Print the measured times."""
    line = {key: round(value, 2) for key, value in seconds.items()}
    print(f"{name}: {json.dumps(line)}")
    (directory / "measured.json").write_text(json.dumps(line))


async def journaled(walk: Walk) -> pb.JournalEntry:
    (entry,) = [entry for entry in (await walk.journal()).entries if entry.action == "automatic rollback"]
    return entry


async def test_a_b_that_fails_a_fifth_of_its_calls_is_left_and_its_records_come_home(tmp_path: Path) -> None:
    async with all_at_b(tmp_path, MANY_RECORDS, rollback_seconds=str(SHORT_WINDOW_SECONDS)) as run:
        began = time.monotonic()
        run.proxy.share = 0.2
        status = await eventually(run.held, SHORT_WINDOW_SECONDS + BOUND_SECONDS, "traffic is held at A")
        held = time.monotonic()
        assert status is not None
        assert (phase_of(status), status.setting.canary_permille) == ("DUAL_WRITE", 0)
        home = await eventually(run.all_home, BOUND_SECONDS, "every record is at A again")
        came_home = time.monotonic()
        assert home is not None and home.rollback_cost.writes_lost == 0
        await eventually(lambda: run.reads_are_back(came_home), BOUND_SECONDS)
        written = len(run.clients.writes)
        await eventually(lambda: len(run.clients.writes) >= written + 50, BOUND_SECONDS)
        assert all(call.ok for call in run.clients.writes[written + 2 :]), "writes are back too, while B still fails"
        entry = await journaled(run.walk)
        assert (entry.actor, entry.before.phase) == ("baton", pb.PHASE_CUTOVER)
        assert "server faults" in entry.reason and home.last_automatic.reason == entry.reason
        back = run.clients.reads_back_at(held)
        unanswered = [call for call in run.clients.reads if call.ended > held and not call.ok]
        assert unanswered == [], "a read of a failing owner is answered from the replica"
        told(tmp_path, "B fails 20 %", held=held - began, reads_at_a=back - began, home=came_home - began)
        assert held - began < SHORT_WINDOW_SECONDS + READS_BACK_SECONDS
        await run.nothing_acknowledged_is_lost()


async def test_a_dead_b_is_left_and_its_records_come_home_when_it_is_back(tmp_path: Path) -> None:
    async with all_at_b(tmp_path, RECORDS, **WINDOW) as run:
        run.clients.call_seconds = UNANSWERED_SECONDS
        began = time.monotonic()
        await run.world.kill("b-1")
        status = await eventually(run.held, WINDOW_SECONDS + BOUND_SECONDS, "traffic is held at A")
        held = time.monotonic()
        assert status is not None and phase_of(status) == "DUAL_WRITE"
        await eventually(lambda: run.reads_are_back(held), BOUND_SECONDS, "reads are answered from A")
        back = run.clients.reads_back_at(held)
        assert run.clients.reads[-1].stale, "A says that it may be behind"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await run.clients.write("sandboxes/r-00001", ANSWERED_SECONDS)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await run.walk.status()).stores[1].reachable is False
        again = time.monotonic()
        await run.world.start("b-1")
        await eventually(run.all_home, BOUND_SECONDS, "every record is at A again")
        run.clients.call_seconds = ANSWERED_SECONDS
        came_home = time.monotonic()
        written = len(run.clients.writes)
        await eventually(lambda: len(run.clients.writes) >= written + 50, BOUND_SECONDS)
        assert all(call.ok for call in run.clients.writes[written + 2 :])
        told(tmp_path, "B dead", held=held - began, reads_at_a=back - began, home_after_its_start=came_home - again)
        assert back - began < WINDOW_SECONDS + READS_BACK_SECONDS
        await run.nothing_acknowledged_is_lost()
