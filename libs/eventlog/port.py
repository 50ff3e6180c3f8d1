"""What an event log promises, whatever stores it.

A log has a fixed number of partitions. An event gets the next offset of its partition when it is appended.
A key is in the same partition in every adapter (`partition_of`).
"""

import struct
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from libs.errors import BatonError

MAX_EVENT_BYTES = 1_000_000
"""Largest `Event.size` that every adapter accepts: Kafka's default `max.message.bytes` less room for framing."""

POLL_BYTES = 8 * 1024 * 1024
"""About how many bytes of events one `LogReader.poll` returns at most; a batch of large events fits in memory."""


UNREADABLE_HEADER = "baton-unreadable"
"""Of a message that is in the log, but not as a program of this project writes one: a reader puts this header first,
with the reason as its value, instead of failing at the message."""


class EventLogError(BatonError):
    """The event log could not do what was asked"""

    reason = "LOG_FAILED"

    def __init__(self, detail: str = "") -> None:
        self.detail = detail
        message = (type(self).__doc__ or "").strip()
        super().__init__(f"{message}: {detail}" if detail else message)


class LogUnavailable(EventLogError):
    """The event log is out of reach; after an append, none, some or all of its events may be there, now or later"""

    code = "UNAVAILABLE"
    reason = "LOG_UNAVAILABLE"
    retry_seconds = 1.0


class OffsetGone(EventLogError):
    """The log does not hold the wanted offset; retention dropped it, or the log was replaced"""

    code = "OUT_OF_RANGE"
    reason = "LOG_OFFSET_GONE"

    def __init__(self, partition: int, offset: int, oldest: int) -> None:
        self.partition = partition
        self.offset = offset
        self.oldest = oldest
        super().__init__(f"partition {partition}, wanted offset {offset}, oldest held {oldest}")


class EventTooLarge(EventLogError):
    """An event is larger than the log accepts; its size is to be checked before the change that makes it commits"""

    code = "INVALID_ARGUMENT"
    reason = "LOG_EVENT_TOO_LARGE"


class TopicUnfit(EventLogError):
    """The topic or file cannot serve as the event log"""

    code = "FAILED_PRECONDITION"
    reason = "LOG_TOPIC_UNFIT"


@dataclass(frozen=True, slots=True)
class Event:
    """One message. `key` chooses the partition, `headers` are name and value pairs in order, names may repeat."""

    key: str
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of key, value and headers together, without any framing."""
        headers = sum(len(name.encode()) + len(value) for name, value in self.headers)
        return len(self.key.encode()) + len(self.value) + headers


def why_unreadable(event: Event) -> str:
    """Why the log could not read the whole message; "" when it could."""
    name, value = event.headers[0] if event.headers else ("", b"")
    return value.decode(errors="replace") if name == UNREADABLE_HEADER else ""


class Stored(NamedTuple):
    """An event at its place. `time` is when it was appended, UNIX seconds by the log's clock."""

    partition: int
    offset: int
    event: Event
    time: float


class Retention(NamedTuple):
    """Why a log drops its oldest events."""

    seconds: float | None = None
    """Their age; None: age is no reason."""
    by_size: bool = True
    """The log's size, or somebody's hand."""


class LogReader(Protocol):
    """Reads some partitions from given positions on. Not for use by two tasks at once."""

    @property
    def epoch(self) -> int:
        """Grows whenever what comes next may come from another log: after a reconnect, or new metadata. Whoever applies
        events looks at it after each poll, and compares the log (`libs.eventlog.identity`) before it applies them."""
        ...

    async def poll(self, limit: int, wait_seconds: float) -> list[Stored]:
        """Return the next events, at most `limit`; wait up to `wait_seconds` until there is one, else return [].

        Events of one partition come in offset order and without gaps, other than what retention removed. Events of a
        cancelled or failed poll come again with the next. After an error the reader stays usable.

        Raises:
            OffsetGone: the position of a partition is older than what the log holds, or beyond its end.
            LogUnavailable: nothing can be read now. Raised at most a request timeout after `wait_seconds`.
        """
        ...


