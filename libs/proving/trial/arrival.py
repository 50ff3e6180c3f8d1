"""Comparison of two stores while other clients continue to write.

The stores always have changes in progress then, so the trial does not wait for a quiet moment. A change has arrived
once it is in the log and both feeds have passed the end that the log had then. Two digests differ if every check finds
them different.
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
"""Maximum number of names in one request to a store."""

Digests = dict[int, int]


async def wait_until_arrived(
    readers: Sequence[Reader], log: EventLog, names: Collection[str], timeout_seconds: float
) -> None:
    """Wait until the currently committed changes of these records are in the log, and at both stores.

    Raises TrialFailed with the changes that are still in progress.
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
    """The last change of a record is enough, since changes of one record enter the log in order."""
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
    """Digests by bucket of each store. A bucket that was found equal once is equal; a bucket that differs in every
    check until the timeout differs. Raises grpc.aio.AioRpcError."""
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
