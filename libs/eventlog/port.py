"""Guarantees of an event log, whatever stores it.

A log has a fixed number of partitions. An event gets the next offset of its partition when it is appended. A key is in
the same partition in every adapter (`partition_of`).
"""

import struct
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from libs.errors import BatonError

MAX_EVENT_BYTES = 1_000_000
"""Largest `Event.size` that every adapter accepts: Kafka's default `max.message.bytes` less room for framing."""

POLL_BYTES = 8 * 1024 * 1024
"""Approximate maximum size of the events that one `LogReader.poll` returns; a batch of large events fits in memory."""


UNREADABLE_HEADER = "baton-unreadable"
"""Name of the first header of a message that is malformed, with the reason as its value. A reader returns such a
message instead of failing."""


class EventLogError(BatonError):
    """The event log failed"""

    reason = "LOG_FAILED"

    def __init__(self, detail: str = "") -> None:
        self.detail = detail
        message = (type(self).__doc__ or "").strip()
        super().__init__(f"{message}: {detail}" if detail else message)


class LogUnavailable(EventLogError):
    """The event log is unavailable; after an append, none, some or all of its events may be there, now or later"""

    code = "UNAVAILABLE"
    reason = "LOG_UNAVAILABLE"
    retry_seconds = 1.0


class OffsetGone(EventLogError):
    """The log does not hold the requested offset; retention dropped it, or the log was replaced"""

    code = "OUT_OF_RANGE"
    reason = "LOG_OFFSET_GONE"

    def __init__(self, partition: int, offset: int, oldest: int) -> None:
        self.partition = partition
        self.offset = offset
        self.oldest = oldest
        super().__init__(f"partition {partition}, wanted offset {offset}, oldest held {oldest}")


class EventTooLarge(EventLogError):
    """An event is larger than the log accepts; check its size before the change that makes it commits"""

    code = "INVALID_ARGUMENT"
    reason = "LOG_EVENT_TOO_LARGE"


class TopicUnfit(EventLogError):
    """The topic or file cannot serve as the event log"""

    code = "FAILED_PRECONDITION"
    reason = "LOG_TOPIC_UNFIT"


@dataclass(frozen=True, slots=True)
class Event:
    """One message. `key` chooses the partition. `headers` are ordered pairs of name and value; names may repeat."""

    key: str
    value: bytes = field(repr=False)
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def size(self) -> int:
        """Size of key, value and headers in bytes, without framing."""
        headers = sum(len(name.encode()) + len(value) for name, value in self.headers)
        return len(self.key.encode()) + len(self.value) + headers


def why_unreadable(event: Event) -> str:
    """Why the log could not parse the whole message; "" if it could."""
    name, value = event.headers[0] if event.headers else ("", b"")
    return value.decode(errors="replace") if name == UNREADABLE_HEADER else ""


class Stored(NamedTuple):
    """An event with its position. `time`: time of the append, UNIX seconds by the log's clock."""

    partition: int
    offset: int
    event: Event
    time: float


class Retention(NamedTuple):
    """Rules by which a log drops its oldest events."""

    seconds: float | None = None
    """Maximum age; None: no age limit."""
    by_size: bool = True
    """The log's size, or an operator, may also remove events."""


class LogReader(Protocol):
    """Reads some partitions from given positions. Not for concurrent use."""

    @property
    def epoch(self) -> int:
        """Counter that grows whenever later events may come from another log: after a reconnect, or with new metadata.
        A caller that applies events checks it after each poll, and compares the log (`libs.eventlog.identity`) before
        it applies them."""
        ...

    async def poll(self, limit: int, wait_seconds: float) -> list[Stored]:
        """Return the next events, at most `limit`. Wait up to `wait_seconds` for the first one, else return [].

        Events of one partition come in offset order and without gaps, except for events that retention removed. Events
        of a cancelled or failed poll come again with the next. After an error the reader stays usable.

        Raises:
            OffsetGone: the position of a partition is older than the oldest held offset, or beyond its end.
            LogUnavailable: reading fails. Raised at most a request timeout after `wait_seconds`.
        """
        ...


