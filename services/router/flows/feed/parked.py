"""Parked events, which a store could not apply. They are listed, retried, or dropped with a reason in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from libs.errors import BatonError, InvalidField
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.stores import StoreClient, Stores

DEFAULT_EVENTS = 200
MAX_EVENTS = 1000
CALL_SECONDS = 5.0
DROPPED = "parked event dropped"
"""The action in the journal."""
_SHOWN_CHARACTERS = 200


class NotParked(BatonError):
    """The event is not parked."""

    code = "NOT_FOUND"
    reason = "EVENT_NOT_PARKED"


class ParkedAt(NamedTuple):
    store: Store
    event: pb.ListParkedResponse.Parked


class ParkedEvents:
    """The parked events of both stores."""

    def __init__(self, stores: Stores, migration: Migration) -> None:
        self._stores = stores
        self._migration = migration

    async def list(self, limit: int = 0) -> tuple[Sequence[ParkedAt], Sequence[str]]:
        """Return the oldest parked events of each store, and the errors of stores. Raises InvalidField."""
        if not 0 <= limit <= MAX_EVENTS:
            raise InvalidField("limit", limit, f"1 to {MAX_EVENTS}, or 0 for {DEFAULT_EVENTS}")
        found: list[ParkedAt] = []
        troubles: list[str] = []
        clients = list(self._stores.values())
        answers = await asyncio.gather(*(self._of(client, limit or DEFAULT_EVENTS) for client in clients))
        for client, answer in zip(clients, answers, strict=True):
            if isinstance(answer, str):
                troubles.append(answer)
            else:
                found += [ParkedAt(client.store, event) for event in answer]
        return found, troubles

    async def retry(self, store: Store, partition: int, offset: int) -> pb.RetryParkedResponse:
        """Raises NotParked, and the errors of the store's client."""
        client = self._stores[store]
        request = pb.RetryParkedRequest(partition=partition, offset=offset)
        answer: pb.RetryParkedResponse = await client.ask(client.replication.RetryParked, request, CALL_SECONDS)
        if not answer.found:
            raise _not_parked(store, partition, offset)
        return answer

    async def drop(self, decision: Decision, store: Store, partition: int, offset: int) -> ParkedAt:
        """Drop an event for good, after writing the decision to the journal.

        So every drop has an entry, but an entry's drop may have failed. Raises InvalidField, NotParked,
        ControlUnavailable, Outdated, and the errors of the store's client.
        """
        if not decision.reason.strip():
            raise InvalidField("reason", decision.reason, "the reason for the drop; the journal keeps it")
        client = self._stores[store]
        only = pb.ListParkedRequest(position=pb.ListParkedRequest.Position(partition=partition, offset=offset))
        listed = await client.ask(client.replication.ListParked, only, CALL_SECONDS)
        if not listed.parked:
            raise _not_parked(store, partition, offset)
        event = listed.parked[0]
        event_text = f"{store} {partition}/{offset}, {event.key or 'without key'}: {event.reason}"[:_SHOWN_CHARACTERS]
        await self._migration.note(replace(decision, reason=f"{decision.reason} ({event_text})"), DROPPED)
        request = pb.DropParkedRequest(partition=partition, offset=offset)
        if not (await client.ask(client.replication.DropParked, request, CALL_SECONDS)).found:
            raise _not_parked(store, partition, offset)
        return ParkedAt(store, event)

    async def drop_unauthenticated(self, decision: Decision, store: Store) -> int:
        """Drop all events of a store without a right code, as `drop`. Returns how many. Raises as `drop`, but not
        NotParked."""
        if not decision.reason.strip():
            raise InvalidField("reason", decision.reason, "the reason for the drop; the journal keeps it")
        client = self._stores[store]
        status = await client.ask(client.replication.GetStatus, pb.GetStatusRequest(), CALL_SECONDS)
        if not status.feed.unauthenticated_now:
            # What does not happen is not journaled.
            return 0
        text = f"{store}: {status.feed.unauthenticated_now} events without a right code"
        await self._migration.note(replace(decision, reason=f"{decision.reason} ({text})"), DROPPED)
        request = pb.DropParkedRequest(unauthenticated=True)
        answer: pb.DropParkedResponse = await client.ask(client.replication.DropParked, request, CALL_SECONDS)
        return answer.dropped

    async def _of(self, client: StoreClient, limit: int) -> Sequence[pb.ListParkedResponse.Parked] | str:
        try:
            answer = await client.ask(client.replication.ListParked, pb.ListParkedRequest(limit=limit), CALL_SECONDS)
        except BatonError as error:
            return error.message
        found: Sequence[pb.ListParkedResponse.Parked] = answer.parked
        return found


def _not_parked(store: Store, partition: int, offset: int) -> NotParked:
    return NotParked(
        f"at store {store} no event {partition}/{offset} is parked: baton events parked lists the parked ones"
    )
