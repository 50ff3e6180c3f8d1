"""The two stores as a router sees them: over their internal listeners."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from libs.errors import BatonError, LogAway, NotLogged, StoreUnavailable
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
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import never_sent, nothing_listens, reason_of

if TYPE_CHECKING:
    from libs.pb.baton.replication.v1.audit_pb2_grpc import AuditServiceAsyncStub
    from libs.pb.baton.replication.v1.recovery_pb2_grpc import RecoveryServiceAsyncStub
    from libs.pb.baton.replication.v1.repair_pb2_grpc import RepairServiceAsyncStub
    from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceAsyncStub

STATUS_FRESH_SECONDS = 5.0
"""No gate decides by an older status."""

Metadata = tuple[tuple[str, str | bytes], ...]

_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_FAULTS = _AWAY | {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
_ONE_IP = re.compile(r"(?:[0-9.]+|\[[0-9A-Fa-f:]+\]):[0-9]+")
_OF_THE_LOG = frozenset({NotLogged.reason, LogAway.reason})
_ANSWERS = _OF_THE_LOG | {LocksUnavailable.reason}
"""Of the store itself, under the same codes: it is there, and knows the outcome."""


class Refused(BatonError):
    """A store answered with an error that is the caller's answer too."""

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
        """The store failed, rather than refused. A log that is late or away is no fault of the store."""
        if self.reason == TokenRefused.reason:
            return True
        return self.error.code() in _FAULTS and self.reason not in _OF_THE_LOG

    @property
    def counts_as_fault(self) -> bool:
        """For counters that gates and people judge a store by."""
        return self.is_fault and not self.too_short


class Away(Refused):
    """A store did not answer in time or cannot be reached: the outcome is unknown."""

    @property
    def never_sent(self) -> bool:
        """No process of the store could be connected to."""
        return never_sent(self.error)

    @property
    def nothing_listens(self) -> bool:
        return nothing_listens(self.error)

    @property
    def may_be_under_way(self) -> bool:
        """A process of the store, or its database, may still carry the request out, or has done so. A process that has
        answered with a reason does not, unless it lost its database meanwhile."""
        return self.reason in (self.code, StoreUnavailable.reason) and not self.never_sent


@dataclass(frozen=True, slots=True)
class Answer:
    """What a store answered."""

    store: Store
    data: bytes
    trailers: Mapping[str, str | bytes] = field(default_factory=dict)

    @property
    def is_stale(self) -> bool:
        return metadata.STALE in self.trailers

    @property
    def version(self) -> Version:
        """Of the row that a replica's answer shows; (0, 0) when there is none."""
        return read_version(self.trailers)


def read_version(trailers: Mapping[str, str | bytes]) -> Version:
    """`baton-version`, or (0, 0)."""
    value = trailers.get(metadata.VERSION, "")
    term, _, revision = str(value).partition("-")
    return Version(int(term), int(revision)) if term.isdigit() and revision.isdigit() else Version(0, 0)


class StoreClient:
    """One store. Errors: NotOwner; Away when the outcome is unknown; Refused for all else."""

    def __init__(self, store: Store, channel: Channel, token: bytes | None) -> None:
        self.store = store
        self.channel = channel
        self._token: Metadata = ((metadata.TOKEN, token.decode()),) if token else ()
        self.replication: ReplicationServiceAsyncStub = ReplicationServiceStub(channel.grpc)
        self.audit: AuditServiceAsyncStub = AuditServiceStub(channel.grpc)
        self.repair: RepairServiceAsyncStub = RepairServiceStub(channel.grpc)
        self.recovery: RecoveryServiceAsyncStub = RecoveryServiceStub(channel.grpc)

    def __repr__(self) -> str:
        return f"<StoreClient {self.store} {self.channel!r}>"

    @property
    def is_one_process(self) -> bool:
        """A's file is open in one process. B's address may stand for several, even a single one; and of a name's
        several addresses gRPC tells how one of them failed."""
        return self.store is Store.A and _ONE_IP.fullmatch(self.channel.address) is not None

    @property
    def token(self) -> Metadata:
        """To be sent with every call of `replication`."""
        return self._token

    async def call(self, path: str, request: bytes, timeout_seconds: float, extra: Metadata = ()) -> Answer:
        """A call of the contract, bytes in, bytes out."""
        call = self.channel.multi_callable(path)(
            request, timeout=timeout_seconds, metadata=grpc.aio.Metadata(*self._token, *extra)
        )
        try:
            data = await call
        except grpc.aio.AioRpcError as error:
            raise self.error(error) from None
        trailers = await call.trailing_metadata()
        return Answer(self.store, data, dict(trailers) if trailers else {})

    def error(self, error: grpc.aio.AioRpcError) -> BatonError:
        """What a status of this store means."""
        code = error.code()
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            reason, found = reason_of(error)
            if reason == NotOwner.reason:
                version = Version(int(found["term"]), int(found["revision"]))
                return NotOwner(Store(found["owner"]), version, absent=found["absent"] == "true")
        reason = reason_of(error)[0]
        # A store that refuses our token has not begun the call. For clients it is as good as away.
        if (code in _AWAY and reason not in _ANSWERS) or reason == TokenRefused.reason:
            return Away(self.store, error)
        return Refused(self.store, error)

    async def ask(self, method: Any, request: Any, timeout_seconds: float) -> Any:
        """A call of the replication API: `await client.ask(client.replication.GetStatus, request, 1)`."""
        try:
            return await method(request, timeout=timeout_seconds, metadata=grpc.aio.Metadata(*self._token))
        except grpc.aio.AioRpcError as error:
            raise self.error(error) from None


Stores = Mapping[Store, StoreClient]


@dataclass(frozen=True, slots=True)
class StoreView:
    """The last known status of one store."""

    store: Store
    status: pb.GetStatusResponse | None = None
    """Its last good answer."""
    seen_at: float | None = None
    """When, monotonic."""
    trouble: str = "not asked yet"
    """Why its last answer was not good; "" when it was."""
    lag_events: int | None = None
    """Events of the log that its feed has not read, its own ones included; None: not known."""
    lag_seconds: float | None = None
    """How far it is behind the other store; None: not known."""

    @property
    def reachable(self) -> bool:
        return self.status is not None and not self.trouble

    def fresh(self, now: float) -> pb.GetStatusResponse | None:
        """Its answer, if it is recent enough to decide by."""
        return self.status if self.seen_at is not None and now - self.seen_at <= STATUS_FRESH_SECONDS else None


class StoreViews(Protocol):
    """The last known status of both stores."""

    def view(self, store: Store) -> StoreView: ...


@asynccontextmanager
async def open_store(store: Store, address: str, token: bytes | None) -> AsyncIterator[StoreClient]:
    async with open_channel(address) as channel:
        yield StoreClient(store, channel, token)
