"""Queries of shadow reads: read one store's row with its version, even if the store is not the owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc

from libs.contract.descriptors import Method
from libs.contract.schemas import SchemaUnknown
from libs.ownership.model import Store, Version
from libs.ownership.wire import version_from_pb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.rpc import metadata
from services.router.core.compare import ShownRecord, seen_of
from services.router.core.merge import Item
from services.router.flows.calls.forward import ClientCall
from services.router.flows.stores import Refused, Stores, read_version


class Unanswered(Exception):
    """A store did not answer a query of a shadow read."""

    def __init__(self, store: Store, status: str) -> None:
        super().__init__(f"store {store}: {status}")
        self.store = store
        self.status = status


class Subject(Protocol):
    """The subject of a comparison: one record in the answer of a method, or some rows of a list."""

    @property
    def method(self) -> Method: ...

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def request(self) -> bytes: ...

    async def look(self, store: Store, stores: Stores, timeout_seconds: float) -> Mapping[str, ShownRecord]:
        """Read the store's row of each name. Raises Unanswered."""
        ...


@dataclass(frozen=True, slots=True)
class OneRecord:
    call: ClientCall

    @property
    def method(self) -> Method:
        return self.call.method

    @property
    def names(self) -> Sequence[str]:
        return (self.call.key,)

    @property
    def request(self) -> bytes:
        return self.call.request

    async def look(self, store: Store, stores: Stores, timeout_seconds: float) -> Mapping[str, ShownRecord]:
        call = self.call
        extra = (*call.extra, (metadata.REPLICA, "1"))
        try:
            answer = await stores[store].call(call.method.path, call.request, timeout_seconds, extra)
        except Refused as refused:
            return {call.key: seen_in(refused)}
        return {call.key: ShownRecord(_version(answer.trailers), answer.data)}


@dataclass(frozen=True, slots=True)
class SomeRows:
    method: Method
    request: bytes
    names: Sequence[str]

    async def look(self, store: Store, stores: Stores, timeout_seconds: float) -> Mapping[str, ShownRecord]:
        client = stores[store]
        page = pb.ListRecordsRequest(
            method=self.method.path, request=self.request, keys=self.names, limit=len(self.names)
        )
        try:
            answer = await client.ask(client.replication.ListRecords, page, timeout_seconds)
        except Refused as refused:
            return dict.fromkeys(self.names, seen_in(refused))
        if any(row.unknown_schema for row in answer.rows):
            raise Unanswered(store, SchemaUnknown.reason)
        found = {row.key: Item(version_from_pb(row.version), row.matches, row.item) for row in answer.rows}
        return {name: seen_of(found.get(name)) for name in self.names}


def seen_in(refused: Refused) -> ShownRecord:
    """Convert an error that is an answer. Raises Unanswered for other errors."""
    status = f"{refused.code}/{refused.reason}"
    if refused.is_fault or refused.error.code() in _NO_ANSWER or refused.reason == SchemaUnknown.reason:
        raise Unanswered(refused.store, status)
    return ShownRecord(_version(dict(refused.error.trailing_metadata() or ())), status=status)


_NO_ANSWER = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED})


def _version(trailers: Mapping[str, str | bytes]) -> Version | None:
    return read_version(trailers) if metadata.VERSION in trailers else None
