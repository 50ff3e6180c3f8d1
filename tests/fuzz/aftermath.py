"""Checks after a fuzz: processes run and are small, no defect was logged, and records, feed and owners are right."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.ownership.model import bucket_of
from libs.pb.baton.control.v1 import control_pb2
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.pb.baton.replication.v1 import replication_pb2
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.proving.trial.stores import PAGE_RECORDS, Held, Reader, held_of, open_readers
from libs.proving.trial.world import World
from libs.rpc import metadata
from libs.rpc.channel import open_channel
from tests.fuzz.words import FIRST_BUCKET
from tests.waiting import eventually

if TYPE_CHECKING:
    from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceAsyncStub

MOST_BYTES = 300 * 2**20
"""Highest resident memory of one process. A fresh one has about 90 MB."""
SETTLE_SECONDS = 120.0
_PROBED = "sandboxes/baton-probe-"
_CALL_SECONDS = 10.0
_UNDER_WAY = (control_pb2.Job.STATE_QUEUED, control_pb2.Job.STATE_RUNNING, control_pb2.Job.STATE_PAUSED,
              control_pb2.Job.STATE_FAILED)  # fmt: skip
_DEFECTS = re.compile(r"by a defect|Unexpected \[|a part of the process failed|never retrieved|never awaited")
_TRACE, _CALLER_LEFT = "Traceback", "ExecuteBatchError raised in core"
"""gRPC logs a stack trace if a caller leaves while it gets the answer."""


def peak_bytes(world: World, name: str) -> int:
    """The highest resident memory of a process since its start."""
    pid = world.nodes[name].process.pid
    assert pid is not None, f"{name} runs"
    (line,) = re.findall(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(line) * 1024


def defects(world: World) -> list[str]:
    """Lines of the logs that report a defect."""
    found = []
    for name, node in world.nodes.items():
        lines = Path(node.process.command.log).read_text().splitlines()
        found += [f"{name}: {line}" for line in lines if _DEFECTS.search(line)]
        found += [
            f"{name}: {before}"
            for before, line in pairwise(lines)
            if line.startswith(_TRACE) and _CALLER_LEFT not in before
        ]
    return found


async def check(world: World, names: Iterable[str]) -> None:
    """``names``: records that a successful call, or one of unknown outcome, may have made. Raises AssertionError."""
    world.check()
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(open_channel(node.public)) for name, node in world.nodes.items()
        }
        for name, channel in channels.items():
            stub: Any = health_pb2_grpc.HealthStub(channel.grpc)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, f"{name} does not serve"
        await _settle(world)
        readers = await stack.enter_async_context(open_readers(world.stores))
        await _check_records(readers, {f"sandboxes/{name}" for name in names})
        stubs: dict[str, SandboxServiceAsyncStub] = {
            name: SandboxServiceStub(channel.grpc) for name, channel in channels.items()
        }
        await _check_lists(stubs["router-1"], readers)
        await _check_write(stubs, readers)
    sizes = {name: peak_bytes(world, name) for name in world.names}
    assert all(size < MOST_BYTES for size in sizes.values()), sizes
    assert not defects(world), "\n".join(defects(world)[:20])


async def _settle(world: World) -> None:
    """Cancel all jobs, go back to OFF, and wait until every bucket is at A and both feeds are at the log's end."""
    token = grpc.aio.Metadata((metadata.TOKEN, world.token))
    async with open_channel(world.controls[0]) as channel:
        control: Any = ControlServiceStub(channel.grpc)

        async def ask(method: Any, request: Any) -> Any:
            return await method(request, timeout=_CALL_SECONDS, metadata=token)

        for job in (await ask(control.ListJobs, control_pb2.ListJobsRequest())).jobs:
            if job.state in _UNDER_WAY:
                request = control_pb2.ChangeJobRequest(
                    actor="fuzz", reason="end", id=job.id, action=control_pb2.ChangeJobRequest.ACTION_CANCEL
                )
                with suppress(grpc.aio.AioRpcError):
                    # It may have ended meanwhile.
                    await ask(control.ChangeJob, request)
        off = control_pb2.RollbackPhaseRequest(actor="fuzz", reason="end", to=control_pb2.PHASE_OFF)
        with suppress(grpc.aio.AioRpcError):
            # The phase may be OFF already.
            await ask(control.RollbackPhase, off)

        async def settled() -> bool:
            status = await ask(control.GetStatus, control_pb2.GetStatusRequest())
            assert status.setting.phase == control_pb2.PHASE_OFF
            for store in status.stores:
                assert store.serving and not store.outbox_entries and not store.lag_events, store
            return True

        await eventually(settled, SETTLE_SECONDS, "the system settles")


async def _check_records(readers: Sequence[Reader], names: set[str]) -> None:
    """Both stores hold the same records, each with the same owner, and no record that only a refused call named.

    Records and buckets that cases to internal listeners have used are left out: a store obeys its router.
    """

    async def same() -> list[Held]:
        at_a, at_b = [await _export(reader) for reader in readers]
        assert at_a == at_b
        return at_a

    for held in await eventually(same, SETTLE_SECONDS, "both stores hold the same"):
        # A probe's write deletes a name that never existed: it leaves a row, and no record.
        probed = held.name.startswith(_PROBED) and not held.live
        assert held.name in names or probed, f"{held.name}: no successful call made this record"
        assert held.owner in ("A", "B"), f"{held.name} has no owner"


async def _export(reader: Reader) -> list[Held]:
    """All records, in key order, without those of cases to internal listeners."""
    found: list[Held] = []
    after, more = "", True
    while more:
        request = replication_pb2.ExportRecordsRequest(after=after, limit=PAGE_RECORDS)
        page = await reader.ask(reader.stub.ExportRecords, request)
        found += [held_of(record) for record in page.records if bucket_of(record.key) < FIRST_BUCKET]
        more = page.more
        after = page.records[-1].key if page.records else after
    return found


async def _check_lists(client: SandboxServiceAsyncStub, readers: Sequence[Reader]) -> None:
    """The router lists each record once, in order."""
    listed: list[str] = []
    token = ""
    while True:
        request = pb.ListSandboxesRequest(page_size=500, page_token=token, show_deleted=True)
        page = await client.ListSandboxes(request, timeout=_CALL_SECONDS)
        listed += [sandbox.name for sandbox in page.sandboxes]
        token = page.next_page_token
        if not token:
            break
    held = [one.name for one in await _export(readers[0]) if one.value is not None]
    assert listed == sorted(set(listed))
    assert set(held) <= set(listed)


async def _check_write(clients: dict[str, SandboxServiceAsyncStub], readers: Sequence[Reader]) -> None:
    """Each endpoint writes a record, and both stores come to hold it."""
    for name, client in clients.items():
        made_id = next(one for one in (f"after-{uuid4()}" for _ in range(999)) if bucket_of(f"sandboxes/{one}") < 900)
        sandbox = sandbox_pb2.Sandbox(account="acme", spec=sandbox_pb2.SandboxSpec(image="image:1"))
        request = pb.CreateSandboxRequest(sandbox_id=made_id, sandbox=sandbox, request_id=str(uuid4()))
        made = await client.CreateSandbox(request, timeout=_CALL_SECONDS)
        assert (await client.GetSandbox(pb.GetSandboxRequest(name=made.name), timeout=_CALL_SECONDS)).uid == made.uid

        async def both(wanted: str = made.name) -> bool:
            found = await asyncio.gather(*map(_export, readers))
            return all(any(held.name == wanted for held in store) for store in found)

        assert await eventually(both, SETTLE_SECONDS, f"both stores hold what was written at {name}")
