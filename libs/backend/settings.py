"""What every backend can be told. A service adds its database and its own defaults."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from libs.eventlog.address import LogAddress, check_log_url
from libs.rpc.server import ServerLimits
from libs.settings import Settings
from libs.store.limits import OutboxLimits

_ADDRESS = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})")


def check_address(value: str) -> str:
    """A host and port, "127.0.0.1:50051". Raises ValueError."""
    found = _ADDRESS.fullmatch(value)
    if found is None or int(found[1]) > 65535:
        raise ValueError("give host:port, such as 127.0.0.1:50051")
    return value


def check_router(value: str) -> str:
    return check_address(value) if value else value


Address = Annotated[str, AfterValidator(check_address)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
Count = Annotated[int, Field(ge=1, le=100_000)]


class BackendSettings(Settings):
    public: Address
    """Where clients are served."""
    internal: Address
    """Where the router is."""
    router: Annotated[str, AfterValidator(check_router)] = ""
    """The router's public address: where calls go that this store cannot answer. Empty: there is none."""
    token_file: Path | None = None
    """Holds the token that the internal listener asks for. Needed when that listens beyond this machine."""

    event_log: Annotated[str, AfterValidator(check_log_url)]
    """memory:, sqlite:///path or kafka://host:port/topic."""
    event_log_partitions: Annotated[int, Field(ge=1, le=1024)] = 16
    event_log_create: bool = False
    """Make the topic when it is missing."""
    event_log_replication_factor: Annotated[int, Field(ge=1, le=16)] = 3
    event_log_min_insync_replicas: Annotated[int, Field(ge=1, le=16)] = 2

    outbox_entries: Annotated[int, Field(ge=1)] = 1_000_000
    outbox_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    outbox_seconds: Annotated[float, Field(gt=0)] = 3600.0

    public_calls: Count = 256
    """Under way at once at the public listener; further ones are refused."""
    internal_calls: Count = 512
    writes: Count = 256
    """Under way at once, those included whose callers have left."""
    default_deadline_seconds: Seconds = 5.0
    longest_deadline_seconds: Seconds = 30.0
    drain_seconds: Seconds = 10.0
    """How long a process that was told to stop waits for what is under way."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @property
    def log_address(self) -> LogAddress:
        return LogAddress(
            self.event_log,
            self.event_log_partitions,
            self.event_log_create,
            self.event_log_replication_factor,
            self.event_log_min_insync_replicas,
        )

    @property
    def outbox_limits(self) -> OutboxLimits:
        return OutboxLimits(self.outbox_entries, self.outbox_bytes, self.outbox_seconds)

    def limits(self, calls: int, request_bytes: int) -> ServerLimits:
        return ServerLimits(calls, request_bytes, self.default_deadline_seconds, self.longest_deadline_seconds)


def default_pool_size() -> int:
    """Connections for requests: enough to keep the cores busy while others wait for the disk."""
    return 2 * (os.cpu_count() or 1) + 1
