"""The stores that the conformance suite runs against, and small helpers to talk to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from libs.clock import Clock
from libs.contract.pages import Page
from libs.ownership.model import (
    NEVER,
    Answered,
    BucketOwner,
    Call,
    Changed,
    Decide,
    Found,
    Record,
    Row,
    Served,
    Store,
    Version,
    bucket_of,
)
from libs.ownership.rules import Change, Resource, decide_write
from libs.pb.sandbox.v1 import sandbox_pb2 as pb
from libs.sandboxes.columns import sandbox_columns
from libs.store import engine
from libs.store.engine_ports import EngineTransfers
from libs.store.inspection import ExportQuery
from libs.store.limits import OutboxLimits
from libs.store.memory import MemoryStore
from libs.store.port import Listed, StorePorts
from libs.store.transaction import Transactions
from services.service_layer.store.postgres import PostgresStore
from services.service_layer.store.postgres_transaction import PostgresTransactions


@dataclass(frozen=True)
class Place:
    """Parameters that an adapter may need to make an empty store."""

    path: Path
    dsn: str
    clock: Clock
    limits: OutboxLimits


@dataclass(frozen=True)
class Adapter:
    name: str
    store: Store
    module: str = ""
    """Has `open_store`. None: in memory."""

    def __str__(self) -> str:
        return self.name

    @property
    def sqlite(self) -> bool:
        return self.name.startswith("sqlite")

    @property
    def postgres(self) -> bool:
        return self.name.startswith("postgres")


MEMORY_A = Adapter("memory-a", Store.A)
MEMORY_B = Adapter("memory-b", Store.B)
SQLITE_A = Adapter("sqlite-a", Store.A, "services.simple_mcp.store")
SQLITE_B = Adapter("sqlite-b", Store.B, "services.service_layer.store.embedded")
POSTGRES = Adapter("postgres", Store.B, "services.service_layer.store.postgres")
POSTGRES_BY_ENGINE = Adapter("postgres-by-engine", Store.B, POSTGRES.module)
"""Without the single statements that stand for the engine's write and apply."""


def _exists(module: str) -> bool:
    try:
        spec = find_spec(module)
        return spec is not None and spec.origin is not None
    except ModuleNotFoundError:
        return False


ADAPTERS = [one for one in (MEMORY_A, MEMORY_B, SQLITE_A, SQLITE_B, POSTGRES) if not one.module or _exists(one.module)]
ADAPTERS_AND_FORMS = [*ADAPTERS, *([POSTGRES_BY_ENGINE] if POSTGRES in ADAPTERS else [])]
"""For suites that compare a store's behaviour, by any of its statements."""


@asynccontextmanager
async def open_adapter(adapter: Adapter, place: Place) -> AsyncIterator[StorePorts]:
    """The store at that place; made, empty, if there is none."""
    if not adapter.module:
        yield MemoryStore(adapter.store, place.clock, sandbox_columns, place.limits)
        return
    module = import_module(adapter.module)
    if adapter.postgres:
        opened = module.open_store(place.dsn, place.clock, place.limits)
    else:
        if adapter is SQLITE_A and not place.path.exists():
            module.initialise(place.path)
        opened = module.open_store(place.path, place.clock, place.limits)
    async with opened as store:
        if adapter is POSTGRES_BY_ENGINE:
            _leave_to_engine(store)
        yield store


def _leave_to_engine(store: PostgresStore) -> None:
    transactions = PostgresTransactions(store.context)
    transfers = EngineTransfers(transactions, store.store)

    async def write(call: Call, decide: Decide) -> Changed | Answered:
        return await transactions.run(partial(engine.write, call=call, decide=decide))

    for port, name, instead in (
        (store.records, "write", write),
        (store.transfers, "apply", transfers.apply),
        (store.transfers, "release", transfers.release),
    ):
        setattr(port, name, instead)


def transactions_of(store: StorePorts) -> Transactions:
    """The transactions that the store's engine runs its procedures in."""
    transfers = store.transfers
    assert isinstance(transfers, EngineTransfers)
    return transfers._transactions


async def own(store: StorePorts, keys: Iterable[str]) -> None:
    """Makes the bucket owners of the keys' buckets (0, 1, this store), as they may be on either side."""
    for bucket in {bucket_of(key) for key in keys}:
        await store.transfers.adopt_bucket(BucketOwner(bucket, 0, 1, store.store))


def sandbox(key: str, word: str = "", **fields: str) -> bytes:
    """A payload. Fields: state, account, label ("key:value"), padding (bytes)."""
    message = pb.Sandbox(name=key, account=fields.get("account", ""))
    message.annotations["word"] = word
    if "state" in fields:
        message.state = pb.Sandbox.State.Value(f"STATE_{fields['state']}")
    for label in filter(None, fields.get("label", "").split(",")):
        name, _, value = label.partition(":")
        message.labels[name] = value
    if "padding" in fields:
        message.annotations["padding"] = "x" * int(fields["padding"])
    return message.SerializeToString(deterministic=True)


def word_of(payload: bytes) -> str:
    return pb.Sandbox.FromString(payload).annotations["word"] if payload else "-"


def hash_of(word: str) -> bytes:
    return blake2b(word.encode(), digest_size=16).digest()


def call_of(key: str, request: str, hash_word: str = "h", principal: str = "ann") -> Call:
    return Call(key, principal, request, hash_of(hash_word))


def putting(payload: bytes, *, live: bool = True) -> Change:
    def change(row: Row | None, version: Version) -> Resource | Answered:
        return Resource(payload, live, 1)

    return change


async def put(store: StorePorts, key: str, request: str, word: str, **fields: str) -> Changed | Answered:
    """A write that leaves this word (`deleted="yes"`: as a tombstone)."""
    change = putting(sandbox(key, word, **fields), live="deleted" not in fields)
    return await write(store, call_of(key, request), change)


async def write(store: StorePorts, call: Call, change: Change) -> Changed | Answered:
    def decide(found: Found) -> Changed | Answered:
        return decide_write(found, store.store, call, change)

    return await store.records.write(call, decide)


def row_of(key: str, version: tuple[int, int], owner: Store, word: str = "w", **fields: str) -> Row:
    """A row as a write of its owner left it; `deleted`, `written` ("term-revision") say otherwise."""
    at = Version(*version)
    written = Version(*map(int, fields.pop("written").split("-"))) if "written" in fields else at
    live = fields.pop("deleted", "") == ""
    return Row(key, at, owner, written, live and written != NEVER, sandbox(key, word, **fields), 1)


def check_nothing(row: Row) -> None:
    """Check of a contract that can have any row."""


def record_of(row: Row, *served: Served) -> Record:
    return Record(row, served, row.owner, 1_700_000_000.0)


def served_of(request: str, version: tuple[int, int], answer: bytes | None = b"", hash_word: str = "h") -> Served:
    return Served("ann", request, hash_of(hash_word), Version(*version), answer)


async def everything(store: StorePorts) -> list[Record]:
    """All records, by pages."""
    records: list[Record] = []
    more = True
    while more:
        page, more = await store.inspection.export(ExportQuery(after=records[-1].row.key if records else ""))
        records += page
    return records


async def names(store: StorePorts, page: Page) -> list[str]:
    return [listed.row.key for listed in await store.records.page(page)]


def keys_of(listed: Sequence[Listed]) -> list[str]:
    return [one.row.key for one in listed]
