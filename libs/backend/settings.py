"""What every backend can be told. A service adds its database and its own defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from libs.process import Address, Count, ProcessSettings, Seconds, check_optional_address, check_optional_addresses
from libs.rpc.gate import ServerLimits
from libs.store.limits import OutboxLimits


class BackendSettings(ProcessSettings):
    public: Address
    """Where clients are served."""
    internal: Address
    """Where the router is."""
    router: Annotated[str, AfterValidator(check_optional_address)] = ""
    """The router's public address: where calls go that this store cannot answer. Empty: there is none."""
    other: Annotated[str, AfterValidator(check_optional_addresses)] = ""
    """The other store's internal address (of several processes, with commas): it is asked at the start whether this one
    may serve. Empty: only the log is asked, so that must be in reach then."""
    token_file: Path | None = None
    """Holds the token that the internal listeners of both stores ask for. Needed when this one's listens beyond this
    machine."""

    ack: Literal["committed", "logged"] = "committed"
    """When a write of a client at the public listener is answered: when it is on disk here, or when its event is in the
    log too. What comes from a router says so itself."""
    log_wait_seconds: Seconds = 3.0
    """How long a write waits for its event to be in the log, if its caller wants that."""

    outbox_entries: Annotated[int, Field(ge=1)] = 1_000_000
    outbox_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    outbox_seconds: Annotated[float, Field(gt=0)] = 3600.0

    public_calls: Count = 256
    """Under way at once at the public listener; further ones are refused."""
    internal_calls: Count = 512
    watchers: Count = 256
    """Watches under way at once, beside the calls, at each listener."""
    writes: Count = 256
    """Under way at once, those included whose callers have left."""
    default_deadline_seconds: Seconds = 5.0
    longest_deadline_seconds: Seconds = 30.0
    drain_seconds: Seconds = 10.0
    """How long a process that was told to stop waits for what is under way."""

    @property
    def outbox_limits(self) -> OutboxLimits:
        return OutboxLimits(self.outbox_entries, self.outbox_bytes, self.outbox_seconds)

    def limits(self, calls: int, request_bytes: int) -> ServerLimits:
        return ServerLimits(
            calls,
            streams=self.watchers,
            request_bytes=request_bytes,
            default_deadline_seconds=self.default_deadline_seconds,
            longest_deadline_seconds=self.longest_deadline_seconds,
        )
