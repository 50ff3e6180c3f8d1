"""Conditions at the end of a run, by the names of the protocol's invariants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from random import Random
from typing import NamedTuple

from libs.clock import ManualClock
from libs.ownership.model import Record, Row, Store, Version
from libs.ownership.rules import may_change
from libs.proving.history.history import WRITES, Outcome
from libs.proving.history.linearizability import check
from libs.sandboxes.columns import sandbox_columns
from libs.store.memory import MemoryStore
from libs.store.port import StorePorts
from tests.contracts.store_adapters import everything, word_of
from tests.stress.run import Run


class Finding(NamedTuple):
    invariant: str
    text: str


async def findings(run: Run) -> list[Finding]:
    """Everything that is wrong after `run.play()`."""
    found = [*_one_version_one_record(run), *_one_effect(run), *_linearizable(run)]
    for checked in (_one_owner(run), _nothing_lost(run), _stores_agree(run), _any_order(run), _apply_is_silent(run)):
        found += [finding async for finding in checked]
    return found


async def _one_owner(run: Run) -> AsyncIterator[Finding]:
    """Check every record that a store has, and every bucket: at most one owner (I1), and one in the end (I11)."""
    keys = set(run.keys).union(*[await _rows(ports) for ports in run.stores.values()])
    for key in sorted(keys):
        found = {store: await ports.records.read(key) for store, ports in run.stores.items()}
        owners = [store.value for store in Store if may_change(found[store], store)]
        if len(owners) != 1:
            yield Finding("I1" if owners else "I11", f"{key}: {owners or 'no store'} would accept a write: {found}")
    a, b = [await run.stores[store].transfers.bucket_owners() for store in Store]
    for at_a, at_b in zip(a, b, strict=True):
        owners = [
            store.value for store, bucket_owner in zip(Store, (at_a, at_b), strict=True) if bucket_owner.owner is store
        ]
        if len(owners) != 1:
            found_text = f"bucket {at_a.bucket}: {owners or 'no store'} owns it: {at_a}, {at_b}"
            yield Finding("I1" if owners else "I11", found_text)


def _one_version_one_record(run: Run) -> list[Finding]:
    rows: dict[tuple[str, Version], Row] = {}
    found: list[Finding] = []
    for record in (*run.events.values(), *run.coordinator.parcels):
        first = rows.setdefault((record.row.key, record.row.version), record.row)
        if first != record.row:
            found.append(Finding("I2", f"{first} and {record.row}"))
    return found


async def _nothing_lost(run: Run) -> AsyncIterator[Finding]:
    """I3, and the part of I6 that can be seen from outside: an acknowledged write is an event, with its request."""
    wrote = {
        (record.row.key, record.row.version): record
        for record in run.events.values()
        if record.row.version == record.row.write_version
    }
    for call in run.history:
        if call.method not in WRITES or call.outcome is not Outcome.OK or call.revision is None:
            continue
        version = Version(*call.revision)
        event = wrote.get((call.key, version))
        requests = {served.request_id for served in event.served} if event else set()
        if event is None or call.request_id not in requests:
            yield Finding("I6", f"{call} is not the event of its version: {event}")
        elif call.value is not None and word_of(event.row.payload) != call.value:
            yield Finding("I3", f"{call} left {word_of(event.row.payload)!r}")
        for ports in run.stores.values():
            found = await ports.records.read(call.key)
            if may_change(found, ports.store) and found.version < version:
                yield Finding("I3", f"{call} is not in the owner's row: {found}")


def _one_effect(run: Run) -> list[Finding]:
    made: dict[tuple[str, str], set[Version]] = defaultdict(set)
    for record in run.events.values():
        for served in record.served:
            made[record.row.key, served.request_id].add(served.version)
    for call in run.history:
        if call.method in WRITES and call.outcome is Outcome.OK and call.request_id and call.revision:
            made[call.key, call.request_id].add(Version(*call.revision))
    return [Finding("I4", f"{key}: {request} made {made}") for (key, request), made in made.items() if len(made) > 1]


def _linearizable(run: Run) -> list[Finding]:
    return [Finding("I5", str(failure)) for failure in check(run.history).failures]


async def _stores_agree(run: Run) -> AsyncIterator[Finding]:
    a, b = [[digest._replace(owned=0) for digest in await run.stores[store].inspection.digests()] for store in Store]
    if a != b:
        differing = sorted(set(a) ^ set(b))
        yield Finding("I11", f"the stores' digests differ after the healing: {differing}")


async def _any_order(run: Run) -> AsyncIterator[Finding]:
    """Fresh stores that learn every event in an order of their own hold the same rows. A bulk release has no row."""
    in_bulk = {(one.key, one.version) for bulk in run.bulk.values() for one in bulk.entries}
    for store, ports in run.stores.items():
        sent = list(run.events.values())
        Random(run.seed + 1).shuffle(sent)
        fresh = MemoryStore(store, ManualClock(), sandbox_columns)
        await fresh.transfers.apply(sent)
        rows, others = await _rows(ports), await _rows(fresh)
        for key in sorted(rows.keys() | others.keys()):
            row = rows.get(key)
            if row != others.get(key) and (row is None or (key, row.version) not in in_bulk):
                yield Finding("I7", f"{key} at {store}: {rows.get(key)}, from the events {others.get(key)}")


async def _apply_is_silent(run: Run) -> AsyncIterator[Finding]:
    for record in run.foreign:
        of = record.row if isinstance(record, Record) else record.entries
        yield Finding("I9", f"an event of {of} came from {record.origin.other}, which did not make it")
    for store, ports in run.stores.items():
        if changes := await ports.outbox.pull(10, 0):
            yield Finding("I9", f"{store} has made events of what it applied: {changes}")


async def _rows(ports: StorePorts) -> dict[str, Row]:
    return {record.row.key: record.row for record in await everything(ports)}
