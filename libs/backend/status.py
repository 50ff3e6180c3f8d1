"""Parts of a store's status message."""

from __future__ import annotations

from collections.abc import Sequence

from libs.locks.measured import MeasuredLocks
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.store.aside import Aside
from libs.store.connections import PoolState
from libs.store.port import FeedState


def locks_to_pb(process: str, locks: MeasuredLocks) -> pb.Locks:
    state = locks.state
    return pb.Locks(
        process=process,
        backend=state.backend,
        held=state.held,
        waiting=locks.waiting,
        lost=state.lost,
        breaker=state.breaker,
        outcomes=locks.outcomes,
        waits=locks.waits,
    )


def pools_to_pb(pools: Sequence[PoolState]) -> list[pb.Pool]:
    return [pb.Pool(name=one.name, in_use=one.in_use, size=one.size, waiting=one.waiting) for one in pools]


def count_feed(message: pb.Feed, state: FeedState) -> None:
    for partition, offset in state.next_offsets.items():
        message.next_offsets[partition] = offset
    for partition, offset in state.checked_from.items():
        message.checked_from[partition] = offset
    for name in (
        "read",
        "applied",
        "old",
        "parked",
        "journaled",
        "parked_now",
        "unauthenticated",
        "unauthenticated_now",
    ):
        setattr(message, name, getattr(state, name))


async def count_aside(message: pb.Outbox, aside: Aside) -> None:
    message.aside = await aside.count()
    for change, reason in await aside.entries(1) if message.aside else ():
        message.aside_first = f"{change.key} {change.version.term}-{change.version.revision}: {reason}"
