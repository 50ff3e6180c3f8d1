"""Opening of an event log by its address: `memory:`, `sqlite:///path` or `kafka://host:port[,host:port]/topic`.

As in SQLAlchemy's addresses, `sqlite:///x` is relative to the working directory and `sqlite:////x` is absolute.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import EventLog
from libs.eventlog.security import KafkaAccess, KafkaSecurity
from libs.eventlog.sqlite import SqliteEventLog

_MEMORY = "memory:"
_SQLITE = re.compile(r"sqlite:///(.+)")
_KAFKA = re.compile(r"kafka://([^/\s]+:\d+(?:,[^/\s]+:\d+)*)/([A-Za-z0-9._-]{1,249})")


@dataclass(frozen=True, slots=True)
class LogAddress:
    """Address of a log. The fields after `partitions` apply only when a missing topic is created."""

    url: str
    partitions: int = 16
    create: bool = False
    replication_factor: int = 3
    min_insync_replicas: int = 2
    security: KafkaSecurity = field(default_factory=KafkaSecurity)
    """TLS and user of a log in Kafka."""

    def __post_init__(self) -> None:
        check_log_url(self.url)


def check_log_url(url: str) -> str:
    """Return `url`. Raises ValueError if it is not the address of a log."""
    if url == _MEMORY or _SQLITE.fullmatch(url) or _KAFKA.fullmatch(url):
        return url
    raise ValueError("an event log is at memory:, sqlite:///path or kafka://host:port/topic")


def log_name(url: str) -> str:
    """`EventLog.name` of the log at this address."""
    return "memory" if url == _MEMORY else url.rpartition("/")[2]


@asynccontextmanager
async def open_event_log(address: LogAddress) -> AsyncIterator[EventLog]:
    """Open the log, and close it at the end. Raises TopicUnfit, LogUnavailable and TlsUnfit."""
    sqlite, kafka = _SQLITE.fullmatch(address.url), _KAFKA.fullmatch(address.url)
    if sqlite:
        async with SqliteEventLog.open(Path(sqlite[1]), address.partitions) as log:
            yield log
    elif kafka:
        # Imported only by a process that uses it.
        from libs.eventlog.kafka import KafkaEventLog
        from libs.eventlog.kafka_topic import KafkaSettings

        settings = KafkaSettings(
            bootstrap=kafka[1],
            topic=kafka[2],
            partitions=address.partitions,
            create=address.create,
            replication_factor=address.replication_factor,
            min_insync_replicas=address.min_insync_replicas,
            access=KafkaAccess(address.security, kafka[1]),
        )
        async with KafkaEventLog.open(settings) as remote:
            yield remote
    else:
        memory = MemoryEventLog(address.partitions)
        try:
            yield memory
        finally:
            await memory.close()
