"""The auditor of acknowledged writes: notes what clients were told, and looks later whether the stores still have it.

It reads the stores' rows and the clients' answers itself, by no code that makes, moves or compares records elsewhere.
What it keeps is in this router's memory: when the router ends, what it has noted and not looked at yet is not looked at
any more. A lost write is said in the log of the router too.
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
from services.router.core.ledger import Acknowledged, Ledger, LedgerLimits, Seen, is_sampled
from services.router.flows.calls.forward import ClientCall
from services.router.flows.stores import Answer, StoreClient, Stores

log = logging.getLogger(__name__)

KEYS = 100
"""Of one look."""

INTERVAL_SECONDS = 0.5
READ_SECONDS = 2.0

_STORES = {record_pb2.STORE_A: Store.A, record_pb2.STORE_B: Store.B}

Rows = Mapping[str, Seen | None]
"""By key; None: the store has no row of it. A key that is not there was not answered."""


class Auditor:
    """`offer` belongs into the request path: it neither waits nor fails. `loop` is the caller's to run."""

    def __init__(self, stores: Stores, clock: Clock, limits: LedgerLimits) -> None:
        self.ledger = Ledger(limits)
        self.loop = Loop("ledger", self._body, longest_pause_seconds=2.0)
        self._stores = stores
        self._clock = clock
        self._limits = limits

    def __repr__(self) -> str:
        return f"<Auditor {self.ledger!r}>"

    def offer(self, call: ClientCall, request: Message, answer: Answer, schema_version: int) -> None:
        """A client is given this answer to its call. `schema_version`: in which it shows the record, or 0."""
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
        """Once, at what is due. Returns how many writes were looked at. Never raises because a store is away."""
        writes = self.ledger.due(self._clock.monotonic(), KEYS)
        if not writes:
            return 0
        keys = [write.key for write in writes]
        answers = await asyncio.gather(*(self._rows(client, keys) for client in self._stores.values()))
        looked = 0
        for write in writes:
            rows = [rows[write.key] for rows in answers if write.key in rows]
            found = [row for row in rows if row is not None]
            # The owner alone can tell; nobody is it while the record moves, and then it takes both.
            if len(rows) < len(answers) and not any(row.owned for row in found):
                self.ledger.put_off(write, self._clock.monotonic())
                continue
            looked += 1
            self._judge(write, found)
        return looked

    def _judge(self, write: Acknowledged, rows: Sequence[Seen]) -> None:
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
    """Of rows that are too large to be read. Only an old program can have left one, and no write that a client was
    answered leaves such a content: it counts as another one. Raises what the store's client raises."""
    request = pb.LookAtRecordsRequest(keys=keys, limit=len(keys))
    answer = await client.ask(client.replication.LookAtRecords, request, READ_SECONDS)
    return {
        look.key: Seen(
            store=client.store,
            owned=_STORES.get(look.owner) is client.store,
            version=Version(look.version.term, look.version.revision),
            write_revision=look.write_version.revision,
            content=b"",
            schema_version=0,
        )
        for look in answer.looks
    }


def _seen(store: Store, row: pb.ReadRecordsResponse.Row) -> Seen | None:
    if not row.HasField("record"):
        return None
    record = row.record
    return Seen(
        store=store,
        owned=_STORES.get(record.owner) is store,
        version=Version(record.version.term, record.version.revision),
        write_revision=record.write_version.revision,
        content=_hash(record.payload),
        schema_version=record.schema_version,
    )


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
