"""The auditor of acknowledged writes: it samples answers to clients, and checks later that the stores still have them.

It reads the stores' rows and the clients' answers itself, and shares no code with the parts that make, move or compare
records. Its samples are in memory: if the router ends, it does not check the rest. The router also logs a lost write.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence

from google.protobuf.message import DecodeError, Message

from libs.clock import Clock
from libs.errors import BatonError
from libs.ownership.model import Store, Version
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.rpc import metadata
from libs.tasks import Loop
from services.router.core.write_ledger import Acknowledged, Ledger, LedgerLimits, StoreRow, is_sampled
from services.router.flows.calls.forward import ClientCall
from services.router.flows.stores import Answer, StoreClient, Stores

log = logging.getLogger(__name__)

KEYS = 100
"""Keys per check."""

INTERVAL_SECONDS = 0.5
READ_SECONDS = 2.0

_STORES = {record_pb2.STORE_A: Store.A, record_pb2.STORE_B: Store.B}

Rows = Mapping[str, StoreRow | None]
"""Rows by key; None if the store has no row. An absent key was not answered."""


class Auditor:
    """The ledger's sampler and checker. `offer` is for the request path: it neither waits nor fails."""

    def __init__(self, stores: Stores, clock: Clock, limits: LedgerLimits) -> None:
        self.ledger = Ledger(limits)
        self.loop = Loop("ledger", self._body, longest_pause_seconds=2.0)
        self._stores = stores
        self._clock = clock
        self._limits = limits

    def __repr__(self) -> str:
        return f"<Auditor {self.ledger!r}>"

    def offer(self, call: ClientCall, request: Message, answer: Answer, schema_version: int) -> None:
        """Offer an answer to a client as a sample. `schema_version`: the version of the record in it, or 0."""
        method = call.method
        if not method.revision or method.changes_nothing(request):
            return
        request_id = str(dict(call.extra)[metadata.REQUEST_ID])
        if not is_sampled(request_id, self._limits.permille):
            return
        try:
            revision: int = getattr(method.reply_class.FromString(answer.data), method.revision)
        except DecodeError:
            # Shown in a schema version that this router does not know: its client can read it all the same.
            return
        write = Acknowledged(
            key=call.key,
            request_id=request_id,
            operation=method.operation,
            store=answer.store,
            revision=revision,
            content=_hash(answer.data),
            schema_version=schema_version,
            time_seconds=self._clock.now(),
        )
        self.ledger.note(write, self._clock.monotonic())

    async def look(self) -> int:
        """Check the writes that are due, and return their number. An unreachable store is not an error."""
        writes = self.ledger.due(self._clock.monotonic(), KEYS)
        if not writes:
            return 0
        keys = [write.key for write in writes]
        answers = await asyncio.gather(*(self._rows(client, keys) for client in self._stores.values()))
        looked = 0
        for write in writes:
            rows = [rows[write.key] for rows in answers if write.key in rows]
            found = [row for row in rows if row is not None]
            # The owner's row decides. During a handoff there is no owner, and both rows are needed.
            if len(rows) < len(answers) and not any(row.owned for row in found):
                self.ledger.put_off(write, self._clock.monotonic())
                continue
            looked += 1
            self._judge(write, found)
        return looked

    def _judge(self, write: Acknowledged, rows: Sequence[StoreRow]) -> None:
        finding = self.ledger.look(write, rows, self._clock.monotonic(), self._clock.now())
        if finding is not None:
            log.error(
                "ledger: an acknowledged write is lost: %s: %s revision %d, request %s, answered by %s; seen: %s",
                finding.loss.value, write.key, write.revision, write.request_id, write.store,
                ", ".join(f"{row.store} {row.write_revision}{' owns it' if row.owned else ''}" for row in rows) or "-",
            )  # fmt: skip

    async def _rows(self, client: StoreClient, keys: list[str]) -> Rows:
        request = pb.ReadRecordsRequest(keys=keys, mark_too_large=True)
        try:
            answer = await client.ask(client.replication.ReadRecords, request, READ_SECONDS)
            large = sorted({row.key for row in answer.rows if row.too_large_bytes})
            looks = await _looks(client, large) if large else {}
        except BatonError:
            return {}
        return {row.key: looks.get(row.key) or _seen(client.store, row) for row in answer.rows}

    async def _body(self, loop: Loop) -> None:
        if await self.look() < KEYS:
            await asyncio.sleep(INTERVAL_SECONDS)
        loop.well()


async def _looks(client: StoreClient, keys: Sequence[str]) -> Rows:
    """Read rows without content, if they are too large. Raises the errors of the store's client.

    Only an old program can have written one, never a write that was acknowledged, so its content counts as different.
    """
    request = pb.LookAtRecordsRequest(keys=keys, limit=len(keys))
    answer = await client.ask(client.replication.LookAtRecords, request, READ_SECONDS)
    return {
        look.key: StoreRow(
            store=client.store,
            owned=_STORES.get(look.owner) is client.store,
            version=Version(look.version.term, look.version.revision),
            write_revision=look.write_version.revision,
            content=b"",
            schema_version=0,
        )
        for look in answer.looks
    }


def _seen(store: Store, row: pb.ReadRecordsResponse.Row) -> StoreRow | None:
    if not row.HasField("record"):
        return None
    record = row.record
    return StoreRow(
        store=store,
        owned=_STORES.get(record.owner) is store,
        version=Version(record.version.term, record.version.revision),
        write_revision=record.write_version.revision,
        content=_hash(record.payload),
        schema_version=record.schema_version,
    )


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