class EventLog(Protocol):
    """A durable, partitioned, ordered log. Its opener closes it. It belongs to one event loop."""

    @property
    def partitions(self) -> int:
        """Number of partitions, which are numbered from 0."""
        ...

    @property
    def name(self) -> str:
        """Name of the topic or file, for display."""
        ...

    @property
    def id(self) -> str:
        """Unique id of the log, as of the last call; "" if the log has none."""
        ...

    @property
    def retention(self) -> Retention:
        """Retention as it was set when the log was opened. For alarms: a log drops many events at once, and late."""
        ...

    async def append(self, events: Sequence[Event], partition: int | None = None) -> None:
        """Append, and return when all events are durable. Each goes to its key's partition, or all to `partition`.

        The order of the events of one partition is kept within one call, and between consecutive calls. A repeated call
        may create duplicates.

        Raises:
            EventTooLarge: an event exceeds `MAX_EVENT_BYTES`; nothing was appended.
            LogUnavailable: the outcome is unknown: the events may be in the log or not. Append them again.
            ValueError: `partition` does not exist.
        """
        ...

    def reader(self, positions: Mapping[int, int]) -> AbstractAsyncContextManager[LogReader]:
        """Read the partitions of `positions`, each from the given offset (the next one to read).

        Raises:
            ValueError: `positions` is empty, names a partition that does not exist, or has a negative offset.
        """
        ...

    async def ends(self) -> dict[int, tuple[int, int]]:
        """Return for every partition the oldest held offset and the offset of the next event.

        Raises:
            LogUnavailable: the offsets are not available now.
        """
        ...

    async def offsets_at(self, time_seconds: float) -> dict[int, int]:
        """Return for every partition the offset of its first event that was appended at this time or later, in UNIX
        seconds by the log's clock. Without such an event, it is the offset of the next event.

        May scan the whole log.

        Raises:
            LogUnavailable: the offsets are not available now.
            ValueError: the time is negative.
        """
        ...

    async def close(self) -> None:
        """Release everything, within seconds, even if the log is unavailable. A second call is harmless."""
        ...


def murmur2(data: bytes) -> int:
    """Unsigned 32-bit MurmurHash2 of `data` with the seed of Kafka's Java client (`Utils.murmur2`)."""
    words, tail = divmod(len(data), 4)
    mask, mix = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    for word in struct.unpack_from(f"<{words}I", data):
        k = (word * mix) & mask
        h = ((h * mix) & mask) ^ (((k ^ (k >> 24)) * mix) & mask)
    if tail:
        h = ((h ^ int.from_bytes(data[-tail:], "little")) * mix) & mask
    h = ((h ^ (h >> 13)) * mix) & mask
    return h ^ (h >> 15)


def partition_of(key: str, partitions: int) -> int:
    """Partition of `key` among `partitions`, by the rule of Kafka's default partitioner for keyed messages."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def place(events: Sequence[Event], partition: int | None, partitions: int) -> list[tuple[int, Event]]:
    """Check the arguments of `EventLog.append` and return each event with its partition, in order."""
    if partition is not None and not 0 <= partition < partitions:
        raise ValueError(f"partition is {partition}; the log has partitions 0 to {partitions - 1}")
    for event in events:
        if event.size > MAX_EVENT_BYTES:
            raise EventTooLarge(f"key {event.key!r} has {event.size} bytes, at most {MAX_EVENT_BYTES} are accepted")
    if partition is not None:
        return [(partition, event) for event in events]
    return [(partition_of(event.key, partitions), event) for event in events]


def check_positions(positions: Mapping[int, int], partitions: int) -> dict[int, int]:
    """Check the arguments of `EventLog.reader` and return a copy of `positions`."""
    if not positions:
        raise ValueError("positions is empty; name at least one partition to read")
    for partition, offset in positions.items():
        if not 0 <= partition < partitions:
            raise ValueError(f"positions names partition {partition}; the log has partitions 0 to {partitions - 1}")
        if offset < 0:
            raise ValueError(f"positions has offset {offset} for partition {partition}; offsets begin at 0")
    return dict(positions)


def check_time(time_seconds: float) -> None:
    """Raises ValueError for a time that no event can have."""
    if not time_seconds >= 0:
        raise ValueError(f"time_seconds is {time_seconds}; it must be 0 or more")


def check_poll(limit: int, wait_seconds: float) -> None:
    """Raises ValueError for a poll that could never return an event."""
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1")
    if not wait_seconds >= 0:
        raise ValueError(f"wait_seconds is {wait_seconds}; it must be 0 or more")
