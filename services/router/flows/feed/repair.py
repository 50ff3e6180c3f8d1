"""Repair of unreadable records: show both stores' rows, and replace or delete the record at its owner.

The order is written to the journal before the store carries it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from uuid import uuid4

from google.protobuf import json_format

from libs.contract.descriptors import Contract
from libs.contract.secrets import has_secrets, shows_mark
from libs.errors import HIDDEN, BatonError, Hidden, InvalidField
from libs.ownership.limits import MAX_KEY_BYTES
from libs.ownership.model import NEVER, Store, Version
from libs.ownership.wire import store_from_pb, version_from_pb, version_to_pb
from libs.pb.baton.replication.v1 import repair_pb2 as pb
from services.router.core.repair import Examined, Plan, plan_repair
from services.router.flows.feed.events import ContentOf, resource_of
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.stores import StoreClient, Stores

CALL_SECONDS = 5.0
REPAIRED = "record repaired"
"""The action in the journal."""
_SHOWN_CHARACTERS = 300
"""Length of the excerpt of corrupt content, in the journal and in answers."""

Content = pb.RepairRecordRequest.Content


class NotSettled(BatonError):
    """The record's owner has no row for it, and the other store does not hand it over: try again."""

    code = "UNAVAILABLE"
    reason = "OWNER_UNAVAILABLE"
    retry_seconds = 1.0


class RecordAt(NamedTuple):
    store: Store
    trouble: str
    """The store's error, or ""."""
    answer: pb.ExamineRecordResponse
    content: str
    """The content as JSON; "" if it cannot be read."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """The order for a record: a content in JSON, a store's copy, or, if neither is given, a deletion."""

    json: str | None = None
    copy: Store | None = None


class Repaired(NamedTuple):
    owner: Store
    effect: str
    version: Version | None
    """The new version; None for a dry run."""


class RecordRepair:
    """Repair over both stores. Raises the errors of the stores' clients."""

    def __init__(
        self,
        stores: Stores,
        migration: Migration,
        contract: Contract,
        content_of: ContentOf,
    ) -> None:
        self._stores = stores
        self._transfer = Transfer(stores)
        self._migration = migration
        self._resource = resource_of(contract)
        self._newest = contract.schemas.newest
        self._content_of = content_of

    async def show(self, key: str, *, reveal: bool = False) -> list[RecordAt]:
        """Return each store's row, with the secrets of its content if `reveal`. Raises InvalidField."""
        if not 0 < len(key.encode()) <= MAX_KEY_BYTES:
            raise InvalidField("key", key, f"the name of a record, 1 to {MAX_KEY_BYTES} bytes")
        return list(await asyncio.gather(*(self._at(client, key, reveal=reveal) for client in self._stores.values())))

    async def repair(self, decision: Decision, key: str, wanted: Replacement, *, dry_run: bool) -> Repaired:
        """Raises InvalidField, NoSuchRecord, NothingCorrupt, NotSettled, ControlUnavailable, Outdated."""
        if not dry_run and not decision.reason.strip():
            raise InvalidField("reason", decision.reason, "the reason for the repair; the journal keeps it")
        seen = await self.show(key)
        plan = plan_repair(_rows(seen))
        content = self._content(key, wanted, {one.store: one for one in seen})
        effect = _effect(key, wanted, plan)
        if dry_run:
            return Repaired(plan.owner, effect, None)
        excerpt = plan.corrupt[:_SHOWN_CHARACTERS]
        await self._migration.note(replace(decision, reason=f"{decision.reason} ({effect}; {excerpt})"), REPAIRED)
        if plan.to_hand_over:
            await self._transfer.take([key], plan.owner)
            plan = plan_repair(_rows(await self.show(key)))
            if plan.to_hand_over:
                raise NotSettled
        request = pb.RepairRecordRequest(key=key, request_id=str(uuid4()), content=content)
        if plan.above > NEVER:
            request.above.CopyFrom(version_to_pb(plan.above))
        client = self._stores[plan.owner]
        answer = await client.ask(client.repair.RepairRecord, request, CALL_SECONDS)
        return Repaired(plan.owner, effect, version_from_pb(answer.version))

    async def _at(self, client: StoreClient, key: str, *, reveal: bool) -> RecordAt:
        try:
            answer = await client.ask(client.repair.ExamineRecord, pb.ExamineRecordRequest(key=key), CALL_SECONDS)
        except BatonError as error:
            return RecordAt(client.store, error.message, pb.ExamineRecordResponse(), "")
        readable = answer.HasField("record") and not answer.corrupt
        return RecordAt(client.store, "", answer, self._content_of(answer.record, reveal=reveal) if readable else "")

    def _content(self, key: str, wanted: Replacement, seen: Mapping[Store, RecordAt]) -> Content | None:
        """Return the new content; None to delete the record. Raises InvalidField."""
        if wanted.copy is not None:
            return _copy(key, seen[wanted.copy])
        if wanted.json is None:
            return None
        if self._resource is None:
            raise InvalidField("json", "a content", "nothing: the contract has no list, so its resource is not known")
        try:
            message = json_format.Parse(wanted.json, self._resource())
        except json_format.ParseError as error:
            kind: Any = self._resource.DESCRIPTOR
            words = "" if has_secrets(kind) else f": {error}"
            raise InvalidField("json", Hidden(), f"{kind.full_name} as JSON{words}") from None
        if shows_mark(message):
            expected = f"secrets in the place of each {HIDDEN}: show the record with --reveal"
            raise InvalidField("json", Hidden(), expected)
        payload = message.SerializeToString(deterministic=True)
        return Content(payload=payload, schema_version=self._newest, live=True)


def _rows(seen: list[RecordAt]) -> dict[Store, Examined]:
    return {
        one.store: Examined(
            version_from_pb(one.answer.record.version),
            store_from_pb(one.answer.record.owner, "owner"),
            one.answer.corrupt,
        )
        for one in seen
        if one.answer.HasField("record")
    }


def _copy(key: str, at: RecordAt) -> Content:
    record = at.answer.record
    if at.trouble or at.answer.corrupt or not record.payload:
        expected = f"a store that has a readable content of {key}: baton records show {key}"
        raise InvalidField("copy", at.trouble or at.answer.corrupt or f"store {at.store} has none", expected)
    return Content(payload=record.payload, schema_version=record.schema_version, live=record.live, as_kept=True)


def _effect(key: str, wanted: Replacement, plan: Plan) -> str:
    first = f"store {plan.owner.other} hands {key} over, then " if plan.to_hand_over else ""
    if wanted.copy is not None:
        return f"{first}store {plan.owner} replaces {key} by the copy of store {wanted.copy}"
    if wanted.json is not None:
        return f"{first}store {plan.owner} replaces {key} by the given content"
    return f"{first}store {plan.owner} deletes {key} and drops its content"
