"""Strict lists: ask both stores for the page and merge the pages (`core.merge`).

Each name is linearizable; the list as a whole is not a snapshot. If a store is out of reach, the other one's page is
the answer, marked stale.

Since a strict list needs both stores, its plan (flag, phase) does not choose a store. It names the store that the list
depends on: if the other one fails in any way, the target's page is the answer, marked stale (if the policy allows stale
answers). So with the list's flag false, a failure of B does not fail a list.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from google.protobuf.message import Message

from libs.clock import Clock
from libs.contract.descriptors import ListShape, Method
from libs.contract.pages import make_token, read_token
from libs.errors import OwnerUnavailable
from libs.ownership.model import Store
from libs.ownership.wire import version_from_pb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.rpc import metadata
from libs.rpc.limits import ANSWER_BYTES
from services.router.core.merge import HalfPage, Item, frame, merge, unknown_names
from services.router.flows.calls.attempt import Attempt, measured
from services.router.flows.calls.forward import ATTEMPT_SHARE, MARGIN_SECONDS, READ_SHARE, ReadPolicy
from services.router.flows.calls.patience import Patience, QueueFull, Waiting
from services.router.flows.stores import Answer, Away, Metadata, Refused, Stores
from services.router.flows.traffic import Traffic

LOOK_UP = 500
"""Names per look-up."""

PAGE_SECONDS = 0.2
"""Time to search for a page with a match. After it, the answer is an empty page with a token."""

_NOTHING = HalfPage({}, full=False)


class Rows(Protocol):
    """A consumer of both stores' rows of a page."""

    def offer_page(
        self, page: tuple[Method, bytes], halves: tuple[HalfPage, HalfPage], looked_up: Mapping[str, Item]
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class ListCall:
    """A list call from a client."""

    method: Method
    request: Message
    data: bytes
    """The serialized request."""
    ends_at: float
    """Monotonic time of the caller's deadline."""
    schema_version: int = 0
    """The caller's schema version; 0 for the newest."""
    extra: Metadata = ()
    """Metadata for the stores: the principal."""


@dataclass(frozen=True, slots=True)
class HalfPages:
    """Both stores' pages. The page of a store that cannot answer is empty."""

    pages: tuple[HalfPage, HalfPage]
    looked_up: Mapping[str, Item]
    missing: Store | None = None
    """The store that could not answer."""


class Listing:
    """Raises InvalidField, SchemaUnknown, Refused with a store's own error, OwnerUnavailable."""

    def __init__(
        self, stores: Stores, traffic: Traffic, policy: ReadPolicy, shadow: Rows, clock: Clock, patience: Patience
    ) -> None:
        self._stores = stores
        self._patience = patience
        self._clock = clock
        self._traffic = traffic
        self._policy = policy
        self._shadow = shadow

    async def call(self, call: ListCall, to: Store) -> Answer:
        """Answer a list. `to`: the store that it depends on. The trailers name the stores behind the answer."""
        method, shape = call.method, _shape(call.method)
        size, token, question = method.page(call.request)
        resume: str | None = read_token(token, question, shape.page_token)
        page = pb.ListRecordsRequest(
            method=method.path, request=call.data, limit=size, schema_version=call.schema_version
        )
        items: list[bytes] = []
        missing: Store | None = None
        until = self._clock.monotonic() + PAGE_SECONDS
        while resume is not None:
            page.after = resume
            halves = await self._halves(page, call, to)
            missing = missing or halves.missing
            if halves.missing is None:
                self._shadow.offer_page((method, call.data), halves.pages, halves.looked_up)
            items, resume = merge(*halves.pages, halves.looked_up, size, ANSWER_BYTES)
            # Go on after a page without a match until PAGE_SECONDS are over, then answer an empty page.
            if items or self._clock.monotonic() > until:
                break
        token = "" if resume is None else make_token(resume, question)
        data = frame(shape, items, token)
        if missing is None:
            return Answer(to, data, {metadata.STORE: ",".join(store.value for store in Store)})
        self._traffic.stale_reads += 1
        return Answer(missing.other, data, {metadata.STORE: missing.other.value, metadata.STALE: "1"})

    async def _halves(self, page: pb.ListRecordsRequest, call: ListCall, to: Store) -> HalfPages:
        found = await asyncio.gather(*(self._half(store, page, call) for store in Store), return_exceptions=True)
        halves = {store: half for store, half in zip(Store, found, strict=True) if isinstance(half, HalfPage)}
        for failure in found:
            if isinstance(failure, BaseException) and not _may_be_missing(failure, to):
                raise failure
        if len(halves) == len(Store):
            try:
                looked_up = await self._look_up(list(halves.values()), page, call)
                return HalfPages((halves[Store.A], halves[Store.B]), looked_up)
            except Refused as failure:
                if not _may_be_missing(failure, to):
                    raise
                del halves[failure.store]
        if not halves or not self._policy.stale_reads:
            raise OwnerUnavailable("a list needs both stores: try again")
        ((store, half),) = halves.items()
        return HalfPages((half, _NOTHING), {}, store.other)

    async def _look_up(
        self, halves: Sequence[HalfPage], page: pb.ListRecordsRequest, call: ListCall
    ) -> Mapping[str, Item]:
        """Read, at each store, the rows of names that only the other store's page has."""
        a, b = halves
        wanted = ((Store.A, unknown_names(a, b)), (Store.B, unknown_names(b, a)))
        parts = await asyncio.gather(
            *(
                self._half(store, _part(page, names[start : start + LOOK_UP]), call)
                for store, names in wanted
                for start in range(0, len(names), LOOK_UP)
            )
        )
        return {name: item for part in parts for name, item in part.rows.items()}

    async def _half(self, store: Store, page: pb.ListRecordsRequest, call: ListCall) -> HalfPage:
        """Ask one store. Wait for a restarting store as a read does, to avoid a stale page."""
        waiting = Waiting(call.method.operation, True, len(call.data), partial(self._until, call.ends_at))
        try:
            return await self._patience.call(lambda: self._half_now(store, page, call), waiting)
        except QueueFull as full:
            raise full.away from None

    def _until(self, ends_at: float, away: Away) -> float:
        now = self._clock.monotonic()
        outage = self._patience.away_since(away.store, now) + self._patience.seconds
        return min(outage, now + READ_SHARE * (ends_at - MARGIN_SECONDS - now))

    async def _half_now(self, store: Store, page: pb.ListRecordsRequest, call: ListCall) -> HalfPage:
        client = self._stores[store]
        seconds = max(call.ends_at - self._clock.monotonic(), 0.0) * ATTEMPT_SHARE
        attempt = Attempt(store, call.method.operation, call.method.is_read, seconds)
        asking = client.ask(client.replication.ListRecords, page, seconds, call.extra)
        try:
            answer = await measured(self._traffic.meter, self._clock, attempt, asking)
        except Refused as refused:
            self._patience.heard(store, refused if isinstance(refused, Away) else None)
            raise
        self._patience.heard(store, None)
        rows = {
            row.key: Item(version_from_pb(row.version), row.matches, row.item, row.unknown_schema)
            for row in answer.rows
        }
        return HalfPage(rows, answer.full)


def _may_be_missing(failure: BaseException, to: Store) -> bool:
    """Whether the list can do without the store: it is out of reach, or it fails and the list does not depend on it."""
    return isinstance(failure, Away) or (isinstance(failure, Refused) and failure.is_fault and failure.store is not to)


def _shape(method: Method) -> ListShape:
    if method.shape is None:
        raise ValueError(f"{method.path} is not a list")
    return method.shape


def _part(page: pb.ListRecordsRequest, names: Sequence[str]) -> pb.ListRecordsRequest:
    part = pb.ListRecordsRequest(keys=names, limit=len(names))
    part.method, part.request, part.schema_version = page.method, page.request, page.schema_version
    return part
