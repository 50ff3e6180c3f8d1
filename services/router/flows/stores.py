"""Clients for the internal listeners of the two stores."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from libs.errors import LOG_REASONS, BatonError, StoreUnavailable, is_server_fault
from libs.locks.port import LocksUnavailable
from libs.ownership.errors import NotOwner
from libs.ownership.model import Store, Version
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.baton.replication.v1.audit_pb2_grpc import AuditServiceStub
from libs.pb.baton.replication.v1.recovery_pb2_grpc import RecoveryServiceStub
from libs.pb.baton.replication.v1.repair_pb2_grpc import RepairServiceStub
from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceStub
from libs.rpc import metadata
from libs.rpc.auth import TokenRefused
from libs.rpc.channel import Channel, SentMetadata, open_channel
from libs.rpc.errors import never_sent, nothing_listens, reason_of
from libs.rpc.signals import NO_SIGNALS, NamedChannel, Pairs, Signals
from libs.tls.process import ClientTls

if TYPE_CHECKING:
    from libs.pb.baton.replication.v1.audit_pb2_grpc import AuditServiceAsyncStub
    from libs.pb.baton.replication.v1.recovery_pb2_grpc import RecoveryServiceAsyncStub
    from libs.pb.baton.replication.v1.repair_pb2_grpc import RepairServiceAsyncStub
    from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceAsyncStub

STATUS_FRESH_SECONDS = 5.0
"""Gates ignore an older status."""

Metadata = tuple[tuple[str, str | bytes], ...]

_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_ONE_IP = re.compile(r"(?:[0-9.]+|\[[0-9A-Fa-f:]+\]):[0-9]+")
_ANSWERS = LOG_REASONS | {LocksUnavailable.reason}
"""Reasons from the store itself under a code of an outage: the store is available, and the outcome is certain."""


class Refused(BatonError):
    """A store's error, which the caller gets as its answer."""

    def __init__(self, store: Store, error: grpc.aio.AioRpcError) -> None:
        super().__init__(f"store {store}: {error.code().name}: {error.details() or 'no details'}")
        self.store = store
        self.error = error
        self.code = error.code().name
        self.reason = reason_of(error)[0] or self.code
        self.too_short = False
        """The caller's deadline passed before a healthy store could answer."""

    @property
    def is_fault(self) -> bool:
        """Whether the store failed, rather than refused."""
        return self.reason == TokenRefused.reason or is_server_fault(self.code, self.reason)

    @property
    def counts_as_fault(self) -> bool:
        """Whether counters of the store's faults include this error."""
        return self.is_fault and not self.too_short


class Away(Refused):
    """A store did not answer in time or cannot be reached: the outcome is unknown."""

    @property
    def never_sent(self) -> bool:
        """Whether no connection to a process of the store could be made."""
        return never_sent(self.error)

    @property
    def nothing_listens(self) -> bool:
        return nothing_listens(self.error)

    @property
    def may_be_under_way(self) -> bool:
        """Whether a process of the store, or its database, may have carried the request out, or may still do so.

        A process that answered with a reason does not, unless it lost its database meanwhile.
        """
        return self.reason in (self.code, StoreUnavailable.reason) and not self.never_sent


@dataclass(frozen=True, slots=True)
class Answer:
    """A store's answer."""

    store: Store
    data: bytes
    trailers: Mapping[str, str | bytes] = field(default_factory=dict)

    @property
    def is_stale(self) -> bool:
        return metadata.STALE in self.trailers

    @property
    def version(self) -> Version:
        """The version of the row in a replica's answer; (0, 0) if it has none."""
        return read_version(self.trailers)


def read_version(trailers: Mapping[str, str | bytes]) -> Version:
    """Read the trailer `baton-version`; (0, 0) if it is absent."""
    value = trailers.get(metadata.VERSION, "")
    term, _, revision = str(value).partition("-")
    return Version(int(term), int(revision)) if term.isdigit() and revision.isdigit() else Version(0, 0)


