"""Settings that every backend has. A service adds its database and its own defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from libs.process import Address, Count, ProcessSettings, Seconds, check_optional_address, check_optional_addresses
from libs.rpc.gate import ServerLimits
from libs.store.limits import OutboxLimits


class BackendSettings(ProcessSettings):
    public: Address
    """Address for clients."""
    internal: Address
    """Address for the router."""
    router: Annotated[str, AfterValidator(check_optional_address)] = ""
    """The router's public address, for calls that this store cannot answer. Empty without a router."""
    other: Annotated[str, AfterValidator(check_optional_addresses)] = ""
    """The other store's internal address (several processes: separated by commas), which is asked at the start whether
    this store may serve. Empty: only the log is asked, so it must be available then."""
    token_file: Path | None = None
    """File with the token that the internal listeners of both stores require. Needed if this one's is reachable from
    other machines."""

    ack: Literal["committed", "logged"] = "committed"
    """When a client's write at the public listener is acknowledged: once it is on disk here, or once its event is also
    in the log. Calls of a router carry their own setting."""
    log_wait_seconds: Seconds = 3.0
    """How long a write waits for its event to be in the log, if its caller asks for it."""

    outbox_entries: Annotated[int, Field(ge=1)] = 1_000_000
    outbox_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    outbox_seconds: Annotated[float, Field(gt=0)] = 3600.0

    public_calls: Count = 256
    """Maximum number of concurrent calls at the public listener; more are refused."""
    internal_calls: Count = 512
    watchers: Count = 256
    """Maximum number of concurrent watches, in addition to calls, at each listener."""
    writes: Count = 256
    """Maximum number of concurrent writes, including those whose callers have left."""
    default_deadline_seconds: Seconds = 5.0
    longest_deadline_seconds: Seconds = 30.0
    drain_seconds: Seconds = 10.0
    """How long a stopping process waits for calls in progress."""

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
