"""Conflicts: changes that a seizure did not see. They are shown, and resolved by an operator, with a journal entry."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from google.protobuf.message import DecodeError

from libs.errors import BatonError, InvalidField
from libs.ownership.limits import MAX_EVENT_BYTES
from libs.ownership.model import Store, Version
from libs.ownership.wire import version_from_pb, version_to_pb
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import recovery_pb2 as pb
from libs.rpc.limits import ANSWER_BYTES
from services.router.flows.feed.events import ContentOf
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.stores import StoreClient, Stores

DEFAULT_CONFLICTS = 200
MAX_CONFLICTS = 1000
CALL_SECONDS = 5.0
RESOLVED = "conflict resolved"
"""The action in the journal."""


class NoConflict(BatonError):
    """The conflict does not exist or is resolved already."""

    code = "NOT_FOUND"
    reason = "NO_CONFLICT"


def _no_conflict(store: Store, key: str, version: Version) -> NoConflict:
    return NoConflict(f"store {store} has no open conflict of {key!r} at {version.term}-{version.revision}")


class ConflictAt(NamedTuple):
    store: Store
    conflict: pb.ListConflictsResponse.Conflict
    record: record_pb2.Record
    content: str


class Conflicts:
    """The conflicts of both stores."""

    def __init__(self, stores: Stores, migration: Migration, content_of: ContentOf) -> None:
        self._stores = stores
        self._migration = migration
        self._content_of = content_of

    async def list(self, limit: int = 0, *, reveal: bool = False) -> tuple[Sequence[ConflictAt], Sequence[str]]:
        """Return each store's conflicts, unresolved ones first, and the errors of stores. Raises InvalidField.

        `reveal`: with the secrets of their content.
        """
        if not 0 <= limit <= MAX_CONFLICTS:
            raise InvalidField("limit", limit, f"1 to {MAX_CONFLICTS}, or 0 for {DEFAULT_CONFLICTS}")
        found: list[ConflictAt] = []
        troubles: list[str] = []
        clients = list(self._stores.values())
        answers = await asyncio.gather(*(self._of(client, limit or DEFAULT_CONFLICTS) for client in clients))
        for client, answer in zip(clients, answers, strict=True):
            if isinstance(answer, str):
                troubles.append(answer)
            else:
                found += [self._shown(client.store, one, reveal=reveal) for one in answer]
        return found, troubles

    async def resolve(self, decision: Decision, store: Store, key: str, version: Version) -> None:
        """Resolve a conflict, after writing the decision to the journal. Without such a conflict nothing is written,
        unless another operator resolves it at this moment.

        Raises InvalidField, NoConflict, ControlUnavailable, Outdated, and the errors of the store's client.
        """
        if not decision.reason.strip():
            raise InvalidField("reason", decision.reason, "how it was resolved; the journal keeps it")
        conflict = f"{store} {key} {version.term}-{version.revision}"
        client = self._stores[store]
        if not await self._may_be_open(client, key, version):
            raise _no_conflict(store, key, version)
        await self._migration.note(replace(decision, reason=f"{decision.reason} ({conflict})"), RESOLVED)
        request = pb.ResolveConflictRequest(
            key=key, version=version_to_pb(version), resolution=f"{decision.actor}: {decision.reason}"
        )
        if not (await client.ask(client.recovery.ResolveConflict, request, CALL_SECONDS)).resolved:
            raise _no_conflict(store, key, version)

    async def _may_be_open(self, client: StoreClient, key: str, version: Version) -> bool:
        """Whether the conflict is open, or may be beyond those that the store lists."""
        request = pb.ListConflictsRequest(limit=MAX_CONFLICTS)
        listed = (await client.ask(client.recovery.ListConflicts, request, CALL_SECONDS)).conflicts
        found = [one for one in listed if not one.resolution]
        is_listed = any((one.key, version_from_pb(one.version)) == (key, version) for one in found)
        size = sum(len(one.event) for one in listed)
        return is_listed or len(listed) == MAX_CONFLICTS or size + MAX_EVENT_BYTES > ANSWER_BYTES

    async def _of(self, client: StoreClient, limit: int) -> Sequence[pb.ListConflictsResponse.Conflict] | str:
        try:
            request = pb.ListConflictsRequest(limit=limit)
            answer = await client.ask(client.recovery.ListConflicts, request, CALL_SECONDS)
        except BatonError as error:
            return error.message
        found: Sequence[pb.ListConflictsResponse.Conflict] = answer.conflicts
        return found

    def _shown(self, store: Store, conflict: pb.ListConflictsResponse.Conflict, *, reveal: bool) -> ConflictAt:
        try:
            record = record_pb2.Record.FromString(conflict.event)
            record.key = conflict.key
        except DecodeError:
            record = record_pb2.Record(key=conflict.key)
        if conflict.left_out_bytes:
            content = f"{conflict.left_out_bytes} bytes, too many to show: they are in the journal of store {store}"
            return ConflictAt(store, conflict, record, content)
        return ConflictAt(store, conflict, record, self._content_of(record, reveal=reveal))
