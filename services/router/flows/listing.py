"""A strict list: both stores are asked for the page, whoever owns what, and the pages are merged (`core.merge`).

Each name is linearizable; the list as a whole is not a snapshot. When a store is out of reach the other one's page is
the answer, marked stale.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from google.protobuf.message import Message

from libs.contract.descriptors import ListShape, Method
from libs.contract.pages import make_token, read_token
from libs.errors import OwnerUnavailable
from libs.ownership.model import Store
from libs.ownership.wire import version_from_pb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.rpc import metadata
from libs.rpc.limits import ANSWER_BYTES
from services.router.core.merge import Half, Item, frame, merge, unknown_names
from services.router.flows.forward import ATTEMPT_SHARE, ReadPolicy
from services.router.flows.stores import Answer, Away, Stores
from services.router.flows.traffic import Traffic

LOOK_UP = 500
"""Names that are looked up at once."""

_NOTHING = Half({}, full=False)


class Rows(Protocol):
    """Who looks at the rows that both stores showed for a page."""

    def offer_page(
        self, page: tuple[Method, bytes], halves: tuple[Half, Half], looked_up: Mapping[str, Item]
    ) -> None: ...


class Listing:
    """Raises InvalidField, Refused with a store's own error, OwnerUnavailable."""

    def __init__(self, stores: Stores, traffic: Traffic, policy: ReadPolicy, shadow: Rows) -> None:
        self._stores = stores
        self._traffic = traffic
        self._policy = policy
        self._shadow = shadow

    async def call(self, method: Method, request: Message, data: bytes, timeout_seconds: float) -> Answer:
        """`data`: the request as it came."""
        shape = _shape(method)
        size, token, question = method.page(request)
        resume: str | None = read_token(token, question, shape.page_token)
        page = pb.ListRecordsRequest(method=method.path, request=data, limit=size)
        items: list[bytes] = []
        stale = False
        # A page of which no name matched, when the newest rows were known, is not an answer yet.
        while resume is not None and not items:
            page.after = resume
            halves, looked_up, half_away = await self._halves(page, timeout_seconds)
            stale = stale or half_away
            if not half_away:
                self._shadow.offer_page((method, data), halves, looked_up)
            items, resume = merge(*halves, looked_up, size, ANSWER_BYTES)
        self._traffic.stale_reads += stale
        token = "" if resume is None else make_token(resume, question)
        return Answer(Store.A, frame(shape, items, token), {metadata.STALE: "1"} if stale else {})

    async def _halves(
        self, page: pb.ListRecordsRequest, timeout_seconds: float
    ) -> tuple[tuple[Half, Half], Mapping[str, Item], bool]:
        """Both pages, the rows that were looked up, and whether a store is out of reach."""
        found = await asyncio.gather(
            *(self._half(store, page, timeout_seconds * ATTEMPT_SHARE) for store in Store), return_exceptions=True
        )
        halves = [half for half in found if isinstance(half, Half)]
        for failure in found:
            if isinstance(failure, BaseException) and not isinstance(failure, Away):
                raise failure
        if len(halves) == len(Store):
            try:
                return (halves[0], halves[1]), await self._look_up(halves, page, timeout_seconds), False
            except Away as away:
                halves = [halves[list(Store).index(away.store.other)]]
        if not halves or not self._policy.stale_reads:
            raise OwnerUnavailable("a list needs both stores: try again")
        return (halves[0], _NOTHING), {}, True

    async def _look_up(
        self, halves: Sequence[Half], page: pb.ListRecordsRequest, timeout_seconds: float
    ) -> Mapping[str, Item]:
        """The rows, at each store, of the names that only the other page has."""
        a, b = halves
        wanted = ((Store.A, unknown_names(a, b)), (Store.B, unknown_names(b, a)))
        parts = await asyncio.gather(
            *(
                self._half(store, _part(page, names[start : start + LOOK_UP]), timeout_seconds * ATTEMPT_SHARE)
                for store, names in wanted
                for start in range(0, len(names), LOOK_UP)
            )
        )
        return {name: item for part in parts for name, item in part.rows.items()}

    async def _half(self, store: Store, page: pb.ListRecordsRequest, timeout_seconds: float) -> Half:
        client = self._stores[store]
        answer = await client.ask(client.replication.ListRecords, page, timeout_seconds)
        rows = {row.key: Item(version_from_pb(row.version), row.matches, row.item) for row in answer.rows}
        return Half(rows, answer.full)


def _shape(method: Method) -> ListShape:
    if method.shape is None:
        raise ValueError(f"{method.path} is not a list")
    return method.shape


def _part(page: pb.ListRecordsRequest, names: Sequence[str]) -> pb.ListRecordsRequest:
    return pb.ListRecordsRequest(method=page.method, request=page.request, keys=names, limit=len(names))