class StoreClient:
    """A client of one store. Raises NotOwner, Away if the outcome is unknown, and Refused for all other errors."""

    def __init__(self, store: Store, channel: Channel, token: bytes | None, signals: Signals = NO_SIGNALS) -> None:
        self.store = store
        self.channel = channel
        self._token: Metadata = ((metadata.TOKEN, token.decode()),) if token else ()
        self._calls = signals.sent_to(store.value)
        stubs: Any = channel.grpc if self._calls is None else NamedChannel(channel.grpc)
        self.replication: ReplicationServiceAsyncStub = ReplicationServiceStub(stubs)
        self.audit: AuditServiceAsyncStub = AuditServiceStub(stubs)
        self.repair: RepairServiceAsyncStub = RepairServiceStub(stubs)
        self.recovery: RecoveryServiceAsyncStub = RecoveryServiceStub(stubs)

    def __repr__(self) -> str:
        return f"<StoreClient {self.store} {self.channel!r}>"

    @property
    def is_one_process(self) -> bool:
        """Whether one process serves the store. A has one process for its file.

        An address of B may stand for several processes, and for a name with several addresses gRPC reports the failure
        of only one.
        """
        return self.store is Store.A and _ONE_IP.fullmatch(self.channel.address) is not None

    @property
    def token(self) -> Metadata:
        """The metadata for every call of `replication`."""
        return self._token

    async def call(self, path: str, request: bytes, timeout_seconds: float, extra: Metadata = ()) -> Answer:
        """Call a method of the contract with serialized messages."""
        try:
            if self._calls is None:
                return await self._call(path, request, timeout_seconds, extra)
            return await self._calls.sent(path, extra, partial(self._call, path, request, timeout_seconds))
        except grpc.aio.AioRpcError as error:
            raise self.error(error) from None

    async def _call(self, path: str, request: bytes, timeout_seconds: float, extra: Pairs) -> Answer:
        call = self.channel.multi_callable(path)(
            request, timeout=timeout_seconds, metadata=SentMetadata(*self._token, *extra)
        )
        data = await call
        trailers = await call.trailing_metadata()
        return Answer(self.store, data, dict(trailers) if trailers else {})

    def error(self, error: grpc.aio.AioRpcError) -> BatonError:
        """Convert a gRPC error of this store."""
        code = error.code()
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            reason, found = reason_of(error)
            if reason == NotOwner.reason:
                version = Version(int(found["term"]), int(found["revision"]))
                absent, hidden = found["absent"] == "true", found.get("hidden") == "true"
                return NotOwner(Store(found["owner"]), version, absent=absent, hidden=hidden)
        reason = reason_of(error)[0]
        # A store that refuses the token has not begun the call. For clients that is an outage.
        if (code in _AWAY and reason not in _ANSWERS) or reason == TokenRefused.reason:
            return Away(self.store, error)
        return Refused(self.store, error)

    async def ask(self, method: Any, request: Any, timeout_seconds: float, extra: Metadata = ()) -> Any:
        """Call the replication API: `await client.ask(client.replication.GetStatus, request, 1)`."""

        def send(pairs: Pairs) -> Any:
            return method(request, timeout=timeout_seconds, metadata=SentMetadata(*self._token, *pairs))

        try:
            return await (send(extra) if self._calls is None else self._calls.sent(method.path, extra, send))
        except grpc.aio.AioRpcError as error:
            raise self.error(error) from None


Stores = Mapping[Store, StoreClient]


@dataclass(frozen=True, slots=True)
class StoreView:
    """The last known status of one store."""

    store: Store
    status: pb.GetStatusResponse | None = None
    """The store's last good answer."""
    seen_at: float | None = None
    """Time of that answer, monotonic."""
    trouble: str = "not asked yet"
    """Why its last answer was not good; "" if it was."""
    lag_events: int | None = None
    """Events of the log that its feed has not read, its own included; None if unknown."""
    lag_seconds: float | None = None
    """Lag behind the other store; None if unknown."""
    database_away: bool = False
    """Whether its process has answered that its database does not. `trouble` is that answer."""

    @property
    def reachable(self) -> bool:
        return self.status is not None and not self.trouble

    def fresh(self, now: float) -> pb.GetStatusResponse | None:
        """Return the last answer unless it is too old for decisions."""
        return self.status if self.seen_at is not None and now - self.seen_at <= STATUS_FRESH_SECONDS else None


class StoreViews(Protocol):
    """The last known status of both stores."""

    def view(self, store: Store) -> StoreView: ...


@asynccontextmanager
async def open_store(
    store: Store,
    address: str,
    token: bytes | None,
    tls: ClientTls | None = None,
    signals: Signals = NO_SIGNALS,
) -> AsyncIterator[StoreClient]:
    async with open_channel(address, tls) as channel:
        yield StoreClient(store, channel, token, signals)
