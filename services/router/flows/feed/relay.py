"""The relay from a store's outbox to the log: pull, append, acknowledge.

A change stays in the outbox until the relay acknowledges it by name, which it does only after the log has made the
change durable. So a relay may die at any point: the next one pulls the same changes again. Two relays at once only
produce duplicates, which apply ignores. Without changes, a heartbeat shows that the path works.

The next pull carries the acknowledgement, which saves a call for each batch. Changes that commit meanwhile make the
next batch.

If the log refuses an event for good, the store sets it aside, so that later events do not wait behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import grpc

from libs.clock import Clock
from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.codes import Codes
from libs.eventlog.port import Event, EventLog, EventTooLarge, LogUnavailable
from libs.ownership.model import Store
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.tasks import Loop
from libs.telemetry.trace_context import checked
from libs.telemetry.tracing import Span, Spans, ending
from services.router.control.port import Leases
from services.router.flows.stores import Refused, StoreClient

EVENT_TYPE = "baton.record.v1"
BULK_TYPE = "baton.bulk-release.v1"
HEARTBEAT_TYPE = "baton.heartbeat.v1"

PULL_LIMIT = 500
WAIT_SECONDS = 1.0
STEP_SECONDS = 5.0
LEASE_SECONDS = 5.0
HEARTBEAT_SECONDS = 5.0
RELAY_UNSIGNED = "RELAY_UNSIGNED"
"""Reason of a store that gives its changes only to relays that sign them with one of its keys."""


OFFER_SECONDS = 60.0
OFFER_LIMIT = 50
"""Maximum number of set-aside changes to offer to the log again at a time."""


class _Refused(NamedTuple):
    """A change that the log refuses."""

    change: pb.Change
    error: EventTooLarge


class Relay:
    """The relay of one store. `run_once` is the body of a supervised loop."""

    def __init__(
        self,
        client: StoreClient,
        log: EventLog,
        leases: Leases,
        holder: str,
        clock: Clock,
        *,
        codes: Codes | None = None,
        spans: Spans | None = None,
    ) -> None:
        """`codes`: those of the log, for the proof that stores ask for; None if it does not sign. `spans`: None if
        changes are not traced."""
        self._spans = spans
        self._codes = codes
        self._client = client
        self._log = log
        self._leases = leases
        self._holder = holder
        self._clock = clock
        self._name = f"relay:{client.store.value}"
        self._headers = HeaderWriter(client.store.value, EVENT_TYPE)
        self._bulk_headers = HeaderWriter(client.store.value, BULK_TYPE)
        self._heartbeat_headers = HeaderWriter(client.store.value, HEARTBEAT_TYPE)
        self._leased_until = 0.0
        self._last_sent = 0.0
        self._offer_at = 0.0
        self._appended: list[pb.AckChangesRequest.Name] = []
        """Changes that the log has, for the next pull to acknowledge."""
        self._with_pull = False
        """The store takes acknowledgements with a pull. One of an earlier release does not."""
        self.log_trouble = ""
        """Why the log did not accept the last events; "" if it did."""

    @property
    def store(self) -> Store:
        return self._client.store

    async def run_once(self, loop: Loop) -> None:
        """Relay one batch. If it raises LogUnavailable, Away or ControlUnavailable, no change was acknowledged."""
        if self._clock.monotonic() >= self._leased_until:
            # The control store may be unavailable, or another router may relay from now on.
            await self.acknowledge()
        if not await self._is_mine():
            loop.well()
            await asyncio.sleep(LEASE_SECONDS / 2)
            return
        # If the log is unavailable and there are no changes, a heartbeat tests it at once.
        wait_seconds = 0.0 if self.log_trouble else WAIT_SECONDS
        request = pb.PullChangesRequest(
            limit=PULL_LIMIT,
            wait_seconds=wait_seconds,
            log_trouble=self.log_trouble,
            relay_code=self._proof(),
            # If the pull fails, its changes are pulled again: the log may have been replaced meanwhile.
            acknowledged=self._take_appended(),
        )
        try:
            pulled = await self._client.ask(self._client.replication.PullChanges, request, WAIT_SECONDS + STEP_SECONDS)
        except Refused as error:
            if error.reason == RELAY_UNSIGNED:
                # Another router may have the keys: let it take the lease.
                self._leased_until = 0.0
                await self._leases.lease(self._name, self._holder, 0.0)
                await asyncio.sleep(LEASE_SECONDS)
            raise
        self._with_pull = pulled.takes_acknowledgements
        changes: Sequence[pb.Change] = pulled.changes
        if changes:
            refused = await self._deliver(changes)
            self._appended = _names_of(changes, refused)
            if not self._with_pull:
                await self.acknowledge()
            if refused:
                await self._set_aside(refused)
            self._last_sent = self._clock.monotonic()
        elif self.log_trouble or self._clock.monotonic() - self._last_sent > HEARTBEAT_SECONDS:
            await self._append([self._heartbeat()])
            self._last_sent = self._clock.monotonic()
        await self._offer_again()
        loop.well()

    async def _deliver(self, changes: Sequence[pb.Change]) -> list[_Refused]:
        """Append changes in their order. Returns the few that the log refuses, found by bisection."""
        spans = [self._span(change) for change in changes]
        try:
            with ending(spans):
                await self._append(list(map(self._event, changes, spans)))
        except EventTooLarge as error:
            if len(changes) == 1:
                return [_Refused(changes[0], error)]
            middle = len(changes) // 2
            return [*await self._deliver(changes[:middle]), *await self._deliver(changes[middle:])]
        return []

    async def acknowledge(self) -> None:
        """Acknowledge the last batch without a pull."""
        await self._acknowledge(self._take_appended())

    def _take_appended(self) -> list[pb.AckChangesRequest.Name]:
        appended, self._appended = self._appended, []
        return appended

    async def _acknowledge(self, names: Sequence[pb.AckChangesRequest.Name], *, aside: bool = False) -> None:
        if names:
            request = pb.AckChangesRequest(changes=names, aside=aside)
            await self._client.ask(self._client.replication.AckChanges, request, STEP_SECONDS)

    async def _set_aside(self, refused: Sequence[_Refused]) -> None:
        """Let the store set changes aside.

        Raises EventTooLarge if the store keeps them in its outbox: it runs an earlier release, or has too many.
        """
        refusals = [
            pb.SetChangesAsideRequest.Refusal(key=one.change.key, version=one.change.version, reason=one.error.message)
            for one in refused
        ]
        request = pb.SetChangesAsideRequest(refusals=refusals)
        try:
            answer = await self._client.ask(self._client.replication.SetChangesAside, request, STEP_SECONDS)
        except Refused as error:
            if error.error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            raise refused[0].error from None
        if not answer.set_aside:
            raise refused[0].error

    async def _offer_again(self) -> None:
        """Offer set-aside changes to the log again: its size limit may have been raised."""
        if self._clock.monotonic() < self._offer_at:
            return
        self._offer_at = self._clock.monotonic() + OFFER_SECONDS
        request = pb.PullChangesRequest(limit=OFFER_LIMIT, aside=True, relay_code=self._proof())
        pulled = await self._client.ask(self._client.replication.PullChanges, request, STEP_SECONDS)
        if set_aside := [change for change in pulled.changes if change.aside_reason]:
            await self._acknowledge(_names_of(set_aside, await self._deliver(set_aside)), aside=True)

    async def _append(self, events: Sequence[Event]) -> None:
        """Append events. The next pull reports the log's state to the store."""
        try:
            await self._log.append(events)
        except LogUnavailable as error:
            self.log_trouble = error.message
            raise
        self.log_trouble = ""

    async def _is_mine(self) -> bool:
        """Whether this router has the relay's lease. The lease avoids duplicates; correctness does not need it."""
        now = self._clock.monotonic()
        if now < self._leased_until:
            return True
        if not await self._leases.lease(self._name, self._holder, LEASE_SECONDS):
            return False
        self._leased_until = now + LEASE_SECONDS / 2
        return True

    def _proof(self) -> bytes:
        return b"" if self._codes is None else self._codes.proof()

    def _span(self, change: pb.Change) -> Span | None:
        if self._spans is None or not change.traceparent:
            return None
        attributes = {"messaging.destination.name": self._log.name, "baton.record": change.key}
        return self._spans.producer(f"send {self._log.name}", change.traceparent, attributes)

    def _event(self, change: pb.Change, span: Span | None = None) -> Event:
        record = record_pb2.Record.FromString(change.event)
        made, version = record.made_time.ToNanoseconds() / 1e9, (change.version.term, change.version.revision)
        headers = self._bulk_headers if record.HasField("bulk") else self._headers
        traceparent = checked(change.traceparent) if span is None else span.traceparent
        return Event(change.key, change.event, headers.write(change.key, version, made, traceparent or None))

    def _heartbeat(self) -> Event:
        return Event("", b"", self._heartbeat_headers.write("", (0, 0), self._clock.now()))


def _names_of(changes: Sequence[pb.Change], refused: Sequence[_Refused]) -> list[pb.AckChangesRequest.Name]:
    """The changes that the log did not refuse."""
    left = {(one.change.key, one.change.version.term, one.change.version.revision) for one in refused}
    return [
        pb.AckChangesRequest.Name(key=change.key, version=change.version)
        for change in changes
        if (change.key, change.version.term, change.version.revision) not in left
    ]
