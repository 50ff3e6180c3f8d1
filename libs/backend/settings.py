"""Settings that both stores share. A service adds its database and its own defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from libs.process import Address, Count, ProcessSettings, Seconds, check_optional_address, check_optional_addresses
from libs.rpc.gate import ServerLimits
from libs.store.limits import OutboxLimits


class BackendSettings(ProcessSettings):
    public: Address
    """Address of the listener for clients, host:port."""
    internal: Address
    """Address of the listener for routers and the other store, host:port."""
    router: Annotated[str, AfterValidator(check_optional_address)] = ""
    """A router's public address, host:port. The store forwards calls there that it cannot answer itself. Empty: it
    refuses them."""
    router_internal: Annotated[str, AfterValidator(check_optional_addresses)] = ""
    """A router's internal address, or those of several routers with commas between them. The store forwards calls there
    instead, with the identity of the caller that it has verified. Set it once the routers listen there. Empty: it
    forwards to `router`, with the caller's own token."""
    other: Annotated[str, AfterValidator(check_optional_addresses)] = ""
    """The other store's internal address, or those of its processes with commas between them. At its start the store
    asks there whether it may serve. Empty: it asks only the event log, which must be reachable then."""
    token_file: Path | None = None
    """File with the shared token of the internal listeners. Required if the internal listener accepts connections from
    other machines, and if clients are authenticated (public_auth)."""

    event_auth: Literal["off", "sign", "require"] = "off"
    """Authentication codes of events. off: none. sign: the store gives its changes only to routers that sign them.
    require: in addition, an event without a right code is parked and never applied. Needs event_keys."""

    ack: Literal["committed", "logged"] = "committed"
    """When a write at the public listener is acknowledged: after its commit, or after its event is also in the event
    log. A router decides this for its own calls."""
    log_wait_seconds: Seconds = 3.0
    """Longest wait of a write for its event to be in the log, with `logged`; then it fails with NOT_LOGGED."""

    outbox_entries: Annotated[int, Field(ge=1)] = 1_000_000
    """Events that may wait in the outbox; a write beyond this limit fails with OUTBOX_FULL."""
    outbox_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    """Size of the events that may wait in the outbox; a write beyond this limit fails with OUTBOX_FULL."""
    outbox_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """Age that the oldest event in the outbox may reach; then writes fail with OUTBOX_FULL."""

    account_records: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    """Live records that an account may have; a create beyond this limit fails with QUOTA_EXCEEDED. 0: no limit. Give it
    to both stores: each counts all records."""

    public_calls: Count = 256
    """Calls in flight at the public listener, with HTTP; further calls fail with OVERLOADED."""
    internal_calls: Count = 512
    """Calls in flight at the internal listener; further calls fail with OVERLOADED."""
    watchers: Count = 256
    """Watches in flight at each listener, in addition to the calls."""
    writes: Count = 256
    """Writes in flight, including those whose callers have disconnected."""
    default_deadline_seconds: Seconds = 5.0
    """Deadline of a call that has none."""
    longest_deadline_seconds: Seconds = 30.0
    """Longest deadline; a longer one is shortened to it."""
    drain_seconds: Seconds = 10.0
    """Time that a process waits after SIGTERM for the calls in flight."""

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
