"""Identity check of a log: whether it is the one that a store has read so far.

A recreated topic or a replaced file has other events at the same offsets. A reader that continues there silently skips
everything before its position. So a store keeps, with each offset, a mark of the last event that it has read: the log's
own id, if it has one, and a hash of the event. That event is read again before the store reads on: at the start, and
whenever its connection or the topic's metadata may have changed.

If retention has dropped that event, only the log's id can be compared, and the offsets must fit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple

from libs.eventlog.headers import pack
from libs.eventlog.port import EventLog, EventLogError, LogUnavailable, OffsetGone, Stored

_READ_SECONDS = 10.0
_POLL_SECONDS = 1.0
_POLL_EVENTS = 50
_HASH_BYTES = 12


class LogReplaced(EventLogError):
    """The event log is not the one that this store has read so far"""

    code = "FAILED_PRECONDITION"
    reason = "LOG_REPLACED"

    def __init__(self, detail: str) -> None:
        super().__init__(f"{detail}. Bring the former log back, or go on with this one: baton events restart")


class Mark(NamedTuple):
    """The last event of a partition that was read."""

    next: int
    """Offset after the event."""
    text: str
    """Result of `mark_of`; "" if an earlier release has read the event."""


def mark_of(log_id: str, stored: Stored) -> str:
    """The log's id and a hash of offset, time, key, value and headers, separated by a slash."""
    event = stored.event
    digest = blake2b(digest_size=_HASH_BYTES)
    for part in (
        f"{stored.offset} {stored.time:.3f}".encode(),
        event.key.encode(),
        event.value,
        pack(event.headers),
    ):
        digest.update(len(part).to_bytes(8, "big") + part)
    return f"{log_id}/{digest.hexdigest()}"


async def check_log(log: EventLog, marks: Mapping[int, Mark]) -> dict[int, str]:
    """Compare the log with the marks. Returns new marks for partitions that had none.

    Raises LogReplaced, LogUnavailable.
    """
    ends = await log.ends()
    wanted: dict[int, int] = {}
    for partition, mark in marks.items():
        oldest, end = ends.get(partition, (0, 0))
        _check_place(log.id, partition, mark, end)
        if mark.next > oldest:
            wanted[partition] = mark.next - 1
    found = await _read(log, wanted)
    adopted = {}
    for partition, stored in found.items():
        text = mark_of(log.id, stored)
        known = marks[partition].text
        if not known:
            adopted[partition] = text
        elif known.rpartition("/")[2] != text.rpartition("/")[2]:
            raise LogReplaced(
                f"partition {partition}, offset {stored.offset}: another event than the one that was read"
            )
    return adopted


def _check_place(log_id: str, partition: int, mark: Mark, end: int) -> None:
    if mark.next > end:
        raise LogReplaced(f"partition {partition} ends at offset {end}, and was read up to {mark.next}")
    known = mark.text.rpartition("/")[0]
    if known and log_id and known != log_id:
        raise LogReplaced(f"the log has the id {log_id}, and the one that was read had {known}")


async def _read(log: EventLog, wanted: Mapping[int, int]) -> dict[int, Stored]:
    """The events at these offsets. Some may be missing: retention drops events, and the broker's own messages take
    offsets."""
    if not wanted:
        return {}
    found: dict[int, Stored] = {}
    until = time.monotonic() + _READ_SECONDS
    try:
        async with log.reader(wanted) as reader:
            while found.keys() != wanted.keys():
                for stored in await reader.poll(_POLL_EVENTS, _POLL_SECONDS):
                    found.setdefault(stored.partition, stored)
                if time.monotonic() > until:
                    missing = sorted(wanted.keys() - found.keys())
                    raise LogUnavailable(f"no event at the last read offsets of partitions {missing}")
    except OffsetGone as error:
        raise LogUnavailable(f"the log changed while it was compared: {error.message}") from error
    return {partition: stored for partition, stored in found.items() if stored.offset == wanted[partition]}