class EventLog(Protocol):
    """A durable, partitioned, ordered log. Whoever opened it closes it; it belongs to one event loop."""

    @property
    def partitions(self) -> int:
        """How many partitions the log has; they are numbered from 0."""
        ...

    @property
    def name(self) -> str:
        """The topic or file, for people."""
        ...

    @property
    def id(self) -> str:
        """Another one for each log that was ever made, as of the last call; "" where the log does not tell it."""
        ...

    @property
    def retention(self) -> Retention:
        """Why the log drops events, as it was set when the log was opened. For alarms: it drops many at once, later."""
        ...

    async def append(self, events: Sequence[Event], partition: int | None = None) -> None:
        """Append and return when all events are durable. Each goes to its key's partition, or all to `partition`.

        The order of the events of one partition is kept within one call, and between calls made one after the other.
        Duplicates are possible if a failed call is repeated.

        Raises:
            EventTooLarge: an event exceeds `MAX_EVENT_BYTES`; nothing was appended.
            LogUnavailable: the outcome is unknown; what was sent may or may not be there. Append it again.
            ValueError: `partition` does not exist.
        """
        ...

    def reader(self, positions: Mapping[int, int]) -> AbstractAsyncContextManager[LogReader]:
        """Read the partitions named in `positions`, each from the offset given (the next offset to read) on.

        Raises:
            ValueError: `positions` is empty, names a partition that does not exist, or has a negative offset.
        """
        ...

    async def ends(self) -> dict[int, tuple[int, int]]:
        """Return for every partition the oldest offset held and the offset that the next event will get.

        Raises:
            LogUnavailable: they cannot be had now.
        """
        ...

    async def offsets_at(self, time_seconds: float) -> dict[int, int]:
        """Return for every partition the offset of its first event that was appended at this time or later, UNIX
        seconds by the log's clock; where there is none, the offset that the next event will get.

        May have to look through the whole log.

        Raises:
            LogUnavailable: they cannot be had now.
            ValueError: the time is negative.
        """
        ...

    async def close(self) -> None:
        """Release everything, within seconds, even if the log is out of reach. Closing twice is harmless."""
        ...


def murmur2(data: bytes) -> int:
    """Return the unsigned 32-bit MurmurHash2 of `data` with the seed of Kafka's Java client (`Utils.murmur2`)."""
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
    """Return the partition of `key` among `partitions`: the rule of Kafka's default partitioner for keyed messages."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def place(events: Sequence[Event], partition: int | None, partitions: int) -> list[tuple[int, Event]]:
    """Return each event with its partition, in order, after checking what `EventLog.append` says that it checks."""
    if partition is not None and not 0 <= partition < partitions:
        raise ValueError(f"partition is {partition}; the log has partitions 0 to {partitions - 1}")
    for event in events:
        if event.size > MAX_EVENT_BYTES:
            raise EventTooLarge(f"key {event.key!r} has {event.size} bytes, at most {MAX_EVENT_BYTES} are accepted")
    if partition is not None:
        return [(partition, event) for event in events]
    return [(partition_of(event.key, partitions), event) for event in events]


def check_positions(positions: Mapping[int, int], partitions: int) -> dict[int, int]:
    """Return a copy of `positions` after checking what `EventLog.reader` says that it checks."""
    if not positions:
        raise ValueError("positions is empty; name at least one partition to read")
    for partition, offset in positions.items():
        if not 0 <= partition < partitions:
            raise ValueError(f"positions names partition {partition}; the log has partitions 0 to {partitions - 1}")
        if offset < 0:
            raise ValueError(f"positions has offset {offset} for partition {partition}; offsets begin at 0")
    return dict(positions)


def check_time(time_seconds: float) -> None:
    """Refuse a time that no event can have."""
    if not time_seconds >= 0:
        raise ValueError(f"time_seconds is {time_seconds}; it must be 0 or more")


def check_poll(limit: int, wait_seconds: float) -> None:
    """Refuse a poll that could never return anything."""
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1")
    if not wait_seconds >= 0:
        raise ValueError(f"wait_seconds is {wait_seconds}; it must be 0 or more")
