"""Whether two stores hold the same while other clients go on writing.

A store is never without changes under way then, so nothing waits for stillness. A change has arrived when it is in the
log, and both feeds have passed where the log ended then. Two digests differ when no look at both finds them equal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence

import grpc

from libs.eventlog.port import EventLog, LogUnavailable
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.proving.trial.errors import TrialFailed
from libs.proving.trial.stores import Reader

POLL_SECONDS = 0.1
MAX_NAMES = 10_000
"""In one question to a store."""

Digests = dict[int, int]


async def wait_until_arrived(
    readers: Sequence[Reader], log: EventLog, names: Collection[str], timeout_seconds: float
) -> None:
    """Wait until the changes of these records that are committed now are in the log, and at both stores.

    Raises TrialFailed that says what is still under way.
    """
    deadline = time.monotonic() + timeout_seconds
    changes: list[pb.AckChangesRequest.Name] | None = None
    marks: dict[int, int] | None = None
    while True:
        try:
            if changes is None:
                changes = await _changes(readers, names)
            if marks is None and not (waiting := await _unlogged(readers, changes)):
                marks = {part: end for part, (_, end) in (await log.ends()).items()}
            if marks is not None and not (waiting := await _unread(readers, marks)):
                return
        except grpc.aio.AioRpcError as error:
            waiting = [f"a store does not answer: {error.code().name} {error.details()}"]
        except LogUnavailable as error:
            waiting = [f"the log does not answer: {error}"]
        if time.monotonic() > deadline:
            raise TrialFailed(f"not arrived after {timeout_seconds:g} s: {'; '.join(waiting)}")
        await asyncio.sleep(POLL_SECONDS)


async def _changes(readers: Sequence[Reader], names: Collection[str]) -> list[pb.AckChangesRequest.Name]:
    """The last change of each of these records, as each store has it."""
    found = {(held.name, held.version) for reader in readers for held in await reader.export() if held.name in names}
    return [
        pb.AckChangesRequest.Name(key=key, version=record_pb2.Version(term=term, revision=revision))
        for key, (term, revision) in sorted(found)
    ]


async def _unlogged(readers: Sequence[Reader], changes: Sequence[pb.AckChangesRequest.Name]) -> list[str]:
    """Changes of one record get into the log in their order, so its last one tells of all."""
    found = []
    for reader in readers:
        left = 0
        for start in range(0, len(changes), MAX_NAMES):
            request = pb.ListUnloggedRequest(changes=changes[start : start + MAX_NAMES])
            left += len((await reader.ask(reader.stub.ListUnlogged, request)).changes)
        if left:
            found.append(f"store {reader.access.store}: {left} changes in the outbox")
    return found


async def _unread(readers: Sequence[Reader], marks: dict[int, int]) -> list[str]:
    found = []
    for reader in readers:
        feed = (await reader.status()).feed
        behind = sum(max(0, end - feed.next_offsets.get(part, 0)) for part, end in marks.items())
        if behind:
            why = f" ({feed.trouble})" if feed.trouble else ""
            found.append(f"store {reader.access.store}: {behind} events behind{why}")
        if feed.parked_now:
            found.append(f"store {reader.access.store}: {feed.parked_now} parked events")
    return found


async def agreed_digests(readers: Sequence[Reader], timeout_seconds: float) -> list[Digests]:
    """By bucket, of each store. A bucket that is found equal once is equal; one that differs in every look until the
    time is over differs. Raises grpc.aio.AioRpcError."""
    deadline = time.monotonic() + timeout_seconds
    kept: list[Digests] = [await reader.digests() for reader in readers]
    while differing := _differing(kept):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(POLL_SECONDS)
        looks = [await reader.digests() for reader in readers]
        for bucket in differing:
            for digests, look in zip(kept, looks, strict=True):
                digests[bucket] = look.get(bucket, 0)
    return kept


def _differing(digests: Sequence[Digests]) -> list[int]:
    buckets = sorted({bucket for one in digests for bucket in one})
    return [bucket for bucket in buckets if len({one.get(bucket, 0) for one in digests}) > 1]
